//! The readings of a request: what a server may take it for. Of those that it stands for, each has to be permitted, and what
//! forbids one forbids it. Of the forms in which lenient servers compare its path, a forbid takes any.

mod forbid;
mod overrides;
mod path;

use std::borrow::Cow;

use super::body::BodyFault;
use super::facts::bounded;
use super::{Action, CanonicalPath, HostName, Input, schema};

pub(super) use self::forbid::{LenientForbid, WRITTEN};
pub use self::overrides::leads_elsewhere;
pub(super) use self::overrides::{METHOD_PARAMETER, is_method_parameter, is_override};
pub(super) use self::path::{PathReading, fold, lenient, others, without_slash, without_space};

use self::overrides::Overrides;

/// Readings of one request at most. One that has more is refused.
const MAX: usize = 32;

/// Which readings a host's file says its server never makes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Exact {
    /// `paths = "exact"`
    pub paths: bool,
    /// `overrides = "ignored"`
    pub overrides: bool,
    /// `parameters = "exact"`
    pub parameters: bool,
}

/// One request that a server may take it for.
#[derive(Clone, Debug)]
pub(super) struct Reading<'i> {
    pub method: Cow<'i, str>,
    pub scheme: &'i str,
    pub host: Cow<'i, HostName>,
    pub port: u16,
    /// `None`: a connection whose bytes are passed.
    pub path: Option<Cow<'i, str>>,
    pub query: Option<Cow<'i, str>>,
    /// What a server does to read it so; empty: as it is written.
    pub steps: Vec<Cow<'i, str>>,
}

/// Every request that a server may take an act for, as it is written first.
#[derive(Debug)]
pub(super) struct Readings<'i> {
    list: Vec<Reading<'i>>,
    /// Why they cannot all be told.
    pub fault: Option<BodyFault>,
    /// What of its head leads to another reading, as a record has it.
    pub facts: Vec<(String, String)>,
}

impl<'i> Readings<'i> {
    /// `exact`: what the file of a host and port says.
    pub(super) fn of(input: &Input<'i>, exact: impl Fn(&HostName, u16) -> Exact) -> Self {
        let Action::Request {
            method,
            scheme,
            path,
            query,
            headers,
        } = input.action
        else {
            return Self::only(Reading {
                method: schema::CONNECT.into(),
                scheme: "",
                host: Cow::Borrowed(input.host),
                port: input.port,
                path: None,
                query: None,
                steps: Vec::new(),
            });
        };
        let mut found = Self::only(Reading {
            method: method.into(),
            scheme,
            host: Cow::Borrowed(input.host),
            port: input.port,
            path: Some(path.as_str().into()),
            query: query.map(Cow::Borrowed),
            steps: Vec::new(),
        });
        let overrides = Overrides::of(query, headers, &input.context.body, input.port);
        let plain = path.others(false).is_ok_and(|mut it| it.next().is_none());
        if plain && overrides.as_ref().is_ok_and(Overrides::is_empty) {
            return found;
        }
        let here = exact(input.host, input.port);
        let overrides = match overrides {
            _ if here.overrides => Overrides::default(),
            Ok(overrides) => overrides,
            Err(why) => {
                found.fault = Some(BodyFault::unjudgeable(why));
                return found;
            }
        };
        found.facts = overrides.facts.clone();
        if let Err(why) = found.multiply(path, &overrides, exact) {
            found.fault = Some(BodyFault::unjudgeable(why));
        }
        found
    }

    fn only(reading: Reading<'i>) -> Self {
        Self {
            list: vec![reading],
            fault: None,
            facts: Vec::new(),
        }
    }

    /// Every method with every host and every path.
    fn multiply(
        &mut self,
        path: &'i CanonicalPath,
        overrides: &Overrides<'i>,
        exact: impl Fn(&HostName, u16) -> Exact,
    ) -> Result<(), String> {
        let written = self.list[0].clone();
        let mut hosts = vec![(written.host.clone(), written.port, None)];
        hosts.extend(overrides.hosts.iter().map(|((host, port), by)| {
            let host = Cow::Owned(host.clone());
            (host, *port, Some(by.clone()))
        }));
        let mut methods = vec![(written.method.clone(), None)];
        methods.extend(overrides.methods.iter().map(|(method, by)| {
            let method = Cow::Owned(method.clone());
            (method, Some(by.clone()))
        }));
        for (host, port, by_host) in hosts {
            let targets = targets(&written, path, overrides, exact(&host, port).paths)?;
            for (method, by_method) in &methods {
                for target in &targets {
                    let by = by_host.iter().chain(by_method).chain(&target.steps);
                    self.add(Reading {
                        method: method.clone(),
                        host: host.clone(),
                        port,
                        steps: by.cloned().collect(),
                        ..target.clone()
                    })?;
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, reading: Reading<'i>) -> Result<(), String> {
        if self.list.iter().any(|known| known.is(&reading)) {
            return Ok(());
        }
        if self.list.len() == MAX {
            return Err(format!("it can be read as more than {MAX} requests"));
        }
        self.list.push(reading);
        Ok(())
    }

    pub(super) fn written(&self) -> &Reading<'i> {
        &self.list[0]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Reading<'i>> {
        self.list.iter()
    }
}

/// The readings of the path and of those that overrides name, of which `exact` leaves the path itself.
fn targets<'i>(
    written: &Reading<'i>,
    path: &'i CanonicalPath,
    overrides: &Overrides<'i>,
    exact: bool,
) -> Result<Vec<Reading<'i>>, String> {
    let mut found = vec![written.clone()];
    found.extend(path.others(exact)?.map(|other| {
        Reading {
            path: Some(Cow::Borrowed(&*other.path)),
            steps: other
                .steps
                .iter()
                .map(|step| Cow::Borrowed(*step))
                .collect(),
            ..written.clone()
        }
    }));
    for (target, by) in &overrides.paths {
        let named = Reading {
            path: Some(Cow::Owned(target.path.as_str().to_owned())),
            query: match &target.query {
                Some(query) => Some(Cow::Owned(query.clone())),
                None => written.query.clone(),
            },
            steps: vec![by.clone()],
            ..written.clone()
        };
        let others = target
            .path
            .others(exact)
            .map_err(|why| format!("header `{by}` names a path that cannot be judged ({why})"))?;
        found.extend(others.map(|other| {
            let steps = other.steps.iter().map(|step| Cow::Borrowed(*step));
            Reading {
                path: Some(Cow::Owned(other.path.clone())),
                steps: named.steps.iter().cloned().chain(steps).collect(),
                ..named.clone()
            }
        }));
        found.push(named);
    }
    Ok(found)
}

impl Reading<'_> {
    fn is(&self, other: &Self) -> bool {
        self.method == other.method
            && self.host == other.host
            && self.port == other.port
            && self.path == other.path
            && self.query == other.query
    }

    pub(super) fn is_written(&self) -> bool {
        self.steps.is_empty()
    }

    /// As a sentence has it, with what leads to it: ``DELETE `/v1/x` (x-http-method-override)``. `path`: a lenient
    /// server's, and what it does to `self.path` to have it.
    pub(super) fn shown(&self, lenient: Option<&PathReading>, from: &Self) -> String {
        let path = lenient.map(|it| it.path.as_str()).or(self.path.as_deref());
        let mut text = format!(
            "{} `{}`",
            super::host::show(&self.method),
            super::facts::short(path.unwrap_or_default())
        );
        if (&self.host, self.port) != (&from.host, from.port) {
            text.push_str(&format!(" at `{}`", self.host.id(self.port)));
        }
        let steps = self.steps.iter().map(AsRef::as_ref);
        let steps = steps.chain(lenient.into_iter().flat_map(|it| it.steps.iter().copied()));
        let steps: Vec<&str> = steps.collect();
        if !steps.is_empty() {
            text.push_str(&format!(" ({})", bounded(&steps.join(", "))));
        }
        text
    }
}
