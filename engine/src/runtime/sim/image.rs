//! The content of one simulated file: blocks with their extent state, cheap to copy and to compare.

use std::sync::Arc;

use super::super::pool::PAGE;
use super::rng::mix;

/// Blocks under one counted pointer: 128 KiB of a file.
const SEGMENT_BLOCKS: usize = 32;

/// Sector: what a device writes whole or not at all.
pub(super) const SECTOR: usize = 512;

/// The content of one block, and a hash of it.
#[derive(Clone)]
pub(super) struct Page {
    bytes: [u8; PAGE],
    hash: u64,
}

impl Page {
    pub(super) fn new(bytes: &[u8; PAGE]) -> Arc<Self> {
        Arc::new(Self { hash: xxhash_rust::xxh3::xxh3_64(bytes), bytes: *bytes })
    }

    pub(super) fn bytes(&self) -> &[u8; PAGE] {
        &self.bytes
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    /// Sectors (bit 0 is the first) that differ from `other`, `None` for zeros.
    pub(super) fn differing(&self, other: Option<&Self>) -> u8 {
        let zeros = [0; SECTOR];
        (0..PAGE / SECTOR).fold(0, |mask, sector| {
            let range = sector * SECTOR..(sector + 1) * SECTOR;
            let old = other.map_or(&zeros[..], |other| &other.bytes[range.clone()]);
            mask | u8::from(self.bytes[range] != *old) << sector
        })
    }
}

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

impl Block {
    /// Part of the hash of an image; nothing for a block that was never touched.
    fn hash(&self, at: u64) -> u64 {
        let page = self.page.as_ref().map_or(0, |page| page.hash());
        match self.extent {
            Extent::Hole if page == 0 => 0,
            extent => {
                let what = (extent as u64) | u64::from(self.group != 0) << 2;
                mix(mix(page ^ (at << 8) ^ what).wrapping_add(at))
            }
        }
    }

    fn is_shared(&self) -> bool {
        self.group != 0 || self.moving
    }
}

type Segment = [Block; SEGMENT_BLOCKS];

/// A file's blocks and length; a copy shares everything until one side changes it.
#[derive(Clone, Default)]
pub(super) struct Image {
    pub(super) len: u64,
    /// By number, ascending; those without a block are absent.
    segments: Vec<(u64, Arc<Segment>)>,
    allocated: u64,
    /// Blocks of a group, or moving.
    shared: u64,
    hash: u64,
}

impl Image {
    pub(super) fn block(&self, block: u64) -> Option<&Block> {
        let (segment, index) = place(block);
        let at = self.segments.binary_search_by_key(&segment, |(number, _)| *number).ok()?;
        Some(&self.segments[at].1[index])
    }

    pub(super) fn extent(&self, block: u64) -> Extent {
        self.block(block).map_or(Extent::Hole, |block| block.extent)
    }

    /// What the device holds there.
    pub(super) fn page(&self, block: u64) -> Option<&Arc<Page>> {
        self.block(block)?.page.as_ref()
    }

    /// Changes a block.
    pub(super) fn change(&mut self, block: u64, change: impl FnOnce(&mut Block)) {
        let (segment, index) = place(block);
        let at = match self.segments.binary_search_by_key(&segment, |(number, _)| *number) {
            Ok(at) => at,
            Err(at) => {
                self.segments.insert(at, (segment, Arc::new(std::array::from_fn(|_| Block::default()))));
                at
            }
        };
        let changed = &mut Arc::make_mut(&mut self.segments[at].1)[index];
        self.hash = self.hash.wrapping_sub(changed.hash(block));
        self.allocated -= u64::from(changed.extent != Extent::Hole);
        self.shared -= u64::from(changed.is_shared());
        change(changed);
        self.hash = self.hash.wrapping_add(changed.hash(block));
        self.allocated += u64::from(changed.extent != Extent::Hole);
        self.shared += u64::from(changed.is_shared());
    }

    /// Puts the sectors of `mask` (bit 0 is the first) of `page` on the device.
    pub(super) fn put(&mut self, block: u64, page: &Arc<Page>, mask: u8) {
        self.change(block, |block| block.page = Some(merged(block.page.as_ref(), page, mask)));
    }

    /// Blocks that were ever touched, when one is shared or moves; else none.
    pub(super) fn blocks_if_shared(&self) -> impl Iterator<Item = &Block> {
        let segments = if self.shared == 0 { &[][..] } else { &self.segments };
        segments.iter().flat_map(|(_, segment)| segment.iter())
    }

    /// Blocks that the file does not look at are gone.
    pub(super) fn forget_moves(&mut self) {
        for at in self.numbers_of(|block| block.moving) {
            self.change(at, |block| (block.moving, block.moved) = (false, None));
        }
    }

    fn numbers_of(&self, of: impl Fn(&Block) -> bool) -> Vec<u64> {
        let numbered = |(number, segment): &(u64, Arc<Segment>)| {
            let first = number * SEGMENT_BLOCKS as u64;
            (first..).zip(segment.iter()).filter(|(_, block)| of(block)).map(|(at, _)| at).collect::<Vec<_>>()
        };
        self.segments.iter().flat_map(numbered).collect()
    }

    /// Appends `len` bytes from a block boundary on; those past the length of the file are zeros.
    pub(super) fn read(&self, offset: u64, len: usize, into: &mut Vec<u8>) {
        let end = into.len() + len;
        let mut at = offset / PAGE as u64;
        while into.len() < end {
            let count = (end - into.len()).min(PAGE);
            match self.block(at) {
                Some(Block { extent: Extent::Written, page: Some(page), .. }) => {
                    into.extend_from_slice(&page.bytes()[..count]);
                }
                _ => into.resize(into.len() + count, 0),
            }
            at += 1;
        }
    }

    /// Blocks that take space.
    pub(super) fn allocated(&self) -> u64 {
        self.allocated
    }

    /// Equal for equal content, extents and length.
    pub(super) fn hash(&self) -> u64 {
        mix(self.hash ^ self.len)
    }

    /// Forgets what the device holds below unwritten extents: no file system shows it again.
    pub(super) fn hide_unwritten(&mut self) {
        let hidden = self.numbers_of(|block| block.extent != Extent::Written && block.page.is_some());
        for at in hidden {
            self.change(at, |block| block.page = None);
        }
    }
}

/// `old` with the sectors of `mask` from `page`.
pub(super) fn merged(old: Option<&Arc<Page>>, page: &Arc<Page>, mask: u8) -> Arc<Page> {
    if mask == 0xFF {
        return Arc::clone(page);
    }
    let mut merged = old.map_or([0; PAGE], |old| *old.bytes());
    for sector in (0..PAGE / SECTOR).filter(|sector| mask & (1 << sector) != 0) {
        let range = sector * SECTOR..(sector + 1) * SECTOR;
        merged[range.clone()].copy_from_slice(&page.bytes()[range]);
    }
    Page::new(&merged)
}

fn place(block: u64) -> (u64, usize) {
    let index = usize::try_from(block % SEGMENT_BLOCKS as u64).unwrap_or(0);
    (block / SEGMENT_BLOCKS as u64, index)
}
