//! Connections this server makes to other chunkservers, and requests over them, one at a time.
//!
//! Chains have connections of their own, see [`super::link`]; these carry what has an answer: how
//! far the head has committed, and what a shorter replica lacks at a seal.

use std::time::Duration;

use engine::runtime::Runtime;
use wire::handshake::{Dial, DialError, Step};
use wire::hello::{Hello, HelloOk, Role};
use wire::member::Member;
use wire::message::{Malformed, tag};
use wire::{ClusterKey, Fault, Request, Term};

use super::frames::{Broken, FrameReader, Received};
use super::shard::Shard;
use crate::door;

/// A member that takes no connection for so long is not there.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);

/// A member that does not answer a request for so long is not there.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// Idle connections kept per shard.
pub(crate) const IDLE_PEERS_MAX: usize = 16;

/// Why another member gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// It refused.
    #[error("refused: {0}")]
    Refused(Fault),
    /// The connection cannot be used any more.
    #[error(transparent)]
    Broken(#[from] Broken),
}

/// A connection to one shard of another member. One request at a time; a broken one is dropped.
pub(crate) struct Peer<R: Runtime> {
    rt: R,
    reader: FrameReader<R>,
    writer: R::Writer,
    next_id: u64,
}

impl<R: Runtime> Peer<R> {
    /// Connects.
    pub(crate) async fn dial(shard: &Shard<R>, member: &Member, to_shard: u32) -> Result<Self, Broken> {
        let (reader, writer, _) = dial(shard, member, to_shard).await?;
        Ok(Self { rt: shard.rt.clone(), reader, writer, next_id: 1 })
    }

    /// Asks and waits, at most [`CALL_TIMEOUT`]. The payload of the answer comes with it, unchecked.
    /// After [`CallError::Broken`], or when the future was dropped, the connection must not be used.
    pub(crate) async fn call<Q: Request>(&mut self, request: &Q) -> Result<(Q::Reply, Option<R::Buf>), CallError> {
        let rt = self.rt.clone();
        tokio::select! {
            biased;
            answer = self.ask(request) => answer,
            () = rt.sleep(CALL_TIMEOUT) => Err(Broken::Io(std::io::ErrorKind::TimedOut.into()).into()),
        }
    }

    async fn ask<Q: Request>(&mut self, request: &Q) -> Result<(Q::Reply, Option<R::Buf>), CallError> {
        let request_id = self.next_id;
        self.next_id += 1;
        let deadline_ms = u32::try_from(CALL_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
        let head = wire::frame::head(request, request_id, deadline_ms, 0);
        self.rt.send_all(&mut self.writer, head, None).await.map_err(Broken::Io)?;
        let frame = expect_frame(&mut self.reader).await?;
        if frame.header.request_id != request_id {
            return Err(frame.malformed(Malformed::Field("request_id")).into());
        }
        if frame.header.tag == tag::FAULT {
            return Err(CallError::Refused(frame.open()?));
        }
        let reply = frame.open::<Q::Reply>()?;
        let payload = match frame.payload_len() {
            0 => None,
            len => Some(self.reader.payload(len).await?),
        };
        Ok((reply, payload))
    }
}

impl<R: Runtime> Shard<R> {
    /// What both sides of every connection to another member prove, from now on.
    pub(crate) fn use_key(&self, key: Option<ClusterKey>) {
        *self.key.borrow_mut() = key;
    }
}

/// Connects to a shard of another member, says hello, and waits for the answer; all within
/// [`DIAL_TIMEOUT`].
pub(crate) async fn dial<R: Runtime>(
    shard: &Shard<R>,
    member: &Member,
    to_shard: u32,
) -> Result<(FrameReader<R>, R::Writer, HelloOk), Broken> {
    tokio::select! {
        biased;
        out = greet(shard, member, to_shard) => out,
        () = shard.rt.sleep(DIAL_TIMEOUT) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
    }
}

async fn greet<R: Runtime>(
    shard: &Shard<R>,
    member: &Member,
    to_shard: u32,
) -> Result<(FrameReader<R>, R::Writer, HelloOk), Broken> {
    let address = shard.resolve(&member.address).await.ok_or_else(|| {
        std::io::Error::new(std::io::ErrorKind::NotFound, format!("cannot resolve {}", member.address))
    })?;
    let (reader, mut writer) = shard.rt.connect(address).await?;
    let mine = Hello {
        role: Role::Member,
        server: shard.me.server,
        boot: shard.me.boot,
        cluster: shard.me.cluster,
        shard: to_shard,
        term: Term::default(),
    };
    let mut reader = FrameReader::new(shard.rt.clone(), reader);
    let key = shard.key.borrow().clone().map(|key| (key, door::nonce()));
    let mut handshake = Dial::new(mine, member.server, &member.address, key);
    let mut bytes = handshake.hello(1, 0);
    let hello = loop {
        shard.rt.send_all(&mut writer, bytes, None).await?;
        let frame = expect_frame(&mut reader).await?;
        match handshake.heard(&frame.header, frame.fields()) {
            Ok(Step::Send(next)) => bytes = next,
            Ok(Step::Open(hello)) => break hello,
            Err(DialError::Refused(fault)) => {
                return Err(std::io::Error::other(format!("{} refused: {fault}", member.address)).into());
            }
            Err(DialError::Malformed(cause)) => return Err(frame.malformed(cause)),
        }
    };
    if hello.server != member.server {
        let text = format!("{} is server {}, not {}", member.address, hello.server, member.server);
        return Err(std::io::Error::other(text).into());
    }
    Ok((reader, writer, hello))
}

async fn expect_frame<R: Runtime>(reader: &mut FrameReader<R>) -> Result<Received, Broken> {
    reader.next().await?.ok_or_else(|| Broken::Io(std::io::ErrorKind::UnexpectedEof.into()))
}
