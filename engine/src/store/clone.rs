//! Clones: a chunk under another handle, from one that is here, by sharing extents where that is possible.
//!
//! ```text
//! lend         source: all of it in place; its header says SHARED, durably
//! begin_clone  target: its free header says SHARED, durably; then clone_range
//! finish       as any import: fsync(slot), INSTALL
//! ```
//!
//! A shared extent is not a written one: a write into it moves it, which needs space and a sync of the
//! slot. Whoever finds SHARED in a header knows, whatever crash came between; so both headers say it
//! before there is anything shared. [`Store::unshare`] takes the space before an overwrite is accepted. A
//! shared slot that is freed takes no chunk before its data was punched out.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use wire::member::ReplicaState;
use wire::{ChunkHandle, DedupEntry, Epoch, Seq};

use super::StoreError;
use super::append::is_full;
use super::header::{Flags, SlotState};
use super::import::Import;
use super::layout::{BLOCK, CHUNK_CAPACITY, PAGE, PART_MAX, align_up};
use super::shard::{Chunk, Inner, State, Store};
use super::types::{ImportArgs, Upto};
use crate::runtime::Runtime;

/// What is unshared at a time, in bytes: what one overwrite may touch.
const PIECE: u32 = PART_MAX;

const _: () = assert!(CHUNK_CAPACITY / PIECE <= u64::BITS);

/// A sealed chunk whose extents others may share while this lives. It is not re-opened, and its slot is
/// not used for another chunk, before this is dropped.
pub struct Lender<R: Runtime> {
    inner: Rc<Inner<R>>,
    chunk: ChunkHandle,
    lent: Lent,
    /// How far the source was written, if it was not shared before.
    was: Option<u32>,
    _users: Rc<()>,
    count: Rc<()>,
}

/// What a clone needs of its source; goes to the shard of the target.
#[derive(Clone, Debug)]
pub struct Lent {
    root: PathBuf,
    slot: u32,
    len: u32,
    digest: [u8; 16],
    crcs: Vec<u32>,
    tail: Vec<u8>,
    may_share: bool,
    /// The dedup table, which goes with the content.
    pub dedup: Vec<DedupEntry>,
    /// Epoch under which it was sealed.
    pub epoch: Epoch,
    /// Last entry of its log.
    pub last_seq: Seq,
}

impl<R: Runtime> fmt::Debug for Lender<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lender")
            .field("shard", &self.inner.shard)
            .field("slot", &self.lent.slot)
            .finish_non_exhaustive()
    }
}

impl<R: Runtime> Lender<R> {
    /// What the target's shard needs. Only while this lives.
    #[must_use]
    pub fn lent(&self) -> &Lent {
        &self.lent
    }

    /// The file system could not: the source is what it was.
    pub fn nothing_was_shared(self) {
        let mut state = self.inner.state.borrow_mut();
        let Some(chunk) = state.chunks.get_mut(&self.chunk) else { return };
        // One for the chunk, one for this.
        let alone = Rc::ptr_eq(&chunk.lent, &self.count) && Rc::strong_count(&self.count) == 2;
        let Some(written) = self.was.filter(|_| alone) else { return };
        chunk.replica.hdr.flags.clear(Flags::SHARED);
        chunk.replica.hdr.written_upto = written;
        state.mark_dirty(self.lent.slot);
    }
}

impl<R: Runtime> Store<R> {
    /// A copy of `source`, a sealed chunk of this shard, under the handle in `args`, which must be of
    /// this shard too (else see [`Store::lend`]): by sharing extents, or a verified copy where the file
    /// system cannot. `len` and `digest` of `args` are the source's; its dedup table and last entry are
    /// the source's whatever `args` say. Durable on return; the same again is answered the same.
    ///
    /// # Errors
    ///
    /// `Mismatch` when the source is not sealed with this content, `BadBlock` when it is damaged,
    /// `UnknownChunk`; else as [`Store::begin_import`] and [`Import::finish`].
    pub async fn clone_chunk(&self, source: ChunkHandle, mut args: ImportArgs) -> Result<(), StoreError> {
        let inner = &self.inner;
        inner.check()?;
        inner.shared.obey(args.term)?;
        if inner.has_copy(&args)? {
            return inner.flushed().await;
        }
        let lender = self.lend(source, args.len, args.digest).await?;
        (args.dedup, args.last_seq) = (lender.lent.dedup.clone(), lender.lent.last_seq);
        if let Some(import) = self.begin_clone(args.clone(), &lender.lent).await? {
            return import.finish().await;
        }
        let import = self.begin_import(args).await?;
        let (mut at, len) = (0, lender.lent.len);
        while at < len {
            let blocks = self.read(source, at, PART_MAX.min(len - at), Upto::Durable).await?;
            import.write(at / BLOCK, &blocks.crcs, blocks.buf).await?;
            at += blocks.len;
        }
        lender.nothing_was_shared();
        import.finish().await
    }

    /// Prepares a sealed chunk for clones of it: everything in place, its header says so durably.
    ///
    /// # Errors
    ///
    /// `Mismatch` when it is not sealed with this content; `BadBlock` when checksums or the block at its
    /// end are damaged; `UnknownChunk`, `Fenced`.
    pub async fn lend(&self, chunk: ChunkHandle, len: u32, digest: [u8; 16]) -> Result<Lender<R>, StoreError> {
        let inner = &self.inner;
        inner.check()?;
        let filling = Rc::clone(&inner.state.borrow().live(chunk)?.filling);
        let _one_at_a_time = filling.lock().await;
        let may_share = len > 0 && !inner.shared.cannot_share.load(Ordering::Relaxed);
        let (slot, users, count, was) = {
            let mut state = inner.state.borrow_mut();
            let chunk = state.live_mut(chunk)?;
            let hdr = &mut chunk.replica.hdr;
            if hdr.state != SlotState::Sealed || (hdr.sealed_len, hdr.sealed_digest) != (len, digest) {
                return Err(StoreError::Mismatch);
            }
            let was = (!hdr.flags.has(Flags::SHARED) && may_share).then_some(hdr.written_upto);
            if may_share {
                hdr.flags.set(Flags::SHARED);
                hdr.written_upto = 0;
                chunk.private = 0;
            }
            let found = (chunk.slot(), Rc::clone(&chunk.users), Rc::clone(&chunk.lent), was);
            state.mark_dirty(found.0);
            found
        };
        // The partial block and overwrites that are not applied go in place with it.
        inner.checkpoint_of_slot(slot).await;
        inner.check()?;
        let blocks = len.div_ceil(BLOCK);
        let mut tail = Vec::new();
        if !len.is_multiple_of(BLOCK) {
            let last = self.read(chunk, len / BLOCK * BLOCK, len % BLOCK, Upto::Durable).await?;
            tail = last.buf.as_ref().get(..(len % BLOCK) as usize).ok_or(StoreError::BadRange)?.to_vec();
        }
        inner.load_crcs(chunk, 0, blocks).await?;
        let state = inner.state.borrow();
        let replica = &state.live(chunk)?.replica;
        if !replica.tail.is_empty() || !replica.redo.is_empty() {
            return Err(StoreError::Busy);
        }
        let crcs: Option<Vec<u32>> = (0..blocks).map(|block| replica.crcs.get(block)).collect();
        let lent = Lent {
            root: inner.shared.root.clone(),
            slot,
            len,
            digest,
            crcs: crcs.ok_or_else(|| StoreError::BadBlock(replica.crcs.first_absent(blocks)))?,
            tail,
            may_share,
            dedup: replica.dedup.entries(),
            epoch: replica.hdr.epoch,
            last_seq: Seq(replica.hdr.last_seq),
        };
        Ok(Lender { inner: Rc::clone(inner), chunk, lent, was, _users: users, count })
    }

    /// Begins a copy that shares the extents of what was lent, which is on the same disk. All of it is
    /// here then: [`Import::finish`] follows, before the [`Lender`] goes. `None` where the file system
    /// cannot: then it is an import like others.
    ///
    /// # Errors
    ///
    /// `Mismatch` when `args` want another content; as [`Store::begin_import`].
    pub async fn begin_clone(&self, args: ImportArgs, lent: &Lent) -> Result<Option<Import<R>>, StoreError> {
        let inner = &self.inner;
        if (args.len, args.digest) != (lent.len, lent.digest) {
            return Err(StoreError::Mismatch);
        }
        if !lent.may_share || lent.root != inner.shared.root {
            return Ok(None);
        }
        let import = inner.keep_slot(args).await?;
        let was = inner.share_free(import.slot, 0);
        inner.checkpoint_of_slot(import.slot).await;
        inner.check()?;
        let from = inner.file(lent.slot).await.map_err(|error| StoreError::ReadFailed(error.to_string()))?;
        let len = u64::from(align_up(lent.len));
        let cloned = import.run(|inner, to| async move { inner.io.rt.clone_range(&from, &to, 0, len).await }).await;
        match cloned {
            Ok(()) => {}
            Err(error) if cannot_share(&error) => {
                inner.shared.cannot_share.store(true, Ordering::Relaxed);
                inner.unshare_free(import.slot, was);
                return Ok(None);
            }
            Err(error) if is_full(&error) => return Err(StoreError::NoSpace),
            Err(error) => return Err(StoreError::ReadFailed(error.to_string())),
        }
        inner.io.count(|counters| counters.clones += 1);
        {
            let mut arrived = import.arrived.borrow_mut();
            arrived.crcs = lent.crcs.iter().copied().map(Some).collect();
            arrived.tail.clone_from(&lent.tail);
        }
        Ok(Some(import))
    }

    /// Takes space of its own for a range of a chunk that shares extents, so that overwriting or
    /// repairing it never meets a full disk. Durable on return; cheap when nothing is shared.
    ///
    /// # Errors
    ///
    /// `NoSpace`; `Busy` while the chunk is [lent](Store::lend); `BadRange`, `UnknownChunk`, `Fenced`.
    pub async fn unshare(&self, chunk: ChunkHandle, offset: u32, len: u32) -> Result<(), StoreError> {
        let inner = &self.inner;
        inner.check()?;
        let filling = Rc::clone(&inner.state.borrow().live(chunk)?.filling);
        let _one_at_a_time = filling.lock().await;
        let (slot, end, missing) = {
            let state = inner.state.borrow();
            let chunk = state.live(chunk)?;
            let all = align_up(chunk.replica.hdr.durable_len);
            let end = offset.checked_add(len).filter(|end| align_up(*end) <= all).ok_or(StoreError::BadRange)?;
            let missing: Vec<u32> = pieces(offset, end).filter(|piece| !chunk.is_private(*piece)).collect();
            if missing.is_empty() {
                return Ok(());
            }
            if Rc::strong_count(&chunk.lent) > 1 {
                return Err(StoreError::Busy);
            }
            (chunk.slot(), all, missing)
        };
        let file = inner.file(slot).await.map_err(|error| StoreError::ReadFailed(error.to_string()))?;
        for piece in &missing {
            let (from, to) = (piece * PIECE, (piece * PIECE + PIECE).min(end));
            inner.has_room(to - from).await?;
            match inner.io.rt.unshare_range(&file, u64::from(from), u64::from(to - from)).await {
                Ok(()) => {}
                Err(error) if cannot_share(&error) => {} // then it shares nothing
                Err(error) if is_full(&error) => return Err(StoreError::NoSpace),
                Err(error) => return Err(StoreError::ReadFailed(error.to_string())),
            }
        }
        inner.io.count(|counters| {
            counters.flushes += 1;
            counters.slot_syncs += 1;
        });
        let io = inner.io.clone();
        let synced = inner.to_its_end(async move { io.fsync(&file).await }).await;
        synced.map_err(|error| inner.fence("a sync of a slot failed", &error))?;
        inner.made_private(chunk, &missing);
        Ok(())
    }
}

/// Numbers of the pieces that a range touches.
fn pieces(offset: u32, end: u32) -> std::ops::Range<u32> {
    offset / PIECE..end.div_ceil(PIECE)
}

/// The file system does not share extents between these files.
fn cannot_share(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    [libc::EOPNOTSUPP, libc::EXDEV, libc::EINVAL, libc::ENOTTY].into_iter().any(|cannot| code == Some(cannot))
}

impl<R: Runtime> Chunk<R> {
    /// Nobody shares this piece.
    fn is_private(&self, piece: u32) -> bool {
        !self.replica.hdr.flags.has(Flags::SHARED) || self.private & (1 << piece) != 0
    }

    /// Whether these blocks may be written in place: see [`Store::unshare`].
    pub(crate) fn may_overwrite(&self, blocks: &[(u32, u32)]) -> bool {
        blocks.iter().all(|(block, _)| self.is_private(block / (PIECE / BLOCK)))
    }
}

impl<R: Runtime> State<R> {
    /// The chunk, unless it is condemned.
    fn live_mut(&mut self, chunk: ChunkHandle) -> Result<&mut Chunk<R>, StoreError> {
        let live = self.chunks.get_mut(&chunk).filter(|chunk| chunk.replica.state() != ReplicaState::Condemned);
        live.ok_or(StoreError::UnknownChunk)
    }

    /// The next checkpoint writes the slot's header.
    pub(crate) fn mark_dirty(&mut self, slot: u32) {
        // As if the next record were its: replay then starts no later than it must.
        let next = self.log.last_lsn() + 1;
        if let Some(chunk) = self.by_slot.get(&slot).copied().and_then(|handle| self.chunks.get_mut(&handle)) {
            chunk.dirty_lsn.get_or_insert(next);
        } else if let Some(free) = self.free.iter_mut().find(|free| free.hdr.common.number == slot) {
            free.dirty_lsn.get_or_insert(next);
        }
    }
}

impl<R: Runtime> Inner<R> {
    /// Whether the chunk may share extents with another: see [`Store::unshare`].
    pub(crate) fn is_shared(&self, chunk: ChunkHandle) -> Result<bool, StoreError> {
        Ok(self.state.borrow().live(chunk)?.replica.hdr.flags.has(Flags::SHARED))
    }

    /// A free slot's data is about to be shared; gives how far it was written and had space.
    fn share_free(&self, slot: u32, written_upto: u32) -> (u32, u32) {
        let mut state = self.state.borrow_mut();
        state.mark_dirty(slot);
        let Some(free) = state.free.iter_mut().find(|free| free.hdr.common.number == slot) else { return (0, 0) };
        free.hdr.flags.set(Flags::SHARED);
        let written = std::mem::replace(&mut free.hdr.written_upto, written_upto);
        (written, std::mem::replace(&mut free.allocated, 0))
    }

    /// It shares nothing.
    pub(super) fn unshare_free(&self, slot: u32, (written, allocated): (u32, u32)) {
        let mut state = self.state.borrow_mut();
        state.mark_dirty(slot);
        if let Some(free) = state.free.iter_mut().find(|free| free.hdr.common.number == slot) {
            free.hdr.flags.clear(Flags::SHARED);
            (free.hdr.written_upto, free.allocated) = (written, allocated);
        }
    }

    /// These pieces have extents of their own, durably.
    fn made_private(&self, chunk: ChunkHandle, pieces: &[u32]) {
        let mut state = self.state.borrow_mut();
        let Ok(held) = state.live_mut(chunk) else { return };
        pieces.iter().for_each(|piece| held.private |= 1 << piece);
        let all = align_up(held.replica.hdr.durable_len);
        if (0..all.div_ceil(PIECE)).all(|piece| held.is_private(piece)) {
            held.replica.hdr.flags.clear(Flags::SHARED);
            held.replica.hdr.written_upto = all;
            held.allocated = held.allocated.max(all);
            let slot = held.slot();
            state.mark_dirty(slot);
        }
    }
}

const _: () = assert!(PIECE.is_multiple_of(BLOCK) && BLOCK as usize == PAGE);
