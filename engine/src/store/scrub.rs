//! Scrub: what lies on the disk against what must lie there, read past every cache (format section 11).
//!
//! Pages first, blocks after them, a few at a time: how many and when is the caller's decision. A page
//! that is bad is written again from memory or from its other copy, which the checkpoint does; a checksum
//! page that memory does not have is proved by the sealed digest, never by the blocks alone. A bad block
//! needs another replica and is only told.

use std::io;
use std::rc::Rc;

use wire::ChunkHandle;
use wire::member::ReplicaState;

use super::StoreError;
use super::crcs::{self, page_of};
use super::header::Hdr;
use super::layout::{BLOCK, CRC_PAGES, CRCS_PER_PAGE, Child, DEDUP_PAGES, HALF_OFFSETS, PAGE};
use super::load::crc_page;
use super::page::{CrcPage, Page, stored_crc};
use super::reads::Mark;
use super::shard::{Chunk, Inner, Store};
use crate::runtime::Runtime;

/// Most blocks of one step.
pub const SCRUB_BLOCKS_MAX: u32 = 256;

/// What one look at the pages of a slot found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PagesScrubbed {
    /// Bytes read.
    pub bytes: u64,
    /// Pages that are not what the header in memory says: rotten, or of another slot, chunk or disk.
    pub bad: u32,
    /// Of those: written again, or due at the checkpoint that was asked for.
    pub healed: u32,
}

/// What one step over the blocks of a chunk found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlocksScrubbed {
    /// Where to go on.
    pub next: u32,
    /// Nothing is left of this chunk.
    pub done: bool,
    /// Bytes read.
    pub bytes: u64,
    /// Blocks that were bad when they were read twice.
    pub bad: Vec<u32>,
    /// Blocks that were bad only the first time.
    pub flaky: u32,
    /// Blocks whose newest content is in the journal and not in place yet: nothing can be said about them.
    pub pending: u32,
}

/// Blocks to look at, taken in one step.
struct Piece {
    slot: u32,
    _users: Rc<()>,
    first: u32,
    end: u32,
    /// Nothing lies behind `end`.
    last: bool,
}

impl<R: Runtime> Store<R> {
    /// The first chunk above `after` that scrub looks at: not condemned.
    #[must_use]
    pub fn next_to_scrub(&self, after: ChunkHandle) -> Option<ChunkHandle> {
        let state = self.inner.state.borrow();
        let above = state.chunks.range((std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded));
        let mut live = above.filter(|(_, chunk)| chunk.replica.state() != ReplicaState::Condemned);
        live.next().map(|(handle, _)| *handle)
    }

    /// Bytes that a whole scrub reads: blocks in place of all chunks that are not condemned.
    #[must_use]
    pub fn scrub_total(&self) -> u64 {
        let state = self.inner.state.borrow();
        let live = state.chunks.values().filter(|chunk| chunk.replica.state() != ReplicaState::Condemned);
        live.map(|chunk| u64::from(in_place(chunk)) * u64::from(BLOCK)).sum()
    }

    /// Chunks in the slots beside this chunk's: what broke it may have broken them.
    #[must_use]
    pub fn neighbours(&self, chunk: ChunkHandle) -> Vec<ChunkHandle> {
        let state = self.inner.state.borrow();
        let Some(slot) = state.chunks.get(&chunk).map(Chunk::slot) else { return Vec::new() };
        let beside = [slot.checked_sub(1), slot.checked_add(1)].into_iter().flatten();
        beside.filter_map(|slot| state.by_slot.get(&slot).copied()).collect()
    }

    /// Starts a checkpoint, so that what was repaired comes into its place and can be read there.
    pub fn settle(&self) {
        self.inner.checkpoint_soon(&mut self.inner.state.borrow_mut());
    }

    /// Reads both headers of the chunk's slot and every page they name. What memory can replace is written
    /// again by the checkpoint that follows. Waits for a running checkpoint, and the next one waits for it.
    ///
    /// # Errors
    ///
    /// `UnknownChunk`, `Fenced`; `ReadFailed` when the slot file cannot be opened.
    pub async fn scrub_pages(&self, chunk: ChunkHandle) -> Result<PagesScrubbed, StoreError> {
        let inner = &self.inner;
        inner.check()?;
        let checkpoints = inner.checkpoints.lock().await;
        let (hdr, _users) = {
            let state = inner.state.borrow();
            let held = state.live(chunk)?;
            (held.replica.hdr.clone(), Rc::clone(&held.users))
        };
        let failed = |error: io::Error| StoreError::ReadFailed(error.to_string());
        let file = inner.file(hdr.common.number).await.map_err(failed)?;
        let mut found = PagesScrubbed::default();
        inner.scrub_headers(&hdr, &file, &mut found).await?;
        for child in children().filter(|child| hdr.has_child(*child)) {
            found.bytes += PAGE as u64;
            let page = inner.io.read_page(&file, child.offset(hdr.copy_of(child))).await;
            if page.is_ok_and(|page| is_named(&hdr, child, &page)) {
                continue;
            }
            found.bad += 1;
            tracing::warn!(%chunk, slot = hdr.common.number, ?child, "page on the disk does not match its header");
            found.healed += u32::from(inner.renew(chunk, child).await?);
        }
        drop(checkpoints);
        if found.healed > 0 {
            inner.checkpoint_soon(&mut inner.state.borrow_mut());
        }
        Ok(found)
    }

    /// Reads up to `count` blocks (at most [`SCRUB_BLOCKS_MAX`]) from block `first` on and compares them with
    /// their checksums. What does not match is read once more.
    ///
    /// # Errors
    ///
    /// `UnknownChunk`, `Fenced`; `ReadFailed` when the slot file cannot be opened.
    pub async fn scrub_blocks(&self, chunk: ChunkHandle, first: u32, count: u32) -> Result<BlocksScrubbed, StoreError> {
        let inner = &self.inner;
        inner.check()?;
        let piece = piece(inner.state.borrow().live(chunk)?, first, count.clamp(1, SCRUB_BLOCKS_MAX));
        let mark = inner.reads.borrow_mut().mark(chunk);
        let mut found = BlocksScrubbed { next: piece.end, done: piece.last, ..BlocksScrubbed::default() };
        if piece.first >= piece.end {
            return Ok(found);
        }
        let failed = |error: io::Error| StoreError::ReadFailed(error.to_string());
        let file = inner.file(piece.slot).await.map_err(failed)?;
        let wanted = inner.true_crcs(chunk, &file, piece.first, piece.end).await?;
        let (at, len) = (u64::from(piece.first) * u64::from(BLOCK), wanted.len() * PAGE);
        found.bytes = len as u64;
        let whole = inner.io.read(&file, len, at).await.ok();
        for (block, wanted) in (piece.first..piece.end).zip(wanted) {
            let index = (block - piece.first) as usize * PAGE;
            let matches = |bytes: &[u8]| wanted.is_some_and(|crc| crc32c::crc32c(bytes) == crc);
            if inner.is_unsettled(block, mark) {
                found.pending += 1;
                continue;
            }
            if whole.as_ref().is_some_and(|whole| matches(&whole.as_ref()[index..index + PAGE])) {
                continue;
            }
            let again = inner.io.read(&file, PAGE, at + index as u64).await;
            if again.is_ok_and(|again| matches(again.as_ref())) {
                found.flaky += 1;
            } else if inner.is_unsettled(block, mark) {
                found.pending += 1; // it was written meanwhile
            } else {
                found.bad.push(block);
            }
        }
        Ok(found)
    }
}

/// Blocks that lie in their place on the disk.
fn in_place<R: Runtime>(chunk: &Chunk<R>) -> u32 {
    let len = chunk.durable.len;
    if chunk.durable.tail.is_empty() { len.div_ceil(BLOCK) } else { len / BLOCK }
}

fn piece<R: Runtime>(chunk: &Chunk<R>, first: u32, count: u32) -> Piece {
    let all = in_place(chunk);
    let end = first.saturating_add(count).min(all).max(first);
    Piece { slot: chunk.slot(), _users: Rc::clone(&chunk.users), first, end, last: end >= all }
}

fn children() -> impl Iterator<Item = Child> {
    let dedup = (0..DEDUP_PAGES).map(Child::Dedup);
    std::iter::once(Child::Tail).chain(dedup).chain((0..CRC_PAGES).map(Child::Crc))
}

/// Whether a child's page is the one that the header names.
fn is_named(hdr: &Hdr, child: Child, page: &Page) -> bool {
    match child {
        Child::Tail => crc32c::crc32c(page) == hdr.tail_crc,
        Child::Crc(index) => crc_page(page, hdr, index).is_some(),
        Child::Dedup(index) => {
            let decoded = super::page::decode_dedup(page).is_ok_and(|(common, _)| {
                usize::from(common.index) == index
                    && common.number == hdr.common.number
                    && common.chunk == hdr.common.chunk
                    && common.disk_uuid == hdr.common.disk_uuid
            });
            decoded && stored_crc(page) == hdr.dedup_crc[index]
        }
    }
}

impl<R: Runtime> Inner<R> {
    /// Both copies of the header: of this slot and disk, and of the version that was written last.
    async fn scrub_headers(
        self: &Rc<Self>,
        hdr: &Hdr,
        file: &R::File,
        found: &mut PagesScrubbed,
    ) -> Result<(), StoreError> {
        let mut copies = Vec::new();
        for offset in HALF_OFFSETS {
            found.bytes += PAGE as u64;
            let page = self.io.read_page(file, offset).await;
            copies.push(page.ok().filter(|page| is_header_of(hdr, page)));
        }
        let bad: Vec<usize> = (0..copies.len()).filter(|copy| copies[*copy].is_none()).collect();
        if bad.is_empty() {
            return Ok(());
        }
        found.bad += u32::try_from(bad.len()).unwrap_or(2);
        tracing::warn!(slot = hdr.common.number, copies = ?bad, "header on the disk is not the one written last");
        match copies.into_iter().flatten().next() {
            Some(good) => {
                let (io, file, offset) = (self.io.clone(), file.clone(), HALF_OFFSETS[bad[0]]);
                let healed = async move {
                    io.write_bytes(&file, good.as_slice(), offset).await?;
                    io.flush(&file).await
                };
                self.to_its_end(healed).await.map_err(|error| self.fence("a header could not be healed", &error))?;
                found.healed += 1;
            }
            None => {
                self.write_again(hdr.chunk());
                found.healed += 2;
            }
        }
        Ok(())
    }

    /// The next checkpoint writes this chunk's header, though no record asks for it.
    fn write_again(&self, chunk: ChunkHandle) {
        let mut state = self.state.borrow_mut();
        let next_lsn = state.log.last_lsn() + 1;
        if let Some(held) = state.chunks.get_mut(&chunk) {
            held.dirty_lsn.get_or_insert(next_lsn);
        }
    }

    /// Has the next checkpoint write a child anew; `false` when what belongs there is not known.
    async fn renew(self: &Rc<Self>, chunk: ChunkHandle, child: Child) -> Result<bool, StoreError> {
        if let Child::Crc(index) = child
            && !self.state.borrow().live(chunk)?.replica.crcs.has_page(index)
        {
            let Some(crcs) = self.proved_crcs(chunk, index).await? else { return Ok(false) };
            let mut state = self.state.borrow_mut();
            let held = state.chunks.get_mut(&chunk).ok_or(StoreError::UnknownChunk)?;
            held.replica.crcs.restore(index, crcs);
        }
        {
            let mut state = self.state.borrow_mut();
            let held = state.chunks.get_mut(&chunk).ok_or(StoreError::UnknownChunk)?;
            match child {
                Child::Tail => held.replica.tail_dirty = true,
                Child::Dedup(_) => held.replica.dedup_dirty = true,
                Child::Crc(index) => held.replica.crcs.write_again(index),
            }
        }
        self.write_again(chunk);
        Ok(true)
    }

    /// The checksums of one page of a sealed chunk, computed from its blocks and believed only because the
    /// sealed digest, which is stored elsewhere, comes out of them; `None` when it does not.
    async fn proved_crcs(&self, chunk: ChunkHandle, index: usize) -> Result<Option<Box<CrcPage>>, StoreError> {
        let (slot, len, digest, tail) = {
            let state = self.state.borrow();
            let held = state.live(chunk)?;
            let hdr = &held.replica.hdr;
            if !hdr.content_is_final() {
                return Ok(None);
            }
            (held.slot(), hdr.sealed_len, hdr.sealed_digest, Rc::clone(&held.durable.tail))
        };
        let failed = |error: io::Error| StoreError::ReadFailed(error.to_string());
        let file = self.file(slot).await.map_err(failed)?;
        let full = (len / BLOCK) as usize;
        let rest = (len % BLOCK) as usize;
        let first = index * CRCS_PER_PAGE;
        let used = if tail.is_empty() { len.div_ceil(BLOCK) as usize } else { full };
        let mut crcs: Box<CrcPage> = Box::new([0; CRCS_PER_PAGE]);
        for (at, crc) in (first..used.min(first + CRCS_PER_PAGE)).zip(crcs.iter_mut()) {
            let Ok(block) = self.io.read(&file, PAGE, at as u64 * PAGE as u64).await else { return Ok(None) };
            *crc = crc32c::crc32c(block.as_ref());
        }
        let mut all = Vec::with_capacity(full);
        for page in 0..full.div_ceil(CRCS_PER_PAGE) {
            let count = (full - page * CRCS_PER_PAGE).min(CRCS_PER_PAGE);
            let from = u32::try_from(page * CRCS_PER_PAGE).unwrap_or(u32::MAX);
            if page == index {
                all.extend_from_slice(&crcs[..count]);
                continue;
            }
            let end = from + u32::try_from(count).unwrap_or(0);
            let known: Option<Vec<u32>> = self.true_crcs(chunk, &file, from, end).await?.into_iter().collect();
            let Some(known) = known else { return Ok(None) };
            all.extend_from_slice(&known);
        }
        let last = match (rest, tail.get(..rest)) {
            (0, _) => Vec::new(),
            (_, Some(tail)) => tail.to_vec(),
            (_, None) => match self.io.read(&file, PAGE, full as u64 * PAGE as u64).await {
                Ok(block) => block.as_ref()[..rest].to_vec(),
                Err(_) => return Ok(None),
            },
        };
        Ok((crcs::digest([all.as_slice()], &last, len) == digest).then_some(crcs))
    }

    /// Whether a block is being written in place, or has changed since the mark.
    fn is_unsettled(&self, block: u32, mark: Mark) -> bool {
        let state = self.state.borrow();
        let settled = |held: &Chunk<R>| !held.replica.redo.has(block);
        !state.chunks.get(&mark.chunk).is_some_and(settled)
            || !self.reads.borrow_mut().is_current(mark, &(block..block + 1))
    }

    fn crc_in_memory(&self, chunk: ChunkHandle, block: u32) -> Option<u32> {
        self.state.borrow().chunks.get(&chunk)?.replica.crcs.get(block)
    }

    /// The checksums of blocks `first..end`: from memory, else from the slot, and not kept: a scrub must
    /// not push out what readers use. `None` for blocks whose page is damaged.
    async fn true_crcs(
        &self,
        chunk: ChunkHandle,
        file: &R::File,
        first: u32,
        end: u32,
    ) -> Result<Vec<Option<u32>>, StoreError> {
        let mut out = Vec::with_capacity((end - first) as usize);
        let mut page: Option<(usize, Option<Box<CrcPage>>)> = None;
        for block in first..end {
            if let Some(crc) = self.crc_in_memory(chunk, block) {
                out.push(Some(crc));
                continue;
            }
            let index = page_of(block);
            if page.as_ref().is_none_or(|(known, _)| *known != index) {
                page = Some((index, self.crcs_on_disk(chunk, file, index).await?));
            }
            let crcs = page.as_ref().and_then(|(_, crcs)| crcs.as_ref());
            out.push(crcs.map(|crcs| crcs[block as usize % CRCS_PER_PAGE]));
        }
        Ok(out)
    }

    async fn crcs_on_disk(
        &self,
        chunk: ChunkHandle,
        file: &R::File,
        index: usize,
    ) -> Result<Option<Box<CrcPage>>, StoreError> {
        loop {
            let hdr = self.state.borrow().live(chunk)?.replica.hdr.clone();
            let child = Child::Crc(index);
            if !hdr.has_child(child) {
                return Ok(None);
            }
            let page = self.io.read_page(file, child.offset(hdr.copy_of(child))).await;
            // A checkpoint may have written a newer one meanwhile.
            if self.state.borrow().live(chunk)?.replica.hdr.crc_page_crc[index] == hdr.crc_page_crc[index] {
                return Ok(page.ok().and_then(|page| crc_page(&page, &hdr, index)));
            }
        }
    }
}

/// A header of this slot and disk, of the version that memory knows was written. What it holds may be
/// behind memory, which the journal makes up for.
fn is_header_of(hdr: &Hdr, page: &Page) -> bool {
    Hdr::decode(page).is_ok_and(|found| {
        found.common.number == hdr.common.number
            && found.common.disk_uuid == hdr.common.disk_uuid
            && found.common.page_seq == hdr.common.page_seq
    })
}
