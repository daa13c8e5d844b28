//! Names and answers by another way than the guard's resolver. The public resolver is a stand-in on loopback.

use agentguard_tests::Bundle;
use agentguard_tests::attempt::{AGENT, Attempt, KEEP, prove_on};
use agentguard_tests::bundle::reach;
use agentguard_tests::field::Field;

/// A question for `leak.test`, and a TLS client that takes any certificate. What is no TLS answers it all the same.
const QUESTION: &str = "import ssl
QUESTION = b'\\x12\\x34\\x01\\0\\0\\x01\\0\\0\\0\\0\\0\\0\\x04leak\\x04test\\0\\0\\x10\\0\\x01'
def by_tls(data, name):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT); tls.check_hostname = False; tls.verify_mode = ssl.CERT_NONE
    try: ask(data, stream=tls.wrap_socket(socket.create_connection(('127.0.0.1', PORT)), server_hostname=name))
    except ssl.SSLError: pass
";

#[test]
fn over_tls_and_quic() {
    let attempts = [
        asks(
            "dns over tls",
            "by_tls(struct.pack('!H', len(QUESTION)) + QUESTION, 'dns.test')",
        ),
        asks(
            "dns over tls without a name",
            "by_tls(struct.pack('!H', len(QUESTION)) + QUESTION, None)",
        ),
        sends("dns over quic"),
    ];
    prove_on(853, &attempts, one_host);
}

#[test]
fn over_https_and_http3() {
    let post = "b'POST /dns-query HTTP/1.1\\r\\nHost: dns.test\\r\\nConnection: close\\r\\nContent-Type: application/dns-message\\r\\nContent-Length: %d\\r\\n\\r\\n' % len(QUESTION) + QUESTION";
    let attempts = [
        asks("dns over https", &format!("by_tls({post}, 'dns.test')"))
            .leaves("POST", "policy-denied"),
        sends("dns over http/3"),
    ];
    prove_on(443, &attempts, one_host);
}

#[test]
fn by_multicast_names() {
    prove_on(5353, &[sends("mdns")], one_host);
}

fn asks(name: &str, code: &str) -> Attempt {
    Attempt::python(name, format!("{QUESTION}{code}"))
        .answers(&["through", "EACCES"])
        .leaves("connect", "protocol-refused")
}

fn sends(name: &str) -> Attempt {
    Attempt::python(
        name,
        format!("{QUESTION}udp().sendto(QUESTION, ('127.0.0.1', PORT))"),
    )
    .leaves("sendmsg", "policy-denied")
}

fn one_host(_: &Field) -> Bundle {
    let hosts = reach("origin.test", 443, &["GET /v1/**"]);
    Bundle::new(1).agent(AGENT, &format!("{KEEP}{hosts}"))
}
