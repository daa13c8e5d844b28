//! What a process can do to itself to be somebody else's: it stays the agent's.

use std::time::{Duration, Instant};

use agentguard_tests::attempt::{
    AGENT, Attempt, KEEP, Programs, User, alone, processes, prove, under,
};
use agentguard_tests::field::Field;
use agentguard_tests::process::memory_kib;
use agentguard_tests::{Bundle, Guard, Site};

/// A grandchild's work, and the errno it tells by a pipe that it alone still has.
const DETACHED: &str = "reading, writing = os.pipe()
def detached(work):
    try: work(); result = 0
    except OSError as error: result = error.errno or errno.ETIMEDOUT
    os.write(writing, struct.pack('i', result)); os._exit(0)
def heard():
    os.close(writing); result = struct.unpack('i', os.read(reading, 4))[0]
    if result: raise OSError(result, 'far away')
";

#[test]
fn families_of_processes() {
    let detached = |name: &str, code: &str| Attempt::python(name, format!("{DETACHED}{code}"));
    prove(
        &[
            Attempt::python("fork", "in_child(tcp)"),
            Attempt::python("a new session", "in_child(lambda: (os.setsid(), tcp()))"),
            detached(
                "double fork",
                "if os.fork() == 0:
    os.setsid()
    if os.fork(): os._exit(0)
    detached(tcp)
os.wait(); heard()",
            ),
            detached(
                "a daemon without its starter's descriptors",
                "if os.fork() == 0:
    os.setsid()
    if os.fork(): os._exit(0)
    os.chdir('/'); os.umask(0)
    for number in range(3): os.close(number)
    detached(tcp)
os.wait(); heard()",
            ),
            // 56 is clone, 0x8000 CLONE_PARENT: the child is its starter's sibling.
            detached(
                "a child of its parent's parent",
                "if checked(LIBC.syscall(56, 0x8000, 0, 0, 0, 0)) == 0: detached(tcp)
heard()",
            ),
            Attempt::python(
                "another program",
                "code = \"import socket, sys\\ntry: socket.create_connection(('127.0.0.1', int(sys.argv[1])))\\nexcept OSError as e: sys.exit(e.errno)\"
pid = os.posix_spawn('/usr/bin/python3', ['another', '-I', '-S', '-c', code, str(PORT)], {})
from_child(os.waitpid(pid, 0)[1])",
            ),
            Attempt::python(
                "another name and title",
                "LIBC.prctl(15, b'kworker/0:1', 0, 0, 0); tcp()",
            ),
            Attempt::python(
                "no longer dumpable",
                "checked(LIBC.prctl(4, 0, 0, 0, 0)); tcp()",
            ),
        ],
        |_| Bundle::new(1).agent(AGENT, KEEP),
    );
}

#[test]
fn threads() {
    prove(
        &[
            Attempt::python(
                "a thread",
                "import threading
said = []
def work():
    try: tcp()
    except OSError as error: said.append(error)
thread = threading.Thread(target=work); thread.start(); thread.join()
if said: raise said[0]",
            ),
            // 60 is exit, of the calling thread alone.
            Attempt::python(
                "a thread that outlives its leader",
                "import threading
leader = os.getpid()
def last():
    while open(f'/proc/self/task/{leader}/stat').read().rsplit(') ')[1][0] != 'Z': time.sleep(0.001)
    try: tcp(); said = 'through'
    except OSError as error: said = 'refused ' + errno.errorcode[error.errno]
    print(said, flush=True); os._exit(0)
threading.Thread(target=last).start()
LIBC.syscall(60, 0)",
            ),
            Attempt::python(
                "an exec by another thread",
                "import threading
code = '''import errno, socket, sys
try: socket.create_connection(('127.0.0.1', int(sys.argv[1]))); print('through')
except OSError as e: print('refused', errno.errorcode[e.errno])'''
threading.Thread(target=lambda: os.execv('/usr/bin/python3', ['python3', '-I', '-S', '-c', code, str(PORT)])).start()
signal.pause()",
            ),
        ],
        |_| Bundle::new(1).agent(AGENT, KEEP),
    );
}

#[test]
fn users_groups_and_namespaces() {
    prove(
        &[
            Attempt::python(
                "another user",
                "os.setgroups([]); os.setgid(65534); os.setuid(65534); tcp()",
            )
            .root_only(),
            Attempt::c("a set-user-id program", "dial", &["0"]).set_user_id(),
            Attempt::python(
                "another cgroup",
                "root = next(line.split()[1] for line in open('/proc/mounts') if line.split()[2] == 'cgroup2')
place = '/proc/self/cgroup'
before = next(line.strip().split(':', 2)[2] for line in open(place) if line.startswith('0:'))
other = f'{root}/agentguard-attempt-{os.getpid()}'
def move(to):
    with open(f'{to}/cgroup.procs', 'w') as procs: procs.write(str(os.getpid()))
os.mkdir(other)
try: move(other); tcp()
finally: move(root + before); os.rmdir(other)",
            )
            .root_only(),
            // CLONE_NEWPID, CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWCGROUP, CLONE_NEWUSER.
            Attempt::python(
                "a process id namespace",
                "checked(LIBC.unshare(0x20000000)); in_child(tcp)",
            )
            .root_only(),
            Attempt::python(
                "mount, host name and cgroup namespaces",
                "checked(LIBC.unshare(0x00020000 | 0x04000000 | 0x02000000)); tcp()",
            )
            .root_only(),
            Attempt::python(
                "a user namespace",
                "checked(LIBC.unshare(0x10000000)); tcp()",
            ),
        ],
        |_| Bundle::new(1).agent(AGENT, KEEP),
    );
}

/// The ring, its polling thread and the socket are older than the label.
#[test]
fn a_ring_made_before_the_hooks() {
    let site = Site::new();
    let mut field = Field::new();
    let port = field.port();
    let programs = Programs::new();
    let exe = programs.c("ring");
    for user in User::ALL {
        let early = || {
            let words = [
                exe.display().to_string(),
                port.to_string(),
                "waits".to_owned(),
            ];
            let mut ring = alone(&words).as_user(user).spawn();
            ring.line(|line| line == "ready");
            ring
        };
        let mut ring = early();
        field.seen();
        ring.say("go");
        assert_eq!(ring.line(is_answer), "through", "without AgentGuard");
        assert!(field.seen().anything);

        let mut ring = early();
        let identify = format!("{KEEP}[[identify]]\nexe = \"{}\"\n", exe.display());
        let guard = Guard::start(&site, &Bundle::new(1).agent(AGENT, &identify));
        let before = guard.audit().len();
        field.seen();
        ring.say("go");
        assert_eq!(ring.line(is_answer), "refused EPERM", "as {}", user.name());
        assert!(!field.seen().anything);
        let records = guard.audit().split_off(before);
        let [record] = &records[..] else {
            panic!("not one record: {records:#?}");
        };
        assert_eq!(
            (record.agent(), record.action(), record.reason()),
            (AGENT, "connect", "policy-denied")
        );
        assert_eq!(record.text("/process/exe"), exe.display().to_string());
        drop(guard);
    }
}

/// Fifty thousand processes of an agent's, and as many of nobody's beside them: the daemon follows, keeps none that has
/// ended for good, and the last of them is still the agent's.
#[test]
fn a_fork_bomb_leaves_nothing_behind() {
    /// What the daemon may need more for it, KiB: it remembers a bounded number of the ended.
    const GROWTH: u64 = 48 << 10;
    const PATIENCE: Duration = Duration::from_secs(20);
    let processes = processes().to_string();
    let site = Site::new();
    let programs = Programs::new();
    let forks = programs.c("forks").display().to_string();
    let guard = Guard::start(&site, &Bundle::new(1).agent(AGENT, KEEP));
    let daemon = guard.daemon_tgid();
    let before = memory_kib(daemon, "VmRSS");
    let told = guard.audit().len();
    // The last one tries; the others only come and go.
    let line = format!("'{forks}' {processes} -1 && '{forks}' 1 {}", libc::EPERM);
    let shell = ["/bin/sh", "-c", &line].map(str::to_owned);
    let beside = [&*forks, &*processes, "-1"].map(str::to_owned);
    let bomb = under(&guard.agent(AGENT), &shell).spawn();
    let beside = alone(&beside).run().ok();
    assert_eq!(beside.stdout, "wrong 0");
    assert_eq!(bomb.finish().ok().stdout, "wrong 0\nwrong 0");
    let mut records = guard.audit().split_off(told);
    // A daemon that did not get to run beside all that says how many events it has missed.
    records.retain(|record| record.action() != "audit-recover");
    let [record] = &records[..] else {
        panic!("not one record: {records:#?}");
    };
    assert_eq!((record.agent(), record.action()), (AGENT, "socket"));
    let listed = || guard.cli(["agents", "--json"]).ok().json()[0]["processes"].clone();
    // Where the kernel may keep an end from the programs, the daemon looks after it within a second.
    let until = Instant::now() + PATIENCE;
    while listed() != serde_json::json!([]) {
        assert!(Instant::now() < until, "{}", listed());
        std::thread::park_timeout(Duration::from_millis(100));
    }
    let grown = memory_kib(daemon, "VmRSS").saturating_sub(before);
    assert!(grown < GROWTH, "the daemon has grown by {grown} KiB");
}

fn is_answer(line: &str) -> bool {
    ["through", "refused ", "absent "]
        .iter()
        .any(|word| line.starts_with(word))
}
