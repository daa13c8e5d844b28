//! Values by host pattern.

use std::collections::HashMap;

use super::{HostName, HostPattern, ends_in_number};

/// Values by host pattern. Looking a host up finds the most specific pattern that covers it.
#[derive(Clone, Debug)]
pub(crate) struct HostMap<T> {
    exact: HashMap<u16, HashMap<String, T>>,
    below: HashMap<u16, HashMap<String, T>>,
}

impl<T> Default for HostMap<T> {
    fn default() -> Self {
        Self {
            exact: HashMap::new(),
            below: HashMap::new(),
        }
    }
}

impl<T> HostMap<T> {
    pub(crate) fn insert(&mut self, pattern: &HostPattern, value: T) -> Option<T> {
        let side = if pattern.below {
            &mut self.below
        } else {
            &mut self.exact
        };
        side.entry(pattern.port)
            .or_default()
            .insert(pattern.name.as_str().to_owned(), value)
    }

    /// The most specific value alone.
    pub(crate) fn lookup(&self, name: &HostName, port: u16) -> Option<&T> {
        if let Some(found) = self
            .exact
            .get(&port)
            .and_then(|names| names.get(name.as_str()))
        {
            return Some(found);
        }
        let below = self.below.get(&port)?;
        parents(name.as_str()).find_map(|parent| below.get(parent))
    }

    /// The most specific value for what the pattern stands for: itself, or the nearest pattern that covers it.
    pub(crate) fn covering(&self, pattern: &HostPattern) -> Option<&T> {
        if pattern.below {
            let below = self.below.get(&pattern.port)?;
            std::iter::once(pattern.name.as_str())
                .chain(parents(pattern.name.as_str()))
                .find_map(|parent| below.get(parent))
        } else {
            self.lookup(&pattern.name, pattern.port)
        }
    }

    /// Whether the name is covered on any port.
    pub(crate) fn covers_name(&self, name: &HostName) -> bool {
        self.exact
            .values()
            .any(|names| names.contains_key(name.as_str()))
            || self
                .below
                .values()
                .any(|names| parents(name.as_str()).any(|parent| names.contains_key(parent)))
    }
}

/// The names above `name`, nearest first: `b.c` and `c` for `a.b.c`.
pub(super) fn parents(name: &str) -> impl Iterator<Item = &str> {
    let is_name = !name.contains(':') && !ends_in_number(name);
    name.match_indices('.')
        .map(move |(at, _)| &name[at + 1..])
        .filter(move |_| is_name)
}

pub(super) fn is_below(name: &str, parent: &str) -> bool {
    name.len() > parent.len()
        && name.ends_with(parent)
        && name.as_bytes()[name.len() - parent.len() - 1] == b'.'
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_most_specific_pattern_is_found() {
        let mut map = HostMap::default();
        for raw in [
            "*.example",
            "*.b.example",
            "a.b.example",
            "*.b.example:80",
            "10.0.0.1",
        ] {
            assert_eq!(map.insert(&HostPattern::parse(raw).unwrap(), raw), None);
        }
        let cases = [
            ("a.b.example", 443, Some("a.b.example")),
            ("c.b.example", 443, Some("*.b.example")),
            ("x.c.b.example", 443, Some("*.b.example")),
            ("b.example", 443, Some("*.example")),
            ("example", 443, None),
            ("c.b.example", 80, Some("*.b.example:80")),
            ("b.example", 80, None),
            ("xb.example", 443, Some("*.example")),
            ("10.0.0.1", 443, Some("10.0.0.1")),
            ("10.0.0.2", 443, None),
        ];
        for (host, port, expected) in cases {
            let name = HostName::parse(host).unwrap();
            assert_eq!(map.lookup(&name, port).copied(), expected, "{host}:{port}");
        }
    }

    proptest! {
        #[test]
        fn covering_equals_the_definition(host in "[ab]{1,2}(\\.[ab]{1,2}){0,3}", parent in "[ab]{1,2}(\\.[ab]{1,2}){0,2}") {
            let mut map = HostMap::default();
            map.insert(&HostPattern::parse(&format!("*.{parent}")).unwrap(), ());
            let labels: Vec<_> = host.split('.').collect();
            let above: Vec<_> = parent.split('.').collect();
            let naive = labels.len() > above.len() && labels[labels.len() - above.len()..] == above[..];
            prop_assert_eq!(map.lookup(&HostName::parse(&host).unwrap(), 443).is_some(), naive);
        }
    }
}
