use agentguard_common::abi::AgentId;
use agentguard_kernel::{Kernel, KernelError, Rule, cgroup_root};

use crate::machine::*;

#[test]
fn enforcement_and_labels_outlive_the_daemon() {
    let mut machine = Machine::new();
    let (listener, port) = server("127.0.0.1");
    machine.rules(&[Rule::Forward, reach_tcp("127.0.0.1/32", port)]);
    let mut agent = machine.agent(
        AGENT,
        &format!(
            "def both(): say(connect('127.0.0.1', {port}), connect('127.0.0.1', {port} ^ 1))
both(); wait(); both(); pid = os.fork()
if pid == 0: time.sleep(60)
say(pid); wait(); both(); wait(); os.kill(pid, 9); os.wait()"
        ),
    );
    assert_eq!(agent.line(), "ok EPERM");
    let tgid = agent.tgid();
    let links = || {
        let mut names: Vec<_> = std::fs::read_dir(host_links(&machine.pins))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    let before = links();
    machine.forget();
    agent.go();
    assert_eq!(agent.line(), "ok EPERM");
    let child = agent.number();
    machine.load();
    assert_eq!(machine.label(tgid), AGENT);
    assert_eq!(machine.label(child), AGENT, "forked while nobody looked");
    assert!(machine.kernel().hooks().iter().all(|hook| hook.attached));
    let after: Vec<_> = {
        let mut names: Vec<_> = std::fs::read_dir(host_links(&machine.pins))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    assert_eq!(before, after);
    agent.go();
    assert_eq!(agent.line(), "ok EPERM");
    agent.go();
    agent.finish();
    drop(listener);
}

fn host_links(pins: &std::path::Path) -> std::path::PathBuf {
    pins.join(format!("v{}/links", agentguard_common::abi::VERSION))
}

#[test]
fn a_restart_leaves_no_moment_open() {
    let mut machine = Machine::new();
    let (_server, port) = server("127.0.0.1");
    machine.rules(&[reach_tcp("127.0.0.1/32", port ^ 1)]);
    let mut agent = machine.agent(
        AGENT,
        &format!(
            "stop = threading.Event(); threading.Thread(target=lambda: (wait(), stop.set())).start()
said = set()
while not stop.is_set(): said.add(connect('127.0.0.1', {port})); said.add(str(attempt(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1)))
say(*said)"
        ),
    );
    for _ in 0..2 {
        machine.forget();
        machine.load();
    }
    agent.go();
    assert_eq!(agent.finish(), "EPERM");
}

#[test]
fn a_second_daemon_is_told_who_is_first() {
    let machine = Machine::new();
    let second = Kernel::load(&machine.pins, &cgroup_root().unwrap());
    assert!(matches!(second, Err(KernelError::Held { tgid, .. }) if tgid == std::process::id()));
}

#[test]
fn unload_leaves_nothing() {
    let mut machine = Machine::new();
    let (listener, port) = server("127.0.0.1");
    let mut agent = machine.agent(
        AGENT,
        &format!("say(connect('127.0.0.1', {port})); wait(); say(connect('127.0.0.1', {port}))"),
    );
    assert_eq!(agent.line(), "EPERM");
    machine.forget();
    Kernel::unload(&machine.pins).unwrap();
    assert!(!machine.pins.exists());
    agent.go();
    assert_eq!(agent.line(), "ok");
    drop(listener);
}

#[test]
fn a_load_that_fails_leaves_nothing() {
    let _turn = Turn::in_company();
    let pins = std::path::Path::new("/sys/fs/bpf").join(names::unique());
    // A folder, but no cgroup.
    let refused = Kernel::load(&pins, std::path::Path::new("/proc"));
    assert!(refused.is_err());
    assert!(!pins.exists());
}

#[test]
fn pins_of_another_version_are_refused() {
    let mut machine = Machine::new();
    machine.forget();
    let other = machine.pins.join("v999");
    std::fs::create_dir(&other).unwrap();
    let refused = Kernel::load(&machine.pins, &cgroup_root().unwrap());
    assert!(matches!(refused, Err(KernelError::Pins(text)) if text.contains("v999")));
    std::fs::remove_dir(&other).unwrap();
}

#[test]
fn a_map_of_other_sizes_is_refused() {
    let mut machine = Machine::new();
    machine.forget();
    let maps = machine
        .pins
        .join(format!("v{}/maps", agentguard_common::abi::VERSION));
    std::fs::rename(maps.join("CONFIG"), maps.join("CONFIG_")).unwrap();
    std::fs::rename(maps.join("AGENTS"), maps.join("CONFIG")).unwrap();
    let refused = Kernel::load(&machine.pins, &cgroup_root().unwrap());
    assert!(matches!(refused, Err(KernelError::Pins(text)) if text.contains("CONFIG")));
}

#[test]
fn the_forwarders_descriptors_cannot_write() {
    let mut machine = Machine::new();
    let maps = machine.kernel().forwarder_maps().unwrap();
    let (key, value) = (7u64, [0u8; 40]);
    // `union bpf_attr` of BPF_MAP_UPDATE_ELEM.
    let attr = [
        std::os::fd::AsRawFd::as_raw_fd(&maps.accepted) as u64,
        std::ptr::from_ref(&key).addr() as u64,
        value.as_ptr().addr() as u64,
        0,
    ];
    // SAFETY: the kernel reads 32 bytes of `attr`, and key and value by the map's sizes.
    #[allow(unsafe_code, reason = "bpf(2) as an attacker calls it")]
    let result = unsafe { libc::syscall(libc::SYS_bpf, 2, attr.as_ptr(), 32) };
    let error = std::io::Error::last_os_error().raw_os_error();
    assert_eq!((result, error), (-1, Some(libc::EPERM)));
    let origins = agentguard_kernel::OriginMaps::from_fds(maps.accepted, maps.questions);
    assert_eq!(origins.accepted(7).unwrap(), None);
}

#[test]
fn ids_out_of_range_have_no_rules() {
    let mut machine = Machine::new();
    for id in [0, 1, 4096, u32::MAX] {
        assert!(
            machine.kernel().set_rules(AgentId(id), &[]).is_err(),
            "{id}"
        );
    }
}
