//! What makes a process an agent's: a bundle's `[[identify]]` blocks, with this host's uids in place of names.

use agentguard_common::abi::{self, AgentId, MAX_IDENTIFY, PATH_LEN};
use agentguard_common::glob;

use crate::policy;
use crate::sys::process::Snapshot;

/// One block of one agent. Every key that is there must match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub agent: AgentId,
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
        for (agent, entry) in agents {
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
                    agent,
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
            parent: AgentId::NONE,
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
mod tests {
    use super::*;

    fn agent(name: &str, identify: policy::Identify) -> policy::Agent {
        policy::Agent {
            name: name.into(),
            owner: String::new(),
            risk: String::new(),
            start_by: Vec::new(),
            keep_privileges: false,
            identify: vec![identify],
            exec: None,
            kernel: Vec::new(),
            unix: Vec::new(),
            has_hosts: false,
        }
    }

    fn identify(exe: Option<&str>, user: Option<&str>, cgroup: Option<&str>) -> policy::Identify {
        policy::Identify {
            exe: exe.map(Into::into),
            user: user.map(Into::into),
            cgroup: cgroup.map(Into::into),
        }
    }

    fn uid(name: &str) -> Option<u32> {
        (name == "svc").then_some(900)
    }

    #[test]
    fn every_key_of_a_block_must_match_and_two_agents_are_none() {
        let a = agent("a", identify(Some("/opt/a/*"), Some("svc"), None));
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
    }

    const ID: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0";

    /// Where container runtimes and systemd put processes: `ID` stands for 64 hexadecimal digits.
    #[test]
    fn cgroups_of_container_runtimes_and_systemd() {
        let pod = "8a6f6d0c_52a1_4b0e_9a51_0d6d3a1f7b2e";
        let user = "/user.slice/user-1000.slice/user@1000.service";
        let hex = "?".repeat(64);
        let cases: &[(&str, String, String)] = &[
            // Docker, the systemd and the cgroupfs driver, and `--cgroup-parent`.
            (
                "yes",
                "/system.slice/docker-*.scope".into(),
                "/system.slice/docker-ID.scope".into(),
            ),
            ("yes", "/docker/*".into(), "/docker/ID".into()),
            ("yes", "/docker/*".into(), "/docker/ID/init".into()),
            ("no", "/docker/*".into(), "/docker".into()),
            (
                "yes",
                "/agents.slice/agents-procurement.slice".into(),
                "/agents.slice/agents-procurement.slice/docker-ID.scope".into(),
            ),
            (
                "no",
                "/agents.slice/agents-procurement.slice".into(),
                "/agents.slice/agents-procurement2.slice/docker-ID.scope".into(),
            ),
            (
                "no",
                "/system.slice/docker-*.scope".into(),
                "/system.slice/docker.service".into(),
            ),
            (
                "no",
                "/system.slice/docker-*.scope".into(),
                "/system.slice/containerd.service".into(),
            ),
            // containerd under Kubernetes: guaranteed, burstable and best-effort pods; systemd, then cgroupfs.
            (
                "yes",
                "/kubepods.slice/**/cri-containerd-*.scope".into(),
                format!("/kubepods.slice/kubepods-pod{pod}.slice/cri-containerd-ID.scope"),
            ),
            (
                "yes",
                "/kubepods.slice/**/cri-containerd-*.scope".into(),
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{pod}.slice/cri-containerd-ID.scope"
                ),
            ),
            (
                "yes",
                format!("/kubepods.slice/**/kubepods-*-pod{pod}.slice"),
                format!(
                    "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{pod}.slice/cri-containerd-ID.scope"
                ),
            ),
            (
                "no",
                "/kubepods.slice/*/cri-containerd-*.scope".into(),
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{pod}.slice/cri-containerd-ID.scope"
                ),
            ),
            (
                "yes",
                "/kubepods/**/pod*/*".into(),
                "/kubepods/besteffort/pod8a6f6d0c-52a1-4b0e-9a51-0d6d3a1f7b2e/ID".into(),
            ),
            (
                "yes",
                "/kubepods/**".into(),
                "/kubepods/pod8a6f6d0c-52a1-4b0e-9a51-0d6d3a1f7b2e/ID".into(),
            ),
            (
                "yes",
                "/kubepods.slice/**/crio-*.scope".into(),
                format!("/kubepods.slice/kubepods-pod{pod}.slice/crio-ID.scope"),
            ),
            // containerd by itself: nerdctl, ctr.
            (
                "yes",
                "/system.slice/nerdctl-*.scope".into(),
                "/system.slice/nerdctl-ID.scope".into(),
            ),
            ("yes", "/default/*".into(), "/default/ID".into()),
            // Podman with root, whose monitor is nobody's agent, and without.
            (
                "yes",
                "/machine.slice/libpod-*.scope/container".into(),
                "/machine.slice/libpod-ID.scope/container".into(),
            ),
            (
                "no",
                "/machine.slice/libpod-*.scope/container".into(),
                "/machine.slice/libpod-conmon-ID.scope".into(),
            ),
            (
                "yes",
                format!("/machine.slice/libpod-{hex}.scope"),
                "/machine.slice/libpod-ID.scope".into(),
            ),
            (
                "no",
                format!("/machine.slice/libpod-{hex}.scope"),
                "/machine.slice/libpod-conmon-ID.scope".into(),
            ),
            (
                "yes",
                format!("{user}/user.slice/libpod-{hex}.scope"),
                format!("{user}/user.slice/libpod-ID.scope/container"),
            ),
            (
                "yes",
                "/user.slice/user-1000.slice/**/libpod-*.scope/container".into(),
                format!("{user}/user.slice/user-libpod_pod_ID.slice/libpod-ID.scope/container"),
            ),
            // systemd: services, instances, escaped names, scopes, services of a user.
            (
                "yes",
                "/system.slice/procurement.service".into(),
                "/system.slice/procurement.service".into(),
            ),
            (
                "no",
                "/system.slice/procurement.service".into(),
                "/system.slice/procurement.service.d".into(),
            ),
            (
                "yes",
                "/system.slice/system-agent.slice/agent@*.service".into(),
                "/system.slice/system-agent.slice/agent@one.service".into(),
            ),
            (
                "yes",
                r"/system.slice/my\x2dagent.service".into(),
                r"/system.slice/my\x2dagent.service".into(),
            ),
            (
                "yes",
                "/user.slice/user-1000.slice/session-*.scope".into(),
                "/user.slice/user-1000.slice/session-3.scope".into(),
            ),
            (
                "no",
                "/user.slice/user-1000.slice/session-*.scope".into(),
                "/user.slice/user-1001.slice/session-3.scope".into(),
            ),
            (
                "yes",
                format!("{user}/app.slice/agent.service"),
                format!("{user}/app.slice/agent.service"),
            ),
            (
                "yes",
                "/user.slice/*/*/app.slice/run-*.scope".into(),
                format!("{user}/app.slice/run-u5.scope"),
            ),
            // Kubernetes in a container of Docker's: longer than the kernel looks at.
            (
                "yes",
                "/system.slice/docker-*.scope/kubelet.slice/kubelet-kubepods.slice/**".into(),
                format!(
                    "/system.slice/docker-ID.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/\
                     kubelet-kubepods-burstable-pod{pod}.slice/cri-containerd-ID.scope"
                ),
            ),
        ];
        for (expected, pattern, cgroup) in cases {
            let a = agent("a", identify(None, None, Some(pattern)));
            let blocks = Blocks::resolve([(AgentId(2), &a)].into_iter(), uid).unwrap();
            let process = Snapshot {
                exe: "/bin/agent".into(),
                cgroup: cgroup.replace("ID", ID),
                ..Snapshot::default()
            };
            let claimed = blocks.claim(&process).is_some();
            assert_eq!(claimed, *expected == "yes", "{pattern} {cgroup}");
        }
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
