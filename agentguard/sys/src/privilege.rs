//! Giving privileges up, for the forwarder and for what `run` starts. Every function is async-signal-safe but where it
//! says otherwise: they are called between `fork` and `exec`.

use std::os::fd::RawFd;

use super::{Result, SysError};

/// `PR_SET_NO_NEW_PRIVS`: no exec below gains privileges by set-user-id bits or file capabilities.
pub fn no_new_privs() -> Result<()> {
    // SAFETY: takes integers.
    check("prctl PR_SET_NO_NEW_PRIVS", unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    })
}

/// `PR_SET_DUMPABLE`: no core dumps, and no ptrace by processes of the same user.
pub fn forbid_dumps() -> Result<()> {
    // SAFETY: takes integers.
    check("prctl PR_SET_DUMPABLE", unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0)
    })
}

/// The version of Landlock's ABI that this kernel enforces; 0 if none.
pub fn landlock_abi() -> u32 {
    /// `LANDLOCK_CREATE_RULESET_VERSION` (`linux/landlock.h`).
    const VERSION: u32 = 1;
    let none = std::ptr::null::<u8>();
    // SAFETY: with this flag the kernel reads no attributes.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0usize, VERSION) };
    u32::try_from(abi).unwrap_or(0)
}

/// Empties the supplementary groups, then sets gid and uid (real, effective, saved), in the only order that works.
pub fn become_user(uid: u32, gid: u32, groups: &[u32]) -> Result<()> {
    // SAFETY: `groups` has `groups.len()` entries.
    check("setgroups", unsafe {
        libc::setgroups(groups.len(), groups.as_ptr())
    })?;
    // SAFETY: takes integers.
    check("setresgid", unsafe { libc::setresgid(gid, gid, gid) })?;
    // SAFETY: takes integers.
    check("setresuid", unsafe { libc::setresuid(uid, uid, uid) })
}

/// Empties the bounding set, where the process may, so that an exec as root regains nothing.
pub fn drop_bounding_set() -> Result<()> {
    for cap in 0..=63 {
        // SAFETY: takes integers.
        let rc = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, cap, 0, 0, 0) };
        if rc != 0 {
            let error = SysError::last("prctl PR_CAPBSET_DROP");
            return match error.source.raw_os_error() {
                // Past the last capability this kernel knows.
                Some(libc::EINVAL) => Ok(()),
                // Without CAP_SETPCAP there is nothing to give up: no_new_privs keeps it so.
                Some(libc::EPERM) => Ok(()),
                _ => Err(error),
            };
        }
    }
    Ok(())
}

/// Empties the ambient, permitted, effective and inheritable sets.
pub fn drop_capabilities() -> Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    /// `_LINUX_CAPABILITY_VERSION_3`.
    const VERSION: u32 = 0x2008_0522;
    // SAFETY: takes integers.
    let rc = unsafe {
        libc::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_CLEAR_ALL,
            0,
            0,
            0,
        )
    };
    check("prctl PR_CAP_AMBIENT", rc)?;
    let header = Header {
        version: VERSION,
        pid: 0,
    };
    let none = [0u32; 6];
    // SAFETY: version 3 reads two structs of three u32 each.
    let rc = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    check("capset", i32::try_from(rc).unwrap_or(-1))
}

/// `close_range(2)` (Linux 5.11 with the flag): every descriptor from `first` on ends with the next exec.
pub fn close_on_exec_from(first: RawFd) -> Result<()> {
    // SAFETY: takes integers.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    check("close_range", i32::try_from(rc).unwrap_or(-1))
}

/// `dup2(2)`: `to` is then open over exec.
pub fn dup_to(from: RawFd, to: RawFd) -> Result<()> {
    // SAFETY: takes integers.
    check("dup2", unsafe { libc::dup2(from, to) })
}

fn check(call: &'static str, rc: libc::c_int) -> Result<()> {
    if rc < 0 {
        return Err(SysError::last(call));
    }
    Ok(())
}
