//! What `policy check`, `test`, `diff` and `explain` print: a bundle's errors with the lines they are on, what its cases
//! get, and why. Needs no daemon.

mod cases;
#[cfg(test)]
mod damaged;
mod errors;
mod explanation;
mod layout;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use agentguard_bundle::pack::Signer;
use agentguard_bundle::store::{self, LoadedBundle, StoreError, Trust};
use agentguard_common::abi::AgentId;
use agentguard_policy::{Diagnostic, Policy, Reassignment, Sources};
use serde_json::{Value, json};

pub use self::cases::{changes_text, tested_text};
pub use self::errors::diagnostics_text;
pub use self::explanation::explanation_text;
use self::layout::{blanked, count, paint};

/// A bundle, read and compiled.
pub struct CheckedBundle {
    pub sources: Sources,
    /// Whose signature a packed one was accepted for.
    pub signer: Option<Signer>,
    pub result: Result<Policy, Vec<Diagnostic>>,
}

/// # Errors
/// What keeps the folder or packed bundle from being read; a packed one has to be signed by a key of the folder `keys`.
pub fn check(bundle: &Path, keys: &Path) -> Result<CheckedBundle, StoreError> {
    let LoadedBundle { sources, signer } = store::load(bundle, Trust::Anyone, keys)?;
    let result = compile(&sources, &BTreeMap::new());
    Ok(CheckedBundle {
        sources,
        signer,
        result,
    })
}

/// Compiles a bundle that no host has given ids for its agents, which nothing here depends on.
pub fn compile(
    sources: &Sources,
    owners: &BTreeMap<String, Reassignment>,
) -> Result<Policy, Vec<Diagnostic>> {
    let ids: BTreeMap<_, _> = Policy::agent_names(sources)
        .into_iter()
        .zip(AgentId::FIRST..)
        .map(|(name, id)| (name, AgentId(id)))
        .collect();
    Policy::compile_with(sources, &ids, owners)
}

impl CheckedBundle {
    pub fn text(&self, colour: bool) -> String {
        let mut text = match &self.result {
            Err(found) => diagnostics_text(&self.sources, found, colour),
            Ok(policy) => {
                let meta = policy.meta();
                let (rules, shorthand) = policy.counts();
                let signed = self.signer.as_ref().map_or(String::new(), |by| {
                    format!(", signed by {} ({})", by.name, by.key)
                });
                format!(
                    "bundle `{}` is valid: serial {}, {}, {}, {} of shorthand{signed}\n",
                    meta.name,
                    meta.serial,
                    count(policy.agents().count(), "agent"),
                    count(rules, "rule"),
                    count(shorthand, "permit"),
                )
            }
        };
        for note in self.notes() {
            let head = paint(colour, "1;36", "note:");
            let _ = writeln!(text, "{head} {}", blanked(note));
        }
        text
    }

    pub fn json(&self) -> Value {
        let meta = self.result.as_ref().ok().map(Policy::meta);
        let errors = self.result.as_ref().err().map_or(&[][..], Vec::as_slice);
        json!({
            "valid": self.result.is_ok(),
            "bundle": meta,
            "signer": self.signer,
            "errors": errors,
            "notes": self.notes(),
        })
    }

    fn notes(&self) -> &[String] {
        self.result.as_ref().map_or(&[], Policy::notes)
    }
}

#[cfg(test)]
mod tests {
    use super::layout::WIDTH;
    use super::*;
    use agentguard_policy::explain::Question;

    fn checked(files: &[(&str, &str)]) -> CheckedBundle {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        check(dir.path(), dir.path()).unwrap()
    }

    const MANIFEST: (&str, &str) = ("bundle.toml", "name = \"b\"\nserial = 3\n");

    #[test]
    fn errors_show_their_line() {
        let agent =
            "[agent]\nname = \"a\"\nowner = \"o\"\n[[reach]]\nhost = \"h\"\nallows = [\"GET /\"]\n";
        let found = checked(&[MANIFEST, ("agents/a.toml", agent), ("agents/b.txt", "")]);
        let expected = "\
error: unknown key `allows` in [[reach]]
 --> agents/a.toml:6:1
  |
6 | allows = [\"GET /\"]
  | ^^^^^^
  = help: did you mean `allow`?

error: the file is no part of a bundle
 --> agents/b.txt
 = help: a bundle has bundle.toml, agents/*.toml, hosts/*.toml, rules/*.cedar and tests/*.toml

error: the bundle is not valid: 2 errors in 2 files
";
        assert_eq!(found.text(false), expected);
        let json = found.json();
        assert_eq!(json["valid"], false);
        assert_eq!(json["errors"][0]["line"], 6);
    }

    #[test]
    fn a_good_bundle_is_summed_up() {
        let agent =
            "[agent]\nname = \"a\"\nowner = \"o\"\n[[reach]]\nhost = \"h\"\nallow = [\"GET /\"]\n";
        let found = checked(&[MANIFEST, ("agents/a.toml", agent)]);
        assert_eq!(
            found.text(false),
            "bundle `b` is valid: serial 3, 1 agent, 0 rules, 1 permit of shorthand\n"
        );
        assert_eq!(found.json()["bundle"]["serial"], 3);
        let host = ("hosts/h.toml", "[host]\nname = \"x\"\n");
        let found = checked(&[MANIFEST, ("agents/a.toml", agent), host]);
        let text = found.text(false);
        assert!(
            text.contains("\nnote: hosts/h.toml:2: no agent reaches `x`\n"),
            "{text}"
        );
    }

    #[test]
    fn long_lines_and_messages_stay_within_the_width() {
        let agent = format!(
            "[agent]\nname = \"a\"\nowner = \"o\"\nstart_by = [{}\"x{}\"]\n",
            "\"user:u\", ".repeat(30),
            "y ".repeat(60)
        );
        let text = checked(&[MANIFEST, ("agents/a.toml", &agent)]).text(false);
        assert!(text.contains('^'), "{text}");
        for line in text.lines() {
            assert!(
                line.chars().count() <= WIDTH,
                "{} columns: {line}",
                line.chars().count()
            );
        }
    }

    #[test]
    fn explanations_name_the_policies_and_their_lines() {
        let agent = "[agent]\nname = \"a\"\nowner = \"o\"\n[[reach]]\nhost = \"h\"\nallow = [\"GET /x/**\"]\n";
        let rules = "@id(\"no\")\nforbid (principal, action, resource) when { context.query.hasTag(\"n\") };\n@id(\"big\")\npermit (principal, action == Action::\"GET\", resource) when { context.segments > 5 };\n";
        let found = checked(&[MANIFEST, ("agents/a.toml", agent), ("rules/r.cedar", rules)]);
        let ask = |policy: &Policy, url: &str| {
            let question = Question {
                agent: "a".into(),
                method: "GET".into(),
                url: url.into(),
                ..Question::default()
            };
            policy.explain(&question).unwrap()
        };
        let policy = found.result.as_ref().unwrap();
        let explain = |url: &str| explanation_text(&ask(policy, url), false);
        let expected = "\
refused: a GET /x/y at h
why       forbidden by `no`
reason    policy-denied
reach     h (every request decided), agents/a.toml:5
read      method = GET
read      path = /x/y
read      query.n = 1

policies that can apply
  forbids             no                    rules/r.cedar:1
  permits             a/agents/a.toml:6:10  agents/a.toml:6
  conditions not met  big                   rules/r.cedar:3
";
        assert_eq!(explain("https://h/x/y?n=1"), expected);
        assert!(
            explain("https://h:8443/")
                .contains("no [[reach]] of the agent covers `h:8443`; the nearest is `h`")
        );
        let two = explain("https://h/x%2Fy");
        assert!(
            two.contains("\npolicies that can apply, as it is written, which decides\n")
                && two.contains(
                    "\npolicies that can apply, if it is read as GET `/x/y` (decoded once more)\n"
                ),
            "{two}"
        );
        let decided = explain("https://h/X/y;v=1");
        assert!(
            decided.contains("as it is written, which decides"),
            "{decided}"
        );

        let observed = agent.replace("owner = ", "mode = \"observe\"\nowner = ");
        let found = checked(&[
            MANIFEST,
            ("agents/a.toml", &observed),
            ("rules/r.cedar", rules),
        ]);
        let policy = found.result.as_ref().unwrap();
        let denied = ask(policy, "https://h/x/y?n=1");
        assert!(!denied.permitted && denied.observed);
        let text = explanation_text(&denied, false);
        assert!(
            text.starts_with(
                "let through, being observed: a GET /x/y at h\nwhy       forbidden by `no`\n"
            ),
            "{text}"
        );
        assert!(!ask(policy, "https://h/x/y").observed, "it is permitted");
    }
}
