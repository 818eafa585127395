//! Calls to the disk: whole, counted, page by page. Nothing here decides anything.

use std::cell::Cell;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use super::canary::{sometimes, weakened};
use super::flushes::Flushes;
use super::layout::PAGE;
use super::page::Page;
use super::types::Counters;
use crate::runtime::{Folder, Runtime};

/// A runtime's disk calls, counted; clones count together.
pub(crate) struct Io<R: Runtime> {
    pub(crate) rt: R,
    counters: Rc<Cell<Counters>>,
    flushes: Arc<Flushes>,
}

impl<R: Runtime> Clone for Io<R> {
    fn clone(&self) -> Self {
        Self { rt: self.rt.clone(), counters: Rc::clone(&self.counters), flushes: Arc::clone(&self.flushes) }
    }
}

impl<R: Runtime> Io<R> {
    /// For a disk that nobody else flushes meanwhile.
    pub(crate) fn new(rt: R) -> Self {
        Self::beside(rt, Arc::default())
    }

    /// For one of several that flush the same disk.
    pub(crate) fn beside(rt: R, flushes: Arc<Flushes>) -> Self {
        Self { rt, counters: Rc::default(), flushes }
    }

    /// The same, but what it flushes counts whatever has failed before: for what is written because of that.
    pub(crate) fn whatever_failed(&self) -> Self {
        Self { flushes: Arc::default(), ..self.clone() }
    }

    pub(crate) fn counters(&self) -> Counters {
        self.counters.get()
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut Counters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    /// Writes all of `buf`. A short write leaves its range unknown until the rest is written (rule R21).
    pub(crate) async fn write(&self, file: &R::File, buf: R::Buf, offset: u64) -> io::Result<()> {
        let len = buf.as_ref().len();
        let mut done = 0;
        while done < len {
            let rest = if done == 0 { buf.clone() } else { self.rt.slice(&buf, done..len) };
            let written = self.rt.write_at(file, rest, offset + done as u64).await;
            if written.is_err() {
                sometimes!("error from a write");
            }
            let count = written?;
            if count == 0 || !count.is_multiple_of(PAGE) {
                return Err(io::Error::new(io::ErrorKind::WriteZero, "device wrote part of a block"));
            }
            if done + count < len {
                sometimes!("short direct write");
            }
            done += if weakened!(ShortIsWhole) { len } else { count };
            self.count(|counters| {
                counters.device_writes += 1;
                counters.device_write_bytes += count as u64;
            });
        }
        Ok(())
    }

    /// Writes bytes that are not in a buffer of the pool yet, in pieces that fit into one.
    pub(crate) async fn write_bytes(&self, file: &R::File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut at = offset;
        for piece in bytes.chunks(COPY_MAX) {
            let mut buf = self.rt.alloc(piece.len()).await;
            buf.as_mut().copy_from_slice(piece);
            self.write(file, self.rt.freeze(buf), at).await?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Reads exactly `len` bytes.
    pub(crate) async fn read(&self, file: &R::File, len: usize, offset: u64) -> io::Result<R::Buf> {
        let first = self.read_some(file, len, offset).await?;
        if first.as_ref().len() == len {
            return Ok(first);
        }
        // It gives back what it holds before it waits for a buffer.
        drop(first);
        let mut whole = self.rt.alloc(len).await;
        let mut done = 0;
        while done < len {
            let next = self.read_some(file, len - done, offset + done as u64).await?;
            let count = next.as_ref().len();
            whole.as_mut()[done..done + count].copy_from_slice(next.as_ref());
            done += count;
        }
        Ok(self.rt.freeze(whole))
    }

    async fn read_some(&self, file: &R::File, len: usize, offset: u64) -> io::Result<R::Buf> {
        let read = self.rt.read_at(file, len, offset).await;
        if read.is_err() {
            sometimes!("error from a read");
        }
        let buf = read?;
        let count = buf.as_ref().len();
        self.count(|counters| {
            counters.device_reads += 1;
            counters.device_read_bytes += count as u64;
        });
        if count == 0 || count > len || !count.is_multiple_of(PAGE) {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "file ends too early"));
        }
        Ok(buf)
    }

    /// Reads a page.
    pub(crate) async fn read_page(&self, file: &R::File, offset: u64) -> io::Result<Box<Page>> {
        let buf = self.read(file, PAGE, offset).await?;
        let page = buf.as_ref().first_chunk::<PAGE>().ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(Box::new(*page))
    }

    /// A flush of the device, counted. It must run to its end ([`Flushes::run`]), as the other two: in a task of
    /// the store's own, never in one that a caller may drop.
    pub(crate) async fn flush(&self, file: &R::File) -> io::Result<()> {
        self.count(|counters| counters.flushes += 1);
        let flush = async {
            let flushed = self.rt.fdatasync(file).await;
            if flushed.is_err() {
                sometimes!("error from a flush");
                if weakened!(FlushRepeated) {
                    return self.rt.fdatasync(file).await;
                }
            }
            flushed
        };
        self.flushes.run(flush).await
    }

    /// A file with all that describes it.
    pub(crate) async fn fsync(&self, file: &R::File) -> io::Result<()> {
        self.flushes.run(self.rt.fsync(file)).await
    }

    /// Names in a folder.
    pub(crate) async fn sync_folder(&self, root: &Path, folder: Folder) -> io::Result<()> {
        self.flushes.run(self.rt.sync_folder(root, folder)).await
    }
}

/// Largest piece that is copied into a buffer of its own.
pub(crate) const COPY_MAX: usize = 1 << 20;
