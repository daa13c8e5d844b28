use agentguard_policy::context::attributes;

use crate::page::{Page, Table};

pub(crate) fn page() -> Page {
    let mut generated = String::new();
    for attribute in attributes() {
        let connect = if attribute.connect { "yes" } else { "no" };
        generated += &format!(
            "## `context.{}`\n\n{}\n\n- Cedar type: `{}`\n- passed-through connections have it: {connect}\n",
            attribute.name, attribute.doc, attribute.cedar,
        );
        let facts: Vec<_> = attribute
            .facts
            .iter()
            .map(|fact| format!("`{fact}`"))
            .collect();
        if !facts.is_empty() {
            generated += &format!("- in the record: {}\n", facts.join(", "));
        }
        if !attribute.keys.is_empty() {
            let mut table = Table::new(["key of a case", "what is written"]);
            for (key, value) in attribute.keys {
                table.row([&format!("`{key}`"), value]);
            }
            generated += &format!("\n{}", table.text());
        }
        generated += "\n";
    }
    Page {
        path: "policy/context.md",
        title: "What rules read",
        generated,
    }
}
