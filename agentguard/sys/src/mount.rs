//! The mount namespace of what `run` starts.

use std::path::Path;

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
        Err(nix::errno::Errno::ENOENT) => Ok(()),
        other => other.map_err(SysError::of("mount tmpfs")),
    }
}

/// Shows `source` where `target` is, in this namespace only.
pub fn bind_over(source: &Path, target: &Path) -> Result<()> {
    let none: Option<&Path> = None;
    mount(Some(source), target, none, MsFlags::MS_BIND, none).map_err(SysError::of("mount --bind"))
}
