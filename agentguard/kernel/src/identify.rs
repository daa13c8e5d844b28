//! The `[[identify]]` blocks in the kernel: two banks, one in force, so that a process is judged by all of the old blocks or
//! by all of the new.

use std::os::unix::fs::DirEntryExt as _;
use std::path::{Path, PathBuf};

use agentguard_common::abi::{CgroupMask, ConfigSlot, Identify, IdentifyHead, MAX_IDENTIFY};
use agentguard_common::glob;

use super::KernelError;
use super::maps::Maps;

const NO_BLOCK: Identify = Identify {
    agent: agentguard_common::abi::AgentId::NONE,
    keys: 0,
    uid: 0,
    exe_len: 0,
    cgroup_len: 0,
    parent: agentguard_common::abi::AgentId::NONE,
    exe: [0; agentguard_common::abi::PATH_LEN],
    cgroup: [0; agentguard_common::abi::PATH_LEN],
};

/// Fills the bank that is not in force, marks the cgroups there are, and puts it in force.
pub(super) fn replace(
    maps: &Maps,
    cgroup_root: &Path,
    blocks: &[Identify],
) -> Result<(), KernelError> {
    if blocks.len() > MAX_IDENTIFY as usize {
        return Err(KernelError::Limit(format!(
            "{} identify blocks are more than {MAX_IDENTIFY}",
            blocks.len()
        )));
    }
    let in_force = IdentifyHead::unpack(maps.config(ConfigSlot::Identify)?);
    let bank = in_force.bank ^ 1;
    let first = u32::from(bank) * MAX_IDENTIFY;
    for n in 0..MAX_IDENTIFY {
        let block = blocks.get(n as usize).unwrap_or(&NO_BLOCK);
        maps.identify.update(&(first + n), block)?;
    }
    // From here on cgroup_mkdir marks new cgroups for this bank too: none is missed between.
    if in_force.keys | keys(blocks) & Identify::CGROUP as u8 != 0 {
        mark_cgroups(maps, cgroup_root, usize::from(bank), blocks)?;
    }
    let head = IdentifyHead {
        bank,
        len: blocks.len() as u8,
        keys: keys(blocks),
        users: users(blocks),
    };
    maps.set_config(ConfigSlot::Identify, head.pack())
}

fn keys(blocks: &[Identify]) -> u8 {
    blocks.iter().fold(0, |keys, block| keys | block.keys as u8)
}

fn users(blocks: &[Identify]) -> u32 {
    let named = blocks
        .iter()
        .filter(|block| block.keys & Identify::UID != 0);
    named.fold(0, |users, block| users | IdentifyHead::user(block.uid))
}

fn mark_cgroups(
    maps: &Maps,
    root: &Path,
    bank: usize,
    blocks: &[Identify],
) -> Result<(), KernelError> {
    for (id, path) in cgroups(root) {
        let found = maps.cgroups.lookup(&id)?;
        let mut mask = found.unwrap_or_default();
        if let Some(bits) = mask.banks.get_mut(bank) {
            *bits = mask_of(blocks, &path);
        }
        if mask != CgroupMask::default() {
            maps.cgroups.update(&id, &mask)?;
        } else if found.is_some() {
            maps.cgroups.delete(&id)?;
        }
    }
    Ok(())
}

fn mask_of(blocks: &[Identify], path: &str) -> u64 {
    blocks
        .iter()
        .enumerate()
        .filter(|(_, block)| block.keys & Identify::CGROUP != 0)
        .filter(|(_, block)| {
            block
                .cgroup
                .get(..block.cgroup_len as usize)
                .is_some_and(|pattern| glob::matches(pattern, path.as_bytes(), true))
        })
        .fold(0, |mask, (n, _)| mask | 1 << n)
}

/// Id and path of every cgroup below `root`, itself included. One that goes away meanwhile is left out.
fn cgroups(root: &Path) -> Vec<(u64, String)> {
    use std::os::unix::fs::MetadataExt as _;
    let mut found = Vec::new();
    let mut todo: Vec<(PathBuf, u64)> = std::fs::metadata(root)
        .map(|root_data| (root.to_owned(), root_data.ino()))
        .into_iter()
        .collect();
    while let Some((folder, id)) = todo.pop() {
        if let Ok(below) = folder.strip_prefix(root) {
            // The inode number is the kernfs id on 64-bit kernels (`kernfs_ino`).
            found.push((id, format!("/{}", below.display())));
        }
        let children = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        todo.extend(
            children
                .filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|child| (child.path(), child.ino())),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_has_the_bits_of_the_blocks_that_match() {
        let block = |pattern: &str, keys| {
            let mut block = NO_BLOCK;
            block.keys = keys;
            block.cgroup_len = pattern.len() as u32;
            block.cgroup[..pattern.len()].copy_from_slice(pattern.as_bytes());
            block
        };
        let blocks = [
            block("/system.slice/a.service", Identify::CGROUP),
            block("/system.slice/*", Identify::CGROUP),
            block("/system.slice/*", Identify::UID),
            block("/user.slice/**", Identify::CGROUP),
        ];
        assert_eq!(mask_of(&blocks, "/system.slice/a.service"), 0b11);
        assert_eq!(mask_of(&blocks, "/system.slice/a.service/sub"), 0b11);
        assert_eq!(mask_of(&blocks, "/system.slice/b.service"), 0b10);
        assert_eq!(mask_of(&blocks, "/user.slice/user-0"), 0b1000);
        assert_eq!(mask_of(&blocks, "/"), 0);
    }
}
