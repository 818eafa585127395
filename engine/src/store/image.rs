//! What a checkpoint writes of one slot: the partial block in place, children, the header.
//!
//! Pure. The order in which it reaches the disk (C3 to C5: in place and children, flush, one header
//! copy, flush, the other, flush) is the driver's, and the same for checkpoint and recovery.

use std::ops::Range;

use super::canary::weakened;
use super::crcs::page_of;
use super::header::{Flags, Hdr, SlotState};
use super::layout::{BLOCK, CRCS_PER_PAGE, Child, DEDUP_PAGES, DEDUP_PER_PAGE};
use super::page::{Common, Page, encode_crcs, encode_dedup, padded, stored_crc};
use super::replica::{RedoImage, Replica};

/// Pages to write, and the header that names them.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) slot: u32,
    pub(crate) hdr: Hdr,
    /// Offset in the slot file, and page. Never a copy that the header before named (rule R13).
    pub(crate) children: Vec<(u64, Box<Page>)>,
    /// The partial block of a chunk whose length is fixed, which a journal record or TAIL holds until this is durable.
    pub(crate) in_place: Option<(u64, Box<Page>)>,
    /// Blocks whose new content a journal record holds until this is durable (rule R3), ascending.
    pub(crate) redo: Vec<(u32, RedoImage)>,
}

/// Blocks that are written in place with one call: 32 slots at a time take 2 MiB of buffers.
const REDO_RUN: usize = 16;

impl Image {
    /// The blocks of `redo` in runs, each written in place with one call.
    pub(crate) fn redo_runs(&self) -> impl Iterator<Item = Range<u32>> + '_ {
        let mut rest = &self.redo[..];
        std::iter::from_fn(move || {
            let first = rest.first()?.0;
            let end = (first..).zip(rest).take(REDO_RUN).take_while(|(at, (block, _))| at == block).last()?.0 + 1;
            rest = &rest[(end - first) as usize..];
            Some(first..end)
        })
    }

    /// Whether writing it in place makes extents written that are not: that needs a sync of the slot (rule R2).
    pub(crate) fn needs_slot_sync(&self) -> bool {
        let beyond = |block: u32| block >= self.hdr.written_upto / BLOCK;
        self.in_place.as_ref().is_some_and(|(at, _)| *at >= u64::from(self.hdr.written_upto))
            || self.redo.last().is_some_and(|(block, _)| beyond(*block))
    }
}

/// The image of a slot that holds nothing.
pub(crate) fn of_free(hdr: &Hdr, boot_gen: u64, ckpt_lsn: u64) -> Image {
    let mut hdr = hdr.clone();
    stamp(&mut hdr, boot_gen, ckpt_lsn);
    Image { slot: hdr.common.number, hdr, children: Vec::new(), in_place: None, redo: Vec::new() }
}

/// The image of a replica with everything up to `ckpt_lsn` in it.
pub(crate) fn of(replica: &Replica, boot_gen: u64, ckpt_lsn: u64) -> Image {
    let mut hdr = replica.hdr.clone();
    assert_ne!(hdr.state, SlotState::Free, "a replica's slot is not free");
    stamp(&mut hdr, boot_gen, ckpt_lsn);
    let mut children = Vec::new();
    put_tail(replica, &mut hdr, &mut children);
    for index in replica.crcs.dirty_pages() {
        let Some(crcs) = replica.crcs.page(index) else { continue };
        let mut crcs = *crcs;
        let used = hdr.durable_len.div_ceil(BLOCK) as usize;
        crcs[used.saturating_sub(index * CRCS_PER_PAGE).min(CRCS_PER_PAGE)..].fill(0);
        let page = encode_crcs(&child_common(&hdr, index), &crcs);
        hdr.crc_page_crc[index] = stored_crc(&page);
        put(&mut hdr, &mut children, Child::Crc(index), page);
    }
    if replica.dedup_dirty {
        put_dedup(replica, &mut hdr, &mut children);
    }
    let in_place = (tail_goes_in_place(&hdr) && !replica.tail.is_empty())
        .then(|| (u64::from(hdr.durable_len / BLOCK) * u64::from(BLOCK), padded(&replica.tail)));
    // A partial block in memory is newer than an image of its place.
    let top = replica.blocks_in_place();
    let redo = replica.redo.all_newest().filter(|(block, _)| *block < top);
    let redo = redo.map(|(block, image)| (block, image.clone())).collect();
    Image { slot: hdr.common.number, hdr, children, in_place, redo }
}

fn stamp(hdr: &mut Hdr, boot_gen: u64, ckpt_lsn: u64) {
    hdr.common.page_seq += 1;
    hdr.common.boot_gen = boot_gen;
    hdr.common.lsn = ckpt_lsn;
}

fn child_common(hdr: &Hdr, index: usize) -> Common {
    Common { index: u8::try_from(index).unwrap_or(u8::MAX), ..hdr.common.clone() }
}

/// A child goes to the copy that is not current.
fn put(hdr: &mut Hdr, children: &mut Vec<(u64, Box<Page>)>, child: Child, page: Box<Page>) {
    let mut copy = 1 - hdr.copy_of(child);
    if weakened!(ChildrenOverwritten) || weakened!(OneCheckpointCopy) {
        copy = hdr.copy_of(child);
    } else {
        hdr.child_copy ^= child.bit();
    }
    hdr.child_present |= child.bit();
    children.push((child.offset(copy), page));
}

/// Rule R4: once the content is final or its length fixed, and not before.
fn tail_goes_in_place(hdr: &Hdr) -> bool {
    hdr.tail_goes_in_place() || (weakened!(TailInPlaceAtSeal) && hdr.flags.has(Flags::FILLED))
}

fn put_tail(replica: &Replica, hdr: &mut Hdr, children: &mut Vec<(u64, Box<Page>)>) {
    if tail_goes_in_place(hdr) || replica.tail.is_empty() {
        (hdr.tail_len, hdr.tail_crc) = (0, 0);
        hdr.child_present &= !Child::Tail.bit();
    } else if replica.tail_dirty {
        let page = padded(&replica.tail);
        hdr.tail_len = hdr.durable_len % BLOCK;
        hdr.tail_crc = crc32c::crc32c(page.as_slice());
        put(hdr, children, Child::Tail, page);
    }
}

fn put_dedup(replica: &Replica, hdr: &mut Hdr, children: &mut Vec<(u64, Box<Page>)>) {
    let entries = replica.dedup.entries();
    hdr.dedup_count = u16::try_from(entries.len()).unwrap_or(u16::MAX);
    for index in 0..DEDUP_PAGES {
        hdr.child_present &= !Child::Dedup(index).bit();
        hdr.dedup_crc[index] = 0;
    }
    for (index, entries) in entries.chunks(DEDUP_PER_PAGE).enumerate() {
        let page = encode_dedup(&child_common(hdr, index), entries);
        hdr.dedup_crc[index] = stored_crc(&page);
        put(hdr, children, Child::Dedup(index), page);
    }
}

/// CRC pages that a chunk of `len` bytes whose header is `hdr` must have on the disk below its open block.
pub(crate) fn open_page_is_on_disk(hdr: &Hdr) -> Option<usize> {
    let page = page_of(hdr.durable_len / BLOCK);
    (page < super::layout::CRC_PAGES && hdr.has_child(Child::Crc(page))).then_some(page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::header::tests::sample;
    use crate::store::replica::{empty, shared};
    use wire::{ChunkHandle, DedupEntry, OpId, StreamId};

    fn replica(state: SlotState) -> Replica {
        let mut hdr = sample();
        (hdr.state, hdr.prior_state, hdr.flags) = (state, SlotState::Free, Flags(0));
        (hdr.child_copy, hdr.child_present, hdr.durable_len, hdr.written_upto) = (0, 0, 5000, 4096);
        (hdr.tail_len, hdr.tail_crc) = (0, 0);
        let mut replica = Replica::loaded(hdr, empty(), Default::default());
        replica.tail = shared(&[7; 904]);
        replica.tail_dirty = true;
        replica.crcs.set(0, &[1, 2]);
        replica.dedup_dirty = true;
        let id = OpId { stream: StreamId([1; 16]), op: 1 };
        replica.dedup.complete(DedupEntry { id, chunk: ChunkHandle(1), offset: 0, len: 1 }, 0);
        replica
    }

    #[test]
    fn children_go_where_the_header_before_does_not_look() {
        let replica = replica(SlotState::Open);
        let image = of(&replica, 9, 77);
        let places: Vec<u64> = image.children.iter().map(|(at, _)| *at).collect();
        assert_eq!(places, [Child::Tail.offset(1), Child::Crc(0).offset(1), Child::Dedup(0).offset(1)]);
        assert_eq!(image.hdr.child_present, Child::Tail.bit() | Child::Crc(0).bit() | Child::Dedup(0).bit());
        assert_eq!(image.hdr.child_copy, image.hdr.child_present);
        assert_eq!((image.hdr.common.page_seq, image.hdr.common.boot_gen, image.hdr.common.lsn), (6, 9, 77));
        assert_eq!((image.hdr.tail_len, image.hdr.dedup_count), (904, 1));
        assert!(image.in_place.is_none(), "an open tail never goes in place");
        let mut again = replica.clone();
        again.hdr = image.hdr;
        let places: Vec<u64> = of(&again, 9, 78).children.iter().map(|(at, _)| *at).collect();
        assert_eq!(places, [Child::Tail.offset(0), Child::Crc(0).offset(0), Child::Dedup(0).offset(0)]);
    }

    #[test]
    fn only_a_sealed_tail_goes_in_place_and_then_tail_is_no_more() {
        let image = of(&replica(SlotState::Sealed), 9, 77);
        let (at, page) = image.in_place.as_ref().unwrap();
        assert_eq!((*at, &page[..904], page[904]), (4096, &[7; 904][..], 0));
        assert_eq!((image.hdr.tail_len, image.hdr.has_child(Child::Tail)), (0, false));
        assert!(image.needs_slot_sync(), "block 1 is not a written extent");
        for state in [SlotState::Open, SlotState::Rwr] {
            assert!(of(&replica(state), 9, 77).in_place.is_none());
        }
    }

    #[test]
    fn checksums_beyond_the_content_are_zero_on_the_disk() {
        let mut replica = replica(SlotState::Open);
        replica.crcs.set(2, &[3, 4]);
        let image = of(&replica, 9, 77);
        let (_, page) = image.children.iter().find(|(at, _)| *at == Child::Crc(0).offset(1)).unwrap();
        assert_eq!(page[64..80], [1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
