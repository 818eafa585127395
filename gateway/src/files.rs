//! The seam between HTTP and the cluster: what the gateway needs of [`client::Client`], so that every
//! route can be tested against a cluster in memory.

use std::future::Future;
use std::ops::Range;

use bytes::Bytes;
use client::{Appended, Client, Error, Stats, UploadOptions};
use wire::heartbeat::ClusterOk;
use wire::locate::{Locations, Position};
use wire::member::Member;
use wire::namespace::{Attr, Listing};
use wire::seal::DigestOk;
use wire::{ChunkHandle, InodeId, NamePath};

/// Whatever a call gives, to be awaited on any thread.
pub(crate) type Answer<T> = Result<T, Error>;

/// The calls of [`client::Client`], with its promises.
pub(crate) trait Files: Clone + Send + Sync + 'static {
    /// An upload in progress.
    type Upload: Upload;
    /// A read in progress.
    type Read: Read;

    fn stats(&self) -> Stats;
    fn stat(&self, path: &NamePath) -> impl Future<Output = Answer<Attr>> + Send;
    fn mkdir(&self, path: &NamePath) -> impl Future<Output = Answer<Attr>> + Send;
    fn create(&self, path: &NamePath, exclusive: bool) -> impl Future<Output = Answer<Attr>> + Send;
    fn delete(&self, path: &NamePath, recursive: bool) -> impl Future<Output = Answer<Attr>> + Send;
    fn rename(&self, from: &NamePath, to: &NamePath, replace: bool) -> impl Future<Output = Answer<Attr>> + Send;
    fn undelete(&self, path: &NamePath) -> impl Future<Output = Answer<Attr>> + Send;
    fn list(
        &self,
        path: &NamePath,
        after: &str,
        limit: u32,
        recursive: bool,
    ) -> impl Future<Output = Answer<Listing>> + Send;
    fn locations(&self, file: InodeId, at: Position, count: u32) -> impl Future<Output = Answer<Locations>> + Send;
    fn locate_chunk(&self, chunk: ChunkHandle) -> impl Future<Output = Answer<Locations>> + Send;
    fn digest(&self, member: &Member, chunk: ChunkHandle) -> impl Future<Output = Answer<DigestOk>> + Send;
    fn cluster(&self) -> impl Future<Output = Answer<ClusterOk>> + Send;
    fn upload(&self, path: &NamePath, options: UploadOptions) -> impl Future<Output = Answer<Self::Upload>> + Send;
    fn read(&self, attr: &Attr, range: Range<u64>) -> Self::Read;
    fn append(&self, path: &NamePath, data: Bytes) -> impl Future<Output = Answer<Appended>> + Send;
    fn write_at(&self, path: &NamePath, offset: u64, data: Bytes) -> impl Future<Output = Answer<u64>> + Send;
}

/// See [`client::Upload`].
pub(crate) trait Upload: Send + 'static {
    fn write(&mut self, data: Bytes) -> impl Future<Output = Answer<()>> + Send;
    fn finish(self) -> impl Future<Output = Answer<Attr>> + Send;
    fn abort(self) -> impl Future<Output = ()> + Send;
}

/// See [`client::ReadStream`].
pub(crate) trait Read: Send + 'static {
    fn next(&mut self) -> impl Future<Output = Option<Answer<Bytes>>> + Send;
}

impl Files for Client {
    type Upload = client::Upload;
    type Read = client::ReadStream;

    fn stats(&self) -> Stats {
        Self::stats(self)
    }

    async fn stat(&self, path: &NamePath) -> Answer<Attr> {
        Self::stat(self, path).await
    }

    async fn mkdir(&self, path: &NamePath) -> Answer<Attr> {
        Self::mkdir(self, path).await
    }

    async fn create(&self, path: &NamePath, exclusive: bool) -> Answer<Attr> {
        Self::create(self, path, exclusive).await
    }

    async fn delete(&self, path: &NamePath, recursive: bool) -> Answer<Attr> {
        Self::delete(self, path, recursive).await
    }

    async fn rename(&self, from: &NamePath, to: &NamePath, replace: bool) -> Answer<Attr> {
        Self::rename(self, from, to, replace).await
    }

    async fn undelete(&self, path: &NamePath) -> Answer<Attr> {
        Self::undelete(self, path).await
    }

    async fn list(&self, path: &NamePath, after: &str, limit: u32, recursive: bool) -> Answer<Listing> {
        Self::list(self, path, after, limit, recursive).await
    }

    async fn locations(&self, file: InodeId, at: Position, count: u32) -> Answer<Locations> {
        Self::locations(self, file, at, count).await
    }

    async fn locate_chunk(&self, chunk: ChunkHandle) -> Answer<Locations> {
        Self::locate_chunk(self, chunk).await
    }

    async fn digest(&self, member: &Member, chunk: ChunkHandle) -> Answer<DigestOk> {
        Self::digest(self, member, chunk).await
    }

    async fn cluster(&self) -> Answer<ClusterOk> {
        Self::cluster(self).await
    }

    async fn upload(&self, path: &NamePath, options: UploadOptions) -> Answer<client::Upload> {
        Self::upload(self, path, options).await
    }

    fn read(&self, attr: &Attr, range: Range<u64>) -> client::ReadStream {
        Self::read(self, attr, range)
    }

    async fn append(&self, path: &NamePath, data: Bytes) -> Answer<Appended> {
        Self::append(self, path, data).await
    }

    async fn write_at(&self, path: &NamePath, offset: u64, data: Bytes) -> Answer<u64> {
        Self::write_at(self, path, offset, data).await
    }
}

impl Upload for client::Upload {
    async fn write(&mut self, data: Bytes) -> Answer<()> {
        Self::write(self, data).await
    }

    async fn finish(self) -> Answer<Attr> {
        Self::finish(self).await
    }

    async fn abort(self) {
        Self::abort(self).await;
    }
}

impl Read for client::ReadStream {
    async fn next(&mut self) -> Option<Answer<Bytes>> {
        Self::next(self).await
    }
}
