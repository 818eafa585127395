//! What a member of an open chain keeps in memory: how far itself, the chain behind it and the
//! whole chain are, what must be sent again when a connection breaks, and who waits for an answer.
//!
//! Pure bookkeeping: it decides what is due, the shard sends it. None of it survives a restart, and
//! none needs to: a replica that restarted never acts in its old epoch again.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use engine::runtime::Runtime;
use wire::append::Appended;
use wire::limits::{BLOCK_SIZE, DEDUP_ENTRIES_MAX};
use wire::member::Member;
use wire::{DedupEntry, Epoch, OpId, Seq, StreamId};

use super::admit;
use super::budget::Permit;
use super::link::Link;
use super::outbox::{Outbox, Ticket};
use crate::canary::weakened;

/// A stream that was silent for so long may be forgotten; its client starts a new one after half of it.
const STREAM_SILENCE: Duration = Duration::from_secs(20 * 60);

/// A re-opened chunk stays open for so long without a write: more than the master's lease.
const UNWRITTEN: Duration = Duration::from_secs(12);

/// An entry the successor has not yet called durable.
pub(crate) struct Held<R: Runtime> {
    /// Its number.
    pub(crate) seq: Seq,
    /// Header and fields as they were sent first.
    pub(crate) head: Rc<[u8]>,
    /// Payload.
    pub(crate) payload: Option<R::Buf>,
    /// The share of the buffers it holds.
    pub(crate) permit: Option<Permit>,
    /// When it came.
    pub(crate) since: Duration,
}

/// An operation that is not yet committed, at the head.
pub(crate) struct OpenOp<R: Runtime> {
    /// Its last entry.
    pub(crate) end: Seq,
    /// Which; `None` for the FINAL entry.
    pub(crate) id: Option<OpId>,
    /// The answer, once committed.
    pub(crate) answer: Appended,
    /// Who waits for it.
    pub(crate) waiters: Vec<Ticket<R>>,
    /// When it came.
    pub(crate) since: Duration,
}

/// What the head knows about a stream of the dedup table besides the table.
#[derive(Clone, Copy, Debug)]
struct StreamLife {
    /// When its last operation came.
    heard: Duration,
    /// Its client has all answers and ended it.
    closed: bool,
}

/// Volatile state of one replica in an open chain.
pub(crate) struct Replica<R: Runtime> {
    /// The chain's epoch.
    pub(crate) epoch: Epoch,
    /// My place; the head is zero.
    pub(crate) position: usize,
    /// The chain.
    pub(crate) members: Vec<Member>,
    /// Everything up to here is durable here.
    pub(crate) own: Seq,
    /// Everything up to here is durable at all members behind me.
    pub(crate) down: Seq,
    /// Everything up to here is durable on the whole chain, as far as known here.
    pub(crate) committed: Seq,
    /// Last UP sent.
    pub(crate) told_up: Seq,
    /// Last committed number that went down the chain.
    pub(crate) told_down: Seq,
    /// A COMMIT is due.
    pub(crate) commit_scheduled: bool,
    /// Entries the successor has not called durable.
    pub(crate) held: VecDeque<Held<R>>,
    /// Operations not committed, at the head.
    pub(crate) ops: VecDeque<OpenOp<R>>,
    /// Where UP goes.
    pub(crate) upstream: Option<Outbox<R>>,
    /// Where FWD goes.
    pub(crate) link: Option<Link<R>>,
    /// Re-opened: it takes overwrites, and is sealed when idle even if none came.
    pub(crate) fixed: bool,
    /// Overwrites accepted here and not known to be committed: their last entry, and the bytes.
    pending: VecDeque<(Seq, Range<u32>)>,
    /// The head admits nothing more; a FINAL is on its way.
    pub(crate) closing: bool,
    /// Number of the FINAL entry.
    pub(crate) final_seq: Option<Seq>,
    /// Who waits for FINAL before it has its number.
    pub(crate) final_waiters: Vec<Ticket<R>>,
    /// The answer to them, once FINAL is committed.
    pub(crate) finished: Option<Appended>,
    /// Space is allocated up to here.
    pub(crate) reserved: u32,
    /// When something last happened.
    pub(crate) touched: Duration,
    /// Entry for which a gap was told to the predecessor last.
    pub(crate) gap_told: Option<Seq>,
    /// Streams of the dedup table, at the head.
    streams: BTreeMap<StreamId, StreamLife>,
    /// The dedup table has at most so many entries.
    table_bound: usize,
    /// Smoothed time from acceptance to commit.
    pub(crate) commit_time: Duration,
}

/// What is due after progress.
pub(crate) struct Due<R: Runtime> {
    /// Tell the predecessor.
    pub(crate) up: Option<(Outbox<R>, Seq)>,
    /// This became committed (head only).
    pub(crate) committed: Option<Seq>,
    /// Answer these.
    pub(crate) answers: Vec<OpenOp<R>>,
    /// The FINAL entry became committed.
    pub(crate) finished: bool,
}

impl<R: Runtime> Replica<R> {
    pub(crate) fn new(
        epoch: Epoch,
        position: usize,
        members: Vec<Member>,
        inherited: &[DedupEntry],
        now: Duration,
    ) -> Self {
        let streams = inherited.iter().map(|entry| (entry.id.stream, StreamLife { heard: now, closed: false }));
        Self {
            streams: streams.collect(),
            table_bound: inherited.len(),
            gap_told: None,
            epoch,
            position,
            members,
            own: Seq(0),
            down: Seq(0),
            committed: Seq(0),
            told_up: Seq(0),
            told_down: Seq(0),
            commit_scheduled: false,
            held: VecDeque::new(),
            ops: VecDeque::new(),
            upstream: None,
            link: None,
            fixed: false,
            pending: VecDeque::new(),
            closing: false,
            final_seq: None,
            final_waiters: Vec::new(),
            finished: None,
            reserved: 0,
            touched: now,
            commit_time: Duration::ZERO,
        }
    }

    pub(crate) fn is_head(&self) -> bool {
        self.position == 0
    }

    pub(crate) fn successor(&self) -> Option<&Member> {
        self.members.get(self.position + 1)
    }

    /// Whether anything waits for this chain.
    pub(crate) fn is_busy(&self) -> bool {
        !self.ops.is_empty() || !self.held.is_empty()
    }

    /// Whether a chunk with content has had no work for `limit`. An empty one costs nothing open, and
    /// sealing it would only make the next empty one.
    /// A re-opened one that nobody has written yet gets time: the master gives it out only after the lease of
    /// whoever may still read from a holder that was left out.
    pub(crate) fn is_idle(&self, now: Duration, limit: Duration) -> bool {
        let limit = if self.fixed && self.own == Seq(0) { limit.max(UNWRITTEN) } else { limit };
        !self.closing
            && !self.is_busy()
            && (self.fixed || self.own > Seq(0))
            && now.saturating_sub(self.touched) > limit
    }

    /// An operation was admitted: its stream lives, the table has grown.
    pub(crate) fn heard(&mut self, stream: StreamId, now: Duration) {
        self.streams.insert(stream, StreamLife { heard: now, closed: false });
        self.table_bound += 1;
    }

    /// The client ended this stream.
    pub(crate) fn stream_closed(&mut self, stream: StreamId) {
        if let Some(life) = self.streams.get_mut(&stream) {
            life.closed = true;
        }
    }

    /// Whether the dedup table may be full; `table` gives it, and is asked only when it may be.
    pub(crate) fn table_is_full(&mut self, table: impl FnOnce() -> Vec<DedupEntry>) -> bool {
        if self.table_bound >= DEDUP_ENTRIES_MAX {
            let table = table();
            self.table_bound = table.len();
            self.streams.retain(|stream, _| table.iter().any(|entry| entry.id.stream == *stream));
        }
        self.table_bound >= DEDUP_ENTRIES_MAX
    }

    /// Whether this stream's entries need not be inherited by the next chunk: it was closed, or has
    /// been silent for longer than its client may be.
    pub(crate) fn is_forgettable(&self, stream: StreamId, now: Duration) -> bool {
        self.streams.get(&stream).is_none_or(|life| life.closed || now.saturating_sub(life.heard) > STREAM_SILENCE)
    }

    /// Streams that are over, at most `max`.
    pub(crate) fn forgettable(&self, max: usize, now: Duration) -> Vec<StreamId> {
        let over = self.streams.keys().filter(|stream| self.is_forgettable(**stream, now));
        over.take(max).copied().collect()
    }

    /// These have left the table.
    pub(crate) fn forgot(&mut self, streams: &[StreamId]) {
        self.streams.retain(|stream, _| !streams.contains(stream));
    }

    /// An overwrite was accepted.
    pub(crate) fn overwritten(&mut self, seq: Seq, bytes: Range<u32>) {
        let committed = self.committed;
        self.pending.retain(|(seq, _)| *seq > committed);
        self.pending.push_back((seq, bytes));
    }

    /// Whether a block of this range has an overwrite that is not known to be committed.
    pub(crate) fn is_pending(&self, range: &Range<u32>) -> bool {
        let block = |bytes: &Range<u32>| bytes.start / BLOCK_SIZE..bytes.end.div_ceil(BLOCK_SIZE);
        let wanted = block(range);
        let open = self.pending.iter().filter(|(seq, _)| *seq > self.committed);
        open.map(|(_, bytes)| block(bytes)).any(|block| block.start < wanted.end && wanted.start < block.end)
    }

    /// Whether ending the chunk would make room in the table.
    pub(crate) fn can_forget(&self, now: Duration) -> bool {
        self.streams.keys().any(|stream| self.is_forgettable(*stream, now))
    }

    /// Durable here and at everybody behind.
    pub(crate) fn durable_from_here(&self) -> Seq {
        let alone = self.successor().is_none() || (weakened!(HeadOnly) && self.is_head());
        if alone { self.own } else { self.own.min(self.down) }
    }

    /// Bytes of operations that are not committed.
    pub(crate) fn window_len(&self) -> u64 {
        self.ops.iter().filter(|op| op.id.is_some()).map(|op| u64::from(op.answer.len)).sum()
    }

    /// Progress of my own disk.
    pub(crate) fn durable_here(&mut self, seq: Seq, now: Duration) -> Due<R> {
        self.own = self.own.max(seq);
        self.due(now)
    }

    /// Progress of the chain behind me: entries up to `seq` need not be sent again.
    pub(crate) fn durable_behind(&mut self, seq: Seq, now: Duration) -> Due<R> {
        self.down = self.down.max(seq);
        while self.held.front().is_some_and(|held| held.seq <= self.down) {
            self.held.pop_front();
        }
        self.due(now)
    }

    fn due(&mut self, now: Duration) -> Due<R> {
        self.touched = now;
        let durable = self.durable_from_here();
        if !self.is_head() {
            let up = (durable > self.told_up).then(|| self.upstream.clone()).flatten();
            if up.is_some() {
                self.told_up = durable;
            }
            return Due {
                up: up.map(|outbox| (outbox, durable)),
                committed: None,
                answers: Vec::new(),
                finished: false,
            };
        }
        let ends = self.ops.iter().map(|op| op.end);
        let committed = admit::committed(ends, durable).filter(|seq| *seq > self.committed);
        let mut answers = Vec::new();
        if let Some(committed) = committed {
            self.committed = committed;
            while self.ops.front().is_some_and(|op| op.end <= committed) {
                answers.extend(self.ops.pop_front());
            }
        }
        for op in &answers {
            let took = now.saturating_sub(op.since);
            self.commit_time = (self.commit_time * 7 + took) / 8;
        }
        let finished = answers.iter().find(|op| op.id.is_none()).map(|op| op.answer);
        self.finished = self.finished.or(finished);
        let finished = finished.is_some();
        Due { up: None, committed, answers, finished }
    }

    /// The oldest entry that has waited longer than the watchdog allows, and which member is late
    /// (rule W12): the successor when my own disk is ahead of it, else myself.
    pub(crate) fn stalled(&self, now: Duration) -> Option<&Member> {
        let watchdog = Duration::from_secs(1).max(self.commit_time * 20);
        let since = self.ops.front().map(|op| op.since).or_else(|| self.held.front().map(|held| held.since))?;
        if now.saturating_sub(since) < watchdog {
            return None;
        }
        if self.successor().is_some() && self.down <= self.own {
            self.successor()
        } else {
            self.members.get(self.position)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::runtime::sim::SimRuntime;
    use wire::{ChunkHandle, ServerId};

    fn chain(len: u32) -> Vec<Member> {
        (1..=len).map(|n| Member { server: ServerId(n), address: format!("s{n}:1"), shards: 1 }).collect()
    }

    fn replica(position: usize) -> Replica<SimRuntime> {
        Replica::new(Epoch(1), position, chain(3), &[], Duration::ZERO)
    }

    fn op(end: u64) -> OpenOp<SimRuntime> {
        let answer = Appended { chunk: ChunkHandle(1), offset: 0, len: 10, epoch: Epoch(1), committed_seq: Seq(end) };
        OpenOp { end: Seq(end), id: Some(OpId::default()), answer, waiters: Vec::new(), since: Duration::ZERO }
    }

    #[test]
    fn the_head_answers_only_when_itself_and_all_behind_are_durable() {
        let mut head = replica(0);
        head.ops.push_back(op(1));
        assert!(head.durable_here(Seq(1), Duration::ZERO).answers.is_empty());
        assert_eq!(head.durable_behind(Seq(1), Duration::ZERO).answers.len(), 1);
        let mut head = replica(0);
        head.ops.push_back(op(1));
        assert!(head.durable_behind(Seq(1), Duration::ZERO).answers.is_empty());
        assert_eq!(head.durable_here(Seq(1), Duration::ZERO).answers.len(), 1);
    }

    #[test]
    fn an_operation_of_several_parts_is_committed_whole_or_not_at_all() {
        let mut head = replica(0);
        head.ops.push_back(op(2));
        head.ops.push_back(op(5));
        head.durable_here(Seq(5), Duration::ZERO);
        assert_eq!(head.durable_behind(Seq(4), Duration::ZERO).committed, Some(Seq(2)));
        assert_eq!(head.committed, Seq(2));
        assert_eq!(head.window_len(), 10);
    }

    #[test]
    fn a_block_is_pending_from_the_overwrite_until_it_is_known_committed() {
        let mut head = replica(0);
        head.overwritten(Seq(1), 4096..4097);
        head.overwritten(Seq(2), 9000..20_000);
        assert!(head.is_pending(&(8191..8192)) && head.is_pending(&(0..4097)), "the whole block is new");
        assert!(!head.is_pending(&(0..4096)) && !head.is_pending(&(20_480..30_000)));
        head.committed = Seq(1);
        assert!(!head.is_pending(&(0..8192)) && head.is_pending(&(8192..8193)));
        head.committed = Seq(2);
        head.overwritten(Seq(3), 0..1);
        assert_eq!(head.pending.len(), 1, "what is committed is not kept");
    }

    #[test]
    fn a_re_opened_chunk_is_idle_even_when_nobody_wrote() {
        let mut head = replica(0);
        assert!(!head.is_idle(Duration::from_secs(61), Duration::from_secs(60)));
        head.fixed = true;
        assert!(head.is_idle(Duration::from_secs(61), Duration::from_secs(60)));
        assert!(!head.is_idle(Duration::from_secs(60), Duration::from_secs(60)));
        // However short the limit: nobody may have been told of it yet.
        assert!(!head.is_idle(Duration::from_secs(12), Duration::from_secs(1)));
        head.own = Seq(1);
        assert!(head.is_idle(Duration::from_secs(12), Duration::from_secs(1)));
    }

    #[test]
    fn the_last_member_waits_for_nobody_and_a_middle_one_for_those_behind() {
        let mut tail = replica(2);
        tail.upstream = Some(Outbox::new());
        assert_eq!(tail.durable_here(Seq(3), Duration::ZERO).up.map(|(_, seq)| seq), Some(Seq(3)));
        let mut middle = replica(1);
        middle.upstream = Some(Outbox::new());
        assert!(middle.durable_here(Seq(3), Duration::ZERO).up.is_none());
        assert_eq!(middle.durable_behind(Seq(2), Duration::ZERO).up.map(|(_, seq)| seq), Some(Seq(2)));
    }

    #[test]
    fn the_watchdog_names_whoever_is_late() {
        let mut head = replica(0);
        head.ops.push_back(op(1));
        assert!(head.stalled(Duration::from_millis(999)).is_none());
        assert_eq!(head.stalled(Duration::from_secs(1)).map(|member| member.server), Some(ServerId(2)));
        head.durable_behind(Seq(1), Duration::ZERO);
        assert_eq!(head.stalled(Duration::from_secs(1)).map(|member| member.server), Some(ServerId(1)));
    }

    #[test]
    fn a_full_table_has_room_again_once_a_stream_ended_or_fell_silent() {
        let stream = |n: u8| StreamId([n; 16]);
        let entry =
            |n: u8| DedupEntry { id: OpId { stream: stream(n), op: 1 }, chunk: ChunkHandle(1), offset: 0, len: 1 };
        let table: Vec<DedupEntry> = std::iter::repeat_n(entry(1), DEDUP_ENTRIES_MAX - 1).chain([entry(2)]).collect();
        let mut head: Replica<SimRuntime> = Replica::new(Epoch(1), 0, chain(3), &table, Duration::ZERO);
        assert!(head.table_is_full(|| table.clone()));
        assert!(!head.can_forget(STREAM_SILENCE));
        head.stream_closed(stream(2));
        assert!(head.can_forget(Duration::ZERO));
        assert!(head.is_forgettable(stream(2), Duration::ZERO));
        assert!(!head.is_forgettable(stream(1), STREAM_SILENCE));
        assert!(head.is_forgettable(stream(1), STREAM_SILENCE + Duration::from_secs(1)));
        head.heard(stream(1), STREAM_SILENCE);
        assert!(!head.is_forgettable(stream(1), STREAM_SILENCE + Duration::from_secs(1)));
        assert!(!head.table_is_full(|| vec![entry(1)]), "the true length is looked up before anybody is refused");
    }
}
