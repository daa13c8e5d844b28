//! What an agent may execute, by the rules in force.

use agentguard_common::abi::{AgentId, ConfigSlot, ExecHead, MAX_AGENTS, MAX_EXEC_RULES};
use agentguard_common::exec::Scan;
use agentguard_common::verdict::Refusal;
use aya_ebpf::helpers::generated::bpf_loop;

use crate::maps::{EXEC_HEADS, EXEC_RULES, Scratch, config};
use crate::path;
use crate::task::Unreadable;

/// Steps that all rules of an agent together may take. A pattern without `**` takes at most its own and the text's length.
const MAX_STEPS: u32 = 1 << 18;

/// What is in force for one agent.
#[derive(Clone, Copy)]
pub struct Rules(ExecHead);

/// A file and what the rules say of it. Its path is in the scratch.
pub struct Judgement {
    pub path_len: u32,
    pub refusal: Option<Refusal>,
}

impl Rules {
    /// `None`: the agent's files are not judged.
    #[inline(always)]
    pub fn of(agent: AgentId) -> Option<Self> {
        let bank = config(ConfigSlot::Exec) as u32 & 1;
        let head = EXEC_HEADS.get(bank * MAX_AGENTS + (agent.0 & (MAX_AGENTS - 1)))?;
        (head.flags & ExecHead::JUDGED != 0).then_some(Self(*head))
    }

    /// Whether arguments stay out of the log.
    #[inline(always)]
    pub fn private(&self) -> bool {
        self.0.flags & ExecHead::PRIVATE != 0
    }

    /// Judges a `struct file`.
    #[inline(always)]
    pub fn judge(&self, scratch: *mut Scratch, file: u64) -> Result<Judgement, Unreadable> {
        let found = path::of_file(scratch, file)?;
        let refusal = if !path::is_named(file, &found)? {
            Some(Refusal::Fileless)
        } else if self.allow(scratch, found.len)? {
            None
        } else {
            Some(Refusal::ExecRule)
        };
        Ok(Judgement {
            path_len: found.len,
            refusal,
        })
    }

    /// Too many steps are an error, like everything that keeps from judging.
    #[inline(always)]
    fn allow(&self, scratch: *mut Scratch, path_len: u32) -> Result<bool, Unreadable> {
        // SAFETY: the scratch is this program's alone meanwhile.
        unsafe { (*scratch).exec = Scan::new(&self.0, path_len) };
        let mut context = scratch;
        // SAFETY: `scan` has bpf_loop's callback signature and takes such a context.
        unsafe {
            bpf_loop(
                MAX_STEPS,
                scan as *mut core::ffi::c_void as *mut _,
                (&raw mut context).cast(),
                0,
            )
        };
        // SAFETY: as above.
        unsafe { (*scratch).exec.finish(&self.0) }.ok_or(Unreadable)
    }
}

/// `bpf_loop` callback: one step of one rule, or of getting to the next one.
extern "C" fn scan(_index: u32, context: *mut core::ffi::c_void) -> i64 {
    // SAFETY: `allow`'s own.
    let scratch = unsafe { *context.cast::<*mut Scratch>() };
    // SAFETY: as in `allow`.
    let Scratch { exec, path, .. } = unsafe { &mut *scratch };
    if !exec.is_running() {
        return 1;
    }
    let Some(rule) = EXEC_RULES.get(exec.rule & (2 * MAX_EXEC_RULES - 1)) else {
        return 1;
    };
    exec.step(rule, path);
    0
}
