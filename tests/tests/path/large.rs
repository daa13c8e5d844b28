//! 1 GiB down and up: the digest matches and the forwarder's memory stays flat.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use agentguard_tests::bundle::reach;
use agentguard_tests::client::Subject;
use agentguard_tests::process::memory_kib;
use agentguard_tests::{Bundle, Guard, Nginx, Ran, Site};

const SIZE: u64 = 1 << 30;
const PATIENCE: Duration = Duration::from_secs(300);
/// What buffers of one connection and the allocator may take, far below the body: KiB.
const SLACK: u64 = 16 << 10;

#[test]
fn download_http1() {
    download("--http1.1");
}

#[test]
fn download_http2() {
    download("--http2");
}

#[test]
fn upload_http1() {
    upload("--http1.1");
}

#[test]
fn upload_http2() {
    upload("--http2");
}

fn download(version: &str) {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let digest = make_file(&origin.files().join("large"));
    let call = |subject: &dyn Subject| {
        subject
            .client("sh".as_ref())
            .args([
                "-c",
                "curl --silent --show-error --fail \"$1\" \"$2\" | sha256sum",
                "sh",
                version,
            ])
            .arg(origin.url("/files/large"))
            .spawn()
            .finish_within(PATIENCE)
            .ok()
    };
    assert_eq!(digest_of(&call(&site)), digest, "without AgentGuard");

    let policy = reach("origin.test", origin.port, &["GET /files/large"]);
    let mut guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    flat(&mut guard, |guard| {
        assert_eq!(digest_of(&call(&guard.agent("probe"))), digest);
    });
    let record = guard.requests().pop().expect("a record");
    assert_eq!(record.outcome(), "allow");
    assert!(record.number("/bytes_down") >= SIZE, "{record:?}");
}

fn upload(version: &str) {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let source = site.path("large");
    let digest = make_file(&source);
    let call = |subject: &dyn Subject, name: &str| {
        subject
            .client("curl".as_ref())
            .args([
                "--silent",
                "--show-error",
                "--write-out",
                "%{http_code}",
                version,
                "--upload-file",
            ])
            .arg(&source)
            .arg(origin.url(&format!("/dav/{name}")))
            .spawn()
            .finish_within(PATIENCE)
            .ok()
            .stdout
    };
    assert!(call(&site, "off").ends_with("201"), "without AgentGuard");
    assert_eq!(
        sha256(&origin.uploads().join("off")),
        digest,
        "without AgentGuard"
    );
    fs::remove_file(origin.uploads().join("off")).expect("removed");

    let policy = reach("origin.test", origin.port, &["PUT /dav/on"]);
    let mut guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    flat(&mut guard, |guard| {
        assert_eq!(call(&guard.agent("probe"), "on"), "201");
    });
    assert_eq!(sha256(&origin.uploads().join("on")), digest);
    let record = guard.requests().pop().expect("a record");
    assert!(record.number("/bytes_up") >= SIZE, "{record:?}");
    assert_eq!(call(&guard.agent("probe"), "other").get(..0), Some(""));
    assert!(
        !origin.uploads().join("other").exists(),
        "a refused upload arrived"
    );
}

/// Fails when the forwarder's peak during `transfer` is above what it had before, plus [`SLACK`].
fn flat(guard: &mut Guard, transfer: impl FnOnce(&Guard)) {
    let forwarder = guard.forwarder_tgid();
    let before = memory_kib(forwarder, "VmRSS");
    // 5: forget the peak so far (proc_pid_clear_refs(5)).
    fs::write(format!("/proc/{forwarder}/clear_refs"), "5").expect("written");
    transfer(guard);
    let peak = memory_kib(forwarder, "VmHWM");
    assert!(peak < before + SLACK, "from {before} KiB to {peak} KiB");
}

/// Writes [`SIZE`] bytes that do not compress or repeat in step, and returns their digest.
fn make_file(path: &Path) -> String {
    let mut random = vec![0_u8; (1 << 20) + 7];
    let mut source = File::open("/dev/urandom").expect("there");
    std::io::Read::read_exact(&mut source, &mut random).expect("read");
    let mut file = File::create(path).expect("made");
    let mut left = SIZE;
    while left > 0 {
        let part = &random[..usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(random.len())];
        file.write_all(part).expect("written");
        left -= part.len() as u64;
    }
    sha256(path)
}

fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().expect("runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout)[..64].to_owned()
}

fn digest_of(ran: &Ran) -> String {
    ran.stdout.get(..64).unwrap_or_default().to_owned()
}
