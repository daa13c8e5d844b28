//! How the log names a Unix socket, and what the well-known ones would have let an agent do.

use std::path::Path;

use agentguard_common::abi::Event;

/// `unix:` and the path, or `@` and the abstract name.
pub(crate) fn resource(event: &Event) -> String {
    format!("unix:{}", name(event))
}

/// Why it was refused.
pub(crate) fn detail(event: &Event) -> String {
    match known(&name(event)) {
        Some(what) => format!("no [[unix]] entry names this socket: {what}"),
        None => "no [[unix]] entry names this socket".to_owned(),
    }
}

/// glibc asks the name cache before every look-up of a name or user, whether one runs or not: that it was refused says
/// nothing of the agent, and a record each would bury those that do.
pub(crate) fn is_name_cache(event: &Event) -> bool {
    matches!(&*name(event), "/var/run/nscd/socket" | "/run/nscd/socket")
}

/// A listed name, and where `/var/run` is `/run`, its other spelling: programs and servers write either.
pub(crate) fn spellings(listed: &str) -> Vec<String> {
    let mut all = vec![listed.to_owned()];
    let is_one = || std::fs::canonicalize("/var/run").is_ok_and(|path| path == Path::new("/run"));
    if let Some(rest) = listed.strip_prefix("/var/run/") {
        if is_one() {
            all.push(format!("/run/{rest}"));
        }
    } else if let Some(rest) = listed.strip_prefix("/run/")
        && is_one()
    {
        all.push(format!("/var/run/{rest}"));
    }
    // One that is too long as the other is written is reached as it is listed.
    all
}

/// As `ss` writes it: a NUL, which begins an abstract name, is `@`.
fn name(event: &Event) -> String {
    let len = usize::try_from(event.path_len).map_or(0, |len| len.min(event.path.len()));
    String::from_utf8_lossy(&event.path[..len]).replace('\0', "@")
}

/// What answers there.
fn known(name: &str) -> Option<&'static str> {
    let name = name
        .strip_prefix("/var")
        .filter(|rest| rest.starts_with("/run/"))
        .unwrap_or(name);
    let ends = |end: &str| name.ends_with(end);
    let starts = |start: &str| name.starts_with(start);
    Some(match () {
        () if ends("/docker.sock") => "the Docker daemon starts anything, as root",
        () if ends("/containerd.sock") || ends("/containerd.sock.ttrpc") => {
            "containerd starts anything, as root"
        }
        () if ends("/podman.sock") => "Podman starts containers outside the agent",
        () if ends("/crio.sock") => "CRI-O starts containers outside the agent",
        () if starts("/run/libvirt/") || ends("/libvirt-sock") => {
            "libvirt starts machines outside the agent"
        }
        () if ends("/system_bus_socket") => {
            "services on the system bus act for whoever asks, systemd among them"
        }
        () if starts("/run/user/") && ends("/bus") => {
            "services on the session bus act for whoever asks, systemd among them"
        }
        () if starts("@/tmp/dbus-") || starts("/tmp/dbus-") => {
            "services on a session bus act for whoever asks"
        }
        () if starts("/run/systemd/resolve/") => {
            "systemd-resolved would ask for any name; the agent has a resolver of its own"
        }
        () if starts("/run/systemd/journal/") || name == "/dev/log" => "the system's log",
        () if starts("/run/systemd/") || (starts("/run/user/") && name.contains("/systemd/")) => {
            "systemd starts anything outside the agent"
        }
        () if starts("/run/nscd/") => {
            "nscd would ask for any name; the agent has a resolver of its own"
        }
        () if ends("/snapd.socket") || ends("/snapd-snap.socket") => {
            "snapd installs software, as root"
        }
        () if (name.contains("/ssh-") && name.contains("/agent."))
            || ends("/keyring/ssh")
            || ends("/S.gpg-agent.ssh") =>
        {
            "an SSH agent signs with its owner's keys"
        }
        () if name.contains("/S.gpg-agent") => {
            "a GnuPG agent signs and decrypts with its owner's keys"
        }
        () if starts("/tmp/.X11-unix/") || starts("@/tmp/.X11-unix/") => {
            "the display types and reads in every window"
        }
        () if name.contains("/tmux-") || name.contains("/uscreens/") || starts("/run/screen/") => {
            "a terminal server runs commands outside the agent"
        }
        () => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dangerous_ones_are_called_by_name() {
        for (name, says) in [
            ("/var/run/docker.sock", "Docker"),
            ("/run/docker.sock", "Docker"),
            ("/run/containerd/containerd.sock", "containerd"),
            ("/run/user/1000/podman/podman.sock", "Podman"),
            ("/var/run/libvirt/libvirt-sock", "libvirt"),
            ("/run/dbus/system_bus_socket", "system bus"),
            ("/run/user/1000/bus", "session bus"),
            ("/run/systemd/private", "systemd starts"),
            ("/run/user/1000/systemd/private", "systemd starts"),
            ("/run/systemd/resolve/io.systemd.Resolve", "resolved"),
            ("/var/run/nscd/socket", "nscd"),
            ("/run/snapd.socket", "snapd"),
            ("/tmp/ssh-XYZ/agent.77", "SSH agent"),
            ("@/tmp/.X11-unix/X0", "display"),
        ] {
            assert!(
                known(name).is_some_and(|what| what.contains(says)),
                "{name}"
            );
        }
        assert_eq!(known("/run/postgresql/.s.PGSQL.5432"), None);
        assert_eq!(known("/variable/run/docker"), None);
    }
}
