use agentguard_common::abi::{Forwarder, VERSION};
use agentguard_sys::socket::netns_cookie;
use aya::maps::{Array, Map, MapData};

use crate::machine::*;

/// No namespace has such a cookie yet.
const ELSEWHERE: u64 = 1 << 60;

/// What the bitmap of the forwarders' ports says.
fn ports(machine: &Machine) -> Vec<u32> {
    let path = machine.pins.join(format!("v{VERSION}/maps/PORTS"));
    let map = Map::Array(MapData::from_pin(path).unwrap());
    let words: Array<_, u64> = Array::try_from(map).unwrap();
    let set = words.iter().zip(0u32..).flat_map(|(word, index)| {
        let word = word.unwrap();
        (0..64)
            .filter(move |bit| (word >> bit) & 1 == 1)
            .map(move |bit| 64 * index + bit)
    });
    set.collect()
}

fn listening(port: u32) -> Forwarder {
    Forwarder {
        up: 1,
        port,
        tgid: std::process::id(),
        ..Forwarder::default()
    }
}

#[test]
fn a_port_is_watched_for_as_long_as_some_namespace_has_it() {
    let mut machine = Machine::new();
    let home = netns_cookie().unwrap();
    let kernel = machine.kernel();
    kernel.set_forwarder(home, listening(61_111)).unwrap();
    kernel.add_namespace(ELSEWHERE, listening(61_111)).unwrap();
    kernel
        .add_namespace(ELSEWHERE + 1, listening(61_112))
        .unwrap();
    assert_eq!(ports(&machine), [61_111, 61_112]);
    machine
        .kernel()
        .add_namespace(ELSEWHERE + 1, listening(61_113))
        .unwrap();
    assert_eq!(ports(&machine), [61_111, 61_113]);
    machine.kernel().remove_namespace(ELSEWHERE).unwrap();
    machine.kernel().remove_namespace(ELSEWHERE).unwrap();
    assert_eq!(ports(&machine), [61_111, 61_113], "the host's own");
    machine.kernel().remove_namespace(ELSEWHERE + 1).unwrap();
    assert_eq!(ports(&machine), [61_111]);

    // With the forwarder go its namespaces.
    machine
        .kernel()
        .add_namespace(ELSEWHERE, listening(61_114))
        .unwrap();
    machine
        .kernel()
        .set_forwarder(home, Forwarder::default())
        .unwrap();
    assert_eq!(ports(&machine), [0u32; 0]);
}

#[test]
fn a_full_map_is_an_error_and_makes_nobody_reachable() {
    let mut machine = Machine::new();
    let home = netns_cookie().unwrap();
    machine
        .kernel()
        .set_forwarder(home, listening(61_111))
        .unwrap();
    for n in 0..1023 {
        machine
            .kernel()
            .add_namespace(ELSEWHERE + n, listening(61_111))
            .unwrap();
    }
    let error = machine
        .kernel()
        .add_namespace(ELSEWHERE + 1023, listening(61_111));
    assert!(error.is_err());
    machine.kernel().remove_namespace(ELSEWHERE).unwrap();
    machine
        .kernel()
        .add_namespace(ELSEWHERE + 1023, listening(61_111))
        .unwrap();
}

#[test]
fn a_forwarder_elsewhere_is_not_one_here() {
    let mut machine = Machine::new();
    let (_server, port) = server("127.0.0.1");
    machine.rules(&[reach_tcp("127.0.0.1/32", port)]);
    let home = netns_cookie().unwrap();
    machine
        .kernel()
        .set_forwarder(home, listening(61_111))
        .unwrap();
    machine
        .kernel()
        .add_namespace(ELSEWHERE, listening(port.into()))
        .unwrap();
    let script = format!("say(connect('127.0.0.1', {port}))");
    assert_eq!(
        machine.run(&script),
        "ok",
        "its port is an ordinary one here"
    );
    assert_eq!(bystander(&script), "ok");
}
