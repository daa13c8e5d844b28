use agentguard_kernel::{Hook, NoDigests};

use super::*;

const CGROUP_HOOKS: [&str; 18] = [
    "fork",
    "exec",
    "exit",
    "sock_create",
    "sock_release",
    "connected",
    "egress",
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
    "recvmsg4",
    "recvmsg6",
    "bind4",
    "bind6",
    "getpeername4",
    "device",
    "sysctl",
];

const PROGRAMS: [&str; 10] = [
    "lsm_digest",
    "lsm_bprm_check_security",
    "lsm_socket_create",
    "lsm_unix_stream_connect",
    "lsm_unix_may_send",
    "lsm_bpf",
    "lsm_task_kill",
    "lsm_task_setrlimit",
    "lsm_ptrace_access_check",
    "unix_connect",
];

fn facts(hooks: &[&'static str]) -> Facts {
    let hooks = hooks.iter().map(|name| Hook {
        name,
        attached: true,
    });
    Facts {
        kernel: "6.18".into(),
        hooks: hooks.collect(),
        programs: PROGRAMS.to_vec(),
        missing: None,
        bpf_lsm: false,
        leaves_lsm_out: false,
        preempts_tracepoints: false,
        unix_hooks: true,
        no_digests: None,
        unprotected: None,
        sock_destroy: true,
        run_filter: false,
        io_uring_disabled: false,
        tiocsti_disabled: false,
        landlock_abi: 7,
        run_landlock: 7,
        beside_run: Vec::new(),
        without_filter: Vec::new(),
        canary: CanaryState::Passed,
    }
}

fn holds(facts: &Facts, id: &str) -> Holds {
    let all = judge(facts);
    all.iter().find(|g| g.id.as_str() == id).unwrap().holds
}

#[test]
fn a_kernel_without_lsm_names_what_stays_open() {
    let facts = facts(&CGROUP_HOOKS);
    let by = |wanted| -> Vec<&str> {
        let all = judge(&facts).into_iter();
        all.filter(|g| g.holds == wanted)
            .map(|g| g.id.as_str())
            .collect()
    };
    assert_eq!(
        by(Holds::Open),
        [
            "address-families",
            "exec-scripts",
            "exec-digest",
            "unix-sockets",
            "handed-over-sockets",
            "tamper",
            "own-files",
            "process-memory",
            "signals"
        ]
    );
    assert_eq!(by(Holds::Fallback), ["exec", "io-uring", "terminal"]);
}

#[test]
fn each_fact_moves_its_row() {
    let all = facts(&CGROUP_HOOKS);
    for (id, hooks, expected) in [
        ("exec", &["lsm_bprm_check_security"][..], Holds::Enforced),
        (
            "exec-scripts",
            &["lsm_bprm_check_security"],
            Holds::Enforced,
        ),
        ("address-families", &["lsm_socket_create"], Holds::Enforced),
        ("unix-sockets", &["unix_connect"], Holds::Open),
        (
            "unix-sockets",
            &["unix_connect", "unix_sendmsg"],
            Holds::Fallback,
        ),
        (
            "unix-sockets",
            &["lsm_unix_stream_connect", "lsm_unix_may_send"],
            Holds::Enforced,
        ),
        ("tamper", &["lsm_bpf", "lsm_task_kill"], Holds::Open),
        (
            "tamper",
            &["lsm_bpf", "lsm_task_kill", "lsm_ptrace_access_check"],
            Holds::Enforced,
        ),
        ("terminal", &["lsm_file_ioctl"], Holds::Enforced),
    ] {
        let facts = facts(&[&CGROUP_HOOKS, hooks].concat());
        assert_eq!(holds(&facts, id), expected, "{id} with {hooks:?}");
    }
    let run_filter = Facts {
        run_filter: true,
        ..all.clone()
    };
    assert_eq!(holds(&run_filter, "address-families"), Holds::Fallback);
    for (abi, expected) in [
        (0, Holds::Fallback),
        (4, Holds::Fallback),
        (6, Holds::Enforced),
    ] {
        let facts = Facts {
            landlock_abi: abi,
            ..all.clone()
        };
        assert_eq!(holds(&facts, "forwarder-sandbox"), expected, "abi {abi}");
    }
    let failed = Facts {
        canary: CanaryState::Failed("a connect went through".into()),
        ..all
    };
    assert_eq!(holds(&failed, "canary"), Holds::Open);
}

#[test]
fn what_run_alone_holds_is_open_for_who_need_not_be_below_it() {
    let with = |run_landlock, beside_run: &[&str], hooks: &[&'static str]| Facts {
        run_filter: true,
        run_landlock,
        beside_run: beside_run.iter().map(|name| (*name).to_owned()).collect(),
        ..facts(&[&CGROUP_HOOKS, hooks].concat())
    };
    let lsm = [
        "lsm_ptrace_access_check",
        "lsm_task_kill",
        "lsm_task_setrlimit",
    ];
    use Holds::{Enforced, Fallback, Open};
    for (facts, memory, signals) in [
        (with(0, &[], &[]), Open, Open),
        (with(5, &[], &[]), Fallback, Open),
        (with(6, &[], &[]), Fallback, Fallback),
        (with(6, &["worker"], &[]), Open, Open),
        (with(0, &["worker"], &lsm), Enforced, Enforced),
    ] {
        let found = ["process-memory", "signals"].map(|id| holds(&facts, id));
        assert_eq!(found, [memory, signals], "{facts:?}");
    }
    let bare = Facts {
        without_filter: vec!["bot".into()],
        ..with(6, &[], &[])
    };
    for (facts, why) in [
        (with(6, &["worker"], &[]), "does not hold worker"),
        (
            bare,
            "does not hold bot, of which a process runs that has no filter of its system calls",
        ),
    ] {
        for id in [GuaranteeId::ProcessMemory, GuaranteeId::Signals] {
            let rows = judge(&facts);
            let row = rows.iter().find(|row| row.id == id).unwrap();
            assert!(row.why.contains(why) && row.holds == Open, "{row:?}");
        }
    }
}

#[test]
fn nothing_holds_by_lsm_where_its_programs_may_be_left_out() {
    let lsm = [
        "lsm_bprm_check_security",
        "lsm_unix_stream_connect",
        "lsm_unix_may_send",
    ];
    let sound = facts(&[&CGROUP_HOOKS, &lsm[..]].concat());
    let leaky = Facts {
        leaves_lsm_out: true,
        ..sound.clone()
    };
    for id in ["exec", "exec-scripts", "unix-sockets"] {
        assert_eq!(holds(&sound, id), Holds::Enforced, "{id}");
        assert_eq!(holds(&leaky, id), Holds::Open, "{id}");
    }
    assert_eq!(holds(&leaky, "tcp"), Holds::Enforced);
    let all = judge(&leaky);
    let row = all.iter().find(|row| row.id == GuaranteeId::Exec).unwrap();
    assert!(row.remedy.as_deref().unwrap().contains("6.1.54"), "{row:?}");
}

#[test]
fn where_tracepoints_can_be_preempted_execs_are_judged_by_lsm_alone() {
    let preempting = |hooks: &[&[&'static str]]| Facts {
        preempts_tracepoints: true,
        ..facts(&hooks.concat())
    };
    let backstops = ["exec_backstop", "exit_backstop"];
    let without = preempting(&[&CGROUP_HOOKS, &backstops]);
    assert_eq!(holds(&without, "exec"), Holds::Open);
    assert_eq!(holds(&without, "lineage"), Holds::Fallback);
    let with = preempting(&[&CGROUP_HOOKS, &backstops, &["lsm_bprm_check_security"]]);
    assert_eq!(holds(&with, "exec"), Holds::Enforced);
    assert_eq!(holds(&preempting(&[&CGROUP_HOOKS]), "lineage"), Holds::Open);
}

#[test]
fn digests_hold_where_the_kernel_tells_them_and_else_the_row_says_why() {
    let lsm = ["lsm_bprm_check_security"];
    let with = facts(&[&CGROUP_HOOKS, &lsm[..], &["lsm_digest"]].concat());
    assert_eq!(holds(&with, "exec-digest"), Holds::Enforced);
    let without = Facts {
        bpf_lsm: true,
        no_digests: Some(NoDigests {
            why: "no IMA".into(),
            remedy: "another kernel".into(),
        }),
        ..facts(&[&CGROUP_HOOKS, &lsm[..]].concat())
    };
    let all = judge(&without);
    let row = all
        .iter()
        .find(|row| row.id == GuaranteeId::ExecDigest)
        .unwrap();
    assert_eq!(row.holds, Holds::Open);
    assert!(row.why.starts_with("no IMA; an `allow` entry"), "{row:?}");
    assert_eq!(row.remedy.as_deref(), Some("another kernel"));
}

#[test]
fn files_that_the_kernel_was_not_told_of_are_not_protected() {
    let hooks = OWN_FILES.map(|hook| &*format!("lsm_{hook}").leak());
    let told = facts(&hooks);
    assert_eq!(holds(&told, "own-files"), Holds::Enforced);
    let untold = Facts {
        unprotected: Some("no such mount".into()),
        ..told
    };
    assert_eq!(holds(&untold, "own-files"), Holds::Open);
    assert_eq!(holds(&facts(&hooks[1..]), "own-files"), Holds::Open);
}

#[test]
fn a_hook_that_is_gone_opens_what_it_held_and_says_what_to_do() {
    let mut facts = facts(&CGROUP_HOOKS);
    facts
        .hooks
        .iter_mut()
        .find(|hook| hook.name == "connect4")
        .unwrap()
        .attached = false;
    let all = judge(&facts);
    for id in ["tcp", "dns", "kill", "namespaces"] {
        let row = all.iter().find(|g| g.id.as_str() == id).unwrap();
        assert_eq!(row.holds, Holds::Open, "{id}");
        assert!(row.why.contains("connect4"), "{row:?}");
        assert!(row.remedy.is_some(), "{row:?}");
    }
    facts.missing = Some(("no BTF".into(), "another kernel".into()));
    assert_eq!(holds(&facts, "lineage"), Holds::Open);
}

#[test]
fn what_this_version_cannot_do_has_no_remedy() {
    let facts = Facts {
        programs: Vec::new(),
        ..facts(&CGROUP_HOOKS)
    };
    for id in ["exec", "exec-scripts", "unix-sockets", "tamper"] {
        let all = judge(&facts);
        let row = all.iter().find(|g| g.id.as_str() == id).unwrap();
        assert_eq!(row.holds, Holds::Open, "{row:?}");
        assert!(row.why.contains("this version does not judge"), "{row:?}");
        assert_eq!(row.remedy, None, "{row:?}");
    }
}

#[test]
fn while_nothing_is_in_force_it_says_what_would_be() {
    let programs: Vec<&'static str> = CGROUP_HOOKS.iter().chain(&PROGRAMS).copied().collect();
    let stopped = Facts {
        canary: CanaryState::Absent,
        tiocsti_disabled: true,
        programs: [programs, vec!["unix_sendmsg"]].concat(),
        ..facts(&[])
    };
    let would = |facts: &Facts, id: &str| {
        let row = judge(facts)
            .into_iter()
            .find(|g| g.id.as_str() == id)
            .unwrap();
        (row.holds, row.why)
    };
    for (id, said) in [
        ("tcp", "not running; would be enforced"),
        ("exec", "not running; would hold by fallback"),
        ("unix-sockets", "not running; would hold by fallback"),
        ("kill-resets", "not running; would be enforced"),
        ("forwarder-sandbox", "not running; would be enforced"),
        ("tamper", "this kernel has no BPF LSM"),
        ("canary", "no daemon runs"),
    ] {
        let (holds, why) = would(&stopped, id);
        assert_eq!(holds, Holds::Open, "{id}");
        assert!(why.starts_with(said), "{id}: {why}");
    }
    assert_eq!(would(&stopped, "terminal").0, Holds::Enforced);
    let with_lsm = Facts {
        bpf_lsm: true,
        ..stopped.clone()
    };
    let (_, why) = would(&with_lsm, "tamper");
    assert!(why.starts_with("not running; would be enforced"), "{why}");
    let old = Facts {
        unix_hooks: false,
        ..stopped.clone()
    };
    let (_, why) = would(&old, "unix-sockets");
    assert!(why.starts_with("this kernel has no BPF LSM"), "{why}");
    let unfit = Facts {
        missing: Some(("no BTF".into(), "another kernel".into())),
        ..stopped
    };
    assert_eq!(would(&unfit, "tcp").1, "no BTF");
}
