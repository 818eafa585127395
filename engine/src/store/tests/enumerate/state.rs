//! One disk after a power cut: recovered, compared, and crashed again.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use super::super::model::Model;
use super::super::rig::{Rig, config};
use super::super::sequence::ring_bytes;
use super::super::workload::{Shared, Worker};
use super::cuts::Cuts;
use super::{SHARDS, Tally};
use crate::runtime::FileId;
use crate::runtime::sim::{Rng, Sim, SimDisk, real_time};
use crate::store::canary::sometimes;
use crate::store::recover;

/// One in so many states is crashed inside its recovery, at each of its changes of the disk.
const DEEPER: u64 = 96;

/// One in so many states lives on for a step, and is cut again.
const SECOND_LIFE: u64 = 24;

/// One in so many states is recovered twice, to compare the traces.
const TWICE: u64 = 64;

/// Looks at the states of one script.
pub(super) struct Watch {
    seed: u64,
    before: u32,
    samples: u64,
    pub(super) tally: Tally,
    /// Disks that were recovered, each with what was issued and acknowledged then.
    seen: BTreeSet<(u64, u64)>,
    states: u64,
    rng: Rng,
}

impl Watch {
    pub(super) fn new(seed: u64, before: u32, samples: u64) -> Self {
        let rng = Rng::new(seed, 20);
        let (tally, seen) = Default::default();
        Self { seed, before, samples, tally, seen, states: 0, rng }
    }

    /// Cuts the power in every way that matters.
    pub(super) fn boundary(&mut self, kind: &'static str, disk: &SimDisk, model: &Shared) {
        let started = real_time();
        let model = model.borrow();
        let signature = model.signature();
        let cuts = Cuts::of(disk, self.samples, self.rng.next());
        self.tally.row(kind).boundaries += 1;
        self.tally.row(kind).complete += u64::from(cuts.is_complete());
        for number in 0..cuts.count() {
            self.tally.row(kind).drawn += 1;
            let cut = cuts.cut(disk, number);
            if !self.seen.insert((cut.image_hash(), signature)) {
                continue;
            }
            self.states += 1;
            self.tally.row(kind).distinct += 1;
            let place = format!("{kind}, moment {}, cut {number}", self.tally.row(kind).boundaries);
            let seen = catch_unwind(AssertUnwindSafe(|| self.state(kind, &cut, &model)));
            if let Err(cause) = seen {
                eprintln!("FAIL {place}: make crash SEED={:#x}", self.seed);
                resume_unwind(cause);
            }
        }
        self.tally.row(kind).took += started.elapsed();
    }

    fn state(&mut self, kind: &'static str, cut: &SimDisk, model: &Model) {
        let again = (self.states.is_multiple_of(DEEPER)
            || self.states.is_multiple_of(SECOND_LIFE)
            || self.states.is_multiple_of(TWICE))
        .then(|| cut.fork());
        let after = self.shards();
        *self.tally.shards.entry((self.before, after)).or_default() += 1;
        let hash = compare(self.seed, cut, after, model).sim.trace_hash();
        let Some(again) = again else { return };
        if self.states.is_multiple_of(TWICE) {
            let repeated = compare(self.seed, &again.fork(), after, model).sim.trace_hash();
            assert_eq!(hash, repeated, "the same disk and seed, another trace");
            self.tally.repeated += 1;
        }
        if self.states.is_multiple_of(DEEPER) {
            self.crash_in_recovery(kind, &again.fork(), model);
        }
        if self.states.is_multiple_of(SECOND_LIFE) {
            self.live_on(kind, &again, model);
        }
    }

    fn shards(&mut self) -> u32 {
        SHARDS[usize::try_from(self.rng.below(SHARDS.len() as u64)).unwrap()]
    }

    /// A crash at every change that recovery makes, and recovery from there.
    fn crash_in_recovery(&mut self, kind: &'static str, disk: &SimDisk, model: &Model) {
        let sim = Sim::with_disk(self.seed, disk);
        let config = config(&sim, self.shards(), ring_bytes(self.seed));
        let mut changes = disk.changes();
        let mut slots_read = false;
        let whole = sim.run_until(
            move |rt| async move { recover(&rt, &config).await.map(drop).unwrap() },
            |_| {
                if disk.changes() == std::mem::replace(&mut changes, disk.changes()) {
                    return false;
                }
                step_of_recovery(disk, &mut slots_read);
                let cuts = Cuts::of(disk, 4, self.rng.next());
                let all = cuts.count();
                // All subsets of the little that a step leaves undecided, a few of the rest.
                let numbers: Vec<u64> = if all <= 4 {
                    (0..all).collect()
                } else {
                    vec![0, all - 1, self.rng.below(all), self.rng.below(all)]
                };
                for number in numbers {
                    self.tally.row(kind).drawn += 1;
                    let cut = cuts.cut(disk, number);
                    if self.seen.insert((cut.image_hash(), model.signature())) {
                        let row = self.tally.row(kind);
                        row.distinct += 1;
                        row.deeper += 1;
                        sometimes!("second power cut within a simulated second");
                        let after = self.shards();
                        compare(self.seed, &cut, after, model);
                    }
                }
                false
            },
        );
        assert!(whole.is_some());
    }

    /// The next life does a few steps before its power goes.
    fn live_on(&mut self, kind: &'static str, disk: &SimDisk, model: &Model) {
        let mut model = model.clone();
        let rig = Rig::start_with(self.seed, disk, self.shards(), ring_bytes(self.seed)).unwrap();
        model.check(&rig, false);
        let chunks: Vec<u64> = (1..=2).collect();
        let stores: Vec<_> = chunks.iter().map(|chunk| rig.store(*chunk)).collect();
        let seeds: Vec<u64> = chunks.iter().map(|_| self.rng.next()).collect();
        let shared: Shared = Rc::new(RefCell::new(model));
        let issued = Rc::clone(&shared);
        let mut left = 20 + self.rng.below(400);
        rig.sim.run_until(
            move |rt| async move {
                let all = chunks.into_iter().zip(stores).zip(seeds).map(|((chunk, store), seed)| {
                    let worker = Worker {
                        rt: rt.clone(),
                        store,
                        model: Rc::clone(&issued),
                        chunk,
                        rng: Rng::new(seed, chunk),
                        size_max: 9000,
                        churn: false,
                        faulty: false,
                    };
                    worker.run(2)
                });
                futures_util::future::join_all(all).await;
            },
            |_| {
                left -= 1;
                left == 0
            },
        );
        let seed = self.rng.next();
        let disk = rig.cut(seed);
        let row = self.tally.row(kind);
        (row.drawn, row.distinct, row.second_life) = (row.drawn + 1, row.distinct + 1, row.second_life + 1);
        let after = self.shards();
        compare(self.seed, &disk, after, &shared.borrow());
    }
}

/// Recovers a disk and compares it with the model.
fn compare(seed: u64, disk: &SimDisk, shards: u32, model: &Model) -> Rig {
    let rig = Rig::start_lean(seed, disk, shards, ring_bytes(seed)).unwrap();
    model.compare(&rig, false);
    rig
}

/// Which step recovery is in, by what it has not flushed.
fn step_of_recovery(disk: &SimDisk, slots_read: &mut bool) {
    use crate::runtime::sim::Unit;
    let mut units = disk.undecided();
    units.retain(|unit| matches!(unit, Unit::Sector(..)));
    let file = units.iter().find_map(|unit| match unit {
        Unit::Sector(file, offset, _) => Some((*file, *offset)),
        _ => None,
    });
    match file {
        Some((FileId::DiskA | FileId::DiskB, _)) if *slots_read => sometimes!("crash in step 8, DISK written"),
        Some((FileId::DiskA | FileId::DiskB, _)) => sometimes!("crash in step 1, DISK healed"),
        Some((FileId::Slot(_), offset)) if !*slots_read && units.len() == 1 && offset >= 1 << 26 => {
            sometimes!("crash in steps 2 to 5, roots healed");
        }
        Some((FileId::Slot(_), _)) => {
            *slots_read = true;
            sometimes!("crash in step 6, slots written");
        }
        Some((FileId::Ring(_), _)) => {
            *slots_read = true;
            sometimes!("crash in step 7, journals written");
        }
        None => {}
    }
}
