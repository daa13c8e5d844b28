//! The bundle's files together: which there are, and what one says that another must agree with.

use std::collections::{HashMap, HashSet};

use agentguard_common::abi::{BUNDLE_EXEC_RULES, MAX_IDENTIFY, MAX_RULES};
use agentguard_record::Meta;
use agentguard_record::guarantee::GuaranteeId;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::context::{self, AttributeName};
use super::diagnostic::{Place, Report, SourceText, did_you_mean, nearest};
use super::host::HostMap;
use super::limit::Limit;
use super::parse::{self, AgentFile, CaseEntry, HostFile};
use super::rules::{self, CedarRule};
use super::time::Calendar;
use super::{ExecPolicy, KernelRule, Proto, Sources, delegation};

/// Every file of the bundle, parsed.
pub(super) struct ParsedBundle {
    pub meta: Option<Meta>,
    /// Guarantees that the host must give.
    pub require: Vec<GuaranteeId>,
    pub expires: Option<Timestamp>,
    pub observe: bool,
    pub agents: Vec<AgentFile>,
    pub hosts: Vec<HostFile>,
    pub rules: Vec<CedarRule>,
    pub cases: Vec<CaseEntry>,
    pub calendar: Option<Calendar>,
    /// Whether every agent's and host's file could be read as it was meant.
    pub whole: bool,
}

/// What a file of a bundle is, by its path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    Manifest,
    Agent,
    Host,
    Rules,
    Test,
}

impl FileKind {
    pub fn of(path: &str) -> Option<Self> {
        if path == "bundle.toml" {
            return Some(Self::Manifest);
        }
        let (folder, name) = path.split_once('/')?;
        let (stem, ending) = name.rsplit_once('.')?;
        // File names are part of policy ids.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if stem.is_empty() || stem.starts_with('.') || !name.chars().all(plain) {
            return None;
        }
        match (folder, ending) {
            ("agents", "toml") => Some(Self::Agent),
            ("hosts", "toml") => Some(Self::Host),
            ("rules", "cedar") => Some(Self::Rules),
            ("tests", "toml") => Some(Self::Test),
            _ => None,
        }
    }
}

/// Kernel rules one agent can have: its trie also holds up to five for all that they do not name.
pub(super) const MAX_KERNEL: usize = MAX_RULES as usize - 5;
/// Bytes of all files together.
pub const MAX_BYTES: usize = 32 << 20;

pub(super) fn report(sources: &Sources) -> Report<'_> {
    Report::new(
        sources
            .files
            .iter()
            .map(|(name, text)| SourceText::new(name, text))
            .collect(),
    )
}

pub(super) fn read(report: &mut Report<'_>, sources: &Sources) -> ParsedBundle {
    let mut bundle = ParsedBundle {
        meta: None,
        require: Vec::new(),
        expires: None,
        observe: false,
        agents: Vec::new(),
        hosts: Vec::new(),
        rules: Vec::new(),
        cases: Vec::new(),
        calendar: None,
        whole: true,
    };
    if sources.files.values().map(String::len).sum::<usize>() > MAX_BYTES {
        report.file_error(
            "bundle.toml",
            format!("the bundle is larger than {} MiB", MAX_BYTES >> 20),
            None,
        );
        return bundle;
    }
    if !sources.files.contains_key("bundle.toml") {
        report.file_error(
            "bundle.toml",
            "the bundle has no bundle.toml",
            Some("add one with `name = \"…\"` and `serial = 1`".into()),
        );
    }
    let files: Vec<_> = report.texts().map(|(file, name, _)| (file, name)).collect();
    for (file, name) in files {
        let before = report.count();
        let kind = FileKind::of(name);
        match kind {
            Some(FileKind::Manifest) => {
                if let Some(manifest) = parse::manifest(report, file) {
                    bundle.require = manifest.require;
                    bundle.expires = manifest.expires;
                    bundle.observe = manifest.observe;
                    bundle.calendar = manifest.calendar;
                    bundle.meta = Some(Meta {
                        name: manifest.name,
                        serial: manifest.serial,
                        digest: digest(sources),
                    });
                }
            }
            Some(FileKind::Agent) => bundle.agents.extend(parse::agent_file(report, file)),
            Some(FileKind::Host) => bundle.hosts.extend(parse::host_file(report, file)),
            Some(FileKind::Rules) => bundle.rules.extend(rules::rules_file(report, file)),
            Some(FileKind::Test) => bundle.cases.extend(parse::case_file(report, file)),
            None => report.file_error(
                name,
                "the file is no part of a bundle",
                Some(stray_help(name)),
            ),
        }
        let tells = matches!(kind, Some(FileKind::Agent | FileKind::Host) | None);
        bundle.whole &= !tells || report.count() == before;
    }
    let observed = observed(&bundle);
    for file in &mut bundle.agents {
        let agent = &mut file.agent;
        agent.observe = observed.contains(&agent.name);
        // What it may not reach goes to the forwarder as well, which records it.
        agent.has_hosts |= agent.observe;
    }
    check_agents(report, &bundle.agents);
    delegation::check(report, &bundle.agents);
    check_hosts(report, &bundle.hosts);
    check_rule_ids(report, &bundle.rules);
    check_times(report, &bundle);
    // What another file failed to say would be missed here a second time.
    if report.is_clean() {
        check_cases(report, &bundle);
    }
    bundle
}

fn stray_help(name: &str) -> String {
    let folder = name.split('/').next().unwrap_or(name);
    match nearest(folder, ["agents", "hosts", "rules", "tests"]) {
        Some(near) if near != folder && name.contains('/') => {
            format!("did you mean the folder `{near}`?")
        }
        _ if FileKind::of(&name.replace(|c: char| !c.is_ascii_graphic(), "-")).is_some() => {
            "name it with letters, digits, `-`, `_` and `.`".into()
        }
        _ => {
            "a bundle has bundle.toml, agents/*.toml, hosts/*.toml, rules/*.cedar and tests/*.toml"
                .into()
        }
    }
}

/// Names of the agents that are only observed: with everyone they act for, or they could do more.
fn observed(bundle: &ParsedBundle) -> HashSet<String> {
    let files: HashMap<&str, &AgentFile> = bundle
        .agents
        .iter()
        .map(|file| (file.agent.name.as_str(), file))
        .collect();
    let line = |file| {
        let above = |file: &&AgentFile| files.get(file.agent.parent.as_deref()?).copied();
        // No longer than there are agents, whose parents may be in a circle.
        std::iter::successors(Some(file), above).take(files.len())
    };
    let is_observed = |file: &AgentFile| file.observe.unwrap_or(bundle.observe);
    let found = bundle
        .agents
        .iter()
        .filter(|file| line(file).all(is_observed));
    found.map(|file| file.agent.name.clone()).collect()
}

/// What bundle.toml says of the bundle, without full compilation; `None` where it cannot be read.
pub(super) fn meta(sources: &Sources) -> Option<Meta> {
    let only = sources.files.get_key_value("bundle.toml")?;
    let mut report = Report::new(vec![SourceText::new(only.0, only.1)]);
    let manifest = parse::manifest(&mut report, 0)?;
    report.is_clean().then(|| Meta {
        name: manifest.name,
        serial: manifest.serial,
        digest: digest(sources),
    })
}

/// SHA-256 over every file's name and content, each with its length in front, so that no two bundles share one.
fn digest(sources: &Sources) -> String {
    let mut hash = Sha256::new();
    for part in sources.files.iter().flat_map(|(name, text)| [name, text]) {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn check_agents(report: &mut Report<'_>, agents: &[AgentFile]) {
    let mut names: HashMap<&str, Place> = HashMap::new();
    let mut blocks: HashMap<_, (&str, Place)> = HashMap::new();
    let mut count = 0;
    let mut exec_rules = 0;
    for file in agents {
        let name = file.agent.name.as_str();
        if let Some(first) = names.insert(name, file.name_at) {
            let first = report.name(first);
            report.error(
                file.name_at,
                format!("agent `{name}` is already in {first}"),
            );
        }
        for (block, at) in file.agent.identify.iter().zip(&file.identify_at) {
            count += 1;
            if count == MAX_IDENTIFY + 1 {
                report.error(
                    *at,
                    format!("the bundle has more than {MAX_IDENTIFY} [[identify]] blocks"),
                );
            }
            let key = (&block.exe, &block.user, &block.cgroup);
            if let Some((other, first)) = blocks.insert(key, (name, *at)) {
                let first = report.name(first);
                let whose = if other == name {
                    "this agent".to_owned()
                } else {
                    format!("agent `{other}`")
                };
                report.error_help(
                    *at,
                    format!("[[identify]] is the same as one of {whose} in {first}"),
                    "a process belongs to one agent",
                );
            }
        }
        exec_rules += file.agent.exec.as_ref().map_or(0, ExecPolicy::rules);
        if let Some(at) = file
            .exec_at
            .filter(|_| exec_rules > BUNDLE_EXEC_RULES as usize)
        {
            report.error(
                at,
                format!("the bundle has more than {BUNDLE_EXEC_RULES} paths and digests in [exec]"),
            );
        }
        if file.agent.kernel.len() > MAX_KERNEL {
            report.error(
                file.name_at,
                format!("agent `{name}` has more than {MAX_KERNEL} kernel rules"),
            );
        }
        check_reach(report, file);
    }
}

fn check_reach(report: &mut Report<'_>, file: &AgentFile) {
    let mut seen: HostMap<Place> = HostMap::default();
    for reach in &file.reach {
        if let Some(first) = seen.insert(&reach.host, reach.at) {
            let first = report.name(first);
            report.error_help(
                reach.at,
                format!("`{}` already has a [[reach]] in {first}", reach.host.id()),
                "put both `allow` lists into one",
            );
        }
        let shadow = file
            .agent
            .kernel
            .iter()
            .zip(&file.kernel_at)
            .find(|(rule, _)| match rule {
                KernelRule::Reach { proto, net, port } => {
                    *proto == Proto::Tcp
                        && port.is_none_or(|port| port == reach.host.port)
                        && reach.host.name.ip().is_some_and(|ip| net.contains(&ip))
                }
                KernelRule::Listen { .. } => false,
            });
        if let Some((_, kernel_at)) = shadow {
            let kernel = report.name(*kernel_at);
            report.error_help(
                reach.at,
                format!("`{}` is reached straight through the kernel by {kernel}, and no rule would see it", reach.host.id()),
                "take the address out of the `to` range, or leave out this entry",
            );
        }
    }
    let mut kernel: Vec<&KernelRule> = Vec::new();
    for (rule, at) in file.agent.kernel.iter().zip(&file.kernel_at) {
        if kernel.contains(&rule) {
            report.error(*at, "the entry repeats one above");
        }
        kernel.push(rule);
    }
}

fn check_hosts(report: &mut Report<'_>, hosts: &[HostFile]) {
    let mut seen: HostMap<Place> = HostMap::default();
    for file in hosts {
        if let Some(first) = seen.insert(&file.host, file.at) {
            let first = report.name(first);
            report.error(
                file.at,
                format!("host `{}` is already described in {first}", file.host.id()),
            );
        }
    }
}

fn check_rule_ids(report: &mut Report<'_>, rules: &[CedarRule]) {
    let mut ids: HashMap<&str, Place> = HashMap::new();
    for rule in rules {
        if let Some(first) = ids.insert(&rule.id, rule.at) {
            let first = report.name(first);
            report.error(
                rule.at,
                format!("`@id(\"{}\")` is already used in {first}", rule.id),
            );
        }
    }
}

/// What to do about a time without a zone.
pub(super) const NO_ZONE: &str =
    "add `[time]` and below it `zone = \"Europe/Vienna\"`, or whichever it is";

/// What rules say of time needs a zone, and the windows that they name.
fn check_times(report: &mut Report<'_>, bundle: &ParsedBundle) {
    let windows = || bundle.calendar.iter().flat_map(Calendar::names);
    for rule in &bundle.rules {
        let budget = rule.limit.as_ref().is_some_and(Limit::is_budget);
        if budget && bundle.calendar.is_none() {
            let message = "a budget is for days or months, and bundle.toml has no zone for them";
            report.error_help(rule.at, message, NO_ZONE);
        }
        if !rule.reads.has(AttributeName::Time) {
            continue;
        }
        if bundle.calendar.is_none() {
            let message = "policy reads `context.time`, and bundle.toml has no zone for it";
            report.error_help(rule.at, message, NO_ZONE);
            continue;
        }
        for (at, name) in &rule.windows {
            if !windows().any(|window| window == name) {
                let help = did_you_mean(name, windows())
                    .unwrap_or_else(|| "add a [[time.window]] of this name to bundle.toml".into());
                let shown = super::host::show(name);
                report.error_help(*at, format!("there is no time window `{shown}`"), help);
            }
        }
    }
}

/// Cases name what the bundle has, and are told apart by their names.
fn check_cases(report: &mut Report<'_>, bundle: &ParsedBundle) {
    let agents: HashSet<&str> = bundle
        .agents
        .iter()
        .map(|file| file.agent.name.as_str())
        .collect();
    let rules: HashSet<&str> = bundle.rules.iter().map(|rule| rule.id.as_str()).collect();
    let mut names: HashMap<&str, Place> = HashMap::new();
    for case in &bundle.cases {
        if let Some(first) = names.insert(&case.name.value, case.name.at) {
            let first = report.name(first);
            let shown = super::host::show(&case.name.value);
            report.error(
                case.name.at,
                format!("the case `{shown}` is already in {first}"),
            );
        }
        let agent = case.question.agent.as_str();
        if !agents.contains(agent) {
            let shown = super::host::show(agent);
            let help = did_you_mean(agent, agents.iter().copied());
            let message = format!("the bundle has no agent `{shown}`");
            report.error_with(case.agent_at, message, help);
        }
        check_answers(report, bundle, case);
        context::check_case(&case.question.context, &case.texts, bundle, report);
        for id in &case.policies {
            if !rules.contains(id.value.as_str()) {
                let shown = super::host::show(&id.value);
                let help = did_you_mean(&id.value, rules.iter().copied());
                report.error_with(id.at, format!("the bundle has no rule `{shown}`"), help);
            }
        }
    }
}

/// What a case says of look-ups are facts that some host's file declares.
fn check_answers(report: &mut Report<'_>, bundle: &ParsedBundle, case: &CaseEntry) {
    let Some(lookup) = &case.lookup else { return };
    let said: Result<serde_json::Map<_, _>, _> = serde_json::from_str(&lookup.value);
    let Ok(said) = said else {
        report.error_help(
            lookup.at,
            "`lookup` is no table of facts",
            "write `lookup = { ticket_open = true }`",
        );
        return;
    };
    let declared = || {
        let lookups = bundle.hosts.iter().flat_map(|file| &file.lookups);
        lookups.flat_map(|lookup| lookup.fields().keys())
    };
    for name in said
        .keys()
        .filter(|name| !declared().any(|known| known == *name))
    {
        let help = did_you_mean(name, declared().map(String::as_str));
        let shown = super::host::show(name);
        let message = format!("no [[lookup]] of the bundle declares the fact `{shown}`");
        report.error_with(lookup.at, message, help);
    }
}

/// Names of the bundle's agents as far as its files have them.
pub(super) fn agent_names(sources: &Sources) -> std::collections::BTreeSet<String> {
    sources
        .files
        .iter()
        .filter(|(name, _)| FileKind::of(name) == Some(FileKind::Agent))
        .filter_map(|(_, text)| parse::agent_name(text))
        .collect()
}
