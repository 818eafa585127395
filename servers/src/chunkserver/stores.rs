//! The stores of one shard: one on each disk, behind the face of one.
//!
//! A chunk lives on one disk. `homes` says on which; everything about a chunk goes there. When a disk is
//! missing, a chunk that is found nowhere may be on it: then nobody is told that there is no such chunk,
//! because the master would take that for "freed" and a client for "deleted".

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use engine::runtime::Runtime;
use engine::store::{
    Blocks, CreateArgs, DiskState, Edges, Entry, Promised, ReopenArgs, Space, Store, StoreError, Upto, View,
};
use wire::{ChunkHandle, DedupEntry, Epoch, OpId, Seq, StreamId, Term};

use super::disks::{Disk, Health};
use super::place::{self, Copy, Room};

/// One disk's part of a shard.
pub(crate) struct OnDisk<R: Runtime> {
    pub(crate) store: Store<R>,
    pub(crate) disk: Arc<Disk>,
}

/// The stores of one shard.
pub(crate) struct Stores<R: Runtime> {
    disks: Vec<OnDisk<R>>,
    /// A disk of this server is not here at all: its chunks are unknown.
    is_incomplete: bool,
    homes: RefCell<BTreeMap<ChunkHandle, usize>>,
    /// Older copies of chunks that another disk has as well: kept, reported, never served.
    shadows: BTreeSet<(ChunkHandle, usize)>,
}

impl<R: Runtime> Stores<R> {
    /// Of disks in the order of their configuration, at least one. `is_incomplete`: others could not be
    /// opened.
    pub(crate) fn new(disks: Vec<OnDisk<R>>, is_incomplete: bool) -> Self {
        assert!(!disks.is_empty(), "a shard has at least one store");
        let mut homes: BTreeMap<ChunkHandle, usize> = BTreeMap::new();
        let mut shadows = BTreeSet::new();
        for (index, on) in disks.iter().enumerate() {
            for chunk in on.store.chunks() {
                let Some(known) = homes.insert(chunk, index) else { continue };
                let copies = [known, index].map(|at| disks[at].store.view(chunk).map(|view| copy_of(&view)));
                let [Some(first), Some(second)] = copies else { continue };
                let (kept, other) = if place::is_newer(&first, &second) { (index, known) } else { (known, index) };
                homes.insert(chunk, kept);
                shadows.insert((chunk, other));
                let (kept, other) = (disks[kept].disk.root.display(), disks[other].disk.root.display());
                tracing::error!(%chunk, %kept, %other, "two disks hold this chunk: the newer copy is served, the other kept");
            }
        }
        let term = disks.iter().map(|on| on.store.term()).max().unwrap_or_default();
        let it = Self { disks, is_incomplete, homes: RefCell::new(homes), shadows };
        // Every disk knows the newest master that any of them has heard: none is above itself.
        let _ = it.obey(term);
        it
    }

    /// The disks, in the order of their configuration.
    pub(crate) fn disks(&self) -> &[OnDisk<R>] {
        &self.disks
    }

    /// How many older copies are kept and not served.
    pub(crate) fn shadow_count(&self) -> u64 {
        self.shadows.len() as u64
    }

    /// Whether this disk's copy of a chunk is the one that counts.
    pub(crate) fn is_home(&self, chunk: ChunkHandle, disk: usize) -> bool {
        self.home(chunk) == Some(disk)
    }

    /// The disk of a chunk.
    pub(crate) fn home(&self, chunk: ChunkHandle) -> Option<usize> {
        self.homes.borrow().get(&chunk).copied()
    }

    /// The chunk lives on this disk from now on; where it lived.
    pub(super) fn set_home(&self, chunk: ChunkHandle, disk: usize) -> Option<usize> {
        self.homes.borrow_mut().insert(chunk, disk)
    }

    fn of(&self, chunk: ChunkHandle) -> Option<&Store<R>> {
        self.home(chunk).map(|home| &self.disks[home].store)
    }

    /// The store of a chunk, or why there is none.
    pub(super) fn at(&self, chunk: ChunkHandle) -> Result<&Store<R>, StoreError> {
        self.of(chunk).ok_or_else(|| self.unknown())
    }

    /// What is true of a chunk that no disk here holds.
    pub(crate) fn unknown(&self) -> StoreError {
        if self.is_incomplete {
            StoreError::Fenced("a disk of this server is out of service, the chunk may be on it".into())
        } else {
            StoreError::UnknownChunk
        }
    }

    pub(super) fn obey(&self, term: Term) -> Result<(), StoreError> {
        self.disks.iter().try_for_each(|on| on.store.obey(term))
    }

    /// Whether the disk of a chunk has failed.
    pub(crate) fn is_failed(&self, chunk: ChunkHandle) -> bool {
        self.of(chunk).is_some_and(|store| store.fenced().is_some())
    }

    /// All chunks that are served, ascending.
    pub(crate) fn chunks(&self) -> Vec<ChunkHandle> {
        let homes = self.homes.borrow();
        let held = homes.iter().filter(|(chunk, home)| self.disks[**home].store.view(**chunk).is_some());
        held.map(|(chunk, _)| *chunk).collect()
    }

    pub(crate) fn view(&self, chunk: ChunkHandle) -> Option<View> {
        self.of(chunk)?.view(chunk)
    }

    pub(crate) fn dedup(&self, chunk: ChunkHandle) -> Vec<DedupEntry> {
        self.of(chunk).map(|store| store.dedup(chunk)).unwrap_or_default()
    }

    pub(crate) fn dedup_entry(&self, chunk: ChunkHandle, id: OpId) -> Option<DedupEntry> {
        self.of(chunk)?.dedup_entry(chunk, id)
    }

    pub(crate) fn newest_op(&self, chunk: ChunkHandle, stream: StreamId) -> u64 {
        self.of(chunk).map_or(0, |store| store.newest_op(chunk, stream))
    }

    pub(crate) fn note_committed(&self, chunk: ChunkHandle, seq: Seq) {
        if let Some(store) = self.of(chunk) {
            store.note_committed(chunk, seq);
        }
    }

    /// Makes the chunk on a disk with room, or answers for the one that has it. When a disk refuses for
    /// want of space or has just failed, the next one is tried.
    pub(crate) async fn create(&self, args: CreateArgs) -> Result<(), StoreError> {
        let chunk = args.chunk;
        self.obey(args.term)?;
        let mut tried = BTreeSet::new();
        loop {
            let home = match self.home(chunk) {
                Some(home) => home,
                None => self.choose(chunk, &tried).await?,
            };
            // Taken before anything is waited for: the same CREATE again must find the same disk.
            let home = *self.homes.borrow_mut().entry(chunk).or_insert(home);
            let store = &self.disks[home].store;
            let error = match store.create(args.clone()).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if store.view(chunk).is_some() {
                return Err(error);
            }
            let mut homes = self.homes.borrow_mut();
            if homes.get(&chunk) == Some(&home) {
                homes.remove(&chunk);
            }
            if !matches!(error, StoreError::NoSpace | StoreError::Fenced(_)) || !tried.insert(home) {
                return Err(error);
            }
        }
    }

    pub(super) async fn choose(&self, chunk: ChunkHandle, tried: &BTreeSet<usize>) -> Result<usize, StoreError> {
        if self.disks.len() == 1 && tried.is_empty() {
            return Ok(0);
        }
        let mut rooms = Vec::with_capacity(self.disks.len());
        for (index, on) in self.disks.iter().enumerate() {
            let takes_chunks = !tried.contains(&index) && on.store.disk_state() == DiskState::Normal;
            let free = if takes_chunks { on.store.space().await.free } else { 0 };
            rooms.push(Room { free, takes_chunks });
        }
        place::disk_for(chunk, &rooms).ok_or(StoreError::NoSpace)
    }

    pub(crate) async fn reserve(&self, chunk: ChunkHandle, len: u32) -> Result<(), StoreError> {
        self.at(chunk)?.reserve(chunk, len).await
    }

    pub(crate) fn append(
        &self,
        entry: &Entry,
        payload: R::Buf,
    ) -> Result<impl Future<Output = Result<(), StoreError>> + use<R>, StoreError> {
        self.at(entry.chunk)?.append(entry, payload)
    }

    pub(crate) async fn reopen(&self, args: ReopenArgs) -> Result<(), StoreError> {
        self.obey(args.term)?;
        self.at(args.chunk)?.reopen(args).await
    }

    pub(crate) async fn prepare_overwrite(
        &self,
        chunk: ChunkHandle,
        offset: u32,
        len: u32,
    ) -> Result<Edges, StoreError> {
        self.at(chunk)?.prepare_overwrite(chunk, offset, len).await
    }

    pub(crate) fn overwrite(
        &self,
        entry: &Entry,
        payload: &R::Buf,
        edges: &Edges,
    ) -> Result<impl Future<Output = Result<(), StoreError>> + use<R>, StoreError> {
        self.at(entry.chunk)?.overwrite(entry, payload, edges)
    }

    pub(crate) fn forget(
        &self,
        chunk: ChunkHandle,
        epoch: Epoch,
        seq: Seq,
        committed_seq: Seq,
        streams: &[StreamId],
    ) -> Result<impl Future<Output = Result<(), StoreError>> + use<R>, StoreError> {
        self.at(chunk)?.forget(chunk, epoch, seq, committed_seq, streams)
    }

    pub(crate) async fn finish(
        &self,
        chunk: ChunkHandle,
        epoch: Epoch,
        seq: Seq,
        len: u32,
        digest: [u8; 16],
    ) -> Result<(), StoreError> {
        self.at(chunk)?.finish(chunk, epoch, seq, len, digest).await
    }

    pub(crate) async fn digest(&self, chunk: ChunkHandle, len: u32) -> Result<[u8; 16], StoreError> {
        self.at(chunk)?.digest(chunk, len).await
    }

    pub(crate) async fn read(
        &self,
        chunk: ChunkHandle,
        offset: u32,
        len: u32,
        upto: Upto,
    ) -> Result<Blocks<R::Buf>, StoreError> {
        self.at(chunk)?.read(chunk, offset, len, upto).await
    }

    pub(crate) async fn prepare(&self, term: Term, chunk: ChunkHandle, epoch: Epoch) -> Result<Promised, StoreError> {
        self.obey(term)?;
        self.at(chunk)?.prepare(term, chunk, epoch).await
    }

    #[expect(clippy::too_many_arguments, reason = "the arguments of one message")]
    pub(crate) async fn seal(
        &self,
        term: Term,
        chunk: ChunkHandle,
        epoch: Epoch,
        last_seq: Seq,
        len: u32,
        digest: [u8; 16],
        table: Option<Vec<DedupEntry>>,
    ) -> Result<(), StoreError> {
        self.obey(term)?;
        self.at(chunk)?.seal(term, chunk, epoch, last_seq, len, digest, table).await
    }

    pub(crate) async fn fill(
        &self,
        chunk: ChunkHandle,
        epoch: Epoch,
        offset: u32,
        len: u32,
        crcs: Vec<u32>,
        payload: R::Buf,
    ) -> Result<(), StoreError> {
        self.at(chunk)?.fill(chunk, epoch, offset, len, crcs, payload).await
    }

    pub(crate) async fn confirm(
        &self,
        term: Term,
        chunk: ChunkHandle,
        epoch: Epoch,
        len: u32,
        digest: [u8; 16],
    ) -> Result<(), StoreError> {
        self.obey(term)?;
        self.at(chunk)?.confirm(term, chunk, epoch, len, digest).await
    }

    /// Of a chunk that is here nowhere it is done already, unless it may be on a disk that is missing.
    pub(crate) async fn condemn(
        &self,
        term: Term,
        chunk: ChunkHandle,
        authority: u64,
        now_unix: u64,
    ) -> Result<(), StoreError> {
        self.obey(term)?;
        match self.at(chunk) {
            Ok(store) => store.condemn(term, chunk, authority, now_unix).await,
            Err(StoreError::UnknownChunk) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// As [`Self::condemn`].
    pub(crate) async fn free(&self, term: Term, chunk: ChunkHandle, authority: u64) -> Result<(), StoreError> {
        self.obey(term)?;
        let store = match self.at(chunk) {
            Ok(store) => store,
            Err(StoreError::UnknownChunk) => return Ok(()),
            Err(error) => return Err(error),
        };
        store.free(term, chunk, authority).await?;
        if store.view(chunk).is_none() {
            self.homes.borrow_mut().remove(&chunk);
        }
        Ok(())
    }

    /// Space of each disk.
    pub(crate) async fn spaces(&self) -> Vec<Space> {
        let mut spaces = Vec::with_capacity(self.disks.len());
        for on in &self.disks {
            spaces.push(on.store.space().await);
        }
        spaces
    }

    /// Looks whether a disk has failed or begun to drain, for everybody to know; gives those that failed
    /// since the last time.
    pub(crate) fn look(&self, known: &mut BTreeSet<usize>) -> Vec<usize> {
        let mut failed = Vec::new();
        for (index, on) in self.disks.iter().enumerate() {
            match on.store.disk_state() {
                DiskState::Fenced => {
                    on.disk.set_health(Health::Failed(on.store.fenced().unwrap_or_default()));
                    if known.insert(index) {
                        failed.push(index);
                    }
                }
                DiskState::Draining => drop(on.disk.set_health(Health::Draining)),
                _ => {}
            }
        }
        failed
    }

    pub(crate) async fn shutdown(&self) {
        for on in &self.disks {
            on.store.shutdown().await;
        }
    }
}

fn copy_of(view: &View) -> Copy {
    Copy { epoch: (view.epoch, view.promised), durable_len: view.durable_len }
}

/// One store on one disk, as tests have it.
#[cfg(test)]
impl<R: Runtime> From<Store<R>> for Stores<R> {
    fn from(store: Store<R>) -> Self {
        let disk = Disk::opened(std::path::Path::new("disk"), 1);
        Self::new(vec![OnDisk { store, disk }], false)
    }
}
