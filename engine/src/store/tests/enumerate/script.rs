//! The lives that are enumerated: one of each kind of operation, in an order that meets each in its right state.

use std::cell::RefCell;
use std::rc::Rc;

use super::super::model::Model;
use super::super::rig::{Rig, config, new_disk};
use super::super::sequence::ring_bytes;
use super::super::workload::{Shared, Worker};
use super::state::Watch;
use super::steps::{LATER, SCRIPTS, Step};
use super::{SHARDS, Tally};
use crate::runtime::sim::{Rng, Sim, SimDisk};
use crate::store::canary::planted;
use crate::store::recover;

/// Runs a script twice, the second time without looking: the traces must be equal.
pub(super) fn run(seed: u64, samples: u64) -> Tally {
    let before = SHARDS[usize::try_from(seed % 4).unwrap()];
    let watch = Rc::new(RefCell::new(Watch::new(seed, before, samples)));
    let hash = live(seed, before, Some(&watch));
    assert_eq!(hash, live(seed, before, None), "script {seed:#x} runs twice and leaves two traces");
    let Ok(watch) = Rc::try_unwrap(watch) else { unreachable!("the script has ended") };
    let mut tally = watch.into_inner().tally;
    tally.scripts = 1;
    tally
}

fn live(seed: u64, before: u32, watch: Option<&Rc<RefCell<Watch>>>) -> u64 {
    let disk = new_disk();
    // By turns with the scripts, and with the numbers of shards.
    let steps = SCRIPTS[usize::try_from(seed % SCRIPTS.len() as u64).unwrap()];
    disk.set_reflink(!(seed / 5).is_multiple_of(3));
    let model: Shared = Rc::new(RefCell::new(Model::default()));
    let mut rng = Rng::new(seed, 9);
    let mut hash = format(seed, before, &disk, &model, watch);
    let rig = Rig::start_with(seed, &disk, before, ring_bytes(seed)).unwrap();
    for step in steps {
        one_step(&rig, step, &model, &mut rng, watch);
    }
    hash ^= rig.sim.trace_hash().rotate_left(1);
    // A life that begins with whatever the plug left.
    let disk = rig.cut(rng.next());
    let rig = Rig::start_with(seed, &disk, SHARDS[usize::try_from(rng.below(4)).unwrap()], ring_bytes(seed)).unwrap();
    model.borrow_mut().check(&rig, false);
    for step in LATER {
        one_step(&rig, step, &model, &mut rng, watch);
    }
    stop(&rig, &model, watch);
    hash ^ rig.sim.trace_hash().rotate_left(2)
}

/// A disk that is being made.
fn format(seed: u64, shards: u32, disk: &SimDisk, model: &Shared, watch: Option<&Rc<RefCell<Watch>>>) -> u64 {
    let sim = Sim::with_disk(seed, disk);
    let config = config(&sim, shards, ring_bytes(seed));
    let mut changes = disk.changes();
    let work = move |rt| async move { recover(&rt, &config).await.map(drop).unwrap() };
    sim.run_until(work, |_| boundary("format", disk, &mut changes, model, watch));
    sim.trace_hash()
}

fn stop(rig: &Rig, model: &Shared, watch: Option<&Rc<RefCell<Watch>>>) {
    let (disk, stores) = (rig.sim.disk(), rig.stores.clone());
    let mut changes = disk.changes();
    let work = move |_| async move {
        for store in stores {
            store.shutdown().await;
        }
    };
    rig.sim.run_until(work, |_| boundary("shutdown", &disk, &mut changes, model, watch));
}

fn one_step(rig: &Rig, step: &Step, model: &Shared, rng: &mut Rng, watch: Option<&Rc<RefCell<Watch>>>) {
    let (kind, work) = *step;
    let _named = Named(kind);
    let workers = [1, 2].map(|chunk| (chunk, rig.store(chunk), Rc::clone(model), Rng::new(rng.next(), 3)));
    // Somebody else's records in the same batches, in some steps.
    let accompanied = rng.once_in(3);
    let disk = rig.sim.disk();
    let mut changes = disk.changes();
    rig.sim.run_until(
        move |rt| async move {
            let [mut worker, mut companion] = workers.map(|(chunk, store, model, rng)| Worker {
                rt: rt.clone(),
                store,
                model,
                chunk,
                rng,
                size_max: 9000,
                churn: false,
                faulty: false,
            });
            let other = async {
                if accompanied {
                    companion.step().await;
                }
            };
            futures_util::join!(work(&mut worker), other);
            worker.store.inner.flushed().await.unwrap();
            companion.store.inner.flushed().await.unwrap();
        },
        |_| boundary(kind, &disk, &mut changes, model, watch),
    );
}

/// Says in which step a script failed.
struct Named(&'static str);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() && planted().is_none() {
            eprintln!("in step: {}", self.0);
        }
    }
}

fn boundary(
    kind: &'static str,
    disk: &SimDisk,
    changes: &mut u64,
    model: &Shared,
    watch: Option<&Rc<RefCell<Watch>>>,
) -> bool {
    if disk.changes() != std::mem::replace(changes, disk.changes())
        && let Some(watch) = watch
    {
        watch.borrow_mut().boundary(kind, disk, model);
    }
    false
}
