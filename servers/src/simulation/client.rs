//! A writer with the client's own decisions, and a reader.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use client::simulation::{AppendStream, Next, Sending};
use engine::runtime::Runtime;
use engine::runtime::sim::{Rng, SimRuntime};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use wire::append::{Append, Appended};
use wire::hello::Role;
use wire::limits::PAYLOAD_LEN_MAX;
use wire::locate::{Intent, Locate, Location, Position};
use wire::report::Report;
use wire::{ChunkHandle, Epoch, Fault, InodeId, Kind, OpId, ServerId, StreamId, checksum};

use super::oracle::{Fate, History, draw_len, record};
use super::talk::{self, Answer, Talk, no_answer};
use crate::canary::sometimes;

const DIAL: Duration = Duration::from_millis(400);
const LOCATE: Duration = Duration::from_secs(5);

/// One client: its operations one stream after the other, each stream until it has to be given up.
pub(super) struct Writer {
    pub(super) rt: SimRuntime,
    pub(super) id: u8,
    pub(super) file: InodeId,
    pub(super) master: SocketAddr,
    pub(super) history: Rc<History>,
    pub(super) rng: Rng,
    /// Nobody else writes to the file: its streams may end chunks themselves.
    pub(super) is_alone: bool,
}

/// Something that happened to a stream.
enum Event {
    Answered { op: u64, generation: u64, outcome: Answer<Appended> },
    Located(Answer<Location>),
    Connected(Answer<Connection>),
}

/// One operation for the wire: its request, what its answer belongs to, its frames.
type Outgoing = (u64, (u64, u64), Vec<Vec<u8>>);

/// A connection to a head. What is sent goes through a queue, so that a full window never stops the stream.
struct Connection {
    head: ServerId,
    boot: u64,
    out: UnboundedSender<Outgoing>,
}

/// A stream at work.
struct Stream<'a> {
    writer: &'a Writer,
    id: StreamId,
    number: u8,
    decide: AppendStream,
    events: UnboundedSender<Event>,
    connection: Option<Connection>,
    location: Option<Location>,
    /// Of the head of the present location, once known.
    boot: Option<u64>,
    lens: BTreeMap<u64, u32>,
    next_request: u64,
}

impl Writer {
    /// Does `ops` operations.
    pub(super) async fn run(mut self, ops: u64) {
        let mut left = ops;
        for number in 0..=u8::MAX {
            if left == 0 {
                return;
            }
            left = self.stream(number, left).await;
        }
        panic!("client {} used 256 streams up", self.id);
    }

    async fn stream(&mut self, number: u8, mut left: u64) -> u64 {
        let deadline = if self.rng.once_in(4) { Duration::from_secs(3) } else { Duration::from_secs(30) };
        let (events, mut happened) = mpsc::unbounded_channel();
        let mut id = [0; 16];
        (id[0], id[1]) = (self.id, number);
        let eager = self.rng.below(4);
        let mut rng = Rng::new(self.rng.next(), 1);
        let fills = self.is_alone && rng.once_in(2);
        let mut stream = Stream {
            writer: self,
            id: StreamId(id),
            number,
            decide: AppendStream::new(deadline, fills, rng.next()),
            events,
            connection: None,
            location: None,
            boot: None,
            lens: BTreeMap::new(),
            next_request: 1,
        };
        let mut has_ended = false;
        loop {
            let now = stream.writer.rt.now();
            if left > 0 && !has_ended && !stream.decide.is_retired() {
                let len = draw_len(&mut rng);
                // Some clients wait for each answer, others keep many operations in flight.
                let may = stream.decide.is_idle() || (eager > 0 && !rng.once_in(1 + eager));
                if may && stream.decide.can_push(len) {
                    has_ended = fills && (left == 1 || rng.once_in(4));
                    let op = stream.decide.push(len, has_ended, now);
                    let world = stream.writer.rt.world().now();
                    stream.lens.insert(op, len);
                    stream.writer.history.invoked((self_id(&stream), number, op), stream.writer.file, len, world);
                    left -= 1;
                }
            }
            match stream.decide.poll(now) {
                Next::Settled(op, result) => stream.settled(op, result),
                Next::Send(sending) => stream.send(&sending),
                Next::Locate(report) => stream.locate(report),
                Next::Connect(head) => stream.connect(head),
                Next::Finished => {
                    sometimes!("a stream is given up");
                    return left;
                }
                Next::Wait(until) => {
                    if (left == 0 || has_ended) && stream.decide.is_idle() {
                        return left;
                    }
                    stream.wait(&mut happened, until).await;
                }
            }
        }
    }
}

fn self_id(stream: &Stream<'_>) -> u8 {
    stream.writer.id
}

impl Stream<'_> {
    fn settled(&mut self, op: u64, result: Result<Appended, Fault>) {
        let fate = match result {
            Ok(appended) => {
                if self.location.as_ref().is_some_and(|location| location.chunk != appended.chunk) {
                    sometimes!("a retry across a roll gets the first answer");
                }
                Fate::Acked(appended)
            }
            Err(fault) if fault.kind == Kind::Unknown => {
                sometimes!("an operation whose outcome stays unknown");
                Fate::Unknown
            }
            Err(_) => Fate::Refused,
        };
        let Writer { rt, id, history, .. } = self.writer;
        history.ended((*id, self.number, op), fate, rt.world().now());
    }

    async fn wait(&mut self, happened: &mut UnboundedReceiver<Event>, until: Option<Duration>) {
        let rt = &self.writer.rt;
        let pause = until.map_or(Duration::from_secs(600), |until| until.saturating_sub(rt.now()));
        let event = tokio::select! {
            biased;
            Some(event) = happened.recv() => event,
            () = rt.sleep(pause.max(Duration::from_micros(1))) => return,
        };
        let now = rt.now();
        match event {
            Event::Answered { op, generation, outcome } => {
                if let Err(fault) = &outcome
                    && fault.reason == wire::Reason::OutOfOrder
                {
                    sometimes!("OUT_OF_ORDER");
                }
                if let Err(fault) = &outcome {
                    let is_ghost = fault.reason == wire::Reason::StaleOp;
                    let key = (self.writer.id, self.number, op);
                    assert!(!is_ghost || !self.writer.history.is_open(key), "I1: {key:?} waits, and is called a ghost");
                }
                self.decide.answered(op, generation, outcome, now);
            }
            Event::Located(Ok(location)) => {
                let head = location.members.first().map(|member| member.server).unwrap_or_default();
                let same =
                    self.location.as_ref().map(|it| (it.chunk, it.epoch)) == Some((location.chunk, location.epoch));
                if !same {
                    (self.boot, self.connection) = (None, None);
                }
                self.decide.located(location.chunk, location.epoch, head, now);
                self.location = Some(location);
            }
            Event::Located(Err(fault)) => self.decide.not_located(&fault, now),
            Event::Connected(Ok(connection)) => {
                if *self.boot.get_or_insert(connection.boot) == connection.boot {
                    self.connection = Some(connection);
                    self.decide.connected(now);
                } else {
                    let fault = Fault::new(Kind::Unavailable, "it has restarted within the epoch");
                    self.decide.unreachable(&fault, now);
                }
            }
            Event::Connected(Err(fault)) => self.decide.unreachable(&fault, now),
        }
    }

    fn send(&mut self, sending: &Sending) {
        let Some(connection) = self.connection.as_ref() else { return self.decide.unsent(sending.op) };
        self.next_request += 1;
        let request = self.next_request;
        let bytes = record((self.writer.id, self.number, sending.op), self.lens[&sending.op]);
        let frames = frames(&bytes, sending, self.id, request);
        if connection.out.send((request, (sending.op, sending.generation), frames)).is_err() {
            self.decide.unsent(sending.op);
        }
    }

    fn locate(&mut self, report: Option<Report>) {
        let (rt, master, events) = (self.writer.rt.clone(), self.writer.master, self.events.clone());
        let file = self.writer.file;
        self.writer.rt.spawn(async move {
            let found = locate(&rt, master, file, report).await;
            // The stream may have ended.
            drop(events.send(Event::Located(found)));
        });
    }

    fn connect(&mut self, head: ServerId) {
        if let Some(known) = self.connection.take().filter(|it| it.head == head && !it.out.is_closed()) {
            drop(self.events.send(Event::Connected(Ok(known))));
            return;
        }
        let member = self.location.as_ref().and_then(|location| location.members.first());
        let address = member.map(|member| member.address.parse::<SocketAddr>());
        let Some(Ok(address)) = address else { panic!("a location has a head") };
        let (rt, events) = (self.writer.rt.clone(), self.events.clone());
        self.writer.rt.spawn(async move {
            let connection = connect(&rt, address, head, &events).await;
            drop(events.send(Event::Connected(connection)));
        });
    }
}

async fn locate(rt: &SimRuntime, master: SocketAddr, file: InodeId, report: Option<Report>) -> Answer<Location> {
    let mut talk = Talk::dial(rt, master, Role::Client, DIAL).await?;
    if let Some(report) = report {
        talk.call(&report, LOCATE).await?;
    }
    let locate = Locate { file, at: Position::Tail, intent: Intent::Append, count: 1 };
    let mut found = talk.call(&locate, LOCATE).await?;
    found.items.pop().ok_or_else(|| no_answer("an empty page"))
}

async fn connect(
    rt: &SimRuntime,
    address: SocketAddr,
    head: ServerId,
    events: &UnboundedSender<Event>,
) -> Answer<Connection> {
    let (mut reader, mut writer, hello) = talk::dial(rt, address, Role::Client, DIAL).await?;
    let (out, mut queue) = mpsc::unbounded_channel::<Outgoing>();
    let pending = Rc::new(std::cell::RefCell::new(BTreeMap::new()));
    let broken = Rc::new(tokio::sync::Notify::new());
    rt.spawn({
        let (rt, pending, events, broken) = (rt.clone(), Rc::clone(&pending), events.clone(), Rc::clone(&broken));
        async move {
            let sending = async {
                while let Some((request, call, frames)) = queue.recv().await {
                    pending.borrow_mut().insert(request, call);
                    for frame in frames {
                        if rt.send_all(&mut writer, frame, None).await.is_err() {
                            return;
                        }
                    }
                }
                // The stream lets go of the connection: what is in flight still arrives.
                rt.sleep(Duration::from_secs(2)).await;
            };
            tokio::select! {
                biased;
                () = broken.notified() => {}
                () = sending => {}
            }
            queue.close();
            while let Ok((request, call, _)) = queue.try_recv() {
                pending.borrow_mut().insert(request, call);
            }
            for (_, (op, generation)) in std::mem::take(&mut *pending.borrow_mut()) {
                let outcome = Err(no_answer("the connection ended"));
                drop(events.send(Event::Answered { op, generation, outcome }));
            }
        }
    });
    rt.spawn({
        let events = events.clone();
        async move {
            while let Ok(Some(frame)) = reader.next().await {
                let call = pending.borrow_mut().remove(&frame.header.request_id);
                let Some((op, generation)) = call else { continue };
                let outcome = talk::reply::<Appended>(&frame);
                drop(events.send(Event::Answered { op, generation, outcome }));
            }
            broken.notify_one();
        }
    });
    Ok(Connection { head, boot: hello.boot, out })
}

fn frames(bytes: &[u8], sending: &Sending, stream: StreamId, request: u64) -> Vec<Vec<u8>> {
    let op_len = bytes.len() as u32;
    let parts = Append::part_count(op_len) as u16;
    let frame = |(part, piece): (u16, &[u8])| {
        let append = Append {
            chunk: sending.chunk,
            epoch: sending.epoch,
            flags: if sending.last { wire::append::LAST } else { 0 },
            id: OpId { stream, op: sending.op },
            first_unacked: sending.first_unacked,
            op_len,
            part,
            parts,
            crcs: checksum::block_crcs(piece),
        };
        let mut out = wire::frame::head(&append, request, 0, piece.len());
        out.extend_from_slice(piece);
        out
    };
    (0..).zip(bytes.chunks(PAYLOAD_LEN_MAX as usize)).map(frame).collect()
}

/// Reads a chunk from its start, as much as one member shows.
pub(super) async fn read_from(
    rt: &SimRuntime,
    address: SocketAddr,
    chunk: ChunkHandle,
    limit: Duration,
) -> Answer<Vec<u8>> {
    let mut talk = Talk::dial(rt, address, Role::Client, DIAL).await?;
    let mut out = Vec::new();
    loop {
        let offset = out.len() as u32;
        let len = PAYLOAD_LEN_MAX - offset % wire::limits::BLOCK_SIZE;
        let read = wire::read::Read { chunk, epoch: Epoch(0), offset, len, min_seq: wire::Seq(0) };
        match talk.read(&read, limit).await {
            Ok((data, payload)) => {
                out.truncate(data.offset as usize);
                out.extend_from_slice(&payload[..data.len as usize]);
                if out.len() as u32 >= data.committed_len {
                    return Ok(out);
                }
            }
            Err(fault) if matches!(fault.kind, Kind::NotCommitted) && out.is_empty() => return Ok(out),
            Err(fault) => return Err(fault),
        }
    }
}
