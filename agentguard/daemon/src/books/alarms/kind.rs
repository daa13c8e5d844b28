//! What each alarm means and what to do about it: the text of the book's page about alarms.

use super::Alarm;

/// [`Alarm`] without what it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlarmKind {
    NoForwarder,
    NoRecords,
    NothingCounted,
    HookDetached,
    BundleExpires,
    BundleExpired,
    OnlyObserved,
    NoBundle,
    BundleUnusable,
    BundleRefused,
    StateLost,
    LogLost,
    CanaryHolds,
    CanaryFailed,
    CanaryHindered,
    NamespaceClosed,
    EventsUnreadable,
    EventsLost,
    RefusalStorm,
    ExecsMissed,
    MissedUncounted,
    ProcessesUnread,
    ProcessesUnheld,
    ProcessesUnlabelled,
    ClientTls,
}

/// A line of the book's page.
struct Line {
    begins: &'static str,
    raised_when: &'static str,
    what_to_do: &'static str,
}

impl AlarmKind {
    /// In the order of the book's page.
    pub const ALL: [Self; 25] = [
        Self::NoForwarder,
        Self::NoRecords,
        Self::NothingCounted,
        Self::HookDetached,
        Self::BundleExpires,
        Self::BundleExpired,
        Self::OnlyObserved,
        Self::NoBundle,
        Self::BundleUnusable,
        Self::BundleRefused,
        Self::StateLost,
        Self::LogLost,
        Self::CanaryHolds,
        Self::CanaryFailed,
        Self::CanaryHindered,
        Self::NamespaceClosed,
        Self::EventsUnreadable,
        Self::EventsLost,
        Self::RefusalStorm,
        Self::ExecsMissed,
        Self::MissedUncounted,
        Self::ProcessesUnread,
        Self::ProcessesUnheld,
        Self::ProcessesUnlabelled,
        Self::ClientTls,
    ];

    /// How its text begins; capitals stand for what differs.
    pub const fn begins(self) -> &'static str {
        self.line().begins
    }

    /// Markdown.
    pub const fn raised_when(self) -> &'static str {
        self.line().raised_when
    }

    /// Markdown.
    pub const fn what_to_do(self) -> &'static str {
        self.line().what_to_do
    }

    /// Whether it tells of something that has happened, and stays until the daemon is restarted. All others go when their
    /// cause is gone.
    pub const fn is_until_restart(self) -> bool {
        match self {
            Self::EventsUnreadable
            | Self::EventsLost
            | Self::RefusalStorm
            | Self::ExecsMissed
            | Self::MissedUncounted
            | Self::ProcessesUnread
            | Self::ProcessesUnheld
            | Self::ProcessesUnlabelled => true,
            Self::NoForwarder
            | Self::NoRecords
            | Self::NothingCounted
            | Self::HookDetached
            | Self::BundleExpires
            | Self::BundleExpired
            | Self::OnlyObserved
            | Self::NoBundle
            | Self::BundleUnusable
            | Self::BundleRefused
            | Self::StateLost
            | Self::LogLost
            | Self::CanaryHolds
            | Self::CanaryFailed
            | Self::CanaryHindered
            | Self::NamespaceClosed
            | Self::ClientTls => false,
        }
    }

    const fn line(self) -> Line {
        match self {
            Self::NoForwarder => Line {
                begins: "no forwarder, agents' connects are refused: …",
                raised_when: "the forwarder has ended or could not be started; the daemon starts another by itself, after at most 10 seconds",
                what_to_do: "Read the error behind it. If it does not go within a minute, mend what it names (the account `[forwarder] user`, the port, memory) and restart the daemon. Agents are closed meanwhile.",
            },
            Self::NoRecords => Line {
                begins: "no audit records, agents' requests are refused: …",
                raised_when: "the audit log cannot be written, or its disk has no more room than is kept for what operators do (16 MiB, or an eighth of a small one); the writer tries again every second",
                what_to_do: "Make room on the disk of the state, or mend what the error names. Requests go on by themselves once records can be written.",
            },
            Self::NothingCounted => Line {
                begins: "nothing is counted, requests that have limits are refused: …",
                raised_when: "`limits.log` cannot be written, or is damaged",
                what_to_do: "Where the text says so, restore the file, or move it away to count from nothing, and restart the daemon, which then kills every agent until it is revived. Else make room on the disk.",
            },
            Self::HookDetached => Line {
                begins: "hook `NAME` is not attached",
                raised_when: "a program that should be attached is not; agents may be open where it judges",
                what_to_do: "Restart the daemon: it attaches every hook anew, or says why not. Find out who took it off: with BPF LSM an agent's bpf(2) and changes to the pins are refused.",
            },
            Self::BundleExpires => Line {
                begins: "the bundle expires at TIME, and every agent is denied everything from then on; …",
                raised_when: "the bundle in force has `expires` within 72 hours",
                what_to_do: "Apply a newer bundle with a later `expires` and a higher `serial`.",
            },
            Self::BundleExpired => Line {
                begins: "the bundle has expired at TIME: every agent is denied everything; …",
                raised_when: "its time is over by the host's clock",
                what_to_do: "Apply a newer bundle; look at the clock if the time is wrong.",
            },
            Self::OnlyObserved => Line {
                begins: "only observed, what policy denies is let through: NAME, …",
                raised_when: "the bundle, or the files of these agents, say `mode = \"observe\"`",
                what_to_do: "Nothing, if it is meant. Else set `mode = \"enforce\"` and apply.",
            },
            Self::NoBundle => Line {
                begins: "no bundle is in force: every agent is denied everything",
                raised_when: "none has been applied and none is configured, or it was refused at the start; another alarm says why",
                what_to_do: "`agentguard policy check DIR`, then `agentguard policy apply DIR`.",
            },
            Self::BundleUnusable => Line {
                begins: "the bundle applied last cannot be used: …",
                raised_when: "at the start the bundle applied last was damaged, gone or no longer valid; behind `; in force is the last good one` stands which one holds, and without that agents are closed",
                what_to_do: "Apply a bundle; applying takes the alarm back. Find out what damaged the state.",
            },
            Self::BundleRefused => Line {
                begins: "the bundle NAME SERIAL is refused: …",
                raised_when: "at the start the host lacks a guarantee that the bundle requires; no bundle is in force then",
                what_to_do: "`agentguard doctor` has the remedy for the guarantee. Or list it in `[policy] accept_gaps` and restart, or apply a bundle that does not require it.",
            },
            Self::StateLost => Line {
                begins: "files of the state are gone, and every agent was killed; …",
                raised_when: "at the start a file is missing that was there before: `agents.json` (who is killed, suspended, whose an agent is), `tasks.json` (what open tasks narrow), `limits.log` (what limits have counted). Until the next start",
                what_to_do: "Find out who removed it. Stop the daemon and restore the file from a backup, or accept the loss: open the tasks anew, kill again who was killed, and `agentguard revive` those that may go on.",
            },
            Self::LogLost => Line {
                begins: "the audit log that was here is gone: …",
                raised_when: "at the start the folder of the audit log is empty or missing, and was not before. Until the next start",
                what_to_do: "Find out who removed it. The new log's record of the start says the same.",
            },
            Self::CanaryHolds => Line {
                begins: "the canary failed, agents are held closed: …",
                raised_when: "a forbidden attempt was not refused; every agent is held",
                what_to_do: "Read what it names, treat the host as open until now, and restart the daemon, which attaches every hook anew. It goes when a round passes.",
            },
            Self::CanaryFailed => Line {
                begins: "the canary failed, agents go on, as `on_failure` says: …",
                raised_when: "as above, with `[canary] on_failure = \"alarm\"`",
                what_to_do: "As above, and sooner: nothing holds the agents.",
            },
            Self::CanaryHindered => Line {
                begins: "the canary could not try everything, agents go on: …",
                raised_when: "a permitted attempt did not work twice, or no process could be started for it; what is forbidden has been refused as far as it was tried",
                what_to_do: "Look for overload first (`agentguard agents`, connections), and kill the agent that causes it. It goes when a round passes.",
            },
            Self::NamespaceClosed => Line {
                begins: "agents in another network namespace are refused everything there: …",
                raised_when: "listeners could not be made in an agent's namespace, or as many are served as can be, of all agents or of one",
                what_to_do: "`… network namespaces are served, the most there can be`: raise `LimitNOFILE` of the daemon (one namespace for every 8 files, 1023 at most; a quarter of them for one agent), or kill the agent that makes them. Else mend what the error names.",
            },
            Self::EventsUnreadable => Line {
                begins: "kernel events cannot be read: …",
                raised_when: "the ring of the kernel's events failed, and its reader has ended: kernel decisions are recorded no longer, and each agent is refused what it may do there once its share of the ring is full",
                what_to_do: "Restart the daemon.",
            },
            Self::EventsLost => Line {
                begins: "N events about processes were lost, and records may lack what a process runs",
                raised_when: "an agent started and ended more processes than could be read: its share of the ring was full. The daemon looks at every process then. Verdicts are never lost",
                what_to_do: "Find the agent that starts so many (`agentguard audit tail -f`, `agentguard agents`), and kill it.",
            },
            Self::RefusalStorm => Line {
                begins: "N refusals of agent … and perhaps of others are told by their number, not one by one",
                raised_when: "an agent was refused more than 200 calls a second in the kernel, after the first 1000. Each second a record says how many more there were; when there are none, the alarm ends",
                what_to_do: "Look at what the agent tries (`agentguard audit search --agent NAME`), and kill it if it should not.",
            },
            Self::ExecsMissed => Line {
                begins: "up to N execs and ends of processes were not seen: the audit log may lack execs",
                raised_when: "from Linux 7.0 on, a program was left out at an exec or an end; the daemon has looked at every process within a second",
                what_to_do: "Nothing at once. If it grows, an agent may be bringing it about: look at who starts processes. BPF LSM judges execs all the same.",
            },
            Self::MissedUncounted => Line {
                begins: "what the kernel has missed cannot be told: …",
                raised_when: "the count of the above could not be read; nobody looks any more",
                what_to_do: "Restart the daemon.",
            },
            Self::ProcessesUnread => Line {
                begins: "processes that the kernel could not read: …",
                raised_when: "the daemon could not look at processes whose agent the kernel could not tell, or could not close sockets from before",
                what_to_do: "Restart the daemon, which looks at every process. End the processes that it names if it fails again.",
            },
            Self::ProcessesUnheld => Line {
                begins: "the kernel could not tell whose N processes are, …",
                raised_when: "a read failed or a path was too deep; the daemon has found the processes and labelled them, and nobody held them until then",
                what_to_do: "Look at what they did before (`read_failed` in `status` counts). End and start them again with `agentguard run` if that matters.",
            },
            Self::ProcessesUnlabelled => Line {
                begins: "running processes could not all be looked at: …",
                raised_when: "at the start what already ran could not all be enrolled, or sockets from before not be closed",
                what_to_do: "Restart the daemon. End agents' processes that were there before if it fails again.",
            },
            Self::ClientTls => Line {
                begins: "a program does not accept the certificate that it is given: …",
                raised_when: "an agent's program refused the forwarder's certificate by a TLS alert within the last hour, or closed without a word as soon as it had it, and not for the first or second time; once for each agent, program and host",
                what_to_do: "Start the program by `agentguard run`, or give it this host's CA ([The CA](containers.md#the-ca)). If it pins certificates, set `tls = \"passthrough\"` for the host ([Reach](../policy/reach.md#hosts)). It goes when there was none for an hour; `agentguard audit search` has each with the reason `client-tls`.",
            },
        }
    }
}

impl Alarm {
    pub const fn kind(&self) -> AlarmKind {
        match self {
            Self::NoForwarder(_) => AlarmKind::NoForwarder,
            Self::NoRecords(_) => AlarmKind::NoRecords,
            Self::NothingCounted(_) => AlarmKind::NothingCounted,
            Self::HookDetached(_) => AlarmKind::HookDetached,
            Self::BundleExpires(_) => AlarmKind::BundleExpires,
            Self::BundleExpired(_) => AlarmKind::BundleExpired,
            Self::OnlyObserved(_) => AlarmKind::OnlyObserved,
            Self::NoBundle => AlarmKind::NoBundle,
            Self::BundleUnusable { .. } => AlarmKind::BundleUnusable,
            Self::BundleRefused { .. } => AlarmKind::BundleRefused,
            Self::StateLost(_) => AlarmKind::StateLost,
            Self::LogLost => AlarmKind::LogLost,
            Self::CanaryHolds(_) => AlarmKind::CanaryHolds,
            Self::CanaryFailed(_) => AlarmKind::CanaryFailed,
            Self::CanaryHindered(_) => AlarmKind::CanaryHindered,
            Self::NamespaceClosed(_) => AlarmKind::NamespaceClosed,
            Self::EventsUnreadable(_) => AlarmKind::EventsUnreadable,
            Self::EventsLost(_) => AlarmKind::EventsLost,
            Self::RefusalStorm { .. } => AlarmKind::RefusalStorm,
            Self::ExecsMissed(_) => AlarmKind::ExecsMissed,
            Self::MissedUncounted(_) => AlarmKind::MissedUncounted,
            Self::ProcessesUnread(_) => AlarmKind::ProcessesUnread,
            Self::ProcessesUnheld { .. } => AlarmKind::ProcessesUnheld,
            Self::ProcessesUnlabelled(_) => AlarmKind::ProcessesUnlabelled,
            Self::ClientTls { .. } => AlarmKind::ClientTls,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_begins_as_the_book_says() {
        let why = || "WHY".to_owned();
        for (alarm, kind) in [
            (Alarm::NoForwarder(why()), AlarmKind::NoForwarder),
            (
                Alarm::OnlyObserved(vec!["NAME".into()]),
                AlarmKind::OnlyObserved,
            ),
            (Alarm::HookDetached("NAME"), AlarmKind::HookDetached),
            (Alarm::StateLost(vec!["tasks.json"]), AlarmKind::StateLost),
            (Alarm::LogLost, AlarmKind::LogLost),
            (Alarm::CanaryFailed(why()), AlarmKind::CanaryFailed),
            (Alarm::CanaryHindered(why()), AlarmKind::CanaryHindered),
            (
                Alarm::BundleUnusable {
                    why: why(),
                    instead: Some(("b".into(), 3)),
                },
                AlarmKind::BundleUnusable,
            ),
            (
                Alarm::ClientTls {
                    agent: "NAME".into(),
                    program: "/p".into(),
                    host: "h:443".into(),
                    alert: None,
                },
                AlarmKind::ClientTls,
            ),
        ] {
            assert_eq!(alarm.kind(), kind);
            let begins = kind.begins();
            let begins = begins.split('…').next().unwrap_or_default();
            let begins = begins.trim_end_matches("NAME, ");
            assert!(alarm.to_string().starts_with(begins), "{alarm}");
        }
    }
}
