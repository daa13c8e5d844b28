use std::io::{Read as _, Write as _};
use std::path::Path;

use agentguard_common::abi::{AgentId, EventKind, Identify, PATH_LEN};
use agentguard_tests::attempt::Programs;
use agentguard_tests::client::Client;

use crate::machine::*;

fn text(text: &str) -> ([u8; PATH_LEN], u32) {
    let mut bytes = [0; PATH_LEN];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    (bytes, text.len() as u32)
}

fn block(agent: AgentId) -> Identify {
    Identify {
        agent,
        keys: 0,
        uid: 0,
        exe_len: 0,
        cgroup_len: 0,
        parent: AgentId::NONE,
        exe: [0; PATH_LEN],
        cgroup: [0; PATH_LEN],
    }
}

fn by_exe(agent: AgentId, pattern: &str) -> Identify {
    let (exe, exe_len) = text(pattern);
    Identify {
        keys: Identify::EXE,
        exe,
        exe_len,
        ..block(agent)
    }
}

fn by_uid(agent: AgentId, uid: u32) -> Identify {
    Identify {
        keys: Identify::UID,
        uid,
        ..block(agent)
    }
}

fn by_cgroup(agent: AgentId, pattern: &str) -> Identify {
    let (cgroup, cgroup_len) = text(pattern);
    Identify {
        keys: Identify::CGROUP,
        cgroup,
        cgroup_len,
        ..block(agent)
    }
}

/// Starts a copy of `cat`, and says its tgid once it answers: Python's Popen returns before the tracepoint has run.
fn popen(program: &Path, options: &str) -> String {
    format!(
        "p = subprocess.Popen(['{}'], stdin=-1, stdout=-1{options})
p.stdin.write(b'x\\n'); p.stdin.flush(); p.stdout.readline()
say(p.pid); wait(); p.kill(); p.wait()",
        program.display()
    )
}

/// What `program` runs as, started by somebody who is nobody's and not the daemon's child.
fn label_of_run(machine: &mut Machine, program: &Path, options: &str) -> AgentId {
    let mut starter = Script::start(&popen(program, options));
    starter.go();
    let tgid = starter.number();
    let label = machine.label(tgid);
    starter.go();
    starter.finish();
    label
}

fn copy_of_cat(folder: &Path, name: &str) -> std::path::PathBuf {
    let path = folder.join(name);
    std::fs::copy("/bin/cat", &path).unwrap();
    path
}

#[test]
fn by_the_path_of_the_executable() {
    let mut machine = Machine::new();
    let folder = tempfile::tempdir().unwrap();
    let program = copy_of_cat(folder.path(), "agent-1.2");
    let other = copy_of_cat(folder.path(), "tool");
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&program, &link).unwrap();
    let pattern = format!("{}/agent-*", folder.path().display());
    machine
        .kernel()
        .set_identify(&[by_exe(AGENT, &pattern)])
        .unwrap();
    assert_eq!(label_of_run(&mut machine, &program, ""), AGENT);
    assert_eq!(label_of_run(&mut machine, &link, ""), AGENT, "by a link");
    assert_eq!(label_of_run(&mut machine, &other, ""), AgentId::NONE);
    let exec = machine.await_event(|event| event.kind == EventKind::Exec as u32);
    let path = exec.path.get(..exec.path_len as usize).unwrap();
    assert_eq!(path, program.to_str().unwrap().as_bytes());
    machine.kernel().set_identify(&[]).unwrap();
    assert_eq!(label_of_run(&mut machine, &program, ""), AgentId::NONE);
}

#[test]
fn by_user_and_only_if_every_key_matches() {
    let mut machine = Machine::new();
    let folder = tempfile::tempdir().unwrap();
    let program = copy_of_cat(folder.path(), "agent");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), mode).unwrap();
    let mut both = by_exe(AGENT, program.to_str().unwrap());
    both.keys |= Identify::UID;
    both.uid = 61234;
    machine
        .kernel()
        .set_identify(&[both, by_uid(OTHER, 61235)])
        .unwrap();
    assert_eq!(label_of_run(&mut machine, &program, ""), AgentId::NONE);
    assert_eq!(label_of_run(&mut machine, &program, ", user=61234"), AGENT);
    assert_eq!(
        label_of_run(&mut machine, Path::new("/bin/cat"), ", user=61234"),
        AgentId::NONE
    );
    assert_eq!(
        label_of_run(&mut machine, Path::new("/bin/cat"), ", user=61235"),
        OTHER
    );
}

#[test]
fn by_a_user_that_a_process_becomes_without_an_exec() {
    let mut machine = Machine::new();
    let python = std::fs::canonicalize("/usr/bin/python3").unwrap();
    let with_exe = |uid, exe: &str| Identify {
        keys: Identify::EXE | Identify::UID,
        uid,
        ..by_exe(OTHER, exe)
    };
    let blocks = [
        by_uid(AGENT, 61234),
        with_exe(61235, python.to_str().unwrap()),
        with_exe(61236, "/bin/cat"),
    ];
    machine.kernel().set_identify(&blocks).unwrap();
    for (uid, change, expected) in [
        (61234, "os.setuid(UID)", AGENT),
        (61234, "os.setreuid(UID, 0)", AGENT),
        (61235, "os.setresuid(UID, UID, UID)", OTHER),
        (61236, "os.setuid(UID)", AgentId::NONE),
        // Shares a bit with 61234 in what is looked at first.
        (61234 + 32, "os.setuid(UID)", AgentId::NONE),
    ] {
        let change = change.replace("UID", &uid.to_string());
        // A child's: nobody is the daemon's own.
        let mut process = Script::start(&format!(
            "reading, writing = os.pipe(); pid = os.fork()
if pid == 0:
    {change}; say(os.getpid()); os.read(reading, 1)
    kept = socket.socket(); say(1); time.sleep(60)
wait(); os.write(writing, b'x'); wait(); os.kill(pid, 9); os.wait()"
        ));
        process.go();
        let tgid = process.number();
        assert_eq!(machine.label(tgid), AgentId::NONE, "before a socket");
        process.go();
        process.number();
        assert_eq!(machine.label(tgid), expected, "{change}");
        process.go();
        process.finish();
    }
    let enrol = machine.await_event(|event| event.kind == EventKind::Enrol as u32);
    assert_eq!((enrol.agent, enrol.uid), (AGENT, 61234));
}

/// What io_uring does then, it may do with the credentials that the process had before.
#[test]
fn by_a_user_that_is_younger_than_the_ring() {
    let mut machine = Machine::new();
    let programs = Programs::new();
    let exe = programs.c("ring").display().to_string();
    // Shares a bit with root in what is looked at first, which the ring's makers were.
    let blocks = [by_uid(AGENT, 61234), by_uid(OTHER, 61216)];
    machine.kernel().set_identify(&blocks).unwrap();
    for (user, expected) in [(61234, AGENT), (61235, AgentId::NONE)] {
        for credentials in ["polled", "registered"] {
            // A child's: nobody is the daemon's own.
            let shell = Client::new("sh").args(["-c", "\"$@\"; exit", "sh", &exe]);
            let mut ring = shell.args([&user.to_string(), credentials]).spawn();
            let tgid = ring.printed().parse().unwrap();
            assert_eq!(machine.label(tgid), AgentId::NONE, "before a socket");
            ring.say("go");
            assert_eq!(ring.printed(), "through");
            assert_eq!(machine.label(tgid), expected, "{user} {credentials}");
            ring.finish();
        }
    }
}

#[test]
fn two_agents_that_claim_one_process_leave_it_with_nothing() {
    let mut machine = Machine::new();
    let folder = tempfile::tempdir().unwrap();
    let program = copy_of_cat(folder.path(), "agent");
    let path = program.to_str().unwrap();
    let blocks = [
        by_exe(AGENT, path),
        by_exe(OTHER, path),
        by_exe(AGENT, path),
    ];
    machine.kernel().set_identify(&blocks).unwrap();
    assert_eq!(label_of_run(&mut machine, &program, ""), AgentId::AMBIGUOUS);
    machine
        .kernel()
        .set_identify(&[blocks[0], blocks[2]])
        .unwrap();
    assert_eq!(
        label_of_run(&mut machine, &program, ""),
        AGENT,
        "twice the same is one"
    );
}

#[test]
fn a_labelled_process_moves_only_to_its_agents_child() {
    let mut machine = Machine::new();
    let folder = tempfile::tempdir().unwrap();
    let program = copy_of_cat(folder.path(), "agent");
    let path = program.to_str().unwrap().to_owned();
    let third = AgentId(4);
    for (parent, expected) in [(AgentId::NONE, AGENT), (third, AGENT), (AGENT, OTHER)] {
        let mut child = by_exe(OTHER, &path);
        child.parent = parent;
        machine.kernel().set_identify(&[child]).unwrap();
        let mut agent = machine.agent(AGENT, &popen(&program, ""));
        let tgid = agent.number();
        assert_eq!(machine.label(tgid), expected, "{parent:?}");
        agent.go();
        agent.finish();
    }
}

#[test]
fn by_a_cgroup_that_was_there_and_one_that_comes_later() {
    let mut machine = Machine::new();
    let there = Cgroup::new();
    let pattern = format!("{}*", there.name());
    machine
        .kernel()
        .set_identify(&[by_cgroup(AGENT, &pattern)])
        .unwrap();
    let below = there.0.join("below");
    std::fs::create_dir(&below).unwrap();
    let other = Cgroup::new();
    for (cgroup, expected) in [
        (&there.0, AGENT),
        (&below, AGENT),
        (&other.0, AgentId::NONE),
    ] {
        let mut process = Script::start(&format!(
            "pid = os.fork()
if pid == 0: open('{}/cgroup.procs', 'w').write(str(os.getpid())); say(os.getpid()); time.sleep(60)
wait(); os.kill(pid, 9); os.wait()",
            cgroup.display()
        ));
        process.go();
        let tgid = process.number();
        assert_eq!(machine.label(tgid), expected, "{}", cgroup.display());
        process.go();
        process.finish();
    }
    let enrol = machine.await_event(|event| event.kind == EventKind::Enrol as u32);
    assert_eq!(enrol.agent, AGENT);
    std::fs::remove_dir(below).unwrap();
}

#[test]
fn a_cgroup_too_deep_to_be_looked_at_whole_is_still_below_its_folder() {
    let mut machine = Machine::new();
    let there = Cgroup::new();
    machine
        .kernel()
        .set_identify(&[by_cgroup(AGENT, &there.name())])
        .unwrap();
    let middle = there.0.join("m".repeat(200));
    let deep = middle.join("d".repeat(100));
    std::fs::create_dir_all(&deep).unwrap();
    let mut process = Script::start(&format!(
        "pid = os.fork()
if pid == 0: open('{}/cgroup.procs', 'w').write(str(os.getpid())); say(os.getpid()); time.sleep(60)
wait(); os.kill(pid, 9); os.wait()",
        deep.display()
    ));
    process.go();
    let tgid = process.number();
    let label = machine.label(tgid);
    process.go();
    process.finish();
    std::fs::remove_dir(deep).unwrap();
    std::fs::remove_dir(middle).unwrap();
    assert_eq!(label, AGENT);
}

#[test]
fn a_process_that_is_moved_by_another_is_enrolled() {
    let mut machine = Machine::new();
    let cgroup = Cgroup::new();
    machine
        .kernel()
        .set_identify(&[by_cgroup(AGENT, &cgroup.name())])
        .unwrap();
    let mut process = Script::start(
        "pid = os.fork()
if pid == 0: time.sleep(60)
say(pid); wait(); os.kill(pid, 9); os.wait()",
    );
    process.go();
    let tgid = process.number();
    assert_eq!(machine.label(tgid), AgentId::NONE);
    std::fs::write(cgroup.0.join("cgroup.procs"), tgid.to_string()).unwrap();
    assert_eq!(machine.label(tgid), AGENT);
    process.go();
    process.finish();
}

#[test]
fn a_process_that_is_made_in_a_cgroup_is_enrolled() {
    let mut machine = Machine::new();
    let cgroup = Cgroup::new();
    machine
        .kernel()
        .set_identify(&[by_cgroup(AGENT, &cgroup.name())])
        .unwrap();
    // clone3 with CLONE_INTO_CGROUP passes no cgroup_attach_task.
    let mut process = Script::start(&format!(
        "args = struct.pack('<11Q', 0x200000000, 0, 0, 0, 17, 0, 0, 0, 0, 0, os.open('{}', os.O_RDONLY))
pid = ctypes.CDLL(None).syscall(435, args, len(args))
if pid == 0: time.sleep(60)
say(pid); wait(); os.kill(pid, 9); os.wait()",
        cgroup.0.display()
    ));
    process.go();
    let tgid = process.number();
    assert_eq!(machine.label(tgid), AGENT);
    process.go();
    process.finish();
}

#[test]
fn the_daemon_and_its_children_are_never_labelled() {
    let mut machine = Machine::new();
    let (exe, exe_len) = text("/**");
    let everything = Identify {
        keys: Identify::EXE | Identify::UID,
        uid: 61236,
        exe,
        exe_len,
        ..block(AGENT)
    };
    machine.kernel().set_identify(&[everything]).unwrap();
    // A child of the test process, which is the daemon here.
    let mut child =
        std::os::unix::process::CommandExt::uid(&mut std::process::Command::new("/bin/cat"), 61236)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
    let (mut to, mut from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    to.write_all(b"x").unwrap();
    from.read_exact(&mut [0]).unwrap();
    let label = machine.label(child.id());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(label, AgentId::NONE);
    assert_eq!(machine.label(std::process::id()), AgentId::NONE);
}

#[test]
fn the_longest_pattern_and_the_last_block_work() {
    let mut machine = Machine::new();
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("d".repeat(100)).join("e".repeat(60));
    std::fs::create_dir_all(&deep).unwrap();
    let program = copy_of_cat(&deep, "agent");
    let mut blocks = vec![by_exe(OTHER, "/**/nothing-of-this-name*/**"); 63];
    blocks.push(by_exe(AGENT, program.to_str().unwrap()));
    machine.kernel().set_identify(&blocks).unwrap();
    assert_eq!(label_of_run(&mut machine, &program, ""), AGENT);
    assert!(machine.kernel().set_identify(&vec![blocks[0]; 65]).is_err());
    assert_eq!(machine.counter("read_failed"), 0);
}
