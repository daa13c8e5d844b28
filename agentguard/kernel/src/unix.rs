//! The programs for Unix sockets: of attach types that the loader library does not know, so they are loaded and attached
//! here. And what each agent's file lists, as its map in `UNIX`.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use agentguard_common::abi::{AgentId, UnixName};
use agentguard_common::layout::Layout;
use aya::Ebpf;
use aya::maps::Map as AyaMap;
use aya_obj::Object;
use aya_obj::generated::bpf_insn;

use super::maps::{self, Map, SPECS};
use super::pin::Folders;
use super::{Hook, KernelError, bpf, load};

/// Each with its `enum bpf_attach_type` (Linux 6.7).
const PROGRAMS: [(&str, u32); 2] = [("unix_connect", 49), ("unix_sendmsg", 50)];

/// A program that the verifier has taken.
pub(super) struct Program {
    name: &'static str,
    attach_type: u32,
    fd: OwnedFd,
}

/// Whether the kernel has the hooks: they came with the length that the programs read.
pub(super) fn is_offered(layout: &Layout) -> bool {
    layout.sock_addr_uaddrlen != 0
}

/// `loaded`: the same object as the library has it, for the map that holds the layout.
pub(super) fn load(
    object: &[u8],
    loaded: &Ebpf,
    folders: &Folders,
) -> Result<Vec<Program>, KernelError> {
    const LAYOUT: &str = ".rodata";
    let broken = |error: &dyn std::error::Error| KernelError::Object(load::chain(error));
    let mut object = Object::parse(object).map_err(|error| broken(&error))?;
    // The instructions have them by number: they must stay open until the kernel has taken the programs.
    let mut descriptors = HashMap::new();
    for spec in &SPECS {
        descriptors.insert(spec.name, maps::open(&folders.maps, spec.name, 0)?);
    }
    let layout = match loaded.map(LAYOUT) {
        Some(AyaMap::Array(map)) => map.fd().as_fd().as_raw_fd(),
        _ => return Err(KernelError::Object(format!("no map {LAYOUT}"))),
    };
    let maps = object.maps.clone();
    let found = maps.iter().map(|(name, map)| {
        let fd = match descriptors.get(name.as_str()) {
            Some(fd) => fd.as_raw_fd(),
            None if name == LAYOUT => layout,
            // Of programs that are not loaded here; the kernel would refuse them.
            None => -1,
        };
        (name.as_str(), fd, map)
    });
    let text: HashSet<usize> = object.functions.keys().map(|(index, _)| *index).collect();
    object
        .relocate_maps(found, &text)
        .map_err(|error| broken(&error))?;
    object
        .relocate_calls(&text)
        .map_err(|error| broken(&error))?;
    PROGRAMS
        .iter()
        .map(|(name, attach_type)| {
            let program = object.programs.get(*name);
            let function = program.and_then(|it| object.functions.get(&it.function_key()));
            let function =
                function.ok_or_else(|| KernelError::Object(format!("no program {name}")))?;
            Ok(Program {
                name,
                attach_type: *attach_type,
                fd: verified(name, &function.instructions, *attach_type)?,
            })
        })
        .collect()
}

fn verified(
    name: &'static str,
    instructions: &[bpf_insn],
    attach_type: u32,
) -> Result<OwnedFd, KernelError> {
    const LOG_LEN: usize = 1 << 20;
    let source = match bpf::load_sock_addr(name, instructions, attach_type, &mut []) {
        Ok(program) => return Ok(program),
        Err(error) => error,
    };
    let mut log = vec![0; LOG_LEN];
    // Once more, for what the verifier says to it.
    let _ = bpf::load_sock_addr(name, instructions, attach_type, &mut log);
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    Err(KernelError::Refused {
        program: name,
        log: load::last_lines(&String::from_utf8_lossy(&log[..end])),
        source,
    })
}

pub(super) fn attach(
    programs: &[Program],
    folders: &Folders,
    cgroup: &File,
    cgroup_id: u64,
) -> Result<(), KernelError> {
    for program in programs {
        let pin = folders.links.join(program.name);
        let fd = program.fd.as_fd();
        load::attach_cgroup(&pin, fd, cgroup, cgroup_id, program.attach_type)?;
    }
    Ok(())
}

pub(super) fn hooks(folders: &Folders) -> impl Iterator<Item = Hook> {
    PROGRAMS.iter().map(|(name, attach_type)| Hook {
        name,
        attached: load::is_on_cgroup(&folders.links.join(name), *attach_type),
    })
}

pub(super) fn names() -> impl Iterator<Item = &'static str> {
    PROGRAMS.iter().map(|(name, _)| *name)
}

/// Puts a new map in the place of the agent's in one update.
pub(super) fn replace(
    outer: &Map<u32, u32>,
    agent: AgentId,
    names: &[UnixName],
) -> Result<(), KernelError> {
    const LISTED: u32 = 1;
    let key_size = size_of::<UnixName>() as u32;
    let len = names.len().max(1) as u32;
    let inner = bpf::create_hash(key_size, size_of::<u32>() as u32, len)?;
    for name in names {
        bpf::update(inner.as_fd(), name, &LISTED)?;
    }
    outer.update(&agent.0, &(inner.as_raw_fd() as u32))
}
