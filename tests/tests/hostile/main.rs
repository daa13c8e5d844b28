//! Input that is broken or meant to deceive, from agents, origins and whoever writes bundles; a forwarder under an attacker's
//! control; and the ledger of the ways around.

mod http;
mod ledger;
mod policy;
mod readings;
#[cfg(target_arch = "x86_64")]
mod sandbox;
mod shares;
mod tls;
mod upstream;
