//! Appends through a chain of three.

use std::collections::BTreeSet;

use wire::append::Close;
use wire::limits::{APPEND_LEN_MAX, CHUNK_SIZE, PAYLOAD_LEN_MAX};
use wire::read::Version;
use wire::{ChunkHandle, Epoch, Kind, Reason, Seq, StreamId};

use crate::cluster::Cluster;
use crate::master::Told;
use crate::peer::{LIMIT, Op, Peer, pattern, read_all};

const CHUNK: ChunkHandle = ChunkHandle(77);

#[tokio::test]
async fn operations_of_every_size_land_in_order_and_are_equal_on_every_member() {
    let cluster = Cluster::start(3, 2).await;
    cluster.create(CHUNK, &[0, 1, 2]).await;
    let mut client = cluster.client(0, CHUNK).await;
    let mib = PAYLOAD_LEN_MAX as usize;
    let sizes = [1, 4095, 4096, 4097, 100, 2 * 4096, mib - 1, mib, mib + 1, 3 * mib + 17, 5, APPEND_LEN_MAX as usize];
    let (mut content, mut last) = (Vec::new(), Seq(0));
    for (number, size) in (1..).zip(sizes) {
        let bytes = pattern(number as u8, size);
        let answer = client.append(&Op::new(CHUNK, 1, number, &bytes)).await.unwrap();
        assert_eq!((answer.offset as usize, answer.len as usize), (content.len(), size));
        assert!(answer.committed_seq > last);
        last = answer.committed_seq;
        content.extend_from_slice(&bytes);
    }
    let first = cluster.digest(0, CHUNK).await;
    assert_eq!(first.len as usize, content.len());
    for index in 0..3 {
        assert_eq!(cluster.digest(index, CHUNK).await.digest, first.digest, "member {index}");
        let mut reader = cluster.client(index, CHUNK).await;
        let read = read_all(&mut reader, CHUNK, content.len() as u32, last).await.unwrap();
        assert!(read == content, "member {index} shows other bytes");
    }
    cluster.stop().await;
}

#[tokio::test]
async fn pipelined_operations_of_many_streams_are_each_found_once_where_they_were_answered() {
    const STREAMS: u8 = 8;
    const OPS: u64 = 20;
    let cluster = Cluster::start(3, 1).await;
    cluster.create(CHUNK, &[2, 0, 1]).await;
    let mut writers = tokio::task::JoinSet::new();
    for stream in 1..=STREAMS {
        let mut client = cluster.client(2, CHUNK).await;
        writers.spawn(async move {
            let mut places = Vec::new();
            for op in 1..=OPS {
                let bytes = pattern(stream, 1000 + usize::from(stream) * 37 + op as usize);
                client.send_append(&Op { first_unacked: 1, ..Op::new(CHUNK, stream, op, &bytes) }).await;
            }
            for op in 1..=OPS {
                let answer = client.receive().await.unwrap().reply::<wire::append::Appended>().unwrap();
                places.push((stream, op, answer));
            }
            places
        });
    }
    let places: Vec<_> = writers.join_all().await.into_iter().flatten().collect();
    let total: u32 = places.iter().map(|(_, _, answer)| answer.len).sum();
    let offsets: BTreeSet<u32> = places.iter().map(|(_, _, answer)| answer.offset).collect();
    assert_eq!(offsets.len(), places.len(), "no two operations share a place");
    for index in 0..3 {
        let content = read_all(&mut cluster.client(index, CHUNK).await, CHUNK, total, Seq(0)).await.unwrap();
        for (stream, op, answer) in &places {
            let want = pattern(*stream, 1000 + usize::from(*stream) * 37 + *op as usize);
            let at = answer.offset as usize;
            assert!(content[at..at + answer.len as usize] == want, "stream {stream} op {op} on member {index}");
        }
    }
    let in_order = |stream: u8| {
        let mine = places.iter().filter(|(of, _, _)| *of == stream).map(|(_, _, answer)| answer.offset);
        mine.collect::<Vec<_>>().is_sorted()
    };
    assert!((1..=STREAMS).all(in_order), "a stream's operations keep their order");
    cluster.stop().await;
}

#[tokio::test]
async fn a_retry_gets_the_first_answer_and_gaps_ghosts_and_losses_are_refused() {
    let mut cluster = Cluster::start(2, 1).await;
    cluster.create(CHUNK, &[0, 1]).await;
    let mut client = cluster.client(0, CHUNK).await;
    let first = client.append(&Op::new(CHUNK, 1, 1, b"one")).await.unwrap();
    let second = client.append(&Op::new(CHUNK, 1, 2, b"two")).await.unwrap();
    let again = client.append(&Op { first_unacked: 2, ..Op::new(CHUNK, 1, 2, b"two") }).await.unwrap();
    assert_eq!((again.chunk, again.offset, again.len), (second.chunk, second.offset, second.len));
    // The same over another connection, as after a lost answer.
    let again = cluster.client(0, CHUNK).await.append(&Op::new(CHUNK, 1, 2, b"two")).await.unwrap();
    assert_eq!(again.offset, second.offset);
    assert_eq!(first.offset, 0);
    let gap = client.append(&Op { first_unacked: 3, ..Op::new(CHUNK, 1, 4, b"four") }).await.unwrap_err();
    assert_eq!((gap.reason, gap.detail, gap.kind), (Reason::OutOfOrder, 3, Kind::Invalid));
    let ghost = client.append(&Op::new(CHUNK, 1, 1, b"one")).await.unwrap_err();
    assert_eq!(ghost.reason, Reason::StaleOp);
    let lost = client.append(&Op::new(CHUNK, 1, 9, b"nine")).await.unwrap_err();
    assert_eq!(lost.reason, Reason::LostOps);
    let trouble = cluster.master.wait(|told| if let Told::Report(report) = told { Some(report.trouble) } else { None });
    assert_eq!(trouble.await, wire::report::Trouble::LostOps);
    let third = client.append(&Op::new(CHUNK, 1, 3, b"three")).await.unwrap();
    assert_eq!(third.offset, 6, "what was refused left nothing behind");
    cluster.stop().await;
}

#[tokio::test]
async fn only_the_head_of_the_right_epoch_appends() {
    let cluster = Cluster::start(2, 1).await;
    cluster.create(CHUNK, &[0, 1]).await;
    let second = cluster.client(1, CHUNK).await.append(&Op::new(CHUNK, 1, 1, b"x")).await.unwrap_err();
    assert_eq!((second.kind, second.reason), (Kind::NotPrimary, Reason::NotPrimary));
    let mut client = cluster.client(0, CHUNK).await;
    let stale = client.append(&Op { epoch: Epoch(2), ..Op::new(CHUNK, 1, 1, b"x") }).await.unwrap_err();
    assert_eq!(stale.kind, Kind::StaleEpoch);
    let nowhere = ChunkHandle(78);
    let unknown = client.append(&Op::new(nowhere, 1, 1, b"x")).await.unwrap_err();
    assert_eq!((unknown.kind, unknown.reason), (Kind::NotFound, Reason::UnknownChunk));
    cluster.stop().await;
}

#[tokio::test]
async fn an_operation_that_does_not_fit_ends_the_chunk_and_is_not_split() {
    let mut cluster = Cluster::start(2, 1).await;
    cluster.create(CHUNK, &[0, 1]).await;
    let mut client = cluster.client(0, CHUNK).await;
    let bytes = pattern(3, APPEND_LEN_MAX as usize);
    for op in 1..=3 {
        client.append(&Op::new(CHUNK, 1, op, &bytes)).await.unwrap();
    }
    client.append(&Op::new(CHUNK, 1, 4, &bytes[1..])).await.unwrap();
    let full = client.append(&Op::new(CHUNK, 1, 5, b"22")).await.unwrap_err();
    assert_eq!((full.kind, full.reason), (Kind::Sealed, Reason::ChunkFull));
    let finished = cluster.master.wait(|told| if let Told::Finished(it) = told { Some(it) } else { None }).await;
    assert_eq!((finished.chunk, finished.len), (CHUNK, CHUNK_SIZE - 1));
    assert_eq!(finished.dedup.len(), 1, "the next chunk inherits the newest operation of the stream");
    for index in 0..2 {
        let digest = cluster.digest(index, CHUNK).await;
        assert_eq!((digest.len, digest.digest), (finished.len, finished.digest));
    }
    let still = client.append(&Op::new(CHUNK, 1, 5, b"2")).await.unwrap_err();
    assert_eq!(still.reason, Reason::ChunkFull, "nothing comes after the end, even if it would fit");
    cluster.stop().await;
}

#[tokio::test]
async fn the_last_operation_of_an_upload_seals_its_chunk() {
    let mut cluster = Cluster::start(3, 1).await;
    cluster.create(CHUNK, &[0, 1, 2]).await;
    let mut client = cluster.client(0, CHUNK).await;
    let bytes = pattern(9, 300_000);
    client.append(&Op::new(CHUNK, 1, 1, &bytes)).await.unwrap();
    let answer = client.append(&Op { last: true, ..Op::new(CHUNK, 1, 2, b"end") }).await.unwrap();
    assert_eq!(answer.offset, 300_000);
    let finished = cluster.master.wait(|told| if let Told::Finished(it) = told { Some(it) } else { None }).await;
    assert_eq!((finished.chunk, finished.epoch, finished.len), (CHUNK, Epoch(1), 300_003));
    for index in 0..3 {
        cluster.confirm(index, CHUNK, finished.epoch, finished.len, finished.digest).await.unwrap();
        // Lost answers make the master repeat itself.
        cluster.confirm(index, CHUNK, finished.epoch, finished.len, finished.digest).await.unwrap();
        let read = read_all(&mut cluster.client(index, CHUNK).await, CHUNK, finished.len, Seq(0)).await.unwrap();
        assert!(read[..300_000] == bytes && &read[300_000..] == b"end");
    }
    let sealed = client.append(&Op::new(CHUNK, 1, 3, b"more")).await.unwrap_err();
    assert_eq!((sealed.reason, sealed.detail), (Reason::Sealed, 300_003));
    cluster.stop().await;
}

#[tokio::test]
async fn an_empty_last_operation_seals_and_is_answered_when_the_chain_is_finished() {
    let mut cluster = Cluster::start(2, 1).await;
    cluster.create(CHUNK, &[0, 1]).await;
    let mut client = cluster.client(0, CHUNK).await;
    client.append(&Op::new(CHUNK, 1, 1, b"all of it")).await.unwrap();
    let end = Op { last: true, ..Op::new(CHUNK, 1, 2, b"") };
    let answer = client.append(&end).await.unwrap();
    assert_eq!((answer.offset, answer.len), (9, 0));
    assert_eq!(client.append(&end).await.unwrap().offset, 9, "asked again, answered again");
    let finished = cluster.master.wait(|told| if let Told::Finished(it) = told { Some(it) } else { None }).await;
    assert_eq!(finished.len, 9);
    cluster.stop().await;
}

#[tokio::test]
async fn a_stream_that_was_closed_is_not_inherited() {
    let mut cluster = Cluster::start(1, 1).await;
    cluster.create(CHUNK, &[0]).await;
    let mut client = cluster.client(0, CHUNK).await;
    client.append(&Op::new(CHUNK, 1, 1, b"one")).await.unwrap();
    client.append(&Op::new(CHUNK, 2, 1, b"two")).await.unwrap();
    let close = Close { chunk: CHUNK, epoch: Epoch(1), stream: StreamId([1; 16]) };
    crate::peer::send(&mut client.stream, &close, 0, &[]).await;
    client.append(&Op { last: true, ..Op::new(CHUNK, 2, 2, b"end") }).await.unwrap();
    let finished = cluster.master.wait(|told| if let Told::Finished(it) = told { Some(it) } else { None }).await;
    let streams: Vec<StreamId> = finished.dedup.iter().map(|entry| entry.id.stream).collect();
    assert_eq!(streams, [StreamId([2; 16])]);
    cluster.stop().await;
}

#[tokio::test]
async fn a_client_that_dies_half_way_leaves_nothing_behind() {
    let cluster = Cluster::start(2, 1).await;
    cluster.create(CHUNK, &[0, 1]).await;
    let bytes = pattern(5, 3 << 20);
    {
        use tokio::io::AsyncWriteExt;
        let mut dying = cluster.client(0, CHUNK).await;
        let frames = Op::new(CHUNK, 1, 1, &bytes).frames(9);
        dying.stream.write_all(&frames[0]).await.unwrap();
        dying.stream.write_all(&frames[1][..70_000]).await.unwrap();
    }
    let mut client = cluster.client(0, CHUNK).await;
    // The largest operation needs all the room there is: the dead client's must be free again.
    let largest = pattern(6, APPEND_LEN_MAX as usize);
    let answer = client.append(&Op::new(CHUNK, 2, 1, &largest)).await.unwrap();
    assert_eq!(answer.offset, 0);
    let version = client.call(&Version { chunk: CHUNK, epoch: Epoch(1) }).await.unwrap();
    assert_eq!(version.committed_len, APPEND_LEN_MAX);
    cluster.stop().await;
}

#[tokio::test]
async fn two_operations_that_need_all_the_room_do_not_wait_for_each_other_for_ever() {
    use tokio::io::AsyncWriteExt;
    let cluster = Cluster::start(1, 1).await;
    cluster.create(CHUNK, &[0]).await;
    let bytes = pattern(5, APPEND_LEN_MAX as usize);
    let mut client = cluster.client(0, CHUNK).await;
    let (one, two) = (Op::new(CHUNK, 1, 1, &bytes).frames(101), Op::new(CHUNK, 2, 1, &bytes).frames(102));
    // Their parts interleave on one connection; there is room for one of them.
    let sending = async {
        for (a, b) in one.iter().zip(&two) {
            client.stream.write_all(a).await.unwrap();
            client.stream.write_all(b).await.unwrap();
        }
    };
    tokio::time::timeout(LIMIT, sending).await.expect("the server reads on");
    let mut outcomes = Vec::new();
    for _ in 0..2 {
        let frame = client.receive().await.unwrap();
        outcomes.push((frame.header.request_id, frame.reply::<wire::append::Appended>().map_err(|fault| fault.kind)));
    }
    outcomes.sort_unstable_by_key(|(id, _)| *id);
    assert!(outcomes[0].1.is_ok(), "{outcomes:?}");
    assert_eq!(outcomes[1].1, Err(Kind::Overloaded));
    let again: &mut Peer = &mut client;
    assert_eq!(again.append(&Op::new(CHUNK, 2, 1, &bytes)).await.unwrap().offset, APPEND_LEN_MAX);
    cluster.stop().await;
}
