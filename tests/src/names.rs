//! Names of what a test makes on its host: of this process, and of one test in it.

use std::sync::atomic::{AtomicU32, Ordering};

/// A number that no other caller in this process gets.
pub(crate) fn serial() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// `agentguard-test-PROCESS-SERIAL`, for pins, folders and cgroups.
pub fn unique() -> String {
    format!("agentguard-test-{}-{}", std::process::id(), serial())
}
