//! CREATE, CONDEMN, RESTORE, FREE: how a slot comes to hold a chunk, and gives it up.

use std::borrow::Cow;
use std::rc::Rc;

use wire::member::ReplicaState;
use wire::{ChunkHandle, Term};

use super::StoreError;
use super::batch::Subject;
use super::canary::{sometimes, weakened};
use super::event::Event;
use super::layout::{DEDUP_MAX, MEMBERS_MAX};
use super::log::{Class, End};
use super::page::DiskState;
use super::record::{Body, Create};
use super::replica::{Replica, empty};
use super::shard::{Chunk, FreeSlot, Inner, Store};
use super::types::CreateArgs;
use crate::runtime::Runtime;

impl<R: Runtime> Store<R> {
    /// Durable on return. The same again (equal chunk and epoch) is answered the same.
    ///
    /// # Errors
    ///
    /// `ChunkExists`, `OldTerm`, `BadRange` for impossible arguments, `NoSpace` when the disk is 95 % full
    /// or draining, `Busy`.
    pub async fn create(&self, args: CreateArgs) -> Result<(), StoreError> {
        let inner = &self.inner;
        inner.check()?;
        inner.shared.obey(args.term)?;
        let fits = (1..=MEMBERS_MAX).contains(&args.members.len())
            && usize::from(args.my_position) < args.members.len()
            && args.dedup.len() <= DEDUP_MAX
            && args.chunk != ChunkHandle::NONE;
        if !fits {
            return Err(StoreError::BadRange);
        }
        if inner.exists(&args)? {
            return inner.flushed().await;
        }
        inner.may_create().await?;
        loop {
            let slot = inner.ready_slot().await?;
            let file = inner.file(slot).await.map_err(|error| StoreError::ReadFailed(error.to_string()))?;
            inner.check()?;
            if inner.exists(&args)? {
                return inner.flushed().await;
            }
            if let Some(done) = inner.create_in(slot, file, &args)? {
                return done.wait().await;
            }
        }
    }

    /// CONDEMN: the chunk disappears from reads and keeps its bytes. Durable on return; of an unknown or
    /// condemned chunk it is done already. `authority`: LSN in the master's log that allows it.
    ///
    /// # Errors
    ///
    /// `OldTerm`, `Busy`.
    pub async fn condemn(
        &self,
        term: Term,
        chunk: ChunkHandle,
        authority: u64,
        now_unix: u64,
    ) -> Result<(), StoreError> {
        let inner = &self.inner;
        inner.check()?;
        inner.shared.obey(term)?;
        if inner.state.borrow().live(chunk).is_err() {
            return inner.flushed().await;
        }
        let epoch = inner.state.borrow().live(chunk)?.replica.hdr.epoch;
        let body = Body::Condemn { term, reason: 0, authority, now: now_unix };
        let done = inner.accept(chunk, epoch, 0, &body, Class::Control)?;
        if let Some(chunk) = inner.state.borrow_mut().chunks.get_mut(&chunk) {
            chunk.file = None;
        }
        inner.reads.borrow_mut().forget(chunk);
        done.wait().await
    }

    /// RESTORE: a condemned chunk is again what it was before; one that was open is so as after a restart.
    /// Durable on return; of a chunk that is not condemned it is done already. `authority`: LSN in the
    /// master's log that allows it, not below that of the CONDEMN.
    ///
    /// # Errors
    ///
    /// `UnknownChunk`; `Mismatch` for an older authority; `OldTerm`, `Busy`.
    pub async fn restore(&self, term: Term, chunk: ChunkHandle, authority: u64) -> Result<(), StoreError> {
        let inner = &self.inner;
        inner.check()?;
        inner.shared.obey(term)?;
        let (condemned, epoch) = {
            let state = inner.state.borrow();
            let replica = &state.chunks.get(&chunk).ok_or(StoreError::UnknownChunk)?.replica;
            (replica.state() == ReplicaState::Condemned, replica.hdr.epoch)
        };
        if !condemned {
            return inner.flushed().await;
        }
        let body = Body::Restore { term, authority };
        inner.accept(chunk, epoch, 0, &body, Class::Control)?.wait().await
    }

    /// FREE: the slot of a condemned chunk may hold another one. Durable on return; of an unknown chunk
    /// it is done already.
    ///
    /// # Errors
    ///
    /// `Mismatch` when the chunk is not condemned under this authority; `OldTerm`, `Busy`.
    pub async fn free(&self, term: Term, chunk: ChunkHandle, authority: u64) -> Result<(), StoreError> {
        let inner = &self.inner;
        inner.check()?;
        inner.shared.obey(term)?;
        match inner.free_now(term, chunk, authority)? {
            Some(done) => done.wait().await,
            None => inner.flushed().await,
        }
    }
}

impl<R: Runtime> Inner<R> {
    /// Whether exactly this was created before.
    fn exists(&self, args: &CreateArgs) -> Result<bool, StoreError> {
        let state = self.state.borrow();
        let Some(chunk) = state.chunks.get(&args.chunk) else {
            return Ok(false);
        };
        let hdr = &chunk.replica.hdr;
        let same =
            chunk.replica.state() == ReplicaState::Open && hdr.epoch == args.epoch && hdr.members == args.members;
        if same { Ok(true) } else { Err(StoreError::ChunkExists(hdr.epoch)) }
    }

    async fn may_create(&self) -> Result<(), StoreError> {
        if self.shared.disk().state != DiskState::Normal {
            return Err(StoreError::NoSpace);
        }
        let space = self.io.rt.space(&self.shared.root).await;
        let space = space.map_err(|error| StoreError::ReadFailed(error.to_string()))?;
        if space.free < space.total / 20 { Err(StoreError::NoSpace) } else { Ok(()) }
    }

    /// The step that creates; `None` when somebody else took the slot.
    fn create_in(self: &Rc<Self>, slot: u32, file: R::File, args: &CreateArgs) -> Result<Option<Event>, StoreError> {
        let create = Create {
            term: args.term,
            prev: args.prev,
            file: args.file,
            my_position: args.my_position,
            members: Cow::Borrowed(&args.members),
            dedup: Cow::Borrowed(&args.dedup),
        };
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let ready = |free: &FreeSlot| free.hdr.common.number == slot && free.is_ready();
        let Some(at) = state.free.iter().position(ready) else {
            return Ok(None);
        };
        let body = Body::Create(create.clone());
        if let Err(error) = state.log.room(body.len_bound(), Class::Work) {
            self.checkpoint_soon(state);
            return Err(error);
        }
        let Some(free) = state.free.remove(at) else {
            return Ok(None);
        };
        if free.dirty_lsn.is_some() {
            sometimes!("slot re-used while the old chunk is still in the ring");
        }
        let lsn = state.log.push(Subject { chunk: args.chunk, slot, epoch: args.epoch }, 0, &body);
        let chunk = Chunk {
            replica: Replica::created(&free.hdr, args.chunk, args.epoch, &create),
            file: Some(file),
            durable: End { len: 0, seq: 0, epoch: args.epoch, tail: empty() },
            dirty_lsn: Some(free.dirty_lsn.unwrap_or(lsn)),
            allocated: free.allocated,
            users: free.users,
            only_appends: true,
            last_append: 0,
            zeros: super::zero_ahead::Zeros::default(),
            created: weakened!(SlotReusedEarly),
            filling: Rc::default(),
            private: 0,
            lent: Rc::default(),
        };
        state.log.group.ends.insert(args.chunk, chunk.durable.clone());
        state.chunks.insert(args.chunk, chunk);
        state.by_slot.insert(slot, args.chunk);
        self.reads.borrow_mut().forget(args.chunk);
        self.accepted(state);
        self.keep_slots_ready_in(state);
        Ok(Some(state.log.group.done.clone()))
    }

    /// The step that frees; `None` for a chunk that is not here.
    pub(super) fn free_now(
        self: &Rc<Self>,
        term: Term,
        handle: ChunkHandle,
        authority: u64,
    ) -> Result<Option<Event>, StoreError> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let Some(chunk) = state.chunks.get(&handle) else {
            return Ok(None);
        };
        chunk.replica.check_free(authority)?;
        let body = Body::Free { term, authority };
        if let Err(error) = state.log.room(body.len_bound(), Class::Control) {
            self.checkpoint_soon(state);
            return Err(error);
        }
        let (slot, epoch) = (chunk.slot(), chunk.replica.hdr.epoch);
        let lsn = state.log.push(Subject { chunk: handle, slot, epoch }, 0, &body);
        if let Some(chunk) = state.chunks.remove(&handle) {
            state.free.push_back(FreeSlot {
                hdr: chunk.replica.hdr.freed(),
                dirty_lsn: Some(chunk.dirty_lsn.unwrap_or(lsn)),
                allocated: chunk.allocated,
                users: chunk.users,
                durable: weakened!(SlotReusedEarly),
            });
        }
        state.by_slot.remove(&slot);
        self.cache.borrow_mut().forget(handle);
        self.reads.borrow_mut().forget(handle);
        state.log.group.freed.push(slot);
        self.accepted(state);
        Ok(Some(state.log.group.done.clone()))
    }
}
