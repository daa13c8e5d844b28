//! A permitted request on its way out, up to the head of the answer.

use agentguard_policy::Context;
use agentguard_record::Ended;
use futures_util::future::OptionFuture;
use http::{Request, Version};
use hyper::upgrade::OnUpgrade;

use super::act::Message;
use super::body::RequestBody;
use super::exchange::Exchange;
use super::identity::RequestTarget;
use super::judge::Grant;
use super::refusal::Refusal;
use super::standing::Upgrade;
use super::tasks::Ends;
use super::upload::Upload;
use super::upstream::{self, UpstreamCall};

/// Upstream's answer, and what is known of what it answers.
pub(crate) struct ForwardedAnswer {
    pub answer: upstream::UpstreamAnswer,
    pub target: RequestTarget,
    /// What rules read for the decision.
    pub gathered: Context,
    /// The end of the tasks that it was permitted on.
    pub tasks: Ends,
    /// What is kept of a request that asks for a WebSocket, and the client's side of it.
    pub websocket: Option<(Box<Upgrade>, OnUpgrade)>,
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
        mut gathered,
    } = grant;
    if !body.bytes().is_empty() {
        // Another bundle may declare other fields of it than these.
        gathered.body = agentguard_policy::Body::Unread;
    }
    let websocket = message.websocket.then(|| Box::new(Upgrade::of(&message)));
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
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    let tasks = forwarder.situation.tasks.ends_of(permit.covered());
    let reads_bodies = exchange
        .docket
        .policy
        .reads_bodies(&target.host, target.port);
    let body = std::mem::replace(body, RequestBody::Spent);
    let upload = Upload::new(body, &exchange.docket.entry.passed, tasks.over());
    let uploaded = upload.state();
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
    let sent = tokio::select! {
        sent = forwarder.upstreams.send(&session.pools, permit, call) => sent,
        Some(()) = OptionFuture::from(tasks.over()) => return Err(Refusal::over()),
    };
    match sent {
        Ok(answer) => {
            claim.was_answered(answer.response.status());
            Ok(ForwardedAnswer {
                answer,
                target,
                gathered,
                tasks,
                websocket: websocket.zip(client),
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
