//! Odd and broken TLS clients: what is well-formed works however it is cut, everything else is refused with one record
//! and never reaches the origin.

use agentguard_tests::bundle::reach;
use agentguard_tests::client::{Subject, python};
use agentguard_tests::{Bundle, Guard, Nginx, Record, Site};

#[test]
fn well_formed_clients_work_however_they_are_cut() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let cases = ["byte-by-byte", "large", "http1", "no-alpn"];
    for case in cases {
        assert_eq!(
            try_case(&site, origin.port, case).0,
            "answer 200",
            "without AgentGuard: {case}"
        );
    }
    let before = origin.hits().len();
    let guard = start(&site, &origin);
    for case in cases {
        let answer = try_case(&guard.agent("probe"), origin.port, case);
        assert_eq!(answer.0, "answer 200", "{case}: {answer:?}");
    }
    assert_eq!(origin.hits().len() - before, cases.len());
    assert_eq!(guard.requests().len(), cases.len());
}

#[test]
fn a_request_for_another_name_is_answered_with_why() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let guard = start(&site, &origin);
    for (case, reason) in [
        ("other-sni", "policy-denied"),
        ("other-host", "protocol-refused"),
        ("other-host-allowed-sni", "protocol-refused"),
    ] {
        let (answer, text, records) = judged(&guard, origin.port, case);
        assert_eq!(answer, "answer 403", "{case}: {text}");
        assert!(text.contains("application/problem+json"), "{case}: {text}");
        assert!(
            text.contains(&format!("urn:agentguard:problem:{reason}")),
            "{case}: {text}"
        );
        let [record] = &records[..] else {
            panic!("{case}: not one record: {records:#?}");
        };
        assert_eq!(
            (record.outcome(), record.reason()),
            ("deny", reason),
            "{case}: {record:?}"
        );
    }
    assert!(origin.hits().is_empty(), "something arrived");
}

#[test]
fn what_is_not_understood_is_closed_and_recorded() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let guard = start(&site, &origin);
    for case in [
        "unknown-alpn",
        "tls-1.1",
        "garbage-record",
        "huge-record",
        "half-hello",
        "fatal-alert",
        "ssh",
    ] {
        let (answer, text, records) = judged(&guard, origin.port, case);
        assert!(
            answer.starts_with("closed") || answer.starts_with("answer none"),
            "{case}: {answer} {text}"
        );
        let [record] = &records[..] else {
            panic!("{case}: not one record: {records:#?}");
        };
        // A hello that cannot be answered is nobody's decision; what is no TLS is refused.
        let judged = (record.outcome(), record.reason());
        assert!(
            [("deny", "protocol-refused"), ("error", "")].contains(&judged),
            "{case}: {record:?}"
        );
        assert_eq!(record.agent(), "probe", "{case}");
        assert!(
            !record.text("/detail").is_empty(),
            "{case}: says why: {record:?}"
        );
    }
    assert!(origin.hits().is_empty(), "something arrived");
    assert_eq!(
        try_case(&guard.agent("probe"), origin.port, "http1").0,
        "answer 200",
        "afterwards"
    );
}

#[test]
fn a_client_that_ends_the_handshake_leaves_one_record() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let guard = start(&site, &origin);
    for case in ["untrusting", "nothing"] {
        let (answer, text, records) = judged(&guard, origin.port, case);
        assert!(!answer.contains("200"), "{case}: {answer} {text}");
        let [record] = &records[..] else {
            panic!("{case}: not one record: {records:#?}");
        };
        assert!(
            ["deny", "error"].contains(&record.outcome()),
            "{case}: {record:?}"
        );
    }
    assert!(origin.hits().is_empty(), "something arrived");
}

fn start<'site>(site: &'site Site, origin: &Nginx) -> Guard<'site> {
    let policy = reach("origin.test", origin.port, &["GET /v1/**"])
        + &reach("second.test", origin.port, &["GET /v1/**"]);
    Guard::start(site, &Bundle::new(1).agent("probe", &policy))
}

/// The first line, and the rest.
fn try_case(subject: &dyn Subject, port: u16, case: &str) -> (String, String) {
    let ran = python(subject, "tls_client.py")
        .args([&port.to_string(), case])
        .run()
        .ok();
    let (first, rest) = ran.stdout.split_once('\n').unwrap_or((&ran.stdout, ""));
    (first.to_owned(), rest.to_owned())
}

/// Tries it as the agent; also the records it left, look-ups of allowed names aside.
fn judged(guard: &Guard, port: u16, case: &str) -> (String, String, Vec<Record>) {
    let before = guard.audit().len();
    let (answer, text) = try_case(&guard.agent("probe"), port, case);
    let records = guard.audit().split_off(before);
    let records = records
        .into_iter()
        .filter(|record| record.action() != "dns")
        .collect();
    (answer, text, records)
}
