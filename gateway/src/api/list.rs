//! list: the original's whole-tree listing, sent page by page so that its size costs no memory.

use std::io;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::Serialize;
use wire::NamePath;
use wire::namespace::{Entry, Listing};

use crate::api::answer;
use crate::app::App;
use crate::fail::{Fail, Form};
use crate::files::Files;
use crate::fs::listing::{limit, shown_len};
use crate::http::{json, url};

/// Keys as Go wrote them, then their lower-case twins, which the original's own page understands too.
#[derive(Serialize)]
struct Item<'a> {
    #[serde(rename = "Path")]
    go_path: &'a str,
    #[serde(rename = "Name")]
    go_name: &'a str,
    #[serde(rename = "Length")]
    go_length: u64,
    #[serde(rename = "Chunk")]
    go_chunk: u32,
    #[serde(rename = "IsDir")]
    go_is_dir: bool,
    path: &'a str,
    name: &'a str,
    length: u64,
    chunk: u32,
    #[serde(rename = "isDir")]
    is_dir: bool,
}

fn item(entry: &Entry) -> String {
    let name = entry.path.rsplit('/').next().unwrap_or_default();
    let (path, length, chunk, is_dir) = (entry.path.as_str(), shown_len(entry), entry.attr.chunks, entry.attr.is_dir);
    json::encode(&Item {
        go_path: path,
        go_name: name,
        go_length: length,
        go_chunk: chunk,
        go_is_dir: is_dir,
        path,
        name,
        length,
        chunk,
        is_dir,
    })
}

/// Recursive unless told otherwise. Without `limit` everything is sent, as in the original; with it one
/// page, whose `next` is the `after` of the following one.
pub(crate) async fn list<F: Files>(State(app): State<App<F>>, request: Request) -> Response {
    answer(request, Form::Envelope, async |request| {
        let query = url::Query::parse(request.uri().query())?;
        let raw = query.filled("path").unwrap_or("/");
        let path = url::name_path(raw)?;
        let recursive = query.get("recursive").is_none() || query.flag("recursive");
        let paged = query.filled("limit").is_some();
        let page = Pages { limit: limit(query.filled("limit"), app.limits.page_entries)?, app, path, recursive, item };
        let first = page.fetch(query.get("after").unwrap_or_default()).await?;
        let tail = format!(",\"path\":{}}},\"success\":true}}", json::encode(&raw));
        let head = "{\"data\":{\"entries\":[";
        if paged {
            let next = first.next.as_ref().map_or(String::new(), |next| format!(",\"next\":{}", json::encode(next)));
            let text = format!("{head}{}]{next}{tail}", page.join(&first));
            return Ok(json::typed(StatusCode::OK, json::JSON, text));
        }
        Ok(page.stream(head.to_owned(), first, format!("]{tail}")))
    })
    .await
}

/// A listing read page by page.
pub(super) struct Pages<F: Files> {
    pub(super) app: App<F>,
    pub(super) path: NamePath,
    pub(super) limit: u32,
    pub(super) recursive: bool,
    /// One entry as JSON.
    pub(super) item: fn(&Entry) -> String,
}

impl<F: Files> Pages<F> {
    pub(super) async fn fetch(&self, after: &str) -> Result<Listing, Fail> {
        let page = self.app.files.list(&self.path, after, self.limit, self.recursive).await;
        page.map_err(|error| Fail::of(&error, &self.path))
    }

    /// The entries of a page, separated by commas.
    fn join(&self, page: &Listing) -> String {
        page.entries.iter().map(self.item).collect::<Vec<_>>().join(",")
    }

    /// `head`, all entries from `first` on, `tail`. A page that cannot be fetched breaks the connection.
    pub(super) fn stream(self, head: String, first: Listing, tail: String) -> Response {
        let begin = head + &self.join(&first);
        let Some(next) = first.next else {
            return json::typed(StatusCode::OK, json::JSON, begin + &tail);
        };
        let empty = first.entries.is_empty();
        let pages = stream::unfold((self, Some(next), !empty), |(pages, next, comma)| async move {
            let page = match pages.fetch(&next?).await {
                Ok(page) => page,
                Err(fail) => {
                    tracing::warn!(path = %pages.path, status = fail.status.as_u16(), "a listing failed midway; the connection is broken off");
                    let error = io::Error::other("the listing could not be read to its end");
                    return Some((Err(error), (pages, None, comma)));
                }
            };
            let entries = pages.join(&page);
            let text = if comma && !entries.is_empty() { format!(",{entries}") } else { entries };
            let comma = comma || !text.is_empty();
            Some((Ok(Bytes::from(text)), (pages, page.next, comma)))
        });
        let begin = stream::iter([Ok(Bytes::from(begin))]);
        let all = begin.chain(pages).chain(stream::iter([Ok(Bytes::from(tail))]));
        json::typed(StatusCode::OK, json::JSON, Body::from_stream(all))
    }
}
