//! An origin that answers before it has read the request's body (RFC 9112, section 9.5): the answer gets to the client.

use agentguard_tests::bundle::reach;
use agentguard_tests::client::Subject;
use agentguard_tests::{Bundle, Guard, Nginx, Site};

/// Which of the two ends first is a race, so more than once.
const TURNS: usize = 25;

#[test]
fn an_early_answer_arrives() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let bodies = [8, 100_000].map(|size| {
        let path = site.path(&format!("body-{size}"));
        std::fs::write(&path, vec![b'x'; size]).expect("written");
        path
    });
    let call = |subject: &dyn Subject| {
        let mut failed = Vec::new();
        for body in bodies.iter().cycle().take(TURNS) {
            let ran = subject
                .client("curl".as_ref())
                .args(["--silent", "--show-error", "--http1.1", "--data-binary"])
                .arg(format!("@{}", body.display()))
                .arg(origin.url("/v1/early"))
                .run();
            if ran.code() != 0 || ran.stdout != "POST /v1/early" {
                failed.push(format!("{} {}{}", ran.code(), ran.stdout, ran.stderr));
            }
        }
        failed
    };
    assert_eq!(call(&site), [""; 0], "without AgentGuard");
    let policy = reach("origin.test", origin.port, &["POST /v1/**"]);
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    assert_eq!(call(&guard.agent("probe")), [""; 0]);
    assert_eq!(guard.requests().len(), TURNS);
}
