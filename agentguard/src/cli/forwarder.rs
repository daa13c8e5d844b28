//! The forwarder process, started by the daemon with its three descriptors.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::Arc;

use agentguard_common::abi::{FlowKey, Origin};
use agentguard_common::share::QuestionMark;
use agentguard_forwarder::InheritedHandles;
use agentguard_forwarder::origin::OriginSource;
use agentguard_kernel::OriginMaps;
use agentguard_sys::spawn;

use super::Failure;

pub(super) fn run() -> Result<ExitCode, Failure> {
    let [link, accepted, questions] = spawn::inherited().ok_or_else(|| {
        Failure::new(
            2,
            "the forwarder is started by `agentguard daemon`, not by hand",
        )
    })?;
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        .init();
    let inherited = InheritedHandles {
        link,
        origins: Arc::new(MappedOrigins(OriginMaps::from_fds(accepted, questions))),
    };
    agentguard_forwarder::run(inherited)?;
    Ok(ExitCode::SUCCESS)
}

/// `ACCEPTED` and `QUESTIONS`, read-only.
struct MappedOrigins(OriginMaps);

impl OriginSource for MappedOrigins {
    fn accepted(&self, cookie: u64) -> io::Result<Option<Origin>> {
        self.0.accepted(cookie)
    }

    fn question(&self, mark: QuestionMark, flow: &FlowKey) -> io::Result<Option<Origin>> {
        self.0.question(mark, flow)
    }
}
