//! Questions to the state. None of them changes anything.

use std::ops::Bound;

use wire::limits::PAGE_ENTRIES_MAX;
use wire::locate::Position;
use wire::namespace::{Attr, Entry as Named, Listing};
use wire::{ChunkHandle, ClusterId, Fault, InodeId, Kind, NamePath, ServerId, Term};

use super::names::{Found, not_a_directory, not_found};
use super::{Chunk, Extent, Node, State, Tomb, Trashed};
use crate::master::entry::{Lsn, ServerRecord};

/// Bytes of one page at most: below the limit of a control message, with room.
const PAGE_LEN_MAX: usize = 512 << 10;
/// Bytes of an entry's attributes in a page, its path and texts not counted.
const ATTR_LEN: usize = 256;

/// One chunk in its place.
#[derive(Clone, Debug)]
pub struct Place {
    /// Position in the file's list.
    pub index: u32,
    /// File offset of its first byte.
    pub start: u64,
    /// Which chunk.
    pub handle: ChunkHandle,
    /// The chunk.
    pub chunk: Chunk,
}

/// A page of a listing under construction.
#[derive(Debug)]
pub struct Listed {
    limit: usize,
    bytes: usize,
    entries: Vec<Named>,
    more: bool,
}

/// A page of the trash: entries, and where the next page starts.
pub type TrashPage = Listing;

impl Listed {
    fn new(limit: u32) -> Self {
        let limit = limit.clamp(1, PAGE_ENTRIES_MAX) as usize;
        Self { limit, bytes: 0, entries: vec![], more: false }
    }

    /// Takes one more; `false` when the page is full.
    fn push(&mut self, path: String, attr: Attr) -> bool {
        self.bytes += path.len() + attr.content_type.len() + ATTR_LEN;
        if self.entries.len() == self.limit || (self.bytes > PAGE_LEN_MAX && !self.entries.is_empty()) {
            self.more = true;
            return false;
        }
        self.entries.push(Named { path, attr });
        true
    }

    fn finish(self) -> Listing {
        let next = if self.more { self.entries.last().map(|entry| entry.path.clone()) } else { None };
        Listing { entries: self.entries, next }
    }
}

impl State {
    /// The last entry applied.
    #[must_use]
    pub fn applied(&self) -> Lsn {
        self.counters.applied
    }

    /// The cluster; zero before it is founded.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.counters.cluster
    }

    /// The master's term.
    #[must_use]
    pub fn term(&self) -> Term {
        self.counters.term
    }

    /// Handles from here on were never given out.
    #[must_use]
    pub fn next_chunk(&self) -> ChunkHandle {
        ChunkHandle(self.counters.next_chunk)
    }

    /// The id of the next server.
    #[must_use]
    pub fn next_server(&self) -> ServerId {
        ServerId(self.counters.next_server.max(1))
    }

    /// A server by its id.
    #[must_use]
    pub fn server(&self, server: ServerId) -> Option<&ServerRecord> {
        self.servers.get(&server)
    }

    /// All servers.
    pub fn servers(&self) -> impl Iterator<Item = (ServerId, &ServerRecord)> {
        self.servers.iter().map(|(server, record)| (*server, record))
    }

    /// A chunk by its handle.
    #[must_use]
    pub fn chunk(&self, handle: ChunkHandle) -> Option<&Chunk> {
        self.chunks.get(&handle)
    }

    /// Chunks that are not sealed.
    pub fn open_chunks(&self) -> impl Iterator<Item = (ChunkHandle, &Chunk)> {
        self.derived.open.iter().filter_map(|handle| Some((*handle, self.chunks.get(handle)?)))
    }

    /// Chunks above one handle, up to and with another.
    pub fn chunks_between(&self, after: ChunkHandle, upto: ChunkHandle) -> impl Iterator<Item = (ChunkHandle, &Chunk)> {
        let above = (std::ops::Bound::Excluded(after), std::ops::Bound::Included(upto));
        // A range that ends where it begins, both ends left out, is a panic for the table.
        let range = (after < upto).then(|| self.chunks.range(above));
        range.into_iter().flatten().map(|(handle, row)| (*handle, row))
    }

    /// Sealed chunks with fewer holders than wanted.
    pub fn degraded(&self) -> impl Iterator<Item = (ChunkHandle, &Chunk)> {
        self.derived.degraded.iter().filter_map(|handle| Some((*handle, self.chunks.get(handle)?)))
    }

    /// A tombstone by its chunk.
    #[must_use]
    pub fn tomb(&self, handle: ChunkHandle) -> Option<&Tomb> {
        self.tombs.get(&handle)
    }

    /// All tombstones.
    pub fn tombs(&self) -> impl Iterator<Item = (ChunkHandle, &Tomb)> {
        self.tombs.iter().map(|(handle, tomb)| (*handle, tomb))
    }

    /// What lies in the trash, oldest first.
    pub fn trashed(&self) -> impl Iterator<Item = (Lsn, &Trashed)> {
        self.trash.iter().map(|(lsn, trashed)| (*lsn, trashed))
    }

    /// Uploads that began before this time, unix milliseconds.
    pub fn uploads_before(&self, time_ms: u64) -> impl Iterator<Item = InodeId> {
        self.uploads.iter().filter(move |(_, upload)| upload.since_ms < time_ms).map(|(inode, _)| *inode)
    }

    /// Named files and directories, the root not counted.
    #[must_use]
    pub fn name_counts(&self) -> (u64, u64) {
        match self.inodes.get(&InodeId::ROOT).map(|root| &root.node) {
            Some(Node::Directory { files, directories, .. }) => (*files, *directories),
            _ => (0, 0),
        }
    }

    /// Chunks in all, those not sealed, and sealed ones with too few holders.
    #[must_use]
    pub fn chunk_counts(&self) -> (usize, usize, usize) {
        (self.chunks.len(), self.derived.open.len(), self.derived.degraded.len())
    }

    /// Whether a name leads to this inode, or it is an upload.
    #[must_use]
    pub fn reachable(&self, inode: InodeId) -> bool {
        let mut at = inode;
        while at != InodeId::ROOT {
            match self.inodes.get(&at) {
                Some(row) if row.parent != super::NOWHERE => at = row.parent,
                _ => return self.uploads.contains(&inode),
            }
        }
        true
    }

    /// What an inode is. It must exist. [`Attr::tail`] is left to who knows the servers.
    pub(super) fn attr(&self, inode: InodeId) -> Attr {
        let Some(row) = self.inodes.get(&inode) else { unreachable!("asked only for inodes that exist") };
        let mut attr = Attr {
            inode,
            is_dir: true,
            len: 0,
            tail: None,
            tail_len_hint: 0,
            chunks: 0,
            version: row.version,
            created_ms: row.created_ms,
            modified_ms: row.modified_ms,
            content_type: String::new(),
            sha256: None,
            replicas: 0,
        };
        if let Node::File { len, chunks, content_type, sha256, replicas } = &row.node {
            attr.is_dir = false;
            (attr.len, attr.chunks, attr.replicas, attr.sha256) = (*len, *chunks, *replicas, *sha256);
            attr.content_type.clone_from(content_type);
        }
        attr
    }

    /// What a path stands for.
    ///
    /// # Errors
    ///
    /// `NotFound`; `Conflict` when a file is in the way.
    pub fn stat(&self, path: &NamePath) -> Result<Attr, Fault> {
        match self.walk(path) {
            Found::Inode(inode) => Ok(self.attr(inode)),
            Found::Missing { .. } => Err(not_found(path)),
            Found::Blocked { by } => Err(not_a_directory(&by)),
        }
    }

    /// Whether an upload to this path can succeed as things are.
    ///
    /// # Errors
    ///
    /// `Conflict` when a directory has the name or a file is in the way.
    pub fn may_publish(&self, path: &NamePath) -> Result<(), Fault> {
        match self.walk(path) {
            Found::Inode(inode) if self.is_directory(inode) => Err(super::names::is_a_directory(path)),
            Found::Blocked { by } => Err(not_a_directory(&by)),
            _ => Ok(()),
        }
    }

    /// The last chunk of a file, when it takes appends or is being sealed for the first time.
    #[must_use]
    pub fn tail(&self, file: InodeId) -> Option<Place> {
        let last = self.chunk_count(file)?.checked_sub(1)?;
        self.place(file, last).filter(|place| !place.chunk.has_end())
    }

    /// Chunks of a file, the open one included; `None` when there is no such file.
    #[must_use]
    pub fn chunk_count(&self, file: InodeId) -> Option<u32> {
        match self.inodes.get(&file)?.node {
            Node::File { chunks, .. } => Some(chunks),
            Node::Directory { .. } => None,
        }
    }

    /// Version of an inode.
    #[must_use]
    pub fn version(&self, inode: InodeId) -> Option<Lsn> {
        self.inodes.get(&inode).map(|row| row.version)
    }

    /// A chunk of a file by its index.
    #[must_use]
    pub fn place(&self, file: InodeId, index: u32) -> Option<Place> {
        let Extent { chunk: handle, start } = *self.extents.get(&(file, index))?;
        Some(Place { index, start, handle, chunk: self.chunks.get(&handle)?.clone() })
    }

    /// Where a chunk is in its file.
    #[must_use]
    pub fn place_of(&self, handle: ChunkHandle) -> Option<Place> {
        let chunk = self.chunks.get(&handle)?;
        let mut extents = self.extents.range((chunk.file, 0)..=(chunk.file, u32::MAX));
        let ((_, index), extent) = extents.find(|(_, extent)| extent.chunk == handle)?;
        Some(Place { index: *index, start: extent.start, handle, chunk: chunk.clone() })
    }

    /// The index of the chunk at a position: the number of chunks when there is none.
    #[must_use]
    pub fn index_at(&self, file: InodeId, position: Position) -> u32 {
        let count = self.chunk_count(file).unwrap_or(0);
        match position {
            Position::Index(index) => index.min(count),
            Position::Tail => count.saturating_sub(1),
            Position::Offset(offset) => {
                // The last chunk that starts at or before the offset: no sealed chunk is empty.
                let (mut low, mut high) = (0, count);
                while low < high {
                    let middle = low + (high - low) / 2;
                    let starts = self.extents.get(&(file, middle)).map_or(u64::MAX, |extent| extent.start);
                    if starts <= offset { low = middle + 1 } else { high = middle }
                }
                let Some(index) = low.checked_sub(1) else { return count };
                let beyond = self
                    .place(file, index)
                    .is_none_or(|place| place.chunk.has_end() && offset >= place.start + u64::from(place.chunk.len()));
                if beyond { count } else { index }
            }
        }
    }

    /// One page of a directory, names in byte order, or of its whole tree, paths in byte order.
    /// Of a file: an empty page. `after` is a full path.
    ///
    /// # Errors
    ///
    /// `NotFound`; `Conflict` when a file is in the way.
    pub fn list(&self, path: &NamePath, after: &str, limit: u32, recursive: bool) -> Result<Listing, Fault> {
        let top = match self.walk(path) {
            Found::Inode(inode) => inode,
            Found::Missing { .. } => return Err(not_found(path)),
            Found::Blocked { by } => return Err(not_a_directory(&by)),
        };
        let mut page = Listed::new(limit);
        let prefix = if path.is_root() { "/".to_owned() } else { format!("{path}/") };
        // Only what comes after `after`: below this directory it is a relative path, else all or nothing.
        match after.strip_prefix(&prefix) {
            Some(rest) if recursive => self.list_tree(&mut page, top, prefix.clone(), rest),
            Some(rest) => self.list_names(&mut page, top, &prefix, rest),
            None if after < prefix.as_str() && recursive => self.list_tree(&mut page, top, prefix.clone(), ""),
            None if after < prefix.as_str() => self.list_names(&mut page, top, &prefix, ""),
            None => {}
        }
        Ok(page.finish())
    }

    /// One page of the trash, oldest first; `after` is [`Listing::next`] of the page before.
    ///
    /// # Errors
    ///
    /// `Invalid` for another `after`.
    pub fn list_trash(&self, after: &str, limit: u32) -> Result<TrashPage, Fault> {
        let after: Lsn = if after.is_empty() { Ok(0) } else { after.parse() }
            .map_err(|_| Fault::new(Kind::Invalid, format!("{after:?} is not where a page of the trash starts")))?;
        let mut page = Listed::new(limit);
        let mut last = after;
        for (lsn, trashed) in self.trash.range((Bound::Excluded(after), Bound::Unbounded)) {
            if trashed.purging || !self.inodes.contains(&trashed.inode) {
                continue;
            }
            let mut attr = self.attr(trashed.inode);
            attr.modified_ms = trashed.deleted_ms;
            if !page.push(trashed.path.clone(), attr) {
                break;
            }
            last = *lsn;
        }
        let more = page.more;
        let mut listing = page.finish();
        listing.next = more.then(|| last.to_string());
        Ok(listing)
    }

    fn names_after(&self, dir: InodeId, after: &str) -> impl Iterator<Item = (&str, InodeId)> {
        let from = (dir, after.to_owned());
        self.dirents
            .range((if after.is_empty() { Bound::Included(from) } else { Bound::Excluded(from) }, Bound::Unbounded))
            .take_while(move |((other, _), _)| *other == dir)
            .map(|((_, name), inode)| (name.as_str(), *inode))
    }

    fn list_names(&self, page: &mut Listed, dir: InodeId, prefix: &str, after: &str) {
        for (name, inode) in self.names_after(dir, after) {
            if !page.push(format!("{prefix}{name}"), self.attr(inode)) {
                return;
            }
        }
    }

    /// Depth first, but a directory's tree, whose paths begin with `name/`, comes after the siblings
    /// that sort before that: `a`, `a-b`, `a/c`. Trees put off so are a stack, smallest on top.
    fn list_tree(&self, page: &mut Listed, top: InodeId, prefix: String, after: &str) {
        let mut frames = vec![Frame::resume(self, top, prefix, after)];
        while let Some(frame) = frames.last_mut() {
            let next = self.names_after(frame.dir, &frame.after).next();
            let put_off = frame.put_off.last().is_some_and(|(name, _)| next.is_none_or(|(next, _)| **name < *next));
            if put_off {
                let Some((name, dir)) = frame.put_off.pop() else { return };
                let prefix = format!("{}{name}", frame.prefix);
                let after =
                    std::mem::take(&mut frame.resume).and_then(|rest| rest.strip_prefix(&name).map(str::to_owned));
                frames.push(Frame::resume(self, dir, prefix, &after.unwrap_or_default()));
            } else if let Some((name, inode)) = next {
                if !page.push(format!("{}{name}", frame.prefix), self.attr(inode)) {
                    return;
                }
                if self.is_directory(inode) {
                    frame.put_off.push((format!("{name}/"), inode));
                }
                frame.after = name.to_owned();
            } else {
                frames.pop();
            }
        }
    }
}

/// One directory on the way through a tree.
struct Frame {
    dir: InodeId,
    /// Its path, with a slash at the end.
    prefix: String,
    /// Names up to here are listed.
    after: String,
    /// Trees of directories that are listed themselves, by `name/`.
    put_off: Vec<(String, InodeId)>,
    /// The relative path after which the first of them goes on.
    resume: Option<String>,
}

impl Frame {
    /// Goes on after a relative path. Trees that were put off before it are those of directories whose
    /// names begin it, unless they sort before it as a whole.
    fn resume(state: &State, dir: InodeId, prefix: String, after: &str) -> Self {
        let first = after.split('/').next().unwrap_or_default();
        let begins = first.char_indices().map(|(at, char)| &first[..at + char.len_utf8()]);
        let put_off = begins.filter_map(|name| {
            let inode = *state.dirents.get(&(dir, name.to_owned()))?;
            let tree = format!("{name}/");
            let ahead = *tree > *after || after.starts_with(&tree);
            (state.is_directory(inode) && ahead).then_some((tree, inode))
        });
        let put_off = put_off.collect();
        // Siblings up to the whole of `after` are done: `a/b` comes after `a-b`, too.
        Self { dir, prefix, after: after.to_owned(), put_off, resume: Some(after.to_owned()) }
    }
}
