//! What the host must have before anything is loaded, each with its remedy.

use std::os::unix::fs::MetadataExt as _;

use super::KernelError;

/// `bpf_loop` came with 5.17; 6.1 is the oldest kernel tested.
const OLDEST: (u32, u32) = (6, 1);
/// `PROC_PID_INIT_INO`.
const INIT_PID_NS: u64 = 0xEFFF_FFFC;

pub(super) fn check() -> Result<(), KernelError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(KernelError::Unsupported(
            "loading the kernel programs needs root; run as root".into(),
        ));
    }
    let name = nix::sys::utsname::uname().map_err(|error| KernelError::Call {
        call: "uname",
        source: error.into(),
    })?;
    let release = name.release().to_string_lossy();
    if version(&release).is_none_or(|version| version < OLDEST) {
        return Err(KernelError::Unsupported(format!(
            "kernel {release} is too old; {}.{} or later is needed",
            OLDEST.0, OLDEST.1
        )));
    }
    // Labels are by the host's tgids: in another namespace every number would name somebody else.
    let namespace = std::fs::metadata("/proc/self/ns/pid").map_err(|source| KernelError::Call {
        call: "stat",
        source,
    })?;
    if namespace.ino() != INIT_PID_NS {
        return Err(KernelError::Unsupported(
            "not in the host's pid namespace; start the daemon there".into(),
        ));
    }
    Ok(())
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn versions() {
        assert_eq!(version("6.18.44-fc-v657"), Some((6, 18)));
        assert_eq!(version("5.10.0-28-cloud-amd64"), Some((5, 10)));
        assert_eq!(version("mainline"), None);
    }
}
