//! The master's port: connections, each with many requests in flight, all bounded.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tracing::{debug, info, warn};
use wire::heartbeat::{Cluster, Heartbeat, Register};
use wire::hello::{Hello, HelloOk};
use wire::locate::{Locate, LocateChunk};
use wire::message::{Done, Malformed, tag};
use wire::namespace::{CreateFile, Delete, List, Mkdir, Rename, Stat, Trash, Undelete};
use wire::repairs::{Drain, Repairs, TuneRepairs};
use wire::report::{Finished, Report};
use wire::upload::{AbortUpload, BeginUpload, Publish, Splice};
use wire::{Body, ClusterId, Fault, Kind, ServerId};

use super::frames::{self, Frame};
use super::shared::Master;
use crate::clock;

/// Requests of one connection that are being answered; the next one is read when there is room.
const IN_FLIGHT_MAX: usize = 256;
/// A request without a deadline of its own, or with a later one.
const DEADLINE_MAX: Duration = Duration::from_secs(30);
/// A connection without a request for this long is closed: forgotten ones must not keep servers out.
const IDLE_MAX: Duration = Duration::from_secs(15 * 60);
/// Largest request: a page of reports has 1,000 lines of 80 bytes.
const FIELDS_MAX: u32 = 256 << 10;
/// A client that takes no answers for this long has gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

impl Master {
    /// Accepts until the master stops.
    pub(super) async fn accept(self: Arc<Self>, listener: TcpListener) {
        let served = Arc::new(Semaphore::new(self.config.connections_max));
        loop {
            let Some(place) = self.door.place().await else { return };
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let (master, served) = (Arc::clone(&self), Arc::clone(&served));
                    self.spawn(async move {
                        let greeted = master.greet(stream, peer, served).await;
                        drop(place);
                        if let Some((stream, _served)) = greeted {
                            master.serve(stream, peer).await;
                        }
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: accepting again at once would spin.
                    warn!(%error, "cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// The handshake. Strangers are counted apart: they must not take the places of those with the key.
    async fn greet(
        &self,
        mut stream: TcpStream,
        peer: SocketAddr,
        served: Arc<Semaphore>,
    ) -> Option<(TcpStream, OwnedSemaphorePermit)> {
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%peer, %error, "connection lost");
            return None;
        }
        let mut taken = None;
        let welcome = |hello: &Hello, _: Option<&str>| {
            let ok = self.hello(hello)?;
            let full = || Fault::new(Kind::Overloaded, "the master serves as many connections as it may: try again");
            taken = Some(served.try_acquire_owned().map_err(|_| full())?);
            Ok(ok)
        };
        self.door.greet(&mut stream, peer, ServerId::default(), welcome).await?;
        Some((stream, taken?))
    }

    async fn serve(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let (read, mut write) = stream.into_split();
        let (answers, mut queue) = mpsc::channel::<Vec<u8>>(IN_FLIGHT_MAX);
        let writer = async move {
            let mut out = vec![];
            while let Some(first) = queue.recv().await {
                out.clear();
                out.extend(first);
                // What is ready goes in one write.
                while out.len() < 64 << 10
                    && let Ok(next) = queue.try_recv()
                {
                    out.extend(next);
                }
                if !matches!(tokio::time::timeout(WRITE_TIMEOUT, write.write_all(&out)).await, Ok(Ok(()))) {
                    return;
                }
            }
        };
        let mut server = None;
        {
            let reader = self.read_requests(BufReader::new(read), answers, peer, &mut server);
            tokio::pin!(reader);
            tokio::pin!(writer);
            // The reader ends first when the peer closes: answers under way still go out.
            tokio::select! {
                () = &mut reader => writer.await,
                () = &mut writer => {}
            }
        }
        if let Some((server, boot)) = server {
            self.disconnected(server, boot);
        }
    }

    async fn read_requests(
        self: &Arc<Self>,
        mut read: impl tokio::io::AsyncRead + Unpin,
        answers: mpsc::Sender<Vec<u8>>,
        peer: SocketAddr,
        server: &mut Option<(ServerId, u64)>,
    ) {
        let places = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let frame = match tokio::time::timeout(IDLE_MAX, frames::read(&mut read, FIELDS_MAX)).await {
                Ok(Ok(Some(frame))) => frame,
                Ok(Ok(None)) | Err(_) => return,
                Ok(Err(error)) => return info!(%peer, %error, "connection closed: bad frame"),
            };
            if server.is_none() {
                *server = sender_of(&frame);
            }
            let (master, answers) = (Arc::clone(self), answers.clone());
            self.spawn(async move {
                let id = frame.header.request_id;
                match master.answer(&frame).await {
                    Ok(answer) => drop(answers.send(answer).await),
                    Err(error) => {
                        info!(%peer, tag = frame.header.tag, %error, "request refused: malformed");
                        let fault = Fault::new(Kind::Invalid, format!("malformed request: {error}"));
                        drop(answers.send(wire::frame::head(&fault, id, 0, 0)).await);
                    }
                }
                drop(place);
            });
        }
    }

    fn hello(&self, hello: &Hello) -> Result<HelloOk, Fault> {
        if hello.cluster != ClusterId::default() && hello.cluster != self.cluster() {
            let said = format!("this is cluster {}, not {}", self.cluster(), hello.cluster);
            return Err(Fault::new(Kind::Conflict, said));
        }
        Ok(HelloOk {
            server: ServerId::default(),
            boot: self.identity.boot,
            cluster: self.cluster(),
            shards: 1,
            version: env!("CARGO_PKG_VERSION").into(),
        })
    }

    /// Answers one request within its deadline.
    async fn answer(self: &Arc<Self>, frame: &Frame) -> Result<Vec<u8>, Malformed> {
        let began = clock::now();
        let deadline = match frame.header.deadline_ms {
            0 => DEADLINE_MAX,
            ms => Duration::from_millis(ms.into()).min(DEADLINE_MAX),
        };
        let id = frame.header.request_id;
        let (answer, kind) = match tokio::time::timeout(deadline, self.dispatch(frame)).await {
            Ok(answer) => answer?,
            Err(_) => {
                let fault = late(frame.header.tag);
                (wire::frame::head(&fault, id, 0, 0), Some(fault.kind))
            }
        };
        self.counters.answered(frame.header.tag, kind, clock::now().saturating_sub(began));
        Ok(answer)
    }

    async fn dispatch(self: &Arc<Self>, frame: &Frame) -> Result<(Vec<u8>, Option<Kind>), Malformed> {
        let fields = &frame.fields[..];
        let id = frame.header.request_id;
        let done = |result: Result<(), Fault>| seal_up(&result.map(|()| Done), id);
        Ok(match frame.header.tag {
            tag::STAT => seal_up(&self.stat(&Stat::decode(fields)?).await, id),
            tag::LOCATE => seal_up(&self.locate(Locate::decode(fields)?).await, id),
            tag::LOCATE_CHUNK => seal_up(&self.locate_chunk(LocateChunk::decode(fields)?).await, id),
            tag::LIST => seal_up(&self.list(&List::decode(fields)?).await, id),
            tag::TRASH => seal_up(&self.list_trash(&Trash::decode(fields)?).await, id),
            tag::MKDIR => seal_up(&self.mkdir(Mkdir::decode(fields)?).await, id),
            tag::CREATE_FILE => seal_up(&self.create_file(CreateFile::decode(fields)?).await, id),
            tag::DELETE => seal_up(&self.delete(Delete::decode(fields)?).await, id),
            tag::UNDELETE => seal_up(&self.undelete(Undelete::decode(fields)?).await, id),
            tag::RENAME => seal_up(&self.rename(Rename::decode(fields)?).await, id),
            tag::BEGIN_UPLOAD => seal_up(&self.begin_upload(BeginUpload::decode(fields)?).await, id),
            tag::PUBLISH => seal_up(&self.publish(Publish::decode(fields)?).await, id),
            tag::SPLICE => seal_up(&self.splice(Splice::decode(fields)?).await, id),
            tag::ABORT_UPLOAD => done(self.abort_upload(AbortUpload::decode(fields)?).await),
            tag::REGISTER => seal_up(&self.register(Register::decode(fields)?).await, id),
            tag::HEARTBEAT => seal_up(&self.heartbeat(&Heartbeat::decode(fields)?), id),
            tag::FINISHED => done(self.finished(Finished::decode(fields)?).await),
            tag::REPORT => {
                self.report(&Report::decode(fields)?);
                done(Ok(()))
            }
            tag::REPAIRS => seal_up(&self.repairs(Repairs::decode(fields)?).await, id),
            tag::TUNE_REPAIRS => done(self.tune_repairs(TuneRepairs::decode(fields)?).await),
            tag::DRAIN => done(self.drain(Drain::decode(fields)?).await),
            tag::CLUSTER => {
                Cluster::decode(fields)?;
                seal_up(&self.cluster_status().await, id)
            }
            other => return Err(Malformed::Tag(other)),
        })
    }

    /// A chunkserver's connection closed: no new chunks there until it is back.
    fn disconnected(&self, server: ServerId, boot: u64) {
        let mut soft = self.soft();
        if let Some(heard) = soft.servers.get_mut(&server).filter(|heard| heard.boot == boot) {
            heard.gone = true;
            info!(%server, "chunkserver's connection closed");
        }
    }
}

/// Whose control connection this is, by its heartbeats.
fn sender_of(frame: &Frame) -> Option<(ServerId, u64)> {
    if frame.header.tag != tag::HEARTBEAT {
        return None;
    }
    Heartbeat::decode(&frame.fields).ok().map(|heartbeat| (heartbeat.server, heartbeat.boot))
}

/// What a caller is told when its time is up: a change may have happened, a question may be repeated.
fn late(asked: u16) -> Fault {
    match asked {
        tag::STAT | tag::LOCATE | tag::LOCATE_CHUNK | tag::LIST | tag::TRASH | tag::CLUSTER | tag::REPAIRS => {
            Fault::new(Kind::Unavailable, "no answer in time: ask again")
        }
        _ => Fault::new(Kind::Unknown, "no answer in time, it may have happened: repeat the same request"),
    }
}

fn seal_up<B: Body>(result: &Result<B, Fault>, id: u64) -> (Vec<u8>, Option<Kind>) {
    (encode(result, id), result.as_ref().err().map(|fault| fault.kind))
}

fn encode<B: Body>(result: &Result<B, Fault>, id: u64) -> Vec<u8> {
    match result {
        Ok(body) => wire::frame::head(body, id, 0, 0),
        Err(fault) => wire::frame::head(fault, id, 0, 0),
    }
}
