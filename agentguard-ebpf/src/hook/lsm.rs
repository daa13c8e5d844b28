//! Whose call an LSM hook judges, and where its errors become a verdict: a denial for an agent, nothing for everyone else.
//! Unlike tracepoints these programs can be preempted by one another: a per-CPU map is no place to keep anything.

use agentguard_common::abi::{AgentId, Label};
use agentguard_common::verdict::Finding;

use crate::hook::guard::{Judged, finding};
use crate::maps::{is_killed, label_of};
use crate::task::current_tgid;

pub const ALLOW: i32 = 0;
const EPERM: i32 = 1;

/// The agent's process that calls.
#[derive(Clone, Copy)]
pub struct Caller {
    pub agent: AgentId,
    pub killed: bool,
}

impl Caller {
    /// `None`: nobody's, to be left alone.
    #[inline(always)]
    pub fn current() -> Option<Self> {
        let label = label_of(current_tgid());
        if label.agent == AgentId::NONE {
            return None;
        }
        Some(Self {
            agent: label.agent,
            killed: label.flags & Label::DENY_ALL != 0 || is_killed(label.agent),
        })
    }
}

/// The hook's return value: what a program before this one refused stays refused, what `judge` makes of an agent's call is
/// counted and handed to `report`, and a failure to judge is a denial.
#[inline(always)]
pub fn answer(
    previous: i32,
    judge: impl FnOnce(&Caller) -> Judged,
    report: impl FnOnce(&Caller, Finding),
) -> i32 {
    if previous != ALLOW {
        return previous;
    }
    let Some(caller) = Caller::current() else {
        return ALLOW;
    };
    let Some(finding) = finding(judge(&caller)) else {
        return ALLOW;
    };
    report(&caller, finding);
    match finding {
        Finding::Refused(_) => -EPERM,
        Finding::Allowed | Finding::Observed(_) => ALLOW,
    }
}
