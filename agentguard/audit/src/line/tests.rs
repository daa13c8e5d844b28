use std::collections::BTreeSet;

use agentguard_record::{
    ActionName, Context, DecidedBy, DenyReason, Ended, Latency, Meta, Operation, Operator, Outcome,
    Process, Record, RequestInfo, TaskInfo, UpstreamInfo,
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::fixture::draft;

fn written(record: Record<'_>) -> (String, Value) {
    let mut out = Vec::new();
    let place = ChainPlace {
        seq: 7,
        prev: &FIRST_PREV,
    };
    write(&mut out, place, record).unwrap();
    let text = String::from_utf8(out).unwrap();
    let value = serde_json::from_str(&text).unwrap();
    (text, value)
}

/// The fields that every record has, in their order: what readers rely on.
fn top_level() -> impl Iterator<Item = &'static str> {
    let keys = fields().iter().map(|field| field.key);
    keys.filter(|key| !key.contains('.'))
}

fn meta() -> Meta {
    Meta {
        name: "main".into(),
        serial: 3,
        digest: "d1".into(),
    }
}

#[test]
fn a_decision_has_every_field_in_order() {
    let mut draft = draft("api.supplier.example");
    draft.outcome = Outcome::Deny;
    draft.ended = Ended::Refused;
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
        proxy: String::new(),
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
    let (text, value) = written(Record::Decision(&draft, &context));
    let mut at = 0;
    for field in top_level() {
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
            "decided_by": "rules",
            "ended": "refused",
            "policies": ["catalog"],
            "reason": "policy-denied",
            "detail": "no rule permits it",
            "bundle": {"name": "main", "serial": 3, "digest": "d1"},
            "credential": null,
            "approval": null,
            "upstream": {"addr": "192.0.2.1:80", "tls": null, "proxy": null},
            "bytes_up": 0,
            "bytes_down": 0,
            "count": 1,
            "latency_us": {"decide": 2, "lookup": 7, "total": 90},
        })
    );
}

#[test]
fn what_is_not_known_is_null() {
    let mut draft = draft("10.0.0.1:22");
    let (_, known) = written(Record::Decision(&draft, &Context::default()));
    assert_eq!(known["process"], json!({"tgid": 4711}));
    for field in ["owner", "task", "request", "bundle", "upstream", "reason"] {
        assert_eq!(known[field], Value::Null, "{field}");
    }
    draft.tgid = 0;
    let (_, unknown) = written(Record::Decision(&draft, &Context::default()));
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
    let (_, value) = written(Record::Decision(&draft, &context));
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
    let (text, value) = written(Record::Operator(&done));
    for field in top_level() {
        assert!(
            text.contains(&format!("\"{field}\":")),
            "{field} is missing in {text}"
        );
    }
    assert_eq!(value["operator"], json!({"uid": 1000, "user": "ann"}));
    assert_eq!(value["action"], "kill");
    assert_eq!(value["detail"], "runs wild");
    assert_eq!(
        (&value["decided_by"], &value["ended"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(value["bundle"]["serial"], 3);
    for (operation, name) in [
        (Operation::PolicyApply, "policy-apply"),
        (Operation::AuditRecover, "audit-recover"),
        (Operation::Start, "start"),
    ] {
        let (_, value) = written(Record::Operator(&Operator { operation, ..done }));
        assert_eq!(value["action"], name);
    }
}

#[test]
fn the_hash_is_sha256() {
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert_eq!(hash(b""), empty.as_bytes());
}

/// Every key of `value`, dotted. What is in `facts` is named by those who ask.
fn keys(prefix: &str, value: &Value, into: &mut BTreeSet<String>) {
    for (key, value) in value.as_object().into_iter().flatten() {
        let key = format!("{prefix}{key}");
        if key != "facts" {
            keys(&format!("{key}."), value, into);
        }
        into.insert(key);
    }
}

#[test]
fn the_table_has_the_keys_of_lines_in_which_nothing_is_missing() {
    let mut draft = draft("api.supplier.example");
    draft.request = Some(RequestInfo::default());
    draft.bundle = Some("d1".into());
    draft.approval = vec!["owner".into()];
    draft.upstream = Some(UpstreamInfo {
        addr: "192.0.2.1:443".into(),
        tls: "TLSv1.3".into(),
        proxy: "http://proxy.corp:3128".into(),
    });
    let process = Process {
        cwd: Some("/".into()),
        arguments: Some(Vec::new()),
        arguments_bytes: Some(0),
        ..Process::default()
    };
    let meta = meta();
    let context = Context {
        process: Some(&process),
        bundle: Some(&meta),
        ..Context::default()
    };
    let operator = Operator {
        uid: 0,
        user: None,
        operation: Operation::Start,
        agent: None,
        resource: "",
        outcome: Outcome::Allow,
        detail: "",
        bundle: None,
    };
    let mut found = BTreeSet::new();
    for record in [
        Record::Decision(&draft, &context),
        Record::Operator(&operator),
    ] {
        keys("", &written(record).1, &mut found);
    }
    let table = fields().iter().map(|field| field.key.to_owned()).collect();
    assert_eq!(found, table);
    assert_eq!(fields().len(), table.len(), "a key is there twice");
}

#[test]
fn a_line_is_read_as_it_was_written() {
    let mut draft = draft("api.supplier.example");
    draft.action = ActionName::Method("dns".into());
    draft.request = Some(RequestInfo {
        scheme: "https".into(),
        ..RequestInfo::default()
    });
    draft.outcome = Outcome::Error;
    draft.decided_by = DecidedBy::Reach;
    draft.ended = Ended::UpstreamFailed;
    draft.reason = Some(DenyReason::UpstreamTls);
    draft.detail = Some("\"escaped\"".into());
    draft.facts.insert("path".into(), "/".into());
    let context = Context {
        agent: "procurement",
        ..Context::default()
    };
    let (text, _) = written(Record::Decision(&draft, &context));
    let line = Line::parse(text.as_bytes()).unwrap();
    assert_eq!(line.time.as_microsecond(), draft.time_us);
    assert_eq!((line.seq, line.decision), (7, draft.decision));
    assert_eq!(line.agent.as_deref(), Some("procurement"));
    assert_eq!(line.detail.as_deref(), Some("\"escaped\""));
    assert_eq!(line.outcome.known(), Some(draft.outcome));
    let by = line.decided_by.and_then(|by| by.known());
    let ended = line.ended.and_then(|ended| ended.known());
    assert_eq!((by, ended), (Some(draft.decided_by), Some(draft.ended)));
    assert_eq!(line.reason.unwrap().known(), draft.reason);
    assert_eq!(line.facts.as_ref(), Some(&draft.facts));
    assert_eq!(line.process.unwrap().tgid, draft.tgid);
    let line = Line::parse(text.as_bytes()).unwrap();
    assert_eq!(line.action_name(), Some(draft.action.clone()));
    draft.request = None;
    let (text, _) = written(Record::Decision(&draft, &context));
    let line = Line::parse(text.as_bytes()).unwrap();
    assert_eq!(line.action_name(), Some(ActionName::Dns));
}

#[test]
fn lines_of_other_versions_are_read() {
    let earlier = r#"{"time":"2026-01-01T00:00:00.123456Z","seq":1,"prev":"0","decision":"01920000-0000-7000-8000-000000000000","agent":"a","action":"GET","resource":"h","outcome":"allow","policies":[],"reason":null}"#;
    let line = Line::parse(earlier.as_bytes()).unwrap();
    assert!(line.decided_by.is_none() && line.ended.is_none());
    let later = earlier.replace("allow", "postponed");
    let line = Line::parse(later.as_bytes()).unwrap();
    assert_eq!(
        (line.outcome.text(), line.outcome.known()),
        ("postponed", None)
    );
}
