//! A compiled bundle, and what it decides.

use std::collections::BTreeMap;

use agentguard_common::abi::AgentId;
use agentguard_policy::{
    Action, CanonicalPath, Context, Decision, HostName, Input, Permit, Policy, Sources,
};
use http::HeaderMap;

pub(crate) fn sources(files: &[(&str, &str)]) -> Sources {
    let files = files
        .iter()
        .map(|(path, text)| ((*path).into(), (*text).into()));
    Sources {
        files: files.collect(),
    }
}

pub(crate) fn ids(sources: &Sources) -> BTreeMap<String, AgentId> {
    let names = Policy::agent_names(sources).into_iter();
    names
        .zip(AgentId::FIRST..)
        .map(|(name, id)| (name, AgentId(id)))
        .collect()
}

/// A request to `h` by the bundle's first agent.
pub(crate) struct Request<'r> {
    pub method: &'r str,
    pub path: &'r CanonicalPath,
    pub headers: &'r HeaderMap,
    pub body: &'r [u8],
}

impl Request<'_> {
    /// `limit`: bytes that a compressed body may become. `Err`: the sentence for the agent.
    pub(crate) fn decide(&self, policy: &Policy, limit: usize) -> Result<Permit, String> {
        let host = HostName::parse("h").expect("a name");
        let nothing = Context::default();
        let block = policy.needs(&self.input(&host, &nothing)).body;
        let body = block.map(|needed| needed.block.read(self.headers, self.body, limit));
        let gathered = Context {
            body: body.unwrap_or_default(),
            ..Context::default()
        };
        match policy.decide(&self.input(&host, &gathered)) {
            Decision::Permit(permit) => Ok(permit),
            Decision::Deny(denial) => Err(denial.detail),
            Decision::Owing(_) => unreachable!("no rule here has a limit"),
        }
    }

    fn input<'i>(&'i self, host: &'i HostName, gathered: &'i Context) -> Input<'i> {
        Input {
            agent: AgentId(AgentId::FIRST),
            host,
            port: 443,
            action: Action::Request {
                method: self.method,
                scheme: "https",
                path: self.path,
                query: None,
                headers: self.headers,
            },
            context: gathered,
        }
    }
}
