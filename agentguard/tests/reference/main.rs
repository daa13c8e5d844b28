//! The pages of the book that the code writes: `cargo xtask docs` writes them, and without it they must be what is there.

mod alarms;
mod audit_record;
mod commands;
mod configuration;
mod context;
mod control_api;
mod guarantees;
mod page;
mod refused;

use std::path::Path;

use self::page::Page;

/// Set: pages are written, not compared.
const WRITE: &str = "AGENTGUARD_WRITE_PAGES";

fn pages() -> Vec<Page> {
    vec![
        alarms::page(),
        configuration::page(),
        context::page(),
        guarantees::page(),
        refused::page(),
        commands::page(),
        audit_record::page(),
        control_api::page(),
    ]
}

#[test]
fn the_book_says_what_the_code_does() {
    let book = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let mut stale = Vec::new();
    for page in pages() {
        let path = book.join(page.path);
        let text = page.text(&book);
        if std::env::var_os(WRITE).is_some() {
            std::fs::write(&path, text).unwrap();
        } else if std::fs::read_to_string(&path).is_ok_and(|there| there == text) {
            continue;
        } else {
            stale.push(page.path);
        }
    }
    assert!(
        stale.is_empty(),
        "{stale:?} differ from the code: run `cargo xtask docs`"
    );
}
