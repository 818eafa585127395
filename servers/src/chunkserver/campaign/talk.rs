//! A connection of the campaign's master and clients.

use std::time::Duration;

use engine::runtime::Runtime;
use engine::runtime::sim::{SimRuntime, SimWriter};
use wire::append::{Append, Appended};
use wire::hello::{Hello, HelloOk, Role};
use wire::limits::PAYLOAD_LEN_MAX;
use wire::message::tag;
use wire::read::{Data, Read};
use wire::write::Write;
use wire::{Body, Fault, Kind, Request, ServerId, Term, checksum};

use super::super::frames::{FrameReader, Received};
use super::{CALL, CLUSTER, PATIENCE, address};

/// A connection of the master or a client.
pub(super) struct Talk {
    rt: SimRuntime,
    reader: FrameReader<SimRuntime>,
    writer: SimWriter,
    next_id: u64,
}

pub(super) type Answer<T> = Result<T, Fault>;

fn no_answer(what: &str) -> Fault {
    Fault::new(Kind::Unknown, format!("no answer: {what}"))
}

impl Talk {
    pub(super) async fn dial(rt: &SimRuntime, node: usize, role: Role) -> Answer<Self> {
        let dial = async {
            let (reader, mut writer) = rt.connect(address(node)).await?;
            let hello = Hello { role, server: ServerId(0), boot: 1, cluster: CLUSTER, shard: 0, term: Term(1) };
            rt.send_all(&mut writer, wire::frame::head(&hello, 1, 0, 0), None).await?;
            Ok::<_, std::io::Error>((reader, writer))
        };
        let (reader, writer) = within(rt, CALL, dial)
            .await
            .ok_or_else(|| no_answer("dial"))?
            .map_err(|error| no_answer(&error.to_string()))?;
        let mut talk = Self { rt: rt.clone(), reader: FrameReader::new(rt.clone(), reader), writer, next_id: 1 };
        talk.receive(CALL).await?.open::<HelloOk>().unwrap();
        Ok(talk)
    }

    async fn receive(&mut self, limit: Duration) -> Answer<Received> {
        let rt = self.rt.clone();
        match within(&rt, limit, self.reader.next()).await {
            Some(Ok(Some(frame))) => Ok(frame),
            Some(Ok(None)) => Err(no_answer("closed")),
            Some(Err(error)) => Err(no_answer(&error.to_string())),
            None => Err(no_answer("silence")),
        }
    }

    pub(super) async fn call<Q: Request>(&mut self, request: &Q, limit: Duration) -> Answer<Q::Reply> {
        self.next_id += 1;
        let head = wire::frame::head(request, self.next_id, 0, 0);
        self.rt.send_all(&mut self.writer, head, None).await.map_err(|error| no_answer(&error.to_string()))?;
        reply(&self.receive(limit).await?)
    }

    pub(super) async fn append(&mut self, append: &Append, bytes: &[u8]) -> Answer<Appended> {
        self.next_id += 1;
        for (part, piece) in (0..).zip(bytes.chunks(PAYLOAD_LEN_MAX as usize)) {
            let frame = Append { part, crcs: checksum::block_crcs(piece), ..append.clone() };
            let mut out = wire::frame::head(&frame, self.next_id, 0, piece.len());
            out.extend_from_slice(piece);
            let rt = self.rt.clone();
            let sent = within(&rt, PATIENCE, rt.send_all(&mut self.writer, out, None)).await;
            sent.ok_or_else(|| no_answer("stuck"))?.map_err(|error| no_answer(&error.to_string()))?;
        }
        reply(&self.receive(PATIENCE).await?)
    }

    pub(super) async fn write(&mut self, write: &Write, bytes: &[u8]) -> Answer<Appended> {
        self.next_id += 1;
        let mut out = wire::frame::head(write, self.next_id, 0, bytes.len());
        out.extend_from_slice(bytes);
        let rt = self.rt.clone();
        let sent = within(&rt, PATIENCE, rt.send_all(&mut self.writer, out, None)).await;
        sent.ok_or_else(|| no_answer("stuck"))?.map_err(|error| no_answer(&error.to_string()))?;
        reply(&self.receive(PATIENCE).await?)
    }

    pub(super) async fn read(&mut self, read: &Read) -> Answer<(Data, Vec<u8>)> {
        self.next_id += 1;
        let head = wire::frame::head(read, self.next_id, 0, 0);
        self.rt.send_all(&mut self.writer, head, None).await.map_err(|error| no_answer(&error.to_string()))?;
        let frame = self.receive(PATIENCE).await?;
        let data: Data = reply(&frame)?;
        let payload = self.reader.payload(frame.payload_len()).await.map_err(|error| no_answer(&error.to_string()))?;
        assert!(checksum::matches(payload.as_ref(), &data.crcs));
        Ok((data, payload.as_ref().to_vec()))
    }
}

fn reply<B: Body>(frame: &Received) -> Answer<B> {
    if frame.header.tag == tag::FAULT { Err(frame.open().unwrap()) } else { Ok(frame.open().unwrap()) }
}

async fn within<T>(rt: &SimRuntime, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        out = work => Some(out),
        () = rt.sleep(limit) => None,
    }
}
