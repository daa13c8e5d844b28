//! What makes a process an agent's: a bundle's `[[identify]]` blocks, with this host's uids in place of names.

use agentguard_common::abi::{self, AgentId, MAX_IDENTIFY, PATH_LEN};
use agentguard_common::glob;
use agentguard_policy as policy;
use agentguard_sys::process::Snapshot;

/// One block of one agent. Every key that is there must match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub agent: AgentId,
    /// The agent whose processes it can take over.
    pub parent: Option<AgentId>,
    pub exe: Option<String>,
    pub uid: Option<u32>,
    pub cgroup: Option<String>,
}

/// The blocks of a bundle on this host, and what could not be used.
#[derive(Debug, Default)]
pub struct Blocks {
    pub blocks: Vec<Block>,
    pub warnings: Vec<String>,
}

impl Blocks {
    /// `uid`: looks a user name up. A block for a user that this host does not have matches nothing here.
    pub fn resolve<'a>(
        agents: impl Iterator<Item = (AgentId, &'a policy::Agent)>,
        uid: impl Fn(&str) -> Option<u32>,
    ) -> Result<Self, String> {
        let mut found = Self::default();
        let agents: Vec<_> = agents.collect();
        for (agent, entry) in &agents {
            let parent = entry.parent.as_ref();
            let parent = parent.and_then(|name| agents.iter().find(|(_, one)| one.name == *name));
            for block in &entry.identify {
                for pattern in [&block.exe, &block.cgroup].into_iter().flatten() {
                    if pattern.len() >= PATH_LEN {
                        return Err(format!(
                            "agent `{}`: the identify pattern `{pattern}` is longer than {} bytes",
                            entry.name,
                            PATH_LEN - 1
                        ));
                    }
                }
                let resolved = match &block.user {
                    None => None,
                    Some(user) => match uid(user) {
                        Some(uid) => Some(uid),
                        None => {
                            found.warnings.push(format!(
                                "agent `{}`: this host has no user `{user}`, its identify block matches nothing",
                                entry.name
                            ));
                            continue;
                        }
                    },
                };
                found.blocks.push(Block {
                    agent: *agent,
                    parent: parent.map(|(id, _)| *id),
                    exe: block.exe.clone(),
                    uid: resolved,
                    cgroup: block.cgroup.clone(),
                });
            }
        }
        if found.blocks.len() > MAX_IDENTIFY as usize {
            return Err(format!(
                "the bundle has {} identify blocks, the kernel takes {MAX_IDENTIFY}; use patterns or cgroups",
                found.blocks.len()
            ));
        }
        Ok(found)
    }

    pub fn to_kernel(&self) -> Vec<abi::Identify> {
        self.blocks.iter().map(Block::to_kernel).collect()
    }

    /// The agent of a running process: [`AgentId::AMBIGUOUS`] if two claim it.
    pub fn claim(&self, process: &Snapshot) -> Option<AgentId> {
        let mut claimed = None;
        for block in self.blocks.iter().filter(|block| block.matches(process)) {
            match claimed {
                None => claimed = Some(block.agent),
                Some(agent) if agent == block.agent => {}
                Some(_) => return Some(AgentId::AMBIGUOUS),
            }
        }
        claimed
    }
}

impl Block {
    fn matches(&self, process: &Snapshot) -> bool {
        // A kernel thread executes no file.
        !process.exe.is_empty()
            && self
                .exe
                .as_ref()
                .is_none_or(|p| matches(p, &process.exe, false))
            && self.uid.is_none_or(|uid| uid == process.uid)
            && self
                .cgroup
                .as_ref()
                .is_none_or(|p| matches(p, &process.cgroup, true))
    }

    fn to_kernel(&self) -> abi::Identify {
        let pattern = |text: &Option<String>| {
            let mut bytes = [0; PATH_LEN];
            let text = text.as_deref().unwrap_or("").as_bytes();
            let len = text.len().min(PATH_LEN - 1);
            bytes[..len].copy_from_slice(&text[..len]);
            (bytes, len as u32)
        };
        let (exe, exe_len) = pattern(&self.exe);
        let (cgroup, cgroup_len) = pattern(&self.cgroup);
        let keys = [
            (self.exe.is_some(), abi::Identify::EXE),
            (self.uid.is_some(), abi::Identify::UID),
            (self.cgroup.is_some(), abi::Identify::CGROUP),
        ];
        abi::Identify {
            agent: self.agent,
            keys: keys
                .iter()
                .filter(|(there, _)| *there)
                .map(|(_, bit)| bit)
                .sum(),
            uid: self.uid.unwrap_or(0),
            exe_len,
            cgroup_len,
            parent: self.parent.unwrap_or(AgentId::NONE),
            exe,
            cgroup,
        }
    }
}

/// The kernel's own matching; a cgroup's pattern also takes in the cgroups below it.
fn matches(pattern: &str, text: &str, below: bool) -> bool {
    glob::matches(pattern.as_bytes(), text.as_bytes(), below)
}

#[cfg(test)]
mod cgroups;

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn agent(name: &str, identify: policy::Identify) -> policy::Agent {
        policy::Agent {
            name: name.into(),
            owner: String::new(),
            risk: String::new(),
            parent: None,
            start_by: Vec::new(),
            keep_privileges: false,
            observe: false,
            identify: vec![identify],
            exec: None,
            kernel: Vec::new(),
            unix: Vec::new(),
            has_hosts: false,
            tasks_required: false,
        }
    }

    pub(super) fn identify(
        exe: Option<&str>,
        user: Option<&str>,
        cgroup: Option<&str>,
    ) -> policy::Identify {
        policy::Identify {
            exe: exe.map(Into::into),
            user: user.map(Into::into),
            cgroup: cgroup.map(Into::into),
        }
    }

    pub(super) fn uid(name: &str) -> Option<u32> {
        (name == "svc").then_some(900)
    }

    #[test]
    fn every_key_of_a_block_must_match_and_two_agents_are_none() {
        let mut a = agent("a", identify(Some("/opt/a/*"), Some("svc"), None));
        a.parent = Some("b".into());
        let b = agent("b", identify(None, None, Some("/b.slice/**")));
        let agents = [(AgentId(2), &a), (AgentId(3), &b)];
        let blocks = Blocks::resolve(agents.into_iter(), uid).unwrap();
        let process = |exe: &str, uid: u32, cgroup: &str| Snapshot {
            exe: exe.into(),
            uid,
            cgroup: cgroup.into(),
            ..Snapshot::default()
        };
        for (exe, uid, cgroup, expected) in [
            ("/opt/a/x", 900, "/", Some(AgentId(2))),
            ("/opt/a/x", 901, "/", None),
            ("/bin/x", 900, "/", None),
            ("/bin/x", 0, "/b.slice/y", Some(AgentId(3))),
            ("/opt/a/x", 900, "/b.slice/y", Some(AgentId::AMBIGUOUS)),
            ("", 0, "/b.slice/y", None),
        ] {
            assert_eq!(blocks.claim(&process(exe, uid, cgroup)), expected, "{exe}");
        }
        let kernel = blocks.to_kernel();
        assert_eq!(kernel[0].keys, abi::Identify::EXE | abi::Identify::UID);
        assert_eq!((kernel[0].uid, kernel[0].exe_len), (900, 8));
        assert_eq!(&kernel[1].cgroup[..12], b"/b.slice/**\0");
        assert_eq!(
            (kernel[0].parent, kernel[1].parent),
            (AgentId(3), AgentId::NONE)
        );
    }

    #[test]
    fn unknown_users_match_nothing_and_bounds_are_kept() {
        let a = agent("a", identify(None, Some("nobody-here"), None));
        let blocks = Blocks::resolve([(AgentId(2), &a)].into_iter(), uid).unwrap();
        assert!(blocks.blocks.is_empty());
        assert!(blocks.warnings[0].contains("no user `nobody-here`"));

        let long = agent("a", identify(Some(&"x".repeat(PATH_LEN)), None, None));
        assert!(Blocks::resolve([(AgentId(2), &long)].into_iter(), uid).is_err());
        let mut many = agent("a", identify(Some("/x"), None, None));
        many.identify = vec![many.identify[0].clone(); MAX_IDENTIFY as usize + 1];
        assert!(Blocks::resolve([(AgentId(2), &many)].into_iter(), uid).is_err());
    }
}
