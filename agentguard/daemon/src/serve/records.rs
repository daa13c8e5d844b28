//! `GET /v1/audit`: what has been decided up to now, and with `follow=true` what comes. An answer is read from the log as its
//! caller takes it, and ends with its caller; how many there are at once is bounded.

use std::io;
use std::sync::Arc;

use agentguard_audit::log::Head;
use agentguard_audit::search::{Bounds, Filter, Matches, Search, SearchError};
use agentguard_control::api::CUT;
use agentguard_sys::peer::Peer;
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http::HeaderValue;
use tokio::sync::{Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::places::{CallerPlace, Places};
use super::response::{ControlError, ControlResponse, ErrorCode, lines};
use crate::Parts;

/// Of one answer. Whoever wants more asks for what is before it.
const BOUNDS: Bounds = Bounds {
    records: 100_000,
    bytes: 64 << 20,
};
/// Searches at once, of root and of all others each.
const SEARCHES: usize = 32;
/// Of these one user's, root's own aside.
const SHARE: usize = 8;
/// Pieces of the log that are read at once: decisions wait for the same processors.
const TURNS: usize = 2;

/// The searches that are under way.
pub struct Searches {
    places: Places,
    turns: Arc<Semaphore>,
}

impl Default for Searches {
    fn default() -> Self {
        Self {
            places: Places::new(SEARCHES, SHARE),
            turns: Arc::new(Semaphore::new(TURNS)),
        }
    }
}

pub(super) async fn answer(
    parts: &Parts,
    peer: &Peer,
    query: &str,
) -> Result<ControlResponse, ControlError> {
    let filter =
        Filter::from_query(query).map_err(|e| ControlError::new(ErrorCode::BadRequest, e))?;
    let follow = follow(query)?;
    let Searches { places, turns } = &*parts.searches;
    let Some(place) = places.take(peer, false, &parts.host.config.roles) else {
        return Err(too_many());
    };
    parts.books.settle(&parts.forwarder).await;
    let dir = crate::audit_dir(&parts.host.config.paths.state);
    let mut head = parts.books.records.head();
    let until = *head.borrow_and_update();
    let mut search = Search::new(&dir, filter, BOUNDS, until).map_err(ControlError::internal)?;
    let mut is_found = false;
    while !is_found {
        (search, is_found) = piece(turns, search, Search::step)
            .await
            .map_err(ControlError::internal)?;
    }
    let is_cut = search.is_cut();
    let mut response = lines(stream_of(Answer {
        matches: search.matches(follow),
        turns: turns.clone(),
        place: Some(place),
        tail: follow.then(|| Tail {
            head,
            stop: parts.ending.stop.clone(),
        }),
    }));
    if is_cut {
        let cut = HeaderValue::from_static("true");
        response.headers_mut().insert(CUT, cut);
    }
    Ok(response)
}

fn follow(query: &str) -> Result<bool, ControlError> {
    let mut pairs = query.split('&');
    match pairs.find_map(|pair| pair.strip_prefix("follow=")) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => {
            let error = format!("`follow={other}` cannot be read: true or false is expected");
            Err(ControlError::new(ErrorCode::BadRequest, error))
        }
    }
}

fn too_many() -> ControlError {
    let error = format!(
        "too many searches of the audit log are under way ({SHARE} of one user, {SEARCHES} of all): wait until one \
         has ended, or end one"
    );
    ControlError::new(ErrorCode::Busy, error)
}

/// Reads one piece of the log when its turn has come. Nothing goes on for a caller that has gone but the piece itself.
async fn piece<T: Send + 'static, R: Send + 'static>(
    turns: &Arc<Semaphore>,
    mut from: T,
    read: impl FnOnce(&mut T) -> Result<R, SearchError> + Send + 'static,
) -> io::Result<(T, R)> {
    let turn = turns.clone().acquire_owned().await;
    let turn = turn.map_err(io::Error::other)?;
    let reading = spawn_blocking(move || {
        let found = read(&mut from);
        drop(turn);
        found.map(|found| (from, found))
    });
    let read = reading.await.map_err(io::Error::other)?;
    read.map_err(|error| {
        tracing::warn!(%error, "a search of the audit log has failed");
        io::Error::other(error)
    })
}

struct Answer {
    matches: Matches,
    turns: Arc<Semaphore>,
    /// Until everything up to now has been handed out: who waits for what comes searches no more.
    place: Option<CallerPlace>,
    tail: Option<Tail>,
}

/// What is followed, and until when.
struct Tail {
    head: watch::Receiver<Head>,
    stop: CancellationToken,
}

fn stream_of(answer: Answer) -> impl Stream<Item = io::Result<Bytes>> + Send + Sync + 'static {
    stream::try_unfold(answer, Answer::next)
}

impl Answer {
    /// `None` at the end, and when the daemon stops.
    async fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        loop {
            let (matches, found) = piece(&self.turns, self.matches, Matches::read).await?;
            self.matches = matches;
            match found {
                Some(found) if found.is_empty() => {}
                Some(found) => return Ok(Some((found.into(), self))),
                None => {
                    self.place = None;
                    let Some(tail) = &mut self.tail else {
                        return Ok(None);
                    };
                    tokio::select! {
                        changed = tail.head.changed() => if changed.is_err() {
                            return Ok(None);
                        },
                        () = tail.stop.cancelled() => return Ok(None),
                    }
                }
            }
        }
    }
}
