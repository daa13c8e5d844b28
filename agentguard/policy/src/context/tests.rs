//! What an attribute says of itself in one place agrees with what it does in the others.

use std::collections::BTreeSet;

use cedar_policy::{EntityUid, Request, Schema};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::Sources;
use crate::parse::case_file;
use crate::question::Question;
use crate::replay::Then;
use crate::tests::sources;

/// Values of an attribute for its tests.
pub(super) trait Sample: Surrounding + std::fmt::Debug {
    /// Every key of the attribute's, as a case has it.
    const CASE: &'static str;

    fn any() -> BoxedStrategy<Self>;

    /// Whether a record tells the value; of all others it has to say that it does not.
    fn is_told(&self) -> bool {
        true
    }
}

pub(super) fn calendar() -> Calendar {
    Calendar {
        zone: crate::time::zone("Europe/Vienna").unwrap(),
        windows: Vec::new(),
    }
}

/// Schema, facts, recall and keys of one attribute.
pub(super) fn agrees<S: Sample>(name: AttributeName, set: impl Fn(&mut Context, Option<S>)) {
    assert_eq!(AttributeName::parse(S::NAME), Some(name));
    let config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    let run = TestRunner::new(config).run(&S::any(), |value| {
        let told = value.is_told();
        let mut context = Context::default();
        set(&mut context, Some(value));
        check_recall::<S>(name, &context, told);
        Ok(())
    });
    run.unwrap_or_else(|why| panic!("{}: {why}", S::NAME));
    check_keys::<S>();
}

fn check_recall<S: Sample>(name: AttributeName, context: &Context, told: bool) {
    let mut facts = BTreeMap::new();
    context.facts(|_| true, &mut facts);
    for fact in facts.keys() {
        assert!(S::FACTS.contains(&&**fact), "{}: {fact}", S::NAME);
    }
    let mut unread = BTreeMap::new();
    context.facts(|_| false, &mut unread);
    assert_eq!(unread.is_empty(), !S::ALWAYS || facts.is_empty());
    let task = context.tasks.as_ref().and_then(TaskSituation::task);
    let task = task.map(|task| (task.id.to_string(), task.intent.clone()));
    let exhausted: Vec<String> = context
        .limits
        .iter()
        .flat_map(|it| it.ids.clone())
        .collect();
    let record = RecordedAct {
        agent: "a",
        time: jiff::Timestamp::UNIX_EPOCH,
        scheme: "https",
        host: "h",
        port: 443,
        method: "GET",
        path: "/",
        facts: &facts,
        task: task.as_ref().map(|(id, intent)| (&**id, &**intent)),
        exhausted: &exhausted,
        then: Then::All,
    };
    let recalled = Context::recall(&record).and_then(|mut context| {
        context.recall_read(&record, Some(&calendar()), |it| it == name)?;
        Ok(context)
    });
    match recalled {
        Ok(recalled) => {
            assert!(
                told,
                "{context:?} is not told, and yet recalled: {recalled:?}"
            );
            assert_eq!(read(name, &recalled), read(name, context));
        }
        Err(missing) => assert!(!told, "{context:?}: {missing:?}"),
    }
}

/// What rules read, as the schema has it.
fn read(name: AttributeName, context: &Context) -> String {
    let slice = Slice::default();
    let known = ["rate", "day", "month", "hour"].map(str::to_owned);
    let limits: BTreeSet<String> = known
        .into_iter()
        .filter(|id| !context.is_exhausted(id))
        .collect();
    let nothing = BTreeMap::new();
    let facts = ActFacts {
        action: schema::CONNECT,
        scheme: "",
        path: None,
        written: None,
        slice: &slice,
        body: &nothing,
        lookup: &nothing,
        scope: BTreeSet::new(),
        approvals: context.approved_by(),
        limits: &limits,
        context,
    };
    let entry = name.entry();
    let schema = format!(
        "entity A; action \"a\" appliesTo {{ principal: A, resource: A, context: {{ {}: {} }} }};",
        entry.doc.name, entry.doc.cedar
    );
    let (schema, _) = Schema::from_cedarschema_str(&schema).unwrap();
    let uid = |text: &str| text.parse::<EntityUid>().unwrap();
    let read = cedar(&facts, |it| it == name);
    let (principal, resource) = (uid("A::\"p\""), uid("A::\"r\""));
    Request::new(
        principal,
        uid("Action::\"a\""),
        resource,
        read,
        Some(&schema),
    )
    .unwrap();
    format!("{:?}", (entry.cedar)(&facts))
}

fn check_keys<S: Sample>() {
    let case = format!(
        "[[case]]\nname = \"c\"\nagent = \"a\"\nrequest = \"GET https://h/\"\n{}\nexpect = \"allow\"\n",
        S::CASE
    );
    let written: toml::Table = toml::from_str(S::CASE).unwrap();
    let written: BTreeSet<&str> = written.keys().map(String::as_str).collect();
    let declared: BTreeSet<&str> = S::KEYS.iter().map(|(key, _)| *key).collect();
    assert_eq!(written, declared, "{}", S::NAME);
    let sources: Sources = sources(&[("tests/c.toml", &case)]);
    let mut report = crate::bundle::report(&sources);
    let mut cases = case_file(&mut report, 0);
    assert!(report.is_clean(), "{:?}", report.into_found());
    let question = cases.remove(0).question;
    assert_ne!(question.context, AskedContext::default(), "{}", S::NAME);
    let json = serde_json::to_string(&question).unwrap();
    assert_eq!(serde_json::from_str::<Question>(&json).unwrap(), question);
}

#[test]
fn the_list_is_in_the_order_of_its_names() {
    for (index, entry) in ATTRIBUTES.iter().enumerate() {
        assert_eq!(entry.name as usize, index);
        assert_eq!(AttributeName::parse(entry.doc.name), Some(entry.name));
    }
    assert_eq!(AttributeName::parse("weather"), None);
}

#[test]
fn a_question_is_one_flat_object() {
    let said = r#"{"agent":"a","method":"GET","url":"https://h/","approvals":["owner"],"exhausted":["rate"],
        "time":"2026-11-23T09:00","trusted_network":true,"host_labels":["prod"],"uptime_s":90,"attended":true,
        "lookup":"{}","task":{"opened_by":"agent","intent":"x"}}"#;
    let question: Question = serde_json::from_str(said).unwrap();
    assert_eq!(question.context.agent.uptime_s, Some(90));
    let back = serde_json::to_value(&question).unwrap();
    let expected = serde_json::json!({
        "agent": "a", "method": "GET", "url": "https://h/", "headers": [], "body": null, "approvals": ["owner"],
        "exhausted": ["rate"], "time": "2026-11-23T09:00", "trusted_network": true, "host_labels": ["prod"],
        "uptime_s": 90, "attended": true, "lookup": "{}",
        "task": { "opened_by": "agent", "intent": "x", "allow": [], "scope": [] },
    });
    assert_eq!(back, expected);
    let least = r#"{"agent":"a","method":"GET","url":"https://h/"}"#;
    let least: Question = serde_json::from_str(least).unwrap();
    assert_eq!(least.context, AskedContext::default());
}
