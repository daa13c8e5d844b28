//! What policies read of a request, found in their text.

use std::collections::{BTreeMap, BTreeSet};

use super::context::{AttributeName, AttributeSet};
use super::diagnostic::{Place, Report};
use super::glob::PathPattern;
use super::lex::{self, CedarToken, Use};

/// What policies read of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reads {
    /// Attributes of `context`.
    pub attributes: AttributeSet,
    /// Whether more of the host than its id and the patterns above it.
    pub host: bool,
    /// Parameters and headers by name.
    pub query: Names,
    pub headers: Names,
    /// Fields of the body.
    pub body: Names,
    /// Facts that are looked up.
    pub lookup: Names,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Names {
    These(BTreeSet<String>),
    All,
}

impl Reads {
    pub(crate) fn add(&mut self, other: &Self) {
        self.attributes.extend(other.attributes);
        self.host |= other.host;
        self.query.add(&other.query);
        self.headers.add(&other.headers);
        self.body.add(&other.body);
        self.lookup.add(&other.lookup);
    }

    /// What an annotation reads besides the policy's own text.
    pub(crate) fn note_header(&mut self, name: &str) {
        self.attributes.insert(AttributeName::Headers);
        self.headers.note(Some(name.to_owned()));
    }

    pub(crate) fn note_body(&mut self, field: &str) {
        self.attributes.insert(AttributeName::Body);
        self.body.note(Some(field.to_owned()));
    }

    /// Whether the attribute of `context` has to be there; what nobody reads need not be.
    pub(crate) fn has(&self, attribute: AttributeName) -> bool {
        self.attributes.has(attribute)
    }
}

impl Default for Names {
    fn default() -> Self {
        Self::These(BTreeSet::new())
    }
}

impl Names {
    fn add(&mut self, other: &Self) {
        match (&mut *self, other) {
            (Self::These(mine), Self::These(theirs)) => mine.extend(theirs.iter().cloned()),
            _ => *self = Self::All,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::These(names) if names.is_empty())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        match self {
            Self::These(names) => names.contains(name),
            Self::All => true,
        }
    }

    fn note(&mut self, name: Option<String>) {
        match (&mut *self, name) {
            (Self::These(names), Some(name)) => drop(names.insert(name)),
            _ => *self = Self::All,
        }
    }
}

/// What the policy reads, and the path patterns it asks `context.routes` for.
pub(super) fn reads_of(
    report: &mut Report<'_>,
    file: u32,
    tokens: &[CedarToken<'_>],
) -> (Reads, BTreeMap<String, PathPattern>) {
    let mut reads = Reads::default();
    let mut routes = BTreeMap::new();
    // Its head names `resource` once.
    reads.host = lex::count(tokens, "resource") > 1;
    for (offset, found) in lex::context_uses(tokens) {
        let at = Place::new(file, offset);
        let mut note = |attribute| reads.attributes.insert(attribute);
        match found {
            // One that there is not is told by the schema.
            Use::Plain(name) => {
                AttributeName::parse(name).map(note);
            }
            Use::Route(raw) => match PathPattern::parse(raw) {
                Ok(pattern) => {
                    note(AttributeName::Routes);
                    routes.insert(raw.to_owned(), pattern);
                }
                Err(why) => report.error(at, why),
            },
            Use::OpenRoutes => report.error_help(
                at,
                "`context.routes` is asked for one written pattern at a time",
                "write `context.routes.contains(\"/v1/catalog/**\")`, and join several with `||`",
            ),
            Use::Query(name) => {
                note(AttributeName::Query);
                reads.query.note(name.map(str::to_owned));
            }
            Use::Header(name) => {
                if let Some(upper) =
                    name.filter(|name| name.contains(|c: char| c.is_ascii_uppercase()))
                {
                    report.error_help(
                        at,
                        format!("header `{upper}` is never there: header names are lower-case"),
                        format!("write `{}`", upper.to_ascii_lowercase()),
                    );
                }
                note(AttributeName::Headers);
                reads.headers.note(name.map(str::to_owned));
            }
            Use::Body(name) => {
                note(AttributeName::Body);
                reads.body.note(name.map(str::to_owned));
            }
            Use::Lookup(name) => {
                note(AttributeName::Lookup);
                reads.lookup.note(name.map(str::to_owned));
            }
            Use::Whole => report.error_help(
                at,
                "`context` cannot be used as a whole",
                "name its attribute, as in `context.path`; every attribute of it is always there",
            ),
        }
    }
    (reads, routes)
}
