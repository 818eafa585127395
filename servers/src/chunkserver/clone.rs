//! CLONE: this server makes a whole replica from other holders; CRCS: what it asks them first.
//!
//! A holder gives the checksums of all blocks. Blocks that an older copy here has are taken from there,
//! the others are fetched; each is verified against the list by whom sends it and by whom takes it, and
//! the digest at the end against the master's word. A range that one source cannot give is asked of the
//! next, and in the end block by block: as long as one good copy of each block is left anywhere, the
//! chunk can be had. Nothing is seen of it before it is durable; then the old copy goes, if one may.

use std::ops::Range;
use std::time::Duration;

use engine::runtime::Runtime;
use engine::store::{Import, ImportArgs, StoreError, Upto};
use wire::chain::Table;
use wire::clone::{CloneChunk, Cloned, Crcs, CrcsOk};
use wire::fetch::Fetch;
use wire::limits::{BLOCK_SIZE, MEMBERS_MAX};
use wire::member::{Member, ReplicaState};
use wire::{DedupEntry, Fault, Kind, Reason, checksum};

use super::budget::Use;
use super::fault;
use super::peer::Peer;
use super::shard::Shard;
use super::throttle::Throttle;

/// Blocks that are fetched or copied at a time.
const PIECE: u32 = 64;

/// While requests wait here, a piece waits too, for so long at most.
const GIVE_WAY: (Duration, u32) = (Duration::from_millis(5), 10);

/// A clone in the making.
struct Making<'a, R: Runtime> {
    clone: &'a CloneChunk,
    import: Import<R>,
    /// What the blocks must be.
    want: Vec<u32>,
    /// What an older copy here has; empty when there is none.
    have: Vec<Option<u32>>,
    /// Connections to the sources, in their order; `None`: not dialled, or broken.
    peers: Vec<Option<Peer<R>>>,
    throttle: Throttle,
    made: Cloned,
}

/// Runs of blocks, and whether the older copy has all of a run.
fn runs(want: &[u32], have: &[Option<u32>]) -> Vec<(Range<u32>, bool)> {
    let mut runs: Vec<(Range<u32>, bool)> = Vec::new();
    for (block, crc) in (0_u32..).zip(want) {
        let is_here = have.get(block as usize) == Some(&Some(*crc));
        match runs.last_mut() {
            Some((run, here)) if *here == is_here && run.end - run.start < PIECE => run.end += 1,
            _ => runs.push((block..block + 1, is_here)),
        }
    }
    runs
}

impl<R: Runtime> Shard<R> {
    /// CRCS: the checksums of a sealed replica.
    pub(crate) async fn crcs(&self, crcs: Crcs) -> Result<CrcsOk, Fault> {
        let view = self.store.view(crcs.chunk).ok_or_else(|| self.no_chunk())?;
        if view.state != ReplicaState::Sealed || view.digest != crcs.digest {
            return Err(Fault::refused(Reason::StaleEpoch, 0, "this replica is not sealed with that content"));
        }
        let found = self.store.block_crcs(crcs.chunk).await.map_err(|error| fault::of_store(&error))?;
        let all: Option<Vec<u32>> = found.into_iter().collect();
        let crcs = all.ok_or_else(|| Fault::refused(Reason::BadCrc, 0, "checksums of this replica are damaged"))?;
        Ok(CrcsOk { crcs })
    }

    /// CLONE: a whole replica, durable on return.
    pub(crate) async fn clone_chunk(&self, clone: CloneChunk) -> Result<Cloned, Fault> {
        let Ok(_one_at_a_time) = self.cloning.acquire().await else {
            return Err(stopping());
        };
        let chunk = clone.chunk;
        if chunk.shard(self.me.shards) != self.me.shard || clone.len == 0 {
            return Err(Fault::new(Kind::Invalid, format!("shard {} of this server is not meant", self.me.shard)));
        }
        let view = self.store.view(chunk).filter(|_| !self.store.is_failed(chunk));
        if let Some(view) = &view
            && view.state == ReplicaState::Sealed
            && !view.damaged
            && (view.sealed_len, view.digest) == (clone.len, clone.digest)
        {
            self.changed(chunk);
            return Ok(Cloned { fetched: 0, kept: clone.len });
        }
        let mut failed = Fault::new(Kind::Unavailable, "no source is named");
        // A list of checksums that leads nowhere is not looked at again: the next source has another one.
        for lister in 0..clone.sources.len() {
            match self.clone_by(&clone, lister).await {
                Ok(made) => {
                    self.close_replica(chunk);
                    self.changed(chunk);
                    self.count(|served| {
                        served.clones += 1;
                        served.clone_kept_bytes += u64::from(made.kept);
                    });
                    let (fetched, kept) = (made.fetched, made.kept);
                    tracing::info!(%chunk, fetched, kept, source = %clone.sources[lister].server, "replica cloned");
                    return Ok(made);
                }
                Err(error) => {
                    tracing::info!(%chunk, source = %clone.sources[lister].server, %error, "clone failed");
                    self.count(|served| served.clone_failures += 1);
                    // Another source would not help.
                    if matches!(error.reason, Reason::DiskFull | Reason::OldTerm | Reason::ChunkExists) {
                        return Err(error);
                    }
                    failed = error;
                }
            }
        }
        Err(failed)
    }

    /// By the checksums of one source; the bytes may come from all.
    async fn clone_by(&self, clone: &CloneChunk, lister: usize) -> Result<Cloned, Fault> {
        let (want, dedup, peer) = self.describe(clone, &clone.sources[lister]).await?;
        // Empty: nothing is here, or nothing that can be read.
        let have = self.store.block_crcs(clone.chunk).await.unwrap_or_default();
        let import = self.store.begin_clone(self.import_args(clone, dedup), clone.authority).await;
        let import = import.map_err(|error| fault::of_store(&error))?;
        let mut peers: Vec<Option<Peer<R>>> = clone.sources.iter().map(|_| None).collect();
        peers[lister] = Some(peer);
        let throttle = Throttle::new(clone.rate);
        let made = Cloned { fetched: 0, kept: 0 };
        let mut making = Making { clone, import, want, have, peers, throttle, made };
        for (run, is_here) in runs(&making.want, &making.have) {
            self.give_way().await;
            let is_kept = is_here && self.keep(&mut making, run.clone()).await?;
            if !is_kept {
                self.fetch_run(&mut making, lister, run).await?;
            }
        }
        making.import.finish().await.map_err(|error| fault::of_store(&error))?;
        self.store.cloned(clone.term, clone.chunk, clone.authority, &making.import).await;
        Ok(making.made)
    }

    /// What a source says the chunk is: the checksums of its blocks, and its dedup table.
    async fn describe(
        &self,
        clone: &CloneChunk,
        source: &Member,
    ) -> Result<(Vec<u32>, Vec<DedupEntry>, Peer<R>), Fault> {
        let unavailable = |error: &dyn std::fmt::Display| {
            Fault::new(Kind::Unavailable, format!("source {} gives no checksums: {error}", source.server))
        };
        let peer = Peer::dial(self, source, clone.chunk.shard(source.shards)).await;
        let mut peer = peer.map_err(|error| unavailable(&error))?;
        let ask = Crcs { chunk: clone.chunk, digest: clone.digest };
        let (found, _) = peer.call(&ask).await.map_err(|error| unavailable(&error))?;
        if found.crcs.len() != clone.len.div_ceil(BLOCK_SIZE) as usize {
            return Err(unavailable(&"as many as the chunk has blocks"));
        }
        let (table, _) = peer.call(&Table { chunk: clone.chunk }).await.map_err(|error| unavailable(&error))?;
        Ok((found.crcs, table.dedup, peer))
    }

    fn import_args(&self, clone: &CloneChunk, dedup: Vec<DedupEntry>) -> ImportArgs {
        let others = clone.sources.iter().map(|source| source.server).filter(|server| *server != self.me.server);
        let mut members: Vec<_> = others.take(MEMBERS_MAX - 1).collect();
        let my_position = u8::try_from(members.len()).unwrap_or(0);
        members.push(self.me.server);
        ImportArgs {
            term: clone.term,
            chunk: clone.chunk,
            epoch: clone.epoch,
            promised: clone.epoch,
            members,
            my_position,
            file: clone.file,
            prev: clone.prev,
            last_seq: clone.last_seq,
            len: clone.len,
            digest: clone.digest,
            dedup,
        }
    }

    /// Copies a run from the older copy here; `false` when it cannot be read.
    async fn keep(&self, making: &mut Making<'_, R>, run: Range<u32>) -> Result<bool, Fault> {
        let (offset, len) = (run.start * BLOCK_SIZE, (run.end - run.start) * BLOCK_SIZE);
        let _room = self.budget.take(Use::Read, len as usize).await.ok_or_else(stopping)?;
        let crcs = &making.want[run.start as usize..run.end as usize];
        let Ok(blocks) = self.store.read(making.clone.chunk, offset, len, Upto::Durable).await else {
            return Ok(false);
        };
        if blocks.crcs.get(..crcs.len()) != Some(crcs) {
            return Ok(false); // it changed meanwhile
        }
        let began = self.rt.now();
        making.import.write(run.start, crcs, blocks.buf).await.map_err(|error| fault::of_store(&error))?;
        let len = len.min(making.clone.len - offset);
        making.made.kept += len;
        self.throttled(making, len, began).await;
        Ok(true)
    }

    /// Fetches a run from any source, the lister first; block by block when none has all of it.
    async fn fetch_run(&self, making: &mut Making<'_, R>, lister: usize, run: Range<u32>) -> Result<(), Fault> {
        let Err(mut failed) = self.fetch_from_any(making, lister, run.clone()).await else { return Ok(()) };
        if run.end - run.start == 1 || is_local(&failed) {
            return Err(failed);
        }
        for block in run {
            if let Err(error) = self.fetch_from_any(making, lister, block..block + 1).await {
                failed.text = format!("block {block} is good at no source: {error}");
                return Err(failed);
            }
        }
        Ok(())
    }

    async fn fetch_from_any(&self, making: &mut Making<'_, R>, lister: usize, run: Range<u32>) -> Result<(), Fault> {
        let others = (0..making.clone.sources.len()).filter(|source| *source != lister);
        let mut failed = None;
        for source in std::iter::once(lister).chain(others) {
            match self.fetch_from(making, source, run.clone()).await {
                Ok(()) => return Ok(()),
                Err(error) if is_local(&error) => return Err(error),
                Err(error) => {
                    let server = making.clone.sources[source].server;
                    tracing::debug!(chunk = %making.clone.chunk, %server, first = run.start, %error, "blocks not had");
                    failed = Some(error);
                }
            }
        }
        Err(failed.unwrap_or_else(|| Fault::new(Kind::Unavailable, "no source is named")))
    }

    async fn fetch_from(&self, making: &mut Making<'_, R>, source: usize, run: Range<u32>) -> Result<(), Fault> {
        let clone = making.clone;
        let member = &clone.sources[source];
        let offset = run.start * BLOCK_SIZE;
        let len = (run.end * BLOCK_SIZE).min(clone.len) - offset;
        let room = self.budget.take(Use::Read, (run.end - run.start) as usize * BLOCK_SIZE as usize).await;
        let _room = room.ok_or_else(stopping)?;
        let unavailable = |error: &dyn std::fmt::Display| {
            Fault::new(Kind::Unavailable, format!("fetch from {}: {error}", member.server))
        };
        let peer = making.peers[source].take();
        let mut peer = match peer {
            Some(peer) => peer,
            None => Peer::dial(self, member, clone.chunk.shard(member.shards)).await.map_err(|e| unavailable(&e))?,
        };
        let fetch = Fetch { chunk: clone.chunk, epoch: clone.epoch, offset, len };
        let answer = peer.call(&fetch).await;
        if !matches!(answer, Err(super::peer::CallError::Broken(_))) {
            making.peers[source] = Some(peer);
        }
        let (data, payload) = answer.map_err(|error| unavailable(&error))?;
        let crcs = &making.want[run.start as usize..run.end as usize];
        let payload = payload.filter(|_| data.chunk == clone.chunk && data.offset == offset && data.len == len);
        let Some(payload) = payload.filter(|payload| checksum::matches(payload.as_ref(), crcs)) else {
            let text = format!("{} sent other bytes than its checksums say", member.server);
            return Err(Fault::refused(Reason::BadCrc, 0, text));
        };
        let began = self.rt.now();
        making.import.write(run.start, crcs, payload).await.map_err(|error| local(&error))?;
        making.made.fetched += len;
        self.count(|served| served.clone_bytes += u64::from(len));
        self.throttled(making, len, began).await;
        Ok(())
    }

    async fn throttled(&self, making: &mut Making<'_, R>, len: u32, began: Duration) {
        let now = self.rt.now();
        let wait = making.throttle.wrote(u64::from(len), now.saturating_sub(began), now);
        if wait > Duration::ZERO {
            self.pause(wait).await;
        }
    }

    /// Requests of others come first, for a moment.
    async fn give_way(&self) {
        for _ in 0..GIVE_WAY.1 {
            // CLONE is one of those in flight.
            if self.in_flight.get() <= 1 || self.is_stopping() {
                return;
            }
            self.pause(GIVE_WAY.0).await;
        }
    }
}

fn stopping() -> Fault {
    Fault::new(Kind::Unavailable, "the server is stopping")
}

/// A refusal of the own store: no source can help.
fn local(error: &StoreError) -> Fault {
    let fault = fault::of_store(error);
    Fault { reason: Reason::Disk, ..fault }
}

fn is_local(fault: &Fault) -> bool {
    fault.reason == Reason::Disk
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_bounded_and_part_what_is_here_from_what_is_not() {
        let want: Vec<u32> = (0..200).collect();
        let mut have: Vec<Option<u32>> = want.iter().copied().map(Some).collect();
        have[3] = Some(99);
        have[4] = None;
        have.truncate(130);
        let found = runs(&want, &have);
        let expected =
            [(0..3, true), (3..5, false), (5..69, true), (69..130, true), (130..194, false), (194..200, false)];
        assert_eq!(found, expected);
        assert_eq!(runs(&want[..2], &[]), [(0..2, false)]);
        assert_eq!(runs(&[], &have), []);
    }
}
