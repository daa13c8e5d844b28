//! A passed-through connection that people have to approve: refused, and recorded as what it waits for.

use agentguard_tests::{Bundle, Guard, Nginx, Site};

#[test]
fn a_passed_connection_that_people_have_to_approve_is_recorded_as_that() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let port = origin.port;
    let passed = format!(
        "[[reach]]\nhost = \"origin.test:{port}\"\ntls = \"passthrough\"\nallow = [\"connect\"]\n"
    );
    let waits = format!(
        "@id(\"pinned-owner\") @approve(\"owner\")
forbid (principal, action == Action::\"connect\", resource == Host::\"origin.test:{port}\")
unless {{ context.approvals.contains(\"owner\") }};"
    );
    let bundle = Bundle::new(1)
        .agent("probe", &passed)
        .rules("approve", &waits);
    let guard = Guard::start(&site, &bundle);
    let code = format!(
        "import ssl
raw = socket.create_connection(('origin.test', {port}))
try:
    ssl._create_unverified_context().wrap_socket(raw, server_hostname='origin.test')
    print('open')
except ssl.SSLError as error: print(error.reason)"
    );
    let ran = guard.agent("probe").python(&code).run();
    assert_eq!(ran.stdout.trim(), "TLSV1_ALERT_ACCESS_DENIED");
    let records = guard.audit();
    let connects: Vec<_> = records
        .iter()
        .filter(|it| it.action() == "connect")
        .collect();
    let [record] = connects[..] else {
        panic!("{records:#?}");
    };
    assert_eq!(
        (record.outcome(), record.reason()),
        ("approval-required", "approval-required")
    );
    assert_eq!(record.text("/approval/role"), "owner");
    assert_eq!(record.0["policies"], serde_json::json!(["pinned-owner"]));
}
