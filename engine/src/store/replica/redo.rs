//! Images of blocks that are not in place yet, and the memory they take.
//!
//! A block may have several: the newest is what the content is; the newest of those that are durable
//! is what a read sees. A checkpoint writes the newest in place and then lets go of it and of all
//! before it. So as long as a block has an image here, what lies in its place is an older version
//! (or one that is being written), and its checksum is remembered beside it.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::ops::Range;
use std::rc::Rc;

use super::super::layout::PAGE;
use super::super::page::Page;

/// Bytes of images of one shard; clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Budget(Rc<Cell<usize>>);

impl Budget {
    /// Bytes in memory or promised.
    pub(crate) fn bytes(&self) -> usize {
        self.0.get()
    }

    /// Counts so many bytes until the answer is dropped.
    pub(crate) fn take(&self, bytes: usize) -> Counted {
        self.0.set(self.0.get() + bytes);
        Counted { budget: self.clone(), bytes }
    }
}

/// Bytes that are counted as long as this lives.
#[derive(Debug)]
pub(crate) struct Counted {
    budget: Budget,
    bytes: usize,
}

impl Counted {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Counts fewer from now on.
    pub(crate) fn give_back(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.budget.0.set(self.budget.0.get() - bytes);
    }
}

impl Clone for Counted {
    fn clone(&self) -> Self {
        self.budget.take(self.bytes)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}

/// A whole block in memory, counted until nobody holds it.
pub(crate) struct BlockBytes {
    bytes: Page,
    _counted: Counted,
}

impl AsRef<Page> for BlockBytes {
    fn as_ref(&self) -> &Page {
        &self.bytes
    }
}

impl fmt::Debug for BlockBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockBytes({:08x})", crc32c::crc32c(&self.bytes))
    }
}

/// The new content of a block.
#[derive(Clone, Debug)]
pub(crate) struct RedoImage {
    /// The record with which it began to count: the last part of its operation.
    pub(crate) lsn: u64,
    pub(crate) crc: u32,
    pub(crate) block: Rc<BlockBytes>,
}

/// One block's images, and what they will replace.
#[derive(Clone, Debug)]
struct Versions {
    /// Checksum of what lies in its place.
    in_place_crc: u32,
    /// Ascending; never empty.
    images: Vec<RedoImage>,
}

/// The images of one chunk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Redo {
    blocks: BTreeMap<u32, Versions>,
    /// Blocks with more than one image.
    several: BTreeSet<u32>,
    /// Blocks whose images are not known durable, in the order of the log: number of the record, block.
    coming: VecDeque<(u64, u32)>,
    budget: Budget,
    /// Older images are kept, because a read may still have to see them.
    live: bool,
}

/// Where a read finds a block.
#[derive(Clone, Debug)]
pub(crate) enum Seen {
    /// In memory.
    Image(RedoImage),
    /// In place, with this checksum, and not with the one in the table.
    InPlace(u32),
}

impl Redo {
    /// From now on images are counted here, and those that a read may see are kept.
    pub(crate) fn count_in(&mut self, budget: &Budget) {
        if !self.live {
            (self.live, self.budget) = (true, budget.clone());
        }
    }

    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// A copy of a block's bytes, counted.
    pub(crate) fn copy(&self, bytes: &Page) -> Rc<BlockBytes> {
        Rc::new(BlockBytes { bytes: *bytes, _counted: self.budget.take(PAGE) })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Whether the block's last writer is an image.
    pub(crate) fn has(&self, block: u32) -> bool {
        self.blocks.contains_key(&block)
    }

    /// The newest image of a block.
    pub(crate) fn newest(&self, block: u32) -> Option<&RedoImage> {
        self.blocks.get(&block)?.images.last()
    }

    /// The newest image of every block, ascending.
    pub(crate) fn all_newest(&self) -> impl Iterator<Item = (u32, &RedoImage)> {
        self.blocks.iter().filter_map(|(block, versions)| Some((*block, versions.images.last()?)))
    }

    /// What a read sees of a block when records up to `durable_lsn` are durable; `None` when the block
    /// is in place, as the table of checksums says.
    pub(crate) fn seen(&self, block: u32, durable_lsn: u64) -> Option<Seen> {
        let versions = self.blocks.get(&block)?;
        let durable = versions.images.iter().rev().find(|image| image.lsn <= durable_lsn);
        Some(durable.map_or(Seen::InPlace(versions.in_place_crc), |image| Seen::Image(image.clone())))
    }

    /// The first block from `block` on that has an image.
    pub(crate) fn first_from(&self, block: u32) -> Option<u32> {
        self.blocks.range(block..).next().map(|(block, _)| *block)
    }

    /// Adds an image. `in_place_crc`: checksum of the block before, which counts when it had no image.
    pub(super) fn put(&mut self, block: u32, image: RedoImage, in_place_crc: u32) {
        let versions =
            self.blocks.entry(block).or_insert_with(|| Versions { in_place_crc, images: Vec::with_capacity(1) });
        assert!(versions.images.last().is_none_or(|last| last.lsn < image.lsn), "images come in the order of the log");
        if self.live {
            self.coming.push_back((image.lsn, block));
        } else {
            versions.images.clear();
        }
        versions.images.push(image);
        if versions.images.len() > 1 {
            self.several.insert(block);
        }
    }

    /// Records up to `lsn` are durable: nobody will see what was before the newest of them. `shows` hears
    /// of blocks whose images can be read from now on.
    pub(crate) fn durable(&mut self, lsn: u64, mut shows: impl FnMut(Range<u32>)) {
        let mut run = 0..0;
        while let Some((_, block)) = self.coming.pop_front_if(|(record, _)| *record <= lsn) {
            if block == run.end {
                run.end += 1;
                continue;
            }
            let before = std::mem::replace(&mut run, block..block + 1);
            if !before.is_empty() {
                shows(before);
            }
        }
        if !run.is_empty() {
            shows(run);
        }
        let blocks = &mut self.blocks;
        self.several.retain(|block| {
            let Some(versions) = blocks.get_mut(block) else { return false };
            let hidden = versions.images.partition_point(|image| image.lsn <= lsn).saturating_sub(1);
            versions.images.drain(..hidden);
            versions.images.len() > 1
        });
    }

    /// An image is in place, and a header on the disk says so.
    pub(crate) fn in_place(&mut self, block: u32, written: &RedoImage) {
        let Some(versions) = self.blocks.get_mut(&block) else { return };
        versions.in_place_crc = written.crc;
        versions.images.retain(|image| image.lsn > written.lsn);
        if versions.images.is_empty() {
            self.blocks.remove(&block);
        }
    }

    /// These blocks, and all behind them, get their content in another way.
    pub(crate) fn drop_from(&mut self, block: u32) {
        self.blocks.split_off(&block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(redo: &Redo, lsn: u64) -> RedoImage {
        let byte = u8::try_from(lsn).unwrap();
        RedoImage { lsn, crc: u32::from(byte), block: redo.copy(&[byte; PAGE]) }
    }

    fn live() -> (Redo, Budget) {
        let (mut redo, budget) = (Redo::default(), Budget::default());
        redo.count_in(&budget);
        (redo, budget)
    }

    fn sees(redo: &Redo, durable_lsn: u64) -> Option<u32> {
        match redo.seen(3, durable_lsn) {
            Some(Seen::Image(image)) => Some(100 + image.crc),
            Some(Seen::InPlace(crc)) => Some(crc),
            None => None,
        }
    }

    #[test]
    fn a_read_sees_the_newest_durable_image_or_what_is_in_place() {
        let (mut redo, _) = live();
        for lsn in [5, 7, 9] {
            redo.put(3, image(&redo, lsn), 50);
        }
        assert_eq!([4, 5, 6, 8, 9].map(|lsn| sees(&redo, lsn).unwrap()), [50, 105, 105, 107, 109]);
        assert_eq!(redo.newest(3).unwrap().lsn, 9);
        let mut shown = Vec::new();
        redo.durable(8, |blocks| shown.push(blocks));
        assert_eq!(shown, [3..4, 3..4], "of two records");
        assert_eq!(sees(&redo, 8), Some(107));
        // A checkpoint that began with the second one is through: the third is still on its way.
        let second = image(&redo, 7);
        redo.in_place(3, &second);
        assert_eq!((sees(&redo, 8), sees(&redo, 9)), (Some(7), Some(109)));
        let third = image(&redo, 9);
        redo.in_place(3, &third);
        assert!(redo.is_empty() && sees(&redo, 9).is_none());
    }

    #[test]
    fn memory_is_counted_until_the_last_holder_is_gone() {
        let (mut redo, budget) = live();
        redo.put(3, image(&redo, 5), 0);
        redo.put(3, image(&redo, 6), 0);
        assert_eq!(budget.bytes(), 2 * PAGE);
        let read = redo.seen(3, 5);
        redo.durable(6, drop);
        assert_eq!(budget.bytes(), 2 * PAGE, "a read holds the first");
        drop(read);
        assert_eq!(budget.bytes(), PAGE);
        let mut promised = budget.take(3 * PAGE);
        promised.give_back(PAGE);
        assert_eq!(budget.bytes(), 3 * PAGE);
        drop((redo, promised));
        assert_eq!(budget.bytes(), 0);
    }

    #[test]
    fn what_is_read_back_keeps_the_last_image_only() {
        let mut redo = Redo::default();
        for lsn in 1..100 {
            redo.put(3, image(&redo, lsn), 0);
        }
        assert_eq!((redo.budget().bytes(), redo.newest(3).unwrap().lsn), (PAGE, 99));
    }
}
