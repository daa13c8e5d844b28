//! Programs that a test starts: output by line as it comes, a bounded wait, and an end by their own ids on drop.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::tools::PATIENCE;

/// What a program left when it ended.
#[derive(Debug)]
pub struct Ran {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Exit code, or 128 + signal as a shell would say.
    pub fn code(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        self.status
            .code()
            .unwrap_or_else(|| 128 + self.status.signal().unwrap_or_default())
    }

    /// Fails the test unless the program ended with 0.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code(), 0, "should have succeeded: {self:#?}");
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(self.stdout.trim())
            .unwrap_or_else(|error| panic!("not JSON ({error}): {self:#?}"))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stream {
    Out,
    Err,
}

/// A started program. Dropped while it runs, it and its descendants are killed.
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<(Stream, String)>,
    stdout: Vec<String>,
    stderr: Vec<String>,
    ended: Option<ExitStatus>,
    what: String,
}

impl Running {
    pub fn spawn(command: &mut Command) -> Self {
        Self::spawn_from(command, Stdio::piped())
    }

    /// With this standard input; nothing can be said to it unless it is a pipe of ours.
    pub fn spawn_from(command: &mut Command, input: Stdio) -> Self {
        let what = format!("{command:?}");
        let mut child = command
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {what}: {error}"));
        let (sender, lines) = channel();
        read_lines(
            child.stdout.take().expect("piped"),
            Stream::Out,
            sender.clone(),
        );
        read_lines(child.stderr.take().expect("piped"), Stream::Err, sender);
        Self {
            stdin: child.stdin.take(),
            child,
            lines,
            stdout: Vec::new(),
            stderr: Vec::new(),
            ended: None,
            what,
        }
    }

    pub fn tgid(&self) -> u32 {
        self.child.id()
    }

    /// Writes one line to its standard input.
    pub fn say(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("standard input is open");
        writeln!(stdin, "{line}").expect("the program reads its standard input");
        stdin.flush().expect("flushed");
    }

    /// End of its standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// The next line, of either stream, that `wanted` accepts.
    #[track_caller]
    pub fn line(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.receive(deadline) {
                Ok(line) if wanted(&line) => return line,
                Ok(_) => {}
                Err(why) => panic!(
                    "{} said no such line ({why:?}): {}",
                    self.what,
                    self.heard()
                ),
            }
        }
    }

    /// The next line of its standard output.
    #[track_caller]
    pub fn printed(&mut self) -> String {
        let deadline = Instant::now() + PATIENCE;
        let read = self.stdout.len();
        while self.stdout.len() == read {
            if let Err(why) = self.receive(deadline) {
                panic!("{} says no more ({why:?}): {}", self.what, self.heard());
            }
        }
        self.stdout[read].clone()
    }

    /// The next line that starts so, without that start.
    #[track_caller]
    pub fn after(&mut self, start: &str) -> String {
        self.line(|line| line.starts_with(start))[start.len()..]
            .trim()
            .to_owned()
    }

    /// What it said so far and has been read.
    pub fn heard(&self) -> String {
        format!("{}\n--\n{}", self.stdout.join("\n"), self.stderr.join("\n"))
    }

    pub fn signal(&self, signal: Signal) {
        if self.ended.is_none() {
            // It may have ended by itself.
            let _ = kill(pid(self.tgid()), signal);
        }
    }

    /// What a program that has ended said, to the end.
    pub fn rest(&mut self) -> String {
        let deadline = Instant::now() + PATIENCE;
        while self.receive(deadline).is_ok() {}
        self.heard()
    }

    pub fn is_running(&mut self) -> bool {
        self.poll().is_none()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn finish(self) -> Ran {
        self.finish_within(PATIENCE)
    }

    #[track_caller]
    pub fn finish_within(mut self, patience: Duration) -> Ran {
        self.stdin = None;
        let deadline = Instant::now() + patience;
        loop {
            match self.receive(deadline) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    panic!(
                        "{} does not end within {patience:?}: {}",
                        self.what,
                        self.heard()
                    )
                }
            }
        }
        let status = self.child.wait().expect("own child");
        self.ended = Some(status);
        Ran {
            status,
            stdout: self.stdout.join("\n"),
            stderr: self.stderr.join("\n"),
        }
    }

    fn poll(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("own child");
        }
        self.ended
    }

    fn receive(&mut self, deadline: Instant) -> Result<String, RecvTimeoutError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let (stream, line) = self.lines.recv_timeout(left)?;
        match stream {
            Stream::Out => self.stdout.push(line.clone()),
            Stream::Err => self.stderr.push(line.clone()),
        }
        Ok(line)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.poll().is_some() {
            return;
        }
        // One that puts another in the place of a child that has ended, as nginx's master does, must not.
        let _ = kill(pid(self.tgid()), Signal::SIGSTOP);
        // `agentguard run` gives its command a session of its own, so the group is not enough.
        for tgid in descendants(self.tgid()) {
            let _ = kill(pid(tgid), Signal::SIGKILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_lines(from: impl Read + Send + 'static, stream: Stream, sender: Sender<(Stream, String)>) {
    thread::spawn(move || {
        let mut reader = BufReader::new(from);
        let mut line = Vec::new();
        while let Ok(1..) = reader.read_until(b'\n', &mut line) {
            let text = String::from_utf8_lossy(&line)
                .trim_end_matches('\n')
                .to_owned();
            if sender.send((stream, text)).is_err() {
                return;
            }
            line.clear();
        }
    });
}

pub fn pid(tgid: u32) -> Pid {
    Pid::from_raw(i32::try_from(tgid).expect("a process id"))
}

/// All processes below `ancestor`, now.
pub fn descendants(ancestor: u32) -> Vec<u32> {
    let parents: BTreeMap<u32, u32> = processes()
        .filter_map(|tgid| Some((tgid, parent(tgid)?)))
        .collect();
    parents
        .keys()
        .copied()
        .filter(|&tgid| {
            let mut up = tgid;
            while let Some(&next) = parents.get(&up) {
                if next == ancestor {
                    return true;
                }
                up = next;
            }
            false
        })
        .collect()
}

/// Whether the process exists and has not ended.
pub fn is_alive(tgid: u32) -> bool {
    state(tgid).is_some_and(|state| state != "Z" && state != "X")
}

pub fn parent(tgid: u32) -> Option<u32> {
    stat(tgid)?.split(' ').nth(1)?.parse().ok()
}

/// A value of `/proc/TGID/status` in KiB, such as `VmRSS`.
pub fn memory_kib(tgid: u32, key: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{tgid}/status")).expect("it runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
        .unwrap_or_else(|| panic!("no {key} in the status of {tgid}"));
    let value = line.split_whitespace().next().expect("a value");
    value.parse().expect("a number")
}

fn processes() -> impl Iterator<Item = u32> {
    std::fs::read_dir("/proc")
        .expect("/proc is mounted")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

fn state(tgid: u32) -> Option<String> {
    stat(tgid)?.split(' ').next().map(str::to_owned)
}

/// `/proc/TGID/stat` behind the name, which may contain anything.
fn stat(tgid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{tgid}/stat")).ok()?;
    stat.rsplit_once(") ").map(|(_, rest)| rest.to_owned())
}

/// Waits until a process that is not our child has ended.
pub fn await_end(tgid: u32) {
    let deadline = Instant::now() + PATIENCE;
    while is_alive(tgid) {
        assert!(Instant::now() < deadline, "{tgid} still runs");
        thread::yield_now();
    }
}

/// Loopback TCP ports that a process listens on.
pub fn listening_ports(tgid: u32) -> Vec<u16> {
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{tgid}/fd")) else {
        return Vec::new();
    };
    let sockets: Vec<String> = descriptors
        .filter_map(|entry| {
            let link = std::fs::read_link(entry.ok()?.path()).ok()?;
            let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
            Some(inode.to_owned())
        })
        .collect();
    let mut ports: Vec<u16> = ["tcp", "tcp6"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(format!("/proc/{tgid}/net/{table}")).ok())
        .flat_map(|table| {
            let rows = table.lines().skip(1).filter_map(|row| {
                let fields: Vec<&str> = row.split_whitespace().collect();
                let listens = *fields.get(3)? == "0A";
                let ours = sockets
                    .iter()
                    .any(|inode| fields.get(9) == Some(&inode.as_str()));
                let port = fields.get(1)?.rsplit_once(':')?.1;
                (listens && ours).then(|| u16::from_str_radix(port, 16).ok())?
            });
            rows.collect::<Vec<_>>()
        })
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}
