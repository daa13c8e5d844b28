//! Inputs by mutation, and what became of them.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Seconds for each target.
const SECONDS: &str = "AGENTGUARD_FUZZ_SECONDS";
const DEFAULT_SECONDS: u64 = 5;
/// The number that a run begins with, to have it again.
const SEED: &str = "AGENTGUARD_FUZZ_SEED";
/// Bytes of an input at most.
const MAX_INPUT: usize = 64 << 10;
/// Inputs that are kept at most.
const MAX_KEPT: usize = 4096;
/// Longer than any input may take, on a machine that does other things too.
const MAX_TIME: Duration = Duration::from_secs(30);

/// Something that reads inputs.
pub(crate) struct Target {
    name: &'static str,
    inputs: Vec<Vec<u8>>,
    words: &'static [&'static str],
    /// Panics if the input is treated wrongly; answers with what kind of an input it is.
    check: fn(&[u8]) -> String,
    /// What is tried, and since when.
    tried: Arc<Mutex<(Instant, Vec<u8>)>>,
}

impl Target {
    /// `inputs`: good ones, besides those in the target's folder. `words`: what means something to it.
    pub(crate) fn new(
        name: &'static str,
        inputs: &[&[u8]],
        words: &'static [&'static str],
        check: fn(&[u8]) -> String,
    ) -> Self {
        let mut inputs: Vec<Vec<u8>> = inputs.iter().map(|input| input.to_vec()).collect();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/seeds")
            .join(name);
        let mut files: Vec<_> = fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .collect();
        files.sort_by_key(fs::DirEntry::path);
        inputs.extend(
            files
                .iter()
                .map(|file| fs::read(file.path()).expect("readable")),
        );
        Self {
            name,
            inputs,
            words,
            check,
            tried: Arc::new(Mutex::new((Instant::now(), Vec::new()))),
        }
    }

    pub(crate) fn run(mut self) {
        let number = |name: &str| Some(std::env::var(name).ok()?.parse().expect("a number"));
        let seed = number(SEED).unwrap_or_else(|| RandomState::new().hash_one(self.name));
        let seconds = number(SECONDS).unwrap_or(DEFAULT_SECONDS);
        let until = Instant::now() + Duration::from_secs(seconds);
        let mut random = Random(seed | 1);
        self.watch(seed);
        let (mut kinds, mut count) = (HashSet::new(), 0u64);
        for input in self.inputs.clone() {
            kinds.insert(self.kind(&input, seed));
        }
        while Instant::now() < until {
            let input = random.input(&self.inputs, self.words);
            count += 1;
            if kinds.insert(self.kind(&input, seed)) && self.inputs.len() < MAX_KEPT {
                self.inputs.push(input);
            }
        }
        println!(
            "{}: {count} inputs of {} kinds, {SEED}={seed}",
            self.name,
            kinds.len()
        );
    }

    /// Names an input that takes too long, from which the check may never return.
    fn watch(&self, seed: u64) {
        let (name, tried) = (self.name, Arc::downgrade(&self.tried));
        std::thread::spawn(move || {
            while let Some(tried) = tried.upgrade() {
                let (since, input) = tried.lock().expect("unpoisoned").clone();
                drop(tried);
                if since.elapsed() > MAX_TIME {
                    eprintln!("an input takes more than {MAX_TIME:?}");
                    tell(name, seed, &input);
                    std::process::abort();
                }
                std::thread::park_timeout(MAX_TIME / 10);
            }
        });
    }

    fn kind(&self, input: &[u8], seed: u64) -> String {
        *self.tried.lock().expect("unpoisoned") = (Instant::now(), input.to_vec());
        let found = catch_unwind(AssertUnwindSafe(|| (self.check)(input)));
        found.unwrap_or_else(|panic| {
            tell(self.name, seed, input);
            resume_unwind(panic)
        })
    }
}

/// Keeps the input, and says where.
fn tell(name: &str, seed: u64, input: &[u8]) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("fuzz")
        .join(name);
    let mut file = String::new();
    for byte in input.iter().take(8) {
        let _ = write!(file, "{byte:02x}");
    }
    let path = folder.join(format!("{file}-{}", input.len()));
    fs::create_dir_all(&folder)
        .and_then(|()| fs::write(&path, input))
        .expect("written");
    eprintln!(
        "{name}: {SEED}={seed}; the input is in {}: move it to tests/fuzz/seeds/{name}",
        path.display()
    );
}

/// xorshift64*: the same numbers for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Below `end`; 0 below 0.
    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 16) as usize % end.max(1)
    }

    fn input(&mut self, inputs: &[Vec<u8>], words: &[&str]) -> Vec<u8> {
        let mut input = inputs[self.below(inputs.len())].clone();
        // One change most often, so that what is kept stays near to what is good.
        for _ in 0..=self.next().trailing_zeros() {
            self.change(&mut input, inputs, words);
        }
        input.truncate(MAX_INPUT);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, inputs: &[Vec<u8>], words: &[&str]) {
        let at = self.below(input.len() + 1);
        let short = 1 + self.below(16);
        let end = (at + short).min(input.len());
        match self.below(8) {
            0 if at < input.len() => input[at] ^= 1 << self.below(8),
            1 if at < input.len() => input[at] = self.next() as u8,
            2 => drop(input.drain(at..end)),
            3 => {
                let again: Vec<u8> = input[at..end].to_vec();
                drop(input.splice(at..at, again));
            }
            4 => {
                let word = words[self.below(words.len())];
                drop(input.splice(at..at, word.bytes()));
            }
            5 => {
                let word = words[self.below(words.len())];
                drop(input.splice(at..end, word.bytes()));
            }
            6 => {
                let other = &inputs[self.below(inputs.len())];
                let from = self.below(other.len());
                let to = (from + 1 + self.below(64)).min(other.len());
                drop(input.splice(at..at, other[from..to].iter().copied()));
            }
            _ => input.truncate(at),
        }
    }
}
