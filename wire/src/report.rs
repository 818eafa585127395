//! What a client or member tells the master about a chain: REPORT (trouble) and FINISHED (done).

use serde::{Deserialize, Serialize};

use crate::ids::{ChunkHandle, Epoch, Seq, ServerId};
use crate::message::{Done, Message, Request, tag};
use crate::op::DedupEntry;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trouble {
    /// A member does not answer, or refuses connections.
    NoAnswer,
    /// Entries stay unacknowledged for longer than the watchdog.
    Stalled,
    /// A disk failed.
    DiskError,
    /// A block fails its checksum.
    BadBlock,
    /// Contents of members differ.
    Diverged,
    /// A replica is not what the master's log says.
    Stale,
    /// Acknowledged operations are missing.
    LostOps,
}

/// Asks the master to seal and roll. A wrong report costs a roll, never data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Which chunk.
    pub chunk: ChunkHandle,
    /// The chain the reporter knows; an older one than the master's is ignored.
    pub epoch: Epoch,
    /// What is wrong.
    pub trouble: Trouble,
    /// With which member, if known; else zero.
    pub suspect: ServerId,
}

impl Message for Report {
    const TAG: u16 = tag::REPORT;
}

impl Request for Report {
    type Reply = Done;
}

/// Head → master: FINAL is committed, the chunk can be recorded as sealed. [`Done`] means it is,
/// durably, or that the seal path has it in hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// Which chunk.
    pub chunk: ChunkHandle,
    /// The epoch of the FINAL.
    pub epoch: Epoch,
    /// Number of the FINAL entry.
    pub last_seq: Seq,
    /// Final length.
    #[serde(deserialize_with = "crate::bounds::chunk_len")]
    pub len: u32,
    /// Final digest.
    pub digest: [u8; 16],
    /// The dedup table, for the next chunk.
    #[serde(deserialize_with = "crate::bounds::dedup")]
    pub dedup: Vec<DedupEntry>,
}

impl Message for Finished {
    const TAG: u16 = tag::FINISHED;
}

impl Request for Finished {
    type Reply = Done;
}
