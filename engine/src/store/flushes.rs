//! Which flushes of a disk may be relied on (rule R9).
//!
//! A flush that fails may have thrown away what others wrote, and the next one then succeeds: so a flush counts
//! only when every flush of the disk that was under way at any time during it, of whatever file and shard, has
//! ended well too, and none failed before. Nobody can see the order in which a device did two overlapping
//! ones, nor does the task that asked hear of a failure first.

use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use super::canary::{sometimes, weakened};

/// The flushes of one disk in this process, over all its shards.
#[derive(Debug, Default)]
pub(crate) struct Flushes(Mutex<Ledger>);

#[derive(Debug, Default)]
struct Ledger {
    /// Numbers given out, in the order of the beginnings.
    begun: u64,
    going: BTreeSet<u64>,
    /// Ended well, and wait for others.
    waiting: BTreeMap<u64, Waker>,
    failed: bool,
}

/// A flush under way. Forgotten before its end, it has failed: nobody will ever know.
struct Going<'a> {
    of: &'a Flushes,
    number: u64,
    ended: bool,
}

impl Going<'_> {
    /// The number of the last one that had begun by now.
    fn end(&mut self, well: bool) -> u64 {
        self.ended = true;
        let (begun, waiting) = {
            let mut ledger = self.of.lock();
            ledger.going.remove(&self.number);
            ledger.failed |= !well;
            (ledger.begun, std::mem::take(&mut ledger.waiting))
        };
        // Few wait: as many as there are shards and checkpoints. Not under the lock: who is woken may take it.
        waiting.into_values().for_each(Waker::wake);
        begun
    }
}

impl Drop for Going<'_> {
    fn drop(&mut self) {
        let waiting = self.of.lock().waiting.remove(&self.number);
        drop(waiting);
        if !self.ended {
            self.end(false);
        }
    }
}

impl Flushes {
    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a flush. Durable on return is what the call promises. It must run to its end: dropped before, it
    /// counts as failed, and with it every flush from then on.
    ///
    /// # Errors
    ///
    /// The call's; or another flush of the disk has failed: then nothing that this one did may be relied on.
    /// Never of a kind that says the disk is full: whatever the cause, the disk is to be fenced.
    pub(crate) async fn run(&self, call: impl Future<Output = io::Result<()>>) -> io::Result<()> {
        let mut going = {
            let mut ledger = self.lock();
            ledger.begun += 1;
            let number = ledger.begun;
            ledger.going.insert(number);
            Going { of: self, number, ended: false }
        };
        let done = call.await;
        let last = going.end(done.is_ok());
        done.map_err(|error| io::Error::other(format!("flush failed: {error}")))?;
        self.others(going.number, last).await
    }

    /// Waits until all flushes up to `last` have ended.
    async fn others(&self, number: u64, last: u64) -> io::Result<()> {
        poll_fn(|context| {
            let mut ledger = self.lock();
            if weakened!(FlushesApart) {
                return Poll::Ready(Ok(()));
            }
            if ledger.failed {
                sometimes!("flush that succeeded beside one that failed");
                return Poll::Ready(Err(io::Error::other("another flush of this disk failed")));
            }
            if ledger.going.first().is_none_or(|first| *first > last) {
                return Poll::Ready(Ok(()));
            }
            ledger.waiting.insert(number, context.waker().clone());
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Context;

    use futures_util::task::noop_waker_ref;
    use tokio::sync::oneshot;

    use super::*;

    type Call = oneshot::Sender<bool>;

    async fn flush(of: &Flushes, well: oneshot::Receiver<bool>) -> bool {
        let call = async { if well.await == Ok(true) { Ok(()) } else { Err(io::Error::other("EIO")) } };
        of.run(call).await.is_ok()
    }

    fn calls<const N: usize>() -> ([Option<Call>; N], [oneshot::Receiver<bool>; N]) {
        let mut all: Vec<_> = (0..N).map(|_| oneshot::channel()).collect();
        let ends = std::array::from_fn(|_| all.remove(0));
        let mut senders = [const { None }; N];
        let mut index = 0;
        let receivers = ends.map(|(sender, receiver)| {
            senders[index] = Some(sender);
            index += 1;
            receiver
        });
        (senders, receivers)
    }

    fn ends(call: &mut Option<Call>, well: bool) {
        call.take().unwrap().send(well).unwrap();
    }

    #[test]
    fn a_flush_counts_when_those_that_overlapped_it_have_ended_well() {
        let (ledger, mut context) = (Flushes::default(), Context::from_waker(noop_waker_ref()));
        let ([mut first, mut second, mut third], [a, b, c]) = calls();
        let mut a = pin!(flush(&ledger, a));
        let mut b = pin!(flush(&ledger, b));
        let mut c = pin!(flush(&ledger, c));
        assert!(a.as_mut().poll(&mut context).is_pending());
        assert!(b.as_mut().poll(&mut context).is_pending());
        ends(&mut first, true);
        assert!(a.as_mut().poll(&mut context).is_pending(), "the second began before it ended");
        assert!(c.as_mut().poll(&mut context).is_pending());
        ends(&mut second, true);
        assert!(b.as_mut().poll(&mut context).is_pending(), "the third began before it ended");
        assert_eq!(a.as_mut().poll(&mut context), Poll::Ready(true), "the third began after it ended");
        ends(&mut third, true);
        assert_eq!(c.as_mut().poll(&mut context), Poll::Ready(true));
        assert_eq!(b.as_mut().poll(&mut context), Poll::Ready(true));
    }

    #[test]
    fn a_flush_beside_one_that_failed_or_after_it_counts_for_nothing() {
        let (ledger, mut context) = (Flushes::default(), Context::from_waker(noop_waker_ref()));
        let ([mut first, mut second, mut third], [a, b, c]) = calls();
        let mut a = pin!(flush(&ledger, a));
        let mut b = pin!(flush(&ledger, b));
        let mut c = pin!(flush(&ledger, c));
        assert!(a.as_mut().poll(&mut context).is_pending());
        assert!(b.as_mut().poll(&mut context).is_pending());
        ends(&mut second, true);
        assert!(b.as_mut().poll(&mut context).is_pending());
        ends(&mut first, false);
        assert_eq!(a.as_mut().poll(&mut context), Poll::Ready(false));
        assert_eq!(b.as_mut().poll(&mut context), Poll::Ready(false));
        ends(&mut third, true);
        assert_eq!(c.as_mut().poll(&mut context), Poll::Ready(false));
    }

    #[test]
    fn a_flush_that_is_given_up_has_failed() {
        let (ledger, mut context) = (Flushes::default(), Context::from_waker(noop_waker_ref()));
        let ([_first, mut second], [a, b]) = calls();
        let mut b = pin!(flush(&ledger, b));
        {
            let mut a = pin!(flush(&ledger, a));
            assert!(a.as_mut().poll(&mut context).is_pending());
        }
        ends(&mut second, true);
        assert_eq!(b.as_mut().poll(&mut context), Poll::Ready(false));
    }
}
