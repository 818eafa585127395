//! The client itself: what its clones share.

use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex};

use tokio::sync::Semaphore;
use wire::{ChunkHandle, Epoch, InodeId, Seq};

use crate::appender::Appender;
use crate::bounded::Bounded;
use crate::clock::{Noise, random};
use crate::config::Config;
use crate::locations::LocationCache;
use crate::lock;
use crate::master::REPORTS_MAX;
use crate::pool::Pool;
use crate::stats::{Counters, Stats};

/// Append streams kept; a file whose stream was forgotten gets a new one.
const STREAMS_MAX: usize = 1024;

/// Open chunks whose newest seen entry is remembered.
const SEEN_MAX: usize = 4096;

/// A cluster; clones share connections and caches. Cheap to clone, usable from many tasks.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
    /// Only clones of the client hold this; the tasks behind it end when the last clone goes.
    pub(crate) streams: Arc<Mutex<Bounded<InodeId, Appender>>>,
}

/// What the tasks of a client need.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) pool: Pool,
    pub(crate) noise: Arc<Noise>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) locations: LocationCache,
    /// First half of every request id.
    pub(crate) identity: [u8; 16],
    pub(crate) requests: AtomicU64,
    /// Index of the master that answered last.
    pub(crate) leader: AtomicUsize,
    pub(crate) reporting: Arc<Semaphore>,
    seen: Mutex<Bounded<ChunkHandle, (Epoch, Seq)>>,
}

impl Client {
    /// Makes a client; it connects when first used. Calls need a tokio runtime with I/O and time.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let noise = Arc::new(Noise::new());
        let counters = Arc::new(Counters::default());
        let inner = Inner {
            pool: Pool::new(config.cluster_key.clone(), Arc::clone(&noise), Arc::clone(&counters)),
            config: config.bounded(),
            noise,
            counters,
            locations: LocationCache::default(),
            identity: random(),
            requests: AtomicU64::new(1),
            leader: AtomicUsize::new(0),
            reporting: Arc::new(Semaphore::new(REPORTS_MAX)),
            seen: Mutex::new(Bounded::new(SEEN_MAX)),
        };
        Self { inner: Arc::new(inner), streams: Arc::new(Mutex::new(Bounded::new(STREAMS_MAX))) }
    }

    /// What was done so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.inner.counters.snapshot()
    }
}

impl Inner {
    /// An answer said that this much of an open chunk is committed: later reads must not see less.
    pub(crate) fn saw(&self, chunk: ChunkHandle, epoch: Epoch, seq: Seq) {
        let mut seen = lock(&self.seen);
        match seen.get(&chunk) {
            Some(known) => *known = (*known).max((epoch, seq)),
            None => seen.insert(chunk, (epoch, seq)),
        }
    }

    /// Whether an answer of this epoch is older than one that was seen: a holder that was left out when
    /// the chunk was re-opened does not know it.
    pub(crate) fn is_outdated(&self, chunk: ChunkHandle, epoch: Epoch) -> bool {
        lock(&self.seen).get(&chunk).is_some_and(|(seen, _)| epoch < *seen)
    }

    /// The entry that a reader of this open chunk must see: read-your-writes, and never backwards.
    pub(crate) fn min_seq(&self, chunk: ChunkHandle, epoch: Epoch) -> Seq {
        let known = lock(&self.seen).get(&chunk).copied();
        known.filter(|(seen, _)| *seen == epoch).map_or(Seq(0), |(_, seq)| seq)
    }
}
