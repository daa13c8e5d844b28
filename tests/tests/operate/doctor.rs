//! What `doctor` says holds, and bundles that require what does not.

use std::time::{Duration, Instant};

use agentguard_tests::attempt::User;
use agentguard_tests::bundle::reach;
use agentguard_tests::client::{Client, dialer};
use agentguard_tests::standing::{Standing, Standings};
use agentguard_tests::tools::{agentguard, python};
use agentguard_tests::{Bundle, Guard, Nginx, Ran, Site};
use serde_json::Value;

/// In this order, for ever.
const IDS: [&str; 25] = [
    "lineage",
    "tcp",
    "udp",
    "dns",
    "raw-sockets",
    "listen",
    "kill",
    "kill-resets",
    "address-families",
    "exec",
    "exec-scripts",
    "exec-digest",
    "unix-sockets",
    "handed-over-sockets",
    "io-uring",
    "terminal",
    "tamper",
    "own-files",
    "namespaces",
    "forwarder-sandbox",
    "canary",
    "process-memory",
    "signals",
    "devices",
    "sysctl",
];

#[test]
fn it_needs_no_daemon_and_agrees_with_one() {
    let site = Site::new();
    let before = site.cli(["doctor", "--json"]).run().ok().json();
    assert_eq!(before["daemon"], false, "{before}");
    let ids: Vec<&str> = rows(&before).map(|row| text(row, "id")).collect();
    assert_eq!(ids, IDS);
    // Nothing is attached yet, and it says so.
    assert_eq!(row(&before, "tcp")["holds"], "open");
    let why = text(row(&before, "tcp"), "why");
    assert!(why.starts_with("not running; would be enforced"), "{why}");
    assert!(text(row(&before, "tcp"), "why").contains("connect4"));
    assert!(text(row(&before, "tcp"), "remedy").contains("agentguard daemon"));

    let mut guard = Guard::start(&site, &Bundle::new(1).agent("probe", ""));
    let live = guard.cli(["doctor", "--json"]).ok().json();
    assert_eq!(live["daemon"], true, "{live}");
    let ids: Vec<&str> = rows(&live).map(|row| text(row, "id")).collect();
    assert_eq!(ids, IDS);
    for held in [
        "lineage",
        "tcp",
        "udp",
        "dns",
        "raw-sockets",
        "listen",
        "kill",
    ] {
        assert_eq!(row(&live, held)["holds"], "enforced", "{live}");
    }
    let sandbox = text(row(&live, "forwarder-sandbox"), "why").to_owned();
    assert!(sandbox.contains("system call filter"), "{sandbox}");
    // What it said before of what would be is what is.
    for row_now in rows(&live).filter(|row| row["id"] != "canary") {
        let would = text(row(&before, text(row_now, "id")), "why");
        match row_now["holds"].as_str() {
            Some("enforced") => assert!(!would.contains("fallback ("), "{would}: {row_now}"),
            Some("fallback") => assert!(would.contains("would hold by fallback"), "{would}"),
            _ => assert!(!would.contains("would"), "{would}: {row_now}"),
        }
    }
    for row in rows(&live) {
        let holds = text(row, "holds");
        assert!(["enforced", "fallback", "open"].contains(&holds), "{row}");
        assert!(!text(row, "why").is_empty(), "{row}");
    }
    let status = guard.cli(["status", "--json"]).ok().json();
    assert_eq!(status["guarantees"], live["guarantees"]);
    let shown = guard.cli(["status"]).ok().stdout;
    for gap in open(&live) {
        assert!(shown.contains(&gap), "{gap} in {shown}");
    }

    // What is pinned holds on, and the doctor sees it.
    guard.stop();
    let stopped = guard.cli(["doctor", "--json"]).ok().json();
    assert_eq!(stopped["daemon"], false);
    assert_eq!(row(&stopped, "tcp")["holds"], "enforced", "{stopped}");
}

/// What this test knows of the host, and the standings of what is tried elsewhere, say the same as the doctor.
#[test]
fn each_gap_of_this_host_has_its_row() {
    let standings = Standings::of_this_kernel();
    let site = Site::new();
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", ""));
    let report = guard.cli(["doctor", "--json"]).ok().json();
    let parameter = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let has = |path: &str, value: &str| parameter(path).trim() == value;
    let or = |is: bool, other: &'static str| if is { "enforced" } else { other };
    let lsm = standings.has_lsm();
    let unix = release() >= (6, 7);
    let landlock = agentguard_sys::privilege::landlock_abi();
    let expected = [
        ("lineage", "enforced"),
        ("tcp", "enforced"),
        ("udp", "enforced"),
        ("dns", "enforced"),
        ("raw-sockets", "enforced"),
        ("listen", "enforced"),
        ("kill", "enforced"),
        ("namespaces", "enforced"),
        ("canary", "enforced"),
        ("address-families", or(lsm, "fallback")),
        ("exec", or(lsm, "fallback")),
        ("exec-scripts", or(lsm, "open")),
        (
            "unix-sockets",
            or(lsm, if unix { "fallback" } else { "open" }),
        ),
        ("handed-over-sockets", or(lsm, "open")),
        ("tamper", or(lsm, "open")),
        (
            "process-memory",
            or(lsm, if landlock >= 1 { "fallback" } else { "open" }),
        ),
        (
            "signals",
            or(lsm, if landlock >= 6 { "fallback" } else { "open" }),
        ),
        ("devices", "enforced"),
        ("sysctl", "enforced"),
        (
            "terminal",
            or(
                lsm || has("/proc/sys/dev/tty/legacy_tiocsti", "0"),
                "fallback",
            ),
        ),
        (
            "io-uring",
            or(has("/proc/sys/kernel/io_uring_disabled", "2"), "fallback"),
        ),
    ];
    for (id, holds) in expected {
        assert_eq!(row(&report, id)["holds"], holds, "{}", row(&report, id));
    }
    for row in rows(&report).filter(|row| row["holds"] != "enforced") {
        assert!(text(row, "why").len() > 20, "{row}");
        assert!(!text(row, "remedy").is_empty(), "{row}");
    }
    let families = text(row(&report, "address-families"), "name").to_lowercase();
    for family in ["packet", "xdp", "vsock"] {
        assert!(families.contains(family), "{family} in {families}");
    }
    for attempt in standings.named() {
        if standings.of_attempt(attempt, User::Root) != Standing::Open {
            continue;
        }
        let told = match attempt {
            "packet socket" | "xdp socket" | "vsock" | "smc" => "address-families",
            "a unix socket" => "unix-sockets",
            "tampering with privileges kept" => "tamper",
            "a connection that is handed over" => "handed-over-sockets",
            _ => panic!("no row of the doctor's for {attempt}"),
        };
        let row = row(&report, told);
        assert_ne!(row["holds"], "enforced", "{attempt}: {row}");
    }
}

/// Of the kernel, its first two numbers.
fn release() -> (u32, u32) {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("readable");
    let mut numbers = text.split('.').map(|word| word.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[test]
fn a_bundle_that_requires_too_much_is_refused() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let guard = Guard::start(&site, &bundle(&origin, 1, &[]));
    let doctor = guard.cli(["doctor", "--json"]).ok().json();
    let gap = open(&doctor)
        .into_iter()
        .next()
        .expect("some gap on any kernel so far");

    let refused = apply(&site, &guard, &bundle(&origin, 2, &["tcp", &gap]));
    assert_eq!(refused.code(), 3, "{refused:#?}");
    assert!(refused.stderr.contains(&format!("`{gap}`")), "{refused:#?}");
    assert!(!refused.stderr.contains("`tcp`"), "{refused:#?}");
    assert_eq!(refused.stderr.trim().lines().count(), 1, "{refused:#?}");
    assert_eq!(serial(&guard), 1, "the old one is still in force");
    let records = guard.audit();
    let denied = records
        .iter()
        .find(|record| record.action() == "policy-apply" && record.outcome() == "deny");
    let denied = denied.expect("the refusal is recorded");
    assert!(denied.0.to_string().contains(&gap), "{denied:?}");

    apply(&site, &guard, &bundle(&origin, 2, &["tcp", "udp", "kill"])).ok();
    assert_eq!(serial(&guard), 2);

    let wrong = apply(&site, &guard, &bundle(&origin, 3, &["tamprr"]));
    assert_eq!(wrong.code(), 3, "{wrong:#?}");
    for part in ["bundle.toml:4:12", "tamprr", "did you mean `tamper`?"] {
        let said = format!("{}{}", wrong.stdout, wrong.stderr);
        assert!(said.contains(part), "{part}: {wrong:#?}");
    }
}

#[test]
fn accepted_gaps_are_in_the_audit_log() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let gap = {
        let guard = Guard::start(&site, &bundle(&origin, 1, &[]));
        let doctor = guard.cli(["doctor", "--json"]).ok().json();
        open(&doctor).into_iter().next().expect("some gap")
    };
    std::fs::remove_dir_all(site.path("state")).expect("removed");

    // Refused at start as well: agents are closed, and the daemon says so.
    let mut guard = Guard::start(&site, &bundle(&origin, 1, &[&gap]));
    let status = guard.cli(["status", "--json"]).ok().json();
    assert!(status["bundle"].is_null(), "{status}");
    assert_eq!(status["forwarder"]["state"], "up", "{status}");
    let alarms = status["alarms"].to_string();
    assert!(
        alarms.contains(&gap) && alarms.contains("accept_gaps"),
        "{alarms}"
    );
    let run = guard.cli(["run", "--agent", "probe", "--", "true"]);
    assert_eq!(run.code(), 125, "{run:#?}");
    guard.stop();

    site.configure(|config| {
        let policy = config["policy"].as_table_mut().expect("a table");
        policy.insert("accept_gaps".into(), vec![gap.clone()].into());
    });
    guard.restart();
    let mut agent = dialer(&guard.agent("probe"));
    let get = format!("get {}", origin.url("/v1/x"));
    assert_eq!(agent.tries(&get), "ok 200");
    apply(&site, &guard, &bundle(&origin, 2, &[&gap])).ok();
    let records = guard.audit();
    for action in ["start", "policy-apply"] {
        let accepted = |record: &&agentguard_tests::Record| {
            record.action() == action && record.0.to_string().contains("accepted")
        };
        let record = records.iter().find(accepted).unwrap_or_else(|| {
            panic!("no record of {action} names the gap: {records:#?}");
        });
        assert!(record.0.to_string().contains(&gap), "{record:?}");
    }
    guard.stop();

    site.configure(|config| {
        let policy = config["policy"].as_table_mut().expect("a table");
        policy.insert("accept_gaps".into(), vec!["tampre"].into());
    });
    let wrong = guard.cli(["daemon"]);
    assert_eq!(wrong.code(), 2, "{wrong:#?}");
    for part in ["agentguard.toml:", "tampre", "did you mean `tamper`?"] {
        assert!(wrong.stderr.contains(part), "{part}: {wrong:#?}");
    }
    site.configure(|_| {});
}

/// What the control API labels without `agentguard run` has none of what that sets up.
#[test]
fn a_process_that_run_did_not_start_opens_what_only_run_holds() {
    const ASK: &str = r#"
import http.client, json, socket, subprocess, sys
child = subprocess.Popen(["sleep", "300"])
control = http.client.HTTPConnection("agentguard")
control.sock = socket.socket(socket.AF_UNIX); control.sock.connect(sys.argv[1])
control.request("POST", "/v1/run", json.dumps({"agent": "probe", "pid": child.pid}))
print(control.getresponse().status, flush=True)
sys.stdin.read(); child.kill(); child.wait()
"#;
    let site = Site::new();
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", ""));
    let row_of = |id: &str| {
        let report = guard.cli(["doctor", "--json"]).json();
        let row = row(&report, id);
        (text(row, "holds").to_owned(), text(row, "why").to_owned())
    };
    let ids = ["process-memory", "signals"];
    let before = ids.map(|id| row_of(id).0);
    let mut caller = Client::new(python())
        .args(["-c", ASK])
        .arg(site.path("run/control.sock"))
        .spawn();
    caller.line(|line| line == "200");
    for (id, before) in ids.into_iter().zip(&before) {
        // Another state has other reasons, and stays.
        let expected = if before == "fallback" { "open" } else { before };
        let deadline = Instant::now() + Duration::from_secs(30);
        while row_of(id).0 != *expected {
            assert!(Instant::now() < deadline, "{id}: {:?}", row_of(id));
        }
        if before == "fallback" {
            let why = row_of(id).1;
            assert!(why.contains("does not hold probe"), "{why}");
        }
    }
    caller.close_stdin();
    caller.finish_within(Duration::from_secs(30)).ok();
    assert_eq!(ids.map(|id| row_of(id).0), before);
}

#[test]
fn who_may_not_ask_the_daemon_is_told_so() {
    let site = Site::new();
    let guard = Guard::start(&site, &Bundle::new(1));
    let doctor = Client::new(agentguard()).user(65534);
    let doctor = doctor.env("AGENTGUARD_CONFIG", site.config());
    let said = doctor.arg("doctor").run().ok().stdout;
    let first = said.lines().next().expect("a line");
    assert!(first.contains("role"), "{first}");
    assert!(!first.contains("no daemon answers"), "{first}");
    drop(guard);
    let said = site.cli(["doctor"]).run().ok().stdout;
    assert!(said.contains(", no daemon answers"), "{said}");
}

fn bundle(origin: &Nginx, serial: u64, require: &[&str]) -> Bundle {
    let policy = reach("origin.test", origin.port, &["GET /v1/**"]);
    Bundle::new(serial).agent("probe", &policy).file(
        "bundle.toml",
        format!("name = \"test\"\nserial = {serial}\nmode = \"enforce\"\nrequire = {require:?}\n"),
    )
}

fn apply(site: &Site, guard: &Guard<'_>, bundle: &Bundle) -> Ran {
    let dir = site.path("next");
    bundle.write(&dir);
    guard.cli(["policy", "apply", dir.to_str().expect("UTF-8")])
}

fn serial(guard: &Guard<'_>) -> u64 {
    let status = guard.cli(["status", "--json"]).ok().json();
    status["bundle"]["serial"].as_u64().expect("a serial")
}

fn rows(report: &Value) -> impl Iterator<Item = &Value> {
    report["guarantees"].as_array().expect("rows").iter()
}

fn row<'r>(report: &'r Value, id: &str) -> &'r Value {
    rows(report).find(|row| row["id"] == id).expect("a row")
}

fn text<'r>(row: &'r Value, key: &str) -> &'r str {
    row[key].as_str().expect("text")
}

fn open(report: &Value) -> Vec<String> {
    let open = rows(report).filter(|row| row["holds"] == "open");
    // The canary's state is the daemon's own.
    let lasting = open.filter(|row| row["id"] != "canary");
    lasting.map(|row| text(row, "id").to_owned()).collect()
}
