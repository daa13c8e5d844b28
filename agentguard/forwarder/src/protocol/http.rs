//! HTTP itself: a request is one act, and no is a problem document (RFC 9457), beside a reason phrase that says so.

use agentguard_policy::Action;
use agentguard_record::ApprovalInfo;
use http::{HeaderValue, Response, header};
use hyper::ext::ReasonPhrase;
use serde::Serialize;

use super::About;
use crate::act::{Act, Message};
use crate::refusal::Refusal;
use crate::reply::Reply;

/// RFC 9457, with CONTRACT's extensions.
#[derive(Serialize)]
struct ProblemDocument<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    /// The same: what clients of APIs show of an error.
    message: &'a str,
    instance: String,
    agent: &'a str,
    action: &'a str,
    resource: &'a str,
    policies: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    approval: Option<ApprovalInfo<'a>>,
}

/// What the request does: what its head says.
pub(super) fn act(message: &Message) -> Act<'_> {
    Act {
        target: &message.target,
        action: Action::Request {
            method: message.parts.method.as_str(),
            scheme: message.scheme.as_str(),
            path: &message.path,
            query: message.parts.uri.query(),
            headers: &message.parts.headers,
        },
    }
}

pub(super) fn problem(refusal: &Refusal, about: &About<'_>) -> Response<Reply> {
    let document = ProblemDocument {
        r#type: format!("urn:agentguard:problem:{}", refusal.reason.slug()),
        title: refusal.reason.title(),
        status: refusal.status.as_u16(),
        detail: &refusal.detail,
        message: &refusal.detail,
        instance: about.decision.urn().to_string(),
        agent: about.agent,
        action: about.action,
        resource: about.resource,
        policies: &refusal.policies,
        approval: ApprovalInfo::of(&refusal.approval),
    };
    let text = serde_json::to_string(&document).expect("strings and numbers only");
    said(refusal, about, "application/problem+json", text)
}

/// The answer that says `text`.
pub(super) fn said(
    refusal: &Refusal,
    about: &About<'_>,
    kind: &'static str,
    text: String,
) -> Response<Reply> {
    let length = text.len();
    // An answer to `HEAD` has no body (RFC 9110 section 9.3.2).
    let mut response = Response::new(match about.action {
        "HEAD" => Reply::empty(),
        _ => Reply::document(text),
    });
    *response.status_mut() = refusal.status;
    if let Some(phrase) = refusal.phrase() {
        let phrase = ReasonPhrase::from_static(phrase.as_bytes());
        response.extensions_mut().insert(phrase);
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CONTENT_LENGTH, length.into());
    response
}
