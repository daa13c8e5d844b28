//! `agentguard audit`: what was decided, from the daemon; whether the log is whole, from its files.

mod table;

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::pin::{Pin, pin};
use std::process::ExitCode;

use agentguard_audit::search::Filter;
use agentguard_audit::verify::{VerifyError, verify};
use agentguard_control::client::Lines;
use agentguard_daemon::config::Config;
use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use futures_util::{Stream, StreamExt, TryStreamExt};
use jiff::{SignedDuration, Timestamp};

use self::table::RecordTable;
use super::printable::printable_json;

/// Records whose widths a table is made for; those that follow have to fit.
const FITTED: usize = 1000;
const OLDER: &str = "older records match, too, and are not shown: give --until the time of the first one to see what is before it, or narrow the search";

#[derive(Clone, Debug, Subcommand)]
pub enum AuditCommand {
    /// The newest records, and with -f those that come
    Tail(TailArguments),
    /// The records that match every option given, newest last
    Search(Box<Search>),
    /// Everything in one record
    Show(Show),
    /// Check the chain of hashes from the first record to the last (needs no daemon)
    Verify(Verify),
}

#[derive(Clone, Debug, Args)]
pub struct TailArguments {
    /// Go on with every record that comes, until interrupted
    #[arg(short, long)]
    follow: bool,
    /// How many records to start with
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
    lines: usize,
    /// One JSON object per line, as in the log
    #[arg(long)]
    json: bool,
}

/// Of [`agentguard_record::Outcome`], as records have them.
const OUTCOMES: [&str; 6] = [
    "allow",
    "observed",
    "deny",
    "approval-required",
    "killed",
    "error",
];

#[derive(Clone, Debug, Default, Args)]
pub struct Search {
    /// Of this agent
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// GET, connect, dns, kill, …
    #[arg(long)]
    action: Option<String>,
    /// What came of it
    #[arg(long, value_parser = OUTCOMES)]
    outcome: Option<String>,
    /// Part of the host or address
    #[arg(long, value_name = "TEXT")]
    resource: Option<String>,
    /// From this time on: 2026-01-31T12:00:00Z, or so long ago: 30s, 15m, 2h, 7d
    #[arg(long, value_name = "TIME", value_parser = when)]
    since: Option<Timestamp>,
    /// Before this time
    #[arg(long, value_name = "TIME", value_parser = when)]
    until: Option<Timestamp>,
    /// A decision's id, or how it starts
    #[arg(long)]
    id: Option<String>,
    /// Anywhere in the record
    #[arg(long)]
    text: Option<String>,
    /// A task's id: what was decided on it, its beginning and its end
    #[arg(long, value_name = "ID")]
    task: Option<String>,
    /// The newest N only
    #[arg(short = 'n', long, value_name = "N")]
    limit: Option<usize>,
    /// One JSON array
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, Args)]
pub struct Show {
    /// The decision's id as a refused agent sees it, or how it starts
    id: String,
    /// The JSON object as it is in the log
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, Args)]
pub struct Verify {
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Does what the command says, to stdout. `fetch` asks the daemon for the lines of a path of its control API.
pub async fn run<S>(
    command: &AuditCommand,
    config: &Config,
    fetch: impl AsyncFnOnce(&str) -> anyhow::Result<Lines<S>>,
) -> anyhow::Result<ExitCode>
where
    S: Stream<Item = anyhow::Result<String>>,
{
    let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut out = io::stdout().lock();
    let done = match command {
        AuditCommand::Verify(options) => {
            check(&config.paths.state.join("audit"), options, &mut out)
        }
        asking => {
            let Lines { lines, is_cut } = fetch(&asking.path()).await?;
            let printed = print(asking, lines, &mut out, colour).await;
            if is_cut && printed.is_ok() {
                eprintln!("agentguard: {OLDER}");
            }
            printed
        }
    };
    match done {
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        done => done,
    }
}

impl AuditCommand {
    /// What to ask the daemon.
    fn path(&self) -> String {
        let query = match self {
            Self::Tail(tail) => {
                let follow = if tail.follow { "&follow=true" } else { "" };
                format!("limit={}{follow}", tail.lines)
            }
            Self::Search(search) => search.filter().to_query(),
            Self::Show(show) => Filter {
                id: Some(show.id().to_owned()),
                // A second one shows that the id is not enough.
                limit: Some(2),
                ..Filter::default()
            }
            .to_query(),
            Self::Verify(_) => String::new(),
        };
        format!("/v1/audit?{query}")
    }
}

impl Search {
    fn filter(&self) -> Filter {
        Filter {
            agent: self.agent.clone(),
            action: self.action.clone(),
            outcome: self.outcome.clone(),
            resource: self.resource.clone(),
            since: self.since,
            until: self.until,
            id: self.id.clone(),
            text: self.text.clone(),
            task: self.task.clone(),
            limit: self.limit,
        }
    }
}

impl Show {
    /// Without what a problem document's `instance` has before it.
    fn id(&self) -> &str {
        self.id.strip_prefix("urn:uuid:").unwrap_or(&self.id)
    }
}

async fn print(
    command: &AuditCommand,
    lines: impl Stream<Item = anyhow::Result<String>>,
    out: &mut impl Write,
    colour: bool,
) -> anyhow::Result<ExitCode> {
    let mut lines = pin!(lines);
    if let AuditCommand::Tail(tail) = command
        && (tail.follow || tail.json)
    {
        let table = RecordTable::fixed(colour);
        if !tail.json {
            writeln!(out, "{}", table.header())?;
        }
        while let Some(line) = lines.next().await.transpose()? {
            let shown = match tail.json {
                true => printable_json(&line).into_owned(),
                false => table.row(&line),
            };
            writeln!(out, "{shown}")?;
            out.flush()?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    match command {
        AuditCommand::Search(search) if search.json => array(lines, out).await?,
        AuditCommand::Show(show) => {
            let found: Vec<String> = lines.try_collect().await?;
            one(show, &found, out)?;
        }
        AuditCommand::Search(_) | AuditCommand::Tail(_) | AuditCommand::Verify(_) => {
            let mut all = lines.as_mut();
            let first: Vec<String> = all.by_ref().take(FITTED).try_collect().await?;
            let table = RecordTable::fitting(&first, colour);
            writeln!(out, "{}", table.header())?;
            for line in &first {
                writeln!(out, "{}", table.row(line))?;
            }
            while let Some(line) = all.next().await.transpose()? {
                writeln!(out, "{}", table.row(&line))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn array(
    mut lines: Pin<&mut impl Stream<Item = anyhow::Result<String>>>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    write!(out, "[")?;
    let mut between = "\n";
    while let Some(line) = lines.next().await.transpose()? {
        write!(out, "{between}{}", printable_json(&line))?;
        between = ",\n";
    }
    writeln!(out, "\n]")?;
    Ok(())
}

fn one(show: &Show, lines: &[String], out: &mut impl Write) -> anyhow::Result<()> {
    let id = &show.id;
    let line = match lines {
        [line] => line,
        [] => {
            bail!("no record of a decision `{id}`: see `agentguard audit search` for what there is")
        }
        _ => bail!("more than one decision's id starts with `{id}`: give more of it"),
    };
    if show.json {
        writeln!(out, "{}", printable_json(line))?;
        return Ok(());
    }
    let record = serde_json::from_str(line).context("the daemon sent what is no record")?;
    for (name, value) in table::flat(&record) {
        writeln!(out, "{name:<20} {value}")?;
    }
    Ok(())
}

fn check(dir: &Path, options: &Verify, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let found = match verify(dir) {
        // Nothing is said of a log that cannot be read.
        Err(error @ VerifyError::Io { .. }) => return Err(error.into()),
        Err(error) => bail!("the audit log does not verify: {error}"),
        Ok(found) => found,
    };
    if options.json {
        writeln!(out, "{}", serde_json::to_string(&found)?)?;
    } else {
        writeln!(
            out,
            "{} records in {} files: the chain holds",
            found.records, found.segments
        )?;
        if found.records > 0 {
            writeln!(out, "seq   {} to {}", found.first_seq, found.last_seq)?;
            writeln!(out, "head  {}", found.head)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

pub(super) fn when(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let expected =
        || "a time such as 2026-01-31T12:00:00Z, or 30s, 15m, 2h, 7d ago, is expected".to_owned();
    let unit = text.chars().last().ok_or_else(expected)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(expected()),
    };
    let ago = text[..text.len() - 1]
        .parse::<u32>()
        .map(|count| SignedDuration::from_secs(i64::from(count) * seconds))
        .map_err(|_| expected())?;
    Timestamp::now().checked_sub(ago).map_err(|_| expected())
}

#[cfg(test)]
mod tests;
