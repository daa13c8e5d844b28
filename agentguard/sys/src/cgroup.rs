//! cgroup v2 paths by the id that events carry.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use super::{Result, SysError};

/// Opens cgroups by id: a kernfs file handle holds nothing else (`kernfs_encode_fh`).
pub struct CgroupNames {
    root: File,
    prefix: String,
}

impl CgroupNames {
    /// `root`: where the cgroup v2 hierarchy is mounted.
    pub fn open(root: &Path) -> Result<Self> {
        Ok(Self {
            root: File::open(root).map_err(SysError::io("open"))?,
            prefix: root.to_string_lossy().trim_end_matches('/').to_owned(),
        })
    }

    /// The path below the root, `/` for the root itself; `None` once the cgroup is gone.
    pub fn path(&self, id: u64) -> Option<String> {
        let fd = open_by_id(self.root.as_fd().as_raw_fd(), id).ok()?;
        let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()?;
        let below = path.to_str()?.strip_prefix(&self.prefix)?;
        Some(if below.is_empty() { "/" } else { below }.to_owned())
    }
}

/// `open_by_handle_at(2)`; needs CAP_DAC_READ_SEARCH.
fn open_by_id(mount: i32, id: u64) -> Result<OwnedFd> {
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        id: [u8; 8],
    }
    /// `FILEID_KERNFS` in `include/linux/exportfs.h`.
    const FILEID_KERNFS: i32 = 0xfe;
    let mut handle = Handle {
        bytes: 8,
        kind: FILEID_KERNFS,
        id: id.to_ne_bytes(),
    };
    // SAFETY: laid out as `struct file_handle` with eight bytes of `f_handle`, as `bytes` says.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount,
            &raw mut handle,
            libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC,
        )
    };
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(SysError::last("open_by_handle_at"));
    }
    // SAFETY: the kernel has just installed this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
