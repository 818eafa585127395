//! The second backend: one monoio runtime per shard, on io_uring or, where that is forbidden, on epoll.
//!
//! Buffers are our own (`slab`), plain `O_DIRECT` descriptors, sockets by completion with one `writev`
//! for header and payload. Whatever is handed to the kernel is owned by its operation: a future that is
//! dropped leaves it running as a task (`shard::finish`), and a dropped receive or send shuts its
//! connection down, since its bytes are lost.
//!
//! On epoll reads and writes of files block the shard for as long as the disk takes; syncs do not, they
//! go to helper threads. Asked for by name only.

#![allow(unsafe_code, reason = "memory and descriptors shared with the kernel")]

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::rc::Rc;
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use monoio::buf::{IoBuf, IoBufMut, IoVecBuf};
use monoio::fs::File;
use monoio::io::{AsyncReadRent, AsyncWriteRent, OwnedReadHalf, OwnedWriteHalf, Splitable};
use monoio::net::TcpStream;
use monoio::time::TimeDriver;
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

use super::helper::Helper;
use super::pool::{Lease, PAGE, Pool};
use super::shard::{self, Gate, ShardConfig, Spawn, finish};
use super::slab::{Block, Slab};
use super::{DiskSpace, FileId, Folder, Open, Runtime, extents, host, uring};

/// Entries of a shard's ring.
const RING_ENTRIES: u32 = 512;
/// Helper threads: on epoll several, because syncs run there.
const HELPERS: usize = 1;
const HELPERS_EPOLL: usize = 4;
/// monoio looks at its timers only when no task is ready. Tasks that yield all the time would starve
/// them: this often, those that yield wait for a timer instead.
const REST_EVERY: Duration = Duration::from_millis(10);
const REST: Duration = Duration::from_millis(1);

/// How monoio waits for the kernel.
pub trait Driver: 'static {
    /// Completions, not readiness.
    const URING: bool;
    /// Its driver with timers.
    type Inner: monoio::Driver;
    /// Makes a runtime on this thread.
    ///
    /// # Errors
    ///
    /// The ring or epoll descriptor could not be made.
    fn make() -> io::Result<monoio::Runtime<Self::Inner>>;
}

/// io_uring.
pub enum Uring {}

/// epoll; file I/O blocks.
pub enum Epoll {}

impl Driver for Uring {
    const URING: bool = true;
    type Inner = TimeDriver<IoUringDriver>;

    fn make() -> io::Result<monoio::Runtime<Self::Inner>> {
        RuntimeBuilder::<IoUringDriver>::new().with_entries(RING_ENTRIES).enable_timer().build()
    }
}

impl Driver for Epoll {
    const URING: bool = false;
    type Inner = TimeDriver<LegacyDriver>;

    fn make() -> io::Result<monoio::Runtime<Self::Inner>> {
        RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()
    }
}

/// A shard on monoio.
pub struct MonoioRuntime<D: Driver> {
    shared: Rc<Shared>,
    driver: PhantomData<D>,
}

struct Shared {
    pool: Pool,
    slab: Slab,
    gate: Gate,
    helper: Helper,
    started: Instant,
    rested: Cell<Duration>,
}

/// A buffer being filled.
pub struct MonoioMutBuf {
    block: Block,
    len: usize,
    _lease: Option<Lease>,
}

/// A frozen buffer or a range of one.
#[derive(Clone)]
pub struct MonoioBuf {
    whole: Rc<MonoioMutBuf>,
    range: Range<usize>,
}

/// Receiving half of a connection.
pub struct MonoioReader(Option<OwnedReadHalf<TcpStream>>, RawFd);

/// Sending half of a connection.
pub struct MonoioWriter(Option<OwnedWriteHalf<TcpStream>>, RawFd);

impl<D: Driver> Clone for MonoioRuntime<D> {
    fn clone(&self) -> Self {
        Self { shared: Rc::clone(&self.shared), driver: PhantomData }
    }
}

impl<D: Driver> MonoioRuntime<D> {
    fn new(config: &ShardConfig) -> io::Result<Self> {
        let helpers = if D::URING { HELPERS } else { HELPERS_EPOLL };
        let shared = Rc::new(Shared {
            pool: Pool::new(config.memory),
            slab: Slab::new(config.memory),
            gate: Gate::default(),
            helper: Helper::start(config.index, helpers)?,
            started: start_of_time(),
            rested: Cell::default(),
        });
        Ok(Self { shared, driver: PhantomData })
    }

    fn buffer(&self, len: usize, lease: Option<Lease>) -> MonoioMutBuf {
        MonoioMutBuf { block: self.shared.slab.take(len), len, _lease: lease }
    }

    fn halves(stream: TcpStream) -> io::Result<(MonoioReader, MonoioWriter)> {
        stream.set_nodelay(true)?;
        let fd = stream.as_raw_fd();
        let (reader, writer) = stream.into_split();
        Ok((MonoioReader(Some(reader), fd), MonoioWriter(Some(writer), fd)))
    }

    /// Runs an operation on a file to its end, whoever waits for it.
    async fn finish<T>(&self, operation: impl Future<Output = T> + 'static) -> T {
        finish(self, operation, || {}).await
    }

    async fn sync(&self, file: &Rc<File>, all: bool) -> io::Result<()> {
        if D::URING {
            let file = Rc::clone(file);
            return self.finish(async move { if all { file.sync_all().await } else { file.sync_data().await } }).await;
        }
        let copy = borrow(file.as_raw_fd()).try_clone_to_owned()?;
        let sync = if all { rustix::fs::fsync } else { rustix::fs::fdatasync };
        self.shared.helper.run(move || Ok(sync(copy)?)).await
    }
}

#[allow(clippy::disallowed_methods, reason = "the runtime is where a shard's clock comes from")]
fn start_of_time() -> Instant {
    Instant::now()
}

impl<D: Driver> Spawn for MonoioRuntime<D> {
    fn spawn_shard<F, W>(config: ShardConfig, work: F) -> io::Result<JoinHandle<io::Result<()>>>
    where
        F: FnOnce(Self) -> W + Send + 'static,
        W: Future<Output = ()> + 'static,
    {
        if D::URING {
            uring::allowed()?;
        }
        let wanted = config.clone();
        shard::start(
            &config,
            move || {
                if let Some(core) = wanted.core
                    && !core_affinity::set_for_current(core_affinity::CoreId { id: core })
                {
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("cannot run on core {core}")));
                }
                Ok((MonoioRuntime::new(&wanted)?, uring::retry(D::make)?))
            },
            move |(runtime, mut driver): (Self, _)| {
                driver.block_on(async move {
                    let (gate, rounds) = (runtime.shared.gate.clone(), runtime.clone());
                    work(runtime).await;
                    gate.empty().await;
                    // What the last task closed has only queued its closing.
                    rounds.yield_now().await;
                });
                Ok(())
            },
        )
    }
}

impl<D: Driver> Runtime for MonoioRuntime<D> {
    type MutBuf = MonoioMutBuf;
    type Buf = MonoioBuf;
    type File = Rc<File>;
    type Reader = MonoioReader;
    type Writer = MonoioWriter;

    async fn alloc(&self, len: usize) -> MonoioMutBuf {
        let lease = self.shared.pool.lease(len).await;
        self.buffer(len, Some(lease))
    }

    fn try_alloc(&self, len: usize) -> Option<MonoioMutBuf> {
        let lease = self.shared.pool.try_lease(len)?;
        Some(self.buffer(len, Some(lease)))
    }

    fn has_room(&self, len: usize) -> bool {
        self.shared.pool.has_room(len)
    }

    fn freeze(&self, buf: MonoioMutBuf) -> MonoioBuf {
        let range = 0..buf.len;
        MonoioBuf { whole: Rc::new(buf), range }
    }

    fn slice(&self, buf: &MonoioBuf, range: Range<usize>) -> MonoioBuf {
        assert!(range.start <= range.end && range.end <= buf.range.len(), "the range is inside the buffer");
        let start = buf.range.start;
        MonoioBuf { whole: Rc::clone(&buf.whole), range: start + range.start..start + range.end }
    }

    async fn open(&self, root: &Path, file: FileId, how: Open) -> io::Result<Rc<File>> {
        let root = root.to_owned();
        let opened = self.shared.helper.run(move || host::open(&root, file, how)).await?;
        File::from_std(opened).map(Rc::new)
    }

    async fn file_len(&self, root: &Path, file: FileId) -> io::Result<Option<u64>> {
        let root = root.to_owned();
        self.shared.helper.run(move || host::file_len(&root, file)).await
    }

    async fn write_at(&self, file: &Rc<File>, buf: MonoioBuf, offset: u64) -> io::Result<usize> {
        let len = buf.as_ref().len();
        assert!(len.is_multiple_of(PAGE) && offset.is_multiple_of(PAGE as u64), "direct I/O is in blocks");
        // A range that is not aligned in memory is copied.
        let buf = if buf.range.start.is_multiple_of(PAGE) { buf } else { self.aligned(&buf) };
        let file = Rc::clone(file);
        let (written, _buf) = self.finish(async move { file.write_at(buf, offset).await }).await;
        written.map(host::whole_blocks)
    }

    async fn read_at(&self, file: &Rc<File>, len: usize, offset: u64) -> io::Result<MonoioBuf> {
        assert!(len.is_multiple_of(PAGE) && offset.is_multiple_of(PAGE as u64), "direct I/O is in blocks");
        let lease = self.shared.pool.charge(len);
        let window = Window { buf: self.buffer(len, Some(lease)), range: 0..len };
        let reading = Rc::clone(file);
        let (read, window) = self.finish(async move { reading.read_at(window, offset).await }).await;
        let count = read?;
        if count < len {
            host::check_short(borrow(file.as_raw_fd()), offset, count)?;
        }
        Ok(MonoioBuf { whole: Rc::new(window.buf), range: 0..count })
    }

    async fn fdatasync(&self, file: &Rc<File>) -> io::Result<()> {
        self.sync(file, false).await
    }

    async fn fsync(&self, file: &Rc<File>) -> io::Result<()> {
        self.sync(file, true).await
    }

    async fn preallocate(&self, file: &Rc<File>, offset: u64, len: u64) -> io::Result<()> {
        let copy = borrow(file.as_raw_fd()).try_clone_to_owned()?;
        self.shared.helper.run(move || host::preallocate(copy, offset, len)).await
    }

    async fn clone_range(&self, from: &Rc<File>, to: &Rc<File>, offset: u64, len: u64) -> io::Result<()> {
        let from = borrow(from.as_raw_fd()).try_clone_to_owned()?;
        let to = borrow(to.as_raw_fd()).try_clone_to_owned()?;
        self.shared.helper.run(move || extents::clone_range(&from, &to, offset, len)).await
    }

    async fn unshare_range(&self, file: &Rc<File>, offset: u64, len: u64) -> io::Result<()> {
        let copy = borrow(file.as_raw_fd()).try_clone_to_owned()?;
        self.shared.helper.run(move || extents::unshare_range(copy, offset, len)).await
    }

    async fn punch_hole(&self, file: &Rc<File>, offset: u64, len: u64) -> io::Result<()> {
        let copy = borrow(file.as_raw_fd()).try_clone_to_owned()?;
        self.shared.helper.run(move || extents::punch_hole(copy, offset, len)).await
    }

    async fn sync_folder(&self, root: &Path, folder: Folder) -> io::Result<()> {
        let root = root.to_owned();
        self.shared.helper.run(move || host::sync_folder(&root, folder)).await
    }

    async fn sync_file_system(&self, root: &Path) -> io::Result<()> {
        let root = root.to_owned();
        self.shared.helper.run(move || host::sync_file_system(&root)).await
    }

    async fn space(&self, root: &Path) -> io::Result<DiskSpace> {
        let root = root.to_owned();
        self.shared.helper.run(move || host::space(&root)).await
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<(MonoioReader, MonoioWriter)> {
        Self::halves(TcpStream::connect_addr(address).await?)
    }

    fn adopt(&self, stream: std::net::TcpStream) -> io::Result<(MonoioReader, MonoioWriter)> {
        // A non-blocking descriptor makes io_uring answer EAGAIN; a blocking one stops an epoll loop.
        stream.set_nonblocking(!D::URING)?;
        Self::halves(TcpStream::from_std(stream)?)
    }

    async fn recv_some(&self, reader: &mut MonoioReader, mut into: Vec<u8>, max: usize) -> io::Result<Vec<u8>> {
        let mut half = reader.0.take().ok_or_else(lost)?;
        into.reserve_exact(max);
        let range = into.len()..into.len() + max;
        let receiving = async move {
            let (count, window) = half.read(into.slice_mut(range)).await;
            (count, window.into_inner(), half)
        };
        let (count, into, half) = finish(self, receiving, shut_down(reader.1)).await;
        count?;
        reader.0 = Some(half);
        Ok(into)
    }

    async fn recv_exact(
        &self,
        reader: &mut MonoioReader,
        buf: MonoioMutBuf,
        range: Range<usize>,
    ) -> io::Result<MonoioMutBuf> {
        assert!(range.start <= range.end && range.end <= buf.len, "the range is inside the buffer");
        let mut half = reader.0.take().ok_or_else(lost)?;
        let receiving = async move {
            let mut window = Window { buf, range };
            while !window.range.is_empty() {
                let count;
                (count, window) = half.read(window).await;
                match count {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(count) => window.range.start += count,
                    Err(error) => return Err(error),
                }
            }
            Ok((window.buf, half))
        };
        let (buf, half) = finish(self, receiving, shut_down(reader.1)).await?;
        reader.0 = Some(half);
        Ok(buf)
    }

    async fn send_all(&self, writer: &mut MonoioWriter, head: Vec<u8>, payload: Option<MonoioBuf>) -> io::Result<()> {
        let mut half = writer.0.take().ok_or_else(lost)?;
        let sending = async move {
            let mut parts = Parts::new(head, payload);
            while parts.left() > 0 {
                let count;
                (count, parts) = half.writev(parts).await;
                match count {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(count) => parts.advance(count),
                    Err(error) => return Err(error),
                }
            }
            Ok(half)
        };
        writer.0 = Some(finish(self, sending, shut_down(writer.1)).await?);
        Ok(())
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let pass = self.shared.gate.enter();
        monoio::spawn(async move {
            task.await;
            drop(pass);
        });
    }

    async fn sleep(&self, duration: Duration) {
        monoio::time::sleep(duration).await;
    }

    /// To the end of the queue: monoio puts a task that wakes itself at its front, so another task has
    /// to do it.
    async fn yield_now(&self) {
        let now = self.now();
        if now.saturating_sub(self.shared.rested.get()) >= REST_EVERY {
            monoio::time::sleep(REST).await;
            self.shared.rested.set(self.now());
            return;
        }
        let mut yielded = false;
        poll_fn(|context| {
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            let waker = context.waker().clone();
            monoio::spawn(async move { waker.wake() });
            Poll::Pending
        })
        .await;
    }

    fn now(&self) -> Duration {
        self.shared.started.elapsed()
    }
}

impl<D: Driver> MonoioRuntime<D> {
    fn aligned(&self, buf: &MonoioBuf) -> MonoioBuf {
        let mut copy = self.buffer(buf.as_ref().len(), None);
        copy.as_mut().copy_from_slice(buf.as_ref());
        self.freeze(copy)
    }
}

impl AsRef<[u8]> for MonoioMutBuf {
    fn as_ref(&self) -> &[u8] {
        &self.block.bytes()[..self.len]
    }
}

impl AsMut<[u8]> for MonoioMutBuf {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.block.bytes_mut()[..self.len]
    }
}

impl AsRef<[u8]> for MonoioBuf {
    fn as_ref(&self) -> &[u8] {
        &self.whole.block.bytes()[self.range.clone()]
    }
}

// SAFETY: the memory is on the heap, initialised, does not move with the value, lives as long as it,
// and nobody writes to it: it is frozen.
unsafe impl IoBuf for MonoioBuf {
    fn read_ptr(&self) -> *const u8 {
        self.as_ref().as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.range.len()
    }
}

/// The part of a buffer that a read fills. The operation owns it until it has completed.
struct Window {
    buf: MonoioMutBuf,
    range: Range<usize>,
}

// SAFETY: the memory is on the heap, does not move with the value and lives as long as it; the range is
// inside the block. All of it is initialised from the start, so there is nothing to record.
unsafe impl IoBufMut for Window {
    fn write_ptr(&mut self) -> *mut u8 {
        self.buf.block.bytes_mut()[self.range.clone()].as_mut_ptr()
    }

    fn bytes_total(&mut self) -> usize {
        self.range.len()
    }

    unsafe fn set_init(&mut self, _: usize) {}
}

/// A header and a payload on their way out.
struct Parts {
    vectors: Box<[libc::iovec; 2]>,
    _head: Vec<u8>,
    _payload: Option<MonoioBuf>,
}

impl Parts {
    fn new(head: Vec<u8>, payload: Option<MonoioBuf>) -> Self {
        let vector = |bytes: &[u8]| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let vectors = Box::new([vector(&head), vector(payload.as_ref().map_or(&[], |payload| payload.as_ref()))]);
        Self { vectors, _head: head, _payload: payload }
    }

    fn left(&self) -> usize {
        self.vectors.iter().map(|vector| vector.iov_len).sum()
    }

    fn advance(&mut self, mut count: usize) {
        for vector in self.vectors.iter_mut() {
            let step = count.min(vector.iov_len);
            vector.iov_base = vector.iov_base.cast::<u8>().wrapping_add(step).cast();
            vector.iov_len -= step;
            count -= step;
        }
    }
}

// SAFETY: the vectors are on the heap and do not move with the value; they point into `_head` and
// `_payload`, which it owns and which do not change.
unsafe impl IoVecBuf for Parts {
    fn read_iovec_ptr(&self) -> *const libc::iovec {
        self.vectors.as_ptr()
    }

    fn read_iovec_len(&self) -> usize {
        self.vectors.len()
    }
}

impl Drop for MonoioWriter {
    fn drop(&mut self) {
        if let Some(half) = self.0.take() {
            // monoio shuts the sending side down when this half goes; the connection is to close only
            // when both have gone.
            let half = ManuallyDrop::new(half);
            // SAFETY: `half` is never used or dropped after this: its only field moves out.
            drop(unsafe { std::ptr::read(&raw const half.0) });
        }
    }
}

fn lost() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "an earlier call failed or was dropped")
}

/// Ends both directions, so that the operation left behind ends too.
fn shut_down(fd: RawFd) -> impl FnOnce() {
    move || {
        // It may be gone already.
        let _ = rustix::net::shutdown(borrow(fd), rustix::net::Shutdown::Both);
    }
}

fn borrow<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: whoever asks holds the file or the half of the connection that owns the descriptor until
    // the call that borrows it has returned.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_two_parts_is_what_was_not_sent() {
        let payload = MonoioMutBuf { block: Slab::new(0).take(5), len: 5, _lease: None };
        let mut payload = MonoioBuf { whole: Rc::new(payload), range: 0..5 };
        Rc::get_mut(&mut payload.whole).unwrap().as_mut().copy_from_slice(b"defgh");
        let mut parts = Parts::new(b"abc".to_vec(), Some(payload));
        let mut sent = Vec::new();
        for step in [1, 0, 3, 2, 2] {
            assert_eq!(parts.left(), 8 - sent.len());
            let before = parts.vectors.iter().flat_map(|vector| {
                // SAFETY: `parts` owns what its vectors point to.
                unsafe { std::slice::from_raw_parts(vector.iov_base.cast::<u8>(), vector.iov_len) }
            });
            sent.extend(before.take(step));
            parts.advance(step);
        }
        assert_eq!((sent.as_slice(), parts.left()), (b"abcdefgh".as_slice(), 0));
    }
}
