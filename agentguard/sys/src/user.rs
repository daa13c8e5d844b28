//! Users and groups by name.

use std::path::PathBuf;

use nix::unistd::{Gid, Group, User};

use super::{Result, SysError};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub home: PathBuf,
    pub shell: PathBuf,
}

impl Account {
    /// Of a number that no account has: in the group of the same number, and at home nowhere.
    pub fn of_number(name: &str) -> Option<Self> {
        let uid = name.parse().ok().filter(|&uid| uid != u32::MAX)?;
        Some(Self {
            name: name.to_owned(),
            uid,
            gid: uid,
            home: "/".into(),
            shell: "/bin/sh".into(),
        })
    }
}

/// An account by name or number; `None` if there is none.
pub fn account(name: &str) -> Result<Option<Account>> {
    let found = match name.parse::<u32>() {
        Ok(uid) => User::from_uid(uid.into()),
        Err(_) => User::from_name(name),
    }
    .map_err(SysError::of("getpwnam_r"))?;
    Ok(found.map(|user| Account {
        name: user.name,
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
        home: user.dir,
        shell: user.shell,
    }))
}

/// A uid by user name, or the number itself.
pub fn uid(name: &str) -> Option<u32> {
    name.parse()
        .ok()
        .or_else(|| account(name).ok().flatten().map(|a| a.uid))
}

/// A gid by group name, or the number itself.
pub fn gid(name: &str) -> Option<u32> {
    name.parse().ok().or_else(|| {
        let group = Group::from_name(name).ok().flatten();
        group.map(|g| g.gid.as_raw())
    })
}

/// The user's name, or its number where it has none.
pub fn name(uid: u32) -> String {
    User::from_uid(uid.into())
        .ok()
        .flatten()
        .map_or_else(|| uid.to_string(), |user| user.name)
}

/// Every group the account is in.
pub fn groups(account: &Account) -> Result<Vec<u32>> {
    let name = std::ffi::CString::new(account.name.as_str()).unwrap_or_default();
    let groups = nix::unistd::getgrouplist(&name, Gid::from_raw(account.gid))
        .map_err(SysError::of("getgrouplist"))?;
    Ok(groups.into_iter().map(Gid::as_raw).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_looked_up() {
        assert_eq!(uid("root"), Some(0));
        assert_eq!(uid("4242"), Some(4242));
        assert_eq!(uid("no-such-user-here"), None);
        assert_eq!(gid("root"), Some(0));
        assert_eq!(name(0), "root");
        assert_eq!(name(4_000_000_000), "4000000000");
        let nobodys = Account::of_number("4000000000").expect("a number");
        assert_eq!((nobodys.uid, nobodys.gid), (4_000_000_000, 4_000_000_000));
        assert_eq!(groups(&nobodys).expect("looked up"), [4_000_000_000]);
        // The number that setresuid(2) takes for "leave it as it is".
        assert_eq!(Account::of_number("4294967295"), None);
        assert_eq!(Account::of_number("no-such-user-here"), None);
    }
}
