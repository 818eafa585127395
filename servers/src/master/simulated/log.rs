//! The operation log of the simulated master: entries in order, of which a crash leaves those that were
//! flushed, and perhaps some of the others, but never one without those before it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use engine::runtime::Runtime;
use engine::runtime::sim::{Rng, SimRuntime};
use tokio::sync::Notify;

use super::SimMaster;
use crate::canary::weakened;
use crate::master::entry::{Answer as Applied, Change, Effect, Entry};
use crate::master::state::State;
use crate::simulation::talk::Answer;

/// Wall clock of all machines: it may jump, unlike the clock that everything is measured by.
#[derive(Default)]
pub(crate) struct Wall {
    /// Milliseconds by which it is wrong.
    pub(crate) offset_ms: Cell<i64>,
}

impl Wall {
    /// Unix milliseconds.
    pub(crate) fn unix_ms(&self, rt: &SimRuntime) -> u64 {
        let now = rt.world().now().as_millis() as u64 + 1_700_000_000_000;
        now.saturating_add_signed(self.offset_ms.get())
    }
}

/// The log as it lies on the master's disk.
pub(crate) struct OpLog {
    entries: RefCell<Vec<Entry>>,
    flushed: Cell<usize>,
    written: Notify,
    durable: Notify,
    rng: RefCell<Rng>,
    pub(crate) wall: Wall,
}

impl OpLog {
    /// An empty log.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            entries: RefCell::default(),
            flushed: Cell::new(0),
            written: Notify::new(),
            durable: Notify::new(),
            rng: RefCell::new(Rng::new(seed, 91)),
            wall: Wall::default(),
        }
    }

    /// Founds a cluster: entries that are there, and durable, before the first life.
    pub(crate) fn found(&self, changes: Vec<Change>) {
        let mut state = self.replay();
        for change in changes {
            let entry = state.stamp(change, 1);
            let lsn = state.applied() + 1;
            state.apply(lsn, &entry).unwrap_or_else(|fault| panic!("the cluster is founded: {fault}"));
            self.entries.borrow_mut().push(entry);
        }
        self.flushed.set(self.entries.borrow().len());
    }

    /// What a crash leaves.
    pub(crate) fn crash(&self) {
        let mut entries = self.entries.borrow_mut();
        let lost = (entries.len() - self.flushed.get()) as u64;
        let kept = self.flushed.get() + self.rng.borrow_mut().below(lost + 1) as usize;
        entries.truncate(kept);
        self.flushed.set(kept);
    }

    /// Applies everything.
    pub(crate) fn replay(&self) -> State {
        let mut state = State::default();
        for (lsn, entry) in (1..).zip(self.entries.borrow().iter()) {
            state.apply(lsn, entry).unwrap_or_else(|fault| panic!("entry {lsn} was accepted before: {fault}"));
        }
        state
    }

    /// The disk at work: what was written when a flush begins is durable when it ends.
    pub(super) async fn flush_for_ever(&self, rt: &SimRuntime) {
        loop {
            let covers = self.entries.borrow().len();
            if covers == self.flushed.get() {
                self.written.notified().await;
                continue;
            }
            let takes = self.rng.borrow_mut().below(4_000);
            rt.sleep(Duration::from_micros(500 + takes)).await;
            self.flushed.set(covers);
            self.durable.notify_waiters();
        }
    }

    async fn wait_durable(&self, upto: usize) {
        loop {
            let durable = self.durable.notified();
            tokio::pin!(durable);
            durable.as_mut().enable();
            if self.flushed.get() >= upto {
                return;
            }
            durable.await;
        }
    }
}

impl SimMaster {
    /// Changes the state; the answer is durable.
    pub(super) async fn submit(self: &Rc<Self>, change: Change) -> Answer<Applied> {
        let (outcome, upto) = {
            let mut state = self.state.borrow_mut();
            let entry = state.stamp(change, self.log.wall.unix_ms(&self.rt));
            let lsn = state.applied() + 1;
            let outcome = state.apply(lsn, &entry);
            if outcome.is_ok() {
                self.log.entries.borrow_mut().push(entry);
                self.log.written.notify_one();
            }
            (outcome, state.applied() as usize)
        };
        if !weakened!(AnswerBeforeLog) {
            self.log.wait_durable(upto).await;
        }
        let applied = outcome?;
        for effect in applied.effects {
            match effect {
                Effect::Changed(_) => self.changed.notify_waiters(),
                Effect::Confirm(chunk) => self.confirm_all(chunk),
            }
        }
        Ok(applied.answer)
    }

    /// Asks the state, and waits until what was seen is durable.
    pub(super) async fn ask<T>(&self, question: impl FnOnce(&State) -> T) -> T {
        let (answer, upto) = {
            let state = self.state.borrow();
            (question(&state), state.applied() as usize)
        };
        if !weakened!(AnswerBeforeLog) {
            self.log.wait_durable(upto).await;
        }
        answer
    }
}
