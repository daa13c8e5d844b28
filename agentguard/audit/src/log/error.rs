//! Why a record is not kept.

use std::io;
use std::path::{Path, PathBuf};

use agentguard_sys::SysError;

use super::PENDING_BYTES;

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("the audit log in {} is being written by {holder}: stop that daemon, or set another `paths.state`", dir.display())]
    Locked { dir: PathBuf, holder: String },
    #[error(transparent)]
    Sys(#[from] SysError),
    #[error("cannot {call} {}: {source}", path.display())]
    Io {
        call: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "the audit log cannot be written and {PENDING_BYTES} bytes of records wait already: one record was lost"
    )]
    Full,
    #[error(
        "{} has {free} bytes left, and {kept} are kept for what operators do: make room there", dir.display()
    )]
    Reserve { dir: PathBuf, free: u64, kept: u64 },
    #[error("cannot write the record as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl LogError {
    pub(crate) fn io(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { call, path, source }
    }
}
