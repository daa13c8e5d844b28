//! Where the canary's permitted request ends: a TLS server of the daemon's own on loopback, with a certificate that only
//! the canary's side of the forwarder trusts. It has one answer, and nothing to tell.

use std::collections::HashSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentguard_link::canary::HOST;
use agentguard_link::frame::CanaryOrigin;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::enforce::canary::process::FROM_ORIGIN;
use crate::lock::lock;

/// Connections at once. Others on this host can connect too, and must not keep the forwarder out.
const MAX_CONNECTIONS: usize = 256;
/// How long one may take.
const LIMIT: Duration = Duration::from_secs(4);
/// Bytes of a request's head at most.
const MAX_HEAD: usize = 8192;

pub(super) struct CanaryServer {
    addr: SocketAddr,
    certificate: Vec<u8>,
    /// Ports that connections have come from since the last look.
    from: Arc<Mutex<HashSet<u16>>>,
}

impl CanaryServer {
    /// Serves as long as the runtime runs.
    pub(super) fn start() -> io::Result<Self> {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed([HOST.to_owned()]).map_err(io::Error::other)?;
        let certificate = cert.der().clone();
        let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der());
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key.into())
            .map_err(io::Error::other)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let origin = Self {
            addr: listener.local_addr()?,
            certificate: certificate.to_vec(),
            from: Arc::default(),
        };
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(serve(listener, acceptor, origin.from.clone()));
        Ok(origin)
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// As the forwarder is told of it.
    pub(super) fn described(&self) -> CanaryOrigin {
        CanaryOrigin {
            port: self.addr.port(),
            certificate: self.certificate.clone(),
        }
    }

    /// Whether a connection has come from `port` since the last look.
    pub(super) fn was_reached_from(&self, port: Option<u16>) -> bool {
        let from = std::mem::take(&mut *lock(&self.from));
        port.is_some_and(|port| from.contains(&port))
    }
}

async fn serve(
    listener: tokio::net::TcpListener,
    acceptor: TlsAcceptor,
    from: Arc<Mutex<HashSet<u16>>>,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            // For want of descriptors (accept(2)).
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        lock(&from).insert(peer.port());
        let Ok(place) = places.clone().try_acquire_owned() else {
            continue;
        };
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            // A client that does not ask as the canary does is not the canary.
            let _ = tokio::time::timeout(LIMIT, answer(stream, acceptor)).await;
            drop(place);
        });
    }
}

async fn answer(stream: TcpStream, acceptor: TlsAcceptor) -> io::Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > MAX_HEAD || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let answer = format!("HTTP/1.1 {FROM_ORIGIN} No Content\r\nConnection: close\r\n\r\n");
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}
