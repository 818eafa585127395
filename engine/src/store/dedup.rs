//! The dedup table of a chunk: a function of its log, equal at all members (replication section 6).
//!
//! Inherited entries, plus one per complete operation, minus those below their stream's
//! `first_unacked`, except that a stream's newest entry stays.

use std::collections::BTreeMap;

use wire::{DedupEntry, OpId, StreamId};

/// The table, ordered by (stream, operation).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DedupTable {
    streams: BTreeMap<StreamId, Vec<DedupEntry>>,
    len: usize,
}

impl DedupTable {
    /// A table of these entries.
    pub(crate) fn new(entries: &[DedupEntry]) -> Self {
        let mut table = Self::default();
        entries.iter().for_each(|entry| table.insert(*entry));
        table
    }

    /// All of it, in order.
    pub(crate) fn entries(&self) -> Vec<DedupEntry> {
        self.streams.values().flatten().copied().collect()
    }

    /// Where an operation landed.
    pub(crate) fn get(&self, id: OpId) -> Option<DedupEntry> {
        let ops = self.streams.get(&id.stream)?;
        ops.binary_search_by_key(&id.op, |entry| entry.id.op).ok().map(|at| ops[at])
    }

    /// The newest operation of a stream; zero when it is unknown.
    pub(crate) fn newest(&self, stream: StreamId) -> u64 {
        self.streams.get(&stream).and_then(|ops| ops.last()).map_or(0, |entry| entry.id.op)
    }

    /// How many entries there would be after [`DedupTable::complete`].
    pub(crate) fn len_after(&self, id: OpId, first_unacked: u64) -> usize {
        let ops = self.streams.get(&id.stream).map_or(&[][..], Vec::as_slice);
        let dropped = ops.iter().filter(|entry| entry.id.op < first_unacked && entry.id.op != id.op).count();
        self.len + 1 - dropped
    }

    /// An operation is complete.
    pub(crate) fn complete(&mut self, entry: DedupEntry, first_unacked: u64) {
        self.insert(entry);
        let Some(ops) = self.streams.get_mut(&entry.id.stream) else {
            return;
        };
        let newest = ops.last().map_or(0, |entry| entry.id.op);
        let before = ops.len();
        ops.retain(|entry| entry.id.op >= first_unacked || entry.id.op == newest);
        self.len -= before - ops.len();
    }

    /// Streams that are over.
    pub(crate) fn forget(&mut self, streams: &[StreamId]) {
        for stream in streams {
            self.len -= self.streams.remove(stream).map_or(0, |ops| ops.len());
        }
    }

    fn insert(&mut self, entry: DedupEntry) {
        let ops = self.streams.entry(entry.id.stream).or_default();
        match ops.binary_search_by_key(&entry.id.op, |entry| entry.id.op) {
            Ok(at) => ops[at] = entry,
            Err(at) => {
                ops.insert(at, entry);
                self.len += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wire::ChunkHandle;

    use super::*;

    fn entry(stream: u8, op: u64) -> DedupEntry {
        let id = OpId { stream: StreamId([stream; 16]), op };
        DedupEntry { id, chunk: ChunkHandle(1), offset: u32::try_from(op).unwrap() * 10, len: 10 }
    }

    #[test]
    fn acknowledged_entries_go_and_the_newest_stays() {
        let mut table = DedupTable::new(&[entry(1, 1), entry(2, 7)]);
        (2..=5).for_each(|op| table.complete(entry(1, op), 1));
        assert_eq!(table.len, 6);
        assert_eq!(table.len_after(entry(1, 6).id, 5), 3);
        table.complete(entry(1, 6), 5);
        assert_eq!(table.entries(), [entry(1, 5), entry(1, 6), entry(2, 7)]);
        table.complete(entry(1, 7), 100);
        assert_eq!(table.entries(), [entry(1, 7), entry(2, 7)]);
        assert_eq!((table.newest(StreamId([1; 16])), table.newest(StreamId([9; 16]))), (7, 0));
        assert_eq!((table.get(entry(1, 7).id), table.get(entry(1, 6).id)), (Some(entry(1, 7)), None));
        table.forget(&[StreamId([1; 16])]);
        assert_eq!(table.entries(), [entry(2, 7)]);
    }

    proptest! {
        /// Against the definition, computed from the whole log.
        #[test]
        fn the_table_is_the_function_of_the_log_that_it_should_be(
            log in proptest::collection::vec((0_u8..3, 0_u64..4), 0..60)
        ) {
            let mut table = DedupTable::default();
            let mut next = [1_u64; 3];
            let mut unacked = [0_u64; 3];
            let mut done: Vec<DedupEntry> = Vec::new();
            for (stream, acked) in log {
                let at = usize::from(stream);
                unacked[at] = (unacked[at] + acked).min(next[at]);
                let new = entry(stream, next[at]);
                let expected = table.len_after(new.id, unacked[at]);
                table.complete(new, unacked[at]);
                done.push(new);
                next[at] += 1;
                prop_assert_eq!(table.len, expected);
                let mut want: Vec<_> = done.iter().copied().filter(|entry| {
                    let at = usize::from(entry.id.stream.0[0]);
                    entry.id.op >= unacked[at] || entry.id.op + 1 == next[at]
                }).collect();
                want.sort_by_key(|entry| (entry.id.stream, entry.id.op));
                prop_assert_eq!(table.entries(), want);
            }
        }
    }
}
