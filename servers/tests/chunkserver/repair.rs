//! Bad blocks are found by reads and by scrub, and replaced from another replica.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use servers::chunkserver::{self, Config};
use wire::read::Read;
use wire::{ChunkHandle, Epoch, Kind, Reason, Seq};

use crate::cluster::Cluster;
use crate::peer::{Op, pattern, read_all};

const CHUNK: ChunkHandle = ChunkHandle(41);
const LEN: usize = (1 << 20) + 777;

/// A sealed chunk on three servers, whose master says who holds it.
async fn sealed(chunk: ChunkHandle) -> (Cluster, Vec<u8>) {
    let cluster = Cluster::start(3, 2).await;
    let bytes = pattern(chunk.0 as u8, LEN);
    put(&cluster, chunk, &bytes).await;
    (cluster, bytes)
}

async fn put(cluster: &Cluster, chunk: ChunkHandle, bytes: &[u8]) {
    cluster.create(chunk, &[0, 1, 2]).await;
    let op = Op { last: true, ..Op::new(chunk, 1, 1, bytes) };
    cluster.client(0, chunk).await.append(&op).await.unwrap();
    for index in 0..3 {
        let found = cluster.prepare(index, chunk, 2).await.unwrap();
        cluster.seal(index, chunk, index, &found).await.unwrap();
        cluster.confirm(index, chunk, found.promised, found.len, found.digest).await.unwrap();
    }
    cluster.master.holds(chunk, &[cluster.server(0), cluster.server(1), cluster.server(2)]);
}

/// The slot file that begins with these bytes.
fn slot(root: &Path, bytes: &[u8]) -> PathBuf {
    let slots = std::fs::read_dir(root.join("slots")).unwrap().map(|entry| entry.unwrap().path());
    let begins = |path: &PathBuf| {
        let mut first = vec![0; 4096];
        File::open(path).unwrap().read_exact_at(&mut first, 0).is_ok() && first == bytes[..4096]
    };
    slots.filter(begins).last().expect("the chunk is in a slot file, byte for byte")
}

/// Turns over a bit of these blocks.
fn rot(slot: &Path, blocks: &[u64]) {
    let file = File::options().read(true).write(true).open(slot).unwrap();
    for block in blocks {
        let mut byte = [0];
        file.read_exact_at(&mut byte, block * 4096 + 9).unwrap();
        file.write_all_at(&[byte[0] ^ 4], block * 4096 + 9).unwrap();
    }
    file.sync_all().unwrap();
}

fn on_disk(slot: &Path, block: u64) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    File::open(slot).unwrap().read_exact_at(&mut bytes, block * 4096).unwrap();
    bytes
}

async fn read_block(cluster: &Cluster, index: usize, block: u32) -> Result<Vec<u8>, wire::Fault> {
    let read = Read { chunk: CHUNK, epoch: Epoch(0), offset: block * 4096, len: 4096, min_seq: Seq(0) };
    Ok(cluster.client(index, CHUNK).await.read(&read).await?.1)
}

#[tokio::test]
async fn a_block_that_a_read_found_bad_is_replaced_from_another_replica() {
    let (mut cluster, bytes) = sealed(CHUNK).await;
    let slot = slot(&cluster.root(1), &bytes);
    rot(&slot, &[17]);
    let fault = read_block(&cluster, 1, 17).await.unwrap_err();
    assert_eq!((fault.kind, fault.reason), (Kind::Corrupt, Reason::BadCrc), "the reader goes to another replica");
    cluster.wait_metric(1, "hercules_bad_blocks_repaired_total", 1.0).await;
    assert!(read_block(&cluster, 1, 17).await.unwrap() == bytes[17 * 4096..18 * 4096]);
    assert_eq!(cluster.metric(1, "hercules_bad_blocks_found_total").await, 1.0);
    assert_eq!(cluster.metric(1, "hercules_repairs_waiting").await, 0.0);
    assert_eq!(cluster.metric(1, "hercules_quarantined_slots").await, 0.0);
    assert!(on_disk(&slot, 17) == bytes[17 * 4096..18 * 4096], "it is right in its place");
    // By itself, from its disk.
    for index in 0..3 {
        cluster.stop_server(index).await;
    }
    cluster.start_server(1).await;
    let read = read_all(&mut cluster.client(1, CHUNK).await, CHUNK, LEN as u32, Seq(0)).await.unwrap();
    assert!(read == bytes);
    cluster.stop().await;
}

#[tokio::test]
async fn scrub_finds_and_repairs_what_nobody_read() {
    let (mut cluster, bytes) = sealed(CHUNK).await;
    let slot = slot(&cluster.root(2), &bytes);
    // A full block, and the partial one at the end, which a stop puts in its place.
    cluster.stop_server(2).await;
    rot(&slot, &[200, 256]);
    cluster.start_server(2).await;
    cluster.scrub(2).await;
    cluster.wait_metric(2, "hercules_bad_blocks_repaired_total", 2.0).await;
    assert!(on_disk(&slot, 200) == bytes[200 * 4096..201 * 4096]);
    assert!(on_disk(&slot, 256)[..777] == bytes[256 * 4096..]);
    assert_eq!(cluster.metric(2, "hercules_scrub_errors_total").await, 2.0);
    assert!(cluster.metric(2, "hercules_scrub_bytes_total").await >= 1_048_576.0);
    assert!(cluster.metric(0, "hercules_scrub_bytes_total").await < 1_048_576.0, "the others have 14 days");
    cluster.wait_metric(2, "hercules_scrub_passes_total", 2.0).await;
    assert!(cluster.admin(2, "/metrics").await.contains("hercules_scrub_age_seconds{"), "both shards went through");
    // Nothing is found the second time.
    cluster.scrub(2).await;
    cluster.wait_metric(2, "hercules_scrub_passes_total", 4.0).await;
    assert_eq!(cluster.metric(2, "hercules_scrub_errors_total").await, 2.0);
    cluster.stop().await;
}

#[tokio::test]
async fn a_block_that_is_bad_on_the_peer_as_well_is_taken_from_the_third() {
    let (cluster, bytes) = sealed(CHUNK).await;
    for index in [0, 1] {
        rot(&slot(&cluster.root(index), &bytes), &[3]);
    }
    cluster.scrub(1).await;
    cluster.wait_metric(1, "hercules_bad_blocks_repaired_total", 1.0).await;
    // Asking the first one showed it that its own is bad.
    cluster.wait_metric(0, "hercules_bad_blocks_repaired_total", 1.0).await;
    for index in 0..3 {
        assert!(read_block(&cluster, index, 3).await.unwrap() == bytes[3 * 4096..4 * 4096]);
    }
    cluster.stop().await;
}

#[tokio::test]
async fn without_another_replica_a_bad_block_waits_and_is_never_shown() {
    let (mut cluster, bytes) = sealed(CHUNK).await;
    cluster.stop_server(0).await;
    cluster.stop_server(2).await;
    rot(&slot(&cluster.root(1), &bytes), &[3]);
    cluster.scrub(1).await;
    cluster.wait_metric(1, "hercules_repair_failures_total", 1.0).await;
    assert_eq!(read_block(&cluster, 1, 3).await.unwrap_err().reason, Reason::BadCrc);
    assert_eq!(cluster.metric(1, "hercules_repairs_waiting").await, 1.0);
    cluster.start_server(2).await;
    cluster.wait_metric(1, "hercules_bad_blocks_repaired_total", 1.0).await;
    assert!(read_block(&cluster, 1, 3).await.unwrap() == bytes[3 * 4096..4 * 4096]);
    cluster.stop().await;
}

#[tokio::test]
async fn three_bad_blocks_in_a_day_drain_the_disk_for_good_and_two_do_not() {
    let (mut cluster, bytes) = sealed(CHUNK).await;
    let slot = slot(&cluster.root(1), &bytes);
    let state = r#""state":"draining""#;
    rot(&slot, &[5, 6]);
    cluster.scrub(1).await;
    cluster.wait_metric(1, "hercules_bad_blocks_repaired_total", 2.0).await;
    assert!(!cluster.admin(1, "/health").await.contains(state));
    rot(&slot, &[7]);
    cluster.scrub(1).await;
    cluster.wait_metric(1, "hercules_bad_blocks_repaired_total", 3.0).await;
    for _ in 0..2 {
        let health = cluster.admin(1, "/health").await;
        assert!(health.starts_with("HTTP/1.1 200") && health.contains(state), "{health}");
        let refused = cluster.create_at(ChunkHandle(99), &[1], 0).await.unwrap_err();
        assert_eq!((refused.kind, refused.reason), (Kind::NoSpace, Reason::DiskFull));
        let read = read_all(&mut cluster.client(1, CHUNK).await, CHUNK, LEN as u32, Seq(0)).await.unwrap();
        assert!(read == bytes, "what it has is served");
        cluster.stop_server(1).await;
        cluster.start_server(1).await;
        cluster.wait_health(1, |health| health.contains(state)).await;
    }
    cluster.stop().await;
}

#[tokio::test]
async fn a_short_period_scrubs_without_being_asked_and_zero_does_not() {
    let mut cluster = Cluster::start(1, 1).await;
    cluster.create(CHUNK, &[0]).await;
    let bytes = pattern(1, 100_000);
    cluster.client(0, CHUNK).await.append(&Op::new(CHUNK, 1, 1, &bytes)).await.unwrap();
    for every in [1, 0] {
        cluster.stop_server(0).await;
        let every = std::time::Duration::from_secs(every);
        let config = Config { scrub_every: every, ..cluster.config(0) };
        cluster.servers[0] = Some(chunkserver::start(config).await.unwrap());
        if every.is_zero() {
            cluster.scrub(0).await;
            cluster.wait_metric(0, "hercules_scrub_passes_total", 1.0).await;
            assert_eq!(cluster.metric(0, "hercules_scrub_passes_total").await, 1.0, "only when asked for");
        } else {
            cluster.wait_metric(0, "hercules_scrub_passes_total", 2.0).await;
        }
    }
    cluster.stop().await;
}
