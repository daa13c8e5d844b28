//! Processes by tgid: what `/proc` says of them, and descriptors that stay theirs.

use std::fs;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::{Result, SysError};

/// `pidfd_open(2)`: refers to this process even after its tgid is someone else's.
pub fn pidfd_open(tgid: u32) -> Result<OwnedFd> {
    // SAFETY: takes two integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, tgid, 0) };
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(SysError::last("pidfd_open"));
    }
    // SAFETY: the kernel has just installed this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A pidfd is readable once its process has ended (a zombie counts as ended).
pub fn pidfd_alive(pidfd: BorrowedFd<'_>) -> bool {
    let mut poll = [nix::poll::PollFd::new(pidfd, nix::poll::PollFlags::POLLIN)];
    matches!(nix::poll::poll(&mut poll, 0u8), Ok(0))
}

/// Waits until the process has ended, at most `limit`; whether it has.
pub fn pidfd_ended_within(pidfd: BorrowedFd<'_>, limit: Duration) -> bool {
    let millis = u16::try_from(limit.as_millis()).unwrap_or(u16::MAX);
    let mut poll = [nix::poll::PollFd::new(pidfd, nix::poll::PollFlags::POLLIN)];
    matches!(nix::poll::poll(&mut poll, millis), Ok(1..))
}

/// `fork(2)`; the child's tgid in the parent, `None` in the child.
///
/// # Panics
/// If the process has more than one thread: the child of such a process may not even allocate.
pub fn fork() -> Result<Option<u32>> {
    let threads = fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    assert_eq!(threads, 1, "fork comes before the first thread");
    // SAFETY: the only thread forks, so the child has a consistent copy of everything.
    match unsafe { nix::unistd::fork() }.map_err(SysError::of("fork"))? {
        nix::unistd::ForkResult::Parent { child } => Ok(Some(child.as_raw().unsigned_abs())),
        nix::unistd::ForkResult::Child => Ok(None),
    }
}

/// What is in `/proc/TGID` of one process. Fields that could not be read are at their defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub tgid: u32,
    pub parent: u32,
    pub uid: u32,
    /// The executed file as the kernel names it, empty for a kernel thread.
    pub exe: String,
    /// Its path in the cgroup v2 hierarchy (`/system.slice/x.service`).
    pub cgroup: String,
    /// `CLOCK_BOOTTIME` at its start, ns, in steps of `USER_HZ`.
    pub start_ns: u64,
}

impl Snapshot {
    /// `None` if there is no such process any more.
    pub fn of(tgid: u32) -> Option<Self> {
        let fields = stat(tgid)?;
        let ticks: u64 = fields.get(19)?.parse().ok()?;
        Some(Self {
            tgid,
            parent: fields.get(1)?.parse().ok()?,
            uid: uid(tgid)?,
            exe: exe(tgid),
            cgroup: cgroup(tgid),
            start_ns: ticks.saturating_mul(1_000_000_000 / clock_ticks()),
        })
    }
}

/// The fields of `/proc/TGID/stat` behind the command name, which is in parentheses and may hold anything, parentheses too.
fn stat(tgid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{tgid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

fn exe(tgid: u32) -> String {
    let Ok(path) = fs::read_link(format!("/proc/{tgid}/exe")) else {
        return String::new();
    };
    let path = path.to_string_lossy();
    path.strip_suffix(" (deleted)").unwrap_or(&path).to_owned()
}

fn cgroup(tgid: u32) -> String {
    fs::read_to_string(format!("/proc/{tgid}/cgroup"))
        .ok()
        .and_then(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix("0::"))
                .map(str::to_owned)
        })
        .unwrap_or_default()
}

/// Real uid, as `bpf_get_current_uid_gid` has it.
pub fn uid(tgid: u32) -> Option<u32> {
    uids(tgid).map(|[real, ..]| real)
}

/// Real, effective, saved and file system uid.
pub fn uids(tgid: u32) -> Option<[u32; 4]> {
    let status = fs::read_to_string(format!("/proc/{tgid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("Uid:"))?;
    let uids = line.split_whitespace().map_while(|uid| uid.parse().ok());
    uids.collect::<Vec<u32>>().try_into().ok()
}

/// Whether it has a filter of its system calls (seccomp(2), `SECCOMP_MODE_FILTER`), which it cannot take off.
pub fn has_filter(tgid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{tgid}/status")).unwrap_or_default();
    let mode = status.lines().find_map(|l| l.strip_prefix("Seccomp:"));
    mode.is_some_and(|mode| mode.trim() == "2")
}

/// Whether a signal or a tracer has stopped it.
pub fn is_stopped(tgid: u32) -> bool {
    stat(tgid).is_some_and(|fields| {
        fields
            .first()
            .is_some_and(|state| state == "T" || state == "t")
    })
}

/// Whether it has a controlling terminal.
pub fn has_terminal(tgid: u32) -> bool {
    stat(tgid).is_some_and(|fields| fields.get(4).is_some_and(|tty| tty != "0"))
}

/// Whether the thread group still runs that began at `start_ns`, to the precision of `/proc`. One that waits to be reaped
/// does not.
pub fn runs(tgid: u32, start_ns: u64) -> bool {
    let Some(fields) = stat(tgid) else {
        return false;
    };
    let number = |at: usize| -> Option<u64> { fields.get(at)?.parse().ok() };
    let (Some(threads), Some(ticks)) = (number(17), number(19)) else {
        return false;
    };
    // The leader of a group may end before its other threads.
    let is_over = threads <= 1 && matches!(fields.first().map(String::as_str), Some("Z" | "X"));
    let tick = 1_000_000_000 / clock_ticks();
    !is_over && ticks.saturating_mul(tick).abs_diff(start_ns) < tick
}

/// Every thread group there is now.
pub fn all() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// Inodes of the sockets the process has open.
pub fn socket_inodes(tgid: u32) -> Vec<u64> {
    let Ok(entries) = fs::read_dir(format!("/proc/{tgid}/fd")) else {
        return Vec::new();
    };
    entries
        .filter_map(|e| {
            let target = fs::read_link(e.ok()?.path()).ok()?;
            let inode = target.to_str()?.strip_prefix("socket:[")?;
            inode.strip_suffix(']')?.parse().ok()
        })
        .collect()
}

/// Lets this process and its children open as many files as it may without a privilege; answers how many.
pub fn raise_open_files() -> Result<u64> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).map_err(SysError::of("getrlimit"))?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).map_err(SysError::of("setrlimit"))?;
    Ok(most)
}

/// Nanoseconds of `CLOCK_BOOTTIME`, the clock of every event and origin.
pub fn boottime_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` outlives the call.
    if unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) } != 0 {
        return 0;
    }
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

fn clock_ticks() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)
        .ok()
        .flatten()
        .and_then(|hz| u64::try_from(hz).ok())
        .filter(|hz| *hz > 0)
        .unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, AsRawFd};
    use std::os::unix::fs::MetadataExt;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn this_process_is_seen_as_it_is() {
        let me = Snapshot::of(std::process::id()).unwrap();
        assert_eq!(me.parent, std::os::unix::process::parent_id());
        assert_eq!(me.exe, std::env::current_exe().unwrap().to_str().unwrap());
        assert!(me.start_ns > 0 && me.start_ns <= boottime_ns());
        assert_eq!(uid(me.tgid), Some(nix::unistd::getuid().as_raw()));
        assert!(all().contains(&me.tgid));
    }

    #[test]
    fn a_pidfd_notices_the_end() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pidfd = pidfd_open(child.id()).unwrap();
        assert!(pidfd_alive(pidfd.as_fd()));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!pidfd_alive(pidfd.as_fd()));
        assert_eq!(Snapshot::of(child.id()), None);
    }

    #[test]
    fn open_sockets_are_found_by_inode() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let inode = fs::metadata(format!("/proc/self/fd/{}", listener.as_raw_fd()))
            .unwrap()
            .ino();
        assert!(socket_inodes(std::process::id()).contains(&inode));
    }
}
