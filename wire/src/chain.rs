//! CREATE and REOPEN: the master makes a chain, one message to each member.

use serde::{Deserialize, Serialize};

use crate::ids::{ChunkHandle, Epoch, InodeId, Term};
use crate::member::Member;
use crate::message::{Done, Message, Request, tag};
use crate::op::DedupEntry;

/// Makes an empty replica. The answer [`Done`] means the CREATE record is durable; the same again
/// is answered the same; another epoch of an existing chunk is refused with `ChunkExists`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Create {
    /// The master's term.
    pub term: Term,
    /// Which chunk.
    pub chunk: ChunkHandle,
    /// Its first epoch.
    pub epoch: Epoch,
    /// The chain in order, head first; at most [`crate::limits::MEMBERS_MAX`].
    #[serde(deserialize_with = "crate::bounds::chain")]
    pub members: Vec<Member>,
    /// Which of them the receiver is.
    pub my_position: u8,
    /// The chunk before it in the file, or [`ChunkHandle::NONE`].
    pub prev: ChunkHandle,
    /// The file it belongs to, for rebuilding a lost name space.
    pub file: InodeId,
    /// Inherited dedup entries; at most [`crate::limits::DEDUP_ENTRIES_MAX`].
    #[serde(deserialize_with = "crate::bounds::dedup")]
    pub dedup: Vec<DedupEntry>,
}

impl Message for Create {
    const TAG: u16 = tag::CREATE;
}

impl Request for Create {
    type Reply = Done;
}

/// Opens a sealed replica again, for overwrites below its end: entries count from 1 under the new epoch;
/// content, length and dedup table stay. The answer [`Done`] means the record is durable; the same again
/// is answered the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reopen {
    /// The master's term.
    pub term: Term,
    /// Which chunk.
    pub chunk: ChunkHandle,
    /// The epoch that begins.
    pub epoch: Epoch,
    /// The chain in order, head first; at most [`crate::limits::MEMBERS_MAX`].
    #[serde(deserialize_with = "crate::bounds::chain")]
    pub members: Vec<Member>,
    /// Which of them the receiver is.
    pub my_position: u8,
    /// The sealed length.
    #[serde(deserialize_with = "crate::bounds::chunk_len")]
    pub len: u32,
    /// The sealed digest.
    pub digest: [u8; 16],
}

impl Message for Reopen {
    const TAG: u16 = tag::REOPEN;
}

impl Request for Reopen {
    type Reply = Done;
}

/// Asks a holder for a chunk's dedup table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Which chunk.
    pub chunk: ChunkHandle,
}

/// The answer to [`Table`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableOk {
    /// At most [`crate::limits::DEDUP_ENTRIES_MAX`].
    #[serde(deserialize_with = "crate::bounds::dedup")]
    pub dedup: Vec<DedupEntry>,
}

impl Message for Table {
    const TAG: u16 = tag::TABLE;
}

impl Request for Table {
    type Reply = TableOk;
}

impl Message for TableOk {
    const TAG: u16 = tag::TABLE_OK;
}

/// Takes a replica out of service; its bytes stay for a while. The answer is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condemn {
    /// The master's term.
    pub term: Term,
    /// Which chunk.
    pub chunk: ChunkHandle,
    /// Position in the master's operation log of the entry that allows it. Never zero.
    pub authority: u64,
    /// Unix seconds at the master, kept for display.
    pub now_unix: u64,
}

impl Message for Condemn {
    const TAG: u16 = tag::CONDEMN;
}

impl Request for Condemn {
    type Reply = Done;
}

/// Frees the slot of a condemned replica. The answer is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Free {
    /// The master's term.
    pub term: Term,
    /// Which chunk.
    pub chunk: ChunkHandle,
    /// As in [`Condemn`]; must be equal to the one that condemned it.
    pub authority: u64,
}

impl Message for Free {
    const TAG: u16 = tag::FREE;
}

impl Request for Free {
    type Reply = Done;
}
