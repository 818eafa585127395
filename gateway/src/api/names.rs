//! mkdir, create, delete, rename, fileinfo.

use axum::extract::{Request, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use wire::Kind;

use crate::api::{answer, required, success};
use crate::app::App;
use crate::fail::{Fail, Form};
use crate::files::Files;
use crate::http::url;
use crate::intake::Intake;

/// `{"path"}` in requests and answers. A path is echoed as it was written.
#[derive(Deserialize, Serialize)]
pub(super) struct Path {
    #[serde(default, alias = "Path")]
    path: Option<String>,
}

impl Path {
    pub(super) fn get(&self) -> Result<&str, Fail> {
        required(self.path.as_deref().filter(|path| !path.is_empty()), "path is required")
    }
}

#[derive(Deserialize, Serialize)]
struct Renaming {
    #[serde(default, alias = "Source")]
    source: String,
    #[serde(default, alias = "Target")]
    target: String,
}

#[derive(Serialize)]
struct Info<'a> {
    chunks: u32,
    is_dir: bool,
    length: u64,
    path: &'a str,
}

pub(crate) async fn mkdir<F: Files>(State(app): State<App<F>>, request: Request) -> Response {
    answer(request, Form::Envelope, async |request| {
        let body: Path = Intake::of(&app, request).1.json().await?;
        let path = url::name_path(body.get()?)?;
        app.files.mkdir(&path).await.map_err(|error| Fail::of(&error, &path))?;
        Ok(success(body, "Directory created successfully"))
    })
    .await
}

pub(crate) async fn create<F: Files>(State(app): State<App<F>>, request: Request) -> Response {
    answer(request, Form::Envelope, async |request| {
        let body: Path = Intake::of(&app, request).1.json().await?;
        let path = url::name_path(body.get()?)?;
        app.files.create(&path, false).await.map_err(|error| Fail::of(&error, &path))?;
        Ok(success(body, "File created successfully"))
    })
    .await
}

/// By `?path=`, or by a JSON body as in the original. A directory goes with all below it.
pub(crate) async fn delete<F: Files>(State(app): State<App<F>>, request: Request) -> Response {
    answer(request, Form::Envelope, async |request| {
        let (parts, intake) = Intake::of(&app, request);
        let query = url::Query::parse(parts.uri.query())?;
        let body = match query.filled("path") {
            Some(path) => Path { path: Some(path.to_owned()) },
            None => intake.json().await?,
        };
        let path = url::name_path(body.get()?)?;
        if path.is_root() {
            return Err(Fail::invalid("cannot remove root directory"));
        }
        let attr = app.files.delete(&path, true).await.map_err(|error| Fail::of(&error, &path))?;
        let message = if attr.is_dir { "Directory deleted successfully" } else { "File deleted successfully" };
        Ok(success(body, message))
    })
    .await
}

pub(crate) async fn rename<F: Files>(State(app): State<App<F>>, request: Request) -> Response {
    answer(request, Form::Envelope, async |request| {
        let body: Renaming = Intake::of(&app, request).1.json().await?;
        if body.source.is_empty() || body.target.is_empty() {
            return Err(Fail::invalid("source and target paths are required"));
        }
        let (source, target) = (url::name_path(&body.source)?, url::name_path(&body.target)?);
        app.files.rename(&source, &target, false).await.map_err(|error| {
            let fail = Fail::of(&error, &source);
            match error.kind() {
                Kind::Exists => fail.saying(format!("target path {target} already exists")),
                Kind::NotFound => fail.saying(format!("source path {source} does not exist")),
                _ => fail,
            }
        })?;
        Ok(success(body, "File renamed successfully"))
    })
    .await
}

pub(crate) async fn fileinfo<F: Files>(State(app): State<App<F>>, request: Request) -> Response {
    answer(request, Form::Envelope, async |request| {
        let query = url::Query::parse(request.uri().query())?;
        let raw = required(query.filled("path"), "path is required")?;
        let path = url::name_path(raw)?;
        let attr = app.files.stat(&path).await.map_err(|error| Fail::of(&error, &path))?;
        Ok(success(Info { chunks: attr.chunks, is_dir: attr.is_dir, length: attr.len, path: raw }, ""))
    })
    .await
}
