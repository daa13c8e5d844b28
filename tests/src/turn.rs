//! The right to hold the kernel's hooks: the hooks of two sites would see each other's traffic.

use std::fs::File;

/// One file for all test programs. Each turn opens it anew, so that two threads of one process exclude one another as two
/// processes do.
const LOCK: &str = "/run/lock/agentguard-tests";

/// Held for as long as hooks are there; ends when it is dropped.
pub struct Turn {
    _lock: File,
}

impl Turn {
    /// Waits until nobody else holds hooks, and keeps everybody from it.
    pub fn alone() -> Self {
        let lock = open();
        lock.lock().expect("locked");
        Self { _lock: lock }
    }

    /// For hooks that leave the traffic of others in company alone. A test takes no second turn alone while it has this one.
    pub fn in_company() -> Self {
        let lock = open();
        lock.lock_shared().expect("locked");
        Self { _lock: lock }
    }
}

fn open() -> File {
    File::create(LOCK).expect("tests run as root")
}

#[cfg(test)]
mod tests {
    use std::fs::TryLockError;

    use super::*;

    #[test]
    fn a_turn_keeps_other_threads_of_this_process_from_theirs() {
        let company = Turn::in_company();
        let other = Turn::in_company();
        let is_held =
            || std::thread::spawn(|| matches!(open().try_lock(), Err(TryLockError::WouldBlock)));
        assert!(is_held().join().unwrap());
        drop(company);
        assert!(is_held().join().unwrap());
        drop(other);
        let alone = Turn::alone();
        let shared = std::thread::spawn(|| {
            matches!(open().try_lock_shared(), Err(TryLockError::WouldBlock))
        });
        assert!(shared.join().unwrap());
        drop(alone);
    }
}
