//! `agentguard policy keygen`, `pack` and `sign`: bundles as single files, and the keys that vouch for them. Needs no daemon.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use agentguard_bundle::key::{PublicKey, SecretKey};
use agentguard_bundle::pack::{self, Contents, PackError};
use agentguard_bundle::store;
use agentguard_sys::file::write_atomically;
use clap::Args;
use rcgen::{KeyPair, PKCS_ED25519};
use serde_json::json;
use zeroize::Zeroizing;

use super::policy::{INVALID, valid};
use super::status::short;
use super::{Failure, print, print_json};

/// Bytes of a private key's file.
const MAX_KEY: u64 = 4096;

#[derive(Debug, Args)]
pub(super) struct Keygen {
    /// What the files are called, and the signer in records
    #[arg(default_value = "policy")]
    name: String,
    /// The folder to put them in
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Pack {
    /// The bundle's folder
    dir: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// The private key to sign it with; without, `policy sign` does so later
    #[arg(long, value_name = "KEY")]
    key: Option<PathBuf>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Sign {
    /// The packed bundle; it gets one more signature
    file: PathBuf,
    /// The private key
    #[arg(long, value_name = "KEY")]
    key: PathBuf,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// `NAME.key` for its owner alone, `NAME.pub` for trust folders. Replaces nothing.
pub(super) fn keygen(arguments: &Keygen) -> Result<ExitCode, Failure> {
    let name = &arguments.name;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
        let why = format!("`{name}` is no name for a key; use letters, digits, `-`, `_` and `.`");
        return Err(Failure::new(2, why));
    }
    let key = KeyPair::generate_for(&PKCS_ED25519)
        .map_err(|error| Failure::new(1, format!("cannot make a key: {error}")))?;
    let public_pem = key.public_key_pem();
    let id = PublicKey::from_pem(public_pem.as_bytes()).map_err(|e| Failure::new(1, e))?;
    let secret = arguments.out.join(format!("{name}.key"));
    let public = arguments.out.join(format!("{name}.pub"));
    if public.exists() {
        return Err(there_already(&public));
    }
    let pem = Zeroizing::new(key.serialize_pem());
    create(&secret, pem.as_bytes(), 0o600)?;
    create(&public, public_pem.as_bytes(), 0o644)?;
    if arguments.json {
        return print_json(&json!({
            "id": id.id(),
            "private_key": secret,
            "public_key": public,
        }));
    }
    print(&format!(
        "key {}\n{}  sign with it, and keep it to yourself\n{}  put it into the trust folder of every host that shall accept it\n",
        id.id(),
        secret.display(),
        public.display()
    ))
}

/// A valid bundle as one file: the same folder and key, the same bytes.
pub(super) fn pack(arguments: &Pack, keys: &Path) -> Result<ExitCode, Failure> {
    let dir = &arguments.dir;
    if !dir.is_dir() {
        let why = format!("`{}` is no folder with a bundle in it", dir.display());
        return Err(Failure::new(INVALID, why));
    }
    let key = arguments.key.as_deref().map(secret_key).transpose()?;
    let checked = valid(dir, keys)?;
    let meta = checked.policy.meta().clone();
    let mut text = pack::pack(&checked.sources, &meta);
    if let Some(key) = &key {
        pack::sign(&mut text, key).map_err(|e| about(dir, e))?;
    }
    let contents = Contents {
        meta,
        sources: checked.sources,
    };
    write(&arguments.out, &text)?;
    tell(&arguments.out, &contents, key.as_ref(), arguments.json)
}

pub(super) fn sign(arguments: &Sign) -> Result<ExitCode, Failure> {
    let file = &arguments.file;
    let key = secret_key(&arguments.key)?;
    let packed = store::packed(file).map_err(|e| Failure::new(INVALID, e))?;
    let Some(mut text) = packed else {
        let why = format!(
            "`{}` is a folder; `agentguard policy pack` makes a file of it that can be signed",
            file.display()
        );
        return Err(Failure::new(INVALID, why));
    };
    let (contents, _) = pack::look(&text).map_err(|e| about(file, e))?;
    pack::sign(&mut text, &key).map_err(|e| about(file, e))?;
    write(file, &text)?;
    tell(file, &contents, Some(&key), arguments.json)
}

fn tell(
    file: &Path,
    contents: &Contents,
    key: Option<&SecretKey>,
    json: bool,
) -> Result<ExitCode, Failure> {
    let id = key.map(SecretKey::id);
    let meta = &contents.meta;
    if json {
        return print_json(&json!({ "file": file, "bundle": meta, "key": id }));
    }
    let signed = id.map_or("not signed".to_owned(), |id| format!("signed by {id}"));
    print(&format!(
        "{}: {} serial {} ({}), {signed}\n",
        file.display(),
        meta.name,
        meta.serial,
        short(&meta.digest)
    ))
}

fn secret_key(path: &Path) -> Result<SecretKey, Failure> {
    let shown = path.display();
    let cannot = |error| Failure::new(1, format!("cannot read the key `{shown}`: {error}"));
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
        .map_err(cannot)?;
    let mode = file.metadata().map_err(cannot)?.mode();
    if mode & 0o077 != 0 {
        let why = format!(
            "the key `{shown}` can be read by others (mode {:o}); run `chmod 600` on it, and make another if somebody may have",
            mode & 0o7777
        );
        return Err(Failure::new(1, why));
    }
    let mut pem = Zeroizing::new(String::new());
    file.take(MAX_KEY)
        .read_to_string(&mut pem)
        .map_err(cannot)?;
    SecretKey::from_pem(&pem).map_err(|e| Failure::new(1, format!("the key `{shown}`: {e}")))
}

fn about(file: &Path, error: PackError) -> Failure {
    Failure::new(INVALID, format!("bundle `{}`: {error}", file.display()))
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    if path.is_dir() {
        let why = format!("`{}` is a folder; name a file", path.display());
        return Err(Failure::new(1, why));
    }
    write_atomically(path, text.as_bytes(), 0o644)
        .map_err(|e| Failure::new(1, format!("cannot write `{}`: {e}", path.display())))
}

/// A file that was not there.
fn create(path: &Path, content: &[u8], mode: u32) -> Result<(), Failure> {
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| {
            let written = file.write_all(content).and_then(|()| file.sync_all());
            if written.is_err() {
                let _ = fs::remove_file(path);
            }
            written
        });
    made.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => there_already(path),
        _ => Failure::new(1, format!("cannot write `{}`: {error}", path.display())),
    })
}

fn there_already(path: &Path) -> Failure {
    let shown = path.display();
    Failure::new(
        1,
        format!(
            "`{shown}` is there already; give another name, or remove it if nothing is signed with it"
        ),
    )
}
