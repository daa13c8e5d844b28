//! Debian packages. Where a package brings a service, the service is kept from starting.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, bail};

use super::Need;
use crate::shell::{self, command};

/// A program, the package that has it, from which need on, and what it is for.
const PROGRAMS: [(&str, &str, Need, &str); 18] = [
    (
        "cc",
        "gcc libc6-dev",
        Need::Build,
        "builds the cryptographic library and the allocator",
    ),
    (
        "make",
        "make",
        Need::Build,
        "builds the cryptographic library and the allocator",
    ),
    (
        "git",
        "git",
        Need::Tests,
        "a client under test, and the server's side of its protocol",
    ),
    (
        "nginx",
        "nginx",
        Need::Demo,
        "the origin that agents call: HTTP/1.1 and HTTP/2 over TLS",
    ),
    (
        "fcgiwrap",
        "fcgiwrap",
        Need::Demo,
        "runs git's server side behind nginx",
    ),
    ("curl", "curl", Need::Demo, "a client under test"),
    ("wget", "wget", Need::Tests, "a client under test"),
    ("openssl", "openssl", Need::Tests, "a client under test"),
    ("node", "nodejs", Need::Tests, "a client under test"),
    (
        "npm",
        "npm",
        Need::Tests,
        "installs Node packages under test",
    ),
    (
        "python3",
        "python3",
        Need::Tests,
        "clients and servers under test",
    ),
    (
        "ip",
        "iproute2",
        Need::Tests,
        "network namespaces for tests",
    ),
    (
        "unshare",
        "util-linux",
        Need::Demo,
        "private mount namespaces for the controls without AgentGuard",
    ),
    (
        "setpriv",
        "util-linux",
        Need::Tests,
        "processes with another user for tests",
    ),
    (
        "ssh",
        "openssh-client",
        Need::Tests,
        "a client of a protocol that is refused",
    ),
    (
        "tinyproxy",
        "tinyproxy-bin",
        Need::Tests,
        "the proxy that agents' calls go by",
    ),
    (
        "qemu-system-x86_64",
        "qemu-system-x86",
        Need::Machines,
        "boots the kernels that the tests are tried on",
    ),
    (
        "modprobe",
        "kmod",
        Need::Machines,
        "loads those kernels' modules",
    ),
];

pub(super) fn install(need: Need) -> anyhow::Result<()> {
    let mut missing: Vec<(&str, &str)> = PROGRAMS
        .iter()
        .filter(|(program, _, from, _)| *from <= need && !shell::has(program))
        .map(|(_, package, _, why)| (*package, *why))
        .collect();
    if need >= Need::Tests && !can_make_venv() {
        missing.push((
            "python3-venv",
            "the Python packages under test get a folder of their own",
        ));
    }
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing
        .iter()
        .flat_map(|(package, _)| package.split(' '))
        .collect();
    if !shell::is_root() || !shell::has("apt-get") {
        bail!(
            "missing: {}; install them, or run this as root on Debian",
            names.join(" ")
        );
    }
    for (package, why) in &missing {
        super::announce(package, why);
    }
    let _no_start = ServicesStayDown::new()?;
    let quiet = ["-qq", "--option=Dpkg::Use-Pty=0", "--no-install-recommends"];
    shell::run(apt().args(["update", "-qq"]))?;
    shell::run(apt().arg("install").args(quiet).args(names))
}

/// The one that `packages` uses: the system's own, whatever else is first on `PATH`.
fn can_make_venv() -> bool {
    shell::output(&mut command(
        "/usr/bin/python3",
        ["-c", "import ensurepip, venv"],
    ))
    .is_some()
}

fn apt() -> std::process::Command {
    let mut apt = command("apt-get", [] as [&str; 0]);
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    apt
}

/// While it lives, `invoke-rc.d` and `deb-systemd-invoke` start no service (policy-rc.d(8)).
struct ServicesStayDown;

impl ServicesStayDown {
    const POLICY: &str = "/usr/sbin/policy-rc.d";

    fn new() -> anyhow::Result<Option<Self>> {
        if Path::new(Self::POLICY).exists() {
            return Ok(None);
        }
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(Self::POLICY)
            .with_context(|| format!("cannot write {}", Self::POLICY))?;
        std::io::Write::write_all(&mut file, b"#!/bin/sh\nexit 101\n")?;
        Ok(Some(Self))
    }
}

impl Drop for ServicesStayDown {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(Self::POLICY) {
            eprintln!("cannot remove {}: {error}", Self::POLICY);
        }
    }
}
