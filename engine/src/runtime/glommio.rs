//! The default backend: one glommio executor per shard, registered `O_DIRECT` buffers.
//!
//! Buffers are glommio's `DmaBuffer`s from the executor's arena, which is twice the pool: its buddy
//! allocator rounds up, and reads take from it too. glommio writes a `DmaBuffer` whole; a range of one
//! is copied into another before it is written (23 µs per MiB), so give full buffers where it counts:
//! allocate exactly what is going to be written.
//!
//! Sockets are readiness based: what the kernel takes or has is moved by a non-blocking call straight
//! from or into the buffer, and only then is the ring asked to tell when there is more. The two halves
//! share one descriptor.

#![allow(unsafe_code, reason = "descriptors and addresses shared with the kernel")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd};
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_util::io::{AsyncRead, AsyncWrite};
use glommio::io::{DmaBuffer, DmaFile, OpenOptions, ReadResult};
use glommio::net::TcpStream;
use glommio::timer::{Timer, sleep};
use glommio::{GlommioError, LocalExecutor, LocalExecutorBuilder, Placement, PoolPlacement};
use rustix::net::{SendAncillaryBuffer, SendFlags};

use super::helper::Helper;
use super::pool::{Lease, PAGE, Pool};
use super::shard::{self, Gate, ShardConfig, Spawn, finish};
use super::{DiskSpace, FileId, Folder, Open, Runtime, extents, host, uring};

/// Entries of each of an executor's three rings.
const RING_DEPTH: usize = 256;
/// Below this the arena holds no buffer of the largest size.
const ARENA_MIN: u64 = 8 << 20;
/// glommio parks with ready tasks in its queue when its preemption timer (100 ms) fires before the first
/// of them has run, as happens to a thread that gets no CPU for so long. It then sleeps until the next
/// event; this is one, as often as this while the shard has work.
const HEARTBEAT: Duration = Duration::from_millis(50);
/// As often as this while it has none: a beat costs 0.1 ms of CPU time, which 20 times a second is 0.2 %
/// of a core.
const HEARTBEAT_IDLE: Duration = Duration::from_millis(400);

/// A shard on glommio.
#[derive(Clone)]
pub struct GlommioRuntime(Rc<Shared>);

struct Shared {
    pool: Pool,
    gate: Gate,
    helper: Helper,
    started: Instant,
    /// Operations begun, to tell a shard that works from an idle one.
    begun: Cell<u64>,
    /// Devices for which glommio has settled how to wait for completions.
    devices: RefCell<BTreeSet<u64>>,
}

/// A buffer being filled.
pub struct GlommioMutBuf {
    bytes: DmaBuffer,
    len: usize,
    lease: Lease,
}

/// A frozen buffer, written by us or read by the kernel, or a range of one.
#[derive(Clone)]
pub struct GlommioBuf(Content);

#[derive(Clone)]
enum Content {
    Filled { bytes: Rc<DmaBuffer>, _lease: Rc<Lease>, range: Range<usize> },
    Read { bytes: ReadResult, _lease: Option<Rc<Lease>> },
}

/// Receiving half of a connection.
pub struct GlommioReader(Half);

/// Sending half of a connection.
pub struct GlommioWriter(Half);

struct Half {
    connection: Rc<Connection>,
    /// A call has not come back: the stream's position is unknown.
    lost: bool,
}

struct Connection(RefCell<TcpStream>);

impl GlommioRuntime {
    fn new(config: &ShardConfig) -> io::Result<Self> {
        Ok(Self(Rc::new(Shared {
            pool: Pool::new(config.memory),
            gate: Gate::default(),
            helper: Helper::start(config.index, 1)?,
            started: start_of_time(),
            begun: Cell::new(0),
            devices: RefCell::default(),
        })))
    }

    fn buffer(len: usize, lease: Lease) -> GlommioMutBuf {
        let bytes = glommio::allocate_dma_buffer(len.max(1).next_multiple_of(PAGE));
        GlommioMutBuf { bytes, len, lease }
    }

    /// Makes sure that glommio does not busy-poll the device below `root`.
    ///
    /// It decides at its first open on a device, by reading the file's first bytes on a polling ring,
    /// and has no switch. A read of an empty file or of a hole succeeds there without touching the
    /// device; from then on every real read of that device would fail with EOPNOTSUPP. So its first open
    /// gets a file that has a written block: a device that cannot poll says so. Where the device can
    /// (nvme with poll queues), polling burns the core while I/O is in flight: there the first open is
    /// write-only, the probe fails, and glommio logs an error that it does not poll.
    async fn settle_polling(&self, root: &Path) -> io::Result<()> {
        let root = root.to_owned();
        let (device, polls, scratch) = self.0.helper.run(move || host::device(&root)).await?;
        if self.0.devices.borrow().contains(&device) {
            return Ok(());
        }
        let path = format!("/proc/self/fd/{}", scratch.as_raw_fd());
        let settled = self.finish(async move {
            let file = OpenOptions::new().read(!polls).write(true).dma_open(&path).await;
            drop(scratch);
            file?.close().await
        });
        settled.await.map_err(plain)?;
        self.0.devices.borrow_mut().insert(device);
        Ok(())
    }

    fn works(&self) {
        self.0.begun.set(self.0.begun.get().wrapping_add(1));
    }

    /// Runs an operation to its end, whoever waits for it.
    async fn finish<T>(&self, operation: impl Future<Output = T> + 'static) -> T {
        self.works();
        finish(self, operation, || {}).await
    }
}

#[allow(clippy::disallowed_methods, reason = "the runtime is where a shard's clock comes from")]
fn start_of_time() -> Instant {
    Instant::now()
}

impl Spawn for GlommioRuntime {
    fn spawn_shard<F, W>(config: ShardConfig, work: F) -> io::Result<JoinHandle<io::Result<()>>>
    where
        F: FnOnce(Self) -> W + Send + 'static,
        W: Future<Output = ()> + 'static,
    {
        // glommio's own probe ends the process where io_uring is refused.
        uring::allowed()?;
        let wanted = config.clone();
        shard::start(
            &config,
            move || Ok((GlommioRuntime::new(&wanted)?, executor(&wanted)?)),
            move |(runtime, executor)| {
                executor.run(async move {
                    let heartbeat = glommio::spawn_local(beats(runtime.clone()));
                    let (gate, rounds) = (runtime.0.gate.clone(), runtime.clone());
                    work(runtime).await;
                    gate.empty().await;
                    // Files closed by the last task have only queued their closing.
                    rounds.yield_now().await;
                    heartbeat.cancel().await;
                });
                Ok(())
            },
        )
    }
}

async fn beats(runtime: GlommioRuntime) {
    let (mut pause, mut seen) = (HEARTBEAT, 0);
    loop {
        sleep(pause).await;
        let begun = runtime.0.begun.get();
        pause = next_pause(pause, begun != seen);
        seen = begun;
    }
}

/// How long until the next beat: short after work, twice as long after each pause without any.
fn next_pause(pause: Duration, worked: bool) -> Duration {
    if worked { HEARTBEAT } else { (pause * 2).min(HEARTBEAT_IDLE) }
}

/// Bytes that an executor takes for buffers when its pool hands out `memory` bytes.
pub(crate) fn arena(memory: u64) -> u64 {
    memory.saturating_mul(2).max(ARENA_MIN)
}

fn executor(config: &ShardConfig) -> io::Result<LocalExecutor> {
    let placement = config.core.map_or(Placement::Unbound, Placement::Fixed);
    uring::retry(|| {
        LocalExecutorBuilder::new(placement.clone())
            .name(&format!("shard-{}", config.index))
            .io_memory(usize::try_from(arena(config.memory as u64)).unwrap_or(usize::MAX))
            .ring_depth(RING_DEPTH)
            .blocking_thread_pool_placement(PoolPlacement::Unbound(1))
            .make()
            .map_err(plain)
    })
}

/// The kernel's error, with its number.
fn plain(error: GlommioError<()>) -> io::Error {
    match error {
        GlommioError::EnhancedIoError { source, .. } => source,
        other => other.into(),
    }
}

impl Runtime for GlommioRuntime {
    type MutBuf = GlommioMutBuf;
    type Buf = GlommioBuf;
    type File = Rc<DmaFile>;
    type Reader = GlommioReader;
    type Writer = GlommioWriter;

    async fn alloc(&self, len: usize) -> GlommioMutBuf {
        Self::buffer(len, self.0.pool.lease(len).await)
    }

    fn try_alloc(&self, len: usize) -> Option<GlommioMutBuf> {
        Some(Self::buffer(len, self.0.pool.try_lease(len)?))
    }

    fn has_room(&self, len: usize) -> bool {
        self.0.pool.has_room(len)
    }

    fn freeze(&self, buf: GlommioMutBuf) -> GlommioBuf {
        let range = 0..buf.len;
        GlommioBuf(Content::Filled { bytes: Rc::new(buf.bytes), _lease: Rc::new(buf.lease), range })
    }

    fn slice(&self, buf: &GlommioBuf, range: Range<usize>) -> GlommioBuf {
        buf.slice(range)
    }

    async fn open(&self, root: &Path, file: FileId, how: Open) -> io::Result<Rc<DmaFile>> {
        let folder = root.to_owned();
        self.0.helper.run(move || host::make_folder(&folder, file, how)).await?;
        self.settle_polling(root).await?;
        let path = host::path(root, file);
        let opened = self.finish(async move {
            let mut options = OpenOptions::new();
            options.read(true).write(how != Open::ReadOnly).create(how == Open::Create).mode(host::FILE_MODE);
            options.dma_open(&path).await
        });
        opened.await.map(Rc::new).map_err(plain)
    }

    async fn file_len(&self, root: &Path, file: FileId) -> io::Result<Option<u64>> {
        let root = root.to_owned();
        self.0.helper.run(move || host::file_len(&root, file)).await
    }

    async fn write_at(&self, file: &Rc<DmaFile>, buf: GlommioBuf, offset: u64) -> io::Result<usize> {
        let len = buf.as_ref().len();
        assert!(len.is_multiple_of(PAGE) && offset.is_multiple_of(PAGE as u64), "direct I/O is in blocks");
        if len == 0 {
            return Ok(0);
        }
        let file = Rc::clone(file);
        let written = self.finish(async move {
            let written = file.write_rc_at(buf.whole(), offset).await;
            drop(buf);
            written
        });
        written.await.map(host::whole_blocks).map_err(plain)
    }

    async fn read_at(&self, file: &Rc<DmaFile>, len: usize, offset: u64) -> io::Result<GlommioBuf> {
        assert!(len.is_multiple_of(PAGE) && offset.is_multiple_of(PAGE as u64), "direct I/O is in blocks");
        if len == 0 {
            return Ok(GlommioBuf(Content::Read { bytes: ReadResult::default(), _lease: None }));
        }
        let lease = self.0.pool.charge(len);
        let reading = Rc::clone(file);
        // The lease goes with the operation: its buffer lives until it ends, whoever waits.
        let (read, lease) = self.finish(async move { (reading.read_at_aligned(offset, len).await, lease) }).await;
        let bytes = read.map_err(plain)?;
        if bytes.len() < len {
            host::check_short(borrow(&**file), offset, bytes.len())?;
        }
        Ok(GlommioBuf(Content::Read { bytes, _lease: Some(Rc::new(lease)) }))
    }

    async fn fdatasync(&self, file: &Rc<DmaFile>) -> io::Result<()> {
        let file = Rc::clone(file);
        self.finish(async move { file.fdatasync().await }).await.map_err(plain)
    }

    async fn fsync(&self, file: &Rc<DmaFile>) -> io::Result<()> {
        let copy = borrow(&**file).try_clone_to_owned()?;
        let synced = self.0.helper.run(move || Ok(rustix::fs::fsync(copy)?));
        self.finish(synced).await
    }

    async fn preallocate(&self, file: &Rc<DmaFile>, offset: u64, len: u64) -> io::Result<()> {
        let copy = borrow(&**file).try_clone_to_owned()?;
        self.0.helper.run(move || host::preallocate(copy, offset, len)).await
    }

    async fn clone_range(&self, from: &Rc<DmaFile>, to: &Rc<DmaFile>, offset: u64, len: u64) -> io::Result<()> {
        let from = borrow(&**from).try_clone_to_owned()?;
        let to = borrow(&**to).try_clone_to_owned()?;
        self.0.helper.run(move || extents::clone_range(&from, &to, offset, len)).await
    }

    async fn unshare_range(&self, file: &Rc<DmaFile>, offset: u64, len: u64) -> io::Result<()> {
        let copy = borrow(&**file).try_clone_to_owned()?;
        self.0.helper.run(move || extents::unshare_range(copy, offset, len)).await
    }

    async fn punch_hole(&self, file: &Rc<DmaFile>, offset: u64, len: u64) -> io::Result<()> {
        let copy = borrow(&**file).try_clone_to_owned()?;
        self.0.helper.run(move || extents::punch_hole(copy, offset, len)).await
    }

    async fn sync_folder(&self, root: &Path, folder: Folder) -> io::Result<()> {
        let root = root.to_owned();
        self.0.helper.run(move || host::sync_folder(&root, folder)).await
    }

    async fn sync_file_system(&self, root: &Path) -> io::Result<()> {
        let root = root.to_owned();
        self.0.helper.run(move || host::sync_file_system(&root)).await
    }

    async fn space(&self, root: &Path) -> io::Result<DiskSpace> {
        let root = root.to_owned();
        self.0.helper.run(move || host::space(&root)).await
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<(GlommioReader, GlommioWriter)> {
        halves(TcpStream::connect(address).await.map_err(plain)?)
    }

    fn adopt(&self, stream: std::net::TcpStream) -> io::Result<(GlommioReader, GlommioWriter)> {
        // SAFETY: the descriptor is an open TCP socket that `stream` owned and gives up here.
        halves(unsafe { TcpStream::from_raw_fd(stream.into_raw_fd()) })
    }

    async fn recv_some(&self, reader: &mut GlommioReader, mut into: Vec<u8>, max: usize) -> io::Result<Vec<u8>> {
        let call = reader.0.enter()?;
        self.works();
        let old = into.len();
        into.resize(old + max, 0);
        let count = call.recv(&mut into[old..]).await?;
        call.done();
        into.truncate(old + count);
        Ok(into)
    }

    async fn recv_exact(
        &self,
        reader: &mut GlommioReader,
        mut buf: GlommioMutBuf,
        range: Range<usize>,
    ) -> io::Result<GlommioMutBuf> {
        let call = reader.0.enter()?;
        self.works();
        let mut left = &mut buf.as_mut()[range];
        while !left.is_empty() {
            let count = call.recv(left).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left = &mut left[count..];
        }
        call.done();
        Ok(buf)
    }

    async fn send_all(&self, writer: &mut GlommioWriter, head: Vec<u8>, payload: Option<GlommioBuf>) -> io::Result<()> {
        let call = writer.0.enter()?;
        call.send(&head, payload.as_ref().map_or(&[], |payload| payload.as_ref())).await?;
        call.done();
        Ok(())
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let pass = self.0.gate.enter();
        self.works();
        glommio::spawn_local(async move {
            // glommio polls a new task inside the spawner's step, whose borrows it would meet.
            let mut is_later = false;
            poll_fn(|context| {
                if std::mem::replace(&mut is_later, true) {
                    return Poll::Ready(());
                }
                context.waker().wake_by_ref();
                Poll::Pending
            })
            .await;
            task.await;
            drop(pass);
        })
        .detach();
    }

    async fn sleep(&self, duration: Duration) {
        sleep(duration).await;
    }

    /// Goes once around the loop, I/O included. glommio's own yield stays in the queue of ready tasks,
    /// and for as long as that is not empty it looks at no completion; so this waits for a timer.
    async fn yield_now(&self) {
        let mut timer = Timer::new(Duration::from_micros(1));
        let mut polled = false;
        poll_fn(|context| {
            let expired = Pin::new(&mut timer).poll(context);
            if !std::mem::replace(&mut polled, true) && expired.is_ready() {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            expired.map(drop)
        })
        .await;
    }

    fn now(&self) -> Duration {
        self.0.started.elapsed()
    }
}

impl AsRef<[u8]> for GlommioMutBuf {
    fn as_ref(&self) -> &[u8] {
        &self.bytes.as_bytes()[..self.len]
    }
}

impl AsMut<[u8]> for GlommioMutBuf {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes.as_bytes_mut()[..self.len]
    }
}

impl AsRef<[u8]> for GlommioBuf {
    fn as_ref(&self) -> &[u8] {
        match &self.0 {
            Content::Filled { bytes, range, .. } => &bytes.as_bytes()[range.clone()],
            Content::Read { bytes, .. } => bytes,
        }
    }
}

impl GlommioBuf {
    fn slice(&self, wanted: Range<usize>) -> Self {
        assert!(wanted.start <= wanted.end && wanted.end <= self.as_ref().len(), "the range is inside the buffer");
        Self(match &self.0 {
            Content::Filled { bytes, _lease, range } => Content::Filled {
                bytes: Rc::clone(bytes),
                _lease: Rc::clone(_lease),
                range: range.start + wanted.start..range.start + wanted.end,
            },
            Content::Read { bytes, _lease } => Content::Read {
                bytes: ReadResult::slice(bytes, wanted.start, wanted.len()).unwrap_or_default(),
                _lease: _lease.clone(),
            },
        })
    }

    /// The bytes as a buffer that glommio can write: itself, or a copy when it is a range or was read.
    fn whole(&self) -> Rc<DmaBuffer> {
        match &self.0 {
            Content::Filled { bytes, range, .. } if *range == (0..bytes.len()) => Rc::clone(bytes),
            _ => {
                let mut copy = glommio::allocate_dma_buffer(self.as_ref().len());
                copy.as_bytes_mut().copy_from_slice(self.as_ref());
                Rc::new(copy)
            }
        }
    }
}

fn halves(stream: TcpStream) -> io::Result<(GlommioReader, GlommioWriter)> {
    stream.set_nodelay(true).map_err(plain)?;
    let connection = Rc::new(Connection(RefCell::new(stream)));
    let half = || Half { connection: Rc::clone(&connection), lost: false };
    Ok((GlommioReader(half()), GlommioWriter(half())))
}

/// A call on one half; unless it is `done`, the connection is shut down when it is dropped.
struct Busy<'a> {
    half: &'a mut Half,
}

impl Half {
    fn enter(&mut self) -> io::Result<Busy<'_>> {
        if std::mem::replace(&mut self.lost, true) {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "an earlier call failed or was dropped"));
        }
        Ok(Busy { half: self })
    }
}

impl Busy<'_> {
    fn done(self) {
        self.half.lost = false;
    }

    async fn recv(&self, into: &mut [u8]) -> io::Result<usize> {
        let stream = &self.half.connection.0;
        poll_fn(|context| Pin::new(&mut *stream.borrow_mut()).poll_read(context, into)).await
    }

    async fn send(&self, head: &[u8], payload: &[u8]) -> io::Result<()> {
        let stream = &self.half.connection.0;
        let mut sent = try_send(&stream.borrow(), &[IoSlice::new(head), IoSlice::new(payload)])?;
        while sent < head.len() + payload.len() {
            let rest = if sent < head.len() { &head[sent..] } else { &payload[sent - head.len()..] };
            sent += poll_fn(|context| Pin::new(&mut *stream.borrow_mut()).poll_write(context, rest)).await?;
        }
        Ok(())
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        if self.half.lost {
            // It may be gone already.
            let _ = rustix::net::shutdown(borrow(&*self.half.connection.0.borrow()), rustix::net::Shutdown::Both);
        }
    }
}

/// What the kernel takes at once, in one call; zero when it takes nothing now.
fn try_send(stream: &TcpStream, parts: &[IoSlice<'_>]) -> io::Result<usize> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    match rustix::net::sendmsg(borrow(stream), parts, &mut SendAncillaryBuffer::default(), flags) {
        Ok(count) => Ok(count),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

fn borrow(owner: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: the owner keeps its descriptor open for as long as it is borrowed.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_shard_beats_slowly_and_the_first_work_makes_it_beat_fast() {
        let mut pause = HEARTBEAT;
        for _ in 0..10 {
            pause = next_pause(pause, false);
        }
        assert_eq!(pause, HEARTBEAT_IDLE);
        assert_eq!(next_pause(pause, true), HEARTBEAT);
        assert!(next_pause(HEARTBEAT, false) > HEARTBEAT);
    }
}
