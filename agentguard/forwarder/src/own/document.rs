//! What AgentGuard says under its own name.

use agentguard_record::{DecidedBy, Ended, Outcome};
use http::{HeaderValue, Response, StatusCode, header};
use serde::Serialize;

use crate::exchange::Exchange;
use crate::refusal::{Cause, Refusal};
use crate::reply::Reply;

/// What is said back.
pub(crate) struct Document {
    pub status: StatusCode,
    pub text: String,
}

impl Document {
    /// Hands it to the agent, after the record is complete.
    pub(crate) fn back(self, mut exchange: Exchange) -> Response<Reply> {
        exchange.status(self.status);
        let length = self.text.len();
        let mut response = Response::new(Reply::document(self.text));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if length > 0 {
            let json = HeaderValue::from_static("application/json");
            headers.insert(header::CONTENT_TYPE, json);
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
        exchange.docket.entry.decided_by = DecidedBy::OwnName;
        exchange.docket.entry.complete(Outcome::Allow, Ended::Whole);
        response
    }

    pub(crate) fn json(value: &impl Serialize) -> Self {
        Self {
            status: StatusCode::OK,
            text: serde_json::to_string(value).expect("strings, numbers and times only"),
        }
    }
}

/// What is asked is none of what there is.
pub(crate) fn wrong(status: StatusCode, detail: impl Into<String>) -> Refusal {
    Refusal {
        status,
        cause: Cause::Decided(DecidedBy::OwnName),
        ..Refusal::protocol(detail)
    }
}
