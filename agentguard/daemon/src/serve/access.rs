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

use crate::host::config::{Role, RoleGrant};

/// What a route asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
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

impl Access {
    /// Who may, as the documentation says it. Root always may, an agent never.
    pub const fn who(self) -> &'static str {
        match self {
            Self::Trust => "everyone",
            Self::Run => "whom the agent's `start_by` lists",
            Self::Task => "whom the agent's `start_by` lists, and the role `admin`",
            Self::Look => "the role `viewer`",
            Self::Kill => "the role `responder`",
            Self::Register | Self::Apply => "the role `admin`",
            Self::Unload => "root",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
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
    access: Access,
    roles: &[RoleGrant],
    label: impl FnOnce(u32) -> Result<Label, E>,
) -> Result<(), AccessError> {
    let labelled = label(peer.tgid).map_or(true, |label| label != Label::default());
    if labelled {
        return Err(AccessError::Labelled);
    }
    if peer.tgid == 0 || !peer.is_alive() {
        return Err(AccessError::Gone);
    }
    if allowed(peer, access, roles, user::gid) {
        return Ok(());
    }
    Err(lacks(peer, access))
}

fn lacks(peer: &Peer, access: Access) -> AccessError {
    let needs = match access {
        Access::Trust | Access::Run | Access::Task | Access::Unload => "root",
        Access::Look => "root, or a [[roles]] entry in agentguard.toml with the role `viewer`",
        Access::Kill => "root, or a [[roles]] entry in agentguard.toml with the role `responder`",
        Access::Register | Access::Apply => {
            "root, or a [[roles]] entry in agentguard.toml with the role `admin`"
        }
    };
    let user = user::name(peer.uid);
    AccessError::NotAllowed { user, needs }
}

/// Root, or who has the role `viewer`: for what others see a part of.
pub fn may_look(peer: &Peer, roles: &[RoleGrant]) -> Result<(), AccessError> {
    match allowed(peer, Access::Look, roles, user::gid) {
        true => Ok(()),
        false => Err(lacks(peer, Access::Look)),
    }
}

/// Root, or who has the role `admin`.
pub fn is_admin(peer: &Peer, roles: &[RoleGrant]) -> bool {
    allowed(peer, Access::Register, roles, user::gid)
}

fn allowed(
    peer: &Peer,
    access: Access,
    roles: &[RoleGrant],
    gid: impl Fn(&str) -> Option<u32>,
) -> bool {
    if peer.uid == 0 {
        return true;
    }
    let least = match access {
        Access::Trust | Access::Run | Access::Task => return true,
        Access::Unload => return false,
        Access::Look => Role::Viewer,
        Access::Kill => Role::Responder,
        Access::Register | Access::Apply => Role::Admin,
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
        use Access::{Apply, Kill, Look, Register, Run, Task, Trust, Unload};
        const ALL: [Access; 8] = [Trust, Run, Task, Look, Kill, Register, Apply, Unload];
        for (uid, group, may) in [
            (0, 0, &ALL[..]),
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
            for access in ALL {
                let is = allowed(&peer, access, &grants(), gid);
                assert_eq!(
                    is,
                    may.contains(&access),
                    "uid {uid} group {group} {access:?}"
                );
            }
        }
    }

    #[test]
    fn a_labelled_caller_is_refused_even_as_root() {
        let (socket, _other) = UnixStream::pair().unwrap();
        let peer = Peer::of(&socket).unwrap();
        let label = |agent, flags| move |_| Ok::<_, ()>(Label { agent, flags });
        for (given, expected) in [
            (label(AgentId(2), 0), Err(AccessError::Labelled)),
            (label(AgentId::AMBIGUOUS, 0), Err(AccessError::Labelled)),
            (
                label(AgentId::NONE, Label::DENY_ALL),
                Err(AccessError::Labelled),
            ),
        ] {
            assert_eq!(check(&peer, Access::Look, &[], given), expected);
        }
        let unreadable = |_| Err::<Label, ()>(());
        assert_eq!(
            check(&peer, Access::Look, &[], unreadable),
            Err(AccessError::Labelled)
        );
        if nix::unistd::geteuid().is_root() {
            let unlabelled = label(AgentId::NONE, 0);
            assert_eq!(check(&peer, Access::Look, &[], unlabelled), Ok(()));
        }
    }

    #[test]
    fn a_caller_that_has_ended_is_refused() {
        let peer = Peer::known(7, 0, vec![]);
        let label = |_| Ok::<_, ()>(Label::default());
        assert_eq!(
            check(&peer, Access::Trust, &[], label),
            Err(AccessError::Gone)
        );
    }
}
