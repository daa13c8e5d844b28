//! `agentguard daemon`: what the service unit runs.

use std::io::IsTerminal;
use std::process::ExitCode;

use agentguard_daemon::config::Config;
use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

use super::Failure;

#[derive(Debug, Args)]
pub(super) struct DaemonArguments {
    /// How log lines look
    #[arg(long, value_enum, default_value_t = Format::Text, env = "AGENTGUARD_LOG_FORMAT")]
    log_format: Format,
    /// What is logged: error, warn, info, debug, trace, or a filter such as info,agentguard_daemon::serve=debug
    #[arg(
        long,
        value_name = "FILTER",
        default_value = "info",
        env = "AGENTGUARD_LOG"
    )]
    log: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

pub(super) fn run(arguments: &DaemonArguments, config: Config) -> Result<ExitCode, Failure> {
    let filter = EnvFilter::try_new(&arguments.log).map_err(|error| {
        Failure::new(
            2,
            format!("the log filter `{}` cannot be read: {error}", arguments.log),
        )
    })?;
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match arguments.log_format {
        Format::Text => log.with_ansi(colour).with_target(false).init(),
        Format::Json => log.json().flatten_event(true).init(),
    }
    agentguard_daemon::run(config)?;
    Ok(ExitCode::SUCCESS)
}
