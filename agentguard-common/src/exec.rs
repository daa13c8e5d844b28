//! The exec verdict: pure, and the same code in the kernel and in the host tests. A list is in the order of its rules, those
//! that deny first, so that the first rule that matches decides. What is not known of a file's content counts against it.

use crate::abi::{ExecHead, ExecRule, PATH_LEN};
use crate::glob::{Bytes, Match, Step};

/// What is known of the content of the file that is judged.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct Content {
    /// Its SHA-256, if `known` says so.
    pub sha256: Sha256,
    /// [`Content::UNKNOWN`], [`Content::KNOWN`] or [`Content::ASKED`].
    pub known: u32,
    pub reserved: u32,
}

impl Content {
    /// As zeros are.
    pub const UNKNOWN: u32 = 0;
    pub const KNOWN: u32 = 1;
    /// Not known yet: judging stops at the first rule that would have to know.
    pub const ASKED: u32 = 2;
}

/// A digest in words, each in memory as the bytes are: compared without a call, which the kernel's programs may not make.
pub type Sha256 = [u32; 8];

pub fn words(sha256: &[u8; 32]) -> Sha256 {
    let mut words = [0; 8];
    for (word, bytes) in words.iter_mut().zip(sha256.as_chunks().0) {
        *word = u32::from_ne_bytes(*bytes);
    }
    words
}

/// Whether a file system, by its magic number (`include/uapi/linux/magic.h`), is one whose files change by nobody but through
/// their inodes in this kernel, where the exec keeps writers off. Others serve what they like at each read (FUSE, NFS, 9p), or
/// have the content in a file of another file system (overlayfs).
#[inline(always)]
pub fn keeps_content(magic: u64) -> bool {
    matches!(
        magic,
        // ext4, XFS, Btrfs, F2FS, bcachefs, ZFS
        0xef53 | 0x5846_5342 | 0x9123_683e | 0xf2f5_2010 | 0xca45_1a4e | 0x2fc1_2fc1
        // tmpfs, ramfs, squashfs, EROFS
        | 0x0102_1994 | 0x8584_58f6 | 0x7371_7368 | 0xe0f5_e1e2
    )
}

/// Where the judging of one file stands. Starts as [`Scan::new`].
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Scan {
    at: Match,
    /// Index of the rule that is being matched.
    pub rule: u32,
    /// One behind the agent's last rule.
    end: u32,
    text_len: u32,
    /// A [`State`].
    state: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    Running,
    Allowed,
    Denied,
    /// A rule has to know the content.
    Asks,
}

impl Scan {
    /// For a path of `text_len` bytes and the rules of `head`.
    #[inline(always)]
    pub fn new(head: &ExecHead, text_len: u32) -> Self {
        Self {
            at: Match::default(),
            rule: head.first,
            end: head.first.wrapping_add(head.len),
            text_len,
            state: State::Running as u32,
        }
    }

    /// Whether rules are left. Without, [`Self::finish`].
    #[inline(always)]
    pub fn is_running(&self) -> bool {
        self.state == State::Running as u32 && self.rule < self.end
    }

    /// Goes one step on with the rule of index `self.rule`.
    #[inline(always)]
    pub fn step(&mut self, rule: &ExecRule, path: &[u8; PATH_LEN], content: &Content) {
        let pattern = Bytes {
            bytes: &rule.pattern,
            len: rule.len,
        };
        let text = Bytes {
            bytes: path,
            len: self.text_len,
        };
        match self.at.step(pattern, text, false) {
            Step::More => {}
            Step::No => self.next(),
            Step::Yes => match has_content(rule, content) {
                Some(true) => {
                    self.state = if rule.flags & ExecRule::DENIES == 0 {
                        State::Allowed as u32
                    } else {
                        State::Denied as u32
                    };
                }
                Some(false) => self.next(),
                None => self.state = State::Asks as u32,
            },
        }
    }

    #[inline(always)]
    fn next(&mut self) {
        self.rule += 1;
        self.at = Match::default();
    }

    /// Whether it ended at a rule that has to know the content.
    #[inline(always)]
    pub fn asks(&self) -> bool {
        self.state == State::Asks as u32
    }

    /// Whether the file may be executed; `None` while rules are left.
    #[inline(always)]
    pub fn finish(&self, head: &ExecHead) -> Option<bool> {
        if self.is_running() {
            return None;
        }
        Some(if self.state == State::Running as u32 {
            head.flags & ExecHead::DEFAULT_ALLOW != 0
        } else {
            self.state == State::Allowed as u32
        })
    }
}

/// Whether a file at the rule's path is one that it means; `None`: asked for. Content that is not known is what a denial means
/// and is not what an allowance does.
#[inline(always)]
fn has_content(rule: &ExecRule, content: &Content) -> Option<bool> {
    if rule.flags & ExecRule::DIGEST == 0 {
        return Some(true);
    }
    match content.known {
        Content::ASKED => None,
        Content::KNOWN => {
            let (a, b) = (&rule.sha256, &content.sha256);
            let mut differs = 0;
            let mut n = 0;
            while n < 8 {
                differs |= a[n] ^ b[n];
                n += 1;
            }
            Some(differs == 0)
        }
        _ => Some(rule.flags & ExecRule::DENIES != 0),
    }
}

/// What an agent's `rules` say about the file at `path` with this SHA-256, if it is known. A path that is longer than a kernel
/// path can be is denied.
pub fn decide(head: &ExecHead, rules: &[ExecRule], path: &[u8], sha256: Option<&[u8; 32]>) -> bool {
    let mut text = [0; PATH_LEN];
    let Some(into) = text.get_mut(..path.len()).filter(|_| path.len() < PATH_LEN) else {
        return false;
    };
    into.copy_from_slice(path);
    let content = sha256.map_or(Content::default(), |sha256| Content {
        sha256: words(sha256),
        known: Content::KNOWN,
        reserved: 0,
    });
    let mut scan = Scan::new(head, path.len() as u32);
    loop {
        if let Some(allowed) = scan.finish(head) {
            return allowed;
        }
        let Some(rule) = rules.get(scan.rule as usize) else {
            return false;
        };
        scan.step(rule, &text, &content);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::glob;

    fn rule(pattern: &str, denies: bool) -> ExecRule {
        let mut bytes = [0; PATH_LEN];
        bytes[..pattern.len()].copy_from_slice(pattern.as_bytes());
        ExecRule {
            pattern: bytes,
            len: pattern.len() as u32,
            flags: if denies { ExecRule::DENIES } else { 0 },
            sha256: [0; 8],
        }
    }

    fn with(digest: u8, rule: ExecRule) -> ExecRule {
        ExecRule {
            flags: rule.flags | ExecRule::DIGEST,
            sha256: words(&[digest; 32]),
            ..rule
        }
    }

    fn head(len: usize, flags: u32) -> ExecHead {
        ExecHead {
            first: 0,
            len: len as u32,
            flags: ExecHead::JUDGED | flags,
            reserved: 0,
        }
    }

    #[test]
    fn a_denial_wins_and_the_default_is_for_the_rest() {
        let rules = [
            rule("/usr/bin/python3.9", true),
            rule("/usr/bin/python3*", false),
            rule("/opt/**", false),
        ];
        for (path, by_deny, by_allow) in [
            ("/usr/bin/python3.9", false, false),
            ("/usr/bin/python3.11", true, true),
            ("/opt/a/b", true, true),
            ("/usr/bin/curl", false, true),
            ("", false, true),
        ] {
            let deny = head(rules.len(), 0);
            assert_eq!(
                decide(&deny, &rules, path.as_bytes(), None),
                by_deny,
                "{path}"
            );
            let allow = head(rules.len(), ExecHead::DEFAULT_ALLOW);
            assert_eq!(
                decide(&allow, &rules, path.as_bytes(), None),
                by_allow,
                "{path}"
            );
        }
        let long = [b'/'; PATH_LEN];
        assert!(!decide(&head(0, ExecHead::DEFAULT_ALLOW), &[], &long, None));
    }

    #[test]
    fn a_digest_counts_with_its_path_and_unknown_content_against_the_file() {
        let rules = [
            with(9, rule("/bin/sh", true)),
            with(1, rule("/bin/git", false)),
            with(2, rule("/bin/git", false)),
            rule("/opt/*", false),
        ];
        for (path, digest, by_deny, by_allow) in [
            ("/bin/git", Some(1), true, true),
            ("/bin/git", Some(2), true, true),
            ("/bin/git", Some(3), false, true),
            ("/bin/git", None, false, true),
            ("/bin/got", Some(1), false, true),
            ("/bin/sh", Some(9), false, false),
            ("/bin/sh", Some(1), false, true),
            ("/bin/sh", None, false, false),
            ("/opt/x", None, true, true),
        ] {
            let digest = digest.map(|byte| [byte; 32]);
            for (flags, expected) in [(0, by_deny), (ExecHead::DEFAULT_ALLOW, by_allow)] {
                let head = head(rules.len(), flags);
                let found = decide(&head, &rules, path.as_bytes(), digest.as_ref());
                assert_eq!(found, expected, "{path} {digest:?} {flags}");
            }
        }
        let nearly = {
            let mut digest = [1; 32];
            digest[31] ^= 1;
            digest
        };
        assert!(!decide(&head(4, 0), &rules, b"/bin/git", Some(&nearly)));
    }

    #[test]
    fn content_is_asked_for_only_where_a_rule_needs_it() {
        let rules = [rule("/opt/*", true), with(1, rule("/**", false))];
        let content = Content {
            known: Content::ASKED,
            ..Content::default()
        };
        for (path, asks) in [("/opt/x", false), ("/bin/git", true), ("relative", false)] {
            let mut text = [0; PATH_LEN];
            text[..path.len()].copy_from_slice(path.as_bytes());
            let mut scan = Scan::new(&head(2, 0), path.len() as u32);
            while scan.is_running() {
                scan.step(&rules[scan.rule as usize], &text, &content);
            }
            assert_eq!(scan.asks(), asks, "{path}");
            assert_eq!(scan.finish(&head(2, 0)), Some(false), "{path}");
        }
    }

    #[test]
    fn only_file_systems_that_keep_writers_off_keep_content() {
        let (ext4, tmpfs, fuse, overlay, nfs) =
            (0xef53, 0x0102_1994, 0x6573_5546, 0x794c_7630, 0x6969);
        assert!(keeps_content(ext4) && keeps_content(tmpfs));
        assert!(!keeps_content(fuse) && !keeps_content(overlay) && !keeps_content(nfs));
    }

    proptest! {
        #[test]
        fn the_first_rule_that_matches_decides(
            rules in prop::collection::vec(("[ab/*]{0,6}", any::<bool>(), prop::option::of(0..2u8)), 0..6),
            path in "[ab/]{0,8}",
            content in prop::option::of(0..2u8),
            default: bool,
        ) {
            let means = |digest: &Option<u8>, denies: bool| match (digest, content) {
                (None, _) => true,
                (Some(_), None) => denies,
                (Some(wanted), Some(found)) => *wanted == found,
            };
            let expected = rules
                .iter()
                .find(|(pattern, denies, digest)| {
                    glob::matches(pattern.as_bytes(), path.as_bytes(), false) && means(digest, *denies)
                })
                .map_or(default, |(_, denies, _)| !denies);
            let head = head(rules.len(), if default { ExecHead::DEFAULT_ALLOW } else { 0 });
            let rules: Vec<_> = rules
                .iter()
                .map(|(pattern, denies, digest)| {
                    let rule = rule(pattern, *denies);
                    digest.map_or(rule, |digest| with(digest, rule))
                })
                .collect();
            let content = content.map(|byte| [byte; 32]);
            prop_assert_eq!(decide(&head, &rules, path.as_bytes(), content.as_ref()), expected);
        }
    }
}
