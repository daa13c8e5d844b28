//! The attempts themselves, as any client makes them.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpStream, UdpSocket};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, Stream};

use super::{Attempt, HOST, LIMIT, Seen, What};

pub(super) fn attempt(attempt: &Attempt) -> Seen {
    match &attempt.what {
        What::Connect => match TcpStream::connect_timeout(&attempt.to, LIMIT) {
            Ok(_) => Seen::Done,
            Err(error) => failed(&error, None),
        },
        What::Send => match send(attempt) {
            Ok(_) => Seen::Done,
            Err(error) => failed(&error, None),
        },
        What::Request { anchor } => match TcpStream::connect_timeout(&attempt.to, LIMIT) {
            Ok(stream) => {
                let port = stream.local_addr().ok().map(|addr| addr.port());
                request(stream, anchor, attempt.to.port())
                    .map_or_else(|error| failed(&error, port), Seen::Answered)
            }
            Err(error) => failed(&error, None),
        },
    }
}

fn failed(error: &io::Error, port: Option<u16>) -> Seen {
    Seen::Failed {
        errno: error.raw_os_error(),
        error: error.to_string(),
        port,
    }
}

fn send(attempt: &Attempt) -> io::Result<usize> {
    let socket = match attempt.to.is_ipv4() {
        true => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?,
        false => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?,
    };
    socket.send_to(b"canary", attempt.to)
}

/// The status of the answer.
fn request(mut stream: TcpStream, anchor: &str, port: u16) -> io::Result<u16> {
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
    let head = format!("GET /canary HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: close\r\n\r\n");
    tls.write_all(head.as_bytes())?;
    // `HTTP/1.1 403`
    let mut status = [0; 12];
    tls.read_exact(&mut status)?;
    let status = std::str::from_utf8(&status[9..]).map_err(io::Error::other)?;
    status.parse().map_err(io::Error::other)
}
