//! A permitted request on its way out, up to the head of the answer.

use agentguard_record::Ended;
use futures_util::FutureExt as _;
use futures_util::future::OptionFuture;
use http::{Request, Version};
use hyper::upgrade::OnUpgrade;

use super::act::Message;
use super::body::RequestBody;
use super::exchange::Exchange;
use super::judge::Grant;
use super::refusal::Refusal;
use super::standing::{OngoingAct, PermittedRequest, Standing};
use super::upload::Upload;
use super::upstream::{self, UpstreamCall};

/// Upstream's answer, and what is known of what it answers.
pub(crate) struct ForwardedAnswer {
    pub answer: upstream::UpstreamAnswer,
    /// What was permitted, as long as it goes on.
    pub standing: Standing,
    /// The client's side of a request that asks for a WebSocket.
    pub websocket: Option<OnUpgrade>,
}

/// Spends the permit: sends the request and its body, and tells its claim what became of it.
pub(crate) async fn send(
    exchange: &mut Exchange,
    message: Message,
    grant: Grant,
    body: &mut RequestBody,
) -> Result<ForwardedAnswer, Refusal> {
    let session = exchange.session.clone();
    let forwarder = &session.forwarder;
    let Grant {
        permit,
        mut claim,
        gathered,
    } = grant;
    let ongoing = OngoingAct::Request(Box::new(PermittedRequest::of(&message)));
    let Message {
        mut parts,
        target,
        scheme,
        authority,
        line,
        websocket: upgrade,
        ..
    } = message;
    let client = parts.extensions.remove::<OnUpgrade>();
    let client = client.filter(|_| upgrade);
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    let tasks = forwarder.situation.tasks.ends_of(permit.permit().covered());
    let reads_bodies = exchange
        .docket
        .policy
        .reads_bodies(&target.host, target.port);
    let mut standing = Standing::new(
        forwarder.clone(),
        exchange.docket.policy.clone(),
        session.life.clone(),
        target,
        ongoing,
        gathered,
        tasks,
    );
    let body = std::mem::replace(body, RequestBody::Spent);
    let reader = (session.life.clone(), session.clock.busy());
    let passed = &exchange.docket.entry.passed;
    let upload = Upload::new(body, passed, standing.over(), reader);
    let uploaded = upload.state();
    let uploads = !upload.is_empty();
    let call = UpstreamCall {
        request: Request::from_parts(parts, upload),
        scheme,
        authority,
        target: line,
        http2: session.entrance.http2,
        websocket: upgrade,
        reads_bodies,
    };
    claim.goes_out();
    let over = standing.over();
    // Only what is still being sent can be stopped; and on the heap, most requests send nothing.
    let lost = OptionFuture::from(uploads.then(|| standing.lost().boxed()));
    let sent = tokio::select! {
        sent = forwarder.upstreams.send(&session.pools, permit, call) => sent,
        Some(()) = lost => return Err(Refusal::cut(standing.reason())),
        Some(()) = OptionFuture::from(over), if !uploads => return Err(Refusal::over()),
    };
    match sent {
        Ok(answer) => {
            claim.was_answered(answer.response.status());
            Ok(ForwardedAnswer {
                answer,
                standing,
                websocket: client,
            })
        }
        Err(fault) => {
            if fault.unsent {
                claim.was_not_sent();
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
