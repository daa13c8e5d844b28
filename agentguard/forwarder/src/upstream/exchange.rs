//! One request and its answer on one upstream connection, new or kept.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use agentguard_record::DenyReason;
use http::{HeaderMap, Request};
use hyper::client::conn::http2;
use tokio::sync::Notify;

use super::connect::Http1;
use super::host::{Connection, HostPool, Http2, Turn};
use super::resend::{CallFailure, Hazard, Rest, ends_connection, is_closed};
use super::{UpstreamAnswer, UpstreamCall, UpstreamFault, Upstreams};
use crate::life::Life;
use crate::upload::{Upload, UploadState};

/// Interim answers (RFC 9110 section 15.2) to one request. Servers send one or two.
const MAX_INTERIM: usize = 32;
/// What allows more time to the head of an answer.
const HEAD_KEYS: &str =
    "`timeouts.head` in the host's file, else `[forwarder] upstream_head_timeout_ms`";

/// What the answer's body holds of the connection it comes from.
pub(crate) enum Lease {
    /// To be driven by who reads the body, then kept.
    Http1 {
        http1: Box<Http1>,
        host: Arc<HostPool>,
    },
    /// A place among its streams.
    Http2(#[expect(dead_code, reason = "counts while it is held")] Http2),
    /// It runs on a task of its own and is not kept.
    Detached,
}

impl Lease {
    /// Lets the connection read and write. False: there is nothing more to be had by it.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) -> bool {
        match self {
            Self::Http1 { http1, .. } => {
                if Pin::new(&mut *http1.connection).poll(cx).is_ready() {
                    *self = Self::Detached;
                }
                true
            }
            Self::Http2(_) | Self::Detached => false,
        }
    }

    /// Afterwards the connection is kept there, or nowhere.
    pub(crate) fn bind(&mut self, to: Arc<HostPool>) {
        if let Self::Http1 { host, .. } = self {
            *host = to;
        }
    }

    /// The answer is complete.
    pub(crate) fn end(&mut self, cx: &mut Context<'_>) {
        if let Self::Http1 { mut http1, host } = std::mem::replace(self, Self::Detached)
            && !http1.is_last
            && http1.poll_open(cx)
        {
            host.keep(http1);
        }
    }
}

impl Upstreams {
    /// `turn` ends when the request is on its way.
    pub(super) async fn exchange(
        &self,
        host: &Arc<HostPool>,
        connection: Connection,
        turn: Option<Turn>,
        mut call: UpstreamCall,
    ) -> Result<UpstreamAnswer, CallFailure> {
        match connection {
            Connection::Http1(http1) => {
                call.as_http1();
                if let Some(form) = &http1.facts.1 {
                    form.put(&mut call.request, host.authority());
                }
                if call.websocket {
                    self.upgrade(host.life(), *http1, call).await
                } else {
                    self.over_http1(host, http1, turn, call).await
                }
            }
            Connection::Http2(http2, sender) => {
                call.as_http2();
                self.over_http2(http2, sender, turn, call).await
            }
        }
    }

    async fn over_http1(
        &self,
        host: &Arc<HostPool>,
        mut http1: Box<Http1>,
        mut turn: Option<Turn>,
        call: UpstreamCall,
    ) -> Result<UpstreamAnswer, CallFailure> {
        http1.is_last = call.is_last();
        let head_timeout = call.settings.head_timeout;
        let (mut request, mut rest) = Rest::split(call, http1.hazard());
        let upload = request.body().state();
        let interim = count_interim(&mut request);
        let sent = http1.sender.try_send_request(request);
        let answered = {
            let mut sent = pin!(sent);
            let mut open = true;
            self.in_time(
                head_timeout,
                &upload,
                &interim,
                poll_fn(|cx| {
                    if let Poll::Ready(answered) = sent.as_mut().poll(cx) {
                        return Poll::Ready(answered);
                    }
                    open = open && Pin::new(&mut *http1.connection).poll(cx).is_pending();
                    turn = None;
                    sent.as_mut().poll(cx)
                }),
            )
            .await
        };
        let response = match answered {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                if http1.reused && upload.error().is_none() && is_closed(error.error()) {
                    host.closed_after(http1.idle);
                }
                return Err(rest.failed(error));
            }
            Err(fault) => return Err((fault, None)),
        };
        if !http1.reused
            && let Some(time) = keep_alive(response.headers())
        {
            host.keeps_for(time);
        }
        let facts = http1.facts.clone();
        let lease = if upload.is_done() {
            Lease::Http1 {
                http1,
                host: host.clone(),
            }
        } else {
            // The answer has begun before the request has ended: each must go on without the other.
            let Http1 {
                sender, connection, ..
            } = *http1;
            host.life().spawn(async move {
                let _ = connection.await;
                drop(sender);
            });
            Lease::Detached
        };
        Ok(UpstreamAnswer {
            response,
            lease,
            facts,
        })
    }

    async fn over_http2(
        &self,
        http2: Http2,
        mut sender: http2::SendRequest<Upload>,
        turn: Option<Turn>,
        call: UpstreamCall,
    ) -> Result<UpstreamAnswer, CallFailure> {
        let head_timeout = call.settings.head_timeout;
        let (request, mut rest) = Rest::split(call, http2.hazard());
        let upload = request.body().state();
        let sent = sender.try_send_request(request);
        drop((sender, turn));
        match self
            .in_time(head_timeout, &upload, &Interim::default(), sent)
            .await
        {
            Ok(Ok(response)) => Ok(UpstreamAnswer {
                response,
                facts: http2.facts.clone(),
                lease: Lease::Http2(http2),
            }),
            Ok(Err(error)) => {
                if ends_connection(error.error()) {
                    http2.retire();
                }
                Err(rest.failed(error))
            }
            Err(fault) => {
                if fault.reason == DenyReason::UpstreamTimeout {
                    http2.retire();
                }
                Err((fault, None))
            }
        }
    }

    /// A request that may turn the connection into a tunnel.
    async fn upgrade(
        &self,
        life: &Arc<Life>,
        http1: Http1,
        call: UpstreamCall,
    ) -> Result<UpstreamAnswer, CallFailure> {
        let head_timeout = call.settings.head_timeout;
        let (mut request, mut rest) = Rest::split(call, Hazard::None);
        let upload = request.body().state();
        let interim = count_interim(&mut request);
        let Http1 {
            mut sender,
            connection,
            facts,
            ..
        } = http1;
        let connection = connection.with_upgrades();
        life.spawn(async move {
            let _ = connection.await;
        });
        let sent = sender.try_send_request(request);
        match self.in_time(head_timeout, &upload, &interim, sent).await {
            Ok(Ok(response)) => Ok(UpstreamAnswer {
                response,
                lease: Lease::Detached,
                facts,
            }),
            Ok(Err(error)) => Err(rest.failed(error)),
            Err(fault) => Err((fault, None)),
        }
    }

    /// Waits for the head of the answer. The time counts from the last byte of the request that was passed on. `limit`: the
    /// host's own.
    async fn in_time<T>(
        &self,
        limit: Option<Duration>,
        upload: &UploadState,
        interim: &Interim,
        answer: impl Future<Output = T>,
    ) -> Result<T, UpstreamFault> {
        let limit = limit.unwrap_or(self.head_timeout);
        let mut answer = pin!(answer);
        loop {
            let before = upload.passed();
            let in_time = tokio::time::timeout(limit, answer.as_mut());
            tokio::select! {
                in_time = in_time => match in_time {
                    Ok(answer) => return Ok(answer),
                    Err(_) if upload.passed() != before => {}
                    Err(_) => return Err(too_slow(limit, upload)),
                },
                () = interim.too_many.notified() => {
                    let detail = format!("it sent more than {MAX_INTERIM} interim answers");
                    return Err(UpstreamFault::unreachable(detail));
                }
            }
        }
    }
}

fn too_slow(limit: Duration, upload: &UploadState) -> UpstreamFault {
    let limit = limit.as_millis();
    let what = match upload.is_done() {
        true => format!("no answer within {limit} ms"),
        false => format!("the request's body stopped for {limit} ms"),
    };
    UpstreamFault::timeout(format!("{what} ({HEAD_KEYS})"))
}

impl Http1 {
    fn hazard(&self) -> Hazard {
        match self.reused {
            true => Hazard::Close,
            false => Hazard::None,
        }
    }
}

impl Http2 {
    fn hazard(&self) -> Hazard {
        match self.reused {
            true => Hazard::CloseOrRefuse,
            false => Hazard::Refuse,
        }
    }
}

/// How long the server says that it keeps the connection when nothing is on it.
fn keep_alive(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("keep-alive")?.to_str().ok()?;
    let timeout = value
        .split(',')
        .find_map(|it| it.trim().strip_prefix("timeout="))?;
    timeout.parse().ok().map(Duration::from_secs)
}

/// The interim answers to a request, of which hyper tells and which it otherwise reads over.
#[derive(Default)]
struct Interim {
    seen: AtomicUsize,
    too_many: Notify,
}

fn count_interim(request: &mut Request<Upload>) -> Arc<Interim> {
    let interim = Arc::new(Interim::default());
    let counted = interim.clone();
    hyper::ext::on_informational(request, move |_| {
        if counted.seen.fetch_add(1, Ordering::Relaxed) == MAX_INTERIM {
            counted.too_many.notify_one();
        }
    });
    interim
}
