//! What `METHOD /path/**` means, by another program than the one that decides: requests are put together from pieces whose
//! meaning is known before anything is parsed.

use proptest::prelude::*;

use super::*;

/// A character of a segment, and how the request spells it.
#[derive(Clone, Copy, Debug)]
struct Atom {
    char: char,
    spelling: Spelling,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spelling {
    Plain,
    Lower,
    Upper,
}

impl Atom {
    fn encoded(self, upper: bool) -> String {
        let mut buffer = [0; 4];
        let bytes = self.char.encode_utf8(&mut buffer).bytes();
        let encode = |byte| match upper {
            true => format!("%{byte:02X}"),
            false => format!("%{byte:02x}"),
        };
        bytes.map(encode).collect()
    }

    fn spelt(self) -> String {
        match self.spelling {
            Spelling::Plain => self.char.to_string(),
            spelling => self.encoded(spelling == Spelling::Upper),
        }
    }

    /// In the canonical path.
    fn canonical(self) -> String {
        match self.char {
            'a' | 'b' | 'A' | '.' | '-' => self.char.to_string(),
            ';' | '@' | '*' if self.spelling == Spelling::Plain => self.char.to_string(),
            _ => self.encoded(true),
        }
    }
}

/// Every path that a server may read; `None`: servers would not agree on where its dots lead.
fn readings(segments: &[Vec<Atom>]) -> Option<BTreeSet<String>> {
    let text = |segment: &Vec<Atom>| {
        segment
            .iter()
            .map(|atom| atom.canonical())
            .collect::<String>()
    };
    let texts = || segments.iter().map(text);
    let is_odd = |text: String| {
        text.contains(['%', ';']) || text.len() > 2 && text.chars().all(|c| c == '.')
    };
    if texts().any(|text| text == "..") && texts().any(is_odd) {
        return None;
    }
    let (mut kept, mut open) = (Vec::new(), true);
    for segment in segments {
        let text: String = segment.iter().map(|atom| atom.canonical()).collect();
        open = matches!(text.as_str(), "" | "." | "..");
        match text.as_str() {
            "" | "." => {}
            ".." => drop(kept.pop()?),
            _ => {
                // However soon another segment takes it away.
                let lenient = text.replace("%2F", "/").replace("%3B", ";");
                let mut names = lenient
                    .split('/')
                    .map(|name| name.split(';').next().unwrap());
                if names.any(is_dots) {
                    return None;
                }
                kept.push(text);
            }
        }
    }
    let mut path: String = kept.iter().map(|text| format!("/{text}")).collect();
    if open || path.is_empty() {
        path.push('/');
    }
    let written = texts()
        .map(|text: String| format!("/{text}"))
        .collect::<String>();
    let mut resolved: Vec<String> = Vec::new();
    for text in texts() {
        match text.as_str() {
            "." => {}
            ".." => drop(resolved.pop()),
            _ => resolved.push(text),
        }
    }
    if written.ends_with("/.") || written.ends_with("/..") {
        resolved.push(String::new());
    }
    let resolved = format!("/{}", resolved.join("/"));
    let has_dots = |path: &String| path.split('/').any(is_dots);
    let tidy = |from: &str, text: String| match from.contains("//") {
        true => text,
        false => text
            .replace("///", "/")
            .replace("//", "/")
            .replace("//", "/"),
    };
    let decoded = |path: &str| {
        let pairs = [("%2F", "/"), ("%3B", ";"), ("%40", "@"), ("%2A", "*")];
        let decode = |path: String, (from, to): &(&str, &str)| path.replace(from, to);
        tidy(path, pairs.iter().fold(path.to_owned(), decode))
    };
    let cut = |path: &str| {
        let names: Vec<_> = path
            .split('/')
            .map(|name| name.split(';').next().unwrap())
            .collect();
        tidy(path, names.join("/"))
    };
    // A path with dots in it is only what it says.
    let mut found: BTreeSet<_> = [path, written.clone(), resolved].into();
    if written.starts_with("//") {
        let named = written.trim_start_matches('/');
        let behind = named.split_once('/').map_or("", |(_, behind)| behind);
        let mut kept: Vec<&str> = Vec::new();
        for name in behind.split('/') {
            match name {
                "." => {}
                ".." => drop(kept.pop()),
                _ => kept.push(name),
            }
        }
        if behind.ends_with("/.") || behind.ends_with("/..") || behind == "." || behind == ".." {
            kept.push("");
        }
        let behind = format!("/{}", kept.join("/"));
        found.extend([tidy("", behind.clone()), behind]);
    }
    loop {
        let more: BTreeSet<_> = found
            .iter()
            .filter(|path| !has_dots(path))
            .flat_map(|path| [decoded(path), cut(path)])
            .collect();
        if more.iter().any(has_dots) {
            return None;
        }
        if more.is_subset(&found) {
            return Some(found);
        }
        found.extend(more);
    }
}

fn is_dots(name: &str) -> bool {
    let name = name.trim_start_matches("%20").trim_end_matches("%20");
    name == "." || name == ".."
}

/// The definition, by trying everything.
fn matches(pattern: &[&str], path: &[&str]) -> bool {
    match (pattern.split_first(), path.split_first()) {
        (None, rest) => rest.is_none(),
        (Some((&"**", others)), _) => (0..=path.len()).any(|taken| matches(others, &path[taken..])),
        (Some((&"*", others)), Some((segment, rest))) => {
            !segment.is_empty() && matches(others, rest)
        }
        (Some((first, others)), Some((segment, rest))) => {
            within(first, segment) && matches(others, rest)
        }
        (Some(_), None) => false,
    }
}

fn within(pattern: &str, text: &str) -> bool {
    match pattern.split_at_checked(1) {
        None => text.is_empty(),
        Some(("*", rest)) => (0..=text.len()).any(|taken| within(rest, &text[taken..])),
        Some((first, rest)) => text
            .strip_prefix(first)
            .is_some_and(|text| within(rest, text)),
    }
}

fn is_permitted(entry: &str, method: &str, path: &str) -> bool {
    let (only, pattern) = entry.split_once(' ').unwrap();
    let pattern: Vec<_> = pattern[1..].split('/').collect();
    let path: Vec<_> = path[1..].split('/').collect();
    // Methods are case-sensitive, and one that is not registered is nobody's.
    let registered = ["GET", "POST", "HEAD", "LOCK"].contains(&method);
    registered && (only == "ANY" || only == method) && matches(&pattern, &path)
}

const ENTRY_METHODS: [&str; 4] = ["GET", "POST", "ANY", "LOCK"];
const PATTERNS: [&str; 21] = [
    "/**",
    "/*",
    "/",
    "/a",
    "/a/",
    "/a/**",
    "/a/*",
    "/a/b",
    "/A/*",
    "/*/b",
    "/**/b",
    "/a/**/b",
    "/a*",
    "/a*b/**",
    "/a/*.b",
    "/a%2Fb",
    "/a@*",
    "/%C3%BC/**",
    "/a;b/*",
    "/*%20*",
    "/*/*/",
];
const METHODS: [&str; 7] = ["GET", "POST", "HEAD", "LOCK", "get", "Post", "PURGE"];

fn atom() -> impl Strategy<Value = Atom> {
    let spelling = prop_oneof![
        6 => Just(Spelling::Plain),
        1 => Just(Spelling::Lower),
        1 => Just(Spelling::Upper),
    ];
    let of = |chars: &'static [char]| prop::sample::select(chars);
    let char = prop_oneof![
        8 => of(&['a', 'b']),
        3 => of(&['A', '.', '-', ';', '@', '*', 'ü', ' ', '/', '%']),
    ];
    (char, spelling).prop_map(|(char, spelling)| Atom {
        char,
        // Plain, these are something else.
        spelling: match char {
            '/' | '%' if spelling == Spelling::Plain => Spelling::Upper,
            _ => spelling,
        },
    })
}

fn segment() -> impl Strategy<Value = Vec<Atom>> {
    let dot = Atom {
        char: '.',
        spelling: Spelling::Plain,
    };
    prop_oneof![
        12 => prop::collection::vec(atom(), 1..4),
        2 => Just(Vec::new()),
        1 => Just(vec![dot]),
        1 => Just(vec![dot, dot]),
    ]
}

proptest! {
    #[test]
    fn the_shorthand_means_what_it_says(
        entries in prop::collection::btree_set((prop::sample::select(&ENTRY_METHODS[..]), prop::sample::select(&PATTERNS[..])), 1..6),
        requests in prop::collection::vec((prop::sample::select(&METHODS[..]), prop::collection::vec(segment(), 1..5)), 20),
    ) {
        let entries: Vec<_> = entries.iter().map(|(method, pattern)| format!("{method} {pattern}")).collect();
        let lines: String = entries.iter().map(|entry| format!("\"{entry}\",\n")).collect();
        let sources = bundle(&format!("[[reach]]\nhost = \"h\"\nallow = [\n{lines}]\n"), "");
        let first = sources.files["agents/a.toml"].lines().position(|line| line == "allow = [").unwrap() + 2;
        let (policy, agents) = (compile(&sources), ids(&sources));
        for (method, segments) in requests {
            let raw: String = segments.iter().map(|segment| {
                let text: String = segment.iter().map(|atom| atom.spelt()).collect();
                format!("/{text}")
            }).collect();
            let parsed = CanonicalPath::parse(&raw);
            let Some(readings) = readings(&segments) else {
                let told = parsed.is_ok_and(|path| path.readings().is_ok());
                prop_assert!(!told, "{} can be told", raw);
                continue;
            };
            prop_assert!(parsed.is_ok(), "{}: {:?}", raw, parsed);
            let parsed = parsed.unwrap();
            prop_assert_eq!(parsed.readings().map(|all| all.into_iter().map(str::to_owned).collect()), Ok(readings.clone()), "{}", raw);
            let of = |path: &String| {
                let permitting = entries.iter().enumerate().filter(|(_, entry)| is_permitted(entry, method, path));
                permitting.map(|(index, _)| first + index).collect::<BTreeSet<_>>()
            };
            let by_reading: Vec<_> = readings.iter().map(of).collect();
            let expected = match by_reading.iter().any(BTreeSet::is_empty) {
                true => None,
                false => Some(by_reading.into_iter().flatten().collect::<BTreeSet<_>>()),
            };
            let asked = Asked::new(&format!("{method} https://h{raw}"), &[]);
            let line_of = |id: &String| id.split(':').nth(1).unwrap().parse::<usize>().unwrap();
            let decided = answer(&policy, &asked.input(agents["a"])).ok();
            let decided = decided.map(|ids| ids.iter().map(line_of).collect::<BTreeSet<_>>());
            prop_assert_eq!(decided, expected, "{} {} by {:?}", method, raw, entries);
        }
    }
}
