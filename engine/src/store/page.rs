//! Metadata pages: the header they share, DISK and RING, and the children DEDUP and CRC.
//!
//! ```text
//!  0     4     8    10  11  12      16        32        40        48     56     64
//!  +-----+-----+----+---+---+-------+---------+---------+---------+------+------+
//!  |magic| crc |form|knd|idx|number |disk_uuid|page_seq |boot_gen |chunk | lsn  | fields
//!  +-----+-----+----+---+---+-------+---------+---------+---------+------+------+
//! ```
//!
//! `crc` covers bytes 8..4096. DISK, RING and HDR ([`super::header`]) are *roots*: two copies, the
//! newest valid one counts, and all their fields lie in the first sector, so a device that never
//! tears a sector never tears them. DEDUP, CRC and TAIL are *children*: the header names the copy
//! that is current and its checksum, so a child is right or wrong, never "perhaps older".

use wire::layout::{Reader, Writer};
use wire::message::Malformed;
use wire::{ChunkHandle, ClusterId, DedupEntry, OpId, ServerId, StreamId};

use super::canary::{sometimes, weakened};
use super::layout::{
    BLOCK, CHUNK_CAPACITY, CRC_PAGES, CRCS_PER_PAGE, DEDUP_PAGES, DEDUP_PER_PAGE, FORMAT, PAGE, RING_BYTES_CEILING,
    RING_BYTES_FLOOR,
};

/// Encoded size of [`Common`].
pub(crate) const COMMON_LEN: usize = 64;

/// Every field of a root lies in the first sector.
pub(crate) const SECTOR: usize = 512;

/// Encoded size of a dedup entry.
pub(crate) const DEDUP_ENTRY_LEN: usize = 40;

/// One page.
pub(crate) type Page = [u8; PAGE];

/// What a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum PageKind {
    /// Who owns the disk.
    Disk = 1,
    /// Where the journal starts.
    Ring = 2,
    /// What a slot holds.
    Header = 3,
    /// Part of a dedup table.
    Dedup = 5,
    /// Part of the block checksums.
    Crc = 6,
}

impl PageKind {
    fn magic(self) -> [u8; 4] {
        *match self {
            Self::Disk => b"HDSK",
            Self::Ring => b"HRNG",
            Self::Header => b"HHDR",
            Self::Dedup => b"HDUP",
            Self::Crc => b"HCRC",
        }
    }
}

/// The header of every page but TAIL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Common {
    /// DEDUP 0..4, CRC 0..17, else zero.
    pub(crate) index: u8,
    /// Ring or slot; DISK zero.
    pub(crate) number: u32,
    /// Random, equal on every page of the disk.
    pub(crate) disk_uuid: [u8; 16],
    /// Grows with every version of a root.
    pub(crate) page_seq: u64,
    /// Boot that wrote it.
    pub(crate) boot_gen: u64,
    /// Chunk; DISK and RING zero.
    pub(crate) chunk: u64,
    /// HDR: everything up to here is in it. RING: before the first record to replay. DISK: base of the boot.
    pub(crate) lsn: u64,
}

/// Why bytes are not the page they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Bad {
    /// Nothing was ever written here.
    #[error("blank page")]
    Blank,
    /// Another page, or garbage.
    #[error("wrong magic")]
    Magic,
    /// Torn or rotten.
    #[error("wrong checksum")]
    Checksum,
    /// Written by another version.
    #[error("format {0}, this build reads format {FORMAT}")]
    Format(u16),
    /// Valid, but not for this place: a misdirected write, or a page of another disk.
    #[error("page of another place")]
    Misplaced,
    /// A field has a value it cannot have.
    #[error("{0}")]
    Field(#[from] Malformed),
}

/// Refuses a field.
pub(crate) fn bad(field: &'static str) -> Bad {
    Bad::Field(Malformed::Field(field))
}

/// Writes header and fields into a fresh page and closes it with its checksum.
pub(crate) fn encode(kind: PageKind, common: &Common, fields: &[u8]) -> Box<Page> {
    let mut out = Writer::with_capacity(COMMON_LEN);
    out.bytes(&kind.magic());
    out.u32(0);
    out.u16(FORMAT);
    out.u8(kind as u8);
    out.u8(common.index);
    out.u32(common.number);
    out.bytes(&common.disk_uuid);
    out.u64(common.page_seq);
    out.u64(common.boot_gen);
    out.u64(common.chunk);
    out.u64(common.lsn);
    let header = out.finish();
    assert!(header.len() == COMMON_LEN && fields.len() <= PAGE - COMMON_LEN, "a page holds its fields");
    let mut page = Box::new([0; PAGE]);
    page[..COMMON_LEN].copy_from_slice(&header);
    page[COMMON_LEN..COMMON_LEN + fields.len()].copy_from_slice(fields);
    let crc = crc32c::crc32c(&page[8..]);
    page[4..8].copy_from_slice(&crc.to_le_bytes());
    page
}

/// Checks magic, checksum, format and kind; gives the header and a reader over the fields.
pub(crate) fn decode(kind: PageKind, page: &Page) -> Result<(Common, Reader<'_>), Bad> {
    let mut input = Reader::new(page);
    if input.array()? != kind.magic() {
        return Err(if page.iter().all(|byte| *byte == 0) { Bad::Blank } else { Bad::Magic });
    }
    if input.u32()? != crc32c::crc32c(&page[8..]) {
        return Err(Bad::Checksum);
    }
    let format = input.u16()?;
    if format != FORMAT {
        return Err(Bad::Format(format));
    }
    if input.u8()? != kind as u8 {
        return Err(bad("kind"));
    }
    let common = Common {
        index: input.u8()?,
        number: input.u32()?,
        disk_uuid: input.array()?,
        page_seq: input.u64()?,
        boot_gen: input.u64()?,
        chunk: input.u64()?,
        lsn: input.u64()?,
    };
    Ok((common, input))
}

/// The stored checksum of an encoded page: what a header remembers of a child.
pub(crate) fn stored_crc(page: &Page) -> u32 {
    u32::from_le_bytes([page[4], page[5], page[6], page[7]])
}

/// What is left of a page must be zero.
pub(crate) fn rest_is_zero(input: &mut Reader<'_>) -> Result<(), Bad> {
    if input.rest().iter().all(|byte| *byte == 0) { Ok(()) } else { Err(bad("reserved")) }
}

/// A page with two copies.
pub(crate) trait Root: Clone + PartialEq {
    /// Which version.
    fn page_seq(&self) -> u64;
}

/// Which copy counts, and which must be written over before anything else is (rule R15).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Picked<T> {
    /// The newest valid one.
    pub(crate) root: T,
    /// The copy that is bad or older: 0 is A, 1 is B.
    pub(crate) heal: Option<usize>,
}

/// Picks the newest valid copy; `None` when both are bad.
pub(crate) fn pick<T: Root>(a: Result<T, Bad>, b: Result<T, Bad>) -> Option<Picked<T>> {
    Some(match (a, b) {
        (Ok(a), Ok(b)) if a == b => Picked { root: a, heal: None },
        (Ok(a), Ok(b)) if b.page_seq() > a.page_seq() => {
            sometimes!("root copies differ at start: B newer");
            Picked { root: b, heal: Some(0) }
        }
        (Ok(a), Ok(_)) => {
            sometimes!("root copies differ at start: A newer");
            Picked { root: a, heal: Some(1) }
        }
        (Ok(a), Err(_)) => Picked { root: a, heal: Some(1) },
        (Err(_), Ok(b)) => Picked { root: b, heal: Some(0) },
        (Err(_), Err(_)) => return None,
    })
}

/// Whether recovery writes the newest version over this copy: always, as rule R15 says.
pub(crate) fn heals(copy: usize) -> bool {
    // Without healing, copy A, which is written first, may be the only one that is current.
    !(weakened!(RootsNotHealed) || (weakened!(CurrentRootFirst) && copy == 1))
}

/// State of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum DiskState {
    /// In use.
    #[default]
    Normal = 0,
    /// A write or flush failed; recovery verifies everything.
    Fenced = 1,
    /// Takes no new chunks.
    Draining = 2,
    /// Out of use.
    Retired = 3,
}

/// DISK: who owns this disk, which generation runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    /// `number`, `chunk` and `index` are zero; `lsn` is the base of the boot.
    pub(crate) common: Common,
    pub(crate) cluster: ClusterId,
    pub(crate) server: ServerId,
    pub(crate) state: DiskState,
    /// Rings that may hold records of `boot_gen`.
    pub(crate) rings: u32,
    /// Slot files that exist.
    pub(crate) slots: u32,
    /// Log area of rings made from now on.
    pub(crate) ring_bytes: u64,
    /// Highest term accepted from a master.
    pub(crate) master_term: u32,
    pub(crate) eio_count: u32,
    /// Unix seconds, for display.
    pub(crate) eio_last: u64,
    /// Unix seconds, for display.
    pub(crate) created: u64,
}

/// End of the fields of DISK.
pub(crate) const DISK_END: usize = 152;

/// Rings and slots that a DISK page can name: bounds what recovery allocates.
const RINGS_MAX: u32 = 4096;
const SLOTS_MAX: u32 = 1 << 24;

impl Disk {
    pub(crate) fn encode(&self) -> Box<Page> {
        let mut out = Writer::with_capacity(DISK_END - COMMON_LEN);
        out.bytes(&self.cluster.0);
        out.u32(self.server.0);
        out.u32(self.state as u32);
        out.u32(self.rings);
        out.u32(self.slots);
        out.u64(self.ring_bytes);
        out.u32(CHUNK_CAPACITY);
        out.u32(BLOCK);
        out.u32(0); // incompat
        out.u32(0); // ro_compat
        out.u32(self.master_term);
        out.u32(self.eio_count);
        out.u64(0);
        out.u64(self.eio_last);
        out.u64(self.created);
        let fields = out.finish();
        assert_eq!(fields.len(), DISK_END - COMMON_LEN, "DISK is laid out as drawn");
        encode(PageKind::Disk, &self.common, &fields)
    }

    pub(crate) fn decode(page: &Page) -> Result<Self, Bad> {
        let (common, mut input) = decode(PageKind::Disk, page)?;
        let cluster = ClusterId(input.array()?);
        let server = ServerId(input.u32()?);
        let state = match input.u32()? {
            0 => DiskState::Normal,
            1 => DiskState::Fenced,
            2 => DiskState::Draining,
            3 => DiskState::Retired,
            _ => return Err(bad("disk state")),
        };
        let rings = input.u32()?;
        let slots = input.u32()?;
        let ring_bytes = input.u64()?;
        if input.u32()? != CHUNK_CAPACITY || input.u32()? != BLOCK {
            return Err(bad("chunk capacity or block size"));
        }
        if input.u32()? != 0 {
            return Err(bad("incompat"));
        }
        if input.u32()? != 0 {
            return Err(bad("ro_compat"));
        }
        let master_term = input.u32()?;
        let eio_count = input.u32()?;
        if input.u64()? != 0 {
            return Err(bad("reserved"));
        }
        let eio_last = input.u64()?;
        let created = input.u64()?;
        rest_is_zero(&mut input)?;
        if rings > RINGS_MAX || slots > SLOTS_MAX {
            return Err(bad("rings or slots"));
        }
        ring_len_is_sane(ring_bytes)?;
        Ok(Self { common, cluster, server, state, rings, slots, ring_bytes, master_term, eio_count, eio_last, created })
    }
}

impl Root for Disk {
    fn page_seq(&self) -> u64 {
        self.common.page_seq
    }
}

fn ring_len_is_sane(bytes: u64) -> Result<(), Bad> {
    let sane = (RING_BYTES_FLOOR..=RING_BYTES_CEILING).contains(&bytes) && bytes.is_multiple_of(PAGE as u64);
    if sane { Ok(()) } else { Err(bad("ring_bytes")) }
}

/// RING: where replay starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ring {
    /// `number` is the ring; `lsn` the one before the first record to replay.
    pub(crate) common: Common,
    /// Empty and out of use: there are fewer shards than rings.
    pub(crate) retired: bool,
    /// Checksum of the record before the first one to replay; zero after recovery.
    pub(crate) start_prev_crc: u32,
    /// Where replay starts: offset in the log area, a multiple of 64.
    pub(crate) start_off: u64,
    /// Length of the log area.
    pub(crate) log_bytes: u64,
    /// Known flushed when the page was made.
    pub(crate) durable_upto: u64,
}

/// End of the fields of RING.
pub(crate) const RING_END: usize = 96;

impl Ring {
    pub(crate) fn encode(&self) -> Box<Page> {
        let mut out = Writer::with_capacity(RING_END - COMMON_LEN);
        out.u32(u32::from(self.retired));
        out.u32(self.start_prev_crc);
        out.u64(self.start_off);
        out.u64(self.log_bytes);
        out.u64(self.durable_upto);
        let fields = out.finish();
        assert_eq!(fields.len(), RING_END - COMMON_LEN, "RING is laid out as drawn");
        encode(PageKind::Ring, &self.common, &fields)
    }

    pub(crate) fn decode(page: &Page) -> Result<Self, Bad> {
        let (common, mut input) = decode(PageKind::Ring, page)?;
        let retired = match input.u32()? {
            0 => false,
            1 => true,
            _ => return Err(bad("ring state")),
        };
        let ring = Self {
            common,
            retired,
            start_prev_crc: input.u32()?,
            start_off: input.u64()?,
            log_bytes: input.u64()?,
            durable_upto: input.u64()?,
        };
        rest_is_zero(&mut input)?;
        ring_len_is_sane(ring.log_bytes)?;
        if ring.start_off >= ring.log_bytes || !ring.start_off.is_multiple_of(64) {
            return Err(bad("start_off"));
        }
        Ok(ring)
    }
}

impl Root for Ring {
    fn page_seq(&self) -> u64 {
        self.common.page_seq
    }
}

/// Encodes one dedup entry.
pub(crate) fn put_dedup(out: &mut Writer, entry: &DedupEntry) {
    out.bytes(&entry.id.stream.0);
    out.u64(entry.id.op);
    out.u64(entry.chunk.0);
    out.u32(entry.offset);
    out.u32(entry.len);
}

/// Decodes one dedup entry.
pub(crate) fn take_dedup(input: &mut Reader<'_>) -> Result<DedupEntry, Malformed> {
    Ok(DedupEntry {
        id: OpId { stream: StreamId(input.array()?), op: input.u64()? },
        chunk: ChunkHandle(input.u64()?),
        offset: input.u32()?,
        len: input.u32()?,
    })
}

/// Encodes a DEDUP page of at most 100 entries.
pub(crate) fn encode_dedup(common: &Common, entries: &[DedupEntry]) -> Box<Page> {
    assert!(entries.len() <= DEDUP_PER_PAGE, "a DEDUP page holds 100 entries");
    let mut out = Writer::with_capacity(32 + entries.len() * DEDUP_ENTRY_LEN);
    out.u16(u16::try_from(entries.len()).unwrap_or(u16::MAX));
    out.bytes(&[0; 30]);
    entries.iter().for_each(|entry| put_dedup(&mut out, entry));
    encode(PageKind::Dedup, common, &out.finish())
}

/// Decodes a DEDUP page.
pub(crate) fn decode_dedup(page: &Page) -> Result<(Common, Vec<DedupEntry>), Bad> {
    let (common, mut input) = decode(PageKind::Dedup, page)?;
    let count = usize::from(input.u16()?);
    if usize::from(common.index) >= DEDUP_PAGES || count > DEDUP_PER_PAGE || input.array::<30>()? != [0; 30] {
        return Err(bad("dedup page"));
    }
    let entries = (0..count).map(|_| take_dedup(&mut input)).collect::<Result<_, _>>()?;
    rest_is_zero(&mut input)?;
    Ok((common, entries))
}

/// The checksums of one CRC page.
pub(crate) type CrcPage = [u32; CRCS_PER_PAGE];

/// Encodes a CRC page.
pub(crate) fn encode_crcs(common: &Common, crcs: &CrcPage) -> Box<Page> {
    let mut out = Writer::with_capacity(PAGE - COMMON_LEN);
    out.u32s(crcs);
    encode(PageKind::Crc, common, &out.finish())
}

/// Decodes a CRC page.
pub(crate) fn decode_crcs(page: &Page) -> Result<(Common, Box<CrcPage>), Bad> {
    let (common, mut input) = decode(PageKind::Crc, page)?;
    if usize::from(common.index) >= CRC_PAGES {
        return Err(bad("crc page"));
    }
    let crcs = input.u32s()?.try_into().map_err(|_| Malformed::Short)?;
    Ok((common, crcs))
}

/// A partial block as the TAIL page holds it: the bytes, then zeros. Its identity is its checksum
/// in the header.
pub(crate) fn padded(tail: &[u8]) -> Box<Page> {
    assert!(tail.len() < PAGE, "a tail is less than a block");
    let mut page = Box::new([0; PAGE]);
    page[..tail.len()].copy_from_slice(tail);
    page
}

const _: () = assert!(DISK_END <= SECTOR && RING_END <= SECTOR);

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn common() -> Common {
        Common {
            index: 0,
            number: 7,
            disk_uuid: *b"0123456789abcdef",
            page_seq: 5,
            boot_gen: 3,
            chunk: 0x1122_3344_5566_7788,
            lsn: 99,
        }
    }

    fn disk() -> Disk {
        Disk {
            common: common(),
            cluster: ClusterId([9; 16]),
            server: ServerId(4),
            state: DiskState::Draining,
            rings: 2,
            slots: 11,
            ring_bytes: 64 << 20,
            master_term: 6,
            eio_count: 1,
            eio_last: 1000,
            created: 900,
        }
    }

    fn ring() -> Ring {
        Ring {
            common: common(),
            retired: true,
            start_prev_crc: 0xAABB_CCDD,
            start_off: 4096,
            log_bytes: 1 << 20,
            durable_upto: 98,
        }
    }

    fn entry(op: u64) -> DedupEntry {
        DedupEntry { id: OpId { stream: StreamId([7; 16]), op }, chunk: ChunkHandle(3), offset: 10, len: 20 }
    }

    /// No flipped bit and no wrong kind may pass: `decodes` says whether a page is believed.
    pub(crate) fn every_bit_counts(page: &Page, decodes: impl Fn(&Page) -> bool) {
        assert!(decodes(page));
        for bit in 0..PAGE * 8 {
            let mut flipped = *page;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!decodes(&flipped), "bit {bit}");
        }
        // A page of which only a prefix arrived reads as zeros behind it.
        let used = page.iter().rposition(|byte| *byte != 0).unwrap();
        for len in 0..=used {
            let mut torn = *page;
            torn[len..].fill(0);
            assert!(!decodes(&torn) || torn == *page, "torn at {len}");
        }
    }

    /// Puts a value into an encoded page and closes it again: what a newer or a hostile writer makes.
    pub(crate) fn forged(page: &Page, at: usize, bytes: &[u8]) -> Page {
        let mut page = *page;
        page[at..at + bytes.len()].copy_from_slice(bytes);
        let crc = crc32c::crc32c(&page[8..]);
        page[4..8].copy_from_slice(&crc.to_le_bytes());
        page
    }

    #[test]
    fn the_common_header_is_pinned() {
        let page = disk().encode();
        assert_eq!(&page[..4], b"HDSK");
        assert_eq!(page[4..8], crc32c::crc32c(&page[8..]).to_le_bytes());
        assert_eq!(page[8..16], [1, 0, 1, 0, 7, 0, 0, 0]);
        assert_eq!(&page[16..32], b"0123456789abcdef");
        assert_eq!(page[32..48], [5, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(page[48..64], [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 99, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn disk_is_pinned_and_believed_only_whole() {
        let page = disk().encode();
        assert_eq!(page[64..80], [9; 16]);
        assert_eq!(page[80..96], [4, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 11, 0, 0, 0]);
        assert_eq!(page[96..112], [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0x10, 0, 0]);
        assert_eq!(page[112..128], [0, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(page[128..152], [0, 0, 0, 0, 0, 0, 0, 0, 0xe8, 3, 0, 0, 0, 0, 0, 0, 0x84, 3, 0, 0, 0, 0, 0, 0]);
        assert!(page[152..].iter().all(|byte| *byte == 0));
        assert_eq!(Disk::decode(&page), Ok(disk()));
        every_bit_counts(&page, |page| Disk::decode(page).is_ok());
    }

    #[test]
    fn ring_is_pinned_and_believed_only_whole() {
        let page = ring().encode();
        assert_eq!(&page[..4], b"HRNG");
        assert_eq!(page[64..80], [1, 0, 0, 0, 0xdd, 0xcc, 0xbb, 0xaa, 0, 0x10, 0, 0, 0, 0, 0, 0]);
        assert_eq!(page[80..96], [0, 0, 0x10, 0, 0, 0, 0, 0, 98, 0, 0, 0, 0, 0, 0, 0]);
        assert!(page[96..].iter().all(|byte| *byte == 0));
        assert_eq!(Ring::decode(&page), Ok(ring()));
        every_bit_counts(&page, |page| Ring::decode(page).is_ok());
    }

    #[test]
    fn children_are_pinned_and_believed_only_whole() {
        let page = encode_dedup(&common(), &[entry(1), entry(2)]);
        assert_eq!(&page[..4], b"HDUP");
        assert_eq!((page[10], page[64], page[65]), (5, 2, 0));
        assert_eq!(page[96..112], [7; 16]);
        assert_eq!(page[112..136], [1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 20, 0, 0, 0]);
        assert_eq!(decode_dedup(&page), Ok((common(), vec![entry(1), entry(2)])));
        every_bit_counts(&page, |page| decode_dedup(page).is_ok());

        let mut crcs = [0; CRCS_PER_PAGE];
        (crcs[0], crcs[CRCS_PER_PAGE - 1]) = (0x0403_0201, 0x0807_0605);
        let page = encode_crcs(&common(), &crcs);
        assert_eq!((&page[..4], page[10]), (&b"HCRC"[..], 6));
        assert_eq!((&page[64..68], &page[4092..]), (&[1, 2, 3, 4][..], &[5, 6, 7, 8][..]));
        assert_eq!(decode_crcs(&page), Ok((common(), Box::new(crcs))));
        every_bit_counts(&page, |page| decode_crcs(page).is_ok());
    }

    #[test]
    fn another_format_is_told_apart_from_damage() {
        let page = forged(&disk().encode(), 8, &[2, 0]);
        assert_eq!(Disk::decode(&page), Err(Bad::Format(2)));
        assert_eq!(Bad::Format(2).to_string(), "format 2, this build reads format 1");
        assert_eq!(Disk::decode(&[0; PAGE]), Err(Bad::Blank));
        assert_eq!(Ring::decode(&disk().encode()), Err(Bad::Magic));
    }

    #[test]
    fn impossible_fields_are_refused_even_under_a_right_checksum() {
        for (at, bytes) in [(84, 4_u32), (104, 1), (108, 512), (112, 1), (116, 1), (128, 1), (96, 100), (88, 9999)] {
            let page = forged(&disk().encode(), at, &bytes.to_le_bytes());
            assert!(matches!(Disk::decode(&page), Err(Bad::Field(_))), "{at}");
        }
        for (at, bytes) in [(64, 2_u32), (72, 1), (72, 2 << 20), (80, 64), (96, 1)] {
            let page = forged(&ring().encode(), at, &bytes.to_le_bytes());
            assert!(matches!(Ring::decode(&page), Err(Bad::Field(_))), "{at}");
        }
        assert!(decode_dedup(&forged(&encode_dedup(&common(), &[]), 64, &[101])).is_err());
        assert!(decode_crcs(&forged(&encode_crcs(&common(), &[0; CRCS_PER_PAGE]), 11, &[17])).is_err());
    }

    #[test]
    fn the_newest_valid_copy_counts_and_the_other_is_healed() {
        let old = ring();
        let mut new = ring();
        new.common.page_seq += 1;
        let picked = |a: Result<Ring, Bad>, b| pick(a, b).map(|picked| (picked.root.common.page_seq, picked.heal));
        assert_eq!(picked(Ok(old.clone()), Ok(old.clone())), Some((5, None)));
        assert_eq!(picked(Ok(old.clone()), Ok(new.clone())), Some((6, Some(0))));
        assert_eq!(picked(Ok(new.clone()), Ok(old.clone())), Some((6, Some(1))));
        assert_eq!(picked(Err(Bad::Checksum), Ok(old.clone())), Some((5, Some(0))));
        assert_eq!(picked(Ok(old), Err(Bad::Blank)), Some((5, Some(1))));
        assert_eq!(picked(Err(Bad::Checksum), Err(Bad::Blank)), None);
    }
}
