//! How a host is spoken to, as its file says. None of it is a rule: some of it says what can be passed on at all.

use std::time::Duration;

/// What a host's file says of the way in which its server is spoken to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostSettings {
    /// Its server reads each request's body to its end before it takes anything for another request.
    pub reads_bodies: bool,
    /// How long it may take to the head of an answer; `None`: as the configuration says.
    pub head_timeout: Option<Duration>,
    /// How long an unused HTTP/1.1 connection to it is kept; `None`: as long as any.
    pub idle_timeout: Option<Duration>,
    /// Protocols that a request may turn its connection into, in lower case, besides WebSocket.
    pub upgrade: Vec<String>,
    /// Of a request's body that a rule reads, bytes; `None`: as the configuration says.
    pub max_judged_body: Option<usize>,
    /// HTTP/2 is never offered to it.
    pub http1_only: bool,
}

impl HostSettings {
    /// What holds of a host that no file describes.
    pub(crate) const UNSAID: &'static Self = &Self::DEFAULT;
    pub(crate) const DEFAULT: Self = Self {
        reads_bodies: false,
        head_timeout: None,
        idle_timeout: None,
        upgrade: Vec::new(),
        max_judged_body: None,
        http1_only: false,
    };

    /// Whether a request may turn its connection into `protocol` (RFC 9110 section 7.8: compared without case).
    pub fn upgrades_to(&self, protocol: &str) -> bool {
        let mut listed = self.upgrade.iter();
        listed.any(|it| it.eq_ignore_ascii_case(protocol))
    }
}
