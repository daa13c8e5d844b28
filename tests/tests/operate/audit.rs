//! The audit log as an operator uses it: found, followed, verified; and what an attacker does to it is seen.

use std::fs;
use std::path::PathBuf;

use agentguard_tests::bundle::reach;
use agentguard_tests::client::dialer;
use agentguard_tests::{Bundle, Guard, Nginx, Record, Site};

#[test]
fn a_record_has_what_an_operator_needs() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let guard = start(&site, &origin);
    let ran = site
        .cli(["run", "--agent", "probe", "--task", "T-42", "--"])
        .args([
            "curl",
            "--silent",
            // nginx answers before it has read the body, which curl takes over HTTP/1.1 only.
            "--http1.1",
            "-H",
            "Authorization: Bearer sesame",
            "-H",
            "Cookie: id=sesame",
        ])
        .args(["-d", "sesame=1", &origin.url("/v1/x?token=sesame")])
        .run();
    assert_eq!(ran.code(), 0, "{ran:#?}");
    let record = guard.requests().pop().expect("a record");
    assert_eq!(record.agent(), "probe");
    assert_eq!(record.text("/owner"), "probe-owner@example.com");
    assert_eq!(record.text("/intent"), "T-42");
    assert_eq!((record.action(), record.outcome()), ("POST", "allow"));
    assert_eq!(record.resource(), origin.host());
    for (field, value) in [
        ("scheme", "https"),
        ("host", "origin.test"),
        ("method", "POST"),
        ("path", "/v1/x"),
    ] {
        assert_eq!(
            record.text(&format!("/request/{field}")),
            value,
            "{record:?}"
        );
    }
    assert_eq!(record.number("/request/port"), u64::from(origin.port));
    assert_eq!(record.number("/request/status"), 200);
    assert_eq!(record.number("/bytes_up"), 8);
    assert!(record.number("/bytes_down") > 0);
    assert!(record.number("/latency_us/total") >= record.number("/latency_us/decide"));
    assert!(
        record.text("/upstream/addr").contains("127.0.0.1"),
        "{record:?}"
    );
    assert_eq!(record.text("/upstream/tls"), "TLSv1.3");
    assert!(record.text("/process/exe").ends_with("/curl"), "{record:?}");
    assert_eq!(record.number("/process/uid"), 0);
    assert!(record.number("/process/tgid") > 0 && record.number("/process/start") > 0);
    assert_eq!(
        (record.text("/bundle/name"), record.number("/bundle/serial")),
        ("test", 1)
    );
    assert_eq!(record.text("/bundle/digest").len(), 64);
    assert!(
        record.text("/time").ends_with('Z') && record.text("/time").len() == 27,
        "µs: {record:?}"
    );
    assert!(!record.text("/prev").is_empty());
    assert!(
        !record.0.to_string().contains("sesame"),
        "a secret: {record:?}"
    );
    let files = segments(&site)
        .iter()
        .map(|file| fs::read_to_string(file).expect("text"))
        .collect::<String>();
    assert!(!files.contains("sesame"), "a secret is in the log");
}

#[test]
fn search_and_show_find_a_decision_by_what_the_agent_was_told() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let guard = start(&site, &origin);
    let ran = site
        .cli(["run", "--agent", "probe", "--"])
        .args(["curl", "--silent", &origin.url("/v2/x")])
        .run()
        .ok();
    let instance = ran.json()["instance"].as_str().expect("an id").to_owned();
    let id = instance.strip_prefix("urn:uuid:").expect("a UUID");
    let shown = guard.cli(["audit", "show", "--json", id]).ok().json();
    assert_eq!(shown["decision"], id);
    assert_eq!(shown["request"]["path"], "/v2/x");
    assert_eq!(
        guard
            .cli(["audit", "show", "00000000-0000-0000-0000-000000000000"])
            .code(),
        1
    );

    let search = |words: &[&str]| {
        let all = ["audit", "search", "--json"].iter().chain(words);
        Record::all(&guard.cli(all.copied()).ok().json())
    };
    assert_eq!(search(&["--outcome", "deny", "--action", "GET"]).len(), 1);
    assert_eq!(search(&["--agent", "nobody-else"]).len(), 0);
    let human = guard
        .cli(["audit", "search", "--outcome", "deny"])
        .ok()
        .stdout;
    assert!(
        human.lines().all(|line| line.chars().count() <= 100),
        "{human}"
    );
    assert!(!human.contains('\u{1b}'), "colour without a terminal");
}

#[test]
fn tail_follows_decisions_as_they_are_taken() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let guard = start(&site, &origin);
    let mut tail = site.cli(["audit", "tail", "-f", "--json"]).spawn();
    let mut agent = dialer(&guard.agent("probe"));
    for n in 0..3 {
        agent.tries(&format!("get {}", origin.url(&format!("/v1/tail-{n}"))));
        tail.line(|line| line.contains(&format!("\"/v1/tail-{n}\"")));
    }
}

#[test]
fn verify_sees_every_kind_of_tampering() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let mut guard = start(&site, &origin);
    let mut agent = dialer(&guard.agent("probe"));
    for n in 0..5 {
        agent.tries(&format!("get {}", origin.url(&format!("/v1/{n}"))));
    }
    guard.audit();
    let verify = || site.cli(["audit", "verify"]).run();
    verify().ok();
    guard.stop();
    verify().ok();

    let files = segments(&site);
    let [file] = &files[..] else {
        panic!("one small segment: {files:?}");
    };
    let whole = fs::read_to_string(file).expect("text");
    let lines: Vec<&str> = whole.lines().collect();
    assert!(lines.len() > 5);
    let join = |lines: &[&str]| lines.join("\n") + "\n";
    let mut swapped = lines.clone();
    swapped.swap(2, 3);
    let mut removed = lines.clone();
    removed.remove(2);
    let mut repeated = lines.clone();
    repeated.insert(2, lines[2]);
    let cases = [
        (
            "a changed byte",
            whole.replacen("\"allow\"", "\"deny\" ", 1),
        ),
        ("a swap", join(&swapped)),
        ("a removal", join(&removed)),
        ("a repetition", join(&repeated)),
        ("a removed start", join(&lines[1..])),
        (
            "a line of one's own",
            join(&[&lines[..3], &["{}"], &lines[3..]].concat()),
        ),
    ];
    for (name, text) in cases {
        assert_ne!(text, whole, "{name}");
        fs::write(file, text).expect("written");
        let ran = verify();
        assert_eq!(ran.code(), 1, "{name}: {ran:#?}");
        assert!(!ran.stderr.is_empty(), "{name} is named");
    }
    fs::write(file, &whole).expect("written");
    verify().ok();
    guard.restart();
    guard.cli(["audit", "verify"]).ok();
}

#[test]
fn a_torn_tail_is_mended_and_said() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let mut guard = start(&site, &origin);
    dialer(&guard.agent("probe")).tries(&format!("get {}", origin.url("/v1/x")));
    guard.audit();
    guard.crash();
    let file = segments(&site).pop().expect("a segment");
    let mut text = fs::read_to_string(&file).expect("text");
    text.push_str("{\"time\":\"2026-01-");
    fs::write(&file, text).expect("written");
    guard.restart();
    guard.cli(["audit", "verify"]).ok();
    assert!(
        guard
            .audit()
            .iter()
            .any(|record| record.action() == "audit-recover"),
        "{:#?}",
        guard.audit()
    );
}

#[test]
fn a_log_that_cannot_be_written_stops_agents() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    fs::create_dir_all(site.audit_dir()).expect("made");
    let full = Small::mount(&site.audit_dir(), "1m");
    let guard = start(&site, &origin);
    let mut agent = dialer(&guard.agent("probe"));
    let get = format!("get {}", origin.url("/v1/x"));
    assert_eq!(agent.tries(&get), "ok 200");
    full.fill();
    let mut answer = String::new();
    for _ in 0..2000 {
        answer = agent.tries(&get);
        if answer != "ok 200" {
            break;
        }
    }
    assert_ne!(answer, "ok 200", "decisions went on without a log");
    full.free();
    until(|| agent.tries(&get) == "ok 200");
    guard.cli(["audit", "verify"]).ok();
}

#[test]
fn a_disk_that_is_full_for_agents_has_room_for_a_kill() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let state = site.path("state");
    fs::create_dir_all(&state).expect("made");
    let disk = Small::mount(&state, "64m");
    let guard = start(&site, &origin);
    let mut agent = dialer(&guard.agent("probe"));
    let get = format!("get {}", origin.url("/v1/x"));
    assert_eq!(agent.tries(&get), "ok 200");
    // An eighth of it is kept.
    disk.fill_up_to(4 << 20);
    until(|| agent.tries(&get) != "ok 200");
    let refused = |guard: &Guard<'_>| guard.cli(["status"]).stdout;
    until(|| refused(&guard).contains("are kept for what operators do: make room there"));
    let kill = guard.cli(["kill", "probe", "--reason", "storm"]);
    assert_eq!(kill.code(), 0, "{kill:#?}");
    let is_kill = |record: &Record| record.action() == "kill" && record.text("/detail") == "storm";
    until(|| guard.audit().iter().any(is_kill));
    guard.cli(["revive", "probe"]).ok();
    assert_ne!(agent.tries(&get), "ok 200", "still without room");
    disk.free();
    until(|| agent.tries(&get) == "ok 200");
    guard.cli(["audit", "verify"]).ok();
}

#[test]
fn what_is_private_of_a_path_reaches_the_server_and_not_the_log() {
    const TOKEN: &str = "ghp_0123456789abcdefghijABCDEFGHIJ";
    let site = Site::new();
    let origin = Nginx::start(&site);
    let policy = reach("origin.test", origin.port, &["GET /services/**"]);
    let host = format!(
        "[host]\nname = \"origin.test:{}\"\nprivate_paths = [\"/services/*/*/*\"]\n",
        origin.port
    );
    let bundle = Bundle::new(1).agent("probe", &policy);
    let guard = Guard::start(&site, &bundle.file("hosts/origin.toml", host));
    let mut agent = dialer(&guard.agent("probe"));
    let mut get = |path: &str| agent.tries(&format!("get {}", origin.url(path)));
    assert_eq!(get("/services/T0sesame/B0sesame/Xsesame"), "ok 200");
    assert_eq!(get("/Services/T0sesame/B0sesame/Xsesame"), "ok 403");
    assert_eq!(get(&format!("/v1/{TOKEN}")), "ok 403");
    let hits = origin.hits_below("/services/");
    assert_eq!(hits[0].uri, "/services/T0sesame/B0sesame/Xsesame");
    let records = guard.requests();
    let paths: Vec<&str> = records.iter().map(Record::path).collect();
    let hidden = "/[private]/[private]/[private]";
    let expected = [
        format!("/services{hidden}"),
        format!("/Services{hidden}"),
        "/v1/ghp_[private]".to_owned(),
    ];
    assert_eq!(paths, expected);
    let files: String = segments(&site)
        .iter()
        .map(|file| fs::read_to_string(file).expect("text"))
        .collect();
    assert!(
        !files.contains("sesame") && !files.contains(TOKEN),
        "{files}"
    );
}

/// Until it is so.
fn until(mut is: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + agentguard_tests::tools::PATIENCE;
    while !is() {
        assert!(std::time::Instant::now() < deadline, "it is not so");
    }
}

fn start<'site>(site: &'site Site, origin: &Nginx) -> Guard<'site> {
    let policy = reach("origin.test", origin.port, &["GET /v1/**", "POST /v1/**"]);
    Guard::start(site, &Bundle::new(1).agent("probe", &policy))
}

/// The log's files, oldest first.
fn segments(site: &Site) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(site.audit_dir())
        .expect("there")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "jsonl")
        })
        .collect();
    files.sort();
    files
}

/// A small file system.
struct Small(PathBuf);

impl Small {
    fn mount(at: &std::path::Path, size: &str) -> Self {
        use nix::mount::{MsFlags, mount};
        mount(
            Some("tmpfs"),
            at,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(&*format!("size={size},mode=0700")),
        )
        .expect("mounted");
        Self(at.to_owned())
    }

    fn fill(&self) {
        let _ = fs::write(self.0.join("ballast"), vec![0; 2 << 20]);
    }

    fn fill_up_to(&self, free: u64) {
        let disk = nix::sys::statvfs::statvfs(&self.0).expect("mounted");
        let size = disk.blocks_available() * disk.fragment_size() - free;
        fs::write(self.0.join("ballast"), vec![0; size as usize]).expect("room");
    }

    fn free(&self) {
        fs::remove_file(self.0.join("ballast")).expect("removed");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}
