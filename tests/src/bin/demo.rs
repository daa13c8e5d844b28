//! `cargo xtask demo`: the main job on loopback, in plain words. Everything it makes is private and undone at the end.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use agentguard_tests::bundle::{direct, reach};
use agentguard_tests::client::Subject;
use agentguard_tests::tools::ORIGIN;
use agentguard_tests::{Bundle, Guard, Nginx, Ran, Running, Site};

/// May reach some routes of one host.
const BUYER: &str = "buyer";
/// May open TCP to one address, and reach no host.
const LOADER: &str = "loader";

fn main() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let report = File::create(origin.files().join("report")).expect("made");
    // Sparse: more than is downloaded before the kill.
    report.set_len(1 << 40).expect("set");

    heading("What is set up, all of it on loopback and private to this demo");
    say(&format!(
        "origin  nginx on 127.0.0.1:{}, named {ORIGIN}, TLS by a CA of its own",
        origin.port
    ));
    say(&format!(
        "agent   `{BUYER}` may GET /catalog/** and /files/** there, and nothing else"
    ));
    say(&format!(
        "agent   `{LOADER}` may open TCP to 127.0.0.1:{}, and nothing else\n",
        origin.port_plain
    ));
    let guard = Guard::start(&site, &bundle(&origin));
    shell("agentguard status");
    show(&guard.cli(["status"]));

    heading("A call that the policy allows");
    call(
        &guard,
        BUYER,
        "curl",
        &["-sS", &origin.url("/catalog/batteries")],
    );

    heading(
        "A call to the same host that it refuses: the agent reads why, the origin never hears of it",
    );
    let orders = origin.url("/orders");
    call(
        &guard,
        BUYER,
        "curl",
        &["-sS", "-d", "item=batteries", &orders],
    );
    say(&format!(
        "the origin's log has {} requests to /orders",
        origin.hits_below("/orders").len()
    ));

    heading("A connection and a datagram that no rule allows: refused in the kernel");
    call(
        &guard,
        LOADER,
        "bash",
        &["-c", "exec 3<>/dev/tcp/127.0.0.1/22"],
    );
    call(
        &guard,
        LOADER,
        "bash",
        &["-c", "echo secret >/dev/udp/127.0.0.1/9999"],
    );

    heading(
        "The call that was refused, by a process that is not an agent: untouched, and not recorded",
    );
    shell(&format!("curl -sS -d item=batteries {orders}"));
    show(
        &site
            .client(Path::new("curl"))
            .args(["-sS", "-d", "item=batteries", &orders])
            .run(),
    );

    heading("The kill switch, while a download runs");
    let download = start_download(&site, &guard, &origin);
    shell(&format!(
        "agentguard kill {BUYER} --reason 'spends too much'"
    ));
    show(&guard.cli(["kill", BUYER, "--reason", "spends too much"]));
    say("the download ends with:");
    show(&download.finish());
    call(
        &guard,
        BUYER,
        "curl",
        &["-sS", &origin.url("/catalog/batteries")],
    );

    heading("What the audit log says");
    shell("agentguard audit search");
    show(&guard.cli(["audit", "search"]));
    shell("agentguard audit verify");
    show(&guard.cli(["audit", "verify"]));

    drop(guard);
    heading("Done: the daemon is stopped, its hooks are unloaded, its folders are gone");
}

fn bundle(origin: &Nginx) -> Bundle {
    let routes = ["GET /catalog/**", "GET /files/**"];
    Bundle::new(1)
        .agent(BUYER, &reach(ORIGIN, origin.port, &routes))
        .agent(
            LOADER,
            &direct(&format!("127.0.0.1/32:{}", origin.port_plain), "tcp"),
        )
}

/// Returns once bytes arrive.
fn start_download(site: &Site, guard: &Guard<'_>, origin: &Nginx) -> Running {
    let url = origin.url("/files/report");
    let into = site.path("report");
    shell(&format!(
        "agentguard run --agent {BUYER} -- curl -sS -o report {url} &"
    ));
    let mut download = guard
        .agent(BUYER)
        .client(Path::new("curl"))
        .args(["-sS", "--limit-rate", "64M", "-o"])
        .arg(&into)
        .arg(url)
        .spawn();
    while fs::metadata(&into).map_or(0, |file| file.len()) < 1 << 20 {
        assert!(download.is_running(), "{}", download.rest());
        std::thread::yield_now();
    }
    download
}

/// A real process as the agent, shown as one would type it.
fn call(guard: &Guard<'_>, agent: &str, program: &str, args: &[&str]) {
    let shown: Vec<String> = args
        .iter()
        .map(|arg| {
            if arg.contains([' ', '>']) {
                format!("'{arg}'")
            } else {
                (*arg).to_owned()
            }
        })
        .collect();
    shell(&format!(
        "agentguard run --agent {agent} -- {program} {}",
        shown.join(" ")
    ));
    show(
        &guard
            .agent(agent)
            .client(Path::new(program))
            .args(args)
            .run(),
    );
}

fn heading(text: &str) {
    say_at(0, &format!("\n== {text}\n"));
}

fn shell(command: &str) {
    say(&format!("$ {command}"));
}

fn show(ran: &Ran) {
    for line in ran.stdout.lines().chain(ran.stderr.lines()) {
        say(line);
    }
    if ran.code() != 0 {
        say(&format!("[exit status {}]", ran.code()));
    }
    say_at(0, "");
}

fn say(line: &str) {
    say_at(2, line);
}

/// A closed pipe is no reason to leave anything behind.
fn say_at(indent: usize, line: &str) {
    let _ = writeln!(std::io::stdout(), "{:indent$}{line}", "");
}
