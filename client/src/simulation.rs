//! The decisions of an append stream, for simulations that own the sockets and the clock. The client
//! itself drives the same decisions over real connections; nothing is decided here.

use std::time::Duration;

use wire::append::Appended;
use wire::limits::WINDOW_LEN_MAX;
use wire::report::{Report, Trouble};
use wire::{ChunkHandle, Epoch, Fault, ServerId};

use crate::stream::{Chain, Settings, Step, Stream};

/// One append stream, as the client would run it with these promises.
#[derive(Debug)]
pub struct AppendStream(Stream);

/// What the stream asks for.
#[derive(Clone, Debug)]
pub enum Next {
    /// The operation is decided: where it landed, or a fault that says whether it may have happened.
    Settled(u64, Result<Appended, Fault>),
    /// Send this; the answer goes to [`AppendStream::answered`].
    Send(Sending),
    /// Report first, if there is something to report, then ask the master where to append.
    Locate(Option<Report>),
    /// Make sure of a connection to this server.
    Connect(ServerId),
    /// Nothing to do before this time, or before something happens.
    Wait(Option<Duration>),
    /// Nothing will come of this stream any more.
    Finished,
}

/// One operation on its way out.
#[derive(Clone, Copy, Debug)]
pub struct Sending {
    /// Its number.
    pub op: u64,
    /// Comes back with its answer.
    pub generation: u64,
    /// The lowest number without an answer.
    pub first_unacked: u64,
    /// Where it goes.
    pub chunk: ChunkHandle,
    /// The chain the stream knows.
    pub epoch: Epoch,
    /// Nothing follows in this chunk.
    pub last: bool,
}

impl AppendStream {
    /// A stream whose operations may each take `deadline`. `fills_chunks`: it is the only writer and
    /// ends chunks itself. `noise` varies its pauses.
    #[must_use]
    pub fn new(deadline: Duration, fills_chunks: bool, noise: u64) -> Self {
        let settings = Settings { deadline, progress_counts: fills_chunks, fills_chunks, window: WINDOW_LEN_MAX };
        Self(Stream::new(settings, noise))
    }

    /// Whether there is room for an operation of `len` bytes.
    #[must_use]
    pub fn can_push(&self, len: u32) -> bool {
        self.0.can_push(len)
    }

    /// Takes an operation and gives its number. `end`: the stream ends with it.
    pub fn push(&mut self, len: u32, end: bool, now: Duration) -> u64 {
        self.0.push(len, end, now)
    }

    /// Everything pushed is settled.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.0.is_idle()
    }

    /// Takes no more operations.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.0.is_retired()
    }

    /// What to do next. Call again until it says [`Next::Wait`].
    pub fn poll(&mut self, now: Duration) -> Next {
        match self.0.poll(now) {
            Step::Settled { op, result } => Next::Settled(op, result.map(|settled| settled.appended)),
            Step::Send(sending) => Next::Send(Sending {
                op: sending.op,
                generation: sending.generation,
                first_unacked: sending.first_unacked,
                chunk: sending.chain.chunk,
                epoch: sending.chain.epoch,
                last: sending.last,
            }),
            Step::Locate { report } => Next::Locate(report.map(|(chain, trouble)| report_of(&chain, trouble))),
            Step::Connect(chain) => Next::Connect(chain.head),
            Step::Wait(until) => Next::Wait(until),
            Step::Finished => Next::Finished,
        }
    }

    /// An answer, or the end of the connection as `Unknown`.
    pub fn answered(&mut self, op: u64, generation: u64, outcome: Result<Appended, Fault>, now: Duration) {
        self.0.answered(op, generation, outcome, now);
    }

    /// The master says where to append.
    pub fn located(&mut self, chunk: ChunkHandle, epoch: Epoch, head: ServerId, now: Duration) {
        self.0.located(Chain { chunk, epoch, head }, now);
    }

    /// The master did not say.
    pub fn not_located(&mut self, fault: &Fault, now: Duration) {
        self.0.not_located(fault, now);
    }

    /// There is a connection to the head.
    pub fn connected(&mut self, now: Duration) {
        self.0.connected(now);
    }

    /// What was to be sent was not: the connection is gone.
    pub fn unsent(&mut self, op: u64) {
        self.0.unsent(op);
    }

    /// The head cannot be reached.
    pub fn unreachable(&mut self, fault: &Fault, now: Duration) {
        self.0.unreachable(fault, now);
    }
}

fn report_of(chain: &Chain, trouble: Trouble) -> Report {
    Report { chunk: chain.chunk, epoch: chain.epoch, trouble, suspect: chain.head }
}
