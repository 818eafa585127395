//! The nouns of the system, as types, so that two `u64`s cannot be swapped at a call site.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Immutable, globally unique name of a chunk, assigned by the master and never reused (GFS section 2.3).
/// Zero is "no chunk".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChunkHandle(pub u64);

impl ChunkHandle {
    /// The absent chunk: the predecessor of a file's first chunk.
    pub const NONE: Self = Self(0);

    /// The shard of a server with `shards` shards that owns this chunk.
    ///
    /// Client, peers and server compute the same number, so that a connection goes to the right
    /// core at once. `shards` must not be zero.
    #[must_use]
    pub fn shard(self, shards: u32) -> u32 {
        assert!(shards > 0, "a server has at least one shard");
        let mut x = self.0;
        x ^= x >> 30;
        x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x ^= x >> 27;
        x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        // The remainder is smaller than `shards`, so it fits.
        u32::try_from(x % u64::from(shards)).unwrap_or(0)
    }
}

impl fmt::Display for ChunkHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Counts the chain configurations of one chunk. A replica that holds an older epoch than the
/// master's is stale; a request that carries an older epoch than the replica's is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u32);

impl Epoch {
    /// The epoch of the next chain. Wrapping would make a fenced chain look new, so running out is
    /// a crash, not a wrap: at one new chain a minute it takes 8,000 years.
    #[must_use]
    #[expect(clippy::expect_used, reason = "a wrapped epoch would unfence dead chains")]
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("epochs of a chunk exhausted"))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Number of a log entry within (chunk, epoch), from 1. One entry is one frame is one journal record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Seq(pub u64);

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A chunkserver, as registered with the master. Stable across restarts; zero is "not registered".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServerId(pub u32);

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A file or directory. Never reused: a handle to a replaced file cannot show the new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InodeId(pub u64);

impl InodeId {
    /// The root directory.
    pub const ROOT: Self = Self(1);
}

impl fmt::Display for InodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Term of a master. Members persist the highest and refuse commands of a lower one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Term(pub u32);

/// One cluster, made once by its first master. A disk of another cluster is refused. Zero is "none yet".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClusterId(pub [u8; 16]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A writer stream: one writer of one append position, 16 random bytes. Its operations are numbered from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StreamId(pub [u8; 16]);

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Names one metadata mutation of one client, so that a retry is the same operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId {
    /// 16 random bytes, chosen when the client started.
    pub client: [u8; 16],
    /// Number within the client, from 1.
    pub number: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_of_a_chunk_is_pinned() {
        // Client and server of different builds must agree, or connections go to the wrong core.
        let shards: Vec<u32> = (1..=8).map(|handle| ChunkHandle(handle).shard(4)).collect();
        assert_eq!(shards, PINNED);
        assert!((0..1000).all(|handle| ChunkHandle(handle).shard(1) == 0));
    }

    #[test]
    fn consecutive_handles_spread_over_the_shards() {
        for shards in [2, 3, 4, 8] {
            let mut counts = vec![0; shards as usize];
            for handle in 1..=1000 {
                counts[ChunkHandle(handle).shard(shards) as usize] += 1;
            }
            assert!(counts.iter().all(|count| *count > 800 / shards), "{counts:?}");
        }
    }

    const PINNED: [u32; 8] = [1, 2, 0, 0, 0, 0, 0, 0];
}
