//! How far the chains of a shard are, and what follows from it: UP to the predecessor, answers to
//! clients, COMMIT and resends to the successor, reports to the master.
//!
//! The bookkeeping of one replica is in [`super::replica`]; here it meets the store and the links.

use std::collections::BTreeSet;
use std::time::Duration;

use engine::runtime::Runtime;
use engine::store::StoreError;
use wire::forward::{Commit, Nak, NakReason, Up};
use wire::member::Member;
use wire::report::{Finished, Report, Trouble};
use wire::{ChunkHandle, Epoch, Seq, ServerId, StreamId};

use super::admit::Standing;
use super::budget::Permit;
use super::fault;
use super::link::{Link, LinkKey};
use super::mailbox::ToControl;
use super::outbox::{Frame, Outbox};
use super::replica::{Due, Held, Replica};
use super::shard::Shard;

/// How often the watchdog and the idle check run.
const TICK: Duration = Duration::from_millis(250);

/// COMMIT goes out by itself when nothing else carried it for so long.
const COMMIT_IDLE: Duration = Duration::from_millis(5);

/// At most one report per chunk and this time.
const REPORT_EVERY: Duration = Duration::from_secs(1);

impl<R: Runtime> Shard<R> {
    /// What is known about a chunk, for decisions.
    pub(crate) fn standing(&self, chunk: ChunkHandle) -> Option<Standing> {
        let view = self.store.view(chunk)?;
        let replicas = self.replicas.borrow();
        let replica = replicas.get(&chunk).filter(|replica| replica.epoch == view.epoch);
        let final_seq = replica.and_then(|replica| replica.final_seq).unwrap_or_default();
        Some(Standing {
            state: view.state,
            epoch: view.epoch,
            promised: view.promised,
            position: view.my_position,
            fixed: view.fixed,
            closing: view.closed || replica.is_none_or(|replica| replica.closing),
            len: view.len,
            sealed_len: view.sealed_len,
            next_seq: Seq(view.last_seq.max(final_seq).0 + 1),
            window_len: replica.map_or(0, Replica::window_len),
        })
    }

    /// Whether space for the first `len` bytes is taken.
    pub(crate) fn is_reserved(&self, chunk: ChunkHandle, len: u32) -> bool {
        self.replicas.borrow().get(&chunk).is_some_and(|replica| replica.reserved >= len)
    }

    /// Space for the first `len` bytes is taken.
    pub(crate) fn note_reserved(&self, chunk: ChunkHandle, len: u32) {
        if let Some(replica) = self.replicas.borrow_mut().get_mut(&chunk) {
            replica.reserved = replica.reserved.max(len);
        }
    }

    /// Everything up to here is committed, as the head of an open chain knows.
    pub(crate) fn committed_of(&self, chunk: ChunkHandle) -> Option<Seq> {
        self.replicas.borrow().get(&chunk).map(|replica| replica.committed)
    }

    /// A client ended a stream.
    pub(crate) fn stream_closed(&self, chunk: ChunkHandle, stream: StreamId) {
        if let Some(replica) = self.replicas.borrow_mut().get_mut(&chunk) {
            replica.stream_closed(stream);
        }
    }

    /// Follows an entry to the disk. `permit` is given back when its bytes are there.
    pub(crate) fn when_durable(
        &self,
        chunk: ChunkHandle,
        epoch: Epoch,
        seq: Seq,
        durable: impl Future<Output = Result<(), StoreError>> + 'static,
        permit: Option<Permit>,
    ) {
        let shard = self.clone();
        self.rt.spawn(async move {
            let outcome = durable.await;
            drop(permit);
            match outcome {
                Ok(()) => shard.durable_here(chunk, epoch, seq),
                Err(error) => shard.disk_failed(chunk, epoch, &error),
            }
        });
    }

    /// My disk failed an entry of this chain: the members in front and the master hear it, and
    /// whoever waits learns that the outcome is unknown.
    pub(crate) fn disk_failed(&self, chunk: ChunkHandle, epoch: Epoch, error: &StoreError) {
        let upstream = {
            let replicas = self.replicas.borrow();
            let Some(replica) = replicas.get(&chunk).filter(|replica| replica.epoch == epoch) else { return };
            replica.upstream.clone().map(|outbox| (outbox, replica.own))
        };
        tracing::error!(%chunk, %epoch, %error, "disk failed an entry");
        if let Some((outbox, own)) = upstream {
            outbox.send(&Nak { chunk, epoch, reason: NakReason::Disk, next_seq: Seq(own.0 + 1) });
        }
        self.report_chain(chunk, Trouble::DiskError, self.me.server);
        self.close_replica(chunk);
    }

    /// A disk has failed: the master hears of every replica on it, and the chains they are in end. Those on
    /// other disks work on.
    fn disk_gone(&self, disk: usize) {
        let on = &self.store.disks()[disk];
        let cause = on.store.fenced().unwrap_or_default();
        let held: Vec<ChunkHandle> =
            on.store.chunks().into_iter().filter(|chunk| self.store.is_home(*chunk, disk)).collect();
        let (root, chunks, shard) = (on.disk.root.display(), held.len(), self.me.shard);
        tracing::error!(%root, shard, chunks, cause, "disk failed: its chunks are served by other servers");
        for chunk in held {
            self.changed(chunk);
            let epoch = self.replicas.borrow().get(&chunk).map(|replica| replica.epoch);
            if let Some(epoch) = epoch {
                self.disk_failed(chunk, epoch, &StoreError::Fenced(cause.clone()));
            }
        }
    }

    /// Puts the replica of a new chain to work.
    pub(crate) fn open_replica(&self, chunk: ChunkHandle, epoch: Epoch, position: usize, members: Vec<Member>) {
        if self.replicas.borrow().contains_key(&chunk) {
            return;
        }
        let inherited = self.store.dedup(chunk);
        let mut replica = Replica::new(epoch, position, members, &inherited, self.rt.now());
        replica.fixed = self.store.view(chunk).is_some_and(|view| view.fixed);
        if let Some(successor) = replica.successor().cloned() {
            let to_tail = position + 2 == replica.members.len();
            let key = LinkKey { address: successor.address.clone(), shard: chunk.shard(successor.shards), to_tail };
            let link = self.link(key, successor);
            link.join(chunk);
            replica.link = Some(link);
        }
        self.replicas.borrow_mut().insert(chunk, replica);
    }

    fn link(&self, key: LinkKey, member: Member) -> Link<R> {
        let mut links = self.links.borrow_mut();
        links.retain(|_, link| !link.is_dead());
        let link = links.entry(key).or_insert_with_key(|key| {
            let link = Link::new(key.clone(), member);
            self.rt.spawn(link.clone().run(self.clone()));
            link
        });
        link.clone()
    }

    /// Ends a replica's part in its chain; whoever waits learns that the outcome is unknown.
    pub(crate) fn close_replica(&self, chunk: ChunkHandle) {
        let Some(replica) = self.replicas.borrow_mut().remove(&chunk) else { return };
        if let Some(link) = &replica.link {
            link.leave(chunk);
        }
        let waiters = replica.ops.into_iter().flat_map(|op| op.waiters).chain(replica.final_waiters);
        for waiter in waiters {
            waiter.refuse(fault::unknown_outcome());
        }
        self.progressed.notify_one();
        self.committed.notify_waiters();
    }

    /// My own disk has everything of this chunk up to `seq`.
    pub(crate) fn durable_here(&self, chunk: ChunkHandle, epoch: Epoch, seq: Seq) {
        self.progress(chunk, epoch, |replica, now| replica.durable_here(seq, now));
    }

    /// The members behind me have everything up to `seq`.
    pub(crate) fn durable_behind(&self, chunk: ChunkHandle, epoch: Epoch, seq: Seq) {
        self.progress(chunk, epoch, |replica, now| replica.durable_behind(seq, now));
    }

    fn progress(&self, chunk: ChunkHandle, epoch: Epoch, step: impl FnOnce(&mut Replica<R>, Duration) -> Due<R>) {
        let fenced = self.store.view(chunk).is_none_or(|view| view.promised > epoch);
        let due = {
            let mut replicas = self.replicas.borrow_mut();
            let Some(replica) = replicas.get_mut(&chunk).filter(|replica| replica.epoch == epoch) else { return };
            if fenced {
                return;
            }
            step(replica, self.rt.now())
        };
        if let Some((outbox, durable_seq)) = due.up {
            outbox.send(&Up { chunk, epoch, durable_seq });
        }
        if let Some(committed) = due.committed {
            self.store.note_committed(chunk, committed);
            self.committed.notify_waiters();
            self.schedule_commit(chunk);
        }
        for op in due.answers {
            if op.id.is_some() {
                self.count(|served| {
                    served.appends += 1;
                    served.append_bytes += u64::from(op.answer.len);
                });
            }
            for waiter in op.waiters {
                waiter.answer(Ok(op.answer));
            }
        }
        if self.is_stopping() {
            self.progressed.notify_one();
        }
        if due.finished {
            self.finished(chunk, epoch);
        }
    }

    /// What the head knows committed, from the predecessor.
    pub(crate) fn committed_ahead(&self, chunk: ChunkHandle, epoch: Epoch, seq: Seq) {
        let current = {
            let mut replicas = self.replicas.borrow_mut();
            let known = replicas.get_mut(&chunk).filter(|replica| replica.epoch == epoch && !replica.is_head());
            let Some(replica) = known else { return };
            replica.committed = replica.committed.max(seq);
            replica.committed
        };
        self.store.note_committed(chunk, current);
        self.committed.notify_waiters();
        self.schedule_commit(chunk);
    }

    fn schedule_commit(&self, chunk: ChunkHandle) {
        let mut replicas = self.replicas.borrow_mut();
        let Some(replica) = replicas.get_mut(&chunk) else { return };
        if replica.commit_scheduled || replica.link.is_none() || replica.told_down >= replica.committed {
            return;
        }
        replica.commit_scheduled = true;
        let shard = self.clone();
        self.rt.spawn(async move {
            shard.rt.sleep(COMMIT_IDLE).await;
            shard.send_commit(chunk);
        });
    }

    fn send_commit(&self, chunk: ChunkHandle) {
        let mut replicas = self.replicas.borrow_mut();
        let Some(replica) = replicas.get_mut(&chunk) else { return };
        replica.commit_scheduled = false;
        if replica.told_down >= replica.committed {
            return;
        }
        replica.told_down = replica.committed;
        if let Some(link) = &replica.link {
            let commit = Commit { chunk, epoch: replica.epoch, committed_seq: replica.committed };
            link.push(Frame::bare(&commit, 0));
        }
    }

    /// Sends an entry to the successor, if there is one, and keeps it until it is durable there.
    pub(crate) fn hold(&self, chunk: ChunkHandle, committed: Seq, make: impl FnOnce() -> Held<R>) {
        let mut replicas = self.replicas.borrow_mut();
        let Some(replica) = replicas.get_mut(&chunk) else { return };
        let Some(link) = &replica.link else { return };
        let held = make();
        link.push(frame_of(&held));
        replica.told_down = replica.told_down.max(committed);
        replica.held.push_back(held);
    }

    /// Sends again what is not durable behind: from `from`, or all of it.
    pub(crate) fn resend(&self, chunk: ChunkHandle, outbox: &Outbox<R>, from: Option<Seq>) {
        let replicas = self.replicas.borrow();
        let Some(replica) = replicas.get(&chunk) else { return };
        for held in replica.held.iter().filter(|held| from.is_none_or(|from| held.seq >= from)) {
            outbox.push(frame_of(held));
        }
    }

    /// The successor did not take an entry.
    pub(crate) fn refused_behind(&self, nak: &Nak, successor: ServerId, outbox: &Outbox<R>) {
        let known = self.replicas.borrow().get(&nak.chunk).is_some_and(|replica| replica.epoch == nak.epoch);
        if !known {
            return;
        }
        match nak.reason {
            NakReason::Gap => self.resend(nak.chunk, outbox, Some(nak.next_seq)),
            NakReason::Disk => self.report_chain(nak.chunk, Trouble::DiskError, successor),
            _ => self.report_chain(nak.chunk, Trouble::Stale, successor),
        }
    }

    /// Tells the master that a chain is in trouble, unless a seal is under way already.
    pub(crate) fn report_chain(&self, chunk: ChunkHandle, trouble: Trouble, suspect: ServerId) {
        let epoch = self.replicas.borrow().get(&chunk).map(|replica| replica.epoch);
        let Some(epoch) = epoch.filter(|_| !self.is_stopping()) else { return };
        if self.store.view(chunk).is_some_and(|view| view.promised == view.epoch) {
            self.report(chunk, epoch, trouble, suspect);
        }
    }

    /// Tells the master that something is wrong with a chunk; at most once a second for each.
    pub(crate) fn report(&self, chunk: ChunkHandle, epoch: Epoch, trouble: Trouble, suspect: ServerId) {
        let now = self.rt.now();
        {
            let mut reported = self.reported.borrow_mut();
            reported.retain(|_, at| now.saturating_sub(*at) < REPORT_EVERY);
            if reported.insert(chunk, now).is_some() {
                return;
            }
        }
        self.count(|served| served.reports += 1);
        tracing::warn!(%chunk, %epoch, ?trouble, %suspect, "reporting a chunk to the master");
        let report = Report { chunk, epoch, trouble, suspect };
        if self.control.try_send(ToControl::Report(report)).is_err() {
            tracing::warn!(%chunk, "report not sent: the control queue is full");
        }
    }

    fn finished(&self, chunk: ChunkHandle, epoch: Epoch) {
        let Some(view) = self.store.view(chunk) else { return };
        // What the next chunk inherits: streams that ended need not be known there.
        let mut dedup = self.store.dedup(chunk);
        if let Some(replica) = self.replicas.borrow().get(&chunk) {
            let now = self.rt.now();
            dedup.retain(|entry| !replica.is_forgettable(entry.id.stream, now));
        }
        let shard = self.clone();
        self.rt.spawn(async move {
            let digest = match shard.store.digest(chunk, view.len).await {
                Ok(digest) => digest,
                Err(error) => {
                    tracing::error!(%chunk, %error, "cannot compute the digest of a finished chunk");
                    return;
                }
            };
            let finished = Finished { chunk, epoch, last_seq: view.last_seq, len: view.len, digest, dedup };
            if shard.control.send(ToControl::Finished(finished)).await.is_err() {
                tracing::debug!(%chunk, "stopping: the master seals the chunk later");
            }
        });
    }

    /// The watchdog and the idle check, until the shard stops.
    pub(super) async fn tick(&self) {
        let mut failed = BTreeSet::new();
        while !self.is_stopping() {
            self.pause(TICK).await;
            for disk in self.store.look(&mut failed) {
                self.disk_gone(disk);
            }
            for bad in self.store.disks().iter().flat_map(|on| on.store.take_bad_blocks()) {
                self.bad_block(bad.chunk, bad.block);
            }
            let now = self.rt.now();
            let mut late = Vec::new();
            let mut idle = Vec::new();
            for (chunk, replica) in self.replicas.borrow().iter() {
                if let Some(member) = replica.stalled(now) {
                    late.push((*chunk, member.server));
                } else if replica.is_head() && replica.is_idle(now, self.idle_seal.get()) {
                    idle.push(*chunk);
                }
                if let Some(link) = replica.link.as_ref().filter(|link| link.is_dead()) {
                    tracing::trace!(%chunk, link = ?link.key(), "chain without a link");
                    late.extend(replica.successor().map(|member| (*chunk, member.server)));
                }
            }
            for (chunk, suspect) in late {
                self.report_chain(chunk, Trouble::Stalled, suspect);
            }
            for chunk in idle {
                self.finish(chunk, None);
            }
        }
    }
}

fn frame_of<R: Runtime>(held: &Held<R>) -> Frame<R> {
    Frame { head: held.head.to_vec(), payload: held.payload.clone(), permit: held.permit.clone(), slot: None }
}
