//! What waits to be sent on one connection.
//!
//! Pushing never waits: what may be pushed is bounded where it is made (answers by the requests a
//! connection may have in flight, forwarded entries by the buffer budget of their place in the
//! chain). One task pumps; frames without payload leave together in one send.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use engine::runtime::Runtime;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use wire::frame;
use wire::{Body, Fault};

use super::budget::Permit;

/// A peer that takes nothing for so long is gone.
const SEND_STALL: Duration = Duration::from_secs(30);

/// Frames without payload are gathered up to here.
const GATHER_LEN: usize = 64 << 10;

/// One frame to send.
pub(crate) struct Frame<R: Runtime> {
    /// Header and fields.
    pub(crate) head: Vec<u8>,
    /// Payload.
    pub(crate) payload: Option<R::Buf>,
    /// The payload's share of the buffers, given back when the frame was sent.
    pub(crate) permit: Option<Permit>,
    /// The request it answers, counted until the answer was sent.
    pub(crate) slot: Option<OwnedSemaphorePermit>,
}

impl<R: Runtime> Frame<R> {
    /// A message without payload.
    pub(crate) fn bare<B: Body>(body: &B, request_id: u64) -> Self {
        Self { head: frame::head(body, request_id, 0, 0), payload: None, permit: None, slot: None }
    }
}

/// The sending side of one connection; clones are the same one.
pub(crate) struct Outbox<R: Runtime>(Rc<Inner<R>>);

impl<R: Runtime> Clone for Outbox<R> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

struct Inner<R: Runtime> {
    queue: RefCell<VecDeque<Frame<R>>>,
    closed: Cell<bool>,
    work: Notify,
    ended: Notify,
}

impl<R: Runtime> Outbox<R> {
    pub(crate) fn new() -> Self {
        Self(Rc::new(Inner {
            queue: RefCell::default(),
            closed: Cell::new(false),
            work: Notify::new(),
            ended: Notify::new(),
        }))
    }

    /// Queues a frame; forgotten when the connection has ended.
    pub(crate) fn push(&self, frame: Frame<R>) {
        if !self.0.closed.get() {
            self.0.queue.borrow_mut().push_back(frame);
            self.0.work.notify_one();
        }
    }

    /// Queues a message without payload that answers no request.
    pub(crate) fn send<B: Body>(&self, body: &B) {
        self.push(Frame::bare(body, 0));
    }

    /// Ends the connection; both its tasks see it.
    pub(crate) fn close(&self) {
        if !self.0.closed.replace(true) {
            self.0.queue.borrow_mut().clear();
            self.0.ended.notify_waiters();
        }
    }

    /// Whether the connection has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.closed.get()
    }

    /// Runs `work` until it ends or the connection does; `None` in the second case.
    pub(crate) async fn unless_closed<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let ended = self.0.ended.notified();
        tokio::pin!(ended);
        ended.as_mut().enable();
        if self.is_closed() {
            return None;
        }
        tokio::select! {
            biased;
            () = ended => None,
            out = work => Some(out),
        }
    }

    /// Sends what is queued until the connection ends. Closes it on the first error.
    pub(crate) async fn pump(&self, rt: R, mut writer: R::Writer) {
        let outcome = self.unless_closed(self.send_queued(&rt, &mut writer)).await;
        if let Some(Err(error)) = outcome {
            tracing::debug!(%error, "connection broke while sending");
        }
        self.close();
    }

    async fn send_queued(&self, rt: &R, writer: &mut R::Writer) -> std::io::Result<()> {
        loop {
            let Some(frame) = self.take() else {
                self.0.work.notified().await;
                continue;
            };
            tokio::select! {
                biased;
                outcome = rt.send_all(writer, frame.head, frame.payload) => outcome?,
                () = rt.sleep(SEND_STALL) => return Err(std::io::ErrorKind::TimedOut.into()),
            }
            drop((frame.permit, frame.slot));
        }
    }

    fn take(&self) -> Option<Frame<R>> {
        let mut queue = self.0.queue.borrow_mut();
        let mut first = queue.pop_front()?;
        while first.payload.is_none() && first.head.len() < GATHER_LEN {
            let Some(next) = queue.pop_front() else { break };
            first.head.extend_from_slice(&next.head);
            first.payload = next.payload;
            first.permit = next.permit;
            first.slot = next.slot;
        }
        Some(first)
    }
}

/// A request that waits for its answer. Dropping it leaves the caller without one.
pub(crate) struct Ticket<R: Runtime> {
    outbox: Outbox<R>,
    request_id: u64,
    slot: Option<OwnedSemaphorePermit>,
    deadline: Option<Duration>,
    _counted: Option<InFlight>,
}

/// Counts a request until it is answered or given up.
pub(crate) struct InFlight(Rc<Cell<usize>>);

impl InFlight {
    pub(crate) fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl<R: Runtime> Ticket<R> {
    /// `deadline`: when the caller stops waiting, on the shard's clock.
    pub(crate) fn new(
        outbox: Outbox<R>,
        request_id: u64,
        slot: Option<OwnedSemaphorePermit>,
        deadline: Option<Duration>,
    ) -> Self {
        Self { outbox, request_id, slot, deadline, _counted: None }
    }

    /// Counted as long as it lives.
    pub(crate) fn counted(self, count: &Rc<Cell<usize>>) -> Self {
        Self { _counted: Some(InFlight::new(count)), ..self }
    }

    /// The answer goes to the newest frame of an operation of several.
    pub(crate) fn now_for(&mut self, request_id: u64) {
        self.request_id = request_id;
    }

    /// Whether the caller has stopped waiting: the work need not be done.
    pub(crate) fn is_expired(&self, now: Duration) -> bool {
        self.outbox.is_closed() || self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Answers with a message without payload.
    pub(crate) fn answer<B: Body>(self, outcome: Result<B, Fault>) {
        let mut frame = match outcome {
            Ok(body) => Frame::bare(&body, self.request_id),
            Err(fault) => Frame::bare(&fault, self.request_id),
        };
        frame.slot = self.slot;
        self.outbox.push(frame);
    }

    /// Refuses.
    pub(crate) fn refuse(self, fault: Fault) {
        self.answer::<wire::message::Done>(Err(fault));
    }

    /// Answers with a payload.
    pub(crate) fn answer_with<B: Body>(self, body: &B, payload: R::Buf, permit: Permit) {
        let head = frame::head(body, self.request_id, 0, payload.as_ref().len());
        self.outbox.push(Frame { head, payload: Some(payload), permit: Some(permit), slot: self.slot });
    }
}
