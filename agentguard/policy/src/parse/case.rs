//! `tests/*.toml`: requests with the decisions that the bundle's author expects.

use std::sync::LazyLock;

use agentguard_record::DenyReason;

use super::document;
use super::table::{Keys, Located, Table};
use crate::cases::{CaseOutcome, Expectation};
use crate::context::{self, AskedContext, CaseTexts};
use crate::diagnostic::{Place, Report, did_you_mean};
use crate::question::{ParsedQuestion, Question};

/// One `[[case]]`, with positions for the checks across files.
pub(crate) struct CaseEntry {
    pub name: Located<String>,
    pub agent_at: Place,
    pub question: Question,
    pub expected: Expectation,
    /// That of `question`.
    pub lookup: Option<Located<String>>,
    /// What `question` says of the surroundings.
    pub texts: CaseTexts,
    /// Those of `expected`.
    pub policies: Vec<Located<String>>,
}

const FILE: Keys = Keys {
    known: &["case"],
    later: &[],
};
/// Keys of a `[[case]]`: between what it is about and what it expects, those of the attributes of `context`.
static CASE: LazyLock<Vec<&str>> = LazyLock::new(|| {
    let mut keys = vec!["name", "agent"];
    for key in context::case_keys().chain(["expect", "reason", "policies"]) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
});

pub(crate) fn case_file(report: &mut Report<'_>, file: u32) -> Vec<CaseEntry> {
    let text = report.text(file);
    let Some(document) = document(report, file, text) else {
        return Vec::new();
    };
    let root = Table::root(file, &document);
    root.check_keys(report, &FILE);
    let tables = root.tables(report, "case", "[[case]]");
    let cases = tables.iter().filter_map(|table| case(report, table));
    cases.collect()
}

fn case(report: &mut Report<'_>, table: &Table<'_>) -> Option<CaseEntry> {
    let keys = Keys {
        known: &CASE,
        later: &[],
    };
    table.check_keys(report, &keys);
    let name = table.required(report, "name");
    let agent = table.required(report, "agent");
    let request = table.required(report, "request");
    let headers = table.pairs(report, "headers");
    let body = table.string_or_json(report, "body");
    let lookup = table.string_or_json(report, "lookup");
    let context = AskedContext::case(table, report)?;
    let policies = table.strings(report, "policies");
    let expected = expected(report, table, &policies);
    let request = request?;
    let Some((method, url)) = request.value.split_once(' ') else {
        report.error_help(
            request.at,
            format!(
                "`{}` is not a request",
                super::super::host::show(&request.value)
            ),
            "write the method, one space and the URL: `request = \"GET https://host/path\"`",
        );
        return None;
    };
    let agent = agent?;
    let question = Question {
        agent: agent.value,
        method: method.to_owned(),
        url: url.to_owned(),
        headers,
        body: body.map(|body| body.value),
        lookup: lookup.as_ref().map(|lookup| lookup.value.clone()),
        context,
    };
    if let Err(why) = ParsedQuestion::new(&question, None) {
        report.error(request.at, why);
        return None;
    }
    Some(CaseEntry {
        name: name?,
        agent_at: agent.at,
        question,
        expected: expected?,
        lookup,
        texts: context::case_keys()
            .map(|key| (key, table.texts(key)))
            .collect(),
        policies,
    })
}

fn expected(
    report: &mut Report<'_>,
    table: &Table<'_>,
    policies: &[Located<String>],
) -> Option<Expectation> {
    if !table.has("expect") {
        report.error_help(
            table.at,
            "[[case]] has no `expect`",
            "add `expect = \"allow\"`, `expect = \"deny\"` or `expect = \"approval-required\"`",
        );
        return None;
    }
    let outcome = match table
        .choice(report, "expect", &["allow", "deny", "approval-required"])?
        .value
        .as_str()
    {
        "allow" => CaseOutcome::Allow,
        "approval-required" => CaseOutcome::ApprovalRequired,
        _ => CaseOutcome::Deny,
    };
    let reason = table.string(report, "reason");
    if let Some(reason) = reason.as_ref().filter(|_| outcome == CaseOutcome::Allow) {
        report.error_help(
            reason.at,
            "`reason` is why something is refused, and this case expects `allow`",
            "remove `reason`, or expect `deny`",
        );
        return None;
    }
    Some(Expectation {
        outcome,
        reason: match reason {
            Some(slug) => Some(reason_of(report, &slug)?),
            None => None,
        },
        policies: table
            .has("policies")
            .then(|| policies.iter().map(|id| id.value.clone()).collect()),
    })
}

fn reason_of(report: &mut Report<'_>, slug: &Located<String>) -> Option<DenyReason> {
    let known = DenyReason::ALL.iter().copied();
    let found = known.clone().find(|reason| reason.slug() == slug.value);
    if found.is_none() {
        let slugs: Vec<&str> = known.map(DenyReason::slug).collect();
        let help = did_you_mean(&slug.value, slugs.iter().copied())
            .unwrap_or_else(|| format!("known here: {}", slugs.join(", ")));
        let shown = super::super::host::show(&slug.value);
        report.error_help(slug.at, format!("`{shown}` is no reason"), help);
    }
    found
}
