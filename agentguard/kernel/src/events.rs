//! What the programs tell, as an async source: events from their ring, and refusals by their number.

use std::collections::HashMap;
use std::path::Path;

use agentguard_common::abi::{AgentId, Event, EventKind, ExecEvent, MAX_AGENTS, Noted, Told};
use agentguard_common::share::RING_LEN;
use agentguard_common::verdict::Finding;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::KernelError;
use super::maps::{self, Map};
use super::ring::{Ring, footprint};

/// One record of the ring.
#[derive(Clone, Debug)]
pub struct RingEvent {
    pub event: Event,
    /// Of an exec that was judged.
    pub exec: Option<JudgedExec>,
}

/// What is known of a judged exec besides its [`Event`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JudgedExec {
    /// `None`: it could not be told.
    pub cwd: Option<String>,
    /// `None`: private, or not to be read. The last one may have been cut.
    pub arguments: Option<Vec<String>>,
    /// Bytes of all arguments with their NULs; `None` if they could not be read.
    pub arguments_bytes: Option<u32>,
    /// It was judged before there was a new image, of which another event tells if it came to that.
    pub before: bool,
}

/// What was read together, and keeps its place in the ring until it is released.
#[derive(Debug, Default)]
#[must_use = "what is not released fills the ring"]
pub struct Batch {
    end: u64,
    /// Bytes of the ring, by agent.
    bytes: HashMap<AgentId, u64>,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn add(&mut self, record: &[u8]) {
        // Of what no program of this version can have written nobody's share is known.
        let agent = record
            .get(std::mem::offset_of!(Event, agent)..)
            .and_then(|bytes| bytes.first_chunk())
            .map_or(AgentId::NONE, |id| AgentId(u32::from_ne_bytes(*id)));
        *self.bytes.entry(agent).or_default() += footprint(record.len());
    }
}

/// Calls that were told by their number alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    pub agent: AgentId,
    pub kind: EventKind,
    /// Of the last of them.
    pub finding: Finding,
    pub count: u64,
    slot: usize,
}

/// To be read by one task.
pub struct Events {
    ring: AsyncFd<Ring>,
    told: Map<u32, Told>,
    noted: Map<u32, Noted>,
    malformed: u64,
}

impl Events {
    /// # Errors
    /// If the ring cannot be mapped, or the maps beside it cannot be read.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(super) fn open(folder: &Path) -> Result<Self, KernelError> {
        let ring = Ring::new(maps::open(folder, "EVENTS", 0)?, RING_LEN)?;
        // SAFETY: a `Ring` keeps its one descriptor open until it is dropped.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        let ring = ring.map_err(|error| KernelError::Call {
            call: "epoll_ctl",
            source: error.into(),
        })?;
        let mut events = Self {
            ring,
            told: Map::open(folder, "TOLD", 0)?,
            noted: Map::open(folder, "NOTED", 0)?,
            malformed: 0,
        };
        events.settle()?;
        Ok(events)
    }

    /// Sets what each agent has in the ring by what is there: who read it before may have died between giving a place back
    /// and noting whose it was.
    fn settle(&mut self) -> Result<(), KernelError> {
        let ring = self.ring.get_mut();
        let start = ring.position();
        let mut left = Batch::default();
        while let Some(record) = ring.read() {
            left.add(record);
        }
        ring.rewind(start);
        for id in 0..MAX_AGENTS {
            let told = self.told.lookup(&id)?.unwrap_or_default();
            let mut noted = self.noted.lookup(&id)?.unwrap_or_default();
            let left = left.bytes.get(&AgentId(id)).copied().unwrap_or(0);
            let sent = told.sent.saturating_sub(left);
            if noted.sent != sent {
                noted.sent = sent;
                self.noted.update(&id, &noted)?;
            }
        }
        Ok(())
    }

    /// Waits until the ring has something new; then call [`Self::read`], or the next call may wait although there is
    /// something left.
    pub async fn readable(&mut self) -> std::io::Result<()> {
        // Cleared before reading: what arrives meanwhile wakes the next call.
        self.ring.readable().await?.clear_ready();
        Ok(())
    }

    /// Hands over what is new, without waiting.
    pub fn read(&mut self, mut each: impl FnMut(RingEvent)) -> Batch {
        let mut batch = Batch::default();
        while let Some(record) = self.ring.get_mut().read() {
            batch.add(record);
            match decode(record) {
                Some(seen) => each(seen),
                None => self.malformed += 1,
            }
        }
        batch.end = self.ring.get_ref().position();
        batch
    }

    /// Gives back the room of `batch` and of all before it. [`Self::read`] after it: nobody is woken for what came meanwhile.
    ///
    /// # Errors
    /// If what it took of its agents' shares cannot be noted.
    pub fn release(&mut self, batch: Batch) -> Result<(), KernelError> {
        self.ring.get_mut().release(batch.end);
        for (agent, bytes) in batch.bytes {
            let Some(mut noted) = self.noted.lookup(&agent.0)? else {
                continue;
            };
            noted.sent = noted.sent.wrapping_add(bytes);
            self.noted.update(&agent.0, &noted)?;
        }
        Ok(())
    }

    /// What these agents' programs have told by its number, and is not noted yet.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn counted(
        &self,
        agents: impl Iterator<Item = AgentId>,
    ) -> Result<Vec<Counted>, KernelError> {
        let mut counted = Vec::new();
        for agent in agents {
            let (Some(told), Some(noted)) =
                (self.told.lookup(&agent.0)?, self.noted.lookup(&agent.0)?)
            else {
                continue;
            };
            for slot in 0..Told::SLOTS {
                let count = told.counts[slot].wrapping_sub(noted.counts[slot]);
                if let (1.., Some(kind), Ok(finding)) =
                    (count, Told::kind(slot), Finding::try_from(told.last[slot]))
                {
                    counted.push(Counted {
                        agent,
                        kind,
                        finding,
                        count,
                        slot,
                    });
                }
            }
        }
        Ok(counted)
    }

    /// These are recorded.
    ///
    /// # Errors
    /// If a map cannot be written: they are counted again.
    pub fn note(&mut self, counted: &[Counted]) -> Result<(), KernelError> {
        for counted in counted {
            let mut noted = self.noted.lookup(&counted.agent.0)?.unwrap_or_default();
            noted.counts[counted.slot] = noted.counts[counted.slot].wrapping_add(counted.count);
            self.noted.update(&counted.agent.0, &noted)?;
        }
        Ok(())
    }

    /// Records that no program of this version can have written.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }
}

/// A record is an [`Event`], its head alone, or an [`ExecEvent`] up to its last argument.
fn decode(record: &[u8]) -> Option<RingEvent> {
    if record.len() >= ExecEvent::HEAD_LEN {
        return decode_exec(record);
    }
    if record.len() != Event::HEAD_LEN && record.len() != size_of::<Event>() {
        return None;
    }
    let mut bytes = [0u8; size_of::<Event>()];
    bytes.get_mut(..record.len())?.copy_from_slice(record);
    // SAFETY: `Event` is plain integers of exactly this size.
    let event: Event = unsafe { std::mem::transmute(bytes) };
    let exec = None;
    (event.path_len as usize <= event.path.len()).then_some(RingEvent { event, exec })
}

fn decode_exec(record: &[u8]) -> Option<RingEvent> {
    let mut bytes = [0u8; size_of::<ExecEvent>()];
    bytes.get_mut(..record.len())?.copy_from_slice(record);
    // SAFETY: `ExecEvent` is plain integers of exactly this size.
    let found: ExecEvent = unsafe { std::mem::transmute(bytes) };
    let event = found.event;
    if event.kind != EventKind::Exec as u32
        || event.path_len as usize > event.path.len()
        || record.len() != ExecEvent::HEAD_LEN + found.arguments_len as usize
    {
        return None;
    }
    let cwd = found.cwd.get(..found.cwd_len as usize)?;
    let arguments = found.arguments.get(..found.arguments_len as usize)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let is_seen = found.flags & (ExecEvent::PRIVATE | ExecEvent::UNSEEN) == 0;
    let split = || {
        let arguments = arguments.strip_suffix(&[0]).unwrap_or(arguments);
        arguments.split(|byte| *byte == 0).map(text).collect()
    };
    let exec = JudgedExec {
        cwd: (!cwd.is_empty()).then(|| text(cwd)),
        arguments: is_seen.then(split),
        arguments_bytes: (found.flags & ExecEvent::UNSEEN == 0).then_some(found.arguments_total),
        before: found.flags & ExecEvent::BEFORE != 0,
    };
    Some(RingEvent {
        event,
        exec: Some(exec),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of an exec's record with these arguments.
    fn record(flags: u32, arguments: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; ExecEvent::HEAD_LEN];
        let mut put = |at: usize, word: u32| {
            bytes[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        };
        put(0, EventKind::Exec as u32);
        put(std::mem::offset_of!(ExecEvent, flags), flags);
        put(std::mem::offset_of!(ExecEvent, cwd_len), 4);
        let len = arguments.len() as u32;
        put(std::mem::offset_of!(ExecEvent, arguments_len), len);
        put(std::mem::offset_of!(ExecEvent, arguments_total), len + 5);
        let cwd = std::mem::offset_of!(ExecEvent, cwd);
        bytes[cwd..cwd + 4].copy_from_slice(b"/tmp");
        bytes.extend(arguments);
        bytes
    }

    #[test]
    fn arguments_end_with_nuls_and_may_be_empty_or_cut() {
        for (raw, expected) in [
            (&b"ls\0-l\0"[..], &["ls", "-l"][..]),
            (b"ls\0\0x\0", &["ls", "", "x"]),
            (b"ls\0-long-opt", &["ls", "-long-opt"]),
        ] {
            let exec = decode(&record(0, raw)).unwrap().exec.unwrap();
            assert_eq!(exec.arguments.unwrap(), expected);
            assert_eq!(exec.arguments_bytes, Some(raw.len() as u32 + 5));
            assert_eq!(exec.cwd.as_deref(), Some("/tmp"));
        }
    }

    #[test]
    fn arguments_that_are_kept_back_are_counted() {
        for (flags, bytes) in [
            (ExecEvent::PRIVATE, Some(5)),
            (ExecEvent::UNSEEN | ExecEvent::BEFORE, None),
        ] {
            let exec = decode(&record(flags, b"")).unwrap().exec.unwrap();
            assert_eq!((exec.arguments, exec.arguments_bytes), (None, bytes));
            assert_eq!(exec.before, flags & ExecEvent::BEFORE != 0);
        }
    }

    #[test]
    fn a_record_of_another_length_is_refused() {
        let whole = record(0, b"ls\0");
        assert!(decode(&whole[..whole.len() - 1]).is_none());
        assert!(decode(&[whole.clone(), vec![0]].concat()).is_none());
        assert!(decode(&whole[..Event::HEAD_LEN + 1]).is_none());
        assert!(decode(&[0; size_of::<ExecEvent>() + 1]).is_none());
    }
}
