//! Random operations, each one told to the model before it is issued.

mod copies;
mod writes;

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;

use wire::checksum::block_crcs;
use wire::member::ReplicaState;
use wire::{ChunkHandle, DedupEntry, Epoch, OpId, Seq, ServerId, StreamId};

use super::model::{Model, Snap, digest};
use super::rig::{READ_ALL_PIECE, TERM, bytes, create_args, payload, read_pieces};
use crate::runtime::Runtime;
use crate::runtime::sim::{Rng, SimRuntime};
use crate::store::{ReopenArgs, Store, StoreError, Upto};

/// Shared with whoever checks.
pub(super) type Shared = Rc<RefCell<Model>>;

/// Becomes ready when an entry is durable.
type Durable = Pin<Box<dyn Future<Output = Result<(), StoreError>>>>;

/// One chunk's worker: operations one after the other, appends without waiting for each other.
pub(super) struct Worker {
    pub(super) rt: SimRuntime,
    pub(super) store: Store<SimRuntime>,
    pub(super) model: Shared,
    pub(super) chunk: u64,
    pub(super) rng: Rng,
    /// Largest append.
    pub(super) size_max: usize,
    /// Chunks come and go.
    pub(super) churn: bool,
    /// The disk has faults: it may be fenced, and reads may fail.
    pub(super) faulty: bool,
}

impl Worker {
    pub(super) async fn run(mut self, steps: usize) {
        for _ in 0..steps {
            if self.is_over() {
                return;
            }
            self.step().await;
        }
    }

    /// Makes a chunk and keeps it open: appends, overwrites, repairs, checkpoints.
    pub(super) async fn write_for(mut self, steps: usize) {
        self.create().await;
        self.append(3).await;
        for _ in 0..steps {
            match self.rng.below(10) {
                0 => self.append(1).await,
                1 => self.append(2).await,
                2 => self.repair().await,
                3 => self.overwrite_tail().await,
                4 => self.overwrite(3).await,
                5 => self.checkpoint_soon(),
                6 => self.rt.sleep(std::time::Duration::from_millis(self.rng.below(10))).await,
                _ => self.overwrite(1).await,
            }
        }
    }

    /// The disk answers no more.
    fn is_over(&self) -> bool {
        self.faulty && self.store.inner.check().is_err()
    }

    /// A fault may have come in between; anything else is a bug.
    fn is_fault(&self, error: &StoreError) -> bool {
        self.faulty && matches!(error, StoreError::Fenced(_) | StoreError::BadBlock(_) | StoreError::ReadFailed(_))
    }

    fn handle(&self) -> ChunkHandle {
        ChunkHandle(self.chunk)
    }

    fn now(&self) -> Snap {
        self.model.borrow_mut().chunk(self.chunk).now().clone()
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.rng.below(n) == 0
    }

    fn is(&self, state: ReplicaState) -> bool {
        self.now().state == Some(state)
    }

    fn is_live(&self) -> bool {
        self.is(ReplicaState::Open) || self.is(ReplicaState::Rwr)
    }

    /// Takes entries. In scripts the step before may have found the store busy.
    fn is_writable(&self) -> bool {
        let now = self.now();
        self.is(ReplicaState::Open) && now.promised == now.epoch && !now.closed && !now.filled
    }

    fn is_promised(&self) -> bool {
        self.is_live() && self.now().promised > self.now().epoch
    }

    /// Time for others, sometimes for a checkpoint.
    async fn dawdle(&mut self) {
        match self.rng.below(6) {
            0 => self.checkpoint_soon(),
            1 => self.rt.sleep(std::time::Duration::from_millis(self.rng.below(20))).await,
            _ => {}
        }
    }

    fn checkpoint_soon(&self) {
        let inner = &self.store.inner;
        inner.checkpoint_soon(&mut inner.state.borrow_mut());
    }

    pub(super) async fn step(&mut self) {
        if self.one_in(12) {
            self.checkpoint_soon();
        }
        let now = self.now();
        match now.state {
            None if self.churn && self.one_in(2) => self.create_and_append_at_once().await,
            None if self.one_in(3) => self.import().await,
            None => self.create().await,
            Some(ReplicaState::Condemned) if self.one_in(3) => self.restore().await,
            Some(ReplicaState::Condemned) => self.free().await,
            Some(ReplicaState::Sealed) if self.churn || self.one_in(4) => self.condemn().await,
            Some(ReplicaState::Sealed) if self.one_in(3) && now.content.len() >= 4096 => self.repair().await,
            Some(ReplicaState::Sealed) if self.one_in(4) => self.clone_or_step_a_clone().await,
            Some(ReplicaState::Sealed) if self.one_in(6) => self.unshare().await,
            Some(ReplicaState::Sealed) if self.one_in(3) => self.reopen().await,
            Some(ReplicaState::Sealed) => self.read().await,
            Some(_) if self.one_in(if self.churn { 4 } else { 80 }) => self.condemn().await,
            Some(_) if now.filled && self.one_in(4) => self.seal_again().await,
            Some(_) if now.filled || now.closed => self.confirm().await,
            Some(_) if now.promised > now.epoch => match self.rng.below(5) {
                0 => self.prepare().await,
                1 => self.read().await,
                _ => self.fill_and_seal().await,
            },
            Some(ReplicaState::Rwr) => self.prepare().await,
            Some(ReplicaState::Open) if now.fixed => match self.rng.below(7) {
                0 => self.prepare().await,
                1 => self.forget().await,
                2 => self.reopen_again().await,
                3 => self.read().await,
                4 if !now.content.is_empty() => self.overwrite(1).await,
                _ => self.finish().await,
            },
            Some(ReplicaState::Open) => match self.rng.below(26) {
                24.. => self.forget().await,
                0 => self.prepare().await,
                1 => self.finish().await,
                2..4 => self.read().await,
                4..6 => self.note_committed(),
                6 => self.rt.sleep(std::time::Duration::from_millis(300)).await,
                7..9 => {
                    let parts = 2 + self.rng.below(3);
                    self.append(u16::try_from(parts).unwrap()).await;
                }
                9..15 if !now.content.is_empty() => {
                    let parts = 1 + self.rng.below(3);
                    self.overwrite(u16::try_from(parts).unwrap()).await;
                }
                15 if now.content.len() >= 4096 => self.repair().await,
                _ => self.append(1).await,
            },
        }
    }

    /// Issues something that leads to `snap`, waits, and tells the model how it ended.
    async fn issue(&mut self, snap: Snap, op: impl Future<Output = Result<(), StoreError>>) {
        let number = self.model.borrow_mut().chunk(self.chunk).issue(snap);
        let outcome = op.await;
        let mut model = self.model.borrow_mut();
        match outcome {
            Ok(()) => model.chunk(self.chunk).acknowledge(number),
            // Mismatch: what an abandoned or dropped fill left is not the content to seal.
            Err(StoreError::Busy | StoreError::NoSpace | StoreError::Mismatch) => {
                model.chunk(self.chunk).take_back(number);
            }
            // Whether it happened is not known.
            Err(StoreError::Fenced(_)) if self.faulty => {}
            // What could not be read was not changed.
            Err(error) if self.is_fault(&error) => model.chunk(self.chunk).take_back(number),
            Err(error) => panic!("chunk {}: {error:?}", self.chunk),
        }
    }

    pub(super) async fn create(&mut self) {
        if self.now().state.is_some() {
            return;
        }
        let mut args = create_args(self.chunk);
        let inherited =
            DedupEntry { id: OpId { stream: StreamId([9; 16]), op: 4 }, chunk: ChunkHandle(77), offset: 1, len: 2 };
        args.dedup = vec![inherited];
        let snap = Snap {
            state: Some(ReplicaState::Open),
            epoch: 1,
            promised: 1,
            dedup: Rc::new(args.dedup.clone()),
            content: Rc::default(),
            last_seq: 0,
            closed: false,
            filled: false,
            fixed: false,
            reopened: [0; 16],
            prior: None,
        };
        let store = self.store.clone();
        self.issue(snap, async move { store.create(args).await }).await;
    }

    /// Somebody who does not wait for the answer to the create.
    async fn create_and_append_at_once(&mut self) {
        let mut rng = self.rng.clone();
        self.rng.next();
        std::mem::swap(&mut rng, &mut self.rng);
        let mut creator = Self {
            rt: self.rt.clone(),
            store: self.store.clone(),
            model: Rc::clone(&self.model),
            chunk: self.chunk,
            rng,
            size_max: self.size_max,
            churn: self.churn,
            faulty: self.faulty,
        };
        let store = self.store.clone();
        let handle = self.handle();
        let appended = async {
            for _ in 0..2000 {
                if store.view(handle).is_some() {
                    return self.append(1).await;
                }
                self.rt.yield_now().await;
            }
        };
        futures_util::join!(creator.create(), appended);
    }

    fn size(&mut self) -> usize {
        let most = self.size_max as u64;
        let size = match self.rng.below(8) {
            0 => 1 + self.rng.below(16),
            1 => 4095 + self.rng.below(3),
            2 => 4096 * (1 + self.rng.below(4)),
            3 => 1 + self.rng.below(most),
            _ => 1 + self.rng.below(9000),
        };
        usize::try_from(size.min(most)).unwrap()
    }

    fn note_committed(&mut self) {
        let view = self.store.view(self.handle()).unwrap();
        let seq = Seq(view.durable_seq.0.saturating_sub(self.rng.below(3)));
        self.store.note_committed(self.handle(), seq);
        let after = self.store.view(self.handle()).unwrap();
        assert!(after.committed_seq <= seq.max(view.committed_seq), "never more than was said");
        assert!(after.committed_len <= after.durable_len);
        let mut model = self.model.borrow_mut();
        let history = model.chunk(self.chunk);
        history.committed = history.committed.max(seq.0);
    }

    pub(super) async fn read(&mut self) {
        let mut from = self.model.borrow_mut().chunk(self.chunk).acknowledged();
        let pieces = match read_pieces(&self.store, self.chunk, Upto::Durable).await {
            Ok(pieces) => pieces,
            Err(error) => return assert!(self.is_fault(&error), "read: {error:?}"),
        };
        let now = self.now();
        // Each read shows one state, not older than what was acknowledged when it began.
        let mut at = 0;
        for piece in &pieces {
            let model = self.model.borrow();
            let shown = model.chunks[&self.chunk].showing(from, at, READ_ALL_PIECE, piece);
            from = shown.unwrap_or_else(|| panic!("chunk {}: bytes of no state from {from} on", self.chunk));
            at += piece.len();
        }
        let len = self.rng.below(at as u64 + 1);
        let len = usize::try_from(len).unwrap();
        let got = match self.store.digest(self.handle(), u32::try_from(len).unwrap()).await {
            Ok(got) => got,
            Err(error) => return assert!(self.is_fault(&error), "digest: {error:?}"),
        };
        assert_eq!(got, digest(&now.content[..len]), "digest of {len} bytes");
    }

    pub(super) async fn finish(&mut self) {
        if !self.is_writable() {
            return;
        }
        let mut snap = self.now();
        snap.closed = true;
        snap.last_seq += 1;
        let (store, handle, seq) = (self.store.clone(), self.handle(), Seq(snap.last_seq));
        let (len, digest, epoch) = (u32::try_from(snap.content.len()).unwrap(), snap.digest(), Epoch(snap.epoch));
        self.issue(snap, async move { store.finish(handle, epoch, seq, len, digest).await }).await;
    }

    pub(super) async fn prepare(&mut self) {
        if !self.is_live() {
            return;
        }
        let more = u32::try_from(self.rng.below(2)).unwrap();
        self.prepare_as(more).await;
    }

    async fn prepare_above(&mut self) {
        self.prepare_as(1).await;
    }

    async fn prepare_as(&mut self, more: u32) {
        let now = self.now();
        let mut snap = now.clone();
        snap.promised += more;
        if snap.promised == snap.epoch {
            snap.promised += 1;
        }
        let (store, handle, epoch) = (self.store.clone(), self.handle(), Epoch(snap.promised));
        self.issue(snap, async move {
            let promised = store.prepare(TERM, handle, epoch).await?;
            assert_eq!((promised.promised, promised.last_seq), (epoch, Seq(now.last_seq)));
            assert_eq!((promised.len as usize, promised.digest), (now.content.len(), now.digest()));
            let view = store.view(handle).unwrap();
            assert_eq!(view.durable_len, promised.len, "a promise covers everything accepted before it");
            Ok(())
        })
        .await;
    }

    /// As a member that the source is ahead of; sometimes abandoned, sometimes begun again.
    pub(super) async fn fill_and_seal(&mut self) {
        if !self.is_promised() {
            return;
        }
        let now = self.now();
        let more = if now.fixed || self.one_in(3) { 0 } else { self.size() };
        let content = [now.content.as_slice(), &bytes(self.rng.next(), more)].concat();
        let epoch = Epoch(now.promised);
        let abandon = self.one_in(4);
        let view = self.store.view(self.handle()).unwrap();
        if more > 0 {
            let mut at = now.content.len() / 4096 * 4096;
            let mut again = self.one_in(3);
            while at < content.len() {
                let piece = &content[at..content.len().min(at + 8192)];
                let buf = payload(&self.rt, piece).await;
                let (offset, len) = (u32::try_from(at).unwrap(), u32::try_from(piece.len()).unwrap());
                match self.store.fill(self.handle(), epoch, offset, len, block_crcs(piece), buf).await {
                    Ok(()) => {}
                    Err(StoreError::Busy | StoreError::NoSpace) => return,
                    // Held-back records filled the journal and were dropped.
                    Err(StoreError::BadRange) => return,
                    Err(error) if self.is_fault(&error) => return,
                    Err(error) => panic!("fill: {error:?}"),
                }
                self.dawdle().await;
                if std::mem::take(&mut again) {
                    continue;
                }
                at += piece.len();
            }
        }
        assert_eq!(self.store.view(self.handle()).unwrap().durable_len, view.durable_len, "a fill does not count");
        if abandon {
            return;
        }
        let mut snap = now;
        snap.last_seq += u64::from(more > 0);
        snap.content = Rc::new(content);
        snap.filled = true;
        let (store, handle, seq) = (self.store.clone(), self.handle(), Seq(snap.last_seq));
        let (len, digest) = (u32::try_from(snap.content.len()).unwrap(), snap.digest());
        self.issue(snap, async move { store.seal(TERM, handle, epoch, seq, len, digest, None).await }).await;
    }

    /// Another master's seal, under a higher promise, of a content that was set and not confirmed.
    pub(super) async fn seal_again(&mut self) {
        self.prepare_above().await;
        if !self.is_over() {
            self.fill_and_seal().await;
        }
    }

    pub(super) async fn confirm(&mut self) {
        if !(self.is_live() && (self.now().filled || self.now().closed)) {
            return;
        }
        let mut snap = self.now();
        let epoch = if snap.filled { snap.promised } else { snap.epoch };
        snap.state = Some(ReplicaState::Sealed);
        (snap.filled, snap.closed, snap.fixed) = (false, false, false);
        snap.epoch = epoch;
        let (store, handle) = (self.store.clone(), self.handle());
        let (len, digest) = (u32::try_from(snap.content.len()).unwrap(), snap.digest());
        self.issue(snap, async move { store.confirm(TERM, handle, Epoch(epoch), len, digest).await }).await;
    }

    pub(super) async fn confirm_if_filled(&mut self) {
        if self.now().filled {
            self.confirm().await;
        }
    }

    pub(super) async fn seal_again_if_filled(&mut self) {
        if self.now().filled {
            self.seal_again().await;
        }
    }

    /// A checkpoint while parts of an operation are held back.
    pub(super) async fn append_around_a_checkpoint(&mut self) {
        let (rt, store) = (self.rt.clone(), self.store.clone());
        let checkpoint = async move {
            rt.yield_now().await;
            store.inner.checkpoint().await;
        };
        futures_util::join!(self.append(4), checkpoint);
    }

    /// The chunk comes and goes, so that slots are used again.
    pub(super) async fn churn(&mut self) {
        for _ in 0..4 {
            match self.now().state {
                None => self.create().await,
                Some(ReplicaState::Condemned) => {
                    self.free().await;
                    self.create().await;
                }
                Some(_) => self.condemn().await,
            }
            if self.now().state == Some(ReplicaState::Open) {
                self.append(1).await;
            }
        }
    }

    pub(super) async fn checkpoint(&mut self) {
        self.store.inner.checkpoint().await;
    }

    pub(super) async fn condemn(&mut self) {
        if self.now().state.is_none() || self.is(ReplicaState::Condemned) {
            return;
        }
        let mut snap = self.now();
        snap.prior = snap.state.replace(ReplicaState::Condemned);
        let (store, handle) = (self.store.clone(), self.handle());
        self.issue(snap, async move { store.condemn(TERM, handle, 5, 1).await }).await;
    }

    pub(super) async fn free(&mut self) {
        if !self.is(ReplicaState::Condemned) {
            return;
        }
        let mut snap = self.now();
        snap = Snap { promised: snap.promised, ..Snap::absent() };
        let (store, handle) = (self.store.clone(), self.handle());
        self.issue(snap, async move { store.free(TERM, handle, 5).await }).await;
    }

    /// Some of the streams, and one that nobody knows.
    pub(super) async fn forget(&mut self) {
        if !self.is_writable() {
            return;
        }
        let mut snap = self.now();
        let mut streams = vec![StreamId([77; 16])];
        streams.extend(snap.dedup.iter().map(|entry| entry.id.stream).filter(|_| self.rng.below(2) == 0));
        snap.last_seq += 1;
        snap.dedup = Rc::new(snap.dedup.iter().filter(|entry| !streams.contains(&entry.id.stream)).copied().collect());
        let (store, handle, seq, epoch) = (self.store.clone(), self.handle(), Seq(snap.last_seq), Epoch(snap.epoch));
        self.issue(snap, async move { store.forget(handle, epoch, seq, Seq(0), &streams)?.await }).await;
    }

    pub(super) async fn restore(&mut self) {
        if !self.is(ReplicaState::Condemned) {
            return;
        }
        let mut snap = self.now();
        snap.state = snap.prior.take();
        if snap.state == Some(ReplicaState::Open) {
            snap.state = Some(ReplicaState::Rwr);
        }
        let (store, handle) = (self.store.clone(), self.handle());
        self.issue(snap, async move { store.restore(TERM, handle, 6).await }).await;
    }

    /// So that the end of the content is inside a block.
    pub(super) async fn append_tail(&mut self) {
        for _ in 0..20 {
            if !self.now().content.len().is_multiple_of(4096) {
                return;
            }
            self.append(1).await;
        }
    }

    /// The content as it is, under the promised epoch.
    pub(super) async fn seal(&mut self) {
        if !self.is_promised() {
            return;
        }
        let mut snap = self.now();
        snap.filled = true;
        let (store, handle, seq, epoch) = (self.store.clone(), self.handle(), Seq(snap.last_seq), Epoch(snap.promised));
        let (len, digest) = (u32::try_from(snap.content.len()).unwrap(), snap.digest());
        self.issue(snap, async move { store.seal(TERM, handle, epoch, seq, len, digest, None).await }).await;
    }

    fn reopen_args(&self, snap: &Snap) -> ReopenArgs {
        ReopenArgs {
            term: TERM,
            chunk: self.handle(),
            epoch: Epoch(snap.epoch),
            members: vec![ServerId(1), ServerId(3), ServerId(4)],
            my_position: 2,
            len: u32::try_from(snap.content.len()).unwrap(),
            digest: snap.digest(),
        }
    }

    pub(super) async fn reopen(&mut self) {
        if !self.is(ReplicaState::Sealed) {
            return;
        }
        let mut snap = self.now();
        let mut wrong = self.reopen_args(&snap);
        if self.is_over() {
            return;
        }
        assert_eq!(self.store.reopen(wrong.clone()).await, Err(StoreError::StaleEpoch(Epoch(snap.promised))));
        snap.epoch = snap.promised + 1 + u32::try_from(self.rng.below(2)).unwrap();
        (wrong.epoch, wrong.digest) = (Epoch(snap.epoch), [1; 16]);
        let refused = self.store.reopen(wrong).await;
        if refused.as_ref().is_err_and(|error| self.is_fault(error)) {
            return;
        }
        assert_eq!(refused, Err(StoreError::Mismatch));
        (snap.promised, snap.last_seq, snap.fixed, snap.reopened) = (snap.epoch, 0, true, snap.digest());
        snap.state = Some(ReplicaState::Open);
        let args = self.reopen_args(&snap);
        let (store, handle) = (self.store.clone(), self.handle());
        let (model, chunk) = (Rc::clone(&self.model), self.chunk);
        self.issue(snap, async move {
            let result = store.reopen(args).await;
            if result.is_ok() {
                model.borrow_mut().chunk(chunk).committed = 0;
                let view = store.view(handle).unwrap();
                assert_eq!((view.durable_seq, view.committed_seq, view.my_position), (Seq(0), Seq(0), 2));
            }
            result
        })
        .await;
    }

    /// An answer that was lost: nothing changes.
    async fn reopen_again(&mut self) {
        let now = self.now();
        let args = ReopenArgs { digest: now.reopened, ..self.reopen_args(&now) };
        let before = self.store.view(self.handle()).unwrap();
        match self.store.reopen(args.clone()).await {
            Ok(()) => {
                // What was under way may have become durable.
                let mut after = self.store.view(self.handle()).unwrap();
                (after.durable_seq, after.committed_seq) = (before.durable_seq, before.committed_seq);
                assert_eq!(after, before);
            }
            Err(error) if self.is_fault(&error) => return,
            Err(error) => panic!("re-open: {error:?}"),
        }
        let other = self.store.reopen(ReopenArgs { my_position: 1, ..args }).await;
        if !other.as_ref().is_err_and(|error| self.is_fault(error)) {
            assert_eq!(other, Err(StoreError::Mismatch));
        }
    }
}
