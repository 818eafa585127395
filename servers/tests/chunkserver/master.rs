//! A master that does what a test tells it: registers servers, hears them, commands nothing itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use wire::heartbeat::{Heartbeat, HeartbeatOk, Register, Registered};
use wire::hello::{Hello, HelloOk};
use wire::locate::{LocateChunk, Location, Locations};
use wire::member::{ChunkState, Member};
use wire::message::{Done, tag};
use wire::report::{Finished, Report};
use wire::{ChunkHandle, ClusterId, Epoch, Fault, InodeId, Kind, ServerId, Term};

use crate::peer::{receive, send};

/// What a server told.
#[derive(Clone, Debug)]
pub(crate) enum Told {
    Report(Report),
    Finished(Finished),
    Heartbeat(Heartbeat),
}

#[derive(Default)]
struct State {
    members: BTreeMap<ServerId, Register>,
    holders: BTreeMap<ChunkHandle, Vec<ServerId>>,
}

/// Runs until dropped.
pub(crate) struct FakeMaster {
    pub(crate) address: String,
    pub(crate) cluster: ClusterId,
    state: Arc<Mutex<State>>,
    told: mpsc::UnboundedReceiver<Told>,
    stop: watch::Sender<()>,
    accepting: tokio::task::JoinHandle<()>,
}

impl FakeMaster {
    pub(crate) async fn start(cluster: ClusterId) -> Self {
        Self::start_at("127.0.0.1:0", cluster).await
    }

    pub(crate) async fn start_at(address: &str, cluster: ClusterId) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(State::default()));
        let (tell, told) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(());
        let accepting = tokio::spawn({
            let state = Arc::clone(&state);
            async move {
                loop {
                    let mut ended = stopped.clone();
                    tokio::select! {
                        accepted = listener.accept() => {
                            let (stream, _) = accepted.unwrap();
                            let (state, tell, mut ended) = (Arc::clone(&state), tell.clone(), stopped.clone());
                            tokio::spawn(async move {
                                tokio::select! {
                                    () = serve(stream, cluster, state, tell) => {}
                                    _ = ended.changed() => {}
                                }
                            });
                        }
                        _ = ended.changed() => return,
                    }
                }
            }
        });
        Self { address, cluster, state, told, stop, accepting }
    }

    /// Frees the port and ends the connections.
    pub(crate) async fn stop(self) {
        drop(self.stop);
        self.accepting.await.unwrap();
    }

    /// How a registered server is reached.
    pub(crate) fn member(&self, server: ServerId) -> Member {
        let state = self.state.lock().unwrap();
        let register = &state.members[&server];
        Member { server, address: register.address.clone(), shards: register.shards }
    }

    /// Who holds a chunk, when it is asked.
    pub(crate) fn holds(&self, chunk: ChunkHandle, servers: &[ServerId]) {
        self.state.lock().unwrap().holders.insert(chunk, servers.to_vec());
    }

    /// What a server registered with last.
    pub(crate) fn registration(&self, server: ServerId) -> Register {
        self.state.lock().unwrap().members[&server].clone()
    }

    /// What was told until now does not count.
    pub(crate) fn forget(&mut self) {
        while self.told.try_recv().is_ok() {}
    }

    /// Waits for something to be told.
    pub(crate) async fn wait<T>(&mut self, mut wanted: impl FnMut(Told) -> Option<T>) -> T {
        let limit = std::time::Duration::from_secs(20);
        let heard = async {
            loop {
                let told = self.told.recv().await.expect("the master runs");
                if let Some(found) = wanted(told) {
                    return found;
                }
            }
        };
        tokio::time::timeout(limit, heard).await.expect("nobody told the master in time")
    }
}

async fn serve(mut stream: TcpStream, cluster: ClusterId, state: Arc<Mutex<State>>, tell: mpsc::UnboundedSender<Told>) {
    let mut inventory_wanted = true;
    while let Some(frame) = receive(&mut stream).await {
        let id = frame.header.request_id;
        match frame.header.tag {
            tag::HELLO => {
                let _: Hello = frame.open();
                let ok = HelloOk { server: ServerId(0), boot: 1, cluster, shards: 1, version: "fake".into() };
                send(&mut stream, &ok, id, &[]).await;
            }
            tag::REGISTER => {
                let register: Register = frame.open();
                let registered = {
                    let mut state = state.lock().unwrap();
                    let next = state.members.keys().last().map_or(1, |last| last.0 + 1);
                    let server = if register.server.0 == 0 { ServerId(next) } else { register.server };
                    state.members.insert(server, register);
                    Registered { server, cluster, term: Term(1) }
                };
                send(&mut stream, &registered, id, &[]).await;
            }
            tag::HEARTBEAT => {
                let beat: Heartbeat = frame.open();
                let _ = tell.send(Told::Heartbeat(beat));
                let ok = HeartbeatOk { term: Term(1), want_inventory: std::mem::take(&mut inventory_wanted) };
                send(&mut stream, &ok, id, &[]).await;
            }
            tag::REPORT => {
                let _ = tell.send(Told::Report(frame.open()));
                send(&mut stream, &Done, id, &[]).await;
            }
            tag::FINISHED => {
                let _ = tell.send(Told::Finished(frame.open()));
                send(&mut stream, &Done, id, &[]).await;
            }
            tag::LOCATE_CHUNK => {
                let LocateChunk { chunk } = frame.open();
                let locations = locations(&state.lock().unwrap(), chunk);
                send(&mut stream, &locations, id, &[]).await;
            }
            other => send(&mut stream, &Fault::new(Kind::Invalid, format!("tag {other}")), id, &[]).await,
        }
    }
}

fn locations(state: &State, chunk: ChunkHandle) -> Locations {
    let member = |server: &ServerId| {
        let register = &state.members[server];
        Member { server: *server, address: register.address.clone(), shards: register.shards }
    };
    let items = state.holders.get(&chunk).map(|holders| Location {
        file: InodeId(1),
        index: 0,
        start: 0,
        chunk,
        state: ChunkState::Sealed,
        epoch: Epoch(2),
        len: 0,
        members: holders.iter().map(member).collect(),
        expire_ms: 1000,
    });
    Locations { items: items.into_iter().collect(), version: 1, chunk_count: 1 }
}
