//! `cargo xtask docs`: writes the book's pages that the code knows, and renders the book.

use crate::setup::{self, Need};
use crate::shell::{self, cargo, command};

pub(crate) fn run() -> anyhow::Result<()> {
    setup::run(Need::Docs)?;
    shell::run(
        cargo()
            .args([
                "test",
                "--release",
                "--quiet",
                "--package",
                "agentguard",
                "--test",
                "reference",
            ])
            .env("AGENTGUARD_WRITE_PAGES", "1"),
    )?;
    shell::run(command("mdbook", ["build", "agentguard/docs"]).current_dir(shell::root()))?;
    println!(
        "the book is at {}",
        shell::target().join("book/index.html").display()
    );
    Ok(())
}
