//! The trust folder: whose packed bundles are accepted.

use std::fs;
use std::io;
use std::path::Path;

use super::{StoreError, Trust, check_above, check_mode, check_owner, io_error, open};
use crate::key::PublicKey;
use crate::pack::TrustedKey;

/// Keys in the folder.
const MAX_KEYS: usize = 256;
/// Bytes of a key's file.
const MAX_BYTES: u64 = 4096;

/// Every `*.pub` in the folder. One that is no key is an error: it may be the one that was meant. No folder, no key.
pub fn read(folder: &Path, trust: Trust) -> Result<Vec<TrustedKey>, StoreError> {
    let entries = match fs::canonicalize(folder).and_then(|root| Ok((fs::read_dir(&root)?, root))) {
        Ok((entries, root)) => {
            if trust == Trust::Root {
                super::check_all_above(&root)?;
                check_above(&root, &fs::metadata(&root).map_err(|e| io_error(&root, e))?)?;
            }
            entries
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error(folder, error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| io_error(folder, e))?.path();
        if path.extension().is_some_and(|ending| ending == "pub") {
            paths.push(path);
        }
    }
    // The same error each time, whatever order the folder has.
    paths.sort();
    if paths.len() > MAX_KEYS {
        return Err(StoreError::TooManyKeys(folder.to_owned()));
    }
    paths.iter().map(|path| key(path, trust)).collect()
}

fn key(path: &Path, trust: Trust) -> Result<TrustedKey, StoreError> {
    let (file, meta) = open(path)?;
    if trust == Trust::Root {
        check_owner(path, &meta).and_then(|()| check_mode(path, &meta))?;
    }
    let pem = super::bytes(&file, MAX_BYTES).map_err(|e| io_error(path, e))?;
    let key = PublicKey::from_pem(&pem).map_err(|source| StoreError::Key {
        path: path.to_owned(),
        source,
    })?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    Ok(TrustedKey {
        name: name.into_owned(),
        key,
    })
}
