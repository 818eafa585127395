//! A store on a directory: recovery and shards, each on a thread of its own.

use std::future::Future;
use std::path::Path;
use std::thread::JoinHandle;

use engine::runtime::Runtime;
use engine::runtime::shard::{ShardConfig, Spawn};
use engine::store::{CreateArgs, DiskConfig, DiskLock, Entry, OpenError, Recovered, Store, StoreError, Upto, recover};
use wire::checksum::{block_crcs, matches};
use wire::{ChunkHandle, ClusterId, Epoch, InodeId, OpId, Seq, ServerId, StreamId, Term};

use crate::options::Options;

pub(crate) const TERM: Term = Term(1);
const STREAM: StreamId = StreamId([3; 16]);
pub(crate) const BLOCK: usize = 4096;
const MEMORY: usize = 32 << 20;

/// Starts work on a shard; what it gives is sent back.
pub(crate) fn start<R: Spawn, T: Send + 'static, W: Future<Output = T> + 'static>(
    index: u32,
    work: impl FnOnce(R) -> W + Send + 'static,
) -> impl FnOnce() -> T {
    let (sender, output) = std::sync::mpsc::channel();
    let config = ShardConfig { index, core: None, memory: MEMORY };
    let shard: JoinHandle<std::io::Result<()>> =
        R::spawn_shard(config, move |rt| async move { sender.send(work(rt).await).unwrap() }).unwrap();
    move || {
        let output = output.recv().unwrap();
        shard.join().unwrap().unwrap();
        output
    }
}

/// Opens the disk as a server does.
pub(crate) fn open<R: Spawn>(options: &Options) -> Result<(DiskLock, Recovered), OpenError> {
    let lock = DiskLock::acquire(&options.root)?;
    let config = config(&options.root, options.shards, options.ring_bytes);
    let bugs = options.clone();
    let recovered = start::<R, _, _>(0, move |rt| async move {
        plant(&bugs);
        recover(&rt, &config).await
    })()?;
    Ok((lock, recovered))
}

/// Plants what was asked for in this thread.
pub(crate) fn plant(options: &Options) {
    #[cfg(feature = "canary")]
    if let Some(number) = &options.canary {
        assert!(engine::store::plant(number), "there is no canary {number}");
    }
    #[cfg(not(feature = "canary"))]
    assert!(options.canary.is_none(), "this build has no canaries");
}

fn config(root: &Path, shards: u32, ring_bytes: u64) -> DiskConfig {
    DiskConfig {
        root: root.to_owned(),
        cluster: ClusterId([1; 16]),
        server: ServerId(1),
        shards,
        ring_bytes: Some(ring_bytes),
        unix_seconds: 1_000_000,
    }
}

pub(crate) fn create_args(chunk: ChunkHandle) -> CreateArgs {
    CreateArgs {
        term: TERM,
        chunk,
        epoch: Epoch(1),
        members: vec![ServerId(1), ServerId(2)],
        my_position: 0,
        prev: ChunkHandle::NONE,
        file: InodeId(9),
        dedup: Vec::new(),
    }
}

/// The next operation of an open chunk, of one part.
pub(crate) fn entry<R: Runtime>(store: &Store<R>, chunk: ChunkHandle, bytes: &[u8]) -> Entry {
    let view = store.view(chunk).unwrap();
    let len = u32::try_from(bytes.len()).unwrap();
    Entry {
        chunk,
        epoch: Epoch(1),
        seq: Seq(view.last_seq.0 + 1),
        id: OpId { stream: STREAM, op: view.last_seq.0 + 1 },
        first_unacked: view.last_seq.0 + 1,
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

/// A buffer of whole blocks; what lies behind the bytes is not zero.
pub(crate) async fn payload<R: Runtime>(rt: &R, bytes: &[u8]) -> R::Buf {
    let mut buf = rt.alloc(bytes.len().next_multiple_of(BLOCK)).await;
    buf.as_mut().fill(0xEE);
    buf.as_mut()[..bytes.len()].copy_from_slice(bytes);
    rt.freeze(buf)
}

/// Bytes of one read.
const READ: u32 = 512 << 10;

/// Reads everything durable as a client would; what failed, with the offset.
pub(crate) async fn read_all<R: Runtime>(store: &Store<R>, chunk: u64) -> Result<Vec<u8>, (usize, StoreError)> {
    let mut all = Vec::new();
    loop {
        let at = u32::try_from(all.len()).unwrap();
        let len = READ.min((64 << 20) - at);
        let blocks =
            store.read(ChunkHandle(chunk), at, len, Upto::Durable).await.map_err(|error| (all.len(), error))?;
        if blocks.len == 0 {
            return Ok(all);
        }
        assert!(matches(blocks.buf.as_ref(), &blocks.crcs), "blocks carry their own checksums");
        let skip = (at - blocks.offset) as usize;
        all.extend_from_slice(&blocks.buf.as_ref()[skip..blocks.len as usize]);
    }
}
