//! When a record is kept.

use serde::Deserialize;

/// When a record counts as kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Written at once, on disk soon after: survives the death of the daemon, may not that of the machine.
    #[default]
    Batched,
    /// On disk before it counts as written.
    Strict,
}
