//! Whose call an LSM hook judges, and where its errors become a verdict: a denial for an agent, nothing for everyone else.
//! Unlike tracepoints these programs can be preempted by one another: a per-CPU map is no place to keep anything.

use core::ops::ControlFlow;

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
/// counted and handed to `report`, whose answer is the verdict, and a failure to judge is a denial.
#[inline(always)]
pub fn answer(
    previous: i32,
    judge: impl FnOnce(&Caller) -> Judged,
    report: impl FnOnce(&Caller, Finding) -> Finding,
) -> i32 {
    match found(previous, judge) {
        ControlFlow::Break(answer) => answer,
        ControlFlow::Continue((caller, finding)) => verdict(report(&caller, finding)),
    }
}

/// [`answer`] up to what there is to report, for who reports in two programs alike: LLVM makes a function of such a closure,
/// which has more arguments than a function may have.
#[inline(always)]
pub fn found(
    previous: i32,
    judge: impl FnOnce(&Caller) -> Judged,
) -> ControlFlow<i32, (Caller, Finding)> {
    if previous != ALLOW {
        return ControlFlow::Break(previous);
    }
    let Some(caller) = Caller::current() else {
        return ControlFlow::Break(ALLOW);
    };
    match finding(judge(&caller)) {
        Some(finding) => ControlFlow::Continue((caller, finding)),
        None => ControlFlow::Break(ALLOW),
    }
}

#[inline(always)]
pub fn verdict(finding: Finding) -> i32 {
    match finding {
        Finding::Refused(_) => -EPERM,
        Finding::Allowed | Finding::Observed(_) => ALLOW,
    }
}
