//! Tasks: what an agent is about narrows what it may meanwhile, and what was permitted on one ends with it.

use std::time::{Duration, Instant};

use agentguard_tests::bundle::reach;
use agentguard_tests::client::{Subject as _, dialer, python};
use agentguard_tests::tools::PATIENCE;
use agentguard_tests::{Bundle, Guard, Nginx, Record, Running, Server, Site};

/// From the end of a task.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Opens a task of `probe`'s; its id.
pub(crate) fn start(guard: &Guard<'_>, more: &[&str]) -> String {
    let words = ["task", "start", "probe", "--intent", "refund order 7"];
    guard.cli(words.iter().chain(more)).ok().stdout
}

pub(crate) fn end(guard: &Guard<'_>, id: &str) {
    guard.cli(["task", "end", id]).ok();
}

/// `status reason`, of one request of curl's.
pub(crate) fn curl(guard: &Guard<'_>, url: &str, more: &[&str]) -> String {
    let client = guard.agent("probe").client("curl".as_ref());
    let write = "\n%{http_code}";
    let said = client.args(["--silent", "--write-out", write]).args(more);
    let said = said.arg(url).run().ok().stdout;
    let (body, status) = said.rsplit_once('\n').expect("a status");
    match serde_json::from_str::<serde_json::Value>(body) {
        Ok(problem) => {
            let kind = problem["type"].as_str().unwrap_or_default();
            format!("{status} {}", kind.rsplit(':').next().unwrap_or_default())
        }
        Err(_) => status.to_owned(),
    }
}

fn header(id: &str) -> [String; 2] {
    ["-H".into(), format!("AgentGuard-Task: {id}")]
}

pub(crate) fn named(guard: &Guard<'_>, url: &str, id: &str) -> String {
    let [flag, line] = header(id);
    curl(guard, url, &[&flag, &line])
}

#[test]
fn a_supervisors_task_narrows_until_it_ends() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let policy = reach("origin.test", origin.port, &["ANY /v1/**"]);
    let bundle = Bundle::new(1)
        .agent("probe", &policy)
        .agent("other", &policy);
    let mut guard = Guard::start(&site, &bundle);
    let (orders, rest) = (origin.url("/v1/orders/7"), origin.url("/v1/rest"));
    let get_orders = format!("GET {}/v1/orders/*", origin.host());
    assert_eq!(curl(&guard, &rest, &[]), "200");

    let id = start(&guard, &["--allow", &get_orders, "--for", "2h"]);
    assert_eq!(curl(&guard, &orders, &[]), "200");
    assert_eq!(curl(&guard, &orders, &["-X", "DELETE"]), "403 outside-task");
    assert_eq!(curl(&guard, &rest, &[]), "403 outside-task");
    assert_eq!(named(&guard, &orders, &id), "200");
    let nobody = "00000000-0000-7000-8000-000000000000";
    for wrong in [nobody, "x"] {
        assert_eq!(named(&guard, &orders, wrong), "403 outside-task", "{wrong}");
    }
    let mut other = dialer(&guard.agent("other"));
    assert_eq!(
        other.tries(&format!("get {rest}")),
        "ok 200",
        "another agent"
    );

    let listed = guard.cli(["task", "list", "--json"]).ok().json();
    assert_eq!(listed[0]["id"], *id, "{listed}");
    assert_eq!(listed[0]["agent"], "probe");
    assert_eq!(listed[0]["opened_by"], "supervisor");
    assert_eq!(listed[0]["by"], "root");

    guard.stop();
    guard.restart();
    assert_eq!(
        curl(&guard, &rest, &[]),
        "403 outside-task",
        "after a restart"
    );

    let second = start(&guard, &["--scope", "read"]);
    assert_eq!(curl(&guard, &rest, &[]), "200", "in one of the two");
    assert_eq!(curl(&guard, &rest, &["-X", "PUT"]), "403 outside-task");
    assert_eq!(named(&guard, &rest, &id), "403 outside-task");
    assert_eq!(named(&guard, &rest, &second), "200");
    end(&guard, &second);
    assert_eq!(named(&guard, &orders, &second), "403 outside-task", "ended");
    end(&guard, &id);
    assert_eq!(curl(&guard, &rest, &["-X", "PUT"]), "200");
    let again = guard.cli(["task", "end", &id]);
    assert_eq!(again.code(), 1, "{again:#?}");

    let on_it = guard.cli(["audit", "search", "--task", &id, "--json"]);
    let records = Record::all(&on_it.ok().json());
    let said: Vec<_> = records
        .iter()
        .map(|it| (it.action(), it.outcome()))
        .collect();
    let expected = [
        ("task-start", "allow"),
        ("GET", "allow"),
        ("DELETE", "deny"),
        ("GET", "deny"),
        ("GET", "allow"),
        ("GET", "deny"),
        ("GET", "deny"),
        ("task-end", "allow"),
    ];
    assert_eq!(said, expected, "{records:#?}");
    assert_eq!(records[1].text("/intent"), "refund order 7");
    assert_eq!(records[1].0["facts"]["task.opened_by"], "supervisor");
    assert_eq!(records[0].text("/operator/user"), "root");
    let hits = origin.hits().len();
    assert_eq!(hits, 7, "nothing that was refused has arrived");
}

#[test]
fn nothing_outside_a_task_where_one_is_required() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let policy = format!(
        "tasks = \"required\"\n\n{}",
        reach("origin.test", origin.port, &["GET /v1/**"])
    );
    let nobodys = format!(
        "start_by = [\"user:nobody\"]\n\n{}",
        reach("origin.test", origin.port, &["GET /v1/**"])
    );
    let bundle = Bundle::new(1)
        .agent("probe", &policy)
        .agent("nobodys", &nobodys);
    let guard = Guard::start(&site, &bundle);
    let url = origin.url("/v1/x");
    assert_eq!(curl(&guard, &url, &[]), "403 outside-task");
    let id = start(&guard, &[]);
    assert_eq!(curl(&guard, &url, &[]), "200");
    end(&guard, &id);
    assert_eq!(curl(&guard, &url, &[]), "403 outside-task");

    // A task of its own for each run.
    let run = |status: &str| {
        let agent = ["run", "--agent", "probe", "--task", "look around", "--"];
        let curl = "curl --silent --output /dev/null --write-out '%{http_code}'";
        let command = format!("{curl} {url}; exit {status}");
        guard.cli(agent.into_iter().chain(["sh", "-c", &command]))
    };
    let ran = run("7");
    assert_eq!((ran.stdout.as_str(), ran.code()), ("200", 7), "{ran:#?}");
    let listed = guard.cli(["task", "list", "--json"]).ok().json();
    assert_eq!(listed.as_array().map(Vec::len), Some(0), "{listed}");
    let records = guard.audit();
    let last = records
        .iter()
        .rfind(|it| it.is_request())
        .expect("a record");
    assert_eq!(last.text("/intent"), "look around");
    assert_eq!(records.last().map(Record::action), Some("task-end"));
    // With another one open and none named it is on neither, whatever it was started for.
    let second = start(&guard, &[]);
    assert_eq!(run("0").stdout, "200");
    end(&guard, &second);
    let records = guard.audit();
    let last = records
        .iter()
        .rfind(|it| it.is_request())
        .expect("a record");
    assert!(last.0["task"].is_null(), "{last:#?}");
    let long = "x".repeat(1025);
    let refused = guard.cli(["run", "--agent", "probe", "--task", &long, "--", "true"]);
    assert_eq!(refused.code(), 125, "{refused:#?}");
    assert!(refused.stderr.contains("1024 bytes"), "{refused:#?}");

    let unknown = guard.cli(["task", "start", "prob", "--intent", "x"]);
    assert_eq!(unknown.code(), 1, "{unknown:#?}");
    assert!(
        unknown.stderr.contains("did you mean `probe`?"),
        "{unknown:#?}"
    );
    let by = |user, words: &[&str]| site.cli(words).user(user).run();
    let refused = by(65534, &["task", "start", "probe", "--intent", "x"]);
    assert_eq!(refused.code(), 5, "{refused:#?}");

    // Who supervises an agent sees its tasks, and no others.
    let others = start(&guard, &[]);
    let own = by(65534, &["task", "start", "nobodys", "--intent", "x"]);
    let own = own.ok().stdout;
    let listed = by(65534, &["task", "list", "--json"]).ok().json();
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!(listed[0]["id"], *own);
    by(65534, &["task", "end", &own]).ok();
    assert_eq!(by(65534, &["task", "end", &others]).code(), 5);
    assert_eq!(by(65533, &["task", "list"]).code(), 5);
}

/// A WebSocket of the agent's that says `open`, and `ended`.
fn websocket(guard: &Guard<'_>, port: u16) -> Running {
    let url = format!("wss://origin.test:{port}/v1/one");
    let mut held = python(&guard.agent("probe"), "ws_held.py").arg(url).spawn();
    held.line(|line| line == "open");
    held
}

#[test]
fn what_was_permitted_on_a_task_ends_with_it() {
    let site = Site::new();
    let sockets = Server::start(&site, "ws_server.py", &[]);
    let mut events = Server::start(&site, "sse_server.py", &[]);
    let policy = reach("origin.test", sockets.port, &["GET /v1/one"])
        + &reach("origin.test", events.port, &["GET /v1/events"]);
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));

    // A socket from before falls outside the task that is opened.
    let mut before = websocket(&guard, sockets.port);
    let only_events = format!("GET origin.test:{}/v1/events", events.port);
    let first = start(&guard, &["--allow", &only_events]);
    before.line(|line| line == "ended");
    drop(before);
    end(&guard, &first);

    let id = start(&guard, &["--for", "1h"]);
    let mut socket = websocket(&guard, sockets.port);
    let url = format!("https://origin.test:{}/v1/events", events.port);
    let agent = guard.agent("probe");
    let mut reader = python(&agent, "sse_client.py")
        .args(["requests", &url])
        .spawn();
    events.talk().line(|line| line.starts_with("request "));
    events.talk().say("one");
    reader.line(|line| line == "data: one");
    assert!(socket.is_running() && !socket.heard().contains("ended"));
    end(&guard, &id);
    let ended = Instant::now();
    socket.line(|line| line == "ended");
    assert!(ended.elapsed() < AT_ONCE, "{:?}", ended.elapsed());
    let ran = reader.finish();
    assert_ne!(ran.code(), 0, "the answer is not whole: {ran:#?}");
    drop(socket);

    // By its time alone.
    start(&guard, &["--for", "3s"]);
    let mut socket = websocket(&guard, sockets.port);
    socket.line(|line| line == "ended");
    drop(socket);
    let records = guard.audit();
    let cut = records.iter().filter(|it| it.is_request());
    let cut = cut.filter(|it| it.reason() == "outside-task");
    assert_eq!(cut.count(), 4, "{records:#?}");
    // The daemon ends it within the second in which the forwarder does.
    let deadline = Instant::now() + PATIENCE;
    let is_over = |it: &Record| {
        it.action() == "task-end" && it.text("/detail").starts_with("its time was over")
    };
    while !guard.audit().iter().any(is_over) {
        assert!(Instant::now() < deadline, "no record of the end");
    }
}

#[test]
fn an_upload_and_an_answer_end_with_the_task_that_covers_them() {
    let site = Site::new();
    let mut shop = Server::start(&site, "grpc_server.py", &[]);
    let mut events = Server::start(&site, "sse_server.py", &[]);
    let mut others = Server::start(&site, "sse_server.py", &[]);
    let policy = reach("origin.test", shop.port, &["POST /shop.Shop/**"])
        + &reach("origin.test", events.port, &["GET /v1/events"])
        + &reach("origin.test", others.port, &["GET /v1/events"]);
    let bundle = Bundle::new(1)
        .agent("parent", &policy)
        .agent("probe", &format!("parent = \"parent\"\n\n{policy}"));
    let guard = Guard::start(&site, &bundle);
    let collects = format!("POST origin.test:{}/shop.Shop/Collect", shop.port);
    let reads = format!("GET origin.test:{}/v1/events", events.port);
    let first = start(&guard, &["--allow", &collects]);
    let second = start(&guard, &["--allow", &reads]);
    let parents = guard.cli(["task", "start", "parent", "--intent", "see to the shop"]);
    let parents = parents.ok().stdout;

    // Items of one call over HTTP/2, which nothing answers before the last of them.
    let code = format!(
        "
import grpc, queue
channel = grpc.secure_channel('origin.test:{}', grpc.ssl_channel_credentials())
items = queue.Queue()
call = channel.stream_unary('/shop.Shop/Collect').future(iter(items.get, None))
call.add_done_callback(lambda call: print('ended', call.code().name, flush=True))
for line in sys.stdin: items.put(line.strip().encode())",
        shop.port
    );
    let mut caller = guard.agent("probe").python(&code).spawn();
    caller.say("one");
    shop.talk().line(|line| line == "item one");
    let read = |port: u16| {
        let url = format!("https://origin.test:{port}/v1/events");
        let client = python(&guard.agent("probe"), "sse_client.py");
        client.args(["requests", &url]).spawn()
    };
    let mut reader = read(events.port);
    events.talk().line(|line| line.starts_with("request "));
    events.talk().say("one");
    reader.line(|line| line == "data: one");

    end(&guard, &first);
    caller.line(|line| line == "ended PERMISSION_DENIED");
    caller.say("two");
    shop.talk().line(|line| line == "over");
    events.talk().say("two");
    reader.line(|line| line == "data: two");
    end(&guard, &second);
    assert_ne!(reader.finish().code(), 0, "the answer is not whole");
    caller.close_stdin();
    caller.finish();
    assert!(!shop.talk().heard().contains("item two"));

    let mut reader = read(others.port);
    others.talk().line(|line| line.starts_with("request "));
    others.talk().say("three");
    reader.line(|line| line == "data: three");
    end(&guard, &parents);
    assert_ne!(reader.finish().code(), 0, "the parent's has ended");
    let records = guard.requests();
    let reasons: Vec<_> = records
        .iter()
        .map(|it| (it.outcome(), it.reason()))
        .collect();
    assert_eq!(reasons, [("deny", "outside-task"); 3]);
}
