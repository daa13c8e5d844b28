//! Ways to the whole host that an agent of root's owns by its user: the kernel's parameters, disks, the memory. No agent has
//! them, by whatever it became one, and whether the kernel has BPF LSM or not.

use std::path::Path;

use agentguard_tests::attempt::{AGENT, Attempt, KEEP, User, alone, prove, under};
use agentguard_tests::standing::Standings;
use agentguard_tests::tools::{self, script};
use agentguard_tests::{Bundle, Client, Guard, Running, Site, names};

const PYTHON: &str = "/usr/bin/python3";
const CORE_PATTERN: &str = "/proc/sys/kernel/core_pattern";

/// What programs open every day, where the host has it.
const ORDINARY: [&str; 10] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/ptmx",
    "/dev/fuse",
    "/dev/kvm",
    "/dev/net/tun",
    "/proc/sys/kernel/osrelease",
];

/// Where the host has them.
const WHOLE: [&str; 6] = [
    "/dev/loop0",
    "/dev/vda",
    "/dev/loop-control",
    "/dev/mem",
    "/dev/btrfs-control",
    "/dev/mapper/control",
];

fn tries(running: &mut Running, what: &str) -> String {
    running.say(what);
    running.after("said ")
}

fn words(program: &str) -> Vec<String> {
    let script = script("tamper.py").display().to_string();
    vec![program.to_owned(), script]
}

/// With every capability, and recorded.
#[test]
fn parameters_of_the_kernel_and_nodes_of_disks() {
    let node = |name: &str, kind: &str, device: &str| {
        let code = format!(
            "import stat, tempfile
path = tempfile.mkdtemp() + '/node'
os.mknod(path, stat.{kind} | 0o600, os.makedev({device}))
os.unlink(path)"
        );
        Attempt::python(name, code)
    };
    let parameter = |path: &str| {
        let code =
            format!("file = os.open('{path}', os.O_RDWR); os.pwrite(file, os.read(file, 4096), 0)");
        Attempt::python(format!("writing {path}"), code)
    };
    let attempts = [
        parameter(CORE_PATTERN),
        parameter("/proc/sys/vm/overcommit_memory"),
        parameter("/proc/sys/net/ipv4/ip_forward"),
        node("a disk's node", "S_IFBLK", "259, 0"),
        node("a node of the memory", "S_IFCHR", "1, 1"),
        node("a node of the loop devices' control", "S_IFCHR", "10, 237"),
    ]
    .map(|attempt| {
        attempt
            .leaves("file", "policy-denied")
            .sends_nothing()
            .root_only()
    });
    prove(&attempts, |_| Bundle::new(1).agent(AGENT, KEEP));
}

/// Below plain `run`, by its file, and as nobody. What the mount namespace of `run` refuses leaves no record.
#[test]
fn what_root_owns_is_not_its_agents() {
    let site = Site::new();
    let program = site.path("agents-python");
    std::fs::copy(std::fs::canonicalize(PYTHON).expect("there"), &program).expect("copied");
    let program = program.display().to_string();
    let mut control = alone(&words(PYTHON)).spawn();
    let whole: Vec<&str> = WHOLE
        .into_iter()
        .filter(|path| {
            Path::new(path).exists() && tries(&mut control, &format!("open {path}")) == "ok"
        })
        .collect();
    let ordinary: Vec<&str> = ORDINARY
        .into_iter()
        .filter(|path| tries(&mut control, &format!("open {path}")) == "ok")
        .collect();
    assert!(ordinary.contains(&"/dev/null") && ordinary.contains(&"/dev/ptmx"));
    let identify = format!("[[identify]]\nexe = \"{program}\"\n");
    let bundle = Bundle::new(1).agent("probe", "").agent("named", &identify);
    let guard = Guard::start(&site, &bundle);
    let probe = guard.agent("probe").user(User::Root.name());
    for (name, client) in [
        ("probe", under(&probe, &words(PYTHON))),
        ("named", alone(&words(&program))),
    ] {
        let mut agent = client.spawn();
        let mut before = guard.audit().len();
        let opened = whole.iter().map(|path| (format!("open {path}"), None));
        let rewrite = format!("rewrite {CORE_PATTERN}");
        if name == "probe" {
            assert_eq!(tries(&mut agent, &rewrite), "EROFS");
        }
        let written = (name == "named").then_some((rewrite, Some(CORE_PATTERN)));
        for (attempt, resource) in opened.chain(written) {
            assert_eq!(tries(&mut agent, &attempt), "EPERM", "{attempt}, {name}");
            let records = guard.audit().split_off(before);
            before += records.len();
            let [record] = &records[..] else {
                panic!("{attempt}, {name}: not one record: {records:#?}");
            };
            let told = (record.agent(), record.action(), record.outcome());
            assert_eq!(told, (name, "file", "deny"), "{record:?}");
            match resource {
                Some(resource) => assert_eq!(record.resource(), resource),
                None => assert!(record.resource().starts_with("device/"), "{record:?}"),
            }
        }
        for path in &ordinary {
            assert_eq!(
                tries(&mut agent, &format!("open {path}")),
                "ok",
                "{path}, {name}"
            );
        }
        assert_eq!(guard.audit().len(), before, "nothing else is recorded");
    }
    for path in &whole {
        assert_eq!(
            tries(&mut control, &format!("open {path}")),
            "ok",
            "{path}, nobody's"
        );
    }
    assert_eq!(
        tries(&mut control, &format!("rewrite {CORE_PATTERN}")),
        "ok"
    );
}

/// A container runtime sets the network's parameters inside, as whoever the container is for.
#[test]
fn parameters_of_a_network_namespace_of_its_own_may_be_written() {
    let site = Site::new();
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", KEEP));
    let agent = guard.agent("probe");
    let mut agent = under(&agent, &words(PYTHON)).spawn();
    let path = "/proc/sys/net/ipv4/ip_forward";
    assert_eq!(
        tries(&mut agent, &format!("rewrite_in_own_netns {path}")),
        "ok"
    );
    assert_eq!(tries(&mut agent, &format!("rewrite {path}")), "EPERM");
    let global = format!("rewrite_in_own_netns {CORE_PATTERN}");
    assert_eq!(tries(&mut agent, &global), "EPERM");
}

/// What the kernel and the daemon have of root's is read-only in the mount namespace of an agent that root has started.
#[test]
fn below_run_root_finds_nothing_of_the_kernels_or_the_daemons_to_write() {
    let site = Site::new();
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", ""));
    let has_lsm = Standings::of_this_kernel().has_lsm();
    let cgroups = agentguard_kernel::cgroup_root().expect("it is mounted");
    let at = |below: &str| site.path(below).display().to_string();
    let attempts = [
        (format!("append {CORE_PATTERN}"), "EROFS"),
        ("append /proc/sysrq-trigger".to_owned(), "EROFS"),
        (
            format!("mkdir {}/{}", cgroups.display(), names::unique()),
            "EROFS",
        ),
        (format!("create {}", at("run/x")), "EROFS"),
        (format!("move {}", at("run/control.sock")), "EROFS"),
        (format!("append {}", at("policies/bundle.toml")), "EROFS"),
        (format!("create {}", at("policies/agents/x.toml")), "EROFS"),
        (format!("append {}", site.config().display()), "EROFS"),
        (format!("create {}", at("trust/x")), "EROFS"),
        // The folders themselves, and one above them.
        (format!("move {}", at("run")), "EBUSY"),
        (format!("move {}", at("policies")), "EBUSY"),
        (format!("move {}", site.dir().display()), "EBUSY"),
        (format!("create {}", at("files/x")), "ok"),
    ];
    let mut control = alone(&words(PYTHON)).spawn();
    let attempts: Vec<_> = attempts
        .into_iter()
        .filter(|(attempt, _)| {
            let said = tries(&mut control, attempt);
            let is_built = said != "ENOENT" || !attempt.contains("sysrq");
            assert!(said == "ok" || !is_built, "nobody's, {attempt}: {said}");
            is_built
        })
        .collect();
    let probe = guard.agent("probe");
    let mut agent = under(&probe, &words(PYTHON)).spawn();
    // Where there are LSM hooks they come first at what is moved.
    let moved = if has_lsm { "EPERM" } else { "EBUSY" };
    for (attempt, expected) in &attempts {
        let expected = if *expected == "EBUSY" {
            moved
        } else {
            *expected
        };
        assert_eq!(tries(&mut agent, attempt), expected, "{attempt}");
    }
    // By a name that begins where it was started.
    let folder = at("policies");
    let (binary, config) = (tools::agentguard(), site.config());
    let run = ["run", "--agent", "probe", "--config"];
    let mut inside = Client::new("/usr/bin/env")
        .args(["-C", &folder])
        .arg(&binary)
        .args(run)
        .arg(&config)
        .arg("--")
        .args(words(PYTHON))
        .spawn();
    for attempt in ["create x", "append bundle.toml"] {
        assert_eq!(tries(&mut inside, attempt), "EROFS", "{attempt}");
    }
    for (attempt, _) in &attempts {
        assert_eq!(tries(&mut control, attempt), "ok", "nobody's, {attempt}");
    }
    guard.cli(["status"]).ok();
}
