//! GET and HEAD of files: conditions, ranges, and the way to a directory's listing.

use axum::body::Body;
use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::Response;
use wire::namespace::Attr;

use crate::app::App;
use crate::fail::Fail;
use crate::files::Files;
use crate::fs::download::{Part, download};
use crate::fs::{Asked, listing, set, set_validators, validators};
use crate::http::conditions::{Conditions, Verdict};
use crate::http::range::{self, Ranges};
use crate::http::{digest, url};

const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");
const BOUNDARY: &str = "hercules-range-boundary-7c1e6a0f";

pub(super) async fn get<F: Files>(app: &App<F>, asked: &Asked) -> Result<Response, Fail> {
    let path = asked.path();
    let attr = app.files.stat(path).await.map_err(|error| Fail::of(&error, path))?;
    match (attr.is_dir, asked.target.slash) {
        (true, true) => listing::listing(app, asked).await,
        (true, false) => Ok(to_slash(asked)),
        (false, true) => Err(Fail::not_found(path)),
        (false, false) => file(app, &attr, asked).await,
    }
}

/// Relative links of a listing need the slash, and rclone knows directories by it.
fn to_slash(asked: &Asked) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    let headers = response.headers_mut();
    set(headers, LOCATION, format!("/fs{}/", url::encode_path(asked.path())));
    // What is a directory now may be a file tomorrow.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// The answer for a file that exists.
pub(crate) async fn file<F: Files>(app: &App<F>, attr: &Attr, asked: &Asked) -> Result<Response, Fail> {
    let conditions = Conditions::of(&asked.headers)?;
    let now = validators(attr);
    match conditions.evaluate(true, Some(&now)) {
        Verdict::Failed => return Err(Fail::precondition()),
        Verdict::NotModified => return Ok(answer(StatusCode::NOT_MODIFIED, attr, &now.tag, Body::empty())),
        Verdict::Proceed => {}
    }
    let head = asked.method == Method::HEAD;
    let ranges = if head || !conditions.range_applies(&now) {
        Ranges::Whole
    } else {
        let field = asked.headers.get(RANGE).and_then(|value| value.to_str().ok());
        range::parse(field, attr.len, app.limits.ranges)
    };
    let (status, content_type, content_range, parts) = match ranges {
        Ranges::Unsatisfiable => return Err(Fail::range("the range lies beyond the end of the file", attr.len)),
        Ranges::Whole => (StatusCode::OK, None, None, vec![Part::Bytes(0..attr.len)]),
        Ranges::Parts(mut parts) if parts.len() == 1 => {
            let part = parts.remove(0);
            let content_range = format!("bytes {}-{}/{}", part.start, part.end - 1, attr.len);
            (StatusCode::PARTIAL_CONTENT, None, Some(content_range), vec![Part::Bytes(part)])
        }
        Ranges::Parts(parts) => {
            let content_type = format!("multipart/byteranges; boundary={BOUNDARY}");
            (StatusCode::PARTIAL_CONTENT, Some(content_type), None, multipart(attr, parts))
        }
    };
    let len: u64 = parts.iter().map(Part::len).sum();
    let body = if head { Body::empty() } else { download(app, asked.path(), attr, parts).await? };
    let mut response = answer(status, attr, &now.tag, body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(len));
    set_content(headers, attr);
    if let Some(content_type) = content_type {
        set(headers, CONTENT_TYPE, content_type);
    }
    if let Some(content_range) = content_range {
        set(headers, CONTENT_RANGE, content_range);
    }
    Ok(response)
}

fn answer(status: StatusCode, attr: &Attr, etag: &str, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    set_validators(response.headers_mut(), attr, etag);
    response
}

fn set_content(headers: &mut HeaderMap, attr: &Attr) {
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    // What was uploaded as data must not become a script because a browser thinks it looks like one.
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    set(headers, CONTENT_TYPE, content_type(attr));
    if let Some(value) = attr.sha256.as_ref().and_then(digest::field_of_sha256) {
        headers.insert(REPR_DIGEST, value);
    }
}

fn content_type(attr: &Attr) -> &str {
    if attr.content_type.is_empty() { "application/octet-stream" } else { &attr.content_type }
}

/// The parts of a `multipart/byteranges` body (RFC 9110 section 14.6).
fn multipart(attr: &Attr, ranges: Vec<std::ops::Range<u64>>) -> Vec<Part> {
    let mut parts = Vec::with_capacity(ranges.len() * 2 + 1);
    for range in ranges {
        let (first, last) = (range.start, range.end - 1);
        let text = format!(
            "\r\n--{BOUNDARY}\r\ncontent-type: {}\r\ncontent-range: bytes {first}-{last}/{}\r\n\r\n",
            content_type(attr),
            attr.len
        );
        parts.push(Part::Text(text.into()));
        parts.push(Part::Bytes(range));
    }
    parts.push(Part::Text(format!("\r\n--{BOUNDARY}--\r\n").into()));
    parts
}
