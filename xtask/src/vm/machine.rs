//! One boot under QEMU, without KVM, disk or network: what its first process says, line by line. It ends with us, however we
//! end, and within a limit.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::shell::command;

/// A lockup panics the kernel long before, and a panic ends the machine.
const LIMIT: Duration = Duration::from_secs(60 * 60);
/// With more than one, the emulator may run a breakpoint that the kernel has taken back already, while it attaches a program
/// (`text_poke_bp`): an oops at `int3` that no real processor has.
const CPUS: &str = "1";
const MEMORY: &str = "3G";
/// No disk to wait for; any oops, lockup or panic is the end. What a real processor's flaws ask for costs an emulated one time.
const PARAMETERS: &str = "console=ttyS0 loglevel=5 rdinit=/vm/init panic=-1 oops=panic softlockup_panic=1 random.trust_cpu=on mitigations=off";
const MARK: &str = "@vm ";
const CONSOLE_LINES: usize = 25;

/// What a machine has told between its first marker and its last.
pub(super) struct Told {
    /// From the start of QEMU to the first step.
    pub boot: Duration,
    /// As `uname -r` says.
    pub release: String,
    /// Active security modules.
    pub modules: Vec<String>,
    pub steps: Vec<Step>,
}

pub(super) struct Step {
    pub name: String,
    pub lines: Vec<String>,
    pub status: i32,
    pub seconds: f64,
}

/// How often a kernel may try to get to its first process: emulated ones now and then die in their own early boot, before
/// there is anything of ours.
const BOOTS: u32 = 3;

/// Boots and follows the steps to the end marker. `folder` keeps the console and all that was said, with the
/// seconds since the start.
pub(super) fn run(
    kernel: &Path,
    initramfs: &Path,
    parameters: &[String],
    folder: &Path,
) -> anyhow::Result<Told> {
    for _ in 0..BOOTS {
        if let Some(told) = run_once(kernel, initramfs, parameters, folder)? {
            return Ok(told);
        }
        println!("the kernel died before its first process");
    }
    bail!(
        "{BOOTS} boots ended before the first process\n{}",
        last_lines(&folder.join("console.log"))
    );
}

/// `None`: the machine ended before its first process.
fn run_once(
    kernel: &Path,
    initramfs: &Path,
    parameters: &[String],
    folder: &Path,
) -> anyhow::Result<Option<Told>> {
    let console = folder.join("console.log");
    let mut log = File::create(folder.join("tests.log"))?;
    let start = Instant::now();
    let (_machine, lines) = Machine::boot(kernel, initramfs, parameters, &console)?;
    let mut told: Option<Told> = None;
    loop {
        let line = match lines.recv_timeout(LIMIT.saturating_sub(start.elapsed())) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => {
                bail!(
                    "not done within {} minutes\n{}",
                    LIMIT.as_secs() / 60,
                    last_lines(&console)
                );
            }
            Err(RecvTimeoutError::Disconnected) if told.is_none() => return Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                bail!(
                    "the machine ended before its last step\n{}",
                    last_lines(&console)
                );
            }
        };
        writeln!(log, "{:7.1} {line}", start.elapsed().as_secs_f64())?;
        let Some(marker) = line.strip_prefix(MARK) else {
            if let Some(step) = told.as_mut().and_then(|told| told.steps.last_mut()) {
                step.lines.push(line);
            }
            continue;
        };
        let words: Vec<&str> = marker.split(' ').collect();
        match (words.as_slice(), &mut told) {
            (["up", release, modules], None) => {
                told = Some(Told {
                    boot: start.elapsed(),
                    release: (*release).to_owned(),
                    modules: modules.split(',').map(str::to_owned).collect(),
                    steps: Vec::new(),
                });
            }
            (["step", name], Some(told)) => told.steps.push(Step {
                name: (*name).to_owned(),
                lines: Vec::new(),
                status: -1,
                seconds: 0.0,
            }),
            (["exit", name, status, seconds], Some(told)) => {
                let step = told.steps.last_mut().filter(|step| step.name == *name);
                let step = step.with_context(|| {
                    format!("the machine ended a step that it did not begin: {line}")
                })?;
                step.status = status.parse().with_context(|| line.clone())?;
                step.seconds = seconds.parse().with_context(|| line.clone())?;
            }
            (["end"], Some(_)) => break,
            _ => bail!("the machine says `{line}`, which cannot be"),
        }
    }
    told.context("the machine said nothing").map(Some)
}

/// Killed and reaped when dropped; the kernel kills it if we are killed.
struct Machine(Child);

impl Machine {
    fn boot(
        kernel: &Path,
        initramfs: &Path,
        parameters: &[String],
        console: &Path,
    ) -> anyhow::Result<(Self, Receiver<String>)> {
        let mut qemu = command("setpriv", ["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        qemu.args(["-accel", "tcg", "-smp", CPUS, "-m", MEMORY])
            .args([
                "-nodefaults",
                "-no-user-config",
                "-no-reboot",
                "-display",
                "none",
                "-nic",
                "none",
            ])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initramfs)
            .args(["-append", &format!("{PARAMETERS} {}", parameters.join(" "))])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-serial", "stdio"])
            .stdout(Stdio::piped());
        let mut child = qemu.spawn().context("cannot run qemu-system-x86_64")?;
        let output = child.stdout.take().context("no standard output")?;
        let machine = Self(child);
        let (to, lines) = mpsc::channel();
        std::thread::spawn(move || follow(output, &to));
        Ok((machine, lines))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail only for one that has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Until the machine's end, or ours.
fn follow(output: ChildStdout, to: &mpsc::Sender<String>) {
    for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
        // A serial port's lines end as a terminal's do.
        let line = String::from_utf8_lossy(&line)
            .trim_end_matches('\r')
            .to_owned();
        if to.send(line).is_err() {
            return;
        }
    }
}

fn last_lines(console: &PathBuf) -> String {
    let text = fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(CONSOLE_LINES);
    format!(
        "the end of {}:\n{}",
        console.display(),
        lines[from..].join("\n")
    )
}
