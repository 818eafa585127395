//! Reads: pieces of at most 1 MiB from any replica, several at once, verified, handed out in order.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesOrdered, Stream, StreamExt};
use wire::limits::{BLOCK_SIZE, PAYLOAD_LEN_MAX};
use wire::locate::{Intent, Location, Position};
use wire::member::{ChunkState, Member};
use wire::namespace::Attr;
use wire::read::{Data, Read};
use wire::report::Trouble;
use wire::{Epoch, Fault, InodeId, Kind, Seq, checksum};

use crate::client::Inner;
use crate::clock::{left, now};
use crate::error::Outcome;
use crate::locations::{end_of, is_contiguous};
use crate::plan::{Piece, order, piece};
use crate::pool::is_silence;
use crate::retry::{Call, Rule, pause, rule};
use crate::{Client, Error};

/// Chunks asked for at once.
const PAGE: u64 = 64;

/// The next page is asked for when less than this is left of the known chunks.
const PAGE_AHEAD: u64 = 256 << 20;

/// A replica that does not answer for so long is passed over; twice as long in every further round.
const ATTEMPT: Duration = Duration::from_secs(2);

/// How often in a row the chunks of the file may turn out to be others than was thought.
const REPLANS_MAX: u32 = 4;

impl Client {
    /// Reads a range of what `attr` (from [`Client::stat`]) stands for; cut at its length. Bytes come
    /// in order, verified, in pieces of at most 1 MiB, with a bounded window ahead of the reader.
    #[must_use]
    pub fn read(&self, attr: &Attr, range: Range<u64>) -> ReadStream {
        let end = range.end.min(attr.len);
        let start = range.start.min(end);
        ReadStream {
            inner: Arc::clone(&self.inner),
            file: attr.inode,
            version: attr.version,
            handed_out: start,
            next: start,
            end,
            chunks: VecDeque::new(),
            page: None,
            pieces: FuturesOrdered::new(),
            key: self.inner.noise.next(),
            replans: 0,
            failed: None,
        }
    }
}

type Page = Pin<Box<dyn Future<Output = Outcome<Vec<Arc<Location>>>> + Send>>;
type Arriving = Pin<Box<dyn Future<Output = Result<Bytes, Trial>> + Send>>;

/// A read in progress; also a [`Stream`]. It makes progress while it is polled. Dropping it gives up
/// what is on its way.
///
/// It never ends as a short success: either every byte of the range came, or the last item is an error.
pub struct ReadStream {
    inner: Arc<Inner>,
    file: InodeId,
    version: u64,
    /// File offsets: handed to the reader, asked for, and the end of the range.
    handed_out: u64,
    next: u64,
    end: u64,
    /// Known chunks from `next` on.
    chunks: VecDeque<Arc<Location>>,
    page: Option<Page>,
    pieces: FuturesOrdered<Arriving>,
    /// Spreads readers over replicas.
    key: u64,
    replans: u32,
    /// No more chunks can be had; what was asked for still comes.
    failed: Option<Fault>,
}

impl fmt::Debug for ReadStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, handed_out, next, end, .. } = self;
        write!(f, "ReadStream {{ file: {file}, handed_out: {handed_out}, next: {next}, end: {end} }}")
    }
}

impl ReadStream {
    /// The next bytes; `None` at the end of the range. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        StreamExt::next(self).await
    }

    /// Bytes still to come.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.end - self.handed_out
    }

    /// Asks for as many pieces as the window allows, and for the next page of chunks in time.
    fn plan(&mut self) {
        let window = self.inner.config.read_window / PAYLOAD_LEN_MAX as usize;
        while self.pieces.len() < window && self.next < self.end {
            while self.chunks.front().is_some_and(|chunk| end_of(chunk) <= self.next) {
                self.chunks.pop_front();
            }
            let Some(piece) = self.chunks.front().and_then(|chunk| piece(chunk, self.next, self.end)) else {
                self.chunks.clear();
                if !self.take_cached(self.next) {
                    self.ask_for_page(self.next);
                    return;
                }
                continue;
            };
            self.next += u64::from(piece.len);
            let (inner, key) = (Arc::clone(&self.inner), self.key.wrapping_add(piece.location.chunk.0));
            self.pieces.push_back(Box::pin(fetch(inner, piece, key)));
        }
        let known = self.chunks.back().map_or(self.next, |chunk| end_of(chunk));
        if known < self.end && known - self.next < PAGE_AHEAD && !self.take_cached(known) {
            self.ask_for_page(known);
        }
    }

    fn take_cached(&mut self, offset: u64) -> bool {
        let cached = self.inner.locations.find(self.file, self.version, offset, now());
        let found = cached.is_some();
        self.chunks.extend(cached);
        found
    }

    fn ask_for_page(&mut self, offset: u64) {
        if self.page.is_some() || self.failed.is_some() {
            return;
        }
        let (inner, file) = (Arc::clone(&self.inner), self.file);
        let count = ((self.end - offset) / u64::from(PAYLOAD_LEN_MAX) + 1).min(PAGE);
        let count = u32::try_from(count).unwrap_or(1);
        self.page = Some(Box::pin(async move {
            let page = inner.locate(file, Position::Offset(offset), Intent::Read, count).await?;
            if !is_contiguous(&page, offset) {
                return Err(Fault::new(Kind::NotFound, format!("file {file} no longer reaches offset {offset}")));
            }
            let items: Vec<_> = page.items.into_iter().map(Arc::new).collect();
            inner.locations.insert(file, page.version, &items, now());
            Ok(items)
        }));
    }

    /// The file consists of other chunks than was thought: begin again where the reader is.
    fn replan(&mut self) {
        self.replans += 1;
        self.inner.locations.forget(self.file);
        self.pieces = FuturesOrdered::new();
        self.chunks.clear();
        self.page = None;
        self.failed = None;
        self.next = self.handed_out;
    }

    fn fail(&mut self, fault: Fault) -> Poll<Option<Result<Bytes, Error>>> {
        let what = format!("read of file {} at offset {}", self.file, self.handed_out);
        self.pieces = FuturesOrdered::new();
        self.page = None;
        (self.next, self.end) = (self.handed_out, self.handed_out);
        Poll::Ready(Some(Err(Error::from(fault).context(what))))
    }
}

impl Stream for ReadStream {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        while this.handed_out < this.end {
            this.plan();
            if let Some(Poll::Ready(page)) = this.page.as_mut().map(|page| page.as_mut().poll(cx)) {
                this.page = None;
                match page {
                    Ok(chunks) => this.chunks.extend(chunks),
                    Err(fault) => this.failed = Some(fault),
                }
                continue;
            }
            if this.pieces.is_empty() {
                match this.failed.take() {
                    Some(fault) => return this.fail(fault),
                    None => return Poll::Pending,
                }
            }
            match ready!(this.pieces.poll_next_unpin(cx)) {
                Some(Ok(bytes)) => {
                    this.handed_out += bytes.len() as u64;
                    this.replans = 0;
                    this.inner.counters.bytes_read.add(bytes.len() as u64);
                    return Poll::Ready(Some(Ok(bytes)));
                }
                Some(Err(Trial::Moved(_))) if this.replans < REPLANS_MAX => this.replan(),
                Some(Err(Trial::Moved(fault) | Trial::Failed(fault))) => return this.fail(fault),
                None => {}
            }
        }
        Poll::Ready(None)
    }
}

/// Why a piece did not come.
#[derive(Debug)]
enum Trial {
    /// The chunk is gone, or shorter than was thought: the file must be looked at again.
    Moved(Fault),
    /// No replica gave it.
    Failed(Fault),
}

/// One piece, from whichever replica has it: round after round until the deadline, with fresh
/// locations for each.
async fn fetch(inner: Arc<Inner>, mut piece: Piece, key: u64) -> Result<Bytes, Trial> {
    let deadline = now() + inner.config.deadline;
    for round in 0.. {
        let fault = match fetch_round(&inner, &piece, key, ATTEMPT * (1 << round.min(3))).await {
            Ok(bytes) => return Ok(bytes),
            Err(fault) => fault,
        };
        let wait = if round == 0 { Duration::ZERO } else { pause(round - 1, inner.noise.next()) };
        if rule(Call::Read, &fault) == Rule::Fail || left(deadline) <= wait {
            return Err(Trial::Failed(fault));
        }
        inner.counters.retries.add(1);
        tokio::time::sleep(wait).await;
        if let Some(location) = relocate(&inner, &piece, fault).await? {
            piece.location = location;
        }
    }
    Err(Trial::Failed(Fault::new(Kind::Unavailable, "read repeated too often")))
}

/// Asks each member once. The fault is the last one, or the first that asks for a new location.
async fn fetch_round(inner: &Arc<Inner>, piece: &Piece, key: u64, attempt: Duration) -> Outcome<Bytes> {
    let location = &*piece.location;
    let order = order(location, key, |position| inner.pool.is_suspect(&location.members[position].address));
    let mut last = Fault::new(Kind::Unavailable, format!("chunk {} has no living replica", location.chunk));
    for (tried, position) in order.into_iter().enumerate() {
        inner.counters.failovers.add(u64::from(tried > 0));
        let member = &location.members[position];
        let fault = match fetch_from(inner, piece, member, attempt).await {
            Ok(bytes) => return Ok(bytes),
            Err(fault) => fault,
        };
        tracing::debug!(chunk = %location.chunk, server = %member.server, error = %fault, "read failed over");
        if is_silence(&fault) {
            inner.pool.suspect(&member.address);
        }
        if fault.kind == Kind::Corrupt {
            found_corrupt(inner, location, member);
        }
        let rule = rule(Call::Read, &fault);
        last = Fault { text: format!("chunk {} on server {}: {}", location.chunk, member.server, fault.text), ..fault };
        if rule != Rule::Next {
            break;
        }
    }
    Err(last)
}

async fn fetch_from(inner: &Inner, piece: &Piece, member: &Member, attempt: Duration) -> Outcome<Bytes> {
    let location = &*piece.location;
    let deadline = now() + attempt;
    let conn = inner.pool.chunk(member, location.chunk, attempt).await?;
    let sealed = location.state == ChunkState::Sealed;
    // A sealed chunk has one content for ever, whatever the epoch.
    let (epoch, min_seq) =
        if sealed { (Epoch(0), Seq(0)) } else { (location.epoch, inner.min_seq(location.chunk, location.epoch)) };
    let read = Read { chunk: location.chunk, epoch, offset: piece.offset, len: piece.len, min_seq };
    let (data, payload) = conn.call(&read, left(deadline)).await?;
    let bytes = verified(&read, &data, &payload)?;
    if inner.is_outdated(location.chunk, data.epoch) {
        return Err(Fault::new(Kind::NotCommitted, "this replica missed the newest writes"));
    }
    if !sealed {
        inner.saw(location.chunk, data.epoch, data.committed_seq);
    }
    Ok(bytes)
}

/// Checks every block against its checksum, then cuts the range out.
fn verified(read: &Read, data: &Data, payload: &Bytes) -> Outcome<Bytes> {
    let first = read.offset / BLOCK_SIZE * BLOCK_SIZE;
    if data.chunk != read.chunk || data.offset != first {
        return Err(Fault::new(Kind::Corrupt, "the answer is for other bytes than were asked for"));
    }
    if payload.len() != data.crcs.len() * BLOCK_SIZE as usize || !checksum::matches(payload, &data.crcs) {
        return Err(Fault::new(Kind::Corrupt, "a block does not match its checksum"));
    }
    let start = (read.offset - first) as usize;
    let end = start + read.len as usize;
    if end > data.len as usize || end > payload.len() {
        let text =
            format!("{} bytes are committed there, byte {} is wanted", data.committed_len, read.offset + read.len);
        return Err(Fault::new(Kind::NotCommitted, text));
    }
    Ok(payload.slice(start..end))
}

/// Where the chunk is by now. `None`: the master cannot say, go on with what is known.
async fn relocate(inner: &Inner, piece: &Piece, fault: Fault) -> Result<Option<Arc<Location>>, Trial> {
    let found = match inner.locate_chunk(piece.location.chunk).await {
        Ok(found) => found.items.into_iter().next(),
        Err(fault) if fault.kind == Kind::NotFound => return Err(Trial::Moved(fault)),
        Err(_) => return Ok(None),
    };
    let Some(found) = found else { return Err(Trial::Moved(fault)) };
    let stop = found.start + u64::from(piece.offset) + u64::from(piece.len);
    if stop > end_of(&found) { Err(Trial::Moved(fault)) } else { Ok(Some(Arc::new(found))) }
}

/// Counts it, and tells the master without holding the reader up.
fn found_corrupt(inner: &Arc<Inner>, location: &Location, member: &Member) {
    inner.counters.corrupt_replies.add(1);
    let Ok(turn) = Arc::clone(&inner.reporting).try_acquire_owned() else { return };
    let (inner, chunk, epoch, suspect) = (Arc::clone(inner), location.chunk, location.epoch, member.server);
    tokio::spawn(async move {
        inner.report(chunk, epoch, Trouble::BadBlock, suspect).await;
        drop(turn);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::ChunkHandle;

    fn answer(committed: usize) -> (Read, Data, Bytes) {
        let mut payload = vec![7; committed];
        payload.resize(committed.next_multiple_of(4096), 0);
        let crcs = checksum::block_crcs(&payload);
        let read = Read { chunk: ChunkHandle(1), epoch: Epoch(1), offset: 4100, len: 100, min_seq: Seq(0) };
        let len = u32::try_from(committed).unwrap();
        let committed_len = 4096 + len;
        let (epoch, committed_seq) = (Epoch(1), Seq(3));
        let data = Data { chunk: ChunkHandle(1), offset: 4096, len, committed_len, epoch, committed_seq, crcs };
        (read, data, Bytes::from(payload))
    }

    fn kind(read: &Read, data: &Data, payload: &Bytes) -> Kind {
        verified(read, data, payload).unwrap_err().kind
    }

    #[test]
    fn the_range_is_cut_out_of_verified_blocks_without_a_copy() {
        let (read, data, payload) = answer(5000);
        let bytes = verified(&read, &data, &payload).unwrap();
        assert_eq!((bytes.len(), bytes.as_ptr()), (100, payload[4..].as_ptr()));
    }

    #[test]
    fn a_flipped_byte_a_missing_block_or_another_chunk_is_corrupt() {
        let (read, data, payload) = answer(5000);
        let mut flipped = payload.to_vec();
        flipped[8191] ^= 1;
        assert_eq!(kind(&read, &data, &Bytes::from(flipped)), Kind::Corrupt);
        assert_eq!(kind(&read, &data, &payload.slice(..4096)), Kind::Corrupt);
        assert_eq!(kind(&read, &Data { chunk: ChunkHandle(2), ..data.clone() }, &payload), Kind::Corrupt);
        assert_eq!(kind(&read, &Data { offset: 0, ..data }, &payload), Kind::Corrupt);
    }

    #[test]
    fn fewer_bytes_than_asked_for_are_never_a_success() {
        let (read, data, payload) = answer(103);
        assert_eq!(kind(&read, &data, &payload), Kind::NotCommitted);
        let (read, data, payload) = answer(104);
        assert_eq!(verified(&read, &data, &payload).unwrap().len(), 100);
    }
}
