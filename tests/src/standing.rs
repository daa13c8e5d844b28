//! What is expected of an attempt on the kernel that runs: closed, unless `tests/standings.toml` names it.

use serde::Deserialize;

use crate::attempt::User;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Closed,
    /// This kernel cannot close it, and `agentguard doctor` says so.
    Open,
    /// This kernel does not have what the attempt uses.
    Absent,
}

/// The table, for one kernel.
pub struct Standings {
    table: Table,
    release: String,
    has_lsm: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    #[serde(default)]
    open: Vec<Open>,
    #[serde(default)]
    absent: Vec<Absent>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Open {
    attempt: String,
    /// Everybody, if there is none.
    user: Option<String>,
    /// Beginnings of `uname -r`; all, if there are none.
    kernels: Option<Vec<String>>,
    /// Closed where the kernel takes LSM programs.
    closed_by_lsm: bool,
    why: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Absent {
    attempt: String,
    /// Beginnings of `uname -r`.
    kernels: Vec<String>,
    why: String,
}

impl Standings {
    pub fn of_this_kernel() -> Self {
        let uname = nix::sys::utsname::uname().expect("it has no errors");
        let has_lsm = agentguard_kernel::lsm().is_ok();
        Self::of(&uname.release().to_string_lossy(), has_lsm)
    }

    pub fn of(release: &str, has_lsm: bool) -> Self {
        let text = include_str!("../standings.toml");
        let table: Table = toml::from_str(text).expect("the table is TOML");
        for why in table
            .open
            .iter()
            .map(|open| &open.why)
            .chain(table.absent.iter().map(|absent| &absent.why))
        {
            assert!(!why.is_empty(), "a row without its reason");
        }
        Self {
            table,
            release: release.to_owned(),
            has_lsm,
        }
    }

    pub fn of_attempt(&self, attempt: &str, user: User) -> Standing {
        let is_of = |kernels: &[String]| kernels.iter().any(|k| self.release.starts_with(k));
        let absent = &mut self.table.absent.iter();
        let is_absent = absent.any(|row| row.attempt == attempt && is_of(&row.kernels));
        let is_open = self.table.open.iter().any(|row| {
            row.attempt == attempt
                && row.user.as_deref().is_none_or(|name| name == user.name())
                && row.kernels.as_deref().is_none_or(is_of)
                && !(row.closed_by_lsm && self.has_lsm)
        });
        match (is_absent, is_open) {
            (true, _) => Standing::Absent,
            (_, true) => Standing::Open,
            _ => Standing::Closed,
        }
    }

    pub fn has_lsm(&self) -> bool {
        self.has_lsm
    }

    /// Every attempt that has a row.
    pub fn named(&self) -> impl Iterator<Item = &str> {
        let open = self.table.open.iter().map(|row| &*row.attempt);
        open.chain(self.table.absent.iter().map(|row| &*row.attempt))
    }
}
