//! Reads bundles, as folders or packed, and the keys that packed ones are trusted by: the policy's only I/O.

mod trust;

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use agentguard_policy::MAX_BYTES;
use agentguard_policy::Sources;

pub use self::trust::read as trusted_keys;
use super::key::KeyError;
use super::pack::{self, MAX_PACKED, PackError, Signer};

/// Files in one bundle.
const MAX_FILES: usize = 4096;

/// Whose folders are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trust {
    /// Any: the caller only looks (`policy check`).
    Anyone,
    /// Every file and every folder from the root down belongs to root and is not writable by others: what is applied.
    Root,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("`{path}`: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("bundle `{0}` is not a folder with a bundle.toml, nor a packed bundle")]
    NotABundle(PathBuf),
    #[error("bundle `{path}`: {source}")]
    Packed { path: PathBuf, source: PackError },
    #[error("trusted key `{path}`: {source}")]
    Key { path: PathBuf, source: KeyError },
    #[error("`{0}` has more than 256 keys; take those out that nobody signs with any more")]
    TooManyKeys(PathBuf),
    #[error("bundle `{0}` is neither a file nor a folder; copy what it links to in its place")]
    Kind(PathBuf),
    #[error(
        "`{path}` belongs to uid {uid}, not to root, who alone may change policies; run `chown root` on it"
    )]
    Owner { path: PathBuf, uid: u32 },
    #[error("`{path}` can be changed by others (mode {mode:o}); run `chmod go-w` on it")]
    Writable { path: PathBuf, mode: u32 },
    #[error("bundle `{0}` is not UTF-8 text")]
    NotText(PathBuf),
    #[error("bundle `{path}` has {what}; a bundle is at most {MAX_FILES} files and {} MiB", MAX_BYTES >> 20)]
    TooLarge { path: PathBuf, what: &'static str },
}

/// A bundle as it was found.
pub struct LoadedBundle {
    pub sources: Sources,
    /// Whose signature it was accepted for; `None` for a folder.
    pub signer: Option<Signer>,
}

/// Reads a folder, or a packed bundle that a key of the folder `keys` has signed.
///
/// # Errors
/// What cannot be read, is too large, or is not to be trusted.
pub fn load(path: &Path, trust: Trust, keys: &Path) -> Result<LoadedBundle, StoreError> {
    let Some(text) = packed(path)? else {
        let sources = read(path, trust)?;
        return Ok(LoadedBundle {
            sources,
            signer: None,
        });
    };
    let keys = trusted_keys(keys, trust)?;
    let (contents, signer) = pack::open(&text, &keys).map_err(|source| StoreError::Packed {
        path: path.to_owned(),
        source,
    })?;
    Ok(LoadedBundle {
        sources: contents.sources,
        signer: Some(signer),
    })
}

/// The text of a packed bundle, not looked at; `None`: it is a folder.
pub fn packed(path: &Path) -> Result<Option<String>, StoreError> {
    if fs::metadata(path).map_err(|e| io_error(path, e))?.is_dir() {
        return Ok(None);
    }
    let (file, _) = open(path)?;
    let bytes = bytes(&file, MAX_PACKED as u64).map_err(|e| io_error(path, e))?;
    let wrong = |source| StoreError::Packed {
        path: path.to_owned(),
        source,
    };
    if !pack::is_packed(&bytes) {
        return Err(StoreError::NotABundle(path.to_owned()));
    }
    if bytes.len() > MAX_PACKED {
        return Err(wrong(PackError::TooLarge));
    }
    let text = String::from_utf8(bytes);
    text.map(Some)
        .map_err(|_| wrong(PackError::Damaged("it is not UTF-8 text".into())))
}

/// Reads every file of the folder. Left out are names that start with a dot (version control, editors), and `README*`
/// and `LICENSE*` at the top; what else is no part of a bundle is an error of [`agentguard_policy::Policy::compile`].
///
/// # Errors
/// What cannot be read, is too large, or is not to be trusted.
pub fn read(folder: &Path, trust: Trust) -> Result<Sources, StoreError> {
    let root = fs::canonicalize(folder).map_err(|source| io_error(folder, source))?;
    if trust == Trust::Root {
        check_all_above(&root)?;
    }
    let mut reader = Reader {
        trust,
        left: MAX_BYTES,
        files: BTreeMap::new(),
    };
    reader.folder(&root, "", 0)?;
    if !reader.files.contains_key("bundle.toml") {
        return Err(StoreError::NotABundle(folder.to_owned()));
    }
    Ok(Sources {
        files: reader.files,
    })
}

struct Reader {
    trust: Trust,
    /// Bytes that may still be read.
    left: usize,
    files: BTreeMap<String, String>,
}

impl Reader {
    fn folder(&mut self, path: &Path, prefix: &str, depth: usize) -> Result<(), StoreError> {
        let meta = fs::symlink_metadata(path).map_err(|source| io_error(path, source))?;
        if !meta.is_dir() {
            return Err(StoreError::NotABundle(path.to_owned()));
        }
        self.check(path, &meta)?;
        for entry in fs::read_dir(path).map_err(|source| io_error(path, source))? {
            let entry = entry.map_err(|source| io_error(path, source))?;
            let path = entry.path();
            let Ok(name) = entry.file_name().into_string() else {
                return Err(StoreError::NotText(path));
            };
            let about = depth == 0 && (name.starts_with("README") || name.starts_with("LICENSE"));
            if name.starts_with('.') || about {
                continue;
            }
            let kind = entry
                .file_type()
                .map_err(|source| io_error(&path, source))?;
            let name = format!("{prefix}{name}");
            if kind.is_dir() && depth < 2 {
                self.folder(&path, &format!("{name}/"), depth + 1)?;
            } else if kind.is_file() {
                let text = self.file(&path)?;
                self.files.insert(name, text);
            } else {
                return Err(StoreError::Kind(path));
            }
            if self.files.len() > MAX_FILES {
                return Err(StoreError::TooLarge {
                    path,
                    what: "too many files",
                });
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path) -> Result<String, StoreError> {
        let (file, meta) = open(path)?;
        self.check(path, &meta)?;
        let bytes = bytes(&file, self.left as u64).map_err(|source| io_error(path, source))?;
        self.left = self
            .left
            .checked_sub(bytes.len())
            .ok_or_else(|| StoreError::TooLarge {
                path: path.to_owned(),
                what: "too many bytes",
            })?;
        String::from_utf8(bytes).map_err(|_| StoreError::NotText(path.to_owned()))
    }

    fn check(&self, path: &Path, meta: &Metadata) -> Result<(), StoreError> {
        match self.trust {
            Trust::Anyone => Ok(()),
            Trust::Root => check_owner(path, meta).and_then(|()| check_mode(path, meta)),
        }
    }
}

/// A regular file, which no link leads to, and what is known of it as it was opened: what is checked is what is read.
fn open(path: &Path) -> Result<(File, Metadata), StoreError> {
    let open = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path);
    let file = open.map_err(|source| io_error(path, source))?;
    let meta = file.metadata().map_err(|source| io_error(path, source))?;
    if !meta.is_file() {
        return Err(StoreError::Kind(path.to_owned()));
    }
    Ok((file, meta))
}

/// The file's bytes; one more than `limit` where there are more.
fn bytes(file: &File, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn check_all_above(root: &Path) -> Result<(), StoreError> {
    for above in root.ancestors().skip(1) {
        let meta = fs::metadata(above).map_err(|source| io_error(above, source))?;
        check_above(above, &meta)?;
    }
    Ok(())
}

/// A folder above the bundle: who can rename its entries can put another bundle in place. The sticky bit prevents that.
fn check_above(path: &Path, meta: &Metadata) -> Result<(), StoreError> {
    check_owner(path, meta)?;
    if meta.mode() & libc::S_ISVTX != 0 {
        return Ok(());
    }
    check_mode(path, meta)
}

fn check_owner(path: &Path, meta: &Metadata) -> Result<(), StoreError> {
    if meta.uid() == 0 {
        return Ok(());
    }
    Err(StoreError::Owner {
        path: path.to_owned(),
        uid: meta.uid(),
    })
}

fn check_mode(path: &Path, meta: &Metadata) -> Result<(), StoreError> {
    if meta.mode() & (libc::S_IWGRP | libc::S_IWOTH) == 0 {
        return Ok(());
    }
    Err(StoreError::Writable {
        path: path.to_owned(),
        mode: meta.mode() & 0o7777,
    })
}

fn io_error(path: &Path, source: io::Error) -> StoreError {
    StoreError::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn bundle() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("agents")).unwrap();
        for (name, text) in [
            ("bundle.toml", "name = \"b\"\n"),
            ("agents/a.toml", "x"),
            ("README.md", "about"),
            (".hidden", "x"),
        ] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        for path in ["", "agents", "bundle.toml", "agents/a.toml"] {
            let mode = if path.contains('.') { 0o644 } else { 0o755 };
            fs::set_permissions(dir.path().join(path), fs::Permissions::from_mode(mode)).unwrap();
        }
        dir
    }

    #[test]
    fn a_folder_is_read_with_names_below_it() {
        let dir = bundle();
        let sources = read(dir.path(), Trust::Anyone).unwrap();
        let names: Vec<_> = sources.files.keys().collect();
        assert_eq!(names, ["agents/a.toml", "bundle.toml"]);
    }

    #[test]
    fn only_what_root_alone_can_change_is_trusted() {
        // Ownership can be judged only as root.
        if fs::metadata(bundle().path()).unwrap().uid() != 0 {
            return;
        }
        let dir = bundle();
        assert!(read(dir.path(), Trust::Root).is_ok());
        fs::set_permissions(dir.path().join("agents"), fs::Permissions::from_mode(0o775)).unwrap();
        assert!(matches!(
            read(dir.path(), Trust::Root),
            Err(StoreError::Writable { .. })
        ));
        assert!(read(dir.path(), Trust::Anyone).is_ok());
        let dir = bundle();
        std::os::unix::fs::chown(dir.path().join("agents/a.toml"), Some(65534), None).unwrap();
        assert!(matches!(
            read(dir.path(), Trust::Root),
            Err(StoreError::Owner { uid: 65534, .. })
        ));
        let dir = bundle();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let below = dir.path().join("agents");
        assert!(matches!(
            check_above(dir.path(), &fs::metadata(dir.path()).unwrap()),
            Err(StoreError::Writable { .. })
        ));
        assert!(check_above(&below, &fs::metadata(&below).unwrap()).is_ok());
    }

    #[test]
    fn links_and_special_files_are_refused() {
        let dir = bundle();
        symlink("/etc/hostname", dir.path().join("agents/b.toml")).unwrap();
        assert!(matches!(
            read(dir.path(), Trust::Anyone),
            Err(StoreError::Kind(_))
        ));
        let dir = bundle();
        fs::write(dir.path().join("agents/b.toml"), [0xff]).unwrap();
        assert!(matches!(
            read(dir.path(), Trust::Anyone),
            Err(StoreError::NotText(_))
        ));
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            read(dir.path(), Trust::Anyone),
            Err(StoreError::NotABundle(_))
        ));
        assert!(matches!(
            read(&dir.path().join("none"), Trust::Anyone),
            Err(StoreError::Io { .. })
        ));
    }
}
