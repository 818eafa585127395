//! Members that go away, promises, and what a seal makes of it.

use wire::forward::{EntryKind, Forward, Nak, NakReason, Up};
use wire::hello::Role;
use wire::member::ReplicaState;
use wire::read::Read;
use wire::report::Trouble;
use wire::{ChunkHandle, Epoch, Kind, OpId, Reason, Seq, StreamId, checksum};

use crate::cluster::Cluster;
use crate::master::Told;
use crate::peer::{Op, Peer, pattern, read_all, send};

const CHUNK: ChunkHandle = ChunkHandle(4711);

#[tokio::test]
async fn with_a_member_gone_nothing_is_acknowledged_and_the_seal_makes_the_others_equal_again() {
    let mut cluster = Cluster::start(3, 1).await;
    cluster.create(CHUNK, &[0, 1, 2]).await;
    let mut client = cluster.client(0, CHUNK).await;
    let acked = pattern(1, 100_001);
    client.append(&Op::new(CHUNK, 1, 1, &acked)).await.unwrap();

    cluster.stop_server(2).await;
    let pending = pattern(2, 2_500_000);
    let request = client.send_append(&Op::new(CHUNK, 1, 2, &pending)).await;
    let told = cluster.master.wait(|told| if let Told::Report(report) = told { Some(report) } else { None }).await;
    assert_eq!((told.chunk, told.epoch), (CHUNK, Epoch(1)));
    assert!(matches!(told.trouble, Trouble::NoAnswer | Trouble::Stalled), "{told:?}");

    // Durable on two is not committed: no member shows it.
    for index in 0..2 {
        let beyond = Read { chunk: CHUNK, epoch: Epoch(1), offset: 100_001, len: 10, min_seq: Seq(0) };
        let fault = cluster.client(index, CHUNK).await.read(&beyond).await.unwrap_err();
        assert_eq!((fault.kind, fault.detail), (Kind::NotCommitted, 100_001), "member {index}");
    }

    // The lost member comes back: restarted, it is silent in its old epoch.
    cluster.start_server(2).await;
    let found = [
        cluster.prepare(0, CHUNK, 2).await.unwrap(),
        cluster.prepare(1, CHUNK, 2).await.unwrap(),
        cluster.prepare(2, CHUNK, 2).await.unwrap(),
    ];
    let unknown = client.receive().await.unwrap();
    assert_eq!(unknown.header.request_id, request);
    assert_eq!(unknown.reply::<wire::append::Appended>().unwrap_err().kind, Kind::Unknown);
    assert_eq!(found.each_ref().map(|it| it.state), [ReplicaState::Open, ReplicaState::Open, ReplicaState::Rwr]);
    assert_eq!(found.each_ref().map(|it| it.len), [2_600_001, 2_600_001, 100_001]);
    assert_eq!(found[0].digest, found[1].digest);
    assert!(found.iter().all(|it| it.healthy && it.promised == Epoch(2)));
    let again = cluster.prepare(0, CHUNK, 2).await.unwrap();
    assert_eq!(again, found[0], "the same question again gets the same answer");
    assert_eq!(cluster.prepare(0, CHUNK, 1).await.unwrap_err().kind, Kind::StaleEpoch);

    let tables: Vec<_> = [
        cluster.seal(0, CHUNK, 0, &found[0]).await.unwrap(),
        cluster.seal(1, CHUNK, 0, &found[0]).await.unwrap(),
        cluster.seal(2, CHUNK, 0, &found[0]).await.unwrap(),
    ]
    .into_iter()
    .map(|ok| ok.dedup)
    .collect();
    assert_eq!(tables[0], tables[2], "the filled member has the table of the source");
    assert!(tables[0].iter().any(|entry| entry.id.op == 2), "a retry of the unanswered operation will be found");

    // Filled is not sealed: a reader sees what was committed before.
    let beyond = Read { chunk: CHUNK, epoch: Epoch(2), offset: 100_001, len: 10, min_seq: Seq(0) };
    assert_eq!(cluster.client(2, CHUNK).await.read(&beyond).await.unwrap_err().kind, Kind::NotCommitted);

    for index in 0..3 {
        cluster.confirm(index, CHUNK, Epoch(2), found[0].len, found[0].digest).await.unwrap();
        let digest = cluster.digest(index, CHUNK).await;
        assert_eq!((digest.state, digest.digest), (ReplicaState::Sealed, found[0].digest), "member {index}");
        let read = read_all(&mut cluster.client(index, CHUNK).await, CHUNK, 2_600_001, Seq(0)).await.unwrap();
        assert!(read[..100_001] == acked && read[100_001..] == pending, "member {index}");
    }
    assert!(cluster.metric(2, "hercules_filled_bytes_total").await >= 2_500_000.0);
    cluster.stop().await;
}

#[tokio::test]
async fn a_member_that_promised_takes_nothing_more_of_the_old_epoch() {
    let mut cluster = Cluster::start(2, 1).await;
    cluster.create(CHUNK, &[0, 1]).await;
    let mut client = cluster.client(0, CHUNK).await;
    client.append(&Op::new(CHUNK, 1, 1, b"before")).await.unwrap();
    cluster.prepare(1, CHUNK, 2).await.unwrap();
    // The head does not know yet. It forwards, is refused, and can never collect this answer again.
    let request = client.send_append(&Op::new(CHUNK, 1, 2, b"after")).await;
    let told = cluster.master.wait(|told| if let Told::Report(report) = told { Some(report) } else { None }).await;
    assert_eq!((told.chunk, told.suspect), (CHUNK, cluster.server(1)));
    let head = cluster.prepare(0, CHUNK, 2).await.unwrap();
    let answer = client.receive().await.unwrap();
    assert_eq!(answer.header.request_id, request);
    assert_eq!(answer.reply::<wire::append::Appended>().unwrap_err().kind, Kind::Unknown);
    assert_eq!(head.len, 11, "the head has it, and the longest log wins");
    let fenced = client.append(&Op::new(CHUNK, 1, 3, b"late")).await.unwrap_err();
    assert_eq!(fenced.kind, Kind::StaleEpoch);
    cluster.stop().await;
}

#[tokio::test]
async fn a_replica_with_other_content_refuses_the_seal() {
    let cluster = Cluster::start(2, 1).await;
    cluster.create(CHUNK, &[0, 1]).await;
    cluster.client(0, CHUNK).await.append(&Op::new(CHUNK, 1, 1, b"content")).await.unwrap();
    let mut found = cluster.prepare(0, CHUNK, 2).await.unwrap();
    cluster.prepare(1, CHUNK, 2).await.unwrap();
    found.digest[0] ^= 1;
    assert_eq!(cluster.seal(1, CHUNK, 0, &found).await.unwrap_err().kind, Kind::StaleEpoch);
    found.digest[0] ^= 1;
    cluster.seal(1, CHUNK, 0, &found).await.unwrap();
    let other = cluster.confirm(1, CHUNK, Epoch(2), found.len, [9; 16]).await.unwrap_err();
    assert_eq!(other.kind, Kind::StaleEpoch);
    cluster.confirm(1, CHUNK, Epoch(2), found.len, found.digest).await.unwrap();
    cluster.stop().await;
}

#[tokio::test]
async fn a_restarted_head_appends_nothing_until_it_is_sealed() {
    let mut cluster = Cluster::start(2, 1).await;
    cluster.create(CHUNK, &[0, 1]).await;
    cluster.client(0, CHUNK).await.append(&Op::new(CHUNK, 1, 1, b"one")).await.unwrap();
    cluster.stop_server(0).await;
    cluster.start_server(0).await;
    let mut client = cluster.client(0, CHUNK).await;
    let rwr = client.append(&Op::new(CHUNK, 1, 2, b"two")).await.unwrap_err();
    assert_eq!((rwr.kind, rwr.reason), (Kind::StaleEpoch, Reason::Rwr));
    // A master that repeats an old CREATE does not bring it back.
    assert_eq!(cluster.create_at(CHUNK, &[0, 1], 0).await.unwrap_err().reason, Reason::ChunkExists);
    assert_eq!(client.append(&Op::new(CHUNK, 1, 2, b"two")).await.unwrap_err().reason, Reason::Rwr);
    // The member that did not restart answers it as before.
    cluster.create_at(CHUNK, &[0, 1], 1).await.unwrap();
    cluster.stop().await;
}

fn forward(epoch: u32, seq: u64, offset: u32, bytes: &[u8]) -> Forward {
    Forward {
        chunk: CHUNK,
        epoch: Epoch(epoch),
        kind: EntryKind::Append,
        seq: Seq(seq),
        id: OpId { stream: StreamId([1; 16]), op: seq },
        first_unacked: seq,
        op_off: offset,
        op_len: bytes.len() as u32,
        offset,
        length: bytes.len() as u32,
        part: 0,
        parts: 1,
        committed_seq: Seq(0),
        digest: [0; 16],
        crcs: checksum::block_crcs(bytes),
    }
}

async fn expect_up(member: &mut Peer) -> u64 {
    member.receive().await.unwrap().open::<Up>().durable_seq.0
}

#[tokio::test]
async fn a_member_takes_the_next_entry_names_gaps_and_repeats_itself_for_duplicates() {
    let cluster = Cluster::start(2, 1).await;
    cluster.create(CHUNK, &[0, 1]).await;
    // The test plays the head.
    let mut member = cluster.dial(1, Role::Member, CHUNK).await;
    send(&mut member.stream, &forward(1, 1, 0, b"first"), 0, b"first").await;
    assert_eq!(expect_up(&mut member).await, 1);
    send(&mut member.stream, &forward(1, 3, 11, b"third"), 0, b"third").await;
    let nak: Nak = member.receive().await.unwrap().open();
    assert_eq!((nak.reason, nak.next_seq), (NakReason::Gap, Seq(2)));
    send(&mut member.stream, &forward(1, 1, 0, b"first"), 0, b"first").await;
    assert_eq!(expect_up(&mut member).await, 1, "a duplicate is not written, and its durability is said again");
    send(&mut member.stream, &forward(1, 2, 5, b"second"), 0, b"second").await;
    send(&mut member.stream, &forward(1, 3, 11, b"third"), 0, b"third").await;
    let mut durable = 0;
    while durable < 3 {
        durable = expect_up(&mut member).await;
    }
    send(&mut member.stream, &forward(2, 4, 16, b"other epoch"), 0, b"other epoch").await;
    let nak: Nak = member.receive().await.unwrap().open();
    assert_eq!(nak.reason, NakReason::Fenced);
    cluster.stop().await;
}

#[tokio::test]
async fn a_damaged_entry_ends_the_connection_and_is_neither_written_nor_passed_on() {
    let cluster = Cluster::start(3, 1).await;
    cluster.create(CHUNK, &[0, 1, 2]).await;
    let mut member = cluster.dial(1, Role::Member, CHUNK).await;
    send(&mut member.stream, &forward(1, 1, 0, b"first"), 0, b"fIrst").await;
    assert!(member.is_closed().await);
    let mut member = cluster.dial(1, Role::Member, CHUNK).await;
    send(&mut member.stream, &forward(1, 1, 0, b"first"), 0, b"first").await;
    assert_eq!(expect_up(&mut member).await, 1);
    assert_eq!(cluster.digest(1, CHUNK).await.digest, cluster.digest(2, CHUNK).await.digest);
    assert!(cluster.metric(1, "hercules_bad_payloads_total").await >= 1.0);
    cluster.stop().await;
}

#[tokio::test]
async fn a_final_entry_with_another_digest_is_refused_and_reported() {
    let mut cluster = Cluster::start(2, 1).await;
    cluster.create(CHUNK, &[0, 1]).await;
    let mut member = cluster.dial(1, Role::Member, CHUNK).await;
    send(&mut member.stream, &forward(1, 1, 0, b"first"), 0, b"first").await;
    assert_eq!(expect_up(&mut member).await, 1);
    let last = Forward { kind: EntryKind::Final, op_off: 5, digest: [9; 16], ..forward(1, 2, 0, b"") };
    send(&mut member.stream, &last, 0, b"").await;
    let nak: Nak = member.receive().await.unwrap().open();
    assert_eq!(nak.reason, NakReason::Disk);
    let told = cluster.master.wait(|told| if let Told::Report(report) = told { Some(report) } else { None }).await;
    assert_eq!((told.trouble, told.suspect), (Trouble::Diverged, cluster.server(1)));
    cluster.stop().await;
}
