//! One stream of numbered operations: what to send when, and what each answer means.
//!
//! The decisions only: no I/O, no clock. What happened comes in with the time it happened at, and
//! [`Stream::poll`] says what to do next. The promise: every operation that was pushed is settled
//! once, with the place where it landed exactly once and in order, or with a fault that says whether
//! it may have happened.
//!
//! How it keeps it (replication rules W2 and W12, and section 6): operations go to the head of the
//! chain in order, each under one number for ever. Whatever goes wrong (a refusal, a broken
//! connection, silence), everything without an answer is sent again, in order, from the first that
//! may be missing: to the same chain, or to the next one, which inherits the table of what is already
//! there. Each time is a new *generation*. A refusal of an older generation says nothing about the
//! present one and is ignored; an acceptance counts whenever it comes.

use std::collections::VecDeque;
use std::time::Duration;

use wire::append::Appended;
use wire::limits::{CHUNK_SIZE, OPS_IN_FLIGHT_MAX};
use wire::report::Trouble;
use wire::{ChunkHandle, Epoch, Fault, Kind, Reason, ServerId};

use crate::retry::{Call, Rule, pause, rule};
use crate::watchdog::Watchdog;

/// No operation is repeated for longer than this: servers forget silent streams after 20 minutes.
pub(crate) const REPEAT_MAX: Duration = Duration::from_secs(10 * 60);

/// An answer "go on there" that names a chain known to be closed is asked again this often before the
/// master is told that the chunk is stuck.
const STUCK_AFTER: u32 = 8;

/// How a stream behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// How long an operation may take, or go without progress.
    pub(crate) deadline: Duration,
    /// The deadline counts from the last answer of the stream, not from the operation's own start.
    pub(crate) progress_counts: bool,
    /// The stream is the chunk's only writer and ends chunks itself: when one is exactly full, and
    /// with the operation pushed as the end.
    pub(crate) fills_chunks: bool,
    /// Bytes without an answer.
    pub(crate) window: u64,
}

/// Where operations go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) chunk: ChunkHandle,
    pub(crate) epoch: Epoch,
    pub(crate) head: ServerId,
}

/// One operation on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sending {
    pub(crate) op: u64,
    pub(crate) generation: u64,
    pub(crate) first_unacked: u64,
    pub(crate) chain: Chain,
    /// Nothing follows in this chunk.
    pub(crate) last: bool,
    /// How long its answer is still of use.
    pub(crate) left: Duration,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// An operation is decided: tell its caller.
    Settled { op: u64, result: Result<Settled, Fault> },
    /// Send this; the answer goes to [`Stream::answered`].
    Send(Sending),
    /// Report, then ask the master where to append; the answer goes to [`Stream::located`] or
    /// [`Stream::not_located`].
    Locate { report: Option<(Chain, Trouble)> },
    /// Make sure of a connection to the head; then [`Stream::connected`] or [`Stream::unreachable`].
    Connect(Chain),
    /// Nothing to do before this time, or before something happens.
    Wait(Option<Duration>),
    /// Nothing will come of this stream any more.
    Finished,
}

/// An operation that is durable on the whole chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settled {
    pub(crate) appended: Appended,
    /// The chain that was asked; the operation may have landed in an earlier chunk.
    pub(crate) asked: ChunkHandle,
    /// It was the last of its chunk, and the chunk is ended by it.
    pub(crate) ends_chunk: bool,
}

#[derive(Debug)]
struct Op {
    len: u32,
    /// The stream ends with it.
    end: bool,
    pushed: Duration,
    sent: Option<Duration>,
    /// Sent in the present generation as the last of the chunk.
    last: bool,
    /// Attempts that were neither accepted nor refused: any of them may have succeeded.
    unsure: u32,
    refusal: Option<Fault>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    /// Its caller was told that it took too long. It is sent on, because those behind it need it.
    Abandoned,
    Done,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// No chain. Known to be closed: `avoid`.
    Lost {
        not_before: Duration,
        report: Option<(Chain, Trouble)>,
        avoid: Option<Chain>,
    },
    Locating {
        avoid: Option<Chain>,
    },
    /// A chain, and perhaps no connection.
    Unconnected {
        chain: Chain,
        asked: bool,
    },
    /// `cursor` is the number to send next; `closed`: nothing more fits into the chunk.
    Ready {
        chain: Chain,
        cursor: u64,
        not_before: Duration,
        fill: u64,
        closed: bool,
    },
}

/// One stream.
#[derive(Debug)]
pub(crate) struct Stream {
    settings: Settings,
    /// Number of the front of `ops`, the first without an answer.
    first: u64,
    ops: VecDeque<Op>,
    phase: Phase,
    generation: u64,
    /// Time of the last answer that settled something.
    progress: Duration,
    /// Refusals since then.
    strikes: u32,
    /// Bytes of `base_chunk` known to be taken.
    base: u64,
    base_chunk: ChunkHandle,
    watchdog: Watchdog,
    settled: VecDeque<(u64, Result<Settled, Fault>)>,
    retired: bool,
    noise: u64,
}

impl Stream {
    /// A new stream. `noise` varies the pauses between repeats.
    pub(crate) fn new(settings: Settings, noise: u64) -> Self {
        Self {
            settings,
            first: 1,
            ops: VecDeque::new(),
            phase: Phase::Lost { not_before: Duration::ZERO, report: None, avoid: None },
            generation: 0,
            progress: Duration::ZERO,
            strikes: 0,
            base: 0,
            base_chunk: ChunkHandle::NONE,
            watchdog: Watchdog::default(),
            settled: VecDeque::new(),
            retired: false,
            noise,
        }
    }

    /// The lowest number without an answer: what was pushed before it may be forgotten.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// Everything pushed is settled.
    pub(crate) fn is_idle(&self) -> bool {
        self.ops.is_empty() && self.settled.is_empty()
    }

    /// Takes no more operations: one had to be given up, so the numbers after it may never be accepted.
    pub(crate) fn is_retired(&self) -> bool {
        self.retired
    }

    /// Whether there is room for an operation of `len` bytes.
    pub(crate) fn can_push(&self, len: u32) -> bool {
        let bytes: u64 = self.open().map(|(_, op)| u64::from(op.len)).sum();
        let fits = bytes + u64::from(len) <= self.settings.window || self.ops.is_empty();
        !self.retired && fits && (self.ops.len() as u64) < OPS_IN_FLIGHT_MAX
    }

    /// Takes an operation; its number comes back. Only when [`Stream::can_push`].
    pub(crate) fn push(&mut self, len: u32, end: bool, now: Duration) -> u64 {
        assert!(self.can_push(len), "operations in flight are bounded");
        if self.ops.is_empty() {
            self.progress = now;
            self.strikes = 0;
        }
        let state = State::Waiting;
        self.ops.push_back(Op { len, end, pushed: now, sent: None, last: false, unsure: 0, refusal: None, state });
        self.first + self.ops.len() as u64 - 1
    }

    /// What to do next. Call again until it says [`Step::Wait`].
    pub(crate) fn poll(&mut self, now: Duration) -> Step {
        self.expire(now);
        if let Some((op, result)) = self.settled.pop_front() {
            return Step::Settled { op, result };
        }
        if self.retired && self.ops.iter().all(|op| op.state != State::Waiting) {
            return Step::Finished;
        }
        if self.ops.is_empty() {
            return Step::Wait(None);
        }
        match self.phase {
            Phase::Lost { not_before, report, avoid } if now >= not_before => {
                self.phase = Phase::Locating { avoid };
                Step::Locate { report }
            }
            Phase::Unconnected { chain, asked: false } => {
                self.phase = Phase::Unconnected { chain, asked: true };
                Step::Connect(chain)
            }
            Phase::Ready { chain, .. } if now >= self.bark_at() => {
                // No answer for so long: the head, or the chain behind it, does not work.
                self.lose(now, Some((chain, Trouble::NoAnswer)), None);
                self.poll(now)
            }
            Phase::Ready { not_before, .. } if now >= not_before => match self.send(now) {
                Some(sending) => Step::Send(sending),
                None => Step::Wait(Some(self.wake_at())),
            },
            _ => Step::Wait(Some(self.wake_at())),
        }
    }

    /// An answer to an operation, or the end of its connection as [`Kind::Unknown`].
    pub(crate) fn answered(&mut self, op: u64, generation: u64, outcome: Result<Appended, Fault>, now: Duration) {
        let present = generation == self.generation;
        let Some(at) = self.index(op).filter(|at| self.ops[*at].state != State::Done) else { return };
        match outcome {
            Ok(appended) if appended.len == self.ops[at].len => self.accepted(at, appended, present, now),
            Ok(_) => self.fail_all(&Fault::new(Kind::Corrupt, "the server answered for another operation")),
            Err(fault) => self.refused(at, &fault, present, now),
        }
    }

    /// The master says where to append.
    pub(crate) fn located(&mut self, chain: Chain, now: Duration) {
        let Phase::Locating { avoid } = self.phase else { return };
        if avoid.is_some_and(|avoid| (avoid.chunk, avoid.epoch) == (chain.chunk, chain.epoch)) {
            // The master has not caught up with the end of that chunk.
            self.strikes += 1;
            let stuck = self.strikes.is_multiple_of(STUCK_AFTER);
            let report = stuck.then_some((chain, Trouble::Stalled));
            self.phase = Phase::Lost { not_before: now + self.pause(), report, avoid };
            return;
        }
        if chain.chunk != self.base_chunk {
            (self.base_chunk, self.base) = (chain.chunk, 0);
        }
        self.phase = Phase::Unconnected { chain, asked: false };
    }

    /// The master did not say where to append, after its own repeats.
    pub(crate) fn not_located(&mut self, fault: &Fault, now: Duration) {
        let Phase::Locating { avoid } = self.phase else { return };
        if rule(Call::Master, fault) == Rule::Fail {
            self.fail_all(fault);
            return;
        }
        self.note(fault);
        self.strikes += 1;
        self.phase = Phase::Lost { not_before: now + self.pause(), report: None, avoid };
    }

    /// The head can be talked to: everything without an answer goes there.
    pub(crate) fn connected(&mut self, now: Duration) {
        let Phase::Unconnected { chain, .. } = self.phase else { return };
        self.generation += 1;
        let not_before = if self.strikes < 2 { now } else { now + self.pause() };
        self.start_sending(chain, self.first, not_before);
    }

    /// What [`Step::Send`] asked for could not be sent: the connection is gone.
    pub(crate) fn unsent(&mut self, op: u64) {
        if let Some(at) = self.index(op) {
            self.ops[at].unsure = self.ops[at].unsure.saturating_sub(1);
        }
        if let Phase::Ready { chain, .. } = self.phase {
            self.reconnect(chain);
        }
    }

    /// The head cannot be reached, or has restarted.
    pub(crate) fn unreachable(&mut self, fault: &Fault, now: Duration) {
        let Phase::Unconnected { chain, .. } = self.phase else { return };
        self.note(fault);
        match rule(Call::Append, fault) {
            Rule::Fail => self.fail_all(fault),
            Rule::Relocate => self.lose(now, None, None),
            _ => self.lose(now, Some((chain, Trouble::NoAnswer)), None),
        }
    }

    fn accepted(&mut self, at: usize, appended: Appended, present: bool, now: Duration) {
        let op = &mut self.ops[at];
        let number = self.first + at as u64;
        let told = op.state == State::Abandoned;
        if let Some(sent) = op.sent.filter(|_| present) {
            self.watchdog.note(now, now.saturating_sub(sent));
        }
        op.state = State::Done;
        let was_last = op.last;
        (self.progress, self.strikes) = (now, 0);
        if appended.chunk == self.base_chunk {
            self.base = self.base.max(u64::from(appended.offset) + u64::from(appended.len));
        }
        let mut settled = Settled { appended, asked: appended.chunk, ends_chunk: false };
        if let Phase::Ready { chain, closed, .. } = &mut self.phase {
            if present {
                settled.asked = chain.chunk;
            }
            if was_last {
                settled.ends_chunk = appended.chunk == chain.chunk;
                *closed = settled.ends_chunk;
            }
        }
        if let Phase::Ready { chain, .. } = self.phase
            && settled.ends_chunk
        {
            self.generation += 1;
            self.phase = Phase::Lost { not_before: now, report: None, avoid: Some(chain) };
        }
        if !told {
            self.settled.push_back((number, Ok(settled)));
        }
        while self.ops.front().is_some_and(|op| op.state == State::Done) {
            self.ops.pop_front();
            self.first += 1;
        }
    }

    fn refused(&mut self, at: usize, fault: &Fault, present: bool, now: Duration) {
        let number = self.first + at as u64;
        let op = &mut self.ops[at];
        if fault.kind != Kind::Unknown {
            op.unsure = op.unsure.saturating_sub(1);
            op.refusal = Some(fault.clone());
        }
        let Phase::Ready { chain, .. } = self.phase else { return };
        if !present {
            return;
        }
        if fault.kind == Kind::Unknown {
            self.reconnect(chain);
            return;
        }
        match rule(Call::Append, fault) {
            Rule::Fail | Rule::Next => self.fail_all(fault),
            Rule::Pause => self.resend(chain, number, now),
            Rule::ResendFrom(expected) if (self.first..=number).contains(&expected) => {
                self.resend(chain, expected, now);
            }
            // It waits for an operation that was acknowledged: it cannot be the chain of this stream.
            Rule::ResendFrom(_) => self.lose(now, Some((chain, Trouble::LostOps)), Some(chain)),
            Rule::Relocate => self.lose(now, None, Some(chain)),
            Rule::Roll => {
                let trouble = if fault.kind == Kind::NoSpace || fault.reason == Reason::Disk {
                    Trouble::DiskError
                } else {
                    Trouble::NoAnswer
                };
                self.lose(now, Some((chain, trouble)), Some(chain));
            }
        }
    }

    /// The same chain again, over a connection that is known to live.
    fn reconnect(&mut self, chain: Chain) {
        self.strikes += 1;
        self.generation += 1;
        self.phase = Phase::Unconnected { chain, asked: false };
    }

    /// The same chain again, from this number.
    fn resend(&mut self, chain: Chain, from: u64, now: Duration) {
        let not_before = if self.strikes == 0 { now } else { now + self.pause() };
        self.strikes += 1;
        self.generation += 1;
        self.start_sending(chain, from, not_before);
    }

    fn start_sending(&mut self, chain: Chain, from: u64, not_before: Duration) {
        for op in &mut self.ops {
            op.last = false;
        }
        // What lies before `from` and has no answer is in the chunk: it takes room there.
        let before = self.open().filter(|(number, _)| *number < from).map(|(_, op)| u64::from(op.len));
        let fill = self.base + before.sum::<u64>();
        self.phase = Phase::Ready { chain, cursor: from, not_before, fill, closed: false };
    }

    /// Gives the chain up. Without repeats before it the next one is asked for at once.
    fn lose(&mut self, now: Duration, report: Option<(Chain, Trouble)>, avoid: Option<Chain>) {
        let not_before = if self.strikes == 0 { now } else { now + self.pause() };
        self.strikes += 1;
        self.generation += 1;
        self.phase = Phase::Lost { not_before, report, avoid };
    }

    fn send(&mut self, now: Duration) -> Option<Sending> {
        let Phase::Ready { chain, cursor, fill, closed: false, .. } = &mut self.phase else { return None };
        let at = self
            .ops
            .iter()
            .enumerate()
            .position(|(at, op)| self.first + at as u64 >= *cursor && op.state != State::Done)?;
        let op = &mut self.ops[at];
        let number = self.first + at as u64;
        *cursor = number + 1;
        *fill += u64::from(op.len);
        let chain = *chain;
        let last = self.settings.fills_chunks && (op.end || *fill == u64::from(CHUNK_SIZE));
        op.sent = Some(now);
        op.unsure += 1;
        op.last = last;
        if let Phase::Ready { closed, .. } = &mut self.phase {
            *closed = last;
        }
        // Of use as long as any operation waits: those behind it need it in front of them.
        let waiting = self.ops.iter().filter(|op| op.state == State::Waiting);
        let left = waiting.map(|op| self.expires(op).saturating_sub(now)).max().unwrap_or_default();
        Some(Sending { op: number, generation: self.generation, first_unacked: self.first, chain, last, left })
    }

    /// When silence has lasted too long.
    fn bark_at(&self) -> Duration {
        let Phase::Ready { cursor, .. } = self.phase else { return Duration::MAX };
        let oldest = self.open().filter(|(number, _)| *number < cursor).filter_map(|(_, op)| op.sent).min();
        oldest.map_or(Duration::MAX, |sent| sent.max(self.progress) + self.watchdog.limit())
    }

    fn wake_at(&self) -> Duration {
        let turn = match self.phase {
            Phase::Lost { not_before, .. } => not_before,
            Phase::Ready { not_before, cursor, closed: false, .. }
                if self.open().any(|(number, _)| number >= cursor) =>
            {
                not_before
            }
            _ => Duration::MAX,
        };
        let waiting = self.ops.iter().filter(|op| op.state == State::Waiting);
        let expiry = waiting.map(|op| self.expires(op)).min().unwrap_or(Duration::MAX);
        turn.min(self.bark_at()).min(expiry)
    }

    fn expires(&self, op: &Op) -> Duration {
        let from = if self.settings.progress_counts { op.pushed.max(self.progress) } else { op.pushed };
        (from + self.settings.deadline).min(op.pushed + REPEAT_MAX)
    }

    fn expire(&mut self, now: Duration) {
        while let Some(at) = self.ops.iter().position(|op| op.state == State::Waiting && now >= self.expires(op)) {
            let cause = self.ops[at].refusal.clone();
            let cause = cause.unwrap_or_else(|| Fault::new(Kind::Unavailable, "no answer in time"));
            if self.ops[at].unsure == 0 {
                // It has not happened, and must not from now on; nor can those behind it any more.
                self.give_up(at, &cause);
                self.ops.truncate(at);
            } else {
                self.give_up_one(at, &cause);
            }
        }
    }

    /// Gives up this operation and all behind it.
    fn give_up(&mut self, from: usize, cause: &Fault) {
        for at in from..self.ops.len() {
            if self.ops[at].state == State::Waiting {
                self.give_up_one(at, cause);
            }
        }
    }

    fn give_up_one(&mut self, at: usize, cause: &Fault) {
        self.retired = true;
        self.settled.push_back((self.first + at as u64, Err(verdict(&self.ops[at], cause))));
        self.ops[at].state = State::Abandoned;
    }

    /// A refusal that no repeat can change, or that says that the stream cannot go on.
    fn fail_all(&mut self, fault: &Fault) {
        self.give_up(0, fault);
        self.retired = true;
    }

    /// Remembers why nothing goes on, for whoever runs out of time meanwhile.
    fn note(&mut self, fault: &Fault) {
        for op in &mut self.ops {
            op.refusal = Some(fault.clone());
        }
    }

    fn pause(&self) -> Duration {
        pause(self.strikes.saturating_sub(1), self.noise.wrapping_add(u64::from(self.strikes) * 31))
    }

    fn index(&self, op: u64) -> Option<usize> {
        let at = usize::try_from(op.checked_sub(self.first)?).ok()?;
        (at < self.ops.len()).then_some(at)
    }

    /// Operations without an answer, with their numbers.
    fn open(&self) -> impl Iterator<Item = (u64, &Op)> {
        let numbered = self.ops.iter().enumerate().map(|(at, op)| (self.first + at as u64, op));
        numbered.filter(|(_, op)| op.state != State::Done)
    }
}

/// What the caller of a failed operation is told: "unknown" as soon as any attempt may have succeeded.
fn verdict(op: &Op, cause: &Fault) -> Fault {
    if op.unsure > 0 { Fault::new(Kind::Unknown, format!("outcome unknown: {}", cause.text)) } else { cause.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const CHAIN: Chain = Chain { chunk: ChunkHandle(1), epoch: Epoch(1), head: ServerId(1) };

    fn connected(deadline: Duration, progress_counts: bool) -> Stream {
        let settings = Settings { deadline, progress_counts, fills_chunks: false, window: 1 << 20 };
        let mut stream = Stream::new(settings, 0);
        stream.push(10, false, Duration::ZERO);
        assert_eq!(stream.poll(Duration::ZERO), Step::Locate { report: None });
        stream.located(CHAIN, Duration::ZERO);
        assert_eq!(stream.poll(Duration::ZERO), Step::Connect(CHAIN));
        stream.connected(Duration::ZERO);
        stream
    }

    fn sent(step: Step) -> Sending {
        let Step::Send(sending) = step else { panic!("{step:?} instead of an operation") };
        sending
    }

    #[test]
    fn an_operation_that_was_given_up_is_sent_on_for_those_behind_it() {
        let mut stream = connected(2 * SECOND, false);
        assert_eq!(sent(stream.poll(Duration::ZERO)).op, 1);
        stream.push(10, false, SECOND);
        assert_eq!(sent(stream.poll(SECOND)).op, 2);
        let given_up = stream.poll(2 * SECOND);
        assert!(matches!(given_up, Step::Settled { op: 1, result: Err(fault) } if fault.kind == Kind::Unknown));
        stream.answered(2, 1, Err(Fault::new(Kind::Unknown, "the connection ended")), 2 * SECOND);
        assert_eq!(stream.poll(2 * SECOND), Step::Connect(CHAIN));
        stream.connected(2 * SECOND);
        let again = sent(stream.poll(2 * SECOND));
        assert_eq!((again.op, again.left), (1, SECOND), "the server must not drop it as expired");
        assert!(!stream.can_push(1), "nothing new comes behind it");
    }

    #[test]
    fn answers_keep_a_slow_upload_alive_but_nothing_is_repeated_for_more_than_ten_minutes() {
        let mut stream = connected(40 * SECOND, true);
        assert_eq!(sent(stream.poll(Duration::ZERO)).op, 1);
        // The first operation is never answered; others are, every half minute.
        for step in 1..20_u64 {
            let now = Duration::from_secs(step * 30);
            stream.push(10, false, now);
            while let Step::Locate { .. } | Step::Connect(_) = stream.poll(now) {
                stream.located(CHAIN, now);
                stream.connected(now);
            }
            stream.answered(step + 1, 0, Ok(appended()), now);
            assert_eq!(stream.poll(now), Step::Settled { op: step + 1, result: Ok(settled()) }, "at {now:?}");
        }
        assert!(!stream.is_retired(), "570 s without an answer to the first, and still alive");
        assert!(matches!(stream.poll(REPEAT_MAX), Step::Settled { op: 1, result: Err(_) }));
    }

    #[test]
    fn a_chunk_known_to_be_closed_is_not_gone_back_to_and_reported_when_the_master_stays_with_it() {
        let mut stream = connected(60 * SECOND, false);
        assert_eq!(sent(stream.poll(Duration::ZERO)).op, 1);
        stream.answered(1, 1, Err(Fault::refused(Reason::ChunkFull, 0, "full")), Duration::ZERO);
        let (mut now, mut asked, mut reports) = (Duration::ZERO, 0, 0);
        while reports == 0 && asked < 100 {
            match stream.poll(now) {
                Step::Locate { report } => {
                    asked += 1;
                    reports += u32::from(report.is_some_and(|(_, trouble)| trouble == Trouble::Stalled));
                    stream.located(CHAIN, now);
                }
                Step::Wait(Some(until)) => now = until,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(reports, 1);
        assert!(now > SECOND && now < 5 * SECOND, "with growing pauses: {now:?}");
        assert!(matches!(stream.poll(now), Step::Wait(_)));
    }

    fn settled() -> Settled {
        Settled { appended: appended(), asked: ChunkHandle(1), ends_chunk: false }
    }

    fn appended() -> Appended {
        Appended { chunk: ChunkHandle(1), offset: 0, len: 10, epoch: Epoch(1), committed_seq: wire::Seq(1) }
    }
}
