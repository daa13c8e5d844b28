//! Tasks that agents open by themselves, and what else they may ask AgentGuard.

use agentguard_tests::bundle::reach;
use agentguard_tests::client::Subject as _;
use agentguard_tests::{Bundle, Guard, Nginx, Record, Site};
use serde_json::{Value, json};

use crate::tasks::{curl, end, named, start};

const OWN: &str = "https://agentguard.internal";
const OUTSIDE: &str = "urn:agentguard:problem:outside-task";

fn world() -> (Site, Nginx) {
    let site = Site::new();
    let origin = Nginx::start(&site);
    (site, origin)
}

/// Two agents that may have no task open, one that must, and a rule that wants the owner's approval.
fn bundle(origin: &Nginx) -> Bundle {
    let policy = reach("origin.test", origin.port, &["ANY /v1/**"]);
    let held = format!("tasks = \"required\"\n\n{policy}");
    let rules = format!(
        "@id(\"big\") @approve(\"owner\") forbid (principal, action, resource == Host::\"{}\")
when {{ context.path == \"/v1/big\" }} unless {{ context.approvals.contains(\"owner\") }};",
        origin.host()
    );
    Bundle::new(1)
        .agent("probe", &policy)
        .agent("other", &policy)
        .agent("held", &held)
        .rules("big", &rules)
}

/// Asks AgentGuard itself as `probe`; the status, and the body.
fn ask(guard: &Guard<'_>, method: &str, target: &str, body: &str) -> (u16, Value) {
    let mut client = guard.agent("probe").client("curl".as_ref()).args([
        "--silent",
        "--write-out",
        "\n%{http_code}",
        "-X",
        method,
    ]);
    if !body.is_empty() {
        client = client.args(["--data-binary", body]);
    }
    let said = client.arg(target).run().ok().stdout;
    let (body, status) = said.rsplit_once('\n').unwrap_or(("", &said));
    let status = status.parse().expect("a status");
    (status, serde_json::from_str(body).unwrap_or_default())
}

fn tasks() -> String {
    format!("{OWN}/v1/tasks")
}

/// Opens a task of `probe`'s own that allows to read orders; as it was answered.
fn open(guard: &Guard<'_>, origin: &Nginx) -> Value {
    let body = format!(
        r#"{{"intent":"sort the inbox","allow":["GET {}/v1/orders/*"],"scope":["read"],"expires_in_s":600}}"#,
        origin.host()
    );
    let (status, opened) = ask(guard, "POST", &tasks(), &body);
    assert_eq!(status, 201, "{opened}");
    opened
}

fn id(task: &Value) -> &str {
    task["id"].as_str().expect("an id")
}

#[test]
fn a_task_of_ones_own_narrows_what_one_may() {
    let (site, origin) = world();
    let guard = Guard::start(&site, &bundle(&origin));
    let opened = open(&guard, &origin);
    assert_eq!(opened["opened_by"], "agent");
    assert_eq!(curl(&guard, &origin.url("/v1/orders/7"), &[]), "200");
    let rest = origin.url("/v1/rest");
    assert_eq!(curl(&guard, &rest, &[]), "403 outside-task");
    let ended = ask(
        &guard,
        "DELETE",
        &format!("{}/{}", tasks(), id(&opened)),
        "",
    )
    .0;
    assert_eq!(ended, 204);
    assert_eq!(curl(&guard, &rest, &[]), "200");
}

#[test]
fn a_task_of_ones_own_is_listed_and_recorded() {
    let (site, origin) = world();
    let guard = Guard::start(&site, &bundle(&origin));
    let opened = open(&guard, &origin);
    let listed = guard.cli(["task", "list", "--json"]).ok().json();
    assert_eq!(listed[0]["id"], opened["id"], "{listed}");
    let (status, own) = ask(&guard, "GET", "http://agentguard.internal/v1/tasks", "");
    assert_eq!((status, &own["tasks"][0]), (200, &opened), "{own}");

    let records = guard.requests();
    let asked: Vec<&Record> = records
        .iter()
        .filter(|it| it.resource() == "agentguard.internal")
        .collect();
    assert_eq!(asked[0].text("/task"), id(&opened));
    assert_eq!(asked[0].text("/intent"), "sort the inbox");
    assert_eq!((asked[0].action(), asked[0].outcome()), ("POST", "allow"));
    assert_eq!(asked[0].number("/request/status"), 201);
}

/// By an unchanged client.
#[test]
fn another_agents_task_is_not_there() {
    let (site, origin) = world();
    let guard = Guard::start(&site, &bundle(&origin));
    let opened = open(&guard, &origin);
    let (id, tasks, rest) = (id(&opened), tasks(), origin.url("/v1/rest"));
    let code = format!(
        "import requests
for path in ('tasks', 'permissions'):
    print(requests.get('{OWN}/v1/' + path).json().get('tasks'), flush=True)
print(requests.delete('{tasks}/{id}').status_code)
print(requests.get('{rest}', headers={{'AgentGuard-Task': '{id}'}}).json()['type'])"
    );
    let said = guard.agent("other").python_code(&code).ok().stdout;
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines, ["[]", "None", "404", OUTSIDE], "{said}");
}

#[test]
fn what_one_may_is_answered_as_it_would_be_decided_and_nothing_is_sent() {
    let (site, origin) = world();
    let guard = Guard::start(&site, &bundle(&origin));
    let (orders, rest) = (origin.url("/v1/orders/7"), origin.url("/v1/rest"));
    let opened = open(&guard, &origin);
    let may = |method: &str, url: &str| {
        let body = json!({ "method": method, "url": url }).to_string();
        let (status, said) = ask(&guard, "POST", &format!("{OWN}/v1/may"), &body);
        assert_eq!(status, 200, "{said}");
        let reason = said["reason"].as_str().unwrap_or("-");
        let decision = said["decision"].as_str().expect("a decision");
        format!("{decision} {reason}")
    };
    let before = origin.hits().len();
    assert_eq!(may("GET", &orders), "allow -");
    assert_eq!(may("GET", &rest), "deny outside-task");
    assert_eq!(may("GET", "https://elsewhere.test/"), "deny policy-denied");
    ask(
        &guard,
        "DELETE",
        &format!("{}/{}", tasks(), id(&opened)),
        "",
    );
    assert_eq!(may("GET", &rest), "allow -");
    let big = may("GET", &origin.url("/v1/big"));
    assert_eq!(big, "approval-required approval-required");
    assert_eq!(origin.hits().len(), before, "nothing was asked for");
}

#[test]
fn permissions_name_hosts_and_rules() {
    let (site, origin) = world();
    let guard = Guard::start(&site, &bundle(&origin));
    let (_, permissions) = ask(&guard, "GET", &format!("{OWN}/v1/permissions"), "");
    assert_eq!(permissions["agent"], "probe");
    let host = &permissions["hosts"][0];
    assert_eq!(host["host"], origin.host());
    assert_eq!(host["allow"], json!(["ANY /v1/**"]));
    assert_eq!(host["rules"][0]["id"], "big");
    assert_eq!(host["rules"][0]["approval"], "owner");
    assert_eq!(permissions["exec"], Value::Null);
}

#[test]
fn a_malformed_question_is_refused() {
    let (site, origin) = world();
    let guard = Guard::start(&site, &bundle(&origin));
    let long = format!(r#"{{"intent":"{}"}}"#, "x".repeat(70_000));
    for (method, path, body, expected) in [
        ("POST", "/v1/tasks", "{", 400),
        ("POST", "/v1/tasks", r#"{"intent":"a","intent":"b"}"#, 400),
        ("POST", "/v1/tasks", r#"{"intent":"a","more":1}"#, 400),
        ("POST", "/v1/tasks", r#"{"intent":" "}"#, 400),
        (
            "POST",
            "/v1/tasks",
            r#"{"intent":"a","expires_in_s":0}"#,
            400,
        ),
        (
            "POST",
            "/v1/tasks",
            r#"{"intent":"a","allow":["GET"]}"#,
            400,
        ),
        ("POST", "/v1/tasks", long.as_str(), 413),
        (
            "POST",
            "/v1/may",
            r#"{"method":"GET","url":"ftp://x/"}"#,
            400,
        ),
        ("DELETE", "/v1/tasks/x", "", 404),
        ("GET", "/v1/other", "", 404),
    ] {
        let (status, problem) = ask(&guard, method, &format!("{OWN}{path}"), body);
        assert_eq!(status, expected, "{method} {path} {body:.60}: {problem}");
        assert_eq!(problem["agent"], "probe", "{problem}");
    }
}

#[test]
fn a_page_in_a_browser_of_the_agents_is_not_the_agent() {
    let (site, origin) = world();
    let guard = Guard::start(&site, &bundle(&origin));
    for header in ["Origin: https://evil.example", "Sec-Fetch-Site: cross-site"] {
        let more = ["-H", header, "-H", "Content-Type: text/plain"];
        let more = [&more[..], &["--data-binary", r#"{"intent":"x"}"#]].concat();
        let said = curl(&guard, &tasks(), &more);
        assert_eq!(said, "403 protocol-refused", "{header}");
    }
}

#[test]
fn a_supervisors_task_is_not_the_agents_to_end_and_leaves_no_room_for_its_own() {
    let (site, origin) = world();
    let guard = Guard::start(&site, &bundle(&origin));
    let tasks = tasks();
    let own = ask(&guard, "POST", &tasks, r#"{"intent":"by myself"}"#).1;
    let supervised = start(&guard, &[]);
    let rest = origin.url("/v1/rest");
    assert_eq!(named(&guard, &rest, id(&own)), "403 outside-task");
    let (status, refused) = ask(&guard, "POST", &tasks, r#"{"intent":"by myself"}"#);
    assert_eq!((status, &refused["type"]), (403, &OUTSIDE.into()));
    let (status, _) = ask(&guard, "DELETE", &format!("{tasks}/{supervised}"), "");
    assert_eq!(status, 403);
    end(&guard, &supervised);
}

#[test]
fn where_a_task_is_required_the_agent_opens_none() {
    let (site, origin) = world();
    let guard = Guard::start(&site, &bundle(&origin));
    let code = format!(
        "import requests\nprint(requests.post('{}', json={{'intent': 'x'}}).status_code)",
        tasks()
    );
    assert_eq!(guard.agent("held").python_code(&code).ok().stdout, "403");
}

#[test]
fn who_is_no_agent_does_not_find_it() {
    let (site, origin) = world();
    let _guard = Guard::start(&site, &bundle(&origin));
    let look = "import socket\ntry: print(socket.getaddrinfo('agentguard.internal', 443))\nexcept OSError: print('nobody')";
    let stranger = site.client(&agentguard_tests::tools::python());
    assert_eq!(stranger.args(["-c", look]).run().ok().stdout, "nobody");
}
