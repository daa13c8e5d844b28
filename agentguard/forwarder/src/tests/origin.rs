//! The server behind the forwarder: says what it got, and does what the tests need.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, Response, Version};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, broadcast};
use tokio_rustls::TlsAcceptor;

pub(super) struct TestOrigin {
    pub port: u16,
    pub plain: u16,
    /// Its CA certificate, DER.
    pub root: Vec<u8>,
    pub seen: Arc<Seen>,
}

/// What the origin has got, and the strings that tests pull.
pub(super) struct Seen {
    requests: Mutex<Vec<String>>,
    heads: Mutex<Vec<(String, HeaderMap)>>,
    pub connections: std::sync::atomic::AtomicUsize,
    /// Lets `/ok/sse` send its next event.
    pub events: broadcast::Sender<&'static str>,
    /// Told when a request has come whose answer never ends.
    pub waiting: Notify,
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

impl TestOrigin {
    pub(super) async fn start(expired: bool) -> Self {
        let seen = Arc::new(Seen {
            requests: Mutex::default(),
            heads: Mutex::default(),
            connections: Default::default(),
            events: broadcast::channel(16).0,
            waiting: Notify::new(),
        });
        let (root, config) = certificates(&["origin.test", "plain.test", "pinned.test"], expired);
        let secure = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let plain = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let origin = Self {
            port: secure.local_addr().unwrap().port(),
            plain: plain.local_addr().unwrap().port(),
            root,
            seen: seen.clone(),
        };
        tokio::spawn(serve(secure, Some(TlsAcceptor::from(config)), seen.clone()));
        tokio::spawn(serve(plain, None, seen));
        origin
    }

    /// `METHOD target` of every request.
    pub(super) fn requests(&self) -> Vec<String> {
        self.seen.requests.lock().unwrap().clone()
    }

    /// What it got last: the target as its server saw it, and the headers.
    pub(super) fn last(&self) -> (String, HeaderMap) {
        self.seen.heads.lock().unwrap().last().unwrap().clone()
    }
}

async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, seen: Arc<Seen>) {
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        socket.set_nodelay(true).unwrap();
        let (tls, seen) = (tls.clone(), seen.clone());
        tokio::spawn(async move {
            seen.connections
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            match tls {
                Some(tls) => {
                    if let Ok(stream) = tls.accept(socket).await {
                        connection(stream, seen).await;
                    }
                }
                None => connection(socket, seen).await,
            }
        });
    }
}

async fn connection<S>(stream: S, seen: Arc<Seen>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |request| {
        let seen = seen.clone();
        async move { Ok::<_, Infallible>(answer(request, seen).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().half_close(true);
    let _ = builder
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .await;
}

async fn answer(mut request: Request<Incoming>, seen: Arc<Seen>) -> Answer {
    let target = request.uri().to_string();
    let path = request.uri().path().to_owned();
    let called = format!("{} {path}", request.method());
    seen.requests.lock().unwrap().push(called.clone());
    let head = (target, request.headers().clone());
    seen.heads.lock().unwrap().push(head);
    let path = path.strip_prefix("/ok").unwrap_or(&path);
    match path {
        "/echo" => {
            let body = request.into_body().map_err(|_| unreachable!()).boxed();
            Response::new(body)
        }
        "/upload" => {
            let mut length = 0;
            let mut trailers = None;
            let mut body = request.into_body();
            while let Some(Ok(frame)) = body.frame().await {
                length += frame.data_ref().map_or(0, Bytes::len);
                if let Ok(end) = frame.into_trailers() {
                    trailers = end.get("x-end").cloned();
                }
            }
            text(format!("{length} {trailers:?}"))
        }
        "/events" => {
            let events = seen.events.subscribe();
            let frames = stream::unfold(events, |mut events| async move {
                let event = events.recv().await.ok().filter(|event| *event != "end")?;
                let data = Bytes::from(format!("data: {event}\n\n"));
                Some((Ok(Frame::data(data)), events))
            });
            let mut answer = Response::new(StreamBody::new(frames).boxed());
            let kind = "text/event-stream".parse().unwrap();
            answer.headers_mut().insert("content-type", kind);
            answer
        }
        "/trailers" => {
            let mut end = HeaderMap::new();
            end.insert("grpc-status", "0".parse().unwrap());
            let frames = [
                Ok(Frame::data(Bytes::from_static(b"payload"))),
                Ok(Frame::trailers(end)),
            ];
            let mut answer = Response::new(StreamBody::new(stream::iter(frames)).boxed());
            let headers = answer.headers_mut();
            headers.insert("trailer", "grpc-status".parse().unwrap());
            headers.insert("content-type", "application/grpc".parse().unwrap());
            answer
        }
        "/hop" => {
            let mut answer = text(called);
            let headers = answer.headers_mut();
            headers.insert("connection", "x-private".parse().unwrap());
            headers.insert("x-private", "secret of this hop".parse().unwrap());
            headers.insert("keep-alive", "timeout=5".parse().unwrap());
            headers.insert("alt-svc", "h3=\":443\"".parse().unwrap());
            headers.insert("x-kept", "1".parse().unwrap());
            answer
        }
        "/never" => {
            seen.waiting.notify_one();
            std::future::pending().await
        }
        "/stream" => {
            let frames = stream::unfold(seen, |seen| async move {
                seen.waiting.notify_one();
                tokio::time::sleep(Duration::from_millis(1)).await;
                let data = Bytes::from(vec![b'x'; 16 * 1024]);
                Some((Ok(Frame::data(data)), seen))
            });
            Response::new(StreamBody::new(frames).boxed())
        }
        "/large" => {
            let frames = (0..64).map(|_| Ok(Frame::data(Bytes::from(vec![b'y'; 16 * 1024]))));
            Response::new(StreamBody::new(stream::iter(frames)).boxed())
        }
        "/ws" if request.version() == Version::HTTP_11 => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut io = TokioIo::new(upgrade.await.unwrap());
                let mut buffer = [0; 256];
                loop {
                    let length = io.read(&mut buffer).await.unwrap_or(0);
                    if length == 0 {
                        let _ = io.write_all(b"bye").await;
                        let _ = io.shutdown().await;
                        return;
                    }
                    io.write_all(&buffer[..length]).await.unwrap();
                }
            });
            let mut answer = text(String::new());
            *answer.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
            let headers = answer.headers_mut();
            headers.insert("connection", "Upgrade".parse().unwrap());
            headers.insert("upgrade", "websocket".parse().unwrap());
            answer
        }
        _ => text(called),
    }
}

fn text(text: String) -> Answer {
    Response::new(Full::from(text).boxed())
}

/// A CA, in DER, and the configuration of a server with a certificate of it.
fn certificates(names: &[&str], expired: bool) -> (Vec<u8>, Arc<ServerConfig>) {
    let mut ca = CertificateParams::new(Vec::<String>::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().unwrap();
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut leaf = CertificateParams::new(names).unwrap();
    if expired {
        leaf.not_before = rcgen::date_time_ymd(2001, 1, 1);
        leaf.not_after = rcgen::date_time_ymd(2002, 1, 1);
    }
    server(leaf, &issuer, ca_certificate.der().to_vec())
}

pub(super) fn server(
    leaf: CertificateParams,
    issuer: &Issuer<'_, KeyPair>,
    root: Vec<u8>,
) -> (Vec<u8>, Arc<ServerConfig>) {
    let key = KeyPair::generate().unwrap();
    let certificate = leaf.signed_by(&key, issuer).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    (root, Arc::new(config))
}

/// A server that does to each connection what `each` does.
pub(super) async fn raw<F>(each: impl Fn(TcpStream) -> F + Send + 'static) -> u16
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(each(socket));
        }
    });
    port
}
