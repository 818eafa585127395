//! The runtime seam: everything a shard does to the world goes through [`Runtime`].
//!
//! Three backends: `glommio` (default), `monoio` (io_uring, or epoll when asked for by name), and
//! `sim` (one thread, virtual clock, a disk that may forget). Everything is `!Send` and
//! monomorphised: a shard is one thread and owns all it touches.
//!
//! Buffer types are associated types, because glommio writes only its own DMA buffers and its reads
//! allocate. A frozen buffer is counted and never changes, so that disk and socket share it.

mod backend;
mod extents;
pub mod glommio;
mod helper;
mod host;
pub mod monoio;
mod pool;
pub mod raw;
#[cfg(test)]
mod refused;
pub mod shard;
pub mod sim;
mod slab;
pub(crate) mod uring;

pub use backend::{Backend, UnknownBackend};
pub(crate) use host::{AlignedPage, queue_setting};

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

/// A file of one disk. No paths: nothing from outside names a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileId {
    /// First copy of the disk's identity; also carries the lock.
    DiskA,
    /// Second copy.
    DiskB,
    /// `journal/ring-NNNN`: the journal of one shard.
    Ring(u32),
    /// `slots/NNNNNNNN`: holds one chunk.
    Slot(u32),
}

/// A folder of one disk, for making names durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Folder {
    /// The root.
    Root,
    /// `journal`.
    Journal,
    /// `slots`.
    Slots,
}

/// How to open a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// It must exist.
    Existing,
    /// It must exist, and is only read: writing to it fails.
    ReadOnly,
    /// It is made when it does not exist; the name is durable after [`Runtime::sync_folder`].
    Create,
}

/// Space of the file system under a root, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpace {
    /// Size.
    pub total: u64,
    /// Free for this process.
    pub free: u64,
}

/// What a shard can do to the world. One value per shard; clones are handles to the same shard.
#[allow(async_fn_in_trait, reason = "a shard is one thread: its futures are never Send")]
pub trait Runtime: Clone + 'static {
    /// A buffer being filled: 4 KiB aligned, owned by one task.
    type MutBuf: AsRef<[u8]> + AsMut<[u8]> + 'static;
    /// A frozen buffer or a range of one: counted, never changes, goes back to the pool on last drop.
    type Buf: Clone + AsRef<[u8]> + 'static;
    /// An open file; clones share the descriptor.
    type File: Clone + 'static;
    /// Receiving half of a connection.
    type Reader: 'static;
    /// Sending half of a connection. Dropping both halves closes the connection.
    type Writer: 'static;

    /// A buffer of exactly `len` bytes, at most 2 MiB, content unspecified. Waits while the pool is
    /// used up, first come first served: that is the backpressure, and the bound on memory.
    async fn alloc(&self, len: usize) -> Self::MutBuf;
    /// A buffer now if the pool has one.
    fn try_alloc(&self, len: usize) -> Option<Self::MutBuf>;
    /// Whether the pool has `len` bytes that nobody waits for: for work that can be left undone.
    fn has_room(&self, len: usize) -> bool;
    /// From now on the bytes do not change.
    fn freeze(&self, buf: Self::MutBuf) -> Self::Buf;
    /// A range of a frozen buffer, sharing its memory.
    fn slice(&self, buf: &Self::Buf, range: Range<usize>) -> Self::Buf;

    /// Opens a file for direct I/O, making it (and its folder) when asked to.
    async fn open(&self, root: &Path, file: FileId, how: Open) -> io::Result<Self::File>;
    /// Length of a file by its name, `None` when there is none. Start-up only.
    async fn file_len(&self, root: &Path, file: FileId) -> io::Result<Option<u64>>;
    /// Writes `buf` at `offset`; both its length and `offset` are multiples of 4,096. May write
    /// less; the number, a multiple of 4,096, is returned and the caller writes the rest; zero means
    /// that nothing moves. A dropped future does not stop the write, and the buffer lives until it
    /// ended. No byte is copied when `buf` is a whole buffer; glommio copies a part of one first, monoio
    /// one whose address is not a multiple of 4,096.
    async fn write_at(&self, file: &Self::File, buf: Self::Buf, offset: u64) -> io::Result<usize>;
    /// Reads `len` bytes at `offset`, both multiples of 4,096. Shorter only at the end of the file.
    /// Waits for no room: its buffer is taken from the pool whatever is left there, and
    /// [`Runtime::alloc`] waits until the sum fits again. So memory is bounded by the pool and by the
    /// reads in flight, which whoever issues them bounds; and no read waits for a buffer that waits
    /// for a read.
    async fn read_at(&self, file: &Self::File, len: usize, offset: u64) -> io::Result<Self::Buf>;
    /// Durable on return: every write to `file` that completed before the call, its extents, and
    /// everything else the device completed before the call.
    async fn fdatasync(&self, file: &Self::File) -> io::Result<()>;
    /// As [`Runtime::fdatasync`], with the file's length and other metadata.
    async fn fsync(&self, file: &Self::File) -> io::Result<()>;
    /// Takes space for `len` bytes at `offset`, and none before it, and extends the file if needed; the range reads as
    /// zeros, its extents are *unwritten*.
    async fn preallocate(&self, file: &Self::File, offset: u64, len: u64) -> io::Result<()>;
    /// Makes a range of `to` share the extents of the same range of `from`, where the file system can: both
    /// read the same from now on, and a write to one never changes the other. `offset` and `len` are
    /// multiples of 4,096. Durable after [`Runtime::fsync`] of `to`. A later write into a shared range, on
    /// either side, needs new space and a sync of its file like an unwritten one, and may meet a full
    /// disk; [`Runtime::unshare_range`] takes the space before. The data must be durable in `from`.
    /// `EOPNOTSUPP`, `EXDEV` or `EINVAL` where the file system cannot: then copy.
    async fn clone_range(&self, from: &Self::File, to: &Self::File, offset: u64, len: u64) -> io::Result<()>;
    /// Gives a range extents of its own, with the bytes that it has; durable after [`Runtime::fsync`]. From
    /// then on writes into it are as into any written range. `ENOSPC` leaves it readable as it was.
    async fn unshare_range(&self, file: &Self::File, offset: u64, len: u64) -> io::Result<()>;
    /// Gives the space of a range back: it reads as zeros, the file stays as long as it is. Durable after
    /// [`Runtime::fsync`].
    async fn punch_hole(&self, file: &Self::File, offset: u64, len: u64) -> io::Result<()>;
    /// Durable on return: the names in this folder.
    async fn sync_folder(&self, root: &Path, folder: Folder) -> io::Result<()>;
    /// Durable on return: everything in the file system under `root`. Start-up only.
    async fn sync_file_system(&self, root: &Path) -> io::Result<()>;
    /// Space of the file system under `root`.
    async fn space(&self, root: &Path) -> io::Result<DiskSpace>;

    /// Dials; `TCP_NODELAY` is set.
    async fn connect(&self, address: SocketAddr) -> io::Result<(Self::Reader, Self::Writer)>;
    /// Takes over a connection that another thread accepted; `TCP_NODELAY` is set.
    fn adopt(&self, stream: std::net::TcpStream) -> io::Result<(Self::Reader, Self::Writer)>;
    /// Receives at least one and at most `max` bytes, appended to `into`; the same length back means
    /// the peer has closed. For headers and control messages. Dropping the future loses the
    /// connection: close it.
    async fn recv_some(&self, reader: &mut Self::Reader, into: Vec<u8>, max: usize) -> io::Result<Vec<u8>>;
    /// Fills `range` of `buf` from the connection. `UnexpectedEof` when the peer closes before.
    /// Dropping the future loses the connection: close it.
    async fn recv_exact(
        &self,
        reader: &mut Self::Reader,
        buf: Self::MutBuf,
        range: Range<usize>,
    ) -> io::Result<Self::MutBuf>;
    /// Sends `head`, then `payload`, as one stream of bytes and, where the kernel takes it, in one
    /// call. Dropping the future loses the connection: close it.
    async fn send_all(&self, writer: &mut Self::Writer, head: Vec<u8>, payload: Option<Self::Buf>) -> io::Result<()>;

    /// Bytes that nobody can guess, from the operating system. The simulation draws them from its seed.
    fn random(&self, into: &mut [u8]) -> io::Result<()> {
        getrandom::fill(into).map_err(io::Error::other)
    }

    /// Runs a task on this shard until it ends, whoever forgets it. The shard does not stop before
    /// its tasks' I/O has ended.
    fn spawn(&self, task: impl Future<Output = ()> + 'static);
    /// Waits; cancel by dropping.
    async fn sleep(&self, duration: Duration);
    /// Lets other tasks run, and completions and timers arrive. For work of more than 100 µs.
    async fn yield_now(&self);
    /// Time since the shard started. Monotonic, not wall time.
    fn now(&self) -> Duration;
}
