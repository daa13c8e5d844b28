//! What `agentguard run` gives its command: trust in the guard's CA everywhere clients look, and nothing to climb with.

use std::process::Stdio;

use agentguard_tests::bundle::reach;
use agentguard_tests::client::Subject;
use agentguard_tests::tools::agentguard;
use agentguard_tests::{Bundle, Guard, Nginx, Record, Site};

#[test]
fn no_privileges_and_a_session_of_its_own() {
    let site = Site::new();
    let guard = Guard::start(&site, &bundle(443));
    let status = guard
        .agent("probe")
        .client("cat".as_ref())
        .arg("/proc/self/status")
        .run()
        .ok()
        .stdout;
    let value = |key: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .expect("it is there");
        line.trim_start_matches(':').trim().to_owned()
    };
    assert_eq!(value("NoNewPrivs"), "1");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(value(set).trim_start_matches('0'), "", "{set}");
    }
    let ran = guard
        .agent("probe")
        .python_code("print(os.getsid(0) == os.getpid())")
        .ok();
    assert_eq!(ran.stdout, "True");
}

#[test]
fn the_forwarders_own_account_is_nobody_to_run_as() {
    let site = Site::new();
    let guard = Guard::start(&site, &bundle(443));
    for name in ["nobody", "65534"] {
        let ran = guard.cli(["run", "--agent", "probe", "--user", name, "--", "true"]);
        assert_eq!(ran.code(), 125, "{ran:#?}");
        let said = format!("--user {name}: the forwarder runs as this user");
        assert!(ran.stderr.contains(&said), "{ran:#?}");
    }
}

#[test]
fn keep_keeps_them() {
    let site = Site::new();
    let guard = Guard::start(
        &site,
        &Bundle::new(1).agent("probe", "privileges = \"keep\"\n"),
    );
    let status = guard
        .agent("probe")
        .client("cat".as_ref())
        .arg("/proc/self/status")
        .run()
        .ok()
        .stdout;
    assert!(status.contains("NoNewPrivs:\t0"), "{status}");
    let effective = status
        .lines()
        .find(|line| line.starts_with("CapEff"))
        .expect("there");
    assert_ne!(
        effective.trim_end_matches(['0', '\t']),
        "CapEff:",
        "{status}"
    );
}

/// As in a container whose table of users has nobody in it.
#[test]
fn a_user_may_be_a_number_that_no_account_has() {
    const NUMBER: &str = "2000000007";
    let site = Site::new();
    let guard = Guard::start(&site, &bundle(443));
    let ran = guard
        .agent("probe")
        .user(NUMBER)
        .client("/usr/bin/python3".as_ref())
        .args([
            "-Ic",
            "import os; print(*os.getresuid(), *os.getresgid(), os.getgroups())",
        ])
        .run()
        .ok();
    let expected = [NUMBER; 6].join(" ");
    assert_eq!(ran.stdout, format!("{expected} [{NUMBER}]"));
    for unknown in ["no-such-user-here", "-1", "4294967295"] {
        let user = format!("--user={unknown}");
        let ran = guard.cli(["run", "--agent", "probe", &user, "--", "true"]);
        assert_eq!(ran.code(), 125, "{ran:#?}");
        assert!(ran.stderr.contains("no such user"), "{ran:#?}");
    }
}

#[test]
fn no_descriptor_comes_along() {
    use std::os::fd::AsRawFd;
    let site = Site::new();
    let _guard = Guard::start(&site, &bundle(443));
    let file = std::fs::File::open("/etc/hostname").expect("there");
    nix::fcntl::fcntl(
        &file,
        nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()),
    )
    .expect("inheritable");
    assert!(file.as_raw_fd() > 2);
    let output = std::process::Command::new(agentguard())
        .args(["run", "--agent", "probe", "--config"])
        .arg(site.config())
        .args(["--", "sh", "-c", "echo /proc/self/fd/*"])
        .stdin(Stdio::null())
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let open: Vec<u32> = text
        .split_whitespace()
        .filter_map(|path| path.rsplit('/').next()?.parse().ok())
        // The shell's own, for reading the folder.
        .filter(|&number| number > 2)
        .collect();
    assert!(open.len() <= 1, "{text}");
}

#[test]
fn clients_find_the_ca_where_they_look() {
    let site = Site::new();
    let guard = Guard::start(&site, &bundle(443));
    let variables = guard
        .agent("probe")
        .client("env".as_ref())
        .run()
        .ok()
        .stdout;
    let ca = guard.cli(["ca", "show"]).ok();
    assert!(!ca.stdout.is_empty());
    for name in [
        "SSL_CERT_FILE",
        "CURL_CA_BUNDLE",
        "REQUESTS_CA_BUNDLE",
        "GIT_SSL_CAINFO",
        "NODE_EXTRA_CA_CERTS",
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
        "AWS_CA_BUNDLE",
        "PIP_CERT",
        "CARGO_HTTP_CAINFO",
        "DENO_CERT",
        "npm_config_cafile",
        "WGETRC",
    ] {
        let path = variables
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .unwrap_or_else(|| panic!("no {name} in {variables}"));
        let text =
            std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{name}={path}: {error}"));
        let certificates = text.matches("BEGIN CERTIFICATE").count();
        assert!(
            certificates > 1 || name == "WGETRC",
            "{name} is combined: {certificates}"
        );
    }
    // And the system's own place, in a mount namespace of its own.
    let place = "/etc/ssl/certs/ca-certificates.crt";
    let inside = guard
        .agent("probe")
        .client("cat".as_ref())
        .arg(place)
        .run()
        .ok()
        .stdout;
    let outside = std::fs::read_to_string(place).expect("Debian's");
    assert!(
        inside.matches("BEGIN CERTIFICATE").count() > outside.matches("BEGIN CERTIFICATE").count()
    );
}

#[test]
fn a_client_that_reads_only_the_system_store_works() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let guard = Guard::start(&site, &bundle(origin.port));
    // `env -i` again, inside: no variable is left.
    let ran = guard
        .agent("probe")
        .client("env".as_ref())
        .args([
            "-i",
            "/usr/bin/wget",
            "--quiet",
            "--output-document=-",
            &origin.url("/v1/x"),
        ])
        .run()
        .ok();
    assert_eq!(ran.stdout.trim(), "GET /v1/x");
}

#[test]
fn input_and_output_pass() {
    let site = Site::new();
    let guard = Guard::start(&site, &bundle(443));
    let ran = guard
        .agent("probe")
        .client("sh".as_ref())
        .args(["-c", "cat; echo error >&2"])
        .input("hello")
        .run()
        .ok();
    assert_eq!(
        (ran.stdout.as_str(), ran.stderr.as_str()),
        ("hello", "error")
    );
}

#[test]
fn what_it_leaves_running_stays_the_agent() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let guard = Guard::start(&site, &bundle(origin.port));
    let out = site.path("left");
    let script = format!(
        "(read line; curl --silent --output /dev/null --write-out '%{{http_code}}' {url} > {out}.new; mv {out}.new {out}) \
         > /dev/null 2>&1 < {go} &",
        url = origin.url("/v2/x"),
        out = out.display(),
        go = site.path("go").display(),
    );
    nix::unistd::mkfifo(&site.path("go"), nix::sys::stat::Mode::S_IRWXU).expect("made");
    guard
        .agent("probe")
        .client("sh".as_ref())
        .args(["-c", &script])
        .run()
        .ok();
    std::fs::write(site.path("go"), "go\n").expect("it reads");
    let deadline = std::time::Instant::now() + agentguard_tests::tools::PATIENCE;
    while !out.exists() {
        assert!(
            std::time::Instant::now() < deadline,
            "it has ended with its starter"
        );
        std::thread::yield_now();
    }
    assert_eq!(std::fs::read_to_string(&out).expect("written"), "403");
}

fn bundle(port: u16) -> Bundle {
    Bundle::new(1).agent("probe", &reach("origin.test", port, &["GET /v1/**"]))
}

#[test]
fn a_command_that_an_exec_rule_kills_is_told_so() {
    let site = Site::new();
    let policy = reach("origin.test", 443, &["GET /**"])
        + "[exec]\ndefault = \"allow\"\ndeny = [\"/usr/bin/id\"]\n";
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let agent = guard.agent("probe");
    let itself = agent.client("/usr/bin/id".as_ref()).run();
    let below = agent
        .client("sh".as_ref())
        .args(["-c", "/usr/bin/id; exit $?"])
        .run();
    if agentguard_kernel::lsm().is_ok() {
        assert_eq!((itself.code(), below.code()), (126, 126));
        return;
    }
    for ran in [itself, below] {
        assert_eq!(ran.code(), 137, "{ran:#?}");
        let refused = guard.audit();
        let mut refused = refused.iter().filter(|it| it.action() == "exec");
        let is_told = |record: &Record| {
            let line = format!(
                "agentguard: `/usr/bin/id` was killed: `[exec]` does not let probe execute it, do not retry \
                 (agentguard audit show {})",
                record.text("/decision")
            );
            ran.stderr.lines().any(|it| it == line)
        };
        assert!(refused.any(is_told), "{ran:#?}");
    }
    // Who is killed for another reason is not told so.
    let other = agent.client("sh".as_ref()).args(["-c", "kill -9 $$"]).run();
    assert_eq!((other.code(), &*other.stderr), (137, ""));
}
