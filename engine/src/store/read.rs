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
use super::replica::{Tail, crcs_of_padded};
use super::shard::{Chunk, Inner, Store};
use super::types::{Blocks, Upto};
use crate::runtime::Runtime;

/// Most bytes of blocks that one read touches.
const READ_MAX: u32 = 1 << 20;

/// What a read needs of a chunk, taken in one step.
struct Plan {
    slot: u32,
    users: Rc<()>,
    first_block: u32,
    /// Blocks to read from the device.
    disk_blocks: u32,
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
        let plan = plan(inner.state.borrow().live(chunk)?, offset, len, upto)?;
        let Some(plan) = plan else {
            let buf = inner.io.rt.freeze(inner.io.rt.alloc(PAGE).await);
            let buf = inner.io.rt.slice(&buf, 0..0);
            return Ok(Blocks { buf, offset: offset / BLOCK * BLOCK, len: 0, crcs: Vec::new() });
        };
        let blocks = inner.read_planned(chunk, &plan).await;
        drop(plan.users);
        blocks
    }
}

/// What to read; `None` when the limit is at or below `offset`.
fn plan<R: Runtime>(chunk: &Chunk<R>, offset: u32, len: u32, upto: Upto) -> Result<Option<Plan>, StoreError> {
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
        return Ok(None);
    }
    // Everything below the durable end is in place, but for a partial block that is still in memory.
    let in_place =
        if chunk.durable.tail.is_empty() { chunk.durable.len.div_ceil(BLOCK) } else { chunk.durable.len / BLOCK };
    let (first_block, end_block) = (offset / BLOCK, end.div_ceil(BLOCK));
    Ok(Some(Plan {
        slot: chunk.slot(),
        users: Rc::clone(&chunk.users),
        first_block,
        disk_blocks: end_block.min(in_place).saturating_sub(first_block),
        tail: (end_block > in_place).then(|| Rc::clone(&chunk.durable.tail)),
        len: end - first_block * BLOCK,
    }))
}

impl<R: Runtime> Inner<R> {
    async fn read_planned(&self, chunk: ChunkHandle, plan: &Plan) -> Result<Blocks<R::Buf>, StoreError> {
        let end = plan.first_block + plan.disk_blocks;
        let mut crcs = self.block_crcs(chunk, plan.first_block, end).await?;
        let mut buf = None;
        if plan.disk_blocks > 0 {
            let read = self.read_blocks(plan).await?;
            if let Some(bad) = first_bad(read.as_ref(), &crcs) {
                return Err(self.bad_block(chunk, plan.slot, plan.first_block + bad));
            }
            buf = Some(read);
        }
        if let Some(tail) = &plan.tail {
            crcs.push(crcs_of_padded(tail));
            let before = plan.disk_blocks as usize * PAGE;
            let mut whole = self.io.rt.alloc(before + PAGE).await;
            let bytes = whole.as_mut();
            bytes[..before].copy_from_slice(buf.as_ref().map_or(&[][..], AsRef::as_ref));
            bytes[before..].copy_from_slice(page::padded(tail).as_slice());
            buf = Some(self.io.rt.freeze(whole));
        }
        let buf = buf.ok_or(StoreError::BadRange)?;
        Ok(Blocks { buf, offset: plan.first_block * BLOCK, len: plan.len, crcs })
    }

    async fn read_blocks(&self, plan: &Plan) -> Result<R::Buf, StoreError> {
        let failed = |error: io::Error| StoreError::ReadFailed(error.to_string());
        let file = self.file(plan.slot).await.map_err(failed)?;
        let (len, at) = (plan.disk_blocks as usize * PAGE, u64::from(plan.first_block) * u64::from(BLOCK));
        let error = match self.io.read(&file, len, at).await {
            Ok(buf) => return Ok(buf),
            Err(error) => error,
        };
        // One sector that cannot be read fails the whole call: find the block.
        for index in 0..plan.disk_blocks {
            if self.io.read(&file, PAGE, at + u64::from(index * BLOCK)).await.is_err() {
                let block = plan.first_block + index;
                self.io.count(|counters| counters.bad_blocks += 1);
                tracing::warn!(slot = plan.slot, block, %error, "block cannot be read");
                return Err(StoreError::BadBlock(block));
            }
        }
        self.io.read(&file, len, at).await.map_err(failed)
    }

    fn bad_block(&self, chunk: ChunkHandle, slot: u32, block: u32) -> StoreError {
        self.io.count(|counters| counters.bad_blocks += 1);
        tracing::warn!(%chunk, slot, block, "block fails its checksum");
        StoreError::BadBlock(block)
    }

    /// The checksums of blocks `first..end` of a chunk, read from the slot where they are not in memory.
    async fn block_crcs(&self, chunk: ChunkHandle, first: u32, end: u32) -> Result<Vec<u32>, StoreError> {
        self.load_crcs(chunk, first, end).await?;
        let state = self.state.borrow();
        let held = state.chunks.get(&chunk).ok_or(StoreError::UnknownChunk)?;
        let crcs = &held.replica.crcs;
        (first..end).map(|block| crcs.get(block).ok_or_else(|| self.bad_block(chunk, held.slot(), block))).collect()
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
