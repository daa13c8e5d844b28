//! An agent's rules as the keys of its trie.

use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};

use agentguard_common::abi::{AgentId, MAX_AGENTS, MAX_RULES, RuleKey, RuleKind, RuleVerdict};
use agentguard_common::net::Addr;
use ipnet::IpNet;

use super::maps::{Map, TrieKey};
use super::{KernelError, bpf};

/// One rule of an agent's kernel trie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    ReachTcp {
        net: IpNet,
        port: Option<u16>,
    },
    ReachUdp {
        net: IpNet,
        port: Option<u16>,
    },
    /// The unspecified address stands for every address of its family; `::` for those of both.
    ListenTcp {
        addr: IpAddr,
        port: u16,
    },
    ListenUdp {
        addr: IpAddr,
        port: u16,
    },
    /// Everything else goes to the forwarder (TCP) and its resolver (UDP port 53).
    Forward,
    /// As [`Self::Forward`]; and what does not go there passes, recorded.
    Observe,
}

/// Whether one of the rules lets this pass without the forwarder, as the programs' `decide` would find it in the trie.
pub(super) fn is_direct(rules: &[Rule], kind: RuleKind, ip: IpAddr, port: u16) -> bool {
    let within = |net: &IpNet, of: Option<u16>| net.contains(&ip) && of.is_none_or(|of| of == port);
    rules.iter().any(|rule| match (rule, kind) {
        (Rule::ReachTcp { net, port: of }, RuleKind::ReachTcp)
        | (Rule::ReachUdp { net, port: of }, RuleKind::ReachUdp) => within(net, *of),
        (Rule::ListenTcp { addr, port: of }, RuleKind::ListenTcp)
        | (Rule::ListenUdp { addr, port: of }, RuleKind::ListenUdp) => {
            let everywhere = addr.is_unspecified() && (addr.is_ipv6() || ip.is_ipv4());
            *of == port && (everywhere || *addr == ip)
        }
        (Rule::Observe, kind) => kind != RuleKind::ReachTcp,
        _ => false,
    })
}

/// Puts a new trie in the place of the agent's in one update.
pub(super) fn replace(
    outer: &Map<u32, u32>,
    agent: AgentId,
    rules: &[Rule],
) -> Result<(), KernelError> {
    if agent.0 < AgentId::FIRST || agent.0 >= MAX_AGENTS {
        return Err(KernelError::Limit(format!(
            "agent id {} is not between {} and {}",
            agent.0,
            AgentId::FIRST,
            MAX_AGENTS - 1
        )));
    }
    let entries: Vec<_> = rules.iter().flat_map(entries).collect();
    if entries.len() > MAX_RULES as usize {
        return Err(KernelError::Limit(format!(
            "agent {} has {} kernel rules, more than {MAX_RULES}",
            agent.0,
            entries.len()
        )));
    }
    let trie = bpf::create_trie(
        size_of::<TrieKey>() as u32,
        size_of::<u32>() as u32,
        entries.len().max(1) as u32,
    )?;
    for (key, verdict) in &entries {
        bpf::update(trie.as_fd(), key, &(*verdict as u32))?;
    }
    outer.update(&agent.0, &(trie.as_raw_fd() as u32))
}

fn entries(rule: &Rule) -> Vec<(TrieKey, RuleVerdict)> {
    let direct = |kind, net, port| vec![(key(kind, net, port), RuleVerdict::Direct)];
    match rule {
        Rule::ReachTcp { net, port } => direct(RuleKind::ReachTcp, *net, port.unwrap_or(0)),
        Rule::ReachUdp { net, port } => direct(RuleKind::ReachUdp, *net, port.unwrap_or(0)),
        Rule::ListenTcp { addr, port } => direct(RuleKind::ListenTcp, listen(*addr), *port),
        Rule::ListenUdp { addr, port } => direct(RuleKind::ListenUdp, listen(*addr), *port),
        Rule::Forward => [RuleKind::ReachTcp, RuleKind::ReachUdp]
            .map(|kind| (whole_kind(kind as u8), RuleVerdict::Forward))
            .to_vec(),
        Rule::Observe => [
            RuleKind::ReachTcp as u8,
            RuleKind::ReachUdp as u8,
            RuleKind::ListenTcp as u8,
            RuleKind::ListenUdp as u8,
            RuleKey::UNIX.kind,
        ]
        .map(|kind| (whole_kind(kind), RuleVerdict::Observe))
        .to_vec(),
    }
}

fn listen(addr: IpAddr) -> IpNet {
    if addr.is_unspecified() {
        // Prefix 0 is valid for both families.
        IpNet::new_assert(addr, 0)
    } else {
        IpNet::from(addr)
    }
}

fn key(kind: RuleKind, net: IpNet, port: u16) -> TrieKey {
    let v4_bits = match net {
        IpNet::V4(_) => u32::from(Addr::V4_PREFIX),
        IpNet::V6(_) => 0,
    };
    TrieKey {
        prefix_len: RuleKey::HEAD_BITS + v4_bits + u32::from(net.prefix_len()),
        data: RuleKey {
            kind: kind as u8,
            reserved: 0,
            port: port.to_be_bytes(),
            addr: net.network().into(),
        },
    }
}

fn whole_kind(kind: u8) -> TrieKey {
    TrieKey {
        prefix_len: RuleKey::KIND_BITS,
        data: RuleKey {
            kind,
            reserved: 0,
            port: [0; 2],
            addr: Addr::default(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(rule: Rule) -> Vec<u32> {
        entries(&rule)
            .iter()
            .map(|(key, _)| key.prefix_len)
            .collect()
    }

    #[test]
    fn prefixes() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let tcp = |text| Rule::ReachTcp {
            net: net(text),
            port: Some(443),
        };
        assert_eq!(prefix(tcp("10.0.0.0/24")), [32 + 96 + 24]);
        assert_eq!(prefix(tcp("0.0.0.0/0")), [32 + 96]);
        assert_eq!(prefix(tcp("2001:db8::/32")), [32 + 32]);
        assert_eq!(prefix(Rule::Forward), [8, 8]);
        assert_eq!(prefix(Rule::Observe), [8; 5]);
        let any = Rule::ListenTcp {
            addr: "0.0.0.0".parse().unwrap(),
            port: 80,
        };
        assert_eq!(prefix(any), [32 + 96]);
    }

    #[test]
    fn direct_is_what_a_rule_of_the_kind_covers() {
        let reach = |net: &str, port| Rule::ReachTcp {
            net: net.parse().unwrap(),
            port,
        };
        let listen = |addr: &str| Rule::ListenTcp {
            addr: addr.parse().unwrap(),
            port: 80,
        };
        let of = |rule: Rule, kind, to: &str| {
            let to: std::net::SocketAddr = to.parse().unwrap();
            is_direct(&[Rule::Forward, rule], kind, to.ip(), to.port())
        };
        use RuleKind::{ListenTcp, ReachTcp, ReachUdp};
        for (rule, kind, to, expected) in [
            (reach("10.0.0.0/8", None), ReachTcp, "10.1.2.3:5", true),
            (reach("10.0.0.0/8", Some(5)), ReachTcp, "10.1.2.3:5", true),
            (reach("10.0.0.0/8", Some(5)), ReachTcp, "10.1.2.3:6", false),
            (reach("10.0.0.0/8", None), ReachTcp, "11.1.2.3:5", false),
            (reach("10.0.0.0/8", None), ReachUdp, "10.1.2.3:5", false),
            (reach("10.0.0.0/8", None), ListenTcp, "10.1.2.3:5", false),
            (reach("::/0", None), ReachTcp, "10.1.2.3:5", false),
            (listen("0.0.0.0"), ListenTcp, "10.0.0.1:80", true),
            (listen("0.0.0.0"), ListenTcp, "[::1]:80", false),
            (listen("::"), ListenTcp, "10.0.0.1:80", true),
            (listen("10.0.0.1"), ListenTcp, "10.0.0.1:80", true),
            (listen("10.0.0.1"), ListenTcp, "10.0.0.1:81", false),
            (listen("10.0.0.1"), ListenTcp, "10.0.0.2:80", false),
            (Rule::Observe, ListenTcp, "10.0.0.2:80", true),
            (Rule::Observe, ReachUdp, "10.0.0.2:80", true),
            (Rule::Observe, ReachTcp, "10.0.0.2:80", false),
        ] {
            assert_eq!(
                of(rule.clone(), kind, to),
                expected,
                "{rule:?} {kind:?} {to}"
            );
        }
    }

    #[test]
    fn an_address_inside_a_net_is_cut_to_its_network() {
        let rule = Rule::ReachUdp {
            net: "10.1.2.3/8".parse().unwrap(),
            port: None,
        };
        assert_eq!(entries(&rule)[0].0.data.addr, Addr::from_v4([10, 0, 0, 0]));
    }
}
