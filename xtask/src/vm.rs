//! `cargo xtask test vm`: the tests that need a kernel of their own, on stock Debian kernels under QEMU, against the table of
//! what is known to differ on each.

mod cpio;
mod fetch;
mod image;
mod instructions;
mod machine;
mod outcome;
mod programs;
mod table;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use self::image::Image;
use self::instructions::{Measured, Records};
use self::outcome::{Outcome, Tests};
use self::programs::Programs;
use self::table::{Kernel, Table};
use crate::setup::{self, Need};
use crate::shell;
use crate::test::Profile;

#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Every kernel of tests/vm/kernels.toml, one after the other
    #[arg(long, conflicts_with = "kernel")]
    all: bool,
    /// This kernel; without, the table's default
    #[arg(long, value_name = "NAME")]
    kernel: Option<String>,
    /// Record the verifier's instruction counts as they are
    #[arg(long)]
    bless: bool,
    /// Debug builds: quicker to build, slower to run
    #[arg(long)]
    debug: bool,
    /// Only these: a test program, or `PROGRAM::FILTER`
    #[arg(value_name = "TEST")]
    tests: Vec<String>,
    /// For the test runners inside: a filter, `--exact`, …
    #[arg(last = true)]
    runner: Vec<String>,
}

/// What `cargo xtask test` has time for on an emulated processor: that every program loads, and what only LSM programs do.
const ESSENTIALS: [&str; 8] = [
    "kernel::shapes::every_shape_loads",
    "kernel::exec::lsm",
    "kernel::exec::with_lsm",
    "kernel::tamper::pins_stay",
    "kernel::handed::a_connection_from_before",
    "bypass::exec::no_way_around",
    "bypass::tamper::what_a_privileged_agent",
    "bypass::unix::a_listed_socket",
];

impl Args {
    /// The essentials on the table's default kernel.
    pub(crate) fn essentials() -> Self {
        Self {
            tests: ESSENTIALS.map(str::to_owned).to_vec(),
            ..Self::default()
        }
    }

    fn is_all(&self) -> bool {
        self.tests.is_empty() && self.runner.is_empty()
    }
}

/// Fetches the default kernel, if it is not there.
pub(crate) fn prepare() -> anyhow::Result<()> {
    let table = Table::read()?;
    fetch::kernel(table.kernel(&table.default)?).map(drop)
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let table = Table::read()?;
    let kernels: Vec<&Kernel> = match &args.kernel {
        _ if args.all => table.kernels.iter().collect(),
        Some(name) => vec![table.kernel(name)?],
        None => vec![table.kernel(&table.default)?],
    };
    setup::run(Need::Machines)?;
    let profile = if args.debug {
        Profile::Debug
    } else {
        Profile::Release
    };
    let programs = Programs::build(profile, |name| {
        let runs = |kernel: &&Kernel| table.part(kernel, name, &args.tests).is_some();
        kernels.iter().any(runs)
    })?;
    let mut records = Records::read()?;
    let mut failed = 0;
    let mut lines = Vec::new();
    for kernel in kernels {
        let line = match tried(&table, kernel, &programs, &mut records, args) {
            Ok(done) => {
                failed += usize::from(!done.surprises.is_empty());
                done.to_string()
            }
            Err(error) => {
                failed += usize::from(kernel.optional.is_none());
                let what = kernel
                    .optional
                    .as_ref()
                    .map_or_else(String::new, |why| format!("; optional: {why}"));
                format!("{error:#}{what}")
            }
        };
        println!("{}: {line}", kernel.name);
        lines.push(format!(
            "{:<16}{}",
            kernel.name,
            line.lines().next().unwrap_or_default()
        ));
    }
    println!("\n{}", lines.join("\n"));
    if failed > 0 {
        bail!(
            "{failed} of {} kernels are not as they should be (above)",
            lines.len()
        );
    }
    Ok(())
}

fn tried(
    table: &Table,
    kernel: &Kernel,
    programs: &Programs,
    records: &mut Records,
    args: &Args,
) -> anyhow::Result<Done> {
    let unpacked = fetch::kernel(kernel).context("cannot be fetched")?;
    let start = Instant::now();
    let folder = shell::target().join("vm/run").join(&kernel.name);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut tests: Vec<_> = programs
        .tests
        .iter()
        .filter_map(|(name, file)| Some((table.part(kernel, name, &args.tests)?, name, file)))
        .collect();
    tests.sort();
    if tests.is_empty() {
        bail!("none of {:?} runs on it", args.tests);
    }
    let mut inside = vec![
        ("vm/init".to_owned(), programs.init.clone()),
        (AGENTGUARD.to_owned(), programs.agentguard.clone()),
    ];
    inside.extend(
        tests
            .iter()
            .map(|(_, name, file)| (format!("vm/tests/{name}"), (*file).clone())),
    );
    inside.extend(
        programs
            .attempts
            .iter()
            .map(|(name, file)| (format!("{ATTEMPTS}/{name}"), file.clone())),
    );
    let mut image = Image::new(&unpacked, &inside)?;
    let steps: String = tests
        .iter()
        .map(|(part, name, _)| {
            let runner = args.runner.iter().map(String::as_str);
            let words: String = part
                .filters
                .iter()
                .copied()
                .chain(runner)
                .map(|word| format!("\t{word}"))
                .collect();
            format!("{name}\t/vm/tests/{name}\t--color=never\t--show-output{words}\n")
        })
        .collect();
    image.text("vm/steps", &steps);
    image.text("vm/environment", &environment(table));
    image.link(&format!("{TOOLS}/venv/bin/python"), "/usr/bin/python3");
    let initramfs = folder.join("initramfs");
    image.write(&initramfs)?;
    let told = machine::run(&unpacked.image, &initramfs, &kernel.parameters, &folder);
    fs::remove_file(&initramfs)?;
    let told = told?;

    let mut surprises = Vec::new();
    if told.release != unpacked.release {
        surprises.push(format!("{} has booted", told.release));
    }
    let lsm = told.modules.iter().any(|module| module == "bpf");
    if lsm != kernel.lsm {
        surprises.push(format!(
            "the table says lsm = {}, the security modules are {}",
            kernel.lsm,
            told.modules.join(",")
        ));
    }
    let mut all = Tests::new();
    for (_, name, _) in &tests {
        let step = told.steps.iter().find(|step| step.name == **name);
        match step.context("did not run").and_then(outcome::read) {
            Ok(tests) => all.extend(tests),
            Err(error) => surprises.push(format!("{name}: {error:#}")),
        }
    }
    let is_all = args.is_all();
    surprises.extend(outcome::surprises(kernel, &all, is_all));
    match Measured::of(&told.release, &all) {
        Some(measured) if args.bless => records.bless(&kernel.name, &measured)?,
        None if !is_all => {}
        measured => surprises.extend(records.surprises(&kernel.name, measured.as_ref())),
    }
    Ok(Done {
        release: told.release,
        boot: told.boot,
        tests: told.steps.iter().map(|step| step.seconds).sum(),
        total: start.elapsed(),
        passed: all
            .values()
            .filter(|test| test.outcome == Outcome::Passed)
            .count(),
        known: kernel
            .differs
            .iter()
            .filter(|known| all.contains_key(&known.test))
            .map(|known| format!("{} ({})", known.test, known.because))
            .collect(),
        surprises,
    })
}

/// Where the harness looks for the binary under test inside.
const AGENTGUARD: &str = "usr/bin/agentguard";
/// And programs that it would compile.
const ATTEMPTS: &str = "vm/attempts";
/// And Python; of the packages under test there is none.
const TOOLS: &str = "vm/tools";
/// And the scripts of `tests/tools`. Where this workspace is, something else may be mounted.
const SCRIPTS: &str = "vm/scripts";

fn environment(table: &Table) -> String {
    format!(
        "PATH=/usr/bin:/usr/sbin\nHOME=/root\nLANG=C.UTF-8\nRUST_BACKTRACE=0\nAGENTGUARD_BIN=/{AGENTGUARD}\nAGENTGUARD_TEST_TOOLS=/{TOOLS}\nAGENTGUARD_TEST_PROGRAMS=/{ATTEMPTS}\nAGENTGUARD_TEST_SCRIPTS=/{SCRIPTS}\nAGENTGUARD_TEST_PROCESSES={}\n",
        table.processes
    )
}

/// One kernel's run.
struct Done {
    release: String,
    boot: Duration,
    /// Seconds inside the machine.
    tests: f64,
    /// With the making of the image.
    total: Duration,
    passed: usize,
    known: Vec<String>,
    surprises: Vec<String>,
}

impl std::fmt::Display for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}: {} passed, {} differ as known, {} surprises; boot {:.1} s, tests {:.1} s, in all {:.1} s",
            self.release,
            self.passed,
            self.known.len(),
            self.surprises.len(),
            self.boot.as_secs_f64(),
            self.tests,
            self.total.as_secs_f64()
        )?;
        for known in &self.known {
            write!(f, "\n  as known: {known}")?;
        }
        for surprise in &self.surprises {
            write!(f, "\n  surprise: {}", surprise.trim_end())?;
        }
        Ok(())
    }
}
