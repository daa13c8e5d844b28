//! The bundles in `policies/` load and decide as their comments say.

use std::path::Path;

use super::*;
use crate::policy::store::{Trust, read};

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies")
}

fn example(name: &str) -> Policy {
    compile(&read(&folder().join(name), Trust::Anyone).unwrap())
}

fn id(policy: &Policy, name: &str) -> AgentId {
    *policy
        .agents
        .iter()
        .find(|(_, agent)| agent.agent.name == name)
        .unwrap()
        .0
}

#[test]
fn every_example_loads() {
    let mut count = 0;
    for entry in std::fs::read_dir(folder()).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            example(entry.file_name().to_str().unwrap());
            count += 1;
        }
    }
    assert!(count >= 3, "found {count} examples");
}

#[test]
fn procurement_decides_as_documented() {
    let policy = example("procurement");
    type Headers = &'static [(&'static str, &'static str)];
    type Ids = &'static [&'static str];
    let cases: [(&str, &str, Headers, Result<Ids, Ids>); 14] = [
        (
            "procurement",
            "GET https://api.supplier.example/v1/catalog/screws?page=2",
            &[],
            Ok(&["procurement/agents/procurement.toml:16:10"]),
        ),
        (
            "procurement",
            "POST https://api.supplier.example/v1/catalog/screws",
            &[],
            Err(&["policy-denied"]),
        ),
        (
            "procurement",
            "POST https://api.supplier.example/v1/orders",
            &[],
            Ok(&["orders-place"]),
        ),
        (
            "procurement",
            "POST https://api.supplier.example/v1/orders/",
            &[],
            Err(&["policy-denied"]),
        ),
        (
            "procurement",
            "POST https://api.supplier.example/v1/x/../orders",
            &[],
            Ok(&["orders-place"]),
        ),
        (
            "procurement",
            "POST https://api.supplier.example/v1/orders",
            &[("X-On-Behalf-Of", "mary")],
            Err(&["policy-denied", "orders-no-impersonation"]),
        ),
        (
            "procurement",
            "POST https://api.supplier.example/v1/orders",
            &[("X-On-Behalf-Of", "mary"), ("X-On-Behalf-Of", "john")],
            Err(&["body-ambiguous"]),
        ),
        (
            "procurement",
            "GET https://api.supplier.example/v1/orders/7",
            &[],
            Ok(&["orders-read"]),
        ),
        (
            "procurement",
            "GET https://api.supplier.example/v1/orders/7%2F8",
            &[],
            Err(&["policy-denied"]),
        ),
        (
            "procurement",
            "GET https://api.supplier.example:8443/v1/catalog/x",
            &[],
            Err(&["policy-denied"]),
        ),
        (
            "procurement",
            "GET https://eu.billing.supplier.example/invoices/7?page=1",
            &[],
            Ok(&["invoices-read"]),
        ),
        (
            "procurement",
            "GET https://eu.billing.supplier.example/invoices/bank-account?page=1",
            &[],
            Err(&["policy-denied", "bank-details-apart"]),
        ),
        (
            "invoice-auditor",
            "GET https://eu.billing.supplier.example/invoices/bank-account?page=1",
            &[],
            Ok(&["invoices-read"]),
        ),
        (
            "invoice-auditor",
            "POST https://api.supplier.example/v1/orders",
            &[],
            Err(&["policy-denied"]),
        ),
    ];
    for (agent, line, headers, expected) in cases {
        let asked = Asked::new(line, headers);
        let owned = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
        let expected = expected.map(owned).map_err(owned);
        assert_eq!(
            answer(&policy, &asked.input(id(&policy, agent))),
            expected,
            "{agent}: {line}"
        );
    }
}

#[test]
fn procurement_reaches_what_its_file_says() {
    let policy = example("procurement");
    let agent = id(&policy, "procurement");
    let reach = |host: &str, port| policy.reach(agent, &HostName::parse(host).unwrap(), port);
    assert_eq!(reach("api.supplier.example", 443), Some(TlsMode::Terminate));
    assert_eq!(reach("api.supplier.example", 80), None);
    assert_eq!(
        reach("telemetry.supplier.example", 443),
        Some(TlsMode::Passthrough)
    );
    assert_eq!(
        reach("a.b.billing.supplier.example", 443),
        Some(TlsMode::Terminate)
    );
    assert_eq!(reach("billing.supplier.example", 443), None);
    assert!(policy.may_resolve(
        agent,
        &HostName::parse("x.billing.supplier.example").unwrap()
    ));
    assert!(!policy.may_resolve(agent, &HostName::parse("supplier.example").unwrap()));
    assert_eq!(
        policy.reach(
            AgentId(77),
            &HostName::parse("api.supplier.example").unwrap(),
            443
        ),
        None
    );

    let host = HostName::parse("telemetry.supplier.example").unwrap();
    let connect = |action| Input {
        agent,
        host: &host,
        port: 443,
        action,
    };
    assert!(answer(&policy, &connect(Action::Connect)).is_ok());
    let request = Asked::new("GET https://telemetry.supplier.example/", &[]);
    assert_eq!(
        answer(&policy, &request.input(agent)),
        Err(vec!["policy-denied".into()])
    );
    let known = policy.agent(agent).unwrap();
    assert_eq!(known.kernel.len(), 2);
    assert_eq!(known.identify.len(), 2);
    assert!(known.has_hosts && !known.keep_privileges);
    assert_eq!(known.start_by, [Starter::Group("procurement-ops".into())]);
}

#[test]
fn coding_agents_push_to_forks_only() {
    let policy = example("coding");
    let agent = id(&policy, "coder");
    let cases = [
        (
            "GET https://git.example.com/acme/site.git/info/refs?service=git-upload-pack",
            true,
        ),
        (
            "POST https://git.example.com/acme/site.git/git-upload-pack",
            true,
        ),
        (
            "GET https://git.example.com/acme/site.git/info/refs?service=git-receive-pack",
            false,
        ),
        (
            "POST https://git.example.com/acme/site.git/git-receive-pack",
            false,
        ),
        (
            "GET https://git.example.com/coder-forks/site.git/info/refs?service=git-receive-pack",
            true,
        ),
        (
            "POST https://git.example.com/coder-forks/site.git/git-receive-pack",
            true,
        ),
        ("GET https://index.python.example/simple/requests/", true),
        ("GET https://registry.node.example/@types%2fnode", true),
        ("DELETE https://registry.node.example/left-pad", false),
    ];
    for (line, expected) in cases {
        let asked = Asked::new(line, &[]);
        assert_eq!(
            answer(&policy, &asked.input(agent)).is_ok(),
            expected,
            "{line}"
        );
    }
}

#[test]
fn refusals_help_and_hold_no_rule_text() {
    let policy = example("procurement");
    let agent = id(&policy, "procurement");
    let asked = Asked::new(
        "POST https://api.supplier.example/v1/orders",
        &[("x-on-behalf-of", "Bearer s3cret")],
    );
    let Decision::Deny(denial) = policy.decide(&asked.input(agent)) else {
        panic!("permitted");
    };
    assert!(
        denial
            .detail
            .contains("POST `/v1/orders` at `api.supplier.example`"),
        "{}",
        denial.detail
    );
    assert!(!denial.detail.contains("s3cret") && !denial.detail.contains("invoice-auditor"));
    assert_eq!(denial.facts["header.x-on-behalf-of"], "Bearer s3cret");
    assert_eq!(denial.facts["path"], "/v1/orders");
}
