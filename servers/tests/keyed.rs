//! A cluster with a key, all of it in this process: master, chunkservers and client over real sockets.
//! Who has the key is served; what anybody else sends is refused, counted, and changes nothing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on should fail loudly"
)]

use std::path::PathBuf;
use std::time::Duration;

use client::Client;
use engine::runtime::Backend;
use servers::{StartError, chunkserver, master};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use wire::frame::{self, HEADER_LEN, Header};
use wire::handshake::{Challenge, Dial, Proof, Step, Welcome};
use wire::hello::{Hello, HelloOk, Role};
use wire::message::tag;
use wire::namespace::Mkdir;
use wire::{Body, ClusterId, ClusterKey, Fault, Kind, NamePath, RequestId, ServerId, Term};

const LIMIT: Duration = Duration::from_secs(20);

fn key(seed: u8) -> ClusterKey {
    ClusterKey::from_random([seed; 32])
}

/// A master and chunkservers, each with this key.
struct Cluster {
    master: master::Running,
    chunkservers: Vec<chunkserver::Running>,
    dirs: Vec<TempDir>,
}

fn dir() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn chunkserver_config(dir: &TempDir, master: &str, key: Option<ClusterKey>) -> chunkserver::Config {
    chunkserver::Config {
        admin: Some("127.0.0.1:0".into()),
        shards: Some(1),
        runtime: Backend::MonoioEpoll,
        memory_per_shard: chunkserver::Config::MEMORY_MIN,
        read_cache_bytes: 0,
        read_ahead_max: 0,
        ring_bytes: Some(16 << 20),
        cluster_key: key,
        ..chunkserver::Config::new(PathBuf::from(dir.path()), master.into())
    }
}

impl Cluster {
    async fn start(chunkservers: usize, key: Option<ClusterKey>) -> Self {
        let mut dirs = vec![dir()];
        let mut config = master::Config::new("127.0.0.1:0", dirs[0].path());
        config.admin = Some("127.0.0.1:0".into());
        config.cluster_key.clone_from(&key);
        (config.replicas, config.min_ack_replicas) = (chunkservers.max(1) as u32, chunkservers.max(1) as u32);
        let master = master::start(config).await.unwrap();
        let address = master.address.to_string();
        let mut running = Vec::new();
        for _ in 0..chunkservers {
            let dir = dir();
            running.push(chunkserver::start(chunkserver_config(&dir, &address, key.clone())).await.unwrap());
            dirs.push(dir);
        }
        Self { master, chunkservers: running, dirs }
    }

    fn client(&self, key: Option<ClusterKey>) -> Client {
        let mut config = client::Config::new(vec![self.master.address.to_string()]);
        config.deadline = LIMIT;
        config.cluster_key = key;
        Client::new(config)
    }

    async fn stop(self) {
        for server in self.chunkservers {
            server.stop().await;
        }
        self.master.stop().await;
        drop(self.dirs);
    }
}

/// A metric at an admin port, with its labels; zero when it is absent.
async fn metric(admin: std::net::SocketAddr, name: &str) -> u64 {
    let mut stream = TcpStream::connect(admin).await.unwrap();
    let request = "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let line = answer.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {answer}"));
    line.trim().parse().unwrap()
}

fn hello(role: Role) -> Hello {
    Hello { role, server: ServerId(0), boot: 7, cluster: ClusterId::default(), shard: 0, term: Term(0) }
}

/// A connection on which anything can be sent.
struct Raw(TcpStream);

impl Raw {
    async fn dial(address: &str) -> Self {
        Self(TcpStream::connect(address).await.unwrap())
    }

    async fn send<B: Body>(&mut self, body: &B) {
        self.0.write_all(&frame::head(body, 1, 0, 0)).await.unwrap();
    }

    async fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        let frame = async {
            let mut head = [0; HEADER_LEN];
            self.0.read_exact(&mut head).await.ok()?;
            let header = Header::decode_exact(&head).unwrap();
            let mut fields = vec![0; header.fields_len as usize];
            self.0.read_exact(&mut fields).await.ok()?;
            Some((header, fields))
        };
        tokio::time::timeout(LIMIT, frame).await.expect("an answer, or the end, in time")
    }

    async fn expect<B: Body>(&mut self) -> B {
        let (header, fields) = self.receive().await.expect("an answer");
        frame::open(&header, &fields).unwrap_or_else(|cause| panic!("tag {}: {cause}", header.tag))
    }

    /// The fault that is the last word on this connection.
    async fn refused(&mut self) -> Fault {
        let fault = self.expect().await;
        assert!(self.receive().await.is_none(), "nothing follows a refusal");
        fault
    }

    /// Does the handshake with a key up to the proof, which is given instead of sent.
    async fn proof(&mut self, hello: Hello, to: ServerId, address: &str, key: ClusterKey) -> Proof {
        let mut dial = Dial::new(hello, to, address, Some((key, [5; 32])));
        self.0.write_all(&dial.hello(1, 0)).await.unwrap();
        let (header, fields) = self.receive().await.unwrap();
        let Ok(Step::Send(bytes)) = dial.heard(&header, &fields) else { panic!("a challenge is expected") };
        let header = Header::decode_exact(bytes.first_chunk().unwrap()).unwrap();
        frame::open(&header, &bytes[HEADER_LEN..]).unwrap()
    }
}

#[tokio::test]
async fn a_cluster_with_a_key_works_from_end_to_end() {
    let cluster = Cluster::start(2, Some(key(1))).await;
    let client = cluster.client(Some(key(1)));
    let path = NamePath::parse("/a/b").unwrap();
    client.create(&path, true).await.unwrap();
    let bytes: Vec<u8> = (0..200_000_u32).map(|at| (at % 251) as u8).collect();
    client.append(&path, bytes.clone().into()).await.unwrap();
    let attr = client.stat(&path).await.unwrap();
    let mut stream = client.read(&attr, 0..attr.len);
    let mut read = Vec::new();
    while let Some(piece) = stream.next().await {
        read.extend_from_slice(&piece.unwrap());
    }
    assert!(read == bytes);
    for server in &cluster.chunkservers {
        let refused = "hercules_refused_connections_total{why=\"unauthorized\"}";
        assert_eq!(metric(server.admin.unwrap(), refused).await, 0);
    }
    cluster.stop().await;
}

#[tokio::test]
async fn without_the_key_both_ports_refuse_say_why_and_count_it() {
    let cluster = Cluster::start(1, Some(key(1))).await;
    let (master, server) = (&cluster.master, &cluster.chunkservers[0]);
    for (address, admin, name) in [
        (master.address, master.admin, "hercules_master_refused_connections_total{why=\"unauthorized\"}"),
        (server.address, server.admin, "hercules_refused_connections_total{why=\"unauthorized\"}"),
    ] {
        let (address, admin) = (address.to_string(), admin.unwrap());
        for role in [Role::Client, Role::Member, Role::Master, Role::Chunkserver] {
            let before = metric(admin, name).await;
            let mut raw = Raw::dial(&address).await;
            raw.send(&hello(role)).await;
            raw.expect::<Challenge>().await;
            raw.send(&Mkdir { request: RequestId::default(), path: "/x".into() }).await;
            let fault = raw.refused().await;
            assert_eq!(fault.kind, Kind::Unauthorized);
            assert!(fault.text.contains("--cluster-key-file"), "{fault}");
            assert_eq!(metric(admin, name).await, before + 1, "{role:?} at {name}");
        }
        let mut gone = Raw::dial(&address).await;
        let before = metric(admin, name).await;
        gone.send(&hello(Role::Client)).await;
        gone.expect::<Challenge>().await;
        drop(gone);
        while metric(admin, name).await == before {
            tokio::task::yield_now().await;
        }
    }
    for (with, says) in [(None, "needs the cluster key"), (Some(key(2)), "not the one of this server")] {
        let error = cluster.client(with).cluster().await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unauthorized, "{error}");
        assert!(error.to_string().contains(says) && error.to_string().contains("--cluster-key-file"), "{error}");
    }
    let status = cluster.client(Some(key(1))).cluster().await.unwrap();
    assert_eq!((status.directories, status.servers.len()), (0, 1), "nothing was made by any of them");
    cluster.stop().await;
}

#[tokio::test]
async fn a_proof_cannot_be_replayed_altered_or_passed_on() {
    let cluster = Cluster::start(2, Some(key(1))).await;
    let [one, two] = &cluster.chunkservers[..] else { panic!("two") };
    let master = cluster.master.address.to_string();
    let address = one.address.to_string();
    let hello = hello(Role::Client);

    let mut good = Raw::dial(&address).await;
    let proof = good.proof(hello.clone(), one.server, &address, key(1)).await;
    good.send(&proof).await;
    assert_eq!(good.expect::<Welcome>().await.hello.server, one.server);

    let mut replayed = Raw::dial(&address).await;
    replayed.proof(hello.clone(), one.server, &address, key(1)).await;
    replayed.send(&proof).await;
    assert_eq!(replayed.refused().await.kind, Kind::Unauthorized);

    let mut altered = Raw::dial(&address).await;
    let mut proof = altered.proof(hello.clone(), one.server, &address, key(1)).await;
    proof.mac[0] ^= 1;
    altered.send(&proof).await;
    assert_eq!(altered.refused().await.kind, Kind::Unauthorized);

    // Who was dialled in place of `one` asks `two` and the master for a challenge and hands it over.
    for other in [two.address.to_string(), master] {
        let mut passed_on = Raw::dial(&other).await;
        let proof = passed_on.proof(hello.clone(), one.server, &address, key(1)).await;
        passed_on.send(&proof).await;
        assert_eq!(passed_on.refused().await.kind, Kind::StaleEpoch);
    }
    // Who took over an address that `one` had before passes callers on to where it is now.
    let mut from_elsewhere = Raw::dial(&address).await;
    let proof = from_elsewhere.proof(hello, one.server, "10.0.0.1:8081", key(1)).await;
    from_elsewhere.send(&proof).await;
    assert_eq!(from_elsewhere.refused().await.kind, Kind::StaleEpoch);
    cluster.stop().await;
}

/// A server that takes one connection, and does what somebody without the key can do.
async fn impostor(reflects: bool) -> (String, tokio::task::JoinHandle<Option<u16>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let served = tokio::spawn(async move {
        let mut raw = Raw(listener.accept().await.unwrap().0);
        raw.expect::<Hello>().await;
        let ok =
            HelloOk { server: ServerId(0), boot: 1, cluster: ClusterId([1; 16]), shards: 1, version: String::new() };
        if reflects {
            raw.send(&Challenge { nonce: [1; 32] }).await;
            let proof: Proof = raw.expect().await;
            raw.send(&Welcome { hello: ok, mac: proof.mac }).await;
        } else {
            raw.send(&ok).await;
        }
        raw.receive().await.map(|(header, _)| header.tag)
    });
    (address, served)
}

#[tokio::test]
async fn a_client_with_a_key_says_nothing_to_a_server_that_does_not_prove_it() {
    for reflects in [false, true] {
        let (address, served) = impostor(reflects).await;
        let mut config = client::Config::new(vec![address.clone()]);
        config.cluster_key = Some(key(1));
        let error = Client::new(config).cluster().await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unauthorized, "{error}");
        assert!(error.to_string().contains(&address), "{error}");
        assert_eq!(served.await.unwrap(), None, "no request follows");
    }
}

#[tokio::test]
async fn a_chunkserver_with_another_key_or_none_does_not_start() {
    let cluster = Cluster::start(0, Some(key(1))).await;
    let master = cluster.master.address.to_string();
    for wrong in [None, Some(key(2))] {
        let dir = dir();
        let error = chunkserver::start(chunkserver_config(&dir, &master, wrong)).await.unwrap_err();
        assert_eq!(error.exit, StartError::CONFIG);
        assert!(error.remedy.contains("--cluster-key-file"), "{error}");
    }
    let plain = Cluster::start(0, None).await;
    let dir = dir();
    let config = chunkserver_config(&dir, &plain.master.address.to_string(), Some(key(1)));
    let error = chunkserver::start(config).await.unwrap_err();
    assert!(error.what.contains("has no cluster key"), "{error}");
    plain.stop().await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_handshake_of_a_megabyte_is_not_read() {
    let cluster = Cluster::start(0, Some(key(1))).await;
    let mut raw = Raw::dial(&cluster.master.address.to_string()).await;
    let header =
        Header { fields_crc: 0, fields_len: 1 << 20, payload_len: 0, tag: tag::HELLO, deadline_ms: 0, request_id: 1 };
    raw.0.write_all(&header.encode()).await.unwrap();
    assert!(raw.receive().await.is_none(), "closed before its fields come");
    let name = "hercules_master_refused_connections_total{why=\"malformed\"}";
    assert_eq!(metric(cluster.master.admin.unwrap(), name).await, 1);
    cluster.stop().await;
}
