use agentguard_daemon::config::{ConfigKey, KEYS};

use crate::page::{Page, Table};

pub(crate) fn page() -> Page {
    let mut generated = String::new();
    for keys in KEYS.chunk_by(|one, next| one.section == next.section) {
        let mut table = Table::new(["key", "default", "range", "what it is"]);
        for key in keys {
            table.row([
                &format!("`{}`", key.key),
                &format!("`{}`", key.default),
                &range(key),
                key.about,
            ]);
        }
        generated += &format!("## `{}`\n\n{}\n", keys[0].section, table.text());
    }
    Page {
        path: "operate/configuration.md",
        title: "Configuration",
        generated,
    }
}

fn range(key: &ConfigKey) -> String {
    let bounds = key.bounds.as_ref();
    bounds.map_or_else(String::new, |bounds| {
        format!("{} to {} {}", bounds.min, bounds.max, bounds.unit)
    })
}
