//! Whose call a socket hook judges, and the one place where an error becomes a verdict: a denial for an agent, nothing for
//! everyone else.

use core::ptr::NonNull;

use agentguard_common::abi::{AgentId, EventKind, Label, SocketMark};
use agentguard_common::counter::Counter;
use agentguard_common::verdict::{Finding, Refusal};
use aya_ebpf::bindings::bpf_sock;

use crate::emit::{self, What};
use crate::maps::{MARKS, count, is_killed, label_of};
use crate::task::current_tgid;

/// An agent's call.
#[derive(Clone, Copy)]
pub struct Subject {
    pub agent: AgentId,
    pub killed: bool,
    upstream: bool,
    sk: *mut bpf_sock,
}

/// What a hook makes of an agent's call.
pub enum Answer {
    Allow,
    /// Allowed, and recorded.
    Record,
    /// Allowed, and recorded as what would have been refused.
    Observe(Refusal),
    Deny(Refusal),
}

pub type Judged = Result<Answer, Counter>;

/// The hook's return values for the kernel.
pub const ALLOW: i32 = 1;
pub const DENY: i32 = 0;

impl Subject {
    /// The agent of the calling task, else the one the socket was made for. `None`: nobody's, to be left alone.
    #[inline(always)]
    pub fn of(sk: *mut bpf_sock) -> Option<Self> {
        let label = label_of(current_tgid());
        if label.agent != AgentId::NONE {
            return Some(Self::labelled(label, sk));
        }
        let mark = MARKS.of(sk)?;
        // SAFETY: socket storage lives as long as the socket, which the hook holds.
        let mark = unsafe { mark.as_ref() };
        if mark.agent == AgentId::NONE {
            return None;
        }
        Some(Self {
            agent: mark.agent,
            killed: is_killed(mark.agent),
            upstream: mark.flags & SocketMark::UPSTREAM != 0,
            sk,
        })
    }

    #[inline(always)]
    pub fn labelled(label: Label, sk: *mut bpf_sock) -> Self {
        Self {
            agent: label.agent,
            killed: label.flags & Label::DENY_ALL != 0 || is_killed(label.agent),
            upstream: false,
            sk,
        }
    }

    /// The forwarder's own socket of an agent that may go on: nothing else to judge.
    #[inline(always)]
    pub fn is_free_upstream(&self) -> bool {
        self.upstream && !self.killed
    }

    /// The socket's mark, made now if the socket is older than its process's label, and set to the agent that uses it.
    #[inline(always)]
    pub fn mark(&self) -> Result<NonNull<SocketMark>, Counter> {
        let mut mark = MARKS.of_or_new(self.sk).ok_or(Counter::StorageFull)?;
        // SAFETY: as in `of`.
        let fields = unsafe { mark.as_mut() };
        if fields.agent != self.agent {
            fields.agent = self.agent;
            fields.flags = 0;
            fields.origin.tgid = current_tgid();
        }
        Ok(mark)
    }
}

/// Answers for `subject`: its event, its counter, and a denial if judging failed or a permit cannot be recorded.
#[inline(always)]
pub fn answer(subject: &Subject, kind: EventKind, what: &What, judged: Judged) -> i32 {
    let Some(finding) = finding(judged) else {
        return ALLOW;
    };
    match emit::call(kind, finding, subject.agent, what) {
        Finding::Refused(_) => DENY,
        Finding::Allowed | Finding::Observed(_) => ALLOW,
    }
}

/// What there is to tell, a refusal counted; `None`: nothing. A failure to judge is a refusal.
#[inline(always)]
pub fn finding(judged: Judged) -> Option<Finding> {
    let refusal = match judged {
        Ok(Answer::Allow) => return None,
        Ok(Answer::Record) => return Some(Finding::Allowed),
        Ok(Answer::Observe(refusal)) => return Some(Finding::Observed(refusal)),
        Ok(Answer::Deny(refusal)) => refusal,
        Err(counter) => {
            count(counter);
            Refusal::Internal
        }
    };
    count(Counter::Refused);
    Some(Finding::Refused(refusal))
}
