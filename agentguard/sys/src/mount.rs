//! The mount namespace of what `run` starts.

use std::ffi::{CString, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::{Result, SysError};

/// Enters a mount namespace of its own; mounts made outside still arrive, none made inside leaves.
pub fn private_namespace() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(SysError::of("unshare CLONE_NEWNS"))?;
    let none: Option<&Path> = None;
    mount(
        none,
        Path::new("/"),
        none,
        MsFlags::MS_SLAVE | MsFlags::MS_REC,
        none,
    )
    .map_err(SysError::of("mount --make-rslave /"))
}

/// Shows an empty folder, in which nobody can write, where `target` is, in this namespace only. What this namespace does
/// not have (`ip netns exec` mounts a sysfs of its own) needs no hiding.
pub fn hide(target: &Path) -> Result<()> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let hidden = mount(
        Some("none"),
        target,
        Some("tmpfs"),
        flags,
        Some("size=4k,mode=755"),
    );
    match hidden {
        Err(Errno::ENOENT) => Ok(()),
        other => other.map_err(SysError::of("mount tmpfs")),
    }
}

/// Shows `source` where `target` is, in this namespace only.
pub fn bind_over(source: &Path, target: &Path) -> Result<()> {
    let none: Option<&Path> = None;
    mount(Some(source), target, none, MsFlags::MS_BIND, none).map_err(SysError::of("mount --bind"))
}

/// Shows `target` where it is, with all that is mounted below it: what is mounted on is neither moved nor removed, in this
/// namespace.
pub fn hold(target: &Path) -> Result<()> {
    let none: Option<&Path> = None;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(target), target, none, flags, none).map_err(SysError::of("mount --rbind"))
}

/// Makes what is mounted at `target` and below read-only, in this namespace only, and lets no mount arrive there any more.
/// What is not to be seen, because another mount covers it or its folder, needs no such thing.
pub fn freeze(target: &Path) -> Result<()> {
    let path = CString::new(target.as_os_str().as_bytes())
        .map_err(|error| SysError::io("mount_setattr")(error.into()))?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    // SAFETY: `path` ends with a NUL, and `attributes` is as long as is said.
    let failed = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    match Errno::result(failed) {
        // EINVAL: nothing is mounted there.
        Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EINVAL) => Ok(()),
        Err(errno) => Err(SysError::of("mount_setattr")(errno)),
    }
}

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// What of its file system is shown: `/` for all of it.
    pub root: PathBuf,
    pub target: PathBuf,
    /// `proc`, `sysfs`, `ext4`, …
    pub kind: String,
}

/// What this namespace has mounted.
pub fn mounted() -> Result<Vec<Mounted>> {
    let table = std::fs::read("/proc/self/mountinfo").map_err(SysError::io("mountinfo"))?;
    let lines = table.split(|byte| *byte == b'\n');
    Ok(lines.filter_map(read).collect())
}

/// `proc_pid_mountinfo(5)`: optional fields end with a hyphen, and the type follows.
fn read(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|byte| *byte == b' ');
    let root = path(fields.nth(3)?);
    let target = path(fields.next()?);
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    let kind = String::from_utf8_lossy(kind).into_owned();
    Some(Mounted { root, target, kind })
}

/// Blanks, tabs, line feeds and backslashes are written as three octal digits (`mangle_path`).
fn path(written: &[u8]) -> PathBuf {
    let mut plain = Vec::new();
    let mut rest = written;
    while let Some((&first, behind)) = rest.split_first() {
        let octal = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok();
        match behind.get(..3).filter(|_| first == b'\\').and_then(octal) {
            Some(byte) => {
                plain.push(byte);
                rest = &behind[3..];
            }
            None => {
                plain.push(first);
                rest = behind;
            }
        }
    }
    OsString::from_vec(plain).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_table() {
        let line = b"36 35 98:0 /a\\040b /mnt/c\\134d rw,noatime master:1 - ext3 /dev/root rw";
        let found = read(line).unwrap();
        assert_eq!(found.root, Path::new("/a b"));
        assert_eq!(found.target, Path::new("/mnt/c\\d"));
        assert_eq!(found.kind, "ext3");
        assert_eq!(read(b""), None);
        let all = mounted().unwrap();
        let is_proc = |it: &Mounted| it.target == Path::new("/proc") && it.kind == "proc";
        assert!(all.iter().any(is_proc), "{all:?}");
    }
}
