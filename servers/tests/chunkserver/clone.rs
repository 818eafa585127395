//! A server makes a whole replica from others: only what it has not, from whoever has it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use wire::clone::{CloneChunk, Cloned};
use wire::hello::Role;
use wire::member::ReplicaState;
use wire::{ChunkHandle, Epoch, Fault, InodeId, Kind, Reason, Seq, Term};

use crate::cluster::Cluster;
use crate::peer::{Op, pattern, read_all};

const CHUNK: ChunkHandle = ChunkHandle(41);
const LEN: usize = (1 << 20) + 777;
const BLOCKS: usize = LEN.div_ceil(4096);
/// Of the master's log.
const AUTHORITY: u64 = 900;

/// A chunk that is sealed on the first `holders` of some servers; gives how it is to be cloned.
async fn sealed(servers: usize, holders: usize, bytes: &[u8]) -> (Cluster, CloneChunk) {
    let cluster = Cluster::start(servers, 2).await;
    let chain: Vec<usize> = (0..holders).collect();
    cluster.create(CHUNK, &chain).await;
    write(&cluster, bytes).await;
    let clone = seal(&cluster, &chain).await;
    (cluster, clone)
}

async fn write(cluster: &Cluster, bytes: &[u8]) {
    cluster.client(0, CHUNK).await.append(&Op::new(CHUNK, 1, 1, bytes)).await.unwrap();
}

async fn seal(cluster: &Cluster, holders: &[usize]) -> CloneChunk {
    let mut last = None;
    for index in holders {
        let found = cluster.prepare(*index, CHUNK, 2).await.unwrap();
        cluster.seal(*index, CHUNK, holders[0], &found).await.unwrap();
        cluster.confirm(*index, CHUNK, found.promised, found.len, found.digest).await.unwrap();
        last = Some(found);
    }
    let found = last.unwrap();
    CloneChunk {
        term: Term(1),
        chunk: CHUNK,
        epoch: Epoch(2),
        last_seq: Seq(found.last_seq.0),
        len: found.len,
        digest: found.digest,
        file: InodeId(1),
        prev: ChunkHandle::NONE,
        sources: holders.iter().map(|index| cluster.member(*index)).collect(),
        authority: 0,
        rate: 0,
    }
}

async fn clone(cluster: &Cluster, to: usize, clone: &CloneChunk) -> Result<Cloned, Fault> {
    cluster.dial(to, Role::Master, CHUNK).await.call(clone).await
}

async fn content(cluster: &Cluster, index: usize) -> Vec<u8> {
    read_all(&mut cluster.client(index, CHUNK).await, CHUNK, LEN as u32, Seq(0)).await.unwrap()
}

/// The slot file that begins with these bytes.
fn slot(root: &Path, bytes: &[u8]) -> PathBuf {
    let slots = std::fs::read_dir(root.join("slots")).unwrap().map(|entry| entry.unwrap().path());
    let begins = |path: &PathBuf| {
        let mut first = vec![0; 4096];
        File::open(path).unwrap().read_exact_at(&mut first, 4096 * 3).is_ok() && first == bytes[4096 * 3..4096 * 4]
    };
    slots.filter(begins).last().expect("the chunk is in a slot file, byte for byte")
}

fn rot(slot: &Path, blocks: impl IntoIterator<Item = u64>) {
    let file = File::options().read(true).write(true).open(slot).unwrap();
    for block in blocks {
        let mut byte = [0];
        file.read_exact_at(&mut byte, block * 4096 + 9).unwrap();
        file.write_all_at(&[byte[0] ^ 4], block * 4096 + 9).unwrap();
    }
    file.sync_all().unwrap();
}

#[tokio::test]
async fn a_server_that_never_had_a_chunk_gets_a_replica_that_outlives_the_sources() {
    let bytes = pattern(1, LEN);
    let (mut cluster, mut wanted) = sealed(3, 2, &bytes).await;
    wanted.rate = 64 << 20;
    let refused = clone(&cluster, 2, &CloneChunk { digest: [1; 16], ..wanted.clone() }).await;
    assert_eq!(refused.unwrap_err().kind, Kind::Unavailable, "no source has that");
    assert_eq!(cluster.digest_or_none(2, CHUNK).await, None, "and nothing is there of it");
    let made = clone(&cluster, 2, &wanted).await.unwrap();
    assert_eq!(made, Cloned { fetched: LEN as u32, kept: 0 });
    let again = clone(&cluster, 2, &wanted).await.unwrap();
    assert_eq!(again, Cloned { fetched: 0, kept: LEN as u32 }, "what is here is not fetched");
    cluster.stop_server(0).await;
    cluster.stop_server(1).await;
    cluster.stop_server(2).await;
    cluster.start_server(2).await;
    assert!(content(&cluster, 2).await == bytes);
    let digest = cluster.digest(2, CHUNK).await;
    assert_eq!((digest.state, digest.digest, digest.epoch), (ReplicaState::Sealed, wanted.digest, Epoch(2)));
    cluster.stop().await;
}

#[tokio::test]
async fn a_replica_that_was_left_behind_fetches_only_what_it_lacks_and_only_at_the_masters_word() {
    let bytes = pattern(2, LEN);
    let cluster = Cluster::start(3, 2).await;
    cluster.create(CHUNK, &[0, 1, 2]).await;
    // The third hears of a part only: as one that was cut off.
    let first = &bytes[..700_000];
    write(&cluster, first).await;
    cluster.prepare(2, CHUNK, 2).await.unwrap();
    let mut lonely = cluster.client(0, CHUNK).await;
    lonely.send_append(&Op::new(CHUNK, 1, 2, &bytes[700_000..])).await;
    cluster.wait_len(1, CHUNK, LEN as u32).await;
    let wanted = seal(&cluster, &[0, 1]).await;
    let refused = clone(&cluster, 2, &wanted).await.unwrap_err();
    assert_eq!(refused.reason, Reason::ChunkExists, "nothing is replaced without authority");
    let made = clone(&cluster, 2, &CloneChunk { authority: AUTHORITY, ..wanted.clone() }).await.unwrap();
    assert_eq!(made.fetched + made.kept, LEN as u32);
    assert_eq!(made.kept, 700_000 / 4096 * 4096, "whole blocks that agree are not fetched");
    assert!(content(&cluster, 2).await == bytes);
    assert_eq!(cluster.metric(2, "hercules_clone_bytes_total").await, f64::from(made.fetched));
    cluster.stop().await;
}

#[tokio::test]
async fn two_rotten_sources_make_one_good_replica_and_a_block_that_is_bad_at_both_makes_none() {
    let bytes = pattern(3, LEN);
    let (mut cluster, mut wanted) = sealed(3, 2, &bytes).await;
    let slots = [slot(&cluster.root(0), &bytes), slot(&cluster.root(1), &bytes)];
    for index in 0..2 {
        cluster.stop_server(index).await;
    }
    rot(&slots[0], (0..BLOCKS as u64).filter(|block| block % 2 == 0));
    rot(&slots[1], (0..BLOCKS as u64).filter(|block| block % 2 == 1));
    for index in 0..2 {
        cluster.start_server(index).await;
    }
    wanted.sources = vec![cluster.member(0), cluster.member(1)];
    let made = clone(&cluster, 2, &wanted).await.unwrap();
    assert_eq!(made, Cloned { fetched: LEN as u32, kept: 0 });
    assert!(content(&cluster, 2).await == bytes);

    let (mut cluster, mut wanted) = sealed(3, 2, &bytes).await;
    let slots = [slot(&cluster.root(0), &bytes), slot(&cluster.root(1), &bytes)];
    for (index, slot) in slots.iter().enumerate() {
        cluster.stop_server(index).await;
        rot(slot, [7]);
        cluster.start_server(index).await;
    }
    wanted.sources = vec![cluster.member(0), cluster.member(1)];
    let fault = clone(&cluster, 2, &wanted).await.unwrap_err();
    assert!(fault.text.contains("block 7 is good at no source"), "{fault}");
    assert_eq!(cluster.digest_or_none(2, CHUNK).await, None, "an error, and never wrong bytes");
    cluster.stop().await;
}
