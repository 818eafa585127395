//! A cluster in memory with the promises of [`client::Client`], and switches to make it fail.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use client::{Appended, Error, Stats, UploadOptions};
use tokio::sync::Semaphore;
use wire::heartbeat::{ClusterOk, Liveness, ServerStatus, Space};
use wire::locate::{Location, Locations, Position};
use wire::member::{ChunkState, Member, ReplicaState};
use wire::namespace::{Attr, Entry, Listing};
use wire::seal::DigestOk;
use wire::upload::Precondition;
use wire::{ChunkHandle, Epoch, InodeId, Kind, NamePath, ServerId};

use crate::files::{Answer, Files, Read, Upload};

/// Unix milliseconds of every change: 1994-11-06 08:49:37.
pub(super) const MODIFIED_MS: u64 = 784_111_777_000;

#[derive(Clone, Default)]
pub(super) struct Fake(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    nodes: BTreeMap<String, Node>,
    trash: BTreeMap<String, Vec<Node>>,
    inodes: u64,
    /// The next call about names fails like this.
    failure: Option<Error>,
    /// Reads fail after this many bytes of their range.
    reads_break_at: Option<u64>,
    /// Uploads take bytes only as permits are added; each write uses one.
    gate: Option<Arc<Semaphore>>,
    largest_piece: usize,
    aborted: usize,
    listed: usize,
    safe_mode: bool,
    master_down: bool,
}

#[derive(Clone)]
struct Node {
    attr: Attr,
    data: Vec<u8>,
}

impl Fake {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(super) fn put(&self, path: &str, data: &[u8]) {
        self.state().make(path, false).data = data.to_vec();
    }

    pub(super) fn data(&self, path: &str) -> Option<Vec<u8>> {
        let state = self.state();
        state.nodes.get(path).filter(|node| !node.attr.is_dir).map(|node| node.data.clone())
    }

    pub(super) fn is_dir(&self, path: &str) -> bool {
        self.state().nodes.get(path).is_some_and(|node| node.attr.is_dir)
    }

    /// Every path there is.
    pub(super) fn paths(&self) -> Vec<String> {
        self.state().nodes.keys().cloned().collect()
    }

    pub(super) fn fail_next(&self, kind: Kind, text: &str) {
        self.state().failure = Some(Error::new(kind, text));
    }

    pub(super) fn break_reads_at(&self, bytes: u64) {
        self.state().reads_break_at = Some(bytes);
    }

    pub(super) fn gate_uploads(&self) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        self.state().gate = Some(Arc::clone(&gate));
        gate
    }

    pub(super) fn set_safe_mode(&self, on: bool) {
        self.state().safe_mode = on;
    }

    pub(super) fn set_master_down(&self, on: bool) {
        self.state().master_down = on;
    }

    pub(super) fn aborted(&self) -> usize {
        self.state().aborted
    }

    pub(super) fn listed(&self) -> usize {
        self.state().listed
    }

    pub(super) fn largest_piece(&self) -> usize {
        self.state().largest_piece
    }
}

impl State {
    /// Makes a node and the directories above it.
    fn make(&mut self, path: &str, is_dir: bool) -> &mut Node {
        for (at, _) in path.match_indices('/').skip(1) {
            self.node(&path[..at], true);
        }
        self.node(path, is_dir)
    }

    fn node(&mut self, path: &str, is_dir: bool) -> &mut Node {
        let inodes = &mut self.inodes;
        self.nodes.entry(path.to_owned()).or_insert_with(|| {
            *inodes += 1;
            Node { attr: blank(*inodes, is_dir), data: Vec::new() }
        })
    }

    fn above_is_no_file(&self, path: &NamePath) -> Answer<()> {
        let text = path.as_str();
        let above = text.match_indices('/').skip(1).map(|(at, _)| &text[..at]);
        for parent in above {
            if self.nodes.get(parent).is_some_and(|node| !node.attr.is_dir) {
                return Err(Error::new(Kind::Conflict, format!("{parent} is a file")));
            }
        }
        Ok(())
    }

    fn find(&mut self, path: &NamePath) -> Answer<&mut Node> {
        let missing = || Error::new(Kind::NotFound, format!("no {path}"));
        if path.is_root() {
            return Ok(self.node("/", true));
        }
        self.nodes.get_mut(path.as_str()).ok_or_else(missing)
    }

    fn checked(&mut self) -> Answer<()> {
        self.failure.take().map_or(Ok(()), Err)
    }
}

fn blank(inode: u64, is_dir: bool) -> Attr {
    Attr {
        inode: InodeId(inode),
        is_dir,
        len: 0,
        tail: None,
        tail_len_hint: 0,
        chunks: 0,
        version: 1,
        created_ms: MODIFIED_MS,
        modified_ms: MODIFIED_MS,
        content_type: String::new(),
        sha256: None,
        replicas: 3,
    }
}

fn shown(node: &Node) -> Attr {
    let len = node.data.len() as u64;
    let chunks = u32::try_from(len.div_ceil(64 << 20)).unwrap();
    Attr { len, chunks, ..node.attr.clone() }
}

fn member(server: u32) -> Member {
    Member { server: ServerId(server), address: format!("chunkserver{server}:808{server}"), shards: 2 }
}

fn location(file: InodeId, chunk: u64, index: u32, len: u32) -> Location {
    Location {
        file,
        index,
        start: u64::from(index) << 26,
        chunk: ChunkHandle(chunk),
        state: ChunkState::Sealed,
        epoch: Epoch(7),
        len,
        members: vec![member(1), member(2), member(3)],
        expire_ms: 60_000,
    }
}

impl Files for Fake {
    type Upload = FakeUpload;
    type Read = FakeRead;

    fn stats(&self) -> Stats {
        Stats { retries: 42, ..Stats::default() }
    }

    async fn stat(&self, path: &NamePath) -> Answer<Attr> {
        let mut state = self.state();
        state.checked()?;
        Ok(shown(state.find(path)?))
    }

    async fn mkdir(&self, path: &NamePath) -> Answer<Attr> {
        let mut state = self.state();
        state.checked()?;
        state.above_is_no_file(path)?;
        let node = state.make(path.as_str(), true);
        if !node.attr.is_dir {
            return Err(Error::new(Kind::Conflict, format!("{path} is a file")));
        }
        Ok(shown(node))
    }

    async fn create(&self, path: &NamePath, exclusive: bool) -> Answer<Attr> {
        let mut state = self.state();
        state.checked()?;
        state.above_is_no_file(path)?;
        if exclusive && state.nodes.contains_key(path.as_str()) {
            return Err(Error::new(Kind::Exists, "taken"));
        }
        let node = state.make(path.as_str(), false);
        if node.attr.is_dir {
            return Err(Error::new(Kind::Conflict, format!("{path} is a directory, not a file")));
        }
        Ok(shown(node))
    }

    async fn delete(&self, path: &NamePath, recursive: bool) -> Answer<Attr> {
        let mut state = self.state();
        state.checked()?;
        let attr = shown(state.find(path)?);
        let below = format!("{path}/");
        if !recursive && state.nodes.keys().any(|name| name.starts_with(&below)) {
            return Err(Error::new(Kind::Conflict, format!("{path} is not empty")));
        }
        let node = state.nodes.remove(path.as_str()).unwrap();
        state.trash.entry(path.to_string()).or_default().push(node);
        state.nodes.retain(|name, _| !name.starts_with(&below));
        Ok(attr)
    }

    async fn rename(&self, from: &NamePath, to: &NamePath, replace: bool) -> Answer<Attr> {
        let mut state = self.state();
        state.checked()?;
        state.find(from)?;
        if state.nodes.contains_key(to.as_str()) && !replace {
            return Err(Error::new(Kind::Exists, "taken"));
        }
        let below = format!("{from}/");
        let moved: Vec<String> =
            state.nodes.keys().filter(|name| **name == from.as_str() || name.starts_with(&below)).cloned().collect();
        for name in moved {
            let node = state.nodes.remove(&name).unwrap();
            let new = format!("{to}{}", &name[from.as_str().len()..]);
            let is_dir = node.attr.is_dir;
            *state.make(&new, is_dir) = node;
        }
        Ok(shown(state.find(to)?))
    }

    async fn undelete(&self, path: &NamePath) -> Answer<Attr> {
        let mut state = self.state();
        state.checked()?;
        if state.nodes.contains_key(path.as_str()) {
            return Err(Error::new(Kind::Exists, "taken"));
        }
        let node = state.trash.get_mut(path.as_str()).and_then(Vec::pop);
        let node = node.ok_or_else(|| Error::new(Kind::NotFound, "not in the trash"))?;
        let attr = shown(&node);
        state.nodes.insert(path.to_string(), node);
        Ok(attr)
    }

    async fn list(&self, path: &NamePath, after: &str, limit: u32, recursive: bool) -> Answer<Listing> {
        let mut state = self.state();
        state.checked()?;
        state.listed += 1;
        if !state.find(path)?.attr.is_dir {
            return Ok(Listing { entries: Vec::new(), next: None });
        }
        let prefix = if path.is_root() { "/".to_owned() } else { format!("{path}/") };
        let below = state.nodes.iter().filter(|(name, _)| name.starts_with(&prefix) && **name != prefix);
        let mut wanted = below.filter(|(name, _)| recursive || !name[prefix.len()..].contains('/'));
        let mut entries = Vec::new();
        let mut next = None;
        for (name, node) in wanted.by_ref().filter(|(name, _)| after.is_empty() || name.as_str() > after) {
            if entries.len() == limit as usize {
                next = entries.last().map(|entry: &Entry| entry.path.clone());
                break;
            }
            entries.push(Entry { path: name.clone(), attr: shown(node) });
        }
        Ok(Listing { entries, next })
    }

    async fn locations(&self, file: InodeId, at: Position, count: u32) -> Answer<Locations> {
        let state = self.state();
        let node = state.nodes.values().find(|node| node.attr.inode == file).unwrap();
        let attr = shown(node);
        let Position::Index(first) = at else { panic!("the gateway asks by index") };
        let indices = (first..attr.chunks).take(count as usize);
        let items = indices.map(|index| location(file, file.0 * 1000 + u64::from(index), index, 10)).collect();
        Ok(Locations { items, version: attr.version, chunk_count: attr.chunks })
    }

    async fn locate_chunk(&self, chunk: ChunkHandle) -> Answer<Locations> {
        if chunk.0 > 1 << 40 {
            return Err(Error::new(Kind::NotFound, "no such chunk"));
        }
        Ok(Locations { items: vec![location(InodeId(1), chunk.0, 0, 10)], version: 1, chunk_count: 1 })
    }

    async fn digest(&self, member: &Member, _: ChunkHandle) -> Answer<DigestOk> {
        if member.server.0 == 1 {
            return Err(Error::new(Kind::Unavailable, "down"));
        }
        Ok(DigestOk { len: 10, digest: [0xab; 16], state: ReplicaState::Sealed, epoch: Epoch(7) })
    }

    async fn cluster(&self) -> Answer<ClusterOk> {
        let state = self.state();
        if state.master_down {
            return Err(Error::new(Kind::Unavailable, "connect 10.0.0.1:9090: refused"));
        }
        let server = |server, liveness| ServerStatus {
            server: ServerId(server),
            address: member(server).address,
            admin: String::new(),
            zone: String::new(),
            shards: 2,
            liveness,
            silent_ms: 5,
            space: Space { total: 100, free: 60, used: 40 },
            chunks: 4,
            version: "0.1.0".into(),
        };
        Ok(ClusterOk {
            cluster: wire::ClusterId([1; 16]),
            term: wire::Term(1),
            admin: String::new(),
            safe_mode: state.safe_mode,
            uptime_ms: 61_000,
            servers: vec![server(1, Liveness::Alive), server(2, Liveness::Dead)],
            files: 5,
            directories: 2,
            chunks: 9,
            open_chunks: 1,
            degraded_chunks: 3,
            replicas: 3,
            version: "0.1.0".into(),
        })
    }

    async fn upload(&self, path: &NamePath, options: UploadOptions) -> Answer<FakeUpload> {
        let mut state = self.state();
        state.checked()?;
        state.above_is_no_file(path)?;
        let gate = state.gate.clone();
        Ok(FakeUpload { fake: self.clone(), path: path.clone(), options, data: Vec::new(), gate, published: false })
    }

    fn read(&self, attr: &Attr, range: Range<u64>) -> FakeRead {
        let state = self.state();
        let node = state.nodes.values().find(|node| node.attr.inode == attr.inode);
        let data = node.map(|node| Bytes::copy_from_slice(&node.data)).unwrap_or_default();
        let slice = data.slice(usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap());
        FakeRead { left: slice, given: 0, break_at: state.reads_break_at }
    }

    async fn append(&self, path: &NamePath, data: Bytes) -> Answer<Appended> {
        let mut state = self.state();
        state.checked()?;
        let node = state.find(path)?;
        if node.attr.is_dir {
            return Err(Error::new(Kind::Conflict, "a directory"));
        }
        let offset = node.data.len() as u64;
        node.data.extend_from_slice(&data);
        Ok(Appended { offset, len: u32::try_from(data.len()).unwrap(), replicas: 3 })
    }

    async fn write_at(&self, path: &NamePath, offset: u64, data: Bytes) -> Answer<u64> {
        let mut state = self.state();
        state.checked()?;
        state.largest_piece = state.largest_piece.max(data.len());
        let node = state.find(path)?;
        let start = usize::try_from(offset).unwrap();
        assert!(start <= node.data.len(), "an offset at most the file's length");
        let end = start + data.len();
        node.data.resize(node.data.len().max(end), 0);
        node.data[start..end].copy_from_slice(&data);
        node.attr.version += 1;
        Ok(data.len() as u64)
    }
}

pub(super) struct FakeUpload {
    fake: Fake,
    path: NamePath,
    options: UploadOptions,
    data: Vec<u8>,
    gate: Option<Arc<Semaphore>>,
    published: bool,
}

impl Upload for FakeUpload {
    async fn write(&mut self, data: Bytes) -> Answer<()> {
        if let Some(gate) = &self.gate {
            gate.acquire().await.unwrap().forget();
        }
        let mut state = self.fake.state();
        state.largest_piece = state.largest_piece.max(data.len());
        drop(state);
        self.data.extend_from_slice(&data);
        Ok(())
    }

    async fn finish(mut self) -> Answer<Attr> {
        let mut state = self.fake.state();
        state.checked()?;
        let now = state.nodes.get(self.path.as_str()).map(|node| node.attr.clone());
        let holds = match self.options.precondition {
            Precondition::None => true,
            Precondition::Absent => now.is_none(),
            Precondition::Present => now.is_some(),
            Precondition::Match { inode, version } => {
                now.is_some_and(|attr| attr.inode == inode && attr.version == version)
            }
        };
        if !holds {
            return Err(Error::new(Kind::Precondition, "changed meanwhile"));
        }
        state.nodes.remove(self.path.as_str());
        let node = state.make(self.path.as_str(), false);
        node.data = std::mem::take(&mut self.data);
        node.attr.content_type = std::mem::take(&mut self.options.content_type);
        if self.options.sha256 {
            use sha2::Digest;
            node.attr.sha256 = Some(sha2::Sha256::digest(&node.data).into());
        }
        let attr = shown(node);
        drop(state);
        self.published = true;
        Ok(attr)
    }

    async fn abort(self) {}
}

impl Drop for FakeUpload {
    fn drop(&mut self) {
        if !self.published {
            self.fake.state().aborted += 1;
        }
    }
}

/// Gives 64 KiB at a time.
pub(super) struct FakeRead {
    left: Bytes,
    given: u64,
    break_at: Option<u64>,
}

impl Read for FakeRead {
    async fn next(&mut self) -> Option<Answer<Bytes>> {
        if self.break_at.is_some_and(|at| self.given >= at) {
            return Some(Err(Error::new(Kind::Corrupt, "chunkserver1:8081: block 7 does not match")));
        }
        if self.left.is_empty() {
            return None;
        }
        let piece = self.left.split_to(self.left.len().min(64 << 10));
        self.given += piece.len() as u64;
        Some(Ok(piece))
    }
}
