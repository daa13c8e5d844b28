//! `[[reach]]` and `[[listen]]` of an agent's file.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};

use super::table::{Keys, Located, Table};
use crate::diagnostic::{Place, Report, nearest};
use crate::glob::PathPattern;
use crate::host::{HostPattern, parse_port, show, split_port};
use crate::schema;
use crate::{KernelRule, Proto, TlsMode};

/// A `[[reach]]` of a host.
pub(crate) struct Reach {
    pub at: Place,
    pub host: HostPattern,
    pub tls: TlsMode,
    pub allow: Vec<Allow>,
}

/// One entry of `allow`.
pub(crate) struct Allow {
    pub at: Place,
    pub method: Method,
}

pub(crate) enum Method {
    /// Every HTTP method.
    Any(PathPattern),
    One(&'static str, PathPattern),
    /// A connection whose bytes are passed.
    Connect,
}

const REACH: Keys = Keys {
    known: &["host", "allow", "tls", "to", "proto"],
    later: &[],
};
const LISTEN: Keys = Keys {
    known: &["on", "proto"],
    later: &[],
};

/// Everything that the file lets its agent touch.
#[derive(Default)]
pub(super) struct ParsedReach {
    pub hosts: Vec<Reach>,
    pub kernel: Vec<KernelRule>,
    /// Of each of `kernel`.
    pub kernel_at: Vec<Place>,
}

pub(super) fn touched(report: &mut Report<'_>, root: &Table<'_>) -> ParsedReach {
    let mut found = ParsedReach::default();
    for table in root.tables(report, "reach", "[[reach]]") {
        table.check_keys(report, &REACH);
        match (table.has("host"), table.has("to")) {
            (true, false) => found.hosts.extend(reach_host(report, &table)),
            (false, true) => {
                if let Some(rule) = reach_address(report, &table) {
                    found.kernel.push(rule);
                    found.kernel_at.push(table.at);
                }
            }
            (true, true) => report.error_help(
                table.key_place("to"),
                "`host` and `to` in one [[reach]]",
                "write two entries: a host is judged by the forwarder, an address goes straight through the kernel",
            ),
            (false, false) => report.error_help(table.at, "[[reach]] has neither `host` nor `to`", "add `host = \"…\"`"),
        }
    }
    for table in root.tables(report, "listen", "[[listen]]") {
        table.check_keys(report, &LISTEN);
        if let Some((rule, at)) = listen(report, &table) {
            found.kernel.push(rule);
            found.kernel_at.push(at);
        }
    }
    found
}

fn reach_host(report: &mut Report<'_>, table: &Table<'_>) -> Option<Reach> {
    if table.has("proto") {
        report.error(
            table.key_place("proto"),
            "`proto` goes with `to`: a host is reached over TLS or HTTP",
        );
    }
    let tls = match table.choice(report, "tls", &["terminate", "passthrough"]) {
        Some(tls) if tls.value == "passthrough" => TlsMode::Passthrough,
        _ => TlsMode::Terminate,
    };
    let allow = table
        .strings(report, "allow")
        .into_iter()
        .filter_map(|entry| allow_entry(report, &entry, tls))
        .collect();
    let host = table.required(report, "host")?;
    match HostPattern::parse(&host.value) {
        Ok(pattern) => Some(Reach {
            at: host.at,
            host: pattern,
            tls,
            allow,
        }),
        Err(why) => {
            let help = if host.value.contains('/') {
                Some("name a host without scheme and path, or an address range with `to`")
            } else if host.value == "*" {
                Some("name the hosts, or `*.` in front of a domain")
            } else {
                None
            };
            report.error_with(host.at, why, help.map(str::to_owned));
            None
        }
    }
}

fn allow_entry(report: &mut Report<'_>, entry: &Located<String>, tls: TlsMode) -> Option<Allow> {
    let at = entry.at;
    let text = entry.value.as_str();
    if tls == TlsMode::Passthrough {
        if text == schema::CONNECT {
            return Some(Allow {
                at,
                method: Method::Connect,
            });
        }
        report.error_help(
            at,
            format!(
                "`{}` asks for what nobody reads: this entry passes the bytes as they are",
                show(text)
            ),
            "write `allow = [\"connect\"]`, or leave out `tls = \"passthrough\"`",
        );
        return None;
    }
    let method = request_line(report, entry)?;
    Some(Allow { at, method })
}

/// A method, or `ANY`, and a path pattern.
pub(super) fn request_line(report: &mut Report<'_>, line: &Located<String>) -> Option<Method> {
    let (at, text) = (line.at, line.value.as_str());
    let Some((method, path)) = text
        .split_once(' ')
        .map(|(method, path)| (method, path.trim_start()))
    else {
        report.error_help(
            at,
            format!("`{}` is not a method and a path", show(text)),
            "write for example `GET /v1/catalog/**`",
        );
        return None;
    };
    let pattern = match PathPattern::parse(path) {
        Ok(pattern) => pattern,
        Err(why) => {
            report.error(at, why);
            return None;
        }
    };
    if matches!(method, "ANY" | "*") {
        return Some(Method::Any(pattern));
    }
    match schema::method(method) {
        Some(method) => Some(Method::One(method, pattern)),
        None => {
            let known = schema::METHODS.iter().copied().chain(["ANY"]);
            let help = nearest(method, known).map_or_else(
                || {
                    "write one method in capitals, or `ANY`; a second method is a second entry"
                        .to_owned()
                },
                |near| format!("did you mean `{near}`?"),
            );
            report.error_help(
                at,
                format!("`{}` is not an HTTP method", show(method)),
                help,
            );
            None
        }
    }
}

fn proto_of(report: &mut Report<'_>, table: &Table<'_>) -> Option<Proto> {
    if !table.has("proto") {
        return Some(Proto::Tcp);
    }
    let proto = table.choice(report, "proto", &["tcp", "udp"])?;
    Some(if proto.value == "udp" {
        Proto::Udp
    } else {
        Proto::Tcp
    })
}

fn reach_address(report: &mut Report<'_>, table: &Table<'_>) -> Option<KernelRule> {
    for key in ["allow", "tls"] {
        if table.has(key) {
            report.error_help(
                table.key_place(key),
                format!(
                    "`{key}` goes with `host`: what `to` names goes straight through the kernel"
                ),
                "name a host to have its requests decided",
            );
        }
    }
    let proto = proto_of(report, table);
    let to = table.required(report, "to")?;
    match parse_to(&to.value) {
        Ok((net, port)) => Some(KernelRule::Reach {
            proto: proto?,
            net,
            port,
        }),
        Err(why) => {
            report.error_help(
                to.at,
                why,
                "write for example `10.0.0.0/24:5432`, `[fd00::/8]:5432` or `10.0.0.7:*`",
            );
            None
        }
    }
}

/// IPv4 addresses in IPv6 form (RFC 4291 section 2.5.5.2).
const MAPPED: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96);

/// `CIDR:port`, an IPv6 one in brackets, the port perhaps `*`.
fn parse_to(raw: &str) -> Result<(IpNet, Option<u16>), String> {
    let (net, port) = split_port(raw)?;
    let port = match port {
        None => return Err(format!("`{}` has no port", show(raw))),
        Some("*") => None,
        Some(port) => Some(parse_port(port)?),
    };
    let net = net
        .strip_prefix('[')
        .and_then(|net| net.strip_suffix(']'))
        .unwrap_or(net);
    let parsed: IpNet = if net.contains('/') {
        net.parse()
            .map_err(|_| format!("`{}` is not an address range", show(net)))?
    } else {
        let ip: IpAddr = net
            .parse()
            .map_err(|_| format!("`{}` is not an address", show(net)))?;
        IpNet::from(ip)
    };
    if parsed.trunc() != parsed {
        return Err(format!(
            "`{net}` has address bits after its prefix; the range it lies in is `{}`",
            parsed.trunc()
        ));
    }
    if let IpNet::V6(v6) = parsed {
        if v6.contains(&MAPPED) && v6 != MAPPED {
            return Err(format!(
                "`{net}` also covers every IPv4 address in its IPv6 form; write `[2000::/3]` for the public IPv6 ones"
            ));
        }
        let mapped = v6.network().to_ipv4_mapped();
        if mapped.is_some() && v6.prefix_len() >= 96 {
            return Err(format!(
                "`{net}` is an IPv4 range in IPv6 form; write it as IPv4"
            ));
        }
    }
    Ok((parsed, port))
}

fn listen(report: &mut Report<'_>, table: &Table<'_>) -> Option<(KernelRule, Place)> {
    let proto = proto_of(report, table);
    let on = table.required(report, "on")?;
    let parsed = split_port(&on.value).and_then(|(host, port)| {
        let port = parse_port(port.ok_or_else(|| format!("`{}` has no port", show(&on.value)))?)?;
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        let addr: IpAddr = host
            .parse()
            .map_err(|_| format!("`{}` is not an address", show(host)))?;
        Ok((addr.to_canonical(), port))
    });
    match parsed {
        Ok((addr, port)) => Some((
            KernelRule::Listen {
                proto: proto?,
                addr,
                port,
            },
            on.at,
        )),
        Err(why) => {
            report.error_help(
                on.at,
                why,
                "write for example `127.0.0.1:8080` or `[::1]:8080`",
            );
            None
        }
    }
}
