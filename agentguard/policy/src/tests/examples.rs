//! The bundles in `policies/` load and decide as their comments say.

use std::path::Path;

use super::*;
use crate::cases::CaseOutcome;

fn examples() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies")
}

fn example(name: &str) -> Policy {
    compile(&folder(&examples().join(name)))
}

fn id(policy: &Policy, name: &str) -> AgentId {
    *policy
        .agents
        .iter()
        .find(|(_, agent)| agent.agent.name == name)
        .unwrap()
        .0
}

/// What the examples' comments say is in their cases.
#[test]
fn every_example_loads_and_its_cases_hold() {
    let mut count = 0;
    for entry in std::fs::read_dir(examples()).unwrap() {
        let entry = entry.unwrap();
        if !entry.file_type().unwrap().is_dir() {
            continue;
        }
        count += 1;
        let policy = example(entry.file_name().to_str().unwrap());
        for outcome in [CaseOutcome::Allow, CaseOutcome::Deny] {
            let mut expected = policy.cases().iter().map(|case| case.expected.outcome);
            assert!(
                expected.any(|expected| expected == outcome),
                "{entry:?}: no case expects {outcome:?}"
            );
        }
        for one in policy.test() {
            assert!(one.passed, "{}: {:?}", one.case.at, one.answer);
        }
    }
    assert!(count >= 3, "found {count} examples");
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
    let context = Context::default();
    let connect = |action| Input {
        agent,
        host: &host,
        port: 443,
        action,
        context: &context,
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
fn refusals_help_and_hold_no_rule_text() {
    let policy = example("procurement");
    let agent = id(&policy, "procurement");
    let mut asked = Asked::new(
        "POST https://api.supplier.example/v1/orders",
        &[("x-on-behalf-of", "Bearer s3cret")],
    );
    asked.context.body = Body::none();
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
