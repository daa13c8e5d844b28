//! Which of a host's addresses is connected to: Happy Eyeballs (RFC 8305), with memory.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::OptionFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep, sleep_until};

use super::UpstreamFault;

/// How long an address has before the next one is tried beside it (RFC 8305 section 8, "Connection Attempt Delay").
const DELAY: Duration = Duration::from_millis(250);
/// How long an address that was overtaken stands behind the others.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Addresses that are remembered at once.
const MOST: usize = 1024;

/// Addresses that did not answer while a later one of the same host did.
#[derive(Default)]
pub(super) struct SlowAddresses {
    until: Mutex<HashMap<IpAddr, Instant>>,
}

impl SlowAddresses {
    /// A host's addresses in the order in which they are tried: the families in turn (RFC 8305 section 4), and last those that
    /// are slow.
    pub(super) fn order(&self, addresses: &[IpAddr]) -> Vec<IpAddr> {
        let now = Instant::now();
        let until = self.until.lock().expect(UNPOISONED);
        let is_slow = |ip: &IpAddr| until.get(ip).is_some_and(|until| now < *until);
        let (slow, good): (Vec<_>, Vec<_>) = addresses.iter().partition(|ip| is_slow(ip));
        [in_turn(&good), in_turn(&slow)].concat()
    }

    fn overtaken(&self, ip: IpAddr) {
        let now = Instant::now();
        let mut known = self.until.lock().expect(UNPOISONED);
        if known.len() >= MOST {
            known.retain(|_, until| now < *until);
        }
        if known.len() < MOST {
            known.insert(ip, now + REMEMBERED);
        }
    }

    fn answered(&self, ip: IpAddr) {
        self.until.lock().expect(UNPOISONED).remove(&ip);
    }
}

fn in_turn(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let Some(first) = addresses.first() else {
        return Vec::new();
    };
    let (mut one, mut other): (Vec<_>, Vec<_>) = addresses
        .iter()
        .partition(|ip| ip.is_ipv4() == first.is_ipv4());
    let mut ordered = Vec::with_capacity(addresses.len());
    while !one.is_empty() {
        ordered.push(one.remove(0));
        std::mem::swap(&mut one, &mut other);
        if one.is_empty() {
            std::mem::swap(&mut one, &mut other);
        }
    }
    ordered
}

/// What the first address to answer gave, and which it is. Each is tried when the one before has failed or has had its
/// [`DELAY`]; those that are slower are let go.
pub(super) async fn race<T, A>(
    slow: &SlowAddresses,
    addresses: &[IpAddr],
    until: Instant,
    attempt: impl Fn(IpAddr) -> A,
) -> Result<(T, IpAddr), UpstreamFault>
where
    A: Future<Output = Result<T, UpstreamFault>>,
{
    let mut left = addresses.iter().copied();
    let mut under_way = Vec::new();
    let mut attempts = FuturesUnordered::new();
    let mut last = UpstreamFault::unreachable("it has no address");
    loop {
        let next = left.next();
        if let Some(ip) = next {
            let attempt = attempt(ip);
            under_way.push(ip);
            attempts.push(async move { (ip, attempt.await) });
        } else if attempts.is_empty() {
            return Err(last);
        }
        let delay = OptionFuture::from((left.len() > 0).then(|| sleep(DELAY)));
        tokio::select! {
            Some((ip, tried)) = attempts.next() => {
                under_way.retain(|other| *other != ip);
                match tried {
                    Ok(connected) => {
                        slow.answered(ip);
                        let earlier = addresses.iter().take_while(|other| **other != ip);
                        earlier
                            .filter(|other| under_way.contains(other))
                            .for_each(|other| slow.overtaken(*other));
                        return Ok((connected, ip));
                    }
                    Err(fault) => last = fault,
                }
            }
            Some(()) = delay => {}
            () = sleep_until(until) => {
                let silent: Vec<_> = under_way.iter().map(IpAddr::to_string).collect();
                let detail = format!("{} did not answer", silent.join(" and "));
                return Err(UpstreamFault::timeout(detail));
            }
        }
    }
}

const UNPOISONED: &str = "nothing panics with the lock held";

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn families_take_turns_beginning_with_the_first() {
        let slow = SlowAddresses::default();
        let mixed = addresses(&["::1", "::2", "::3", "127.0.0.1", "127.0.0.2"]);
        let turns = addresses(&["::1", "127.0.0.1", "::2", "127.0.0.2", "::3"]);
        assert_eq!(slow.order(&mixed), turns);
        assert_eq!(slow.order(&mixed[..2]), mixed[..2]);
        assert!(slow.order(&[]).is_empty());
    }

    #[tokio::test]
    async fn who_does_not_answer_is_overtaken_and_tried_last_then() {
        let slow = SlowAddresses::default();
        let known = addresses(&["::1", "127.0.0.1"]);
        let until = Instant::now() + Duration::from_secs(60);
        let connected = race(&slow, &known, until, |ip| async move {
            match ip.is_ipv6() {
                true => pending().await,
                false => Ok(()),
            }
        });
        assert_eq!(connected.await.unwrap().1, known[1]);
        let order = slow.order(&known);
        assert_eq!(order, addresses(&["127.0.0.1", "::1"]));
        let again = race(&slow, &order[1..], until, |_| async { Ok(()) });
        assert_eq!(again.await.unwrap().1, known[0]);
        assert_eq!(slow.order(&known), known, "it answers again");
    }

    #[tokio::test]
    async fn all_are_tried_and_who_is_alone_has_all_the_time() {
        let slow = SlowAddresses::default();
        let known = addresses(&["::1", "127.0.0.1"]);
        let until = Instant::now() + Duration::from_millis(400);
        let refused = race::<(), _>(&slow, &known, until, |ip| async move {
            Err(UpstreamFault::unreachable(ip.to_string()))
        });
        assert_eq!(refused.await.unwrap_err().detail, "127.0.0.1");
        let silent = race::<(), _>(&slow, &known, until, |_| pending());
        let fault = silent.await.unwrap_err();
        assert_eq!(fault.detail, "::1 and 127.0.0.1 did not answer");
        assert!(Instant::now() >= until);
        assert_eq!(slow.order(&known), known, "nobody was faster");
    }
}
