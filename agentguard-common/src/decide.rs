//! The connect verdict: pure, and the same code in the kernel and in the host tests.
//!
//! With an agent that is only observed, what its file alone refuses passes and is recorded; the rest is refused to it as to
//! every agent:
//!
//! | refused because | observed |
//! |---|---|
//! | no rule reaches the address (UDP; TCP goes to the forwarder, which decides) | passes |
//! | no `[[listen]]`, `[[unix]]` or `[exec]` entry; a file without a name | passes |
//! | killed, suspended, retired, orphaned, held by the canary; claimed by two agents; the bundle has expired | refused |
//! | the forwarder is down, or not yet in the namespace | refused |
//! | the forwarder's own port, also to listen there; a redirect led elsewhere by a device, source routing or the packet | refused |
//! | raw and other sockets, address families that no rule can allow | refused |
//! | tampering, typing into terminals, sockets of other processes | refused |
//! | a map is full, a read fails | refused |

use crate::abi::{AgentId, RuleKey, RuleKind, RuleVerdict};
use crate::net::Addr;
use crate::verdict::{Refusal, Verdict};

/// DNS (RFC 1035 section 4.2).
pub const DNS_PORT: u16 = 53;

/// What an agent asked for, and what the hook knows of its surroundings.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub agent: AgentId,
    pub killed: bool,
    pub kind: RuleKind,
    pub addr: Addr,
    /// Host byte order.
    pub port: u16,
}

/// Looks a key up in the agent's trie.
pub trait Rules {
    fn lookup(&self, key: RuleKey) -> Option<RuleVerdict>;
}

/// Judges one destination. The most specific rule decides: the port's own rules, then the rules for every port, then
/// the forwarder.
pub fn decide(request: &Request, rules: &impl Rules) -> Verdict {
    if request.killed {
        return Verdict::Deny(Refusal::Killed);
    }
    if request.agent == AgentId::AMBIGUOUS {
        return Verdict::Deny(Refusal::Ambiguous);
    }
    let key = |port: u16| RuleKey {
        kind: request.kind as u8,
        reserved: 0,
        port: port.to_be_bytes(),
        addr: request.addr,
    };
    let exact = rules.lookup(key(request.port));
    if exact == Some(RuleVerdict::Direct) {
        return Verdict::Direct;
    }
    let any = rules.lookup(key(0));
    if any == Some(RuleVerdict::Direct) {
        return Verdict::Direct;
    }
    let rest = exact.or(any);
    let observed = rest == Some(RuleVerdict::Observe);
    let forward = observed || rest == Some(RuleVerdict::Forward);
    let refusal = match request.kind {
        RuleKind::ReachUdp if forward && request.port == DNS_PORT => return Verdict::Resolve,
        RuleKind::ReachTcp if forward => return Verdict::Forward,
        RuleKind::ReachTcp | RuleKind::ReachUdp => Refusal::NoRule,
        RuleKind::ListenTcp | RuleKind::ListenUdp => Refusal::Listen,
    };
    if observed {
        Verdict::Observe(refusal)
    } else {
        Verdict::Deny(refusal)
    }
}

/// Judges the name of a Unix socket; `listed` says whether the agent's file has it.
pub fn decide_unix(agent: AgentId, killed: bool, listed: bool, rules: &impl Rules) -> Verdict {
    if killed {
        return Verdict::Deny(Refusal::Killed);
    }
    if agent == AgentId::AMBIGUOUS {
        return Verdict::Deny(Refusal::Ambiguous);
    }
    if listed {
        Verdict::Direct
    } else if rules.lookup(RuleKey::UNIX) == Some(RuleVerdict::Observe) {
        Verdict::Observe(Refusal::UnixSocket)
    } else {
        Verdict::Deny(Refusal::UnixSocket)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::net::IpAddr;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// Rules as userspace writes them: kind, port (0: every), network, prefix length in the 128-bit form.
    #[derive(Clone, Debug)]
    struct Rule(RuleKind, u16, Addr, u32);

    /// A longest-prefix match by looking at every entry.
    struct Linear {
        rules: Vec<Rule>,
        /// What is there for all that no rule names.
        rest: Option<RuleVerdict>,
    }

    fn covers(net: &Addr, bits: u32, addr: &Addr) -> bool {
        (0..bits as usize).all(|n| {
            let mask = 0x80 >> (n % 8);
            net.0[n / 8] & mask == addr.0[n / 8] & mask
        })
    }

    impl Rules for Linear {
        fn lookup(&self, key: RuleKey) -> Option<RuleVerdict> {
            let direct = self.rules.iter().any(|Rule(kind, port, net, bits)| {
                *kind as u8 == key.kind
                    && port.to_be_bytes() == key.port
                    && covers(net, *bits, &key.addr)
            });
            let reach = [RuleKind::ReachTcp as u8, RuleKind::ReachUdp as u8].contains(&key.kind);
            if direct {
                Some(RuleVerdict::Direct)
            } else {
                self.rest
                    .filter(|rest| reach || *rest == RuleVerdict::Observe)
            }
        }
    }

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn request(kind: RuleKind, to: &str, port: u16) -> Request {
        Request {
            agent: AgentId(7),
            killed: false,
            kind,
            addr: addr(to),
            port,
        }
    }

    #[test]
    fn table() {
        use RuleKind::{ListenTcp, ListenUdp, ReachTcp, ReachUdp};
        use Verdict::{Deny, Direct, Forward, Resolve};
        let rules = || {
            std::vec![
                Rule(ReachTcp, 5432, addr("10.0.0.0"), 96 + 24),
                Rule(ReachTcp, 0, addr("2001:db8::"), 32),
                Rule(ReachUdp, 123, addr("10.0.0.1"), 128),
                Rule(ListenTcp, 8080, addr("127.0.0.1"), 128),
            ]
        };
        let with = Linear {
            rules: rules(),
            rest: Some(RuleVerdict::Forward),
        };
        let without = Linear {
            rules: rules(),
            rest: None,
        };
        for (kind, to, port, with_hosts, without_hosts) in [
            (ReachTcp, "10.0.0.9", 5432, Direct, Direct),
            (ReachTcp, "::ffff:10.0.0.9", 5432, Direct, Direct),
            (ReachTcp, "10.0.0.9", 5433, Forward, Deny(Refusal::NoRule)),
            (ReachTcp, "10.0.1.9", 5432, Forward, Deny(Refusal::NoRule)),
            (ReachTcp, "2001:db8::5", 1, Direct, Direct),
            (ReachTcp, "2001:db9::5", 1, Forward, Deny(Refusal::NoRule)),
            (ReachTcp, "127.0.0.1", 53, Forward, Deny(Refusal::NoRule)),
            (ReachUdp, "10.0.0.1", 123, Direct, Direct),
            (
                ReachUdp,
                "10.0.0.1",
                124,
                Deny(Refusal::NoRule),
                Deny(Refusal::NoRule),
            ),
            (ReachUdp, "9.9.9.9", 53, Resolve, Deny(Refusal::NoRule)),
            (ListenTcp, "127.0.0.1", 8080, Direct, Direct),
            (
                ListenTcp,
                "127.0.0.1",
                8081,
                Deny(Refusal::Listen),
                Deny(Refusal::Listen),
            ),
            (
                ListenTcp,
                "0.0.0.0",
                8080,
                Deny(Refusal::Listen),
                Deny(Refusal::Listen),
            ),
            (
                ListenUdp,
                "127.0.0.1",
                8080,
                Deny(Refusal::Listen),
                Deny(Refusal::Listen),
            ),
        ] {
            let request = request(kind, to, port);
            assert_eq!(decide(&request, &with), with_hosts, "{request:?}");
            assert_eq!(decide(&request, &without), without_hosts, "{request:?}");
        }
    }

    #[test]
    fn who_is_only_observed_passes_where_the_forwarder_is_no_way() {
        use RuleKind::{ListenTcp, ListenUdp, ReachTcp, ReachUdp};
        use Verdict::{Direct, Forward, Observe, Resolve};
        let rules = Linear {
            rules: std::vec![
                Rule(ReachTcp, 5432, addr("10.0.0.0"), 96 + 24),
                Rule(ListenTcp, 8080, addr("127.0.0.1"), 128),
            ],
            rest: Some(RuleVerdict::Observe),
        };
        for (kind, to, port, expected) in [
            (ReachTcp, "10.0.0.9", 5432, Direct),
            (ReachTcp, "10.0.0.9", 5433, Forward),
            (ReachUdp, "9.9.9.9", 53, Resolve),
            (ReachUdp, "9.9.9.9", 123, Observe(Refusal::NoRule)),
            (ListenTcp, "127.0.0.1", 8080, Direct),
            (ListenTcp, "0.0.0.0", 8080, Observe(Refusal::Listen)),
            (ListenUdp, "::", 0, Observe(Refusal::Listen)),
        ] {
            let request = request(kind, to, port);
            assert_eq!(decide(&request, &rules), expected, "{request:?}");
        }
    }

    #[test]
    fn a_unix_socket_is_listed_or_observed_or_refused() {
        let rules = |rest| Linear {
            rules: Vec::new(),
            rest,
        };
        let enforced = rules(Some(RuleVerdict::Forward));
        let observed = rules(Some(RuleVerdict::Observe));
        let agent = AgentId(7);
        let unix = Refusal::UnixSocket;
        for (killed, listed, rules, expected) in [
            (false, true, &enforced, Verdict::Direct),
            (false, false, &enforced, Verdict::Deny(unix)),
            (false, true, &observed, Verdict::Direct),
            (false, false, &observed, Verdict::Observe(unix)),
            (true, true, &observed, Verdict::Deny(Refusal::Killed)),
        ] {
            let found = decide_unix(agent, killed, listed, rules);
            assert_eq!(found, expected, "{killed} {listed}");
        }
        let ambiguous = decide_unix(AgentId::AMBIGUOUS, false, false, &observed);
        assert_eq!(ambiguous, Verdict::Deny(Refusal::Ambiguous));
    }

    #[test]
    fn nothing_is_left_to_the_killed_and_the_ambiguous() {
        let rules = Linear {
            rules: std::vec![Rule(RuleKind::ReachTcp, 0, Addr::default(), 0)],
            rest: Some(RuleVerdict::Observe),
        };
        let mut killed = request(RuleKind::ReachTcp, "10.0.0.1", 1);
        killed.killed = true;
        assert_eq!(decide(&killed, &rules), Verdict::Deny(Refusal::Killed));
        let mut ambiguous = request(RuleKind::ReachTcp, "10.0.0.1", 1);
        ambiguous.agent = AgentId::AMBIGUOUS;
        assert_eq!(
            decide(&ambiguous, &rules),
            Verdict::Deny(Refusal::Ambiguous)
        );
    }

    fn kinds() -> impl Strategy<Value = RuleKind> {
        prop_oneof![
            Just(RuleKind::ReachTcp),
            Just(RuleKind::ReachUdp),
            Just(RuleKind::ListenTcp),
            Just(RuleKind::ListenUdp)
        ]
    }

    /// Addresses and ports from so few that rules and requests meet.
    fn addrs() -> impl Strategy<Value = Addr> {
        prop_oneof![
            (0u8..3, 0u8..3).prop_map(|(a, b)| Addr::from_v4([10, 0, a, b])),
            (0u8..3).prop_map(|a| Addr([0x20, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a])),
        ]
    }

    fn rules() -> impl Strategy<Value = Vec<Rule>> {
        let prefix = prop_oneof![Just(0u32), Just(96), Just(120), Just(127), Just(128)];
        let rule = (kinds(), 0u16..4, addrs(), prefix);
        proptest::collection::vec(
            rule.prop_map(|(kind, port, net, bits)| Rule(kind, port, net, bits)),
            0..6,
        )
    }

    fn rest() -> impl Strategy<Value = Option<RuleVerdict>> {
        prop_oneof![
            Just(None),
            Just(Some(RuleVerdict::Forward)),
            Just(Some(RuleVerdict::Observe))
        ]
    }

    proptest! {
        /// An allow always has a rule that covers the destination, or hosts to reach; and a rule always allows.
        #[test]
        fn an_allow_has_its_rule(
            rules in rules(), rest in rest(), killed: bool, kind in kinds(), addr in addrs(), port in 0u16..4,
        ) {
            let forward = rest.is_some();
            let observed = rest == Some(RuleVerdict::Observe);
            let named = rules.iter().any(|Rule(k, p, net, bits)| {
                *k == kind && (*p == port || *p == 0) && covers(net, *bits, &addr)
            });
            let request = Request { agent: AgentId(7), killed, kind, addr, port };
            match decide(&request, &Linear { rules, rest }) {
                Verdict::Direct => prop_assert!(named && !killed),
                Verdict::Forward => prop_assert!(forward && !named && !killed && kind == RuleKind::ReachTcp),
                Verdict::Resolve => prop_assert!(false, "port 53 is not among them"),
                Verdict::Deny(Refusal::Killed) => prop_assert!(killed),
                Verdict::Observe(refusal) => {
                    prop_assert!(observed && !named && !killed && kind != RuleKind::ReachTcp);
                    prop_assert!(refusal.is_policy());
                }
                Verdict::Deny(_) => prop_assert!(!(named || observed || forward && kind == RuleKind::ReachTcp)),
            }
        }

        /// Taking a rule away never allows more.
        #[test]
        fn fewer_rules_allow_less(rules in rules(), kind in kinds(), addr in addrs(), port in 0u16..4) {
            let request = Request { agent: AgentId(7), killed: false, kind, addr, port };
            let all = decide(&request, &Linear { rules: rules.clone(), rest: None });
            for n in 0..rules.len() {
                let mut fewer = rules.clone();
                fewer.remove(n);
                if decide(&request, &Linear { rules: fewer, rest: None }) == Verdict::Direct {
                    prop_assert_eq!(all, Verdict::Direct);
                }
            }
        }
    }
}
