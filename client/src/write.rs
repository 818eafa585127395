//! Writing at an offset: in place below the end, new chunks past it.

use bytes::Bytes;
use tokio::time::Instant;
use wire::namespace::Attr;
use wire::upload::Splice;
use wire::{InodeId, Kind, NamePath};

use crate::append::is_dir;
use crate::clock::now;
use crate::overwrite::overwrite;
use crate::retry::pause;
use crate::upload::{Body, seal_tail};
use crate::{Client, Error};

impl Client {
    /// Writes at an offset at most the file's length; extends the file when it reaches past the end.
    /// Returns the bytes written. Durable on every replica when this returns, and written once however
    /// often it had to be sent.
    ///
    /// Bytes that exist are written in place: their chunks are re-opened for it, an open last chunk is
    /// sealed first. What lies past the end becomes new chunks. A reader sees each mebibyte of a chunk as
    /// it was before or after, and never the old one after the new one; of a longer write it may see a
    /// part. Two writers at the same place: one after the other, in the same order on every replica.
    /// Dropping the future leaves any number of its mebibytes written.
    ///
    /// # Errors
    ///
    /// `Invalid` when the offset is past the end; `NotFound`; `Conflict` for a directory; `Precondition`
    /// when others replace the file all the time; `Unknown` at the deadline. After any of them the
    /// first mebibytes may be written.
    pub async fn write_at(&self, path: &NamePath, offset: u64, data: Bytes) -> Result<u64, Error> {
        let deadline = now() + self.inner.config.deadline;
        if offset.checked_add(data.len() as u64).is_none() {
            return Err(past_the_end(offset));
        }
        let mut done = 0;
        for tries in 0.. {
            let rest = data.slice(done..);
            match self.write_some(path, offset + done as u64, &rest, deadline).await {
                Ok(written) if written == rest.len() => return Ok(data.len() as u64),
                Ok(written) => done += written,
                Err(error) if error.kind() == Kind::Precondition && now() < deadline => {
                    self.inner.counters.retries.add(1);
                    tokio::time::sleep(pause(tries, self.inner.noise.next())).await;
                }
                Err(error) => return Err(error),
            }
        }
        Err(Error::new(Kind::Precondition, "the file changes all the time"))
    }

    /// What lies below the end, or else what lies past it.
    async fn write_some(&self, path: &NamePath, offset: u64, data: &Bytes, deadline: Instant) -> Result<usize, Error> {
        let attr = self.writable(path, offset).await?;
        let below = usize::try_from(attr.len - offset).map_or(data.len(), |below| below.min(data.len()));
        if below > 0 {
            overwrite(&self.inner, attr.inode, offset, &data.slice(..below), deadline).await?;
            return Ok(below);
        }
        if !data.is_empty() {
            self.extend(path, offset, data, attr).await?;
        }
        Ok(data.len())
    }

    /// Adds chunks with these bytes at the end, where `offset` is.
    async fn extend(&self, path: &NamePath, offset: u64, data: &Bytes, mut attr: Attr) -> Result<(), Error> {
        if attr.tail.is_some() {
            seal_tail(&self.inner, attr.inode).await?;
            attr = self.writable(path, offset).await?;
        }
        if attr.tail.is_some() || attr.len != offset {
            return Err(Error::new(Kind::Precondition, changed_text(attr.inode)));
        }
        let mut body = Body::begin(&self.inner, "", String::new()).await?;
        body.write(data.clone()).await?;
        let (upload, _) = body.complete().await?;
        let (file, version, index) = (attr.inode, attr.version, attr.chunks);
        let request = self.inner.request_id();
        self.inner.change(&Splice { request, file, version, index, remove: 0, upload }).await?;
        body.used_up();
        self.inner.locations.forget(file);
        Ok(())
    }

    async fn writable(&self, path: &NamePath, offset: u64) -> Result<Attr, Error> {
        let attr = self.stat(path).await?;
        if attr.is_dir {
            return Err(is_dir(path));
        }
        if offset > attr.len { Err(past_the_end(offset)) } else { Ok(attr) }
    }
}

fn past_the_end(offset: u64) -> Error {
    Error::new(Kind::Invalid, format!("write offset [{offset}] cannot be greater than the file size"))
}

pub(crate) fn changed_text(file: InodeId) -> String {
    format!("file {file} was changed by someone else")
}
