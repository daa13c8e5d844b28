//! What rules read that another service knows: asked before a decision, by the forwarder as itself, and only what some rule
//! that can apply reads. Whatever goes wrong leaves the fact unknown, and the decision refuses.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use agentguard_common::abi::AgentId;
use agentguard_policy::lookup::{Lookup, LookupAnswer, LookupQuestion, Unavailable};
use agentguard_record::DenyReason;
use futures_util::FutureExt as _;
use futures_util::future::{Shared, WeakShared, join_all, ready};
use http::StatusCode;
use lru::LruCache;
use tokio::time::timeout;

use super::life::Life;
use super::shares::AllShares;
use super::upstream::{Fetcher, UpstreamFault};

/// Answers kept, and the bytes that they and their questions take together.
const MAX_KEPT: usize = 4096;
const MAX_KEPT_BYTES: usize = 8 << 20;

pub(crate) struct Lookups {
    fetcher: Arc<Fetcher>,
    all: Arc<AllShares>,
    state: Mutex<LookupTable>,
}

struct LookupTable {
    kept: LruCache<LookupQuestion, CachedAnswer>,
    kept_bytes: usize,
    /// The same question is asked once, however many wait for the answer; when nobody does any more, it ends.
    asking: HashMap<LookupQuestion, Vec<PendingLookup>>,
}

struct PendingLookup {
    by: AgentId,
    /// It waits for no room any more.
    begun: Arc<AtomicBool>,
    asking: WeakShared<Asking>,
}

type Asking = Pin<Box<dyn Future<Output = LookupAnswer> + Send>>;

struct CachedAnswer {
    answer: LookupAnswer,
    until: Instant,
    bytes: usize,
}

impl Lookups {
    pub(crate) fn new(fetcher: Fetcher, all: Arc<AllShares>) -> Self {
        Self {
            fetcher: Arc::new(fetcher),
            all,
            state: Mutex::new(LookupTable {
                kept: LruCache::unbounded(),
                kept_bytes: 0,
                asking: HashMap::new(),
            }),
        }
    }

    /// The answers to what a request of the agent's needs; takes as long as the slowest.
    pub(crate) async fn gather(
        self: &Arc<Self>,
        life: &Arc<Life>,
        asks: Vec<(Arc<Lookup>, Result<LookupQuestion, Unavailable>)>,
    ) -> Vec<(Arc<Lookup>, LookupAnswer)> {
        let answers = asks.into_iter().map(async |(lookup, ask)| {
            let answer = match ask {
                Ok(ask) => self.answer(life, ask).await,
                Err(unavailable) => Err(unavailable),
            };
            (lookup, answer)
        });
        join_all(answers).await
    }

    async fn answer(self: &Arc<Self>, life: &Arc<Life>, ask: LookupQuestion) -> LookupAnswer {
        let (asking, by) = self.join(life, &ask);
        let answer = asking.await;
        if answer.is_ok() || by == life.agent {
            return answer;
        }
        // It may have been late for another agent only, which had waited before.
        let (own, _) = self.join(life, &ask);
        own.await
    }

    /// A question that is under way, or a new one, and whose it is. That of another agent is not waited for before it is
    /// asked: it may have much to ask.
    fn join(self: &Arc<Self>, life: &Arc<Life>, ask: &LookupQuestion) -> (Shared<Asking>, AgentId) {
        let mut state = self.state.lock().expect(UNPOISONED);
        if let Some(answer) = state.kept(ask) {
            let asking: Asking = Box::pin(ready(answer));
            return (asking.shared(), life.agent);
        }
        state.asking.retain(|_, questions| {
            questions.retain(|question| question.asking.upgrade().is_some());
            !questions.is_empty()
        });
        let questions = state.asking.entry(ask.clone()).or_default();
        let fits = |it: &&PendingLookup| it.by == life.agent || it.begun.load(Ordering::Relaxed);
        let known = questions.iter().find(fits);
        if let Some((asking, by)) = known.and_then(|it| Some((it.asking.upgrade()?, it.by))) {
            return (asking, by);
        }
        let begun = Arc::<AtomicBool>::default();
        let asking: Asking = Box::pin(self.clone().asked(life.clone(), ask.clone(), begun.clone()));
        let asking = asking.shared();
        questions.push(PendingLookup {
            by: life.agent,
            begun,
            asking: asking.downgrade().expect("it has not been polled"),
        });
        (asking, life.agent)
    }

    /// One question and its end.
    async fn asked(
        self: Arc<Self>,
        life: Arc<Life>,
        ask: LookupQuestion,
        begun: Arc<AtomicBool>,
    ) -> LookupAnswer {
        let deadline = ask.service.deadline;
        let answer = timeout(deadline, self.ask(&life, &ask, &begun)).await;
        let answer = answer.unwrap_or_else(|_| {
            let late = format!("it did not answer within {} ms", deadline.as_millis());
            Err(ask.failed(&late, &late))
        });
        let mut state = self.state.lock().expect(UNPOISONED);
        if let Some(questions) = state.asking.get_mut(&ask) {
            questions.retain(|it| !Arc::ptr_eq(&it.begun, &begun));
        }
        state.keep(ask, &answer);
        answer
    }

    async fn ask(&self, life: &Life, ask: &LookupQuestion, begun: &AtomicBool) -> LookupAnswer {
        let _own = life.shares.lookups.acquire().await;
        let _of_all = self.all.lookups.acquire().await;
        begun.store(true, Ordering::Relaxed);
        match self.fetcher.fetch(ask).await {
            Ok(fetched) if fetched.status == StatusCode::OK => {
                ask.read(&fetched.headers, &fetched.body)
            }
            Ok(fetched) => {
                let other = format!("it answered with the status {}", fetched.status.as_u16());
                Err(ask.failed(&other, &other))
            }
            Err(fault) => Err(ask.failed(told(&fault), &fault.detail)),
        }
    }
}

impl LookupTable {
    fn kept(&mut self, ask: &LookupQuestion) -> Option<LookupAnswer> {
        let kept = self.kept.get(ask)?;
        if Instant::now() < kept.until {
            return Some(kept.answer.clone());
        }
        self.forget(ask);
        None
    }

    /// Failures are not kept: the next request asks again.
    fn keep(&mut self, ask: LookupQuestion, answer: &LookupAnswer) {
        let (Ok(fields), cache) = (answer, ask.service.cache) else {
            return;
        };
        if cache.is_zero() {
            return;
        }
        let bytes = ask.target.len() + fields.bytes();
        self.forget(&ask);
        self.kept_bytes += bytes;
        let until = Instant::now() + cache;
        let answer = answer.clone();
        self.kept.put(
            ask,
            CachedAnswer {
                answer,
                until,
                bytes,
            },
        );
        while self.kept.len() > MAX_KEPT || self.kept_bytes > MAX_KEPT_BYTES {
            let Some((_, oldest)) = self.kept.pop_lru() else {
                return;
            };
            self.kept_bytes -= oldest.bytes;
        }
    }

    fn forget(&mut self, ask: &LookupQuestion) {
        let bytes = self.kept.pop(ask).map_or(0, |kept| kept.bytes);
        self.kept_bytes -= bytes;
    }
}

/// What an agent is told, which is not where the service is.
fn told(fault: &UpstreamFault) -> &'static str {
    if fault.reason == DenyReason::UpstreamTls {
        "its certificate was not accepted"
    } else if fault.reason == DenyReason::UpstreamTimeout {
        "it did not answer in time"
    } else {
        "it cannot be reached, or does not answer as it should"
    }
}

const UNPOISONED: &str = "nothing panics with the lock held";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::LazyLock;
    use std::time::Duration;

    use agentguard_common::abi::AgentId;
    use agentguard_policy::{Action, CanonicalPath, Context, HostName, Input, Policy, Sources};
    use http::HeaderMap;
    use http::header::CONTENT_TYPE;

    use super::*;

    /// What a bundle declares.
    static DECLARED: LazyLock<LookupQuestion> = LazyLock::new(|| {
        let files = [
            ("bundle.toml", "name = \"b\"\nserial = 1\n"),
            (
                "agents/a.toml",
                "[agent]\nname = \"a\"\nowner = \"o@example.com\"\nrisk = \"low\"\n[[reach]]\nhost = \"h.test\"\n",
            ),
            (
                "hosts/h.toml",
                "[host]\nname = \"h.test\"\n[[lookup]]\non = \"GET /\"\nurl = \"https://t.example/\"\ntext = { type = \"string\", at = \"/text\" }\n",
            ),
            (
                "rules/r.cedar",
                "@id(\"r\") permit (principal, action, resource) when { context.lookup has text };",
            ),
        ];
        let files = files.map(|(name, text)| (name.to_owned(), text.to_owned()));
        let sources = Sources {
            files: files.into(),
        };
        let agent = AgentId(2);
        let policy = Policy::compile(&sources, &BTreeMap::from([("a".to_owned(), agent)])).unwrap();
        let asks = policy.asks(&Input {
            agent,
            host: &HostName::parse("h.test").unwrap(),
            port: 443,
            action: Action::Request {
                method: "GET",
                scheme: "https",
                path: &CanonicalPath::parse("/").unwrap(),
                query: None,
                headers: &HeaderMap::new(),
            },
            context: &Context::default(),
        });
        let (_, ask) = asks.into_iter().next().unwrap();
        ask.unwrap()
    });

    fn question(number: usize, cache: Duration, bytes: usize) -> (LookupQuestion, LookupAnswer) {
        let mut ask = DECLARED.clone();
        ask.target = format!("/{number}");
        Arc::make_mut(&mut ask.service).cache = cache;
        let headers = [(CONTENT_TYPE, "application/json".parse().unwrap())];
        let text = format!("{{\"text\":\"{}\"}}", "x".repeat(bytes));
        let answer = ask.read(&headers.into_iter().collect(), text.as_bytes());
        assert!(answer.is_ok());
        (ask, answer)
    }

    fn state() -> LookupTable {
        LookupTable {
            kept: LruCache::unbounded(),
            kept_bytes: 0,
            asking: HashMap::new(),
        }
    }

    #[test]
    fn answers_are_kept_within_bounds_and_failures_not_at_all() {
        let mut state = state();
        let (ask, answer) = question(0, Duration::from_secs(60), 10);
        state.keep(ask.clone(), &Err(ask.failed("no", "no")));
        assert!(state.kept(&ask).is_none());
        let (unkept, of) = question(0, Duration::ZERO, 10);
        state.keep(unkept.clone(), &of);
        assert!(state.kept(&unkept).is_none());
        state.keep(ask.clone(), &answer);
        assert_eq!(state.kept(&ask), Some(answer.clone()));
        for number in 1..=MAX_KEPT {
            let (ask, answer) = question(number, Duration::from_secs(60), 10);
            state.keep(ask, &answer);
        }
        assert_eq!(state.kept.len(), MAX_KEPT);
        assert!(state.kept(&ask).is_none(), "the oldest went first");
        for number in 0..1000 {
            let (ask, answer) = question(number, Duration::from_secs(60), 60_000);
            state.keep(ask.clone(), &answer);
            assert!(state.kept_bytes <= MAX_KEPT_BYTES);
            assert!(state.kept(&ask).is_some());
        }
        let keys: Vec<LookupQuestion> = state.kept.iter().map(|(ask, _)| ask.clone()).collect();
        assert!(keys.len() < 200);
        keys.iter().for_each(|ask| state.forget(ask));
        assert_eq!(state.kept_bytes, 0);
    }

    #[test]
    fn an_answer_does_not_outlast_its_time() {
        let mut state = state();
        let (ask, answer) = question(0, Duration::from_nanos(1), 10);
        state.keep(ask.clone(), &answer);
        assert!(state.kept(&ask).is_none() && state.kept_bytes == 0);
    }
}
