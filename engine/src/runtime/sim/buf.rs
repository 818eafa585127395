//! Buffers of the simulation: plain memory, aligned like the real ones, filled with rubbish.

use std::ops::Range;
use std::rc::Rc;

use super::super::pool::{Lease, PAGE};

/// What a new buffer holds: whoever relies on zeros is found out.
const RUBBISH: u8 = 0xA5;

/// A buffer being filled.
pub struct SimMutBuf {
    bytes: Vec<u8>,
    range: Range<usize>,
    _lease: Option<Lease>,
}

/// A frozen buffer or a range of one.
#[derive(Clone)]
pub struct SimBuf {
    whole: Rc<SimMutBuf>,
    range: Range<usize>,
}

impl SimMutBuf {
    pub(super) fn new(len: usize, lease: Option<Lease>) -> Self {
        let bytes = vec![RUBBISH; len + PAGE];
        let start = bytes.as_ptr().align_offset(PAGE);
        Self { bytes, range: start..start + len, _lease: lease }
    }

    /// A buffer of what `fill` appends, which is `len` bytes. Not counted by any pool.
    pub(super) fn of(len: usize, fill: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut bytes: Vec<u8> = Vec::with_capacity(len + PAGE);
        let start = bytes.as_ptr().align_offset(PAGE);
        bytes.resize(start, RUBBISH);
        fill(&mut bytes);
        assert_eq!(bytes.len(), start + len, "the buffer is full");
        Self { bytes, range: start..start + len, _lease: None }
    }

    /// The same, counted by a pool.
    pub(super) fn charged(self, lease: Lease) -> Self {
        Self { _lease: Some(lease), ..self }
    }

    pub(super) fn len(&self) -> usize {
        self.range.len()
    }

    pub(super) fn freeze(self) -> SimBuf {
        let range = 0..self.range.len();
        SimBuf { whole: Rc::new(self), range }
    }
}

impl SimBuf {
    pub(super) fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.range.len(), "the range is inside the buffer");
        let start = self.range.start;
        Self { whole: Rc::clone(&self.whole), range: start + range.start..start + range.end }
    }
}

impl AsRef<[u8]> for SimMutBuf {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.range.clone()]
    }
}

impl AsMut<[u8]> for SimMutBuf {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.range.clone()]
    }
}

impl AsRef<[u8]> for SimBuf {
    fn as_ref(&self) -> &[u8] {
        &self.whole.as_ref().as_ref()[self.range.clone()]
    }
}
