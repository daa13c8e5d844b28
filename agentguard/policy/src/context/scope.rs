//! `context.scope`: what a request does, as its host's file or its method tells.

use cedar_policy::RestrictedExpression;

use super::ActFacts;
use super::attribute::{Attribute, set};

/// What a request does.
pub(crate) const SCOPES: [&str; 6] = [
    "read",
    "write",
    "money",
    "infrastructure",
    "export",
    "admin",
];

/// What a request does of which its host's file says nothing.
pub(crate) fn scope_of(method: &str) -> &'static str {
    match method {
        "GET" | "HEAD" | "OPTIONS" => "read",
        _ => "write",
    }
}

pub(crate) struct ScopeAttribute;

impl Attribute for ScopeAttribute {
    const NAME: &'static str = "scope";
    const CEDAR: &'static str = "Set<String>";
    const CONNECT: bool = false;
    const DOC: &'static str = "What the request does: `read`, `write`, `money`, `infrastructure`, `export`, `admin`, by the host's `[[scope]]` or else by the method.";
    const FACTS: &'static [&'static str] = &["scope"];
    const KEYS: &'static [(&'static str, &'static str)] = &[];

    fn cedar(facts: &ActFacts<'_>) -> RestrictedExpression {
        set(facts.scope.iter().copied())
    }
}
