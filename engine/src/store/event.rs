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
        poll_fn(move |context| match &*inner.outcome.borrow() {
            Some(outcome) => Poll::Ready(outcome.clone()),
            None => inner.wakers.wait(context),
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

    /// Waits until nothing is going on.
    pub(crate) fn idle(&self) -> impl Future<Output = ()> + use<> {
        let count = Rc::clone(&self.0);
        poll_fn(move |context| if count.count.get() == 0 { Poll::Ready(()) } else { count.wakers.wait(context) })
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

#[derive(Default)]
struct Wakers(RefCell<Vec<Waker>>);

impl Wakers {
    fn wait<T>(&self, context: &Context<'_>) -> Poll<T> {
        let mut wakers = self.0.borrow_mut();
        if !wakers.iter().any(|waker| waker.will_wake(context.waker())) {
            wakers.push(context.waker().clone());
        }
        Poll::Pending
    }

    fn wake(&self) {
        self.0.take().into_iter().for_each(Waker::wake);
    }
}
