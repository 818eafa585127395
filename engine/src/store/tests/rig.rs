//! A disk, and a process of some shards on it that can be stopped, killed, and cut off its power.

use std::future::Future;

use wire::checksum::block_crcs;
use wire::{ChunkHandle, ClusterId, Epoch, InodeId, OpId, Seq, ServerId, StreamId, Term};

use crate::runtime::Runtime;
use crate::runtime::sim::{Sim, SimBuf, SimDisk, SimRuntime};
use crate::store::{
    CreateArgs, DiskConfig, Entry, OpenError, ReadConfig, RecoverySummary, ShardSeed, Store, StoreError, Upto, recover,
};

pub(super) const TERM: Term = Term(1);
pub(super) const EPOCH: Epoch = Epoch(1);
pub(super) const STREAM: StreamId = StreamId([3; 16]);

/// A running process.
pub(super) struct Rig {
    pub(super) sim: Sim,
    /// Of every shard, or of those that hold chunks.
    pub(super) stores: Vec<Store<SimRuntime>>,
    shards: u32,
    pub(super) summary: RecoverySummary,
}

/// A disk of 1 GiB.
pub(super) fn new_disk() -> SimDisk {
    SimDisk::new(1 << 30)
}

impl Rig {
    /// Starts on a disk; fresh or not.
    pub(super) fn start(seed: u64, disk: &SimDisk, shards: u32) -> Self {
        Self::start_with(seed, disk, shards, 512 << 10).unwrap()
    }

    /// As [`Rig::start`], with one shard and memory for reads.
    pub(super) fn start_reading(seed: u64, disk: &SimDisk, reads: ReadConfig) -> Self {
        Self::start_some(seed, disk, (1, 512 << 10), reads, |_| true).unwrap()
    }

    /// Every other seed has memory for reads.
    pub(super) fn start_with(seed: u64, disk: &SimDisk, shards: u32, ring_bytes: u64) -> Result<Self, OpenError> {
        Self::start_some(seed, disk, (shards, ring_bytes), little(seed), |_| true)
    }

    /// Starts what holds a chunk: enough to look at what recovery made of a disk.
    pub(super) fn start_lean(seed: u64, disk: &SimDisk, shards: u32, ring_bytes: u64) -> Result<Self, OpenError> {
        Self::start_some(seed, disk, (shards, ring_bytes), little(seed), |seed| !seed.chunks.is_empty())
    }

    fn start_some(
        seed: u64,
        disk: &SimDisk,
        (shards, ring_bytes): (u32, u64),
        reads: ReadConfig,
        which: impl Fn(&ShardSeed) -> bool + 'static,
    ) -> Result<Self, OpenError> {
        let sim = Sim::with_disk(seed, disk);
        let config = config(&sim, shards, ring_bytes);
        let (stores, summary) = sim.run(|rt| async move {
            let recovered = recover(&rt, &config).await?;
            let mut stores = Vec::new();
            for seed in recovered.seeds.into_iter().filter(which) {
                stores.push(Store::start_with(rt.clone(), seed, reads).await?);
            }
            Ok::<_, OpenError>((stores, recovered.summary))
        })?;
        Ok(Self { sim, stores, shards, summary })
    }

    /// Stops in order; everything is on the disk.
    pub(super) fn stop(self) -> SimDisk {
        let stores = self.stores.clone();
        self.sim.run(|_| async move {
            for store in stores {
                store.shutdown().await;
            }
        });
        self.sim.drain();
        self.sim.disk()
    }

    /// `kill -9`: the cache of the machine stays.
    pub(super) fn kill(self, seed: u64) -> SimDisk {
        let disk = self.sim.disk();
        drop(self);
        disk.crash(seed);
        disk
    }

    /// Pulls the plug.
    pub(super) fn cut(self, seed: u64) -> SimDisk {
        let disk = self.sim.disk();
        drop(self);
        disk.power_cut(seed);
        disk
    }

    /// The store of a chunk.
    pub(super) fn store(&self, chunk: u64) -> Store<SimRuntime> {
        self.find(chunk).unwrap()
    }

    /// The same, if its shard was started.
    pub(super) fn find(&self, chunk: u64) -> Option<Store<SimRuntime>> {
        let shard = ChunkHandle(chunk).shard(self.shards);
        self.stores.iter().find(|store| store.inner.shard == shard).cloned()
    }

    /// Runs something with the store of a chunk.
    pub(super) fn on<T: 'static, W: Future<Output = T> + 'static>(
        &self,
        chunk: u64,
        work: impl FnOnce(SimRuntime, Store<SimRuntime>) -> W,
    ) -> T {
        let store = self.store(chunk);
        self.sim.run(|rt| work(rt, store))
    }

    pub(super) fn create(&self, chunk: u64) {
        self.on(chunk, |_, store| async move { store.create(create_args(chunk)).await }).unwrap();
    }

    /// Appends as one operation of one part, and waits.
    pub(super) fn append(&self, chunk: u64, op: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let bytes = bytes.to_vec();
        self.on(chunk, move |rt, store| async move { append(&rt, &store, chunk, op, &bytes).await })
    }

    /// Overwrites as one operation of one part, and waits.
    pub(super) fn overwrite(&self, chunk: u64, op: u64, offset: u32, bytes: &[u8]) -> Result<(), StoreError> {
        let bytes = bytes.to_vec();
        self.on(chunk, move |rt, store| async move { overwrite(&rt, &store, chunk, op, offset, &bytes).await })
    }

    /// What can be read.
    pub(super) fn read_all(&self, chunk: u64, upto: Upto) -> Result<Vec<u8>, StoreError> {
        self.on(chunk, move |_, store| async move { read_all(&store, chunk, upto).await })
    }
}

pub(super) fn config(sim: &Sim, shards: u32, ring_bytes: u64) -> DiskConfig {
    DiskConfig {
        root: sim.root(),
        cluster: ClusterId([1; 16]),
        server: ServerId(1),
        shards,
        ring_bytes: Some(ring_bytes),
        unix_seconds: 1_000_000,
    }
}

pub(super) fn create_args(chunk: u64) -> CreateArgs {
    CreateArgs {
        term: TERM,
        chunk: ChunkHandle(chunk),
        epoch: EPOCH,
        members: vec![ServerId(1), ServerId(2)],
        my_position: 0,
        prev: ChunkHandle::NONE,
        file: InodeId(9),
        dedup: Vec::new(),
    }
}

/// Memory for reads: every other seed has some.
fn little(seed: u64) -> ReadConfig {
    let little = ReadConfig { cache_bytes: 256 << 10, ahead_max: 128 << 10 };
    if seed.is_multiple_of(2) { ReadConfig::default() } else { little }
}

/// Bytes in a buffer of whole blocks; what lies behind them is not zero.
pub(super) async fn payload(rt: &SimRuntime, bytes: &[u8]) -> SimBuf {
    let mut buf = rt.alloc(bytes.len().next_multiple_of(4096)).await;
    buf.as_mut().fill(0xEE);
    buf.as_mut()[..bytes.len()].copy_from_slice(bytes);
    rt.freeze(buf)
}

/// The next entry of an open chunk.
pub(super) fn entry(store: &Store<SimRuntime>, chunk: u64, op: u64, bytes: &[u8]) -> Entry {
    let view = store.view(ChunkHandle(chunk)).unwrap();
    let len = u32::try_from(bytes.len()).unwrap();
    Entry {
        chunk: ChunkHandle(chunk),
        epoch: view.epoch,
        seq: Seq(view.last_seq.0 + 1),
        id: OpId { stream: STREAM, op },
        first_unacked: op,
        op_off: view.len,
        op_len: len,
        offset: view.len,
        length: len,
        part: 0,
        parts: 1,
        committed_seq: view.committed_seq,
        crcs: block_crcs(bytes),
    }
}

pub(super) async fn append(
    rt: &SimRuntime,
    store: &Store<SimRuntime>,
    chunk: u64,
    op: u64,
    bytes: &[u8],
) -> Result<(), StoreError> {
    let view = store.view(ChunkHandle(chunk)).ok_or(StoreError::UnknownChunk)?;
    store.reserve(ChunkHandle(chunk), view.len + u32::try_from(bytes.len()).unwrap()).await?;
    let buf = payload(rt, bytes).await;
    store.append(&entry(store, chunk, op, bytes), buf)?.await
}

/// Bytes of one read of [`read_all`].
pub(super) const READ_ALL_PIECE: usize = (1 << 20) - 4096;

/// The next entry of an open chunk, below its end.
pub(super) fn below(store: &Store<SimRuntime>, chunk: u64, op: u64, offset: u32, bytes: &[u8]) -> Entry {
    Entry { op_off: offset, offset, ..entry(store, chunk, op, bytes) }
}

pub(super) async fn overwrite(
    rt: &SimRuntime,
    store: &Store<SimRuntime>,
    chunk: u64,
    op: u64,
    offset: u32,
    bytes: &[u8],
) -> Result<(), StoreError> {
    let edges = store.prepare_overwrite(ChunkHandle(chunk), offset, u32::try_from(bytes.len()).unwrap()).await?;
    let buf = payload(rt, bytes).await;
    store.overwrite(&below(store, chunk, op, offset, bytes), &buf, &edges)?.await
}

/// Reads everything below the limit, checking what a client would.
pub(super) async fn read_all(store: &Store<SimRuntime>, chunk: u64, upto: Upto) -> Result<Vec<u8>, StoreError> {
    Ok(read_pieces(store, chunk, upto).await?.concat())
}

/// As [`read_all`], what each read gave: each begins where the one before ended, and is of a state of its own.
pub(super) async fn read_pieces(store: &Store<SimRuntime>, chunk: u64, upto: Upto) -> Result<Vec<Vec<u8>>, StoreError> {
    let (mut pieces, mut end) = (Vec::new(), 0);
    loop {
        let at = u32::try_from(end).unwrap();
        let len = u32::try_from(READ_ALL_PIECE).unwrap().min((64 << 20) - at);
        let blocks = store.read(ChunkHandle(chunk), at, len, upto).await?;
        if blocks.len == 0 {
            return Ok(pieces);
        }
        let bytes = blocks.buf.as_ref();
        assert_eq!(block_crcs(bytes), blocks.crcs, "blocks carry their own checksums");
        assert_eq!(bytes.len(), blocks.crcs.len() * 4096);
        let skip = (at - blocks.offset) as usize;
        let piece = bytes[skip..blocks.len as usize].to_vec();
        end += piece.len();
        pieces.push(piece);
    }
}

/// Bytes that nothing else has.
pub(super) fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}
