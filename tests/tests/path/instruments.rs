//! The instruments themselves: a count that cannot move and a log that cannot tell prove nothing.

use std::fs::File;

use agentguard_tests::client::{Subject, dialer};
use agentguard_tests::{Nginx, Site, Tap};

#[test]
fn the_tap_counts_payload_in_both_directions() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let file = File::create(origin.files().join("some")).expect("made");
    file.set_len(10 << 20).expect("set");
    let mut tap = Tap::start();
    let ran = site
        .client("curl".as_ref())
        .args(["--silent", "--output", "/dev/null"])
        .arg(format!(
            "http://origin.test:{}/files/some",
            origin.port_plain
        ))
        .run();
    ran.ok();
    let down = tap.from_port(origin.port_plain);
    let up = tap.to_port(origin.port_plain);
    assert!(down.bytes >= 10 << 20 && down.bytes < 11 << 20, "{down:?}");
    assert!(up.bytes > 20 && up.bytes < 1000, "{up:?}");
    assert!(down.last_ns > 0 && down.packets > 100, "{down:?}");
    assert_eq!(tap.from_port(1).bytes, 0);
}

#[test]
fn the_origin_tells_what_was_cut() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let file = File::create(origin.files().join("endless")).expect("made");
    file.set_len(1 << 40).expect("set");
    site.client("curl".as_ref())
        .args([
            "--silent",
            "--output",
            "/dev/null",
            "--max-filesize",
            "1",
            "--range",
            "0-9",
        ])
        .arg(origin.url("/files/endless"))
        .run();
    let mut client = site
        .client("sh".as_ref())
        .args([
            "-c",
            "curl --silent \"$1\" | head --bytes=100000 > /dev/null; echo cut",
            "sh",
        ])
        .arg(origin.url("/files/endless"))
        .spawn();
    client.line(|line| line == "cut");
    let hit = origin.await_hit(|hit| hit.uri == "/files/endless" && hit.sent > 100);
    assert!(!hit.complete, "{hit:?}");
}

#[test]
fn the_dialer_reports_what_the_system_says() {
    let site = Site::new();
    let mut dialer = dialer(&site);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    assert_eq!(
        dialer.tries(&format!("tcp 127.0.0.1 {port}")),
        format!("ok 127.0.0.1 {port}")
    );
    drop(listener);
    assert_eq!(
        dialer.tries(&format!("tcp 127.0.0.1 {port}")),
        "error ECONNREFUSED"
    );
    let before = dialer.tries("pid");
    assert!(dialer.tries("fork").starts_with("ok"));
    assert_ne!(dialer.tries("pid"), before);
}
