//! Another process's thread made to do chosen system calls, as an attacker who has taken it over would.
#![allow(unsafe_code, reason = "another process is driven by ptrace")]
#![cfg(target_arch = "x86_64")]

use std::os::unix::fs::FileExt;
use std::ptr;

use libc::{c_long, c_void, user_regs_struct};

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// What the kernel returned: below 0, an errno.
    Returned(i64),
    /// The process's filter refused it, which ends the process: SIGSYS.
    Refused,
}

impl Answer {
    pub fn is_done(self) -> bool {
        matches!(self, Self::Returned(0..))
    }
}

/// A thread that is stopped in a system call, until this is dropped.
pub struct Injected {
    tid: i32,
    before: user_regs_struct,
    memory: std::fs::File,
    /// Where the next argument goes, below what the thread's stack holds.
    scratch: u64,
}

/// The instruction that enters the kernel.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// Bytes below the stack pointer that belong to the function that is running (System V ABI), and then some.
const RED_ZONE: u64 = 4096;

impl Injected {
    /// Takes the main thread of a process that waits in a system call.
    pub fn seize(tgid: u32) -> Self {
        let tid = i32::try_from(tgid).expect("a process id");
        let memory = std::fs::File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{tgid}/mem"))
            .expect("root may");
        request(
            libc::PTRACE_SEIZE,
            tid,
            libc::PTRACE_O_TRACESYSGOOD as usize,
        );
        request(libc::PTRACE_INTERRUPT, tid, 0);
        stopped(tid);
        let before = registers(tid);
        let mut code = [0; 2];
        memory
            .read_exact_at(&mut code, before.rip - 2)
            .expect("its code");
        assert_eq!(code, SYSCALL, "the thread waits in no system call");
        Self {
            tid,
            before,
            memory,
            scratch: (before.rsp - RED_ZONE) & !15,
        }
    }

    /// Puts bytes where a call can point to.
    pub fn put(&mut self, bytes: &[u8]) -> u64 {
        self.scratch = (self.scratch - bytes.len() as u64) & !15;
        let written = self.memory.write_all_at(bytes, self.scratch);
        written.expect("its stack");
        self.scratch
    }

    pub fn path(&mut self, path: &std::path::Path) -> u64 {
        use std::os::unix::ffi::OsStrExt;
        let mut bytes = path.as_os_str().as_bytes().to_vec();
        bytes.push(0);
        self.put(&bytes)
    }

    pub fn call(&mut self, number: c_long, arguments: &[u64]) -> Answer {
        let argument = |n: usize| arguments.get(n).copied().unwrap_or(0);
        let registers_of_call = user_regs_struct {
            rip: self.before.rip - 2,
            // No call is under way that the kernel would take up again.
            orig_rax: u64::MAX,
            rax: number.cast_unsigned(),
            rdi: argument(0),
            rsi: argument(1),
            rdx: argument(2),
            r10: argument(3),
            r8: argument(4),
            r9: argument(5),
            ..self.before
        };
        set_registers(self.tid, &registers_of_call);
        for _entry_then_exit in 0..2 {
            request(libc::PTRACE_SYSCALL, self.tid, 0);
            stopped(self.tid);
        }
        let result = registers(self.tid).rax.cast_signed();
        // A refused call has its signal before the next instruction.
        request(libc::PTRACE_SINGLESTEP, self.tid, 0);
        match stopped(self.tid) {
            libc::SIGSYS => Answer::Refused,
            _ => Answer::Returned(result),
        }
    }
}

impl Drop for Injected {
    fn drop(&mut self) {
        // Whoever is gone by now needs neither.
        let registers = ptr::from_ref(&self.before).cast_mut().cast::<c_void>();
        // SAFETY: `registers` points to a whole `user_regs_struct`.
        unsafe { libc::ptrace(libc::PTRACE_SETREGS, self.tid, 0, registers) };
        // SAFETY: takes integers.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.tid, 0, 0) };
    }
}

fn request(what: libc::c_uint, tid: i32, data: usize) {
    // SAFETY: none of the requests used here points anywhere.
    let done = unsafe { libc::ptrace(what, tid, 0, data) };
    let error = std::io::Error::last_os_error();
    assert_eq!(done, 0, "ptrace {what:#x} {tid}: {error}");
}

/// Waits for the next stop; its signal.
fn stopped(tid: i32) -> i32 {
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    let waited = unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL) };
    assert_eq!(waited, tid);
    assert!(libc::WIFSTOPPED(status), "it ended: {status:#x}");
    libc::WSTOPSIG(status)
}

fn registers(tid: i32) -> user_regs_struct {
    // SAFETY: a struct of integers.
    let mut registers: user_regs_struct = unsafe { std::mem::zeroed() };
    // SAFETY: `registers` outlives the call, and is what PTRACE_GETREGS writes.
    let done = unsafe { libc::ptrace(libc::PTRACE_GETREGS, tid, 0, &raw mut registers) };
    assert_eq!(done, 0, "PTRACE_GETREGS");
    registers
}

fn set_registers(tid: i32, registers: &user_regs_struct) {
    // SAFETY: `registers` is what PTRACE_SETREGS reads.
    let done = unsafe { libc::ptrace(libc::PTRACE_SETREGS, tid, 0, ptr::from_ref(registers)) };
    assert_eq!(done, 0, "PTRACE_SETREGS");
}
