//! Operations: what makes a retry the same operation.

use serde::{Deserialize, Serialize};

use crate::ids::{ChunkHandle, StreamId};

/// Names one operation of one writer: the same id is the same operation, also across a roll.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OpId {
    /// The writer.
    pub stream: StreamId,
    /// Number within the stream, from 1.
    pub op: u64,
}

/// One line of a chunk's dedup table: an operation that is in the log, and where it landed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DedupEntry {
    /// The operation.
    pub id: OpId,
    /// The chunk it landed in: this one, or one before it in the file.
    pub chunk: ChunkHandle,
    /// Offset in that chunk, bytes.
    pub offset: u32,
    /// Length in bytes.
    pub len: u32,
}
