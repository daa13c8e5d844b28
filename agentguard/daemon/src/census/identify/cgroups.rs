use agentguard_common::abi::AgentId;

use super::tests::{agent, identify, uid};
use super::{Blocks, Snapshot};

#[test]
fn cgroups_of_container_runtimes_and_systemd() {
    let lines = include_str!("cgroups.txt").lines();
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let [expected, pattern, cgroup] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("three words expected: {line}");
        };
        let a = agent("a", identify(None, None, Some(pattern)));
        let blocks = Blocks::resolve([(AgentId(2), &a)].into_iter(), uid).unwrap();
        let process = Snapshot {
            exe: "/bin/agent".into(),
            cgroup: cgroup.into(),
            ..Snapshot::default()
        };
        let claimed = blocks.claim(&process).is_some();
        assert_eq!(claimed, expected == "yes", "{line}");
    }
}
