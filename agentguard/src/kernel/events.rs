//! The event ring as an async source.

use std::os::fd::OwnedFd;

use agentguard_common::abi::Event;
use aya::maps::{Map, MapData, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::KernelError;

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
    pub fn drain(&mut self, mut each: impl FnMut(&Event)) {
        while let Some(record) = self.ring.get_mut().next() {
            match decode(&record) {
                Some(event) => each(&event),
                None => self.malformed += 1,
            }
        }
    }

    /// Records that no program of this version can have written.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }
}

/// A record is an [`Event`], or its head alone.
fn decode(record: &[u8]) -> Option<Event> {
    if record.len() != Event::HEAD_LEN && record.len() != size_of::<Event>() {
        return None;
    }
    let mut bytes = [0u8; size_of::<Event>()];
    bytes.get_mut(..record.len())?.copy_from_slice(record);
    // SAFETY: `Event` is plain integers of exactly this size.
    let event: Event = unsafe { std::mem::transmute(bytes) };
    (event.path_len as usize <= event.path.len()).then_some(event)
}
