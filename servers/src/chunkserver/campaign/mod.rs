//! Chains under fire, in the simulation: chunkservers that crash and lose unflushed sectors, links
//! that break or go deaf one way, clients that repeat what was not answered. A model of the master
//! seals and rolls. In the end everything that was acknowledged must be there once, at the place that
//! was answered, on every holder.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use engine::runtime::Runtime;
use engine::runtime::sim::{NodeId, Rng, Sim, SimDisk, SimReader, SimRuntime, SimWriter, World};
use engine::store::{self, DiskConfig, ReadConfig, Store};
use tokio::sync::{Notify, mpsc};
use wire::append::{Append, Appended};
use wire::chain::Create;
use wire::hello::{Hello, HelloOk, Role};
use wire::limits::PAYLOAD_LEN_MAX;
use wire::member::{Member, ReplicaState};
use wire::read::Read;
use wire::report::Finished;
use wire::seal::{Confirm, Prepare, PrepareOk, Seal};
use wire::{
    ChunkHandle, ClusterId, DedupEntry, Epoch, InodeId, Kind, OpId, Reason, Request, Seq, ServerId, StreamId, Term,
};

mod overwrites;
mod talk;

use self::talk::{Answer, Talk};
use super::budget::Budget;
use super::mailbox::{ToControl, ToShard};
use super::shard::{Me, Shard};

const NODES: usize = 4;
const CLIENTS: u8 = 3;
const CLUSTER: ClusterId = ClusterId([3; 16]);
const MEMORY: usize = 256 << 20;
/// Little enough that blocks leave it.
const READS: ReadConfig = ReadConfig { cache_bytes: 256 << 10, ahead_max: 64 << 10 };
const CALL: Duration = Duration::from_millis(400);
const PATIENCE: Duration = Duration::from_millis(1500);

/// One chunkserver: its disk stays, its lives come and go.
struct Node {
    root: PathBuf,
    disk: SimDisk,
    address: SocketAddr,
    life: Cell<Option<NodeId>>,
    boots: Cell<u64>,
    mailbox: RefCell<Option<mpsc::Sender<ToShard>>>,
}

#[derive(Clone, Debug)]
struct Chunk {
    handle: ChunkHandle,
    epoch: u32,
    members: Vec<usize>,
    /// Set once the seal is in the master's log.
    sealed: Option<Sealed>,
}

#[derive(Clone, Debug)]
struct Sealed {
    epoch: Epoch,
    len: u32,
    digest: [u8; 16],
    holders: Vec<usize>,
}

struct Cluster {
    world: World,
    rt: SimRuntime,
    nodes: Vec<Node>,
    chunks: RefCell<Vec<Chunk>>,
    /// Chunks whose creation is complete: clients may know them.
    is_open: Cell<bool>,
    trouble: Notify,
    is_trouble: Cell<bool>,
    finished: RefCell<Option<Finished>>,
    acks: RefCell<BTreeMap<(u8, u64), Appended>>,
    clients_left: Cell<u8>,
    seals: Cell<u32>,
}

type Shared = Rc<Cluster>;

/// What a run does.
#[derive(Clone, Copy)]
struct Plan {
    /// Operations of each client.
    ops: u64,
    /// Things that break.
    faults: u32,
    /// Of so many kinds; the first two are connections that break.
    kinds: u64,
}

const ALL_KINDS: u64 = 10;

fn member(node: usize) -> Member {
    let address = address(node).to_string();
    Member { server: ServerId(u32::try_from(node).unwrap() + 1), address, shards: 1 }
}

fn address(node: usize) -> SocketAddr {
    format!("10.0.0.{}:7000", node + 1).parse().unwrap()
}

/// Starts a node's next life.
fn boot(cluster: &Shared, index: usize) {
    let node = &cluster.nodes[index];
    let id = cluster.world.node();
    node.life.set(Some(id));
    node.boots.set(node.boots.get() + 1);
    let (mailbox, mail) = mpsc::channel(16);
    *node.mailbox.borrow_mut() = Some(mailbox);
    let (to_control, mut from_shard) = mpsc::channel(64);
    let rt = cluster.world.start(id, MEMORY);
    let me = Me {
        server: member(index).server,
        cluster: CLUSTER,
        boot: (index as u64) << 32 | node.boots.get(),
        shard: 0,
        shards: 1,
    };
    let disk = DiskConfig {
        root: node.root.clone(),
        cluster: CLUSTER,
        server: me.server,
        shards: 1,
        ring_bytes: Some(8 << 20),
        unix_seconds: 0,
    };
    rt.spawn({
        let cluster = Rc::clone(cluster);
        async move {
            while let Some(message) = from_shard.recv().await {
                match message {
                    ToControl::Report(report) => cluster.complain(report.chunk),
                    ToControl::Finished(finished) => {
                        *cluster.finished.borrow_mut() = Some(finished);
                        cluster.trouble.notify_one();
                    }
                    // Nothing rots here: there is nothing to repair.
                    ToControl::Locate { reply, .. } => drop(reply),
                    ToControl::Resolve { .. } => unreachable!("addresses are numbers here"),
                }
            }
        }
    });
    rt.clone().spawn({
        let listen = node.address;
        async move {
            let mut recovered = store::recover(&rt, &disk).await.unwrap_or_else(|error| panic!("{error}"));
            let seed = recovered.seeds.pop().unwrap();
            let store = Store::start_with(rt.clone(), seed, READS).await.unwrap_or_else(|error| panic!("{error}"));
            let shard = Shard::new(rt.clone(), me, store.into(), Budget::new(Budget::BYTES_MIN), to_control);
            let listener = rt.listen(listen).unwrap();
            rt.spawn({
                let shard = shard.clone();
                async move {
                    loop {
                        let (reader, writer) = listener.accept().await;
                        let shard = shard.clone();
                        shard.rt.clone().spawn(async move { drop(greet(shard, reader, writer).await) });
                    }
                }
            });
            shard.run(mail).await;
        }
    });
}

async fn greet(shard: Shard<SimRuntime>, mut reader: SimReader, mut writer: SimWriter) -> std::io::Result<()> {
    let rt = shard.rt.clone();
    let mut bytes = Vec::new();
    let hello: Hello = loop {
        let before = bytes.len();
        bytes = rt.recv_some(&mut reader, bytes, 32).await?;
        if bytes.len() == before {
            return Ok(());
        }
        // A hello is sent alone and answered before anything follows.
        if let Some(header) = wire::frame::Header::decode(&bytes) {
            let header = header.unwrap();
            let whole = wire::frame::HEADER_LEN + header.fields_len as usize;
            if bytes.len() == whole {
                break wire::frame::open(&header, &bytes[wire::frame::HEADER_LEN..]).unwrap();
            }
        }
    };
    let ok =
        HelloOk { server: shard.me.server, boot: shard.me.boot, cluster: CLUSTER, shards: 1, version: String::new() };
    rt.send_all(&mut writer, wire::frame::head(&ok, 1, 0, 0), None).await?;
    shard.serve_halves(reader, writer, hello);
    Ok(())
}

impl Cluster {
    fn complain(&self, chunk: ChunkHandle) {
        let is_current = self.chunks.borrow().last().is_some_and(|it| it.handle == chunk);
        if is_current && self.is_open.get() {
            self.is_trouble.set(true);
            self.trouble.notify_one();
        }
    }

    async fn command<Q: Request>(&self, node: usize, request: &Q) -> Answer<Q::Reply> {
        Talk::dial(&self.rt, node, Role::Master).await?.call(request, CALL * 3).await
    }

    /// The master: opens a chunk, waits until it is finished or in trouble, seals, opens the next.
    async fn rule(&self, mut rng: Rng) {
        let mut dedup = Vec::new();
        for number in 1.. {
            self.open(ChunkHandle(number), std::mem::take(&mut dedup), &mut rng).await;
            dedup = loop {
                self.trouble.notified().await;
                let finished = self.finished.borrow_mut().take();
                if let Some(finished) = finished.filter(|it| it.chunk.0 == number) {
                    self.is_open.set(false);
                    self.record_planned(&finished);
                    break finished.dedup;
                }
                if self.is_trouble.replace(false) {
                    self.is_open.set(false);
                    break self.seal().await;
                }
            };
            self.is_trouble.set(false);
            self.seals.set(self.seals.get() + 1);
        }
    }

    async fn open(&self, first: ChunkHandle, dedup: Vec<DedupEntry>, rng: &mut Rng) {
        for attempt in 0.. {
            // An abandoned handle is never used again.
            let handle = ChunkHandle(first.0 + (attempt << 32));
            let mut chain: Vec<usize> = (0..NODES).collect();
            chain.swap(0, rng.below(NODES as u64) as usize);
            chain.swap(1, 1 + rng.below(NODES as u64 - 1) as usize);
            chain.truncate(2 + rng.below(2) as usize);
            let members: Vec<Member> = chain.iter().map(|node| member(*node)).collect();
            let mut created = 0;
            for (my_position, node) in (0..).zip(&chain) {
                let create = Create {
                    term: Term(1),
                    chunk: handle,
                    epoch: Epoch(1),
                    members: members.clone(),
                    my_position,
                    prev: ChunkHandle::NONE,
                    file: InodeId(1),
                    dedup: dedup.clone(),
                };
                created += usize::from(self.command(*node, &create).await.is_ok());
            }
            if created == chain.len() {
                self.chunks.borrow_mut().push(Chunk { handle, epoch: 1, members: chain, sealed: None });
                self.is_open.set(true);
                return;
            }
            self.rt.sleep(CALL).await;
        }
    }

    fn record_planned(&self, finished: &Finished) {
        let mut chunks = self.chunks.borrow_mut();
        let chunk = chunks.last_mut().unwrap();
        let holders = chunk.members.clone();
        let Finished { epoch, len, digest, .. } = *finished;
        chunk.sealed = Some(Sealed { epoch, len, digest, holders });
    }

    /// The seal path of replication.md, section 5.2, without its short cuts.
    async fn seal(&self) -> Vec<DedupEntry> {
        let (handle, members) = {
            let mut chunks = self.chunks.borrow_mut();
            let chunk = chunks.last_mut().unwrap();
            chunk.epoch += 1;
            (chunk.handle, chunk.members.clone())
        };
        let mut epoch = Epoch(self.chunks.borrow().last().unwrap().epoch);
        loop {
            let answers = self.promises(handle, epoch, &members).await;
            let Some(source) = decide(&answers, members.len()) else {
                self.rt.sleep(CALL).await;
                continue;
            };
            let best = answers[&source].clone();
            if best.state == ReplicaState::Sealed {
                panic!("nobody confirmed {handle}");
            }
            let seal = Seal {
                term: Term(1),
                chunk: handle,
                epoch,
                last_seq: best.last_seq,
                len: best.len,
                digest: best.digest,
                source: member(source),
            };
            let (mut holders, mut dedup) = (Vec::new(), None);
            for node in answers.iter().filter(|(_, it)| it.healthy).map(|(node, _)| *node) {
                match self.command(node, &seal).await {
                    Ok(ok) => {
                        holders.push(node);
                        dedup = dedup.or(Some(ok.dedup));
                    }
                    Err(fault) => assert!(
                        !matches!(fault.reason, Reason::Longer),
                        "replica {node} of {handle} is longer than the seal"
                    ),
                }
            }
            let enough = 2.min(answers.values().filter(|it| it.healthy).count());
            if let Some(dedup) = dedup.filter(|_| holders.len() >= enough) {
                let sealed = Sealed { epoch, len: best.len, digest: best.digest, holders };
                self.chunks.borrow_mut().last_mut().unwrap().sealed = Some(sealed);
                return dedup;
            }
            self.rt.sleep(CALL).await;
            epoch = epoch.next();
            self.chunks.borrow_mut().last_mut().unwrap().epoch = epoch.0;
        }
    }

    async fn promises(&self, chunk: ChunkHandle, epoch: Epoch, members: &[usize]) -> BTreeMap<usize, PrepareOk> {
        let mut answers = BTreeMap::new();
        for node in members {
            if let Ok(answer) = self.command(*node, &Prepare { term: Term(1), chunk, epoch }).await {
                answers.insert(*node, answer);
            }
        }
        for (node, answer) in &answers {
            for (other, same) in answers.iter().filter(|(_, it)| it.last_seq == answer.last_seq) {
                assert_eq!(answer.digest, same.digest, "{chunk}: {node} and {other} differ at entry {}", same.last_seq);
            }
        }
        answers
    }

    /// Confirms every recorded seal to its holders until all have it.
    async fn confirm_all(&self) {
        let sealed: Vec<(ChunkHandle, Sealed)> =
            self.chunks.borrow().iter().filter_map(|it| Some((it.handle, it.sealed.clone()?))).collect();
        for (chunk, Sealed { epoch, len, digest, holders }) in sealed {
            for node in holders {
                let confirm = Confirm { term: Term(1), chunk, epoch, len, digest };
                while let Err(fault) = self.command(node, &confirm).await {
                    assert_ne!(fault.kind, Kind::StaleEpoch, "holder {node} of {chunk}: {fault}");
                    self.rt.sleep(CALL).await;
                }
            }
        }
    }

    /// A writer: each operation once, repeated until it is answered.
    async fn write(&self, rt: SimRuntime, stream: u8, ops: u64, mut rng: Rng) {
        let mut talk: Option<(ChunkHandle, Talk)> = None;
        for op in 1..=ops {
            let bytes = record(stream, op, &mut rng);
            loop {
                let current = self.chunks.borrow().last().cloned().filter(|_| self.is_open.get());
                let Some(chunk) = current else {
                    rt.sleep(Duration::from_millis(20)).await;
                    continue;
                };
                match self.try_append(&rt, &chunk, stream, op, &bytes, &mut talk).await {
                    Ok(appended) => {
                        assert_eq!(appended.len as usize, bytes.len());
                        self.acks.borrow_mut().insert((stream, op), appended);
                        break;
                    }
                    Err(fault) => {
                        talk = None;
                        let is_mine = fault.kind == Kind::Invalid;
                        assert!(!is_mine, "stream {stream} op {op} in {}: {:?} {fault}", chunk.handle, fault.reason);
                        if fault.kind != Kind::Overloaded {
                            self.complain(chunk.handle);
                        }
                        rt.sleep(Duration::from_millis(1 + rng.below(50))).await;
                    }
                }
            }
        }
        self.clients_left.set(self.clients_left.get() - 1);
    }

    async fn try_append(
        &self,
        rt: &SimRuntime,
        chunk: &Chunk,
        stream: u8,
        op: u64,
        bytes: &[u8],
        talk: &mut Option<(ChunkHandle, Talk)>,
    ) -> Answer<Appended> {
        if talk.as_ref().is_none_or(|(of, _)| *of != chunk.handle) {
            *talk = Some((chunk.handle, Talk::dial(rt, chunk.members[0], Role::Client).await?));
        }
        let Some((_, talk)) = talk else { unreachable!("set above") };
        let op_len = bytes.len() as u32;
        let append = Append {
            chunk: chunk.handle,
            epoch: Epoch(1),
            flags: 0,
            id: OpId { stream: StreamId([stream; 16]), op },
            first_unacked: op,
            op_len,
            part: 0,
            parts: Append::part_count(op_len) as u16,
            crcs: Vec::new(),
        };
        talk.append(&append, bytes).await
    }

    /// Breaks things, one after the other, and mends all of it at the end.
    async fn torment(self: Rc<Self>, plan: Plan, mut rng: Rng) {
        for _ in 0..plan.faults {
            self.wait_for_work(&mut rng).await;
            let (a, b) = (rng.below(NODES as u64) as usize, rng.below(NODES as u64) as usize);
            let head = self.chunks.borrow().last().map_or(a, |chunk| chunk.members[0]);
            let life = |node: usize| self.nodes[node].life.get();
            match (rng.below(plan.kinds), life(a), life(b)) {
                (0, Some(a), Some(b)) if a != b => self.world.reset(a, b),
                (1, ..) => self.reset_neighbours(&mut rng),
                (2, Some(a), Some(b)) if a != b => self.world.cut(a, b),
                (3, ..) => self.isolate(head),
                (4, ..) => self.world.heal(),
                (5, ..) => self.kill(a, &mut rng),
                (6, ..) => self.kill(head, &mut rng),
                (8, ..) => self.black_out(head, &mut rng),
                (7, ..) => self.world.set_delay(Duration::ZERO, Duration::from_micros(100 << rng.below(8))),
                _ => self.revive(),
            }
        }
        self.world.set_delay(Duration::ZERO, Duration::from_millis(1));
        self.world.heal();
        self.revive();
    }

    /// Things break while something is in flight; between two breaks there is time to get on, or to
    /// try in vain.
    async fn wait_for_work(&self, rng: &mut Rng) {
        let goal = self.acks.borrow().len() + 1 + rng.below(8) as usize;
        let limit = self.rt.now() + Duration::from_millis(100 + rng.below(2000));
        while self.acks.borrow().len() < goal && self.rt.now() < limit && self.clients_left.get() > 0 {
            self.rt.sleep(Duration::from_micros(500)).await;
        }
        self.rt.sleep(Duration::from_micros(rng.below(8000))).await;
    }

    fn reset_neighbours(&self, rng: &mut Rng) {
        let chunks = self.chunks.borrow();
        // A chain of one has no neighbours.
        let Some(chunk) = chunks.last().filter(|chunk| chunk.members.len() > 1) else { return };
        let at = rng.below(chunk.members.len() as u64 - 1) as usize;
        let life = |at: usize| self.nodes[chunk.members[at]].life.get();
        if let (Some(a), Some(b)) = (life(at), life(at + 1)) {
            self.world.reset(a, b);
        }
    }

    /// The clients still reach it; the master and the other members do not.
    fn isolate(&self, node: usize) {
        let Some(id) = self.nodes[node].life.get() else { return };
        let others = self.nodes.iter().filter_map(|node| node.life.get()).filter(|other| *other != id);
        for other in others.chain([self.rt.node()]) {
            self.world.cut(id, other);
            self.world.cut(other, id);
        }
    }

    fn kill(&self, node: usize, rng: &mut Rng) {
        let Some(id) = self.nodes[node].life.take() else { return };
        self.world.crash(id);
        if rng.once_in(2) {
            self.nodes[node].disk.power_cut(rng.next());
        }
    }

    /// Power loss everywhere; all but the head come back.
    fn black_out(self: &Rc<Self>, head: usize, rng: &mut Rng) {
        for index in 0..NODES {
            if let Some(id) = self.nodes[index].life.take() {
                self.world.crash(id);
                self.nodes[index].disk.power_cut(rng.next());
            }
        }
        for index in (0..NODES).filter(|index| *index != head) {
            boot(self, index);
        }
    }

    fn revive(self: &Rc<Self>) {
        for index in 0..NODES {
            if self.nodes[index].life.get().is_none() {
                boot(self, index);
            }
        }
    }

    async fn content(&self, node: usize, chunk: ChunkHandle, len: u32) -> Vec<u8> {
        let mut talk = Talk::dial(&self.rt, node, Role::Client).await.unwrap();
        let mut out = Vec::new();
        while (out.len() as u32) < len {
            let offset = out.len() as u32;
            let want = (len - offset).min(PAYLOAD_LEN_MAX);
            let read = Read { chunk, epoch: Epoch(0), offset, len: want, min_seq: Seq(0) };
            let (data, payload) = talk.read(&read).await.unwrap();
            out.extend_from_slice(&payload[..data.len as usize]);
        }
        out
    }
}

/// Rule S4 without the operator, and S5.
fn decide(answers: &BTreeMap<usize, PrepareOk>, members: usize) -> Option<usize> {
    let healthy = || answers.iter().filter(|(_, it)| it.healthy);
    let is_enough = healthy().any(|(_, it)| it.state == ReplicaState::Open)
        || healthy().count() >= 2
        || healthy().count() == members;
    let (source, best) = healthy().max_by_key(|(_, it)| it.last_seq)?;
    let is_proof_of_more = answers.values().any(|it| it.committed_seq > best.last_seq);
    (is_enough && !is_proof_of_more).then_some(*source)
}

/// An operation's bytes say whose they are and how many.
fn record(stream: u8, op: u64, rng: &mut Rng) -> Vec<u8> {
    let len = match rng.below(20) {
        0 => PAYLOAD_LEN_MAX as usize + 1 + rng.below(300_000) as usize,
        1..=4 => 4096 * (1 + rng.below(8) as usize),
        _ => 13 + rng.below(9000) as usize,
    };
    let mut out = vec![stream];
    out.extend_from_slice(&op.to_le_bytes());
    out.extend_from_slice(&(len as u32).to_le_bytes());
    out.extend((13..len).map(|at| (at as u64 ^ op.wrapping_mul(31) ^ u64::from(stream)) as u8));
    out
}

/// Takes content apart into (stream, op) → (offset, len). Every operation is there whole.
fn parse(content: &[u8], chunk: ChunkHandle, into: &mut BTreeMap<(u8, u64), (ChunkHandle, u32, u32)>) {
    let mut at = 0;
    while at < content.len() {
        let stream = content[at];
        let op = u64::from_le_bytes(content[at + 1..at + 9].try_into().unwrap());
        let len = u32::from_le_bytes(content[at + 9..at + 13].try_into().unwrap());
        let twice = into.insert((stream, op), (chunk, at as u32, len));
        assert!(twice.is_none(), "stream {stream} op {op} is in the file twice: {twice:?} and {chunk}+{at}");
        at += len as usize;
    }
    assert_eq!(at, content.len(), "{chunk} ends inside an operation");
}

async fn campaign(cluster: Shared, seed: u64, plan: Plan) -> u32 {
    let ops = plan.ops;
    for index in 0..NODES {
        boot(&cluster, index);
    }
    let rt = cluster.rt.clone();
    rt.spawn({
        let cluster = Rc::clone(&cluster);
        async move { cluster.rule(Rng::new(seed, 50)).await }
    });
    for stream in 1..=CLIENTS {
        let (cluster, rng) = (Rc::clone(&cluster), Rng::new(seed, 60 + u64::from(stream)));
        let client = cluster.world.start(cluster.world.node(), MEMORY);
        client.clone().spawn(async move { cluster.write(client, stream, ops, rng).await });
    }
    Rc::clone(&cluster).torment(plan, Rng::new(seed, 70)).await;
    let limit = rt.now() + Duration::from_secs(120);
    while cluster.clients_left.get() > 0 {
        assert!(rt.now() < limit, "faults have stopped, and operations do not end");
        rt.sleep(Duration::from_millis(100)).await;
    }
    // One more seal makes everything final.
    let last = cluster.chunks.borrow().last().unwrap().handle;
    while cluster.chunks.borrow().last().unwrap().handle == last {
        assert!(rt.now() < limit, "faults have stopped, and the chunk is not sealed");
        cluster.complain(last);
        rt.sleep(Duration::from_millis(100)).await;
    }
    cluster.confirm_all().await;
    let chunks = cluster.chunks.borrow().clone();
    let mut found = BTreeMap::new();
    for chunk in &chunks {
        let Some(sealed) = &chunk.sealed else { continue };
        let first = cluster.content(sealed.holders[0], chunk.handle, sealed.len).await;
        for holder in &sealed.holders[1..] {
            assert!(
                cluster.content(*holder, chunk.handle, sealed.len).await == first,
                "holders of {} differ",
                chunk.handle
            );
        }
        parse(&first, chunk.handle, &mut found);
    }
    let acks = cluster.acks.borrow();
    assert_eq!(acks.len() as u64, u64::from(CLIENTS) * ops);
    for ((stream, op), ack) in acks.iter() {
        let place = found.get(&(*stream, *op));
        assert_eq!(place, Some(&(ack.chunk, ack.offset, ack.len)), "stream {stream} op {op} was acknowledged");
    }
    cluster.seals.get()
}

/// A cluster that has not been started.
fn cluster(rt: SimRuntime) -> Shared {
    let world = rt.world();
    let nodes = (0..NODES).map(|index| {
        let node = Node {
            root: format!("/node{index}").into(),
            disk: SimDisk::new(2 << 30),
            address: address(index),
            life: Cell::new(None),
            boots: Cell::new(0),
            mailbox: RefCell::default(),
        };
        world.attach(&node.root, &node.disk);
        node
    });
    Rc::new(Cluster {
        nodes: nodes.collect(),
        world,
        rt,
        chunks: RefCell::default(),
        is_open: Cell::new(false),
        trouble: Notify::new(),
        is_trouble: Cell::new(false),
        finished: RefCell::default(),
        acks: RefCell::default(),
        clients_left: Cell::new(CLIENTS),
        seals: Cell::new(0),
    })
}

fn run(seed: u64, plan: Plan) -> (u32, u64) {
    let sim = Sim::new(seed);
    let seals = sim.run(|rt| campaign(cluster(rt), seed, plan));
    (seals, sim.trace_hash())
}

#[test]
fn without_faults_every_operation_is_acknowledged_in_one_chunk() {
    let (seals, _) = run(1, Plan { ops: 30, faults: 0, kinds: ALL_KINDS });
    assert_eq!(seals, 1, "only the one at the end");
}

#[test]
fn a_chain_whose_connections_break_goes_on_without_a_seal() {
    for seed in 0..10 {
        eprintln!("seed {seed}");
        let (seals, _) = run(seed, Plan { ops: 60, faults: 12, kinds: 2 });
        assert_eq!(seals, 1, "entries that were not acknowledged are sent again");
    }
}

#[test]
fn whatever_breaks_everything_acknowledged_is_there_once_where_it_was_answered() {
    let first = std::env::var("HERCULES_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = match first {
        Some(seed) => seed..seed + 1,
        None => 0..std::env::var("HERCULES_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(12),
    };
    let (mut seals, count) = (0, seeds.end - seeds.start);
    for seed in seeds {
        eprintln!("seed {seed}: repeat with HERCULES_SEED={seed}");
        seals += run(seed, Plan { ops: 100, faults: 30, kinds: ALL_KINDS }).0;
    }
    assert!(u64::from(seals) > count, "the faults must make it seal: {seals}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let plan = Plan { ops: 15, faults: 10, kinds: ALL_KINDS };
    assert_eq!(run(7, plan), run(7, plan));
}
