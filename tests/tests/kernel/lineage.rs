use agentguard_common::abi::{AgentId, EventKind, Label};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::machine::*;

#[test]
fn a_child_is_its_parents_agent_and_nobodys_after_its_end() {
    let mut machine = Machine::new();
    let mut agent = machine.agent(
        AGENT,
        "r, w = os.pipe()
pid = os.fork()
if pid == 0: os.close(w); os.read(r, 1); os._exit(0)
say(pid); wait(); os.close(w); os.waitpid(pid, 0); say('reaped'); wait()",
    );
    let child = agent.number();
    assert_eq!(machine.label(child), AGENT);
    let event = machine.await_event(|event| event.kind == EventKind::Fork as u32);
    assert_eq!((event.tgid, event.parent_tgid), (child, agent.tgid()));
    assert_ne!(event.start_ns, 0);
    agent.go();
    assert_eq!(agent.line(), "reaped");
    assert_eq!(machine.label(child), AgentId::NONE);
    assert_eq!(machine.label(agent.tgid()), AGENT);
    let tgid = agent.tgid();
    agent.go();
    agent.finish();
    assert_eq!(machine.label(tgid), AgentId::NONE);
    machine.await_event(|event| event.kind == EventKind::Exit as u32 && event.tgid == tgid);
}

#[test]
fn nothing_a_process_does_to_itself_takes_the_label_away() {
    let mut machine = Machine::new();
    let cgroup = Cgroup::new();
    let procs = cgroup.0.join("cgroup.procs");
    // Each by itself, then all in one go down to a grandchild that its parent has left behind.
    let mut agent = machine.agent(
        AGENT,
        &format!(
            "def grandchild():
    r, w = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            open('{}', 'w').write(str(os.getpid()))
            os.setgid(65534); os.setuid(65534)
            while os.getppid() == first: time.sleep(0.001)
            os.write(w, b'%d' % os.getpid()); os.execv('/usr/bin/python3', ['python3', '-c', 'import sys; sys.stdin.readline()'])
        os._exit(0)
    os.wait(); return os.read(r, 20).decode()
first = os.getpid()
say(grandchild()); wait()",
            procs.display()
        ),
    );
    let grandchild = agent.number();
    let exec = machine
        .await_event(|event| event.kind == EventKind::Exec as u32 && event.tgid == grandchild);
    assert_eq!(exec.agent, AGENT);
    assert_eq!(exec.uid, 65534);
    assert_eq!(machine.label(grandchild), AGENT);
    let path = exec.path.get(..exec.path_len as usize).unwrap();
    assert!(path.starts_with(b"/usr/bin/python3"), "{path:?}");
    drop(agent);
    let _ = kill(Pid::from_raw(grandchild as i32), Signal::SIGKILL);
    machine.await_event(|event| event.kind == EventKind::Exit as u32 && event.tgid == grandchild);
}

#[test]
fn a_thread_that_outlives_its_leader_is_still_the_agents() {
    let mut machine = Machine::new();
    let (_server, port) = server("127.0.0.1");
    let mut agent = machine.agent(
        AGENT,
        &format!(
            "main = threading.main_thread().native_id
def last():
    while open('/proc/self/task/%d/stat' % main).read().split()[2] != 'Z': time.sleep(0.001)
    say(connect('127.0.0.1', {port})); wait(); os._exit(0)
threading.Thread(target=last).start()
ctypes.CDLL(None).syscall(60, 0)"
        ),
    );
    assert_eq!(agent.line(), "EPERM");
    let tgid = agent.tgid();
    assert_eq!(machine.label(tgid), AGENT);
    let ends = |machine: &mut Machine| {
        let events = machine.events().iter();
        events
            .filter(|event| event.kind == EventKind::Exit as u32)
            .count()
    };
    assert_eq!(ends(&mut machine), 0);
    agent.go();
    agent.finish();
    assert_eq!(machine.label(tgid), AgentId::NONE);
    assert_eq!(ends(&mut machine), 1);
}

#[test]
fn a_thread_changes_nothing() {
    let mut machine = Machine::new();
    let agent = machine.agent(
        AGENT,
        "for _ in range(20):
    t = threading.Thread(target=lambda: None); t.start(); t.join()
say('done')",
    );
    let tgid = agent.tgid();
    agent.finish();
    let kinds: Vec<_> = machine
        .events()
        .iter()
        .map(|event| (event.kind, event.tgid))
        .collect();
    assert_eq!(kinds, [(EventKind::Exit as u32, tgid)]);
}

#[test]
fn an_exec_by_another_thread_keeps_the_label() {
    let mut machine = Machine::new();
    let (_server, port) = server("127.0.0.1");
    let mut agent = machine.agent(
        AGENT,
        &format!(
            "code = 'import socket; print(socket.socket().connect_ex((\"127.0.0.1\", {port})))'
threading.Thread(target=lambda: os.execv('/usr/bin/python3', ['python3', '-c', code])).start(); time.sleep(60)"
        ),
    );
    assert_eq!(agent.line(), libc::EPERM.to_string());
}

/// A child that sleeps. It has a copy of every descriptor of this process, among them those that are locks.
struct Sleeper(Pid);

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
        let _ = waitpid(self.0, None);
    }
}

fn clone_with_tgid(tgid: i32) -> nix::Result<Sleeper> {
    // `struct clone_args`; exit_signal is the fifth word, set_tid and its size the ninth and tenth.
    let mut args = [0u64; 11];
    args[4] = libc::SIGCHLD as u64;
    args[8] = std::ptr::from_ref(&tgid).addr() as u64;
    args[9] = 1;
    // SAFETY: the kernel reads `args` and `tgid`; without CLONE_VM the child has a copy of everything.
    #[allow(unsafe_code, reason = "no library has clone3 with a chosen tgid")]
    let pid = unsafe { libc::syscall(libc::SYS_clone3, args.as_ptr(), size_of_val(&args)) };
    if pid == 0 {
        loop {
            // SAFETY: async-signal-safe, which is all that the child of a process with threads may call.
            #[allow(unsafe_code, reason = "a forked child calls nothing else")]
            unsafe {
                libc::pause()
            };
        }
    }
    let pid = nix::errno::Errno::result(pid)?;
    Ok(Sleeper(Pid::from_raw(pid as i32)))
}

#[test]
fn a_bystander_does_not_inherit_the_label_of_who_had_its_tgid_before() {
    let mut machine = Machine::new();
    let max: i32 = std::fs::read_to_string("/proc/sys/kernel/pid_max")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let tgid = (300..max)
        .rev()
        .find(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists())
        .unwrap();
    let label = Label {
        agent: AGENT,
        flags: 0,
    };
    machine.kernel().set_label(tgid as u32, label).unwrap();
    let sleeper = clone_with_tgid(tgid).unwrap();
    assert_eq!(sleeper.0.as_raw(), tgid);
    assert_eq!(machine.label(tgid as u32), AgentId::NONE);
}

#[test]
fn no_label_is_lost_in_a_storm_of_forks() {
    let mut machine = Machine::new();
    let said = machine.run(
        "def child():
    assert attempt(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1) == 'EPERM'; os._exit(0)
bad = 0
for _ in range(100):
    pids = []
    for _ in range(5):
        pid = os.fork()
        if pid == 0: child()
        pids.append(pid)
    bad += sum(os.waitpid(pid, 0)[1] != 0 for pid in pids)
say(bad)",
    );
    assert_eq!(said, "0");
    assert_eq!(machine.kernel().labelled().unwrap(), []);
    assert_eq!(machine.counter("read_failed"), 0);
}
