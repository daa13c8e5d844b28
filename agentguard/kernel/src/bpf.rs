//! `bpf(2)`, one function per command. Every error names the command.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya_obj::generated::{bpf_insn, bpf_prog_info};

use super::KernelError;

const MAP_CREATE: BpfCommand = BpfCommand(0, "BPF_MAP_CREATE");
const MAP_LOOKUP_ELEM: BpfCommand = BpfCommand(1, "BPF_MAP_LOOKUP_ELEM");
const MAP_UPDATE_ELEM: BpfCommand = BpfCommand(2, "BPF_MAP_UPDATE_ELEM");
const MAP_DELETE_ELEM: BpfCommand = BpfCommand(3, "BPF_MAP_DELETE_ELEM");
const MAP_GET_NEXT_KEY: BpfCommand = BpfCommand(4, "BPF_MAP_GET_NEXT_KEY");
const PROG_LOAD: BpfCommand = BpfCommand(5, "BPF_PROG_LOAD");
const OBJ_PIN: BpfCommand = BpfCommand(6, "BPF_OBJ_PIN");
const OBJ_GET: BpfCommand = BpfCommand(7, "BPF_OBJ_GET");
const OBJ_GET_INFO_BY_FD: BpfCommand = BpfCommand(15, "BPF_OBJ_GET_INFO_BY_FD");
const RAW_TRACEPOINT_OPEN: BpfCommand = BpfCommand(17, "BPF_RAW_TRACEPOINT_OPEN");
const LINK_CREATE: BpfCommand = BpfCommand(28, "BPF_LINK_CREATE");
const LINK_DETACH: BpfCommand = BpfCommand(34, "BPF_LINK_DETACH");
const LINK_UPDATE: BpfCommand = BpfCommand(29, "BPF_LINK_UPDATE");

/// `enum bpf_attach_type`.
pub(super) const LSM_MAC: u32 = 27;

/// The program may sleep (`BPF_PROG_LOAD`).
pub(super) const F_SLEEPABLE: u32 = 1 << 4;
/// Read-only descriptor (`BPF_OBJ_GET`).
pub(super) const F_RDONLY: u32 = 1 << 3;

#[derive(Clone, Copy)]
struct BpfCommand(libc::c_int, &'static str);

impl BpfCommand {
    fn failed(self, source: io::Error) -> KernelError {
        KernelError::Call {
            call: self.1,
            source,
        }
    }

    /// Runs the command with `attr`, the prefix of `union bpf_attr` that it reads.
    fn run<T: Attr>(self, attr: &mut T) -> io::Result<libc::c_int> {
        // SAFETY: the kernel reads and writes at most `size_of::<T>()` bytes of `attr`, and what its pointers name, which
        // each caller keeps alive and sized for this command.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                self.0,
                std::ptr::from_mut(attr),
                size_of::<T>(),
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(result as libc::c_int)
    }

    /// A command that answers with a new descriptor (the kernel sets close-on-exec).
    fn open<T: Attr>(self, attr: &mut T) -> Result<OwnedFd, KernelError> {
        let fd = self.run(attr).map_err(|error| self.failed(error))?;
        // SAFETY: the kernel has just given it to us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// A prefix of `union bpf_attr`: integers only, no implicit padding.
trait Attr {}

macro_rules! attr {
    ($name:ident { $($field:ident: $t:ty),* $(,)? }) => {
        #[repr(C)]
        #[derive(Default)]
        struct $name { $($field: $t),* }
        impl Attr for $name {}
    };
}

attr!(MapAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
});
attr!(ElemAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
});
attr!(ProgAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    debug_info: [u64; 4],
    line_info_cnt: u32,
    attach_btf_id: u32,
});
attr!(ObjAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
});
attr!(InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
});
attr!(RawTracepointAttr {
    name: u64,
    prog_fd: u32,
    pad: u32,
});
attr!(LinkCreateAttr {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
});
attr!(LinkDetachAttr { link_fd: u32 });
attr!(LinkUpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
});

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

fn path_string(path: &Path) -> Result<CString, KernelError> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| KernelError::Unsupported(format!("{} has a NUL in it", path.display())))
}

/// A hash map, to be put into a map of maps.
pub(super) fn create_hash(
    key_size: u32,
    value_size: u32,
    max_entries: u32,
) -> Result<OwnedFd, KernelError> {
    const HASH: u32 = 1;
    MAP_CREATE.open(&mut MapAttr {
        map_type: HASH,
        key_size,
        value_size,
        max_entries,
        ..MapAttr::default()
    })
}

/// An LPM trie, to be put into a map of maps.
pub(super) fn create_trie(
    key_size: u32,
    value_size: u32,
    max_entries: u32,
) -> Result<OwnedFd, KernelError> {
    const LPM_TRIE: u32 = 11;
    const F_NO_PREALLOC: u32 = 1;
    MAP_CREATE.open(&mut MapAttr {
        map_type: LPM_TRIE,
        key_size,
        value_size,
        max_entries,
        map_flags: F_NO_PREALLOC,
        inner_map_fd: 0,
    })
}

/// The addresses must be those of buffers of the map's key and value size.
fn elem(
    command: BpfCommand,
    map: BorrowedFd<'_>,
    key: u64,
    value: u64,
) -> Result<bool, KernelError> {
    let result = command.run(&mut ElemAttr {
        map_fd: raw(map),
        pad: 0,
        key,
        value,
        flags: 0,
    });
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(command.failed(error)),
    }
}

fn address<T>(value: &T) -> u64 {
    std::ptr::from_ref(value).addr() as u64
}

fn address_mut<T>(value: &mut T) -> u64 {
    std::ptr::from_mut(value).expose_provenance() as u64
}

/// `K` and `V` must have the map's key and value size.
pub(super) fn lookup<K, V: Default + aya::Pod>(
    map: BorrowedFd<'_>,
    key: &K,
) -> Result<Option<V>, KernelError> {
    let mut value = V::default();
    let found = elem(MAP_LOOKUP_ELEM, map, address(key), address_mut(&mut value))?;
    Ok(found.then_some(value))
}

/// As [`lookup`], for a per-CPU map: `values` has one slot for each possible CPU.
pub(super) fn lookup_per_cpu(
    map: BorrowedFd<'_>,
    key: u32,
    values: &mut [u64],
) -> Result<(), KernelError> {
    let to = values.as_mut_ptr().expose_provenance() as u64;
    elem(MAP_LOOKUP_ELEM, map, address(&key), to).map(|_| ())
}

pub(super) fn update<K, V>(map: BorrowedFd<'_>, key: &K, value: &V) -> Result<(), KernelError> {
    if elem(MAP_UPDATE_ELEM, map, address(key), address(value))? {
        return Ok(());
    }
    Err(MAP_UPDATE_ELEM.failed(io::Error::from_raw_os_error(libc::ENOENT)))
}

/// Whether there was one.
pub(super) fn delete<K>(map: BorrowedFd<'_>, key: &K) -> Result<bool, KernelError> {
    elem(MAP_DELETE_ELEM, map, address(key), 0)
}

/// The key after `key`, or the first.
pub(super) fn next_key<K: Default + aya::Pod>(
    map: BorrowedFd<'_>,
    key: Option<&K>,
) -> Result<Option<K>, KernelError> {
    let mut next = K::default();
    let from = key.map_or(0, address);
    let found = elem(MAP_GET_NEXT_KEY, map, from, address_mut(&mut next))?;
    Ok(found.then_some(next))
}

/// A `BPF_PROG_TYPE_CGROUP_SOCK_ADDR` program. The verifier's log goes to the end of `log`.
pub(super) fn load_sock_addr(
    name: &str,
    instructions: &[bpf_insn],
    attach_type: u32,
    log: &mut [u8],
) -> Result<OwnedFd, io::Error> {
    const CGROUP_SOCK_ADDR: u32 = 18;
    let mut prog_name = [0; 16];
    for (to, from) in prog_name.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    let fd = PROG_LOAD.run(&mut ProgAttr {
        prog_type: CGROUP_SOCK_ADDR,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr().addr() as u64,
        license: c"Dual MIT/GPL".as_ptr().addr() as u64,
        log_level: u32::from(!log.is_empty()),
        log_size: log.len() as u32,
        log_buf: match log {
            [] => 0,
            _ => log.as_mut_ptr().expose_provenance() as u64,
        },
        prog_name,
        expected_attach_type: attach_type,
        ..ProgAttr::default()
    })?;
    // SAFETY: the kernel has just given it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> Result<(), KernelError> {
    let path = path_string(path)?;
    OBJ_PIN
        .run(&mut ObjAttr {
            pathname: path.as_ptr().addr() as u64,
            bpf_fd: raw(object),
            file_flags: 0,
        })
        .map(|_| ())
        .map_err(|error| OBJ_PIN.failed(error))
}

/// `None` if nothing is pinned there.
pub(super) fn open_pin(path: &Path, flags: u32) -> Result<Option<OwnedFd>, KernelError> {
    let path = path_string(path)?;
    let opened = OBJ_GET.open(&mut ObjAttr {
        pathname: path.as_ptr().addr() as u64,
        bpf_fd: 0,
        file_flags: flags,
    });
    match opened {
        Err(KernelError::Call { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => {
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// The start of `struct bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct MapInfo {
    pub(super) map_type: u32,
    pub(super) id: u32,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    pub(super) max_entries: u32,
    pub(super) map_flags: u32,
}

/// The start of `struct bpf_link_info`, as a cgroup link has it. An LSM link has its attach type where the lower half of
/// `cgroup_id` is.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct LinkInfo {
    pub(super) link_type: u32,
    pub(super) id: u32,
    pub(super) prog_id: u32,
    pad: u32,
    /// 0 once the cgroup is gone.
    pub(super) cgroup_id: u64,
    pub(super) attach_type: u32,
    pad2: u32,
}

fn info<T: Default + Copy>(object: BorrowedFd<'_>) -> Result<T, KernelError> {
    let mut info = T::default();
    OBJ_GET_INFO_BY_FD
        .run(&mut InfoAttr {
            bpf_fd: raw(object),
            info_len: size_of::<T>() as u32,
            info: address_mut(&mut info),
        })
        .map_err(|error| OBJ_GET_INFO_BY_FD.failed(error))?;
    Ok(info)
}

/// How often the kernel has left the program out because it had not ended on the same CPU.
pub(super) fn recursion_misses(program: BorrowedFd<'_>) -> Result<u64, KernelError> {
    #[repr(transparent)]
    #[derive(Clone, Copy)]
    struct ProgInfo(bpf_prog_info);
    impl Default for ProgInfo {
        fn default() -> Self {
            // SAFETY: integers only.
            Self(unsafe { std::mem::zeroed() })
        }
    }
    info(program).map(|ProgInfo(info)| info.recursion_misses)
}

pub(super) fn map_info(map: BorrowedFd<'_>) -> Result<MapInfo, KernelError> {
    info(map)
}

pub(super) fn link_info(link: BorrowedFd<'_>) -> Result<LinkInfo, KernelError> {
    info(link)
}

/// Attaches a program to a cgroup, beside others that may be there.
pub(super) fn attach_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> Result<OwnedFd, KernelError> {
    LINK_CREATE.open(&mut LinkCreateAttr {
        prog_fd: raw(program),
        target_fd: raw(cgroup),
        attach_type,
        flags: 0,
    })
}

/// Puts `program` in the place of the link's, without a moment between.
pub(super) fn replace_program(
    link: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
) -> Result<(), KernelError> {
    LINK_UPDATE
        .run(&mut LinkUpdateAttr {
            link_fd: raw(link),
            new_prog_fd: raw(program),
            flags: 0,
            old_prog_fd: 0,
        })
        .map(|_| ())
        .map_err(|error| LINK_UPDATE.failed(error))
}

/// Takes a cgroup link's program away now. Without, the last reference to go does, some time after its pin is unlinked.
pub(super) fn detach(link: BorrowedFd<'_>) -> Result<(), KernelError> {
    LINK_DETACH
        .run(&mut LinkDetachAttr { link_fd: raw(link) })
        .map(|_| ())
        .map_err(|error| LINK_DETACH.failed(error))
}

/// Loads a program of the given instructions for the LSM hook whose `bpf_lsm_` function has this id in the kernel's BTF.
pub(super) fn load_lsm(
    instructions: &[u64],
    hook: u32,
    flags: u32,
) -> Result<OwnedFd, KernelError> {
    const LSM: u32 = 29;
    PROG_LOAD.open(&mut ProgAttr {
        prog_type: LSM,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr().addr() as u64,
        license: c"Dual MIT/GPL".as_ptr().addr() as u64,
        prog_flags: flags,
        expected_attach_type: LSM_MAC,
        attach_btf_id: hook,
        ..ProgAttr::default()
    })
}

/// Attaches an LSM program to the hook that it was loaded for, before those that are there (`bpf_trampoline_link_prog`).
pub(super) fn attach_lsm(program: BorrowedFd<'_>) -> Result<OwnedFd, KernelError> {
    RAW_TRACEPOINT_OPEN.open(&mut RawTracepointAttr {
        name: 0,
        prog_fd: raw(program),
        pad: 0,
    })
}

pub(super) fn attach_raw_tracepoint(
    program: BorrowedFd<'_>,
    name: &str,
) -> Result<OwnedFd, KernelError> {
    let name = path_string(Path::new(name))?;
    RAW_TRACEPOINT_OPEN.open(&mut RawTracepointAttr {
        name: name.as_ptr().addr() as u64,
        prog_fd: raw(program),
        pad: 0,
    })
}
