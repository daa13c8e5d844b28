use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::{CertificateError, RootCertStore};

use super::*;

fn temp() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// As a client that trusts `ca` alone would, `after` from now.
fn accepts(ca: &Authority, leaf: &Leaf, name: &str, after: i64) -> Result<(), rustls::Error> {
    let mut roots = RootCertStore::empty();
    let anchor = CertificateDer::from_pem_slice(ca.certificate_pem().as_bytes()).unwrap();
    roots.add(anchor).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .unwrap();
    let chain: Vec<_> = leaf
        .chain
        .iter()
        .map(|der| CertificateDer::from(der.clone()))
        .collect();
    let at = now().as_secs().checked_add_signed(after).unwrap();
    verifier
        .verify_server_cert(
            &chain[0],
            &chain[1..],
            &ServerName::try_from(name.to_owned()).unwrap(),
            &[],
            UnixTime::since_unix_epoch(Duration::from_secs(at)),
        )
        .map(|_| ())
}

#[test]
fn clients_accept_leaves_for_their_name_and_time_only() {
    let dir = temp();
    let ca = Authority::open_or_create(dir.path()).unwrap();
    let long = format!("{}.{}.example", "a".repeat(60), "b".repeat(60));
    for name in [
        "api.supplier.example",
        "192.0.2.7",
        "2001:db8::7",
        "xn--bcher-kva.example",
        &long,
    ] {
        let leaf = ca.issue(name).unwrap();
        assert_eq!(accepts(&ca, &leaf, name, 0), Ok(()), "{name}");
        assert_eq!(
            accepts(&ca, &leaf, name, -3500),
            Ok(()),
            "{name} to a slow clock"
        );
        assert_eq!(
            accepts(&ca, &leaf, name, 6 * 24 * 3600),
            Ok(()),
            "{name} in six days"
        );
        for (when, expected) in [(-3700, "NotValidYet"), (7 * 24 * 3600, "Expired")] {
            let error = accepts(&ca, &leaf, name, when).unwrap_err();
            assert!(
                format!("{error:?}").contains(expected),
                "{name} {when}: {error:?}"
            );
        }
        let other = accepts(&ca, &leaf, "other.example", 0).unwrap_err();
        assert!(
            matches!(
                other,
                rustls::Error::InvalidCertificate(
                    CertificateError::NotValidForName
                        | CertificateError::NotValidForNameContext { .. }
                )
            ),
            "{name}: {other:?}"
        );
    }
}

#[test]
fn serials_differ_and_the_key_is_the_leafs() {
    let dir = temp();
    let ca = Authority::open_or_create(dir.path()).unwrap();
    let [one, two] = [
        ca.issue("a.example").unwrap(),
        ca.issue("a.example").unwrap(),
    ];
    let serial = |leaf: &Leaf| {
        let (_, parsed) = X509Certificate::from_der(&leaf.chain[0]).unwrap();
        parsed.raw_serial().to_vec()
    };
    assert_ne!(serial(&one), serial(&two));
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(one.key.clone().into());
    let chain = one
        .chain
        .iter()
        .map(|der| CertificateDer::from(der.clone()))
        .collect();
    let certified = rustls::sign::CertifiedKey::from_der(chain, key, &provider).unwrap();
    certified.keys_match().unwrap();
}

#[test]
fn bad_names_are_refused() {
    let dir = temp();
    let ca = Authority::open_or_create(dir.path()).unwrap();
    for name in [
        "",
        "*.example",
        "a b",
        "a..b",
        "bücher.example",
        "[::1]",
        "a/b",
        "-",
        "fe80::1%1",
    ] {
        assert!(
            matches!(ca.issue(name), Err(CaError::BadName { .. })),
            "{name:?}"
        );
    }
}

#[test]
fn the_pair_is_kept_and_only_the_owner_reads_the_key() {
    let dir = temp();
    let dir = dir.path().join("new/ca");
    let first = Authority::open_or_create(&dir).unwrap();
    let mode = |name| fs::metadata(dir.join(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("ca.key"), mode("ca.crt")), (0o600, 0o644));
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);
    let second = Authority::open_or_create(&dir).unwrap();
    assert_eq!(first.certificate_pem(), second.certificate_pem());
    let leaf = second.issue("a.example").unwrap();
    assert_eq!(accepts(&first, &leaf, "a.example", 0), Ok(()));
}

#[test]
fn two_cas_have_different_names() {
    let (a, b) = (temp(), temp());
    let [a, b] = [a.path(), b.path()].map(|dir| Authority::open_or_create(dir).unwrap());
    assert_ne!(a.info().subject, b.info().subject);
    let leaf = a.issue("a.example").unwrap();
    assert!(accepts(&b, &leaf, "a.example", 0).is_err());
}

#[test]
fn a_key_others_can_read_is_refused() {
    let dir = temp();
    Authority::open_or_create(dir.path()).unwrap();
    let key = dir.path().join("ca.key");
    for mode in [0o640, 0o604, 0o620, 0o602] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        let error = Authority::open_or_create(dir.path()).err().unwrap();
        assert!(
            matches!(error, CaError::KeyExposed { .. }),
            "{mode:o}: {error}"
        );
    }
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(Authority::open_or_create(dir.path()).is_ok());
    // A link could lead to a file that someone else swaps.
    fs::rename(&key, dir.path().join("elsewhere")).unwrap();
    symlink(dir.path().join("elsewhere"), &key).unwrap();
    assert!(matches!(
        Authority::open_or_create(dir.path()),
        Err(CaError::Io { .. })
    ));
}

#[test]
fn halves_of_different_pairs_are_refused() {
    let (a, b) = (temp(), temp());
    for dir in [&a, &b] {
        Authority::open_or_create(dir.path()).unwrap();
    }
    fs::copy(b.path().join("ca.crt"), a.path().join("ca.crt")).unwrap();
    assert!(matches!(
        Authority::open_or_create(a.path()),
        Err(CaError::Mismatch { .. })
    ));
    fs::remove_file(a.path().join("ca.key")).unwrap();
    assert!(matches!(
        Authority::open_or_create(a.path()),
        Err(CaError::KeyMissing { .. })
    ));
}

#[test]
fn a_key_without_its_certificate_gets_one() {
    let dir = temp();
    Authority::open_or_create(dir.path()).unwrap();
    let key = fs::read(dir.path().join("ca.key")).unwrap();
    fs::remove_file(dir.path().join("ca.crt")).unwrap();
    let ca = Authority::open_or_create(dir.path()).unwrap();
    assert_eq!(fs::read(dir.path().join("ca.key")).unwrap(), key);
    assert_eq!(
        accepts(&ca, &ca.issue("a.example").unwrap(), "a.example", 0),
        Ok(())
    );
}

#[test]
fn garbage_is_named() {
    for (name, content) in [
        ("ca.key", ""),
        (
            "ca.key",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        ),
        ("ca.crt", "no"),
        (
            "ca.crt",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ),
    ] {
        let dir = temp();
        Authority::open_or_create(dir.path()).unwrap();
        fs::write(dir.path().join(name), content).unwrap();
        let error = Authority::open_or_create(dir.path())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(name) && error.contains("remove"), "{error}");
    }
}

#[test]
fn an_expired_ca_is_refused() {
    let dir = temp();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let pem = params.self_signed(&key).unwrap().pem();
    let paths = Paths::below(dir.path());
    paths.write_key(&key.serialize_pem()).unwrap();
    paths.write_certificate(&pem).unwrap();
    assert!(matches!(
        Authority::open_or_create(dir.path()),
        Err(CaError::NotValidNow { .. })
    ));
}
