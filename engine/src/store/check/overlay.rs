//! A disk that is written to in memory only: over a disk that is only read.
//!
//! Recovery runs on it unchanged, so that what is judged afterwards is what a start would find, and
//! no byte of the disk changes. Files are opened for reading; pages that were written shadow those
//! of the disk; syncs have nothing to do.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::runtime::{DiskSpace, FileId, Folder, Open, Runtime};
use crate::store::layout::PAGE;
use crate::store::page::Page;

/// Memory for pages that were written. Recovery writes images out of the journal and the trailers of
/// slots that it changes; more than this is no journal of ours.
const WRITTEN_MAX: usize = 1 << 30;

/// What was written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Written {
    files: BTreeMap<FileId, Pages>,
    pages: usize,
}

/// Pages of one file by number.
#[derive(Clone, Debug, Default)]
struct Pages(BTreeMap<u64, Box<Page>>);

impl Pages {
    fn end(&self) -> u64 {
        self.0.last_key_value().map_or(0, |(page, _)| (page + 1) * PAGE as u64)
    }
}

impl Written {
    fn put(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let pages = &mut self.files.entry(file).or_default().0;
        for (number, page) in (offset / PAGE as u64..).zip(bytes.as_chunks::<PAGE>().0) {
            self.pages += usize::from(pages.insert(number, Box::new(*page)).is_none());
        }
        if self.pages * PAGE > WRITTEN_MAX {
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, "recovery would write more than 1 GiB"));
        }
        Ok(())
    }

    /// Pages of `file` in this range.
    fn pages(&self, file: FileId, range: &Range<u64>) -> impl Iterator<Item = (u64, &Page)> {
        let page = PAGE as u64;
        let pages = range.start / page..range.end / page;
        self.files
            .get(&file)
            .into_iter()
            .flat_map(move |own| own.0.range(pages.clone()))
            .map(|(at, page)| (*at, &**page))
    }

    fn end(&self, file: FileId) -> u64 {
        self.files.get(&file).map_or(0, Pages::end)
    }
}

/// A runtime whose disk is only read.
#[derive(Clone)]
pub(crate) struct Overlay<R: Runtime> {
    rt: R,
    written: Rc<RefCell<Arc<Written>>>,
}

/// A file of it; one without a file below exists here only.
#[derive(Clone)]
pub(crate) struct OverlayFile<F> {
    id: FileId,
    below: Option<F>,
}

impl<R: Runtime> Overlay<R> {
    pub(crate) fn new(rt: R, written: Arc<Written>) -> Self {
        Self { rt, written: Rc::new(RefCell::new(written)) }
    }

    /// What was written so far: another overlay of the same disk can go on from it.
    pub(crate) fn written(&self) -> Arc<Written> {
        Arc::clone(&self.written.borrow())
    }

    /// Shadows pages of a file.
    pub(crate) fn put(&self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        Arc::make_mut(&mut self.written.borrow_mut()).put(file, offset, bytes)
    }
}

impl<R: Runtime> Runtime for Overlay<R> {
    type MutBuf = R::MutBuf;
    type Buf = R::Buf;
    type File = OverlayFile<R::File>;
    type Reader = R::Reader;
    type Writer = R::Writer;

    async fn alloc(&self, len: usize) -> R::MutBuf {
        self.rt.alloc(len).await
    }

    fn try_alloc(&self, len: usize) -> Option<R::MutBuf> {
        self.rt.try_alloc(len)
    }

    fn has_room(&self, len: usize) -> bool {
        self.rt.has_room(len)
    }

    fn freeze(&self, buf: R::MutBuf) -> R::Buf {
        self.rt.freeze(buf)
    }

    fn slice(&self, buf: &R::Buf, range: Range<usize>) -> R::Buf {
        self.rt.slice(buf, range)
    }

    async fn open(&self, root: &Path, file: FileId, how: Open) -> io::Result<Self::File> {
        let below = match self.rt.open(root, file, Open::ReadOnly).await {
            Ok(below) => Some(below),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if below.is_none() && how != Open::Create && self.written().end(file) == 0 {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(OverlayFile { id: file, below })
    }

    async fn file_len(&self, root: &Path, file: FileId) -> io::Result<Option<u64>> {
        let (below, here) = (self.rt.file_len(root, file).await?, self.written().end(file));
        Ok(if here == 0 { below } else { Some(below.unwrap_or(0).max(here)) })
    }

    async fn write_at(&self, file: &Self::File, buf: R::Buf, offset: u64) -> io::Result<usize> {
        let bytes = buf.as_ref();
        assert!(bytes.len().is_multiple_of(PAGE) && offset.is_multiple_of(PAGE as u64), "direct I/O is in blocks");
        self.put(file.id, offset, bytes)?;
        Ok(bytes.len())
    }

    async fn read_at(&self, file: &Self::File, len: usize, offset: u64) -> io::Result<R::Buf> {
        let written = self.written();
        let range = offset..offset + len as u64;
        let shadows = written.pages(file.id, &range).count();
        let whole = shadows * PAGE == len;
        let below = match &file.below {
            // What is shadowed as a whole need not be readable below.
            Some(below) if !whole => Some(self.rt.read_at(below, len, offset).await?),
            _ => None,
        };
        if let (0, Some(below)) = (shadows, &below) {
            return Ok(below.clone());
        }
        let below = below.as_ref().map_or(&[][..], AsRef::as_ref);
        let here = usize::try_from(written.end(file.id).saturating_sub(offset)).unwrap_or(usize::MAX).min(len);
        let mut buf = self.rt.alloc(below.len().max(here)).await;
        let bytes = buf.as_mut();
        bytes[..below.len()].copy_from_slice(below);
        bytes[below.len()..].fill(0);
        for (number, page) in written.pages(file.id, &range) {
            let at = usize::try_from(number * PAGE as u64 - offset).unwrap_or(usize::MAX);
            bytes[at..at + PAGE].copy_from_slice(page);
        }
        Ok(self.rt.freeze(buf))
    }

    async fn fdatasync(&self, _file: &Self::File) -> io::Result<()> {
        Ok(())
    }

    async fn fsync(&self, _file: &Self::File) -> io::Result<()> {
        Ok(())
    }

    async fn preallocate(&self, _file: &Self::File, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    /// What is here has no extents to share: whoever asks copies.
    async fn clone_range(&self, _from: &Self::File, _to: &Self::File, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }

    /// Writes go to memory, whoever shares what lies below.
    async fn unshare_range(&self, _file: &Self::File, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    async fn punch_hole(&self, _file: &Self::File, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }

    async fn sync_folder(&self, _root: &Path, _folder: Folder) -> io::Result<()> {
        Ok(())
    }

    async fn sync_file_system(&self, _root: &Path) -> io::Result<()> {
        Ok(())
    }

    async fn space(&self, root: &Path) -> io::Result<DiskSpace> {
        self.rt.space(root).await
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<(R::Reader, R::Writer)> {
        self.rt.connect(address).await
    }

    fn adopt(&self, stream: TcpStream) -> io::Result<(R::Reader, R::Writer)> {
        self.rt.adopt(stream)
    }

    async fn recv_some(&self, reader: &mut R::Reader, into: Vec<u8>, max: usize) -> io::Result<Vec<u8>> {
        self.rt.recv_some(reader, into, max).await
    }

    async fn recv_exact(&self, reader: &mut R::Reader, buf: R::MutBuf, range: Range<usize>) -> io::Result<R::MutBuf> {
        self.rt.recv_exact(reader, buf, range).await
    }

    async fn send_all(&self, writer: &mut R::Writer, head: Vec<u8>, payload: Option<R::Buf>) -> io::Result<()> {
        self.rt.send_all(writer, head, payload).await
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.rt.spawn(task);
    }

    async fn sleep(&self, duration: Duration) {
        self.rt.sleep(duration).await;
    }

    async fn yield_now(&self) {
        self.rt.yield_now().await;
    }

    fn now(&self) -> Duration {
        self.rt.now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::sim::{Sim, SimDisk, SimRuntime};

    const FILE: FileId = FileId::Slot(0);

    async fn page(rt: &SimRuntime, byte: u8, pages: usize) -> <SimRuntime as Runtime>::Buf {
        let mut buf = rt.alloc(pages * PAGE).await;
        buf.as_mut().fill(byte);
        rt.freeze(buf)
    }

    #[test]
    fn what_is_written_is_read_back_and_the_disk_stays_as_it_is() {
        let disk = SimDisk::new(1 << 20);
        let sim = Sim::with_disk(1, &disk);
        let root = sim.root();
        sim.run(|rt| async move {
            let file = rt.open(&root, FILE, Open::Create).await.unwrap();
            rt.write_at(&file, page(&rt, 1, 4).await, 0).await.unwrap();
            let writes = disk.stats().writes;

            let over = Overlay::new(rt.clone(), Arc::default());
            let file = over.open(&root, FILE, Open::Existing).await.unwrap();
            over.write_at(&file, page(&rt, 2, 1).await, 4096).await.unwrap();
            over.write_at(&file, page(&rt, 3, 1).await, 5 * 4096).await.unwrap();
            let bytes = over.read_at(&file, 8 * PAGE, 0).await.unwrap();
            let firsts: Vec<u8> = bytes.as_ref().chunks(PAGE).map(|page| page[4095]).collect();
            assert_eq!(firsts, [1, 2, 1, 1, 0, 3], "shadowed, below, a hole, behind the end");
            assert_eq!(over.file_len(&root, FILE).await.unwrap(), Some(6 * 4096));

            // Another thread's overlay of the same disk.
            let again = Overlay::new(rt.clone(), over.written());
            let file = again.open(&root, FILE, Open::Existing).await.unwrap();
            assert_eq!(again.read_at(&file, PAGE, 4096).await.unwrap().as_ref(), [2; PAGE]);

            // A file that exists here only.
            let missing = over.open(&root, FileId::Slot(1), Open::Existing).await.err().unwrap();
            assert_eq!(missing.kind(), io::ErrorKind::NotFound);
            let made = over.open(&root, FileId::Slot(1), Open::Create).await.unwrap();
            over.write_at(&made, page(&rt, 4, 1).await, 0).await.unwrap();
            let found = over.open(&root, FileId::Slot(1), Open::Existing).await.unwrap();
            assert_eq!(over.read_at(&found, 2 * PAGE, 0).await.unwrap().as_ref(), [4; PAGE]);

            assert_eq!((disk.stats().writes, disk.files().len()), (writes, 1));
            let below = rt.open(&root, FILE, Open::ReadOnly).await.unwrap();
            assert_eq!(rt.read_at(&below, PAGE, 4096).await.unwrap().as_ref(), [1; PAGE]);
            let refused = rt.write_at(&below, page(&rt, 9, 1).await, 0).await.unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EBADF));
        });
    }
}
