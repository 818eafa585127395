//! The network of a simulation: ordered streams of bytes with delay, reset and partition.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use super::executor::{Core, NodeId};

/// Bytes on their way in one direction before a sender waits.
const WINDOW: usize = 256 << 10;

/// A dial into a partition gives up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Default)]
pub(super) struct Net {
    listeners: BTreeMap<SocketAddr, Rc<RefCell<Backlog>>>,
    /// Directions in which nothing arrives.
    cut: BTreeSet<(NodeId, NodeId)>,
    pipes: Vec<Weak<RefCell<Pipe>>>,
    delay: Delay,
    connections: u64,
}

struct Delay {
    least: Duration,
    most: Duration,
}

impl Default for Delay {
    fn default() -> Self {
        Self { least: Duration::from_micros(50), most: Duration::from_micros(500) }
    }
}

struct Backlog {
    node: NodeId,
    waiting: VecDeque<(SimReader, SimWriter)>,
    waker: Option<Waker>,
}

/// One direction of a connection.
struct Pipe {
    number: u64,
    from: NodeId,
    to: NodeId,
    /// Sent, and not to be read yet.
    on_the_way: usize,
    /// Arrived while the direction was cut: arrives when it heals, as TCP would send it again.
    held: VecDeque<Segment>,
    readable: VecDeque<u8>,
    ended: bool,
    reset: bool,
    last_arrival: Duration,
    reader: Option<Waker>,
    writer: Option<Waker>,
    back: Weak<RefCell<Pipe>>,
}

enum Segment {
    Data(Vec<u8>),
    End,
    Reset,
}

/// One end of a connection; the connection closes when both its halves are dropped.
struct End {
    core: Weak<Core>,
    incoming: Rc<RefCell<Pipe>>,
    outgoing: Rc<RefCell<Pipe>>,
}

/// Receiving half.
pub struct SimReader {
    end: Rc<End>,
    abandoned: bool,
}

/// Sending half.
pub struct SimWriter {
    end: Rc<End>,
    abandoned: bool,
}

/// Takes connections; dropping it refuses further ones.
pub struct SimListener {
    core: Rc<Core>,
    address: SocketAddr,
    backlog: Rc<RefCell<Backlog>>,
}

impl SimListener {
    /// The next connection.
    pub async fn accept(&self) -> (SimReader, SimWriter) {
        poll_fn(|context| {
            let mut backlog = self.backlog.borrow_mut();
            match backlog.waiting.pop_front() {
                Some(connection) => Poll::Ready(connection),
                None => {
                    backlog.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        let mut net = self.core.net.borrow_mut();
        if net.listeners.get(&self.address).is_some_and(|backlog| Rc::ptr_eq(backlog, &self.backlog)) {
            net.listeners.remove(&self.address);
        }
    }
}

pub(super) fn listen(core: &Rc<Core>, node: NodeId, address: SocketAddr) -> io::Result<SimListener> {
    let mut net = core.net.borrow_mut();
    if net.listeners.contains_key(&address) {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    let backlog = Rc::new(RefCell::new(Backlog { node, waiting: VecDeque::new(), waker: None }));
    net.listeners.insert(address, Rc::clone(&backlog));
    drop(net);
    Ok(SimListener { core: Rc::clone(core), address, backlog })
}

pub(super) async fn connect(
    core: &Rc<Core>,
    node: NodeId,
    address: SocketAddr,
    sleep: impl AsyncFn(Duration),
) -> io::Result<(SimReader, SimWriter)> {
    let delay = delay(core);
    sleep(delay * 2).await;
    let backlog = core.net.borrow().listeners.get(&address).cloned();
    let Some(backlog) = backlog else { return Err(io::ErrorKind::ConnectionRefused.into()) };
    let peer = backlog.borrow().node;
    let cut = {
        let net = core.net.borrow();
        net.cut.contains(&(node, peer)) || net.cut.contains(&(peer, node))
    };
    if cut {
        sleep(CONNECT_TIMEOUT).await;
        return Err(io::ErrorKind::TimedOut.into());
    }
    let (there, back) = pair(core, node, peer);
    let mine = halves(core, &back, &there);
    let waker = {
        let mut backlog = backlog.borrow_mut();
        backlog.waiting.push_back(halves(core, &there, &back));
        backlog.waker.take()
    };
    if let Some(waker) = waker {
        waker.wake();
    }
    core.trace("connect", node, &[u64::from(peer.0), u64::from(address.port())]);
    Ok(mine)
}

fn pair(core: &Rc<Core>, from: NodeId, to: NodeId) -> (Rc<RefCell<Pipe>>, Rc<RefCell<Pipe>>) {
    let mut net = core.net.borrow_mut();
    net.connections += 1;
    let number = net.connections;
    let make = |number, from, to| {
        Rc::new(RefCell::new(Pipe {
            number,
            from,
            to,
            on_the_way: 0,
            held: VecDeque::new(),
            readable: VecDeque::new(),
            ended: false,
            reset: false,
            last_arrival: core.now.get(),
            reader: None,
            writer: None,
            back: Weak::new(),
        }))
    };
    let (there, back) = (make(number * 2, from, to), make(number * 2 + 1, to, from));
    there.borrow_mut().back = Rc::downgrade(&back);
    back.borrow_mut().back = Rc::downgrade(&there);
    net.pipes.retain(|pipe| pipe.strong_count() > 0);
    net.pipes.extend([Rc::downgrade(&there), Rc::downgrade(&back)]);
    (there, back)
}

fn halves(core: &Rc<Core>, incoming: &Rc<RefCell<Pipe>>, outgoing: &Rc<RefCell<Pipe>>) -> (SimReader, SimWriter) {
    let end = Rc::new(End { core: Rc::downgrade(core), incoming: Rc::clone(incoming), outgoing: Rc::clone(outgoing) });
    (SimReader { end: Rc::clone(&end), abandoned: false }, SimWriter { end, abandoned: false })
}

impl Drop for End {
    fn drop(&mut self) {
        if let Some(core) = self.core.upgrade() {
            send(&core, &self.outgoing, Segment::End);
            // Nobody reads any more: the peer's next bytes are answered with a reset.
            self.incoming.borrow_mut().reset = true;
            wake(&self.incoming);
        }
    }
}

impl SimReader {
    /// Takes what has arrived: 1 to `max` bytes, 0 at the end. How much of it at once is the seed's.
    pub(super) async fn recv(&mut self, max: usize) -> io::Result<Vec<u8>> {
        if std::mem::replace(&mut self.abandoned, true) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let end = Rc::clone(&self.end);
        let result = poll_fn(|context| {
            let Some(core) = end.core.upgrade() else { return Poll::Pending };
            let mut pipe = end.incoming.borrow_mut();
            if !pipe.readable.is_empty() {
                let most = pipe.readable.len().min(max);
                let mut rng = core.net_rng.borrow_mut();
                let cut = if rng.once_in(4) { 1 + rng.below(most as u64) } else { most as u64 };
                let count = usize::try_from(cut).unwrap_or(most);
                let bytes = pipe.readable.drain(..count).collect();
                if let Some(writer) = pipe.writer.take() {
                    writer.wake();
                }
                return Poll::Ready(Ok(bytes));
            }
            if pipe.reset {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            if pipe.ended {
                return Poll::Ready(Ok(Vec::new()));
            }
            pipe.reader = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
        self.abandoned = false;
        result
    }
}

impl SimWriter {
    pub(super) async fn send(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        if std::mem::replace(&mut self.abandoned, true) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        for chunk in parts.iter().flat_map(|part| part.chunks(WINDOW / 4)) {
            let end = &self.end;
            poll_fn(|context| {
                let mut pipe = end.outgoing.borrow_mut();
                if pipe.reset {
                    return Poll::Ready(Err(io::Error::from(io::ErrorKind::BrokenPipe)));
                }
                if pipe.on_the_way + pipe.readable.len() >= WINDOW {
                    pipe.writer = Some(context.waker().clone());
                    return Poll::Pending;
                }
                Poll::Ready(Ok(()))
            })
            .await?;
            if let Some(core) = end.core.upgrade() {
                send(&core, &end.outgoing, Segment::Data(chunk.to_vec()));
            }
        }
        self.abandoned = false;
        Ok(())
    }
}

/// Sends in order: nothing overtakes within a direction.
fn send(core: &Rc<Core>, pipe: &Rc<RefCell<Pipe>>, segment: Segment) {
    let at = {
        let delay = delay(core);
        let mut pipe = pipe.borrow_mut();
        if let Segment::Data(bytes) = &segment {
            pipe.on_the_way += bytes.len();
        }
        pipe.last_arrival = (core.now.get() + delay).max(pipe.last_arrival + Duration::from_nanos(1));
        pipe.last_arrival
    };
    let (weak, pipe) = (Rc::downgrade(core), Rc::clone(pipe));
    core.act_at(at, move || {
        if let Some(core) = weak.upgrade() {
            arrive(&core, &pipe, segment);
        }
    });
}

fn arrive(core: &Rc<Core>, pipe: &Rc<RefCell<Pipe>>, segment: Segment) {
    let mut this = pipe.borrow_mut();
    if !this.held.is_empty() || core.net.borrow().cut.contains(&(this.from, this.to)) {
        this.held.push_back(segment);
        return;
    }
    let (number, to) = (this.number, this.to);
    match segment {
        Segment::Data(bytes) => {
            core.trace("arrived data", to, &[number, bytes.len() as u64]);
            this.on_the_way -= bytes.len();
            if !this.reset {
                this.readable.extend(bytes);
            }
        }
        Segment::End => {
            core.trace("arrived end", to, &[number]);
            this.ended = true;
        }
        Segment::Reset => {
            core.trace("arrived reset", to, &[number]);
            this.reset = true;
            this.readable.clear();
            if let Some(back) = this.back.upgrade() {
                back.borrow_mut().reset = true;
                wake(&back);
            }
        }
    }
    drop(this);
    wake(pipe);
}

fn wake(pipe: &Rc<RefCell<Pipe>>) {
    let (reader, writer) = {
        let mut pipe = pipe.borrow_mut();
        (pipe.reader.take(), pipe.writer.take())
    };
    for waker in [reader, writer].into_iter().flatten() {
        waker.wake();
    }
}

fn delay(core: &Core) -> Duration {
    let net = core.net.borrow();
    let range = u64::try_from((net.delay.most - net.delay.least).as_nanos()).unwrap_or(u64::MAX);
    net.delay.least + Duration::from_nanos(core.net_rng.borrow_mut().below(range.saturating_add(1)))
}

/// Delay of every segment from now on, one way.
pub(super) fn set_delay(core: &Core, least: Duration, most: Duration) {
    assert!(least <= most, "the least delay is at most the most");
    core.net.borrow_mut().delay = Delay { least, most };
}

/// Nothing sent from one node reaches the other until [`heal`]; connections stay, as with TCP.
pub(super) fn cut(core: &Core, from: NodeId, to: NodeId) {
    core.net.borrow_mut().cut.insert((from, to));
}

/// One direction works again; what was held arrives.
pub(super) fn mend(core: &Rc<Core>, from: NodeId, to: NodeId) {
    core.net.borrow_mut().cut.remove(&(from, to));
    release(core, |pipe| (pipe.from, pipe.to) == (from, to));
}

/// Every direction works again; what was held arrives.
pub(super) fn heal(core: &Rc<Core>) {
    core.net.borrow_mut().cut.clear();
    release(core, |_| true);
}

fn release(core: &Rc<Core>, of: impl Fn(&Pipe) -> bool) {
    let pipes = core.net.borrow().pipes.clone();
    for pipe in pipes.iter().filter_map(Weak::upgrade).filter(|pipe| of(&pipe.borrow())) {
        let held = std::mem::take(&mut pipe.borrow_mut().held);
        for segment in held {
            if let Segment::Data(bytes) = &segment {
                pipe.borrow_mut().on_the_way -= bytes.len();
            }
            send(core, &pipe, segment);
        }
    }
}

/// Every connection between the two nodes is reset, seen by both after a delay.
pub(super) fn reset(core: &Rc<Core>, a: NodeId, b: NodeId) {
    reset_where(core, |from, to| (from, to) == (a, b) || (from, to) == (b, a));
}

/// A process is about to die: its listeners are gone. Its peers see resets, as after unread bytes, or,
/// by the seed, just the ends that closing its sockets will send.
pub(super) fn crash(core: &Rc<Core>, node: NodeId) {
    core.net.borrow_mut().listeners.retain(|_, backlog| backlog.borrow().node != node);
    if core.net_rng.borrow_mut().once_in(2) {
        reset_where(core, |from, _| from == node);
    }
}

fn reset_where(core: &Rc<Core>, of: impl Fn(NodeId, NodeId) -> bool) {
    let pipes = core.net.borrow().pipes.clone();
    for pipe in pipes.iter().filter_map(Weak::upgrade) {
        let (from, to) = (pipe.borrow().from, pipe.borrow().to);
        if of(from, to) {
            send(core, &pipe, Segment::Reset);
        }
    }
}
