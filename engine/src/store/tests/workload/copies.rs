//! Copies that arrive, and clones.

use std::rc::Rc;

use wire::checksum::block_crcs;
use wire::member::ReplicaState;
use wire::{ChunkHandle, DedupEntry, Epoch, InodeId, OpId, Seq, ServerId, StreamId};

use super::Worker;
use crate::runtime::sim::{Rng, SimRuntime};
use crate::store::tests::model::Snap;
use crate::store::tests::rig::{TERM, bytes, payload};
use crate::store::{Import, ImportArgs, StoreError};

impl Worker {
    pub(in super::super) async fn import(&mut self) {
        if self.now().state.is_some() {
            return;
        }
        let import = self.begin_import().await;
        self.finish_import(import).await;
    }

    /// What is asked for, as an operation of the model would leave it.
    fn imported(&mut self) -> (Snap, ImportArgs) {
        let len = if self.one_in(8) { 0 } else { self.size() * 3 };
        let content = Rc::new(bytes(self.rng.next(), len));
        let epoch = 1 + u32::try_from(self.rng.below(3)).unwrap();
        let streams = u8::try_from(self.rng.below(3)).unwrap();
        let entries = (0..streams).map(|stream| OpId { stream: StreamId([stream + 20; 16]), op: 7 });
        let dedup: Vec<_> = entries.map(|id| DedupEntry { id, chunk: self.handle(), offset: 1, len: 2 }).collect();
        let snap = Snap {
            state: Some(ReplicaState::Sealed),
            epoch,
            promised: epoch + u32::from(streams == 1),
            content,
            last_seq: self.rng.below(50),
            dedup: Rc::new(dedup),
            ..Snap::absent()
        };
        let args = ImportArgs {
            term: TERM,
            chunk: self.handle(),
            epoch: Epoch(snap.epoch),
            promised: Epoch(snap.promised),
            members: vec![ServerId(7), ServerId(1)],
            my_position: 1,
            file: InodeId(3),
            prev: ChunkHandle(5),
            last_seq: Seq(snap.last_seq),
            len: u32::try_from(snap.content.len()).unwrap(),
            digest: snap.digest(),
            dedup: snap.dedup.to_vec(),
        };
        (snap, args)
    }

    /// All blocks, some runs at a time, in any order; nobody sees anything.
    pub(in super::super) async fn begin_import(&mut self) -> Option<(Snap, Import<SimRuntime>)> {
        let (snap, args) = self.imported();
        let import = match self.store.begin_import(args).await {
            Ok(import) => import,
            Err(StoreError::NoSpace) => return None,
            Err(error) if self.is_fault(&error) => return None,
            Err(error) => panic!("begin: {error:?}"),
        };
        let blocks = snap.content.len().div_ceil(4096);
        let mut runs = Vec::new();
        let mut at = 0;
        while at < blocks {
            let count = usize::try_from(1 + self.rng.below(6)).unwrap().min(blocks - at);
            runs.insert(usize::try_from(self.rng.below(runs.len() as u64 + 1)).unwrap(), at..at + count);
            at += count;
        }
        let (rt, content, together) = (self.rt.clone(), Rc::clone(&snap.content), self.one_in(2));
        let write = async |run: &std::ops::Range<usize>| {
            let piece = &content[run.start * 4096..content.len().min(run.end * 4096)];
            let buf = payload(&rt, piece).await;
            let mut padded = piece.to_vec();
            padded.resize(run.len() * 4096, 0);
            import.write(u32::try_from(run.start).unwrap(), &block_crcs(&padded), buf).await
        };
        let mut written = Vec::new();
        if together {
            written = futures_util::future::join_all(runs.iter().map(&write)).await;
        } else {
            for run in &runs {
                written.push(write(run).await);
                self.dawdle().await;
            }
        }
        if let Some(error) = written.into_iter().find_map(Result::err) {
            assert!(self.is_fault(&error), "import: {error:?}");
            return None;
        }
        assert!(self.store.view(self.handle()).is_none() && !self.store.chunks().contains(&self.handle()));
        Some((snap, import))
    }

    pub(in super::super) async fn finish_import(&mut self, import: Option<(Snap, Import<SimRuntime>)>) {
        let Some((snap, import)) = import else { return };
        if self.one_in(4) {
            return; // given up
        }
        self.issue(snap, async move { import.finish().await }).await;
    }

    /// Begun and given up, before or after its last block.
    pub(in super::super) async fn give_up_an_import(&mut self) {
        if self.now().state.is_some() {
            return;
        }
        drop(self.begin_import().await);
    }

    /// To the end, for sure.
    pub(in super::super) async fn import_for_sure(&mut self) {
        if self.now().state.is_some() {
            return;
        }
        let Some((snap, import)) = self.begin_import().await else { return };
        self.issue(snap, async move { import.finish().await }).await;
    }

    /// The handle of this chunk's clone: of the same shard.
    pub(in super::super) fn clone_handle(&self) -> u64 {
        let inner = &self.store.inner;
        let shards = inner.shared.disk().rings;
        (self.chunk * 1000..).find(|chunk| ChunkHandle(*chunk).shard(shards) == inner.shard).unwrap()
    }

    pub(in super::super) async fn clone_or_step_a_clone(&mut self) {
        let handle = self.clone_handle();
        // Clones of clones would go on for ever.
        if self.chunk >= 1000 {
            return;
        }
        if self.model.borrow_mut().chunk(handle).now().state.is_none() {
            return self.clone_chunk().await;
        }
        let mut worker = self.of_clone();
        for _ in 0..4 {
            if worker.is_over() {
                return;
            }
            Box::pin(worker.step()).await;
        }
    }

    /// Under another handle; what is left of this one is another matter.
    pub(in super::super) async fn clone_chunk(&mut self) {
        if !self.is(ReplicaState::Sealed) {
            return;
        }
        let handle = self.clone_handle();
        let (source, now) = (self.handle(), self.now());
        let (_, mut args) = self.imported();
        args.chunk = ChunkHandle(handle);
        (args.len, args.digest) = (u32::try_from(now.content.len()).unwrap(), now.digest());
        let snap =
            Snap { state: Some(ReplicaState::Sealed), epoch: args.epoch.0, promised: args.promised.0, ..now.clone() };
        let number = self.model.borrow_mut().chunk(handle).issue(snap);
        let outcome = self.store.clone_chunk(source, args).await;
        let mut model = self.model.borrow_mut();
        match outcome {
            Ok(()) => model.chunk(handle).acknowledge(number),
            Err(StoreError::Busy | StoreError::NoSpace) => model.chunk(handle).take_back(number),
            Err(StoreError::Fenced(_)) if self.faulty => {}
            Err(error) if self.is_fault(&error) => model.chunk(handle).take_back(number),
            Err(error) => panic!("clone of {}: {error:?}", self.chunk),
        }
    }

    /// As before an overwrite: nothing is seen of it.
    pub(in super::super) async fn unshare(&mut self) {
        if self.now().state.is_none() || self.is(ReplicaState::Condemned) {
            return;
        }
        let len = u32::try_from(self.now().content.len()).unwrap();
        match self.store.unshare(self.handle(), 0, len).await {
            Ok(()) | Err(StoreError::NoSpace | StoreError::Busy) => {}
            Err(error) if self.is_fault(&error) => {}
            Err(error) => panic!("unshare: {error:?}"),
        }
    }

    /// A worker for the clone of this chunk.
    pub(in super::super) fn of_clone(&mut self) -> Self {
        let (rt, store, model, size_max) = (self.rt.clone(), self.store.clone(), Rc::clone(&self.model), self.size_max);
        let (chunk, rng) = (self.clone_handle(), Rng::new(self.rng.next(), 8));
        Self { rt, store, model, chunk, rng, size_max, churn: false, faulty: self.faulty }
    }
}
