//! What guarantees are judged by: the hooks that are attached, the kernel's features, how the forwarder and the canary are.

use std::collections::HashSet;
use std::fs;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use agentguard_kernel as kernel;
use agentguard_kernel::{Hook, NoDigests};
use agentguard_sys as sys;
use agentguard_sys::diag;

use crate::host::config::Config;

/// Whether `agentguard run` gives its command a system call filter.
const RUN_FILTER: bool = true;

/// The throw-away agent that tries what must be refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CanaryState {
    /// No daemon runs.
    Absent,
    /// The daemon is starting: agents are held until the first has come back.
    Pending,
    Passed,
    Failed(String),
}

#[derive(Clone, Debug)]
pub struct Facts {
    /// The kernel's release.
    pub kernel: String,
    pub hooks: Vec<Hook>,
    /// Names of the programs that this build has, attached or not.
    pub programs: Vec<&'static str>,
    /// Something without which nothing can be attached, and its remedy.
    pub missing: Option<(String, String)>,
    pub bpf_lsm: bool,
    /// An LSM program that is entered again before it has ended may be left out.
    pub leaves_lsm_out: bool,
    /// A tracepoint's program may be left out (Linux 7.0).
    pub preempts_tracepoints: bool,
    /// The kernel has the hooks of Unix sockets (Linux 6.7).
    pub unix_hooks: bool,
    /// Why digests of executables are not known, if they are not.
    pub no_digests: Option<NoDigests>,
    /// Why the daemon's files are not protected, if it could not tell the kernel which they are.
    pub unprotected: Option<String>,
    pub sock_destroy: bool,
    /// `agentguard run` gives its command a system call filter.
    pub run_filter: bool,
    /// `kernel.io_uring_disabled` is 2: for nobody.
    pub io_uring_disabled: bool,
    /// `dev.tty.legacy_tiocsti` is 0.
    pub tiocsti_disabled: bool,
    /// What the kernel offers or, once it runs, what the forwarder has.
    pub landlock_abi: u32,
    /// What the kernel offers to what `agentguard run` starts.
    pub run_landlock: u32,
    /// Agents of the bundle whose processes need not be held by `agentguard run`: they are the agent's by an `[[identify]]`
    /// block, or keep their privileges.
    pub beside_run: Vec<String>,
    /// Agents of the bundle that have a process that nothing holds as `agentguard run` does.
    pub without_filter: Vec<String>,
    pub canary: CanaryState,
}

impl Facts {
    /// Looks at the host, without a daemon and without changing anything.
    pub fn of_host(config: &Config) -> Self {
        let parameter = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self {
            kernel: match parameter("/proc/sys/kernel/osrelease").trim() {
                "" => "unknown".into(),
                release => release.to_owned(),
            },
            hooks: kernel::hooks(&config.paths.pins),
            programs: kernel::programs(),
            missing: missing(),
            bpf_lsm: kernel::lsm().is_ok(),
            leaves_lsm_out: kernel::leaves_lsm_out(),
            preempts_tracepoints: kernel::preempts_tracepoints(),
            unix_hooks: kernel::has_unix_hooks(),
            no_digests: kernel::digests().err(),
            unprotected: None,
            sock_destroy: sock_destroy(),
            run_filter: RUN_FILTER,
            io_uring_disabled: parameter("/proc/sys/kernel/io_uring_disabled").trim() == "2",
            tiocsti_disabled: parameter("/proc/sys/dev/tty/legacy_tiocsti").trim() == "0",
            landlock_abi: sys::privilege::landlock_abi(),
            run_landlock: sys::privilege::landlock_abi(),
            beside_run: Vec::new(),
            without_filter: Vec::new(),
            canary: CanaryState::Absent,
        }
    }

    /// Whether anything is held: by a daemon, or by what one has left.
    pub fn is_in_force(&self) -> bool {
        self.canary != CanaryState::Absent || self.hooks.iter().any(|hook| hook.attached)
    }

    /// With every program attached that this kernel takes.
    pub fn if_started(&self) -> Self {
        let taken = |name: &&&'static str| match name.split_once('_') {
            Some(("lsm", _)) => self.bpf_lsm,
            Some(("unix", _)) => self.unix_hooks,
            Some((_, "backstop")) => self.preempts_tracepoints,
            _ => true,
        };
        let attached = |name: &&'static str| Hook {
            name,
            attached: true,
        };
        Self {
            hooks: self.programs.iter().filter(taken).map(attached).collect(),
            ..self.clone()
        }
    }

    pub fn attached(&self, name: &str) -> bool {
        self.hooks
            .iter()
            .any(|hook| hook.name == name && hook.attached)
    }
}

/// The first thing that no hook can do without, and its remedy.
fn missing() -> Option<(String, String)> {
    if let Err(error) = kernel::fits() {
        let remedy = "run `agentguard daemon` in the host's pid namespace, on Linux 6.1 or later";
        return Some((error.to_string(), remedy.into()));
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        let why = "this kernel has no BTF (/sys/kernel/btf/vmlinux)";
        return Some((why.into(), "a kernel with CONFIG_DEBUG_INFO_BTF=y".into()));
    }
    if let Err(error) = kernel::cgroup_root() {
        return Some((
            error.to_string(),
            "mount -t cgroup2 none /sys/fs/cgroup/unified".into(),
        ));
    }
    None
}

/// Ends a socket of our own to see whether this kernel can.
fn sock_destroy() -> bool {
    let Ok(listener) = TcpListener::bind("127.0.0.1:0") else {
        return false;
    };
    let Ok(meta) = fs::metadata(format!("/proc/self/fd/{}", listener.as_raw_fd())) else {
        return false;
    };
    let ours = HashSet::from([meta.ino()]);
    diag::destroy(&ours, diag::Which::All).is_ok_and(|cut| cut.destroyed == 1)
}
