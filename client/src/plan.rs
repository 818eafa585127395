//! Which pieces of which chunks make up a range, and who is asked first. Pure.

use std::sync::Arc;

use wire::limits::PAYLOAD_LEN_MAX;
use wire::locate::Location;
use wire::member::ChunkState;

use crate::locations::end_of;

/// A part of one chunk, small enough for one frame: the blocks it touches are at most 1 MiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) location: Arc<Location>,
    /// Offset in the chunk.
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

/// The piece that begins at file offset `at`, which this chunk holds, and ends at the next mebibyte of
/// the chunk, at the chunk's end, or at `end`. `None` when the chunk does not hold `at`.
pub(crate) fn piece(location: &Arc<Location>, at: u64, end: u64) -> Option<Piece> {
    let within = at.checked_sub(location.start)?;
    let step = u64::from(PAYLOAD_LEN_MAX);
    let stop = location.start + (within / step + 1) * step;
    let len = stop.min(end_of(location)).min(end).checked_sub(at).filter(|len| *len > 0)?;
    let (offset, len) = (u32::try_from(within).ok()?, u32::try_from(len).ok()?);
    Some(Piece { location: Arc::clone(location), offset, len })
}

/// The order in which members are asked, as positions. Of an open chunk the head knows most, so it is
/// first; holders of a sealed chunk take turns by `key`. Whoever is suspect comes last.
pub(crate) fn order(location: &Location, key: u64, is_suspect: impl Fn(usize) -> bool) -> Vec<usize> {
    let count = location.members.len();
    let turn = match location.state {
        ChunkState::Sealed if count > 0 => usize::try_from(key % count as u64).unwrap_or(0),
        _ => 0,
    };
    let mut order: Vec<usize> = (0..count).map(|position| (position + turn) % count).collect();
    order.sort_by_key(|position| is_suspect(*position));
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::locations::tests::location;
    use proptest::prelude::*;
    use wire::limits::{BLOCK_SIZE, CHUNK_SIZE};

    proptest! {
        #[test]
        fn pieces_tile_the_range_exactly_and_each_fits_a_frame(
            lens in prop::collection::vec(1..=CHUNK_SIZE, 1..5),
            open_tail: bool,
            cut in any::<(u64, u64)>(),
        ) {
            let mut start = 0;
            let mut chunks = Vec::new();
            for (number, len) in (1..).zip(&lens) {
                let state = if open_tail && number == lens.len() as u64 { ChunkState::Open } else { ChunkState::Sealed };
                chunks.push(Arc::new(location(number, start, *len, state)));
                start += u64::from(*len);
            }
            let (a, b) = (cut.0 % start, cut.1 % start);
            let (mut at, end) = (a.min(b), a.max(b) + 1);
            while at < end {
                let chunk = chunks.iter().rev().find(|chunk| chunk.start <= at).unwrap();
                let piece = piece(chunk, at, end).unwrap();
                prop_assert_eq!(piece.location.start + u64::from(piece.offset), at);
                let blocks = (piece.offset + piece.len).next_multiple_of(BLOCK_SIZE) - piece.offset / BLOCK_SIZE * BLOCK_SIZE;
                prop_assert!(piece.len > 0 && blocks <= PAYLOAD_LEN_MAX);
                prop_assert!(at + u64::from(piece.len) <= end.min(end_of(chunk)));
                at += u64::from(piece.len);
            }
            prop_assert_eq!(at, end);
        }
    }

    #[test]
    fn a_chunk_gives_no_piece_of_what_it_does_not_hold() {
        let chunk = Arc::new(location(1, 100, 50, ChunkState::Sealed));
        assert_eq!(piece(&chunk, 99, 200), None);
        assert_eq!(piece(&chunk, 150, 200), None);
        assert_eq!(piece(&chunk, 120, 120), None);
        assert_eq!(piece(&chunk, 149, 200).map(|piece| (piece.offset, piece.len)), Some((49, 1)));
    }

    #[test]
    fn holders_take_turns_the_head_of_an_open_chunk_is_first_and_suspects_are_last() {
        let sealed = location(1, 0, 9, ChunkState::Sealed);
        assert_eq!(order(&sealed, 0, |_| false), [0, 1, 2]);
        assert_eq!(order(&sealed, 4, |_| false), [1, 2, 0]);
        assert_eq!(order(&sealed, 4, |position| position == 1), [2, 0, 1]);
        let open = location(1, 0, 9, ChunkState::Open);
        assert_eq!(order(&open, 4, |_| false), [0, 1, 2]);
        assert_eq!(order(&open, 4, |position| position == 0), [1, 2, 0]);
        let nowhere = Location { members: Vec::new(), ..sealed };
        assert!(order(&nowhere, 4, |_| false).is_empty());
    }
}
