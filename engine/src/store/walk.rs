//! Reading a journal back: the chain of records, and what lies behind its end.

use std::io;

use super::batch::{self, Chain, Found};
use super::canary::{sometimes, weakened};
use super::crcs::CrcTable;
use super::fold::Pending;
use super::io::{COPY_MAX, Io};
use super::layout::{PAGE, RING_LOG_START, page_up};
use super::page::Ring;
use super::record::{FLAG_FIRST, HEAD_LEN, Head};
use crate::runtime::Runtime;

/// The log area of a ring, read as a stream from where replay starts.
pub(crate) struct Stream<'a, R: Runtime> {
    io: &'a Io<R>,
    file: &'a R::File,
    start: u64,
    log_bytes: u64,
    /// Bytes from `at` on that are in memory.
    window: Vec<u8>,
    /// Stream position of the window, from `start`.
    at: u64,
}

/// Where a chain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// Offset in the log area where the next boot may begin.
    pub(crate) next_off: u64,
    /// What the first record that is missing would have continued.
    pub(crate) last_lsn: u64,
    /// Largest record number met, behind the end too.
    pub(crate) largest_lsn: u64,
    /// Largest `durable_upto` met: everything up to it was flushed.
    pub(crate) proven_lsn: u64,
    pub(crate) kind: EndKind,
}

/// Why the chain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndKind {
    /// Nothing was being written.
    Clean,
    /// A batch was being written.
    Torn,
    /// Something that was flushed is gone (rule R8).
    Corrupt,
}

impl<'a, R: Runtime> Stream<'a, R> {
    pub(crate) fn new(io: &'a Io<R>, file: &'a R::File, ring: &Ring) -> Self {
        // Replay may start inside a page; direct reads cannot.
        let page = ring.start_off / PAGE as u64 * PAGE as u64;
        Self { io, file, start: page, log_bytes: ring.log_bytes, window: Vec::new(), at: 0 }
    }

    /// At least `len` bytes from stream position `at`, or fewer where the circle closes.
    async fn fill(&mut self, at: u64, len: usize) -> io::Result<&[u8]> {
        let page = at / PAGE as u64 * PAGE as u64;
        let end = at + len as u64;
        if page < self.at || page > self.at + self.window.len() as u64 {
            (self.at, self.window) = (page, Vec::new());
        } else if end > self.at + self.window.len() as u64 {
            self.window.drain(..usize::try_from(page - self.at).unwrap_or(usize::MAX));
            self.at = page;
        }
        while self.at + (self.window.len() as u64) < end {
            let from = self.at + self.window.len() as u64;
            let left = self.log_bytes - from;
            if left == 0 {
                break;
            }
            let offset = (self.start + from) % self.log_bytes;
            let most = left.min(self.log_bytes - offset).min(COPY_MAX as u64);
            let piece = self.io.read(self.file, usize::try_from(most).unwrap_or(PAGE), RING_LOG_START + offset).await?;
            self.window.extend_from_slice(piece.as_ref());
        }
        let skip = usize::try_from(at - self.at).unwrap_or(usize::MAX);
        Ok(self.window.get(skip..).unwrap_or_default())
    }

    /// The record at a position, if it is whole and continues the chain.
    async fn next(&mut self, at: u64, chain: &Chain) -> io::Result<Option<Pending>> {
        self.record(at, |bytes| batch::next(bytes, chain)).await
    }

    async fn record(&mut self, at: u64, find: impl for<'b> Fn(&'b [u8]) -> Found<'b>) -> io::Result<Option<Pending>> {
        let mut len = HEAD_LEN;
        loop {
            let bytes = self.fill(at, len).await?;
            match find(bytes) {
                Found::Record(head, body) => {
                    return Ok(Some(Pending { head, body: body.to_vec(), table: None, crcs: CrcTable::default() }));
                }
                Found::More(more) if more > len && bytes.len() >= len => len = more,
                Found::More(_) | Found::End => return Ok(None),
            }
        }
    }

    /// Reads the whole chain, handing over each record, then looks at what lies behind it.
    pub(crate) async fn walk(
        &mut self,
        ring: &Ring,
        mut take: impl AsyncFnMut(Pending) -> Result<(), super::OpenError>,
    ) -> Result<End, super::OpenError> {
        let failed = |error: io::Error| super::OpenError::io("cannot read the journal", &error);
        let mut chain = Chain {
            lsn: ring.common.lsn,
            prev_crc: ring.start_prev_crc,
            boot_gen: ring.common.boot_gen,
            disk_uuid: ring.common.disk_uuid,
        };
        let mut at = ring.start_off - self.start;
        let mut proven = ring.durable_upto;
        while at < self.log_bytes {
            let Some(record) = self.next(at, &chain).await.map_err(failed)? else { break };
            (chain.lsn, chain.prev_crc) = (record.head.lsn, record.head.crc);
            proven = proven.max(record.head.durable_upto);
            let offset = (self.start + at) % self.log_bytes;
            if offset + u64::from(record.head.span) > self.log_bytes {
                sometimes!("ring wraps inside a record");
            }
            at += u64::from(record.head.span);
            take(record).await?;
        }
        self.classify(at, &chain, proven).await.map_err(failed)
    }

    /// Looks for batches behind the end of the chain.
    async fn classify(&mut self, end: u64, chain: &Chain, proven: u64) -> io::Result<End> {
        let missing = chain.lsn + 1;
        let mut found = End {
            next_off: (self.start + page_up(end)) % self.log_bytes,
            last_lsn: chain.lsn,
            largest_lsn: chain.lsn,
            proven_lsn: proven,
            kind: EndKind::Clean,
        };
        if let Some(head) = self.head(end).await? {
            if head.lsn == missing && head.boot_gen == chain.boot_gen {
                found.kind = EndKind::Torn;
            } else if head.boot_gen != chain.boot_gen {
                sometimes!("record of another boot_gen at the end of the chain");
            }
        }
        let mut at = page_up(end);
        while at < self.log_bytes {
            let later =
                |head: &Head| head.boot_gen == chain.boot_gen && head.lsn > missing && head.flags & FLAG_FIRST != 0;
            if self.head(at).await?.is_some_and(|head| later(&head))
                && let Some(record) = self.record(at, |bytes| batch::any(bytes, &chain.disk_uuid)).await?
            {
                found.kind = EndKind::Torn;
                found.largest_lsn = found.largest_lsn.max(record.head.lsn);
                found.proven_lsn = found.proven_lsn.max(record.head.durable_upto);
            }
            at += PAGE as u64;
        }
        if missing <= found.proven_lsn && !weakened!(CutInProvenJournal) {
            sometimes!("end classified as corruption");
            found.kind = EndKind::Corrupt;
        }
        if found.kind == EndKind::Torn {
            sometimes!("torn end cut");
        }
        Ok(found)
    }

    /// The header at a position, whatever its checksum says.
    async fn head(&mut self, at: u64) -> io::Result<Option<Head>> {
        let bytes = self.fill(at, HEAD_LEN).await?;
        Ok(bytes.first_chunk().and_then(|bytes| Head::decode(bytes).ok()))
    }
}
