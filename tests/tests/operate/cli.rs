//! Exit statuses and messages that scripts rely on.

use agentguard_tests::bundle::reach;
use agentguard_tests::client::Client;
use agentguard_tests::tools::{CLIENT_PATH, agentguard};
use agentguard_tests::{Bundle, Guard, Ran, Site};

fn bundle() -> Bundle {
    Bundle::new(1).agent("probe", &reach("origin.test", 443, &["GET /**"]))
}

#[test]
fn wrong_usage_is_2() {
    let site = Site::new();
    for words in [
        &["nonsense"][..],
        &["run"],
        &["run", "--agent", "probe"],
        &["kill"],
        &["status", "--nonsense"],
        &["policy"],
        &["audit", "search", "--since", "yesterdayish"],
    ] {
        let ran = Client::new(agentguard())
            .args(words)
            .env("AGENTGUARD_CONFIG", site.config())
            .run();
        assert_eq!(ran.code(), 2, "{words:?}: {ran:#?}");
        assert!(
            !ran.stderr.is_empty() && ran.stdout.is_empty(),
            "{words:?}: {ran:#?}"
        );
    }
    let near = Client::new(agentguard()).args(["statsu"]).run();
    assert!(near.stderr.contains("status"), "did you mean: {near:#?}");
}

#[test]
fn wrong_configuration_is_2_and_named() {
    let site = Site::new();
    site.install(&bundle());
    let cases: [(&str, &[&str]); 7] = [
        ("[paths\n", &["agentguard.toml", "1"]),
        ("[forwarder]\nusre = \"nobody\"\n", &["usre", "user"]),
        ("[forwarder]\nport = 99999\n", &["port"]),
        ("[forwarder]\nuser = \"root\"\n", &["root"]),
        (
            "[forwarder]\nuser = \"no-such-user-here\"\n",
            &["no-such-user-here"],
        ),
        (
            "[upstream]\nroots = [\"/nonexistent/ca.pem\"]\n",
            &["/nonexistent/ca.pem"],
        ),
        (
            "[audit]\ndurability = \"sometimes\"\n",
            &["durability", "sometimes"],
        ),
    ];
    let base: toml::Table = std::fs::read_to_string(site.config())
        .expect("text")
        .parse()
        .expect("TOML");
    for (text, says) in cases {
        let full = text
            .parse::<toml::Table>()
            .map_or(text.to_owned(), |change| {
                let mut table = base.clone();
                for (section, keys) in change {
                    let keys = keys.as_table().expect("a table").clone();
                    let into = table.entry(section).or_insert(toml::Table::new().into());
                    into.as_table_mut().expect("a table").extend(keys);
                }
                table.to_string()
            });
        std::fs::write(site.config(), full).expect("written");
        let ran = site.cli(["daemon"]).run();
        assert_eq!(ran.code(), 2, "{text}: {ran:#?}");
        assert!(
            says.iter().all(|part| ran.stderr.contains(part)),
            "{text}: {ran:#?}"
        );
        one_line(&ran);
    }
    let missing = Client::new(agentguard())
        .args(["status", "--config", "/nonexistent.toml"])
        .run();
    assert_eq!(missing.code(), 2, "{missing:#?}");
    assert!(missing.stderr.contains("/nonexistent.toml"), "{missing:#?}");
    assert!(!site.pins().exists(), "nothing was pinned");
}

#[test]
fn no_daemon_is_4() {
    let site = Site::new();
    for words in [
        &["status"][..],
        &["agents"],
        &["kill", "probe"],
        &["revive", "probe"],
        &["policy", "show"],
        &["audit", "search"],
        &["audit", "tail"],
    ] {
        let ran = site.cli(words.iter().copied()).run();
        assert_eq!(ran.code(), 4, "{words:?}: {ran:#?}");
        assert!(ran.stderr.contains("control.sock"), "{words:?}: {ran:#?}");
        one_line(&ran);
    }
    let run = site.cli(["run", "--agent", "probe", "--", "true"]).run();
    assert_eq!(run.code(), 125, "{run:#?}");
    site.cli(["doctor"]).run();
    site.cli(["unload", "--yes"]).run().ok();
}

#[test]
fn who_may_not_is_5() {
    use std::os::unix::fs::PermissionsExt;
    let site = Site::new();
    let guard = Guard::start(&site, &bundle());
    std::fs::set_permissions(site.dir(), std::fs::Permissions::from_mode(0o755)).expect("set");
    let program = site.path("agentguard");
    std::fs::copy(agentguard(), &program).expect("copied");
    let as_nobody = |words: &[&str]| {
        Client::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&program)
            .args(words)
            .env("PATH", CLIENT_PATH)
            .env("AGENTGUARD_CONFIG", site.config())
            .run()
    };
    let policies = site.path("policies");
    let policies = policies.to_str().expect("text");
    for words in [
        &["kill", "--all"][..],
        &["revive", "--all"],
        &["policy", "apply", policies],
        &["unload", "--yes"],
    ] {
        let ran = as_nobody(words);
        assert_eq!(ran.code(), 5, "{words:?}: {ran:#?}");
    }
    let run = as_nobody(&["run", "--agent", "probe", "--", "true"]);
    assert_eq!(run.code(), 125, "{run:#?}");
    assert!(!run.stderr.is_empty());
    guard.cli(["status"]).ok();
    let agents = guard.cli(["agents", "--json"]).ok().json();
    assert_eq!(agents[0]["state"], "active", "{agents}");
}

#[test]
fn run_ends_as_its_command_does() {
    let site = Site::new();
    let guard = Guard::start(&site, &bundle());
    let run = |words: &[&str]| {
        guard.cli(
            ["run", "--agent", "probe", "--"]
                .iter()
                .chain(words)
                .copied(),
        )
    };
    let not_executable = site.path("text");
    std::fs::write(&not_executable, "text").expect("written");
    let cases: [(&[&str], i32); 7] = [
        (&["true"], 0),
        (&["sh", "-c", "exit 7"], 7),
        (&["sh", "-c", "kill -TERM $$"], 143),
        (&["sh", "-c", "kill -KILL $$"], 137),
        (&["no-such-program-here"], 127),
        (&["/no/such/path"], 127),
        (&[not_executable.to_str().expect("text")], 126),
    ];
    for (words, status) in cases {
        let ran = run(words);
        assert_eq!(ran.code(), status, "{words:?}: {ran:#?}");
    }
    let unknown = guard.cli(["run", "--agent", "prob", "--", "true"]);
    assert_eq!(unknown.code(), 125, "{unknown:#?}");
    assert!(
        unknown.stderr.contains("probe"),
        "did you mean: {unknown:#?}"
    );
}

#[test]
fn listings_are_json_and_fit_a_terminal() {
    let site = Site::new();
    let guard = Guard::start(&site, &bundle());
    for words in [
        &["status"][..],
        &["agents"],
        &["policy", "show"],
        &["audit", "search"],
        &["doctor"],
    ] {
        let plain = guard.cli(words.iter().copied()).ok();
        assert!(
            !plain.stdout.contains('\u{1b}'),
            "{words:?}: colour without a terminal"
        );
        for line in plain.stdout.lines() {
            // A path of a test's own folder may be long; a table's line may not.
            assert!(
                line.chars().count() <= 100 || line.contains('/'),
                "{words:?}: {line}"
            );
        }
        let json = guard
            .cli(words.iter().copied().chain(["--json"]))
            .ok()
            .json();
        assert!(json.is_object() || json.is_array(), "{words:?}: {json}");
    }
    let status = guard.cli(["status", "--json"]).ok().json();
    assert_eq!(status["bundle"]["serial"], 1, "{status}");
    assert_eq!(status["alarms"], serde_json::json!([]), "{status}");
    let doctor = guard.cli(["doctor"]).ok().stdout;
    assert!(doctor.contains("connect"), "{doctor}");
    let header = guard.cli(["agents"]).ok().stdout;
    let header = header
        .lines()
        .next()
        .expect("a header")
        .split_whitespace()
        .collect::<Vec<_>>();
    assert_eq!(
        header,
        [
            "NAME",
            "STATE",
            "OWNER",
            "PROCS",
            "CONNS",
            "ALLOWED",
            "DENIED",
            "LAST-SEEN"
        ]
    );
}

#[test]
fn version_and_help() {
    let version = Client::new(agentguard()).arg("--version").run().ok();
    assert!(version.stdout.starts_with("agentguard "), "{version:#?}");
    let help = Client::new(agentguard()).arg("--help").run().ok();
    for verb in [
        "daemon", "run", "status", "agents", "kill", "revive", "policy", "audit", "doctor", "ca",
        "unload",
    ] {
        assert!(
            help.stdout
                .lines()
                .any(|line| line.trim_start().starts_with(verb)),
            "{verb}: {}",
            help.stdout
        );
    }
    let bare = Client::new(agentguard()).run();
    assert_eq!(bare.code(), 2, "{bare:#?}");
}

#[track_caller]
fn one_line(ran: &Ran) {
    let errors: Vec<_> = ran
        .stderr
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    assert_eq!(errors.len(), 1, "one line that says it: {ran:#?}");
}
