//! One test's private world: a folder, a CA, a configuration, and the right to hold the kernel's hooks.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::bundle::Bundle;
use crate::client::{Client, Subject};
use crate::names;
use crate::pki::Ca;
use crate::tools::{CLIENT_PATH, ORIGIN, agentguard};
use crate::turn::Turn;

pub struct Site {
    scratch: TempDir,
    ca: Ca,
    pins: PathBuf,
    // Released last.
    _turn: Turn,
}

impl Site {
    pub fn new() -> Self {
        let turn = Turn::alone();
        let scratch = tempfile::Builder::new()
            .prefix("agentguard-test-")
            .tempdir()
            .expect("a folder");
        let root = scratch.path();
        for below in ["home", "trust", "tls", "policies", "files"] {
            fs::create_dir(root.join(below)).expect("a folder");
        }
        let ca = Ca::new(&root.join("tls"), "test-ca");
        fs::write(
            root.join("hosts"),
            format!("127.0.0.1 localhost {ORIGIN}\n::1 localhost\n"),
        )
        .expect("written");
        let pins = Path::new("/sys/fs/bpf").join(names::unique());
        let site = Self {
            scratch,
            ca,
            pins,
            _turn: turn,
        };
        site.configure(|_| {});
        site
    }

    pub fn ca(&self) -> &Ca {
        &self.ca
    }

    pub fn dir(&self) -> &Path {
        self.scratch.path()
    }

    /// A path below the site's folder.
    pub fn path(&self, below: &str) -> PathBuf {
        self.dir().join(below)
    }

    pub fn pins(&self) -> &Path {
        &self.pins
    }

    pub fn config(&self) -> PathBuf {
        self.path("agentguard.toml")
    }

    pub fn audit_dir(&self) -> PathBuf {
        self.path("state/audit")
    }

    /// Writes the configuration anew: everything private, the test CA trusted, loopback allowed, then `change`.
    pub fn configure(&self, change: impl FnOnce(&mut toml::Table)) {
        let base = format!(
            r#"
[paths]
state = "{dir}/state"
runtime = "{dir}/run"
pins = "{pins}"
trust = "{dir}/trust"

[policy]
bundle = "{dir}/policies"

[forwarder]
# Exists everywhere and owns nothing.
user = "nobody"

[upstream]
roots = ["{ca}"]
hosts = {{ "{ORIGIN}" = "127.0.0.1" }}
allow_addresses = ["127.0.0.0/8", "::1/128"]

[audit]
durability = "batched"
"#,
            dir = self.dir().display(),
            pins = self.pins.display(),
            ca = self.ca.certificate().display(),
        );
        let mut table: toml::Table = base.parse().expect("the base is TOML");
        change(&mut table);
        fs::write(self.config(), table.to_string()).expect("written");
    }

    /// Puts the bundle where the daemon finds it at start.
    pub fn install(&self, bundle: &Bundle) {
        bundle.write(&self.path("policies"));
    }

    /// `agentguard VERB --config … ARGS`, as an operator without any environment.
    pub fn cli<S: AsRef<str>>(&self, words: impl IntoIterator<Item = S>) -> Client {
        let mut words = words.into_iter();
        let verb = words.next().expect("a verb");
        let mut client = Client::new(agentguard()).arg(verb.as_ref());
        // A verb's own verb comes first: `audit search --config …`.
        let mut rest: Vec<String> = words.map(|word| word.as_ref().to_owned()).collect();
        if matches!(
            verb.as_ref(),
            "agents" | "task" | "policy" | "audit" | "ca" | "approvals"
        ) && rest.first().is_some_and(|word| !word.starts_with('-'))
        {
            client = client.arg(rest.remove(0));
        }
        client
            .arg("--config")
            .arg(self.config())
            .args(rest)
            .env("PATH", CLIENT_PATH)
            .env("HOME", self.path("home"))
    }
}

impl Default for Site {
    fn default() -> Self {
        Self::new()
    }
}

/// The control: the same client without AgentGuard. It finds the origin in a private `/etc/hosts` and trusts the site's CA.
impl Subject for Site {
    fn client(&self, program: &Path) -> Client {
        const ENTER: &str = "mount --bind \"$1\" /etc/hosts && mount --bind \"$2\" \
            /etc/ssl/certs/ca-certificates.crt && shift 2 && exec \"$@\"";
        let ca = self.ca.certificate();
        let mut client = Client::new("unshare")
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                ENTER,
                "sh",
            ])
            .arg(self.path("hosts"))
            .arg(ca)
            .arg(program)
            .env("PATH", CLIENT_PATH)
            .env("HOME", self.path("home"));
        for variable in CA_VARIABLES {
            client = client.env(variable, ca);
        }
        client
    }
}

/// Where clients look for a CA bundle when it is not the system's.
const CA_VARIABLES: [&str; 9] = [
    "AWS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "NODE_EXTRA_CA_CERTS",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
    "npm_config_cafile",
];
