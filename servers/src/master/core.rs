//! The master's one line of decisions: a queue of changes, a thread that applies them in order, the
//! log that makes them durable, and only then the answers.
//!
//! Readers look at the state under a shared lock and wait until what they saw is durable: nobody
//! ever sees what a crash could take back.

use std::fs::File;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};
use wire::{ClusterId, Fault, Kind, Term};

use super::entry::{Answer, Change, Effect, Lsn};
use super::oplog::{self, Log, LogHandle, LogStats};
use super::state::State;
use super::store::Store;
use crate::StartError;
use crate::clock;

/// Changes waiting to be applied; beyond it callers are told to come back later.
const QUEUE_MAX: usize = 8192;
/// Changes applied under one lock: readers get their turn in between.
const GROUP_MAX: usize = 128;
/// A checkpoint is written early when this many rows have changed: taking them holds appliers up.
const DIRTY_MAX: usize = 50_000;

/// Where the log is in the data directory, and the checkpoint.
const LOG: &str = "oplog";
const STORE: &str = "checkpoint.db";

/// What happened to a change.
type Outcome = Result<Answer, Fault>;

enum Command {
    Change { change: Change, reply: oneshot::Sender<(Outcome, Lsn)> },
    Stop,
}

/// Goes through the log with an entry, and comes back when it is durable.
struct Ack {
    lsn: Lsn,
    reply: oneshot::Sender<(Outcome, Lsn)>,
    answer: Answer,
    effects: Vec<Effect>,
}

/// The master's state and the way to change it.
#[derive(Debug)]
pub struct Core {
    state: Arc<RwLock<State>>,
    commands: mpsc::Sender<Command>,
    durable: watch::Receiver<Lsn>,
    log: LogHandle,
    checkpoints: Arc<Checkpoints>,
}

/// Numbers of the checkpoint, for metrics.
#[derive(Debug, Default)]
struct Checkpoints {
    written: AtomicU64,
    upto: AtomicU64,
    stop: Mutex<Option<Ending>>,
    wake: Condvar,
    soon: AtomicBool,
}

/// How the core ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With a last checkpoint, so that the next start has nothing to replay.
    Orderly,
    /// Without, as a crash would leave it.
    Abrupt,
}

/// The threads behind a [`Core`].
#[derive(Debug)]
pub struct Threads {
    commands: mpsc::Sender<Command>,
    apply: JoinHandle<()>,
    checkpoint: JoinHandle<()>,
    checkpoints: Arc<Checkpoints>,
}

/// A core that has just been started.
#[derive(Debug)]
pub struct Started {
    /// The core.
    pub core: Core,
    /// Its threads, to be ended by [`Threads::stop`].
    pub threads: Threads,
    /// What must happen outside, as entries become durable.
    pub effects: mpsc::Receiver<Effect>,
}

impl Core {
    /// Opens the state in `dir`, replays the log, begins a new term.
    ///
    /// # Errors
    ///
    /// [`StartError`] for a state that is damaged, incomplete or of another format. Nothing is
    /// repaired by guessing, and nothing is deleted.
    pub fn start(dir: &Path, checkpoint_every: Duration, boot: u64) -> Result<Started, StartError> {
        let (store, state, replayed) = recover(dir)?;
        let uuid = replayed.uuid();
        let (effects_in, effects) = mpsc::channel(QUEUE_MAX);
        let (durable_in, durable) = watch::channel(replayed.last());
        let saved = state.applied();
        let state = Arc::new(RwLock::new(state));
        let log = Log::start(replayed, boot, move |lsn, acks: Vec<Ack>| {
            durable_in.send_replace(lsn);
            acks.into_iter().for_each(|ack| answer(ack, &effects_in));
        });
        let log = log.map_err(damaged)?;
        // Only now: a checkpoint without a log is refused, and a crash in between must not look like one.
        let store = store.map_or_else(|| Store::open(&dir.join(STORE)), Ok).map_err(damaged)?;
        // Its name must be as durable as its content: the log before it is going to be removed.
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(damaged)?;
        let handle = log.handle();
        let (commands, queue) = mpsc::channel(QUEUE_MAX);
        let stop = commands.clone();
        let checkpoints = Arc::new(Checkpoints::default());
        checkpoints.upto.store(saved, Ordering::Relaxed);
        let applier = Applier { state: Arc::clone(&state), log, queue, checkpoints: Arc::clone(&checkpoints) };
        let mut saver = Saver {
            state: Arc::clone(&state),
            store,
            uuid,
            log: handle.clone(),
            durable: durable.clone(),
            checkpoints: Arc::clone(&checkpoints),
            every: checkpoint_every,
            previous: 0,
        };
        let thread = |name: &str| std::thread::Builder::new().name(name.into());
        let failed =
            |error| StartError::unavailable(format!("cannot start a thread: {error}"), "raise the process limit");
        let apply = thread("apply").spawn(move || applier.run()).map_err(failed)?;
        let checkpoint = thread("checkpoint").spawn(move || saver.run()).map_err(failed)?;
        let core = Self { state, commands, durable, log: handle, checkpoints: Arc::clone(&checkpoints) };
        Ok(Started { core, threads: Threads { commands: stop, apply, checkpoint, checkpoints }, effects })
    }

    /// Changes the state. The answer is durable. Dropping the future does not take the change back.
    ///
    /// # Errors
    ///
    /// The refusal of [`State::apply`]; `Overloaded` when too many changes wait.
    pub async fn submit(&self, change: Change) -> Outcome {
        let (reply, outcome) = oneshot::channel();
        match self.commands.try_send(Command::Change { change, reply }) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                return Err(Fault::new(Kind::Overloaded, "the master has too many changes waiting: try again"));
            }
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(stopping()),
        }
        let (outcome, seen) = outcome.await.map_err(|_| stopping())?;
        self.wait_durable(seen).await?;
        outcome
    }

    /// Asks the state, and waits until what was seen is durable. `question` must be quick: it holds
    /// changes up.
    ///
    /// # Errors
    ///
    /// `Unavailable` while the master stops.
    pub async fn ask<T>(&self, question: impl FnOnce(&State) -> T) -> Result<T, Fault> {
        let (answer, seen) = {
            let state = self.read();
            (question(&state), state.applied())
        };
        self.wait_durable(seen).await?;
        Ok(answer)
    }

    /// Looks at the state without waiting: for decisions that only lead to new entries, and for numbers.
    pub fn look<T>(&self, question: impl FnOnce(&State) -> T) -> T {
        question(&self.read())
    }

    /// Numbers of the log.
    #[must_use]
    pub fn log_stats(&self) -> LogStats {
        self.log.stats()
    }

    /// Checkpoints written in this life, and the entry the last one goes up to.
    #[must_use]
    pub fn checkpoint_stats(&self) -> (u64, Lsn) {
        (self.checkpoints.written.load(Ordering::Relaxed), self.checkpoints.upto.load(Ordering::Relaxed))
    }

    async fn wait_durable(&self, seen: Lsn) -> Result<(), Fault> {
        let mut durable = self.durable.clone();
        durable.wait_for(|durable| *durable >= seen).await.map(drop).map_err(|_| stopping())
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Threads {
    /// Ends the threads. Changes queued before this are made durable and answered, later ones refused.
    pub async fn stop(self, ending: Ending) {
        let Self { commands, apply, checkpoint, checkpoints } = self;
        let _ = commands.send(Command::Stop).await;
        let joined = tokio::task::spawn_blocking(move || {
            let _ = apply.join();
            *checkpoints.stop.lock().unwrap_or_else(PoisonError::into_inner) = Some(ending);
            checkpoints.wake.notify_all();
            let _ = checkpoint.join();
        });
        let _ = joined.await;
    }
}

fn stopping() -> Fault {
    Fault::new(Kind::Unavailable, "the master is stopping: ask again, or another one")
}

fn answer(ack: Ack, effects: &mpsc::Sender<Effect>) {
    for effect in ack.effects {
        // Without a receiver the master is stopping, and the next one finds the same work to do.
        let _ = effects.blocking_send(effect);
    }
    // A caller that gave up may ask again and gets the remembered answer.
    let _ = ack.reply.send((Ok(ack.answer), ack.lsn));
}

/// The thread that applies.
struct Applier {
    state: Arc<RwLock<State>>,
    log: Log<Ack>,
    queue: mpsc::Receiver<Command>,
    checkpoints: Arc<Checkpoints>,
}

impl Applier {
    fn run(mut self) {
        let mut group = Vec::with_capacity(GROUP_MAX);
        while let Some(first) = self.queue.blocking_recv() {
            group.push(first);
            while group.len() < GROUP_MAX
                && let Ok(next) = self.queue.try_recv()
            {
                group.push(next);
            }
            if self.apply(&mut group).is_break() {
                break;
            }
        }
        self.log.stop();
    }

    fn apply(&mut self, group: &mut Vec<Command>) -> ControlFlow<()> {
        let mut flow = ControlFlow::Continue(());
        let mut accepted = Vec::with_capacity(group.len());
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        for command in group.drain(..) {
            let Command::Change { change, reply } = command else {
                flow = ControlFlow::Break(());
                break;
            };
            if let Some(answer) = change.request().and_then(|request| state.remembered(request)) {
                let _ = reply.send((Ok(answer.clone()), state.applied()));
                continue;
            }
            let entry = state.stamp(change, clock::unix_ms());
            let lsn = state.applied() + 1;
            match state.apply(lsn, &entry) {
                Ok(applied) => {
                    accepted.push((entry, Ack { lsn, reply, answer: applied.answer, effects: applied.effects }));
                }
                Err(fault) => drop(reply.send((Err(fault), lsn - 1))),
            }
        }
        let dirty = state.dirty_count();
        drop(state);
        for (entry, ack) in accepted {
            self.log.append(entry, ack);
        }
        if dirty > DIRTY_MAX && !self.checkpoints.soon.swap(true, Ordering::Relaxed) {
            self.checkpoints.wake.notify_all();
        }
        flow
    }
}

/// The thread that writes checkpoints.
struct Saver {
    state: Arc<RwLock<State>>,
    store: Store,
    uuid: [u8; 16],
    log: LogHandle,
    durable: watch::Receiver<Lsn>,
    checkpoints: Arc<Checkpoints>,
    every: Duration,
    /// What the checkpoint before the last one covers: the log is kept from there.
    previous: Lsn,
}

impl Saver {
    fn run(&mut self) {
        loop {
            let ending = self.wait();
            if ending == Some(Ending::Abrupt) {
                return;
            }
            self.save();
            if ending.is_some() {
                return;
            }
        }
    }

    /// Sleeps until the next checkpoint is due, or the end.
    fn wait(&self) -> Option<Ending> {
        let stop = self.checkpoints.stop.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = |stop: &mut Option<Ending>| stop.is_none() && !self.checkpoints.soon.load(Ordering::Relaxed);
        let (stop, _) =
            self.checkpoints.wake.wait_timeout_while(stop, self.every, idle).unwrap_or_else(PoisonError::into_inner);
        *stop
    }

    fn save(&mut self) {
        self.checkpoints.soon.store(false, Ordering::Relaxed);
        let (rows, applied) = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            if state.applied() == self.checkpoints.upto.load(Ordering::Relaxed) {
                return;
            }
            (state.take_dirty(), state.applied())
        };
        // The checkpoint must never be ahead of the log. The log ends only with the process, or empty.
        while *self.durable.borrow() < applied {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        if let Err(error) = self.store.save(self.uuid, applied, &rows) {
            // The rows are gone from the state's list of changes: going on would leave holes.
            panic!("the checkpoint cannot be written: {error}");
        }
        let last = self.checkpoints.upto.swap(applied, Ordering::Relaxed);
        self.checkpoints.written.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = self.log.prune(self.previous) {
            warn!(%error, "old segments of the operation log stay");
        }
        self.previous = last;
    }
}

/// Opens checkpoint and log, replays, and begins a term.
fn recover(dir: &Path) -> Result<(Option<Store>, State, oplog::Replayed), StartError> {
    let (log_dir, store_path) = (dir.join(LOG), dir.join(STORE));
    let has_store = store_path.try_exists().map_err(damaged)?;
    let has_log = oplog::exists(&log_dir).map_err(damaged)?;
    if has_store && !has_log {
        return Err(damaged(format!("{} is there and the operation log is not", store_path.display())));
    }
    let store = if has_store { Some(Store::open(&store_path).map_err(damaged)?) } else { None };
    let loaded = store.as_ref().map_or(Ok(None), Store::load).map_err(damaged)?;
    let (mut state, uuid) = loaded.map_or((State::default(), None), |(state, uuid)| (state, Some(uuid)));
    let from = state.applied();
    let replayed = if has_log {
        oplog::replay(&log_dir, from, |lsn, entry| state.apply(lsn, &entry).map(drop).map_err(|fault| fault.text))
    } else {
        oplog::create(&log_dir, random())
    };
    let replayed = replayed.map_err(damaged)?;
    if uuid.is_some_and(|uuid| uuid != replayed.uuid()) {
        return Err(damaged("the checkpoint belongs to another operation log"));
    }
    info!(entries = replayed.last(), replayed = replayed.last() - from, torn = replayed.torn, "state recovered");
    Ok((store, state, replayed))
}

/// Founds the cluster if need be, and begins a new term. The first entries of every life.
///
/// # Errors
///
/// The refusal of the state, which would be a bug.
pub async fn begin(core: &Core) -> Result<(ClusterId, Term), Fault> {
    let (cluster, term) = core.look(|state| (state.cluster(), state.term()));
    if cluster == ClusterId::default() {
        core.submit(Change::Found { cluster: ClusterId(random()) }).await?;
    }
    let term = Term(term.0 + 1);
    core.submit(Change::Term { term }).await?;
    Ok((core.look(State::cluster), term))
}

/// Random bytes that are not all zero.
pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    while bytes == [0; N] {
        if let Err(error) = getrandom::fill(&mut bytes) {
            panic!("the kernel gives no random bytes: {error}");
        }
    }
    bytes
}

fn damaged(error: impl std::fmt::Display) -> StartError {
    StartError::config(
        format!("the master's state cannot be used: {error}"),
        "nothing was changed. Restore the data directory from a backup or a standby, or give back the missing files; \
         never start the master on a part of them",
    )
}
