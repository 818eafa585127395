//! What can go wrong with one call to a simulated disk, and when.

use std::time::Duration;

use super::super::FileId;
use super::rng::Rng;

/// A kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// `write_at`.
    Write,
    /// `read_at`.
    Read,
    /// `fdatasync`, `fsync`, `sync_folder` (without a file) and `sync_file_system` (without a file).
    Sync,
    /// `preallocate`.
    Preallocate,
    /// `clone_range`, `unshare_range`, `punch_hole`.
    Extents,
    /// `open`.
    Open,
}

/// What happens instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call fails with this errno. A failed write with `EIO` has put any of its sectors on the
    /// device. A failed sync loses its work: the next one succeeds and makes nothing of it
    /// durable, except for `sync_file_system`.
    Error(i32),
    /// A write or read does at most this many bytes, rounded down to blocks.
    Short(usize),
    /// The call takes this much longer.
    Delay(Duration),
    /// A write is answered and never happens.
    Lost,
    /// A write is answered and happens this many bytes (whole blocks) further on.
    Misdirected(u64),
}

/// Which calls suffer which fault.
#[derive(Clone, Debug)]
pub struct Rule {
    op: Op,
    file: Option<FileId>,
    skip: u64,
    times: u64,
    one_in: u64,
    fault: Fault,
}

impl Rule {
    /// Every call of this kind, once: see the other methods for fewer and for more.
    #[must_use]
    pub fn new(op: Op, fault: Fault) -> Self {
        Self { op, file: None, skip: 0, times: 1, one_in: 1, fault }
    }

    /// Only calls on this file.
    #[must_use]
    pub fn on(mut self, file: FileId) -> Self {
        self.file = Some(file);
        self
    }

    /// Lets `count` matching calls pass first.
    #[must_use]
    pub fn skip(mut self, count: u64) -> Self {
        self.skip = count;
        self
    }

    /// Hits this many calls, then no more; `u64::MAX` for a fault that stays.
    #[must_use]
    pub fn times(mut self, count: u64) -> Self {
        self.times = count;
        self
    }

    /// Hits one in `calls` of the matching calls, by the seed.
    #[must_use]
    pub fn one_in(mut self, calls: u64) -> Self {
        self.one_in = calls;
        self
    }

    /// Whether this call is hit; counts it.
    pub(super) fn hits(&mut self, op: Op, file: Option<FileId>, rng: &mut Rng) -> Option<Fault> {
        if self.op != op || (self.file.is_some() && self.file != file) || self.times == 0 {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        if !rng.once_in(self.one_in) {
            return None;
        }
        self.times -= 1;
        Some(self.fault)
    }
}
