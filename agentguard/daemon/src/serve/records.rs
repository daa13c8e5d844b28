//! `GET /v1/audit`: what has been decided up to now, and with `follow=true` what comes.

use std::collections::VecDeque;
use std::path::PathBuf;

use agentguard_audit::log::Head;
use agentguard_audit::search::{self, Filter, Follow};
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::response::{ControlError, ControlResponse, ErrorCode, lines};
use crate::Parts;

pub(super) async fn answer(parts: &Parts, query: &str) -> Result<ControlResponse, ControlError> {
    let filter =
        Filter::from_query(query).map_err(|e| ControlError::new(ErrorCode::BadRequest, e))?;
    let follow = match query
        .split('&')
        .find_map(|pair| pair.strip_prefix("follow="))
    {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => {
            let error = format!("`follow={other}` cannot be read: true or false is expected");
            return Err(ControlError::new(ErrorCode::BadRequest, error));
        }
    };
    parts.books.settle(&parts.forwarder).await;
    let dir = crate::audit_dir(&parts.host.config.paths.state);
    let head = parts.books.records.head();
    // Found up to here, followed from here: what is written in between is found, and left to the follower.
    let after = *head.borrow();
    let found = {
        let (dir, filter) = (dir.clone(), filter.clone());
        let searching = tokio::task::spawn_blocking(move || search::search(&dir, &filter));
        searching
            .await
            .map_err(ControlError::internal)?
            .map_err(ControlError::internal)?
    };
    let found: VecDeque<String> = found
        .into_iter()
        .filter(|line| !follow || seq(line).is_none_or(|seq| seq <= after.seq))
        .collect();
    let tail = follow.then(|| Tail {
        reader: Follow::from(&dir, after),
        filter,
        head,
        stop: parts.ending.stop.clone(),
        dir,
    });
    Ok(lines(stream_of(found, tail)))
}

struct Tail {
    reader: Follow,
    filter: Filter,
    head: watch::Receiver<Head>,
    stop: CancellationToken,
    dir: PathBuf,
}

fn stream_of(
    found: VecDeque<String>,
    tail: Option<Tail>,
) -> impl Stream<Item = Bytes> + Send + Sync + 'static {
    stream::unfold((found, tail), |(mut ready, mut tail)| async move {
        loop {
            if let Some(mut line) = ready.pop_front() {
                line.push('\n');
                return Some((Bytes::from(line), (ready, tail)));
            }
            let following = tail.as_mut()?;
            ready = following.next().await?;
        }
    })
}

impl Tail {
    /// Waits for what is appended; `None` when the daemon stops or the log cannot be read.
    async fn next(&mut self) -> Option<VecDeque<String>> {
        loop {
            self.head.borrow_and_update();
            match self.reader.read() {
                Ok(lines) => {
                    let found: VecDeque<String> = lines
                        .into_iter()
                        .filter(|line| self.filter.matches(line))
                        .collect();
                    if !found.is_empty() {
                        return Some(found);
                    }
                }
                Err(error) => {
                    tracing::warn!(dir = %self.dir.display(), %error, "the audit log cannot be followed");
                    return None;
                }
            }
            tokio::select! {
                changed = self.head.changed() => changed.ok()?,
                () = self.stop.cancelled() => return None,
            }
        }
    }
}

fn seq(line: &str) -> Option<u64> {
    #[derive(serde::Deserialize)]
    struct Numbered {
        seq: u64,
    }
    serde_json::from_str::<Numbered>(line).ok().map(|n| n.seq)
}
