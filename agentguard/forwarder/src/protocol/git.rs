//! Git over HTTP: known by its user agent; a request is HTTP's one act, and no is text, which git shows its user where it
//! shows no document.

use http::{HeaderMap, Response, header};

use super::{About, http as plain};
use crate::refusal::Refusal;
use crate::reply::Reply;

/// Whether a request with this head is git's own; `git-lfs/` reads the document.
pub(super) fn is_its(headers: &HeaderMap) -> bool {
    headers
        .get(header::USER_AGENT)
        .is_some_and(|agent| agent.as_bytes().starts_with(b"git/"))
}

pub(super) fn text(refusal: &Refusal, about: &About<'_>) -> Response<Reply> {
    let text = format!(
        "AgentGuard: {}: {}\nreason {}, decision {}\n",
        refusal.reason.title(),
        refusal.detail,
        refusal.reason.slug(),
        about.decision,
    );
    plain::said(refusal, about, "text/plain; charset=utf-8", text)
}
