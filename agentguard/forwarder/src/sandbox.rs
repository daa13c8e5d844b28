//! What the forwarder takes from itself before it reads a byte of an agent's: files, executables, signals to others, new
//! privileges, and every system call that it does not need. An attacker who takes the process over has what is here, no more.

mod calls;
mod objects;

use agentguard_link::frame::Sandbox;
use agentguard_link::spool::SEGMENT_BYTES;
use agentguard_sys as sys;
use agentguard_sys::SysError;
use nix::sys::resource::{Resource, setrlimit};

#[derive(Debug, thiserror::Error)]
pub(crate) enum SandboxError {
    #[error("sandbox: {0}")]
    Call(#[from] SysError),
    #[error("sandbox: Landlock: {0}")]
    Landlock(#[from] landlock::RulesetError),
    #[error("sandbox: the system call filter: {0}")]
    Filter(#[from] seccompiler::Error),
    #[error("sandbox: no system call filter for this architecture")]
    Architecture,
}

/// For this thread and those that it starts: to be called while there is no other.
///
/// # Errors
/// Landlock is used as far as the kernel has it. Everything else has to work, or the forwarder must not serve.
pub(crate) fn enter() -> Result<Sandbox, SandboxError> {
    // Leaf keys and agents' bytes are in this memory: no core dump, no ptrace by processes of the same user.
    sys::privilege::forbid_dumps()?;
    // The spool's segments are as long as they will ever be.
    for (resource, limit) in [
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_FSIZE, SEGMENT_BYTES),
    ] {
        setrlimit(resource, limit, limit).map_err(SysError::of("setrlimit"))?;
    }
    let landlock_abi = objects::restrict()?;
    sys::signal::tell_of_refused_calls()?;
    calls::restrict()?;
    Ok(Sandbox { landlock_abi })
}

impl From<seccompiler::BackendError> for SandboxError {
    fn from(error: seccompiler::BackendError) -> Self {
        Self::Filter(error.into())
    }
}
