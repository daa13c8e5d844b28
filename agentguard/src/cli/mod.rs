//! The command line: one file per verb, each a client of the control API.

mod agents;
pub mod audit;
pub mod ca;
mod canary;
mod daemon;
mod doctor;
mod fail;
mod forwarder;
mod kill;
mod policy;
pub mod policy_offline;
mod policy_pack;
mod policy_replay;
mod policy_show;
mod printable;
mod run;
mod server;
mod status;
mod table;
mod task;
mod unload;

use std::path::PathBuf;
use std::process::ExitCode;

use agentguard_daemon::config::Config;
use clap::{CommandFactory, Parser, Subcommand};

use self::printable::printable_json;

pub use self::fail::Failure;

/// Decides, at the moment of the action and outside the agent, what an AI agent may do.
#[derive(Debug, Parser)]
#[command(
    name = "agentguard",
    version,
    max_term_width = 100,
    arg_required_else_help = true
)]
struct Arguments {
    /// Configuration file [default: /etc/agentguard/agentguard.toml]
    #[arg(long, global = true, value_name = "FILE", env = "AGENTGUARD_CONFIG")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    verb: CliVerb,
}

#[derive(Debug, Subcommand)]
enum CliVerb {
    /// Run the daemon in the foreground
    Daemon(daemon::DaemonArguments),
    /// Start a command as an agent
    Run(run::RunArguments),
    /// The daemon, what is enforced, the bundle in force, agents, drops
    Status(status::StatusArguments),
    /// The agents of this host
    Agents(agents::AgentsArguments),
    /// Open, end and list tasks: what an agent is about, and what it may do at most meanwhile
    Task(task::TaskArguments),
    /// Stop agents at once: nothing of theirs leaves the host until they are revived
    Kill(kill::Kill),
    /// Let killed agents go on
    Revive(kill::Revive),
    /// Check, test, compare, pack, apply and explain policy bundles
    #[command(subcommand)]
    Policy(policy::PolicyVerb),
    /// What was decided
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// What holds on this host, what does not, and the remedy (needs no daemon)
    Doctor(doctor::DoctorArguments),
    /// The CA certificate that agents must trust
    #[command(subcommand)]
    Ca(ca::CaCommand),
    /// Stop the daemon if it runs, detach and unpin everything: agents are no longer held
    Unload(unload::UnloadArguments),
    /// What the daemon starts; takes nothing from the command line or the environment
    #[command(hide = true)]
    Forwarder,
    /// The process by which the daemon tries what must be refused
    #[command(hide = true)]
    Canary,
}

/// The command line as it is: what the book's page of commands is made of.
pub fn command() -> clap::Command {
    Arguments::command()
}

pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return fail::usage(&error),
    };
    let Arguments { config, verb } = arguments;
    match dispatch(config, verb) {
        Ok(status) => status,
        Err(failure) => failure.report(),
    }
}

fn dispatch(config: Option<PathBuf>, verb: CliVerb) -> Result<ExitCode, Failure> {
    // These run without a configuration: the daemon tells them everything.
    match verb {
        CliVerb::Forwarder => return forwarder::run(),
        CliVerb::Canary => return canary::run(),
        _ => {}
    }
    let wrong = match verb {
        CliVerb::Run(_) => run::OWN_FAILURE,
        _ => 2,
    };
    let config = Config::load(config.as_deref()).map_err(|e| Failure::new(wrong, e))?;
    match verb {
        CliVerb::Daemon(arguments) => daemon::run(&arguments, config),
        CliVerb::Run(arguments) => run::run(&arguments, &config),
        CliVerb::Doctor(arguments) => doctor::run(&arguments, &config),
        verb => client_runtime()?.block_on(ask_the_daemon(verb, &config)),
    }
}

async fn ask_the_daemon(verb: CliVerb, config: &Config) -> Result<ExitCode, Failure> {
    let client = server::client(config);
    match verb {
        CliVerb::Status(arguments) => status::run(&arguments, &client).await,
        CliVerb::Agents(arguments) => agents::run(&arguments, &client).await,
        CliVerb::Task(arguments) => task::run(&arguments, &client).await,
        CliVerb::Kill(arguments) => kill::kill(&arguments, config, &client).await,
        CliVerb::Revive(arguments) => kill::revive(&arguments, &client).await,
        CliVerb::Policy(verb) => policy::run(&verb, config, &client).await,
        CliVerb::Audit(command) => {
            let fetch = async |path: &str| Ok(client.lines(path).await?);
            Ok(audit::run(&command, config, fetch).await?)
        }
        CliVerb::Ca(command) => {
            let info = client.get("/v1/ca").await?;
            let bundle = agentguard_daemon::trust_bundle(&config.paths.runtime);
            Ok(ca::run(&command, &info, &bundle)?)
        }
        CliVerb::Unload(arguments) => unload::run(&arguments, config, &client).await,
        CliVerb::Daemon(_)
        | CliVerb::Run(_)
        | CliVerb::Doctor(_)
        | CliVerb::Forwarder
        | CliVerb::Canary => {
            unreachable!("dispatched before")
        }
    }
}

fn client_runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(1, format!("cannot start the runtime: {e}")))
}

/// Prints to stdout; a reader that has gone is no failure.
fn print(text: &str) -> Result<ExitCode, Failure> {
    use std::io::Write;
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(1, format!("cannot write to stdout: {error}")))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn print_json(value: &impl serde::Serialize) -> Result<ExitCode, Failure> {
    let json = serde_json::to_string_pretty(value).map_err(|e| Failure::new(1, e))?;
    print(&(printable_json(&json) + "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_users_type() {
        for line in [
            "agentguard status --json",
            "agentguard run --agent a --task t --user u -- curl -s https://x/",
            "agentguard agents show a",
            "agentguard agents reassign a b jane@example.com --reason left",
            "agentguard agents suspend a",
            "agentguard agents suspend --owner john@example.com --json",
            "agentguard agents activate --owner john@example.com",
            "agentguard agents retire a --reason old",
            "agentguard task start a --intent x --allow y --scope read --for 2h --json",
            "agentguard task end 0193a5c0-0000-7000-8000-000000000000",
            "agentguard task list --agent a --json",
            "agentguard kill a b --reason odd",
            "agentguard kill --all",
            "agentguard policy check /x --json",
            "agentguard policy test /x",
            "agentguard policy diff /x /y --json",
            "agentguard policy keygen ops --out /x",
            "agentguard policy show 3",
            "agentguard policy history --json",
            "agentguard policy rollback 3 --json",
            "agentguard policy replay --since 7d /x --json",
            "agentguard policy pack /x -o /y --key /z",
            "agentguard policy sign /y --key /z",
            "agentguard policy explain --agent a GET https://x/y",
            "agentguard unload --yes",
            "agentguard --config /c status",
            "agentguard status --config /c",
        ] {
            assert!(Arguments::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        for line in [
            "agentguard",
            "agentguard kill",
            "agentguard kill a --all",
            "agentguard task start a",
            "agentguard task end x",
            "agentguard task start a --intent x --for 2",
            "agentguard agents reassign a",
            "agentguard agents suspend",
            "agentguard agents suspend a --owner o",
            "agentguard agents retire",
            "agentguard kill a --freeze",
            "agentguard run -- x",
            "agentguard run --agent a",
            "agentguard stats",
        ] {
            assert!(
                Arguments::try_parse_from(line.split(' ')).is_err(),
                "{line}"
            );
        }
    }
}
