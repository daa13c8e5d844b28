//! Why a request gets the answer it gets, as a table of the policies that could apply.

use std::fmt::Write as _;

use agentguard_policy::explain::{ApplicablePolicy, Explanation, RuleEffect};

use super::layout::{WIDTH, blanked, clip, paint, wrap};

/// Policies without effect that an explanation lists.
const MAX_SILENT: usize = 12;

/// Why a request gets the answer it gets.
pub fn explanation_text(explained: &Explanation, colour: bool) -> String {
    let (code, answer) = match (explained.permitted, explained.observed) {
        (true, _) => ("1;32", "permitted:"),
        (false, true) => ("1;33", "let through, being observed:"),
        (false, false) => ("1;31", "refused:"),
    };
    let path = explained
        .readings
        .first()
        .and_then(|reading| reading.path.as_deref())
        .unwrap_or_default();
    let asked = format!(
        "{} {} at {}",
        explained.action,
        blanked(path),
        explained.resource
    );
    let asked = asked.replace("  ", " ");
    let room = WIDTH - 2 - answer.len() - explained.agent.len();
    let mut text = format!(
        "{} {} {}\n",
        paint(colour, code, answer),
        explained.agent,
        clip(&asked, room)
    );
    let mut row = |name: &str, value: &str| {
        for line in wrap(&format!("{name:<9} "), &blanked(value), "          ") {
            let _ = writeln!(text, "{line}");
        }
    };
    row("why", &explained.why);
    if let Some(reason) = explained.reason {
        row("reason", reason.slug());
    }
    match &explained.reach {
        Some(reach) => {
            let way = if reach.passthrough {
                "bytes passed as they are"
            } else {
                "every request decided"
            };
            row("reach", &format!("{} ({way}), {}", reach.host, reach.at));
        }
        None => row("reach", "none"),
    }
    for url in &explained.lookups {
        row("asks", &clip(url, WIDTH - 10));
    }
    for (rule, takes) in &explained.limits {
        row("takes", &format!("{takes}, by `{rule}`"));
    }
    for (name, value) in &explained.facts {
        row("read", &clip(&format!("{name} = {value}"), WIDTH - 10));
    }
    let several = explained.readings.len() > 1;
    let has_effect = |policy: &ApplicablePolicy| policy.verdict != RuleEffect::Silent;
    for reading in &explained.readings {
        // What only lenient servers make of it is of interest where it meets a forbid.
        if reading.forbids_only && !reading.policies.iter().any(has_effect) {
            continue;
        }
        let which = match reading.forbids_only {
            true => "forbids",
            false => "policies",
        };
        let of = match &reading.read_as {
            Some(read_as) => format!(", if it is read as {}", blanked(read_as)),
            None if several => ", as it is written".to_owned(),
            None => String::new(),
        };
        let decides = match reading.decides && several {
            true => ", which decides",
            false => "",
        };
        let head = format!("{which} that can apply{of}");
        let _ = writeln!(text, "\n{}{decides}", clip(&head, WIDTH - decides.len()));
        met_table(&mut text, &reading.policies);
    }
    text
}

fn met_table(text: &mut String, policies: &[ApplicablePolicy]) {
    if policies.is_empty() {
        text.push_str("  none\n");
        return;
    }
    let mut sorted: Vec<&ApplicablePolicy> = policies.iter().collect();
    sorted.sort_by_key(|met| met.verdict);
    let silent = sorted
        .iter()
        .filter(|met| met.verdict == RuleEffect::Silent)
        .count();
    sorted.truncate(sorted.len() - silent.saturating_sub(MAX_SILENT));
    let widest = sorted
        .iter()
        .map(|met| met.id.chars().count())
        .max()
        .unwrap_or(0)
        .min(50);
    for met in sorted {
        let verdict = match met.verdict {
            RuleEffect::Permits => "permits",
            RuleEffect::Forbids => "forbids",
            RuleEffect::Failed => "fails",
            RuleEffect::Silent => "conditions not met",
        };
        let line = format!(
            "  {verdict:<18}  {:<widest$}  {}",
            clip(&met.id, 50),
            met.at
        );
        let _ = writeln!(text, "{}", clip(&line, WIDTH));
        if let Some(error) = &met.error {
            for line in wrap(&" ".repeat(22), &blanked(error), &" ".repeat(22)) {
                let _ = writeln!(text, "{line}");
            }
        }
    }
    if silent > MAX_SILENT {
        let _ = writeln!(
            text,
            "  and {} more whose conditions are not met",
            silent - MAX_SILENT
        );
    }
}
