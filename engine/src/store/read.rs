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
use super::reads::{Flight, Lead, Mark, Piece, SCAN};
use super::replica::{BlockBytes, SeenBlocks, Tail, crcs_of_padded};
use super::shard::{Chunk, Inner, Store};
use super::types::{BadBlock, Blocks, Upto};
use crate::runtime::Runtime;

/// Most bytes of blocks that one read touches.
pub(crate) const READ_MAX: u32 = 1 << 20;

/// How often a read begins because blocks changed under it.
const TRIES_MAX: u32 = 8;

/// How often it takes what others have, before it goes to the device.
const SHARED_TRIES_MAX: u32 = 3;

/// Whether a read shares what others read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From memory, from others' reads, and read ahead.
    Shared,
    /// From the device, whatever is in memory.
    Device,
}

/// What a read needs of a chunk, taken in one step: of one state, that of the last durable group.
struct Plan {
    /// Where the chunk stood.
    mark: Mark,
    slot: u32,
    users: Rc<()>,
    /// Blocks it touches.
    blocks: Range<u32>,
    /// Blocks of the chunk that have a place.
    in_place: u32,
    /// Where what may be read ahead ends.
    ahead_end: u32,
    /// Checksums of the blocks, wherever they come from.
    crcs: Vec<u32>,
    /// Images of blocks that are in memory, ascending. Their places are not read: they may not be readable.
    images: Vec<(u32, Rc<BlockBytes>)>,
    /// The partial block behind all others, when it is touched and has no place.
    tail: Option<Tail>,
    len: u32,
}

impl Plan {
    fn count(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that come from the replica's own memory.
    fn in_memory(&self) -> usize {
        self.images.len() + usize::from(self.tail.is_some())
    }

    /// The ranges of blocks that are read from their places.
    fn placed(&self) -> impl Iterator<Item = Range<u32>> + '_ {
        let end = self.blocks.end - u32::from(self.tail.is_some());
        let starts = std::iter::once(self.blocks.start).chain(self.images.iter().map(|(block, _)| block + 1));
        let ends = self.images.iter().map(|(block, _)| *block).chain(std::iter::once(end));
        starts.zip(ends).map(|(start, end)| start..end).filter(|range| !range.is_empty())
    }

    /// Where blocks are in the answer.
    fn place(&self, blocks: &Range<u32>) -> Range<usize> {
        (blocks.start - self.blocks.start) as usize..(blocks.end - self.blocks.start) as usize
    }

    fn crcs_of(&self, blocks: &Range<u32>) -> &[u32] {
        &self.crcs[self.place(blocks)]
    }
}

/// What to do about a read.
enum Planned {
    /// The limit is at or below the offset.
    Nothing,
    /// Checksums of these blocks come first.
    Load(Range<u32>),
    /// The checksum of this block is lost.
    Damaged(u32),
    Read(Plan),
}

/// Why a read came to nothing.
enum Miss {
    /// The blocks changed meanwhile, or memory did not have them any more: it begins again.
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

impl<R: Runtime> Inner<R> {
    pub(crate) async fn read(
        self: &Rc<Self>,
        chunk: ChunkHandle,
        offset: u32,
        len: u32,
        upto: Upto,
        way: Way,
    ) -> Result<Blocks<R::Buf>, StoreError> {
        let mut tries = 0;
        loop {
            // What others have is asked for a few times only.
            let way = if tries < SHARED_TRIES_MAX { way } else { Way::Device };
            let plan = match self.plan(chunk, offset, len, upto, way)? {
                Planned::Read(plan) => plan,
                Planned::Load(blocks) => {
                    self.load_crcs(chunk, blocks.start, blocks.end).await?;
                    continue;
                }
                Planned::Damaged(block) => {
                    tracing::warn!(%chunk, block, "block has no checksum that could be read");
                    return Err(self.bad_block(chunk, block));
                }
                Planned::Nothing => {
                    let buf = self.io.rt.freeze(self.io.rt.alloc(PAGE).await);
                    let buf = self.io.rt.slice(&buf, 0..0);
                    return Ok(Blocks { buf, offset: align_down(offset), len: 0, crcs: Vec::new() });
                }
            };
            tries += 1;
            match self.read_planned(&plan, way).await {
                Ok(buf) => {
                    return Ok(Blocks { buf, offset: plan.blocks.start * BLOCK, len: plan.len, crcs: plan.crcs });
                }
                Err(Miss::Failed(error)) => return Err(error),
                Err(Miss::Changed) if tries == TRIES_MAX => return Err(StoreError::Busy),
                Err(Miss::Changed) => {}
            }
        }
    }

    /// What to read, decided in one step: one state of the chunk.
    fn plan(&self, handle: ChunkHandle, offset: u32, len: u32, upto: Upto, way: Way) -> Result<Planned, StoreError> {
        let mut state = self.state.borrow_mut();
        let chunk = state.live(handle)?;
        let Some((blocks, len)) = touched(chunk, offset, len, upto)? else { return Ok(Planned::Nothing) };
        let in_place = in_place(chunk);
        let placed_end = blocks.end.min(in_place).max(blocks.start);
        let mut reads = self.reads.borrow_mut();
        let mark = reads.mark(handle);
        // Of a block in memory the checksum is there too.
        let other = |block| if way == Way::Shared { reads.crc(mark, block) } else { None };
        let seen = chunk.replica.seen(blocks.start..placed_end, blocks.len(), state.log.durable_lsn, other);
        let SeenBlocks { mut crcs, images } = match seen {
            Ok(seen) => seen,
            Err(block) if chunk.replica.crcs.missing(block, block + 1).is_none() => return Ok(Planned::Damaged(block)),
            Err(_) => return Ok(Planned::Load(blocks.start..placed_end)),
        };
        let tail = (blocks.end > in_place).then(|| Rc::clone(&chunk.durable.tail));
        crcs.extend(tail.as_deref().map(crcs_of_padded));
        let plan = Plan {
            mark,
            slot: chunk.slot(),
            users: Rc::clone(&chunk.users),
            in_place,
            ahead_end: chunk.replica.redo.first_from(blocks.end).map_or(in_place, |image| image.min(in_place)),
            crcs,
            images,
            tail,
            len,
            blocks,
        };
        drop(reads);
        self.touch(&mut state, handle);
        Ok(Planned::Read(plan))
    }

    async fn read_planned(self: &Rc<Self>, plan: &Plan, way: Way) -> Result<R::Buf, Miss> {
        let all_placed = plan.in_memory() == 0;
        if way == Way::Shared && all_placed && self.reads.borrow().has_all(plan.mark, plan.blocks.clone()) {
            return self.read_cached(plan).await;
        }
        let pieces = self.pieces(plan, way);
        if let ([piece], true) = (&pieces[..], all_placed) {
            match piece {
                Piece::Device(blocks) => return self.read_one(plan, blocks, way).await,
                Piece::Joined(flight, blocks) => return self.read_joined(plan, flight, blocks).await,
                Piece::Cached(_) => {}
            }
        }
        self.read_mixed(plan, way).await
    }

    /// Nothing is shared under the name of a chunk that has become another one meanwhile.
    fn same(&self, plan: &Plan) -> Result<(), Miss> {
        if self.reads.borrow().is_same(plan.mark) { Ok(()) } else { Err(Miss::Changed) }
    }

    /// Where the blocks in place come from.
    fn pieces(&self, plan: &Plan, way: Way) -> Vec<Piece<R>> {
        let chunk = plan.mark.chunk;
        match way {
            Way::Device => plan.placed().map(Piece::Device).collect(),
            Way::Shared if plan.in_memory() == 0 => self.reads.borrow_mut().pieces(chunk, plan.blocks.clone()),
            Way::Shared => plan.placed().flat_map(|range| self.reads.borrow_mut().pieces(chunk, range)).collect(),
        }
    }

    /// All blocks from memory, if they are still there.
    async fn read_cached(self: &Rc<Self>, plan: &Plan) -> Result<R::Buf, Miss> {
        let mut buf = self.io.rt.alloc(plan.count() * PAGE).await;
        self.copy_cached(plan, &plan.blocks, buf.as_mut())?;
        self.note(plan);
        Ok(self.io.rt.freeze(buf))
    }

    fn copy_cached(&self, plan: &Plan, blocks: &Range<u32>, into: &mut [u8]) -> Result<(), Miss> {
        let into = into.as_chunks_mut::<PAGE>().0;
        let found = self.reads.borrow_mut().copy(plan.mark, blocks.start, into, plan.crcs_of(blocks));
        if found { Ok(()) } else { Err(Miss::Changed) }
    }

    /// Tells the read-ahead about a read, and starts what it wants. Gives how the blocks came.
    fn note(self: &Rc<Self>, plan: &Plan) -> Came {
        let rt = &self.io.rt;
        let end = plan.in_place;
        let (is_scan, lead) =
            self.reads.borrow_mut().follow(plan.mark, plan.blocks.clone(), plan.ahead_end, |len| rt.has_room(len));
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
        let crcs = loaded.ok().and_then(|()| self.crcs_in_place(mark.chunk, &blocks));
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

    /// The checksums of blocks; `None` when one is not in memory, or a block is in memory and not in place.
    fn crcs_in_place(&self, chunk: ChunkHandle, blocks: &Range<u32>) -> Option<Vec<u32>> {
        let state = self.state.borrow();
        let replica = &state.chunks.get(&chunk)?.replica;
        let seen = replica.seen(blocks.clone(), blocks.len(), state.log.durable_lsn, |_| None).ok()?;
        seen.images.is_empty().then_some(seen.crcs)
    }

    /// One read of the device answers.
    async fn read_one(self: &Rc<Self>, plan: &Plan, blocks: &Range<u32>, way: Way) -> Result<R::Buf, Miss> {
        if way == Way::Device {
            return self.device(plan, blocks).await;
        }
        let lead = self.reads.borrow_mut().begin(plan.mark, blocks.clone());
        let came = self.note(plan);
        let buf = self.device(plan, blocks).await?;
        self.reads.borrow_mut().land(lead, Some((&buf, plan.crcs_of(blocks))), came);
        Ok(buf)
    }

    /// Somebody else's read of the device answers.
    async fn read_joined(
        self: &Rc<Self>,
        plan: &Plan,
        flight: &Rc<Flight<R>>,
        blocks: &Range<u32>,
    ) -> Result<R::Buf, Miss> {
        let came = self.note(plan);
        // A small part of a large buffer is copied, so that it does not keep all of it.
        let is_small = blocks.len() * 2 < flight.blocks.len();
        let copy = if is_small { Some(self.io.rt.alloc(blocks.len() * PAGE).await) } else { None };
        let Some(buf) = self.join(plan, flight, blocks, came).await? else {
            return self.device(plan, blocks).await;
        };
        Ok(match copy {
            Some(mut copy) => {
                copy.as_mut().copy_from_slice(buf.as_ref());
                self.io.rt.freeze(copy)
            }
            None => buf,
        })
    }

    /// What somebody else's read brings, if it is of the same state; `None` when it brings nothing.
    async fn join(
        &self,
        plan: &Plan,
        flight: &Rc<Flight<R>>,
        blocks: &Range<u32>,
        came: Came,
    ) -> Result<Option<R::Buf>, Miss> {
        let Some(landed) = flight.landed().await else { return Ok(None) };
        let (from, to) = ((blocks.start - flight.blocks.start) as usize, (blocks.end - flight.blocks.start) as usize);
        if landed.crcs[from..to] != *plan.crcs_of(blocks) {
            return Err(Miss::Changed);
        }
        self.reads.borrow_mut().joined(plan.mark, flight, blocks.clone(), &landed, came);
        Ok(Some(self.io.rt.slice(&landed.buf, from * PAGE..to * PAGE)))
    }

    /// Blocks from several places, put together.
    async fn read_mixed(self: &Rc<Self>, plan: &Plan, way: Way) -> Result<R::Buf, Miss> {
        // What is read from the device is held beside the answer: by few at a time.
        let stopped = |_| StoreError::Fenced("the store is shut down".into());
        let permit = match plan.placed().next() {
            Some(_) => Some(self.assembling.acquire().await.map_err(stopped)?),
            None => None,
        };
        let mut whole = self.io.rt.alloc(plan.count() * PAGE).await;
        self.same(plan)?;
        let pieces = self.pieces(plan, way);
        for piece in &pieces {
            if let Piece::Cached(blocks) = piece {
                self.copy_cached(plan, blocks, part_of(whole.as_mut(), plan, blocks))?;
            }
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
        let fetched = join_all(pieces.iter().zip(leads).map(|(piece, lead)| self.fetch(plan, piece, lead, came))).await;
        for (piece, fetched) in pieces.iter().zip(fetched) {
            let Some(buf) = fetched? else { continue };
            part_of(whole.as_mut(), plan, &piece.blocks()).copy_from_slice(buf.as_ref());
        }
        drop(permit);
        for (block, image) in &plan.images {
            part_of(whole.as_mut(), plan, &(*block..block + 1)).copy_from_slice(Rc::as_ref(image).as_ref());
        }
        if let Some(tail) = &plan.tail {
            let page = part_of(whole.as_mut(), plan, &(plan.blocks.end - 1..plan.blocks.end));
            let (held, rest) = page.split_at_mut(tail.len());
            held.copy_from_slice(tail);
            rest.fill(0);
        }
        Ok(self.io.rt.freeze(whole))
    }

    /// Blocks from the device, by a read of one's own or of somebody else; `None` for those in memory.
    async fn fetch(
        &self,
        plan: &Plan,
        piece: &Piece<R>,
        lead: Option<Lead<R>>,
        came: Came,
    ) -> Result<Option<R::Buf>, Miss> {
        let blocks = match piece {
            Piece::Cached(_) => return Ok(None),
            Piece::Device(blocks) => blocks,
            Piece::Joined(flight, blocks) => {
                if let Some(buf) = self.join(plan, flight, blocks, came).await? {
                    return Ok(Some(buf));
                }
                blocks
            }
        };
        let buf = self.device(plan, blocks).await?;
        if let Some(lead) = lead {
            self.reads.borrow_mut().land(lead, Some((&buf, plan.crcs_of(blocks))), came);
        }
        Ok(Some(buf))
    }

    /// Reads blocks from their places and verifies them. What is wrong is read again before it is called
    /// bad, unless the blocks have changed meanwhile.
    async fn device(&self, plan: &Plan, blocks: &Range<u32>) -> Result<R::Buf, Miss> {
        let (slot, mark, crcs) = (plan.slot, plan.mark, plan.crcs_of(blocks));
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
                _ if !self.reads.borrow().is_current(mark, blocks) => return Err(Miss::Changed),
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
}

/// The blocks that a read touches, and the length of its answer; `None` when the limit is at or below `offset`.
fn touched<R: Runtime>(
    chunk: &Chunk<R>,
    offset: u32,
    len: u32,
    upto: Upto,
) -> Result<Option<(Range<u32>, u32)>, StoreError> {
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
    Ok((end > offset).then(|| (offset / BLOCK..end.div_ceil(BLOCK), end - align_down(offset))))
}

/// Blocks of the durable content that have a place: all but a partial one that is still in memory.
pub(super) fn in_place<R: Runtime>(chunk: &Chunk<R>) -> u32 {
    if chunk.durable.tail.is_empty() { chunk.durable.len.div_ceil(BLOCK) } else { chunk.durable.len / BLOCK }
}

/// The place of blocks in the answer.
fn part_of<'a>(whole: &'a mut [u8], plan: &Plan, blocks: &Range<u32>) -> &'a mut [u8] {
    let at = plan.place(blocks);
    &mut whole[at.start * PAGE..at.end * PAGE]
}

/// Index of the first block whose bytes do not match.
fn first_bad(bytes: &[u8], crcs: &[u32]) -> Option<u32> {
    let blocks = bytes.as_chunks::<PAGE>().0;
    let bad = blocks.iter().zip(crcs).position(|(block, crc)| crc32c::crc32c(block) != *crc)?;
    u32::try_from(bad).ok()
}
