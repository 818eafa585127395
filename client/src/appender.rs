//! Drives one [`Stream`]: a task that owns the sockets and timers the stream decides about.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use wire::append::{Append, LAST};
use wire::limits::{OPS_IN_FLIGHT_MAX, PAYLOAD_LEN_MAX, WINDOW_LEN_MAX};
use wire::locate::{Intent, Location, Position};
use wire::member::ChunkState;
use wire::report::Trouble;
use wire::{ChunkHandle, Fault, InodeId, Kind, OpId, StreamId, checksum, frame};

use crate::bounded::Bounded;
use crate::client::Inner;
use crate::clock::{now, random};
use crate::conn::{Conn, Frame, StreamReply, millis};
use crate::error::{Error, Outcome, unreachable};
use crate::stream::{Chain, REPEAT_MAX, Sending, Settings, Settled, Step, Stream};

/// A chunk server that does not take a connection for so long is rolled away.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// Chunks whose place in the file a stream remembers: an operation lands where the stream has sent it.
const CHUNKS_MAX: usize = 16;

/// A handle to a stream's task; clones are the same stream. When the last goes, the task ends as soon
/// as everything submitted is decided.
#[derive(Clone, Debug)]
pub(crate) struct Appender {
    queue: mpsc::Sender<Operation>,
    /// Bytes that may be submitted and undecided.
    room: Arc<Semaphore>,
    window: usize,
}

/// Bytes ready to be sent: cut into frames, with their checksums.
#[derive(Clone, Debug)]
pub(crate) struct Cut {
    len: u32,
    parts: Arc<[Part]>,
}

#[derive(Debug)]
struct Part {
    payload: Bytes,
    crcs: Vec<u32>,
}

impl Cut {
    /// Computes the block checksums: the only time they are computed for these bytes.
    pub(crate) fn new(data: &Bytes) -> Self {
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let step = PAYLOAD_LEN_MAX as usize;
        let starts = (0..data.len().max(1)).step_by(step);
        let pieces = starts.map(|start| data.slice(start..data.len().min(start + step)));
        let parts = pieces.map(|payload| Part { crcs: checksum::block_crcs(&payload), payload }).collect();
        Self { len, parts }
    }
}

/// Where an operation landed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Landed {
    /// File offset of its first byte.
    pub(crate) offset: u64,
    pub(crate) len: u32,
    /// Members of the chain.
    pub(crate) replicas: u32,
}

/// Why an operation has no place.
#[derive(Debug)]
pub(crate) enum Refused {
    /// It was never sent, and this stream will not: give it to another one.
    Retired,
    /// As the fault says.
    Fault(Fault),
}

/// How far an upload is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// Operations durable on every replica.
    pub(crate) ops: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// The newest of them ended its chunk.
    pub(crate) ends_chunk: bool,
    pub(crate) failed: Option<Error>,
}

/// Who hears what became of an operation.
#[derive(Debug)]
pub(crate) enum Hears {
    Caller(oneshot::Sender<Result<Landed, Refused>>),
    Upload(Arc<watch::Sender<Progress>>),
}

#[derive(Debug)]
struct Operation {
    cut: Cut,
    end: bool,
    hears: Hears,
    room: OwnedSemaphorePermit,
}

impl Appender {
    /// Starts a stream for `file` and its task; it ends early when `stop` is cancelled.
    pub(crate) fn start(inner: &Arc<Inner>, file: InodeId, settings: Settings, stop: CancellationToken) -> Self {
        let (queue, queued) = mpsc::channel(usize::try_from(OPS_IN_FLIGHT_MAX).unwrap_or(usize::MAX));
        let (answer, answers) = mpsc::unbounded_channel();
        let window = usize::try_from(settings.window.min(WINDOW_LEN_MAX)).unwrap_or(usize::MAX);
        let room = Arc::new(Semaphore::new(window));
        let driver = Driver {
            inner: Arc::clone(inner),
            file,
            id: StreamId(random()),
            stream: Stream::new(settings, inner.noise.next()),
            origin: now(),
            used: now(),
            heard: now(),
            queue: queued,
            closed: false,
            parked: None,
            pending: VecDeque::new(),
            first: 1,
            answer,
            answers,
            route: None,
            places: Bounded::new(CHUNKS_MAX),
            work: None,
            room: Arc::clone(&room),
            stop,
        };
        tokio::spawn(driver.run());
        Self { queue, room, window }
    }

    /// For record appends: many callers, none of them ends a chunk.
    pub(crate) fn records(inner: &Arc<Inner>, file: InodeId) -> Self {
        let deadline = inner.config.deadline;
        let settings = Settings { deadline, progress_counts: false, fills_chunks: false, window: WINDOW_LEN_MAX };
        Self::start(inner, file, settings, CancellationToken::new())
    }

    /// Its task has ended or takes nothing more.
    pub(crate) fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// Waits for room, then gives the operation to the stream. Dropping the future before it is done
    /// submits nothing.
    pub(crate) async fn submit(&self, cut: Cut, end: bool, hears: Hears) -> Result<(), Refused> {
        let want = u32::try_from(self.window.min(cut.len as usize)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(want).await.map_err(|_| Refused::Retired)?;
        self.queue.send(Operation { cut, end, hears, room }).await.map_err(|_| Refused::Retired)
    }
}

/// The chain the stream writes to.
#[derive(Debug)]
struct Route {
    location: Location,
    conn: Option<Conn>,
    /// Boot number of the head when this chain was first used: another one means it has restarted,
    /// and will not act in this epoch again.
    boot: Option<u64>,
}

/// An operation the stream knows by number.
#[derive(Debug)]
struct Pending {
    cut: Cut,
    hears: Option<Hears>,
    sent: bool,
    room: Option<OwnedSemaphorePermit>,
}

enum Done {
    Located(Outcome<Location>),
    Connected(Outcome<Conn>),
}

type Work = Pin<Box<dyn Future<Output = Done> + Send>>;

struct Driver {
    inner: Arc<Inner>,
    file: InodeId,
    id: StreamId,
    stream: Stream,
    origin: Instant,
    /// Last time an operation was pushed, and an answer came.
    used: Instant,
    heard: Instant,
    queue: mpsc::Receiver<Operation>,
    closed: bool,
    /// Taken from the queue, waits for the stream's window.
    parked: Option<Operation>,
    /// From number `first` on, in step with the stream.
    pending: VecDeque<Pending>,
    first: u64,
    answer: mpsc::UnboundedSender<StreamReply>,
    /// Bounded by the operations in flight: each attempt gives one answer.
    answers: mpsc::UnboundedReceiver<StreamReply>,
    route: Option<Route>,
    /// Start in the file and number of members of the chunks used.
    places: Bounded<ChunkHandle, (u64, u32)>,
    work: Option<Work>,
    room: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Driver {
    async fn run(mut self) {
        loop {
            match self.stream.poll(self.elapsed()) {
                Step::Settled { op, result } => self.settle(op, result),
                Step::Send(sending) => self.send(&sending),
                Step::Locate { report } => self.locate(report),
                Step::Connect(chain) => self.connect(chain),
                Step::Wait(until) => {
                    if !self.wait(until).await {
                        break;
                    }
                }
                Step::Finished => break,
            }
            if self.stream.is_retired() {
                self.refuse_queued();
            }
        }
        self.refuse_queued();
    }

    fn elapsed(&self) -> Duration {
        self.origin.elapsed()
    }

    /// Waits until something happens. False: nothing will, the stream can end.
    async fn wait(&mut self, until: Option<Duration>) -> bool {
        if let Some(operation) = self.parked.take_if(|operation| self.stream.can_push(operation.cut.len)) {
            self.push(operation);
            return true;
        }
        let idle = self.stream.is_idle();
        if idle && self.closed {
            return false;
        }
        let wake = match until {
            Some(until) => self.origin + until.min(REPEAT_MAX * 2),
            None => self.used + REPEAT_MAX,
        };
        let takes = self.parked.is_none() && !self.closed && !self.stream.is_retired();
        let has_work = self.work.is_some();
        tokio::select! {
            biased;
            () = self.stop.cancelled() => return false,
            Some(reply) = self.answers.recv() => self.answered(reply),
            done = work(&mut self.work), if has_work => self.done(done),
            operation = self.queue.recv(), if takes => match operation {
                Some(operation) => self.parked = Some(operation),
                None => self.closed = true,
            },
            // Silent for so long: servers may forget the stream soon, so nothing more is sent in it.
            () = sleep_until(wake) => return !(idle && self.used.elapsed() >= REPEAT_MAX),
        }
        true
    }

    fn push(&mut self, operation: Operation) {
        let Operation { cut, end, hears, room } = operation;
        self.used = now();
        self.stream.push(cut.len, end, self.elapsed());
        self.pending.push_back(Pending { cut, hears: Some(hears), sent: false, room: Some(room) });
    }

    fn at(&self, op: u64) -> Option<usize> {
        usize::try_from(op.checked_sub(self.first)?).ok().filter(|at| *at < self.pending.len())
    }

    fn send(&mut self, sending: &Sending) {
        let Some(at) = self.at(sending.op) else { return };
        let Some(conn) = self.route.as_ref().and_then(|route| route.conn.clone()) else {
            return self.stream.unsent(sending.op);
        };
        let pending = &mut self.pending[at];
        self.inner.counters.retries.add(u64::from(pending.sent));
        pending.sent = true;
        let request_id = conn.next_id();
        let frames = frames(&pending.cut, sending, self.id, request_id);
        match conn.submit(request_id, frames, (sending.op, sending.generation), self.answer.clone()) {
            Ok(()) => {}
            Err(fault) if fault.kind == Kind::Overloaded => {
                self.stream.answered(sending.op, sending.generation, Err(fault), self.elapsed());
            }
            Err(_) => self.stream.unsent(sending.op),
        }
    }

    /// Takes an answer, and those that came with it.
    fn answered(&mut self, reply: StreamReply) {
        self.heard = now();
        let time = self.elapsed();
        let mut next = Some(reply);
        while let Some(StreamReply { op, generation, reply }) = next {
            let outcome = reply.and_then(|reply| reply.decode::<Append>());
            if let Err(fault) = &outcome {
                let Self { id, file, .. } = self;
                tracing::debug!(%file, stream = %id, op, error = %fault, kind = ?fault.kind, "append not accepted");
            }
            self.stream.answered(op, generation, outcome, time);
            next = self.answers.try_recv().ok();
        }
    }

    fn locate(&mut self, report: Option<(Chain, Trouble)>) {
        if let (Some((_, Trouble::NoAnswer)), Some(conn)) = (report, self.route.as_ref().and_then(|r| r.conn.as_ref()))
        {
            conn.nothing_heard_since(self.heard);
            self.inner.pool.suspect(conn.address());
        }
        let (inner, file) = (Arc::clone(&self.inner), self.file);
        self.work = Some(Box::pin(async move { Done::Located(tail(&inner, file, report).await) }));
    }

    fn connect(&mut self, chain: Chain) {
        let Some(head) = self.route.as_ref().and_then(|route| route.location.members.first().cloned()) else { return };
        let inner = Arc::clone(&self.inner);
        self.work =
            Some(Box::pin(async move { Done::Connected(inner.pool.chunk(&head, chain.chunk, CONNECT_LIMIT).await) }));
    }

    fn done(&mut self, done: Done) {
        self.work = None;
        let time = self.elapsed();
        match done {
            Done::Located(Ok(location)) => {
                let members = &location.members;
                let replicas = u32::try_from(members.len()).unwrap_or(u32::MAX);
                let head = members.first().map(|member| member.server).unwrap_or_default();
                let chain = Chain { chunk: location.chunk, epoch: location.epoch, head };
                self.places.insert(location.chunk, (location.start, replicas));
                let same = self
                    .route
                    .take()
                    .filter(|route| (route.location.chunk, route.location.epoch) == (location.chunk, location.epoch));
                self.route = Some(Route { location, conn: None, boot: same.and_then(|route| route.boot) });
                self.stream.located(chain, time);
            }
            Done::Located(Err(fault)) => self.stream.not_located(&fault, time),
            Done::Connected(Ok(conn)) => self.connected(conn, time),
            Done::Connected(Err(fault)) => self.stream.unreachable(&fault, time),
        }
    }

    fn connected(&mut self, conn: Conn, time: Duration) {
        let Some(route) = &mut self.route else { return };
        let boot = conn.hello().boot;
        if *route.boot.get_or_insert(boot) == boot {
            route.conn = Some(conn);
            self.stream.connected(time);
        } else {
            let fault = unreachable(format!("{} has restarted within the epoch", conn.address()));
            self.stream.unreachable(&fault, time);
        }
    }

    fn settle(&mut self, op: u64, result: Result<Settled, Fault>) {
        let Some(at) = self.at(op) else { return };
        let pending = &mut self.pending[at];
        let hears = pending.hears.take();
        pending.room = None;
        if let Ok(settled) = &result {
            pending.cut.parts = Arc::new([]);
            self.inner.counters.bytes_written.add(settled.appended.len.into());
            self.inner.saw(settled.asked, settled.appended.epoch, settled.appended.committed_seq);
        }
        match hears {
            Some(Hears::Caller(caller)) => self.tell(caller, result),
            Some(Hears::Upload(progress)) => self.note(&progress, result),
            None => {}
        }
        // The stream is done with a number before its caller has been told.
        let (first, told) = (self.stream.first(), |pending: &Pending| pending.hears.is_none());
        while self.first < first && self.pending.front().is_some_and(told) {
            self.pending.pop_front();
            self.first += 1;
        }
    }

    fn tell(&mut self, caller: oneshot::Sender<Result<Landed, Refused>>, result: Result<Settled, Fault>) {
        let appended = match result {
            Ok(settled) => settled.appended,
            Err(fault) => return drop(caller.send(Err(Refused::Fault(fault)))),
        };
        let landed = move |(start, replicas): (u64, u32)| Landed {
            offset: start + u64::from(appended.offset),
            len: appended.len,
            replicas,
        };
        if let Some(place) = self.places.get(&appended.chunk) {
            return drop(caller.send(Ok(landed(*place))));
        }
        let inner = Arc::clone(&self.inner);
        tokio::spawn(async move {
            let place = place_of(&inner, appended.chunk).await;
            drop(caller.send(place.map(landed).map_err(Refused::Fault)));
        });
    }

    fn note(&self, progress: &watch::Sender<Progress>, result: Result<Settled, Fault>) {
        progress.send_modify(|progress| match result {
            Ok(settled) => {
                progress.ops += 1;
                progress.bytes += u64::from(settled.appended.len);
                progress.ends_chunk = settled.ends_chunk;
            }
            Err(fault) => {
                progress.failed.get_or_insert_with(|| fault.into());
                self.room.close();
            }
        });
    }

    /// Gives back what will not be sent in this stream.
    fn refuse_queued(&mut self) {
        self.queue.close();
        self.closed = true;
        let parked = self.parked.take().into_iter();
        for operation in parked.chain(std::iter::from_fn(|| self.queue.try_recv().ok())) {
            if let Hears::Caller(caller) = operation.hears {
                drop(caller.send(Err(Refused::Retired)));
            }
        }
    }
}

async fn work(work: &mut Option<Work>) -> Done {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}

fn frames(cut: &Cut, sending: &Sending, stream: StreamId, request_id: u64) -> Vec<Frame> {
    let parts = u16::try_from(cut.parts.len()).unwrap_or(u16::MAX);
    let frame = |(number, part): (u16, &Part)| {
        let append = Append {
            chunk: sending.chain.chunk,
            epoch: sending.chain.epoch,
            flags: if sending.last { LAST } else { 0 },
            id: OpId { stream, op: sending.op },
            first_unacked: sending.first_unacked,
            op_len: cut.len,
            part: number,
            parts,
            crcs: part.crcs.clone(),
        };
        let head = frame::head(&append, request_id, millis(sending.left), part.payload.len());
        Frame { head, payload: part.payload.clone() }
    };
    (0..).zip(cut.parts.iter()).map(frame).collect()
}

/// Where the next operation goes: reports first, so that the master rolls the chunk if need be.
async fn tail(inner: &Inner, file: InodeId, report: Option<(Chain, Trouble)>) -> Outcome<Location> {
    if let Some((chain, trouble)) = report {
        inner.report(chain.chunk, chain.epoch, trouble, chain.head).await;
    }
    let found = inner.locate(file, Position::Tail, Intent::Append, 1).await?;
    let open = found.items.into_iter().next().filter(|location| location.state == ChunkState::Open);
    let usable = open.filter(|location| !location.members.is_empty());
    usable.ok_or_else(|| unreachable(format!("the master has no open chunk for file {file} yet")))
}

async fn place_of(inner: &Inner, chunk: ChunkHandle) -> Outcome<(u64, u32)> {
    let gone =
        |why: &str| Fault::new(Kind::Unknown, format!("appended to chunk {chunk}, but its place is not known: {why}"));
    let found = inner.locate_chunk(chunk).await.map_err(|fault| gone(&fault.text))?;
    let location = found.items.into_iter().next().ok_or_else(|| gone("the master does not know it"))?;
    Ok((location.start, u32::try_from(location.members.len()).unwrap_or(u32::MAX)))
}
