//! One connection to one shard of one server, shared by everybody who talks to it.
//!
//! A writer task gathers what is queued into vectored writes: header, fields and payload of several
//! frames leave in one system call, and a payload is never copied. A reader task takes answers apart
//! and hands each to whoever waits for its request id. An answer nobody waits for any more is dropped.
//! When either side fails the connection is dead as a whole and everybody who waits learns it.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use wire::frame::{self, HEADER_LEN, Header};
use wire::handshake::{Dial, DialError, Step};
use wire::hello::HelloOk;
use wire::message::tag;
use wire::{Body, Fault, Kind, Request};

use crate::clock::{left, now};
use crate::error::{Outcome, lost, unreachable};
use crate::lock;

/// Calls of one connection that wait for an answer; more wait for their turn.
const CALLS_MAX: usize = 256;

/// Messages handed to the writer and not yet taken by it.
const QUEUE_MAX: usize = 512;

/// Messages the writer takes at once, and pieces of memory it gives to one system call.
const BATCH: usize = 32;
const SLICES: usize = 64;

/// Small answers are taken from one system call by the dozen; a payload this large goes past the buffer.
const READ_BUFFER: usize = 16 << 10;

/// A frame of a handshake has a few hundred bytes, a refusal about a thousand.
const GREETING_LEN_MAX: u32 = 4 << 10;

/// A frame as it goes out: header and fields in one piece, the payload as it was given.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) head: Vec<u8>,
    pub(crate) payload: Bytes,
}

/// A frame as it came in.
#[derive(Debug)]
pub(crate) struct Reply {
    tag: u16,
    fields: Vec<u8>,
    /// Empty for most messages.
    pub(crate) payload: Bytes,
}

impl Reply {
    /// The answer to a request of this sort: what it carries, or the server's fault.
    pub(crate) fn decode<R: Request>(&self) -> Outcome<R::Reply> {
        let decoded = if self.tag == tag::FAULT {
            Fault::decode(&self.fields).map(Err)
        } else if self.tag == R::Reply::TAG {
            R::Reply::decode(&self.fields).map(Ok)
        } else {
            Err(wire::message::Malformed::Tag(self.tag))
        };
        decoded.unwrap_or_else(|malformed| Err(lost(format!("the answer makes no sense: {malformed}"))))
    }
}

/// An answer to an operation of a stream, and which attempt it belongs to.
#[derive(Debug)]
pub(crate) struct StreamReply {
    pub(crate) op: u64,
    pub(crate) generation: u64,
    pub(crate) reply: Outcome<Reply>,
}

#[derive(Debug)]
enum Waiter {
    Once(oneshot::Sender<Outcome<Reply>>),
    Stream { to: mpsc::UnboundedSender<StreamReply>, op: u64, generation: u64 },
}

impl Waiter {
    fn tell(self, reply: Outcome<Reply>) {
        match self {
            Self::Once(to) => drop(to.send(reply)),
            Self::Stream { to, op, generation } => drop(to.send(StreamReply { op, generation, reply })),
        }
    }
}

/// Number of messages that have no answer; requests are numbered from 1.
const NOTE: u64 = 0;

#[derive(Debug)]
struct Outgoing {
    request_id: u64,
    frames: Vec<Frame>,
}

/// What the handles and the two tasks share.
#[derive(Debug)]
struct Shared {
    address: String,
    /// `None` once the connection is dead.
    waiting: Mutex<Option<HashMap<u64, Waiter>>>,
    next_id: AtomicU64,
    calls: Semaphore,
    opened: Instant,
    /// Milliseconds from `opened` to the last frame received.
    heard_ms: AtomicU64,
    dead: CancellationToken,
}

/// A handle; clones are the same connection. When the last goes, the connection closes.
#[derive(Clone, Debug)]
pub(crate) struct Conn {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Outgoing>,
    hello: Arc<HelloOk>,
    _close: Arc<DropGuard>,
}

impl Conn {
    /// Dials and does the handshake, within `limit`.
    pub(crate) async fn open(address: &str, mut handshake: Dial, limit: Duration) -> Outcome<Self> {
        let opening = async {
            let stream = TcpStream::connect(address).await.map_err(|error| no_connection(address, &error))?;
            prepare(&stream).map_err(|error| no_connection(address, &error))?;
            let (input, mut output) = stream.into_split();
            let mut input = BufReader::with_capacity(READ_BUFFER, input);
            let mut bytes = handshake.hello(0, millis(limit));
            loop {
                output.write_all(&bytes).await.map_err(|error| no_connection(address, &error))?;
                let (header, fields) = greeting(&mut input).await.map_err(|error| no_connection(address, &error))?;
                match handshake.heard(&header, &fields) {
                    Ok(Step::Send(next)) => bytes = next,
                    Ok(Step::Open(ok)) => return Ok(Self::start(address, input, output, ok)),
                    Err(DialError::Refused(fault)) if fault.kind != Kind::Unknown => return Err(fault),
                    Err(error) => return Err(unreachable(format!("{address}: {error}"))),
                }
            }
        };
        let late = || Err(unreachable(format!("{address} does not answer within {} ms", limit.as_millis())));
        timeout(limit, opening).await.unwrap_or_else(|_| late())
    }

    fn start(address: &str, input: BufReader<OwnedReadHalf>, output: OwnedWriteHalf, hello: HelloOk) -> Self {
        let dead = CancellationToken::new();
        let shared = Arc::new(Shared {
            address: address.to_owned(),
            waiting: Mutex::new(Some(HashMap::new())),
            next_id: AtomicU64::new(1),
            calls: Semaphore::new(CALLS_MAX),
            opened: now(),
            heard_ms: AtomicU64::new(0),
            dead: dead.clone(),
        });
        let (queue, queued) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(run_until_dead(Arc::clone(&shared), write_loop(Arc::clone(&shared), queued, output)));
        tokio::spawn(run_until_dead(Arc::clone(&shared), read_loop(Arc::clone(&shared), input)));
        Self { shared, queue, hello: Arc::new(hello), _close: Arc::new(dead.drop_guard()) }
    }

    /// What the server said about itself.
    pub(crate) fn hello(&self) -> &HelloOk {
        &self.hello
    }

    pub(crate) fn address(&self) -> &str {
        &self.shared.address
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.shared.dead.is_cancelled()
    }

    /// One request and its answer, within `limit`, waiting for a turn included. Dropping the future
    /// gives the call up: what is not yet sent stays unsent.
    pub(crate) async fn call<R: Request>(&self, request: &R, limit: Duration) -> Outcome<(R::Reply, Bytes)> {
        self.call_with(request, Bytes::new(), limit).await
    }

    /// As [`Conn::call`], with a payload.
    pub(crate) async fn call_with<R: Request>(
        &self,
        request: &R,
        payload: Bytes,
        limit: Duration,
    ) -> Outcome<(R::Reply, Bytes)> {
        let asked = now();
        let reply = match timeout(limit, self.exchange(request, payload, asked + limit)).await {
            Ok(reply) => reply?,
            Err(_) => {
                self.nothing_heard_since(asked);
                return Err(lost(format!("no answer from {} within {} ms", self.address(), limit.as_millis())));
            }
        };
        Ok((reply.decode::<R>()?, reply.payload))
    }

    async fn exchange<R: Request>(&self, request: &R, payload: Bytes, deadline: Instant) -> Outcome<Reply> {
        let _turn = self.shared.calls.acquire().await.map_err(|_| self.gone())?;
        let request_id = self.next_id();
        let (to, answer) = oneshot::channel();
        self.register(request_id, Waiter::Once(to))?;
        let _forget = Forget { shared: &self.shared, request_id };
        let head = frame::head(request, request_id, millis(left(deadline)), payload.len());
        let outgoing = Outgoing { request_id, frames: vec![Frame { head, payload }] };
        self.queue.send(outgoing).await.map_err(|_| self.gone())?;
        answer.await.unwrap_or_else(|_| Err(lost("the connection ended")))
    }

    /// Queues a message that has no answer; it is lost when the queue is full or the connection ends.
    pub(crate) fn note<B: Body>(&self, body: &B) {
        let frame = Frame { head: frame::head(body, NOTE, 0, 0), payload: Bytes::new() };
        let _ = self.queue.try_send(Outgoing { request_id: NOTE, frames: vec![frame] });
    }

    /// A number for a message that will be given to [`Conn::submit`].
    pub(crate) fn next_id(&self) -> u64 {
        self.shared.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Queues the frames of one operation; they leave next to each other. The answer, or the end of
    /// the connection, goes to `to`. Never waits: a full queue is `Overloaded`.
    pub(crate) fn submit(
        &self,
        request_id: u64,
        frames: Vec<Frame>,
        (op, generation): (u64, u64),
        to: mpsc::UnboundedSender<StreamReply>,
    ) -> Outcome<()> {
        self.register(request_id, Waiter::Stream { to, op, generation })?;
        self.queue.try_send(Outgoing { request_id, frames }).map_err(|refused| {
            self.shared.take(request_id);
            match refused {
                mpsc::error::TrySendError::Full(_) => {
                    Fault::new(Kind::Overloaded, format!("the queue to {} is full", self.address()))
                }
                mpsc::error::TrySendError::Closed(_) => self.gone(),
            }
        })
    }

    /// Someone waited in vain since `since`. If nothing at all came meanwhile the connection is cut,
    /// so that the next call dials again instead of waiting for a peer that is not there.
    pub(crate) fn nothing_heard_since(&self, since: Instant) {
        let heard = self.shared.opened + Duration::from_millis(self.shared.heard_ms.load(Ordering::Relaxed));
        if heard < since {
            self.shared.end("nothing was heard from the server");
        }
    }

    fn register(&self, request_id: u64, waiter: Waiter) -> Outcome<()> {
        let mut waiting = lock(&self.shared.waiting);
        waiting.as_mut().ok_or_else(|| self.gone())?.insert(request_id, waiter);
        Ok(())
    }

    fn gone(&self) -> Fault {
        unreachable(format!("the connection to {} ended", self.address()))
    }
}

impl Shared {
    fn take(&self, request_id: u64) -> Option<Waiter> {
        lock(&self.waiting).as_mut()?.remove(&request_id)
    }

    fn is_wanted(&self, request_id: u64) -> bool {
        lock(&self.waiting).as_ref().is_some_and(|waiting| waiting.contains_key(&request_id))
    }

    fn end(&self, why: &str) {
        self.dead.cancel();
        let Some(waiting) = lock(&self.waiting).take() else { return };
        tracing::debug!(address = %self.address, waiting = waiting.len(), why, "connection ended");
        for waiter in waiting.into_values() {
            waiter.tell(Err(lost(format!("the connection to {} ended: {why}", self.address))));
        }
    }
}

/// Takes the waiter of a call out again, however the call ends.
struct Forget<'a> {
    shared: &'a Shared,
    request_id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shared.take(self.request_id);
    }
}

async fn run_until_dead(shared: Arc<Shared>, work: impl Future<Output = io::Result<()>>) {
    tokio::select! {
        () = shared.dead.cancelled() => shared.end("it was closed"),
        result = work => match result {
            Ok(()) => shared.end("it was closed"),
            Err(error) => shared.end(&error.to_string()),
        },
    }
}

async fn write_loop(
    shared: Arc<Shared>,
    mut queue: mpsc::Receiver<Outgoing>,
    mut output: OwnedWriteHalf,
) -> io::Result<()> {
    let mut batch = Vec::with_capacity(BATCH);
    let mut pieces = Pieces::default();
    while queue.recv_many(&mut batch, BATCH).await > 0 {
        // Given up while it was queued: dropped before it costs anybody anything.
        let is_wanted = |outgoing: &Outgoing| outgoing.request_id == NOTE || shared.is_wanted(outgoing.request_id);
        for outgoing in batch.drain(..).filter(is_wanted) {
            for frame in outgoing.frames {
                pieces.push(Bytes::from(frame.head));
                pieces.push(frame.payload);
            }
        }
        while !pieces.is_empty() {
            let written = {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let count = pieces.fill(&mut slices);
                output.write_vectored(&slices[..count]).await?
            };
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            pieces.advance(written);
        }
    }
    Ok(())
}

async fn read_loop(shared: Arc<Shared>, mut input: BufReader<OwnedReadHalf>) -> io::Result<()> {
    loop {
        let (request_id, reply) = receive(&mut input).await?;
        let heard = u64::try_from(shared.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        shared.heard_ms.store(heard, Ordering::Relaxed);
        if let Some(waiter) = shared.take(request_id) {
            waiter.tell(Ok(reply));
        }
    }
}

/// One frame. Lengths are bounded by the header's own checks before anything is allocated.
async fn receive(input: &mut BufReader<OwnedReadHalf>) -> io::Result<(u64, Reply)> {
    let mut header = [0; HEADER_LEN];
    input.read_exact(&mut header).await?;
    let header = Header::decode_exact(&header).map_err(io::Error::other)?;
    let mut fields = vec![0; header.fields_len as usize];
    input.read_exact(&mut fields).await?;
    header.check_fields(&fields).map_err(io::Error::other)?;
    let len = header.payload_len as usize;
    let mut payload = BytesMut::with_capacity(len);
    while payload.len() < len {
        let missing = len - payload.len();
        if input.read_buf(&mut (&mut payload).limit(missing)).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok((header.request_id, Reply { tag: header.tag, fields, payload: payload.freeze() }))
}

/// One frame of a handshake.
async fn greeting(input: &mut BufReader<OwnedReadHalf>) -> io::Result<(Header, Vec<u8>)> {
    let mut header = [0; HEADER_LEN];
    input.read_exact(&mut header).await?;
    let header = Header::decode_exact(&header).map_err(io::Error::other)?;
    if header.payload_len > 0 || header.fields_len > GREETING_LEN_MAX {
        return Err(io::Error::other("not an answer to hello"));
    }
    let mut fields = vec![0; header.fields_len as usize];
    input.read_exact(&mut fields).await?;
    Ok((header, fields))
}

/// Memory on its way out, in order.
#[derive(Debug, Default)]
struct Pieces(VecDeque<Bytes>);

impl Pieces {
    fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.0.push_back(piece);
        }
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn fill<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        slices.iter_mut().zip(&self.0).map(|(slice, piece)| *slice = IoSlice::new(piece)).count()
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(front) = self.0.front_mut() {
            if written < front.len() {
                bytes::Buf::advance(front, written);
                return;
            }
            written -= front.len();
            self.0.pop_front();
        }
    }
}

/// No Nagle, and a peer that vanished is noticed without traffic.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    let probes = socket2::TcpKeepalive::new().with_time(Duration::from_secs(10)).with_interval(Duration::from_secs(5));
    socket.set_tcp_keepalive(&probes)?;
    socket.set_tcp_user_timeout(Some(Duration::from_secs(15)))
}

fn no_connection(address: &str, error: &io::Error) -> Fault {
    unreachable(format!("no connection to {address}: {error}"))
}

/// A deadline for the header: zero means "for ever" there, so at least one.
pub(crate) fn millis(limit: Duration) -> u32 {
    u32::try_from(limit.as_millis()).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_leave_in_order_whatever_the_kernel_takes_at_once() {
        let whole: Vec<u8> = (0..=255).collect();
        for step in [1, 7, 64, 255, 256] {
            let mut pieces = Pieces::default();
            for part in whole.chunks(100) {
                pieces.push(Bytes::copy_from_slice(part));
                pieces.push(Bytes::new());
            }
            let mut sent = Vec::new();
            while !pieces.is_empty() {
                let taken: Vec<u8> = {
                    let mut slices = [IoSlice::new(&[]); 2];
                    let count = pieces.fill(&mut slices);
                    slices[..count].iter().flat_map(|slice| slice.iter().copied()).take(step).collect()
                };
                pieces.advance(taken.len());
                sent.extend(taken);
            }
            assert_eq!(sent, whole, "step {step}");
        }
    }
}
