//! What the control thread and the shards tell each other. All queues are bounded.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use engine::store::{Counters, Space};
use tokio::sync::oneshot;
use wire::ChunkHandle;
use wire::heartbeat::ChunkReport;
use wire::hello::Hello;
use wire::member::Member;
use wire::report::{Finished, Report};

use super::scrub::Scrubbed;

/// Control thread → shard.
pub(crate) enum ToShard {
    /// A connection that said hello and was answered.
    Connection {
        /// The socket.
        stream: TcpStream,
        /// What it said.
        hello: Hello,
    },
    /// Report replicas that changed since the last time, or all of them after a handle.
    Report {
        /// `Some(handle)`: all replicas with a larger handle, in order.
        after: Option<u64>,
        /// At most this many.
        limit: usize,
        /// Where to.
        reply: oneshot::Sender<Vec<ChunkReport>>,
    },
    /// Numbers for metrics and heartbeats.
    Status {
        /// Where to.
        reply: oneshot::Sender<ShardStatus>,
    },
    /// Read and verify everything, beginning now.
    Scrub,
    /// Finish what is in flight, make everything durable, and end.
    Stop,
}

/// Numbers of one shard.
#[derive(Clone, Debug, Default)]
pub(crate) struct ShardStatus {
    /// Replicas held.
    pub(crate) chunk_count: u64,
    /// Its stores, in the order of the disks that were opened.
    pub(crate) stores: Vec<StoreStatus>,
    /// Chunks of which a second disk holds an older copy.
    pub(crate) shadow_count: u64,
    /// The shard's own counters.
    pub(crate) served: Served,
    /// Bad blocks that wait for a repair.
    pub(crate) repair_count: u64,
    /// Chains this shard is a member of.
    pub(crate) open_count: u64,
    /// Connections.
    pub(crate) connection_count: u64,
}

/// Numbers of one shard on one disk.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StoreStatus {
    /// The store's counters.
    pub(crate) counters: Counters,
    /// Space of the disk, and what the chunks of this shard take.
    pub(crate) space: Space,
    /// Slots that are kept out of use.
    pub(crate) quarantined: u64,
    /// Scrub.
    pub(crate) scrub: Scrubbed,
    /// Since its last whole pass.
    pub(crate) scrub_age: Option<Duration>,
}

/// What a shard served since it started.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Served {
    /// Operations appended and answered, as head.
    pub(crate) appends: u64,
    /// Bytes of them.
    pub(crate) append_bytes: u64,
    /// Answers repeated to a client that asked again.
    pub(crate) repeats: u64,
    /// Entries taken from a predecessor.
    pub(crate) forwards: u64,
    /// Reads answered.
    pub(crate) reads: u64,
    /// Bytes of them, padding included.
    pub(crate) read_bytes: u64,
    /// Requests refused.
    pub(crate) refusals: u64,
    /// Connections closed because of what they sent.
    pub(crate) bad_connections: u64,
    /// Payloads that did not match their checksums.
    pub(crate) bad_payloads: u64,
    /// Blocks that could not be served because they fail their checksum here.
    pub(crate) bad_blocks: u64,
    /// Bad blocks found, by reads and by scrub.
    pub(crate) bad_found: u64,
    /// Of those: replaced from another replica and read right in their place.
    pub(crate) bad_repaired: u64,
    /// Tries to repair that failed.
    pub(crate) repair_failures: u64,
    /// Bytes copied from other members at a seal.
    pub(crate) filled_bytes: u64,
    /// Whole replicas made from other members.
    pub(crate) clones: u64,
    /// Bytes fetched for them.
    pub(crate) clone_bytes: u64,
    /// Bytes of them that an older copy here had.
    pub(crate) clone_kept_bytes: u64,
    /// Tries with one source that failed.
    pub(crate) clone_failures: u64,
    /// Reports to the master.
    pub(crate) reports: u64,
}

/// Shard → control thread.
pub(crate) enum ToControl {
    /// For the master.
    Report(Report),
    /// For the master; repeated until it answers.
    Finished(Finished),
    /// Ask the master who holds a chunk.
    Locate {
        /// Which.
        chunk: ChunkHandle,
        /// Where to; nothing comes while no master is there.
        reply: oneshot::Sender<Vec<Member>>,
    },
    /// Look an address up; the shard may not block.
    Resolve {
        /// `host:port`.
        address: String,
        /// Where to; `None` when there is no such host.
        reply: oneshot::Sender<Option<SocketAddr>>,
    },
}
