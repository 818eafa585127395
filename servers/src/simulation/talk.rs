//! One side of a connection that asks and waits: how the simulated master, clients and control threads speak.

use std::net::SocketAddr;
use std::time::Duration;

use engine::runtime::Runtime;
use engine::runtime::sim::{SimRuntime, SimWriter};
use wire::hello::{Hello, HelloOk, Role};
use wire::message::tag;
use wire::read::{Data, Read};
use wire::{Body, Fault, Kind, Request, ServerId, Term, checksum};

use super::CLUSTER;
use crate::chunkserver::frames::{FrameReader, Received};

/// A connection on which one request waits for its answer before the next one is sent.
pub(crate) struct Talk {
    rt: SimRuntime,
    reader: FrameReader<SimRuntime>,
    writer: SimWriter,
    next_id: u64,
}

/// What a request gives: its answer, or a refusal; `Unknown` when nothing came.
pub(crate) type Answer<T> = Result<T, Fault>;

/// Nothing came, or not in time.
pub(crate) fn no_answer(what: &str) -> Fault {
    Fault::new(Kind::Unknown, format!("no answer: {what}"))
}

/// Dials and says hello. The reader and writer are at the first frame behind it.
pub(crate) async fn dial(
    rt: &SimRuntime,
    to: SocketAddr,
    role: Role,
    limit: Duration,
) -> Answer<(FrameReader<SimRuntime>, SimWriter, HelloOk)> {
    let dial = async {
        let lost = |error: &dyn std::fmt::Display| no_answer(&error.to_string());
        let (reader, mut writer) = rt.connect(to).await.map_err(|error| lost(&error))?;
        let hello = Hello { role, server: ServerId(0), boot: 1, cluster: CLUSTER, shard: 0, term: Term(0) };
        rt.send_all(&mut writer, wire::frame::head(&hello, 1, 0, 0), None).await.map_err(|error| lost(&error))?;
        let mut reader = FrameReader::new(rt.clone(), reader);
        let frame = reader.next().await.map_err(|error| lost(&error))?.ok_or_else(|| no_answer("closed"))?;
        Ok((reader, writer, reply::<HelloOk>(&frame)?))
    };
    within(rt, limit, dial).await.unwrap_or_else(|| Err(no_answer("dial")))
}

impl Talk {
    /// Dials and says hello.
    pub(crate) async fn dial(rt: &SimRuntime, to: SocketAddr, role: Role, limit: Duration) -> Answer<Self> {
        let (reader, writer, _) = dial(rt, to, role, limit).await?;
        Ok(Self { rt: rt.clone(), reader, writer, next_id: 1 })
    }

    /// Asks. After `Unknown` the connection is of no use any more.
    pub(crate) async fn call<Q: Request>(&mut self, request: &Q, limit: Duration) -> Answer<Q::Reply> {
        let rt = self.rt.clone();
        let call = async {
            let frame = self.exchange(request).await?;
            reply(&frame)
        };
        within(&rt, limit, call).await.unwrap_or_else(|| Err(no_answer("silence")))
    }

    /// Reads; the bytes match their checksums.
    pub(crate) async fn read(&mut self, read: &Read, limit: Duration) -> Answer<(Data, Vec<u8>)> {
        let rt = self.rt.clone();
        let call = async {
            let frame = self.exchange(read).await?;
            let data: Data = reply(&frame)?;
            let payload = self.reader.payload(frame.payload_len()).await;
            let payload = payload.map_err(|error| no_answer(&error.to_string()))?;
            assert!(checksum::matches(payload.as_ref(), &data.crcs), "a reader is never served bytes that fail");
            Ok((data, payload.as_ref().to_vec()))
        };
        within(&rt, limit, call).await.unwrap_or_else(|| Err(no_answer("silence")))
    }

    async fn exchange<Q: Request>(&mut self, request: &Q) -> Answer<Received> {
        self.next_id += 1;
        let head = wire::frame::head(request, self.next_id, 0, 0);
        self.rt.send_all(&mut self.writer, head, None).await.map_err(|error| no_answer(&error.to_string()))?;
        match self.reader.next().await {
            Ok(Some(frame)) => Ok(frame),
            Ok(None) => Err(no_answer("closed")),
            Err(error) => Err(no_answer(&error.to_string())),
        }
    }
}

/// Takes an answer apart.
pub(crate) fn reply<B: Body>(frame: &Received) -> Answer<B> {
    let opened = if frame.header.tag == tag::FAULT { Ok(Err(frame.open())) } else { frame.open().map(Ok) };
    match opened {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(Ok(fault))) => Err(fault),
        Ok(Err(Err(error))) | Err(error) => panic!("an answer that is none: {error}"),
    }
}

/// The output, unless it takes longer.
pub(crate) async fn within<T>(rt: &SimRuntime, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        out = work => Some(out),
        () = rt.sleep(limit) => None,
    }
}
