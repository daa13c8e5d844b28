//! Path patterns of the shorthand: `*` is one segment or a part of one, `**` zero or more segments.

use std::collections::HashMap;

use agentguard_record::secret::PRIVATE;

use super::path::CanonicalPath;
use super::reading::{fold, without_slash};

/// A pattern over canonical paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PathPattern {
    text: String,
    segments: Vec<PatternSegment>,
    /// As it is compared with the paths of lenient servers, if that is another pattern.
    lenient: Option<Box<Self>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum PatternSegment {
    Literal(String),
    /// `*`: any segment that is not empty.
    One,
    /// Text between `*`s, which stand for any characters of the segment: at least two pieces.
    Part(Vec<String>),
    /// `**`
    Any,
}

impl PathPattern {
    /// # Errors
    /// Says why `raw` is no pattern, or could never match a canonical path.
    pub(crate) fn parse(raw: &str) -> Result<Self, String> {
        if !raw.starts_with('/') {
            return Err(format!("path pattern `{raw}` does not start with `/`"));
        }
        if raw.contains(['?', '#']) {
            return Err(format!(
                "path pattern `{raw}` has `?` or `#`: it is compared with the path alone; rules read the query as `context.query`"
            ));
        }
        // `*` is an ordinary character of a path, so the pattern must be in the canonical form itself.
        let canonical = CanonicalPath::parse(raw)
            .map_err(|why| format!("path pattern `{raw}` matches nothing: {why}"))?;
        if canonical.as_str() != raw {
            return Err(format!(
                "path pattern `{raw}` matches nothing: paths are compared in their canonical form, here `{canonical}`"
            ));
        }
        let strictly = Self::of(raw);
        let mut pattern = strictly.map_err(|segment| {
            format!("path pattern `{raw}` has `{segment}`: `**` stands for whole segments and must be alone between slashes")
        })?;
        let lenient = without_slash(&fold(raw));
        if lenient != raw {
            pattern.lenient = Self::of(&lenient).ok().map(Box::new);
        }
        Ok(pattern)
    }

    /// `Err`: the segment that cannot be.
    fn of(text: &str) -> Result<Self, String> {
        let segments = text[1..].split('/').map(PatternSegment::parse);
        Ok(Self {
            segments: segments.collect::<Result<_, _>>().map_err(str::to_owned)?,
            text: text.to_owned(),
            lenient: None,
        })
    }

    /// With its letters folded and without a slash at its end.
    pub(crate) fn lenient(&self) -> &Self {
        self.lenient.as_deref().unwrap_or(self)
    }

    /// Whether every path matches it.
    pub(crate) fn is_everything(&self) -> bool {
        matches!(self.segments[..], [PatternSegment::Any])
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether what its wildcards stand for can be told by position: some are there, and `**` is nowhere but at the end.
    pub(crate) fn can_hide(&self) -> bool {
        let is_literal = |segment: &PatternSegment| matches!(segment, PatternSegment::Literal(_));
        let before_last = self
            .segments
            .split_last()
            .map_or(&[][..], |(_, before)| before);
        !self.segments.iter().all(is_literal) && !before_last.contains(&PatternSegment::Any)
    }

    /// The numbers of the path's segments that the wildcards stand for. `None`: it does not match, with letters in either
    /// case and with a slash at its end or without.
    pub(crate) fn hidden(&self, path: &str) -> Option<Vec<usize>> {
        let is_meant = self.matches(path) || self.lenient().matches(&without_slash(&fold(path)));
        let is_hidden = |at: &usize| match self.segments.get(*at) {
            Some(PatternSegment::Literal(_)) => false,
            Some(PatternSegment::One | PatternSegment::Part(_) | PatternSegment::Any) | None => {
                true
            }
        };
        is_meant.then(|| (0..split(path).len()).filter(is_hidden).collect())
    }

    pub(crate) fn matches(&self, path: &str) -> bool {
        self.matches_segments(&split(path))
    }

    fn matches_segments(&self, path: &[&str]) -> bool {
        let (mut pattern, mut at) = (0, 0);
        // Where the last `**` was, and the first segment it has not taken: greedy choices before it never need undoing.
        let mut retry: Option<(usize, usize)> = None;
        loop {
            match self.segments.get(pattern) {
                None if at == path.len() => return true,
                Some(PatternSegment::Any) => {
                    retry = Some((pattern, at));
                    pattern += 1;
                    continue;
                }
                Some(segment) if path.get(at).is_some_and(|text| segment.matches(text)) => {
                    pattern += 1;
                    at += 1;
                    continue;
                }
                _ => {}
            }
            match retry {
                Some((any, taken)) if taken < path.len() => {
                    retry = Some((any, taken + 1));
                    pattern = any + 1;
                    at = taken + 1;
                }
                _ => return false,
            }
        }
    }
}

impl PatternSegment {
    fn parse(raw: &str) -> Result<Self, &str> {
        match raw {
            "*" => Ok(Self::One),
            "**" => Ok(Self::Any),
            _ if raw.contains("**") => Err(raw),
            _ if raw.contains('*') => Ok(Self::Part(raw.split('*').map(str::to_owned).collect())),
            _ => Ok(Self::Literal(raw.to_owned())),
        }
    }

    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Literal(literal) => literal == text,
            Self::One => !text.is_empty(),
            Self::Any => true,
            Self::Part(pieces) => matches_pieces(pieces, text),
        }
    }
}

fn matches_pieces(pieces: &[String], text: &str) -> bool {
    let [first, middle @ .., last] = pieces else {
        return false;
    };
    let Some(mut rest) = text.strip_prefix(first.as_str()) else {
        return false;
    };
    for piece in middle {
        match rest.find(piece.as_str()) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    rest.ends_with(last.as_str())
}

/// The path without the segments that any of the patterns' wildcards stand for. `None`: none matches.
pub(crate) fn hide<'p>(
    patterns: impl IntoIterator<Item = &'p PathPattern>,
    path: &str,
) -> Option<String> {
    let found = patterns
        .into_iter()
        .filter_map(|pattern| pattern.hidden(path));
    let hidden = found.reduce(|all, more| [all, more].concat())?;
    let mut shown = String::with_capacity(path.len());
    for (at, segment) in split(path).into_iter().enumerate() {
        shown.push('/');
        let is_shown = segment.is_empty() || !hidden.contains(&at);
        shown.push_str(if is_shown { segment } else { PRIVATE });
    }
    Some(shown)
}

fn split(path: &str) -> Vec<&str> {
    path.strip_prefix('/').unwrap_or(path).split('/').collect()
}

/// Patterns with values, by their leading literal segments: a look-up meets only patterns that share them.
#[derive(Clone, Debug)]
pub(super) struct RouteTable<T> {
    nodes: Vec<Node>,
    patterns: Vec<(PathPattern, T)>,
}

#[derive(Clone, Debug, Default)]
struct Node {
    children: HashMap<String, usize>,
    /// Patterns that end here or go on with a wildcard.
    patterns: Vec<usize>,
}

impl<T> Default for RouteTable<T> {
    fn default() -> Self {
        Self {
            nodes: vec![Node::default()],
            patterns: Vec::new(),
        }
    }
}

impl<T> RouteTable<T> {
    pub(crate) fn insert(&mut self, pattern: PathPattern, value: T) {
        let mut node = 0;
        for segment in &pattern.segments {
            let PatternSegment::Literal(literal) = segment else {
                break;
            };
            let next = self.nodes.len();
            let child = *self.nodes[node]
                .children
                .entry(literal.clone())
                .or_insert(next);
            if child == next {
                self.nodes.push(Node::default());
            }
            node = child;
        }
        self.nodes[node].patterns.push(self.patterns.len());
        self.patterns.push((pattern, value));
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &(PathPattern, T)> {
        self.patterns.iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.patterns.len()
    }

    /// Every pattern that matches the path.
    pub(crate) fn matching(&self, path: &str) -> Vec<&(PathPattern, T)> {
        let segments = split(path);
        let mut found = Vec::new();
        let mut node = &self.nodes[0];
        let mut depth = 0;
        loop {
            let candidates = node.patterns.iter().map(|index| &self.patterns[*index]);
            found.extend(candidates.filter(|(pattern, _)| pattern.matches_segments(&segments)));
            let next = segments
                .get(depth)
                .and_then(|segment| node.children.get(*segment));
            match next {
                Some(child) => node = &self.nodes[*child],
                None => return found,
            }
            depth += 1;
        }
    }
}

/// Checks the glob of an `exe` or `cgroup` key, which the kernel side matches: absolute, `?` and `*`
/// within a segment, `**` across.
pub(super) fn check_file_glob(raw: &str, max_bytes: usize) -> Result<(), String> {
    if !raw.starts_with('/') {
        return Err(format!("`{raw}` is not an absolute path"));
    }
    if raw.len() > max_bytes {
        return Err(format!("the pattern is longer than {max_bytes} bytes"));
    }
    if raw.contains(|c: char| c.is_control()) {
        return Err("the pattern has a control character".into());
    }
    if let Some(c) = raw.chars().find(|c| matches!(c, '[' | ']' | '{' | '}')) {
        return Err(format!(
            "`{raw}` has `{c}`: only `?`, `*` and `**` stand for other characters"
        ));
    }
    if raw.len() > 1
        && raw[1..]
            .split('/')
            .any(|segment| matches!(segment, "" | "." | ".."))
    {
        return Err(format!(
            "`{raw}` matches nothing: it has an empty or dot segment"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, by trying everything.
    fn naive(pattern: &[&str], path: &[&str]) -> bool {
        match pattern.split_first() {
            None => path.is_empty(),
            Some((&"**", rest)) => (0..=path.len()).any(|taken| naive(rest, &path[taken..])),
            Some((first, rest)) => path.split_first().is_some_and(|(segment, others)| {
                let here = if *first == "*" {
                    !segment.is_empty()
                } else {
                    naive_segment(first, segment)
                };
                here && naive(rest, others)
            }),
        }
    }

    fn naive_segment(pattern: &str, text: &str) -> bool {
        match pattern.chars().next() {
            None => text.is_empty(),
            Some('*') => (0..=text.len()).any(|taken| naive_segment(&pattern[1..], &text[taken..])),
            Some(c) => text.starts_with(c) && naive_segment(&pattern[1..], &text[1..]),
        }
    }

    #[test]
    fn patterns_match_as_documented() {
        let cases = [
            ("/v1/catalog/**", "/v1/catalog", true),
            ("/v1/catalog/**", "/v1/catalog/", true),
            ("/v1/catalog/**", "/v1/catalog/a/b", true),
            ("/v1/catalog/**", "/v1/catalogue", false),
            ("/v1/*/items", "/v1/a/items", true),
            ("/v1/*/items", "/v1/a/b/items", false),
            ("/v1/*", "/v1/", false),
            ("/v1/*", "/v1/x/", false),
            ("/v1/", "/v1", false),
            ("/**", "/", true),
            ("/*", "/", false),
            ("/**/x", "/x", true),
            ("/**/x", "/a/b/x", true),
            ("/r/*.git/**", "/r/a.git/info/refs", true),
            ("/r/*.git/**", "/r/a.gitx/info/refs", false),
            ("/a*b*c", "/abc", true),
            ("/a*b*c", "/axbxbc", true),
            ("/a*a", "/a", false),
        ];
        for (pattern, path, expected) in cases {
            assert_eq!(
                PathPattern::parse(pattern).unwrap().matches(path),
                expected,
                "{pattern} {path}"
            );
        }
    }

    #[test]
    fn wildcards_hide_what_they_stand_for() {
        for (pattern, path, expected) in [
            (
                "/services/*/*/*",
                "/services/T0/B0/x1",
                Some("/services/[private]/[private]/[private]"),
            ),
            (
                "/services/*/*/*",
                "/Services/T0/B0/x1/",
                Some("/Services/[private]/[private]/[private]/"),
            ),
            ("/services/*/*/*", "/services/T0/B0", None),
            (
                "/services/*/*/*",
                "/services/[private]/[private]/[private]",
                Some("/services/[private]/[private]/[private]"),
            ),
            ("/bot*/send", "/bot12:ab/send", Some("/[private]/send")),
            ("/hook/**", "/hook/a/b", Some("/hook/[private]/[private]")),
            ("/hook/**", "/hook", Some("/hook")),
        ] {
            let pattern = PathPattern::parse(pattern).unwrap();
            assert!(pattern.can_hide());
            assert_eq!(hide([&pattern], path).as_deref(), expected, "{path}");
        }
        let two = ["/*/hooks/x", "/team/hooks/*"].map(|it| PathPattern::parse(it).unwrap());
        let shown = hide(&two, "/team/hooks/x");
        assert_eq!(shown.as_deref(), Some("/[private]/hooks/[private]"));
        for pattern in ["/services", "/**/x", "/a/**/b/*"] {
            assert!(
                !PathPattern::parse(pattern).unwrap().can_hide(),
                "{pattern}"
            );
        }
    }

    #[test]
    fn patterns_that_match_nothing_are_refused() {
        for raw in [
            "v1", "", "/a/../b", "/a//b", "/%7Ea", "/a**", "/**a/b", "/a?b=c", "/a%2fb", "/a b",
            "/ü",
        ] {
            assert!(PathPattern::parse(raw).is_err(), "{raw}");
        }
    }

    #[test]
    fn file_globs_are_checked() {
        for good in [
            "/",
            "/usr/bin/python3*",
            "/opt/**/agent",
            "/system.slice/a\\x2db.service",
            "/machine.slice/libpod-????.scope",
        ] {
            assert_eq!(check_file_glob(good, 255), Ok(()), "{good}");
        }
        for bad in ["bin/x", "/a//b", "/a/", "/a/../b", "/[ab]", "/a\nb"] {
            assert!(check_file_glob(bad, 255).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn matching_equals_the_definition(
            patterns in prop::collection::vec("(/([ab]{0,2}|\\*|\\*\\*|[ab]\\*|\\*[ab]|a\\*b\\*)){1,4}", 1..6),
            path in "(/[ab]{0,3}){1,5}",
        ) {
            let mut routes = RouteTable::default();
            let segments = split(&path);
            let mut expected = Vec::new();
            for (index, raw) in patterns.iter().enumerate() {
                let Ok(pattern) = PathPattern::parse(raw) else { continue };
                let matched = naive(&split(raw), &segments);
                prop_assert_eq!(pattern.matches(&path), matched, "{} {}", raw, path);
                if matched {
                    expected.push(index);
                }
                routes.insert(pattern, index);
            }
            let mut found: Vec<_> = routes.matching(&path).into_iter().map(|(_, index)| *index).collect();
            found.sort_unstable();
            prop_assert_eq!(found, expected);
        }
    }
}
