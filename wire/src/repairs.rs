//! Repair and drain as an operator sees them: what waits, what runs, and how to change it.

use serde::{Deserialize, Serialize};

use crate::ids::{ChunkHandle, RequestId, ServerId};
use crate::message::{Done, Message, Request, tag};

/// Why a chunk is copied, most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Urgency {
    /// One copy is left.
    Last,
    /// Too few copies, and somebody met trouble reading it.
    Asked,
    /// Too few copies.
    Few,
    /// A server is drained.
    Drain,
    /// Disks are filled unevenly.
    Balance,
}

impl Urgency {
    /// All, in order.
    pub const ALL: [Self; 5] = [Self::Last, Self::Asked, Self::Few, Self::Drain, Self::Balance];

    /// Its name, for people and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Last => "last",
            Self::Asked => "asked",
            Self::Few => "few",
            Self::Drain => "drain",
            Self::Balance => "balance",
        }
    }
}

/// Asks how repair stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repairs {
    /// Waiting chunks to list at most.
    pub limit: u32,
}

/// Chunks of one urgency that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// Which.
    pub urgency: Urgency,
    /// How many.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A chunk that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingChunk {
    /// Which.
    pub chunk: ChunkHandle,
    /// Why.
    pub urgency: Urgency,
    /// Its length.
    #[serde(deserialize_with = "crate::bounds::chunk_len")]
    pub len: u32,
    /// Copies that can be read.
    pub copies: u32,
}

/// A copy on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningCopy {
    /// Which chunk.
    pub chunk: ChunkHandle,
    /// Why.
    pub urgency: Urgency,
    /// Its length.
    #[serde(deserialize_with = "crate::bounds::chunk_len")]
    pub len: u32,
    /// The source it asks first.
    pub from: ServerId,
    /// Where it goes.
    pub to: ServerId,
    /// Milliseconds since it began.
    pub since_ms: u64,
}

/// A server that is drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainStatus {
    /// Which.
    pub server: ServerId,
    /// Milliseconds since it was asked for.
    pub since_ms: u64,
    /// Chunks that still count on it. At zero it may be switched off.
    pub left: u64,
    /// Their bytes.
    pub left_bytes: u64,
    /// The state has been looked through since the drain began: `left` is the truth.
    pub is_counted: bool,
}

/// How repair stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairsOk {
    /// Nothing is begun until somebody resumes.
    pub paused: bool,
    /// Nothing is begun until enough servers have reported.
    pub safe_mode: bool,
    /// Bytes per second of one server at most; zero: 30 % of what its disk can do.
    pub server_rate: u64,
    /// Bytes per second of all together at most; zero: no limit.
    pub cluster_rate: u64,
    /// By urgency, those that have any.
    #[serde(deserialize_with = "crate::bounds::page")]
    pub waiting: Vec<Waiting>,
    /// The next ones.
    #[serde(deserialize_with = "crate::bounds::page")]
    pub next: Vec<WaitingChunk>,
    /// On their way.
    #[serde(deserialize_with = "crate::bounds::page")]
    pub running: Vec<RunningCopy>,
    /// Copies made since the master started.
    pub done: u64,
    /// Bytes of them.
    pub done_bytes: u64,
    /// Of these, bytes that their targets had already.
    pub kept_bytes: u64,
    /// Copies that failed and are tried again.
    pub failed: u64,
    /// What waits and runs ends in so many seconds, at the speed of the last copies.
    pub estimate_s: Option<u64>,
    /// Servers that are drained.
    #[serde(deserialize_with = "crate::bounds::page")]
    pub draining: Vec<DrainStatus>,
}

/// Changes how repair works. What is `None` stays. Durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TuneRepairs {
    /// Makes a retry the same request.
    pub request: RequestId,
    /// Begin nothing, or begin again.
    pub paused: Option<bool>,
    /// As in [`RepairsOk`].
    pub server_rate: Option<u64>,
    /// As in [`RepairsOk`].
    pub cluster_rate: Option<u64>,
}

/// Empties a server, or ends that. Durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Makes a retry the same request.
    pub request: RequestId,
    /// Which.
    pub server: ServerId,
    /// Drain, or take it back.
    pub drain: bool,
    /// Also when fewer servers than replicas are wanted would be left.
    pub force: bool,
}

impl Message for Repairs {
    const TAG: u16 = tag::REPAIRS;
}

impl Request for Repairs {
    type Reply = RepairsOk;
}

impl Message for RepairsOk {
    const TAG: u16 = tag::REPAIRS_OK;
}

impl Message for TuneRepairs {
    const TAG: u16 = tag::TUNE_REPAIRS;
}

impl Request for TuneRepairs {
    type Reply = Done;
}

impl Message for Drain {
    const TAG: u16 = tag::DRAIN;
}

impl Request for Drain {
    type Reply = Done;
}
