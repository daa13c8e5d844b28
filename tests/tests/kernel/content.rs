//! Exec rules with digests. Where none can be known they hold closed.

use agentguard_common::abi::EventKind;
use agentguard_common::verdict::Refusal;
use agentguard_kernel::{ExecFile, ExecRules};
use sha2::{Digest as _, Sha256};

use crate::machine::*;

/// Says what becomes of an exec of `path`: its exit status, `killed`, or the errno.
const FILES: &str = r#"
def execute(path, *args):
    try: code = subprocess.run([path, *args], stdout=subprocess.DEVNULL).returncode
    except OSError as e: return errno.errorcode[e.errno]
    return "killed" if code == -9 else code
"#;

/// A folder that only the test has, with files to execute.
struct Folder(String);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(names::unique());
        std::fs::create_dir(&path).unwrap();
        Self(path.to_str().unwrap().to_owned())
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.0)
    }

    /// A copy of `true` with `tail` behind it, which no loader looks at; and its digest.
    fn program(&self, name: &str, tail: &str) -> [u8; 32] {
        let mut bytes = std::fs::read("/usr/bin/true").unwrap();
        bytes.extend(tail.bytes());
        self.file(name, &bytes)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> [u8; 32] {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).unwrap();
        Sha256::digest(bytes).into()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn with(pattern: &str, sha256: &[[u8; 32]]) -> ExecFile {
    ExecFile {
        sha256: sha256.to_vec(),
        ..ExecFile::from(pattern)
    }
}

fn only(allow: Vec<ExecFile>) -> ExecRules {
    ExecRules {
        agent: AGENT,
        allow,
        ..ExecRules::default()
    }
}

fn all_but(deny: Vec<ExecFile>) -> ExecRules {
    ExecRules {
        agent: AGENT,
        default_allow: true,
        deny,
        ..ExecRules::default()
    }
}

/// How a refused exec looks here, and how one looks that a digest allows.
fn expected(machine: &mut Machine) -> (&'static str, &'static str) {
    let refused = if machine.kernel().lsm() {
        "EPERM"
    } else {
        "killed"
    };
    let allowed = if machine.kernel().knows_digests() {
        "0"
    } else {
        refused
    };
    (refused, allowed)
}

/// Debian's kernels have what it takes.
#[test]
fn digests_are_known_wherever_there_is_lsm() {
    let mut machine = Machine::new();
    let kernel = machine.kernel();
    let found = agentguard_kernel::digests();
    assert_eq!(found.is_ok(), kernel.lsm(), "{found:?}");
    assert_eq!(kernel.knows_digests(), kernel.lsm());
    let hooks = kernel.hooks();
    let hook = hooks.iter().find(|hook| hook.name == "lsm_digest");
    assert_eq!(hook.map(|hook| hook.attached), kernel.lsm().then_some(true));
}

#[test]
fn a_file_runs_by_its_path_and_digest_together() {
    let mut machine = Machine::new();
    let (refused, allowed) = expected(&mut machine);
    let folder = Folder::new();
    let [good, other] = ["good", "other"].map(|name| folder.path(name));
    let digest = folder.program("good", "");
    folder.program("other", "");
    let rules = only(vec![with(&good, &[[7; 32], digest])]);
    machine.kernel().set_exec(&[rules]).unwrap();
    let script = format!(
        "{FILES}
good, other = {good:?}, {other:?}
said = [execute(good), execute(other)]
image = open(good, 'rb').read()
open(good, 'r+b').write(image[:4000] + bytes([image[4000] ^ 1]) + image[4001:]); said.append(execute(good))
open(good, 'wb').write(image); said.append(execute(good))
open(good, 'ab').write(b'x'); said.append(execute(good))
open(good, 'wb').write(image); said.append(execute(good))
os.rename(other, good); said.append(execute(good))
say(*said)"
    );
    assert_eq!(
        machine.run(&script),
        format!("{allowed} {refused} {refused} {allowed} {refused} {allowed} {allowed}")
    );
    let expected = if allowed == "0" { 3 } else { 7 };
    assert_eq!(
        machine.refused(EventKind::Exec, Refusal::ExecRule),
        expected
    );
}

#[test]
fn nobody_writes_what_is_executed() {
    let mut machine = Machine::new();
    let (_, allowed) = expected(&mut machine);
    let folder = Folder::new();
    let good = folder.path("good");
    let digest = folder.program("good", "");
    let rules = only(vec![with(&good, &[digest])]);
    machine.kernel().set_exec(&[rules]).unwrap();
    let script = format!(
        "{FILES}
import mmap
good = {good:?}
writer = open(good, 'r+b'); said = [execute(good)]
mapped = mmap.mmap(writer.fileno(), 4096); writer.close(); said.append(execute(good))
mapped.close(); said.append(execute(good))
say(*said)"
    );
    // `execve` itself refuses a file that somebody may write.
    assert_eq!(machine.run(&script), format!("ETXTBSY ETXTBSY {allowed}"));
}

#[test]
fn a_denied_digest_denies_and_so_does_one_that_is_not_known() {
    let mut machine = Machine::new();
    let (refused, _) = expected(&mut machine);
    let knows = machine.kernel().knows_digests();
    let folder = Folder::new();
    let [bad, good] = ["bad", "good"].map(|name| folder.path(name));
    let digest = folder.program("bad", "");
    folder.program("good", "x");
    let rules = all_but(vec![with(&format!("{}/*", folder.0), &[digest])]);
    machine.kernel().set_exec(&[rules]).unwrap();
    let script =
        format!("{FILES}say(execute({bad:?}), execute({good:?}), execute('/usr/bin/true'))");
    let other = if knows { "0" } else { refused };
    assert_eq!(machine.run(&script), format!("{refused} {other} 0"));
}

#[test]
fn a_script_and_its_interpreter_each_need_their_digest() {
    let mut machine = Machine::new();
    let (refused, allowed) = expected(&mut machine);
    let has_lsm = machine.kernel().lsm();
    let folder = Folder::new();
    let [script, interpreter] = ["script", "interpreter"].map(|name| folder.path(name));
    let of_interpreter = folder.program("interpreter", "");
    let of_script = folder.file("script", format!("#!{interpreter}\n").as_bytes());
    for (script_digest, interpreter_digest, expected) in [
        (of_script, of_interpreter, allowed),
        (of_script, of_script, refused),
        // Without LSM the script itself is not seen.
        (
            of_interpreter,
            of_interpreter,
            if has_lsm { refused } else { allowed },
        ),
    ] {
        let rules = only(vec![
            with(&script, &[script_digest]),
            with(&interpreter, &[interpreter_digest]),
        ]);
        machine.kernel().set_exec(&[rules]).unwrap();
        let said = machine.run(&format!("{FILES}say(execute({script:?}))"));
        assert_eq!(said, expected);
    }
}

#[test]
fn a_file_system_that_may_serve_other_bytes_has_no_digests() {
    let mut machine = Machine::new();
    let (refused, _) = expected(&mut machine);
    let folder = Folder::new();
    for name in ["lower", "upper", "work", "merged"] {
        std::fs::create_dir(folder.path(name)).unwrap();
    }
    let digest = folder.program("lower/good", "");
    let merged = folder.path("merged");
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        folder.path("lower"),
        folder.path("upper"),
        folder.path("work")
    );
    let (none, flags) = (Some("overlay"), nix::mount::MsFlags::empty());
    let mounted = nix::mount::mount(none, &*merged, none, flags, Some(&*options));
    if let Err(error) = mounted {
        eprintln!("skipped: no overlayfs here: {error}");
        return;
    }
    let good = format!("{merged}/good");
    let rules = only(vec![with(&good, &[digest])]);
    machine.kernel().set_exec(&[rules]).unwrap();
    let said = machine.run(&format!("{FILES}say(execute({good:?}))"));
    nix::mount::umount2(&*merged, nix::mount::MntFlags::MNT_DETACH).unwrap();
    assert_eq!(said, refused);
}

#[test]
fn agents_that_execute_at_one_time_do_not_take_each_others_digest() {
    let mut machine = Machine::new();
    let (refused, allowed) = expected(&mut machine);
    let folder = Folder::new();
    let [good, bad] = ["good", "bad"].map(|name| folder.path(name));
    let digest = folder.program("good", &"x".repeat(1 << 20));
    folder.program("bad", &"y".repeat(1 << 20));
    let pattern = format!("{}/*", folder.0);
    machine
        .kernel()
        .set_exec(&[only(vec![with(&pattern, &[digest])])])
        .unwrap();
    let script = format!(
        "{FILES}
from concurrent.futures import ThreadPoolExecutor as Pool
with Pool(4) as pool:
    goods = [pool.submit(execute, {good:?}) for n in range(20)]
    bads = [pool.submit(execute, {bad:?}) for n in range(20)]
say(*sorted({{str(one.result()) for one in goods}}), '|', *{{one.result() for one in bads}})"
    );
    let said = machine.run(&script);
    let (goods, bads) = said.split_once(" | ").unwrap();
    assert_eq!(bads, refused);
    // A kernel before 6.2 may refuse one that comes while another is being read.
    assert!(
        goods == allowed || goods == format!("{allowed} {refused}"),
        "{said}"
    );
}
