//! What the kernel cannot read is looked at by the daemon: an agent is held all the same, and nobody else is.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use agentguard_common::abi::{AgentId, Label, VERSION};
use agentguard_tests::bundle::reach;
use agentguard_tests::client::{Client, Dialer};
use agentguard_tests::process::pid;
use agentguard_tests::tools::{CLIENT_PATH, PATIENCE, script};
use agentguard_tests::{Bundle, Guard, Nginx, Site};
use aya::maps::{Array, Map, MapData};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

/// Folders, more than the kernel programs walk up.
const DEEP: usize = 80;

#[test]
fn a_path_too_deep_to_be_walked_makes_an_agent_all_the_same() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let policy = reach("origin.test", origin.port, &["GET /v1/**"]);
    let identify = "[[identify]]\nexe = \"/**/deep-agent\"\n";
    let guard = Guard::start(
        &site,
        &Bundle::new(1).agent("deep", &format!("{identify}{policy}")),
    );
    let failed = reads_that_failed(&guard);
    let mut agent = started(deep(&site, "deep-agent"));
    let alarm = await_alarm(&guard, "the kernel could not tell");
    assert!(alarm.contains("deep-agent") && alarm.contains("agent deep"));
    assert_eq!(label(&site, agent.tgid).agent.0, AgentId::FIRST);
    assert_eq!(agent.tries("udp 127.0.0.1 9"), "error EPERM");
    assert!(reads_that_failed(&guard) > failed);

    let mut neighbour = started(deep(&site, "deep-neighbour"));
    assert!(neighbour.tries("udp 127.0.0.1 9").starts_with("ok"));
    assert_eq!(label(&site, neighbour.tgid), Label::default());
}

/// The fork hook as the kernel calls it, but with a child that cannot be read: the child that is really there is found.
#[test]
fn a_child_that_the_fork_hook_could_not_read_is_found() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let policy = reach("origin.test", origin.port, &["GET /v1/**"]);
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    // An agent may not call bpf(2) where there is LSM.
    let _ = fs::remove_file(site.pins().join(format!("v{VERSION}/links/lsm_bpf")));
    let failed = reads_that_failed(&guard);
    let code = CALL_FORK_HOOK.replace(
        "LINK",
        &site
            .pins()
            .join(format!("v{VERSION}/links/fork"))
            .display()
            .to_string(),
    );
    let mut parent = Client::new("/usr/bin/python3")
        .args(["-c", &code])
        .env("PATH", CLIENT_PATH)
        .spawn();
    let child: u32 = parent.after("child ").parse().expect("a process id");
    let probe = Label {
        agent: AgentId(AgentId::FIRST),
        flags: 0,
    };
    labels(&site)
        .set(parent.tgid(), probe, 0)
        .expect("labelled");
    assert_eq!(label(&site, child), Label::default());
    parent.say("go");
    assert_eq!(parent.after("called "), "0");
    await_alarm(&guard, "the kernel could not tell");
    assert_eq!(label(&site, child).agent, probe.agent);
    assert_eq!(label(&site, parent.tgid()).flags, Label::DENY_ALL);
    assert!(reads_that_failed(&guard) > failed);
    assert_eq!(label(&site, std::process::id()), Label::default());
    kill(pid(child), Signal::SIGKILL).expect("ended");
}

/// Prints a child's id, waits, and calls the program behind a pinned link with arguments that lead nowhere.
const CALL_FORK_HOOK: &str = r#"
import ctypes, os, struct, sys, time
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
print("child", child, flush=True)
sys.stdin.readline()
libc = ctypes.CDLL(None, use_errno=True)
def bpf(command, attr):
    buffer = ctypes.create_string_buffer(attr.ljust(120, b"\0"), 120)
    result = libc.syscall(321, command, buffer, 120)
    assert result >= 0, ctypes.get_errno()
    return result
path = ctypes.create_string_buffer(b"LINK")
link = bpf(7, struct.pack("=QII", ctypes.addressof(path), 0, 0))
info = ctypes.create_string_buffer(64)
bpf(15, struct.pack("=IIQ", link, 64, ctypes.addressof(info)))
program = bpf(13, struct.pack("=III", struct.unpack("=III", info.raw[:12])[2], 0, 0))
nowhere = ctypes.create_string_buffer(struct.pack("=QQ", 8, 8), 16)
print("called", bpf(10, struct.pack("=IIIIQQIIIIQ", program, 0, 0, 0, 0, 0, 0, 0, 16, 0, ctypes.addressof(nowhere))), flush=True)
sys.stdin.readline()
"#;

/// A copy of Python at the end of a path that is too deep.
fn deep(site: &Site, name: &str) -> PathBuf {
    let mut folder = site.path("files");
    folder.extend(["d"; DEEP]);
    fs::create_dir_all(&folder).expect("made");
    let program = folder.join(name);
    fs::copy("/usr/bin/python3", &program).expect("copied");
    program
}

fn started(program: PathBuf) -> Dialer {
    let mut running = Client::new(program)
        .arg(script("dialer.py"))
        .env("PATH", CLIENT_PATH)
        .spawn();
    running.say("pid");
    let tgid = running.after("ok ").parse().expect("a process id");
    Dialer::of(running, tgid)
}

fn labels(site: &Site) -> Array<MapData, Label> {
    let pin = site.pins().join(format!("v{VERSION}/maps/LABELS"));
    let map = Map::Array(MapData::from_pin(pin).expect("it is pinned"));
    Array::try_from(map).expect("of its type")
}

fn label(site: &Site, tgid: u32) -> Label {
    labels(site).get(&tgid, 0).expect("in range")
}

fn reads_that_failed(guard: &Guard<'_>) -> u64 {
    let status = guard.cli(["status", "--json"]).ok().json();
    status["drops"]["read_failed"].as_u64().expect("a count")
}

fn await_alarm(guard: &Guard<'_>, what: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status: Value = guard.cli(["status", "--json"]).ok().json();
        let alarms = status["alarms"].to_string();
        if alarms.contains(what) {
            return alarms;
        }
        assert!(Instant::now() < deadline, "{status}");
    }
}
