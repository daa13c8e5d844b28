//! What is measured: a way from the load generator to the origin, and the processes that make up the way.

use std::net::SocketAddr;
use std::time::Duration;

use agentguard_tests::client::Subject as Launcher;
use agentguard_tests::{Client, Guard, Running, Site};
use anyhow::{Context, anyhow};

use crate::accounts::Tree;
use crate::load;
use crate::place::AGENT;

/// A load generator of its own, and the proxy that it reaches the origin through.
pub(crate) struct Subject {
    pub name: &'static str,
    load: Running,
    /// Process whose tree lies between client and origin; `None` for `direct`.
    proxy: Option<u32>,
}

impl Subject {
    /// Load that nobody guards.
    pub(crate) fn plain(
        name: &'static str,
        site: &Site,
        address: SocketAddr,
        authority: &str,
        proxy: Option<u32>,
    ) -> anyhow::Result<Self> {
        let launcher =
            Client::new(std::env::current_exe()?).env("SSL_CERT_FILE", site.ca().certificate());
        Ok(Self::start(name, launcher, address, authority, proxy))
    }

    /// Load that is an agent; it asks for the origin's own address.
    pub(crate) fn guarded(
        name: &'static str,
        guard: &Guard<'_>,
        address: SocketAddr,
        authority: &str,
    ) -> anyhow::Result<Self> {
        let launcher = guard.agent(AGENT).client(&std::env::current_exe()?);
        let daemon = Some(guard.daemon_tgid());
        Ok(Self::start(name, launcher, address, authority, daemon))
    }

    fn start(
        name: &'static str,
        launcher: Client,
        address: SocketAddr,
        authority: &str,
        proxy: Option<u32>,
    ) -> Self {
        let load = launcher
            .arg("load")
            .arg(address.to_string())
            .arg(authority)
            .spawn();
        Self { name, load, proxy }
    }

    pub(crate) fn ask(&mut self, command: &load::Command) -> anyhow::Result<load::Outcome> {
        self.load.say(&serde_json::to_string(command)?);
        let answer = self.load.line(|line| line.starts_with('{'));
        let answer: Result<load::Outcome, String> =
            serde_json::from_str(&answer).context("not an answer")?;
        answer.map_err(|error| anyhow!("{}: {error}", self.name))
    }

    /// The outcome, and the CPU time that the proxy's processes used meanwhile.
    pub(crate) fn ask_with_cpu(
        &mut self,
        command: &load::Command,
    ) -> anyhow::Result<(load::Outcome, Duration)> {
        let tree = self.proxy();
        let before = tree.cpu();
        let outcome = self.ask(command)?;
        Ok((outcome, tree.cpu().saturating_sub(before)))
    }

    pub(crate) fn proxy(&self) -> Tree {
        self.proxy.map(Tree::of).unwrap_or_default()
    }

    pub(crate) fn has_proxy(&self) -> bool {
        self.proxy.is_some()
    }
}
