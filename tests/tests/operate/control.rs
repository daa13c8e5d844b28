//! The control socket: an agent gets nothing from it, whatever its user; others get what is theirs, and clear errors.

use std::os::unix::fs::PermissionsExt as _;

use agentguard_tests::bundle::reach;
use agentguard_tests::client::{Client, Subject, dialer};
use agentguard_tests::process::{await_end, pid};
use agentguard_tests::tools::{agentguard, python};
use agentguard_tests::{Bundle, Guard, Nginx, Site};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::getpgid;

#[test]
fn an_agent_is_refused_whatever_its_user() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    // As root with everything that root can.
    let policy = format!(
        "privileges = \"keep\"\n\n{}",
        reach("origin.test", origin.port, &["GET /v1/**"])
    );
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let socket = site.path("run/control.sock");
    let agent = guard.agent("probe");
    let control = |subject: &dyn Subject, method: &str, path: &str, body: &str| {
        subject
            .client("curl".as_ref())
            .args([
                "--silent",
                "--output",
                "/dev/null",
                "--write-out",
                "%{http_code}",
                "--unix-socket",
            ])
            .arg(&socket)
            .args([
                "-H",
                "content-type: application/json",
                "-X",
                method,
                "-d",
                body,
            ])
            .arg(format!("http://localhost{path}"))
            .run()
            .stdout
    };
    assert_eq!(
        control(&site, "GET", "/v1/status", ""),
        "200",
        "root that is no agent"
    );
    for (method, path, body) in [
        ("GET", "/v1/status", ""),
        ("GET", "/v1/agents", ""),
        ("GET", "/v1/policy", ""),
        ("GET", "/v1/ca", ""),
        ("GET", "/v1/audit", ""),
        ("POST", "/v1/kill", "{\"all\":true}"),
        ("POST", "/v1/revive", "{\"all\":true}"),
        ("POST", "/v1/policy", "{\"files\":{}}"),
        (
            "POST",
            "/v1/policy/explain",
            "{\"agent\":\"probe\",\"method\":\"GET\",\"url\":\"https://a.test/\"}",
        ),
        ("POST", "/v1/run", "{\"agent\":\"probe\",\"pid\":1}"),
        ("POST", "/v1/unload", "{}"),
    ] {
        let answer = control(&agent, method, path, body);
        assert!(
            ["403", "000"].contains(&&*answer),
            "{method} {path}: {answer}"
        );
    }
    for words in [
        &["status"][..],
        &["kill", "--all"],
        &["policy", "show"],
        &["unload", "--yes"],
    ] {
        let ran = agent
            .client(&agentguard())
            .args(words)
            .env("AGENTGUARD_CONFIG", site.config())
            .run();
        assert_eq!(ran.code(), 5, "{words:?}: {ran:#?}");
    }
    let mut still = dialer(&agent);
    assert_eq!(
        still.tries(&format!("get {}", origin.url("/v1/x"))),
        "ok 200"
    );
    assert_eq!(
        still.tries(&format!("get {}", origin.url("/v2/x"))),
        "ok 403"
    );
}

#[test]
fn an_agent_cannot_start_another() {
    let site = Site::new();
    let policy = "privileges = \"keep\"\n";
    let guard = Guard::start(
        &site,
        &Bundle::new(1)
            .agent("probe", policy)
            .agent("mighty", policy),
    );
    let ran = guard
        .agent("probe")
        .client(&agentguard())
        .args(["run", "--agent", "mighty", "--", "true"])
        .env("AGENTGUARD_CONFIG", site.config())
        .run();
    assert_eq!(ran.code(), 125, "{ran:#?}");
}

/// Whoever may start an agent makes children of its own user's into one, and no program that acts for another user.
#[test]
fn a_set_user_id_child_is_not_labelled() {
    const ASK: &str = r#"
import json, socket, subprocess, sys
def label(pid):
    s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
    body = json.dumps({"agent": "probe", "pid": pid})
    s.sendall(f"POST /v1/run HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n{body}".encode())
    answer = s.makefile().read()
    return answer.split()[1], "does not run as the caller's user" in answer
def effective(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(line.split()[2] for line in status if line.startswith("Uid:"))
for program in sys.argv[2:]:
    # It says something once it runs.
    child = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdin.write(b"x"); child.stdin.flush(); child.stdout.read(1)
    print(effective(child.pid), *label(child.pid), flush=True)
    child.stdin.close(); child.wait()
"#;
    let site = Site::new();
    let bundle = Bundle::new(1).agent("probe", "start_by = [\"user:nobody\"]\n");
    let _guard = Guard::start(&site, &bundle);
    let programs = [("plain", 0o755), ("raised", 0o4755)].map(|(name, mode)| {
        let program = site.path(name);
        std::fs::copy("/usr/bin/cat", &program).expect("copied");
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&program, mode).expect("set");
        program
    });
    let asking = Client::new(python()).args(["-c", ASK]).user(65534);
    let asked = asking.arg(site.path("run/control.sock")).args(programs);
    assert_eq!(
        asked.run().ok().stdout,
        "65534 200 False\n0 403 True",
        "effective user, status, and whether that is why"
    );
}

#[test]
fn wrong_requests_get_a_reason() {
    let site = Site::new();
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", ""));
    let socket = site.path("run/control.sock");
    let ask = |method: &str, path: &str, body: &str| {
        let ran = Client::new("curl")
            .args(["--silent", "--write-out", "\n%{http_code}", "--unix-socket"])
            .arg(&socket)
            .args(["-X", method, "-d", body])
            .arg(format!("http://localhost{path}"))
            .run()
            .ok();
        let (body, status) = ran.stdout.rsplit_once('\n').expect("a status");
        let problem: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
        (status.to_owned(), problem)
    };
    for (method, path, body, status) in [
        ("GET", "/v1/nonsense", "", "404"),
        ("DELETE", "/v1/policy", "", "405"),
        ("GET", "/v1/unload", "", "405"),
        ("POST", "/v1/kill", "{", "400"),
        ("POST", "/v1/kill", "{\"agents\":[\"prob\"]}", "404"),
        (
            "POST",
            "/v1/kill",
            "{\"agents\":[\"probe\"],\"colour\":1}",
            "400",
        ),
        ("POST", "/v1/policy", "{\"files\":{}}", "422"),
        ("POST", "/v1/run", "{\"agent\":\"probe\",\"pid\":1}", "403"),
        ("POST", "/v1/run", "{\"agent\":\"probe\",\"pid\":0}", "409"),
    ] {
        let (seen, problem) = ask(method, path, body);
        assert_eq!(seen, status, "{method} {path} {body}: {problem}");
        assert!(
            problem["error"].is_string() && problem["code"].is_string(),
            "{method} {path}: {problem}"
        );
    }
    guard.cli(["status"]).ok();
}

#[test]
fn an_agent_that_holds_connections_open_keeps_nobody_out() {
    let site = Site::new();
    // Without the entry it would not come that far; with it, what it says there is refused all the same.
    let socket = format!(
        "[[unix]]\npath = \"{}\"\n",
        site.path("run/control.sock").display()
    );
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &socket));
    let code = format!(
        r#"
held = []
for _ in range(500):
    held.append(socket.socket(socket.AF_UNIX))
    held[-1].connect("{}")
print("holding", flush=True)
sys.stdin.readline()
"#,
        site.path("run/control.sock").display()
    );
    let mut agent = guard.agent("probe").python(&code).spawn();
    agent.line(|line| line == "holding");
    guard.cli(["kill", "probe", "--reason", "test"]).ok();
}

#[test]
fn a_user_that_holds_connections_open_keeps_no_responder_out() {
    let site = Site::new();
    site.configure(|config| {
        let grant = toml::toml! { group = "daemon"
        role = "responder" };
        config.insert("roles".into(), toml::Value::Array(vec![grant.into()]));
    });
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", ""));
    let socket = site.path("run/control.sock");
    let hold = format!(
        "import socket, sys\nheld = []\nfor _ in range(500):\n    held.append(socket.socket(socket.AF_UNIX))\n    held[-1].connect({:?})\n\
         print(\"holding\", flush=True)\nsys.stdin.readline()",
        socket.display()
    );
    let nobodys = Client::new(python()).args(["-c", &hold]).user(65534);
    let mut nobodys = nobodys.spawn();
    nobodys.line(|line| line == "holding");
    let responder = Client::new(agentguard()).user(1);
    let responder = responder.env("AGENTGUARD_CONFIG", site.config());
    responder
        .args(["kill", "probe", "--reason", "test"])
        .run()
        .ok();
    guard.cli(["status"]).ok();
}

#[test]
fn a_terminal_that_is_gone_ends_neither_the_daemon_nor_the_forwarder() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let policy = reach("origin.test", origin.port, &["GET /v1/**"]);
    let mut guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let forwarder = guard.forwarder_tgid();
    for process in [guard.daemon_tgid(), forwarder] {
        kill(pid(process), Signal::SIGHUP).expect("signalled");
    }
    let get = format!("get {}", origin.url("/v1/x"));
    assert_eq!(dialer(&guard.agent("probe")).tries(&get), "ok 200");
    guard.cli(["status"]).ok();
    assert_eq!(guard.forwarder_tgid(), forwarder, "the same one");
}

#[test]
fn an_interrupt_from_the_terminal_ends_the_daemon_without_an_alarm() {
    let site = Site::new();
    let mut guard = Guard::start(&site, &Bundle::new(1));
    let (daemon, forwarder) = (guard.daemon_tgid(), guard.forwarder_tgid());
    // A terminal signals a group, and the first to end would be a matter of luck.
    let [one, other] = [daemon, forwarder].map(|tgid| getpgid(Some(pid(tgid))).expect("a group"));
    assert_ne!(one, other);
    killpg(pid(daemon), Signal::SIGINT).expect("signalled");
    await_end(daemon);
    let said = guard.stop().ok().stderr;
    assert!(said.contains("stopped"), "{said}");
    assert!(!said.contains("no forwarder"), "{said}");
}

#[test]
fn a_daemon_that_is_told_to_end_while_it_starts_ends_in_order() {
    let site = Site::new();
    let mut guard = Guard::start(&site, &Bundle::new(1));
    guard.stop().ok();
    let mut starting = site.cli(["daemon"]).env("RUST_LOG", "info").spawn();
    starting.line(|line| line.contains("bundle in force"));
    starting.signal(Signal::SIGTERM);
    let said = starting.finish().ok().stderr;
    assert!(said.contains("INFO stopped"), "{said}");
}
