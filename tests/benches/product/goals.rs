//! What PERFORMANCE wants, beside what was measured.

use crate::report::{DIRECT, GUARDED, Mode, NGINX, Report, Row};

pub(crate) struct Goal {
    pub number: u8,
    pub what: &'static str,
    pub wanted: String,
    pub measured: String,
    /// `None`: not measured in this run.
    pub met: Option<bool>,
}

/// haproxy's requests/s over HTTP/2 (32 streams) as a ratio to direct: PERFORMANCE's figure, haproxy is not run here.
const HAPROXY_HTTP2: f64 = 0.62;

pub(crate) fn all(report: &Report) -> Vec<Goal> {
    let nginx = |row| report.median(row, NGINX);
    let ours = |row| report.median(row, GUARDED);
    let ratio = |row, base| report.ratio(row, GUARDED, base);
    let times = |value: Option<f64>, factor: f64| value.map(|value| value * factor);
    let hook = |mode| report.ns_per_run(mode, "connect4");
    vec![
        at_most(
            1,
            "CPU-s per 10k requests, c=1: nginx's",
            ours(Row::AloneCpu),
            nginx(Row::AloneCpu),
        ),
        at_most(
            1,
            "CPU-s per 10k requests, c=32: nginx's",
            ours(Row::BusyCpu),
            nginx(Row::BusyCpu),
        ),
        at_most(
            1,
            "added p50 µs, c=1: nginx's",
            ours(Row::AloneAddedP50),
            nginx(Row::AloneAddedP50),
        ),
        at_most(
            1,
            "p99 µs, c=1: 3 × p50",
            ours(Row::AloneP99),
            times(ours(Row::AloneP50), 3.0),
        ),
        at_least(
            2,
            "new connections/s to nginx's",
            ratio(Row::New, NGINX),
            Some(2.0),
        ),
        at_least(
            3,
            "HTTP/2 to direct: haproxy's",
            ratio(Row::Http2, DIRECT),
            Some(HAPROXY_HTTP2),
        ),
        at_most(
            3,
            "download CPU-s per GiB: nginx's",
            ours(Row::DownCpu),
            nginx(Row::DownCpu),
        ),
        at_most(
            3,
            "upload CPU-s per GiB: nginx's",
            ours(Row::UpCpu),
            nginx(Row::UpCpu),
        ),
        at_most(
            4,
            "idle RSS MB, daemon + forwarder",
            ours(Row::IdleRss),
            Some(20.0),
        ),
        at_most(4, "KB per idle connection", ours(Row::HeldEach), Some(40.0)),
        at_most(5, "decision p50 µs", ours(Row::DecideP50), Some(2.0)),
        at_most(
            5,
            "decision p50, 10,000 policies to 10",
            ours(Row::TenThousandP50)
                .zip(ours(Row::TenP50))
                .map(|(many, few)| many / few),
            Some(2.0),
        ),
        at_least(
            5,
            "records replayed/s: 1,000,000 in a minute",
            ours(Row::Replayed),
            Some(1e6 / 60.0),
        ),
        at_most(
            6,
            "connect program, non-agent, ns",
            hook(Mode::Bystander),
            Some(100.0),
        ),
        at_most(
            6,
            "connect program, agent forwarded, ns",
            hook(Mode::Forward),
            Some(500.0),
        ),
        at_least(
            6,
            "non-agent requests/s, loaded to not loaded",
            report.ratio(
                Row::Bystander,
                Mode::Bystander.name(),
                Mode::Unloaded.name(),
            ),
            // What the rounds themselves differ by.
            Some(0.97),
        ),
        at_most(7, "kill to the last byte, p99 ms", None, Some(1.0)),
        at_least(8, "audit records/s to disk", None, Some(100_000.0)),
    ]
}

fn at_most(number: u8, what: &'static str, measured: Option<f64>, limit: Option<f64>) -> Goal {
    let met = measured.zip(limit).map(|(value, limit)| value <= limit);
    goal(number, what, "≤", measured, limit, met)
}

fn at_least(number: u8, what: &'static str, measured: Option<f64>, limit: Option<f64>) -> Goal {
    let met = measured.zip(limit).map(|(value, limit)| value >= limit);
    goal(number, what, "≥", measured, limit, met)
}

fn goal(
    number: u8,
    what: &'static str,
    sign: &str,
    measured: Option<f64>,
    limit: Option<f64>,
    met: Option<bool>,
) -> Goal {
    let show = crate::report::number;
    Goal {
        number,
        what,
        wanted: format!("{sign} {}", show(limit)),
        measured: show(measured),
        met,
    }
}
