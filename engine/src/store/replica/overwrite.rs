//! OVERWRITE and REPAIR: records that carry whole new images of blocks.
//!
//! An image counts when its operation is complete (rule R16) and is applied in place by a checkpoint
//! (rule R3); until then it is in [`Redo`](super::redo::Redo). The image of the block that holds the
//! partial tail replaces the tail in memory: that block has no place yet.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use wire::Epoch;

use super::super::StoreError;
use super::super::header::SlotState;
use super::super::layout::{BLOCK, PAGE};
use super::super::page::Page;
use super::super::record::{Images, Op};
use super::redo::{BlockBytes, RedoImage, Seen};
use super::{Held, Replica, Tail, crcs_of_padded, shared};

/// Images of an operation that is not complete.
#[derive(Clone, Debug, Default)]
pub(super) struct HeldImages {
    /// There was an OVERWRITE part.
    pub(super) overwrites: bool,
    /// The newest of each block: checksum and bytes.
    pub(super) blocks: BTreeMap<u32, (u32, Rc<BlockBytes>)>,
}

/// What a block holds after everything that was accepted.
#[derive(Debug)]
pub(crate) enum Newest<'a> {
    /// In memory, whole.
    Image(&'a Page),
    /// The partial block in memory.
    Tail(&'a Tail),
    /// In its place, with this checksum.
    InPlace(u32),
    /// Its checksum is not in memory.
    Unknown,
}

/// What a read finds in one step.
#[derive(Debug, Default)]
pub(crate) struct SeenBlocks {
    /// Of each block.
    pub(crate) crcs: Vec<u32>,
    /// Blocks that come from memory, ascending.
    pub(crate) images: Vec<(u32, Rc<BlockBytes>)>,
}

impl Replica {
    /// Blocks that have a place: all of the content but a partial block that is in memory.
    pub(crate) fn blocks_in_place(&self) -> u32 {
        if self.tail.is_empty() { self.hdr.durable_len.div_ceil(BLOCK) } else { self.hdr.durable_len / BLOCK }
    }

    /// Whether this overwrite may follow.
    pub(crate) fn check_overwrite(&self, epoch: Epoch, op: &Op, offset: u32, length: u32) -> Result<(), StoreError> {
        self.check_entry(epoch, op.seq)?;
        if u64::from(offset) + u64::from(length) > u64::from(self.len()) {
            return Err(StoreError::BadRange);
        }
        self.check_part(op, offset, length)
    }

    /// The newest accepted content of a block below the end.
    pub(crate) fn newest(&self, block: u32) -> Newest<'_> {
        let held = self.held_op().and_then(|held| held.images.blocks.get(&block));
        if let Some((_, bytes)) = held {
            return Newest::Image(Rc::as_ref(bytes).as_ref());
        }
        if self.is_tail(block) {
            return Newest::Tail(self.open_tail());
        }
        if let Some(image) = self.redo.newest(block) {
            return Newest::Image(Rc::as_ref(&image.block).as_ref());
        }
        self.crcs.get(block).map_or(Newest::Unknown, Newest::InPlace)
    }

    /// Whether the block is the partial one at the end, which is in memory.
    fn is_tail(&self, block: u32) -> bool {
        !self.open_tail().is_empty() && block == self.len() / BLOCK
    }

    pub(super) fn overwrite(
        &mut self,
        lsn: u64,
        epoch: Epoch,
        op: &Op,
        (offset, length): (u32, u32),
        images: &Images<'_>,
    ) -> Result<(), StoreError> {
        self.check_overwrite(epoch, op, offset, length)?;
        let blocks = offset / BLOCK..(offset + length).div_ceil(BLOCK);
        if !images.blocks.iter().map(|(block, _)| *block).eq(blocks) {
            return Err(StoreError::BadRange);
        }
        self.claimed = self.claimed.max(op.committed_seq);
        let bytes = images.blocks.len() * PAGE;
        let mut tail = None;
        let mut new = BTreeMap::new();
        for ((block, crc), image) in pages(images) {
            if self.is_tail(block) {
                tail = Some(shared(&image[..self.open_tail().len()]));
            } else {
                new.insert(block, (crc, self.redo.copy(image)));
            }
        }
        if op.part + 1 < op.parts {
            let held = self.hold(lsn, op);
            held.reserved.give_back(bytes);
            held.images.overwrites = true;
            held.images.blocks.append(&mut new);
            held.next = offset + length;
            if let Some(tail) = tail {
                held.tail = tail;
            }
            return Ok(());
        }
        if let Some(Held { images, tail: held_tail, .. }) = self.held.take() {
            tail = tail.or(Some(held_tail));
            let mut all = images.blocks;
            all.append(&mut new);
            new = all;
        }
        if let Some(tail) = tail.filter(|tail| !Rc::ptr_eq(tail, &self.tail)) {
            if self.hdr.tail_goes_in_place() {
                // As at SEALED: the block goes in place with the next checkpoint.
                self.crcs.set(self.hdr.durable_len / BLOCK, &[crcs_of_padded(&tail)]);
            }
            self.tail = tail;
            self.tail_dirty = true;
        }
        self.put_images(lsn, new);
        self.hdr.last_seq = op.seq;
        self.hdr.last_overwrite_seq = op.seq;
        self.ends.push_back((op.seq, self.hdr.durable_len));
        self.complete(op);
        Ok(())
    }

    /// The images of a complete operation begin to count.
    pub(super) fn put_images(&mut self, lsn: u64, images: BTreeMap<u32, (u32, Rc<BlockBytes>)>) {
        for (block, (crc, bytes)) in images {
            let in_place_crc = self.crcs.get(block).unwrap_or_default();
            self.redo.put(block, RedoImage { lsn, crc, block: bytes }, in_place_crc);
            self.crcs.set(block, &[crc]);
        }
    }

    /// Whether blocks with these checksums may replace those here: equal ones may.
    pub(crate) fn check_repair(&self, blocks: &[(u32, u32)]) -> Result<(), StoreError> {
        if matches!(self.hdr.state, SlotState::Free | SlotState::Condemned) {
            return Err(StoreError::UnknownChunk);
        }
        let top = self.blocks_in_place();
        if blocks.is_empty() || blocks.iter().any(|(block, _)| *block >= top) {
            return Err(StoreError::BadRange);
        }
        for (block, crc) in blocks {
            match self.crcs.get(*block) {
                None => return Err(StoreError::BadBlock(*block)),
                Some(own) if own != *crc => return Err(StoreError::Mismatch),
                Some(_) => {}
            }
        }
        Ok(())
    }

    pub(super) fn repair(&mut self, lsn: u64, images: &Images<'_>) -> Result<(), StoreError> {
        self.check_repair(&images.blocks)?;
        for ((block, crc), image) in pages(images) {
            let bytes = self.redo.copy(image);
            self.redo.put(block, RedoImage { lsn, crc, block: bytes }, crc);
        }
        Ok(())
    }

    /// Bytes of images of the incomplete operation, those included that are still to come.
    pub(crate) fn held_images_len(&self) -> usize {
        self.held_op().map_or(0, |held| held.images.blocks.len() * PAGE + held.reserved.bytes())
    }

    /// What a read sees of blocks, all in place or with images, when records up to `durable_lsn` are
    /// durable. `other`: checksums of blocks in place that the table does not have. There will be room for
    /// `room` checksums. `Err`: the first block whose checksum is not in memory.
    pub(crate) fn seen(
        &self,
        blocks: Range<u32>,
        room: usize,
        durable_lsn: u64,
        other: impl Fn(u32) -> Option<u32>,
    ) -> Result<SeenBlocks, u32> {
        // Without images nothing is allocated but the checksums.
        let mut seen = SeenBlocks { crcs: Vec::with_capacity(room), images: Vec::new() };
        let first_image = self.redo.first_from(blocks.start).unwrap_or(u32::MAX);
        for block in blocks {
            let own = if block >= first_image { self.redo.seen(block, durable_lsn) } else { None };
            let crc = match own {
                Some(Seen::Image(image)) => {
                    seen.images.push((block, image.block));
                    image.crc
                }
                Some(Seen::InPlace(crc)) => crc,
                None => self.crcs.get(block).or_else(|| other(block)).ok_or(block)?,
            };
            seen.crcs.push(crc);
        }
        Ok(seen)
    }
}

fn pages<'a>(images: &'a Images<'_>) -> impl Iterator<Item = ((u32, u32), &'a Page)> {
    images.blocks.iter().copied().zip(images.images.as_chunks::<PAGE>().0)
}

/// Blocks that `length` bytes from `offset` on touch.
pub(crate) fn image_blocks(offset: u32, length: u32) -> u32 {
    (offset + length).div_ceil(BLOCK) - offset / BLOCK
}

/// Bytes of images of a whole operation in a chunk of `len` bytes, at most.
pub(crate) fn images_len(op: &Op, len: u32) -> usize {
    let below = op.off.saturating_add(op.len).min(len).saturating_sub(op.off);
    if below == 0 {
        return 0;
    }
    // Two parts may share a block.
    (image_blocks(op.off, below) as usize + usize::from(op.parts - 1)) * PAGE
}
