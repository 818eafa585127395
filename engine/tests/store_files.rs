//! The chunk store on real files: direct I/O, real flushes, real restarts.
#![allow(clippy::unwrap_used, missing_docs, reason = "test helpers outside of test functions")]

use std::future::Future;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use engine::runtime::Runtime;
use engine::runtime::shard::{ShardConfig, Spawn};
use engine::store::{
    CreateArgs, DiskConfig, DiskLock, Entry, ImportArgs, Recovered, ShardSeed, Store, StoreError, Upto, identity,
    recover,
};
use futures_util::FutureExt;
use wire::checksum::{block_crcs, matches};
use wire::member::ReplicaState;
use wire::{ChunkHandle, ClusterId, Epoch, InodeId, OpId, Seq, ServerId, StreamId, Term};

const MEMORY: usize = 32 << 20;
const LIMIT: Duration = Duration::from_secs(60);
const TERM: Term = Term(1);

/// Runs work on a shard of its own, to the shard's end.
fn on_shard<R: Spawn, T: Send + 'static, W: Future<Output = T> + 'static>(
    work: impl FnOnce(R) -> W + Send + 'static,
) -> T {
    let (sender, output) = mpsc::channel();
    let config = ShardConfig { index: 0, core: None, memory: MEMORY };
    let shard = R::spawn_shard(config, |rt| async move { sender.send(work(rt).await).unwrap() }).unwrap();
    let output = output.recv_timeout(LIMIT);
    match shard.join() {
        Ok(ended) => ended.unwrap(),
        Err(panic) => std::panic::resume_unwind(panic),
    }
    output.unwrap()
}

fn config(root: &Path, shards: u32) -> DiskConfig {
    DiskConfig {
        root: root.to_owned(),
        cluster: ClusterId([1; 16]),
        server: ServerId(1),
        shards,
        ring_bytes: Some(1 << 20),
        unix_seconds: 1_000_000,
    }
}

fn recovered<R: Spawn>(root: &Path, shards: u32) -> Recovered {
    let config = config(root, shards);
    on_shard::<R, _, _>(move |rt| async move { recover(&rt, &config).await.unwrap() })
}

/// Runs work with the store of each shard, one shard after the other.
fn with_stores<R: Spawn, W: Future<Output = ()> + 'static>(
    seeds: Vec<ShardSeed>,
    work: impl FnOnce(R, Store<R>) -> W + Send + Clone + 'static,
) {
    for seed in seeds {
        let work = work.clone();
        on_shard::<R, _, _>(move |rt| async move {
            let store = Store::start(rt.clone(), seed).await.unwrap();
            work(rt, store).await;
        });
    }
}

fn bytes(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from((at * 31 + at / 251 + seed * 17) % 256).unwrap()).collect()
}

async fn create<R: Runtime>(store: &Store<R>, chunk: u64) {
    let args = CreateArgs {
        term: TERM,
        chunk: ChunkHandle(chunk),
        epoch: Epoch(1),
        members: vec![ServerId(1)],
        my_position: 0,
        prev: ChunkHandle::NONE,
        file: InodeId(1),
        dedup: Vec::new(),
    };
    store.create(args).await.unwrap();
}

async fn append<R: Runtime>(rt: &R, store: &Store<R>, chunk: u64, bytes: &[u8]) -> Result<(), StoreError> {
    let view = store.view(ChunkHandle(chunk)).unwrap();
    let length = u32::try_from(bytes.len()).unwrap();
    store.reserve(ChunkHandle(chunk), view.len + length).await?;
    let mut buf = rt.alloc(bytes.len().next_multiple_of(4096)).await;
    buf.as_mut()[..bytes.len()].copy_from_slice(bytes);
    let entry = Entry {
        chunk: ChunkHandle(chunk),
        epoch: Epoch(1),
        seq: Seq(view.last_seq.0 + 1),
        id: OpId { stream: StreamId([2; 16]), op: view.last_seq.0 + 1 },
        first_unacked: view.last_seq.0 + 1,
        op_off: view.len,
        op_len: length,
        offset: view.len,
        length,
        part: 0,
        parts: 1,
        committed_seq: view.committed_seq,
        crcs: block_crcs(bytes),
    };
    store.append(&entry, rt.freeze(buf))?.await
}

async fn overwrite<R: Runtime>(rt: &R, store: &Store<R>, chunk: u64, offset: u32, bytes: &[u8]) {
    let view = store.view(ChunkHandle(chunk)).unwrap();
    let length = u32::try_from(bytes.len()).unwrap();
    let edges = store.prepare_overwrite(ChunkHandle(chunk), offset, length).await.unwrap();
    let mut buf = rt.alloc(bytes.len().next_multiple_of(4096)).await;
    buf.as_mut()[..bytes.len()].copy_from_slice(bytes);
    let entry = Entry {
        chunk: ChunkHandle(chunk),
        epoch: Epoch(1),
        seq: Seq(view.last_seq.0 + 1),
        id: OpId { stream: StreamId([2; 16]), op: view.last_seq.0 + 1 },
        first_unacked: view.last_seq.0 + 1,
        op_off: offset,
        op_len: length,
        offset,
        length,
        part: 0,
        parts: 1,
        committed_seq: view.committed_seq,
        crcs: block_crcs(bytes),
    };
    store.overwrite(&entry, &rt.freeze(buf), &edges).unwrap().await.unwrap();
}

/// 70,000 bytes, of which some were overwritten.
fn overwritten() -> Vec<u8> {
    let mut content = bytes(9, 70_000);
    for (offset, len) in OVERWRITES {
        content[offset..offset + len].copy_from_slice(&bytes(offset, len));
    }
    content
}

/// In place with a checkpoint, over it, across blocks, at the partial block: (offset, length).
const OVERWRITES: [(usize, usize); 4] = [(4096, 8192), (5000, 20_000), (69_000, 900), (12_288, 4096)];

async fn read_all<R: Runtime>(store: &Store<R>, chunk: u64) -> Result<Vec<u8>, StoreError> {
    let mut all = Vec::new();
    loop {
        let at = u32::try_from(all.len()).unwrap();
        let blocks = store.read(ChunkHandle(chunk), at, 1 << 19, Upto::Durable).await?;
        if blocks.len == 0 {
            return Ok(all);
        }
        assert!(matches(blocks.buf.as_ref(), &blocks.crcs), "blocks carry their own checksums");
        let skip = (at - blocks.offset) as usize;
        all.extend_from_slice(&blocks.buf.as_ref()[skip..blocks.len as usize]);
    }
}

const LENS: [usize; 6] = [1 << 20, 1 << 20, 100, 300_000, 4096, 5000];

fn content(chunk: u64) -> Vec<u8> {
    LENS.iter().enumerate().flat_map(|(at, len)| bytes(at + usize::try_from(chunk).unwrap(), *len)).collect()
}

/// A whole life: fresh disk, work, stop in order, another number of shards, death without a stop.
fn a_disk_lives_through_restarts<R: Spawn>(root: PathBuf) {
    assert!(identity(&root).unwrap().is_none());
    let first = recovered::<R>(&root, 1);
    assert!(first.summary.formatted);
    with_stores::<R, _>(first.seeds, |rt, store| async move {
        for chunk in 1..=4 {
            create(&store, chunk).await;
            for (at, len) in LENS.into_iter().enumerate() {
                let more = bytes(at + usize::try_from(chunk).unwrap(), len);
                append(&rt, &store, chunk, &more).await.unwrap();
            }
        }
        let digest = store.digest(ChunkHandle(1), u32::MAX).await.unwrap();
        let len = store.view(ChunkHandle(1)).unwrap().len;
        store.finish(ChunkHandle(1), Epoch(1), Seq(7), len, digest).await.unwrap();
        store.confirm(TERM, ChunkHandle(1), Epoch(1), len, digest).await.unwrap();
        store.shutdown().await;
    });
    let known = identity(&root).unwrap().unwrap();
    assert_eq!((known.cluster, known.server), (ClusterId([1; 16]), ServerId(1)));

    let second = recovered::<R>(&root, 2);
    assert_eq!((second.summary.formatted, second.summary.chunks, second.summary.records_replayed), (false, 4, 0));
    with_stores::<R, _>(second.seeds, |rt, store| async move {
        for chunk in store.chunks() {
            assert_eq!(read_all(&store, chunk.0).await.unwrap(), content(chunk.0));
        }
        // Each shard makes one chunk of its own and dies without a stop.
        let mine = (100..).find(|chunk| ChunkHandle(*chunk).shard(2) == u32::from(store.chunks().len() != 3));
        let chunk = mine.unwrap();
        create(&store, chunk).await;
        append(&rt, &store, chunk, &bytes(9, 70_000)).await.unwrap();
        for (offset, len) in OVERWRITES {
            overwrite(&rt, &store, chunk, u32::try_from(offset).unwrap(), &bytes(offset, len)).await;
        }
        assert!(read_all(&store, chunk).await.unwrap() == overwritten());
    });

    let third = recovered::<R>(&root, 1);
    assert!(third.summary.records_replayed > 0, "{:?}", third.summary);
    assert_eq!((third.summary.damaged, third.summary.suspects), (0, 0));
    with_stores::<R, _>(third.seeds, |_, store| async move {
        let view = store.view(ChunkHandle(1)).unwrap();
        assert_eq!((view.state, view.len as usize), (ReplicaState::Sealed, content(1).len()));
        for chunk in 1..=4 {
            assert_eq!(read_all(&store, chunk).await.unwrap(), content(chunk));
        }
        for chunk in store.chunks().into_iter().filter(|chunk| chunk.0 >= 100) {
            assert!(read_all(&store, chunk.0).await.unwrap() == overwritten());
        }
        store.shutdown().await;
    });
}

/// Rot below the store: a flipped byte in a slot file.
fn a_flipped_byte_is_noticed_and_repaired<R: Spawn>(root: PathBuf) {
    with_stores::<R, _>(recovered::<R>(&root, 1).seeds, |rt, store| async move {
        create(&store, 1).await;
        append(&rt, &store, 1, &bytes(1, 50_000)).await.unwrap();
        store.shutdown().await;
    });
    let slots = std::fs::read_dir(root.join("slots")).unwrap();
    for slot in slots {
        let file = std::fs::OpenOptions::new().read(true).write(true).open(slot.unwrap().path()).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 3 * 4096 + 9).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], 3 * 4096 + 9).unwrap();
        file.sync_all().unwrap();
    }
    with_stores::<R, _>(recovered::<R>(&root, 1).seeds, |rt, store| async move {
        assert_eq!(read_all(&store, 1).await, Err(StoreError::BadBlock(3)));
        let before = store.read(ChunkHandle(1), 0, 12288, Upto::Durable).await.unwrap();
        assert_eq!(before.buf.as_ref(), &bytes(1, 50_000)[..12288]);
        assert_eq!(store.counters().bad_blocks, 1);
        let mut block = rt.alloc(4096).await;
        block.as_mut().copy_from_slice(&bytes(1, 50_000)[12_288..16_384]);
        store.repair(ChunkHandle(1), 3, rt.freeze(block)).await.unwrap();
        assert!(read_all(&store, 1).await.unwrap() == bytes(1, 50_000));
    });
    with_stores::<R, _>(recovered::<R>(&root, 1).seeds, |_, store| async move {
        assert!(read_all(&store, 1).await.unwrap() == bytes(1, 50_000), "after a death without a stop");
    });
}

/// By sharing extents on XFS, as a copy on ext4: neither the source nor its end changes the clone.
fn a_clone_outlives_its_source<R: Spawn>(root: PathBuf) {
    with_stores::<R, _>(recovered::<R>(&root, 1).seeds, |rt, store| async move {
        create(&store, 1).await;
        append(&rt, &store, 1, &bytes(1, 300_000)).await.unwrap();
        let digest = store.digest(ChunkHandle(1), u32::MAX).await.unwrap();
        store.finish(ChunkHandle(1), Epoch(1), Seq(2), 300_000, digest).await.unwrap();
        store.confirm(TERM, ChunkHandle(1), Epoch(1), 300_000, digest).await.unwrap();
        let args = ImportArgs {
            term: TERM,
            chunk: ChunkHandle(2),
            epoch: Epoch(1),
            promised: Epoch(1),
            members: vec![ServerId(1)],
            my_position: 0,
            file: InodeId(1),
            prev: ChunkHandle::NONE,
            last_seq: Seq(0),
            len: 300_000,
            digest,
            dedup: Vec::new(),
        };
        store.clone_chunk(ChunkHandle(1), args).await.unwrap();
        eprintln!("clones that share extents: {}", store.counters().clones);
        store.unshare(ChunkHandle(2), 100_000, 50_000).await.unwrap();
        store.condemn(TERM, ChunkHandle(1), 5, 1).await.unwrap();
        store.free(TERM, ChunkHandle(1), 5).await.unwrap();
        // Some of these come to lie where the source was.
        for chunk in 10..20 {
            create(&store, chunk).await;
            append(&rt, &store, chunk, &bytes(9, 400_000)).await.unwrap();
        }
        assert_eq!(read_all(&store, 2).await.unwrap(), bytes(1, 300_000));
        // Dies without a stop.
    });
    with_stores::<R, _>(recovered::<R>(&root, 1).seeds, |_, store| async move {
        assert_eq!(read_all(&store, 2).await.unwrap(), bytes(1, 300_000));
        assert!(store.view(ChunkHandle(1)).is_none());
        for chunk in 10..20 {
            assert_eq!(read_all(&store, chunk).await.unwrap(), bytes(9, 400_000));
        }
        store.shutdown().await;
    });
}

/// Appends that are accepted and not waited for when the shard ends, again and again in one process. What
/// the shard had begun ends before the shard does: no late write or read reaches memory that is used
/// for something else by then, and what is on the disk is a prefix of what was appended.
fn a_shard_ends_in_the_middle_of_appends_and_reads<R: Spawn>(root: PathBuf) {
    const PIECE: usize = 30_000;
    const AT_ONCE: usize = 6;
    let mut known = 0;
    for restart in 0..10 {
        // Where a late completion would land: memory that the allocator gives out between two shards.
        let traps: Vec<Vec<u8>> = (0..64).map(|_| vec![0xEE; 64 << 10]).collect();
        let chunk = 1 + restart;
        let content: Vec<u8> = (0..AT_ONCE).flat_map(|at| bytes(at, PIECE)).collect();
        with_stores::<R, _>(recovered::<R>(&root, 1).seeds, move |rt, store| async move {
            for chunk in 1..chunk {
                // Begun and dropped in the middle.
                let read = store.read(ChunkHandle(chunk), 0, 1 << 16, Upto::Durable);
                assert!(Box::pin(read).now_or_never().is_none_or(|read| read.is_ok()));
            }
            create(&store, chunk).await;
            // With its space there, an append is accepted at the first poll.
            store.reserve(ChunkHandle(chunk), u32::try_from(AT_ONCE * PIECE).unwrap()).await.unwrap();
            for at in 0..AT_ONCE {
                drop(Box::pin(append(&rt, &store, chunk, &bytes(at, PIECE))).now_or_never());
                rt.yield_now().await;
            }
        });
        assert!(traps.iter().flatten().all(|byte| *byte == 0xEE), "something landed after the shard had ended");
        let found = recovered::<R>(&root, 1);
        assert_eq!((found.summary.damaged, found.summary.suspects), (0, 0), "restart {restart}");
        let (sender, lengths) = mpsc::channel();
        with_stores::<R, _>(found.seeds, move |_, store| async move {
            let left = read_all(&store, chunk).await.unwrap();
            assert!(content.starts_with(&left) && left.len() % PIECE == 0, "a prefix of the appends");
            sender.send(left.len()).unwrap();
        });
        known += lengths.recv().unwrap();
    }
    assert!(known > 0, "no append was ever accepted");
}

/// A folder on a file system that the store accepts; `None`, and it is said, where there is none.
fn folder() -> Option<tempfile::TempDir> {
    let folder = tempfile::tempdir().unwrap();
    match DiskLock::acquire(folder.path()) {
        Ok(_) => Some(folder),
        Err(refused) => {
            eprintln!("SKIPPED: {refused}");
            None
        }
    }
}

/// Makes a test of each case for one backend.
macro_rules! backend {
    ($name:ident, $runtime:ty) => {
        mod $name {
            #[test]
            fn a_disk_lives_through_restarts() {
                if let Some(folder) = super::folder() {
                    super::a_disk_lives_through_restarts::<$runtime>(folder.path().to_owned());
                }
            }

            #[test]
            fn a_shard_ends_in_the_middle_of_appends_and_reads() {
                if let Some(folder) = super::folder() {
                    super::a_shard_ends_in_the_middle_of_appends_and_reads::<$runtime>(folder.path().to_owned());
                }
            }

            #[test]
            fn a_clone_outlives_its_source() {
                if let Some(folder) = super::folder() {
                    super::a_clone_outlives_its_source::<$runtime>(folder.path().to_owned());
                }
            }

            #[test]
            fn a_flipped_byte_is_noticed_and_repaired() {
                if let Some(folder) = super::folder() {
                    super::a_flipped_byte_is_noticed_and_repaired::<$runtime>(folder.path().to_owned());
                }
            }
        }
    };
}

backend!(glommio, engine::runtime::glommio::GlommioRuntime);
backend!(monoio, engine::runtime::monoio::MonoioRuntime<engine::runtime::monoio::Uring>);
backend!(monoio_epoll, engine::runtime::monoio::MonoioRuntime<engine::runtime::monoio::Epoll>);

#[test]
fn a_disk_is_locked_once_and_its_lock_ends_with_its_holder() {
    let Some(folder) = folder() else { return };
    let lock = DiskLock::acquire(folder.path()).unwrap();
    let second = DiskLock::acquire(folder.path()).unwrap_err();
    assert!(second.to_string().contains("in use by another process"), "{second}");
    assert!(!second.remedy.is_empty());
    drop(lock);
    DiskLock::acquire(folder.path()).unwrap();
}

#[test]
fn a_folder_on_tmpfs_is_refused_with_the_remedy() {
    let Ok(folder) = tempfile::tempdir_in("/dev/shm") else {
        eprintln!("SKIPPED: no tmpfs at /dev/shm");
        return;
    };
    let refused = DiskLock::acquire(folder.path()).unwrap_err();
    assert!(refused.to_string().contains("tmpfs"), "{refused}");
    assert!(refused.remedy.contains("ext4 or XFS"));
}
