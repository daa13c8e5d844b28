//! Whose call an LSM hook judges, and where its errors become a verdict: a denial for an agent, nothing for everyone else.
//! Unlike tracepoints these programs can be preempted by one another: a per-CPU map is no place to keep anything.

use agentguard_common::abi::{AgentId, Label};
use agentguard_common::counter::Counter;
use agentguard_common::verdict::Refusal;

use crate::hook::guard::{Answer, Judged};
use crate::maps::{count, is_killed, label_of};
use crate::task::current_tgid;

pub const ALLOW: i32 = 0;
const EPERM: i32 = 1;

/// The agent's process that calls.
#[derive(Clone, Copy)]
pub struct Caller {
    pub agent: AgentId,
    pub tgid: u32,
    pub killed: bool,
}

impl Caller {
    /// `None`: nobody's, to be left alone.
    #[inline(always)]
    pub fn current() -> Option<Self> {
        let tgid = current_tgid();
        let label = label_of(tgid);
        if label.agent == AgentId::NONE {
            return None;
        }
        Some(Self {
            agent: label.agent,
            tgid,
            killed: label.flags & Label::DENY_ALL != 0 || is_killed(label.agent),
        })
    }
}

/// The hook's return value: what a program before this one refused stays refused, what `judge` makes of an agent's call is
/// counted and handed to `report` (`None`: allowed), and a failure to judge is a denial.
#[inline(always)]
pub fn answer(
    previous: i32,
    judge: impl FnOnce(&Caller) -> Judged,
    report: impl FnOnce(&Caller, Option<Refusal>),
) -> i32 {
    if previous != ALLOW {
        return previous;
    }
    let Some(caller) = Caller::current() else {
        return ALLOW;
    };
    let refusal = match judge(&caller) {
        Ok(Answer::Allow) => return ALLOW,
        Ok(Answer::Record) => {
            report(&caller, None);
            return ALLOW;
        }
        Ok(Answer::Deny(refusal)) => refusal,
        Err(counter) => {
            count(counter);
            Refusal::Internal
        }
    };
    count(Counter::Refused);
    report(&caller, Some(refusal));
    -EPERM
}
