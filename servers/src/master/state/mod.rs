//! The state of the cluster, and the one function that changes it.
//!
//! [`State::apply`] is deterministic: no clock, no randomness, no I/O. It refuses without changing
//! anything, or changes and answers. The log replays exactly what it accepted, so a refusal during
//! replay means that log and state do not belong together.

mod chunks;
mod names;
mod query;
mod replicas;
mod requests;
mod rows;
mod table;
mod uploads;

use std::collections::{BTreeMap, BTreeSet};

use wire::{ChunkHandle, ClusterId, Fault, InodeId, Kind, ServerId, Term};

use super::entry::{Answer, Change, Effect, Entry, Lsn, ServerRecord};
pub use query::{Listed, Place, TrashPage};
pub use rows::{
    Chunk, Counters, Drained, Dropped, Extent, Fixed, Inode, Node, Pending, Phase, Remembered, Streams, Tomb, Trashed,
    Tuning,
};
pub use table::Row;
use table::Table;

/// The parent of an inode without a name.
pub const NOWHERE: InodeId = InodeId(0);

/// What passes between two entries counts as no more than this.
const STEP_MS_MAX: u64 = 60 * 1000;

/// Everything durable about the cluster.
#[derive(Clone, Debug, Default)]
pub struct State {
    counters: Counters,
    inodes: Table<InodeId, Inode>,
    dirents: Table<(InodeId, String), InodeId>,
    extents: Table<(InodeId, u32), Extent>,
    chunks: Table<ChunkHandle, Chunk>,
    trash: Table<Lsn, Trashed>,
    tombs: Table<ChunkHandle, Tomb>,
    servers: Table<ServerId, ServerRecord>,
    uploads: Table<InodeId, Pending>,
    requests: Table<([u8; 16], u64), Remembered>,
    streams: Table<InodeId, Streams>,
    dropped: Table<(ChunkHandle, ServerId), Dropped>,
    drained: Table<ServerId, Drained>,
    tunings: Table<u64, Tuning>,
    derived: Derived,
}

/// What can be computed from the tables, kept at hand.
#[derive(Clone, Debug, Default)]
struct Derived {
    /// Chunks that are not sealed.
    open: BTreeSet<ChunkHandle>,
    /// Sealed chunks with fewer holders than wanted.
    degraded: BTreeSet<ChunkHandle>,
    /// Trash by the path it was deleted from.
    trash_paths: BTreeSet<(String, Lsn)>,
    /// Remembered requests by age.
    request_age: BTreeSet<(Lsn, ([u8; 16], u64))>,
    /// How many of them each client has.
    request_count: BTreeMap<[u8; 16], usize>,
    /// Inherited dedup tables by age.
    stream_age: BTreeSet<(u64, InodeId)>,
}

/// A table of the state by name, for the checkpoint.
pub const TABLES: [&str; 14] = [
    "counters",
    "inode",
    "dirent",
    "extent",
    "chunk",
    "trash",
    "tombstone",
    "server",
    "upload",
    "request",
    "stream",
    "dropped",
    "drained",
    "tuning",
];

/// What applying an entry gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// For whoever asked.
    pub answer: Answer,
    /// For the drivers, once the entry is durable.
    pub effects: Vec<Effect>,
}

impl Applied {
    fn new(answer: Answer, effects: impl IntoIterator<Item = Effect>) -> Self {
        Self { answer, effects: effects.into_iter().collect() }
    }
}

impl State {
    /// Makes the entry for a change: time and the next free numbers.
    #[must_use]
    pub fn stamp(&self, change: Change, now_ms: u64) -> Entry {
        Entry {
            now_ms: now_ms.max(self.counters.now_ms),
            first_inode: self.counters.next_inode.max(InodeId::ROOT.0),
            next_chunk: self.counters.next_chunk.max(1),
            change,
        }
    }

    /// Applies the entry at `lsn`.
    ///
    /// # Errors
    ///
    /// A [`Fault`] for the caller; the state is as it was.
    ///
    /// # Panics
    ///
    /// When the entry is not the next one or would use a number again: the log is not this state's.
    pub fn apply(&mut self, lsn: Lsn, entry: &Entry) -> Result<Applied, Fault> {
        assert_eq!(lsn, self.counters.applied + 1, "entries are applied in order, each once");
        assert!(entry.first_inode >= self.counters.next_inode, "inode numbers are never used again");
        assert!(entry.next_chunk >= self.counters.next_chunk, "chunk handles are never used again");
        let founded = self.counters.cluster != ClusterId::default();
        if founded == matches!(entry.change, Change::Found { .. }) {
            return Err(Fault::new(Kind::Conflict, "a cluster is founded once, before anything else"));
        }
        // Equal already, unless the entry was stamped by a build that numbers otherwise.
        self.counters.next_inode = entry.first_inode;
        self.counters.next_chunk = entry.next_chunk;
        let lived_ms = self.lived_ms(entry);
        let applied = self.change(lsn, entry)?;
        self.counters.applied = lsn;
        self.counters.now_ms = self.counters.now_ms.max(entry.now_ms);
        if let Some(request) = entry.change.request() {
            self.remember(lsn, lived_ms, request, &applied.answer);
        }
        self.counters.lived_ms = lived_ms;
        self.forget(lived_ms);
        Ok(applied)
    }

    /// The age of this state at an entry: from one entry to the next counts no more than a minute. A wall
    /// clock that jumps ahead would have answers and tables forgotten that are still asked for, and an
    /// acknowledged append repeated. What lives on too long costs memory, and that is bounded.
    fn lived_ms(&self, entry: &Entry) -> u64 {
        self.counters.lived_ms + entry.now_ms.saturating_sub(self.counters.now_ms).min(STEP_MS_MAX)
    }

    fn change(&mut self, lsn: Lsn, entry: &Entry) -> Result<Applied, Fault> {
        match &entry.change {
            Change::Found { cluster } => self.found(lsn, entry, *cluster),
            Change::Term { term } => self.begin_term(*term),
            Change::Register { server, record } => self.register(*server, record),
            Change::OpenChunk { file, members } => self.open_chunk(lsn, entry, *file, members),
            Change::SealStart { chunk, epoch } => self.seal_start(*chunk, *epoch),
            Change::Sealed { .. } => self.sealed(lsn, entry),
            Change::Abandon { chunk } => self.abandon(lsn, entry, *chunk),
            Change::Reopen { .. } => self.reopen(lsn, entry),
            Change::AddReplica { chunk, server, digest } => self.add_replica(*chunk, *server, *digest),
            Change::Freed { chunk, server } => self.freed(*chunk, *server),
            Change::Mkdir { path, .. } => self.mkdir(lsn, entry, path),
            Change::Create { path, replicas, .. } => self.create(lsn, entry, path, *replicas),
            Change::Delete { path, recursive, .. } => self.delete(lsn, entry, path, *recursive),
            Change::Undelete { path, .. } => self.undelete(lsn, entry, path),
            Change::Rename { from, to, replace, .. } => self.rename(lsn, entry, from, to, *replace),
            Change::BeginUpload { content_type, replicas, .. } => {
                Ok(self.begin_upload(lsn, entry, content_type, *replicas))
            }
            Change::Publish { .. } => self.publish(lsn, entry),
            Change::Splice { .. } => self.splice(lsn, entry),
            Change::AbortUpload { inode, .. } => self.abort_upload(lsn, entry, *inode),
            Change::Purge { trash } => self.purge(lsn, entry, *trash),
            Change::DropReplica { chunk, server, why } => self.drop_replica(lsn, entry, *chunk, *server, *why),
            Change::Drain { server, drain, .. } => self.drain(entry, *server, *drain),
            Change::Tune { .. } => Ok(self.tune(&entry.change)),
        }
    }

    fn found(&mut self, lsn: Lsn, entry: &Entry, cluster: ClusterId) -> Result<Applied, Fault> {
        if cluster == ClusterId::default() {
            return Err(Fault::new(Kind::Invalid, "a cluster has a name"));
        }
        self.counters.cluster = cluster;
        self.inodes.insert(InodeId::ROOT, Inode::new(lsn, entry.now_ms, NOWHERE, Node::directory()));
        self.counters.next_inode = self.counters.next_inode.max(InodeId::ROOT.0 + 1);
        Ok(Applied::new(Answer::Done, []))
    }

    fn begin_term(&mut self, term: Term) -> Result<Applied, Fault> {
        if term <= self.counters.term {
            return Err(Fault::new(Kind::Conflict, "terms count up"));
        }
        self.counters.term = term;
        Ok(Applied::new(Answer::Done, []))
    }

    fn register(&mut self, server: ServerId, record: &ServerRecord) -> Result<Applied, Fault> {
        if server.0 == 0 || server.0 > self.next_server().0 {
            return Err(Fault::new(Kind::Invalid, format!("server id {server} was not given out by this cluster")));
        }
        if let Some(known) = self.servers.get(&server)
            && known.disk != [0; 16]
            && known.disk != record.disk
        {
            return Err(Fault::new(Kind::Conflict, format!("server id {server} belongs to another disk")));
        }
        // The id was chosen before this entry's turn: another fresh disk may have got it meanwhile.
        if let Some(known) = self.servers.get(&server)
            && record.disk == [0; 16]
            && known.address != record.address
        {
            return Err(Fault::new(
                Kind::Unavailable,
                format!("server id {server} has just been given out: try again"),
            ));
        }
        self.counters.next_server = self.counters.next_server.max(server.0 + 1);
        self.servers.insert(server, record.clone());
        Ok(Applied::new(Answer::Done, []))
    }

    /// Rows changed since the last call, by the tables of [`TABLES`]: what a checkpoint writes.
    pub fn take_dirty(&mut self) -> Vec<Vec<Row>> {
        vec![
            self.counters.row(),
            self.inodes.take_dirty(),
            self.dirents.take_dirty(),
            self.extents.take_dirty(),
            self.chunks.take_dirty(),
            self.trash.take_dirty(),
            self.tombs.take_dirty(),
            self.servers.take_dirty(),
            self.uploads.take_dirty(),
            self.requests.take_dirty(),
            self.streams.take_dirty(),
            self.dropped.take_dirty(),
            self.drained.take_dirty(),
            self.tunings.take_dirty(),
        ]
    }

    /// How many rows [`State::take_dirty`] would give.
    #[must_use]
    pub fn dirty_count(&self) -> usize {
        self.inodes.dirty_count()
            + self.dirents.dirty_count()
            + self.extents.dirty_count()
            + self.chunks.dirty_count()
            + self.trash.dirty_count()
            + self.tombs.dirty_count()
            + self.servers.dirty_count()
            + self.uploads.dirty_count()
            + self.requests.dirty_count()
            + self.streams.dirty_count()
            + self.dropped.dirty_count()
            + self.drained.dirty_count()
            + self.tunings.dirty_count()
    }

    /// All rows, by the tables of [`TABLES`]: two states are equal exactly when these are.
    #[must_use]
    pub fn dump(&self) -> Vec<Vec<Row>> {
        vec![
            self.counters.row(),
            self.inodes.dump(),
            self.dirents.dump(),
            self.extents.dump(),
            self.chunks.dump(),
            self.trash.dump(),
            self.tombs.dump(),
            self.servers.dump(),
            self.uploads.dump(),
            self.requests.dump(),
            self.streams.dump(),
            self.dropped.dump(),
            self.drained.dump(),
            self.tunings.dump(),
        ]
    }

    /// Takes a stored row back. After the last one call [`State::rebuild`].
    ///
    /// # Errors
    ///
    /// What is wrong with the row, for people.
    pub fn load(&mut self, table: &str, key: &[u8], value: &[u8]) -> Result<(), String> {
        match table {
            "counters" => self.counters = wire::codec::decode(value).map_err(|error| error.to_string())?,
            "inode" => self.inodes.load(key, value)?,
            "dirent" => self.dirents.load(key, value)?,
            "extent" => self.extents.load(key, value)?,
            "chunk" => self.chunks.load(key, value)?,
            "trash" => self.trash.load(key, value)?,
            "tombstone" => self.tombs.load(key, value)?,
            "server" => self.servers.load(key, value)?,
            "upload" => self.uploads.load(key, value)?,
            "request" => self.requests.load(key, value)?,
            "stream" => self.streams.load(key, value)?,
            "dropped" => self.dropped.load(key, value)?,
            "drained" => self.drained.load(key, value)?,
            "tuning" => self.tunings.load(key, value)?,
            _ => return Err(format!("no table is called {table}")),
        }
        Ok(())
    }

    /// Computes what is derived, after loading, and checks that the rows belong together.
    ///
    /// # Errors
    ///
    /// The first contradiction, for people.
    pub fn rebuild(&mut self) -> Result<(), String> {
        let mut derived = Derived::default();
        for (handle, chunk) in self.chunks.iter() {
            if !self.inodes.contains(&chunk.file) {
                return Err(format!("chunk {handle} belongs to file {}, which is not there", chunk.file));
            }
            derived.note(*handle, chunk);
        }
        for ((dir, name), inode) in self.dirents.iter() {
            if !self.inodes.contains(dir) || !self.inodes.contains(inode) {
                return Err(format!("name {name:?} of directory {dir} leads nowhere"));
            }
        }
        for ((file, index), extent) in self.extents.iter() {
            if self.chunks.get(&extent.chunk).is_none_or(|chunk| chunk.file != *file) {
                return Err(format!("chunk {index} of file {file} is not there"));
            }
        }
        let kept = self.trash.iter().filter(|(_, trashed)| !trashed.purging);
        derived.trash_paths = kept.map(|(lsn, trashed)| (trashed.path.clone(), *lsn)).collect();
        for (key, remembered) in self.requests.iter() {
            derived.request_age.insert((remembered.lsn, *key));
            *derived.request_count.entry(key.0).or_default() += 1;
        }
        derived.stream_age = self.streams.iter().map(|(file, streams)| (streams.since_ms, *file)).collect();
        self.derived = derived;
        Ok(())
    }
}

impl Derived {
    /// Files a chunk under what it is now.
    fn note(&mut self, handle: ChunkHandle, chunk: &Chunk) {
        let sealed = matches!(chunk.phase, Phase::Sealed { .. });
        set(&mut self.open, handle, !sealed);
        set(&mut self.degraded, handle, sealed && chunk.members.len() < chunk.wanted as usize);
    }
}

fn set(set: &mut BTreeSet<ChunkHandle>, handle: ChunkHandle, present: bool) {
    if present {
        set.insert(handle);
    } else {
        set.remove(&handle);
    }
}
