//! The scheduler of a simulation: one thread, a virtual clock, and a seed that decides who goes next.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use super::disk::SimDisk;
use super::net::Net;
use super::rng::{Rng, mix};

/// Events kept for the report of a failure.
const RECENT: usize = 200;

/// A process of the simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

/// Everything that a simulation is made of. Held by every runtime in it.
pub(super) struct Core {
    pub(super) seed: u64,
    pub(super) now: Cell<Duration>,
    pub(super) disks: RefCell<BTreeMap<PathBuf, SimDisk>>,
    pub(super) net: RefCell<Net>,
    pub(super) disk_rng: RefCell<Rng>,
    pub(super) net_rng: RefCell<Rng>,
    /// What programs ask for.
    pub(super) random_rng: RefCell<Rng>,
    pub(super) nodes: Cell<u32>,
    scheduler: RefCell<Rng>,
    tasks: RefCell<BTreeMap<u64, Task>>,
    next_task: Cell<u64>,
    ready: Arc<Ready>,
    events: RefCell<BTreeMap<(Duration, u64, u64), Event>>,
    next_event: Cell<u64>,
    hash: Cell<u64>,
    steps: Cell<u64>,
    recent: RefCell<VecDeque<Traced>>,
    dead: RefCell<Vec<NodeId>>,
}

/// An event of the trace; its `Display` is a line for people.
struct Traced {
    at: Duration,
    node: NodeId,
    kind: &'static str,
    text: Option<Box<str>>,
    numbers: [u64; 4],
}

impl fmt::Display for Traced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.text.as_deref().unwrap_or("");
        write!(f, "{:?} node {} {} {:?} {text}", self.at, self.node.0, self.kind, self.numbers)
    }
}

struct Task {
    node: NodeId,
    /// `None` while it is polled.
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    flag: Arc<TaskFlag>,
}

/// What happens at a time.
enum Event {
    Wake(Waker),
    Act(Box<dyn FnOnce()>),
}

#[derive(Default)]
struct Ready(Mutex<Vec<u64>>);

struct TaskFlag {
    task: u64,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for TaskFlag {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.ready.0.lock().unwrap_or_else(PoisonError::into_inner).push(self.task);
        }
    }
}

impl Core {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            now: Cell::default(),
            disks: RefCell::default(),
            net: RefCell::default(),
            disk_rng: RefCell::new(Rng::new(seed, 1)),
            net_rng: RefCell::new(Rng::new(seed, 2)),
            random_rng: RefCell::new(Rng::new(seed, 4)),
            nodes: Cell::new(0),
            scheduler: RefCell::new(Rng::new(seed, 3)),
            tasks: RefCell::default(),
            next_task: Cell::new(0),
            ready: Arc::default(),
            events: RefCell::default(),
            next_event: Cell::new(0),
            hash: Cell::new(seed),
            steps: Cell::new(0),
            recent: RefCell::default(),
            dead: RefCell::default(),
        }
    }

    pub(super) fn spawn(&self, node: NodeId, future: impl Future<Output = ()> + 'static) {
        if self.dead.borrow().contains(&node) {
            return;
        }
        let id = self.next_task.get();
        self.next_task.set(id + 1);
        let flag = Arc::new(TaskFlag { task: id, queued: AtomicBool::new(false), ready: Arc::clone(&self.ready) });
        Arc::clone(&flag).wake();
        self.tasks.borrow_mut().insert(id, Task { node, future: Some(Box::pin(future)), flag });
    }

    /// Wakes at a time; gives what [`Core::cancel`] takes.
    pub(super) fn wake_at(&self, at: Duration, waker: Waker) -> (Duration, u64, u64) {
        self.push(at, Event::Wake(waker))
    }

    /// Does something at a time, whoever has lost interest until then.
    pub(super) fn act_at(&self, at: Duration, act: impl FnOnce() + 'static) {
        self.push(at, Event::Act(Box::new(act)));
    }

    pub(super) fn cancel(&self, key: (Duration, u64, u64)) {
        let event = self.events.borrow_mut().remove(&key);
        drop(event);
    }

    fn push(&self, at: Duration, event: Event) -> (Duration, u64, u64) {
        let number = self.next_event.get();
        self.next_event.set(number + 1);
        // Events of one instant come in an order of the seed's.
        let key = (at.max(self.now.get()), self.scheduler.borrow_mut().next(), number);
        self.events.borrow_mut().insert(key, event);
        key
    }

    /// Puts an event into the trace; at most four numbers.
    pub(super) fn trace(&self, kind: &'static str, node: NodeId, numbers: &[u64]) {
        self.record(kind, node, numbers, None);
    }

    /// As [`Core::trace`], with words.
    pub(super) fn trace_text(&self, kind: &'static str, node: NodeId, text: &str) {
        self.record(kind, node, &[], Some(text.into()));
    }

    fn record(&self, kind: &'static str, node: NodeId, numbers: &[u64], text: Option<Box<str>>) {
        let at = self.now.get();
        let bytes = kind.bytes().chain(text.iter().flat_map(|text| text.bytes())).map(u64::from);
        let stamp = [u64::try_from(at.as_nanos()).unwrap_or(u64::MAX), u64::from(node.0)];
        let hash = bytes.chain(stamp).chain(numbers.iter().copied());
        self.hash.set(hash.fold(self.hash.get(), |hash, number| mix(hash ^ number).wrapping_add(number)));
        let mut kept = [0; 4];
        for (kept, number) in kept.iter_mut().zip(numbers) {
            *kept = *number;
        }
        let mut recent = self.recent.borrow_mut();
        if recent.len() == RECENT {
            recent.pop_front();
        }
        recent.push_back(Traced { at, node, kind, text, numbers: kept });
    }

    /// One task is polled, or, when none is ready, the clock jumps and one event happens. False when
    /// there is nothing left to do.
    pub(super) fn step(&self) -> bool {
        self.steps.set(self.steps.get() + 1);
        if let Some(task) = self.pick() {
            self.poll(task);
            return true;
        }
        let Some(((at, _, _), event)) = self.events.borrow_mut().pop_first() else { return false };
        self.now.set(at);
        match event {
            Event::Wake(waker) => waker.wake(),
            Event::Act(act) => act(),
        }
        true
    }

    fn pick(&self) -> Option<u64> {
        let mut ready = self.ready.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ready.is_empty() {
            return None;
        }
        let index = usize::try_from(self.scheduler.borrow_mut().below(ready.len() as u64)).unwrap_or(0);
        Some(ready.swap_remove(index))
    }

    fn poll(&self, id: u64) {
        let (node, mut future, flag) = {
            let mut tasks = self.tasks.borrow_mut();
            let Some(task) = tasks.get_mut(&id) else { return };
            let Some(future) = task.future.take() else { return };
            (task.node, future, Arc::clone(&task.flag))
        };
        self.trace("poll", node, &[id]);
        flag.queued.store(false, Ordering::Release);
        let waker = Waker::from(flag);
        let done = future.as_mut().poll(&mut Context::from_waker(&waker)) == Poll::Ready(());
        let dead = self.dead.borrow().contains(&node);
        if done || dead {
            self.tasks.borrow_mut().remove(&id);
        } else if let Some(task) = self.tasks.borrow_mut().get_mut(&id) {
            task.future = Some(future);
            return;
        }
        drop(future);
    }

    /// Drops every task of a process and all they hold; its later spawns are ignored.
    pub(super) fn kill(&self, node: NodeId) {
        self.dead.borrow_mut().push(node);
        let ids: Vec<u64> =
            self.tasks.borrow().iter().filter(|(_, task)| task.node == node).map(|(id, _)| *id).collect();
        for id in ids {
            // The running task is out of the map's reach and is dropped when its poll returns.
            let running = self.tasks.borrow().get(&id).is_some_and(|task| task.future.is_none());
            if !running {
                let task = self.tasks.borrow_mut().remove(&id);
                drop(task);
            }
        }
    }

    /// Drops every task and event: they hold this core.
    pub(super) fn clear(&self) {
        loop {
            let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
            let events = std::mem::take(&mut *self.events.borrow_mut());
            if tasks.is_empty() && events.is_empty() {
                return;
            }
        }
    }

    pub(super) fn tasks(&self, node: NodeId) -> usize {
        self.tasks.borrow().values().filter(|task| task.node == node).count()
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash.get()
    }

    pub(super) fn steps(&self) -> u64 {
        self.steps.get()
    }

    pub(super) fn recent(&self) -> Vec<String> {
        self.recent.borrow().iter().map(ToString::to_string).collect()
    }
}
