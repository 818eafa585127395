//! A client, member or master made of a socket, which can also misbehave.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wire::append::{Append, Appended, LAST};
use wire::frame::{self, HEADER_LEN, Header};
use wire::hello::{Hello, HelloOk, Role};
use wire::limits::PAYLOAD_LEN_MAX;
use wire::member::Member;
use wire::message::tag;
use wire::read::{Data, Read};
use wire::{Body, ChunkHandle, ClusterId, Epoch, Fault, OpId, Request, Seq, ServerId, StreamId, Term, checksum};

/// No answer takes longer; one that does fails the test.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// A received frame.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) header: Header,
    fields: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    pub(crate) fn open<B: Body>(&self) -> B {
        frame::open(&self.header, &self.fields).unwrap_or_else(|cause| panic!("tag {}: {cause}", self.header.tag))
    }

    /// An answer of this sort, or a fault.
    pub(crate) fn reply<B: Body>(&self) -> Result<B, Fault> {
        if self.header.tag == tag::FAULT { Err(self.open()) } else { Ok(self.open()) }
    }
}

/// The next frame, `None` when the other side has closed.
pub(crate) async fn receive(stream: &mut TcpStream) -> Option<Frame> {
    let mut head = [0; HEADER_LEN];
    stream.read_exact(&mut head).await.ok()?;
    let header = Header::decode_exact(&head).expect("a server sends proper frames");
    let mut fields = vec![0; header.fields_len as usize];
    stream.read_exact(&mut fields).await.ok()?;
    let mut payload = vec![0; header.payload_len as usize];
    stream.read_exact(&mut payload).await.ok()?;
    Some(Frame { header, fields, payload })
}

pub(crate) async fn send<B: Body>(stream: &mut TcpStream, body: &B, request_id: u64, payload: &[u8]) {
    let mut bytes = frame::head(body, request_id, 0, payload.len());
    bytes.extend_from_slice(payload);
    // A closed connection shows when the answer is read.
    let _ = stream.write_all(&bytes).await;
}

/// A connection to one shard.
pub(crate) struct Peer {
    pub(crate) stream: TcpStream,
    pub(crate) hello: HelloOk,
    next_id: u64,
}

pub(crate) fn hello(role: Role, cluster: ClusterId, shard: u32) -> Hello {
    Hello { role, server: ServerId(0), boot: 7, cluster, shard, term: Term(1) }
}

impl Peer {
    pub(crate) async fn dial(member: &Member, role: Role, cluster: ClusterId, chunk: ChunkHandle) -> Self {
        let greeting = hello(role, cluster, chunk.shard(member.shards));
        Self::greet(&member.address, &greeting).await.expect("welcome")
    }

    pub(crate) async fn greet(address: &str, greeting: &Hello) -> Result<Self, Fault> {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        send(&mut stream, greeting, 1, &[]).await;
        let frame = receive(&mut stream).await.expect("an answer to hello");
        Ok(Self { hello: frame.reply()?, stream, next_id: 2 })
    }

    pub(crate) fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(crate) async fn receive(&mut self) -> Option<Frame> {
        tokio::time::timeout(LIMIT, receive(&mut self.stream)).await.expect("an answer in time")
    }

    pub(crate) async fn call<Q: Request>(&mut self, request: &Q) -> Result<Q::Reply, Fault> {
        let id = self.id();
        send(&mut self.stream, request, id, &[]).await;
        let frame = self.receive().await.expect("the connection lives");
        assert_eq!(frame.header.request_id, id);
        frame.reply()
    }

    pub(crate) async fn read(&mut self, read: &Read) -> Result<(Data, Vec<u8>), Fault> {
        let id = self.id();
        send(&mut self.stream, read, id, &[]).await;
        let frame = self.receive().await.expect("the connection lives");
        let data: Data = frame.reply()?;
        assert!(checksum::matches(&frame.payload, &data.crcs), "bytes and checksums agree");
        Ok((data, frame.payload))
    }

    /// Sends a whole operation without waiting for the answer.
    pub(crate) async fn send_append(&mut self, op: &Op<'_>) -> u64 {
        let id = self.id();
        for frame in op.frames(id) {
            let _ = self.stream.write_all(&frame).await;
        }
        id
    }

    pub(crate) async fn append(&mut self, op: &Op<'_>) -> Result<Appended, Fault> {
        let id = self.send_append(op).await;
        let frame = self.receive().await.expect("the connection lives");
        assert_eq!(frame.header.request_id, id);
        frame.reply()
    }

    /// Whether the server closes this connection, sending nothing more.
    pub(crate) async fn is_closed(&mut self) -> bool {
        self.receive().await.is_none()
    }
}

/// One operation of a stream.
#[derive(Clone, Copy)]
pub(crate) struct Op<'a> {
    pub(crate) chunk: ChunkHandle,
    pub(crate) epoch: Epoch,
    pub(crate) stream: StreamId,
    pub(crate) op: u64,
    pub(crate) first_unacked: u64,
    pub(crate) bytes: &'a [u8],
    pub(crate) last: bool,
}

impl<'a> Op<'a> {
    pub(crate) fn new(chunk: ChunkHandle, stream: u8, op: u64, bytes: &'a [u8]) -> Self {
        let stream = StreamId([stream; 16]);
        Self { chunk, epoch: Epoch(1), stream, op, first_unacked: op, bytes, last: false }
    }

    /// Its frames, one per part.
    pub(crate) fn frames(&self, request_id: u64) -> Vec<Vec<u8>> {
        let op_len = u32::try_from(self.bytes.len()).unwrap();
        let parts = u16::try_from(Append::part_count(op_len)).unwrap();
        let mut pieces: Vec<&[u8]> = self.bytes.chunks(PAYLOAD_LEN_MAX as usize).collect();
        if pieces.is_empty() {
            pieces.push(&[]);
        }
        let frame = |(part, piece): (u16, &[u8])| {
            let append = Append {
                chunk: self.chunk,
                epoch: self.epoch,
                flags: if self.last { LAST } else { 0 },
                id: OpId { stream: self.stream, op: self.op },
                first_unacked: self.first_unacked,
                op_len,
                part,
                parts,
                crcs: checksum::block_crcs(piece),
            };
            let mut bytes = frame::head(&append, request_id, 0, piece.len());
            bytes.extend_from_slice(piece);
            bytes
        };
        (0..).zip(pieces).map(frame).collect()
    }
}

/// Bytes that tell where they belong.
pub(crate) fn pattern(seed: u8, len: usize) -> Vec<u8> {
    let mut state = u64::from(seed) + 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u8
        })
        .collect()
}

/// Reads `[offset, offset + len)` with as many requests as it takes.
pub(crate) async fn read_all(peer: &mut Peer, chunk: ChunkHandle, len: u32, min_seq: Seq) -> Result<Vec<u8>, Fault> {
    let mut out = Vec::new();
    while (out.len() as u32) < len {
        let offset = out.len() as u32;
        let first = offset / 4096 * 4096;
        let want = (len - offset).min(PAYLOAD_LEN_MAX - (offset - first));
        let (data, payload) = peer.read(&Read { chunk, epoch: Epoch(0), offset, len: want, min_seq }).await?;
        assert_eq!(data.offset, first);
        let skip = (offset - first) as usize;
        let end = (data.len as usize).min(skip + want as usize);
        assert!(end > skip, "a read that succeeds has content");
        out.extend_from_slice(&payload[skip..end]);
    }
    Ok(out)
}
