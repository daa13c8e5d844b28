//! The process table, fed by kernel events: who an agent's process is and where it comes from. Ended processes stay for
//! a bounded while, because records of what they did arrive later.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use agentguard_common::abi::AgentId;
use agentguard_record::{Process, TaskInfo};
use agentguard_sys::process::{self, Snapshot};

use super::presences::Presences;

/// How long an ended process stays known, ns.
const KEPT_NS: u64 = 120_000_000_000;
/// Ended processes kept at most.
const KEPT: usize = 65_536;
/// How long `run` may take from a child's start until its command, ns.
const UNTIL_FILTERED_NS: u64 = 5_000_000_000;
/// Ancestors in a record at most.
const MAX_PARENTS: usize = 16;

#[derive(Clone, Debug)]
struct Entry {
    agent: AgentId,
    start_ns: u64,
    exe: String,
    uid: u32,
    cgroup: String,
    parent: u32,
    /// Ancestors that are not in this table, nearest first.
    above: Vec<String>,
    ended: bool,
    /// What it was started for, it or an ancestor.
    task: Option<Arc<TaskInfo>>,
}

/// Times are `CLOCK_BOOTTIME`, ns.
#[derive(Debug, Default)]
pub struct Lineage {
    /// By tgid; oldest first where a tgid has been reused.
    entries: HashMap<u32, Vec<Entry>>,
    /// `(when, tgid, start)` of those that ended.
    ended: VecDeque<(u64, u32, u64)>,
    /// Of the agents that the table has processes of.
    pub presences: Presences,
}

impl Lineage {
    /// A process of an agent has a child: the same program, so far.
    pub fn forked(&mut self, tgid: u32, parent: u32, agent: AgentId, start_ns: u64) {
        let from = self.living(parent).cloned();
        let entry = match from {
            Some(from) => Entry {
                agent,
                start_ns,
                parent,
                above: Vec::new(),
                ..from
            },
            None => match Snapshot::of(tgid) {
                Some(seen) => Entry::seen(&seen, agent, start_ns),
                None => Entry {
                    agent,
                    start_ns,
                    exe: String::new(),
                    uid: 0,
                    cgroup: String::new(),
                    parent,
                    above: ancestors(parent),
                    ended: false,
                    task: None,
                },
            },
        };
        self.insert(tgid, entry);
    }

    /// A process runs another program now, or has become an agent's by it.
    pub fn executed(&mut self, tgid: u32, agent: AgentId, exec: Exec) {
        if self.living(tgid).is_none() {
            let mut seen = Snapshot::of(tgid).unwrap_or_default();
            seen.tgid = tgid;
            self.insert_at(tgid, Entry::seen(&seen, agent, exec.start_ns), exec.at_ns);
        }
        self.becomes(tgid, agent, exec.at_ns);
        if let Some(entry) = self.living_mut(tgid) {
            entry.exe = exec.exe;
            entry.uid = exec.uid;
            if let Some(cgroup) = exec.cgroup {
                entry.cgroup = cgroup;
            }
        }
    }

    pub fn exited(&mut self, tgid: u32, now_ns: u64) {
        if let Some(entry) = self.living_mut(tgid) {
            entry.ended = true;
            let (start, agent) = (entry.start_ns, entry.agent);
            self.ended.push_back((now_ns, tgid, start));
            self.presences.ends(agent);
        }
        while self
            .ended
            .front()
            .is_some_and(|(at, ..)| at + KEPT_NS < now_ns || self.ended.len() > KEPT)
        {
            if let Some((_, tgid, start)) = self.ended.pop_front() {
                self.forget(tgid, start);
            }
        }
    }

    /// Ends what has ended and no event has told of: it was lost, or the kernel made none.
    pub fn look_for_ended(&mut self, now_ns: u64) {
        for tgid in self.all_running() {
            let start = self.living(tgid).map(|entry| entry.start_ns);
            if !start.is_some_and(|start_ns| process::runs(tgid, start_ns)) {
                self.exited(tgid, now_ns);
            }
        }
    }

    /// A running process that has been labelled, or is found labelled.
    pub fn adopted(&mut self, seen: &Snapshot, agent: AgentId) {
        if self.living(seen.tgid).is_some() {
            return self.becomes(seen.tgid, agent, seen.start_ns);
        }
        self.insert(seen.tgid, Entry::seen(seen, agent, seen.start_ns));
    }

    /// A running process and what it starts from here on are on a task.
    pub fn set_task(&mut self, tgid: u32, task: TaskInfo) {
        if let Some(entry) = self.living_mut(tgid) {
            entry.task = Some(Arc::new(task));
        }
    }

    /// What the process that had `tgid` at `at_ns` was started for.
    pub fn task(&self, tgid: u32, at_ns: u64) -> Option<Arc<TaskInfo>> {
        self.at(tgid, at_ns)?.task.clone()
    }

    /// The process that had `tgid` at `at_ns`.
    pub fn process(&self, tgid: u32, at_ns: u64) -> Option<Process> {
        let entry = self.at(tgid, at_ns)?;
        let mut parents = Vec::new();
        let mut next = entry;
        while parents.len() < MAX_PARENTS {
            let Some(parent) = self.at(next.parent, next.start_ns) else {
                parents.extend(next.above.iter().cloned());
                break;
            };
            parents.push(format!("{}[{}]", parent.exe, next.parent));
            next = parent;
        }
        parents.truncate(MAX_PARENTS);
        Some(Process {
            tgid,
            start: entry.start_ns,
            exe: entry.exe.clone(),
            uid: entry.uid,
            cgroup: entry.cgroup.clone(),
            parents,
            ..Process::default()
        })
    }

    /// [`Self::process`], or what `/proc` says of a process that the table has missed.
    pub fn process_or_look(&mut self, tgid: u32, at_ns: u64, agent: AgentId) -> Option<Process> {
        if !self.entries.contains_key(&tgid) {
            let seen = Snapshot::of(tgid).filter(|seen| seen.start_ns <= at_ns)?;
            self.adopted(&seen, agent);
        }
        self.process(tgid, at_ns)
    }

    /// Tgids of the agent's running processes.
    pub fn running(&self, agent: AgentId) -> Vec<u32> {
        let mut tgids: Vec<u32> = self
            .entries
            .iter()
            .filter(|(_, generations)| {
                generations
                    .last()
                    .is_some_and(|entry| !entry.ended && entry.agent == agent)
            })
            .map(|(tgid, _)| *tgid)
            .collect();
        tgids.sort_unstable();
        tgids
    }

    /// Every running process of any agent.
    pub fn all_running(&self) -> Vec<u32> {
        self.entries
            .iter()
            .filter(|(_, generations)| generations.last().is_some_and(|entry| !entry.ended))
            .map(|(tgid, _)| *tgid)
            .collect()
    }

    /// Running processes that have been there for so long that `agentguard run` would have taken its child's privileges by
    /// now: tgid, start and agent.
    pub fn settled(&self, now_ns: u64) -> Vec<(u32, u64, AgentId)> {
        let before = now_ns.saturating_sub(UNTIL_FILTERED_NS);
        let living = self.entries.iter().filter_map(|(tgid, generations)| {
            let entry = generations.last()?;
            let is_settled = !entry.ended && entry.start_ns < before;
            is_settled.then_some((*tgid, entry.start_ns, entry.agent))
        });
        living.collect()
    }

    /// A living process is the agent's now.
    fn becomes(&mut self, tgid: u32, agent: AgentId, at_ns: u64) {
        let Some(entry) = self.living_mut(tgid) else {
            return;
        };
        let before = std::mem::replace(&mut entry.agent, agent);
        if before != agent {
            self.presences.begins(agent, at_ns);
            self.presences.ends(before);
        }
    }

    fn insert(&mut self, tgid: u32, entry: Entry) {
        let start_ns = entry.start_ns;
        self.insert_at(tgid, entry, start_ns);
    }

    /// A process that is its agent's from `at_ns` on.
    fn insert_at(&mut self, tgid: u32, entry: Entry, at_ns: u64) {
        self.presences.begins(entry.agent, at_ns);
        let generations = self.entries.entry(tgid).or_default();
        // An exit event may have been lost (a full ring): the tgid is reused, so its last owner has ended.
        if let Some(last) = generations.last_mut().filter(|last| !last.ended) {
            last.ended = true;
            self.presences.ends(last.agent);
            self.ended.push_back((entry.start_ns, tgid, last.start_ns));
        }
        generations.push(entry);
    }

    fn living(&self, tgid: u32) -> Option<&Entry> {
        self.entries.get(&tgid)?.last().filter(|e| !e.ended)
    }

    fn living_mut(&mut self, tgid: u32) -> Option<&mut Entry> {
        self.entries.get_mut(&tgid)?.last_mut().filter(|e| !e.ended)
    }

    fn at(&self, tgid: u32, at_ns: u64) -> Option<&Entry> {
        let generations = self.entries.get(&tgid)?;
        generations
            .iter()
            .rev()
            .find(|entry| entry.start_ns <= at_ns)
            .or_else(|| generations.first())
    }

    fn forget(&mut self, tgid: u32, start_ns: u64) {
        if let Some(generations) = self.entries.get_mut(&tgid) {
            generations.retain(|e| !(e.ended && e.start_ns == start_ns));
            if generations.is_empty() {
                self.entries.remove(&tgid);
            }
        }
    }
}

/// What an exec event says.
#[derive(Clone, Debug, Default)]
pub struct Exec {
    pub exe: String,
    pub uid: u32,
    pub cgroup: Option<String>,
    pub start_ns: u64,
    /// Of the exec itself.
    pub at_ns: u64,
}

impl Entry {
    fn seen(seen: &Snapshot, agent: AgentId, start_ns: u64) -> Self {
        Self {
            agent,
            start_ns: if start_ns == 0 {
                seen.start_ns
            } else {
                start_ns
            },
            exe: seen.exe.clone(),
            uid: seen.uid,
            cgroup: seen.cgroup.clone(),
            parent: seen.parent,
            above: ancestors(seen.parent),
            ended: false,
            task: None,
        }
    }
}

/// `exe[tgid]` from `tgid` up, from `/proc`.
fn ancestors(mut tgid: u32) -> Vec<String> {
    let mut found = Vec::new();
    while tgid > 0 && found.len() < MAX_PARENTS {
        let Some(seen) = Snapshot::of(tgid) else {
            break;
        };
        found.push(format!("{}[{tgid}]", seen.exe));
        tgid = seen.parent;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: AgentId = AgentId(2);
    /// Above any tgid there can be, so that `/proc` never knows them.
    const ROOT: u32 = 5_000_000;

    fn exec(exe: &str) -> Exec {
        Exec {
            exe: exe.into(),
            uid: 7,
            cgroup: Some("/x".into()),
            start_ns: 0,
            at_ns: 0,
        }
    }

    fn seen(tgid: u32, exe: &str, start_ns: u64) -> Snapshot {
        Snapshot {
            tgid,
            parent: 0,
            uid: 7,
            exe: exe.into(),
            cgroup: "/x".into(),
            start_ns,
        }
    }

    #[test]
    fn what_has_ended_unseen_is_found() {
        let tgid = std::process::id();
        let own = Snapshot::of(tgid).unwrap();
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        let mut lineage = Lineage::default();
        lineage.adopted(&own, A);
        lineage.forked(ROOT, tgid, A, own.start_ns);
        lineage.adopted(&Snapshot::of(ended.id()).unwrap(), A);
        // It ends without being reaped.
        nix::sys::wait::waitid(
            nix::sys::wait::Id::Pid(nix::unistd::Pid::from_raw(ended.id() as i32)),
            nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT,
        )
        .unwrap();
        lineage.look_for_ended(own.start_ns + 1);
        assert_eq!(lineage.running(A), [tgid]);
        ended.wait().unwrap();

        // Somebody else's by now.
        let mut lineage = Lineage::default();
        lineage.forked(tgid, ROOT, A, own.start_ns - 1_000_000_000);
        lineage.look_for_ended(own.start_ns + 1);
        assert!(lineage.running(A).is_empty());
    }

    #[test]
    fn a_child_has_its_parents_program_until_it_executes() {
        let mut lineage = Lineage::default();
        lineage.adopted(&seen(ROOT, "/bin/agent", 10), A);
        let task = TaskInfo {
            id: uuid::Uuid::from_u128(7),
            intent: "order paper".into(),
        };
        lineage.set_task(ROOT, task.clone());
        lineage.forked(ROOT + 1, ROOT, A, 20);
        assert_eq!(lineage.task(ROOT + 1, 25).as_deref(), Some(&task));
        let child = lineage.process(ROOT + 1, 25).unwrap();
        assert_eq!((child.exe.as_str(), child.uid), ("/bin/agent", 7));
        lineage.executed(ROOT + 1, A, exec("/bin/sh"));
        lineage.forked(ROOT + 2, ROOT + 1, A, 30);
        lineage.executed(ROOT + 2, A, exec("/bin/curl"));
        let grandchild = lineage.process(ROOT + 2, 40).unwrap();
        assert_eq!(grandchild.exe, "/bin/curl");
        assert_eq!(
            grandchild.parents,
            [
                format!("/bin/sh[{}]", ROOT + 1),
                format!("/bin/agent[{ROOT}]")
            ]
        );
        assert_eq!(lineage.running(A), [ROOT, ROOT + 1, ROOT + 2]);
        assert!(lineage.running(AgentId(3)).is_empty());
    }

    #[test]
    fn a_late_record_finds_the_process_that_ended() {
        let mut lineage = Lineage::default();
        lineage.adopted(&seen(ROOT, "/bin/agent", 10), A);
        lineage.exited(ROOT, 50);
        assert!(lineage.running(A).is_empty());
        assert_eq!(lineage.process(ROOT, 40).unwrap().exe, "/bin/agent");
        // Its tgid is someone else's by now.
        lineage.adopted(&seen(ROOT, "/bin/other", 100), A);
        assert_eq!(lineage.process(ROOT, 40).unwrap().exe, "/bin/agent");
        assert_eq!(lineage.process(ROOT, 200).unwrap().exe, "/bin/other");
    }

    #[test]
    fn ended_processes_are_forgotten_by_age_and_number() {
        let mut lineage = Lineage::default();
        lineage.adopted(&seen(ROOT, "/bin/agent", 10), A);
        lineage.exited(ROOT, 50);
        lineage.adopted(&seen(ROOT + 1, "/bin/agent", 60), A);
        lineage.exited(ROOT + 1, 50 + KEPT_NS + 1);
        assert!(lineage.process(ROOT, 40).is_none());
        assert!(lineage.process(ROOT + 1, 70).is_some());

        let mut lineage = Lineage::default();
        for n in 0..KEPT as u32 + 100 {
            lineage.adopted(&seen(ROOT + n, "/bin/true", 1), A);
            lineage.exited(ROOT + n, 2);
        }
        assert_eq!(lineage.entries.len(), KEPT);
    }

    #[test]
    fn a_lost_exit_event_leaves_no_ghost() {
        let mut lineage = Lineage::default();
        lineage.adopted(&seen(ROOT, "/bin/agent", 10), A);
        lineage.forked(ROOT, ROOT + 9, AgentId(3), 90);
        assert!(lineage.running(A).is_empty());
        assert_eq!(lineage.running(AgentId(3)), [ROOT]);
    }
}
