//! Fuzzing of what reads other people's text: bundles, the shorthand, request bodies and paths. Each target says what must
//! hold of every input, and not only that nothing panics. An input that does otherwise than all before it is kept and
//! changed further.
//!
//! `cargo test` gives each target a few seconds; `cargo xtask fuzz` as long as is wanted.

mod body;
mod bundle;
mod engine;
mod path;
mod policy;
mod shorthand;

use self::engine::Target;

#[test]
fn path() {
    Target::new("path", path::SEEDS, path::WORDS, path::check).run();
}

#[test]
fn shorthand() {
    Target::new(
        "shorthand",
        shorthand::SEEDS,
        shorthand::WORDS,
        shorthand::check,
    )
    .run();
}

#[test]
fn body() {
    Target::new("body", body::SEEDS, body::WORDS, body::check).run();
}

#[test]
fn bundle() {
    let examples = bundle::examples();
    let examples: Vec<&[u8]> = examples.iter().map(String::as_bytes).collect();
    Target::new("bundle", &examples, bundle::WORDS, bundle::check).run();
}
