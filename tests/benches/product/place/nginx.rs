//! nginx twice: the origin, and the peer that terminates TLS and re-encrypts to it. Both as fast as they can be set up:
//! a worker per core, no logs, P-256 leaves, connections kept on every leg, no temporary files.

use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use agentguard_tests::tools::{ORIGIN, PATIENCE};
use agentguard_tests::{Client, Running, Site};
use anyhow::bail;

use super::{BULK, EVENTS, SINK, SMALL, free_port};

/// Ends with this value.
pub(crate) struct Nginx {
    pub address: SocketAddr,
    master: Running,
}

impl Nginx {
    pub(crate) fn origin(site: &Site, backend: SocketAddr) -> anyhow::Result<Self> {
        let files = site.path("files");
        let files = files.display();
        let server = format!(
            "location = {SMALL} {{ root {files}; }}
            location = {BULK} {{ root {files}; }}
            location = {SINK} {{ proxy_pass http://{backend}; proxy_request_buffering off; }}
            location = {EVENTS} {{
                proxy_pass http://{backend}; proxy_buffering off; proxy_pass_header X-Accel-Buffering;
            }}"
        );
        Self::start(site, "origin", &server, "")
    }

    pub(crate) fn peer(site: &Site, origin: SocketAddr) -> anyhow::Result<Self> {
        let server = format!(
            "location / {{
                proxy_pass https://origin;
                proxy_http_version 1.1;
                proxy_set_header Host {ORIGIN}:{port};
                proxy_set_header Connection \"\";
                proxy_ssl_protocols TLSv1.3;
                proxy_ssl_server_name on;
                proxy_ssl_name {ORIGIN};
                proxy_ssl_verify on;
                proxy_ssl_trusted_certificate {ca};
                proxy_request_buffering off;
                proxy_buffers 16 32k;
                proxy_buffer_size 16k;
                proxy_max_temp_file_size 0;
            }}",
            port = origin.port(),
            ca = site.ca().certificate().display(),
        );
        let upstream = format!(
            "upstream origin {{
                server {origin};
                keepalive 64; keepalive_requests 100000000; keepalive_time 1h;
            }}"
        );
        Self::start(site, "peer", &server, &upstream)
    }

    /// The master's id; its workers are its children.
    pub(crate) fn master(&self) -> u32 {
        self.master.tgid()
    }

    fn start(site: &Site, role: &str, server: &str, upstream: &str) -> anyhow::Result<Self> {
        let address = free_port()?;
        let home = site.path(role);
        std::fs::create_dir(&home)?;
        let identity = site.ca().issue(&[ORIGIN]);
        let text = format!(
            "daemon off; user root; worker_processes auto; worker_rlimit_nofile 16384;
            pid {home}/pid; error_log stderr error;
            events {{ worker_connections 4096; }}
            http {{
                access_log off; sendfile on; tcp_nodelay on; server_tokens off; types {{ }}
                client_body_temp_path {home}/body; proxy_temp_path {home}/proxy;
                fastcgi_temp_path {home}/fastcgi; uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
                keepalive_requests 100000000; keepalive_timeout 1h; keepalive_time 1h; client_max_body_size 0;
                {upstream}
                server {{
                    listen {address} ssl http2 backlog=4096;
                    ssl_certificate {certificate}; ssl_certificate_key {key};
                    ssl_protocols TLSv1.3; ssl_session_cache shared:tls:8m;
                    {server}
                }}
            }}\n",
            home = home.display(),
            certificate = identity.certificate.display(),
            key = identity.key.display(),
        );
        let file = home.join("nginx.conf");
        std::fs::write(&file, text)?;
        let command = Client::new("/usr/sbin/nginx").args(["-e", "stderr", "-c"]);
        let mut master = command.arg(&file).spawn();
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(address).is_err() {
            if !master.is_running() || Instant::now() > deadline {
                bail!("nginx does not listen on {address}: {}", master.rest());
            }
            std::thread::yield_now();
        }
        Ok(Self { address, master })
    }
}
