//! Bytes of the operation log. Pure: no I/O.
//!
//! ```text
//! segment   head page 4,096 B | batches | zeros
//! batch     records, padded with zeros to a multiple of 4,096 B
//! record    header 64 B | body | zeros to a multiple of 64 B
//! ```
//!
//! The record header is that of the chunk store's journal, so that one tool reads both:
//!
//! ```text
//!  0 magic 4 | crc 4 | lsn 8 | boot 8 | prev_crc 4 | body_len 4
//! 32 span 4 | type 1 | flags 1 | zero 2 | durable_upto 8 | chunk 8 | slot 4 (all ones) | epoch 4
//! ```
//!
//! `crc` covers the log's uuid and then bytes 8.. of header and body, so that bytes of another log
//! never pose as records. The chain of `lsn` and `prev_crc` says where the log ends.

use crate::master::entry::{Entry, Lsn};

/// Batches start at multiples of this.
pub(super) const PAGE: usize = 4096;
/// Encoded size of a record's header.
pub(super) const HEADER_LEN: usize = 64;
/// Largest body: what the codec encodes at most.
pub(super) const BODY_LEN_MAX: usize = wire::limits::CONTROL_LEN_MAX as usize;

const RECORD_MAGIC: [u8; 4] = *b"HREC";
const SEGMENT_MAGIC: [u8; 4] = *b"HLOG";
const FORMAT: u16 = 1;
const FIRST_OF_BATCH: u8 = 2;
const NO_SLOT: u32 = u32::MAX;

/// Ties the records of one log together: its uuid is in every checksum.
pub(super) type Uuid = [u8; 16];

/// The head page of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHead {
    pub(super) uuid: Uuid,
    /// Its first record has this LSN, should it get one.
    pub(super) first_lsn: Lsn,
    /// Checksum of the record before that.
    pub(super) prev_crc: u32,
}

/// Why a page is not the head of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HeadError {
    #[error("it has no valid head page")]
    Damaged,
    #[error("it has format {0}, this build reads {FORMAT}")]
    Format(u16),
}

impl SegmentHead {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut page = vec![0; PAGE];
        page[..4].copy_from_slice(&SEGMENT_MAGIC);
        page[8..10].copy_from_slice(&FORMAT.to_le_bytes());
        page[16..32].copy_from_slice(&self.uuid);
        page[32..40].copy_from_slice(&self.first_lsn.to_le_bytes());
        page[40..44].copy_from_slice(&self.prev_crc.to_le_bytes());
        let crc = crc32c::crc32c(&page[8..]);
        page[4..8].copy_from_slice(&crc.to_le_bytes());
        page
    }

    pub(super) fn decode(page: &[u8]) -> Result<Self, HeadError> {
        let page: &[u8; PAGE] = page.first_chunk().ok_or(HeadError::Damaged)?;
        if page[..4] != SEGMENT_MAGIC || u32_at(page, 4) != crc32c::crc32c(&page[8..]) {
            return Err(HeadError::Damaged);
        }
        let format = u32_at(page, 8).to_le_bytes();
        let format = u16::from_le_bytes([format[0], format[1]]);
        if format != FORMAT {
            return Err(HeadError::Format(format));
        }
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&page[16..32]);
        Ok(Self { uuid, first_lsn: u64_at(page, 32), prev_crc: u32_at(page, 40) })
    }
}

/// Where the chain of records stands: what the next one must continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tip {
    pub(super) lsn: Lsn,
    pub(super) crc: u32,
}

/// Appends one record to a batch.
pub(super) fn push(batch: &mut Vec<u8>, uuid: &Uuid, tip: &mut Tip, boot: u64, durable_upto: Lsn, entry: &Entry) {
    let body = wire::codec::encode(entry);
    let (chunk, epoch) = entry.subject();
    let start = batch.len();
    let span = (HEADER_LEN + body.len()).next_multiple_of(64);
    batch.resize(start + span, 0);
    let record = &mut batch[start..];
    record[..4].copy_from_slice(&RECORD_MAGIC);
    record[8..16].copy_from_slice(&(tip.lsn + 1).to_le_bytes());
    record[16..24].copy_from_slice(&boot.to_le_bytes());
    record[24..28].copy_from_slice(&tip.crc.to_le_bytes());
    record[28..32].copy_from_slice(&length(body.len()).to_le_bytes());
    record[32..36].copy_from_slice(&length(span).to_le_bytes());
    record[36] = entry.kind();
    record[37] = if start == 0 { FIRST_OF_BATCH } else { 0 };
    record[40..48].copy_from_slice(&durable_upto.to_le_bytes());
    record[48..56].copy_from_slice(&chunk.0.to_le_bytes());
    record[56..60].copy_from_slice(&NO_SLOT.to_le_bytes());
    record[60..64].copy_from_slice(&epoch.0.to_le_bytes());
    record[HEADER_LEN..HEADER_LEN + body.len()].copy_from_slice(&body);
    let crc = crc(uuid, &record[8..HEADER_LEN + body.len()]);
    record[4..8].copy_from_slice(&crc.to_le_bytes());
    *tip = Tip { lsn: tip.lsn + 1, crc };
}

/// A record whose checksum holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) lsn: Lsn,
    pub(super) prev_crc: u32,
    pub(super) crc: u32,
    pub(super) durable_upto: Lsn,
    pub(super) span: usize,
    pub(super) body: &'a [u8],
}

/// The record at the front of `bytes`, if there is a whole one of this log.
pub(super) fn record<'a>(bytes: &'a [u8], uuid: &Uuid) -> Option<Record<'a>> {
    let header: &[u8; HEADER_LEN] = bytes.first_chunk()?;
    let body_len = u32_at(header, 28) as usize;
    let span = u32_at(header, 32) as usize;
    if header[..4] != RECORD_MAGIC || body_len > BODY_LEN_MAX || span != (HEADER_LEN + body_len).next_multiple_of(64) {
        return None;
    }
    let covered = bytes.get(8..HEADER_LEN + body_len)?;
    if crc(uuid, covered) != u32_at(header, 4) {
        return None;
    }
    Some(Record {
        lsn: u64_at(header, 8),
        prev_crc: u32_at(header, 24),
        crc: u32_at(header, 4),
        durable_upto: u64_at(header, 40),
        span,
        body: &covered[HEADER_LEN - 8..],
    })
}

/// How a segment ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Where the next batch may go, bytes from the segment's start. What follows the last record was
    /// never acknowledged: nothing, or a torn batch.
    Clean { at: usize, torn: bool },
    /// The record after `missing` proves that `missing` was flushed, and it is not readable.
    Damaged { missing: Lsn },
}

/// Walks the records of a whole segment, head page included, from `tip` on.
pub(super) fn walk<'a>(segment: &'a [u8], uuid: &Uuid, tip: &mut Tip, mut each: impl FnMut(Record<'a>)) -> End {
    let mut at = PAGE;
    while let Some(found) = segment.get(at..).and_then(|rest| next(rest, uuid, *tip)) {
        at += found.0 + found.1.span;
        *tip = Tip { lsn: found.1.lsn, crc: found.1.crc };
        each(found.1);
    }
    let end = at.next_multiple_of(PAGE);
    let missing = tip.lsn + 1;
    let later = segment.get(at..).unwrap_or_default();
    // Records lie at multiples of 64; so do those of a batch whose beginning is lost.
    let later = later.chunks(64).enumerate().filter_map(|(index, _)| record(&later[index * 64..], uuid));
    let mut torn = segment.get(at..).unwrap_or_default().iter().any(|byte| *byte != 0);
    for record in later.filter(|record| record.lsn >= missing) {
        if record.durable_upto >= missing {
            return End::Damaged { missing };
        }
        torn = true;
    }
    End::Clean { at: end, torn }
}

/// The next record of the chain: right here, or at the next page when the batch ends here.
fn next<'a>(rest: &'a [u8], uuid: &Uuid, tip: Tip) -> Option<(usize, Record<'a>)> {
    let follows = |record: &Record<'_>| record.lsn == tip.lsn + 1 && record.prev_crc == tip.crc;
    if let Some(here) = record(rest, uuid).filter(follows) {
        return Some((0, here));
    }
    // The segment is a multiple of pages, so what is left of this page is the remainder.
    let padding = rest.len() % PAGE;
    record(rest.get(padding..)?, uuid).filter(follows).map(|record| (padding, record))
}

fn crc(uuid: &Uuid, covered: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(uuid), covered)
}

fn length(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::master::entry::Change;
    use wire::Term;

    const UUID: Uuid = [7; 16];
    const SEGMENT: usize = 8 * PAGE;

    fn entry(term: u32) -> Entry {
        Entry { now_ms: 1, first_inode: 2, next_chunk: 3, change: Change::Term { term: Term(term) } }
    }

    /// A segment with these batches, each a number of records, every one flushed before the next.
    fn segment(batches: &[u32]) -> Vec<u8> {
        let mut segment = SegmentHead { uuid: UUID, first_lsn: 1, prev_crc: 0 }.encode();
        let mut tip = Tip { lsn: 0, crc: 0 };
        for count in batches {
            let mut batch = vec![];
            let durable_upto = tip.lsn;
            for _ in 0..*count {
                let term = u32::try_from(tip.lsn + 1).unwrap();
                push(&mut batch, &UUID, &mut tip, 9, durable_upto, &entry(term));
            }
            batch.resize(batch.len().next_multiple_of(PAGE), 0);
            segment.extend(batch);
        }
        segment.resize(SEGMENT, 0);
        segment
    }

    fn read(segment: &[u8]) -> (Vec<Entry>, End) {
        let mut entries = vec![];
        let mut tip = Tip { lsn: 0, crc: 0 };
        let end = walk(segment, &UUID, &mut tip, |record| entries.push(wire::codec::decode(record.body).unwrap()));
        (entries, end)
    }

    #[test]
    fn layout_of_a_record_is_pinned() {
        let segment = segment(&[1]);
        let header = &segment[PAGE..PAGE + 64];
        assert_eq!(&header[..4], b"HREC");
        assert_eq!(header[8..28], [1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(header[28..40], [32, 0, 0, 0, 128, 0, 0, 0, 64, 2, 0, 0]);
        assert_eq!(header[40..64], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0]);
    }

    #[test]
    fn what_was_pushed_comes_back_in_order() {
        let (entries, end) = read(&segment(&[2, 1, 70]));
        assert_eq!(entries, (1..=73).map(entry).collect::<Vec<_>>());
        assert_eq!(end, End::Clean { at: PAGE * 6, torn: false });
    }

    #[test]
    fn a_torn_last_batch_is_a_clean_end_before_it_wherever_it_tears() {
        let whole = segment(&[2, 3]);
        for cut in (2 * PAGE..3 * PAGE).step_by(64) {
            let mut torn = whole.clone();
            torn[cut..3 * PAGE].fill(0);
            let (entries, end) = read(&torn);
            assert!(matches!(end, End::Clean { .. }), "{cut} {end:?}");
            assert!((2..=5).contains(&entries.len()), "{cut}");
        }
        // The front of the batch is lost and its back is there: still nobody was answered.
        let mut torn = whole;
        torn[2 * PAGE..2 * PAGE + 128].fill(0);
        let (entries, end) = read(&torn);
        assert_eq!((entries.len(), end), (2, End::Clean { at: 2 * PAGE, torn: true }));
    }

    #[test]
    fn any_flipped_bit_below_a_later_batch_is_damage_and_not_an_end() {
        let whole = segment(&[1, 1]);
        for bit in 0..(HEADER_LEN + 32) * 8 {
            let mut bytes = whole.clone();
            bytes[PAGE + bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read(&bytes).1, End::Damaged { missing: 1 }, "bit {bit}");
        }
    }

    #[test]
    fn records_of_another_log_are_none() {
        let segment = segment(&[2]);
        let mut tip = Tip { lsn: 0, crc: 0 };
        let end = walk(&segment, &[8; 16], &mut tip, |_| panic!("foreign record accepted"));
        assert!(matches!(end, End::Clean { at: PAGE, .. }));
    }

    #[test]
    fn a_segment_of_a_newer_format_is_not_called_damaged() {
        let head = SegmentHead { uuid: UUID, first_lsn: 5, prev_crc: 6 };
        let mut page = head.encode();
        assert_eq!(SegmentHead::decode(&page), Ok(head));
        page[8] = 2;
        assert_eq!(SegmentHead::decode(&page), Err(HeadError::Damaged));
        let crc = crc32c::crc32c(&page[8..]);
        page[4..8].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(SegmentHead::decode(&page), Err(HeadError::Format(2)));
    }
}
