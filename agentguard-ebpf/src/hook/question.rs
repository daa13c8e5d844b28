//! A question to the resolver, filed under the number that its packet carries to the forwarder's socket.

use agentguard_common::abi::{AgentId, FlowKey, Question, SocketMark};
use agentguard_common::counter::Counter;
use agentguard_common::share::{
    self, QUESTION_BITS, QUESTION_EVERY_NS, QUESTIONS_IN_A_ROW, QuestionMark,
};
use aya_ebpf::bindings::{__sk_buff, BPF_NOEXIST};
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;

use crate::maps::{QUESTION_PLACES, QUESTION_TURNS, QUESTIONS, QUESTIONS_DUE, is_due, turn};

/// Whether the agent may ask once more now.
#[inline(always)]
pub fn may_ask(agent: AgentId) -> bool {
    QUESTIONS_DUE
        .get_ptr_mut(agent.0)
        .is_some_and(|due| is_due(due, QUESTIONS_IN_A_ROW, QUESTION_EVERY_NS))
}

/// Marks the packet. The loopback device takes the mark along, and its own routing has been done.
#[inline(always)]
pub fn ask(skb: *mut __sk_buff, mark: &SocketMark, flow: FlowKey) -> Result<(), Counter> {
    let turn = turn(&QUESTION_TURNS, mark.agent).ok_or(Counter::FlowMapFull)?;
    let place = share::place(mark.agent, turn, QUESTION_BITS);
    // SAFETY: copied at once.
    if let Some(oldest) = unsafe { QUESTION_PLACES.get(place) }.copied() {
        let _ = QUESTIONS.remove(oldest);
    }
    // SAFETY: no arguments.
    let number = QuestionMark::new(unsafe { bpf_get_prandom_u32() });
    let question = Question {
        flow,
        origin: mark.origin,
    };
    // Two of one number would be one: none is better, and asked again.
    QUESTIONS
        .insert(number, question, u64::from(BPF_NOEXIST))
        .map_err(|_| Counter::FlowMapFull)?;
    let _ = QUESTION_PLACES.insert(place, number, 0);
    // SAFETY: a context member; the verifier checks the access.
    unsafe { (&raw mut (*skb).mark).write_volatile(number.0) };
    Ok(())
}
