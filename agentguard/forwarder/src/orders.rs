//! What the daemon says and what it is told: start, bundles, leaves, kills, records in batches.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use agentguard_link::channel::{self, Receiver};
use agentguard_link::frame::{Sandbox, Start, ToDaemon, ToForwarder};
use agentguard_link::listen::{Bound, listen};
use agentguard_policy::Policy;
use agentguard_sys::socket::netns_cookie;
use anyhow::{Context, bail};
use tokio::runtime::Builder;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::compile::compile;
use super::doors::Doors;
use super::forwarder::Forwarder;
use super::outbox::Outbox;
use super::{Inherited, upstream};

/// Idle upstream connections are looked through this often.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// How long connections may take to be gone after a stop.
const STOP: Duration = Duration::from_secs(2);

/// The daemon's first word, and what it takes to listen as it says, which the sandbox would refuse. `None` if there is no
/// daemon any more.
pub fn begin(link: &OwnedFd) -> anyhow::Result<Option<(Start, Bound)>> {
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
    let bound = listen(start.port)
        .with_context(|| format!("listening on port {} of 127.0.0.1 and ::1", start.port))?;
    Ok(Some((start, bound)))
}

/// Follows the daemon's orders until it says stop or is gone. Without a daemon there is nobody to record decisions: the
/// forwarder ends, and the kernel refuses what agents connect.
pub async fn follow(
    inherited: Inherited,
    start: Start,
    bound: Bound,
    sandbox: Sandbox,
) -> anyhow::Result<()> {
    let (sender, mut receiver) = channel::open::<ToDaemon, ToForwarder>(inherited.link)?;
    let (listener4, listener6) = bound.cookies()?;
    let ready = ToDaemon::Ready {
        port: bound.port,
        listener4,
        listener6,
        sandbox,
    };
    let (forwarder, inbox) = Forwarder::new(start, upstream::tag)?;
    let outbox = Outbox::start(sender, inbox, forwarder.lives.clone());
    let mut doors = Doors::new(forwarder.clone(), inherited.origins, outbox.clone());
    doors.open(netns_cookie()?, bound)?;
    sweep(&forwarder);
    outbox.say(ready);
    let followed = orders(&forwarder, &mut receiver, &outbox, &mut doors).await;
    drop(doors);
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

/// Looks through idle upstream connections for as long as the forwarder is there.
fn sweep(forwarder: &Arc<Forwarder>) {
    let forwarder = Arc::downgrade(forwarder);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            let Some(forwarder) = forwarder.upgrade() else {
                return;
            };
            forwarder.sweep();
        }
    });
}

/// Carries out one order after another. Compiling a bundle holds nothing up.
async fn orders(
    forwarder: &Arc<Forwarder>,
    receiver: &mut Receiver<ToForwarder>,
    outbox: &Outbox,
    doors: &mut Doors,
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
            Some(ToForwarder::Enter { netns }) => {
                let bound = Bound::from_descriptors(receiver.take_descriptors());
                let bound = bound.context("the daemon's listeners are none")?;
                if let Err(error) = doors.open(netns, bound) {
                    tracing::error!(%error, netns, "a namespace's listeners cannot be served");
                    outbox.say(ToDaemon::Lost { netns });
                }
            }
            Some(ToForwarder::Leave { netns }) => doors.close(netns),
            Some(ToForwarder::Start(_)) => bail!("the daemon said Start twice"),
            Some(ToForwarder::Policy(update)) => {
                if let Some(earlier) = compiling.take() {
                    apply(forwarder, outbox, earlier.await??);
                }
                compiling = Some(tokio::task::spawn_blocking(move || compile(&update)));
            }
            Some(ToForwarder::Leaf { name, result }) => forwarder.leaves.arrived(&name, result),
            Some(ToForwarder::Charged { token, room }) => forwarder.charges.arrived(token, room),
            Some(ToForwarder::Kill { agents }) => {
                let live = forwarder.lives.connections();
                let count = |agent| (agent, live.get(&agent).copied().unwrap_or(0));
                let dropped = agents.keys().copied().map(count).collect();
                let gone = forwarder.lives.kill(&agents);
                let outbox = outbox.clone();
                tokio::spawn(async move {
                    gone.await;
                    outbox.say(ToDaemon::Killed { dropped });
                });
            }
            Some(ToForwarder::Revive { agents }) => forwarder.lives.revive(&agents),
            Some(ToForwarder::Flush { token }) => outbox.say(ToDaemon::Flushed { token }),
            Some(ToForwarder::Network { trusted }) => forwarder.situation.set_trusted(trusted),
            Some(ToForwarder::Tasks { agent, tasks }) => {
                let set = forwarder.situation.tasks.set(agent, &tasks);
                set.map_err(anyhow::Error::msg)
                    .context("the daemon's tasks cannot be read here")?;
            }
            Some(ToForwarder::TaskChanged { token, result }) => {
                forwarder.asks.answered(token, result);
            }
            Some(ToForwarder::Presence(changes)) => forwarder.situation.follow(&changes),
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
