//! Which bundle an operator wants in force, where its files are from, and whether it may follow the one that is.

use agentguard_bundle::history::{BundleOrigin, HistoryEntry};
use agentguard_bundle::pack::{self, Signer};
use agentguard_bundle::store::{self, LoadedBundle, Trust};
use agentguard_policy::Sources;
use agentguard_record::{Actor, Meta, Operation};
use jiff::Timestamp;

use super::ApplyError;
use crate::host::Host;
use crate::lock::lock;
use crate::roster::Roster;
use crate::roster::active::Active;

/// What an operator wants in force.
pub enum Candidate {
    Files(Sources),
    /// A packed bundle's text.
    Packed(String),
    /// A bundle that has been in force: the newest of this serial, or the one before the one that is.
    Earlier(Option<u64>),
}

impl Candidate {
    pub(super) fn operation(&self) -> Operation {
        match self {
            Self::Files(_) | Self::Packed(_) => Operation::PolicyApply,
            Self::Earlier(_) => Operation::PolicyRollback,
        }
    }

    pub(super) fn origin(&self) -> BundleOrigin {
        match self {
            Self::Files(_) | Self::Packed(_) => BundleOrigin::Apply,
            Self::Earlier(_) => BundleOrigin::Rollback,
        }
    }
}

/// The bundle's files, and whose signature they were accepted for.
pub(super) fn find(
    host: &Host,
    roster: &Roster,
    candidate: Candidate,
    in_force: Option<&Active>,
) -> Result<LoadedBundle, ApplyError> {
    let refused = |why: String| ApplyError::Refused(why);
    let keys = || {
        store::trusted_keys(&host.config.paths.trust, Trust::Root)
            .map_err(|e| refused(e.to_string()))
    };
    match candidate {
        Candidate::Files(sources) => Ok(LoadedBundle {
            sources,
            signer: None,
        }),
        Candidate::Packed(text) => {
            let (contents, signer) =
                pack::open(&text, &keys()?).map_err(|e| refused(e.to_string()))?;
            Ok(LoadedBundle {
                sources: contents.sources,
                signer: Some(signer),
            })
        }
        Candidate::Earlier(serial) => {
            let history = lock(&roster.history);
            let entry = earlier(history.entries(), serial, in_force.map(|it| &it.entry))
                .map_err(refused)?;
            if let Some(signer) = &entry.signer
                && !keys()?.iter().any(|it| *it.key.id() == signer.key)
            {
                return Err(refused(format!(
                    "bundle {} was signed by `{}` ({}), which this host no longer trusts",
                    entry.meta.serial, signer.name, signer.key
                )));
            }
            let sources = history.sources(entry).map_err(|e| refused(e.to_string()))?;
            Ok(LoadedBundle {
                sources,
                signer: entry.signer.clone(),
            })
        }
    }
}

/// The newest of `serial`; without, the last one in force that is another than the one that is.
fn earlier<'e>(
    entries: &'e [HistoryEntry],
    serial: Option<u64>,
    in_force: Option<&HistoryEntry>,
) -> Result<&'e HistoryEntry, String> {
    let mut newest = entries.iter().rev();
    match serial {
        Some(serial) => newest.find(|it| it.meta.serial == serial).ok_or_else(|| {
            format!("the history has no bundle of serial {serial}; `agentguard policy history` lists what it has")
        }),
        None => newest
            .find(|it| {
                in_force.is_none_or(|now| it.seq < now.seq && it.meta.digest != now.meta.digest)
            })
            .ok_or_else(|| "the history has no bundle from before the one in force".to_owned()),
    }
}

pub(super) fn next_entry(
    roster: &Roster,
    meta: Meta,
    origin: BundleOrigin,
    by: Actor,
    signer: Option<Signer>,
) -> HistoryEntry {
    let history = lock(&roster.history);
    HistoryEntry {
        seq: history.next_seq(),
        highest: meta.serial.max(history.highest()),
        meta,
        applied_at: Timestamp::now(),
        origin,
        by,
        signer,
    }
}

/// What was once in force comes back by a rollback alone, so that nobody brings an old bundle as a new one.
pub(super) fn check_serial(
    roster: &Roster,
    old: Option<&Active>,
    new: &Active,
) -> Result<(), ApplyError> {
    let serial = new.meta.serial;
    let history = lock(&roster.history);
    let highest = history
        .highest()
        .max(old.map_or(0, |old| old.entry.highest));
    if new.entry.origin == BundleOrigin::Rollback || serial > highest {
        return Ok(());
    }
    let entries = history.entries();
    let known = entries.iter().any(|it| it.meta.digest == new.meta.digest);
    let remedy = if known {
        format!("it has been in force before: `agentguard policy rollback {serial}`")
    } else {
        "raise `serial` in bundle.toml".to_owned()
    };
    let below = match old {
        Some(old) if old.meta.serial == highest => "the one in force".to_owned(),
        _ => "the highest that has been in force here".to_owned(),
    };
    Err(ApplyError::Refused(format!(
        "the bundle's serial {serial} is not above {highest}, {below}; {remedy}"
    )))
}

/// What a record says of who signed.
pub(super) fn signed(signer: Option<&Signer>) -> String {
    signer.map_or(String::new(), |by| {
        format!(", signed by {} ({})", by.name, by.key)
    })
}
