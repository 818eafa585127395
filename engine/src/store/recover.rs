//! Recovery (format section 8): one thread per disk, before any shard serves it.
//!
//! A thin driver: it reads, asks [`super::page::pick`], [`super::fold`] and [`super::walk`] what it
//! means, writes what they decide, in the order that makes a crash in here harmless. Steps 1 to 5
//! only heal and read; the old journal stays valid until step 7.

mod replay;
mod scan;
mod settle;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use wire::DedupEntry;

use super::OpenError;
use super::canary::weakened;
use super::fold::{Fold, Held, NotReplayed};
use super::format;
use super::header::{Flags, Hdr};
use super::io::Io;
use super::open::{self, DiskFound};
use super::page::{Common, Disk, Ring};
use super::shared::Shared;
use super::types::{DiskConfig, RecoverySummary};
use super::walk::End;
use crate::runtime::Runtime;

/// Slots that are read or written at a time.
const SLOTS_AT_A_TIME: usize = 32;

/// Blocks that are compared with one read.
const VERIFY_BLOCKS: u32 = 256;

/// A second disk error within so many seconds: the disk takes no new chunks.
const EIO_WINDOW: u64 = 24 * 3600;

/// A chunk as recovery leaves it.
#[derive(Debug)]
pub(crate) struct Seed {
    pub(crate) hdr: Hdr,
    pub(crate) tail: Vec<u8>,
    pub(crate) dedup: Vec<DedupEntry>,
}

/// What one shard starts from. `Send`: goes to the shard's thread.
#[derive(Debug)]
pub struct ShardSeed {
    pub(crate) shared: Arc<Shared>,
    pub(crate) shard: u32,
    pub(crate) disk_uuid: [u8; 16],
    pub(crate) boot_gen: u64,
    /// The last record number of all boots before.
    pub(crate) base_lsn: u64,
    pub(crate) start_off: u64,
    pub(crate) log_bytes: u64,
    pub(crate) ring_seq: u64,
    pub(crate) chunks: Vec<Seed>,
    pub(crate) free: Vec<Hdr>,
}

/// What [`recover`] gives.
#[derive(Debug)]
pub struct Recovered {
    /// One per shard, in order.
    pub seeds: Vec<ShardSeed>,
    /// What was found.
    pub summary: RecoverySummary,
    /// The same, slot by slot.
    pub(crate) trace: Trace,
}

/// What recovery met in each slot: for tools that tell one chunk from another.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trace {
    /// Both headers are bad.
    pub(crate) lost: BTreeSet<u32>,
    /// An operation, or a fill, was not complete: dropped.
    pub(crate) incomplete: BTreeSet<u32>,
}

/// Formats a fresh disk or recovers one. One thread, before any shard serves, under a
/// [`super::DiskLock`]. Durable on return. Dropping the future leaves a disk that recovers to the same.
///
/// # Errors
///
/// The disk belongs to somebody else, has another format, or does not answer. Nothing that was
/// acknowledged is lost.
pub async fn recover<R: Runtime>(rt: &R, config: &DiskConfig) -> Result<Recovered, OpenError> {
    let started = rt.now();
    if config.shards == 0 {
        return Err(OpenError::new("no shards", "use at least one"));
    }
    let ring_bytes = format::ring_bytes(config)?;
    let io = Io::new(rt.clone());
    if !weakened!(NoSyncOfFileSystem) {
        let synced = rt.sync_file_system(&config.root).await;
        synced.map_err(|error| OpenError::io("cannot sync the file system", &error))?;
    }
    let mut summary = RecoverySummary::default();
    let found = match open::find_disk(&io, config).await? {
        DiskFound::Fresh => {
            format::format(&io, config).await?;
            summary.formatted = true;
            open::find_disk(&io, config).await?
        }
        found @ DiskFound::Formatted { .. } => found,
    };
    let DiskFound::Formatted { disk, file, healed } = found else {
        return Err(OpenError::new("a disk that was just formatted reads as fresh", "check the disk"));
    };
    summary.healed += u64::from(healed);
    let mut recovery = Recovery {
        io,
        config,
        disk_file: file,
        largest_lsn: disk.common.lsn,
        largest_boot: disk.common.boot_gen,
        disk,
        rings: Vec::new(),
        slots: BTreeMap::new(),
        folds: BTreeMap::new(),
        summary,
        trace: Trace::default(),
    };
    let mut recovered = recovery.run(ring_bytes).await?;
    recovered.summary.took = rt.now().saturating_sub(started);
    Ok(recovered)
}

/// One ring in recovery.
struct RingFound<R: Runtime> {
    file: R::File,
    /// `None`: both copies are bad.
    ring: Option<Ring>,
    end: Option<End>,
    log_bytes: u64,
}

/// A slot as its header and children describe it.
struct Loaded {
    held: Held,
}

struct Recovery<'a, R: Runtime> {
    io: Io<R>,
    config: &'a DiskConfig,
    disk: Disk,
    disk_file: R::File,
    rings: Vec<RingFound<R>>,
    /// Slots that no record was applied to.
    slots: BTreeMap<u32, Loaded>,
    /// Slots that some were.
    folds: BTreeMap<u32, Fold>,
    largest_lsn: u64,
    largest_boot: u64,
    summary: RecoverySummary,
    trace: Trace,
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> OpenError {
    move |error| OpenError::io(what, &error)
}

fn not_replayed(NotReplayed(kind): NotReplayed) -> OpenError {
    OpenError::new(
        format!("the journal holds a record of type {kind}, which this build does not replay"),
        "start the build that wrote it, and stop it cleanly",
    )
}

impl<R: Runtime> Recovery<'_, R> {
    async fn run(&mut self, ring_bytes: u64) -> Result<Recovered, OpenError> {
        self.read_rings().await?;
        self.read_slots().await?;
        self.flush("cannot heal").await?;
        for index in 0..self.rings.len() {
            self.replay(index).await?;
        }
        self.write_slots().await?;
        self.write_rings(ring_bytes).await?;
        self.write_disk(ring_bytes).await?;
        Ok(self.deal())
    }

    async fn flush(&self, what: &'static str) -> Result<(), OpenError> {
        self.io.flush(&self.disk_file).await.map_err(failed(what))
    }

    fn saw(&mut self, common: &Common) {
        self.largest_lsn = self.largest_lsn.max(common.lsn);
        self.largest_boot = self.largest_boot.max(common.boot_gen);
    }

    /// Step 9.
    fn deal(&mut self) -> Recovered {
        let shards = self.config.shards;
        let shared = Arc::new(Shared::new(self.config.root.clone(), self.disk.clone()));
        let mut seeds: Vec<ShardSeed> = (0..shards)
            .zip(&self.rings)
            .map(|(shard, found)| ShardSeed {
                shared: Arc::clone(&shared),
                shard,
                disk_uuid: self.disk.common.disk_uuid,
                boot_gen: self.disk.common.boot_gen,
                base_lsn: match &found.ring {
                    Some(ring) if weakened!(LsnNotRebased) => ring.common.lsn,
                    _ => self.largest_lsn,
                },
                start_off: found.ring.as_ref().map_or(0, |ring| ring.start_off),
                log_bytes: found.log_bytes,
                ring_seq: found.ring.as_ref().map_or(0, |ring| ring.common.page_seq),
                chunks: Vec::new(),
                free: Vec::new(),
            })
            .collect();
        let untouched = std::mem::take(&mut self.slots).into_values().map(|loaded| loaded.held);
        let touched = std::mem::take(&mut self.folds).into_values().map(|fold| fold.held);
        for held in untouched.chain(touched) {
            match held {
                Held::Free(hdr) => seeds[(hdr.common.number % shards) as usize].free.push(*hdr),
                Held::Chunk(mut replica) => {
                    assert!(replica.redo.is_empty(), "recovery leaves every image in place");
                    replica.restart();
                    self.summary.chunks += 1;
                    self.summary.damaged += u64::from(replica.hdr.flags.has(Flags::DAMAGED));
                    let shard = replica.hdr.chunk().shard(shards) as usize;
                    seeds[shard].chunks.push(Seed {
                        tail: Rc::as_ref(&replica.tail).to_vec(),
                        dedup: replica.dedup.entries(),
                        hdr: replica.hdr,
                    });
                }
            }
        }
        Recovered { seeds, summary: std::mem::take(&mut self.summary), trace: std::mem::take(&mut self.trace) }
    }
}
