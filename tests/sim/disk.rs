//! A directory in memory. A crash loses what was not synced, sector by sector, as a disk may.
//! Files are mostly zeros behind their end, so only what was written is stored.

use crate::rng::Rng;
use postgres_r::gcs::egcs::disk::Disk;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

const SECTOR: usize = 512;

#[derive(Clone, Default)]
struct File {
    size: u64,
    content: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

#[derive(Default)]
struct Directory {
    files: BTreeMap<String, File>,
    /// Names as of the last sync of the directory, when they have changed since.
    durable: Option<BTreeMap<String, File>>,
    fail_sync: bool,
}

/// A handle; clones share the directory.
#[derive(Clone, Default)]
pub struct SimDisk(Rc<RefCell<Directory>>);

impl SimDisk {
    pub fn crash(&self, rng: &mut Rng) {
        let dir = &mut *self.0.borrow_mut();
        if let Some(before) = dir.durable.take()
            && rng.per_mille(500)
        {
            dir.files = before;
        }
        // From nothing to everything of what was under way.
        let survives = rng.pick(&[0, 300, 700, 1000]);
        for file in dir.files.values_mut() {
            for (offset, bytes) in std::mem::take(&mut file.unsynced) {
                let mut at = 0;
                while at < bytes.len() {
                    let sector_end = ((offset + at) / SECTOR + 1) * SECTOR - offset;
                    let next = sector_end.min(bytes.len());
                    if rng.per_mille(survives) {
                        put(&mut file.durable, offset + at, &bytes[at..next]);
                    }
                    at = next;
                }
            }
            file.content.clone_from(&file.durable);
        }
    }

    /// Whether the next sync of a file fails as the kernel's do: what should have been written counts
    /// as written from then on, so that reads show it and later syncs succeed, and is not on the medium.
    pub fn fail_sync(&self, fail: bool) {
        self.0.borrow_mut().fail_sync = fail;
    }

    fn file<T>(&self, name: &str, f: impl FnOnce(&mut File) -> T) -> io::Result<T> {
        let mut dir = self.0.borrow_mut();
        let missing = || io::Error::new(io::ErrorKind::NotFound, name.to_owned());
        dir.files.get_mut(name).map(f).ok_or_else(missing)
    }

    fn rename_in(&self, change: impl FnOnce(&mut BTreeMap<String, File>)) {
        let dir = &mut *self.0.borrow_mut();
        if dir.durable.is_none() {
            dir.durable = Some(dir.files.clone());
        }
        change(&mut dir.files);
    }
}

fn put(to: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if to.len() < offset + bytes.len() {
        to.resize(offset + bytes.len(), 0);
    }
    to[offset..offset + bytes.len()].copy_from_slice(bytes);
}

impl Disk for SimDisk {
    fn create(&self, name: &str, bytes: u64) -> io::Result<()> {
        let mut dir = self.0.borrow_mut();
        dir.files.insert(
            name.to_owned(),
            File {
                size: bytes,
                ..File::default()
            },
        );
        dir.durable = None;
        Ok(())
    }

    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file(name, |file| {
            put(&mut file.content, offset as usize, bytes);
            file.size = file.size.max(offset + bytes.len() as u64);
            file.unsynced.push((offset as usize, bytes.to_vec()));
        })
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        if std::mem::take(&mut self.0.borrow_mut().fail_sync) {
            self.file(name, |file| file.unsynced.clear())?;
            return Err(io::Error::other("the medium failed"));
        }
        self.file(name, |file| {
            for (offset, bytes) in file.unsynced.drain(..) {
                put(&mut file.durable, offset, &bytes);
            }
        })
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.0.borrow_mut().durable = None;
        Ok(())
    }

    fn read(&self, name: &str, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.file(name, |file| {
            let mut out = vec![0; len.min(file.size.saturating_sub(offset) as usize)];
            let from = (offset as usize).min(file.content.len());
            let stored = &file.content[from..file.content.len().min(from + out.len())];
            out[..stored.len()].copy_from_slice(stored);
            out
        })
    }

    fn size(&self, name: &str) -> io::Result<u64> {
        self.file(name, |file| file.size)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.borrow().files.keys().cloned().collect())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.file(name, |_| ())?;
        self.rename_in(|files| {
            files.remove(name);
        });
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.file(from, |_| ())?;
        self.rename_in(|files| {
            let file = files.remove(from).expect("just seen");
            files.insert(to.to_owned(), file);
        });
        Ok(())
    }
}
