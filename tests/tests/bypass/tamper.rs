//! Ways into what holds the agent, or out past it. `agentguard run` closes them on every kernel: each call works without
//! AgentGuard and fails with it, and what a seccomp filter refuses leaves no record, for it never reaches a hook. LSM programs
//! close them for an agent that keeps its privileges too, with one record each.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

use agentguard_tests::attempt::{KEEP, Programs, User, alone, under};
use agentguard_tests::client::{Subject, python};
use agentguard_tests::names;
use agentguard_tests::standing::{Standing, Standings};
use agentguard_tests::tools::script;
use agentguard_tests::{Bundle, Client, Guard, Running, Site};

/// As root without AgentGuard each says ok; a call that this kernel was built without is left out.
const CALLS: [&str; 27] = [
    "io_uring_setup",
    "bpf",
    "ptrace PID",
    "process_vm_readv PID ADDRESS",
    "process_vm_writev PID ADDRESS",
    "pidfd_getfd PID",
    // AF_PACKET, the old spelling of it, kernel events, socket diagnosis, AF_ALG, AF_VSOCK, AF_KEY, AF_TIPC, AF_XDP.
    "socket 17 3 0",
    "socket 2 10 0",
    "socket 16 3 15",
    "socket 16 3 4",
    "socket 38 5 0",
    "socket 40 1 0",
    "socket 15 3 2",
    "socket 30 1 0",
    "socket 44 3 0",
    "terminal",
    "unshare_user",
    "clone_user",
    "setns",
    "mount",
    "fsopen",
    "add_key",
    "request_key",
    "keyctl",
    "perf_event_open",
    "userfaultfd",
    "fanotify_init",
];

/// What a kernel answers that lacks the call, the family or the protocol.
const NOT_BUILT: [&str; 4] = [
    "ENOSYS",
    "EAFNOSUPPORT",
    "EPROTONOSUPPORT",
    "ESOCKTNOSUPPORT",
];

fn tamper(subject: &dyn Subject) -> Running {
    python(subject, "tamper.py").spawn()
}

fn tries(running: &mut Running, what: &str) -> String {
    running.say(what);
    running.after("said ")
}

/// `run` as a user without privileges.
struct Unprivileged<'site>(&'site Site);

impl Subject for Unprivileged<'_> {
    fn client(&self, program: &Path) -> Client {
        let user = User::Ordinary.name();
        let client = self
            .0
            .cli(["run", "--agent", "probe", "--user", user, "--"]);
        // Its folder need not be open to everyone.
        if program.ends_with("python") {
            client.arg("/usr/bin/python3")
        } else {
            client.arg(program)
        }
    }
}

#[test]
fn calls_below_run_that_no_hook_sees() {
    let site = Site::new();
    let mut bystander = Client::new("/usr/bin/cat").spawn();
    // Its memory is where it will be once it has answered.
    bystander.say("up");
    bystander.line(|line| line == "up");
    let tgid = bystander.tgid();
    let address = writable_memory(tgid);
    let with_pid = |call: &str| {
        call.replace("PID", &tgid.to_string())
            .replace("ADDRESS", &address)
    };
    let mut control = tamper(&site);
    let calls: Vec<&str> = CALLS
        .into_iter()
        .filter(|call| {
            let said = tries(&mut control, &with_pid(call));
            assert!(
                said == "ok" || NOT_BUILT.contains(&said.as_str()),
                "without AgentGuard, {call}: {said}"
            );
            said == "ok"
        })
        .collect();
    for needed in [
        "bpf",
        "ptrace PID",
        "socket 17 3 0",
        "unshare_user",
        "mount",
    ] {
        assert!(
            calls.contains(&needed),
            "{needed} is in every kernel that is supported"
        );
    }
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", ""));
    let root = guard.agent("probe");
    let user = Unprivileged(&site);
    let subjects: [&dyn Subject; 2] = [&root, &user];
    for subject in subjects {
        let mut agent = tamper(subject);
        let before = guard.audit().len();
        for call in &calls {
            assert_eq!(tries(&mut agent, &with_pid(call)), "EPERM", "{call}");
        }
        assert_eq!(guard.audit().len(), before);
    }
    // The agent whose file says so keeps what it has.
    site.install(&Bundle::new(2).agent("probe", "privileges = \"keep\"\n"));
    let folder = site.path("policies").display().to_string();
    guard.cli(["policy", "apply", &folder]).ok();
    let mut kept = tamper(&guard.agent("probe"));
    assert_eq!(tries(&mut kept, "unshare_user"), "ok");
}

/// What only LSM programs refuse, and what they record of it.
#[test]
fn what_a_privileged_agent_may_not_do() {
    let attempt = "tampering with privileges kept";
    let words = [
        "/usr/bin/python3",
        script("tamper.py").to_str().expect("plain"),
    ]
    .map(str::to_owned);
    let is_open = Standings::of_this_kernel().of_attempt(attempt, User::Root) == Standing::Open;
    let site = Site::new();
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", KEEP));
    for user in User::ALL {
        let mut bystander = Client::new("/usr/bin/cat").as_user(user).spawn();
        bystander.say("up");
        bystander.line(|line| line == "up");
        let tgid = bystander.tgid();
        let address = writable_memory(tgid);
        let daemon = guard.daemon_tgid();
        let pin = OnBpffs::new();
        let process = format!("process/{tgid}");
        let into_it = |call: String| (call, "ptrace", process.clone());
        let mut attempts = vec![
            into_it(format!("ptrace {tgid}")),
            into_it(format!("process_vm_readv {tgid} {address}")),
            into_it(format!("process_vm_writev {tgid} {address}")),
            into_it(format!("pidfd_getfd {tgid}")),
        ];
        if user == User::Root {
            let terminal = "terminal".to_owned();
            attempts.push((terminal.clone(), "ioctl", terminal));
            let signal = format!("kill {daemon} 18");
            attempts.push(("bpf".to_owned(), "bpf", "bpf".to_owned()));
            attempts.push((signal, "kill", format!("process/{daemon}")));
            let rename = format!("rename {0}/a {0}/b", pin.0.display());
            attempts.push((rename, "unlink", "bpffs".to_owned()));
            let remove = format!("rmdir {}/c", pin.0.display());
            attempts.push((remove, "unlink", "bpffs".to_owned()));
        }
        let name = user.name();
        let mut agent = under(&guard.agent("probe").user(name), &words).spawn();
        let mut before = guard.audit().len();
        for (call, action, resource) in &attempts {
            let said = tries(&mut agent, call);
            let records = guard.audit().split_off(before);
            before += records.len();
            if is_open {
                assert_eq!((&*said, records.len()), ("ok", 0), "{call}, as {name}");
                pin.restore();
                continue;
            }
            assert_eq!(said, "EPERM", "{call}, as {name}");
            let [record] = &records[..] else {
                panic!("{call}, as {name}: not one record: {records:#?}");
            };
            let told = (record.agent(), record.action(), record.resource());
            assert_eq!(told, ("probe", *action, &**resource), "{call}, as {name}");
            let told = (record.outcome(), record.reason());
            assert_eq!(told, ("deny", "policy-denied"), "{call}, as {name}");
        }
        let before = guard.audit().len();
        let mut control = alone(&words).as_user(user).spawn();
        for (call, ..) in &attempts {
            assert_eq!(tries(&mut control, call), "ok", "{call}, as no agent");
            pin.restore();
        }
        assert_eq!(guard.audit().len(), before, "nobody's");
    }
}

/// Folders on the file system of the pins that are not the daemon's.
struct OnBpffs(PathBuf);

impl OnBpffs {
    fn new() -> Self {
        let made = Self(Path::new("/sys/fs/bpf").join(names::unique()));
        made.restore();
        made
    }

    fn restore(&self) {
        let _ = std::fs::remove_dir(self.0.join("b"));
        for folder in ["a", "c"] {
            std::fs::create_dir_all(self.0.join(folder)).expect("a folder");
        }
    }
}

impl Drop for OnBpffs {
    fn drop(&mut self) {
        for folder in ["a", "b", "c", ""] {
            let _ = std::fs::remove_dir(self.0.join(folder));
        }
    }
}

/// The stack: the loader makes other memory read-only as it goes.
fn writable_memory(tgid: u32) -> String {
    let maps = std::fs::read_to_string(format!("/proc/{tgid}/maps")).expect("it runs");
    let line = maps.lines().find(|line| line.ends_with("[stack]"));
    let (address, _) = line
        .and_then(|line| line.split_once('-'))
        .expect("it has some");
    address.to_owned()
}

/// Processes with more rights are out of reach although nothing forbids `/proc/PID/mem` by itself.
#[test]
fn the_daemon_is_out_of_reach_for_a_root_agent() {
    let site = Site::new();
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", ""));
    let daemon = guard.daemon_tgid();
    let key = site.path("state");
    let pins = site.pins().to_owned();
    let pin = pins.join(format!(
        "v{}/links/connect4",
        agentguard_common::abi::VERSION
    ));
    let attempts = [
        (format!("mem {daemon}"), "EACCES"),
        (format!("read /proc/{daemon}/environ"), "EACCES"),
        (format!("list /proc/{daemon}/root"), "EACCES"),
        (format!("list {}", key.display()), "ENOENT"),
        (format!("list {}", pins.display()), "ENOENT"),
        (format!("unlink {}", pin.display()), "ENOENT"),
        ("open_by_handle_at".to_owned(), "EPERM"),
    ];
    let mut control = tamper(&site);
    for (attempt, _) in &attempts {
        // Unlinking a pin would open the agents for good.
        if !attempt.starts_with("unlink") {
            assert_eq!(tries(&mut control, attempt), "ok", "by root, {attempt}");
        }
    }
    let mut agent = tamper(&guard.agent("probe"));
    for (attempt, expected) in &attempts {
        let said = tries(&mut agent, attempt);
        assert!(
            said == *expected || (*expected == "EACCES" && said == "EPERM"),
            "{attempt}: {said}"
        );
    }
    assert!(pin.exists());
}

#[cfg(target_arch = "x86_64")]
#[test]
fn calls_of_another_architecture_end_the_process() {
    let site = Site::new();
    let programs = Programs::new();
    let program = programs.c("foreign");
    let control = site.client(&program).run();
    if control.code() != 0 || control.stdout != "said ok" {
        // Built without IA32 emulation: there is no such way.
        return;
    }
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", ""));
    let ran = guard.agent("probe").client(&program).run();
    assert_eq!(ran.stdout, "");
    let signal = ran.status.signal().unwrap_or(ran.code() - 128);
    assert_eq!(signal, libc::SIGSYS, "{ran:?}");
}
