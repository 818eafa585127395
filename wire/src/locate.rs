//! LOCATE: client → master: which chunk, on which servers.

use serde::{Deserialize, Serialize};

use crate::ids::{ChunkHandle, Epoch, InodeId};
use crate::member::{ChunkState, Member};
use crate::message::{Message, Request, tag};

/// Which chunk is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Position {
    /// The chunk that holds this byte of the file, and those after it.
    Offset(u64),
    /// The chunk with this index, and those after it.
    Index(u32),
    /// The last chunk. With [`Intent::Append`] one that is open: made when there is none.
    Tail,
}

/// What the caller will do there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Intent {
    /// Read. Changes nothing.
    Read,
    /// Append. May open a chunk, and waits while the tail is being sealed.
    Append,
    /// Write below the end of a chunk, at [`Position::Offset`]. Seals a chunk that takes appends, and
    /// re-opens a sealed one; waits for that.
    Write,
}

/// Asks for locations in one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locate {
    /// Which file; named or not yet.
    pub file: InodeId,
    /// From where.
    pub at: Position,
    /// What for.
    pub intent: Intent,
    /// At most this many, 1 to [`crate::limits::PAGE_ENTRIES_MAX`]; one with [`Intent::Append`] and [`Intent::Write`].
    pub count: u32,
}

/// Asks where one chunk is, by its handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocateChunk {
    /// Which chunk.
    pub chunk: ChunkHandle,
}

/// One chunk of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Location {
    /// The file it belongs to.
    pub file: InodeId,
    /// Its position in the file's list.
    pub index: u32,
    /// File offset of its first byte.
    pub start: u64,
    /// Its handle.
    pub chunk: ChunkHandle,
    /// Its state.
    pub state: ChunkState,
    /// Its epoch.
    pub epoch: Epoch,
    /// Final length, when sealed or re-opened; else the last length reported, for display only.
    #[serde(deserialize_with = "crate::bounds::chunk_len")]
    pub len: u32,
    /// Open or re-opened: the chain in order, head first. Sealed: the holders, living ones first.
    pub members: Vec<Member>,
    /// How long the caller may use this, milliseconds.
    pub expire_ms: u32,
}

/// The answer to [`Locate`] and [`LocateChunk`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locations {
    /// In order of index, without gaps; empty when the position is at or past the end.
    #[serde(deserialize_with = "crate::bounds::page")]
    pub items: Vec<Location>,
    /// Version of the file, see [`crate::namespace::Attr::version`].
    pub version: u64,
    /// Chunks of the file.
    pub chunk_count: u32,
}

impl Message for Locate {
    const TAG: u16 = tag::LOCATE;
}

impl Request for Locate {
    type Reply = Locations;
}

impl Message for LocateChunk {
    const TAG: u16 = tag::LOCATE_CHUNK;
}

impl Request for LocateChunk {
    type Reply = Locations;
}

impl Message for Locations {
    const TAG: u16 = tag::LOCATIONS;
}
