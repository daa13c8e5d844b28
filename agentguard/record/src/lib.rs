//! The words that every part shares: why something was refused, what a record is made of, what is guaranteed.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::wildcard_enum_match_arm))]

mod action;
mod actor;
mod decision;
mod draft;
pub mod guarantee;
mod meta;
mod reason;
pub mod secret;

pub use self::action::ActionName;
pub use self::actor::Actor;
pub use self::decision::{DecidedBy, Ended};
pub use self::draft::{
    ApprovalInfo, Context, Draft, DraftTask, Latency, Operation, Operator, Outcome, Process,
    Record, RequestInfo, TLS_ALERT, TaskInfo, UpstreamInfo,
};
pub use self::meta::Meta;
pub use self::reason::{DenyReason, ReasonClass};
