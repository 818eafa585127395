//! A master on loopback with scripted chunkservers around it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "test code fails loudly; each test uses a part"
)]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use servers::master::{self, Config, Running};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use wire::chain::{Condemn, Create, Free};
use wire::clone::{CloneChunk, Cloned};
use wire::frame::{HEADER_LEN, Header};
use wire::heartbeat::{ChunkReport, Heartbeat, HeartbeatOk, InventoryPage, Register, Registered, Space};
use wire::hello::{Hello, HelloOk, Role};
use wire::member::ReplicaState;
use wire::message::{Done, tag};
use wire::seal::{Confirm, Digest, DigestOk, Prepare, PrepareOk, Seal, SealOk};
use wire::{
    Body, ChunkHandle, ClusterId, DedupEntry, Epoch, Fault, Kind, OpId, Reason, Request, RequestId, Seq, ServerId,
    StreamId, Term,
};

/// A master with short times, so that tests need not wait.
pub async fn start(dir: &Path) -> Running {
    master::start(config(dir)).await.unwrap()
}

pub fn config(dir: &Path) -> Config {
    let mut config = Config::new("127.0.0.1:0", dir);
    config.admin = Some("127.0.0.1:0".into());
    config.dead_after = Duration::from_secs(2);
    config.gc_every = Duration::from_millis(50);
    config.checkpoint_every = Duration::from_millis(200);
    config
}

/// Waits until `what` holds, for at most twenty seconds.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    for _ in 0..1000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never: {what}");
}

/// One connection to the master, one request at a time.
pub struct Client {
    stream: TcpStream,
    client: [u8; 16],
    requests: AtomicU64,
}

impl Client {
    pub async fn connect(master: SocketAddr) -> Self {
        static CLIENTS: AtomicU64 = AtomicU64::new(1);
        let mut client = [0; 16];
        client[..8].copy_from_slice(&CLIENTS.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        let mut stream = TcpStream::connect(master).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let hello = Hello {
            role: Role::Client,
            server: ServerId(0),
            boot: 1,
            cluster: ClusterId::default(),
            shard: 0,
            term: Term(0),
        };
        let hello = exchange(&mut stream, &hello).await.unwrap();
        assert_eq!(hello.shards, 1);
        Self { stream, client, requests: AtomicU64::new(1) }
    }

    pub fn request(&self) -> RequestId {
        RequestId { client: self.client, number: self.requests.fetch_add(1, Ordering::Relaxed) }
    }

    pub async fn ask<R: Request>(&mut self, request: &R) -> Result<R::Reply, Fault> {
        exchange(&mut self.stream, request).await
    }
}

/// Sends a request and reads its answer.
pub async fn exchange<R: Request>(stream: &mut TcpStream, request: &R) -> Result<R::Reply, Fault> {
    stream.write_all(&wire::frame::head(request, 7, 0, 0)).await.unwrap();
    let (header, fields) = read(stream).await.expect("an answer");
    assert_eq!(header.request_id, 7);
    if header.tag == Fault::TAG {
        return Err(Fault::decode(&fields).unwrap());
    }
    assert_eq!(header.tag, R::Reply::TAG);
    Ok(R::Reply::decode(&fields).unwrap())
}

pub async fn read(stream: &mut TcpStream) -> Option<(Header, Vec<u8>)> {
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header).await.ok()?;
    let header = Header::decode_exact(&header).unwrap();
    let mut fields = vec![0; header.fields_len as usize];
    stream.read_exact(&mut fields).await.ok()?;
    header.check_fields(&fields).unwrap();
    Some((header, fields))
}

/// What a scripted chunkserver holds of one chunk.
#[derive(Clone, Debug)]
pub struct Replica {
    pub create: Create,
    pub state: ReplicaState,
    pub promised: Epoch,
    pub last_seq: u64,
    pub committed_seq: u64,
    pub sealed: Option<(u32, [u8; 16])>,
    pub dedup: Vec<DedupEntry>,
    pub filled_from: Option<ServerId>,
}

impl Replica {
    fn len(&self) -> u32 {
        u32::try_from(self.last_seq).unwrap() * 10
    }
}

/// The one true content of a chunk up to an entry.
pub fn digest(last_seq: u64) -> [u8; 16] {
    let mut digest = [0; 16];
    digest[..8].copy_from_slice(&last_seq.to_le_bytes());
    digest
}

pub fn op(number: u64) -> OpId {
    OpId { stream: StreamId([5; 16]), op: number }
}

/// A chunkserver that keeps no bytes, only numbers, and does as it is told.
pub struct Fake {
    pub address: SocketAddr,
    pub state: Mutex<FakeState>,
    tasks: Mutex<Vec<AbortHandle>>,
}

#[derive(Debug, Default)]
pub struct FakeState {
    pub id: ServerId,
    pub boot: u64,
    disk: [u8; 16],
    cluster: ClusterId,
    pub chunks: HashMap<ChunkHandle, Replica>,
    pub refuse_create: bool,
    pub condemned: Vec<(ChunkHandle, u64)>,
    pub freed: Vec<(ChunkHandle, u64)>,
    /// Chunks it was asked to clone, with the authority to replace what it had.
    pub cloned: Vec<(ChunkHandle, u64)>,
    pub refuse_clone: bool,
    pub prepares: u64,
    pub terms: Vec<Term>,
}

impl Fake {
    /// Listens, registers, and sends heartbeats.
    pub async fn start(master: SocketAddr) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fake = Arc::new(Self {
            address: listener.local_addr().unwrap(),
            state: Mutex::default(),
            tasks: Mutex::default(),
        });
        fake.run(listener, master).await;
        fake
    }

    /// Comes back after a crash: every open replica has restarted within its epoch.
    pub async fn restart(self: &Arc<Self>, master: SocketAddr) {
        self.crash();
        for replica in self.state.lock().unwrap().chunks.values_mut() {
            if replica.state == ReplicaState::Open {
                replica.state = ReplicaState::Rwr;
            }
        }
        self.come_back(master).await;
    }

    /// Talks to a master again, with what it has.
    pub async fn come_back(self: &Arc<Self>, master: SocketAddr) {
        self.crash();
        let mut listener = TcpListener::bind(self.address).await;
        for _ in 0..200 {
            if listener.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            listener = TcpListener::bind(self.address).await;
        }
        self.run(listener.unwrap(), master).await;
    }

    /// Stops answering: connections break, the port is closed.
    pub fn crash(&self) {
        self.tasks.lock().unwrap().drain(..).for_each(|task| task.abort());
    }

    pub fn id(&self) -> ServerId {
        self.state.lock().unwrap().id
    }

    pub fn replica(&self, chunk: ChunkHandle) -> Option<Replica> {
        self.state.lock().unwrap().chunks.get(&chunk).cloned()
    }

    /// As if operations up to this entry had been appended.
    pub fn write(&self, chunk: ChunkHandle, last_seq: u64, committed_seq: u64) {
        let mut state = self.state.lock().unwrap();
        let replica = state.chunks.get_mut(&chunk).unwrap();
        (replica.last_seq, replica.committed_seq) = (last_seq, committed_seq);
        let entry = DedupEntry { id: op(last_seq), chunk, offset: 0, len: 10 };
        replica.dedup.push(entry);
    }

    async fn run(self: &Arc<Self>, listener: TcpListener, master: SocketAddr) {
        self.state.lock().unwrap().boot += 1;
        let mut control = TcpStream::connect(master).await.unwrap();
        self.introduce(&mut control).await;
        let fake = Arc::clone(self);
        self.spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let each = Arc::clone(&fake);
                fake.spawn(async move { each.serve(stream).await });
            }
        });
        let fake = Arc::clone(self);
        // The first heartbeat brings the space, before anybody asks for a chunk.
        let wanted = fake.beat(&mut control, false).await.unwrap();
        self.spawn(async move {
            let mut inventory = wanted;
            loop {
                match fake.beat(&mut control, inventory).await {
                    Some(want) => inventory = want,
                    None => return,
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
    }

    async fn introduce(&self, control: &mut TcpStream) {
        let (server, boot, disk, cluster) = {
            let state = self.state.lock().unwrap();
            (state.id, state.boot, state.disk, state.cluster)
        };
        let hello = Hello { role: Role::Chunkserver, server, boot, cluster, shard: 0, term: Term(0) };
        exchange(control, &hello).await.unwrap();
        let mut register = Register {
            server,
            cluster,
            boot,
            disk,
            address: self.address.to_string(),
            admin: String::new(),
            shards: 2,
            zone: String::new(),
            version: "fake".into(),
        };
        let Registered { server, cluster, .. } = exchange(control, &register).await.unwrap();
        if disk == [0; 16] {
            // Formatted now: from here on the disk is its own.
            let mut uuid = [1; 16];
            uuid[..2].copy_from_slice(&self.address.port().to_le_bytes());
            (register.server, register.cluster, register.disk) = (server, cluster, uuid);
            exchange(control, &register).await.unwrap();
            let mut state = self.state.lock().unwrap();
            (state.id, state.cluster, state.disk) = (server, cluster, uuid);
        }
    }

    async fn beat(&self, control: &mut TcpStream, inventory: bool) -> Option<bool> {
        let heartbeat = {
            let state = self.state.lock().unwrap();
            let space = Space { total: 1 << 40, free: 1 << 39, used: 0 };
            let chunks = state.chunks.iter().map(|(chunk, replica)| ChunkReport {
                chunk: *chunk,
                state: replica.state,
                epoch: replica.create.epoch,
                promised: replica.promised,
                last_seq: Seq(replica.last_seq),
                len: replica.sealed.map_or(replica.len(), |(len, _)| len),
                committed_len: u32::try_from(replica.committed_seq * 10).unwrap(),
                digest: replica.sealed.map_or([0; 16], |(_, digest)| digest),
                damaged: false,
            });
            let inventory = inventory.then_some(InventoryPage { first: true, last: true });
            let (chunk_count, chunks) = (state.chunks.len() as u64, chunks.collect());
            Heartbeat { server: state.id, boot: state.boot, space, chunk_count, chunks, inventory }
        };
        control.write_all(&wire::frame::head(&heartbeat, 7, 0, 0)).await.ok()?;
        let (header, fields) = read(control).await?;
        (header.tag == HeartbeatOk::TAG).then(|| HeartbeatOk::decode(&fields).unwrap().want_inventory)
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.lock().unwrap().push(tokio::spawn(task).abort_handle());
    }

    async fn serve(self: Arc<Self>, mut stream: TcpStream) {
        let Some((header, fields)) = read(&mut stream).await else { return };
        assert_eq!(header.tag, Hello::TAG);
        let hello = Hello::decode(&fields).unwrap();
        assert_eq!(hello.role, Role::Master);
        let (server, boot, cluster) = {
            let state = self.state.lock().unwrap();
            (state.id, state.boot, state.cluster)
        };
        let ok = HelloOk { server, boot, cluster, shards: 2, version: "fake".into() };
        stream.write_all(&wire::frame::head(&ok, header.request_id, 0, 0)).await.unwrap();
        while let Some((header, fields)) = read(&mut stream).await {
            let answer = self.answer(header.tag, &fields, header.request_id, hello.shard);
            if stream.write_all(&answer).await.is_err() {
                return;
            }
        }
    }

    fn answer(&self, asked: u16, fields: &[u8], id: u64, shard: u32) -> Vec<u8> {
        let mut state = self.state.lock().unwrap();
        let right = |chunk: ChunkHandle| assert_eq!(chunk.shard(2), shard, "the chunk's shard is asked");
        match asked {
            tag::CREATE => {
                let create = Create::decode(fields).unwrap();
                right(create.chunk);
                reply(&state.create(create), id)
            }
            tag::PREPARE => {
                let prepare = Prepare::decode(fields).unwrap();
                right(prepare.chunk);
                reply(&state.prepare(prepare), id)
            }
            tag::DIGEST => reply(&state.digest(Digest::decode(fields).unwrap()), id),
            tag::SEAL => reply(&state.seal(Seal::decode(fields).unwrap()), id),
            tag::CONFIRM => reply(&state.confirm(Confirm::decode(fields).unwrap()), id),
            tag::CONDEMN => {
                let Condemn { chunk, authority, .. } = Condemn::decode(fields).unwrap();
                assert_ne!(authority, 0);
                state.condemned.push((chunk, authority));
                let found = state.chunks.get_mut(&chunk).map(|replica| replica.state = ReplicaState::Condemned);
                reply(&found.map(|()| Done).ok_or_else(unknown), id)
            }
            tag::FREE => {
                let Free { chunk, authority, .. } = Free::decode(fields).unwrap();
                assert!(state.condemned.contains(&(chunk, authority)), "freed with the authority that condemned it");
                state.freed.push((chunk, authority));
                reply(&state.chunks.remove(&chunk).map(|_| Done).ok_or_else(unknown), id)
            }
            tag::CLONE => {
                let clone = CloneChunk::decode(fields).unwrap();
                right(clone.chunk);
                reply(&state.clone_chunk(&clone), id)
            }
            other => panic!("the master does not send {other}"),
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.crash();
    }
}

impl FakeState {
    fn create(&mut self, create: Create) -> Result<Done, Fault> {
        self.terms.push(create.term);
        if self.refuse_create {
            return Err(Fault::refused(Reason::DiskFull, 0, "full"));
        }
        assert_eq!(create.members[usize::from(create.my_position)].server, self.id, "its own place in the chain");
        if let Some(old) = self.chunks.get(&create.chunk) {
            let same = old.create.epoch == create.epoch && old.state == ReplicaState::Open;
            return if same { Ok(Done) } else { Err(Fault::refused(Reason::ChunkExists, 0, "exists")) };
        }
        let replica = Replica {
            state: ReplicaState::Open,
            promised: create.epoch,
            last_seq: 0,
            committed_seq: 0,
            sealed: None,
            dedup: create.dedup.clone(),
            filled_from: None,
            create,
        };
        self.chunks.insert(replica.create.chunk, replica);
        Ok(Done)
    }

    fn prepare(&mut self, prepare: Prepare) -> Result<PrepareOk, Fault> {
        self.prepares += 1;
        let replica = self.chunks.get_mut(&prepare.chunk).ok_or_else(unknown)?;
        if prepare.epoch < replica.promised {
            return Err(Fault::refused(Reason::StaleEpoch, replica.promised.0.into(), "promised"));
        }
        replica.promised = prepare.epoch;
        Ok(PrepareOk {
            promised: prepare.epoch,
            epoch: replica.create.epoch,
            state: replica.state,
            last_seq: Seq(replica.last_seq),
            len: replica.len(),
            digest: digest(replica.last_seq),
            committed_seq: Seq(replica.committed_seq),
            suspect_seq: Seq(0),
            healthy: true,
        })
    }

    fn digest(&self, request: Digest) -> Result<DigestOk, Fault> {
        let replica = self.chunks.get(&request.chunk).ok_or_else(unknown)?;
        let digest = digest(u64::from(request.len / 10));
        Ok(DigestOk { len: request.len, digest, state: replica.state, epoch: replica.create.epoch })
    }

    fn seal(&mut self, seal: Seal) -> Result<SealOk, Fault> {
        let id = self.id;
        let replica = self.chunks.get_mut(&seal.chunk).ok_or_else(unknown)?;
        if seal.epoch != replica.promised {
            return Err(Fault::refused(Reason::StaleEpoch, replica.promised.0.into(), "promised"));
        }
        if replica.last_seq > seal.last_seq.0 {
            return Err(Fault::refused(Reason::Longer, 0, "longer"));
        }
        if replica.last_seq < seal.last_seq.0 {
            assert_ne!(seal.source.server, id, "a shorter member is not the source");
            replica.filled_from = Some(seal.source.server);
            replica.last_seq = seal.last_seq.0;
            replica.dedup.push(DedupEntry { id: op(seal.last_seq.0), chunk: seal.chunk, offset: 0, len: 10 });
        }
        Ok(SealOk { dedup: replica.dedup.clone() })
    }

    fn clone_chunk(&mut self, clone: &CloneChunk) -> Result<Cloned, Fault> {
        assert!(clone.sources.iter().all(|source| source.server != self.id), "nobody clones from itself");
        self.cloned.push((clone.chunk, clone.authority));
        if self.refuse_clone {
            return Err(Fault::refused(Reason::BadCrc, 0, "bad everywhere"));
        }
        let equal = Some((clone.len, clone.digest));
        let old = self.chunks.get(&clone.chunk);
        if old.is_some_and(|old| old.sealed == equal && old.state == ReplicaState::Sealed) {
            return Ok(Cloned { fetched: 0, kept: clone.len });
        }
        if old.is_some() && clone.authority == 0 {
            return Err(Fault::refused(Reason::ChunkExists, 0, "exists"));
        }
        let create = Create {
            term: clone.term,
            chunk: clone.chunk,
            epoch: clone.epoch,
            members: clone.sources.clone(),
            my_position: 0,
            prev: clone.prev,
            file: clone.file,
            dedup: vec![],
        };
        let replica = Replica {
            state: ReplicaState::Sealed,
            promised: clone.epoch,
            last_seq: clone.last_seq.0,
            committed_seq: clone.last_seq.0,
            sealed: equal,
            dedup: vec![],
            filled_from: None,
            create,
        };
        self.chunks.insert(clone.chunk, replica);
        Ok(Cloned { fetched: clone.len, kept: 0 })
    }

    fn confirm(&mut self, confirm: Confirm) -> Result<Done, Fault> {
        let replica = self.chunks.get_mut(&confirm.chunk).ok_or_else(unknown)?;
        if replica.len() != confirm.len || digest(replica.last_seq) != confirm.digest {
            return Err(Fault::refused(Reason::StaleEpoch, 0, "other content"));
        }
        replica.state = ReplicaState::Sealed;
        replica.sealed = Some((confirm.len, confirm.digest));
        Ok(Done)
    }
}

fn unknown() -> Fault {
    Fault::refused(Reason::UnknownChunk, 0, "unknown chunk")
}

fn reply<B: Body>(result: &Result<B, Fault>, id: u64) -> Vec<u8> {
    match result {
        Ok(body) => wire::frame::head(body, id, 0, 0),
        Err(fault) => wire::frame::head(fault, id, 0, 0),
    }
}

pub fn kind<T: std::fmt::Debug>(result: Result<T, Fault>) -> Kind {
    result.unwrap_err().kind
}
