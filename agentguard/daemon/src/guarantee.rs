//! What AgentGuard promises, one row each, and whether it holds on this host. `doctor`, `status` and a bundle's `require`
//! ask here and nowhere else; a row is judged from [`Facts`] alone.

mod facts;
mod judge;

pub use self::facts::{CanaryState, Facts};
pub use self::judge::{SIGNAL_SCOPE, judge};
