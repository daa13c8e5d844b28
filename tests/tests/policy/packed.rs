//! Packed bundles: keys, signatures and the trust folder; whatever is not what a trusted key signed is refused and changes
//! nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use agentguard_tests::bundle::reach;
use agentguard_tests::tools::agentguard;
use agentguard_tests::{Bundle, Client, Guard, Ran, Site};

struct Maker<'site> {
    site: &'site Site,
}

impl Maker<'_> {
    /// `NAME.key` and `NAME.pub` in the site's folder.
    fn keys(&self, name: &str) -> (PathBuf, PathBuf) {
        let out = self.site.dir();
        self.policy(&["keygen", name, "--out", text(out)]).ok();
        let path = |ending: &str| self.site.path(&format!("{name}.{ending}"));
        (path("key"), path("pub"))
    }

    fn trust(&self, public: &Path) {
        let name = public.file_name().expect("a name");
        fs::copy(public, self.site.path("trust").join(name)).expect("copied");
    }

    fn pack(&self, bundle: &Bundle, name: &str, key: &Path) -> PathBuf {
        let dir = self.site.path(&format!("{name}.d"));
        bundle.write(&dir);
        let file = self.site.path(name);
        let words = ["pack", text(&dir), "-o", text(&file), "--key", text(key)];
        self.policy(&words).ok();
        file
    }

    fn policy(&self, words: &[&str]) -> Ran {
        self.site.cli(["policy"].iter().chain(words)).run()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn bundle(serial: u64) -> Bundle {
    Bundle::new(serial)
        .agent("probe", &reach("origin.test", 443, &["GET /v1/**"]))
        .file(
            "tests/one.toml",
            "[[case]]\nname = \"one\"\nagent = \"probe\"\nrequest = \"GET https://origin.test/v1/x\"\nexpect = \"allow\"\n",
        )
}

fn mode(path: &Path) -> u32 {
    let meta = fs::metadata(path).expect("there");
    meta.permissions().mode() & 0o777
}

#[test]
fn a_bundle_is_packed_signed_and_read_by_who_trusts_the_key() {
    let site = Site::new();
    let maker = Maker { site: &site };
    let (key, public) = maker.keys("ops");
    assert_eq!((mode(&key), mode(&public)), (0o600, 0o644));
    let again = maker.policy(&["keygen", "ops", "--out", text(site.dir())]);
    assert_eq!(again.code(), 1, "{again:?}");
    assert!(
        again.stderr.contains("ops.pub` is there already"),
        "{again:?}"
    );

    let file = maker.pack(&bundle(1), "one.bundle", &key);
    let twin = maker.pack(&bundle(1), "two.bundle", &key);
    assert_eq!(fs::read(&file).unwrap(), fs::read(&twin).unwrap());

    let check = maker.policy(&["check", text(&file)]);
    assert_eq!(check.code(), 3, "{check:?}");
    for part in ["one.bundle", "does not trust", ".pub"] {
        assert!(check.stderr.contains(part), "{part}: {check:?}");
    }
    maker.trust(&public);
    let check = maker.policy(&["check", text(&file)]).ok();
    assert!(check.stdout.contains("signed by ops ("), "{check:?}");
    let json = maker.policy(&["check", text(&file), "--json"]).ok().json();
    assert_eq!(
        (&json["valid"], &json["signer"]["name"]),
        (&true.into(), &"ops".into())
    );
    let tested = maker.policy(&["test", text(&file)]).ok();
    assert_eq!(tested.stdout, "1 case: all hold");
    let newer = maker.pack(&bundle(2), "newer.bundle", &key);
    let diff = maker.policy(&["diff", text(&file), text(&newer)]).ok();
    assert_eq!(diff.stdout, "1 case: none is decided otherwise");
    let shown = maker.policy(&["show", text(&file), "--json"]).ok().json();
    assert_eq!(shown["serial"], 1, "{shown}");
    assert!(shown["files"]["bundle.toml"].is_string(), "{shown}");

    // The signer need not have the folder.
    let dir = site.path("one.bundle.d");
    let unsigned = site.path("unsigned.bundle");
    maker
        .policy(&["pack", text(&dir), "-o", text(&unsigned)])
        .ok();
    let check = maker.policy(&["check", text(&unsigned)]);
    assert_eq!(check.code(), 3, "{check:?}");
    assert!(check.stderr.contains("policy sign"), "{check:?}");
    maker
        .policy(&["sign", text(&unsigned), "--key", text(&key)])
        .ok();
    assert_eq!(fs::read(&file).unwrap(), fs::read(&unsigned).unwrap());

    // By a bare name, where the command is.
    let here = Client::new("env").args(["-C", text(site.dir())]);
    let here = here.arg(agentguard()).args(["policy", "pack", text(&dir)]);
    here.args(["-o", "bare.bundle", "--key", text(&key)])
        .run()
        .ok();
    assert_eq!(
        fs::read(&file).unwrap(),
        fs::read(site.path("bare.bundle")).unwrap()
    );

    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let open = maker.policy(&["sign", text(&file), "--key", text(&key)]);
    assert_eq!(open.code(), 1, "{open:?}");
    assert!(open.stderr.contains("chmod 600"), "{open:?}");
}

#[test]
fn only_what_a_trusted_key_signed_comes_into_force() {
    let site = Site::new();
    let maker = Maker { site: &site };
    let (key, public) = maker.keys("ops");
    let (stranger, _) = maker.keys("stranger");
    let guard = Guard::start(&site, &bundle(1));
    let apply = |file: &Path| maker.policy(&["apply", text(file)]);
    let digest = || {
        let shown = guard.cli(["policy", "show", "--json"]).ok().json();
        shown["digest"].as_str().expect("a digest").to_owned()
    };
    let before = digest();
    let good = maker.pack(&bundle(2), "good.bundle", &key);
    let refused = |name: &str, content: &[u8], says: &str| {
        let file = site.path("bad.bundle");
        fs::write(&file, content).expect("written");
        let ran = apply(&file);
        assert_eq!(ran.code(), 3, "{name}: {ran:?}");
        let said = ran.stderr.trim();
        assert_eq!(said.lines().count(), 1, "{name}: {said}");
        assert!(
            said.contains("bad.bundle") && said.contains(says),
            "{name}: {said}"
        );
        assert_eq!(digest(), before, "{name}");
    };
    let whole = fs::read(&good).expect("readable");
    refused("a key that nobody trusts", &whole, "does not trust");
    maker.trust(&public);
    refused("cut short", &whole[..whole.len() / 2], "not whole");
    refused(
        "cut at its signature",
        &whole[..whole.len() - 30],
        "copy it again",
    );
    let end = whole.len();
    for at in [30, 60, 100, 200, end - 250, end - 150, end - 100, end - 2] {
        let mut changed = whole.clone();
        changed[at] = if changed[at] == b'a' { b'b' } else { b'a' };
        refused(&format!("byte {at} changed"), &changed, "");
    }
    let mut longer = whole.clone();
    longer.extend(b"signature \n");
    refused("something behind it", &longer, "copy it again");
    refused("no packed bundle", b"PK\x03\x04", "packed bundle");
    refused(
        "another version",
        b"agentguard-bundle 9\nbytes 0000000001\n",
        "policy pack",
    );
    refused(
        "too large",
        &[&whole[..], &vec![b'x'; 36 << 20]].concat(),
        "larger than",
    );
    let other = maker.pack(&bundle(3), "other.bundle", &stranger);
    let foreign = fs::read(&other).expect("readable");
    refused("another's key", &foreign, "does not trust");
    // A signature that is good for another bundle.
    let line = |bytes: &[u8]| {
        let text = String::from_utf8(bytes.to_vec()).expect("text");
        let at = text.rfind("signature ").expect("signed");
        (text[..at].to_owned(), text[at..].to_owned())
    };
    let moved = line(&foreign).0 + &line(&whole).1;
    refused(
        "a signature from elsewhere",
        moved.as_bytes(),
        "was changed",
    );

    let records = guard.audit();
    let last = records.last().expect("a record");
    assert_eq!((last.action(), last.outcome()), ("policy-apply", "deny"));

    let applied = apply(&good).ok();
    assert!(applied.stdout.contains("serial 2"), "{applied:?}");
    let shown = guard.cli(["policy", "show", "--json"]).ok().json();
    assert_eq!(shown["signer"]["name"], "ops", "{shown}");
    let records = guard.audit();
    let last = records.iter().rfind(|it| it.action() == "policy-apply");
    let detail = last.expect("a record").text("/detail").to_owned();
    assert!(detail.contains("signed by ops ("), "{detail}");

    // Whoever may write the trust folder decides what agents may do.
    fs::set_permissions(site.path("trust"), fs::Permissions::from_mode(0o777)).unwrap();
    let next = maker.pack(&bundle(4), "next.bundle", &key);
    let open = apply(&next);
    assert_eq!(open.code(), 3, "{open:?}");
    assert!(open.stderr.contains("chmod go-w"), "{open:?}");
}

#[test]
fn the_configured_bundle_may_be_packed() {
    let site = Site::new();
    let maker = Maker { site: &site };
    let (key, public) = maker.keys("ops");
    let file = maker.pack(&bundle(7), "first.bundle", &key);
    site.configure(|config| {
        let policy = config["policy"].as_table_mut().expect("a table");
        policy.insert("bundle".into(), text(&file).into());
    });
    let refused = site.cli(["daemon"]).run();
    assert_eq!(refused.code(), 3, "{refused:?}");
    assert!(refused.stderr.contains("does not trust"), "{refused:?}");
    maker.trust(&public);
    let guard = Guard::start(&site, &Bundle::new(1));
    let shown = guard.cli(["policy", "show", "--json"]).ok().json();
    assert_eq!(
        (&shown["serial"], &shown["signer"]["name"]),
        (&7.into(), &"ops".into())
    );
}

#[test]
fn what_a_key_signed_that_is_not_trusted_any_more_does_not_come_back() {
    let site = Site::new();
    let maker = Maker { site: &site };
    let (key, public) = maker.keys("ops");
    maker.trust(&public);
    let guard = Guard::start(&site, &bundle(1));
    let signed = maker.pack(&bundle(2), "signed.bundle", &key);
    maker.policy(&["apply", text(&signed)]).ok();
    let folder = site.path("third");
    bundle(3).write(&folder);
    maker.policy(&["apply", text(&folder)]).ok();
    fs::remove_file(site.path("trust/ops.pub")).expect("there");
    let serial = || guard.cli(["policy", "show", "--json"]).ok().json()["serial"].clone();
    for words in [&["policy", "rollback"][..], &["policy", "rollback", "2"]] {
        let refused = guard.cli(words);
        assert_eq!(refused.code(), 3, "{refused:?}");
        let why = "bundle 2 was signed by `ops` (";
        assert!(refused.stderr.contains(why), "{refused:?}");
        assert_eq!(serial(), 3);
    }
    guard.cli(["policy", "rollback", "1"]).ok();
    maker.trust(&public);
    guard.cli(["policy", "rollback", "2"]).ok();
    assert_eq!(serial(), 2);
}
