//! A store on one backend, on a thread of its own, that works through one case at a time when told to.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use engine::runtime::glommio::GlommioRuntime;
use engine::runtime::monoio::{Epoll, MonoioRuntime, Uring};
use engine::runtime::shard::{ShardConfig, Spawn};
use engine::runtime::{Backend, Runtime};
use engine::store::{Counters, DiskConfig, DiskLock, ReadConfig, RecoverySummary, Store, recover};
use serde::Serialize;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use wire::{ClusterId, ServerId};

use super::cases::{CACHE_BYTES, Case, Work};

/// Buffers of a shard: 64 appends of 1 MiB on their way, and what the store itself needs.
pub const MEMORY: usize = (64 << 20) + (1 << 20) + engine::store::STORE_MEMORY;

/// What a case did.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Operations.
    pub ops: u64,
    /// Payload.
    pub bytes: u64,
    /// Of all of them.
    pub elapsed: Duration,
    /// CPU time of the whole process meanwhile, seconds.
    pub cpu_s: f64,
    /// Of one operation, microseconds; empty where it was not taken.
    pub latency: Option<Latency>,
    /// What the engine counted.
    pub counters: Counters,
}

/// Microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "percentiles")]
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
}

/// What the thread is told.
enum Order {
    Run(Case, mpsc::Sender<Result<Sample, String>>),
    /// End without writing anything, as a killed process would.
    Abandon,
}

/// A store that waits for orders. Dropping it stops it in order.
#[derive(Debug)]
pub struct Subject {
    /// What it runs on.
    pub backend: Backend,
    /// What its start found.
    pub found: RecoverySummary,
    orders: UnboundedSender<Order>,
    thread: Option<JoinHandle<io::Result<()>>>,
    _lock: DiskLock,
}

impl Subject {
    /// Formats or recovers `root` and starts a shard on it.
    ///
    /// # Errors
    ///
    /// What the engine says.
    pub fn start(backend: Backend, root: &Path, ring_bytes: Option<u64>) -> io::Result<Self> {
        let lock = DiskLock::acquire(root).map_err(io::Error::other)?;
        let disk = config(root, ring_bytes);
        let (ready, started) = mpsc::channel();
        let (orders, inbox) = unbounded_channel();
        let shard = ShardConfig { index: 0, core: None, memory: MEMORY };
        let thread = match backend {
            Backend::Glommio => GlommioRuntime::spawn_shard(shard, move |rt| serve(rt, disk, ready, inbox)),
            Backend::Monoio => MonoioRuntime::<Uring>::spawn_shard(shard, move |rt| serve(rt, disk, ready, inbox)),
            Backend::MonoioEpoll => MonoioRuntime::<Epoll>::spawn_shard(shard, move |rt| serve(rt, disk, ready, inbox)),
        }?;
        let found = started.recv().map_err(|_gone| died())?.map_err(io::Error::other)?;
        Ok(Self { backend, found, orders, thread: Some(thread), _lock: lock })
    }

    /// Runs a case and waits for its end.
    ///
    /// # Errors
    ///
    /// The store refused something.
    pub fn run(&self, case: Case) -> io::Result<Sample> {
        let (answer, result) = mpsc::channel();
        self.orders.send(Order::Run(case, answer)).map_err(|_gone| died())?;
        result.recv().map_err(|_gone| died())?.map_err(io::Error::other)
    }

    /// Ends it as `kill -9` would, but for what the kernel has already.
    pub fn abandon(mut self) {
        // An error means that it has ended already.
        let _ = self.orders.send(Order::Abandon);
        self.join();
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && !matches!(thread.join(), Ok(Ok(())))
        {
            eprintln!("{}: the shard did not end well", self.backend);
        }
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let (orders, _gone) = unbounded_channel();
        self.orders = orders;
        self.join();
    }
}

fn died() -> io::Error {
    io::Error::other("the shard died")
}

fn config(root: &Path, ring_bytes: Option<u64>) -> DiskConfig {
    DiskConfig {
        root: PathBuf::from(root),
        cluster: ClusterId([7; 16]),
        server: ServerId(1),
        shards: 1,
        ring_bytes,
        unix_seconds: 0,
    }
}

async fn serve<R: Runtime>(
    rt: R,
    disk: DiskConfig,
    ready: mpsc::Sender<Result<RecoverySummary, String>>,
    mut orders: UnboundedReceiver<Order>,
) {
    let opened = async {
        let mut recovered = recover(&rt, &disk).await.map_err(|error| error.to_string())?;
        let seed = recovered.seeds.pop().ok_or("recovery gave no shard")?;
        // Reading ahead is off: the cases say themselves how many reads are in flight.
        let reads = ReadConfig { cache_bytes: CACHE_BYTES, ahead_max: 0 };
        let store = Store::start_with(rt.clone(), seed, reads).await.map_err(|error| error.to_string())?;
        Ok::<_, String>((store, recovered.summary))
    };
    let store = match opened.await {
        Ok((store, found)) => {
            // Who started it waits for this; should it be gone, the channel of orders is closed too.
            let _ = ready.send(Ok(found));
            store
        }
        Err(error) => return drop(ready.send(Err(error))),
    };
    let mut work = Work::new(rt, store.clone()).await;
    while let Some(order) = orders.recv().await {
        match order {
            Order::Run(case, answer) => {
                let before = (store.counters(), crate::meter::own_cpu_s());
                let mut result = work.run(case).await.map_err(|error| error.to_string());
                if let Ok(sample) = &mut result {
                    sample.cpu_s = crate::meter::own_cpu_s() - before.1;
                    sample.counters = since(store.counters(), before.0);
                }
                let _ = answer.send(result);
            }
            Order::Abandon => return,
        }
    }
    store.shutdown().await;
}

fn since(now: Counters, before: Counters) -> Counters {
    Counters {
        groups: now.groups - before.groups,
        flushes: now.flushes - before.flushes,
        slot_syncs: now.slot_syncs - before.slot_syncs,
        records: now.records - before.records,
        device_writes: now.device_writes - before.device_writes,
        device_write_bytes: now.device_write_bytes - before.device_write_bytes,
        device_reads: now.device_reads - before.device_reads,
        device_read_bytes: now.device_read_bytes - before.device_read_bytes,
        checkpoints: now.checkpoints - before.checkpoints,
        ..now
    }
}
