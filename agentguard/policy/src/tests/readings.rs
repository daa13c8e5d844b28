//! A request is what servers may take it for: permits have to permit each, forbids need only one.

use super::*;

const HOST: &str = "[[reach]]\nhost = \"h\"\nallow = [\"ANY /**\"]\n";
const NO_ADMIN: &str = "@id(\"no-admin\") forbid (principal, action, resource) when { context.routes.contains(\"/admin/**\") };
@id(\"no-orders\") forbid (principal, action == Action::\"DELETE\", resource) when { context.path == \"/v1/orders\" };";

fn first(policy: &Policy) -> AgentId {
    policy
        .agents()
        .next()
        .map(|_| AgentId(AgentId::FIRST))
        .unwrap()
}

/// The rule that refuses it, or the reason's slug.
fn said(policy: &Policy, line: &str, headers: &[(&str, &str)]) -> Result<(), String> {
    let (method, url) = line.split_once(' ').unwrap();
    let path = url
        .trim_start_matches("https://")
        .split('?')
        .next()
        .unwrap();
    if CanonicalPath::parse(&path[path.find('/').unwrap()..]).is_err() {
        return Err("no path".into());
    }
    let asked = Asked::new(&format!("{method} {url}"), headers);
    let said = answer(policy, &asked.input(first(policy)));
    said.map(drop).map_err(|said| said.last().cloned().unwrap())
}

/// A bundle with a file about `h`.
fn with_host(agent: &str, rules: &str, host: &str) -> Sources {
    let mut sources = bundle(agent, rules);
    let host = format!("[host]\nname = \"h\"\n{host}");
    sources.files.insert("hosts/h.toml".into(), host);
    sources
}

#[test]
fn no_spelling_of_a_path_passes_a_forbid() {
    let policy = compile(&bundle(HOST, NO_ADMIN));
    for path in [
        "/admin",
        "/admin/",
        "/admin/users",
        "/admin/.",
        "/./admin/x",
        "//admin//x",
        "//x/admin/users",
        "///x.test:8/b/../admin",
        "/%FFadmin/users",
        "/adm%E9in",
        "/x/../admin",
        "/admin;x/users",
        "/;a=b/admin",
        "/admin;/x",
        "/admin%3bx",
        "/admin%3Bx/users",
        "/admin%2fusers",
        "/admin%252fusers",
        "/%61dmin",
        "/%2561dmin/x",
        "/%252561dmin",
        "/Admin/users",
        "/ADMIN",
        "/aDmin;x/y",
        "/admin%20/users",
        "/%20admin",
        "/admin%C2%A0/x",
        "/admin%2e",
        "/admin./x",
        "/admin..",
        "/admin.json",
        "/ADMIN.Json",
        "/admin.json/",
        "/admin%20.json",
        "/admin%3f.css",
        "/admin%23",
        "/admin%253Fx",
        "/%61%64%6D%69%6e%2F",
    ] {
        let said = said(&policy, &format!("GET https://h{path}"), &[]);
        assert_eq!(said, Err("no-admin".into()), "{path}");
    }
    for path in [
        "/admin\\",
        "/admin%5c",
        "/admin%09",
        "/admin%00",
        "/x/..;/admin",
        "/public/..%20/admin/x",
        "/public/%20../admin/x",
        "/x%20/..%20/..%20/admin/x",
        "/public/..%C2%A0;x/admin/x",
        "/public%2F..%20/admin/x",
    ] {
        let said = said(&policy, &format!("GET https://h{path}"), &[]);
        assert_eq!(said, Err("no path".into()), "{path}");
    }
    for path in [
        "/admin%255c",
        "/x/%252e%252e/admin",
        "/public/..%2520/admin/x",
        "/public/%25c0%25ae%25c0%25ae/admin/x",
    ] {
        let said = said(&policy, &format!("GET https://h{path}"), &[]);
        assert_eq!(said, Err("protocol-refused".into()), "{path}");
    }
    for path in [
        "/v1/orders/",
        "/v1/orders.json",
        "/v1/orders%2F",
        "/V1/Orders",
        "/v1/orders;v=1",
        "/v1/orders%20",
    ] {
        let said = said(&policy, &format!("DELETE https://h{path}"), &[]);
        assert_eq!(said, Err("no-orders".into()), "{path}");
    }
    for path in [
        "/",
        "/administration",
        "/v1/orders",
        "/v1/Orders/7",
        "/a%20b",
        "/files//x.tar.gz",
        "/users/admin",
        "/matrix;v=1/x",
        "/@scope%2fname",
        "/v1/models/m:generate",
        "/odata/Orders('x')",
        "/100%25",
        "/x/50%25ab",
        "/x/100%25ad.txt",
        "/w/%C3%9Cber",
        "/.env",
    ] {
        assert_eq!(
            said(&policy, &format!("GET https://h{path}"), &[]),
            Ok(()),
            "{path}"
        );
    }
}

#[test]
fn what_a_rule_compares_with_is_folded_too() {
    let rules = "@id(\"route\") forbid (principal, action, resource) when { context.routes.contains(\"/Admin/*\") };
@id(\"like\") forbid (principal, action, resource) when { context.path like \"/Keys/*/Secret*\" };
@id(\"is\") forbid (principal, action, resource) when { context.path == \"/Reset/\" };
@id(\"one-of\") forbid (principal, action, resource) when { [\"/A\", \"/B\"].contains(context.path) };
@id(\"umlaut\") forbid (principal, action, resource) when { context.path == \"/%C3%9Cber\" };
@id(\"if\") forbid (principal, action, resource) when { if context.path like \"/If*\" then true else false };
@id(\"deep\") forbid (principal, action, resource) when { context.segments > 5 && !(context.path like \"/Deep/*\") };";
    let policy = compile(&bundle(HOST, rules));
    for (path, expected) in [
        ("/admin/x", Some("route")),
        ("/Admin/x/", Some("route")),
        ("/keys/1/SECRET", Some("like")),
        ("/reset", Some("is")),
        ("/Reset/", Some("is")),
        ("/RESET.txt", Some("is")),
        ("/b/", Some("one-of")),
        ("/%C3%BCBER", Some("umlaut")),
        ("/ifx", Some("if")),
        ("/1/2/3/4/5/6", Some("deep")),
        ("/Deep/2/3/4/5/6", None),
        ("/deep/2/3/4/5/6", Some("deep")),
        ("/c", None),
        ("/admins", None),
    ] {
        let said = said(&policy, &format!("GET https://h{path}"), &[]);
        assert_eq!(said.err().as_deref(), expected, "{path}");
    }
}

#[test]
fn what_lifts_a_forbid_counts_as_it_is_written() {
    let rules = "@id(\"only-public\") forbid (principal, action, resource)
unless { context.routes.contains(\"/Public/**\") || context.path == \"/v1/Files.json\" };
@id(\"not\") forbid (principal, action, resource) when { !(context.path like \"/*\") || context.path != context.path };
@id(\"own\") forbid (principal, action, resource) when { context.path like \"/Public/users/*\" }
unless { context.path == \"/Public/users/me.json\" };";
    let policy = compile(&bundle(HOST, rules));
    for (path, expected) in [
        ("/Public/A.json", None),
        ("/Public/x/", None),
        ("/v1/Files.json", None),
        ("/v1/Files", Some("only-public")),
        ("/public/x", Some("only-public")),
        ("/Public/users/me.json", None),
        ("/Public/users/me", Some("own")),
        ("/Public/USERS/me.json", Some("own")),
    ] {
        let said = said(&policy, &format!("GET https://h{path}"), &[]);
        assert_eq!(said.err().as_deref(), expected, "{path}");
    }
}

#[test]
fn a_permit_needs_every_request_that_it_stands_for() {
    let agent = "[[reach]]\nhost = \"h\"\nallow = [\"GET /a/**\", \"POST /a/*\", \"GET /m;v=1/x\", \"GET /m/x\", \"GET /only;v=1\"]\n[[reach]]\nhost = \"i\"\nallow = [\"GET /a/x\"]\n[[reach]]\nhost = \"p\"\ntls = \"passthrough\"\nallow = [\"connect\"]\n";
    let policy = compile(&bundle(agent, ""));
    type Headers = &'static [(&'static str, &'static str)];
    let cases: [(&str, Headers, bool); 39] = [
        ("GET https://h/a/b;v=1", &[], true),
        ("GET https://h/m;v=1/x", &[], true),
        ("GET https://h/only;v=1", &[], false),
        ("GET https://h/a/b%3fc", &[], true),
        ("GET https://h/A/b", &[], false),
        ("POST https://h/a/b", &[], true),
        (
            "POST https://h/a/b",
            &[("x-http-method-override", "GET")],
            true,
        ),
        (
            "POST https://h/a/b",
            &[("x-http-method-override", "delete")],
            false,
        ),
        ("POST https://h/a/b", &[("X-HTTP-Method", "DELETE")], false),
        (
            "POST https://h/a/b",
            &[("X-Method-Override", "GET, PUT")],
            false,
        ),
        (
            "POST https://h/a/b",
            &[("x_http_method_override", "DELETE")],
            false,
        ),
        (
            "POST https://h/a/b",
            &[("x-http-method-override", "FROB")],
            false,
        ),
        (
            "POST https://h/a/b",
            &[("x-http-method-override", "")],
            true,
        ),
        ("POST https://h/a/b?_method=get", &[], true),
        ("POST https://h/a/b?_method=DELETE", &[], false),
        ("POST https://h/a/b?%5Fmethod=DELETE", &[], false),
        ("POST https://h/a/b?x=1&.method=DELETE", &[], false),
        ("POST https://h/a/b?_method%00=DELETE", &[], false),
        ("POST https://h/a/b?_method%00x=DELETE", &[], false),
        ("POST https://h/a/b?_method%00%ff=DELETE", &[], false),
        ("POST https://h/a/b?x%00_method=DELETE", &[], true),
        ("POST https://h/a/b?method=DELETE", &[], true),
        ("GET https://h/a/b", &[("x-original-url", "/a/c?x=1")], true),
        ("GET https://h/a/b", &[("x-original-url", "/c")], false),
        (
            "POST https://h/a/b",
            &[("x-original-url", "/a/c?x=1&_method=DELETE")],
            false,
        ),
        (
            "POST https://h/a/b",
            &[("x.http.method.override", "DELETE")],
            false,
        ),
        (
            "POST https://h/a/b",
            &[("x-http-method-overrid0", "DELETE")],
            true,
        ),
        (
            "GET https://h/a/b",
            &[("x-rewrite-url", "https://h/a/../c")],
            false,
        ),
        (
            "GET https://h/a/b",
            &[("x-rewrite-url", "/a/%2e%2e%2fc")],
            false,
        ),
        ("GET https://h/a/x", &[("x-forwarded-host", "i")], true),
        ("GET https://h/a/x", &[("x-forwarded-host", "h")], true),
        ("GET https://h/a/b", &[("x-forwarded-host", "i")], false),
        ("GET https://h/a/x", &[("x-forwarded-host", "i, j")], false),
        ("GET https://h/a/x", &[("x-host", "p")], false),
        ("GET https://h/a/x", &[("x-host", "i:8443")], false),
        ("GET https://h/a/x", &[("x-host", "no host")], false),
        (
            "GET https://h/a/x",
            &[("forwarded", "for=1.2.3.4;proto=https")],
            true,
        ),
        (
            "GET https://h/a/x",
            &[("forwarded", "for=1.2.3.4; Host=\"j\", host=i")],
            false,
        ),
        ("GET https://h/a/x", &[("x-forwarded-for", "1.2.3.4")], true),
    ];
    for (line, headers, expected) in cases {
        let said = said(&policy, line, headers);
        assert_eq!(said.is_ok(), expected, "{line} {headers:?}: {said:?}");
    }
}

#[test]
fn overrides_meet_forbids_with_everything_else() {
    let policy = compile(&bundle(HOST, NO_ADMIN));
    for (line, headers) in [
        (
            "GET https://h/x",
            &[("x-original-url", "/ADMIN;x/users")][..],
        ),
        ("GET https://h/x", &[("x-rewrite-url", "admin")]),
        (
            "GET https://h/x",
            &[("x-original-url", "//elsewhere/admin/x")],
        ),
        (
            "GET https://h/x",
            &[("x-original-url", "//h/a/../admin?y#z")],
        ),
        ("GET https://h/x", &[("x.original~url", "/admin")]),
        ("GET https://h/adm%C4%B0n/x", &[]),
        (
            "GET https://h/x",
            &[("x_original_url", "/x%2f%2561dmin/../admin")],
        ),
        (
            "POST https://h/v1/Orders",
            &[("x-http-method-override", "DELETE")],
        ),
        ("POST https://h/v1/orders.json?_method=Delete", &[]),
    ] {
        let said = said(&policy, line, headers);
        assert!(
            said.as_ref()
                .is_err_and(|why| why.starts_with("no-") || why == "protocol-refused"),
            "{line} {headers:?}: {said:?}"
        );
    }
    let many: Vec<String> = (0..80).map(|n| format!("/p{n}")).collect();
    let many: Vec<_> = many
        .iter()
        .map(|path| ("x-original-url", path.as_str()))
        .collect();
    assert_eq!(
        said(&policy, "GET https://h/x", &many),
        Err("protocol-refused".into())
    );
}

#[test]
fn a_hosts_file_says_what_its_server_never_does() {
    let strict = compile(&with_host(HOST, NO_ADMIN, "paths = \"exact\"\n"));
    for path in [
        "/admin;x",
        "/Admin",
        "/admin.json",
        "/admin%2fx",
        "/x/a%252Fb%255C",
        "/x/%252e%252e",
    ] {
        assert_eq!(
            said(&strict, &format!("GET https://h{path}"), &[]),
            Ok(()),
            "{path}"
        );
    }
    assert_eq!(
        said(&strict, "GET https://h/x/../admin", &[]),
        Err("no-admin".into())
    );
    assert_eq!(
        said(&strict, "GET https://h/x", &[("x-original-url", "/admin")]),
        Err("no-admin".into())
    );
    let elsewhere = [("x-host", "i")];
    assert_eq!(
        said(&strict, "GET https://h/x/%252e%252e", &elsewhere),
        Err("protocol-refused".into()),
        "the other host's file says nothing of the kind"
    );
    let deaf = compile(&with_host(HOST, NO_ADMIN, "overrides = \"ignored\"\n"));
    let headers = [("x-original-url", "/admin"), ("x-host", "elsewhere")];
    assert_eq!(
        said(&deaf, "GET https://h/x?_method=DELETE", &headers),
        Ok(())
    );
    assert_eq!(
        said(&deaf, "GET https://h/ADMIN", &headers),
        Err("no-admin".into())
    );
    let rules = "@id(\"dry\") permit (principal, action, resource) when { context.query.hasTag(\"dry_run\") };";
    let agent = "[[reach]]\nhost = \"h\"\n";
    let line = "GET https://h/?dry_run=true&dry.run=false";
    assert_eq!(
        said(&compile(&bundle(agent, rules)), line, &[]),
        Err("body-ambiguous".into())
    );
    let exact = compile(&with_host(agent, rules, "parameters = \"exact\"\n"));
    assert_eq!(said(&exact, line, &[]), Ok(()));
    let mut wrong = with_host(HOST, "", "paths = \"strict\"\n");
    let found = Policy::compile(&wrong, &ids(&wrong)).unwrap_err();
    assert!(
        found[0].message.contains("none of `exact`, `lenient`"),
        "{found:?}"
    );
    wrong.files.remove("hosts/h.toml");
    compile(&wrong);
}

#[test]
fn limits_approvals_and_tasks_meet_readings() {
    let rules = "@id(\"few\") @limit(\"3/minute\") forbid (principal, action, resource) when { context.path == \"/v1/orders\" }
unless { context.limits.contains(\"few\") };
@id(\"asked\") @approve(\"owner\") forbid (principal, action, resource) when { context.path == \"/v1/pay\" }
unless { context.approvals.contains(\"owner\") };";
    let policy = compile(&bundle(HOST, rules));
    let charged = |path: &str| {
        let asked = Asked::new(&format!("GET https://h{path}"), &[]);
        match policy.decide(&asked.input(first(&policy))) {
            Decision::Owing(_) => "owing",
            Decision::Permit(_) => "permitted",
            Decision::Deny(denial) => denial.reason.slug(),
        }
    };
    for (path, expected) in [
        ("/v1/orders", "owing"),
        ("/v1/Orders/", "owing"),
        ("/v1/orders;x", "owing"),
        ("/v1/order", "permitted"),
        ("/v1/PAY.json", "approval-required"),
        ("/v1/pay;x", "approval-required"),
    ] {
        assert_eq!(charged(path), expected, "{path}");
    }
    let terms = Terms {
        intent: "look".into(),
        allow: vec!["GET h/v1/notes/**".into()],
        ..Terms::default()
    };
    let task = Task::new(uuid::Uuid::from_u128(1), OpenedBy::Supervisor, &terms).unwrap();
    let task = std::sync::Arc::new(task);
    let on_task = |line: &str, headers: &[(&str, &str)]| {
        let mut asked = Asked::new(line, headers);
        asked.context.tasks = Some(TaskSituation {
            own: OnTask::In(task.clone()),
            ..TaskSituation::default()
        });
        answer(&policy, &asked.input(first(&policy))).is_ok()
    };
    assert!(on_task("GET https://h/v1/notes/7;v=1", &[]));
    assert!(!on_task(
        "GET https://h/v1/notes/7",
        &[("x-http-method-override", "PUT")]
    ));
    assert!(!on_task(
        "GET https://h/v1/notes/7",
        &[("x-original-url", "/v1/other")]
    ));
}

#[test]
fn what_hosts_files_declare_is_found_by_lenient_servers_too() {
    let host =
        "[[body]]\non = \"POST /v1/Exports\"\ntables = { type = \"strings\", at = \"/tables\" }
[[scope]]\nis = \"export\"\non = \"POST /v1/dump\"\n";
    let rules = "@id(\"secrets\") forbid (principal, action == Action::\"POST\", resource) when { context.body has tables && context.body.tables.contains(\"secrets\") };
@id(\"exports\") forbid (principal, action in Action::\"request\", resource) when { context.scope.contains(\"export\") };";
    let policy = compile(&with_host(HOST, rules, host));
    for (path, expected) in [
        ("/v1/dump", "exports"),
        ("/V1/Dump.csv", "exports"),
        ("/v1/dump;x/", "exports"),
        ("/v1/exports", "body-ambiguous"),
        ("/v1/Exports/", "body-ambiguous"),
        ("/v1/Exports", "body-unreadable"),
        ("/v1/other", ""),
    ] {
        let said = said(&policy, &format!("POST https://h{path}"), &[]).err();
        assert_eq!(said.unwrap_or_default(), expected, "{path}");
    }
}

#[test]
fn a_form_can_name_a_method() {
    let host = "[[body]]\non = \"ANY /f\"\nn = { type = \"string\", at = \"n\" }\n";
    let rules = "@id(\"n\") permit (principal, action == Action::\"POST\", resource) when { context.body has n };";
    let policy = compile(&with_host(
        "[[reach]]\nhost = \"h\"\nallow = [\"GET /f\"]\n",
        rules,
        host,
    ));
    for (body, expected) in [
        ("n=1", true),
        ("n=1&_method=GET", true),
        ("n=1&_method=DELETE", false),
        ("%5Fmethod=put&n=1", false),
    ] {
        let mut asked = Asked::new(
            "POST https://h/f",
            &[("content-type", "application/x-www-form-urlencoded")],
        );
        let needed = policy.needs(&asked.input(first(&policy))).body.unwrap();
        asked.context.body = needed.block.read(&asked.headers, body.as_bytes(), 1000);
        let said = answer(&policy, &asked.input(first(&policy)));
        assert_eq!(said.is_ok(), expected, "{body}: {said:?}");
    }
}

#[test]
fn a_refusal_says_what_the_request_was_taken_for() {
    let policy = compile(&bundle(HOST, NO_ADMIN));
    let denial = |line: &str, headers: &[(&str, &str)]| {
        let asked = Asked::new(line, headers);
        match policy.decide(&asked.input(first(&policy))) {
            Decision::Deny(denial) => denial,
            other => panic!("{other:?}"),
        }
    };
    let folded = denial("GET https://h/Admin/x.json", &[]);
    assert_eq!(
        folded.facts["read_as"],
        "GET `/admin/x.json` (in lower case)"
    );
    assert!(folded.detail.starts_with("The policy of agent `a` forbids GET `/Admin/x.json` at `h`, which some servers take for GET `/admin/x.json` (in lower case);"), "{}", folded.detail);
    let overridden = denial("GET https://h/x", &[("x-original-url", "/admin;x/y")]);
    assert_eq!(
        overridden.facts["read_as"],
        "GET `/admin/y` (x-original-url, without `;…`)"
    );
    assert_eq!(overridden.facts["header.x-original-url"], "/admin;x/y");
    let elsewhere = denial("GET https://h/x", &[("x-forwarded-host", "elsewhere:8443")]);
    assert!(
        elsewhere
            .detail
            .contains("GET `/x` at `elsewhere:8443` (x-forwarded-host)"),
        "{}",
        elsewhere.detail
    );
    let odd = denial("GET https://h/x", &[("x-host", "a b")]);
    assert_eq!(odd.reason, DenyReason::ProtocolRefused);
    assert!(
        odd.detail.contains("header `x-host` names no host"),
        "{}",
        odd.detail
    );
    assert!(
        !denial("GET https://h/admin/x", &[])
            .facts
            .contains_key("read_as")
    );
}

#[test]
fn a_check_tells_where_a_forbid_by_path_is_all_there_is() {
    let notes = |sources: &Sources| compile(sources).notes().join("\n");
    let broad = notes(&bundle(HOST, NO_ADMIN));
    for part in [
        "rules/r.cedar:1: forbid `no-admin` is by path, and `a/agents/a.toml:7:10` permits agent `a` every path at `h`",
        "another path to the same thing is not",
        "forbid `no-orders`",
    ] {
        assert!(broad.contains(part), "{part}: {broad}");
    }
    let exact = notes(&with_host(HOST, NO_ADMIN, "paths = \"exact\"\n"));
    assert!(exact.contains("so that no other spelling"), "{exact}");
    let meant =
        "[[reach]]\nhost = \"h\"\nallow = [\"GET /admin/x\", \"GET /v1/**\", \"POST /**\"]\n";
    let apart = notes(&bundle(meant, NO_ADMIN.split_once('\n').unwrap().1));
    assert_eq!(apart, "", "nothing broad is permitted for the method");
    let rules =
        "@id(\"all\") permit (principal, action, resource) when { context.scheme == \"https\" };\n";
    let by_rule = notes(&bundle(
        "[[reach]]\nhost = \"h\"\n",
        &format!("{rules}{NO_ADMIN}"),
    ));
    assert!(by_rule.contains("`all` permits agent `a`"), "{by_rule}");
    let odd = "[[reach]]\nhost = \"h\"\nallow = [\"GET /m;v=1/x\"]\n";
    assert!(
        notes(&bundle(odd, ""))
            .contains("`/m;v=1/x` is met only by what is permitted as `/m/x` too")
    );
    assert_eq!(notes(&with_host(odd, "", "paths = \"exact\"\n")), "");
}

#[test]
fn an_explanation_tells_every_reading_and_which_decides() {
    let policy = compile(&bundle(HOST, NO_ADMIN));
    let explain = |url: &str| {
        let question = explain::Question {
            agent: "a".into(),
            method: "GET".into(),
            url: url.into(),
            ..explain::Question::default()
        };
        policy.explain(&question).unwrap()
    };
    let refused = explain("https://h/Admin;x/y");
    let read: Vec<_> = refused
        .readings
        .iter()
        .map(|it| (it.read_as.as_deref(), it.forbids_only, it.decides))
        .collect();
    assert_eq!(
        read,
        [
            (None, false, false),
            (Some("GET `/admin;x/y` (in lower case)"), true, false),
            (Some("GET `/Admin/y` (without `;…`)"), false, false),
            (
                Some("GET `/admin/y` (without `;…`, in lower case)"),
                true,
                true
            ),
        ]
    );
    assert_eq!(
        refused.why,
        "forbidden by `no-admin`, read as GET `/admin/y` (without `;…`, in lower case)"
    );
    let plain = explain("https://h/admin/x");
    assert!(
        plain.readings.len() == 1
            && plain.readings[0].decides
            && plain.readings[0].read_as.is_none()
    );
    assert!(!explain("https://h/v1/x").readings[0].decides);
}
