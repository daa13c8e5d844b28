//! Every way the programs get into the kernel: fresh, over the pins of a daemon that is gone, and after `unload`. Tells
//! what each program costs the verifier, which `cargo xtask test vm` compares.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use agentguard_kernel::{Kernel, cgroup_root};
use agentguard_tests::names;
use agentguard_tests::turn::Turn;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::loaded_programs;

/// Instructions that the verifier went through, by program; 0 before 5.16.
type Verified = BTreeMap<&'static str, u32>;

struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        if let Err(error) = Kernel::unload(&self.0) {
            eprintln!("cannot unload: {error}");
        }
    }
}

#[test]
fn every_shape_loads() {
    let _turn = Turn::in_company();
    let pins = Pins(Path::new("/sys/fs/bpf").join(names::unique()));
    let fresh = load(&pins.0);
    let taken_over = load(&pins.0);
    Kernel::unload(&pins.0).unwrap();
    assert!(!pins.0.exists());
    let after_unload = load(&pins.0);
    assert_eq!(fresh, taken_over);
    assert_eq!(fresh, after_unload);
    for (program, instructions) in fresh {
        println!("verified {program} {instructions}");
    }
}

fn load(pins: &Path) -> Verified {
    let kernel =
        Kernel::load(pins, &cgroup_root().unwrap()).unwrap_or_else(|error| panic!("{error}"));
    let hooks = kernel.hooks();
    assert!(hooks.iter().all(|hook| hook.attached), "{hooks:?}");
    let links = pins.join(format!("v{}/links", agentguard_common::abi::VERSION));
    hooks
        .iter()
        .map(|hook| (hook.name, verified(&links.join(hook.name))))
        .collect()
}

fn verified(link: &Path) -> u32 {
    let link = FdLink::from(PinnedLink::from_pin(link).unwrap());
    let program = link.info().unwrap().program_id();
    loaded_programs()
        // One that was unloaded meanwhile is an error.
        .flatten()
        .find(|info| info.id() == program)
        .unwrap()
        .verified_instruction_count()
        .unwrap_or_default()
}
