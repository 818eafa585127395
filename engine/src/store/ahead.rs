//! Read-ahead: who reads in order, and what to read before it is asked for. Pure.
//!
//! A chunk has a few streams. A read that begins where a stream ended continues it, and from the second
//! read on a window of blocks behind it is read ahead; as the reader comes near its end the next one,
//! twice as large, follows, up to the limit. A read that leaves out blocks, or blocks that were read ahead
//! and thrown away, halve the window. A read that continues nothing begins a stream of its own, in
//! place of the one used longest ago; so random reads read nothing ahead.

use std::ops::Range;

/// Streams of one chunk.
const STREAMS_MAX: usize = 4;

/// Blocks of the first window: 32 KiB.
const WINDOW_MIN: u32 = 8;

/// A stream with a window of so many blocks is a scan; before that it may be two blocks that are always
/// read one after the other.
const WINDOW_SCAN: u32 = 32;

/// What bounds read-ahead, in blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// One window.
    pub(crate) window: u32,
    /// Where what may be read ends.
    pub(crate) end: u32,
    /// What may be read ahead now.
    pub(crate) room: u32,
}

/// What to do about a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// It continues a stream that has gone on for a while.
    pub(crate) is_scan: bool,
    /// Blocks to read ahead; may be empty.
    pub(crate) ahead: Range<u32>,
    /// There was no room for a window.
    pub(crate) is_starved: bool,
}

/// A reader that reads in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stream {
    /// Block after the last one read.
    next: u32,
    /// Block after the last one read ahead; `next` when there is none.
    ahead: u32,
    /// Blocks of the newest window; zero before the second read.
    window: u32,
}

/// How a read stands to a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fits {
    /// It goes on where the stream ended, or in the block in which it ended, and gets further.
    Continues,
    /// It reads again what was just read, or comes late, overtaken by another one.
    Behind,
    /// It leaves blocks out.
    Skips,
}

impl Stream {
    fn fits(&self, blocks: &Range<u32>) -> Option<Fits> {
        let first = blocks.start;
        if first == self.next || first + 1 == self.next {
            return Some(if blocks.end > self.next { Fits::Continues } else { Fits::Behind });
        }
        let near = self.ahead - self.next + self.window;
        match first < self.next {
            true => (first + self.window > self.next).then_some(Fits::Behind),
            false => (first - self.next <= near).then_some(Fits::Skips),
        }
    }

    /// After a read of `blocks` that fits.
    fn follow(&mut self, blocks: &Range<u32>, fits: Fits, limits: Limits) -> Plan {
        let nothing = Plan { is_scan: self.window >= WINDOW_SCAN, ahead: 0..0, is_starved: false };
        if fits == Fits::Behind {
            return Plan { is_scan: false, ..nothing };
        }
        if fits == Fits::Skips {
            self.window = shrunk(self.window);
        }
        self.next = self.next.max(blocks.end);
        self.ahead = self.ahead.max(self.next);
        let left = self.ahead - self.next;
        if self.window > 0 && left > self.window / 2 {
            return nothing;
        }
        let grown = match fits {
            Fits::Skips => self.window,
            _ if self.window == 0 => WINDOW_MIN.max(blocks.end - blocks.start),
            _ => self.window.saturating_mul(2),
        };
        let grown = grown.min(limits.window);
        let count = grown.min(limits.end.saturating_sub(self.ahead));
        if limits.room < count {
            // No memory for it: smaller, and later.
            self.window = shrunk(self.window);
            return Plan { is_starved: true, ..nothing };
        }
        if count > 0 {
            self.window = grown;
        }
        let from = self.ahead;
        self.ahead += count;
        Plan { ahead: from..self.ahead, ..nothing }
    }
}

/// Half of a window; too small a one begins anew.
fn shrunk(window: u32) -> u32 {
    if window / 2 < WINDOW_MIN { 0 } else { window / 2 }
}

/// The streams of one chunk, the one used last in front.
#[derive(Clone, Debug, Default)]
pub(crate) struct Streams(Vec<Stream>);

impl Streams {
    /// Somebody reads `blocks`, at least one.
    pub(crate) fn read(&mut self, blocks: Range<u32>, limits: Limits) -> Plan {
        let known = self.0.iter().enumerate().filter_map(|(at, stream)| Some((at, stream.fits(&blocks)?)));
        // One that it continues rather than one that it is near to.
        let best = known.min_by_key(|(at, fits)| (*fits != Fits::Continues, *at));
        if let Some((at, fits)) = best {
            let plan = self.0[at].follow(&blocks, fits, limits);
            self.0[..=at].rotate_right(1);
            return plan;
        }
        self.0.truncate(STREAMS_MAX - 1);
        self.0.insert(0, Stream { next: blocks.end, ahead: blocks.end, window: 0 });
        Plan { is_scan: false, ahead: 0..0, is_starved: false }
    }

    /// Blocks from `block` on were read ahead for nothing.
    pub(crate) fn wasted(&mut self, block: u32) {
        let before = |stream: &Stream| block < stream.ahead && block + 2 * stream.window >= stream.next;
        if let Some(stream) = self.0.iter_mut().find(|stream| before(stream)) {
            stream.window = shrunk(stream.window);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { window: 256, end: 16384, room: 2048 };

    fn windows(streams: &mut Streams, reads: impl IntoIterator<Item = Range<u32>>) -> Vec<Range<u32>> {
        reads.into_iter().map(|read| streams.read(read, LIMITS).ahead).filter(|ahead| !ahead.is_empty()).collect()
    }

    #[test]
    fn windows_follow_each_other_and_double_up_to_the_limit() {
        let mut streams = Streams::default();
        let ahead = windows(&mut streams, (0..2000).map(|block| block..block + 1));
        let lens: Vec<u32> = ahead.iter().map(|ahead| ahead.end - ahead.start).collect();
        assert_eq!(lens[..8], [8, 16, 32, 64, 128, 256, 256, 256]);
        assert_eq!(ahead[0].start, 2, "from the second read on");
        assert!(ahead.windows(2).all(|pair| pair[0].end == pair[1].start), "no gap and no overlap");
        assert!(lens[5..].iter().all(|len| *len == 256));
    }

    #[test]
    fn reads_that_end_inside_a_block_continue_a_stream_too() {
        let mut streams = Streams::default();
        let reads = (0..100_u32).map(|at| at * 1000 / 4096..(at * 1000 + 1000).div_ceil(4096));
        let (mut end, mut ahead, mut scans) = (0, 0, 0);
        for read in reads {
            let gets_further = read.end > end;
            end = read.end;
            let plan = streams.read(read.clone(), LIMITS);
            assert!(gets_further || !plan.is_scan, "{read:?}");
            ahead = plan.ahead.end.max(ahead);
            scans += u32::from(plan.is_scan);
        }
        assert!(ahead > end && streams.0.len() == 1 && scans > 0, "{scans}");
    }

    #[test]
    fn large_reads_begin_with_a_window_of_their_size() {
        let mut streams = Streams::default();
        assert_eq!(windows(&mut streams, [0..64, 64..128, 128..192]), [128..192, 192..320]);
    }

    #[test]
    fn random_reads_read_nothing_ahead() {
        let mut streams = Streams::default();
        let mut at = 1_u32;
        let reads: Vec<u32> = (0..1000)
            .map(|_| {
                at = at * 16807 % 15991;
                at
            })
            .collect();
        let far = reads.into_iter().map(|at| at / 4 * 4..at / 4 * 4 + 1);
        assert_eq!(windows(&mut streams, far).len(), 0);
    }

    #[test]
    fn four_readers_of_one_chunk_are_four_streams() {
        let mut streams = Streams::default();
        for step in 0..50 {
            for reader in 0..4 {
                let block = reader * 4000 + step;
                let plan = streams.read(block..block + 1, LIMITS);
                assert_eq!(plan.is_scan, step > 17, "reader {reader}, step {step}");
            }
        }
    }

    #[test]
    fn a_skip_and_a_waste_halve_the_window_and_memory_that_is_short_does() {
        let grown = || {
            let mut streams = Streams::default();
            windows(&mut streams, (0..200).map(|block| block..block + 1));
            assert_eq!(streams.0[0].window, 256);
            streams
        };
        let mut skipped = grown();
        let at = skipped.0[0].ahead + 10;
        let plan = skipped.read(at..at + 1, LIMITS);
        assert_eq!(plan, Plan { is_scan: true, ahead: at + 1..at + 129, is_starved: false });
        let mut wasted = grown();
        wasted.wasted(wasted.0[0].ahead - 256);
        assert_eq!(wasted.0[0].window, 128);
        wasted.wasted(9000);
        assert_eq!(wasted.0[0].window, 128, "of another reader");
        let mut short = grown();
        let at = short.0[0].ahead;
        assert!(short.read(at - 1..at, Limits { room: 100, ..LIMITS }).is_starved);
        assert_eq!(short.0[0].window, 64, "half for the skip, half for the memory");
        assert!(short.read(at..at + 1, Limits { room: 127, ..LIMITS }).is_starved);
        assert_eq!(short.read(at + 1..at + 2, LIMITS).ahead, at + 2..at + 66);
    }

    #[test]
    fn a_late_read_and_a_repeated_one_change_nothing() {
        let mut streams = Streams::default();
        windows(&mut streams, (0..50).map(|block| block..block + 1));
        let before = streams.0[0];
        assert_eq!(streams.read(45..46, LIMITS), Plan { is_scan: false, ahead: 0..0, is_starved: false });
        assert_eq!(streams.read(49..50, LIMITS).ahead, 0..0, "the same block again");
        assert_eq!(streams.0[0], before);
    }

    proptest! {
        /// Whatever is read: no more than a window, nothing beyond the end or the room, nothing twice in a
        /// row of reads in order.
        #[test]
        fn nothing_is_read_ahead_beyond_its_bounds(
            reads in vec((0_u32..16000, 1_u32..256, any::<bool>(), 0_u32..600), 1..200),
            window in 0_u32..512,
            end in 0_u32..16384,
        ) {
            let (mut streams, mut at) = (Streams::default(), 0);
            for (first, count, in_order, room) in reads {
                let first = if in_order { at } else { first };
                at = first + count;
                let plan = streams.read(first..at, Limits { window, end, room });
                prop_assert!(plan.ahead.len() <= window.min(room) as usize);
                prop_assert!(plan.ahead.is_empty() || (plan.ahead.end <= end && plan.ahead.start >= at));
                prop_assert!(streams.0.len() <= STREAMS_MAX);
            }
        }
    }
}
