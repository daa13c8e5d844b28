//! Whether an exec can be judged by what is in the file, found by trying: the kernel must keep writers off a file that is
//! being executed, and tell its SHA-256.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};

use sha2::{Digest as _, Sha256};

use super::{KernelError, bpf, btf, probe};

/// No format of executables, so that an exec that nobody refuses fails all the same.
const CONTENT: &[u8] = b"agentguard asks for the digest of this file\n";

/// Why digests of executables are not known on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoDigests {
    pub why: String,
    pub remedy: String,
}

impl NoDigests {
    fn new(why: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            remedy: remedy.into(),
        }
    }
}

/// # Errors
/// Why not, with the remedy.
pub fn digests() -> Result<(), NoDigests> {
    probe::lsm().map_err(|why| NoDigests::new(why, "boot with BPF LSM"))?;
    let untried = |error: io::Error| {
        let remedy = "root, and sysctl vm.memfd_noexec below 2";
        NoDigests::new(format!("it cannot be tried: {error}"), remedy)
    };
    let file = memory().map_err(untried)?;
    let writer = writer(&file).map_err(untried)?;
    let answer = execute(&file);
    drop(writer);
    if answer != Some(libc::ETXTBSY) {
        return Err(NoDigests::new(
            "this kernel lets a file be written while it is executed, so that no digest says what runs",
            "a kernel other than 6.11 and the first releases of 6.12",
        ));
    }
    let refused = |error: KernelError| {
        NoDigests::new(
            format!("the kernel takes no program that asks: {error}"),
            "root",
        )
    };
    let id = btf::lsm_hook("bprm_check_security").map_err(refused)?;
    let layout = btf::layout().map_err(refused)?;
    let id = id.ok_or_else(|| NoDigests::new("no BPF LSM", "boot with BPF LSM"))?;
    let program = bpf::load_lsm(&ask(layout.bprm_file), id, bpf::F_SLEEPABLE).map_err(refused)?;
    let link = bpf::attach_lsm(program.as_fd()).map_err(refused)?;
    let answer = execute(&file);
    drop(link);
    match answer {
        Some(RIGHT) => Ok(()),
        Some(OTHER) => Err(NoDigests::new(
            "the kernel's integrity measurement (IMA) works with another digest than SHA-256",
            "boot with ima_hash=sha256",
        )),
        _ => Err(NoDigests::new(
            "the kernel has no integrity measurement (IMA) to ask for digests",
            "a kernel with CONFIG_IMA=y",
        )),
    }
}

/// What the exec is answered by [`ask`].
const RIGHT: i32 = libc::EPERM;
const OTHER: i32 = libc::ENOMSG;
const NONE: i32 = libc::EOPNOTSUPP;

/// Instructions of a program that answers 0 to everyone but the calling thread, and that by what `bpf_ima_file_hash` says.
fn ask(bprm_file: u32) -> Vec<u64> {
    const DIGEST_LEN: i32 = 32;
    const HASH_ALGO_SHA256: i32 = 4;
    let tgid = std::process::id() as i32;
    let tid = nix::unistd::gettid().as_raw();
    let digest = Sha256::digest(CONTENT);
    let word = |at: usize| {
        let bytes = digest
            .get(at..at + 4)
            .and_then(|bytes| bytes.try_into().ok());
        i32::from_le_bytes(bytes.expect("a digest has 32 bytes"))
    };
    vec![
        // r6 = the context; r0 = bpf_get_current_pid_tgid()
        insn(0xbf, 6, 1, 0, 0),
        insn(0x85, 0, 0, 0, 14),
        // r1 = tgid << 32 | tid; if it is not r0, to the end
        insn(0x18, 1, 0, 0, tid),
        insn(0, 0, 0, 0, tgid),
        insn(0x5d, 0, 1, 19, 0),
        // r0 = bpf_ima_file_hash(bprm->file, the stack, 32)
        insn(0x79, 1, 6, 0, 0),
        insn(0x79, 1, 1, bprm_file as i16, 0),
        insn(0xbf, 2, 10, 0, 0),
        insn(0x07, 2, 0, 0, -DIGEST_LEN),
        insn(0xb7, 3, 0, 0, DIGEST_LEN),
        insn(0x85, 0, 0, 0, 193),
        // below 0: NONE
        insn(0xc5, 0, 0, 8, 0),
        // another algorithm, or other first bytes than expected: OTHER
        insn(0x55, 0, 0, 5, HASH_ALGO_SHA256),
        insn(0x79, 1, 10, -DIGEST_LEN as i16, 0),
        insn(0x18, 2, 0, 0, word(0)),
        insn(0, 0, 0, 0, word(4)),
        insn(0x5d, 1, 2, 1, 0),
        insn(0x05, 0, 0, 4, 0),
        insn(0xb7, 0, 0, 0, -OTHER),
        insn(0x95, 0, 0, 0, 0),
        insn(0xb7, 0, 0, 0, -NONE),
        insn(0x95, 0, 0, 0, 0),
        insn(0xb7, 0, 0, 0, -RIGHT),
        insn(0x95, 0, 0, 0, 0),
        insn(0xb7, 0, 0, 0, 0),
        insn(0x95, 0, 0, 0, 0),
    ]
}

/// `struct bpf_insn`.
fn insn(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> u64 {
    let [low, high] = offset.to_le_bytes();
    let [a, b, c, d] = immediate.to_le_bytes();
    u64::from_le_bytes([code, from << 4 | to, low, high, a, b, c, d])
}

/// A file in memory that may be executed, with [`CONTENT`].
fn memory() -> io::Result<File> {
    const MFD_EXEC: libc::c_uint = 0x10;
    let name = c"agentguard-digest";
    let made = memfd(name, libc::MFD_CLOEXEC | MFD_EXEC);
    let mut file = made.or_else(|error| match error.raw_os_error() {
        // Before Linux 6.3, where all of them may be executed.
        Some(libc::EINVAL) => memfd(name, libc::MFD_CLOEXEC),
        _ => Err(error),
    })?;
    file.write_all(CONTENT)?;
    Ok(file)
}

/// The file opened for writing: what made it does not count as a writer (`alloc_file_pseudo`).
fn writer(file: &File) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    OpenOptions::new().write(true).open(path)
}

fn memfd(name: &CStr, flags: libc::c_uint) -> io::Result<File> {
    // SAFETY: `name` ends with a NUL.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given it to us.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Why this process cannot become `file`, which it cannot: [`CONTENT`] is in it.
fn execute(file: &File) -> Option<i32> {
    let argv: [*const libc::c_char; 2] = [c"agentguard-digest".as_ptr(), std::ptr::null()];
    let none: [*const libc::c_char; 1] = [std::ptr::null()];
    // SAFETY: strings and arrays that end with a NUL; it only returns, and says why.
    unsafe {
        libc::execveat(
            file.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr().cast(),
            none.as_ptr().cast(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error().raw_os_error()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_written_is_not_executed_and_the_trial_is_no_program() {
        let file = memory().unwrap();
        let writer = writer(&file).unwrap();
        assert_eq!(execute(&file), Some(libc::ETXTBSY));
        drop(writer);
        assert_eq!(execute(&file), Some(libc::ENOEXEC));
    }

    #[test]
    fn jumps_of_the_asking_program_end_where_they_should() {
        let program = ask(104);
        let jumps = program.iter().enumerate().filter_map(|(at, insn)| {
            let [code, _, low, high, ..] = insn.to_le_bytes();
            let is_jump = matches!(code, 0x05 | 0x55 | 0x5d | 0xc5);
            is_jump.then(|| at + 1 + usize::from(u16::from_le_bytes([low, high])))
        });
        let answers: Vec<(u8, i32)> = jumps
            .map(|to| (program[to] as u8, (program[to] >> 32) as i32))
            .collect();
        let expected = [0, -NONE, -OTHER, -OTHER, -RIGHT];
        assert_eq!(answers, expected.map(|answer| (0xb7, answer)));
    }
}
