//! What the forwarder reads through inherited read-only descriptors.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use agentguard_common::abi::{FlowKey, Origin, Question};
use agentguard_common::share::QuestionMark;

use super::{KernelError, bpf};

/// `ACCEPTED` and `QUESTIONS`. Needs no privilege: the descriptors carry it.
pub struct OriginMaps {
    accepted: OwnedFd,
    questions: OwnedFd,
}

impl OriginMaps {
    pub fn from_fds(accepted: OwnedFd, questions: OwnedFd) -> Self {
        Self {
            accepted,
            questions,
        }
    }

    /// The origin of an accepted connection, by `SO_COOKIE`.
    pub fn accepted(&self, cookie: u64) -> io::Result<Option<Origin>> {
        bpf::lookup(self.accepted.as_fd(), &cookie).map_err(source)
    }

    /// The origin of a datagram that reached the resolver with this mark, by this way.
    pub fn question(&self, mark: QuestionMark, flow: &FlowKey) -> io::Result<Option<Origin>> {
        let asked: Option<Question> = bpf::lookup(self.questions.as_fd(), &mark).map_err(source)?;
        Ok(asked
            .filter(|question| question.flow == *flow)
            .map(|question| question.origin))
    }
}

fn source(error: KernelError) -> io::Error {
    match error {
        KernelError::Call { source, .. } => source,
        other => io::Error::other(other),
    }
}
