//! Chunkservers in this process, real sockets and disks, under a fake master.

use std::path::PathBuf;

use engine::runtime::Backend;
use servers::chunkserver::{self, Config, Running};
use tempfile::TempDir;
use wire::chain::Create;
use wire::hello::Role;
use wire::member::Member;
use wire::message::Done;
use wire::seal::{Confirm, Digest, DigestOk, Prepare, PrepareOk, Seal, SealOk};
use wire::{ChunkHandle, ClusterId, Epoch, Fault, InodeId, ServerId, Term};

use crate::master::FakeMaster;
use crate::peer::Peer;

pub(crate) const CLUSTER: ClusterId = ClusterId([0xc1; 16]);

/// What the tests run on: the epoll driver works everywhere; set `HERCULES_TEST_RUNTIME` for others.
pub(crate) fn backend() -> Backend {
    match std::env::var("HERCULES_TEST_RUNTIME") {
        Ok(name) => name.parse().unwrap_or_else(|error| panic!("{error}")),
        Err(_) => Backend::MonoioEpoll,
    }
}

pub(crate) struct Cluster {
    pub(crate) master: FakeMaster,
    pub(crate) servers: Vec<Option<Running>>,
    disks: Vec<TempDir>,
    pub(crate) shards: u32,
    /// Disks of each server.
    per_server: usize,
}

impl Cluster {
    pub(crate) async fn start(servers: usize, shards: u32) -> Self {
        Self::start_with(servers, shards, 1).await
    }

    /// Servers with several disks each.
    pub(crate) async fn start_with(servers: usize, shards: u32, per_server: usize) -> Self {
        let master = FakeMaster::start(CLUSTER).await;
        let mut cluster = Self { master, servers: Vec::new(), disks: Vec::new(), shards, per_server };
        for index in 0..servers {
            cluster.disks.push(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
            cluster.servers.push(None);
            cluster.start_server(index).await;
        }
        cluster
    }

    pub(crate) fn config(&self, index: usize) -> Config {
        let data_dirs: Vec<PathBuf> = (0..self.per_server).map(|disk| self.disk(index, disk)).collect();
        let (more, of_reads) = (data_dirs.len() as u64 - 1, 8 * (256 << 10));
        Config {
            admin: Some("127.0.0.1:0".into()),
            shards: Some(self.shards),
            runtime: backend(),
            memory_per_shard: Config::MEMORY_MIN + of_reads + more * (of_reads + engine::store::STORE_MEMORY as u64),
            read_cache_bytes: 4 << 20,
            read_ahead_max: 256 << 10,
            ring_bytes: Some(16 << 20),
            data_dirs,
            ..Config::new(PathBuf::new(), self.master.address.clone())
        }
    }

    pub(crate) async fn start_server(&mut self, index: usize) {
        self.master.forget();
        let running = chunkserver::start(self.config(index)).await.unwrap_or_else(|error| panic!("{error}"));
        let server = running.server;
        self.servers[index] = Some(running);
        // It registers with its address by itself; a chain can be made once it has.
        self.master
            .wait(|told| matches!(told, crate::master::Told::Heartbeat(beat) if beat.server == server).then_some(()))
            .await;
    }

    pub(crate) async fn stop_server(&mut self, index: usize) {
        self.servers[index].take().expect("it runs").stop().await;
    }

    pub(crate) async fn stop(mut self) {
        for server in self.servers.iter_mut().filter_map(Option::take) {
            server.stop().await;
        }
    }

    pub(crate) fn root(&self, index: usize) -> PathBuf {
        self.disks[index].path().to_owned()
    }

    /// Folder of one of a server's disks.
    pub(crate) fn disk(&self, index: usize, disk: usize) -> PathBuf {
        if self.per_server == 1 { self.root(index) } else { self.root(index).join(format!("disk{disk}")) }
    }

    pub(crate) fn server(&self, index: usize) -> ServerId {
        ServerId(u32::try_from(index).unwrap() + 1)
    }

    pub(crate) fn member(&self, index: usize) -> Member {
        self.master.member(self.server(index))
    }

    pub(crate) async fn dial(&self, index: usize, role: Role, chunk: ChunkHandle) -> Peer {
        Peer::dial(&self.member(index), role, CLUSTER, chunk).await
    }

    pub(crate) async fn client(&self, index: usize, chunk: ChunkHandle) -> Peer {
        self.dial(index, Role::Client, chunk).await
    }

    /// Makes a chain of these servers, head first.
    pub(crate) async fn create(&self, chunk: ChunkHandle, chain: &[usize]) {
        for position in 0..chain.len() {
            self.create_at(chunk, chain, position).await.unwrap();
        }
    }

    /// CREATE to one member of a chain.
    pub(crate) async fn create_at(&self, chunk: ChunkHandle, chain: &[usize], position: usize) -> Result<Done, Fault> {
        let create = Create {
            term: Term(1),
            chunk,
            epoch: Epoch(1),
            members: chain.iter().map(|index| self.member(*index)).collect(),
            my_position: u8::try_from(position).unwrap(),
            prev: ChunkHandle::NONE,
            file: InodeId(1),
            dedup: Vec::new(),
        };
        self.dial(chain[position], Role::Master, chunk).await.call(&create).await
    }

    pub(crate) async fn prepare(&self, index: usize, chunk: ChunkHandle, epoch: u32) -> Result<PrepareOk, Fault> {
        let prepare = Prepare { term: Term(1), chunk, epoch: Epoch(epoch) };
        self.dial(index, Role::Master, chunk).await.call(&prepare).await
    }

    /// SEAL at what `source` answered.
    pub(crate) async fn seal(
        &self,
        index: usize,
        chunk: ChunkHandle,
        source: usize,
        found: &PrepareOk,
    ) -> Result<SealOk, Fault> {
        let seal = Seal {
            term: Term(1),
            chunk,
            epoch: found.promised,
            last_seq: found.last_seq,
            len: found.len,
            digest: found.digest,
            source: self.member(source),
        };
        self.dial(index, Role::Master, chunk).await.call(&seal).await
    }

    pub(crate) async fn confirm(
        &self,
        index: usize,
        chunk: ChunkHandle,
        epoch: Epoch,
        len: u32,
        digest: [u8; 16],
    ) -> Result<Done, Fault> {
        let confirm = Confirm { term: Term(1), chunk, epoch, len, digest };
        self.dial(index, Role::Master, chunk).await.call(&confirm).await
    }

    pub(crate) async fn digest(&self, index: usize, chunk: ChunkHandle) -> DigestOk {
        self.client(index, chunk).await.call(&Digest { chunk, len: u32::MAX }).await.unwrap()
    }

    /// As [`Cluster::digest`], of a chunk that may not be there.
    pub(crate) async fn digest_or_none(&self, index: usize, chunk: ChunkHandle) -> Option<DigestOk> {
        self.client(index, chunk).await.call(&Digest { chunk, len: u32::MAX }).await.ok()
    }

    /// Waits until so many bytes are durable there.
    pub(crate) async fn wait_len(&self, index: usize, chunk: ChunkHandle, len: u32) {
        let reached = async {
            while self.digest(index, chunk).await.len < len {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(crate::peer::LIMIT, reached).await.expect("durable in time");
    }

    /// GET of the admin port.
    pub(crate) async fn admin(&self, index: usize, path: &str) -> String {
        self.ask_admin(index, "GET", path).await
    }

    /// Has a server verify everything it has, now.
    pub(crate) async fn scrub(&self, index: usize) {
        let reply = self.ask_admin(index, "POST", "/scrub").await;
        assert!(reply.starts_with("HTTP/1.1 202"), "{reply}");
    }

    /// Waits until a number in the metrics is at least this.
    pub(crate) async fn wait_metric(&self, index: usize, name: &str, least: f64) {
        let reached = async {
            while self.metric(index, name).await < least {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(crate::peer::LIMIT, reached).await;
        assert!(waited.is_ok(), "{name} of server {index} did not reach {least}");
    }

    /// Waits until the server's health is as wanted; gives it.
    pub(crate) async fn wait_health(&self, index: usize, wanted: impl Fn(&str) -> bool) -> String {
        let reached = async {
            loop {
                let health = self.admin(index, "/health").await;
                if wanted(&health) {
                    return health;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(crate::peer::LIMIT, reached).await.expect("health as wanted, in time")
    }

    async fn ask_admin(&self, index: usize, method: &str, path: &str) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let address = self.servers[index].as_ref().and_then(|server| server.admin).expect("it has an admin port");
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        reply
    }

    /// One number out of the metrics, summed over the shards.
    pub(crate) async fn metric(&self, index: usize, name: &str) -> f64 {
        let text = self.admin(index, "/metrics").await;
        let samples = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        samples.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }
}
