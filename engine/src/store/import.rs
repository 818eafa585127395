//! Import: a whole finished copy arrives and becomes a chunk in one step.
//!
//! ```text
//! begin   a durably free slot is kept for it, space for all of it is taken
//! write   blocks in place, in any order; nobody sees them
//! finish  digest, children, fsync(slot), INSTALL record: only now there is a chunk
//! ```
//!
//! Until the record is durable the slot is free: an import that is given up, fails, or dies with the
//! process leaves nothing behind. Recovery reads nothing to verify it: what INSTALL names is durable
//! before the record is written.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::io;
use std::rc::Rc;

use tokio::sync::Mutex;
use wire::ChunkHandle;
use wire::member::ReplicaState;

use super::StoreError;
use super::append::is_full;
use super::batch::Subject;
use super::crcs::{self, CrcTable};
use super::dedup::DedupTable;
use super::event::{Event, Tally};
use super::header::{EpochStart, Flags, Hdr, SlotState};
use super::image;
use super::layout::{BLOCK, CHUNK_CAPACITY, DEDUP_MAX, MEMBERS_MAX, PAGE, PART_MAX, align_up};
use super::log::{Class, End};
use super::page::{DiskState, Page, padded};
use super::record::Body;
use super::replica::{Replica, crcs_of_padded, empty};
use super::shard::{Chunk, FreeSlot, Inner, Store};
use super::types::ImportArgs;
use crate::runtime::Runtime;

/// A copy on its way. Dropping it gives the slot back once its writes have ended.
pub struct Import<R: Runtime> {
    pub(super) inner: Rc<Inner<R>>,
    pub(super) args: ImportArgs,
    pub(super) slot: u32,
    pub(super) file: R::File,
    /// Keeps the slot: it is not ready for others while somebody holds this (rule R17).
    pub(super) users: Rc<()>,
    pub(super) arrived: RefCell<Arrived>,
    /// It takes the place of another copy, which this allows to free.
    replaces: Option<u64>,
    writes: Tally,
    finishing: Mutex<()>,
}

/// What has come so far.
pub(super) struct Arrived {
    /// Of each block, as it is in place; `None`: not here.
    pub(super) crcs: Vec<Option<u32>>,
    /// Content of the partial block at the end.
    pub(super) tail: Vec<u8>,
}

impl<R: Runtime> fmt::Debug for Import<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (chunk, slot) = (self.args.chunk, self.slot);
        f.debug_struct("Import").field("chunk", &chunk).field("slot", &slot).finish_non_exhaustive()
    }
}

impl<R: Runtime> Store<R> {
    /// Begins to take in a finished copy: a slot is kept and space for `len` bytes is taken. Nothing is
    /// seen of it before [`Import::finish`]; memory: 8 bytes per block.
    ///
    /// # Errors
    ///
    /// `ChunkExists` when the chunk is here in any state, condemned too; `NoSpace` when the disk would be
    /// more than 98 % full, or is draining; `BadRange` for impossible arguments; `OldTerm`, `Busy`.
    pub async fn begin_import(&self, args: ImportArgs) -> Result<Import<R>, StoreError> {
        let import = self.inner.keep_slot(args).await?;
        let allocated = self.inner.state.borrow().allocated(import.slot);
        self.inner.has_room(align_up(import.args.len).saturating_sub(allocated)).await?;
        self.inner.take_space(import.slot, &import.file, import.args.len, &[align_up(import.args.len)]).await?;
        Ok(import)
    }
}

impl<R: Runtime> Import<R> {
    /// Writes whole blocks from `first_block` on, each once, in any order, several calls at a time.
    /// `crcs`, 1 to 256, are those of `buf`'s 4 KiB pieces, already verified; what `buf` holds behind
    /// them, or behind the end of the content, is not looked at, but the checksum of a partial last block
    /// is that of its bytes and zeros. Not durable on return: [`Import::finish`] is. Dropping the future
    /// does not stop the write.
    ///
    /// # Errors
    ///
    /// `BadRange` for blocks that are not of this copy or were written already, `BadBlock` for a partial
    /// block that does not match; `Fenced`.
    pub async fn write(&self, first_block: u32, crcs: &[u32], buf: R::Buf) -> Result<(), StoreError> {
        self.inner.check()?;
        self.arrive(first_block, crcs, buf.as_ref())?;
        // Everything but a partial block goes from the buffer that it came in.
        let (whole, count) = (self.args.len / BLOCK, u32::try_from(crcs.len()).unwrap_or(u32::MAX));
        let full = whole.saturating_sub(first_block).min(count);
        let end = (full < count).then(|| padded(&self.arrived.borrow().tail));
        self.to_its_end("data write failed", |inner, file| async move {
            let at = u64::from(first_block) * u64::from(BLOCK);
            if full > 0 {
                let blocks = inner.io.rt.slice(&buf, 0..full as usize * PAGE);
                inner.io.write(&file, blocks, at).await?;
            }
            match end {
                Some(page) => inner.io.write_bytes(&file, page.as_slice(), at + u64::from(full * BLOCK)).await,
                None => Ok(()),
            }
        })
        .await
    }

    /// Takes note of blocks, or refuses them.
    fn arrive(&self, first_block: u32, crcs: &[u32], bytes: &[u8]) -> Result<(), StoreError> {
        let mut arrived = self.arrived.borrow_mut();
        let first = first_block as usize;
        let fits = !crcs.is_empty() && crcs.len() * PAGE <= PART_MAX as usize && bytes.len() >= crcs.len() * PAGE;
        let range = first..first.checked_add(crcs.len()).ok_or(StoreError::BadRange)?;
        let places = arrived.crcs.get(range).filter(|_| fits).ok_or(StoreError::BadRange)?;
        if places.iter().any(Option::is_some) {
            return Err(StoreError::BadRange);
        }
        let (rest, last) = ((self.args.len % BLOCK) as usize, self.args.len / BLOCK);
        if let Some(crc) = crcs.get((last as usize).wrapping_sub(first)).filter(|_| rest > 0) {
            let at = (last as usize - first) * PAGE;
            let tail = bytes.get(at..at + rest).ok_or(StoreError::BadRange)?;
            if crcs_of_padded(tail) != *crc {
                return Err(StoreError::BadBlock(last));
            }
            arrived.tail = tail.to_vec();
        }
        for (place, crc) in arrived.crcs[first..].iter_mut().zip(crcs) {
            *place = Some(*crc);
        }
        Ok(())
    }

    /// The copy becomes a chunk, sealed. Durable on return. After `Busy` it may be called again; an equal
    /// chunk that came to be here meanwhile is as good.
    ///
    /// # Errors
    ///
    /// `BadRange` while blocks are missing, `Mismatch` when the digest is another one, `ChunkExists` when
    /// another copy came to be here meanwhile; `Busy`, `Fenced`.
    pub async fn finish(&self) -> Result<(), StoreError> {
        let inner = &self.inner;
        inner.check()?;
        let _one_at_a_time = self.finishing.lock().await;
        self.writes.idle().await;
        inner.check()?;
        let table = self.table()?;
        if self.is_here()? {
            return inner.flushed().await;
        }
        // Nobody else changes which children are current while the slot is kept.
        let hdr = inner.state.borrow_mut().hdr_of_slot(self.slot).map(|hdr| hdr.clone());
        let image = image::of(&self.replica(&hdr.ok_or(StoreError::UnknownChunk)?, table), inner.boot_gen, 0);
        self.make_durable(image.children).await?;
        inner.check()?;
        if let Some(authority) = self.replaces {
            inner.condemn_old(&self.args, authority).await?;
            inner.check()?;
        }
        match inner.install(self, image.hdr)? {
            Some(done) => done.wait().await,
            None => inner.flushed().await,
        }
    }

    /// Whether an equal copy came to be here; an error when another one did, and may not be replaced.
    fn is_here(&self) -> Result<bool, StoreError> {
        let found = self.inner.has_copy(&self.args);
        if self.replaces.is_some() { Ok(found.unwrap_or(false)) } else { found }
    }

    /// Children, then everything of the slot: durable before the record that names them.
    async fn make_durable(&self, children: Vec<(u64, Box<Page>)>) -> Result<(), StoreError> {
        self.to_its_end("a copy could not be made durable", |inner, file| async move {
            for (offset, page) in &children {
                inner.io.write_bytes(&file, page.as_slice(), *offset).await?;
            }
            inner.io.count(|counters| {
                counters.flushes += 1;
                counters.slot_syncs += 1;
            });
            inner.io.fsync(&file).await
        })
        .await
    }

    /// As [`Self::run`]; a failure fences the disk.
    async fn to_its_end<W: Future<Output = io::Result<()>> + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(Rc<Inner<R>>, R::File) -> W,
    ) -> Result<(), StoreError> {
        let fencing = |inner: Rc<Inner<R>>, file| {
            let work = work(Rc::clone(&inner), file);
            async move { work.await.inspect_err(|error| drop(inner.fence(what, error))) }
        };
        match self.run(fencing).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.inner.fence(what, &error)),
        }
    }

    /// Runs work on the slot to its end, whoever waits for it; the slot is kept until then.
    pub(super) async fn run<W: Future<Output = io::Result<()>> + 'static>(
        &self,
        work: impl FnOnce(Rc<Inner<R>>, R::File) -> W,
    ) -> io::Result<()> {
        let (done, going, users) = (Event::default(), self.writes.enter(), Rc::clone(&self.users));
        let failure = Rc::new(RefCell::new(None));
        let (ended, failed) = (done.clone(), Rc::clone(&failure));
        let work = work(Rc::clone(&self.inner), self.file.clone());
        self.inner.spawn(async move {
            *failed.borrow_mut() = work.await.err();
            drop((users, going));
            ended.set(Ok(()));
        });
        // Only an event: what happened is in `failure`.
        let _happened = done.wait().await;
        failure.take().map_or(Ok(()), Err)
    }

    /// The checksums of all blocks, after a look at the digest.
    fn table(&self) -> Result<CrcTable, StoreError> {
        let arrived = self.arrived.borrow();
        let crcs: Option<Vec<u32>> = arrived.crcs.iter().copied().collect();
        let crcs = crcs.ok_or(StoreError::BadRange)?;
        let whole = (self.args.len / BLOCK) as usize;
        if crcs::digest([&crcs[..whole]], &arrived.tail, self.args.len) != self.args.digest {
            return Err(StoreError::Mismatch);
        }
        let mut table = CrcTable::default();
        table.set(0, &crcs);
        Ok(table)
    }

    /// The replica that it will be.
    fn replica(&self, slot: &Hdr, table: CrcTable) -> Replica {
        let args = &self.args;
        let mut hdr = slot.freed();
        hdr.common.chunk = args.chunk.0;
        hdr.state = SlotState::Sealed;
        (hdr.epoch, hdr.promised) = (args.epoch, args.promised);
        (hdr.durable_len, hdr.committed_len, hdr.sealed_len) = (args.len, args.len, args.len);
        (hdr.last_seq, hdr.committed_seq) = (args.last_seq.0, args.last_seq.0);
        hdr.sealed_digest = args.digest;
        if !hdr.flags.has(Flags::SHARED) {
            hdr.written_upto = slot.written_upto.max(align_up(args.len));
        }
        (hdr.prev, hdr.file) = (args.prev, args.file);
        (hdr.members, hdr.my_position) = (args.members.clone(), args.my_position);
        hdr.master_term = args.term.0;
        hdr.history[0] = EpochStart { epoch: args.epoch.0, start_len: args.len, start_seq: args.last_seq.0 };
        let mut replica = Replica::loaded(hdr, empty(), DedupTable::new(&args.dedup));
        replica.crcs = table;
        replica.dedup_dirty = true;
        replica
    }
}

impl<R: Runtime> Inner<R> {
    /// Keeps a free slot for a copy.
    pub(super) async fn keep_slot(self: &Rc<Self>, args: ImportArgs) -> Result<Import<R>, StoreError> {
        self.keep_slot_for(args, None).await
    }

    /// As [`Self::keep_slot`], for a copy that may take the place of another one.
    pub(super) async fn keep_slot_for(
        self: &Rc<Self>,
        args: ImportArgs,
        replaces: Option<u64>,
    ) -> Result<Import<R>, StoreError> {
        self.check()?;
        self.shared.obey(args.term)?;
        let fits = (1..=MEMBERS_MAX).contains(&args.members.len())
            && usize::from(args.my_position) < args.members.len()
            && args.dedup.len() <= DEDUP_MAX
            && args.len <= CHUNK_CAPACITY
            && args.promised >= args.epoch
            && args.chunk != ChunkHandle::NONE;
        if !fits {
            return Err(StoreError::BadRange);
        }
        if let Some(chunk) = self.state.borrow().chunks.get(&args.chunk).filter(|_| replaces.is_none()) {
            return Err(StoreError::ChunkExists(chunk.replica.hdr.epoch));
        }
        if self.shared.disk().state != DiskState::Normal {
            return Err(StoreError::NoSpace);
        }
        loop {
            let slot = self.ready_slot().await?;
            let file = self.file(slot).await.map_err(|error| StoreError::ReadFailed(error.to_string()))?;
            self.check()?;
            let state = self.state.borrow();
            let ready = |free: &&FreeSlot| free.hdr.common.number == slot && free.is_ready();
            if let Some(free) = state.free.iter().find(ready) {
                let crcs = vec![None; args.len.div_ceil(BLOCK) as usize];
                let arrived = RefCell::new(Arrived { crcs, tail: Vec::new() });
                let (inner, users) = (Rc::clone(self), Rc::clone(&free.users));
                return Ok(Import {
                    inner,
                    args,
                    slot,
                    file,
                    users,
                    arrived,
                    replaces,
                    writes: Tally::default(),
                    finishing: Mutex::default(),
                });
            }
        }
    }

    /// Takes space for data bytes of a slot up to `len`; `ends`, each at least that, are tried in turn.
    pub(super) async fn take_space(&self, slot: u32, file: &R::File, len: u32, ends: &[u32]) -> Result<(), StoreError> {
        let from = self.state.borrow().allocated(slot);
        if align_up(len) <= from {
            return Ok(());
        }
        self.has_room(0).await?;
        for end in ends {
            match self.io.rt.preallocate(file, u64::from(from), u64::from(*end - from)).await {
                Ok(()) => {
                    self.state.borrow_mut().raise_allocated(slot, *end);
                    return Ok(());
                }
                Err(error) if is_full(&error) => {}
                Err(error) => return Err(StoreError::ReadFailed(error.to_string())),
            }
        }
        Err(StoreError::NoSpace)
    }

    /// Whether the disk is at most 98 % full once `more` bytes are taken.
    pub(super) async fn has_room(&self, more: u32) -> Result<(), StoreError> {
        let space = self.io.rt.space(&self.shared.root).await;
        let space = space.map_err(|error| StoreError::ReadFailed(error.to_string()))?;
        let left = space.free.saturating_sub(u64::from(more));
        if left < space.total / 50 { Err(StoreError::NoSpace) } else { Ok(()) }
    }

    /// Whether an equal copy is here already; an error when another one is.
    pub(super) fn has_copy(&self, args: &ImportArgs) -> Result<bool, StoreError> {
        let state = self.state.borrow();
        let Some(chunk) = state.chunks.get(&args.chunk) else {
            return Ok(false);
        };
        let hdr = &chunk.replica.hdr;
        let equal = chunk.replica.state() == ReplicaState::Sealed
            && (hdr.sealed_len, hdr.sealed_digest) == (args.len, args.digest);
        if equal { Ok(true) } else { Err(StoreError::ChunkExists(hdr.epoch)) }
    }

    /// The step that installs; `None` when an equal copy was first.
    fn install(self: &Rc<Self>, import: &Import<R>, hdr: Hdr) -> Result<Option<Event>, StoreError> {
        let args = &import.args;
        if import.is_here()? {
            return Ok(None);
        }
        if let Some(authority) = import.replaces {
            self.free_old(args, authority)?;
        }
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        if let Err(error) = state.log.room(PAGE, Class::Work) {
            self.checkpoint_soon(state);
            return Err(error);
        }
        let at = state.free.iter().position(|free| free.hdr.common.number == import.slot);
        let Some(free) = at.and_then(|at| state.free.remove(at)) else {
            return Err(StoreError::UnknownChunk);
        };
        let replica = Replica::installed(&free.hdr, &hdr, DedupTable::new(&args.dedup));
        let body = Body::Install(Box::new(hdr));
        let lsn = state.log.push(Subject { chunk: args.chunk, slot: import.slot, epoch: args.epoch }, 0, &body);
        let end = End { len: args.len, seq: args.last_seq.0, epoch: args.epoch, tail: empty() };
        let chunk = Chunk {
            replica,
            file: None,
            durable: End { len: 0, seq: 0, ..end.clone() },
            dirty_lsn: Some(free.dirty_lsn.unwrap_or(lsn)),
            allocated: free.allocated,
            users: free.users,
            created: false,
            filling: Rc::default(),
            private: 0,
            lent: Rc::default(),
            only_appends: false,
            last_append: 0,
            zeros: super::zero_ahead::Zeros::default(),
        };
        state.log.group.ends.insert(args.chunk, end);
        state.chunks.insert(args.chunk, chunk);
        state.by_slot.insert(import.slot, args.chunk);
        self.reads.borrow_mut().forget(args.chunk);
        self.accepted(state);
        self.keep_slots_ready_in(state);
        Ok(Some(state.log.group.done.clone()))
    }
}
