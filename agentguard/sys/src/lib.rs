//! System calls that neither `std` nor an async runtime offers: one call per function, its name in every error.
#![allow(unsafe_code, reason = "system calls")]

pub mod cgroup;
pub mod diag;
pub mod file;
pub mod lock;
pub mod memory;
pub mod mount;
pub mod netns;
pub mod network;
pub mod peer;
pub mod privilege;
pub mod process;
pub mod pty;
pub mod seccomp;
pub mod signal;
pub mod socket;
pub mod spawn;
pub mod user;
pub mod watch;

/// A failed system call.
#[derive(Debug, thiserror::Error)]
#[error("{call}: {source}")]
pub struct SysError {
    pub call: &'static str,
    pub source: std::io::Error,
}

impl SysError {
    /// What `errno` says about `call`, just failed.
    pub(crate) fn last(call: &'static str) -> Self {
        Self {
            call,
            source: std::io::Error::last_os_error(),
        }
    }

    /// What an error of nix says about `call`.
    pub fn of(call: &'static str) -> impl FnOnce(nix::Error) -> Self {
        move |errno| Self {
            call,
            source: errno.into(),
        }
    }

    /// What an error of the standard library says about `call`.
    pub fn io(call: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self { call, source }
    }
}

pub type Result<T> = std::result::Result<T, SysError>;
