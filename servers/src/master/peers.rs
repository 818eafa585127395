//! Calls to chunkservers: one connection per server and shard, kept, with many calls in flight.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};
use wire::handshake::{Dial, DialError, Step};
use wire::hello::{Hello, Role};
use wire::limits::CONTROL_LEN_MAX;
use wire::member::Member;
use wire::{Body, ChunkHandle, ClusterId, ClusterKey, Fault, Request, ServerId, Term};

use super::frames::{self, Frame};
use crate::door;

/// Dialling and HELLO: a server that is there answers in a fraction of it.
const DIAL_TIMEOUT: Duration = Duration::from_secs(1);
/// Calls waiting to be written on one connection.
const QUEUE_MAX: usize = 256;

/// Why a call gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The server refused.
    #[error("{0}")]
    Refused(Fault),
    /// The server cannot be reached, or the connection broke: the outcome is unknown.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// No answer in time: the outcome is unknown.
    #[error("no answer in time")]
    Late,
}

/// Who the master is to the servers it dials.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    pub(super) boot: u64,
    pub(super) cluster: ClusterId,
    pub(super) term: Term,
}

/// All connections to chunkservers.
#[derive(Debug)]
pub(super) struct Peers {
    identity: Identity,
    key: Option<ClusterKey>,
    links: Mutex<HashMap<(String, u32), Arc<Link>>>,
}

/// The place of one connection, whether it is up or not.
#[derive(Debug, Default)]
struct Link {
    live: tokio::sync::Mutex<Option<Arc<Live>>>,
}

type Pending = Mutex<HashMap<u64, oneshot::Sender<Frame>>>;

/// A connection that is up.
#[derive(Debug)]
struct Live {
    server: ServerId,
    out: mpsc::Sender<Vec<u8>>,
    pending: Arc<Pending>,
    closed: Arc<AtomicBool>,
    next_id: AtomicU64,
    _end: DropGuard,
}

impl Peers {
    pub(super) fn new(identity: Identity, key: Option<ClusterKey>) -> Self {
        Self { identity, key, links: Mutex::default() }
    }

    /// Asks `member`'s shard of `chunk`. Dropping the future forgets the answer, nothing else.
    pub(super) async fn call<R: Request>(
        &self,
        member: &Member,
        chunk: ChunkHandle,
        request: &R,
        deadline: Duration,
    ) -> Result<R::Reply, CallError> {
        let call = self.call_without_limit(member, chunk, request, deadline);
        tokio::time::timeout(deadline, call).await.unwrap_or(Err(CallError::Late))
    }

    async fn call_without_limit<R: Request>(
        &self,
        member: &Member,
        chunk: ChunkHandle,
        request: &R,
        deadline: Duration,
    ) -> Result<R::Reply, CallError> {
        let shard = chunk.shard(member.shards.max(1));
        let link = {
            let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(links.entry((member.address.clone(), shard)).or_default())
        };
        let live = self.live(&link, member, shard).await?;
        let id = live.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        live.pending.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        let _forget = Forget { pending: &live.pending, id };
        let deadline_ms = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX);
        let broke = || CallError::Unreachable("the connection broke".into());
        live.out.send(wire::frame::head(request, id, deadline_ms, 0)).await.map_err(|_| broke())?;
        // The reader may have ended before this call was in its list.
        if live.closed.load(Ordering::Acquire) {
            return Err(broke());
        }
        let frame = answer.await.map_err(|_| broke())?;
        decode::<R::Reply>(&frame)
    }

    /// The connection, dialled when there is none.
    async fn live(&self, link: &Link, member: &Member, shard: u32) -> Result<Arc<Live>, CallError> {
        let mut slot = link.live.lock().await;
        if let Some(live) =
            slot.as_ref().filter(|live| !live.closed.load(Ordering::Acquire) && live.server == member.server)
        {
            return Ok(Arc::clone(live));
        }
        *slot = None;
        let dialled = tokio::time::timeout(DIAL_TIMEOUT, self.dial(member, shard)).await;
        let live = Arc::new(dialled.unwrap_or(Err(CallError::Late))?);
        *slot = Some(Arc::clone(&live));
        Ok(live)
    }

    async fn dial(&self, member: &Member, shard: u32) -> Result<Live, CallError> {
        let unreachable = |error: &dyn std::fmt::Display| CallError::Unreachable(error.to_string());
        let stream = TcpStream::connect(&member.address).await.map_err(|error| unreachable(&error))?;
        stream.set_nodelay(true).map_err(|error| unreachable(&error))?;
        let (read, mut write) = stream.into_split();
        let mut read = BufReader::new(read);
        let Identity { boot, cluster, term } = self.identity;
        let hello = Hello { role: Role::Master, server: ServerId::default(), boot, cluster, shard, term };
        let key = self.key.clone().map(|key| (key, door::nonce()));
        let mut handshake = Dial::new(hello, member.server, &member.address, key);
        let mut bytes = handshake.hello(0, 0);
        let hello = loop {
            write.write_all(&bytes).await.map_err(|error| unreachable(&error))?;
            let frame = frames::read(&mut read, CONTROL_LEN_MAX).await.map_err(|error| unreachable(&error))?;
            let frame = frame.ok_or_else(|| unreachable(&"closed instead of saying hello"))?;
            match handshake.heard(&frame.header, &frame.fields) {
                Ok(Step::Send(next)) => bytes = next,
                Ok(Step::Open(hello)) => break hello,
                Err(DialError::Refused(fault)) => return Err(CallError::Refused(fault)),
                Err(DialError::Malformed(malformed)) => return Err(unreachable(&malformed)),
            }
        };
        if hello.server != member.server {
            let said = format!("server {} answers at the address of server {}", hello.server, member.server);
            return Err(CallError::Unreachable(said));
        }
        Ok(Live::start(hello.server, read, write))
    }
}

impl Live {
    fn start(server: ServerId, mut read: BufReader<OwnedReadHalf>, mut write: OwnedWriteHalf) -> Self {
        let (out, mut queue) = mpsc::channel::<Vec<u8>>(QUEUE_MAX);
        let pending = Arc::new(Pending::default());
        let closed = Arc::new(AtomicBool::new(false));
        let end = CancellationToken::new();
        let over = end.clone();
        tokio::spawn(async move {
            while let Some(bytes) = queue.recv().await {
                if write.write_all(&bytes).await.is_err() {
                    over.cancel();
                    return;
                }
            }
        });
        let (answers, gone, over) = (Arc::clone(&pending), Arc::clone(&closed), end.clone());
        tokio::spawn(async move {
            let reading = async {
                while let Ok(Some(frame)) = frames::read(&mut read, CONTROL_LEN_MAX).await {
                    let waiting =
                        answers.lock().unwrap_or_else(PoisonError::into_inner).remove(&frame.header.request_id);
                    // An answer nobody waits for any more came late.
                    if let Some(waiting) = waiting {
                        drop(waiting.send(frame));
                    }
                }
            };
            over.run_until_cancelled(reading).await;
            gone.store(true, Ordering::Release);
            answers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        });
        Self { server, out, pending, closed, next_id: AtomicU64::new(1), _end: end.drop_guard() }
    }
}

/// Takes a call off the list, however it ends.
struct Forget<'a> {
    pending: &'a Pending,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

fn decode<B: Body>(frame: &Frame) -> Result<B, CallError> {
    let malformed = |error: wire::message::Malformed| CallError::Unreachable(error.to_string());
    match frame.header.tag {
        tag if tag == B::TAG => B::decode(&frame.fields).map_err(malformed),
        Fault::TAG => Err(CallError::Refused(Fault::decode(&frame.fields).map_err(malformed)?)),
        tag => Err(CallError::Unreachable(format!("it answered with message {tag}"))),
    }
}
