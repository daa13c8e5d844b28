//! What a bundle may not say, and where the error points.

use super::*;

const REACH: &str = "[[reach]]\nhost = \"h.example\"\n";

fn rule(body: &str) -> Sources {
    bundle(REACH, body)
}

/// With the rest of `[time]`.
fn timed(time: &str, rules: &str) -> Sources {
    let mut sources = bundle(REACH, rules);
    let manifest = format!("name = \"b\"\nserial = 1\n[time]\n{time}");
    sources.files.insert("bundle.toml".into(), manifest);
    sources
}

pub(super) fn found(sources: &Sources) -> Vec<String> {
    match Policy::compile(sources, &ids(sources)) {
        Ok(_) => Vec::new(),
        Err(found) => found
            .into_iter()
            .map(|one| {
                let place = one.line.map_or(String::new(), |line| {
                    format!(":{line}:{}", one.column.unwrap())
                });
                let help = one.help.map_or(String::new(), |help| format!(" | {help}"));
                format!("{}{place}: {}{help}", one.file, one.message)
            })
            .collect(),
    }
}

#[test]
fn one_mistake_gives_one_error_that_names_it() {
    let permit = "@id(\"p\") permit (principal, action == Action::\"GET\", resource)";
    let cases = [
        (
            bundle("[[reach]]\nhost = \"h\"\nallows = []\n", ""),
            "agents/a.toml:7:1: unknown key `allows` in [[reach]] | did you mean `allow`?",
        ),
        (
            bundle("[exec]\nallow = [\"/bin/sh\"]\n", ""),
            "agents/a.toml:5:2: [exec] has no `default` | add `default = \"deny\"`",
        ),
        (
            bundle("[exec]\ndefault = \"denied\"\n", ""),
            "agents/a.toml:6:11: `default` is `denied`, which is none of `allow`, `deny`",
        ),
        (
            bundle(
                "[exec]\ndefault = \"deny\"\nallow = [\"/bin/sh\", \"bin/ls\"]\n",
                "",
            ),
            "agents/a.toml:7:21: `bin/ls` is not an absolute path",
        ),
        (
            bundle("[exec]\ndefault = \"deny\"\nallow = [\"/bin/py[3]\"]\n", ""),
            "agents/a.toml:7:10: `/bin/py[3]` has `[`",
        ),
        (
            bundle(
                "[exec]\ndefault = \"deny\"\nallow = [{ path = \"/bin/sh\", sha256 = \"00\" }]\n",
                "",
            ),
            "agents/a.toml:7:39: `00` is no SHA-256: it has 2 digits, not 64 | write what `sha256sum FILE` says",
        ),
        (
            bundle(
                "[exec]\ndefault = \"deny\"\nallow = [{ path = \"/bin/sh\", sha256 = [\"x\"] }]\n",
                "",
            ),
            "agents/a.toml:7:40: `x` is no SHA-256: `x` is not a hexadecimal digit",
        ),
        (
            bundle(
                "[exec]\ndefault = \"deny\"\nallow = [{ path = \"/bin/sh\", sha256 = [] }]\n",
                "",
            ),
            "agents/a.toml:7:30: `sha256` is an empty list | write the path alone",
        ),
        (
            bundle(
                "[exec]\ndefault = \"deny\"\nallow = [{ sha256 = \"0000000000000000000000000000000000000000000000000000000000000000\" }]\n",
                "",
            ),
            "agents/a.toml:7:10: the entry has no `path`",
        ),
        (
            bundle(
                "[exec]\ndefault = \"deny\"\nallow = [{ path = \"/bin/sh\", sha265 = \"00\" }]\n",
                "",
            ),
            "agents/a.toml:7:30: unknown key `sha265` in the entry | did you mean `sha256`?",
        ),
        (
            bundle("[exec]\ndefault = \"deny\"\nallow = [1]\n", ""),
            "agents/a.toml:7:10: `allow` holds a integer, not a string",
        ),
        (
            bundle("[exec]\ndefault = \"deny\"\nallow = \"/bin/sh\"\n", ""),
            "agents/a.toml:7:9: `allow` is a string, not a list of strings",
        ),
        (
            bundle("[exec]\ndefault = \"allow\"\nallow = [\"/bin/sh\"]\n", ""),
            "agents/a.toml:7:1: `allow` in [exec] says nothing where `default` is `allow`",
        ),
        (
            bundle(
                "[exec]\ndefault = \"allow\"\ndeny = [\"/bin/sh\", \"/bin/sh\"]\n",
                "",
            ),
            "agents/a.toml:7:20: `/bin/sh` is in `deny` twice",
        ),
        (
            bundle("[exec]\ndefault = \"allow\"\narguments = \"hide\"\n", ""),
            "agents/a.toml:7:13: `arguments` is `hide`, which is none of `record`, `private`",
        ),
        (
            bundle("[exec]\ndefault = \"allow\"\nalow = []\n", ""),
            "agents/a.toml:7:1: unknown key `alow` in [exec] | did you mean `allow`?",
        ),
        (
            bundle("[exec]\ndefault = \"allow\"\nsha256 = \"00\"\n", ""),
            "agents/a.toml:7:1: unknown key `sha256` in [exec] | `sha256` belongs in an entry of `allow` or `deny`",
        ),
        (
            bundle("[[unix]]\npath = \"x\"\n", ""),
            "agents/a.toml:6:8: `x` is neither an absolute path nor an abstract name",
        ),
        (
            bundle("[[unix]]\npath = \"/run/*.sock\"\n", ""),
            "agents/a.toml:6:8: `/run/*.sock` is a pattern | name each socket",
        ),
        (
            bundle("[[unix]]\npath = \"/run/../x\"\n", ""),
            "agents/a.toml:6:8: `/run/../x` is not a socket's plain path",
        ),
        (
            bundle("[[unix]]\npath = \"@\"\n", ""),
            "agents/a.toml:6:8: `@` alone names no abstract socket",
        ),
        (
            bundle("[[unix]]\npath = \"/x\"\n[[unix]]\npath = \"/x\"\n", ""),
            "agents/a.toml:8:8: the entry repeats one above",
        ),
        (
            bundle("[[unix]]\n", ""),
            "agents/a.toml:5:1: [[unix]] has no `path` | add",
        ),
        (
            bundle("parent = \"b\"\n", ""),
            "agents/a.toml:5:10: the bundle has no agent `b` to be the parent | add it to agents/",
        ),
        (
            rule(&format!("@reason(\"outside-hours\") {permit};")),
            "rules/r.cedar:1:1: `@reason` says why a forbid refuses, and this is a permit",
        ),
        (
            rule("@id(\"f\") @reason(\"outside-hour\") forbid (principal, action, resource);"),
            "rules/r.cedar:1:1: `@reason` `outside-hour` is none that a rule can give | did you mean `outside-hours`?",
        ),
        (
            rule(&format!("{permit} when {{ context.time.hour > 8 }};")),
            "rules/r.cedar:1:1: policy reads `context.time`, and bundle.toml has no zone for it | add `[time]`",
        ),
        (
            timed("zone = \"Europe/Viena\"\n", ""),
            "bundle.toml:4:8: there is no time zone `Europe/Viena` | did you mean `Europe/Vienna`?",
        ),
        (
            timed(
                "zone = \"UTC\"\n[[time.window]]\nname = \"w\"\nfrom = \"9:00\"\n",
                "",
            ),
            "bundle.toml:7:8: `from` is `9:00`, which is no time of day | write for example",
        ),
        (
            timed(
                "zone = \"UTC\"\n[[time.window]]\nname = \"w\"\ndays = [\"monday\"]\n",
                "",
            ),
            "bundle.toml:7:9: `monday` is no day",
        ),
        (
            timed("zone = \"UTC\"\n[[time.window]]\nname = \"w\"\n", ""),
            "bundle.toml:5:1: [[time.window]] has no key and would always hold",
        ),
        (
            timed(
                "zone = \"UTC\"\n[[time.window]]\nname = \"w\"\nfirst = \"2026-12-24\"\nlast = \"2026-12-18\"\n",
                "",
            ),
            "bundle.toml:8:1: `last` is before `first`",
        ),
        (
            timed(
                "zone = \"UTC\"\n[[time.window]]\nname = \"open\"\nfrom = \"09:00\"\n",
                &format!("{permit} when {{ context.time.within.contains(\"opne\") }};"),
            ),
            "rules/r.cedar:1:100: there is no time window `opne` | did you mean `open`?",
        ),
        (
            bundle("parent = \"a\"\n", ""),
            "agents/a.toml:5:10: an agent is its own parent: `a` below `a` | leave out",
        ),
        (
            bundle("host = \"h\"\n", ""),
            "agents/a.toml:5:1: unknown key `host` in [agent] | `host` belongs in [[reach]]",
        ),
        (
            bundle("[[reach]]\nhost = \"h\"\nallow = [\"GTE /\"]\n", ""),
            "agents/a.toml:7:10: `GTE` is not an HTTP method | did you mean `GET`?",
        ),
        (
            bundle("[[reach]]\nhost = \"h\"\nallow = [\"GET /a/../b\"]\n", ""),
            "agents/a.toml:7:10: path pattern `/a/../b` matches nothing: paths are compared in their canonical form, here `/b`",
        ),
        (
            bundle("[[reach]]\nhost = \"h\"\nallow = [\"/a\"]\n", ""),
            "agents/a.toml:7:10: `/a` is not a method and a path",
        ),
        (
            bundle("[[reach]]\nhost = \"h\"\nallow = \"GET /\"\n", ""),
            "agents/a.toml:7:9: `allow` is a string, not a list of strings",
        ),
        (
            bundle("[[reach]]\nhost = \"h:0\"\n", ""),
            "agents/a.toml:6:8: `0` is not a port from 1 to 65535",
        ),
        (
            bundle("[[reach]]\nhost = \"127.1\"\n", ""),
            "agents/a.toml:6:8: `127.1` is an IPv4 address in a form",
        ),
        (
            bundle("[[reach]]\nhost = \"*\"\n", ""),
            "agents/a.toml:6:8: `*` has `*` where no wildcard can be",
        ),
        (
            bundle("[[reach]]\nhost = \"https://h/x\"\n", ""),
            "agents/a.toml:6:8: ",
        ),
        (
            bundle("[[reach]]\nhost = \"h\"\ntls = \"pass\"\n", ""),
            "agents/a.toml:7:7: `tls` is `pass`, which is none of",
        ),
        (
            bundle(
                "[[reach]]\nhost = \"h\"\ntls = \"passthrough\"\nallow = [\"GET /\"]\n",
                "",
            ),
            "agents/a.toml:8:10: `GET /` asks for what nobody reads",
        ),
        (
            bundle("[[reach]]\nhost = \"h\"\n[[reach]]\nhost = \"H.\"\n", ""),
            "agents/a.toml:8:8: `h` already has a [[reach]] in agents/a.toml:6",
        ),
        (
            bundle("[[reach]]\n", ""),
            "agents/a.toml:5:1: [[reach]] has neither `host` nor `to`",
        ),
        (
            bundle("[[reach]]\nto = \"10.0.0.5/24:1\"\n", ""),
            "agents/a.toml:6:6: `10.0.0.5/24` has address bits after its prefix; the range it lies in is `10.0.0.0/24`",
        ),
        (
            bundle("[[reach]]\nto = \"10.0.0.0/33:1\"\n", ""),
            "agents/a.toml:6:6: `10.0.0.0/33` is not an address range",
        ),
        (
            bundle("[[reach]]\nto = \"10.0.0.0/24\"\n", ""),
            "agents/a.toml:6:6: `10.0.0.0/24` has no port",
        ),
        (
            bundle("[[reach]]\nto = \"10.0.0.0/24:70000\"\n", ""),
            "agents/a.toml:6:6: `70000` is not a port",
        ),
        (
            bundle("[[reach]]\nto = \"[::ffff:10.0.0.0/120]:1\"\n", ""),
            "agents/a.toml:6:6: `::ffff:10.0.0.0/120` is an IPv4 range in IPv6 form",
        ),
        (
            bundle("[[reach]]\nto = \"[::/0]:443\"\n", ""),
            "agents/a.toml:6:6: `::/0` also covers every IPv4 address",
        ),
        (
            rule(&format!("@id(\"a/agents/a.toml:1:1\") {};", &permit[8..])),
            "rules/r.cedar:1:1: `@id` `a/agents/a.toml:1:1` is not usable",
        ),
        (
            bundle("[[reach]]\nto = \"10.0.0.0/24:1\"\nproto = \"sctp\"\n", ""),
            "agents/a.toml:7:9: `proto` is `sctp`",
        ),
        (
            bundle(
                "[[reach]]\nto = \"10.0.0.0/24:*\"\n[[reach]]\nhost = \"10.0.0.9\"\n",
                "",
            ),
            "agents/a.toml:8:8: `10.0.0.9` is reached straight through the kernel by agents/a.toml:5",
        ),
        (
            bundle("[[listen]]\non = \"127.0.0.1\"\n", ""),
            "agents/a.toml:6:6: `127.0.0.1` has no port",
        ),
        (
            bundle("[[identify]]\n", ""),
            "agents/a.toml:5:1: [[identify]] has no key",
        ),
        (
            bundle("[[identify]]\nexe = \"bin/a\"\n", ""),
            "agents/a.toml:6:7: `bin/a` is not an absolute path",
        ),
        (
            bundle("start_by = [\"ops\"]\n", ""),
            "agents/a.toml:5:13: `ops` in `start_by` names nobody",
        ),
        (bundle("[[reach]\n", ""), "agents/a.toml:5:"),
        (
            rule("permit (principal, action, resource) when { context.path == \"/\" };"),
            "rules/r.cedar:1:1: policy has no `@id`",
        ),
        (
            rule(&format!("{permit};\n{permit};")),
            "rules/r.cedar:2:1: `@id(\"p\")` is already used in rules/r.cedar:1",
        ),
        (
            rule(&format!("@approve(\"owner\") {permit};")),
            "rules/r.cedar:1:1: `@approve` is on a permit",
        ),
        (
            rule("@id(\"f\") @approve(\"owner\") forbid (principal, action, resource);"),
            "rules/r.cedar:1:1: `@approve(\"owner\")` is on a forbid that no approval lifts",
        ),
        (
            rule(
                "@id(\"f\") @approve(\"owner\") forbid (principal, action, resource) unless { context.approvals.contains(\"ownr\") };",
            ),
            "rules/r.cedar:1:1: `@approve(\"owner\")` is on a forbid that no approval lifts",
        ),
        (
            rule(
                "@id(\"f\") @approve(\"owner\") forbid (principal, action, resource) when { context.approvals.contains(\"owner\") };",
            ),
            "rules/r.cedar:1:1: `@approve(\"owner\")` is on a forbid that no approval lifts",
        ),
        (
            rule(
                "@id(\"f\") @approve(\"owner\") forbid (principal, action, resource) unless { context.approvals.contains(\"owner\") && context.segments > 1 };",
            ),
            "rules/r.cedar:1:1: `@approve(\"owner\")` is on a forbid that no approval lifts",
        ),
        (
            rule(
                "@id(\"f\") @approve(\"Owner, Finance\") forbid (principal, action, resource) unless { context.approvals.contains(\"Owner, Finance\") };",
            ),
            "rules/r.cedar:1:1: `Owner, Finance` is not usable as a role",
        ),
        (
            rule(&format!("@idd(\"x\") {permit};")),
            "rules/r.cedar:1:1: unknown annotation `@idd` | did you mean `id`?",
        ),
        (
            rule("@id(\"p\")\npermit (principal == Agent::\"b\", action, resource);"),
            "rules/r.cedar:2:22: the bundle has no agent `b`",
        ),
        (
            rule("@id(\"p\")\npermit (principal, action, resource == Host::\"h.exampel\");"),
            "rules/r.cedar:2:40: the bundle has no host `h.exampel` | did you mean `h.example`?",
        ),
        (
            rule("@id(\"p\")\npermit (principal, action, resource == Host::\"H.example\");"),
            "rules/r.cedar:2:40: `Host::\"H.example\"` is never a host's id | write `Host::\"h.example\"`",
        ),
        (
            rule("// what may be\r@id(\"p\") permit (principal, action, resource);"),
            "rules/r.cedar:1:15: \\u{d} stands outside of texts | write a space there, or end the line with a line feed",
        ),
        (
            rule("@id(\"p\")\nforbid (principal, action, resource == Host\u{a0}::\"h.example\");"),
            "rules/r.cedar:2:44: \\u{a0} stands outside of texts",
        ),
        (
            rule(
                "@id(\"p\")\nforbid (principal, action, resource) when { principal == Agent::\"\\u{61}\" };",
            ),
            "rules/r.cedar:1:1: `Agent::\"a\"` is not written as it is read",
        ),
        (
            rule("@id(\"p\") permit (principal, action, resource == Host::\"*.example\");"),
            "rules/r.cedar:1:1: policy can never apply: no request goes to `*.example` itself",
        ),
        (
            rule("@id(\"p\") permit (principal, action == Action::\"connect\", resource);"),
            "rules/r.cedar:1:1: policy can never apply: `connect` is decided only where",
        ),
        (
            rule("@id(\"p\") permit (principal, action == Action::\"request\", resource);"),
            "rules/r.cedar:1:1: policy can never apply",
        ),
        (
            rule("@id(\"p\") permit (principal, action == Action::\"GETT\", resource);"),
            "rules/r.cedar:1:39: there is no action `GETT` | did you mean `GET`?",
        ),
        (
            rule(&format!("{permit} when {{ context.pth == \"/\" }};")),
            "rules/r.cedar:1:",
        ),
        (
            rule(&format!("{permit} when {{ context.segments == \"/\" }};")),
            "rules/r.cedar:1:",
        ),
        (
            rule(&format!(
                "{permit} when {{ context.headers.getTag(\"x\") == \"/\" }};"
            )),
            "rules/r.cedar:1:",
        ),
        (
            rule(&format!(
                "{permit} when {{ context.headers.hasTag(\"X-A\") }};"
            )),
            "rules/r.cedar:1:71: header `X-A` is never there",
        ),
        (
            rule(&format!("{permit} when {{ context.routes == [\"/\"] }};")),
            "rules/r.cedar:1:71: `context.routes` is asked for one written pattern at a time",
        ),
        (
            rule(&format!(
                "{permit} when {{ context.routes.contains(\"/a?b\") }};"
            )),
            "rules/r.cedar:1:71: path pattern `/a?b` has `?`",
        ),
        (
            rule(&format!("{permit} when {{ context has path }};")),
            "rules/r.cedar:1:71: `context` cannot be used as a whole",
        ),
        (
            rule(&format!(
                "{permit} when {{ Headers::\"x\".hasTag(\"a\") }};"
            )),
            "rules/r.cedar:1:71: a request's headers are not named by an id",
        ),
        (
            rule(&format!(
                "{permit} when {{ resource.port == 80 && false }};"
            )),
            "rules/r.cedar:1:1: policy is impossible",
        ),
        (
            rule("@id(\"p\") permit (principal == ?principal, action, resource);"),
            "rules/r.cedar:1:1: policy templates have nobody to fill them",
        ),
        (
            rule("@id(\"p\")\npermit (principal, action, resource) when { context.path = \"/\" };"),
            "rules/r.cedar:2:",
        ),
        (
            sources(&[(
                "bundle.toml",
                "name = \"b\"\nserial = 1\nexpires = 2030-01-01\n",
            )]),
            "bundle.toml:3:11: `expires` is `2030-01-01`, which is no time with an offset",
        ),
        (
            sources(&[(
                "bundle.toml",
                "name = \"b\"\nserial = 1\nmode = \"watch\"\n",
            )]),
            "bundle.toml:3:8: `mode` is `watch`, which is none of `enforce`, `observe`",
        ),
        (
            sources(&[(
                "bundle.toml",
                "name = \"b\"\nserial = 1\nrequire = [\"exce\"]\n",
            )]),
            "bundle.toml:3:12: unknown guarantee `exce` in `require`",
        ),
        (
            sources(&[("bundle.toml", "name = \"b\"\n")]),
            "bundle.toml:1:1: bundle.toml has no `serial`",
        ),
        (
            sources(&[("bundle.toml", "name = \"b\"\nserial = -1\n")]),
            "bundle.toml:2:10: `serial` is not a whole number",
        ),
        (sources(&[]), "bundle.toml: the bundle has no bundle.toml"),
        (
            sources(&[
                ("bundle.toml", "name = \"b\"\nserial = 1\n"),
                ("rule/x.cedar", ""),
            ]),
            "rule/x.cedar: the file is no part of a bundle | did you mean the folder `rules`?",
        ),
        (
            sources(&[
                ("bundle.toml", "name = \"b\"\nserial = 1\n"),
                (
                    "hosts/h.toml",
                    "[host]\nname = \"h\"\nprivate_paths = [\"/a/*\", \"/a/b\"]\n",
                ),
            ]),
            "hosts/h.toml:3:26: `/a/b` does not say which segments are private | write `*` for each",
        ),
        (
            sources(&[
                ("bundle.toml", "name = \"b\"\nserial = 1\n"),
                (
                    "hosts/h.toml",
                    "[host]\nname = \"h\"\n[[body]]\non = \"POST /x\"\n",
                ),
            ]),
            "hosts/h.toml:3:1: [[body]] has no field | add one",
        ),
        (
            sources(&[
                ("bundle.toml", "name = \"b\"\nserial = 1\n"),
                (
                    "hosts/h.toml",
                    "[host]\nname = \"h\"\n[[body]]\non = \"POST /x\"\na = 1\n",
                ),
            ]),
            "hosts/h.toml:5:1: field `a` is not a table",
        ),
        (
            sources(&[
                ("bundle.toml", "name = \"b\"\nserial = 1\n"),
                (
                    "hosts/h.toml",
                    "[host]\nname = \"h\"\n[[body]]\non = \"POST /x\"\nif = { type = \"long\", at = \"/a\" }\n",
                ),
            ]),
            "hosts/h.toml:5:1: field name `if` is not usable",
        ),
        (
            sources(&[
                ("bundle.toml", "name = \"b\"\nserial = 1\n"),
                (
                    "hosts/h.toml",
                    "[host]\nname = \"h\"\n[[body]]\non = \"POST /x\"\na = { type = \"float\", at = \"/a\" }\n",
                ),
            ]),
            "hosts/h.toml:5:14: `type` is `float`, which is none of",
        ),
        (
            sources(&[
                ("bundle.toml", "name = \"b\"\nserial = 1\n"),
                (
                    "hosts/h.toml",
                    "[host]\nname = \"h\"\n[[body]]\non = \"POST /x\"\na = { type = \"long\", at = \"/a~2\" }\n",
                ),
            ]),
            "hosts/h.toml:5:27: `/a~2` is not a JSON Pointer",
        ),
        (
            sources(&[
                ("bundle.toml", "name = \"b\"\nserial = 1\n"),
                (
                    "hosts/h.toml",
                    "[host]\nname = \"h\"\n[[body]]\non = \"POST /x\"\na = { type = \"long\", at = \"/a\" }\nb = { type = \"long\", at = \"b\" }\n",
                ),
            ]),
            "hosts/h.toml:3:1: [[body]] has fields of JSON and of forms",
        ),
        (
            sources(&[
                ("bundle.toml", "name = \"b\"\nserial = 1\n"),
                (
                    "hosts/h.toml",
                    "[host]\nname = \"h\"\n[[body]]\non = \"POST /x\"\na = { type = \"long\", at = \"/a\" }\n\n[[body]]\non = \"POST /y\"\na = { type = \"bool\", at = \"/a\" }\n",
                ),
            ]),
            "hosts/h.toml:9:1: field `a` is of the type Bool here and of the type Long above",
        ),
        (
            sources(&[
                ("bundle.toml", "name = \"b\"\nserial = 1\n"),
                (
                    "hosts/h.toml",
                    "[host]\nname = \"h\"\n[[scope]]\nis = \"mony\"\non = \"POST /x\"\n",
                ),
            ]),
            "hosts/h.toml:4:6: there is no scope `mony` | did you mean `money`?",
        ),
        (
            sources(&[
                ("bundle.toml", "name = \"b\"\nserial = 1\n"),
                (
                    "hosts/h.toml",
                    "[host]\nname = \"h\"\n[[scope]]\nis = \"money\"\non = \"POST /x\"\nwhere = { kind = \"a\" }\n",
                ),
            ]),
            "hosts/h.toml:6:1: no [[body]] of this host declares a field `kind`",
        ),
        (
            sources(&[
                ("bundle.toml", "name = \"b\"\nserial = 1\n"),
                ("hosts/g.toml", "[host]\nname = \"h\"\n"),
                ("hosts/h.toml", "[host]\nname = \"H:443\"\n"),
            ]),
            "hosts/h.toml:2:8: host `h` is already described in hosts/g.toml:2",
        ),
    ];
    let mut wrong = Vec::new();
    for (sources, expected) in cases {
        let found = found(&sources);
        if found.len() != 1 || !found[0].starts_with(expected) {
            wrong.push(format!("expected {expected}\nfound {found:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn rules_about_what_the_kernel_lets_through_are_refused() {
    let agent = format!("{REACH}[[reach]]\nto = \"10.0.0.0/24:5432\"\n");
    for host in ["10.0.0.7:5432", "10.0.0.0/24:5432"] {
        let rules = format!("@id(\"p\") permit (principal, action, resource == Host::\"{host}\");");
        let found = found(&bundle(&agent, &rules));
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(
            found[0].contains("straight through the kernel"),
            "{}",
            found[0]
        );
    }
}

#[test]
fn rules_about_passed_connections_know_no_path() {
    let agent = format!("{REACH}tls = \"passthrough\"\n[[reach]]\nhost = \"g.example\"\n");
    let reads_path =
        "@id(\"p\") forbid (principal, action, resource) when { context.path == \"/\" };";
    let found_all = found(&bundle(&agent, reads_path));
    assert_eq!(found_all.len(), 1, "{found_all:#?}");
    assert!(
        found_all[0].contains("Action::\"request\""),
        "{}",
        found_all[0]
    );
    let requests_only = "@id(\"p\") forbid (principal, action in Action::\"request\", resource) when { context.path == \"/\" };";
    assert_eq!(found(&bundle(&agent, requests_only)), Vec::<String>::new());
    // At a host that is not passed there is a path, whatever other hosts are.
    let one_host = "@id(\"p\") forbid (principal, action, resource == Host::\"g.example\") when { context.path == \"/\" };";
    assert_eq!(found(&bundle(&agent, one_host)), Vec::<String>::new());
    let never = "@id(\"p\") permit (principal, action == Action::\"GET\", resource == Host::\"h.example\");";
    assert!(found(&bundle(&agent, never))[0].contains("passed through"));
}

#[test]
fn agents_may_not_share_names_or_processes() {
    let agent = |name: &str| {
        format!("[agent]\nname = \"{name}\"\nowner = \"o\"\n[[identify]]\nexe = \"/bin/x\"\n")
    };
    let two = |first: &str, second: &str| {
        found(&sources(&[
            ("bundle.toml", "name = \"b\"\nserial = 1\n"),
            ("agents/a.toml", &agent(first)),
            ("agents/b.toml", &agent(second)),
        ]))
    };
    let same = two("x", "x");
    assert!(
        same[0].starts_with("agents/b.toml:2:8: agent `x` is already in agents/a.toml:2"),
        "{same:#?}"
    );
    let blocks = two("x", "y");
    assert_eq!(blocks.len(), 1, "{blocks:#?}");
    assert!(
        blocks[0].starts_with(
            "agents/b.toml:4:1: [[identify]] is the same as one of agent `x` in agents/a.toml:4"
        ),
        "{blocks:#?}"
    );
}

#[test]
fn every_error_is_found_at_once() {
    let mut all = bundle(
        "colour = 1\n[[reach]]\nhost = \"a b\"\n[[reach]]\nhost = \"c\"\nallow = [\"GET\", \"PUT x\"]\n",
        "permit (principal, action, resource);\n@x(\"y\") @id(\"z\") forbid (principal, action, resource);",
    );
    all.files.insert(
        "hosts/h.toml".into(),
        "[host]\nrisk = \"hgih\"\ndata = [\"A B\"]\n".into(),
    );
    all.files.insert("notes.txt".into(), String::new());
    let found = found(&all);
    assert_eq!(found.len(), 10, "{found:#?}");
}

#[test]
fn the_digest_covers_names_and_contents() {
    let digest = |files: &[(&str, &str)]| {
        let mut all = vec![("bundle.toml", "name = \"b\"\nserial = 1\n")];
        all.extend(files);
        compile(&sources(&all)).meta().digest.clone()
    };
    let one = digest(&[("tests/a.toml", "# x")]);
    assert_eq!(one.len(), 64);
    assert_ne!(one, digest(&[("tests/b.toml", "# x")]));
    assert_ne!(one, digest(&[("tests/a.toml", "# y")]));
    assert_eq!(one, digest(&[("tests/a.toml", "# x")]));
}

#[test]
fn cases_ask_what_the_bundle_can_answer() {
    let case = |text: &str| {
        let mut all = bundle(REACH, "@id(\"p\") permit (principal, action, resource);");
        let text = format!("[[case]]\nname = \"c\"\n{text}");
        all.files.insert("tests/t.toml".into(), text);
        found(&all)
    };
    let asks = |request: &str| format!("agent = \"a\"\nrequest = \"{request}\"\n");
    let whole = asks("GET https://h.example/") + "expect = \"allow\"\n";
    assert!(case(&(whole.clone() + "policies = [\"p\"]\n")).is_empty());
    let cases = [
        (
            asks("GET https://h.example/"),
            "tests/t.toml:1:1: [[case]] has no `expect` | add `expect = \"allow\"`",
        ),
        (
            whole.replace("GET https", "https"),
            "tests/t.toml:4:11: `https://h.example/` is not a request | write the method",
        ),
        (
            whole.replace("https", "ftp"),
            "tests/t.toml:4:11: `ftp` is not http or https",
        ),
        (
            whole.replace("\"a\"", "\"b\""),
            "tests/t.toml:3:9: the bundle has no agent `b` | did you mean `a`?",
        ),
        (
            whole.clone() + "policies = [\"q\"]\n",
            "tests/t.toml:6:13: the bundle has no rule `q` | did you mean `p`?",
        ),
        (
            whole.clone() + "reason = \"policy-denied\"\n",
            "tests/t.toml:6:10: `reason` is why something is refused",
        ),
        (
            whole.replace("allow", "deny") + "reason = \"policy-denid\"\n",
            "tests/t.toml:6:10: `policy-denid` is no reason | did you mean `policy-denied`?",
        ),
        (
            whole.clone() + "headers = [\"a\"]\n",
            "tests/t.toml:6:11: `headers` is a array, not a table of strings",
        ),
        (
            whole.clone() + "body = { at = 2026-01-01 }\n",
            "tests/t.toml:6:8: `body` is not a string, nor what JSON can hold",
        ),
        (
            whole.clone() + "[[case]]\nname = \"c\"\n" + &whole,
            "tests/t.toml:7:8: the case `c` is already in tests/t.toml:2",
        ),
    ];
    for (text, expected) in cases {
        let found = case(&text);
        assert_eq!(found.len(), 1, "{text}{found:#?}");
        assert!(found[0].starts_with(expected), "{expected}\n{found:#?}");
    }
}
