//! A folder, and word of what comes into it (inotify(7)).

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

use super::{Result, SysError};

#[derive(Debug)]
pub struct FolderWatch(AsyncFd<OwnedFd>);

impl FolderWatch {
    /// Files that are renamed into the folder from now on. Must be called in a tokio runtime.
    pub fn of(folder: &Path) -> Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .map_err(SysError::of("inotify_init1"))?;
        inotify
            .add_watch(folder, AddWatchFlags::IN_MOVED_TO)
            .map_err(SysError::of("inotify_add_watch"))?;
        // SAFETY: the watch owns the descriptor and closes it after it has been taken out of epoll.
        let watch = unsafe { AsyncFd::register(OwnedFd::from(inotify)) };
        let watch = watch.map_err(|error| SysError::io("epoll_ctl")(error.into()))?;
        Ok(Self(watch))
    }

    /// Returns when something has come since it was made, or since this last returned.
    pub async fn arrival(&self) -> Result<()> {
        loop {
            let mut ready = self
                .0
                .readable()
                .await
                .map_err(SysError::io("epoll_wait"))?;
            // Larger than any one event (`sizeof(struct inotify_event)` + `NAME_MAX` + 1).
            let mut events = [0; 4096];
            match nix::unistd::read(&self.0, &mut events) {
                Ok(_) => return Ok(()),
                Err(nix::Error::EAGAIN) => ready.clear_ready(),
                Err(errno) => return Err(SysError::of("read inotify")(errno)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_is_renamed_into_the_folder_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("in");
        std::fs::create_dir(&folder).unwrap();
        let watch = FolderWatch::of(&folder).unwrap();
        let file = dir.path().join("a");
        std::fs::write(&file, "x").unwrap();
        let soon = std::time::Duration::from_millis(50);
        tokio::time::timeout(soon, watch.arrival())
            .await
            .expect_err("nothing has come");
        std::fs::rename(&file, folder.join("a")).unwrap();
        watch.arrival().await.unwrap();
    }
}
