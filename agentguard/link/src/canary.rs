//! What daemon and forwarder know of the canary's permitted request.

/// The host that the canary asks for: no bundle can have it (RFC 6761).
pub const HOST: &str = "canary.agentguard.invalid";
/// The one path there that the canary may ask for.
pub const PERMITTED: &str = "/permitted";
