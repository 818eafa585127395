//! Members of chains and the states of replicas.

use serde::{Deserialize, Serialize};

use crate::ids::ServerId;

/// One member of a chain, and how to reach it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Which server.
    pub server: ServerId,
    /// Its data address as it advertises it, `host:port`.
    #[serde(deserialize_with = "crate::bounds::address")]
    pub address: String,
    /// How many shards it runs: see [`crate::ChunkHandle::shard`].
    #[serde(deserialize_with = "crate::bounds::shards")]
    pub shards: u32,
}

/// State of one replica (disk-format.md, section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ReplicaState {
    /// Takes part in its chain.
    Open,
    /// Restarted within its epoch: readable up to what it knows committed, silent in the chain.
    Rwr,
    /// Fixed for ever.
    Sealed,
    /// On the way out; bytes kept for a while.
    Condemned,
}

/// State of one chunk at the master.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ChunkState {
    /// Its chain takes appends.
    Open,
    /// Being sealed; wait.
    Sealing,
    /// Fixed, until somebody writes into it.
    Sealed,
    /// Takes overwrites below its end; its length is final.
    Reopened,
}
