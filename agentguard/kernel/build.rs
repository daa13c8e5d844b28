//! Compiles `agentguard-ebpf` for the BPF target with the pinned toolchain, into `OUT_DIR/agentguard-ebpf`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

const LINKER: &str = "bpf-linker 0.10.";
const REMEDY: &str = "run `cargo xtask setup`";

fn main() {
    if let Err(message) = build() {
        println!("cargo::error={message}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), String> {
    let package = PathBuf::from(var("CARGO_MANIFEST_DIR")?);
    let root = package.ancestors().nth(2);
    let root = root.ok_or("the package is not in agentguard/kernel of a workspace")?;
    for source in [
        "agentguard-ebpf/src",
        "agentguard-ebpf/Cargo.toml",
        "agentguard-common/src",
        "agentguard-common/Cargo.toml",
        "Cargo.lock",
        "rust-toolchain.toml",
    ] {
        let source = root.join(source);
        // Of one that is not there cargo would say at every build that it has changed.
        if !source.exists() {
            return Err(format!("{} is not there", source.display()));
        }
        println!("cargo::rerun-if-changed={}", source.display());
    }
    check_linker()?;
    check_rust_src()?;

    let out = PathBuf::from(var("OUT_DIR")?);
    let target_dir = out.join("ebpf-target");
    let arch = var("CARGO_CFG_TARGET_ARCH")?;
    compile(root, &target_dir, &arch)?;
    let object = target_dir.join("bpfel-unknown-none/release/agentguard-ebpf");
    fs::copy(&object, out.join("agentguard-ebpf"))
        .map_err(|error| format!("cannot copy {}: {error}", object.display()))?;
    Ok(())
}

fn compile(root: &Path, target_dir: &Path, arch: &str) -> Result<(), String> {
    let flags = [
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        "-Cpanic=abort".into(),
    ];
    let mut cargo = Command::new(var("CARGO")?);
    cargo
        .current_dir(root)
        .args(["build", "--package", "agentguard-ebpf", "--release"])
        .args(["--target", "bpfel-unknown-none", "-Zbuild-std=core"])
        .arg("--target-dir")
        .arg(target_dir);
    // What cargo has set for this build script would reach the inner cargo as the user's wish.
    for (key, _) in env::vars_os() {
        if leaks(&key) {
            cargo.env_remove(key);
        }
    }
    cargo
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        // The workspace's release profile is for the host: no overflow checks (their panics would be endless loops to
        // the verifier), and the debug information, of which the linker makes the BTF, stays in the object.
        .env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "false")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
        .env("CARGO_PROFILE_RELEASE_SPLIT_DEBUGINFO", "off")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3")
        .stdin(Stdio::null());
    let output = cargo
        .output()
        .map_err(|error| format!("cannot run cargo for agentguard-ebpf: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    for line in String::from_utf8_lossy(&output.stderr).lines() {
        println!("cargo::warning={line}");
    }
    Err(format!(
        "agentguard-ebpf does not compile for bpfel-unknown-none (above); if the toolchain is at fault, {REMEDY}"
    ))
}

/// Variables of the outer cargo that would change the inner build.
fn leaks(key: &std::ffi::OsStr) -> bool {
    let Some(key) = key.to_str() else {
        return false;
    };
    matches!(
        key,
        "RUSTC"
            | "RUSTC_WRAPPER"
            | "RUSTC_WORKSPACE_WRAPPER"
            | "RUSTC_LINKER"
            | "RUSTDOC"
            | "RUSTDOCFLAGS"
            | "RUSTFLAGS"
            | "TARGET"
            | "HOST"
            | "PROFILE"
            | "OPT_LEVEL"
            | "DEBUG"
            | "NUM_JOBS"
            | "OUT_DIR"
            | "MAKEFLAGS"
            | "CARGO_MAKEFLAGS"
            | "CARGO_TARGET_DIR"
            | "CARGO_BUILD_TARGET"
            | "CARGO_BUILD_RUSTFLAGS"
            | "CARGO_INCREMENTAL"
            | "__CARGO_DEFAULT_LIB_METADATA"
    ) || [
        "CARGO_CFG_",
        "CARGO_FEATURE_",
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_PROFILE_",
        "CARGO_TARGET_",
        "DEP_",
    ]
    .iter()
    .any(|prefix| key.starts_with(prefix))
}

/// The linker loads the toolchain's own LLVM, so that only the version made for it works.
fn check_linker() -> Result<(), String> {
    let output = Command::new("bpf-linker")
        .arg("--version")
        .output()
        .map_err(|error| format!("cannot run bpf-linker ({error}): {REMEDY}"))?;
    let version = String::from_utf8_lossy(&output.stdout);
    if output.status.success() && version.trim().starts_with(LINKER) {
        Ok(())
    } else {
        Err(format!(
            "`{}` does not fit the pinned toolchain, {LINKER}x does: {REMEDY}",
            version.trim()
        ))
    }
}

fn check_rust_src() -> Result<(), String> {
    let output = Command::new(var("RUSTC")?)
        .args(["--print", "sysroot"])
        .output()
        .map_err(|error| format!("cannot run rustc: {error}"))?;
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if sysroot.join("lib/rustlib/src/rust/library/core").is_dir() {
        Ok(())
    } else {
        Err(format!("the rust-src component is missing: {REMEDY}"))
    }
}

fn var(key: &str) -> Result<String, String> {
    env::var_os(key)
        .map(OsString::into_string)
        .and_then(Result::ok)
        .ok_or_else(|| format!("cargo did not set {key}"))
}
