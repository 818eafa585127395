//! Bytes into files that exist: record appends, and writes in place.

use axum::http::StatusCode;
use axum::http::header::CONTENT_RANGE;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use client::Appended;
use serde::Serialize;
use wire::{Kind, NamePath};

use crate::app::App;
use crate::fail::Fail;
use crate::files::Files;
use crate::fs::{Asked, check_conditions, set_durability};
use crate::http::{json, range};
use crate::intake::{Intake, Whole};

#[derive(Serialize)]
struct Written {
    offset: u64,
    length: u64,
}

/// POST `?append`: one record, whole and once. The file is made when it is absent.
pub(super) async fn append<F: Files>(app: &App<F>, asked: &Asked, intake: Intake<F>) -> Result<Response, Fail> {
    let path = asked.file_path()?;
    check_conditions(app, asked).await?;
    let whole = collect_append(app, intake).await?;
    let appended = match append_record(app, path, whole.data.clone()).await {
        Err(fail) if fail.status == StatusCode::NOT_FOUND => {
            app.files.create(path, false).await.map_err(|error| Fail::of(&error, path))?;
            append_record(app, path, whole.data).await?
        }
        done => done?,
    };
    let body = Written { offset: appended.offset, length: u64::from(appended.len) };
    let mut response = json::answer(StatusCode::OK, &body);
    set_durability(response.headers_mut(), (appended.replicas > 0).then_some(appended.replicas));
    Ok(response)
}

/// The body of an append, bounded before it is read.
pub(crate) async fn collect_append<F: Files>(app: &App<F>, intake: Intake<F>) -> Result<Whole, Fail> {
    let max = app.limits.append_bytes;
    intake.collect(max, |len| Fail::append_too_large(len, max)).await
}

/// Appends to a file that exists. Nothing to append lands at the file's end.
pub(crate) async fn append_record<F: Files>(app: &App<F>, path: &NamePath, data: Bytes) -> Result<Appended, Fail> {
    if data.is_empty() {
        let offset = writable_len(app, path).await?;
        return Ok(Appended { offset, len: 0, replicas: 0 });
    }
    app.files.append(path, data).await.map_err(|error| match error.kind() {
        Kind::Conflict => Fail::of(&error, path).saying(format!("cannot write {path} since it is a directory")),
        _ => Fail::of(&error, path),
    })
}

/// PATCH with `Content-Range: bytes a-b/*`: bytes a to b of the file are replaced, and it grows when b is
/// beyond its end.
pub(super) async fn patch<F: Files>(app: &App<F>, asked: &Asked, intake: Intake<F>) -> Result<Response, Fail> {
    let path = asked.file_path()?;
    let field = asked.headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let Some(target) = field.and_then(range::content_range) else {
        return Err(Fail::invalid("PATCH needs Content-Range: bytes first-last/*"));
    };
    check_conditions(app, asked).await?;
    let want = target.end - target.start;
    if intake.announced.is_some_and(|len| len != want) {
        return Err(length_differs());
    }
    let length = write_body(app, path, target.start, Some(want), intake).await?;
    let mut response = json::answer(StatusCode::OK, &Written { offset: target.start, length });
    set_durability(response.headers_mut(), None);
    Ok(response)
}

/// Writes a body at an offset, in pieces of [`crate::Limits::write_bytes`]: each is durable and whole when the
/// next begins, and a body that is cut short leaves the pieces before it. A body of one piece is written
/// whole or not at all.
pub(crate) async fn write_body<F: Files>(
    app: &App<F>,
    path: &NamePath,
    offset: u64,
    want: Option<u64>,
    mut intake: Intake<F>,
) -> Result<u64, Fail> {
    let len = writable_len(app, path).await?;
    if offset > len {
        return Err(Fail::range(format!("write offset [{offset}] cannot be greater than the file size"), len));
    }
    if offset.saturating_add(intake.announced.unwrap_or(0)) > app.limits.file_bytes {
        return Err(Fail::too_large(format!("a file may have at most {} bytes", app.limits.file_bytes)));
    }
    let piece_max = app.limits.write_bytes;
    let expected = intake.announced.map_or(piece_max, |len| usize::try_from(len).unwrap_or(piece_max).min(piece_max));
    let _memory = app.reserve(expected).await?;
    let mut written = 0;
    let mut left_over = Bytes::new();
    loop {
        let (piece, rest) = next_piece(&mut intake, left_over, expected, piece_max).await?;
        let ended = rest.is_none();
        let total = written + piece.len() as u64;
        if want.is_some_and(|want| total > want || (ended && total < want)) {
            return Err(length_differs());
        }
        if !piece.is_empty() {
            written +=
                app.files.write_at(path, offset + written, piece).await.map_err(|error| Fail::of(&error, path))?;
        }
        match rest {
            None => return Ok(written),
            Some(rest) => left_over = rest,
        }
    }
}

/// The next `max` bytes, and what was read beyond them; `None` in its place at the body's end.
async fn next_piece<F: Files>(
    intake: &mut Intake<F>,
    first: Bytes,
    expected: usize,
    max: usize,
) -> Result<(Bytes, Option<Bytes>), Fail> {
    let mut piece = BytesMut::with_capacity(expected);
    let mut next = first;
    loop {
        let room = max - piece.len();
        if next.len() > room {
            piece.extend_from_slice(&next.split_to(room));
            return Ok((piece.freeze(), Some(next)));
        }
        piece.extend_from_slice(&next);
        match intake.next().await? {
            None => return Ok((piece.freeze(), None)),
            Some(data) => next = data,
        }
    }
}

async fn writable_len<F: Files>(app: &App<F>, path: &NamePath) -> Result<u64, Fail> {
    let attr = app.files.stat(path).await.map_err(|error| Fail::of(&error, path))?;
    if attr.is_dir {
        return Err(Fail::conflict(format!("cannot write {path} since it is a directory")));
    }
    Ok(attr.len)
}

fn length_differs() -> Fail {
    Fail::invalid("the body's length is not that of Content-Range")
}
