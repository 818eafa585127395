//! Reads: whole blocks, each verified before it is handed out, from memory where they are there.
//!
//! A read takes the buffer that it answers with before anything else, and after that waits for the
//! device only; so no read holds a buffer while it waits for one. Where all it wants comes from one read
//! of the device, that read's own buffer is the answer, and nothing is copied.

use std::io;
use std::ops::Range;
use std::rc::Rc;

use futures_util::future::join_all;
use wire::ChunkHandle;
use wire::member::ReplicaState;

use super::StoreError;
use super::blocks::Came;
use super::layout::{BLOCK, CHUNK_CAPACITY, PAGE, align_down};
use super::reads::{Flight, Landed, Lead, Mark, Piece, SCAN};
use super::replica::Tail;
use super::shard::{Chunk, Inner, Store};
use super::types::{BadBlock, Blocks, Upto};
use crate::runtime::Runtime;

/// Most bytes of blocks that one read touches.
pub(crate) const READ_MAX: u32 = 1 << 20;

/// How often a read begins again because blocks changed under it.
const TRIES_MAX: u32 = 8;

/// Whether a read shares what others read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From memory, from others' reads, and read ahead.
    Shared,
    /// From the device, whatever is in memory.
    Device,
}

/// What a read needs of a chunk, taken in one step.
struct Plan {
    /// Where the chunk stood.
    mark: Mark,
    slot: u32,
    users: Rc<()>,
    /// Blocks it touches.
    blocks: Range<u32>,
    /// Blocks of the chunk that are in place.
    in_place: u32,
    /// Blocks of which only memory has the content, ascending.
    memory: Vec<(u32, Tail)>,
    len: u32,
}

impl Plan {
    fn count(&self) -> usize {
        self.blocks.len()
    }

    /// The ranges of blocks that are read from their places.
    fn placed(&self) -> impl Iterator<Item = Range<u32>> + '_ {
        let starts = std::iter::once(self.blocks.start).chain(self.memory.iter().map(|(block, _)| block + 1));
        let ends = self.memory.iter().map(|(block, _)| *block).chain(std::iter::once(self.blocks.end));
        starts.zip(ends).map(|(start, end)| start..end).filter(|range| !range.is_empty())
    }
}

/// Blocks and the checksum of each.
type Answer<R> = (<R as Runtime>::Buf, Vec<u32>);

/// Why a read came to nothing.
enum Miss {
    /// The blocks changed meanwhile: it begins again.
    Changed,
    Failed(StoreError),
}

impl From<StoreError> for Miss {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

impl<R: Runtime> Store<R> {
    /// Verified blocks around `[offset, offset+len)`, cut at the limit. Touched blocks at most 1 MiB.
    /// `len` of the answer is zero when the limit is at or below `offset`.
    ///
    /// # Errors
    ///
    /// `BadBlock` for a block that fails its checksum or cannot be read, twice; `UnknownChunk`; `BadRange`;
    /// `ReadFailed` when the device does not answer; `Busy` when the blocks are overwritten all the time.
    pub async fn read(
        &self,
        chunk: ChunkHandle,
        offset: u32,
        len: u32,
        upto: Upto,
    ) -> Result<Blocks<R::Buf>, StoreError> {
        self.inner.check()?;
        self.inner.read(chunk, offset, len, upto, Way::Shared).await
    }

    /// As [`Store::read`], but what is in place is read from the device, whatever is in memory, and is not kept
    /// there: for scrubs.
    ///
    /// # Errors
    ///
    /// As [`Store::read`].
    pub async fn read_device(
        &self,
        chunk: ChunkHandle,
        offset: u32,
        len: u32,
        upto: Upto,
    ) -> Result<Blocks<R::Buf>, StoreError> {
        self.inner.check()?;
        self.inner.read(chunk, offset, len, upto, Way::Device).await
    }

    /// The blocks that reads have found bad since the last call, each once. At most 1,024 are remembered.
    #[must_use]
    pub fn take_bad_blocks(&self) -> Vec<BadBlock> {
        self.inner.reads.borrow_mut().take_bad()
    }
}

/// What to read; `None` when the limit is at or below `offset`.
fn plan<R: Runtime>(
    chunk: &Chunk<R>,
    mark: Mark,
    offset: u32,
    len: u32,
    upto: Upto,
) -> Result<Option<Plan>, StoreError> {
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
    let blocks = offset / BLOCK..end.div_ceil(BLOCK);
    Ok(Some(Plan {
        mark,
        slot: chunk.slot(),
        users: Rc::clone(&chunk.users),
        in_place: in_place(chunk),
        memory: in_memory(chunk, &blocks),
        len: end - blocks.start * BLOCK,
        blocks,
    }))
}

/// Blocks of the durable content that are in their places: all but a partial one that is still in memory.
fn in_place<R: Runtime>(chunk: &Chunk<R>) -> u32 {
    if chunk.durable.tail.is_empty() { chunk.durable.len.div_ceil(BLOCK) } else { chunk.durable.len / BLOCK }
}

/// Those of `blocks` of which only memory has the content, ascending, each at most a block long.
fn in_memory<R: Runtime>(chunk: &Chunk<R>, blocks: &Range<u32>) -> Vec<(u32, Tail)> {
    let tail = in_place(chunk);
    if chunk.durable.tail.is_empty() || !blocks.contains(&tail) {
        return Vec::new();
    }
    vec![(tail, Rc::clone(&chunk.durable.tail))]
}

impl<R: Runtime> Inner<R> {
    pub(crate) async fn read(
        self: &Rc<Self>,
        chunk: ChunkHandle,
        offset: u32,
        len: u32,
        upto: Upto,
        way: Way,
    ) -> Result<Blocks<R::Buf>, StoreError> {
        for _ in 0..TRIES_MAX {
            let plan = {
                let state = self.state.borrow();
                let held = state.live(chunk)?;
                plan(held, self.reads.borrow_mut().mark(chunk), offset, len, upto)?
            };
            let Some(plan) = plan else {
                let buf = self.io.rt.freeze(self.io.rt.alloc(PAGE).await);
                let buf = self.io.rt.slice(&buf, 0..0);
                return Ok(Blocks { buf, offset: align_down(offset), len: 0, crcs: Vec::new() });
            };
            match self.read_planned(chunk, &plan, way).await {
                Ok((buf, crcs)) => return Ok(Blocks { buf, offset: plan.blocks.start * BLOCK, len: plan.len, crcs }),
                Err(Miss::Failed(error)) => return Err(error),
                Err(Miss::Changed) => {}
            }
        }
        Err(StoreError::Busy)
    }

    async fn read_planned(self: &Rc<Self>, chunk: ChunkHandle, plan: &Plan, way: Way) -> Result<Answer<R>, Miss> {
        let shared = way == Way::Shared;
        if shared && plan.memory.is_empty() && self.reads.borrow().has_all(plan.mark, plan.blocks.clone()) {
            let answer = self.read_cached(plan).await;
            if let Some(answer) = answer {
                return Ok(answer);
            }
        }
        let placed_end = plan.placed().last().map_or(plan.blocks.start, |range| range.end);
        let crcs = self.block_crcs(chunk, plan.blocks.start, placed_end).await?;
        self.same(plan)?;
        let pieces = self.pieces(chunk, plan, way);
        if pieces.len() + plan.memory.len() == 1 {
            match &pieces[..] {
                [Piece::Device(blocks)] => return self.read_one(plan, blocks.clone(), crcs, way).await,
                [Piece::Joined(flight, blocks)] => {
                    return self.read_joined(plan, flight, blocks.clone(), crcs).await;
                }
                _ => {}
            }
        }
        self.read_mixed(chunk, plan, crcs, way).await
    }

    /// Nothing is shared under the name of a chunk that has become another one meanwhile.
    fn same(&self, plan: &Plan) -> Result<(), Miss> {
        if self.reads.borrow().is_same(plan.mark) { Ok(()) } else { Err(Miss::Changed) }
    }

    /// Where the blocks in place come from.
    fn pieces(&self, chunk: ChunkHandle, plan: &Plan, way: Way) -> Vec<Piece<R>> {
        match way {
            Way::Device => plan.placed().map(Piece::Device).collect(),
            Way::Shared if plan.memory.is_empty() => self.reads.borrow_mut().pieces(chunk, plan.blocks.clone()),
            Way::Shared => plan.placed().flat_map(|range| self.reads.borrow_mut().pieces(chunk, range)).collect(),
        }
    }

    /// All blocks from memory; `None` when one of them is not there any more.
    async fn read_cached(self: &Rc<Self>, plan: &Plan) -> Option<Answer<R>> {
        let mut buf = self.io.rt.alloc(plan.count() * PAGE).await;
        let mut crcs = Vec::with_capacity(plan.count());
        if !self.copy_cached(plan.mark, plan.blocks.start, buf.as_mut(), &mut crcs) {
            return None;
        }
        self.note(plan);
        Some((self.io.rt.freeze(buf), crcs))
    }

    fn copy_cached(&self, mark: Mark, first: u32, into: &mut [u8], crcs: &mut Vec<u32>) -> bool {
        let state = self.state.borrow();
        let Some(held) = state.chunks.get(&mark.chunk) else { return false };
        let now = |block| held.replica.crcs.get(block);
        self.reads.borrow_mut().copy(mark, first, into.as_chunks_mut::<PAGE>().0, crcs, now)
    }

    /// Tells the read-ahead about a read, and starts what it wants. Gives how the blocks came.
    fn note(self: &Rc<Self>, plan: &Plan) -> Came {
        let rt = &self.io.rt;
        let end = plan.in_place;
        let (is_scan, lead) =
            self.reads.borrow_mut().follow(plan.mark, plan.blocks.clone(), end, |len| rt.has_room(len));
        if let Some(lead) = lead {
            let (inner, slot, users) = (Rc::clone(self), plan.slot, Rc::clone(&plan.users));
            self.spawn(async move {
                inner.read_ahead(slot, lead).await;
                drop(users);
            });
        }
        let many = plan.blocks.end - plan.blocks.start >= SCAN;
        if is_scan || many { Came::Scanned { end } } else { Came::Alone }
    }

    /// Reads a window. What fails is left to whoever wants it.
    async fn read_ahead(&self, slot: u32, lead: Lead<R>) {
        let (blocks, mark) = (lead.flight.blocks.clone(), lead.mark);
        let loaded = self.load_crcs(mark.chunk, blocks.start, blocks.end).await;
        let crcs = loaded.ok().and_then(|()| self.held_crcs(mark.chunk, blocks.start, blocks.end).ok());
        let file = self.file(slot).await.ok();
        let mut read = None;
        if let (Some(crcs), Some(file)) = (crcs, file)
            && self.reads.borrow().is_current(mark, &blocks)
        {
            let buf = self.io.read(&file, blocks.len() * PAGE, u64::from(blocks.start * BLOCK)).await.ok();
            read = buf.filter(|buf| first_bad(buf.as_ref(), &crcs).is_none()).map(|buf| (buf, crcs));
        }
        let landed = read.as_ref().map(|(buf, crcs)| (buf, crcs.as_slice()));
        self.reads.borrow_mut().land(lead, landed, Came::Scanned { end: blocks.end });
    }

    /// One read of the device answers.
    async fn read_one(
        self: &Rc<Self>,
        plan: &Plan,
        blocks: Range<u32>,
        crcs: Vec<u32>,
        way: Way,
    ) -> Result<Answer<R>, Miss> {
        if way == Way::Device {
            let buf = self.device(plan, blocks, &crcs).await?;
            return Ok((buf, crcs));
        }
        let lead = self.reads.borrow_mut().begin(plan.mark, blocks.clone());
        let came = self.note(plan);
        let buf = self.device(plan, blocks, &crcs).await?;
        self.reads.borrow_mut().land(lead, Some((&buf, &crcs)), came);
        Ok((buf, crcs))
    }

    /// Somebody else's read of the device answers.
    async fn read_joined(
        self: &Rc<Self>,
        plan: &Plan,
        flight: &Rc<Flight<R>>,
        blocks: Range<u32>,
        crcs: Vec<u32>,
    ) -> Result<Answer<R>, Miss> {
        let came = self.note(plan);
        // A small part of a large buffer is copied, so that it does not keep all of it.
        let is_small = blocks.len() * 2 < flight.blocks.len();
        let copy = if is_small { Some(self.io.rt.alloc(blocks.len() * PAGE).await) } else { None };
        let Some(landed) = flight.landed().await else {
            let buf = self.device(plan, blocks, &crcs).await?;
            return Ok((buf, crcs));
        };
        self.reads.borrow_mut().joined(plan.mark, flight, blocks.clone(), &landed, came);
        let Landed { buf, crcs } = self.part(&landed, &flight.blocks, &blocks);
        let buf = match copy {
            Some(mut copy) => {
                copy.as_mut().copy_from_slice(buf.as_ref());
                self.io.rt.freeze(copy)
            }
            None => buf,
        };
        Ok((buf, crcs.to_vec()))
    }

    /// Blocks from several places, put together.
    async fn read_mixed(
        self: &Rc<Self>,
        chunk: ChunkHandle,
        plan: &Plan,
        mut crcs: Vec<u32>,
        way: Way,
    ) -> Result<Answer<R>, Miss> {
        // What is read from the device is held beside the answer: by few at a time.
        let stopped = |_| StoreError::Fenced("the store is shut down".into());
        let permit = if crcs.is_empty() { None } else { Some(self.assembling.acquire().await.map_err(stopped)?) };
        let mut whole = self.io.rt.alloc(plan.count() * PAGE).await;
        self.same(plan)?;
        crcs.resize(plan.count(), 0);
        let pieces = self.pieces(chunk, plan, way);
        let first = plan.blocks.start;
        let place = |blocks: &Range<u32>| (blocks.start - first) as usize..(blocks.end - first) as usize;
        for blocks in
            pieces.iter().filter_map(|piece| if let Piece::Cached(blocks) = piece { Some(blocks) } else { None })
        {
            let (at, mut found) = (place(blocks), Vec::with_capacity(blocks.len()));
            if !self.copy_cached(
                plan.mark,
                blocks.start,
                &mut whole.as_mut()[at.start * PAGE..at.end * PAGE],
                &mut found,
            ) {
                return Err(Miss::Changed);
            }
            crcs[at].copy_from_slice(&found);
        }
        // All reads of the device are begun before anybody else's are waited for, so that two who join
        // each other's both get on.
        let begin = |piece: &Piece<R>| match piece {
            Piece::Device(blocks) if way == Way::Shared => {
                Some(self.reads.borrow_mut().begin(plan.mark, blocks.clone()))
            }
            _ => None,
        };
        let leads: Vec<Option<Lead<R>>> = pieces.iter().map(begin).collect();
        let came = if way == Way::Shared && !pieces.is_empty() { self.note(plan) } else { Came::Alone };
        let fetched = join_all(pieces.iter().zip(leads).map(|(piece, lead)| {
            let crcs = crcs.get(place(&piece.blocks())).unwrap_or_default();
            self.fetch(plan, piece, lead, crcs, came)
        }))
        .await;
        let bytes = whole.as_mut();
        for (piece, fetched) in pieces.iter().zip(fetched) {
            let Some(landed) = fetched? else { continue };
            let at = place(&piece.blocks());
            bytes[at.start * PAGE..at.end * PAGE].copy_from_slice(landed.buf.as_ref());
            crcs[at].copy_from_slice(&landed.crcs);
        }
        drop(permit);
        for (block, content) in &plan.memory {
            let at = (block - first) as usize;
            let page = &mut bytes[at * PAGE..(at + 1) * PAGE];
            let (held, rest) = page.split_at_mut(content.len());
            held.copy_from_slice(content);
            rest.fill(0);
            crcs[at] = crc32c::crc32c(page);
        }
        Ok((self.io.rt.freeze(whole), crcs))
    }

    /// Blocks from the device, by a read of one's own or of somebody else; `None` for those in memory.
    async fn fetch(
        &self,
        plan: &Plan,
        piece: &Piece<R>,
        lead: Option<Lead<R>>,
        crcs: &[u32],
        came: Came,
    ) -> Result<Option<Landed<R>>, Miss> {
        let blocks = match piece {
            Piece::Cached(_) => return Ok(None),
            Piece::Device(blocks) => blocks,
            Piece::Joined(flight, blocks) => {
                if let Some(landed) = flight.landed().await {
                    self.reads.borrow_mut().joined(plan.mark, flight, blocks.clone(), &landed, came);
                    return Ok(Some(self.part(&landed, &flight.blocks, blocks)));
                }
                blocks
            }
        };
        let buf = self.device(plan, blocks.clone(), crcs).await?;
        if let Some(lead) = lead {
            self.reads.borrow_mut().land(lead, Some((&buf, crcs)), came);
        }
        Ok(Some(Landed { buf, crcs: crcs.into() }))
    }

    /// A part of what landed, sharing its memory.
    fn part(&self, landed: &Landed<R>, all: &Range<u32>, part: &Range<u32>) -> Landed<R> {
        let (from, to) = ((part.start - all.start) as usize, (part.end - all.start) as usize);
        let buf = self.io.rt.slice(&landed.buf, from * PAGE..to * PAGE);
        Landed { buf, crcs: landed.crcs[from..to].into() }
    }

    /// Reads blocks from their places and verifies them. What is wrong is read again before it is called
    /// bad, unless the blocks have changed meanwhile.
    async fn device(&self, plan: &Plan, blocks: Range<u32>, crcs: &[u32]) -> Result<R::Buf, Miss> {
        let (slot, mark) = (plan.slot, plan.mark);
        let failed = |error: io::Error| Miss::Failed(StoreError::ReadFailed(error.to_string()));
        let file = self.file(slot).await.map_err(failed)?;
        let (len, at) = (blocks.len() * PAGE, u64::from(blocks.start) * u64::from(BLOCK));
        let mut tries = 0..3;
        loop {
            let read = self.io.read(&file, len, at).await;
            let bad = match &read {
                Ok(buf) => first_bad(buf.as_ref(), crcs),
                Err(_) => None,
            };
            let is_first = tries.next() == Some(0);
            match (read, bad) {
                (Ok(buf), None) => return Ok(buf),
                _ if !self.reads.borrow().is_current(mark, &blocks) => return Err(Miss::Changed),
                _ if is_first => {}
                (Ok(_), Some(bad)) => {
                    tracing::warn!(chunk = %mark.chunk, slot, block = blocks.start + bad, "block fails its checksum");
                    return Err(self.bad_block(mark.chunk, blocks.start + bad).into());
                }
                (Err(error), _) if tries.is_empty() => return Err(failed(error)),
                // One sector that cannot be read fails the whole call: find the block.
                (Err(error), _) => {
                    for block in blocks.clone() {
                        if self.io.read(&file, PAGE, u64::from(block) * u64::from(BLOCK)).await.is_err() {
                            tracing::warn!(chunk = %mark.chunk, slot, block, %error, "block cannot be read");
                            return Err(self.bad_block(mark.chunk, block).into());
                        }
                    }
                }
            }
        }
    }

    fn bad_block(&self, chunk: ChunkHandle, block: u32) -> StoreError {
        self.io.count(|counters| counters.bad_blocks += 1);
        self.reads.borrow_mut().found_bad(chunk, block);
        StoreError::BadBlock(block)
    }

    /// The checksums of blocks `first..end` of a chunk, read from the slot where they are not in memory.
    async fn block_crcs(&self, chunk: ChunkHandle, first: u32, end: u32) -> Result<Vec<u32>, StoreError> {
        // Mostly they are all here.
        if let Ok(crcs) = self.held_crcs(chunk, first, end) {
            return Ok(crcs);
        }
        self.load_crcs(chunk, first, end).await?;
        self.held_crcs(chunk, first, end).map_err(|error| match error {
            StoreError::BadBlock(block) => {
                tracing::warn!(%chunk, block, "block has no checksum that could be read");
                self.bad_block(chunk, block)
            }
            other => other,
        })
    }

    /// The checksums of blocks in memory; `BadBlock` names the first that has none.
    fn held_crcs(&self, chunk: ChunkHandle, first: u32, end: u32) -> Result<Vec<u32>, StoreError> {
        let mut state = self.state.borrow_mut();
        let held = state.chunks.get(&chunk).ok_or(StoreError::UnknownChunk)?;
        let table = &held.replica.crcs;
        let crcs = (first..end).map(|block| table.get(block).ok_or(StoreError::BadBlock(block))).collect();
        self.touch(&mut state, chunk);
        crcs
    }
}

/// Index of the first block whose bytes do not match.
fn first_bad(bytes: &[u8], crcs: &[u32]) -> Option<u32> {
    let blocks = bytes.as_chunks::<PAGE>().0;
    let bad = blocks.iter().zip(crcs).position(|(block, crc)| crc32c::crc32c(block) != *crc)?;
    u32::try_from(bad).ok()
}
