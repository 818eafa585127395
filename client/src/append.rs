//! Record append (GFS section 3.3): at the end, at an offset the head of the chain chooses.

use bytes::Bytes;
use tokio::sync::oneshot;
use wire::limits::APPEND_LEN_MAX;
use wire::namespace::Stat;
use wire::{Fault, InodeId, Kind, NamePath, Reason};

use crate::appender::{Appender, Cut, Hears, Landed, Refused};
use crate::{Client, Error, lock};

/// Streams tried in turn: each but the last retired just as it was used.
const STREAMS_TRIED: usize = 4;

/// Where a record append landed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// File offset of the record's first byte.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u32,
    /// Members of the chain that has it durable.
    pub replicas: u32,
}

impl Client {
    /// Record append of at most 16 MiB, exactly once: durable on every replica when this returns.
    ///
    /// The name is looked up anew each time, so that a file deleted and made again never gets records
    /// of the new one in the old. The file is not made. Many calls may run at once: they share one
    /// pipelined stream per file. Empty data changes nothing and returns the present end.
    ///
    /// Dropping the future leaves the record appended once or not at all.
    ///
    /// # Errors
    ///
    /// `Invalid` when it is too long, `NotFound`, `Conflict` for a directory, `NoSpace`; `Unknown` at
    /// the deadline when it may have happened; another kind at the deadline when it has not.
    pub async fn append(&self, path: &NamePath, data: Bytes) -> Result<Appended, Error> {
        let doing = || format!("append to {path}");
        if data.is_empty() {
            let attr = self.stat(path).await?;
            return if attr.is_dir {
                Err(is_dir(path))
            } else {
                Ok(Appended { offset: attr.len, len: 0, replicas: 0 })
            };
        }
        let attr = self.inner.query(&Stat { path: path.as_str().into() }).await?;
        if attr.is_dir {
            return Err(is_dir(path));
        }
        self.append_to(attr.inode, data).await.map_err(|error| error.context(doing()))
    }

    /// As [`Client::append`], to a file by its identity: saves the look-up for whoever holds a file
    /// open. A file that was deleted meanwhile is appended to in the trash.
    ///
    /// # Errors
    ///
    /// As [`Client::append`].
    pub async fn append_to(&self, file: InodeId, data: Bytes) -> Result<Appended, Error> {
        if data.len() > APPEND_LEN_MAX as usize {
            return Err(Error::new(Kind::Invalid, format!("{} bytes are more than {APPEND_LEN_MAX}", data.len())));
        }
        let cut = Cut::new(&data);
        for _ in 0..STREAMS_TRIED {
            let (told, answer) = oneshot::channel();
            let stream = self.stream(file);
            let refused = match stream.submit(cut.clone(), false, Hears::Caller(told)).await {
                Ok(()) => match answer.await {
                    Ok(Ok(Landed { offset, len, replicas })) => return Ok(Appended { offset, len, replicas }),
                    Ok(Err(refused)) => refused,
                    Err(_) => return Err(Error::new(Kind::Unknown, "the stream ended before it had an answer")),
                },
                Err(refused) => refused,
            };
            match refused {
                Refused::Fault(fault) if !is_strange(&fault) => return Err(fault.into()),
                Refused::Fault(_) | Refused::Retired => {}
            }
        }
        Err(Error::new(Kind::Unavailable, "earlier appends to this file fail; nothing was sent"))
    }

    /// The file's stream, a new one if it has none that takes operations.
    fn stream(&self, file: InodeId) -> Appender {
        let mut streams = lock(&self.streams);
        if let Some(stream) = streams.get(&file).filter(|stream| !stream.is_closed()) {
            return stream.clone();
        }
        let stream = Appender::records(&self.inner, file);
        streams.insert(file, stream.clone());
        stream
    }
}

/// The chain does not know the stream (that is an alarm at the master), and no attempt can have
/// succeeded: a new stream may try.
fn is_strange(fault: &Fault) -> bool {
    fault.kind != Kind::Unknown && matches!(fault.reason, Reason::LostOps | Reason::StaleOp)
}

pub(crate) fn is_dir(path: &NamePath) -> Error {
    Error::new(Kind::Conflict, format!("{path} is a directory"))
}
