//! The blocks of a shard that are kept in memory: verified ones, bounded in bytes, not moved by scans.
//!
//! S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache eviction", SOSP
//! 2023, section 4): a new block enters a small queue, a tenth of the cache, and leaves it for the main
//! queue if it was read again while it was there, else for a *ghost*, where only its name is kept. The
//! main queue is a FIFO in which a block that was read goes round again. A block whose name is in the
//! ghost comes back into the main queue at once. Two differences: one hit in the small queue is enough
//! to stay (the paper counts more than one), and what is read as part of a scan (a large read, a
//! sequential stream) does not enter at all the first time, only its name does, in pieces of 64 KiB. So
//! a scan costs the cache nothing, and what is scanned twice within the ghost's memory is kept.
//!
//! The bytes are ordinary memory, not the runtime's: those buffers are registered with the kernel, and
//! a cache of them would multiply the memory that a server must be allowed to lock. What is kept and
//! what is handed out are copies, of 4 KiB in 0.1 µs. A name is made of a *generation*, never used
//! twice, and a block: what becomes of a chunk's slot afterwards cannot be mistaken for it.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use super::layout::{CHUNK_CAPACITY, PAGE};
use super::page::Page;

/// Blocks of a chunk.
const CHUNK_BLOCKS: u64 = (CHUNK_CAPACITY as usize / PAGE) as u64;

/// Blocks of a scan that have one name in the ghost.
const PIECE: u64 = 16;

/// Hits that count.
const HITS_MAX: u8 = 3;

/// No entry.
const NONE: u32 = u32::MAX;

/// A block by its chunk's generation and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Name(u64);

impl Name {
    pub(crate) fn new(generation: u64, block: u32) -> Self {
        Self(generation * CHUNK_BLOCKS * 2 + u64::from(block))
    }

    /// The name of the piece that the block is in; of no block.
    fn piece(self) -> Self {
        let (chunk, block) = (self.0 / CHUNK_BLOCKS, self.0 % CHUNK_BLOCKS);
        Self((chunk + 1) * CHUNK_BLOCKS + block / PIECE)
    }
}

/// How a block came to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Came {
    /// By itself.
    Alone,
    /// Among many, in order, in content that ends before block `end`.
    Scanned {
        /// See above.
        end: u32,
    },
}

/// Plain integers since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) evictions: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Queue {
    Small,
    Main,
}

struct Entry {
    name: Name,
    crc: u32,
    hits: u8,
    queue: Queue,
    /// Neighbours in the queue: the one that came before, and after.
    older: u32,
    newer: u32,
    bytes: Box<Page>,
}

/// Entries in the order in which they came.
#[derive(Clone, Copy)]
struct Fifo {
    oldest: u32,
    newest: u32,
    len: usize,
}

impl Default for Fifo {
    fn default() -> Self {
        Self { oldest: NONE, newest: NONE, len: 0 }
    }
}

/// The cache of one shard.
pub(crate) struct BlockCache {
    /// Blocks that fit.
    room: usize,
    entries: Vec<Entry>,
    by_name: HashMap<Name, u32, BuildHasherDefault<NameHasher>>,
    /// Places in `entries` whose blocks are gone.
    unused: Vec<u32>,
    small: Fifo,
    main: Fifo,
    ghost: Ghost,
    tally: Tally,
}

impl BlockCache {
    /// Holds at most `bytes` bytes of blocks; none of less than a block. What it needs beside the
    /// blocks is about 3 % of that.
    pub(crate) fn new(bytes: usize) -> Self {
        let room = (bytes / PAGE).min(NONE as usize - 1);
        Self {
            room,
            entries: Vec::new(),
            by_name: HashMap::default(),
            unused: Vec::new(),
            small: Fifo::default(),
            main: Fifo::default(),
            ghost: Ghost { names: HashMap::default(), order: VecDeque::new(), room, clock: 0 },
            tally: Tally::default(),
        }
    }

    /// Whether it can hold anything.
    pub(crate) fn is_off(&self) -> bool {
        self.room == 0
    }

    /// Bytes of blocks held.
    pub(crate) fn held(&self) -> usize {
        self.by_name.len() * PAGE
    }

    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    /// A read missed so many blocks.
    pub(crate) fn missed(&mut self, blocks: u32) {
        self.tally.misses += u64::from(blocks);
    }

    /// Whether a block is here; not a hit.
    pub(crate) fn has(&self, name: Name) -> bool {
        self.by_name.contains_key(&name)
    }

    /// The checksum of a block; not a hit.
    pub(crate) fn crc(&self, name: Name) -> Option<u32> {
        self.by_name.get(&name).map(|at| self.entries[*at as usize].crc)
    }

    /// A block and its checksum: a hit.
    pub(crate) fn get(&mut self, name: Name) -> Option<(&Page, u32)> {
        let at = *self.by_name.get(&name)?;
        let entry = &mut self.entries[at as usize];
        entry.hits = (entry.hits + 1).min(HITS_MAX);
        self.tally.hits += 1;
        Some((&entry.bytes, entry.crc))
    }

    /// Takes in verified blocks that follow each other, as far as they are worth it. Those that are here
    /// already are replaced.
    pub(crate) fn put(&mut self, generation: u64, first: u32, blocks: &[Page], crcs: &[u32], came: Came) {
        if self.room == 0 {
            return;
        }
        let mut wanted = (None, came == Came::Alone);
        for (block, (bytes, crc)) in (first..).zip(blocks.iter().zip(crcs)) {
            let name = Name::new(generation, block);
            if let Came::Scanned { end } = came {
                let piece = name.piece();
                if wanted.0 != Some(piece) {
                    wanted = (Some(piece), self.ghost.has(piece));
                }
                // Once the scan has passed it, so that its other blocks are not taken for a second pass.
                if u64::from(block) % PIECE == PIECE - 1 || block + 1 == end {
                    self.ghost.add(piece);
                }
            }
            if wanted.1 {
                self.put_one(name, bytes, *crc);
            }
        }
    }

    fn put_one(&mut self, name: Name, bytes: &Page, crc: u32) {
        if let Some(at) = self.by_name.get(&name) {
            let entry = &mut self.entries[*at as usize];
            entry.bytes.copy_from_slice(bytes);
            entry.crc = crc;
            return;
        }
        let queue = if self.ghost.take(name) { Queue::Main } else { Queue::Small };
        while self.by_name.len() >= self.room {
            self.evict();
        }
        let at = self.place(name, bytes, crc, queue);
        self.by_name.insert(name, at);
        self.push(at);
    }

    /// The block has changed or is gone.
    pub(crate) fn remove(&mut self, name: Name) {
        if let Some(at) = self.by_name.remove(&name) {
            self.unlink(at);
            self.unused.push(at);
        }
        self.ghost.take(name);
    }

    #[cfg(test)]
    pub(crate) fn spoil(&mut self, name: Name) {
        self.entries[self.by_name[&name] as usize].bytes[100] ^= 1;
    }

    fn place(&mut self, name: Name, bytes: &Page, crc: u32, queue: Queue) -> u32 {
        let (hits, older, newer) = (0, NONE, NONE);
        if let Some(at) = self.unused.pop() {
            let entry = &mut self.entries[at as usize];
            entry.bytes.copy_from_slice(bytes);
            (entry.name, entry.crc, entry.hits, entry.queue) = (name, crc, hits, queue);
            (entry.older, entry.newer) = (older, newer);
            return at;
        }
        let at = u32::try_from(self.entries.len()).unwrap_or(NONE);
        self.entries.push(Entry { name, crc, hits, queue, older, newer, bytes: Box::new(*bytes) });
        at
    }

    /// Makes room for one block, or moves one nearer to its end.
    fn evict(&mut self) {
        let from_small = self.small.len > 0 && (self.small.len * 10 >= self.room || self.main.len == 0);
        let at = if from_small { self.small.oldest } else { self.main.oldest };
        self.unlink(at);
        let entry = &mut self.entries[at as usize];
        match (entry.queue, entry.hits) {
            (Queue::Small, 1..) => {
                (entry.queue, entry.hits) = (Queue::Main, 0);
                self.push(at);
            }
            (Queue::Main, 1..) => {
                entry.hits -= 1;
                self.push(at);
            }
            (queue, 0) => {
                let name = entry.name;
                self.by_name.remove(&name);
                self.unused.push(at);
                self.tally.evictions += 1;
                if queue == Queue::Small {
                    self.ghost.add(name);
                }
            }
        }
    }

    fn fifo(&mut self, queue: Queue) -> &mut Fifo {
        match queue {
            Queue::Small => &mut self.small,
            Queue::Main => &mut self.main,
        }
    }

    fn push(&mut self, at: u32) {
        let fifo = self.fifo(self.entries[at as usize].queue);
        let before = std::mem::replace(&mut fifo.newest, at);
        fifo.len += 1;
        if before == NONE {
            fifo.oldest = at;
        } else {
            self.entries[before as usize].newer = at;
        }
        let entry = &mut self.entries[at as usize];
        (entry.older, entry.newer) = (before, NONE);
    }

    fn unlink(&mut self, at: u32) {
        let Entry { older, newer, queue, .. } = self.entries[at as usize];
        if older != NONE {
            self.entries[older as usize].newer = newer;
        }
        if newer != NONE {
            self.entries[newer as usize].older = older;
        }
        let fifo = self.fifo(queue);
        fifo.len -= 1;
        if fifo.oldest == at {
            fifo.oldest = newer;
        }
        if fifo.newest == at {
            fifo.newest = older;
        }
    }
}

/// Names of blocks that were here, the last ones only.
struct Ghost {
    names: HashMap<Name, u64, BuildHasherDefault<NameHasher>>,
    order: VecDeque<(Name, u64)>,
    room: usize,
    clock: u64,
}

impl Ghost {
    fn has(&self, name: Name) -> bool {
        self.names.contains_key(&name)
    }

    fn add(&mut self, name: Name) {
        self.clock += 1;
        self.names.insert(name, self.clock);
        self.order.push_back((name, self.clock));
        while self.order.len() > self.room {
            let Some((oldest, since)) = self.order.pop_front() else { return };
            if self.names.get(&oldest) == Some(&since) {
                self.names.remove(&oldest);
            }
        }
    }

    fn take(&mut self, name: Name) -> bool {
        self.names.remove(&name).is_some()
    }
}

/// Spreads names over a table: they are made here, nobody outside chooses them.
#[derive(Default)]
pub(crate) struct NameHasher(u64);

impl Hasher for NameHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        let spread = (self.0 ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = spread ^ spread >> 32;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
#[path = "blocks_tests.rs"]
mod tests;
