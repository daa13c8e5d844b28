//! Policies put together by a test, as files of a bundle.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Files of one bundle: path below its folder → text.
#[derive(Clone, Debug)]
pub struct Bundle {
    files: BTreeMap<String, String>,
}

impl Bundle {
    pub fn new(serial: u64) -> Self {
        Self {
            files: BTreeMap::new(),
        }
        .file(
            "bundle.toml",
            format!("name = \"test\"\nserial = {serial}\nmode = \"enforce\"\n"),
        )
    }

    /// Any file, replacing one of that path.
    pub fn file(mut self, path: &str, text: impl Into<String>) -> Self {
        self.files.insert(path.to_owned(), text.into());
        self
    }

    /// An agent: its head, then `body` of further tables.
    pub fn agent(self, name: &str, body: &str) -> Self {
        self.file(
            &format!("agents/{name}.toml"),
            format!("[agent]\nname = \"{name}\"\nowner = \"{name}-owner@example.com\"\nrisk = \"low\"\n\n{body}"),
        )
    }

    pub fn rules(self, name: &str, cedar: &str) -> Self {
        self.file(&format!("rules/{name}.cedar"), cedar)
    }

    /// Makes `dir` hold exactly this bundle, as its owner alone may write it.
    pub fn write(&self, dir: &Path) {
        use std::os::unix::fs::PermissionsExt;
        if dir.exists() {
            fs::remove_dir_all(dir).expect("removed");
        }
        fs::create_dir_all(dir).expect("a folder");
        for (path, text) in &self.files {
            let path = dir.join(path);
            let parent = path.parent().expect("below the bundle's folder");
            fs::create_dir_all(parent).expect("a folder");
            fs::set_permissions(parent, fs::Permissions::from_mode(0o755)).expect("set");
            fs::write(path, text).expect("written");
        }
    }
}

/// A `[[reach]]` table for a host, with routes in the shorthand.
pub fn reach(host: &str, port: u16, routes: &[&str]) -> String {
    format!("[[reach]]\nhost = \"{host}:{port}\"\nallow = {routes:?}\n\n")
}

/// A `[[reach]]` table for what only the kernel judges.
pub fn direct(to: &str, proto: &str) -> String {
    format!("[[reach]]\nto = \"{to}\"\nproto = \"{proto}\"\n\n")
}
