//! Two things tasks of one shard wait for: something happened once, and nothing is going on.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::StoreError;

/// How something ended.
pub(crate) type Outcome = Result<(), StoreError>;

/// Happens once; clones are the same event.
#[derive(Clone, Default)]
pub(crate) struct Event(Rc<Inner>);

#[derive(Default)]
struct Inner {
    outcome: RefCell<Option<Outcome>>,
    wakers: Wakers,
}

impl Event {
    /// It happened; only the first time counts.
    pub(crate) fn set(&self, outcome: Outcome) {
        self.0.outcome.borrow_mut().get_or_insert(outcome);
        self.0.wakers.wake();
    }

    /// Waits until it has happened. Dropping the future changes nothing.
    pub(crate) fn wait(&self) -> impl Future<Output = Outcome> + use<> {
        let inner = Rc::clone(&self.0);
        let mut waiting = None;
        poll_fn(move |context| match &*inner.outcome.borrow() {
            Some(outcome) => Poll::Ready(outcome.clone()),
            None => inner.wakers.wait(&mut waiting, context),
        })
    }
}

/// Counts what is going on; clones count together.
#[derive(Clone, Default)]
pub(crate) struct Tally(Rc<Count>);

#[derive(Default)]
struct Count {
    count: Cell<usize>,
    wakers: Wakers,
}

/// One thing that is going on, until it is dropped.
pub(crate) struct Going(Rc<Count>);

impl Tally {
    /// Something begins.
    pub(crate) fn enter(&self) -> Going {
        self.0.count.set(self.0.count.get() + 1);
        Going(Rc::clone(&self.0))
    }

    /// Whether nothing is going on.
    pub(crate) fn is_idle(&self) -> bool {
        self.0.count.get() == 0
    }

    /// Waits until nothing is going on.
    pub(crate) fn idle(&self) -> impl Future<Output = ()> + use<> {
        let count = Rc::clone(&self.0);
        let mut waiting = None;
        poll_fn(
            move |context| {
                if count.count.get() == 0 { Poll::Ready(()) } else { count.wakers.wait(&mut waiting, context) }
            },
        )
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        if self.0.count.get() == 0 {
            self.0.wakers.wake();
        }
    }
}

/// Who is to be woken. Each wake-up begins a new round.
#[derive(Default)]
struct Wakers {
    round: Cell<u64>,
    list: RefCell<Vec<Waker>>,
}

/// What a waiter remembers of its registration.
type Waiting = Option<(u64, Waker)>;

impl Wakers {
    /// Registers the caller, unless it is registered in this round: however often it is polled, it is
    /// here once, and nobody looks through the others.
    fn wait<T>(&self, waiting: &mut Waiting, context: &Context<'_>) -> Poll<T> {
        let round = self.round.get();
        let known = waiting.as_ref().is_some_and(|(at, waker)| *at == round && waker.will_wake(context.waker()));
        if !known {
            self.list.borrow_mut().push(context.waker().clone());
            *waiting = Some((round, context.waker().clone()));
        }
        Poll::Pending
    }

    fn wake(&self) {
        self.round.set(self.round.get() + 1);
        self.list.take().into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Context;

    use futures_util::task::noop_waker_ref;

    use super::*;

    #[test]
    fn a_waiter_is_registered_once_a_round_however_often_it_is_polled() {
        let tally = Tally::default();
        let mut context = Context::from_waker(noop_waker_ref());
        let going = tally.enter();
        let mut idle = pin!(tally.idle());
        for _ in 0..3 {
            assert!(idle.as_mut().poll(&mut context).is_pending());
        }
        assert_eq!(tally.0.wakers.list.borrow().len(), 1);
        drop(going);
        // Something began again before the waiter looked: it must wait anew.
        let again = tally.enter();
        assert!(idle.as_mut().poll(&mut context).is_pending());
        assert_eq!(tally.0.wakers.list.borrow().len(), 1);
        drop(again);
        assert!(idle.as_mut().poll(&mut context).is_ready());
    }

    #[test]
    fn the_first_outcome_of_an_event_stays() {
        let event = Event::default();
        event.set(Err(StoreError::Busy));
        event.set(Ok(()));
        let mut wait = pin!(event.wait());
        let mut context = Context::from_waker(noop_waker_ref());
        assert_eq!(wait.as_mut().poll(&mut context), Poll::Ready(Err(StoreError::Busy)));
    }
}
