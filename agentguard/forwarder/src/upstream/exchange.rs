//! One request and its answer on one upstream connection, new or kept.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use agentguard_record::UpstreamInfo;
use http::Request;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use tokio::sync::Notify;

use super::pool::{Connection, ConnectionFacts, HostPool, Http1, Http2, Pool, PoolKey};
use super::resend::{CallFailure, Rest};
use super::{UpstreamAnswer, UpstreamCall, UpstreamFault, Upstreams};
use crate::frames::{MeteredStream, Peer};
use crate::life::{Life, OfLife};
use crate::upload::{Upload, UploadState};

/// Bytes that upstream may send on a stream before we take them (RFC 9113 section 6.9), at most.
const STREAM_WINDOW: u32 = 1 << 20;
/// The read buffer of an HTTP/1.1 connection, at most.
const READ_BUFFER: usize = 256 * 1024;

/// Interim answers (RFC 9110 section 15.2) to one request. Servers send one or two.
const MAX_INTERIM: usize = 32;

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
    pub(super) async fn open(
        &self,
        pool: &Pool,
        key: &PoolKey,
        host: &Arc<HostPool>,
        upgrade: bool,
    ) -> Result<Connection, UpstreamFault> {
        let mut one_at_a_time = None;
        if key.http2 && !upgrade && !host.http1_only.load(Ordering::Relaxed) {
            one_at_a_time = Some(host.dialing.lock().await);
            if let Some(shared) = host.stream() {
                return Ok(Connection::Http2(shared));
            }
            if host.http1_only.load(Ordering::Relaxed) {
                one_at_a_time = None;
            }
        }
        let life = &pool.life;
        let configs = pool.tls(|| self.tls());
        let config = match (key.tls, key.http2 && !upgrade) {
            (false, _) => None,
            (true, false) => Some(configs.http1.clone()),
            (true, true) => Some(configs.http2.clone()),
        };
        let dialled = self.dialer.dial(life, &key.host, key.port, config).await?;
        let facts = Arc::new(ConnectionFacts(UpstreamInfo {
            addr: dialled.addr.to_string(),
            tls: dialled.tls.to_owned(),
        }));
        let prior_knowledge = !key.tls && key.http2 && !upgrade;
        if !dialled.http2 && !prior_knowledge {
            host.http1_only.store(true, Ordering::Relaxed);
            drop(one_at_a_time);
            let (sender, connection) = http1::Builder::new()
                .max_buf_size(READ_BUFFER)
                .max_header_size(self.max_header_bytes as usize)
                .handshake(TokioIo::new(dialled.wire))
                .await
                .map_err(|error| UpstreamFault::exchange(&error))?;
            return Ok(Connection::Http1(Box::new(Http1 {
                sender,
                connection: Box::new(connection),
                facts,
                reused: false,
                is_last: false,
            })));
        }
        let window = life.shares.upstream_window();
        let wire = MeteredStream::new(dialled.wire, Peer::Server);
        let (sender, connection) = http2::Builder::new(OfLife(life.clone()))
            .initial_stream_window_size(STREAM_WINDOW.min(window.size))
            .initial_connection_window_size(window.size)
            .max_header_list_size(self.max_header_bytes)
            .handshake(TokioIo::new(wire))
            .await
            .map_err(|error| UpstreamFault::exchange(&error))?;
        life.spawn(async move {
            let _window = window;
            // Its errors are those of the requests on it.
            let _ = connection.await;
        });
        let http2 = Http2::new(sender, facts);
        host.http1_only.store(false, Ordering::Relaxed);
        host.share(http2.join());
        Ok(Connection::Http2(http2))
    }

    pub(super) async fn exchange(
        &self,
        life: &Arc<Life>,
        host: &Arc<HostPool>,
        connection: Connection,
        mut call: UpstreamCall,
    ) -> Result<UpstreamAnswer, CallFailure> {
        match connection {
            Connection::Http1(http1) => {
                call.as_http1();
                if call.websocket {
                    self.upgrade(life, *http1, call).await
                } else {
                    self.over_http1(life, host, http1, call).await
                }
            }
            Connection::Http2(http2) => {
                call.as_http2();
                self.over_http2(http2, call).await
            }
        }
    }

    async fn over_http1(
        &self,
        life: &Arc<Life>,
        host: &Arc<HostPool>,
        mut http1: Box<Http1>,
        call: UpstreamCall,
    ) -> Result<UpstreamAnswer, CallFailure> {
        http1.is_last = call.is_last();
        let (mut request, mut rest) = Rest::split(call, http1.reused);
        let upload = request.body().state();
        let interim = count_interim(&mut request);
        let sent = http1.sender.try_send_request(request);
        let answered = {
            let mut sent = pin!(sent);
            let mut open = true;
            self.in_time(
                &upload,
                &interim,
                poll_fn(|cx| {
                    if let Poll::Ready(answered) = sent.as_mut().poll(cx) {
                        return Poll::Ready(answered);
                    }
                    open = open && Pin::new(&mut *http1.connection).poll(cx).is_pending();
                    sent.as_mut().poll(cx)
                }),
            )
            .await
        };
        let response = match answered {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(rest.failed(error)),
            Err(fault) => return Err((fault, None)),
        };
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
            life.spawn(async move {
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
        mut http2: Http2,
        call: UpstreamCall,
    ) -> Result<UpstreamAnswer, CallFailure> {
        let (request, mut rest) = Rest::split(call, true);
        let upload = request.body().state();
        let sent = http2.sender.try_send_request(request);
        match self.in_time(&upload, &Interim::default(), sent).await {
            Ok(Ok(response)) => Ok(UpstreamAnswer {
                response,
                facts: http2.facts.clone(),
                lease: Lease::Http2(http2),
            }),
            Ok(Err(error)) => Err(rest.failed(error)),
            Err(fault) => Err((fault, None)),
        }
    }

    /// A request that may turn the connection into a tunnel.
    async fn upgrade(
        &self,
        life: &Arc<Life>,
        http1: Http1,
        call: UpstreamCall,
    ) -> Result<UpstreamAnswer, CallFailure> {
        let (mut request, mut rest) = Rest::split(call, http1.reused);
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
        match self.in_time(&upload, &interim, sent).await {
            Ok(Ok(response)) => Ok(UpstreamAnswer {
                response,
                lease: Lease::Detached,
                facts,
            }),
            Ok(Err(error)) => Err(rest.failed(error)),
            Err(fault) => Err((fault, None)),
        }
    }

    /// Waits for the head of the answer. The time counts from the last byte of the request that was passed on.
    async fn in_time<T>(
        &self,
        upload: &UploadState,
        interim: &Interim,
        answer: impl Future<Output = T>,
    ) -> Result<T, UpstreamFault> {
        let mut answer = pin!(answer);
        loop {
            let before = upload.passed();
            let in_time = tokio::time::timeout(self.head_timeout, answer.as_mut());
            tokio::select! {
                in_time = in_time => match in_time {
                    Ok(answer) => return Ok(answer),
                    Err(_) if upload.passed() != before => {}
                    Err(_) => return Err(self.too_slow(upload)),
                },
                () = interim.too_many.notified() => {
                    let detail = format!("it sent more than {MAX_INTERIM} interim answers");
                    return Err(UpstreamFault::unreachable(detail));
                }
            }
        }
    }

    fn too_slow(&self, upload: &UploadState) -> UpstreamFault {
        let limit = self.head_timeout.as_millis();
        if upload.is_done() {
            UpstreamFault::timeout(format!("no answer within {limit} ms"))
        } else {
            UpstreamFault::timeout(format!("the request's body stopped for {limit} ms"))
        }
    }
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
