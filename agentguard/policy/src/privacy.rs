//! What of a path is written down, and told with a refusal: neither the segments that the host's file calls private, nor
//! tokens. What is judged and sent is the path itself.

use std::borrow::Cow;

use agentguard_record::secret::without_tokens;

use super::host::HostName;
use super::{Action, Input, Policy};

/// Of a request, or a passed connection with an empty path.
pub(super) struct Shown<'a> {
    pub path: Cow<'a, str>,
    /// How else it may be read.
    pub read_as: Option<&'a str>,
}

impl Policy {
    /// The path as records have it.
    pub fn shown_path<'p>(&self, host: &HostName, port: u16, path: &'p str) -> Cow<'p, str> {
        let mut shown = Cow::Borrowed(path);
        let facts = self.facts.lookup(host, port);
        for pattern in facts.iter().flat_map(|facts| facts.private_paths.iter()) {
            if let Some(hidden) = pattern.hide(&shown) {
                shown = hidden.into();
            }
        }
        match without_tokens(&shown) {
            Cow::Borrowed(_) => shown,
            Cow::Owned(hidden) => hidden.into(),
        }
    }

    pub(super) fn shown<'a>(&self, input: &Input<'a>, read_as: Option<&'a str>) -> Shown<'a> {
        let path = match &input.action {
            Action::Connect => Cow::Borrowed(""),
            Action::Request { path, .. } => self.shown_path(input.host, input.port, path.as_str()),
        };
        let read_as = read_as.map(|read_as| match path {
            Cow::Borrowed(_) => read_as,
            // It has the path in another form.
            Cow::Owned(_) => "another request",
        });
        Shown { path, read_as }
    }
}
