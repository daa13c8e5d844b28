//! The exec verdict: pure, and the same code in the kernel and in the host tests. A list is in the order of its rules, those
//! that deny first, so that the first rule that matches decides.

use crate::abi::{ExecHead, ExecRule, PATH_LEN};
use crate::glob::{Bytes, Match, Step};

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
    pub fn step(&mut self, rule: &ExecRule, path: &[u8; PATH_LEN]) {
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
            Step::No => {
                self.rule += 1;
                self.at = Match::default();
            }
            Step::Yes => {
                self.state = if rule.denies == 0 {
                    State::Allowed as u32
                } else {
                    State::Denied as u32
                };
            }
        }
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

/// What an agent's `rules` say about the file at `path`. A path that is longer than a kernel path can be is denied.
pub fn decide(head: &ExecHead, rules: &[ExecRule], path: &[u8]) -> bool {
    let mut text = [0; PATH_LEN];
    let Some(into) = text.get_mut(..path.len()).filter(|_| path.len() < PATH_LEN) else {
        return false;
    };
    into.copy_from_slice(path);
    let mut scan = Scan::new(head, path.len() as u32);
    loop {
        if let Some(allowed) = scan.finish(head) {
            return allowed;
        }
        let Some(rule) = rules.get(scan.rule as usize) else {
            return false;
        };
        scan.step(rule, &text);
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
            denies: u32::from(denies),
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
            assert_eq!(decide(&deny, &rules, path.as_bytes()), by_deny, "{path}");
            let allow = head(rules.len(), ExecHead::DEFAULT_ALLOW);
            assert_eq!(decide(&allow, &rules, path.as_bytes()), by_allow, "{path}");
        }
        let long = [b'/'; PATH_LEN];
        assert!(!decide(&head(0, ExecHead::DEFAULT_ALLOW), &[], &long));
    }

    proptest! {
        #[test]
        fn the_first_rule_that_matches_decides(
            rules in prop::collection::vec(("[ab/*]{0,6}", any::<bool>()), 0..6),
            path in "[ab/]{0,8}",
            default: bool,
        ) {
            let expected = rules
                .iter()
                .find(|(pattern, _)| glob::matches(pattern.as_bytes(), path.as_bytes(), false))
                .map_or(default, |(_, denies)| !denies);
            let head = head(rules.len(), if default { ExecHead::DEFAULT_ALLOW } else { 0 });
            let rules: Vec<_> = rules.iter().map(|(pattern, denies)| rule(pattern, *denies)).collect();
            prop_assert_eq!(decide(&head, &rules, path.as_bytes()), expected);
        }
    }
}
