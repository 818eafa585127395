//! WRITE at the head of a re-opened chunk, OVERWRITE and FORGET at its members, and reads of blocks
//! whose newest overwrite may not be committed (replication.md, sections 4, 8 and 9).
//!
//! What a block is merged with is read before the entry gets its place, so the decision is made twice:
//! before the read, and again in the step that assigns.

use std::time::Duration;

use engine::runtime::Runtime;
use engine::store::{Edges, Entry, StoreError, Upto};
use wire::append::Appended;
use wire::forward::{EntryKind, Forward};
use wire::read::{Data, Read};
use wire::write::Write;
use wire::{ChunkHandle, Fault, OpId, Reason, Seq, StreamId, checksum};

use super::admit::{Acceptance, Asked};
use super::append::{Wanted, forward_of};
use super::budget::Permit;
use super::fault;
use super::forward::{BUSY_MAX, BUSY_PAUSE, entry_of};
use super::outbox::{Outbox, Ticket};
use super::replica::OpenOp;
use super::shard::Shard;

/// How often the head prepares an overwrite of blocks that others overwrite at the same time.
const PREPARES_MAX: u32 = 8;

/// A reader waits so long for the commit of an overwrite, unless it gives up before: the watchdog of the
/// chain seals it by then.
const COMMIT_WAIT: Duration = Duration::from_secs(2);

/// Streams forgotten by one entry.
const FORGET_MAX: usize = 256;

/// Bytes of a stream's name in the payload of FORGET.
const STREAM_LEN: usize = 16;

impl From<&Write> for Wanted {
    fn from(write: &Write) -> Self {
        let Write { chunk, epoch, offset, id, first_unacked, len, .. } = *write;
        let asked = Asked { at: Some(offset), epoch, op: id.op, first_unacked, op_len: len };
        Self { chunk, id, asked, is_last: false }
    }
}

impl<R: Runtime> Shard<R> {
    /// Admits a positional write whose bytes match their checksums.
    pub(crate) async fn write(&self, write: Write, payload: R::Buf, permit: Permit, mut ticket: Ticket<R>) {
        let wanted = Wanted::from(&write);
        for _ in 0..PREPARES_MAX {
            let edges = match self.store.prepare_overwrite(write.chunk, write.offset, write.len).await {
                Ok(edges) => edges,
                Err(StoreError::Busy) => continue,
                Err(error) => return self.cannot_write(ticket, write.chunk, &error),
            };
            let Some(still) = self.consider(&wanted, ticket) else { return };
            ticket = still;
            match self.assign_write(&write, &payload, &edges) {
                Ok((durable, end)) => {
                    let Write { chunk, epoch, offset, id, len, .. } = write;
                    let (answer, now) = (Appended { chunk, offset, len, epoch, committed_seq: end }, self.rt.now());
                    if let Some(replica) = self.replicas.borrow_mut().get_mut(&chunk) {
                        replica.heard(id.stream, now);
                        replica.touched = now;
                        replica.overwritten(end, offset..offset + len);
                        let waiters = vec![ticket];
                        replica.ops.push_back(OpenOp { end, id: Some(id), answer, waiters, since: now });
                    }
                    let entry = forward_of(&entry_for(&write, end, self.committed_of(chunk)), EntryKind::Overwrite);
                    self.forward(&entry, Some(payload), Some(permit.clone()), now);
                    return self.when_durable(chunk, epoch, end, durable, Some(permit));
                }
                // Somebody wrote to the same block since it was read, or the journal is full.
                Err(StoreError::Busy) => {}
                Err(error) => return self.cannot_write(ticket, write.chunk, &error),
            }
        }
        self.refuse(ticket, Reason::Busy, 0);
    }

    /// Gives the write the next place in the log, in one step.
    fn assign_write(
        &self,
        write: &Write,
        payload: &R::Buf,
        edges: &Edges,
    ) -> Result<(impl Future<Output = Result<(), StoreError>> + use<R>, Seq), StoreError> {
        let view = self.store.view(write.chunk).ok_or(StoreError::UnknownChunk)?;
        let seq = Seq(view.last_seq.0 + 1);
        let entry = entry_for(write, seq, self.committed_of(write.chunk));
        Ok((self.store.overwrite(&entry, payload, edges)?, seq))
    }

    fn cannot_write(&self, ticket: Ticket<R>, chunk: ChunkHandle, error: &StoreError) {
        if let StoreError::BadBlock(block) = error {
            // Repaired from another member; the client's next try finds it whole.
            self.bad_block(chunk, *block);
        }
        self.refuse_for(ticket, chunk, error);
    }

    /// Takes OVERWRITE or FORGET from the predecessor.
    pub(super) async fn take_change(&self, entry: Forward, payload: R::Buf, permit: Option<Permit>, from: &Outbox<R>) {
        let (chunk, epoch, seq) = (entry.chunk, entry.epoch, entry.seq);
        let since = self.rt.now();
        let mut edges = None;
        loop {
            let now = match self.acceptance(&entry) {
                Acceptance::Accept => self.rt.now(),
                why => return self.not_accepted(&entry, why, from),
            };
            let accepted = match (&entry.kind, edges.take()) {
                (EntryKind::Forget, _) => self.forget_here(&entry, &payload).map(|durable| {
                    self.when_durable(chunk, epoch, seq, durable, permit.clone());
                }),
                (_, None) => match self.store.prepare_overwrite(chunk, entry.offset, entry.length).await {
                    Ok(prepared) => {
                        edges = Some(prepared);
                        continue;
                    }
                    Err(error) => Err(error),
                },
                (_, Some(edges)) => self.store.overwrite(&entry_of(&entry), &payload, &edges).map(|durable| {
                    self.when_durable(chunk, epoch, seq, durable, permit.clone());
                }),
            };
            match accepted {
                Ok(()) => {
                    if entry.kind == EntryKind::Overwrite
                        && let Some(replica) = self.replicas.borrow_mut().get_mut(&chunk)
                    {
                        replica.overwritten(seq, entry.offset..entry.offset + entry.length);
                    }
                    self.heard_from(&entry, from, now);
                    self.forward(&entry, Some(payload), permit, now);
                    return self.count(|served| served.forwards += 1);
                }
                Err(StoreError::Busy) if now.saturating_sub(since) < BUSY_MAX => self.rt.sleep(BUSY_PAUSE).await,
                Err(error) => {
                    if let StoreError::BadBlock(block) = error {
                        self.bad_block(chunk, block);
                    }
                    return self.not_written(&entry, &error, from);
                }
            }
        }
    }

    fn forget_here(
        &self,
        entry: &Forward,
        payload: &R::Buf,
    ) -> Result<impl Future<Output = Result<(), StoreError>> + use<R>, StoreError> {
        let names = &payload.as_ref()[..entry.length as usize];
        let (names, rest) = names.as_chunks::<STREAM_LEN>();
        if !rest.is_empty() {
            return Err(StoreError::BadRange);
        }
        let streams: Vec<StreamId> = names.iter().map(|name| StreamId(*name)).collect();
        self.store.forget(entry.chunk, entry.epoch, entry.seq, entry.committed_seq, &streams)
    }

    /// Makes room in the dedup table of a re-opened chunk, unless that is under way.
    pub(super) fn forget_soon(&self, chunk: ChunkHandle) {
        let shard = self.clone();
        self.rt.spawn(async move { shard.forget_streams(chunk).await });
    }

    /// FORGET: streams that are over leave the dedup table, on all members.
    pub(super) async fn forget_streams(&self, chunk: ChunkHandle) {
        let room = (FORGET_MAX * STREAM_LEN).next_multiple_of(wire::limits::BLOCK_SIZE as usize);
        let mut buf = self.rt.alloc(room).await;
        let now = self.rt.now();
        let (epoch, streams) = {
            let replicas = self.replicas.borrow();
            let Some(replica) = replicas.get(&chunk).filter(|it| it.is_head() && it.final_seq.is_none()) else {
                return;
            };
            (replica.epoch, replica.forgettable(FORGET_MAX, now))
        };
        let Some(view) = self.store.view(chunk).filter(|view| view.epoch == epoch && view.promised == epoch) else {
            return;
        };
        if streams.is_empty() {
            return;
        }
        let len = streams.len() * STREAM_LEN;
        for (place, stream) in buf.as_mut().chunks_exact_mut(STREAM_LEN).zip(&streams) {
            place.copy_from_slice(&stream.0);
        }
        let payload = self.rt.freeze(buf);
        let (seq, committed_seq) = (Seq(view.last_seq.0 + 1), self.committed_of(chunk).unwrap_or_default());
        let durable = match self.store.forget(chunk, epoch, seq, committed_seq, &streams) {
            Ok(durable) => durable,
            Err(error) => return tracing::debug!(%chunk, %error, "streams are not forgotten now"),
        };
        if let Some(replica) = self.replicas.borrow_mut().get_mut(&chunk) {
            replica.forgot(&streams);
        }
        let crcs = checksum::block_crcs(&payload.as_ref()[..len]);
        let entry = Forward {
            chunk,
            epoch,
            kind: EntryKind::Forget,
            seq,
            id: OpId::default(),
            first_unacked: 0,
            op_off: 0,
            op_len: 0,
            offset: 0,
            length: u32::try_from(len).unwrap_or(0),
            part: 0,
            parts: 1,
            committed_seq,
            digest: [0; 16],
            crcs,
        };
        self.forward(&entry, Some(payload), None, now);
        self.when_durable(chunk, epoch, seq, durable, None);
    }

    /// Blocks of a re-opened chunk as they were acknowledged last: waits while one of them has an
    /// overwrite that is not known to be committed, so that nobody sees it and then the old bytes again.
    pub(super) async fn settled_blocks(
        &self,
        read: &Read,
        ticket: &Ticket<R>,
    ) -> Result<Option<(Data, R::Buf, Permit)>, Fault> {
        let Read { chunk, offset, len, .. } = *read;
        let until = self.rt.now() + COMMIT_WAIT;
        let mut asked = false;
        loop {
            let committed = self.committed.notified();
            tokio::pin!(committed);
            committed.as_mut().enable();
            match self.is_pending(read) {
                // No chain here any more: what was known committed when it ended.
                None => return self.blocks(chunk, offset, len, Upto::Committed, ticket).await,
                Some((false, _)) => {
                    let blocks = self.blocks(chunk, offset, len, Upto::Durable, ticket).await;
                    // What came meanwhile may be in them.
                    if matches!(self.is_pending(read), Some((false, _))) {
                        return blocks;
                    }
                }
                Some((true, false)) if !asked => {
                    asked = true;
                    self.ask_head(chunk).await;
                }
                Some((true, _)) => {
                    let now = self.rt.now();
                    if now >= until || ticket.is_expired(now) {
                        return Err(fault::refusal(Reason::NotCommitted, 0));
                    }
                    tokio::select! {
                        biased;
                        () = committed => {}
                        () = self.rt.sleep(until - now) => {}
                    }
                }
            }
        }
    }

    /// Whether the range waits for a commit, and whether I am the head; `None` outside of a chain.
    fn is_pending(&self, read: &Read) -> Option<(bool, bool)> {
        let view = self.store.view(read.chunk)?;
        let replicas = self.replicas.borrow();
        let replica = replicas.get(&read.chunk).filter(|it| it.epoch == view.epoch && view.promised == view.epoch)?;
        let range = read.offset..read.offset.saturating_add(read.len).min(view.len);
        Some((replica.is_pending(&range), replica.is_head()))
    }
}

fn entry_for(write: &Write, seq: Seq, committed: Option<Seq>) -> Entry {
    Entry {
        chunk: write.chunk,
        epoch: write.epoch,
        seq,
        id: write.id,
        first_unacked: write.first_unacked,
        op_off: write.offset,
        op_len: write.len,
        offset: write.offset,
        length: write.len,
        part: 0,
        parts: 1,
        committed_seq: committed.unwrap_or_default(),
        crcs: write.crcs.clone(),
    }
}
