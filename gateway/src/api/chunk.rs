//! chunk/handle, chunk/servers, chunks/:handle. None of them changes anything, unlike the original's.

use axum::extract::{Request, State};
use axum::response::Response;
use serde::Serialize;
use wire::ChunkHandle;
use wire::NamePath;
use wire::locate::{Location, Position};

use crate::api::{answer, required, success};
use crate::app::{App, unix_ms};
use crate::fail::{Fail, Form};
use crate::files::Files;
use crate::http::url::{self, Query};
use crate::http::{dates, json};

#[derive(Serialize)]
struct Handle<'a> {
    handle: u64,
    index: u32,
    path: &'a str,
}

#[derive(Serialize)]
struct Servers<'a> {
    expire: String,
    handle: u64,
    primary: &'a str,
    secondaries: Option<Vec<&'a str>>,
}

#[derive(Serialize)]
struct Info<'a> {
    handle: u64,
    version: u32,
    length: u32,
    locations: Vec<&'a str>,
    checksum: Option<String>,
}

pub(crate) async fn handle<F: Files>(State(app): State<App<F>>, request: Request) -> Response {
    answer(request, Form::Envelope, async |request| {
        let query = Query::parse(request.uri().query())?;
        let (Some(raw), Some(index)) = (query.filled("path"), query.filled("index")) else {
            return Err(Fail::invalid("path and index are required"));
        };
        let index: u32 = index.parse().map_err(|_| Fail::invalid("invalid index"))?;
        let path = url::name_path(raw)?;
        let attr = app.files.stat(&path).await.map_err(|error| Fail::of(&error, &path))?;
        if attr.is_dir {
            return Err(Fail::conflict(format!("{path} is a directory, not a file")));
        }
        let found = app.files.locations(attr.inode, Position::Index(index), 1).await;
        let found = found.map_err(|error| Fail::of(&error, &path))?;
        let Some(chunk) = found.items.iter().find(|chunk| chunk.index == index) else {
            return Err(Fail::not_found(&path).saying(format!("path {path} has no chunk {index}")));
        };
        Ok(success(Handle { handle: chunk.chunk.0, index, path: raw }, ""))
    })
    .await
}

/// The chain: its head is the primary. `expire` says how long the answer may be used.
pub(crate) async fn servers<F: Files>(State(app): State<App<F>>, request: Request) -> Response {
    answer(request, Form::Envelope, async |request| {
        let query = Query::parse(request.uri().query())?;
        let chunk = locate(&app, required(query.filled("handle"), "handle is required")?).await?;
        let mut addresses = chunk.members.iter().map(|member| member.address.as_str());
        let primary = addresses.next().unwrap_or_default();
        let secondaries: Vec<_> = addresses.collect();
        Ok(success(
            Servers {
                expire: dates::rfc3339(unix_ms().saturating_add(u64::from(chunk.expire_ms))),
                handle: chunk.chunk.0,
                primary,
                secondaries: (!secondaries.is_empty()).then_some(secondaries),
            },
            "",
        ))
    })
    .await
}

/// As the documents promised it. `version` is the epoch; `checksum` is that of the first replica which
/// answers, `null` when none does.
pub(crate) async fn info<F: Files>(State(app): State<App<F>>, request: Request) -> Response {
    answer(request, Form::Documented, async |request| {
        let raw = request.uri().path().rsplit('/').next().unwrap_or_default();
        let chunk = locate(&app, raw).await?;
        let mut digest = None;
        for member in &chunk.members {
            digest = app.files.digest(member, chunk.chunk).await.ok();
            if digest.is_some() {
                break;
            }
        }
        let checksum = digest.as_ref().map(|found| found.digest.iter().map(|byte| format!("{byte:02x}")).collect());
        Ok(json::answer(
            axum::http::StatusCode::OK,
            &Info {
                handle: chunk.chunk.0,
                version: chunk.epoch.0,
                length: digest.map_or(chunk.len, |found| found.len),
                locations: chunk.members.iter().map(|member| member.address.as_str()).collect(),
                checksum,
            },
        ))
    })
    .await
}

/// Handles are decimal, as the API shows them.
async fn locate<F: Files>(app: &App<F>, handle: &str) -> Result<Location, Fail> {
    let handle: u64 = handle.parse().map_err(|_| Fail::invalid("invalid handle"))?;
    let missing = || Fail::not_found(&NamePath::root()).saying(format!("chunk {handle} is not found"));
    match app.files.locate_chunk(ChunkHandle(handle)).await {
        Ok(found) => found.items.into_iter().next().ok_or_else(missing),
        Err(error) if error.kind() == wire::Kind::NotFound => Err(missing()),
        Err(error) => Err(Fail::of(&error, &NamePath::root())),
    }
}
