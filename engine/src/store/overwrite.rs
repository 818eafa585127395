//! Overwrites below the end of an open chunk: whole new images of the blocks they touch go into the
//! journal, and in place with a checkpoint (rule R3).
//!
//! A block that is covered in part is merged with what it holds, which is verified first (rule R20),
//! and that may need a read. So there are two steps: [`Store::prepare_overwrite`] reads and changes
//! nothing; [`Store::overwrite`] accepts in one step, like an append, so the order of calls is the
//! order of the log. What was read counts only if it is still the newest content when the entry is
//! accepted; an image in memory is always preferred to it.

use std::future::Future;
use std::rc::Rc;

use wire::ChunkHandle;

use super::StoreError;
use super::append::{content, op_of};
use super::canary::weakened;
use super::layout::{BLOCK, CHUNK_CAPACITY, PAGE, PART_MAX};
use super::log::Class;
use super::page::{self, Page};
use super::record::{BODY_LEN_MAX, Body, Images};
use super::replica::{Newest, Replica, image_blocks};
use super::shard::{Inner, State, Store};
use super::types::{Entry, Upto};
use crate::runtime::Runtime;

/// Images that a shard holds at most, in bytes: of operations that are complete and not in place, of
/// those that are not complete, and those that a checkpoint is writing.
pub(crate) const REDO_MAX: usize = 64 << 20;

/// So many start a checkpoint: while it writes these, as many may come.
pub(crate) const REDO_CHECKPOINT: usize = REDO_MAX / 2;

/// The blocks that an overwrite covers in part, as they were when they were read: at most the first
/// and the last. Made by [`Store::prepare_overwrite`]; it reserves nothing, dropping it does nothing.
#[derive(Clone, Debug, Default)]
pub struct Edges {
    blocks: Vec<Edge>,
}

#[derive(Clone, Debug)]
struct Edge {
    block: u32,
    crc: u32,
    bytes: Box<Page>,
}

impl<R: Runtime> Store<R> {
    /// Reads and verifies what an overwrite of `[offset, offset+length)` must be merged with; blocks
    /// whose newest content is in memory are not read. May run ahead of its turn and beside others, as
    /// soon as the range lies below the end. Changes nothing.
    ///
    /// # Errors
    ///
    /// `BadBlock` when such a block fails its checksum: the overwrite would be merged into rot;
    /// `BadRange` for more than 1 MiB or what is not below the end; `UnknownChunk`; `ReadFailed`; `Busy` when
    /// the blocks are overwritten all the time.
    pub async fn prepare_overwrite(&self, chunk: ChunkHandle, offset: u32, length: u32) -> Result<Edges, StoreError> {
        let inner = &self.inner;
        inner.check()?;
        let end = u64::from(offset) + u64::from(length);
        if length == 0 || length > PART_MAX || end > u64::from(CHUNK_CAPACITY) {
            return Err(StoreError::BadRange);
        }
        let (first, last) = (offset / BLOCK, offset / BLOCK + image_blocks(offset, length) - 1);
        {
            let state = inner.state.borrow();
            if end > u64::from(state.live(chunk)?.replica.len()) {
                return Err(StoreError::BadRange);
            }
        }
        if inner.is_shared(chunk)? {
            self.unshare(chunk, offset, length).await?;
        }
        // What the checksums are now must be known of every block that gets an image.
        let known = inner.state.borrow().live(chunk)?.replica.blocks_in_place();
        inner.load_crcs(chunk, first.min(known), (last + 1).min(known)).await?;
        let mut edges = Edges::default();
        for block in [first, last] {
            let twice = edges.blocks.iter().any(|edge| edge.block == block);
            if twice || covers(offset, length, block) {
                continue;
            }
            edges.blocks.extend(self.edge(chunk, block).await?);
        }
        Ok(edges)
    }

    /// Accepts one entry whose bytes lie below the end (state, view and dedup change before this
    /// returns) and returns a future that resolves when it and all before it are durable here.
    /// Dropping the future does not undo anything. An operation may have several parts, those that
    /// lie below the end first and then [appends](Store::append); it is read when it is complete and
    /// durable, all of it at once. `payload` as for an append; `edges`: from
    /// [`Store::prepare_overwrite`] for exactly this range.
    ///
    /// # Errors
    ///
    /// Nothing is changed: `UnknownChunk`, `Rwr`, `Sealed`, `StaleEpoch`, `NotNext`; `BadRange`, also
    /// for an operation that is too large for the journal, however empty; `BadBlock` when checksums are
    /// damaged; `Busy` when the journal, the memory for images or the dedup table is full, or a block
    /// was written and forgotten since it was prepared: prepare again. The future: `Fenced`, the
    /// outcome is unknown.
    pub fn overwrite(
        &self,
        entry: &Entry,
        payload: &R::Buf,
        edges: &Edges,
    ) -> Result<impl Future<Output = Result<(), StoreError>> + use<R>, StoreError> {
        let inner = &self.inner;
        inner.check()?;
        let op = op_of(entry);
        if entry.length > PART_MAX || entry.part >= entry.parts {
            return Err(StoreError::BadRange);
        }
        let images = {
            let mut state = inner.state.borrow_mut();
            let replica = &state.live(entry.chunk)?.replica;
            replica.check_overwrite(entry.epoch, &op, entry.offset, entry.length)?;
            let bytes = content(payload, entry.length, &entry.crcs)?;
            let whole = super::replica::images_len(&op, replica.hdr.durable_len);
            if entry.part == 0 {
                inner.admit_images(&mut state, whole, entry.parts > 1)?;
            }
            merge(&state.live(entry.chunk)?.replica, entry, bytes, edges)?
        };
        // An operation that has begun must be able to end: its parts hold back a checkpoint until then.
        let class = if entry.part > 0 { Class::Control } else { Class::Work };
        let Merged { blocks, bytes } = images;
        let images = Images { blocks, images: &bytes };
        let body = Body::Overwrite { op, offset: entry.offset, length: entry.length, images };
        let done = inner.accept(entry.chunk, entry.epoch, 0, &body, class)?;
        if weakened!(OverwriteInPlace) {
            let file = inner.state.borrow().live(entry.chunk)?.file.clone().ok_or(StoreError::UnknownChunk)?;
            inner.put_at_once(entry.chunk, file, entry.offset / BLOCK, bytes);
        }
        Ok(done.wait())
    }

    /// The newest content of a block, verified; `None` when it is in memory.
    async fn edge(&self, chunk: ChunkHandle, block: u32) -> Result<Option<Edge>, StoreError> {
        let inner = &self.inner;
        let in_flight = {
            let state = inner.state.borrow();
            let chunk = state.live(chunk)?;
            if !matches!(chunk.replica.newest(block), Newest::InPlace(_) | Newest::Unknown) {
                return Ok(None);
            }
            block >= chunk.durable.len / BLOCK
        };
        if in_flight {
            // An append has written it, or is about to.
            inner.flushed().await?;
        }
        if weakened!(MergedUnverified) {
            return self.unverified(chunk, block).await.map(Some);
        }
        let read = self.read(chunk, block * BLOCK, BLOCK, Upto::Durable).await?;
        let (bytes, crc) = (read.buf.as_ref().first_chunk::<PAGE>(), read.crcs.first());
        match (bytes, crc) {
            (Some(bytes), Some(crc)) => Ok(Some(Edge { block, crc: *crc, bytes: Box::new(*bytes) })),
            _ => Err(StoreError::BadRange),
        }
    }

    /// What rule R20 forbids: only ever called by a planted bug.
    async fn unverified(&self, chunk: ChunkHandle, block: u32) -> Result<Edge, StoreError> {
        let inner = &self.inner;
        let (slot, crc) = {
            let state = inner.state.borrow();
            let chunk = state.live(chunk)?;
            let Newest::InPlace(crc) = chunk.replica.newest(block) else { return Err(StoreError::Busy) };
            (chunk.slot(), crc)
        };
        let failed = |error: std::io::Error| StoreError::ReadFailed(error.to_string());
        let file = inner.file(slot).await.map_err(failed)?;
        let read = inner.io.read(&file, PAGE, u64::from(block) * u64::from(BLOCK)).await.map_err(failed)?;
        let bytes = read.as_ref().first_chunk::<PAGE>().ok_or(StoreError::BadRange)?;
        Ok(Edge { block, crc, bytes: Box::new(*bytes) })
    }
}

impl<R: Runtime> Inner<R> {
    /// Whether `bytes` of new images may be journaled and kept in memory. What comes in parts is held
    /// back until the last, and may not keep half of the journal (rule R16).
    pub(crate) fn admit_images(
        self: &Rc<Self>,
        state: &mut State<R>,
        bytes: usize,
        in_parts: bool,
    ) -> Result<(), StoreError> {
        // With the images go at most 8 bytes per block and a header per record.
        let records = bytes.div_ceil(BODY_LEN_MAX as usize).max(1);
        let journal = bytes + bytes / PAGE * 8 + records * 2 * PAGE;
        if bytes > REDO_MAX || !state.log.fits_empty(if in_parts { 2 * journal } else { journal }) {
            return Err(StoreError::BadRange);
        }
        let fits_memory = self.redo.bytes() + bytes <= REDO_MAX;
        state.images_refused |= !fits_memory;
        // What is kept for the control records is not begun with: all of an operation fits before it.
        if !fits_memory || !state.log.has_space(journal) {
            self.checkpoint_soon(state);
            return Err(StoreError::Busy);
        }
        Ok(())
    }
}

/// Whether the range covers the whole block.
fn covers(offset: u32, length: u32, block: u32) -> bool {
    offset <= block * BLOCK && offset + length >= (block + 1) * BLOCK
}

/// Blocks as they will be.
struct Merged {
    blocks: Vec<(u32, u32)>,
    bytes: Vec<u8>,
}

/// The payload laid over what the blocks hold.
fn merge(replica: &Replica, entry: &Entry, payload: &[u8], edges: &Edges) -> Result<Merged, StoreError> {
    let (offset, length) = (entry.offset, entry.length);
    let count = image_blocks(offset, length);
    let mut merged =
        Merged { blocks: Vec::with_capacity(count as usize), bytes: Vec::with_capacity(count as usize * PAGE) };
    for block in offset / BLOCK..offset / BLOCK + count {
        let (start, end) = (offset.max(block * BLOCK), (offset + length).min((block + 1) * BLOCK));
        let piece = &payload[(start - offset) as usize..(end - offset) as usize];
        if covers(offset, length, block) {
            // Its own checksum must be known, or what is in place could not be told from rot.
            if matches!(replica.newest(block), Newest::Unknown) {
                return Err(unknown(replica, block));
            }
            merged.bytes.extend_from_slice(piece);
            let own = offset.is_multiple_of(BLOCK).then(|| entry.crcs[((start - offset) / BLOCK) as usize]);
            merged.blocks.push((block, own.unwrap_or_else(|| crc32c::crc32c(piece))));
            continue;
        }
        let mut image = before(replica, block, edges)?;
        let at = (start - block * BLOCK) as usize;
        image[at..at + piece.len()].copy_from_slice(piece);
        merged.blocks.push((block, crc32c::crc32c(image.as_slice())));
        merged.bytes.extend_from_slice(image.as_slice());
    }
    Ok(merged)
}

/// What a block holds before it is overwritten in part.
fn before(replica: &Replica, block: u32, edges: &Edges) -> Result<Box<Page>, StoreError> {
    match replica.newest(block) {
        Newest::Image(bytes) => Ok(Box::new(*bytes)),
        Newest::Tail(tail) => Ok(page::padded(tail)),
        Newest::Unknown => Err(unknown(replica, block)),
        Newest::InPlace(crc) => {
            let read = edges.blocks.iter().find(|edge| edge.block == block && edge.crc == crc);
            read.map(|edge| edge.bytes.clone()).ok_or(StoreError::Busy)
        }
    }
}

/// A checksum that is not in memory: damaged, or dropped since it was loaded.
fn unknown(replica: &Replica, block: u32) -> StoreError {
    if replica.crcs.missing(block, block + 1).is_some() { StoreError::Busy } else { StoreError::BadBlock(block) }
}
