//! Ways into another process of the same user, by `/proc/PID`, by a signal or by its limits: into one that is nobody's, another
//! agent's, or below another run of the same agent. What Landlock and a seccomp filter refuse leaves no record.

use std::path::PathBuf;

use agentguard_tests::attempt::{User, alone, under};
use agentguard_tests::standing::Standings;
use agentguard_tests::tools::script;
use agentguard_tests::{Bundle, Guard, Record, Running, Site};
use serde_json::Value;

const PYTHON: &str = "/usr/bin/python3";

/// Below the right to trace it.
const INTO: [&str; 8] = [
    "mem_write PID STACK",
    "open /proc/PID/fd/0",
    "read /proc/PID/environ",
    "read /proc/PID/maps",
    "read /proc/PID/auxv",
    "look /proc/PID/root",
    "look /proc/PID/cwd",
    "kcmp PID",
];

/// Newer kernels ask CAP_PERFMON for these, and no hook of who is traced (`may_access_mm`).
const BY_CAPABILITY: [&str; 3] = [
    "read /proc/PID/environ",
    "read /proc/PID/maps",
    "read /proc/PID/auxv",
];

const SIGNALS: [&str; 5] = [
    "kill PID 18",
    "tgkill PID",
    "rt_sigqueueinfo PID",
    "rt_tgsigqueueinfo PID",
    "pidfd_send_signal PID",
];

const LIMITS: &str = "prlimit PID";

fn words(program: &str) -> Vec<String> {
    let script = script("tamper.py").display().to_string();
    vec![program.to_owned(), script]
}

fn tries(running: &mut Running, what: &str) -> String {
    running.say(what);
    running.after("said ")
}

/// A process, and where its stack is.
struct Target {
    tgid: u32,
    stack: String,
}

impl Target {
    /// It waits, and ends with who has made it.
    fn child_of(running: &mut Running) -> Self {
        let tgid = tries(running, "child").parse().expect("a number");
        let maps = std::fs::read_to_string(format!("/proc/{tgid}/maps")).expect("it runs");
        let line = maps.lines().find(|line| line.ends_with("[stack]"));
        let (stack, _) = line.and_then(|it| it.split_once('-')).expect("it has one");
        let stack = stack.to_owned();
        Self { tgid, stack }
    }

    fn of(&self, attempt: &str) -> String {
        attempt
            .replace("PID", &self.tgid.to_string())
            .replace("STACK", &self.stack)
    }
}

/// Those that this kernel has: without AgentGuard they all work.
fn of_this_kernel(user: User) -> Vec<&'static str> {
    let mut bystander = alone(&words(PYTHON)).as_user(user).spawn();
    let target = Target::child_of(&mut bystander);
    let mut control = alone(&words(PYTHON)).as_user(user).spawn();
    let all = INTO.into_iter().chain(SIGNALS).chain([LIMITS]);
    all.filter(|attempt| {
        let said = tries(&mut control, &target.of(attempt));
        let is_built = said != "ENOSYS";
        assert!(
            said == "ok" || !is_built,
            "{attempt}, as {}: {said}",
            user.name()
        );
        is_built
    })
    .collect()
}

fn is_refused(said: &str) -> bool {
    ["EPERM", "EACCES"].contains(&said)
}

#[test]
fn below_run_every_process_that_is_not_below_the_same_one_is_out_of_reach() {
    let has_lsm = Standings::of_this_kernel().has_lsm();
    let abi = agentguard_sys::privilege::landlock_abi();
    let site = Site::new();
    let attempts = User::ALL.map(|user| (user, of_this_kernel(user)));
    let bundle = Bundle::new(1).agent("probe", "").agent("other", "");
    let guard = Guard::start(&site, &bundle);
    for (user, attempts) in attempts {
        let start = |agent| under(&guard.agent(agent).user(user.name()), &words(PYTHON)).spawn();
        let mut nobodys = alone(&words(PYTHON)).as_user(user).spawn();
        let (mut others, mut again) = (start("other"), start("probe"));
        let mut agent = start("probe");
        let own = Target::child_of(&mut agent);
        let nobodys_child = Target::child_of(&mut nobodys);
        let targets = [
            ("nobody's", nobodys_child, has_lsm),
            ("another agent's", Target::child_of(&mut others), has_lsm),
            ("another run's", Target::child_of(&mut again), false),
        ];
        for attempt in &attempts {
            for (whose, target, by_hooks) in &targets {
                let said = tries(&mut agent, &target.of(attempt));
                let is_held = *by_hooks
                    || match attempt {
                        attempt if SIGNALS.contains(attempt) => abi >= 6,
                        attempt if INTO.contains(attempt) => abi >= 1,
                        _ => true,
                    };
                let is_right = if is_held {
                    is_refused(&said)
                } else {
                    said == "ok"
                };
                assert!(is_right, "{attempt}, {whose}, as {}: {said}", user.name());
            }
            let said = tries(&mut agent, &own.of(attempt));
            match *attempt {
                LIMITS => assert_eq!(said, "EPERM", "a filter does not know whose it is"),
                attempt => assert_eq!(said, "ok", "{attempt}, its own, as {}", user.name()),
            }
        }
        // What is outside reaches in, as a supervisor must.
        for attempt in attempts.iter().filter(|it| SIGNALS.contains(it)) {
            assert_eq!(tries(&mut nobodys, &own.of(attempt)), "ok", "{attempt}");
        }
    }
}

/// By its file an agent has no floor of `run`: the LSM hooks hold it, and where there are none the doctor says so, and who
/// requires it is refused.
#[test]
fn without_run_the_hooks_hold_or_the_doctor_says_that_nothing_does() {
    let has_lsm = Standings::of_this_kernel().has_lsm();
    let site = Site::new();
    let program = own_python(&site);
    let own_words = words(&program.display().to_string());
    let attempts = User::ALL.map(|user| (user, of_this_kernel(user)));
    let identify = format!("[[identify]]\nexe = \"{}\"\n", program.display());
    let bundle = |serial| Bundle::new(serial).agent("probe", &identify);
    let guard = Guard::start(&site, &bundle(1));
    for (user, attempts) in attempts {
        let mut nobodys = alone(&words(PYTHON)).as_user(user).spawn();
        let target = Target::child_of(&mut nobodys);
        let mut agent = alone(&own_words).as_user(user).spawn();
        let own = Target::child_of(&mut agent);
        let mut before = guard.audit().len();
        for attempt in &attempts {
            let said = tries(&mut agent, &target.of(attempt));
            let records = guard.audit().split_off(before);
            before += records.len();
            if !has_lsm {
                assert_eq!((&*said, records.len()), ("ok", 0), "{attempt}");
                continue;
            }
            let is_roots = user == User::Root && BY_CAPABILITY.contains(attempt);
            if is_roots && said == "ok" {
                continue;
            }
            assert!(is_refused(&said), "{attempt}, as {}: {said}", user.name());
            // The kernel may ask more than once.
            let process = format!("process/{}", target.tgid);
            let is_right = |it: &Record| it.agent() == "probe" && it.resource() == process;
            assert!(
                !records.is_empty() && records.iter().all(is_right),
                "{attempt}: {records:#?}"
            );
        }
        for attempt in &attempts {
            assert_eq!(
                tries(&mut agent, &own.of(attempt)),
                "ok",
                "{attempt}, its own"
            );
        }
    }
    let report = guard.cli(["doctor", "--json"]).ok().json();
    for id in ["process-memory", "signals"] {
        let row = row(&report, id);
        if has_lsm {
            assert_eq!(row["holds"], "enforced", "{row}");
            continue;
        }
        assert_eq!(row["holds"], "open", "{row}");
        assert!(
            row["why"].as_str().is_some_and(|why| why.contains("probe")),
            "{row}"
        );
        let next = site.path("next");
        let requires =
            format!("name = \"test\"\nserial = 2\nmode = \"enforce\"\nrequire = [\"{id}\"]\n");
        bundle(2).file("bundle.toml", requires).write(&next);
        let refused = guard.cli(["policy", "apply", &next.display().to_string()]);
        assert_eq!(refused.code(), 3, "{refused:#?}");
        assert!(refused.stderr.contains(&format!("`{id}`")), "{refused:#?}");
    }
}

/// Where every user may execute it.
fn own_python(site: &Site) -> PathBuf {
    let copy = site.path("agents-python");
    std::fs::copy(std::fs::canonicalize(PYTHON).expect("there"), &copy).expect("copied");
    open_to_all(site);
    copy
}

fn open_to_all(site: &Site) {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(site.dir(), mode).expect("set");
}

fn row<'r>(report: &'r Value, id: &str) -> &'r Value {
    let rows = report["guarantees"].as_array().expect("rows");
    rows.iter().find(|row| row["id"] == id).expect("a row")
}

/// What a shell does with its jobs, below `run`.
#[test]
fn below_run_jobs_groups_and_timeouts_work() {
    let site = Site::new();
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", ""));
    for user in User::ALL {
        let script =
            "set -m; sleep 60 & kill -STOP %1; kill -CONT %1; kill %1; wait %1; echo \"job $?\"
timeout 0.2 sleep 60; echo \"timeout $?\"
sh -c 'kill -TERM 0'; echo \"group $?\"
cat /proc/self/environ > /dev/null && nice true && echo own";
        let words = ["/bin/bash", "-c", script].map(str::to_owned);
        let ran = under(&guard.agent("probe").user(user.name()), &words).run();
        assert_eq!(
            ran.stdout, "job 143\ntimeout 124\ngroup 143\nown",
            "{ran:#?}"
        );
    }
}
