//! The control thread's conversation with the master: introduce, register, then a heartbeat every
//! second, and reports as they come. It is taken up again for ever, with each master in turn.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use wire::frame::{self, HEADER_LEN, Header};
use wire::handshake::{Dial, DialError, Step};
use wire::heartbeat::{Heartbeat, HeartbeatOk, Register, Registered};
use wire::hello::{Hello, HelloOk, Role};
use wire::limits::PAGE_ENTRIES_MAX;
use wire::locate::{LocateChunk, Locations};
use wire::member::Member;
use wire::message::tag;
use wire::{Body, ClusterId, ClusterKey, Fault, Request, ServerId, Term};

use super::board::Board;
use super::desk::{Desk, Key, Letter};
use super::mailbox::ToControl;
use super::status::space_of;
use crate::clock;
use crate::door;

/// How often the master hears from this server.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// A master that does not take a connection, or answer, for so long is not there.
const MASTER_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause before the next attempt; doubled up to the second figure.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// A refusal needs somebody to do something: no hurry.
const REFUSED_RETRY: Duration = Duration::from_secs(5);

/// How this server presents itself.
#[derive(Clone, Debug)]
pub(crate) struct Introduction {
    /// Masters, `host:port`.
    pub(crate) masters: Vec<String>,
    /// Where it listens.
    pub(crate) listen: SocketAddr,
    /// Where it says it is reached, if the operator said so.
    pub(crate) advertise: Option<String>,
    /// Its admin port.
    pub(crate) admin: Option<SocketAddr>,
    /// Chosen anew at every start.
    pub(crate) boot: u64,
    /// Shards.
    pub(crate) shards: u32,
    /// Failure zone.
    pub(crate) zone: String,
    /// What both sides of the connection prove.
    pub(crate) key: Option<ClusterKey>,
}

/// Who it is by its disk; all zero for a fresh one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DiskOwner {
    pub(crate) server: ServerId,
    pub(crate) cluster: ClusterId,
    pub(crate) disk: [u8; 16],
}

/// Why a conversation ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lost {
    /// The master refused this server.
    #[error("master refused: {0}")]
    Refused(Fault),
    /// The master belongs to another cluster.
    #[error("the master at {address} leads cluster {theirs}, this disk belongs to cluster {ours}")]
    OtherCluster {
        /// Where.
        address: String,
        /// Its cluster.
        theirs: ClusterId,
        /// The disk's.
        ours: ClusterId,
    },
    /// It sent something that is not an answer.
    #[error("the master's answer makes no sense: {0}")]
    Nonsense(String),
    /// The connection failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// An open connection to a master that said hello.
pub(crate) struct Conversation {
    address: String,
    local: SocketAddr,
    input: Frames,
    output: OwnedWriteHalf,
    next_id: u64,
}

impl Conversation {
    /// Connects and says hello. A master of another cluster than the disk's is refused.
    pub(crate) async fn open(address: &str, intro: &Introduction, owner: &DiskOwner) -> Result<Self, Lost> {
        let open = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let local = stream.local_addr()?;
            let (input, output) = stream.into_split();
            let input = Frames { input, ahead: BytesMut::new() };
            let mut it = Self { address: address.to_owned(), local, input, output, next_id: 1 };
            let hello = Hello {
                role: Role::Chunkserver,
                server: owner.server,
                boot: intro.boot,
                cluster: owner.cluster,
                shard: 0,
                term: Term::default(),
            };
            let key = intro.key.clone().map(|key| (key, door::nonce()));
            let HelloOk { cluster, .. } = it.greet(Dial::new(hello, ServerId::default(), address, key)).await?;
            if owner.cluster != ClusterId::default() && cluster != owner.cluster {
                return Err(Lost::OtherCluster { address: address.to_owned(), theirs: cluster, ours: owner.cluster });
            }
            Ok(it)
        };
        timeout(MASTER_TIMEOUT, open).await.unwrap_or_else(|_| Err(timed_out().into()))
    }

    async fn greet(&mut self, mut dial: Dial) -> Result<HelloOk, Lost> {
        let mut frame = dial.hello(0, u32::try_from(MASTER_TIMEOUT.as_millis()).unwrap_or(u32::MAX));
        loop {
            self.output.write_all(&frame).await?;
            let (header, fields) = self.input.next().await?;
            match dial.heard(&header, &fields) {
                Ok(Step::Send(next)) => frame = next,
                Ok(Step::Open(hello)) => return Ok(hello),
                Err(DialError::Refused(fault)) => return Err(Lost::Refused(fault)),
                Err(DialError::Malformed(malformed)) => return Err(Lost::Nonsense(malformed.to_string())),
            }
        }
    }

    /// Registers; the id is durable at the master.
    pub(crate) async fn register(&mut self, intro: &Introduction, owner: &DiskOwner) -> Result<Registered, Lost> {
        let register = Register {
            server: owner.server,
            cluster: owner.cluster,
            boot: intro.boot,
            disk: owner.disk,
            address: intro.address(self.local),
            admin: intro.admin_address(self.local),
            shards: intro.shards,
            zone: intro.zone.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
        };
        timeout(MASTER_TIMEOUT, self.call(&register)).await.unwrap_or_else(|_| Err(timed_out().into()))
    }

    async fn call<Q: Request>(&mut self, request: &Q) -> Result<Q::Reply, Lost> {
        self.send(request).await?;
        let (header, fields) = self.input.next().await?;
        decode::<Q>(&header, &fields)
    }

    async fn send<B: Body>(&mut self, body: &B) -> Result<u64, Lost> {
        let request_id = self.next_id;
        self.next_id += 1;
        let deadline_ms = u32::try_from(MASTER_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
        let head = frame::head(body, request_id, deadline_ms, 0);
        let send = timeout(MASTER_TIMEOUT, self.output.write_all(&head)).await;
        send.unwrap_or_else(|_| Err(timed_out()))?;
        Ok(request_id)
    }
}

fn decode<Q: Request>(header: &Header, fields: &[u8]) -> Result<Q::Reply, Lost> {
    let nonsense = |cause: wire::message::Malformed| Lost::Nonsense(cause.to_string());
    if header.tag == tag::FAULT {
        return Err(Lost::Refused(frame::open(header, fields).map_err(nonsense)?));
    }
    frame::open(header, fields).map_err(nonsense)
}

fn timed_out() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in time")
}

/// Frames of the master, none of which has a payload. Dropping [`Frames::next`] loses nothing.
struct Frames {
    input: OwnedReadHalf,
    ahead: BytesMut,
}

impl Frames {
    async fn next(&mut self) -> Result<(Header, Vec<u8>), Lost> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(frame);
            }
            if self.input.read_buf(&mut self.ahead).await? == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    fn take(&mut self) -> Result<Option<(Header, Vec<u8>)>, Lost> {
        let Some(header) = Header::decode(&self.ahead) else { return Ok(None) };
        let header = header.map_err(|error| Lost::Nonsense(error.to_string()))?;
        let whole = HEADER_LEN + header.fields_len as usize;
        if header.payload_len > 0 {
            return Err(Lost::Nonsense("a payload".into()));
        }
        if self.ahead.len() < whole {
            self.ahead.reserve(whole - self.ahead.len());
            return Ok(None);
        }
        let fields = self.ahead[HEADER_LEN..whole].to_vec();
        self.ahead.advance(whole);
        Ok(Some((header, fields)))
    }
}

impl Introduction {
    /// Where this server is reached: as the operator said, else where it listens, else by the address
    /// this machine has towards the master.
    fn address(&self, local: SocketAddr) -> String {
        let port = self.listen.port();
        match &self.advertise {
            Some(host) if has_port(host) => host.clone(),
            Some(host) => format!("{host}:{port}"),
            None => seen_from_outside(self.listen, local).to_string(),
        }
    }

    fn admin_address(&self, local: SocketAddr) -> String {
        let Some(admin) = self.admin else { return String::new() };
        match &self.advertise {
            Some(host) if admin.ip().is_unspecified() => {
                let host = if has_port(host) { host.rsplit_once(':').map_or("", |(host, _)| host) } else { host };
                format!("{host}:{}", admin.port())
            }
            _ => seen_from_outside(admin, local).to_string(),
        }
    }
}

fn has_port(host: &str) -> bool {
    host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok())
}

fn seen_from_outside(bound: SocketAddr, local: SocketAddr) -> SocketAddr {
    if bound.ip().is_unspecified() { SocketAddr::new(local.ip(), bound.port()) } else { bound }
}

/// Registers a server with a fresh disk: tries every master in turn until one takes it in.
///
/// Returns only a refusal that no waiting will change.
pub(crate) async fn introduce(intro: &Introduction) -> Result<Registered, Fault> {
    let mut pause = RETRY.0;
    for address in intro.masters.iter().cycle() {
        let owner = DiskOwner::default();
        let outcome = async { Conversation::open(address, intro, &owner).await?.register(intro, &owner).await };
        match outcome.await {
            Ok(registered) => return Ok(registered),
            Err(Lost::Refused(fault)) if is_final(&fault) => return Err(fault),
            Err(error) => tracing::warn!(address, %error, "waiting for a master to register this fresh disk"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(RETRY.1);
    }
    Err(Fault::new(wire::Kind::Invalid, "no master is configured"))
}

fn is_final(fault: &Fault) -> bool {
    use wire::Kind;
    matches!(fault.kind, Kind::Invalid | Kind::Conflict | Kind::Exists | Kind::Unauthorized | Kind::Precondition)
}

/// Talks to the masters for ever.
pub(crate) async fn converse(
    intro: Introduction,
    owner: DiskOwner,
    board: Arc<Board>,
    mut from_shards: mpsc::Receiver<ToControl>,
) {
    let mut desk = Desk::default();
    let mut pause = RETRY.0;
    for address in intro.masters.iter().cycle() {
        let lost = match open(address, &intro, &owner).await {
            Ok(conversation) => {
                tracing::info!(address, "registered with the master");
                pause = RETRY.0;
                board.set_address(intro.address(conversation.local));
                board.set_registered(true);
                let lost = talk(conversation, &board, &mut desk, &mut from_shards).await;
                board.set_registered(false);
                desk.disconnected();
                lost
            }
            Err(lost) => lost,
        };
        let wait = match &lost {
            Lost::OtherCluster { .. } => REFUSED_RETRY,
            Lost::Refused(fault) if is_final(fault) => REFUSED_RETRY,
            _ => pause,
        };
        tracing::warn!(address, error = %lost, "no master hears this server");
        pause = (pause * 2).min(RETRY.1);
        let until = sleep(wait);
        tokio::pin!(until);
        loop {
            tokio::select! {
                () = &mut until => break,
                message = from_shards.recv() => match message {
                    Some(message) => take(message, &mut desk),
                    None => return,
                },
            }
        }
    }
}

async fn open(address: &str, intro: &Introduction, owner: &DiskOwner) -> Result<Conversation, Lost> {
    let mut conversation = Conversation::open(address, intro, owner).await?;
    let registered = conversation.register(intro, owner).await?;
    if registered.server != owner.server || registered.cluster != owner.cluster {
        return Err(Lost::Nonsense(format!("registered as server {}, not {}", registered.server, owner.server)));
    }
    Ok(conversation)
}

/// What an answer belongs to.
enum Asked {
    Heartbeat,
    Letter(Key),
    Locate(oneshot::Sender<Vec<Member>>),
}

async fn talk(
    mut it: Conversation,
    board: &Board,
    desk: &mut Desk,
    from_shards: &mut mpsc::Receiver<ToControl>,
) -> Lost {
    let mut asked: BTreeMap<u64, (Asked, Duration)> = BTreeMap::new();
    let mut beat = interval(HEARTBEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_beating = false;
    loop {
        let outcome = tokio::select! {
            answer = it.input.next() => match answer {
                Ok((header, fields)) => match asked.remove(&header.request_id) {
                    Some((Asked::Locate(reply), _)) => located(&header, &fields, reply).map(|()| false),
                    Some((what, _)) => {
                        is_beating &= !matches!(what, Asked::Heartbeat);
                        hear(&what, &header, &fields, desk)
                    }
                    None => Err(Lost::Nonsense(format!("an answer to request {}", header.request_id))),
                },
                Err(lost) => Err(lost),
            },
            _ = beat.tick() => Ok(true),
            message = from_shards.recv() => match message {
                Some(ToControl::Locate { chunk, reply }) => match it.send(&LocateChunk { chunk }).await {
                    Ok(request_id) => {
                        asked.insert(request_id, (Asked::Locate(reply), clock::now()));
                        Ok(false)
                    }
                    Err(lost) => return lost,
                },
                Some(message) => {
                    take(message, desk);
                    Ok(false)
                }
                None => return timed_out().into(),
            },
        };
        let is_due = match outcome {
            Ok(is_due) => is_due,
            Err(lost) => return lost,
        };
        let now = clock::now();
        if asked.values().any(|(_, since)| now.saturating_sub(*since) > MASTER_TIMEOUT) {
            tracing::debug!(address = it.address, "master does not answer");
            return timed_out().into();
        }
        while let Some((key, letter)) = desk.next_letter(now) {
            let sent = match &letter {
                Letter::Report(report) => it.send(report).await,
                Letter::Finished(finished) => it.send(finished).await,
            };
            match sent {
                Ok(request_id) => drop(asked.insert(request_id, (Asked::Letter(key), now))),
                Err(lost) => return lost,
            }
        }
        if (is_due || desk.is_urgent()) && !is_beating {
            match it.send(&heartbeat(board, desk).await).await {
                Ok(request_id) => drop(asked.insert(request_id, (Asked::Heartbeat, now))),
                Err(lost) => return lost,
            }
            is_beating = true;
        }
    }
}

/// Takes an answer in. `true`: a heartbeat is due at once.
fn hear(what: &Asked, header: &Header, fields: &[u8], desk: &mut Desk) -> Result<bool, Lost> {
    match what {
        Asked::Heartbeat => {
            let HeartbeatOk { want_inventory, .. } = decode::<Heartbeat>(header, fields)?;
            desk.heard();
            if want_inventory {
                desk.begin_inventory();
            }
            Ok(false)
        }
        Asked::Letter(key) => {
            let refusal = match decode::<wire::report::Report>(header, fields) {
                Ok(wire::message::Done) => None,
                Err(Lost::Refused(fault)) => {
                    tracing::debug!(?key, %fault, "master refused a report");
                    Some(fault.kind)
                }
                Err(lost) => return Err(lost),
            };
            desk.answered(*key, refusal, clock::now());
            Ok(false)
        }
        Asked::Locate(_) => Ok(false),
    }
}

/// Who holds a chunk; nobody when the master refuses to say.
fn located(header: &Header, fields: &[u8], reply: oneshot::Sender<Vec<Member>>) -> Result<(), Lost> {
    let members = match decode::<LocateChunk>(header, fields) {
        Ok(Locations { items, .. }) => items.into_iter().flat_map(|item| item.members).collect(),
        Err(Lost::Refused(fault)) => {
            tracing::debug!(%fault, "master does not say who holds a chunk");
            Vec::new()
        }
        Err(lost) => return Err(lost),
    };
    // The shard may have stopped meanwhile.
    let _ = reply.send(members);
    Ok(())
}

async fn heartbeat(board: &Board, desk: &mut Desk) -> Heartbeat {
    let limit = PAGE_ENTRIES_MAX as usize;
    desk.changed(board.reports(None, limit).await.into_iter().flatten().flatten());
    let mut page = None;
    if let Some(after) = desk.inventory_after() {
        // An inventory that leaves a shard out would make its replicas look lost: the page waits.
        let found: Option<Vec<_>> = board.reports(Some(after), limit).await.into_iter().collect();
        page = found.map(|found| desk.page(found.into_iter().flatten().collect()));
    }
    let (chunks, inventory) = match page {
        Some((chunks, place)) => (chunks, Some(place)),
        None => (desk.changes(), None),
    };
    let statuses = board.statuses().await;
    Heartbeat {
        server: board.server(),
        boot: board.boot,
        space: space_of(board.disks(), &statuses),
        chunk_count: statuses.iter().flatten().map(|status| status.chunk_count).sum(),
        chunks,
        inventory,
    }
}

fn take(message: ToControl, desk: &mut Desk) {
    match message {
        ToControl::Report(report) => desk.post(Letter::Report(report)),
        ToControl::Finished(finished) => desk.post(Letter::Finished(finished)),
        // No master is there: the shard tries again later.
        ToControl::Locate { reply, .. } => drop(reply),
        ToControl::Resolve { address, reply } => {
            tokio::spawn(async move {
                let found = tokio::net::lookup_host(address).await.ok().and_then(|mut found| found.next());
                // The shard may have given up meanwhile.
                let _ = reply.send(found);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intro(listen: &str, advertise: Option<&str>) -> Introduction {
        Introduction {
            masters: Vec::new(),
            listen: listen.parse().unwrap(),
            advertise: advertise.map(str::to_owned),
            admin: Some("0.0.0.0:9090".parse().unwrap()),
            boot: 1,
            shards: 1,
            zone: String::new(),
            key: None,
        }
    }

    #[test]
    fn a_server_says_where_it_is_reached_and_never_the_unspecified_address() {
        let local = "10.0.0.7:40000".parse().unwrap();
        let cases = [
            ("127.0.0.1:7001", None, "127.0.0.1:7001", "10.0.0.7:9090"),
            ("0.0.0.0:7001", None, "10.0.0.7:7001", "10.0.0.7:9090"),
            ("0.0.0.0:7001", Some("chunk1"), "chunk1:7001", "chunk1:9090"),
            ("0.0.0.0:7001", Some("chunk1:8001"), "chunk1:8001", "chunk1:9090"),
        ];
        for (listen, advertise, address, admin) in cases {
            let intro = intro(listen, advertise);
            assert_eq!(intro.address(local), address);
            assert_eq!(intro.admin_address(local), admin);
        }
    }
}
