//! What arrives at the data port and does not belong there. Each time: the connection ends or the
//! request is refused, and everybody else is served as before.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wire::append::Append;
use wire::chain::Create;
use wire::frame::{self, HEADER_LEN};
use wire::hello::Role;
use wire::read::Version;
use wire::{ChunkHandle, ClusterId, Epoch, InodeId, Kind, OpId, Reason, StreamId, Term, checksum};

use crate::cluster::{CLUSTER, Cluster};
use crate::peer::{Op, Peer, hello, pattern, send};

const CHUNK: ChunkHandle = ChunkHandle(5);

/// Sends bytes and waits until the server closes; what it sent before is thrown away.
async fn closes_after(address: &str, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let mut rest = Vec::new();
    let limit = std::time::Duration::from_secs(20);
    // A reset is as good as a close.
    let _ = tokio::time::timeout(limit, stream.read_to_end(&mut rest)).await.expect("the server closes");
}

/// A good hello followed by these bytes.
fn after_hello(bytes: &[u8]) -> Vec<u8> {
    let mut out = frame::head(&hello(Role::Client, CLUSTER, 0), 1, 0, 0);
    out.extend_from_slice(bytes);
    out
}

fn recrc(mut head: Vec<u8>) -> Vec<u8> {
    let crc = checksum::crc(&head[4..HEADER_LEN]);
    head[..4].copy_from_slice(&crc.to_le_bytes());
    head
}

#[tokio::test]
async fn garbage_ends_its_own_connection_and_nothing_else() {
    let cluster = Cluster::start(2, 1).await;
    cluster.create(CHUNK, &[0, 1]).await;
    let address = cluster.member(0).address;
    let mut good = cluster.client(0, CHUNK).await;
    good.append(&Op::new(CHUNK, 1, 1, b"before")).await.unwrap();

    let version = Version { chunk: CHUNK, epoch: Epoch(1) };
    let proper = frame::head(&version, 2, 0, 0);
    let flipped = |at: usize| {
        let mut bytes = proper.clone();
        bytes[at] ^= 1;
        bytes
    };
    let mut protocol = proper.clone();
    protocol[16] = 99;
    let mut too_long = proper.clone();
    too_long[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut payload_too_long = proper.clone();
    payload_too_long[12..16].copy_from_slice(&(1_u32 << 30).to_le_bytes());
    let mut unknown_tag = proper.clone();
    unknown_tag[18..20].copy_from_slice(&999_u16.to_le_bytes());
    let mut wrong_payload = proper.clone();
    wrong_payload[12..16].copy_from_slice(&100_u32.to_le_bytes());
    let bad = [
        b"GET / HTTP/1.1\r\nhost: example\r\n\r\n.............".to_vec(),
        flipped(0),
        flipped(20),
        flipped(HEADER_LEN + 3),
        recrc(protocol),
        recrc(too_long),
        recrc(payload_too_long),
        recrc(unknown_tag),
        recrc(wrong_payload),
    ];
    for bytes in &bad {
        closes_after(&address, bytes).await; // instead of a hello
        closes_after(&address, &after_hello(bytes)).await;
    }

    let answer = good.append(&Op::new(CHUNK, 1, 2, b"after")).await.unwrap();
    assert_eq!(answer.offset, 6);
    assert!(cluster.metric(0, "hercules_refused_connections_total").await >= bad.len() as f64);
    assert!(cluster.metric(0, "hercules_bad_connections_total").await >= bad.len() as f64);
    cluster.stop().await;
}

#[tokio::test]
async fn hellos_that_do_not_belong_here_are_told_why() {
    let cluster = Cluster::start(1, 2).await;
    let address = cluster.member(0).address;
    let refusal = |greeting| {
        let address = address.clone();
        async move { Peer::greet(&address, &greeting).await.err().expect("refused").kind }
    };
    assert_eq!(refusal(hello(Role::Client, ClusterId([9; 16]), 0)).await, Kind::Conflict);
    assert_eq!(refusal(hello(Role::Client, CLUSTER, 2)).await, Kind::Invalid);
    assert_eq!(refusal(hello(Role::Chunkserver, CLUSTER, 0)).await, Kind::Invalid);
    let welcome = Peer::greet(&address, &hello(Role::Client, ClusterId::default(), 1)).await.ok().unwrap();
    assert_eq!((welcome.hello.server, welcome.hello.shards), (cluster.server(0), 2));
    assert_eq!(welcome.hello.cluster, CLUSTER);
    cluster.stop().await;
}

#[tokio::test]
async fn a_client_commands_nothing() {
    let cluster = Cluster::start(1, 1).await;
    let mut client = cluster.client(0, CHUNK).await;
    let create = Create {
        term: Term(1),
        chunk: CHUNK,
        epoch: Epoch(1),
        members: vec![cluster.member(0)],
        my_position: 0,
        prev: ChunkHandle::NONE,
        file: InodeId(1),
        dedup: Vec::new(),
    };
    assert_eq!(client.call(&create).await.unwrap_err().kind, Kind::Unauthorized);
    let version = client.call(&Version { chunk: CHUNK, epoch: Epoch(0) }).await.unwrap_err();
    assert_eq!(version.reason, Reason::UnknownChunk, "nothing was made, and the connection still serves");
    // Nor does a master that means somebody else.
    let mut master = cluster.dial(0, Role::Master, CHUNK).await;
    let other = Create { my_position: 1, ..create };
    assert_eq!(master.call(&other).await.unwrap_err().kind, Kind::Invalid);
    cluster.stop().await;
}

#[tokio::test]
async fn damaged_payloads_are_refused_and_the_same_bytes_are_taken_when_sent_again() {
    let cluster = Cluster::start(2, 1).await;
    cluster.create(CHUNK, &[0, 1]).await;
    let mut client = cluster.client(0, CHUNK).await;
    let bytes = pattern(1, 2_000_000);
    let op = Op::new(CHUNK, 1, 1, &bytes);
    let mut frames = op.frames(50);
    let last = frames[0].len() - 1;
    frames[0][last] ^= 4;
    for frame in &frames {
        client.stream.write_all(frame).await.unwrap();
    }
    let fault = client.receive().await.unwrap().reply::<wire::append::Appended>().unwrap_err();
    assert_eq!((fault.kind, fault.reason), (Kind::Corrupt, Reason::BadCrc));
    assert_eq!(client.append(&op).await.unwrap().offset, 0);
    cluster.stop().await;
}

#[tokio::test]
async fn an_expired_request_is_dropped_before_it_is_done() {
    let cluster = Cluster::start(1, 1).await;
    cluster.create(CHUNK, &[0]).await;
    let mut client = cluster.client(0, CHUNK).await;
    // The deadline counts from when the request is read; what is sent slower than it is late.
    let append = Append {
        chunk: CHUNK,
        epoch: Epoch(1),
        flags: 0,
        id: OpId { stream: StreamId([1; 16]), op: 1 },
        first_unacked: 1,
        op_len: 4,
        part: 0,
        parts: 1,
        crcs: checksum::block_crcs(b"late"),
    };
    client.stream.write_all(&frame::head(&append, 60, 20, 4)).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    client.stream.write_all(b"late").await.unwrap();
    let next = client.append(&Op::new(CHUNK, 2, 1, b"in time")).await.unwrap();
    assert_eq!(next.offset, 0, "nothing was written before it, and it is the first answer");
    send(&mut client.stream, &append, 61, b"late").await;
    let again = client.receive().await.unwrap().reply::<wire::append::Appended>().unwrap();
    assert_eq!(again.offset, 7, "the same operation sent again is new");
    cluster.stop().await;
}
