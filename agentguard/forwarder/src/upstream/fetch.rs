//! One question of the forwarder's own: a GET without anything of an agent's but what policy puts into its URL, on a
//! connection for it alone. Redirects are not followed.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use agentguard_policy::lookup::{LookupQuestion, MAX_ANSWER};
use bytes::Bytes;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;

use super::UpstreamFault;
use super::dial::{Dialer, untagged};
use crate::life::Life;

/// The head of an answer, at most, bytes.
const MAX_HEAD: usize = 16 * 1024;

/// How the forwarder asks as itself.
pub(crate) struct Fetcher {
    pub(super) dialer: Dialer,
    pub(super) tls: Arc<ClientConfig>,
    /// The forwarder's own.
    pub(super) life: Arc<Life>,
}

/// A whole answer.
pub(crate) struct FetchedAnswer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Fetcher {
    /// Gives up when it is dropped; the deadline is the caller's.
    pub(crate) async fn fetch(&self, ask: &LookupQuestion) -> Result<FetchedAnswer, UpstreamFault> {
        let service = &ask.service;
        let dialer = Dialer {
            tag: untagged,
            connect_timeout: service.deadline,
            ..self.dialer.clone()
        };
        let tls = service.tls.then(|| self.tls.clone());
        let dialled = dialer
            .dial(&self.life, &service.host, service.port, tls, true)
            .await?;
        let mut request = request(ask)?;
        if let Some(form) = &dialled.absolute {
            form.put(&mut request, authority(ask)?);
        }
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(dialled.wire))
            .await
            .map_err(|error| UpstreamFault::exchange(&error))?;
        let mut connection = pin!(connection);
        let mut answer = pin!(exchange(sender, request));
        let mut open = true;
        poll_fn(|cx| {
            if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
                return Poll::Ready(answer);
            }
            open = open && connection.as_mut().poll(cx).is_pending();
            answer.as_mut().poll(cx)
        })
        .await
    }
}

fn request(ask: &LookupQuestion) -> Result<Request<Empty<Bytes>>, UpstreamFault> {
    let bad = || UpstreamFault::unreachable("what it would be asked is no URL");
    let target = PathAndQuery::try_from(ask.target.as_str()).map_err(|_| bad())?;
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = Uri::from(target);
    let headers = request.headers_mut();
    let host = HeaderValue::try_from(ask.authority()).map_err(|_| bad())?;
    headers.insert(header::HOST, host);
    let fixed = [
        (header::ACCEPT, "application/json"),
        (
            header::USER_AGENT,
            concat!("agentguard/", env!("CARGO_PKG_VERSION")),
        ),
        (header::CONNECTION, "close"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Ok(request)
}

fn authority(ask: &LookupQuestion) -> Result<Authority, UpstreamFault> {
    Authority::try_from(ask.authority())
        .map_err(|_| UpstreamFault::unreachable("what it would be asked is no URL"))
}

async fn exchange(
    mut sender: http1::SendRequest<Empty<Bytes>>,
    request: Request<Empty<Bytes>>,
) -> Result<FetchedAnswer, UpstreamFault> {
    let response = sender.send_request(request).await;
    let (head, body) = response
        .map_err(|error| UpstreamFault::exchange(&error))?
        .into_parts();
    let body = match Limited::new(body, MAX_ANSWER).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            let detail = format!("its answer is longer than {MAX_ANSWER} bytes");
            return Err(UpstreamFault::unreachable(detail));
        }
        Err(error) => {
            return Err(UpstreamFault::unreachable(format!(
                "its answer broke off: {error}"
            )));
        }
    };
    Ok(FetchedAnswer {
        status: head.status,
        headers: head.headers,
        body,
    })
}
