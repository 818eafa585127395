//! Zeros ahead of the appends (rule R2): a range that is durably *written* before an append needs it saves
//! that append the sync of its slot, which costs the file system a commit of its own.
//!
//! Zeros are written where they pay: ahead of small appends, each of which would pay a sync for a block or
//! two, and ahead of whatever comes next while the disk is idle. A stream of large appends pays one sync
//! for many megabytes; zeros would double what it writes. Space is never taken for them.
//!
//! They go only to chunks that were created since the start and have seen nothing but appends. There every
//! block behind the full blocks accepted has never been written: none of them holds a promise (rule R4).

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Range;
use std::rc::Rc;

use futures_util::future::Either;
use wire::ChunkHandle;
use wire::member::ReplicaState;

use super::event::Tally;
use super::layout::{BLOCK, align_down};
use super::shard::{Chunk, Inner, State};
use crate::runtime::Runtime;

/// Appends up to this length are small.
const SMALL: u32 = 64 << 10;
/// Zeros ahead of small appends, and how little must be left of them before there are more.
const AHEAD: (u32, u32) = (1 << 20, 64 << 10);
/// The same while the disk is idle.
const AHEAD_IDLE: (u32, u32) = (4 << 20, 2 << 20);
/// One write: an append that catches up waits for one of these at most.
const PIECE: u32 = 256 << 10;
/// Chunks of a shard that get zeros at a time.
const AT_A_TIME: usize = 2;
/// Chunks that are remembered for the next idle moment.
const WARM_MAX: usize = 16;

/// What the decision looks at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    /// Bytes accepted.
    pub(crate) len: u32,
    pub(crate) written_upto: u32,
    pub(crate) allocated: u32,
    /// Length of the last append; zero before the first.
    pub(crate) last: u32,
    /// Nothing else is going on.
    pub(crate) idle: bool,
}

/// The range to zero now.
pub(crate) fn wanted(look: &Look) -> Option<Range<u32>> {
    let (ahead, low) = if look.idle { AHEAD_IDLE } else { AHEAD };
    if look.last == 0 || !(look.idle || look.last <= SMALL) {
        return None;
    }
    // Blocks below are in place or on their way there.
    let full = align_down(look.len);
    let left = look.written_upto.checked_sub(full)?;
    let end = align_down(look.allocated.min(full.saturating_add(ahead)));
    (left <= low && end > look.written_upto).then_some(look.written_upto..end)
}

/// What is known of the zeros of one chunk; clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Zeros(Rc<Inside>);

#[derive(Default)]
struct Inside {
    /// A task zeroes, or is about to.
    busy: Cell<bool>,
    /// In flight at the moment.
    piece: RefCell<Range<u32>>,
    writing: Tally,
}

impl Zeros {
    /// For a write to a range: waits for zeros that are in flight there (rule R19). None begin there
    /// afterwards, because the range counts as accepted.
    pub(crate) fn gone_from(&self, range: &Range<u32>) -> impl Future<Output = ()> + use<> {
        let piece = self.0.piece.borrow();
        let meets = !self.0.writing.is_idle() && piece.start < range.end && range.start < piece.end;
        if meets { Either::Left(self.0.writing.idle()) } else { Either::Right(std::future::ready(())) }
    }

    /// Whether zeros may be in flight.
    pub(crate) fn is_busy(&self) -> bool {
        self.0.busy.get()
    }
}

impl<R: Runtime> Chunk<R> {
    fn zeros_wanted(&self, idle: bool) -> Option<Range<u32>> {
        // A small file is one append: zeros behind it would be for nothing.
        let goes_on = self.replica.last_seq() > 1;
        if !goes_on || !self.only_appends || !self.created || self.replica.state() != ReplicaState::Open {
            return None;
        }
        let (len, written_upto) = (self.replica.len(), self.replica.hdr.written_upto);
        wanted(&Look { len, written_upto, allocated: self.allocated, last: self.last_append, idle })
    }
}

impl<R: Runtime> Inner<R> {
    /// After a group: its chunks may want zeros now, or when the disk is idle.
    pub(crate) fn zero_after(self: &Rc<Self>, state: &mut State<R>, chunks: impl Iterator<Item = ChunkHandle>) {
        for handle in chunks {
            let Some(chunk) = state.chunks.get(&handle) else { continue };
            let now = chunk.zeros_wanted(false).is_some();
            if now && !chunk.zeros.is_busy() && state.zeroing < AT_A_TIME {
                self.zero_soon(state, vec![handle], false);
            } else if state.warm.len() < WARM_MAX && chunk.zeros_wanted(true).is_some() {
                state.warm.insert(handle);
            }
        }
    }

    /// The journal is idle.
    pub(crate) fn zero_when_idle(self: &Rc<Self>, state: &mut State<R>) {
        let warm: Vec<_> = std::mem::take(&mut state.warm).into_iter().collect();
        if !warm.is_empty() && state.zeroing < AT_A_TIME {
            self.zero_soon(state, warm, true);
        }
    }

    fn zero_soon(self: &Rc<Self>, state: &mut State<R>, chunks: Vec<ChunkHandle>, idle: bool) {
        state.zeroing += 1;
        let inner = Rc::clone(self);
        self.spawn(async move {
            // The MARK of the idle journal is on its way; should it fail, the disk is fenced and nothing is zeroed.
            let _marked = if idle { inner.flushed().await } else { Ok(()) };
            for handle in chunks {
                if let Err(error) = inner.zero(handle, idle).await {
                    inner.fence("zeros ahead failed", &error);
                    break;
                }
            }
            inner.state.borrow_mut().zeroing -= 1;
        });
    }

    /// Zeroes ahead in one chunk, piece by piece, until an append catches up.
    async fn zero(&self, handle: ChunkHandle, idle: bool) -> io::Result<()> {
        let (slot, zeros, range, users) = {
            let state = self.state.borrow();
            let Some(chunk) = state.chunks.get(&handle).filter(|chunk| !chunk.zeros.is_busy()) else { return Ok(()) };
            let Some(range) = chunk.zeros_wanted(idle) else { return Ok(()) };
            chunk.zeros.0.busy.set(true);
            (chunk.slot(), chunk.zeros.clone(), range, Rc::clone(&chunk.users))
        };
        let zeroed = self.zero_range(handle, slot, &zeros, range, idle).await;
        zeros.0.busy.set(false);
        drop(users); // until here the slot is nobody else's (rule R17)
        zeroed
    }

    async fn zero_range(
        &self,
        handle: ChunkHandle,
        slot: u32,
        zeros: &Zeros,
        range: Range<u32>,
        idle: bool,
    ) -> io::Result<()> {
        let file = self.file(slot).await?;
        let mut done = range.start;
        while done < range.end {
            // From the look at the state to the mark of the piece is one step.
            let piece = done..range.end.min(done + PIECE);
            if !self.may_zero(handle, &piece, idle) {
                break;
            }
            let Some(mut buf) = self.io.rt.try_alloc(piece.len()) else { break };
            let writing = zeros.0.writing.enter();
            zeros.0.piece.replace(piece.clone());
            buf.as_mut().fill(0);
            let written = self.io.write(&file, self.io.rt.freeze(buf), u64::from(piece.start)).await;
            drop(writing);
            written?;
            self.io.count(|counters| counters.zeroed_bytes += piece.len() as u64);
            done = piece.end;
        }
        if done == range.start {
            return Ok(());
        }
        self.io.count(|counters| counters.slot_syncs += 1);
        self.io.flush(&file).await?;
        self.state.borrow_mut().raise_written(slot, done);
        Ok(())
    }

    fn may_zero(&self, handle: ChunkHandle, piece: &Range<u32>, idle: bool) -> bool {
        let state = self.state.borrow();
        let Some(chunk) = state.chunks.get(&handle) else { return false };
        let still = chunk.only_appends && chunk.replica.state() == ReplicaState::Open;
        let overtaken = align_down(chunk.replica.len()) > piece.start;
        still && !overtaken && !(idle && state.committing) && self.check().is_ok()
    }
}

const _: () = assert!(PIECE.is_multiple_of(BLOCK) && AHEAD.0 > AHEAD.1 && AHEAD_IDLE.0 > AHEAD_IDLE.1);

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Look = Look { len: 100, written_upto: 0, allocated: 64 << 10, last: 100, idle: false };

    #[test]
    fn small_appends_get_zeros_up_to_the_space_that_is_taken() {
        assert_eq!(wanted(&LOOK), Some(0..64 << 10));
        assert_eq!(wanted(&Look { written_upto: 64 << 10, ..LOOK }), None, "no space is taken for zeros");
        let taken = Look { len: 70_000, written_upto: 70_000 / 4096 * 4096, allocated: 8 << 20, ..LOOK };
        assert_eq!(wanted(&taken), Some(69_632..69_632 + (1 << 20)));
        let enough = Look { written_upto: 69_632 + (65 << 10), ..taken };
        assert_eq!(wanted(&enough), None, "there are enough of them");
    }

    #[test]
    fn a_stream_of_large_appends_gets_none_until_it_pauses() {
        let stream = Look { len: 3 << 20, written_upto: 3 << 20, allocated: 8 << 20, last: 1 << 20, idle: false };
        assert_eq!(wanted(&stream), None);
        assert_eq!(wanted(&Look { idle: true, ..stream }), Some(3 << 20..7 << 20));
    }

    #[test]
    fn blocks_that_were_accepted_are_never_zeroed() {
        let ahead_of_its_sync = Look { len: 8192, written_upto: 4096, ..LOOK };
        assert_eq!(wanted(&ahead_of_its_sync), None);
        assert_eq!(wanted(&Look { last: 0, ..LOOK }), None, "nothing says that anything will come");
        let tail = Look { len: 8191, written_upto: 4096, ..LOOK };
        assert_eq!(wanted(&tail), Some(4096..64 << 10), "the block of the tail was never written in place");
    }
}
