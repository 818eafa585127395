//! What reads of one shard share: blocks in memory, reads in flight, read-ahead, bad blocks.
//!
//! Everything here is under the generation of a chunk, a number that is never used again: when the
//! chunk goes, or is another one, its generation ends, and whatever still arrives under it is thrown
//! away. When blocks of a chunk change, the change is numbered, and a read of them that began before is
//! not kept. So no older bytes can come back, whatever was in flight.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::ops::Range;
use std::rc::{Rc, Weak};

use wire::ChunkHandle;

use super::ahead::{Limits, Plan, Streams};
use super::blocks::{BlockCache, Came, Name, NameHasher};
use super::event::Event;
use super::layout::{BLOCK, PAGE};
use super::page::Page;
use super::types::{BadBlock, Counters, ReadConfig};
use crate::runtime::Runtime;

/// Windows of the largest size that a shard holds at most, on their way or unread.
const WINDOWS: u32 = 8;

/// Largest window, blocks: one buffer.
const WINDOW_MAX: u32 = 512;

/// Bad blocks that are remembered.
const BAD_MAX: usize = 1024;

/// Cached blocks between two that are not, that are read again rather than read around.
const BRIDGE: u32 = 16;

/// Changes of a chunk whose places are remembered: a read that lasts longer than that is not kept.
const CHANGES_MAX: usize = 64;

/// A read of so many blocks counts as a scan.
pub(crate) const SCAN: u32 = 16;

impl ReadConfig {
    /// Bytes of the runtime's buffers that read-ahead may hold beside what callers hold.
    #[must_use]
    pub fn buffers(&self) -> usize {
        (self.window() * WINDOWS * BLOCK) as usize
    }

    /// Blocks of one window.
    fn window(&self) -> u32 {
        (self.ahead_max / BLOCK).min(WINDOW_MAX)
    }
}

/// Blocks that were read and verified.
pub(crate) struct Landed<R: Runtime> {
    pub(crate) buf: R::Buf,
    pub(crate) crcs: Rc<[u32]>,
}

impl<R: Runtime> Clone for Landed<R> {
    fn clone(&self) -> Self {
        Self { buf: self.buf.clone(), crcs: Rc::clone(&self.crcs) }
    }
}

/// One read of the device, on its way or, when it was read ahead, landed and not used yet.
pub(crate) struct Flight<R: Runtime> {
    pub(crate) blocks: Range<u32>,
    ahead: Option<AheadGuard>,
    landed: RefCell<Option<Landed<R>>>,
    done: Event,
    /// It brings nothing.
    given_up: Cell<bool>,
}

impl<R: Runtime> Flight<R> {
    fn new(blocks: Range<u32>, ahead: Option<AheadGuard>) -> Rc<Self> {
        let (landed, done, given_up) = Default::default();
        Rc::new(Self { blocks, ahead, landed, done, given_up })
    }

    /// What it has brought; `None` when it failed, or what it reads has changed since.
    pub(crate) async fn landed(&self) -> Option<Landed<R>> {
        // An event without an error; what was brought says the rest.
        let _ = self.done.wait().await;
        self.landed.borrow().clone()
    }
}

/// Who leads a flight: when it is given up, those who wait for it are told.
pub(crate) struct Lead<R: Runtime> {
    pub(crate) flight: Rc<Flight<R>>,
    pub(crate) mark: Mark,
}

impl<R: Runtime> Drop for Lead<R> {
    fn drop(&mut self) {
        self.flight.given_up.set(self.flight.landed.borrow().is_none());
        self.flight.done.set(Ok(()));
    }
}

/// What read-ahead of a shard holds and has done.
#[derive(Default)]
struct AheadTally {
    held: Cell<u32>,
    used: Cell<u64>,
    wasted: Cell<u64>,
}

/// Blocks read ahead, counted while they are held.
struct AheadGuard {
    tally: Rc<AheadTally>,
    blocks: u32,
    /// Bit per block: somebody has read it.
    used: Cell<[u64; (WINDOW_MAX / 64) as usize]>,
}

impl AheadGuard {
    fn unused(&self) -> u32 {
        self.blocks - self.used.get().iter().map(|bits| bits.count_ones()).sum::<u32>()
    }

    fn uses(&self, range: Range<u32>) {
        let mut used = self.used.get();
        let before = self.unused();
        range.for_each(|at| used[(at / 64) as usize] |= 1 << (at % 64));
        self.used.set(used);
        self.tally.used.set(self.tally.used.get() + u64::from(before - self.unused()));
    }
}

impl Drop for AheadGuard {
    fn drop(&mut self) {
        self.tally.held.set(self.tally.held.get() - self.blocks);
        self.tally.wasted.set(self.tally.wasted.get() + u64::from(self.unused()));
    }
}

/// Where a chunk stood when a read of it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) chunk: ChunkHandle,
    generation: u64,
    changes: u64,
}

/// Where blocks come from.
pub(crate) enum Piece<R: Runtime> {
    /// From memory.
    Cached(Range<u32>),
    /// From a read that is on its way or has landed.
    Joined(Rc<Flight<R>>, Range<u32>),
    /// From the device.
    Device(Range<u32>),
}

impl<R: Runtime> Piece<R> {
    pub(crate) fn blocks(&self) -> Range<u32> {
        match self {
            Self::Cached(blocks) | Self::Joined(_, blocks) | Self::Device(blocks) => blocks.clone(),
        }
    }
}

/// What reads know of a chunk.
struct Lines<R: Runtime> {
    generation: u64,
    changes: u64,
    /// Blocks of the last changes.
    recent: VecDeque<Range<u32>>,
    flights: Vec<Rc<Flight<R>>>,
    streams: Streams,
}

/// What reads of one shard share.
pub(crate) struct Reads<R: Runtime> {
    window: u32,
    cache: BlockCache,
    chunks: HashMap<ChunkHandle, Lines<R>, BuildHasherDefault<NameHasher>>,
    generations: u64,
    ahead: Rc<AheadTally>,
    /// Windows, oldest first.
    windows: VecDeque<(Mark, Weak<Flight<R>>)>,
    ahead_blocks: u64,
    joined: u64,
    bad: BTreeSet<(ChunkHandle, u32)>,
}

impl<R: Runtime> Reads<R> {
    pub(crate) fn new(config: ReadConfig) -> Self {
        Self {
            window: config.window(),
            cache: BlockCache::new(config.cache_bytes),
            chunks: HashMap::default(),
            generations: 0,
            ahead: Rc::default(),
            windows: VecDeque::new(),
            ahead_blocks: 0,
            joined: 0,
            bad: BTreeSet::new(),
        }
    }

    /// Adds what is counted here.
    pub(crate) fn count(&self, counters: &mut Counters) {
        let cache = self.cache.tally();
        counters.cache_hits = cache.hits;
        counters.cache_misses = cache.misses;
        counters.cache_evictions = cache.evictions;
        counters.cache_bytes = self.cache.held() as u64;
        counters.reads_joined = self.joined;
        counters.ahead_blocks = self.ahead_blocks;
        counters.ahead_used = self.ahead.used.get();
        counters.ahead_wasted = self.ahead.wasted.get();
        counters.ahead_bytes = u64::from(self.ahead.held.get() * BLOCK);
    }

    /// The blocks changed: what is in memory or on its way is of before. To be called in the step in
    /// which the answer to a read changes; once too often does no harm.
    pub(crate) fn changed(&mut self, chunk: ChunkHandle, blocks: Range<u32>) {
        let Some(lines) = self.chunks.get_mut(&chunk) else { return };
        lines.changes += 1;
        lines.recent.push_back(blocks.clone());
        if lines.recent.len() > CHANGES_MAX {
            lines.recent.pop_front();
        }
        lines.flights.retain(|flight| !overlap(&flight.blocks, &blocks));
        for block in blocks {
            self.cache.remove(Name::new(lines.generation, block));
        }
    }

    /// The blocks changed for good, to something that can be read: nothing that was bad of them is left.
    pub(crate) fn renewed(&mut self, chunk: ChunkHandle, blocks: Range<u32>) {
        if !self.bad.is_empty() {
            self.bad.retain(|(of, block)| *of != chunk || !blocks.contains(block));
        }
        self.changed(chunk, blocks);
    }

    /// The chunk is gone, or another one has its handle. Read-ahead of it is given up.
    pub(crate) fn forget(&mut self, chunk: ChunkHandle) {
        // Its blocks in memory have names that nobody will ask for again.
        self.chunks.remove(&chunk);
        self.bad.retain(|(of, _)| *of != chunk);
    }

    /// Where the chunk stands.
    pub(crate) fn mark(&mut self, chunk: ChunkHandle) -> Mark {
        let lines = self.lines(chunk);
        Mark { chunk, generation: lines.generation, changes: lines.changes }
    }

    /// Whether the chunk is still the one that it was.
    pub(crate) fn is_same(&self, mark: Mark) -> bool {
        self.of(mark).is_some()
    }

    /// Whether it is, and none of the blocks has changed since.
    pub(crate) fn is_current(&self, mark: Mark, blocks: &Range<u32>) -> bool {
        let Some(lines) = self.of(mark) else { return false };
        let since = usize::try_from(lines.changes - mark.changes).unwrap_or(usize::MAX);
        // What is not remembered may have been anything.
        since <= lines.recent.len() && !lines.recent.iter().rev().take(since).any(|changed| overlap(changed, blocks))
    }

    /// What is known of the chunk, if it is still the one that it was.
    fn of(&self, mark: Mark) -> Option<&Lines<R>> {
        self.chunks.get(&mark.chunk).filter(|lines| lines.generation == mark.generation)
    }

    fn lines(&mut self, chunk: ChunkHandle) -> &mut Lines<R> {
        let generations = &mut self.generations;
        self.chunks.entry(chunk).or_insert_with(|| {
            *generations += 1;
            let generation = *generations;
            let (changes, recent, flights, streams) = Default::default();
            Lines { generation, changes, recent, flights, streams }
        })
    }

    /// Whether all of the blocks are in memory.
    pub(crate) fn has_all(&self, mark: Mark, mut blocks: Range<u32>) -> bool {
        let Some(lines) = self.of(mark).filter(|_| !self.cache.is_off()) else { return false };
        blocks.all(|block| self.cache.has(Name::new(lines.generation, block)))
    }

    /// The checksum of a block in memory; not a hit.
    pub(crate) fn crc(&self, mark: Mark, block: u32) -> Option<u32> {
        self.cache.crc(Name::new(self.of(mark)?.generation, block))
    }

    /// Copies blocks from memory, each verified against what it should be. False when one is not here, or
    /// is not what it should be and now gone.
    pub(crate) fn copy(&mut self, mark: Mark, first: u32, into: &mut [Page], crcs: &[u32]) -> bool {
        let Some(generation) = self.of(mark).map(|lines| lines.generation) else { return false };
        let mut is_sound = true;
        for ((block, into), crc) in (first..).zip(into).zip(crcs) {
            let name = Name::new(generation, block);
            let Some((bytes, own)) = self.cache.get(name) else { return false };
            into.copy_from_slice(bytes);
            if own != *crc || crc32c::crc32c(into) != *crc {
                if self.is_current(mark, &(block..block + 1)) {
                    tracing::warn!(chunk = %mark.chunk, block, "block in memory is not the chunk's any more");
                }
                self.cache.remove(name);
                is_sound = false;
            }
        }
        is_sound
    }

    /// Where blocks of a chunk come from. Nothing is counted or begun yet.
    pub(crate) fn pieces(&mut self, chunk: ChunkHandle, blocks: Range<u32>) -> Vec<Piece<R>> {
        let Some(lines) = self.chunks.get_mut(&chunk) else { return vec![Piece::Device(blocks)] };
        lines.flights.retain(|flight| !flight.given_up.get());
        let flights: Vec<_> = lines.flights.iter().filter(|flight| overlap(&flight.blocks, &blocks)).collect();
        let mut pieces: Vec<Piece<R>> = Vec::new();
        for block in blocks {
            let flight = flights.iter().find(|flight| flight.blocks.contains(&block));
            let is_cached =
                flight.is_none() && !self.cache.is_off() && self.cache.has(Name::new(lines.generation, block));
            match (pieces.last_mut(), flight) {
                (Some(Piece::Joined(last, blocks)), Some(flight)) if Rc::ptr_eq(last, flight) => blocks.end += 1,
                (Some(Piece::Cached(blocks)), None) if is_cached => blocks.end += 1,
                (Some(Piece::Device(blocks)), None) if !is_cached => blocks.end += 1,
                (_, Some(flight)) => pieces.push(Piece::Joined(Rc::clone(flight), block..block + 1)),
                (_, None) if is_cached => pieces.push(Piece::Cached(block..block + 1)),
                (_, None) => pieces.push(Piece::Device(block..block + 1)),
            }
        }
        bridged(pieces)
    }

    /// Begins a read of the device that others may join.
    pub(crate) fn begin(&mut self, mark: Mark, blocks: Range<u32>) -> Lead<R> {
        self.cache.missed(blocks.end - blocks.start);
        let flight = Flight::new(blocks, None);
        self.lines(mark.chunk).flights.push(Rc::clone(&flight));
        Lead { flight, mark }
    }

    /// What a read brought, for who joined it and for the cache. `None`: it failed.
    pub(crate) fn land(&mut self, lead: Lead<R>, landed: Option<(&R::Buf, &[u32])>, came: Came) {
        let flight = &lead.flight;
        let is_current = self.is_current(lead.mark, &flight.blocks);
        let keep = flight.ahead.is_some() && landed.is_some() && is_current;
        if let Some(lines) = self.chunks.get_mut(&lead.mark.chunk).filter(|_| !keep) {
            lines.flights.retain(|other| !Rc::ptr_eq(other, flight));
        }
        let Some((buf, crcs)) = landed else { return };
        if flight.ahead.is_some() {
            self.ahead_blocks += u64::from(flight.blocks.end - flight.blocks.start);
        } else if is_current {
            let pages = buf.as_ref().as_chunks::<PAGE>().0;
            self.cache.put(lead.mark.generation, flight.blocks.start, pages, crcs, came);
        }
        // Nobody else has it when it is not in the table any more. Who joined before a change began
        // before it too.
        if Rc::strong_count(flight) > 1 {
            *flight.landed.borrow_mut() = Some(Landed { buf: buf.clone(), crcs: crcs.into() });
        }
    }

    /// Blocks that somebody else read are used.
    pub(crate) fn joined(
        &mut self,
        mark: Mark,
        flight: &Rc<Flight<R>>,
        blocks: Range<u32>,
        landed: &Landed<R>,
        came: Came,
    ) {
        self.joined += 1;
        let Some(ahead) = &flight.ahead else { return };
        let (from, to) = (blocks.start - flight.blocks.start, blocks.end - flight.blocks.start);
        ahead.uses(from..to);
        if !self.is_current(mark, &blocks) {
            return;
        }
        let pages = &landed.buf.as_ref().as_chunks::<PAGE>().0[from as usize..to as usize];
        let crcs = &landed.crcs[from as usize..to as usize];
        self.cache.put(mark.generation, blocks.start, pages, crcs, came);
        if ahead.unused() == 0 {
            self.lines(mark.chunk).flights.retain(|other| !Rc::ptr_eq(other, flight));
        }
    }

    /// Somebody reads `blocks` of content that ends before block `end`; gives whether that is a scan,
    /// and a window to read ahead. `has_room`: whether the pool has so many bytes to spare.
    pub(crate) fn follow(
        &mut self,
        mark: Mark,
        blocks: Range<u32>,
        end: u32,
        has_room: impl Fn(usize) -> bool,
    ) -> (bool, Option<Lead<R>>) {
        if self.window == 0 {
            return (false, None);
        }
        let left = (self.window * WINDOWS).saturating_sub(self.ahead.held.get());
        let room = if has_room((self.window * BLOCK) as usize) { left } else { 0 };
        let limits = Limits { window: self.window, end, room };
        let Plan { is_scan, ahead, is_starved } = self.lines(mark.chunk).streams.read(blocks, limits);
        if is_starved {
            // For the next window: what was read ahead longest ago goes, used or not.
            self.drop_oldest_window();
        }
        let ahead = self.absent(mark, ahead);
        if ahead.is_empty() {
            return (is_scan, None);
        }
        let count = ahead.end - ahead.start;
        self.ahead.held.set(self.ahead.held.get() + count);
        let guard = AheadGuard { tally: Rc::clone(&self.ahead), blocks: count, used: Cell::default() };
        let flight = Flight::new(ahead, Some(guard));
        self.lines(mark.chunk).flights.push(Rc::clone(&flight));
        if self.windows.len() >= (self.window * WINDOWS) as usize {
            self.windows.retain(|(_, window)| window.strong_count() > 0);
        }
        self.windows.push_back((mark, Rc::downgrade(&flight)));
        (is_scan, Some(Lead { flight, mark }))
    }

    /// The part of a window that is not in memory and not on its way, from its first such block to
    /// where that ends or its last.
    fn absent(&self, mark: Mark, window: Range<u32>) -> Range<u32> {
        let Some(lines) = self.chunks.get(&mark.chunk) else { return 0..0 };
        let is_absent = |block: &u32| {
            !lines.flights.iter().any(|flight| flight.blocks.contains(block))
                && (self.cache.is_off() || !self.cache.has(Name::new(lines.generation, *block)))
        };
        let first = window.clone().find(is_absent);
        let last = window.clone().rev().find(is_absent);
        match (first, last) {
            (Some(first), Some(last)) => first..last + 1,
            _ => 0..0,
        }
    }

    fn drop_oldest_window(&mut self) {
        while let Some((mark, window)) = self.windows.front() {
            let (mark, window) = (*mark, window.upgrade());
            let Some(window) = window else {
                self.windows.pop_front();
                continue;
            };
            if window.landed.borrow().is_none() {
                return;
            }
            self.windows.pop_front();
            if let Some(lines) = self.chunks.get_mut(&mark.chunk).filter(|it| it.generation == mark.generation) {
                lines.flights.retain(|other| !Rc::ptr_eq(other, &window));
                if window.ahead.as_ref().is_some_and(|ahead| ahead.unused() > 0) {
                    lines.streams.wasted(window.blocks.start);
                }
            }
            return;
        }
    }

    /// Flips a bit of a block in memory.
    #[cfg(test)]
    pub(crate) fn spoil(&mut self, chunk: ChunkHandle, block: u32) {
        let generation = self.lines(chunk).generation;
        self.cache.spoil(Name::new(generation, block));
    }

    /// A block was found bad.
    pub(crate) fn found_bad(&mut self, chunk: ChunkHandle, block: u32) {
        if self.bad.len() < BAD_MAX {
            self.bad.insert((chunk, block));
        }
    }

    /// The bad blocks found since the last call.
    pub(crate) fn take_bad(&mut self) -> Vec<BadBlock> {
        std::mem::take(&mut self.bad).into_iter().map(|(chunk, block)| BadBlock { chunk, block }).collect()
    }
}

fn overlap(a: &Range<u32>, b: &Range<u32>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Reads that have a few cached blocks between them become one.
fn bridged<R: Runtime>(pieces: Vec<Piece<R>>) -> Vec<Piece<R>> {
    if pieces.len() < 3 {
        return pieces;
    }
    let mut out: Vec<Piece<R>> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        if let (Piece::Device(blocks), [.., Piece::Device(before), Piece::Cached(between)]) = (&piece, &mut out[..])
            && between.end - between.start < BRIDGE
        {
            before.end = blocks.end;
            out.pop();
            continue;
        }
        out.push(piece);
    }
    debug_assert!(out.windows(2).all(|pair| pair[0].blocks().end == pair[1].blocks().start));
    out
}
