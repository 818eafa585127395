//! Which chunks have checksum pages in memory that could be read again, and a bound on them.

use std::collections::BTreeMap;

use wire::ChunkHandle;

/// Bytes of clean checksum pages that a shard keeps: the tables of 128 full chunks.
const CRC_BYTES_MAX: usize = 8 << 20;

/// Chunks by last use, with the bytes of their tables.
#[derive(Debug, Default)]
pub(crate) struct CrcCache {
    chunks: BTreeMap<ChunkHandle, (u64, usize)>,
    by_use: BTreeMap<u64, ChunkHandle>,
    bytes: usize,
    clock: u64,
}

impl CrcCache {
    /// A chunk's table was used and takes so much. Gives chunks whose tables should go.
    pub(crate) fn used(&mut self, chunk: ChunkHandle, bytes: usize) -> Vec<ChunkHandle> {
        // One of the half used last stays where it is: cheap, and as good.
        let is_recent =
            |(used, held): &(u64, usize)| *held == bytes && self.clock - used < self.chunks.len() as u64 / 2;
        if self.chunks.get(&chunk).is_some_and(is_recent) {
            return Vec::new();
        }
        self.forget(chunk);
        self.clock += 1;
        self.chunks.insert(chunk, (self.clock, bytes));
        self.by_use.insert(self.clock, chunk);
        self.bytes += bytes;
        let mut gone = Vec::new();
        while self.bytes > CRC_BYTES_MAX && self.by_use.len() > 1 {
            let Some((_, oldest)) = self.by_use.first_key_value() else { break };
            let oldest = *oldest;
            self.forget(oldest);
            gone.push(oldest);
        }
        gone
    }

    /// The chunk is gone, or its table must stay.
    pub(crate) fn forget(&mut self, chunk: ChunkHandle) {
        if let Some((used, bytes)) = self.chunks.remove(&chunk) {
            self.by_use.remove(&used);
            self.bytes -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_used_longest_ago_go_first() {
        let mut cache = CrcCache::default();
        let half = CRC_BYTES_MAX / 2;
        assert!(cache.used(ChunkHandle(1), half).is_empty());
        assert!(cache.used(ChunkHandle(2), half).is_empty());
        assert!(cache.used(ChunkHandle(1), half).is_empty());
        assert_eq!(cache.used(ChunkHandle(3), half), [ChunkHandle(2)]);
        cache.forget(ChunkHandle(1));
        assert_eq!(cache.bytes, half);
        assert_eq!(cache.used(ChunkHandle(4), 3 * half), [ChunkHandle(3)]);
    }

    #[test]
    fn a_table_that_is_used_among_others_never_goes() {
        let mut cache = CrcCache::default();
        let eighth = CRC_BYTES_MAX / 8;
        for other in 2..100 {
            assert!(!cache.used(ChunkHandle(other), eighth).contains(&ChunkHandle(1)), "at {other}");
            assert!(!cache.used(ChunkHandle(1), eighth).contains(&ChunkHandle(1)));
            assert!(cache.bytes <= CRC_BYTES_MAX && cache.chunks.len() == cache.by_use.len());
        }
    }
}
