//! Which bundle it is.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    pub name: String,
    pub serial: u64,
    /// SHA-256 over the files' names and contents, lower-case hex.
    pub digest: String,
}
