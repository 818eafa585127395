//! The journal of one shard as bookkeeping: where the next batch goes, what space is free, and what
//! each group of records waits for. No I/O; [`super::commit`] moves the bytes.

use std::collections::{BTreeMap, VecDeque};

use wire::{ChunkHandle, Epoch};

use super::StoreError;
use super::batch::{Batch, Chain, Subject, record_len};
use super::event::{Event, Tally};
use super::layout::{PAGE, page_up};
use super::record::Body;
use super::replica::Tail;

/// Most bytes of one batch.
const BATCH_MAX: u64 = 8 << 20;

/// Kept for [`Class::Control`] when the journal is nearly full.
const CONTROL_RESERVE: u64 = 4 << 20;

/// Kept for [`Class::Release`]: else what keeps the journal full could not be dropped.
const RELEASE_RESERVE: u64 = 2 * PAGE as u64;

/// Who may use the last of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// New work.
    Work,
    /// Later parts of an operation, FINAL, PROMISE, SEAL, SEALED, CONDEMN, FREE: what ends work.
    Control,
    /// What gives space back: the promise that drops held-back records.
    Release,
}

/// How far a replica is once a group is durable.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) len: u32,
    /// Last entry, counted in the log of `epoch`.
    pub(crate) seq: u64,
    pub(crate) epoch: Epoch,
    pub(crate) tail: Tail,
}

/// What the records of one batch wait for, and what becomes true when they are durable.
pub(crate) struct Group<F> {
    /// Durable, or of unknown outcome.
    pub(crate) done: Event,
    /// In-place writes of its records that are still going on.
    pub(crate) writes: Tally,
    /// Slots written in place, with the end of what was written.
    pub(crate) slots: BTreeMap<u32, (F, u32)>,
    /// Per chunk with records in the batch.
    pub(crate) ends: BTreeMap<ChunkHandle, End>,
    /// Slots whose FREE is in the batch.
    pub(crate) freed: Vec<u32>,
}

impl<F> Default for Group<F> {
    fn default() -> Self {
        Self {
            done: Event::default(),
            writes: Tally::default(),
            slots: BTreeMap::new(),
            ends: BTreeMap::new(),
            freed: Vec::new(),
        }
    }
}

/// A closed batch, on its way to the disk.
pub(crate) struct Closed<F> {
    pub(crate) bytes: Vec<u8>,
    /// Stream position.
    pub(crate) at: u64,
    pub(crate) last_lsn: u64,
    /// Only carries `durable_upto` forward: nobody waits for it, it needs no flush.
    pub(crate) mark: bool,
    pub(crate) group: Group<F>,
}

/// A place where replay can start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    /// The first record there.
    pub(crate) first_lsn: u64,
    /// Stream position.
    pub(crate) at: u64,
    /// Checksum of the record before.
    pub(crate) prev_crc: u32,
}

/// The journal of one shard.
pub(crate) struct Log<F> {
    /// After the last closed batch.
    chain: Chain,
    batch: Batch,
    /// Of the open batch.
    pub(crate) group: Group<F>,
    /// Of the batch that is being written and flushed.
    pub(crate) in_flight: Option<Event>,
    /// Stream position of the open batch.
    head: u64,
    /// Everything before is free.
    start: Start,
    log_bytes: u64,
    /// Closed batches whose space is not free, oldest first.
    starts: VecDeque<Start>,
    /// Flushed.
    pub(crate) durable_lsn: u64,
    /// The newest record is a MARK: nothing to carry forward.
    pub(crate) marked: bool,
}

impl<F: Clone> Log<F> {
    /// An empty journal that continues `chain` at `at`.
    pub(crate) fn new(chain: Chain, at: u64, log_bytes: u64) -> Self {
        Self {
            durable_lsn: chain.lsn,
            chain,
            batch: Batch::default(),
            group: Group::default(),
            in_flight: None,
            head: at,
            start: Start { first_lsn: chain.lsn + 1, at, prev_crc: chain.prev_crc },
            log_bytes,
            starts: VecDeque::new(),
            marked: true,
        }
    }

    /// Number of the newest record.
    pub(crate) fn last_lsn(&self) -> u64 {
        self.chain.lsn + self.batch.record_count() as u64
    }

    /// Number of the last record of the last closed batch.
    pub(crate) fn closed_lsn(&self) -> u64 {
        self.chain.lsn
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// Bytes in use, the open batch included.
    pub(crate) fn used(&self) -> u64 {
        self.head - self.start.at + self.batch.len()
    }

    /// Whether half of it is used: time for a checkpoint.
    pub(crate) fn wants_checkpoint(&self) -> bool {
        self.used() * 2 >= self.log_bytes
    }

    /// Whether a record with a body of at most `body_len` bytes fits.
    pub(crate) fn room(&self, body_len: usize, class: Class) -> Result<(), StoreError> {
        let more = record_len(body_len) as u64;
        let used = page_up(self.used() + more) + PAGE as u64;
        if used > self.limit(class) || self.batch.len() + more > BATCH_MAX { Err(StoreError::Busy) } else { Ok(()) }
    }

    /// Whether `bytes` of records ever fit, when everything else is gone.
    pub(crate) fn fits_empty(&self, bytes: usize) -> bool {
        page_up(bytes as u64) + PAGE as u64 <= self.limit(Class::Work)
    }

    /// Whether `bytes` of new work fit now, in however many batches.
    pub(crate) fn has_space(&self, bytes: usize) -> bool {
        page_up(self.used() + bytes as u64) + PAGE as u64 <= self.limit(Class::Work)
    }

    fn limit(&self, class: Class) -> u64 {
        match class {
            Class::Work => self.log_bytes - (self.log_bytes / 10).max(CONTROL_RESERVE.min(self.log_bytes / 4)),
            Class::Control => self.log_bytes - RELEASE_RESERVE,
            Class::Release => self.log_bytes,
        }
    }

    /// Adds a record for which there is [`Log::room`]; its number.
    pub(crate) fn push(&mut self, subject: Subject, flags: u8, body: &Body<'_>) -> u64 {
        self.batch.push(subject, flags, body);
        self.marked = matches!(body, Body::Mark);
        self.last_lsn()
    }

    /// Closes the open batch and opens the next.
    pub(crate) fn close(&mut self) -> Closed<F> {
        let batch = std::mem::take(&mut self.batch);
        let group = std::mem::take(&mut self.group);
        let mark = self.marked && batch.record_count() == 1;
        self.starts.push_back(Start { first_lsn: self.chain.lsn + 1, at: self.head, prev_crc: self.chain.prev_crc });
        let (bytes, chain) = batch.close(&self.chain, self.durable_lsn);
        let at = self.head;
        self.chain = chain;
        self.head += bytes.len() as u64;
        self.in_flight = Some(group.done.clone());
        Closed { bytes, at, last_lsn: chain.lsn, mark, group }
    }

    /// Pieces of the log area that hold `len` bytes of the stream from `at` on: (offset, length).
    pub(crate) fn pieces(&self, at: u64, len: u64) -> impl Iterator<Item = (u64, u64)> + use<F> {
        let offset = at % self.log_bytes;
        let first = len.min(self.log_bytes - offset);
        [(offset, first), (0, len - first)].into_iter().filter(|(_, len)| *len > 0)
    }

    /// The event after which everything accepted so far is durable; `None` when it is.
    pub(crate) fn pending(&self) -> Option<Event> {
        if self.batch.is_empty() { self.in_flight.clone() } else { Some(self.group.done.clone()) }
    }

    /// The latest place from which replay finds record `lsn` and everything after it.
    pub(crate) fn start_for(&self, lsn: u64) -> Start {
        if lsn > self.chain.lsn {
            return Start { first_lsn: self.chain.lsn + 1, at: self.head, prev_crc: self.chain.prev_crc };
        }
        let after = self.starts.partition_point(|start| start.first_lsn <= lsn);
        assert!(after > 0, "records that may be replayed keep their space");
        self.starts[after - 1]
    }

    /// Whether replay from this record on keeps half of the journal.
    pub(crate) fn pins_half(&self, lsn: u64) -> bool {
        (self.head - self.start_for(lsn).at) * 2 >= self.log_bytes
    }

    /// Offset in the log area of a stream position.
    pub(crate) fn offset(&self, at: u64) -> u64 {
        at % self.log_bytes
    }

    pub(crate) fn log_bytes(&self) -> u64 {
        self.log_bytes
    }

    /// Where replay starts, as both RING copies say.
    #[cfg(test)]
    pub(crate) fn start(&self) -> Start {
        self.start
    }

    /// Both RING copies name this start durably: the space before is free.
    pub(crate) fn release(&mut self, start: Start) {
        assert!(start.at >= self.start.at && start.at <= self.head, "the start moves forward");
        self.start = start;
        self.starts.retain(|batch| batch.at >= start.at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::NO_SLOT;
    use wire::Term;

    const CHAIN: Chain = Chain { lsn: 10, prev_crc: 3, boot_gen: 2, disk_uuid: [1; 16] };
    const SUBJECT: Subject = Subject { chunk: ChunkHandle(1), slot: NO_SLOT, epoch: Epoch(1) };
    const PROMISE: Body<'static> = Body::Promise { promised: Epoch(2), term: Term(1) };

    fn log() -> Log<()> {
        Log::new(CHAIN, 8192, 256 << 10)
    }

    fn fill(log: &mut Log<()>, class: Class) -> usize {
        let mut batches = 0;
        while log.room(8, class).is_ok() {
            log.push(SUBJECT, 0, &PROMISE);
            log.close();
            batches += 1;
        }
        batches
    }

    #[test]
    fn work_leaves_the_last_of_the_journal_to_control() {
        let mut log = log();
        assert_eq!(fill(&mut log, Class::Work), 47);
        assert!(log.wants_checkpoint() && log.pins_half(11) && !log.pins_half(50));
        assert_eq!(fill(&mut log, Class::Control), 14);
        assert_eq!(fill(&mut log, Class::Release), 2);
        assert!(log.used() <= log.log_bytes());
        let start = log.start_for(40);
        log.release(start);
        assert!(log.room(8, Class::Work).is_ok());
    }

    #[test]
    fn a_batch_over_the_end_of_the_circle_is_two_pieces() {
        let log = log();
        let end = log.log_bytes();
        assert_eq!(log.pieces(end * 3 - 4096, 12288).collect::<Vec<_>>(), [(end - 4096, 4096), (0, 8192)]);
        assert_eq!(log.pieces(4096, 4096).collect::<Vec<_>>(), [(4096, 4096)]);
    }

    #[test]
    fn replay_starts_at_the_batch_of_the_first_record_that_counts() {
        let mut log = log();
        for _ in 0..3 {
            log.push(SUBJECT, 0, &PROMISE);
            log.push(SUBJECT, 0, &PROMISE);
            log.close();
        }
        assert_eq!((log.start_for(11).first_lsn, log.start_for(11).prev_crc, log.start_for(11).at), (11, 3, 8192));
        assert_eq!((log.start_for(14).first_lsn, log.start_for(14).at), (13, 12288));
        assert_eq!((log.start_for(17).first_lsn, log.start_for(17).at), (17, 20480));
        log.release(log.start_for(13));
        assert_eq!(log.start_for(15).first_lsn, 15);
    }
}
