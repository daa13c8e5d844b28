//! Debian kernels of any suite, fetched and checked by apt with lists of its own, unpacked below `target/vm/kernels`, never
//! installed. What has been fetched stays until that folder is removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::table::Kernel;
use crate::shell::{self, command};

/// Depends on the newest kernel of its suite: small, and made for virtual machines.
const NEWEST: &str = "linux-image-cloud-amd64";
/// What a kernel is split into; newer ones have their modules and the kernel itself apart.
const PARTS: [&str; 3] = ["linux-image-", "linux-binary-", "linux-modules-"];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const STAMP: &str = "packages";

/// An unpacked kernel.
pub(super) struct Unpacked {
    /// As `uname -r` says.
    pub release: String,
    pub image: PathBuf,
    /// Has `lib/modules` below it.
    pub root: PathBuf,
}

/// # Errors
/// Says what could not be had, and why.
pub(super) fn kernel(kernel: &Kernel) -> anyhow::Result<Unpacked> {
    let folder = shell::target()
        .join("vm/kernels")
        .join(kernel.suites.join("+"));
    let stamp = folder.join(STAMP);
    if !stamp.is_file() {
        println!(
            "fetching a kernel of {}: {} is tried on it",
            kernel.suites.join(", "),
            kernel.name
        );
        fetch(kernel, &folder)?;
    }
    let packages =
        fs::read_to_string(&stamp).with_context(|| format!("cannot read {}", stamp.display()))?;
    for package in packages.lines() {
        println!("{}: {package}", kernel.name);
    }
    unpacked(folder.join("root"))
}

fn fetch(kernel: &Kernel, folder: &Path) -> anyhow::Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    let state = folder.join("apt");
    let apt = Apt::new(kernel, &state)?;
    shell::run(apt.command("apt-get").arg("update"))?;
    let packages = apt.parts()?;
    let names = packages.iter().map(|(name, _)| name);
    shell::run(
        apt.command("apt-get")
            .arg("download")
            .args(names)
            .current_dir(&state),
    )?;
    let root = folder.join("root");
    for entry in fs::read_dir(&state)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            shell::run(command("dpkg", ["-x"]).args([&path, &root]))?;
        }
    }
    fs::remove_dir_all(&state)?;
    // depmod and modprobe look below /lib.
    if !root.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", root.join("lib"))?;
    }
    let release = unpacked(root.clone())?.release;
    shell::run(command("depmod", ["-b"]).arg(&root).arg(release))?;
    let found: String = packages
        .iter()
        .map(|(name, version)| format!("{name} {version}\n"))
        .collect();
    fs::write(folder.join(STAMP), found)?;
    Ok(())
}

fn unpacked(root: PathBuf) -> anyhow::Result<Unpacked> {
    let modules = root.join("lib/modules");
    let folder = fs::read_dir(&modules)
        .with_context(|| format!("cannot read {}", modules.display()))?
        .next()
        .with_context(|| format!("no kernel in {}", modules.display()))??;
    let release = folder.file_name().to_string_lossy().into_owned();
    // Newer packages have the kernel beside its modules.
    let image = [
        root.join("boot").join(format!("vmlinuz-{release}")),
        folder.path().join("vmlinuz"),
    ]
    .into_iter()
    .find(|path| path.is_file())
    .with_context(|| format!("no kernel of {release} in {}", root.display()))?;
    Ok(Unpacked {
        release,
        image,
        root,
    })
}

/// apt with its own sources and state: of the system's it reads the mirrors' addresses, and it changes nothing there.
struct Apt {
    configuration: PathBuf,
}

impl Apt {
    fn new(kernel: &Kernel, state: &Path) -> anyhow::Result<Self> {
        for folder in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(state.join(folder))?;
        }
        let mut sources = String::new();
        for suite in &kernel.suites {
            let mirror = mirror(suite)?;
            sources += &format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
        }
        let list = state.join("sources.list");
        fs::write(&list, sources)?;
        let lists = state.join("lists");
        let options = [
            ("Dir::Etc::sourcelist", list.to_string_lossy()),
            ("Dir::Etc::sourceparts", "-".into()),
            ("Dir::State::lists", lists.to_string_lossy()),
            ("Dir::State::status", "/dev/null".into()),
            ("Dir::Cache", state.to_string_lossy()),
            ("Acquire::Languages", "none".into()),
            // A suite that cannot be read must not pass for one without a newer kernel.
            ("APT::Update::Error-Mode", "any".into()),
            // Whoever else apt would be cannot write into our folder.
            ("APT::Sandbox::User", "root".into()),
        ]
        .map(|(key, value)| format!("{key} \"{value}\";\n"));
        let configuration = state.join("apt.conf");
        fs::write(&configuration, options.concat())?;
        Ok(Self { configuration })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = command(program, ["-qq"]);
        command.env("APT_CONFIG", &self.configuration);
        command
    }

    /// The newest kernel's packages, with their versions.
    fn parts(&self) -> anyhow::Result<Vec<(String, String)>> {
        let mut found: Vec<(String, String)> = Vec::new();
        let mut next = vec![NEWEST.to_owned()];
        while let Some(name) = next.pop() {
            let show = ["show", "--no-all-versions", &name];
            let shown = shell::output(self.command("apt-cache").args(show))
                .with_context(|| format!("the mirror has no package {name}"))?;
            let field = |key: &str| {
                shown
                    .lines()
                    .find_map(|line| line.strip_prefix(key))
                    .unwrap_or_default()
                    .trim()
            };
            for dependency in field("Depends:").split(',') {
                let dependency = dependency.split_whitespace().next().unwrap_or_default();
                if is_part(dependency) && !next.iter().any(|known| known == dependency) {
                    next.push(dependency.to_owned());
                }
            }
            if name != NEWEST {
                found.push((name.clone(), field("Version:").to_owned()));
            }
        }
        if found.is_empty() {
            bail!("{NEWEST} names no kernel");
        }
        Ok(found)
    }
}

/// Of one kernel release, as the number says.
fn is_part(package: &str) -> bool {
    PARTS.iter().any(|part| {
        package
            .strip_prefix(part)
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    })
}

/// The mirror that the system itself uses for Debian, or for its security updates.
fn mirror(suite: &str) -> anyhow::Result<String> {
    let label = if suite.ends_with("-security") {
        "Debian-Security"
    } else {
        "Debian"
    };
    let targets = shell::output(&mut command(
        "apt-get",
        [
            "indextargets",
            "--format",
            "$(ORIGIN)|$(LABEL)|$(REPO_URI)",
            "Created-By: Packages",
        ],
    ))
    .context("apt-get does not say which mirrors it uses")?;
    let start = format!("Debian|{label}|");
    targets
        .lines()
        .find_map(|line| line.strip_prefix(&start))
        .map(str::to_owned)
        .with_context(|| format!("apt knows no mirror of {label}: run `apt-get update`"))
}
