//! Tasks narrow what policy permits, and rules read them.

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use super::*;

const AGENT: &str = "[[reach]]\nhost = \"h\"\nallow = [\"ANY /**\"]\n[[reach]]\nhost = \"*.below\"\nallow = [\"ANY /**\"]
[[reach]]\nhost = \"p\"\ntls = \"passthrough\"\nallow = [\"connect\"]\n";

fn task(opened_by: OpenedBy, allow: &[&str], scope: &[&str]) -> Arc<Task> {
    let terms = Terms {
        intent: "refund order 7".into(),
        allow: allow.iter().map(|it| (*it).to_owned()).collect(),
        scope: scope.iter().map(|it| (*it).to_owned()).collect(),
    };
    Arc::new(Task::new(Uuid::from_u128(7), opened_by, &terms).unwrap())
}

fn on(own: OnTask) -> Option<TaskSituation> {
    Some(TaskSituation {
        own,
        ..TaskSituation::default()
    })
}

fn supervisors(allow: &[&str], scope: &[&str]) -> Option<TaskSituation> {
    on(OnTask::In(task(OpenedBy::Supervisor, allow, scope)))
}

/// `allow`, or the reason.
fn decided(
    policy: &Policy,
    agent: AgentId,
    request: &str,
    tasks: Option<TaskSituation>,
) -> &'static str {
    let mut asked = Asked::new(request, &[]);
    asked.context.tasks = tasks;
    asked.context.body = Body::none();
    let passed = Input {
        action: Action::Connect,
        ..asked.input(agent)
    };
    let decision = match request.starts_with("connect ") {
        true => policy.decide(&passed),
        false => policy.decide(&asked.input(agent)),
    };
    match decision {
        Decision::Permit(_) | Decision::Owing(_) => "allow",
        Decision::Deny(denial) => denial.reason.slug(),
    }
}

#[test]
fn a_task_narrows_and_never_permits() {
    let forbid = "@id(\"no\") forbid (principal, action, resource == Host::\"h\") when { context.path == \"/no\" };";
    let sources = bundle(AGENT, forbid);
    let (policy, a) = (compile(&sources), ids(&sources)["a"]);
    let narrow = ["GET h/v1/**", "ANY *.below/x", "connect p"];
    for (request, allow, scope, expected) in [
        ("GET https://h/v1/x", &narrow[..], &[][..], "allow"),
        ("POST https://h/v1/x", &narrow, &[], "outside-task"),
        ("GET https://h/v2/x", &narrow, &[], "outside-task"),
        ("GET https://h:8443/v1/x", &narrow, &[], "policy-denied"),
        ("DELETE https://w.below/x", &narrow, &[], "allow"),
        ("GET https://w.below/y", &narrow, &[], "outside-task"),
        ("connect https://p/", &narrow, &[], "allow"),
        ("connect https://p/", &narrow[..1], &[], "outside-task"),
        ("connect https://p/", &[], &["read"], "outside-task"),
        ("GET https://h/no", &["ANY h/**"], &[], "policy-denied"),
        (
            "GET https://other/",
            &["ANY other/**"],
            &[],
            "policy-denied",
        ),
        ("GET https://h/v1/x", &[], &["read"], "allow"),
        ("POST https://h/v1/x", &[], &["read"], "outside-task"),
        ("POST https://h/v1/x", &[], &["read", "write"], "allow"),
        // Read in two ways, and only one of them is in the task.
        ("GET https://h/v1%2Fx", &narrow, &[], "outside-task"),
        ("POST https://h/v2", &[], &[], "allow"),
    ] {
        let said = decided(&policy, a, request, supervisors(allow, scope));
        assert_eq!(said, expected, "{request} {allow:?} {scope:?}");
    }
    let wrong = on(OnTask::Wrong("a task of another's".into()));
    assert_eq!(
        decided(&policy, a, "GET https://h/v1", wrong),
        "outside-task"
    );
    let (one, other) = (
        task(OpenedBy::Supervisor, &["GET h/one"], &[]),
        task(OpenedBy::Supervisor, &["GET h/other"], &[]),
    );
    let either = || on(OnTask::OneOf(vec![one.clone(), other.clone()]));
    assert_eq!(decided(&policy, a, "GET https://h/one", either()), "allow");
    assert_eq!(
        decided(&policy, a, "GET https://h/other", either()),
        "allow"
    );
    assert_eq!(
        decided(&policy, a, "GET https://h/third", either()),
        "outside-task"
    );
}

#[test]
fn what_an_agent_does_is_known_for_a_task_even_if_no_rule_reads_it() {
    let mut sources = bundle(AGENT, "");
    let host = "[host]\nname = \"h\"\n[[body]]\non = \"POST /jobs\"\nkind = { type = \"string\", at = \"/kind\" }
[[scope]]\nis = \"export\"\non = \"POST /jobs\"\nwhere = { kind = [\"dump\"] }\n";
    sources.files.insert("hosts/h.toml".into(), host.into());
    let (policy, a) = (compile(&sources), ids(&sources)["a"]);
    let mut asked = Asked::new(
        "POST https://h/jobs",
        &[("content-type", "application/json")],
    );
    let without = policy.needs(&asked.input(a)).body.is_some();
    asked.context.tasks = supervisors(&[], &["write"]);
    let needs = policy.needs(&asked.input(a)).body.expect("its scope");
    assert!(!without);
    for (body, expected) in [
        (r#"{"kind":"sum"}"#, None),
        (r#"{"kind":"dump"}"#, Some("outside-task")),
        ("{", Some("body-unreadable")),
    ] {
        let read = needs.block.read(&asked.headers, body.as_bytes(), 4096);
        asked.context.body = read;
        let said = answer(&policy, &asked.input(a)).err();
        assert_eq!(said.as_ref().map(|it| it[0].as_str()), expected, "{body}");
    }
    asked.context.body = Body::Unread;
    let unread = answer(&policy, &asked.input(a)).unwrap_err();
    assert_eq!(unread[0], "body-unreadable", "what has not been gathered");
}

#[test]
fn an_agent_that_has_to_be_on_a_supervisors_task_does_nothing_without() {
    let mut sources = bundle(AGENT, "");
    let file = sources.files.get_mut("agents/a.toml").unwrap();
    *file = file.replace("risk =", "tasks = \"required\"\nrisk =");
    let child =
        format!("[agent]\nname = \"b\"\nowner = \"o@example.com\"\nparent = \"a\"\n{AGENT}");
    sources.files.insert("agents/b.toml".into(), child);
    let (policy, ids) = (compile(&sources), ids(&sources));
    let (a, b) = (ids["a"], ids["b"]);
    let get = "GET https://h/x";
    assert_eq!(decided(&policy, a, get, None), "outside-task");
    assert_eq!(decided(&policy, a, get, on(OnTask::None)), "outside-task");
    let own = on(OnTask::In(task(OpenedBy::Agent, &[], &[])));
    assert_eq!(decided(&policy, a, get, own), "outside-task");
    assert_eq!(decided(&policy, a, get, supervisors(&[], &[])), "allow");

    // Who acts for it does no more than it may.
    let above = |allow: &[&str]| {
        Some(TaskSituation {
            own: OnTask::None,
            above: BTreeMap::from([(a, vec![task(OpenedBy::Supervisor, allow, &[])])]),
        })
    };
    let exceeded = "delegation-exceeded";
    assert_eq!(decided(&policy, b, get, None), exceeded);
    assert_eq!(decided(&policy, b, get, above(&["GET h/y"])), exceeded);
    assert_eq!(decided(&policy, b, get, above(&["GET h/x"])), "allow");
}

#[test]
fn rules_read_the_task() {
    let rules = "@id(\"refunds\") @reason(\"outside-task\") forbid (principal, action, resource == Host::\"h\")
when { context.path == \"/refunds\" }
unless { context.task.open && context.task.opened_by == \"supervisor\" && context.task.intent like \"refund *\"
  && context.task.id != \"\" };";
    let sources = bundle(AGENT, rules);
    let (policy, a) = (compile(&sources), ids(&sources)["a"]);
    let get = "GET https://h/refunds";
    assert_eq!(decided(&policy, a, get, supervisors(&[], &[])), "allow");
    assert_eq!(decided(&policy, a, get, on(OnTask::None)), "outside-task");
    let own = on(OnTask::In(task(OpenedBy::Agent, &[], &[])));
    assert_eq!(decided(&policy, a, get, own), "outside-task");
    // Nobody has gathered it: the rule cannot be evaluated.
    assert_eq!(decided(&policy, a, get, None), "policy-denied");
}

#[test]
fn terms_that_cannot_be_are_refused() {
    let terms = |intent: &str, allow: &[&str], scope: &[&str]| Terms {
        intent: intent.into(),
        allow: allow.iter().map(|it| (*it).to_owned()).collect(),
        scope: scope.iter().map(|it| (*it).to_owned()).collect(),
    };
    let long = "x".repeat(1025);
    let many = ["GET h/x"; 65];
    for (terms, expected) in [
        (terms(" ", &[], &[]), "needs an intent"),
        (terms(&long, &[], &[]), "longer than 1024 bytes"),
        (terms("a\nb", &[], &[]), "one line"),
        (terms("x", &["GET /x"], &[]), "host name is empty"),
        (terms("x", &["GET h"], &[]), "is not `METHOD host/path`"),
        (terms("x", &["GET"], &[]), "is not `METHOD host/path`"),
        (
            terms("x", &["connect h/x"], &[]),
            "is not `METHOD host/path`",
        ),
        (terms("x", &["get h/x"], &[]), "is not an HTTP method"),
        (terms("x", &["GET h/x?y"], &[]), "`?` or `#`"),
        (terms("x", &["GET a*b/x"], &[]), "wildcard"),
        (
            terms("x", &["ANY agentguard.internal/**"], &[]),
            "AgentGuard's own",
        ),
        (terms("x", &many, &[]), "more than 64 entries"),
        (terms("x", &[], &["red"]), "`red` is no scope"),
    ] {
        let said = Task::new(Uuid::nil(), OpenedBy::Agent, &terms).unwrap_err();
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn a_limit_per_task_counts_each_of_a_supervisors_and_all_else_together() {
    let rules = r#"@id("l") @limit("5/hour per task") forbid (principal, action, resource)
        unless { context.limits.contains("l") };"#;
    let sources = bundle(AGENT, rules);
    let (policy, agent) = (compile(&sources), ids(&sources)["a"]);
    let counted = |own: OnTask| {
        let mut asked = Asked::new("GET https://h/x", &[]);
        asked.context.tasks = on(own);
        match policy.decide(&asked.input(agent)) {
            Decision::Owing(owing) => owing.charges()[0].counter.task.clone(),
            other => panic!("{other:?}"),
        }
    };
    let its = OnTask::In(task(OpenedBy::Supervisor, &[], &[]));
    assert_eq!(counted(its), Some(Uuid::from_u128(7).to_string()));
    let own = OnTask::In(task(OpenedBy::Agent, &[], &[]));
    assert_eq!((counted(own), counted(OnTask::None)), (None, None));
}

#[test]
fn an_observed_agent_is_held_to_a_supervisors_task_all_the_same() {
    let forbid = "@id(\"no\") forbid (principal, action, resource == Host::\"h\") when { context.path == \"/no\" };";
    let sources = bundle(&format!("mode = \"observe\"\n{AGENT}"), forbid);
    let (policy, a) = (compile(&sources), ids(&sources)["a"]);
    for (request, allow, scope, expected) in [
        (
            "POST https://evil/",
            &["GET h/v1/**"][..],
            &[][..],
            "outside-task",
        ),
        ("POST https://evil/", &["POST evil/"], &[], "allow"),
        ("GET https://h/no", &["GET h/v1/**"], &[], "outside-task"),
        ("GET https://h/no", &["GET h/**"], &[], "allow"),
        ("GET https://h/no", &[], &["read"], "allow"),
        ("GET https://h/no", &[], &["write"], "outside-task"),
        // What requests do there is not known.
        ("GET https://evil/", &[], &["read"], "outside-task"),
        (
            "connect https://evil/",
            &["GET h/v1/**"],
            &[],
            "outside-task",
        ),
        ("GET https://evil/", &[], &[], "allow"),
        // As which paths that server reads it cannot be told.
        (
            "POST https://evil/v1/%252e%252e/x",
            &["POST evil/v1/**"],
            &[],
            "outside-task",
        ),
        (
            "GET https://h/%252e%252e",
            &["GET h/**"],
            &[],
            "protocol-refused",
        ),
    ] {
        let said = decided(&policy, a, request, supervisors(allow, scope));
        assert_eq!(said, expected, "{request} {allow:?} {scope:?}");
    }
    let wrong = on(OnTask::Wrong("a task of another's".into()));
    assert_eq!(
        decided(&policy, a, "GET https://evil/", wrong),
        "outside-task"
    );
    assert_eq!(decided(&policy, a, "GET https://evil/", None), "allow");
}

#[test]
fn what_is_permitted_ends_with_the_tasks_that_cover_it() {
    let child =
        "[agent]\nname = \"b\"\nowner = \"o@example.com\"\nrisk = \"low\"\nparent = \"a\"\n";
    let mut sources = bundle(AGENT, "");
    sources
        .files
        .insert("agents/b.toml".into(), format!("{child}{AGENT}"));
    let (policy, ids) = (compile(&sources), ids(&sources));
    let of = |number: u128, allow: &str| {
        let terms = Terms {
            intent: "refund order 7".into(),
            allow: vec![allow.into()],
            ..Terms::default()
        };
        Arc::new(Task::new(Uuid::from_u128(number), OpenedBy::Supervisor, &terms).unwrap())
    };
    let mut asked = Asked::new("GET https://h/one", &[]);
    asked.context.tasks = Some(TaskSituation {
        own: OnTask::OneOf(vec![
            of(1, "GET h/one"),
            of(2, "GET h/two"),
            of(3, "ANY h/**"),
        ]),
        above: [(ids["a"], vec![of(4, "ANY h/**"), of(5, "ANY p/**")])].into(),
    });
    let Decision::Permit(permit) = policy.decide(&asked.input(ids["b"])) else {
        panic!("refused");
    };
    let covered = permit.covered().iter().map(|it| {
        let tasks: Vec<_> = it.tasks.iter().map(Uuid::as_u128).collect();
        (it.by, tasks)
    });
    assert_eq!(
        covered.collect::<Vec<_>>(),
        [(ids["b"], vec![1, 3]), (ids["a"], vec![4])]
    );
}
