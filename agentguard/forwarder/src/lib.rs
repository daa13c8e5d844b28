//! The forwarder process: the only one that parses bytes an agent sent.
//!
//! [`path`] is the product on one screen: what happens to a connection and to a request, stage by stage; the modules below
//! are in its order. The forwarder reads no file, holds no secret but leaf keys, and has no way out but [`upstream`],
//! which takes a permit, or a question that policy declares.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::wildcard_enum_match_arm))]

mod accept;
mod daemon;
mod doors;
mod path;

mod admit;
mod foreign;
mod order;
pub mod origin;
mod record;
mod sniff;

mod leaf;
mod opening;
mod passthrough;
mod terminate;

mod clock;
mod connect;
mod http;
mod session;
mod tunnel;
mod upgrade;

mod act;
mod exchange;
mod framing;
mod headers;
mod identity;
mod own;
mod protocol;
mod refusal;
mod respond;

mod body;
mod judge;
mod lookup;
mod situation;
mod tasks;

mod charges;
mod settle;

mod forward;
mod upload;
mod upstream;

mod relay;
mod reply;
mod standing;

pub mod address;
mod canary;
mod compile;
pub mod dns;
mod forwarder;
mod frames;
mod io;
mod life;
mod orders;
mod outbox;
pub mod resolve;
mod sandbox;
mod seat;
mod shares;
mod spool;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::runtime::{Builder, Runtime};

use self::origin::OriginSource;

/// What the daemon gave the forwarder at start, by inherited descriptor.
pub struct InheritedHandles {
    /// The `SOCK_SEQPACKET` link to the daemon.
    pub link: OwnedFd,
    pub origins: Arc<dyn OriginSource>,
}

/// Runs until the daemon says stop or the link closes. To be called while there is no other thread: the sandbox is for
/// those to come.
pub fn run(inherited: InheritedHandles) -> anyhow::Result<()> {
    let Some(first) = orders::begin(&inherited.link)? else {
        return Ok(());
    };
    let sandbox = sandbox::enter()?;
    let runtime = runtime(Builder::new_multi_thread())?;
    runtime.block_on(orders::follow(inherited, first, sandbox))
}

/// Without tokio's signal handling, which the forwarder has no use for and its sandbox no calls.
fn runtime(mut builder: Builder) -> anyhow::Result<Runtime> {
    let built = builder.enable_io().enable_time().build();
    built.context("cannot start the runtime")
}
