//! The system calls that the forwarder needs, each with who needs it. Any other ends the process, which says which one it
//! was: [`agentguard_sys::signal::tell_of_refused_calls`].

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter,
};

use super::SandboxError;

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// `linux/bpf.h`.
const BPF_MAP_LOOKUP_ELEM: u64 = 1;
/// `asm-generic/ioctls.h`; the type of `libc`'s differs between C libraries.
const FIONBIO: u64 = 0x5421;
/// Of `socket()`'s type: the rest are flags.
const SOCK_TYPE_MASK: u64 = 0xf;

/// Allowed whatever the arguments.
const PLAIN: &[c_long] = &[
    // Memory: the allocator, thread stacks.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Threads of the runtime and its blocking pool: start, names and masks, waiting, end.
    libc::SYS_exit,
    libc::SYS_futex,
    libc::SYS_gettid,
    libc::SYS_rseq,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    // The process's end, in order or by `abort`.
    libc::SYS_exit_group,
    libc::SYS_getpid,
    // A stopped and continued process takes its interrupted waits up again; a handler returns.
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigreturn,
    // Time, where the vDSO cannot tell it.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    // TLS and identifiers of decisions.
    libc::SYS_getrandom,
    // The runtime's reactor.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    // Connections, the link to the daemon (descriptors may come over it), the log.
    libc::SYS_close,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_write,
    libc::SYS_writev,
    // The spool.
    libc::SYS_fdatasync,
    // Agents' connections in.
    libc::SYS_accept4,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    // Upstream connections and DNS out; `bind` is the agent's mark, and a resolver's own port.
    libc::SYS_bind,
    libc::SYS_connect,
];

/// Looked for by libraries that go on without: answered as on a host that has no such file.
const NO_FILES: &[c_long] = &[
    // Who counts processors (allocator, runtime), a panic that wants its own program's symbols.
    libc::SYS_openat,
    libc::SYS_newfstatat,
    libc::SYS_readlinkat,
    libc::SYS_statx,
    libc::SYS_fstat,
    libc::SYS_faccessat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
];

/// Restricts this thread.
pub(super) fn restrict() -> Result<(), SandboxError> {
    let plain = |calls: &[c_long]| calls.iter().map(|call| (*call, Vec::new())).collect();
    let refused = |errno| SeccompAction::Errno(errno);
    // The strictest answer of all filters counts; the one that allows least comes last, or it would refuse the others.
    let clone3 = plain(&[libc::SYS_clone3]);
    // Its flags are behind a pointer, which a filter cannot follow. Told this, libc takes `clone`.
    apply(clone3, SeccompAction::Allow, refused(libc::ENOSYS as u32))?;
    apply(
        plain(NO_FILES),
        SeccompAction::Allow,
        refused(libc::EACCES as u32),
    )?;
    apply(allowed()?, SeccompAction::Trap, SeccompAction::Allow)
}

fn allowed() -> Result<Rules, SandboxError> {
    let mut rules: Rules = [PLAIN, NO_FILES, &[libc::SYS_clone3]]
        .concat()
        .into_iter()
        .map(|call| (call, Vec::new()))
        .collect();
    let (exec, thread) = (libc::PROT_EXEC as u64, libc::CLONE_THREAD as u64);
    for (call, conditions) in [
        // Stacks and heaps; never code.
        (libc::SYS_mmap, vec![arg(2, Op::MaskedEq(exec), 0)]),
        (libc::SYS_mprotect, vec![arg(2, Op::MaskedEq(exec), 0)]),
        // Threads, no processes.
        (libc::SYS_clone, vec![arg(0, Op::MaskedEq(thread), thread)]),
        // Names of threads.
        (
            libc::SYS_prctl,
            vec![arg(0, Op::Eq, libc::PR_SET_NAME as u64)],
        ),
        // `abort`: a signal to itself, to nobody else.
        (
            libc::SYS_tgkill,
            vec![arg(0, Op::Eq, u64::from(std::process::id()))],
        ),
        // libc, with the first thread and in `abort`; the handler that says what was refused stays.
        (
            libc::SYS_rt_sigaction,
            vec![arg(0, Op::Ne, libc::SIGSYS as u64)],
        ),
        // `set_nonblocking` of the standard library.
        (libc::SYS_ioctl, vec![arg(1, Op::Eq, FIONBIO)]),
        // Whose connection it is: the maps are open for reading alone.
        (libc::SYS_bpf, vec![arg(0, Op::Eq, BPF_MAP_LOOKUP_ELEM)]),
    ] {
        rules.insert(call, vec![all_of(conditions)?]);
    }
    // Flags of descriptors, and copies of them: the runtime, `try_clone`. Not F_SETOWN, which sends signals.
    let of_descriptors = [
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_SETFL,
        libc::F_DUPFD_CLOEXEC,
    ];
    let fcntl = of_descriptors.map(|command| all_of(vec![arg(1, Op::Eq, command as u64)]));
    rules.insert(
        libc::SYS_fcntl,
        fcntl.into_iter().collect::<Result<_, _>>()?,
    );
    // Upstream is TCP, DNS is UDP and TCP; no other family, no raw socket.
    let mut sockets = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
            sockets.push(all_of(vec![
                arg(0, Op::Eq, family as u64),
                arg(1, Op::MaskedEq(SOCK_TYPE_MASK), kind as u64),
            ])?);
        }
    }
    rules.insert(libc::SYS_socket, sockets);
    Ok(rules)
}

fn arg(index: u8, op: Op, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    // All of these arguments are ints, of which the kernel reads the lower half alone; `mmap`'s protection, too.
    SeccompCondition::new(index, Len::Dword, op, value)
}

fn all_of(
    conditions: Vec<Result<SeccompCondition, seccompiler::BackendError>>,
) -> Result<SeccompRule, SandboxError> {
    let conditions = conditions.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(SeccompRule::new(conditions)?)
}

fn apply(
    rules: Rules,
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> Result<(), SandboxError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH);
    let arch = arch.map_err(|_| SandboxError::Architecture)?;
    let filter = SeccompFilter::new(rules, otherwise, listed, arch)?;
    let program: BpfProgram = filter.try_into()?;
    Ok(apply_filter(&program)?)
}
