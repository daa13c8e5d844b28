//! A forwarder that an attacker has taken over: its thread is made to do what the attacker would, call by call.

use std::path::{Path, PathBuf};

use agentguard_tests::bundle::reach;
use agentguard_tests::client::dialer;
use agentguard_tests::inject::{Answer, Injected};
use agentguard_tests::process::{Running, pid};
use agentguard_tests::{Bundle, Guard, Nginx, Site};

const EACCES: Answer = Answer::Returned(-(libc::EACCES as i64));
const BPF_MAP_CREATE: u64 = 0;
const BPF_MAP_LOOKUP_ELEM: u64 = 1;
const BPF_MAP_UPDATE_ELEM: u64 = 2;
const BPF_PROG_LOAD: u64 = 5;

/// What the attacker is after.
struct Prey {
    files: Vec<PathBuf>,
    control_socket: PathBuf,
    daemon: u32,
    bystander: u32,
}

#[test]
fn a_forwarder_under_an_attackers_control_gets_nowhere() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let policy = reach("origin.test", origin.port, &["GET /v1/**"]);
    let mut guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let mut agent = dialer(&guard.agent("probe"));
    let get = format!("get {}", origin.url("/v1/x"));
    assert_eq!(agent.tries(&get), "ok 200");
    let forwarder = guard.forwarder_tgid();
    let bystander = waiting();
    let prey = Prey {
        files: secrets(&site),
        control_socket: site.path("run/control.sock"),
        daemon: guard.daemon_tgid(),
        bystander: bystander.tgid(),
    };

    // The same calls do what they are to do where there is no sandbox: they prove something.
    let free = waiting();
    for (what, answer) in attempts(&mut Injected::seize(free.tgid()), &prey) {
        assert!(answer.is_done(), "{what} without a sandbox: {answer:?}");
    }

    let mut taken = Injected::seize(forwarder);
    for (what, answer) in attempts(&mut taken, &prey) {
        let refused = matches!(answer, Answer::Refused) || answer == EACCES;
        assert!(refused, "{what}: {answer:?}");
    }
    // A process of its own.
    let fork = taken.call(libc::SYS_clone, &[libc::SIGCHLD as u64]);
    assert_eq!(fork, Answer::Refused);
    // What it was given it can read, and not write.
    for map in maps_of(forwarder) {
        let key = taken.put(&[0; 64]);
        let value = taken.put(&[0; 64]);
        let element = taken.put(&element(map, key, value));
        let lookup = taken.call(libc::SYS_bpf, &[BPF_MAP_LOOKUP_ELEM, element, 32]);
        let nothing = Answer::Returned(-i64::from(libc::ENOENT));
        assert_eq!(lookup, nothing, "its own map");
        let update = taken.call(libc::SYS_bpf, &[BPF_MAP_UPDATE_ELEM, element, 32]);
        assert_eq!(update, Answer::Refused);
    }
    // Let go, it serves as before.
    drop(taken);
    assert_eq!(agent.tries(&get), "ok 200");
    assert_eq!(guard.forwarder_tgid(), forwarder, "the same process");
    let status = guard.cli(["status", "--json"]).ok().json();
    assert!(status["forwarder"]["landlock_abi"].is_u64(), "{status}");
}

#[test]
fn a_refused_call_is_told_and_closes_agents_until_the_next_forwarder() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let policy = reach("origin.test", origin.port, &["GET /v1/**"]);
    let mut guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let forwarder = guard.forwarder_tgid();
    // SIGSYS as the filter sends it: the handler is what the forwarder has for it.
    nix::sys::signal::kill(pid(forwarder), nix::sys::signal::Signal::SIGSYS).expect("it runs");
    agentguard_tests::process::await_end(forwarder);
    let mut agent = dialer(&guard.agent("probe"));
    let get = format!("get {}", origin.url("/v1/x"));
    let deadline = std::time::Instant::now() + agentguard_tests::tools::PATIENCE;
    while agent.tries(&get) != "ok 200" {
        assert!(std::time::Instant::now() < deadline, "no new forwarder");
    }
    let log = guard.stop().stderr;
    assert!(log.contains("is not in the filter: ending"), "{log}");
    assert!(log.contains("exit status: 159"), "{log}");
}

/// Every attempt, and what became of it. The last one replaces a process that has no sandbox.
fn attempts(process: &mut Injected, prey: &Prey) -> Vec<(String, Answer)> {
    let here = libc::AT_FDCWD as u64;
    let mut done = Vec::new();
    let mut note = |what: &str, answer| done.push((what.to_owned(), answer));
    for file in &prey.files {
        let name = file.display();
        let path = process.path(file);
        let opened = process.call(libc::SYS_open, &[path, libc::O_RDONLY as u64]);
        note(&format!("open {name}"), opened);
        let opened = process.call(libc::SYS_openat, &[here, path, libc::O_RDWR as u64]);
        note(&format!("openat {name}"), opened);
        let how = process.put(&[0; 24]);
        let opened = process.call(libc::SYS_openat2, &[here, path, how, 24]);
        note(&format!("openat2 {name}"), opened);
    }
    for (what, family, kind) in [
        ("socket AF_UNIX", libc::AF_UNIX, libc::SOCK_STREAM),
        ("socket AF_PACKET", libc::AF_PACKET, libc::SOCK_RAW),
        ("socket AF_NETLINK", libc::AF_NETLINK, libc::SOCK_RAW),
        ("socket SOCK_RAW", libc::AF_INET, libc::SOCK_RAW),
    ] {
        let proto = if family == libc::AF_INET {
            libc::IPPROTO_ICMP
        } else {
            0
        };
        let socket = process.call(
            libc::SYS_socket,
            &[family as u64, kind as u64, proto as u64],
        );
        note(what, socket);
        if family == libc::AF_UNIX {
            let fd = match socket {
                Answer::Returned(fd @ 0..) => fd.cast_unsigned(),
                _ => 0,
            };
            let (address, length) = unix_address(process, &prey.control_socket);
            let connected = process.call(libc::SYS_connect, &[fd, address, length]);
            // Without the socket there is none to connect: the answer is the socket's.
            let answer = if socket.is_done() { connected } else { socket };
            note("connect to the control socket", answer);
        }
    }
    let (daemon, bystander) = (u64::from(prey.daemon), u64::from(prey.bystander));
    note(
        "ptrace",
        process.call(
            libc::SYS_ptrace,
            &[u64::from(libc::PTRACE_SEIZE), bystander],
        ),
    );
    let buffer = process.put(&[0; 64]);
    let local = process.put(&[buffer.to_ne_bytes(), 8u64.to_ne_bytes()].concat());
    note(
        "pidfd_open",
        process.call(libc::SYS_pidfd_open, &[daemon, 0]),
    );
    note(
        "kill the daemon",
        process.call(libc::SYS_kill, &[daemon, 0]),
    );
    note(
        "tgkill the daemon",
        process.call(libc::SYS_tgkill, &[daemon, daemon, 0]),
    );
    note(
        "process_vm_readv",
        process.call(libc::SYS_process_vm_readv, &[daemon, local, 0, 0, 0]),
    );
    let instructions = process.put(&[0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0]);
    let license = process.put(b"GPL\0");
    let mut load = [0; 64];
    load[..4].copy_from_slice(&1u32.to_ne_bytes());
    load[4..8].copy_from_slice(&2u32.to_ne_bytes());
    load[8..16].copy_from_slice(&instructions.to_ne_bytes());
    load[16..24].copy_from_slice(&license.to_ne_bytes());
    let load = process.put(&load);
    note(
        "bpf BPF_PROG_LOAD",
        process.call(libc::SYS_bpf, &[BPF_PROG_LOAD, load, 64]),
    );
    let numbers = [2u32, 4, 8, 1].map(u32::to_ne_bytes).concat();
    let map = process.put(&numbers);
    note(
        "bpf BPF_MAP_CREATE",
        process.call(libc::SYS_bpf, &[BPF_MAP_CREATE, map, 16]),
    );
    note(
        "executable memory",
        process.call(
            libc::SYS_mmap,
            &[
                0,
                4096,
                (libc::PROT_READ | libc::PROT_EXEC) as u64,
                (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64,
                u64::MAX,
                0,
            ],
        ),
    );
    let name = process.put(b"x\0");
    note(
        "memfd_create",
        process.call(libc::SYS_memfd_create, &[name, 0]),
    );
    note("setuid", process.call(libc::SYS_setuid, &[0]));
    note(
        "unshare",
        process.call(libc::SYS_unshare, &[libc::CLONE_NEWUSER as u64]),
    );
    let program = process.path(Path::new("/bin/true"));
    let arguments = process.put(&[program.to_ne_bytes(), [0; 8]].concat());
    note(
        "execve",
        process.call(libc::SYS_execve, &[program, arguments, 0]),
    );
    done
}

/// A process without a sandbox, of root's, that waits in a system call.
fn waiting() -> Running {
    let mut command = std::process::Command::new("cat");
    let mut running = Running::spawn(command.env_clear().env("PATH", "/usr/bin:/bin"));
    // It reads once it has started: what it was told has come back.
    running.say("ready");
    running.line(|line| line == "ready");
    let reads = || {
        let call = std::fs::read_to_string(format!("/proc/{}/syscall", running.tgid()));
        call.is_ok_and(|call| call.starts_with("0 "))
    };
    while !reads() {
        std::thread::yield_now();
    }
    running
}

/// The CA's key, the audit log, the registry, and a file that everyone may read.
fn secrets(site: &Site) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/etc/passwd")];
    for folder in ["state", "state/ca", "state/audit", "state/policy"] {
        for entry in std::fs::read_dir(site.path(folder)).into_iter().flatten() {
            let path = entry.expect("readable").path();
            if path.is_file() {
                found.push(path);
            }
        }
    }
    for needed in ["ca/", "audit/", "agents.json"] {
        let there = |path: &PathBuf| path.to_string_lossy().contains(needed);
        assert!(found.iter().any(there), "no {needed} in {found:?}");
    }
    found
}

fn maps_of(tgid: u32) -> Vec<u32> {
    let descriptors = std::fs::read_dir(format!("/proc/{tgid}/fd")).expect("it runs");
    let maps: Vec<u32> = descriptors
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let is_map = std::fs::read_link(&path)
                .ok()?
                .ends_with("anon_inode:bpf-map");
            is_map.then(|| path.file_name()?.to_str()?.parse().ok())?
        })
        .collect();
    assert!(maps.len() >= 2, "{maps:?}");
    maps
}

/// `union bpf_attr` of the calls on one element.
fn element(map: u32, key: u64, value: u64) -> [u8; 32] {
    let mut attr = [0; 32];
    attr[..4].copy_from_slice(&map.to_ne_bytes());
    attr[8..16].copy_from_slice(&key.to_ne_bytes());
    attr[16..24].copy_from_slice(&value.to_ne_bytes());
    attr
}

fn unix_address(process: &mut Injected, path: &Path) -> (u64, u64) {
    use std::os::unix::ffi::OsStrExt;
    let mut address = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
    address.extend_from_slice(path.as_os_str().as_bytes());
    address.push(0);
    (process.put(&address), address.len() as u64)
}
