//! A master in a simulation: the real state, its decisions about seals, placement, liveness and reports,
//! driven over simulated connections as `sealing`, `opening`, `locate`, `holders` and `reports` drive them
//! over real ones. Its operation log lies on a disk that keeps only what was flushed.

mod drive;
mod log;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use engine::runtime::Runtime;
use engine::runtime::sim::{NodeId, Rng, SimReader, SimRuntime, SimWriter, World};
use tokio::sync::Notify;
use wire::heartbeat::{Heartbeat, HeartbeatOk, Register, Registered};
use wire::hello::{Hello, HelloOk, Role};
use wire::locate::{Locate, LocateChunk, Location, Locations};
use wire::member::{ChunkState, Member, ReplicaState};
use wire::message::{Done, tag};
use wire::report::{Finished, Report, Trouble};
use wire::{Body, ChunkHandle, Fault, InodeId, Kind, Request, ServerId, Term};

pub(crate) use self::log::OpLog;
use super::entry::{Change, ServerRecord};
use super::reports::{Verdict, overdue, verdict};
use super::soft::Soft;
use super::state::{Phase, Place, State};
use crate::canary::sometimes;
use crate::chunkserver::frames::FrameReader;
use crate::simulation::CLUSTER;
use crate::simulation::talk::{Answer, Talk, within};

const MEMORY: usize = 64 << 20;
const LOOK_EVERY: Duration = Duration::from_millis(500);
const DEAD_AFTER: Duration = Duration::from_secs(30);
const DEADLINE_MAX: Duration = Duration::from_secs(30);
/// Replicas wanted, and the fewest to write with.
pub(super) const REPLICAS: (usize, usize) = (3, 2);

/// A master at work in one life; clones of the handle are the same one.
pub(crate) struct SimMaster {
    rt: SimRuntime,
    log: Rc<OpLog>,
    state: RefCell<State>,
    soft: RefCell<Soft>,
    term: Term,
    /// Handles below this were given out in an earlier life.
    first_chunk: ChunkHandle,
    changed: Notify,
    sealing: RefCell<BTreeSet<ChunkHandle>>,
    joining: RefCell<BTreeSet<(ChunkHandle, ServerId)>>,
    opening: RefCell<BTreeMap<InodeId, Rc<drive::Opening>>>,
    /// Connections that nobody uses now.
    idle: RefCell<BTreeMap<ServerId, Vec<Talk>>>,
    rng: RefCell<Rng>,
    /// Seals ended in this life.
    pub(crate) seals: Cell<u32>,
}

/// Begins a life on what is left of the log.
pub(crate) fn start(world: &World, log: &Rc<OpLog>, address: SocketAddr, seed: u64) -> (NodeId, Rc<SimMaster>) {
    let node = world.node();
    let rt = world.start(node, MEMORY);
    let state = log.replay();
    let first_chunk = state.next_chunk();
    let term = Term(state.term().0 + 1);
    let master = Rc::new(SimMaster {
        soft: RefCell::new(Soft::new(rt.now(), DEAD_AFTER)),
        log: Rc::clone(log),
        state: RefCell::new(state),
        term,
        first_chunk,
        changed: Notify::new(),
        sealing: RefCell::default(),
        joining: RefCell::default(),
        opening: RefCell::default(),
        idle: RefCell::default(),
        rng: RefCell::new(Rng::new(seed, 90)),
        seals: Cell::new(0),
        rt: rt.clone(),
    });
    rt.spawn({
        let log = Rc::clone(log);
        let rt = rt.clone();
        async move { log.flush_for_ever(&rt).await }
    });
    rt.clone().spawn({
        let master = Rc::clone(&master);
        async move {
            master.submit(Change::Term { term }).await.unwrap_or_else(|fault| panic!("a term begins: {fault}"));
            master.rt.spawn(Rc::clone(&master).watch());
            let listener = master.rt.listen(address).unwrap_or_else(|error| panic!("{address}: {error}"));
            loop {
                let (reader, writer) = listener.accept().await;
                master.rt.spawn(Rc::clone(&master).serve(reader, writer));
            }
        }
    });
    (node, master)
}

impl SimMaster {
    /// The state as it stands, whether durable or not.
    pub(crate) fn look<T>(&self, question: impl FnOnce(&State) -> T) -> T {
        question(&self.state.borrow())
    }

    /// What an operator would be called for: reports that know more than the log, broken promises.
    pub(crate) fn alarms(&self) -> (bool, u64) {
        let soft = self.soft.borrow();
        (soft.log_lost, soft.alarms)
    }

    async fn serve(self: Rc<Self>, reader: SimReader, mut writer: SimWriter) {
        let mut reader = FrameReader::new(self.rt.clone(), reader);
        let Ok(Some(frame)) = reader.next().await else { return };
        let hello: Hello = frame.open().unwrap_or_else(|error| panic!("a connection begins with hello: {error}"));
        let ok = HelloOk { server: ServerId(0), boot: 0, cluster: CLUSTER, shards: 1, version: String::new() };
        if self.rt.send_all(&mut writer, wire::frame::head(&ok, 1, 0, 0), None).await.is_err() {
            return;
        }
        let mut server = None;
        while let Ok(Some(frame)) = reader.next().await {
            let id = frame.header.request_id;
            let bytes = match frame.header.tag {
                tag::REGISTER => answer(self.register(&open(&frame)).await, id),
                tag::HEARTBEAT => {
                    let heartbeat: Heartbeat = open(&frame);
                    server = Some((heartbeat.server, heartbeat.boot));
                    answer(self.heartbeat(&heartbeat), id)
                }
                tag::FINISHED => answer(self.finished(open(&frame)).await.map(|()| Done), id),
                tag::REPORT => {
                    self.report(&open(&frame));
                    answer(Ok(Done), id)
                }
                tag::LOCATE => {
                    let located = self.locate_append(open::<Locate>(&frame).file);
                    let late = || Err(Fault::new(Kind::Unavailable, "no answer in time: ask again"));
                    answer(within(&self.rt, DEADLINE_MAX, located).await.unwrap_or_else(late), id)
                }
                tag::LOCATE_CHUNK => answer(self.locate_chunk(open(&frame)).await, id),
                other => panic!("the simulated master does not know message {other}"),
            };
            if self.rt.send_all(&mut writer, bytes, None).await.is_err() {
                break;
            }
        }
        debug_assert!(hello.role != Role::Master);
        if let Some((server, boot)) = server
            && let Some(heard) = self.soft.borrow_mut().servers.get_mut(&server).filter(|heard| heard.boot == boot)
        {
            heard.gone = true;
        }
    }

    async fn register(self: &Rc<Self>, request: &Register) -> Answer<Registered> {
        let Register { server, disk, address, shards, boot, .. } = request.clone();
        let record =
            ServerRecord { disk, address, admin: String::new(), shards, zone: String::new(), version: String::new() };
        if self.look(|state| state.server(server) != Some(&record)) {
            self.submit(Change::Register { server, record }).await?;
        }
        self.soft.borrow_mut().registered(server, boot, self.rt.now());
        Ok(Registered { server, cluster: CLUSTER, term: self.term })
    }

    fn heartbeat(self: &Rc<Self>, request: &Heartbeat) -> Answer<HeartbeatOk> {
        let server = request.server;
        {
            let mut soft = self.soft.borrow_mut();
            let Some(heard) = soft.servers.get_mut(&server).filter(|heard| heard.boot == request.boot) else {
                return Err(Fault::new(Kind::StaleEpoch, "register first"));
            };
            heard.arrivals.heard(self.rt.now());
            heard.gone = false;
            (heard.space, heard.chunks) = (request.space, request.chunk_count);
            if let Some(page) = request.inventory {
                if page.first {
                    heard.seen.clear();
                }
                let open = request.chunks.iter().filter(|report| report.state != ReplicaState::Sealed);
                heard.seen.extend(open.map(|report| report.chunk));
            }
            soft.unfit.heard(&self.state.borrow(), server, &request.chunks, request.inventory);
        }
        for report in &request.chunks {
            match self.look(|state| verdict(state, server, report)) {
                Verdict::Fine if report.state == ReplicaState::Open => {
                    self.soft.borrow_mut().hints.insert(report.chunk, report.committed_len);
                }
                // Copies of whole chunks are not simulated.
                Verdict::Fine | Verdict::Orphan | Verdict::Stray(_) => {}
                Verdict::Seal => self.start_seal(report.chunk),
                Verdict::Confirm => {
                    sometimes!("a report brings a lost CONFIRM up again");
                    self.confirm(report.chunk, server);
                }
                Verdict::Ahead => self.soft.borrow_mut().log_lost = true,
                Verdict::Differs => self.soft.borrow_mut().alarms += 1,
            }
        }
        if request.inventory.is_some_and(|page| page.last) {
            self.inventory_complete(server);
        }
        let want_inventory = self.soft.borrow().servers.get(&server).is_some_and(|heard| !heard.inventoried);
        Ok(HeartbeatOk { term: self.term, want_inventory })
    }

    fn inventory_complete(self: &Rc<Self>, server: ServerId) {
        let seen = {
            let mut soft = self.soft.borrow_mut();
            let Some(heard) = soft.servers.get_mut(&server) else { return };
            heard.inventoried = true;
            std::mem::take(&mut heard.seen)
        };
        let lost: Vec<_> = self.look(|state| {
            let mine = state.open_chunks().filter(|(_, chunk)| chunk.members.contains(&server));
            mine.map(|(handle, _)| handle)
                .filter(|handle| *handle < self.first_chunk && !seen.contains(handle))
                .collect()
        });
        for chunk in lost {
            sometimes!("an open chunk is not where it was");
            self.start_seal(chunk);
        }
    }

    fn report(self: &Rc<Self>, report: &Report) {
        let Report { chunk, epoch, trouble, .. } = *report;
        let current =
            self.look(|state| state.chunk(chunk).is_some_and(|row| row.phase == Phase::Open && row.epoch == epoch));
        if matches!(trouble, Trouble::Diverged | Trouble::LostOps) {
            self.soft.borrow_mut().alarms += 1;
        }
        if current {
            self.start_seal(chunk);
        }
    }

    async fn finished(self: &Rc<Self>, request: Finished) -> Answer<()> {
        let Finished { chunk, epoch, last_seq, len, digest, dedup } = request;
        let open = self.look(|state| {
            let row = state.chunk(chunk).filter(|row| row.phase == Phase::Open && row.epoch == epoch)?;
            Some(row.members.clone())
        });
        let Some(holders) = open else {
            sometimes!("a planned seal is overtaken by SealStart");
            return Ok(());
        };
        self.soft.borrow_mut().ready.remove(&chunk);
        match self.submit(Change::Sealed { chunk, epoch, len, last_seq, digest, holders, dedup }).await {
            Ok(_) => {
                sometimes!("a planned seal");
                self.seals.set(self.seals.get() + 1);
                Ok(())
            }
            Err(fault) if matches!(fault.kind, Kind::Sealed | Kind::StaleEpoch | Kind::NotFound) => Ok(()),
            Err(fault) => Err(fault),
        }
    }

    /// As `locate` does it: waits for the seal of the chunk before, opens the next, gives it out when all
    /// its members have it.
    async fn locate_append(self: &Rc<Self>, file: InodeId) -> Answer<Locations> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let tail = self.ask(|state| state.tail(file)).await;
            match tail {
                Some(place) if place.chunk.phase == Phase::Open && self.soft.borrow().ready.contains(&place.handle) => {
                    return Ok(self.locations(place));
                }
                Some(Place { handle, chunk, .. }) if matches!(chunk.phase, Phase::Sealing(_)) => {
                    self.start_seal(handle);
                    changed.await;
                }
                _ => {
                    self.open_tail(file).await?;
                    let waits = self.look(|state| {
                        state.tail(file).is_some_and(|tail| {
                            tail.chunk.phase == Phase::Open && !self.soft.borrow().ready.contains(&tail.handle)
                        })
                    });
                    if waits {
                        changed.await;
                    }
                }
            }
        }
    }

    async fn locate_chunk(&self, request: LocateChunk) -> Answer<Locations> {
        let place = self.ask(|state| state.place_of(request.chunk)).await;
        place.map(|place| self.locations(place)).ok_or_else(|| Fault::new(Kind::NotFound, "no such chunk"))
    }

    fn locations(&self, place: Place) -> Locations {
        let Place { index, start, handle, chunk } = place;
        let (state, len) = match chunk.phase {
            Phase::Open => (ChunkState::Open, 0),
            Phase::Sealing(_) => (ChunkState::Sealing, 0),
            Phase::Sealed { len, .. } => (ChunkState::Sealed, len),
        };
        let members = self.members(&chunk.members);
        let (file, epoch) = (chunk.file, chunk.epoch);
        let item = Location { file, index, start, chunk: handle, state, epoch, len, members, expire_ms: 60_000 };
        Locations { items: vec![item], version: 1, chunk_count: 1 }
    }

    pub(super) fn members(&self, servers: &[ServerId]) -> Vec<Member> {
        self.look(|state| super::shared::members(state, servers))
    }

    async fn watch(self: Rc<Self>) {
        loop {
            let now = self.rt.now();
            let (seal, join) = {
                let (state, mut soft) = (self.state.borrow(), self.soft.borrow_mut());
                if soft.leave_safe_mode(&state, now) {
                    sometimes!("safe mode ends");
                }
                overdue(&state, &soft, self.first_chunk, &BTreeSet::new(), now, self.log.wall.unix_ms(&self.rt))
            };
            seal.into_iter().for_each(|chunk| self.start_seal(chunk));
            join.into_iter().for_each(|(chunk, server)| self.join(chunk, server));
            self.soft.borrow_mut().forget_closed(&self.state.borrow());
            self.rt.sleep(LOOK_EVERY).await;
        }
    }

    /// Asks a member, within `limit`. A connection is used for one call at a time.
    async fn call<Q: Request>(&self, member: &Member, request: &Q, limit: Duration) -> Answer<Q::Reply> {
        let call = async {
            let idle = self.idle.borrow_mut().get_mut(&member.server).and_then(Vec::pop);
            let mut talk = match idle {
                Some(talk) => talk,
                None => {
                    let address = member.address.parse().unwrap_or_else(|_| panic!("{} is an address", member.address));
                    Talk::dial(&self.rt, address, Role::Master, Duration::from_secs(1)).await?
                }
            };
            let outcome = talk.call(request, limit).await;
            if !matches!(&outcome, Err(fault) if fault.kind == Kind::Unknown) {
                self.idle.borrow_mut().entry(member.server).or_default().push(talk);
            }
            outcome
        };
        let late = || Err(Fault::new(Kind::Unknown, "no answer in time"));
        within(&self.rt, limit, call).await.unwrap_or_else(late)
    }
}

fn open<B: Body>(frame: &crate::chunkserver::frames::Received) -> B {
    frame.open().unwrap_or_else(|error| panic!("a request that is none: {error}"))
}

fn answer<B: Body>(result: Answer<B>, id: u64) -> Vec<u8> {
    match result {
        Ok(body) => wire::frame::head(&body, id, 0, 0),
        Err(fault) => wire::frame::head(&fault, id, 0, 0),
    }
}
