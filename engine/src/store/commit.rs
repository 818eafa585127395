//! Group commit (format section 5.1). No timer: what arrives during a flush is the next batch.

use std::future::Future;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use wire::{ChunkHandle, Epoch};

use super::batch::Subject;
use super::canary::{sometimes, weakened};
use super::layout::RING_LOG_START;
use super::log::{Closed, Group};
use super::record::{Body, NO_SLOT};
use super::shard::{Inner, State};
use crate::runtime::Runtime;

/// A journal that was idle for so long gets a MARK: after a crash nothing before it is in doubt.
const IDLE: Duration = Duration::from_millis(200);

impl<R: Runtime> Inner<R> {
    /// Starts the task that commits, unless it runs.
    pub(crate) fn commit_soon(self: &Rc<Self>, state: &mut State<R>) {
        if !state.committing {
            state.committing = true;
            let inner = Rc::clone(self);
            self.spawn(async move { inner.commit_all().await });
        }
    }

    /// Commits batch after batch until there is none.
    async fn commit_all(self: Rc<Self>) {
        loop {
            let closed = {
                let mut state = self.state.borrow_mut();
                if state.log.is_empty() {
                    state.committing = false;
                    state.log.in_flight = None;
                    self.mark_when_idle(&mut state);
                    return;
                }
                state.log.close()
            };
            if !self.commit(closed).await {
                self.fail_open_batch();
                return;
            }
        }
    }

    /// Writes, waits for the in-place writes, flushes, answers. False when the disk is fenced.
    async fn commit(self: &Rc<Self>, closed: Closed<R::File>) -> bool {
        let Closed { bytes, at, last_lsn, mark, group } = closed;
        if weakened!(AnswerBeforeFlush) {
            group.done.set(Ok(()));
            self.durable(&group, last_lsn);
            self.state.borrow_mut().log.in_flight = None;
        }
        let written = self.write_batch(&bytes, at).await;
        group.writes.idle().await;
        let flushed = match written {
            Ok(()) if mark => Ok(()),
            Ok(()) => self.flush(&group).await,
            Err(error) => Err(error),
        };
        if let Err(error) = flushed {
            let fenced = self.fence("journal write or flush failed", &error);
            group.done.set(Err(fenced));
            return false;
        }
        // Another shard, or an in-place write of this group, may have met an error meanwhile.
        if let Err(fenced) = self.shared.check() {
            group.done.set(Err(fenced));
            return false;
        }
        if !mark {
            self.durable(&group, last_lsn);
        }
        group.done.set(Ok(()));
        true
    }

    async fn write_batch(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let pieces: Vec<_> = self.state.borrow().log.pieces(at, bytes.len() as u64).collect();
        if pieces.len() > 1 {
            sometimes!("ring wraps inside a batch");
        }
        let mut rest = bytes;
        for (offset, len) in pieces {
            let (piece, later) = rest.split_at(usize::try_from(len).unwrap_or(usize::MAX));
            self.io.write_bytes(&self.ring, piece, RING_LOG_START + offset).await?;
            rest = later;
        }
        Ok(())
    }

    /// Rules R1 and R2: makes a batch durable whose writes have all completed.
    ///
    /// A slot whose range was not durably written needs its own sync, which makes the file system
    /// commit the conversion of its extents. When there is such a slot the ring needs none: the ring
    /// file was zero-filled and synced when it was made, so its write changed no metadata and wants
    /// only the device's flush, and the sync of a slot, which began after that write had completed,
    /// flushes the device (the promise of [`Runtime::fdatasync`]).
    async fn flush(self: &Rc<Self>, group: &Group<R::File>) -> io::Result<()> {
        let unwritten = self.unwritten(group);
        self.io.count(|counters| counters.groups += 1);
        if unwritten.is_empty() {
            return self.io.flush(&self.ring).await;
        }
        sometimes!("commit that needed fdatasync(slot)");
        self.io.count(|counters| counters.slot_syncs += unwritten.len() as u64);
        // The first failure fences at once: another flush that is under way may succeed and prove nothing.
        let sync = async |slot: &u32| {
            let synced = self.io.flush(&group.slots[slot].0).await;
            synced.inspect_err(|error| drop(self.fence("journal write or flush failed", error)))
        };
        for synced in join_all(unwritten.iter().map(sync)).await {
            synced?;
        }
        let mut state = self.state.borrow_mut();
        for slot in unwritten {
            state.raise_written(slot, group.slots[&slot].1);
        }
        Ok(())
    }

    /// Slots of the group that were written beyond what is durably written.
    fn unwritten(&self, group: &Group<R::File>) -> Vec<u32> {
        if weakened!(NoSlotSync) {
            return Vec::new();
        }
        let state = self.state.borrow();
        let beyond = |(slot, (_, end)): (&u32, &(R::File, u32))| (*end > state.written_upto(*slot)).then_some(*slot);
        group.slots.iter().filter_map(beyond).collect()
    }

    /// What becomes true with a group.
    fn durable(self: &Rc<Self>, group: &Group<R::File>, last_lsn: u64) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        state.log.durable_lsn = last_lsn;
        for (handle, end) in &group.ends {
            if let Some(chunk) = state.chunks.get_mut(handle) {
                chunk.durable = end.clone();
                chunk.replica.redo.durable(last_lsn, |blocks| self.reads.borrow_mut().renewed(*handle, blocks));
                if end.epoch == chunk.replica.hdr.epoch {
                    chunk.replica.advance_committed(end.seq);
                }
                chunk.created = true;
            }
        }
        self.zero_after(state, group.ends.keys().copied());
        for slot in state.free.iter_mut().filter(|slot| group.freed.contains(&slot.hdr.common.number)) {
            slot.durable = true;
        }
        if !group.freed.is_empty() {
            self.keep_slots_ready_in(state);
        }
    }

    /// The disk is fenced: what was accepted meanwhile will never be durable.
    fn fail_open_batch(&self) {
        let mut state = self.state.borrow_mut();
        state.committing = false;
        state.log.in_flight = None;
        if state.log.is_empty() {
            return;
        }
        let closed = state.log.close();
        state.log.in_flight = None;
        closed.group.done.set(self.shared.check());
    }

    /// Writes a MARK once the journal stays idle.
    fn mark_when_idle(self: &Rc<Self>, state: &mut State<R>) {
        if state.log.marked || state.marking || self.stopping.get() {
            return;
        }
        state.marking = true;
        let inner = Rc::clone(self);
        self.io.rt.spawn(async move {
            let mut seen = None;
            loop {
                inner.io.rt.sleep(IDLE).await;
                let mut state = inner.state.borrow_mut();
                let over = state.log.marked || inner.check().is_err();
                let idle = !state.committing && seen.replace(state.log.last_lsn()) == Some(state.log.last_lsn());
                if over || idle {
                    state.marking = false;
                    if !over && state.log.room(0, super::log::Class::Work).is_ok() {
                        let subject = Subject { chunk: ChunkHandle::NONE, slot: NO_SLOT, epoch: Epoch(0) };
                        state.log.push(subject, 0, &Body::Mark);
                        inner.accepted(&mut state);
                    }
                    if !over {
                        inner.zero_when_idle(&mut state);
                    }
                    return;
                }
            }
        });
    }

    /// Runs the in-place write of a record, whose group waits for it.
    pub(crate) fn write_in_place(
        self: &Rc<Self>,
        group: &Group<R::File>,
        write: impl Future<Output = io::Result<()>> + 'static,
    ) {
        let going = group.writes.enter();
        let inner = Rc::clone(self);
        self.spawn(async move {
            if let Err(error) = write.await {
                inner.fence("data write failed", &error);
            }
            drop(going);
        });
    }
}
