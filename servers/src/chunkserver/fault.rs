//! What a refusal looks like to whoever asked.

use engine::store::StoreError;
use wire::{Fault, Kind, Reason};

/// A refusal by a rule.
pub(crate) fn refusal(reason: Reason, detail: u64) -> Fault {
    let text = match reason {
        Reason::UnknownChunk => "this server holds no such chunk".into(),
        Reason::NotPrimary => "this server is not the head of the chunk's chain".into(),
        Reason::StaleEpoch => format!("the chain has changed; epoch {detail} was promised here"),
        Reason::Rwr => "this replica restarted and waits to be sealed".into(),
        Reason::Sealed => format!("the chunk is sealed at {detail} bytes"),
        Reason::ChunkFull => "the chunk takes no more; ask for the next one".into(),
        Reason::Busy => "too much is in flight for this chunk; wait and repeat".into(),
        Reason::OutOfOrder => format!("not the next operation of its stream; expected is {detail}"),
        Reason::StaleOp => "the operation was answered long ago".into(),
        Reason::BadOffset => format!("no such range; the limit is {detail}"),
        Reason::BadCrc => "bytes do not match their checksum".into(),
        Reason::Disk => "the disk failed and is out of service".into(),
        Reason::DiskFull => "the disk is full".into(),
        Reason::NotCommitted => format!("known to be committed are {detail} bytes"),
        Reason::LostOps => "operations that were acknowledged are missing".into(),
        Reason::ChunkExists => format!("the chunk exists with epoch {detail}"),
        Reason::TooFar => "more is missing than a replica may fill by itself".into(),
        Reason::Longer => "this replica is longer than the seal".into(),
        Reason::OldTerm => format!("a master of term {detail} was obeyed before"),
        _ => "refused".into(),
    };
    Fault::refused(reason, detail, text)
}

/// The outcome of an operation that was forwarded is not known here.
pub(crate) fn unknown_outcome() -> Fault {
    Fault::new(Kind::Unknown, "the chain of this chunk ended; ask again with the same operation number")
}

/// What the store refused.
pub(crate) fn of_store(error: &StoreError) -> Fault {
    let (reason, detail) = match error {
        StoreError::UnknownChunk => (Reason::UnknownChunk, 0),
        StoreError::ChunkExists(epoch) => (Reason::ChunkExists, u64::from(epoch.0)),
        StoreError::StaleEpoch(epoch) => (Reason::StaleEpoch, u64::from(epoch.0)),
        StoreError::Rwr => (Reason::Rwr, 0),
        StoreError::Sealed(len) => (Reason::Sealed, u64::from(*len)),
        StoreError::OldTerm(term) => (Reason::OldTerm, u64::from(term.0)),
        StoreError::BadRange => (Reason::BadOffset, 0),
        StoreError::Longer => (Reason::Longer, 0),
        StoreError::Busy => (Reason::Busy, 0),
        StoreError::NoSpace => (Reason::DiskFull, 0),
        StoreError::BadBlock(block) => {
            let text = format!("block {block} fails its checksum here; read another replica");
            return Fault::refused(Reason::BadCrc, u64::from(*block), text);
        }
        StoreError::Fenced(_) => (Reason::Disk, 0),
        StoreError::Mismatch => {
            return Fault::refused(Reason::StaleEpoch, 0, "this replica's length or digest differs");
        }
        // A race with another operation of the same chunk: asking again meets a settled state.
        StoreError::NotNext => {
            return Fault::refused(Reason::Busy, 0, "the chunk is changing; ask again");
        }
        other => return Fault::new(Kind::Unavailable, other.to_string()),
    };
    refusal(reason, detail)
}
