//! Locks of the daemon's tables. No thread takes one while it holds another, so there is no order to keep; debug builds,
//! and with them the tests, panic where one does.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A table, for as long as this lives.
pub(crate) struct TableGuard<'m, T> {
    guard: MutexGuard<'m, T>,
    _alone: Alone,
}

/// A poisoned lock means that a thread panicked between two consistent states of a table: going on denies no more and
/// allows no more than before.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> TableGuard<'_, T> {
    let alone = Alone::new();
    TableGuard {
        guard: mutex.lock().unwrap_or_else(PoisonError::into_inner),
        _alone: alone,
    }
}

impl<T> Deref for TableGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for TableGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

/// The one lock that this thread holds. It does not leave the thread, as a guard does not.
struct Alone(PhantomData<*const ()>);

#[cfg(debug_assertions)]
thread_local! {
    static HELD: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

impl Alone {
    fn new() -> Self {
        #[cfg(debug_assertions)]
        assert!(
            !HELD.replace(true),
            "a lock of the daemon's is taken while this thread holds another"
        );
        Self(PhantomData)
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        #[cfg(debug_assertions)]
        HELD.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_after_another_is_fine() {
        let (a, b) = (Mutex::new(1), Mutex::new(2));
        *lock(&a) += 1;
        let first = *lock(&a);
        assert_eq!(first, *lock(&b));
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "holds another")]
    fn one_within_another_is_not() {
        let (a, b) = (Mutex::new(1), Mutex::new(2));
        let _first = lock(&a);
        let _second = lock(&b);
    }
}
