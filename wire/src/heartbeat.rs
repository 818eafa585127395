//! A chunkserver and the master: REGISTER once per connection, then HEARTBEAT every second with what changed.

use serde::{Deserialize, Serialize};

use crate::ids::{ChunkHandle, ClusterId, Epoch, Seq, ServerId, Term};
use crate::member::ReplicaState;
use crate::message::{Message, Request, tag};

/// Introduces a chunkserver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register {
    /// The id on its disk; zero asks for a new one.
    pub server: ServerId,
    /// The cluster on its disk; zero when the disk is fresh.
    pub cluster: ClusterId,
    /// Chosen anew at every start.
    pub boot: u64,
    /// Random, made when the disk was formatted; zero when fresh. Two servers with one id are told apart by it.
    pub disk: [u8; 16],
    /// Where clients and peers reach its data port, `host:port`.
    #[serde(deserialize_with = "crate::bounds::address")]
    pub address: String,
    /// Where its admin port answers HTTP, `host:port`; empty when it has none.
    #[serde(deserialize_with = "crate::bounds::address")]
    pub admin: String,
    /// Number of shards.
    #[serde(deserialize_with = "crate::bounds::shards")]
    pub shards: u32,
    /// Failure zone, free text; may be empty.
    #[serde(deserialize_with = "crate::bounds::address")]
    pub zone: String,
    /// Version, for people.
    #[serde(deserialize_with = "crate::bounds::address")]
    pub version: String,
}

/// Accepts it. The id is durable in the master's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// Its id from now on.
    pub server: ServerId,
    /// The cluster.
    pub cluster: ClusterId,
    /// The master's term.
    pub term: Term,
}

impl Message for Register {
    const TAG: u16 = tag::REGISTER;
}

impl Request for Register {
    type Reply = Registered;
}

impl Message for Registered {
    const TAG: u16 = tag::REGISTERED;
}

/// Space of a server, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Size of the file system.
    pub total: u64,
    /// Free for new chunks, reserves taken off.
    pub free: u64,
    /// Taken by chunks.
    pub used: u64,
}

/// One replica, as its server sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkReport {
    /// Which chunk.
    pub chunk: ChunkHandle,
    /// Its state.
    pub state: ReplicaState,
    /// Epoch of its log.
    pub epoch: Epoch,
    /// Epoch it has promised.
    pub promised: Epoch,
    /// Last durable entry.
    pub last_seq: Seq,
    /// Durable bytes.
    #[serde(deserialize_with = "crate::bounds::chunk_len")]
    pub len: u32,
    /// Bytes known committed.
    #[serde(deserialize_with = "crate::bounds::chunk_len")]
    pub committed_len: u32,
    /// Digest, of sealed replicas; else zero.
    pub digest: [u8; 16],
    /// Its lengths do not count.
    pub damaged: bool,
}

/// I am alive, and this changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Who.
    pub server: ServerId,
    /// As in [`Register`].
    pub boot: u64,
    /// Space.
    pub space: Space,
    /// Chunks held.
    pub chunk_count: u64,
    /// Replicas that changed since the last acknowledged heartbeat, or one page of the full
    /// inventory; at most [`crate::limits::PAGE_ENTRIES_MAX`].
    #[serde(deserialize_with = "crate::bounds::page")]
    pub chunks: Vec<ChunkReport>,
    /// Set on the pages of a full inventory.
    pub inventory: Option<InventoryPage>,
}

/// Where a page stands in a full inventory. Pages come in order of handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryPage {
    /// The first page.
    pub first: bool,
    /// The last page: everything held has been reported.
    pub last: bool,
}

/// Heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatOk {
    /// The master's term.
    pub term: Term,
    /// The master wants the full inventory next, from its first page.
    pub want_inventory: bool,
}

impl Message for Heartbeat {
    const TAG: u16 = tag::HEARTBEAT;
}

impl Request for Heartbeat {
    type Reply = HeartbeatOk;
}

impl Message for HeartbeatOk {
    const TAG: u16 = tag::HEARTBEAT_OK;
}

/// Asks for the state of the cluster, for people and for health checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster;

/// How the master sees a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Liveness {
    /// Heartbeats arrive.
    Alive,
    /// Late: no new chunks go there, open ones are rolled away.
    Suspect,
    /// Silent for longer than `--dead-after`.
    Dead,
}

/// One server in [`ClusterOk`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Which.
    pub server: ServerId,
    /// Its data address.
    pub address: String,
    /// Its admin address; empty when it has none.
    pub admin: String,
    /// Its zone.
    pub zone: String,
    /// Its shards.
    pub shards: u32,
    /// How the master sees it.
    pub liveness: Liveness,
    /// Milliseconds since its last heartbeat.
    pub silent_ms: u64,
    /// Space.
    pub space: Space,
    /// Chunks it holds.
    pub chunks: u64,
    /// Version, for people.
    pub version: String,
}

/// State of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterOk {
    /// The cluster.
    pub cluster: ClusterId,
    /// The master's term.
    pub term: Term,
    /// The master's admin address; empty when it has none.
    pub admin: String,
    /// Set until enough servers have reported after a start: nothing is deleted meanwhile.
    pub safe_mode: bool,
    /// Milliseconds since the master started.
    pub uptime_ms: u64,
    /// Servers by id; at most [`crate::limits::PAGE_ENTRIES_MAX`].
    #[serde(deserialize_with = "crate::bounds::page")]
    pub servers: Vec<ServerStatus>,
    /// Named files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Chunks of all files, hidden ones included.
    pub chunks: u64,
    /// Chunks open for appends.
    pub open_chunks: u64,
    /// Sealed chunks with fewer holders than wanted.
    pub degraded_chunks: u64,
    /// Replicas wanted of a new chunk.
    pub replicas: u32,
    /// Version of the master, for people.
    pub version: String,
}

impl Message for Cluster {
    const TAG: u16 = tag::CLUSTER;
}

impl Request for Cluster {
    type Reply = ClusterOk;
}

impl Message for ClusterOk {
    const TAG: u16 = tag::CLUSTER_OK;
}
