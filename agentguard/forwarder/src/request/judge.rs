//! Everything that is decided of a request before a byte of it goes out.

use std::time::Instant;

use agentguard_policy as policy;
use agentguard_policy::context::AttributeName;
use agentguard_policy::{Action, CanonicalPath, Context, Decision, Input, Permit};
use agentguard_record::DenyReason;
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::Exchange;
use crate::body::RequestBody;
use crate::charges::Held;
use crate::headers;
use crate::identity::Target;
use crate::record::micros;
use crate::refuse;
use crate::refuse::Refusal;
use crate::standing;
use crate::standing::Upgrade;
use crate::tasks::Named;

/// A permitted request without its body.
pub(super) struct Judged {
    pub(super) permit: Permit,
    pub(super) held: Held,
    pub(super) parts: Parts,
    pub(super) place: Target,
    pub(super) authority: Authority,
    pub(super) target: PathAndQuery,
    pub(super) gathered: Context,
    /// What is kept of a request that asks for a WebSocket.
    pub(super) websocket: Option<Box<Upgrade>>,
}

impl Exchange<'_> {
    /// Everything that is decided before a byte goes out. What is judged is what is sent.
    pub(super) async fn judge(
        &mut self,
        mut parts: Parts,
        target: Target,
        body: &mut RequestBody,
    ) -> Result<Judged, Refusal> {
        let session = self.session;
        let path = CanonicalPath::parse(parts.uri.path()).map_err(Refusal::protocol)?;
        let authority = target.authority(&session.entrance.scheme);
        let named = Named::take(&mut parts.headers);
        let websocket = headers::clean(&mut parts, &authority)?;
        let (permit, held, mut gathered) = loop {
            let gathered = self.gather(&parts, &target, &path, &named, body).await?;
            let (permit, held) = self.decide(&parts, &target, &path, &gathered).await?;
            if held.is_nothing() || self.still_decided(&named, &gathered) {
                break (permit, held, gathered);
            }
            self.renew();
        };
        self.entry.permitted(&permit);
        if !body.bytes().is_empty() {
            // Another bundle may declare other fields of it than these.
            gathered.body = policy::Body::Unread;
        }
        let websocket = websocket.then(|| {
            Box::new(Upgrade {
                method: parts.method.clone(),
                scheme: session.entrance.scheme.to_string(),
                query: parts.uri.query().map(str::to_owned),
                headers: parts.headers.clone(),
                path: path.clone(),
            })
        });
        let line = match parts.uri.query() {
            Some(query) => PathAndQuery::try_from(format!("{}?{query}", path.as_str())),
            None => PathAndQuery::try_from(path.as_str()),
        };
        Ok(Judged {
            permit,
            held,
            parts,
            place: target,
            authority: Authority::try_from(authority)
                .map_err(|_| Refusal::protocol("the request's host cannot be sent on"))?,
            target: line.map_err(|_| Refusal::protocol("the request's path cannot be sent on"))?,
            gathered,
            websocket,
        })
    }

    fn input<'i>(
        &'i self,
        parts: &'i Parts,
        target: &'i Target,
        path: &'i CanonicalPath,
        gathered: &'i Context,
    ) -> Input<'i> {
        Input {
            agent: self.session.life.agent,
            host: &target.host,
            port: target.port,
            action: Action::Request {
                method: parts.method.as_str(),
                scheme: self.session.entrance.scheme.as_str(),
                path,
                query: parts.uri.query(),
                headers: &parts.headers,
            },
            context: gathered,
        }
    }

    /// Whether what was decided still is, after a wait.
    fn still_decided(&self, named: &Named, gathered: &Context) -> bool {
        let session = self.session;
        let agent = session.life.agent;
        standing::still_decided(&session.forwarder, &self.policy, agent, named, gathered)
    }

    /// Takes the bundle that is in force now, after a wait.
    fn renew(&mut self) {
        self.policy = self.session.forwarder.policy.load_full();
        self.entry.bundle = Some(self.policy.meta().digest.clone());
    }

    /// What rules read beyond the head. The bundle that is in force when it is here is the one that decides.
    async fn gather(
        &mut self,
        parts: &Parts,
        target: &Target,
        path: &CanonicalPath,
        named: &Named,
        body: &mut RequestBody,
    ) -> Result<Context, Refusal> {
        let forwarder = &self.session.forwarder;
        let limits = &forwarder.limits;
        loop {
            let agent = self.session.life.agent;
            let tasks = &forwarder.situation.tasks;
            let known = Context {
                tasks: Some(tasks.held(&self.policy, agent, named)),
                ..Context::default()
            };
            let mut gathered = known.clone();
            let asked = self.input(parts, target, path, &known);
            let needs = self.policy.needs(&asked);
            match &needs.body {
                Some(needed) if body.is_known() => {
                    let limit = limits.max_judged_body_bytes as usize;
                    gathered.body = needed.block.read(&parts.headers, body.bytes(), limit);
                    gathered.body_sha256 = needs
                        .has(AttributeName::Limits)
                        .then(|| Sha256::digest(body.bytes()).into());
                }
                None if body.is_known() && body.bytes().is_empty() => {
                    gathered.body = policy::Body::none();
                }
                None => {}
                Some(_) => {
                    body.hold(limits, &forwarder.room).await?;
                    self.renew();
                    continue;
                }
            }
            let started = Instant::now();
            let asks = self
                .policy
                .asks(&self.input(parts, target, path, &gathered));
            if !asks.is_empty() {
                gathered.lookups = forwarder.lookups.gather(&self.session.life, asks).await;
                self.entry.latency.lookup += micros(started);
                if !self.still_decided(named, &known) {
                    self.renew();
                    continue;
                }
            }
            let asked = self.input(parts, target, path, &known);
            forwarder
                .situation
                .gather(&self.policy, &asked, &mut gathered);
            self.entry.on_task(&gathered);
            return Ok(gathered);
        }
    }

    async fn decide(
        &mut self,
        parts: &Parts,
        target: &Target,
        path: &CanonicalPath,
        gathered: &Context,
    ) -> Result<(Permit, Held), Refusal> {
        // Whatever was waited for before: it is now that counts.
        if self.policy.is_expired(Timestamp::now()) {
            return Err(Refusal::new(DenyReason::PolicyStale, refuse::STALE));
        }
        let started = Instant::now();
        let input = self.input(parts, target, path, gathered);
        let decision = self.policy.decide(&input);
        self.entry.latency.decide = micros(started);
        let (permit, held) = match decision {
            Decision::Permit(permit) => (permit, Held::nothing()),
            Decision::Limited(limited) => self.session.forwarder.charges.take(*limited).await?,
            Decision::Deny(denial) => return Err(denial.into()),
        };
        Ok((permit, held))
    }
}
