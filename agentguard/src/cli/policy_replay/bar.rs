//! How far it is: on a terminal, and nowhere else.

use std::io::{IsTerminal, Write};

pub(super) struct Bar {
    total: u64,
    shown: bool,
    wanted: bool,
}

impl Bar {
    const WIDTH: u64 = 40;

    pub(super) fn new(total: u64) -> Self {
        Self {
            total,
            shown: false,
            wanted: std::io::stderr().is_terminal(),
        }
    }

    pub(super) fn show(&mut self, done: u64) {
        if !self.wanted {
            return;
        }
        let share = |of: u64| done * of / self.total.max(1);
        let full = "#".repeat(share(Self::WIDTH) as usize);
        let width = Self::WIDTH as usize;
        let (percent, mib) = (share(100), self.total >> 20);
        // A terminal that is gone is no failure.
        let _ = write!(
            std::io::stderr(),
            "\r[{full:<width$}] {percent:>3} % of {mib} MiB"
        );
        self.shown = true;
    }

    pub(super) fn clear(&mut self) {
        if self.shown {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
