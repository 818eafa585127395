//! Long campaigns of random sequences, and a journal that is always full.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use wire::ChunkHandle;

use super::canaries::fails;
use super::model::Model;
use super::rig::{Rig, new_disk};
use super::sequence::{self, Plan, look};
use super::workload::{Shared, Worker};
use crate::runtime::sim::campaign::{Tier, hits, number_from_env, on_every_core};
use crate::runtime::sim::{Rng, SimDisk, SimRuntime, real_time};
use crate::runtime::{FileId, Runtime};
use crate::store::Store;
use crate::store::canary::{Bug, Planted};
use crate::store::page::Ring;

/// A few hundred records wrap it.
const RING_BYTES: u64 = 256 << 10;

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
                    let rng = Rng::new(seed, 1);
                    let mut worker =
                        Worker { rt, store, model, chunk, rng, size_max: 4095, churn: false, faulty: false };
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
                    if looks.once_in(60) {
                        look(&disk, &model, &mut looks, false);
                    }
                }
                false
            },
        );
        assert!(rig.store(1).counters().checkpoints >= 5);
    }
}

/// Branches that one run must reach (`docs/testing.md`).
const REACHED: &[&str] = &[
    "torn end cut",
    "suspect cut",
    "record of another boot_gen at the end of the chain",
    "end classified as corruption",
    "root copies differ at start: A newer",
    "one copy of a root is rotten",
    "header healed",
    "more shards than before",
    "fewer shards than before",
    "ring wraps inside a record",
    "checkpoint with held-back records",
    "commit that needed fdatasync(slot)",
    "short direct write",
    "error from a write",
    "error from a read",
    "error from a flush",
    "overwrite refused for a bad block",
    "slot re-used while the old chunk is still in the ring",
];

#[test]
fn whatever_ends_a_process_a_prefix_with_everything_acknowledged_is_left() {
    let tier = Tier::from_env("STORE_TIER");
    let count = number_from_env("STORE_SEEDS").unwrap_or(tier.pick(200, 10_000, 1_000_000));
    let (from, to) = number_from_env("STORE_SEED").map_or((1, 1 + count), |seed| (seed, seed + 1));
    let (started, twice) = (real_time(), AtomicU64::new(0));
    on_every_core(from, to, |seed| {
        let plan = Plan::new(seed);
        let mut hash = 0;
        if fails(|| hash = sequence::run(&plan)) {
            let smallest = plan.shrunk(|plan| {
                fails(|| {
                    sequence::run(plan);
                })
            });
            eprintln!("FAIL make crash SEED={seed:#x}\nsmallest that fails: {smallest}");
            sequence::run(&smallest);
            unreachable!("{smallest} failed a moment ago");
        }
        if seed % 20 == 0 {
            assert_eq!(hash, sequence::run(&plan), "{plan} leaves two traces");
            twice.fetch_add(1, Ordering::Relaxed);
        }
        true
    });
    let took = started.elapsed().as_secs_f64();
    let twice = twice.load(Ordering::Relaxed);
    println!("{} sequences, 0 violations, {twice} of them twice with equal traces; {took:.0} s", to - from);
    if to - from >= 200 {
        let hits = hits();
        println!("{hits:#?}");
        let missed: Vec<_> = REACHED.iter().filter(|name| !hits.contains_key(*name)).collect();
        assert!(missed.is_empty(), "never reached: {missed:?}");
    }
}

/// Seeds that once failed run first, each with what it was about. A change of the workload may change what
/// a seed does; the sentence says what it was about then.
const REGRESSIONS: &[(u64, &str)] = &[
    (0x126, "a checkpoint went on after another flush had failed, and its headers named children that were lost"),
    (0x55, "images of a batch that had failed went in place"),
    (0x1b, "the partial block of a re-opened chunk went in place, and its checksum was that of the block before"),
    (0x14d, "after a fence a repair of a copy that had just been installed found no checksums to compare with"),
    (0x220, "slots were named in DISK after another flush had failed, and were lost"),
    (0x4c9, "a flush succeeded beside one whose failure nobody had noticed yet, and what it promised was gone"),
    (0x701, "a checkpoint was broken off by a fence, and the next one moved the start past what it had not written"),
    (0x1d83, "held-back parts kept the journal so full that the promise that drops them had no room"),
];

#[test]
fn what_once_failed_does_not_fail_again() {
    for (seed, about) in REGRESSIONS {
        eprintln!("seed {seed:#x}: {about}");
        sequence::run(&Plan::new(*seed));
    }
}

#[test]
fn a_failing_sequence_is_made_small() {
    let fails = |plan: &Plan| {
        fails(|| {
            let _planted = Planted::new(Some(Bug::NoSlotSync));
            sequence::run(plan);
        })
    };
    let first = (1..).map(Plan::new).find(|plan| fails(plan)).unwrap();
    let smallest = first.shrunk(fails);
    println!("{first}\nshrinks to\n{smallest}");
    assert!(fails(&smallest));
    assert!(smallest.lives < first.lives && smallest.steps < first.steps, "{smallest}");
}
