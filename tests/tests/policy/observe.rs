//! `mode = "observe"`: what policy would deny is let through and recorded; what is no decision of policy stays refused.

use std::io::Read as _;
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::UnixListener;

use agentguard_tests::attempt::User;
use agentguard_tests::bundle::reach;
use agentguard_tests::client::{Dialer, dialer};
use agentguard_tests::standing::{Standing, Standings};
use agentguard_tests::{Bundle, Guard, Nginx, Record, Site};

const RULES: &str = r#"
@id("no-secrets")
forbid (principal, action, resource) when { context.path like "/v1/secret*" };
@id("breaks")
permit (principal, action, resource) when { context.path like "/deep/*" && context.segments * 9223372036854775807 > 0 };
"#;

#[test]
fn what_policy_would_deny_is_let_through_and_recorded() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let other = Nginx::start_as(&site, &site.ca().issue(&["other.test"]));
    site.configure(|config| {
        let hosts = config["upstream"]["hosts"].as_table_mut().expect("a table");
        hosts.insert("other.test".into(), "127.0.0.1".into());
        hosts.insert("inner.test".into(), "10.255.255.1".into());
    });
    let body = reach("origin.test", origin.port, &["GET /v1/**"]);
    let strict = format!("[agent]\nname = \"strict\"\nowner = \"o\"\nmode = \"enforce\"\n{body}");
    let bundle = Bundle::new(1)
        .file(
            "bundle.toml",
            "name = \"test\"\nserial = 1\nmode = \"observe\"\n",
        )
        .agent("probe", &body)
        .file("agents/strict.toml", strict)
        .rules("all", RULES);
    let guard = Guard::start(&site, &bundle);
    let elsewhere = format!("https://other.test:{}/any", other.port);
    let get = |url: &str| format!("get {url}");
    let mut agent = dialer(&guard.agent("probe"));
    let mut strict = dialer(&guard.agent("strict"));
    for path in ["/v1/x", "/v2/x", "/v1/secret"] {
        assert_eq!(agent.tries(&get(&origin.url(path))), "ok 200", "{path}");
        let expected = if path == "/v1/x" { "ok 200" } else { "ok 403" };
        assert_eq!(strict.tries(&get(&origin.url(path))), expected, "{path}");
    }
    assert_eq!(agent.tries(&get(&elsewhere)), "ok 200");
    assert_eq!(strict.tries(&get(&elsewhere)), "ok 403");

    // No decision of policy, or none that can be taken.
    assert_eq!(
        agent.tries(&get(&origin.url("/deep/x"))),
        "ok 403",
        "a rule that fails"
    );
    let inside = agent.tries(&get("https://inner.test/"));
    assert!(
        inside.starts_with("error"),
        "an address of the inside: {inside}"
    );
    assert_eq!(agent.tries("socket inet raw 1"), "error EPERM");
    guard.cli(["kill", "probe"]).ok();
    assert!(agent.tries(&get(&origin.url("/v1/x"))).starts_with("error"));

    let records = guard.audit();
    let of = |path: &str| {
        let found = records
            .iter()
            .find(|it| it.is_request() && it.agent() == "probe" && it.path() == path);
        let record: &Record = found.unwrap_or_else(|| panic!("no record of {path}"));
        (
            record.outcome(),
            record.0["reason"].as_str(),
            record.0["policies"][0].as_str(),
        )
    };
    assert_eq!(of("/v1/x").0, "allow");
    assert_eq!(of("/v2/x"), ("observed", Some("policy-denied"), None));
    assert_eq!(
        of("/v1/secret"),
        ("observed", Some("policy-denied"), Some("no-secrets"))
    );
    assert_eq!(of("/any"), ("observed", Some("policy-denied"), None));
    assert_eq!(
        of("/deep/x"),
        ("deny", Some("policy-denied"), Some("breaks"))
    );
    let asked = |agent: &str| {
        let dns = records
            .iter()
            .filter(|it| it.action() == "dns" && it.resource() == "other.test");
        dns.filter(|it| it.agent() == agent)
            .map(Record::outcome)
            .next()
    };
    assert_eq!(
        (asked("probe"), asked("strict")),
        (Some("observed"), Some("deny"))
    );

    // Loudly.
    let alarms = guard.cli(["status", "--json"]).ok().json()["alarms"].to_string();
    assert!(
        alarms.contains("only observed") && alarms.contains("let through: probe\""),
        "{alarms}"
    );
    let doctor = guard.cli(["doctor"]).stdout;
    assert!(doctor.contains("only observed"), "{doctor}");
    let check = site
        .cli(["policy", "check"])
        .arg(site.path("policies"))
        .run()
        .ok();
    assert!(
        check.stdout.contains("agent `probe` is only observed"),
        "{check:?}"
    );
}

/// What the kernel decides by itself: what to try, what it says when it works, and the record's action and resource.
struct Ways {
    datagrams: UdpSocket,
    socket: tempfile::TempDir,
    _listener: UnixListener,
}

impl Ways {
    fn new() -> Self {
        let socket = tempfile::tempdir().expect("a folder");
        Self {
            datagrams: UdpSocket::bind("127.0.0.1:0").expect("a port"),
            _listener: UnixListener::bind(socket.path().join("socket")).expect("bound"),
            socket,
        }
    }

    fn all(&self) -> Vec<(String, &'static str, &'static str, String)> {
        let to = self.datagrams.local_addr().expect("bound");
        let path = self.socket.path().join("socket");
        let path = path.display();
        let program = std::fs::canonicalize("/usr/bin/true").expect("it is installed");
        let program = program.display();
        let udp = |how: &str| format!("{how} {} {}", to.ip(), to.port());
        let mut all = vec![
            (udp("udp"), "ok 5", "sendmsg", to.to_string()),
            (udp("send"), "ok 5", "sendmsg", to.to_string()),
            (
                "bind stream 127.0.0.1 34571".into(),
                "ok 127.0.0.1 34571",
                "bind",
                "127.0.0.1:34571".into(),
            ),
            (
                "bind dgram ::1 34571".into(),
                "ok ::1 34571",
                "bind",
                "[::1]:34571".into(),
            ),
            (
                format!("exec {program}"),
                "ok 0",
                "exec",
                program.to_string(),
            ),
            (
                format!("memory {program}"),
                "ok 0",
                "exec",
                "/memfd:memory".into(),
            ),
        ];
        if Standings::of_this_kernel().of_attempt("a unix socket", User::Root) == Standing::Closed {
            all.push((
                format!("unix {path}"),
                "ok",
                "connect",
                format!("unix:{path}"),
            ));
        }
        all
    }
}

/// The one record that a way leaves.
#[track_caller]
fn one(guard: &Guard<'_>, agent: &mut Dialer, way: &str, says: &str) -> Record {
    let before = guard.audit().len();
    assert_eq!(agent.tries(way), says, "{way}");
    let after = guard.audit();
    let [record] = &after[before..] else {
        panic!("{way}: not one record: {:#?}", &after[before..]);
    };
    assert_eq!(record.agent(), "probe", "{way}");
    record.clone()
}

#[test]
fn what_the_kernel_alone_would_refuse_is_let_through_and_recorded() {
    let site = Site::new();
    let ways = Ways::new();
    let python = std::fs::canonicalize(agentguard_tests::tools::python()).expect("it is installed");
    // Without `keep`, `run` itself takes away what raw sockets need.
    let body =
        format!("privileges = \"keep\"\n\n[exec]\ndefault = \"deny\"\nallow = [{python:?}]\n");
    let bundle = |serial: u32, mode: &str| {
        let head = format!("name = \"test\"\nserial = {serial}\nmode = \"{mode}\"\n");
        Bundle::new(1)
            .file("bundle.toml", head)
            .agent("probe", &body)
    };
    let guard = Guard::start(&site, &bundle(1, "observe"));
    let mut agent = dialer(&guard.agent("probe"));
    for (way, says, action, resource) in ways.all() {
        let record = one(&guard, &mut agent, &way, says);
        let found = (record.action(), record.resource(), record.outcome());
        assert_eq!(found, (action, &*resource, "observed"), "{way}");
        assert_eq!(record.reason(), "policy-denied", "{way}: {record:?}");
        assert!(!record.text("/detail").is_empty(), "{way}: {record:?}");
    }
    let mut hello = [0; 5];
    for _ in 0..2 {
        ways.datagrams.recv(&mut hello).expect("it was sent");
    }
    assert_eq!(&hello, b"hello");

    // What listens answers, recorded once however many come.
    for how in ["listen 127.0.0.1 0", "listen 127.0.0.1 -"] {
        let before = guard.audit().len();
        let said = agent.tries(how);
        let port: u16 = said
            .strip_prefix("ok ")
            .and_then(|port| port.parse().ok())
            .expect(&said);
        for again in [true, false] {
            let mut peer = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
            if again {
                continue;
            }
            assert_eq!(agent.tries("accept"), "ok", "{how}");
            drop(peer.read(&mut hello));
        }
        let after = guard.audit();
        let found = &after[before..];
        assert!(
            found.iter().all(|it| it.outcome() == "observed"),
            "{how}: {found:#?}"
        );
        let expected = match how.ends_with('-') && agentguard_kernel::lsm().is_ok() {
            // The hook knows no port yet.
            true => vec!["bind", "packet"],
            false if how.ends_with('-') => vec!["packet"],
            false => vec!["bind"],
        };
        let found: Vec<_> = found.iter().map(Record::action).collect();
        assert_eq!(found, expected, "{how}");
    }

    // What is no decision of policy, although the kernel takes it.
    for (way, slug) in [
        ("socket inet raw 1".to_owned(), "protocol-refused"),
        ("socket inet stream 262".to_owned(), "protocol-refused"),
    ] {
        let record = one(&guard, &mut agent, &way, "error EPERM");
        assert_eq!((record.outcome(), record.reason()), ("deny", slug), "{way}");
    }
    let control = site.path("run/control.sock");
    assert!(control.exists(), "{}", control.display());
    let asks = format!(
        "import http.client, socket\nc = http.client.HTTPConnection('x')\nc.sock = socket.socket(socket.AF_UNIX)\nc.sock.connect({control:?})\nc.request('GET', '/v1/status')\nprint('said', c.getresponse().status)"
    );
    let asked = guard.agent("probe").python_code(&asks);
    assert!(asked.stdout.contains("said 403"), "{asked:?}");

    // From now on it is not only observed.
    let enforced = site.path("enforced");
    bundle(2, "enforce").write(&enforced);
    guard
        .cli(["policy", "apply", &enforced.display().to_string()])
        .ok();
    for (way, _, action, resource) in ways.all() {
        let says = if way.starts_with("exec") || way.starts_with("memory") {
            if agentguard_kernel::lsm().is_ok() {
                "error EPERM"
            } else {
                "ok -9"
            }
        } else {
            "error EPERM"
        };
        let record = one(&guard, &mut agent, &way, says);
        let found = (record.action(), record.resource(), record.outcome());
        assert_eq!(found, (action, &*resource, "deny"), "{way}");
    }
    guard.cli(["kill", "probe"]).ok();
}

#[test]
fn an_agent_that_is_stopped_is_not_only_observed() {
    let site = Site::new();
    let ways = Ways::new();
    let bundle = Bundle::new(1)
        .file(
            "bundle.toml",
            "name = \"test\"\nserial = 1\nmode = \"observe\"\n",
        )
        .agent("probe", "[exec]\ndefault = \"deny\"\n");
    let guard = Guard::start(&site, &bundle);
    let mut agent = dialer(&guard.agent("probe"));
    guard
        .cli(["agents", "suspend", "probe", "--reason", "a test"])
        .ok();
    for (way, _, action, _) in ways.all() {
        if action == "exec" {
            continue;
        }
        let record = one(&guard, &mut agent, &way, "error EPERM");
        assert_eq!(
            (record.outcome(), record.reason()),
            ("deny", "agent-suspended"),
            "{way}"
        );
    }
}
