//! A request as a person writes it, in the terms of a decision.

use agentguard_common::abi::AgentId;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use super::context::{AskedContext, Context};
use super::host::split_port;
use super::time::Calendar;
use super::{Action, CanonicalPath, HostName, Input, Policy, TaskSituation, schema};

/// What the forwarder reads of a body by default, bytes.
const MAX_BODY: usize = 1 << 20;

/// A request as a person writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Question {
    pub agent: String,
    /// An HTTP method, or `connect`.
    pub method: String,
    /// `https://host/path?query`; `host:port` for `connect`.
    pub url: String,
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// JSON, unless a header says otherwise.
    #[serde(default)]
    pub body: Option<String>,
    /// What is looked up, as one JSON object with the facts by their names; `None`: nobody answers.
    #[serde(default)]
    pub lookup: Option<String>,
    /// What it assumes of the surroundings.
    #[serde(flatten)]
    pub context: AskedContext,
}

/// A question in the terms of a decision.
pub(super) struct ParsedQuestion<'q> {
    method: &'q str,
    scheme: &'q str,
    host: HostName,
    port: u16,
    path: CanonicalPath,
    query: Option<&'q str>,
    headers: HeaderMap,
    body: &'q str,
    lookup: Option<&'q str>,
    context: Context,
}

impl<'q> ParsedQuestion<'q> {
    /// `calendar`: the bundle's; without one the time is not looked at.
    pub(crate) fn new(question: &'q Question, calendar: Option<&Calendar>) -> Result<Self, String> {
        let url = question.url.as_str();
        let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
        let default = match scheme {
            "https" | "wss" => 443,
            "http" | "ws" => 80,
            _ => {
                return Err(format!(
                    "`{}` is not http or https",
                    super::host::show(scheme)
                ));
            }
        };
        let rest = rest.split('#').next().unwrap_or(rest);
        let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(format!(
                "`{}` has a user name; leave it out",
                super::host::show(authority)
            ));
        }
        let (host, port) = split_port(authority)?;
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        let mut headers = HeaderMap::new();
        for (name, value) in &question.headers {
            let name: HeaderName = name
                .parse()
                .map_err(|_| format!("`{}` is not a header name", super::host::show(name)))?;
            let value: HeaderValue = value
                .parse()
                .map_err(|_| format!("header `{name}` has a value that no header can have"))?;
            headers.append(name, value);
        }
        if question.body.is_some() {
            let kind = headers.entry(CONTENT_TYPE);
            kind.or_insert(HeaderValue::from_static("application/json"));
        }
        Ok(Self {
            method: &question.method,
            scheme: if default == 443 { "https" } else { "http" },
            host: HostName::parse(host)?,
            port: port.map_or(Ok(default), super::host::parse_port)?,
            path: CanonicalPath::parse(path)?,
            query,
            headers,
            body: question.body.as_deref().unwrap_or_default(),
            lookup: question.lookup.as_deref(),
            context: Context::assumed(&question.context, calendar)?,
        })
    }

    /// Reads of the body and of the answers what the policy's rules need; tells whom they would have asked what.
    pub(crate) fn gather(&mut self, policy: &Policy, agent: AgentId) -> Vec<String> {
        let needed = policy.needs(&self.input(agent)).body;
        let bytes = self.body.as_bytes();
        let settings = policy.settings(&self.host, self.port);
        let limit = settings.max_judged_body.unwrap_or(MAX_BODY);
        let body = needed.map(|needed| needed.block.read(&self.headers, bytes, limit));
        self.context.body = body.unwrap_or_default();
        let mut urls = Vec::new();
        let asked = policy.asks(&self.input(agent)).into_iter();
        let answered = asked.map(|(lookup, ask)| {
            let answer = ask.and_then(|ask| {
                urls.push(ask.url());
                lookup.said(self.lookup)
            });
            (lookup, answer)
        });
        self.context.lookups = answered.collect();
        urls
    }

    pub(crate) fn input(&self, agent: AgentId) -> Input<'_> {
        let action = if self.method == schema::CONNECT {
            Action::Connect
        } else {
            Action::Request {
                method: self.method,
                scheme: self.scheme,
                path: &self.path,
                query: self.query,
                headers: &self.headers,
            }
        };
        Input {
            agent,
            host: &self.host,
            port: self.port,
            action,
            context: &self.context,
        }
    }
}

impl Policy {
    /// What `judge` says of the act that the agent asks about and of what is known of it, and the host's id. Nobody is
    /// asked for look-ups.
    ///
    /// # Errors
    /// What in the question is no host, path or header.
    pub fn may<T>(
        &self,
        agent: AgentId,
        question: &Question,
        tasks: TaskSituation,
        judge: impl FnOnce(&HostName, u16, Action<'_>, Context) -> T,
    ) -> Result<(String, T), String> {
        let mut parsed = ParsedQuestion::new(question, None)?;
        parsed.context = Context {
            tasks: Some(tasks),
            ..Context::default()
        };
        parsed.gather(self, agent);
        let known = parsed.context.clone();
        let Input {
            host, port, action, ..
        } = parsed.input(agent);
        Ok((host.id(port), judge(host, port, action, known)))
    }
}
