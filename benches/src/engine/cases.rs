//! What is done to a store: each case on any backend, timed on the shard itself.
//!
//! An append counts when it is durable, a read when its bytes have passed their checksums. The
//! checksums of what is appended are computed here and inside the measured time, as a server does it.

use std::cell::RefCell;
use std::time::Duration;

use engine::runtime::Runtime;
use engine::store::{CreateArgs, Entry, Store, StoreError, Upto};
use futures_util::StreamExt;
use futures_util::future::try_join_all;
use futures_util::stream::FuturesUnordered;
use hdrhistogram::Histogram;
use wire::checksum::block_crcs;
use wire::{ChunkHandle, Epoch, InodeId, OpId, Seq, ServerId, StreamId, Term};

use super::subject::{Latency, Sample};

const TERM: Term = Term(1);
const EPOCH: Epoch = Epoch(1);
const MIB: u32 = 1 << 20;
/// One small record, bytes.
const SMALL: u32 = 100;
/// Content of a chunk.
const CHUNK: u32 = wire::limits::CHUNK_SIZE;
/// Payloads that differ, so that no two writes in flight are of the same memory.
const PAYLOADS: usize = 64;
/// A full journal is looked at again after this.
const BUSY: Duration = Duration::from_millis(1);
/// Longest latency recorded, microseconds.
const LATENCY_MAX_US: u64 = 60_000_000;

/// One thing to measure, or to prepare.
#[derive(Clone, Copy, Debug)]
pub enum Case {
    /// Frees every chunk and creates so many empty ones: slots are used again, oldest first.
    Prepare {
        /// Chunks.
        chunks: u32,
    },
    /// Fills the chunks that were prepared, 1 MiB at a time.
    Append {
        /// Appends without an answer at a time.
        window: usize,
    },
    /// Reads all chunks from front to back, 1 MiB at a time.
    Read {
        /// Reads at a time.
        window: usize,
    },
    /// Reads 4 KiB blocks anywhere in the first `span` bytes of the chunks.
    ReadRandom {
        /// Reads at a time.
        window: usize,
        /// Bytes.
        span: u64,
        /// For so long.
        budget: Duration,
    },
    /// Appends records of 100 bytes.
    AppendSmall {
        /// Writers, each with one record without an answer.
        writers: usize,
        /// Chunks they share.
        chunks: u32,
        /// For so long.
        budget: Duration,
    },
    /// Appends small records and holds checkpoints back, until the journal takes no more.
    FillJournal {
        /// Records without an answer at a time.
        writers: usize,
        /// Chunks they share.
        chunks: u32,
    },
    /// Nothing, for so long.
    Idle {
        /// For so long.
        budget: Duration,
    },
}

/// A chunk that takes appends.
struct Open {
    handle: ChunkHandle,
    len: u32,
    seq: u64,
}

/// A store and what the cases so far have left in it.
pub struct Work<R: Runtime> {
    rt: R,
    store: Store<R>,
    chunks: Vec<Open>,
    next_handle: u64,
    payloads: Vec<R::Buf>,
}

type Done = Result<Sample, StoreError>;

/// Spans up to this many bytes are read from the store's memory, half of which they may fill.
const CACHED: u64 = CACHE_BYTES as u64 / 2;

/// Blocks that the store keeps in memory, bytes.
pub(super) const CACHE_BYTES: usize = 64 << 20;

/// Where reads are meant to find their blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// On the device.
    Cold,
    /// In the store's memory.
    Cached,
}

impl<R: Runtime> Work<R> {
    /// Takes most of the pool for payloads.
    pub async fn new(rt: R, store: Store<R>) -> Self {
        let mut payloads = Vec::new();
        for seed in 1..=PAYLOADS as u64 {
            let mut buf = rt.alloc(MIB as usize).await;
            fill(buf.as_mut(), seed);
            payloads.push(rt.freeze(buf));
        }
        Self { rt, store, chunks: Vec::new(), next_handle: 1, payloads }
    }

    /// Runs one case.
    ///
    /// # Errors
    ///
    /// What the store refuses.
    pub async fn run(&mut self, case: Case) -> Done {
        match case {
            Case::Prepare { chunks } => self.prepare(chunks).await,
            Case::Append { window } => self.append(window).await,
            Case::Read { window } => {
                let each = CHUNK / MIB;
                let count = self.chunks.len() as u64 * u64::from(each);
                self.read(Way::Cold, window, MIB, None, |index| (index < count).then_some(index)).await
            }
            Case::ReadRandom { window, span, budget } => {
                let span = span.min(self.chunks.len() as u64 * u64::from(CHUNK));
                let blocks = (span / 4096).max(1);
                let way = if span <= CACHED { self.warm(span).await? } else { Way::Cold };
                let mut state = 0x2545_f491_4f6c_dd1d_u64;
                self.read(way, window, 4096, Some(budget), move |_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    Some(state % blocks)
                })
                .await
            }
            Case::AppendSmall { writers, chunks, budget } => {
                self.prepare(chunks).await?;
                self.append_small(writers, Some(budget)).await
            }
            Case::FillJournal { writers, chunks } => {
                self.prepare(chunks).await?;
                self.store.hold_checkpoints(true);
                self.append_small(writers, None).await
            }
            Case::Idle { budget } => {
                self.rt.sleep(budget).await;
                Ok(Sample { elapsed: budget, ..Sample::default() })
            }
        }
    }

    async fn prepare(&mut self, chunks: u32) -> Done {
        for chunk in std::mem::take(&mut self.chunks) {
            self.store.condemn(TERM, chunk.handle, 1, 1).await?;
            self.store.free(TERM, chunk.handle, 1).await?;
        }
        for _ in 0..chunks {
            let handle = ChunkHandle(self.next_handle);
            self.next_handle += 1;
            let args = CreateArgs {
                term: TERM,
                chunk: handle,
                epoch: EPOCH,
                members: vec![ServerId(1)],
                my_position: 0,
                prev: ChunkHandle::NONE,
                file: InodeId(1),
                dedup: Vec::new(),
            };
            while let Err(error) = self.store.create(args.clone()).await {
                if error != StoreError::Busy {
                    return Err(error);
                }
                self.rt.sleep(BUSY).await;
            }
            self.chunks.push(Open { handle, len: 0, seq: 0 });
        }
        Ok(Sample::default())
    }

    async fn append(&mut self, window: usize) -> Done {
        let mut latency = histogram();
        let begun = self.rt.now();
        let mut waiting = FuturesUnordered::new();
        let mut ops = 0;
        for chunk in &mut self.chunks {
            while chunk.len + MIB <= CHUNK {
                if waiting.len() >= window {
                    let started = waiting.next().await.unwrap_or(Ok(begun))?;
                    record(&mut latency, self.rt.now().saturating_sub(started));
                }
                self.store.reserve(chunk.handle, chunk.len + MIB).await?;
                let started = self.rt.now();
                let payload = self.payloads[ops % PAYLOADS].clone();
                let crcs = block_crcs(payload.as_ref());
                let done = loop {
                    match self
                        .store
                        .append(&chunk.entry(MIB, crcs.clone(), StreamId([1; 16]), ops as u64 + 1), payload.clone())
                    {
                        Err(StoreError::Busy) => self.rt.sleep(BUSY).await,
                        done => break done?,
                    }
                };
                chunk.len += MIB;
                chunk.seq += 1;
                ops += 1;
                waiting.push(async move { done.await.map(|()| started) });
                // A server takes each append from a connection: the shard looks at its completions, and
                // gives the device what it has, between two of them.
                self.rt.yield_now().await;
            }
        }
        while let Some(done) = waiting.next().await {
            record(&mut latency, self.rt.now().saturating_sub(done?));
        }
        Ok(sample(ops as u64, u64::from(MIB), self.rt.now().saturating_sub(begun), &latency))
    }

    /// Reads the first bytes until all of them are in the store's memory: it keeps what is read twice.
    async fn warm(&self, span: u64) -> Result<Way, StoreError> {
        for _ in 0..3 {
            let count = span / u64::from(MIB);
            self.read(Way::Cached, 1, MIB, None, |index| (index < count).then_some(index)).await?;
        }
        Ok(Way::Cached)
    }

    async fn read(
        &self,
        way: Way,
        window: usize,
        len: u32,
        budget: Option<Duration>,
        mut next: impl FnMut(u64) -> Option<u64>,
    ) -> Done {
        let each = u64::from(CHUNK / len);
        let begun = self.rt.now();
        let next = RefCell::new((0, move |index| next(index)));
        let read = async || -> Result<(u64, Histogram<u64>), StoreError> {
            let (mut ops, mut latency) = (0, histogram());
            loop {
                let started = self.rt.now();
                if budget.is_some_and(|budget| started.saturating_sub(begun) >= budget) {
                    return Ok((ops, latency));
                }
                let place = {
                    let mut next = next.borrow_mut();
                    let index = next.0;
                    next.0 += 1;
                    (next.1)(index)
                };
                let Some(place) = place else { return Ok((ops, latency)) };
                let chunk = &self.chunks[usize::try_from(place / each).unwrap_or(0)];
                let offset = u32::try_from(place % each).unwrap_or(0) * len;
                let blocks = match way {
                    Way::Cached => self.store.read(chunk.handle, offset, len, Upto::Durable).await?,
                    Way::Cold => self.store.read_device(chunk.handle, offset, len, Upto::Durable).await?,
                };
                if blocks.len != len {
                    return Err(StoreError::BadRange);
                }
                record(&mut latency, self.rt.now().saturating_sub(started));
                ops += 1;
            }
        };
        let all = try_join_all((0..window).map(|_| read())).await?;
        let elapsed = self.rt.now().saturating_sub(begun);
        let mut latency = histogram();
        all.iter().for_each(|(_, more)| latency.add(more).unwrap_or_default());
        Ok(sample(all.iter().map(|(ops, _)| ops).sum(), u64::from(len), elapsed, &latency))
    }

    /// Without a budget: until the journal is full.
    async fn append_small(&mut self, writers: usize, budget: Option<Duration>) -> Done {
        for chunk in &self.chunks {
            self.store.reserve(chunk.handle, 64 << 10).await?;
        }
        let chunks: Vec<_> = self.chunks.drain(..).map(RefCell::new).collect();
        let begun = self.rt.now();
        let writer = async |index: usize| -> Result<(u64, Histogram<u64>), StoreError> {
            let (mut ops, mut latency) = (0, histogram());
            let mut stream = [2; 16];
            stream[..8].copy_from_slice(&(index as u64).to_le_bytes());
            let chunk = &chunks[index % chunks.len()];
            let payload = self.rt.slice(&self.payloads[index % PAYLOADS], 0..4096);
            loop {
                let started = self.rt.now();
                if budget.is_some_and(|budget| started.saturating_sub(begun) >= budget) {
                    return Ok((ops, latency));
                }
                let (handle, end) = {
                    let chunk = chunk.borrow();
                    (chunk.handle, chunk.len + 64 * SMALL * 2)
                };
                if end >= CHUNK {
                    return Ok((ops, latency));
                }
                self.store.reserve(handle, end).await?;
                let crcs = block_crcs(&payload.as_ref()[..SMALL as usize]);
                let accepted = {
                    let mut chunk = chunk.borrow_mut();
                    let entry = chunk.entry(SMALL, crcs, StreamId(stream), ops + 1);
                    let accepted = self.store.append(&entry, payload.clone());
                    if accepted.is_ok() {
                        chunk.len += SMALL;
                        chunk.seq += 1;
                    }
                    accepted
                };
                match accepted {
                    Err(StoreError::Busy) if budget.is_none() => return Ok((ops, latency)),
                    Err(StoreError::Busy | StoreError::NoSpace) => self.rt.sleep(BUSY).await,
                    accepted => {
                        accepted?.await?;
                        record(&mut latency, self.rt.now().saturating_sub(started));
                        ops += 1;
                    }
                }
            }
        };
        let all = try_join_all((0..writers).map(writer)).await;
        let elapsed = self.rt.now().saturating_sub(begun);
        let mut latency = histogram();
        let all = all?;
        all.iter().for_each(|(_, more)| latency.add(more).unwrap_or_default());
        self.chunks = chunks.into_iter().map(RefCell::into_inner).collect();
        Ok(sample(all.iter().map(|(ops, _)| ops).sum(), u64::from(SMALL), elapsed, &latency))
    }
}

impl Open {
    fn entry(&self, length: u32, crcs: Vec<u32>, stream: StreamId, op: u64) -> Entry {
        Entry {
            chunk: self.handle,
            epoch: EPOCH,
            seq: Seq(self.seq + 1),
            id: OpId { stream, op },
            first_unacked: op,
            op_off: self.len,
            op_len: length,
            offset: self.len,
            length,
            part: 0,
            parts: 1,
            committed_seq: Seq(0),
            crcs,
        }
    }
}

fn sample(ops: u64, each: u64, elapsed: Duration, latency: &Histogram<u64>) -> Sample {
    #[allow(clippy::cast_precision_loss, reason = "for people")]
    let us = |quantile| latency.value_at_quantile(quantile) as f64 / 10.0;
    let latency = (!latency.is_empty()).then(|| Latency { p50: us(0.5), p99: us(0.99) });
    Sample { ops, bytes: ops * each, elapsed, latency, ..Sample::default() }
}

/// Tenths of microseconds.
fn record(latency: &mut Histogram<u64>, took: Duration) {
    latency.saturating_record(u64::try_from(took.as_nanos() / 100).unwrap_or(u64::MAX));
}

fn histogram() -> Histogram<u64> {
    match Histogram::new_with_bounds(1, LATENCY_MAX_US * 10, 2) {
        Ok(histogram) => histogram,
        Err(_) => unreachable!("the bounds are constants"),
    }
}

/// Bytes that no device can compress away.
fn fill(bytes: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for word in bytes.as_chunks_mut::<8>().0 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *word = state.to_le_bytes();
    }
}
