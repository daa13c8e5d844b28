//! The table: medians of all subjects, AgentGuard's extremes, ratios; then the goals. At most 100 columns.

use std::fmt;

use super::{DIRECT, GUARDED, Mode, NGINX, Report, Row, SUBJECTS, extent, kernel};
use crate::{accounts, goals};

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "kernel {}, {} CPUs kept awake, all on 127.0.0.1; medians over interleaved rounds",
            kernel(),
            accounts::cpus()
        )?;
        if self.disturbed > 0.03 {
            let share = self.disturbed * 100.0;
            writeln!(
                f,
                "DISTURBED: {share:.0} % of the machine went to other processes or the host"
            )?;
        }
        let mut group = "";
        let side_by_side =
            |row: &&Row| SUBJECTS.iter().any(|name| !self.of(**row, name).is_empty());
        for row in Row::ALL.iter().filter(side_by_side) {
            if row.group() != group {
                group = row.group();
                writeln!(
                    f,
                    "\n{group:<34}{DIRECT:>9}{NGINX:>9}{GUARDED:>12}  {:<16}{:>8}{:>8}",
                    "min-max", "/direct", "/nginx"
                )?;
            }
            self.line(f, *row)?;
        }
        self.being_there(f)?;
        self.goals(f)
    }
}

impl Report {
    fn line(&self, f: &mut fmt::Formatter<'_>, row: Row) -> fmt::Result {
        let median = |subject| number(self.median(row, subject));
        let spread = extent(self.of(row, GUARDED))
            .filter(|(min, max)| min < max)
            .map(|(min, max)| format!("{}-{}", number(Some(min)), number(Some(max))));
        let ratio = |base| {
            let ratio = self.ratio(row, GUARDED, base);
            ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"))
        };
        let line = format!(
            "  {:<32}{:>9}{:>9}{:>12}  {:<16}{:>8}{:>8}",
            row.label(),
            median(DIRECT),
            median(NGINX),
            median(GUARDED),
            spread.unwrap_or_default(),
            ratio(DIRECT),
            ratio(NGINX)
        );
        writeln!(f, "{}", line.trim_end())
    }

    /// What a process pays that is not an agent, and an agent's connects; by kernel program where one ran.
    fn being_there(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.has(Row::Connect) && !self.has(Row::Fork) {
            return Ok(());
        }
        let cells = |cell: &dyn Fn(Mode) -> String| -> String {
            Mode::ALL.map(|mode| format!("{:>16}", cell(mode))).concat()
        };
        let group = Row::Connect.group();
        writeln!(f, "\n{group:<36}{}", cells(&|mode| mode.name().to_owned()))?;
        let rows = Row::ALL.iter().copied();
        for row in rows.filter(|row| row.group() == group && self.has(*row)) {
            let median = cells(&|mode| number(self.median(row, mode.name())));
            writeln!(f, "  {:<34}{median}", row.label())?;
            let spread = cells(&|mode| {
                let extent = extent(self.of(row, mode.name()));
                extent.map_or_else(String::new, |(min, max)| {
                    format!("{}-{}", number(Some(min)), number(Some(max)))
                })
            });
            writeln!(f, "  {:<34}{spread}", "  min-max")?;
            let ratios = cells(&|mode| {
                let ratio = self.ratio(row, mode.name(), Mode::Unloaded.name());
                ratio.map_or_else(String::new, |ratio| format!("{ratio:.3}"))
            });
            writeln!(f, "  {:<34}{ratios}", "  / not loaded")?;
            let programs = cells(&|mode| {
                let found = self.per_call.get(&(row, mode));
                found.map_or_else(String::new, |(cost, ran)| {
                    format!("{ran} in {}", number(cost.ns_per_run()))
                })
            });
            if !programs.trim().is_empty() {
                writeln!(
                    f,
                    "  {:<34}{}",
                    "  program runs in ns per call",
                    programs.trim_end()
                )?;
            }
        }
        if !self.has(Row::Connect) {
            return Ok(());
        }
        let all = cells(&|mode| {
            let cost = self.per_connect.get(&mode);
            number(cost.and_then(|cost| cost.ns_per_run()))
        });
        writeln!(f, "  {:<34}{all}", "all programs, ns per connect")?;
        for (name, modes) in &self.programs {
            let ran = cells(&|mode| {
                let cost = modes.get(&mode).filter(|cost| cost.runs > 0);
                cost.map_or_else(String::new, |cost| {
                    format!("{} × {}", cost.runs, number(cost.ns_per_run()))
                })
            });
            if !ran.trim().is_empty() {
                writeln!(
                    f,
                    "  {:<34}{}",
                    format!("  {name}, runs × ns"),
                    ran.trim_end()
                )?;
            }
        }
        Ok(())
    }
}

impl Report {
    fn goals(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n{:<52}{:>16}{:>14}",
            "goals of PERFORMANCE", "wanted", "measured"
        )?;
        let mut not_measured = Vec::new();
        for goal in goals::all(self) {
            let Some(met) = goal.met else {
                not_measured.push(goal.number.to_string());
                continue;
            };
            writeln!(
                f,
                "{:>2}  {:<48}{:>16}{:>14}  {}",
                goal.number,
                goal.what,
                goal.wanted,
                goal.measured,
                if met { "met" } else { "NOT met" }
            )?;
        }
        not_measured.dedup();
        if !not_measured.is_empty() {
            writeln!(
                f,
                "not measured in this run: of {}",
                not_measured.join(", ")
            )?;
        }
        Ok(())
    }
}

/// Three significant digits; "–" where nothing was measured.
pub(crate) fn number(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(value) if value.abs() >= 100.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) if value.abs() >= 1.0 => format!("{value:.2}"),
        Some(value) => format!("{value:.3}"),
    }
}
