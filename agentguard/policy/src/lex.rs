//! Tokens of Cedar text, for what Cedar's own parser does not tell: where annotations and entity literals stand, and which
//! query parameters, headers and path patterns a policy reads.

/// One token; strings without their quotes, escapes as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind<'s> {
    Word(&'s str),
    Text(&'s str),
    /// `::` or one other character.
    Sign(&'s str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CedarToken<'s> {
    pub offset: usize,
    pub kind: TokenKind<'s>,
}

/// The tokens of each policy of the text, in order. Cedar has no `;` but at the end of a policy.
pub(super) fn policies(text: &str) -> Vec<Vec<CedarToken<'_>>> {
    let mut found = Vec::new();
    let mut current = Vec::new();
    for token in tokens(text) {
        if token.kind == TokenKind::Sign(";") {
            found.push(std::mem::take(&mut current));
        } else {
            current.push(token);
        }
    }
    if !current.is_empty() {
        found.push(current);
    }
    found
}

/// White space that is not read as such here, and that Cedar takes for some: the two could read a text otherwise.
pub(super) fn unusual_space(text: &str) -> Option<(usize, char)> {
    let alone = |(offset, _): &(usize, &str)| text.as_bytes().get(offset + 1) != Some(&b'\n');
    let carriage = text.match_indices('\r').find(alone).map(|it| it.0);
    let strange = tokens(text).into_iter().find_map(|token| match token.kind {
        TokenKind::Sign(sign) if !sign.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Some(token.offset)
        }
        TokenKind::Word(_) | TokenKind::Text(_) | TokenKind::Sign(_) => None,
    });
    let offset = carriage.into_iter().chain(strange).min()?;
    Some((offset, text[offset..].chars().next()?))
}

fn tokens(text: &str) -> Vec<CedarToken<'_>> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        let kind = match bytes[at] {
            byte if byte.is_ascii_whitespace() => {
                at += 1;
                continue;
            }
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                at += bytes[at..]
                    .iter()
                    .position(|byte| *byte == b'\n')
                    .unwrap_or(bytes.len() - at);
                continue;
            }
            b'"' => {
                at += 1;
                while at < bytes.len() && bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                let end = at.min(bytes.len());
                at = end + 1;
                TokenKind::Text(text.get(start + 1..end).unwrap_or_default())
            }
            b':' if bytes.get(at + 1) == Some(&b':') => {
                at += 2;
                TokenKind::Sign(&text[start..at])
            }
            byte if byte.is_ascii_alphanumeric() || byte == b'_' => {
                at += bytes[at..]
                    .iter()
                    .position(|byte| !(byte.is_ascii_alphanumeric() || *byte == b'_'))
                    .unwrap_or(bytes.len() - at);
                TokenKind::Word(&text[start..at])
            }
            _ => {
                at += text[start..].chars().next().map_or(1, char::len_utf8);
                TokenKind::Sign(&text[start..at])
            }
        };
        found.push(CedarToken {
            offset: start,
            kind,
        });
    }
    found
}

/// An entity literal: `Host::"x"` is `("Host", "x")`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Literal<'s> {
    pub offset: usize,
    pub entity_type: &'s str,
    pub id: &'s str,
}

pub(super) fn literals<'s>(tokens: &[CedarToken<'s>]) -> Vec<Literal<'s>> {
    tokens
        .windows(3)
        .filter_map(
            |window| match (window[0].kind, window[1].kind, window[2].kind) {
                (TokenKind::Word(entity_type), TokenKind::Sign("::"), TokenKind::Text(id)) => {
                    Some(Literal {
                        offset: window[0].offset,
                        entity_type,
                        id,
                    })
                }
                _ => None,
            },
        )
        .collect()
}

/// Names of the annotations in front of the policy.
pub(super) fn annotations<'s>(tokens: &[CedarToken<'s>]) -> Vec<(usize, &'s str)> {
    tokens
        .windows(2)
        .filter_map(|window| match (window[0].kind, window[1].kind) {
            (TokenKind::Sign("@"), TokenKind::Word(name)) => Some((window[0].offset, name)),
            _ => None,
        })
        .collect()
}

/// Time windows that are named: `context.time.within.contains("…")`.
pub(super) fn windows<'s>(tokens: &[CedarToken<'s>]) -> Vec<(usize, &'s str)> {
    const ASKED: [TokenKind<'_>; 8] = [
        TokenKind::Word("time"),
        TokenKind::Sign("."),
        TokenKind::Word("within"),
        TokenKind::Sign("."),
        TokenKind::Word("contains"),
        TokenKind::Sign("("),
        TokenKind::Text(""),
        TokenKind::Sign(")"),
    ];
    let named = tokens.windows(ASKED.len()).filter_map(|window| {
        let TokenKind::Text(name) = window[6].kind else {
            return None;
        };
        let is_asked = |(at, kind): (usize, &TokenKind<'_>)| at == 6 || window[at].kind == *kind;
        let all = ASKED.iter().enumerate().all(is_asked);
        all.then_some((window[6].offset, name))
    });
    named.collect()
}

/// How often the word is there.
pub(super) fn count(tokens: &[CedarToken<'_>], word: &str) -> usize {
    let is_word = |token: &&CedarToken<'_>| token.kind == TokenKind::Word(word);
    tokens.iter().filter(is_word).count()
}

/// One use of `context`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use<'s> {
    /// `context.attribute`, of an attribute that is a plain value.
    Plain(&'s str),
    /// `context.routes.contains("…")`
    Route(&'s str),
    /// `context.routes` in any other way.
    OpenRoutes,
    /// `context.query.getTag("…")` or `hasTag`; `None`: a name that is not known before.
    Query(Option<&'s str>),
    Header(Option<&'s str>),
    /// `context.body.name` or `context.body has name`; `None`: `context.body` in any other way.
    Body(Option<&'s str>),
    /// The same of `context.lookup`.
    Lookup(Option<&'s str>),
    /// `context` as a whole.
    Whole,
}

pub(super) fn context_uses<'s>(tokens: &[CedarToken<'s>]) -> Vec<(usize, Use<'s>)> {
    let mut found = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        if token.kind != TokenKind::Word("context")
            || index > 0 && tokens[index - 1].kind == TokenKind::Sign(".")
        {
            continue;
        }
        let rest = &tokens[index + 1..];
        let kinds: Vec<_> = rest.iter().take(6).map(|token| token.kind).collect();
        let call = |names: &[&str]| match kinds.get(2..6) {
            Some(
                [
                    TokenKind::Sign("."),
                    TokenKind::Word(method),
                    TokenKind::Sign("("),
                    TokenKind::Text(text),
                ],
            ) if names.contains(method)
                && rest.get(6).map(|token| token.kind) == Some(TokenKind::Sign(")"))
                && !text.contains('\\') =>
            {
                Some(*text)
            }
            _ => None,
        };
        let found_use = match (kinds.first(), kinds.get(1)) {
            (Some(TokenKind::Sign(".")), Some(TokenKind::Word("routes"))) => {
                call(&["contains"]).map_or(Use::OpenRoutes, Use::Route)
            }
            (Some(TokenKind::Sign(".")), Some(TokenKind::Word("query"))) => {
                Use::Query(call(&["getTag", "hasTag"]))
            }
            (Some(TokenKind::Sign(".")), Some(TokenKind::Word("headers"))) => {
                Use::Header(call(&["getTag", "hasTag"]))
            }
            (Some(TokenKind::Sign(".")), Some(TokenKind::Word("body"))) => Use::Body(field(&kinds)),
            (Some(TokenKind::Sign(".")), Some(TokenKind::Word("lookup"))) => {
                Use::Lookup(field(&kinds))
            }
            (Some(TokenKind::Sign(".")), Some(TokenKind::Word(name))) => Use::Plain(name),
            _ => Use::Whole,
        };
        found.push((token.offset, found_use));
    }
    found
}

/// The field in what follows `context`.
fn field<'s>(behind: &[TokenKind<'s>]) -> Option<&'s str> {
    match behind.get(2..4)? {
        [
            TokenKind::Sign(".") | TokenKind::Word("has"),
            TokenKind::Word(name),
        ] => Some(name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_split_outside_strings_and_comments() {
        let text = "// a; b\n@id(\"x;\\\";y\") permit(principal,action,resource); // ;\nforbid (principal, action, resource) ;";
        let found = policies(text);
        assert_eq!(found.len(), 2);
        assert_eq!(annotations(&found[0]), [(8, "id")]);
        assert_eq!(found[1][0].kind, TokenKind::Word("forbid"));
    }

    #[test]
    fn space_that_could_be_read_in_two_ways_is_found() {
        let plain = "// ü\u{a0} \x0b\r\npermit\t(principal, \"\u{a0}\");\r\n";
        assert_eq!(unusual_space(plain), None);
        for (text, expected) in [
            ("// a\rpermit", (4, '\r')),
            ("permit;\r", (7, '\r')),
            ("Host\u{a0}::\"x\"", (4, '\u{a0}')),
            ("permit\x0b(", (6, '\x0b')),
            ("a \u{2028}\r", (2, '\u{2028}')),
        ] {
            assert_eq!(unusual_space(text), Some(expected), "{text:?}");
        }
    }

    #[test]
    fn literals_are_found_with_any_spacing() {
        let text = "resource in [Host :: \"a\", Host::\"b\"] && \"Host::x\" == A::B::\"c\"";
        let tokens = tokens(text);
        let found: Vec<_> = literals(&tokens)
            .into_iter()
            .map(|l| (l.entity_type, l.id))
            .collect();
        assert_eq!(found, [("Host", "a"), ("Host", "b"), ("B", "c")]);
    }

    #[test]
    fn uses_of_context_are_classified() {
        let within = "context.time.within . contains(\"open\") && x.within.contains(\"no\")";
        assert_eq!(windows(&tokens(within)), [(31, "open")]);
        let cases = [
            ("context.path == \"/\"", Use::Plain("path")),
            ("context . routes . contains ( \"/a\" )", Use::Route("/a")),
            ("context.routes.containsAny([\"/a\"])", Use::OpenRoutes),
            ("context.routes", Use::OpenRoutes),
            ("context.query.getTag(\"n\")", Use::Query(Some("n"))),
            ("context.query.getTag(\"n\" )", Use::Query(Some("n"))),
            ("context.headers.hasTag(\"x-a\")", Use::Header(Some("x-a"))),
            ("context.headers.hasTag(principal.owner)", Use::Header(None)),
            (
                "context.query.getTag(if true then \"a\" else \"b\")",
                Use::Query(None),
            ),
            ("context.query.getTag(\"a\\u{62}\")", Use::Query(None)),
            ("context.headers", Use::Header(None)),
            ("context.body.amount < 3", Use::Body(Some("amount"))),
            ("context . body has amount", Use::Body(Some("amount"))),
            ("context.body has \"amount\"", Use::Body(None)),
            ("context.body[\"amount\"]", Use::Body(None)),
            ("context.body == 1", Use::Body(None)),
            ("context.lookup has open", Use::Lookup(Some("open"))),
            ("context.lookup[\"open\"]", Use::Lookup(None)),
            ("context == context2", Use::Whole),
            ("context has path", Use::Whole),
            ("context[\"path\"]", Use::Whole),
        ];
        for (text, expected) in cases {
            assert_eq!(context_uses(&tokens(text)), [(0, expected)], "{text}");
        }
        assert_eq!(context_uses(&tokens("resource.context.path")), []);
    }

    #[test]
    fn unfinished_text_does_not_panic() {
        for text in ["\"", "\"\\", "\"ü\\ü", "/", "//", "@", "context.", "ü::\""] {
            let _ = policies(text);
            let _ = context_uses(&tokens(text));
        }
    }
}
