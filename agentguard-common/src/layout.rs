//! Byte offsets of the kernel struct members that lineage reads, found in `/sys/kernel/btf/vmlinux` at load and given to
//! the programs as a read-only global. Rust emits no CO-RE relocations: an offset compiled in would read wrong bytes on
//! another kernel without a word.

/// All offsets are in bytes from the start of the named struct.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct Layout {
    pub task_tgid: u32,
    pub task_signal: u32,
    pub task_real_parent: u32,
    pub task_mm: u32,
    pub task_cred: u32,
    pub task_cgroups: u32,
    pub signal_live: u32,
    pub mm_exe_file: u32,
    pub file_path: u32,
    pub path_mnt: u32,
    pub path_dentry: u32,
    pub dentry_parent: u32,
    pub dentry_name: u32,
    pub qstr_len: u32,
    pub qstr_name: u32,
    /// `struct mount.mnt`, to get from a `vfsmount` to its `mount`.
    pub mount_mnt: u32,
    pub mount_parent: u32,
    pub mount_mountpoint: u32,
    pub vfsmount_root: u32,
    pub task_start_boottime: u32,
    pub cred_uid: u32,
    pub css_set_dfl_cgrp: u32,
    pub cgroup_kn: u32,
    pub cgroup_root: u32,
    pub cgroup_root_hierarchy_id: u32,
    pub kernfs_node_id: u32,
    /// 0 before Linux 6.7, as the next.
    pub sock_addr_uaddr: u32,
    pub sock_addr_uaddrlen: u32,
    pub socket_sk: u32,
    /// From the socket, with which a `unix_sock` begins.
    pub unix_sock_addr: u32,
    pub unix_address_len: u32,
    pub unix_address_name: u32,
}

impl Layout {
    /// What the compiled object holds until the loader fills it in.
    pub const UNKNOWN: Self = Self {
        task_tgid: 0,
        task_signal: 0,
        task_real_parent: 0,
        task_mm: 0,
        task_cred: 0,
        task_cgroups: 0,
        signal_live: 0,
        mm_exe_file: 0,
        file_path: 0,
        path_mnt: 0,
        path_dentry: 0,
        dentry_parent: 0,
        dentry_name: 0,
        qstr_len: 0,
        qstr_name: 0,
        mount_mnt: 0,
        mount_parent: 0,
        mount_mountpoint: 0,
        vfsmount_root: 0,
        task_start_boottime: 0,
        cred_uid: 0,
        css_set_dfl_cgrp: 0,
        cgroup_kn: 0,
        cgroup_root: 0,
        cgroup_root_hierarchy_id: 0,
        kernfs_node_id: 0,
        sock_addr_uaddr: 0,
        sock_addr_uaddrlen: 0,
        socket_sk: 0,
        unix_sock_addr: 0,
        unix_address_len: 0,
        unix_address_name: 0,
    };
}
