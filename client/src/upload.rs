//! Uploads: bytes go to a file without a name and become visible in one step.
//!
//! One stream of 1 MiB operations fills chunks exactly. The newest full operation is held back until
//! more bytes come, so that the final one can say that nothing follows and its chunk is sealed by the
//! same flush.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use wire::limits::PAYLOAD_LEN_MAX;
use wire::locate::{Intent, Position};
use wire::namespace::Attr;
use wire::upload::{AbortUpload, BeginUpload, Precondition, Publish};
use wire::{InodeId, Kind, NamePath};

use crate::appender::{Appender, Cut, Hears, Progress};
use crate::client::Inner;
use crate::clock::now;
use crate::locations::has_end;
use crate::retry::pause;
use crate::stream::Settings;
use crate::{Client, Error};

/// Bytes of one operation.
const OP_LEN: usize = PAYLOAD_LEN_MAX as usize;

/// Pieces on their way to the thread that computes SHA-256.
const SHA_QUEUE: usize = 16;

/// What an upload will be.
#[derive(Clone, Debug)]
pub struct UploadOptions {
    /// Content type; may be empty, at most 255 bytes.
    pub content_type: String,
    /// What must hold at the name when it is published.
    pub precondition: Precondition,
    /// Compute SHA-256 on the way and store it.
    pub sha256: bool,
}

impl Default for UploadOptions {
    fn default() -> Self {
        Self { content_type: String::new(), precondition: Precondition::None, sha256: false }
    }
}

/// Bytes on their way to a new file. Dropping it gives the upload up.
#[derive(Debug)]
pub struct Upload {
    body: Body,
    path: NamePath,
    precondition: Precondition,
    sha: Option<Sha>,
}

impl Client {
    /// Starts an upload; nothing is visible before [`Upload::finish`].
    ///
    /// # Errors
    ///
    /// `Conflict` when a directory has the name or a file is in the way; `Precondition` when it
    /// already does not hold; `Unavailable`.
    pub async fn upload(&self, path: &NamePath, options: UploadOptions) -> Result<Upload, Error> {
        let body = Body::begin(&self.inner, path.as_str(), options.content_type).await?;
        let sha = options.sha256.then(Sha::start);
        Ok(Upload { body, path: path.clone(), precondition: options.precondition, sha })
    }
}

impl Upload {
    /// Takes bytes; waits while the window is full. What was taken is not yet durable. Large pieces
    /// are sent as they are, small ones are gathered with one copy.
    ///
    /// Not cancel-safe: after dropping the future unfinished the upload can only be given up, and
    /// further calls say so.
    ///
    /// # Errors
    ///
    /// What made an operation of the upload fail: nothing more can come of it. `Unknown` or
    /// `Unavailable` when there was no progress for the whole deadline.
    pub async fn write(&mut self, data: Bytes) -> Result<(), Error> {
        if let Some(sha) = &self.sha {
            sha.feed(data.clone()).await;
        }
        self.body.write(data).await.map_err(|error| error.context(format!("upload of {}", self.path)))
    }

    /// Bytes durable on every replica so far: for progress bars.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.body.progress.borrow().bytes
    }

    /// Waits for the next change of [`Upload::durable`]. Cancel-safe.
    pub async fn progressed(&mut self) -> u64 {
        // The sender lives as long as the upload.
        let _changed = self.body.progress.changed().await;
        self.durable()
    }

    /// Waits until everything is durable on every replica, then publishes it in one step: readers see
    /// the old file or the new one. Dropping the future leaves it published or not, never half.
    ///
    /// # Errors
    ///
    /// As [`Upload::write`]; `Precondition` when it does not hold: nothing is published.
    pub async fn finish(mut self) -> Result<Attr, Error> {
        let doing = format!("upload of {}", self.path);
        let (inode, len) = self.body.complete().await.map_err(|error| error.context(&doing))?;
        let sha256 = match self.sha.take() {
            Some(sha) => Some(sha.finish().await?),
            None => None,
        };
        let (inner, precondition) = (&self.body.inner, self.precondition);
        let (request, path) = (inner.request_id(), self.path.as_str().into());
        // Refused as `Unavailable`, and so repeated, until the master has heard that the last chunk is sealed.
        let attr = inner.change(&Publish { request, inode, path, precondition, len, sha256 }).await?;
        self.body.used_up();
        Ok(attr)
    }

    /// Gives it up; the space is freed in the background. Dropping does the same, without waiting.
    pub async fn abort(mut self) {
        self.body.used_up();
        abort(&self.body.inner, self.body.inode).await;
    }
}

/// The bytes of an upload, whatever becomes of them in the end.
#[derive(Debug)]
pub(crate) struct Body {
    inner: Arc<Inner>,
    inode: InodeId,
    appender: Appender,
    _stop: DropGuard,
    report: Arc<watch::Sender<Progress>>,
    progress: watch::Receiver<Progress>,
    held: Held,
    /// Operations submitted, and bytes taken.
    ops: u64,
    len: u64,
    /// A call was dropped half-way: which bytes were taken is not known to the caller.
    torn: bool,
    used_up: bool,
}

impl Body {
    /// `path` is where it will be published; empty when it will be spliced.
    pub(crate) async fn begin(inner: &Arc<Inner>, path: &str, content_type: String) -> Result<Self, Error> {
        let request = inner.request_id();
        let begun = inner.change(&BeginUpload { request, path: path.into(), content_type }).await?;
        let stop = CancellationToken::new();
        let settings = Settings {
            deadline: inner.config.deadline,
            progress_counts: true,
            fills_chunks: true,
            window: inner.config.window as u64,
        };
        let appender = Appender::start(inner, begun.inode, settings, stop.clone());
        let (report, progress) = watch::channel(Progress::default());
        Ok(Self {
            inner: Arc::clone(inner),
            inode: begun.inode,
            appender,
            _stop: stop.drop_guard(),
            report: Arc::new(report),
            progress,
            held: Held::default(),
            ops: 0,
            len: 0,
            torn: false,
            used_up: false,
        })
    }

    pub(crate) async fn write(&mut self, mut data: Bytes) -> Result<(), Error> {
        self.check()?;
        self.torn = true;
        self.len += data.len() as u64;
        while !data.is_empty() {
            if self.held.len() == OP_LEN {
                self.emit(false).await?;
            }
            self.held.take(&mut data);
        }
        self.torn = false;
        Ok(())
    }

    /// Everything written is durable on every replica and all chunks are sealed: the inode and its length.
    pub(crate) async fn complete(&mut self) -> Result<(InodeId, u64), Error> {
        self.check()?;
        self.torn = true;
        if self.held.len() > 0 {
            self.emit(true).await?;
        }
        self.all_durable().await?;
        if self.ops > 0 && !self.progress.borrow().ends_chunk {
            self.seal().await?;
        }
        self.torn = false;
        Ok((self.inode, self.len))
    }

    /// It was published, spliced or aborted: nothing is left to give up.
    pub(crate) fn used_up(&mut self) {
        self.used_up = true;
    }

    fn check(&self) -> Result<(), Error> {
        if let Some(error) = &self.progress.borrow().failed {
            return Err(error.clone());
        }
        if self.torn {
            return Err(Error::new(Kind::Invalid, "an earlier call was dropped half-way; start the upload again"));
        }
        Ok(())
    }

    async fn emit(&mut self, end: bool) -> Result<(), Error> {
        let cut = Cut::new(&self.held.freeze());
        self.submit(cut, end).await
    }

    async fn submit(&mut self, cut: Cut, end: bool) -> Result<(), Error> {
        self.ops += 1;
        let hears = Hears::Upload(Arc::clone(&self.report));
        if self.appender.submit(cut, end, hears).await.is_err() {
            let failed = self.progress.borrow().failed.clone();
            return Err(failed.unwrap_or_else(|| Error::new(Kind::Unavailable, "the upload's stream has ended")));
        }
        Ok(())
    }

    async fn all_durable(&mut self) -> Result<(), Error> {
        let ops = self.ops;
        let done = self.progress.wait_for(|progress| progress.ops == ops || progress.failed.is_some()).await;
        match done.map(|progress| progress.failed.clone()) {
            Ok(None) => Ok(()),
            Ok(Some(error)) => Err(error),
            Err(_) => Err(Error::new(Kind::Unknown, "the upload's stream has ended")),
        }
    }

    /// The final operation landed before a roll, so it did not end the chunk that is open now.
    async fn seal(&mut self) -> Result<(), Error> {
        if !is_tail_sealed(&self.inner, self.inode).await? {
            self.submit(Cut::new(&Bytes::new()), true).await?;
            self.all_durable().await?;
            wait_until_sealed(&self.inner, self.inode).await?;
        }
        Ok(())
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if self.used_up {
            return;
        }
        let (inner, inode) = (Arc::clone(&self.inner), self.inode);
        // Without a runtime the master drops it after a day.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { abort(&inner, inode).await });
        }
    }
}

async fn abort(inner: &Inner, inode: InodeId) {
    let request = inner.request_id();
    if let Err(fault) = inner.change(&AbortUpload { request, inode }).await {
        tracing::debug!(%inode, error = %fault, "upload not aborted: the master drops it later");
    }
}

/// Seals the open chunk at the end of a file, if there is one: an operation of no bytes, and the last.
pub(crate) async fn seal_tail(inner: &Arc<Inner>, file: InodeId) -> Result<(), Error> {
    if is_tail_sealed(inner, file).await? {
        return Ok(());
    }
    let stop = CancellationToken::new();
    let deadline = inner.config.deadline;
    let settings = Settings { deadline, progress_counts: false, fills_chunks: true, window: 0 };
    let appender = Appender::start(inner, file, settings, stop.clone());
    let _stop = stop.drop_guard();
    let (report, mut progress) = watch::channel(Progress::default());
    let hears = Hears::Upload(Arc::new(report));
    if appender.submit(Cut::new(&Bytes::new()), true, hears).await.is_ok() {
        let done = progress.wait_for(|progress| progress.ops == 1 || progress.failed.is_some()).await;
        if let Some(error) = done.ok().and_then(|progress| progress.failed.clone()) {
            return Err(error);
        }
    }
    wait_until_sealed(inner, file).await
}

async fn is_tail_sealed(inner: &Inner, file: InodeId) -> Result<bool, Error> {
    let tail = inner.locate(file, Position::Tail, Intent::Read, 1).await?;
    Ok(tail.items.iter().all(|location| has_end(location.state)))
}

async fn wait_until_sealed(inner: &Inner, file: InodeId) -> Result<(), Error> {
    let deadline = now() + inner.config.deadline;
    for tries in 0.. {
        if is_tail_sealed(inner, file).await? {
            return Ok(());
        }
        if now() >= deadline {
            break;
        }
        tokio::time::sleep(pause(tries, inner.noise.next())).await;
    }
    Err(Error::new(Kind::Unavailable, format!("the last chunk of file {file} is still being sealed")))
}

/// Bytes of the next operation.
#[derive(Debug, Default)]
struct Held {
    /// As it was given; at most one operation.
    single: Bytes,
    /// Gathered from small pieces. One of the two is empty.
    gathered: BytesMut,
}

impl Held {
    fn len(&self) -> usize {
        self.single.len() + self.gathered.len()
    }

    /// Takes from the front of `data` what fits into the operation.
    fn take(&mut self, data: &mut Bytes) {
        let count = data.len().min(OP_LEN - self.len());
        if self.len() == 0 {
            self.single = data.split_to(count);
            return;
        }
        if !self.single.is_empty() {
            self.gathered = BytesMut::with_capacity(OP_LEN);
            self.gathered.extend_from_slice(&std::mem::take(&mut self.single));
        }
        self.gathered.extend_from_slice(&data[..count]);
        data.advance(count);
    }

    fn freeze(&mut self) -> Bytes {
        if self.single.is_empty() {
            std::mem::take(&mut self.gathered).freeze()
        } else {
            std::mem::take(&mut self.single)
        }
    }
}

/// SHA-256 on a thread of its own, beside the transfer.
#[derive(Debug)]
struct Sha {
    pieces: mpsc::Sender<Bytes>,
    result: JoinHandle<[u8; 32]>,
}

impl Sha {
    fn start() -> Self {
        let (pieces, mut queue) = mpsc::channel::<Bytes>(SHA_QUEUE);
        let result = tokio::task::spawn_blocking(move || {
            let mut hash = Sha256::new();
            while let Some(piece) = queue.blocking_recv() {
                hash.update(&piece);
            }
            hash.finalize().into()
        });
        Self { pieces, result }
    }

    async fn feed(&self, piece: Bytes) {
        // The thread ends only when the sender is dropped.
        let _sent = self.pieces.send(piece).await;
    }

    async fn finish(self) -> Result<[u8; 32], Error> {
        drop(self.pieces);
        self.result.await.map_err(|error| Error::new(Kind::Unknown, format!("SHA-256 was not computed: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operations(pieces: &[usize]) -> (Vec<usize>, Vec<u8>, Vec<u8>) {
        let (mut held, mut lens, mut whole, mut out) = (Held::default(), Vec::new(), Vec::new(), Vec::new());
        for (number, len) in (0_u8..).zip(pieces) {
            let piece = vec![number; *len];
            whole.extend_from_slice(&piece);
            let mut data = Bytes::from(piece);
            while !data.is_empty() {
                if held.len() == OP_LEN {
                    let op = held.freeze();
                    lens.push(op.len());
                    out.extend_from_slice(&op);
                }
                held.take(&mut data);
            }
        }
        let last = held.freeze();
        lens.push(last.len());
        out.extend_from_slice(&last);
        (lens, whole, out)
    }

    #[test]
    fn whatever_the_pieces_operations_are_full_and_the_bytes_keep_their_order() {
        let cases: [&[usize]; 5] =
            [&[10], &[OP_LEN, OP_LEN], &[OP_LEN * 3 + 7], &[5, OP_LEN, 9, OP_LEN * 2], &[OP_LEN - 1, 1, 1]];
        for pieces in cases {
            let (lens, whole, out) = operations(pieces);
            assert!(out == whole, "{pieces:?}");
            let (last, full) = lens.split_last().unwrap();
            assert!(full.iter().all(|len| *len == OP_LEN), "{pieces:?} {lens:?}");
            assert!(*last > 0 && *last <= OP_LEN, "the final operation is never empty: {lens:?}");
        }
    }

    #[test]
    fn a_large_piece_is_sent_from_where_it_lies() {
        let piece = Bytes::from(vec![7; OP_LEN + 1]);
        let mut data = piece.clone();
        let mut held = Held::default();
        held.take(&mut data);
        assert_eq!(held.freeze().as_ptr(), piece.as_ptr());
    }
}
