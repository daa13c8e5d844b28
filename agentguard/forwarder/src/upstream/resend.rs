//! Which requests are sent again when their connection turns out to be closed (RFC 9110 section 9.2.2).

use http::{Method, Request};
use hyper::client::conn::TrySendError;

use super::{UpstreamCall, UpstreamFault};
use crate::upload::Upload;

/// Why there is no answer; the call again if nothing of it can have been acted upon.
pub(super) type CallFailure = (UpstreamFault, Option<UpstreamCall>);

/// What is needed to send a call again.
pub(super) struct Rest {
    call: Option<UpstreamCall>,
}

impl Rest {
    /// Takes the request out of the call. `reused`: its connection may close under it, so that what can be repeated
    /// without harm and has no body is kept to be sent once more (RFC 9110 section 9.2.2).
    pub(super) fn split(call: UpstreamCall, reused: bool) -> (Request<Upload>, Self) {
        let UpstreamCall {
            request,
            scheme,
            authority,
            target,
            http2,
            websocket,
            reads_bodies,
        } = call;
        let repeatable = reused && request.body().is_empty() && is_idempotent(request.method());
        let copy = repeatable.then(|| {
            let mut copy = Request::new(Upload::empty());
            copy.method_mut().clone_from(request.method());
            copy.headers_mut().clone_from(request.headers());
            copy
        });
        let rest = Self {
            call: Some(UpstreamCall {
                request: copy.unwrap_or_else(|| Request::new(Upload::lost())),
                scheme,
                authority,
                target,
                http2,
                websocket,
                reads_bodies,
            }),
        };
        (request, rest)
    }

    pub(super) fn failed(&mut self, mut error: TrySendError<Request<Upload>>) -> CallFailure {
        let unsent = error.take_message();
        let error = error.into_error();
        let fault = UpstreamFault::exchange(&error);
        let closed = error.is_incomplete_message() || error.is_closed() || error.is_canceled();
        let call = self.call.take().and_then(|mut call| match unsent {
            Some(request) => {
                call.request = request;
                Some(call)
            }
            None if closed && !call.request.body().is_lost() => Some(call),
            None => None,
        });
        (fault, call)
    }
}

fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE
    )
}
