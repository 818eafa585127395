//! CLONE: the master has a server make a whole sealed replica from other holders (replication.md,
//! section 10); CRCS: what the target asks a holder first, to fetch only what it has not.

use serde::{Deserialize, Serialize};

use crate::ids::{ChunkHandle, Epoch, InodeId, Seq, Term};
use crate::member::Member;
use crate::message::{Message, Request, tag};

/// Makes a sealed replica. The answer is durable; the same again is answered the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneChunk {
    /// The master's term.
    pub term: Term,
    /// Which chunk.
    pub chunk: ChunkHandle,
    /// Epoch of its seal.
    pub epoch: Epoch,
    /// Last entry of its log.
    pub last_seq: Seq,
    /// Sealed length.
    #[serde(deserialize_with = "crate::bounds::chunk_len")]
    pub len: u32,
    /// Sealed digest.
    pub digest: [u8; 16],
    /// The file it belongs to.
    pub file: InodeId,
    /// The chunk before it in the file, or [`ChunkHandle::NONE`].
    pub prev: ChunkHandle,
    /// Holders, the best source first; at most [`crate::limits::MEMBERS_MAX`].
    #[serde(deserialize_with = "crate::bounds::chain")]
    pub sources: Vec<Member>,
    /// Position in the master's operation log of the entry that allows to replace another copy that is
    /// here; zero: none may be replaced.
    pub authority: u64,
    /// Bytes per second at most; zero: the target's own share of its disk.
    pub rate: u64,
}

/// The answer to [`CloneChunk`]: the replica is durable and sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cloned {
    /// Bytes that came from other servers.
    #[serde(deserialize_with = "crate::bounds::chunk_len")]
    pub fetched: u32,
    /// Bytes that the target had.
    #[serde(deserialize_with = "crate::bounds::chunk_len")]
    pub kept: u32,
}

/// Asks a holder for the checksums of all blocks of a sealed chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crcs {
    /// Which chunk.
    pub chunk: ChunkHandle,
    /// Its digest: of another content nobody wants the checksums.
    pub digest: [u8; 16],
}

/// The answer to [`Crcs`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrcsOk {
    /// CRC-32C of each 4 KiB block in order, that of a partial last one with zeros behind it; at most as
    /// many as a chunk has blocks.
    #[serde(deserialize_with = "crate::bounds::blocks")]
    pub crcs: Vec<u32>,
}

impl Message for CloneChunk {
    const TAG: u16 = tag::CLONE;
}

impl Request for CloneChunk {
    type Reply = Cloned;
}

impl Message for Cloned {
    const TAG: u16 = tag::CLONE_OK;
}

impl Message for Crcs {
    const TAG: u16 = tag::CRCS;
}

impl Request for Crcs {
    type Reply = CrcsOk;
}

impl Message for CrcsOk {
    const TAG: u16 = tag::CRCS_OK;
}
