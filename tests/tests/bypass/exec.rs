//! Ways to run a program that no exec rule allows. Each works without AgentGuard; with it, as root and as another user, none
//! does, and each leaves one record.

use std::fs;
use std::path::Path;

use agentguard_tests::client::Subject;
use agentguard_tests::tools::python;
use agentguard_tests::{Bundle, Guard, Record, Site};

/// Without this, `run` drops what changing the user takes.
const KEEP: &str = "privileges = \"keep\"\n\n";

/// Tries each way in a child of its own and says what came of it and which file it was that was executed.
const WAYS: &str = r##"
import ctypes, os, shutil, sys, tempfile, threading
uid, tool, shell, env, loader = int(sys.argv[1]), *sys.argv[2:]
if uid: os.setgroups([]); os.setgid(uid); os.setuid(uid)
folder = tempfile.mkdtemp(prefix="agentguard-test-", dir="/tmp")
image = open(tool, "rb").read()
def file(name, content=image):
    path = os.path.join(folder, name); os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as to: to.write(content)
    os.chmod(path, 0o700); return path
def says(path): os.execv(path, ["echo", "RAN"])
def symlink():
    path = os.path.join(folder, "python3"); os.symlink(tool, path); says(path)
def rename():
    path = file("before"); to = os.path.join(folder, "renamed"); os.rename(path, to); says(to)
def hard_link():
    path = file("linked"); to = os.path.join(folder, "link"); os.link(path, to); says(to)
def execute(fd): os.execve(fd, ["echo", "RAN"], {})
def memory():
    fd = os.memfd_create("python3", 0); os.write(fd, image); execute(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY))
def deleted():
    path = file("deleted"); fd = os.open(path, os.O_RDONLY); os.unlink(path); execute(fd)
def spawned():
    os.waitpid(os.posix_spawn(tool, ["echo", "RAN"], {}), 0)
def vforked():
    libc = ctypes.CDLL(None); libc.system((tool + " RAN").encode())
def from_a_thread():
    thread = threading.Thread(target=says, args=(tool,)); thread.start(); thread.join()
at = lambda name: os.path.join(folder, name)
ways = [
    ("plain", lambda: says(tool), tool),
    ("symlink with an allowed name", symlink, tool),
    ("copy with an allowed name", lambda: says(file("bin/python3")), at("bin/python3")),
    ("copy that looks like an allowed path", lambda: says(file("usr/bin/env")), at("usr/bin/env")),
    ("rename", rename, at("renamed")),
    ("hard link", hard_link, at("link")),
    ("/proc/self/root", lambda: says("/proc/self/root" + tool), tool),
    ("the loader", lambda: os.execv(loader, ["ld.so", tool, "RAN"]), loader),
    ("another program's name as argv[0]", lambda: os.execv(tool, [sys.executable, "RAN"]), tool),
    ("env", lambda: os.execv(env, ["env", tool, "RAN"]), tool),
    ("sh -c", lambda: os.execv(shell, ["sh", "-c", tool + " RAN; true"]), tool),
    ("interpreter of a script", lambda: says(file("script", f"#!{tool} RAN\n".encode())), None),
    ("memfd", memory, ""),
    ("deleted file", deleted, ""),
    ("execveat of a descriptor", lambda: execute(os.open(tool, os.O_RDONLY)), tool),
    ("posix_spawn", spawned, tool),
    ("vfork", vforked, tool),
    ("exec by a thread", from_a_thread, tool),
]
try:
    for name, way, resource in ways:
        reading, writing = os.pipe(); child = os.fork()
        if child == 0:
            os.dup2(writing, 1); os.dup2(os.open("/dev/null", os.O_WRONLY), 2)
            try: way()
            finally: os._exit(0)
        os.close(writing); said = b""
        while more := os.read(reading, 4096): said += more
        os.close(reading); os.waitpid(child, 0)
        outcome = "ran" if b"RAN" in said else "refused"
        print(name, outcome, {None: "script", "": "?"}.get(resource, resource), sep="\t", flush=True)
finally: shutil.rmtree(folder)
"##;

fn real(path: &str) -> String {
    let real = fs::canonicalize(path).expect("it is installed");
    real.to_str().expect("plain").to_owned()
}

/// Name, outcome and executed file of each way.
fn tries(subject: &impl Subject, uid: u32) -> Vec<[String; 3]> {
    let said = subject
        .client(&python())
        .args(["-c", WAYS, &uid.to_string()])
        .args(
            [
                "/usr/bin/echo",
                "/bin/sh",
                "/usr/bin/env",
                "/lib64/ld-linux-x86-64.so.2",
            ]
            .map(real),
        )
        .run()
        .ok()
        .stdout;
    let line = |line: &str| -> [String; 3] {
        let mut fields = line.split('\t').map(str::to_owned);
        std::array::from_fn(|_| fields.next().expect("three fields"))
    };
    said.lines().map(line).collect()
}

/// An agent that may run Python, the shell and `env`.
fn exec(more: &str) -> String {
    let allow = [python().to_str().expect("plain"), "/bin/sh", "/usr/bin/env"].map(real);
    format!("{KEEP}[exec]\ndefault = \"deny\"\nallow = {allow:?}\n{more}")
}

fn execs(guard: &Guard<'_>) -> Vec<Record> {
    let records = guard.audit().into_iter();
    records.filter(|record| record.action() == "exec").collect()
}

#[test]
fn no_way_around() {
    let site = Site::new();
    let off = tries(&site, 0);
    assert!(off.len() > 15);
    for [name, outcome, _] in &off {
        assert_eq!(outcome, "ran", "without AgentGuard: {name}");
    }
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &exec("")));
    let lsm = agentguard_kernel::lsm().is_ok();
    for uid in [0, 1000] {
        let before = execs(&guard).len();
        let on = tries(&guard.agent("probe"), uid);
        let records = execs(&guard).split_off(before);
        let refused: Vec<_> = records.iter().filter(|r| r.outcome() == "deny").collect();
        assert_eq!(refused.len(), on.len(), "uid {uid}: {refused:#?}");
        for ([name, outcome, file], record) in on.iter().zip(refused) {
            assert_eq!(outcome, "refused", "{name}, uid {uid}");
            assert_eq!(record.reason(), "policy-denied", "{name}: {record:?}");
            assert_eq!(
                record.number("/process/uid"),
                u64::from(uid),
                "{name}: {record:?}"
            );
            match &**file {
                // A file without a name has whatever name it had.
                "?" => {}
                // Where scripts are judged themselves it is the script's path.
                "script" if lsm => assert!(record.resource().ends_with("/script"), "{record:?}"),
                "script" => assert_eq!(record.resource(), real("/usr/bin/echo"), "{record:?}"),
                file => assert_eq!(record.resource(), file, "{name}"),
            }
        }
        let allowed = |path: &str| {
            let path = real(path);
            let mut found = records.iter().filter(|r| r.outcome() == "allow");
            found.any(|record| record.resource() == path)
        };
        assert!(
            allowed("/usr/bin/env") && allowed("/bin/sh"),
            "{records:#?}"
        );
    }
}

/// Where there is no LSM, all that is seen of a script is its last interpreter.
#[test]
fn a_script_of_an_allowed_interpreter() {
    let site = Site::new();
    let script = site.path("script");
    fs::write(&script, "#!/bin/sh\necho RAN\n").expect("written");
    make_executable(&script);
    let code = format!("import os; os.execv({:?}, ['script'])", script);
    let run = |subject: &dyn Fn(&Path) -> agentguard_tests::client::Client| {
        subject(&python()).args(["-c", &code]).run()
    };
    assert_eq!(run(&|program| site.client(program)).ok().stdout, "RAN");
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &exec("")));
    let ran = run(&|program| guard.agent("probe").client(program));
    let records = execs(&guard);
    let last = records.last().expect("an exec");
    if agentguard_kernel::lsm().is_ok() {
        assert_eq!(ran.stdout, "", "{ran:#?}");
        assert_eq!(
            (last.outcome(), Path::new(last.resource())),
            ("deny", &*script)
        );
    } else {
        assert_eq!(ran.stdout, "RAN", "{ran:#?}");
        assert_eq!(
            (last.outcome(), last.resource()),
            ("allow", &*real("/bin/sh"))
        );
    }
}

fn make_executable(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("set");
}

#[test]
fn a_record_says_what_was_run_where_and_by_whom() {
    let site = Site::new();
    let bundle = Bundle::new(1).agent("probe", &exec("arguments = \"record\"\n"));
    let guard = Guard::start(&site, &bundle);
    let env = real("/usr/bin/env");
    guard.agent("probe").python_code(&format!(
        "os.chdir('/usr'); os.execv({env:?}, ['env', 'a b', '', 'K=AKIA0123456789ABCDEF'])"
    ));
    let records = execs(&guard);
    let record = records.iter().find(|record| record.resource() == env);
    let record = record.expect("of env");
    assert_eq!((record.agent(), record.outcome()), ("probe", "allow"));
    assert_eq!(record.text("/process/exe"), env);
    assert_eq!(record.text("/process/cwd"), "/usr");
    let arguments = record.0.pointer("/process/arguments").expect("recorded");
    assert_eq!(
        *arguments,
        serde_json::json!(["env", "a b", "", "K=AKIA[private]"])
    );
    assert_eq!(record.number("/process/arguments_bytes"), 32);
    let parents = record.0.pointer("/process/parents").expect("a chain");
    assert!(
        parents
            .as_array()
            .is_some_and(|parents| !parents.is_empty())
    );
}

#[test]
fn arguments_leave_no_trace_unless_a_bundle_says_so() {
    let site = Site::new();
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &exec("")));
    let env = real("/usr/bin/env");
    guard
        .agent("probe")
        .python_code(&format!("os.execv({env:?}, ['env', 'X=hunter2'])"));
    let records = execs(&guard);
    let record = records.iter().find(|record| record.resource() == env);
    let record = record.expect("of env");
    assert!(
        record.0.pointer("/process/arguments").is_none(),
        "{record:?}"
    );
    assert_eq!(record.number("/process/arguments_bytes"), 14);
    for file in fs::read_dir(site.audit_dir()).expect("there") {
        let text = fs::read(file.expect("there").path()).unwrap_or_default();
        assert!(!text.windows(7).any(|window| window == b"hunter2"));
    }
}

#[test]
fn a_new_bundle_holds_for_the_next_exec() {
    let site = Site::new();
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &exec("")));
    let code = "import subprocess\nfor line in sys.stdin:
    try: print(subprocess.run([line.strip(), 'RAN'], stdout=subprocess.PIPE).stdout, flush=True)
    except OSError as error: print(b'', flush=True)";
    let mut agent = guard.agent("probe").python(code).spawn();
    agent.say("/usr/bin/echo");
    assert_eq!(agent.line(|_| true), "b''");
    let more = exec("").replace(
        "allow = [",
        &format!("allow = [{:?}, ", real("/usr/bin/echo")),
    );
    let apply = |serial, body: &str| {
        let folder = site.path("next");
        Bundle::new(serial).agent("probe", body).write(&folder);
        let folder = folder.to_str().expect("plain");
        guard.cli(["policy", "apply", folder]).ok();
    };
    apply(2, &more);
    agent.say("/usr/bin/echo");
    assert_eq!(agent.line(|_| true), "b'RAN\\n'");
    // An agent that the bundle does not have any more goes on, and runs nothing further.
    let folder = site.path("next");
    Bundle::new(3).agent("other", "").write(&folder);
    guard
        .cli(["policy", "apply", folder.to_str().expect("plain")])
        .ok();
    agent.say("/usr/bin/echo");
    assert_eq!(agent.line(|_| true), "b''");
    agent.close_stdin();
    agent.finish().ok();
}
