//! Proxies on the way to a host. The host's name is the proxy's to look up; everything behind it, TLS and the host's
//! certificate, is as it is without one.
//!
//! TLS, HTTP/2 and tunnels go through `CONNECT`. Plain HTTP/1.1 goes to the proxy in absolute form (RFC 9112 section 3.2.2):
//! proxies let `CONNECT` through to port 443 and to few others.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use agentguard_link::frame::Upstream;
use agentguard_link::state::Names;
use agentguard_link::ways::{Proxy, Ways};
use agentguard_policy::{HostName, show};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Request, StatusCode, Uri, header};
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::dial::Dialer;
use super::{UpstreamAnswer, UpstreamFault};
use crate::io::Leg;
use crate::life::Life;
use crate::resolve::NameResolver;

/// The head of a proxy's answer to `CONNECT`, interim ones included, bytes.
const MAX_HEAD: usize = 16 * 1024;

/// Which host is reached by which proxy, and how proxies are.
pub(super) struct Proxies {
    ways: Ways,
    /// Of the proxies' own names. The configuration names them, so they may be anywhere.
    resolver: Arc<NameResolver>,
    tls: Arc<ClientConfig>,
}

/// A connection on which a host is met, by whichever way.
pub(crate) struct Reached {
    pub hop: Hop,
    /// The proxy's, if there is one.
    pub addr: SocketAddr,
    /// Its URL; empty: none.
    pub proxy: String,
    /// Requests go to the proxy itself, in this form.
    pub absolute: Option<AbsoluteForm>,
}

/// Requests as a proxy takes them that is to pass them on.
#[derive(Debug)]
pub(crate) struct AbsoluteForm {
    authorization: Option<HeaderValue>,
}

/// The first connection of a way.
pub(crate) enum Hop {
    Plain(Leg),
    /// To the proxy.
    Tls(Box<TlsStream<Leg>>),
}

impl Proxies {
    /// `tls`: with the trust anchors of every host.
    pub(super) fn new(
        upstream: &Upstream,
        names: &Names,
        mut tls: ClientConfig,
    ) -> anyhow::Result<Self> {
        tls.resumption = Resumption::disabled();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let anywhere = Upstream {
            allow_addresses: vec!["0.0.0.0/0".parse()?, "::/0".parse()?],
            ways: Ways::default(),
            ..upstream.clone()
        };
        Ok(Self {
            ways: upstream.ways.clone(),
            resolver: Arc::new(NameResolver::new(&anywhere, names)?),
            tls: Arc::new(tls),
        })
    }

    pub(super) fn learn(&self, names: &Names) {
        self.resolver.learn(names);
    }
}

impl Dialer {
    /// A connection to the host, through its proxy if it has one. `absolute`: what is to be sent may go to the proxy itself.
    pub(super) async fn reach(
        &self,
        life: &Arc<Life>,
        host: &HostName,
        port: u16,
        absolute: bool,
    ) -> Result<Reached, UpstreamFault> {
        let Some(proxy) = self.proxies.ways.of(host) else {
            let (leg, addr) = self.connect(life, host, port).await?;
            return Ok(Reached {
                hop: Hop::Plain(leg),
                addr,
                proxy: String::new(),
                absolute: None,
            });
        };
        if let Some(ip) = host.ip()
            && let Err(why) = self.resolver.check_address(ip)
        {
            let detail = format!("{ip} is {why} (`upstream.allow_addresses` lists exceptions)");
            return Err(UpstreamFault::unreachable(detail));
        }
        let way = async {
            let (mut hop, addr) = self.to_proxy(life, proxy).await?;
            let authorization = authorization(proxy);
            let absolute = match absolute {
                true => Some(AbsoluteForm { authorization }),
                false => {
                    connect(&mut hop, host, port, authorization.as_ref()).await?;
                    None
                }
            };
            Ok(Reached {
                hop,
                addr,
                proxy: proxy.to_string(),
                absolute,
            })
        };
        let in_time = timeout(self.connect_timeout, way).await;
        in_time
            .unwrap_or_else(|_| Err(UpstreamFault::timeout("it did not answer in time")))
            .map_err(|fault| fault.of_proxy(proxy))
    }

    async fn to_proxy(
        &self,
        life: &Arc<Life>,
        proxy: &Proxy,
    ) -> Result<(Hop, SocketAddr), UpstreamFault> {
        let host = HostName::parse(&proxy.host).map_err(UpstreamFault::unreachable)?;
        let dialer = Self {
            resolver: self.proxies.resolver.clone(),
            ..self.clone()
        };
        let (leg, addr) = dialer.connect(life, &host, proxy.port).await?;
        if !proxy.tls {
            return Ok((Hop::Plain(leg), addr));
        }
        let name = ServerName::try_from(proxy.host.clone())
            .map_err(|_| UpstreamFault::tls("its name cannot be in a certificate"))?;
        let handshake = TlsConnector::from(self.proxies.tls.clone()).connect(name, leg);
        let stream = handshake
            .await
            .map_err(|error| UpstreamFault::handshake(&error))?;
        Ok((Hop::Tls(Box::new(stream)), addr))
    }
}

impl UpstreamFault {
    fn of_proxy(self, proxy: &Proxy) -> Self {
        Self {
            detail: format!("the proxy `{proxy}`: {}", self.detail),
            ..self
        }
    }
}

impl AbsoluteForm {
    /// Makes a request in origin form one that the proxy passes on to `authority`.
    pub(super) fn put<B>(&self, request: &mut Request<B>, authority: Authority) {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        // A URL has no place for it; it is judged as `/`, too.
        if parts.path_and_query.as_ref().is_some_and(|it| it == "*") {
            parts.path_and_query = Some(PathAndQuery::from_static("/"));
        }
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(authority);
        *request.uri_mut() = Uri::from_parts(parts).expect("all three parts are there");
        if let Some(authorization) = &self.authorization {
            let headers = request.headers_mut();
            headers.insert(header::PROXY_AUTHORIZATION, authorization.clone());
        }
    }
}

impl UpstreamAnswer {
    /// The answer, unless it is the proxy's, which has not passed the request on (RFC 9110 section 15.5.8).
    pub(crate) fn not_from_proxy(self) -> Result<Self, UpstreamFault> {
        let Some(form) = &self.facts.1 else {
            return Ok(self);
        };
        if self.response.status() != StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            return Ok(self);
        }
        let headers = self.response.headers().get_all(header::PROXY_AUTHENTICATE);
        let asked = headers.iter().filter_map(|line| line.to_str().ok());
        let detail = unauthenticated(form.authorization.is_some(), asked);
        Err(UpstreamFault {
            unsent: true,
            ..UpstreamFault::unreachable(format!("the proxy `{}`: {detail}", self.facts.0.proxy))
        })
    }
}

fn authorization(proxy: &Proxy) -> Option<HeaderValue> {
    let secret = proxy.authorization.as_ref()?;
    let mut value = HeaderValue::try_from(&secret.0).expect("`Basic` and base64 are visible ASCII");
    value.set_sensitive(true);
    Some(value)
}

/// Has the proxy open a tunnel (RFC 9110 section 9.3.6). Who comes in it speaks first: whatever the proxy sends behind its
/// answer is not the host's.
async fn connect(
    proxy: &mut Hop,
    host: &HostName,
    port: u16,
    authorization: Option<&HeaderValue>,
) -> Result<(), UpstreamFault> {
    let broke_off = |error: io::Error| UpstreamFault::unreachable(format!("it broke off: {error}"));
    let place = match host.as_str().contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    };
    let mut request = format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n").into_bytes();
    if let Some(value) = authorization {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(value.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    proxy.write_all(&request).await.map_err(broke_off)?;
    proxy.flush().await.map_err(broke_off)?;
    let mut answer = Vec::new();
    loop {
        if let Some(answered) = answered(&answer, authorization.is_some()) {
            return answered.map_err(UpstreamFault::unreachable);
        }
        if answer.len() >= MAX_HEAD {
            let detail = format!("its answer's head is longer than {MAX_HEAD} bytes");
            return Err(UpstreamFault::unreachable(detail));
        }
        let mut room = (&mut *proxy).take((MAX_HEAD - answer.len()) as u64);
        if room.read_buf(&mut answer).await.map_err(broke_off)? == 0 {
            return Err(UpstreamFault::unreachable(
                "it closed the connection without an answer",
            ));
        }
    }
}

/// What the bytes so far say; `None`: no whole answer yet. Interim answers are read over.
fn answered(mut bytes: &[u8], authorized: bool) -> Option<Result<(), String>> {
    const END: &[u8] = b"\r\n\r\n";
    loop {
        let start: &[u8] = b"HTTP/1.";
        let known = bytes.len().min(start.len());
        if bytes[..known] != start[..known] {
            return Some(Err("it does not speak HTTP".into()));
        }
        let end = bytes.windows(END.len()).position(|at| at == END)?;
        let head = String::from_utf8_lossy(&bytes[..end]);
        bytes = &bytes[end + END.len()..];
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1));
        let status = status.and_then(|status| StatusCode::from_bytes(status.as_bytes()).ok());
        let Some(status) = status else {
            return Some(Err("its answer has no status".into()));
        };
        if status == StatusCode::SWITCHING_PROTOCOLS || !status.is_informational() {
            return Some(match status {
                _ if status.is_success() && bytes.is_empty() => Ok(()),
                _ if status.is_success() => Err("it sent bytes of its own into the tunnel".into()),
                StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                    let asked = lines.filter_map(|line| {
                        let (name, value) = line.split_once(':')?;
                        let asks = name.eq_ignore_ascii_case(header::PROXY_AUTHENTICATE.as_str());
                        asks.then(|| value.trim())
                    });
                    Err(unauthenticated(authorized, asked))
                }
                _ if status.is_redirection() => {
                    Err(format!("it redirects ({status}), which is not followed"))
                }
                _ => Err(format!("it refused `CONNECT`: {status}")),
            });
        }
    }
}

/// `asked`: its challenges (RFC 9110 section 11.7.1).
fn unauthenticated<'a>(authorized: bool, asked: impl Iterator<Item = &'a str>) -> String {
    let schemes: Vec<String> = asked
        .filter_map(|challenge| Some(show(challenge.split_whitespace().next()?)))
        .collect();
    let basic = schemes.iter().any(|it| it.eq_ignore_ascii_case("basic"));
    match (basic, authorized) {
        (true, true) => "it does not take the credentials that `upstream.proxy_credentials_file` \
                         has for it (407)"
            .into(),
        (true, false) => "it wants credentials (407): `upstream.proxy_credentials_file`".into(),
        (false, _) => format!(
            "it wants credentials by `{}` (407), and only Basic is spoken",
            schemes.join("`, `")
        ),
    }
}

macro_rules! either {
    ($self:ident, $io:ident => $call:expr) => {
        match $self.get_mut() {
            Hop::Plain($io) => $call,
            Hop::Tls($io) => $call,
        }
    };
}

impl AsyncRead for Hop {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Hop {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, io => Pin::new(io).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, io => Pin::new(io).poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(io) => io.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proxies_answer() {
        let ok = "HTTP/1.1 200 Connection established\r\n\r\n";
        let cases: [(&str, Option<Result<(), &str>>); 13] = [
            ("", None),
            ("HTT", None),
            (ok, Some(Ok(()))),
            ("HTTP/1.0 299 x\r\nContent-Length: 9\r\n\r\n", Some(Ok(()))),
            ("HTTP/1.1 100 Continue\r\n\r\n", None),
            (
                "HTTP/1.1 103 x\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
                Some(Ok(())),
            ),
            ("HTTP/1.1 200 OK\r\n\r\nx", Some(Err("bytes of its own"))),
            (
                "HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n",
                Some(Err("redirects (302 Found)")),
            ),
            (
                "HTTP/1.1 403 No\r\n\r\n<html>",
                Some(Err("refused `CONNECT`: 403 Forbidden")),
            ),
            (
                "HTTP/1.1 101 x\r\n\r\n",
                Some(Err("101 Switching Protocols")),
            ),
            ("HTTP/1.1 what\r\n\r\n", Some(Err("no status"))),
            ("SSH-2.0-x\r\n", Some(Err("does not speak HTTP"))),
            (
                "HTTP/1.1 407 x\r\nproxy-authenticate: Negotiate\r\nProxy-Authenticate: NTLM\r\n\r\n",
                Some(Err("`Negotiate`, `NTLM` (407), and only Basic")),
            ),
        ];
        for (text, expected) in cases {
            match (answered(text.as_bytes(), false), expected) {
                (Some(Err(why)), Some(Err(expected))) => {
                    assert!(why.contains(expected), "{text}: {why}");
                }
                (found, expected) => {
                    let expected = expected.map(|it| it.map_err(str::to_owned));
                    assert_eq!(found, expected, "{text}");
                }
            }
        }
        for length in 0..ok.len() {
            assert_eq!(answered(&ok.as_bytes()[..length], false), None, "{length}");
        }
        let basic = "HTTP/1.1 407 x\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n";
        let why = |authorized| answered(basic.as_bytes(), authorized).unwrap().unwrap_err();
        assert!(why(false).contains("wants credentials"));
        assert!(why(true).contains("does not take the credentials"));
    }

    #[test]
    fn the_absolute_form_names_the_host() {
        let mut request = Request::new(());
        *request.uri_mut() = Uri::from_static("/a?b=c");
        let form = AbsoluteForm {
            authorization: Some(HeaderValue::from_static("Basic dTpw")),
        };
        form.put(&mut request, Authority::from_static("h.example:8080"));
        assert_eq!(request.uri().to_string(), "http://h.example:8080/a?b=c");
        assert_eq!(request.headers()[header::PROXY_AUTHORIZATION], "Basic dTpw");
    }
}
