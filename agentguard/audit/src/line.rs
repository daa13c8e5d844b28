//! One record as a line of JSON. Every field is always there, null where it does not apply, in one order.
//!
//! A decision has `operator: null`. What an operator did to the guard has `operator: {uid, user}`, the operation as
//! `action` (`kill`, `revive`, `suspend`, `activate`, `retire`, `reassign`, `task-start`, `task-end`, `policy-apply`, `policy-rollback`,
//! `policy-expire`, `start`, `stop`, `audit-recover`, `unload`), what it was done to as
//! `resource`, the reason given in `detail`, and null for what only a decision has. [`fields`] has each field's meaning.
//!
//! `prev` is the SHA-256 of the line before without its newline, lower-case hex; 64 zeros in the first record.

mod fields;
mod read;
mod write;

use std::borrow::Cow;

use serde::Deserialize;
use sha2::{Digest, Sha256};

pub use self::fields::{Field, fields};
pub use self::read::{
    ApprovalPart, BundlePart, Line, OperatorPart, ProcessPart, RequestPart, Text, UpstreamPart,
    Word,
};
pub use self::write::write;

/// SHA-256 as lower-case hex.
pub type Hash = [u8; 64];

/// `prev` of the first record.
pub const FIRST_PREV: Hash = [b'0'; 64];

/// Where a record stands in the chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChainPlace<'a> {
    pub seq: u64,
    pub prev: &'a Hash,
}

/// The hash that the next record's `prev` has to be. `line` is without its newline.
pub fn hash(line: &[u8]) -> Hash {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut hex = FIRST_PREV;
    for (pair, byte) in hex.chunks_exact_mut(2).zip(Sha256::digest(line)) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 0xf)];
    }
    hex
}

/// A line's place in the chain, read back. Requires the whole line to be JSON.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ChainLink<'a> {
    pub seq: u64,
    #[serde(borrow)]
    pub prev: Cow<'a, str>,
}

#[cfg(test)]
mod tests;
