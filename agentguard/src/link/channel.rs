//! The link's two ends: typed, asynchronous, one sender and one receiver each.

use std::io::{self, IoSlice};
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::{MsgFlags, recv, sendmsg};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

/// A connected pair of link ends, both close-on-exec.
pub use crate::sys::socket::seqpacket_pair as pair;

use super::codec::{self, Assembler, CodecError, Frame, MAX_DATAGRAM};

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error("link: {call}: {source}")]
    Call {
        call: &'static str,
        source: io::Error,
    },
    #[error("link: the other side is gone")]
    Closed,
}

/// Sends `F` frames.
pub struct Sender<F> {
    socket: Arc<UnixDatagram>,
    frame: PhantomData<fn(F)>,
}

/// Receives `F` frames.
pub struct Receiver<F> {
    socket: Arc<UnixDatagram>,
    datagram: Box<[u8]>,
    assembler: Assembler,
    frame: PhantomData<fn() -> F>,
}

/// Takes one end of the link. Must be called within a runtime.
pub fn open<S: Frame, R: Frame>(fd: OwnedFd) -> Result<(Sender<S>, Receiver<R>), LinkError> {
    // The type only waits for readiness; what is sent and taken is a datagram in SOCK_SEQPACKET as well.
    let socket = std::os::unix::net::UnixDatagram::from(fd);
    socket
        .set_nonblocking(true)
        .and_then(|()| UnixDatagram::from_std(socket))
        .map(Arc::new)
        .map_err(|source| LinkError::Call {
            call: "epoll_ctl",
            source,
        })
        .map(|socket| {
            let sender = Sender {
                socket: socket.clone(),
                frame: PhantomData,
            };
            let receiver = Receiver {
                socket,
                datagram: vec![0; MAX_DATAGRAM].into(),
                assembler: Assembler::default(),
                frame: PhantomData,
            };
            (sender, receiver)
        })
}

impl<F: Frame> Sender<F> {
    /// Waits while the socket is full. Not to be cancelled half-way: the other side could not make sense of the rest.
    pub async fn send(&mut self, frame: &F) -> Result<(), LinkError> {
        let encoded = codec::encode(frame)?;
        for (head, piece) in codec::datagrams(&encoded) {
            let parts = [IoSlice::new(&head), IoSlice::new(piece)];
            let socket = self.socket.as_raw_fd();
            self.socket
                .async_io(Interest::WRITABLE, || {
                    sendmsg::<()>(socket, &parts, &[], MsgFlags::MSG_NOSIGNAL, None)
                        .map_err(io::Error::from)
                })
                .await
                .map_err(|source| gone("sendmsg", source))?;
        }
        Ok(())
    }
}

impl<F: Frame> Receiver<F> {
    /// The next frame; `None` when the other side has closed. Cancel-safe.
    pub async fn receive(&mut self) -> Result<Option<F>, LinkError> {
        loop {
            let buffer = &mut self.datagram;
            let socket = self.socket.as_raw_fd();
            let length = self
                .socket
                .async_io(Interest::READABLE, || {
                    // With MSG_TRUNC the datagram's own length is returned, longer than the buffer or not.
                    recv(socket, buffer, MsgFlags::MSG_TRUNC).map_err(io::Error::from)
                })
                .await;
            let length = match length {
                Ok(0) => return Ok(None),
                Ok(length) => length,
                Err(source) if source.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(source) => return Err(gone("recv", source)),
            };
            let datagram = self.datagram.get(..length).ok_or(CodecError::TooLarge {
                bytes: length,
                max: MAX_DATAGRAM,
            })?;
            if let Some(frame) = self.assembler.push(datagram)? {
                return Ok(Some(frame));
            }
        }
    }
}

fn gone(call: &'static str, source: io::Error) -> LinkError {
    match source.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => LinkError::Closed,
        _ => LinkError::Call { call, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::frame::{ToDaemon, ToForwarder};
    use nix::sys::socket::send;

    #[tokio::test]
    async fn both_directions_in_order_and_end_of_file() {
        let (near, far) = pair().unwrap();
        let (mut up, mut down) = open::<ToDaemon, ToForwarder>(near).unwrap();
        let (mut to_forwarder, mut from_forwarder) = open::<ToForwarder, ToDaemon>(far).unwrap();
        let large = "n".repeat(1_000_000);
        let send = async {
            for token in 0..3 {
                up.send(&ToDaemon::Flushed { token }).await.unwrap();
            }
            up.send(&ToDaemon::WantLeaf {
                name: large.clone(),
            })
            .await
            .unwrap();
            drop(up);
        };
        let receive = async {
            for expected in 0..3 {
                let frame = from_forwarder.receive().await.unwrap();
                assert!(matches!(frame, Some(ToDaemon::Flushed { token }) if token == expected));
            }
            let frame = from_forwarder.receive().await.unwrap();
            assert!(matches!(frame, Some(ToDaemon::WantLeaf { name }) if name == large));
        };
        tokio::join!(send, receive);
        to_forwarder.send(&ToForwarder::Stop).await.unwrap();
        assert!(matches!(
            down.receive().await.unwrap(),
            Some(ToForwarder::Stop)
        ));
        drop(down);
        assert!(from_forwarder.receive().await.unwrap().is_none());
        assert!(matches!(
            to_forwarder.send(&ToForwarder::Stop).await,
            Err(LinkError::Closed)
        ));
    }

    #[tokio::test]
    async fn a_datagram_longer_than_allowed_is_an_error() {
        let (near, far) = pair().unwrap();
        let (_up, mut down) = open::<ToDaemon, ToForwarder>(near).unwrap();
        let oversized = vec![1; MAX_DATAGRAM + 1];
        send(far.as_raw_fd(), &oversized, MsgFlags::empty()).unwrap();
        let error = down.receive().await.unwrap_err();
        assert!(
            matches!(error, LinkError::Codec(CodecError::TooLarge { .. })),
            "{error}"
        );
    }
}
