//! Random operations, and crashes wherever they hurt: the store must be a prefix that holds
//! everything acknowledged (format: the promise).

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use wire::ChunkHandle;

use super::model::Model;
use super::rig::{Rig, TERM, append, bytes, config, create_args, new_disk};
use super::workload::{Shared, Worker};
use crate::runtime::sim::{Rng, Sim, SimDisk, SimRuntime};
use crate::runtime::{FileId, Runtime};
use crate::store::canary::Canary;
use crate::store::page::Ring;
use crate::store::{Store, StoreError, recover};

/// Small enough that a few hundred records wrap it.
const RING_BYTES: u64 = 256 << 10;

/// How a life of the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Stop,
    Kill,
    Cut,
}

/// What one sequence does.
struct Plan {
    seed: u64,
    lives: usize,
    /// One in so many changes of the disk is looked at as if the power went there.
    look: u64,
    canary: Canary,
    endings: &'static [Ending],
}

impl Plan {
    fn new(seed: u64) -> Self {
        let endings = &[Ending::Stop, Ending::Kill, Ending::Cut, Ending::Cut];
        Self { seed, lives: 3, look: 40, canary: Canary::default(), endings }
    }
}

/// What the sequences met: a branch that is never met is not tested.
#[derive(Debug, Default)]
struct Met {
    states: AtomicU64,
    replayed: AtomicU64,
    torn: AtomicU64,
    suspects: AtomicU64,
    healed: AtomicU64,
    broken_off: AtomicU64,
    checkpoints: AtomicU64,
    groups: AtomicU64,
    slot_syncs: AtomicU64,
    records: AtomicU64,
}

static MET: Met = Met {
    states: AtomicU64::new(0),
    replayed: AtomicU64::new(0),
    torn: AtomicU64::new(0),
    suspects: AtomicU64::new(0),
    healed: AtomicU64::new(0),
    broken_off: AtomicU64::new(0),
    checkpoints: AtomicU64::new(0),
    groups: AtomicU64::new(0),
    slot_syncs: AtomicU64::new(0),
    records: AtomicU64::new(0),
};

impl Met {
    fn started(&self, rig: &Rig) {
        let add = |to: &AtomicU64, count| to.fetch_add(count, Ordering::Relaxed);
        add(&self.states, 1);
        add(&self.replayed, rig.summary.records_replayed);
        add(&self.torn, rig.summary.torn_ends);
        add(&self.suspects, rig.summary.suspects);
        add(&self.healed, rig.summary.healed);
    }

    fn lived(&self, rig: &Rig) {
        let add = |to: &AtomicU64, count| to.fetch_add(count, Ordering::Relaxed);
        for counters in rig.stores.iter().map(|store| store.counters()) {
            add(&self.checkpoints, counters.checkpoints);
            add(&self.groups, counters.groups);
            add(&self.slot_syncs, counters.slot_syncs);
            add(&self.records, counters.records);
        }
    }
}

fn start(seed: u64, disk: &SimDisk, rng: &mut Rng, plan: &Plan) -> Rig {
    let shards = u32::try_from(1 + rng.below(3)).unwrap();
    let rig = Rig::start_with(seed, disk, shards, RING_BYTES).unwrap();
    MET.started(&rig);
    for store in &rig.stores {
        store.inner.canary.set(plan.canary);
    }
    rig
}

/// Lives of one disk, each checked against the model when the next begins.
fn sequence(plan: &Plan) {
    let mut rng = Rng::new(plan.seed, 1);
    let model: Shared = Rc::new(RefCell::new(Model::default()));
    let mut disk = new_disk();
    disk.set_reflink(!plan.seed.is_multiple_of(4));
    let mut exact = true;
    for life in 0..plan.lives as u64 {
        let rig = start(plan.seed ^ life, &disk, &mut rng, plan);
        model.borrow_mut().check(&rig, exact);
        let ending = plan.endings[usize::try_from(rng.below(plan.endings.len() as u64)).unwrap()];
        live(&rig, &model, &mut rng, plan, ending);
        if ending == Ending::Stop && plan.canary.is_none() {
            still_works(&rig);
        }
        MET.lived(&rig);
        exact = ending == Ending::Stop;
        disk = match ending {
            Ending::Stop => rig.stop(),
            Ending::Kill => rig.kill(rng.next()),
            Ending::Cut => rig.cut(rng.next()),
        };
    }
    let rig = start(plan.seed, &disk, &mut rng, plan);
    model.borrow_mut().check(&rig, exact);
}

/// Runs workers on a few chunks, to their end or until the crash.
fn live(rig: &Rig, model: &Shared, rng: &mut Rng, plan: &Plan, ending: Ending) {
    let chunks = 1 + rng.below(5);
    let steps = usize::try_from(5 + rng.below(40)).unwrap();
    let size_max = if rng.once_in(20) { 1 << 20 } else { 40_000 };
    let workers: Vec<(u64, Rng)> = (1..=chunks).map(|chunk| (chunk, Rng::new(rng.next(), chunk))).collect();
    let stores: Vec<_> = (0..=chunks).map(|chunk| rig.store(chunk)).collect();
    let shared = Rc::clone(model);
    let limit = if ending == Ending::Stop { u64::MAX } else { 20 + rng.below(3000) };
    let (disk, mut seen, mut taken) = (rig.sim.disk(), rig.sim.disk().changes(), 0);
    let mut looks = Rng::new(rng.next(), 2);
    rig.sim.run_until(
        move |rt| async move {
            let all = workers.into_iter().map(|(chunk, rng)| {
                let store = stores[usize::try_from(chunk).unwrap()].clone();
                Worker { rt: rt.clone(), store, model: Rc::clone(&shared), chunk, rng, size_max }.run(steps)
            });
            futures_util::future::join_all(all).await;
            rt.yield_now().await;
        },
        |_| {
            taken += 1;
            if disk.changes() != std::mem::replace(&mut seen, disk.changes()) && looks.once_in(plan.look) {
                look(&disk, model, &mut looks, plan);
            }
            taken > limit
        },
    );
}

/// What would be there if the power went now?
fn look(disk: &SimDisk, model: &Shared, rng: &mut Rng, plan: &Plan) {
    let disk = disk.fork();
    match rng.below(8) {
        0 => disk.crash(rng.next()),
        1 => disk.power_cut_keeping(|_| false),
        2 => disk.power_cut_keeping(|_| true),
        _ => disk.power_cut(rng.next()),
    }
    if rng.once_in(3) {
        crash_in_recovery(&disk, rng);
    }
    let rig = start(rng.next(), &disk, rng, plan);
    model.borrow().clone().check(&rig, false);
}

/// Recovery that does not come to its end, once or more often.
fn crash_in_recovery(disk: &SimDisk, rng: &mut Rng) {
    for _ in 0..=rng.below(2) {
        let sim = Sim::with_disk(rng.next(), disk);
        let config = config(&sim, u32::try_from(1 + rng.below(3)).unwrap(), RING_BYTES);
        let (mut steps, limit) = (0, rng.below(400));
        let work = move |rt| async move { recover(&rt, &config).await.map(drop).unwrap() };
        let over = sim.run_until(work, |_| {
            steps += 1;
            steps > limit
        });
        MET.broken_off.fetch_add(u64::from(over.is_none()), Ordering::Relaxed);
        drop(sim);
        disk.power_cut(rng.next());
    }
}

/// However full the journal was: work goes on.
fn still_works(rig: &Rig) {
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

/// Sequences, each printed before it may fail; gives how many. `STORE_SEED` names a single one.
fn sequences(count: u64) -> u64 {
    let from = std::env::var("STORE_SEED").ok().and_then(|seed| seed.parse().ok());
    let count = if from.is_some() { 1 } else { count };
    let from = from.unwrap_or(1);
    for seed in from..from + count {
        eprintln!("STORE_SEED={seed}");
        sequence(&Plan::new(seed));
    }
    count
}

/// Rule R14: whatever a power cut leaves, both copies of RING start no earlier than the space that is in use.
fn nothing_in_use_is_free(disk: &SimDisk, store: &Store<SimRuntime>) {
    let disk = disk.fork();
    disk.power_cut_keeping(|_| false);
    let first = store.inner.state.borrow().log.start().first_lsn;
    for offset in [0, 4096] {
        let page = disk.peek(FileId::Ring(0), offset, 4096).unwrap();
        let ring = Ring::decode(&page.try_into().unwrap()).unwrap();
        assert!(ring.common.lsn + 1 >= first, "space is free that a RING copy still names");
    }
}

/// Between two tries of a writer that was told to come again.
const PAUSE: std::time::Duration = std::time::Duration::from_micros(500);

/// Many writers of records as large as they get: the journal goes round and round, and is full.
#[test]
fn a_journal_that_is_always_full_loses_nothing() {
    for seed in 1..=3 {
        eprintln!("seed {seed}");
        let plan = Plan { look: 60, ..Plan::new(seed) };
        let mut rng = Rng::new(seed, 11);
        let model: Shared = Rc::new(RefCell::new(Model::default()));
        let rig = Rig::start_with(seed, &new_disk(), 1, RING_BYTES).unwrap();
        let (disk, mut seen) = (rig.sim.disk(), rig.sim.disk().changes());
        let (store, shared) = (rig.store(1), Rc::clone(&model));
        let mut looks = Rng::new(seed, 12);
        let watched = rig.store(1);
        let seeds: Vec<u64> = (0..24).map(|_| rng.next()).collect();
        rig.sim.run_until(
            move |rt| async move {
                let all = (1..).zip(seeds).map(|(chunk, seed)| {
                    let (rt, store, model) = (rt.clone(), store.clone(), Rc::clone(&shared));
                    let mut worker = Worker { rt, store, model, chunk, rng: Rng::new(seed, 1), size_max: 4095 };
                    async move {
                        while worker.store.view(ChunkHandle(chunk)).is_none() {
                            worker.create().await;
                            worker.rt.sleep(PAUSE).await;
                        }
                        for _ in 0..60 {
                            worker.append_or_overwrite().await;
                            worker.rt.sleep(PAUSE).await;
                        }
                    }
                });
                futures_util::future::join_all(all).await;
            },
            |_| {
                if disk.changes() != std::mem::replace(&mut seen, disk.changes()) {
                    nothing_in_use_is_free(&disk, &watched);
                    if looks.once_in(plan.look) {
                        look(&disk, &model, &mut looks, &plan);
                    }
                }
                false
            },
        );
        assert!(rig.store(1).counters().checkpoints >= 5);
    }
}

/// A step of a chunk's life, and what must have come before it.
pub(super) type Step = (&'static str, fn(&mut Worker) -> Pin<Box<dyn Future<Output = ()> + '_>>);

/// One of each operation, in an order that meets every one in its right state.
const STEPS: [Step; 21] = [
    ("create", |worker| Box::pin(worker.create())),
    ("append", |worker| Box::pin(worker.append(1))),
    ("append parts", |worker| Box::pin(worker.append(3))),
    ("overwrite", |worker| Box::pin(worker.overwrite(1))),
    ("overwrite of the partial block", |worker| Box::pin(worker.overwrite_tail())),
    ("checkpoint with images", |worker| Box::pin(worker.checkpoint())),
    ("overwrite parts", |worker| Box::pin(worker.overwrite(3))),
    ("repair", |worker| Box::pin(worker.repair())),
    ("overwrite across the end", |worker| Box::pin(worker.overwrite_across())),
    ("checkpoint", |worker| Box::pin(worker.checkpoint())),
    ("append after a checkpoint", |worker| Box::pin(worker.append(2))),
    ("prepare", |worker| Box::pin(worker.prepare())),
    ("fill and seal", |worker| Box::pin(worker.fill_and_seal())),
    ("checkpoint of a filled chunk", |worker| Box::pin(worker.checkpoint())),
    ("confirm, if it was sealed", |worker| Box::pin(worker.confirm_if_filled())),
    ("checkpoint of a sealed tail", |worker| Box::pin(worker.checkpoint())),
    ("repair after the restart or the seal", |worker| Box::pin(worker.repair())),
    ("condemn", |worker| Box::pin(worker.condemn())),
    ("free", |worker| Box::pin(worker.free())),
    ("create in a used slot", |worker| Box::pin(worker.create())),
    ("append in a used slot", |worker| Box::pin(worker.append(2))),
];

#[test]
fn a_crash_at_any_write_of_any_operation_leaves_a_prefix() {
    at_any_write_of(&STEPS);
}

/// Every state the disk goes through, each cut off in several ways.
pub(super) fn at_any_write_of(steps: &[Step]) {
    for seed in 1..=4 {
        let plan = Plan { look: 1, ..Plan::new(seed) };
        let mut rng = Rng::new(seed, 9);
        let model: Shared = Rc::new(RefCell::new(Model::default()));
        let rig = start(seed, &new_disk(), &mut rng, &plan);
        let mut looks = Rng::new(seed, 10);
        for (name, step) in steps.iter().copied() {
            eprintln!("seed {seed}: {name}");
            let (store, shared, own) = (rig.store(1), Rc::clone(&model), Rng::new(rng.next(), 3));
            let (disk, mut seen) = (rig.sim.disk(), rig.sim.disk().changes());
            rig.sim.run_until(
                move |rt| async move {
                    let mut worker = Worker { rt, store, model: shared, chunk: 1, rng: own, size_max: 9000 };
                    step(&mut worker).await;
                    worker.store.inner.flushed().await.unwrap();
                },
                |_| {
                    if disk.changes() != std::mem::replace(&mut seen, disk.changes()) {
                        (0..3).for_each(|_| look(&disk, &model, &mut looks, &plan));
                    }
                    false
                },
            );
        }
    }
}

#[test]
fn whatever_ends_a_process_a_prefix_with_everything_acknowledged_is_left() {
    let count = std::env::var("STORE_SEEDS").ok().and_then(|count| count.parse().ok());
    let count = sequences(count.unwrap_or(100));
    eprintln!("{MET:?}");
    if count >= 100 {
        for met in
            [&MET.replayed, &MET.torn, &MET.suspects, &MET.healed, &MET.broken_off, &MET.checkpoints, &MET.slot_syncs]
        {
            assert!(met.load(Ordering::Relaxed) > count / 4, "a branch is hardly met: {MET:?}");
        }
    }
}

/// How many of these seeds find the bug.
fn found(count: u64, canary: Canary) -> u64 {
    let fails = |seed| {
        let plan = Plan { canary, endings: &[Ending::Cut], ..Plan::new(seed) };
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| sequence(&plan))).is_err()
    };
    let found = (1..=count).filter(|seed| fails(*seed)).count();
    found as u64
}

#[test]
fn an_answer_before_the_flush_is_found() {
    let found = found(20, Canary { answer_before_the_flush: true, ..Canary::default() });
    assert!(found >= 15, "{found} of 20");
}

#[test]
fn a_range_that_was_not_durably_written_is_found() {
    let found = found(20, Canary { skip_the_slot_sync: true, ..Canary::default() });
    assert!(found >= 15, "{found} of 20");
}
