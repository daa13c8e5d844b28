//! `rules/*.cedar`: parsed, named and checked as far as one file alone can be.

mod approve;
mod limit;

use std::collections::{BTreeMap, BTreeSet};

use agentguard_record::DenyReason;
use cedar_policy::{
    ActionConstraint, Effect, EntityUid, Policy, PolicyId, PolicySet, PrincipalConstraint,
    ResourceConstraint,
};
use miette::Diagnostic as _;

use super::diagnostic::{Place, Report, did_you_mean};
use super::glob::PathPattern;
use super::host::HostPattern;
use super::lex::{self, CedarToken};
use super::limit::Limit;
use super::reading::LenientForbid;
use super::reads::{Reads, reads_of};
use super::schema;

/// One policy of a rules file.
pub(super) struct CedarRule {
    pub id: String,
    pub at: Place,
    pub effect: Effect,
    /// The role that can lift it.
    pub approve: Option<String>,
    /// What room lifts it.
    pub limit: Option<Limit>,
    /// `@reason`: what a refusal by it is called.
    pub reason: Option<DenyReason>,
    /// Under its `@id`.
    pub policy: Policy,
    /// Of a forbid by path: as it holds of lenient servers' readings.
    pub lenient: Option<LenientForbid>,
    /// The agent its head names; `None`: every agent.
    pub agent: Option<String>,
    pub actions: Actions,
    pub host: HostScope,
    pub literals: Literals,
    pub reads: Reads,
    /// Time windows that it names.
    pub windows: Vec<(Place, String)>,
    /// Path patterns it asks `context.routes` for.
    pub routes: BTreeMap<String, PathPattern>,
}

/// What a policy's head says of the action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Actions {
    Any,
    /// Actions, and perhaps the group of all methods.
    Listed(BTreeSet<String>),
}

/// What a policy's head says of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum HostScope {
    Any,
    /// A host, or with `below` every host that the pattern covers.
    Is(HostPattern),
}

/// Entities that a policy names anywhere.
#[derive(Clone, Debug, Default)]
pub(super) struct Literals {
    /// One of them is nothing that a bundle can have.
    pub faulty: bool,
    pub agents: Vec<(Place, String)>,
    pub hosts: Vec<(Place, HostPattern)>,
    pub methods: BTreeSet<&'static str>,
    pub request_group: bool,
    pub connect: bool,
}

impl Actions {
    pub(crate) fn has_method(&self, method: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(listed) => listed.contains(method) || listed.contains(schema::REQUEST),
        }
    }

    /// Whether it holds for methods that no policy names, too.
    pub(crate) fn has_every_method(&self) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(listed) => listed.contains(schema::REQUEST),
        }
    }

    pub(crate) fn has_requests(&self) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(listed) => listed.iter().any(|action| action != schema::CONNECT),
        }
    }

    pub(crate) fn has_connect(&self) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(listed) => listed.contains(schema::CONNECT),
        }
    }
}

/// Annotations of the format that nothing in this build acts on.
const LATER: [&str; 1] = ["credential"];

/// Every policy of one file.
pub(super) fn rules_file(report: &mut Report<'_>, file: u32) -> Vec<CedarRule> {
    let text = report.text(file);
    let set: PolicySet = match text.parse() {
        Ok(set) => set,
        Err(errors) => {
            let errors: cedar_policy::ParseErrors = errors;
            for error in errors.iter() {
                let at = Place::new(file, first_label(error).unwrap_or(0));
                let help = error.help().map(|help| help.to_string());
                let label = error.labels().and_then(|mut labels| labels.next());
                let label = label.and_then(|label| label.label().map(|text| format!(": {text}")));
                let message = format!("{error}{}", label.unwrap_or_default());
                report.error_with(at, message, help);
            }
            return Vec::new();
        }
    };
    if let Some((offset, found)) = lex::unusual_space(text) {
        report.error_help(
            Place::new(file, offset),
            format!("{} stands outside of texts", found.escape_unicode()),
            "write a space there, or end the line with a line feed",
        );
        return Vec::new();
    }
    let policies = lex::policies(text);
    if policies.len() != set.num_of_policies() + set.num_of_templates() {
        let at = Place::new(file, 0);
        report.error(
            at,
            "its policies cannot be told apart: write each on lines of its own",
        );
        return Vec::new();
    }
    let mut rules = Vec::new();
    for (index, tokens) in policies.into_iter().enumerate() {
        let at = Place::new(file, tokens.first().map_or(0, |token| token.offset));
        // Cedar's own numbering of a text's policies and templates.
        match set.policy(&PolicyId::new(format!("policy{index}"))) {
            Some(policy) => rules.extend(rule(report, at, policy, &tokens)),
            None => report.error_help(
                at,
                "policy templates have nobody to fill them",
                "write the agent or host in place of the slot",
            ),
        }
    }
    rules
}

fn rule(
    report: &mut Report<'_>,
    at: Place,
    policy: &Policy,
    tokens: &[CedarToken<'_>],
) -> Option<CedarRule> {
    check_annotations(report, at.file, tokens);
    let id = policy.annotation("id").map(str::to_owned);
    match &id {
        None => report.error_help(
            at,
            "policy has no `@id`",
            "write `@id(\"…\")` in front of it: decisions name their policies",
        ),
        Some(id) if !is_id(id) => report.error_help(
            at,
            format!("`@id` `{}` is not usable", super::host::show(id)),
            "use 1 to 128 printable ASCII characters without spaces, and not the form of the shorthand's ids",
        ),
        Some(_) => {}
    }
    let literals = literals_of(report, at, policy, tokens);
    let (mut reads, routes) = reads_of(report, at.file, tokens);
    let windows = lex::windows(tokens).into_iter();
    let windows = windows.map(|(offset, name)| (Place::new(at.file, offset), name.to_owned()));
    let reason = reason_of(report, at, policy);
    let id = id.filter(|id| is_id(id))?;
    let limit = limit::limit(report, at, policy, tokens, &mut reads);
    let limit = limit?;
    let policy = policy.new_id(PolicyId::new(&id));
    let forbids = policy.effect() == Effect::Forbid;
    Some(CedarRule {
        approve: approve::role(report, at, &policy)?,
        limit,
        lenient: forbids
            .then(|| LenientForbid::of(&policy, &reads))
            .flatten(),
        reason,
        windows: windows.collect(),
        effect: policy.effect(),
        agent: agent_of(&policy.principal_constraint()),
        actions: actions_of(report, at, &policy.action_constraint())?,
        host: host_of(report, at, &policy.resource_constraint())?,
        policy,
        id,
        at,
        literals,
        reads,
        routes,
    })
}

fn check_annotations(report: &mut Report<'_>, file: u32, tokens: &[CedarToken<'_>]) {
    for (offset, name) in lex::annotations(tokens) {
        let at = Place::new(file, offset);
        if LATER.contains(&name) {
            report.error_help(
                at,
                format!("`@{name}` is not enforced by this build"),
                "remove the annotation: a bundle may not promise what is not enforced",
            );
        } else if !["id", "approve", "limit", "budget", "reason"].contains(&name) {
            let help = did_you_mean(
                name,
                ["id", "reason", "approve", "credential", "limit", "budget"],
            );
            report.error_with(at, format!("unknown annotation `@{name}`"), help);
        }
    }
}

/// What a refusal by a forbid can be called, besides `policy-denied`.
const REASONS: [DenyReason; 3] = [
    DenyReason::OutsideHours,
    DenyReason::UntrustedNetwork,
    DenyReason::OutsideTask,
];

fn reason_of(report: &mut Report<'_>, at: Place, policy: &Policy) -> Option<DenyReason> {
    let slug = policy.annotation("reason")?;
    let found = REASONS.into_iter().find(|reason| reason.slug() == slug);
    if policy.effect() == Effect::Permit {
        report.error_help(
            at,
            "`@reason` says why a forbid refuses, and this is a permit",
            "write it in front of a forbid",
        );
    } else if found.is_none() {
        let slugs = REASONS.map(DenyReason::slug);
        let help = did_you_mean(slug, slugs)
            .unwrap_or_else(|| format!("there are `{}`", slugs.join("`, `")));
        let shown = super::host::show(slug);
        report.error_help(
            at,
            format!("`@reason` `{shown}` is none that a rule can give"),
            help,
        );
    }
    found
}

fn is_id(id: &str) -> bool {
    // What `lower::id` makes must stay different.
    let of_shorthand = id.contains("/agents/");
    !of_shorthand && (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}

fn literals_of(
    report: &mut Report<'_>,
    policy_at: Place,
    policy: &Policy,
    tokens: &[CedarToken<'_>],
) -> Literals {
    let mut found = Literals::default();
    let before = report.count();
    let written = lex::literals(tokens);
    // Which rules can apply is told from them: none that Cedar knows may be missing.
    for uid in policy.entity_literals() {
        let kind = uid.type_name().basename();
        let is_it = |it: &lex::Literal<'_>| it.entity_type == kind && it.id == eid(&uid);
        if !written.iter().any(is_it) {
            report.error_help(
                policy_at,
                format!(
                    "`{}` is not written as it is read",
                    super::host::show(&uid.to_string())
                ),
                "write the id in plain characters, without escapes",
            );
        }
    }
    for literal in written {
        let at = Place::new(policy_at.file, literal.offset);
        match literal.entity_type {
            "Agent" => found.agents.push((at, literal.id.to_owned())),
            "Host" => match HostPattern::parse(literal.id) {
                Ok(pattern) if pattern.id() == literal.id => found.hosts.push((at, pattern)),
                Ok(pattern) => report.error_help(
                    at,
                    format!("`Host::\"{}\"` is never a host's id", literal.id),
                    format!("write `Host::\"{}\"`: ids are lower-case, with the port unless it is 443", pattern.id()),
                ),
                Err(_) if literal.id.contains('/') => report.error_help(
                    at,
                    format!("`{}` is not a host, and no rule sees what `to` reaches straight through the kernel", super::host::show(literal.id)),
                    "name a host of a [[reach]] without `to`",
                ),
                Err(why) => report.error(at, why),
            },
            "Action" => match (literal.id, schema::method(literal.id)) {
                (schema::CONNECT, _) => found.connect = true,
                (schema::REQUEST, _) => found.request_group = true,
                (_, Some(method)) => drop(found.methods.insert(method)),
                (unknown, None) => {
                    let known = schema::METHODS.iter().copied().chain([schema::CONNECT, schema::REQUEST]);
                    let help = did_you_mean(unknown, known)
                        .unwrap_or_else(|| "actions are HTTP methods in capitals, the group `request` of all of them, and `connect`".into());
                    report.error_help(at, format!("there is no action `{}`", super::host::show(unknown)), help);
                }
            },
            "Query" | "Headers" => report.error_help(
                at,
                format!("a request's {} are not named by an id", literal.entity_type.to_ascii_lowercase()),
                "write `context.query` or `context.headers`",
            ),
            // Cedar's validator knows what it is not.
            _ => {}
        }
    }
    found.faulty = report.count() > before;
    found
}

fn agent_of(principal: &PrincipalConstraint) -> Option<String> {
    match principal {
        PrincipalConstraint::Any | PrincipalConstraint::Is(_) => None,
        PrincipalConstraint::In(uid)
        | PrincipalConstraint::Eq(uid)
        | PrincipalConstraint::IsIn(_, uid) => Some(eid(uid)),
    }
}

/// `None` if no action can fit, which has been reported.
fn actions_of(report: &mut Report<'_>, at: Place, action: &ActionConstraint) -> Option<Actions> {
    match action {
        ActionConstraint::Any => Some(Actions::Any),
        ActionConstraint::Eq(uid) if eid(uid) == schema::REQUEST => {
            report.error_help(
                at,
                "policy can never apply: `request` is the group of all methods, not an action",
                "write `action in Action::\"request\"`",
            );
            None
        }
        ActionConstraint::Eq(uid) => Some(Actions::Listed([eid(uid)].into())),
        ActionConstraint::In(uids) => Some(Actions::Listed(uids.iter().map(eid).collect())),
    }
}

/// `None` if the id is no host's, which has been reported with its literal.
fn host_of(report: &mut Report<'_>, at: Place, resource: &ResourceConstraint) -> Option<HostScope> {
    let (uid, exactly) = match resource {
        ResourceConstraint::Any | ResourceConstraint::Is(_) => return Some(HostScope::Any),
        ResourceConstraint::Eq(uid) => (uid, true),
        ResourceConstraint::In(uid) | ResourceConstraint::IsIn(_, uid) => (uid, false),
    };
    let pattern = HostPattern::parse(&eid(uid)).ok()?;
    if exactly && pattern.below {
        let id = pattern.id();
        report.error_help(
            at,
            format!("policy can never apply: no request goes to `{id}` itself"),
            format!("write `resource in Host::\"{id}\"`"),
        );
        return None;
    }
    Some(HostScope::Is(pattern))
}

fn eid(uid: &EntityUid) -> String {
    uid.id().unescaped().to_owned()
}

/// Where a Cedar error points first.
pub(super) fn first_label(error: &dyn miette::Diagnostic) -> Option<usize> {
    error.labels()?.map(|label| label.offset()).next()
}
