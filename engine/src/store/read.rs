//! Reads: whole blocks, each verified against its checksum, the partial block from memory.

use std::io;
use std::rc::Rc;

use wire::ChunkHandle;
use wire::member::ReplicaState;

use super::StoreError;
use super::canary::weakened;
use super::header::Hdr;
use super::io::Io;
use super::layout::{BLOCK, CHUNK_CAPACITY, CRCS_PER_PAGE, Child, PAGE};
use super::page::{self, CrcPage, Page};
use super::replica::{SeenBlocks, Tail, crcs_of_padded};
use super::shard::{Chunk, Inner, Store};
use super::types::{Blocks, Upto};
use crate::runtime::Runtime;

/// Most bytes of blocks that one read touches.
const READ_MAX: u32 = 1 << 20;

/// What a read needs of a chunk, taken in one step.
struct Plan {
    slot: u32,
    _users: Rc<()>,
    first_block: u32,
    /// Blocks that have a place; those with images in memory among them.
    disk_blocks: u32,
    /// Their checksums, and the images: of one state, that of the last durable group.
    seen: SeenBlocks,
    /// [`Chunk::rewrites`] at that time.
    rewrites: u64,
    /// The partial block behind them, when it is touched and not in place.
    tail: Option<Tail>,
    len: u32,
}

impl<R: Runtime> Store<R> {
    /// Verified blocks around `[offset, offset+len)`, cut at the limit. Touched blocks at most 1 MiB.
    /// `len` of the answer is zero when the limit is at or below `offset`.
    ///
    /// # Errors
    ///
    /// `BadBlock` for a block that fails its checksum or cannot be read; `UnknownChunk`; `BadRange`;
    /// `ReadFailed` when the device does not answer.
    pub async fn read(
        &self,
        chunk: ChunkHandle,
        offset: u32,
        len: u32,
        upto: Upto,
    ) -> Result<Blocks<R::Buf>, StoreError> {
        let inner = &self.inner;
        inner.check()?;
        loop {
            let planned = {
                let mut state = inner.state.borrow_mut();
                let planned = plan(state.live(chunk)?, state.log.durable_lsn, offset, len, upto)?;
                inner.touch(&mut state, chunk);
                planned
            };
            let plan = match planned {
                Planned::Nothing => break,
                Planned::Load(first, end) => {
                    inner.load_crcs(chunk, first, end).await?;
                    continue;
                }
                Planned::Damaged(slot, block) => return Err(inner.bad_block(chunk, slot, block)),
                Planned::Read(plan) => plan,
            };
            match inner.read_planned(&plan).await {
                // A checkpoint wrote an image over what was read: now it is read from memory.
                Err(StoreError::BadBlock(_)) if inner.was_rewritten(chunk, &plan) => {}
                Err(StoreError::BadBlock(block)) => return Err(inner.bad_block(chunk, plan.slot, block)),
                read => return read,
            }
        }
        let buf = inner.io.rt.freeze(inner.io.rt.alloc(PAGE).await);
        let buf = inner.io.rt.slice(&buf, 0..0);
        Ok(Blocks { buf, offset: offset / BLOCK * BLOCK, len: 0, crcs: Vec::new() })
    }
}

/// What to do about a read.
enum Planned {
    /// The limit is at or below the offset.
    Nothing,
    /// Checksums of these blocks come first.
    Load(u32, u32),
    /// The checksum of this block of this slot is lost.
    Damaged(u32, u32),
    Read(Plan),
}

/// What to read, decided in one step: one state of the chunk.
fn plan<R: Runtime>(
    chunk: &Chunk<R>,
    durable_lsn: u64,
    offset: u32,
    len: u32,
    upto: Upto,
) -> Result<Planned, StoreError> {
    let end = offset.checked_add(len).filter(|end| *end <= CHUNK_CAPACITY).ok_or(StoreError::BadRange)?;
    if end.div_ceil(BLOCK) - offset / BLOCK > READ_MAX / BLOCK {
        return Err(StoreError::BadRange);
    }
    let hdr = &chunk.replica.hdr;
    let limit = match (chunk.replica.state(), upto) {
        (ReplicaState::Sealed, _) | (_, Upto::Durable) => chunk.durable.len,
        _ if hdr.last_overwrite_seq > hdr.committed_seq => 0,
        _ => hdr.committed_len,
    };
    let end = end.min(limit);
    if end <= offset {
        return Ok(Planned::Nothing);
    }
    // Everything below the durable end is in place, but for a partial block that is still in memory.
    let in_place =
        if chunk.durable.tail.is_empty() { chunk.durable.len.div_ceil(BLOCK) } else { chunk.durable.len / BLOCK };
    let (first_block, end_block) = (offset / BLOCK, end.div_ceil(BLOCK));
    let end_in_place = end_block.min(in_place).max(first_block);
    let crcs = &chunk.replica.crcs;
    if crcs.missing(first_block, end_in_place).is_some() {
        return Ok(Planned::Load(first_block, end_in_place));
    }
    let seen = match chunk.replica.seen(first_block, end_in_place, durable_lsn) {
        Ok(seen) => seen,
        Err(block) => return Ok(Planned::Damaged(chunk.slot(), block)),
    };
    Ok(Planned::Read(Plan {
        slot: chunk.slot(),
        _users: Rc::clone(&chunk.users),
        first_block,
        disk_blocks: end_in_place - first_block,
        seen,
        rewrites: chunk.rewrites,
        tail: (end_block > in_place).then(|| Rc::clone(&chunk.durable.tail)),
        len: end - first_block * BLOCK,
    }))
}

impl<R: Runtime> Inner<R> {
    /// `BadBlock`: what was read is not what the plan says.
    async fn read_planned(&self, plan: &Plan) -> Result<Blocks<R::Buf>, StoreError> {
        let mut crcs = plan.seen.crcs.clone();
        let runs = plan.seen.runs_in_place();
        let read = if plan.tail.is_none() && runs == [(0, plan.disk_blocks)] {
            self.read_run(plan, 0, plan.disk_blocks).await?
        } else {
            let before = plan.disk_blocks as usize * PAGE;
            let tail = if plan.tail.is_some() { PAGE } else { 0 };
            let mut whole = self.io.rt.alloc(before + tail).await;
            // A block that is in memory is not read: its place may not be readable.
            for (first, count) in runs {
                let read = self.read_run(plan, first, count).await?;
                let (at, len) = (first as usize * PAGE, count as usize * PAGE);
                whole.as_mut()[at..at + len].copy_from_slice(read.as_ref());
            }
            for (index, image) in &plan.seen.images {
                let at = *index as usize * PAGE;
                whole.as_mut()[at..at + PAGE].copy_from_slice(Rc::as_ref(image).as_ref());
            }
            if let Some(tail) = &plan.tail {
                crcs.push(crcs_of_padded(tail));
                whole.as_mut()[before..].copy_from_slice(page::padded(tail).as_slice());
            }
            self.io.rt.freeze(whole)
        };
        Ok(Blocks { buf: read, offset: plan.first_block * BLOCK, len: plan.len, crcs })
    }

    /// Reads and verifies blocks of the plan, counted from its first.
    async fn read_run(&self, plan: &Plan, first: u32, count: u32) -> Result<R::Buf, StoreError> {
        let read = self.read_blocks(plan.slot, plan.first_block + first, count).await?;
        let crcs = &plan.seen.crcs[first as usize..(first + count) as usize];
        match first_bad(read.as_ref(), crcs) {
            Some(bad) => Err(StoreError::BadBlock(plan.first_block + first + bad)),
            None => Ok(read),
        }
    }

    /// Whether a checkpoint has begun to write images of the chunk in place since the plan was made.
    fn was_rewritten(&self, chunk: ChunkHandle, plan: &Plan) -> bool {
        self.state.borrow().chunks.get(&chunk).is_some_and(|chunk| chunk.rewrites != plan.rewrites)
    }

    async fn read_blocks(&self, slot: u32, first: u32, count: u32) -> Result<R::Buf, StoreError> {
        let failed = |error: io::Error| StoreError::ReadFailed(error.to_string());
        let file = self.file(slot).await.map_err(failed)?;
        let (len, at) = (count as usize * PAGE, u64::from(first) * u64::from(BLOCK));
        let error = match self.io.read(&file, len, at).await {
            Ok(buf) => return Ok(buf),
            Err(error) => error,
        };
        // One sector that cannot be read fails the whole call: find the block.
        for index in 0..count {
            if self.io.read(&file, PAGE, at + u64::from(index * BLOCK)).await.is_err() {
                let block = first + index;
                tracing::warn!(slot, block, %error, "block cannot be read");
                return Err(StoreError::BadBlock(block));
            }
        }
        self.io.read(&file, len, at).await.map_err(failed)
    }

    fn bad_block(&self, chunk: ChunkHandle, slot: u32, block: u32) -> StoreError {
        self.io.count(|counters| counters.bad_blocks += 1);
        tracing::warn!(%chunk, slot, block, "bad block");
        StoreError::BadBlock(block)
    }

    /// Brings the checksum pages of blocks `first..end` into memory. What is damaged stays away.
    pub(crate) async fn load_crcs(&self, chunk: ChunkHandle, first: u32, end: u32) -> Result<(), StoreError> {
        loop {
            let (index, slot, hdr) = {
                let mut state = self.state.borrow_mut();
                let held = state.chunks.get_mut(&chunk).ok_or(StoreError::UnknownChunk)?;
                let Some(index) = held.replica.crcs.missing(first, end) else {
                    self.touch(&mut state, chunk);
                    return Ok(());
                };
                let hdr = &held.replica.hdr;
                if !hdr.has_child(Child::Crc(index)) {
                    held.replica.crcs.insert_damaged(index);
                    continue;
                }
                (index, held.slot(), hdr.clone())
            };
            let failed = |error: io::Error| StoreError::ReadFailed(error.to_string());
            let file = self.file(slot).await.map_err(failed)?;
            let child = Child::Crc(index);
            let page = self.io.read_page(&file, child.offset(hdr.copy_of(child))).await;
            let mut crcs = page.ok().and_then(|page| crc_page(&page, &hdr, index));
            if weakened!(ChecksumsRecomputed) && crcs.is_none() {
                crcs = Some(recomputed(&self.io, &file, index, hdr.durable_len / BLOCK).await);
            }
            let mut state = self.state.borrow_mut();
            let held = state.chunks.get_mut(&chunk).ok_or(StoreError::UnknownChunk)?;
            if held.replica.hdr.crc_page_crc[index] != hdr.crc_page_crc[index] {
                continue; // a checkpoint wrote a newer page meanwhile
            }
            match crcs {
                Some(crcs) => held.replica.crcs.insert(index, crcs),
                None => {
                    tracing::warn!(%chunk, slot, page = index, "checksum page does not match its header");
                    held.replica.crcs.insert_damaged(index);
                }
            }
        }
    }

    /// The chunk's checksums were used: others may have to go.
    pub(crate) fn touch(&self, state: &mut super::shard::State<R>, chunk: ChunkHandle) {
        let Some(held) = state.chunks.get(&chunk) else { return };
        if held.replica.state() == ReplicaState::Open {
            return;
        }
        for gone in self.cache.borrow_mut().used(chunk, held.replica.crcs.memory()) {
            if let Some(held) = state.chunks.get_mut(&gone) {
                held.replica.crcs.evict_clean();
            }
        }
    }
}

/// Index of the first block whose bytes do not match.
fn first_bad(bytes: &[u8], crcs: &[u32]) -> Option<u32> {
    let blocks = bytes.as_chunks::<PAGE>().0;
    let bad = blocks.iter().zip(crcs).position(|(block, crc)| crc32c::crc32c(block) != *crc)?;
    u32::try_from(bad).ok()
}

/// Checksums of what lies in the blocks of a page now, which proves nothing: only a planted bug asks.
pub(crate) async fn recomputed<R: Runtime>(io: &Io<R>, file: &R::File, index: usize, end: u32) -> Box<CrcPage> {
    let mut crcs = Box::new([0; CRCS_PER_PAGE]);
    for (entry, crc) in crcs.iter_mut().enumerate() {
        let block = index * CRCS_PER_PAGE + entry;
        if block < end as usize
            && let Ok(page) = io.read_page(file, (block * PAGE) as u64).await
        {
            *crc = crc32c::crc32c(page.as_slice());
        }
    }
    crcs
}

/// A CRC page, if it is the one that the header names.
pub(crate) fn crc_page(page: &Page, hdr: &Hdr, index: usize) -> Option<Box<CrcPage>> {
    let (common, crcs) = page::decode_crcs(page).ok()?;
    let named = page::stored_crc(page) == hdr.crc_page_crc[index];
    let here = usize::from(common.index) == index
        && common.number == hdr.common.number
        && common.chunk == hdr.common.chunk
        && common.disk_uuid == hdr.common.disk_uuid;
    (named && here).then_some(crcs)
}
