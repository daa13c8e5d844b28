//! HTTP/1.1: what is let through, what is refused, what upstream sees of it.

use agentguard_common::abi::AgentId;
use agentguard_record::{DecidedBy, DenyReason, Ended, Outcome};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::rig::{AGENT, HOST, Rig, Setup, ask, reply};

#[tokio::test]
async fn one_connection_carries_permitted_and_refused_requests() {
    let rig = Rig::new().await;
    let mut client = rig.tls(&["http/1.1"]).await;
    let host = rig.authority();
    for round in 0..3 {
        let yes = ask(
            &mut client,
            format!("GET /ok/{round}?q=1 HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        )
        .await;
        assert_eq!(
            (yes.status, yes.body),
            (200, format!("GET /ok/{round}").into_bytes())
        );
        let no = ask(
            &mut client,
            format!("GET /secret HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        )
        .await;
        assert_eq!((no.status, no.slug().as_str()), (403, "policy-denied"));
        let records = rig.records();
        assert_eq!(records.len(), 2, "{records:?}");
        let [allowed, denied] = &records[..] else {
            unreachable!()
        };
        assert_eq!(allowed.outcome, Outcome::Allow);
        assert_eq!(allowed.resource, host);
        let request = allowed.request.as_ref().unwrap();
        assert_eq!(
            (request.path.as_str(), request.status),
            (format!("/ok/{round}").as_str(), 200)
        );
        assert_eq!(
            (request.scheme.as_str(), request.host.as_str()),
            ("https", HOST)
        );
        assert_eq!(allowed.upstream.as_ref().unwrap().tls, "TLSv1.3");
        assert_eq!(allowed.bytes_down, 9);
        assert!(allowed.latency.total > 0);
        assert_eq!(denied.outcome, Outcome::Deny);
        assert_eq!(denied.reason, Some(DenyReason::PolicyDenied));
        let told = [&allowed, &denied].map(|it| (it.decided_by, it.ended));
        let by = DecidedBy::Rules;
        assert_eq!(told, [(by, Ended::Whole), (by, Ended::Refused)]);
        assert_eq!(denied.request.as_ref().unwrap().status, 403);
        assert_eq!(
            no.json()["instance"],
            format!("urn:uuid:{}", denied.decision)
        );
        assert!(denied.upstream.is_none());
    }
    assert_eq!(
        rig.origin.requests(),
        ["GET /ok/0", "GET /ok/1", "GET /ok/2"]
    );
    // One upstream connection was enough, and the client's end leaves no record of its own.
    assert_eq!(
        rig.origin
            .seen
            .connections
            .load(std::sync::atomic::Ordering::Relaxed),
        1
    );
    drop(client);
    assert!(rig.records().is_empty());
}

/// What upstream gets of a request, and what the client gets of the answer.
#[tokio::test]
async fn fields_of_one_hop_stay_on_it() {
    let rig = Rig::new().await;
    let mut client = rig.tls(&["http/1.1"]).await;
    let host = rig.authority();
    let request = format!(
        "GET /ok/hop?a=%2f HTTP/1.1\r\nHost: {host}\r\nConnection: x-mine, keep-alive\r\nX-Mine: 1\r\n\
         Keep-Alive: 5\r\nProxy-Authorization: Basic eA==\r\nTE: trailers\r\nUpgrade: h2c\r\nX-End: 2\r\n\r\n"
    );
    let reply = ask(&mut client, request).await;
    assert_eq!(reply.status, 200);
    let (target, headers) = rig.origin.last();
    assert_eq!(target, "/ok/hop?a=%2f", "as it is written");
    let mut names: Vec<&str> = headers.keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["host", "x-end"]);
    assert_eq!(headers["host"], host.as_str());
    for name in ["connection", "x-private", "keep-alive", "alt-svc"] {
        assert_eq!(reply.header(name), None, "{name}");
    }
    assert_eq!(reply.header("x-kept"), Some("1"));
}

#[tokio::test]
async fn the_parts_of_a_request_agree_or_it_is_refused() {
    let rig = Rig::new().await;
    let (port, plain) = (rig.origin.port, rig.origin.plain);
    let tls = [
        (
            "another host",
            format!("GET /ok/x HTTP/1.1\r\nHost: other.test:{port}\r\n\r\n"),
        ),
        (
            "another port",
            "GET /ok/x HTTP/1.1\r\nHost: origin.test:1\r\n\r\n".into(),
        ),
        ("no host", "GET /ok/x HTTP/1.1\r\n\r\n".into()),
        (
            "two hosts",
            format!(
                "GET /ok/x HTTP/1.1\r\nHost: origin.test:{port}\r\nHost: origin.test:{port}\r\n\r\n"
            ),
        ),
        (
            "user information",
            format!("GET /ok/x HTTP/1.1\r\nHost: a@origin.test:{port}\r\n\r\n"),
        ),
        (
            "another target",
            format!(
                "GET https://other.test:{port}/ok/x HTTP/1.1\r\nHost: origin.test:{port}\r\n\r\n"
            ),
        ),
        (
            "another scheme",
            format!(
                "GET http://origin.test:{port}/ok/x HTTP/1.1\r\nHost: origin.test:{port}\r\n\r\n"
            ),
        ),
        (
            "an address for a name",
            format!("GET /ok/x HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n"),
        ),
        (
            "a path out of the root",
            format!("GET /ok/../../x HTTP/1.1\r\nHost: origin.test:{port}\r\n\r\n"),
        ),
        (
            "a path with a NUL",
            format!("GET /ok/%00 HTTP/1.1\r\nHost: origin.test:{port}\r\n\r\n"),
        ),
    ];
    for (name, request) in tls {
        let mut client = rig.tls(&["http/1.1"]).await;
        let reply = ask(&mut client, request).await;
        assert_eq!(
            (reply.status, reply.slug().as_str()),
            (403, "protocol-refused"),
            "{name}"
        );
        let records = rig.records();
        assert_eq!(records.len(), 1, "{name}: {records:?}");
        assert_eq!(
            records[0].reason,
            Some(DenyReason::ProtocolRefused),
            "{name}"
        );
    }
    let mut client = rig.connect(plain).await;
    let reply = ask(
        &mut client,
        format!("GET /ok/x HTTP/1.1\r\nHost: plain.test:{port}\r\n\r\n"),
    )
    .await;
    assert_eq!(
        reply.slug(),
        "protocol-refused",
        "another port on a plain connection"
    );
    assert!(
        rig.origin.requests().is_empty(),
        "{:?}",
        rig.origin.requests()
    );
}

#[tokio::test]
async fn plain_http_is_judged_alike() {
    let rig = Rig::new().await;
    let plain = rig.origin.plain;
    let mut client = rig.connect(plain).await;
    let yes = ask(
        &mut client,
        format!("GET /ok/p HTTP/1.1\r\nHost: PLAIN.test.:{plain}\r\n\r\n"),
    )
    .await;
    assert_eq!((yes.status, yes.body.as_slice()), (200, &b"GET /ok/p"[..]));
    assert_eq!(
        rig.origin.last().1["host"],
        format!("plain.test:{plain}").as_str()
    );
    let no = ask(
        &mut client,
        format!("DELETE /x HTTP/1.1\r\nHost: plain.test:{plain}\r\n\r\n"),
    )
    .await;
    assert_eq!(no.slug(), "policy-denied");
    let records = rig.records();
    assert_eq!(records[0].upstream.as_ref().unwrap().tls, "");
    assert_eq!(records[1].action.as_str(), "DELETE");
}

#[tokio::test]
async fn a_client_that_wants_a_proxy_gets_its_target_judged() {
    let rig = Rig::new().await;
    let plain = rig.origin.plain;
    // It connected to a proxy's port, not to the target's.
    let mut client = rig.connect(3128).await;
    let yes = ask(
        &mut client,
        format!("GET http://plain.test:{plain}/ok/a HTTP/1.1\r\nHost: plain.test:{plain}\r\nProxy-Connection: keep-alive\r\n\r\n"),
    )
    .await;
    assert_eq!((yes.status, yes.body.as_slice()), (200, &b"GET /ok/a"[..]));
    assert_eq!(rig.origin.last().0, "/ok/a", "origin-form upstream");
    let no = ask(
        &mut client,
        format!("GET http://plain.test:{plain}/x HTTP/1.1\r\nHost: plain.test:{plain}\r\n\r\n"),
    )
    .await;
    assert_eq!(no.slug(), "policy-denied");
    let mixed = ask(
        &mut client,
        format!("GET http://plain.test:{plain}/ok/a HTTP/1.1\r\nHost: origin.test:{plain}\r\n\r\n"),
    )
    .await;
    assert_eq!(mixed.slug(), "protocol-refused");
    assert_eq!(rig.origin.requests().len(), 1);
    assert_eq!(rig.records().len(), 3);
}

/// What two parsers could read in two ways ends the connection or reaches upstream as exactly one request.
#[tokio::test]
async fn smuggling_shapes_smuggle_nothing() {
    let hidden = "GET /ok/hidden HTTP/1.1\r\nHost: HOST\r\n\r\n";
    let shapes = [
        ("CL and TE", format!("POST /ok/a HTTP/1.1\r\nHost: HOST\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}")),
        ("TE and CL", format!("POST /ok/a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\nContent-Length: {}\r\n\r\n0\r\n\r\n{hidden}", hidden.len() + 5)),
        ("two CLs", format!("POST /ok/a HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0\r\nContent-Length: {}\r\n\r\n{hidden}", hidden.len())),
        ("CL list", format!("POST /ok/a HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0, {}\r\n\r\n{hidden}", hidden.len())),
        ("signed CL", format!("POST /ok/a HTTP/1.1\r\nHost: HOST\r\nContent-Length: +5\r\n\r\n{hidden}")),
        ("odd TE", format!("POST /ok/a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: xchunked\r\n\r\n{hidden}")),
        ("TE twice", String::from("POST /ok/a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")),
        ("coded TE", "POST /ok/a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n".into()),
        ("TE in 1.0", format!("POST /ok/a HTTP/1.0\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}")),
        ("space before colon", format!("POST /ok/a HTTP/1.1\r\nHost: HOST\r\nContent-Length : 5\r\n\r\n{hidden}")),
        ("obs-fold", format!("POST /ok/a HTTP/1.1\r\nHost: HOST\r\nX: a\r\n Transfer-Encoding: chunked\r\n\r\n{hidden}")),
        ("bad chunk", format!("POST /ok/a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\nZ\r\n\r\n{hidden}")),
        ("huge chunk", format!("POST /ok/a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{hidden}")),
        ("NUL in a field", format!("POST /ok/a HTTP/1.1\r\nHost: HOST\r\nX: a\0b\r\n\r\n{hidden}")),
        ("bare CR", format!("POST /ok/a HTTP/1.1\r\nHost: HOST\r\nX: a\rTransfer-Encoding: chunked\r\n\r\n{hidden}")),
        ("no version", "GET /ok/a\r\n\r\n".into()),
    ];
    for (name, shape) in shapes {
        let rig = Rig::new().await;
        let mut client = rig.tls(&["http/1.1"]).await;
        client
            .write_all(shape.replace("HOST", &rig.authority()).as_bytes())
            .await
            .unwrap();
        let mut answer = Vec::new();
        // Whether it ends with an alert or without one.
        let _ = client.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        let record = rig.record().await;
        assert_eq!(
            record.reason,
            Some(DenyReason::ProtocolRefused),
            "{name}: {record:?}"
        );
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{name}: {answer}"
        );
        assert!(
            !rig.origin.requests().contains(&"GET /ok/hidden".into()),
            "{name}"
        );
        assert!(rig.records().is_empty(), "{name}");
    }
}

#[tokio::test]
async fn pipelined_requests_are_each_judged() {
    let rig = Rig::new().await;
    let mut client = rig.tls(&["http/1.1"]).await;
    let host = rig.authority();
    let all: String = ["/ok/1", "/no", "/ok/2"]
        .map(|path| format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"))
        .concat();
    client.write_all(all.as_bytes()).await.unwrap();
    let statuses = [
        reply(&mut client).await.status,
        reply(&mut client).await.status,
        reply(&mut client).await.status,
    ];
    assert_eq!(statuses, [200, 403, 200]);
    assert_eq!(rig.origin.requests(), ["GET /ok/1", "GET /ok/2"]);
    assert_eq!(rig.records().len(), 3);
}

#[tokio::test]
async fn heads_have_a_limit() {
    let rig = Rig::new().await;
    let mut client = rig.tls(&["http/1.1"]).await;
    let host = rig.authority();
    let fits = format!(
        "GET /ok/x HTTP/1.1\r\nHost: {host}\r\nX: {}\r\n\r\n",
        "a".repeat(12_000)
    );
    assert_eq!(ask(&mut client, fits).await.status, 200);
    assert_eq!(rig.record().await.outcome, Outcome::Allow);
    let long = format!(
        "GET /ok/x HTTP/1.1\r\nHost: {host}\r\nX: {}\r\n\r\n",
        "a".repeat(40_000)
    );
    client.write_all(long.as_bytes()).await.unwrap();
    assert_eq!(reply(&mut client).await.status, 431);
    let record = rig.record().await;
    assert_eq!(record.reason, Some(DenyReason::ProtocolRefused));
    assert_eq!(rig.origin.requests().len(), 1);
}

#[tokio::test]
async fn a_slow_head_and_an_idle_connection_are_ended() {
    let mut setup = Setup::default();
    setup.limits.head_timeout_ms = 200;
    setup.limits.idle_timeout_ms = 300;
    let rig = Rig::with(setup).await;
    let host = rig.authority();
    // Nothing at all; half a head; half a second head; nothing after a request.
    let mut silent = rig.connect(rig.origin.port).await;
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(rig.record().await.outcome, Outcome::Error);
    let mut slow = rig.tls(&["http/1.1"]).await;
    slow.write_all(b"GET /ok/x HTTP/1.1\r\nHo").await.unwrap();
    let _ = slow.read(&mut [0]).await;
    let record = rig.record().await;
    assert!(
        record.detail.as_ref().unwrap().contains("within 200 ms"),
        "{record:?}"
    );
    let mut second = rig.tls(&["http/1.1"]).await;
    ask(
        &mut second,
        format!("GET /ok/x HTTP/1.1\r\nHost: {host}\r\n\r\n"),
    )
    .await;
    assert_eq!(rig.record().await.outcome, Outcome::Allow);
    second.write_all(b"GET /ok/x HTTP/1.1\r\nHo").await.unwrap();
    let _ = second.read(&mut [0]).await;
    assert_eq!(rig.record().await.outcome, Outcome::Error);
    let mut idle = rig.tls(&["http/1.1"]).await;
    ask(
        &mut idle,
        format!("GET /ok/x HTTP/1.1\r\nHost: {host}\r\n\r\n"),
    )
    .await;
    assert_eq!(rig.record().await.outcome, Outcome::Allow);
    let _ = idle.read(&mut [0]).await;
    assert!(
        rig.records().is_empty(),
        "an idle connection has nothing to record"
    );
}

#[tokio::test]
async fn connections_without_an_origin_or_a_place_are_closed() {
    let rig = Rig::with(Setup {
        max_connections: 1,
        ..Setup::default()
    })
    .await;
    let mut nobodys = rig.connect_as(None).await;
    assert_eq!(nobodys.read(&mut [0]).await.unwrap_or(0), 0);
    let record = rig.record().await;
    assert_eq!(
        (record.agent, record.outcome),
        (AgentId::NONE, Outcome::Deny)
    );
    let first = rig.tls(&["http/1.1"]).await;
    let mut second = rig.connect(rig.origin.port).await;
    assert_eq!(second.read(&mut [0]).await.unwrap_or(0), 0);
    let record = rig.record().await;
    assert_eq!((record.agent, record.outcome), (AGENT, Outcome::Error));
    drop(first);
    assert_eq!(rig.record().await.ended, Ended::ClientGone);
}

#[tokio::test]
async fn one_agents_connections_keep_no_other_out() {
    // Of 64 places.
    let rig = Rig::new().await;
    let port = rig.origin.plain;
    let get = |path| format!("GET /ok/{path} HTTP/1.1\r\nHost: plain.test:{port}\r\n\r\n");
    let mut held = Vec::new();
    let closed = loop {
        let mut socket = rig.connect(port).await;
        // Answered or closed: either way it has been admitted or not before the next one comes.
        let _ = socket.write_all(get("events").as_bytes()).await;
        match socket.read(&mut [0; 64]).await {
            Ok(1..) => held.push(socket),
            Ok(0) | Err(_) => break rig.records().pop().unwrap(),
        }
    };
    assert_eq!(held.len(), 48);
    assert_eq!(closed.ended, Ended::HostFailed);
    assert!(closed.detail.as_deref().unwrap().contains("are for others"));
    let mut others = Vec::new();
    for _ in 0..8 {
        let mut socket = rig.connect_as_another().await;
        socket.write_all(get("x").as_bytes()).await.unwrap();
        assert_ne!(socket.read(&mut [0; 64]).await.unwrap(), 0);
        others.push(socket);
    }
}

#[tokio::test]
async fn of_one_agents_connections_the_idlest_goes_first() {
    // Of 64 places.
    let rig = Rig::new().await;
    let port = rig.origin.plain;
    let get = format!("GET /ok/x HTTP/1.1\r\nHost: plain.test:{port}\r\n\r\n");
    let mut silent = rig.connect(port).await;
    while rig.forwarder.lives.of(AGENT).connections() == 0 {
        tokio::task::yield_now().await;
    }
    let mut held = Vec::new();
    for _ in 0..48 {
        let mut socket = rig.connect(port).await;
        assert_eq!(ask(&mut socket, &get).await.status, 200);
        held.push(socket);
    }
    assert_eq!(silent.read(&mut [0]).await.unwrap_or(0), 0);
    let records = rig.records();
    let gone: Vec<_> = records
        .iter()
        .filter(|it| it.ended == Ended::HostFailed)
        .collect();
    let [gone] = &gone[..] else {
        panic!("{gone:?}");
    };
    assert!(gone.detail.as_deref().unwrap().contains("idle for longest"));
    let mut newest = held.pop().unwrap();
    assert_eq!(ask(&mut newest, &get).await.status, 200);
    let mut another = rig.connect(port).await;
    assert_eq!(ask(&mut another, &get).await.status, 200);
    assert_eq!(held[0].read(&mut [0]).await.unwrap_or(0), 0);
}
