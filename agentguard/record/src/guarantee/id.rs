//! Which guarantees there are. Bundles and scripts name them by their ids: none is ever renamed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! guarantees {
    ($($name:ident = $id:literal: $words:literal,)+) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum GuaranteeId {
            $(#[serde(rename = $id)] $name,)+
        }

        impl GuaranteeId {
            /// In the order in which they are told.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $id,)+
                }
            }

            /// What is guaranteed, in words.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $words,)+
                }
            }
        }
    };
}

guarantees! {
    Lineage = "lineage": "every process of an agent's is known as the agent's",
    Tcp = "tcp": "TCP connections go where the policy says",
    Udp = "udp": "datagrams leave only by a rule",
    Dns = "dns": "names are resolved by the guard, and only those that a rule can reach",
    RawSockets = "raw-sockets": "raw, ICMP, SCTP and MPTCP sockets are refused",
    Listen = "listen": "agents listen only where the policy says",
    Kill = "kill": "a killed agent sends nothing",
    KillResets = "kill-resets": "a kill resets live sockets",
    AddressFamilies = "address-families": "other address families (AF_PACKET, AF_XDP, vsock, …) are refused",
    Exec = "exec": "executables are judged",
    ExecScripts = "exec-scripts": "a script's own file is judged, not only its interpreter",
    ExecDigest = "exec-digest": "a file that a rule names by its SHA-256 runs with that content alone",
    UnixSockets = "unix-sockets": "Unix sockets (docker.sock, D-Bus, …) are judged",
    HandedOverSockets = "handed-over-sockets": "a socket that another process opened carries nothing for an agent",
    IoUring = "io-uring": "io_uring is no way around",
    Terminal = "terminal": "nothing is typed into the terminal that started an agent",
    Tamper = "tamper": "an agent that has root cannot tamper with the guard",
    OwnFiles = "own-files": "an agent that has root cannot change the guard's files, nor read its secrets",
    Namespaces = "namespaces": "another network namespace is no way around",
    ForwarderSandbox = "forwarder-sandbox": "a forwarder that is taken over gets at no file and no privilege",
    Canary = "canary": "the guard tries for itself, again and again, what must be refused",
    ProcessMemory = "process-memory": "an agent reaches into the memory and files of its own processes alone",
    Signals = "signals": "an agent's signals, and limits that it sets, reach its own processes alone",
    Devices = "devices": "an agent opens no disk, and no memory of the host's, as a whole",
    Sysctl = "sysctl": "an agent changes no parameter of the kernel's (sysctl)",
}

impl fmt::Display for GuaranteeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A word that is no guarantee's id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownGuarantee {
    word: String,
}

impl UnknownGuarantee {
    /// The guarantee that was probably meant, or which there are.
    pub fn hint(&self) -> String {
        match nearest(&self.word) {
            Some(near) => format!("did you mean `{near}`?"),
            None => {
                let all: Vec<&str> = GuaranteeId::ALL.iter().map(|id| id.as_str()).collect();
                format!("there are {}", all.join(", "))
            }
        }
    }
}

impl fmt::Display for UnknownGuarantee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown guarantee `{}`; {}", self.word, self.hint())
    }
}

impl std::error::Error for UnknownGuarantee {}

impl FromStr for GuaranteeId {
    type Err = UnknownGuarantee;

    fn from_str(word: &str) -> Result<Self, UnknownGuarantee> {
        let known = Self::ALL.iter().find(|id| id.as_str() == word);
        known.copied().ok_or_else(|| UnknownGuarantee {
            word: word.to_owned(),
        })
    }
}

fn nearest(word: &str) -> Option<GuaranteeId> {
    GuaranteeId::ALL
        .iter()
        .map(|id| (strsim::damerau_levenshtein(word, id.as_str()), *id))
        .filter(|(distance, id)| *distance <= 1 + id.as_str().len() / 4)
        .min_by_key(|(distance, id)| (*distance, id.as_str()))
        .map(|(_, id)| id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_what_is_written_and_read() {
        for id in GuaranteeId::ALL {
            let written = serde_json::to_string(id).unwrap();
            assert_eq!(written, format!("\"{id}\""));
            assert_eq!(&serde_json::from_str::<GuaranteeId>(&written).unwrap(), id);
            assert_eq!(&id.as_str().parse::<GuaranteeId>().unwrap(), id);
        }
    }

    #[test]
    fn near_names_are_offered() {
        assert_eq!(nearest("tampr"), Some(GuaranteeId::Tamper));
        assert_eq!(nearest("unix-socket"), Some(GuaranteeId::UnixSockets));
        assert_eq!(nearest("everything"), None);
        let unknown = "everything".parse::<GuaranteeId>().unwrap_err();
        assert!(unknown.hint().starts_with("there are lineage, tcp, udp"));
        let near = "tampr".parse::<GuaranteeId>().unwrap_err().to_string();
        assert_eq!(near, "unknown guarantee `tampr`; did you mean `tamper`?");
    }
}
