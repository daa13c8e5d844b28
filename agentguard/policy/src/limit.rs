//! Limits: how often requests may be, and how much a field of their bodies may add up to. What a limit says, and what a
//! request takes of it. Knows no clock and counts nothing: the counters are the daemon's.

use jiff::civil::Date;
use jiff::{Timestamp, ToSpan, Zoned};
use serde::{Deserialize, Serialize};

use super::body::units;
use super::time;

/// Of a rate, requests.
const MOST_REQUESTS: u64 = 1_000_000;

/// What `@limit` or `@budget` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// As the rule has it.
    pub text: String,
    /// Requests, or ten-thousandths of the field's unit.
    pub(super) most: u64,
    pub(super) span: Span,
    /// The field of the body that adds up; `None`: each request counts as one.
    pub(super) of: Option<String>,
    pub(super) per: Per,
    /// Where what makes two requests the same is found.
    pub(super) key: Option<KeySource>,
}

/// What has become of a request that limits have counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Settlement {
    /// It has gone out, or may have.
    Kept,
    /// Upstream has refused it, with a status of 400 to 499.
    Refused,
    /// Nothing of it has gone out.
    Unsent,
}

/// What is counted together, besides by rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Per {
    Agent,
    /// Agent and host.
    Host,
    /// Agent and task of a supervisor's; all that is on none together.
    Task,
    /// Every agent's together.
    Rule,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum KeySource {
    Header(String),
    Field(String),
}

/// How long something counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Span {
    /// So many milliseconds from the request on.
    Rolling(u64),
    /// To the end of the day or month, on the clocks of the bundle's zone.
    Day,
    Month,
}

/// What is counted in one place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Counter {
    /// `None`: every agent's together.
    pub agent: Option<String>,
    pub rule: String,
    /// What is counted over which time: what changes it begins anew, another number does not.
    pub unit: String,
    pub host: Option<String>,
    /// Id of a task.
    pub task: Option<String>,
}

/// What a request takes of one limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charge {
    pub counter: Counter,
    pub span: Span,
    /// Of the days and months.
    pub zone: Option<String>,
    /// The limit's text.
    pub text: String,
    pub most: u64,
    pub amount: u64,
    pub key: Option<LimitKey>,
}

/// By which a request is known when it is repeated. Digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitKey {
    pub value: [u8; 16],
    /// Of the whole request: another one with the same value is no repetition.
    pub request: [u8; 16],
}

/// What the counters say of the charges of one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Room {
    /// There was room in all of them, and it is taken. How much of each is used now.
    Taken(Vec<u64>),
    /// One has no room, by its place among the charges, and none is charged.
    Full {
        charge: u32,
        used: u64,
        /// When there is room again, milliseconds since the Unix epoch; `None`: there is not that much in all.
        until: Option<i64>,
    },
    /// There was another request with this key.
    Reused { charge: u32 },
    /// Nothing can be counted, with why for the operators.
    Unavailable(String),
}

impl Limit {
    /// `20/minute per host`.
    ///
    /// # Errors
    /// What is wrong with the text, and what to write.
    pub(super) fn rate(text: &str) -> Result<Self, String> {
        let (number, unit, words) = split(text)?;
        let digits = number.bytes().all(|byte| byte.is_ascii_digit());
        let most = number.parse().ok().filter(|_| digits);
        let most = most.filter(|most| (1..=MOST_REQUESTS).contains(most));
        let span = match unit {
            "second" => 1_000,
            "minute" => 60_000,
            "hour" => 3_600_000,
            "day" => 86_400_000,
            _ => {
                return Err(format!(
                    "`{}` is no time; write `second`, `minute`, `hour` or `day`",
                    show(unit)
                ));
            }
        };
        let limit = Self {
            text: text.to_owned(),
            most: most.ok_or_else(|| {
                format!(
                    "`{}` is no number of requests from 1 to {MOST_REQUESTS}",
                    show(number)
                )
            })?,
            span: Span::Rolling(span),
            of: None,
            per: Per::Agent,
            key: None,
        };
        let limit = limit.with(&words)?;
        if limit.of.is_some() {
            return Err("`of` is a budget's; write `@budget(\"1000.00/day of FIELD\")`".into());
        }
        if limit.key.is_some() {
            return Err(
                "`key` is a budget's: a request that is repeated is a request; leave it out".into(),
            );
        }
        Ok(limit)
    }

    /// `1000.00/day of amount key body.order`.
    ///
    /// # Errors
    /// What is wrong with the text, and what to write.
    pub(super) fn budget(text: &str) -> Result<Self, String> {
        let (number, unit, words) = split(text)?;
        let most = units(number).and_then(|units| u64::try_from(units).ok());
        let span = match unit {
            "day" => Span::Day,
            "month" => Span::Month,
            _ => {
                return Err(format!(
                    "`{}` is no time of a budget; write `day` or `month`",
                    show(unit)
                ));
            }
        };
        let limit = Self {
            text: text.to_owned(),
            most: most.filter(|most| *most > 0).ok_or_else(|| {
                format!(
                    "`{}` is no amount above 0 of at most 4 fraction digits",
                    show(number)
                )
            })?,
            span,
            of: None,
            per: Per::Agent,
            key: None,
        };
        let limit = limit.with(&words)?;
        match limit.of {
            Some(_) => Ok(limit),
            None => Err("it does not say what adds up; write `@budget(\"1000.00/day of FIELD\")`, with a field of a [[body]]".into()),
        }
    }

    fn with(mut self, words: &[&str]) -> Result<Self, String> {
        let (mut of, mut per, mut key) = (None, None, None);
        for pair in words.chunks(2) {
            let [word, value] = *pair else {
                return Err(format!("nothing follows `{}`", show(pair[0])));
            };
            let twice = match word {
                "of" => of.replace(field(value)?).is_some(),
                "per" => per.replace(Per::parse(value)?).is_some(),
                "key" => key.replace(KeySource::parse(value)?).is_some(),
                _ => {
                    return Err(format!(
                        "`{}` is not known here; there are `of`, `per` and `key`",
                        show(word)
                    ));
                }
            };
            if twice {
                return Err(format!("`{word}` is there more than once"));
            }
        }
        self.of = of;
        self.per = per.unwrap_or(Per::Agent);
        self.key = key;
        Ok(self)
    }

    pub fn is_budget(&self) -> bool {
        self.of.is_some()
    }

    /// What is counted over which time.
    pub fn unit(&self) -> String {
        let span = match self.span {
            Span::Rolling(ms) => format!("{ms} ms"),
            Span::Day => "day".to_owned(),
            Span::Month => "month".to_owned(),
        };
        match &self.of {
            None => format!("requests in {span}"),
            Some(field) => format!("{field} in a {span}"),
        }
    }

    /// An amount as people write it.
    pub fn shown(&self, amount: u64) -> String {
        shown(amount, self.is_budget())
    }
}

impl Per {
    fn parse(word: &str) -> Result<Self, String> {
        match word {
            "agent" => Ok(Self::Agent),
            "host" => Ok(Self::Host),
            "task" => Ok(Self::Task),
            "rule" => Ok(Self::Rule),
            _ => Err(format!(
                "nothing is counted per `{}`; there are `agent`, `host`, `task` and `rule`",
                show(word)
            )),
        }
    }
}

impl KeySource {
    fn parse(word: &str) -> Result<Self, String> {
        let help = || {
            format!(
                "`{}` is no key; write `header.NAME`, lower-case, or `body.FIELD`",
                show(word)
            )
        };
        match word.split_once('.') {
            Some(("header", name))
                if name
                    .parse::<http::HeaderName>()
                    .is_ok_and(|it| it.as_str() == name) =>
            {
                Ok(Self::Header(name.to_owned()))
            }
            Some(("body", name)) => field(name).map(Self::Field),
            _ => Err(help()),
        }
    }
}

impl Charge {
    /// Until when what is charged at `now` counts, both in milliseconds since the Unix epoch; `None` if there is no such
    /// time.
    pub fn until(&self, now: i64) -> Option<i64> {
        let ms = match self.span {
            Span::Rolling(ms) => {
                let ms = i64::try_from(ms).ok()?;
                // What is charged within a 60th of the time is kept as one.
                let step = (ms / 60).max(1);
                return now
                    .div_euclid(step)
                    .checked_add(1)?
                    .checked_mul(step)?
                    .checked_add(ms);
            }
            Span::Day | Span::Month => Timestamp::from_millisecond(now).ok()?,
        };
        let zone = time::zone(self.zone.as_deref()?).ok()?;
        let date: Date = ms.to_zoned(zone.clone()).date();
        let next = match self.span {
            Span::Month => date.first_of_month().checked_add(1.month()).ok()?,
            Span::Day | Span::Rolling(_) => date.tomorrow().ok()?,
        };
        let end: Zoned = next.to_zoned(zone).ok()?;
        Some(end.timestamp().as_millisecond())
    }

    /// The longest that anything of it can count, milliseconds.
    pub fn longest(&self) -> i64 {
        match self.span {
            Span::Rolling(ms) => {
                let ms = ms.saturating_add(ms / 60).saturating_add(1);
                i64::try_from(ms).unwrap_or(i64::MAX)
            }
            // A day may have 25 hours.
            Span::Day => 26 * 3_600_000,
            Span::Month => (31 * 24 + 2) * 3_600_000,
        }
    }

    pub fn is_budget(&self) -> bool {
        !matches!(self.span, Span::Rolling(_))
    }

    /// `3 of 20/minute`.
    pub fn used(&self, used: u64) -> String {
        format!("{} of {}", shown(used, self.is_budget()), self.text)
    }
}

fn shown(amount: u64, is_budget: bool) -> String {
    if !is_budget {
        return amount.to_string();
    }
    let fraction = format!("{:04}", amount % 10_000);
    // Money has two.
    let kept = fraction.trim_end_matches('0').len().max(2);
    format!("{}.{}", amount / 10_000, &fraction[..kept])
}

/// The number, the time, and the words that follow.
fn split(text: &str) -> Result<(&str, &str, Vec<&str>), String> {
    let mut words = text.split(' ');
    let first = words.next().unwrap_or_default();
    let words: Vec<&str> = words.collect();
    match first.split_once('/') {
        Some((number, unit)) if !words.contains(&"") => Ok((number, unit, words)),
        _ => Err(format!(
            "`{}` is no limit; write a number, `/` and a time, one space between words: `20/minute per host`",
            show(text)
        )),
    }
}

fn field(name: &str) -> Result<String, String> {
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if plain && !name.is_empty() {
        return Ok(name.to_owned());
    }
    Err(format!(
        "`{}` is no name of a field of a [[body]]",
        show(name)
    ))
}

fn show(text: &str) -> String {
    super::host::show(text)
}
