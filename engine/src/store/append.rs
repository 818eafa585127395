//! Appends: full blocks go in place straight from the payload, the rest into the record.

use std::borrow::Cow;
use std::future::Future;
use std::io;
use std::rc::Rc;

use wire::{ChunkHandle, Epoch, Seq, StreamId};

use super::StoreError;
use super::canary::weakened;
use super::header::Flags;
use super::layout::{BLOCK, PART_MAX, align_up};
use super::log::Class;
use super::record::{Append, Body, FORGET_MAX, Op};
use super::replica::{Tail, cut_blocks, no_stream};
use super::shard::{Inner, State, Store};
use super::types::Entry;
use crate::runtime::Runtime;

impl<R: Runtime> Store<R> {
    /// Accepts one entry now (state, view and dedup change before this returns; order of calls is the
    /// order of the log) and returns a future that resolves when it and all before it are durable
    /// here. Dropping the future does not undo anything. `payload` holds at least `length` bytes from
    /// its start, rounded up to blocks; what it holds behind `length` is not looked at.
    ///
    /// # Errors
    ///
    /// Nothing is changed: `UnknownChunk`, `Rwr`, `Sealed`, `StaleEpoch`, `NotNext`, `BadRange`; `NoSpace`
    /// when the range was not [reserved](Store::reserve); `Busy` when the journal or the dedup table is full.
    /// The future: `Fenced`, the outcome is unknown.
    pub fn append(
        &self,
        entry: &Entry,
        payload: R::Buf,
    ) -> Result<impl Future<Output = Result<(), StoreError>> + use<R>, StoreError> {
        let inner = &self.inner;
        inner.check()?;
        let op = op_of(entry);
        if entry.length > PART_MAX || entry.part >= entry.parts {
            return Err(StoreError::BadRange);
        }
        let (tail, file) = {
            let state = inner.state.borrow();
            let chunk = state.live(entry.chunk)?;
            chunk.replica.check_append(entry.epoch, &op, entry.offset, entry.length)?;
            if !chunk.created {
                return Err(StoreError::Busy);
            }
            if chunk.allocated < align_up(entry.offset + entry.length) {
                return Err(StoreError::NoSpace);
            }
            let (first, end) = (entry.offset / BLOCK, (entry.offset + entry.length) / BLOCK);
            let image = chunk.replica.redo.first_from(first);
            assert!(image.is_none_or(|image| image >= end), "no block is written by two at a time (rule R19)");
            (Rc::clone(chunk.replica.open_tail()), chunk.file.clone())
        };
        let bytes = content(&payload, entry.length, &entry.crcs)?;
        let blocks = cut_blocks(&tail, entry.offset, bytes, &entry.crcs);
        let count = blocks.crcs.len();
        let in_place = file.clone().filter(|_| weakened!(TailInPlace) && !blocks.tail.is_empty());
        let file = if count > 0 { Some(file.ok_or(StoreError::UnknownChunk)?) } else { None };
        // An operation that has begun must be able to end: its parts hold back a checkpoint until then.
        let class = if entry.part > 0 { Class::Control } else { Class::Work };
        let body = Body::Append(Append {
            op,
            offset: entry.offset,
            length: entry.length,
            first_block: blocks.first,
            crcs: Cow::Borrowed(&blocks.crcs),
            tail: &blocks.tail,
        });
        let done = inner.accept(entry.chunk, entry.epoch, 0, &body, class)?;
        if let Some(file) = in_place {
            let block = blocks.first + u32::try_from(count).unwrap_or(0);
            inner.put_at_once(entry.chunk, file, block, super::page::padded(&blocks.tail).to_vec());
        }
        if let Some(file) = file {
            inner.put_blocks(entry.chunk, file, blocks.first, count, tail, payload.clone());
        }
        Ok(done.wait())
    }

    /// FORGET: streams that are over leave the dedup table. An entry of the log like an append: accepted
    /// now, and the future resolves when it and all before it are durable here. `streams`: 1 to 256.
    ///
    /// # Errors
    ///
    /// As [`Store::append`], and `NotNext` within an operation of several parts.
    pub fn forget(
        &self,
        chunk: ChunkHandle,
        epoch: Epoch,
        seq: Seq,
        committed_seq: Seq,
        streams: &[StreamId],
    ) -> Result<impl Future<Output = Result<(), StoreError>> + use<R>, StoreError> {
        let inner = &self.inner;
        inner.check()?;
        if !(1..=FORGET_MAX).contains(&streams.len()) {
            return Err(StoreError::BadRange);
        }
        {
            let state = inner.state.borrow();
            let chunk = state.live(chunk)?;
            chunk.replica.check_whole(epoch, seq.0)?;
            if !chunk.created {
                return Err(StoreError::Busy);
            }
        }
        let body = Body::Forget { op: no_stream(seq.0, committed_seq.0), streams: streams.to_vec() };
        Ok(inner.accept(chunk, epoch, 0, &body, Class::Work)?.wait())
    }

    /// Takes space for bytes up to `len` of the chunk (rounded up in the format's steps), so that
    /// appends below it never meet a full disk. Cheap when it is there already.
    ///
    /// # Errors
    ///
    /// `NoSpace`, `UnknownChunk`, `BadRange` for more than a chunk.
    pub async fn reserve(&self, chunk: ChunkHandle, len: u32) -> Result<(), StoreError> {
        self.inner.check()?;
        self.inner.reserve(chunk, len).await
    }

    /// Accepts FINAL: `len` and `digest` must be this replica's own. Nothing of this epoch is accepted
    /// after it. Durable on return; accepted when first polled, so poll it before the next call. Of a
    /// re-opened chunk it is accepted once the block at its end was read: wait for it.
    ///
    /// # Errors
    ///
    /// `Mismatch` when the content differs; as [`Store::append`].
    pub async fn finish(
        &self,
        chunk: ChunkHandle,
        epoch: Epoch,
        seq: Seq,
        len: u32,
        digest: [u8; 16],
    ) -> Result<(), StoreError> {
        self.inner.check()?;
        self.inner.state.borrow().live(chunk)?.replica.check_whole(epoch, seq.0)?;
        // Nothing of this is on the disk only, unless the chunk was sealed before: no wait, then.
        self.inner.load_content_crcs(chunk).await?;
        let partial = self.partial_if_in_place(chunk).await?;
        {
            let state = self.inner.state.borrow();
            let replica = &state.live(chunk)?.replica;
            replica.check_whole(epoch, seq.0)?;
            if replica.digest_of_all(partial.as_deref()) != Some(digest) {
                return Err(StoreError::Mismatch);
            }
        }
        let body = Body::Final { op: no_stream(seq.0, 0), len, digest };
        let done = self.inner.accept(chunk, epoch, 0, &body, Class::Control)?;
        done.wait().await
    }
}

/// What an entry says about its operation.
pub(crate) fn op_of(entry: &Entry) -> Op {
    Op {
        id: entry.id,
        first_unacked: entry.first_unacked,
        seq: entry.seq.0,
        committed_seq: entry.committed_seq.0,
        part: entry.part,
        parts: entry.parts,
        off: entry.op_off,
        len: entry.op_len,
    }
}

/// The content of a payload, checked against what is said about it.
pub(crate) fn content<'a>(payload: &'a impl AsRef<[u8]>, length: u32, crcs: &[u32]) -> Result<&'a [u8], StoreError> {
    let blocks = length.div_ceil(BLOCK) as usize;
    let bytes = payload.as_ref();
    if bytes.len() < align_up(length) as usize || crcs.len() != blocks {
        return Err(StoreError::BadRange);
    }
    bytes.get(..length as usize).ok_or(StoreError::BadRange)
}

/// Steps in which space is taken, in bytes: a small file stays small, a large one is contiguous.
fn step(len: u32) -> u32 {
    match len {
        0..=0x1_0000 => 0x1_0000,
        0x1_0001..=0x10_0000 => 0x10_0000,
        _ => len.next_multiple_of(8 << 20),
    }
}

impl<R: Runtime> Inner<R> {
    /// Writes the blocks of the newest record in place.
    pub(crate) fn put_blocks(
        self: &Rc<Self>,
        chunk: ChunkHandle,
        file: R::File,
        first: u32,
        count: usize,
        tail: Tail,
        payload: R::Buf,
    ) {
        let mut state = self.state.borrow_mut();
        let Some(held) = state.chunks.get(&chunk) else { return };
        let len = count * BLOCK as usize;
        let end = first * BLOCK + u32::try_from(len).unwrap_or(u32::MAX);
        let (slot, no_zeros) = (held.slot(), held.zeros.gone_from(&(first * BLOCK..end)));
        self.reads.borrow_mut().changed(chunk, first..end / BLOCK);
        let written = state.log.group.slots.entry(slot).or_insert_with(|| (file.clone(), 0));
        written.1 = written.1.max(end);
        let at = u64::from(first) * u64::from(BLOCK);
        let inner = Rc::clone(self);
        self.write_in_place(&state.log.group, async move {
            no_zeros.await;
            if tail.is_empty() {
                return inner.io.write(&file, inner.io.rt.slice(&payload, 0..len), at).await;
            }
            inner.write_reblocked(&file, &tail, &payload, len, at).await
        });
    }

    /// What rules R3 and R4 forbid: only ever called by a planted bug.
    pub(crate) fn put_at_once(self: &Rc<Self>, chunk: ChunkHandle, file: R::File, block: u32, bytes: Vec<u8>) {
        let mut state = self.state.borrow_mut();
        let Some(slot) = state.chunks.get(&chunk).map(|chunk| chunk.slot()) else { return };
        let written = state.log.group.slots.entry(slot).or_insert_with(|| (file.clone(), 0));
        written.1 = written.1.max(block * BLOCK + u32::try_from(bytes.len()).unwrap_or(0));
        let inner = Rc::clone(self);
        self.write_in_place(&state.log.group, async move {
            inner.io.write_bytes(&file, &bytes, u64::from(block) * u64::from(BLOCK)).await
        });
    }

    /// A payload that does not start at a block is copied once into block order.
    async fn write_reblocked(
        &self,
        file: &R::File,
        tail: &Tail,
        payload: &R::Buf,
        len: usize,
        at: u64,
    ) -> io::Result<()> {
        let _permit = self.reblock.acquire().await.map_err(io::Error::other)?;
        let mut buf = self.io.rt.alloc(len).await;
        let (head, rest) = buf.as_mut().split_at_mut(tail.len());
        head.copy_from_slice(tail);
        rest.copy_from_slice(&payload.as_ref()[..len - tail.len()]);
        self.io.write(file, self.io.rt.freeze(buf), at).await
    }

    /// See [`Store::reserve`].
    pub(crate) async fn reserve(&self, chunk: ChunkHandle, len: u32) -> Result<(), StoreError> {
        if len > super::layout::CHUNK_CAPACITY {
            return Err(StoreError::BadRange);
        }
        let (slot, allocated) = {
            let state = self.state.borrow();
            let chunk = state.live(chunk)?;
            (chunk.slot(), chunk.allocated)
        };
        if align_up(len) <= allocated {
            return Ok(());
        }
        let file = self.file(slot).await.map_err(|error| StoreError::ReadFailed(error.to_string()))?;
        self.take_space(slot, &file, len, &[step(len), align_up(len)]).await
    }
}

/// This process has no more of something at the moment; the disk is well.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EAGAIN].into_iter().any(|shortage| code == Some(shortage))
}

/// The file system has no space, or the quota none.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl<R: Runtime> State<R> {
    /// Data bytes of a slot that are durably written extents.
    pub(crate) fn written_upto(&self, slot: u32) -> u32 {
        let of_chunk = |chunk: &super::shard::Chunk<R>| chunk.replica.hdr.written_upto;
        let chunk = self.by_slot.get(&slot).and_then(|handle| self.chunks.get(handle)).map(of_chunk);
        let free = || self.free.iter().find(|free| free.hdr.common.number == slot).map(|free| free.hdr.written_upto);
        chunk.or_else(free).unwrap_or(0)
    }

    /// Data bytes of a slot that have space.
    pub(crate) fn allocated(&self, slot: u32) -> u32 {
        let chunk = self.by_slot.get(&slot).and_then(|handle| self.chunks.get(handle)).map(|chunk| chunk.allocated);
        let free = || self.free.iter().find(|free| free.hdr.common.number == slot).map(|free| free.allocated);
        chunk.or_else(free).unwrap_or(0)
    }

    /// The same, after a sync of the slot.
    pub(crate) fn raise_written(&mut self, slot: u32, end: u32) {
        if let Some(hdr) = self.hdr_of_slot(slot).filter(|hdr| !hdr.flags.has(Flags::SHARED)) {
            hdr.written_upto = hdr.written_upto.max(end);
        }
    }

    pub(crate) fn raise_allocated(&mut self, slot: u32, end: u32) {
        if let Some(chunk) = self.by_slot.get(&slot).copied().and_then(|handle| self.chunks.get_mut(&handle)) {
            chunk.allocated = chunk.allocated.max(end);
        } else if let Some(free) = self.free.iter_mut().find(|free| free.hdr.common.number == slot) {
            free.allocated = free.allocated.max(end);
        }
    }

    /// The header of a slot, whatever it holds.
    pub(crate) fn hdr_of_slot(&mut self, slot: u32) -> Option<&mut super::header::Hdr> {
        if let Some(handle) = self.by_slot.get(&slot) {
            return self.chunks.get_mut(handle).map(|chunk| &mut chunk.replica.hdr);
        }
        self.free.iter_mut().map(|free| &mut free.hdr).find(|hdr| hdr.common.number == slot)
    }
}
