//! What a hook does when it cannot do its work: an agent is denied, everybody else is left alone, and a counter tells.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::Duration;

use agentguard_common::abi::{
    AgentId, ConfigSlot, Event, EventKind, FlowKey, Identify, IdentifyHead, Label, Origin,
    PATH_LEN, VERSION,
};
use agentguard_common::counter::Counter;
use agentguard_common::layout::Layout;
use agentguard_common::net::Addr;
use agentguard_common::verdict::Refusal;
use agentguard_kernel::{OBJECT, Rule, cgroup_root, layout};
use agentguard_tests::attempt::{Programs, User, processes};
use agentguard_tests::standing::{Standing, Standings};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, RingBuf};
use aya::programs::{CgroupAttachMode, CgroupSock, RawTracePoint};
use aya::{Ebpf, EbpfLoader, GlobalData, Pod};

use crate::machine::*;

/// Entries of `FLOWS` and of `ACCEPTED`.
const ENTRIES: u64 = 65_536;

#[test]
fn without_room_for_a_flow_an_agents_connection_does_not_leave() {
    let mut machine = Machine::new();
    machine.rules(&[Rule::Forward]);
    let forwarder = machine.forwarder();
    let (_server, port) = server("127.0.0.1");
    let mut flows = map::<FlowKey, Origin>(&machine, "FLOWS");
    fill(&mut flows, |n| FlowKey {
        local: Addr::from_v4(Ipv4Addr::from(n as u32).octets()),
        ..FlowKey::default()
    });
    // Nobody tells the agent that its SYN has been dropped.
    let said = machine.run("say(connect('127.9.9.9', 443, timeout=0.3))");
    assert_ne!(said, "ok");
    assert!(!is_readable(&forwarder.v4, Duration::ZERO));
    assert_eq!(
        bystander(&format!("say(connect('127.0.0.1', {port}))")),
        "ok"
    );
    assert!(machine.counter("flow_map_full") >= 1);
    assert!(machine.counter("packets_dropped") >= 1);
    assert_eq!(machine.refused(EventKind::Packet, Refusal::Packet), 1);

    // And with room again.
    flows
        .remove(&FlowKey {
            local: Addr::from_v4([0, 0, 0, 1]),
            ..FlowKey::default()
        })
        .unwrap();
    assert_eq!(machine.run("say(connect('127.9.9.9', 443))"), "ok");
}

#[test]
fn without_room_for_an_accepted_connection_it_has_no_origin() {
    let mut machine = Machine::new();
    machine.rules(&[Rule::Forward]);
    let forwarder = machine.forwarder();
    let mut accepted = map::<u64, Origin>(&machine, "ACCEPTED");
    fill(&mut accepted, |n| u64::MAX - n);
    let agent = machine.agent(AGENT, "s = tcp('127.9.9.9', 443); wait()");
    let stream = accept(&forwarder.v4);
    let origin = machine
        .origins()
        .accepted(cookie(&stream).unwrap())
        .unwrap();
    assert_eq!(
        origin, None,
        "nobody's connection, which the forwarder closes"
    );
    assert_eq!(machine.counter("flow_map_full"), 1);
    drop(agent);
}

#[test]
fn without_room_for_a_mark_an_agent_has_no_socket() {
    let name = "a namespace without room for socket storage";
    let standing = Standings::of_this_kernel().of_attempt(name, User::Root);
    let mut machine = Machine::new();
    let script = "assert ctypes.CDLL(None).unshare(0x40000000) == 0
def limit():
    with open('/proc/sys/net/core/optmem_max', 'w') as setting: setting.write('1')
r = attempt(limit)
say(r if isinstance(r, str) else attempt(socket.socket, socket.AF_INET, socket.SOCK_STREAM).__class__.__name__)";
    let said = bystander(script);
    if standing == Standing::Absent {
        assert_eq!(said, "ENOENT", "a setting of the whole host");
        return;
    }
    assert_eq!(said, "socket");
    let said = machine.run(&script.replace(".__class__.__name__", ""));
    assert_eq!(said, "EPERM");
    assert_eq!(machine.counter("storage_full"), 1);
    assert_eq!(machine.refused(EventKind::Socket, Refusal::Internal), 1);
}

#[test]
fn a_fork_bomb_leaves_no_label_and_loses_none() {
    let processes = processes();
    let mut machine = Machine::new();
    let programs = Programs::new();
    let forks = programs.c("forks");
    let script = |wanted: i32| {
        format!(
            "say(subprocess.run(['{}', '{processes}', '{wanted}'], capture_output=True, text=True).stdout)",
            forks.display()
        )
    };
    let mut bomb = machine.agent(AGENT, &script(libc::EPERM));
    assert_eq!(bystander(&script(0)), "wrong 0", "beside it");
    assert_eq!(bomb.line(), "wrong 0");
    bomb.finish();
    assert_eq!(machine.kernel().labelled().unwrap(), []);
    assert_eq!(machine.counter("read_failed"), 0);
    assert_eq!(machine.counter("storage_full"), 0);
    for (name, size) in [
        (
            "FLOWS",
            map::<FlowKey, Origin>(&machine, "FLOWS").keys().count(),
        ),
        (
            "ACCEPTED",
            map::<u64, Origin>(&machine, "ACCEPTED").keys().count(),
        ),
    ] {
        assert_eq!(size, 0, "{name}");
    }
}

/// The offsets of two members lead to where nothing can be read: `thread_info`'s flags, taken for a pointer.
#[test]
fn a_read_that_fails_leaves_an_agent_one() {
    let _turn = Turn::in_company();
    let mut layout = layout().unwrap();
    layout.task_cgroups = 0;
    layout.task_signal = 0;
    let mut object = load_with(&layout);
    let agent = Script::start(
        "def raw(): return attempt(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1)
def child():
    pid = os.fork()
    if pid == 0: os._exit(raw() != 'EPERM')
    return os.waitpid(pid, 0)[1]
code = 'import socket\\ntry: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)\\nexcept OSError as e: print(e.errno)'
say(raw(), child(), subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout)",
    );
    let mut agent = agent;
    let tgid = agent.tgid();
    let label = Label {
        agent: AGENT,
        flags: 0,
    };
    labels(&mut object).set(tgid, label, 0).unwrap();
    agent.go();
    assert_eq!(agent.finish(), format!("EPERM 0 {}", libc::EPERM));
    // Whether its last thread has gone cannot be read either.
    assert_eq!(labels(&mut object).get(&tgid, 0).unwrap(), label);
    let free = "say(attempt(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1).__class__.__name__)";
    assert_eq!(bystander(free), "socket");
    assert!(failed_reads(&object) >= 3);
}

/// As above, for a process that an identify block looks for: it goes on, and the daemon is asked to look.
#[test]
fn a_process_that_cannot_be_identified_is_told() {
    let _turn = Turn::in_company();
    let mut layout = layout().unwrap();
    layout.task_cgroups = 0;
    let mut object = load_with(&layout);
    identify_by(&mut object, Identify::EXE);
    let mut process = Script::start(
        "code = 'import os; print(os.getpid())'
say(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout)",
    );
    process.go();
    let tgid = process.finish();
    assert!(
        unread(&mut object).contains(&tgid.parse().unwrap()),
        "{tgid}"
    );
    assert!(failed_reads(&object) >= 1);
}

/// Each tracepoint, called as the kernel does but with arguments that lead nowhere.
#[test]
fn what_cannot_be_read_of_a_child_or_a_cgroup_is_told() {
    const NOWHERE: u64 = 8;
    // It makes this process an agent that may do nothing, and with it every thread's test.
    let _turn = Turn::alone();
    let mut object = load_with(&layout().unwrap());
    identify_by(&mut object, Identify::CGROUP);
    let arguments = [NOWHERE; 4];
    for name in ["cgroup_attach_task", "cgroup_mkdir", "fork"] {
        let before = failed_reads(&object);
        unread(&mut object);
        let program: &mut RawTracePoint = object.program_mut(name).unwrap().try_into().unwrap();
        if program.fd().is_err() {
            program.load().unwrap();
        }
        call(program.fd().unwrap().as_fd().as_raw_fd(), &arguments);
        assert!(unread(&mut object).contains(&0), "{name}");
        assert!(failed_reads(&object) > before, "{name}");
    }
    let me = std::process::id();
    let before = labels(&mut object).get(&me, 0).unwrap();
    assert_eq!(before, Label::default(), "nobody's, and left alone");

    // An agent's child that nobody knows: the agent may do nothing more.
    let label = Label {
        agent: AGENT,
        flags: 0,
    };
    labels(&mut object).set(me, label, 0).unwrap();
    let program: &RawTracePoint = object.program("fork").unwrap().try_into().unwrap();
    call(program.fd().unwrap().as_fd().as_raw_fd(), &arguments);
    let after = labels(&mut object).get(&me, 0).unwrap();
    labels(&mut object).set(me, Label::default(), 0).unwrap();
    assert_eq!((after.agent, after.flags), (AGENT, Label::DENY_ALL));
    assert!(unread(&mut object).contains(&0));
}

/// Puts one block in force that matches nothing.
fn identify_by(object: &mut Ebpf, keys: u32) {
    let head = IdentifyHead {
        bank: 0,
        len: 1,
        keys: keys as u8,
        users: 0,
    };
    let mut config: Array<_, u64> = Array::try_from(object.map_mut("CONFIG").unwrap()).unwrap();
    config
        .set(ConfigSlot::Identify as u32, head.pack(), 0)
        .unwrap();
    let block = Identify {
        agent: AGENT,
        keys,
        uid: 0,
        exe_len: 1,
        cgroup_len: 1,
        parent: AgentId::NONE,
        exe: [b'!'; PATH_LEN],
        cgroup: [b'!'; PATH_LEN],
    };
    let mut blocks: Array<_, Identify> =
        Array::try_from(object.map_mut("IDENTIFY").unwrap()).unwrap();
    blocks.set(0, block, 0).unwrap();
}

/// Processes that somebody has been asked to look at since the last call.
fn unread(object: &mut Ebpf) -> Vec<u32> {
    let mut ring = RingBuf::try_from(object.map_mut("EVENTS").unwrap()).unwrap();
    let mut found = Vec::new();
    while let Some(record) = ring.next() {
        let word = |at: usize| u32::from_ne_bytes(record[at..at + 4].try_into().unwrap());
        if word(0) == EventKind::Unread as u32 {
            found.push(word(std::mem::offset_of!(Event, tgid)));
        }
    }
    found
}

fn failed_reads(object: &Ebpf) -> u64 {
    let counters = object.map("COUNTERS").unwrap();
    let counters = PerCpuArray::<_, u64>::try_from(counters).unwrap();
    let failed = counters.get(&(Counter::ReadFailed as u32), 0).unwrap();
    failed.iter().sum()
}

/// `BPF_PROG_TEST_RUN` of a raw tracepoint's program, in this thread's context.
fn call(program: i32, arguments: &[u64; 4]) {
    const BPF_PROG_TEST_RUN: i32 = 10;
    #[repr(C)]
    #[derive(Default)]
    struct TestRun {
        prog_fd: u32,
        retval: u32,
        data_size: [u32; 2],
        data: [u64; 2],
        repeat: u32,
        duration: u32,
        ctx_size_in: u32,
        ctx_size_out: u32,
        ctx_in: u64,
        ctx_out: u64,
        flags: u32,
        cpu: u32,
        batch_size: u32,
        reserved: u32,
    }
    let mut run = TestRun {
        prog_fd: program.cast_unsigned(),
        ctx_size_in: size_of_val(arguments) as u32,
        ctx_in: arguments.as_ptr().addr() as u64,
        ..TestRun::default()
    };
    // SAFETY: `run` and what it points to outlive the call.
    #[allow(unsafe_code, reason = "no library runs a program on arguments")]
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_TEST_RUN,
            &raw mut run,
            size_of::<TestRun>(),
        )
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// The programs of lineage and of sockets as the loader would load them, with this layout. They go with the object.
fn load_with(layout: &Layout) -> Ebpf {
    let mut loader = EbpfLoader::new();
    loader.btf(None).allow_unsupported_maps().override_global(
        "LAYOUT",
        GlobalData::from(layout),
        true,
    );
    let mut object = loader.load(OBJECT).unwrap();
    let root = std::fs::File::open(cgroup_root().unwrap()).unwrap();
    let sock_create: &mut CgroupSock = object
        .program_mut("sock_create")
        .unwrap()
        .try_into()
        .unwrap();
    sock_create.load().unwrap();
    sock_create.attach(root, CgroupAttachMode::Single).unwrap();
    for (name, tracepoint) in [
        ("exit", "sched_process_exit"),
        ("fork", "sched_wakeup_new"),
        ("exec", "sched_process_exec"),
    ] {
        let program: &mut RawTracePoint = object.program_mut(name).unwrap().try_into().unwrap();
        program.load().unwrap();
        program.attach(tracepoint).unwrap();
    }
    object
}

fn labels(object: &mut Ebpf) -> Array<&mut MapData, Label> {
    Array::try_from(object.map_mut("LABELS").unwrap()).unwrap()
}

/// A map as its pin opens it.
fn map<K: Pod, V: Pod>(machine: &Machine, name: &str) -> HashMap<MapData, K, V> {
    let pin = machine.pins.join(format!("v{VERSION}/maps/{name}"));
    let map = Map::HashMap(MapData::from_pin(pin).unwrap());
    HashMap::try_from(map).unwrap()
}

fn fill<K: Pod>(map: &mut HashMap<MapData, K, Origin>, key: impl Fn(u64) -> K) {
    for n in 0..ENTRIES {
        map.insert(key(n), Origin::default(), 0).unwrap();
    }
}
