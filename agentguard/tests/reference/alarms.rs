use agentguard_daemon::alarms::AlarmKind;

use crate::page::{Page, Table};

pub(crate) fn page() -> Page {
    let mut table = Table::new([
        "the alarm begins",
        "raised when",
        "until restart",
        "what to do",
    ]);
    for kind in AlarmKind::ALL {
        // Two backticks around what has backticks of its own.
        let fence = if kind.begins().contains('`') {
            "``"
        } else {
            "`"
        };
        let stays = if kind.is_until_restart() { "yes" } else { "" };
        table.row([
            &format!("{fence}{}{fence}", kind.begins()),
            kind.raised_when(),
            stays,
            kind.what_to_do(),
        ]);
    }
    Page {
        path: "operate/alarms.md",
        title: "Alarms",
        generated: format!("## Every alarm\n\n{}", table.text()),
    }
}
