//! `tests/*.toml`: requests with the decisions that the bundle's author expects.

use agentguard_record::DenyReason;

use super::document;
use super::table::{Keys, Located, Table};
use crate::cases::{Expected, Outcome};
use crate::diagnostic::{Place, Report, did_you_mean};
use crate::question::{AskedTask, Parsed, Question};
use crate::{OpenedBy, Terms};

/// One `[[case]]`, with positions for the checks across files.
pub(crate) struct CaseEntry {
    pub name: Located<String>,
    pub agent_at: Place,
    pub question: Question,
    pub expected: Expected,
    /// Those of `question`.
    pub time: Option<Located<String>>,
    /// That of `question`.
    pub lookup: Option<Located<String>>,
    pub exhausted: Vec<Located<String>>,
    /// Those of `expected`.
    pub policies: Vec<Located<String>>,
}

const FILE: Keys = Keys {
    known: &["case"],
    later: &[],
};
const TASK: Keys = Keys {
    known: &["intent", "allow", "scope", "opened_by"],
    later: &[],
};
const CASE: Keys = Keys {
    known: &[
        "name",
        "agent",
        "request",
        "headers",
        "body",
        "approvals",
        "exhausted",
        "time",
        "network",
        "host_labels",
        "uptime_s",
        "attended",
        "lookup",
        "task",
        "expect",
        "reason",
        "policies",
    ],
    later: &[],
};

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
    table.check_keys(report, &CASE);
    let name = table.required(report, "name");
    let agent = table.required(report, "agent");
    let request = table.required(report, "request");
    let headers = table.pairs(report, "headers");
    let body = table.string_or_json(report, "body");
    let approvals = table.strings(report, "approvals");
    let approvals = approvals.into_iter().map(|role| role.value).collect();
    let exhausted = table.strings(report, "exhausted");
    let time = table.string(report, "time");
    let network = table.choice(report, "network", &["trusted", "untrusted"]);
    let labels = table.strings(report, "host_labels");
    let uptime = table.unsigned(report, "uptime_s");
    let attended = table.boolean(report, "attended");
    let lookup = table.string_or_json(report, "lookup");
    let task = match table.has("task") {
        true => Some(task(report, table)?),
        false => None,
    };
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
        approvals,
        exhausted: exhausted.iter().map(|id| id.value.clone()).collect(),
        time: time.as_ref().map(|time| time.value.clone()),
        trusted_network: network.map(|network| network.value == "trusted"),
        host_labels: labels.into_iter().map(|label| label.value).collect(),
        uptime_s: uptime.map(|uptime| uptime.value),
        attended: attended.map(|attended| attended.value),
        lookup: lookup.as_ref().map(|lookup| lookup.value.clone()),
        task,
    };
    if let Err(why) = Parsed::new(&question, None) {
        report.error(request.at, why);
        return None;
    }
    Some(CaseEntry {
        name: name?,
        agent_at: agent.at,
        question,
        expected: expected?,
        time,
        lookup,
        exhausted,
        policies,
    })
}

/// The task that the request is on, opened by a supervisor if nothing else is said.
fn task(report: &mut Report<'_>, case: &Table<'_>) -> Option<AskedTask> {
    let table = case.table(report, "task", "`task` of a [[case]]")?;
    table.check_keys(report, &TASK);
    let opened_by = table.choice(report, "opened_by", &["supervisor", "agent"]);
    let values = |entries: Vec<Located<String>>| entries.into_iter().map(|entry| entry.value);
    let allow = values(table.strings(report, "allow")).collect();
    let scope = values(table.strings(report, "scope")).collect();
    let intent = table.required(report, "intent")?;
    let asked = AskedTask {
        opened_by: match opened_by {
            Some(by) if by.value == OpenedBy::Agent.name() => OpenedBy::Agent,
            _ => OpenedBy::Supervisor,
        },
        terms: Terms {
            intent: intent.value,
            allow,
            scope,
        },
    };
    match asked.task() {
        Ok(_) => Some(asked),
        Err(why) => {
            report.error(intent.at, why);
            None
        }
    }
}

fn expected(
    report: &mut Report<'_>,
    table: &Table<'_>,
    policies: &[Located<String>],
) -> Option<Expected> {
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
        "allow" => Outcome::Allow,
        "approval-required" => Outcome::ApprovalRequired,
        _ => Outcome::Deny,
    };
    let reason = table.string(report, "reason");
    if let Some(reason) = reason.as_ref().filter(|_| outcome == Outcome::Allow) {
        report.error_help(
            reason.at,
            "`reason` is why something is refused, and this case expects `allow`",
            "remove `reason`, or expect `deny`",
        );
        return None;
    }
    Some(Expected {
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
    let known = DenyReason::ALL.into_iter();
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
