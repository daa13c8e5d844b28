//! Whose connection an accepted socket is and where it was to go: what the kernel filed under the socket's cookie.

use std::io;
use std::net::{IpAddr, SocketAddr};

use agentguard_common::abi::{FlowKey, Origin};
use agentguard_common::share::QuestionMark;
use socket2::SockRef;
use tokio::net::TcpStream;

/// Where origins are looked up: the kernel's maps, and in tests a map of their own.
pub trait OriginSource: Send + Sync {
    /// Of an accepted connection, by `SO_COOKIE`.
    fn accepted(&self, cookie: u64) -> io::Result<Option<Origin>>;

    /// Of a datagram that reached the resolver with this mark, by this way.
    fn question(&self, mark: QuestionMark, flow: &FlowKey) -> io::Result<Option<Origin>>;
}

/// The origin of `socket`, or why it has none. There is no default: who has no origin is nobody's agent.
pub fn recover(source: &dyn OriginSource, socket: &TcpStream) -> Result<Origin, OriginError> {
    let cookie = SockRef::from(socket)
        .cookie()
        .map_err(OriginError::Cookie)?;
    match source.accepted(cookie) {
        Ok(Some(origin)) => Ok(origin),
        Ok(None) => Err(OriginError::Unknown),
        Err(error) => Err(OriginError::Map(error)),
    }
}

/// `address:port` as the agent asked for it.
pub fn place(origin: &Origin) -> String {
    SocketAddr::new(IpAddr::from(origin.addr), origin.port).to_string()
}

#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    #[error("SO_COOKIE: {0}")]
    Cookie(io::Error),
    #[error("the kernel knows no flow of this connection")]
    Unknown,
    #[error("looking the flow up: {0}")]
    Map(io::Error),
}
