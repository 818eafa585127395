//! Uploads: an inode without a name, published or spliced in one entry. And the end of what was
//! deleted: from the trash to tombstones.

use wire::upload::Precondition;
use wire::{ChunkHandle, Fault, InodeId, Kind, NamePath};

use super::names::{Found, is_a_directory, not_a_directory};
use super::{Applied, Extent, Inode, NOWHERE, Node, Pending, Phase, State};
use crate::master::entry::{Answer, Change, Effect, Entry, Lsn};

/// Readers that located a chunk before it was spliced out may finish: they use a location for less.
const SPLICE_GRACE_MS: u64 = 10 * 60 * 1000;
/// Inodes and chunks that one entry buries, about: applying an entry must not hold the others up.
const PURGE_STEP: usize = 1000;

impl State {
    pub(super) fn begin_upload(&mut self, lsn: Lsn, entry: &Entry, content_type: &str, replicas: u32) -> Applied {
        let inode = self.new_inode(Inode::new(lsn, entry.now_ms, NOWHERE, Node::file(content_type, replicas)));
        self.uploads.insert(inode, Pending { since_ms: entry.now_ms });
        Applied::new(Answer::Inode(inode), [])
    }

    pub(super) fn publish(&mut self, lsn: Lsn, entry: &Entry) -> Result<Applied, Fault> {
        let Change::Publish { inode, path, precondition, len, sha256, .. } = &entry.change else {
            unreachable!("called for this change only")
        };
        let path = NamePath::parse(path)?;
        let (have, _) = self.finished_upload(*inode)?;
        if have != *len {
            return Err(Fault::new(Kind::Invalid, format!("{len} bytes were to be published, {have} were uploaded")));
        }
        let target = match self.walk(&path) {
            Found::Inode(target) if self.is_directory(target) => return Err(is_a_directory(&path)),
            Found::Inode(target) => Some(target),
            Found::Missing { .. } => None,
            Found::Blocked { by } => return Err(not_a_directory(&by)),
        };
        self.check(&path, target, precondition)?;
        if let Some(target) = target {
            self.throw_away(lsn, entry, &path, target);
        }
        let Found::Missing { dir, names } = self.walk(&path) else { unreachable!("the name is free now") };
        let parent = self.make_parents(lsn, entry, dir, &names);
        self.uploads.remove(inode);
        self.inherit(*inode, 0, &[]);
        self.attach(lsn, entry, parent, path.name(), *inode);
        if let Some(row) = self.inodes.edit(inode) {
            row.touch(lsn, entry.now_ms);
            if let Node::File { sha256: known, .. } = &mut row.node {
                *known = *sha256;
            }
        }
        Ok(Applied::new(Answer::Attr(self.attr(*inode)), []))
    }

    pub(super) fn splice(&mut self, lsn: Lsn, entry: &Entry) -> Result<Applied, Fault> {
        let Change::Splice { file, version, index, remove, upload, .. } = entry.change else {
            unreachable!("called for this change only")
        };
        let row = self.inodes.get(&file).filter(|_| self.reachable(file) && !self.uploads.contains(&file));
        let Some((row, Node::File { chunks, .. })) = row.map(|row| (row, &row.node)) else {
            return Err(Fault::new(Kind::NotFound, format!("file {file} is not found: it was deleted or replaced")));
        };
        if row.version != version {
            return Err(Fault::new(Kind::Precondition, format!("file {file} has changed since version {version}")));
        }
        let chunks = *chunks;
        let Some(end) = index.checked_add(remove).filter(|end| *end <= chunks) else {
            return Err(Fault::new(Kind::Invalid, format!("file {file} has {chunks} chunks, not that range of them")));
        };
        // At the end of the file nothing may follow an open chunk.
        let before = index.checked_sub(1).filter(|_| end == chunks);
        let has_end = |index| self.place(file, index).is_some_and(|place| place.chunk.has_end());
        if !before.is_none_or(has_end) || !(index..end).all(|index| self.is_sealed(file, index)) {
            return Err(Fault::new(Kind::Unavailable, "the chunks to be replaced are not sealed yet"));
        }
        let (_, incoming) = self.finished_upload(upload)?;
        if chunks.checked_sub(remove).and_then(|kept| kept.checked_add(incoming)).is_none() {
            return Err(Fault::new(Kind::NoSpace, "the file would have more chunks than a file can have"));
        }
        self.exchange(lsn, entry, file, index, end, upload);
        self.remove_inode(upload);
        Ok(Applied::new(Answer::Attr(self.attr(file)), [Effect::Changed(file)]))
    }

    pub(super) fn abort_upload(&mut self, lsn: Lsn, entry: &Entry, inode: InodeId) -> Result<Applied, Fault> {
        if !self.uploads.contains(&inode) {
            return Err(no_upload(inode));
        }
        self.bury_file(lsn, inode, entry.now_ms);
        Ok(Applied::new(Answer::Done, [Effect::Changed(inode)]))
    }

    pub(super) fn purge(&mut self, lsn: Lsn, entry: &Entry, trash: Lsn) -> Result<Applied, Fault> {
        let Some(trashed) = self.trash.edit(&trash) else {
            return Err(Fault::new(Kind::NotFound, format!("nothing in the trash was deleted by entry {trash}")));
        };
        trashed.purging = true;
        self.derived.trash_paths.remove(&(trashed.path.clone(), trash));
        let mut budget = PURGE_STEP;
        // From the top down to something without children, bury it, and again.
        let mut stack = vec![(None, trashed.inode)];
        while let Some((_, at)) = stack.last() {
            let first = self.dirents.range((*at, String::new())..).next().filter(|((dir, _), _)| dir == at);
            if let Some((name, child)) = first {
                stack.push((Some(name.clone()), *child));
                continue;
            }
            if budget == 0 {
                return Ok(Applied::new(Answer::Done, []));
            }
            let Some((name, at)) = stack.pop() else { break };
            budget = budget.saturating_sub(1 + self.bury_file(lsn, at, entry.now_ms));
            if let Some(name) = name {
                self.dirents.remove(&name);
            }
        }
        self.trash.remove(&trash);
        Ok(Applied::new(Answer::Done, []))
    }

    /// Length and number of chunks of an upload whose chunks are all sealed.
    fn finished_upload(&self, inode: InodeId) -> Result<(u64, u32), Fault> {
        let row = self.inodes.get(&inode).filter(|_| self.uploads.contains(&inode)).ok_or_else(|| no_upload(inode))?;
        let Node::File { len, chunks, .. } = row.node else { unreachable!("an upload is a file") };
        if chunks > 0 && !self.is_sealed(inode, chunks - 1) {
            return Err(Fault::new(Kind::Unavailable, "the last chunk of the upload is not sealed yet"));
        }
        Ok((len, chunks))
    }

    fn check(&self, path: &NamePath, target: Option<InodeId>, precondition: &Precondition) -> Result<(), Fault> {
        let holds = match precondition {
            Precondition::None => true,
            Precondition::Absent => target.is_none(),
            Precondition::Present => target.is_some(),
            Precondition::Match { inode, version } => {
                target == Some(*inode) && self.inodes.get(inode).is_some_and(|row| row.version == *version)
            }
        };
        if holds {
            Ok(())
        } else {
            Err(Fault::new(Kind::Precondition, format!("{path} is not what it should be: {precondition:?}")))
        }
    }

    fn is_sealed(&self, file: InodeId, index: u32) -> bool {
        let extent = self.extents.get(&(file, index));
        let chunk = extent.and_then(|extent| self.chunks.get(&extent.chunk));
        chunk.is_some_and(|chunk| matches!(chunk.phase, Phase::Sealed { .. }))
    }

    /// Puts the chunks of `upload` in the place of `index..end`, and shifts what follows.
    fn exchange(&mut self, lsn: Lsn, entry: &Entry, file: InodeId, index: u32, end: u32, upload: InodeId) {
        let handles = |state: &Self, file, from, to| -> Vec<ChunkHandle> {
            state.extents.range((file, from)..(file, to)).map(|(_, extent)| extent.chunk).collect()
        };
        let old = handles(self, file, index, end);
        let new = handles(self, upload, 0, u32::MAX);
        let rest = handles(self, file, end, u32::MAX);
        let start_of = |state: &Self| state.extents.get(&(file, index)).map(|extent| extent.start);
        let length =
            self.inodes.get(&file).map_or(0, |row| if let Node::File { len, .. } = row.node { len } else { 0 });
        let mut start = start_of(self).unwrap_or(length);
        let mut at = index;
        for chunk in new.iter().chain(&rest) {
            self.extents.insert((file, at), Extent { chunk: *chunk, start });
            start += u64::from(self.chunk(*chunk).map_or(0, super::Chunk::len));
            at += 1;
        }
        let gone: Vec<_> = self.extents.range((file, at)..=(file, u32::MAX)).map(|(key, _)| *key).collect();
        for key in gone {
            self.extents.remove(&key);
        }
        for chunk in &new {
            if let Some(row) = self.chunks.edit(chunk) {
                row.file = file;
            }
        }
        for chunk in old {
            self.bury(lsn, chunk, entry.now_ms.saturating_add(SPLICE_GRACE_MS));
        }
        if let Some(row) = self.inodes.edit(&file) {
            row.touch(lsn, entry.now_ms);
            if let Node::File { len, chunks, sha256, .. } = &mut row.node {
                (*len, *chunks, *sha256) = (start, at, None);
            }
        }
    }

    /// Removes a file, or a directory without children, with everything that belongs to it. Returns how
    /// many chunks got a tombstone.
    fn bury_file(&mut self, lsn: Lsn, inode: InodeId, from_ms: u64) -> usize {
        let extents: Vec<_> =
            self.extents.range((inode, 0)..=(inode, u32::MAX)).map(|(_, extent)| extent.chunk).collect();
        for chunk in &extents {
            self.bury(lsn, *chunk, from_ms);
        }
        self.remove_inode(inode);
        extents.len()
    }

    fn remove_inode(&mut self, inode: InodeId) {
        let extents: Vec<_> = self.extents.range((inode, 0)..=(inode, u32::MAX)).map(|(key, _)| *key).collect();
        for key in extents {
            self.extents.remove(&key);
        }
        self.inherit(inode, 0, &[]);
        self.uploads.remove(&inode);
        self.inodes.remove(&inode);
    }
}

fn no_upload(inode: InodeId) -> Fault {
    Fault::new(Kind::NotFound, format!("upload {inode} is not found: it was published, spliced or given up"))
}
