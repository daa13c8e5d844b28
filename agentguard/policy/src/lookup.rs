//! Look-ups: facts of a request that another service knows. What it is asked is worked out here, from the request alone, and
//! what it answers is read here; asking is the gatherer's (the forwarder, or a test's table).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::body::{self, Body, BodyFault, BodyField, Fields};
use super::facts::{read_headers, read_query};
use super::glob::PathPattern;
use super::host::show;
use super::reads::Names;
use super::{Action, Agent, HostName, Input, Policy};

/// Bytes of an answer that are read.
pub const MAX_ANSWER: usize = 64 * 1024;
/// Bytes of the path and query that a service is asked with.
const MAX_TARGET: usize = 4096;
/// What a component of a URL holds as it is (RFC 3986 section 2.3); all else is percent-encoded.
const COMPONENT: AsciiSet = NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// One `[[lookup]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// `None`: every method.
    pub(super) method: Option<&'static str>,
    pub(super) path: PathPattern,
    /// Which segments of the path `{name}` takes.
    pub(super) segments: BTreeMap<String, usize>,
    pub(super) target: Vec<TargetPiece>,
    pub(super) service: Arc<Service>,
}

/// Part of the path and query that a service is asked with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TargetPiece {
    Text(String),
    Value {
        of: ValueSource,
        /// In the path, where `.` and `..` have a meaning.
        in_path: bool,
    },
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ValueSource {
    /// A segment of the path, by its name.
    Path(String),
    Query(String),
    Header(String),
    /// A declared field of the body.
    Body(String),
    Agent,
    Owner,
}

/// Who is asked, and what is made of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Service {
    pub tls: bool,
    pub host: HostName,
    pub port: u16,
    /// By name, at JSON Pointers of the answer.
    pub(super) fields: BTreeMap<String, BodyField>,
    /// How long an answer holds; zero: not at all.
    pub cache: Duration,
    /// For all of it, from resolving the name to the end of the answer.
    pub deadline: Duration,
}

/// One question to a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LookupQuestion {
    pub service: Arc<Service>,
    /// Path and query.
    pub target: String,
}

/// What came of a look-up.
pub type LookupAnswer = Result<Arc<Fields>, Unavailable>;

/// Why the facts of a look-up cannot be known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable {
    /// Names neither the service nor its address: the agent is told.
    pub(super) fault: BodyFault,
    /// For those who run the host.
    pub(super) detail: String,
}

impl Policy {
    /// What has to be asked before `input` can be decided, in the order of the host's file; of `input`'s own
    /// context the body is looked at.
    pub fn asks(
        &self,
        input: &Input<'_>,
    ) -> Vec<(Arc<Lookup>, Result<LookupQuestion, Unavailable>)> {
        let Some(agent) = self.agent(input.agent) else {
            return Vec::new();
        };
        let lookups = self.needs(input).lookups.into_iter();
        lookups
            .map(|lookup| (lookup.clone(), lookup.ask(agent, input)))
            .collect()
    }
}

impl Lookup {
    /// What the service is asked for a request that this look-up fits.
    fn ask(&self, agent: &Agent, input: &Input<'_>) -> Result<LookupQuestion, Unavailable> {
        let failed = |fault: BodyFault| Unavailable {
            detail: format!("{}: {}", self.service.id(), fault.why),
            fault,
        };
        let mut target = String::new();
        for piece in &self.target {
            match piece {
                TargetPiece::Text(text) => target.push_str(text),
                TargetPiece::Value { of, in_path } => {
                    let value = self.value(of, agent, input).map_err(failed)?;
                    if value.is_empty() || *in_path && is_a_step(&value) {
                        return Err(failed(BodyFault::unavailable(format!(
                            "{} of the request cannot be asked about",
                            of.named()
                        ))));
                    }
                    target.extend(utf8_percent_encode(&value, &COMPONENT));
                }
            }
        }
        if target.len() > MAX_TARGET {
            return Err(failed(BodyFault::unavailable(format!(
                "what it would be asked with is longer than {MAX_TARGET} bytes"
            ))));
        }
        Ok(LookupQuestion {
            service: self.service.clone(),
            target,
        })
    }

    fn value<'i>(
        &'i self,
        of: &'i ValueSource,
        agent: &'i Agent,
        input: &Input<'i>,
    ) -> Result<Cow<'i, str>, BodyFault> {
        let Action::Request {
            path,
            query,
            headers,
            ..
        } = &input.action
        else {
            return Err(BodyFault::unavailable("it is not a request"));
        };
        let found = match of {
            ValueSource::Agent => Some(agent.name.as_str().into()),
            ValueSource::Owner => Some(agent.owner.as_str().into()),
            ValueSource::Path(name) => self.segment(name, path.as_str()),
            ValueSource::Query(name) => {
                let read = read_query(&only(name), query.unwrap_or_default(), false);
                let mut read = read.map_err(BodyFault::ambiguous)?;
                read.remove(name).map(Cow::Owned)
            }
            ValueSource::Header(name) => {
                let mut read = read_headers(&only(name), headers).map_err(BodyFault::ambiguous)?;
                read.remove(name).map(Cow::Owned)
            }
            ValueSource::Body(name) => match &input.context.body {
                Body::Read(Fields(fields)) => fields.get(name).map(|value| value.shown().into()),
                Body::Faulty(fault) => return Err(fault.clone()),
                Body::Unread => None,
            },
        };
        found.ok_or_else(|| BodyFault::unavailable(format!("{} is not in the request", of.named())))
    }

    /// The segment of a canonical path that `{name}` takes, decoded.
    fn segment<'p>(&self, name: &str, path: &'p str) -> Option<Cow<'p, str>> {
        let segment = path.split('/').nth(1 + self.segments.get(name)?)?;
        percent_decode_str(segment).decode_utf8().ok()
    }

    /// Whether both ways to read a path lead to the same question.
    pub(super) fn is_alike(&self, one: &str, other: &str) -> bool {
        let mut names = self.segments.keys();
        names.all(|name| self.segment(name, one) == self.segment(name, other))
    }

    /// Names of the body's fields that it asks with.
    pub(super) fn body_fields(&self) -> impl Iterator<Item = &String> {
        self.target.iter().filter_map(|piece| match piece {
            TargetPiece::Value {
                of: ValueSource::Body(name),
                ..
            } => Some(name),
            TargetPiece::Text(_) | TargetPiece::Value { .. } => None,
        })
    }

    pub(super) fn fields(&self) -> &BTreeMap<String, BodyField> {
        &self.service.fields
    }

    /// The answer as a person says it: one JSON object with the facts by their names. `None`: that nobody said.
    pub(super) fn said(&self, facts: Option<&str>) -> LookupAnswer {
        let Some(facts) = facts else {
            let fault = BodyFault::unavailable("what it answers is not said here");
            let detail = format!("{}: {}", self.service.id(), fault.why);
            return Err(Unavailable { fault, detail });
        };
        let by_name = self.service.fields.iter().map(|(name, field)| {
            let at = vec![name.clone()];
            (
                name.clone(),
                BodyField {
                    at,
                    ..field.clone()
                },
            )
        });
        self.service
            .answered(body::json_fields(facts, &by_name.collect()))
    }
}

impl Service {
    /// As policies name hosts.
    fn id(&self) -> String {
        self.host.id(self.port)
    }

    fn answered(&self, read: Result<Fields, BodyFault>) -> LookupAnswer {
        read.map(Arc::new).map_err(|fault| {
            let why = format!("its answer cannot be read: {}", fault.why);
            Unavailable {
                detail: format!("{}: {why}", self.id()),
                fault: BodyFault::unavailable(why),
            }
        })
    }
}

impl LookupQuestion {
    /// `host`, with the port unless it is the scheme's own.
    pub fn authority(&self) -> String {
        let Service {
            tls, host, port, ..
        } = &*self.service;
        // What an id leaves out is always 443.
        match (tls, port) {
            (false, 80) => host.id(443),
            (false, 443) => format!("{}:443", host.id(443)),
            _ => host.id(*port),
        }
    }

    pub fn url(&self) -> String {
        let scheme = if self.service.tls { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority(), self.target)
    }

    /// The facts in a whole answer of status 200.
    pub fn read(&self, headers: &HeaderMap, bytes: &[u8]) -> LookupAnswer {
        let fields = body::json_answer(headers, bytes, &self.service.fields, MAX_ANSWER);
        self.service.answered(fields)
    }

    /// No facts, and why: `told` is what the agent is told.
    pub fn failed(&self, told: impl Into<String>, detail: impl std::fmt::Display) -> Unavailable {
        Unavailable {
            fault: BodyFault::unavailable(told),
            detail: format!("{}: {detail}", self.service.id()),
        }
    }
}

impl Unavailable {
    /// For those who run the host.
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

impl ValueSource {
    fn named(&self) -> String {
        match self {
            Self::Path(name) => format!("segment `{}` of the path", show(name)),
            Self::Query(name) => format!("query parameter `{}`", show(name)),
            Self::Header(name) => format!("header `{}`", show(name)),
            Self::Body(name) => format!("field `{}` of the body", show(name)),
            Self::Agent => "the agent's name".into(),
            Self::Owner => "the agent's owner".into(),
        }
    }
}

/// Whether a server that decodes before it follows dots would take it for another path.
fn is_a_step(value: &str) -> bool {
    let mut segments = value.split(['/', '\\']);
    segments.any(|segment| matches!(segment.split(';').next(), Some("." | "..")))
}

fn only(name: &str) -> Names {
    Names::These([name.to_owned()].into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::FieldType;

    /// A question of this number whose answer holds so long, and an answer with a text of so many bytes.
    fn question(number: usize, cache: Duration, bytes: usize) -> (LookupQuestion, LookupAnswer) {
        let field = BodyField {
            kind: FieldType::String,
            at: vec!["text".into()],
            private: false,
        };
        let ask = LookupQuestion {
            service: Arc::new(Service {
                tls: true,
                host: HostName::parse("t.example").unwrap(),
                port: 443,
                fields: [("text".to_owned(), field)].into(),
                cache,
                deadline: Duration::from_secs(1),
            }),
            target: format!("/{number}"),
        };
        let headers = [(
            http::header::CONTENT_TYPE,
            "application/json".parse().unwrap(),
        )];
        let text = format!("{{\"text\":\"{}\"}}", "x".repeat(bytes));
        let answer = ask.read(&headers.into_iter().collect(), text.as_bytes());
        assert!(answer.is_ok());
        (ask, answer)
    }

    #[test]
    fn a_port_is_left_out_where_it_is_the_schemes_own() {
        let url = |tls: bool, host: &str, port: u16| {
            let (ask, _) = question(7, Duration::ZERO, 1);
            let service = Service {
                tls,
                host: HostName::parse(host).unwrap(),
                port,
                ..(*ask.service).clone()
            };
            let ask = LookupQuestion {
                service: Arc::new(service),
                ..ask
            };
            ask.url()
        };
        assert_eq!(url(true, "t.example", 443), "https://t.example/7");
        assert_eq!(url(true, "t.example", 80), "https://t.example:80/7");
        assert_eq!(url(false, "t.example", 80), "http://t.example/7");
        assert_eq!(url(false, "t.example", 443), "http://t.example:443/7");
        assert_eq!(url(false, "::1", 8080), "http://[::1]:8080/7");
    }
}
