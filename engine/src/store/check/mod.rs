//! `fsck`: everything on a disk is read and judged, and nothing is changed.
//!
//! ```text
//! survey   DISK, journals record by record, then recovery itself, on an overlay that lives in memory
//! slot     each trailer as it is on the disk; each content as that recovery leaves it
//! report   what was found, and the verdict; pure
//! ```
//!
//! Because it is the real recovery that runs, chunks are judged as the next start would find them, and
//! a record of a new type needs nothing here. Memory: what a server needs to start on this disk, and a
//! megabyte for each slot in flight.

mod overlay;
mod report;
mod slot;
mod survey;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};

use wire::ChunkHandle;

pub use report::{ChunkFacts, DiskReport, JournalEnd, JournalReport, Problem, SlotReport, Verdict, Why};
pub(crate) use slot::{Trailer, check_slot, name, named};
pub(crate) use survey::{Plan, said, survey};

use super::{DiskLock, OpenError};
use crate::runtime::monoio::{Epoll, MonoioRuntime};
use crate::runtime::shard::{ShardConfig, Spawn};
pub(crate) use overlay::Overlay;

/// What tools run on: it needs no io_uring, and reads that block are what several threads are for.
type ToolRuntime = MonoioRuntime<Epoll>;

/// Buffers of one thread.
const MEMORY: usize = 16 << 20;

/// Reports that wait to be taken.
const WAITING: usize = 64;

/// What to look at, and how.
#[derive(Clone, Copy, Debug)]
pub struct CheckOptions {
    /// Slots that are read at the same time, at least one; each is a thread.
    pub jobs: u32,
    /// Only the slots that hold this chunk.
    pub chunk: Option<ChunkHandle>,
}

/// What is told while a disk is looked at.
#[derive(Debug)]
pub enum CheckEvent {
    /// First, once: the disk but for its slots.
    Disk(Box<DiskReport>),
    /// So many bytes of slots were read.
    Read(u64),
    /// One slot. They come in the order of their numbers.
    Slot(Box<SlotReport>),
}

/// Looks at a whole disk and changes nothing. Blocks until everything was read. Holds the disk's lock
/// meanwhile. Runs on threads of its own and without io_uring. `tell` hears of everything in order, and
/// ends it early when it breaks.
///
/// # Errors
///
/// There is no disk, another process uses it, or it does not answer at all. Damage is no error.
pub fn check(
    root: &Path,
    options: CheckOptions,
    mut tell: impl FnMut(CheckEvent) -> ControlFlow<()>,
) -> Result<(), OpenError> {
    let _lock = DiskLock::of_existing(root)?;
    let folder = root.to_owned();
    let (report, plan) = on_shard(move |rt| async move { survey(&rt, &folder).await })??;
    if tell(CheckEvent::Disk(Box::new(report))).is_break() {
        return Ok(());
    }
    let slots: Vec<u32> = match options.chunk {
        None => (0..plan.slots).collect(),
        Some(chunk) => holding(&plan, chunk),
    };
    let (plan, slots, next) = (Arc::new(plan), Arc::new(slots), Arc::new(AtomicU32::new(0)));
    let (sender, events) = mpsc::sync_channel(WAITING);
    let mut threads = Vec::new();
    for index in 0..options.jobs.max(1).min(u32::try_from(slots.len()).unwrap_or(u32::MAX)) {
        let (plan, slots, next) = (Arc::clone(&plan), Arc::clone(&slots), Arc::clone(&next));
        let sender = sender.clone();
        let config = ShardConfig { index, core: None, memory: MEMORY };
        let thread = ToolRuntime::spawn_shard(config, move |rt| look_at(rt, plan, slots, next, sender));
        threads.push(thread.map_err(|error| OpenError::io("cannot start a thread", &error))?);
    }
    drop(sender);
    // Taking fewer than all drops the receiver, and with it every thread's reason to go on.
    let told = in_order(events, &slots, &mut tell);
    for thread in threads {
        let ended = thread.join().map_err(|_| OpenError::new("a thread that read slots died", "run it again"))?;
        ended.map_err(|error| OpenError::io("cannot read the slots", &error))?;
    }
    match told {
        ControlFlow::Break(()) | ControlFlow::Continue(None) => Ok(()),
        ControlFlow::Continue(Some(slot)) => {
            Err(OpenError::new(format!("slot {slot} was not looked at"), "run it again"))
        }
    }
}

/// Hands events on, slots in their order; gives the first slot that never came.
fn in_order(
    events: Receiver<CheckEvent>,
    slots: &[u32],
    tell: &mut impl FnMut(CheckEvent) -> ControlFlow<()>,
) -> ControlFlow<(), Option<u32>> {
    let mut waiting: BTreeMap<u32, Box<SlotReport>> = BTreeMap::new();
    let mut wanted = slots.iter();
    let mut expected = wanted.next();
    for event in events {
        let CheckEvent::Slot(report) = event else {
            tell(event)?;
            continue;
        };
        waiting.insert(report.slot, report);
        while let Some(report) = expected.and_then(|slot| waiting.remove(slot)) {
            tell(CheckEvent::Slot(report))?;
            expected = wanted.next();
        }
    }
    ControlFlow::Continue(expected.copied())
}

/// Slots that hold a chunk; those whose headers are lost might.
fn holding(plan: &Plan, chunk: ChunkHandle) -> Vec<u32> {
    match &plan.seeds {
        Some(seeds) => seeds.iter().filter(|(_, seed)| seed.hdr.chunk() == chunk).map(|(slot, _)| *slot).collect(),
        None => (0..plan.slots).collect(),
    }
}

/// One thread: slots, one after the other, until none is left.
async fn look_at(
    rt: ToolRuntime,
    plan: Arc<Plan>,
    slots: Arc<Vec<u32>>,
    next: Arc<AtomicU32>,
    sender: SyncSender<CheckEvent>,
) {
    let over = Overlay::new(rt.clone(), Arc::clone(&plan.written));
    loop {
        let index = next.fetch_add(1, Ordering::Relaxed) as usize;
        let Some(slot) = slots.get(index) else { return };
        // Whoever listened may have had enough; the slot's own report finds that out.
        let read = |bytes| drop(sender.send(CheckEvent::Read(bytes)));
        let report = check_slot(&rt, &over, &plan, *slot, &read).await;
        if sender.send(CheckEvent::Slot(Box::new(report))).is_err() {
            return;
        }
    }
}

/// Runs something on a thread with a runtime that works everywhere, and waits for it.
///
/// # Errors
///
/// The thread could not be made, or died.
pub(crate) fn on_shard<T, W>(work: impl FnOnce(ToolRuntime) -> W + Send + 'static) -> Result<T, OpenError>
where
    T: Send + 'static,
    W: Future<Output = T> + 'static,
{
    let failed = |error: std::io::Error| OpenError::io("cannot start a thread", &error);
    let (sender, answer) = mpsc::sync_channel(1);
    let config = ShardConfig { index: 0, core: None, memory: MEMORY };
    let thread = ToolRuntime::spawn_shard(config, move |rt| async move {
        let output = work(rt).await;
        // Who asked waits for it.
        let _ = sender.send(output);
    });
    let ended = thread.map_err(failed)?.join();
    ended.map_err(|_| OpenError::new("the thread that reads the disk died", "run it again"))?.map_err(failed)?;
    answer.recv().map_err(|_| OpenError::new("the thread that reads the disk gave no answer", "run it again"))
}
