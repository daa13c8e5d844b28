//! Where the measurements happen: an origin and what it serves, all on 127.0.0.1, in a harness site that goes with it.

mod backend;
mod nginx;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;

use agentguard_tests::bundle::{direct, reach};
use agentguard_tests::tools::ORIGIN;
use agentguard_tests::{Bundle, Site};

use self::backend::Backend;
pub(crate) use self::nginx::Nginx;

pub(crate) const SMALL: &str = "/1k";
pub(crate) const EVENTS: &str = "/events";
pub(crate) const SINK: &str = "/sink";
pub(crate) const BULK: &str = "/bulk";

const UNIX: &str = "files/acceptor.sock";

/// The agent that all guarded load is.
pub(crate) const AGENT: &str = "bench";

pub(crate) struct Place {
    origin: Nginx,
    backend: Backend,
    site: Site,
}

impl Place {
    pub(crate) fn set_up(bulk_bytes: u64) -> anyhow::Result<Self> {
        let site = Site::new();
        std::fs::write(site.path("files/1k"), [b'k'; 1024])?;
        // A hole: read from the page cache like any file.
        std::fs::File::create(site.path("files/bulk"))?.set_len(bulk_bytes)?;
        let backend = Backend::start(&site.path(UNIX))?;
        let origin = Nginx::origin(&site, backend.http)?;
        Ok(Self {
            origin,
            backend,
            site,
        })
    }

    pub(crate) fn site(&self) -> &Site {
        &self.site
    }

    pub(crate) fn origin(&self) -> SocketAddr {
        self.origin.address
    }

    /// `origin.test:PORT`
    pub(crate) fn authority(&self) -> String {
        format!("{ORIGIN}:{}", self.origin().port())
    }

    /// Accepts and closes.
    pub(crate) fn acceptor(&self) -> SocketAddr {
        self.backend.acceptor
    }

    /// The same, a socket file.
    pub(crate) fn unix(&self) -> PathBuf {
        self.site.path(UNIX)
    }

    /// Reads to the end.
    pub(crate) fn sink(&self) -> SocketAddr {
        self.backend.sink
    }

    pub(crate) fn peer(&self) -> anyhow::Result<Nginx> {
        Nginx::peer(&self.site, self.origin())
    }

    /// The origin by host and path; everything else straight through the kernel.
    pub(crate) fn bundle(&self) -> Bundle {
        let routes = [SMALL, EVENTS, BULK].map(|path| format!("GET {path}"));
        let mut routes: Vec<&str> = routes.iter().map(String::as_str).collect();
        let sink = format!("PUT {SINK}");
        routes.push(&sink);
        let host = reach(ORIGIN, self.origin().port(), &routes);
        let kernel = direct(&self.acceptor().to_string(), "tcp");
        let sink = direct(&self.sink().to_string(), "tcp");
        let unix = format!("[[unix]]\npath = {:?}\n", self.unix());
        Bundle::new(1).agent(AGENT, &format!("{host}{kernel}{sink}{unix}"))
    }
}

/// A port of 127.0.0.1 that nobody has at the moment.
fn free_port() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
