//! A seccomp filter written as a list of refusals: what no rule names is allowed. It outlives every exec, and nothing that
//! runs below it can take it away.

use super::{Result, SysError};

/// One refused system call; of several rules for a call the first whose tests all hold answers.
pub struct SyscallRule {
    pub call: libc::c_long,
    /// Empty: always refused.
    pub when: &'static [Test],
    pub errno: libc::c_int,
}

/// What the low 32 bits of an argument are, behind `mask`: every tested argument is an `int` or less to the kernel.
pub struct Test {
    pub argument: u32,
    pub mask: u32,
    pub is: Is,
}

pub enum Is {
    OneOf(&'static [u32]),
    NoneOf(&'static [u32]),
}

/// A filter for the architecture this is compiled for. A call of any other (`int 0x80` on x86-64) kills the process: a
/// program of that architecture could not even exit if its calls were refused.
pub struct SyscallFilter(Vec<libc::sock_filter>);

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

/// x32's calls have this bit (`__X32_SYSCALL_BIT`), and the architecture of the others.
const X32_BIT: u32 = 0x4000_0000;

/// Offsets in `struct seccomp_data`; the low half of an argument comes first.
const NR: u32 = 0;
const ARCH_AT: u32 = 4;
const ARGS: u32 = 16;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const GO: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const ANSWER: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

impl SyscallFilter {
    pub fn refusing(rules: &[SyscallRule]) -> Self {
        let mut code = vec![
            step(LOAD, ARCH_AT),
            jump(IF_EQUAL, ARCH, 1, 0),
            step(ANSWER, libc::SECCOMP_RET_KILL_PROCESS),
            step(LOAD, NR),
            jump(IF_AT_LEAST, X32_BIT, 0, 1),
            step(ANSWER, refusal(libc::ENOSYS)),
        ];
        for rule in rules {
            code.extend(rule.code());
        }
        code.push(step(ANSWER, libc::SECCOMP_RET_ALLOW));
        Self(code)
    }

    /// For this process and all that it becomes and starts. It must have given up new privileges before.
    ///
    /// Async-signal-safe.
    pub fn install(&self) -> Result<()> {
        let program = libc::sock_fprog {
            // At most BPF_MAXINSNS; the kernel refuses more.
            len: u16::try_from(self.0.len()).unwrap_or(u16::MAX),
            filter: self.0.as_ptr().cast_mut(),
        };
        // SAFETY: the kernel reads `len` instructions, which `self` holds, and keeps none of the pointers.
        let failed = unsafe {
            libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            )
        };
        if failed != 0 {
            return Err(SysError::last("prctl PR_SET_SECCOMP"));
        }
        Ok(())
    }
}

impl SyscallRule {
    /// Begins and ends with the call's number loaded.
    fn code(&self) -> Vec<libc::sock_filter> {
        let mut tests = Vec::new();
        for test in self.when.iter().rev() {
            let behind = tests.len() + 1;
            tests.splice(0..0, test.code(behind));
        }
        tests.push(step(ANSWER, refusal(self.errno)));
        if !self.when.is_empty() {
            tests.push(step(LOAD, NR));
        }
        // Every system call number fits.
        let mut code = vec![jump(IF_EQUAL, self.call as u32, 0, short(tests.len()))];
        code.append(&mut tests);
        code
    }
}

impl Test {
    /// Falls through if it holds; else skips `behind` more instructions.
    fn code(&self, behind: usize) -> Vec<libc::sock_filter> {
        let (values, holds) = match self.is {
            Is::OneOf(values) => (values, true),
            Is::NoneOf(values) => (values, false),
        };
        let mut code = vec![step(LOAD, ARGS + 8 * self.argument), step(AND, self.mask)];
        for (index, value) in values.iter().enumerate() {
            let to_the_end = values.len() - index - 1 + usize::from(holds);
            let skip = if holds {
                to_the_end
            } else {
                to_the_end + behind
            };
            code.push(jump(IF_EQUAL, *value, short(skip), 0));
        }
        if holds {
            code.push(step(GO, behind as u32));
        }
        code
    }
}

const fn refusal(errno: libc::c_int) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

fn short(skip: usize) -> u8 {
    u8::try_from(skip).expect("a rule is shorter than a jump can go")
}

const fn step(code: u16, k: u32) -> libc::sock_filter {
    jump(code, k, 0, 0)
}

const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests;
