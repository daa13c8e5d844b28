//! The archive format of an initramfs: cpio "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::io::{self, Write};

const S_IFCHR: u32 = 0o020_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

/// Writes entries in the order they come; a folder must come before what is in it. Everything belongs to root.
pub(super) struct Archive<W: Write> {
    to: W,
    written: usize,
    inode: u32,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(to: W) -> Self {
        Self {
            to,
            written: 0,
            inode: 0,
        }
    }

    pub(super) fn folder(&mut self, name: &str, permissions: u32) -> io::Result<()> {
        self.entry(name, S_IFDIR | permissions, 0, (0, 0), &[])
    }

    /// `time` in seconds since 1970: Python's compiled modules count by their source's.
    pub(super) fn file(
        &mut self,
        name: &str,
        permissions: u32,
        time: i64,
        content: &[u8],
    ) -> io::Result<()> {
        self.entry(name, S_IFREG | permissions, time, (0, 0), content)
    }

    pub(super) fn link(&mut self, name: &str, target: &str) -> io::Result<()> {
        self.entry(name, S_IFLNK | 0o777, 0, (0, 0), target.as_bytes())
    }

    pub(super) fn character_device(
        &mut self,
        name: &str,
        major: u32,
        minor: u32,
    ) -> io::Result<()> {
        self.entry(name, S_IFCHR | 0o600, 0, (major, minor), &[])
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        self.entry("TRAILER!!!", 0, 0, (0, 0), &[])?;
        self.to.flush()
    }

    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        time: i64,
        (major, minor): (u32, u32),
        content: &[u8],
    ) -> io::Result<()> {
        self.inode += 1;
        let size = u32::try_from(content.len())
            .map_err(|_| io::Error::other(format!("{name} is too large for an initramfs")))?;
        let time = u32::try_from(time).unwrap_or_default();
        let inode = self.inode;
        let name_size = name.len() + 1;
        // Magic, inode, mode, uid, gid, links, time, size, device, device of a device file, name's size, no checksum.
        let header = format!(
            "070701{inode:08X}{mode:08X}{0:08X}{0:08X}{1:08X}{time:08X}{size:08X}{0:08X}{0:08X}{major:08X}{minor:08X}{name_size:08X}{0:08X}",
            0, 1
        );
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.pad()?;
        self.put(content)?;
        self.pad()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len();
        self.to.write_all(bytes)
    }

    fn pad(&mut self) -> io::Result<()> {
        let missing = self.written.next_multiple_of(4) - self.written;
        self.put(&[0; 3][..missing])
    }
}
