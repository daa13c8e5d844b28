//! The control API from the other side, for the command line.

use std::path::{Path, PathBuf};
use std::time::Duration;

use agentguard_policy::Diagnostic;
use agentguard_sys::peer::Peer;
use bytes::{Buf, Bytes, BytesMut};
use futures_util::stream::{self, Stream};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::api::{CUT, Problem};

/// What changes something waits for the kernel and the forwarder, and a search reads the log before it answers.
const LIMIT: Duration = Duration::from_secs(120);
/// What is known is said at once.
const LOOK_LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("the daemon cannot be reached at `{}` ({reason}): is `agentguard daemon` running, with this --config?", socket.display())]
    Unreachable { socket: PathBuf, reason: String },
    /// Nothing has been sent.
    #[error("`{}` is not the daemon's: it is served by {by}; find out who put it there, and restart the daemon", socket.display())]
    Impostor { socket: PathBuf, by: String },
    #[error("{0}")]
    Forbidden(String),
    /// The bundle was refused.
    #[error("{error}")]
    Invalid {
        error: String,
        diagnostics: Vec<Diagnostic>,
    },
    #[error("{0}")]
    Refused(String),
    #[error("the daemon's answer cannot be read: {0}")]
    Protocol(String),
}

impl ClientError {
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Unreachable { .. } => 4,
            Self::Forbidden(_) | Self::Impostor { .. } => 5,
            Self::Invalid { .. } => 3,
            Self::Refused(_) | Self::Protocol(_) => 1,
        }
    }
}

/// Whether a process that serves the socket is the daemon; else who it is.
type Check = dyn Fn(&Peer) -> Result<(), String> + Send + Sync;

/// One caller; each request has a connection of its own.
pub struct Client {
    socket: PathBuf,
    is_daemon: Box<Check>,
}

/// An answer of lines.
pub struct Lines<S> {
    pub lines: S,
    /// There are older ones that the answer does not have.
    pub is_cut: bool,
}

impl Client {
    /// Asks at `socket` whom `is_daemon` takes for the daemon.
    pub fn new(
        socket: &Path,
        is_daemon: impl Fn(&Peer) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        Self {
            socket: socket.to_owned(),
            is_daemon: Box::new(is_daemon),
        }
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let answer = self
            .ask(Method::GET, path, Bytes::new(), LOOK_LIMIT)
            .await?;
        read(answer).await
    }

    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(protocol)?;
        let answer = self.ask(Method::POST, path, body.into(), LIMIT).await?;
        read(answer).await
    }

    /// The lines of an answer as they come.
    pub async fn lines(
        &self,
        path: &str,
    ) -> Result<Lines<impl Stream<Item = anyhow::Result<String>> + use<>>, ClientError> {
        let answer = self.ask(Method::GET, path, Bytes::new(), LIMIT).await?;
        let is_cut = answer.headers().contains_key(CUT);
        let read = (answer.into_body(), BytesMut::new());
        let lines = stream::try_unfold(read, |(mut body, mut held)| async move {
            let mut searched = 0;
            loop {
                let end = held[searched..].iter().position(|byte| *byte == b'\n');
                if let Some(end) = end {
                    let line = held.split_to(searched + end);
                    held.advance(1);
                    let line = str::from_utf8(&line)?.to_owned();
                    return Ok(Some((line, (body, held))));
                }
                searched = held.len();
                match body.frame().await.transpose()? {
                    Some(frame) => {
                        if let Some(data) = frame.data_ref() {
                            held.extend_from_slice(data);
                        }
                    }
                    None => return Ok(None),
                }
            }
        });
        Ok(Lines { lines, is_cut })
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<Response<Incoming>, ClientError> {
        let unreachable = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::PermissionDenied => {
                ClientError::Forbidden(format!("`{}`: {error}", self.socket.display()))
            }
            _ => ClientError::Unreachable {
                socket: self.socket.clone(),
                reason: error.to_string(),
            },
        };
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(unreachable)?;
        let peer = Peer::of(&stream).map_err(protocol)?;
        (self.is_daemon)(&peer).map_err(|by| ClientError::Impostor {
            socket: self.socket.clone(),
            by,
        })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(protocol)?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "agentguard")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(protocol)?;
        let late = || {
            ClientError::Protocol(format!(
                "none came within {limit:?}; if process {} stands still, `agentguard kill` as root works without it",
                peer.tgid
            ))
        };
        let answer = tokio::time::timeout(limit, sender.send_request(request))
            .await
            .map_err(|_| late())?
            .map_err(|_| ClientError::Protocol("it closed the connection".into()))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let problem: Problem = read(answer).await?;
        Err(match status {
            StatusCode::FORBIDDEN => ClientError::Forbidden(problem.error),
            StatusCode::UNPROCESSABLE_ENTITY => ClientError::Invalid {
                error: problem.error,
                diagnostics: problem.diagnostics,
            },
            _ => ClientError::Refused(problem.error),
        })
    }
}

async fn read<T: DeserializeOwned>(answer: Response<Incoming>) -> Result<T, ClientError> {
    let bytes = answer
        .into_body()
        .collect()
        .await
        .map_err(protocol)?
        .to_bytes();
    serde_json::from_slice(&bytes).map_err(protocol)
}

fn protocol(error: impl ToString) -> ClientError {
    ClientError::Protocol(error.to_string())
}
