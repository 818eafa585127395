//! How much of a shard's buffers each use may hold, so that none can starve another.
//!
//! A forwarded entry holds its buffer until the member behind has it durable. If the places of a
//! chain shared one pool, three servers full of entries that wait for each other would wait for
//! ever. So each place has a share of its own, and a connection between members carries one place
//! only: the last member waits for nobody, hence the middle ones get on, hence the heads do. In
//! chains of four and more a middle member waits for another one's middle share; should that ever
//! close a circle, the watchdog opens it by sealing a chunk.

use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wire::limits::{APPEND_LEN_MAX, BLOCK_SIZE};

/// What a buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Appends of clients, at the head.
    Head,
    /// Entries at a member with a successor.
    Middle,
    /// Entries at the last member.
    Tail,
    /// Answers to reads, and fills.
    Read,
}

/// A part of a share; given back when the last clone is dropped.
pub(crate) type Permit = Rc<OwnedSemaphorePermit>;

/// The shares of one shard.
#[derive(Clone)]
pub(crate) struct Budget {
    head: Arc<Semaphore>,
    middle: Arc<Semaphore>,
    tail: Arc<Semaphore>,
    read: Arc<Semaphore>,
    share: usize,
}

impl Budget {
    /// Least memory of a shard: one largest operation must fit into one share.
    pub(crate) const BYTES_MIN: u64 = 4 * APPEND_LEN_MAX as u64;

    /// Divides `bytes`, at least [`Budget::BYTES_MIN`].
    pub(crate) fn new(bytes: u64) -> Self {
        assert!(bytes >= Self::BYTES_MIN, "the configuration was checked");
        let share = usize::try_from(bytes / 4).unwrap_or(usize::MAX) / BLOCK_SIZE as usize;
        let share = share.min(Semaphore::MAX_PERMITS);
        let make = || Arc::new(Semaphore::new(share));
        Self { head: make(), middle: make(), tail: make(), read: make(), share }
    }

    /// Waits for room for `len` bytes. First come, first served, so a large request is not starved.
    /// `None` when the share was closed.
    pub(crate) async fn take(&self, of: Use, len: usize) -> Option<Permit> {
        let permit = Arc::clone(self.share_of(of)).acquire_many_owned(self.pages(len)).await;
        permit.ok().map(Rc::new)
    }

    /// The room now, if there is some and nobody waits for it.
    pub(crate) fn try_take(&self, of: Use, len: usize) -> Option<Permit> {
        let permit = Arc::clone(self.share_of(of)).try_acquire_many_owned(self.pages(len));
        permit.ok().map(Rc::new)
    }

    fn pages(&self, len: usize) -> u32 {
        let pages = len.div_ceil(BLOCK_SIZE as usize).clamp(1, self.share);
        u32::try_from(pages).unwrap_or(u32::MAX)
    }

    fn share_of(&self, of: Use) -> &Arc<Semaphore> {
        match of {
            Use::Head => &self.head,
            Use::Middle => &self.middle,
            Use::Tail => &self.tail,
            Use::Read => &self.read,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn one_use_cannot_starve_another() {
        let budget = Budget::new(Budget::BYTES_MIN);
        let all = budget.try_take(Use::Head, APPEND_LEN_MAX as usize);
        assert!(all.is_some());
        assert!(budget.try_take(Use::Head, 1).is_none());
        for other in [Use::Middle, Use::Tail, Use::Read] {
            assert!(budget.try_take(other, APPEND_LEN_MAX as usize).is_some(), "{other:?}");
        }
        assert!(budget.take(Use::Head, 1).now_or_never().is_none());
        drop(all);
        assert!(budget.take(Use::Head, APPEND_LEN_MAX as usize).now_or_never().is_some());
    }

    #[test]
    fn a_large_operation_is_not_overtaken_by_small_ones() {
        let budget = Budget::new(Budget::BYTES_MIN);
        let held = budget.try_take(Use::Head, 1);
        let mut large = Box::pin(budget.take(Use::Head, APPEND_LEN_MAX as usize));
        assert!(large.as_mut().now_or_never().is_none());
        assert!(budget.try_take(Use::Head, 1).is_none(), "there is room, but somebody waits for all of it");
        drop(held);
        assert!(large.now_or_never().is_some());
    }
}
