//! What all parts of a running master share.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::member::Member;
use wire::{ChunkHandle, ClusterId, Fault, InodeId, ServerId, Term};

use super::Config;
use super::core::Core;
use super::metrics::Counters;
use super::peers::{Identity, Peers};
use super::soft::Soft;
use super::state::State;
use crate::door::Door;

/// The outcome of opening a chunk, once there is one.
pub(super) type Opening = watch::Receiver<Option<Result<(), Fault>>>;

/// A running master.
#[derive(Debug)]
pub(super) struct Master {
    pub(super) config: Config,
    pub(super) core: Core,
    pub(super) identity: Identity,
    pub(super) peers: Peers,
    pub(super) door: Door,
    /// Handles below this were given out in an earlier life.
    pub(super) first_chunk: ChunkHandle,
    pub(super) started: Duration,
    pub(super) admin: Mutex<String>,
    pub(super) counters: Counters,
    soft: Mutex<Soft>,
    changed: watch::Sender<u64>,
    /// Files whose next chunk is being opened.
    pub(super) opening: Mutex<HashMap<InodeId, Opening>>,
    /// Sealed chunks that are being re-opened.
    pub(super) reopening: Mutex<HashMap<ChunkHandle, Opening>>,
    /// Chunks that are being sealed, or that need an operator.
    pub(super) sealing: Mutex<HashSet<ChunkHandle>>,
    /// Replicas of sealed chunks that are being brought in line.
    pub(super) joining: Mutex<HashSet<(ChunkHandle, ServerId)>>,
    /// A copy ended, or an operator changed something: the next one may begin.
    pub(super) repair_work: Notify,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Master {
    pub(super) fn new(config: Config, core: Core, identity: Identity, first_chunk: ChunkHandle, now: Duration) -> Self {
        let soft = Mutex::new(Soft::new(now, config.dead_after));
        Self {
            peers: Peers::new(identity, config.cluster_key.clone()),
            door: Door::new(config.cluster_key.clone()),
            config,
            core,
            identity,
            first_chunk,
            started: now,
            admin: Mutex::default(),
            counters: Counters::default(),
            soft,
            changed: watch::Sender::new(0),
            opening: Mutex::default(),
            reopening: Mutex::default(),
            sealing: Mutex::default(),
            joining: Mutex::default(),
            repair_work: Notify::new(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }
    }

    pub(super) fn cluster(&self) -> ClusterId {
        self.identity.cluster
    }

    pub(super) fn term(&self) -> Term {
        self.identity.term
    }

    /// Never held across an await. Where both are needed, the state is locked first.
    pub(super) fn soft(&self) -> MutexGuard<'_, Soft> {
        lock(&self.soft)
    }

    /// Runs a task until it ends or the master stops.
    pub(super) fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }

    /// Stops all tasks, wherever they are: as a crash would, and with the same remedy.
    pub(super) async fn stop_tasks(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Chunks of some file changed.
    pub(super) fn wake_waiters(&self) {
        self.changed.send_modify(|generation| *generation += 1);
    }

    /// Whoever waits for chunks: take this before looking, then wait for it to change.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

/// How to reach a server; without an address when it is not known.
pub(super) fn member(state: &State, server: ServerId) -> Option<Member> {
    let record = state.server(server)?;
    Some(Member { server, address: record.address.clone(), shards: record.shards })
}

pub(super) fn members(state: &State, servers: &[ServerId]) -> Vec<Member> {
    servers.iter().filter_map(|server| member(state, *server)).collect()
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
