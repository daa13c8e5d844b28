//! The system calls that nothing below `agentguard run` makes: ways out that the hooks do not see, into processes that are
//! nobody's, or to what takes the hooks away. A program that needs one runs with `privileges = "keep"`.

use agentguard_sys::seccomp::{Is, SyscallFilter, SyscallRule, Test};
use libc::{AF_INET, AF_INET6, AF_NETLINK, AF_UNIX, EPERM};

/// `SOCK_TYPE_MASK` (`include/linux/net.h`): the rest are flags.
const SOCK_TYPE: u32 = 0xf;
/// `enum sock_type`; `libc` leaves it out.
const SOCK_PACKET: u32 = 10;
/// Not in `libc` yet (Linux 6.15).
const SYS_OPEN_TREE_ATTR: libc::c_long = 467;

pub(super) fn filter() -> SyscallFilter {
    SyscallFilter::refusing(&RULES)
}

const RULES: [SyscallRule; 46] = [
    // Its operations never pass a seccomp filter: a ring would open the sockets that are refused below.
    always(libc::SYS_io_uring_setup),
    always(libc::SYS_io_uring_enter),
    always(libc::SYS_io_uring_register),
    // Detaches programs, writes maps.
    always(libc::SYS_bpf),
    // Into the memory of another process, which may be nobody's.
    always(libc::SYS_ptrace),
    always(libc::SYS_process_vm_readv),
    always(libc::SYS_process_vm_writev),
    // Takes another process's connected socket.
    always(libc::SYS_pidfd_getfd),
    // Limits of another process of the same user, which asks for no more than that. 0 is the caller.
    only_if(libc::SYS_prlimit64, &[argument(0, Is::NoneOf(&[0]))]),
    // Families that no hook judges: packet, vsock, Bluetooth, XDP, crypto, …
    only_if(
        libc::SYS_socket,
        &[argument(
            0,
            Is::NoneOf(&[
                AF_UNIX as u32,
                AF_INET as u32,
                AF_INET6 as u32,
                AF_NETLINK as u32,
            ]),
        )],
    ),
    // `__sock_create` makes a packet socket of this old spelling.
    only_if(
        libc::SYS_socket,
        &[
            argument(0, Is::OneOf(&[AF_INET as u32])),
            Test {
                argument: 1,
                mask: SOCK_TYPE,
                is: Is::OneOf(&[SOCK_PACKET]),
            },
        ],
    ),
    // Interfaces and routes are for everyone to read, and resolvers do; to change them takes a capability. The other
    // protocols reach subsystems that no client of a network needs.
    only_if(
        libc::SYS_socket,
        &[
            argument(0, Is::OneOf(&[AF_NETLINK as u32])),
            argument(2, Is::NoneOf(&[libc::NETLINK_ROUTE as u32])),
        ],
    ),
    // TIPC has pairs too.
    only_if(
        libc::SYS_socketpair,
        &[argument(0, Is::NoneOf(&[AF_UNIX as u32]))],
    ),
    // `TIOCSTI` types into the terminal of the next process that reads it; `TIOCLINUX` pastes on a console.
    only_if(
        libc::SYS_ioctl,
        &[argument(
            1,
            Is::OneOf(&[libc::TIOCSTI as u32, libc::TIOCLINUX as u32]),
        )],
    ),
    // A user namespace gives back every capability inside, and with it mounts, raw sockets and devices of its own.
    only_if(
        libc::SYS_unshare,
        &[Test {
            argument: 0,
            mask: libc::CLONE_NEWUSER as u32,
            is: Is::NoneOf(&[0]),
        }],
    ),
    only_if(
        libc::SYS_clone,
        &[Test {
            argument: 0,
            mask: libc::CLONE_NEWUSER as u32,
            is: Is::NoneOf(&[0]),
        }],
    ),
    // Its flags are behind a pointer, which a filter cannot read. C libraries go back to clone upon this error alone.
    SyscallRule {
        call: libc::SYS_clone3,
        when: &[],
        errno: libc::ENOSYS,
    },
    always(libc::SYS_setns),
    // What `run` has put over the system's files would come off, and other files over those that policy names.
    always(libc::SYS_mount),
    always(libc::SYS_umount2),
    always(libc::SYS_pivot_root),
    always(libc::SYS_chroot),
    always(libc::SYS_open_tree),
    always(SYS_OPEN_TREE_ATTR),
    always(libc::SYS_move_mount),
    always(libc::SYS_mount_setattr),
    always(libc::SYS_fsopen),
    always(libc::SYS_fsconfig),
    always(libc::SYS_fsmount),
    always(libc::SYS_fspick),
    // Keys of the user's other processes; a key that is asked for starts a helper, as root and nobody's.
    always(libc::SYS_add_key),
    always(libc::SYS_request_key),
    always(libc::SYS_keyctl),
    // Samples other processes and the kernel, and carries BPF programs.
    always(libc::SYS_perf_event_open),
    // Holds the kernel in the middle of a copy: the classic tool for winning races against it.
    always(libc::SYS_userfaultfd),
    // Another kernel, or code in this one.
    always(libc::SYS_kexec_load),
    always(libc::SYS_kexec_file_load),
    always(libc::SYS_init_module),
    always(libc::SYS_finit_module),
    always(libc::SYS_delete_module),
    // A file by its number, past every folder's permissions and what is mounted over it.
    always(libc::SYS_open_by_handle_at),
    // The process accounting file, swap and the host's end.
    always(libc::SYS_acct),
    always(libc::SYS_swapon),
    always(libc::SYS_swapoff),
    always(libc::SYS_reboot),
    // Opens every file of a mount under its reader's eyes, and can refuse it to others.
    always(libc::SYS_fanotify_init),
];

const fn always(call: libc::c_long) -> SyscallRule {
    only_if(call, &[])
}

const fn only_if(call: libc::c_long, when: &'static [Test]) -> SyscallRule {
    SyscallRule {
        call,
        when,
        errno: EPERM,
    }
}

const fn argument(argument: u32, is: Is) -> Test {
    Test {
        argument,
        mask: u32::MAX,
        is,
    }
}
