//! Scrub: everything on a disk is read and verified once in a period, or when somebody asks, beside the
//! work for clients. How fast is decided in `pace`, what is wrong in the store; bad blocks go to `repair`.
//!
//! One task for each disk of each shard, over its own chunks in the order of their handles. A planned
//! pass begins at a chunk chosen by this start's number and goes round: a server that is restarted often
//! does not look at the same chunks again and again.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use engine::runtime::Runtime;
use engine::store::{SCRUB_BLOCKS_MAX, StoreError};
use wire::ChunkHandle;
use wire::limits::BLOCK_SIZE;

use super::budget::Use;
use super::pace::{self, Load, PIECE, Pass, Step};
use super::shard::Shard;

/// Blocks of one piece.
const PIECE_BLOCKS: u32 = PIECE / BLOCK_SIZE;
const _: () = assert!(PIECE_BLOCKS <= SCRUB_BLOCKS_MAX);

/// A scrub that nobody planned is waited for in naps of this length.
const NAP: Duration = Duration::from_secs(3600);

/// Chunks that are looked at before the others, because a neighbour was bad.
const SUSPECTS_MAX: usize = 64;

/// How the scrub of one disk by one shard is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Scrubbed {
    /// The pass that runs.
    pub(crate) pass: Pass,
    /// Passes that ended.
    pub(crate) passes: u64,
    /// When the last one ended, on the shard's clock.
    pub(crate) ended: Option<Duration>,
    /// Bytes read since the start.
    pub(crate) bytes: u64,
    /// Bad blocks and pages found since the start.
    pub(crate) errors: u64,
    /// Blocks that were bad once and good when read again.
    pub(crate) flaky: u64,
    /// Pages that were written again.
    pub(crate) healed: u64,
}

/// Where a pass is.
#[derive(Debug)]
struct Walk {
    /// It began behind this chunk, and ends there after it went round.
    start: ChunkHandle,
    position: ChunkHandle,
    has_turned: bool,
    /// The chunk being read, and the next block of it; pages come before block zero.
    chunk: Option<(ChunkHandle, Option<u32>)>,
    suspects: VecDeque<ChunkHandle>,
    suspected: BTreeSet<ChunkHandle>,
}

impl Walk {
    fn from(start: ChunkHandle) -> Self {
        Self {
            start,
            position: start,
            has_turned: start == ChunkHandle::NONE,
            chunk: None,
            suspects: VecDeque::new(),
            suspected: BTreeSet::new(),
        }
    }

    /// Chunks that should be looked at next, once in a pass.
    fn suspect(&mut self, chunks: impl IntoIterator<Item = ChunkHandle>) {
        for chunk in chunks {
            if self.suspects.len() < SUSPECTS_MAX && self.suspected.insert(chunk) {
                self.suspects.push_back(chunk);
            }
        }
    }

    /// The chunk to look at; `None` when the pass is over. `next` gives the first chunk above another.
    fn chunk(&mut self, next: impl Fn(ChunkHandle) -> Option<ChunkHandle>) -> Option<(ChunkHandle, Option<u32>)> {
        if self.chunk.is_none() {
            let found = self.suspects.pop_front().or_else(|| self.onward(&next));
            self.chunk = found.map(|chunk| (chunk, None));
        }
        self.chunk
    }

    fn onward(&mut self, next: &impl Fn(ChunkHandle) -> Option<ChunkHandle>) -> Option<ChunkHandle> {
        loop {
            let found = next(self.position).filter(|chunk| !self.has_turned || self.is_before_start(*chunk));
            match found {
                Some(chunk) => {
                    self.position = chunk;
                    return Some(chunk);
                }
                None if self.has_turned => return None,
                None => (self.has_turned, self.position) = (true, ChunkHandle::NONE),
            }
        }
    }

    fn is_before_start(&self, chunk: ChunkHandle) -> bool {
        self.start == ChunkHandle::NONE || chunk <= self.start
    }
}

impl<R: Runtime> Shard<R> {
    /// Begins a pass over all disks now.
    pub(crate) fn scrub_now(&self) {
        self.scrub_asked.set(self.scrub_asked.get() + 1);
        self.scrub_wake.notify_waiters();
    }

    /// Scrubs one disk until the shard stops or the disk fails.
    pub(super) async fn scrub_disk(self, disk: usize) {
        let mut asked = 0;
        let mut walk = Walk::from(self.somewhere(disk));
        self.begin(disk, false);
        let mut is_running = true;
        while !self.is_stopping() && self.store.disks()[disk].store.fenced().is_none() {
            if self.scrub_asked.get() != asked {
                asked = self.scrub_asked.get();
                walk = Walk::from(ChunkHandle::NONE);
                self.begin(disk, true);
                is_running = true;
            }
            let every = self.scrub_every.get();
            let now = self.rt.now();
            let pass = self.scrubbed(disk).pass;
            if !pass.is_asked && every.is_zero() {
                self.scrub_nap(NAP).await;
                continue;
            }
            if !is_running {
                // Over; the next one begins when this one's time is over.
                let next = pass.since + every;
                if pass.is_asked && every.is_zero() || now < next {
                    self.scrub_nap(if every.is_zero() { NAP } else { (next - now).min(NAP) }).await;
                } else {
                    walk = Walk::from(ChunkHandle::NONE);
                    self.begin(disk, false);
                    is_running = true;
                }
                continue;
            }
            match pace::step(every, self.me.shards, &pass, self.load(now), now) {
                Step::Wait(wait) => self.scrub_nap(wait).await,
                Step::Read => is_running = self.scrub_piece(disk, &mut walk).await,
            }
        }
    }

    /// A chunk of this disk that another start would not choose.
    fn somewhere(&self, disk: usize) -> ChunkHandle {
        let chunks = self.store.disks()[disk].store.chunks();
        let at = self.me.boot.checked_rem(chunks.len() as u64).and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| chunks.get(at).copied()).unwrap_or(ChunkHandle::NONE)
    }

    fn begin(&self, disk: usize, is_asked: bool) {
        let now = self.rt.now();
        let total = self.store.disks()[disk].store.scrub_total();
        self.note_scrub(disk, |it| it.pass = Pass { since: now, total, is_asked, ..Pass::default() });
    }

    async fn scrub_nap(&self, wait: Duration) {
        let wake = self.scrub_wake.notified();
        tokio::select! {
            () = self.pause(wait) => {}
            () = wake => {}
        }
    }

    fn load(&self, now: Duration) -> Load {
        let requests = self.in_flight.get();
        Load { in_flight: requests, quiet_for: now.saturating_sub(self.heard.get()) }
    }

    /// Reads the pages of a chunk, or the next piece of it; `false` when the pass is over.
    async fn scrub_piece(&self, disk: usize, walk: &mut Walk) -> bool {
        let store = &self.store.disks()[disk].store;
        let Some((chunk, block)) = walk.chunk(|after| store.next_to_scrub(after)) else {
            let now = self.rt.now();
            self.note_scrub(disk, |it| {
                it.passes += 1;
                it.ended = Some(now);
            });
            let Scrubbed { pass, errors, .. } = self.scrubbed(disk);
            let root = self.store.disks()[disk].disk.root.display();
            let (shard, bytes) = (self.me.shard, pass.done);
            tracing::info!(%root, shard, bytes, errors, took = ?now.saturating_sub(pass.since), "scrub went through");
            return false;
        };
        let Some(_room) = self.budget.take(Use::Read, PIECE as usize).await else { return true };
        let now = self.rt.now();
        let outcome = match block {
            None => self.scrub_pages(disk, chunk).await.map(|()| Some(0)),
            Some(first) => self.scrub_blocks(disk, chunk, first, walk).await,
        };
        self.note_scrub(disk, |it| it.pass.last = now);
        walk.chunk = match outcome {
            Ok(next) => next.map(|block| (chunk, Some(block))),
            // Gone meanwhile, or the disk has failed: the loop sees it.
            Err(StoreError::UnknownChunk | StoreError::Fenced(_)) => None,
            Err(error) => {
                tracing::warn!(%chunk, %error, "slot cannot be read");
                self.note_scrub(disk, |it| it.errors += 1);
                self.bad_page(chunk);
                None
            }
        };
        true
    }

    async fn scrub_pages(&self, disk: usize, chunk: ChunkHandle) -> Result<(), StoreError> {
        let found = self.store.disks()[disk].store.scrub_pages(chunk).await?;
        self.note_scrub(disk, |it| {
            it.bytes += found.bytes;
            it.errors += u64::from(found.bad);
            it.healed += u64::from(found.healed);
        });
        if found.healed < found.bad && self.store.is_home(chunk, disk) {
            self.bad_page(chunk);
        }
        Ok(())
    }

    /// Gives the next block of the chunk, `None` when it is through.
    async fn scrub_blocks(
        &self,
        disk: usize,
        chunk: ChunkHandle,
        first: u32,
        walk: &mut Walk,
    ) -> Result<Option<u32>, StoreError> {
        let store = &self.store.disks()[disk].store;
        let found = store.scrub_blocks(chunk, first, PIECE_BLOCKS).await?;
        self.note_scrub(disk, |it| {
            it.pass.done += found.bytes;
            it.bytes += found.bytes;
            it.flaky += u64::from(found.flaky);
        });
        let mut is_news = false;
        for block in found.bad {
            // An older copy that is not served has nobody to be repaired from.
            if self.store.is_home(chunk, disk) && self.bad_block(chunk, block) {
                is_news = true;
                self.note_scrub(disk, |it| it.errors += 1);
                tracing::warn!(%chunk, block, root = %self.store.disks()[disk].disk.root.display(), "scrub found a bad block");
            }
        }
        if is_news {
            walk.suspect(store.neighbours(chunk));
        }
        Ok((!found.done).then_some(found.next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(start: u64, chunks: &[u64]) -> Vec<u64> {
        let chunks: BTreeSet<u64> = chunks.iter().copied().collect();
        let mut walk = Walk::from(ChunkHandle(start));
        let mut seen = Vec::new();
        while let Some((chunk, _)) = walk.chunk(|after| chunks.range(after.0 + 1..).next().map(|it| ChunkHandle(*it))) {
            seen.push(chunk.0);
            walk.chunk = None;
        }
        seen
    }

    #[test]
    fn a_pass_sees_every_chunk_once_wherever_it_begins() {
        assert_eq!(walk(0, &[3, 5, 9]), [3, 5, 9]);
        assert_eq!(walk(5, &[3, 5, 9]), [9, 3, 5]);
        assert_eq!(walk(9, &[3, 5, 9]), [3, 5, 9]);
        assert_eq!(walk(7, &[3, 5, 9]), [9, 3, 5], "also when the first one has gone meanwhile");
        assert_eq!(walk(7, &[]).len(), 0);
        assert_eq!(walk(0, &[]).len(), 0);
    }

    #[test]
    fn neighbours_of_a_bad_chunk_come_next_once() {
        let mut walk = Walk::from(ChunkHandle::NONE);
        let next = |after: ChunkHandle| (after.0 < 3).then_some(ChunkHandle(after.0 + 1));
        assert_eq!(walk.chunk(next), Some((ChunkHandle(1), None)));
        walk.suspect([ChunkHandle(8), ChunkHandle(9)]);
        walk.suspect([ChunkHandle(8)]);
        let mut seen = Vec::new();
        walk.chunk = None;
        while let Some((chunk, _)) = walk.chunk(next) {
            seen.push(chunk.0);
            walk.chunk = None;
        }
        assert_eq!(seen, [8, 9, 2, 3]);
    }
}
