//! The content of one simulated file: blocks with their extent state, cheap to copy.

use std::sync::Arc;

use super::super::pool::PAGE;

/// Blocks under one counted pointer: 1 MiB of a file.
const SEGMENT_BLOCKS: usize = 256;

/// Sector: what a device writes whole or not at all.
pub(super) const SECTOR: usize = 512;

/// The content of one block.
pub(super) type Page = [u8; PAGE];

/// What the file system knows about a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Extent {
    /// Takes no space, reads as zeros.
    #[default]
    Hole,
    /// Takes space, reads as zeros whatever the device holds there.
    Unwritten,
    /// Reads as what the device holds.
    Written,
}

/// One block: `page` is what the device holds, `None` for zeros.
#[derive(Clone, Default)]
pub(super) struct Block {
    pub(super) extent: Extent,
    pub(super) page: Option<Arc<Page>>,
    /// Blocks of one group are one block of the device; 0: nobody shares it.
    pub(super) group: u64,
    /// Safe image only: data goes to a block that the file does not durably look at yet.
    pub(super) moving: bool,
    /// That block.
    pub(super) moved: Option<Arc<Page>>,
}

/// A file's blocks and length; a copy shares everything until one side changes it.
#[derive(Clone, Default)]
pub(super) struct Image {
    pub(super) len: u64,
    segments: Vec<Option<Arc<[Block; SEGMENT_BLOCKS]>>>,
}

impl Image {
    pub(super) fn block(&self, block: u64) -> Block {
        let (segment, index) = place(block);
        match self.segments.get(segment) {
            Some(Some(blocks)) => blocks[index].clone(),
            _ => Block::default(),
        }
    }

    pub(super) fn block_mut(&mut self, block: u64) -> &mut Block {
        let (segment, index) = place(block);
        if self.segments.len() <= segment {
            self.segments.resize(segment + 1, None);
        }
        let blocks = self.segments[segment].get_or_insert_with(|| Arc::new(std::array::from_fn(|_| Block::default())));
        &mut Arc::make_mut(blocks)[index]
    }

    /// Puts the sectors of `mask` (bit 0 is the first) of `page` on the device.
    pub(super) fn put(&mut self, block: u64, page: &Arc<Page>, mask: u8) {
        let block = self.block_mut(block);
        block.page = Some(merged(block.page.as_ref(), page, mask));
    }

    /// Blocks that were ever touched.
    pub(super) fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.segments.iter().flatten().flat_map(|segment| segment.iter())
    }

    /// Blocks that the file does not look at are gone.
    pub(super) fn forget_moves(&mut self) {
        for segment in self.segments.iter_mut().flatten() {
            if segment.iter().any(|block| block.moving) {
                for block in Arc::make_mut(segment) {
                    (block.moving, block.moved) = (false, None);
                }
            }
        }
    }

    /// Fills `into` from a block boundary on; bytes past the length of the file are zeros.
    pub(super) fn read(&self, offset: u64, into: &mut [u8]) {
        for (index, chunk) in (0u64..).zip(into.chunks_mut(PAGE)) {
            let block = self.block(offset / PAGE as u64 + index);
            match block.page {
                Some(page) if block.extent == Extent::Written => chunk.copy_from_slice(&page[..chunk.len()]),
                _ => chunk.fill(0),
            }
        }
    }

    /// Forgets what the device holds below unwritten extents: no file system shows it again.
    pub(super) fn hide_unwritten(&mut self) {
        for segment in self.segments.iter_mut().flatten() {
            if segment.iter().any(|block| block.extent != Extent::Written && block.page.is_some()) {
                for block in Arc::make_mut(segment).iter_mut().filter(|block| block.extent != Extent::Written) {
                    block.page = None;
                }
            }
        }
    }
}

/// `old` with the sectors of `mask` from `page`.
pub(super) fn merged(old: Option<&Arc<Page>>, page: &Arc<Page>, mask: u8) -> Arc<Page> {
    if mask == 0xFF {
        return Arc::clone(page);
    }
    let mut merged = old.map_or([0; PAGE], |old| **old);
    for sector in (0..PAGE / SECTOR).filter(|sector| mask & (1 << sector) != 0) {
        let range = sector * SECTOR..(sector + 1) * SECTOR;
        merged[range.clone()].copy_from_slice(&page[range]);
    }
    Arc::new(merged)
}

fn place(block: u64) -> (usize, usize) {
    let block = usize::try_from(block).unwrap_or(usize::MAX);
    (block / SEGMENT_BLOCKS, block % SEGMENT_BLOCKS)
}
