//! AgentGuard's kernel programs: one file per hook below `hook`, each thin. Verdicts are `agentguard_common::decide`'s;
//! `hook::guard` turns errors into denials for agents and into nothing for everyone else.
#![no_std]
#![no_main]
#![allow(
    unsafe_code,
    reason = "the helpers of eBPF and the memory that they hand over"
)]
#![feature(core_intrinsics)]
#![allow(
    internal_features,
    reason = "the target has no atomic addition but the intrinsic"
)]

mod emit;
mod exec_rules;
mod hook;
mod identify;
mod maps;
mod path;
mod protected;
mod rules;
mod sock_addr;
mod task;
mod told;

/// A surviving panic is an endless loop, which the verifier refuses: no undefined behaviour at run time.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Helpers that are GPL-only (`bpf_probe_read_kernel`, `bpf_send_signal`) need the program to say so.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
