//! The door of a server's port: every connection says HELLO, and proves the cluster key where there
//! is one, before anything is done for it.
//!
//! What a stranger can cost is bounded: so many handshakes at a time, each of a few hundred bytes and
//! a few seconds; refusals are counted, and a flood of them does not flood the log.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wire::frame::{self, HEADER_LEN, Header};
use wire::handshake::{Accept, Nonce, Proof, no_proof};
use wire::hello::{Hello, HelloOk};
use wire::message::Malformed;
use wire::{Body, ClusterKey, Fault, Kind, ServerId};

use crate::clock;

/// Who is not welcome by now is not one of ours.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Handshakes at a time; more connections wait in the kernel's queue.
const HANDSHAKES_MAX: usize = 512;

/// HELLO and PROOF have a few hundred bytes.
const FIELDS_LEN_MAX: u32 = 1024;

/// Refusals that are logged one by one in [`LOG_SPAN`]; the rest is a number in the next row.
const LOG_ROWS_MAX: u32 = 10;
const LOG_SPAN: Duration = Duration::from_secs(10);

/// The door of one port.
#[derive(Debug)]
pub(crate) struct Door {
    key: Option<ClusterKey>,
    places: Arc<Semaphore>,
    refused: [AtomicU64; Why::ALL.len()],
    log: Mutex<LogRate>,
}

/// Why a connection was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// It did not prove the cluster key.
    Unauthorized,
    /// What it sent is not a handshake.
    Malformed,
    /// It was too slow, or went away in the middle.
    Unfinished,
    /// It has the key and does not belong here: another cluster, another shard, too many connections.
    Refused,
}

impl Why {
    pub(crate) const ALL: [Self; 4] = [Self::Unauthorized, Self::Malformed, Self::Unfinished, Self::Refused];

    /// Its label in metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unauthorized => "unauthorized",
            Self::Malformed => "malformed",
            Self::Unfinished => "unfinished",
            Self::Refused => "refused",
        }
    }
}

/// A refusal, for the log.
#[derive(Debug)]
pub(crate) struct Refusal {
    why: Why,
    text: String,
}

impl Refusal {
    fn new(why: Why, text: impl ToString) -> Self {
        Self { why, text: text.to_string() }
    }

    fn unfinished(error: impl ToString) -> Self {
        Self::new(Why::Unfinished, error)
    }
}

impl From<Malformed> for Refusal {
    fn from(malformed: Malformed) -> Self {
        Self::new(Why::Malformed, malformed)
    }
}

impl Door {
    pub(crate) fn new(key: Option<ClusterKey>) -> Self {
        Self {
            key,
            places: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
            refused: Default::default(),
            log: Mutex::default(),
        }
    }

    /// Room for one more handshake; to be taken before a connection is accepted.
    pub(crate) async fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).acquire_owned().await.ok()
    }

    /// Refusals so far, by their reason.
    pub(crate) fn refused(&self) -> impl Iterator<Item = (Why, u64)> {
        Why::ALL.into_iter().zip(&self.refused).map(|(why, count)| (why, count.load(Ordering::Relaxed)))
    }

    /// Does the accepting side of the handshake as server `me` (zero: the master). `welcome` decides
    /// about a dialling side that proved the key, if there is one; it gets the address that was dialled, when
    /// that is proven. `None`: refused and told so, counted and logged; or gone before it said anything.
    pub(crate) async fn greet(
        &self,
        stream: &mut TcpStream,
        peer: SocketAddr,
        me: ServerId,
        welcome: impl FnOnce(&Hello, Option<&str>) -> Result<HelloOk, Fault>,
    ) -> Option<Hello> {
        let greeted = tokio::time::timeout(TIMEOUT, self.handshake(stream, me, welcome)).await;
        match greeted.unwrap_or_else(|_elapsed| Err(Refusal::unfinished("no handshake in time"))) {
            Ok(hello) => hello,
            Err(refusal) => {
                self.count(peer, &refusal);
                None
            }
        }
    }

    async fn handshake(
        &self,
        stream: &mut TcpStream,
        me: ServerId,
        welcome: impl FnOnce(&Hello, Option<&str>) -> Result<HelloOk, Fault>,
    ) -> Result<Option<Hello>, Refusal> {
        let Some((header, fields)) = receive(stream).await? else { return Ok(None) };
        let hello: Hello = frame::open(&header, &fields)?;
        let Some(key) = &self.key else {
            let ok = answer(stream, &header, welcome(&hello, None)).await?;
            send(stream, &ok, header.request_id).await?;
            return Ok(Some(hello));
        };
        let accept = Accept::new(hello.clone(), nonce());
        send(stream, accept.challenge(), header.request_id).await?;
        let Some((header, fields)) = receive(stream).await? else {
            return Err(Refusal::new(Why::Unauthorized, "it went away when it was asked to prove the cluster key"));
        };
        if header.tag != Proof::TAG {
            answer::<()>(stream, &header, Err(no_proof())).await?;
        }
        let proof = frame::open(&header, &fields)?;
        let proved = answer(stream, &header, accept.check(key, &proof, me)).await?;
        let ok = answer(stream, &header, welcome(&hello, Some(&proved.address))).await?;
        send(stream, &proved.welcome(key, ok), header.request_id).await?;
        Ok(Some(hello))
    }

    fn count(&self, peer: SocketAddr, refusal: &Refusal) {
        let Refusal { why, text } = refusal;
        self.refused[*why as usize].fetch_add(1, Ordering::Relaxed);
        let unlogged = self.log.lock().unwrap_or_else(PoisonError::into_inner).row(clock::now());
        if let Some(unlogged) = unlogged {
            tracing::warn!(%peer, why = why.name(), error = text, unlogged, "connection refused");
        }
    }
}

/// A new random number for one handshake.
///
/// # Panics
///
/// When the kernel gives no random bytes: without them no proof means anything.
pub(crate) fn nonce() -> Nonce {
    let mut bytes = [0; 32];
    if let Err(error) = getrandom::fill(&mut bytes) {
        panic!("the kernel gives no random bytes: {error}");
    }
    bytes
}

/// Tells the dialling side when it is refused.
async fn answer<T>(stream: &mut TcpStream, asked: &Header, outcome: Result<T, Fault>) -> Result<T, Refusal> {
    match outcome {
        Ok(good) => Ok(good),
        Err(fault) => {
            // It is refused whether it hears so or not.
            let _ = send(stream, &fault, asked.request_id).await;
            let why = if fault.kind == Kind::Unauthorized { Why::Unauthorized } else { Why::Refused };
            Err(Refusal::new(why, fault))
        }
    }
}

async fn send<B: Body>(stream: &mut TcpStream, body: &B, request_id: u64) -> Result<(), Refusal> {
    stream.write_all(&frame::head(body, request_id, 0, 0)).await.map_err(Refusal::unfinished)
}

/// Reads exactly one frame: what follows belongs to whoever serves the connection. `None`: closed before it.
async fn receive(stream: &mut TcpStream) -> Result<Option<(Header, Vec<u8>)>, Refusal> {
    let mut head = [0; HEADER_LEN];
    if stream.read(&mut head[..1]).await.map_err(Refusal::unfinished)? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut head[1..]).await.map_err(Refusal::unfinished)?;
    let header = Header::decode_exact(&head).map_err(Malformed::from)?;
    if header.fields_len > FIELDS_LEN_MAX || header.payload_len > 0 {
        let text = format!("{} bytes are too many for a handshake", header.fields_len.max(header.payload_len));
        return Err(Refusal::new(Why::Malformed, text));
    }
    let mut fields = vec![0; header.fields_len as usize];
    stream.read_exact(&mut fields).await.map_err(Refusal::unfinished)?;
    Ok(Some((header, fields)))
}

/// How many rows a flood of refusals may write.
#[derive(Debug, Default)]
struct LogRate {
    since: Duration,
    rows: u32,
    unlogged: u64,
}

impl LogRate {
    /// Whether to write a row now: how many were left out before it.
    fn row(&mut self, now: Duration) -> Option<u64> {
        if now.saturating_sub(self.since) >= LOG_SPAN {
            (self.since, self.rows) = (now, 0);
        }
        if self.rows == LOG_ROWS_MAX {
            self.unlogged += 1;
            return None;
        }
        self.rows += 1;
        Some(std::mem::take(&mut self.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_writes_ten_rows_in_ten_seconds_and_tells_how_many_it_left_out() {
        let mut log = LogRate::default();
        let second = Duration::from_secs;
        let rows = |log: &mut LogRate, now, count: usize| (0..count).filter_map(|_| log.row(now)).collect::<Vec<u64>>();
        assert_eq!(rows(&mut log, second(20), 1000), [0; 10]);
        assert_eq!(rows(&mut log, second(29), 5), [0; 0]);
        assert_eq!(rows(&mut log, second(30), 2), [995, 0]);
    }

    #[test]
    fn every_reason_has_its_own_number() {
        assert_eq!(Why::ALL.map(|why| why as usize), [0, 1, 2, 3]);
    }
}
