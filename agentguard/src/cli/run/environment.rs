//! CMD's environment: the caller's, with every variable by which a client finds its trust anchors set to ours.

use std::ffi::OsString;
use std::path::Path;

use agentguard_sys::user::Account;

use crate::cli::ca;

/// Other spellings and folders by which clients would find other anchors than those of the variables that are set.
const REMOVED: [&str; 4] = [
    "SSL_CERT_DIR",
    "GIT_SSL_CAPATH",
    "NPM_CONFIG_CAFILE",
    "DENO_TLS_CA_STORE",
];

/// `user`: whom CMD runs as, if not as the caller.
pub(super) fn of(
    inherited: impl Iterator<Item = (OsString, OsString)>,
    trust: &Path,
    wgetrc: &Path,
    user: Option<&Account>,
) -> Vec<(OsString, OsString)> {
    let mut set: Vec<(OsString, OsString)> = ca::variables(trust)
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
    set.push(("WGETRC".into(), wgetrc.into()));
    if let Some(account) = user {
        set.push(("HOME".into(), account.home.clone().into()));
        set.push(("USER".into(), account.name.clone().into()));
        set.push(("LOGNAME".into(), account.name.clone().into()));
        set.push(("SHELL".into(), account.shell.clone().into()));
    }
    let kept = inherited.filter(|(name, _)| {
        !REMOVED.iter().any(|removed| name == removed) && !set.iter().any(|(ours, _)| ours == name)
    });
    let mut all: Vec<(OsString, OsString)> = kept.collect();
    all.append(&mut set);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_anchors_replace_the_callers() {
        let inherited = [
            ("PATH", "/bin"),
            ("SSL_CERT_FILE", "/theirs"),
            ("SSL_CERT_DIR", "/theirs"),
            ("HOME", "/root"),
        ]
        .map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let account = Account {
            name: "ann".into(),
            uid: 1000,
            gid: 1000,
            home: "/home/ann".into(),
            shell: "/bin/sh".into(),
        };
        let trust = Path::new("/r/ca-bundle.pem");
        let all = of(
            inherited.into_iter(),
            trust,
            Path::new("/r/wgetrc"),
            Some(&account),
        );
        let values = |name: &str| -> Vec<&str> {
            let named = all.iter().filter(|(n, _)| n == name);
            named.filter_map(|(_, value)| value.to_str()).collect()
        };
        assert_eq!(values("PATH"), ["/bin"]);
        assert_eq!(values("SSL_CERT_FILE"), ["/r/ca-bundle.pem"]);
        assert_eq!(values("NODE_EXTRA_CA_CERTS"), ["/r/ca-bundle.pem"]);
        assert_eq!(values("WGETRC"), ["/r/wgetrc"]);
        assert_eq!(values("HOME"), ["/home/ann"]);
        assert!(values("SSL_CERT_DIR").is_empty());
        assert!(all.len() >= 16);
    }
}
