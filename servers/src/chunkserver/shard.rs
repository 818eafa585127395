//! One shard: the chunks, connections and links of one core.
//!
//! Everything here runs on one thread. State is borrowed for single steps, never across an await.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use engine::runtime::Runtime;
use engine::store::View;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use wire::heartbeat::ChunkReport;
use wire::member::{Member, ReplicaState};
use wire::{ChunkHandle, ClusterId, ClusterKey, Fault, Request, ServerId};

use super::budget::Budget;
use super::config::Config;
use super::fault;
use super::link::{Link, LinkKey};
use super::mailbox::{Served, ShardStatus, StoreStatus, ToControl, ToShard};
use super::outbox::Outbox;
use super::peer::{CallError, IDLE_PEERS_MAX, Peer};
use super::repair::Repairs;
use super::replica::Replica;
use super::scrub::Scrubbed;
use super::stores::Stores;

/// How long a stop waits for what is in flight.
const DRAIN: Duration = Duration::from_secs(3);

/// Connections of one shard.
const CONNECTIONS_MAX: usize = 4096;

/// Requests to other members in flight.
const CALLS_MAX: usize = 32;

/// Who this server is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Me {
    /// Its id.
    pub(crate) server: ServerId,
    /// Its cluster.
    pub(crate) cluster: ClusterId,
    /// This start.
    pub(crate) boot: u64,
    /// Which shard.
    pub(crate) shard: u32,
    /// Of how many.
    pub(crate) shards: u32,
}

/// One shard; clones are the same one.
pub(crate) struct Shard<R: Runtime>(Rc<Inner<R>>);

impl<R: Runtime> Clone for Shard<R> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<R: Runtime> std::ops::Deref for Shard<R> {
    type Target = Inner<R>;

    fn deref(&self) -> &Inner<R> {
        &self.0
    }
}

/// What a shard owns.
pub(crate) struct Inner<R: Runtime> {
    pub(crate) rt: R,
    pub(crate) me: Me,
    pub(crate) store: Stores<R>,
    pub(crate) budget: Budget,
    pub(crate) served: Cell<Served>,
    pub(crate) replicas: RefCell<BTreeMap<ChunkHandle, Replica<R>>>,
    pub(super) links: RefCell<BTreeMap<LinkKey, Link<R>>>,
    connections: RefCell<Vec<Outbox<R>>>,
    pub(super) dirty: RefCell<BTreeSet<ChunkHandle>>,
    pub(super) reported: RefCell<BTreeMap<ChunkHandle, Duration>>,
    pub(super) control: mpsc::Sender<ToControl>,
    stopping: Cell<bool>,
    pub(super) key: RefCell<Option<ClusterKey>>,
    pub(super) scrub_every: Cell<Duration>,
    pub(super) scrub_asked: Cell<u64>,
    pub(super) scrub_wake: Notify,
    scrubbed: RefCell<Vec<Scrubbed>>,
    pub(super) repairs: RefCell<Repairs>,
    pub(super) repair_work: Notify,
    /// Requests without an answer, and when the last one came.
    pub(super) in_flight: Rc<Cell<usize>>,
    pub(super) heard: Cell<Duration>,
    stop: Notify,
    pub(super) progressed: Notify,
    /// More of some chunk is committed, or a chain has ended: readers look again.
    pub(super) committed: Notify,
    /// A head without work for so long seals its chunk.
    pub(super) idle_seal: Cell<Duration>,
    peers: RefCell<Vec<(String, u32, Peer<R>)>>,
    calls: Semaphore,
    /// One fill at a time: it holds many buffers.
    pub(crate) filling: Semaphore,
    /// One clone at a time: it is background work.
    pub(crate) cloning: Semaphore,
}

impl<R: Runtime> Shard<R> {
    pub(crate) fn new(rt: R, me: Me, store: Stores<R>, budget: Budget, control: mpsc::Sender<ToControl>) -> Self {
        let scrubbed = vec![Scrubbed::default(); store.disks().len()];
        Self(Rc::new(Inner {
            rt,
            me,
            store,
            budget,
            served: Cell::default(),
            replicas: RefCell::default(),
            links: RefCell::default(),
            connections: RefCell::default(),
            dirty: RefCell::default(),
            control,
            reported: RefCell::default(),
            stopping: Cell::new(false),
            key: RefCell::default(),
            scrub_every: Cell::default(),
            scrub_asked: Cell::default(),
            scrub_wake: Notify::new(),
            scrubbed: RefCell::new(scrubbed),
            repairs: RefCell::default(),
            repair_work: Notify::new(),
            in_flight: Rc::default(),
            heard: Cell::default(),
            stop: Notify::new(),
            progressed: Notify::new(),
            committed: Notify::new(),
            idle_seal: Cell::new(Config::IDLE_SEAL),
            peers: RefCell::default(),
            calls: Semaphore::new(CALLS_MAX),
            filling: Semaphore::new(1),
            cloning: Semaphore::new(1),
        }))
    }

    /// How long one scrub of everything may take; zero: only when asked for.
    pub(crate) fn scrub_every(&self, every: Duration) {
        self.scrub_every.set(every);
    }

    /// How long a head may be without work before it seals its chunk.
    pub(crate) fn idle_seal(&self, after: Duration) {
        self.idle_seal.set(after);
    }

    /// Works until told to stop; then everything is durable.
    pub(crate) async fn run(&self, mut mail: mpsc::Receiver<ToShard>) {
        self.rt.spawn({
            let shard = self.clone();
            async move { shard.tick().await }
        });
        self.rt.spawn(self.clone().repair_blocks());
        for disk in 0..self.store.disks().len() {
            self.rt.spawn(self.clone().scrub_disk(disk));
        }
        while let Some(message) = mail.recv().await {
            match message {
                ToShard::Connection { stream, hello } => self.serve_connection(stream, hello),
                ToShard::Report { after, limit, reply } => {
                    if let Err(unheard) = reply.send(self.reports(after, limit)) {
                        self.dirty.borrow_mut().extend(unheard.iter().map(|report| report.chunk));
                    }
                }
                ToShard::Status { reply } => {
                    let shard = self.clone();
                    self.rt.spawn(async move { drop(reply.send(shard.status().await)) });
                }
                ToShard::Scrub => self.scrub_now(),
                ToShard::Stop => break,
            }
        }
        self.stopping.set(true);
        self.drain().await;
        self.stop.notify_waiters();
        for link in self.links.borrow().values() {
            link.close();
        }
        for connection in self.connections.borrow().iter() {
            connection.close();
        }
        self.peers.borrow_mut().clear();
        self.calls.close();
        self.filling.close();
        self.cloning.close();
        self.store.shutdown().await;
    }

    /// Waits until no chain has anything in flight, at most [`DRAIN`]. New operations are refused.
    async fn drain(&self) {
        let settled = async {
            while self.replicas.borrow().values().any(Replica::is_busy) {
                self.progressed.notified().await;
            }
        };
        tokio::select! {
            biased;
            () = settled => {}
            () = self.rt.sleep(DRAIN) => tracing::warn!("stopping with operations in flight: their outcome is unknown"),
        }
    }

    /// Waits, or less when the shard stops.
    pub(crate) async fn pause(&self, duration: Duration) {
        let stop = self.stop.notified();
        tokio::pin!(stop);
        stop.as_mut().enable();
        tokio::select! {
            biased;
            () = stop => {}
            () = self.rt.sleep(duration) => {}
        }
    }

    /// Starts the task that sends what an outbox holds.
    pub(crate) fn start_pump(&self, outbox: &Outbox<R>, writer: R::Writer) {
        let (outbox, rt) = (outbox.clone(), self.rt.clone());
        self.rt.spawn(async move { outbox.pump(rt, writer).await });
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    /// How the scrub of a disk is.
    pub(super) fn scrubbed(&self, disk: usize) -> Scrubbed {
        self.scrubbed.borrow()[disk]
    }

    /// Notes how it goes.
    pub(super) fn note_scrub(&self, disk: usize, change: impl FnOnce(&mut Scrubbed)) {
        change(&mut self.scrubbed.borrow_mut()[disk]);
    }

    /// Counts.
    pub(crate) fn count(&self, change: impl FnOnce(&mut Served)) {
        let mut served = self.served.get();
        change(&mut served);
        self.served.set(served);
    }

    /// Registers a connection so that a stop can end it; `false` when there are too many.
    pub(crate) fn track(&self, outbox: &Outbox<R>) -> bool {
        let mut connections = self.connections.borrow_mut();
        connections.retain(|connection| !connection.is_closed());
        let has_room = connections.len() < CONNECTIONS_MAX && !self.is_stopping();
        if has_room {
            connections.push(outbox.clone());
        }
        has_room
    }

    /// Asks another member over a connection that is kept for the next time.
    pub(crate) async fn ask<Q: Request>(&self, member: &Member, to: u32, request: &Q) -> Result<Q::Reply, CallError> {
        let Ok(_call) = self.calls.acquire().await else {
            return Err(CallError::Broken(std::io::Error::from(std::io::ErrorKind::Interrupted).into()));
        };
        let idle = {
            let mut peers = self.peers.borrow_mut();
            let at = peers.iter().position(|(address, shard, _)| *address == member.address && *shard == to);
            at.map(|at| peers.swap_remove(at).2)
        };
        let mut peer = match idle {
            Some(peer) => peer,
            None => Peer::dial(self, member, to).await?,
        };
        let answer = peer.call(request).await;
        if !matches!(answer, Err(CallError::Broken(_))) {
            let mut peers = self.peers.borrow_mut();
            if peers.len() >= IDLE_PEERS_MAX {
                peers.remove(0);
            }
            peers.push((member.address.clone(), to, peer));
        }
        answer.map(|(reply, _)| reply)
    }

    /// Looks an address up without blocking the shard.
    pub(crate) async fn resolve(&self, address: &str) -> Option<SocketAddr> {
        if let Ok(address) = address.parse() {
            return Some(address);
        }
        let (reply, answer) = oneshot::channel();
        self.control.send(ToControl::Resolve { address: address.to_owned(), reply }).await.ok()?;
        answer.await.ok().flatten()
    }

    /// What is said about a chunk that is not here.
    pub(crate) fn no_chunk(&self) -> Fault {
        fault::of_store(&self.store.unknown())
    }

    /// The next heartbeat mentions this chunk.
    pub(crate) fn changed(&self, chunk: ChunkHandle) {
        self.dirty.borrow_mut().insert(chunk);
    }

    fn reports(&self, after: Option<u64>, limit: usize) -> Vec<ChunkReport> {
        let chunks: Vec<ChunkHandle> = if let Some(after) = after {
            let mut chunks = self.store.chunks();
            chunks.retain(|chunk| chunk.0 > after);
            chunks.sort_unstable();
            chunks.truncate(limit);
            chunks
        } else {
            let mut dirty = self.dirty.borrow_mut();
            let chunks: Vec<ChunkHandle> = dirty.iter().copied().take(limit).collect();
            for chunk in &chunks {
                dirty.remove(chunk);
            }
            chunks
        };
        let report = |chunk| {
            let view = self.store.view(chunk)?;
            Some(report_of(chunk, &view, self.store.is_failed(chunk)))
        };
        chunks.into_iter().filter_map(report).collect()
    }

    async fn status(&self) -> ShardStatus {
        let spaces = self.store.spaces().await;
        let stores = self.store.disks().iter().zip(spaces).enumerate().map(|(disk, (on, space))| StoreStatus {
            counters: on.store.counters(),
            space,
            quarantined: on.store.quarantined(),
            scrub: self.scrubbed(disk),
            scrub_age: self.scrubbed(disk).ended.map(|ended| self.rt.now().saturating_sub(ended)),
        });
        ShardStatus {
            chunk_count: self.store.chunks().len() as u64,
            stores: stores.collect(),
            shadow_count: self.store.shadow_count(),
            served: self.served.get(),
            repair_count: self.repairs.borrow().len() as u64,
            open_count: self.replicas.borrow().len() as u64,
            connection_count: self.connections.borrow().iter().filter(|it| !it.is_closed()).count() as u64,
        }
    }
}

/// A replica on a failed disk is told as a damaged one: it is there, and of no use.
fn report_of(chunk: ChunkHandle, view: &View, is_failed: bool) -> ChunkReport {
    ChunkReport {
        chunk,
        state: view.state,
        epoch: view.epoch,
        promised: view.promised,
        last_seq: view.durable_seq,
        len: if view.state == ReplicaState::Sealed { view.sealed_len } else { view.durable_len },
        committed_len: view.committed_len,
        digest: view.digest,
        damaged: view.damaged || is_failed,
    }
}
