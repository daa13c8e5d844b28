//! Which requests are sent again: those that nobody has acted upon, or that may be acted upon twice (RFC 9110 section
//! 9.2.2, RFC 9113 section 8.7).

use std::error::Error;
use std::io;

use http::{Extensions, HeaderMap, Method, Request};
use hyper::client::conn::TrySendError;

use super::{UpstreamCall, UpstreamFault};
use crate::upload::{KeptUpload, Upload};

/// Why there is no answer; the call again if it may be sent again.
pub(super) type CallFailure = (UpstreamFault, Option<UpstreamCall>);

/// What a connection may do to a request that is on it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Hazard {
    /// It is new.
    None,
    /// It has carried a request before: the server may close it at any time.
    Close,
    /// The server may refuse the stream, or retire the connection.
    Refuse,
    CloseOrRefuse,
}

/// What is needed to send a call again.
pub(super) struct Rest {
    call: Option<UpstreamCall>,
    kept: Option<Kept>,
    /// It may go out once more when the connection has been closed under it.
    survives_close: bool,
}

struct Kept {
    method: Method,
    headers: HeaderMap,
    /// How the header names were written.
    extensions: Extensions,
    body: KeptUpload,
}

impl Rest {
    /// Takes the request out of the call, and keeps what the connection's `hazard` may make necessary.
    pub(super) fn split(mut call: UpstreamCall, hazard: Hazard) -> (Request<Upload>, Self) {
        let request = std::mem::replace(&mut call.request, Request::new(Upload::empty()));
        let idempotent = is_idempotent(request.method());
        let may_close = matches!(hazard, Hazard::Close | Hazard::CloseOrRefuse);
        // Whoever repeats what was repeated already might never end (RFC 9110 section 9.2.2).
        let survives_close = may_close && idempotent && !call.was_closed;
        let may_refuse = matches!(hazard, Hazard::Refuse | Hazard::CloseOrRefuse);
        let keeps = survives_close || may_refuse;
        let kept = keeps.then(|| Kept {
            method: request.method().clone(),
            headers: request.headers().clone(),
            extensions: request.extensions().clone(),
            body: request.body().keep(),
        });
        let rest = Self {
            call: Some(call),
            kept,
            survives_close,
        };
        (request, rest)
    }

    pub(super) fn failed(&mut self, mut error: TrySendError<Request<Upload>>) -> CallFailure {
        let unsent = error.take_message();
        let error = error.into_error();
        let was_closed = unsent.is_none() && !is_refused(&error);
        let again = !was_closed || self.survives_close && is_closed(&error);
        let request = match (unsent, self.kept.take()) {
            (Some(request), _) => Some(request),
            (None, Some(kept)) if again => kept.again(),
            (None, _) => None,
        };
        let call = request.and_then(|request| {
            let mut call = self.call.take()?;
            call.request = request;
            call.was_closed |= was_closed;
            Some(call)
        });
        (UpstreamFault::exchange(&error), call)
    }
}

impl Kept {
    fn again(self) -> Option<Request<Upload>> {
        let mut request = Request::new(self.body.again()?);
        *request.method_mut() = self.method;
        *request.headers_mut() = self.headers;
        *request.extensions_mut() = self.extensions;
        Some(request)
    }
}

/// Whether the server has not acted upon it: a stream that it refused, or one above the last that it takes (RFC 9113 section
/// 8.7). For streams below that the library has another error.
fn is_refused(error: &hyper::Error) -> bool {
    by_http2(error).is_some_and(|error| {
        let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        error.is_remote() && (refused || error.is_go_away())
    })
}

/// Whether no other request will get through on the connection; streams on it may still end well.
pub(super) fn ends_connection(error: &hyper::Error) -> bool {
    is_closed(error) || by_http2(error).is_some_and(h2::Error::is_go_away)
}

/// Whether the connection ended before there was an answer.
pub(super) fn is_closed(error: &hyper::Error) -> bool {
    let io = causes(error).find_map(|cause| {
        let http2 = || cause.downcast_ref::<h2::Error>()?.get_io();
        cause.downcast_ref::<io::Error>().or_else(http2)
    });
    error.is_incomplete_message()
        || error.is_closed()
        || error.is_canceled()
        || io.is_some_and(|error| {
            matches!(
                error.kind(),
                io::ErrorKind::BrokenPipe
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::TimedOut
                    | io::ErrorKind::UnexpectedEof
            )
        })
}

fn by_http2(error: &hyper::Error) -> Option<&h2::Error> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

fn causes(error: &hyper::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(error.source(), |cause| (*cause).source())
}

/// RFC 9110 section 9.2.2; CONNECT, which opens a tunnel, never comes here.
pub(super) fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}
