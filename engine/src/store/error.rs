//! Why the store refused or failed.

use wire::{Epoch, Term};

/// Why a disk cannot be opened. `Display` says what and why.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct OpenError {
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
    /// Another process uses the disk: it is not broken, and starting without it would be wrong.
    pub is_in_use: bool,
}

impl OpenError {
    /// What is wrong, and what to do about it.
    pub fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into(), is_in_use: false }
    }

    /// A call to the disk failed.
    pub(crate) fn io(what: &str, error: &std::io::Error) -> Self {
        Self::new(format!("{what}: {error}"), "check the disk and the kernel log, then start again")
    }
}

/// Why the store refused or failed. A refusal changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No such chunk, or it is on its way out.
    #[error("no such chunk here")]
    UnknownChunk,
    /// The chunk exists under another epoch or with another chain.
    #[error("chunk exists at epoch {0}")]
    ChunkExists(Epoch),
    /// Another epoch holds here; with the highest one promised.
    #[error("a higher epoch was promised: {0}")]
    StaleEpoch(Epoch),
    /// The replica restarted within its epoch and is silent in its chain.
    #[error("replica restarted within its epoch")]
    Rwr,
    /// The content is fixed; with its length.
    #[error("sealed at {0} bytes")]
    Sealed(u32),
    /// A newer master has spoken; with its term.
    #[error("command of an old term; highest seen {0:?}")]
    OldTerm(Term),
    /// Not the next entry; or a FINAL was accepted.
    #[error("entry is not the next one")]
    NotNext,
    /// Offset, length or another argument cannot be.
    #[error("offset or length out of range")]
    BadRange,
    /// Content differs from what the command says.
    #[error("length or digest differ")]
    Mismatch,
    /// This replica is longer than the seal: an invariant is broken.
    #[error("replica is longer than the seal")]
    Longer,
    /// Try again soon: the journal is full and a checkpoint is running, or a table is full.
    #[error("journal is full, a checkpoint is running")]
    Busy,
    /// The disk is full, or the space was not reserved. Nothing was accepted.
    #[error("no space")]
    NoSpace,
    /// The block fails its checksum here; another replica may have it. Counted and reported.
    #[error("block {0} fails its checksum")]
    BadBlock(u32),
    /// A write or flush failed: the disk is fenced. What was in flight is of unknown outcome.
    #[error("disk is fenced: {0}")]
    Fenced(String),
    /// The device did not answer a read.
    #[error("read failed: {0}")]
    ReadFailed(String),
}
