//! What closes agents and opens them: the only room that changes what the kernel lets through.

pub mod apply;
pub mod canary;
pub mod expiry;
pub mod kill;
pub mod stop;
