//! `/fs/<path>`: files as plain HTTP, what curl, browsers, rclone and fsspec expect.

mod change;
pub(crate) mod download;
mod get;
pub(crate) mod listing;
mod put;
mod write;

use axum::extract::{Request, State};
use axum::http::header::{ETAG, LAST_MODIFIED};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::Response;
use serde::Serialize;
use wire::NamePath;
use wire::namespace::Attr;

use crate::app::App;
use crate::edge::RequestId;
use crate::fail::{Fail, Form};
use crate::files::Files;
use crate::http::conditions::{Conditions, Validators, Verdict};
use crate::http::{dates, etag, json, url};
use crate::intake::Intake;

pub(crate) use get::file as file_answer;
pub(crate) use write::{append_record, collect_append, write_body};

const ALLOW: &str = "GET,HEAD,PUT,POST,PATCH,DELETE,OPTIONS";
const X_REPLICAS: HeaderName = HeaderName::from_static("x-hercules-replicas");
const X_DURABLE: HeaderName = HeaderName::from_static("x-hercules-durable");

/// Any method on `/fs/...`.
pub(crate) async fn serve<F: Files>(State(app): State<App<F>>, request: Request) -> Response {
    let id = RequestId::of(&request);
    match dispatch(&app, request).await {
        Ok(response) => response,
        Err(fail) => fail.render(Form::Problem, id.as_str()),
    }
}

async fn dispatch<F: Files>(app: &App<F>, request: Request) -> Result<Response, Fail> {
    let (parts, intake) = Intake::of(app, request);
    let raw = parts.uri.path().strip_prefix("/fs").unwrap_or_default();
    let asked = Asked {
        target: url::target(raw)?,
        query: url::Query::parse(parts.uri.query())?,
        method: parts.method,
        headers: parts.headers,
    };
    match asked.method {
        Method::GET | Method::HEAD => get::get(app, &asked).await,
        Method::PUT => put::put(app, &asked, intake).await,
        Method::POST => change::post(app, &asked, intake).await,
        Method::PATCH => write::patch(app, &asked, intake).await,
        Method::DELETE => change::delete(app, &asked).await,
        _ => Err(Fail::method(ALLOW)),
    }
}

/// A request, taken apart.
pub(crate) struct Asked {
    pub(crate) target: url::Target,
    pub(crate) query: url::Query,
    pub(crate) method: Method,
    pub(crate) headers: HeaderMap,
}

impl Asked {
    fn path(&self) -> &NamePath {
        &self.target.path
    }

    /// The path, when it must name a file and so must not end in a slash.
    fn file_path(&self) -> Result<&NamePath, Fail> {
        if self.target.slash {
            return Err(Fail::invalid("a path that ends in `/` names a directory; this needs a file"));
        }
        Ok(self.path())
    }
}

/// What a change answers: where the file is now, how long it is, its entity tag.
#[derive(Serialize)]
struct Changed<'a> {
    path: &'a str,
    length: u64,
    etag: &'a str,
}

fn changed(status: StatusCode, path: &NamePath, attr: &Attr) -> Response {
    let etag = etag::of(attr);
    let mut response = json::answer(status, &Changed { path: path.as_str(), length: attr.len, etag: &etag });
    set_validators(response.headers_mut(), attr, &etag);
    response
}

fn set_validators(headers: &mut HeaderMap, attr: &Attr, etag: &str) {
    set(headers, ETAG, etag);
    set(headers, LAST_MODIFIED, dates::http(attr.modified_ms));
}

/// Sets a header field whose value is known to be printable.
fn set(headers: &mut HeaderMap, name: HeaderName, value: impl TryInto<HeaderValue>) {
    if let Ok(value) = value.try_into() {
        headers.insert(name, value);
    }
}

/// Says how durable what was acknowledged is: on this many replicas, each flushed.
fn set_durability(headers: &mut HeaderMap, replicas: Option<u32>) {
    headers.insert(X_DURABLE, HeaderValue::from_static("true"));
    if let Some(replicas) = replicas {
        headers.insert(X_REPLICAS, HeaderValue::from(replicas));
    }
}

fn validators(attr: &Attr) -> Validators {
    Validators { tag: etag::of(attr), modified_s: dates::seconds(attr.modified_ms) }
}

/// What is at a path now, if anything.
async fn current<F: Files>(app: &App<F>, path: &NamePath) -> Result<Option<Attr>, Fail> {
    match app.files.stat(path).await {
        Ok(attr) => Ok(Some(attr)),
        Err(error) if error.kind() == wire::Kind::NotFound => Ok(None),
        Err(error) => Err(Fail::of(&error, path)),
    }
}

/// Refuses a change whose conditions do not hold now. `current` is asked only when there are any.
async fn check_conditions<F: Files>(app: &App<F>, asked: &Asked) -> Result<(), Fail> {
    let conditions = Conditions::of(&asked.headers)?;
    if conditions.is_empty() {
        return Ok(());
    }
    let now = current(app, asked.path()).await?.as_ref().map(validators);
    match conditions.evaluate(false, now.as_ref()) {
        Verdict::Proceed => Ok(()),
        _ => Err(Fail::precondition()),
    }
}
