//! The simulated backend: one thread, a virtual clock, a disk that may forget, a network that may fail.
//!
//! ```
//! use engine::runtime::sim::{Sim, SimDisk};
//! use engine::runtime::{FileId, Folder, Open, Runtime};
//!
//! let sim = Sim::new(7); // the seed decides every choice; print it when a test fails
//! let root = sim.root();
//! sim.run(|rt| {
//!     let root = root.clone();
//!     async move {
//!         let file = rt.open(&root, FileId::Slot(0), Open::Create).await.unwrap();
//!         let buf = rt.freeze(rt.alloc(4096).await);
//!         rt.write_at(&file, buf, 0).await.unwrap();
//!         rt.fsync(&file).await.unwrap();
//!         rt.sync_folder(&root, Folder::Slots).await.unwrap();
//!         rt.sync_folder(&root, Folder::Root).await.unwrap();
//!     }
//! });
//! let disk: SimDisk = sim.disk(); // outlives the simulation
//! drop(sim); // all tasks and their memory are gone
//! disk.power_cut(7); // unflushed sectors survive or not, each on its own
//! assert_eq!(disk.files(), [FileId::Slot(0)]);
//! let again = Sim::with_disk(8, &disk); // and the next life starts from it
//! # drop(again);
//! ```
//!
//! # Lives and deaths
//!
//! * [`Sim::run`] runs one future to its end and gives its output. Tasks it spawned stay and go on with
//!   the next `run`; [`Sim::drain`] waits for them.
//! * [`Sim::run_until`] stops in the middle, whenever a predicate asked after each step says so: crash
//!   there. Together with [`SimDisk::changes`] and [`SimDisk::fork`] this visits every state of the disk.
//! * [`World::crash`] is `kill -9` of one process; [`SimDisk::crash`] the same for all users of a disk
//!   when the simulation is dropped as a whole; [`SimDisk::power_cut`] is the plug.
//! * [`SimDisk::unflushed`] lists what a cut would decide over, [`SimDisk::power_cut_keeping`] decides it.
//!
//! # Determinism
//!
//! The same seed and the same code give the same [`World::trace_hash`]. What breaks it: iteration over
//! `HashMap`, reading the clock, threads, `select!` without `biased` (both tokio's and futures' draw from
//! a random state of their own: use `tokio::select! { biased; .. }` or `select_biased!`).

mod buf;
pub mod campaign;
mod cut;
mod disk;
mod executor;
mod fault;
mod image;
mod net;
mod rng;
mod share;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

pub use buf::{SimBuf, SimMutBuf};
pub use cut::Unit;
pub use disk::{DiskStats, SimDisk, Timing};
pub use executor::NodeId;
pub use fault::{Fault, Op, Rule};
pub use image::Extent;
pub use net::{SimListener, SimReader, SimWriter};
pub use rng::Rng;

use self::disk::{Answer, Call, Handle};
use self::executor::Core;
use self::image::Page;
use super::pool::{PAGE, Pool};
use super::{DiskSpace, FileId, Folder, Open, Runtime};

/// Where [`Sim::new`] and [`Sim::with_disk`] attach their disk.
const ROOT: &str = "/sim";
/// Size of the disk that [`Sim::new`] makes: 4 GiB, of which only what is written takes memory.
const DISK_BYTES: u64 = 4 << 30;
/// Buffers that a runtime made without a size hands out.
const MEMORY: usize = 64 << 20;
/// Virtual time that a yield takes.
const YIELD: Duration = Duration::from_nanos(100);
/// Steps at one instant after which a run is stuck.
const STEPS_MAX: u64 = 1_000_000;

/// A simulation. Dropping it drops every task in it; its disks stay.
pub struct Sim {
    world: World,
    main: SimRuntime,
}

/// A handle to a simulation: makes processes, kills them, cuts links. May be used inside its tasks.
#[derive(Clone)]
pub struct World(Rc<Core>);

impl Sim {
    /// A simulation with one disk of 4 GiB, attached at [`Sim::root`].
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::with_disk(seed, &SimDisk::new(DISK_BYTES))
    }

    /// A simulation that goes on with a disk, attached at [`Sim::root`].
    #[must_use]
    pub fn with_disk(seed: u64, disk: &SimDisk) -> Self {
        let world = World(Rc::new(Core::new(seed)));
        world.attach(Path::new(ROOT), disk);
        let main = world.start(world.node(), MEMORY);
        Self { world, main }
    }

    /// The folder at which the first disk is attached.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        ROOT.into()
    }

    /// The disk attached at [`Sim::root`].
    #[must_use]
    pub fn disk(&self) -> SimDisk {
        let Ok(disk) = self.world.disk_at(Path::new(ROOT)) else { unreachable!("attached when it was made") };
        disk
    }

    /// Runs `work` to its end and gives its output; time passes, other tasks run. What it spawned stays.
    ///
    /// # Panics
    ///
    /// With the seed and the last events, when nothing can happen any more and `work` has not ended.
    pub fn run<W, T>(&self, work: impl FnOnce(SimRuntime) -> W) -> T
    where
        W: Future<Output = T> + 'static,
        T: 'static,
    {
        match self.run_until(work, |_| false) {
            Some(output) => output,
            None => unreachable!("nobody asked to stop"),
        }
    }

    /// As [`Sim::run`], but gives up, with `None`, as soon as `stop` says so; it is asked after each
    /// step. The work stays where it is: crash it, drop the simulation, or go on with another `run`.
    pub fn run_until<W, T>(&self, work: impl FnOnce(SimRuntime) -> W, mut stop: impl FnMut(&World) -> bool) -> Option<T>
    where
        W: Future<Output = T> + 'static,
        T: 'static,
    {
        let output = Rc::new(RefCell::new(None));
        let (work, slot) = (work(self.main.clone()), Rc::clone(&output));
        self.main.spawn(async move {
            let value = work.await;
            *slot.borrow_mut() = Some(value);
        });
        let core = &self.world.0;
        let mut last = (core.now.get(), core.steps());
        loop {
            let going = core.step();
            if let Some(output) = output.borrow_mut().take() {
                return Some(output);
            }
            if stop(&self.world) {
                return None;
            }
            if !going {
                self.world.fail("deadlock: nothing can happen any more");
            }
            if core.now.get() != last.0 {
                last = (core.now.get(), core.steps());
            } else if core.steps() - last.1 > STEPS_MAX {
                self.world.fail("livelock: a million steps and no time passes");
            }
        }
    }

    /// Runs until every task of the first process has ended.
    ///
    /// # Panics
    ///
    /// As [`Sim::run`].
    pub fn drain(&self) {
        let core = &self.world.0;
        while core.tasks(self.main.node) > 0 {
            if !core.step() {
                self.world.fail("deadlock: tasks wait for ever");
            }
        }
    }
}

impl Deref for Sim {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.world.0.clear();
    }
}

impl World {
    /// A new process. It does nothing before [`World::start`].
    #[must_use]
    pub fn node(&self) -> NodeId {
        let node = self.0.nodes.get();
        self.0.nodes.set(node + 1);
        NodeId(node)
    }

    /// A shard of a process with `memory` bytes of buffers. Spawn its work on the runtime.
    #[must_use]
    pub fn start(&self, node: NodeId, memory: usize) -> SimRuntime {
        SimRuntime { core: Rc::clone(&self.0), node, pool: Pool::new(memory), started: self.0.now.get() }
    }

    /// `kill -9`: the process's tasks and memory are gone, its disk calls in flight happened or not, its
    /// peers see ends or resets (nothing beyond a cut link). A later life is another [`World::node`].
    pub fn crash(&self, node: NodeId) {
        self.0.trace("crash", node, &[]);
        net::crash(&self.0, node);
        self.0.kill(node);
        let disks: Vec<SimDisk> = self.0.disks.borrow().values().cloned().collect();
        for disk in disks {
            disk.crash_node(node.0, &mut self.0.disk_rng.borrow_mut());
        }
    }

    /// Makes a disk appear under a root, in every process.
    pub fn attach(&self, root: &Path, disk: &SimDisk) {
        self.0.disks.borrow_mut().insert(root.to_owned(), disk.clone());
    }

    /// Nothing sent from `from` reaches `to` until [`World::heal`]; connections stay half-open.
    pub fn cut(&self, from: NodeId, to: NodeId) {
        net::cut(&self.0, from, to);
    }

    /// What is sent from `from` reaches `to` again, and what was sent meanwhile arrives.
    pub fn mend(&self, from: NodeId, to: NodeId) {
        net::mend(&self.0, from, to);
    }

    /// Every link works again; what was sent arrives.
    pub fn heal(&self) {
        net::heal(&self.0);
    }

    /// Resets every connection between two processes.
    pub fn reset(&self, a: NodeId, b: NodeId) {
        net::reset(&self.0, a, b);
    }

    /// Delay of everything sent from now on, one way.
    ///
    /// # Panics
    ///
    /// When `least` is more than `most`.
    pub fn set_delay(&self, least: Duration, most: Duration) {
        net::set_delay(&self.0, least, most);
    }

    /// Virtual time since the simulation began.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.0.now.get()
    }

    /// The seed.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.0.seed
    }

    /// Hash over every event so far: equal for equal seeds and code.
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        self.0.hash()
    }

    /// The last 200 events, one line each.
    #[must_use]
    pub fn recent(&self) -> Vec<String> {
        self.0.recent()
    }

    /// Adds an event of one's own to the trace.
    pub fn note(&self, node: NodeId, what: &str) {
        self.0.trace_text("note", node, what);
    }

    fn disk_at(&self, root: &Path) -> io::Result<SimDisk> {
        disk_at(&self.0, root)
    }

    fn fail(&self, what: &str) -> ! {
        let events = self.recent().join("\n");
        panic!(
            "{what}; seed={:#x} time={:?} hash={:#x}; last events:\n{events}",
            self.seed(),
            self.now(),
            self.0.hash()
        );
    }
}

/// Real time, for the rates that campaigns print: nothing is decided by it.
#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a campaign prints how long it took")]
pub(crate) fn real_time() -> std::time::Instant {
    std::time::Instant::now()
}

fn disk_at(core: &Core, root: &Path) -> io::Result<SimDisk> {
    core.disks.borrow().get(root).cloned().ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
}

/// A shard of a simulated process.
#[derive(Clone)]
pub struct SimRuntime {
    core: Rc<Core>,
    node: NodeId,
    pool: Pool,
    started: Duration,
}

/// An open file of a simulated disk.
#[derive(Clone)]
pub struct SimFile {
    disk: SimDisk,
    handle: Handle,
}

impl SimRuntime {
    /// The process this shard belongs to.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The simulation.
    #[must_use]
    pub fn world(&self) -> World {
        World(Rc::clone(&self.core))
    }

    /// Takes connections at an address, which is the whole simulation's.
    ///
    /// # Errors
    ///
    /// `AddrInUse`.
    pub fn listen(&self, address: SocketAddr) -> io::Result<SimListener> {
        net::listen(&self.core, self.node, address)
    }

    /// Submits a call and waits for its answer. The call happens whoever waits for it.
    async fn call(&self, disk: &SimDisk, kind: &'static str, numbers: &[u64], call: Call) -> io::Result<Answer> {
        struct Slot {
            answer: Option<io::Result<Answer>>,
            waker: Option<Waker>,
        }
        let (ticket, takes) = disk.submit(self.node.0, call, &mut self.core.disk_rng.borrow_mut());
        self.core.trace(kind, self.node, numbers);
        let slot = Rc::new(RefCell::new(Slot { answer: None, waker: None }));
        let (filled, weak, disk, node) = (Rc::clone(&slot), Rc::downgrade(&self.core), disk.clone(), self.node);
        self.core.act_at(self.core.now.get() + takes, move || {
            let Some(core) = weak.upgrade() else { return };
            let answer = disk.complete(ticket, &mut core.disk_rng.borrow_mut());
            let code = match &answer {
                Ok(Answer::Count(count)) => *count as u64,
                Ok(Answer::Bytes(bytes)) => bytes.len() as u64,
                Ok(Answer::Handle(_) | Answer::Done) => 0,
                Err(error) => u64::from(error.raw_os_error().unwrap_or(0).unsigned_abs()) << 32,
            };
            core.trace("completed", node, &[ticket, code]);
            let waker = {
                let mut slot = filled.borrow_mut();
                slot.answer = Some(answer);
                slot.waker.take()
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        });
        std::future::poll_fn(|context| {
            let mut slot = slot.borrow_mut();
            match slot.answer.take() {
                Some(answer) => Poll::Ready(answer),
                None => {
                    slot.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl Runtime for SimRuntime {
    type MutBuf = SimMutBuf;
    type Buf = SimBuf;
    type File = SimFile;
    type Reader = SimReader;
    type Writer = SimWriter;

    async fn alloc(&self, len: usize) -> SimMutBuf {
        SimMutBuf::new(len, Some(self.pool.lease(len).await))
    }

    fn try_alloc(&self, len: usize) -> Option<SimMutBuf> {
        Some(SimMutBuf::new(len, Some(self.pool.try_lease(len)?)))
    }

    fn has_room(&self, len: usize) -> bool {
        self.pool.has_room(len)
    }

    fn freeze(&self, buf: SimMutBuf) -> SimBuf {
        buf.freeze()
    }

    fn slice(&self, buf: &SimBuf, range: Range<usize>) -> SimBuf {
        buf.slice(range)
    }

    async fn open(&self, root: &Path, file: FileId, how: Open) -> io::Result<SimFile> {
        let disk = disk_at(&self.core, root)?;
        match self.call(&disk, "open", &numbers(file, 0, 0), Call::Open { file, how }).await? {
            Answer::Handle(handle) => Ok(SimFile { disk, handle }),
            Answer::Count(_) | Answer::Bytes(_) | Answer::Done => unreachable!("open answers a handle"),
        }
    }

    async fn file_len(&self, root: &Path, file: FileId) -> io::Result<Option<u64>> {
        Ok(disk_at(&self.core, root)?.len(file))
    }

    async fn write_at(&self, file: &SimFile, buf: SimBuf, offset: u64) -> io::Result<usize> {
        let bytes = buf.as_ref();
        assert!(bytes.len().is_multiple_of(PAGE) && offset.is_multiple_of(PAGE as u64), "direct I/O is in blocks");
        let pages: Vec<_> = bytes.as_chunks::<PAGE>().0.iter().map(Page::new).collect();
        let content = pages.iter().fold(0, |hash, page| rng::mix(hash ^ page.hash()));
        let [kind, number, offset_, len] = numbers(file.handle.file, offset, bytes.len());
        let numbers = [kind << 32 | number, offset_, len, content];
        match self.call(&file.disk, "write", &numbers, Call::Write { file: file.handle, offset, pages }).await? {
            Answer::Count(count) => Ok(count),
            Answer::Handle(_) | Answer::Bytes(_) | Answer::Done => unreachable!("a write answers a count"),
        }
    }

    async fn read_at(&self, file: &SimFile, len: usize, offset: u64) -> io::Result<SimBuf> {
        assert!(len.is_multiple_of(PAGE) && offset.is_multiple_of(PAGE as u64), "direct I/O is in blocks");
        let numbers = numbers(file.handle.file, offset, len);
        let lease = self.pool.charge(len);
        match self.call(&file.disk, "read", &numbers, Call::Read { file: file.handle, offset, len }).await? {
            Answer::Bytes(buf) => Ok(buf.charged(lease).freeze()),
            Answer::Handle(_) | Answer::Count(_) | Answer::Done => unreachable!("a read answers bytes"),
        }
    }

    async fn fdatasync(&self, file: &SimFile) -> io::Result<()> {
        let call = Call::Sync { file: file.handle, before: file.disk.mark() };
        self.call(&file.disk, "sync", &numbers(file.handle.file, 0, 0), call).await.map(drop)
    }

    async fn fsync(&self, file: &SimFile) -> io::Result<()> {
        self.fdatasync(file).await
    }

    async fn preallocate(&self, file: &SimFile, offset: u64, len: u64) -> io::Result<()> {
        let numbers = numbers(file.handle.file, offset, usize::try_from(len).unwrap_or(usize::MAX));
        let call = Call::Preallocate { file: file.handle, offset, len };
        self.call(&file.disk, "preallocate", &numbers, call).await.map(drop)
    }

    async fn clone_range(&self, from: &SimFile, to: &SimFile, offset: u64, len: u64) -> io::Result<()> {
        if !from.disk.is(&to.disk) {
            return Err(io::Error::from_raw_os_error(libc::EXDEV));
        }
        let numbers = numbers(to.handle.file, offset, usize::try_from(len).unwrap_or(usize::MAX));
        let call = Call::Clone { from: from.handle, file: to.handle, offset, len };
        self.call(&to.disk, "clone_range", &numbers, call).await.map(drop)
    }

    async fn unshare_range(&self, file: &SimFile, offset: u64, len: u64) -> io::Result<()> {
        let numbers = numbers(file.handle.file, offset, usize::try_from(len).unwrap_or(usize::MAX));
        let call = Call::Unshare { file: file.handle, offset, len };
        self.call(&file.disk, "unshare_range", &numbers, call).await.map(drop)
    }

    async fn punch_hole(&self, file: &SimFile, offset: u64, len: u64) -> io::Result<()> {
        let numbers = numbers(file.handle.file, offset, usize::try_from(len).unwrap_or(usize::MAX));
        let call = Call::Punch { file: file.handle, offset, len };
        self.call(&file.disk, "punch_hole", &numbers, call).await.map(drop)
    }

    async fn sync_folder(&self, root: &Path, folder: Folder) -> io::Result<()> {
        let disk = disk_at(&self.core, root)?;
        let call = Call::SyncFolder { folder, before: disk.mark() };
        self.call(&disk, "sync_folder", &[folder as u64], call).await.map(drop)
    }

    async fn sync_file_system(&self, root: &Path) -> io::Result<()> {
        let disk = disk_at(&self.core, root)?;
        let before = disk.mark();
        self.call(&disk, "sync_file_system", &[], Call::SyncAll { before }).await.map(drop)
    }

    async fn space(&self, root: &Path) -> io::Result<DiskSpace> {
        Ok(disk_at(&self.core, root)?.space())
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<(SimReader, SimWriter)> {
        net::connect(&self.core, self.node, address, async |time| self.sleep(time).await).await
    }

    /// Always `Unsupported`: a simulation has no real sockets. Use [`SimRuntime::listen`].
    fn adopt(&self, _stream: std::net::TcpStream) -> io::Result<(SimReader, SimWriter)> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "a simulation has no real sockets"))
    }

    async fn recv_some(&self, reader: &mut SimReader, mut into: Vec<u8>, max: usize) -> io::Result<Vec<u8>> {
        into.extend(reader.recv(max).await?);
        Ok(into)
    }

    async fn recv_exact(
        &self,
        reader: &mut SimReader,
        mut buf: SimMutBuf,
        range: Range<usize>,
    ) -> io::Result<SimMutBuf> {
        let mut at = range.start;
        while at < range.end {
            let bytes = reader.recv(range.end - at).await?;
            if bytes.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            buf.as_mut()[at..at + bytes.len()].copy_from_slice(&bytes);
            at += bytes.len();
        }
        Ok(buf)
    }

    async fn send_all(&self, writer: &mut SimWriter, head: Vec<u8>, payload: Option<SimBuf>) -> io::Result<()> {
        writer.send(&[&head, payload.as_ref().map_or(&[], |payload| payload.as_ref())]).await
    }

    fn random(&self, into: &mut [u8]) -> io::Result<()> {
        let mut rng = self.core.random_rng.borrow_mut();
        into.chunks_mut(8).for_each(|piece| piece.copy_from_slice(&rng.next().to_le_bytes()[..piece.len()]));
        Ok(())
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.core.spawn(self.node, task);
    }

    async fn sleep(&self, duration: Duration) {
        Sleep { core: Rc::clone(&self.core), until: self.core.now.get() + duration, key: None }.await;
    }

    /// Takes a little virtual time, so that whoever yields until something happens lets it happen.
    async fn yield_now(&self) {
        self.sleep(YIELD).await;
    }

    fn now(&self) -> Duration {
        self.core.now.get() - self.started
    }
}

struct Sleep {
    core: Rc<Core>,
    until: Duration,
    key: Option<(Duration, u64, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if let Some(key) = self.key.take() {
            self.core.cancel(key);
        }
        if self.core.now.get() >= self.until {
            return Poll::Ready(());
        }
        self.key = Some(self.core.wake_at(self.until, context.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.core.cancel(key);
        }
    }
}

fn numbers(file: FileId, offset: u64, len: usize) -> [u64; 4] {
    let (kind, number) = match file {
        FileId::DiskA => (0, 0),
        FileId::DiskB => (1, 0),
        FileId::Ring(number) => (2, number),
        FileId::Slot(number) => (3, number),
    };
    [kind, u64::from(number), offset, len as u64]
}
