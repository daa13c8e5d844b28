//! Bodies as agents send them, and as they could to be read in two ways.

use http::HeaderName;
use proptest::prelude::*;

use super::*;

fn block(form: Form, fields: &[(&str, FieldType, &[&str])]) -> BodyBlock {
    let fields = fields.iter().map(|(name, kind, at)| {
        let field = BodyField {
            kind: *kind,
            at: at.iter().map(|segment| (*segment).to_owned()).collect(),
            private: false,
        };
        ((*name).to_owned(), field)
    });
    BodyBlock {
        method: None,
        path: PathPattern::parse("/**").unwrap(),
        form,
        fields: fields.collect(),
    }
}

fn order() -> BodyBlock {
    block(
        Form::Json,
        &[
            ("amount", FieldType::Decimal, &["amount"]),
            ("servers", FieldType::Long, &["spec", "servers"]),
            ("first", FieldType::String, &["lines", "0", "sku"]),
            ("tags", FieldType::Strings, &["tags"]),
            ("urgent", FieldType::Bool, &["a/b"]),
        ],
    )
}

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    lines
        .iter()
        .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()))
        .collect()
}

/// The fields as text, or the reason's slug.
fn read(block: &BodyBlock, lines: &[(&str, &str)], body: &[u8]) -> Result<String, &'static str> {
    match block.read(&headers(lines), body, 1000) {
        Body::Read(Fields(fields)) => {
            let shown = fields
                .iter()
                .map(|(name, value)| format!("{name}={}", value.shown()));
            Ok(shown.collect::<Vec<_>>().join(" "))
        }
        Body::Faulty(fault) => Err(fault.reason.slug()),
        Body::Unread => panic!("it was read"),
    }
}

const AMBIGUOUS: Result<&str, &str> = Err("body-ambiguous");
const UNREADABLE: Result<&str, &str> = Err("body-unreadable");
const TOO_LARGE: Result<&str, &str> = Err("body-too-large");

#[test]
fn json_is_read_exactly_or_not_at_all() {
    let deep = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
    let (fits, too_deep) = (deep(64), deep(65));
    let cases: [(&str, Result<&str, &str>); 59] = [
        ("", Ok("")),
        ("{}", Ok("")),
        (" \t\r\n{ \"amount\" : 399.99 } \n", Ok("amount=399.99")),
        (r#"{"amount":1.2e3}"#, Ok("amount=1200.0")),
        (r#"{"amount":-400}"#, Ok("amount=-400.0")),
        (r#"{"amount":0.30000000000000004}"#, UNREADABLE),
        (r#"{"amount":1e400}"#, UNREADABLE),
        (r#"{"amount":"400"}"#, UNREADABLE),
        (r#"{"amount":null}"#, UNREADABLE),
        (r#"{"amount":[400]}"#, UNREADABLE),
        (r#"{"amount":{"value":400}}"#, UNREADABLE),
        (r#"{"amount":true}"#, UNREADABLE),
        (r#"{"other":1e999}"#, Ok("")),
        (r#"{"amount":1,"amount":2}"#, AMBIGUOUS),
        (r#"{"amount":1,"\u0061mount":2}"#, AMBIGUOUS),
        (r#"{"\u0061mount":2}"#, Ok("amount=2.0")),
        (r#"{"amount":1,"Amount":2}"#, AMBIGUOUS),
        (r#"{"AMOUNT":2}"#, AMBIGUOUS),
        (r#"{"amount\u0000":2}"#, AMBIGUOUS),
        (r#"{"other":{"x":1,"x":2}}"#, AMBIGUOUS),
        (r#"{"other":[{"x":1,"x":2}]}"#, AMBIGUOUS),
        (r#"{"other":{"amount":7}}"#, Ok("")),
        (r#"{"spec":{"servers":7}}"#, Ok("servers=7")),
        (r#"{"spec":{"servers":7.0}}"#, Ok("servers=7")),
        (r#"{"spec":{"servers":7.5}}"#, UNREADABLE),
        (r#"{"spec":{"Servers":7}}"#, AMBIGUOUS),
        (r#"{"SPEC":{"servers":7}}"#, AMBIGUOUS),
        ("{\"\u{17f}pec\":{\"servers\":7}}", AMBIGUOUS),
        (r#"{"spec":7}"#, Ok("")),
        (r#"{"spec":[7]}"#, Ok("")),
        (r#"{"lines":[{"sku":"a"},{"sku":"b"}]}"#, Ok("first=a")),
        (r#"{"lines":{"0":{"sku":"a"}}}"#, Ok("first=a")),
        (r#"{"lines":[]}"#, Ok("")),
        (r#"{"lines":[{"sku":"a\u0000b"}]}"#, UNREADABLE),
        (r#"{"lines":[{"sku":"\ud83d\ude00\n"}]}"#, Ok("first=😀\n")),
        (r#"{"lines":[{"sku":"\ud83d"}]}"#, UNREADABLE),
        (r#"{"lines":[{"sku":"\ude00\ud83d"}]}"#, UNREADABLE),
        (r#"{"lines":[{"sku":"\u+123"}]}"#, UNREADABLE),
        (r#"{"tags":["b","a","a"]}"#, Ok("tags=a, b")),
        (r#"{"tags":[]}"#, Ok("tags=")),
        (r#"{"tags":["a",1]}"#, UNREADABLE),
        (r#"{"tags":"a"}"#, UNREADABLE),
        (r#"{"a/b":true}"#, Ok("urgent=true")),
        (r#"{"a/b":"true"}"#, UNREADABLE),
        ("[1,2]", Ok("")),
        ("7", Ok("")),
        ("{\"amount\":1}{\"amount\":2}", UNREADABLE),
        ("{\"amount\":1,}", UNREADABLE),
        ("{\"amount\":01}", UNREADABLE),
        ("{\"amount\":+1}", UNREADABLE),
        ("{\"amount\":NaN}", UNREADABLE),
        ("{'amount':1}", UNREADABLE),
        ("{amount:1}", UNREADABLE),
        ("{\"amount\":1/**/}", UNREADABLE),
        ("{\"other\":\"a\nb\"}", UNREADABLE),
        ("\u{feff}{\"amount\":1}", UNREADABLE),
        ("{\"amount\":1", UNREADABLE),
        (&fits, Ok("")),
        (&too_deep, TOO_LARGE),
    ];
    for (body, expected) in cases {
        let kind = [("content-type", "application/json")];
        let got = read(&order(), &kind, body.as_bytes());
        assert_eq!(got.as_deref().map_err(|slug| *slug), expected, "{body}");
        // What is cut off is never another body.
        for cut in 1..body.len().min(80) {
            let _ = read(&order(), &kind, &body.as_bytes()[..cut]);
        }
    }
    assert_eq!(
        read(
            &order(),
            &[("content-type", "application/json")],
            b"{\"x\":\"\xff\"}"
        ),
        Err("body-unreadable")
    );
}

#[test]
fn what_a_body_says_of_itself_has_one_meaning() {
    type Lines = &'static [(&'static str, &'static str)];
    let cases: [(Lines, Result<&str, &str>); 20] = [
        (&[("content-type", "application/json")], Ok("amount=1.0")),
        (
            &[("content-type", "Application/JSON; charset=UTF-8")],
            Ok("amount=1.0"),
        ),
        (
            &[("content-type", "application/json;charset=\"utf-8\" ")],
            Ok("amount=1.0"),
        ),
        (
            &[("content-type", "application/merge-patch+json")],
            Ok("amount=1.0"),
        ),
        (&[], UNREADABLE),
        (&[("content-type", "")], UNREADABLE),
        (&[("content-type", "text/plain")], UNREADABLE),
        (
            &[("content-type", "application/x-www-form-urlencoded")],
            UNREADABLE,
        ),
        (
            &[("content-type", "application/json; charset=utf-7")],
            UNREADABLE,
        ),
        (
            &[(
                "content-type",
                "application/json; charset=utf-8; charset=utf-7",
            )],
            UNREADABLE,
        ),
        (
            &[("content-type", "application/json, text/plain")],
            UNREADABLE,
        ),
        (
            &[
                ("content-type", "application/json"),
                ("content-type", "text/plain"),
            ],
            AMBIGUOUS,
        ),
        (
            &[
                ("content-type", "application/json"),
                ("content-encoding", "identity"),
            ],
            Ok("amount=1.0"),
        ),
        (
            &[
                ("content-type", "application/json"),
                ("content-encoding", "br"),
            ],
            UNREADABLE,
        ),
        (
            &[
                ("content-type", "application/json"),
                ("content-encoding", "gzip, gzip"),
            ],
            UNREADABLE,
        ),
        (
            &[
                ("content-type", "application/json"),
                ("content-encoding", "gzip"),
            ],
            UNREADABLE,
        ),
        (
            &[
                ("content-type", "application/json"),
                ("content-encoding", "deflate"),
            ],
            UNREADABLE,
        ),
        (
            &[
                ("content-type", "application/json"),
                ("content-encoding", "identity"),
                ("content-encoding", "gzip"),
            ],
            AMBIGUOUS,
        ),
        (&[("content-type", "json")], UNREADABLE),
        (&[("content-type", "application/json; =x")], UNREADABLE),
    ];
    for (lines, expected) in cases {
        let got = read(&order(), lines, b"{\"amount\":1}");
        assert_eq!(got.as_deref().map_err(|slug| *slug), expected, "{lines:?}");
    }
}

#[test]
fn encoded_bodies_are_decoded_within_the_limit() {
    use std::io::Write;
    let gzip = |text: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    };
    let zlib = |text: &[u8]| {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    };
    let lines = |coding| {
        [
            ("content-type", "application/json"),
            ("content-encoding", coding),
        ]
    };
    let small = b"{\"amount\":1200}";
    let padded = |size: usize| format!("{{\"amount\":1{}}}", " ".repeat(size - 12)).into_bytes();
    let cases = [
        ("gzip", gzip(small), Ok("amount=1200.0")),
        ("X-GZIP", gzip(small), Ok("amount=1200.0")),
        ("deflate", zlib(small), Ok("amount=1200.0")),
        ("gzip", gzip(&padded(1000)), Ok("amount=1.0")),
        ("gzip", gzip(&padded(1001)), TOO_LARGE),
        ("deflate", zlib(&vec![b' '; 10_000_000]), TOO_LARGE),
        ("gzip", [gzip(small), gzip(small)].concat(), AMBIGUOUS),
        ("gzip", [gzip(small), b"x".to_vec()].concat(), AMBIGUOUS),
        ("deflate", [zlib(small), b"x".to_vec()].concat(), AMBIGUOUS),
        ("gzip", gzip(small)[..20].to_vec(), UNREADABLE),
        ("deflate", gzip(small), UNREADABLE),
    ];
    for (coding, body, expected) in cases {
        let got = read(&order(), &lines(coding), &body);
        assert_eq!(got.as_deref().map_err(|slug| *slug), expected, "{coding}");
    }
    let mut broken = gzip(small);
    let sum = broken.len() - 8;
    broken[sum] ^= 1;
    assert_eq!(
        read(&order(), &lines("gzip"), &broken),
        Err("body-unreadable")
    );
}

fn refund() -> BodyBlock {
    block(
        Form::Fields,
        &[
            ("amount", FieldType::Decimal, &["amount"]),
            ("reason", FieldType::String, &["reason"]),
            ("tags", FieldType::Strings, &["tag"]),
        ],
    )
}

#[test]
fn forms_have_one_value_for_each_name() {
    let cases: [(&str, Result<&str, &str>); 19] = [
        ("amount=12.50&other=%zz", Ok("amount=12.5")),
        ("%61mount=12&reason=a+b%21", Ok("amount=12.0 reason=a b!")),
        ("tag=b&tag=a", Ok("tags=a, b")),
        ("other=1&other=2", Ok("")),
        ("reason", Ok("reason=")),
        ("amount=", UNREADABLE),
        ("amount=+12", UNREADABLE),
        ("amount=12%20", UNREADABLE),
        ("amount=0x10", UNREADABLE),
        ("amount=1&amount=1", AMBIGUOUS),
        ("amount=1&amount[]=2", AMBIGUOUS),
        ("Amount=1", AMBIGUOUS),
        ("amount%00=1", UNREADABLE),
        ("%20amount=1", AMBIGUOUS),
        ("amount.x=1", AMBIGUOUS),
        ("a=1;amount=2", AMBIGUOUS),
        ("reason=%ff", UNREADABLE),
        ("reason=%00", UNREADABLE),
        ("%zz=1", UNREADABLE),
    ];
    for (body, expected) in cases {
        let kind = [("content-type", "application/x-www-form-urlencoded")];
        let got = read(&refund(), &kind, body.as_bytes());
        assert_eq!(got.as_deref().map_err(|slug| *slug), expected, "{body}");
    }
}

#[test]
fn parts_of_a_form_are_read_strictly() {
    let part = |head: &str, text: &str| format!("--B\r\n{head}\r\n\r\n{text}\r\n");
    let amount = part("Content-Disposition: form-data; name=\"amount\"", "12.50");
    let file = part(
        "Content-Disposition: form-data; name=\"file\"; filename=\"a;b.png\"\r\nContent-Type: image/png",
        "\u{0}\r\n--C\r\n",
    );
    let whole = |parts: &[&str]| format!("{}--B--\r\n", parts.concat());
    let cases: Vec<(String, Result<&str, &str>)> = vec![
        (whole(&[&amount]), Ok("amount=12.5")),
        (whole(&[&file, &amount]), Ok("amount=12.5")),
        (
            whole(&[&part(
                "content-disposition: form-data; name=amount\r\nContent-Type: text/plain; charset=UTF-8",
                "1",
            )]),
            Ok("amount=1.0"),
        ),
        (
            whole(&[
                &part("Content-Disposition: form-data; name=\"tag\"", "a"),
                &part("Content-Disposition: form-data; name=\"tag\"", "b"),
            ]),
            Ok("tags=a, b"),
        ),
        ("--B--".into(), Ok("")),
        (whole(&[&amount, &amount]), AMBIGUOUS),
        (
            whole(&[&part(
                "Content-Disposition: form-data; name=\"AMOUNT\"",
                "1",
            )]),
            AMBIGUOUS,
        ),
        (
            whole(&[&part(
                "Content-Disposition: form-data; name=\"x\"; name=\"amount\"",
                "1",
            )]),
            UNREADABLE,
        ),
        (
            whole(&[&part(
                "Content-Disposition: form-data; name=\"x\"; name*=utf-8''amount",
                "1",
            )]),
            UNREADABLE,
        ),
        (
            whole(&[&part(
                "Content-Disposition: form-data; name=\"amount\"; filename=\"a\"",
                "1",
            )]),
            UNREADABLE,
        ),
        (
            whole(&[&part(
                "Content-Disposition: form-data; name=\"x\"\r\nContent-Disposition: form-data; name=\"amount\"",
                "1",
            )]),
            UNREADABLE,
        ),
        (
            whole(&[&part(
                "Content-Disposition: form-data;\r\n name=\"amount\"",
                "1",
            )]),
            UNREADABLE,
        ),
        (
            whole(&[&part(
                "Content-Disposition: form-data; name=\"amount\"\r\nContent-Transfer-Encoding: base64",
                "MQ==",
            )]),
            UNREADABLE,
        ),
        (
            whole(&[&part(
                "Content-Disposition: form-data; name=\"amount\"\r\nContent-Type: text/plain; charset=utf-16",
                "1",
            )]),
            UNREADABLE,
        ),
        (
            whole(&[&part(
                "Content-Disposition: form-data; name=\"_charset_\"",
                "utf-7",
            )]),
            UNREADABLE,
        ),
        (
            whole(&[&part(
                "Content-Disposition: form-data; name=\"amoun%74\"",
                "1",
            )]),
            UNREADABLE,
        ),
        (whole(&[&part("X: 1", "1")]), UNREADABLE),
        (format!("preamble\r\n{}", whole(&[&amount])), UNREADABLE),
        (format!("{}epilogue", whole(&[&amount])), UNREADABLE),
        (whole(&[&amount]).replace("\r\n", "\n"), UNREADABLE),
        (whole(&[&amount]).replace("--B--", "--B"), UNREADABLE),
        (whole(&[&amount, "--B \r\n"]), UNREADABLE),
        (
            whole(&[&part(
                "Content-Disposition: form-data; name=\"reason\"",
                "x\r\n--Bogus",
            )]),
            UNREADABLE,
        ),
    ];
    for (body, expected) in cases {
        let kind = [("content-type", "multipart/form-data; boundary=B")];
        let got = read(&refund(), &kind, body.as_bytes());
        assert_eq!(got.as_deref().map_err(|slug| *slug), expected, "{body}");
    }
    for boundary in [
        "",
        "; boundary=",
        "; boundary=\"a \"",
        "; boundary=ü",
        "; boundary=B; boundary=C",
    ] {
        let kind = format!("multipart/form-data{boundary}");
        let value = http::HeaderValue::from_bytes(kind.as_bytes()).unwrap();
        let headers = HeaderMap::from_iter([(http::header::CONTENT_TYPE, value)]);
        let body = refund().read(&headers, whole(&[&amount]).as_bytes(), 1000);
        assert!(matches!(body, Body::Faulty(_)), "{kind}");
    }
}

/// A JSON document in which nothing but `amount` is declared, and what of it a reader must find.
fn document() -> impl Strategy<Value = (String, Option<i64>)> {
    let space = || "[ \\n\\t\\r]{0,2}";
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,9})?([eE][-+]?[0-9]{1,4})?",
        r#""([a-z 0-9{}\[\]:,é😀]|\\u00[2-7][0-9a-f]|\\[nrtbf/"\\]){0,8}""#,
    ];
    let value = leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4)
                .prop_map(|items| format!("[{}]", items.join(" ,"))),
            proptest::collection::btree_map("[b-z]{1,3}", inner, 0..4).prop_map(|pairs| {
                let pairs = pairs
                    .iter()
                    .map(|(key, value)| format!("\"{key}\" :{value}"));
                format!("{{{}}}", pairs.collect::<Vec<_>>().join(","))
            }),
        ]
    });
    let others = proptest::collection::btree_map("[b-z]{1,3}", value, 0..4);
    let amount = proptest::option::of((any::<i64>(), 0usize..4, any::<bool>()));
    (others, amount, space()).prop_map(|(others, amount, space)| {
        let mut pairs: Vec<_> = others
            .iter()
            .map(|(key, value)| format!("{space}\"{key}\"{space}:{space}{value}{space}"))
            .collect();
        if let Some((units, zeros, escaped)) = amount {
            let key = if escaped {
                "\\u0061m\\u006Funt"
            } else {
                "amount"
            };
            let number = format!("{units}{}E-{}", "0".repeat(zeros), 4 + zeros);
            pairs.insert(pairs.len() / 2, format!("\"{key}\":{space}{number}"));
        }
        let text = format!("{space}{{{}}}{space}", pairs.join(","));
        (text, amount.map(|(units, ..)| units))
    })
}

/// `text`'s reading by another parser, if it is JSON: whether any object has a key twice.
fn has_twins(text: &str) -> Option<bool> {
    struct Seen(bool);
    impl<'de> serde::Deserialize<'de> for Seen {
        fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            from.deserialize_any(Look)
        }
    }
    struct Look;
    impl<'de> serde::de::Visitor<'de> for Look {
        type Value = Seen;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("JSON")
        }
        fn visit_unit<E>(self) -> Result<Seen, E> {
            Ok(Seen(false))
        }
        fn visit_bool<E>(self, _: bool) -> Result<Seen, E> {
            Ok(Seen(false))
        }
        fn visit_i64<E>(self, _: i64) -> Result<Seen, E> {
            Ok(Seen(false))
        }
        fn visit_u64<E>(self, _: u64) -> Result<Seen, E> {
            Ok(Seen(false))
        }
        fn visit_f64<E>(self, _: f64) -> Result<Seen, E> {
            Ok(Seen(false))
        }
        fn visit_str<E>(self, _: &str) -> Result<Seen, E> {
            Ok(Seen(false))
        }
        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut items: A) -> Result<Seen, A::Error> {
            let mut twins = false;
            while let Some(Seen(inside)) = items.next_element()? {
                twins |= inside;
            }
            Ok(Seen(twins))
        }
        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut pairs: A) -> Result<Seen, A::Error> {
            let (mut keys, mut twins) = (BTreeSet::new(), false);
            while let Some((key, Seen(inside))) = pairs.next_entry::<String, _>()? {
                twins |= inside | !keys.insert(key);
            }
            Ok(Seen(twins))
        }
    }
    serde_json::from_str::<Seen>(text).ok().map(|seen| seen.0)
}

proptest! {
    #[test]
    fn a_documents_amount_is_found_to_the_last_digit((text, units) in document()) {
        let block = block(Form::Json, &[("amount", FieldType::Decimal, &["amount"])]);
        let body = block.read(&headers(&[("content-type", "application/json")]), text.as_bytes(), 0);
        let expected = units.map(|units| {
            let (sign, size) = (if units < 0 { "-" } else { "" }, units.unsigned_abs());
            let fraction = format!("{:04}", size % 10_000);
            let fraction = fraction.trim_end_matches('0');
            format!("amount={sign}{}.{}", size / 10_000, if fraction.is_empty() { "0" } else { fraction })
        });
        let got = match body {
            Body::Read(Fields(fields)) => fields.iter().map(|(name, value)| format!("{name}={}", value.shown())).next(),
            other => return Err(TestCaseError::fail(format!("{other:?}: {text}"))),
        };
        prop_assert_eq!(got, expected, "{}", text);
    }

    #[test]
    fn damaged_documents_are_judged_as_another_parser_does(
        (text, _) in document(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), "[\"\\\\{}\\[\\]:,0-9eE.+a-z\u{0}\u{1f} -]{0,2}"), 0..3),
    ) {
        let mut damaged: Vec<char> = text.chars().collect();
        for (at, with) in damage {
            let at = at.index(damaged.len());
            damaged.splice(at..=at, with.chars());
            if damaged.is_empty() {
                return Ok(());
            }
        }
        let text: String = damaged.into_iter().collect();
        // Nothing is declared, so all that counts is whether it is JSON, and has no key twice.
        match (json::read(&text, &BTreeMap::new()), has_twins(&text)) {
            (Ok(_), Some(twins)) => prop_assert!(!twins, "{}", text),
            (Ok(_), None) => {
                // Numbers beyond a float's range are the one thing that is JSON and that the other cannot hold.
                let why = serde_json::from_str::<serde_json::Value>(&text).unwrap_err().to_string();
                prop_assert!(why.contains("number out of range"), "{}: {}", why, text);
            }
            (Err(fault), Some(false)) => {
                // Keys with a NUL are refused besides.
                prop_assert!(fault.why.contains("NUL"), "{:?}: {}", fault, text);
            }
            (Err(_), _) => {}
        }
    }

    #[test]
    fn no_body_makes_a_reader_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        text in "(amount|[-=&;%a-z0-9\"{}:, \r\n]){0,60}",
    ) {
        let kinds = ["application/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a"];
        for kind in kinds {
            for coding in ["identity", "gzip", "deflate"] {
                for body in [&bytes[..], text.as_bytes()] {
                    for block in [order(), refund()] {
                        let lines = [("content-type", kind), ("content-encoding", coding)];
                        let _ = block.read(&headers(&lines), body, 1000);
                    }
                }
            }
        }
    }
}
