//! Questions to the other side: each has a token by which its answer comes, a limit in time, and a share of the places
//! there are for those that wait. What kinds there are is [`to_daemon`]'s and [`to_forwarder`]'s.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agentguard_common::abi::AgentId;
use tokio::sync::oneshot;
use tokio::time::timeout;

pub mod to_daemon;
pub mod to_forwarder;

/// Calls that may wait for their answers at once, of all kinds and agents.
pub const MAX_WAITING: usize = 65_536;

/// By which an answer finds its call: never used twice by one side while it runs.
pub type Token = u64;

/// One kind of question.
pub trait Call: Sized + Send {
    /// What goes over the link, and what comes back.
    type Question;
    type Reply: Send + 'static;
    /// What the caller gets.
    type Answer;
    const NAME: &'static str;
    /// How long the caller waits, the way to the other side included.
    const LIMIT: Duration;
    /// How many of its kind may wait at once for one agent, so that none starves others; for those of no agent, together.
    const SHARE: usize = 1024;

    /// For whom it is asked.
    fn agent(&self) -> Option<AgentId> {
        None
    }

    fn question(self) -> Self::Question;

    /// # Errors
    /// The reply, if it answers another kind of question.
    fn answer(token: Token, reply: Self::Reply) -> Result<Self::Answer, Self::Reply>;
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Silent {
    #[error("too many `{0}` calls wait for an answer")]
    TooMany(&'static str),
    #[error("no answer to `{0}` within {1:?}")]
    Late(&'static str, Duration),
    #[error("the other side is gone")]
    Gone,
    #[error("the answer to `{0}` answers another question")]
    Senseless(&'static str),
}

/// The calls of one side that wait.
pub struct Calls<R> {
    waiting: Mutex<Waiting<R>>,
    /// Is told of each reply that no caller has heard: what it gave may have to be given back.
    unheard: Box<dyn Fn(Token, R) + Send + Sync>,
}

/// A kind of call, and the agent it is for.
type Share = (&'static str, Option<AgentId>);

struct Waiting<R> {
    last: Token,
    calls: HashMap<Token, (Share, oneshot::Sender<Delivery<R>>)>,
    shares: HashMap<Share, usize>,
}

/// A reply on its way to its caller.
struct Delivery<R> {
    calls: Arc<Calls<R>>,
    token: Token,
    reply: Option<R>,
}

/// Ends the wait, however the caller's does.
struct Forget<'a, R>(&'a Calls<R>, Token);

impl<R: Send + 'static> Calls<R> {
    pub fn new(unheard: impl Fn(Token, R) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            waiting: Mutex::new(Waiting {
                last: 0,
                calls: HashMap::new(),
                shares: HashMap::new(),
            }),
            unheard: Box::new(unheard),
        })
    }

    /// Has `send` take the question to the other side, and waits for the answer as long as its kind allows.
    pub async fn call<C, F>(
        &self,
        call: C,
        send: impl FnOnce(Token, C::Question) -> F,
    ) -> Result<C::Answer, Silent>
    where
        C: Call<Reply = R>,
        F: Future<Output = Result<(), Silent>>,
    {
        let (token, answered) = self.begin::<C>(call.agent())?;
        let _forget = Forget(self, token);
        let question = call.question();
        let asked = async {
            send(token, question).await?;
            answered.await.map_err(|_| Silent::Gone)
        };
        let asked = timeout(C::LIMIT, asked).await;
        let reply = asked.unwrap_or(Err(Silent::Late(C::NAME, C::LIMIT)))?;
        let reply = reply.open().ok_or(Silent::Gone)?;
        C::answer(token, reply).map_err(|reply| {
            (self.unheard)(token, reply);
            Silent::Senseless(C::NAME)
        })
    }

    /// The other side's answer. One that nobody waits for any more is as one that came too late.
    pub fn answered(self: &Arc<Self>, token: Token, reply: R) {
        let delivery = Delivery {
            calls: self.clone(),
            token,
            reply: Some(reply),
        };
        let waits = self.lock().end(token);
        if let Some(tell) = waits {
            // A caller that has gone since drops the delivery, which tells of it.
            let _ = tell.send(delivery);
        }
    }

    /// No answer will come: the caller is told so.
    pub fn forget(&self, token: Token) {
        self.lock().end(token);
    }

    fn begin<C: Call>(
        &self,
        agent: Option<AgentId>,
    ) -> Result<(Token, oneshot::Receiver<Delivery<R>>), Silent> {
        let share = (C::NAME, agent);
        let mut waiting = self.lock();
        let its = waiting.shares.get(&share).copied().unwrap_or(0);
        if its >= C::SHARE || waiting.calls.len() >= MAX_WAITING {
            return Err(Silent::TooMany(C::NAME));
        }
        waiting.last += 1;
        let token = waiting.last;
        let (tell, answered) = oneshot::channel();
        waiting.calls.insert(token, (share, tell));
        waiting.shares.insert(share, its + 1);
        Ok((token, answered))
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<R>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R> Waiting<R> {
    fn end(&mut self, token: Token) -> Option<oneshot::Sender<Delivery<R>>> {
        let (share, tell) = self.calls.remove(&token)?;
        if let Some(its) = self.shares.get_mut(&share) {
            *its -= 1;
            if *its == 0 {
                self.shares.remove(&share);
            }
        }
        Some(tell)
    }
}

impl<R> Delivery<R> {
    fn open(mut self) -> Option<R> {
        self.reply.take()
    }
}

impl<R> Drop for Delivery<R> {
    fn drop(&mut self) {
        if let Some(reply) = self.reply.take() {
            (self.calls.unheard)(self.token, reply);
        }
    }
}

impl<R> Drop for Forget<'_, R> {
    fn drop(&mut self) {
        let waiting = self.0.waiting.lock();
        waiting.unwrap_or_else(PoisonError::into_inner).end(self.1);
    }
}

#[cfg(test)]
mod tests;
