//! From the compiled object to attached programs. What an earlier daemon has pinned is taken over: maps with all they hold,
//! cgroup programs replaced in their links, tracepoint and LSM programs attached before the old ones go.

use std::fs::{self, File};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use agentguard_common::abi::{AgentId, ConfigSlot};
use agentguard_common::layout::Layout;
use agentguard_sys::memory;
use aya::programs::{Program, ProgramError};
use aya::{Btf, Ebpf, EbpfLoader, GlobalData};

use super::maps::{Maps, SPECS};
use super::pin::{self, Folders};
use super::{Hook, KernelError, bpf, btf, probe, unix};

/// The compiled programs and maps, as they are loaded.
pub static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/agentguard-ebpf"));

/// Where a program is attached.
enum AttachPoint {
    RawTracepoint,
    /// As [`AttachPoint::RawTracepoint`], behind the program of the same name, for what the kernel may keep from that.
    Backstop,
    /// `enum bpf_attach_type`, at the root of the cgroup v2 hierarchy.
    Cgroup(u32),
    /// Where the kernel has BPF LSM; the program's name is `lsm_` and the hook's.
    Lsm,
    /// As [`AttachPoint::Lsm`], on `bprm_check_security`, where digests of files can be known.
    Digest,
}

/// What not every kernel can have.
#[derive(Clone, Copy)]
pub(super) struct OfferedHelpers {
    /// The kernel may leave a tracepoint's program out.
    pub(super) backstops: bool,
    pub(super) lsm: bool,
    pub(super) digests: bool,
}

/// Every program by its name in the object, in the order of attaching: sockets are marked before anything is judged, and
/// processes are enrolled last.
const PROGRAMS: [(&str, AttachPoint); 55] = [
    ("sock_create", AttachPoint::Cgroup(2)),
    ("sock_release", AttachPoint::Cgroup(34)),
    ("connected", AttachPoint::Cgroup(3)),
    ("egress", AttachPoint::Cgroup(1)),
    ("connect4", AttachPoint::Cgroup(10)),
    ("connect6", AttachPoint::Cgroup(11)),
    ("sendmsg4", AttachPoint::Cgroup(14)),
    ("sendmsg6", AttachPoint::Cgroup(15)),
    ("recvmsg4", AttachPoint::Cgroup(19)),
    ("recvmsg6", AttachPoint::Cgroup(20)),
    ("getpeername4", AttachPoint::Cgroup(29)),
    ("getpeername6", AttachPoint::Cgroup(30)),
    ("bind4", AttachPoint::Cgroup(8)),
    ("bind6", AttachPoint::Cgroup(9)),
    ("device", AttachPoint::Cgroup(6)),
    ("sysctl", AttachPoint::Cgroup(18)),
    ("exit", AttachPoint::RawTracepoint),
    ("exit_backstop", AttachPoint::Backstop),
    ("fork", AttachPoint::RawTracepoint),
    ("cgroup_rmdir", AttachPoint::RawTracepoint),
    ("cgroup_mkdir", AttachPoint::RawTracepoint),
    ("cgroup_attach_task", AttachPoint::RawTracepoint),
    ("lsm_bprm_check_security", AttachPoint::Lsm),
    // Behind the one that judges, to run before it.
    ("lsm_digest", AttachPoint::Digest),
    ("lsm_unix_stream_connect", AttachPoint::Lsm),
    ("lsm_unix_may_send", AttachPoint::Lsm),
    ("lsm_socket_create", AttachPoint::Lsm),
    ("lsm_socket_listen", AttachPoint::Lsm),
    ("lsm_bpf", AttachPoint::Lsm),
    ("lsm_ptrace_access_check", AttachPoint::Lsm),
    ("lsm_task_kill", AttachPoint::Lsm),
    ("lsm_task_setrlimit", AttachPoint::Lsm),
    ("lsm_task_setnice", AttachPoint::Lsm),
    ("lsm_task_setioprio", AttachPoint::Lsm),
    ("lsm_task_setscheduler", AttachPoint::Lsm),
    ("lsm_file_ioctl", AttachPoint::Lsm),
    ("lsm_file_receive", AttachPoint::Lsm),
    ("lsm_socket_sendmsg", AttachPoint::Lsm),
    ("lsm_inode_unlink", AttachPoint::Lsm),
    ("lsm_inode_rmdir", AttachPoint::Lsm),
    ("lsm_inode_rename", AttachPoint::Lsm),
    ("lsm_sb_umount", AttachPoint::Lsm),
    ("lsm_file_open", AttachPoint::Lsm),
    ("lsm_inode_create", AttachPoint::Lsm),
    ("lsm_inode_symlink", AttachPoint::Lsm),
    ("lsm_inode_mkdir", AttachPoint::Lsm),
    ("lsm_inode_mknod", AttachPoint::Lsm),
    ("lsm_inode_link", AttachPoint::Lsm),
    ("lsm_inode_setattr", AttachPoint::Lsm),
    ("lsm_inode_setxattr", AttachPoint::Lsm),
    ("lsm_inode_removexattr", AttachPoint::Lsm),
    ("lsm_sb_mount", AttachPoint::Lsm),
    ("lsm_move_mount", AttachPoint::Lsm),
    ("exec", AttachPoint::RawTracepoint),
    ("exec_backstop", AttachPoint::Backstop),
];

/// The programs for a kernel that offers this.
fn programs(offered: OfferedHelpers) -> impl Iterator<Item = (&'static str, &'static AttachPoint)> {
    PROGRAMS
        .iter()
        .map(|(name, place)| (*name, place))
        .filter(move |(_, place)| match place {
            AttachPoint::Backstop => offered.backstops,
            AttachPoint::Lsm => offered.lsm,
            AttachPoint::Digest => offered.digests,
            AttachPoint::RawTracepoint | AttachPoint::Cgroup(_) => true,
        })
}

fn lsm_hook(program: &str) -> &str {
    match program {
        "lsm_digest" => "bprm_check_security",
        other => other.strip_prefix("lsm_").unwrap_or(other),
    }
}

/// Names of the programs that this build has, whether this kernel takes them or not.
pub(super) fn all() -> Vec<&'static str> {
    PROGRAMS
        .iter()
        .map(|(name, _)| *name)
        .chain(unix::names())
        .collect()
}

fn tracepoint(program: &str) -> &str {
    match program {
        "fork" => "sched_wakeup_new",
        "exec" | "exec_backstop" => "sched_process_exec",
        "exit" | "exit_backstop" => "sched_process_exit",
        other => other,
    }
}

/// What [`load`] has made of the kernel.
pub(super) struct LoadedObject {
    pub(super) maps: Maps,
    pub(super) offered: OfferedHelpers,
    /// The kernel has the hooks of Unix sockets.
    pub(super) unix: bool,
    /// The programs behind others, where there are any.
    pub(super) backstops: Vec<OwnedFd>,
}

/// Loads, takes over, attaches and pins everything; after an error what has been attached stays so.
pub(super) fn load(
    folders: &Folders,
    cgroup_root: &Path,
    mut offered: OfferedHelpers,
) -> Result<LoadedObject, KernelError> {
    let lsm = offered.lsm;
    probe::check()?;
    let layout = btf::layout()?;
    refuse_labelled(folders)?;
    let mut object = load_object(folders, &layout, lsm)?;
    for spec in &SPECS {
        let map = super::maps::open(&folders.maps, spec.name, 0)?;
        spec.check(map.as_fd())?;
    }
    let cgroup = File::open(cgroup_root).map_err(|error| {
        KernelError::Unsupported(format!("cannot open {}: {error}", cgroup_root.display()))
    })?;
    let cgroup_id = cgroup
        .metadata()
        .map_err(|source| KernelError::Call {
            call: "fstat",
            source,
        })?
        .ino();
    // All of them, before the first is attached: a half-attached set would be one that never works.
    let btf = match lsm {
        true => Some(Btf::from_sys_fs().map_err(|error| KernelError::Object(chain(&error)))?),
        false => None,
    };
    for (name, place) in programs(offered) {
        match (load_program(&mut object, name, btf.as_ref()), place) {
            // Without it no digest is known, and the rules that have one hold closed.
            (Err(error), AttachPoint::Digest) => {
                tracing::warn!(%error, "digests of executables are not known");
                offered.digests = false;
            }
            (loaded, _) => loaded?,
        }
    }
    drop(btf);
    let unix = match unix::is_offered(&layout) {
        true => unix::load(OBJECT, &object, folders)?,
        false => Vec::new(),
    };
    unix::attach(&unix, folders, &cgroup, cgroup_id)?;
    for (name, place) in programs(offered) {
        let program = program(&mut object, name)?;
        let program = program.fd().map_err(|error| refused(name, error))?.as_fd();
        let link = folders.links.join(name);
        match place {
            AttachPoint::RawTracepoint | AttachPoint::Backstop => {
                let new = bpf::attach_raw_tracepoint(program, tracepoint(name))?;
                pin::replace(&new, &link)?;
            }
            AttachPoint::Lsm | AttachPoint::Digest => {
                let new = bpf::attach_lsm(program)?;
                pin::replace(&new, &link)?;
            }
            AttachPoint::Cgroup(attach_type) => {
                attach_cgroup(&link, program, &cgroup, cgroup_id, *attach_type)?;
            }
        }
    }
    let maps = Maps::open(&folders.maps)?;
    maps.set_config(ConfigSlot::Daemon, u64::from(std::process::id()))?;
    let unix = !unix.is_empty();
    let mut backstops = Vec::new();
    for (name, place) in programs(offered) {
        if matches!(place, AttachPoint::Backstop) {
            backstops.push(descriptor(program(&mut object, name)?)?);
        }
    }
    drop(object);
    // The loader parses the kernel's whole BTF, some 15 MB that the allocator would keep for the daemon's life.
    memory::give_back();
    Ok(LoadedObject {
        maps,
        offered,
        unix,
        backstops,
    })
}

/// An agent that starts a daemon of its own would be the daemon, and never labelled again.
fn refuse_labelled(folders: &Folders) -> Result<(), KernelError> {
    if !folders.maps.join("LABELS").exists() {
        return Ok(());
    }
    for spec in &SPECS {
        if let Some(map) = bpf::open_pin(&folders.maps.join(spec.name), 0)? {
            spec.check(map.as_fd())?;
        }
    }
    let labels = super::maps::Map::open(&folders.maps, "LABELS", 0)?;
    let label: agentguard_common::abi::Label =
        labels.lookup(&std::process::id())?.unwrap_or_default();
    if label.agent == AgentId::NONE {
        return Ok(());
    }
    Err(KernelError::Unsupported(format!(
        "this process belongs to agent {}; start the daemon from one that does not",
        label.agent.0
    )))
}

fn load_object(folders: &Folders, layout: &Layout, lsm: bool) -> Result<Ebpf, KernelError> {
    let mut loader = EbpfLoader::new();
    // Rust emits no CO-RE relocations; the layout goes in as a global.
    loader.btf(None);
    loader.override_global("LAYOUT", GlobalData::from(layout), true);
    let lsm = u32::from(lsm);
    loader.override_global("LSM", GlobalData::from(&lsm), true);
    let netns = probe::host_netns()?;
    loader.override_global("HOST_NETNS", GlobalData::from(&netns), true);
    let majors = probe::disk_majors();
    loader.override_global("DISK_MAJORS", GlobalData::from(&majors), true);
    // TASK_SCRATCH, of whose type aya has no handle; nobody needs one.
    loader.allow_unsupported_maps();
    for spec in &SPECS {
        loader.map_pin_path(spec.name, folders.maps.join(spec.name));
    }
    loader
        .load(OBJECT)
        .map_err(|error| KernelError::Object(chain(&error)))
}

fn program<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Program, KernelError> {
    object
        .program_mut(name)
        .ok_or_else(|| KernelError::Object(format!("no program {name}")))
}

/// A descriptor that outlives the object.
fn descriptor(program: &Program) -> Result<OwnedFd, KernelError> {
    let fd = program
        .fd()
        .map_err(|error| KernelError::Object(chain(&error)))?;
    fd.as_fd()
        .try_clone_to_owned()
        .map_err(|source| KernelError::Call {
            call: "fcntl",
            source,
        })
}

fn load_program(
    object: &mut Ebpf,
    name: &'static str,
    btf: Option<&Btf>,
) -> Result<(), KernelError> {
    let loaded = match program(object, name)? {
        Program::Lsm(program) => {
            let btf = btf.ok_or_else(|| KernelError::Object(format!("{name} without BTF")))?;
            program.load(lsm_hook(name), btf)
        }
        Program::CgroupDevice(program) => program.load(),
        Program::CgroupSysctl(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::RawTracePoint(program) => program.load(),
        other => {
            return Err(KernelError::Object(format!(
                "{name} is a {:?}",
                other.prog_type()
            )));
        }
    };
    loaded.map_err(|error| refused(name, error))
}

fn refused(name: &'static str, error: ProgramError) -> KernelError {
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => KernelError::Refused {
            program: name,
            log: last_lines(&verifier_log.to_string()),
            source: io_error,
        },
        other => KernelError::Object(format!("{name}: {}", chain(&other))),
    }
}

/// They say what the verifier did not like.
pub(super) fn last_lines(log: &str) -> String {
    const LAST_LINES: usize = 12;
    let lines: Vec<_> = log.lines().collect();
    let from = lines.len().saturating_sub(LAST_LINES);
    lines.get(from..).unwrap_or_default().join("\n")
}

pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

pub(super) fn attach_cgroup(
    pin: &Path,
    program: BorrowedFd<'_>,
    cgroup: &File,
    cgroup_id: u64,
    attach_type: u32,
) -> Result<(), KernelError> {
    if let Some(link) = bpf::open_pin(pin, 0)? {
        let info = bpf::link_info(link.as_fd())?;
        if info.cgroup_id == cgroup_id && info.attach_type == attach_type {
            return bpf::replace_program(link.as_fd(), program);
        }
    }
    let link = bpf::attach_cgroup(program, cgroup.as_fd(), attach_type)?;
    pin::replace(&link, pin)
}

/// Which of the hooks are attached now, by their pinned links.
pub(super) fn hooks(folders: &Folders, offered: OfferedHelpers, unix: bool) -> Vec<Hook> {
    programs(offered)
        .map(|(name, place)| Hook {
            name,
            attached: is_attached(&folders.links.join(name), place),
        })
        .chain(unix.then(|| unix::hooks(folders)).into_iter().flatten())
        .collect()
}

fn is_attached(pin: &Path, place: &AttachPoint) -> bool {
    match place {
        AttachPoint::Cgroup(attach_type) => is_on_cgroup(pin, *attach_type),
        AttachPoint::RawTracepoint | AttachPoint::Backstop => link_info(pin).is_some(),
        AttachPoint::Lsm | AttachPoint::Digest => {
            link_info(pin).is_some_and(|info| info.cgroup_id as u32 == bpf::LSM_MAC)
        }
    }
}

pub(super) fn is_on_cgroup(pin: &Path, attach_type: u32) -> bool {
    link_info(pin).is_some_and(|info| info.cgroup_id != 0 && info.attach_type == attach_type)
}

fn link_info(pin: &Path) -> Option<bpf::LinkInfo> {
    let link = bpf::open_pin(pin, 0).ok()??;
    bpf::link_info(link.as_fd()).ok()
}

/// Whether an earlier daemon has left programs.
pub(super) fn is_any_pinned(folders: &Folders) -> bool {
    fs::read_dir(&folders.links).is_ok_and(|mut entries| entries.next().is_some())
}

/// Takes the socket hooks away, by the time it returns; the tracepoints and LSM programs go soon after their pins. A hook that is gone
/// already stays so, and of one that cannot be detached the pin's end takes care.
pub(super) fn detach(folders: &Folders) {
    let on_cgroup = PROGRAMS
        .iter()
        .filter(|(_, place)| matches!(place, AttachPoint::Cgroup(_)))
        .map(|(name, _)| *name);
    for name in on_cgroup.chain(unix::names()) {
        if let Ok(Some(link)) = bpf::open_pin(&folders.links.join(name), 0) {
            let _ = bpf::detach(link.as_fd());
        }
    }
}

/// Links that no program of this version has, on this kernel.
pub(super) fn remove_strays(folders: &Folders, offered: OfferedHelpers) {
    let Ok(entries) = fs::read_dir(&folders.links) else {
        return;
    };
    for entry in entries.filter_map(Result::ok) {
        let mut names = programs(offered).map(|(name, _)| name).chain(unix::names());
        if !names.any(|name| entry.file_name() == name) {
            // A stray that cannot be removed judges nothing that the programs of this version do not.
            let _ = fs::remove_file(entry.path());
        }
    }
}
