use super::*;

const SECTIONS: [&str; 8] = [
    "[paths]",
    "[policy]",
    "[forwarder]",
    "[upstream]",
    "[audit]",
    "[canary]",
    "[host]",
    "[network]",
];

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("/c.toml"), text).map_err(|e| e.to_string())
}

#[test]
fn an_empty_file_is_the_defaults() {
    assert_eq!(parse("").unwrap(), Config::default());
    let c = Config::default();
    assert_eq!(
        c.paths.control_socket(),
        Path::new("/run/agentguard/control.sock")
    );
    assert_eq!(c.paths.cgroup_root(), None);
    assert_eq!(c.forwarder.user, "agentguard");
}

#[test]
fn every_section_is_read() {
    let c = parse(
        r#"
[paths]
state = "/s"
runtime = "/r"
pins = "/sys/fs/bpf/x"
trust = "/t"
cgroup = "/sys/fs/cgroup/unified"
[policy]
bundle = "/b"
accept_gaps = ["tamper"]
[forwarder]
user = "fw"
port = 15000
max_connections = 10
[upstream]
roots = ["/ca.pem"]
hosts = { "origin.test" = "127.0.0.1", "two.test" = ["127.0.0.1", "::1"] }
resolvers = ["192.0.2.1", "[2001:db8::1]:5353"]
allow_addresses = ["127.0.0.0/8"]
[audit]
durability = "strict"
[canary]
every_s = 5
on_failure = "alarm"
[[roles]]
group = "ops"
role = "responder"
"#,
    )
    .unwrap();
    assert_eq!(
        c.paths.cgroup_root(),
        Some(Path::new("/sys/fs/cgroup/unified"))
    );
    assert_eq!(c.upstream.hosts["two.test"].to_vec().len(), 2);
    assert_eq!(c.upstream.resolvers[0].0.to_string(), "192.0.2.1:53");
    assert_eq!(c.upstream.resolvers[1].0.port(), 5353);
    assert_eq!(c.audit.durability, Durability::Strict);
    assert_eq!(
        (c.canary.every_s, c.canary.on_failure),
        (5, OnFailure::Alarm)
    );
    assert_eq!(c.roles[0].role, Role::Responder);
    assert_eq!(c.forwarder.limits().max_connections, 10);
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    for (text, expected) in [
        (
            "[paths]\nstat = \"/x\"",
            "/c.toml:2:1: unknown key `stat`, did you mean `state`?",
        ),
        (
            "[forwader]\n",
            "/c.toml:1:2: unknown key `forwader`, did you mean `forwarder`?",
        ),
        (
            "[canary]\nevery_s = 0",
            "/c.toml:2:1: `every_s`: 0 is not between 1 and 86400 seconds",
        ),
        (
            "[policy]\naccept_gaps = [\"tampre\"]",
            "/c.toml:2:15: `accept_gaps`: unknown guarantee `tampre`; did you mean `tamper`?",
        ),
        (
            "[audit]\nxyzzy = 1",
            "/c.toml:2:1: unknown key `xyzzy`, expected one of durability",
        ),
        (
            "[forwarder]\n max_connections = 0",
            "/c.toml:2:2: `max_connections`: 0 is not between 1 and 1000000 connections",
        ),
        (
            "[forwarder]\nhead_timeout_ms = 99",
            "/c.toml:2:1: `head_timeout_ms`: 99 is not between 100 and 3600000 milliseconds",
        ),
        (
            "[paths]\nruntime = \"run\"",
            "/c.toml:2:1: `runtime`: `run` is not an absolute path",
        ),
        (
            "[forwarder]\nuser = \"root\"",
            "/c.toml:2:1: `user`: the forwarder runs as a user of its own, never as root",
        ),
    ] {
        assert_eq!(parse(text).unwrap_err(), expected, "{text}");
    }
    for text in [
        "[forwarder]\nport = 70000",
        "[audit]\ndurability = \"often\"",
        "[[roles]]\ngroup = \"x\"\nrole = \"king\"",
        "[upstream]\nresolvers = [\"nine\"]",
        "[upstream]\nhosts = { a = 1 }",
        "[paths",
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.starts_with("/c.toml:"), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn only_the_default_file_may_be_absent() {
    let error = Config::load(Some(Path::new("/nonexistent/agentguard.toml"))).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/agentguard.toml"));
}

#[test]
fn the_table_has_every_key_with_its_default() {
    let mut text = String::new();
    for section in SECTIONS {
        text += &format!("{section}\n");
        let keys = KEYS.iter().filter(|key| key.section == section);
        for key in keys {
            text += &format!("{} = {}\n", key.key, key.default);
        }
    }
    let defaults = Config::parse(Path::new("/c.toml"), &text).unwrap();
    assert_eq!(defaults, Config::default());
}

#[test]
fn the_table_has_no_key_too_few() {
    for section in SECTIONS.into_iter().chain(["[[roles]]"]) {
        let unknown = parse(&format!("{section}\nnobody_knows = 1\n")).unwrap_err();
        let known: Vec<&str> = KEYS
            .iter()
            .filter(|key| key.section == section)
            .map(|key| key.key)
            .collect();
        let (_, expected) = unknown.split_once("expected one of ").unwrap();
        let expected: Vec<&str> = expected.split(", ").collect();
        assert_eq!(known, expected, "{section}");
    }
}
