//! What the canary aims at: sockets of the daemon's own on loopback and in its runtime folder, so that no traffic of the
//! host is disturbed, and the daemon's own program.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use agentguard_common::abi::{AgentId, UnixName};
use agentguard_kernel::{ExecFile, ExecRules, Rule};
use agentguard_link::canary::PERMITTED;
use agentguard_sys::user::Account;
use ipnet::IpNet;

use super::origin::CanaryServer;
use crate::enforce::canary::process::{Attempt, FORBIDDEN};

/// Below the runtime folder.
const PERMITTED_UNIX: &str = "canary1.sock";
const FORBIDDEN_UNIX: &str = "canary2.sock";

/// The name of what the forwarder judges.
pub(super) const REQUEST: &str = "request";

/// One attempt, with a name for people, and whether it is permitted.
pub(super) struct Trial {
    pub(super) name: &'static str,
    pub(super) permitted: bool,
    pub(super) attempt: Attempt,
}

pub(super) struct Targets {
    /// Its rules name these.
    permitted: TcpListener,
    permitted_v6: Option<TcpListener>,
    permitted_udp: UdpSocket,
    permitted_unix: Bound,
    /// And not these.
    forbidden: TcpListener,
    forbidden_v6: Option<TcpListener>,
    forbidden_udp: UdpSocket,
    forbidden_unix: Bound,
    pub(super) origin: CanaryServer,
    /// The daemon's program, by its name at start.
    program: PathBuf,
}

/// A socket file that is gone with its socket.
struct Bound {
    listener: UnixListener,
    path: PathBuf,
}

impl Targets {
    /// `account`: whose the canary is, and the socket files.
    pub(super) fn open(runtime: &Path, account: &Account) -> io::Result<Self> {
        let local = (Ipv4Addr::LOCALHOST, 0);
        // Where the host has no `::1`, nothing permitted can be there. Both listen, or they could have one port.
        let listen_v6 = || TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).ok();
        let targets = Self {
            permitted: TcpListener::bind(local)?,
            permitted_v6: listen_v6(),
            permitted_udp: UdpSocket::bind(local)?,
            permitted_unix: Bound::at(runtime.join(PERMITTED_UNIX), account)?,
            forbidden: TcpListener::bind(local)?,
            forbidden_v6: listen_v6(),
            forbidden_udp: UdpSocket::bind(local)?,
            forbidden_unix: Bound::at(runtime.join(FORBIDDEN_UNIX), account)?,
            origin: CanaryServer::start()?,
            program: std::env::current_exe()?,
        };
        for listener in targets.listeners() {
            listener.set_nonblocking(true)?;
        }
        for socket in [&targets.permitted_udp, &targets.forbidden_udp] {
            socket.set_nonblocking(true)?;
        }
        Ok(targets)
    }

    pub(super) fn rules(&self) -> Vec<Rule> {
        let exactly = |addr: SocketAddr| (IpNet::from(addr.ip()), Some(addr.port()));
        let tcp = [Some(&self.permitted), self.permitted_v6.as_ref()];
        let mut rules: Vec<Rule> = tcp
            .into_iter()
            .flatten()
            .filter_map(|listener| listener.local_addr().ok())
            .map(|addr| {
                let (net, port) = exactly(addr);
                Rule::ReachTcp { net, port }
            })
            .collect();
        if let Ok(addr) = self.permitted_udp.local_addr() {
            let (net, port) = exactly(addr);
            rules.push(Rule::ReachUdp { net, port });
        }
        rules
    }

    pub(super) fn unix(&self) -> Vec<UnixName> {
        let path = self.permitted_unix.path.as_os_str().as_bytes();
        UnixName::new(path).into_iter().collect()
    }

    /// The one agent may execute the daemon's program and the other nothing. The kernel names it from the root of the mount
    /// namespace, which is above the daemon's in a chroot.
    pub(super) fn exec(&self) -> [ExecRules; 2] {
        let path = self.program.display().to_string();
        let below = format!("/**{path}");
        let permitted = ExecRules {
            allow: [&*path, &*below].map(ExecFile::from).into(),
            ..ExecRules::nothing(AgentId::CANARY)
        };
        [permitted, ExecRules::nothing(AgentId::CANARY_HOSTS)]
    }

    /// Whether the program's name still leads to what the daemon runs. After an upgrade it does not, until a restart, and
    /// what has no name is refused.
    pub(super) fn has_its_program(&self) -> bool {
        let file = |path: &Path| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
        match (file(&self.program), file(Path::new("/proc/self/exe"))) {
            (Ok(named), Ok(running)) => named == running,
            _ => false,
        }
    }

    /// What the kernel judges by itself. `unix`: it judges Unix sockets here.
    pub(super) fn kernel(&self, unix: bool) -> io::Result<Vec<Trial>> {
        let (yes, no) = (self.permitted.local_addr()?, self.forbidden.local_addr()?);
        let (yes_udp, no_udp) = (
            self.permitted_udp.local_addr()?,
            self.forbidden_udp.local_addr()?,
        );
        let v6 = |addr: SocketAddr| SocketAddr::new(Ipv6Addr::LOCALHOST.into(), addr.port());
        let no_v6 = match &self.forbidden_v6 {
            Some(listener) => listener.local_addr()?,
            None => v6(no),
        };
        let mapped = |addr: SocketAddr| match addr.ip() {
            IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), addr.port()),
            IpAddr::V6(_) => addr,
        };
        let (ipv4, ipv6) = ("TCP connect over IPv4", "TCP connect over IPv6");
        let over_mapped = "TCP connect over mapped IPv6";
        let (datagram4, datagram6) = ("datagram over IPv4", "datagram over IPv6");
        let mut all = vec![
            (ipv4, false, Attempt::Connect(no)),
            (ipv6, false, Attempt::Connect(no_v6)),
            (over_mapped, false, Attempt::Connect(mapped(no))),
            (datagram4, false, Attempt::Send(no_udp)),
            (datagram6, false, Attempt::Send(v6(no_udp))),
            (ipv4, true, Attempt::Connect(yes)),
            (over_mapped, true, Attempt::Connect(mapped(yes))),
            (datagram4, true, Attempt::Send(yes_udp)),
        ];
        if let Some(listener) = &self.permitted_v6 {
            all.push((ipv6, true, Attempt::Connect(listener.local_addr()?)));
        }
        if unix {
            let connect = |bound: &Bound| Attempt::Unix(bound.path.clone());
            let name = "connect to a Unix socket";
            all.push((name, false, connect(&self.forbidden_unix)));
            all.push((name, true, connect(&self.permitted_unix)));
        }
        if self.has_its_program() {
            all.push(("exec", true, Attempt::Exec));
        }
        let trials = all.into_iter();
        let trials = trials.map(|(name, permitted, attempt)| Trial {
            name,
            permitted,
            attempt,
        });
        Ok(trials.collect())
    }

    /// To the same place, one to be refused by the forwarder and one to be led there by it. Were they not led there, they
    /// would end there all the same, and be seen.
    pub(super) fn requests(&self, anchor: &str) -> [Trial; 2] {
        [(FORBIDDEN, false), (PERMITTED, true)].map(|(path, permitted)| Trial {
            name: REQUEST,
            permitted,
            attempt: Attempt::Request {
                to: self.origin.addr(),
                path: path.to_owned(),
                anchor: anchor.to_owned(),
            },
        })
    }

    /// Takes what has come in.
    pub(super) fn clear(&self) {
        let mut datagram = [0; 16];
        for socket in [&self.permitted_udp, &self.forbidden_udp] {
            while socket.recv(&mut datagram).is_ok() {}
        }
        for listener in self.listeners() {
            while listener.accept().is_ok() {}
        }
        for bound in [&self.permitted_unix, &self.forbidden_unix] {
            while bound.listener.accept().is_ok() {}
        }
        self.origin.was_reached_from(None);
    }

    fn listeners(&self) -> impl Iterator<Item = &TcpListener> {
        let all = [
            Some(&self.permitted),
            self.permitted_v6.as_ref(),
            Some(&self.forbidden),
            self.forbidden_v6.as_ref(),
        ];
        all.into_iter().flatten()
    }
}

impl Bound {
    fn at(path: PathBuf, account: &Account) -> io::Result<Self> {
        // What a daemon that did not end in order has left.
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        // To nobody else: who could connect could fill the queue.
        let bound = Self { listener, path };
        std::os::unix::fs::chown(&bound.path, Some(account.uid), Some(account.gid))?;
        Ok(bound)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // The next daemon removes it otherwise.
        let _ = std::fs::remove_file(&self.path);
    }
}
