//! The bound on a shard's buffers: bytes are leased before memory is touched, first come first served.
//!
//! A request that does not fit waits at the head of the queue and nobody overtakes it, so that a
//! large one is not starved by small ones. A request larger than the whole pool is served when the
//! pool is empty: a pool too small is slow, never stuck.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Unit of every buffer, of direct I/O and of the disk format.
pub(super) const PAGE: usize = 4096;

/// Largest buffer: one frame's payload with room for a header page, and for the largest record.
pub(super) const BUF_LEN_MAX: usize = 2 << 20;

/// The pool of one shard; clones are handles.
#[derive(Clone)]
pub(super) struct Pool(Rc<RefCell<State>>);

struct State {
    limit: usize,
    used: usize,
    next_ticket: u64,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    ticket: u64,
    bytes: usize,
    waker: Waker,
}

/// Bytes taken from the pool; given back when dropped.
pub(super) struct Lease {
    pool: Pool,
    bytes: usize,
}

impl Pool {
    pub(super) fn new(limit: usize) -> Self {
        Self(Rc::new(RefCell::new(State { limit, used: 0, next_ticket: 0, waiting: VecDeque::new() })))
    }

    /// Waits for `len` bytes, rounded up to pages. Dropping the future gives up the place in the queue.
    pub(super) fn lease(&self, len: usize) -> impl Future<Output = Lease> + use<> {
        Acquire { pool: self.clone(), bytes: charge(len), ticket: None }
    }

    /// The bytes now, unless they are used up or somebody waits.
    pub(super) fn try_lease(&self, len: usize) -> Option<Lease> {
        let mut state = self.0.borrow_mut();
        let bytes = charge(len);
        if !state.waiting.is_empty() || !state.fits(bytes) {
            return None;
        }
        state.used += bytes;
        Some(Lease { pool: self.clone(), bytes })
    }

    /// The bytes at once, whatever is left: for what others bound. Those who wait go on waiting until
    /// the sum fits again.
    pub(super) fn charge(&self, len: usize) -> Lease {
        let bytes = charge(len);
        self.0.borrow_mut().used += bytes;
        Lease { pool: self.clone(), bytes }
    }

    /// Whether [`Pool::try_lease`] would succeed.
    pub(super) fn has_room(&self, len: usize) -> bool {
        let state = self.0.borrow();
        state.waiting.is_empty() && state.fits(charge(len))
    }

    /// Bytes leased at the moment.
    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.0.borrow().used
    }

    fn wake_first(&self) {
        let waker = {
            let state = self.0.borrow();
            state.waiting.front().filter(|first| state.fits(first.bytes)).map(|first| first.waker.clone())
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl State {
    fn fits(&self, bytes: usize) -> bool {
        self.used == 0 || self.used + bytes <= self.limit
    }
}

fn charge(len: usize) -> usize {
    assert!(len <= BUF_LEN_MAX, "a buffer has at most 2 MiB, not {len} bytes");
    len.max(1).next_multiple_of(PAGE)
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.0.borrow_mut().used -= self.bytes;
        self.pool.wake_first();
    }
}

struct Acquire {
    pool: Pool,
    bytes: usize,
    ticket: Option<u64>,
}

impl Future for Acquire {
    type Output = Lease;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Lease> {
        let this = &mut *self;
        let mut state = this.pool.0.borrow_mut();
        let first = state.waiting.front().map(|waiting| waiting.ticket);
        if first == this.ticket && state.fits(this.bytes) {
            if this.ticket.take().is_some() {
                state.waiting.pop_front();
            }
            state.used += this.bytes;
            drop(state);
            this.pool.wake_first();
            return Poll::Ready(Lease { pool: this.pool.clone(), bytes: this.bytes });
        }
        let waker = context.waker().clone();
        match this.ticket {
            Some(ticket) => {
                if let Some(waiting) = state.waiting.iter_mut().find(|waiting| waiting.ticket == ticket) {
                    waiting.waker = waker;
                }
            }
            None => {
                let ticket = state.next_ticket;
                state.next_ticket += 1;
                state.waiting.push_back(Waiting { ticket, bytes: this.bytes, waker });
                this.ticket = Some(ticket);
            }
        }
        Poll::Pending
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.pool.0.borrow_mut().waiting.retain(|waiting| waiting.ticket != ticket);
            self.pool.wake_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_large_request_is_not_overtaken_by_small_ones() {
        let pool = Pool::new(4 * PAGE);
        let held = pool.try_lease(2 * PAGE).unwrap();
        let mut large = Box::pin(pool.lease(4 * PAGE));
        assert!(large.as_mut().now_or_never().is_none());
        assert!(pool.try_lease(PAGE).is_none(), "a page is free, but somebody waits");
        let mut small = Box::pin(pool.lease(PAGE));
        assert!(small.as_mut().now_or_never().is_none());
        drop(held);
        let large = large.now_or_never().unwrap();
        assert!(small.as_mut().now_or_never().is_none());
        drop(large);
        assert!(small.now_or_never().is_some());
        assert_eq!(pool.used(), 0);
    }

    #[test]
    fn giving_up_lets_the_next_one_through() {
        let pool = Pool::new(2 * PAGE);
        let held = pool.try_lease(PAGE).unwrap();
        let mut large = Box::pin(pool.lease(2 * PAGE));
        assert!(large.as_mut().now_or_never().is_none());
        let mut small = Box::pin(pool.lease(PAGE));
        assert!(small.as_mut().now_or_never().is_none());
        drop(large);
        assert!(small.now_or_never().is_some());
        drop(held);
    }

    #[test]
    fn what_is_charged_waits_for_nobody_and_makes_others_wait() {
        let pool = Pool::new(2 * PAGE);
        let first = pool.charge(2 * PAGE);
        assert!(!pool.has_room(1) && pool.try_lease(1).is_none());
        let second = pool.charge(PAGE);
        assert_eq!(pool.used(), 3 * PAGE, "more than the pool has");
        let mut waits = Box::pin(pool.lease(PAGE));
        assert!(waits.as_mut().now_or_never().is_none());
        drop(second);
        assert!(waits.as_mut().now_or_never().is_none());
        drop(first);
        assert!(!pool.has_room(PAGE), "somebody waits");
        assert!(waits.now_or_never().is_some());
        assert!(pool.has_room(2 * PAGE));
    }

    #[test]
    fn a_request_larger_than_the_pool_is_served_from_an_empty_one() {
        let pool = Pool::new(PAGE);
        let small = pool.try_lease(1).unwrap();
        assert!(pool.try_lease(8 * PAGE).is_none());
        drop(small);
        assert!(pool.try_lease(8 * PAGE).is_some());
    }
}
