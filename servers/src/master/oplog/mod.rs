//! The operation log: the truth about the cluster, in order.
//!
//! One thread writes it. While one flush is in flight the next group gathers in its queue: no timer.
//! An acknowledgement leaves only after the flush that covers its entry. A failed write or flush
//! stops the process: what the disk holds then is unknown, and a second flush would answer "fine".

mod record;
mod segment;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::entry::{Entry, Lsn};
use crate::admin::Histogram;
use crate::clock;
use record::{End, HeadError, PAGE, SegmentHead, Tip, Uuid};
use segment::{Segment, Writer};

/// Entries waiting for the writer. More than one flush takes up; beyond it the applier waits.
const QUEUE_MAX: usize = 4096;
/// A batch is closed when it has reached this: a flush of more would hold everybody up.
const BATCH_LEN_MAX: usize = 4 << 20;

/// Why the log cannot be used; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk refused.
    #[error("operation log in {dir}: {error}")]
    Io {
        /// Which log.
        dir: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Entries that were acknowledged cannot be read.
    #[error("operation log in {dir} is damaged: {what}")]
    Damaged {
        /// Which log.
        dir: PathBuf,
        /// What is missing.
        what: String,
    },
}

/// A log that was read to its end and has not been opened for writing.
#[derive(Debug)]
pub struct Replayed {
    dir: PathBuf,
    uuid: Uuid,
    tip: Tip,
    segments: Vec<Segment>,
    /// Segments that hold nothing, from before the first.
    unused: Vec<u64>,
    next_number: u64,
    /// Whether the end was torn: a batch was being written and never acknowledged.
    pub torn: bool,
}

impl Replayed {
    /// The last entry.
    #[must_use]
    pub fn last(&self) -> Lsn {
        self.tip.lsn
    }

    /// The uuid of the log.
    #[must_use]
    pub fn uuid(&self) -> [u8; 16] {
        self.uuid
    }
}

/// Whether there is a log at all: a segment that was begun. One that was only being made, when the
/// first start was interrupted, is none.
///
/// # Errors
///
/// When the directory cannot be read.
pub fn exists(dir: &Path) -> Result<bool, LogError> {
    let failed = |error| LogError::Io { dir: dir.into(), error };
    let numbers = match segment::numbers(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        numbers => numbers.map_err(failed)?,
    };
    for number in numbers {
        if !matches!(segment::head(&segment::read(dir, number).map_err(failed)?), Ok(None)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Makes an empty log.
///
/// # Errors
///
/// [`LogError::Io`].
pub fn create(dir: &Path, uuid: [u8; 16]) -> Result<Replayed, LogError> {
    let failed = |error| LogError::Io { dir: dir.into(), error };
    fs::create_dir_all(dir).map_err(failed)?;
    if let Some(above) = dir.parent() {
        fs::File::open(above).and_then(|above| above.sync_all()).map_err(failed)?;
    }
    Ok(Replayed {
        dir: dir.into(),
        uuid,
        tip: Tip { lsn: 0, crc: 0 },
        segments: vec![],
        unused: vec![],
        next_number: 1,
        torn: false,
    })
}

/// Reads the log and hands over every entry after `applied`, in order. The entries are durable.
///
/// # Errors
///
/// [`LogError::Damaged`] when an acknowledged entry is not there, or `replay` refuses one.
pub fn replay(
    dir: &Path,
    applied: Lsn,
    mut replay: impl FnMut(Lsn, Entry) -> Result<(), String>,
) -> Result<Replayed, LogError> {
    let failed = |error| LogError::Io { dir: dir.into(), error };
    let damaged = |what: String| LogError::Damaged { dir: dir.into(), what };
    let numbers = segment::numbers(dir).map_err(failed)?;
    let next_number = numbers.last().map_or(1, |last| last + 1);
    let mut log: Option<Replayed> = None;
    let mut unused = vec![];
    for number in numbers {
        let bytes = segment::read(dir, number).map_err(failed)?;
        let head = match segment::head(&bytes) {
            Ok(head) => head,
            Err(HeadError::Damaged) => None,
            Err(error @ HeadError::Format(_)) => return Err(damaged(format!("segment {number}: {error}"))),
        };
        // Without a head it was prepared and not begun, or its beginning is torn, or its head has rotted:
        // its records tell which, by continuing the chain or not.
        let Some(head) = head.or(log.as_ref().map(Replayed::continued)) else {
            unused.push(number);
            continue;
        };
        let log = log.get_or_insert_with(|| Replayed {
            dir: dir.into(),
            uuid: head.uuid,
            tip: Tip { lsn: head.first_lsn - 1, crc: head.prev_crc },
            segments: vec![],
            unused: vec![],
            next_number,
            torn: false,
        });
        if log.segments.is_empty() && head.first_lsn > applied + 1 {
            return Err(damaged(format!(
                "it begins with entry {}, the checkpoint ends with entry {applied}",
                head.first_lsn
            )));
        }
        if head != log.continued() {
            return Err(damaged(format!("segment {number} does not continue entry {}", log.tip.lsn)));
        }
        log.read(number, &bytes, applied, &mut replay)?;
        log.segments.push(Segment { number, first_lsn: head.first_lsn });
    }
    let Some(mut log) = log else { return Err(damaged("no segment has a valid head page".into())) };
    log.unused = unused;
    if log.tip.lsn < applied {
        return Err(damaged(format!("it ends with entry {}, the checkpoint with entry {applied}", log.tip.lsn)));
    }
    Ok(log)
}

impl Replayed {
    /// The head of a segment that continues this log.
    fn continued(&self) -> SegmentHead {
        SegmentHead { uuid: self.uuid, first_lsn: self.tip.lsn + 1, prev_crc: self.tip.crc }
    }

    fn read(
        &mut self,
        number: u64,
        bytes: &[u8],
        applied: Lsn,
        replay: &mut impl FnMut(Lsn, Entry) -> Result<(), String>,
    ) -> Result<(), LogError> {
        let mut refused = None;
        let end = record::walk(bytes, &self.uuid, &mut self.tip, |record| {
            if record.lsn <= applied || refused.is_some() {
                return;
            }
            let entry = wire::codec::decode(record.body).map_err(|error| error.to_string());
            refused = entry.and_then(|entry| replay(record.lsn, entry)).err().map(|why| (record.lsn, why));
        });
        let what = match (end, refused) {
            (_, Some((lsn, why))) => format!("entry {lsn} in segment {number} does not apply: {why}"),
            (End::Damaged { missing }, _) => format!(
                "entry {missing} in segment {number} is not readable, and a later one proves that it was acknowledged"
            ),
            (End::Clean { torn, .. }, None) => {
                self.torn = torn;
                return Ok(());
            }
        };
        Err(LogError::Damaged { dir: self.dir.clone(), what })
    }
}

/// Numbers of a running log, for metrics.
#[derive(Clone, Debug, Default)]
pub struct LogStats {
    /// Entries made durable.
    pub entries: u64,
    /// Batches, each one flush.
    pub batches: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Time of write and flush.
    pub flush: Histogram,
}

struct Item<A> {
    entry: Entry,
    ack: A,
}

/// A log being written. `A` is what the writer hands back once its entry is durable.
#[derive(Debug)]
pub struct Log<A> {
    queue: SyncSender<Item<A>>,
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    segments: Mutex<Vec<Segment>>,
    stats: Mutex<LogStats>,
}

/// The side of a log that may be shared: its numbers, and what may go.
#[derive(Clone, Debug)]
pub struct LogHandle(Arc<Shared>);

impl<A: Send + 'static> Log<A> {
    /// Opens the log for writing, in a new segment: what a crash left is never written over.
    /// `durable` is called on the log's thread with the last durable entry and what was handed in, in order.
    ///
    /// # Errors
    ///
    /// [`LogError::Io`].
    pub fn start(
        replayed: Replayed,
        boot: u64,
        durable: impl FnMut(Lsn, Vec<A>) + Send + 'static,
    ) -> Result<Self, LogError> {
        let Replayed { dir, uuid, tip, mut segments, unused, next_number, .. } = replayed;
        let failed = |error| LogError::Io { dir: dir.clone(), error };
        unused.iter().try_for_each(|number| segment::remove(&dir, *number)).map_err(failed)?;
        let writer = Writer::begin(&dir, uuid, next_number, tip.lsn + 1, tip.crc).map_err(failed)?;
        segments.push(Segment { number: writer.number(), first_lsn: tip.lsn + 1 });
        let shared = Arc::new(Shared { dir: dir.clone(), segments: Mutex::new(segments), stats: Mutex::default() });
        let (queue, items) = sync_channel(QUEUE_MAX);
        let mut scribe = Scribe { writer, uuid, tip, boot, shared: Arc::clone(&shared), durable };
        let thread =
            std::thread::Builder::new().name("oplog".into()).spawn(move || scribe.run(&items)).map_err(failed)?;
        Ok(Self { queue, shared, thread })
    }

    /// Queues the next entry; waits while the queue is full. Durable when it is handed back.
    pub fn append(&self, entry: Entry, ack: A) {
        // The thread ends only after this sender is gone; a failed write stops the process.
        let sent = self.queue.send(Item { entry, ack });
        assert!(sent.is_ok(), "the operation log's thread lives as long as its queue");
    }

    /// Its shared side.
    #[must_use]
    pub fn handle(&self) -> LogHandle {
        LogHandle(Arc::clone(&self.shared))
    }

    /// Writes what is queued, and closes.
    pub fn stop(self) {
        drop(self.queue);
        let _ = self.thread.join();
    }
}

impl LogHandle {
    /// Removes segments that hold only entries up to `upto`, which two checkpoints cover.
    ///
    /// # Errors
    ///
    /// [`LogError::Io`]; a segment that could not be removed is tried again the next time.
    pub fn prune(&self, upto: Lsn) -> Result<(), LogError> {
        let mut segments = lock(&self.0.segments);
        while let [first, second, ..] = segments.as_slice()
            && second.first_lsn <= upto + 1
        {
            segment::remove(&self.0.dir, first.number)
                .map_err(|error| LogError::Io { dir: self.0.dir.clone(), error })?;
            segments.remove(0);
        }
        Ok(())
    }

    /// Its numbers.
    #[must_use]
    pub fn stats(&self) -> LogStats {
        lock(&self.0.stats).clone()
    }
}

/// The thread that writes.
struct Scribe<F> {
    writer: Writer,
    uuid: Uuid,
    tip: Tip,
    boot: u64,
    shared: Arc<Shared>,
    durable: F,
}

impl<F> Scribe<F> {
    fn run<A>(&mut self, items: &Receiver<Item<A>>)
    where
        F: FnMut(Lsn, Vec<A>),
    {
        let mut batch = vec![];
        while let Ok(first) = items.recv() {
            batch.clear();
            let before = self.tip;
            let mut acks = vec![];
            let mut next = Some(first);
            while let Some(Item { entry, ack }) = next {
                record::push(&mut batch, &self.uuid, &mut self.tip, self.boot, before.lsn, &entry);
                acks.push(ack);
                next = if batch.len() < BATCH_LEN_MAX { items.try_recv().ok() } else { None };
            }
            batch.resize(batch.len().next_multiple_of(PAGE), 0);
            let started = clock::now();
            if let Err(error) = self.write(&batch, before) {
                // What the disk holds is unknown now; only a restart finds out.
                panic!("operation log in {}: write or flush failed: {error}", self.shared.dir.display());
            }
            self.count(acks.len(), batch.len(), clock::now().saturating_sub(started));
            (self.durable)(self.tip.lsn, acks);
        }
    }

    fn write(&mut self, batch: &[u8], before: Tip) -> io::Result<()> {
        if !self.writer.fits(batch.len()) {
            self.writer.roll(before.lsn + 1, before.crc)?;
            let segment = Segment { number: self.writer.number(), first_lsn: before.lsn + 1 };
            lock(&self.shared.segments).push(segment);
        }
        self.writer.append(batch)
    }

    fn count(&self, entries: usize, bytes: usize, took: Duration) {
        let mut stats = lock(&self.shared.stats);
        stats.entries += u64::try_from(entries).unwrap_or(u64::MAX);
        stats.batches += 1;
        stats.bytes += u64::try_from(bytes).unwrap_or(u64::MAX);
        stats.flush.record(took);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::master::entry::Change;
    use std::sync::mpsc::channel;
    use wire::Term;

    fn entry(term: u32) -> Entry {
        Entry { now_ms: 0, first_inode: 0, next_chunk: 0, change: Change::Term { term: Term(term) } }
    }

    /// Appends entries and returns once they are durable.
    fn write(replayed: Replayed, terms: std::ops::RangeInclusive<u32>) {
        let (sender, acked) = channel();
        let log = Log::start(replayed, 1, move |_, acks: Vec<u32>| {
            acks.into_iter().for_each(|ack| sender.send(ack).unwrap())
        });
        let log = log.unwrap();
        for term in terms.clone() {
            log.append(entry(term), term);
        }
        log.stop();
        assert!(acked.iter().eq(terms), "acknowledged in order, each once");
    }

    fn read(dir: &Path, applied: Lsn) -> Result<(Vec<Entry>, Replayed), LogError> {
        let mut entries = vec![];
        let log = replay(dir, applied, |_, entry| {
            entries.push(entry);
            Ok(())
        })?;
        Ok((entries, log))
    }

    #[test]
    fn acknowledged_entries_survive_restarts_in_order() {
        let dir = tempfile::tempdir().unwrap();
        write(create(dir.path(), [3; 16]).unwrap(), 1..=500);
        let (entries, log) = read(dir.path(), 0).unwrap();
        assert_eq!(entries, (1..=500).map(entry).collect::<Vec<_>>());
        write(log, 501..=510);
        let (entries, log) = read(dir.path(), 499).unwrap();
        assert_eq!(entries, (500..=510).map(entry).collect::<Vec<_>>());
        assert_eq!(log.last(), 510);
    }

    #[test]
    fn a_log_that_ends_before_the_checkpoint_or_begins_after_it_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        write(create(dir.path(), [3; 16]).unwrap(), 1..=5);
        let error = read(dir.path(), 6).unwrap_err();
        assert!(error.to_string().contains("ends with entry 5"), "{error}");
        write(read(dir.path(), 0).unwrap().1, 6..=7);
        segment::remove(dir.path(), 1).unwrap();
        assert!(read(dir.path(), 5).is_ok());
        let error = read(dir.path(), 4).unwrap_err();
        assert!(error.to_string().contains("begins with entry 6"), "{error}");
    }

    #[test]
    fn a_hole_between_segments_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        write(create(dir.path(), [3; 16]).unwrap(), 1..=5);
        write(read(dir.path(), 0).unwrap().1, 6..=7);
        write(read(dir.path(), 0).unwrap().1, 8..=9);
        let middle = segment::path(dir.path(), 2);
        let mut bytes = fs::read(&middle).unwrap();
        bytes[PAGE..].fill(0);
        fs::write(&middle, &bytes).unwrap();
        let error = read(dir.path(), 0).unwrap_err();
        assert!(error.to_string().contains("segment 3 does not continue entry 5"), "{error}");
    }

    #[test]
    fn a_torn_last_segment_ends_the_log_and_the_next_one_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        write(create(dir.path(), [3; 16]).unwrap(), 1..=5);
        write(read(dir.path(), 0).unwrap().1, 6..=7);
        let last = segment::path(dir.path(), 2);
        let mut bytes = fs::read(&last).unwrap();
        bytes[..PAGE].fill(0xff);
        bytes[PAGE..PAGE + 128].fill(0);
        fs::write(&last, &bytes).unwrap();
        let (entries, log) = read(dir.path(), 0).unwrap();
        assert_eq!(entries.len(), 5);
        write(log, 6..=8);
        assert_eq!(read(dir.path(), 0).unwrap().0, (1..=8).map(entry).collect::<Vec<_>>());
    }

    #[test]
    fn a_rotten_head_page_costs_no_entry() {
        let dir = tempfile::tempdir().unwrap();
        write(create(dir.path(), [3; 16]).unwrap(), 1..=5);
        write(read(dir.path(), 0).unwrap().1, 6..=7);
        let last = segment::path(dir.path(), 2);
        let mut bytes = fs::read(&last).unwrap();
        bytes[40] ^= 1;
        fs::write(&last, &bytes).unwrap();
        assert_eq!(read(dir.path(), 0).unwrap().0, (1..=7).map(entry).collect::<Vec<_>>());
    }

    #[test]
    fn only_segments_that_are_covered_as_a_whole_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        write(create(dir.path(), [3; 16]).unwrap(), 1..=5);
        let log = Log::start(read(dir.path(), 0).unwrap().1, 1, |_, _: Vec<()>| {}).unwrap();
        log.handle().prune(4).unwrap();
        assert_eq!(segment::numbers(dir.path()).unwrap(), [1, 2]);
        log.handle().prune(5).unwrap();
        assert_eq!(segment::numbers(dir.path()).unwrap(), [2]);
        log.handle().prune(100).unwrap();
        assert_eq!(segment::numbers(dir.path()).unwrap(), [2], "the one being written stays");
        log.stop();
    }

    #[test]
    fn a_log_longer_than_a_segment_rolls_and_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::start(create(dir.path(), [3; 16]).unwrap(), 1, |_, _: Vec<()>| {}).unwrap();
        let path = "x".repeat(200_000);
        for number in 0..200 {
            let request = wire::RequestId { client: [1; 16], number };
            let change = Change::Mkdir { request, path: path.clone() };
            log.append(Entry { now_ms: 0, first_inode: 0, next_chunk: 0, change }, ());
        }
        log.stop();
        assert!(segment::numbers(dir.path()).unwrap().len() >= 3);
        let (entries, _) = read(dir.path(), 0).unwrap();
        assert_eq!(entries.len(), 200);
    }
}
