//! What an agent may execute, by the rules in force.

use agentguard_common::abi::{AgentId, ConfigSlot, ExecHead, MAX_AGENTS, MAX_EXEC_RULES};
use agentguard_common::exec::{Content, Scan};
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

    /// Whether what they refuse is executed all the same, and recorded.
    #[inline(always)]
    pub fn observed(&self) -> bool {
        self.0.flags & ExecHead::OBSERVED != 0
    }

    /// Whether a rule counts only for files of some content.
    #[inline(always)]
    pub fn has_digests(&self) -> bool {
        self.0.flags & ExecHead::DIGESTS != 0
    }

    /// Whether what the rules say of a `struct file` depends on its content.
    #[inline(always)]
    pub fn ask(&self, scratch: *mut Scratch, file: u64) -> Result<bool, Unreadable> {
        let found = path::of_file(scratch, file)?;
        // SAFETY: the scratch is this program's alone meanwhile.
        unsafe { (*scratch).content.known = Content::ASKED };
        self.scan(scratch, found.len);
        // SAFETY: as above.
        Ok(unsafe { (*scratch).exec.asks() })
    }

    /// Judges a `struct file`, by the content that the scratch has of it.
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
        self.scan(scratch, path_len);
        // SAFETY: the scratch is this program's alone meanwhile.
        unsafe { (*scratch).exec.finish(&self.0) }.ok_or(Unreadable)
    }

    /// Goes through the rules, in the scratch, until one decides.
    #[inline(always)]
    fn scan(&self, scratch: *mut Scratch, path_len: u32) {
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
    }
}

/// `bpf_loop` callback: one step of one rule, or of getting to the next one.
extern "C" fn scan(_index: u32, context: *mut core::ffi::c_void) -> i64 {
    // SAFETY: that of `Rules::scan`.
    let scratch = unsafe { *context.cast::<*mut Scratch>() };
    // SAFETY: as in `allow`.
    let Scratch {
        exec,
        path,
        content,
        ..
    } = unsafe { &mut *scratch };
    if !exec.is_running() {
        return 1;
    }
    let Some(rule) = EXEC_RULES.get(exec.rule & (2 * MAX_EXEC_RULES - 1)) else {
        return 1;
    };
    exec.step(rule, path, content);
    0
}
