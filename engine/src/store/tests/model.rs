//! What a store must be: per chunk, the list of states its operations led to, of which a crash may
//! leave any one that is not older than the last acknowledged.

use std::collections::BTreeMap;
use std::rc::Rc;

use wire::checksum::block_crcs;
use wire::member::ReplicaState;
use wire::{ChunkHandle, DedupEntry, Epoch, Seq, StreamId};

use super::rig::{Rig, read_all};
use crate::runtime::FileId;
use crate::store::header::Flags;
use crate::store::{Upto, crcs};

/// A chunk after some operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Snap {
    /// `None`: not here.
    pub(super) state: Option<ReplicaState>,
    pub(super) epoch: u32,
    pub(super) promised: u32,
    pub(super) content: Rc<Vec<u8>>,
    pub(super) last_seq: u64,
    pub(super) closed: bool,
    pub(super) filled: bool,
    /// Re-opened.
    pub(super) fixed: bool,
    /// Digest of the content that was re-opened.
    pub(super) reopened: [u8; 16],
    /// State before condemned.
    pub(super) prior: Option<ReplicaState>,
    pub(super) dedup: Rc<Vec<DedupEntry>>,
}

impl Snap {
    pub(super) fn absent() -> Self {
        Self {
            state: None,
            epoch: 0,
            promised: 0,
            content: Rc::default(),
            last_seq: 0,
            closed: false,
            filled: false,
            fixed: false,
            reopened: [0; 16],
            prior: None,
            dedup: Rc::default(),
        }
    }

    /// An operation is complete: the dedup table by its definition.
    pub(super) fn completed(&mut self, entry: DedupEntry, first_unacked: u64) {
        let mut table = self.dedup.as_ref().clone();
        table.push(entry);
        let newest = |stream: StreamId, table: &[DedupEntry]| {
            table.iter().filter(|entry| entry.id.stream == stream).map(|entry| entry.id.op).max()
        };
        let top = newest(entry.id.stream, &table);
        table.retain(|old| old.id.stream != entry.id.stream || old.id.op >= first_unacked || Some(old.id.op) == top);
        table.sort_by_key(|entry| (entry.id.stream, entry.id.op));
        self.dedup = Rc::new(table);
    }

    pub(super) fn digest(&self) -> [u8; 16] {
        digest(&self.content)
    }
}

pub(super) fn digest(content: &[u8]) -> [u8; 16] {
    let full = content.len() / 4096 * 4096;
    let runs = block_crcs(&content[..full]);
    crcs::digest([&runs[..]], &content[full..], u32::try_from(content.len()).unwrap())
}

/// The states of one chunk since the last start, oldest first.
#[derive(Clone, Debug)]
pub(super) struct History {
    snaps: Vec<Snap>,
    /// The newest one that was acknowledged.
    acknowledged: usize,
    /// Highest entry that was called committed.
    pub(super) committed: u64,
}

impl History {
    fn new() -> Self {
        Self { snaps: vec![Snap::absent()], acknowledged: 0, committed: 0 }
    }

    pub(super) fn now(&self) -> &Snap {
        self.snaps.last().unwrap()
    }

    /// Something was issued that leads to `snap`; its number.
    pub(super) fn issue(&mut self, snap: Snap) -> usize {
        self.snaps.push(snap);
        self.snaps.len() - 1
    }

    /// It was refused.
    pub(super) fn take_back(&mut self, number: usize) {
        assert_eq!(number, self.snaps.len() - 1, "only the newest can be refused");
        self.snaps.pop();
    }

    pub(super) fn acknowledge(&mut self, number: usize) {
        self.acknowledged = self.acknowledged.max(number);
    }

    /// The newest one that was acknowledged, as a place to look from.
    pub(super) fn acknowledged(&self) -> usize {
        self.acknowledged
    }

    /// The first state not older than `from` of which a read of all from `at` on, cut at `at + most`,
    /// is `bytes`.
    pub(super) fn showing(&self, from: usize, at: usize, most: usize, bytes: &[u8]) -> Option<usize> {
        (from..self.snaps.len()).find(|number| {
            let content = &self.snaps[*number].content;
            content.get(at.min(content.len())..content.len().min(at + most)) == Some(bytes)
        })
    }
}

/// All chunks.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    pub(super) chunks: BTreeMap<u64, History>,
}

impl Model {
    pub(super) fn chunk(&mut self, chunk: u64) -> &mut History {
        self.chunks.entry(chunk).or_insert_with(History::new)
    }

    /// Compares a store that has just recovered, and goes on from what it has. `exact`: it was stopped
    /// in order, nothing may be missing.
    pub(super) fn check(&mut self, rig: &Rig, exact: bool) {
        for (chunk, after) in self.compare(rig, exact) {
            self.chunks.insert(chunk, after);
        }
    }

    /// Compares a store that has just recovered; gives what each chunk goes on from.
    pub(super) fn compare(&self, rig: &Rig, exact: bool) -> Vec<(u64, History)> {
        for store in &rig.stores {
            for chunk in store.chunks() {
                assert!(self.chunks.contains_key(&chunk.0), "chunk {chunk} was never created");
            }
        }
        who_shares_says_so(rig);
        self.chunks.iter().map(|(chunk, history)| (*chunk, check_chunk(*chunk, history, rig, exact))).collect()
    }

    /// After damage to what was durable: a chunk either says that it is damaged, or holds what was acknowledged.
    pub(super) fn check_damaged(&self, rig: &Rig) {
        for (chunk, history) in &self.chunks {
            let view = rig.find(*chunk).and_then(|store| store.view(ChunkHandle(*chunk)));
            // A chunk whose CREATE was lost is not there; a sealed one is complete, whatever came after.
            let open = view.filter(|view| matches!(view.state, ReplicaState::Open | ReplicaState::Rwr));
            if open.is_some_and(|view| !view.damaged) {
                check_chunk(*chunk, history, rig, false);
            }
        }
    }

    /// What a crash now may leave depends on the disk and on this.
    pub(super) fn signature(&self) -> u64 {
        let numbers = self.chunks.iter().flat_map(|(chunk, history)| {
            [*chunk, history.acknowledged as u64, history.snaps.len() as u64, history.committed]
        });
        numbers.fold(0, |hash, number| (hash ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23))
    }
}

/// Writes go to extents that nobody shares, or to a slot whose header says that they may be.
fn who_shares_says_so(rig: &Rig) {
    let disk = rig.sim.disk();
    for store in &rig.stores {
        let state = store.inner.state.borrow();
        let of_chunks = state.chunks.values().map(|chunk| &chunk.replica.hdr);
        let of_free = state.free.iter().map(|free| &free.hdr);
        for hdr in of_chunks.chain(of_free).filter(|hdr| !hdr.flags.has(Flags::SHARED)) {
            let shared = disk.shared_blocks(FileId::Slot(hdr.common.number));
            assert_eq!(shared, 0, "slot {} shares and does not say so", hdr.common.number);
        }
    }
}

fn check_chunk(chunk: u64, history: &History, rig: &Rig, exact: bool) -> History {
    let store = rig.find(chunk);
    let view = store.as_ref().and_then(|store| store.view(ChunkHandle(chunk)));
    let oldest = if exact { history.snaps.len() - 1 } else { history.acknowledged };
    let may_be = |number: &usize| {
        let snap = &history.snaps[*number];
        let Some(view) = &view else { return snap.state.is_none() };
        let state = match snap.state {
            None => return false,
            Some(ReplicaState::Open) => ReplicaState::Rwr,
            Some(state) => state,
        };
        // A promise is kept even when the data before it is not.
        let promises = history.snaps[*number..].iter().map(|snap| snap.promised);
        let promised = promises.into_iter().any(|promised| promised == view.promised.0);
        (view.state, view.durable_len as usize, view.last_seq, view.epoch, view.closed, view.filled, promised)
            == (state, snap.content.len(), Seq(snap.last_seq), Epoch(snap.epoch), snap.closed, snap.filled, true)
            && view.fixed == snap.fixed
    };
    let found = (oldest..history.snaps.len()).find(may_be);
    let Some(found) = found else {
        panic!("chunk {chunk}: {view:?} is none of {:#?}", Brief(&history.snaps[oldest..]));
    };
    let mut snap = history.snaps[found].clone();
    let mut committed = history.committed;
    if let (Some(view), Some(store)) = (&view, store) {
        assert!(!view.damaged, "chunk {chunk} is damaged: {view:?}, {:#?}", Brief(&history.snaps));
        assert_eq!((view.len, view.last_seq), (view.durable_len, view.durable_seq));
        assert!(
            view.committed_len <= view.durable_len && view.committed_seq.0 <= history.committed.max(view.last_seq.0)
        );
        assert_eq!(store.dedup(ChunkHandle(chunk)), *snap.dedup, "chunk {chunk}: dedup table");
        if view.fixed {
            assert_eq!(view.committed_len, view.durable_len, "what was sealed stays committed");
        }
        if view.state != ReplicaState::Condemned {
            let content = rig.on(chunk, move |_, store| async move {
                let digest = store.digest(ChunkHandle(chunk), u32::MAX).await;
                (read_all(&store, chunk, Upto::Durable).await, digest)
            });
            let (read, digest) = content;
            let read = read.unwrap_or_else(|error| panic!("chunk {chunk}: {error:?} in {view:?}"));
            let differs = read.iter().zip(snap.content.iter()).position(|(read, want)| read != want);
            assert!(read == *snap.content, "chunk {chunk}: content differs from byte {differs:?} on in {view:?}");
            assert_eq!(digest, Ok(snap.digest()), "chunk {chunk}");
        } else {
            // Recovery has put every image in place.
            let slot = store.inner.state.borrow().chunks[&ChunkHandle(chunk)].slot();
            let whole = snap.content.len() / 4096 * 4096;
            let kept = rig.sim.disk().peek(FileId::Slot(slot), 0, whole).unwrap();
            assert!(kept == snap.content[..whole], "chunk {chunk}: condemned, and its bytes are gone");
        }
        for state in [&mut snap.state, &mut snap.prior] {
            if *state == Some(ReplicaState::Open) {
                *state = Some(ReplicaState::Rwr);
            }
        }
        snap.promised = view.promised.0;
        committed = view.committed_seq.0;
    }
    History { snaps: vec![snap], acknowledged: 0, committed }
}

/// States without their bytes.
struct Brief<'a>(&'a [Snap]);

impl std::fmt::Debug for Brief<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let brief = self.0.iter().map(|snap| {
            format!(
                "{:?} epoch {} promised {} len {} last {} closed {} filled {} fixed {}",
                snap.state,
                snap.epoch,
                snap.promised,
                snap.content.len(),
                snap.last_seq,
                snap.closed,
                snap.filled,
                snap.fixed
            )
        });
        f.debug_list().entries(brief).finish()
    }
}
