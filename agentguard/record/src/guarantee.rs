//! The guarantees: their ids, what a row says, and whether a bundle's requirements are met.

mod id;
mod require;

use serde::{Deserialize, Serialize};

pub use self::id::{GuaranteeId, UnknownGuarantee};
pub use self::require::require;

/// How far a guarantee holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Holds {
    Enforced,
    /// By another mechanism than the first choice, with the limits that `why` names.
    Fallback,
    Open,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guarantee {
    pub id: GuaranteeId,
    /// In words.
    pub name: String,
    pub holds: Holds,
    pub why: String,
    /// A kernel, a kernel parameter, a capability, a command; for what this version does not do there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}
