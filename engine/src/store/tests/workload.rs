//! Random operations, each one told to the model before it is issued.

use std::cell::RefCell;
use std::rc::Rc;

use wire::checksum::block_crcs;
use wire::member::ReplicaState;
use wire::{ChunkHandle, DedupEntry, Epoch, OpId, Seq, StreamId};

use super::model::{Model, Snap, digest};
use super::rig::{STREAM, TERM, bytes, create_args, payload, read_all};
use crate::runtime::Runtime;
use crate::runtime::sim::{Rng, SimRuntime};
use crate::store::{Entry, Store, StoreError, Upto};

/// Shared with whoever checks.
pub(super) type Shared = Rc<RefCell<Model>>;

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
            None => self.create().await,
            Some(ReplicaState::Condemned) => self.free().await,
            Some(ReplicaState::Sealed) if self.churn || self.one_in(4) => self.condemn().await,
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
            Some(ReplicaState::Open) => match self.rng.below(24) {
                0 => self.prepare().await,
                1 => self.finish().await,
                2..4 => self.read().await,
                4..6 => self.note_committed(),
                6 => self.rt.sleep(std::time::Duration::from_millis(300)).await,
                7..9 => {
                    let parts = 2 + self.rng.below(3);
                    self.append(u16::try_from(parts).unwrap()).await;
                }
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
            Err(error) if self.is_fault(&error) => {}
            Err(error) => panic!("chunk {}: {error:?}", self.chunk),
        }
    }

    pub(super) async fn create(&mut self) {
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

    /// Accepted at once; acknowledged by a task of its own.
    pub(super) async fn append(&mut self, parts: u16) {
        let sizes: Vec<usize> = (0..parts).map(|_| self.size()).collect();
        let len: usize = sizes.iter().sum();
        let now = self.now();
        let off = u32::try_from(now.content.len()).unwrap();
        let total = u32::try_from(len).unwrap();
        match self.store.reserve(self.handle(), off + total).await {
            Ok(()) => {}
            Err(StoreError::NoSpace) => return,
            Err(error) if self.is_fault(&error) => return,
            Err(error) => panic!("reserve: {error:?}"),
        }
        let data = bytes(self.rng.next(), len);
        let mut at = 0;
        for (part, size) in (0..).zip(sizes) {
            let piece = &data[at..at + size];
            let offset = off + u32::try_from(at).unwrap();
            let id = OpId { stream: STREAM, op: now.last_seq + 1 };
            let entry = Entry {
                chunk: self.handle(),
                epoch: Epoch(1),
                seq: Seq(now.last_seq + 1 + u64::from(part)),
                id,
                first_unacked: id.op.saturating_sub(3),
                op_off: off,
                op_len: total,
                offset,
                length: u32::try_from(size).unwrap(),
                part,
                parts,
                committed_seq: self.store.view(self.handle()).unwrap().committed_seq,
                crcs: block_crcs(piece),
            };
            let buf = payload(&self.rt, piece).await;
            let mut waited = 0;
            let done = loop {
                match self.store.append(&entry, buf.clone()) {
                    Err(StoreError::Busy) if part == 0 => return,
                    // The rest of an operation must follow: wait for room.
                    Err(StoreError::Busy) => {
                        waited += 1;
                        assert!(waited < 1000, "no room in the journal for the rest of an operation");
                        self.rt.sleep(std::time::Duration::from_millis(5)).await;
                    }
                    // The journal was so full that the incomplete operation was dropped.
                    Err(StoreError::NotNext) if part > 0 => return,
                    Err(error) if self.is_fault(&error) => return,
                    accepted => break accepted.unwrap(),
                }
            };
            if part + 1 < parts {
                at += size;
                self.dawdle().await;
                continue;
            }
            let mut snap = now.clone();
            snap.content = Rc::new([now.content.as_slice(), &data].concat());
            snap.last_seq = entry.seq.0;
            let landed = DedupEntry { id, chunk: self.handle(), offset: off, len: total };
            snap.completed(landed, entry.first_unacked);
            let number = self.model.borrow_mut().chunk(self.chunk).issue(snap);
            let (model, chunk, faulty) = (Rc::clone(&self.model), self.chunk, self.faulty);
            let acknowledged = async move {
                match done.await {
                    Ok(()) => model.borrow_mut().chunk(chunk).acknowledge(number),
                    Err(error) => assert!(faulty, "append: {error:?}"),
                }
            };
            if self.one_in(3) { acknowledged.await } else { self.rt.spawn(acknowledged) }
        }
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
        let least = self.model.borrow_mut().chunk(self.chunk).acknowledged_len();
        let content = match read_all(&self.store, self.chunk, Upto::Durable).await {
            Ok(content) => content,
            Err(error) => return assert!(self.is_fault(&error), "read: {error:?}"),
        };
        let now = self.now();
        assert!(content.len() >= least, "acknowledged bytes are readable");
        assert!(now.content.starts_with(&content), "nothing else is");
        let len = self.rng.below(content.len() as u64 + 1);
        let len = usize::try_from(len).unwrap();
        let got = match self.store.digest(self.handle(), u32::try_from(len).unwrap()).await {
            Ok(got) => got,
            Err(error) => return assert!(self.is_fault(&error), "digest: {error:?}"),
        };
        assert_eq!(got, digest(&now.content[..len]), "digest of {len} bytes");
    }

    pub(super) async fn finish(&mut self) {
        let mut snap = self.now();
        snap.closed = true;
        snap.last_seq += 1;
        let (store, handle, seq) = (self.store.clone(), self.handle(), Seq(snap.last_seq));
        let (len, digest) = (u32::try_from(snap.content.len()).unwrap(), snap.digest());
        self.issue(snap, async move { store.finish(handle, Epoch(1), seq, len, digest).await }).await;
    }

    pub(super) async fn prepare(&mut self) {
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
        let now = self.now();
        let more = if self.one_in(3) { 0 } else { self.size() };
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
        let mut snap = self.now();
        let epoch = if snap.filled { snap.promised } else { snap.epoch };
        snap.state = Some(ReplicaState::Sealed);
        (snap.filled, snap.closed) = (false, false);
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
        let mut snap = self.now();
        snap.state = Some(ReplicaState::Condemned);
        let (store, handle) = (self.store.clone(), self.handle());
        self.issue(snap, async move { store.condemn(TERM, handle, 5, 1).await }).await;
    }

    pub(super) async fn free(&mut self) {
        let mut snap = self.now();
        snap.state = None;
        let (store, handle) = (self.store.clone(), self.handle());
        self.issue(snap, async move { store.free(TERM, handle, 5).await }).await;
    }
}
