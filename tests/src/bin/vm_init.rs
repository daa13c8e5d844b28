//! The first process of the machines that `cargo xtask test vm` boots: mounts what a host has, runs the steps it is given,
//! and reports on the second serial port, where the kernel writes nothing. Never run it anywhere else.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::mount::{MsFlags, mount};
use nix::sys::wait::{WaitStatus, wait};

/// One a line, fields apart by tabs: name, program, arguments.
const STEPS: &str = "/vm/steps";
const ENVIRONMENT: &str = "/vm/environment";
/// What every line of our own begins with.
const MARK: &str = "@vm";

/// Source, mount point, type, options.
const MOUNTS: [(&str, &str, &str, Option<&str>); 11] = [
    ("proc", "/proc", "proc", None),
    ("sysfs", "/sys", "sysfs", None),
    ("devtmpfs", "/dev", "devtmpfs", None),
    ("devpts", "/dev/pts", "devpts", Some("ptmxmode=666")),
    ("tmpfs", "/dev/shm", "tmpfs", Some("mode=1777")),
    ("tmpfs", "/tmp", "tmpfs", Some("mode=1777")),
    ("tmpfs", "/run", "tmpfs", Some("mode=755")),
    ("tmpfs", "/run/lock", "tmpfs", Some("mode=1777")),
    ("securityfs", "/sys/kernel/security", "securityfs", None),
    ("bpf", "/sys/fs/bpf", "bpf", Some("mode=700")),
    ("cgroup2", "/sys/fs/cgroup", "cgroup2", None),
];

fn main() {
    assert_eq!(std::process::id(), 1, "this is for a virtual machine alone");
    if let Err(error) = run() {
        eprintln!("vm_init: {error}");
    }
    // Without an end marker on the port the run has failed, whatever else happened.
    let _ = std::fs::write("/proc/sysrq-trigger", "o");
    loop {
        std::thread::park();
    }
}

fn run() -> io::Result<()> {
    for (source, target, kind, options) in MOUNTS {
        // /dev/pts and the like are in file systems that have just been mounted.
        std::fs::create_dir_all(target)?;
        mount(Some(source), target, Some(kind), MsFlags::empty(), options)
            .map_err(|error| io::Error::other(format!("cannot mount {target}: {error}")))?;
    }
    for (link, target) in [("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0")] {
        std::os::unix::fs::symlink(target, Path::new("/dev").join(link))?;
    }
    let mut port = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open("/dev/ttyS1")?;
    run_to_end(Command::new("/usr/sbin/ip").args(["link", "set", "lo", "up"]))?;
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let modules = std::fs::read_to_string("/sys/kernel/security/lsm")?;
    tell(
        &mut port,
        &format!("up {} {}", release.trim(), modules.trim()),
    )?;
    for line in std::fs::read_to_string(STEPS)?.lines() {
        let mut fields = line.split('\t');
        let (Some(name), Some(program)) = (fields.next(), fields.next()) else {
            return Err(io::Error::other(format!("not a step: {line:?}")));
        };
        tell(&mut port, &format!("step {name}"))?;
        let start = Instant::now();
        let status = step(program, fields, &port)?;
        let seconds = start.elapsed().as_secs_f64();
        tell(&mut port, &format!("exit {name} {status} {seconds:.1}"))?;
    }
    tell(&mut port, "end")
}

/// In one piece: something of a test may live on and write too.
fn tell(port: &mut File, what: &str) -> io::Result<()> {
    port.write_all(format!("{MARK} {what}\n").as_bytes())
}

/// Standard error goes to the kernel's console: what a test's children say there must not cut its runner's lines.
fn step<'a>(program: &str, args: impl Iterator<Item = &'a str>, port: &File) -> io::Result<i32> {
    let environment = std::fs::read_to_string(ENVIRONMENT)?;
    run_to_end(
        Command::new(program)
            .args(args)
            .env_clear()
            .envs(environment.lines().filter_map(|line| line.split_once('=')))
            .current_dir("/root")
            .stdin(Stdio::null())
            .stdout(port.try_clone()?),
    )
}

/// Reaps whatever comes to us meanwhile, as the first process must.
fn run_to_end(command: &mut Command) -> io::Result<i32> {
    let child = command.spawn()?.id();
    loop {
        let status = wait()?;
        if status.pid().is_none_or(|pid| pid.as_raw() as u32 != child) {
            continue;
        }
        match status {
            WaitStatus::Exited(_, code) => return Ok(code),
            WaitStatus::Signaled(_, signal, _) => return Ok(128 + signal as i32),
            _ => {}
        }
    }
}
