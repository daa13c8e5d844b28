//! Package managers against a private registry: one package is permitted, its neighbour is not.

use std::fs;
use std::process::Command;

use agentguard_tests::bundle::reach;
use agentguard_tests::client::Subject;
use agentguard_tests::tools::{python, script};
use agentguard_tests::{Bundle, Guard, Nginx, Ran, Site};

#[test]
fn pip() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    for name in ["open", "closed"] {
        let folder = origin.files().join("simple").join(name);
        let status = Command::new(python())
            .arg(script("make_wheel.py"))
            .arg(folder)
            .arg(name)
            .status();
        assert!(status.expect("it runs").success());
    }
    check(
        &site,
        &origin,
        &["GET /files/simple/open/**"],
        |subject, name, turn| {
            subject
                .client(&python())
                .args([
                    "-m",
                    "pip",
                    "download",
                    "--quiet",
                    "--no-deps",
                    "--no-cache-dir",
                    "--disable-pip-version-check",
                ])
                .args([
                    "--retries",
                    "0",
                    "--index-url",
                    &origin.url("/files/simple/"),
                    "--dest",
                ])
                .arg(site.path(turn))
                .arg(name)
                .run()
        },
    );
    assert!(site.path("on/open-1.0-py3-none-any.whl").exists());
    assert!(!site.path("on/closed-1.0-py3-none-any.whl").exists());
}

#[test]
fn npm() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    fs::create_dir(origin.files().join("npm")).expect("made");
    for name in ["open", "closed"] {
        let document = format!(
            r#"{{"name":"{name}","dist-tags":{{"latest":"1.0.0"}},"versions":{{"1.0.0":{{"name":"{name}","version":"1.0.0"}}}}}}"#
        );
        fs::write(origin.files().join("npm").join(name), document).expect("written");
    }
    check(
        &site,
        &origin,
        &["GET /files/npm/open"],
        |subject, name, _| {
            subject
                .client("npm".as_ref())
                .args([
                    "view",
                    name,
                    "version",
                    "--fetch-retries=0",
                    "--registry",
                    &origin.url("/files/npm/"),
                ])
                .run()
        },
    );
}

/// `call(subject, package, turn)` succeeds for both packages without AgentGuard, and for the open one with it.
fn check(
    site: &Site,
    origin: &Nginx,
    routes: &[&str],
    call: impl Fn(&dyn Subject, &str, &str) -> Ran,
) {
    for name in ["open", "closed"] {
        call(site, name, "off").ok();
    }
    let before = origin.hits().len();
    let policy = reach("origin.test", origin.port, routes);
    let guard = Guard::start(site, &Bundle::new(1).agent("probe", &policy));
    call(&guard.agent("probe"), "open", "on").ok();
    let refused = call(&guard.agent("probe"), "closed", "on");
    assert_ne!(refused.code(), 0, "{refused:#?}");
    let denied = guard
        .requests()
        .iter()
        .filter(|record| record.outcome() == "deny")
        .count();
    assert!(denied >= 1, "{refused:#?}");
    let arrived = origin.hits().split_off(before);
    assert!(
        !arrived.is_empty() && arrived.iter().all(|hit| hit.uri.contains("open")),
        "{arrived:#?}"
    );
}
