//! A request between its head and its answer, and the one way in which a request is refused.

use std::sync::Arc;

use agentguard_record::{ActionName, DenyReason, Ended, RequestInfo};
use http::request::Parts;
use http::uri::Scheme;
use http::{Response, StatusCode, Version, header};
use http_body::Body;
use hyper::body::Incoming;

use super::clock::Busy;
use super::judge::{Docket, Subject};
use super::protocol::{About, Protocol};
use super::record::RecordEntry;
use super::refusal::Refusal;
use super::reply::Reply;
use super::session::Session;
use super::tasks::NamedTask;
use super::{origin, respond, upload};

pub(crate) struct Exchange {
    pub session: Arc<Session>,
    pub docket: Docket,
    pub protocol: Protocol,
    /// Its connection is busy for as long as this is held.
    pub busy: Busy,
    /// The client waits for leave to send its body (RFC 9110 section 10.1.1).
    expects: bool,
    version: Version,
}

impl Exchange {
    pub(crate) fn new(
        session: Arc<Session>,
        busy: Busy,
        mut entry: RecordEntry,
        parts: &Parts,
    ) -> Self {
        entry.action = ActionName::Method(parts.method.as_str().to_owned());
        entry.resource = origin::place(&session.origin);
        entry.ended = Ended::ClientGone;
        entry.request = Some(RequestInfo {
            scheme: session.entrance.scheme.to_string(),
            method: parts.method.as_str().to_owned(),
            ..RequestInfo::default()
        });
        Self {
            docket: Docket::new(&session.forwarder, entry),
            session,
            protocol: Protocol::of(&parts.headers),
            busy,
            expects: parts.headers.contains_key(header::EXPECT),
            version: parts.version,
        }
    }

    /// Who is judged. With what is to be written down, so that both can be borrowed.
    pub(crate) fn subject<'a>(&'a mut self, task: &'a NamedTask) -> (Subject<'a>, &'a mut Docket) {
        let subject = Subject {
            forwarder: &self.session.forwarder,
            life: &self.session.life,
            task,
        };
        (subject, &mut self.docket)
    }

    pub(crate) fn scheme(&self) -> &Scheme {
        &self.session.entrance.scheme
    }

    /// The status that the agent gets.
    pub(crate) fn status(&mut self, status: StatusCode) {
        if let Some(request) = &mut self.docket.entry.request {
            request.status = status.as_u16();
        }
    }

    /// Answers with why not, after the record is complete. `rest`: what is left to be read of the request's body.
    pub(crate) fn refuse(mut self, refusal: Refusal, rest: Option<Incoming>) -> Response<Reply> {
        // What contradicts itself may go on in more than one way.
        let mut close = refusal.reason == DenyReason::ProtocolRefused;
        let undrained = rest.filter(|body| !body.is_end_stream());
        // The client must not be told to go on; what it waits for then is the end of this connection.
        close |= undrained.is_some() && self.expects;
        close &= self.version < Version::HTTP_2;
        let entry = &self.docket.entry;
        let about = About {
            decision: entry.decision,
            agent: &respond::name(&self.docket.policy, self.session.life.agent),
            action: entry.action.as_str(),
            resource: &entry.resource,
        };
        let response = respond::answer(&refusal, self.protocol, close, &about);
        self.status(response.status());
        self.docket.entry.refuse(refusal);
        if let Some(body) = undrained.filter(|_| !self.expects) {
            upload::drain(&self.session.life, body, self.busy);
        }
        response
    }
}
