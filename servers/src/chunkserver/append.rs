//! APPEND at the head of a chain: take an operation whole, give it its place in the log, answer when
//! it is committed; and the planned end of a chain.
//!
//! An operation is admitted only when all its bytes are here and match their checksums: a client
//! that dies half-way costs nobody anything. Then sequence numbers and offsets are assigned in one
//! step, and from the same buffers each part goes to the successor and to the own disk.

use std::rc::Rc;
use std::time::Duration;

use engine::runtime::Runtime;
use engine::store::{Entry, StoreError};
use wire::append::{Append, Appended, LAST};
use wire::forward::{EntryKind, Forward};
use wire::report::Trouble;
use wire::{ChunkHandle, Epoch, Fault, Kind, OpId, Reason, Seq};

use super::admit::{self, Admission, Asked, Known, Table};
use super::budget::Permit;
use super::fault;
use super::outbox::Ticket;
use super::replica::{Held, OpenOp};
use super::shard::Shard;

/// What the decision about an operation needs to know of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) chunk: ChunkHandle,
    pub(crate) id: OpId,
    pub(crate) asked: Asked,
    /// Nothing follows in this chunk.
    pub(crate) is_last: bool,
}

impl From<&Append> for Wanted {
    fn from(append: &Append) -> Self {
        let Append { chunk, epoch, id, first_unacked, op_len, .. } = *append;
        let asked = Asked { at: None, epoch, op: id.op, first_unacked, op_len };
        Self { chunk, id, asked, is_last: append.flags == LAST }
    }
}

/// One operation on its way in.
pub(crate) struct Operation<R: Runtime> {
    /// Its first part, as it was announced.
    pub(crate) first: Append,
    parts: Vec<Part<R>>,
    permit: Option<Permit>,
}

struct Part<R: Runtime> {
    payload: R::Buf,
    crcs: Vec<u32>,
    length: u32,
}

impl<R: Runtime> Operation<R> {
    /// Room for the whole operation is taken.
    pub(crate) fn new(first: Append, permit: Option<Permit>) -> Self {
        Self { first, parts: Vec::new(), permit }
    }

    /// Whether this frame is the next part of it.
    pub(crate) fn continues_with(&self, next: &Append) -> bool {
        usize::from(next.part) == self.parts.len()
            && (next.parts, next.op_len, next.epoch) == (self.first.parts, self.first.op_len, self.first.epoch)
    }

    /// Adds a part whose bytes match its checksums.
    pub(crate) fn add(&mut self, payload: R::Buf, crcs: Vec<u32>, length: u32) {
        self.parts.push(Part { payload, crcs, length });
    }

    /// Whether all its bytes are here.
    pub(crate) fn is_whole(&self) -> bool {
        self.parts.len() == usize::from(self.first.parts) || self.first.op_len == 0
    }
}

impl<R: Runtime> Shard<R> {
    /// Decides about an operation; answers it, or lets it wait for a commit, unless its bytes are
    /// wanted: then the ticket comes back.
    pub(crate) fn consider(&self, wanted: &Wanted, ticket: Ticket<R>) -> Option<Ticket<R>> {
        let now = self.rt.now();
        if ticket.is_expired(now) {
            return None;
        }
        if self.is_stopping() {
            ticket.refuse(Fault::new(Kind::Unavailable, "the server is stopping"));
            return None;
        }
        let Wanted { chunk, id, asked, is_last: ends } = *wanted;
        let decision = self.decide(wanted, now);
        if asked.op_len == 0 {
            let closes = matches!(decision, Admission::New | Admission::Full | Admission::Refuse(Reason::ChunkFull, _));
            if closes {
                self.finish(chunk, Some(ticket));
                return None;
            }
        }
        match decision {
            Admission::New => return Some(ticket),
            Admission::Again(entry) => {
                self.count(|served| served.repeats += 1);
                let committed_seq = self.committed_of(chunk).filter(|_| entry.chunk == chunk).unwrap_or_default();
                let (offset, len) = (entry.offset, entry.len);
                ticket.answer(Ok(Appended { chunk: entry.chunk, offset, len, epoch: asked.epoch, committed_seq }));
                if ends {
                    self.finish(chunk, None);
                }
            }
            Admission::Wait(_) => {
                self.count(|served| served.repeats += 1);
                self.wait_for(chunk, id, ticket);
                if ends {
                    self.finish(chunk, None);
                }
            }
            Admission::Full => {
                self.finish(chunk, None);
                self.refuse(ticket, Reason::ChunkFull, 0);
            }
            Admission::Forget => {
                self.forget_soon(chunk);
                self.refuse(ticket, Reason::Busy, 0);
            }
            Admission::Refuse(Reason::UnknownChunk, _) if self.store.view(chunk).is_none() => {
                self.count(|served| served.refusals += 1);
                ticket.refuse(self.no_chunk());
            }
            Admission::Refuse(reason, detail) => self.refuse(ticket, reason, detail),
            Admission::Lost => {
                tracing::error!(%chunk, stream = %id.stream, op = id.op, "acknowledged operations are missing");
                self.report_chain(chunk, Trouble::LostOps, self.me.server);
                self.refuse(ticket, Reason::LostOps, 0);
            }
        }
        None
    }

    fn decide(&self, wanted: &Wanted, now: Duration) -> Admission {
        let Wanted { chunk, id, asked, .. } = *wanted;
        let standing = self.standing(chunk);
        let entry = self.store.dedup_entry(chunk, id);
        let mut known =
            Known { entry, committed: true, newest: self.store.newest_op(chunk, id.stream), table: Table::Room };
        if let Some(replica) = self.replicas.borrow_mut().get_mut(&chunk) {
            known.committed = !replica.ops.iter().any(|op| op.id == Some(id));
            if replica.table_is_full(|| self.store.dedup(chunk)) {
                known.table = if replica.can_forget(now) { Table::Forgettable } else { Table::Full };
            }
        }
        admit::admit(standing.as_ref(), &asked, &known)
    }

    pub(super) fn refuse(&self, ticket: Ticket<R>, reason: Reason, detail: u64) {
        self.count(|served| served.refusals += 1);
        ticket.refuse(fault::refusal(reason, detail));
    }

    fn wait_for(&self, chunk: ChunkHandle, id: OpId, ticket: Ticket<R>) {
        let mut replicas = self.replicas.borrow_mut();
        let ops = replicas.get_mut(&chunk).into_iter().flat_map(|replica| replica.ops.iter_mut());
        if let Some(op) = ops.into_iter().find(|op| op.id == Some(id)) {
            op.waiters.push(ticket);
        }
    }

    /// Admits a whole operation: takes space for it first, then decides again, because the chain may
    /// have changed meanwhile, and assigns it in the same step.
    pub(crate) async fn admit(&self, op: Operation<R>, mut ticket: Ticket<R>) {
        let chunk = op.first.chunk;
        loop {
            let Some(wanted) = self.consider(&Wanted::from(&op.first), ticket) else { return };
            ticket = wanted;
            let Some(view) = self.store.view(chunk) else { continue };
            let end = view.len + op.first.op_len;
            if self.is_reserved(chunk, end) {
                return self.assign(op, ticket);
            }
            if let Err(error) = self.store.reserve(chunk, end).await {
                return self.refuse_for(ticket, chunk, &error);
            }
            self.note_reserved(chunk, end);
        }
    }

    pub(super) fn refuse_for(&self, ticket: Ticket<R>, chunk: ChunkHandle, error: &StoreError) {
        self.count(|served| served.refusals += 1);
        ticket.refuse(fault::of_store(error));
        if matches!(error, StoreError::NoSpace | StoreError::Fenced(_)) {
            self.report_chain(chunk, Trouble::DiskError, self.me.server);
        }
    }

    /// Gives the operation its place: consecutive numbers and offsets for all parts, in one step.
    fn assign(&self, op: Operation<R>, ticket: Ticket<R>) {
        let Operation { first, parts, permit } = op;
        let (chunk, epoch) = (first.chunk, first.epoch);
        let Some(view) = self.store.view(chunk) else { return };
        let committed_seq = self.committed_of(chunk).unwrap_or_default();
        let (op_off, part_count, now) = (view.len, first.parts, self.rt.now());
        let mut durable = None;
        let mut next = Entry {
            chunk,
            epoch,
            seq: Seq(view.last_seq.0 + 1),
            id: first.id,
            first_unacked: first.first_unacked,
            op_off,
            op_len: first.op_len,
            offset: op_off,
            length: 0,
            part: 0,
            parts: part_count,
            committed_seq,
            crcs: Vec::new(),
        };
        for part in parts {
            next.length = part.length;
            next.crcs = part.crcs;
            match self.store.append(&next, part.payload.clone()) {
                Ok(wait) => durable = Some(wait),
                Err(error) if next.part == 0 => return self.refuse_for(ticket, chunk, &error),
                Err(error) => return self.torn(chunk, &error, ticket),
            }
            self.forward(&forward_of(&next, EntryKind::Append), Some(part.payload), permit.clone(), now);
            next.seq = Seq(next.seq.0 + 1);
            next.offset += next.length;
            next.part += 1;
        }
        let end = Seq(next.seq.0 - 1);
        let answer = Appended { chunk, offset: op_off, len: first.op_len, epoch, committed_seq: end };
        if let Some(replica) = self.replicas.borrow_mut().get_mut(&chunk) {
            replica.heard(first.id.stream, now);
            replica.touched = now;
            replica.ops.push_back(OpenOp { end, id: Some(first.id), answer, waiters: vec![ticket], since: now });
        }
        if let Some(durable) = durable {
            self.when_durable(chunk, epoch, end, durable, permit);
        }
        if first.flags == LAST {
            self.finish(chunk, None);
        }
    }

    /// Part of an operation is in the log and the rest is not: only a seal, which drops it, helps.
    fn torn(&self, chunk: ChunkHandle, error: &StoreError, ticket: Ticket<R>) {
        tracing::error!(%chunk, %error, "disk refused the rest of an operation");
        self.report_chain(chunk, Trouble::DiskError, self.me.server);
        ticket.refuse(fault::unknown_outcome());
        self.close_replica(chunk);
    }

    /// Ends the chain as planned (replication.md, section 5.1): nothing more is admitted, and FINAL
    /// is the last entry. `waiter` is answered when it is committed.
    pub(crate) fn finish(&self, chunk: ChunkHandle, waiter: Option<Ticket<R>>) {
        let mut replicas = self.replicas.borrow_mut();
        let Some(replica) = replicas.get_mut(&chunk).filter(|replica| replica.is_head()) else { return };
        replica.final_waiters.extend(waiter);
        if let Some(answer) = replica.finished {
            for waiter in std::mem::take(&mut replica.final_waiters) {
                waiter.answer(Ok(answer));
            }
        }
        if !std::mem::replace(&mut replica.closing, true) {
            let (shard, epoch) = (self.clone(), replica.epoch);
            self.rt.spawn(async move { shard.send_final(chunk, epoch).await });
        }
    }

    async fn send_final(&self, chunk: ChunkHandle, epoch: Epoch) {
        if self.replicas.borrow().get(&chunk).is_some_and(|replica| replica.fixed) {
            // Its table stays with it: what is over need not be remembered when it is opened again.
            self.forget_streams(chunk).await;
        }
        let Some(len) = self.store.view(chunk).map(|view| view.len) else { return };
        // Nothing can change the content meanwhile: the replica is closing.
        let digest = match self.store.digest(chunk, len).await {
            Ok(digest) => digest,
            Err(error) => return self.disk_failed(chunk, epoch, &error),
        };
        let Some(view) = self.store.view(chunk).filter(|view| view.epoch == epoch && view.promised == epoch) else {
            return;
        };
        let (seq, now) = (Seq(view.last_seq.0 + 1), self.rt.now());
        let committed_seq = {
            let mut replicas = self.replicas.borrow_mut();
            let Some(replica) = replicas.get_mut(&chunk).filter(|replica| replica.epoch == epoch) else { return };
            let answer = Appended { chunk, offset: len, len: 0, epoch, committed_seq: seq };
            let waiters = std::mem::take(&mut replica.final_waiters);
            replica.final_seq = Some(seq);
            replica.ops.push_back(OpenOp { end: seq, id: None, answer, waiters, since: now });
            replica.committed
        };
        let last = Forward {
            chunk,
            epoch,
            kind: EntryKind::Final,
            seq,
            id: OpId::default(),
            first_unacked: 0,
            op_off: len,
            op_len: 0,
            offset: 0,
            length: 0,
            part: 0,
            parts: 1,
            committed_seq,
            digest,
            crcs: Vec::new(),
        };
        self.forward(&last, None, None, now);
        match self.store.finish(chunk, epoch, seq, len, digest).await {
            Ok(()) => self.durable_here(chunk, epoch, seq),
            Err(error) => self.disk_failed(chunk, epoch, &error),
        }
    }

    /// Sends an entry to the successor and keeps it until it is durable there.
    pub(crate) fn forward(&self, entry: &Forward, payload: Option<R::Buf>, permit: Option<Permit>, now: Duration) {
        let payload_len = entry.length as usize;
        let head = || Rc::from(wire::frame::head(entry, 0, 0, payload_len));
        let payload = payload.map(|payload| self.rt.slice(&payload, 0..payload_len));
        self.hold(entry.chunk, entry.committed_seq, || Held {
            seq: entry.seq,
            head: head(),
            payload,
            permit,
            since: now,
        });
    }
}

pub(super) fn forward_of(entry: &Entry, kind: EntryKind) -> Forward {
    Forward {
        chunk: entry.chunk,
        epoch: entry.epoch,
        kind,
        seq: entry.seq,
        id: entry.id,
        first_unacked: entry.first_unacked,
        op_off: entry.op_off,
        op_len: entry.op_len,
        offset: entry.offset,
        length: entry.length,
        part: entry.part,
        parts: entry.parts,
        committed_seq: entry.committed_seq,
        digest: [0; 16],
        crcs: entry.crcs.clone(),
    }
}
