//! What this host offers, found without a daemon and without changing anything.

use std::collections::HashSet;
use std::fs;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use agentguard_common::abi;

use crate::config::Config;
use crate::kernel;
use crate::sys::diag;

pub(super) struct Host {
    pub release: String,
    pub bpf_lsm: bool,
    pub sock_destroy: bool,
    /// Programs whose links are pinned, by name.
    pub pinned: Vec<String>,
    /// Something without which nothing can be attached.
    pub missing: Option<String>,
    pub missing_remedy: Option<String>,
}

impl Host {
    pub(super) fn probe(config: &Config) -> Self {
        let (missing, missing_remedy) = missing().unzip();
        Self {
            release: fs::read_to_string("/proc/sys/kernel/osrelease")
                .map_or("unknown".into(), |text| text.trim().to_owned()),
            bpf_lsm: fs::read_to_string("/sys/kernel/security/lsm")
                .is_ok_and(|text| text.trim().split(',').any(|lsm| lsm == "bpf")),
            sock_destroy: sock_destroy(),
            pinned: pinned(&config.paths.pins),
            missing,
            missing_remedy,
        }
    }
}

/// The first thing that no hook can do without, and its remedy.
fn missing() -> Option<(String, String)> {
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

/// Links are pinned one by one, each under its program's name.
fn pinned(pins: &Path) -> Vec<String> {
    let links = pins.join(format!("v{}/links", abi::VERSION));
    let Ok(entries) = fs::read_dir(links) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}
