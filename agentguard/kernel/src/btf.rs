//! Offsets of kernel struct members, from the kernel's own BTF (`Documentation/bpf/btf.rst`).

use std::collections::HashMap;

use agentguard_common::layout::Layout;

use super::KernelError;

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;

/// The offsets that lineage needs, each checked to exist and to have the type and width that the programs read.
///
/// # Errors
/// [`KernelError::Unsupported`], naming what the kernel's BTF lacks.
pub fn layout() -> Result<Layout, KernelError> {
    let bytes = read()?;
    let btf = Btf::parse(&bytes).ok_or_else(|| missing("a readable type section"))?;
    layout_of(&btf)
}

/// Id of the function that stands for an LSM hook, which programs are loaded for; `None` on a kernel without
/// `CONFIG_BPF_LSM`.
pub(super) fn lsm_hook(name: &str) -> Result<Option<u32>, KernelError> {
    let bytes = read()?;
    let btf = Btf::parse(&bytes).ok_or_else(|| missing("a readable type section"))?;
    Ok(btf.function(&format!("bpf_lsm_{name}")))
}

fn read() -> Result<Vec<u8>, KernelError> {
    std::fs::read(VMLINUX).map_err(|error| {
        KernelError::Unsupported(format!(
            "cannot read {VMLINUX}: {error}; a kernel with CONFIG_DEBUG_INFO_BTF is needed"
        ))
    })
}

fn missing(what: &str) -> KernelError {
    KernelError::Unsupported(format!(
        "{VMLINUX} has no {what}; this kernel is not supported"
    ))
}

/// What a member must be for the programs to read it.
#[derive(Clone, Copy)]
enum MemberShape {
    Pointer,
    /// An integer of so many bytes, or a struct around nothing else (`atomic_t`, `kuid_t`).
    Integer(u32),
    /// Embedded: only its address is used.
    Struct,
    Array,
}

fn layout_of(btf: &Btf<'_>) -> Result<Layout, KernelError> {
    use MemberShape::{Array, Integer, Pointer, Struct};
    let at = |name: &str, member: &str, shape: MemberShape| {
        let found = btf
            .structs
            .get(name)
            .and_then(|id| btf.member(*id, member, 0));
        let (offset, type_id) = found.ok_or_else(|| missing(&format!("{name}.{member}")))?;
        if !btf.has_shape(type_id, shape) {
            return Err(missing(&format!("{name}.{member} of the expected type")));
        }
        Ok(offset)
    };
    let since = |name: &str, member: &str, shape: MemberShape| match btf.structs.get(name) {
        Some(id) if btf.member(*id, member, 0).is_some() => at(name, member, shape),
        _ => Ok(0),
    };
    let uaddrlen = since("bpf_sock_addr_kern", "uaddrlen", Integer(4))?;
    Ok(Layout {
        task_tgid: at("task_struct", "tgid", Integer(4))?,
        task_signal: at("task_struct", "signal", Pointer)?,
        task_real_parent: at("task_struct", "real_parent", Pointer)?,
        task_mm: at("task_struct", "mm", Pointer)?,
        task_real_cred: at("task_struct", "real_cred", Pointer)?,
        task_group_leader: at("task_struct", "group_leader", Pointer)?,
        task_cgroups: at("task_struct", "cgroups", Pointer)?,
        task_start_boottime: at("task_struct", "start_boottime", Integer(8))?,
        task_self_exec_id: at("task_struct", "self_exec_id", Integer(8))?,
        signal_live: at("signal_struct", "live", Integer(4))?,
        mm_exe_file: at("mm_struct", "exe_file", Pointer)?,
        cred_uid: at("cred", "uid", Integer(4))?,
        file_path: at("file", "f_path", Struct)?,
        path_mnt: at("path", "mnt", Pointer)?,
        path_dentry: at("path", "dentry", Pointer)?,
        dentry_parent: at("dentry", "d_parent", Pointer)?,
        dentry_name: at("dentry", "d_name", Struct)?,
        qstr_len: at("qstr", "len", Integer(4))?,
        qstr_name: at("qstr", "name", Pointer)?,
        mount_mnt: at("mount", "mnt", Struct)?,
        mount_parent: at("mount", "mnt_parent", Pointer)?,
        mount_mountpoint: at("mount", "mnt_mountpoint", Pointer)?,
        vfsmount_root: at("vfsmount", "mnt_root", Pointer)?,
        css_set_dfl_cgrp: at("css_set", "dfl_cgrp", Pointer)?,
        cgroup_kn: at("cgroup", "kn", Pointer)?,
        cgroup_root: at("cgroup", "root", Pointer)?,
        cgroup_root_hierarchy_id: at("cgroup_root", "hierarchy_id", Integer(4))?,
        kernfs_node_id: at("kernfs_node", "id", Integer(8))?,
        sock_addr_uaddr: match uaddrlen {
            0 => 0,
            _ => at("bpf_sock_addr_kern", "uaddr", Pointer)?,
        },
        sock_addr_uaddrlen: uaddrlen,
        socket_sk: at("socket", "sk", Pointer)?,
        unix_sock_addr: match at("unix_sock", "sk", Struct)? {
            0 => at("unix_sock", "addr", Pointer)?,
            _ => return Err(missing("unix_sock that begins with its sock")),
        },
        unix_address_len: at("unix_address", "len", Integer(4))?,
        unix_address_name: at("unix_address", "name", Array)?,
        task_fs: at("task_struct", "fs", Pointer)?,
        fs_pwd: at("fs_struct", "pwd", Struct)?,
        mm_arg_start: at("mm_struct", "arg_start", Integer(8))?,
        mm_arg_end: at("mm_struct", "arg_end", Integer(8))?,
        file_inode: at("file", "f_inode", Pointer)?,
        inode_nlink: at("inode", "i_nlink", Integer(4))?,
        dentry_hash: at("dentry", "d_hash", Struct)?,
        hlist_bl_node_pprev: at("hlist_bl_node", "pprev", Pointer)?,
        mount_ns: at("mount", "mnt_ns", Pointer)?,
        task_nsproxy: at("task_struct", "nsproxy", Pointer)?,
        nsproxy_net_ns: at("nsproxy", "net_ns", Pointer)?,
        net_ns: at("net", "ns", Struct)?,
        mnt_namespace_user_ns: at("mnt_namespace", "user_ns", Pointer)?,
        user_namespace_level: at("user_namespace", "level", Integer(4))?,
        bprm_file: at("linux_binprm", "file", Pointer)?,
        bprm_filename: at("linux_binprm", "filename", Pointer)?,
        bprm_interp: at("linux_binprm", "interp", Pointer)?,
        socket_file: at("socket", "file", Pointer)?,
        // A sock begins with its sock_common (`__sk_common`).
        sock_family: at("sock_common", "skc_family", Integer(2))?,
        sock_num: at("sock_common", "skc_num", Integer(2))?,
        sock_rcv_saddr: at("sock_common", "skc_rcv_saddr", Integer(4))?,
        // Not on a kernel without IPv6, which has no sockets that would have one.
        sock_v6_rcv_saddr: since("sock_common", "skc_v6_rcv_saddr", Struct)?,
        inode_sb: at("inode", "i_sb", Pointer)?,
        vfsmount_sb: at("vfsmount", "mnt_sb", Pointer)?,
        super_block_magic: at("super_block", "s_magic", Integer(8))?,
        inode_ino: at("inode", "i_ino", Integer(8))?,
        inode_mode: at("inode", "i_mode", Integer(2))?,
        super_block_dev: at("super_block", "s_dev", Integer(4))?,
        super_block_root: at("super_block", "s_root", Pointer)?,
        dentry_inode: at("dentry", "d_inode", Pointer)?,
        dentry_sb: at("dentry", "d_sb", Pointer)?,
        file_mode: at("file", "f_mode", Integer(4))?,
        mnt_namespace_ns: at("mnt_namespace", "ns", Struct)?,
        ns_common_inum: at("ns_common", "inum", Integer(4))?,
        mount_group_id: at("mount", "mnt_group_id", Integer(4))?,
        // (entry, attributes), and since Linux 6.9 a mount's id map before them.
        setattr_dentry: btf
            .parameters("bpf_lsm_inode_setattr")
            .map_or(0, |count| count.saturating_sub(2)),
    })
}

const KIND_INT: u32 = 1;
const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// How deep anonymous members and typedefs nest.
const MAX_DEPTH: u32 = 16;

struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type id starts in `types`; id 0 is void.
    starts: Vec<u32>,
    structs: HashMap<&'a str, u32>,
}

#[derive(Clone, Copy)]
struct Type {
    kind: u32,
    vlen: u32,
    /// Bit-field encoding of members.
    has_bitfields: bool,
    /// Size or type id, by kind.
    size_or_type: u32,
    /// Where its members start.
    body: usize,
}

impl<'a> Btf<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        if u16::from_le_bytes(bytes.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let header_len = word(bytes, 4)? as usize;
        let section = |offset: usize, len: usize| {
            let start = header_len.checked_add(offset)?;
            bytes.get(start..start.checked_add(len)?)
        };
        let types = section(word(bytes, 8)? as usize, word(bytes, 12)? as usize)?;
        let strings = section(word(bytes, 16)? as usize, word(bytes, 20)? as usize)?;
        let mut btf = Self {
            types,
            strings,
            starts: vec![0],
            structs: HashMap::new(),
        };
        let mut at = 0;
        while at < types.len() {
            let id = btf.starts.len() as u32;
            let t = btf.type_at(at)?;
            if t.kind == KIND_STRUCT {
                let name = btf.string(word(types, at)?)?;
                if !name.is_empty() {
                    btf.structs.entry(name).or_insert(id);
                }
            }
            btf.starts.push(at as u32);
            at = t.body + t.body_len()?;
        }
        Some(btf)
    }

    fn type_at(&self, at: usize) -> Option<Type> {
        let info = word(self.types, at + 4)?;
        Some(Type {
            kind: (info >> 24) & 0x1f,
            vlen: info & 0xffff,
            has_bitfields: info >> 31 == 1,
            size_or_type: word(self.types, at + 8)?,
            body: at + 12,
        })
    }

    fn get(&self, id: u32) -> Option<Type> {
        if id == 0 {
            return None;
        }
        self.type_at(*self.starts.get(id as usize)? as usize)
    }

    fn string(&self, offset: u32) -> Option<&'a str> {
        let rest = self.strings.get(offset as usize..)?;
        let end = rest.iter().position(|b| *b == 0)?;
        std::str::from_utf8(rest.get(..end)?).ok()
    }

    fn function(&self, name: &str) -> Option<u32> {
        (1..self.starts.len() as u32).find(|id| {
            self.get(*id).is_some_and(|t| t.kind == KIND_FUNC) && self.name(*id) == Some(name)
        })
    }

    /// How many parameters a function has.
    fn parameters(&self, function: &str) -> Option<u32> {
        let prototype = self.get(self.function(function)?)?.size_or_type;
        Some(self.get(prototype)?.vlen)
    }

    fn name(&self, id: u32) -> Option<&'a str> {
        self.string(word(self.types, *self.starts.get(id as usize)? as usize)?)
    }

    /// Byte offset and type of a member, looked for in anonymous structs and unions too.
    fn member(&self, id: u32, name: &str, depth: u32) -> Option<(u32, u32)> {
        let t = self.get(self.resolve(id)?)?;
        if depth > MAX_DEPTH || (t.kind != KIND_STRUCT && t.kind != KIND_UNION) {
            return None;
        }
        for n in 0..t.vlen as usize {
            let at = t.body + 12 * n;
            let member = self.string(word(self.types, at)?)?;
            let type_id = word(self.types, at + 4)?;
            let raw = word(self.types, at + 8)?;
            let (bits, bitfield) = if t.has_bitfields {
                (raw & 0x00ff_ffff, raw >> 24)
            } else {
                (raw, 0)
            };
            if member == name {
                return (bitfield == 0 && bits % 8 == 0).then_some((bits / 8, type_id));
            }
            if member.is_empty()
                && let Some((inner, type_id)) = self.member(type_id, name, depth + 1)
            {
                return Some((bits / 8 + inner, type_id));
            }
        }
        None
    }

    /// The type behind typedefs, qualifiers and tags.
    fn resolve(&self, mut id: u32) -> Option<u32> {
        for _ in 0..MAX_DEPTH {
            let t = self.get(id)?;
            match t.kind {
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                    id = t.size_or_type;
                }
                _ => return Some(id),
            }
        }
        None
    }

    fn has_shape(&self, id: u32, shape: MemberShape) -> bool {
        let Some(id) = self.resolve(id) else {
            return false;
        };
        let Some(t) = self.get(id) else { return false };
        match shape {
            MemberShape::Pointer => t.kind == KIND_PTR,
            MemberShape::Struct => t.kind == KIND_STRUCT,
            MemberShape::Array => t.kind == KIND_ARRAY,
            MemberShape::Integer(size) if t.kind == KIND_INT => t.size_or_type == size,
            MemberShape::Integer(size) => {
                t.kind == KIND_STRUCT
                    && t.size_or_type == size
                    && t.vlen == 1
                    && word(self.types, t.body + 4)
                        .is_some_and(|inner| self.has_shape(inner, shape))
            }
        }
    }
}

impl Type {
    /// Bytes behind the common part; `None` for a kind this parser does not know.
    fn body_len(&self) -> Option<usize> {
        let n = self.vlen as usize;
        Some(match self.kind {
            KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
            KIND_ARRAY => 12,
            KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * n,
            KIND_ENUM | KIND_FUNC_PROTO => 8 * n,
            KIND_PTR..=KIND_TYPE_TAG => 0,
            _ => return None,
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(
        bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_every_member() {
        let layout = layout().unwrap();
        assert_ne!(layout.task_tgid, 0);
        assert_ne!(layout.task_signal, layout.task_mm);
        // `struct path` is { mnt, dentry } on every kernel so far.
        assert_eq!((layout.path_mnt, layout.path_dentry), (0, 8));
    }

    #[test]
    fn functions_are_found_by_name() {
        let bytes = std::fs::read(VMLINUX).unwrap();
        let btf = Btf::parse(&bytes).unwrap();
        let id = btf.function("do_exit").unwrap();
        assert_eq!(btf.name(id), Some("do_exit"));
        assert_eq!(btf.function("no_such_function"), None);
        assert_eq!(btf.parameters("do_exit"), Some(1));
        assert_eq!(btf.parameters("no_such_function"), None);
    }

    #[test]
    fn a_wrong_width_is_refused() {
        let bytes = std::fs::read(VMLINUX).unwrap();
        let btf = Btf::parse(&bytes).unwrap();
        let (_, tgid) = btf.member(btf.structs["task_struct"], "tgid", 0).unwrap();
        assert!(btf.has_shape(tgid, MemberShape::Integer(4)));
        assert!(!btf.has_shape(tgid, MemberShape::Integer(8)));
        assert!(!btf.has_shape(tgid, MemberShape::Pointer));
        assert!(
            btf.member(btf.structs["task_struct"], "no_such_member", 0)
                .is_none()
        );
    }

    #[test]
    fn truncated_input_is_refused() {
        let bytes = std::fs::read(VMLINUX).unwrap();
        for len in [0, 1, 23, 24, 1000, bytes.len() - 1] {
            assert!(Btf::parse(&bytes[..len]).is_none(), "{len}");
        }
    }
}
