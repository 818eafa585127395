//! Reads: who may show what, and what damage does.

use wire::chain::{Condemn, Free};
use wire::hello::Role;
use wire::read::{Read, Version};
use wire::report::Trouble;
use wire::{ChunkHandle, Epoch, Kind, Reason, Seq, Term};

use crate::cluster::Cluster;
use crate::master::Told;
use crate::peer::{Op, pattern, read_all};

const CHUNK: ChunkHandle = ChunkHandle(31);

#[tokio::test]
async fn a_member_that_is_asked_for_more_than_it_knows_asks_the_head() {
    let cluster = Cluster::start(3, 2).await;
    cluster.create(CHUNK, &[0, 1, 2]).await;
    let mut client = cluster.client(0, CHUNK).await;
    let mut tail = cluster.client(2, CHUNK).await;
    for op in 1..=20 {
        let answer = client.append(&Op::new(CHUNK, 1, op, &pattern(op as u8, 777))).await.unwrap();
        // At once, before any COMMIT can have come by itself.
        let read =
            Read { chunk: CHUNK, epoch: Epoch(1), offset: answer.offset, len: 777, min_seq: answer.committed_seq };
        let (data, payload) = tail.read(&read).await.unwrap();
        let skip = (answer.offset - data.offset) as usize;
        assert!(payload[skip..skip + 777] == pattern(op as u8, 777), "read your writes, op {op}");
        assert!(data.committed_seq >= answer.committed_seq);
    }
    let beyond = Read { chunk: CHUNK, epoch: Epoch(1), offset: 20 * 777, len: 1, min_seq: Seq(0) };
    let fault = tail.read(&beyond).await.unwrap_err();
    assert_eq!((fault.kind, fault.reason, fault.detail), (Kind::NotCommitted, Reason::NotCommitted, 20 * 777));
    let head_only = tail.call(&Version { chunk: CHUNK, epoch: Epoch(1) }).await.unwrap_err();
    assert_eq!(head_only.kind, Kind::NotPrimary);
    cluster.stop().await;
}

#[tokio::test]
async fn ranges_of_any_alignment_come_back_exact() {
    let cluster = Cluster::start(1, 1).await;
    cluster.create(CHUNK, &[0]).await;
    let mut client = cluster.client(0, CHUNK).await;
    let bytes = pattern(8, 1_200_000);
    client.append(&Op::new(CHUNK, 1, 1, &bytes)).await.unwrap();
    for (offset, len) in
        [(0, 1), (1, 4095), (4095, 2), (4096, 4096), (1_000_000, 200_000), (1_199_999, 1), (100, 1 << 19)]
    {
        let read = Read { chunk: CHUNK, epoch: Epoch(1), offset, len, min_seq: Seq(0) };
        let (data, payload) = client.read(&read).await.unwrap();
        assert_eq!(data.offset, offset / 4096 * 4096);
        let skip = (offset - data.offset) as usize;
        let want = &bytes[offset as usize..(offset + len) as usize];
        assert!(&payload[skip..skip + len as usize] == want, "{offset}+{len}");
    }
    // Across the end: what there is.
    let read = Read { chunk: CHUNK, epoch: Epoch(1), offset: 1_199_000, len: 5000, min_seq: Seq(0) };
    let (data, _) = client.read(&read).await.unwrap();
    assert_eq!(data.offset + data.len, 1_200_000);
    cluster.stop().await;
}

#[tokio::test]
async fn what_is_read_again_or_in_order_costs_the_device_little() {
    let cluster = Cluster::start(1, 1).await;
    cluster.create(CHUNK, &[0]).await;
    let mut client = cluster.client(0, CHUNK).await;
    let bytes = pattern(8, 1 << 20);
    client.append(&Op::new(CHUNK, 1, 1, &bytes)).await.unwrap();
    let device_reads = async || cluster.metric(0, "hercules_device_reads_total").await;
    let mut read_blocks = async |blocks: std::ops::Range<u32>| {
        for offset in blocks.map(|block| block * 4096) {
            let read = Read { chunk: CHUNK, epoch: Epoch(1), offset, len: 4096, min_seq: Seq(0) };
            let (_, payload) = client.read(&read).await.unwrap();
            assert!(payload == bytes[offset as usize..offset as usize + 4096]);
        }
    };
    read_blocks(200..201).await;
    let once = device_reads().await;
    read_blocks(200..201).await;
    assert!((device_reads().await - once).abs() < 0.5, "from memory");
    assert!(cluster.metric(0, "hercules_read_cache_hits_total").await >= 1.0);
    assert!(cluster.metric(0, "hercules_read_cache_bytes").await >= 4096.0);
    read_blocks(0..128).await;
    let scan = device_reads().await - once;
    assert!(scan <= 8.0, "{scan} reads of the device for 128 blocks in order");
    assert!(cluster.metric(0, "hercules_read_ahead_used_total").await >= 120.0);
    cluster.stop().await;
}

/// Flips one byte of every slot file at this offset and gives how many files have it.
fn flip(root: &std::path::Path, at: u64) -> usize {
    use std::os::unix::fs::FileExt;
    let slots = std::fs::read_dir(root.join("slots")).unwrap().map(|entry| entry.unwrap().path());
    let mut flipped = 0;
    for path in slots {
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut byte = [0];
        if file.read_at(&mut byte, at).unwrap_or(0) == 1 && byte[0] != 0 {
            file.write_at(&[byte[0] ^ 0x10], at).unwrap();
            flipped += 1;
        }
    }
    flipped
}

#[tokio::test]
async fn a_rotten_block_is_never_shown_is_counted_and_reported_and_the_other_member_still_serves_it() {
    let mut cluster = Cluster::start(2, 1).await;
    cluster.create(CHUNK, &[0, 1]).await;
    let mut client = cluster.client(0, CHUNK).await;
    let mut bytes = pattern(8, 1 << 20);
    bytes[500_000] = 0x55;
    client.append(&Op { last: true, ..Op::new(CHUNK, 1, 1, &bytes) }).await.unwrap();
    let finished = cluster.master.wait(|told| if let Told::Finished(it) = told { Some(it) } else { None }).await;
    for index in 0..2 {
        cluster.confirm(index, CHUNK, finished.epoch, finished.len, finished.digest).await.unwrap();
    }
    assert_eq!(flip(&cluster.root(1), 500_000), 1);
    let read = Read { chunk: CHUNK, epoch: Epoch(0), offset: 499_000, len: 2000, min_seq: Seq(0) };
    let mut second = cluster.client(1, CHUNK).await;
    let fault = second.read(&read).await.unwrap_err();
    assert_eq!((fault.kind, fault.reason), (Kind::Corrupt, Reason::BadCrc));
    let told = cluster.master.wait(|told| if let Told::Report(report) = told { Some(report) } else { None }).await;
    assert_eq!((told.chunk, told.trouble, told.suspect), (CHUNK, Trouble::BadBlock, cluster.server(1)));
    assert!(cluster.metric(1, "hercules_bad_block_reads_total").await >= 1.0);
    let elsewhere = Read { offset: 0, len: 4096, ..read };
    assert!(second.read(&elsewhere).await.is_ok(), "the rest of the replica is fine");
    let whole = read_all(&mut cluster.client(0, CHUNK).await, CHUNK, 1 << 20, Seq(0)).await.unwrap();
    assert!(whole == bytes);
    cluster.stop().await;
}

#[tokio::test]
async fn a_condemned_replica_is_gone_from_reads_and_needs_its_authority_to_be_freed() {
    let cluster = Cluster::start(1, 1).await;
    cluster.create(CHUNK, &[0]).await;
    cluster.client(0, CHUNK).await.append(&Op::new(CHUNK, 1, 1, b"content")).await.unwrap();
    let mut master = cluster.dial(0, Role::Master, CHUNK).await;
    let condemn = Condemn { term: Term(1), chunk: CHUNK, authority: 0, now_unix: 1 };
    assert_eq!(master.call(&condemn).await.unwrap_err().kind, Kind::Invalid, "no authority, no deletion");
    let early = Free { term: Term(1), chunk: CHUNK, authority: 5 };
    assert!(master.call(&early).await.is_err(), "what is not condemned is not freed");
    master.call(&Condemn { authority: 5, ..condemn }).await.unwrap();
    let read = Read { chunk: CHUNK, epoch: Epoch(0), offset: 0, len: 1, min_seq: Seq(0) };
    assert_eq!(cluster.client(0, CHUNK).await.read(&read).await.unwrap_err().kind, Kind::NotFound);
    assert!(master.call(&Free { authority: 6, ..early }).await.is_err(), "not by another authority");
    master.call(&early).await.unwrap();
    cluster.stop().await;
}
