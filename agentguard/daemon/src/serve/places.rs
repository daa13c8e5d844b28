//! Connections to the control socket at once, and searches of the audit log. Root has places of its own, those with a role
//! have, and agents, which get no further than a refusal; of each kind nobody gets more than a share. So no user keeps another
//! out, and no agent its user.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use agentguard_sys::peer::Peer;

use super::access;
use crate::host::config::RoleGrant;
use crate::lock::lock;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Kind {
    Root,
    /// With any role.
    Role,
    /// Whatever its user.
    Agent,
    Other,
}

#[derive(Clone)]
pub(super) struct Places {
    /// Of each kind, over all users.
    all: usize,
    /// Of one user, root's own aside.
    share: usize,
    taken: Arc<Mutex<HashMap<(Kind, u32), usize>>>,
}

/// One connection's or search's, for as long as it is held.
pub(super) struct CallerPlace {
    of: (Kind, u32),
    places: Places,
}

impl Places {
    pub(super) fn new(all: usize, share: usize) -> Self {
        Self {
            all,
            share,
            taken: Arc::default(),
        }
    }

    /// `None`: the caller's user has its share, or everyone together all there are.
    pub(super) fn take(
        &self,
        peer: &Peer,
        is_agent: bool,
        roles: &[RoleGrant],
    ) -> Option<CallerPlace> {
        let kind = match is_agent {
            true => Kind::Agent,
            false if peer.uid == 0 => Kind::Root,
            false if access::may_look(peer, roles).is_ok() => Kind::Role,
            false => Kind::Other,
        };
        self.take_of(kind, peer.uid)
    }

    fn take_of(&self, kind: Kind, uid: u32) -> Option<CallerPlace> {
        let mut taken = lock(&self.taken);
        let all: usize = taken
            .iter()
            .filter(|((of, _), _)| *of == kind)
            .map(|(_, count)| count)
            .sum();
        let own = taken.entry((kind, uid)).or_default();
        let share = if kind == Kind::Root {
            self.all
        } else {
            self.share
        };
        if all >= self.all || *own >= share {
            return None;
        }
        *own += 1;
        Some(CallerPlace {
            of: (kind, uid),
            places: self.clone(),
        })
    }
}

impl Drop for CallerPlace {
    fn drop(&mut self) {
        let mut taken = lock(&self.places.taken);
        if let Some(count) = taken.get_mut(&self.of) {
            *count -= 1;
        }
        taken.retain(|_, count| *count > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACES: usize = 128;
    const SHARE: usize = 32;

    #[test]
    fn nobody_keeps_others_out() {
        let places = Places::new(PLACES, SHARE);
        let fill = |kind, uid| -> Vec<CallerPlace> {
            std::iter::from_fn(|| places.take_of(kind, uid)).collect()
        };
        let one = fill(Kind::Other, 1000);
        assert_eq!(one.len(), SHARE);
        // All users together.
        let others: Vec<_> = (0..50).map(|uid| fill(Kind::Other, uid)).collect();
        let of_others: usize = others.iter().map(Vec::len).sum();
        assert_eq!(of_others, PLACES - SHARE);
        // The same user as somebody with a role, and its agents.
        assert_eq!(fill(Kind::Role, 1000).len(), SHARE);
        assert_eq!(fill(Kind::Agent, 1000).len(), SHARE);
        assert_eq!(fill(Kind::Root, 0).len(), PLACES);
        drop(one);
        assert_eq!(fill(Kind::Other, 1001).len(), SHARE);
        drop(others);
        assert!(lock(&places.taken).is_empty());
    }
}
