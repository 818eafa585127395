//! The store of one shard: what it holds, and the step that every operation goes through.
//!
//! State is borrowed for single steps, never across an await. A step that changes a replica and adds
//! its record to the journal is one borrow: the order of records is the order of changes.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{Mutex, Semaphore, oneshot};
use wire::member::ReplicaState;
use wire::{ChunkHandle, DedupEntry, Epoch, OpId, Seq, StreamId};

use super::batch::{Chain, Subject};
use super::cache::CrcCache;
use super::event::{Event, Outcome, Tally};
use super::files::Files;
use super::header::{Flags, Hdr, SlotState};
use super::io::Io;
use super::load::Loads;
use super::log::{Class, End, Log};
use super::overwrite::REDO_CHECKPOINT;
use super::reads::Reads;
use super::record::{Body, FLAG_FILL};
use super::recover::{Seed, ShardSeed};
use super::replica::{Budget, Replica, shared};
use super::shared::Shared;
use super::types::{Counters, ReadConfig, Space, View};
use super::{OpenError, StoreError};
use crate::runtime::{FileId, Open, Runtime};

/// Buffers that the store itself may hold at one time: the batch that is written, two re-blocked
/// payloads, pages of a checkpoint, the parts of two reads that are put together. What fills the rest of
/// a shard's pool (payloads on their way, answers to reads) must leave this much, and what
/// [`ReadConfig::buffers`] says, or the store waits for buffers that wait for it.
pub const STORE_MEMORY: usize = 8 << 20;

/// Payloads that are copied into block order at one time.
const REBLOCK_MAX: usize = 2;

/// Reads that hold what they were read into and what they answer with at one time.
const ASSEMBLE_MAX: usize = 2;

/// The store of one shard; clones are handles to the same one.
///
/// Every method answers [`StoreError::Fenced`] once a write or flush of the disk has failed.
/// Dropping a returned future stops the waiting, never what was accepted.
pub struct Store<R: Runtime> {
    pub(crate) inner: Rc<Inner<R>>,
}

impl<R: Runtime> Clone for Store<R> {
    fn clone(&self) -> Self {
        Self { inner: Rc::clone(&self.inner) }
    }
}

impl<R: Runtime> fmt::Debug for Store<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("shard", &self.inner.shard).finish_non_exhaustive()
    }
}

/// What a shard's store owns.
pub(crate) struct Inner<R: Runtime> {
    pub(crate) io: Io<R>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) shard: u32,
    pub(crate) disk_uuid: [u8; 16],
    pub(crate) boot_gen: u64,
    pub(crate) ring: R::File,
    pub(crate) state: RefCell<State<R>>,
    pub(crate) files: RefCell<Files<R::File>>,
    pub(crate) cache: RefCell<CrcCache>,
    pub(crate) reads: RefCell<Reads<R>>,
    /// Reads that are put together from several places.
    pub(crate) assembling: Semaphore,
    /// Files and checksum pages that somebody is about to have.
    pub(crate) loads: RefCell<Loads>,
    /// Tasks with I/O.
    pub(crate) tasks: Tally,
    /// Images in memory.
    pub(crate) redo: Budget,
    pub(crate) reblock: Semaphore,
    /// Held while slots are made.
    pub(crate) making_slots: Mutex<()>,
    /// Held during a checkpoint.
    pub(crate) checkpoints: Mutex<()>,
    pub(crate) stopping: Cell<bool>,
    /// See [`Store::hold_checkpoints`].
    pub(crate) holding: Cell<bool>,
}

/// What changes.
pub(crate) struct State<R: Runtime> {
    pub(crate) chunks: BTreeMap<ChunkHandle, Chunk<R>>,
    /// The chunk in each slot that holds one.
    pub(crate) by_slot: BTreeMap<u32, ChunkHandle>,
    /// Slots that hold nothing. Those at the front have waited longest.
    pub(crate) free: VecDeque<FreeSlot>,
    pub(crate) log: Log<R::File>,
    /// Version of the RING pages.
    pub(crate) ring_seq: u64,
    /// A task writes and flushes batches.
    pub(crate) committing: bool,
    /// A task writes a checkpoint.
    pub(crate) checkpointing: bool,
    /// An overwrite was refused for want of memory since the last checkpoint.
    pub(crate) images_refused: bool,
    /// A task waits for the journal to stay idle.
    pub(crate) marking: bool,
    /// A task makes slots.
    pub(crate) filling_up: bool,
    /// Tasks that zero ahead of appends.
    pub(crate) zeroing: usize,
    /// Chunks that want zeros ahead once the disk is idle.
    pub(crate) warm: BTreeSet<ChunkHandle>,
}

/// A chunk.
pub(crate) struct Chunk<R: Runtime> {
    pub(crate) replica: Replica,
    /// Open while the chunk takes appends; otherwise see [`Inner::file`].
    pub(crate) file: Option<R::File>,
    /// As of the last durable group.
    pub(crate) durable: End,
    /// First record that the header on the disk does not contain.
    pub(crate) dirty_lsn: Option<u64>,
    /// Data bytes that have space.
    pub(crate) allocated: u32,
    /// Shared by whoever reads or writes the slot: it is not used again before they are done (rule R17).
    pub(crate) users: Rc<()>,
    /// Created since the start, and nothing but appends since then.
    pub(crate) only_appends: bool,
    /// Length of the last append.
    pub(crate) last_append: u32,
    /// Zeros ahead of its appends.
    pub(crate) zeros: super::zero_ahead::Zeros,
    /// Its CREATE is durable: data may be written (rule R17).
    pub(crate) created: bool,
    /// One fill at a time decides.
    pub(crate) filling: Rc<Mutex<()>>,
    /// Bit per MiB of a chunk that shares extents: this one does not any more, durably.
    pub(crate) private: u64,
    /// Shared by whoever may let others share its extents.
    pub(crate) lent: Rc<()>,
}

/// A slot that holds nothing.
pub(crate) struct FreeSlot {
    pub(crate) hdr: Hdr,
    pub(crate) dirty_lsn: Option<u64>,
    pub(crate) allocated: u32,
    pub(crate) users: Rc<()>,
    /// Its FREE is durable.
    pub(crate) durable: bool,
}

impl FreeSlot {
    /// Durably free, and nobody is still at it.
    fn is_idle(&self) -> bool {
        self.durable && Rc::strong_count(&self.users) == 1
    }

    /// Kept out of use: a block of it stayed bad after a repair.
    pub(crate) fn is_quarantined(&self) -> bool {
        self.hdr.flags.has(Flags::QUARANTINED)
    }

    /// May hold a chunk.
    pub(crate) fn is_ready(&self) -> bool {
        self.is_idle() && !self.is_quarantined() && !self.hdr.flags.has(Flags::SHARED)
    }

    /// Its data must be punched out before: others may share it.
    pub(crate) fn is_to_be_punched(&self) -> bool {
        self.is_idle() && !self.is_quarantined() && self.hdr.flags.has(Flags::SHARED)
    }
}

impl<R: Runtime> Chunk<R> {
    fn from_seed(seed: Seed) -> Self {
        let replica = Replica::loaded(seed.hdr, shared(&seed.tail), super::dedup::DedupTable::new(&seed.dedup));
        let durable = end_of(&replica);
        let allocated = replica.hdr.written_upto;
        Self {
            replica,
            file: None,
            durable,
            dirty_lsn: None,
            allocated,
            users: Rc::default(),
            only_appends: false,
            last_append: 0,
            zeros: super::zero_ahead::Zeros::default(),
            created: true,
            filling: Rc::default(),
            private: 0,
            lent: Rc::default(),
        }
    }

    pub(crate) fn slot(&self) -> u32 {
        self.replica.hdr.common.number
    }

    /// Data bytes it takes on the disk.
    fn taken(&self) -> u64 {
        u64::from(self.allocated.max(self.durable.len))
    }

    fn end(&self) -> End {
        end_of(&self.replica)
    }

    /// Last durable entry of the epoch; a chunk that was just re-opened has none.
    fn durable_seq(&self) -> u64 {
        let hdr = &self.replica.hdr;
        if self.durable.epoch == hdr.epoch || hdr.state != SlotState::Open { self.durable.seq } else { 0 }
    }
}

fn end_of(replica: &Replica) -> End {
    let hdr = &replica.hdr;
    End { len: hdr.durable_len, seq: hdr.last_seq, epoch: hdr.epoch, tail: Rc::clone(&replica.tail) }
}

impl<R: Runtime> State<R> {
    /// The chunk, unless it is condemned.
    pub(crate) fn live(&self, chunk: ChunkHandle) -> Result<&Chunk<R>, StoreError> {
        let live = self.chunks.get(&chunk).filter(|chunk| chunk.replica.state() != ReplicaState::Condemned);
        live.ok_or(StoreError::UnknownChunk)
    }
}

impl<R: Runtime> Store<R> {
    /// Opens the shard's journal and starts its tasks on `rt`. Reads keep nothing in memory and read
    /// nothing ahead.
    ///
    /// # Errors
    ///
    /// The journal cannot be opened.
    pub async fn start(rt: R, seed: ShardSeed) -> Result<Self, OpenError> {
        Self::start_with(rt, seed, ReadConfig::default()).await
    }

    /// As [`Store::start`], with memory for reads.
    ///
    /// # Errors
    ///
    /// The journal cannot be opened.
    pub async fn start_with(rt: R, seed: ShardSeed, reads: ReadConfig) -> Result<Self, OpenError> {
        let ring = rt
            .open(&seed.shared.root, FileId::Ring(seed.shard), Open::Existing)
            .await
            .map_err(|error| OpenError::io("cannot open the journal", &error))?;
        let chain = Chain { lsn: seed.base_lsn, prev_crc: 0, boot_gen: seed.boot_gen, disk_uuid: seed.disk_uuid };
        let state = State {
            by_slot: seed.chunks.iter().map(|seed| (seed.hdr.common.number, seed.hdr.chunk())).collect(),
            chunks: seed.chunks.into_iter().map(|seed| (seed.hdr.chunk(), Chunk::from_seed(seed))).collect(),
            free: seed.free.into_iter().map(free_slot).collect(),
            log: Log::new(chain, seed.start_off, seed.log_bytes),
            ring_seq: seed.ring_seq,
            committing: false,
            checkpointing: false,
            images_refused: false,
            marking: false,
            filling_up: false,
            zeroing: 0,
            warm: BTreeSet::new(),
        };
        let inner = Inner {
            io: Io::beside(rt, Arc::clone(&seed.shared.flushes)),
            shared: seed.shared,
            shard: seed.shard,
            disk_uuid: seed.disk_uuid,
            boot_gen: seed.boot_gen,
            ring,
            state: RefCell::new(state),
            files: RefCell::default(),
            cache: RefCell::default(),
            reads: RefCell::new(Reads::new(reads)),
            assembling: Semaphore::new(ASSEMBLE_MAX),
            loads: RefCell::default(),
            tasks: Tally::default(),
            redo: Budget::default(),
            reblock: Semaphore::new(REBLOCK_MAX),
            making_slots: Mutex::default(),
            checkpoints: Mutex::default(),
            stopping: Cell::new(false),
            holding: Cell::new(false),
        };
        let store = Self { inner: Rc::new(inner) };
        store.inner.keep_slots_ready();
        Ok(store)
    }

    /// All chunks held, ascending.
    #[must_use]
    pub fn chunks(&self) -> Vec<ChunkHandle> {
        self.inner.state.borrow().chunks.keys().copied().collect()
    }

    /// A replica as it stands; `None` for a chunk that is not here.
    #[must_use]
    pub fn view(&self, chunk: ChunkHandle) -> Option<View> {
        let state = self.inner.state.borrow();
        let chunk = state.chunks.get(&chunk)?;
        let (replica, hdr) = (&chunk.replica, &chunk.replica.hdr);
        let sealed = hdr.content_is_final();
        Some(View {
            state: replica.state(),
            epoch: hdr.epoch,
            promised: hdr.promised,
            members: hdr.members.clone(),
            my_position: hdr.my_position,
            prev: hdr.prev,
            file: hdr.file,
            len: replica.len(),
            last_seq: Seq(replica.last_seq()),
            durable_len: chunk.durable.len,
            durable_seq: Seq(chunk.durable_seq()),
            committed_len: hdr.committed_len,
            committed_seq: Seq(hdr.committed_seq),
            closed: hdr.flags.has(Flags::CLOSED),
            filled: hdr.flags.has(Flags::FILLED),
            fixed: hdr.flags.has(Flags::FIXED),
            sealed_len: if sealed { hdr.sealed_len } else { 0 },
            digest: if sealed { hdr.sealed_digest } else { [0; 16] },
            suspect_seq: Seq(hdr.suspect_seq),
            damaged: hdr.flags.has(Flags::DAMAGED),
        })
    }

    /// The dedup table: inherited entries plus one per complete operation (replication, section 6);
    /// ordered by stream and operation. Empty for an unknown chunk.
    #[must_use]
    pub fn dedup(&self, chunk: ChunkHandle) -> Vec<DedupEntry> {
        self.inner.state.borrow().chunks.get(&chunk).map(|chunk| chunk.replica.dedup.entries()).unwrap_or_default()
    }

    /// Where an operation landed, if it is in the table.
    #[must_use]
    pub fn dedup_entry(&self, chunk: ChunkHandle, id: OpId) -> Option<DedupEntry> {
        self.inner.state.borrow().chunks.get(&chunk)?.replica.dedup.get(id)
    }

    /// Newest operation of the stream in the table; zero for an unknown stream.
    #[must_use]
    pub fn newest_op(&self, chunk: ChunkHandle, stream: StreamId) -> u64 {
        self.inner.state.borrow().chunks.get(&chunk).map_or(0, |chunk| chunk.replica.dedup.newest(stream))
    }

    /// What the chain is known to have committed; cut to durable, never falls. Not durable itself:
    /// it is written down with later records.
    pub fn note_committed(&self, chunk: ChunkHandle, seq: Seq) {
        let mut state = self.inner.state.borrow_mut();
        if let Some(chunk) = state.chunks.get_mut(&chunk)
            && chunk.replica.state() == ReplicaState::Open
            && !chunk.replica.is_fenced()
        {
            chunk.replica.claim_committed(seq.0);
            chunk.replica.advance_committed(chunk.durable_seq());
        }
    }

    /// Plain integers since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut counters = self.inner.io.counters();
        self.inner.reads.borrow().count(&mut counters);
        counters
    }

    /// While true, no checkpoint begins by itself: the journal fills up and then answers `Busy`. For
    /// measuring what recovery of a full journal takes, and for nothing else.
    pub fn hold_checkpoints(&self, hold: bool) {
        self.inner.holding.set(hold);
    }

    /// Space of the disk; zeros when the file system does not answer.
    pub async fn space(&self) -> Space {
        let Ok(space) = self.inner.io.rt.space(&self.inner.shared.root).await else {
            return Space::default();
        };
        let reserve = space.total / 20;
        // A shard knows its own chunks only; what else stands on the disk is in `total` and `free`.
        Space {
            total: space.total,
            free: space.free.saturating_sub(reserve),
            used: self.inner.state.borrow().chunks.values().map(Chunk::taken).sum(),
        }
    }

    /// Closes the batch, flushes, writes a checkpoint, waits for all I/O. Everything is durable after.
    /// Every later call is refused.
    pub async fn shutdown(&self) {
        let inner = &self.inner;
        inner.stopping.set(true);
        while let Some(pending) = inner.pending() {
            if pending.wait().await.is_err() {
                break;
            }
        }
        inner.tasks.idle().await;
        if inner.shared.check().is_ok() {
            let last = Rc::clone(inner);
            inner.to_its_end(async move { last.checkpoint().await }).await;
        }
        inner.tasks.idle().await;
    }
}

fn free_slot(hdr: Hdr) -> FreeSlot {
    FreeSlot { allocated: hdr.written_upto, hdr, dirty_lsn: None, users: Rc::default(), durable: true }
}

impl<R: Runtime> Inner<R> {
    /// Whether new work is taken at all.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        self.shared.check()?;
        if self.stopping.get() { Err(StoreError::Fenced("the store is shut down".into())) } else { Ok(()) }
    }

    /// Applies a record to its replica and adds it to the open batch, or refuses it and changes
    /// nothing. Gives the record's number and the event of its durability.
    pub(crate) fn accept(
        self: &Rc<Self>,
        chunk: ChunkHandle,
        epoch: Epoch,
        flags: u8,
        body: &Body<'_>,
        class: Class,
    ) -> Result<Event, StoreError> {
        self.shared.check()?;
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let held = state.chunks.get_mut(&chunk).ok_or(StoreError::UnknownChunk)?;
        if let Err(error) = state.log.room(body.len_bound(), class) {
            self.checkpoint_soon(state);
            return Err(error);
        }
        if let Body::Overwrite { images, .. } | Body::Repair(images) = body
            && !held.may_overwrite(&images.blocks)
        {
            return Err(StoreError::NoSpace);
        }
        let lsn = state.log.last_lsn() + 1;
        held.replica.redo.count_in(&self.redo);
        held.replica.apply(lsn, epoch, flags, body, &mut |_| {})?;
        held.dirty_lsn.get_or_insert(lsn);
        match body {
            Body::Append(append) if flags & FLAG_FILL == 0 => held.last_append = append.length,
            _ => held.only_appends = false,
        }
        let subject = Subject { chunk, slot: held.slot(), epoch };
        let end = held.end();
        state.log.push(subject, flags, body);
        state.log.group.ends.insert(chunk, end);
        self.accepted(state);
        Ok(state.log.group.done.clone())
    }

    /// After a record was added: commit it, and make room in time.
    pub(crate) fn accepted(self: &Rc<Self>, state: &mut State<R>) {
        self.io.count(|counters| counters.records += 1);
        self.commit_soon(state);
        if state.log.wants_checkpoint() || self.redo.bytes() >= REDO_CHECKPOINT {
            self.checkpoint_soon(state);
        }
    }

    /// Waits until everything accepted so far is durable.
    pub(crate) fn flushed(&self) -> impl Future<Output = Outcome> + use<R> {
        let pending = self.pending();
        async move {
            match pending {
                Some(event) => event.wait().await,
                None => Ok(()),
            }
        }
    }

    pub(crate) fn pending(&self) -> Option<Event> {
        self.state.borrow().log.pending()
    }

    /// Runs a task with I/O; the store waits for it before it ends.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let going = self.tasks.enter();
        self.io.rt.spawn(async move {
            task.await;
            drop(going);
        });
    }

    /// Runs work with I/O to its end, whoever waits for it.
    pub(crate) async fn to_its_end<T: 'static>(&self, work: impl Future<Output = T> + 'static) -> T {
        let (done, ended) = oneshot::channel();
        self.spawn(async move {
            // Nobody may wait any more.
            let _forgotten = done.send(work.await);
        });
        match ended.await {
            Ok(result) => result,
            // The runtime has dropped the task, and drops this one.
            Err(_) => std::future::pending().await,
        }
    }

    /// Rule R9: nothing answers from now on. Marks DISK, if it can still be written.
    pub(crate) fn fence(self: &Rc<Self>, what: &str, error: &std::io::Error) -> StoreError {
        let cause = format!("{what}: {error}");
        if self.shared.fence(cause.clone()) {
            tracing::error!(root = %self.shared.root.display(), shard = self.shard, cause, "disk is fenced");
            self.io.count(|counters| counters.fences += 1);
            let inner = Rc::clone(self);
            self.spawn(async move { inner.mark_fenced().await });
        }
        self.shared.check().err().unwrap_or(StoreError::Fenced(cause))
    }

    async fn mark_fenced(&self) {
        let writer = self.shared.disk_writer(&self.io.rt).await;
        let marked = writer.write(&self.io.whatever_failed(), |disk| disk.state = super::page::DiskState::Fenced).await;
        if let Err(error) = marked {
            tracing::warn!(%error, "the fence could not be written to the disk");
        }
    }
}
