//! A life of the process: recovers, notes what it found, works.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Barrier, Mutex};

use engine::runtime::Runtime;
use engine::runtime::shard::Spawn;
use engine::runtime::sim::Rng;
use engine::store::{Counters, Recovered, ShardSeed, Store, StoreError, Upto};
use wire::{ChunkHandle, Epoch};

use crate::Verdict;
use crate::check::{Seen, found, is_of, see};
use crate::disk::{TERM, open, plant, start};
use crate::history::{Histories, Life, Log, Snap};
use crate::options::Options;
use crate::worker::{Common, Worker};

/// What the shards of a life share.
struct Shift {
    options: Options,
    log: Arc<Log>,
    histories: Histories,
    summary: engine::store::RecoverySummary,
    /// Every shard's chunks, once all have looked.
    seen: Mutex<BTreeMap<u64, Seen>>,
    looked: Barrier,
}

/// What a shard did.
struct Done {
    acks: u64,
    acks_after: u64,
    counters: Counters,
    fault: Option<StoreError>,
    /// Calls that were not refused after the fault.
    answered_after: Vec<&'static str>,
    broken: Option<String>,
}

pub(crate) fn run<R: Spawn>(options: &Options) -> Verdict {
    let path = options.log.as_deref().unwrap();
    let histories = Histories::read(path, u64::MAX);
    let (_lock, Recovered { seeds, summary, .. }) = match open::<R>(options) {
        Ok(opened) => opened,
        Err(error) => return Verdict::Failed(format!("refused: {error}; remedy: {}", error.remedy)),
    };
    let shift = Arc::new(Shift {
        options: options.clone(),
        log: Arc::new(Log::append_to(path, options.position.as_deref())),
        histories,
        summary,
        seen: Mutex::default(),
        looked: Barrier::new(seeds.len()),
    });
    let joins: Vec<_> = (0..)
        .zip(seeds)
        .map(|(shard, seed)| {
            let shift = Arc::clone(&shift);
            start::<R, _, _>(shard, move |rt| on_shard(rt, shard, seed, shift))
        })
        .collect();
    verdict(joins.into_iter().map(|join| join()).collect(), path)
}

fn verdict(shards: Vec<Done>, log: &Path) -> Verdict {
    let sum = |of: fn(&Done) -> u64| shards.iter().map(of).sum::<u64>();
    let (acks, after) = (sum(|done| done.acks), sum(|done| done.acks_after));
    if let Some(what) = shards.iter().find_map(|done| done.broken.as_ref()) {
        return Verdict::Broken(format!("LOST: {what} ({})", log.display()));
    }
    let worked = format!(
        "{acks} acknowledged, {} groups, {} slot syncs, {} checkpoints",
        sum(|done| done.counters.groups),
        sum(|done| done.counters.slot_syncs),
        sum(|done| done.counters.checkpoints)
    );
    match shards.iter().find_map(|done| done.fault.as_ref()) {
        None => Verdict::Kept(format!("worked: {worked}")),
        Some(StoreError::Fenced(cause)) => {
            let answered: Vec<&str> = shards.iter().flat_map(|done| done.answered_after.iter().copied()).collect();
            if after > 0 || !answered.is_empty() {
                return Verdict::Broken(format!("WRONG: after the fence: {after} acknowledged, answered {answered:?}"));
            }
            Verdict::Failed(format!("fenced: {cause}; {worked}"))
        }
        Some(error) => Verdict::Failed(format!("failed: {error}; {worked}")),
    }
}

async fn on_shard<R: Runtime>(rt: R, shard: u32, seed: ShardSeed, shift: Arc<Shift>) -> Done {
    plant(&shift.options);
    let store = Store::start(rt.clone(), seed).await.unwrap();
    let before = see(&store).await;
    shift.seen.lock().unwrap().extend(before);
    // Chunks move between shards from life to life: whoever writes the log knows all of them.
    shift.looked.wait();
    let common = Rc::new(Common {
        log: Arc::clone(&shift.log),
        handles: RefCell::new(handles(&shift, shard)),
        fault: RefCell::default(),
        acks: Cell::new(0),
        settled: Cell::new(false),
        acks_after: Cell::new(0),
    });
    let outcome = work(&rt, &store, shard, &shift, &common).await;
    let fault = common.fault.borrow().clone();
    let mut answered_after = Vec::new();
    if matches!(fault, Some(StoreError::Fenced(_))) {
        answered_after = answers(&store).await;
    } else if fault.is_none() && !shift.options.leave {
        // Otherwise the shard waits for its tasks, the last of which marks the journal as flushed.
        store.shutdown().await;
    }
    Done {
        acks: common.acks.get(),
        acks_after: common.acks_after.get(),
        counters: store.counters(),
        fault,
        answered_after,
        broken: outcome.err(),
    }
}

/// Handles of this shard that no life before has used.
fn handles(shift: &Shift, shard: u32) -> Box<dyn Iterator<Item = u64>> {
    let first = shift.histories.chunks.keys().next_back().copied().unwrap_or(0) + 1;
    let shards = shift.options.shards;
    Box::new((first..).filter(move |chunk| is_of(*chunk, shards, shard)))
}

/// Notes what is there, then works on it and on new chunks. An error: what was acknowledged is not
/// there.
async fn work<R: Runtime>(
    rt: &R,
    store: &Store<R>,
    shard: u32,
    shift: &Shift,
    common: &Rc<Common>,
) -> Result<(), String> {
    let options = &shift.options;
    let mut workers = Vec::new();
    {
        let seen = shift.seen.lock().unwrap();
        let mine = shift.histories.chunks.iter().filter(|(chunk, _)| is_of(**chunk, options.shards, shard));
        for (chunk, history) in mine {
            let number = found(*chunk, history, seen.get(chunk), &shift.summary)?;
            let mut now = history.snaps[number - history.first].clone();
            now.promised = seen.get(chunk).map_or(now.promised, |seen| seen.view.promised.0);
            shift.log.found(*chunk, number, now.promised);
            if now.life != Life::Absent {
                workers.push((*chunk, now, number));
            }
        }
    }
    while workers.len() < options.workers {
        let chunk = common.handles.borrow_mut().next().ok_or("no more handles")?;
        workers.push((chunk, Snap::ABSENT, 0));
    }
    let workers = workers.into_iter().map(|(chunk, now, number)| Worker {
        rt: rt.clone(),
        store: store.clone(),
        common: Rc::clone(common),
        rng: Rng::new(options.seed, chunk),
        size_max: options.size_max,
        chunk,
        restarted: number > 0,
        now,
        number,
        pending: Vec::new(),
    });
    let steps = options.steps;
    futures_util::future::join_all(workers.map(|worker| worker.run(steps))).await;
    Ok(())
}

/// Calls that a fenced disk should have refused and did not.
async fn answers<R: Runtime>(store: &Store<R>) -> Vec<&'static str> {
    let mut answered = Vec::new();
    let Some(chunk) = store.chunks().into_iter().next() else { return answered };
    let fenced = |error| matches!(error, StoreError::Fenced(_));
    let mut note = |what, refused: bool| answered.extend((!refused).then_some(what));
    note("read", store.read(chunk, 0, 4096, Upto::Durable).await.err().is_some_and(fenced));
    note("reserve", store.reserve(chunk, 1 << 20).await.err().is_some_and(fenced));
    note("prepare", store.prepare(TERM, chunk, Epoch(900)).await.err().is_some_and(fenced));
    note("condemn", store.condemn(TERM, chunk, 9, 1).await.err().is_some_and(fenced));
    note("free", store.free(TERM, ChunkHandle(u64::MAX), 9).await.err().is_some_and(fenced));
    answered
}
