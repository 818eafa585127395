//! Connections by (server, shard): made when first needed, kept, made again with growing pauses.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Mutex as AsyncMutex;
use tokio::time::{Instant, timeout};
use wire::handshake;
use wire::hello::{Hello, HelloOk, Role};
use wire::member::Member;
use wire::{ChunkHandle, ClusterId, ClusterKey, Fault, Kind, Reason, ServerId, Term};

use crate::clock::{Noise, left, now, random};
use crate::conn::Conn;
use crate::error::{Outcome, unreachable};
use crate::lock;
use crate::retry::pause;
use crate::stats::Counters;

/// A dial that takes longer than this fails: there are other replicas.
const DIAL_LIMIT: Duration = Duration::from_secs(2);

/// A server that let somebody wait in vain is asked last for so long.
const SUSPECT_FOR: Duration = Duration::from_secs(5);

/// Addresses remembered; past that those without a living connection are forgotten.
const SERVERS_MAX: usize = 4096;

/// All connections of one client.
#[derive(Debug)]
pub(crate) struct Pool {
    servers: Mutex<HashMap<String, Server>>,
    cluster: Mutex<ClusterId>,
    key: Option<ClusterKey>,
    boot: u64,
    noise: Arc<Noise>,
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Server {
    shards: HashMap<u32, Arc<Slot>>,
    /// Boot number at the last hello.
    boot: Option<u64>,
    suspect_until: Option<Instant>,
}

#[derive(Debug, Default)]
struct Slot {
    current: Mutex<Option<Conn>>,
    /// Held while somebody dials; the others wait for the result.
    dial: AsyncMutex<Dial>,
}

#[derive(Debug, Default)]
struct Dial {
    failures: u32,
    not_before: Option<Instant>,
    last: Option<Fault>,
}

impl Slot {
    fn living(&self) -> Option<Conn> {
        lock(&self.current).clone().filter(|conn| !conn.is_dead())
    }
}

impl Pool {
    pub(crate) fn new(key: Option<ClusterKey>, noise: Arc<Noise>, counters: Arc<Counters>) -> Self {
        let boot = u64::from_le_bytes(random());
        Self { servers: Mutex::default(), cluster: Mutex::default(), key, boot, noise, counters }
    }

    /// A connection to the shard of `member` that owns `chunk`.
    ///
    /// A server that runs another number of shards than the location says has restarted since: that
    /// is [`Kind::StaleEpoch`], because the location is outdated.
    pub(crate) async fn chunk(&self, member: &Member, chunk: ChunkHandle, limit: Duration) -> Outcome<Conn> {
        let conn = self.get(&member.address, member.server, chunk.shard(member.shards.max(1)), limit).await.map_err(
            |fault| {
                let outdated = fault.kind == Kind::Invalid;
                if outdated { Fault::refused(Reason::StaleEpoch, 0, fault.text) } else { fault }
            },
        )?;
        if conn.hello().shards == member.shards {
            Ok(conn)
        } else {
            let text = format!("{} runs {} shards, not {}", member.address, conn.hello().shards, member.shards);
            Err(Fault::refused(Reason::StaleEpoch, 0, text))
        }
    }

    /// A living connection to this server (zero: the master). Right after a failed dial it fails at once, for a
    /// pause that grows.
    pub(crate) async fn get(&self, address: &str, server: ServerId, shard: u32, limit: Duration) -> Outcome<Conn> {
        let slot = self.slot(address, shard);
        if let Some(conn) = slot.living() {
            return Ok(conn);
        }
        let deadline = now() + limit.min(DIAL_LIMIT);
        let Ok(mut dial) = timeout(left(deadline), slot.dial.lock()).await else {
            return Err(unreachable(format!("{address} does not answer")));
        };
        if let Some(conn) = slot.living() {
            return Ok(conn);
        }
        if dial.not_before.is_some_and(|at| now() < at) {
            return Err(dial.last.clone().unwrap_or_else(|| unreachable(format!("{address} does not answer"))));
        }
        let key = self.key.clone().map(|key| (key, random()));
        let handshake = handshake::Dial::new(self.hello(shard), server, address, key);
        match Conn::open(address, handshake, left(deadline)).await {
            Ok(conn) => {
                *dial = Dial::default();
                self.met(address, conn.hello());
                *lock(&slot.current) = Some(conn.clone());
                Ok(conn)
            }
            Err(fault) => {
                dial.not_before = Some(now() + pause(dial.failures, self.noise.next()));
                dial.failures += 1;
                // What was refused for want of a key will be again; all else is worth another try.
                let kind = if fault.kind == Kind::Unauthorized { fault.kind } else { Kind::Unavailable };
                dial.last = Some(Fault::new(kind, fault.text.clone()));
                self.suspect(address);
                Err(fault)
            }
        }
    }

    /// Asks this server last for a while.
    pub(crate) fn suspect(&self, address: &str) {
        if let Some(server) = lock(&self.servers).get_mut(address) {
            server.suspect_until = Some(now() + SUSPECT_FOR);
        }
    }

    pub(crate) fn is_suspect(&self, address: &str) -> bool {
        let until = lock(&self.servers).get(address).and_then(|server| server.suspect_until);
        until.is_some_and(|until| now() < until)
    }

    fn slot(&self, address: &str, shard: u32) -> Arc<Slot> {
        let mut servers = lock(&self.servers);
        if !servers.contains_key(address) {
            if servers.len() >= SERVERS_MAX {
                servers.retain(|_, server| server.shards.values().any(|slot| slot.living().is_some()));
            }
            servers.insert(address.to_owned(), Server::default());
        }
        let server = servers.entry(address.to_owned()).or_default();
        Arc::clone(server.shards.entry(shard).or_default())
    }

    fn hello(&self, shard: u32) -> Hello {
        let cluster = *lock(&self.cluster);
        Hello { role: Role::Client, server: ServerId(0), boot: self.boot, cluster, shard, term: Term(0) }
    }

    /// Notes what a server said about itself: its boot number, and the master's cluster.
    fn met(&self, address: &str, hello: &HelloOk) {
        if hello.server == ServerId(0) {
            *lock(&self.cluster) = hello.cluster;
        }
        let mut servers = lock(&self.servers);
        let Some(server) = servers.get_mut(address) else { return };
        server.suspect_until = None;
        let before = server.boot.replace(hello.boot);
        if before.is_some_and(|before| before != hello.boot) {
            self.counters.restarts_seen.add(1);
            tracing::info!(address, boot = hello.boot, "server has restarted");
            // Connections of the former process cannot be alive; dropping them frees their sockets now.
            for slot in server.shards.values() {
                let mut current = lock(&slot.current);
                if current.as_ref().is_some_and(|conn| conn.hello().boot != hello.boot) {
                    *current = None;
                }
            }
        }
    }
}

/// Whether this fault says that the server itself is in trouble, not just this request.
pub(crate) fn is_silence(fault: &Fault) -> bool {
    matches!(fault.kind, Kind::Unavailable | Kind::Unknown)
}
