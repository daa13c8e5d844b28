//! The figures, and the two ways to show them: a table of at most 100 columns, and JSON.

mod json;
mod row;
mod table;

use std::collections::BTreeMap;

use crate::programs::Cost;

pub(crate) use self::row::{Mode, Row};
pub(crate) use self::table::number;

pub(crate) const DIRECT: &str = "direct";
pub(crate) const NGINX: &str = "nginx";
pub(crate) const GUARDED: &str = "agentguard";
/// The columns of every group but the last.
const SUBJECTS: [&str; 3] = [DIRECT, NGINX, GUARDED];

#[derive(Default)]
pub(crate) struct Report {
    /// One value a round for each row and column, in the order of the rounds.
    samples: BTreeMap<(Row, &'static str), Vec<f64>>,
    /// By program, then mode.
    programs: BTreeMap<String, BTreeMap<Mode, Cost>>,
    /// All programs together, per connect.
    per_connect: BTreeMap<Mode, Cost>,
    /// All programs together per call of a row, and how many ran in all of them.
    per_call: BTreeMap<(Row, Mode), (Cost, u64)>,
    /// The share of the machine's CPU time that went to processes which are not the bench's, or to the host.
    disturbed: f64,
}

impl Report {
    pub(crate) fn add(&mut self, row: Row, column: &'static str, value: f64) {
        self.samples.entry((row, column)).or_default().push(value);
    }

    /// What each program cost while an agent or a bystander connected, and `all` of them per connect.
    pub(crate) fn add_programs(&mut self, mode: Mode, costs: BTreeMap<String, Cost>, all: Cost) {
        for (name, cost) in costs {
            self.programs.entry(name).or_default().insert(mode, cost);
        }
        self.per_connect.insert(mode, all);
    }

    /// As [`Self::add_programs`]: `all` per call, and how often programs `ran`.
    pub(crate) fn add_call(&mut self, row: Row, mode: Mode, all: Cost, ran: u64) {
        self.per_call.insert((row, mode), (all, ran));
    }

    pub(crate) fn median(&self, row: Row, column: &'static str) -> Option<f64> {
        median(self.of(row, column).to_vec())
    }

    /// The median of the rounds' own ratios of `column` to `base`.
    pub(crate) fn ratio(&self, row: Row, column: &'static str, base: &'static str) -> Option<f64> {
        let (above, below) = (self.of(row, column), self.of(row, base));
        median(above.iter().zip(below).map(|(a, b)| a / b).collect())
    }

    pub(crate) fn ns_per_run(&self, mode: Mode, program: &str) -> Option<f64> {
        self.programs.get(program)?.get(&mode)?.ns_per_run()
    }

    /// After the last round: what a proxy adds to a latency is its round's figure less that of `direct`.
    pub(crate) fn finish(&mut self, disturbed: f64) {
        self.disturbed = disturbed;
        for (row, of) in row::ADDED {
            for column in [NGINX, GUARDED] {
                let rounds = self.of(of, column).iter().zip(self.of(of, DIRECT));
                let added: Vec<f64> = rounds.map(|(with, without)| with - without).collect();
                if !added.is_empty() {
                    self.samples.insert((row, column), added);
                }
            }
        }
    }

    fn of(&self, row: Row, column: &'static str) -> &[f64] {
        self.samples.get(&(row, column)).map_or(&[], Vec::as_slice)
    }

    fn has(&self, row: Row) -> bool {
        self.samples.keys().any(|(of, _)| *of == row)
    }
}

fn kernel() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
    release.unwrap_or_default().trim().to_owned()
}

fn extent(samples: &[f64]) -> Option<(f64, f64)> {
    let min = samples.iter().copied().reduce(f64::min)?;
    let max = samples.iter().copied().reduce(f64::max)?;
    Some((min, max))
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = values[(values.len() - 1) / 2];
    Some(f64::midpoint(lower, upper))
}
