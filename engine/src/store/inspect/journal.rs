//! Journal records, one line each.

use std::ops::ControlFlow;
use std::path::Path;

use crate::runtime::{FileId, Open, Runtime};
use crate::store::check::said;
use crate::store::fold::Pending;
use crate::store::io::Io;
use crate::store::layout::PAGE;
use crate::store::page::{Bad, Picked, Ring, pick};
use crate::store::record::{Body, FLAG_FILL, FLAG_FIRST, Op};
use crate::store::walk::{EndKind, Stream};
use crate::store::{OpenError, check::JournalEnd};

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordLine {
    /// Its number.
    pub lsn: u64,
    /// Where it starts in the ring file.
    pub offset: u64,
    /// `APPEND` and so on; `?` for a type that this build does not know.
    pub kind: String,
    /// Zero for a record about no chunk.
    pub chunk: u64,
    /// Its slot; `None` for a record about none.
    pub slot: Option<u32>,
    /// Epoch of the record.
    pub epoch: u32,
    /// First of its batch.
    pub first: bool,
    /// Held back until the seal.
    pub fill: bool,
    /// Everything up to here was flushed when it was made.
    pub durable_upto: u64,
    /// Bytes to the next record.
    pub span: u32,
    /// What it says.
    pub says: String,
}

/// Where the records end, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordsEnd {
    /// Records from where replay starts.
    pub records: u64,
    /// Last one; the one before the first when there is none.
    pub last_lsn: u64,
    /// Everything up to here was flushed, says some record.
    pub proven_lsn: u64,
    /// How it ends.
    pub end: JournalEnd,
}

/// The newest valid root of a ring, or why there is none.
pub(crate) async fn root_of<R: Runtime>(io: &Io<R>, root: &Path, number: u32) -> Result<(R::File, Ring), String> {
    let file = io.rt.open(root, FileId::Ring(number), Open::ReadOnly).await.map_err(|error| said(&error))?;
    let mut copies = Vec::new();
    for offset in [0, PAGE as u64] {
        let page = io.read_page(&file, offset).await.map_err(|error| said(&error));
        let ring = page.and_then(|page| Ring::decode(&page).map_err(|bad| bad.to_string()));
        copies.push(ring);
    }
    let (Some(b), Some(a)) = (copies.pop(), copies.pop()) else { return Err("no root".into()) };
    let why = format!("both copies of its root are bad: {}; {}", error_of(&a), error_of(&b));
    let (a, b) = (a.map_err(|_| Bad::Checksum), b.map_err(|_| Bad::Checksum));
    pick(a, b).map(|Picked { root: ring, .. }| (file, ring)).ok_or(why)
}

fn error_of(copy: &Result<Ring, String>) -> &str {
    copy.as_ref().err().map_or("good", String::as_str)
}

/// Reads the records that would be replayed, in order, until `tell` has had enough.
pub(crate) async fn records<R: Runtime>(
    io: &Io<R>,
    root: &Path,
    number: u32,
    mut tell: impl FnMut(RecordLine) -> ControlFlow<()>,
) -> Result<RecordsEnd, OpenError> {
    let remedy = "`hercules fsck` says what that means for the chunks";
    let (file, ring) = root_of(io, root, number)
        .await
        .map_err(|why| OpenError::new(format!("journal/ring-{number:04}: {why}"), remedy))?;
    let (mut count, mut off, mut told) = (0, ring.start_off, ControlFlow::Continue(()));
    let end = Stream::new(io, &file, &ring)
        .walk(&ring, async |record: Pending| {
            count += 1;
            if told.is_continue() {
                told = tell(line(&record, off));
            }
            off = (off + u64::from(record.head.span)) % ring.log_bytes;
            Ok(())
        })
        .await?;
    let kind = match end.kind {
        EndKind::Clean => JournalEnd::Clean,
        EndKind::Torn => JournalEnd::Torn,
        EndKind::Corrupt => JournalEnd::Corrupt,
    };
    Ok(RecordsEnd { records: count, last_lsn: end.last_lsn, proven_lsn: end.proven_lsn, end: kind })
}

fn line(record: &Pending, off: u64) -> RecordLine {
    let head = &record.head;
    RecordLine {
        lsn: head.lsn,
        offset: crate::store::layout::RING_LOG_START + off,
        kind: type_name(head.kind.into()).unwrap_or_else(|| "?".into()),
        chunk: head.chunk.0,
        slot: (head.slot != crate::store::record::NO_SLOT).then_some(head.slot),
        epoch: head.epoch.0,
        first: head.flags & FLAG_FIRST != 0,
        fill: head.flags & FLAG_FILL != 0,
        durable_upto: head.durable_upto,
        span: head.span,
        says: match Body::decode(head.kind, &record.body) {
            Ok(body) => says(&body),
            Err(bad) => format!("cannot be read: {bad}"),
        },
    }
}

/// Name of a record type.
pub(crate) fn type_name(kind: u64) -> Option<String> {
    const NAMES: [&str; 15] = [
        "APPEND",
        "OVERWRITE",
        "REPAIR",
        "FORGET",
        "CREATE",
        "PROMISE",
        "SEAL",
        "SEALED",
        "REOPEN",
        "CONDEMN",
        "RESTORE",
        "FREE",
        "INSTALL",
        "FINAL",
        "MARK",
    ];
    let index = usize::try_from(kind).ok()?.checked_sub(1)?;
    Some((*NAMES.get(index)?).to_owned())
}

/// What a record says, in a few words.
fn says(body: &Body<'_>) -> String {
    let members = |members: &[wire::ServerId], at: u8| {
        let list: Vec<String> = members.iter().map(ToString::to_string).collect();
        format!("members {} position {at}", list.join(","))
    };
    match body {
        Body::Append(append) => {
            let (blocks, tail) = (append.crcs.len(), append.tail.len());
            format!(
                "{} bytes at {}, {blocks} blocks and a tail of {tail}; {}",
                append.length,
                append.offset,
                op(&append.op)
            )
        }
        Body::Overwrite { op: of, offset, length, images } => {
            format!("{length} bytes at {offset}, {} images; {}", images.blocks.len(), op(of))
        }
        Body::Repair(images) => {
            let first = images.blocks.first().map_or(0, |(block, _)| *block);
            format!("{} images from block {first}", images.blocks.len())
        }
        Body::Forget { op: of, streams } => format!("{} streams; {}", streams.len(), op(of)),
        Body::Create(create) => {
            let members = members(&create.members, create.my_position);
            format!("file {} after chunk {}, {members}, {} dedup entries", create.file, create.prev, create.dedup.len())
        }
        Body::Promise { promised, term } => format!("epoch {promised}, term {}", term.0),
        Body::Seal(seal) => format!("{} bytes, last entry {}, term {}", seal.len, seal.last_seq, seal.term.0),
        Body::Sealed { term, len, .. } => format!("{len} bytes, term {}", term.0),
        Body::Reopen(reopen) => {
            format!("{} bytes, {}, term {}", reopen.len, members(&reopen.members, reopen.my_position), reopen.term.0)
        }
        Body::Condemn { term, reason, authority, .. } => {
            format!("reason {reason}, authority {authority}, term {}", term.0)
        }
        Body::Restore { term, authority } | Body::Free { term, authority } => {
            format!("authority {authority}, term {}", term.0)
        }
        Body::Install(hdr) => format!("{} bytes in epoch {}", hdr.durable_len, hdr.epoch),
        Body::Final { op: of, len, .. } => format!("{len} bytes; {}", op(of)),
        Body::Mark => "everything before is flushed".into(),
    }
}

fn op(op: &Op) -> String {
    let part = if op.parts > 1 { format!(", part {} of {}", op.part + 1, op.parts) } else { String::new() };
    let id = if op.id.op == 0 { String::new() } else { format!(" of operation {} of {}", op.id.op, op.id.stream) };
    format!("entry {}{id}{part}", op.seq)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::tests::samples;

    #[test]
    fn every_type_has_a_name_and_says_something() {
        let images = vec![9; 8192];
        for body in &samples(&images) {
            assert!(type_name(body.kind().into()).is_some(), "{body:?}");
            assert!(!says(body).is_empty());
        }
        assert_eq!((type_name(1).as_deref(), type_name(15).as_deref()), (Some("APPEND"), Some("MARK")));
        assert_eq!((type_name(0), type_name(16)), (None, None));
    }
}
