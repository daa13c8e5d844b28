//! Whom the commands believe: the daemon, and no other process that has put a socket in the place of its own.

use agentguard_common::abi::AgentId;
use agentguard_control::client::Client;
use agentguard_daemon::config::Config;
use agentguard_kernel::Switch;
use agentguard_sys::lock::{LockHolder, holder};
use agentguard_sys::peer::Peer;

/// A caller of the daemon that `config` is of.
pub(super) fn client(config: &Config) -> Client {
    let (pins, state) = (config.paths.pins.clone(), config.paths.state.clone());
    Client::new(&config.paths.control_socket(), move |peer| {
        is_daemon(peer, holder(&state))?;
        is_nobodys(peer, &pins)
    })
}

/// By its user, and by the lock that the daemon has on its state, as far as this process can see it.
fn is_daemon(peer: &Peer, daemon: LockHolder) -> Result<(), String> {
    if peer.uid != 0 {
        return Err(format!("a process of uid {}", peer.uid));
    }
    match daemon {
        LockHolder::By(tgid) if peer.tgid != 0 && peer.tgid != tgid => Err(format!(
            "process {}, and the daemon is process {tgid}",
            peer.tgid
        )),
        LockHolder::By(_) | LockHolder::Unknown => Ok(()),
    }
}

/// By its label, which only root can read.
fn is_nobodys(peer: &Peer, pins: &std::path::Path) -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let Ok(Some(switch)) = Switch::open(pins) else {
        return Ok(());
    };
    match switch.agent_of(peer.tgid) {
        Ok(AgentId::NONE) | Err(_) => Ok(()),
        Ok(_) => Err(format!("process {}, which is an agent's", peer.tgid)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_daemon_is_believed() {
        let peer = |tgid, uid| Peer::known(tgid, uid, Vec::new());
        for (peer, daemon, expected) in [
            (peer(7, 0), LockHolder::By(7), true),
            (peer(7, 0), LockHolder::Unknown, true),
            // In another pid namespace.
            (peer(0, 0), LockHolder::By(7), true),
            (peer(8, 0), LockHolder::By(7), false),
            (peer(7, 1000), LockHolder::By(7), false),
            (peer(7, 1000), LockHolder::Unknown, false),
        ] {
            assert_eq!(is_daemon(&peer, daemon).is_ok(), expected, "{peer:?}");
        }
    }
}
