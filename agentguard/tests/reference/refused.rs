use agentguard_record::{DenyReason, ReasonClass};

use crate::page::{Page, Table};

pub(crate) fn page() -> Page {
    let mut table = Table::new([
        "reason",
        "status",
        "title",
        "given when",
        "whose turn it is",
        "class",
    ]);
    for &reason in DenyReason::ALL {
        table.row([
            &format!("`{}`", reason.slug()),
            &status(reason),
            reason.title(),
            reason.when(),
            reason.turn(),
            class(reason),
        ]);
    }
    Page {
        path: "agents/refused.md",
        title: "What a refused agent sees",
        generated: format!("## Every reason\n\n{}", table.text()),
    }
}

fn class(reason: DenyReason) -> &'static str {
    match reason.class() {
        ReasonClass::Policy => "policy",
        ReasonClass::Protocol => "protocol",
        ReasonClass::Host => "host",
        ReasonClass::Upstream => "upstream",
        ReasonClass::Client => "client",
    }
}

fn status(reason: DenyReason) -> String {
    match reason.class() {
        ReasonClass::Client => "none".to_owned(),
        ReasonClass::Policy | ReasonClass::Protocol | ReasonClass::Host | ReasonClass::Upstream => {
            reason.status().to_string()
        }
    }
}
