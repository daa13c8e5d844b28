use clap::Command;

use crate::page::Page;

pub(crate) fn page() -> Page {
    let mut command = agentguard::cli::command();
    command.build();
    let mut generated = String::new();
    verbs(&command, &mut generated);
    Page {
        path: "reference/commands.md",
        title: "Commands",
        generated,
    }
}

/// Each verb with what `--help` says of it; those that do nothing without a verb of their own are left to these.
fn verbs(command: &Command, text: &mut String) {
    let is_shown = |verb: &&Command| !verb.is_hide_set() && verb.get_name() != "help";
    for verb in command.get_subcommands().filter(is_shown) {
        let is_one = !verb.is_subcommand_required_set() && !verb.is_arg_required_else_help_set();
        if verb.has_subcommands() && !is_one {
            verbs(verb, text);
            continue;
        }
        let verb = verb.clone().mut_args(|arg| arg.hide_env_values(true));
        let help = verb.clone().term_width(100).render_long_help().to_string();
        let name = verb.get_bin_name().unwrap_or(verb.get_name());
        let help = help
            .lines()
            .map(str::trim_end)
            .collect::<Vec<_>>()
            .join("\n");
        *text += &format!("## `{name}`\n\n```text\n{}\n```\n\n", help.trim());
        verbs(&verb, text);
    }
}
