//! What the shards of one disk share: whether it still works, who writes DISK, the master's term.
//!
//! Each is touched at start, on trouble, and when slots are made; never on the way of an operation,
//! except for one atomic load.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use wire::Term;

use super::StoreError;
use super::canary::weakened;
use super::flushes::Flushes;
use super::io::Io;
use super::page::Disk;
use crate::runtime::{FileId, Open, Runtime};

/// One disk of this process.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) root: PathBuf,
    /// Why the disk stopped answering (rule R9); the first cause stays.
    fence: OnceLock<String>,
    /// Those of all shards.
    pub(crate) flushes: Arc<Flushes>,
    /// As last written, or about to be.
    disk: Mutex<Disk>,
    /// Somebody writes DISK.
    disk_writer: AtomicBool,
    term: AtomicU32,
    /// The file system does not share extents between files, as far as anybody tried.
    pub(crate) cannot_share: AtomicBool,
}

/// The right to change DISK, until dropped.
pub(crate) struct DiskWriter<'a>(&'a Shared);

impl Drop for DiskWriter<'_> {
    fn drop(&mut self) {
        self.0.disk_writer.store(false, Ordering::Release);
    }
}

/// How often a shard looks whether another has finished writing DISK: a wake-up across threads would
/// need more than the runtime seam has, for something that happens once in a gigabyte.
const DISK_RETRY: Duration = Duration::from_millis(2);

impl Shared {
    pub(crate) fn new(root: PathBuf, disk: Disk) -> Self {
        let term = AtomicU32::new(disk.master_term);
        Self {
            root,
            fence: OnceLock::new(),
            flushes: Arc::default(),
            disk: Mutex::new(disk),
            disk_writer: AtomicBool::new(false),
            term,
            cannot_share: AtomicBool::new(false),
        }
    }

    /// Whether the disk answers.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        match self.fence.get() {
            None => Ok(()),
            Some(cause) => Err(StoreError::Fenced(cause.clone())),
        }
    }

    /// From now on nothing answers; says whether this is the first cause.
    pub(crate) fn fence(&self, cause: String) -> bool {
        self.fence.set(cause).is_ok()
    }

    /// Refuses commands of an older master, remembers a newer one.
    pub(crate) fn obey(&self, term: Term) -> Result<(), StoreError> {
        let before = self.term.fetch_max(term.0, Ordering::Relaxed);
        if term.0 < before { Err(StoreError::OldTerm(Term(before))) } else { Ok(()) }
    }

    /// The highest term heard of.
    pub(crate) fn term(&self) -> Term {
        Term(self.term.load(Ordering::Relaxed))
    }

    pub(crate) fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the right to change DISK.
    pub(crate) async fn disk_writer<R: Runtime>(&self, rt: &R) -> DiskWriter<'_> {
        while self.disk_writer.swap(true, Ordering::Acquire) {
            rt.sleep(DISK_RETRY).await;
        }
        DiskWriter(self)
    }
}

impl DiskWriter<'_> {
    /// Writes a new version of DISK: one copy, flush, the other, flush (rule R14).
    pub(crate) async fn write<R: Runtime>(&self, io: &Io<R>, change: impl FnOnce(&mut Disk)) -> std::io::Result<()> {
        let page = {
            let mut disk = self.0.disk();
            change(&mut disk);
            disk.common.page_seq += 1;
            disk.encode()
        };
        let copies = if weakened!(OneRootCopy) { 1 } else { 2 };
        for copy in [FileId::DiskA, FileId::DiskB].into_iter().take(copies) {
            let file = io.rt.open(&self.0.root, copy, Open::Existing).await?;
            io.write_bytes(&file, page.as_slice(), 0).await?;
            io.flush(&file).await?;
        }
        Ok(())
    }
}
