//! One connection: its socket with time limits, and what came on it beyond a request's body.

pub(crate) mod framing;
mod socket;

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::Watcher;
use tokio::net::TcpStream;
use tower::Service;

use crate::config::Limits;
use crate::edge::without_duplicate_slashes;
use framing::Framing;
use socket::Socket;

/// hyper's own default; naming it costs an allocation per request.
const HEADER_FIELDS_DEFAULT: usize = 100;

/// The settings of every connection.
pub(crate) fn builder(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_header_size(limits.header_bytes)
        .max_buf_size(limits.read_buffer_bytes);
    if limits.header_fields != HEADER_FIELDS_DEFAULT {
        builder.max_headers(limits.header_fields);
    }
    builder
}

/// Serves one connection until it ends. Dropping the future closes it.
pub(crate) async fn serve(
    stream: TcpStream,
    builder: &http1::Builder,
    router: Router,
    limits: &Limits,
    watcher: Watcher,
) {
    let framing = Arc::new(Framing::default());
    let socket = Socket::new(stream, Arc::clone(&framing), limits.write_idle);
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Arc::clone(&framing));
        if let Some(uri) = without_duplicate_slashes(request.uri()) {
            *request.uri_mut() = uri;
        }
        let mut router = router.clone();
        async move { Ok::<_, Infallible>(router.call(request).await.unwrap_or_else(|never| match never {})) }
    });
    let connection = builder.serve_connection(TokioIo::new(socket), service);
    if let Err(error) = watcher.watch(connection).await {
        // The peer's doing, or a read that was broken off and logged where it failed.
        tracing::debug!(%error, "connection ended");
    }
}
