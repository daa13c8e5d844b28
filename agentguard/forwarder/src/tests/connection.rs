//! What a request leaves on an upstream connection, which the next one could be taken for or find: bodies that the server
//! does not read, who has authenticated, and interim answers without end.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use agentguard_link::state::OpenTask;
use agentguard_policy::{OpenedBy, Terms};
use agentguard_record::{DecidedBy, DenyReason, Ended, Outcome};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use uuid::Uuid;

use super::origin::raw;
use super::rig::{AGENT, HOST, Reply, Rig, Setup, USER, ask, head};

const HIDDEN: &str = "DELETE /ok/secret HTTP/1.1\r\nHost: plain.test\r\n\r\n";

/// A server that answers by the head alone, as many handlers do, and reads on behind it unless it is told to close.
#[derive(Clone, Default)]
struct Careless {
    /// Which connection, and the head.
    heads: Arc<Mutex<Vec<(usize, String)>>>,
    connections: Arc<AtomicUsize>,
}

impl Careless {
    async fn start(&self) -> u16 {
        let this = self.clone();
        raw(move |socket| {
            let this = this.clone();
            async move { this.serve(socket).await }
        })
        .await
    }

    async fn serve(self, socket: TcpStream) {
        let number = self.connections.fetch_add(1, Ordering::Relaxed);
        let mut stream = BufReader::new(socket);
        while stream.fill_buf().await.is_ok_and(|bytes| !bytes.is_empty()) {
            let head = head(&mut stream).await;
            let first = head.lines().next().unwrap();
            let answer = match first.contains("/ntlm") && !head.contains("Authorization:") {
                true => {
                    "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n"
                }
                false => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            };
            let closes = head.contains("Connection: close");
            self.heads.lock().unwrap().push((number, head));
            if stream.write_all(answer.as_bytes()).await.is_err() || closes {
                return;
            }
        }
    }

    /// The connection's number and the first line of each request so far.
    fn requests(&self) -> Vec<(usize, String)> {
        let heads = self.heads.lock().unwrap();
        let first =
            |(number, head): &(usize, String)| (*number, head.lines().next().unwrap().to_owned());
        heads.iter().map(first).collect()
    }
}

/// A forwarder in front of a careless server, and where that is.
async fn careless(host: Option<&'static str>) -> (Rig, Careless, u16) {
    let server = Careless::default();
    let port = server.start().await;
    let fill = |text: &str| text.replace("{careless}", &port.to_string()).leak();
    let rig = Rig::with(Setup {
        agent: fill(
            "[agent]\nname = \"tester\"\nowner = \"o@example.com\"\nrisk = \"low\"\n\
             [[reach]]\nhost = \"plain.test:{careless}\"\nallow = [\"ANY /ok/**\"]\n\
             [[reach]]\nhost = \"origin.test:{port}\"\nallow = [\"ANY /ok/**\"]\n",
        ),
        host: host.map(|host| &*fill(host)),
        ..Setup::default()
    })
    .await;
    (rig, server, port)
}

/// An agent that may do anything below `/ok` of the one server at `port`.
fn plain(port: u16) -> &'static str {
    let agent = format!(
        "[agent]\nname = \"tester\"\nowner = \"o@example.com\"\nrisk = \"low\"\n\
         [[reach]]\nhost = \"plain.test:{port}\"\nallow = [\"ANY /ok/**\"]\n"
    );
    agent.leak()
}

async fn send(client: &mut TcpStream, method: &str, path: &str, port: u16, rest: &str) -> Reply {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: plain.test:{port}\r\n{rest}");
    ask(client, request).await
}

fn with_length(body: &str) -> String {
    format!("Content-Length: {}\r\n\r\n{body}", body.len())
}

fn in_chunks(body: &str) -> String {
    let length = body.len();
    format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n")
}

#[tokio::test]
async fn a_body_that_the_server_does_not_read_is_no_request() {
    for framed in [with_length, in_chunks] {
        let (rig, server, port) = careless(None).await;
        let mut client = rig.connect(port).await;
        // Half a head, too: it would swallow the one of the next request.
        for (round, hidden) in [HIDDEN, "GET /ok/secret HTTP/1.1\r\nX: "]
            .iter()
            .enumerate()
        {
            let post = send(&mut client, "POST", "/ok/a", port, &framed(hidden)).await;
            assert_eq!(post.status, 200);
            assert_eq!(
                send(&mut client, "GET", "/ok/b", port, "\r\n").await.status,
                200
            );
            assert_eq!(
                server.requests().len(),
                2 * (round + 1),
                "{:?}",
                server.requests()
            );
        }
        let lines: Vec<_> = server
            .requests()
            .into_iter()
            .map(|(_, line)| line)
            .collect();
        assert!(
            !lines.iter().any(|line| line.contains("secret")),
            "{lines:?}"
        );
    }
}

#[tokio::test]
async fn methods_that_give_a_body_no_meaning_have_none() {
    let (rig, server, port) = careless(None).await;
    let upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\n";
    for method in ["GET", "HEAD", "TRACE"] {
        for rest in [
            with_length(HIDDEN),
            in_chunks(HIDDEN),
            format!("{upgrade}{}", with_length(HIDDEN)),
        ] {
            let mut client = rig.connect(port).await;
            let request = format!("{method} /ok/a HTTP/1.1\r\nHost: plain.test:{port}\r\n{rest}");
            client.write_all(request.as_bytes()).await.unwrap();
            let refused = head(&mut client).await;
            assert!(
                refused.starts_with("HTTP/1.1 403"),
                "{method} {rest}: {refused}"
            );
            let record = rig.record().await;
            assert_eq!(
                (
                    record.outcome,
                    record.reason,
                    record.decided_by,
                    record.ended
                ),
                (
                    Outcome::Deny,
                    Some(DenyReason::ProtocolRefused),
                    DecidedBy::Protocol,
                    Ended::Refused
                )
            );
        }
    }
    // A length of nothing is no body.
    let mut client = rig.connect(port).await;
    let empty = send(
        &mut client,
        "GET",
        "/ok/empty",
        port,
        "Content-Length: 0\r\n\r\n",
    )
    .await;
    assert_eq!(empty.status, 200);
    assert_eq!(
        server.requests(),
        [(0, "GET /ok/empty HTTP/1.1".to_owned())]
    );
}

#[tokio::test]
async fn a_body_over_http2_is_none_of_a_get_either() {
    let rig = Rig::new().await;
    let io = TokioIo::new(rig.tls(&["h2"]).await);
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let mut get = async |body: &'static str| {
        let uri = format!("https://{HOST}:{}/ok/echo", rig.origin.port);
        let body = Full::new(Bytes::from_static(body.as_bytes()));
        let answer = sender
            .send_request(Request::get(uri).body(body).unwrap())
            .await
            .unwrap();
        let status = answer.status().as_u16();
        (
            status,
            answer.into_body().collect().await.unwrap().to_bytes(),
        )
    };
    assert_eq!(get("").await.0, 200);
    let (status, refused) = get(HIDDEN).await;
    assert_eq!(status, 403);
    let refused = String::from_utf8_lossy(&refused);
    assert!(refused.contains("reads_bodies = true"), "{refused}");
    assert_eq!(rig.origin.requests().len(), 1);
}

#[tokio::test]
async fn a_server_that_reads_bodies_gets_them_and_keeps_its_connection() {
    let rig = Rig::with(Setup {
        host: Some("[host]\nname = \"origin.test:{port}\"\nreads_bodies = true\n"),
        ..Setup::default()
    })
    .await;
    let host = rig.authority();
    let mut client = rig.tls(&["http/1.1"]).await;
    for method in ["GET", "POST", "GET"] {
        for rest in [with_length("hello"), in_chunks("hello")] {
            let request = format!("{method} /ok/echo HTTP/1.1\r\nHost: {host}\r\n{rest}");
            let echo = ask(&mut client, request).await;
            assert_eq!(
                (echo.status, &*echo.body),
                (200, &b"hello"[..]),
                "{method} {rest}"
            );
        }
    }
    assert_eq!(rig.origin.seen.connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn an_answer_without_a_body_leaves_its_connection_for_the_next_request() {
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let port = raw(move |socket| {
        count.fetch_add(1, Ordering::Relaxed);
        bodiless(socket)
    })
    .await;
    let rig = Rig::with(Setup {
        agent: plain(port),
        ..Setup::default()
    })
    .await;
    let mut client = rig.connect(port).await;
    for (method, path) in [
        ("GET", "/ok/204"),
        ("GET", "/ok/304"),
        ("GET", "/ok/0"),
        ("HEAD", "/ok/x"),
    ] {
        for _ in 0..3 {
            let request = format!("{method} {path} HTTP/1.1\r\nHost: plain.test:{port}\r\n\r\n");
            client.write_all(request.as_bytes()).await.unwrap();
            head(&mut client).await;
            assert_eq!(rig.record().await.outcome, Outcome::Allow);
        }
    }
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}

async fn bodiless(socket: TcpStream) {
    let mut stream = BufReader::new(socket);
    while stream.fill_buf().await.is_ok_and(|bytes| !bytes.is_empty()) {
        let head = head(&mut stream).await;
        let answer = match head.split(' ').nth(1).unwrap() {
            "/ok/204" => "HTTP/1.1 204 No Content\r\n\r\n",
            "/ok/304" => "HTTP/1.1 304 Not Modified\r\n\r\n",
            "/ok/0" => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            _ => "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
        };
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}

#[tokio::test]
async fn who_has_authenticated_on_a_connection_has_it_alone() {
    let (rig, server, port) = careless(None).await;
    let (mut alice, mut bob) = (rig.connect(port).await, rig.connect(port).await);
    assert_eq!(
        send(&mut alice, "GET", "/ok/ntlm", port, "\r\n")
            .await
            .status,
        401
    );
    let token = "Authorization: NTLM TlRMTVNTUAAB\r\n\r\n";
    assert_eq!(
        send(&mut alice, "GET", "/ok/ntlm", port, token)
            .await
            .status,
        200
    );
    assert_eq!(
        send(&mut bob, "GET", "/ok/b", port, "\r\n").await.status,
        200
    );
    assert_eq!(
        send(&mut alice, "GET", "/ok/a", port, "\r\n").await.status,
        200
    );
    let used: Vec<_> = server
        .requests()
        .into_iter()
        .map(|(number, _)| number)
        .collect();
    assert_eq!(used, [0, 0, 1, 0]);
}

#[tokio::test]
async fn another_user_or_task_of_the_agents_has_other_connections() {
    let (rig, server, port) = careless(None).await;
    let tasks = [1, 2].map(|id| OpenTask {
        id: Uuid::from_u128(id),
        opened_by: OpenedBy::Supervisor,
        terms: Terms {
            intent: "order paper".into(),
            ..Terms::default()
        },
        ends: jiff::Timestamp::now().as_second() + 60,
    });
    let open = &rig.forwarder.situation.tasks;
    open.set(AGENT, &tasks).unwrap();
    let [first, second] = tasks.map(|task| format!("AgentGuard-Task: {}\r\n\r\n", task.id));
    let others = USER + 1;
    for (uid, task, expected) in [
        (USER, &first, 0),
        (USER, &first, 0),
        (others, &first, 1),
        (USER, &second, 2),
        (others, &first, 1),
        (USER, &first, 0),
        (USER, &second, 2),
    ] {
        let mut client = rig.connect_of_user(uid, port).await;
        let answer = send(&mut client, "GET", "/ok/a", port, task).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let (used, _) = server.requests().pop().unwrap();
        assert_eq!(used, expected, "user {uid}, {task}");
    }
}

#[tokio::test]
async fn who_has_authenticated_shares_it_with_no_user_and_no_task() {
    let (rig, server, port) = careless(None).await;
    let token = "Authorization: NTLM TlRMTVNTUAAB\r\n\r\n";
    let mut alice = rig.connect_of_user(USER, port).await;
    for (rest, status) in [("\r\n", 401), (token, 200)] {
        let answer = send(&mut alice, "GET", "/ok/ntlm", port, rest).await;
        assert_eq!(answer.status, status);
    }
    let authenticated = server.requests().pop().unwrap().0;
    for uid in [USER, USER + 1] {
        let mut other = rig.connect_of_user(uid, port).await;
        send(&mut other, "GET", "/ok/a", port, "\r\n").await;
        let (used, _) = server.requests().pop().unwrap();
        assert_ne!(used, authenticated, "user {uid}");
    }
    drop(alice);
    let mut later = rig.connect_of_user(USER, port).await;
    send(&mut later, "GET", "/ok/a", port, "\r\n").await;
    let (used, _) = server.requests().pop().unwrap();
    assert_ne!(used, authenticated, "after its client has gone");
}

#[tokio::test]
async fn interim_answers_without_end_are_an_end() {
    let port = raw(|socket| async move {
        let mut stream = BufReader::new(socket);
        let asked = head(&mut stream).await;
        let few = asked.starts_with("GET /ok/few");
        let interim = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
        let mut left = if few { 10 } else { usize::MAX };
        while left > 0 && stream.write_all(interim.as_bytes()).await.is_ok() {
            left -= 1;
        }
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .await;
    })
    .await;
    let rig = Rig::with(Setup {
        agent: plain(port),
        ..Setup::default()
    })
    .await;
    let mut client = rig.connect(port).await;
    assert_eq!(
        send(&mut client, "GET", "/ok/few", port, "\r\n")
            .await
            .status,
        200
    );
    let refused = send(&mut client, "GET", "/ok/endless", port, "\r\n").await;
    assert_eq!(
        (refused.status, refused.slug().as_str()),
        (502, "upstream-unreachable")
    );
    let detail = refused.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("interim answers"), "{detail}");
}
