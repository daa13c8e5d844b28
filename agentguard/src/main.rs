//! The `agentguard` command.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Freed pages go back to the kernel after 20 ms (`dirty_decay_ms` of `jemalloc(3)`, by default 10 s): an upload frees as
/// many as it has bytes, and at hundreds of MB/s those of ten seconds are more than all that it holds.
#[expect(unsafe_code, reason = "jemalloc reads its options from this symbol")]
#[unsafe(export_name = "_rjem_malloc_conf")]
static OPTIONS: &[u8; 18] = b"dirty_decay_ms:20\0";

fn main() -> ExitCode {
    agentguard::cli::main()
}
