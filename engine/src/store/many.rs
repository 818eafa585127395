//! Many reads at once: they go to the device together, and neighbours become one.

use std::rc::Rc;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use wire::ChunkHandle;

use super::StoreError;
use super::layout::{BLOCK, CHUNK_CAPACITY, align_down, align_up};
use super::read::{READ_MAX, Way};
use super::shard::{Inner, Store};
use super::types::{Blocks, Upto};
use crate::runtime::Runtime;

impl<R: Runtime> Store<R> {
    /// Many reads of (chunk, offset, length) at once, answered in their order. They go to the device
    /// together; reads of blocks that touch or follow each other become one. Each by itself is as
    /// [`Store::read`]. The caller bounds their sum: all answers are held at the end.
    pub async fn read_many(
        &self,
        reads: &[(ChunkHandle, u32, u32)],
        upto: Upto,
    ) -> Vec<Result<Blocks<R::Buf>, StoreError>> {
        if let Err(error) = self.inner.check() {
            return reads.iter().map(|_| Err(error.clone())).collect();
        }
        let mut answers: Vec<Option<Result<Blocks<R::Buf>, StoreError>>> = reads.iter().map(|_| None).collect();
        let spans = spans(reads);
        let mut going: FuturesUnordered<_> = spans.iter().map(|span| self.inner.read_span(span, reads, upto)).collect();
        while let Some(answered) = going.next().await {
            for (index, answer) in answered {
                answers[index] = Some(answer);
            }
        }
        answers.into_iter().map(|answer| answer.unwrap_or(Err(StoreError::BadRange))).collect()
    }
}

/// Reads of one chunk that become one.
#[derive(Debug, PartialEq, Eq)]
struct Span {
    chunk: ChunkHandle,
    offset: u32,
    len: u32,
    /// Which they are.
    reads: Vec<usize>,
}

/// Puts reads together whose blocks touch or follow each other, up to what one read may be.
fn spans(reads: &[(ChunkHandle, u32, u32)]) -> Vec<Span> {
    let mut order: Vec<usize> = (0..reads.len()).collect();
    order.sort_by_key(|index| reads[*index]);
    let mut spans: Vec<Span> = Vec::new();
    for index in order {
        let (chunk, offset, len) = reads[index];
        // One that cannot be is refused by itself.
        let end = offset.checked_add(len).filter(|end| *end <= CHUNK_CAPACITY);
        let near = spans.last_mut().filter(|span| {
            let blocks = |end: u32| align_up(end) - align_down(span.offset);
            span.chunk == chunk
                && align_down(offset) <= align_up(span.offset + span.len)
                && end.is_some_and(|end| blocks(end.max(span.offset + span.len)) <= READ_MAX)
        });
        match (near, end) {
            (Some(span), Some(end)) => {
                span.len = span.len.max(end - span.offset);
                span.reads.push(index);
            }
            // The largest length, so that nothing is put to it.
            _ => spans.push(Span { chunk, offset, len: end.map_or(0, |_| len), reads: vec![index] }),
        }
    }
    spans
}

/// The part of `blocks` that a read of `[offset, offset+len)` would have got.
fn cut<R: Runtime>(rt: &R, blocks: &Blocks<R::Buf>, offset: u32, len: u32) -> Blocks<R::Buf> {
    let start = align_down(offset);
    let end = (offset + len).min(blocks.offset + blocks.len);
    if end <= offset {
        return Blocks { buf: rt.slice(&blocks.buf, 0..0), offset: start, len: 0, crcs: Vec::new() };
    }
    let (from, to) = (start - blocks.offset, align_up(end) - blocks.offset);
    Blocks {
        buf: rt.slice(&blocks.buf, from as usize..to as usize),
        offset: start,
        len: end - start,
        crcs: blocks.crcs[(from / BLOCK) as usize..(to / BLOCK) as usize].to_vec(),
    }
}

impl<R: Runtime> Inner<R> {
    async fn read_span(
        self: &Rc<Self>,
        span: &Span,
        reads: &[(ChunkHandle, u32, u32)],
        upto: Upto,
    ) -> Vec<(usize, Result<Blocks<R::Buf>, StoreError>)> {
        if let [index] = span.reads[..] {
            let (chunk, offset, len) = reads[index];
            return vec![(index, self.read(chunk, offset, len, upto, Way::Shared).await)];
        }
        match self.read(span.chunk, span.offset, span.len, upto, Way::Shared).await {
            Ok(blocks) => {
                let cut = |index: &usize| (*index, Ok(cut(&self.io.rt, &blocks, reads[*index].1, reads[*index].2)));
                span.reads.iter().map(cut).collect()
            }
            // What fails one of them need not fail the others.
            Err(_) => {
                let alone = span.reads.iter().map(async |index| {
                    let (chunk, offset, len) = reads[*index];
                    (*index, self.read(chunk, offset, len, upto, Way::Shared).await)
                });
                join_all(alone).await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(chunk: u64, offset: u32, len: u32) -> (ChunkHandle, u32, u32) {
        (ChunkHandle(chunk), offset, len)
    }

    #[test]
    fn reads_of_neighbours_become_one_up_to_what_a_read_may_be() {
        let reads = [
            read(2, 4096, 4096),
            read(1, 0, 4096),
            read(1, 9000, 10),
            read(1, 4096, 100),
            read(1, 20480, 1),
            read(1, 16384, 1 << 20),
            read(1, u32::MAX, 9),
        ];
        let spans: Vec<_> =
            spans(&reads).into_iter().map(|span| (span.chunk.0, span.offset, span.len, span.reads)).collect();
        let expected = [
            (1, 0, 9010, vec![1, 3, 2]),
            (1, 16384, 1 << 20, vec![5, 4]),
            (1, u32::MAX, 0, vec![6]),
            (2, 4096, 4096, vec![0]),
        ];
        assert_eq!(spans, expected);
    }
}
