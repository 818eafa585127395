//! The seal path (replication.md, section 5.2): PREPARE, SEAL, CONFIRM, and DIGEST.

use serde::{Deserialize, Serialize};

use crate::ids::{ChunkHandle, Epoch, Seq, Term};
use crate::member::{Member, ReplicaState};
use crate::message::{Done, Message, Request, tag};
use crate::op::DedupEntry;

/// Asks a member to give up the old epoch. The answer is durable and covers every entry accepted before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepare {
    /// The master's term.
    pub term: Term,
    /// Which chunk.
    pub chunk: ChunkHandle,
    /// The epoch to promise.
    pub epoch: Epoch,
}

/// What a member has, after its promise. Of a sealed replica: its final content, nothing was promised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrepareOk {
    /// The epoch promised.
    pub promised: Epoch,
    /// The epoch whose log this is.
    pub epoch: Epoch,
    /// Open, restarted, or sealed already.
    pub state: ReplicaState,
    /// Last entry of the last complete operation.
    pub last_seq: Seq,
    /// Bytes after it.
    #[serde(deserialize_with = "crate::bounds::chunk_len")]
    pub len: u32,
    /// Digest of these bytes.
    pub digest: [u8; 16],
    /// Known committed.
    pub committed_seq: Seq,
    /// Entries up to here existed, their data could not be verified; else zero.
    pub suspect_seq: Seq,
    /// Journal undamaged, no disk error: its lengths count.
    pub healthy: bool,
}

impl Message for Prepare {
    const TAG: u16 = tag::PREPARE;
}

impl Request for Prepare {
    type Reply = PrepareOk;
}

impl Message for PrepareOk {
    const TAG: u16 = tag::PREPARE_OK;
}

/// Fixes the content under a promised epoch. A shorter member fills from `source` first. The answer
/// is durable; the replica is filled, not yet sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// The master's term.
    pub term: Term,
    /// Which chunk.
    pub chunk: ChunkHandle,
    /// The promised epoch.
    pub epoch: Epoch,
    /// Last entry of the final content.
    pub last_seq: Seq,
    /// Length of the final content.
    #[serde(deserialize_with = "crate::bounds::chunk_len")]
    pub len: u32,
    /// Digest of the final content.
    pub digest: [u8; 16],
    /// A member that has all of it.
    pub source: Member,
}

/// The answer to [`Seal`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealOk {
    /// The dedup table of the final content, to be inherited by the next chunk.
    #[serde(deserialize_with = "crate::bounds::dedup")]
    pub dedup: Vec<DedupEntry>,
}

impl Message for Seal {
    const TAG: u16 = tag::SEAL;
}

impl Request for Seal {
    type Reply = SealOk;
}

impl Message for SealOk {
    const TAG: u16 = tag::SEAL_OK;
}

/// The seal is in the master's log: the replica becomes sealed and may be read whole. Durable when
/// answered. A replica with other content refuses with `StaleEpoch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirm {
    /// The master's term.
    pub term: Term,
    /// Which chunk.
    pub chunk: ChunkHandle,
    /// The epoch of the seal: promised, or of the FINAL.
    pub epoch: Epoch,
    /// Final length.
    #[serde(deserialize_with = "crate::bounds::chunk_len")]
    pub len: u32,
    /// Final digest.
    pub digest: [u8; 16],
}

impl Message for Confirm {
    const TAG: u16 = tag::CONFIRM;
}

impl Request for Confirm {
    type Reply = Done;
}

/// Asks for the digest of a prefix; also how people compare replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// Which chunk.
    pub chunk: ChunkHandle,
    /// Length of the prefix; `u32::MAX` means "all you have".
    pub len: u32,
}

/// The answer to [`Digest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestOk {
    /// Length the digest covers.
    #[serde(deserialize_with = "crate::bounds::chunk_len")]
    pub len: u32,
    /// XXH3-128 over the block CRCs, the tail and the length (disk-format.md, section 5.3).
    pub digest: [u8; 16],
    /// State of the replica.
    pub state: ReplicaState,
    /// Epoch of its log.
    pub epoch: Epoch,
}

impl Message for Digest {
    const TAG: u16 = tag::DIGEST;
}

impl Request for Digest {
    type Reply = DigestOk;
}

impl Message for DigestOk {
    const TAG: u16 = tag::DIGEST_OK;
}
