//! A whole cluster in one thread, from one seed: real chunkserver shards on simulated disks, the master's
//! real decisions on a simulated log, clients with the client's real decisions, and a network between
//! them that fails. In the end everything heals, and must: every operation ends, every chunk is sealed,
//! its holders are equal, and what clients were told is true (docs/testing.md).
//!
//! `plan` says what a seed does, `faults` does what goes wrong, `oracle` knows what was promised,
//! `campaign` runs many seeds.

mod campaign;
mod canaries;
mod client;
mod faults;
mod oracle;
mod plan;
pub(crate) mod talk;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use engine::runtime::Runtime;
use engine::runtime::sim::{NodeId, Rng, Sim, SimDisk, SimRuntime, World};
use wire::report::{Report, Trouble};
use wire::{ChunkHandle, ClusterId, Epoch, InodeId, RequestId, ServerId};

use self::client::{Writer, read_from};
use self::oracle::History;
use self::plan::{Kind, Plan};
use self::talk::Talk;
use crate::chunkserver::simulated::Setup;
use crate::master::entry::{Change, ServerRecord};
use crate::master::simulated::{OpLog, SimMaster};
use crate::master::state::{Phase, State};

/// Every simulated cluster has this name.
pub(crate) const CLUSTER: ClusterId = ClusterId([3; 16]);
/// Buffers of a client.
const MEMORY: usize = 64 << 20;
const CALL: Duration = Duration::from_millis(1500);
/// After the faults have stopped, everything must have ended within this much virtual time.
const HEAL: Duration = Duration::from_secs(120);

/// One chunkserver: its disk stays, its lives come and go.
struct Server {
    root: PathBuf,
    disk: SimDisk,
    address: SocketAddr,
    life: Cell<Option<NodeId>>,
    boots: Cell<u64>,
    /// Why it ended by itself.
    ended: Rc<RefCell<Option<String>>>,
}

/// The cluster, and whoever torments it.
struct Cluster {
    plan: Plan,
    world: World,
    rt: SimRuntime,
    servers: Vec<Server>,
    /// The server whose disk may lie or rot.
    weak: Option<usize>,
    log: Rc<OpLog>,
    master: RefCell<Option<(NodeId, Rc<SimMaster>)>>,
    clients: RefCell<Vec<NodeId>>,
    clients_left: Cell<usize>,
    history: Rc<History>,
    seals: Cell<u32>,
}

/// What a run shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Outcome {
    hash: u64,
    acked: usize,
    seals: u32,
    took: Duration,
}

fn address(server: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, server as u8 + 1], 7000))
}

fn master_address() -> SocketAddr {
    SocketAddr::from(([10, 0, 1, 1], 6000))
}

fn server_id(server: usize) -> ServerId {
    ServerId(server as u32 + 1)
}

impl Cluster {
    fn new(plan: &Plan, rt: SimRuntime) -> Rc<Self> {
        let world = rt.world();
        let mut rng = Rng::new(plan.seed, 41);
        let servers = (0..plan.servers).map(|server| {
            let disk = SimDisk::new(2 << 30);
            let root = PathBuf::from(format!("/server{server}"));
            world.attach(&root, &disk);
            Server {
                root,
                disk,
                address: address(server),
                life: Cell::new(None),
                boots: Cell::new(0),
                ended: Rc::default(),
            }
        });
        let servers: Vec<_> = servers.collect();
        let is_weak = plan.kinds.iter().any(|kind| matches!(kind, Kind::Liar | Kind::Rot));
        let weak = is_weak.then(|| rng.below(plan.servers as u64) as usize);
        if let Some(weak) = weak.filter(|_| plan.kinds.contains(&Kind::Liar)) {
            servers[weak].disk.set_liar(true);
        }
        Rc::new(Self {
            plan: plan.clone(),
            servers,
            weak,
            log: Rc::new(OpLog::new(plan.seed)),
            master: RefCell::default(),
            clients: RefCell::default(),
            clients_left: Cell::new(usize::from(plan.clients)),
            history: Rc::default(),
            seals: Cell::new(0),
            world,
            rt,
        })
    }

    /// The files that are written to.
    fn found(&self, files: u64) -> Vec<InodeId> {
        let mut changes = vec![Change::Found { cluster: CLUSTER }];
        for server in 0..self.servers.len() {
            let mut disk = [0xd1; 16];
            disk[..4].copy_from_slice(&server_id(server).0.to_le_bytes());
            let (address, none) = (self.servers[server].address.to_string(), String::new());
            let (admin, zone, version) = (none.clone(), none.clone(), none);
            let record = ServerRecord { disk, address, admin, shards: 1, zone, version };
            changes.push(Change::Register { server: server_id(server), record });
        }
        for number in 1..=files {
            let request = RequestId { client: [9; 16], number };
            changes.push(Change::Create { request, path: format!("/f{number}"), replicas: 3 });
        }
        self.log.found(changes);
        let state = self.log.replay();
        let inode = |number| {
            let path = wire::NamePath::parse(&format!("/f{number}")).unwrap_or_else(|error| panic!("{error}"));
            state.stat(&path).unwrap_or_else(|fault| panic!("{fault}")).inode
        };
        (1..=files).map(inode).collect()
    }

    /// Begins the next life of a chunkserver.
    fn boot(&self, index: usize) {
        let server = &self.servers[index];
        server.ended.take();
        server.boots.set(server.boots.get() + 1);
        let setup = Setup {
            root: server.root.clone(),
            server: server_id(index),
            boot: (index as u64 + 1) << 32 | server.boots.get(),
            address: server.address,
            master: master_address(),
            unix_seconds: self.log.wall.unix_ms(&self.rt) / 1000,
            ended: Rc::clone(&server.ended),
        };
        server.life.set(Some(crate::chunkserver::simulated::start(&self.world, setup)));
    }

    fn boot_master(&self) {
        let seed = self.plan.seed ^ self.world.now().as_nanos() as u64;
        *self.master.borrow_mut() =
            Some(crate::master::simulated::start(&self.world, &self.log, master_address(), seed));
    }

    /// The master dies and its log keeps what was flushed.
    fn kill_master(&self) {
        let Some((node, master)) = self.master.borrow_mut().take() else { return };
        self.look_at(&master);
        self.world.crash(node);
        self.log.crash();
    }

    /// I9 and the divergence checks, as the master itself sees them.
    fn look_at(&self, master: &SimMaster) {
        let (log_lost, alarms) = master.alarms();
        assert!(!log_lost, "I9: a replica knows more than the master's log");
        assert_eq!(alarms, 0, "I2: the master calls the operator");
        self.seals.set(self.seals.get() + master.seals.take());
    }

    fn look<T>(&self, question: impl FnOnce(&State) -> T) -> Option<T> {
        self.master.borrow().as_ref().map(|(_, master)| master.look(question))
    }

    fn start_clients(self: &Rc<Self>, files: &[InodeId]) {
        for id in 1..=self.plan.clients {
            let node = self.world.node();
            self.clients.borrow_mut().push(node);
            let rt = self.world.start(node, MEMORY);
            let writer = Writer {
                rt: rt.clone(),
                id,
                file: files[usize::from(id) % files.len()],
                master: master_address(),
                history: Rc::clone(&self.history),
                rng: Rng::new(self.plan.seed, 60 + u64::from(id)),
                is_alone: self.plan.clients == 1,
            };
            let cluster = Rc::clone(self);
            rt.spawn(async move {
                writer.run(cluster.plan.ops).await;
                cluster.clients_left.set(cluster.clients_left.get() - 1);
            });
        }
        let node = self.world.node();
        let rt = self.world.start(node, MEMORY);
        let (cluster, rng) = (Rc::clone(self), Rng::new(self.plan.seed, 43));
        rt.clone().spawn(async move { cluster.read(rt, rng).await });
    }

    /// A reader: any chunk, from any server, whatever it is.
    async fn read(&self, rt: SimRuntime, mut rng: Rng) {
        while self.clients_left.get() > 0 {
            rt.sleep(Duration::from_millis(1 + rng.below(200))).await;
            let places = self.look(|state| {
                let open = state.open_chunks().map(|(chunk, row)| (chunk, row.members.clone()));
                let mut places: Vec<_> = open.collect();
                if rng.once_in(4) {
                    let all = state.chunks_between(ChunkHandle::NONE, state.next_chunk());
                    places.extend(all.map(|(chunk, row)| (chunk, row.members.clone())));
                }
                places
            });
            let places = places.unwrap_or_default();
            if places.is_empty() {
                continue;
            }
            let (chunk, members) = &places[rng.below(places.len() as u64) as usize];
            let member = members[rng.below(members.len() as u64) as usize];
            // Refusals and silence are fine. Wrong bytes are not.
            if let Ok(bytes) = read_from(&rt, address(member.0 as usize - 1), *chunk, CALL).await {
                self.history.saw(*chunk, &bytes);
            }
        }
    }

    /// After the faults have stopped: everything ends, everything is sealed.
    async fn settle(&self) {
        let limit = self.rt.now() + HEAL;
        while self.clients_left.get() > 0 {
            self.all_are_up();
            assert!(self.rt.now() < limit, "I10: faults have stopped, and operations do not end");
            self.rt.sleep(Duration::from_millis(100)).await;
        }
        loop {
            let open = self.look(|state| {
                let open = state.open_chunks().filter(|(_, row)| row.phase == Phase::Open);
                (state.open_chunks().count(), open.map(|(chunk, row)| (chunk, row.epoch)).collect::<Vec<_>>())
            });
            let (unsealed, open) = open.unwrap_or_default();
            if unsealed == 0 {
                break;
            }
            for (chunk, epoch) in open {
                self.ask_to_seal(chunk, epoch).await;
            }
            assert!(self.rt.now() < limit, "I10: faults have stopped, and {unsealed} chunks are not sealed");
            self.rt.sleep(Duration::from_millis(100)).await;
        }
    }

    /// What a sound disk holds can be opened.
    fn all_are_up(&self) {
        for (index, server) in self.servers.iter().enumerate().filter(|(index, _)| self.weak != Some(*index)) {
            let ended = server.ended.borrow();
            assert!(
                ended.is_none(),
                "I10: server {} cannot start: {}",
                server_id(index),
                ended.as_deref().unwrap_or("")
            );
        }
    }

    async fn ask_to_seal(&self, chunk: ChunkHandle, epoch: Epoch) {
        let report = Report { chunk, epoch, trouble: Trouble::Stalled, suspect: ServerId(0) };
        if let Ok(mut talk) = Talk::dial(&self.rt, master_address(), wire::hello::Role::Client, CALL).await {
            // What is not heard is said again by the caller's loop.
            drop(talk.call(&report, CALL).await);
        }
    }

    /// I5 and what clients were promised.
    async fn check(&self, files: &[InodeId]) {
        let limit = self.rt.now() + HEAL;
        let mut known = BTreeSet::new();
        for file in files {
            let rows = self.look(|state| {
                let count = state.chunk_count(*file).unwrap_or_default();
                (0..count).filter_map(|index| state.place(*file, index)).collect::<Vec<_>>()
            });
            let mut chunks = Vec::new();
            for place in rows.unwrap_or_default() {
                let Phase::Sealed { len, .. } = place.chunk.phase else { panic!("{} is not sealed", place.handle) };
                let content = self.content(place.handle, len, &place.chunk.members, limit).await;
                known.insert(place.handle);
                chunks.push((place.handle, content));
            }
            self.history.check(*file, &chunks);
        }
        self.history.seen_elsewhere(&known.into_iter().collect::<Vec<_>>());
        if let Some((_, master)) = &*self.master.borrow() {
            self.look_at(master);
        }
    }

    /// The content of a sealed chunk, the same on every holder.
    async fn content(&self, chunk: ChunkHandle, len: u32, holders: &[ServerId], limit: Duration) -> Vec<u8> {
        let mut content: Option<Vec<u8>> = None;
        for holder in holders {
            let index = holder.0 as usize - 1;
            let is_weak = self.weak == Some(index);
            loop {
                match read_from(&self.rt, address(index), chunk, CALL).await {
                    // Until CONFIRM has come again, it shows what it knew before.
                    Ok(bytes) if bytes.len() as u32 == len => {
                        let first = content.get_or_insert_with(|| bytes.clone());
                        assert!(*first == bytes, "I5: holders of {chunk} differ, {holder} is one");
                        break;
                    }
                    Ok(bytes) => assert!(bytes.len() as u32 <= len, "I5: {holder} has more of {chunk} than the seal"),
                    // A disk that forgets or rots: it says so, and others have the bytes.
                    Err(_) if is_weak && holders.len() > 1 => break,
                    Err(_) => {}
                }
                let is_late = self.rt.now() >= limit;
                if is_late && is_weak && holders.len() > 1 {
                    break;
                }
                assert!(!is_late, "I10: holder {holder} does not show {chunk} as it was sealed");
                self.rt.sleep(Duration::from_millis(100)).await;
            }
        }
        content.unwrap_or_else(|| panic!("I8: nobody has {chunk}"))
    }
}

/// Runs a plan to its end.
///
/// # Panics
///
/// With the sentence that turned out false.
fn run(plan: &Plan) -> Outcome {
    let sim = Sim::new(plan.seed);
    let plan = plan.clone();
    let (acked, seals) = sim.run(|rt| async move {
        let cluster = Cluster::new(&plan, rt);
        let files = cluster.found(if plan.clients > 2 { 2 } else { 1 });
        cluster.boot_master();
        for index in 0..plan.servers {
            cluster.boot(index);
        }
        cluster.start_clients(&files);
        cluster.torment().await;
        cluster.settle().await;
        cluster.check(&files).await;
        (cluster.history.acked(), cluster.seals.get())
    });
    Outcome { hash: sim.trace_hash(), acked, seals, took: sim.now() }
}
