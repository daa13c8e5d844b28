//! Network namespaces: which ones a process is in, and work done inside another.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

use super::{Result, SysError};

/// A namespace's inode: unique among those that live, given again when one is gone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Id(u64);

/// Keeps its namespace alive.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    id: Id,
}

impl Namespace {
    /// The one that a thread is in.
    pub fn of(tgid: u32, tid: u32) -> Result<Self> {
        Self::open(format!("/proc/{tgid}/task/{tid}/ns/net").as_ref())
    }

    /// The calling thread's.
    pub fn current() -> Result<Self> {
        Self::open("/proc/thread-self/ns/net".as_ref())
    }

    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(SysError::io("open ns/net"))?;
        let id = file.metadata().map_err(SysError::io("fstat ns/net"))?.ino();
        Ok(Self { file, id: Id(id) })
    }

    pub fn id(&self) -> Id {
        self.id
    }

    /// Does `work` inside, on a thread that ends with it: no other ever sees the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let inside = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(SysError::of("setns"))?;
            Ok(work())
        };
        std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name("netns".into())
                .spawn_scoped(scope, inside)
                .map_err(SysError::io("clone"))?
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// The namespace of the process's leader; `None` if that has ended.
pub fn id_of(tgid: u32) -> Option<Id> {
    id_at(format!("/proc/{tgid}/ns/net").as_ref())
}

/// Every namespace that a thread of the process is in, with one of those threads.
pub fn ids_of(tgid: u32) -> BTreeMap<Id, u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{tgid}/task")) else {
        return BTreeMap::new();
    };
    threads
        .filter_map(|thread| {
            let thread = thread.ok()?;
            let id = id_at(&thread.path().join("ns/net"))?;
            Some((id, thread.file_name().to_str()?.parse().ok()?))
        })
        .collect()
}

/// `net:[INODE]` (`ns_get_name`).
fn id_at(path: &Path) -> Option<Id> {
    let name = fs::read_link(path).ok()?;
    let inode = name.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?;
    inode.parse().ok().map(Id)
}

/// Sets the loopback device of the calling thread's namespace up, if it is down: a new namespace has it down, and no way to
/// 127.0.0.1 or ::1 with it.
pub fn bring_loopback_up() -> Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").map_err(SysError::io("bind"))?;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: 0 },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    interface(
        &socket,
        libc::SIOCGIFFLAGS,
        &mut request,
        "ioctl SIOCGIFFLAGS",
    )?;
    // SAFETY: the call has just filled in the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let up = libc::IFF_UP as libc::c_short;
    if flags & up != 0 {
        return Ok(());
    }
    request.ifr_ifru.ifru_flags = flags | up;
    interface(
        &socket,
        libc::SIOCSIFFLAGS,
        &mut request,
        "ioctl SIOCSIFFLAGS",
    )
}

fn interface(
    socket: impl AsFd,
    command: libc::Ioctl,
    request: &mut libc::ifreq,
    call: &'static str,
) -> Result<()> {
    // SAFETY: `request` outlives the call, and both commands take a `struct ifreq`.
    let rc = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), command, request) };
    if rc != 0 {
        return Err(SysError::last(call));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use nix::sched::unshare;

    use super::*;
    use crate::socket::netns_cookie;

    #[test]
    fn a_thread_in_another_namespace_is_found_and_entered() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let me = std::process::id();
        let home = Namespace::current().unwrap();
        assert_eq!(id_of(me), Some(home.id()));
        let (told, tell) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let apart = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            told.send(Namespace::current().unwrap().id()).unwrap();
            let _ = ended.recv();
        });
        let id = tell.recv().unwrap();
        let tid = ids_of(me)[&id];
        let inside = Namespace::of(me, tid).unwrap();
        assert_eq!(inside.id(), id);
        let cookie = inside
            .run(|| {
                let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.connect("127.0.0.1:9").unwrap_err();
                bring_loopback_up().unwrap();
                bring_loopback_up().unwrap();
                socket.connect("127.0.0.1:9").unwrap();
                netns_cookie().unwrap()
            })
            .unwrap();
        assert_ne!(cookie, netns_cookie().unwrap());
        assert_eq!(Namespace::current().unwrap().id(), home.id());
        drop(end);
        apart.join().unwrap();
    }
}
