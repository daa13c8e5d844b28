//! What the daemon says: the start, what is other since, its questions and its answers, one after another.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use agentguard_link::calls::Token;
use agentguard_link::calls::to_forwarder::{ForwarderAnswer, ForwarderCall};
use agentguard_link::channel::{self, Receiver};
use agentguard_link::frame::{Sandbox, Start, ToDaemon, ToForwarder};
use agentguard_link::listen::BoundSockets;
use agentguard_link::state::Delta;
use agentguard_policy::Policy;
use anyhow::{Context, bail};
use tokio::runtime::Builder;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::compile::compile;
use super::doors::Doors;
use super::forwarder::Forwarder;
use super::outbox::Outbox;
use super::{InheritedHandles, upstream};

/// Idle upstream connections are looked through this often.
const SWEEP_EVERY: Duration = Duration::from_secs(3);
/// How long connections may take to be gone after a stop.
const STOP: Duration = Duration::from_secs(2);

/// The daemon's first word, and what came with it or follows from it that the sandbox would refuse.
pub(crate) struct FirstWord {
    pub start: Start,
    pub spool: Vec<File>,
}

/// `None` if there is no daemon any more.
pub(crate) fn begin(link: &OwnedFd) -> anyhow::Result<Option<FirstWord>> {
    // Of one thread, and gone before there is another.
    let runtime = super::runtime(Builder::new_current_thread())?;
    let first = runtime.block_on(async {
        let (_, mut receiver) = channel::open::<ToDaemon, ToForwarder>(link.try_clone()?)?;
        let first = receiver.receive().await?;
        anyhow::Ok((first, receiver.take_descriptors()))
    });
    let (first, descriptors) = first?;
    let start = match first {
        Some(ToForwarder::Start(start)) => *start,
        Some(_) => bail!("the daemon did not begin with Start"),
        None => return Ok(None),
    };
    Ok(Some(FirstWord {
        start,
        spool: descriptors.into_iter().map(File::from).collect(),
    }))
}

/// Follows the daemon's orders until it says stop or is gone. Without a daemon there is nobody to record decisions: the
/// forwarder ends, and the kernel refuses what agents connect.
pub(crate) async fn follow(
    inherited: InheritedHandles,
    first: FirstWord,
    sandbox: Sandbox,
) -> anyhow::Result<()> {
    let FirstWord { start, spool } = first;
    let (sender, mut receiver) = channel::open::<ToDaemon, ToForwarder>(inherited.link)?;
    let (forwarder, inbox) = Forwarder::new(start, spool, upstream::tag)?;
    let outbox = Outbox::start(sender, inbox, forwarder.lives.clone());
    let mut doors = Doors::new(forwarder.clone(), inherited.origins, outbox.clone());
    sweep(&forwarder);
    outbox.say(ToDaemon::Ready { sandbox });
    let mut orders = Orders {
        forwarder: &forwarder,
        outbox: &outbox,
        doors: &mut doors,
        compiling: None,
    };
    let followed = orders.follow(&mut receiver).await;
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
struct Orders<'a> {
    forwarder: &'a Arc<Forwarder>,
    outbox: &'a Outbox,
    doors: &'a mut Doors,
    compiling: Option<Compiling>,
}

/// A bundle on its way to be in force.
struct Compiling {
    job: JoinHandle<anyhow::Result<Policy>>,
    /// The call that is answered when it is.
    token: Option<Token>,
}

impl Orders<'_> {
    async fn follow(&mut self, receiver: &mut Receiver<ToForwarder>) -> anyhow::Result<()> {
        loop {
            let order = tokio::select! {
                compiled = compiled(&mut self.compiling) => {
                    let (policy, token) = compiled?;
                    self.put_in_force(policy, token);
                    continue;
                }
                () = self.forwarder.records.breaks() => {
                    bail!("the spool cannot be written");
                }
                order = receiver.receive() => order?,
            };
            match order {
                None | Some(ToForwarder::Stop) => return Ok(()),
                Some(ToForwarder::Start(_)) => bail!("the daemon said Start twice"),
                Some(ToForwarder::Delta(delta)) => self.take(delta, None).await?,
                Some(ToForwarder::Call { token, call }) => match call {
                    ForwarderCall::Flush => self.answer(Some(token), ForwarderAnswer::Done),
                    ForwarderCall::Take(delta) => self.take(delta, Some(token)).await?,
                },
                Some(ToForwarder::Answer { token, answer }) => {
                    self.forwarder.daemon.answered(token, answer);
                }
                Some(ToForwarder::Enter { netns }) => {
                    self.enter(netns, receiver.take_descriptors())?;
                }
                Some(ToForwarder::Leave { netns }) => self.doors.close(netns),
                Some(ToForwarder::Clean(segment)) => self.forwarder.records.cleaned(segment),
            }
        }
    }

    /// Has everything hold to `delta`, and then answers, if the daemon waits for it.
    async fn take(&mut self, delta: Delta, token: Option<Token>) -> anyhow::Result<()> {
        let taken = self.forwarder.situation.apply(delta.clone());
        taken
            .map_err(anyhow::Error::msg)
            .context("the daemon's tasks cannot be read here")?;
        match delta {
            Delta::Policy(update) => {
                if self.compiling.is_some() {
                    let (earlier, token) = compiled(&mut self.compiling).await?;
                    self.put_in_force(earlier, token);
                }
                let job = tokio::task::spawn_blocking(move || compile(&update));
                self.compiling = Some(Compiling { job, token });
                return Ok(());
            }
            Delta::Stopped(agents) => {
                let live = self.forwarder.lives.connections();
                let count = |agent| (agent, live.get(&agent).copied().unwrap_or(0));
                let dropped = agents.keys().copied().map(count).collect();
                let gone = self.forwarder.lives.kill(&agents);
                let outbox = self.outbox.clone();
                tokio::spawn(async move {
                    gone.await;
                    answer(&outbox, token, ForwarderAnswer::Dropped(dropped));
                });
                return Ok(());
            }
            Delta::Freed(agents) => self.forwarder.lives.revive(&agents),
            Delta::AuditWritable(is) => self.forwarder.records.set_available(is),
            Delta::Names(names) => {
                self.forwarder.dns.resolver.learn(&names);
                self.forwarder.upstreams.learn(&names);
            }
            // Read where they are needed.
            Delta::TrustedNetwork(_) | Delta::Tasks { .. } | Delta::Presences(_) => {}
        }
        self.answer(token, ForwarderAnswer::Done);
        Ok(())
    }

    fn put_in_force(&self, policy: Policy, token: Option<Token>) {
        self.forwarder.policy.store(Arc::new(policy));
        self.forwarder.applied.send_replace(());
        self.answer(token, ForwarderAnswer::Done);
    }

    fn enter(&mut self, netns: u64, descriptors: Vec<OwnedFd>) -> anyhow::Result<()> {
        let bound = BoundSockets::from_descriptors(descriptors);
        let bound = bound.context("the daemon's listeners are none")?;
        if let Err(error) = self.doors.open(netns, bound) {
            tracing::error!(%error, netns, "a namespace's listeners cannot be served");
            self.outbox.say(ToDaemon::Lost { netns });
        }
        Ok(())
    }

    fn answer(&self, token: Option<Token>, what: ForwarderAnswer) {
        answer(self.outbox, token, what);
    }
}

fn answer(outbox: &Outbox, token: Option<Token>, answer: ForwarderAnswer) {
    if let Some(token) = token {
        outbox.say(ToDaemon::Answer { token, answer });
    }
}

/// The bundle, when it is compiled; for ever if none is. Cancel-safe.
async fn compiled(compiling: &mut Option<Compiling>) -> anyhow::Result<(Policy, Option<Token>)> {
    let Some(Compiling { job, token }) = compiling else {
        return std::future::pending().await;
    };
    let (policy, token) = (job.await, *token);
    *compiling = None;
    Ok((policy??, token))
}
