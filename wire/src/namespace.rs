//! Names: mkdir, create, delete, undelete, rename, stat, list. Client → master.
//!
//! Paths travel as text and are checked again by the master ([`crate::NamePath::parse`]). Every
//! mutation carries a [`RequestId`]: a retry gets the first answer. Every answer is durable.

use serde::{Deserialize, Serialize};

use crate::ids::{InodeId, RequestId};
use crate::locate::Location;
use crate::message::{Message, Request, tag};

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attr {
    /// Its identity; a replaced file is another inode.
    pub inode: InodeId,
    /// A directory.
    pub is_dir: bool,
    /// Bytes in sealed chunks. The file's length is this plus what [`Attr::tail`] has committed.
    pub len: u64,
    /// The open chunk at the end, if any: ask its head how long it is.
    pub tail: Option<Location>,
    /// Bytes last reported for the open chunk: good enough for a listing.
    pub tail_len_hint: u32,
    /// Chunks, the open one included.
    pub chunks: u32,
    /// Changes whenever the list of chunks or an attribute does; never repeats for one inode.
    pub version: u64,
    /// Unix milliseconds.
    pub created_ms: u64,
    /// Unix milliseconds of the last change known to the master.
    pub modified_ms: u64,
    /// As given at upload; may be empty.
    pub content_type: String,
    /// SHA-256 of the content, when the uploader computed it and nothing was written since.
    pub sha256: Option<[u8; 32]>,
    /// Replicas wanted.
    pub replicas: u32,
}

/// Makes a directory, and those above it. One that exists is fine; a file in the way is a `Conflict`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mkdir {
    /// Makes a retry the same request.
    pub request: RequestId,
    /// Which directory.
    pub path: String,
}

/// Makes an empty file, and the directories above it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateFile {
    /// Makes a retry the same request.
    pub request: RequestId,
    /// Which file.
    pub path: String,
    /// Refuse with `Exists` when there is one; else answer with it unchanged.
    pub exclusive: bool,
}

/// Hides a file or directory in the trash, from where it can be brought back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delete {
    /// Makes a retry the same request.
    pub request: RequestId,
    /// What.
    pub path: String,
    /// Directories with something in them too; else `Conflict`.
    pub recursive: bool,
}

/// Moves a file or directory; makes the directories above the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rename {
    /// Makes a retry the same request.
    pub request: RequestId,
    /// What.
    pub from: String,
    /// Where to.
    pub to: String,
    /// An existing file at the target goes to the trash; else `Exists`. A directory is never replaced.
    pub replace: bool,
}

/// What does this name stand for?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    /// Which name.
    pub path: String,
}

/// Lists a directory in byte order of names, or a whole tree in byte order of paths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// Which directory. Of a file: an empty listing.
    pub path: String,
    /// Start after this one: [`Listing::next`] of the page before; empty for the first.
    pub after: String,
    /// At most this many, 1 to [`crate::limits::PAGE_ENTRIES_MAX`].
    pub limit: u32,
    /// The whole tree below.
    pub recursive: bool,
}

/// One name in a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Full path.
    pub path: String,
    /// What it stands for; [`Attr::tail`] is left out.
    pub attr: Attr,
}

/// One page of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// In order.
    #[serde(deserialize_with = "crate::bounds::page")]
    pub entries: Vec<Entry>,
    /// Where the next page starts; `None` on the last.
    pub next: Option<String>,
}

/// Lists the trash, oldest first. The paths are those the entries were deleted from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trash {
    /// Start after this one, as in [`List::after`].
    pub after: String,
    /// At most this many.
    pub limit: u32,
}

/// Brings the newest deleted version of a path back. `Exists` when the name is taken again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undelete {
    /// Makes a retry the same request.
    pub request: RequestId,
    /// The path it was deleted from.
    pub path: String,
}

macro_rules! requests {
    ($($name:ident, $tag:ident => $reply:ident;)*) => {$(
        impl Message for $name {
            const TAG: u16 = tag::$tag;
        }

        impl Request for $name {
            type Reply = $reply;
        }
    )*};
}

requests! {
    Mkdir, MKDIR => Attr;
    CreateFile, CREATE_FILE => Attr;
    Delete, DELETE => Attr;
    Rename, RENAME => Attr;
    Stat, STAT => Attr;
    List, LIST => Listing;
    Trash, TRASH => Listing;
    Undelete, UNDELETE => Attr;
}

impl Message for Attr {
    const TAG: u16 = tag::ATTR;
}

impl Message for Listing {
    const TAG: u16 = tag::LISTING;
}
