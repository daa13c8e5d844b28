//! How a verb fails: an exit status of CONTRACT's and one line that says what failed, with what, and what to do next.

use std::fmt::Display;
use std::process::ExitCode;

use agentguard_audit::verify::VerifyError;
use agentguard_control::client::ClientError;
use agentguard_daemon::StartError;

use super::printable::printable;

#[derive(Debug)]
pub struct Failure {
    status: u8,
    message: String,
}

impl Failure {
    pub fn new(status: u8, message: impl Display) -> Self {
        Self {
            status,
            message: message.to_string(),
        }
    }

    /// Everything has been said.
    pub fn silent(status: u8) -> Self {
        Self::new(status, "")
    }

    pub fn with_status(mut self, status: u8) -> Self {
        self.status = status;
        self
    }

    pub fn report(&self) -> ExitCode {
        if !self.message.is_empty() {
            let message = self.message.replace('\n', ", ");
            eprintln!("agentguard: {}", printable(&message));
        }
        ExitCode::from(self.status)
    }

    #[cfg(test)]
    pub fn parts(&self) -> (u8, &str) {
        (self.status, &self.message)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::new(error.exit_status(), error)
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Self::new(error.exit_status(), error)
    }
}

/// What `audit` and `ca` return; the client's own errors keep their status.
impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        let error = match error.downcast::<ClientError>() {
            Ok(error) => return error.into(),
            Err(error) => error,
        };
        let status = match error.downcast_ref::<VerifyError>() {
            Some(error) if error.is_forbidden() => 5,
            _ => 1,
        };
        Self::new(status, format!("{error:#}"))
    }
}

/// clap's message in one line; help and version are no failures.
pub(super) fn usage(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind;
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Nobody is left to tell if stdout is gone.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(2)
        }
        _ => Failure::new(2, one_line(&error.render().to_string())).report(),
    }
}

fn one_line(message: &str) -> String {
    let said: Vec<&str> = message
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:"))
        .filter(|line| !line.is_empty() && !line.starts_with("For more information"))
        .collect();
    let said = said.join(" ").replace(" tip: ", "; ");
    let said = said.strip_prefix("error: ").unwrap_or(&said);
    let usage = message
        .lines()
        .find_map(|line| line.trim().strip_prefix("Usage: "));
    match usage {
        Some(usage) => format!("{said}; usage: {usage}"),
        None => format!("{said}; see --help"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_errors_take_one_line() {
        for (message, expected) in [
            (
                "error: unrecognized subcommand 'stats'\n\n  tip: a similar subcommand exists: 'status'\n\nUsage: agentguard [OPTIONS] <COMMAND>\n\nFor more information, try '--help'.\n",
                "unrecognized subcommand 'stats'; a similar subcommand exists: 'status'; usage: agentguard [OPTIONS] <COMMAND>",
            ),
            (
                "error: the following required arguments were not provided:\n  <AGENT|--all>\n\nUsage: agentguard kill <AGENT|--all>\n",
                "the following required arguments were not provided: <AGENT|--all>; usage: agentguard kill <AGENT|--all>",
            ),
            (
                "error: invalid value 'x'\n\nFor more information, try '--help'.\n",
                "invalid value 'x'; see --help",
            ),
        ] {
            assert_eq!(one_line(message), expected);
        }
    }

    #[test]
    fn statuses_are_the_contracts() {
        let unreachable = ClientError::Unreachable {
            socket: "/x".into(),
            reason: "gone".into(),
        };
        assert_eq!(Failure::from(unreachable).parts().0, 4);
        let forbidden = anyhow::Error::from(ClientError::Forbidden("no".into()));
        assert_eq!(Failure::from(forbidden).parts(), (5, "no"));
        assert_eq!(
            Failure::from(anyhow::anyhow!("x").context("y")).parts(),
            (1, "y: x")
        );
        assert_eq!(Failure::from(StartError::NotRoot).parts().0, 5);
        // Nothing has been found out about a log that may not be read.
        for (kind, status) in [
            (std::io::ErrorKind::PermissionDenied, 5),
            (std::io::ErrorKind::InvalidData, 1),
        ] {
            let error = VerifyError::Io {
                path: "audit".into(),
                source: kind.into(),
            };
            assert_eq!(Failure::from(anyhow::Error::from(error)).parts().0, status);
        }
    }
}
