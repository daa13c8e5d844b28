//! The Landlock domain of one run. What is in it reaches by `/proc/PID`, by `ptrace(2)` and all that asks for the same right,
//! and by signals, into what is below this very run, and into no process else, whatever its user. Unix sockets of abstract
//! names are not bounded: `[[unix]]` judges them on every kernel that could.

use agentguard_daemon::guarantee::SIGNAL_SCOPE;
use agentguard_sys::{SysError, privilege};
use landlock::{
    AccessFs, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreated, RulesetCreatedAttr as _, Scope,
};

/// The calling thread's, and for good. A kernel without Landlock has none, which the doctor's rows say.
pub(super) fn enter() -> Result<(), SysError> {
    let ruleset = match privilege::landlock_abi() {
        0 => return Ok(()),
        1..SIGNAL_SCOPE => of_a_right_that_all_have(),
        SIGNAL_SCOPE.. => of_signals(),
    };
    ruleset?.restrict_self().map(|_| ()).map_err(failed)
}

fn of_signals() -> Result<RulesetCreated, SysError> {
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let ruleset = ruleset.scope(Scope::Signal).map_err(failed)?;
    ruleset.create().map_err(failed)
}

/// Every domain keeps its processes to themselves, and there is none without a right that it handles. This one is refused
/// below each domain that handles any, unless a rule gives it (`LANDLOCK_ACCESS_FS_REFER`, Linux 5.19).
fn of_a_right_that_all_have() -> Result<RulesetCreated, SysError> {
    let everywhere = PathFd::new("/").map_err(failed)?;
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let ruleset = ruleset.handle_access(AccessFs::Refer).map_err(failed)?;
    let ruleset = ruleset.create().map_err(failed)?;
    let all = PathBeneath::new(everywhere, AccessFs::Refer);
    ruleset.add_rule(all).map_err(failed)
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> SysError {
    SysError {
        call: "landlock",
        source: std::io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::{Child, Command, Stdio};

    use nix::errno::Errno;
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::*;

    fn cat() -> Child {
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).spawn().unwrap()
    }

    fn into(child: &Child) -> (bool, Result<(), Errno>) {
        let follows = fs::read_link(format!("/proc/{}/cwd", child.id())).is_ok();
        let pid = Pid::from_raw(child.id().cast_signed());
        (follows, kill(pid, Signal::SIGCONT))
    }

    fn end(mut child: Child) {
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn what_is_outside_is_out_of_reach_and_what_is_started_inside_is_not() {
        let outside = cat();
        assert_eq!(into(&outside), (true, Ok(())));
        // The domain is the calling thread's, and of what it starts.
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                enter().unwrap();
                match privilege::landlock_abi() {
                    0 => {}
                    1..SIGNAL_SCOPE => assert_eq!(into(&outside), (false, Ok(()))),
                    SIGNAL_SCOPE.. => assert_eq!(into(&outside), (false, Err(Errno::EPERM))),
                }
                let child = cat();
                assert_eq!(into(&child), (true, Ok(())));
                end(child);
            });
            inside.join().unwrap();
        });
        assert_eq!(into(&outside), (true, Ok(())));
        end(outside);
    }

    #[test]
    fn a_domain_without_scopes_takes_no_right_away() {
        if privilege::landlock_abi() == 0 {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let outside = cat();
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                of_a_right_that_all_have().unwrap().restrict_self().unwrap();
                assert_eq!(into(&outside), (false, Ok(())));
                let (from, to) = (dir.path().join("a"), dir.path().join("b"));
                fs::create_dir(&from).unwrap();
                fs::create_dir(&to).unwrap();
                fs::write(from.join("file"), "x").unwrap();
                fs::rename(from.join("file"), to.join("file")).unwrap();
                fs::hard_link(to.join("file"), from.join("file")).unwrap();
            });
            inside.join().unwrap();
        });
        end(outside);
    }
}
