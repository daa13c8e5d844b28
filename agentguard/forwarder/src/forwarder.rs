//! What every connection is served with: the forwarder's parts, made from what the daemon says at start. The canary's
//! requests take the way of every agent's, and nothing that is let through for them is there for an agent.

use std::fs::File;
use std::sync::Arc;

use agentguard_common::abi::AgentId;
use agentguard_link::frame::{CanaryOrigin, Limits, Start, ToDaemon};
use agentguard_link::state::State;
use agentguard_policy::Policy;
use agentguard_record::{DecidedBy, DenyReason};
use agentguard_sys::memory;
use arc_swap::ArcSwap;
use futures_util::FutureExt as _;
use tokio::sync::{mpsc, watch};

use super::body::BodyMemory;
use super::charges::Charges;
use super::compile::compile;
use super::daemon::Daemon;
use super::leaf::Leaves;
use super::life::Lives;
use super::lookup::Lookups;
use super::record::RecordSender;
use super::resolve::NameResolver;
use super::shares::AllShares;
use super::situation::Situation;
use super::spool::Spool;
use super::upstream::{Tag, Upstreams};
use super::{canary, dns};

/// What every connection is served with.
pub(crate) struct Forwarder {
    pub policy: Arc<ArcSwap<Policy>>,
    /// Told when another bundle is in force.
    pub applied: watch::Sender<()>,
    pub lives: Arc<Lives>,
    pub records: Arc<RecordSender>,
    pub leaves: Arc<Leaves>,
    pub upstreams: Upstreams,
    pub dns: Arc<dns::Server>,
    pub situation: Situation,
    pub daemon: Arc<Daemon>,
    pub lookups: Arc<Lookups>,
    pub charges: Arc<Charges>,
    /// What all agents' work waits for.
    pub shares: Arc<AllShares>,
    pub limits: Limits,
    /// What the canary's connections are served with.
    canary: Option<Arc<Self>>,
    /// For the bodies that rules read.
    pub room: BodyMemory,
}

/// What is on its way to the daemon.
pub(crate) struct Inbox {
    pub spool: Arc<Spool>,
    /// What is asked of the daemon, and what it need not answer.
    pub calls: mpsc::UnboundedReceiver<ToDaemon>,
}

impl Forwarder {
    /// `spool`: its files. Must be called in a tokio runtime.
    pub(crate) fn new(
        start: Start,
        spool: Vec<File>,
        tag: Tag,
    ) -> anyhow::Result<(Arc<Self>, Inbox)> {
        let policy = Arc::new(ArcSwap::from_pointee(compile(&start.state.policy)?));
        let resolver = Arc::new(NameResolver::new(&start.upstream, &start.state.names)?);
        let spool = Spool::start(spool, start.spool, start.strict)?;
        let (out, calls) = mpsc::unbounded_channel();
        let daemon = Arc::new(Daemon::new(out));
        let lives = Arc::new(Lives::default());
        // Nothing of theirs is there yet to wait for.
        drop(lives.kill(&start.state.stopped));
        let book = Arc::new(RecordSender::new(spool.clone()));
        book.set_available(start.state.audit_writable);
        let gate = gate(lives.clone(), book.clone());
        let keep = keep(book.clone());
        let tells = start.tells_refused_names;
        let dns = dns::Server::new(policy.clone(), resolver.clone(), keep, gate, tells);
        let names = &start.state.names;
        let upstreams = Upstreams::new(resolver, &start.upstream, names, &start.limits, tag)?;
        let shares = Arc::new(AllShares::default());
        let mut forwarder = Self {
            policy,
            applied: watch::Sender::new(()),
            lives,
            records: book,
            leaves: Arc::new(Leaves::new(daemon.clone())?),
            lookups: Arc::new(Lookups::new(upstreams.fetcher(), shares.clone())),
            shares,
            upstreams,
            dns: Arc::new(dns),
            room: BodyMemory::new(&start.limits),
            situation: Situation::new(start.state).map_err(anyhow::Error::msg)?,
            charges: Arc::new(Charges::new(daemon.clone())),
            daemon,
            limits: start.limits,
            canary: None,
        };
        forwarder.canary = Some(Arc::new(forwarder.for_canary(&start.canary, tag)?));
        Ok((Arc::new(forwarder), Inbox { spool, calls }))
    }

    /// For the canary in the place of `self`.
    fn for_canary(&self, origin: &CanaryOrigin, tag: Tag) -> anyhow::Result<Self> {
        let upstream = canary::upstream(origin);
        let names = canary::names();
        let resolver = Arc::new(NameResolver::new(&upstream, &names)?);
        let policy = compile(&canary::bundle(origin.port))?;
        Ok(Self {
            policy: Arc::new(ArcSwap::from_pointee(policy)),
            applied: watch::Sender::new(()),
            lives: self.lives.clone(),
            records: self.records.clone(),
            leaves: self.leaves.clone(),
            upstreams: Upstreams::new(resolver, &upstream, &names, &self.limits, tag)?,
            dns: self.dns.clone(),
            charges: self.charges.clone(),
            situation: Situation::new(State::default()).map_err(anyhow::Error::msg)?,
            lookups: self.lookups.clone(),
            shares: self.shares.clone(),
            room: BodyMemory::new(&self.limits),
            daemon: self.daemon.clone(),
            limits: self.limits.clone(),
            canary: None,
        })
    }

    /// What `agent`'s connections are served with.
    pub(crate) fn serving(self: &Arc<Self>, agent: AgentId) -> Arc<Self> {
        match &self.canary {
            Some(canary) if agent.is_canary() => canary.clone(),
            _ => self.clone(),
        }
    }

    /// Drops upstream connections that have been idle for too long, the canary's among them, and gives the memory back that
    /// many connections had.
    pub(crate) fn sweep(&self) {
        self.upstreams.sweep();
        if let Some(canary) = &self.canary {
            canary.upstreams.sweep();
        }
        if self.lives.have_shrunk() {
            memory::give_back();
        }
    }
}

/// Why an agent may do nothing at all now, for the resolver.
fn gate(lives: Arc<Lives>, records: Arc<RecordSender>) -> dns::Gate {
    Box::new(move |agent| {
        let no_record = || {
            let no_record = (DecidedBy::Host, DenyReason::AuditUnavailable);
            (!records.available()).then_some(no_record)
        };
        let stop = lives.of(agent).why().map(|why| (DecidedBy::Stop, why));
        stop.or_else(no_record)
    })
}

/// Where the resolver's records go.
fn keep(records: Arc<RecordSender>) -> dns::Keep {
    Box::new(move |draft| {
        let records = records.clone();
        async move { records.keep(&draft).await }.boxed()
    })
}
