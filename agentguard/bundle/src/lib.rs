//! A bundle as an artefact: files in a folder ([`store`]), packed and signed ([`pack`], [`key`]), and kept by the daemon
//! ([`history`]). What a bundle means is `agentguard-policy`'s affair.

#![forbid(unsafe_code)]

pub mod history;
pub mod key;
pub mod pack;
pub mod store;
