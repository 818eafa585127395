//! Chunks: open, seal, abandon, bury.

use wire::limits::{CHUNK_SIZE, DEDUP_ENTRIES_MAX, MEMBERS_MAX};
use wire::{ChunkHandle, Epoch, Fault, InodeId, Kind, ServerId};

use super::{Applied, Chunk, Extent, Fixed, Node, Phase, State, Tomb};
use crate::master::entry::{Answer, Change, Effect, Entry, Lsn};

impl State {
    pub(super) fn open_chunk(
        &mut self,
        lsn: Lsn,
        entry: &Entry,
        file: InodeId,
        members: &[ServerId],
    ) -> Result<Applied, Fault> {
        if members.is_empty() || members.len() > MEMBERS_MAX || has_twins(members) {
            return Err(Fault::new(Kind::Invalid, "a chain has one to eight different members"));
        }
        let (len, index, wanted) = self.appendable(file)?;
        let prev = index.checked_sub(1).and_then(|last| self.extents.get(&(file, last))).map(|extent| extent.chunk);
        if prev.and_then(|prev| self.chunks.get(&prev)).is_some_and(|prev| !prev.has_end()) {
            return Err(Fault::new(Kind::Conflict, "the file's last chunk is not sealed"));
        }
        let handle = ChunkHandle(self.counters.next_chunk);
        self.counters.next_chunk += 1;
        self.extents.insert((file, index), Extent { chunk: handle, start: len });
        let chunk = Chunk {
            file,
            prev: prev.unwrap_or_default(),
            epoch: Epoch(1),
            phase: Phase::Open,
            members: members.to_vec(),
            stale: vec![],
            wanted,
            opened_ms: entry.now_ms,
            fixed: None,
        };
        self.put_chunk(handle, chunk);
        self.touch_file(lsn, entry, file, |_, chunks| *chunks += 1);
        Ok(Applied::new(Answer::Chunk(handle), []))
    }

    pub(super) fn seal_start(&mut self, handle: ChunkHandle, epoch: Epoch) -> Result<Applied, Fault> {
        let chunk = self.chunk(handle).ok_or_else(|| no_chunk(handle))?;
        if matches!(chunk.phase, Phase::Sealed { .. }) || epoch <= chunk.epoch_max() {
            return Err(Fault::new(Kind::StaleEpoch, format!("chunk {handle} is sealed, or past epoch {epoch}")));
        }
        let mut chunk = chunk.clone();
        chunk.phase = Phase::Sealing(epoch);
        let file = chunk.file;
        self.put_chunk(handle, chunk);
        Ok(Applied::new(Answer::Done, [Effect::Changed(file)]))
    }

    pub(super) fn sealed(&mut self, lsn: Lsn, entry: &Entry) -> Result<Applied, Fault> {
        let Change::Sealed { chunk: handle, epoch, len, last_seq, digest, holders, dedup } = &entry.change else {
            unreachable!("called for this change only")
        };
        let chunk = self.chunk(*handle).ok_or_else(|| no_chunk(*handle))?;
        let current = match chunk.phase {
            Phase::Open => chunk.epoch,
            Phase::Sealing(epoch) => epoch,
            Phase::Sealed { .. } => return Err(Fault::new(Kind::Sealed, format!("chunk {handle} is sealed"))),
        };
        if *epoch != current {
            return Err(Fault::new(Kind::StaleEpoch, format!("chunk {handle} is past epoch {epoch}")));
        }
        let holds = |server: &ServerId| holders.contains(server);
        if holders.is_empty() || has_twins(holders) || !holders.iter().all(|server| chunk.members.contains(server)) {
            return Err(Fault::new(Kind::Invalid, "holders are members of the chain, at least one"));
        }
        if *len > CHUNK_SIZE || dedup.len() > DEDUP_ENTRIES_MAX {
            return Err(Fault::new(Kind::Invalid, "length or dedup table of a seal over their limits"));
        }
        let mut chunk = chunk.clone();
        let file = chunk.file;
        let fixed = chunk.fixed.take();
        if fixed.is_some_and(|fixed| fixed.len != *len) {
            return Err(Fault::new(Kind::Invalid, format!("chunk {handle} was re-opened: its length stays")));
        }
        // The table of a re-opened chunk stays with it.
        if fixed.is_none() {
            self.inherit(file, self.lived_ms(entry), dedup);
        }
        if *len == 0 {
            // Nothing in it: a file must not collect empty chunks while its chains keep failing.
            self.drop_last_chunk(lsn, entry, file, *handle);
            return Ok(Applied::new(Answer::Done, [Effect::Changed(file)]));
        }
        let stale: Vec<_> = chunk.members.iter().copied().filter(|server| !holds(server)).collect();
        chunk.stale.extend(stale);
        chunk.members.retain(holds);
        chunk.epoch = *epoch;
        chunk.phase = Phase::Sealed { len: *len, last_seq: *last_seq, digest: *digest };
        self.put_chunk(*handle, chunk);
        let more = if fixed.is_some() { 0 } else { u64::from(*len) };
        self.touch_file(lsn, entry, file, |bytes, _| *bytes += more);
        Ok(Applied::new(Answer::Done, [Effect::Changed(file), Effect::Confirm(*handle)]))
    }

    pub(super) fn abandon(&mut self, lsn: Lsn, entry: &Entry, handle: ChunkHandle) -> Result<Applied, Fault> {
        let chunk = self.chunk(handle).ok_or_else(|| no_chunk(handle))?;
        if matches!(chunk.phase, Phase::Sealed { .. }) {
            return Err(Fault::new(Kind::Sealed, format!("chunk {handle} is sealed")));
        }
        if chunk.fixed.is_some() {
            return Err(Fault::new(Kind::Conflict, format!("chunk {handle} was re-opened: it has content")));
        }
        let file = chunk.file;
        self.drop_last_chunk(lsn, entry, file, handle);
        Ok(Applied::new(Answer::Done, [Effect::Changed(file)]))
    }

    pub(super) fn reopen(&mut self, lsn: Lsn, entry: &Entry) -> Result<Applied, Fault> {
        let Change::Reopen { chunk: handle, epoch, members, dropped } = &entry.change else {
            unreachable!("called for this change only")
        };
        let chunk = self.chunk(*handle).ok_or_else(|| no_chunk(*handle))?;
        let Phase::Sealed { len, digest, .. } = chunk.phase else {
            return Err(Fault::new(Kind::Conflict, format!("chunk {handle} is not sealed")));
        };
        if *epoch <= chunk.epoch {
            return Err(Fault::new(Kind::StaleEpoch, format!("chunk {handle} is past epoch {epoch}")));
        }
        let mut all = members.clone();
        all.extend(dropped);
        let is_all = all.len() == chunk.members.len() && all.iter().all(|server| chunk.members.contains(server));
        if members.is_empty() || members.len() > MEMBERS_MAX || has_twins(&all) || !is_all {
            return Err(Fault::new(Kind::Invalid, "a chunk is re-opened on holders, the others are dropped"));
        }
        let mut chunk = chunk.clone();
        let file = chunk.file;
        chunk.fixed = Some(Fixed { epoch: chunk.epoch, len, digest });
        (chunk.phase, chunk.epoch, chunk.opened_ms) = (Phase::Open, *epoch, entry.now_ms);
        chunk.members.clone_from(members);
        chunk.stale.extend(dropped);
        self.put_chunk(*handle, chunk);
        self.touch_file(lsn, entry, file, |_, _| {});
        Ok(Applied::new(Answer::Done, [Effect::Changed(file)]))
    }

    /// Length, number of chunks and replicas wanted of a file that may be appended to.
    fn appendable(&self, file: InodeId) -> Result<(u64, u32, u32), Fault> {
        let Some(row) = self.inodes.get(&file).filter(|_| self.reachable(file)) else {
            return Err(Fault::new(Kind::NotFound, format!("file {file} is not found: it was deleted or replaced")));
        };
        let Node::File { len, chunks, replicas, .. } = &row.node else {
            return Err(Fault::new(Kind::Conflict, format!("inode {file} is a directory, not a file")));
        };
        if *chunks == u32::MAX {
            return Err(Fault::new(Kind::NoSpace, "the file has as many chunks as a file can have"));
        }
        Ok((*len, *chunks, *replicas))
    }

    fn drop_last_chunk(&mut self, lsn: Lsn, entry: &Entry, file: InodeId, handle: ChunkHandle) {
        self.touch_file(lsn, entry, file, |_, chunks| *chunks -= 1);
        let last = self.extents.range((file, 0)..=(file, u32::MAX)).next_back().map(|(key, extent)| (*key, *extent));
        let Some((key, extent)) = last else { unreachable!("an unsealed chunk is its file's last") };
        assert_eq!(extent.chunk, handle, "only the last chunk of a file is not sealed");
        self.extents.remove(&key);
        self.bury(lsn, handle, entry.now_ms);
    }

    fn touch_file(&mut self, lsn: Lsn, entry: &Entry, file: InodeId, edit: impl FnOnce(&mut u64, &mut u32)) {
        let Some(row) = self.inodes.edit(&file) else { unreachable!("a chunk's file exists") };
        row.touch(lsn, entry.now_ms);
        if let Node::File { len, chunks, sha256, .. } = &mut row.node {
            edit(len, chunks);
            *sha256 = None;
        }
    }

    pub(super) fn put_chunk(&mut self, handle: ChunkHandle, chunk: Chunk) {
        self.derived.note(handle, &chunk);
        self.chunks.insert(handle, chunk);
    }

    /// Writes the tombstone of a chunk that no file names any more. It holds from `from_ms` on.
    pub(super) fn bury(&mut self, lsn: Lsn, handle: ChunkHandle, from_ms: u64) {
        let Some(chunk) = self.chunks.remove(&handle) else { return };
        self.derived.open.remove(&handle);
        self.derived.degraded.remove(&handle);
        let servers = chunk.members.iter().chain(&chunk.stale).copied().collect();
        self.tombs.insert(handle, Tomb { authority: lsn, from_ms, servers });
    }
}

fn has_twins(servers: &[ServerId]) -> bool {
    servers.iter().enumerate().any(|(position, server)| servers[..position].contains(server))
}

pub(super) fn no_chunk(handle: ChunkHandle) -> Fault {
    Fault::new(Kind::NotFound, format!("chunk {handle} is not found"))
}
