//! What a machine is given: an initramfs with the tests, what they run, the kernel's modules that they may need, and all
//! the shared libraries of these, as the host has them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufWriter, Read as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::cpio::Archive;
use super::fetch::Unpacked;
use crate::shell::{self, command};

/// Debian's own, whatever else is first on `PATH`.
const PROGRAMS: [&str; 30] = [
    "/usr/bin/bash",
    "/usr/bin/cat",
    "/usr/bin/cp",
    "/usr/bin/curl",
    "/usr/bin/dash",
    "/usr/bin/dd",
    "/usr/bin/echo",
    "/usr/bin/env",
    "/usr/bin/git",
    "/usr/bin/id",
    "/usr/bin/kill",
    "/usr/bin/ln",
    "/usr/bin/ls",
    "/usr/bin/mount",
    "/usr/bin/nsenter",
    "/usr/bin/openssl",
    "/usr/bin/prlimit",
    "/usr/bin/python3",
    "/usr/bin/rm",
    "/usr/bin/sh",
    "/usr/bin/setpriv",
    "/usr/bin/setsid",
    "/usr/bin/sleep",
    "/usr/bin/true",
    "/usr/bin/umount",
    "/usr/bin/unshare",
    "/usr/sbin/fcgiwrap",
    "/usr/sbin/ip",
    "/usr/sbin/modprobe",
    "/usr/sbin/nginx",
];

/// Loaded by the kernel when a test asks for what they do. What the kernel has built in is not missed.
const MODULES: [&str; 20] = [
    "af_key",
    "dccp",
    "dummy",
    "inet_diag",
    "mptcp_diag",
    "nf_tables",
    "overlay",
    "raw_diag",
    "rds",
    "sctp",
    "smc",
    "tcp_diag",
    "tipc",
    "tun",
    "udp_diag",
    "unix_diag",
    "veth",
    "vsock",
    "vsock_loopback",
    "xsk_diag",
];

/// What the programs read.
const COPIES: [&str; 2] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/usr/lib/ssl/openssl.cnf",
];

const FILES: [(&str, &str); 7] = [
    (
        "etc/passwd",
        "root:x:0:0::/root:/usr/bin/sh\nnobody:x:65534:65534::/:/usr/bin/sh\nagentguard:x:990:990::/:/usr/bin/sh\nuser:x:1000:1000::/home/user:/usr/bin/sh\n",
    ),
    (
        "etc/group",
        "root:x:0:\nnogroup:x:65534:\nagentguard:x:990:\nuser:x:1000:\n",
    ),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/hostname", "machine\n"),
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files dns\n",
    ),
    ("etc/resolv.conf", "nameserver 127.0.0.1\n"),
    ("etc/shells", "/usr/bin/sh\n"),
];

/// Of the standard library: what no test uses.
const NOT_OF_PYTHON: [&str; 7] = [
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tkinter",
];

const FOLDERS: [(&str, u32); 10] = [
    ("dev", 0o755),
    ("home/user", 0o755),
    ("mnt", 0o755),
    ("proc", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o755),
    ("tmp", 0o777),
    ("usr/lib64", 0o755),
    ("var/lib", 0o755),
];

enum Entry {
    Folder(u32),
    /// Of a file of the host's.
    Copy(PathBuf),
    Text(String),
    Link(PathBuf),
    Console,
}

/// By their paths without the leading slash: sorted, a folder comes before what is in it.
pub(super) struct Image {
    entries: BTreeMap<PathBuf, Entry>,
}

impl Image {
    /// With `programs` of this build besides what every machine has: path in the machine, file.
    pub(super) fn new(kernel: &Unpacked, programs: &[(String, PathBuf)]) -> anyhow::Result<Self> {
        let mut image = Self {
            entries: BTreeMap::new(),
        };
        for (name, permissions) in FOLDERS {
            image.add(name, Entry::Folder(permissions));
        }
        // As Debian has merged them.
        for name in ["bin", "lib", "lib64", "sbin"] {
            image.add(name, Entry::Link(Path::new("usr").join(name)));
        }
        image.add("dev/console", Entry::Console);
        for (name, text) in FILES {
            image.text(name, text);
        }
        for path in PROGRAMS.iter().chain(&COPIES) {
            image.of_host(Path::new(path))?;
        }
        image.python()?;
        image.modules(kernel)?;
        image.scripts()?;
        for (path, file) in programs {
            image.add(path, Entry::Copy(file.clone()));
        }
        image.libraries()?;
        Ok(image)
    }

    pub(super) fn text(&mut self, path: &str, text: &str) {
        self.add(path, Entry::Text(text.to_owned()));
    }

    pub(super) fn link(&mut self, path: &str, target: &str) {
        self.add(path, Entry::Link(target.into()));
    }

    pub(super) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut archive = Archive::new(BufWriter::new(file));
        for (name, entry) in &self.entries {
            let name = name.to_str().context("a name that is no text")?;
            match entry {
                Entry::Folder(permissions) => archive.folder(name, *permissions)?,
                Entry::Copy(from) => {
                    let content = fs::read(from)
                        .with_context(|| format!("cannot read {}", from.display()))?;
                    let metadata = fs::metadata(from)?;
                    let permissions = metadata.permissions().mode() & 0o7777;
                    archive.file(name, permissions, metadata.mtime(), &content)?;
                }
                Entry::Text(text) => archive.file(name, 0o644, 0, text.as_bytes())?,
                Entry::Link(target) => archive.link(name, &target.to_string_lossy())?,
                Entry::Console => archive.character_device(name, 5, 1)?,
            }
        }
        archive
            .finish()
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn add(&mut self, path: impl AsRef<Path>, entry: Entry) {
        let path = path.as_ref().strip_prefix("/").unwrap_or(path.as_ref());
        for folder in path
            .ancestors()
            .skip(1)
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            self.entries
                .entry(folder.to_owned())
                .or_insert(Entry::Folder(0o755));
        }
        self.entries.insert(path.to_owned(), entry);
    }

    /// A file where the host has it, with what a link leads to.
    fn of_host(&mut self, path: &Path) -> anyhow::Result<()> {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            bail!("{} is not a file", path.display());
        };
        let folder = folder
            .canonicalize()
            .with_context(|| format!("cannot find {}", path.display()))?;
        let path = folder.join(name);
        if self
            .entries
            .contains_key(path.strip_prefix("/").unwrap_or(&path))
        {
            return Ok(());
        }
        let metadata = path
            .symlink_metadata()
            .with_context(|| format!("cannot find {}", path.display()))?;
        if !metadata.is_symlink() {
            self.add(&path, Entry::Copy(path.clone()));
            return Ok(());
        }
        let target = fs::read_link(&path)?;
        self.of_host(&folder.join(&target))?;
        self.add(&path, Entry::Link(target));
        Ok(())
    }

    fn tree(&mut self, folder: &Path, without: &[&str]) -> anyhow::Result<()> {
        let entries =
            fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            if without.iter().any(|name| entry.file_name() == *name) {
                continue;
            }
            if entry.file_type()?.is_dir() {
                self.tree(&entry.path(), without)?;
            } else {
                self.of_host(&entry.path())?;
            }
        }
        Ok(())
    }

    fn scripts(&mut self) -> anyhow::Result<()> {
        let folder = shell::root().join("tests/tools");
        let entries =
            fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                let path = Path::new(super::SCRIPTS).join(entry.file_name());
                self.add(path, Entry::Copy(entry.path()));
            }
        }
        Ok(())
    }

    fn python(&mut self) -> anyhow::Result<()> {
        let folder = shell::output(&mut command(
            "/usr/bin/python3",
            [
                "-c",
                "import sysconfig; print(sysconfig.get_path('stdlib'))",
            ],
        ))
        .context("python3 does not say where its library is")?;
        self.tree(Path::new(folder.trim()), &NOT_OF_PYTHON)
    }

    /// The listed modules with those they need, and depmod's tables for modprobe.
    fn modules(&mut self, kernel: &Unpacked) -> anyhow::Result<()> {
        let inside = Path::new("usr/lib/modules").join(&kernel.release);
        let folder = kernel.root.join("lib/modules").join(&kernel.release);
        for entry in
            fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?
        {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                self.add(inside.join(entry.file_name()), Entry::Copy(entry.path()));
            }
        }
        let table = folder.join("modules.dep");
        let table = fs::read_to_string(&table)
            .with_context(|| format!("cannot read {}", table.display()))?;
        for (module, needs) in table.lines().filter_map(|line| line.split_once(':')) {
            if !MODULES.iter().any(|wanted| is_module(module, wanted)) {
                continue;
            }
            for path in needs.split_whitespace().chain([module]) {
                self.add(inside.join(path), Entry::Copy(folder.join(path)));
            }
        }
        Ok(())
    }

    /// Of every program and library that is in the image so far.
    fn libraries(&mut self) -> anyhow::Result<()> {
        let mut programs: Vec<PathBuf> = Vec::new();
        for entry in self.entries.values() {
            if let Entry::Copy(path) = entry
                && is_dynamic(path)?
            {
                programs.push(path.clone());
            }
        }
        // It fails as a whole for one that is linked statically, and tells of the others all the same.
        let told = command("ldd", &programs)
            .output()
            .context("cannot run ldd")?;
        let told = String::from_utf8_lossy(&told.stdout);
        if let Some(missing) = told.lines().find(|line| line.contains("not found")) {
            bail!("a library is missing: {}", missing.trim());
        }
        let libraries: BTreeSet<&str> = told
            .lines()
            .filter_map(|line| line.strip_prefix('\t'))
            .filter_map(|line| line.split(' ').find(|word| word.starts_with('/')))
            .collect();
        for library in libraries {
            self.of_host(Path::new(library))?;
        }
        Ok(())
    }
}

fn is_module(path: &str, name: &str) -> bool {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next() == Some(name)
}

/// Kernel modules are ELF files too, but nothing is linked to them.
fn is_dynamic(path: &Path) -> anyhow::Result<bool> {
    if path.components().any(|part| part.as_os_str() == "modules") {
        return Ok(false);
    }
    let mut start = Vec::new();
    File::open(path)
        .and_then(|file| file.take(4).read_to_end(&mut start))
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(start == b"\x7fELF")
}
