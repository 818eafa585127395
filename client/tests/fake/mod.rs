//! A small cluster over loopback: one master and some chunkservers that speak the real protocol and
//! keep their chunks in memory, and that misbehave when they are told to.
//!
//! A chunk's bytes exist once, as if its replicas were always equal; what differs between servers is
//! how they answer. What must never happen (a request on the wrong shard, a checksum that does not
//! match) is noted as a violation, and [`Fake::check`] fails on it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fake that cannot serve should fail the test loudly")]
#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod master;
pub(crate) mod server;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use client::{Client, Config};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use wire::frame::{HEADER_LEN, Header};
use wire::hello::{Hello, HelloOk};
use wire::member::Member;
use wire::report::Report;
use wire::{Body, ChunkHandle, ClusterId, Fault, InodeId, Kind, NamePath, OpId, RequestId, ServerId};

/// Shards of every fake chunkserver.
pub(crate) const SHARDS: u32 = 2;

/// How one server misbehaves. Counts are used up.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// Connections are closed as soon as they are made, and those that live are cut.
    pub(crate) down: bool,
    /// Requests are taken and never answered.
    pub(crate) silent: bool,
    /// Answers to so many appends are lost, with the connection, after they took effect.
    pub(crate) lose_answers: u32,
    /// So many requests lose their connection before they take effect.
    pub(crate) lose_requests: u32,
    /// So many appends are refused as `Busy`.
    pub(crate) busy: u32,
    /// So many reads are answered with a flipped byte.
    pub(crate) corrupt: u32,
    /// So many reads are refused as not committed.
    pub(crate) not_committed: u32,
    /// Every answer is this late.
    pub(crate) late: Duration,
}

#[derive(Debug, Default)]
pub(crate) struct Chunk {
    pub(crate) file: InodeId,
    pub(crate) bytes: Vec<u8>,
    pub(crate) sealed: bool,
    /// Full or finished; the master does not know yet.
    pub(crate) closing: bool,
    /// Servers by index, head first.
    pub(crate) members: Vec<usize>,
    pub(crate) table: BTreeMap<OpId, (ChunkHandle, u32, u32)>,
    pub(crate) seq: u64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct File {
    pub(crate) chunks: Vec<ChunkHandle>,
    pub(crate) version: u64,
    pub(crate) sha256: Option<[u8; 32]>,
    /// What the next chunk inherits.
    pub(crate) table: BTreeMap<OpId, (ChunkHandle, u32, u32)>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) addresses: Vec<String>,
    pub(crate) boots: Vec<u64>,
    pub(crate) cut: Vec<CancellationToken>,
    pub(crate) faults: Vec<Faults>,
    pub(crate) master: Faults,
    pub(crate) files: HashMap<InodeId, File>,
    pub(crate) names: BTreeMap<String, InodeId>,
    pub(crate) chunks: BTreeMap<ChunkHandle, Chunk>,
    pub(crate) next_inode: u64,
    pub(crate) next_chunk: u64,
    /// First answers to changes, by request id.
    pub(crate) answered: HashMap<RequestId, (u16, Vec<u8>)>,
    pub(crate) reports: Vec<Report>,
    /// Every chunk is rolled after so many appends to it.
    pub(crate) roll_every: Option<u64>,
    /// The master learns so late that a chunk is finished.
    pub(crate) finish_late: Duration,
    /// Reports are not acted upon.
    pub(crate) deaf: bool,
    /// New chunks inherit nothing.
    pub(crate) forgetful: bool,
    /// What the last read wanted to see at least.
    pub(crate) min_seq: u64,
    /// So many splices find that somebody else was faster.
    pub(crate) conflicts: u32,
    /// Where reads were answered, by server.
    pub(crate) reads: Vec<u64>,
    /// Positional writes that were made, asked for again, and streams that were closed.
    pub(crate) overwrites: u64,
    pub(crate) repeats: u64,
    pub(crate) closed: u64,
    pub(crate) violations: Vec<String>,
}

#[derive(Clone)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    pub(crate) master: String,
}

impl Fake {
    /// Starts a master and `servers` chunkservers.
    pub(crate) async fn start(servers: usize) -> Self {
        let mut state = State { next_inode: 10, next_chunk: 1, ..State::default() };
        let mut listeners = Vec::new();
        for _ in 0..servers {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            state.addresses.push(listener.local_addr().unwrap().to_string());
            listeners.push(listener);
        }
        state.boots = vec![1; servers];
        state.cut = (0..servers).map(|_| CancellationToken::new()).collect();
        state.faults = (0..servers).map(|_| Faults::default()).collect();
        state.reads = vec![0; servers];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let master = listener.local_addr().unwrap().to_string();
        let fake = Self { state: Arc::new(Mutex::new(state)), master };
        tokio::spawn(master::listen(fake.clone(), listener));
        for (server, listener) in listeners.into_iter().enumerate() {
            tokio::spawn(server::listen(fake.clone(), server, listener));
        }
        fake
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn client(&self) -> Client {
        self.client_with(Duration::from_secs(20))
    }

    pub(crate) fn client_with(&self, deadline: Duration) -> Client {
        Client::new(Config { deadline, ..Config::new(vec![self.master.clone()]) })
    }

    /// As `kill -9`: connections are cut, new ones refused.
    pub(crate) fn kill(&self, server: usize) {
        let mut state = self.state();
        state.faults[server].down = true;
        state.cut[server].cancel();
    }

    /// As a new process on the same disk.
    pub(crate) fn restart(&self, server: usize) {
        let mut state = self.state();
        state.boots[server] += 1;
        state.cut[server] = CancellationToken::new();
        state.faults[server].down = false;
    }

    /// All bytes of a file.
    pub(crate) fn content(&self, path: &str) -> Vec<u8> {
        let state = self.state();
        let file = &state.files[&state.names[path]];
        file.chunks.iter().flat_map(|chunk| state.chunks[chunk].bytes.clone()).collect()
    }

    /// Lengths of a file's chunks.
    pub(crate) fn chunk_lens(&self, path: &str) -> Vec<usize> {
        let state = self.state();
        let file = &state.files[&state.names[path]];
        file.chunks.iter().map(|chunk| state.chunks[chunk].bytes.len()).collect()
    }

    /// Index of the head of a file's last chunk.
    pub(crate) fn head(&self, path: &str) -> usize {
        let state = self.state();
        let last = state.files[&state.names[path]].chunks.last().copied().unwrap();
        state.chunks[&last].members[0]
    }

    pub(crate) fn check(&self) {
        assert_eq!(self.state().violations, Vec::<String>::new());
    }
}

impl State {
    pub(crate) fn member(&self, server: usize) -> Member {
        let id = ServerId(u32::try_from(server).unwrap() + 1);
        Member { server: id, address: self.addresses[server].clone(), shards: SHARDS }
    }
}

pub(crate) fn path(text: &str) -> NamePath {
    NamePath::parse(text).unwrap()
}

/// Bytes that differ everywhere, the same for the same seed.
pub(crate) fn noise(seed: u64, len: usize) -> Bytes {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out.extend_from_slice(&x.to_le_bytes());
    }
    out.truncate(len);
    Bytes::from(out)
}

/// Reads a whole range; an error anywhere is the result.
pub(crate) async fn read_all(
    client: &Client,
    name: &str,
    range: std::ops::Range<u64>,
) -> Result<Vec<u8>, client::Error> {
    let attr = client.stat(&path(name)).await?;
    let mut stream = client.read(&attr, range);
    let mut out = Vec::new();
    while let Some(bytes) = stream.next().await {
        out.extend_from_slice(&bytes?);
    }
    Ok(out)
}

pub(crate) struct Incoming {
    pub(crate) header: Header,
    pub(crate) fields: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

pub(crate) async fn receive(stream: &mut TcpStream) -> Option<Incoming> {
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header).await.ok()?;
    let header = Header::decode_exact(&header).unwrap();
    let mut fields = vec![0; header.fields_len as usize];
    stream.read_exact(&mut fields).await.ok()?;
    header.check_fields(&fields).unwrap();
    let mut payload = vec![0; header.payload_len as usize];
    stream.read_exact(&mut payload).await.ok()?;
    Some(Incoming { header, fields, payload })
}

/// An answer, encoded.
pub(crate) struct Answer {
    pub(crate) tag: u16,
    pub(crate) fields: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

pub(crate) fn answer<B: Body>(outcome: Result<B, Fault>) -> Answer {
    let (tag, fields) = match outcome {
        Ok(body) => (B::TAG, body.encode()),
        Err(fault) => (Fault::TAG, fault.encode()),
    };
    Answer { tag, fields, payload: Vec::new() }
}

pub(crate) async fn send(stream: &mut TcpStream, request_id: u64, answer: &Answer) -> Option<()> {
    let header = Header::new(answer.tag, request_id, 0, &answer.fields, answer.payload.len());
    let mut out = header.encode().to_vec();
    out.extend_from_slice(&answer.fields);
    out.extend_from_slice(&answer.payload);
    stream.write_all(&out).await.ok()
}

pub(crate) async fn greet(stream: &mut TcpStream, server: u32, boot: u64, shards: u32) -> Option<u32> {
    stream.set_nodelay(true).unwrap();
    let first = receive(stream).await?;
    let hello = Hello::decode(&first.fields).unwrap();
    let ok = HelloOk { server: ServerId(server), boot, cluster: ClusterId([7; 16]), shards, version: "fake".into() };
    let outcome = if hello.shard < shards { Ok(ok) } else { Err(Fault::new(Kind::Invalid, "no such shard")) };
    send(stream, first.header.request_id, &answer(outcome)).await?;
    Some(hello.shard)
}
