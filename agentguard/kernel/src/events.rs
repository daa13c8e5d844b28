//! The event ring as an async source.

use std::os::fd::OwnedFd;

use agentguard_common::abi::{Event, EventKind, ExecEvent};
use aya::maps::{Map, MapData, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::KernelError;

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

/// To be read by one task.
pub struct Events {
    ring: AsyncFd<RingBuf<MapData>>,
    malformed: u64,
}

impl Events {
    /// # Errors
    /// If the ring cannot be mapped.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(super) fn new(map: OwnedFd) -> Result<Self, KernelError> {
        let unusable = |error: aya::maps::MapError| {
            KernelError::Object(format!("the event ring cannot be read: {error}"))
        };
        let map = MapData::from_fd(map)
            .and_then(Map::from_map_data)
            .map_err(unusable)?;
        let ring = RingBuf::try_from(map).map_err(unusable)?;
        // SAFETY: a `RingBuf` keeps its one descriptor open until it is dropped.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        let ring = ring.map_err(|error| KernelError::Call {
            call: "epoll_ctl",
            source: error.into(),
        })?;
        Ok(Self { ring, malformed: 0 })
    }

    /// Waits until the ring has something new; then call [`Self::drain`] to the end, or the next call may wait although
    /// there is something left.
    pub async fn readable(&mut self) -> std::io::Result<()> {
        // Cleared before draining: what arrives meanwhile wakes the next call.
        self.ring.readable().await?.clear_ready();
        Ok(())
    }

    /// Hands over what is in the ring now, without waiting.
    pub fn drain(&mut self, mut each: impl FnMut(RingEvent)) {
        while let Some(record) = self.ring.get_mut().next() {
            match decode(&record) {
                Some(seen) => each(seen),
                None => self.malformed += 1,
            }
        }
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
