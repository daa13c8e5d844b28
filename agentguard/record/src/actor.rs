//! Who does something to the guard.

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    /// Who has asked on the control socket, by the kernel's word.
    Peer {
        uid: u32,
        /// The account's name when it asked; `None` in what was read back from a file that keeps uids alone.
        user: Option<String>,
    },
    /// The daemon by itself.
    Daemon,
}

impl Actor {
    /// The uid that is written down; the daemon runs as root.
    pub fn uid(&self) -> u32 {
        match self {
            Self::Peer { uid, .. } => *uid,
            Self::Daemon => 0,
        }
    }

    /// The account's name, where it is known already.
    pub fn user(&self) -> Option<&str> {
        match self {
            Self::Peer { user, .. } => user.as_deref(),
            Self::Daemon => None,
        }
    }
}
