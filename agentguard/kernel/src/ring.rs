//! The reader's side of a ring of events (`kernel/bpf/ringbuf.c`). Unlike aya's, it reads on without giving back what it has
//! read: an event keeps its place until its record is written, also when the daemon dies before.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use super::KernelError;

/// In a record's head: it is being written (`BPF_RINGBUF_BUSY_BIT`), or was given up (`BPF_RINGBUF_DISCARD_BIT`).
const BUSY: u32 = 1 << 31;
const DISCARD: u32 = 1 << 30;
/// `BPF_RINGBUF_HDR_SZ`.
const HEAD: usize = 8;

/// To be read by one task.
pub(super) struct Ring {
    fd: OwnedFd,
    /// A page whose first word is how far the reader is; written by the reader alone.
    consumed: Mapping,
    /// A page whose first word is how far the programs are, and the records, twice in a row so that none is in two parts.
    records: Mapping,
    page: usize,
    /// Bytes of the ring, a power of two.
    len: usize,
    position: u64,
}

impl Ring {
    pub(super) fn new(fd: OwnedFd, len: u32) -> Result<Self, KernelError> {
        let failed = |source| KernelError::Call {
            call: "mmap",
            source,
        };
        let len = len as usize;
        // SAFETY: no pointers.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let page = usize::try_from(page).map_err(|_| failed(io::Error::last_os_error()))?;
        let write = libc::PROT_READ | libc::PROT_WRITE;
        let consumed = Mapping::new(&fd, page, write, 0).map_err(failed)?;
        let records = Mapping::new(&fd, page + 2 * len, libc::PROT_READ, page).map_err(failed)?;
        let mut ring = Self {
            fd,
            consumed,
            records,
            page,
            len,
            position: 0,
        };
        ring.position = ring.consumed.word(0).load(Ordering::Relaxed);
        Ok(ring)
    }

    /// Where the next one begins; given to [`Self::release`] when all before it is done with.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// The next record; `None`: there is none yet.
    pub(super) fn read(&mut self) -> Option<&[u8]> {
        loop {
            if self.position >= self.records.word(0).load(Ordering::Acquire) {
                return None;
            }
            let at = self.page + (self.position as usize & (self.len - 1));
            let head = self.records.half(at).load(Ordering::Acquire);
            if head & BUSY != 0 {
                return None;
            }
            let len = (head & !DISCARD) as usize;
            self.position += footprint(len);
            if head & DISCARD == 0 {
                return Some(self.records.bytes(at + HEAD, len));
            }
        }
    }

    /// Goes back to `position`: what is after it is read again.
    pub(super) fn rewind(&mut self, position: u64) {
        self.position = position;
    }

    /// Gives the programs the room before `position` back. [`Self::read`] after it: of what came while there was something to
    /// give back, nobody was woken.
    pub(super) fn release(&mut self, position: u64) {
        self.consumed.word(0).store(position, Ordering::Release);
        // The programs look at this word after they have committed a record, and the next read at the record.
        fence(Ordering::SeqCst);
    }
}

/// Bytes that a record of `len` takes of the ring.
pub(super) fn footprint(len: usize) -> u64 {
    (len + HEAD).next_multiple_of(8) as u64
}

impl std::os::fd::AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// A part of the ring's map in memory, until it is dropped.
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is the kernel's, and nothing of it belongs to a thread.
unsafe impl Send for Mapping {}
// SAFETY: as above; what others write at the same time is read as atomics, and records once they are committed.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(fd: impl AsFd, len: usize, access: libc::c_int, offset: usize) -> io::Result<Self> {
        let fd = fd.as_fd().as_raw_fd();
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                access,
                libc::MAP_SHARED,
                fd,
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Self { start, len })
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        // SAFETY: within the mapping, aligned.
        unsafe { self.part(at, 8).cast().as_ref() }
    }

    fn half(&self, at: usize) -> &AtomicU32 {
        // SAFETY: within the mapping, aligned.
        unsafe { self.part(at, 4).cast().as_ref() }
    }

    /// Of a record that is committed: nobody writes to it until it is released.
    fn bytes(&self, at: usize, len: usize) -> &[u8] {
        // SAFETY: within the mapping.
        unsafe { std::slice::from_raw_parts(self.part(at, len).as_ptr(), len) }
    }

    /// Where `len` bytes begin, at a multiple of four or, if they are eight, of eight.
    fn part(&self, at: usize, len: usize) -> NonNull<u8> {
        let aligned = at.is_multiple_of(if len == 8 { 8 } else { 4 });
        assert!(aligned && at + len <= self.len, "{at} of {}", self.len);
        // SAFETY: asserted.
        unsafe { self.start.add(at) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and nothing borrows from it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
