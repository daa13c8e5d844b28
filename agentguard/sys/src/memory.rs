//! The allocator's memory.

/// Returns what is free in every arena to the kernel (`malloc_trim(3)`): glibc keeps it otherwise, whatever was freed.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the arenas' locks itself and touches only what is free.
    unsafe {
        libc::malloc_trim(0);
    }
}
