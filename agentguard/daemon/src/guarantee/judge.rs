//! Each guarantee's row. What a row claims is what the hooks that it names enforce, and no more.

use agentguard_record::guarantee::{Guarantee, GuaranteeId, Holds};

use super::{CanaryState, Facts};

/// The ABI from which Landlock keeps signals and abstract sockets apart, too (Linux 6.12).
pub const SIGNAL_SCOPE: u32 = 6;

/// Hooks by which files are opened, changed, moved and covered.
const OWN_FILES: [&str; 14] = [
    "file_open",
    "inode_create",
    "inode_link",
    "inode_mkdir",
    "inode_mknod",
    "inode_removexattr",
    "inode_rename",
    "inode_rmdir",
    "inode_setattr",
    "inode_setxattr",
    "inode_symlink",
    "inode_unlink",
    "move_mount",
    "sb_mount",
];

/// Every guarantee, in the order of [`GuaranteeId::ALL`]. While nothing is in force, with what would be if the daemon ran.
pub fn judge(facts: &Facts) -> Vec<Guarantee> {
    if facts.is_in_force() {
        return rows(facts);
    }
    let now = rows(facts).into_iter();
    let started = rows(&facts.if_started());
    now.zip(started)
        .map(|(now, then)| idle(now, then))
        .collect()
}

/// `now` nothing is in force, and `then` everything that can be.
fn idle(now: Guarantee, then: Guarantee) -> Guarantee {
    // The host's own doing, and of the canary nothing is known.
    let by_host = matches!(now.id, GuaranteeId::IoUring | GuaranteeId::Terminal)
        && now.holds == Holds::Enforced;
    let would = match then.holds {
        Holds::Open => return then,
        Holds::Enforced => "be enforced",
        Holds::Fallback => "hold by fallback",
    };
    if by_host || now.id == GuaranteeId::Canary {
        return now;
    }
    Guarantee {
        holds: Holds::Open,
        why: format!("not running; would {would} ({})", then.why),
        remedy: Some("start `agentguard daemon` as root".into()),
        ..now
    }
}

fn rows(facts: &Facts) -> Vec<Guarantee> {
    GuaranteeId::ALL
        .iter()
        .map(|&id| {
            let (holds, why, remedy) = row(id, facts);
            Guarantee {
                id,
                name: id.name().to_owned(),
                holds,
                why,
                remedy,
            }
        })
        .collect()
}

type Row = (Holds, String, Option<String>);

fn row(id: GuaranteeId, facts: &Facts) -> Row {
    let hooks = |names: &[&str]| by_hooks(facts, names);
    match id {
        GuaranteeId::Lineage => lineage(facts),
        GuaranteeId::Tcp => hooks(&[
            "sock_create",
            "connect4",
            "connect6",
            "connected",
            "egress",
            "sock_release",
        ]),
        GuaranteeId::Udp => hooks(&["sock_create", "sendmsg4", "sendmsg6", "egress"]),
        GuaranteeId::Dns => hooks(&[
            "connect4", "connect6", "sendmsg4", "sendmsg6", "recvmsg4", "recvmsg6",
        ]),
        GuaranteeId::RawSockets => hooks(&["sock_create"]),
        GuaranteeId::Listen => listen(facts),
        GuaranteeId::Kill => hooks(&["connect4", "connect6", "sendmsg4", "sendmsg6", "egress"]),
        GuaranteeId::KillResets => kill_resets(facts),
        GuaranteeId::AddressFamilies => address_families(facts),
        GuaranteeId::Exec => exec(facts),
        GuaranteeId::ExecScripts => by_lsm(
            facts,
            &["bprm_check_security"],
            "an interpreter that an agent may execute runs any script",
        ),
        GuaranteeId::ExecDigest => exec_digest(facts),
        GuaranteeId::UnixSockets => unix_sockets(facts),
        GuaranteeId::HandedOverSockets => by_lsm(
            facts,
            &["file_receive", "socket_sendmsg"],
            "a socket that someone else opens and hands over (SCM_RIGHTS, pidfd_getfd) is not the agent's",
        ),
        GuaranteeId::IoUring => io_uring(facts),
        GuaranteeId::Terminal => terminal(facts),
        GuaranteeId::Tamper => by_lsm(
            facts,
            &["bpf", "task_kill", "ptrace_access_check"],
            "root can unload the programs and end the daemon; `run` drops all capabilities unless the agent's file says privileges = \"keep\"",
        ),
        GuaranteeId::OwnFiles => own_files(facts),
        GuaranteeId::Namespaces => hooks(&[
            "fork", "connect4", "connect6", "sendmsg4", "sendmsg6", "egress",
        ]),
        GuaranteeId::ForwarderSandbox => forwarder_sandbox(facts),
        GuaranteeId::Canary => canary(facts),
        GuaranteeId::ProcessMemory => process_memory(facts),
        GuaranteeId::Signals => signals(facts),
        GuaranteeId::Devices => hooks(&["device"]),
        GuaranteeId::Sysctl => hooks(&["sysctl"]),
    }
}

/// Why none of the hooks can hold, if so.
fn unattached(facts: &Facts, names: &[&str]) -> Option<Row> {
    if let Some((missing, remedy)) = &facts.missing {
        return Some((Holds::Open, missing.clone(), Some(remedy.clone())));
    }
    let absent: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| !facts.attached(name))
        .collect();
    if absent.is_empty() {
        return None;
    }
    let why = format!("not attached now: {}", absent.join(" "));
    let remedy = "start `agentguard daemon` as root: it attaches every hook, or says why not";
    Some((Holds::Open, why, Some(remedy.into())))
}

fn by_hooks(facts: &Facts, names: &[&str]) -> Row {
    let held = || (Holds::Enforced, format!("hooks: {}", names.join(" ")), None);
    unattached(facts, names).unwrap_or_else(held)
}

fn has_lsm(facts: &Facts, hooks: &[&str]) -> bool {
    hooks
        .iter()
        .all(|hook| facts.attached(&format!("lsm_{hook}")))
}

/// Whether this version has programs for the hooks, for kernels that take them.
fn builds_lsm(facts: &Facts, hooks: &[&str]) -> bool {
    hooks.iter().all(|hook| {
        let has = |program: &&str| program.strip_prefix("lsm_") == Some(*hook);
        facts.programs.iter().any(has)
    })
}

fn with_lsm(facts: &Facts, hooks: &[&str]) -> Row {
    let why = format!("LSM hooks: {}", hooks.join(" "));
    if facts.leaves_lsm_out {
        let why = format!(
            "{why}, which this kernel leaves out when one is entered again on the same CPU before it has ended"
        );
        let remedy = "Linux 6.1.54 or later, or boot with preempt=voluntary";
        return (Holds::Open, why, Some(remedy.into()));
    }
    (Holds::Enforced, why, None)
}

/// Without the hooks: what then is possible, and what would change it.
fn by_lsm(facts: &Facts, hooks: &[&str], without: &str) -> Row {
    if has_lsm(facts, hooks) {
        return with_lsm(facts, hooks);
    }
    if !builds_lsm(facts, hooks) {
        let why = format!("this version does not judge it; {without}");
        return (Holds::Open, why, None);
    }
    let why = match facts.bpf_lsm {
        true => format!("this kernel has BPF LSM, and no program is attached there; {without}"),
        false => format!("this kernel has no BPF LSM; {without}"),
    };
    (Holds::Open, why, lsm_remedy(facts))
}

fn lsm_remedy(facts: &Facts) -> Option<String> {
    (!facts.bpf_lsm).then(|| {
        "boot with lsm=…,bpf on a kernel with CONFIG_BPF_LSM=y that is not locked down".into()
    })
}

fn process_memory(facts: &Facts) -> Row {
    by_domain(
        facts,
        &["ptrace_access_check"],
        1,
        "an agent reaches by /proc/PID into every process of its user",
    )
}

fn signals(facts: &Facts) -> Row {
    by_domain(
        facts,
        &["task_kill", "task_setrlimit"],
        SIGNAL_SCOPE,
        "an agent signals every process of its user",
    )
}

/// By LSM hooks, else by the domain that each `agentguard run` makes from this version of Landlock on.
fn by_domain(facts: &Facts, hooks: &[&str], abi: u32, without: &str) -> Row {
    if has_lsm(facts, hooks) || !facts.run_filter || facts.run_landlock < abi {
        let (holds, why, remedy) = by_lsm(facts, hooks, without);
        let linux = if abi == SIGNAL_SCOPE { "6.12" } else { "6.1" };
        let remedy = remedy.map(|remedy| {
            format!("{remedy}; or Linux {linux} with landlock in lsm=…, for what `run` starts")
        });
        return (holds, why, remedy);
    }
    let domain = format!(
        "the Landlock domain of each `run` (abi {})",
        facts.run_landlock
    );
    let beside_run = (!facts.beside_run.is_empty()).then(|| {
        format!(
            "{}, whose bundle has [[identify]] or privileges = \"keep\" for it",
            facts.beside_run.join(", ")
        )
    });
    let without_filter = (!facts.without_filter.is_empty()).then(|| {
        format!(
            "{}, of which a process runs that has no filter of its system calls: it was not started by `agentguard run`",
            facts.without_filter.join(", ")
        )
    });
    let not_held: Vec<String> = beside_run.into_iter().chain(without_filter).collect();
    if not_held.is_empty() {
        let why = format!(
            "{domain}; a process that is an agent's without `run`, or keeps its privileges, has none"
        );
        return (Holds::Fallback, why, lsm_remedy(facts));
    }
    let why = format!(
        "{domain} does not hold {}; {without}",
        not_held.join("; nor ")
    );
    (Holds::Open, why, lsm_remedy(facts))
}

fn lineage(facts: &Facts) -> Row {
    let hooks = ["fork", "exec", "exit"];
    if !facts.preempts_tracepoints {
        return by_hooks(facts, &hooks);
    }
    let backed_up = ["fork", "exec", "exec_backstop", "exit", "exit_backstop"];
    unattached(facts, &backed_up).unwrap_or_else(|| {
        let why = format!(
            "hooks: {}; this kernel may leave a program out at an exec or an end, which a second one makes good, and \
             the daemon looks at every process when it may have left out both",
            backed_up.join(" ")
        );
        (Holds::Fallback, why, None)
    })
}

fn listen(facts: &Facts) -> Row {
    let judged = ["bind4", "bind6", "egress"];
    unattached(facts, &judged).unwrap_or_else(|| {
        let why = match has_lsm(facts, &["socket_listen"]) {
            true => "hooks: bind4 bind6 egress lsm_socket_listen",
            false => "hooks: bind4 bind6 egress; a listen without bind succeeds and is answered to nobody",
        };
        (Holds::Enforced, why.into(), None)
    })
}

fn kill_resets(facts: &Facts) -> Row {
    match facts.sock_destroy {
        true => (Holds::Enforced, "SOCK_DESTROY works here".into(), None),
        false => (
            Holds::Fallback,
            "SOCK_DESTROY does not work here: packets are dropped, but peers see no reset".into(),
            Some("root, and a kernel with CONFIG_INET_DIAG_DESTROY=y".into()),
        ),
    }
}

fn address_families(facts: &Facts) -> Row {
    let hooks = ["socket_create"];
    if has_lsm(facts, &hooks) || !facts.run_filter {
        return by_lsm(
            facts,
            &hooks,
            "an agent with CAP_NET_RAW opens AF_PACKET and AF_XDP, and any agent vsock and the like; `run` drops capabilities",
        );
    }
    let why = "the system call filter of `agentguard run`; a process that is an agent's by its file or cgroup has none";
    (Holds::Fallback, why.into(), lsm_remedy(facts))
}

fn exec(facts: &Facts) -> Row {
    if has_lsm(facts, &["bprm_check_security"]) {
        return with_lsm(facts, &["bprm_check_security"]);
    }
    if !builds_lsm(facts, &["bprm_check_security"]) {
        let why = "this version does not judge executables";
        return (Holds::Open, why.into(), None);
    }
    unattached(facts, &["exec"]).unwrap_or_else(|| {
        let killed = "the refused image is killed before its first instruction";
        if facts.preempts_tracepoints {
            let why = format!(
                "{killed}, but this kernel leaves a program out at an exec while one of another process is preempted on the \
                 same CPU, which agents can bring about"
            );
            return (Holds::Open, why, lsm_remedy(facts));
        }
        (Holds::Fallback, killed.into(), lsm_remedy(facts))
    })
}

fn judges_unix_as_written(facts: &Facts) -> bool {
    facts.attached("unix_connect") && facts.attached("unix_sendmsg")
}

fn exec_digest(facts: &Facts) -> Row {
    const WITHOUT: &str = "an `allow` entry with a digest allows nothing, and a `deny` entry refuses the path whatever is in the file";
    if has_lsm(facts, &["bprm_check_security", "digest"]) {
        let why =
            "LSM hook: bprm_check_security, which asks the kernel's integrity measurement (IMA)";
        return (Holds::Enforced, why.into(), None);
    }
    if let Some(gap) = &facts.no_digests
        && facts.bpf_lsm
    {
        let why = format!("{}; {WITHOUT}", gap.why);
        return (Holds::Open, why, Some(gap.remedy.clone()));
    }
    by_lsm(facts, &["digest"], WITHOUT)
}

fn unix_sockets(facts: &Facts) -> Row {
    let hooks = ["unix_stream_connect", "unix_may_send"];
    if has_lsm(facts, &hooks) || !judges_unix_as_written(facts) {
        let (holds, why, remedy) = by_lsm(
            facts,
            &hooks,
            "an agent reaches every socket file that its user may open",
        );
        let has_fallback = facts.programs.contains(&"unix_connect");
        let remedy = remedy.map(|remedy| match has_fallback {
            true => format!("{remedy}; or kernel 6.7, for its fallback"),
            false => remedy,
        });
        return (holds, why, remedy);
    }
    let why = "hooks: unix_connect unix_sendmsg; a socket is known by its path as the agent writes it, not by its inode";
    (Holds::Fallback, why.into(), lsm_remedy(facts))
}

fn own_files(facts: &Facts) -> Row {
    if let Some(why) = &facts.unprotected {
        let remedy = "what it says, then restart the daemon";
        return (Holds::Open, why.clone(), Some(remedy.into()));
    }
    by_lsm(
        facts,
        &OWN_FILES,
        "root can read the CA's key and change the configuration; `run` hides the state unless the agent's file says privileges = \"keep\"",
    )
}

fn io_uring(facts: &Facts) -> Row {
    if facts.io_uring_disabled {
        let why = "kernel.io_uring_disabled = 2";
        return (Holds::Enforced, why.into(), None);
    }
    unattached(facts, &["sock_create", "connect4", "connect6", "egress"]).unwrap_or_else(|| {
        let why = match facts.run_filter {
            true => {
                "the cgroup hooks judge what io_uring opens, connects and sends, and `run` refuses it altogether"
            }
            false => {
                "the cgroup hooks judge what io_uring opens, connects and sends; it is not refused itself"
            }
        };
        let remedy = "sysctl kernel.io_uring_disabled=2 (Linux 6.6), if nothing on this host uses it";
        (Holds::Fallback, why.into(), Some(remedy.into()))
    })
}

fn terminal(facts: &Facts) -> Row {
    if has_lsm(facts, &["file_ioctl"]) {
        return with_lsm(facts, &["file_ioctl"]);
    }
    if facts.tiocsti_disabled {
        let why = "dev.tty.legacy_tiocsti = 0";
        return (Holds::Enforced, why.into(), None);
    }
    let why = "`run` gives its command a terminal of its own; an agent that was started otherwise may use TIOCSTI on its own";
    let remedy = "sysctl dev.tty.legacy_tiocsti=0 (Linux 6.2)";
    (Holds::Fallback, why.into(), Some(remedy.into()))
}

fn forwarder_sandbox(facts: &Facts) -> Row {
    let abi = facts.landlock_abi;
    let remedy = || "Linux 6.12 with CONFIG_SECURITY_LANDLOCK=y and landlock in lsm=…".to_owned();
    match abi {
        0 => (
            Holds::Fallback,
            "a system call filter and no capabilities; this kernel has no Landlock".into(),
            Some(remedy()),
        ),
        1..SIGNAL_SCOPE => (
            Holds::Fallback,
            format!("landlock abi {abi}, which lacks some rights, and a system call filter"),
            Some(remedy()),
        ),
        SIGNAL_SCOPE.. => (
            Holds::Enforced,
            format!("landlock abi {abi} and a system call filter"),
            None,
        ),
    }
}

fn canary(facts: &Facts) -> Row {
    match &facts.canary {
        CanaryState::Absent => (
            Holds::Open,
            "no daemon runs that could".into(),
            Some("start `agentguard daemon` as root".into()),
        ),
        CanaryState::Pending => (
            Holds::Enforced,
            "the first is under way: agents are held until it is back".into(),
            None,
        ),
        CanaryState::Passed => {
            let left_out =
                match has_lsm(facts, &["unix_stream_connect"]) || judges_unix_as_written(facts) {
                    true => "",
                    false => "; left out, because nothing judges them here: Unix sockets",
                };
            let why = format!(
                "when last tried, connects over IPv4, IPv6 and mapped IPv6, datagrams, Unix connects, executables and TLS \
                 requests went as they must, the forbidden and the permitted{left_out}"
            );
            (Holds::Enforced, why, None)
        }
        CanaryState::Failed(why) => (
            Holds::Open,
            why.clone(),
            Some("restart the daemon: it attaches every hook anew".into()),
        ),
    }
}

#[cfg(test)]
mod tests;
