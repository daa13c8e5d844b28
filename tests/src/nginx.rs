//! nginx as the origin: HTTP/1.1 and HTTP/2 over TLS, and plain HTTP, on both loopback addresses. Its access log is the
//! origin's own word on what has arrived.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde::Deserialize;

use crate::pki::Identity;
use crate::process::Running;
use crate::site::Site;
use crate::tools::{ORIGIN, PATIENCE};

/// One line of the origin's access log.
#[derive(Clone, Debug, Deserialize)]
pub struct Hit {
    pub method: String,
    /// As it came over the wire, with the query.
    pub uri: String,
    pub status: u16,
    /// `HTTP/1.1`, `HTTP/2.0`.
    pub protocol: String,
    pub host: String,
    /// Payload of the answer that was sent, bytes.
    pub sent: u64,
    /// Whether the answer was sent to its end.
    pub complete: bool,
    pub port: u16,
}

pub struct Nginx {
    /// TLS, HTTP/2 and HTTP/1.1.
    pub port: u16,
    /// TLS, HTTP/1.1 only.
    pub port_http1: u16,
    /// Plain HTTP.
    pub port_plain: u16,
    dir: PathBuf,
    log: AccessLog,
    nginx: Option<Running>,
    _fcgiwrap: Running,
}

impl Nginx {
    /// Starts with a certificate of the site's CA and returns when it listens.
    pub fn start(site: &Site) -> Self {
        Self::start_as(site, &site.ca().issue(&[ORIGIN]))
    }

    /// Starts one that closes each connection after so many requests.
    pub fn retiring(site: &Site, requests: u32) -> Self {
        Self::start_with(site, &site.ca().issue(&[ORIGIN]), requests)
    }

    /// Starts with this certificate.
    pub fn start_as(site: &Site, identity: &Identity) -> Self {
        Self::start_with(site, identity, 1_000_000)
    }

    fn start_with(site: &Site, identity: &Identity, requests: u32) -> Self {
        let dir = site.path(&format!("nginx-{}", crate::names::serial()));
        for below in ["", "files", "dav", "git", "tmp"] {
            fs::create_dir(dir.join(below)).expect("a folder");
        }
        let [port, port_http1, port_plain] = free_ports();
        let log = AccessLog::new(&dir.join("access"));
        let fcgiwrap = fcgiwrap(&dir);
        let config = dir.join("nginx.conf");
        let listeners = (port, port_http1, port_plain);
        fs::write(&config, configuration(&dir, identity, listeners, requests)).expect("written");
        let mut command = Command::new("nginx");
        command
            .env_clear()
            .env("PATH", crate::tools::CLIENT_PATH)
            .arg("-c")
            .arg(&config)
            .arg("-p")
            .arg(&dir)
            // Before it has read its configuration it would write to the system's log.
            .args(["-e", "stderr"]);
        let mut nginx = Running::spawn(&mut command);
        nginx.line(|line| line.contains("start worker process "));
        Self {
            port,
            port_http1,
            port_plain,
            dir,
            log,
            nginx: Some(nginx),
            _fcgiwrap: fcgiwrap,
        }
    }

    /// `https://origin.test:PORT` + path.
    pub fn url(&self, path: &str) -> String {
        format!("https://{ORIGIN}:{}{path}", self.port)
    }

    /// `http://origin.test:PORT` + path: for programs that trust no CA of ours.
    pub fn plain_url(&self, path: &str) -> String {
        format!("http://{ORIGIN}:{}{path}", self.port_plain)
    }

    /// The host's id in a bundle and in audit records.
    pub fn host(&self) -> String {
        format!("{ORIGIN}:{}", self.port)
    }

    /// Served below `/files/` and, slowly, below `/slow/`.
    pub fn files(&self) -> PathBuf {
        self.dir.join("files")
    }

    /// Where `PUT /dav/…` puts it.
    pub fn uploads(&self) -> PathBuf {
        self.dir.join("dav")
    }

    /// Bare repositories, served below `/git/`.
    pub fn repositories(&self) -> PathBuf {
        self.dir.join("git")
    }

    /// Everything that has arrived. Certain: it sends a request of its own and waits until that is in the log.
    #[track_caller]
    pub fn hits(&self) -> Vec<Hit> {
        let mark = format!("/mark/{}", crate::names::serial());
        let mut stream =
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.port_plain)).expect("nginx listens");
        write!(
            stream,
            "GET {mark} HTTP/1.1\r\nHost: {ORIGIN}\r\nConnection: close\r\n\r\n"
        )
        .expect("sent");
        let hits = self.log.until(|hit| hit.uri == mark);
        hits.into_iter()
            .filter(|hit| !hit.uri.starts_with("/mark/"))
            .collect()
    }

    /// Hits whose URI starts so.
    #[track_caller]
    pub fn hits_below(&self, start: &str) -> Vec<Hit> {
        let hits = self.hits();
        hits.into_iter()
            .filter(|hit| hit.uri.starts_with(start))
            .collect()
    }

    /// Waits until a request is in the log: it has ended, one way or another.
    #[track_caller]
    pub fn await_hit(&self, wanted: impl Fn(&Hit) -> bool) -> Hit {
        let hits = self.log.until(&wanted);
        hits.into_iter().find(wanted).expect("waited for it")
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        if let Some(nginx) = self.nginx.take() {
            // Its master ends its workers. Dropping kills what does not listen.
            nginx.signal(nix::sys::signal::Signal::SIGTERM);
            if !thread::panicking() {
                nginx.finish();
            }
        }
    }
}

/// The reading end of a named pipe that nginx logs into: a line is there as soon as nginx has written it.
struct AccessLog {
    shared: Arc<(Mutex<Vec<Hit>>, Condvar)>,
    path: PathBuf,
    reader: Option<JoinHandle<()>>,
}

impl AccessLog {
    const END: &str = "end";

    fn new(path: &Path) -> Self {
        mkfifo(path, Mode::from_bits_truncate(0o600)).expect("a pipe");
        // Open for both, so that neither opening nor nginx's end is waited for.
        let pipe = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .expect("opened");
        let shared = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let writer = Arc::clone(&shared);
        let reader = thread::spawn(move || {
            for line in BufReader::new(pipe).lines() {
                let line = line.expect("text");
                if line == Self::END {
                    return;
                }
                let hit = serde_json::from_str(&line)
                    .unwrap_or_else(|error| panic!("the access log says `{line}`: {error}"));
                writer.0.lock().expect("not poisoned").push(hit);
                writer.1.notify_all();
            }
        });
        Self {
            shared,
            path: path.to_owned(),
            reader: Some(reader),
        }
    }

    #[track_caller]
    fn until(&self, wanted: impl Fn(&Hit) -> bool) -> Vec<Hit> {
        let (hits, changed) = &*self.shared;
        let hits = hits.lock().expect("not poisoned");
        let (hits, waited) = changed
            .wait_timeout_while(hits, PATIENCE, |hits| !hits.iter().any(&wanted))
            .expect("not poisoned");
        assert!(!waited.timed_out(), "not in the origin's log: {hits:#?}");
        hits.clone()
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        let end = OpenOptions::new()
            .write(true)
            .open(&self.path)
            .and_then(|mut pipe| writeln!(pipe, "{}", Self::END));
        if let (Ok(()), Some(reader)) = (end, self.reader.take()) {
            let _ = reader.join();
        }
    }
}

/// Below the ephemeral range, so that no client's socket takes one in between.
fn free_ports<const N: usize>() -> [u16; N] {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    std::array::from_fn(|_| {
        loop {
            let offset = NEXT.fetch_add(1, Ordering::Relaxed);
            let start = u16::try_from(std::process::id() % 8_000).expect("below 8,000");
            let port = 20_000 + (start + offset) % 10_000;
            if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return port;
            }
        }
    })
}

fn fcgiwrap(dir: &Path) -> Running {
    let socket = dir.join("fcgiwrap.sock");
    let mut command = Command::new("fcgiwrap");
    command
        .env_clear()
        .env("PATH", crate::tools::CLIENT_PATH)
        .arg("-s")
        .arg(format!("unix:{}", socket.display()));
    // nginx finds the socket when the first request comes; `await_socket` makes that certain.
    let running = Running::spawn(&mut command);
    crate::server::await_path(&socket);
    running
}

fn configuration(dir: &Path, identity: &Identity, ports: (u16, u16, u16), requests: u32) -> String {
    let (tls, http1, plain) = ports;
    let (dir, home) = (dir.display(), git_exec_path());
    let (certificate, key) = (identity.certificate.display(), identity.key.display());
    let locations = format!(
        r#"
        location / {{ return 200 "$request_method $request_uri\n"; }}
        location /files/ {{ alias {dir}/files/; }}
        location /slow/ {{ alias {dir}/files/; limit_rate 4m; }}
        location /headers {{ default_type application/json;
            return 200 '{{"host":"$http_host","user_agent":"$http_user_agent","cookie":"$http_cookie"}}'; }}
        location /dav/ {{ root {dir}; dav_methods PUT DELETE; create_full_put_path on; client_max_body_size 0; }}
        location /git/ {{
            fastcgi_pass unix:{dir}/fcgiwrap.sock;
            fastcgi_param SCRIPT_FILENAME {home}/git-http-backend;
            fastcgi_param GIT_PROJECT_ROOT {dir};
            fastcgi_param GIT_HTTP_EXPORT_ALL 1;
            fastcgi_param PATH_INFO $uri;
            fastcgi_param QUERY_STRING $query_string;
            fastcgi_param REQUEST_METHOD $request_method;
            fastcgi_param CONTENT_TYPE $content_type;
            fastcgi_param CONTENT_LENGTH $content_length;
            fastcgi_param HTTP_CONTENT_ENCODING $http_content_encoding;
            fastcgi_param GIT_PROTOCOL $http_git_protocol;
        }}"#
    );
    format!(
        r#"
daemon off;
user root;
worker_processes 1;
pid {dir}/nginx.pid;
error_log stderr notice;
events {{ worker_connections 4096; }}
http {{
    log_format hits escape=json '{{"method":"$request_method","uri":"$request_uri","status":$status,'
        '"protocol":"$server_protocol","host":"$http_host","sent":$body_bytes_sent,'
        '"complete":$is_complete,"port":$server_port}}';
    map $request_completion $is_complete {{ OK true; default false; }}
    access_log {dir}/access hits;
    client_body_temp_path {dir}/tmp/body;
    fastcgi_temp_path {dir}/tmp/fastcgi;
    proxy_temp_path {dir}/tmp/proxy;
    scgi_temp_path {dir}/tmp/scgi;
    uwsgi_temp_path {dir}/tmp/uwsgi;
    types {{ text/html html; application/json json; }}
    default_type application/octet-stream;
    keepalive_requests {requests};
    large_client_header_buffers 8 64k;
    sendfile on;
    ssl_certificate {certificate};
    ssl_certificate_key {key};
    ssl_protocols TLSv1.2 TLSv1.3;
    server {{
        listen 127.0.0.1:{tls} ssl http2;
        listen [::1]:{tls} ssl http2;
        server_name {ORIGIN};{locations}
    }}
    server {{
        listen 127.0.0.1:{http1} ssl;
        listen [::1]:{http1} ssl;
        server_name {ORIGIN};{locations}
    }}
    server {{
        listen 127.0.0.1:{plain};
        listen [::1]:{plain};
        server_name {ORIGIN};{locations}
    }}
}}
"#
    )
}

fn git_exec_path() -> String {
    let output = Command::new("git")
        .arg("--exec-path")
        .output()
        .expect("git runs");
    String::from_utf8(output.stdout)
        .expect("text")
        .trim()
        .to_owned()
}
