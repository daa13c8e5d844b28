//! Limits and budgets on real traffic: never more than they say, whatever comes at once and whatever dies in between.

use std::fs;

use agentguard_tests::client::{Subject as _, python};
use agentguard_tests::process::{await_end, pid};
use agentguard_tests::tools::PATIENCE;
use agentguard_tests::{Bundle, Guard, Ran, Server, Site};
use nix::sys::signal::{Signal, kill};

/// An agent, one that acts for it, and a host whose orders are limited; at `dead` nobody listens.
fn bundle(port: u16, dead: u16, rules: &str) -> Bundle {
    let hosts = [port, dead].map(|port| {
        format!(
            "[host]\nname = \"origin.test:{port}\"\n[[body]]\non = \"POST /v1/orders\"
amount = {{ type = \"decimal\", at = \"/amount\" }}\norder = {{ type = \"string\", at = \"/order\" }}\n"
        )
    });
    let reach = |port| {
        format!(
            "[[reach]]\nhost = \"origin.test:{port}\"\nallow = [\"POST /v1/**\", \"GET /v1/**\"]\n"
        )
    };
    let reach = reach(port) + &reach(dead);
    Bundle::new(1)
        .file(
            "bundle.toml",
            "name = \"test\"\nserial = 1\n[time]\nzone = \"UTC\"\n",
        )
        .file("hosts/open.toml", hosts[0].as_str())
        .file("hosts/dead.toml", hosts[1].as_str())
        .agent("probe", &reach)
        .agent("child", &format!("parent = \"probe\"\n{reach}"))
        .rules("limits", rules)
}

const RATE: &str = r#"@id("rate") @limit("20/hour")
forbid (principal == Agent::"probe", action == Action::"POST", resource)
unless { context.limits.contains("rate") };"#;

const SPEND: &str = r#"@id("spend") @budget("10.00/month of amount key body.order")
forbid (principal == Agent::"probe", action == Action::"POST", resource)
when { context.path == "/v1/orders" }
unless { context.limits.contains("spend") };"#;

/// A port that nobody listens on for as long as the socket is there.
fn dead_port() -> (std::net::UdpSocket, u16) {
    let held = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let port = held.local_addr().expect("bound").port();
    (held, port)
}

/// The status and the refusal's slug of an order.
fn order(guard: &Guard<'_>, agent: &str, port: u16, query: &str, body: &str) -> (String, String) {
    let url = format!("https://origin.test:{port}/v1/orders{query}");
    let ran = curl(guard, agent, &url, Some(body));
    let said = ran.stdout;
    let (answer, status) = said.rsplit_once('\n').unwrap_or(("", ""));
    let answer: serde_json::Value = serde_json::from_str(answer).unwrap_or_default();
    let slug = answer["type"].as_str().unwrap_or_default();
    let slug = slug.trim_start_matches("urn:agentguard:problem:");
    (status.to_owned(), slug.to_owned())
}

fn curl(guard: &Guard<'_>, agent: &str, url: &str, body: Option<&str>) -> Ran {
    let client = guard.agent(agent).client("curl".as_ref());
    let client = client.args([
        "--silent",
        "--max-time",
        "60",
        "--write-out",
        "\n%{http_code}",
    ]);
    let client = match body {
        Some(body) => client.args(["--json", body]),
        None => client,
    };
    client.arg(url).run()
}

fn shown(guard: &Guard<'_>, agent: &str) -> serde_json::Value {
    let shown = guard.cli(["agents", "show", agent, "--json"]).ok().json();
    shown["limits"].clone()
}

/// How many requests have arrived at the server.
fn hits(guard: &Guard<'_>, server: &mut Server) -> usize {
    // What comes after everything else, from somebody who is no agent.
    let url = format!("https://origin.test:{}/end", server.port);
    let curl = guard.site().client("curl".as_ref());
    curl.args(["--silent", "--fail", &url]).run().ok();
    let server = server.talk();
    server.line(|line| line.contains(" /end "));
    let heard = server.heard();
    let hits = heard.lines().filter(|line| line.starts_with("hit "));
    hits.filter(|hit| !hit.contains(" /end ")).count()
}

#[test]
fn what_comes_at_once_over_many_connections_passes_as_often_as_allowed() {
    let site = Site::new();
    let mut server = Server::start(&site, "recorder.py", &[]);
    let (_held, dead) = dead_port();
    let guard = Guard::start(&site, &bundle(server.port, dead, RATE));
    let code = format!(
        r#"
import asyncio, collections, httpx, json
URL = "https://origin.test:{port}/v1/x"
async def main():
    async with httpx.AsyncClient(http2=True, timeout=60) as h2, httpx.AsyncClient(timeout=60) as h1:
        answers = await asyncio.gather(*(client.post(URL, json={{}}) for client in (h1, h2) for _ in range(20)))
    print(sorted(collections.Counter(a.http_version for a in answers).items()))
    refused = [a for a in answers if a.status_code == 403]
    print(len(answers) - len(refused), len(refused))
    print({{a.json()["type"] for a in refused}}, {{tuple(a.json()["policies"]) for a in refused}})
    print(refused[0].json()["detail"])
asyncio.run(main())
"#,
        port = server.port
    );
    let said = guard.agent("probe").python_code(&code).ok().stdout;
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "[('HTTP/1.1', 20), ('HTTP/2', 20)]");
    assert_eq!(lines[1], "20 20");
    assert_eq!(
        lines[2],
        "{'urn:agentguard:problem:rate-limited'} {('rate',)}"
    );
    assert!(lines[3].contains("used up until 20"), "{said}");
    assert_eq!(hits(&guard, &mut server), 20);
    let records = guard.requests();
    let refused: Vec<_> = records.iter().filter(|it| it.outcome() == "deny").collect();
    assert_eq!((records.len(), refused.len()), (40, 20));
    for record in refused {
        assert_eq!(record.reason(), "rate-limited");
        assert_eq!(record.text("/facts/limit.rate"), "20 of 20/hour");
    }
    let mut used: Vec<&str> = records
        .iter()
        .filter(|it| it.outcome() == "allow")
        .map(|it| it.text("/facts/limit.rate"))
        .collect();
    used.sort_unstable();
    used.dedup();
    assert_eq!(used.len(), 20, "each took its own: {used:?}");
    let limits = shown(&guard, "probe");
    assert_eq!(limits[0]["used"], "20", "{limits}");
    assert_eq!(limits[0]["limit"], "20/hour");
    // What another method asks is not counted.
    let url = format!("https://origin.test:{}/v1/x", server.port);
    assert!(curl(&guard, "probe", &url, None).stdout.ends_with("201"));
}

#[test]
fn a_budget_is_exact_kept_and_given_back_when_upstream_refuses() {
    let site = Site::new();
    let mut server = Server::start(&site, "recorder.py", &[]);
    let (_held, dead) = dead_port();
    let mut guard = Guard::start(&site, &bundle(server.port, dead, SPEND));
    let port = server.port;
    let done = ("201".to_owned(), String::new());
    let full = ("403".to_owned(), "rate-limited".to_owned());
    let ask = |guard: &Guard<'_>, query: &str, body: &str| order(guard, "probe", port, query, body);

    // An amount that nobody can add up.
    let denied = ("403".to_owned(), "policy-denied".to_owned());
    assert_eq!(ask(&guard, "", r#"{"amount": -5}"#), denied);
    assert_eq!(ask(&guard, "", "{}"), denied);
    // What upstream refuses, and what never reaches it, is given back; what it fails at may have been done.
    assert_eq!(ask(&guard, "?status=404", r#"{"amount": 9}"#).0, "404");
    let unreachable = order(&guard, "probe", dead, "", r#"{"amount": 9}"#);
    assert_eq!(unreachable.1, "upstream-unreachable");
    assert_eq!(shown(&guard, "probe"), serde_json::json!([]));
    assert_eq!(ask(&guard, "?status=500", r#"{"amount": 1.7}"#).0, "500");
    // 1.70 + 0.10 + 0.20 + 8.00, and not a ten-thousandth more.
    for amount in ["0.1", "0.2", "8"] {
        let body = format!("{{\"amount\": {amount}, \"order\": \"{amount}\"}}");
        assert_eq!(ask(&guard, "", &body), done, "{amount}");
    }
    assert_eq!(ask(&guard, "", r#"{"amount": 0.0001}"#), full);
    assert_eq!(shown(&guard, "probe")[0]["used"], "10.00");
    // A retry is the same request; another amount is another, and so is the same amount for something else.
    assert_eq!(ask(&guard, "", r#"{"amount": 8, "order": "8"}"#), done);
    assert_eq!(ask(&guard, "", r#"{"amount": 0.1, "order": "8"}"#), full);
    let other = r#"{"amount": 8, "order": "8", "article": "gold"}"#;
    assert_eq!(ask(&guard, "", other), full);
    assert_eq!(
        ask(&guard, "?to=another", r#"{"amount": 8, "order": "8"}"#),
        full
    );
    // Who acts for the agent spends from its budget too.
    let child = order(&guard, "child", port, "", r#"{"amount": 1}"#);
    assert_eq!(child, full);

    guard.crash();
    guard.restart();
    assert_eq!(shown(&guard, "probe")[0]["used"], "10.00");
    assert_eq!(ask(&guard, "", r#"{"amount": 0.0001}"#), full);
    assert_eq!(ask(&guard, "", r#"{"amount": 8, "order": "8"}"#), done);
    let hits = hits(&guard, &mut server);
    assert_eq!(hits, 7, "404, 500, three orders and two retries");
}

#[test]
fn what_was_under_way_when_the_forwarder_died_stays_spent() {
    let site = Site::new();
    let mut server = Server::start(&site, "recorder.py", &[]);
    let (_held, dead) = dead_port();
    let mut guard = Guard::start(&site, &bundle(server.port, dead, SPEND));
    let url = format!("https://origin.test:{}/v1/orders?status=never", server.port);
    let waiting = guard.agent("probe").client("curl".as_ref());
    let waiting = waiting
        .args(["--silent", "--json", r#"{"amount": 7}"#, &url])
        .spawn();
    server.talk().line(|line| line.starts_with("hit POST"));
    let forwarder = guard.forwarder_tgid();
    kill(pid(forwarder), Signal::SIGKILL).expect("it runs");
    await_end(forwarder);
    waiting.finish();
    let get = format!("https://origin.test:{}/v1/x", server.port);
    let deadline = std::time::Instant::now() + PATIENCE;
    while !curl(&guard, "probe", &get, None).stdout.ends_with("201") {
        assert!(std::time::Instant::now() < deadline, "no forwarder");
    }
    let more = order(&guard, "probe", server.port, "", r#"{"amount": 4}"#);
    assert_eq!(more.1, "rate-limited");
    assert_eq!(shown(&guard, "probe")[0]["used"], "7.00");

    // A journal that is damaged refuses what it should count, and nothing else.
    guard.stop();
    let journal = site.path("state/limits.log");
    let mut text = fs::read(&journal).expect("readable");
    let at = text.iter().position(|byte| *byte == b'{').expect("a line");
    text[at + 20] ^= 1;
    fs::write(&journal, &text).expect("written");
    guard.restart();
    let small = r#"{"amount": 1}"#;
    let refused = order(&guard, "probe", server.port, "", small);
    assert_eq!(refused, ("403".to_owned(), "rate-limited".to_owned()));
    let records = guard.requests();
    let why = records
        .last()
        .expect("a record")
        .text("/facts/limit_failed");
    assert!(why.contains("is damaged in line 2"), "{why}");
    assert!(curl(&guard, "probe", &get, None).stdout.ends_with("201"));
    let status = guard.cli(["status", "--json"]).ok().json();
    let alarms = status["alarms"].to_string();
    assert!(
        alarms.contains("limits.log`, is damaged in line 2"),
        "{alarms}"
    );
    // Closed for good, until somebody who knows has decided.
    guard.stop();
    guard.restart();
    assert_eq!(order(&guard, "probe", server.port, "", small), refused);
    guard.stop();
    fs::remove_file(&journal).expect("there");
    guard.restart();
    guard.cli(["revive", "probe"]).ok();
    assert_eq!(order(&guard, "probe", server.port, "", small).0, "201");
}

#[test]
fn counts_outlive_new_bundles_and_each_of_a_supervisors_tasks_has_its_own() {
    let site = Site::new();
    let server = Server::start(&site, "recorder.py", &[]);
    let (_held, dead) = dead_port();
    let per_task = |serial: u32, most: u32| {
        let rules = format!(
            "@id(\"tries\") @limit(\"{most}/day per task\")
forbid (principal == Agent::\"probe\", action == Action::\"POST\", resource)
unless {{ context.limits.contains(\"tries\") }};"
        );
        let manifest = format!("name = \"test\"\nserial = {serial}\n[time]\nzone = \"UTC\"\n");
        bundle(server.port, dead, &rules).file("bundle.toml", manifest)
    };
    let guard = Guard::start(&site, &per_task(1, 2));
    let passed = |times: usize| {
        for turn in 0..times {
            let (status, _) = order(&guard, "probe", server.port, "", "{}");
            assert_eq!(status, "201", "{turn}");
        }
        let (_, slug) = order(&guard, "probe", server.port, "", "{}");
        assert_eq!(slug, "rate-limited");
    };
    passed(2);
    let start = |intent| guard.cli(["task", "start", "probe", "--intent", intent]);
    for intent in ["one", "two"] {
        let id = start(intent).ok().stdout;
        passed(2);
        let text = guard.cli(["agents", "show", "probe"]).ok().stdout;
        let words: Vec<&str> = text.split_whitespace().collect();
        let line = format!("tries: 2 of 2/day per task on task {id}, the first until 20");
        assert!(words.join(" ").contains(&line), "{text}");
        guard.cli(["task", "end", &id]).ok();
    }
    // One that the agent opens for itself is none.
    let own = "https://agentguard.internal/v1/tasks";
    let opened = curl(&guard, "probe", own, Some(r#"{"intent": "three"}"#));
    assert!(opened.stdout.ends_with("201"), "{opened:#?}");
    passed(0);
    let folder = site.path("next");
    per_task(2, 3).write(&folder);
    guard
        .cli(["policy", "apply", folder.to_str().expect("UTF-8")])
        .ok();
    passed(1);
    guard.cli(["policy", "rollback"]).ok();
    passed(0);
}

#[test]
fn a_websocket_counts_once_and_who_is_only_observed_is_counted_and_let_through() {
    let site = Site::new();
    let server = Server::start(&site, "ws_server.py", &[]);
    let rules = r#"@id("opens") @limit("1/day") forbid (principal, action == Action::"GET", resource)
unless { context.limits.contains("opens") };"#;
    let reach = format!(
        "[[reach]]\nhost = \"origin.test:{}\"\nallow = [\"GET /**\"]\n",
        server.port
    );
    let bundle = Bundle::new(1)
        .agent("probe", &reach)
        .agent("seen", &format!("mode = \"observe\"\n\n{reach}"))
        .rules("opens", rules);
    let guard = Guard::start(&site, &bundle);
    let url = format!("wss://origin.test:{}/v1/open", server.port);
    let open = |agent| python(&guard.agent(agent), "ws_client.py").arg(&url).run();
    let echoed = "echoed 5\nechoed 2\nechoed 1000000\nclosed 1000";
    assert_eq!(open("probe").ok().stdout, echoed);
    let refused = open("probe").ok().stdout;
    assert!(
        refused.starts_with("refused 403") && refused.contains("rate-limited"),
        "{refused}"
    );
    for _ in 0..2 {
        assert_eq!(open("seen").ok().stdout, echoed);
    }
    let records = guard.requests();
    let said: Vec<_> = records
        .iter()
        .map(|it| (it.outcome(), it.text("/facts/limit.opens")))
        .collect();
    assert_eq!(
        said,
        [
            ("allow", "1 of 1/day"),
            ("deny", "1 of 1/day"),
            ("allow", "1 of 1/day"),
            ("observed", "1 of 1/day"),
        ]
    );
}
