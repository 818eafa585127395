//! HELLO: the first message of every connection, whoever dials.
//!
//! On a chunkserver's data port it names the shard, so that the socket moves to its core once and
//! no byte crosses a core afterwards.

use serde::{Deserialize, Serialize};

use crate::ids::{ClusterId, ServerId, Term};
use crate::message::{Message, Request, tag};

/// Who dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// A user of files.
    Client,
    /// The predecessor in a chain, or a member that fetches.
    Member,
    /// The master.
    Master,
    /// A chunkserver's control thread, to the master.
    Chunkserver,
}

/// Opens a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Who dials.
    pub role: Role,
    /// Its server id, zero for clients.
    pub server: ServerId,
    /// Chosen anew at every start of the dialling process.
    pub boot: u64,
    /// Its cluster; zero when it does not know one yet. Another one is refused.
    pub cluster: ClusterId,
    /// Which shard is wanted; on the master's port zero.
    pub shard: u32,
    /// Highest term the dialling side knows.
    pub term: Term,
}

/// Accepts a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloOk {
    /// Who answers, zero for the master.
    pub server: ServerId,
    /// Chosen anew at every start of the answering process: another boot means it restarted.
    pub boot: u64,
    /// Its cluster.
    pub cluster: ClusterId,
    /// How many shards it runs; one for the master.
    #[serde(deserialize_with = "crate::bounds::shards")]
    pub shards: u32,
    /// Its version, for people.
    #[serde(deserialize_with = "crate::bounds::address")]
    pub version: String,
}

impl Message for Hello {
    const TAG: u16 = tag::HELLO;
}

impl Request for Hello {
    type Reply = HelloOk;
}

impl Message for HelloOk {
    const TAG: u16 = tag::HELLO_OK;
}
