//! The block checksums of one chunk in memory, in the pages in which they lie on the disk.
//!
//! Pages that are clean can be dropped and read again, so sealed chunks cost nothing until they are
//! read. The page an append goes to must be here, and every page that was changed since the last
//! checkpoint is.

use super::layout::{CRC_PAGES, CRCS_PER_PAGE};
use super::page::CrcPage;

/// Checksums of the complete operations of a chunk.
#[derive(Clone, Debug, Default)]
pub(crate) struct CrcTable {
    pages: [Option<Box<CrcPage>>; CRC_PAGES],
    /// Bit per page: changed since the last checkpoint.
    dirty: u32,
    /// Bit per page: a checkpoint is writing it; until then the disk has an older one.
    imaged: u32,
    /// Bit per page: its copy on the disk is damaged; its blocks are unreadable here.
    damaged: u32,
}

/// The page of a block.
pub(crate) fn page_of(block: u32) -> usize {
    block as usize / CRCS_PER_PAGE
}

impl CrcTable {
    /// Sets the checksums from `first` on. Pages that begin inside the range are made; the one it
    /// begins in must be here unless it begins there.
    pub(crate) fn set(&mut self, first: u32, crcs: &[u32]) {
        let mut at = first as usize;
        let mut rest = crcs;
        while !rest.is_empty() {
            let (page, entry) = (at / CRCS_PER_PAGE, at % CRCS_PER_PAGE);
            let count = rest.len().min(CRCS_PER_PAGE - entry);
            let (now, later) = rest.split_at(count);
            // A damaged page starts again from nothing: the blocks it forgets do not verify any more.
            let known = self.pages[page].is_some() || entry == 0 || self.damaged & (1 << page) != 0;
            assert!(known, "the page an append continues is in memory");
            let crcs = self.pages[page].get_or_insert_with(|| Box::new([0; CRCS_PER_PAGE]));
            crcs[entry..entry + count].copy_from_slice(now);
            self.dirty |= 1 << page;
            rest = later;
            at += count;
        }
    }

    /// Checksum of a block; `None` when its page is not in memory.
    pub(crate) fn get(&self, block: u32) -> Option<u32> {
        self.pages[page_of(block)].as_ref().map(|page| page[block as usize % CRCS_PER_PAGE])
    }

    /// The first page of those that hold blocks `first..end` that is neither in memory nor damaged.
    pub(crate) fn missing(&self, first: u32, end: u32) -> Option<usize> {
        if first >= end {
            return None;
        }
        (page_of(first)..=page_of(end - 1)).find(|page| self.pages[*page].is_none() && self.damaged & (1 << page) == 0)
    }

    /// The first of blocks `0..end` whose checksum is not in memory; `end` when all are.
    pub(crate) fn first_absent(&self, end: u32) -> u32 {
        (0..end).find(|block| self.get(*block).is_none()).unwrap_or(end)
    }

    /// Takes in a page as it is on the disk, unless a newer one is here.
    pub(crate) fn insert(&mut self, page: usize, crcs: Box<CrcPage>) {
        self.pages[page].get_or_insert(crcs);
    }

    /// The copy on the disk is damaged.
    pub(crate) fn insert_damaged(&mut self, page: usize) {
        if self.pages[page].is_none() {
            self.damaged |= 1 << page;
        }
    }

    /// Whether a page is in memory.
    pub(crate) fn has_page(&self, page: usize) -> bool {
        self.pages[page].is_some()
    }

    /// Takes in a page whose copy on the disk is damaged and whose content was proved otherwise.
    pub(crate) fn restore(&mut self, page: usize, crcs: Box<CrcPage>) {
        self.pages[page].get_or_insert(crcs);
        self.write_again(page);
    }

    /// The next checkpoint writes a page that is in memory, though nothing in it changed.
    pub(crate) fn write_again(&mut self, page: usize) {
        assert!(self.has_page(page), "only a page that is in memory can be written");
        self.damaged &= !(1 << page);
        self.dirty |= 1 << page;
    }

    /// A page, if it is in memory.
    pub(crate) fn page(&self, page: usize) -> Option<&CrcPage> {
        self.pages[page].as_deref()
    }

    /// Pages changed since the last checkpoint, ascending.
    pub(crate) fn dirty_pages(&self) -> impl Iterator<Item = usize> + '_ {
        (0..CRC_PAGES).filter(|page| self.dirty & (1 << page) != 0)
    }

    /// A checkpoint has taken its copy.
    pub(crate) fn set_imaged(&mut self) {
        self.imaged |= std::mem::take(&mut self.dirty);
    }

    /// The header on the disk names what the checkpoint wrote.
    pub(crate) fn set_clean(&mut self) {
        self.imaged = 0;
    }

    /// Drops what can be read again.
    pub(crate) fn evict_clean(&mut self) {
        for page in 0..CRC_PAGES {
            if (self.dirty | self.imaged) & (1 << page) == 0 {
                self.pages[page] = None;
            }
        }
    }

    /// Bytes of memory.
    pub(crate) fn memory(&self) -> usize {
        self.pages.iter().flatten().count() * size_of::<CrcPage>()
    }

    /// The checksums of blocks `0..end` in runs; `None` when a page is missing.
    pub(crate) fn runs(&self, end: u32) -> Option<Vec<&[u32]>> {
        let end = end as usize;
        (0..end.div_ceil(CRCS_PER_PAGE))
            .map(|page| {
                let count = (end - page * CRCS_PER_PAGE).min(CRCS_PER_PAGE);
                self.pages[page].as_ref().map(|crcs| &crcs[..count])
            })
            .collect()
    }
}

/// Digest of a content (format section 5.3): XXH3-128, seed 0, over the checksums of its full
/// blocks, the bytes of its partial block, and its length as u64.
pub(crate) fn digest<'a>(runs: impl IntoIterator<Item = &'a [u32]>, tail: &[u8], len: u32) -> [u8; 16] {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    let mut bytes = [0; 1024];
    for run in runs {
        for piece in run.chunks(bytes.len() / 4) {
            for (to, crc) in bytes.chunks_exact_mut(4).zip(piece) {
                to.copy_from_slice(&crc.to_le_bytes());
            }
            hash.update(&bytes[..piece.len() * 4]);
        }
    }
    hash.update(tail);
    hash.update(&u64::from(len).to_le_bytes());
    hash.digest128().to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_over_pages_is_set_and_only_those_pages_are_dirty() {
        let mut table = CrcTable::default();
        let crcs: Vec<u32> = (0..2500).collect();
        table.set(0, &crcs);
        assert_eq!(table.dirty_pages().collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!((table.get(1007), table.get(1008), table.get(2499)), (Some(1007), Some(1008), Some(2499)));
        table.set_imaged();
        table.evict_clean();
        assert_eq!(table.get(0), Some(0), "the disk does not have it yet");
        table.set_clean();
        table.set(2500, &[9]);
        table.evict_clean();
        assert_eq!((table.get(0), table.get(2500)), (None, Some(9)));
        assert_eq!(table.missing(0, 2500), Some(0));
        assert_eq!(table.missing(2016, 2500), None);
        assert_eq!(table.runs(2500), None);
        assert_eq!(table.memory(), 4032);
    }

    #[test]
    fn the_digest_is_pinned_and_depends_on_every_part() {
        let pinned = digest([&[1_u32, 2][..]], b"tail", 8196);
        let mut plain = Vec::new();
        plain.extend_from_slice(&[1, 0, 0, 0, 2, 0, 0, 0]);
        plain.extend_from_slice(b"tail");
        plain.extend_from_slice(&8196_u64.to_le_bytes());
        assert_eq!(pinned, xxhash_rust::xxh3::xxh3_128(&plain).to_le_bytes());
        assert_eq!(digest([&[1_u32][..], &[2][..]], b"tail", 8196), pinned);
        assert_ne!(digest([&[1_u32, 3][..]], b"tail", 8196), pinned);
        assert_ne!(digest([&[1_u32, 2][..]], b"tali", 8196), pinned);
        assert_ne!(digest([&[1_u32, 2][..]], b"tail", 8197), pinned);
    }
}
