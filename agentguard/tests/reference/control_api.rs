use agentguard_daemon::serve::routes;

use crate::page::{Page, Table};

pub(crate) fn page() -> Page {
    let mut table = Table::new(["route", "who may", "what it does", "it takes", "it answers"]);
    for route in routes::table() {
        table.row([
            &format!("`{} {}`", route.method, route.path),
            route.access.who(),
            route.about,
            route.request,
            route.answer,
        ]);
    }
    Page {
        path: "reference/control-api.md",
        title: "The control API",
        generated: format!("## Every route\n\n{}", table.text()),
    }
}
