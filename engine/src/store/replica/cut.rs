//! How the payload of an append becomes blocks.

use std::borrow::Cow;

use super::super::layout::BLOCK;

/// The blocks an append completes and the partial block it leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blocks<'a> {
    pub(crate) first: u32,
    pub(crate) crcs: Cow<'a, [u32]>,
    pub(crate) tail: Cow<'a, [u8]>,
}

/// Cuts a payload that continues `tail` into blocks. `crcs` are those of the payload's own 4 KiB
/// pieces; they are the blocks' when the payload starts at a block, and nothing is computed then.
pub(crate) fn cut_blocks<'a>(tail: &[u8], offset: u32, payload: &'a [u8], crcs: &'a [u32]) -> Blocks<'a> {
    assert_eq!(tail.len(), (offset % BLOCK) as usize, "the tail reaches to the offset");
    let first = offset / BLOCK;
    if tail.is_empty() {
        let full = payload.len() / BLOCK as usize;
        let (_, rest) = payload.split_at(full * BLOCK as usize);
        return Blocks { first, crcs: Cow::Borrowed(&crcs[..full]), tail: Cow::Borrowed(rest) };
    }
    let room = BLOCK as usize - tail.len();
    if payload.len() < room {
        return Blocks { first, crcs: Cow::Owned(Vec::new()), tail: Cow::Owned([tail, payload].concat()) };
    }
    let (head, rest) = payload.split_at(room);
    let (blocks, rest) = rest.as_chunks::<{ BLOCK as usize }>();
    let mut own = Vec::with_capacity(1 + blocks.len());
    own.push(crc32c::crc32c_append(crc32c::crc32c(tail), head));
    own.extend(blocks.iter().map(|block| crc32c::crc32c(block)));
    Blocks { first, crcs: Cow::Owned(own), tail: Cow::Borrowed(rest) }
}
