//! What the host must have before anything is loaded, each with its remedy.

use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;

use aya::util::KernelVersion;

use super::{KernelError, bpf, btf};

/// `bpf_loop` came with 5.17; 6.1 is the oldest kernel tested.
const OLDEST: (u32, u32) = (6, 1);
/// `PROC_PID_INIT_INO`.
const INIT_PID_NS: u64 = 0xEFFF_FFFC;

pub(super) fn check() -> Result<(), KernelError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(KernelError::Unsupported(
            "loading the kernel programs needs root; run as root".into(),
        ));
    }
    fits()
}

/// What no privilege changes.
pub fn fits() -> Result<(), KernelError> {
    let name = nix::sys::utsname::uname().map_err(|error| KernelError::Call {
        call: "uname",
        source: error.into(),
    })?;
    let release = name.release().to_string_lossy();
    if version(&release).is_none_or(|version| version < OLDEST) {
        return Err(KernelError::Unsupported(format!(
            "kernel {release} is too old; {}.{} or later is needed",
            OLDEST.0, OLDEST.1
        )));
    }
    // Labels are by the host's tgids: in another namespace every number would name somebody else.
    let namespace = std::fs::metadata("/proc/self/ns/pid").map_err(|source| KernelError::Call {
        call: "stat",
        source,
    })?;
    if namespace.ino() != INIT_PID_NS {
        return Err(KernelError::Unsupported(
            "not in the host's pid namespace; start the daemon there".into(),
        ));
    }
    Ok(())
}

/// Whether the kernel obeys LSM programs, found by trying: one that refuses this thread `getsid(2)` of another's is
/// attached for a moment. The list of security modules alone says too little: a locked-down kernel has them and takes no
/// program, and without `bpf` in the list a program is taken and never run.
///
/// # Errors
/// Why not, with the remedy.
pub fn lsm() -> Result<(), String> {
    const HOOK: &str = "task_getsid";
    let id = btf::lsm_hook(HOOK).map_err(|error| error.to_string())?;
    let id = id.ok_or("this kernel has no BPF LSM; one with CONFIG_BPF_LSM=y is needed")?;
    let refused = |error: KernelError| {
        format!(
            "this kernel takes no BPF LSM programs ({error}); it is locked down, or a privilege is missing"
        )
    };
    let program = bpf::load_lsm(&refuse_this_thread(), id, 0).map_err(refused)?;
    let link = bpf::attach_lsm(program.as_fd()).map_err(refused)?;
    let answer = nix::unistd::getsid(Some(nix::unistd::getpid()));
    drop(link);
    match answer {
        Err(nix::errno::Errno::EPERM) => Ok(()),
        _ => Err("BPF LSM is built in but not active; boot with `bpf` in the `lsm=` list".into()),
    }
}

/// Instructions of a program that answers -EPERM to the calling thread and 0 to everyone else.
fn refuse_this_thread() -> [u64; 8] {
    let tgid = u64::from(std::process::id());
    let tid = nix::unistd::gettid().as_raw() as u64;
    [
        // r0 = bpf_get_current_pid_tgid()
        0x0000_000e_0000_0085,
        // r1 = tgid << 32 | tid, in two halves
        tid << 32 | 0x0118,
        tgid << 32,
        // r2 = r0; r0 = 0
        0x0000_0000_0000_02bf,
        0x0000_0000_0000_00b7,
        // if r2 != r1, skip one
        0x0000_0000_0001_125d,
        // r0 = -EPERM
        0xffff_ffff_0000_00b7,
        // exit
        0x0000_0000_0000_0095,
    ]
}

/// Whether an LSM program that is entered again on the same CPU before it has ended is left out, and may be entered so.
/// Up to 6.1.53 the trampoline leaves it out (`prog->active` in `__bpf_prog_enter`); under full preemption another task may
/// come by meanwhile.
pub fn leaves_lsm_out() -> bool {
    let modes = std::fs::read_to_string("/sys/kernel/debug/sched/preempt").ok();
    let build =
        nix::sys::utsname::uname().map(|name| name.version().to_string_lossy().into_owned());
    let version = KernelVersion::current();
    version.is_ok_and(|version| left_out(version, modes.as_deref(), &build.unwrap_or_default()))
}

/// `modes`: as the scheduler tells them, the one that holds in parentheses; else what the kernel was built for counts.
fn left_out(version: KernelVersion, modes: Option<&str>, build: &str) -> bool {
    let full = match modes {
        Some(modes) => modes.contains("(full)"),
        None => build.contains("PREEMPT"),
    };
    full && version < KernelVersion::new(6, 1, 54)
}

/// Whether the programs of a tracepoint can be preempted, and are left out on that CPU until they have ended: since Linux 7.0
/// `__DECLARE_TRACE` calls them under SRCU and no longer with preemption off.
pub fn preempts_tracepoints() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(7, 0, 0))
}

/// The number of the namespace that the daemon is in.
pub(super) fn host_netns() -> Result<u32, KernelError> {
    let namespace = std::fs::metadata("/proc/self/ns/net").map_err(|source| KernelError::Call {
        call: "stat",
        source,
    })?;
    u32::try_from(namespace.ino())
        .map_err(|_| KernelError::Unsupported("/proc/self/ns/net is no namespace".into()))
}

/// Majors of the character devices that carry commands to a disk, of those that the kernel gives as they come; 0 for what it
/// does not have yet.
pub(super) fn disk_majors() -> [u32; 6] {
    let devices = std::fs::read_to_string("/proc/devices").unwrap_or_default();
    let names = [
        "bsg",
        "nvme",
        "nvme-generic",
        "dax",
        "megaraid_sas_ioctl",
        "aac",
    ];
    names.map(|name| major(&devices, name).unwrap_or(0))
}

/// `devices`: as `/proc/devices` has them, block devices behind the others.
fn major(devices: &str, name: &str) -> Option<u32> {
    let lines = devices.lines().take_while(|line| *line != "Block devices:");
    let mut fields = lines.map(str::split_whitespace);
    fields.find_map(|mut fields| {
        let number = fields.next()?;
        (fields.next()? == name).then(|| number.parse().ok())?
    })
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(version("6.18.44-fc-v657"), Some((6, 18)));
        assert_eq!(version("5.10.0-28-cloud-amd64"), Some((5, 10)));
        assert_eq!(version("mainline"), None);
    }

    #[test]
    fn majors_of_character_devices() {
        let devices =
            "Character devices:\n  1 mem\n 10 misc\n248 bsg\n\nBlock devices:\n259 nvme\n";
        assert_eq!(major(devices, "bsg"), Some(248));
        assert_eq!(major(devices, "nvme"), None);
    }

    #[test]
    fn programs_are_left_out_only_by_an_old_kernel_that_preempts_itself() {
        let (old, new) = (KernelVersion::new(6, 1, 53), KernelVersion::new(6, 1, 54));
        let dynamic = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.52-1";
        for (version, modes, build, expected) in [
            (old, Some("none voluntary (full)"), dynamic, true),
            (old, Some("none (voluntary) full"), dynamic, false),
            (old, None, dynamic, true),
            (old, None, "#1 SMP Debian 6.1.52-1", false),
            (new, Some("none voluntary (full)"), dynamic, false),
            (KernelVersion::new(6, 12, 1), None, dynamic, false),
        ] {
            let found = left_out(version, modes, build);
            assert_eq!(found, expected, "{version:?} {modes:?} {build}");
        }
    }
}
