//! Where the host is: whether its interfaces, addresses, default routes and search domains are those of a network that the
//! configuration trusts. What cannot be read is not trusted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agentguard_link::state::Delta;
use agentguard_sys::network::{NetworkChanges, NetworkView};
use tokio_util::sync::CancellationToken;

use super::Host;
use super::config::TrustedNetwork;
use crate::forwarder::ForwarderLink;

/// What no message tells (the resolver's configuration) is looked at this often.
const LOOK: Duration = Duration::from_secs(30);

/// Whether the host is on a trusted network.
pub struct Network {
    trusted: AtomicBool,
}

impl Network {
    /// Listens before it looks, so that no change is missed. Must be called in a tokio runtime.
    pub fn start(trusted: &[TrustedNetwork]) -> std::io::Result<(Self, NetworkChanges)> {
        let changes = NetworkChanges::new()?;
        let handle = Self {
            trusted: AtomicBool::new(look(trusted)),
        };
        Ok((handle, changes))
    }

    pub fn is_trusted(&self) -> bool {
        self.trusted.load(Ordering::Relaxed)
    }
}

/// Tells the forwarder of every change, until the daemon stops.
pub(crate) async fn serve(
    host: Arc<Host>,
    forwarder: ForwarderLink,
    changes: NetworkChanges,
    stop: CancellationToken,
) {
    let trusted = &host.config.network.trusted;
    if trusted.is_empty() {
        return;
    }
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
            changed = changes.next() => if let Err(error) = changed {
                tracing::error!(%error, "changes of the network cannot be awaited: it is not trusted any more");
                host.network.trusted.store(false, Ordering::Relaxed);
                return forwarder.tell(Delta::TrustedNetwork(false)).await;
            },
        }
        let now = look(trusted);
        if host.network.trusted.swap(now, Ordering::Relaxed) != now {
            tracing::warn!(trusted = now, "the host is on another network");
            forwarder.tell(Delta::TrustedNetwork(now)).await;
        }
    }
}

fn look(trusted: &[TrustedNetwork]) -> bool {
    if trusted.is_empty() {
        return false;
    }
    match NetworkView::now() {
        Ok(seen) => trusted.iter().any(|network| is(network, &seen)),
        Err(error) => {
            tracing::error!(%error, "the host's network cannot be read and is not trusted");
            false
        }
    }
}

/// Whether everything holds that the block says, and it says something.
fn is(network: &TrustedNetwork, seen: &NetworkView) -> bool {
    let TrustedNetwork {
        interface,
        source,
        gateway,
        domain,
    } = network;
    let on = |name: &str| interface.as_ref().is_none_or(|wanted| wanted == name);
    let says_something =
        interface.is_some() || source.is_some() || gateway.is_some() || domain.is_some();
    let up = interface.is_none() || seen.up.iter().any(|name| on(name));
    let has_address = |net: &ipnet::IpNet| {
        let mut addresses = seen.addresses.iter();
        addresses.any(|(name, addr)| on(name) && net.contains(addr))
    };
    let has_gateway = |addr: &std::net::IpAddr| {
        let mut gateways = seen.gateways.iter();
        gateways.any(|(name, gateway)| on(name) && gateway == addr)
    };
    let searches = |domain: &String| {
        seen.domains
            .iter()
            .any(|it| it.eq_ignore_ascii_case(domain))
    };
    says_something
        && up
        && source.as_ref().is_none_or(has_address)
        && gateway.as_ref().is_none_or(has_gateway)
        && domain.as_ref().is_none_or(searches)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_a_block_has_to_hold() {
        let seen = NetworkView {
            up: vec!["lo".into(), "wg0".into()],
            addresses: vec![
                ("lo".into(), "127.0.0.1".parse().unwrap()),
                ("wg0".into(), "10.20.0.7".parse().unwrap()),
            ],
            gateways: vec![("eth0".into(), "192.0.2.1".parse().unwrap())],
            domains: vec!["corp.example".into()],
        };
        for (block, expected) in [
            ("", false),
            ("interface = \"wg0\"", true),
            ("interface = \"wg1\"", false),
            ("source = \"10.20.0.0/16\"", true),
            ("source = \"10.21.0.0/16\"", false),
            ("interface = \"wg0\"\nsource = \"10.20.0.0/16\"", true),
            ("interface = \"lo\"\nsource = \"10.20.0.0/16\"", false),
            ("gateway = \"192.0.2.1\"", true),
            ("interface = \"wg0\"\ngateway = \"192.0.2.1\"", false),
            ("domain = \"CORP.example\"", true),
            ("domain = \"example\"", false),
            (
                "domain = \"corp.example\"\nsource = \"192.0.2.0/24\"",
                false,
            ),
        ] {
            assert_eq!(
                is(&toml::from_str(block).unwrap(), &seen),
                expected,
                "{block}"
            );
        }
    }
}
