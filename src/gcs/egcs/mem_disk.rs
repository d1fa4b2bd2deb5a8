//! A directory in memory that, at a crash, loses what was not synced: whole writes or parts of
//! them, in any order, as a disk may.

use super::disk::Disk;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

/// Unit in which a write reaches the medium.
const SECTOR: usize = 512;

#[derive(Clone, Default)]
struct File {
    /// What reads see.
    content: Vec<u8>,
    /// What is on the medium for certain.
    durable: Vec<u8>,
    /// Offset and bytes of writes since the last sync.
    unsynced: Vec<(usize, Vec<u8>)>,
}

#[derive(Default)]
struct Inner {
    files: BTreeMap<String, File>,
    /// The directory as of the last [`Disk::sync_dir`], when it changed since.
    durable_dir: Option<BTreeMap<String, File>>,
    /// The next sync of a file fails.
    fail_sync: bool,
}

/// A handle; clones share the directory.
#[derive(Clone, Default)]
pub struct MemDisk(Rc<RefCell<Inner>>);

impl MemDisk {
    /// An empty directory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Power fails. `random` gives arbitrary numbers, and with them which sectors of unsynced
    /// writes, and whether changes of names, survive.
    pub fn crash(&self, random: &mut dyn FnMut() -> u64) {
        let mut inner = self.0.borrow_mut();
        if let Some(before) = inner.durable_dir.take()
            && random().is_multiple_of(2)
        {
            inner.files = before;
        }
        for file in inner.files.values_mut() {
            for (offset, bytes) in std::mem::take(&mut file.unsynced) {
                let end = offset + bytes.len();
                let mut at = offset;
                while at < end {
                    let next = ((at / SECTOR + 1) * SECTOR).min(end);
                    if random().is_multiple_of(2) {
                        file.durable[at..next].copy_from_slice(&bytes[at - offset..next - offset]);
                    }
                    at = next;
                }
            }
            file.content.clone_from(&file.durable);
        }
    }

    /// The next sync of a file fails as the kernel's do: what should have been written counts as
    /// written from then on, so that reads show it and later syncs succeed, and is not on the medium.
    pub fn fail_sync(&self) {
        self.0.borrow_mut().fail_sync = true;
    }

    /// A copy of the directory as it is, everything in it synced.
    #[must_use]
    pub fn snapshot(&self) -> Self {
        let mut files = self.0.borrow().files.clone();
        for file in files.values_mut() {
            file.durable.clone_from(&file.content);
            file.unsynced.clear();
        }
        Self(Rc::new(RefCell::new(Inner {
            files,
            ..Inner::default()
        })))
    }

    fn with<T>(&self, name: &str, f: impl FnOnce(&mut File) -> T) -> io::Result<T> {
        let mut inner = self.0.borrow_mut();
        let missing = || io::Error::new(io::ErrorKind::NotFound, name.to_owned());
        inner.files.get_mut(name).map(f).ok_or_else(missing)
    }

    fn change_names<T>(&self, f: impl FnOnce(&mut BTreeMap<String, File>) -> T) -> T {
        let inner = &mut *self.0.borrow_mut();
        if inner.durable_dir.is_none() {
            inner.durable_dir = Some(inner.files.clone());
        }
        f(&mut inner.files)
    }
}

impl Disk for MemDisk {
    fn create(&self, name: &str, bytes: u64) -> io::Result<()> {
        let zeros = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
        let file = File {
            content: zeros.clone(),
            durable: zeros,
            unsynced: Vec::new(),
        };
        let mut inner = self.0.borrow_mut();
        inner.files.insert(name.to_owned(), file);
        inner.durable_dir = None;
        Ok(())
    }

    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        self.with(name, |file| {
            let end = offset + bytes.len();
            if file.content.len() < end {
                file.content.resize(end, 0);
                file.durable.resize(end, 0);
            }
            file.content[offset..end].copy_from_slice(bytes);
            file.unsynced.push((offset, bytes.to_vec()));
        })
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        if std::mem::take(&mut self.0.borrow_mut().fail_sync) {
            self.with(name, |file| file.unsynced.clear())?;
            return Err(io::Error::other("the medium failed"));
        }
        self.with(name, |file| {
            for (offset, bytes) in file.unsynced.drain(..) {
                file.durable[offset..offset + bytes.len()].copy_from_slice(&bytes);
            }
        })
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.0.borrow_mut().durable_dir = None;
        Ok(())
    }

    fn read(&self, name: &str, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        self.with(name, |file| {
            let from = offset.min(file.content.len());
            let to = from.saturating_add(len).min(file.content.len());
            file.content[from..to].to_vec()
        })
    }

    fn size(&self, name: &str) -> io::Result<u64> {
        self.with(name, |file| file.content.len() as u64)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.borrow().files.keys().cloned().collect())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.with(name, |_| ())?;
        self.change_names(|files| files.remove(name));
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.with(from, |_| ())?;
        self.change_names(|files| {
            if let Some(file) = files.remove(from) {
                files.insert(to.to_owned(), file);
            }
        });
        Ok(())
    }
}
