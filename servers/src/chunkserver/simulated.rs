//! A chunkserver in a simulation: a real shard on a simulated disk and network, and a control task that
//! tells the master what the control thread of a real one does, by the same desk.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use engine::runtime::Runtime;
use engine::runtime::sim::{NodeId, SimReader, SimRuntime, SimWriter, World};
use engine::store::{self, DiskConfig, ReadConfig, Store};
use tokio::sync::{Notify, mpsc, oneshot};
use wire::ServerId;
use wire::heartbeat::{ChunkReport, Heartbeat, Register, Space};
use wire::hello::{Hello, HelloOk, Role};
use wire::limits::PAGE_ENTRIES_MAX;
use wire::locate::LocateChunk;

use super::budget::Budget;
use super::desk::{Desk, Letter};
use super::frames::FrameReader;
use super::mailbox::{ToControl, ToShard};
use super::shard::{Me, Shard};
use crate::simulation::CLUSTER;
use crate::simulation::talk::{Answer, Talk};

/// Buffers of a shard.
const MEMORY: usize = 256 << 20;
/// Little enough that blocks leave it.
const READS: ReadConfig = ReadConfig { cache_bytes: 64 << 10, ahead_max: 64 << 10 };
/// The least that a journal may have: reading it is most of a recovery.
const RING_BYTES: u64 = 256 << 10;
const BEAT_EVERY: Duration = Duration::from_secs(1);
const CALL: Duration = Duration::from_millis(1500);
/// Free space as told to the master: never what decides here.
const ROOM: u64 = 1 << 40;

/// One life of a chunkserver.
#[derive(Clone)]
pub(crate) struct Setup {
    /// Where its disk is attached.
    pub(crate) root: PathBuf,
    /// Its id.
    pub(crate) server: ServerId,
    /// Different in every life.
    pub(crate) boot: u64,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Where the master does.
    pub(crate) master: SocketAddr,
    /// Wall clock at its start.
    pub(crate) unix_seconds: u64,
    /// Why it ended by itself, if it did: its disk cannot be opened.
    pub(crate) ended: Rc<RefCell<Option<String>>>,
}

/// Starts it; the process is in `world` until it is crashed.
pub(crate) fn start(world: &World, setup: Setup) -> NodeId {
    let node = world.node();
    let rt = world.start(node, MEMORY);
    rt.clone().spawn(async move { live(rt, setup).await });
    node
}

async fn live(rt: SimRuntime, setup: Setup) {
    let (server, boot) = (setup.server, setup.boot);
    let me = Me { server, cluster: CLUSTER, boot, shard: 0, shards: 1 };
    let disk = DiskConfig {
        root: setup.root.clone(),
        cluster: CLUSTER,
        server,
        shards: 1,
        ring_bytes: Some(RING_BYTES),
        unix_seconds: setup.unix_seconds,
    };
    let opened = async {
        let mut recovered = store::recover(&rt, &disk).await?;
        let Some(seed) = recovered.seeds.pop() else { unreachable!("one shard was asked for") };
        Store::start_with(rt.clone(), seed, READS).await
    };
    let store = match opened.await {
        Ok(store) => store,
        Err(error) => {
            *setup.ended.borrow_mut() = Some(error.to_string());
            return;
        }
    };
    let (to_control, from_shard) = mpsc::channel(64);
    let (mailbox, mail) = mpsc::channel(16);
    let shard = Shard::new(rt.clone(), me, store.into(), Budget::new(Budget::BYTES_MIN), to_control);
    let listener = rt.listen(setup.address).unwrap_or_else(|error| panic!("{}: {error}", setup.address));
    rt.spawn({
        let shard = shard.clone();
        async move {
            loop {
                let (reader, writer) = listener.accept().await;
                let shard = shard.clone();
                shard.rt.clone().spawn(async move { greet(shard, reader, writer).await });
            }
        }
    });
    let control = Rc::new(Control { rt: rt.clone(), setup, mailbox, desk: RefCell::default(), post: Notify::new() });
    rt.spawn(Rc::clone(&control).collect(from_shard));
    rt.spawn(async move { control.report().await });
    shard.run(mail).await;
}

async fn greet(shard: Shard<SimRuntime>, reader: SimReader, mut writer: SimWriter) {
    let rt = shard.rt.clone();
    let mut reader = FrameReader::new(rt.clone(), reader);
    let Ok(Some(frame)) = reader.next().await else { return };
    let hello: Hello = frame.open().unwrap_or_else(|error| panic!("a connection begins with hello: {error}"));
    let (server, boot) = (shard.me.server, shard.me.boot);
    let ok = HelloOk { server, boot, cluster: CLUSTER, shards: 1, version: String::new() };
    if rt.send_all(&mut writer, wire::frame::head(&ok, 1, 0, 0), None).await.is_ok() {
        // A hello is sent alone and answered before anything follows: nothing was read ahead.
        shard.serve_halves(reader.into_reader(), writer, hello);
    }
}

/// What the control thread is to a shard.
struct Control {
    rt: SimRuntime,
    setup: Setup,
    mailbox: mpsc::Sender<ToShard>,
    desk: RefCell<Desk>,
    post: Notify,
}

impl Control {
    async fn collect(self: Rc<Self>, mut from_shard: mpsc::Receiver<ToControl>) {
        while let Some(message) = from_shard.recv().await {
            let letter = match message {
                ToControl::Report(report) => Letter::Report(report),
                ToControl::Finished(finished) => Letter::Finished(finished),
                ToControl::Locate { chunk, reply } => {
                    let control = Rc::clone(&self);
                    self.rt.spawn(async move {
                        let Ok(mut talk) = control.dial().await else { return };
                        let Ok(found) = talk.call(&LocateChunk { chunk }, CALL).await else { return };
                        drop(reply.send(found.items.into_iter().flat_map(|item| item.members).collect()));
                    });
                    continue;
                }
                ToControl::Resolve { .. } => unreachable!("addresses are numbers here"),
            };
            self.desk.borrow_mut().post(letter);
            self.post.notify_one();
        }
    }

    async fn dial(&self) -> Answer<Talk> {
        Talk::dial(&self.rt, self.setup.master, Role::Chunkserver, CALL).await
    }

    /// Reports for ever, over one connection after the other.
    async fn report(&self) {
        loop {
            let refused = self.connected().await;
            tracing::trace!(server = %self.setup.server, ?refused, "control connection ends");
            self.desk.borrow_mut().disconnected();
            self.rt.sleep(Duration::from_millis(300)).await;
        }
    }

    async fn connected(&self) -> Answer<()> {
        let mut talk = self.dial().await?;
        let Setup { server, boot, address, .. } = self.setup;
        let mut disk = [0xd1; 16];
        disk[..4].copy_from_slice(&server.0.to_le_bytes());
        let register = Register {
            server,
            cluster: CLUSTER,
            boot,
            disk,
            address: address.to_string(),
            admin: String::new(),
            shards: 1,
            zone: String::new(),
            version: String::new(),
        };
        talk.call(&register, CALL).await?;
        let mut next_beat = self.rt.now();
        loop {
            loop {
                let due = self.desk.borrow_mut().next_letter(self.rt.now());
                let Some((key, letter)) = due else { break };
                let answer = match letter {
                    Letter::Report(report) => talk.call(&report, CALL).await,
                    Letter::Finished(finished) => talk.call(&finished, CALL).await,
                };
                let refusal = answer.err().map(|fault| fault.kind);
                self.desk.borrow_mut().answered(key, refusal, self.rt.now());
                if refusal == Some(wire::Kind::Unknown) {
                    return Err(crate::simulation::talk::no_answer("to a letter"));
                }
            }
            if self.rt.now() >= next_beat {
                self.beat(&mut talk).await?;
                next_beat = self.rt.now() + BEAT_EVERY;
            }
            let pause = next_beat.saturating_sub(self.rt.now());
            tokio::select! {
                biased;
                () = self.post.notified() => {}
                () = self.rt.sleep(pause) => {}
            }
        }
    }

    async fn beat(&self, talk: &mut Talk) -> Answer<()> {
        let changed = self.reports(None).await;
        let after = {
            let mut desk = self.desk.borrow_mut();
            desk.changed(changed);
            desk.inventory_after()
        };
        let (chunks, inventory) = match after {
            Some(after) => {
                let found = self.reports(Some(after)).await;
                let (page, place) = self.desk.borrow_mut().page(found);
                (page, Some(place))
            }
            None => (self.desk.borrow_mut().changes(), None),
        };
        let space = Space { total: ROOM, free: ROOM, used: 0 };
        let Setup { server, boot, .. } = self.setup;
        let heartbeat = Heartbeat { server, boot, space, chunk_count: 0, chunks, inventory };
        let ok = talk.call(&heartbeat, CALL).await?;
        let mut desk = self.desk.borrow_mut();
        desk.heard();
        if ok.want_inventory {
            desk.begin_inventory();
        }
        Ok(())
    }

    async fn reports(&self, after: Option<u64>) -> Vec<ChunkReport> {
        let (reply, answer) = oneshot::channel();
        let ask = ToShard::Report { after, limit: PAGE_ENTRIES_MAX as usize, reply };
        if self.mailbox.send(ask).await.is_err() {
            return Vec::new();
        }
        answer.await.unwrap_or_default()
    }
}
