//! A permitted request on its way out, up to the head of the answer.

use agentguard_record::Ended;
use futures_util::future::OptionFuture;
use http::{Request, Version};
use hyper::upgrade::OnUpgrade;

use super::act::Message;
use super::body::RequestBody;
use super::exchange::Exchange;
use super::judge::Grant;
use super::record::Recorded;
use super::refusal::Refusal;
use super::settle::Claim;
use super::standing::{OngoingAct, PermittedRequest, Standing};
use super::upgrade::Upgrade;
use super::upload::{Upload, UploadState};
use super::upstream::{UpstreamAnswer, UpstreamCall};

/// Upstream's answer, and what is known of what it answers.
pub(crate) struct ForwardedAnswer {
    pub answer: UpstreamAnswer,
    /// What was permitted, as long as it goes on.
    pub standing: Standing,
    /// The client's side of a request that asks its connection to become something, and what.
    pub upgrade: Option<(OnUpgrade, Upgrade)>,
}

/// A permitted request as it leaves, and what is watched while it does.
struct Outgoing {
    permit: Recorded,
    claim: Claim,
    call: UpstreamCall,
    standing: Standing,
    uploaded: UploadState,
    /// Whether it has a body that is still to be sent.
    uploads: bool,
    upgrade: Option<(OnUpgrade, Upgrade)>,
}

/// Spends the permit: sends the request and its body, and tells its claim what became of it.
pub(crate) async fn send(
    exchange: &mut Exchange,
    message: Message,
    grant: Grant,
    body: &mut RequestBody,
) -> Result<ForwardedAnswer, Refusal> {
    let Outgoing {
        permit,
        mut claim,
        call,
        mut standing,
        uploaded,
        uploads,
        upgrade,
    } = outgoing(exchange, message, grant, body);
    let session = exchange.session.clone();
    session.place.wait().await;
    claim.goes_out();
    let over = standing.over();
    let upstreams = &session.forwarder.upstreams;
    let sent = if uploads {
        let mut watched = || true;
        tokio::select! {
            sent = upstreams.send(&session.pools, permit, call, &mut watched) => sent,
            () = standing.lost() => return Err(Refusal::cut(standing.reason())),
        }
    } else {
        let mut holds = || standing.holds();
        tokio::select! {
            sent = upstreams.send(&session.pools, permit, call, &mut holds) => sent,
            Some(()) = OptionFuture::from(over) => return Err(Refusal::over()),
        }
    };
    match sent.and_then(UpstreamAnswer::not_from_proxy) {
        Ok(answer) => {
            claim.was_answered(answer.response.status());
            Ok(ForwardedAnswer {
                answer,
                standing,
                upgrade,
            })
        }
        Err(fault) => {
            if fault.unsent {
                claim.was_not_sent();
            }
            if !standing.holds() {
                return Err(Refusal::cut(standing.reason()));
            }
            Err(match uploaded.error() {
                Some(error) => error.into(),
                None => {
                    let resource = &exchange.docket.entry.resource;
                    let detail = format!("{resource}: {}", fault.detail);
                    Refusal::ended(Ended::UpstreamFailed, fault.reason, detail)
                }
            })
        }
    }
}

/// Not a part of [`send`], whose future would keep what this takes apart for as long as the request is under way.
fn outgoing(
    exchange: &Exchange,
    message: Message,
    grant: Grant,
    body: &mut RequestBody,
) -> Outgoing {
    let session = &exchange.session;
    let ongoing = OngoingAct::Request(Box::new(PermittedRequest::of(&message)));
    let Message {
        mut parts,
        target,
        scheme,
        authority,
        line,
        upgrade,
        ..
    } = message;
    let client = parts.extensions.remove::<OnUpgrade>();
    if parts.version == Version::HTTP_2 {
        parts.extensions.clear();
    }
    // What is left is how an HTTP/1.1 client wrote its header names.
    parts.version = Version::HTTP_11;
    let tasks = &session.forwarder.situation.tasks;
    let policy = &exchange.docket.policy;
    let settings = policy.settings(&target.host, target.port).clone();
    let standing = Standing::new(
        session.forwarder.clone(),
        policy.clone(),
        session.life.clone(),
        target,
        ongoing,
        grant.gathered,
        tasks.ends_of(grant.permit.permit().covered()),
    );
    let body = std::mem::replace(body, RequestBody::Spent);
    let reader = (session.life.clone(), session.clock.busy());
    let upload = Upload::new(body, &exchange.docket.entry.passed, standing.over(), reader);
    let tunnels = upgrade.is_some();
    Outgoing {
        permit: grant.permit,
        claim: grant.claim,
        standing,
        uploaded: upload.state(),
        uploads: !upload.is_empty(),
        upgrade: client.zip(upgrade),
        call: UpstreamCall {
            request: Request::from_parts(parts, upload),
            scheme,
            authority,
            target: line,
            http2: session.entrance.http2 && !settings.http1_only,
            websocket: tunnels,
            settings,
            was_closed: false,
        },
    }
}
