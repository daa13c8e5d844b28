//! Enrols processes that were running before the hooks knew of them.

use std::collections::{HashMap, HashSet};

use agentguard_common::abi::AgentId;
use agentguard_sys::process::{self, Snapshot};

use super::identify::Blocks;

/// Scans at most; a process that forks faster than that is caught by the fork hook once one ancestor is labelled.
const MAX_PASSES: usize = 32;

/// Where labels are read and written: the kernel, or a test's table.
pub(crate) trait Labels {
    type Error;
    fn label(&self, tgid: u32) -> Result<AgentId, Self::Error>;
    fn set_label(&mut self, tgid: u32, agent: AgentId) -> Result<(), Self::Error>;
}

/// Labels what a block claims and every descendant of what has a label, pass by pass, until a pass finds nothing new.
/// Returns the newly labelled. A process that has a label keeps it.
pub(crate) fn adopt<L: Labels>(
    labels: &mut L,
    blocks: &Blocks,
    exempt: &[u32],
    mut scan: impl FnMut() -> Vec<Snapshot>,
) -> Result<Vec<(Snapshot, AgentId)>, L::Error> {
    let mut adopted = Vec::new();
    let mut done: HashSet<(u32, u64)> = HashSet::new();
    for _ in 0..MAX_PASSES {
        let processes = scan();
        let mut known: HashMap<u32, AgentId> = HashMap::new();
        let mut unlabelled = Vec::new();
        for seen in &processes {
            match labels.label(seen.tgid)? {
                AgentId::NONE => unlabelled.push(seen),
                agent => {
                    known.insert(seen.tgid, agent);
                }
            }
        }
        let mut fresh = 0;
        for seen in unlabelled {
            if exempt.contains(&seen.tgid) || seen.exe.is_empty() {
                continue;
            }
            let agent = blocks
                .claim(seen)
                .or_else(|| known.get(&seen.parent).copied());
            let Some(agent) = agent else { continue };
            labels.set_label(seen.tgid, agent)?;
            known.insert(seen.tgid, agent);
            fresh += 1;
            if done.insert((seen.tgid, seen.start_ns)) {
                adopted.push((seen.clone(), agent));
            }
        }
        if fresh == 0 {
            break;
        }
    }
    Ok(adopted)
}

/// Every process there is now.
pub(crate) fn scan() -> Vec<Snapshot> {
    let mut all: Vec<Snapshot> = process::all()
        .into_iter()
        .filter_map(Snapshot::of)
        .collect();
    // Parents before children where tgids have not wrapped, so that most families take one pass.
    all.sort_unstable_by_key(|seen| (seen.start_ns, seen.tgid));
    all
}

#[cfg(test)]
mod tests {
    use super::super::identify::Block;
    use super::*;

    #[derive(Default)]
    struct Table(HashMap<u32, AgentId>);

    impl Labels for Table {
        type Error = ();
        fn label(&self, tgid: u32) -> Result<AgentId, ()> {
            Ok(self.0.get(&tgid).copied().unwrap_or(AgentId::NONE))
        }
        fn set_label(&mut self, tgid: u32, agent: AgentId) -> Result<(), ()> {
            self.0.insert(tgid, agent);
            Ok(())
        }
    }

    fn seen(tgid: u32, parent: u32, exe: &str) -> Snapshot {
        Snapshot {
            tgid,
            parent,
            exe: exe.into(),
            ..Snapshot::default()
        }
    }

    fn blocks() -> Blocks {
        Blocks {
            blocks: vec![Block {
                agent: AgentId(2),
                parent: None,
                exe: Some("/opt/agent".into()),
                uid: None,
                cgroup: None,
            }],
            warnings: Vec::new(),
        }
    }

    #[test]
    fn a_family_is_adopted_whole_whatever_the_order() {
        let mut table = Table::default();
        // The grandchild comes first, and one more child appears during the second pass.
        let mut passes = 0;
        let adopted = adopt(&mut table, &blocks(), &[], || {
            passes += 1;
            let mut all = vec![
                seen(30, 20, "/bin/curl"),
                seen(20, 10, "/bin/sh"),
                seen(10, 1, "/opt/agent"),
                seen(40, 1, "/bin/cron"),
                seen(2, 0, ""),
            ];
            if passes > 1 {
                all.push(seen(50, 30, "/bin/late"));
            }
            all
        })
        .unwrap();
        let mut tgids: Vec<u32> = adopted.iter().map(|(seen, _)| seen.tgid).collect();
        tgids.sort_unstable();
        assert_eq!(tgids, [10, 20, 30, 50]);
        assert!(!table.0.contains_key(&40) && !table.0.contains_key(&2));
    }

    #[test]
    fn labels_are_kept_and_the_daemon_is_exempt() {
        let mut table = Table::default();
        table.0.insert(10, AgentId(7));
        let all = || vec![seen(10, 1, "/opt/agent"), seen(11, 1, "/opt/agent")];
        let adopted = adopt(&mut table, &blocks(), &[11], all).unwrap();
        assert!(adopted.is_empty());
        assert_eq!(table.0[&10], AgentId(7));
    }
}
