//! Files that are there whole or not at all, and folders only root has.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::{Result, SysError};

/// Replaces `path` by `content`, durable when this returns; readers see the old or the new file.
pub fn write_atomically(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let next = path.with_extension("next");
    // What a crash left may be open elsewhere, and was made with another mode.
    match fs::remove_file(&next) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(SysError::io("unlink")(error));
        }
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&next)
        .map_err(SysError::io("open"))?;
    file.set_permissions(fs::Permissions::from_mode(mode))
        .map_err(SysError::io("fchmod"))?;
    file.write_all(content).map_err(SysError::io("write"))?;
    file.sync_all().map_err(SysError::io("fsync"))?;
    rename_durably(&next, path)
}

/// `rename(2)`, and the folder made durable.
pub fn rename_durably(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(SysError::io("rename"))?;
    // Of a bare name the parent is empty.
    let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))
        .and_then(|dir| dir.sync_all())
        .map_err(SysError::io("fsync the folder"))
}

/// Makes the folder, and those above it, or sets the mode of the one that is there.
pub fn ensure_folder(path: &Path, mode: u32) -> Result<()> {
    if !path.is_dir() {
        if let Some(above) = path.parent().filter(|above| !above.is_dir()) {
            fs::create_dir_all(above).map_err(SysError::io("mkdir"))?;
        }
        DirBuilder::new()
            .mode(mode)
            .create(path)
            .map_err(SysError::io("mkdir"))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(SysError::io("chmod"))
}

/// Whether root owns `path` and nobody else may write to it.
pub fn is_roots_alone(path: &Path) -> std::io::Result<bool> {
    let meta = fs::metadata(path)?;
    Ok(meta.uid() == 0 && meta.mode() & 0o022 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_is_whole_and_has_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_atomically(&path, b"long old content", 0o644).unwrap();
        write_atomically(&path, b"new", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_gets_its_mode_and_others_may_not_write() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        ensure_folder(&path, 0o777).unwrap();
        assert!(!is_roots_alone(&path).unwrap());
        ensure_folder(&path, 0o700).unwrap();
        assert_eq!(
            is_roots_alone(&path).unwrap(),
            nix::unistd::geteuid().is_root()
        );
    }
}
