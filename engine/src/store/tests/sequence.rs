//! Random lives of one disk: operations, faults, and an ending that is not always orderly, each life
//! compared with the model when the next begins.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use super::model::Model;
use super::rig::{Rig, TERM, append, bytes, config, create_args, new_disk, read_all};
use super::workload::{Shared, Worker};
use crate::runtime::sim::campaign::number_from_env;
use crate::runtime::sim::{Fault, Op, Rng, Rule, Sim, SimDisk};
use crate::runtime::{FileId, Runtime};
use crate::store::batch::{self, Found};
use crate::store::canary::{planted, sometimes};
use crate::store::header::Hdr;
use crate::store::layout::{Child, HALF_OFFSETS, RING_LOG_START};
use crate::store::page::{Disk, Page, Ring, pick};
use crate::store::{StoreError, Upto, recover};
use wire::ChunkHandle;

/// Bytes of a journal: a few dozen records wrap the small one, and images in parts need the large one.
pub(super) fn ring_bytes(seed: u64) -> u64 {
    if seed.is_multiple_of(3) { 128 << 10 } else { 64 << 10 }
}

/// Kinds of faults; each seed has a random half of them, as a seed without one finds what a seed with all drowns.
pub(super) mod faults {
    /// One copy of a root page is damaged after a life.
    pub(in super::super) const ROOT_ROT: u64 = 1;
    /// Writes and reads are short.
    pub(in super::super) const SHORT: u64 = 2;
    /// A write, read or flush fails.
    pub(in super::super) const ERROR: u64 = 4;
    /// Chunks come and go.
    pub(in super::super) const CHURN: u64 = 8;
    /// In the end, a record that was flushed is damaged.
    pub(in super::super) const JOURNAL_ROT: u64 = 16;
    /// In the end, a block and its checksum page are damaged.
    pub(in super::super) const DOUBLE_ROT: u64 = 32;
    /// In the end, a block rots that is overwritten in part.
    pub(in super::super) const ROT_BELOW: u64 = 64;
    /// All.
    pub(in super::super) const ALL: u64 = 127;
}

/// How a life of the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Stop,
    Kill,
    Cut,
}

/// What one sequence does. A shorter plan of the same seed does the beginning of the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) lives: u64,
    /// Most operations of a chunk in one life.
    pub(super) steps: u64,
    /// Most chunks.
    pub(super) chunks: u64,
    /// One in so many changes of the disk is looked at as if the power went there; none for zero.
    pub(super) look: u64,
    pub(super) faults: u64,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, lives, steps, chunks, look, faults } = self;
        write!(
            f,
            "STORE_SEED={seed:#x} STORE_LIVES={lives} STORE_STEPS={steps} STORE_CHUNKS={chunks} STORE_LOOK={look} \
             STORE_FAULTS={faults}"
        )
    }
}

impl Plan {
    /// Of a seed; what the environment says goes first.
    pub(super) fn new(seed: u64) -> Self {
        let faults = Rng::new(seed, 30).next() & faults::ALL;
        Self {
            seed,
            lives: number_from_env("STORE_LIVES").unwrap_or(3),
            steps: number_from_env("STORE_STEPS").unwrap_or(45),
            chunks: number_from_env("STORE_CHUNKS").unwrap_or(5),
            look: number_from_env("STORE_LOOK").unwrap_or(60),
            faults: number_from_env("STORE_FAULTS").unwrap_or(faults),
        }
    }

    fn has(&self, kind: u64) -> bool {
        self.faults & kind != 0
    }

    /// Plans that do less.
    fn smaller(&self) -> Vec<Self> {
        let without = (0..7).map(|bit| 1 << bit).filter(|kind| self.has(*kind));
        let mut smaller: Vec<Self> = without.map(|kind| Self { faults: self.faults & !kind, ..*self }).collect();
        if self.lives > 1 {
            smaller.push(Self { lives: self.lives - 1, ..*self });
        }
        if self.steps > 1 {
            smaller.push(Self { steps: self.steps / 2, ..*self });
            smaller.push(Self { steps: self.steps - 1, ..*self });
        }
        if self.chunks > 1 {
            smaller.push(Self { chunks: self.chunks - 1, ..*self });
        }
        if self.look > 0 {
            smaller.push(Self { look: 0, ..*self });
        }
        smaller
    }

    /// The smallest plan of this seed that still fails, as far as leaving out one thing after another finds it.
    pub(super) fn shrunk(self, fails: impl Fn(&Self) -> bool) -> Self {
        let mut smallest = self;
        while let Some(smaller) = smallest.smaller().into_iter().find(|plan| fails(plan)) {
            smallest = smaller;
        }
        smallest
    }
}

fn shards(rng: &mut Rng) -> u32 {
    u32::try_from(1 + rng.below(3)).unwrap()
}

fn start(seed: u64, disk: &SimDisk, rng: &mut Rng) -> Rig {
    Rig::start_with(seed, disk, shards(rng), ring_bytes(seed)).unwrap()
}

/// Lives of one disk; gives a hash over all their events.
pub(super) fn run(plan: &Plan) -> u64 {
    let model: Shared = Rc::new(RefCell::new(Model::default()));
    let mut disk = new_disk();
    disk.set_reflink(!plan.seed.is_multiple_of(4));
    let (mut exact, mut hash) = (true, 0);
    for life in 0..plan.lives {
        let seed = plan.seed ^ life.wrapping_mul(0xA076_1D64_78BD_642F);
        let mut rng = Rng::new(seed, 1);
        let rig = start(seed, &disk, &mut rng);
        model.borrow_mut().check(&rig, exact);
        let ending = [Ending::Stop, Ending::Kill, Ending::Cut, Ending::Cut][usize::try_from(rng.below(4)).unwrap()];
        inject(&rig.sim.disk(), plan, &mut rng);
        live(&rig, &model, &mut rng, plan, ending);
        rig.sim.disk().heal();
        let fenced = rig.stores[0].inner.check().is_err();
        if fenced && rng.once_in(2) {
            // Time for DISK to say so.
            rig.sim.run(|rt| async move { rt.sleep(std::time::Duration::from_millis(50)).await });
        }
        if ending == Ending::Stop && !fenced {
            still_works(&rig);
        }
        exact = ending == Ending::Stop && !fenced;
        hash ^= rig.sim.trace_hash().rotate_left(u32::try_from(life).unwrap());
        let was = rig.sim.disk();
        disk = match ending {
            Ending::Stop => rig.stop(),
            Ending::Kill => rig.kill(rng.next()),
            Ending::Cut => rig.cut(rng.next()),
        };
        was.heal();
        if plan.has(faults::ROOT_ROT) {
            rot_a_root(&disk, &mut rng);
        }
    }
    let mut rng = Rng::new(plan.seed, 5);
    if plan.has(faults::JOURNAL_ROT) && rot_a_record(&disk, &mut rng) {
        let rig = start(plan.seed, &disk, &mut rng);
        model.borrow().check_damaged(&rig);
        return hash ^ rig.sim.trace_hash();
    }
    let rig = start(plan.seed, &disk, &mut rng);
    model.borrow_mut().check(&rig, exact);
    hash ^= rig.sim.trace_hash();
    if plan.has(faults::ROT_BELOW) {
        rot_is_not_merged(&rig, &model, &mut rng);
    }
    if plan.has(faults::DOUBLE_ROT) {
        nothing_rotten_is_served(rig, &model, &mut rng);
    }
    hash
}

fn inject(disk: &SimDisk, plan: &Plan, rng: &mut Rng) {
    if plan.has(faults::SHORT) {
        for op in [Op::Write, Op::Read] {
            disk.inject(Rule::new(op, Fault::Short(8192)).one_in(3).times(u64::MAX));
        }
    }
    if plan.has(faults::ERROR) && rng.once_in(2) {
        let op = [Op::Sync, Op::Sync, Op::Write, Op::Read][usize::try_from(rng.below(4)).unwrap()];
        disk.inject(Rule::new(op, Fault::Error(libc::EIO)).skip(rng.below(60)));
    }
}

/// Runs workers on a few chunks, to their end or until the crash.
fn live(rig: &Rig, model: &Shared, rng: &mut Rng, plan: &Plan, ending: Ending) {
    let chunks = (1 + rng.below(5)).min(plan.chunks);
    let steps = usize::try_from((5 + rng.below(40)).min(plan.steps)).unwrap();
    let size_max = if rng.once_in(20) { 1 << 20 } else { 40_000 };
    let limit = if ending == Ending::Stop { u64::MAX } else { 20 + rng.below(3000) };
    let mut looks = Rng::new(rng.next(), 2);
    let seeds = rng.next();
    let workers: Vec<(u64, Rng)> = (1..=chunks).map(|chunk| (chunk, Rng::new(seeds, chunk))).collect();
    let stores: Vec<_> = (0..=chunks).map(|chunk| rig.store(chunk)).collect();
    let (shared, churn, faulty) = (Rc::clone(model), plan.has(faults::CHURN), plan.has(faults::ERROR));
    let (disk, mut seen, mut taken) = (rig.sim.disk(), rig.sim.disk().changes(), 0);
    rig.sim.run_until(
        move |rt| async move {
            let all = workers.into_iter().map(|(chunk, rng)| {
                let store = stores[usize::try_from(chunk).unwrap()].clone();
                let model = Rc::clone(&shared);
                Worker { rt: rt.clone(), store, model, chunk, rng, size_max, churn, faulty }.run(steps)
            });
            futures_util::future::join_all(all).await;
            rt.yield_now().await;
        },
        |_| {
            taken += 1;
            if disk.changes() != std::mem::replace(&mut seen, disk.changes()) && looks.once_in(plan.look) {
                look(&disk, model, &mut looks, plan.has(faults::ROOT_ROT));
            }
            taken > limit
        },
    );
}

/// What would be there if the power went now?
pub(super) fn look(disk: &SimDisk, model: &Shared, rng: &mut Rng, rot: bool) {
    let disk = disk.fork();
    disk.heal();
    match rng.below(8) {
        0 => disk.crash(rng.next()),
        1 => disk.power_cut_keeping(|_| false),
        2 => disk.power_cut_keeping(|_| true),
        _ => disk.power_cut(rng.next()),
    }
    if rng.once_in(3) {
        crash_in_recovery(&disk, rng);
    }
    if rot && rng.once_in(2) {
        rot_a_root(&disk, rng);
    }
    let rig = start(rng.next(), &disk, rng);
    model.borrow().compare(&rig, false);
}

/// Recovery that does not come to its end, once or more often.
fn crash_in_recovery(disk: &SimDisk, rng: &mut Rng) {
    for _ in 0..=rng.below(2) {
        let sim = Sim::with_disk(rng.next(), disk);
        let config = config(&sim, shards(rng), ring_bytes(rng.next()));
        let (mut steps, limit) = (0, rng.below(400));
        let work = move |rt| async move { recover(&rt, &config).await.map(drop).unwrap() };
        sim.run_until(work, |_| {
            steps += 1;
            steps > limit
        });
        drop(sim);
        disk.power_cut(rng.next());
    }
}

/// However full the journal was: work goes on.
fn still_works(rig: &Rig) {
    if planted().is_some() {
        return; // a planted bug is to be found by what it loses
    }
    rig.on(999, |rt, store| async move {
        let mut tries = 0;
        let mut again = async || {
            tries += 1;
            assert!(tries < 2000, "the store is stuck");
            rt.sleep(std::time::Duration::from_millis(5)).await;
        };
        while store.create(create_args(999)).await == Err(StoreError::Busy) {
            again().await;
        }
        while append(&rt, &store, 999, 1, &bytes(1, 5000)).await == Err(StoreError::Busy) {
            again().await;
        }
        store.condemn(TERM, ChunkHandle(999), 5, 1).await.unwrap();
        store.free(TERM, ChunkHandle(999), 5).await.unwrap();
    });
}

fn page(disk: &SimDisk, file: FileId, offset: u64) -> Option<Box<Page>> {
    Some(Box::new(disk.peek(file, offset, 4096)?.try_into().ok()?))
}

/// Damages one copy of one root page of which both are good.
fn rot_a_root(disk: &SimDisk, rng: &mut Rng) {
    let files = disk.files();
    let file = files[usize::try_from(rng.below(files.len() as u64)).unwrap()];
    let copies = match file {
        FileId::DiskA | FileId::DiskB => [(FileId::DiskA, 0), (FileId::DiskB, 0)],
        FileId::Ring(_) => [(file, 0), (file, 4096)],
        FileId::Slot(_) => HALF_OFFSETS.map(|offset| (file, offset)),
    };
    let good = |page: &Page| match file {
        FileId::DiskA | FileId::DiskB => Disk::decode(page).is_ok(),
        FileId::Ring(_) => Ring::decode(page).is_ok(),
        FileId::Slot(_) => Hdr::decode(page).is_ok(),
    };
    if copies.iter().all(|(file, offset)| page(disk, *file, *offset).is_some_and(|page| good(&page))) {
        let (file, offset) = copies[usize::try_from(rng.below(2)).unwrap()];
        disk.rot(file, offset + rng.below(400), &[1 << rng.below(8)]);
        sometimes!("one copy of a root is rotten");
    }
}

/// Damages a record that a later one proves flushed; false when there is none.
fn rot_a_record(disk: &SimDisk, rng: &mut Rng) -> bool {
    let Some(ours) = page(disk, FileId::DiskA, 0).and_then(|page| Disk::decode(&page).ok()) else { return false };
    let number = u32::try_from(rng.below(u64::from(ours.rings))).unwrap();
    let file = FileId::Ring(number);
    let [a, b] = [0, 4096].map(|offset| Ring::decode(&page(disk, file, offset).unwrap()));
    let Some(ring) = pick(a, b).map(|picked| picked.root) else { return false };
    let log = disk.peek(file, RING_LOG_START, usize::try_from(ring.log_bytes).unwrap()).unwrap();
    let start = usize::try_from(ring.start_off).unwrap();
    let stream = [&log[start..], &log[..start]].concat();
    let mut chain = batch::Chain {
        lsn: ring.common.lsn,
        prev_crc: ring.start_prev_crc,
        boot_gen: ring.common.boot_gen,
        disk_uuid: ring.common.disk_uuid,
    };
    let (mut at, mut records, mut proven) = (0, Vec::new(), 0);
    while let Found::Record(head, _) = batch::next(&stream[at..], &chain) {
        (chain.lsn, chain.prev_crc) = (head.lsn, head.crc);
        records.push((head.lsn, at));
        proven = proven.max(head.durable_upto);
        at += head.span as usize;
        if at >= stream.len() {
            break;
        }
    }
    records.retain(|(lsn, _)| *lsn <= proven);
    if records.is_empty() {
        return false;
    }
    let (_, at) = records[usize::try_from(rng.below(records.len() as u64)).unwrap()];
    let offset = (ring.start_off + at as u64) % ring.log_bytes;
    disk.rot(file, RING_LOG_START + offset + rng.below(64), &[1 << rng.below(8)]);
    true
}

/// A block is damaged, and overwritten in part: it is found out first, or reads right. Repaired, it is overwritten.
fn rot_is_not_merged(rig: &Rig, model: &Shared, rng: &mut Rng) {
    let large = |chunk: u64| {
        let store = rig.find(chunk)?;
        let view = store.view(ChunkHandle(chunk))?;
        (view.state != wire::member::ReplicaState::Condemned && view.durable_len >= 4096).then_some((chunk, store))
    };
    let chunks: Vec<u64> = model.borrow().chunks.keys().copied().collect();
    let Some((chunk, store)) = chunks.into_iter().find_map(large) else { return };
    let (shared, own, disk) = (Rc::clone(model), Rng::new(rng.next(), 4), rig.sim.disk());
    rig.sim.run(move |rt| async move {
        let (size_max, churn, faulty) = (9000, false, false);
        let worker = Worker { rt, store, model: shared, chunk, rng: own, size_max, churn, faulty };
        worker.overwrite_over_rot(&disk).await;
    });
}

/// A block and its checksum page are damaged: what is read is right, or it is refused.
fn nothing_rotten_is_served(rig: Rig, model: &Shared, rng: &mut Rng) {
    let whole = |chunk: &u64| {
        let store = rig.find(*chunk)?;
        let state = store.inner.state.borrow();
        let held = state.chunks.get(&ChunkHandle(*chunk))?;
        (held.durable.len >= 4096 && held.replica.state() != wire::member::ReplicaState::Condemned)
            .then(|| (*chunk, held.slot(), held.durable.len))
    };
    let Some((chunk, slot, len)) = model.borrow().chunks.keys().find_map(whole) else { return };
    let content = Rc::clone(&model.borrow_mut().chunk(chunk).now().content);
    let disk = rig.stop();
    let file = FileId::Slot(slot);
    let Some(hdr) = page(&disk, file, HALF_OFFSETS[0]).and_then(|page| Hdr::decode(&page).ok()) else { return };
    let child = Child::Crc(0);
    disk.rot(file, child.offset(hdr.copy_of(child)) + 64 + rng.below(4), &[1 << rng.below(8)]);
    disk.rot(file, rng.below(u64::from(len / 4096 * 4096).min(4096 * 1008)), &[1 << rng.below(8)]);
    let rig = start(rng.next(), &disk, rng);
    let read = rig.on(chunk, move |_, store| async move { read_all(&store, chunk, Upto::Durable).await });
    match read {
        Ok(bytes) => assert!(bytes == *content, "chunk {chunk}: rotten bytes are served"),
        Err(error) => assert!(matches!(error, StoreError::BadBlock(_)), "{error:?}"),
    }
}
