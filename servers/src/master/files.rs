//! Answers to clients about names and uploads: thin, because the state decides.

use std::sync::Arc;
use std::time::Duration;

use wire::limits::PATH_LEN_MAX;
use wire::namespace::{Attr, CreateFile, Delete, List, Listing, Mkdir, Rename, Stat, Trash, Undelete};
use wire::upload::{AbortUpload, BeginUpload, Publish, Splice, Upload};
use wire::{Fault, InodeId, Kind, NamePath, RequestId};

use super::entry::{Answer, Change};
use super::shared::Master;
use super::state::{Phase, Place};
use crate::clock;

/// Content types are short.
const CONTENT_TYPE_LEN_MAX: usize = 255;
/// A chunk whose writer is done is sealed by its chain; one that is not after this long by the master.
const PLANNED_SEAL: Duration = Duration::from_secs(1);

impl Master {
    pub(super) async fn mkdir(&self, request: Mkdir) -> Result<Attr, Fault> {
        let path = NamePath::parse(&request.path)?;
        let change = Change::Mkdir { request: named(request.request)?, path: path.as_str().into() };
        self.made_or_there(change, &path, true).await
    }

    pub(super) async fn create_file(&self, request: CreateFile) -> Result<Attr, Fault> {
        let path = NamePath::parse(&request.path)?;
        let (id, replicas) = (named(request.request)?, self.config.replicas);
        let change = Change::Create { request: id, path: path.as_str().into(), replicas };
        if request.exclusive {
            return attr(self.core.submit(change).await?);
        }
        self.made_or_there(change, &path, false).await
    }

    /// Makes something, or finds that it is there already.
    async fn made_or_there(&self, change: Change, path: &NamePath, directory: bool) -> Result<Attr, Fault> {
        match self.core.submit(change).await {
            Err(fault) if fault.kind == Kind::Exists => {
                let attr = self.stat(&Stat { path: path.as_str().into() }).await?;
                match (attr.is_dir, directory) {
                    (true, false) => Err(Fault::new(Kind::Conflict, format!("{path} is a directory, not a file"))),
                    (false, true) => Err(Fault::new(Kind::Conflict, format!("{path} is a file, not a directory"))),
                    _ => Ok(attr),
                }
            }
            outcome => attr(outcome?),
        }
    }

    pub(super) async fn delete(&self, request: Delete) -> Result<Attr, Fault> {
        let Delete { request, path, recursive } = request;
        let path = NamePath::parse(&path)?.as_str().into();
        attr(self.core.submit(Change::Delete { request: named(request)?, path, recursive }).await?)
    }

    pub(super) async fn undelete(&self, request: Undelete) -> Result<Attr, Fault> {
        let Undelete { request, path } = request;
        let path = NamePath::parse(&path)?.as_str().into();
        attr(self.core.submit(Change::Undelete { request: named(request)?, path }).await?)
    }

    pub(super) async fn rename(&self, request: Rename) -> Result<Attr, Fault> {
        let Rename { request, from, to, replace } = request;
        let (from, to) = (NamePath::parse(&from)?.as_str().into(), NamePath::parse(&to)?.as_str().into());
        attr(self.core.submit(Change::Rename { request: named(request)?, from, to, replace }).await?)
    }

    pub(super) async fn stat(&self, request: &Stat) -> Result<Attr, Fault> {
        let path = NamePath::parse(&request.path)?;
        let (mut attr, tail) = self
            .core
            .ask(|state| {
                let attr = state.stat(&path)?;
                let tail = state.tail(attr.inode).map(|place| self.locate_in(state, place));
                Ok::<_, Fault>((attr, tail))
            })
            .await??;
        if let Some((tail, known)) = tail {
            attr.tail_len_hint = tail.len;
            attr.tail = known.then_some(tail);
        }
        Ok(attr)
    }

    pub(super) async fn list(&self, request: &List) -> Result<Listing, Fault> {
        let path = NamePath::parse(&request.path)?;
        if request.after.len() > 2 * PATH_LEN_MAX {
            return Err(Fault::new(Kind::Invalid, "a page cannot start after a path that long"));
        }
        let List { after, limit, recursive, .. } = request;
        self.core
            .ask(|state| {
                let mut listing = state.list(&path, after, *limit, *recursive)?;
                let soft = self.soft();
                for entry in &mut listing.entries {
                    if let Some(tail) = state.tail(entry.attr.inode) {
                        entry.attr.tail_len_hint = soft.hints.get(&tail.handle).copied().unwrap_or(0);
                    }
                }
                Ok(listing)
            })
            .await?
    }

    pub(super) async fn list_trash(&self, request: &Trash) -> Result<Listing, Fault> {
        self.core.ask(|state| state.list_trash(&request.after, request.limit)).await?
    }

    pub(super) async fn begin_upload(&self, request: BeginUpload) -> Result<Upload, Fault> {
        let BeginUpload { request, path, content_type } = request;
        if content_type.len() > CONTENT_TYPE_LEN_MAX || content_type.chars().any(char::is_control) {
            return Err(Fault::new(Kind::Invalid, "a content type has at most 255 printable characters"));
        }
        if !path.is_empty() {
            let path = NamePath::parse(&path)?;
            self.core.ask(|state| state.may_publish(&path)).await??;
        }
        let change = Change::BeginUpload { request: named(request)?, content_type, replicas: self.config.replicas };
        match self.core.submit(change).await? {
            Answer::Inode(inode) => Ok(Upload { inode }),
            other => Err(another_request(&other)),
        }
    }

    pub(super) async fn publish(self: &Arc<Self>, request: Publish) -> Result<Attr, Fault> {
        let Publish { request, inode, path, precondition, len, sha256 } = request;
        let path: String = NamePath::parse(&path)?.as_str().into();
        self.wait_sealed(inode, None).await?;
        let change = Change::Publish { request: named(request)?, inode, path, precondition, len, sha256 };
        attr(self.core.submit(change).await?)
    }

    pub(super) async fn splice(self: &Arc<Self>, request: Splice) -> Result<Attr, Fault> {
        let Splice { request, file, version, index, remove, upload } = request;
        let change = Change::Splice { request: named(request)?, file, version, index, remove, upload };
        // A retry of what is done must not seal what was appended since.
        if !self.core.ask(|state| state.remembered(request).is_some()).await? {
            self.wait_sealed(upload, None).await?;
            self.wait_sealed(file, Some(index.saturating_add(remove))).await?;
        }
        attr(self.core.submit(change).await?)
    }

    pub(super) async fn abort_upload(&self, request: AbortUpload) -> Result<(), Fault> {
        let AbortUpload { request, inode } = request;
        self.core.submit(Change::AbortUpload { request: named(request)?, inode }).await.map(drop)
    }

    /// Waits until the last chunk of a file is sealed; with `end`, only if the first `end` chunks reach
    /// it. The caller's deadline bounds the waiting.
    async fn wait_sealed(self: &Arc<Self>, file: InodeId, end: Option<u32>) -> Result<(), Fault> {
        let began = clock::now();
        let mut changes = self.changes();
        loop {
            changes.borrow_and_update();
            let tail = self.core.ask(|state| state.tail(file)).await?;
            let Some(Place { handle, chunk, index, .. }) = tail else { return Ok(()) };
            if end.is_some_and(|end| end <= index) {
                return Ok(());
            }
            // An upload says itself that it is done; a file that is written into does not.
            let patience = if end.is_some() { Duration::ZERO } else { PLANNED_SEAL };
            // One that is being sealed may have lost its driver to an overload: this finds it running, or goes on.
            if chunk.phase != Phase::Open || clock::now() >= began + patience {
                self.start_seal(handle);
            }
            let _ = tokio::time::timeout(PLANNED_SEAL, changes.changed()).await;
        }
    }
}

fn attr(answer: Answer) -> Result<Attr, Fault> {
    match answer {
        Answer::Attr(attr) => Ok(attr),
        other => Err(another_request(&other)),
    }
}

/// Mutations have a name: without one a retry would be a second operation.
fn named(request: RequestId) -> Result<RequestId, Fault> {
    if request == RequestId::default() {
        return Err(Fault::new(Kind::Invalid, "a mutation needs a request id"));
    }
    Ok(request)
}

fn another_request(answer: &Answer) -> Fault {
    Fault::new(Kind::Invalid, format!("this request id was used for something else before: {answer:?}"))
}
