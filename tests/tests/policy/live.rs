//! What is open when another bundle comes into force: what it denies ends within a second, the rest goes on.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use agentguard_tests::bundle::{direct, reach};
use agentguard_tests::client::{Subject, python};
use agentguard_tests::{Bundle, Guard, Nginx, Running, Server, Site, Tap};

/// From the answer to `policy apply`.
const AT_ONCE: Duration = Duration::from_secs(1);

fn apply(site: &Site, bundle: &Bundle) {
    let dir = site.path("candidate");
    bundle.write(&dir);
    site.cli(["policy", "apply"]).arg(&dir).run().ok();
}

/// Connects straight to the port, says `open`, and then how it ended.
fn hold(guard: &Guard<'_>, port: u16) -> Running {
    let code = format!(
        r#"
stream = socket.create_connection(("127.0.0.1", {port}))
print("open", flush=True)
try:
    print("ended", "end" if not stream.recv(1) else "data", flush=True)
except OSError as error:
    print("ended", errno.errorcode[error.errno], flush=True)
"#
    );
    let mut held = guard.agent("probe").python(&code).spawn();
    held.line(|line| line == "open");
    held
}

#[test]
fn direct_connections_that_are_denied_now_are_cut() {
    let site = Site::new();
    let listeners = [0; 2].map(|_| TcpListener::bind("127.0.0.1:0").expect("a port"));
    let [gone, kept] = listeners
        .each_ref()
        .map(|it| it.local_addr().expect("bound").port());
    let to = |port: u16| direct(&format!("127.0.0.1/32:{port}"), "tcp");
    let both = to(gone) + &to(kept);
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &both));
    let (mut ends, mut stays) = (hold(&guard, gone), hold(&guard, kept));
    let accepted = listeners
        .each_ref()
        .map(|it| it.accept().expect("a connection").0);
    // One of no agent's.
    let neighbour = std::net::TcpStream::connect(("127.0.0.1", gone)).expect("connected");

    apply(&site, &Bundle::new(2).agent("probe", &to(kept)));
    let applied = Instant::now();
    assert_eq!(ends.after("ended "), "ECONNABORTED");
    assert!(applied.elapsed() < AT_ONCE, "{:?}", applied.elapsed());
    assert!(stays.is_running() && !stays.heard().contains("ended"));
    assert!(neighbour.peer_addr().is_ok());

    // An agent that the bundle no longer has.
    apply(&site, &Bundle::new(3).agent("other", &to(kept)));
    let applied = Instant::now();
    assert_eq!(stays.after("ended "), "ECONNABORTED");
    assert!(applied.elapsed() < AT_ONCE, "{:?}", applied.elapsed());
    drop(accepted);
}

#[test]
fn tunnels_that_are_denied_now_are_cut() {
    let site = Site::new();
    let server = Server::start(&site, "ws_server.py", &[]);
    let policy = |paths: &[&str]| {
        Bundle::new(paths.len() as u64).agent("probe", &reach("origin.test", server.port, paths))
    };
    let guard = Guard::start(&site, &policy(&["GET /v1/one"]));
    let url = format!("wss://origin.test:{}/v1/one", server.port);
    let mut held = python(&guard.agent("probe"), "ws_held.py").arg(url).spawn();
    held.line(|line| line == "open");
    apply(&site, &policy(&["GET /v1/one", "GET /v1/two"]));
    assert!(held.is_running() && !held.heard().contains("ended"));
    apply(
        &site,
        &policy(&["GET /v1/two", "GET /v1/three", "GET /v1/four"]),
    );
    let applied = Instant::now();
    held.line(|line| line == "ended");
    assert!(applied.elapsed() < AT_ONCE, "{:?}", applied.elapsed());
    drop(held);
    let cut = guard.requests().pop().expect("a record");
    assert_eq!((cut.outcome(), cut.reason()), ("deny", "policy-denied"));
}

#[test]
fn answers_and_uploads_that_are_denied_now_are_cut() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let file = std::fs::File::create(origin.files().join("endless")).expect("made");
    // Sparse: as long as the test wants, and no disk.
    file.set_len(1 << 40).expect("set");
    let policy = |serial: u64, lines: &[&str]| {
        Bundle::new(serial).agent("probe", &reach("origin.test", origin.port, lines))
    };
    let all = ["GET /files/endless", "PUT /dav/up", "GET /v1/x"];
    let guard = Guard::start(&site, &policy(1, &all));
    let curl = |version: &str, more: &[&str], path: &str| {
        guard
            .agent("probe")
            .client("curl".as_ref())
            .args(["--silent", "--show-error", "--fail"])
            .args(["--output", "/dev/null", version])
            .args(more)
            .arg(origin.url(path))
            .spawn()
    };
    let mut serial = 1;
    let mut put_in_force = |lines: &[&str]| {
        serial += 1;
        apply(&site, &policy(serial, lines));
        Instant::now()
    };
    for version in ["--http1.1", "--http2"] {
        let mut tap = Tap::start();
        let mut down = curl(version, &[], "/files/endless");
        while tap.from_port(origin.port).bytes < 1 << 20 {
            assert!(down.is_running(), "{}", down.rest());
        }
        let zeros = ["--upload-file", "/dev/zero", "--limit-rate", "2M"];
        let mut up = curl(version, &zeros, "/dav/up");
        while tap.to_port(origin.port).bytes < 1 << 20 {
            assert!(up.is_running(), "{}", up.rest());
        }
        // What goes on under the new bundle goes on.
        put_in_force(&["GET /files/endless", "PUT /dav/up", "GET /v1/y"]);
        for far in [4 << 20, 8 << 20] {
            while tap.to_port(origin.port).bytes < far || tap.from_port(origin.port).bytes < far {
                assert!(
                    up.is_running() && down.is_running(),
                    "{} {}",
                    up.rest(),
                    down.rest()
                );
            }
        }
        for (gone, left) in [
            (up, &["GET /files/endless", "GET /v1/x"][..]),
            (down, &["GET /v1/x"]),
        ] {
            let applied = put_in_force(left);
            let ran = gone.finish();
            assert!(applied.elapsed() < AT_ONCE, "{:?}", applied.elapsed());
            assert_ne!(ran.code(), 0, "{ran:#?}");
        }
        let records = guard.requests();
        let cut = records.iter().rev().take(2);
        let cut: Vec<_> = cut
            .map(|it| (it.path(), it.outcome(), it.reason()))
            .collect();
        let denied = |path| (path, "deny", "policy-denied");
        assert_eq!(
            cut,
            [denied("/files/endless"), denied("/dav/up")],
            "{version}"
        );
        put_in_force(&all);
    }
}

#[test]
fn passed_through_connections_that_are_denied_now_are_cut() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let passed = |port: u16| {
        format!(
            "[[reach]]\nhost = \"origin.test:{port}\"\ntls = \"passthrough\"\nallow = [\"connect\"]\n"
        )
    };
    let (gone, kept) = (passed(origin.port), passed(origin.port_http1));
    let both = Bundle::new(1).agent("probe", &format!("{gone}{kept}"));
    let guard = Guard::start(&site, &both);
    let hold = |port: u16| {
        let code = format!(
            "import ssl
raw = socket.create_connection(('origin.test', {port}))
tls = ssl._create_unverified_context().wrap_socket(raw, server_hostname='origin.test')
print('open', flush=True)
try: print('ended', tls.recv(1), flush=True)
except OSError as error: print('ended', error, flush=True)"
        );
        let mut held = guard.agent("probe").python(&code).spawn();
        held.line(|line| line == "open");
        held
    };
    let (mut ends, mut stays) = (hold(origin.port), hold(origin.port_http1));
    apply(&site, &Bundle::new(2).agent("probe", &kept));
    let applied = Instant::now();
    ends.after("ended");
    assert!(applied.elapsed() < AT_ONCE, "{:?}", applied.elapsed());
    assert!(stays.is_running() && !stays.heard().contains("ended"));
    let records = guard.audit();
    let cut = records.iter().filter(|it| it.action() == "connect");
    let cut: Vec<_> = cut.map(|it| (it.outcome(), it.reason())).collect();
    assert_eq!(cut, [("deny", "policy-denied")], "{records:#?}");
}
