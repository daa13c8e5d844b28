//! What the daemon says and what it is told: start, bundles, leaves, kills, records in batches.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::{TcpListener, UdpSocket};
use tokio::runtime::Builder;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::listen::{Listening, listen};
use super::origin::OriginSource;
use super::outbox::Outbox;
use super::{Forwarder, Inherited, accept, upstream};
use crate::kernel::OriginMaps;
use crate::link::channel::{self, Receiver};
use crate::link::frame::{PolicyUpdate, Sandbox, Start, ToDaemon, ToForwarder};
use crate::policy::Policy;
use crate::sys::socket::netns_cookie;

/// Idle upstream connections are looked through this often.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// How long connections may take to be gone after a stop.
const STOP: Duration = Duration::from_secs(2);

/// The daemon's first word, and what it takes to listen as it says, which the sandbox would refuse. `None` if there is no
/// daemon any more.
pub fn begin(link: &OwnedFd) -> anyhow::Result<Option<(Start, Listening)>> {
    // Of one thread, and gone before there is another.
    let runtime = super::runtime(Builder::new_current_thread())?;
    let first = runtime.block_on(async {
        let (_, mut receiver) = channel::open::<ToDaemon, ToForwarder>(link.try_clone()?)?;
        anyhow::Ok(receiver.receive().await?)
    });
    let start = match first? {
        Some(ToForwarder::Start(start)) => *start,
        Some(_) => bail!("the daemon did not begin with Start"),
        None => return Ok(None),
    };
    let listening = listen(start.port)
        .with_context(|| format!("listening on port {} of 127.0.0.1 and ::1", start.port))?;
    Ok(Some((start, listening)))
}

/// Follows the daemon's orders until it says stop or is gone. Without a daemon there is nobody to record decisions: the
/// forwarder ends, and the kernel refuses what agents connect.
pub async fn follow(
    inherited: Inherited,
    start: Start,
    listening: Listening,
    sandbox: Sandbox,
) -> anyhow::Result<()> {
    let (sender, mut receiver) = channel::open::<ToDaemon, ToForwarder>(inherited.link)?;
    let maps = Arc::new(OriginMaps::from_fds(inherited.accepted, inherited.flows));
    let ready = ToDaemon::Ready {
        port: listening.port,
        listener4: listening.v4.cookie,
        listener6: listening.v6.as_ref().map(|v6| v6.cookie),
        sandbox,
    };
    let (forwarder, inbox) = Forwarder::new(start, upstream::tag)?;
    let outbox = Outbox::start(sender, inbox, forwarder.lives.clone());
    let stop = CancellationToken::new();
    open(&forwarder, listening, &maps, &stop)?;
    outbox.say(ready);
    let followed = orders(&forwarder, &mut receiver, &outbox).await;
    stop.cancel();
    if timeout(STOP, forwarder.lives.end()).await.is_err() {
        tracing::warn!(
            "connections are still there {} s after the stop",
            STOP.as_secs()
        );
    }
    drop(forwarder);
    outbox.finish().await;
    followed
}

/// Starts accepting and answering on all sockets.
fn open(
    forwarder: &Arc<Forwarder>,
    listening: Listening,
    maps: &Arc<OriginMaps>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let netns = netns_cookie()?;
    let places = forwarder.limits.max_connections as usize;
    let places = Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS)));
    for sockets in [Some(listening.v4), listening.v6].into_iter().flatten() {
        let origins: Arc<dyn OriginSource> = Arc::new(maps.clone());
        tokio::spawn(accept::accept(
            forwarder.clone(),
            TcpListener::from_std(sockets.tcp)?,
            origins,
            places.clone(),
            stop.clone(),
        ));
        let lookup = maps.clone();
        let datagrams = forwarder.dns.clone().serve_datagrams(
            UdpSocket::from_std(sockets.udp)?,
            netns,
            move |key| lookup.datagram(key),
        );
        let stop = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                served = datagrams => if let Err(error) = served {
                    tracing::error!(%error, "the agents' resolver stopped");
                }
            }
        });
    }
    let forwarder = Arc::downgrade(forwarder);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            let Some(forwarder) = forwarder.upgrade() else {
                return;
            };
            forwarder.lives.each(|life| life.pool.sweep());
        }
    });
    Ok(())
}

/// Carries out one order after another. Compiling a bundle holds nothing up.
async fn orders(
    forwarder: &Arc<Forwarder>,
    receiver: &mut Receiver<ToForwarder>,
    outbox: &Outbox,
) -> anyhow::Result<()> {
    let mut compiling: Option<JoinHandle<anyhow::Result<Policy>>> = None;
    loop {
        let order = tokio::select! {
            compiled = async { compiling.as_mut().expect("checked").await }, if compiling.is_some() => {
                compiling = None;
                apply(forwarder, outbox, compiled??);
                continue;
            }
            order = receiver.receive() => order?,
        };
        match order {
            None | Some(ToForwarder::Stop) => return Ok(()),
            Some(ToForwarder::Start(_)) => bail!("the daemon said Start twice"),
            Some(ToForwarder::Policy(update)) => {
                if let Some(earlier) = compiling.take() {
                    apply(forwarder, outbox, earlier.await??);
                }
                compiling = Some(tokio::task::spawn_blocking(move || compile(&update)));
            }
            Some(ToForwarder::Leaf { name, result }) => forwarder.leaves.arrived(&name, result),
            Some(ToForwarder::Kill { agents }) => {
                let gone = forwarder.lives.kill(&agents);
                let outbox = outbox.clone();
                tokio::spawn(async move {
                    gone.await;
                    outbox.say(ToDaemon::Killed { agents });
                });
            }
            Some(ToForwarder::Revive { agents }) => forwarder.lives.revive(&agents),
            Some(ToForwarder::Flush { token }) => outbox.say(ToDaemon::Flushed { token }),
            Some(ToForwarder::AuditAvailable(available)) => {
                forwarder.records.set_available(available);
            }
        }
    }
}

fn apply(forwarder: &Forwarder, outbox: &Outbox, policy: Policy) {
    let digest = policy.meta().digest.clone();
    forwarder.policy.store(Arc::new(policy));
    forwarder.applied.send_replace(());
    outbox.say(ToDaemon::Applied { digest });
}

/// The daemon has compiled it before: what does not compile here is a fault of ours, and no reason to go on with less.
pub fn compile(update: &PolicyUpdate) -> anyhow::Result<Policy> {
    let agents = update.agents.iter().map(|(id, name)| (name.clone(), *id));
    Policy::compile(&update.sources, &agents.collect()).map_err(|diagnostics| {
        let first = diagnostics.first().map(|it| it.message.as_str());
        anyhow::anyhow!(
            "the daemon's bundle does not compile here: {}",
            first.unwrap_or("?")
        )
    })
}
