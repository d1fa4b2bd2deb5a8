//! The few file operations that the log and the identity need, so that a simulation can lose what
//! was not synced. Only start-up, `pgr log` and tests go through here; live writes are the event
//! loop's.

use bytes::Bytes;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A flat directory of files. Names contain no separator.
pub trait Disk {
    /// Makes a file of `bytes` zeros, durable together with its name. One of that name is replaced.
    fn create(&self, name: &str, bytes: u64) -> io::Result<()>;
    /// Writes at an offset; not durable before [`Disk::sync`].
    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes a file's content durable.
    fn sync(&self, name: &str) -> io::Result<()>;
    /// Makes creations, removals and renames durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// Up to `len` bytes from an offset; fewer at the end of the file.
    fn read(&self, name: &str, offset: u64, len: usize) -> io::Result<Vec<u8>>;
    /// A whole file.
    fn whole(&self, name: &str) -> io::Result<Bytes> {
        let len = usize::try_from(self.size(name)?).map_err(io::Error::other)?;
        self.read(name, 0, len).map(Bytes::from)
    }
    /// Size of a file.
    fn size(&self, name: &str) -> io::Result<u64>;
    /// Names of all files, sorted.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Removes a file; durable after [`Disk::sync_dir`].
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Replaces `to` by `from`; durable after [`Disk::sync_dir`].
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
}

/// A directory of the file system.
pub struct FileDisk {
    dir: PathBuf,
}

impl FileDisk {
    /// A directory that exists.
    pub fn open(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Makes the directory (mode 0700) if it is not there.
    pub fn create_dir(dir: impl Into<PathBuf>) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let dir = dir.into();
        if !dir.is_dir() {
            fs::DirBuilder::new().mode(0o700).create(&dir)?;
            if let Some(parent) = dir.parent() {
                File::open(parent)?.sync_all()?;
            }
        }
        Ok(Self { dir })
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn path(&self, name: &str) -> PathBuf {
        debug_assert!(!name.contains('/'));
        self.dir.join(name)
    }
}

/// Bytes of zeros written at once.
const ZEROS: usize = 1 << 18;

impl Disk for FileDisk {
    fn create(&self, name: &str, bytes: u64) -> io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(self.path(name))?;
        // Written, not only allocated: a first write into an unwritten extent would make every
        // sync wait for the file system's journal.
        let zeros = vec![0u8; ZEROS];
        let mut at = 0;
        while at < bytes {
            let n = ZEROS.min(usize::try_from(bytes - at).unwrap_or(ZEROS));
            file.write_all_at(&zeros[..n], at)?;
            at += n as u64;
        }
        file.sync_all()?;
        self.sync_dir()
    }

    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.path(name))?;
        file.write_all_at(bytes, offset)
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        File::open(self.path(name))?.sync_data()
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn read(&self, name: &str, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let file = File::open(self.path(name))?;
        let size = file.metadata()?.len().saturating_sub(offset);
        let mut buf = vec![0; len.min(usize::try_from(size).unwrap_or(len))];
        let mut at = 0;
        while at < buf.len() {
            match file.read_at(&mut buf[at..], offset + at as u64) {
                Ok(0) => {
                    buf.truncate(at);
                    break;
                }
                Ok(n) => at += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(buf)
    }

    fn size(&self, name: &str) -> io::Result<u64> {
        Ok(fs::metadata(self.path(name))?.len())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_type()?.is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }
}
