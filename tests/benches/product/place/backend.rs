//! What nginx does not do by itself, behind the origin by plain HTTP: an upload sink that reads every byte before it
//! answers with their number, a stream of events with time between them, a port and a socket file that accept and close, and
//! a port that reads.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::Context;

/// Between the two events of a stream: what buffers shows the first one only then.
pub(super) const EVENT_GAP: Duration = Duration::from_millis(300);

/// Its threads end with the process.
pub(super) struct Backend {
    pub http: SocketAddr,
    pub acceptor: SocketAddr,
    pub sink: SocketAddr,
}

impl Backend {
    /// `unix`: where a socket file is to be that accepts and closes.
    pub(super) fn start(unix: &Path) -> anyhow::Result<Self> {
        let http = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let acceptor = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let sink = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let unix = UnixListener::bind(unix)?;
        let backend = Self {
            http: http.local_addr()?,
            acceptor: acceptor.local_addr()?,
            sink: sink.local_addr()?,
        };
        thread::spawn(move || {
            for stream in http.incoming().flatten() {
                // A client that goes away ends its own connection only.
                thread::spawn(move || serve(&stream).ok());
            }
        });
        thread::spawn(move || acceptor.incoming().for_each(drop));
        thread::spawn(move || unix.incoming().for_each(drop));
        thread::spawn(move || {
            for stream in sink.incoming().flatten() {
                // As above.
                let _ = swallow(stream);
            }
        });
        Ok(backend)
    }
}

/// Reads to the end, and says so.
fn swallow(mut stream: TcpStream) -> std::io::Result<()> {
    let mut chunk = vec![0; 256 << 10];
    while stream.read(&mut chunk)? > 0 {}
    stream.write_all(b".")
}

/// One request; nginx opens a connection for each.
fn serve(stream: &TcpStream) -> anyhow::Result<()> {
    let mut reader = BufReader::with_capacity(256 << 10, stream);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().context("content-length")?;
        }
    }
    if request.contains(super::EVENTS) {
        events(stream)
    } else {
        let read = std::io::copy(&mut reader.take(length), &mut std::io::sink())?.to_string();
        let mut stream = stream;
        write!(
            stream,
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{read}",
            read.len()
        )?;
        Ok(())
    }
}

fn events(mut stream: &TcpStream) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-accel-buffering: no\r\nconnection: close\r\n\r\n\
        data: one\n\n",
    )?;
    thread::sleep(EVENT_GAP);
    stream.write_all(b"data: two\n\n")?;
    Ok(())
}
