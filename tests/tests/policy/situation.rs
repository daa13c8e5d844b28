//! When and from where: rules that read the time, the host's network and its labels, on real traffic.

use std::process::Command;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use agentguard_tests::bundle::reach;
use agentguard_tests::client::{Dialer, Subject as _, dialer};
use agentguard_tests::tools::{PATIENCE, python, script};
use agentguard_tests::{Bundle, Client, Guard, Nginx, Site};

/// `HH:MM` so many hours from now, in UTC.
fn hours_from_now(hours: u64) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    let minutes = now.as_secs() / 60 + hours * 60;
    format!("{:02}:{:02}", minutes / 60 % 24, minutes % 60)
}

/// An address of the host's own for as long as it is held.
struct Address(&'static str);

impl Address {
    fn add(address: &'static str) -> Self {
        change("add", address);
        Self(address)
    }
}

impl Drop for Address {
    fn drop(&mut self) {
        change("del", self.0);
    }
}

fn change(verb: &str, address: &str) {
    let done = Command::new("ip")
        .args(["address", verb, address, "dev", "lo"])
        .status();
    assert!(
        done.expect("ip runs").success(),
        "ip address {verb} {address}"
    );
}

#[test]
fn the_time_and_the_hosts_labels_decide() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    site.configure(|config| {
        let host: toml::Table = "labels = [\"staging\"]".parse().expect("TOML");
        config.insert("host".into(), host.into());
    });
    let manifest = format!(
        "name = \"test\"\nserial = 1\n[time]\nzone = \"UTC\"\n
[[time.window]]\nname = \"now\"\nfrom = \"{}\"\nto = \"{}\"\n
[[time.window]]\nname = \"later\"\nfrom = \"{}\"\nto = \"{}\"\n",
        hours_from_now(22),
        hours_from_now(2),
        hours_from_now(3),
        hours_from_now(5),
    );
    let host = origin.host();
    let rules = format!(
        "@id(\"later\") @reason(\"outside-hours\") forbid (principal, action, resource == Host::\"{host}\")
when {{ context.path == \"/v1/later\" }} unless {{ context.time.within.contains(\"later\") }};
@id(\"now\") @reason(\"outside-hours\") forbid (principal, action, resource == Host::\"{host}\")
when {{ context.path == \"/v1/now\" }} unless {{ context.time.within.contains(\"now\") }};
@id(\"prod\") forbid (principal, action, resource == Host::\"{host}\")
when {{ context.path == \"/v1/prod\" }} unless {{ context.host.labels.contains(\"prod\") }};
@id(\"staging\") forbid (principal, action, resource == Host::\"{host}\")
when {{ context.path == \"/v1/staging\" }} unless {{ context.host.labels.contains(\"staging\") }};"
    );
    let bundle = Bundle::new(1)
        .file("bundle.toml", manifest)
        .agent("probe", &reach("origin.test", origin.port, &["GET /v1/**"]))
        .rules("when", &rules);
    let guard = Guard::start(&site, &bundle);
    let mut probe = dialer(&guard.agent("probe"));
    for (path, expected) in [
        ("now", 200),
        ("later", 403),
        ("staging", 200),
        ("prod", 403),
    ] {
        let get = format!("get {}", origin.url(&format!("/v1/{path}")));
        assert_eq!(probe.tries(&get), format!("ok {expected}"), "{path}");
    }
    let curl = guard.agent("probe").client("curl".as_ref());
    let said = curl.arg("--silent").arg(origin.url("/v1/later")).run().ok();
    assert!(
        said.stdout.contains("urn:agentguard:problem:outside-hours"),
        "{said:#?}"
    );
    let records = guard.requests();
    let of = |path: &str| {
        records
            .iter()
            .find(|it| it.path() == path)
            .expect("a record")
    };
    assert_eq!(of("/v1/later").reason(), "outside-hours");
    assert_eq!(of("/v1/prod").reason(), "policy-denied");
    assert!(
        of("/v1/now").text("/facts/time").ends_with("[UTC]"),
        "{records:?}"
    );
    assert_eq!(of("/v1/now").0["facts"]["host.labels"], "staging");

    let explain = |time: &str| {
        let url = origin.url("/v1/later");
        let said = guard.cli([
            "policy", "explain", "--agent", "probe", "--time", time, "GET", &url, "--json",
        ]);
        said.ok().json()["permitted"].as_bool().expect("an answer")
    };
    let at = |hours: u64| format!("2026-11-23T{}", hours_from_now(hours));
    assert!(explain(&at(4)) && !explain(&at(6)));
}

#[test]
fn the_network_decides_and_what_is_open_ends_when_it_changes() {
    const TRUSTED: &str = "198.51.100.77/32";
    let site = Site::new();
    let origin = Nginx::start(&site);
    site.configure(|config| {
        let network = "trusted = [{ interface = \"lo\", source = \"198.51.100.77/32\" }]";
        let network: toml::Table = network.parse().expect("TOML");
        config.insert("network".into(), network.into());
    });
    let passed = format!(
        "[[reach]]\nhost = \"origin.test:{}\"\ntls = \"passthrough\"\nallow = [\"connect\"]\n",
        origin.port_http1
    );
    let rules = "@id(\"from-home\") @reason(\"untrusted-network\") forbid (principal, action, resource) unless { context.network.trusted };";
    let policy = reach("origin.test", origin.port, &["GET /v1/**"]) + &passed;
    let bundle = Bundle::new(1).agent("probe", &policy).rules("where", rules);
    let guard = Guard::start(&site, &bundle);
    let mut probe = dialer(&guard.agent("probe"));
    let get = format!("get {}", origin.url("/v1/x"));
    assert_eq!(probe.tries(&get), "ok 403", "a network that is not known");
    assert_eq!(guard.requests()[0].reason(), "untrusted-network");

    let until = |probe: &mut Dialer, expected: &str| {
        let deadline = Instant::now() + PATIENCE;
        while probe.tries(&get) != expected {
            assert!(Instant::now() < deadline, "never {expected}");
        }
    };
    let address = Address::add(TRUSTED);
    until(&mut probe, "ok 200");
    let last = guard.requests().pop().expect("a record");
    assert_eq!(last.0["facts"]["network.trusted"], "true");
    let mut passing = guard
        .agent("probe")
        .python(&format!(
            "import ssl
raw = socket.create_connection(('origin.test', {}))
tls = ssl._create_unverified_context().wrap_socket(raw, server_hostname='origin.test')
print('open', flush=True)
try: print('end', tls.recv(1))
except OSError as error: print('end', error)",
            origin.port_http1
        ))
        .spawn();
    passing.line(|line| line == "open");
    drop(address);
    passing.after("end");
    passing.finish().ok();
    until(&mut probe, "ok 403");
    let records = guard.audit();
    let cut = records
        .iter()
        .find(|it| it.action() == "connect" && it.text("/detail").contains("cut"));
    assert!(
        cut.is_some(),
        "the connection that was open is recorded as cut"
    );
}

/// Starts its arguments on a terminal of their own, which closes with standard input.
const TERMINAL: &str = "
import os, pty, sys
pid, master = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
print('terminal', flush=True)
while sys.stdin.readline(): pass
os.close(master)
os.waitpid(pid, 0)
";

/// `agentguard run` with no terminal, whoever starts the tests.
fn unattended(site: &Site, agent: &str) -> Dialer {
    let client = Client::new("setsid").arg("--wait");
    let mut running = runs(client, site, agent)
        .arg(python())
        .arg(script("dialer.py"))
        .spawn();
    running.say("pid");
    let tgid = running.after("ok ").parse().expect("a process id");
    Dialer::of(running, tgid)
}

fn runs(client: Client, site: &Site, agent: &str) -> Client {
    let run = client.arg(agentguard_tests::tools::agentguard()).arg("run");
    let run = run.arg("--config").arg(site.config());
    run.args(["--agent", agent, "--"])
        .env("PATH", agentguard_tests::tools::CLIENT_PATH)
        .env("HOME", site.path("home"))
}

#[test]
fn how_the_agent_is_up_decides_and_what_is_open_ends_with_its_terminal() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let host = origin.host();
    let rules = format!(
        "@id(\"watched\") forbid (principal, action, resource == Host::\"{host}\")
when {{ context.path == \"/v1/watched\" }} unless {{ context.agent.attended }};
@id(\"young\") forbid (principal, action, resource == Host::\"{host}\")
when {{ context.path == \"/v1/young\" }} unless {{ context.agent.uptime_s < 3600 }};
@id(\"old\") forbid (principal, action, resource == Host::\"{host}\")
when {{ context.path == \"/v1/old\" }} unless {{ context.agent.uptime_s >= 3600 }};
@id(\"passed\") forbid (principal, action == Action::\"connect\", resource)
unless {{ context.agent.attended }};"
    );
    let passed = format!(
        "[[reach]]\nhost = \"origin.test:{}\"\ntls = \"passthrough\"\nallow = [\"connect\"]\n",
        origin.port_http1
    );
    let policy = reach("origin.test", origin.port, &["GET /v1/**"]) + &passed;
    let bundle = Bundle::new(1).agent("probe", &policy).rules("up", &rules);
    let guard = Guard::start(&site, &bundle);
    let get = |path: &str| format!("get {}", origin.url(path));
    let mut probe = unattended(&site, "probe");
    for (path, says) in [
        ("/v1/watched", "ok 403"),
        ("/v1/young", "ok 200"),
        ("/v1/old", "ok 403"),
    ] {
        assert_eq!(probe.tries(&get(path)), says, "{path}");
    }
    let explain = || {
        let url = origin.url("/v1/watched");
        let words = [
            "policy", "explain", "--agent", "probe", "GET", &url, "--json",
        ];
        guard.cli(words).ok().json()["permitted"] == true
    };
    assert!(!explain());

    // A second one of the same agent's, on a terminal: the agent is attended before its first instruction.
    let client = Client::new(python()).args(["-c", TERMINAL]);
    let mut terminal = runs(client, &site, "probe").args(["sleep", "600"]).spawn();
    terminal.after("terminal");
    let deadline = Instant::now() + PATIENCE;
    while probe.tries(&get("/v1/watched")) != "ok 200" {
        assert!(Instant::now() < deadline, "never attended");
    }
    assert!(explain());
    let last = guard.requests().pop().expect("a record");
    assert_eq!(last.0["facts"]["agent.attended"], "true");
    let uptime = last.text("/facts/agent.uptime_s").parse::<u64>();
    assert!(uptime.is_ok_and(|uptime| uptime < 600), "{last:?}");

    // What is open ends with the terminal. By a process that the terminal's end does not end.
    let code = format!(
        "import os, socket, ssl, sys
raw = socket.create_connection(('origin.test', {}))
tls = ssl._create_unverified_context().wrap_socket(raw, server_hostname='origin.test')
print('open', flush=True)
try: print('end', tls.recv(1))
except OSError as error: print('end', error)",
        origin.port_http1
    );
    let client = Client::new("setsid").arg("--wait");
    let mut passing = runs(client, &site, "probe")
        .arg(python())
        .args(["-c", &code])
        .spawn();
    passing.line(|line| line == "open");
    terminal.close_stdin();
    passing.after("end");
    passing.finish().ok();
    while probe.tries(&get("/v1/watched")) != "ok 403" {
        assert!(Instant::now() < deadline, "attended for ever");
    }
    let records = guard.audit();
    let cut = records
        .iter()
        .find(|it| it.action() == "connect" && it.text("/detail").contains("cut"));
    assert!(cut.is_some(), "{records:#?}");
    terminal.finish();
}
