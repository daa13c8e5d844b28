//! Programs that do not accept the forwarder's certificate: what the record, the status and the daemon's log say of it.

use agentguard_tests::audit::Record;
use agentguard_tests::bundle::reach;
use agentguard_tests::client::Subject;
use agentguard_tests::guard::Agent;
use agentguard_tests::{Bundle, Guard, Nginx, Site};
use serde_json::Value;

const REMEDIES: [&str; 3] = ["`agentguard run`", "`agentguard ca env`", "passthrough"];
/// Of a client that pins, and so looks after the handshake.
const PIN: &str = "sha256//AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

fn curl(agent: &Agent<'_>, args: &[&str]) -> bool {
    let client = agent.client("curl".as_ref()).args(["--silent"]).args(args);
    client.run().status.success()
}

fn refused(guard: &Guard<'_>) -> Vec<Record> {
    let records = guard.audit().into_iter();
    records.filter(|it| it.reason() == "client-tls").collect()
}

fn status(guard: &Guard<'_>) -> Value {
    guard.cli(["status", "--json"]).ok().json()
}

/// How many alarms there are of this program.
fn alarms(guard: &Guard<'_>, program: &str) -> usize {
    let status = status(guard);
    let alarms = status["alarms"].as_array().expect("a list").iter();
    let texts = alarms.map(|it| it.as_str().expect("a text"));
    let those = texts.filter(|it| it.starts_with("a program does not accept"));
    those.filter(|it| it.contains(program)).count()
}

#[test]
fn who_does_not_accept_the_certificate_is_told_with_a_remedy() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let host = format!("origin.test:{}", origin.port);
    let url = origin.url("/v1/x");
    let policy = reach("origin.test", origin.port, &["GET /v1/**"]);
    let mut guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    // A bundle of the program's own, which has this host's CA not in it.
    let own = site.ca().certificate().display().to_string();
    let agent = guard.agent("probe");

    // Who says so, twice.
    for _ in 0..2 {
        assert!(!curl(&agent, &["--cacert", &own, &url]));
    }
    let code = format!(
        "import ssl
try: ssl.create_default_context(cafile={own:?}).wrap_socket(
    socket.create_connection(('origin.test', {})), server_hostname='origin.test')
except ssl.SSLCertVerificationError: print('refused')",
        origin.port
    );
    let ran = agent.python(&code).run().ok();
    assert_eq!(ran.stdout.trim(), "refused");
    let records = refused(&guard);
    assert_eq!(records.len(), 3, "{records:#?}");
    for record in &records {
        assert_eq!(
            (record.outcome(), record.text("/ended"), record.resource()),
            ("error", "client-gone", host.as_str())
        );
        assert_eq!(record.text("/facts/tls_alert"), "unknown_ca", "{record:?}");
        let detail = record.text("/detail");
        let has = |word: &&str| detail.contains(*word);
        assert!(has(&"`unknown_ca`") && REMEDIES.iter().all(has), "{detail}");
    }
    assert_eq!(alarms(&guard, "/curl` of agent probe"), 1);
    assert_eq!(alarms(&guard, "/python"), 1);

    // Who looks after the handshake and goes without a word: an alarm when it comes again.
    let node = format!(
        "const ca = require('fs').readFileSync({own:?});
require('https').get({url:?}, {{ ca }}).on('error', (error) => console.log(error.code))"
    );
    for told in [0, 0, 1] {
        let client = agent.client("node".as_ref()).args(["--eval", &node]);
        let ran = client.run().ok();
        assert_eq!(ran.stdout.trim(), "SELF_SIGNED_CERT_IN_CHAIN");
        let newest = refused(&guard).pop().expect("a record");
        assert_eq!(newest.text("/facts/tls_alert"), "", "{newest:?}");
        let detail = newest.text("/detail");
        assert!(REMEDIES.iter().all(|it| detail.contains(it)), "{detail}");
        assert_eq!(alarms(&guard, "/node"), told);
    }
    for version in ["--http1.1", "--http2"] {
        let before = refused(&guard).len();
        assert!(!curl(&agent, &[version, "--pinnedpubkey", PIN, &url]));
        assert_eq!(refused(&guard).len(), before + 1, "{version}");
    }

    // Who trusts what it was given, and who keeps a connection for later, is not among them.
    let before = refused(&guard).len();
    assert!(curl(&agent, &[&url]));
    let code = format!(
        "import ssl, time
raw = socket.create_connection(('origin.test', {}))
tls = ssl.create_default_context().wrap_socket(raw, server_hostname='origin.test')
time.sleep(2)
tls.close()",
        origin.port
    );
    agent.python(&code).run().ok();
    assert_eq!(refused(&guard).len(), before);

    let rows = status(&guard)["distrust"].clone();
    let row = |program: &str| {
        let mut rows = rows.as_array().expect("a list").iter();
        let row = rows.find(|row| {
            row["program"]
                .as_str()
                .is_some_and(|it| it.contains(program))
        });
        row.unwrap_or_else(|| panic!("no {program} in {rows:#?}"))
            .clone()
    };
    for (program, count, alert) in [
        ("/curl", 4, Value::from("unknown_ca")),
        ("/python", 1, "unknown_ca".into()),
        ("/node", 3, Value::Null),
    ] {
        let row = row(program);
        assert_eq!(row["count"], count, "{row}");
        assert_eq!(row["alert"], alert, "{row}");
        assert_eq!(
            (&row["agent"], &row["host"]),
            (&"probe".into(), &host.as_str().into())
        );
        let remedy = row["remedy"].as_str().expect("a text");
        assert!(REMEDIES.iter().all(|it| remedy.contains(it)), "{remedy}");
    }
    let text = guard.cli(["status"]).ok().stdout;
    let words: Vec<&str> = text.split_whitespace().collect();
    let told = format!("/curl of agent probe for {host} (unknown_ca)");
    let text = words.join(" ");
    assert!(
        text.contains("certificate refused 4 times by ") && text.contains(&told),
        "{text}"
    );

    let log = guard.stop();
    let log = log.stdout + &log.stderr;
    for program in ["/curl`", "/python", "/node`"] {
        let lines = log.lines().filter(|it| it.contains("does not accept"));
        assert_eq!(lines.filter(|it| it.contains(program)).count(), 1, "{log}");
    }
}
