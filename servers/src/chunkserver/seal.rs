//! PREPARE, SEAL, CONFIRM and DIGEST: a member's part in ending a chain (replication.md, section 5.2).

use engine::runtime::Runtime;
use engine::store::{StoreError, View};
use wire::chain::Table;
use wire::checksum;
use wire::fetch::Fetch;
use wire::limits::{BLOCK_SIZE, PAYLOAD_LEN_MAX};
use wire::member::ReplicaState;
use wire::message::Done;
use wire::report::Trouble;
use wire::seal::{Confirm, Digest, DigestOk, Prepare, PrepareOk, Seal, SealOk};
use wire::{DedupEntry, Fault, Kind, Reason, Seq};

use super::budget::Use;
use super::fault;
use super::peer::Peer;
use super::shard::Shard;

/// A replica fills at most so much by itself: 32 entries of the journal. What lacks more is repaired later.
const FILL_LEN_MAX: u32 = 32 << 20;

/// Where a replica of an append-only chunk must be filled from: the block its content ends in, whose
/// rest the source has. `None` when nothing is missing.
fn fill_from(view: &View, len: u32) -> Option<u32> {
    let is_shorter = view.state != ReplicaState::Sealed && view.len < len;
    is_shorter.then_some(view.len / BLOCK_SIZE * BLOCK_SIZE)
}

/// A re-opened replica that missed overwrites: any of its blocks may be old, so it is copied anew later.
fn is_unfillable(view: &View, last_seq: Seq) -> bool {
    view.fixed && view.state != ReplicaState::Sealed && view.last_seq < last_seq
}

impl<R: Runtime> Shard<R> {
    /// PREPARE: gives up the old epoch, durably.
    pub(crate) async fn prepare(&self, prepare: &Prepare) -> Result<PrepareOk, Fault> {
        let chunk = prepare.chunk;
        let promised = self.store.prepare(prepare.term, chunk, prepare.epoch).await.map_err(|e| fault::of_store(&e))?;
        self.close_replica(chunk);
        self.changed(chunk);
        Ok(PrepareOk {
            promised: promised.promised,
            epoch: promised.epoch,
            state: promised.state,
            last_seq: promised.last_seq,
            len: promised.len,
            digest: promised.digest,
            committed_seq: promised.committed_seq,
            suspect_seq: promised.suspect_seq,
            healthy: promised.healthy,
        })
    }

    /// SEAL: fixes the content, after filling what is missing from the source.
    pub(crate) async fn seal(&self, seal: &Seal) -> Result<SealOk, Fault> {
        let Ok(_one_at_a_time) = self.filling.acquire().await else {
            return Err(Fault::new(Kind::Unavailable, "the server is stopping"));
        };
        let chunk = seal.chunk;
        let view = self.store.view(chunk).ok_or_else(|| self.no_chunk())?;
        if is_unfillable(&view, seal.last_seq) {
            return Err(fault::refusal(Reason::TooFar, u64::from(seal.len)));
        }
        let table = match fill_from(&view, seal.len) {
            Some(from) => Some(self.fill(seal, from).await?),
            None => None,
        };
        let (term, epoch) = (seal.term, seal.epoch);
        self.store.seal(term, chunk, epoch, seal.last_seq, seal.len, seal.digest, table).await.map_err(|error| {
            tracing::warn!(%chunk, %epoch, %error, "seal refused");
            fault::of_store(&error)
        })?;
        self.changed(chunk);
        Ok(SealOk { dedup: self.store.dedup(chunk) })
    }

    /// Copies `[from, len)` and the dedup table from the source. Nothing of it counts before the seal.
    async fn fill(&self, seal: &Seal, from: u32) -> Result<Vec<DedupEntry>, Fault> {
        if seal.len - from > FILL_LEN_MAX {
            return Err(fault::refusal(Reason::TooFar, u64::from(seal.len - from)));
        }
        let unavailable = |what: String| Fault::new(Kind::Unavailable, what);
        let source = &seal.source;
        let mut peer = Peer::dial(self, source, seal.chunk.shard(source.shards))
            .await
            .map_err(|error| unavailable(format!("source {} of the fill: {error}", source.server)))?;
        let mut offset = from;
        while offset < seal.len {
            let len = (seal.len - offset).min(PAYLOAD_LEN_MAX);
            self.fill_page(seal, &mut peer, offset, len).await?;
            offset += len;
        }
        let (table, _) = peer
            .call(&Table { chunk: seal.chunk })
            .await
            .map_err(|error| unavailable(format!("table of {}: {error}", source.server)))?;
        self.count(|served| served.filled_bytes += u64::from(seal.len - from));
        tracing::info!(chunk = %seal.chunk, from, to = seal.len, source = %source.server, "replica filled");
        Ok(table.dedup)
    }

    async fn fill_page(&self, seal: &Seal, peer: &mut Peer<R>, offset: u32, len: u32) -> Result<(), Fault> {
        let _room = self.budget.take(Use::Read, len as usize).await;
        let fetch = Fetch { chunk: seal.chunk, epoch: seal.epoch, offset, len };
        let (data, payload) = peer
            .call(&fetch)
            .await
            .map_err(|error| Fault::new(Kind::Unavailable, format!("fetch from {}: {error}", seal.source.server)))?;
        let payload = payload.filter(|_| data.chunk == seal.chunk && data.offset == offset && data.len == len);
        let Some(payload) = payload.filter(|payload| checksum::matches(payload.as_ref(), &data.crcs)) else {
            return Err(Fault::refused(Reason::BadCrc, 0, format!("{} sent other bytes", seal.source.server)));
        };
        self.store
            .fill(seal.chunk, seal.epoch, offset, len, data.crcs, payload)
            .await
            .map_err(|error| fault::of_store(&error))
    }

    /// CONFIRM: the seal is in the master's log.
    pub(crate) async fn confirm(&self, confirm: &Confirm) -> Result<Done, Fault> {
        let Confirm { term, chunk, epoch, len, digest } = *confirm;
        match self.store.confirm(term, chunk, epoch, len, digest).await {
            Ok(()) => {
                self.close_replica(chunk);
                self.changed(chunk);
                Ok(Done)
            }
            Err(error) => {
                if error == StoreError::Mismatch {
                    tracing::warn!(%chunk, %epoch, "replica is stale");
                    self.report(chunk, epoch, Trouble::Stale, self.me.server);
                }
                Err(fault::of_store(&error))
            }
        }
    }

    /// DIGEST of a prefix; `u32::MAX`: of all there is.
    pub(crate) async fn digest(&self, digest: &Digest) -> Result<DigestOk, Fault> {
        let view = self.store.view(digest.chunk).ok_or_else(|| self.no_chunk())?;
        let all = if view.state == ReplicaState::Sealed { view.sealed_len } else { view.durable_len };
        let len = if digest.len == u32::MAX { all } else { digest.len };
        if len > all {
            return Err(fault::refusal(Reason::BadOffset, u64::from(all)));
        }
        let value = self.store.digest(digest.chunk, len).await.map_err(|error| fault::of_store(&error))?;
        Ok(DigestOk { len, digest: value, state: view.state, epoch: view.epoch })
    }
}
