//! The attempts themselves, as any client makes them.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::Arc;

use agentguard_link::canary::HOST;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, Stream};

use super::{Attempt, AttemptOutcome, LIMIT};

pub(super) fn attempt(attempt: &Attempt) -> AttemptOutcome {
    match attempt {
        Attempt::Connect(to) => done(TcpStream::connect_timeout(to, LIMIT)),
        Attempt::Send(to) => done(send(*to)),
        Attempt::Unix(path) => done(UnixStream::connect(path)),
        Attempt::Exec => exec().unwrap_or_else(|error| failed(&error, None)),
        Attempt::Request { to, path, anchor } => match TcpStream::connect_timeout(to, LIMIT) {
            Ok(stream) => {
                let port = stream.local_addr().ok().map(|addr| addr.port());
                request(stream, anchor, to.port(), path)
                    .map_or_else(|error| failed(&error, port), AttemptOutcome::Answered)
            }
            Err(error) => failed(&error, None),
        },
    }
}

fn done<T>(result: io::Result<T>) -> AttemptOutcome {
    result.map_or_else(|error| failed(&error, None), |_| AttemptOutcome::Done)
}

fn failed(error: &io::Error, port: Option<u16>) -> AttemptOutcome {
    AttemptOutcome::Failed {
        errno: error.raw_os_error(),
        error: error.to_string(),
        port,
    }
}

fn send(to: SocketAddr) -> io::Result<usize> {
    let socket = match to.is_ipv4() {
        true => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?,
        false => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?,
    };
    socket.send_to(b"canary", to)
}

/// What a program does that has nothing to do: any version of this one says which it is, and ends well.
fn exec() -> io::Result<AttemptOutcome> {
    let status = Command::new("/proc/self/exe")
        .arg("--version")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    Ok(match status.signal() {
        _ if status.success() => AttemptOutcome::Done,
        Some(libc::SIGKILL) => AttemptOutcome::Killed,
        _ => failed(&io::Error::other(status.to_string()), None),
    })
}

/// The status of the answer.
fn request(mut stream: TcpStream, anchor: &str, port: u16, path: &str) -> io::Result<u16> {
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let mut roots = RootCertStore::empty();
    let anchor = CertificateDer::from_pem_slice(anchor.as_bytes()).map_err(io::Error::other)?;
    roots.add(anchor).map_err(io::Error::other)?;
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = HOST.try_into().map_err(io::Error::other)?;
    let mut tls = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    let mut tls = Stream::new(&mut tls, &mut stream);
    let head = format!("GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: close\r\n\r\n");
    tls.write_all(head.as_bytes())?;
    // `HTTP/1.1 403`
    let mut status = [0; 12];
    tls.read_exact(&mut status)?;
    let status = std::str::from_utf8(&status[9..]).map_err(io::Error::other)?;
    status.parse().map_err(io::Error::other)
}
