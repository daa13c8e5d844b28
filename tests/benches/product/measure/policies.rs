//! The decision by the number of policies in the bundle: the same request, which the same policies can apply to, among more
//! and more that cannot. In this process, without the daemon.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

use agentguard_common::abi::AgentId;
use agentguard_policy::{
    Action, CanonicalPath, Context, Decision, HostName, Input, Policy, Sources,
};
use anyhow::{anyhow, bail};
use http::{HeaderMap, HeaderValue};

use super::Plan;
use crate::accounts::Tree;
use crate::report::{GUARDED, Report, Row};

pub(super) const NAME: &str = "policies";

/// Policies, and where the request's p50 and p99 go.
const SIZES: [(usize, Row, Row); 3] = [
    (10, Row::TenP50, Row::TenP99),
    (1_000, Row::ThousandP50, Row::ThousandP99),
    (10_000, Row::TenThousandP50, Row::TenThousandP99),
];
/// Of the largest bundle one in so many is for every agent and host, where that is what is measured.
const GENERAL: usize = 100;
const AGENTS: usize = 20;
const HOSTS: usize = 50;
/// In one rules file.
const RULES: usize = 100;
/// The policies that can apply to the request, two of them for every agent and host.
const APPLY: &str = r#"
@id("orders") permit (principal == Agent::"a0", action == Action::"POST", resource == Host::"h0.example")
when { context.path == "/v1/orders" && context.body has amount && context.body.amount.lessThan(decimal("5000.0")) };
@id("orders-owner") @approve("owner") forbid (principal == Agent::"a0", action == Action::"POST", resource == Host::"h0.example")
when { context.path == "/v1/orders" }
unless { context.approvals.contains("owner") || (context.body has amount && context.body.amount.lessThan(decimal("400.0"))) };
@id("deep") forbid (principal, action in Action::"request", resource) when { context.segments > 20 };
@id("marked") forbid (principal, action == Action::"POST", resource)
when { context.headers.hasTag("x-dry-run") && context.headers.getTag("x-dry-run") == "0" };
"#;

struct Measured {
    policy: Policy,
    context: Context,
    host: HostName,
    path: CanonicalPath,
    headers: HeaderMap,
}

pub(super) fn measure(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    let own = || Tree::of(std::process::id()).rss_mb();
    let mut subjects = Vec::new();
    for (count, p50, p99) in SIZES {
        let sources = bundle(count, None);
        let (before, started) = (own(), Instant::now());
        let measured = Measured::new(&sources)?;
        if count == 10_000 {
            report.add(Row::Compile, GUARDED, started.elapsed().as_secs_f64());
            report.add(Row::CompiledRss, GUARDED, own() - before);
        }
        subjects.push((measured, p50, Some(p99)));
    }
    let general = Measured::new(&bundle(10_000, Some(GENERAL)))?;
    subjects.push((general, Row::GeneralP50, None));
    for _ in 0..plan.rounds {
        for (subject, p50, p99) in &subjects {
            let times = subject.times(plan.decisions);
            let at = |share: f64| times[(times.len() as f64 * share) as usize] as f64 / 1e3;
            report.add(*p50, GUARDED, at(0.50));
            if let Some(p99) = p99 {
                report.add(*p99, GUARDED, at(0.99));
            }
        }
    }
    Ok(())
}

impl Measured {
    fn new(sources: &Sources) -> anyhow::Result<Self> {
        let names = Policy::agent_names(sources).into_iter();
        let ids: BTreeMap<_, _> = names.zip((AgentId::FIRST..).map(AgentId)).collect();
        let policy =
            Policy::compile(sources, &ids).map_err(|found| anyhow!("{:?}", found.first()))?;
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        headers.insert("user-agent", HeaderValue::from_static("bench"));
        let mut made = Self {
            policy,
            context: Context::default(),
            host: HostName::parse("h0.example").map_err(|why| anyhow!(why))?,
            path: CanonicalPath::parse("/v1/orders").map_err(|why| anyhow!(why))?,
            headers,
        };
        let block = made.policy.needs(&made.input()).body;
        let body = block.map(|needed| {
            needed
                .block
                .read(&made.headers, br#"{"amount": 12.5}"#, 1 << 20)
        });
        made.context.body = body.unwrap_or_default();
        let decision = made.policy.decide(&made.input());
        match decision {
            Decision::Permit(permit) if permit.policies() == ["orders"] => Ok(made),
            other => bail!("decided otherwise than it is written: {other:?}"),
        }
    }

    fn input(&self) -> Input<'_> {
        Input {
            agent: AgentId(AgentId::FIRST),
            host: &self.host,
            port: 443,
            action: Action::Request {
                method: "POST",
                scheme: "https",
                path: &self.path,
                query: None,
                headers: &self.headers,
            },
            context: &self.context,
        }
    }

    /// Nanoseconds of each decision, the shortest first.
    fn times(&self, count: usize) -> Vec<u128> {
        let one = || {
            let started = Instant::now();
            black_box(self.policy.decide(black_box(&self.input())));
            started.elapsed().as_nanos()
        };
        let mut times: Vec<_> = (0..count).map(|_| one()).collect();
        times.sort_unstable();
        times
    }
}

/// So many policies in all; one in `general` is for every agent and host.
fn bundle(count: usize, general: Option<usize>) -> Sources {
    let mut files = BTreeMap::from([
        (
            "bundle.toml".to_owned(),
            "name = \"bench\"\nserial = 1\n".to_owned(),
        ),
        ("rules/apply.cedar".to_owned(), APPLY.to_owned()),
    ]);
    let hosts = 0..HOSTS;
    let reach: String = hosts
        .clone()
        .map(|host| format!("[[reach]]\nhost = \"h{host}.example\"\n"))
        .collect();
    for agent in 0..AGENTS {
        let head = format!(
            "[agent]\nname = \"a{agent}\"\nowner = \"o{agent}@example.com\"\nrisk = \"low\"\n"
        );
        files.insert(format!("agents/a{agent:02}.toml"), head + &reach);
    }
    for host in hosts {
        let body =
            "[[body]]\non = \"POST /**\"\namount = { type = \"decimal\", at = \"/amount\" }\n";
        files.insert(
            format!("hosts/h{host}.toml"),
            format!("[host]\nname = \"h{host}.example\"\n{body}"),
        );
    }
    for index in 4..count {
        let head = match general {
            Some(every) if index % every == 0 => {
                "principal, action == Action::\"POST\", resource".to_owned()
            }
            // Never the request's agent and host together.
            _ => {
                let (agent, host) = (index % AGENTS, 1 + index / AGENTS % (HOSTS - 1));
                let method = ["GET", "POST", "PUT"][index % 3];
                format!(
                    "principal == Agent::\"a{agent}\", action == Action::\"{method}\", resource == Host::\"h{host}.example\""
                )
            }
        };
        let when = match index % 4 {
            0 => format!("context.path == \"/v1/{index}\""),
            1 => format!("context.path like \"/v{index}/*\" && context.scheme == \"https\""),
            2 => format!("context.headers.hasTag(\"x-{index}\")"),
            _ => format!(
                "context.body has amount && context.body.amount.lessThan(decimal(\"{index}.5\")) && context.path == \"/v2/{index}\""
            ),
        };
        let file = files
            .entry(format!("rules/r{}.cedar", index / RULES))
            .or_default();
        file.push_str(&format!(
            "@id(\"r{index}\") permit ({head}) when {{ {when} }};\n"
        ));
    }
    Sources { files }
}
