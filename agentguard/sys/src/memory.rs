//! The allocators' memory, and files as memory.

use std::fs::File;
use std::ptr;

use memmap2::{MmapOptions, MmapRaw, UncheckedAdvice};
use tikv_jemalloc_sys::mallctl;

use super::{Result, SysError};

/// Bytes that are written before the process lets go of the pages of those before them.
const BEHIND: usize = 256 * 1024;

/// Returns what is free to the kernel: jemalloc waits for its next calls to do it, and a process at rest makes none
/// (`arena.<i>.purge` of `jemalloc(3)`); what glibc has for libraries in C it keeps (`malloc_trim(3)`).
pub fn give_back() {
    // `MALLCTL_ARENAS_ALL` of `jemalloc.h`.
    let every_arena = c"arena.4096.purge";
    // SAFETY: the name ends in a zero; nothing is read and nothing is set.
    unsafe {
        mallctl(
            every_arena.as_ptr(),
            ptr::null_mut(),
            ptr::null_mut(),
            ptr::null_mut(),
            0,
        );
    }
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the arenas' locks itself and touches only what is free.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// A file that is written as memory (`mmap(2)`, `MAP_SHARED`). What has been written is the kernel's, as after `write(2)`:
/// the process's death does not reach it, and `fdatasync(2)` brings it to disk.
///
/// The file must have all of its bytes on disk, and keep them: whoever writes where there are none is ended by SIGBUS.
pub struct MappedFile {
    map: MmapRaw,
    /// Up to here the pages are not this process's any more.
    behind: usize,
}

impl MappedFile {
    /// The first `bytes` of `file`, which is open for reading and writing.
    pub fn new(file: &File, bytes: usize) -> Result<Self> {
        let map = MmapOptions::new().len(bytes).map_raw(file);
        let map = map.map_err(SysError::io("mmap"))?;
        Ok(Self { map, behind: 0 })
    }

    /// Writes `bytes` at `at`; false, and nothing, if they do not fit. Who writes from the front on has few pages of it.
    pub fn write(&mut self, at: usize, bytes: &[u8]) -> bool {
        let Some(end) = at.checked_add(bytes.len()) else {
            return false;
        };
        if end > self.map.len() {
            return false;
        }
        // SAFETY: it is within the mapping.
        let place = unsafe { self.map.as_mut_ptr().add(at) };
        // SAFETY: as above, and nobody has a reference to any of it.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
        if at < self.behind {
            self.behind = 0;
        }
        if at >= self.behind + BEHIND {
            self.let_go(at);
        }
        true
    }

    fn let_go(&mut self, before: usize) {
        let end = before - before % BEHIND;
        // SAFETY: of a shared mapping of a file only the page table is emptied; the bytes are the file's.
        let gone = unsafe {
            self.map.unchecked_advise_range(
                UncheckedAdvice::DontNeed,
                self.behind,
                end - self.behind,
            )
        };
        // Otherwise they stay, which does no harm.
        if gone.is_ok() {
            self.behind = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn what_is_written_is_in_the_file_and_nothing_beyond_it() {
        let file = tempfile::tempfile().unwrap();
        let length = 3 * BEHIND;
        file.set_len(length as u64).unwrap();
        let mut mapped = MappedFile::new(&file, length).unwrap();
        let all: Vec<u8> = (0..length).map(|at| (at / 1000) as u8).collect();
        for (number, chunk) in all.chunks(1000).enumerate() {
            assert!(mapped.write(number * 1000, chunk));
        }
        assert!(mapped.write(0, b"again from the front"));
        assert!(!mapped.write(length - 1, b"no"));
        assert!(!mapped.write(usize::MAX, b"no"));
        drop(mapped);
        let mut found = vec![0; length];
        file.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(&found[..20], b"again from the front");
        assert_eq!(found[20..], all[20..]);
    }
}
