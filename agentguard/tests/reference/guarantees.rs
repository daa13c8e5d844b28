use agentguard_record::guarantee::GuaranteeId;

use crate::page::{Page, Table};

pub(crate) fn page() -> Page {
    let mut table = Table::new(["id", "what is guaranteed"]);
    for id in GuaranteeId::ALL {
        table.row([&format!("`{id}`"), id.name()]);
    }
    Page {
        path: "holds/guarantees.md",
        title: "Guarantees",
        generated: format!("## Every guarantee\n\n{}", table.text()),
    }
}
