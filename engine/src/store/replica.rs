//! What a replica is, and how each record changes it: pure, and the same code live and in recovery.
//!
//! Live, a record is applied when it is accepted; in recovery, when it is read back. So the state
//! after a crash is the state of a prefix of what was accepted, by construction. Parts of an
//! incomplete operation and FILL records without their SEAL are *held back* (rule R16): they change
//! nothing that counts until their last part, or their SEAL, is applied.

mod cut;
mod install;
mod overwrite;
mod redo;
mod reopen;

use std::collections::VecDeque;
use std::rc::Rc;

use wire::member::ReplicaState;
use wire::{ChunkHandle, DedupEntry, Epoch, OpId, StreamId, Term};

use super::StoreError;
use super::canary::{sometimes, weakened};
use super::crcs::{self, CrcTable};
use super::dedup::DedupTable;
use super::header::{EpochStart, Flags, Hdr, SlotState};
use super::layout::{BLOCK, CHUNK_CAPACITY, DEDUP_MAX, PAGE, align_down};
use super::page;
use super::record::{Append, Body, Create, FLAG_FILL, Op, Seal};
pub(crate) use cut::cut_blocks;
pub(crate) use install::installable;
use overwrite::HeldImages;
pub(crate) use overwrite::{Newest, SeenBlocks, image_blocks, images_len};
pub(crate) use redo::{BlockBytes, Budget, Redo, RedoImage};

/// A partial block's bytes, shared by whoever still reads an older one.
pub(crate) type Tail = Rc<[u8]>;

/// Blocks that a record wrote in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    /// The record.
    pub(crate) lsn: u64,
    /// First record of its operation: where the log is cut when its data does not verify.
    pub(crate) op_lsn: u64,
    pub(crate) first_block: u32,
    pub(crate) blocks: u32,
}

/// What was accepted and does not count yet.
#[derive(Clone, Debug)]
struct Held {
    /// The first held record: a checkpoint of this slot stops before it.
    first_lsn: u64,
    /// FILL records, not parts of an operation.
    fill: bool,
    /// The operation, as its newest part says.
    op: Op,
    /// First block of `crcs`.
    base: u32,
    crcs: Vec<u32>,
    written: Vec<Written>,
    images: HeldImages,
    /// Memory for the images that are still to come: an operation that has begun can end.
    reserved: redo::Counted,
    /// Where the next part begins.
    next: u32,
    tail: Tail,
    end: u32,
}

/// A replica. `hdr` holds the state after the last complete operation.
#[derive(Clone, Debug)]
pub(crate) struct Replica {
    pub(crate) hdr: Hdr,
    /// Bytes of the partial block at the end; empty once it is in place.
    pub(crate) tail: Tail,
    /// The tail differs from the TAIL page.
    pub(crate) tail_dirty: bool,
    pub(crate) crcs: CrcTable,
    pub(crate) dedup: DedupTable,
    /// The table differs from the DEDUP pages.
    pub(crate) dedup_dirty: bool,
    /// Images of blocks that are not in place yet.
    pub(crate) redo: Redo,
    held: Option<Held>,
    /// Ends of complete operations that are not known committed: (last entry, length).
    ends: VecDeque<(u64, u32)>,
    /// Highest entry that somebody said is committed.
    claimed: u64,
}

impl Replica {
    /// The replica that a header and its children describe.
    pub(crate) fn loaded(hdr: Hdr, tail: Tail, dedup: DedupTable) -> Self {
        let claimed = hdr.committed_seq;
        Self {
            hdr,
            tail,
            tail_dirty: false,
            crcs: CrcTable::default(),
            dedup,
            dedup_dirty: false,
            redo: Redo::default(),
            held: None,
            ends: VecDeque::new(),
            claimed,
        }
    }

    /// A new chunk in a free slot.
    pub(crate) fn created(slot: &Hdr, chunk: ChunkHandle, epoch: Epoch, create: &Create<'_>) -> Self {
        let mut hdr = slot.freed();
        hdr.common.chunk = chunk.0;
        hdr.flags = Flags(0); // what was shared was given back before
        hdr.state = SlotState::Open;
        hdr.epoch = epoch;
        hdr.promised = epoch;
        hdr.prev = create.prev;
        hdr.file = create.file;
        hdr.my_position = create.my_position;
        hdr.master_term = create.term.0;
        hdr.members = create.members.to_vec();
        hdr.history[0] = EpochStart { epoch: epoch.0, start_len: 0, start_seq: 0 };
        let mut replica = Self::loaded(hdr, empty(), DedupTable::new(&create.dedup));
        replica.dedup_dirty = true;
        replica
    }

    /// Bytes accepted, those of an incomplete operation included.
    pub(crate) fn len(&self) -> u32 {
        self.held_op().map_or(self.hdr.durable_len, |held| held.end)
    }

    /// Last entry accepted.
    pub(crate) fn last_seq(&self) -> u64 {
        self.held_op().map_or(self.hdr.last_seq, |held| held.op.seq)
    }

    /// The partial block that the next append continues.
    pub(crate) fn open_tail(&self) -> &Tail {
        self.held_op().map_or(&self.tail, |held| &held.tail)
    }

    /// Bytes of the content that SEAL would set: filled, or as it is.
    pub(crate) fn fill_end(&self) -> u32 {
        self.held_fill().map_or(self.hdr.durable_len, |held| held.end)
    }

    /// FILL records are held back.
    pub(crate) fn is_filling(&self) -> bool {
        self.held_fill().is_some()
    }

    /// How many.
    pub(crate) fn fill_count(&self) -> u64 {
        self.held_fill().map_or(0, |held| held.written.len() as u64)
    }

    /// The first record that is held back.
    pub(crate) fn held_lsn(&self) -> Option<u64> {
        self.held.as_ref().map(|held| held.first_lsn)
    }

    /// A promise above the epoch: nothing of this epoch is accepted.
    pub(crate) fn is_fenced(&self) -> bool {
        self.hdr.promised > self.hdr.epoch
    }

    /// State, as others see it.
    pub(crate) fn state(&self) -> ReplicaState {
        match self.hdr.state {
            SlotState::Free | SlotState::Condemned => ReplicaState::Condemned,
            SlotState::Open => ReplicaState::Open,
            SlotState::Rwr => ReplicaState::Rwr,
            SlotState::Sealed => ReplicaState::Sealed,
        }
    }

    fn held_op(&self) -> Option<&Held> {
        self.held.as_ref().filter(|held| !held.fill)
    }

    fn held_fill(&self) -> Option<&Held> {
        self.held.as_ref().filter(|held| held.fill)
    }

    /// First block that an append or a fill may set; its checksum page must be in memory.
    pub(crate) fn open_block(&self) -> u32 {
        self.hdr.durable_len / BLOCK
    }

    /// Applies a record, or refuses it and changes nothing. `written` hears of blocks as they begin to count.
    pub(crate) fn apply(
        &mut self,
        lsn: u64,
        epoch: Epoch,
        flags: u8,
        body: &Body<'_>,
        written: &mut impl FnMut(Written),
    ) -> Result<(), StoreError> {
        match body {
            Body::Append(append) if flags & FLAG_FILL != 0 => self.fill(lsn, epoch, append),
            Body::Append(append) => self.append(lsn, epoch, append, written),
            Body::Overwrite { op, offset, length, images } => {
                self.overwrite(lsn, epoch, op, (*offset, *length), images)
            }
            Body::Repair(images) => self.repair(lsn, images),
            Body::Forget { op, streams } => self.forget(epoch, op, streams),
            Body::Promise { promised, term } => self.promise(*promised, *term),
            Body::Seal(seal) => self.seal(epoch, seal, written),
            Body::Sealed { term, len, digest } => self.sealed(*term, epoch, *len, *digest),
            Body::Condemn { term, authority, now, .. } => self.condemn(*term, *authority, *now),
            Body::Restore { term, authority } => self.restore(*term, *authority),
            Body::Reopen(reopen) => self.reopen(epoch, reopen),
            Body::Final { op, len, digest } => self.finish(epoch, op, *len, *digest),
            Body::Free { .. } | Body::Create(_) | Body::Install(_) | Body::Mark => Err(StoreError::BadRange),
        }
    }

    /// Whether an entry of this epoch may follow; FINAL and FORGET too.
    fn check_entry(&self, epoch: Epoch, seq: u64) -> Result<(), StoreError> {
        match self.hdr.state {
            SlotState::Open => {}
            SlotState::Rwr => return Err(StoreError::Rwr),
            SlotState::Sealed => return Err(StoreError::Sealed(self.hdr.sealed_len)),
            SlotState::Free | SlotState::Condemned => return Err(StoreError::UnknownChunk),
        }
        if self.hdr.epoch != epoch || self.is_fenced() {
            return Err(StoreError::StaleEpoch(self.hdr.promised));
        }
        if self.hdr.flags.has(Flags::CLOSED) || seq != self.last_seq() + 1 {
            return Err(StoreError::NotNext);
        }
        Ok(())
    }

    /// Whether this append may follow.
    pub(crate) fn check_append(&self, epoch: Epoch, op: &Op, offset: u32, length: u32) -> Result<(), StoreError> {
        self.check_entry(epoch, op.seq)?;
        if offset != self.len() || self.hdr.flags.has(Flags::FIXED) {
            return Err(StoreError::BadRange);
        }
        self.check_part(op, offset, length)
    }

    /// Whether this part may follow in its operation, or begin one.
    fn check_part(&self, op: &Op, offset: u32, length: u32) -> Result<(), StoreError> {
        let op_end = u64::from(op.off) + u64::from(op.len);
        let end = u64::from(offset) + u64::from(length);
        if length == 0 || op_end > u64::from(CHUNK_CAPACITY) || end > op_end {
            return Err(StoreError::BadRange);
        }
        if (op.part + 1 == op.parts) != (end == op_end) {
            return Err(StoreError::BadRange);
        }
        match self.held_op() {
            Some(held) => {
                let same = (op.id, op.parts, op.off, op.len) == (held.op.id, held.op.parts, held.op.off, held.op.len);
                if !same || op.part != held.op.part + 1 {
                    return Err(StoreError::NotNext);
                }
                if offset != held.next {
                    return Err(StoreError::BadRange);
                }
            }
            None if op.part != 0 => return Err(StoreError::NotNext),
            None if op.off != offset => return Err(StoreError::BadRange),
            None if self.dedup.len_after(op.id, op.first_unacked) > DEDUP_MAX => return Err(StoreError::Busy),
            None => {}
        }
        Ok(())
    }

    /// Holds back a part of an operation that is not complete.
    fn hold(&mut self, lsn: u64, op: &Op) -> &mut Held {
        let (base, end) = (self.open_block(), self.hdr.durable_len);
        let (tail, budget) = (&self.tail, self.redo.budget());
        let held = self.held.get_or_insert_with(|| Held {
            first_lsn: lsn,
            fill: false,
            op: *op,
            base,
            crcs: Vec::new(),
            written: Vec::new(),
            images: HeldImages::default(),
            reserved: budget.take(overwrite::images_len(op, end)),
            next: op.off,
            tail: Rc::clone(tail),
            end,
        });
        held.op = *op;
        held
    }

    fn append(
        &mut self,
        lsn: u64,
        epoch: Epoch,
        append: &Append<'_>,
        written: &mut impl FnMut(Written),
    ) -> Result<(), StoreError> {
        let op = append.op;
        self.check_append(epoch, &op, append.offset, append.length)?;
        self.claimed = self.claimed.max(op.committed_seq);
        let op_lsn = self.held_lsn().unwrap_or(lsn);
        let blocks = Written { lsn, op_lsn, first_block: append.first_block, blocks: count(&append.crcs) };
        let (tail, end) = (shared(append.tail), append.offset + append.length);
        if op.part + 1 < op.parts {
            let held = self.hold(lsn, &op);
            held.crcs.extend_from_slice(&append.crcs);
            held.written.push(blocks);
            (held.tail, held.end, held.next) = (tail, end, end);
            return Ok(());
        }
        if let Some(held) = self.held.take() {
            held.written.into_iter().for_each(&mut *written);
            self.crcs.set(held.base, &held.crcs);
            if held.images.overwrites {
                self.hdr.last_overwrite_seq = op.seq;
            }
            self.put_images(lsn, held.images.blocks);
        }
        written(blocks);
        self.crcs.set(append.first_block, &append.crcs);
        self.set_content(tail, end, op.seq);
        self.complete(&op);
        Ok(())
    }

    fn set_content(&mut self, tail: Tail, len: u32, last_seq: u64) {
        self.tail = tail;
        self.tail_dirty = true;
        self.hdr.durable_len = len;
        self.hdr.last_seq = last_seq;
        self.ends.push_back((last_seq, len));
    }

    fn complete(&mut self, op: &Op) {
        if op.id.stream == StreamId::default() {
            return;
        }
        let entry = DedupEntry { id: op.id, chunk: self.hdr.chunk(), offset: op.off, len: op.len };
        self.dedup.complete(entry, op.first_unacked);
        self.dedup_dirty = true;
    }

    /// Whether this fill may follow.
    pub(crate) fn check_fill(&self, epoch: Epoch, offset: u32, length: u32) -> Result<(), StoreError> {
        self.check_promised(epoch)?;
        if self.hdr.flags.has(Flags::FIXED) {
            return Err(StoreError::BadRange);
        }
        let base = align_down(self.hdr.durable_len);
        let top = self.held_fill().map_or(base, |held| held.end);
        let fits = length > 0 && u64::from(offset) + u64::from(length) <= u64::from(CHUNK_CAPACITY);
        if !offset.is_multiple_of(BLOCK) || offset < base || offset > top || !fits {
            return Err(StoreError::BadRange);
        }
        Ok(())
    }

    /// Whether somebody who made members promise `epoch` may set the content.
    fn check_promised(&self, epoch: Epoch) -> Result<(), StoreError> {
        match self.hdr.state {
            SlotState::Open | SlotState::Rwr => {}
            SlotState::Sealed => return Err(StoreError::Sealed(self.hdr.sealed_len)),
            SlotState::Free | SlotState::Condemned => return Err(StoreError::UnknownChunk),
        }
        if self.hdr.promised != epoch || !self.is_fenced() {
            return Err(StoreError::StaleEpoch(self.hdr.promised));
        }
        Ok(())
    }

    fn fill(&mut self, lsn: u64, epoch: Epoch, append: &Append<'_>) -> Result<(), StoreError> {
        self.check_fill(epoch, append.offset, append.length)?;
        let base = self.open_block();
        if self.held_fill().is_none() {
            self.held = Some(Held {
                first_lsn: lsn,
                fill: true,
                op: append.op,
                base,
                crcs: Vec::new(),
                written: Vec::new(),
                images: HeldImages::default(),
                reserved: self.redo.budget().take(0),
                next: append.offset,
                tail: empty(),
                end: append.offset,
            });
        }
        let Some(held) = self.held.as_mut() else {
            return Err(StoreError::BadRange);
        };
        // Filling again from an earlier place replaces what was filled from there on.
        held.crcs.truncate((append.first_block - held.base) as usize);
        held.crcs.extend_from_slice(&append.crcs);
        let blocks = count(&append.crcs);
        held.written.push(Written { lsn, op_lsn: lsn, first_block: append.first_block, blocks });
        (held.tail, held.end) = (shared(append.tail), append.offset + append.length);
        Ok(())
    }

    fn forget(&mut self, epoch: Epoch, op: &Op, streams: &[StreamId]) -> Result<(), StoreError> {
        self.check_whole(epoch, op.seq)?;
        self.claimed = self.claimed.max(op.committed_seq);
        self.dedup.forget(streams);
        self.dedup_dirty = true;
        self.hdr.last_seq = op.seq;
        self.ends.push_back((op.seq, self.hdr.durable_len));
        Ok(())
    }

    /// As [`Self::check_entry`], and no operation is incomplete.
    pub(crate) fn check_whole(&self, epoch: Epoch, seq: u64) -> Result<(), StoreError> {
        self.check_entry(epoch, seq)?;
        if self.held.is_some() { Err(StoreError::NotNext) } else { Ok(()) }
    }

    fn finish(&mut self, epoch: Epoch, op: &Op, len: u32, digest: [u8; 16]) -> Result<(), StoreError> {
        self.check_whole(epoch, op.seq)?;
        if len != self.hdr.durable_len {
            return Err(StoreError::Mismatch);
        }
        self.claimed = self.claimed.max(op.committed_seq);
        self.hdr.flags.set(Flags::CLOSED);
        self.hdr.last_seq = op.seq;
        (self.hdr.sealed_len, self.hdr.sealed_digest) = (len, digest);
        self.ends.push_back((op.seq, len));
        Ok(())
    }

    /// Whether `promised` may be promised.
    pub(crate) fn check_promise(&self, promised: Epoch) -> Result<(), StoreError> {
        match self.hdr.state {
            SlotState::Open | SlotState::Rwr => {}
            SlotState::Sealed => return Err(StoreError::Sealed(self.hdr.sealed_len)),
            SlotState::Free | SlotState::Condemned => return Err(StoreError::UnknownChunk),
        }
        if promised < self.hdr.promised { Err(StoreError::StaleEpoch(self.hdr.promised)) } else { Ok(()) }
    }

    fn promise(&mut self, promised: Epoch, term: Term) -> Result<(), StoreError> {
        self.check_promise(promised)?;
        self.hdr.promised = promised;
        self.obey(term);
        if self.held_fill().is_some() {
            sometimes!("abandoned FILL dropped by PROMISE");
        }
        self.held = None;
        Ok(())
    }

    /// Whether SEAL may set a content of `len` bytes.
    pub(crate) fn check_seal(&self, epoch: Epoch, len: u32) -> Result<(), StoreError> {
        self.check_promised(epoch)?;
        if len < self.hdr.durable_len {
            return Err(StoreError::Longer);
        }
        if len != self.fill_end() { Err(StoreError::Mismatch) } else { Ok(()) }
    }

    fn seal(&mut self, epoch: Epoch, seal: &Seal<'_>, written: &mut impl FnMut(Written)) -> Result<(), StoreError> {
        self.check_seal(epoch, seal.len)?;
        if let Some(held) = self.held.take() {
            held.written.into_iter().for_each(&mut *written);
            self.crcs.set(held.base, &held.crcs);
            self.set_content(held.tail, held.end, seal.last_seq);
        }
        self.dedup = DedupTable::new(&seal.dedup);
        self.dedup_dirty = true;
        self.hdr.last_seq = seal.last_seq;
        self.hdr.flags.set(Flags::FILLED);
        self.hdr.flags.clear(Flags::SUSPECT);
        self.hdr.suspect_seq = 0;
        (self.hdr.sealed_len, self.hdr.sealed_digest) = (seal.len, seal.digest);
        self.ends.clear();
        self.obey(seal.term);
        if weakened!(TailInPlaceAtSeal) && !self.tail.is_empty() {
            let padded = crcs_of_padded(&self.tail);
            self.crcs.set(seal.len / BLOCK, &[padded]);
        }
        Ok(())
    }

    /// Whether the master's final word fits what is here.
    pub(crate) fn check_sealed(&self, len: u32, digest: [u8; 16]) -> Result<(), StoreError> {
        match self.hdr.state {
            SlotState::Open | SlotState::Rwr => {}
            SlotState::Sealed => return Err(StoreError::Sealed(self.hdr.sealed_len)),
            SlotState::Free | SlotState::Condemned => return Err(StoreError::UnknownChunk),
        }
        let set = self.hdr.flags.has(Flags::FILLED | Flags::CLOSED);
        let equal = (self.hdr.sealed_len, self.hdr.durable_len, self.hdr.sealed_digest) == (len, len, digest);
        if set && equal { Ok(()) } else { Err(StoreError::Mismatch) }
    }

    fn sealed(&mut self, term: Term, epoch: Epoch, len: u32, digest: [u8; 16]) -> Result<(), StoreError> {
        self.check_sealed(len, digest)?;
        self.held = None;
        self.obey(term);
        if epoch > self.hdr.epoch {
            self.begin_epoch(epoch, self.hdr.last_seq);
        }
        self.hdr.promised = self.hdr.promised.max(epoch);
        self.hdr.state = SlotState::Sealed;
        self.hdr.flags.clear(Flags::FILLED | Flags::CLOSED | Flags::SUSPECT | Flags::FIXED);
        (self.hdr.committed_len, self.hdr.committed_seq) = (len, self.hdr.last_seq);
        self.ends.clear();
        if !self.tail.is_empty() {
            // The partial block goes in place with the next checkpoint, and is a block like others then.
            let padded = crcs_of_padded(&self.tail);
            self.crcs.set(len / BLOCK, &[padded]);
        }
        Ok(())
    }

    fn condemn(&mut self, term: Term, authority: u64, now: u64) -> Result<(), StoreError> {
        if matches!(self.hdr.state, SlotState::Free | SlotState::Condemned) {
            return Err(StoreError::UnknownChunk);
        }
        self.held = None;
        self.hdr.prior_state = self.hdr.state;
        self.hdr.state = SlotState::Condemned;
        self.hdr.authority = authority;
        self.hdr.condemned_at = now;
        self.obey(term);
        Ok(())
    }

    /// Whether the slot may be given back.
    pub(crate) fn check_free(&self, authority: u64) -> Result<(), StoreError> {
        let may = self.hdr.state == SlotState::Condemned && self.hdr.authority == authority;
        if may { Ok(()) } else { Err(StoreError::Mismatch) }
    }

    fn obey(&mut self, term: Term) {
        self.hdr.master_term = self.hdr.master_term.max(term.0);
    }

    /// Somebody says that everything up to `seq` is committed.
    pub(crate) fn claim_committed(&mut self, seq: u64) {
        self.claimed = self.claimed.max(seq);
    }

    /// Moves the committed end to the last operation that is claimed committed and durable here.
    pub(crate) fn advance_committed(&mut self, durable_seq: u64) {
        let limit = self.claimed.min(durable_seq);
        while let Some((seq, len)) = self.ends.front().copied().filter(|(seq, _)| *seq <= limit) {
            (self.hdr.committed_seq, self.hdr.committed_len) = (seq, len);
            self.ends.pop_front();
        }
    }

    /// The process is gone: incomplete work is dropped, an open replica never acts in its epoch again.
    pub(crate) fn restart(&mut self) {
        if let Some(held) = self.held.take()
            && if held.fill { weakened!(FillCounts) } else { weakened!(PartsCount) }
        {
            self.crcs.set(held.base, &held.crcs);
            let last_seq = if held.fill { self.hdr.last_seq } else { held.op.seq };
            self.set_content(held.tail, held.end, last_seq);
        }
        self.advance_committed(self.hdr.last_seq);
        if self.hdr.state == SlotState::Open {
            self.hdr.state = SlotState::Rwr;
        }
        if self.hdr.prior_state == SlotState::Open {
            self.hdr.prior_state = SlotState::Rwr;
        }
    }

    /// Recovery has found every block of the content in its place, where the file system had been synced
    /// before. That does not hold for a block with an image: the append below it may never have reached
    /// the disk, its extent may be unwritten (rule R2), until the image is in place and synced.
    pub(crate) fn all_is_written(&mut self) {
        if !self.hdr.flags.has(Flags::SHARED) {
            self.hdr.written_upto = self.hdr.written_upto.max(align_down(self.hdr.durable_len));
        }
    }

    /// Entries up to `seq` existed, and their data could not be verified.
    pub(crate) fn suspect(&mut self, seq: u64) {
        if seq > self.hdr.last_seq {
            self.hdr.flags.set(Flags::SUSPECT);
            self.hdr.suspect_seq = self.hdr.suspect_seq.max(seq);
        }
    }

    /// Digest of the content, or of what a SEAL would make of it; `None` when checksums are not in
    /// memory, or the partial block is not and `in_place`, its bytes as they were read, is not given.
    pub(crate) fn digest_of_all(&self, in_place: Option<&[u8]>) -> Option<[u8; 16]> {
        if self.hdr.content_is_final() {
            return Some(self.hdr.sealed_digest);
        }
        let Some(held) = self.held_fill() else {
            let tail = self.partial_block().or(in_place)?;
            return self.digest_below(self.hdr.durable_len, tail);
        };
        let mut runs = self.crcs.runs(held.base)?;
        runs.push(&held.crcs);
        Some(crcs::digest(runs, &held.tail, held.end))
    }

    /// The bytes behind the last full block of the content; `None` when they are in place and not in memory.
    pub(crate) fn partial_block(&self) -> Option<&[u8]> {
        let rest = (self.hdr.durable_len % BLOCK) as usize;
        if rest == 0 || !self.tail.is_empty() {
            return Some(&self.tail);
        }
        let image = self.redo.newest(self.hdr.durable_len / BLOCK)?;
        Rc::as_ref(&image.block).as_ref().get(..rest)
    }

    /// Digest of the first `len` bytes, whose partial block holds `tail`.
    pub(crate) fn digest_below(&self, len: u32, tail: &[u8]) -> Option<[u8; 16]> {
        Some(crcs::digest(self.crcs.runs(len / BLOCK)?, tail, len))
    }
}

/// Checksum of a partial block as it is in place.
pub(crate) fn crcs_of_padded(tail: &[u8]) -> u32 {
    const ZEROS: page::Page = [0; PAGE];
    crc32c::crc32c_append(crc32c::crc32c(tail), &ZEROS[tail.len()..])
}

/// A tail of these bytes.
pub(crate) fn shared(bytes: &[u8]) -> Tail {
    if bytes.is_empty() { empty() } else { Rc::from(bytes) }
}

thread_local! {
    /// Most appends leave no partial block: they share this one.
    static EMPTY: Tail = Rc::from([]);
}

/// No partial block.
pub(crate) fn empty() -> Tail {
    EMPTY.with(Rc::clone)
}

fn count(crcs: &[u32]) -> u32 {
    u32::try_from(crcs.len()).unwrap_or(u32::MAX)
}

/// The op header of a record that belongs to no stream.
pub(crate) fn no_stream(seq: u64, committed_seq: u64) -> Op {
    Op { id: OpId::default(), first_unacked: 0, seq, committed_seq, part: 0, parts: 1, off: 0, len: 0 }
}

#[cfg(test)]
#[path = "replica_tests.rs"]
mod tests;
