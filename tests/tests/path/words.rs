//! What unchanged programs show their users of a refusal, where they do not show the document.

use std::net::TcpListener;

use agentguard_tests::bundle::reach;
use agentguard_tests::client::{Subject, python};
use agentguard_tests::{Bundle, Guard, Nginx, Site};

const PHRASE: &str = "Refused by AgentGuard policy: do not retry";

#[test]
fn programs_that_show_no_body_show_the_reason_phrase() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = closed.local_addr().expect("bound").port();
    drop(closed);
    let policy = reach("origin.test", origin.port, &["GET /v1/allowed"])
        + &reach("origin.test", port, &["GET /**"]);
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let agent = guard.agent("probe");
    let url = origin.url("/v1/refused");
    for library in ["urllib", "requests", "httpx", "aiohttp", "http.client"] {
        let ran = python(&agent, "http_error.py").args([library, &url]).run();
        let ran = ran.ok();
        assert!(ran.stdout.contains(PHRASE), "{library}: {ran:#?}");
    }
    let node = [
        (
            "https",
            "require('https').get(process.argv[1], (answer) => console.log(answer.resume().statusMessage))",
        ),
        (
            "fetch",
            "fetch(process.argv[1]).then((answer) => console.log(answer.statusText))",
        ),
    ];
    for (way, code) in node {
        let client = agent.client("node".as_ref()).args(["--eval", code, &url]);
        let ran = client.run().ok();
        assert_eq!(ran.stdout.trim(), PHRASE, "{way}");
    }
    for program in ["wget", "git", "curl"] {
        let client = agent.client(program.as_ref());
        let ran = match program {
            "wget" => client.args(["--no-verbose", "--tries=1", "--output-document=-", &url]),
            "git" => client
                .args(["ls-remote", &url])
                .env("GIT_TERMINAL_PROMPT", "0"),
            _ => client.args(["--http1.1", "--silent", "--verbose", &url]),
        }
        .run();
        // Git shows no phrase, and of an answer in text every line.
        let said = match program {
            "git" => "remote: AgentGuard: Refused by policy: ",
            _ => PHRASE,
        };
        assert!(ran.stderr.contains(said), "{program}: {ran:#?}");
    }
    // A fault of upstream's has the status's own phrase.
    let url = format!("https://origin.test:{port}/");
    let ran = python(&agent, "http_error.py")
        .args(["urllib", &url])
        .run()
        .ok();
    assert!(ran.stdout.contains("502: Bad Gateway"), "{ran:#?}");
}

#[test]
fn git_reads_text_and_lfs_its_message() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let policy = reach("origin.test", origin.port, &["GET /v1/allowed"]);
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let agent = guard.agent("probe");
    let get = |user_agent: &str| {
        let client = agent.client("curl".as_ref());
        let args = [
            "--silent",
            "--write-out",
            "\n%{content_type}",
            "--user-agent",
            user_agent,
        ];
        client
            .args(args)
            .arg(origin.url("/x.git/info/refs"))
            .run()
            .ok()
            .stdout
    };
    let text = get("git/2.39.5");
    let record = guard.requests().pop().expect("a record");
    let (text, kind) = text.rsplit_once('\n').expect("a body and its type");
    assert_eq!(kind, "text/plain; charset=utf-8");
    assert!(
        text.contains("policy-denied") && text.contains(record.text("/decision")),
        "{text}"
    );
    let document = get("git-lfs/3.3.0 (GitHub; linux amd64)");
    let (document, kind) = document.rsplit_once('\n').expect("a body and its type");
    assert_eq!(kind, "application/problem+json");
    let document: serde_json::Value = serde_json::from_str(document).expect("a document");
    assert!(document["message"].is_string());
    assert_eq!(document["message"], document["detail"]);
}
