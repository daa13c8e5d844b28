//! How a host is spoken to: what its file may say, and for which hosts it holds.

use std::time::Duration;

use super::*;
use crate::HostSettings;

fn with(keys: &str) -> Sources {
    let mut sources = bundle("[[reach]]\nhost = \"h.example\"\n", "");
    let file = format!("[host]\nname = \"*.example\"\n{keys}");
    sources.files.insert("hosts/h.toml".into(), file);
    sources
}

#[test]
fn all_keys_at_once_and_for_the_hosts_of_the_file_alone() {
    let policy = compile(&with(
        "reads_bodies = true\nhttp = \"1.1\"\nmax_judged_body = \"8MiB\"\nupgrade = [\"TCP\", \"spdy/3.1\"]\ntimeouts = { head = \"15m\", idle = \"4s\" }\n",
    ));
    let settings = |name| policy.settings(&HostName::parse(name).unwrap(), 443);
    let expected = HostSettings {
        reads_bodies: true,
        head_timeout: Some(Duration::from_secs(900)),
        idle_timeout: Some(Duration::from_secs(4)),
        upgrade: vec!["tcp".into(), "spdy/3.1".into()],
        max_judged_body: Some(8 << 20),
        http1_only: true,
    };
    assert_eq!(*settings("h.example"), expected);
    assert!(settings("h.example").upgrades_to("SPDY/3.1"));
    assert!(!settings("h.example").upgrades_to("spdy"));
    assert_eq!(*settings("h.elsewhere"), HostSettings::default());
}

#[test]
fn what_is_wrong_is_named_with_its_place_and_its_remedy() {
    for (keys, expected) in [
        (
            "timeouts = { haed = \"15m\" }",
            ":3:14: unknown key `haed` in [host.timeouts] | did you mean `head`?",
        ),
        (
            "timeouts = { head = 900 }",
            ":3:21: `head` holds a integer, not a string",
        ),
        (
            "timeouts = { head = \"15min\" }",
            ":3:21: `head` is `15min`, which is no number with a unit | write a whole number and one of `ms`, `s`, `m`, `h`, as in `head = \"24h\"`",
        ),
        (
            "timeouts = { head = \"25h\" }",
            ":3:21: `head` is `25h`, not 1s to 24h",
        ),
        (
            "timeouts = { idle = \"2m\" }",
            ":3:21: `idle` is `2m`, not 1s to 55s",
        ),
        (
            "timeouts = \"15m\"",
            ":3:1: `timeouts` is a string, not a table | write `[host.timeouts]` on a line of its own",
        ),
        (
            "max_judged_body = \"65MiB\"",
            ":3:19: `max_judged_body` is `65MiB`, not 1KiB to 64MiB",
        ),
        (
            "max_judged_body = \"8MB\"",
            ":3:19: `max_judged_body` is `8MB`, which is no number with a unit | write a whole number and one of `B`, `KiB`, `MiB`, as in `max_judged_body = \"64MiB\"`",
        ),
        (
            "http = \"3\"",
            ":3:8: `http` is `3`, which is none of `1.1`, `2` | did you mean `2`?",
        ),
        (
            "upgrade = [\"tcp\", \"a b\"]",
            ":3:19: `a b` in `upgrade` is no protocol (RFC 9110 section 7.8) | write it as the client does, for example \"tcp\" or \"SPDY/3.1\"",
        ),
        (
            "upgrade = [\"WebSocket\"]",
            ":3:12: `WebSocket` in `upgrade` is let through by every host | remove it: a request for a WebSocket is judged as any other",
        ),
        (
            "upgrade = [\"TLS/1.2\"]",
            ":3:12: `TLS/1.2` in `upgrade` would carry requests that nobody judges | remove it: such a request is answered over HTTP/1.1",
        ),
        (
            "upgrades = [\"tcp\"]",
            ":3:1: unknown key `upgrades` in [host] | did you mean `upgrade`?",
        ),
    ] {
        let found = refused::found(&with(keys));
        assert_eq!(found, [format!("hosts/h.toml{expected}")], "{keys}");
    }
    let mut misplaced = with("");
    misplaced.files.insert(
        "agents/a.toml".into(),
        "[agent]\nname = \"a\"\nowner = \"o\"\n[[reach]]\nhost = \"h.example\"\ntimeouts = { head = \"1m\" }\n".into(),
    );
    assert_eq!(
        refused::found(&misplaced),
        ["agents/a.toml:6:1: unknown key `timeouts` in [[reach]] | `timeouts` belongs in [host]"]
    );
}
