//! The master and the copies of its chunks, with scripted chunkservers: who is asked for one, when it
//! counts, and what is condemned.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should fail loudly")]

#[path = "master_common/mod.rs"]
mod common;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use common::{Client, Fake, config, digest, eventually, kind, op};
use servers::master;
use wire::locate::{Intent, Locate, LocateChunk, Location, Position};
use wire::repairs::{Drain, Repairs, TuneRepairs};
use wire::report::Finished;
use wire::upload::BeginUpload;
use wire::{ChunkHandle, DedupEntry, InodeId, Kind, Seq, ServerId};

struct Rig {
    master: master::Running,
    client: Client,
    fakes: Vec<Arc<Fake>>,
    dir: tempfile::TempDir,
}

impl Rig {
    async fn start(count: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        config.condemned_keep = Duration::from_millis(200);
        let master = master::start(config).await.unwrap();
        let mut fakes = vec![];
        for _ in 0..count {
            fakes.push(Fake::start(master.address).await);
        }
        let client = Client::connect(master.address).await;
        Self { master, client, fakes, dir }
    }

    /// A chunk sealed on three servers; it and them, in the order of the fakes.
    async fn sealed(&mut self) -> (ChunkHandle, Vec<usize>) {
        let request = self.client.request();
        let begin = BeginUpload { request, path: String::new(), content_type: String::new() };
        let file = self.client.ask(&begin).await.unwrap().inode;
        let at = self.tail(file).await;
        let chain: Vec<usize> = at.members.iter().map(|member| self.place(member.server)).collect();
        chain.iter().for_each(|place| self.fakes[*place].write(at.chunk, 5, 5));
        let dedup = vec![DedupEntry { id: op(5), chunk: at.chunk, offset: 0, len: 10 }];
        let (chunk, epoch) = (at.chunk, at.epoch);
        let finished = Finished { chunk, epoch, last_seq: Seq(5), len: 50, digest: digest(5), dedup };
        self.client.ask(&finished).await.unwrap();
        (chunk, chain)
    }

    async fn tail(&mut self, file: InodeId) -> Location {
        let locate = Locate { file, at: Position::Tail, intent: Intent::Append, count: 1 };
        self.client.ask(&locate).await.unwrap().items.remove(0)
    }

    fn place(&self, server: ServerId) -> usize {
        self.fakes.iter().position(|fake| fake.id() == server).unwrap()
    }

    fn spare(&self, chain: &[usize]) -> usize {
        (0..self.fakes.len()).find(|place| !chain.contains(place)).unwrap()
    }

    /// Waits until the log has these holders, and no others.
    async fn wait_holders(&self, chunk: ChunkHandle, places: &[usize]) {
        let wanted: BTreeSet<ServerId> = places.iter().map(|place| self.fakes[*place].id()).collect();
        let address = self.master.address;
        eventually(&format!("holders of {chunk} to be {wanted:?}"), || async {
            holders(address, chunk).await == wanted
        })
        .await;
    }

    fn cloned(&self, place: usize) -> Vec<(ChunkHandle, u64)> {
        self.fakes[place].state.lock().unwrap().cloned.clone()
    }
}

async fn holders(master: SocketAddr, chunk: ChunkHandle) -> BTreeSet<ServerId> {
    let mut client = Client::connect(master).await;
    let found = client.ask(&LocateChunk { chunk }).await.unwrap();
    found.items[0].members.iter().map(|member| member.server).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_server_held_is_copied_and_when_it_returns_the_surplus_is_condemned_and_freed() {
    let mut rig = Rig::start(4).await;
    let (chunk, chain) = rig.sealed().await;
    let spare = rig.spare(&chain);
    rig.wait_holders(chunk, &chain).await;
    assert_eq!(rig.cloned(spare), [], "three are enough");
    rig.fakes[chain[0]].crash();
    rig.wait_holders(chunk, &[&chain[..], &[spare]].concat()).await;
    assert_eq!(rig.cloned(spare), [(chunk, 0)]);
    assert!(rig.fakes.iter().all(|fake| fake.state.lock().unwrap().condemned.is_empty()), "it may come back");
    rig.fakes[chain[0]].come_back(rig.master.address).await;
    let address = rig.master.address;
    eventually("one of four to go", || async { holders(address, chunk).await.len() == 3 }).await;
    let left = holders(address, chunk).await;
    let gone = rig.fakes.iter().find(|fake| !left.contains(&fake.id())).unwrap();
    eventually("its replica to be freed", || async { gone.replica(chunk).is_none() }).await;
    let others = rig.fakes.iter().filter(|fake| left.contains(&fake.id()));
    assert!(others.clone().all(|fake| fake.state.lock().unwrap().condemned.is_empty()));
    assert!(others.clone().all(|fake| fake.replica(chunk).is_some()));
    let repairs = rig.client.ask(&Repairs { limit: 9 }).await.unwrap();
    assert_eq!((repairs.done, repairs.failed, repairs.waiting.len()), (1, 0, 0));
    rig.master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_outlives_the_master_and_a_copy_that_fails_is_tried_again() {
    let mut rig = Rig::start(4).await;
    let (chunk, chain) = rig.sealed().await;
    let spare = rig.spare(&chain);
    let tune =
        |request, paused| TuneRepairs { request, paused: Some(paused), server_rate: Some(77), cluster_rate: None };
    let request = rig.client.request();
    rig.client.ask(&tune(request, true)).await.unwrap();
    rig.master.stop().await;
    rig.master = master::start(config(rig.dir.path())).await.unwrap();
    for fake in &rig.fakes {
        fake.come_back(rig.master.address).await;
    }
    rig.client = Client::connect(rig.master.address).await;
    rig.fakes[spare].state.lock().unwrap().refuse_clone = true;
    rig.fakes[chain[0]].crash();
    let address = rig.master.address;
    eventually("the chunk to wait", || async {
        let repairs = Client::connect(address).await.ask(&Repairs { limit: 9 }).await.unwrap();
        assert!(repairs.paused && repairs.server_rate == 77 && repairs.running.is_empty());
        repairs.next.iter().any(|waiting| waiting.chunk == chunk && waiting.copies == 2)
    })
    .await;
    assert_eq!(rig.cloned(spare), []);
    let request = rig.client.request();
    rig.client.ask(&tune(request, false)).await.unwrap();
    eventually("a first try", || async { !rig.cloned(spare).is_empty() }).await;
    rig.fakes[spare].state.lock().unwrap().refuse_clone = false;
    rig.wait_holders(chunk, &[&chain[..], &[spare]].concat()).await;
    assert!(rig.client.ask(&Repairs { limit: 0 }).await.unwrap().failed >= 1);
    rig.master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_server_gives_its_chunks_away_and_gets_no_new_ones() {
    let mut rig = Rig::start(4).await;
    let (chunk, chain) = rig.sealed().await;
    let spare = rig.spare(&chain);
    let server = rig.fakes[chain[0]].id();
    let request = rig.client.request();
    rig.client.ask(&Drain { request, server, drain: true, force: false }).await.unwrap();
    rig.wait_holders(chunk, &[chain[1], chain[2], spare]).await;
    eventually("what it had to be condemned and freed", || async { rig.fakes[chain[0]].replica(chunk).is_none() })
        .await;
    let address = rig.master.address;
    eventually("it to be empty", || async {
        let repairs = Client::connect(address).await.ask(&Repairs { limit: 0 }).await.unwrap();
        repairs.draining.iter().any(|drain| drain.server == server && drain.is_counted && drain.left == 0)
    })
    .await;
    let (next, members) = rig.sealed().await;
    assert!(!members.contains(&chain[0]), "{next} is not placed there");
    let request = rig.client.request();
    let other = rig.fakes[chain[1]].id();
    let refused = rig.client.ask(&Drain { request, server: other, drain: true, force: false }).await;
    assert_eq!(kind(refused), Kind::Precondition, "two would be left");
    let request = rig.client.request();
    let unknown = rig.client.ask(&Drain { request, server: ServerId(99), drain: true, force: true }).await;
    assert_eq!(kind(unknown), Kind::NotFound);
    rig.master.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_safe_mode_nothing_is_copied_however_long_a_server_is_dead() {
    let mut rig = Rig::start(4).await;
    let (chunk, chain) = rig.sealed().await;
    let spare = rig.spare(&chain);
    rig.wait_holders(chunk, &chain).await;
    rig.master.stop().await;
    rig.fakes[chain[0]].crash();
    let config = config(rig.dir.path());
    let dead = config.dead_after * 2;
    rig.master = master::start(config).await.unwrap();
    for place in [chain[1], chain[2], spare] {
        rig.fakes[place].come_back(rig.master.address).await;
    }
    tokio::time::sleep(dead).await;
    assert_eq!(rig.cloned(spare), []);
    let mut client = Client::connect(rig.master.address).await;
    assert!(client.ask(&Repairs { limit: 0 }).await.unwrap().safe_mode);
    rig.fakes[chain[0]].come_back(rig.master.address).await;
    let address = rig.master.address;
    eventually("safe mode to end", || async {
        !Client::connect(address).await.ask(&Repairs { limit: 0 }).await.unwrap().safe_mode
    })
    .await;
    rig.wait_holders(chunk, &chain).await;
    rig.master.stop().await;
}
