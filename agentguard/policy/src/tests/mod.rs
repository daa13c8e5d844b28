//! Tests of the policy as a whole.

mod asked;
mod decisions;
mod delegation;
mod differential;
mod examples;
mod limits;
mod lookups;
mod readings;
mod refused;
mod settings;
mod shorthand;
mod tasks;

use std::collections::BTreeMap;
use std::path::Path;

use agentguard_common::abi::AgentId;
use http::HeaderMap;

use super::*;

pub(super) fn sources(files: &[(&str, &str)]) -> Sources {
    let files = files
        .iter()
        .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    Sources {
        files: files.collect(),
    }
}

/// A folder of `policies/`, its files as they are; the bundle crate reads folders with care.
fn folder(path: &Path) -> Sources {
    fn gather(folder: &Path, prefix: &str, files: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                gather(&path, &format!("{prefix}{name}/"), files);
            } else if !name.starts_with("README") {
                let text = std::fs::read_to_string(&path).unwrap();
                files.insert(format!("{prefix}{name}"), text);
            }
        }
    }
    let mut files = BTreeMap::new();
    gather(path, "", &mut files);
    Sources { files }
}

/// A bundle's parts around the ones that a test is about.
pub(super) fn bundle(agent: &str, rules: &str) -> Sources {
    let agent =
        format!("[agent]\nname = \"a\"\nowner = \"o@example.com\"\nrisk = \"low\"\n{agent}");
    sources(&[
        ("bundle.toml", "name = \"b\"\nserial = 1\n"),
        ("agents/a.toml", &agent),
        ("rules/r.cedar", rules),
    ])
}

pub(super) fn ids(sources: &Sources) -> BTreeMap<String, AgentId> {
    Policy::agent_names(sources)
        .into_iter()
        .zip(AgentId::FIRST..)
        .map(|(name, id)| (name, AgentId(id)))
        .collect()
}

pub(super) fn compile(sources: &Sources) -> Policy {
    Policy::compile(sources, &ids(sources)).unwrap_or_else(|found| panic!("{found:#?}"))
}

/// A request as tests write it: `GET https://host:port/path?query`.
pub(super) struct Asked {
    method: String,
    scheme: String,
    host: HostName,
    port: u16,
    path: CanonicalPath,
    query: Option<String>,
    pub headers: HeaderMap,
    pub context: Context,
}

impl Asked {
    pub(crate) fn new(line: &str, headers: &[(&str, &str)]) -> Self {
        let (method, url) = line.split_once(' ').unwrap();
        let (scheme, rest) = url.split_once("://").unwrap();
        let (authority, target) = rest.split_at(rest.find('/').unwrap());
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target, None),
        };
        let (host, port) = host::split_port(authority).unwrap();
        Self {
            method: method.into(),
            scheme: scheme.into(),
            host: HostName::parse(host).unwrap(),
            port: port.map_or(443, |port| port.parse().unwrap()),
            path: CanonicalPath::parse(path).unwrap(),
            query,
            headers: headers
                .iter()
                .map(|(name, value)| {
                    (
                        name.parse::<http::HeaderName>().unwrap(),
                        value.parse().unwrap(),
                    )
                })
                .collect(),
            context: Context::default(),
        }
    }

    pub(crate) fn input(&self, agent: AgentId) -> Input<'_> {
        Input {
            agent,
            host: &self.host,
            port: self.port,
            action: Action::Request {
                method: &self.method,
                scheme: &self.scheme,
                path: &self.path,
                query: self.query.as_deref(),
                headers: &self.headers,
            },
            context: &self.context,
        }
    }
}

/// `Ok`: the permitting policies; `Err`: the reason's slug, then the refusing policies.
pub(super) fn answer(policy: &Policy, input: &Input<'_>) -> Result<Vec<String>, Vec<String>> {
    match policy.decide(input) {
        Decision::Permit(permit) => Ok(permit.policies().to_vec()),
        Decision::Owing(owing) => Ok(owing.policies().to_vec()),
        Decision::Deny(denial) => {
            let mut said = vec![denial.reason.slug().to_owned()];
            said.extend(denial.policies);
            Err(said)
        }
    }
}
