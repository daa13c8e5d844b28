use std::collections::BTreeMap;

use super::*;
use crate::Sources;
use crate::facts::MAX_VALUE;
use crate::tests::{bundle, compile};

const HOST: &str = "[[reach]]\nhost = \"h\"\n";
const KIND: &str = "@id(\"open\") permit (principal, action, resource)
when { context.query.hasTag(\"kind\") && context.query.getTag(\"kind\") == \"a b\" };
@id(\"team\") forbid (principal, action, resource)
when { context.headers.hasTag(\"x-team\") && context.headers.getTag(\"x-team\") == \"red\" };";
const PLAIN: &str =
    "@id(\"open\") permit (principal, action, resource) when { context.path like \"/x*\" };";

/// A record of `POST https://h/x` by `a`.
struct Record {
    facts: BTreeMap<String, String>,
    then: Then,
    method: &'static str,
    host: &'static str,
    path: &'static str,
    task: Option<(&'static str, &'static str)>,
    exhausted: Vec<String>,
}

fn record<const N: usize>(facts: [(&str, &str); N]) -> Record {
    Record {
        facts: facts.map(|(name, of)| (name.into(), of.into())).into(),
        then: Then::All,
        method: "POST",
        host: "h",
        path: "/x",
        task: None,
        exhausted: Vec::new(),
    }
}

impl Record {
    /// `allow`, or the reason, or what is missing.
    fn by(&self, new: &Policy, old: Option<&Policy>) -> Result<&'static str, ReplayGap> {
        let recorded = RecordedAct {
            agent: "a",
            time: "2026-11-23T09:30:00Z".parse().unwrap(),
            scheme: "https",
            host: self.host,
            port: 443,
            method: self.method,
            path: self.path,
            facts: &self.facts,
            task: self.task,
            exhausted: &self.exhausted,
            then: self.then,
        };
        let replayed = new.replay(&recorded, old)?;
        Ok(match (replayed.outcome, replayed.reason) {
            (ReplayOutcome::Observed, Some(_)) => "observed",
            (_, reason) => reason.map_or("allow", DenyReason::slug),
        })
    }
}

fn rules(rules: &str) -> Policy {
    compile(&bundle(HOST, rules))
}

fn with(mut sources: Sources, path: &str, text: &str) -> Policy {
    sources.files.insert(path.into(), text.into());
    compile(&sources)
}

#[test]
fn parameters_and_headers_are_known_where_the_rules_then_read_them() {
    let (plain, reading) = (rules(PLAIN), rules(KIND));
    let kind = || record([("query.kind", "a b")]);
    assert_eq!(record([]).by(&plain, None), Ok("allow"));
    assert_eq!(kind().by(&reading, Some(&reading)), Ok("allow"));
    assert_eq!(record([]).by(&reading, Some(&reading)), Ok("policy-denied"));
    let red = record([("header.x-team", "red"), ("query.kind", "a b")]);
    assert_eq!(red.by(&reading, Some(&reading)), Ok("policy-denied"));
    assert_eq!(kind().by(&reading, Some(&plain)), Err(ReplayGap::Fact));
    assert_eq!(kind().by(&reading, None), Err(ReplayGap::Bundle));
    let long = "x".repeat(MAX_VALUE + 1);
    let cut = record([("query.kind", &*long)]);
    assert_eq!(cut.by(&reading, Some(&reading)), Err(ReplayGap::Long));
    let many = record([("omitted", "3"), ("query.kind", "a b")]);
    assert_eq!(many.by(&reading, Some(&reading)), Err(ReplayGap::Many));
    let mut unread = record([]);
    unread.then = Then::Nobody;
    assert_eq!(
        unread.by(&reading, Some(&reading)),
        Err(ReplayGap::Ambiguous)
    );
    assert_eq!(unread.by(&plain, Some(&reading)), Ok("allow"));
    let private = Record {
        path: "/x/[private]",
        ..kind()
    };
    assert_eq!(private.by(&plain, Some(&reading)), Err(ReplayGap::Path));
    let secret = rules(
        "@id(\"open\") permit (principal, action, resource) when { context.headers.hasTag(\"authorization\") };",
    );
    let hidden = record([("header.authorization", "sha256:00")]);
    assert_eq!(hidden.by(&secret, Some(&secret)), Err(ReplayGap::Secret));
    assert_eq!(record([]).by(&secret, Some(&secret)), Ok("policy-denied"));
}

#[test]
fn other_names_for_what_is_read_stay_ambiguous() {
    let every = rules(
        "@id(\"open\") permit (principal, action, resource) when { context.query.hasTag(context.scheme) || context.headers.hasTag(context.scheme) || context.path == \"/x\" };",
    );
    let reading = rules(KIND);
    let by = |record: Record| record.by(&reading, Some(&every));
    assert_eq!(by(record([("query.kind", "a b")])), Ok("allow"));
    for alias in ["query.KIND", "query.kind[]", "header.x_team"] {
        let two = record([("query.kind", "a b"), (alias, "a b")]);
        assert_eq!(by(two), Ok("body-ambiguous"), "{alias}");
    }
    let other = record([("query.kind", "a b"), ("query.token", "sha256:00")]);
    assert_eq!(by(other), Ok("allow"), "a secret that the new do not read");
}

#[test]
fn a_body_is_known_where_the_same_fields_were_read() {
    let host = |field: &str| format!("[host]\nname = \"h\"\n[[body]]\non = \"POST /x\"\n{field}\n");
    let amount = "amount = { type = \"decimal\", at = \"/amount\" }";
    let below = |most: &str| {
        format!(
            "@id(\"few\") permit (principal, action, resource) when {{ context.body has amount && context.body.amount.lessThan(decimal(\"{most}\")) }};"
        )
    };
    let of = |field: &str, rules: &str| with(bundle(HOST, rules), "hosts/h.toml", &host(field));
    let old = of(amount, &below("100.0"));
    let new = of(amount, &below("50.0"));
    let paid = |amount: &str| record([("body.amount", amount)]);
    assert_eq!(paid("49.5").by(&new, Some(&old)), Ok("allow"));
    assert_eq!(paid("50.0").by(&new, Some(&old)), Ok("policy-denied"));
    assert_eq!(record([]).by(&new, Some(&old)), Ok("policy-denied"));
    assert_eq!(
        record([]).by(&new, Some(&of(amount, PLAIN))),
        Err(ReplayGap::Body)
    );
    assert_eq!(paid("1.0").by(&new, None), Err(ReplayGap::Bundle));
    let elsewhere = of(
        "amount = { type = \"decimal\", at = \"/total\" }",
        &below("50.0"),
    );
    assert_eq!(paid("1.0").by(&elsewhere, Some(&old)), Err(ReplayGap::Body));

    let all = "note = { type = \"string\", at = \"/n\", private = true }\ncount = { type = \"long\", at = \"/c\" }\nyes = { type = \"bool\", at = \"/y\" }\nlist = { type = \"strings\", at = \"/l\" }";
    let typed = of(
        all,
        "@id(\"t\") permit (principal, action, resource) when { context.body has count && context.body.count == -3 && context.body has yes && context.body.yes };",
    );
    let there = |field: &str| {
        let rules = format!(
            "@id(\"t\") permit (principal, action, resource) when {{ context.body has {field} }};"
        );
        of(all, &rules)
    };
    let by = |record: Record, of: &Policy| record.by(of, Some(of));
    let counted = || record([("body.count", "-3"), ("body.yes", "true")]);
    assert_eq!(by(counted(), &typed), Ok("allow"));
    assert_eq!(counted().by(&there("yes"), Some(&typed)), Ok("allow"));
    assert_eq!(
        counted().by(&there("note"), Some(&typed)),
        Err(ReplayGap::Body),
        "then not read"
    );
    let note = record([("body.note", "sha256:00")]);
    assert_eq!(by(note, &there("note")), Err(ReplayGap::Secret));
    let list = record([("body.list", "a, b")]);
    assert_eq!(by(list, &there("list")), Err(ReplayGap::Body));
    let garbled = paid("12.5.0");
    assert_eq!(garbled.by(&new, Some(&old)), Err(ReplayGap::Body));
}

#[test]
fn the_situation_is_what_the_record_says_of_it() {
    let manifest = "name = \"b\"\nserial = 1\n[time]\nzone = \"Europe/Vienna\"\n";
    let timed = |hour: u8| {
        let rules = format!(
            "@id(\"t\") permit (principal, action, resource) when {{ context.time.hour == {hour} }};"
        );
        with(bundle(HOST, &rules), "bundle.toml", manifest)
    };
    // 09:30 in UTC.
    assert_eq!(record([]).by(&timed(10), None), Ok("allow"));
    assert_eq!(record([]).by(&timed(9), None), Ok("policy-denied"));
    let later = record([("time", "2026-11-23T11:00:00.5+01:00[Europe/Vienna]")]);
    assert_eq!(later.by(&timed(11), None), Ok("allow"));

    let trusted =
        rules("@id(\"n\") permit (principal, action, resource) when { context.network.trusted };");
    let network = |is| record([("network.trusted", is)]).by(&trusted, None);
    assert_eq!(network("true"), Ok("allow"));
    assert_eq!(network("false"), Ok("policy-denied"));
    assert_eq!(
        record([]).by(&trusted, None),
        Err(ReplayGap::Attribute(AttributeName::Network))
    );

    let agent = rules(
        "@id(\"a\") permit (principal, action, resource) when { context.agent.attended && context.agent.uptime_s > 59 };",
    );
    let up = |uptime, attended| {
        record([("agent.uptime_s", uptime), ("agent.attended", attended)]).by(&agent, None)
    };
    assert_eq!(up("60", "true"), Ok("allow"));
    assert_eq!(up("59", "true"), Ok("policy-denied"));
    assert_eq!(up("60", "false"), Ok("policy-denied"));
    assert_eq!(
        record([]).by(&agent, None),
        Err(ReplayGap::Attribute(AttributeName::Agent))
    );

    let prod = rules(
        "@id(\"l\") permit (principal, action, resource) when { context.host.labels.contains(\"prod\") };",
    );
    let labels = |are| record([("host.labels", are)]).by(&prod, None);
    assert_eq!(labels("prod"), Ok("allow"));
    assert_eq!(labels(""), Ok("policy-denied"));
    assert_eq!(
        labels("eu, prod"),
        Err(ReplayGap::Attribute(AttributeName::Host))
    );
    assert_eq!(
        record([]).by(&prod, None),
        Err(ReplayGap::Attribute(AttributeName::Host))
    );
}

#[test]
fn nobody_has_approved_and_observed_agents_are_let_through() {
    let approve = format!(
        "{PLAIN}\n@id(\"ask\") @approve(\"owner\") forbid (principal, action, resource) unless {{ context.approvals.contains(\"owner\") }};"
    );
    assert_eq!(
        record([]).by(&rules(&approve), None),
        Ok("approval-required")
    );
    let observing = compile(&bundle(&format!("mode = \"observe\"\n{HOST}"), ""));
    assert_eq!(record([]).by(&observing, None), Ok("observed"));
    assert_eq!(
        record([]).by(&Policy::nothing(), None),
        Ok("agent-suspended")
    );
}

#[test]
fn whom_an_agent_acts_for_has_read_only_what_was_asked_of_them() {
    let rules = "@id(\"own\") permit (principal, action, resource);
@id(\"boss\") forbid (principal == Agent::\"boss\", action, resource) when { context.headers.hasTag(\"x-team\") };";
    let mut sources = bundle(&format!("parent = \"boss\"\n{HOST}"), rules);
    let boss =
        format!("[agent]\nname = \"boss\"\nowner = \"o@example.com\"\nrisk = \"low\"\n{HOST}");
    sources.files.insert("agents/boss.toml".into(), boss);
    let policy = compile(&sources);
    let team = || record([("header.x-team", "red")]);
    assert_eq!(team().by(&policy, Some(&policy)), Ok("delegation-exceeded"));
    assert_eq!(record([]).by(&policy, Some(&policy)), Ok("allow"));
    let mut refused = record([]);
    refused.then = Then::Own;
    assert_eq!(refused.by(&policy, Some(&policy)), Err(ReplayGap::Fact));
}

#[test]
fn what_would_come_another_way_is_not_judged() {
    let passed = compile(&bundle(
        "[[reach]]\nhost = \"h\"\ntls = \"passthrough\"\nallow = [\"connect\"]\n",
        "",
    ));
    let terminated = rules(PLAIN);
    assert_eq!(record([]).by(&passed, None), Err(ReplayGap::Way));
    let mut connection = record([]);
    connection.method = "connect";
    assert_eq!(connection.by(&terminated, None), Err(ReplayGap::Way));
    assert_eq!(connection.by(&passed, None), Ok("allow"));
    assert_eq!(
        connection.by(&Policy::nothing(), None),
        Ok("agent-suspended")
    );
    let direct = compile(&bundle("[[reach]]\nto = \"192.0.2.0/24:443\"\n", ""));
    let mut address = record([]);
    address.host = "192.0.2.7";
    assert_eq!(address.by(&direct, None), Err(ReplayGap::Way));
    assert_eq!(record([]).by(&direct, None), Ok("policy-denied"));
}

#[test]
fn what_was_looked_up_is_known_where_the_same_was() {
    let host = |url: &str| {
        format!(
            "[host]\nname = \"h\"\n[[lookup]]\non = \"POST /{{x}}\"\nurl = \"https://t.example/{url}\"\nopen = {{ type = \"bool\", at = \"/o\" }}\n"
        )
    };
    let ticket = "@id(\"open\") permit (principal, action, resource) when { context.lookup has open && context.lookup.open };";
    let with = |url: &str, rules: &str| with(bundle(HOST, rules), "hosts/h.toml", &host(url));
    let asking = with("?q={query.kind}", ticket);
    let open = || record([("lookup.open", "true")]);
    assert_eq!(open().by(&asking, Some(&asking)), Ok("allow"));
    assert_eq!(
        record([("lookup.open", "false")]).by(&asking, Some(&asking)),
        Ok("policy-denied")
    );
    assert_eq!(record([]).by(&asking, Some(&asking)), Ok("policy-denied"));
    assert_eq!(open().by(&asking, None), Err(ReplayGap::Bundle));
    assert_eq!(
        open().by(&asking, Some(&with("?p={query.kind}", ticket))),
        Err(ReplayGap::Lookup)
    );
    assert_eq!(
        open().by(&asking, Some(&with("?q={query.kind}", PLAIN))),
        Err(ReplayGap::Lookup)
    );
    assert_eq!(open().by(&with("", PLAIN), Some(&asking)), Ok("allow"));
    let mut failed = record([("lookup_failed", "t.example: no")]);
    failed.then = Then::Nobody;
    assert_eq!(failed.by(&asking, Some(&asking)), Err(ReplayGap::Ambiguous));
}

#[test]
fn a_limit_of_whom_the_agent_acts_for_is_told_as_when_it_was_charged() {
    let rules =
        "@id(\"few\") @limit(\"2/hour\") forbid (principal == Agent::\"p\", action, resource)
unless { context.limits.contains(\"few\") };";
    let agent = |name: &str, more: &str| {
        format!(
            "[agent]\nname = \"{name}\"\nowner = \"o@example.com\"\nrisk = \"low\"\n{more}{HOST}allow = [\"ANY /**\"]\n"
        )
    };
    let mut sources = bundle("", rules);
    let of = [("p", ""), ("a", "parent = \"p\"\n")];
    for (name, more) in of {
        let path = format!("agents/{name}.toml");
        sources.files.insert(path, agent(name, more));
    }
    let policy = compile(&sources);
    let full = Record {
        exhausted: vec!["few".into()],
        ..record([])
    };
    assert_eq!(record([]).by(&policy, Some(&policy)), Ok("allow"));
    assert_eq!(full.by(&policy, Some(&policy)), Ok("rate-limited"));
}

#[test]
fn what_named_no_task_of_its_own_is_not_taken_again() {
    let plain = rules(PLAIN);
    let wrong = record([("task.wrong", "its task by what is no id")]);
    assert_eq!(
        wrong.by(&plain, Some(&plain)),
        Err(ReplayGap::Attribute(AttributeName::Task))
    );
}
