//! An agent's trie, as `decide` looks into it.

use agentguard_common::abi::{AgentId, RuleKey, RuleKind, RuleVerdict, UnixName};
use agentguard_common::decide::{Request, Rules, decide, decide_unix};
use agentguard_common::net::Addr;
use agentguard_common::verdict::Verdict;
use aya_ebpf::btf_maps::lpm_trie::Key;

use crate::maps::{RULES, UNIX};

struct Trie(AgentId);

impl Rules for Trie {
    #[inline(always)]
    fn lookup(&self, key: RuleKey) -> Option<RuleVerdict> {
        let key = Key::new(8 * size_of::<RuleKey>() as u32, key);
        let verdict = RULES.get_value_ptr_mut(self.0.0, &key)?;
        // SAFETY: trie nodes are freed after a grace period; the programs run inside one.
        match unsafe { verdict.read_volatile() } {
            1 => Some(RuleVerdict::Direct),
            2 => Some(RuleVerdict::Forward),
            3 => Some(RuleVerdict::Observe),
            _ => None,
        }
    }
}

#[inline(always)]
pub fn judge(agent: AgentId, killed: bool, kind: RuleKind, addr: Addr, port: u16) -> Verdict {
    let request = Request {
        agent,
        killed,
        kind,
        addr,
        port,
    };
    decide(&request, &Trie(agent))
}

#[inline(always)]
pub fn judge_unix(agent: AgentId, killed: bool, name: &UnixName) -> Verdict {
    let listed = UNIX.get_value_ptr_mut(agent.0, name).is_some();
    decide_unix(agent, killed, listed, &Trie(agent))
}
