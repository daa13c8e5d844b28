//! One request, from its head to the head of its answer: what it is for, whether it may, and what comes back.

mod judge;
mod own;

use std::sync::Arc;

use agentguard_policy as policy;
use agentguard_policy::Settled;
use agentguard_policy::{CanonicalPath, Context, Policy};
use agentguard_record::DenyReason;
use agentguard_record::RequestInfo;
use futures_util::future::OptionFuture;
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version, header};
use http_body::Body;
use hyper::body::Incoming;

use self::judge::Judged;
use super::accept;
use super::body::RequestBody;
use super::clock::Busy;
use super::framing;
use super::headers;
use super::http::Session;
use super::identity::{self, Target};
use super::record::Entry;
use super::refuse::{self, About, Refusal, Shape};
use super::relay::Answer;
use super::standing::{Asked, Standing};
use super::tasks::Ends;
use super::tunnel::{self, Tunnel, WebSocket};
use super::upload::{self, Upload};
use super::upstream::Call;

/// Judges `request` and answers it: with upstream's answer, or with why not.
pub async fn handle(session: &Arc<Session>, request: Request<Incoming>) -> Response<Answer> {
    let busy = session.clock.busy(session);
    let head = session.head();
    if request.method() == Method::CONNECT {
        return tunnel::connect(session, request);
    }
    let Some(entry) = session.entry() else {
        return refuse::unrecorded(session, &request);
    };
    let (parts, body) = request.into_parts();
    let mut exchange = Exchange::new(session, entry, &parts);
    let target = match exchange.admit(&parts, &head) {
        Ok(target) if policy::is_reserved(&target.host) => {
            return own::answer(exchange, parts, body, busy).await;
        }
        Ok(target) => target,
        Err(refusal) => return exchange.refuse(refusal, Some(body), busy),
    };
    let mut body = RequestBody::Streamed(body);
    match exchange.judge(parts, target, &mut body).await {
        Ok(judged) => exchange.forward(judged, body, busy).await,
        Err(refusal) => exchange.refuse(refusal, body.rest(), busy),
    }
}

/// A request between its head and its answer.
struct Exchange<'a> {
    session: &'a Arc<Session>,
    policy: Arc<Policy>,
    entry: Entry,
    shape: Shape,
    /// The client waits for leave to send its body (RFC 9110 section 10.1.1).
    expects: bool,
    version: Version,
}

impl<'a> Exchange<'a> {
    fn new(session: &'a Arc<Session>, mut entry: Entry, parts: &Parts) -> Self {
        let policy = session.forwarder.policy.load_full();
        entry.action = parts.method.as_str().to_owned();
        entry.resource = accept::place(&session.origin);
        entry.bundle = Some(policy.meta().digest.clone());
        entry.request = Some(RequestInfo {
            scheme: session.entrance.scheme.to_string(),
            method: parts.method.as_str().to_owned(),
            ..RequestInfo::default()
        });
        Self {
            session,
            policy,
            entry,
            shape: Shape::of(&parts.method, &parts.headers),
            expects: parts.headers.contains_key(header::EXPECT),
            version: parts.version,
        }
    }

    /// Where the request goes, if it is one that can be judged.
    fn admit(&mut self, parts: &Parts, head: &[u8]) -> Result<Target, Refusal> {
        let session = self.session;
        if !session.forwarder.records.available() {
            return Err(Refusal::new(DenyReason::AuditUnavailable, refuse::NO_AUDIT));
        }
        let target = identity::target(&session.entrance, parts).map_err(Refusal::protocol)?;
        self.about(&target);
        self.bounded(parts)?;
        if let Some(request) = &mut self.entry.request
            && let Ok(path) = CanonicalPath::parse(parts.uri.path())
        {
            request.path = path.as_str().to_owned();
        }
        framing::check(parts, head)?;
        Ok(target)
    }

    fn about(&mut self, target: &Target) {
        self.entry.resource = target.id();
        if let Some(request) = &mut self.entry.request {
            request.host = target.host.as_str().to_owned();
            request.port = target.port;
        }
    }

    /// HTTP/2's header lists, whose limit in HTTP/1.1 is the parser's.
    fn bounded(&self, parts: &Parts) -> Result<(), Refusal> {
        if parts.version < Version::HTTP_2 {
            return Ok(());
        }
        // As RFC 9113 section 6.5.2 counts them.
        let fields = parts.headers.iter();
        let bytes: usize = fields.map(|(n, v)| n.as_str().len() + v.len() + 32).sum();
        let limit = self.session.forwarder.limits.max_header_bytes;
        if bytes + parts.uri.path().len() <= limit as usize {
            return Ok(());
        }
        let mut refusal = Refusal::protocol(format!("the headers are longer than {limit} bytes"));
        refusal.status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        Err(refusal)
    }

    async fn forward(mut self, judged: Judged, body: RequestBody, busy: Busy) -> Response<Answer> {
        let session = self.session;
        let Judged {
            permit,
            mut held,
            mut parts,
            place,
            authority,
            target,
            gathered,
            websocket,
        } = judged;
        let client = websocket
            .is_some()
            .then(|| parts.extensions.remove::<hyper::upgrade::OnUpgrade>())
            .flatten();
        parts.version = Version::HTTP_11;
        parts.extensions.clear();
        let tasks = session.forwarder.situation.tasks.ends_of(permit.covered());
        let body = Upload::new(body, &self.entry.passed, tasks.over());
        let call = Call {
            request: Request::from_parts(parts, body),
            scheme: session.entrance.scheme.clone(),
            authority,
            target,
            http2: session.entrance.http2,
            websocket: websocket.is_some(),
        };
        let upload = call.request.body().state();
        let upstreams = &session.forwarder.upstreams;
        held.settled = Settled::Kept;
        let sent = tokio::select! {
            sent = upstreams.send(&session.life, permit, call) => sent,
            Some(()) = OptionFuture::from(tasks.over()) => return self.refuse(Refusal::over(), None, busy),
        };
        let answer = match sent {
            Ok(answer) => answer,
            Err(fault) => {
                if fault.unsent {
                    held.settled = Settled::Unsent;
                }
                let detail = format!("{}: {}", self.entry.resource, fault.detail);
                let refusal = match upload.error() {
                    Some(error) => Refusal::upload(error),
                    None => Refusal::new(fault.reason, detail),
                };
                return self.refuse(refusal, None, busy);
            }
        };
        let (mut head, body) = answer.response.into_parts();
        self.entry.upstream = Some(answer.facts.0.clone());
        if head.status.is_client_error() {
            held.settled = Settled::Refused;
        }
        drop(held);
        self.status(head.status);
        head.version = Version::HTTP_11;
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            let granted = headers::asks_for_websocket(&head.headers);
            let (Some(client), Some(upgrade), true) = (client, websocket, granted) else {
                let fault = "upstream changed to a protocol that was not asked for";
                let fault = Refusal::new(DenyReason::UpstreamUnreachable, fault);
                return self.refuse(fault, None, busy);
            };
            let upstream = hyper::upgrade::on(Response::from_parts(head.clone(), body));
            head.extensions.clear();
            session.becomes(Tunnel::WebSocket(Box::new(WebSocket {
                client,
                upstream,
                standing: self.standing(place, Asked::Upgrade(upgrade), gathered, tasks),
                entry: self.entry,
                busy,
            })));
            return Response::from_parts(head, Answer::empty());
        }
        headers::strip(&mut head.headers, false);
        // Another place or protocol to go to, which the agent cannot use.
        head.headers.remove(header::ALT_SVC);
        let standing = self.standing(place, Asked::Answer, gathered, tasks);
        let body = Answer::upstream(body, answer.lease, self.entry, standing, busy);
        Response::from_parts(head, body)
    }

    fn standing(&self, target: Target, asked: Asked, gathered: Context, tasks: Ends) -> Standing {
        let session = self.session;
        let judged = self.policy.clone();
        let forwarder = session.forwarder.clone();
        Standing::new(
            forwarder,
            judged,
            session.life.agent,
            target,
            asked,
            gathered,
            tasks,
        )
    }

    fn status(&mut self, status: StatusCode) {
        if let Some(request) = &mut self.entry.request {
            request.status = status.as_u16();
        }
    }

    /// Answers with why not, after the record is complete.
    fn refuse(mut self, refusal: Refusal, body: Option<Incoming>, busy: Busy) -> Response<Answer> {
        // What contradicts itself may go on in more than one way.
        self.shape.close = refusal.reason == DenyReason::ProtocolRefused;
        match body.filter(|body| !body.is_end_stream()) {
            // The client must not be told to go on; what it waits for then is the end of this connection.
            Some(_) if self.expects => self.shape.close = true,
            Some(body) => upload::drain(&self.session.life, body, busy),
            None => {}
        }
        self.shape.close &= self.version < Version::HTTP_2;
        let agent = self.session.life.agent;
        let response = refuse::answer(
            &refusal,
            self.shape,
            &About {
                decision: self.entry.decision,
                agent: &refuse::name(&self.policy, agent),
                action: &self.entry.action,
                resource: &self.entry.resource,
            },
        );
        self.status(response.status());
        let mut entry = self.entry;
        entry.approval = refusal.approval;
        entry.reason = Some(refusal.reason);
        entry.detail = Some(refusal.detail);
        if !refusal.policies.is_empty() {
            entry.policies = refusal.policies;
        }
        if !refusal.facts.is_empty() {
            entry.facts = refusal.facts;
        }
        entry.complete(refusal.outcome);
        response
    }
}
