//! What a caller of the control socket gets: JSON, lines of it as they come, or why not.

use std::io;

use agentguard_control::api::Problem;
use agentguard_policy::Diagnostic;
use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use serde::Serialize;

/// A body that ends with an error is cut off, so that its caller sees that it is not whole.
pub(super) type ControlResponse = Response<BoxBody<Bytes, io::Error>>;

/// The kinds of errors, each with its status and the code that scripts compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ErrorCode {
    BadRequest,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    Conflict,
    Invalid,
    Busy,
    Internal,
}

impl ErrorCode {
    const fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict => StatusCode::CONFLICT,
            Self::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Busy => StatusCode::TOO_MANY_REQUESTS,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad-request",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not-found",
            Self::MethodNotAllowed => "method-not-allowed",
            Self::Conflict => "conflict",
            Self::Invalid => "invalid",
            Self::Busy => "busy",
            Self::Internal => "internal",
        }
    }
}

/// Why a request is not served.
#[derive(Debug)]
pub(super) struct ControlError {
    code: ErrorCode,
    message: String,
    diagnostics: Vec<Diagnostic>,
    allow: Vec<Method>,
}

impl ControlError {
    pub(super) fn new(code: ErrorCode, error: impl ToString) -> Self {
        Self {
            code,
            message: error.to_string(),
            diagnostics: Vec::new(),
            allow: Vec::new(),
        }
    }

    pub(super) fn internal(error: impl ToString) -> Self {
        Self::new(ErrorCode::Internal, error)
    }

    pub(super) fn with(self, diagnostics: Vec<Diagnostic>) -> Self {
        Self {
            diagnostics,
            ..self
        }
    }

    /// With the methods by which the path is served.
    pub(super) fn allowing(self, allow: Vec<Method>) -> Self {
        Self { allow, ..self }
    }

    pub(super) fn into_response(self) -> ControlResponse {
        let methods: Vec<&str> = self.allow.iter().map(Method::as_str).collect();
        let allow = HeaderValue::from_str(&methods.join(", "));
        let problem = Problem {
            error: self.message,
            code: self.code.as_str().into(),
            diagnostics: self.diagnostics,
        };
        let mut response = encode(self.code.status(), &problem);
        if let Ok(allow) = allow
            && !methods.is_empty()
        {
            response.headers_mut().insert(header::ALLOW, allow);
        }
        response
    }
}

pub(super) fn json(value: &impl Serialize) -> ControlResponse {
    encode(StatusCode::OK, value)
}

pub(super) fn lines(
    lines: impl Stream<Item = io::Result<Bytes>> + Send + Sync + 'static,
) -> ControlResponse {
    let frames = futures_util::TryStreamExt::map_ok(lines, Frame::data);
    let body = BodyExt::boxed(StreamBody::new(frames));
    respond(StatusCode::OK, "application/x-ndjson", body)
}

fn encode(status: StatusCode, value: &impl Serialize) -> ControlResponse {
    let mut body = serde_json::to_vec(value).unwrap_or_default();
    body.push(b'\n');
    let body = Full::new(Bytes::from(body)).map_err(|never| match never {});
    let body = body.boxed();
    respond(status, "application/json", body)
}

fn respond(
    status: StatusCode,
    kind: &'static str,
    body: BoxBody<Bytes, io::Error>,
) -> ControlResponse {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_by_another_method_says_which_are_allowed() {
        let error = ControlError::new(ErrorCode::MethodNotAllowed, "no")
            .allowing(vec![Method::GET, Method::POST]);
        let response = error.into_response();
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(response.headers()[header::ALLOW], "GET, POST");
        let other = ControlError::internal("no").into_response();
        assert!(!other.headers().contains_key(header::ALLOW));
    }
}
