//! Whether the agent may do something, asked before it does.

use agentguard_policy::Decision;
use agentguard_policy::explain::Question;
use agentguard_record::{DenyReason, Outcome};
use http::StatusCode;
use http::request::Parts;
use serde::{Deserialize, Serialize};

use super::document::{Document, wrong};
use crate::act::Act;
use crate::exchange::Exchange;
use crate::identity::RequestTarget;
use crate::judge;
use crate::refusal::Refusal;
use crate::tasks::NamedTask;

/// `POST /v1/may`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MayBody {
    method: String,
    url: String,
    #[serde(default)]
    headers: std::collections::BTreeMap<String, String>,
    /// Its text as it would be sent.
    #[serde(default)]
    body: Option<String>,
}

#[derive(Serialize)]
struct MayView {
    /// `allow`, `deny`, `approval-required`.
    decision: Outcome,
    reason: Option<DenyReason>,
    detail: Option<String>,
    policies: Vec<String>,
    /// Roles whose approval is needed.
    approval: Vec<String>,
    /// It would be denied, and is let through and recorded.
    observed: bool,
}

/// Judged as the request would be, and nothing is taken of its limits.
pub(super) fn may(
    exchange: &mut Exchange,
    ask: MayBody,
    parts: &Parts,
) -> Result<Document, Refusal> {
    let agent = exchange.session.life.agent;
    let question = Question {
        agent: String::new(),
        method: ask.method,
        url: ask.url,
        headers: ask.headers.into_iter().collect(),
        body: ask.body,
        ..Question::default()
    };
    let task = NamedTask::take(&mut parts.headers.clone());
    let (subject, docket) = exchange.subject(&task);
    // The question's own body has been waited for.
    docket.renew(subject.forwarder);
    let policy = &docket.policy;
    let tasks = subject.tasks(policy);
    let asked = policy.may(agent, &question, tasks, |host, port, action, mut known| {
        let target = RequestTarget {
            host: host.clone(),
            port,
        };
        let act = Act {
            target: &target,
            action,
        };
        judge::judge_now(subject, policy, &act, &mut known)
    });
    let (resource, decision) = asked.map_err(|why| wrong(StatusCode::BAD_REQUEST, why))?;
    let view = match decision {
        Ok(decision) => MayView::of(decision),
        Err(refusal) => MayView::refused(refusal),
    };
    docket.entry.detail = Some(format!("has asked about {resource}"));
    Ok(Document::json(&view))
}

impl MayView {
    fn of(decision: Decision) -> Self {
        match decision {
            Decision::Permit(permit) => Self {
                decision: Outcome::Allow,
                reason: permit.would_deny().map(|denial| denial.reason),
                detail: permit.would_deny().map(|denial| denial.detail.clone()),
                policies: permit.policies().to_vec(),
                approval: Vec::new(),
                observed: permit.would_deny().is_some(),
            },
            // Asking settles nothing.
            Decision::Owing(permit) => Self {
                decision: Outcome::Allow,
                reason: None,
                detail: Some("allowed while its limits have room".into()),
                policies: permit.policies().to_vec(),
                approval: Vec::new(),
                observed: false,
            },
            Decision::Deny(denial) => Self::refused(denial.into()),
        }
    }

    fn refused(refusal: Refusal) -> Self {
        Self {
            decision: refusal.outcome,
            reason: Some(refusal.reason),
            detail: Some(refusal.detail),
            policies: refusal.policies,
            approval: refusal.approval,
            observed: false,
        }
    }
}
