//! Uploads: bytes go to the chunks of an inode without a name, and become visible in one log entry.
//! Readers see the old content or the new one, never a mixture.

use serde::{Deserialize, Serialize};

use crate::ids::{InodeId, RequestId};
use crate::message::{Done, Message, Request, tag};
use crate::namespace::Attr;

/// Makes an inode without a name. It is dropped when it is not published within a day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BeginUpload {
    /// Makes a retry the same request.
    pub request: RequestId,
    /// Where it will be published: checked early, so that a hopeless upload costs nothing. Empty when
    /// it will be spliced.
    pub path: String,
    /// Content type; may be empty, at most 255 bytes.
    pub content_type: String,
}

/// The answer to [`BeginUpload`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    /// Append to this one, then [`Publish`] it.
    pub inode: InodeId,
}

/// What must hold at the target when an upload is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Precondition {
    /// Nothing: an existing file is replaced, its content goes to the trash.
    None,
    /// No such name.
    Absent,
    /// The name stands for exactly this.
    Match {
        /// The inode.
        inode: InodeId,
        /// Its version.
        version: u64,
    },
    /// There is a file, whichever.
    Present,
}

/// Gives an upload its name. All its chunks must be sealed and its length must be `len`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// Makes a retry the same request.
    pub request: RequestId,
    /// The upload.
    pub inode: InodeId,
    /// Its name from now on; directories above it are made.
    pub path: String,
    /// What must hold, else `Precondition`.
    pub precondition: Precondition,
    /// Bytes uploaded; else `Invalid` and nothing is published.
    pub len: u64,
    /// SHA-256 of the content, if it was computed on the way.
    pub sha256: Option<[u8; 32]>,
}

/// Replaces chunks `index .. index + remove` of a file by all chunks of an upload, in one entry: how
/// bytes inside a file are written. The upload is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Splice {
    /// Makes a retry the same request.
    pub request: RequestId,
    /// The file.
    pub file: InodeId,
    /// Its version when the caller read what it replaces; else `Precondition`.
    pub version: u64,
    /// First chunk replaced.
    pub index: u32,
    /// How many are replaced. All must be sealed.
    pub remove: u32,
    /// The upload whose chunks take their place. All must be sealed.
    pub upload: InodeId,
}

/// Gives an upload up; its chunks are freed in the background.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbortUpload {
    /// Makes a retry the same request.
    pub request: RequestId,
    /// The upload.
    pub inode: InodeId,
}

impl Message for BeginUpload {
    const TAG: u16 = tag::BEGIN_UPLOAD;
}

impl Request for BeginUpload {
    type Reply = Upload;
}

impl Message for Upload {
    const TAG: u16 = tag::UPLOAD;
}

impl Message for Publish {
    const TAG: u16 = tag::PUBLISH;
}

impl Request for Publish {
    type Reply = Attr;
}

impl Message for Splice {
    const TAG: u16 = tag::SPLICE;
}

impl Request for Splice {
    type Reply = Attr;
}

impl Message for AbortUpload {
    const TAG: u16 = tag::ABORT_UPLOAD;
}

impl Request for AbortUpload {
    type Reply = Done;
}
