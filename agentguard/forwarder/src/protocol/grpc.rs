//! gRPC over HTTP/2: known by its content type; a call is the act of the request that carries it, and no is a status in
//! trailers.

use agentguard_record::ReasonClass;
use http::{HeaderMap, HeaderValue, Response, header};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::refusal::Refusal;
use crate::reply::Reply;

const DEADLINE_EXCEEDED: &str = "4";
const PERMISSION_DENIED: &str = "7";
const UNAVAILABLE: &str = "14";
/// What `grpc-message` encodes: all but printable ASCII, and `%`.
const GRPC_MESSAGE: &AsciiSet = &CONTROLS.add(b'%');

/// Whether a request with this head is a call of gRPC's.
pub(super) fn is_its(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// "Trailers-Only": the status in the one header block.
pub(super) fn trailers_only(refusal: &Refusal) -> Response<Reply> {
    let code = match refusal.reason.class() {
        ReasonClass::Policy | ReasonClass::Protocol | ReasonClass::Host => PERMISSION_DENIED,
        ReasonClass::Upstream if refusal.reason.is_timeout() => DEADLINE_EXCEEDED,
        ReasonClass::Upstream | ReasonClass::Client => UNAVAILABLE,
    };
    let message = format!("{}: {}", refusal.reason.slug(), refusal.detail);
    let message = utf8_percent_encode(&message, GRPC_MESSAGE).to_string();
    let mut response = Response::new(Reply::empty());
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    headers.insert("grpc-status", HeaderValue::from_static(code));
    if let Ok(message) = HeaderValue::from_str(&message) {
        headers.insert("grpc-message", message);
    }
    response
}
