//! What LSM hooks refuse an agent whatever its user. Without BPF LSM there is nothing to try: `agentguard run` closes what it
//! can by other means.

use agentguard_common::abi::{Event, EventKind, Tamper};
use agentguard_common::verdict::Refusal;

use crate::machine::*;

const CALLS: &str = "
import fcntl, signal
libc = ctypes.CDLL(None, use_errno=True)
def syscall(*args):
    if libc.syscall(*[ctypes.c_long(a) if isinstance(a, int) else a for a in args]) < 0:
        raise OSError(ctypes.get_errno(), 'syscall')
def bpf(): syscall(321, 0, struct.pack('IIIII', 2, 4, 4, 1, 0) + bytes(52), 72)
def ptrace(pid):
    syscall(101, 16, pid, 0, 0); os.waitpid(pid, 0x40000000); syscall(101, 17, pid, 0, 0)
def mem(pid): open(f'/proc/{pid}/mem', 'rb').close()
def kill(pid, sig=signal.SIGCONT): os.kill(pid, sig)
def terminal():
    master, slave = os.openpty(); fcntl.ioctl(slave, 0x5412, b'x')
def packet(): socket.socket(17, 3, 0).close()
def old_packet(): socket.socket(2, 10, 0).close()
def uevent(): socket.socket(16, 3, 15).close()
def route(): socket.socket(16, 3, 0).close()
def said(f, *args):
    r = attempt(f, *args); return 'ok' if r is None else r
";

#[test]
fn pins_stay() {
    let mut machine = Machine::new();
    if let Some(why) = machine.kernel().no_lsm() {
        eprintln!("skipped: {why}");
        return;
    }
    // A file system of its own: in the real one a bystander would take the hooks off.
    let script = format!(
        "{CALLS}
import tempfile
d = wait(); umount = lambda: syscall(166, d.encode(), 0)
say(said(os.unlink, d + '/link'), said(os.rmdir, d + '/folder'), said(os.rename, d + '/a', d + '/b'), said(umount))
t = tempfile.mkdtemp(); os.mkdir(t + '/x'); os.rename(t + '/x', t + '/y'); os.rmdir(t + '/y'); os.rmdir(t); say('others')"
    );
    let pins = Bpffs::new();
    let mut agent = machine.agent(AGENT, &script);
    agent.tell(&pins.dir);
    assert_eq!(agent.finish(), "EPERM EPERM EPERM EPERM\nothers");
    assert_eq!(tampers(&mut machine, Tamper::Pins).len(), 4);
    let mut bystander = Script::start(&script);
    bystander.go();
    bystander.tell(&pins.dir);
    assert_eq!(bystander.finish(), "ok ok ok ok\nothers");
}

/// A mounted bpffs with something on it that can be taken off.
struct Bpffs {
    dir: String,
}

impl Bpffs {
    fn new() -> Self {
        let dir = std::env::temp_dir().join(names::unique());
        std::fs::create_dir(&dir).unwrap();
        let none: Option<&str> = None;
        nix::mount::mount(none, &dir, Some("bpf"), nix::mount::MsFlags::empty(), none).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.join("link")).unwrap();
        std::fs::create_dir(dir.join("folder")).unwrap();
        std::fs::create_dir(dir.join("a")).unwrap();
        Self {
            dir: dir.to_str().unwrap().to_owned(),
        }
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        // It is unmounted already if the test went well.
        let _ = nix::mount::umount2(&*self.dir, nix::mount::MntFlags::MNT_DETACH);
        let _ = std::fs::remove_dir(&self.dir);
    }
}

fn tampers(machine: &mut Machine, tried: Tamper) -> Vec<Event> {
    machine
        .events()
        .iter()
        .filter(|event| event.kind == EventKind::Tamper as u32 && event.sock_type == tried as u32)
        .copied()
        .collect()
}

#[test]
fn what_holds_an_agent_is_out_of_its_reach() {
    let mut machine = Machine::new();
    if let Some(why) = machine.kernel().no_lsm() {
        eprintln!("skipped: {why}");
        return;
    }
    let daemon = std::process::id();
    let nobodys = Script::start("");
    let bystander_tgid = nobodys.tgid();
    let other = machine.agent(OTHER, "wait()");
    let script = format!(
        "{CALLS}
child = os.fork()
if child == 0:
    while True: signal.pause()
say(said(bpf), said(ptrace, {bystander_tgid}), said(mem, {bystander_tgid}), said(ptrace, child), said(mem, child))
say(said(kill, {daemon}), said(kill, {daemon}, 0), said(kill, {other}), said(kill, {bystander_tgid}), said(kill, child))
say(said(terminal), said(packet), said(old_packet), said(uevent), said(route))
os.kill(child, 9)",
        other = other.tgid()
    );
    let control = bystander(&script);
    assert_eq!(control, "ok ok ok ok ok\nok ok ok ok ok\nok ok ok ok ok");
    assert_eq!(
        machine.run(&script),
        "EPERM EPERM EACCES ok ok\nEPERM ok EPERM EPERM ok\nEPERM EPERM EPERM EPERM ok"
    );
    let targets =
        |events: Vec<Event>| -> Vec<u32> { events.iter().map(|event| event.parent_tgid).collect() };
    assert_eq!(tampers(&mut machine, Tamper::Bpf).len(), 1);
    assert_eq!(
        targets(tampers(&mut machine, Tamper::Ptrace)),
        [bystander_tgid, bystander_tgid]
    );
    assert_eq!(
        targets(tampers(&mut machine, Tamper::Signal)),
        [daemon, other.tgid(), bystander_tgid]
    );
    assert_eq!(tampers(&mut machine, Tamper::Terminal).len(), 1);
    assert_eq!(machine.refused(EventKind::Socket, Refusal::Family), 3);
}
