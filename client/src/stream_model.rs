//! A stream against a model of chains: whatever is lost, repeated, re-ordered, refused or rolled, every
//! operation that was acknowledged is in the logs once, in order, at the place that was answered; and
//! one that was called "not happened" is in no log.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use proptest::prelude::*;
use wire::append::Appended;
use wire::limits::CHUNK_SIZE;
use wire::{ChunkHandle, Epoch, Fault, Kind, Reason, Seq, ServerId};

use crate::stream::{Chain, Sending, Settings, Settled, Step, Stream};

const MIB: u32 = 1 << 20;

/// One chunk: its log, and what it inherited from the one before it.
#[derive(Debug, Default)]
struct Chunk {
    /// Operations in order, with their offsets and lengths, and the `first_unacked` that came along.
    log: Vec<(u64, u32, u32, u64)>,
    committed: usize,
    inherited: BTreeMap<u64, (ChunkHandle, u32, u32)>,
    table: BTreeMap<u64, (ChunkHandle, u32, u32)>,
    newest: u64,
    len: u32,
    closing: bool,
    sealed: bool,
    /// Who waits for operations of the log that are not yet committed.
    waiters: Vec<(u64, u64, usize)>,
}

impl Chunk {
    /// The dedup table is a function of the log: what was inherited, one entry per operation, without
    /// those below `first_unacked`, but always the newest.
    fn tabulate(&mut self, handle: ChunkHandle) {
        self.table = self.inherited.clone();
        for (op, offset, len, first_unacked) in &self.log {
            self.table.insert(*op, (handle, *offset, *len));
            self.table.retain(|entry, _| entry >= first_unacked || entry == op);
        }
        self.newest = self.table.keys().next_back().copied().unwrap_or(0);
    }
}

struct World {
    seed: u64,
    now: Duration,
    stream: Stream,
    lens: BTreeMap<u64, u32>,
    to_push: u32,
    fills: bool,
    /// The last chunk is where appends go.
    chunks: Vec<Chunk>,
    /// Requests on their way, by connection; all but the last connection are broken, but what was
    /// sent may still arrive.
    wires: Vec<VecDeque<Sending>>,
    connected: bool,
    answers: Vec<(u64, u64, Result<Appended, Fault>)>,
    locating: bool,
    connecting: bool,
    chain: Option<Chain>,
    settled: BTreeMap<u64, Result<Settled, Fault>>,
}

impl World {
    fn new(seed: u64, ops: u32, fills: bool, deadline: Duration) -> Self {
        let settings = Settings { deadline, progress_counts: fills, fills_chunks: fills, window: 32 << 20 };
        Self {
            seed,
            now: Duration::ZERO,
            stream: Stream::new(settings, seed),
            lens: BTreeMap::new(),
            to_push: ops,
            fills,
            chunks: vec![Chunk::default()],
            wires: vec![VecDeque::new()],
            connected: false,
            answers: Vec::new(),
            locating: false,
            connecting: false,
            chain: None,
            settled: BTreeMap::new(),
        }
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.seed;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % below
    }

    fn handle(at: usize) -> ChunkHandle {
        ChunkHandle(at as u64 + 1)
    }

    /// Does what the stream asks for until it waits. False: it has finished.
    fn drive(&mut self) -> bool {
        for _ in 0..10_000 {
            match self.stream.poll(self.now) {
                Step::Settled { op, result } => {
                    assert!(self.settled.insert(op, result).is_none(), "operation {op} is settled once");
                }
                Step::Send(sending) if self.connected => self.wires.last_mut().unwrap().push_back(sending),
                Step::Send(sending) => self.stream.unsent(sending.op),
                Step::Locate { .. } => self.locating = true,
                Step::Connect(chain) => (self.connecting, self.chain) = (true, Some(chain)),
                Step::Wait(until) => {
                    assert!(until.is_none_or(|until| until > self.now), "a wait ends in the future");
                    return true;
                }
                Step::Finished => return false,
            }
        }
        panic!("the stream asks for work without end");
    }

    fn push(&mut self) {
        let len = [1, 4096, MIB, 16 * MIB, 5 * MIB + 3][usize::try_from(self.draw(5)).unwrap()];
        let len = if self.fills { MIB } else { len };
        if self.to_push > 0 && self.stream.can_push(len) {
            self.to_push -= 1;
            let op = self.stream.push(len, self.fills && self.to_push == 0, self.now);
            self.lens.insert(op, len);
        }
    }

    /// The server takes the next request from a connection.
    fn serve(&mut self, wire: usize, busy: bool) {
        let Some(sending) = self.wires[wire].pop_front() else { return };
        let at = usize::try_from(sending.chain.chunk.0).unwrap() - 1;
        let answer = self.admit(at, &sending, busy, wire);
        let live = wire + 1 == self.wires.len() && self.connected;
        if let Some(outcome) = answer.filter(|_| live) {
            self.answers.push((sending.op, sending.generation, outcome));
        }
    }

    /// Replication section 6, as the head of a chain does it.
    fn admit(&mut self, at: usize, sending: &Sending, busy: bool, wire: usize) -> Option<Result<Appended, Fault>> {
        let refuse = |reason, detail| Some(Err(Fault::refused(reason, detail, "")));
        let (op, len) = (sending.op, self.lens[&sending.op]);
        let chunk = &mut self.chunks[at];
        if chunk.sealed {
            return refuse(Reason::Sealed, 0);
        }
        if let Some((landed, offset, len)) = chunk.table.get(&op) {
            let committed =
                *landed != Self::handle(at) || chunk.log[..chunk.committed].iter().any(|(logged, ..)| *logged == op);
            if committed {
                return Some(Ok(appended(*landed, *offset, *len)));
            }
            chunk.waiters.push((op, sending.generation, wire));
            return None;
        }
        if op <= chunk.newest {
            return refuse(Reason::StaleOp, 0);
        }
        if sending.first_unacked > chunk.newest + 1 {
            return refuse(Reason::LostOps, 0);
        }
        if op > chunk.newest + 1 {
            return refuse(Reason::OutOfOrder, chunk.newest + 1);
        }
        if busy {
            return refuse(Reason::Busy, 0);
        }
        if chunk.closing || u64::from(chunk.len) + u64::from(len) > u64::from(CHUNK_SIZE) {
            chunk.closing = true;
            return refuse(Reason::ChunkFull, 0);
        }
        chunk.log.push((op, chunk.len, len, sending.first_unacked));
        chunk.len += len;
        chunk.tabulate(Self::handle(at));
        chunk.closing |= sending.last;
        chunk.waiters.push((op, sending.generation, wire));
        None
    }

    fn commit(&mut self, count: usize) {
        let at = self.chunks.len() - 1;
        let live = self.connected.then(|| self.wires.len() - 1);
        let chunk = &mut self.chunks[at];
        chunk.committed = (chunk.committed + count).min(chunk.log.len());
        let done: BTreeMap<u64, (u32, u32)> =
            chunk.log[..chunk.committed].iter().map(|(op, offset, len, _)| (*op, (*offset, *len))).collect();
        for (op, generation, wire) in std::mem::take(&mut chunk.waiters) {
            match done.get(&op) {
                Some((offset, len)) if Some(wire) == live => {
                    self.answers.push((op, generation, Ok(appended(Self::handle(at), *offset, *len))));
                }
                Some(_) => {}
                None => chunk.waiters.push((op, generation, wire)),
            }
        }
    }

    /// The chain ends; what is committed stays, what is not may.
    fn roll(&mut self) {
        let keep_all = self.draw(2) == 0;
        let at = self.chunks.len() - 1;
        let chunk = &mut self.chunks[at];
        if !keep_all {
            chunk.log.truncate(chunk.committed);
            chunk.tabulate(Self::handle(at));
        }
        chunk.sealed = true;
        let next = Chunk {
            table: chunk.table.clone(),
            inherited: chunk.table.clone(),
            newest: chunk.newest,
            ..Chunk::default()
        };
        for (op, generation, wire) in std::mem::take(&mut chunk.waiters) {
            if self.connected && wire + 1 == self.wires.len() {
                self.answers.push((op, generation, Err(Fault::new(Kind::Unknown, "the chain ended"))));
            }
        }
        self.chunks.push(next);
    }

    fn break_connection(&mut self) {
        let sent = self.wires.last().unwrap().iter().map(|sending| (sending.op, sending.generation));
        let waiting = self.chunks.last().unwrap().waiters.iter().map(|(op, generation, _)| (*op, *generation));
        let broken: Vec<_> = sent.chain(waiting).collect();
        for (op, generation) in broken {
            self.answers.push((op, generation, Err(Fault::new(Kind::Unknown, "the connection ended"))));
        }
        self.connected = false;
        self.wires.push(VecDeque::new());
    }

    fn deliver(&mut self) {
        if !self.answers.is_empty() {
            let at = usize::try_from(self.draw(self.answers.len() as u64)).unwrap();
            let (op, generation, outcome) = self.answers.swap_remove(at);
            self.stream.answered(op, generation, outcome, self.now);
        }
    }

    fn say_where(&mut self, hostile: bool) {
        if !std::mem::take(&mut self.locating) {
            return;
        }
        let stale = hostile && self.draw(3) == 0 && self.chunks.len() > 1;
        if hostile && self.draw(4) == 0 {
            self.stream.not_located(&Fault::new(Kind::Unavailable, "no master"), self.now);
            return;
        }
        let at = self.chunks.len() - 1 - usize::from(stale);
        let chain = Chain { chunk: Self::handle(at), epoch: Epoch(1), head: ServerId(1) };
        self.stream.located(chain, self.now);
    }

    fn connect(&mut self, works: bool) {
        if !std::mem::take(&mut self.connecting) {
            return;
        }
        if works {
            self.connected = true;
            self.stream.connected(self.now);
        } else {
            self.stream.unreachable(&Fault::new(Kind::Unavailable, "refused"), self.now);
        }
    }

    fn hostile_step(&mut self) {
        let wires = self.wires.len() as u64;
        match self.draw(20) {
            0..=2 => self.push(),
            3..=6 => self.serve(self.wires.len() - 1, false),
            7 => {
                let wire = usize::try_from(self.draw(wires)).unwrap();
                self.serve(wire, false);
            }
            8 => self.serve(self.wires.len() - 1, true),
            9..=10 => {
                let count = usize::try_from(self.draw(4)).unwrap();
                self.commit(count);
            }
            11..=13 => self.deliver(),
            14 => self.break_connection(),
            15 => self.roll(),
            16 => self.say_where(true),
            17 => {
                let works = self.draw(3) > 0;
                self.connect(works);
            }
            18 => drop(self.answers.pop()),
            _ => {
                let passed = self.draw(1500);
                self.now += Duration::from_millis(passed);
            }
        }
    }

    /// Faults stop: everything must come to an end.
    fn heal(&mut self) -> bool {
        for _ in 0..5_000 {
            if !self.drive() || (self.to_push == 0 && self.stream.is_idle()) {
                return true;
            }
            self.push();
            if self.chunks.last().unwrap().closing && self.chunks.last().unwrap().waiters.is_empty() {
                self.commit(usize::MAX / 2);
                self.roll();
            }
            self.say_where(false);
            self.connect(true);
            if !self.drive() {
                return true;
            }
            self.serve(self.wires.len() - 1, false);
            self.commit(usize::MAX / 2);
            (0..self.answers.len()).for_each(|_| self.deliver());
            self.now += Duration::from_millis(20);
        }
        false
    }

    fn check(&self) {
        let logs = || {
            self.chunks.iter().enumerate().flat_map(|(at, chunk)| {
                chunk.log.iter().map(move |(op, offset, len, _)| (*op, (Self::handle(at), *offset, *len)))
            })
        };
        let ops: Vec<u64> = logs().map(|(op, _)| op).collect();
        assert!(ops.is_sorted_by(|one, next| one < next), "in order, none twice: {ops:?}");
        let places: BTreeMap<u64, (ChunkHandle, u32, u32)> = logs().collect();
        for (op, result) in &self.settled {
            match result {
                Ok(Settled { appended, .. }) => {
                    let place = (appended.chunk, appended.offset, appended.len);
                    assert_eq!(places.get(op), Some(&place), "operation {op} is where the answer says");
                }
                Err(fault) if fault.kind == Kind::Unknown => {}
                Err(fault) => assert!(!places.contains_key(op), "operation {op} happened in spite of: {fault}"),
            }
        }
    }
}

fn appended(chunk: ChunkHandle, offset: u32, len: u32) -> Appended {
    Appended { chunk, offset, len, epoch: Epoch(1), committed_seq: Seq(0) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn every_operation_ends_up_once_in_order_and_where_the_answer_says(
        seed: u64, steps in 0..600_usize, ops in 1..80_u32, fills: bool,
    ) {
        let mut world = World::new(seed, ops, fills, Duration::from_secs(1 << 20));
        // Time stands still for the limit on repeats, which has a test of its own.
        for _ in 0..steps {
            prop_assert!(world.drive());
            if world.now < Duration::from_secs(500) {
                world.hostile_step();
            }
        }
        prop_assert!(world.heal(), "nothing is stuck once the faults stop: {:?}", world.stream);
        world.check();
        prop_assert_eq!(world.settled.len(), ops as usize);
        prop_assert!(world.settled.values().all(Result::is_ok), "{:?}", world.settled);
    }

    #[test]
    fn what_is_called_not_happened_has_not_happened(seed: u64, steps in 0..600_usize, ops in 1..80_u32, deadline in 1..20_u64) {
        let mut world = World::new(seed, ops, false, Duration::from_secs(deadline));
        for _ in 0..steps {
            if !world.drive() {
                break;
            }
            world.hostile_step();
        }
        prop_assert!(world.heal() || world.stream.is_retired());
        world.check();
    }
}
