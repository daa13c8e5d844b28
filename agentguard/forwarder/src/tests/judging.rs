//! One judging for everything: passed-through connections are judged and recorded as requests are, and all acts of a
//! request are.

use agentguard_policy::{Action, CanonicalPath};
use agentguard_record::{ActionName, DecidedBy, DenyReason, Ended, Outcome};
use http::HeaderMap;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::rig::{AGENT, HOST, Rig, Setup, client_config};
use crate::act::Act;
use crate::body::RequestBody;
use crate::identity::RequestTarget;
use crate::judge::{self, Docket, Grant, Subject};
use crate::refusal::Refusal;
use crate::tasks::NamedTask;

const NEEDS_APPROVAL: &str = r#"
@id("pinned-owner") @approve("owner")
forbid (principal, action == Action::"connect", resource == Host::"pinned.test:{port}")
unless { context.approvals.contains("owner") };
@id("pinned-security") @approve("security")
forbid (principal, action == Action::"connect", resource == Host::"pinned.test:{port}")
unless { context.approvals.contains("security") };
"#;

async fn with_rules(rules: &'static str) -> Rig {
    Rig::with(Setup {
        rules,
        ..Setup::default()
    })
    .await
}

async fn pass(rig: &Rig) -> std::io::Result<TlsStream<TcpStream>> {
    let config = client_config(rig.roots(), &[]);
    let name = "pinned.test".try_into().unwrap();
    let socket = rig.connect(rig.origin.port).await;
    TlsConnector::from(std::sync::Arc::new(config))
        .connect(name, socket)
        .await
}

#[tokio::test]
async fn a_passed_connection_that_people_have_to_approve_is_recorded_as_that() {
    let rig = with_rules(NEEDS_APPROVAL).await;
    let error = pass(&rig).await.unwrap_err();
    assert!(error.to_string().contains("AccessDenied"), "{error}");
    let record = rig.record().await;
    assert_eq!(
        (record.outcome, record.reason),
        (
            Outcome::ApprovalRequired,
            Some(DenyReason::ApprovalRequired)
        )
    );
    assert_eq!(record.approval, ["owner", "security"]);
    assert_eq!(record.policies, ["pinned-owner", "pinned-security"]);
    assert_eq!(record.action, ActionName::Connect);
    let told = (record.decided_by, record.ended);
    assert_eq!(told, (DecidedBy::Rules, Ended::Refused));
}

/// What is judged of requests for these paths, which are one request's together.
async fn judge(rig: &Rig, paths: &[&str]) -> Result<Grant, Refusal> {
    let forwarder = &rig.forwarder;
    let life = forwarder.lives.of(AGENT);
    let entry = forwarder.records.open(&life, &Default::default()).unwrap();
    let mut docket = Docket::new(forwarder, entry);
    let target = RequestTarget {
        host: agentguard_policy::HostName::parse(HOST).unwrap(),
        port: rig.origin.port,
    };
    let paths: Vec<_> = paths
        .iter()
        .map(|path| CanonicalPath::parse(path).unwrap())
        .collect();
    let headers = HeaderMap::new();
    let acts: Vec<_> = paths
        .iter()
        .map(|path| Act {
            target: &target,
            action: Action::Request {
                method: "GET",
                scheme: "https",
                path,
                query: None,
                headers: &headers,
            },
        })
        .collect();
    let subject = Subject {
        forwarder,
        life: &life,
        task: &NamedTask::Nothing,
    };
    judge::judge(subject, &acts, &mut RequestBody::Spent, &mut docket).await
}

#[tokio::test]
async fn all_acts_of_a_request_are_permitted_or_none_is() {
    let rig = Rig::new().await;
    for paths in [&["/ok/a"][..], &["/ok/a", "/ok/b"], &["/ok/a", "/ok"]] {
        let grant = judge(&rig, paths).await;
        assert!(grant.is_ok(), "{paths:?}");
    }
    for paths in [&["/no"][..], &["/no", "/ok/a"], &["/ok/a", "/no"]] {
        let refusal = judge(&rig, paths).await.err().map(|refusal| refusal.reason);
        assert_eq!(refusal, Some(DenyReason::PolicyDenied), "{paths:?}");
    }
    let nothing = judge(&rig, &[]).await.err().map(|refusal| refusal.reason);
    assert_eq!(nothing, Some(DenyReason::ProtocolRefused));
}
