//! Records that are no addresses: of which names they may be asked for, and what of them an agent is given.

use agentguard_policy::HostName;
use hickory_proto::rr::rdata::svcb::{Mandatory, SvcParamKey, SvcParamValue};
use hickory_proto::rr::rdata::{HTTPS, SVCB};
use hickory_proto::rr::{Name, RData, RecordType};

/// Services whose records stand before a host's name (RFC 2782). A list, so that what an agent writes there carries
/// nothing out.
const SERVICES: [&str; 28] = [
    "_caldav",
    "_caldavs",
    "_carddav",
    "_carddavs",
    "_etcd-client",
    "_etcd-client-ssl",
    "_etcd-server",
    "_etcd-server-ssl",
    "_grpclb",
    "_http",
    "_https",
    "_imap",
    "_imaps",
    "_jmap",
    "_kerberos",
    "_kpasswd",
    "_ldap",
    "_ldaps",
    "_matrix",
    "_mongodb",
    "_pop3s",
    "_sip",
    "_sips",
    "_stun",
    "_submission",
    "_submissions",
    "_xmpp-client",
    "_xmpp-server",
];
const PROTOCOLS: [&str; 3] = ["_tcp", "_tls", "_udp"];
/// What stands there alone (RFC 8552 section 4.1.2).
const ATTRIBUTES: [&str; 5] = [
    "_acme-challenge",
    "_dmarc",
    "_dnslink",
    "_grpc_config",
    "_mta-sts",
];

/// Types of records that are answered besides addresses.
pub(super) fn is_served(kind: RecordType) -> bool {
    matches!(
        kind,
        RecordType::SRV
            | RecordType::TXT
            | RecordType::MX
            | RecordType::PTR
            | RecordType::HTTPS
            | RecordType::SVCB
    )
}

/// The host whose service `name` is.
pub(super) fn host_of(name: &HostName) -> Option<HostName> {
    let (first, rest) = name.as_str().split_once('.')?;
    let host = match ATTRIBUTES.contains(&first) {
        true => rest,
        false => {
            let (protocol, host) = rest.split_once('.')?;
            let is_known = SERVICES.contains(&first) && PROTOCOLS.contains(&protocol);
            is_known.then_some(host)?
        }
    };
    HostName::parse(host).ok()
}

/// What an agent is given of a record: nothing that leads to a name it does not reach, by `may`.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "aliases, and types that nobody has asked for, those to come too"
)]
pub(super) fn given(data: RData, may: impl Fn(&HostName) -> bool) -> Option<RData> {
    // The root says that there is none, or the name itself (RFC 2782, RFC 7505, RFC 9460 section 2.5).
    let reaches = |target: &Name| {
        let name = HostName::parse(&target.to_ascii());
        target.is_root() || name.is_ok_and(|name| may(&name))
    };
    match data {
        RData::TXT(_) => Some(data),
        RData::SRV(ref srv) => reaches(&srv.target).then_some(data),
        RData::MX(ref mx) => reaches(&mx.exchange).then_some(data),
        RData::PTR(ref ptr) => reaches(&ptr.0).then_some(data),
        RData::HTTPS(HTTPS(ref binding)) if reaches(&binding.target_name) => {
            usable(binding).map(|binding| RData::HTTPS(HTTPS(binding)))
        }
        RData::SVCB(ref binding) if reaches(&binding.target_name) => {
            usable(binding).map(RData::SVCB)
        }
        _ => None,
    }
}

/// Without addresses that nobody has checked, keys for an encrypted hello, and HTTP/3, which no agent can speak. `None` if
/// nothing is left that a client may use.
fn usable(binding: &SVCB) -> Option<SVCB> {
    let mut left = Vec::with_capacity(binding.svc_params.len());
    for (key, value) in &binding.svc_params {
        let value = match value {
            SvcParamValue::Port(_) => value.clone(),
            SvcParamValue::Alpn(alpn) => {
                let mut alpn = alpn.clone();
                alpn.0.retain(|protocol| !protocol.starts_with("h3"));
                if alpn.0.is_empty() {
                    continue;
                }
                SvcParamValue::Alpn(alpn)
            }
            SvcParamValue::NoDefaultAlpn => value.clone(),
            SvcParamValue::Mandatory(Mandatory(keys)) => {
                let is_left = |key| matches!(key, &SvcParamKey::Port | &SvcParamKey::Alpn);
                if !keys.iter().all(is_left) {
                    return None;
                }
                value.clone()
            }
            SvcParamValue::Ipv4Hint(_)
            | SvcParamValue::Ipv6Hint(_)
            | SvcParamValue::EchConfigList(_)
            | SvcParamValue::Unknown(_) => continue,
        };
        left.push((*key, value));
    }
    let has = |wanted: SvcParamKey| left.iter().any(|(key, _)| *key == wanted);
    let had = |wanted: SvcParamKey| binding.svc_params.iter().any(|(key, _)| *key == wanted);
    let is_mute = had(SvcParamKey::Alpn) && !has(SvcParamKey::Alpn);
    if is_mute && (has(SvcParamKey::NoDefaultAlpn) || has(SvcParamKey::Mandatory)) {
        return None;
    }
    Some(SVCB::new(
        binding.svc_priority,
        binding.target_name.clone(),
        left,
    ))
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::svcb::{Alpn, EchConfigList, IpHint};
    use hickory_proto::rr::rdata::{A, MX, SRV, TXT};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn covered(host: &HostName) -> bool {
        host.as_str().ends_with("covered.test")
    }

    #[test]
    fn only_known_services_stand_before_a_host() {
        for (asked, host) in [
            ("_mongodb._tcp.db.covered.test", Some("db.covered.test")),
            ("_ldap._udp.covered.test", Some("covered.test")),
            ("_dmarc.covered.test", Some("covered.test")),
            ("_c2vjcmv0._tcp.covered.test", None),
            ("_mongodb._c2vjcmv0.covered.test", None),
            ("_mongodb.covered.test", None),
            ("covered.test", None),
        ] {
            let found = host_of(&HostName::parse(asked).unwrap());
            assert_eq!(found.as_ref().map(HostName::as_str), host, "{asked}");
        }
    }

    #[test]
    fn targets_that_nothing_covers_are_left_out() {
        let srv = |target| RData::SRV(SRV::new(1, 2, 443, name(target)));
        let mx = |target| RData::MX(MX::new(10, name(target)));
        for (data, is_given) in [
            (srv("a.covered.test."), true),
            (srv("a.elsewhere.test."), false),
            (srv("."), true),
            (srv("127.0.0.1."), false),
            (mx("a.covered.test."), true),
            (mx("a.elsewhere.test."), false),
            (RData::TXT(TXT::new(vec!["v=1".into()])), true),
            (RData::A(A::new(192, 0, 2, 1)), false),
        ] {
            let given = given(data.clone(), covered);
            assert_eq!(given, is_given.then_some(data));
        }
    }

    #[test]
    fn a_binding_has_no_addresses_keys_or_http3() {
        let alpn = |ids: &[&str]| {
            let ids = ids.iter().map(|id| (*id).to_owned()).collect();
            (SvcParamKey::Alpn, SvcParamValue::Alpn(Alpn(ids)))
        };
        let hint = SvcParamValue::Ipv4Hint(IpHint(vec![A::new(10, 0, 0, 1)]));
        let ech = SvcParamValue::EchConfigList(EchConfigList(vec![1, 2]));
        let binding = |params| RData::HTTPS(HTTPS(SVCB::new(1, name("."), params)));
        let full = binding(vec![
            alpn(&["h3", "h2"]),
            (SvcParamKey::Port, SvcParamValue::Port(8443)),
            (SvcParamKey::Ipv4Hint, hint),
            (SvcParamKey::EchConfigList, ech),
        ]);
        let left = binding(vec![
            alpn(&["h2"]),
            (SvcParamKey::Port, SvcParamValue::Port(8443)),
        ]);
        assert_eq!(given(full, covered), Some(left));
        let only_http3 = binding(vec![
            alpn(&["h3"]),
            (SvcParamKey::NoDefaultAlpn, SvcParamValue::NoDefaultAlpn),
        ]);
        assert_eq!(given(only_http3, covered), None);
        let needs_ech = Mandatory(vec![SvcParamKey::EchConfigList]);
        let mandatory = binding(vec![(
            SvcParamKey::Mandatory,
            SvcParamValue::Mandatory(needs_ech),
        )]);
        assert_eq!(given(mandatory, covered), None);
    }
}
