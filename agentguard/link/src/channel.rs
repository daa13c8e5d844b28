//! The link's two ends: typed, asynchronous, one sender and one receiver each.

use std::io::{self, IoSlice};
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use agentguard_sys::socket::receive;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

/// A connected pair of link ends, both close-on-exec.
pub use agentguard_sys::socket::seqpacket_pair as pair;

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
    descriptors: Vec<OwnedFd>,
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
                descriptors: Vec::new(),
                assembler: Assembler::default(),
                frame: PhantomData,
            };
            (sender, receiver)
        })
}

impl<F: Frame> Sender<F> {
    /// Waits while the socket is full. Not to be cancelled half-way: the other side could not make sense of the rest.
    pub async fn send(&mut self, frame: &F) -> Result<(), LinkError> {
        self.send_with(frame, &[]).await
    }

    /// [`Self::send`], and copies of descriptors with the frame.
    pub async fn send_with(&mut self, frame: &F, with: &[OwnedFd]) -> Result<(), LinkError> {
        let encoded = codec::encode(frame)?;
        let descriptors: Vec<RawFd> = with.iter().map(AsRawFd::as_raw_fd).collect();
        let mut rights = Vec::new();
        if !descriptors.is_empty() {
            rights.push(ControlMessage::ScmRights(&descriptors));
        }
        for (head, piece) in codec::datagrams(&encoded) {
            let parts = [IoSlice::new(&head), IoSlice::new(piece)];
            let socket = self.socket.as_raw_fd();
            self.socket
                .async_io(Interest::WRITABLE, || {
                    sendmsg::<()>(socket, &parts, &rights, MsgFlags::MSG_NOSIGNAL, None)
                        .map_err(io::Error::from)
                })
                .await
                .map_err(|source| gone("sendmsg", source))?;
            // With the first piece only.
            rights.clear();
        }
        Ok(())
    }
}

impl<F: Frame> Receiver<F> {
    /// The next frame; `None` when the other side has closed. Cancel-safe.
    pub async fn receive(&mut self) -> Result<Option<F>, LinkError> {
        loop {
            let buffer = &mut self.datagram;
            let descriptors = &mut self.descriptors;
            let socket = self.socket.as_raw_fd();
            let length = self
                .socket
                .async_io(Interest::READABLE, || {
                    receive(
                        socket,
                        buffer,
                        F::WITH_DESCRIPTORS.then_some(&mut *descriptors),
                    )
                })
                .await;
            let length = match length {
                Ok(0) => return Ok(None),
                Ok(length) => length,
                Err(source) if source.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(source) => return Err(gone("recvmsg", source)),
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

    /// The descriptors that have come since the last call: after each frame, that frame's.
    pub fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.descriptors)
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the standard library adds kinds of I/O errors"
)]
fn gone(call: &'static str, source: io::Error) -> LinkError {
    match source.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => LinkError::Closed,
        _ => LinkError::Call { call, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls::to_daemon::DaemonCall;
    use crate::frame::{ToDaemon, ToForwarder};
    use nix::sys::socket::send;

    #[tokio::test]
    async fn both_directions_in_order_and_end_of_file() {
        let (near, far) = pair().unwrap();
        let (mut up, mut down) = open::<ToDaemon, ToForwarder>(near).unwrap();
        let (mut to_forwarder, mut from_forwarder) = open::<ToForwarder, ToDaemon>(far).unwrap();
        let large = "n".repeat(1_000_000);
        let send = async {
            for netns in 0..3 {
                up.send(&ToDaemon::Lost { netns }).await.unwrap();
            }
            let call = DaemonCall::Leaf(large.clone());
            up.send(&ToDaemon::Call { token: 1, call }).await.unwrap();
            drop(up);
        };
        let receive = async {
            for expected in 0..3 {
                let frame = from_forwarder.receive().await.unwrap();
                assert!(matches!(frame, Some(ToDaemon::Lost { netns }) if netns == expected));
            }
            let frame = from_forwarder.receive().await.unwrap();
            assert!(
                matches!(frame, Some(ToDaemon::Call { token: 1, call: DaemonCall::Leaf(name) }) if name == large)
            );
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
    async fn descriptors_come_with_their_frame_and_only_to_the_forwarder() {
        use std::io::{Read, Write};
        use std::os::unix::net::UnixStream;
        let (near, far) = pair().unwrap();
        let (mut to_daemon, mut at_forwarder) = open::<ToDaemon, ToForwarder>(near).unwrap();
        let (mut to_forwarder, mut at_daemon) = open::<ToForwarder, ToDaemon>(far).unwrap();
        let (mut kept, given) = UnixStream::pair().unwrap();
        let given = vec![OwnedFd::from(given)];
        let frame = ToForwarder::Enter { netns: 7 };
        to_forwarder.send_with(&frame, &given).await.unwrap();
        to_forwarder.send(&ToForwarder::Stop).await.unwrap();
        to_daemon
            .send_with(&ToDaemon::Lost { netns: 7 }, &given)
            .await
            .unwrap();
        drop(given);
        let frame = at_forwarder.receive().await.unwrap();
        assert!(matches!(frame, Some(ToForwarder::Enter { netns: 7 })));
        let mut came = at_forwarder.take_descriptors();
        let frame = at_forwarder.receive().await.unwrap();
        assert!(matches!(frame, Some(ToForwarder::Stop)));
        assert!(at_forwarder.take_descriptors().is_empty());
        kept.write_all(b"x").unwrap();
        let mut came = UnixStream::from(came.pop().unwrap());
        came.read_exact(&mut [0]).unwrap();
        drop(came);
        assert!(at_daemon.receive().await.unwrap().is_some());
        assert!(at_daemon.take_descriptors().is_empty());
        assert_eq!(kept.read(&mut [0]).unwrap(), 0, "nobody else has it");
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
