//! Where everything lies on a disk: the constants of the format, and nothing else.

/// A block, and a page: unit of checksum, of direct I/O and of every metadata page.
pub(crate) const BLOCK: u32 = 4096;

/// Length of a page in memory.
pub(crate) const PAGE: usize = 4096;

/// Content of one chunk at most.
pub(crate) const CHUNK_CAPACITY: u32 = 64 << 20;

/// Start of the two halves of a slot's trailer.
pub(crate) const HALF_OFFSETS: [u64; 2] = [0x0400_0000, 0x0401_8000];

/// Pages of one half: header, tail, dedup, checksums, one of zeros.
pub(crate) const HALF_PAGES: usize = 24;

/// Length of a slot file.
pub(crate) const SLOT_LEN: u64 = 0x0403_0000;

/// Checksums in one CRC page.
pub(crate) const CRCS_PER_PAGE: usize = 1008;

/// CRC pages of one half.
pub(crate) const CRC_PAGES: usize = 17;

/// Dedup entries in one DEDUP page.
pub(crate) const DEDUP_PER_PAGE: usize = 100;

/// DEDUP pages of one half.
pub(crate) const DEDUP_PAGES: usize = 4;

/// Entries of a dedup table.
pub(crate) const DEDUP_MAX: usize = wire::limits::DEDUP_ENTRIES_MAX;

/// Payload of one record.
pub(crate) const PART_MAX: u32 = wire::limits::PAYLOAD_LEN_MAX;

/// Members of a chain.
pub(crate) const MEMBERS_MAX: usize = wire::limits::MEMBERS_MAX;

/// The log area of a ring file starts after its two RING pages.
pub(crate) const RING_LOG_START: u64 = 2 * PAGE as u64;

/// Rings of one disk together, unless configured.
pub(crate) const RINGS_BYTES: u64 = 512 << 20;

/// A ring of its own makes at least this much, unless configured.
pub(crate) const RING_BYTES_MIN: u64 = 64 << 20;

/// Smallest log area that is accepted: four full batches of small records. Tests make smaller ones, which
/// wrap sooner and are read back faster.
pub(crate) const RING_BYTES_FLOOR: u64 = if cfg!(test) { 32 << 10 } else { 256 << 10 };

/// Largest log area that is accepted from a RING page.
pub(crate) const RING_BYTES_CEILING: u64 = 64 << 30;

/// The format this build reads and writes.
pub(crate) const FORMAT: u16 = 1;

/// A child of a header: bit in `child_copy` and `child_present`, place in a half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Child {
    /// CRC page 0..17.
    Crc(usize),
    /// The partial block of an unsealed chunk.
    Tail,
    /// DEDUP page 0..4.
    Dedup(usize),
}

impl Child {
    /// Its bit.
    pub(crate) fn bit(self) -> u32 {
        match self {
            Self::Crc(index) => 1 << index,
            Self::Tail => 1 << CRC_PAGES,
            Self::Dedup(index) => 1 << (CRC_PAGES + 1 + index),
        }
    }

    /// Its place in the half `copy` (0 or 1) of the slot file.
    pub(crate) fn offset(self, copy: usize) -> u64 {
        let page = match self {
            Self::Tail => 1,
            Self::Dedup(index) => 2 + index,
            Self::Crc(index) => 6 + index,
        };
        HALF_OFFSETS[copy] + (page * PAGE) as u64
    }
}

/// Bits that name a child.
pub(crate) const CHILD_BITS: u32 = (1 << (CRC_PAGES + 1 + DEDUP_PAGES)) - 1;

/// Start of the block that holds `len`.
pub(crate) fn align_down(len: u32) -> u32 {
    len / BLOCK * BLOCK
}

/// Whole blocks that hold `len` bytes, in bytes.
pub(crate) fn align_up(len: u32) -> u32 {
    len.div_ceil(BLOCK) * BLOCK
}

/// As [`align_up`], for places in a file.
pub(crate) fn page_up(at: u64) -> u64 {
    at.div_ceil(PAGE as u64) * PAGE as u64
}

const _: () = assert!(BLOCK as usize == PAGE && BLOCK == wire::limits::BLOCK_SIZE);
const _: () = assert!(CHUNK_CAPACITY == wire::limits::CHUNK_SIZE);
const _: () = assert!(HALF_OFFSETS[0] == CHUNK_CAPACITY as u64);
const _: () = assert!(HALF_OFFSETS[1] == HALF_OFFSETS[0] + (HALF_PAGES * PAGE) as u64);
const _: () = assert!(SLOT_LEN == HALF_OFFSETS[1] + (HALF_PAGES * PAGE) as u64);
const _: () = assert!(2 + DEDUP_PAGES + CRC_PAGES + 1 == HALF_PAGES);
const _: () = assert!(CRCS_PER_PAGE == (PAGE - 64) / 4);
const _: () = assert!(CRCS_PER_PAGE * CRC_PAGES >= (CHUNK_CAPACITY / BLOCK) as usize);
const _: () = assert!(CRCS_PER_PAGE * (CRC_PAGES - 1) < (CHUNK_CAPACITY / BLOCK) as usize);
const _: () = assert!(DEDUP_PER_PAGE * 40 + 96 == PAGE && DEDUP_PER_PAGE * DEDUP_PAGES == DEDUP_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_lie_where_the_format_says() {
        assert_eq!(Child::Tail.offset(0), 0x0400_1000);
        assert_eq!(Child::Dedup(0).offset(0), 0x0400_2000);
        assert_eq!(Child::Dedup(3).offset(1), 0x0401_8000 + 0x5000);
        assert_eq!(Child::Crc(0).offset(0), 0x0400_6000);
        assert_eq!(Child::Crc(16).offset(1), 0x0401_8000 + 0x16000);
        assert_eq!(
            (Child::Crc(16).bit(), Child::Tail.bit(), Child::Dedup(0).bit(), Child::Dedup(3).bit()),
            (1 << 16, 1 << 17, 1 << 18, 1 << 21)
        );
    }
}
