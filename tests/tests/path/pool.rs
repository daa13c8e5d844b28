//! Upstream connections that are kept: who goes out on which, and what becomes of requests on one that its server retires,
//! closes or forgets.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use agentguard_tests::bundle::reach;
use agentguard_tests::client::{Subject, node};
use agentguard_tests::server::Server;
use agentguard_tests::tools::ORIGIN;
use agentguard_tests::{Bundle, Guard, Nginx, Site};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, socket,
};

const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn requests_go_out_in_the_order_in_which_they_came() {
    const ROUNDS: usize = 100;
    let site = Site::new();
    let mut origin = Server::node(&site, "origin.mjs", &["{}"]);
    let port = origin.port;
    let mut late = |subject: &dyn Subject, connections: &str| {
        let url = format!("https://{ORIGIN}:{port}");
        let ran = node(subject, "pool_client.mjs")
            .args(["order", &url, connections, &ROUNDS.to_string()])
            .spawn()
            .finish_within(PATIENCE)
            .ok();
        assert_eq!(ran.stdout.trim(), "done");
        let arrived = |round: usize| {
            let below = format!("/v1/{round}/");
            let mut next = || origin.talk().line(|line| line.contains(&below));
            [next(), next(), next()].map(|line| line.trim().to_owned())
        };
        let rounds = (0..ROUNDS).map(arrived);
        rounds.filter(|order| order[1].starts_with("POST")).count()
    };
    let policy = reach(ORIGIN, port, &["ANY /v1/**"]);
    let bundle = Bundle::new(1).agent("probe", &policy);
    let guard = Guard::start(&site, &bundle.file("hosts/origin.toml", reads_bodies(port)));
    for connections in ["new", "kept", "same"] {
        let off = late(&site, connections);
        let on = late(&guard.agent("probe"), connections);
        assert!(on <= off, "{connections}: {on}, without AgentGuard {off}");
    }
}

/// Otherwise a body is the last of its connection.
fn reads_bodies(port: u16) -> String {
    format!("[host]\nname = \"{ORIGIN}:{port}\"\nreads_bodies = true\n")
}

#[test]
fn connections_that_the_origin_retires_lose_no_request_by_http1() {
    retire("--http1.1");
}

#[test]
fn connections_that_the_origin_retires_lose_no_request_by_http2() {
    retire("--http2");
}

/// nginx closes each connection after ten requests; over HTTP/2 it refuses the streams that come meanwhile.
fn retire(version: &str) {
    const EACH: usize = 2_000;
    let site = Site::new();
    let origin = Nginx::retiring(&site, 10);
    let config = site.path("urls");
    let mut urls = String::new();
    let mut wanted = BTreeMap::new();
    for n in 0..EACH {
        for (method, data) in [("GET", ""), ("POST", "data = \"body\"\n")] {
            let path = format!("/v1/{method}/{n}");
            let url = origin.url(&path);
            let _ = writeln!(
                urls,
                "next\nsilent\n{data}url = \"{url}\"\noutput = \"/dev/null\""
            );
            let _ = writeln!(urls, "{}\nwrite-out = \"%{{http_code}}\\n\"", &version[2..]);
            wanted.insert(path, 1);
        }
    }
    std::fs::write(&config, urls).expect("written");
    let policy = reach(ORIGIN, origin.port, &["GET /v1/**", "POST /v1/**"]);
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let ran = guard
        .agent("probe")
        .client("curl".as_ref())
        .args(["--parallel", "--parallel-max", "32", "--config"])
        .arg(&config)
        .spawn()
        .finish_within(PATIENCE)
        .ok();
    let mut statuses: BTreeMap<&str, usize> = BTreeMap::new();
    for status in ran.stdout.lines() {
        *statuses.entry(status).or_default() += 1;
    }
    assert_eq!(statuses, BTreeMap::from([("200", 2 * EACH)]));
    let mut arrived = BTreeMap::new();
    for hit in origin.hits() {
        *arrived.entry(hit.uri).or_default() += 1;
    }
    wanted.retain(|path, times| arrived.get(path) != Some(times));
    arrived.retain(|path, _| wanted.contains_key(path));
    assert_eq!(arrived, wanted, "each arrives once");
}

#[test]
fn a_request_beyond_the_origins_streams_has_a_connection_of_its_own() {
    let site = Site::new();
    let options = r#"{"settings": {"maxConcurrentStreams": 5}}"#;
    let origin = Server::node(&site, "origin.mjs", &[options]);
    let policy = reach(ORIGIN, origin.port, &["GET /**"]);
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let url = format!("https://{ORIGIN}:{}", origin.port);
    let ran = node(&guard.agent("probe"), "pool_client.mjs")
        .args(["streams", &url, "5"])
        .run()
        .ok();
    assert_eq!(ran.stdout.trim(), "200\n200 200 200 200 200");
}

#[test]
fn a_connection_that_could_not_be_opened_is_tried_again_while_the_others_are_busy() {
    let site = Site::new();
    let options = r#"{"settings": {"maxConcurrentStreams": 1}}"#;
    let mut origin = Server::node(&site, "origin.mjs", &[options]);
    let port = origin.port;
    let policy = reach(ORIGIN, port, &["GET /**"]);
    let hosts = format!("[host]\nname = \"{ORIGIN}:{port}\"\ntimeouts = {{ head = \"3s\" }}\n");
    let bundle = Bundle::new(1).agent("probe", &policy);
    let guard = Guard::start(&site, &bundle.file("hosts/origin.toml", hosts));
    let url = |path: &str| format!("https://{ORIGIN}:{port}{path}");
    let agent = guard.agent("probe");
    let watched = agent.client("curl".as_ref());
    let watched = watched
        .args(["--silent", "--output", "/dev/null", &url("/open/0")])
        .spawn();
    origin.talk().line(|line| line.contains("/open/0"));
    origin.talk().say("refuse");
    origin.talk().line(|line| line.trim() == "heard");
    assert_eq!(get(&guard, &url("/v1/refused"), "--http2", "30"), "504");
    origin.talk().say("accept");
    origin.talk().line(|line| line.trim() == "heard");
    assert_eq!(get(&guard, &url("/v1/taken"), "--http2", "30"), "200");
    drop(watched);
}

#[test]
fn an_address_that_does_not_answer_holds_nobody_up_who_has_another() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let _silent = silent_at(origin.port);
    site.configure(|config| set_addresses(config, &[SILENT, "127.0.0.1"]));
    let policy = reach(ORIGIN, origin.port, &["GET /v1/**"]);
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    for version in ["--http1.1", "--http2"] {
        // A connection has ten seconds for all of the host's addresses.
        let ran = get(&guard, &origin.url("/v1/x"), version, "8");
        assert_eq!(ran, "200");
    }
}

#[test]
fn requests_to_a_host_that_does_not_answer_wait_side_by_side() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let port = origin.port;
    let _silent = silent_at(port);
    site.configure(|config| {
        set_addresses(config, &[SILENT]);
        let forwarder = config["forwarder"].as_table_mut().expect("a table");
        forwarder.insert("upstream_connect_timeout_ms".into(), 1000.into());
    });
    let policy = reach(ORIGIN, port, &["GET /v1/**"]);
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    for version in ["--http1.1", "--http2"] {
        let url = format!("https://{ORIGIN}:{port}/v1/[1-20]");
        assert_eq!(get(&guard, &url, version, "15"), "504".repeat(20));
    }
}

const SILENT: &str = "127.0.0.9";

fn set_addresses(config: &mut toml::Table, addresses: &[&str]) {
    let hosts = toml::Table::from_iter([(ORIGIN.to_owned(), addresses.to_vec().into())]);
    config["upstream"]["hosts"] = hosts.into();
}

fn get(guard: &Guard, url: &str, version: &str, seconds: &str) -> String {
    let agent = guard.agent("probe");
    let client = agent.client("curl".as_ref());
    let client = client.args(["--silent", "--parallel", "--output", "/dev/null", version]);
    let ran = client
        .args(["--max-time", seconds, "--write-out", "%{http_code}", url])
        .run();
    ran.stdout
}

/// Somebody whose queue is full, so that the kernel drops who comes (`tcp_conn_request()`).
struct Silent {
    _listener: OwnedFd,
    _queued: TcpStream,
}

fn silent_at(port: u16) -> Silent {
    let address = SocketAddrV4::new(SILENT.parse().expect("an address"), port);
    let (kind, flags) = (SockType::Stream, SockFlag::SOCK_CLOEXEC);
    let listener = socket(AddressFamily::Inet, kind, flags, None).expect("a socket");
    bind(listener.as_raw_fd(), &SockaddrIn::from(address)).expect("bound");
    listen(&listener, Backlog::new(0).expect("a backlog")).expect("listens");
    Silent {
        _listener: listener,
        _queued: TcpStream::connect(address).expect("queued"),
    }
}

#[test]
fn an_origin_that_says_how_long_it_waits_closes_under_no_request() {
    let site = Site::new();
    let origin = Server::node(&site, "origin.mjs", &[r#"{"keepAliveTimeout": 1000}"#]);
    pauses(&site, origin.port);
}

#[test]
fn an_origin_that_closes_without_having_said_so_closes_under_no_request() {
    let site = Site::new();
    let origin = Server::start(&site, "mute_server.py", &["1"]);
    pauses(&site, origin.port);
}

fn pauses(site: &Site, port: u16) {
    let policy = reach(ORIGIN, port, &["POST /v1/**"]);
    let bundle = Bundle::new(1).agent("probe", &policy);
    let guard = Guard::start(site, &bundle.file("hosts/origin.toml", reads_bodies(port)));
    let ran = node(&guard.agent("probe"), "pool_client.mjs")
        .args(["pauses", &format!("https://{ORIGIN}:{port}"), "100", "8"])
        .spawn()
        .finish_within(PATIENCE)
        .ok();
    assert_eq!(ran.stdout.trim(), r#"{"200":800}"#);
}

#[test]
fn a_connection_that_has_died_in_silence_costs_seconds_by_http1() {
    mute("1");
}

#[test]
fn a_connection_that_has_died_in_silence_costs_seconds_by_http2() {
    mute("2");
}

fn mute(version: &str) {
    let site = Site::new();
    let mut origin = Server::start(&site, "mute_server.py", &[]);
    let policy = reach(ORIGIN, origin.port, &["GET /v1/**"]);
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let mut client = node(&guard.agent("probe"), "pool_client.mjs")
        .args([
            "mute",
            &format!("https://{ORIGIN}:{}", origin.port),
            version,
        ])
        .spawn();
    assert_eq!(client.after("first "), "200");
    origin.talk().say("mute");
    origin.talk().line(|line| line.trim() == "muted");
    client.say("again");
    let ran = client.finish_within(PATIENCE).ok();
    let (status, millis) = ran.stdout.trim().rsplit_once(' ').expect("two words");
    assert!(status.ends_with("second 200"), "{status}");
    // Of the hour that the answer has. A server that has no acknowledgement of its last answer sends that again, and is heard.
    assert!(
        millis.parse::<u64>().expect("a number") < 40_000,
        "{millis} ms"
    );
}
