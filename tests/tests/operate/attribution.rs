//! Which process is which agent: by `run`, by executable, user and cgroup, by adoption at start, and by nothing that a
//! process does to itself.

use std::fs;
use std::path::{Path, PathBuf};

use agentguard_tests::bundle::reach;
use agentguard_tests::client::{Client, Subject, dialer};
use agentguard_tests::tools::{CLIENT_PATH, python, script};
use agentguard_tests::{Bundle, Cgroup, Guard, Nginx, Running, Site};

#[test]
fn lineage_holds_whatever_a_process_does_to_itself() {
    let (site, origin) = world();
    let guard = Guard::start(&site, &bundle(&origin, ""));
    let mut agent = dialer(&guard.agent("probe"));
    let get = format!("get {}", origin.url("/v2/x"));
    assert_eq!(agent.tries(&get), "ok 403");
    assert!(
        agent.tries("fork").starts_with("ok"),
        "setsid and double fork"
    );
    assert_eq!(agent.tries(&get), "ok 403");

    let cgroup = Cgroup::new();
    fs::write(
        cgroup.0.join("cgroup.procs"),
        agent.tries("pid").trim_start_matches("ok "),
    )
    .expect("moved");
    assert_eq!(
        agent.tries(&get),
        "ok 403",
        "after a move to another cgroup"
    );

    // A thread that outlives its leader.
    let code = format!(
        r#"
import threading, ctypes, urllib.request, urllib.error
def call():
    with open(f"/proc/{{os.getpid()}}/stat") as stat: pass
    try:
        urllib.request.urlopen("{}"); print("status 200", flush=True)
    except urllib.error.HTTPError as error: print("status", error.code, flush=True)
    os._exit(0)
threading.Thread(target=call).start()
ctypes.CDLL(None).syscall(60, 0)
"#,
        origin.url("/v2/thread")
    );
    let ran = guard.agent("probe").python(&code).run();
    assert!(ran.stdout.contains("status 403"), "{ran:#?}");
}

#[test]
fn another_user_and_another_program_stay_the_agent() {
    let (site, origin) = world();
    let policy = format!(
        "privileges = \"keep\"\n\n{}",
        reach("origin.test", origin.port, &["GET /v1/**"])
    );
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let ran = guard
        .agent("probe")
        .client("setpriv".as_ref())
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "sh",
            "-c",
        ])
        .arg(format!(
            "exec curl --silent --output /dev/null --write-out '%{{http_code}}' {}",
            origin.url("/v2/x")
        ))
        .run();
    assert_eq!(ran.stdout, "403", "{ran:#?}");
}

#[test]
fn a_program_is_an_agent_by_its_path() {
    let (site, origin) = world();
    let program = own_python(&site, "bin/agent-one");
    let identify = format!(
        "[[identify]]\nexe = \"{}/bin/agent-*\"\n",
        site.dir().display()
    );
    let guard = Guard::start(&site, &bundle(&origin, &identify));
    assert_eq!(try_once(plain(&site, &program), &origin), "ok 403");
    let other = own_python(&site, "bin/other");
    assert_eq!(
        try_once(plain(&site, &other), &origin),
        "ok 200",
        "the same calls from another path"
    );
    let records = guard.requests();
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!(
        records[0].text("/process/exe"),
        program.display().to_string()
    );
}

#[test]
fn all_keys_of_a_block_must_match() {
    let (site, origin) = world();
    let program = own_python(&site, "agent");
    let identify = format!(
        "[[identify]]\nexe = \"{}\"\nuser = \"nobody\"\n",
        program.display()
    );
    // Nothing to reach, so that a connect tells.
    let _guard = Guard::start(&site, &Bundle::new(1).agent("probe", &identify));
    assert_eq!(
        try_once(plain(&site, &program), &origin),
        "ok 200",
        "root's"
    );
    let nobody = Client::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program);
    fs::set_permissions(
        site.dir(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .expect("set");
    // Its own libraries may be out of nobody's reach; a connect is enough.
    let ran = nobody
        .env("PATH", CLIENT_PATH)
        .args(["-S", "-c", &connect_code(origin.port_plain)])
        .run();
    assert_eq!(ran.stdout, "EPERM", "{ran:#?}");
}

#[test]
fn a_cgroup_makes_an_agent() {
    let (site, origin) = world();
    let cgroup = Cgroup::new();
    let identify = format!("[[identify]]\ncgroup = \"{}/**\"\n", cgroup.name());
    let guard = Guard::start(&site, &bundle(&origin, &identify));
    let inner = Cgroup(cgroup.0.join("late"));
    fs::create_dir(&inner.0).expect("made after the start");
    let mut moved = dialer(&site);
    let get = format!("get {}", origin.plain_url("/v2/x"));
    assert_eq!(moved.tries(&get), "ok 200");
    fs::write(inner.0.join("cgroup.procs"), moved.tgid.to_string()).expect("moved");
    assert_ne!(
        moved.tries(&format!("get {}", origin.plain_url("/v3/x"))),
        "ok 200",
        "moved into the agent's cgroup"
    );
    assert!(origin.hits_below("/v3/").is_empty());
    assert!(guard.audit().iter().any(|record| record.agent() == "probe"));
    drop(moved);
}

#[test]
fn running_processes_are_adopted_at_start() {
    let (site, origin) = world();
    let program = own_python(&site, "agent");
    let identify = format!("[[identify]]\nexe = \"{}\"\n", program.display());
    let mut early = start(plain(&site, &program).env("SSL_CERT_FILE", site.ca().certificate()));
    let get = format!("tcp 127.0.0.1 {}", origin.port_plain);
    assert!(tries(&mut early, &get).starts_with("ok"));
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &identify));
    assert_eq!(tries(&mut early, &get), "error EPERM");
    let child = tries(&mut early, "fork");
    assert!(child.starts_with("ok"));
    assert_eq!(tries(&mut early, &get), "error EPERM", "its children too");
    let denied = guard
        .audit()
        .into_iter()
        .filter(|record| record.action() == "connect")
        .count();
    assert_eq!(denied, 2);
}

#[test]
fn two_agents_that_match_one_process_make_it_neither() {
    let (site, origin) = world();
    let program = own_python(&site, "agent");
    let policy = reach("origin.test", origin.port_plain, &["GET /**"]);
    let by_path = format!("{policy}[[identify]]\nexe = \"{}\"\n", program.display());
    let by_glob = format!(
        "{policy}[[identify]]\nexe = \"{}/*\"\n",
        site.dir().display()
    );
    let guard = Guard::start(
        &site,
        &Bundle::new(1).agent("one", &by_path).agent("two", &by_glob),
    );
    let answer = try_once(plain(&site, &program), &origin);
    assert!(answer.starts_with("error"), "it may do nothing: {answer}");
    assert!(origin.hits().is_empty());
    let told = guard.audit().into_iter().any(|record| {
        record.outcome() == "deny"
            && record
                .0
                .to_string()
                .contains(&program.display().to_string())
    });
    assert!(told, "a record names the process: {:#?}", guard.audit());
}

fn world() -> (Site, Nginx) {
    let site = Site::new();
    let origin = Nginx::start(&site);
    (site, origin)
}

fn bundle(origin: &Nginx, identify: &str) -> Bundle {
    let routes = ["GET /v1/**"];
    let policy = reach("origin.test", origin.port, &routes)
        + &reach("origin.test", origin.port_plain, &routes);
    Bundle::new(1).agent("probe", &(policy + identify))
}

/// Python under a name of its own: a copy, not a link.
fn own_python(site: &Site, name: &str) -> PathBuf {
    let real = fs::canonicalize(python()).expect("there");
    let copy = site.path(name);
    fs::create_dir_all(copy.parent().expect("below the site")).expect("a folder");
    fs::copy(real, &copy).expect("copied");
    copy
}

/// The program, in the control's surroundings.
fn plain(site: &Site, program: &Path) -> Client {
    site.client(program).arg("-S").arg(script("dialer.py"))
}

fn start(client: Client) -> Running {
    client.spawn()
}

fn tries(running: &mut Running, what: &str) -> String {
    running.say(what);
    running
        .line(|line| line.starts_with("ok") || line.starts_with("error"))
        .trim()
        .to_owned()
}

fn try_once(client: Client, origin: &Nginx) -> String {
    tries(
        &mut start(client),
        &format!("get {}", origin.plain_url("/v2/x")),
    )
}

fn connect_code(port: u16) -> String {
    format!(
        "import socket, errno\ntry:\n    socket.create_connection((\"127.0.0.1\", {port}), 10); print(\"connected\")\n\
         except OSError as error:\n    print(errno.errorcode[error.errno])"
    )
}
