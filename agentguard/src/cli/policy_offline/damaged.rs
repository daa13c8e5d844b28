//! A damaged bundle gets errors with places that exist, and never a panic.

use std::collections::BTreeMap;
use std::path::Path;

use agentguard_bundle::store::{Trust, read};
use agentguard_policy::Sources;
use proptest::prelude::*;

use super::{compile, diagnostics_text};

const SCRAPS: [&str; 22] = [
    "",
    "\"",
    "'",
    "[",
    "]]",
    "{",
    "}",
    "(",
    ";",
    "//",
    "@",
    "::",
    "\\",
    "\n",
    "\0",
    "ü",
    "\u{202e}",
    "= 1",
    "\"\"\"",
    "Host::\"\"",
    "context",
    "#",
];

fn example() -> Sources {
    read(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/procurement"),
        Trust::Anyone,
    )
    .unwrap()
}

/// Replaces `length` characters of the file with a scrap.
fn damage(text: &str, at: usize, length: usize, scrap: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let at = at % (chars.len() + 1);
    let end = (at + length).min(chars.len());
    chars[..at]
        .iter()
        .chain(scrap.chars().collect::<Vec<_>>().iter())
        .chain(&chars[end..])
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn errors_point_into_the_files(file in 0..8usize, at in 0..2000usize, length in prop_oneof![3 => 0..4usize, 1 => 0..2000usize], scrap in 0..SCRAPS.len()) {
        let mut sources = example();
        let names: Vec<_> = sources.files.keys().cloned().collect();
        let name = &names[file % names.len()];
        let damaged = damage(&sources.files[name], at, length, SCRAPS[scrap]);
        sources.files.insert(name.clone(), damaged);
        let Err(found) = compile(&sources, &BTreeMap::new()) else {
            return Ok(());
        };
        prop_assert!(!found.is_empty());
        for one in &found {
            prop_assert!(!one.message.is_empty());
            if let (Some(line), Some(column)) = (one.line, one.column) {
                let text = &sources.files[&one.file];
                let lines: Vec<&str> = text.split('\n').collect();
                prop_assert!((line as usize) <= lines.len(), "{:?}", one);
                prop_assert!(column as usize <= lines[line as usize - 1].chars().count() + 1, "{:?}", one);
            }
        }
        let shown = diagnostics_text(&sources, &found, false);
        let acting = shown.contains(['\0', '\u{202e}', '\u{1b}']);
        prop_assert!(!acting, "{shown:?}");
    }
}
