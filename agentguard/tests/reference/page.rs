//! A page: a title, what people wrote about it, and what the code knows.

use std::fmt::Write as _;
use std::path::Path;

pub(crate) struct Page {
    /// Below the book's folder.
    pub path: &'static str,
    pub title: &'static str,
    pub generated: String,
}

impl Page {
    /// The introduction is a file of its own: `intro/` and the page's name.
    pub(crate) fn text(&self, book: &Path) -> String {
        let name = Path::new(self.path).file_name().expect("a page is a file");
        let intro = book.join("intro").join(name);
        let intro = std::fs::read_to_string(&intro)
            .unwrap_or_else(|error| panic!("{}: {error}", intro.display()));
        format!(
            "<!-- Written by `cargo xtask docs`: change the code, or intro/{}. -->\n\n# {}\n\n{}\n\n{}\n",
            name.display(),
            self.title,
            intro.trim(),
            self.generated.trim(),
        )
    }
}

/// A table in Markdown.
pub(crate) struct Table(String);

impl Table {
    pub(crate) fn new<const N: usize>(head: [&str; N]) -> Self {
        let mut table = Self(String::new());
        table.row(head);
        table.row([(); N].map(|()| "---"));
        table
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [&str; N]) {
        let cells = cells.map(|cell| cell.replace('|', "\\|"));
        writeln!(self.0, "| {} |", cells.join(" | ")).expect("a string takes everything");
    }

    pub(crate) fn text(self) -> String {
        self.0
    }
}
