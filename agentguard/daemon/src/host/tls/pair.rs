//! The CA's two files. Both are written whole or not at all; a key that anyone else can read is never used.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use agentguard_sys::file::write_atomically;
use zeroize::Zeroizing;

use super::ca::CaError;

const KEY_MODE: u32 = 0o600;
const CERTIFICATE_MODE: u32 = 0o644;
/// Larger than any PEM we write; what is longer is not ours.
const MAX_BYTES: u64 = 64 * 1024;

/// Where the pair is.
pub(super) struct Paths {
    pub(super) dir: PathBuf,
    pub(super) key: PathBuf,
    pub(super) certificate: PathBuf,
}

impl Paths {
    pub(super) fn below(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            key: dir.join("ca.key"),
            certificate: dir.join("ca.crt"),
        }
    }

    /// The key's PEM, `None` if there is none.
    pub(super) fn read_key(&self) -> Result<Option<Zeroizing<String>>, CaError> {
        let path = &self.key;
        let Some(mut file) = open(path)? else {
            return Ok(None);
        };
        let meta = file
            .metadata()
            .map_err(|error| CaError::io("stat", path, error))?;
        if !meta.is_file()
            || meta.uid() != nix::unistd::geteuid().as_raw()
            || meta.mode() & 0o077 != 0
        {
            return Err(CaError::KeyExposed {
                path: path.clone(),
                uid: meta.uid(),
                mode: meta.mode() & 0o7777,
            });
        }
        read(path, &mut file).map(|pem| Some(Zeroizing::new(pem)))
    }

    /// The certificate's PEM, `None` if there is none.
    pub(super) fn read_certificate(&self) -> Result<Option<String>, CaError> {
        match open(&self.certificate)? {
            Some(mut file) => read(&self.certificate, &mut file).map(Some),
            None => Ok(None),
        }
    }

    pub(super) fn write_key(&self, pem: &str) -> Result<(), CaError> {
        self.write(&self.key, pem, KEY_MODE)
    }

    pub(super) fn write_certificate(&self, pem: &str) -> Result<(), CaError> {
        self.write(&self.certificate, pem, CERTIFICATE_MODE)
    }

    fn write(&self, path: &Path, content: &str, mode: u32) -> Result<(), CaError> {
        write_atomically(path, content.as_bytes(), mode).map_err(|error| CaError::Sys {
            path: path.to_owned(),
            source: error,
        })
    }
}

fn open(path: &Path) -> Result<Option<File>, CaError> {
    match OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
    {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(CaError::io("open", path, error)),
    }
}

fn read(path: &Path, file: &mut File) -> Result<String, CaError> {
    // In one allocation, so that no copy of a key is left behind by growth.
    let mut text = String::with_capacity(MAX_BYTES as usize);
    file.take(MAX_BYTES)
        .read_to_string(&mut text)
        .map_err(|error| CaError::io("read", path, error))?;
    Ok(text)
}
