//! What an agent can say on a connection to make the forwarder pass what it has not judged. Whatever carries the mark is
//! forbidden, and must not be on the wire behind the forwarder.

use agentguard_tests::Bundle;
use agentguard_tests::attempt::{AGENT, Attempt, KEEP, prove};
use agentguard_tests::bundle::reach;

/// The authority of the origin, and the second request that hides behind the first.
const NAMES: &str = "HOST = b'origin.test:%d' % PORT
ELSEWHERE = b'elsewhere.test:%d' % PORT
HIDDEN = b'GET /v2/' + MARK + b' HTTP/1.1\\r\\nHost: ' + HOST + b'\\r\\nConnection: close\\r\\n\\r\\n'
def get(target, host=HOST, more=b''):
    return b'GET ' + target + b' HTTP/1.1\\r\\nHost: ' + host + b'\\r\\nConnection: close\\r\\n' + more + b'\\r\\n'
";

/// RFC 9113, section 4.1, and RFC 7541, section 6: no Huffman coding, nothing indexed, so that the mark is seen.
const HTTP2: &str = "PREFACE = b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n' + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
def string(text): return bytes([len(text)]) + text
def headers(*fields):
    block = b''.join(b'\\0' + string(name) + string(value) for name, value in fields)
    return struct.pack('!I', len(block))[1:] + bytes([1, 5, 0, 0, 0, 1]) + block
def h2(path, host=HOST):
    return headers((b':method', b'GET'), (b':scheme', b'http'), (b':authority', host), (b':path', path))
";

fn say(name: &str, bytes: &str) -> Attempt {
    Attempt::python(name, format!("{NAMES}{HTTP2}ask({bytes})"))
        .marked()
        .answers(&["EACCES"])
        .leaves("GET", "policy-denied")
}

fn one_host(field: &agentguard_tests::field::Field) -> Bundle {
    let hosts = reach("origin.test", field.port(), &["GET /v1/**", "POST /v1/**"]);
    Bundle::new(1).agent(AGENT, &format!("{KEEP}{hosts}"))
}

#[test]
fn one_request_in_every_form() {
    prove(
        &[
            say("origin form", "get(b'/v2/' + MARK)"),
            say("proxy form", "get(b'http://' + HOST + b'/v2/' + MARK)"),
            say(
                "proxy form for another host",
                "get(b'http://elsewhere.test/v1/' + MARK, b'elsewhere.test')",
            ),
            say(
                "another host than its target's",
                "get(b'http://elsewhere.test/v1/' + MARK)",
            )
            .leaves("GET", "protocol-refused"),
            say("another host", "get(b'/v1/' + MARK, ELSEWHERE)"),
            say("an escaped way up", "get(b'/v1/%2e%2e/v2/' + MARK)"),
            say("an escaped letter", "get(b'/%762/' + MARK)"),
            say(
                "a websocket",
                "get(b'/v2/' + MARK, more=b'Upgrade: websocket\\r\\nConnection: upgrade\\r\\nSec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\\r\\n')",
            ),
        ],
        one_host,
    );
}

#[test]
fn names_that_two_parsers_read_differently() {
    let host = |name: &str, host: &str| {
        say(
            name,
            &format!("get(b'/v1/' + MARK, {host} + b':%d' % PORT)"),
        )
        .leaves("GET", "protocol-refused")
    };
    prove(
        &[
            host("a NUL in the name", "b'origin.test\\0.elsewhere.test'")
                .leaves("connect", "protocol-refused"),
            host("an escaped dot in the name", "b'origin%2etest'"),
            host("a user before the name", "b'origin.test@elsewhere.test'"),
            host("a space in the name", "b'origin.test elsewhere.test'"),
            host("a comma in the name", "b'origin.test,elsewhere.test'"),
            host("the address as one number", "b'2130706433'"),
            host("the address in octal", "b'0177.0.0.1'"),
            host("the address in short", "b'127.1'"),
            host("a fullwidth letter", "'\u{ff4f}rigin.test'.encode()"),
        ],
        one_host,
    );
}

#[test]
fn requests_behind_requests() {
    let refused = |name: &str, bytes: &str| say(name, bytes).leaves("connect", "protocol-refused");
    let post = "b'POST /v1/x HTTP/1.1\\r\\nHost: ' + HOST + b'\\r\\n' +";
    prove(
        &[
            // The first of the two is allowed, so that the answer begins well.
            say(
                "pipelined",
                "get(b'/v1/x').replace(b'Connection: close\\r\\n', b'') + HIDDEN",
            )
            .answers(&["through"]),
            refused(
                "a length and chunks",
                &format!(
                    "{post} b'Content-Length: 4\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\n' + HIDDEN"
                ),
            )
            .leaves("POST", "protocol-refused"),
            refused(
                "two lengths",
                &format!(
                    "{post} b'Content-Length: 0\\r\\nContent-Length: 99\\r\\n\\r\\n' + HIDDEN"
                ),
            ),
            refused(
                "chunks that are not the last coding",
                &format!(
                    "{post} b'Transfer-Encoding: chunked, identity\\r\\n\\r\\n0\\r\\n\\r\\n' + HIDDEN"
                ),
            ),
            refused(
                "a space before the colon",
                &format!("{post} b'Transfer-Encoding : chunked\\r\\n\\r\\n0\\r\\n\\r\\n' + HIDDEN"),
            ),
            refused(
                "a folded line",
                &format!(
                    "{post} b'X-A: 1\\r\\n Transfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\n' + HIDDEN"
                ),
            ),
        ],
        one_host,
    );
}

#[test]
fn protocols_that_are_not_understood() {
    let raw = |name: &str, bytes: &str| say(name, bytes).leaves("connect", "protocol-refused");
    // The forwarder says yes to any tunnel, and judges what comes in it.
    let tunnel = |name: &str, to: &str, inside: &str| {
        let head =
            format!("b'CONNECT ' + {to} + b' HTTP/1.1\\r\\nHost: ' + {to} + b'\\r\\n\\r\\n'");
        say(name, &format!("{head} + {inside}")).answers(&["through"])
    };
    prove(
        &[
            raw("ssh", "b'SSH-2.0-' + MARK + b'\\r\\n'"),
            raw("bytes of nobody's protocol", "b'\\x7f\\0\\1\\2' + MARK"),
            raw(
                "a record that is no hello",
                "b'\\x16\\x03\\x01\\0\\x12' + MARK",
            ),
            tunnel(
                "CONNECT, then raw bytes",
                "HOST",
                "b'\\x7f\\0\\1\\2' + MARK",
            )
            .leaves("connect", "protocol-refused"),
            tunnel("CONNECT, then a forbidden request", "HOST", "HIDDEN"),
            tunnel(
                "CONNECT to another host, then a request of an allowed one",
                "ELSEWHERE",
                "get(b'/v1/' + MARK)",
            )
            .leaves("GET", "protocol-refused"),
            tunnel(
                "CONNECT to another host, then a request of its",
                "ELSEWHERE",
                "get(b'/v1/' + MARK, ELSEWHERE)",
            ),
        ],
        one_host,
    );
}

#[test]
fn http2_without_tls() {
    // A connection of HTTP/2 stays open for further requests.
    let answers: &[&str] = &["EACCES", "timeout"];
    prove(
        &[
            say("h2c by prior knowledge", "PREFACE + h2(b'/v2/' + MARK)").answers(answers),
            say(
                "h2c for another host",
                "PREFACE + h2(b'/v1/' + MARK, ELSEWHERE)",
            )
            .answers(answers),
            say(
                "h2c by upgrade",
                "get(b'/v1/x', more=b'Upgrade: h2c\\r\\nHTTP2-Settings: AAMAAABk\\r\\n').replace(b'Connection: close', b'Connection: Upgrade, HTTP2-Settings') + PREFACE + h2(b'/v2/' + MARK)",
            )
            .answers(&["EACCES", "through"])
            .leaves("connect", "protocol-refused"),
            say(
                "extended CONNECT",
                "PREFACE + headers((b':method', b'CONNECT'), (b':protocol', b'websocket'), (b':scheme', b'http'), (b':authority', HOST), (b':path', b'/v2/' + MARK))",
            )
            .answers(answers)
            .ends_without_a_decision(),
        ],
        one_host,
    );
}
