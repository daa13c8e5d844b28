//! The control API from the other side, for the command line.

use std::path::{Path, PathBuf};
use std::time::Duration;

use agentguard_policy::Diagnostic;
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::api::Problem;

/// A policy apply waits for the kernel and the forwarder; nothing takes longer.
const LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("the daemon cannot be reached at `{}` ({reason}): is `agentguard daemon` running, with this --config?", socket.display())]
    Unreachable { socket: PathBuf, reason: String },
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
            Self::Forbidden(_) => 5,
            Self::Invalid { .. } => 3,
            Self::Refused(_) | Self::Protocol(_) => 1,
        }
    }
}

/// One caller; each request has a connection of its own.
pub struct Client {
    socket: PathBuf,
}

impl Client {
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let answer = self.ask(Method::GET, path, Bytes::new()).await?;
        read(answer).await
    }

    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(protocol)?;
        let answer = self.ask(Method::POST, path, body.into()).await?;
        read(answer).await
    }

    /// The lines of an answer as they come.
    pub async fn lines(
        &self,
        path: &str,
    ) -> Result<impl Stream<Item = anyhow::Result<String>> + use<>, ClientError> {
        let body = self.ask(Method::GET, path, Bytes::new()).await?;
        Ok(stream::try_unfold(
            (body, Vec::new()),
            |(mut body, mut held)| async move {
                loop {
                    if let Some(end) = held.iter().position(|byte| *byte == b'\n') {
                        let rest = held.split_off(end + 1);
                        held.pop();
                        let line = String::from_utf8(held)?;
                        return Ok(Some((line, (body, rest))));
                    }
                    match body.frame().await.transpose()? {
                        Some(frame) => {
                            if let Some(data) = frame.data_ref() {
                                held.extend_from_slice(data);
                            }
                        }
                        None => return Ok(None),
                    }
                }
            },
        ))
    }

    async fn ask(&self, method: Method, path: &str, body: Bytes) -> Result<Incoming, ClientError> {
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
        let answer = tokio::time::timeout(LIMIT, sender.send_request(request))
            .await
            .map_err(|_| ClientError::Protocol(format!("none came within {LIMIT:?}")))?
            .map_err(|_| ClientError::Protocol("it closed the connection".into()))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer.into_body());
        }
        let problem: Problem = read(answer.into_body()).await?;
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

async fn read<T: DeserializeOwned>(body: Incoming) -> Result<T, ClientError> {
    let bytes = body.collect().await.map_err(protocol)?.to_bytes();
    serde_json::from_slice(&bytes).map_err(protocol)
}

fn protocol(error: impl ToString) -> ClientError {
    ClientError::Protocol(error.to_string())
}
