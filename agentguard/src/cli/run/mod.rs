//! `agentguard run`: a command as an agent, labelled by the daemon before its first instruction.

mod child;
mod domain;
mod environment;
mod floor;
mod host;
mod refused;
mod relay;

use std::ffi::OsString;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::ExitCode;

use agentguard_control::api::{Enrolment, Run, TaskEnd, TaskLine};
use agentguard_daemon::config::Config;
use agentguard_sys::signal::Signals;
use agentguard_sys::user::{self, Account};
use agentguard_sys::{process, pty, socket};
use clap::Args;
use jiff::Timestamp;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use uuid::Uuid;

use self::child::Plan;
use super::{Failure, client_runtime, server};

/// Exit status for a failure of `run` itself: CMD has not run.
pub(super) const OWN_FAILURE: u8 = 125;

#[derive(Debug, Args)]
pub(super) struct RunArguments {
    /// The agent that the command is
    #[arg(long, value_name = "NAME")]
    agent: String,
    /// What it is to do: the intent of a task that is open until the command ends, for a day at most
    #[arg(long, value_name = "TEXT")]
    task: Option<String>,
    /// Run the command as this user, by name or number (root only)
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

pub(super) fn run(arguments: &RunArguments, config: &Config) -> Result<ExitCode, Failure> {
    let own = |e: &dyn std::fmt::Display| Failure::new(OWN_FAILURE, e);
    let user = match arguments.user.as_deref() {
        Some(name) => Some(other_user(name, &config.forwarder.user)?),
        None => None,
    };
    refuse_sockets()?;
    let terminal = Terminal::of_this_process();
    let (master, slave) = match &terminal {
        Some(terminal) => {
            let (master, slave) = pty::open_like(terminal.fd.as_fd(), terminal.is_interactive())
                .map_err(|e| own(&e))?;
            (Some(master), Some(slave))
        }
        None => (None, None),
    };
    // Blocked before there is a child, so that none of its or its caller's signals is missed.
    let signals = Signals::block().map_err(|e| own(&e))?;
    let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|e| own(&e));
    let began = Timestamp::now();
    let (go_read, go_write) = pipe()?;
    let (error_read, error_write) = pipe()?;
    let plan = Plan {
        command: &arguments.command,
        user: user.as_ref(),
        terminal: slave
            .as_ref()
            .map(|slave| (slave.as_fd(), terminal_ends(&terminal))),
    };
    let Some(tgid) = process::fork().map_err(|e| own(&e))? else {
        drop((go_write, error_read));
        child::run(&plan, go_read, error_write)
    };
    drop((go_read, error_write, slave));
    let child = Pid::from_raw(tgid.cast_signed());
    let _task = match label(arguments, config, tgid) {
        Ok(started) => {
            let task = started.task.map(|id| RunTask { id, config });
            tell(&go_write, &started).map_err(|e| own(&e))?;
            task
        }
        Err(failure) => {
            // Without a word the child ends by itself; this is for one that is stuck.
            let _ = kill(child, Signal::SIGKILL);
            let _ = waitpid(child, None);
            return Err(failure);
        }
    };
    drop(go_write);
    if let Some(failure) = child::failure(error_read) {
        let _ = waitpid(child, None);
        return Err(failure);
    }
    let status = relay::until_the_end(child, signals, master, terminal).map_err(|e| own(&e))?;
    if status == refused::KILLED {
        refused::say(&arguments.agent, tgid, began, config);
    }
    Ok(ExitCode::from(status))
}

/// Ended with CMD. Where the daemon cannot be told, the task's time ends it.
struct RunTask<'c> {
    id: Uuid,
    config: &'c Config,
}

impl Drop for RunTask<'_> {
    fn drop(&mut self) {
        let client = server::client(self.config);
        let end = TaskEnd { id: self.id };
        let ended: Result<TaskLine, Failure> = client_runtime().and_then(|runtime| {
            let ending = client.post("/v1/tasks/end", &end);
            runtime.block_on(ending).map_err(Failure::from)
        });
        // Its time was over, or somebody has ended it.
        if let Err(error) = ended {
            tracing::debug!(?error, task = %self.id, "not ended");
        }
    }
}

/// The answer for anything before CMD runs is 125, but for CMD's own 126 and 127.
impl Failure {
    fn of_run(self) -> Self {
        self.with_status(OWN_FAILURE)
    }
}

/// CMD would hold a connection that is not its own, past every rule. A Unix socket leads to who started this, as a pipe
/// does: shells, service managers and other programs use pairs of them for pipes.
fn refuse_sockets() -> Result<(), Failure> {
    use std::io::{stderr, stdin, stdout};
    let ends = [
        ("input", socket::family(stdin())),
        ("output", socket::family(stdout())),
        ("error", socket::family(stderr())),
    ];
    match ends
        .iter()
        .find(|(_, family)| family.is_some_and(|family| family != libc::AF_UNIX))
    {
        None => Ok(()),
        Some((end, _)) => Err(Failure::new(
            OWN_FAILURE,
            format!(
                "standard {end} is a network socket, which the agent would use past every rule; put a pipe between, such as `| cat`"
            ),
        )),
    }
}

/// An account with its groups.
pub(super) struct As {
    account: Account,
    groups: Vec<u32>,
}

/// `forwarder`: whom the forwarder runs as, and no agent may.
fn other_user(name: &str, forwarder: &str) -> Result<As, Failure> {
    let own = |message: String| Failure::new(OWN_FAILURE, message);
    if !nix::unistd::geteuid().is_root() {
        return Err(own(format!(
            "--user {name}: only root may run a command as another user"
        )));
    }
    let account = user::account(name)
        .map_err(|e| own(format!("--user {name}: {e}")))?
        .or_else(|| Account::of_number(name))
        .ok_or_else(|| own(format!("--user {name}: there is no such user on this host")))?;
    if user::uid(forwarder) == Some(account.uid) {
        return Err(own(format!(
            "--user {name}: the forwarder runs as this user, whose processes an agent could reach; name another, or set \
             another `[forwarder] user`"
        )));
    }
    let groups = user::groups(&account).map_err(|e| own(format!("--user {name}: {e}")))?;
    Ok(As { account, groups })
}

fn label(arguments: &RunArguments, config: &Config, tgid: u32) -> Result<Enrolment, Failure> {
    let client = server::client(config);
    let request = Run {
        agent: arguments.agent.clone(),
        pid: tgid,
        task: arguments.task.clone(),
    };
    let runtime = client_runtime().map_err(Failure::of_run)?;
    let asked = runtime.block_on(client.post("/v1/run", &request));
    asked.map_err(|error| Failure::from(error).of_run())
}

fn tell(go: &OwnedFd, started: &Enrolment) -> std::io::Result<()> {
    let message = serde_json::to_vec(started)?;
    std::fs::File::from(go.try_clone()?).write_all(&message)
}

/// The terminal this process is on, and which of its standard descriptors are on it.
pub(super) struct Terminal {
    fd: OwnedFd,
    ends: [bool; 3],
}

impl Terminal {
    fn of_this_process() -> Option<Self> {
        use std::io::{IsTerminal, stderr, stdin, stdout};
        let ends = [
            stdin().is_terminal(),
            stdout().is_terminal(),
            stderr().is_terminal(),
        ];
        let fd = match ends {
            [_, true, _] => stdout().as_fd().try_clone_to_owned(),
            [_, _, true] => stderr().as_fd().try_clone_to_owned(),
            [true, ..] => stdin().as_fd().try_clone_to_owned(),
            _ => return None,
        };
        Some(Self { fd: fd.ok()?, ends })
    }

    /// Keys go to CMD as they are typed only if its output is seen here too.
    fn is_interactive(&self) -> bool {
        self.ends[0] && self.ends[1]
    }
}

fn terminal_ends(terminal: &Option<Terminal>) -> [bool; 3] {
    terminal.as_ref().map_or([false; 3], |t| t.ends)
}

impl std::fmt::Debug for Terminal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Terminal({}, {:?})", self.fd.as_raw_fd(), self.ends)
    }
}
