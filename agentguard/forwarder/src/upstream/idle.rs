//! How long a server keeps a connection on which nothing happens: few say it, so that it is learnt.

use std::time::Duration;

/// What every server is taken to keep a connection for.
pub(super) const LEAST: Duration = Duration::from_secs(1);

/// What is known of one host's.
#[derive(Default)]
pub(super) struct IdleTime {
    /// So long a connection was idle and still open.
    open: Duration,
    /// After so long one was found closed.
    closed: Option<Duration>,
    /// It said so (`Keep-Alive: timeout`, RFC 2068 section 19.7.1.1).
    announced: Option<Duration>,
}

impl IdleTime {
    /// Takes note of a connection that was idle for `time`. Whether one that was can be trusted with a request that must
    /// not be sent twice: it is not about to be closed.
    pub(super) fn saw(&mut self, time: Duration, open: bool) -> bool {
        let end = [self.closed, self.announced].into_iter().flatten().min();
        // A busy server closes late, and what is taken now arrives later.
        let lasts = time < end.unwrap_or(self.open.max(LEAST)) / 4 * 3;
        if open {
            self.open = self.open.max(time);
            // What was closed so much earlier was not closed for that.
            self.closed = self.closed.filter(|closed| *closed > time / 2);
        } else {
            self.closed = Some(self.closed.map_or(time, |closed| closed.min(time)));
            self.open = self.open.min(time);
        }
        lasts
    }

    pub(super) fn announced(&mut self, time: Duration) {
        self.announced = Some(time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_connection_is_trusted_as_long_as_one_was_seen_open() {
        let mut known = IdleTime::default();
        assert!(known.saw(Duration::from_millis(700), true));
        assert!(!known.saw(seconds(5), true), "for the first time");
        assert!(!known.saw(seconds(4), true));
        assert!(known.saw(seconds(3), true));
    }

    #[test]
    fn and_not_when_the_server_is_about_to_close_it() {
        let mut known = IdleTime::default();
        known.saw(seconds(30), true);
        assert!(!known.saw(seconds(40), false));
        assert!(known.saw(seconds(29), true));
        known.announced(seconds(5));
        assert!(!known.saw(seconds(4), true));
        assert!(known.saw(seconds(3), true));
    }

    #[test]
    fn a_server_that_closes_within_a_second_is_learnt_too() {
        let mut known = IdleTime::default();
        known.saw(Duration::from_millis(200), false);
        assert!(!known.saw(Duration::from_millis(160), true));
        assert!(known.saw(Duration::from_millis(100), true));
    }

    #[test]
    fn a_close_that_came_late_does_not_count_as_open() {
        let mut known = IdleTime::default();
        known.saw(seconds(1), false);
        known.saw(Duration::from_millis(1_100), true);
        assert!(!known.saw(Duration::from_millis(900), true));
    }

    #[test]
    fn a_server_may_say_anything() {
        for said in [Duration::MAX, Duration::ZERO] {
            let mut known = IdleTime::default();
            known.announced(said);
            assert_eq!(
                known.saw(Duration::from_millis(1), true),
                said == Duration::MAX
            );
        }
    }

    #[test]
    fn a_close_that_had_another_reason_is_forgotten() {
        let mut known = IdleTime::default();
        known.saw(Duration::from_millis(50), false);
        assert!(!known.saw(seconds(3), true));
        assert!(known.saw(seconds(2), true));
    }
}
