//! The fast answer against the plain one: every policy of the bundle, the lowered shorthand too, in Cedar's own evaluator
//! with everything that a bundle and a request hold.

mod generated;
mod reference;

use proptest::prelude::*;

use self::generated::{BODIES, NAMES, PATHS, bundle_sources, settle};
use self::reference::{Question, Reference};
use super::*;
use crate::context::{Approvals, HostLabels, NetworkTrust};

/// What the forwarder would have gathered.
fn gathered(policy: &Policy, input: &Input<'_>, body: &str, turn: usize) -> Context {
    let texts = |of: &[&str]| of.iter().map(|text| (*text).to_owned()).collect();
    let headers = match &input.action {
        Action::Request { headers, .. } => Some(*headers),
        Action::Connect => None,
    };
    let needed = policy.needs(input).body.zip(headers);
    let read = needed.map(|(needed, headers)| needed.block.read(headers, body.as_bytes(), 1000));
    // Sunday 23:00, Monday 00:30 and Monday 09:15 in Vienna.
    let seconds = [1_767_564_000, 1_767_569_400, 1_767_600_900][turn % 3];
    let approvals: [&[&str]; 4] = [&[], &["owner"], &["finance"], &["finance", "owner"]];
    let labels: [&[&str]; 2] = [&[], &["prod", "eu"]];
    Context {
        body: read.unwrap_or_default(),
        approvals: Some(Approvals {
            roles: texts(approvals[turn / 2 % 4]),
        }),
        time: policy.moment(Timestamp::from_second(seconds).unwrap()),
        network: Some(NetworkTrust {
            trusted: (turn / 3).is_multiple_of(2),
        }),
        host: Some(HostLabels {
            labels: texts(labels[turn / 5 % 2]),
        }),
        ..Context::default()
    }
}

const B: AgentId = AgentId(AgentId::FIRST + 1);

/// The same with `b` acting for `a`.
fn with_parent(sources: &Sources) -> Policy {
    let mut sources = sources.clone();
    let child = sources.files.get_mut("agents/b.toml").unwrap();
    *child = child.replacen("risk = \"low\"\n", "risk = \"low\"\nparent = \"a\"\n", 1);
    assert_eq!(ids(&sources)["b"], B);
    compile(&sources)
}

proptest! {
    #![proptest_config(ProptestConfig {
        // `PROPTEST_CASES=8000` tries a thousand bundles.
        cases: ProptestConfig::default().cases / 8,
        ..ProptestConfig::default()
    })]
    #[test]
    fn the_fast_answer_is_the_whole_sets(sources in bundle_sources()) {
        let (sources, policy) = settle(sources);
        let reference = Reference::new(&sources);
        let delegated = with_parent(&sources);
        for agent in policy.agents.keys().copied() {
            for (index, (host, port)) in NAMES.into_iter().enumerate() {
                for (turn, path) in PATHS.into_iter().enumerate() {
                    // Every combination of the rest comes up over the hosts, paths and cases.
                    let turn = index * PATHS.len() + turn;
                    let method = ["GET", "POST", "PUT", "LOCK", "DELETE", "PURGE"][turn % 6];
                    let query = ["", "?q=1", "?q=2&r=1"][turn % 3];
                    let extra = [None, Some(("x-h", "1")), Some(("low", "1"))][turn / 3 % 3];
                    let headers: Vec<_> = [("content-type", "application/json")].into_iter().chain(extra).collect();
                    let scheme = if port == 80 { "http" } else { "https" };
                    let body = BODIES[turn % BODIES.len()];
                    let mut asked = Asked::new(&format!("{method} {scheme}://{host}:{port}{path}{query}"), &headers);
                    let connects = turn.is_multiple_of(9);
                    asked.context = gathered(&policy, &asked.input(agent), body, turn);
                    let mut input = asked.input(agent);
                    if connects {
                        input.action = Action::Connect;
                    }
                    let fast = answer(&policy, &input);
                    let question = Question::new(&policy.agents[&agent].agent.name, &asked, connects, body);
                    if fast == Err(vec!["body-ambiguous".into()]) {
                        prop_assert!(reference.has_two_bodies(&question), "{} {}{}\n{:#?}", method, host, path, sources);
                        continue;
                    }
                    let whole = reference.answer(&question);
                    // An agent that acts for another may what both may.
                    let permitted = whole.is_ok()
                        && (agent != B || reference.answer(&question.of("a")).is_ok());
                    asked.context = gathered(&delegated, &asked.input(agent), body, turn);
                    let mut input = asked.input(agent);
                    if connects {
                        input.action = Action::Connect;
                    }
                    let as_child = answer(&delegated, &input);
                    if as_child != Err(vec!["body-ambiguous".into()]) {
                        prop_assert_eq!(
                            as_child.is_ok(), permitted, "{:?} {} {}:{}{}{} {:?} {} {:?}\n{:#?}",
                            agent, method, host, port, path, query, headers, body, asked.context, sources
                        );
                    }
                    // Of forbids that only some lenient servers' readings meet, the first is named.
                    let refused = fast.is_err() && whole.is_err() && path.contains(['P', 'Q', 'X', '.', ';', '%']);
                    prop_assert!(
                        fast == whole || refused, "{:?} {:?} {:?} {} {}:{}{}{} {:?} {} {:?}\n{:#?}", fast, whole,
                        agent, method, host, port, path, query, headers, body, asked.context, sources
                    );
                }
            }
        }
    }
}
