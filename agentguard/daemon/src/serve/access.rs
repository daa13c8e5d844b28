//! Who may do what. Root may do everything; a process of an agent's nothing, whatever its uid; everyone else what their
//! `[[roles]]` give them.
//!
//! | role | may |
//! |---|---|
//! | viewer | `status`, `agents`, `policy show`, `policy history`, `policy explain`, `audit`, `task list` |
//! | responder | also `kill` and `revive` |
//! | admin | also `task start` and `task end` for every agent, `policy apply` and `policy rollback`, and `agents suspend`, `activate`, `retire`, `reassign` |
//! | anyone | `ca`; `run`, `task start`, `task end` and `task list` of the agents whose `start_by` lists them |
//! | root | everything, `unload` included |

use agentguard_common::abi::Label;
use agentguard_sys::peer::Peer;
use agentguard_sys::user;

use crate::config::{Role, RoleGrant};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// The CA certificate: agents hold it anyway.
    Trust,
    /// Judged further by the agent's `start_by`.
    Run,
    /// Judged further by that, too, or [`is_admin`]; looking at them by [`may_look`].
    Task,
    Look,
    Kill,
    /// Whose agents are, and whether they are in use.
    Register,
    Apply,
    Unload,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("a process of an agent's may not use the control socket")]
    Labelled,
    #[error("the process that connected has ended, so it cannot be known who asks")]
    Gone,
    #[error("{user} may not do that: it needs {needs}")]
    NotAllowed { user: String, needs: &'static str },
}

/// Judges a caller. `label` reads its label; asked while the caller is known to be alive, so that its tgid is still its own.
pub fn check<E>(
    peer: &Peer,
    verb: Verb,
    roles: &[RoleGrant],
    label: impl FnOnce(u32) -> Result<Label, E>,
) -> Result<(), Refused> {
    let labelled = label(peer.tgid).map_or(true, |label| label != Label::default());
    if labelled {
        return Err(Refused::Labelled);
    }
    if peer.tgid == 0 || !peer.is_alive() {
        return Err(Refused::Gone);
    }
    if allowed(peer, verb, roles, user::gid) {
        return Ok(());
    }
    Err(lacks(peer, verb))
}

fn lacks(peer: &Peer, verb: Verb) -> Refused {
    let needs = match verb {
        Verb::Trust | Verb::Run | Verb::Task | Verb::Unload => "root",
        Verb::Look => "root, or a [[roles]] entry in agentguard.toml with the role `viewer`",
        Verb::Kill => "root, or a [[roles]] entry in agentguard.toml with the role `responder`",
        Verb::Register | Verb::Apply => {
            "root, or a [[roles]] entry in agentguard.toml with the role `admin`"
        }
    };
    let user = user::name(peer.uid);
    Refused::NotAllowed { user, needs }
}

/// Root, or who has the role `viewer`: for what others see a part of.
pub fn may_look(peer: &Peer, roles: &[RoleGrant]) -> Result<(), Refused> {
    match allowed(peer, Verb::Look, roles, user::gid) {
        true => Ok(()),
        false => Err(lacks(peer, Verb::Look)),
    }
}

/// Root, or who has the role `admin`.
pub fn is_admin(peer: &Peer, roles: &[RoleGrant]) -> bool {
    allowed(peer, Verb::Register, roles, user::gid)
}

fn allowed(
    peer: &Peer,
    verb: Verb,
    roles: &[RoleGrant],
    gid: impl Fn(&str) -> Option<u32>,
) -> bool {
    let least = match verb {
        _ if peer.uid == 0 => return true,
        Verb::Trust | Verb::Run | Verb::Task => return true,
        Verb::Unload => return false,
        Verb::Look => Role::Viewer,
        Verb::Kill => Role::Responder,
        Verb::Register | Verb::Apply => Role::Admin,
    };
    roles.iter().any(|grant| {
        grant.role >= least && gid(&grant.group).is_some_and(|gid| peer.groups.contains(&gid))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use agentguard_common::abi::AgentId;

    use super::*;

    fn grants() -> Vec<RoleGrant> {
        [
            ("watch", Role::Viewer),
            ("respond", Role::Responder),
            ("admin", Role::Admin),
        ]
        .map(|(group, role)| RoleGrant {
            group: group.into(),
            role,
        })
        .to_vec()
    }

    fn gid(name: &str) -> Option<u32> {
        match name {
            "watch" => Some(10),
            "respond" => Some(20),
            "admin" => Some(30),
            _ => None,
        }
    }

    #[test]
    fn the_permission_table() {
        use Verb::{Apply, Kill, Look, Register, Run, Task, Trust, Unload};
        const VERBS: [Verb; 8] = [Trust, Run, Task, Look, Kill, Register, Apply, Unload];
        for (uid, group, may) in [
            (0, 0, &VERBS[..]),
            (1000, 99, &[Trust, Run, Task][..]),
            (1000, 10, &[Trust, Run, Task, Look][..]),
            (1000, 20, &[Trust, Run, Task, Look, Kill][..]),
            (
                1000,
                30,
                &[Trust, Run, Task, Look, Kill, Register, Apply][..],
            ),
        ] {
            let peer = Peer::known(7, uid, vec![group]);
            for verb in VERBS {
                let is = allowed(&peer, verb, &grants(), gid);
                assert_eq!(is, may.contains(&verb), "uid {uid} group {group} {verb:?}");
            }
        }
    }

    #[test]
    fn a_labelled_caller_is_refused_even_as_root() {
        let (socket, _other) = UnixStream::pair().unwrap();
        let peer = Peer::of(&socket).unwrap();
        let label = |agent, flags| move |_| Ok::<_, ()>(Label { agent, flags });
        for (given, expected) in [
            (label(AgentId(2), 0), Err(Refused::Labelled)),
            (label(AgentId::AMBIGUOUS, 0), Err(Refused::Labelled)),
            (
                label(AgentId::NONE, Label::DENY_ALL),
                Err(Refused::Labelled),
            ),
        ] {
            assert_eq!(check(&peer, Verb::Look, &[], given), expected);
        }
        let unreadable = |_| Err::<Label, ()>(());
        assert_eq!(
            check(&peer, Verb::Look, &[], unreadable),
            Err(Refused::Labelled)
        );
        if nix::unistd::geteuid().is_root() {
            let unlabelled = label(AgentId::NONE, 0);
            assert_eq!(check(&peer, Verb::Look, &[], unlabelled), Ok(()));
        }
    }

    #[test]
    fn a_caller_that_has_ended_is_refused() {
        let peer = Peer::known(7, 0, vec![]);
        let label = |_| Ok::<_, ()>(Label::default());
        assert_eq!(check(&peer, Verb::Trust, &[], label), Err(Refused::Gone));
    }
}
