//! `agentguard ca`: the certificate that agents must trust, and the variables that make clients trust it.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use agentguard_daemon::tls::ca::Info;
use clap::Subcommand;
use jiff::Timestamp;

#[derive(Clone, Debug, Subcommand)]
pub enum CaCommand {
    /// The CA certificate of this host
    Show {
        /// One JSON object
        #[arg(long)]
        json: bool,
        /// The certificate alone, PEM
        #[arg(long, conflicts_with = "json")]
        pem: bool,
    },
    /// Shell lines that set the variables clients look at; `agentguard run` sets them by itself
    Env {
        /// A file with the system's roots and the CA certificate [default: the one the daemon keeps]
        #[arg(long, value_name = "FILE")]
        bundle: Option<PathBuf>,
    },
}

/// Variables that name a file of trust anchors; each was seen to work with the clients beside it. Most replace the
/// client's own anchors, so the file must have the system's too. wget and Java look at none: they need the system's store.
pub const BUNDLE_VARIABLES: [&str; 14] = [
    // OpenSSL: curl, Python's ssl, Go, Rust, bun.
    "SSL_CERT_FILE",
    // curl, requests.
    "CURL_CA_BUNDLE",
    // requests, pip, boto3.
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "AWS_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    // Node, deno, bun; adds to their own.
    "NODE_EXTRA_CA_CERTS",
    // npm, where a configured cafile hides the line above.
    "npm_config_cafile",
    "DENO_CERT",
    // grpcio.
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "CARGO_HTTP_CAINFO",
    "HTTPLIB2_CA_CERTS",
    // gcloud.
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
    "NIX_SSL_CERT_FILE",
];

/// Makes Node 24 and bun look at the system's store, which `agentguard run` covers with the same file.
const SYSTEM_STORE: (&str, &str) = ("NODE_USE_SYSTEM_CA", "1");

/// Every variable to set so that clients trust what is in `bundle`.
pub fn variables(bundle: &Path) -> impl Iterator<Item = (&'static str, String)> {
    let bundle = bundle.display().to_string();
    BUNDLE_VARIABLES
        .into_iter()
        .map(move |name| (name, bundle.clone()))
        .chain([(SYSTEM_STORE.0, SYSTEM_STORE.1.to_owned())])
}

/// Prints what the command asks for. `info`: what the daemon says of its CA; `bundle`: the combined file it keeps.
pub fn run(command: &CaCommand, info: &Info, bundle: &Path) -> anyhow::Result<ExitCode> {
    let text = match command {
        CaCommand::Show { json: true, .. } => serde_json::to_string(info)? + "\n",
        CaCommand::Show { pem: true, .. } => info.pem.clone(),
        CaCommand::Show { .. } => show(info),
        CaCommand::Env { bundle: given } => env(given.as_deref().unwrap_or(bundle)),
    };
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn show(info: &Info) -> String {
    let time = |seconds| Timestamp::from_second(seconds).unwrap_or_default();
    format!(
        "subject     {}\nsha256      {}\nvalid from  {}\nvalid to    {}\nfile        {}\n\n{}",
        info.subject,
        info.sha256,
        time(info.not_before),
        time(info.not_after),
        info.path.display(),
        info.pem,
    )
}

fn env(bundle: &Path) -> String {
    let mut lines = String::new();
    for (name, value) in variables(bundle) {
        // Writing to a string cannot fail.
        let _ = writeln!(lines, "export {name}='{}'", value.replace('\'', r"'\''"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_back_what_env_prints() {
        let bundle = Path::new("/tmp/it's $HOME/`bundle`.pem");
        let script = env(bundle) + "env -0";
        let output = std::process::Command::new("sh")
            .env_clear()
            .args(["-c", &script])
            .output()
            .unwrap();
        let set = String::from_utf8(output.stdout).unwrap();
        let set: Vec<&str> = set.split('\0').collect();
        for name in BUNDLE_VARIABLES {
            let expected = format!("{name}={}", bundle.display());
            assert!(
                set.contains(&expected.as_str()),
                "{expected} not in {set:?}"
            );
        }
        assert!(set.contains(&"NODE_USE_SYSTEM_CA=1"));
    }
}
