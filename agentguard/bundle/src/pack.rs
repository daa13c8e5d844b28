//! A bundle as one file. Text: a head with the length of what is signed, the bundle's name, serial and digest and each
//! file's length and name in order, an empty line, the files' contents one after another, and a line for each signature.
//!
//! ```text
//! agentguard-bundle 1
//! bytes 0000000271
//! name procurement
//! serial 7
//! digest 4a0c…
//! file 51 agents/procurement.toml
//! file 34 bundle.toml
//!
//! [agent]…
//! signature <SHA-256 of the public key> <Ed25519 signature>
//! ```
//!
//! A signature is over every byte before the first of them. The same folder gives the same bytes; there is one way to write
//! each bundle, and reading refuses every other. Nothing is looked at but the first two lines before a signature holds.

use std::collections::BTreeMap;

use agentguard_policy::Sources;
use agentguard_policy::{FileKind, MAX_BYTES, Policy};
use agentguard_record::Meta;

use super::key::{self, KeyError, KeyId, PublicKey, SIGNATURE, SecretKey};

/// First line.
const MAGIC: &str = "agentguard-bundle 1\n";
/// Second line; its number has ten digits, so that its length does not depend on it.
const BYTES: &str = "bytes ";
const DIGITS: usize = 10;
const PREAMBLE: usize = MAGIC.len() + BYTES.len() + DIGITS + 1;

/// Bytes of a packed bundle at most: its files, and room for the head.
pub const MAX_PACKED: usize = MAX_BYTES + (2 << 20);
/// Signatures of one.
const MAX_SIGNATURES: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error(
        "it is no packed bundle that this build can read; make one with `agentguard policy pack`"
    )]
    Unknown,
    #[error("it ends after {found} of {expected} bytes; copy it again, it is not whole")]
    Truncated { found: usize, expected: usize },
    #[error("it is larger than {} MiB, which no bundle is", MAX_PACKED >> 20)]
    TooLarge,
    #[error("{0}, so it is damaged; copy it again, or pack the bundle's folder anew")]
    Damaged(String),
    #[error("it has no signature; sign it with `agentguard policy sign FILE --key KEY`")]
    Unsigned,
    #[error(
        "it is signed by {keys} alone, which this host does not trust; if it should, put the key's .pub file into the trust folder ([paths] trust)"
    )]
    Untrusted { keys: String },
    #[error(
        "it is not what {key} has signed: it was changed, or cut; get it again from where it was signed"
    )]
    Changed { key: String },
    #[error("it is signed by {0} already")]
    Signed(KeyId),
    #[error("it cannot have another signature, {MAX_SIGNATURES} are there")]
    TooManySignatures,
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// A key whose bundles are accepted, and what its file is called.
#[derive(Clone, Debug)]
pub struct TrustedKey {
    pub name: String,
    pub key: PublicKey,
}

/// Who has signed a bundle that was accepted.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Signer {
    /// The name of the trusted key's file, without its ending.
    pub name: String,
    pub key: KeyId,
}

/// What a packed bundle holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    pub meta: Meta,
    pub sources: Sources,
}

/// The bundle without a signature.
pub fn pack(sources: &Sources, meta: &Meta) -> String {
    let mut rest = format!(
        "name {}\nserial {}\ndigest {}\n",
        meta.name, meta.serial, meta.digest
    );
    for (name, text) in &sources.files {
        rest.push_str(&format!("file {} {name}\n", text.len()));
    }
    rest.push('\n');
    rest.extend(sources.files.values().map(String::as_str));
    let bytes = PREAMBLE + rest.len();
    format!("{MAGIC}{BYTES}{bytes:0DIGITS$}\n{rest}")
}

/// Adds a signature to a packed bundle that is whole.
pub fn sign(packed: &mut String, key: &SecretKey) -> Result<(), PackError> {
    let parts = PackedParts::of(packed)?;
    let id = key.id();
    if parts.signatures.iter().any(|one| one.key == id.as_str()) {
        return Err(PackError::Signed(id));
    }
    if parts.signatures.len() == MAX_SIGNATURES {
        return Err(PackError::TooManySignatures);
    }
    let signature = key.sign(parts.signed.as_bytes())?;
    let line = format!("signature {} {}\n", id.as_str(), key::hex(&signature));
    packed.push_str(&line);
    Ok(())
}

/// What is in a packed bundle that one of `trusted` has signed, and who.
pub fn open(packed: &str, trusted: &[TrustedKey]) -> Result<(Contents, Signer), PackError> {
    let parts = PackedParts::of(packed)?;
    if parts.signatures.is_empty() {
        return Err(PackError::Unsigned);
    }
    let known = parts.signatures.iter().find_map(|one| {
        let key = trusted.iter().find(|it| it.key.id().as_str() == one.key)?;
        Some((key, one))
    });
    let Some((by, one)) = known else {
        return Err(PackError::Untrusted { keys: parts.keys() });
    };
    if !by.key.verifies(parts.signed.as_bytes(), &one.signature) {
        return Err(PackError::Changed {
            key: format!("`{}` ({})", by.name, by.key.id()),
        });
    }
    let signer = Signer {
        name: by.name.clone(),
        key: by.key.id().clone(),
    };
    Ok((contents(parts.signed)?, signer))
}

/// What is in a packed bundle, its signatures unchecked, and the keys that they name.
pub fn look(packed: &str) -> Result<(Contents, Vec<String>), PackError> {
    let parts = PackedParts::of(packed)?;
    let keys = parts.signatures.iter().map(|one| one.key.to_owned());
    Ok((contents(parts.signed)?, keys.collect()))
}

/// Whether a file that begins so is meant as one.
pub fn is_packed(start: &[u8]) -> bool {
    let known = b"agentguard-bundle ";
    start.starts_with(known) || known.starts_with(start)
}

struct PackedParts<'t> {
    signed: &'t str,
    signatures: Vec<Signature<'t>>,
}

struct Signature<'t> {
    key: &'t str,
    signature: [u8; SIGNATURE],
}

impl<'t> PackedParts<'t> {
    fn of(packed: &'t str) -> Result<Self, PackError> {
        if packed.len() > MAX_PACKED {
            return Err(PackError::TooLarge);
        }
        let digits = packed
            .strip_prefix(MAGIC)
            .and_then(|rest| rest.strip_prefix(BYTES))
            .and_then(|rest| rest.get(..DIGITS))
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()));
        let bytes: usize = digits
            .and_then(|digits| digits.parse().ok())
            .ok_or(PackError::Unknown)?;
        let (signed, mut tail) = packed.split_at_checked(bytes).ok_or_else(|| {
            if bytes > packed.len() {
                PackError::Truncated {
                    found: packed.len(),
                    expected: bytes,
                }
            } else {
                damaged("its length is in the middle of a character")
            }
        })?;
        let mut signatures: Vec<Signature<'_>> = Vec::new();
        while !tail.is_empty() {
            let (line, rest) = tail
                .split_once('\n')
                .ok_or_else(|| damaged("its last line does not end"))?;
            let signature = Signature::of(line)
                .ok_or_else(|| damaged("a line after its end is no signature"))?;
            if signatures.iter().any(|one| one.key == signature.key) {
                return Err(damaged("one key has signed it twice"));
            }
            if signatures.len() == MAX_SIGNATURES {
                return Err(PackError::TooManySignatures);
            }
            signatures.push(signature);
            tail = rest;
        }
        Ok(Self { signed, signatures })
    }

    fn keys(&self) -> String {
        let short = self.signatures.iter().map(|one| &one.key[..16]);
        short.collect::<Vec<_>>().join(", ")
    }
}

impl<'t> Signature<'t> {
    fn of(line: &'t str) -> Option<Self> {
        let (key, signature) = line.strip_prefix("signature ")?.split_once(' ')?;
        key::unhex::<32>(key)?;
        Some(Self {
            key,
            signature: key::unhex(signature)?,
        })
    }
}

/// Reads what is signed. What [`pack`] would write for it must be it, byte for byte.
fn contents(signed: &str) -> Result<Contents, PackError> {
    let mut lines = Lines {
        rest: signed.get(PREAMBLE..).unwrap_or_default(),
    };
    let name = lines.value("name ")?;
    let serial = lines.value("serial ")?;
    let digest = lines.value("digest ")?;
    let mut listed = Vec::new();
    loop {
        let line = lines.next()?;
        if line.is_empty() {
            break;
        }
        let file = line.strip_prefix("file ").and_then(|it| it.split_once(' '));
        let (length, name) = file.ok_or_else(|| damaged("its head has a line of no known kind"))?;
        let length: usize = length
            .parse()
            .map_err(|_| damaged("a file's length is no number"))?;
        if FileKind::of(name).is_none() {
            let shown = agentguard_policy::show(name);
            return Err(damaged(&format!("`{shown}` is no file of a bundle's")));
        }
        listed.push((length, name));
    }
    let mut files = BTreeMap::new();
    let mut rest = lines.rest;
    for (length, name) in listed {
        let (text, after) = rest
            .split_at_checked(length)
            .ok_or_else(|| damaged(&format!("`{name}` is not there in its whole length")))?;
        if files.insert(name.to_owned(), text.to_owned()).is_some() {
            return Err(damaged(&format!("it has `{name}` twice")));
        }
        rest = after;
    }
    let sources = Sources { files };
    let meta = Policy::meta_of(&sources)
        .ok_or_else(|| damaged("its bundle.toml has no name and serial that can be read"))?;
    let same = meta.name == name && meta.serial.to_string() == serial && meta.digest == digest;
    if !same {
        return Err(damaged("its head and its files do not agree"));
    }
    if pack(&sources, &meta) != signed {
        return Err(damaged(
            "it is not written as `agentguard policy pack` does",
        ));
    }
    Ok(Contents { meta, sources })
}

struct Lines<'t> {
    rest: &'t str,
}

impl<'t> Lines<'t> {
    fn next(&mut self) -> Result<&'t str, PackError> {
        let (line, rest) = self
            .rest
            .split_once('\n')
            .ok_or_else(|| damaged("its head does not end"))?;
        self.rest = rest;
        Ok(line)
    }

    fn value(&mut self, key: &str) -> Result<&'t str, PackError> {
        let line = self.next()?;
        line.strip_prefix(key)
            .ok_or_else(|| damaged(&format!("its head has no `{}`", key.trim())))
    }
}

fn damaged(what: &str) -> PackError {
    PackError::Damaged(what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::key::tests::pair;
    use super::*;

    fn sources() -> Sources {
        let files = [
            ("bundle.toml", "name = \"b\"\nserial = 7\n"),
            ("agents/a.toml", "[agent]\nname = \"ä\"\n"),
            ("rules/r.cedar", ""),
        ];
        let files = files.map(|(name, text)| (name.to_owned(), text.to_owned()));
        Sources {
            files: files.into(),
        }
    }

    fn packed() -> String {
        let sources = sources();
        pack(&sources, &Policy::meta_of(&sources).unwrap())
    }

    fn signed() -> (String, Vec<TrustedKey>) {
        let (secret, key) = pair();
        let mut text = packed();
        sign(&mut text, &secret).unwrap();
        let name = "ops".to_owned();
        (text, vec![TrustedKey { name, key }])
    }

    #[test]
    fn what_was_packed_comes_back_and_the_same_way_each_time() {
        assert_eq!(packed(), packed());
        let (mut text, trusted) = signed();
        let (contents, signer) = open(&text, &trusted).unwrap();
        assert_eq!(contents.sources, sources());
        assert_eq!(
            (contents.meta.name.as_str(), contents.meta.serial),
            ("b", 7)
        );
        assert_eq!(signer.name, "ops");
        // Another signature beside it takes nothing away.
        let (other, key) = pair();
        sign(&mut text, &other).unwrap();
        assert!(open(&text, &trusted).is_ok());
        let name = "other".to_owned();
        assert_eq!(
            open(&text, &[TrustedKey { name, key }]).unwrap().1.name,
            "other"
        );
        assert!(matches!(sign(&mut text, &other), Err(PackError::Signed(_))));
        assert_eq!(look(&text).unwrap().1.len(), 2);
    }

    #[test]
    fn a_change_of_any_byte_is_seen() {
        let (text, trusted) = signed();
        for at in 0..text.len() {
            for bit in [0x01, 0x20] {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= bit;
                let Ok(changed) = String::from_utf8(bytes) else {
                    continue;
                };
                assert!(open(&changed, &trusted).is_err(), "byte {at} of {changed}");
            }
        }
        for end in 0..text.len() {
            if let Some(cut) = text.get(..end) {
                assert!(open(cut, &trusted).is_err(), "{end} bytes");
            }
        }
        assert!(open(&format!("{text}x"), &trusted).is_err());
        assert!(open(&format!("{text}\n"), &trusted).is_err());
    }

    #[test]
    fn who_signed_is_who_counts() {
        let (text, trusted) = signed();
        assert!(matches!(
            open(&packed(), &trusted),
            Err(PackError::Unsigned)
        ));
        let name = "other".to_owned();
        let others = [TrustedKey {
            name,
            key: pair().1,
        }];
        assert!(matches!(
            open(&text, &others),
            Err(PackError::Untrusted { .. })
        ));
        assert!(matches!(open(&text, &[]), Err(PackError::Untrusted { .. })));
        // A signature of a trusted key's over something else.
        let mut other = sources();
        other.files.insert("rules/s.cedar".into(), "x".into());
        let other = pack(&other, &Policy::meta_of(&other).unwrap());
        let line = text.rsplit_once("signature ").unwrap().1;
        let moved = format!("{other}signature {line}");
        assert!(matches!(
            open(&moved, &trusted),
            Err(PackError::Changed { .. })
        ));
        let twice = format!("{text}signature {line}");
        assert!(matches!(open(&twice, &trusted), Err(PackError::Damaged(_))));
    }

    /// Even signed: the holder of a key can put no file where a bundle has none.
    #[test]
    fn names_and_lengths_are_held_to_a_bundles() {
        let (secret, key) = pair();
        let trusted = [TrustedKey {
            name: "ops".into(),
            key,
        }];
        let signed = |rest: &str| {
            let bytes = PREAMBLE + rest.len();
            let mut text = format!("{MAGIC}{BYTES}{bytes:0DIGITS$}\n{rest}");
            sign(&mut text, &secret).unwrap();
            open(&text, &trusted)
        };
        let good = packed();
        let good = &good[PREAMBLE..];
        assert!(signed(good).is_ok());
        let manifest = "file 22 bundle.toml\n";
        assert!(good.contains(manifest), "{good}");
        for (from, to) in [
            ("agents/a.toml", "../a.toml"),
            ("agents/a.toml", "agents/../a.toml"),
            ("agents/a.toml", "/etc/a.toml"),
            ("agents/a.toml", "agents/a/b.toml"),
            ("agents/a.toml", "agents//a.toml"),
            ("agents/a.toml", "agents/.a.toml"),
            ("agents/a.toml", "agents\\a.toml"),
            ("agents/a.toml", "README"),
            ("agents/a.toml", "bundle.toml"),
            (manifest, "file 022 bundle.toml\n"),
            (manifest, "file +22 bundle.toml\n"),
            (manifest, "file 99999999999999999999 bundle.toml\n"),
            (manifest, "file 21 bundle.toml\n"),
            (manifest, ""),
            ("serial 7", "serial 8"),
            ("serial 7", "serial 07"),
            ("name b", "name c"),
            ("name b\nserial 7", "serial 7\nname b"),
            ("\n\n", "\n"),
        ] {
            let changed = good.replacen(from, to, 1);
            assert_ne!(changed, good, "{from}");
            assert!(signed(&changed).is_err(), "{from} → {to}");
        }
        // Files in another order.
        let swapped = good.replacen("file 20 agents/a.toml\n", "", 1);
        let swapped = swapped.replacen(manifest, &format!("{manifest}file 20 agents/a.toml\n"), 1);
        assert!(signed(&swapped).is_err());
    }
}
