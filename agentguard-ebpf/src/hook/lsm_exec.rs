//! An exec before it happens: refused with EPERM.

use agentguard_common::abi::EventKind;
use agentguard_common::verdict::Refusal;
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;

use crate::emit::{self, What};
use crate::hook::guard::Answer;
use crate::hook::lsm;

/// `search_binary_handler`, once for each file of the chain: (bprm, answer of the program before).
#[lsm(hook = "bprm_check_security")]
pub fn lsm_bprm_check_security(ctx: LsmContext) -> i32 {
    lsm::answer(
        ctx.arg(1),
        |caller| {
            Ok(match caller.killed {
                true => Answer::Deny(Refusal::Killed),
                false => Answer::Allow,
            })
        },
        |caller, refusal| emit::call(EventKind::Exec, refusal, caller.agent, &What::default()),
    )
}
