//! What clients were promised, as a checker: everything acknowledged is there once, at the place that was
//! answered, in order; nothing else is there but what may have happened; what was read stays.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use engine::runtime::sim::Rng;
use wire::append::Appended;
use wire::limits::PAYLOAD_LEN_MAX;
use wire::{ChunkHandle, InodeId};

/// Bytes in front of every operation: client, stream, number, length.
const HEAD: usize = 14;

/// Names an operation: client, which of its streams, number.
pub(super) type OpKey = (u8, u8, u64);

/// What became of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// No answer yet.
    Open,
    /// Acknowledged.
    Acked(Appended),
    /// It may have happened.
    Unknown,
    /// It has not happened and never will.
    Refused,
}

struct Op {
    file: InodeId,
    len: u32,
    invoked: Duration,
    ended: Duration,
    fate: Fate,
}

/// What clients did and were told.
#[derive(Default)]
pub(super) struct History {
    ops: RefCell<BTreeMap<OpKey, Op>>,
    /// Longest prefix of each chunk that anybody was shown.
    seen: RefCell<BTreeMap<ChunkHandle, Vec<u8>>>,
}

/// Where an operation was found.
#[derive(Clone, Copy, Debug)]
struct Place {
    key: OpKey,
    chunk: ChunkHandle,
    offset: u32,
    len: u32,
}

/// The bytes of an operation.
pub(super) fn record((client, stream, op): OpKey, len: u32) -> Vec<u8> {
    let mut out = vec![client, stream];
    out.extend_from_slice(&op.to_le_bytes());
    out.extend_from_slice(&len.to_le_bytes());
    let salt = op.wrapping_mul(31) ^ u64::from(client) << 5 ^ u64::from(stream);
    out.extend((HEAD..len as usize).map(|at| (at as u64 ^ salt) as u8));
    out
}

/// How long the next operation is: around the sizes at which something changes.
pub(super) fn draw_len(rng: &mut Rng) -> u32 {
    let around = |rng: &mut Rng, len: u32| len - 1 + rng.below(3) as u32;
    match rng.below(200) {
        0 => around(rng, PAYLOAD_LEN_MAX),
        1..30 => around(rng, 4096),
        30..50 => 4096 * (1 + rng.below(4) as u32),
        _ => HEAD as u32 + rng.below(3000) as u32,
    }
}

impl History {
    pub(super) fn invoked(&self, key: OpKey, file: InodeId, len: u32, now: Duration) {
        let op = Op { file, len, invoked: now, ended: Duration::MAX, fate: Fate::Open };
        assert!(self.ops.borrow_mut().insert(key, op).is_none(), "{key:?} is invoked once");
    }

    pub(super) fn ended(&self, key: OpKey, fate: Fate, now: Duration) {
        let mut ops = self.ops.borrow_mut();
        let op = ops.get_mut(&key).unwrap_or_else(|| panic!("{key:?} was never invoked"));
        assert_eq!(op.fate, Fate::Open, "{key:?} is settled once");
        if let Fate::Acked(appended) = fate {
            assert_eq!(appended.len, op.len, "{key:?}: the answer is another operation's");
        }
        (op.fate, op.ended) = (fate, now);
    }

    /// Whether it waits for an answer.
    pub(super) fn is_open(&self, key: OpKey) -> bool {
        self.ops.borrow().get(&key).is_some_and(|op| op.fate == Fate::Open)
    }

    /// How many were acknowledged.
    pub(super) fn acked(&self) -> usize {
        self.ops.borrow().values().filter(|op| matches!(op.fate, Fate::Acked(_))).count()
    }

    /// A reader was shown these bytes from the start of a chunk.
    pub(super) fn saw(&self, chunk: ChunkHandle, bytes: &[u8]) {
        let mut seen = self.seen.borrow_mut();
        let known = seen.entry(chunk).or_default();
        let common = known.len().min(bytes.len());
        assert!(known[..common] == bytes[..common], "I6: two reads of {chunk} do not agree");
        if bytes.len() > known.len() {
            known.extend_from_slice(&bytes[common..]);
        }
    }

    /// Checks the final content of a file: its chunks in order.
    pub(super) fn check(&self, file: InodeId, chunks: &[(ChunkHandle, Vec<u8>)]) {
        let ops = self.ops.borrow();
        let mut found: BTreeMap<OpKey, usize> = BTreeMap::new();
        let mut places = Vec::new();
        for (chunk, content) in chunks {
            for place in parse(*chunk, content) {
                let Place { key, offset, .. } = place;
                let op = ops.get(&key).filter(|op| op.file == file);
                let op = op.unwrap_or_else(|| panic!("I1 phantom: {key:?} in {chunk}+{offset} of file {file}"));
                assert!(op.fate != Fate::Refused, "I1: {key:?} was refused and is in {chunk}+{offset}");
                assert_eq!(op.len, place.len, "I1: {key:?} in {chunk}+{offset} has another length");
                if let Some(other) = found.insert(key, places.len()) {
                    panic!("I1 duplicate: {key:?} is at {:?} and in {chunk}+{offset}", places[other]);
                }
                places.push(place);
            }
        }
        for (key, op) in ops.iter().filter(|(_, op)| op.file == file) {
            let Fate::Acked(ack) = op.fate else { continue };
            let place = found.get(key).map(|at| places[*at]);
            let Some(place) = place else {
                panic!("I1 lost: {key:?} was acknowledged at {}+{}", ack.chunk, ack.offset)
            };
            assert_eq!(
                (place.chunk, place.offset),
                (ack.chunk, ack.offset),
                "I1: {key:?} is not where it was answered"
            );
        }
        in_order(&places, &ops);
        self.nothing_seen_is_gone(chunks);
    }

    fn nothing_seen_is_gone(&self, chunks: &[(ChunkHandle, Vec<u8>)]) {
        let seen = self.seen.borrow();
        for (chunk, content) in chunks {
            let Some(seen) = seen.get(chunk) else { continue };
            assert!(content.starts_with(seen), "I6: a reader of {chunk} saw {} bytes that are not there", seen.len());
            parse(*chunk, seen);
        }
    }

    /// What was shown of a chunk that no file has any more.
    pub(super) fn seen_elsewhere(&self, known: &[ChunkHandle]) {
        for (chunk, seen) in self.seen.borrow().iter() {
            assert!(
                seen.is_empty() || known.contains(chunk),
                "I6: {} bytes of {chunk} were shown, it is gone",
                seen.len()
            );
        }
    }
}

/// I7, within streams and in real time: whoever stands later must not have ended before another began.
fn in_order(places: &[Place], ops: &BTreeMap<OpKey, Op>) {
    let mut newest: BTreeMap<(u8, u8), u64> = BTreeMap::new();
    for Place { key, chunk, offset, .. } in places {
        let before = newest.insert((key.0, key.1), key.2);
        assert!(before < Some(key.2), "I7: {key:?} in {chunk}+{offset} stands behind {before:?} of its stream");
    }
    let mut earliest_end = (Duration::MAX, None);
    for Place { key, chunk, offset, .. } in places.iter().rev() {
        let op = &ops[key];
        assert!(
            op.invoked <= earliest_end.0,
            "I7: {:?} had ended before {key:?} in {chunk}+{offset} began, and stands behind it",
            earliest_end.1
        );
        if matches!(op.fate, Fate::Acked(_)) && op.ended < earliest_end.0 {
            earliest_end = (op.ended, Some(*key));
        }
    }
}

/// Takes content apart. Every operation is there whole.
fn parse(chunk: ChunkHandle, content: &[u8]) -> Vec<Place> {
    let mut places = Vec::new();
    let mut at = 0;
    while at < content.len() {
        let head = content.get(at..at + HEAD);
        let head = head.unwrap_or_else(|| panic!("I6: {chunk} ends inside an operation at {at}"));
        let (ids, numbers) = head.split_at(2);
        let (op, len) = numbers.split_at(8);
        let op = u64::from_le_bytes(op.try_into().unwrap_or_default());
        let len = u32::from_le_bytes(len.try_into().unwrap_or_default());
        let key = (ids[0], ids[1], op);
        let end = at + len as usize;
        let is_whole = len as usize >= HEAD && content.get(at..end) == Some(&record(key, len)[..]);
        assert!(is_whole, "I2: {chunk}+{at} is no operation, or ends inside {key:?} of {len} bytes");
        places.push(Place { key, chunk, offset: at as u32, len });
        at = end;
    }
    places
}
