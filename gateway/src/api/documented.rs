//! The routes that the original's documents promise and its code lacks: files and directories.

use axum::RequestExt;
use axum::extract::multipart::{Field, Multipart};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::CONTENT_DISPOSITION;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use client::UploadOptions;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use wire::namespace::Entry;
use wire::upload::Precondition;
use wire::{Kind, NamePath};

use crate::api::list::Pages;
use crate::api::{answer, names, required};
use crate::app::App;
use crate::fail::{Fail, Form};
use crate::files::{Files, Upload};
use crate::fs::listing::shown_len;
use crate::fs::{Asked, append_record, file_answer};
use crate::http::url::{self, Query};
use crate::http::{dates, json};
use crate::intake::Intake;

#[derive(Serialize)]
struct Done<'a> {
    success: bool,
    path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    message: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Info<'a> {
    path: &'a str,
    is_dir: bool,
    length: u64,
    chunks: u32,
    created_at: String,
    modified_at: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Item<'a> {
    name: &'a str,
    path: &'a str,
    is_dir: bool,
    length: u64,
    chunks: u32,
}

pub(crate) async fn create<F: Files>(State(app): State<App<F>>, request: Request) -> Response {
    answer(request, Form::Documented, async |request| {
        let body: names::Path = Intake::of(&app, request).1.json().await?;
        let path = url::name_path(body.get()?)?;
        app.files.create(&path, true).await.map_err(|error| Fail::of(&error, &path))?;
        Ok(done(StatusCode::CREATED, &path, None, "File created successfully"))
    })
    .await
}

pub(crate) async fn info<F: Files>(State(app): State<App<F>>, request: Request) -> Response {
    answer(request, Form::Documented, async |request| {
        let path = path_of(&Query::parse(request.uri().query())?)?;
        let attr = app.files.stat(&path).await.map_err(|error| Fail::of(&error, &path))?;
        let info = Info {
            path: path.as_str(),
            is_dir: attr.is_dir,
            length: attr.len,
            chunks: attr.chunks,
            created_at: dates::rfc3339(attr.created_ms),
            modified_at: dates::rfc3339(attr.modified_ms),
        };
        Ok(json::answer(StatusCode::OK, &info))
    })
    .await
}

/// A directory with something in it needs `recursive`.
pub(crate) async fn delete<F: Files>(State(app): State<App<F>>, request: Request) -> Response {
    answer(request, Form::Documented, async |request| {
        let query = Query::parse(request.uri().query())?;
        let path = path_of(&query)?;
        if path.is_root() {
            return Err(Fail::invalid("cannot remove root directory"));
        }
        let deleted = app.files.delete(&path, query.flag("recursive")).await;
        let attr = deleted.map_err(|error| Fail::of(&error, &path))?;
        let message = if attr.is_dir { "Directory deleted successfully" } else { "File deleted successfully" };
        Ok(done(StatusCode::OK, &path, None, message))
    })
    .await
}

/// As `/fs`, ranges and conditions included, and to be saved under its name.
pub(crate) async fn download<F: Files>(State(app): State<App<F>>, request: Request) -> Response {
    answer(request, Form::Documented, async |request| {
        let (parts, _) = request.into_parts();
        let query = Query::parse(parts.uri.query())?;
        let path = path_of(&query)?;
        let attr = app.files.stat(&path).await.map_err(|error| Fail::of(&error, &path))?;
        if attr.is_dir {
            return Err(Fail::conflict(format!("cannot read {path} since it is a directory")));
        }
        let name = disposition(path.name());
        let target = url::Target { path, slash: false };
        let asked = Asked { target, query, method: parts.method, headers: parts.headers };
        let mut response = file_answer(&app, &attr, &asked).await?;
        if let Ok(value) = HeaderValue::try_from(name) {
            response.headers_mut().insert(CONTENT_DISPOSITION, value);
        }
        Ok(response)
    })
    .await
}

/// Both forms of RFC 6266: ASCII for old programs, UTF-8 for the others.
fn disposition(name: &str) -> String {
    let plain: String =
        name.chars().map(|c| if matches!(c, ' '..='~') && !matches!(c, '"' | '\\') { c } else { '_' }).collect();
    let mut value = format!("attachment; filename=\"{plain}\"");
    if plain != name {
        value += &format!("; filename*=UTF-8''{}", url::encode_segment(name));
    }
    value
}

/// multipart/form-data with `path` and `file`. A file that comes before its path is held in memory and so
/// bounded like an append; after it, or with `?path=`, it streams.
pub(crate) async fn upload<F: Files>(State(app): State<App<F>>, request: Request) -> Response {
    answer(request, Form::Documented, async |request| {
        let (mut path, mut form) = form(&app, request).await?;
        let mut content = None;
        while let Some(field) = form.next_field().await.map_err(|error| bad_form(&error))? {
            match (field.name(), &path) {
                (Some("path"), None) => path = Some(path_field(field).await?),
                (Some("file"), Some(path)) if content.is_none() => {
                    content = Some(Content::Streamed(stream_field(&app, path, field).await?));
                }
                (Some("file"), None) if content.is_none() => {
                    let memory = app.reserve(app.limits.append_bytes).await?;
                    content = Some(Content::Held(collect_field(&app, field).await?, memory));
                }
                _ => {}
            }
        }
        let path = path.ok_or_else(|| Fail::invalid("path is required"))?;
        let upload = match content.ok_or_else(|| Fail::invalid("file is required"))? {
            Content::Streamed(upload) => upload,
            Content::Held(data, _memory) => {
                let mut upload = begin(&app, &path, String::new()).await?;
                upload.write(data).await.map_err(|error| Fail::of(&error, &path))?;
                upload
            }
        };
        let attr = upload.finish().await.map_err(|error| Fail::of(&error, &path))?;
        Ok(done(StatusCode::CREATED, &path, Some(attr.len), "File uploaded successfully"))
    })
    .await
}

/// A file of a form, not yet published: that waits for the form's end.
enum Content<U> {
    Streamed(U),
    Held(Bytes, OwnedSemaphorePermit),
}

/// multipart/form-data with `path` and `file`, in any order; one record of at most 16 MiB.
pub(crate) async fn append<F: Files>(State(app): State<App<F>>, request: Request) -> Response {
    answer(request, Form::Documented, async |request| {
        let _memory = app.reserve(app.limits.append_bytes).await?;
        let (mut path, mut form) = form(&app, request).await?;
        let mut data = None;
        while let Some(field) = form.next_field().await.map_err(|error| bad_form(&error))? {
            match field.name() {
                Some("path") if path.is_none() => path = Some(path_field(field).await?),
                Some("file") if data.is_none() => data = Some(collect_field(&app, field).await?),
                _ => {}
            }
        }
        let path = path.ok_or_else(|| Fail::invalid("path is required"))?;
        let data = data.ok_or_else(|| Fail::invalid("file is required"))?;
        let appended = append_record(&app, &path, data).await?;
        let size = appended.offset + u64::from(appended.len);
        Ok(done(StatusCode::OK, &path, Some(size), "Data appended successfully"))
    })
    .await
}

pub(crate) async fn mkdir<F: Files>(State(app): State<App<F>>, request: Request) -> Response {
    answer(request, Form::Documented, async |request| {
        let body: names::Path = Intake::of(&app, request).1.json().await?;
        let path = url::name_path(body.get()?)?;
        match app.files.stat(&path).await {
            Ok(_) => return Err(Fail::exists(format!("path {path} already exists"))),
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => return Err(Fail::of(&error, &path)),
        }
        app.files.mkdir(&path).await.map_err(|error| Fail::of(&error, &path))?;
        Ok(done(StatusCode::CREATED, &path, None, "Directory created successfully"))
    })
    .await
}

pub(crate) async fn directory<F: Files>(State(app): State<App<F>>, request: Request) -> Response {
    answer(request, Form::Documented, async |request| {
        let path = path_of(&Query::parse(request.uri().query())?)?;
        let head = format!("{{\"path\":{},\"files\":[", json::encode(&path.as_str()));
        let pages = Pages { limit: app.limits.page_entries, app, path, recursive: false, item };
        let first = pages.fetch("").await?;
        Ok(pages.stream(head, first, "]}".to_owned()))
    })
    .await
}

fn item(entry: &Entry) -> String {
    json::encode(&Item {
        name: entry.path.rsplit('/').next().unwrap_or_default(),
        path: &entry.path,
        is_dir: entry.attr.is_dir,
        length: shown_len(entry),
        chunks: entry.attr.chunks,
    })
}

fn done(status: StatusCode, path: &NamePath, size: Option<u64>, message: &'static str) -> Response {
    json::answer(status, &Done { success: true, path: path.as_str(), size, message })
}

fn path_of(query: &Query) -> Result<NamePath, Fail> {
    url::name_path(required(query.filled("path"), "path is required")?)
}

/// The form, and the path if the query names it.
async fn form<F: Files>(app: &App<F>, request: Request) -> Result<(Option<NamePath>, Multipart), Fail> {
    let path = Query::parse(request.uri().query())?.filled("path").map(url::name_path).transpose()?;
    let (parts, intake) = Intake::of(app, request);
    let mut request = Request::from_parts(parts, intake.into_body());
    // Each field is bounded as it is read, and the body as every other.
    DefaultBodyLimit::apply(DefaultBodyLimit::disable(), &mut request);
    let form = request.extract().await.map_err(|_| Fail::invalid("expected multipart/form-data with a boundary"))?;
    Ok((path, form))
}

fn bad_form(error: &axum::extract::multipart::MultipartError) -> Fail {
    Fail::invalid(format!("the form is malformed: {}", error.body_text()))
}

async fn path_field(mut field: Field<'_>) -> Result<NamePath, Fail> {
    let mut text = BytesMut::new();
    while let Some(data) = field.chunk().await.map_err(|error| bad_form(&error))? {
        text.extend_from_slice(&data);
        if text.len() > wire::limits::PATH_LEN_MAX {
            return Err(Fail::invalid("the path is too long"));
        }
    }
    let text = std::str::from_utf8(&text).map_err(|_| Fail::invalid("a path must be UTF-8"))?;
    if text.is_empty() {
        return Err(Fail::invalid("path is required"));
    }
    url::name_path(text)
}

async fn collect_field<F: Files>(app: &App<F>, mut field: Field<'_>) -> Result<Bytes, Fail> {
    let max = app.limits.append_bytes;
    let mut all = BytesMut::new();
    while let Some(data) = field.chunk().await.map_err(|error| bad_form(&error))? {
        if all.len() + data.len() > max {
            let text = format!("without a path before it a file may have at most {max} bytes; put `path` first");
            return Err(Fail::too_large(text));
        }
        all.extend_from_slice(&data);
    }
    Ok(all.freeze())
}

async fn stream_field<F: Files>(app: &App<F>, path: &NamePath, mut field: Field<'_>) -> Result<F::Upload, Fail> {
    let content_type = field.content_type().filter(|text| text.len() <= 255).unwrap_or_default().to_owned();
    let mut upload = begin(app, path, content_type).await?;
    while let Some(data) = field.chunk().await.map_err(|error| bad_form(&error))? {
        upload.write(data).await.map_err(|error| Fail::of(&error, path))?;
    }
    Ok(upload)
}

async fn begin<F: Files>(app: &App<F>, path: &NamePath, content_type: String) -> Result<F::Upload, Fail> {
    let options = UploadOptions { content_type, precondition: Precondition::None, sha256: false };
    app.files.upload(path, options).await.map_err(|error| Fail::of(&error, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_quotes() {
        assert_eq!(disposition("a b.txt"), "attachment; filename=\"a b.txt\"");
        assert_eq!(disposition("a\"b"), "attachment; filename=\"a_b\"; filename*=UTF-8''a%22b");
        assert_eq!(disposition("ä"), "attachment; filename=\"_\"; filename*=UTF-8''%C3%A4");
    }
}
