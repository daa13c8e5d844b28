//! Accepted connections, each on a task of its own.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::admit::Door;
use super::path;

/// How long to wait when the process has no descriptor left to accept with.
const EXHAUSTED: Duration = Duration::from_millis(50);

/// Accepts until `stop`, or until the listener is destroyed.
pub(crate) async fn accept(
    door: Arc<Door>,
    listener: TcpListener,
    stop: CancellationToken,
) -> io::Error {
    loop {
        let socket = tokio::select! {
            () = stop.cancelled() => return io::ErrorKind::Interrupted.into(),
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => socket,
                // It does not listen any more (`inet_csk_accept`): SOCK_DESTROY.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return error,
                Err(error) => {
                    // Of the connection that was to be accepted, or for want of descriptors (accept(2)).
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(EXHAUSTED).await;
                    continue;
                }
            },
        };
        // Best effort: without it small answers wait for acknowledgements.
        let _ = socket.set_nodelay(true);
        let door = door.clone();
        // Taken here, so that those that have none are gone before the next ones are.
        let place = door.places.clone().try_acquire_owned().ok();
        tokio::spawn(async move {
            // However it ended, its entry is complete.
            let _ = path::connection(&door, socket, place).await;
        });
    }
}
