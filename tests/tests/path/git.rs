//! `git clone` over HTTPS: discovery and pack are judged one by one.

use std::path::Path;
use std::process::Command;

use agentguard_tests::bundle::reach;
use agentguard_tests::client::Subject;
use agentguard_tests::{Bundle, Guard, Nginx, Ran, Site};

#[test]
fn clone_is_judged_by_repository_and_step() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    for name in ["open.git", "half.git", "closed.git"] {
        make_repository(&origin.repositories().join(name));
    }
    let clone = |subject: &dyn Subject, name: &str, into: &str| -> Ran {
        subject
            .client("git".as_ref())
            .args(["clone", "--quiet", &origin.url(&format!("/git/{name}"))])
            .arg(site.path(into))
            .env("GIT_TERMINAL_PROMPT", "0")
            .run()
    };

    for name in ["open.git", "half.git", "closed.git"] {
        clone(&site, name, &format!("off-{name}")).ok();
    }
    let before = origin.hits().len();

    let policy = reach(
        "origin.test",
        origin.port,
        &[
            "GET /git/open.git/info/refs",
            "POST /git/open.git/git-upload-pack",
            "GET /git/half.git/info/refs",
        ],
    );
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let agent = guard.agent("probe");

    clone(&agent, "open.git", "on-open").ok();
    let text = std::fs::read_to_string(site.path("on-open/README")).expect("cloned");
    assert_eq!(text, "hello\n");
    for name in ["half.git", "closed.git"] {
        let ran = clone(&agent, name, &format!("on-{name}"));
        assert_eq!(ran.code(), 128, "{ran:#?}");
        assert!(ran.stderr.contains("403"), "git says why: {ran:#?}");
    }

    let arrived = origin.hits().split_off(before);
    let posts: Vec<_> = arrived
        .iter()
        .filter(|hit| hit.method == "POST")
        .map(|hit| &*hit.uri)
        .collect();
    assert!(
        !posts.is_empty()
            && posts
                .iter()
                .all(|uri| *uri == "/git/open.git/git-upload-pack"),
        "{posts:?}"
    );
    assert!(
        arrived
            .iter()
            .all(|hit| !hit.uri.starts_with("/git/closed.git")),
        "{arrived:#?}"
    );
    let denied: Vec<_> = guard
        .requests()
        .into_iter()
        .filter(|record| record.outcome() == "deny")
        .map(|record| format!("{} {}", record.action(), record.path()))
        .collect();
    assert_eq!(
        denied,
        [
            "POST /git/half.git/git-upload-pack",
            "GET /git/closed.git/info/refs"
        ]
    );
}

/// A bare repository with one commit.
fn make_repository(bare: &Path) {
    let work = bare.with_extension("work");
    std::fs::create_dir_all(&work).expect("a folder");
    std::fs::write(work.join("README"), "hello\n").expect("written");
    let git = |dir: &Path, args: &[&str]| {
        let status = Command::new("git")
            .current_dir(dir)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .args(["-c", "user.name=test", "-c", "user.email=test@example.com"])
            .args(args)
            .status();
        assert!(status.expect("git runs").success(), "git {args:?}");
    };
    git(&work, &["init", "--quiet", "--initial-branch=main"]);
    git(&work, &["add", "README"]);
    git(&work, &["commit", "--quiet", "--message=first"]);
    let bare = bare.to_str().expect("text");
    git(&work, &["clone", "--quiet", "--bare", ".", bare]);
}
