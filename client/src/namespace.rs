//! Names: one master call each. Every change is durable at the master on return; dropping the future
//! leaves it done or not done, never half done.

use wire::heartbeat::{Cluster, ClusterOk};
use wire::locate::{Intent, Locations, Position};
use wire::member::Member;
use wire::namespace::{Attr, CreateFile, Delete, List, Listing, Mkdir, Rename, Trash, Undelete};
use wire::seal::{Digest, DigestOk};
use wire::{ChunkHandle, InodeId, NamePath};

use crate::{Client, Error};

impl Client {
    /// Makes a directory, and those above it; one that exists is fine.
    ///
    /// # Errors
    ///
    /// `Conflict` when a file is in the way. As for every change: `Unknown` when no answer came in time
    /// and it may have happened, `Unavailable` when it has not.
    pub async fn mkdir(&self, path: &NamePath) -> Result<Attr, Error> {
        let request = self.inner.request_id();
        Ok(self.inner.change(&Mkdir { request, path: path.as_str().into() }).await?)
    }

    /// Makes an empty file, and the directories above it.
    ///
    /// # Errors
    ///
    /// `Exists` when `exclusive` and there is one; `Conflict` when a directory has the name or a file
    /// is in the way.
    pub async fn create(&self, path: &NamePath, exclusive: bool) -> Result<Attr, Error> {
        let request = self.inner.request_id();
        Ok(self.inner.change(&CreateFile { request, path: path.as_str().into(), exclusive }).await?)
    }

    /// Hides a file or directory in the trash.
    ///
    /// # Errors
    ///
    /// `NotFound`; `Conflict` for a directory that is not empty, unless `recursive`.
    pub async fn delete(&self, path: &NamePath, recursive: bool) -> Result<Attr, Error> {
        let request = self.inner.request_id();
        Ok(self.inner.change(&Delete { request, path: path.as_str().into(), recursive }).await?)
    }

    /// Moves a file or directory; makes the directories above the target.
    ///
    /// # Errors
    ///
    /// `NotFound`; `Exists` when the target is taken, unless `replace` and it is a file; `Invalid` or
    /// `Conflict` when a directory would move into itself.
    pub async fn rename(&self, from: &NamePath, to: &NamePath, replace: bool) -> Result<Attr, Error> {
        let request = self.inner.request_id();
        let rename = Rename { request, from: from.as_str().into(), to: to.as_str().into(), replace };
        Ok(self.inner.change(&rename).await?)
    }

    /// Brings the newest deleted version of a path back.
    ///
    /// # Errors
    ///
    /// `NotFound`; `Exists` when the name is taken again.
    pub async fn undelete(&self, path: &NamePath) -> Result<Attr, Error> {
        let request = self.inner.request_id();
        Ok(self.inner.change(&Undelete { request, path: path.as_str().into() }).await?)
    }

    /// One page of a directory, or of the whole tree below it. Lengths of open files are the last
    /// reported ones. `after` is the `next` of the page before, empty for the first; `limit` 1 to 1,000.
    ///
    /// # Errors
    ///
    /// `NotFound`; `Unavailable` when the master does not answer.
    pub async fn list(&self, path: &NamePath, after: &str, limit: u32, recursive: bool) -> Result<Listing, Error> {
        Ok(self.inner.query(&List { path: path.as_str().into(), after: after.into(), limit, recursive }).await?)
    }

    /// One page of the trash, oldest first.
    ///
    /// # Errors
    ///
    /// `Unavailable` when the master does not answer.
    pub async fn trash(&self, after: &str, limit: u32) -> Result<Listing, Error> {
        Ok(self.inner.query(&Trash { after: after.into(), limit }).await?)
    }

    /// Where chunks of a file are, fresh from the master: up to `count` from this position on.
    ///
    /// # Errors
    ///
    /// `NotFound`; `Unavailable` when the master does not answer.
    pub async fn locations(&self, file: InodeId, at: Position, count: u32) -> Result<Locations, Error> {
        Ok(self.inner.locate(file, at, Intent::Read, count).await?)
    }

    /// Where one chunk is, by its handle.
    ///
    /// # Errors
    ///
    /// `NotFound`; `Unavailable` when the master does not answer.
    pub async fn locate_chunk(&self, chunk: ChunkHandle) -> Result<Locations, Error> {
        Ok(self.inner.locate_chunk(chunk).await?)
    }

    /// Asks one member for its replica's length and digest.
    ///
    /// # Errors
    ///
    /// `NotFound` when it holds no such chunk; `Unavailable` when it does not answer.
    pub async fn digest(&self, member: &Member, chunk: ChunkHandle) -> Result<DigestOk, Error> {
        let limit = self.inner.config.deadline;
        let conn = self.inner.pool.chunk(member, chunk, limit).await?;
        let (digest, _) = conn.call(&Digest { chunk, len: u32::MAX }, limit).await?;
        Ok(digest)
    }

    /// The state of the cluster as its master sees it.
    ///
    /// # Errors
    ///
    /// `Unavailable` when the master does not answer.
    pub async fn cluster(&self) -> Result<ClusterOk, Error> {
        Ok(self.inner.query(&Cluster).await?)
    }
}
