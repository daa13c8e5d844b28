//! The forwarder process, started by the daemon with its three descriptors.

use std::io::IsTerminal;
use std::process::ExitCode;

use super::Failure;
use crate::forwarder::{self, Inherited};
use crate::sys::spawn;

pub fn run() -> Result<ExitCode, Failure> {
    let [link, accepted, flows] = spawn::inherited().ok_or_else(|| {
        Failure::new(
            2,
            "the forwarder is started by `agentguard daemon`, not by hand",
        )
    })?;
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        .init();
    let inherited = Inherited {
        link,
        accepted,
        flows,
    };
    forwarder::run(inherited)?;
    Ok(ExitCode::SUCCESS)
}
