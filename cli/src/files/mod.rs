//! Files in the cluster: one command, one file.

pub(crate) mod append;
pub(crate) mod cat;
pub(crate) mod get;
pub(crate) mod ls;
pub(crate) mod mkdir;
pub(crate) mod mv;
mod pieces;
pub(crate) mod put;
pub(crate) mod rm;
pub(crate) mod stat;
pub(crate) mod undelete;
mod view;
pub(crate) mod write;

use std::path::Path;

use client::Client;
use wire::limits::PAGE_ENTRIES_MAX;
use wire::namespace::Entry;
use wire::{Kind, NamePath};

use crate::exit::{Code, Failure};

/// Files that a recursive command moves at a time.
const FILES_AT_A_TIME: usize = 4;

/// A path that something is put to. A trailing slash says that it is a directory.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    path: NamePath,
    directory: bool,
}

/// A target, as an argument.
///
/// # Errors
///
/// A sentence for the user.
pub(crate) fn parse_target(text: &str) -> Result<Target, String> {
    let path = crate::cluster::parse_path(text)?;
    let directory = text.ends_with('/') || path.is_root();
    Ok(Target { path, directory })
}

impl Target {
    /// Whether things go into it rather than become it.
    async fn is_directory(&self, client: &Client) -> Result<bool, Failure> {
        if self.directory {
            return Ok(true);
        }
        match client.stat(&self.path).await {
            Ok(attr) => Ok(attr.is_dir),
            Err(error) if error.kind() == Kind::NotFound => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// A name in a directory.
fn join(directory: &NamePath, name: &str) -> Result<NamePath, Failure> {
    Ok(NamePath::parse(&format!("{directory}/{name}"))?)
}

/// The last segment of a local path, as a name in the cluster.
fn local_name(path: &Path) -> Result<&str, Failure> {
    let name = path.file_name().and_then(|name| name.to_str());
    name.ok_or_else(|| {
        Failure::new(Code::Usage, format!("{} has no name that can be used", path.display()))
            .remedy("name the target in full")
    })
}

/// The pages of a listing, one by one.
struct Pages<'a> {
    client: &'a Client,
    path: &'a NamePath,
    recursive: bool,
    after: Option<String>,
}

impl<'a> Pages<'a> {
    fn new(client: &'a Client, path: &'a NamePath, recursive: bool) -> Self {
        Self { client, path, recursive, after: Some(String::new()) }
    }

    /// The next page; `None` after the last.
    async fn next(&mut self) -> Result<Option<Vec<Entry>>, Failure> {
        let Some(after) = self.after.take() else { return Ok(None) };
        let page = self.client.list(self.path, &after, PAGE_ENTRIES_MAX, self.recursive).await?;
        self.after = page.next;
        Ok(Some(page.entries.into_iter().map(with_tail).collect()))
    }
}

/// A listing leaves the open chunk out of the length; what was last reported of it is good enough here.
fn with_tail(mut entry: Entry) -> Entry {
    entry.attr.len = entry.attr.len.saturating_add(entry.attr.tail_len_hint.into());
    entry
}
