//! `agents/*.toml`: who an agent is and what it could ever touch.

use agentguard_common::abi::PATH_LEN;

use super::exec;
use super::reach::{self, Reach};
use super::table::{Keys, Located, Table};
use super::{MODES, OBSERVE, RISKS, UNKNOWN_RISK, check_name, document, unix};
use crate::diagnostic::{Place, Report};
use crate::glob::check_file_glob;
use crate::host::show;
use crate::{Agent, Identify, Starter};

/// One agent as its file says, with positions for the checks across files.
pub(crate) struct AgentFile {
    pub name_at: Place,
    /// Of `agent.parent`, if it has one.
    pub parent_at: Place,
    pub agent: Agent,
    /// `None`: as bundle.toml says.
    pub observe: Option<bool>,
    pub reach: Vec<Reach>,
    /// Of each of `agent.identify`.
    pub identify_at: Vec<Place>,
    /// Of `agent.exec`.
    pub exec_at: Option<Place>,
    /// Of each of `agent.kernel`.
    pub kernel_at: Vec<Place>,
}

const FILE: Keys = Keys {
    known: &["agent", "identify", "exec", "reach", "listen", "unix"],
    later: &[],
};
const AGENT: Keys = Keys {
    known: &[
        "name",
        "owner",
        "risk",
        "parent",
        "start_by",
        "privileges",
        "mode",
        "tasks",
    ],
    later: &[],
};
const IDENTIFY: Keys = Keys {
    known: &["exe", "user", "cgroup"],
    later: &[],
};
/// The agent's name alone, if the file is whole enough to have one.
pub(crate) fn agent_name(text: &str) -> Option<String> {
    let (root, _) = toml::de::DeTable::parse_recoverable(text);
    let name = root
        .get_ref()
        .get("agent")?
        .get_ref()
        .as_table()?
        .get("name")?;
    let name = name.get_ref().as_str()?;
    super::is_name(name).then(|| name.to_owned())
}

pub(crate) fn agent_file(report: &mut Report<'_>, file: u32) -> Option<AgentFile> {
    let text = report.text(file);
    let document = document(report, file, text)?;
    let root = Table::root(file, &document);
    root.check_keys(report, &FILE);
    let touched = reach::touched(report, &root);
    let mut identify = Vec::new();
    let mut identify_at = Vec::new();
    for table in root.tables(report, "identify", "[[identify]]") {
        table.check_keys(report, &IDENTIFY);
        if let Some(block) = identify_block(report, &table) {
            identify.push(block);
            identify_at.push(table.at);
        }
    }
    let unix = unix::sockets(report, &root);
    let exec = root.table(report, "exec", "[exec]");
    let exec_at = exec.as_ref().map(|table| table.at);
    let exec = match exec {
        Some(table) => Some(exec::table(report, &table)?),
        None => None,
    };
    if !root.has("agent") {
        report.error_help(
            root.at,
            "the file has no `[agent]`",
            "add `[agent]` and below it `name = \"…\"` and `owner = \"…\"`",
        );
        return None;
    }
    let table = root.table(report, "agent", "[agent]")?;
    table.check_keys(report, &AGENT);
    let name = table.required(report, "name");
    let name = name.filter(|name| check_name(report, "agent", name));
    let owner = table.required(report, "owner");
    let risk = table.choice(report, "risk", &RISKS);
    let parent = match table.has("parent") {
        true => Some(table.required(report, "parent")?),
        false => None,
    };
    let mode = table.choice(report, "mode", &MODES);
    let tasks = table.choice(report, "tasks", &["optional", "required"]);
    let privileges = table.choice(report, "privileges", &["drop", "keep"]);
    let start_by = table
        .strings(report, "start_by")
        .into_iter()
        .filter_map(|starter| starter_of(report, &starter))
        .collect();
    let name = name?;
    Some(AgentFile {
        name_at: name.at,
        parent_at: parent.as_ref().map_or(name.at, |parent| parent.at),
        observe: mode.map(|mode| mode.value == OBSERVE),
        agent: Agent {
            observe: false,
            tasks_required: tasks.is_some_and(|tasks| tasks.value == "required"),
            name: name.value,
            owner: owner?.value,
            risk: risk.map_or_else(|| UNKNOWN_RISK.to_owned(), |risk| risk.value),
            parent: parent.map(|parent| parent.value),
            start_by,
            keep_privileges: privileges.is_some_and(|privileges| privileges.value == "keep"),
            identify,
            exec,
            kernel: touched.kernel,
            unix,
            has_hosts: !touched.hosts.is_empty(),
        },
        reach: touched.hosts,
        identify_at,
        exec_at,
        kernel_at: touched.kernel_at,
    })
}

fn starter_of(report: &mut Report<'_>, starter: &Located<String>) -> Option<Starter> {
    let found = match starter.value.split_once(':') {
        Some(("user", name)) if is_account(name) => Some(Starter::User(name.to_owned())),
        Some(("group", name)) if is_account(name) => Some(Starter::Group(name.to_owned())),
        _ => None,
    };
    if found.is_none() {
        report.error_help(
            starter.at,
            format!("`{}` in `start_by` names nobody", show(&starter.value)),
            "write `user:NAME` or `group:NAME`",
        );
    }
    found
}

/// A name that `useradd(8)` could have made, or a numeric id.
fn is_account(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && !name.starts_with('-')
        && !name
            .contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, ':' | '/' | ','))
}

fn identify_block(report: &mut Report<'_>, table: &Table<'_>) -> Option<Identify> {
    let mut glob = |key| -> Result<Option<String>, ()> {
        let Some(found) = table.string(report, key) else {
            return if table.has(key) { Err(()) } else { Ok(None) };
        };
        // The kernel's copy ends with a NUL.
        check_file_glob(&found.value, PATH_LEN - 1).map_err(|why| report.error(found.at, why))?;
        Ok(Some(found.value))
    };
    let (exe, cgroup) = (glob("exe"), glob("cgroup"));
    let user = table.string(report, "user");
    if let Some(bad) = user.as_ref().filter(|user| !is_account(&user.value)) {
        report.error(bad.at, format!("`{}` is not a user name", show(&bad.value)));
        return None;
    }
    let block = Identify {
        exe: exe.ok()?,
        user: user.map(|user| user.value),
        cgroup: cgroup.ok()?,
    };
    if block.exe.is_none() && block.user.is_none() && block.cgroup.is_none() {
        report.error_help(
            table.at,
            "[[identify]] has no key and would match every process",
            "add `exe`, `user` or `cgroup`",
        );
        return None;
    }
    Some(block)
}
