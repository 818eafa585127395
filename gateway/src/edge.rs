//! Around every request: its id, its place in the count of requests in progress, CORS, metrics.

use std::pin::Pin;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer, ExposeHeaders};
use tracing::Instrument;

use crate::app::{App, ROUTES};
use crate::fail::{Fail, Form};
use crate::files::Files;
use crate::http::json;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id of a request, in its extensions.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(pub(crate) HeaderValue);

impl RequestId {
    pub(crate) fn of(request: &Request) -> Self {
        request.extensions().get().cloned().unwrap_or_else(|| Self(HeaderValue::from_static("-")))
    }

    pub(crate) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or("-")
    }
}

/// Makes ids: 8 random bytes of the process, and a counter.
pub(crate) struct Ids {
    process: String,
    next: AtomicU64,
}

impl Default for Ids {
    fn default() -> Self {
        let mut random = [0; 8];
        // Without randomness ids repeat after a restart, which only logs would notice.
        let _ = getrandom::fill(&mut random);
        let process = random.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { process, next: AtomicU64::new(1) }
    }
}

impl Ids {
    /// The client's own id if it is short and printable, else a new one.
    fn for_request(&self, given: Option<&HeaderValue>) -> HeaderValue {
        let fine = |value: &&HeaderValue| {
            let bytes = value.as_bytes();
            (1..=128).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
        };
        given.filter(fine).cloned().unwrap_or_else(|| {
            let text = format!("{}-{:x}", self.process, self.next.fetch_add(1, Relaxed));
            HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("-"))
        })
    }
}

pub(crate) fn wrap<F: Files>(router: Router, app: App<F>) -> Router {
    router.layer(cors()).layer(from_fn_with_state(app, around::<F>))
}

/// Origins, methods and headers as in the original, and what `/fs` needs beyond.
fn cors() -> CorsLayer {
    let names = |list: &[&'static str]| list.iter().map(|name| HeaderName::from_static(name)).collect::<Vec<_>>();
    let methods =
        [Method::PUT, Method::PATCH, Method::GET, Method::POST, Method::DELETE, Method::OPTIONS, Method::HEAD];
    CorsLayer::new()
        .allow_origin(AllowOrigin::any())
        .allow_methods(AllowMethods::list(methods))
        .allow_headers(AllowHeaders::list(names(&[
            "content-type",
            "content-length",
            "accept",
            "origin",
            "cache-control",
            "range",
            "content-range",
            "if-match",
            "if-none-match",
            "if-range",
            "if-modified-since",
            "if-unmodified-since",
            "content-digest",
            "repr-digest",
            "x-amz-checksum-crc32c",
            "x-request-id",
        ])))
        .expose_headers(ExposeHeaders::list(names(&[
            "content-length",
            "x-bytes-read",
            "content-range",
            "accept-ranges",
            "etag",
            "last-modified",
            "link",
            "location",
            "repr-digest",
            "retry-after",
            "x-hercules-replicas",
            "x-hercules-durable",
            "x-request-id",
        ])))
        .max_age(Duration::from_secs(12 * 3600))
}

async fn around<F: Files>(State(app): State<App<F>>, mut request: Request, next: Next) -> Response {
    let id = RequestId(app.ids.for_request(request.headers().get(X_REQUEST_ID)));
    request.extensions_mut().insert(id.clone());
    let preflight = request.method() == Method::OPTIONS;
    let route = route_of(&request);
    let mut guard = Guard::new(app.clone(), route, request.method());
    let mut response = match app.requests.clone().try_acquire_owned() {
        Err(_) if !for_operators(route) => {
            let fail = Fail::overloaded("too many requests are in progress; repeat later");
            fail.render(form_of(request.uri().path()), id.as_str())
        }
        permit => {
            guard.permit = permit.ok();
            let span = tracing::info_span!("http", request = id.as_str());
            next.run(request).instrument(span).await
        }
    };
    if preflight && response.status() == StatusCode::OK {
        *response.status_mut() = StatusCode::NO_CONTENT;
    }
    response.headers_mut().insert(X_REQUEST_ID, id.0.clone());
    guard.status = response.status().as_u16();
    tracing::debug!(request = id.as_str(), route, status = guard.status, "answered");
    response.map(|body| Body::new(Counted { body, guard }))
}

/// Those that must answer under overload.
fn for_operators(route: &str) -> bool {
    matches!(route, "/health" | "/healthz" | "/livez" | "/readyz" | "/version" | "/metrics")
}

fn route_of(request: &Request) -> &'static str {
    let matched = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let known = matched.and_then(|path| ROUTES.iter().copied().find(|route| *route == path));
    match known {
        Some("/fs" | "/fs/" | "/fs/{*path}") => "/fs",
        Some(route) => route,
        None => "none",
    }
}

/// In which form the surface that owns this path reports failures.
pub(crate) fn form_of(path: &str) -> Form {
    if path.starts_with("/api/") { Form::Envelope } else { Form::Problem }
}

/// The original's answer to a route it does not know.
pub(crate) async fn no_route() -> Response {
    json::typed(StatusCode::NOT_FOUND, "text/plain", "404 page not found")
}

/// `Allow` is added by the router.
pub(crate) async fn method_not_allowed(request: Request) -> Response {
    let text = format!("method {} is not allowed here", request.method());
    let fail = Fail::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", text);
    fail.render(form_of(request.uri().path()), RequestId::of(&request).as_str())
}

/// One slash for several, as the original's router did. `None` when there is nothing to do.
pub(crate) fn without_duplicate_slashes(uri: &Uri) -> Option<Uri> {
    if !uri.path().contains("//") {
        return None;
    }
    let mut path = String::with_capacity(uri.path().len());
    for character in uri.path().chars() {
        if character != '/' || !path.ends_with('/') {
            path.push(character);
        }
    }
    if let Some(query) = uri.query() {
        path.push('?');
        path.push_str(query);
    }
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::from_str(&path).ok()?);
    Uri::from_parts(parts).ok()
}

/// Counts a request from its header to the last byte of its answer, however it ends.
struct Guard<F: Files> {
    app: App<F>,
    route: &'static str,
    method: &'static str,
    /// 499, as nginx has it, until there is an answer: the client went away.
    status: u16,
    begun: Instant,
    permit: Option<OwnedSemaphorePermit>,
}

impl<F: Files> Guard<F> {
    fn new(app: App<F>, route: &'static str, method: &Method) -> Self {
        app.metrics.in_flight.fetch_add(1, Relaxed);
        Self { app, route, method: label(method), status: 499, begun: Instant::now(), permit: None }
    }
}

impl<F: Files> Drop for Guard<F> {
    fn drop(&mut self) {
        self.app.metrics.in_flight.fetch_sub(1, Relaxed);
        self.app.metrics.finished(self.route, self.method, self.status, self.begun.elapsed());
    }
}

fn label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "PUT" => "PUT",
        "POST" => "POST",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

/// A body that holds its request's [`Guard`] until it was sent or given up.
struct Counted<F: Files> {
    body: Body,
    guard: Guard<F>,
}

impl<F: Files> HttpBody for Counted<F> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.guard.app.metrics.bytes_out.fetch_add(data.len() as u64, Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicate_slashes_collapse_and_the_query_stays() {
        let collapsed = |uri: &str| without_duplicate_slashes(&uri.parse().unwrap()).map(|uri| uri.to_string());
        assert_eq!(collapsed("//api///v1//list?path=//a").as_deref(), Some("/api/v1/list?path=//a"));
        assert_eq!(collapsed("/api/v1/list?path=//a"), None);
    }

    #[test]
    fn a_client_s_request_id_is_kept_only_if_it_can_be_logged() {
        let ids = Ids::default();
        let kept = |text: &str| ids.for_request(Some(&HeaderValue::from_bytes(text.as_bytes()).unwrap())) == text;
        assert!(kept("abc-123"));
        assert!(!kept("a b") && !kept("") && !kept(&"x".repeat(129)) && !kept("ä"));
        assert_ne!(ids.for_request(None), ids.for_request(None));
    }
}
