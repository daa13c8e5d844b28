//! The control API as its callers know it: the types of its requests and answers ([`api`]), and a client.

#![forbid(unsafe_code)]

pub mod api;
pub mod client;
