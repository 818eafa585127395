//! What goes in and comes out of a [`super::Store`].

use std::path::PathBuf;
use std::time::Duration;

use wire::member::ReplicaState;
use wire::{ChunkHandle, ClusterId, DedupEntry, Epoch, InodeId, OpId, Seq, ServerId, Term};

/// Which disk, and who owns it.
#[derive(Clone, Debug)]
pub struct DiskConfig {
    /// Folder of the disk.
    pub root: PathBuf,
    /// Who may use it: a disk of another cluster or server is refused.
    pub cluster: ClusterId,
    /// As `cluster`.
    pub server: ServerId,
    /// How many shards will run, at least one; may differ from start to start.
    pub shards: u32,
    /// Log area in bytes of each ring made from now on, a multiple of 4,096 and at least 256 KiB;
    /// `None`: 512 MiB divided by the shards, at least 64 MiB.
    pub ring_bytes: Option<u64>,
    /// Wall clock, for display and for counting disk errors of one day.
    pub unix_seconds: u64,
}

/// Who a formatted disk belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The server.
    pub server: ServerId,
    /// Random, made when the disk was formatted.
    pub disk_uuid: [u8; 16],
}

/// What recovery found: for logs and metrics.
#[derive(Clone, Debug, Default)]
pub struct RecoverySummary {
    /// The disk was fresh.
    pub formatted: bool,
    /// Chunks held.
    pub chunks: u64,
    /// Journal records that were applied.
    pub records_replayed: u64,
    /// Journals that ended inside a batch that was being written.
    pub torn_ends: u64,
    /// Chunks whose last records had no verifiable data.
    pub suspects: u64,
    /// Chunks that do not count in length decisions until they are repaired.
    pub damaged: u64,
    /// Journals of which a part that was flushed is gone: operations, whole chunks among them, may be missing.
    pub damaged_journals: u64,
    /// Slots whose headers are both unreadable, kept out of use.
    pub lost_slots: u64,
    /// Root pages of which one copy was bad or old.
    pub healed: u64,
    /// Time it took.
    pub took: Duration,
}

/// CREATE.
#[derive(Clone, Debug)]
pub struct CreateArgs {
    /// The master's term.
    pub term: Term,
    /// The new chunk, not zero.
    pub chunk: ChunkHandle,
    /// Its first epoch.
    pub epoch: Epoch,
    /// Its chain, 1 to 8 servers.
    pub members: Vec<ServerId>,
    /// Place in the chain; the head is zero.
    pub my_position: u8,
    /// The chunk before it in the file.
    pub prev: ChunkHandle,
    /// The file.
    pub file: InodeId,
    /// The dedup table of the chunk before, at most 400 entries.
    pub dedup: Vec<DedupEntry>,
}

/// REOPEN.
#[derive(Clone, Debug)]
pub struct ReopenArgs {
    /// The master's term.
    pub term: Term,
    /// A sealed chunk.
    pub chunk: ChunkHandle,
    /// The epoch that begins, above every other of the chunk.
    pub epoch: Epoch,
    /// Its chain, 1 to 8 servers.
    pub members: Vec<ServerId>,
    /// Place in the chain; the head is zero.
    pub my_position: u8,
    /// The sealed length.
    pub len: u32,
    /// The sealed digest.
    pub digest: [u8; 16],
}

/// A finished copy that comes from elsewhere.
#[derive(Clone, Debug)]
pub struct ImportArgs {
    /// The master's term.
    pub term: Term,
    /// The chunk, not zero; not here in any state.
    pub chunk: ChunkHandle,
    /// Epoch under which it was sealed.
    pub epoch: Epoch,
    /// At least `epoch`.
    pub promised: Epoch,
    /// The chain of the epoch, 1 to 8 servers.
    pub members: Vec<ServerId>,
    /// Place in it; the head is zero.
    pub my_position: u8,
    /// The file.
    pub file: InodeId,
    /// The chunk before it in the file.
    pub prev: ChunkHandle,
    /// Last entry of its log, as far as it is known.
    pub last_seq: Seq,
    /// The sealed length.
    pub len: u32,
    /// The sealed digest: what is written must have it.
    pub digest: [u8; 16],
    /// The dedup table, at most 400 entries.
    pub dedup: Vec<DedupEntry>,
}

/// One log entry with bytes: an APPEND (FILL is made by [`super::Store::fill`]).
#[derive(Clone, Debug)]
pub struct Entry {
    /// Which chunk.
    pub chunk: ChunkHandle,
    /// Its chain.
    pub epoch: Epoch,
    /// Place in the epoch's order.
    pub seq: Seq,
    /// Whose operation; the zero stream leaves no dedup entry.
    pub id: OpId,
    /// Lowest operation of the stream without an answer.
    pub first_unacked: u64,
    /// Chunk offset of the whole operation.
    pub op_off: u32,
    /// Length of the whole operation.
    pub op_len: u32,
    /// Chunk offset of this part.
    pub offset: u32,
    /// Length of this part, 1 byte to 1 MiB.
    pub length: u32,
    /// Which part, from zero.
    pub part: u16,
    /// How many parts.
    pub parts: u16,
    /// Known committed.
    pub committed_seq: Seq,
    /// CRC of each 4 KiB of the payload counted from its start, already verified against it.
    pub crcs: Vec<u32>,
}

/// A replica as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Open, restarted, sealed or condemned.
    pub state: ReplicaState,
    /// Epoch whose log this is.
    pub epoch: Epoch,
    /// At least `epoch`; nothing older is accepted.
    pub promised: Epoch,
    /// The chain of the epoch.
    pub members: Vec<ServerId>,
    /// Place in it.
    pub my_position: u8,
    /// The chunk before it in the file.
    pub prev: ChunkHandle,
    /// The file.
    pub file: InodeId,
    /// Bytes accepted (all parts, complete operations or not).
    pub len: u32,
    /// Last entry accepted; next expected is this plus one.
    pub last_seq: Seq,
    /// Durable, at an operation boundary.
    pub durable_len: u32,
    /// Last entry below `durable_len`.
    pub durable_seq: Seq,
    /// Known committed, at an operation boundary.
    pub committed_len: u32,
    /// Last entry below `committed_len`.
    pub committed_seq: Seq,
    /// A FINAL was accepted (it may not be durable yet).
    pub closed: bool,
    /// Content set by a seal, not confirmed.
    pub filled: bool,
    /// Re-opened: its length may not change.
    pub fixed: bool,
    /// Length when sealed, else zero.
    pub sealed_len: u32,
    /// Sealed digest; zero while not sealed.
    pub digest: [u8; 16],
    /// Entries up to here existed, their data could not be verified; else zero.
    pub suspect_seq: Seq,
    /// Journal or metadata damage: lengths here prove nothing.
    pub damaged: bool,
}

/// The answer to a PREPARE, durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promised {
    /// The epoch promised. Of a sealed replica: what it was; nothing was promised now.
    pub promised: Epoch,
    /// Epoch whose log this is.
    pub epoch: Epoch,
    /// Open, restarted or sealed.
    pub state: ReplicaState,
    /// Last entry of the last complete operation.
    pub last_seq: Seq,
    /// Bytes after it.
    pub len: u32,
    /// Digest of these bytes.
    pub digest: [u8; 16],
    /// Known committed.
    pub committed_seq: Seq,
    /// As in [`View`].
    pub suspect_seq: Seq,
    /// Not damaged: the lengths count.
    pub healthy: bool,
}

/// Whole verified blocks.
#[derive(Clone, Debug)]
pub struct Blocks<B> {
    /// Blocks; a partial last block of the chunk is zero-padded to 4 KiB.
    pub buf: B,
    /// Chunk offset of the first byte, a multiple of 4,096.
    pub offset: u32,
    /// Bytes of content from there (ends at the limit asked for). What `buf` holds behind is not content.
    pub len: u32,
    /// CRC of each block of `buf` as it is in `buf` (padding included).
    pub crcs: Vec<u32>,
}

/// How far a read may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upto {
    /// What is known committed on the whole chain.
    Committed,
    /// What is durable here.
    Durable,
}

/// How much memory reads may take beside what is in flight. The default is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadConfig {
    /// Bytes of verified blocks that a shard keeps, in ordinary memory; zero: none.
    pub cache_bytes: usize,
    /// Most bytes that are read ahead of one reader at a time, at most 2 MiB; less than a block: nothing
    /// is read ahead. What it may hold of the runtime's buffers: [`ReadConfig::buffers`].
    pub ahead_max: u32,
}

/// A block that a read has found bad, twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BadBlock {
    /// Whose.
    pub chunk: ChunkHandle,
    /// Its number in the chunk.
    pub block: u32,
}

/// Space of the disk, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Size of the file system.
    pub total: u64,
    /// Free for new chunks, reserves taken off.
    pub free: u64,
    /// Taken by the chunks of this shard.
    pub used: u64,
}

/// Plain integers of one shard since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Group commits.
    pub groups: u64,
    /// Flushes of the device, those for slots included.
    pub flushes: u64,
    /// Flushes that had to be of a slot, because its extents were not written yet.
    pub slot_syncs: u64,
    /// Bytes of zeros written ahead of appends; they count as bytes written too.
    pub zeroed_bytes: u64,
    /// Journal records.
    pub records: u64,
    /// Write calls.
    pub device_writes: u64,
    /// Bytes written.
    pub device_write_bytes: u64,
    /// Read calls.
    pub device_reads: u64,
    /// Bytes read.
    pub device_read_bytes: u64,
    /// Checkpoints of the journal.
    pub checkpoints: u64,
    /// Blocks that failed their checksum or could not be read.
    pub bad_blocks: u64,
    /// Blocks whose images checkpoints wrote in place.
    pub image_blocks: u64,
    /// Blocks that were repaired.
    pub repaired_blocks: u64,
    /// Chunks that were cloned by sharing extents.
    pub clones: u64,
    /// The disk was fenced by this shard.
    pub fences: u64,
    /// Blocks served from memory.
    pub cache_hits: u64,
    /// Blocks that a caller had to wait for the device for.
    pub cache_misses: u64,
    /// Blocks that had to leave memory for others.
    pub cache_evictions: u64,
    /// Bytes of blocks in memory now.
    pub cache_bytes: u64,
    /// Reads that were served, in part or whole, by a read of the device that another one had begun.
    pub reads_joined: u64,
    /// Blocks read ahead.
    pub ahead_blocks: u64,
    /// Of these, used.
    pub ahead_used: u64,
    /// Of these, thrown away unused.
    pub ahead_wasted: u64,
    /// Bytes read ahead and held now, or on their way.
    pub ahead_bytes: u64,
}
