//! The rows of the state's tables. Stored by the codec: a new field is a new format of the checkpoint.

use serde::{Deserialize, Serialize};
use wire::{ChunkHandle, ClusterId, DedupEntry, Epoch, InodeId, Seq, ServerId, Term, codec};

use super::table::Row;
use crate::master::entry::{Answer, Dropping, Lsn};

/// Numbers of the whole cluster. None of them ever falls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// The last entry applied.
    pub applied: Lsn,
    /// Time of the last entry, unix milliseconds.
    pub now_ms: u64,
    /// Milliseconds that have passed from entry to entry, a minute at most between two: what is forgotten
    /// by age is forgotten by this, and no jump of the wall clock counts.
    pub lived_ms: u64,
    /// The cluster's name; zero before it is founded.
    pub cluster: ClusterId,
    /// Term of the master.
    pub term: Term,
    /// The next inode has this number.
    pub next_inode: u64,
    /// The next chunk has this handle.
    pub next_chunk: u64,
    /// The next server has this id; zero stands for one.
    pub next_server: u32,
}

impl Counters {
    pub(super) fn row(self) -> Vec<Row> {
        vec![(vec![0], Some(codec::encode(&self)))]
    }
}

/// A file or directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inode {
    /// The directory that names it; [`super::NOWHERE`] for the root, uploads, and the tops of the trash.
    pub parent: InodeId,
    /// Unix milliseconds.
    pub created_ms: u64,
    /// Unix milliseconds.
    pub modified_ms: u64,
    /// The entry that changed it last.
    pub version: Lsn,
    /// Which of the two.
    pub node: Node,
}

impl Inode {
    pub(super) fn new(lsn: Lsn, now_ms: u64, parent: InodeId, node: Node) -> Self {
        Self { parent, created_ms: now_ms, modified_ms: now_ms, version: lsn, node }
    }

    pub(super) fn touch(&mut self, lsn: Lsn, now_ms: u64) {
        self.version = lsn;
        self.modified_ms = now_ms;
    }
}

/// What differs between files and directories.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Node {
    /// A directory.
    Directory {
        /// Names in it.
        children: u64,
        /// Files in the whole tree below.
        files: u64,
        /// Directories in the whole tree below, without itself.
        directories: u64,
    },
    /// A file.
    File {
        /// Bytes in sealed chunks.
        len: u64,
        /// Chunks, the open one included.
        chunks: u32,
        /// As given at upload; may be empty.
        content_type: String,
        /// As given at upload, while nothing was written since.
        sha256: Option<[u8; 32]>,
        /// Replicas wanted.
        replicas: u32,
    },
}

impl Node {
    pub(super) fn directory() -> Self {
        Self::Directory { children: 0, files: 0, directories: 0 }
    }

    pub(super) fn file(content_type: &str, replicas: u32) -> Self {
        Self::File { len: 0, chunks: 0, content_type: content_type.into(), sha256: None, replicas }
    }
}

/// A chunk in its place in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Which chunk.
    pub chunk: ChunkHandle,
    /// File offset of its first byte.
    pub start: u64,
}

/// A chunk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Its file.
    pub file: InodeId,
    /// The chunk before it when it was opened.
    pub prev: ChunkHandle,
    /// The epoch of its chain; once sealed that of the seal.
    pub epoch: Epoch,
    /// Where it stands.
    pub phase: Phase,
    /// Not sealed: the chain in order, head first. Sealed: the holders.
    pub members: Vec<ServerId>,
    /// Sealed: members of its chain that were not there and may have something else.
    pub stale: Vec<ServerId>,
    /// Replicas wanted.
    pub wanted: u32,
    /// Unix milliseconds.
    pub opened_ms: u64,
    /// Re-opened and not sealed since: what it was sealed as before. Its length stays.
    pub fixed: Option<Fixed>,
}

/// The content of a chunk when it was re-opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fixed {
    /// Epoch of the seal.
    pub epoch: Epoch,
    /// Length, before and after.
    pub len: u32,
    /// Digest, before.
    pub digest: [u8; 16],
}

/// Where a chunk stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Its chain takes appends; or overwrites, when it was re-opened.
    Open,
    /// Its members are asked to promise this epoch.
    Sealing(Epoch),
    /// Fixed.
    Sealed {
        /// Length.
        len: u32,
        /// Last entry.
        last_seq: Seq,
        /// Digest.
        digest: [u8; 16],
    },
}

impl Chunk {
    /// Its length as far as it is fixed.
    #[must_use]
    pub fn len(&self) -> u32 {
        match (self.phase, self.fixed) {
            (Phase::Sealed { len, .. }, _) | (_, Some(Fixed { len, .. })) => len,
            _ => 0,
        }
    }

    /// Of its content while it is sealed.
    #[must_use]
    pub fn digest(&self) -> Option<[u8; 16]> {
        match self.phase {
            Phase::Sealed { digest, .. } => Some(digest),
            _ => None,
        }
    }

    /// Whether it takes no more appends: sealed, or re-opened for overwrites.
    #[must_use]
    pub fn has_end(&self) -> bool {
        self.fixed.is_some() || matches!(self.phase, Phase::Sealed { .. })
    }

    /// Whether its length is fixed, to something.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The highest epoch this log knows of it.
    #[must_use]
    pub fn epoch_max(&self) -> Epoch {
        if let Phase::Sealing(epoch) = self.phase { epoch.max(self.epoch) } else { self.epoch }
    }
}

/// A deleted name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trashed {
    /// What it stood for.
    pub inode: InodeId,
    /// Where it was.
    pub path: String,
    /// When it was deleted, unix milliseconds.
    pub deleted_ms: u64,
    /// Its files are being buried: it cannot come back.
    pub purging: bool,
}

/// The permission to free a chunk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tomb {
    /// The entry that gave it.
    pub authority: Lsn,
    /// From when on it holds, unix milliseconds: readers at work may finish before.
    pub from_ms: u64,
    /// Servers that may still have a replica.
    pub servers: Vec<ServerId>,
}

/// A replica that does not count any more: the permission to condemn and free it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// The entry that gave it.
    pub authority: Lsn,
    /// Why.
    pub why: Dropping,
    /// When, unix milliseconds.
    pub at_ms: u64,
}

/// A server that is to be emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// Since when, unix milliseconds.
    pub since_ms: u64,
}

/// How fast repair may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuning {
    /// Nothing is begun.
    pub paused: bool,
    /// Bytes per second of one server; zero: 30 % of what its disk can do.
    pub server_rate: u64,
    /// Bytes per second of all together; zero: no limit.
    pub cluster_rate: u64,
}

/// An upload without a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// When it began, unix milliseconds.
    pub since_ms: u64,
}

/// The first answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// The entry that answered it.
    pub lsn: Lsn,
    /// When, in [`Counters::lived_ms`].
    pub at_ms: u64,
    /// What.
    pub answer: Answer,
}

/// The dedup table a file's next chunk inherits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streams {
    /// When its last chunk was sealed, in [`Counters::lived_ms`].
    pub since_ms: u64,
    /// The table.
    pub dedup: Vec<DedupEntry>,
}
