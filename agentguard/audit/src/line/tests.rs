use agentguard_record::{TaskInfo, UpstreamInfo};
use serde_json::{Value, json};

use super::*;
use crate::fixture::draft;

fn written(entry: Entry<'_>) -> (String, Value) {
    let mut out = Vec::new();
    let place = Place {
        seq: 7,
        prev: &FIRST_PREV,
    };
    write(&mut out, place, entry).unwrap();
    let text = String::from_utf8(out).unwrap();
    let value = serde_json::from_str(&text).unwrap();
    (text, value)
}

fn meta() -> Meta {
    Meta {
        name: "main".into(),
        serial: 3,
        digest: "d1".into(),
    }
}

/// The fields that a record has, in their order: what readers rely on.
const FIELDS: &str = "time seq prev decision agent owner task intent process operator action resource request facts \
                      outcome policies reason detail bundle credential approval upstream bytes_up bytes_down latency_us";

#[test]
fn a_decision_has_every_field_in_order() {
    let mut draft = draft("api.supplier.example");
    draft.outcome = Outcome::Deny;
    draft.reason = Some(DenyReason::PolicyDenied);
    draft.detail = Some("no rule permits it".into());
    draft.bundle = Some("d1".into());
    draft.facts.insert("query.q".into(), "ü\n\"".into());
    draft.request = Some(RequestInfo {
        scheme: "https".into(),
        host: "api.supplier.example".into(),
        port: 443,
        method: "GET".into(),
        path: "/v1".into(),
        status: 403,
    });
    draft.upstream = Some(UpstreamInfo {
        addr: "192.0.2.1:80".into(),
        tls: String::new(),
    });
    draft.latency = Latency {
        decide: 2,
        lookup: 7,
        total: 90,
    };
    let process = Process {
        tgid: 4711,
        start: 5,
        exe: "/usr/bin/python3".into(),
        uid: 1000,
        cgroup: "/a".into(),
        parents: vec!["/bin/sh[1]".into()],
        ..Process::default()
    };
    let meta = meta();
    let task = TaskInfo {
        id: Uuid::from_u128(7),
        intent: "order".into(),
    };
    let context = Context {
        agent: "procurement",
        owner: Some("john@example.com"),
        task: Some(&task),
        process: Some(&process),
        bundle: Some(&meta),
    };
    let (text, value) = written(Entry::Decision(&draft, &context));
    let mut at = 0;
    for field in FIELDS.split_whitespace() {
        let found = text[at..].find(&format!("\"{field}\":"));
        at += found.unwrap_or_else(|| panic!("{field} is missing or out of order in {text}"));
    }
    assert!(!text.contains('\n'));
    assert_eq!(
        value,
        json!({
            "time": "2026-01-01T00:00:00.123456Z",
            "seq": 7,
            "prev": "0".repeat(64),
            "decision": draft.decision.to_string(),
            "agent": "procurement",
            "owner": "john@example.com",
            "task": task.id.to_string(),
            "intent": "order",
            "process": {"tgid": 4711, "start": 5, "exe": "/usr/bin/python3", "uid": 1000, "cgroup": "/a",
                        "parents": ["/bin/sh[1]"]},
            "operator": null,
            "action": "GET",
            "resource": "api.supplier.example",
            "request": {"scheme": "https", "host": "api.supplier.example", "port": 443, "method": "GET",
                        "path": "/v1", "status": 403},
            "facts": {"query.q": "ü\n\""},
            "outcome": "deny",
            "policies": ["catalog"],
            "reason": "policy-denied",
            "detail": "no rule permits it",
            "bundle": {"name": "main", "serial": 3, "digest": "d1"},
            "credential": null,
            "approval": null,
            "upstream": {"addr": "192.0.2.1:80", "tls": null},
            "bytes_up": 0,
            "bytes_down": 0,
            "latency_us": {"decide": 2, "lookup": 7, "total": 90},
        })
    );
}

#[test]
fn what_is_not_known_is_null() {
    let mut draft = draft("10.0.0.1:22");
    let (_, known) = written(Entry::Decision(&draft, &Context::default()));
    assert_eq!(known["process"], json!({"tgid": 4711}));
    for field in ["owner", "task", "request", "bundle", "upstream", "reason"] {
        assert_eq!(known[field], Value::Null, "{field}");
    }
    draft.tgid = 0;
    let (_, unknown) = written(Entry::Decision(&draft, &Context::default()));
    assert_eq!(unknown["process"], Value::Null);
}

#[test]
fn the_digest_that_decided_is_never_given_another_bundles_name() {
    let mut draft = draft("a.example");
    draft.bundle = Some("d0".into());
    let meta = meta();
    let context = Context {
        bundle: Some(&meta),
        ..Context::default()
    };
    let (_, value) = written(Entry::Decision(&draft, &context));
    assert_eq!(
        value["bundle"],
        json!({"name": null, "serial": null, "digest": "d0"})
    );
}

#[test]
fn an_operators_action_has_the_same_fields() {
    let meta = meta();
    let done = Operator {
        uid: 1000,
        user: Some("ann"),
        operation: Operation::Kill,
        agent: Some("procurement"),
        resource: "procurement",
        outcome: Outcome::Allow,
        detail: "runs wild",
        bundle: Some(&meta),
    };
    let (text, value) = written(Entry::Operator(&done));
    for field in FIELDS.split_whitespace() {
        assert!(
            text.contains(&format!("\"{field}\":")),
            "{field} is missing in {text}"
        );
    }
    assert_eq!(value["operator"], json!({"uid": 1000, "user": "ann"}));
    assert_eq!(value["action"], "kill");
    assert_eq!(value["detail"], "runs wild");
    assert_eq!(value["bundle"]["serial"], 3);
    for (operation, name) in [
        (Operation::PolicyApply, "policy-apply"),
        (Operation::AuditRecover, "audit-recover"),
        (Operation::Start, "start"),
    ] {
        let (_, value) = written(Entry::Operator(&Operator { operation, ..done }));
        assert_eq!(value["action"], name);
    }
}

#[test]
fn the_hash_is_sha256() {
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert_eq!(hash(b""), empty.as_bytes());
}
