//! Shard threads, and how they end: not before everything that was started has ended.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};
use std::thread::{Builder, JoinHandle};

use super::Runtime;

/// One shard's thread.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Which shard, from zero; names the thread.
    pub index: u32,
    /// Core to pin to; `None` leaves it to the kernel.
    pub core: Option<usize>,
    /// Bytes of buffers in flight that [`Runtime::alloc`] gives out at most.
    pub memory: usize,
}

/// A backend that can start a shard.
pub trait Spawn: Runtime {
    /// Starts a thread, makes the runtime on it, runs `work` to its end, then waits until every task
    /// spawned and every operation in flight has ended. The handle gives what went wrong. Blocks until
    /// the runtime runs or has failed to: for start-up, not for another shard.
    ///
    /// # Errors
    ///
    /// The thread or its ring could not be made, for instance because io_uring is not allowed; the
    /// message names the alternatives.
    fn spawn_shard<F, W>(config: ShardConfig, work: F) -> io::Result<JoinHandle<io::Result<()>>>
    where
        F: FnOnce(Self) -> W + Send + 'static,
        W: Future<Output = ()> + 'static;
}

/// Starts a named thread on which `make` makes a runtime and `run` runs it; an error of `make` is
/// ours.
pub(super) fn start<X>(
    config: &ShardConfig,
    make: impl FnOnce() -> io::Result<X> + Send + 'static,
    run: impl FnOnce(X) -> io::Result<()> + Send + 'static,
) -> io::Result<JoinHandle<io::Result<()>>> {
    let (sender, made) = mpsc::channel();
    let thread = Builder::new().name(format!("shard-{}", config.index)).spawn(move || {
        let runtime = match make() {
            Ok(runtime) => runtime,
            Err(error) => {
                // The starter waits for it; should it be gone, nobody wants to know.
                let _ = sender.send(Err(error));
                return Ok(());
            }
        };
        let _ = sender.send(Ok(()));
        run(runtime)
    })?;
    match made.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::Error::other("the shard's thread died while it made its runtime")),
    }
}

/// Counts the tasks of a shard.
#[derive(Clone, Default)]
pub(super) struct Gate(Rc<GateState>);

#[derive(Default)]
struct GateState {
    inside: Cell<usize>,
    waiting: RefCell<Option<Waker>>,
}

/// A task that runs.
pub(super) struct Pass(Gate);

impl Gate {
    pub(super) fn enter(&self) -> Pass {
        self.0.inside.set(self.0.inside.get() + 1);
        Pass(self.clone())
    }

    /// Waits until nobody is inside.
    pub(super) async fn empty(&self) {
        poll_fn(|context| {
            if self.0.inside.get() == 0 {
                return Poll::Ready(());
            }
            *self.0.waiting.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let state = &self.0.0;
        state.inside.set(state.inside.get() - 1);
        if state.inside.get() == 0
            && let Some(waker) = state.waiting.borrow_mut().take()
        {
            waker.wake();
        }
    }
}

/// Runs an operation of the kernel so that whoever waits for it may stop waiting: it then goes on as
/// a task of the shard, which keeps its buffers alive and the shard from stopping. `abandon` is called
/// before that.
pub(super) fn finish<R: Runtime, F>(rt: &R, operation: F, abandon: impl FnOnce()) -> impl Future<Output = F::Output>
where
    F: Future + 'static,
{
    Finish { rt: rt.clone(), operation: Some(Box::pin(operation)), started: false, abandon: Some(abandon) }
}

struct Finish<R: Runtime, F: Future + 'static, A: FnOnce()> {
    rt: R,
    operation: Option<Pin<Box<F>>>,
    started: bool,
    abandon: Option<A>,
}

impl<R: Runtime, F: Future + 'static, A: FnOnce()> Unpin for Finish<R, F, A> {}

impl<R: Runtime, F: Future + 'static, A: FnOnce()> Future for Finish<R, F, A> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.started = true;
        let Some(operation) = &mut self.operation else { return Poll::Pending };
        let output = std::task::ready!(operation.as_mut().poll(context));
        self.operation = None;
        Poll::Ready(output)
    }
}

impl<R: Runtime, F: Future + 'static, A: FnOnce()> Drop for Finish<R, F, A> {
    fn drop(&mut self) {
        if let Some(operation) = self.operation.take().filter(|_| self.started) {
            if let Some(abandon) = self.abandon.take() {
                abandon();
            }
            self.rt.spawn(async move { drop(operation.await) });
        }
    }
}
