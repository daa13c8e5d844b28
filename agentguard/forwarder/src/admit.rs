//! What may come in: a connection whose agent is known and lives, the one name that TLS is for, and a request whose head
//! agrees with itself and with its connection.

use std::net::IpAddr;
use std::sync::Arc;

use agentguard_common::abi::{AgentId, Origin};
use agentguard_policy::{HostName, TlsMode, is_reserved};
use agentguard_record::{DecidedBy, Ended};
use http::request::Parts;
use http::uri::Scheme;
use http::{Method, StatusCode, Version};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::body::RequestBody;
use super::exchange::Exchange;
use super::forwarder::Forwarder;
use super::framing;
use super::identity::{self, Entrance, RequestTarget};
use super::life::{CountedConnection, Life};
use super::origin::{self, OriginError, OriginSource};
use super::protocol;
use super::record::{ConnectionOver, RecordEntry};
use super::refusal::{NO_AUDIT, Refusal};
use super::session::Session;
use super::shares;
use super::sniff::Hello;
use super::upgrade::Upgrade;

/// Where connections come in.
pub(crate) struct Door {
    pub forwarder: Arc<Forwarder>,
    pub origins: Arc<dyn OriginSource>,
    /// Connections at once, over all doors together.
    pub places: Arc<Semaphore>,
}

impl Door {
    /// No agent keeps the others out.
    fn is_over_its_share(&self, life: &Life) -> bool {
        let all = self.forwarder.limits.max_connections as usize;
        let left = self.places.available_permits();
        // The canary is one more.
        let agents = || self.forwarder.policy.load().agents().count() + 1;
        !shares::may_connect(life.connections(), left, all, agents)
    }
}

/// One of a door's places, held for as long as the connection is there.
pub(crate) type ConnectionSlot = OwnedSemaphorePermit;

/// A connection whose agent and destination are known.
pub(crate) struct Arrival {
    pub forwarder: Arc<Forwarder>,
    pub life: Arc<Life>,
    pub counted: CountedConnection,
    pub origin: Origin,
    /// What `CONNECT` named, inside one.
    pub tunnel: Option<RequestTarget>,
}

/// Somebody's connection, and nobody knows whose: closed, and recorded as nobody's.
pub(crate) fn nobodys(forwarder: &Forwarder, error: &OriginError) -> ConnectionOver {
    let life = forwarder.lives.of(AgentId::NONE);
    match forwarder.records.open(&life, &Origin::default()) {
        Some(entry) => entry.refuse(Refusal::protocol(error.to_string())),
        None => ConnectionOver,
    }
}

/// Opens the connection's entry and hangs it on its agent's life. No connection: it cannot be recorded, there is no place for it,
/// its agent has been stopped, or has its share.
pub(crate) fn admit(
    door: &Door,
    origin: Origin,
    place: Option<&ConnectionSlot>,
) -> Result<(Arrival, RecordEntry), ConnectionOver> {
    let forwarder = door.forwarder.serving(origin.agent);
    let life = forwarder.lives.of(origin.agent);
    let mut entry = forwarder
        .records
        .open(&life, &origin)
        .ok_or(ConnectionOver)?;
    entry.resource = origin::place(&origin);
    if place.is_none() {
        let limit = forwarder.limits.max_connections;
        let detail = format!("more than {limit} connections at once");
        return Err(entry.fail(Ended::HostFailed, None, detail));
    }
    if let Some(why) = life.why() {
        let refusal = Refusal::new(DecidedBy::Stop, why, "this agent has been stopped");
        return Err(entry.refuse(refusal));
    }
    if door.is_over_its_share(&life) && !life.seats.give_up_one() {
        let detail = format!(
            "this agent has {} connections, none of them idle, and the places that are left are for others",
            life.connections()
        );
        return Err(entry.fail(Ended::HostFailed, None, detail));
    }
    let arrival = Arrival {
        counted: forwarder.lives.count(&life),
        forwarder,
        life,
        origin,
        tunnel: None,
    };
    Ok((arrival, entry))
}

impl Arrival {
    /// The port that the agent asked for.
    pub(crate) fn port(&self) -> u16 {
        match &self.tunnel {
            Some(target) => target.port,
            None => self.origin.port,
        }
    }

    /// What a connection that names no host is for: what `CONNECT` named, or the address that the agent asked for.
    fn place(&self) -> HostName {
        match &self.tunnel {
            Some(target) => target.host.clone(),
            None => IpAddr::from(self.origin.addr).into(),
        }
    }

    /// The one host that a TLS connection is for. One without a name is for an address, whose certificates have it as theirs.
    /// Inside `CONNECT` for an address a name counts as it does on a connection to an address.
    pub(crate) fn named(&self, hello: &Hello) -> Result<RequestTarget, String> {
        let host = match hello.server_name.as_deref() {
            Some(name) => {
                HostName::parse(name).map_err(|error| format!("the TLS server name: {error}"))?
            }
            None => self.place(),
        };
        if let Some(target) = &self.tunnel
            && target.host != host
            && target.host.ip().is_none()
        {
            return Err(format!(
                "`CONNECT` was for `{}`, the TLS inside it for `{}`",
                target.host.as_str(),
                host.as_str()
            ));
        }
        Ok(RequestTarget {
            host,
            port: self.port(),
        })
    }

    /// Whether the host's TLS is not ended here. Names that nothing covers are: a request can be told why not.
    pub(crate) fn passes(&self, target: &RequestTarget) -> bool {
        if is_reserved(&target.host) {
            return false;
        }
        let policy = self.forwarder.policy.load();
        let reach = policy.reach(self.life.agent, &target.host, target.port);
        matches!(reach, Some(TlsMode::Passthrough))
    }

    /// The connection as one that speaks HTTP. `name`: whom TLS was for.
    pub(crate) fn session(
        &self,
        scheme: Scheme,
        name: Option<HostName>,
        http2: bool,
        entry: RecordEntry,
    ) -> Arc<Session> {
        let place = self.place();
        let tunnel = (self.tunnel.is_some() && place.ip().is_none()).then(|| place.clone());
        let entrance = Entrance {
            scheme,
            name: name.or(tunnel),
            address: place,
            port: self.port(),
            tunnel: self.tunnel.is_some(),
            http2,
        };
        Arc::new(Session::new(
            self.forwarder.clone(),
            self.life.clone(),
            self.origin,
            entrance,
            entry,
            self.counted.seat.clone(),
        ))
    }
}

/// Where the request goes, if it can be recorded and is one that can be judged. `head`: its bytes as they came.
pub(crate) fn head(
    exchange: &mut Exchange,
    parts: &Parts,
    head: &[u8],
) -> Result<RequestTarget, Refusal> {
    let session = &exchange.session;
    if !session.forwarder.records.available() {
        return Err(Refusal::unrecorded(NO_AUDIT));
    }
    let target = identity::target(&session.entrance, parts).map_err(Refusal::protocol)?;
    let bounds = bounded(session, parts);
    let entry = &mut exchange.docket.entry;
    entry.resource = target.id();
    if let Some(request) = &mut entry.request {
        request.host = target.host.as_str().to_owned();
        request.port = target.port;
    }
    bounds?;
    if let Some(request) = &mut entry.request
        && let Ok(path) = protocol::path(parts)
    {
        let policy = &exchange.docket.policy;
        let shown = policy.shown_path(&target.host, target.port, &path);
        request.path = shown.into_owned();
    }
    framing::check(parts, head)?;
    Ok(target)
}

/// What the request asks its connection to become, if it may.
pub(crate) fn upgrade(
    exchange: &Exchange,
    parts: &Parts,
    target: &RequestTarget,
) -> Result<Option<Upgrade>, Refusal> {
    let policy = &exchange.docket.policy;
    Upgrade::of(parts, policy.settings(&target.host, target.port))
}

/// A server that does not read a body may take it for the next request (RFC 9110 section 9.3). What an upgrade would turn into
/// another protocol is never read, and a body that a method gives no meaning only where the host's file says so.
pub(crate) fn body(
    exchange: &Exchange,
    parts: &Parts,
    target: &RequestTarget,
    body: &RequestBody,
    upgrade: Option<&Upgrade>,
) -> Result<(), Refusal> {
    if body.is_empty() {
        return Ok(());
    }
    let policy = &exchange.docket.policy;
    let reads_bodies = policy.settings(&target.host, target.port).reads_bodies;
    let meaningless = matches!(parts.method, Method::GET | Method::HEAD | Method::TRACE);
    let what = match upgrade {
        Some(Upgrade::WebSocket) => {
            let detail = "a request for a WebSocket has a body, which the server would not read";
            return Err(Refusal::protocol(detail));
        }
        Some(Upgrade::Listed(_)) if !reads_bodies => "request for a tunnel",
        None if meaningless && !reads_bodies => "request",
        Some(Upgrade::Listed(_)) | None => return Ok(()),
    };
    Err(Refusal::protocol(format!(
        "a {} {what} has a body, which a server that does not read it takes for another request; \
         where the server reads it, the host's file says `reads_bodies = true`",
        parts.method
    )))
}

/// What is far longer is the library's to refuse.
fn bounded(session: &Session, parts: &Parts) -> Result<(), Refusal> {
    // A colon, a space and the end of the line, or as RFC 9113 section 6.5.2 counts.
    let more = match parts.version {
        Version::HTTP_2 => 32,
        _ => 4,
    };
    let fields = parts.headers.iter();
    let bytes: usize = fields.map(|(n, v)| n.as_str().len() + v.len() + more).sum();
    let line = parts.uri.path_and_query().map_or(0, |it| it.as_str().len());
    let limit = session.forwarder.limits.max_header_bytes;
    if bytes + line <= limit as usize {
        return Ok(());
    }
    let mut refusal = Refusal::protocol(format!("the headers are longer than {limit} bytes"));
    refusal.status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    Err(refusal)
}
