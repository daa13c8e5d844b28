//! What of a path is written down, and told with a refusal: neither the segments that the host's file calls private, nor
//! tokens. What is judged and sent is the path itself.

use std::borrow::Cow;

use agentguard_record::secret::{PRIVATE, without_tokens};

use super::glob::hide;
use super::host::HostName;
use super::{Action, CanonicalPath, Input, Policy};

/// Of a request, or a passed connection with an empty path.
pub(super) struct Shown<'a> {
    pub path: Cow<'a, str>,
    /// How else it may be read.
    pub read_as: Option<&'a str>,
}

impl Policy {
    /// The path as records have it. One that a server may read as another, of which parts are private, is private as a whole.
    pub fn shown_path<'p>(
        &self,
        host: &HostName,
        port: u16,
        path: &'p CanonicalPath,
    ) -> Cow<'p, str> {
        let facts = self.facts.lookup(host, port);
        let patterns = || facts.iter().flat_map(|facts| facts.private_paths.iter());
        // Where not all can be told, those that are no guess.
        let all = || path.others(false).or_else(|_| path.others(true));
        let others = || all().into_iter().flatten();
        let shown = match hide(patterns(), path.as_str()) {
            Some(hidden) => Cow::Owned(hidden),
            None if others().any(|other| hide(patterns(), &other.path).is_some()) => {
                Cow::Owned(format!("/{PRIVATE}"))
            }
            None => Cow::Borrowed(path.as_str()),
        };
        match without_tokens(&shown) {
            Cow::Borrowed(_) => shown,
            Cow::Owned(hidden) => hidden.into(),
        }
    }

    pub(super) fn shown<'a>(&self, input: &Input<'a>, read_as: Option<&'a str>) -> Shown<'a> {
        let path = match &input.action {
            Action::Connect => Cow::Borrowed(""),
            Action::Request { path, .. } => self.shown_path(input.host, input.port, path),
        };
        let read_as = read_as.map(|read_as| match path {
            Cow::Borrowed(_) => read_as,
            // It has the path in another form.
            Cow::Owned(_) => "another request",
        });
        Shown { path, read_as }
    }
}
