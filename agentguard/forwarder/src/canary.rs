//! What the canary is served with: a bundle, a name and a trust anchor of its own.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use agentguard_common::abi::AgentId;
use agentguard_link::canary::{HOST, PERMITTED};
use agentguard_link::frame::{CanaryOrigin, Upstream};
use agentguard_link::state::{Names, PolicyUpdate};
use agentguard_link::ways::Ways;
use agentguard_policy::Sources;

/// Where its requests go: to the daemon's own origin on this host, and nowhere else.
pub(crate) fn upstream(origin: &CanaryOrigin) -> Upstream {
    Upstream {
        roots: vec![origin.certificate.clone()],
        allow_addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST).into()],
        ways: Ways::default(),
    }
}

/// The one name that they have.
pub(crate) fn names() -> Names {
    Names {
        hosts: BTreeMap::from([(HOST.to_owned(), vec![IpAddr::V4(Ipv4Addr::LOCALHOST)])]),
        resolvers: Vec::new(),
    }
}

pub(crate) fn bundle(port: u16) -> PolicyUpdate {
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
