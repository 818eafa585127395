//! What is found on a disk: facts, problems, and the verdict they come to. Pure.

use std::fmt;

use wire::member::ReplicaState;
use wire::{ChunkHandle, ClusterId, Epoch, Seq, ServerId};

use crate::store::types::RecoverySummary;

/// One word for a slot; the worst of its problems decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Everything verifies.
    Ok,
    /// An operation was being written when the process ended. It was not acknowledged, and is dropped.
    TornEnd,
    /// Last entries whose data cannot be verified; the seal asks the other replicas.
    Suspect,
    /// A header, a checksum page or another part that describes the content.
    DamagedMetadata,
    /// Blocks of the content.
    DamagedBlocks,
    /// No block of the content can be read from the device.
    Unreadable,
    /// Both headers are bad: what it held cannot be known.
    LostSlot,
}

impl Verdict {
    /// All of them, best first.
    pub const ALL: [Self; 7] = [
        Self::Ok,
        Self::TornEnd,
        Self::Suspect,
        Self::DamagedMetadata,
        Self::DamagedBlocks,
        Self::Unreadable,
        Self::LostSlot,
    ];

    /// Whether the disk did not keep what it was given. A crash alone makes a torn or a suspect end.
    #[must_use]
    pub fn is_damage(self) -> bool {
        self >= Self::DamagedMetadata
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::TornEnd => "torn end",
            Self::Suspect => "suspect",
            Self::DamagedMetadata => "damaged metadata",
            Self::DamagedBlocks => "damaged blocks",
            Self::Unreadable => "unreadable",
            Self::LostSlot => "lost slot",
        })
    }
}

/// Why a block does not verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its bytes are not what its checksum says.
    Checksum,
    /// The device does not give it.
    Unreadable,
    /// Its checksum is lost.
    NoChecksum,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Checksum => "wrong checksum",
            Self::Unreadable => "cannot be read",
            Self::NoChecksum => "its checksum is lost",
        })
    }
}

/// Something about a slot that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// An operation was not complete.
    TornEnd,
    /// Entries up to `upto` existed; their data could not be verified.
    Suspect {
        /// The last of them.
        upto: Seq,
    },
    /// Marked, by this recovery or an earlier one: its lengths prove nothing until it is repaired.
    MarkedDamaged,
    /// Blocks `first` to `last` of the content.
    Blocks {
        /// First of the run.
        first: u32,
        /// Last of the run.
        last: u32,
        /// What all of them suffer from.
        why: Why,
    },
    /// One copy of the header is bad: a start heals it from the other.
    HeaderCopy {
        /// `A` or `B`.
        copy: char,
        /// What is wrong with it.
        why: String,
    },
    /// A page that the header names is not the one it names.
    Child {
        /// `TAIL`, `DEDUP 0` to `DEDUP 3`, `CRC 0` to `CRC 16`.
        page: String,
        /// `A` or `B`.
        copy: char,
        /// What is wrong with it.
        why: String,
    },
    /// The checksums of a sealed content do not add up to its digest.
    Digest,
    /// Another slot holds the same chunk.
    Twice {
        /// The other one.
        slot: u32,
    },
    /// The slot's file cannot be opened.
    File {
        /// What the system says.
        why: String,
    },
}

impl Problem {
    /// The verdict that it alone leads to.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::TornEnd => Verdict::TornEnd,
            Self::Suspect { .. } => Verdict::Suspect,
            Self::Blocks { .. } => Verdict::DamagedBlocks,
            Self::MarkedDamaged
            | Self::HeaderCopy { .. }
            | Self::Child { .. }
            | Self::Digest
            | Self::Twice { .. }
            | Self::File { .. } => Verdict::DamagedMetadata,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TornEnd => f.write_str("an operation was not complete, and is dropped"),
            Self::Suspect { upto } => write!(f, "entries up to {} existed, their data does not verify", upto.0),
            Self::MarkedDamaged => f.write_str("marked damaged: its lengths prove nothing until it is repaired"),
            Self::Blocks { first, last, why } if first == last => write!(f, "block {first}: {why}"),
            Self::Blocks { first, last, why } => write!(f, "blocks {first} to {last}: {why}"),
            Self::HeaderCopy { copy, why } => write!(f, "header {copy}: {why}"),
            Self::Child { page, copy, why } => write!(f, "{page} page, copy {copy}: {why}"),
            Self::Digest => f.write_str("the checksums do not add up to the sealed digest"),
            Self::Twice { slot } => write!(f, "slot {slot} holds the same chunk"),
            Self::File { why } => write!(f, "the file cannot be opened: {why}"),
        }
    }
}

/// What a slot holds, as a start would find it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkFacts {
    /// Which chunk.
    pub chunk: ChunkHandle,
    /// Its state after a restart.
    pub state: ReplicaState,
    /// Epoch whose log it is.
    pub epoch: Epoch,
    /// At least `epoch`.
    pub promised: Epoch,
    /// Bytes of complete operations.
    pub len: u32,
    /// Bytes known acknowledged by all members.
    pub committed_len: u32,
    /// Last entry.
    pub last_seq: Seq,
    /// Digest that a seal fixed.
    pub digest: Option<[u8; 16]>,
    /// Blocks in place, each of which was read.
    pub blocks: u32,
}

/// One slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotReport {
    /// Its number.
    pub slot: u32,
    /// Both headers are bad.
    pub lost: bool,
    /// `None`: free, or lost.
    pub chunk: Option<ChunkFacts>,
    /// In the order in which they were found; runs of blocks ascending.
    pub problems: Vec<Problem>,
}

impl SlotReport {
    /// What it comes to.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        if self.lost {
            return Verdict::LostSlot;
        }
        let unreadable = |problem: &Problem| match problem {
            Problem::Blocks { first, last, why: Why::Unreadable } => last - first + 1,
            _ => 0,
        };
        let blocks = self.chunk.as_ref().map_or(0, |chunk| chunk.blocks);
        if blocks > 0 && self.problems.iter().map(unreadable).sum::<u32>() == blocks {
            return Verdict::Unreadable;
        }
        self.problems.iter().map(Problem::verdict).max().unwrap_or(Verdict::Ok)
    }
}

/// How a journal ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JournalEnd {
    /// Nothing was being written.
    Clean,
    /// A batch was being written.
    Torn,
    /// Something that was flushed is gone.
    Corrupt,
    /// Both copies of its root are bad, or the journal cannot be read.
    Unknown,
}

/// One journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalReport {
    /// Its number.
    pub ring: u32,
    /// Records to replay.
    pub records: u64,
    /// Bytes that they take.
    pub bytes: u64,
    /// Length of its log area.
    pub log_bytes: u64,
    /// Last record.
    pub last_lsn: u64,
    /// How it ends.
    pub end: JournalEnd,
}

/// The disk but for its slots.
#[derive(Clone, Debug)]
pub struct DiskReport {
    /// Whose it is; `None` when both copies of DISK are bad.
    pub owner: Option<(ClusterId, ServerId)>,
    /// Slots to look at.
    pub slots: u32,
    /// Chunks to look at.
    pub chunks: u64,
    /// Bytes that will be read in slots: for progress.
    pub bytes: u64,
    /// One for each ring in use.
    pub journals: Vec<JournalReport>,
    /// Damage outside of slots: which file, and what is wrong.
    pub damage: Vec<(String, String)>,
    /// What recovery comes to; `Err` says why a server would not start. Slots are then judged by
    /// their headers alone.
    pub recovery: Result<RecoverySummary, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(blocks: u32, problems: Vec<Problem>) -> SlotReport {
        let chunk = ChunkFacts {
            chunk: ChunkHandle(7),
            state: ReplicaState::Rwr,
            epoch: Epoch(1),
            promised: Epoch(1),
            len: blocks * 4096,
            committed_len: 0,
            last_seq: Seq(1),
            digest: None,
            blocks,
        };
        SlotReport { slot: 0, lost: false, chunk: Some(chunk), problems }
    }

    #[test]
    fn the_worst_problem_is_the_verdict() {
        let bad = |first, last, why| Problem::Blocks { first, last, why };
        let suspect = Problem::Suspect { upto: Seq(3) };
        assert_eq!(report(4, vec![]).verdict(), Verdict::Ok);
        assert_eq!(report(4, vec![suspect.clone(), Problem::TornEnd]).verdict(), Verdict::Suspect);
        assert_eq!(report(4, vec![suspect, Problem::Digest]).verdict(), Verdict::DamagedMetadata);
        assert_eq!(report(4, vec![Problem::Digest, bad(1, 1, Why::Checksum)]).verdict(), Verdict::DamagedBlocks);
        assert_eq!(report(4, vec![bad(0, 3, Why::Checksum)]).verdict(), Verdict::DamagedBlocks, "it can be read");
        assert_eq!(report(4, vec![bad(0, 2, Why::Unreadable)]).verdict(), Verdict::DamagedBlocks);
        assert_eq!(report(4, vec![bad(0, 3, Why::Unreadable)]).verdict(), Verdict::Unreadable);
        let lost = SlotReport { slot: 1, lost: true, chunk: None, problems: vec![] };
        assert_eq!(lost.verdict(), Verdict::LostSlot);
        assert!(Verdict::ALL.is_sorted() && !Verdict::Suspect.is_damage() && Verdict::DamagedMetadata.is_damage());
    }
}
