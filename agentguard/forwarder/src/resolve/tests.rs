use std::time::Instant;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use tokio::net::UdpSocket;

use super::stub::{Script, Stub, names, upstream};
use super::*;

const ZONE: &[(&str, Script)] = &[
    (
        "public.test",
        Script::Addresses(60, &["192.0.2.10", "192.0.2.11", "2001:db8::10"]),
    ),
    (
        "v4.test",
        Script::Addresses(60, &["192.0.2.10", "192.0.2.10"]),
    ),
    (
        "inside.test",
        Script::Addresses(60, &["10.0.0.1", "169.254.169.254", "::1"]),
    ),
    (
        "mixed.test",
        Script::Addresses(60, &["10.0.0.1", "192.0.2.10"]),
    ),
    (
        "mapped.test",
        Script::Addresses(60, &["::ffff:127.0.0.1", "64:ff9b::a00:1"]),
    ),
    ("empty.test", Script::Addresses(60, &[])),
    ("big.test", Script::OverTcp(&["192.0.2.12"])),
    ("alias.test", Script::Alias("target.test.", &["192.0.2.13"])),
    ("broken.test", Script::Code(ResponseCode::ServFail)),
    ("refusing.test", Script::Code(ResponseCode::Refused)),
    (
        "slow6.test",
        Script::Silent(RecordType::AAAA, &["192.0.2.14"]),
    ),
    ("short.test", Script::Addresses(0, &["192.0.2.15"])),
    ("long.test", Script::Addresses(86_400, &["192.0.2.16"])),
];

fn host(name: &str) -> HostName {
    HostName::parse(name).unwrap()
}

fn said(result: Result<Vec<IpAddr>, ResolveError>) -> String {
    match result {
        Ok(ips) => ips
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" "),
        Err(error) => format!("error: {error}"),
    }
}

#[tokio::test]
async fn names_become_addresses_that_may_be_dialled() {
    let stub = Stub::start(ZONE).await;
    let resolver = stub.resolver(&[]);
    for (name, expected) in [
        // IPv6 first, families in turn.
        ("public.test", "2001:db8::10 192.0.2.10 192.0.2.11"),
        ("v4.test", "192.0.2.10"),
        ("big.test", "192.0.2.12"),
        ("alias.test", "192.0.2.13"),
        ("slow6.test", "192.0.2.14"),
        // Only what may be dialled.
        ("mixed.test", "192.0.2.10"),
        ("hosted.test", "2001:db8::1 192.0.2.1"),
        ("v4.hosted.test", "192.0.2.4"),
        ("192.0.2.77", "192.0.2.77"),
        ("2001:db8::77", "2001:db8::77"),
        (
            "missing.test",
            "error: `missing.test` does not exist (NXDOMAIN)",
        ),
        ("empty.test", "error: `empty.test` has no address"),
    ] {
        assert_eq!(
            said(resolver.addresses(&host(name)).await),
            expected,
            "{name}"
        );
    }
    for (name, parts) in [
        (
            "inside.test",
            &[
                "10.0.0.1 (private)",
                "169.254.169.254 (cloud metadata)",
                "::1 (loopback)",
            ][..],
        ),
        (
            "mapped.test",
            &["127.0.0.1 (loopback)", "64:ff9b::a00:1 (private)"],
        ),
        (
            "inside.hosted.test",
            &["10.0.0.1 (private)", "::1 (loopback)"],
        ),
        ("127.0.0.1", &["127.0.0.1 (loopback)", "allow_addresses"]),
        (
            "broken.test",
            &["the resolvers failed for `broken.test`", "Server Failure"],
        ),
        (
            "refusing.test",
            &["the resolvers failed for `refusing.test`", "Query Refused"],
        ),
    ] {
        let said = said(resolver.addresses(&host(name)).await);
        for part in parts {
            assert!(
                said.starts_with("error: ") && said.contains(part),
                "{name}: {said}"
            );
        }
    }
    let asked = stub.asked();
    assert!(
        !asked
            .iter()
            .any(|asked| asked.contains("hosted") || asked.contains("192.0.2.77"))
    );
}

#[tokio::test]
async fn listed_addresses_are_dialled() {
    let stub = Stub::start(ZONE).await;
    let resolver = stub.resolver(&["127.0.0.0/8", "10.0.0.0/8"]);
    for (name, expected) in [
        ("inside.test", "10.0.0.1"),
        ("mapped.test", "64:ff9b::a00:1 127.0.0.1"),
        ("127.0.0.1", "127.0.0.1"),
        ("hosted.test", "2001:db8::1 192.0.2.1 10.0.0.1"),
    ] {
        assert_eq!(
            said(resolver.addresses(&host(name)).await),
            expected,
            "{name}"
        );
    }
}

#[tokio::test]
async fn one_familys_silence_does_not_hold_up_the_other() {
    let stub = Stub::start(ZONE).await;
    let resolver = stub.resolver(&[]);
    let started = Instant::now();
    assert_eq!(
        said(resolver.addresses(&host("slow6.test")).await),
        "192.0.2.14"
    );
    assert!(started.elapsed() < TRY / 2, "{:?}", started.elapsed());
}

#[tokio::test]
async fn answers_are_kept_for_their_ttl_within_bounds() {
    let stub = Stub::start(ZONE).await;
    let resolver = stub.resolver(&[]);
    for (name, least, most) in [
        ("short.test", 0, 1),
        ("public.test", 50, 60),
        ("long.test", 290, 300),
    ] {
        let ttl = resolver
            .family(&host(name), Family::V4)
            .await
            .unwrap()
            .ttl
            .as_secs();
        assert!((least.max(1)..=most).contains(&ttl), "{name}: {ttl}");
    }
    for _ in 0..5 {
        resolver.addresses(&host("public.test")).await.unwrap();
        resolver.addresses(&host("missing.test")).await.unwrap_err();
    }
    for asked in [
        "A public.test.",
        "AAAA public.test.",
        "A missing.test.",
        "AAAA missing.test.",
    ] {
        let times = stub.asked().iter().filter(|it| *it == asked).count();
        assert_eq!(times, 1, "{asked}");
    }
}

#[tokio::test]
async fn silence_is_a_timeout_and_a_closed_port_a_failure() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = silent.local_addr().unwrap();
    let patience = Duration::from_millis(50);
    let resolver = NameResolver::with_patience(&upstream(&[]), &names(&[at]), patience).unwrap();
    let error = resolver.addresses(&host("public.test")).await.unwrap_err();
    assert_eq!(error, ResolveError::Timeout("public.test".into()));

    drop(silent);
    let resolver = NameResolver::with_patience(&upstream(&[]), &names(&[at]), patience).unwrap();
    let error = resolver.addresses(&host("public.test")).await.unwrap_err();
    assert!(
        matches!(
            error,
            ResolveError::Failed { .. } | ResolveError::Timeout(_)
        ),
        "{error:?}"
    );

    let resolver = NameResolver::new(&upstream(&[]), &names(&[])).unwrap();
    let error = resolver.addresses(&host("public.test")).await.unwrap_err();
    assert_eq!(error, ResolveError::NoResolvers("public.test".into()));
    assert!(resolver.addresses(&host("hosted.test")).await.is_ok());
}

#[tokio::test]
async fn the_second_resolver_is_asked_when_the_first_fails() {
    let stub = Stub::start(ZONE).await;
    let dead = UdpSocket::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let resolver = NameResolver::new(&upstream(&[]), &names(&[dead, stub.address])).unwrap();
    assert_eq!(
        said(resolver.addresses(&host("v4.test")).await),
        "192.0.2.10"
    );
}

#[tokio::test]
async fn what_is_learnt_holds_from_the_next_look_up_on() {
    let stub = Stub::start(ZONE).await;
    let resolver = NameResolver::new(&upstream(&[]), &names(&[])).unwrap();
    let unknown = resolver.addresses(&host("v4.test")).await.unwrap_err();
    assert_eq!(unknown, ResolveError::NoResolvers("v4.test".into()));
    let mut learnt = names(&[stub.address]);
    resolver.learn(&learnt);
    let found = said(resolver.addresses(&host("v4.test")).await);
    assert_eq!(found, "192.0.2.10");
    // Other hosts, and the same resolvers, whose answers are kept.
    learnt.hosts = [("v6.test".into(), vec!["2001:db8::6".parse().unwrap()])].into();
    resolver.learn(&learnt);
    let found = said(resolver.addresses(&host("v6.test")).await);
    assert_eq!(found, "2001:db8::6");
    let asked = stub.asked().len();
    let found = said(resolver.addresses(&host("v4.test")).await);
    assert_eq!((found.as_str(), stub.asked().len()), ("192.0.2.10", asked));
}
