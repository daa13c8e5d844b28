//! Each of the kernel's tables that agents fill, filled by one agent (`agentguard_common::share`): another agent and a bystander
//! go on, and the agent itself where it has a place again.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use agentguard_common::abi::EventKind;
use agentguard_common::share::{
    CONNECT_EVERY_NS, CONNECTS_IN_A_ROW, FLOWS_EACH, HEARD_BITS, QUESTION_BITS, QUESTION_EVERY_NS,
    QUESTIONS_IN_A_ROW,
};
use agentguard_common::verdict::Refusal;
use agentguard_kernel::Rule;

use crate::machine::*;

#[test]
fn idle_sockets_that_have_asked_keep_nobody_from_asking() {
    const ASK: &str =
        "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.sendto(b'q', ('127.9.9.9', 53))";
    let each = 1 << QUESTION_BITS;
    let mut machine = Machine::new();
    machine.rules(&[Rule::Forward]);
    machine.kernel().set_rules(OTHER, &[Rule::Forward]).unwrap();
    let forwarder = machine.forwarder();
    let origins = machine.origins();
    let other = machine.agent(OTHER, &format!("{ASK}; wait()"));
    let others = Question::receive(&forwarder.dns);
    let code = format!(
        "kept = []
for _ in range({}):
    {ASK}; kept.append(u)
wait()",
        each + 1
    );
    let agent = machine.agent(AGENT, &code);
    let asked: Vec<_> = (0..=each)
        .map(|_| Question::receive(&forwarder.dns))
        .collect();
    let whose = |question: &Question| question.origin(&origins).map(|origin| origin.agent);
    assert_eq!(whose(&others), Some(OTHER));
    assert_eq!(whose(&asked[0]), None, "its own oldest");
    assert!(
        asked[1..]
            .iter()
            .all(|question| whose(question) == Some(AGENT))
    );
    drop((agent, other));
}

#[test]
fn who_asks_without_pause_is_refused_and_others_ask() {
    let mut machine = Machine::new();
    machine.rules(&[Rule::Forward]);
    machine.kernel().set_rules(OTHER, &[Rule::Forward]).unwrap();
    let _forwarder = machine.forwarder();
    let mut agent = machine.agent(
        AGENT,
        "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
begun = time.monotonic()
answers = [attempt(u.sendto, b'q', ('127.9.9.9', 53)) for _ in range(5000)]
took = int((time.monotonic() - begun) * 1000)
say(answers.count(1)); say(answers.count('EPERM')); say(took); wait()",
    );
    let (asked, refused, took_ms) = (agent.number(), agent.number(), agent.number());
    assert_eq!(asked + refused, 5000);
    let in_a_row = QUESTIONS_IN_A_ROW as u32;
    let every_ms = QUESTION_EVERY_NS as u32 / 1_000_000;
    assert!(asked >= in_a_row, "{asked}");
    // Two processors may take one turn for both.
    let most = 2 * (in_a_row + took_ms / every_ms + 1);
    assert!(asked <= most && refused > 0, "{asked} in {took_ms} ms");
    let refusal = machine.await_event(|event| event.reason == Refusal::Share as u32);
    assert_eq!(refusal.agent, AGENT);
    let other = machine.agent(
        OTHER,
        "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); say(attempt(u.sendto, b'q', ('127.9.9.9', 53)))",
    );
    assert_eq!(other.finish(), "1");
    agent.go();
    agent.finish();
}

/// What waits in the listener's queue waits there when its client has closed it, too.
#[test]
fn who_connects_and_closes_without_pause_is_refused_and_others_connect() {
    let mut machine = Machine::new();
    machine.rules(&[Rule::Forward]);
    machine.kernel().set_rules(OTHER, &[Rule::Forward]).unwrap();
    let forwarder = machine.forwarder();
    let listener = forwarder.v4.try_clone().unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let taking = std::thread::spawn({
        let over = over.clone();
        move || while listener.accept().is_ok() && !over.load(Ordering::Relaxed) {}
    });
    let mut agent = machine.agent(
        AGENT,
        "def one():
    with socket.socket() as s: s.setblocking(False); return s.connect_ex(('127.9.9.9', 443))
reading, writing = os.pipe(); begun = time.monotonic()
children = []
for _ in range(4):
    child = os.fork()
    if child == 0:
        made = 0; why = one()
        while why == errno.EINPROGRESS: made += 1; why = one()
        os.write(writing, struct.pack('II', made, why)); os._exit(0)
    children.append(child)
for child in children: os.waitpid(child, 0)
took = time.monotonic() - begun
ends = [struct.unpack('II', os.read(reading, 8)) for _ in children]
say(sum(made for made, _ in ends)); say(int(took * 1000))
say(*{errno.errorcode[why] for _, why in ends}); wait()",
    );
    let (made, took_ms) = (agent.number(), agent.number());
    let in_a_row = CONNECTS_IN_A_ROW as u32;
    assert!(made >= in_a_row, "{made}");
    // Two processors may take one turn for both.
    let due = u64::from(took_ms) * 1_000_000 / CONNECT_EVERY_NS;
    let most = 2 * (in_a_row + due as u32 + 1);
    assert!(made <= most, "{made} in {took_ms} ms");
    assert_eq!(agent.line(), "EPERM");
    let refusal = machine.await_event(|event| event.reason == Refusal::Share as u32);
    assert_eq!(refusal.agent, AGENT);
    // The last that is taken.
    over.store(true, Ordering::Relaxed);
    assert_eq!(
        machine
            .agent(OTHER, "say(connect('127.9.9.9', 443))")
            .finish(),
        "ok"
    );
    agent.go();
    agent.finish();
    taking.join().unwrap();
}

#[test]
fn one_agents_connections_under_way_leave_room_for_others() {
    let mut machine = Machine::new();
    machine.rules(&[Rule::Forward]);
    machine.kernel().set_rules(OTHER, &[Rule::Forward]).unwrap();
    let forwarder = machine.forwarder();
    let (_server, port) = server("127.0.0.1");
    // Nobody accepts: when the listener's queue is full, a SYN is not answered.
    let mut agent = machine.agent(
        AGENT,
        "import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (16384, 16384))
kept = []
while len(kept) < 10000:
    s = socket.socket(); s.setblocking(False)
    why = attempt(s.connect, ('127.9.9.9', 443))
    if why != 'EINPROGRESS': break
    kept.append(s)
    # Below the rate.
    if len(kept) % 500 == 0: time.sleep(0.1)
say(len(kept)); say(why); wait()
kept.pop().close()
say(connect('::1', 443, socket.AF_INET6)); wait()",
    );
    let made = i64::from(agent.number());
    assert_eq!(agent.line(), "EPERM");
    assert!(made >= FLOWS_EACH, "{made} connections");
    machine.await_event(|event| event.reason == Refusal::Share as u32);
    assert_eq!(machine.refused(EventKind::Connect, Refusal::Share), 1);
    let mut other = machine.agent(OTHER, "say(connect('::1', 443, socket.AF_INET6)); wait()");
    assert_eq!(other.line(), "ok");
    let said = bystander(&format!("say(connect('127.0.0.1', {port}))"));
    assert_eq!(said, "ok");
    agent.go();
    assert_eq!(agent.line(), "ok", "one less was under way");
    // What is gone does not count.
    drop((agent, other, forwarder));
    let _forwarder = machine.forwarder();
    assert_eq!(machine.run("say(connect('127.9.9.9', 443))"), "ok");
}

#[test]
fn one_agents_callers_push_out_none_of_anothers() {
    let each = 1 << HEARD_BITS;
    let mut machine = Machine::new();
    let mut listening = |agent, behind: &str| {
        let free = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = free.local_addr().unwrap();
        let (addr, port) = (at.ip(), at.port());
        let rules = [Rule::ListenUdp { addr, port }];
        machine.kernel().set_rules(agent, &rules).unwrap();
        drop(free);
        let code = format!(
            "l = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); l.bind(('{addr}', {port})); say('bound')
_, first = l.recvfrom(9); say('heard')
{behind}
say(attempt(l.sendto, b'late', first)); wait()"
        );
        let mut script = machine.agent(agent, &code);
        assert_eq!(script.line(), "bound");
        let caller = UdpSocket::bind("127.0.0.1:0").unwrap();
        caller.send_to(b"call", at).unwrap();
        assert_eq!(script.line(), "heard");
        (script, caller, port)
    };
    let (mut other, _waiting, _) = listening(OTHER, "wait()");
    let crowd = format!("for _ in range({each}): _, peer = l.recvfrom(9); l.sendto(b'a', peer)");
    let (mut agent, _forgotten, port) = listening(AGENT, &crowd);
    let said = bystander(&format!(
        "for n in range({each}):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5)
    s.bind(('127.1.%d.%d' % (n >> 8, n & 255), 0)); s.sendto(b'call', ('127.0.0.1', {port})); s.recv(9); s.close()
say('all answered')"
    ));
    assert_eq!(said, "all answered");
    assert_eq!(agent.line(), "EPERM", "its own oldest");
    other.go();
    assert_eq!(other.line(), "4", "who is heard by another stays");
}
