//! What limits have counted: the one place that counts, kept on disk, so that no two requests take the same room and no
//! restart gives any back.
//!
//! [`counters`] is pure, [`journal`] is its file, and [`Ledger`] the thread that has both.

mod count;
pub(crate) mod counters;
mod journal;
mod ledger;
#[cfg(test)]
mod tests;

pub(crate) use self::ledger::{Ledger, Session};
