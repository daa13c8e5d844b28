//! The control API: HTTP/1.1 and JSON on a Unix socket, every caller judged by what the kernel says of it.
//! What is served, and to whom, is the table in [`routes`]; types are in [`agentguard_control::api`].

pub mod access;
mod actor;
mod handle;
mod places;
mod records;
mod response;
pub mod routes;
pub mod view;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agentguard_common::abi::Label;
use agentguard_sys::peer::Peer;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};

use self::places::Places;
pub use self::records::Searches;
use crate::Parts;
use crate::lock::lock;

/// How long a caller may take to send a request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// Connections at once, of root, of those with a role, of agents and of everyone else each.
const CONNECTIONS: usize = 128;
/// Of these one user's, root's own aside.
const SHARE: usize = 32;

#[derive(Debug, thiserror::Error)]
#[error("cannot listen on the control socket `{}`: {source}", path.display())]
pub struct ListenError {
    path: PathBuf,
    source: std::io::Error,
}

/// The socket is everyone's to connect to: each request is judged, and refused ones are answered.
pub fn listen(path: &Path) -> Result<UnixListener, ListenError> {
    let failed = |source| ListenError {
        path: path.to_owned(),
        source,
    };
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(failed(error));
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).map_err(failed)?;
    Ok(listener)
}

/// Serves until the daemon stops.
pub async fn serve(parts: Parts, listener: UnixListener) {
    let places = Places::new(CONNECTIONS, SHARE);
    let connections = tokio_util::task::TaskTracker::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Too many files, mostly: the next accept may work, a busy loop would not help it.
                    tracing::warn!(%error, "cannot accept on the control socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = parts.ending.stop.cancelled() => break,
        };
        let peer = match Peer::of(&stream) {
            Ok(peer) => peer,
            Err(error) => {
                tracing::warn!(%error, "a caller of the control socket cannot be known");
                continue;
            }
        };
        let label = lock(&parts.enforce.kernel).label(peer.tgid);
        let is_agent = label.map_or(true, |label| label != Label::default());
        let Some(place) = places.take(&peer, is_agent, &parts.host.config.roles) else {
            tracing::warn!(uid = peer.uid, "too many connections to the control socket");
            continue;
        };
        let parts = parts.clone();
        connections.spawn(async move {
            serve_caller(parts, stream, peer).await;
            drop(place);
        });
    }
    connections.close();
    // Answers under way, that of an unload among them.
    let _ = tokio::time::timeout(Duration::from_secs(2), connections.wait()).await;
}

async fn serve_caller(parts: Parts, stream: UnixStream, peer: Peer) {
    let peer = Arc::new(peer);
    let stop = parts.ending.stop.clone();
    let service = service_fn(move |request| {
        let (parts, peer) = (parts.clone(), peer.clone());
        async move { Ok::<_, std::convert::Infallible>(handle::answer(&parts, &peer, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let served = tokio::select! {
        served = &mut connection => served,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "control connection");
    }
}
