//! The daemon's own files: no agent changes them or reads its secrets, whatever its user and whatever name it finds for them.
//! Without BPF LSM there is nothing to try.

use agentguard_common::abi::{EventKind, Tamper};
use agentguard_common::verdict::Refusal;
use agentguard_kernel::ProtectedPath;

use crate::machine::*;

const CALLS: &str = r#"
import stat
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    if getattr(libc, name)(*args) < 0: raise OSError(ctypes.get_errno(), name)
def said(f, *args, **named):
    try: f(*args, **named); return 'ok'
    except OSError as e: return errno.errorcode[e.errno]
def bind(source, target): call('mount', source.encode(), target.encode(), None, 4096, None)
def private():
    call('unshare', 0x20000); call('mount', None, b'/', None, 0x44000, None)
def read(path): open(path, 'rb').close()
def write(path): open(path, 'r+b').close()
def disk(path):
    os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(1, 0))
    try: os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    finally: os.unlink(path)
"#;

/// What a daemon has, in a folder of the test's own.
struct Files(String);

impl Files {
    fn new() -> Self {
        let top = std::env::temp_dir().join(names::unique());
        for folder in ["home/state/ca", "home/trust/old", "elsewhere"] {
            std::fs::create_dir_all(top.join(folder)).unwrap();
        }
        for file in [
            "home/state/ca/key",
            "home/trust/a.pub",
            "home/trust/c.pub",
            "home/config",
            "elsewhere/file",
        ] {
            std::fs::write(top.join(file), "content").unwrap();
        }
        Self(top.to_str().unwrap().to_owned())
    }

    fn protected(&self) -> Vec<ProtectedPath> {
        let file = |name: &str, secret| ProtectedPath {
            path: format!("{}/home/{name}", self.0).into(),
            secret,
        };
        vec![
            file("state", true),
            file("trust", false),
            file("config", false),
        ]
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn refused(machine: &mut Machine) -> usize {
    let events = machine.events().iter();
    let files = events.filter(|event| {
        event.kind == EventKind::Tamper as u32
            && event.sock_type == Tamper::Files as u32
            && event.reason == Refusal::Tamper as u32
    });
    files.count()
}

/// Each after the other, so that what one undoes the next finds.
fn script(top: &str) -> String {
    format!(
        r#"{CALLS}
top = {top:?}; home = top + '/home'; state = home + '/state'; key = state + '/ca/key'; trust = home + '/trust'; config = home + '/config'
other = top + '/elsewhere/file'
say(said(read, key), said(os.listdir, state), said(read, config), said(os.listdir, trust), said(os.stat, key))
say(said(write, config), said(os.truncate, config, 3), said(os.chmod, config, 0o600), said(os.utime, config),
    said(os.setxattr, config, 'trusted.x', b'1'), said(os.removexattr, config, 'trusted.x'))
say(said(open, trust + '/new', 'x'), said(os.mkdir, trust + '/folder'), said(os.symlink, 'x', trust + '/link'),
    said(os.mknod, trust + '/fifo', stat.S_IFIFO | 0o600), said(os.link, trust + '/a.pub', top + '/elsewhere/hard'), said(os.link, other, trust + '/hard'))
say(said(os.rename, trust + '/a.pub', trust + '/b.pub'), said(os.rename, other, trust + '/b.pub'), said(os.unlink, trust + '/c.pub'), said(os.rmdir, trust + '/old'),
    said(os.rename, home, home + '2'))
"#
    )
}

#[test]
fn no_agent_changes_them_or_reads_their_secrets() {
    let mut machine = Machine::new();
    if let Some(why) = machine.kernel().no_lsm() {
        eprintln!("skipped: {why}");
        return;
    }
    let free = Files::new();
    let control = bystander(&script(&free.0));
    assert!(
        control.split_whitespace().all(|word| word == "ok"),
        "{control}"
    );
    let files = Files::new();
    machine.kernel().protect(&files.protected()).unwrap();
    let said = machine.run(&script(&files.0));
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(
        lines,
        [
            "EPERM EPERM ok ok ok",
            "EPERM EPERM EPERM EPERM EPERM EPERM",
            "EPERM EPERM EPERM EPERM EPERM EPERM",
            "EPERM EPERM EPERM EPERM EPERM",
        ]
        .map(|line| line.to_owned())
    );
    assert_eq!(refused(&mut machine), 19);
}

#[test]
fn no_other_name_leads_to_them() {
    let mut machine = Machine::new();
    if let Some(why) = machine.kernel().no_lsm() {
        eprintln!("skipped: {why}");
        return;
    }
    let script = |top: &str| {
        format!(
            r#"{CALLS}
top = {top:?}; state = top + '/home/state'; mount = top + '/elsewhere'
link = mount + '/link'; os.symlink(state + '/ca/key', link)
folder = os.open(state, os.O_PATH); inner = os.open('ca/key', os.O_PATH, dir_fd=folder)
say(said(read, link), said(read, '/proc/self/root' + state + '/ca/key'), said(read, f'/proc/self/fd/{{inner}}'))
say(said(disk, top + '/elsewhere/disk'))
say(said(bind, mount, state)); libc.umount2(state.encode(), 2)
private()
say(said(bind, state, mount), said(read, mount + '/ca/key'), said(write, mount + '/ca/key'))
say(said(bind, '/proc', state))
"#
        )
    };
    let free = Files::new();
    assert_eq!(
        bystander(&script(&free.0)),
        "ok ok ok\nENXIO\nok\nok ok ok\nok"
    );
    let files = Files::new();
    machine.kernel().protect(&files.protected()).unwrap();
    // In a mount namespace of its own it may hide them, from itself.
    assert_eq!(
        machine.run(&script(&files.0)),
        "EPERM EPERM EPERM\nEPERM\nEPERM\nok EPERM EPERM\nok"
    );
    machine.kernel().protect(&[]).unwrap();
    let again = format!(
        "{CALLS}say(said(read, {:?}))",
        format!("{}/home/state/ca/key", files.0)
    );
    assert_eq!(machine.run(&again), "ok");
}

#[test]
fn what_is_too_deep_is_refused_to_agents_alone() {
    let mut machine = Machine::new();
    if let Some(why) = machine.kernel().no_lsm() {
        eprintln!("skipped: {why}");
        return;
    }
    let files = Files::new();
    machine.kernel().protect(&files.protected()).unwrap();
    let script = format!(
        r#"{CALLS}
os.chdir({:?})
for n in range(600): os.mkdir('x'); os.chdir('x')
"#,
        format!("{}/elsewhere", files.0)
    );
    let said = bystander(&format!(
        "{script}open('file', 'w').close(); say(said(read, 'file'))"
    ));
    assert_eq!(said, "ok");
    let before = machine.counter("read_failed");
    let script = format!(
        r#"{CALLS}
os.chdir({:?})
for n in range(600): os.chdir('x')
say(said(read, 'file'))"#,
        format!("{}/elsewhere", files.0)
    );
    assert_eq!(machine.run(&script), "EPERM");
    assert!(machine.counter("read_failed") > before);
}
