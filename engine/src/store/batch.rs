//! Batches: the records of one group commit, and how a chain of them is read back.
//!
//! A batch starts at a page, is padded with zeros to a page, and its records start at multiples of
//! 64; the last one spans to the batch's end. Everything that links records (`span`, `prev_crc`,
//! `durable_upto`, `crc`) is filled in when the batch is closed, in one pass over bytes that are
//! still in the cache.

use wire::{ChunkHandle, Epoch};

use super::canary::weakened;
use super::layout::{PAGE, page_up};
use super::record::{self, Body, FLAG_FIRST, HEAD_LEN, Head};

/// A batch that still takes records.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    /// Start of each record, and its header without what closing fills in.
    records: Vec<(usize, Head)>,
}

/// What the next record must continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    /// The last record's number.
    pub(crate) lsn: u64,
    /// The last record's checksum.
    pub(crate) prev_crc: u32,
    pub(crate) boot_gen: u64,
    pub(crate) disk_uuid: [u8; 16],
}

/// What a record is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject {
    pub(crate) chunk: ChunkHandle,
    pub(crate) slot: u32,
    pub(crate) epoch: Epoch,
}

impl Batch {
    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Bytes on the disk if it were closed now.
    pub(crate) fn len(&self) -> u64 {
        page_up(self.bytes.len() as u64)
    }

    pub(crate) fn record_count(&self) -> usize {
        self.records.len()
    }

    /// Adds a record. Its number is that of the last record before the batch, plus its place in it.
    pub(crate) fn push(&mut self, subject: Subject, flags: u8, body: &Body<'_>) {
        let start = self.bytes.len();
        let body_bytes = body.encode();
        let body_len = u32::try_from(body_bytes.len()).unwrap_or(u32::MAX);
        let head = Head {
            crc: 0,
            lsn: 0,
            boot_gen: 0,
            prev_crc: 0,
            body_len,
            span: 0,
            kind: body.kind(),
            flags: if self.records.is_empty() { flags | FLAG_FIRST } else { flags },
            durable_upto: 0,
            chunk: subject.chunk,
            slot: subject.slot,
            epoch: subject.epoch,
        };
        self.bytes.reserve(record_len(body_bytes.len()));
        self.bytes.resize(start + HEAD_LEN, 0);
        self.bytes.extend_from_slice(&body_bytes);
        self.bytes.resize(start + record_len(body_bytes.len()), 0);
        self.records.push((start, head));
    }

    /// Closes it: the bytes to write, and the chain after them.
    pub(crate) fn close(mut self, chain: &Chain, durable_upto: u64) -> (Vec<u8>, Chain) {
        let end = page_up(self.bytes.len() as u64);
        self.bytes.resize(usize::try_from(end).unwrap_or(usize::MAX), 0);
        let mut chain = *chain;
        for index in 0..self.records.len() {
            let (start, mut head) = self.records[index];
            let next = self.records.get(index + 1).map_or(self.bytes.len(), |(next, _)| *next);
            chain.lsn += 1;
            head.lsn = chain.lsn;
            head.boot_gen = chain.boot_gen;
            head.prev_crc = chain.prev_crc;
            head.span = u32::try_from(next - start).unwrap_or(u32::MAX);
            head.durable_upto = durable_upto;
            let body_end = start + HEAD_LEN + head.body_len as usize;
            self.bytes[start..start + HEAD_LEN].copy_from_slice(&head.encode());
            head.crc = record::checksum(&chain.disk_uuid, &self.bytes[start..body_end]);
            self.bytes[start + 4..start + 8].copy_from_slice(&head.crc.to_le_bytes());
            chain.prev_crc = head.crc;
        }
        (self.bytes, chain)
    }
}

/// Bytes from one record to the next inside a batch.
pub(crate) fn record_len(body_len: usize) -> usize {
    (HEAD_LEN + body_len).next_multiple_of(64)
}

/// What lies at a place in the log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found<'a> {
    /// The next record of the chain.
    Record(Head, &'a [u8]),
    /// At least so many bytes from here are needed to tell.
    More(usize),
    /// The chain ends here.
    End,
}

/// Reads the record at the front of `bytes`, and believes it only if it continues `chain` (rule R6).
pub(crate) fn next<'a>(bytes: &'a [u8], chain: &Chain) -> Found<'a> {
    match any(bytes, &chain.disk_uuid) {
        Found::Record(head, body) => {
            let linked = head.prev_crc == chain.prev_crc && head.boot_gen == chain.boot_gen;
            let continues = head.lsn == chain.lsn + 1 && (linked || weakened!(ChainNotChecked));
            if continues { Found::Record(head, body) } else { Found::End }
        }
        other => other,
    }
}

/// Reads the record at the front of `bytes`, whatever chain it belongs to.
pub(crate) fn any<'a>(bytes: &'a [u8], disk_uuid: &[u8; 16]) -> Found<'a> {
    let Some(head) = bytes.first_chunk::<HEAD_LEN>() else {
        return Found::More(PAGE);
    };
    let Ok(head) = Head::decode(head) else {
        return Found::End;
    };
    let len = HEAD_LEN + head.body_len as usize;
    let Some(record) = bytes.get(..len) else {
        return Found::More(len);
    };
    if record::checksum(disk_uuid, record) != head.crc {
        return Found::End;
    }
    Found::Record(head, &record[HEAD_LEN..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::tests::samples;

    const CHAIN: Chain = Chain { lsn: 40, prev_crc: 7, boot_gen: 3, disk_uuid: *b"0123456789abcdef" };
    const SUBJECT: Subject = Subject { chunk: ChunkHandle(5), slot: 6, epoch: Epoch(7) };

    fn batch() -> (Vec<u8>, Chain) {
        let images = vec![9; 2 * PAGE];
        let mut batch = Batch::default();
        samples(&images).iter().for_each(|body| batch.push(SUBJECT, 0, body));
        batch.close(&CHAIN, 39)
    }

    /// Everything the chain reaches, as (lsn, type, flags).
    fn walk(bytes: &[u8], mut chain: Chain) -> Vec<(u64, u8, u8)> {
        let mut found = Vec::new();
        let mut at = 0;
        while let Found::Record(head, body) = next(&bytes[at..], &chain) {
            assert!(Body::decode(head.kind, body).is_ok());
            found.push((head.lsn, head.kind, head.flags));
            (chain.lsn, chain.prev_crc) = (head.lsn, head.crc);
            at += head.span as usize;
        }
        found
    }

    #[test]
    fn a_batch_fills_pages_and_its_records_form_a_chain() {
        let (bytes, chain) = batch();
        assert!(bytes.len().is_multiple_of(PAGE));
        assert_eq!(chain.lsn, 55);
        let found = walk(&bytes, CHAIN);
        assert_eq!(found.iter().map(|(_, kind, _)| *kind).collect::<Vec<_>>(), (1..=15).collect::<Vec<_>>());
        assert_eq!((found[0], found[1].2), ((41, 1, FLAG_FIRST), 0));
        // The next batch continues right behind.
        let mut second = Batch::default();
        second.push(SUBJECT, 0, &Body::Mark);
        let (second, _) = second.close(&chain, 55);
        assert_eq!(walk(&[bytes, second].concat(), CHAIN).last(), Some(&(56, 15, FLAG_FIRST)));
    }

    #[test]
    fn a_record_of_another_number_boot_chain_or_disk_ends_the_log() {
        let (bytes, _) = batch();
        for other in [
            Chain { lsn: 39, ..CHAIN },
            Chain { prev_crc: 8, ..CHAIN },
            Chain { boot_gen: 4, ..CHAIN },
            Chain { disk_uuid: [0; 16], ..CHAIN },
        ] {
            assert_eq!(next(&bytes, &other), Found::End);
        }
    }

    #[test]
    fn no_prefix_and_no_flipped_bit_passes() {
        let mut batch = Batch::default();
        batch.push(SUBJECT, 0, &Body::Promise { promised: Epoch(8), term: wire::Term(9) });
        let (bytes, _) = batch.close(&CHAIN, 39);
        for len in 0..72 {
            assert!(matches!(next(&bytes[..len], &CHAIN), Found::More(_)), "{len}");
        }
        assert!(matches!(next(&bytes[..72], &CHAIN), Found::Record(..)));
        for bit in 0..72 * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(next(&flipped, &CHAIN), Found::Record(..)), "bit {bit}");
        }
    }
}
