//! One chunk after the other: created, filled, overwritten, sealed, opened again, condemned, freed. Each operation is in the log
//! before it can reach the disk; each answer is in the log before anybody could rely on it.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use engine::runtime::Runtime;
use engine::runtime::sim::Rng;
use engine::store::{Entry, ReopenArgs, Store, StoreError};
use tokio::sync::oneshot;
use wire::checksum::block_crcs;
use wire::{ChunkHandle, Epoch, OpId, Seq, StreamId};

use crate::disk::{BLOCK, TERM, create_args, entry, payload, read_all};
use crate::history::{Life, Log, Piece, Snap};

const AUTHORITY: u64 = 5;
/// Content after which a chunk is sealed.
const LEN_MAX: u32 = 3 << 20;
/// Most bytes of an overwrite: several fit into the journal.
const OVERWRITE_MAX: u64 = 48 << 10;
/// Until a journal that was full has room again.
const PAUSE: Duration = Duration::from_millis(2);
/// Times that a writer is told to come again.
const TRIES_MAX: u32 = 5000;

/// What the workers of a shard share.
pub(crate) struct Common {
    pub(crate) log: Arc<Log>,
    /// Handles for new chunks, ascending.
    pub(crate) handles: RefCell<Box<dyn Iterator<Item = u64>>>,
    /// First error of the disk.
    pub(crate) fault: RefCell<Option<StoreError>>,
    pub(crate) acks: Cell<u64>,
    /// Everybody who was answered before the first error has had time to hear it.
    pub(crate) settled: Cell<bool>,
    /// Answers after that.
    pub(crate) acks_after: Cell<u64>,
}

/// Turns of all tasks that an answer takes to be heard, and more.
const TURNS: u32 = 4;

impl Common {
    fn acked(&self, chunk: u64, number: usize) {
        let count = if self.settled.get() { &self.acks_after } else { &self.acks };
        count.set(count.get() + 1);
        self.log.acked(chunk, number);
    }

    /// From here on nothing may be acknowledged. An answer is heard a turn after it was given, so the
    /// error of one worker can be heard before the answers of a group that was durable before it.
    fn failed<R: Runtime>(self: &Rc<Self>, rt: &R, error: StoreError) {
        if self.fault.borrow().is_some() {
            return;
        }
        *self.fault.borrow_mut() = Some(error);
        let (common, turns) = (Rc::clone(self), rt.clone());
        rt.spawn(async move {
            for _ in 0..TURNS {
                turns.yield_now().await;
            }
            common.settled.set(true);
        });
    }
}

pub(crate) struct Worker<R: Runtime> {
    pub(crate) rt: R,
    pub(crate) store: Store<R>,
    pub(crate) common: Rc<Common>,
    pub(crate) rng: Rng,
    pub(crate) size_max: u64,
    pub(crate) chunk: u64,
    pub(crate) now: Snap,
    /// Number of `now`.
    pub(crate) number: usize,
    /// The chunk was there before the restart: silent in its epoch.
    pub(crate) restarted: bool,
    /// Appends and overwrites whose answer is on its way.
    pub(crate) pending: Vec<oneshot::Receiver<()>>,
}

/// The disk has failed: no more work.
pub(crate) struct Over;

impl<R: Runtime> Worker<R> {
    pub(crate) async fn run(mut self, steps: u64) {
        for _ in 0..steps {
            if self.step().await.is_err() {
                break;
            }
        }
        self.quiet().await;
    }

    fn handle(&self) -> ChunkHandle {
        ChunkHandle(self.chunk)
    }

    /// Waits for the answers of all appends and overwrites.
    async fn quiet(&mut self) {
        for answer in self.pending.drain(..) {
            // Gone without an answer: the disk has failed, and that is noted.
            let _ = answer.await;
        }
    }

    async fn step(&mut self) -> Result<(), Over> {
        if self.common.fault.borrow().is_some() {
            return Err(Over);
        }
        match self.now.life {
            Life::Absent => self.create().await,
            Life::Condemned => self.free().await,
            Life::Sealed => match self.rng.below(3) {
                0 => self.condemn().await,
                1 => self.reopen().await,
                _ => self.read().await,
            },
            Life::Open if self.now.filled || self.now.closed => self.confirm().await,
            Life::Open if self.now.promised > self.now.epoch => self.fill_and_seal().await,
            Life::Open if self.restarted => self.prepare().await,
            Life::Open if self.now.fixed => match self.rng.below(12) {
                0 => self.prepare().await,
                1 => self.finish().await,
                2 => self.read().await,
                _ => self.overwrite().await,
            },
            Life::Open if self.now.len() > LEN_MAX => self.prepare().await,
            Life::Open => match self.rng.below(30) {
                0 => self.prepare().await,
                1 => self.finish().await,
                2 => self.condemn().await,
                3..5 => self.read().await,
                5..7 => {
                    let durable = self.store.view(self.handle()).unwrap().durable_seq;
                    self.store.note_committed(self.handle(), durable);
                    Ok(())
                }
                7..10 => {
                    let parts = 2 + self.rng.below(3);
                    self.append(u16::try_from(parts).unwrap()).await
                }
                10..15 => self.overwrite().await,
                _ => self.append(1).await,
            },
        }
    }

    /// Issues something that leads to `next`, again while the store is busy.
    async fn issue<W: Future<Output = Result<(), StoreError>>>(
        &mut self,
        kind: &str,
        next: Snap,
        piece: Option<Piece>,
        work: impl Fn(Store<R>) -> W,
    ) -> Result<(), Over> {
        self.quiet().await;
        let number = self.number + 1;
        self.common.log.issue(self.chunk, number, kind, &next, piece);
        let mut tries = 0;
        let outcome = loop {
            match work(self.store.clone()).await {
                Err(StoreError::Busy) if tries < TRIES_MAX => tries += 1,
                outcome => break outcome,
            }
            self.rt.sleep(PAUSE).await;
        };
        match outcome {
            Ok(()) => {
                self.common.acked(self.chunk, number);
                (self.now, self.number) = (next, number);
                Ok(())
            }
            Err(StoreError::NoSpace) => {
                self.common.log.refused(self.chunk, number);
                self.common.failed(&self.rt, StoreError::NoSpace);
                Err(Over)
            }
            // Unknown, not refused.
            Err(error) => {
                self.common.failed(&self.rt, error);
                Err(Over)
            }
        }
    }

    async fn create(&mut self) -> Result<(), Over> {
        if self.number > 0 {
            self.chunk = self.common.handles.borrow_mut().next().unwrap();
            (self.number, self.restarted) = (0, false);
        }
        let handle = self.handle();
        let next = Snap { life: Life::Open, epoch: 1, promised: 1, ..Snap::ABSENT };
        self.issue("create", next, None, |store| async move { store.create(create_args(handle)).await }).await
    }

    fn size(&mut self) -> u32 {
        let size = match self.rng.below(10) {
            0 => 1 + self.rng.below(16),
            1 => 4095 + self.rng.below(3),
            2..4 => 4096 * (1 + self.rng.below(8)),
            4 => 1 + self.rng.below(self.size_max),
            _ => 1 + self.rng.below(9000),
        };
        u32::try_from(size.min(self.size_max)).unwrap()
    }

    /// Parts are accepted one after the other; the answer is waited for by a task.
    async fn append(&mut self, parts: u16) -> Result<(), Over> {
        let sizes: Vec<u32> = (0..parts).map(|_| self.size()).collect();
        let piece = Piece { seed: self.rng.next(), at: self.now.len(), len: sizes.iter().sum() };
        let (data, off) = (piece.bytes(), piece.at);
        if let Err(error) = self.store.reserve(self.handle(), off + piece.len).await {
            self.common.failed(&self.rt, error);
            return Err(Over);
        }
        let mut at = 0;
        for (part, size) in (0..).zip(sizes) {
            let bytes = &data[at as usize..(at + size) as usize];
            let seq = self.now.last_seq + 1 + u64::from(part);
            let id = self.next_id();
            let entry = Entry {
                epoch: Epoch(self.now.epoch),
                seq: Seq(seq),
                id,
                first_unacked: id.op,
                op_off: off,
                op_len: piece.len,
                offset: off + at,
                part,
                parts,
                ..entry(&self.store, self.handle(), bytes)
            };
            let buf = payload(&self.rt, bytes).await;
            let mut tries = 0;
            let done = loop {
                match self.store.append(&entry, buf.clone()) {
                    Err(StoreError::Busy) if tries < TRIES_MAX => tries += 1,
                    // The journal was so full that the incomplete operation was dropped.
                    Err(StoreError::NotNext) if tries > 0 && part > 0 => return Ok(()),
                    Err(error) => {
                        self.common.failed(&self.rt, error);
                        return Err(Over);
                    }
                    Ok(done) => break done,
                }
                self.rt.sleep(PAUSE).await;
            };
            at += size;
            if part + 1 < parts {
                if self.rng.once_in(2) {
                    self.rt.yield_now().await;
                }
                continue;
            }
            self.accepted("append", piece, seq);
            self.answer(done).await;
        }
        Ok(())
    }

    /// Names of operations never come again, though entries are counted anew in each epoch.
    fn next_id(&self) -> OpId {
        let mut stream = [3; 16];
        stream[..4].copy_from_slice(&self.now.epoch.to_le_bytes());
        OpId { stream: StreamId(stream), op: self.now.last_seq + 1 }
    }

    /// A whole operation is accepted: nothing of it can have reached the disk yet.
    fn accepted(&mut self, kind: &str, piece: Piece, seq: u64) {
        self.now.pieces.push(piece);
        self.now.last_seq = seq;
        self.number += 1;
        self.common.log.issue(self.chunk, self.number, kind, &self.now, Some(piece));
    }

    /// Somewhere below the end; half of them begin at a block.
    async fn overwrite(&mut self) -> Result<(), Over> {
        let end = u64::from(self.now.len());
        if end == 0 {
            return Ok(());
        }
        let somewhere = self.rng.below(end);
        let at = if self.rng.once_in(2) { somewhere / BLOCK as u64 * BLOCK as u64 } else { somewhere };
        let len = u64::from(self.size()).min(OVERWRITE_MAX).min(end - at);
        let piece = Piece { seed: self.rng.next(), at: u32::try_from(at).unwrap(), len: u32::try_from(len).unwrap() };
        let bytes = piece.bytes();
        let id = self.next_id();
        let entry = Entry {
            epoch: Epoch(self.now.epoch),
            id,
            first_unacked: id.op,
            op_off: piece.at,
            offset: piece.at,
            ..entry(&self.store, self.handle(), &bytes)
        };
        let buf = payload(&self.rt, &bytes).await;
        let mut tries = 0;
        let done = loop {
            let done = match self.store.prepare_overwrite(self.handle(), piece.at, piece.len).await {
                Ok(edges) => self.store.overwrite(&entry, &buf, &edges),
                Err(error) => Err(error),
            };
            match done {
                Err(StoreError::Busy) if tries < TRIES_MAX => tries += 1,
                Err(error) => {
                    self.common.failed(&self.rt, error);
                    return Err(Over);
                }
                Ok(done) => break done,
            }
            self.rt.sleep(PAUSE).await;
        };
        self.accepted("overwrite", piece, entry.seq.0);
        self.answer(done).await;
        Ok(())
    }

    async fn answer(&mut self, done: impl Future<Output = Result<(), StoreError>> + 'static) {
        let (sender, answered) = oneshot::channel();
        let (common, chunk, number) = (Rc::clone(&self.common), self.chunk, self.number);
        let rt = self.rt.clone();
        self.rt.spawn(async move {
            match done.await {
                Ok(()) => common.acked(chunk, number),
                Err(error) => common.failed(&rt, error),
            }
            // The worker may be gone.
            let _ = sender.send(());
        });
        self.pending.push(answered);
        if self.pending.len() > 8 || self.rng.once_in(3) {
            self.quiet().await;
        }
    }

    async fn read(&mut self) -> Result<(), Over> {
        self.quiet().await;
        match read_all(&self.store, self.chunk).await {
            Ok(content) => {
                assert!(self.common.fault.borrow().is_some() || content == self.now.content(), "a wrong byte");
                Ok(())
            }
            Err((_, error)) => {
                self.common.failed(&self.rt, error);
                Err(Over)
            }
        }
    }

    async fn finish(&mut self) -> Result<(), Over> {
        self.quiet().await;
        let mut next = self.now.clone();
        next.closed = true;
        next.last_seq += 1;
        let (handle, epoch, seq, len) = (self.handle(), Epoch(next.epoch), Seq(next.last_seq), next.len());
        self.issue("finish", next, None, |store| async move {
            let digest = store.digest(handle, u32::MAX).await?;
            store.finish(handle, epoch, seq, len, digest).await
        })
        .await
    }

    async fn prepare(&mut self) -> Result<(), Over> {
        let mut next = self.now.clone();
        next.promised = next.promised.max(next.epoch) + 1;
        let (handle, epoch) = (self.handle(), Epoch(next.promised));
        self.issue("prepare", next, None, |store| async move { store.prepare(TERM, handle, epoch).await.map(drop) })
            .await
    }

    /// Sometimes with more content, as a member that another is ahead of.
    async fn fill_and_seal(&mut self) -> Result<(), Over> {
        self.quiet().await;
        let mut next = self.now.clone();
        let more = !self.now.fixed && !self.rng.once_in(3);
        let piece = more.then(|| Piece { seed: self.rng.next(), at: self.now.len(), len: self.size() });
        next.pieces.extend(piece);
        next.last_seq += u64::from(piece.is_some());
        next.filled = true;
        let (handle, epoch) = (self.handle(), Epoch(self.now.promised));
        if piece.is_some() {
            let content = next.content();
            let mut at = self.now.len() as usize / BLOCK * BLOCK;
            let mut tries = 0;
            while at < content.len() {
                let bytes = &content[at..content.len().min(at + 16 * BLOCK)];
                let buf = payload(&self.rt, bytes).await;
                let offset = u32::try_from(at).unwrap();
                let len = u32::try_from(bytes.len()).unwrap();
                match self.store.fill(handle, epoch, offset, len, block_crcs(bytes), buf).await {
                    Ok(()) => at += bytes.len(),
                    // Held-back records filled the journal and were dropped: from the start.
                    Err(StoreError::BadRange) => at = self.now.len() as usize / BLOCK * BLOCK,
                    Err(StoreError::Busy) if tries < TRIES_MAX => {
                        tries += 1;
                        self.rt.sleep(PAUSE).await;
                    }
                    Err(error) => {
                        self.common.failed(&self.rt, error);
                        return Err(Over);
                    }
                }
            }
        }
        let (seq, len, digest) = (Seq(next.last_seq), next.len(), digest(&next.content()));
        let number = self.number + 1;
        self.common.log.issue(self.chunk, number, "seal", &next, piece);
        match self.store.seal(TERM, handle, epoch, seq, len, digest, None).await {
            Ok(()) => {
                self.common.acked(self.chunk, number);
                (self.now, self.number) = (next, number);
                Ok(())
            }
            // What was filled has been dropped meanwhile: again.
            Err(StoreError::Mismatch | StoreError::Busy) => {
                self.common.log.refused(self.chunk, number);
                self.rt.sleep(PAUSE).await;
                Ok(())
            }
            Err(error) => {
                self.common.failed(&self.rt, error);
                Err(Over)
            }
        }
    }

    async fn confirm(&mut self) -> Result<(), Over> {
        let mut next = self.now.clone();
        let epoch = if next.filled { next.promised } else { next.epoch };
        next.life = Life::Sealed;
        (next.filled, next.closed, next.fixed, next.epoch) = (false, false, false, epoch);
        let (handle, len, digest) = (self.handle(), next.len(), digest(&next.content()));
        self.issue("confirm", next, None, |store| async move {
            store.confirm(TERM, handle, Epoch(epoch), len, digest).await
        })
        .await
    }

    async fn reopen(&mut self) -> Result<(), Over> {
        let epoch = self.now.promised.max(self.now.epoch) + 1;
        let next = Snap { life: Life::Open, epoch, promised: epoch, last_seq: 0, fixed: true, ..self.now.clone() };
        let (chunk, len, digest) = (self.handle(), next.len(), digest(&next.content()));
        let args = ReopenArgs {
            term: TERM,
            chunk,
            epoch: Epoch(epoch),
            members: create_args(chunk).members,
            my_position: 0,
            len,
            digest,
        };
        self.issue("reopen", next, None, |store| {
            let args = args.clone();
            async move { store.reopen(args).await }
        })
        .await?;
        self.restarted = false;
        Ok(())
    }

    async fn condemn(&mut self) -> Result<(), Over> {
        let next = Snap { life: Life::Condemned, ..self.now.clone() };
        let handle = self.handle();
        self.issue("condemn", next, None, |store| async move { store.condemn(TERM, handle, AUTHORITY, 1).await }).await
    }

    async fn free(&mut self) -> Result<(), Over> {
        let handle = self.handle();
        self.issue("free", Snap::ABSENT, None, |store| async move { store.free(TERM, handle, AUTHORITY).await }).await
    }
}

/// Format section 5.3.
fn digest(content: &[u8]) -> [u8; 16] {
    let full = content.len() / BLOCK * BLOCK;
    let mut hashed: Vec<u8> = block_crcs(&content[..full]).into_iter().flat_map(u32::to_le_bytes).collect();
    hashed.extend_from_slice(&content[full..]);
    hashed.extend_from_slice(&(content.len() as u64).to_le_bytes());
    xxhash_rust::xxh3::xxh3_128(&hashed).to_le_bytes()
}
