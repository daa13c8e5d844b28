//! What is written down: records, what limits have counted, what an operator must know.

pub mod events;
pub mod limits;
pub mod records;
pub mod unix;
