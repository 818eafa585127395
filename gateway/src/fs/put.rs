//! PUT: an upload that becomes visible in one step, or not at all.

use std::sync::atomic::Ordering::Relaxed;

use axum::http::header::{CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use client::UploadOptions;
use wire::NamePath;
use wire::locate::Position;
use wire::namespace::Attr;
use wire::upload::Precondition;

use crate::app::App;
use crate::fail::Fail;
use crate::files::{Files, Upload};
use crate::fs::{Asked, changed, current, set_durability, validators};
use crate::http::conditions::{Conditions, Verdict};
use crate::http::digest::Expected;
use crate::intake::Intake;

/// As the master bounds it.
const CONTENT_TYPE_MAX: usize = 255;

/// Every check comes before the first byte of the body is asked for: `Expect: 100-continue` is worth it.
pub(super) async fn put<F: Files>(app: &App<F>, asked: &Asked, intake: Intake<F>) -> Result<Response, Fail> {
    let path = asked.file_path()?;
    check_body_fields(&asked.headers)?;
    check_len(app, &intake)?;
    let expected = Expected::of(&asked.headers)?;
    let content_type = content_type(&asked.headers)?;
    let conditions = Conditions::of(&asked.headers)?;
    let before = current(app, path).await?;
    if before.as_ref().is_some_and(|attr| attr.is_dir) {
        return Err(Fail::conflict(format!("cannot write {path} since it is a directory")));
    }
    let precondition = precondition(&conditions, before.as_ref())?;
    let options = UploadOptions { content_type, precondition, sha256: expected.has_sha256() };
    let attr = publish(app, path, options, intake, expected).await?;
    let status = if before.is_some() { StatusCode::OK } else { StatusCode::CREATED };
    let mut response = changed(status, path, &attr);
    set_durability(response.headers_mut(), replicas(app, &attr).await);
    Ok(response)
}

/// Moves a body into a file. Nothing is visible unless this returns `Ok`; dropping it gives the upload up.
pub(crate) async fn publish<F: Files>(
    app: &App<F>,
    path: &NamePath,
    options: UploadOptions,
    intake: Intake<F>,
    expected: Expected,
) -> Result<Attr, Fail> {
    let mut upload = app.files.upload(path, options).await.map_err(|error| Fail::of(&error, path))?;
    match fill(app, path, &mut upload, intake, expected).await {
        Ok(()) => upload.finish().await.map_err(|error| Fail::of(&error, path)),
        Err(fail) => {
            app.metrics.aborted_uploads.fetch_add(1, Relaxed);
            upload.abort().await;
            Err(fail)
        }
    }
}

async fn fill<F: Files>(
    app: &App<F>,
    path: &NamePath,
    upload: &mut F::Upload,
    mut intake: Intake<F>,
    mut expected: Expected,
) -> Result<(), Fail> {
    let mut len = 0_u64;
    while let Some(data) = intake.next().await? {
        len += data.len() as u64;
        if len > app.limits.file_bytes {
            return Err(too_large(app));
        }
        expected.update(&data);
        upload.write(data).await.map_err(|error| Fail::of(&error, path))?;
    }
    expected.verify()
}

fn check_len<F: Files>(app: &App<F>, intake: &Intake<F>) -> Result<(), Fail> {
    if intake.announced.is_some_and(|len| len > app.limits.file_bytes) { Err(too_large(app)) } else { Ok(()) }
}

fn too_large<F: Files>(app: &App<F>) -> Fail {
    Fail::too_large(format!("a file may have at most {} bytes", app.limits.file_bytes))
}

/// What would be stored as something else than was meant is refused.
fn check_body_fields(headers: &HeaderMap) -> Result<(), Fail> {
    if headers.contains_key(CONTENT_RANGE) {
        return Err(Fail::invalid("PUT replaces a whole file; write a part of it by PATCH with Content-Range"));
    }
    let encoding = headers.get(CONTENT_ENCODING).map(|value| value.as_bytes());
    if encoding.is_some_and(|encoding| !encoding.eq_ignore_ascii_case(b"identity")) {
        let text = "a Content-Encoding would be lost; send the bytes that are to be stored";
        return Err(Fail::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content-encoding", text));
    }
    Ok(())
}

fn content_type(headers: &HeaderMap) -> Result<String, Fail> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(String::new()) };
    match value.to_str() {
        Ok(text) if text.len() <= CONTENT_TYPE_MAX => Ok(text.to_owned()),
        _ => Err(Fail::invalid(format!("Content-Type must be printable and at most {CONTENT_TYPE_MAX} bytes"))),
    }
}

/// Judges the conditions on what is there now, and makes of them what the master must still find when
/// the file is published.
fn precondition(conditions: &Conditions, before: Option<&Attr>) -> Result<Precondition, Fail> {
    let now = before.map(validators);
    if conditions.evaluate(false, now.as_ref()) != Verdict::Proceed {
        return Err(Fail::precondition());
    }
    if conditions.is_empty() {
        return Ok(Precondition::None);
    }
    Ok(match before {
        None => Precondition::Absent,
        Some(_) if matches!(conditions.matching, Some(crate::http::etag::Tags::Any)) => Precondition::Present,
        Some(attr) => Precondition::Match { inode: attr.inode, version: attr.version },
    })
}

/// On how many servers the least replicated chunk lies; nothing when it cannot be said now.
async fn replicas<F: Files>(app: &App<F>, attr: &Attr) -> Option<u32> {
    let mut least = None;
    let mut index = 0;
    while index < attr.chunks {
        let page = app.files.locations(attr.inode, Position::Index(index), app.limits.page_entries).await.ok()?;
        let count = page.items.iter().map(|chunk| chunk.members.len()).min()?;
        least = Some(least.map_or(count, |least: usize| least.min(count)));
        index = page.items.last()?.index + 1;
    }
    u32::try_from(least?).ok()
}
