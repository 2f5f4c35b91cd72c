//! The mark beside a store, `<store>.mark`: the number of its committed writes, 16 hexadecimal digits.
//! A store with fewer writes is a former state of it: an older copy, or a file whose header was damaged, which redb repairs by
//! taking the commit before. The mark is written after each commit and not flushed: it survives a crash of the process, and
//! after one of the machine it may be behind, never ahead.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use parking_lot::Mutex;

/// The open file and the number in it.
#[derive(Debug)]
pub(super) struct Mark(Mutex<(File, u64)>);

/// The mark's path.
pub(super) fn path(store: &Path) -> PathBuf {
    let mut path = store.as_os_str().to_owned();
    path.push(".mark");
    path.into()
}

impl Mark {
    /// Opens the mark of a store, or creates it with 0.
    pub(super) fn open(store: &Path) -> io::Result<Self> {
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).clone();
        let mut file = options.open(path(store))?;
        let mut text = String::new();
        // A mark that cannot be read says nothing; the store has checksums of its own.
        let read = Read::by_ref(&mut file).take(64).read_to_string(&mut text);
        let writes = read.ok().and_then(|_| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
        Ok(Self(Mutex::new((file, writes))))
    }

    /// The writes that are known to be committed.
    pub(super) fn writes(&self) -> u64 {
        self.0.lock().1
    }

    /// Notes a commit. Commits of several threads may come in another order.
    pub(super) fn committed(&self, writes: u64) {
        if writes > self.writes() {
            self.reset(writes);
        }
    }

    /// Sets the number. A failure leaves an older one, which is safe.
    pub(super) fn reset(&self, writes: u64) {
        let mut mark = self.0.lock();
        mark.1 = writes;
        if let Err(error) = mark.0.write_all_at(format!("{writes:016x}\n").as_bytes(), 0) {
            tracing::debug!(error = &error as &dyn std::error::Error, "the store's mark was not written");
        }
    }
}
