use agentguard_audit::line::fields;
use agentguard_record::{DecidedBy, Ended};

use crate::page::{Page, Table};

pub(crate) fn page() -> Page {
    let mut keys = Table::new(["field", "type", "has a value", "what it is"]);
    for field in fields() {
        keys.row([
            &format!("`{}`", field.key),
            field.kind,
            field.when,
            field.doc,
        ]);
    }
    let mut decided = Table::new(["`decided_by`", "means"]);
    for by in DecidedBy::ALL {
        decided.row([&format!("`{}`", by.name()), by.meaning()]);
    }
    let mut ended = Table::new(["`ended`", "means"]);
    for how in Ended::ALL {
        ended.row([&format!("`{}`", how.name()), how.meaning()]);
    }
    Page {
        path: "reference/audit-record.md",
        title: "The audit record",
        generated: format!(
            "## Every field\n\n{}\n## What decided\n\n{}\n## How it ended\n\n{}",
            keys.text(),
            decided.text(),
            ended.text()
        ),
    }
}
