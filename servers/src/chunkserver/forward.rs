//! FWD and COMMIT at a member: take the next entry, pass it on, and say when it is durable here and
//! behind (replication rules W7 and W8).

use std::time::Duration;

use engine::runtime::Runtime;
use engine::store::{Entry, StoreError};
use wire::Seq;
use wire::forward::{EntryKind, Forward, Nak, NakReason, Up};
use wire::report::Trouble;

use super::admit::{self, Acceptance};
use super::budget::{Permit, Use};
use super::outbox::Outbox;
use super::shard::Shard;
use crate::canary::{sometimes, weakened};

/// While the journal is full a member does not read further; that is the backpressure on the chain.
pub(super) const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// A journal that stays full for so long is a failed disk.
pub(super) const BUSY_MAX: Duration = Duration::from_secs(10);

impl<R: Runtime> Shard<R> {
    /// What to do with an entry, as things stand.
    pub(crate) fn acceptance(&self, entry: &Forward) -> Acceptance {
        admit::accept(self.standing(entry.chunk).as_ref(), entry.epoch, entry.seq)
    }

    /// Which share of the buffers an entry of this chunk uses.
    pub(crate) fn use_of(&self, entry: &Forward) -> Use {
        let replicas = self.replicas.borrow();
        let is_last = replicas.get(&entry.chunk).is_none_or(|replica| replica.successor().is_none());
        if is_last { Use::Tail } else { Use::Middle }
    }

    /// Answers an entry that is not taken.
    pub(crate) fn not_accepted(&self, entry: &Forward, why: Acceptance, from: &Outbox<R>) {
        let (chunk, epoch) = (entry.chunk, entry.epoch);
        match why {
            Acceptance::Accept => {}
            Acceptance::Duplicate => {
                sometimes!("an entry comes again after a reconnect");
                let mut replicas = self.replicas.borrow_mut();
                let Some(replica) = replicas.get_mut(&chunk) else { return };
                replica.upstream = Some(from.clone());
                let durable_seq = replica.durable_from_here();
                replica.told_up = replica.told_up.max(durable_seq);
                from.send(&Up { chunk, epoch, durable_seq });
            }
            Acceptance::Nak(NakReason::Gap, next_seq) => {
                let mut replicas = self.replicas.borrow_mut();
                // Everything behind the gap comes again: one word about it is enough.
                let told = replicas.get_mut(&chunk).is_some_and(|it| it.gap_told.replace(next_seq) == Some(next_seq));
                if !told {
                    sometimes!("NAK GAP");
                    from.send(&Nak { chunk, epoch, reason: NakReason::Gap, next_seq });
                }
            }
            Acceptance::Nak(NakReason::Fenced, next_seq) => {
                sometimes!("an entry of an epoch that is over");
                from.send(&Nak { chunk, epoch, reason: NakReason::Fenced, next_seq });
            }
            Acceptance::Nak(reason, next_seq) => from.send(&Nak { chunk, epoch, reason, next_seq }),
        }
    }

    /// Takes an entry whose bytes match their checksums.
    pub(crate) async fn take(&self, entry: Forward, payload: R::Buf, permit: Option<Permit>, from: &Outbox<R>) {
        if entry.kind != EntryKind::Append {
            return self.take_change(entry, payload, permit, from).await;
        }
        let (chunk, end) = (entry.chunk, entry.offset + entry.length);
        let log_entry = entry_of(&entry);
        let since = self.rt.now();
        loop {
            let now = match self.acceptance(&entry) {
                Acceptance::Accept => self.rt.now(),
                why => return self.not_accepted(&entry, why, from),
            };
            if !self.is_reserved(chunk, end) {
                match self.store.reserve(chunk, end).await {
                    Ok(()) => self.note_reserved(chunk, end),
                    Err(error) => return self.not_written(&entry, &error, from),
                }
                continue;
            }
            match self.store.append(&log_entry, payload.clone()) {
                Ok(durable) => {
                    self.heard_from(&entry, from, now);
                    self.forward(&entry, Some(payload), permit.clone(), now);
                    self.count(|served| served.forwards += 1);
                    if weakened!(BeforeDurable) {
                        self.durable_here(chunk, entry.epoch, entry.seq);
                    }
                    return self.when_durable(chunk, entry.epoch, entry.seq, durable, permit);
                }
                Err(StoreError::Busy) if now.saturating_sub(since) < BUSY_MAX => self.rt.sleep(BUSY_PAUSE).await,
                Err(error) => return self.not_written(&entry, &error, from),
            }
        }
    }

    pub(super) fn heard_from(&self, entry: &Forward, from: &Outbox<R>, now: Duration) {
        if let Some(replica) = self.replicas.borrow_mut().get_mut(&entry.chunk) {
            replica.upstream = Some(from.clone());
            replica.gap_told = None;
            replica.touched = now;
        }
        self.committed_ahead(entry.chunk, entry.epoch, entry.committed_seq);
    }

    pub(super) fn not_written(&self, entry: &Forward, error: &StoreError, from: &Outbox<R>) {
        let reason = match error {
            StoreError::StaleEpoch(_) | StoreError::Rwr | StoreError::Sealed(_) | StoreError::UnknownChunk => {
                NakReason::Fenced
            }
            _ => NakReason::Disk,
        };
        tracing::warn!(chunk = %entry.chunk, seq = %entry.seq, %error, "entry not taken");
        from.send(&Nak { chunk: entry.chunk, epoch: entry.epoch, reason, next_seq: entry.seq });
        if reason == NakReason::Disk {
            self.report_chain(entry.chunk, Trouble::DiskError, self.me.server);
        }
    }

    /// Takes FINAL: nothing of this epoch is taken after it. The digest is compared by a task of its
    /// own, so that entries of other chunks on this connection need not wait.
    pub(crate) fn take_final(&self, entry: Forward, from: &Outbox<R>) {
        match self.acceptance(&entry) {
            Acceptance::Accept => {}
            why => return self.not_accepted(&entry, why, from),
        }
        let now = self.rt.now();
        self.heard_from(&entry, from, now);
        if let Some(replica) = self.replicas.borrow_mut().get_mut(&entry.chunk) {
            replica.closing = true;
            replica.final_seq = Some(entry.seq);
        }
        let (shard, from) = (self.clone(), from.clone());
        self.rt.spawn(async move {
            if let Err(error) = shard.write_final(&entry).await {
                shard.final_refused(&entry, &error, &from);
            }
        });
    }

    async fn write_final(&self, entry: &Forward) -> Result<(), StoreError> {
        let (chunk, epoch, len) = (entry.chunk, entry.epoch, entry.op_off);
        let view = self.store.view(chunk).ok_or(StoreError::UnknownChunk)?;
        if view.len != len || self.store.digest(chunk, len).await? != entry.digest {
            return Err(StoreError::Mismatch);
        }
        self.forward(entry, None, None, self.rt.now());
        self.store.finish(chunk, epoch, entry.seq, len, entry.digest).await?;
        self.durable_here(chunk, epoch, entry.seq);
        Ok(())
    }

    fn final_refused(&self, entry: &Forward, error: &StoreError, from: &Outbox<R>) {
        if *error == StoreError::Mismatch {
            tracing::error!(chunk = %entry.chunk, epoch = %entry.epoch, "content differs from the head's");
            self.report_chain(entry.chunk, Trouble::Diverged, self.me.server);
            let next_seq = Seq(entry.seq.0);
            from.send(&Nak { chunk: entry.chunk, epoch: entry.epoch, reason: NakReason::Disk, next_seq });
        } else {
            self.not_written(entry, error, from);
        }
    }
}

pub(super) fn entry_of(entry: &Forward) -> Entry {
    Entry {
        chunk: entry.chunk,
        epoch: entry.epoch,
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
        crcs: entry.crcs.clone(),
    }
}

/// Whether this build writes entries of this kind.
pub(crate) fn is_known(kind: EntryKind) -> bool {
    matches!(kind, EntryKind::Append | EntryKind::Overwrite | EntryKind::Forget | EntryKind::Final)
}
