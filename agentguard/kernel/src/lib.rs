//! The kernel side as userspace sees it: the only code that calls `bpf(2)`. Programs and maps are pinned; the death of the
//! daemon changes nothing of what they enforce.
#![allow(unsafe_code, reason = "bpf(2) and memory that the kernel shares")]

mod bpf;
mod btf;
mod content;
mod events;
mod exec;
mod identify;
mod load;
mod maps;
mod origin;
mod pin;
mod probe;
mod protected;
mod ring;
mod rules;
mod sockets;
mod switch;
mod unix;

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use agentguard_common::abi::{
    AgentId, AgentState, ConfigSlot, Forwarder, Identify, Label, RuleKind, UnixName,
};
use agentguard_common::counter::Counter;
use nix::fcntl::Flock;

pub use btf::layout;
pub use content::{NoDigests, digests};
pub use events::{Batch, Counted, Events, JudgedExec, RingEvent};
pub use exec::{ExecFile, ExecRules};
pub use load::OBJECT;
pub use origin::OriginMaps;
pub use pin::{cgroup_root, ensure_bpffs};
pub use probe::{fits, leaves_lsm_out, lsm, preempts_tracepoints};
pub use protected::ProtectedPath;
pub use rules::Rule;
pub use switch::Switch;

use load::OfferedHelpers;
use maps::Maps;
use pin::Folders;

#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A kernel feature or a privilege is missing; the message names it and the remedy.
    #[error("{0}")]
    Unsupported(String),
    /// The verifier, or the kernel before it, does not take a program.
    #[error("the kernel refuses the program {program}: {source}\n{log}")]
    Refused {
        program: &'static str,
        /// The last lines of the verifier's log; empty if it did not come to that.
        log: String,
        source: std::io::Error,
    },
    /// The compiled object and this build do not fit together.
    #[error("the kernel programs cannot be loaded: {0}")]
    Object(String),
    /// Another daemon works with these pins.
    #[error("the agentguard daemon with process id {tgid} holds {}; stop it, or set another `paths.pins`", pins.display())]
    Held {
        pins: PathBuf,
        /// 0 while it is starting.
        tgid: u32,
    },
    /// Something about the pinned maps and links is not as it must be.
    #[error("{0}")]
    Pins(String),
    /// More than the kernel maps hold.
    #[error("{0}")]
    Limit(String),
    #[error("{call}: {source}")]
    Call {
        call: &'static str,
        source: std::io::Error,
    },
}

/// The loaded, attached and pinned programs. Dropping it leaves them enforcing.
pub struct Kernel {
    maps: Maps,
    folders: Folders,
    cgroup_root: PathBuf,
    /// Why there are no LSM programs, if there are none.
    lsm: Result<(), String>,
    digests: bool,
    unix: bool,
    backstops: Vec<OwnedFd>,
    /// Keeps a second daemon out.
    _lock: Flock<File>,
}

impl Kernel {
    /// Loads the programs and maps, or takes over those pinned below `pins`, and attaches every hook to the cgroup v2
    /// root. Until every hook is attached nothing is enrolled.
    ///
    /// # Errors
    /// Not root, no BTF, no bpffs, a program that the verifier refuses, pins of another version or held by another daemon.
    pub fn load(pins: &Path, cgroup_root: &Path) -> Result<Self, KernelError> {
        probe::check()?;
        let (folders, lock) = Folders::create(pins)?;
        let is_fresh = !load::is_any_pinned(&folders);
        let lsm = lsm();
        let offered = OfferedHelpers {
            backstops: preempts_tracepoints(),
            lsm: lsm.is_ok(),
            digests: digests().is_ok(),
        };
        let loaded = load::load(&folders, cgroup_root, offered);
        let load::LoadedObject {
            maps,
            offered,
            unix,
            backstops,
        } = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                if is_fresh {
                    // Nobody is held by what has been attached so far. The first error is the one to tell.
                    let _ = pin::remove_all(pins);
                }
                return Err(error);
            }
        };
        load::remove_strays(&folders, offered);
        let kernel = Self {
            maps,
            folders,
            cgroup_root: cgroup_root.to_owned(),
            lsm,
            digests: offered.digests,
            unix,
            backstops,
            _lock: lock,
        };
        match kernel.hooks().iter().find(|hook| !hook.attached) {
            None => Ok(kernel),
            Some(hook) => Err(KernelError::Unsupported(format!(
                "the hook {} is not attached although the kernel took it",
                hook.name
            ))),
        }
    }

    /// Detaches and unpins everything below `pins`; the agents are no longer held. With a daemon that still runs, its own
    /// event ring and maps live until it ends.
    ///
    /// # Errors
    /// A pin that cannot be removed; the others may be gone then.
    pub fn unload(pins: &Path) -> Result<(), KernelError> {
        load::detach(&Folders::below(pins));
        pin::remove_all(pins)
    }

    /// Replaces the agent's rules in one update.
    ///
    /// # Errors
    /// [`KernelError::Limit`] for too many rules or an id out of range.
    pub fn set_rules(&mut self, agent: AgentId, rules: &[Rule]) -> Result<(), KernelError> {
        rules::replace(&self.maps.rules, agent, rules)
    }

    /// Without rules an agent can do nothing.
    pub fn remove_rules(&mut self, agent: AgentId) -> Result<(), KernelError> {
        self.maps.rules.delete(&agent.0)?;
        self.maps.unix.delete(&agent.0).map(|_| ())
    }

    /// Replaces the Unix sockets that the agent may reach, in one update.
    pub fn set_unix(&mut self, agent: AgentId, names: &[UnixName]) -> Result<(), KernelError> {
        unix::replace(&self.maps.unix, agent, names)
    }

    /// How an agent is kept to the Unix sockets that its file lists.
    pub fn unix_judged(&self) -> UnixJudged {
        match (self.lsm(), self.unix) {
            (true, _) => UnixJudged::AsBound,
            (false, true) => UnixJudged::AsWritten,
            (false, false) => UnixJudged::Never,
        }
    }

    /// A plain map update: in force for the next packet.
    pub fn set_killed(&mut self, agent: AgentId, killed: bool) -> Result<(), KernelError> {
        let state = AgentState {
            killed: u32::from(killed),
            reserved: 0,
        };
        self.maps.agents.update(&agent.0, &state)
    }

    pub fn killed(&self, agent: AgentId) -> Result<bool, KernelError> {
        let state = self.maps.agents.lookup(&agent.0)?;
        Ok(state.is_none_or(|state| state.killed != 0))
    }

    /// Whether root has ordered its kill past the daemon ([`Switch::hold`]).
    pub fn is_ordered(&self, agent: AgentId) -> Result<bool, KernelError> {
        let ordered = self.maps.kill_orders.lookup(&agent.0)?;
        Ok(ordered.is_some_and(|ordered| ordered != 0))
    }

    /// Takes such an order back: what [`Self::set_killed`] says counts from here on.
    pub fn clear_order(&mut self, agent: AgentId) -> Result<(), KernelError> {
        self.maps.kill_orders.update(&agent.0, &0)
    }

    /// Replaces every identify block, and finds the cgroups that they name; at most
    /// [`agentguard_common::abi::MAX_IDENTIFY`]. Running processes are the caller's to adopt, afterwards.
    pub fn set_identify(&mut self, blocks: &[Identify]) -> Result<(), KernelError> {
        identify::replace(&self.maps, &self.cgroup_root, blocks)
    }

    /// Replaces every agent's exec rules at once, for the next exec. An agent that is not among them is not judged.
    ///
    /// # Errors
    /// [`KernelError::Limit`] for too many rules, too long a pattern or an id out of range: nothing has changed then.
    pub fn set_exec(&mut self, agents: &[ExecRules]) -> Result<(), KernelError> {
        exec::replace(&self.maps, agents)
    }

    /// Replaces the exec rules of the daemon's own agents ([`AgentId::is_canary`]), which [`Self::set_exec`] leaves alone.
    ///
    /// # Errors
    /// [`KernelError::Limit`] for too many rules or too long a pattern.
    pub fn set_canary_exec(&mut self, agents: &[ExecRules]) -> Result<(), KernelError> {
        exec::replace_canarys(&self.maps, agents)
    }

    /// Replaces the files that no agent changes, whatever its user, where there are LSM programs to keep it from it. They are
    /// known by inode: one that is replaced has to be told again.
    ///
    /// # Errors
    /// One that cannot be told apart from others; what was protected before still is.
    pub fn protect(&mut self, files: &[ProtectedPath]) -> Result<(), KernelError> {
        protected::replace(&self.maps, files)
    }

    pub fn set_label(&mut self, tgid: u32, label: Label) -> Result<(), KernelError> {
        self.maps.labels.update(&tgid, &label)
    }

    pub fn label(&self, tgid: u32) -> Result<Label, KernelError> {
        Ok(self.maps.labels.lookup(&tgid)?.unwrap_or_default())
    }

    /// Every running process that has a label, with it. A process that starts meanwhile may be left out; what a labelled
    /// one starts is labelled all the same.
    pub fn labelled(&self) -> Result<Vec<(u32, Label)>, KernelError> {
        switch::labelled(&self.maps.labels)
    }

    /// Makes the forwarder of the host's namespace known, or with `up` 0 gone. Origins and namespaces that an earlier
    /// forwarder has left are forgotten.
    pub fn set_forwarder(
        &mut self,
        netns_cookie: u64,
        forwarder: Forwarder,
    ) -> Result<(), KernelError> {
        let before = self.maps.config(ConfigSlot::Forwarder)?;
        if before != u64::from(forwarder.tgid) || forwarder.up == 0 {
            self.maps.accepted.clear()?;
            self.maps.clear_flows()?;
            for other in self.maps.forwarders.keys()? {
                if other != netns_cookie {
                    self.maps.remove_forwarder(other)?;
                }
            }
        }
        self.maps.set_forwarder(netns_cookie, forwarder)?;
        self.maps
            .set_config(ConfigSlot::Forwarder, u64::from(forwarder.tgid))
    }

    /// Makes the listeners known that the same forwarder has in another namespace.
    ///
    /// # Errors
    /// A full map: there are 1024 of them, the host's included.
    pub fn add_namespace(
        &mut self,
        netns_cookie: u64,
        forwarder: Forwarder,
    ) -> Result<(), KernelError> {
        self.maps.set_forwarder(netns_cookie, forwarder)
    }

    /// Agents' connects in that namespace are refused from here on.
    pub fn remove_namespace(&mut self, netns_cookie: u64) -> Result<(), KernelError> {
        self.maps.remove_forwarder(netns_cookie)
    }

    /// Read-only descriptors for the forwarder: `ACCEPTED` (socket cookie → [`agentguard_common::abi::Origin`]) and
    /// `QUESTIONS` ([`agentguard_common::share::QuestionMark`] → [`agentguard_common::abi::Question`]).
    pub fn forwarder_maps(&self) -> Result<ForwarderMaps, KernelError> {
        Ok(ForwarderMaps {
            accepted: maps::open(&self.folders.maps, "ACCEPTED", bpf::F_RDONLY)?,
            questions: maps::open(&self.folders.maps, "QUESTIONS", bpf::F_RDONLY)?,
        })
    }

    /// Closes the agent's TCP connections in the calling thread's network namespace, both ends told; answers how many. In
    /// the host's, the forwarder's upstream sockets for the agent are among them.
    ///
    /// # Errors
    /// A kernel without `CONFIG_INET_DIAG_DESTROY`: the sockets stay, mute.
    pub fn destroy_sockets(&self, agent: AgentId) -> Result<u32, KernelError> {
        sockets::destroy(self.maps.marks.as_fd(), agent)
    }

    /// Destroys every TCP connection that goes straight through the kernel without one of its agent's `rules`; answers how
    /// many. In the network namespace of the calling thread.
    ///
    /// # Errors
    /// As [`Self::destroy_sockets`].
    pub fn destroy_denied(&self, rules: &BTreeMap<AgentId, Vec<Rule>>) -> Result<u32, KernelError> {
        sockets::destroy_direct(self.maps.marks.as_fd(), |live| {
            let rules = rules.get(&live.agent).map_or(&[][..], Vec::as_slice);
            let passes = |kind, at: SocketAddr| rules::is_direct(rules, kind, at.ip(), at.port());
            !live.agent.is_canary()
                && !passes(RuleKind::ReachTcp, live.peer)
                && !passes(RuleKind::ListenTcp, live.local)
        })
    }

    pub fn counters(&self) -> Result<Vec<(&'static str, u64)>, KernelError> {
        let cpus = possible_cpus()?;
        Counter::ALL
            .iter()
            .map(|(counter, name)| {
                let mut values = vec![0; cpus];
                bpf::lookup_per_cpu(self.maps.counters.as_fd(), *counter as u32, &mut values)?;
                Ok((*name, values.iter().sum()))
            })
            .collect()
    }

    /// How often the kernel may have kept an exec or the end of a process from both programs that look at it; `None` if it
    /// never does.
    pub fn missed(&self) -> Result<Option<u64>, KernelError> {
        let each = self.backstops.iter();
        let sum = each
            .map(|program| bpf::recursion_misses(program.as_fd()))
            .sum::<Result<u64, _>>()?;
        Ok((!self.backstops.is_empty()).then_some(sum))
    }

    /// Every hook that this kernel can have.
    pub fn hooks(&self) -> Vec<Hook> {
        let offered = OfferedHelpers {
            backstops: preempts_tracepoints(),
            lsm: self.lsm(),
            digests: self.digests,
        };
        load::hooks(&self.folders, offered, self.unix)
    }

    /// Whether LSM programs are in force.
    pub fn lsm(&self) -> bool {
        self.lsm.is_ok()
    }

    /// Whether an exec is judged by what is in the file, where a rule has a digest.
    pub fn knows_digests(&self) -> bool {
        self.digests
    }

    /// Why there are no LSM programs.
    pub fn no_lsm(&self) -> Option<&str> {
        self.lsm.as_ref().err().map(String::as_str)
    }

    /// What the programs tell, to be read by one task. Must be called in a tokio runtime.
    pub fn take_events(&mut self) -> Result<Events, KernelError> {
        Events::open(&self.folders.maps)
    }
}

/// What is compared with the Unix sockets that an agent's file lists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UnixJudged {
    /// The name that the socket's owner has bound (BPF LSM).
    AsBound,
    /// The name that the agent writes, before it is looked up (Linux 6.7): a process that may change the folder may change what
    /// it leads to.
    AsWritten,
    /// Neither hook is there: every socket is open.
    Never,
}

/// Which hooks are attached now by what is pinned below `pins`, whether a daemon runs or not; those that this kernel cannot
/// have are among them, not attached.
pub fn hooks(pins: &Path) -> Vec<Hook> {
    let all = OfferedHelpers {
        backstops: true,
        lsm: true,
        digests: true,
    };
    load::hooks(&Folders::below(pins), all, true)
}

/// Whether this kernel has the hooks of Unix sockets, which need no LSM.
pub fn has_unix_hooks() -> bool {
    layout().is_ok_and(|layout| unix::is_offered(&layout))
}

/// Names of the programs that this build has, whether this kernel takes them or not.
pub fn programs() -> Vec<&'static str> {
    load::all()
}

/// One attached program.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Hook {
    pub name: &'static str,
    pub attached: bool,
}

pub struct ForwarderMaps {
    pub accepted: OwnedFd,
    pub questions: OwnedFd,
}

/// Slots of a per-CPU map's value.
fn possible_cpus() -> Result<usize, KernelError> {
    aya::util::nr_cpus()
        .map_err(|(path, source)| KernelError::Unsupported(format!("cannot read {path}: {source}")))
}
