//! From the fork to the exec: what CMD is given, and what is taken from it.

use std::ffi::{CString, OsString};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use agentguard_control::api::Enrolment;
use agentguard_daemon::upstream::SYSTEM_BUNDLES;
use agentguard_sys::{SysError, mount, privilege, pty, signal};

use super::{As, OWN_FAILURE, domain, environment, floor, host};
use crate::cli::Failure;

/// CMD is there and cannot be executed, or its exec was refused.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Made before the fork.
pub(super) struct Plan<'a> {
    pub command: &'a [OsString],
    pub user: Option<&'a As>,
    /// The terminal CMD gets, and for which of its standard descriptors.
    pub terminal: Option<(BorrowedFd<'a>, [bool; 3])>,
}

/// Waits for the daemon's word, sets everything up and becomes CMD. What fails goes into `errors`; an exec that works
/// closes it without a word.
pub(super) fn run(plan: &Plan<'_>, go: OwnedFd, errors: OwnedFd) -> ! {
    let mut word = Vec::new();
    let heard = std::fs::File::from(go).read_to_end(&mut word);
    if let (Ok(1..), Ok(started)) = (heard, serde_json::from_slice::<Enrolment>(&word)) {
        let (status, message) = become_command(plan, &started, &errors);
        let mut text = vec![status];
        text.extend_from_slice(message.as_bytes());
        // The caller sees the exit status below if this fails.
        let _ = std::fs::File::from(errors).write_all(&text);
    }
    std::process::exit(i32::from(OWN_FAILURE));
}

/// The other end of `errors`: what kept CMD from running, if anything did.
pub(super) fn failure(errors: OwnedFd) -> Option<Failure> {
    let mut text = Vec::new();
    std::fs::File::from(errors).read_to_end(&mut text).ok()?;
    let (status, message) = text.split_first()?;
    Some(Failure::new(*status, String::from_utf8_lossy(message)))
}

/// Returns only if it failed.
fn become_command(plan: &Plan<'_>, started: &Enrolment, errors: &OwnedFd) -> (u8, String) {
    if let Err(error) = prepare(plan, started) {
        return (OWN_FAILURE, format!("cannot set up the command: {error}"));
    }
    let c_string = |text: Vec<u8>| CString::new(text).unwrap_or_default();
    let arguments: Vec<CString> = plan
        .command
        .iter()
        .map(|argument| c_string(argument.clone().into_vec()))
        .collect();
    let user = plan.user.map(|user| &user.account);
    let variables: Vec<CString> =
        environment::of(std::env::vars_os(), &started.trust, &started.wgetrc, user)
            .into_iter()
            .map(|(name, value)| {
                let mut text = name.into_vec();
                text.push(b'=');
                text.extend(value.into_vec());
                c_string(text)
            })
            .collect();
    debug_assert!(errors.as_raw_fd() > 2);
    let Err(errno) = nix::unistd::execvpe(&arguments[0], &arguments, &variables);
    let name = plan.command[0].display();
    match errno {
        nix::Error::ENOENT => (NOT_FOUND, format!("`{name}`: command not found")),
        errno => {
            let error = std::io::Error::from(errno);
            (
                NOT_EXECUTABLE,
                format!("`{name}` cannot be executed: {error}"),
            )
        }
    }
}

fn prepare(plan: &Plan<'_>, started: &Enrolment) -> Result<(), SysError> {
    nix::unistd::setsid().map_err(SysError::of("setsid"))?;
    if let Some((terminal, ends)) = plan.terminal {
        pty::set_controlling(terminal)?;
        for (end, on_terminal) in (0..).zip(ends) {
            if on_terminal {
                privilege::dup_to(terminal.as_raw_fd(), end)?;
            }
        }
    }
    if nix::unistd::geteuid().is_root() {
        mount::private_namespace()?;
        for bundle in SYSTEM_BUNDLES.map(Path::new) {
            if bundle.exists() {
                mount::bind_over(&started.trust, bundle)?;
            }
        }
        for folder in &started.hidden {
            mount::hide(folder)?;
        }
        let becomes_root = plan.user.is_none_or(|user| user.account.uid == 0);
        if becomes_root && !started.keep_privileges {
            host::make_read_only(&started.kept, &started.hidden)?;
        }
    }
    if !started.keep_privileges {
        privilege::drop_bounding_set()?;
    }
    if let Some(user) = plan.user {
        privilege::become_user(user.account.uid, user.account.gid, &user.groups)?;
    }
    if !started.keep_privileges {
        privilege::drop_capabilities()?;
        privilege::no_new_privs()?;
    }
    signal::reset()?;
    privilege::close_on_exec_from(3)?;
    if !started.keep_privileges {
        domain::enter()?;
        // Last: it refuses some of the calls above.
        floor::filter().install()?;
    }
    Ok(())
}
