//! Everything that was measured, every round of it.

use serde_json::{Map, Value, json};

use super::{DIRECT, NGINX, Report, Row, extent, kernel};
use crate::{accounts, goals};

impl Report {
    pub(crate) fn json(&self) -> Value {
        let rows: Vec<_> = Row::ALL
            .iter()
            .filter(|row| self.has(**row))
            .map(|row| self.row_json(*row))
            .collect();
        let goals: Vec<_> = goals::all(self)
            .into_iter()
            .map(|goal| {
                json!({
                    "goal": goal.number, "what": goal.what, "wanted": goal.wanted,
                    "measured": goal.measured, "met": goal.met,
                })
            })
            .collect();
        json!({
            "kernel": kernel(), "cpus": accounts::cpus(), "others_cpu_share": self.disturbed,
            "rows": rows, "programs": self.programs_json(), "calls": self.calls_json(),
            "goals": goals,
        })
    }

    fn row_json(&self, row: Row) -> Value {
        let columns: Map<_, _> = self
            .samples
            .iter()
            .filter(|((of, _), _)| *of == row)
            .filter_map(|((_, column), samples)| {
                let (min, max) = extent(samples)?;
                let figures = json!({
                    "median": self.median(row, column), "min": min, "max": max, "rounds": samples,
                    "to_direct": self.ratio(row, column, DIRECT), "to_nginx": self.ratio(row, column, NGINX),
                });
                Some(((*column).to_owned(), figures))
            })
            .collect();
        json!({"key": row, "group": row.group(), "figure": row.label(), "columns": columns})
    }

    fn calls_json(&self) -> Value {
        let calls = self.per_call.iter().map(|((row, mode), (cost, ran))| {
            json!({
                "key": row, "mode": mode.name(), "calls": cost.runs, "program_runs": ran,
                "ns_per_call": cost.ns_per_run(),
            })
        });
        calls.collect()
    }

    fn programs_json(&self) -> Value {
        let programs = self.programs.iter().flat_map(|(name, modes)| {
            modes.iter().map(move |(mode, cost)| {
                json!({
                    "program": name, "mode": mode.name(), "runs": cost.runs,
                    "ns_per_run": cost.ns_per_run(),
                })
            })
        });
        programs.collect()
    }
}
