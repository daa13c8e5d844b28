//! Landlock: which of the kernel's objects are within reach. What has been opened before stays open.

use agentguard_common::abi::TAG_PORT;
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, LandlockStatus, NetPort,
    Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, Scope,
};

/// The newest whose rights are all refused here; an older kernel refuses those that it knows.
const NEWEST: ABI = ABI::V9;

/// Restricts this thread. Answers the ABI that the kernel enforces, 0 if it has no Landlock.
pub(super) fn restrict() -> Result<u32, RulesetError> {
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        // ABI 1 and later, with no rule: no file is opened, made, changed or executed, no socket file connected to.
        .handle_access(AccessFs::from_all(NEWEST))?
        // ABI 4: nothing listens that does not already.
        .handle_access(AccessNet::BindTcp)?
        // ABI 6: no abstract Unix socket and no signal but the forwarder's own.
        .scope(Scope::from_all(NEWEST))?
        .create()?
        // `upstream::tag` marks an upstream socket with its agent by a bind to this port.
        .add_rule(NetPort::new(TAG_PORT, AccessNet::BindTcp))?
        .restrict_self()?;
    Ok(match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => effective_abi as u32,
        LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => 0,
    })
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::{TcpListener, UdpSocket};
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_restricted_thread_reaches_nothing_new() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secret");
        std::fs::write(&file, "x").unwrap();
        let name = SocketAddr::from_abstract_name(format!("agentguard-{}", std::process::id()));
        let name = name.unwrap();
        let _abstract = UnixListener::bind_addr(&name).unwrap();
        std::fs::read(&file).unwrap();
        UnixStream::connect_addr(&name).unwrap();
        // Threads that the parent starts later are free: the restriction is the calling thread's.
        let restricted = std::thread::spawn(move || {
            let abi = restrict().unwrap();
            let denied = |kind: Option<ErrorKind>| kind == Some(ErrorKind::PermissionDenied);
            if abi >= 1 {
                assert!(denied(std::fs::read(&file).err().map(|e| e.kind())));
                assert!(denied(std::fs::write(&file, "y").err().map(|e| e.kind())));
            }
            if abi >= 4 {
                let bound = TcpListener::bind("127.0.0.1:0");
                assert!(denied(bound.err().map(|e| e.kind())));
            }
            if abi >= 6 {
                let connected = UnixStream::connect_addr(&name);
                assert!(denied(connected.err().map(|e| e.kind())));
            }
            // Resolving names goes on.
            UdpSocket::bind("127.0.0.1:0").unwrap();
            abi
        });
        restricted.join().unwrap();
    }
}
