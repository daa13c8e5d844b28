//! What the canary is served with: a bundle, a resolver and a trust anchor of its own. Its requests take the way of every
//! agent's, and nothing that is let through for them is there for an agent.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use agentguard_common::abi::AgentId;
use agentguard_link::canary::{HOST, PERMITTED};
use agentguard_link::frame::{CanaryOrigin, PolicyUpdate, Upstream};
use agentguard_policy::Sources;
use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::resolve::Resolver;
use super::situation::Situation;
use super::tasks::Tasks;
use super::upstream::{Tag, Upstreams};
use super::{Forwarder, orders};

impl Forwarder {
    /// For the canary in the place of `self`.
    pub(super) fn for_canary(&self, origin: &CanaryOrigin, tag: Tag) -> anyhow::Result<Self> {
        let upstream = Upstream {
            roots: vec![origin.certificate.clone()],
            hosts: BTreeMap::from([(HOST.to_owned(), vec![IpAddr::V4(Ipv4Addr::LOCALHOST)])]),
            resolvers: Vec::new(),
            allow_addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST).into()],
        };
        let resolver = Arc::new(Resolver::new(&upstream)?);
        let policy = orders::compile(&bundle(origin.port))?;
        Ok(Self {
            policy: Arc::new(ArcSwap::from_pointee(policy)),
            applied: watch::Sender::new(()),
            lives: self.lives.clone(),
            records: self.records.clone(),
            leaves: self.leaves.clone(),
            upstreams: Upstreams::new(resolver, &upstream.roots, &self.limits, tag)?,
            dns: self.dns.clone(),
            charges: self.charges.clone(),
            situation: Situation::new(false, Vec::new(), Tasks::default(), BTreeMap::new()),
            lookups: self.lookups.clone(),
            room: super::body::Room::new(&self.limits),
            asks: self.asks.clone(),
            limits: self.limits.clone(),
            canary: None,
        })
    }

    /// What `agent`'s connections are served with.
    pub(super) fn serving(self: Arc<Self>, agent: AgentId) -> Arc<Self> {
        match &self.canary {
            Some(canary) if agent.is_canary() => canary.clone(),
            _ => self,
        }
    }
}

fn bundle(port: u16) -> PolicyUpdate {
    let manifest = "name = \"canary\"\nserial = 1\nmode = \"enforce\"\n".to_owned();
    let agent = format!(
        "[agent]\nname = \"canary\"\nowner = \"agentguard\"\nrisk = \"low\"\n\
         [[reach]]\nhost = \"{HOST}:{port}\"\nallow = [\"GET {PERMITTED}\"]\n"
    );
    PolicyUpdate {
        sources: Sources {
            files: BTreeMap::from([
                ("bundle.toml".to_owned(), manifest),
                ("agents/canary.toml".to_owned(), agent),
            ]),
        },
        agents: BTreeMap::from([(AgentId::CANARY_HOSTS, "canary".to_owned())]),
        owners: BTreeMap::new(),
    }
}
