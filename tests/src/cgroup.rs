//! Control groups of a test's own.

use std::fs;
use std::path::PathBuf;

use crate::names;
use crate::tools::PATIENCE;

/// A cgroup of the test's own; what is in it goes back to its parent.
pub struct Cgroup(pub PathBuf);

impl Cgroup {
    pub fn new() -> Self {
        let mounts = fs::read_to_string("/proc/mounts").expect("readable");
        let root = mounts
            .lines()
            .find_map(|line| {
                let mut fields = line.split(' ').skip(1);
                let place = fields.next()?;
                (fields.next()? == "cgroup2").then(|| PathBuf::from(place))
            })
            .expect("a cgroup v2 hierarchy");
        let path = root.join(names::unique());
        fs::create_dir(&path).expect("made");
        Self(path)
    }

    /// Its path below the root.
    pub fn name(&self) -> String {
        let name = self.0.file_name().expect("it has one");
        format!("/{}", name.to_string_lossy())
    }
}

impl Default for Cgroup {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let parent = self
            .0
            .parent()
            .expect("below the root")
            .join("cgroup.procs");
        for tgid in fs::read_to_string(self.0.join("cgroup.procs"))
            .unwrap_or_default()
            .lines()
        {
            let _ = fs::write(&parent, tgid);
        }
        let deadline = std::time::Instant::now() + PATIENCE;
        while fs::remove_dir(&self.0).is_err() && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
}
