//! Where things are pinned: `<pins>/v<abi version>/{maps,links}/NAME` on a bpffs, which is mounted if there is none.

use std::fs::{self, DirBuilder, File};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use agentguard_common::abi::{ConfigSlot, VERSION};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags};

use super::maps::Map;
use super::{KernelError, bpf};

const BPFFS: &str = "/sys/fs/bpf";
/// A folder in the root of a bpffs that was mounted here: the last one out unmounts it.
const MOUNTED_MARK: &str = "agentguard_mounted_this";

pub(super) struct Folders {
    pub(super) maps: PathBuf,
    pub(super) links: PathBuf,
}

impl Folders {
    pub(super) fn below(pins: &Path) -> Self {
        let version = pins.join(format!("v{VERSION}"));
        Self {
            maps: version.join("maps"),
            links: version.join("links"),
        }
    }

    /// Makes them, and the bpffs below them, and takes the lock that keeps a second daemon out. It is let go with the
    /// descriptor, at the latest by the process's end.
    pub(super) fn create(pins: &Path) -> Result<(Self, Flock<File>), KernelError> {
        let _mounts = mounts_lock()?;
        ensure_bpffs(pins)?;
        let folders = Self::below(pins);
        for folder in [&folders.maps, &folders.links] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(|error| failed("cannot create", folder, &error))?;
        }
        refuse_other_versions(pins)?;
        let lock = folders.lock(pins)?;
        Ok((folders, lock))
    }

    fn lock(&self, pins: &Path) -> Result<Flock<File>, KernelError> {
        let folder = File::open(pins).map_err(|error| failed("cannot open", pins, &error))?;
        Flock::lock(folder, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
            if error == nix::errno::Errno::EWOULDBLOCK {
                KernelError::Held {
                    pins: pins.to_owned(),
                    tgid: self.holder(),
                }
            } else {
                failed("cannot lock", pins, &error.into())
            }
        })
    }

    /// The daemon that has loaded what is pinned; 0 if none has, or not yet.
    fn holder(&self) -> u32 {
        let config = Map::<u32, u64>::open(&self.maps, "CONFIG", bpf::F_RDONLY);
        let daemon = config.and_then(|config| config.lookup(&(ConfigSlot::Daemon as u32)));
        daemon.ok().flatten().unwrap_or(0) as u32
    }
}

fn failed(what: &str, path: &Path, error: &std::io::Error) -> KernelError {
    KernelError::Pins(format!("{what} {}: {error}", path.display()))
}

/// Serialises mounting and unmounting between processes that share a bpffs.
fn mounts_lock() -> Result<Flock<File>, KernelError> {
    let parent = Path::new("/sys/fs");
    let folder = File::open(parent).map_err(|error| failed("cannot open", parent, &error))?;
    Flock::lock(folder, FlockArg::LockExclusive)
        .map_err(|(_, error)| failed("cannot lock", parent, &error.into()))
}

/// Programs of another version would judge beside these, by maps that nobody fills.
fn refuse_other_versions(pins: &Path) -> Result<(), KernelError> {
    let ours = format!("v{VERSION}");
    for entry in fs::read_dir(pins).map_err(|error| failed("cannot read", pins, &error))? {
        let name = entry
            .map_err(|error| failed("cannot read", pins, &error))?
            .file_name();
        if name.as_bytes().starts_with(b"v") && name != ours.as_str() {
            return Err(KernelError::Pins(format!(
                "{} holds the programs of another version; `agentguard unload --yes` removes them and opens its agents",
                pins.join(name).display()
            )));
        }
    }
    Ok(())
}

/// Makes sure that a bpffs is mounted at or above `pins`.
///
/// # Errors
/// [`KernelError::Pins`] if it cannot be mounted.
pub fn ensure_bpffs(pins: &Path) -> Result<(), KernelError> {
    if bpffs_of(pins).is_some() {
        return Ok(());
    }
    let at = if pins.starts_with(BPFFS) {
        Path::new(BPFFS)
    } else {
        pins
    };
    fs::create_dir_all(at).map_err(|error| failed("cannot create", at, &error))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    nix::mount::mount(Some("bpf"), at, Some("bpf"), flags, Some("mode=700"))
        .map_err(|error| failed("cannot mount a bpffs at", at, &error.into()))?;
    fs::create_dir(at.join(MOUNTED_MARK)).map_err(|error| failed("cannot write to", at, &error))
}

/// Mount point of the bpffs that `path` is or would be on.
fn bpffs_of(path: &Path) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let mount_point = PathBuf::from(unescape(fields.next()?));
            Some((mount_point, fields.next()?))
        })
        .filter(|(mount_point, _)| path.starts_with(mount_point))
        // The last of the longest: a later mount covers an earlier one.
        .max_by_key(|(mount_point, _)| mount_point.as_os_str().len())
        .filter(|(_, fstype)| *fstype == "bpf")
        .map(|(mount_point, _)| mount_point)
}

/// `\040` and the like, as `/proc/mounts` writes blanks (`show_vfsmnt`).
fn unescape(field: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(field.to_owned(), |text, (code, plain)| {
            text.replace(code, plain)
        })
}

/// Where the cgroup v2 hierarchy is mounted, from `/proc/mounts`.
///
/// # Errors
/// [`KernelError::Unsupported`] if it is not.
pub fn cgroup_root() -> Result<PathBuf, KernelError> {
    let mounts = fs::read_to_string("/proc/mounts")
        .map_err(|error| KernelError::Unsupported(format!("cannot read /proc/mounts: {error}")))?;
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            Some((fields.next()?, fields.next()?))
        })
        .find(|(_, fstype)| *fstype == "cgroup2")
        .map(|(mount_point, _)| PathBuf::from(unescape(mount_point)))
        .ok_or_else(|| {
            KernelError::Unsupported(
                "no cgroup v2 hierarchy is mounted; mount one with `mount -t cgroup2 none /sys/fs/cgroup/unified`"
                    .into(),
            )
        })
}

/// Pins `object` at `path`, in the place of what is pinned there. bpffs allows no dots in names.
pub(super) fn replace(object: &OwnedFd, path: &Path) -> Result<(), KernelError> {
    use std::os::fd::AsFd as _;
    let mut new = path.as_os_str().to_owned();
    new.push("_new");
    let new = PathBuf::from(new);
    if new.exists() {
        fs::remove_file(&new).map_err(|error| failed("cannot remove", &new, &error))?;
    }
    bpf::pin(object.as_fd(), &new)?;
    fs::rename(&new, path).map_err(|error| failed("cannot rename", &new, &error))
}

/// Takes away everything below `pins`, and the bpffs if it was mounted for it and nobody else uses it.
pub(super) fn remove_all(pins: &Path) -> Result<(), KernelError> {
    let _mounts = mounts_lock()?;
    let mount_point = bpffs_of(pins);
    if mount_point.as_deref() == Some(pins) {
        for entry in fs::read_dir(pins).map_err(|error| failed("cannot read", pins, &error))? {
            let path = entry
                .map_err(|error| failed("cannot read", pins, &error))?
                .path();
            if !path.ends_with(MOUNTED_MARK) {
                fs::remove_dir_all(&path)
                    .map_err(|error| failed("cannot remove", &path, &error))?;
            }
        }
    } else if pins.exists() {
        fs::remove_dir_all(pins).map_err(|error| failed("cannot remove", pins, &error))?;
    }
    let Some(mount_point) = mount_point else {
        return Ok(());
    };
    unmount_if_last(&mount_point)
}

fn unmount_if_last(mount_point: &Path) -> Result<(), KernelError> {
    let entries: Vec<_> = fs::read_dir(mount_point)
        .map_err(|error| failed("cannot read", mount_point, &error))?
        .filter_map(Result::ok)
        .map(|entry| entry.file_name())
        // The kernel's own, made with every bpffs (CONFIG_BPF_PRELOAD).
        .filter(|name| name != "maps.debug" && name != "progs.debug")
        .collect();
    if entries != [MOUNTED_MARK] {
        return Ok(());
    }
    match nix::mount::umount2(mount_point, MntFlags::empty()) {
        // Someone has a folder of it open still: a daemon that unloads itself, say. An empty bpffs holds nothing.
        Ok(()) | Err(nix::errno::Errno::EBUSY) => Ok(()),
        Err(error) => Err(failed("cannot unmount", mount_point, &error.into())),
    }
}
