//! READ, VERSION and FETCH: bytes out, whole verified blocks with their checksums.
//!
//! Any member serves what it knows to be committed; beyond that it asks the head once, and then says
//! NOT_COMMITTED, never zeros (replication.md, section 8).

use engine::runtime::Runtime;
use engine::store::{Blocks, StoreError, Upto, View};
use wire::fetch::Fetch;
use wire::limits::BLOCK_SIZE;
use wire::member::ReplicaState;
use wire::read::{Data, Read, Version, VersionOk};
use wire::report::Trouble;
use wire::{ChunkHandle, Fault, Kind, Reason};

use super::budget::{Permit, Use};
use super::fault;
use super::outbox::Ticket;
use super::shard::Shard;
use crate::canary::{sometimes, weakened};

/// What becomes of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sight {
    /// Serve what there is of the range.
    Serve,
    /// Ask the head how far it is, then decide again.
    AskHead,
    /// Refuse.
    Refuse(Reason, u64),
}

/// Decides about a read. `may_ask`: the head was not asked yet.
fn sight(view: Option<&View>, read: &Read, may_ask: bool) -> Sight {
    let Some(view) = view.filter(|view| view.state != ReplicaState::Condemned) else {
        return Sight::Refuse(Reason::UnknownChunk, 0);
    };
    if view.state == ReplicaState::Sealed {
        let is_beyond = read.offset >= view.sealed_len;
        return if is_beyond { Sight::Refuse(Reason::BadOffset, u64::from(view.sealed_len)) } else { Sight::Serve };
    }
    let newest = view.epoch.max(view.promised);
    if read.epoch > newest {
        return Sight::Refuse(Reason::StaleEpoch, u64::from(newest.0));
    }
    let committed_len = if weakened!(DirtyReads) { view.durable_len } else { view.committed_len };
    // Sequence numbers of another epoch say nothing about this one's.
    // An overwrite that was acknowledged is in the log of every member; which blocks wait for their
    // commit is looked at apart, block by block.
    let known = if is_overwritable(view) { view.last_seq } else { view.committed_seq };
    let is_fresh = (read.epoch != view.epoch && read.epoch.0 != 0) || known >= read.min_seq;
    if is_fresh && read.offset + read.len <= committed_len {
        return Sight::Serve;
    }
    if may_ask && view.state == ReplicaState::Open && view.promised == view.epoch && view.my_position != 0 {
        return Sight::AskHead;
    }
    if is_fresh && read.offset < committed_len {
        return Sight::Serve;
    }
    Sight::Refuse(Reason::NotCommitted, u64::from(view.committed_len))
}

/// Whether blocks of this replica may change: it is in the chain of a re-opened chunk.
fn is_overwritable(view: &View) -> bool {
    view.fixed && view.state == ReplicaState::Open && view.promised == view.epoch
}

impl<R: Runtime> Shard<R> {
    /// READ.
    pub(crate) async fn read(&self, read: Read, ticket: Ticket<R>) {
        let mut decision = sight(self.store.view(read.chunk).as_ref(), &read, true);
        if decision == Sight::AskHead {
            sometimes!("a member asks the head how far it is");
            self.ask_head(read.chunk).await;
            decision = sight(self.store.view(read.chunk).as_ref(), &read, false);
        }
        if let Sight::Refuse(reason, detail) = decision {
            self.count(|served| served.refusals += 1);
            let is_unknown = reason == Reason::UnknownChunk && self.store.view(read.chunk).is_none();
            return ticket.refuse(if is_unknown { self.no_chunk() } else { fault::refusal(reason, detail) });
        }
        let upto = if weakened!(DirtyReads) { Upto::Durable } else { Upto::Committed };
        let outcome = if self.store.view(read.chunk).is_some_and(|view| is_overwritable(&view)) {
            self.settled_blocks(&read, &ticket).await
        } else {
            self.blocks(read.chunk, read.offset, read.len, upto, &ticket).await
        };
        match outcome {
            Ok(Some((data, payload, permit))) => {
                self.count(|served| {
                    served.reads += 1;
                    served.read_bytes += u64::from(data.len);
                });
                ticket.answer_with(&data, payload, permit);
            }
            Ok(None) => {}
            Err(fault) => {
                self.count(|served| served.refusals += 1);
                ticket.refuse(fault);
            }
        }
    }

    /// FETCH: what a seal's source has durable, for a member under the same promise.
    pub(crate) async fn fetch(&self, fetch: Fetch, ticket: Ticket<R>) {
        let Some(view) = self.store.view(fetch.chunk) else { return ticket.refuse(self.no_chunk()) };
        if view.state == ReplicaState::Condemned {
            return ticket.refuse(fault::refusal(Reason::UnknownChunk, 0));
        }
        if view.state != ReplicaState::Sealed && view.promised != fetch.epoch {
            return ticket.refuse(fault::refusal(Reason::StaleEpoch, u64::from(view.promised.0)));
        }
        match self.blocks(fetch.chunk, fetch.offset, fetch.len, Upto::Durable, &ticket).await {
            Ok(Some((data, payload, permit))) => ticket.answer_with(&data, payload, permit),
            Ok(None) => {}
            Err(fault) => ticket.refuse(fault),
        }
    }

    /// Verified blocks in a buffer of the read share; `None` when the caller has stopped waiting.
    pub(super) async fn blocks(
        &self,
        chunk: ChunkHandle,
        offset: u32,
        len: u32,
        upto: Upto,
        ticket: &Ticket<R>,
    ) -> Result<Option<(Data, R::Buf, Permit)>, Fault> {
        let touched = (offset % BLOCK_SIZE + len).next_multiple_of(BLOCK_SIZE);
        let permit = self.budget.take(Use::Read, touched as usize).await;
        let permit = permit.ok_or_else(|| Fault::new(Kind::Unavailable, "the server is stopping"))?;
        if ticket.is_expired(self.rt.now()) {
            return Ok(None);
        }
        let blocks = match self.store.read(chunk, offset, len, upto).await {
            Ok(blocks) => blocks,
            Err(error) => {
                self.note_bad_block(chunk, &error);
                return Err(fault::of_store(&error));
            }
        };
        let view = self.store.view(chunk).ok_or_else(|| self.no_chunk())?;
        if blocks.len == 0 {
            return Err(fault::refusal(Reason::NotCommitted, u64::from(view.committed_len)));
        }
        Ok(Some(self.data_of(chunk, &view, blocks, permit)))
    }

    fn data_of(
        &self,
        chunk: ChunkHandle,
        view: &View,
        blocks: Blocks<R::Buf>,
        permit: Permit,
    ) -> (Data, R::Buf, Permit) {
        let committed_len = if view.state == ReplicaState::Sealed { view.sealed_len } else { view.committed_len };
        let Blocks { buf, offset, len, mut crcs } = blocks;
        let padded = len.next_multiple_of(BLOCK_SIZE);
        crcs.truncate((padded / BLOCK_SIZE) as usize);
        let payload = self.rt.slice(&buf, 0..padded as usize);
        let (epoch, committed_seq) = (view.epoch, view.committed_seq);
        (Data { chunk, offset, len, committed_len, epoch, committed_seq, crcs }, payload, permit)
    }

    fn note_bad_block(&self, chunk: ChunkHandle, error: &StoreError) {
        if !matches!(error, StoreError::BadBlock(_) | StoreError::ReadFailed(_)) {
            return;
        }
        let Some(epoch) = self.store.view(chunk).map(|view| view.epoch) else { return };
        tracing::warn!(%chunk, %error, "block cannot be served from this replica");
        self.count(|served| served.bad_blocks += 1);
        if let StoreError::BadBlock(block) = error {
            self.bad_block(chunk, *block);
        }
        self.report(chunk, epoch, Trouble::BadBlock, self.me.server);
    }

    /// VERSION: how far the chain is committed, answered by its head.
    pub(crate) fn version(&self, version: &Version) -> Result<VersionOk, Fault> {
        let view = self.store.view(version.chunk).ok_or_else(|| self.no_chunk())?;
        match view.state {
            ReplicaState::Condemned => Err(fault::refusal(Reason::UnknownChunk, 0)),
            ReplicaState::Sealed => Ok(VersionOk { committed_seq: view.last_seq, committed_len: view.sealed_len }),
            ReplicaState::Rwr => Err(fault::refusal(Reason::Rwr, 0)),
            ReplicaState::Open if view.my_position != 0 => Err(fault::refusal(Reason::NotPrimary, 0)),
            ReplicaState::Open if version.epoch.0 != 0 && version.epoch != view.epoch => {
                Err(fault::refusal(Reason::StaleEpoch, u64::from(view.promised.0)))
            }
            ReplicaState::Open => {
                Ok(VersionOk { committed_seq: view.committed_seq, committed_len: view.committed_len })
            }
        }
    }

    /// Asks the head how far the chain is committed. Best effort: without an answer the reader hears
    /// what is known here.
    pub(super) async fn ask_head(&self, chunk: ChunkHandle) {
        let head = self
            .replicas
            .borrow()
            .get(&chunk)
            .and_then(|replica| replica.members.first().cloned().map(|head| (head, replica.epoch)));
        let Some((head, epoch)) = head else { return };
        match self.ask(&head, chunk.shard(head.shards), &Version { chunk, epoch }).await {
            Ok(ok) => self.committed_ahead(chunk, epoch, ok.committed_seq),
            Err(error) => tracing::debug!(%chunk, head = %head.server, %error, "head gave no version"),
        }
    }
}

#[cfg(test)]
mod tests {
    use wire::{Epoch, InodeId, Seq, ServerId};

    use super::*;

    fn open() -> View {
        View {
            state: ReplicaState::Open,
            epoch: Epoch(3),
            promised: Epoch(3),
            members: vec![ServerId(1), ServerId(2)],
            my_position: 1,
            prev: ChunkHandle::NONE,
            file: InodeId(9),
            len: 300,
            last_seq: Seq(30),
            durable_len: 300,
            durable_seq: Seq(30),
            committed_len: 200,
            committed_seq: Seq(20),
            closed: false,
            filled: false,
            fixed: false,
            sealed_len: 0,
            digest: [0; 16],
            suspect_seq: Seq(0),
            damaged: false,
        }
    }

    fn read(offset: u32, len: u32) -> Read {
        Read { chunk: ChunkHandle(1), epoch: Epoch(3), offset, len, min_seq: Seq(0) }
    }

    #[test]
    fn what_is_known_committed_is_served_by_any_member() {
        assert_eq!(sight(Some(&open()), &read(0, 200), true), Sight::Serve);
        let rwr = View { state: ReplicaState::Rwr, ..open() };
        assert_eq!(sight(Some(&rwr), &read(100, 100), true), Sight::Serve);
    }

    #[test]
    fn durable_but_uncommitted_bytes_are_asked_for_and_never_shown() {
        assert_eq!(sight(Some(&open()), &read(150, 100), true), Sight::AskHead);
        assert_eq!(sight(Some(&open()), &read(150, 100), false), Sight::Serve, "the committed part of it");
        let refusal = Sight::Refuse(Reason::NotCommitted, 200);
        assert_eq!(sight(Some(&open()), &read(200, 1), false), refusal);
        let head = View { my_position: 0, ..open() };
        assert_eq!(sight(Some(&head), &read(200, 1), true), refusal, "nobody knows more than the head");
    }

    #[test]
    fn a_reader_never_goes_back_behind_what_it_has_seen() {
        let seen = Read { min_seq: Seq(21), ..read(0, 10) };
        assert_eq!(sight(Some(&open()), &seen, true), Sight::AskHead);
        assert_eq!(sight(Some(&open()), &seen, false), Sight::Refuse(Reason::NotCommitted, 200));
    }

    #[test]
    fn a_filled_replica_shows_no_more_than_it_knew_before() {
        let filled = View { filled: true, promised: Epoch(4), ..open() };
        let after_seal = Read { epoch: Epoch(4), ..read(150, 100) };
        assert_eq!(sight(Some(&filled), &after_seal, true), Sight::Serve);
        let beyond = Read { epoch: Epoch(4), ..read(200, 100) };
        assert_eq!(sight(Some(&filled), &beyond, true), Sight::Refuse(Reason::NotCommitted, 200));
    }

    #[test]
    fn a_replica_that_never_heard_of_the_epoch_says_so() {
        let newer = Read { epoch: Epoch(4), ..read(0, 10) };
        assert_eq!(sight(Some(&open()), &newer, true), Sight::Refuse(Reason::StaleEpoch, 3));
    }

    #[test]
    fn a_sealed_chunk_is_served_whole_whatever_epoch_the_reader_knows() {
        let sealed = View { state: ReplicaState::Sealed, sealed_len: 300, ..open() };
        let any = Read { epoch: Epoch(9), min_seq: Seq(99), ..read(200, 1000) };
        assert_eq!(sight(Some(&sealed), &any, true), Sight::Serve);
        assert_eq!(sight(Some(&sealed), &read(300, 1), true), Sight::Refuse(Reason::BadOffset, 300));
    }

    #[test]
    fn a_condemned_replica_answers_like_none() {
        let condemned = View { state: ReplicaState::Condemned, ..open() };
        let unknown = Sight::Refuse(Reason::UnknownChunk, 0);
        assert_eq!(sight(Some(&condemned), &read(0, 1), true), unknown);
        assert_eq!(sight(None, &read(0, 1), true), unknown);
    }
}
