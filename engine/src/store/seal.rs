//! PREPARE, FILL, SEAL, CONFIRM: how a chunk comes to its final content (replication, section 5).

use std::borrow::Cow;
use std::rc::Rc;

use wire::member::ReplicaState;
use wire::{ChunkHandle, DedupEntry, Epoch, Seq, Term};

use super::StoreError;
use super::append::content;
use super::canary::weakened;
use super::crcs;
use super::header::Flags;
use super::layout::{BLOCK, CHUNK_CAPACITY, DEDUP_MAX, PART_MAX};
use super::log::Class;
use super::record::{Append, Body, FLAG_FILL, Seal};
use super::replica::{Replica, Tail, cut_blocks, empty, no_stream, shared};
use super::shard::{Inner, Store};
use super::types::{Promised, Upto};
use crate::runtime::Runtime;

/// How often a digest is begun again because an overwrite came between its parts.
const DIGEST_TRIES: usize = 8;

impl<R: Runtime> Store<R> {
    /// PROMISE: durable on return, and covers every entry accepted before. Drops incomplete operations
    /// and fills. The same epoch again gets the same answer; a sealed replica promises nothing and
    /// answers its final content.
    ///
    /// # Errors
    ///
    /// `StaleEpoch` when a higher epoch was promised or `epoch` is not above the log's, `OldTerm`,
    /// `UnknownChunk`, `Busy`.
    pub async fn prepare(&self, term: Term, chunk: ChunkHandle, epoch: Epoch) -> Result<Promised, StoreError> {
        let inner = &self.inner;
        inner.check()?;
        inner.shared.obey(term)?;
        let done = {
            let mut promise = false;
            {
                let state = inner.state.borrow();
                let replica = &state.live(chunk)?.replica;
                if replica.state() != ReplicaState::Sealed {
                    replica.check_promise(epoch)?;
                    if epoch <= replica.hdr.epoch {
                        return Err(StoreError::StaleEpoch(replica.hdr.promised));
                    }
                    promise = epoch > replica.hdr.promised || replica.held_lsn().is_some();
                }
            }
            if promise {
                let body = Body::Promise { promised: epoch, term };
                Some(inner.accept(chunk, epoch, 0, &body, Class::Control)?)
            } else {
                inner.pending()
            }
        };
        let (mut promised, tail) = {
            let state = inner.state.borrow();
            let replica = &state.live(chunk)?.replica;
            (answer(replica), replica.partial_block().map(shared))
        };
        if let Some(done) = done {
            done.wait().await?;
        }
        if promised.state != ReplicaState::Sealed {
            // What was accepted before the promise does not change any more.
            let tail = match tail {
                Some(tail) => tail,
                None => self.partial_in_place(chunk, promised.len).await?,
            };
            promised.digest = inner.digest_of(chunk, promised.len, &tail).await?;
        }
        Ok(promised)
    }

    /// One FILL entry under the promised epoch: held back until [`Store::seal`]. `offset` is a multiple
    /// of 4,096, at or below the current fill end, and not below the block that holds the end of the
    /// durable content; filling from an earlier place again replaces what was filled from there on.
    /// `crcs` of its blocks, already verified. Accepted on return; durable with the seal.
    ///
    /// # Errors
    ///
    /// `StaleEpoch` when `epoch` is not the one promised, `Sealed`, `BadRange`, `NoSpace`, `Busy`.
    pub async fn fill(
        &self,
        chunk: ChunkHandle,
        epoch: Epoch,
        offset: u32,
        length: u32,
        crcs: Vec<u32>,
        payload: R::Buf,
    ) -> Result<(), StoreError> {
        let inner = &self.inner;
        inner.check()?;
        let filling = {
            let state = inner.state.borrow();
            let chunk = state.live(chunk)?;
            chunk.replica.check_fill(epoch, offset, length)?;
            Rc::clone(&chunk.filling)
        };
        let bytes = content(&payload, length, &crcs)?;
        if length > PART_MAX {
            return Err(StoreError::BadRange);
        }
        inner.reserve(chunk, offset + length).await?;
        let _one_at_a_time = filling.lock().await;
        let (again, slot) = {
            let state = inner.state.borrow();
            let chunk = state.live(chunk)?;
            (!chunk.replica.is_filling() || offset < chunk.replica.fill_end(), chunk.slot())
        };
        if again && !weakened!(TwoWritesInFlight) {
            // Blocks that were written before (by a dropped operation, by an earlier fill) may still
            // be on their way: never two writes in flight to one block (rule R19).
            inner.flushed().await?;
        }
        let file = inner.file(slot).await.map_err(|error| StoreError::ReadFailed(error.to_string()))?;
        inner.check()?;
        let blocks = cut_blocks(&[], offset, bytes, &crcs);
        let seq = inner.state.borrow().live(chunk)?.replica.fill_count() + 1;
        let body = Body::Append(Append {
            op: no_stream(seq, 0),
            offset,
            length,
            first_block: blocks.first,
            crcs: Cow::Borrowed(&blocks.crcs),
            tail: &blocks.tail,
        });
        inner.accept(chunk, epoch, FLAG_FILL, &body, Class::Work)?;
        let count = blocks.crcs.len();
        if count > 0 {
            inner.put_blocks(chunk, file, offset / BLOCK, count, empty(), payload.clone());
        }
        Ok(())
    }

    /// SEAL under the promised epoch: content is now `len` bytes with `digest`, else `Mismatch`. FILLED:
    /// reads stay where they were until [`Store::confirm`]. Durable on return. `dedup`: the table of the
    /// source when this replica was filled.
    ///
    /// # Errors
    ///
    /// `Mismatch`, `Longer`, `StaleEpoch`, `OldTerm`, `Sealed` with other content, `Busy`.
    #[allow(clippy::too_many_arguments, reason = "the record has as many fields")]
    pub async fn seal(
        &self,
        term: Term,
        chunk: ChunkHandle,
        epoch: Epoch,
        last_seq: Seq,
        len: u32,
        digest: [u8; 16],
        dedup: Option<Vec<DedupEntry>>,
    ) -> Result<(), StoreError> {
        let inner = &self.inner;
        inner.check()?;
        inner.shared.obey(term)?;
        if dedup.as_ref().is_some_and(|entries| entries.len() > DEDUP_MAX) {
            return Err(StoreError::BadRange);
        }
        if inner.is_sealed_as(chunk, len, digest)? {
            return inner.flushed().await;
        }
        inner.load_content_crcs(chunk).await?;
        let partial = self.partial_if_in_place(chunk).await?;
        let table = {
            let state = inner.state.borrow();
            let replica = &state.live(chunk)?.replica;
            replica.check_seal(epoch, len)?;
            if replica.digest_of_all(partial.as_deref()) != Some(digest) {
                return Err(StoreError::Mismatch);
            }
            dedup.unwrap_or_else(|| replica.dedup.entries())
        };
        let body = Body::Seal(Seal { term, len, last_seq: last_seq.0, digest, dedup: Cow::Owned(table) });
        inner.accept(chunk, epoch, 0, &body, Class::Control)?.wait().await
    }

    /// SEALED: durable on return. Same again: same answer.
    ///
    /// # Errors
    ///
    /// `Mismatch` for other content, or when neither SEAL nor FINAL set it; `OldTerm`, `UnknownChunk`, `Busy`.
    pub async fn confirm(
        &self,
        term: Term,
        chunk: ChunkHandle,
        epoch: Epoch,
        len: u32,
        digest: [u8; 16],
    ) -> Result<(), StoreError> {
        let inner = &self.inner;
        inner.check()?;
        inner.shared.obey(term)?;
        match inner.is_sealed_as(chunk, len, digest) {
            Ok(true) => return inner.flushed().await,
            Ok(false) => {}
            Err(StoreError::Sealed(_)) => return Err(StoreError::Mismatch),
            Err(error) => return Err(error),
        }
        inner.load_open_page(chunk).await?;
        let done = inner.accept(chunk, epoch, 0, &Body::Sealed { term, len, digest }, Class::Control)?;
        {
            let mut state = inner.state.borrow_mut();
            if let Some(chunk) = state.chunks.get_mut(&chunk) {
                chunk.file = None; // no more appends: the cache of open files has it
            }
            inner.touch(&mut state, chunk);
        }
        done.wait().await
    }

    /// XXH3-128 of the first `len` bytes of complete operations (format section 5.3); `u32::MAX`: of all.
    ///
    /// # Errors
    ///
    /// `BadRange` for more than there is, `BadBlock` when checksums or the block at the end are damaged,
    /// `Busy` when overwrites come faster than the end can be read.
    pub async fn digest(&self, chunk: ChunkHandle, len: u32) -> Result<[u8; 16], StoreError> {
        let inner = &self.inner;
        inner.check()?;
        let overwritten = || Ok(inner.state.borrow().live(chunk)?.replica.hdr.last_overwrite_seq);
        for _ in 0..DIGEST_TRIES {
            let before = overwritten()?;
            let digest = self.digest_now(chunk, len).await?;
            if overwritten()? == before {
                return Ok(digest); // of one state, not of two
            }
        }
        Err(StoreError::Busy)
    }

    async fn digest_now(&self, chunk: ChunkHandle, len: u32) -> Result<[u8; 16], StoreError> {
        let inner = &self.inner;
        let (all, sealed, tail) = {
            let state = inner.state.borrow();
            let chunk = state.live(chunk)?;
            let hdr = &chunk.replica.hdr;
            let sealed = hdr.content_is_final().then_some(hdr.sealed_digest);
            (hdr.durable_len, sealed, chunk.replica.partial_block().map(shared))
        };
        let len = if len == u32::MAX { all } else { len };
        if len > all {
            return Err(StoreError::BadRange);
        }
        if len == all
            && let Some(digest) = sealed
        {
            return Ok(digest);
        }
        let rest = (len % BLOCK) as usize;
        let tail = tail.filter(|_| len / BLOCK == all / BLOCK);
        if let Some(tail) = if rest == 0 { Some(&[][..]) } else { tail.as_deref().and_then(|tail| tail.get(..rest)) } {
            return inner.digest_of(chunk, len, tail).await;
        }
        let tail = self.partial_in_place(chunk, len).await?;
        inner.digest_of(chunk, len, &tail).await
    }

    /// The partial block at the end, when it has a place and is not in memory.
    pub(crate) async fn partial_if_in_place(&self, chunk: ChunkHandle) -> Result<Option<Tail>, StoreError> {
        let len = {
            let state = self.inner.state.borrow();
            let replica = &state.live(chunk)?.replica;
            if replica.is_filling() || replica.partial_block().is_some() {
                return Ok(None);
            }
            replica.hdr.durable_len
        };
        self.partial_in_place(chunk, len).await.map(Some)
    }

    /// The bytes of the content's first `len` that lie in a partial block, when that block has a place.
    pub(crate) async fn partial_in_place(&self, chunk: ChunkHandle, len: u32) -> Result<Tail, StoreError> {
        // It is there once what was accepted is durable.
        self.inner.flushed().await?;
        let start = len / BLOCK * BLOCK;
        let block = self.read(chunk, start, BLOCK.min(CHUNK_CAPACITY - start), Upto::Durable).await?;
        let bytes = block.buf.as_ref().get(..(len % BLOCK) as usize);
        bytes.map(shared).ok_or(StoreError::BadRange)
    }
}

fn answer(replica: &Replica) -> Promised {
    let hdr = &replica.hdr;
    Promised {
        promised: hdr.promised,
        epoch: hdr.epoch,
        state: replica.state(),
        last_seq: Seq(hdr.last_seq),
        len: hdr.durable_len,
        digest: hdr.sealed_digest,
        committed_seq: Seq(hdr.committed_seq),
        suspect_seq: Seq(hdr.suspect_seq),
        healthy: !hdr.flags.has(Flags::DAMAGED),
    }
}

impl<R: Runtime> Inner<R> {
    /// Whether the replica is sealed with this content; an error when with another.
    fn is_sealed_as(&self, chunk: ChunkHandle, len: u32, digest: [u8; 16]) -> Result<bool, StoreError> {
        let state = self.state.borrow();
        let replica = &state.live(chunk)?.replica;
        if replica.state() != ReplicaState::Sealed {
            return Ok(false);
        }
        let equal = (replica.hdr.sealed_len, replica.hdr.sealed_digest) == (len, digest);
        if equal { Ok(true) } else { Err(StoreError::Sealed(replica.hdr.sealed_len)) }
    }

    /// Digest of the first `len` bytes, of which `tail` are the last partial block's.
    async fn digest_of(&self, chunk: ChunkHandle, len: u32, tail: &[u8]) -> Result<[u8; 16], StoreError> {
        self.load_crcs(chunk, 0, len / BLOCK).await?;
        let state = self.state.borrow();
        let replica = &state.live(chunk)?.replica;
        match replica.crcs.runs(len / BLOCK) {
            Some(runs) => Ok(crcs::digest(runs, tail, len)),
            None => Err(StoreError::BadBlock(replica.crcs.first_absent(len / BLOCK))),
        }
    }

    /// All checksums of the complete content.
    pub(crate) async fn load_content_crcs(&self, chunk: ChunkHandle) -> Result<(), StoreError> {
        let end = self.state.borrow().live(chunk)?.replica.open_block();
        self.load_crcs(chunk, 0, end).await
    }

    /// The checksum page that the next block goes to, if it has entries already.
    async fn load_open_page(&self, chunk: ChunkHandle) -> Result<(), StoreError> {
        let end = self.state.borrow().live(chunk)?.replica.open_block();
        self.load_crcs(chunk, end.saturating_sub(1), end).await
    }
}
