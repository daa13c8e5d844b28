//! What agents may execute: two banks, one in force, so that an exec is judged by all of the old rules or by all of the new.

use agentguard_common::abi::{
    AgentId, BUNDLE_EXEC_RULES, CANARY_EXEC_RULES, ConfigSlot, ExecHead, ExecRule, MAX_AGENTS,
    MAX_EXEC_RULES, PATH_LEN,
};
use agentguard_common::exec::{Sha256, words};

use super::KernelError;
use super::maps::Maps;

/// Files that a rule is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecFile {
    /// A glob ([`agentguard_common::glob`]) of at most [`PATH_LEN`] - 1 bytes.
    pub pattern: String,
    /// Only those with one of these digests; empty: whatever is in them.
    pub sha256: Vec<[u8; 32]>,
}

impl From<&str> for ExecFile {
    fn from(pattern: &str) -> Self {
        Self {
            pattern: pattern.to_owned(),
            sha256: Vec::new(),
        }
    }
}

/// What one agent may execute. A file that matches both lists is refused, and so is one whose content cannot be known where
/// that decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecRules {
    pub agent: AgentId,
    /// What neither list names is allowed.
    pub default_allow: bool,
    pub allow: Vec<ExecFile>,
    pub deny: Vec<ExecFile>,
    /// Arguments stay in the kernel.
    pub private_arguments: bool,
    /// What they refuse is executed, and recorded.
    pub observed: bool,
}

impl ExecRules {
    /// For an agent that may execute nothing.
    pub fn nothing(agent: AgentId) -> Self {
        Self {
            agent,
            ..Self::default()
        }
    }
}

/// Fills the bank that is not in force and puts it in force. An agent that is not among `agents` is not judged; the canary's
/// part of the bank stays as it is.
pub(super) fn replace(maps: &Maps, agents: &[ExecRules]) -> Result<(), KernelError> {
    let bank = maps.config(ConfigSlot::Exec)? as u32 & 1 ^ 1;
    let (heads, rules) = compile(bank * MAX_EXEC_RULES, BUNDLE_EXEC_RULES, agents)?;
    // Heads last: until then the bank's old ones would count rules that are being replaced. Nobody reads it meanwhile: a
    // program that began before the last switch has ended, because an apply waits for that when it replaces the tries.
    for (n, rule) in rules.iter().enumerate() {
        maps.exec_rules
            .update(&(bank * MAX_EXEC_RULES + n as u32), rule)?;
    }
    let bundles = heads.iter().take(AgentId::FIRST_RESERVED as usize);
    for (id, head) in bundles.enumerate() {
        maps.exec_heads
            .update(&(bank * MAX_AGENTS + id as u32), head)?;
    }
    maps.set_config(ConfigSlot::Exec, u64::from(bank))
}

/// Writes the canary's part of both banks, whichever is in force. Not to be called while a canary is out.
pub(super) fn replace_canarys(maps: &Maps, agents: &[ExecRules]) -> Result<(), KernelError> {
    for bank in 0..2 {
        let first = bank * MAX_EXEC_RULES + BUNDLE_EXEC_RULES;
        let (heads, rules) = compile(first, CANARY_EXEC_RULES, agents)?;
        for (n, rule) in rules.iter().enumerate() {
            maps.exec_rules.update(&(first + n as u32), rule)?;
        }
        let reserved = (0..MAX_AGENTS).zip(&heads);
        for (id, head) in reserved.skip(AgentId::FIRST_RESERVED as usize) {
            maps.exec_heads.update(&(bank * MAX_AGENTS + id), head)?;
        }
    }
    Ok(())
}

/// Heads by agent id, and the rules that begin at index `base`, at most `room`.
fn compile(
    base: u32,
    room: u32,
    agents: &[ExecRules],
) -> Result<(Vec<ExecHead>, Vec<ExecRule>), KernelError> {
    let mut heads = vec![ExecHead::default(); MAX_AGENTS as usize];
    let mut rules = Vec::new();
    for agent in agents {
        let head = heads.get_mut(agent.agent.0 as usize).ok_or_else(|| {
            KernelError::Limit(format!("agent id {} is above {MAX_AGENTS}", agent.agent.0))
        })?;
        let first = rules.len();
        for (files, flags) in [(&agent.deny, ExecRule::DENIES), (&agent.allow, 0)] {
            for file in files {
                add(&mut rules, file, flags)?;
            }
        }
        let mut flags = ExecHead::JUDGED;
        let mut files = agent.deny.iter().chain(&agent.allow);
        if files.any(|file| !file.sha256.is_empty()) {
            flags |= ExecHead::DIGESTS;
        }
        if agent.default_allow {
            flags |= ExecHead::DEFAULT_ALLOW;
        }
        if agent.private_arguments {
            flags |= ExecHead::PRIVATE;
        }
        if agent.observed {
            flags |= ExecHead::OBSERVED;
        }
        *head = ExecHead {
            first: base + first as u32,
            len: (rules.len() - first) as u32,
            flags,
            reserved: 0,
        };
    }
    if rules.len() > room as usize {
        return Err(KernelError::Limit(format!(
            "{} exec rules are more than {room}",
            rules.len()
        )));
    }
    Ok((heads, rules))
}

/// One rule for each digest, or one for whatever content.
fn add(rules: &mut Vec<ExecRule>, file: &ExecFile, flags: u32) -> Result<(), KernelError> {
    let pattern = &file.pattern;
    let mut bytes = [0; PATH_LEN];
    let into = bytes
        .get_mut(..pattern.len())
        .filter(|_| pattern.len() < PATH_LEN);
    let into = into.ok_or_else(|| {
        KernelError::Limit(format!(
            "the exec pattern `{pattern}` is longer than {} bytes",
            PATH_LEN - 1
        ))
    })?;
    into.copy_from_slice(pattern.as_bytes());
    let rule = ExecRule {
        pattern: bytes,
        len: pattern.len() as u32,
        flags,
        sha256: Sha256::default(),
    };
    if file.sha256.is_empty() {
        rules.push(rule);
    }
    for sha256 in &file.sha256 {
        let mut with_digest = rule;
        with_digest.flags |= ExecRule::DIGEST;
        with_digest.sha256 = words(sha256);
        rules.push(with_digest);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use agentguard_common::exec::decide;

    use super::*;

    fn rules(agent: u32, allow: &[&str], deny: &[&str]) -> ExecRules {
        let owned = |list: &[&str]| list.iter().map(|text| ExecFile::from(*text)).collect();
        ExecRules {
            agent: AgentId(agent),
            allow: owned(allow),
            deny: owned(deny),
            ..ExecRules::default()
        }
    }

    #[test]
    fn each_agent_has_its_own_part_of_the_bank() {
        let agents = [
            rules(2, &["/bin/*", "/opt/**"], &["/bin/sh"]),
            rules(7, &["/bin/sh"], &[]),
        ];
        let (heads, rules) = compile(MAX_EXEC_RULES, BUNDLE_EXEC_RULES, &agents).unwrap();
        for (agent, path, allowed) in [
            (2, "/bin/ls", true),
            (2, "/bin/sh", false),
            (2, "/etc/x", false),
            (7, "/bin/sh", true),
            (7, "/bin/ls", false),
        ] {
            let mut head = heads[agent];
            assert!(head.first >= MAX_EXEC_RULES);
            head.first -= MAX_EXEC_RULES;
            assert_eq!(
                decide(&head, &rules, path.as_bytes(), None),
                allowed,
                "{agent} {path}"
            );
        }
        assert_eq!(heads[3], ExecHead::default());
    }

    #[test]
    fn each_digest_is_a_rule_of_its_own() {
        let mut agent = rules(2, &["/bin/git", "/bin/ls"], &[]);
        agent.allow[0].sha256 = vec![[1; 32], [2; 32]];
        let (heads, rules) = compile(0, BUNDLE_EXEC_RULES, &[agent]).unwrap();
        assert_eq!(
            (rules.len(), heads[2].flags & ExecHead::DIGESTS),
            (3, ExecHead::DIGESTS)
        );
        for (path, digest, allowed) in [
            ("/bin/git", Some([1; 32]), true),
            ("/bin/git", Some([2; 32]), true),
            ("/bin/git", Some([3; 32]), false),
            ("/bin/git", None, false),
            ("/bin/ls", None, true),
        ] {
            let found = decide(&heads[2], &rules, path.as_bytes(), digest.as_ref());
            assert_eq!(found, allowed, "{path} {digest:?}");
        }
        let (heads, _) =
            compile(0, BUNDLE_EXEC_RULES, &[self::rules(2, &["/bin/ls"], &[])]).unwrap();
        assert_eq!(heads[2].flags & ExecHead::DIGESTS, 0);
    }

    #[test]
    fn bounds_are_kept() {
        let long = format!("/{}", "x".repeat(PATH_LEN - 1));
        assert!(compile(0, BUNDLE_EXEC_RULES, &[rules(2, &[&long], &[])]).is_err());
        assert!(
            compile(
                0,
                BUNDLE_EXEC_RULES,
                &[rules(2, &[&long[..PATH_LEN - 1]], &[])]
            )
            .is_ok()
        );
        let many = vec!["/x"; BUNDLE_EXEC_RULES as usize + 1];
        assert!(compile(0, BUNDLE_EXEC_RULES, &[rules(2, &many, &[])]).is_err());
        assert!(
            compile(
                0,
                BUNDLE_EXEC_RULES,
                &[ExecRules::nothing(AgentId(MAX_AGENTS))]
            )
            .is_err()
        );
    }
}
