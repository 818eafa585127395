//! Bad blocks are replaced with those of another replica.
//!
//! A block comes here from a read that met it or from scrub. It is read again; then the chunk's other
//! holders, which the master names, are asked for it one after the other; what they send must match this
//! replica's own checksum, and goes through the journal. When the checkpoint has put it in its place, it
//! is read there: if it is still bad, the slot is kept out of use. One repair at a time for each shard.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use engine::runtime::Runtime;
use engine::store::StoreError;
use tokio::sync::oneshot;
use wire::limits::BLOCK_SIZE;
use wire::member::Member;
use wire::read::Read;
use wire::report::Trouble;
use wire::{ChunkHandle, Epoch, Seq};

use super::budget::Use;
use super::disks::Health;
use super::mailbox::ToControl;
use super::peer::Peer;
use super::shard::Shard;

/// Bad blocks that wait. Scrub and reads find again what is not remembered.
const JOBS_MAX: usize = 1024;

/// The pause before the next try; doubled up to the second figure.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));

/// After so many tries a block is given up until somebody finds it again.
const TRIES_MAX: u32 = 20;

/// A checkpoint puts what was repaired in its place; when it is read there.
const VERIFY_AFTER: Duration = Duration::from_millis(500);

/// No read is that far ahead: any holder may answer.
const LIMIT_EMPTY: Duration = Duration::from_secs(3600);

/// A block of a chunk.
pub(crate) type Block = (ChunkHandle, u32);

/// What is known about a bad block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Job {
    not_before: Duration,
    tries: u32,
    /// Its new content is in the journal: read it in its place.
    is_repaired: bool,
}

/// What became of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tried {
    /// Not now: again later.
    Failed,
    /// In the journal, not in its place yet.
    Repaired,
    /// It is good.
    Good,
    /// It was repaired and is bad again.
    Worn,
    /// Neither chunk nor disk is there any more.
    Gone,
}

/// Bad blocks of a shard, and what comes next. Pure.
#[derive(Debug, Default)]
pub(crate) struct Repairs {
    jobs: BTreeMap<Block, Job>,
    given_up: BTreeSet<Block>,
}

impl Repairs {
    /// A block was found bad; `true` when that is news.
    pub(crate) fn add(&mut self, block: Block) -> bool {
        if self.jobs.contains_key(&block) || self.given_up.contains(&block) || self.jobs.len() >= JOBS_MAX {
            return false;
        }
        self.jobs.insert(block, Job::default());
        true
    }

    /// The block to look at now and whether it was repaired before, or how long to wait.
    pub(crate) fn next(&self, now: Duration) -> Result<(Block, bool), Duration> {
        let first = self.jobs.iter().min_by_key(|(_, job)| job.not_before);
        match first {
            Some((block, job)) if job.not_before <= now => Ok((*block, job.is_repaired)),
            Some((_, job)) => Err(job.not_before - now),
            None => Err(LIMIT_EMPTY),
        }
    }

    /// Takes the outcome of a try in.
    pub(crate) fn tried(&mut self, block: Block, outcome: Tried, now: Duration) {
        let Some(job) = self.jobs.get_mut(&block) else { return };
        match outcome {
            Tried::Repaired => {
                job.not_before = now + VERIFY_AFTER * (1 << job.tries.min(8));
                (job.is_repaired, job.tries) = (true, if job.is_repaired { job.tries + 1 } else { 0 });
            }
            Tried::Failed if job.tries < TRIES_MAX => {
                job.not_before = now + (RETRY.0 * (1 << job.tries.min(10))).min(RETRY.1);
                job.tries += 1;
            }
            Tried::Failed | Tried::Good | Tried::Gone => drop(self.jobs.remove(&block)),
            Tried::Worn => {
                self.jobs.remove(&block);
                if self.given_up.len() < JOBS_MAX {
                    self.given_up.insert(block);
                }
            }
        }
    }

    /// Blocks that wait.
    pub(crate) fn len(&self) -> usize {
        self.jobs.len()
    }
}

impl<R: Runtime> Shard<R> {
    /// A block is bad here: it is repaired, and counts against its disk. `true` when that is news.
    pub(crate) fn bad_block(&self, chunk: ChunkHandle, block: u32) -> bool {
        let is_news = self.repairs.borrow_mut().add((chunk, block));
        if !is_news {
            return false;
        }
        self.count(|served| served.bad_found += 1);
        self.repair_work.notify_one();
        if let Some(disk) = self.store.home(chunk)
            && self.store.disks()[disk].disk.hit(self.rt.now())
        {
            let shard = self.clone();
            self.rt.spawn(async move { shard.drain_disk(disk).await });
        }
        true
    }

    /// Too many bad blocks: the disk gets no new chunks.
    async fn drain_disk(&self, disk: usize) {
        let on = &self.store.disks()[disk];
        match on.store.drain().await {
            Ok(true) => {
                on.disk.set_health(Health::Draining);
                let remedy = "replace the disk: copy or empty it while it still reads";
                tracing::error!(root = %on.disk.root.display(), remedy, "three bad blocks in a day: disk takes no new chunks");
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(root = %on.disk.root.display(), %error, "disk could not be set to drain"),
        }
    }

    /// Repairs until the shard stops.
    pub(super) async fn repair_blocks(self) {
        while !self.is_stopping() {
            let next = self.repairs.borrow().next(self.rt.now());
            let ((chunk, block), is_repaired) = match next {
                Ok(next) => next,
                Err(wait) => {
                    tokio::select! {
                        () = self.pause(wait) => {}
                        () = self.repair_work.notified() => {}
                    }
                    continue;
                }
            };
            let outcome = self.try_repair(chunk, block, is_repaired).await;
            match outcome {
                Tried::Good if is_repaired => {
                    self.count(|served| served.bad_repaired += 1);
                    tracing::info!(%chunk, block, "block is repaired and reads right in its place");
                }
                Tried::Worn => {
                    self.count(|served| served.repair_failures += 1);
                    if let Some(disk) = self.store.home(chunk) {
                        self.store.disks()[disk].store.quarantine(chunk);
                    }
                }
                Tried::Failed => self.count(|served| served.repair_failures += 1),
                Tried::Good | Tried::Repaired | Tried::Gone => {}
            }
            self.repairs.borrow_mut().tried((chunk, block), outcome, self.rt.now());
        }
    }

    async fn try_repair(&self, chunk: ChunkHandle, block: u32, is_repaired: bool) -> Tried {
        let Some(home) = self.store.home(chunk) else { return Tried::Gone };
        let store = &self.store.disks()[home].store;
        match store.scrub_blocks(chunk, block, 1).await {
            Ok(found) if found.pending > 0 => {
                store.settle();
                return Tried::Repaired;
            }
            Ok(found) if found.bad.is_empty() => return Tried::Good,
            Ok(_) if is_repaired => return Tried::Worn,
            Ok(_) => {}
            Err(StoreError::UnknownChunk | StoreError::Fenced(_)) => return Tried::Gone,
            Err(_) => return Tried::Failed,
        }
        for member in self.other_holders(chunk).await {
            let fetched = self.fetch_block(chunk, block, &member).await;
            let (payload, _room) = match fetched {
                Ok(fetched) => fetched,
                Err(cause) => {
                    tracing::debug!(%chunk, block, peer = %member.server, cause, "no block from this holder");
                    continue;
                }
            };
            match store.repair(chunk, block, payload).await {
                Ok(()) => {
                    tracing::warn!(%chunk, block, peer = %member.server, "bad block replaced from another replica");
                    store.settle();
                    return Tried::Repaired;
                }
                Err(error) => tracing::info!(%chunk, block, peer = %member.server, %error, "block not taken"),
            }
        }
        Tried::Failed
    }

    /// Who else holds the chunk, as the master knows.
    async fn other_holders(&self, chunk: ChunkHandle) -> Vec<Member> {
        let (reply, answer) = oneshot::channel();
        if self.control.send(ToControl::Locate { chunk, reply }).await.is_err() {
            return Vec::new();
        }
        let mut members = answer.await.unwrap_or_default();
        members.retain(|member| member.server != self.me.server);
        members
    }

    /// One whole block as another holder has it, with its share of the buffers.
    async fn fetch_block(
        &self,
        chunk: ChunkHandle,
        block: u32,
        member: &Member,
    ) -> Result<(R::Buf, super::budget::Permit), String> {
        let room = self.budget.take(Use::Read, BLOCK_SIZE as usize).await.ok_or("stopping")?;
        let mut peer = Peer::dial(self, member, chunk.shard(member.shards)).await.map_err(|error| error.to_string())?;
        let offset = block * BLOCK_SIZE;
        let read = Read { chunk, epoch: Epoch(0), offset, len: BLOCK_SIZE, min_seq: Seq(0) };
        let (data, payload) = peer.call(&read).await.map_err(|error| error.to_string())?;
        let is_asked_for = data.chunk == chunk && data.offset == offset;
        let payload = payload.filter(|payload| is_asked_for && payload.as_ref().len() == BLOCK_SIZE as usize);
        Ok((payload.ok_or("another answer than was asked for")?, room))
    }

    /// A page of a slot is bad and nothing here can replace it: the master hears of it.
    pub(super) fn bad_page(&self, chunk: ChunkHandle) {
        if let Some(view) = self.store.view(chunk) {
            self.report(chunk, view.epoch, Trouble::BadBlock, self.me.server);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Block = (ChunkHandle(1), 7);
    const TWO: Block = (ChunkHandle(2), 0);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_block_is_news_once_and_again_after_it_was_good() {
        let mut repairs = Repairs::default();
        assert!(repairs.add(ONE) && !repairs.add(ONE) && repairs.add(TWO));
        repairs.tried(ONE, Tried::Good, SECOND);
        assert_eq!(repairs.len(), 1);
        assert!(repairs.add(ONE));
        repairs.tried(ONE, Tried::Worn, SECOND);
        assert!(!repairs.add(ONE), "nothing more can be done about it");
    }

    #[test]
    fn what_fails_is_tried_later_and_later_and_does_not_keep_others_waiting() {
        let mut repairs = Repairs::default();
        repairs.add(ONE);
        repairs.tried(ONE, Tried::Failed, SECOND);
        repairs.add(TWO);
        assert_eq!(repairs.next(SECOND), Ok((TWO, false)));
        repairs.tried(TWO, Tried::Gone, SECOND);
        assert_eq!(repairs.next(SECOND), Err(RETRY.0));
        assert_eq!(repairs.next(SECOND + RETRY.0), Ok((ONE, false)));
        let mut now = SECOND;
        for _ in 1..TRIES_MAX {
            now += RETRY.1;
            repairs.tried(ONE, Tried::Failed, now);
            assert!(repairs.next(now).is_err_and(|wait| wait <= RETRY.1));
        }
        repairs.tried(ONE, Tried::Failed, now);
        assert_eq!((repairs.len(), repairs.next(now)), (0, Err(LIMIT_EMPTY)), "given up");
        assert!(repairs.add(ONE), "until it is found again");
    }

    #[test]
    fn what_was_repaired_is_looked_at_in_its_place() {
        let mut repairs = Repairs::default();
        repairs.add(ONE);
        repairs.tried(ONE, Tried::Repaired, SECOND);
        assert_eq!(repairs.next(SECOND), Err(VERIFY_AFTER));
        assert_eq!(repairs.next(SECOND * 2), Ok((ONE, true)));
        repairs.tried(ONE, Tried::Repaired, SECOND * 2);
        assert!(repairs.next(SECOND * 2).is_err(), "no checkpoint yet");
        repairs.tried(ONE, Tried::Good, SECOND * 9);
        assert_eq!(repairs.len(), 0);
    }

    #[test]
    fn so_many_bad_blocks_are_remembered_and_no_more() {
        let mut repairs = Repairs::default();
        let added = (0..5000).filter(|block| repairs.add((ChunkHandle(1), *block))).count();
        assert_eq!((added, repairs.len()), (JOBS_MAX, JOBS_MAX));
    }
}
