//! A bundle compiles, always to the same, or there are errors with places that exist.

use std::path::Path;

use agentguard_bundle::store::{Trust, read};
use agentguard_policy::{Policy, Sources};

use super::policy::ids;
use super::shorthand::{acts, kind};

pub(crate) const WORDS: &[&str] = &[
    "[agent]",
    "[[reach]]",
    "[[identify]]",
    "[[body]]",
    "[[scope]]",
    "[[listen]]",
    "[exec]",
    "[time]",
    "\"",
    "'''",
    "\"\"\"",
    "[",
    "]]",
    "{",
    "}",
    "(",
    ")",
    ";",
    "//",
    "@id(\"x\")",
    "@approve(\"owner\")",
    "::",
    "\\",
    "\n",
    "\r",
    "\u{a0}",
    "\0",
    "\u{fc}",
    "\u{202e}",
    " = 1",
    "= true",
    "Host::\"\"",
    "Agent::\"a\"",
    "context",
    ".path",
    "context.body has x && ",
    "forbid",
    "permit",
    "unless",
    "when",
    "||",
    "&&",
    "like",
    "-9223372036854775808",
    "0",
    "decimal(\"1.00001\")",
    "\n=== rules/x.cedar\n",
    "\n=== agents/x.toml\n",
    "\n=== hosts/../x\n",
    "*.",
    ":0",
    "443",
    "0.0.0.0/0",
    "GET /**",
];
/// In front of a file's path, alone on its line.
const MARK: &str = "=== ";

/// The examples, each as one text.
pub(crate) fn examples() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
    let bundles = std::fs::read_dir(folder)
        .expect("the examples")
        .map(|entry| entry.expect("one").path());
    let text = |folder: &Path| -> String {
        let sources = read(folder, Trust::Anyone).expect("a bundle");
        let files = sources.files.iter();
        files
            .map(|(path, text)| format!("{MARK}{path}\n{text}\n"))
            .collect()
    };
    let mut bundles: Vec<_> = bundles.collect();
    bundles.sort();
    bundles.iter().map(|folder| text(folder)).collect()
}

fn sources(text: &str) -> Sources {
    let mut sources = Sources::default();
    let mut path = None;
    for line in text.split_inclusive('\n') {
        match line.strip_prefix(MARK) {
            Some(name) => path = Some(name.trim_end().to_owned()),
            None => {
                let file = sources.files.entry(path.clone().unwrap_or_default());
                file.or_default().push_str(line);
            }
        }
    }
    sources
}

pub(crate) fn check(input: &[u8]) -> String {
    let sources = sources(&String::from_utf8_lossy(input));
    let ids = ids(&sources);
    let found = match Policy::compile(&sources, &ids) {
        Ok(policy) => {
            let answers = || {
                let again = Policy::compile(&sources, &ids).expect("as before");
                let answers: Vec<_> = again.test().map(|tested| tested.answer).collect();
                answers
            };
            let first: Vec<_> = policy.test().map(|tested| tested.answer).collect();
            assert_eq!(first, answers());
            let (rules, shorthand) = policy.counts();
            return format!("{rules} {shorthand}");
        }
        Err(found) => found,
    };
    for one in &found {
        assert!(!one.message.is_empty(), "{one:?}");
        let shown = format!("{}{}", one.message, one.help.as_deref().unwrap_or_default());
        assert!(!acts(&shown), "{one:?}");
        if let (Some(line), Some(column)) = (one.line, one.column) {
            let text = &sources.files[&one.file];
            let line = text.split('\n').nth(line as usize - 1);
            let line = line.unwrap_or_else(|| panic!("no such line: {one:?}"));
            assert!(
                column >= 1 && column as usize <= line.chars().count() + 1,
                "{one:?}"
            );
        }
    }
    let mut kinds: Vec<_> = found.iter().map(|one| kind(&one.message)).collect();
    kinds.dedup();
    kinds.truncate(2);
    assert!(!kinds.is_empty());
    kinds.join(" ")
}
