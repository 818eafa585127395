//! read, write, append.

use axum::extract::{Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use serde::Serialize;
use wire::NamePath;

use crate::api::{answer, required, success};
use crate::app::App;
use crate::fail::{Fail, Form};
use crate::files::Files;
use crate::fs::download::{Part, download};
use crate::fs::{append_record, collect_append, write_body};
use crate::http::url::{self, Query};
use crate::intake::Intake;

/// What `read` gives when no sensible length is asked for, and the most it gives.
const READ_DEFAULT: u64 = 4096;
const READ_MAX: u64 = 64 << 20;

const X_BYTES_READ: HeaderName = HeaderName::from_static("x-bytes-read");

#[derive(Serialize)]
struct Written {
    bytes_written: u64,
    offset: u64,
}

#[derive(Serialize)]
struct Added {
    bytes_added: usize,
    offset: u64,
}

pub(crate) async fn read<F: Files>(State(app): State<App<F>>, request: Request) -> Response {
    answer(request, Form::Envelope, async |request| {
        let query = Query::parse(request.uri().query())?;
        let path = path_of(&query)?;
        let offset = offset_of(&query)?;
        let length =
            query.get("length").and_then(|text| text.parse::<i64>().ok()).and_then(|len| u64::try_from(len).ok());
        let length = length.filter(|len| *len > 0).unwrap_or(READ_DEFAULT).min(READ_MAX);
        let attr = app.files.stat(&path).await.map_err(|error| Fail::of(&error, &path))?;
        if attr.is_dir {
            return Err(Fail::conflict(format!("cannot read {path} since it is a directory")));
        }
        if offset > attr.len {
            return Err(Fail::range(format!("offset [{offset}] cannot be greater than the file size"), attr.len));
        }
        let end = offset.saturating_add(length).min(attr.len);
        let body = download(&app, &path, &attr, vec![Part::Bytes(offset..end)]).await?;
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(end - offset));
        headers.insert(X_BYTES_READ, HeaderValue::from(end - offset));
        Ok(response)
    })
    .await
}

/// The file must exist; `offset` may be anywhere up to its end.
pub(crate) async fn write<F: Files>(State(app): State<App<F>>, request: Request) -> Response {
    answer(request, Form::Envelope, async |request| {
        let (parts, intake) = Intake::of(&app, request);
        let query = Query::parse(parts.uri.query())?;
        let path = path_of(&query)?;
        let offset = offset_of(&query)?;
        let bytes_written = write_body(&app, &path, offset, None, intake).await?;
        Ok(success(Written { bytes_written, offset }, "Data written successfully"))
    })
    .await
}

pub(crate) async fn append<F: Files>(State(app): State<App<F>>, request: Request) -> Response {
    answer(request, Form::Envelope, async |request| {
        let (parts, intake) = Intake::of(&app, request);
        let path = path_of(&Query::parse(parts.uri.query())?)?;
        let whole = collect_append(&app, intake).await?;
        let bytes_added = whole.data.len();
        let appended = append_record(&app, &path, whole.data).await?;
        Ok(success(Added { bytes_added, offset: appended.offset }, "Data appended successfully"))
    })
    .await
}

fn path_of(query: &Query) -> Result<NamePath, Fail> {
    url::name_path(required(query.filled("path"), "path is required")?)
}

/// Absent or no number: zero, as in the original. Negative: refused, where the original went on.
fn offset_of(query: &Query) -> Result<u64, Fail> {
    let offset = query.get("offset").and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
    u64::try_from(offset).map_err(|_| Fail::invalid(format!("offset [{offset}] cannot be negative")))
}
