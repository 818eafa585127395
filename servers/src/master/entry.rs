//! Entries: everything durable about the cluster is the result of applying these in order.
//!
//! An entry carries all that applying it needs: the time, and the numbers of the inodes and chunks
//! it makes. So the same entries give the same state on every machine, in every year.

use serde::{Deserialize, Serialize};
use wire::upload::Precondition;
use wire::{ChunkHandle, ClusterId, DedupEntry, Epoch, InodeId, RequestId, Seq, ServerId, Term};

/// Place of an entry in the operation log, from 1. Also an authority for deletion, and the version
/// of whatever the entry changed: it never repeats.
pub type Lsn = u64;

/// One line of the operation log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Unix milliseconds at the master; never falls from entry to entry.
    pub now_ms: u64,
    /// Inodes this entry makes are numbered from here.
    pub first_inode: u64,
    /// The chunk this entry makes has this handle.
    pub next_chunk: u64,
    /// What changes.
    pub change: Change,
}

/// What an entry changes. Paths are in normal form (see [`wire::NamePath`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Makes the cluster: the first entry of every log.
    Found {
        /// Its name, random.
        cluster: ClusterId,
    },
    /// A life of the master begins.
    Term {
        /// Its number.
        term: Term,
    },
    /// A chunkserver introduces itself, or has moved.
    Register {
        /// Its id: the next free one, or one known already.
        server: ServerId,
        /// What it says about itself.
        record: ServerRecord,
    },
    /// A chunk at the end of a file.
    OpenChunk {
        /// Which file.
        file: InodeId,
        /// The chain in order, head first.
        members: Vec<ServerId>,
    },
    /// The chunk's chain is over; what it leaves is being found out.
    SealStart {
        /// Which chunk.
        chunk: ChunkHandle,
        /// The epoch its members are asked to promise.
        epoch: Epoch,
    },
    /// The chunk's content is fixed for ever.
    Sealed {
        /// Which chunk.
        chunk: ChunkHandle,
        /// The epoch promised, or that of the FINAL.
        epoch: Epoch,
        /// Its length.
        len: u32,
        /// Its last entry.
        last_seq: Seq,
        /// Its digest.
        digest: [u8; 16],
        /// Who has all of it.
        holders: Vec<ServerId>,
        /// The dedup table, inherited by the file's next chunk.
        dedup: Vec<DedupEntry>,
    },
    /// The chunk was never given to anybody.
    Abandon {
        /// Which chunk.
        chunk: ChunkHandle,
    },
    /// A sealed chunk takes overwrites: a new epoch begins.
    Reopen {
        /// Which chunk.
        chunk: ChunkHandle,
        /// The epoch that begins.
        epoch: Epoch,
        /// The chain in order, head first: holders of the sealed content.
        members: Vec<ServerId>,
        /// The other holders: what they have will be old.
        dropped: Vec<ServerId>,
    },
    /// One more holder of a sealed chunk.
    AddReplica {
        /// Which chunk.
        chunk: ChunkHandle,
        /// Who has it.
        server: ServerId,
        /// Of what it has. The chunk may have been re-opened and written since that was copied or compared.
        digest: [u8; 16],
    },
    /// A replica was freed by its server.
    Freed {
        /// Which chunk.
        chunk: ChunkHandle,
        /// Who freed it.
        server: ServerId,
    },
    /// Makes a directory and those above it.
    Mkdir {
        /// Makes a retry the same request.
        request: RequestId,
        /// Which.
        path: String,
    },
    /// Makes an empty file and the directories above it.
    Create {
        /// Makes a retry the same request.
        request: RequestId,
        /// Which.
        path: String,
        /// Replicas wanted of its chunks.
        replicas: u32,
    },
    /// Moves a name to the trash.
    Delete {
        /// Makes a retry the same request.
        request: RequestId,
        /// Which.
        path: String,
        /// With all below it.
        recursive: bool,
    },
    /// Brings the newest deleted version of a path back.
    Undelete {
        /// Makes a retry the same request.
        request: RequestId,
        /// Which.
        path: String,
    },
    /// Moves a name.
    Rename {
        /// Makes a retry the same request.
        request: RequestId,
        /// What.
        from: String,
        /// Where to.
        to: String,
        /// A file at the target goes to the trash.
        replace: bool,
    },
    /// Makes an inode without a name.
    BeginUpload {
        /// Makes a retry the same request.
        request: RequestId,
        /// As given by the client.
        content_type: String,
        /// Replicas wanted of its chunks.
        replicas: u32,
    },
    /// Gives an upload its name.
    Publish {
        /// Makes a retry the same request.
        request: RequestId,
        /// The upload.
        inode: InodeId,
        /// Its name.
        path: String,
        /// What must hold at the name.
        precondition: Precondition,
        /// Its length.
        len: u64,
        /// As given by the client.
        sha256: Option<[u8; 32]>,
    },
    /// Replaces chunks of a file by those of an upload.
    Splice {
        /// Makes a retry the same request.
        request: RequestId,
        /// The file.
        file: InodeId,
        /// Its version.
        version: u64,
        /// First chunk replaced.
        index: u32,
        /// How many.
        remove: u32,
        /// The upload, used up by this.
        upload: InodeId,
    },
    /// Gives an upload up.
    AbortUpload {
        /// Makes a retry the same request; [`RequestId::default`] when the master does it by itself.
        request: RequestId,
        /// The upload.
        inode: InodeId,
    },
    /// Tombstones for the next few files of something in the trash.
    Purge {
        /// Key of the trash: the entry that deleted it.
        trash: Lsn,
    },
    /// A replica of a sealed chunk does not count any more: the permission to condemn and free it.
    DropReplica {
        /// Which chunk.
        chunk: ChunkHandle,
        /// Whose replica.
        server: ServerId,
        /// Why.
        why: Dropping,
    },
    /// A server is to be emptied, or not any more.
    Drain {
        /// Makes a retry the same request.
        request: RequestId,
        /// Which.
        server: ServerId,
        /// Emptied, or not.
        drain: bool,
    },
    /// How fast repair may be. What is `None` stays.
    Tune {
        /// Makes a retry the same request.
        request: RequestId,
        /// Nothing is begun.
        paused: Option<bool>,
        /// Bytes per second of one server; zero: 30 % of its disk.
        server_rate: Option<u64>,
        /// Bytes per second of all together; zero: no limit.
        cluster_rate: Option<u64>,
    },
}

/// Why a replica does not count any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dropping {
    /// There are enough others.
    Surplus,
    /// It has other content than was sealed.
    Stale,
    /// Its server is drained, and the others have it.
    Drained,
}

/// What a chunkserver says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRecord {
    /// Uuid of its disk; zero until it is formatted.
    pub disk: [u8; 16],
    /// Its data port, `host:port`.
    pub address: String,
    /// Its admin port; may be empty.
    pub admin: String,
    /// Its shards.
    pub shards: u32,
    /// Its failure zone; may be empty.
    pub zone: String,
    /// Its version, for people.
    pub version: String,
}

/// What applying an entry answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// It is done.
    Done,
    /// This is what the name stands for now.
    Attr(wire::namespace::Attr),
    /// This inode was made.
    Inode(InodeId),
    /// This chunk was made.
    Chunk(ChunkHandle),
}

/// What must happen outside once an entry is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The chunks of this file changed: whoever waits for that looks again.
    Changed(InodeId),
    /// A seal is final: CONFIRM may leave.
    Confirm(ChunkHandle),
}

impl Entry {
    /// Type number of the entry in its record, for people and for tools.
    #[must_use]
    pub fn kind(&self) -> u8 {
        match self.change {
            Change::Term { .. } => 64,
            Change::Register { .. } | Change::Drain { .. } => 65,
            Change::OpenChunk { .. } => 66,
            Change::SealStart { .. } => 67,
            Change::Sealed { .. } => 68,
            Change::Abandon { .. } => 69,
            Change::Reopen { .. } => 70,
            Change::AddReplica { .. } => 71,
            Change::DropReplica { .. } => 72,
            Change::Purge { .. } => 73,
            Change::Freed { .. } => 74,
            Change::Tune { .. } => 77,
            Change::Found { .. } => 79,
            Change::Mkdir { .. } => 80,
            Change::Create { .. } => 81,
            Change::Delete { .. } => 82,
            Change::Undelete { .. } => 83,
            Change::Rename { .. } => 84,
            Change::BeginUpload { .. } => 85,
            Change::Publish { .. } => 86,
            Change::Splice { .. } => 87,
            Change::AbortUpload { .. } => 88,
        }
    }

    /// The chunk and epoch it is about, for its record; zero when it is about none.
    #[must_use]
    pub fn subject(&self) -> (ChunkHandle, Epoch) {
        match self.change {
            Change::OpenChunk { .. } => (ChunkHandle(self.next_chunk), Epoch(1)),
            Change::SealStart { chunk, epoch }
            | Change::Sealed { chunk, epoch, .. }
            | Change::Reopen { chunk, epoch, .. } => (chunk, epoch),
            Change::Abandon { chunk }
            | Change::AddReplica { chunk, .. }
            | Change::DropReplica { chunk, .. }
            | Change::Freed { chunk, .. } => (chunk, Epoch::default()),
            _ => (ChunkHandle::NONE, Epoch::default()),
        }
    }
}

impl Change {
    /// The client's name for it, when it has one.
    #[must_use]
    pub fn request(&self) -> Option<RequestId> {
        let (Self::Mkdir { request, .. }
        | Self::Create { request, .. }
        | Self::Delete { request, .. }
        | Self::Undelete { request, .. }
        | Self::Rename { request, .. }
        | Self::BeginUpload { request, .. }
        | Self::Publish { request, .. }
        | Self::Splice { request, .. }
        | Self::AbortUpload { request, .. }
        | Self::Drain { request, .. }
        | Self::Tune { request, .. }) = self
        else {
            return None;
        };
        (*request != RequestId::default()).then_some(*request)
    }
}
