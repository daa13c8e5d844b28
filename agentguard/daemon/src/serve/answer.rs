//! Answers: JSON, or lines of it as they come.

use std::convert::Infallible;

use agentguard_control::api::Problem;
use agentguard_policy::Diagnostic;
use bytes::Bytes;
use futures_util::Stream;
use http::{Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use serde::Serialize;

pub type Answer = Response<BoxBody<Bytes, Infallible>>;

/// Why a request is not served.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    problem: Problem,
}

impl Refusal {
    pub fn new(status: StatusCode, error: impl ToString) -> Self {
        let code = match status {
            StatusCode::FORBIDDEN => "forbidden",
            StatusCode::NOT_FOUND => "not-found",
            StatusCode::CONFLICT => "conflict",
            StatusCode::UNPROCESSABLE_ENTITY => "invalid",
            StatusCode::INTERNAL_SERVER_ERROR => "internal",
            _ => "bad-request",
        };
        Self {
            status,
            problem: Problem {
                error: error.to_string(),
                code: code.into(),
                diagnostics: Vec::new(),
            },
        }
    }

    pub fn with(mut self, diagnostics: Vec<Diagnostic>) -> Self {
        self.problem.diagnostics = diagnostics;
        self
    }

    pub fn into_answer(self) -> Answer {
        encode(self.status, &self.problem)
    }
}

pub fn json(value: &impl Serialize) -> Answer {
    encode(StatusCode::OK, value)
}

pub fn lines(lines: impl Stream<Item = Bytes> + Send + Sync + 'static) -> Answer {
    let frames = futures_util::StreamExt::map(lines, |line| Ok(Frame::data(line)));
    let body = BodyExt::boxed(StreamBody::new(frames));
    respond(StatusCode::OK, "application/x-ndjson", body)
}

fn encode(status: StatusCode, value: &impl Serialize) -> Answer {
    let mut body = serde_json::to_vec(value).unwrap_or_default();
    body.push(b'\n');
    let body = Full::new(Bytes::from(body)).boxed();
    respond(status, "application/json", body)
}

fn respond(status: StatusCode, kind: &'static str, body: BoxBody<Bytes, Infallible>) -> Answer {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
