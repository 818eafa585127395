//! Errors that tell the caller what to do.
//!
//! [`Kind`] is small and stable: each has one retry rule in `client` and one HTTP status in
//! `gateway`. [`Reason`] says which rule of a chunkserver refused, for logs and for the few callers
//! that care. [`Fault`] is both on the wire.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::layout::{Reader, Writer};
use crate::message::{Body, Malformed, tag};

/// What the caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u16)]
#[non_exhaustive]
pub enum Kind {
    /// No such path, file or chunk. Look the name up again; if it is gone, it is gone.
    NotFound = 1,
    /// The name is taken. Choose another, or ask to replace.
    Exists = 2,
    /// The request can never succeed as it is. Correct it.
    Invalid = 3,
    /// The chain has changed. Ask the master for the location again.
    StaleEpoch = 4,
    /// This server is not the chain's head. Ask the master for the location again.
    NotPrimary = 5,
    /// The chunk accepts nothing more. Ask the master for the next one.
    Sealed = 6,
    /// The bytes asked for are not known here to be committed. Ask another member, or again later.
    NotCommitted = 7,
    /// Bytes did not match their checksum. Read another replica; send again.
    Corrupt = 8,
    /// Too much work is queued. Wait, then repeat.
    Overloaded = 9,
    /// No space, or a quota is used up. Free some.
    NoSpace = 10,
    /// The server cannot do it now. Repeat, here or elsewhere.
    Unavailable = 11,
    /// The caller lacks the right.
    Unauthorized = 12,
    /// The outcome is unknown: it may have happened. Repeat with the same operation id.
    Unknown = 13,
    /// The name is of the wrong sort for this: a directory, not a directory, not empty.
    Conflict = 14,
    /// A stated precondition does not hold. Read again, then decide.
    Precondition = 15,
    /// This master does not lead. The text may name the one that does.
    NotLeader = 16,
}

impl Kind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; 16] = [
        Self::NotFound,
        Self::Exists,
        Self::Invalid,
        Self::StaleEpoch,
        Self::NotPrimary,
        Self::Sealed,
        Self::NotCommitted,
        Self::Corrupt,
        Self::Overloaded,
        Self::NoSpace,
        Self::Unavailable,
        Self::Unauthorized,
        Self::Unknown,
        Self::Conflict,
        Self::Precondition,
        Self::NotLeader,
    ];

    fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u16 == number)
    }
}

/// Which rule refused. [`Reason::kind`] says what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u16)]
#[non_exhaustive]
pub enum Reason {
    /// No finer reason than the kind.
    Plain = 0,
    /// This server holds no such chunk.
    UnknownChunk = 1,
    /// The chunk's head is another server.
    NotPrimary = 2,
    /// The epoch of the request is not the replica's, or the replica has promised a newer one.
    StaleEpoch = 3,
    /// The replica restarted within its epoch and waits to be sealed.
    Rwr = 4,
    /// The chunk is sealed. Detail: its length.
    Sealed = 5,
    /// The operation does not fit; the chunk is being sealed.
    ChunkFull = 6,
    /// The window, the journal or a queue is full.
    Busy = 7,
    /// The operation is not the stream's next. Detail: the number expected.
    OutOfOrder = 8,
    /// An operation its client has long had an answer to.
    StaleOp = 9,
    /// The offset or length cannot be served.
    BadOffset = 10,
    /// A checksum of the payload does not match.
    BadCrc = 11,
    /// The disk failed and is fenced.
    Disk = 12,
    /// The disk is full.
    DiskFull = 13,
    /// Not known to be committed here. Detail: the committed length.
    NotCommitted = 14,
    /// Operations that were acknowledged are missing.
    LostOps = 15,
    /// The chunk exists already under another epoch.
    ChunkExists = 16,
    /// The seal is further than this replica may fill by itself.
    TooFar = 17,
    /// This replica is longer than the seal: an invariant is broken.
    Longer = 18,
    /// The command's term is lower than one obeyed before.
    OldTerm = 19,
}

impl Reason {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; 20] = [
        Self::Plain,
        Self::UnknownChunk,
        Self::NotPrimary,
        Self::StaleEpoch,
        Self::Rwr,
        Self::Sealed,
        Self::ChunkFull,
        Self::Busy,
        Self::OutOfOrder,
        Self::StaleOp,
        Self::BadOffset,
        Self::BadCrc,
        Self::Disk,
        Self::DiskFull,
        Self::NotCommitted,
        Self::LostOps,
        Self::ChunkExists,
        Self::TooFar,
        Self::Longer,
        Self::OldTerm,
    ];

    /// What the caller can do about this refusal.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self {
            Self::UnknownChunk => Kind::NotFound,
            Self::NotPrimary => Kind::NotPrimary,
            Self::StaleEpoch | Self::Rwr | Self::OldTerm => Kind::StaleEpoch,
            Self::Sealed | Self::ChunkFull => Kind::Sealed,
            Self::Busy => Kind::Overloaded,
            Self::OutOfOrder | Self::StaleOp | Self::BadOffset | Self::LostOps | Self::Longer => Kind::Invalid,
            Self::BadCrc => Kind::Corrupt,
            Self::Plain | Self::Disk | Self::TooFar => Kind::Unavailable,
            Self::DiskFull => Kind::NoSpace,
            Self::NotCommitted => Kind::NotCommitted,
            Self::ChunkExists => Kind::Exists,
        }
    }

    fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| *reason as u16 == number)
    }
}

/// Longest text of a [`Fault`]; a longer one is cut at a character border when it is encoded.
pub const FAULT_TEXT_MAX: usize = 1024;

/// The answer to any request that was refused: the wire's error.
///
/// ```text
/// FAULT   kind 2 | reason 2 | text length 2 | zero 2 | detail 8 | text
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What the caller can do.
    pub kind: Kind,
    /// Which rule refused.
    pub reason: Reason,
    /// A number whose meaning the reason gives; else zero.
    pub detail: u64,
    /// For people: what was refused, why, and the remedy. No internals.
    pub text: String,
}

impl Fault {
    /// A fault without a finer reason.
    #[must_use]
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, reason: Reason::Plain, detail: 0, text: text.into() }
    }

    /// A refusal of a chunkserver.
    #[must_use]
    pub fn refused(reason: Reason, detail: u64, text: impl Into<String>) -> Self {
        Self { kind: reason.kind(), reason, detail, text: text.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Fault {}

impl Body for Fault {
    const TAG: u16 = tag::FAULT;

    fn encode(&self) -> Vec<u8> {
        let mut cut = self.text.len().min(FAULT_TEXT_MAX);
        while !self.text.is_char_boundary(cut) {
            cut -= 1;
        }
        let mut out = Writer::with_capacity(16 + cut);
        out.u16(self.kind as u16);
        out.u16(self.reason as u16);
        out.u16(u16::try_from(cut).unwrap_or(u16::MAX));
        out.u16(0);
        out.u64(self.detail);
        out.bytes(&self.text.as_bytes()[..cut]);
        out.finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = Reader::new(bytes);
        let kind = Kind::from_number(input.u16()?).ok_or(Malformed::Field("kind"))?;
        let reason = Reason::from_number(input.u16()?).ok_or(Malformed::Field("reason"))?;
        let text_len = usize::from(input.u16()?);
        if input.u16()? != 0 {
            return Err(Malformed::Field("zero"));
        }
        let detail = input.u64()?;
        let text = input.rest();
        if text.len() > FAULT_TEXT_MAX || text.len() != text_len {
            return Err(Malformed::Field("text"));
        }
        let text = std::str::from_utf8(text).map_err(|_| Malformed::Field("text"))?.to_owned();
        Ok(Self { kind, reason, detail, text })
    }
}
