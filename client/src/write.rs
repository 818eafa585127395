//! Writing at an offset: the touched chunks are written anew and take the place of the old ones in one
//! step at the master.

use bytes::Bytes;
use wire::limits::PAGE_ENTRIES_MAX;
use wire::locate::{Intent, Position};
use wire::namespace::Attr;
use wire::upload::Splice;
use wire::{Kind, NamePath};

use crate::append::is_dir;
use crate::clock::now;
use crate::locations::{end_of, is_contiguous};
use crate::retry::pause;
use crate::upload::{Body, seal_tail};
use crate::{Client, Error};

/// The chunks that a write touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Touched {
    index: u32,
    count: u32,
    /// File offsets of their first byte and after their last.
    start: u64,
    end: u64,
}

impl Client {
    /// Writes at an offset at most the file's length; extends the file when it reaches past the end.
    /// Returns the bytes written. Durable on every replica when this returns.
    ///
    /// It is atomic: a reader that looks the file up sees all of it or nothing, and bytes around it
    /// stay as they are. One of two writers at the same time begins again with what the other left.
    /// The price is that every touched chunk is read and written whole, up to 64 MiB for one byte, and
    /// that an open last chunk is sealed first. Dropping the future leaves it written or not.
    ///
    /// # Errors
    ///
    /// `Invalid` when the offset is past the end; `NotFound`; `Conflict` for a directory;
    /// `Precondition` when others change the file all the time; `Unknown` at the deadline.
    pub async fn write_at(&self, path: &NamePath, offset: u64, data: Bytes) -> Result<u64, Error> {
        let deadline = now() + self.inner.config.deadline;
        for tries in 0.. {
            match self.write_once(path, offset, &data).await {
                Err(error) if error.kind() == Kind::Precondition && now() < deadline => {
                    self.inner.counters.retries.add(1);
                    tokio::time::sleep(pause(tries, self.inner.noise.next())).await;
                }
                outcome => return outcome,
            }
        }
        Err(Error::new(Kind::Precondition, "the file changes all the time"))
    }

    async fn write_once(&self, path: &NamePath, offset: u64, data: &Bytes) -> Result<u64, Error> {
        let len = data.len() as u64;
        let mut attr = self.writable(path, offset).await?;
        if len == 0 {
            return Ok(0);
        }
        if attr.tail.is_some() {
            seal_tail(&self.inner, attr.inode).await?;
            attr = self.writable(path, offset).await?;
        }
        if attr.tail.is_some() {
            return Err(changed(path));
        }
        let end = offset.checked_add(len).ok_or_else(|| past_the_end(offset))?;
        let touched = self.touched(path, &attr, offset, end).await?;
        let mut body = Body::begin(&self.inner, "", String::new()).await?;
        self.copy(&attr, touched.start..offset, &mut body).await?;
        body.write(data.clone()).await?;
        self.copy(&attr, end.min(touched.end)..touched.end, &mut body).await?;
        let (upload, _) = body.complete().await?;
        let (file, version, index, remove) = (attr.inode, attr.version, touched.index, touched.count);
        let request = self.inner.request_id();
        self.inner.change(&Splice { request, file, version, index, remove, upload }).await?;
        body.used_up();
        self.inner.locations.forget(file);
        Ok(len)
    }

    async fn writable(&self, path: &NamePath, offset: u64) -> Result<Attr, Error> {
        let attr = self.stat(path).await?;
        if attr.is_dir {
            return Err(is_dir(path));
        }
        if offset > attr.len { Err(past_the_end(offset)) } else { Ok(attr) }
    }

    /// Which chunks hold bytes of `offset .. end`, of exactly this version of the file.
    async fn touched(&self, path: &NamePath, attr: &Attr, offset: u64, end: u64) -> Result<Touched, Error> {
        if offset == attr.len {
            return Ok(Touched { index: attr.chunks, count: 0, start: offset, end: offset });
        }
        let end = end.min(attr.len);
        let mut touched: Option<Touched> = None;
        while touched.is_none_or(|touched| touched.end < end) {
            let at = touched.map_or(offset, |touched| touched.end);
            let page = self.inner.locate(attr.inode, Position::Offset(at), Intent::Read, PAGE_ENTRIES_MAX).await?;
            let stop = page.items.iter().position(|chunk| end_of(chunk) >= end);
            let used = &page.items[..stop.map_or(page.items.len(), |last| last + 1)];
            let (Some(first), Some(last)) = (used.first(), used.last()) else { return Err(changed(path)) };
            if page.version != attr.version || !is_contiguous(&page, at) {
                return Err(changed(path));
            }
            let begin = touched.unwrap_or(Touched { index: first.index, count: 0, start: first.start, end: 0 });
            let count = last.index.checked_sub(begin.index).ok_or_else(|| changed(path))? + 1;
            touched = Some(Touched { count, end: end_of(last), ..begin });
        }
        touched.ok_or_else(|| changed(path))
    }

    async fn copy(&self, attr: &Attr, range: std::ops::Range<u64>, body: &mut Body) -> Result<(), Error> {
        let mut old = self.read(attr, range);
        while let Some(bytes) = old.next().await {
            body.write(bytes?).await?;
        }
        Ok(())
    }
}

fn past_the_end(offset: u64) -> Error {
    Error::new(Kind::Invalid, format!("write offset [{offset}] cannot be greater than the file size"))
}

fn changed(path: &NamePath) -> Error {
    Error::new(Kind::Precondition, format!("{path} was changed by someone else"))
}
