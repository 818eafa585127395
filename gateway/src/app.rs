//! What every handler shares, and the table of routes.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::routing::{any, delete, get, patch, post};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Limits;
use crate::fail::Fail;
use crate::files::Files;
use crate::health::Readiness;
use crate::metrics::Metrics;
use crate::{api, edge, fs, health};

/// Shared by all handlers; cheap to clone.
pub(crate) struct App<F>(Arc<Inner<F>>);

pub(crate) struct Inner<F> {
    pub(crate) files: F,
    pub(crate) limits: Limits,
    pub(crate) metrics: Metrics,
    pub(crate) readiness: Readiness,
    /// As configured, for `/api/v1/system/status`.
    pub(crate) masters: Vec<String>,
    /// Requests in progress.
    pub(crate) requests: Arc<Semaphore>,
    /// Bytes of bodies held whole, in units of [`WHOLE_UNIT`].
    whole: Arc<Semaphore>,
    pub(crate) ids: edge::Ids,
    pub(crate) started_ms: u64,
}

/// Unit of the memory budget: fine enough that small appends cost little, coarse enough to count in `u32`.
const WHOLE_UNIT: usize = 64 << 10;

/// How long a body may wait for memory before it is refused.
const WHOLE_WAIT: Duration = Duration::from_secs(2);

impl<F> Clone for App<F> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<F> std::ops::Deref for App<F> {
    type Target = Inner<F>;

    fn deref(&self) -> &Inner<F> {
        &self.0
    }
}

impl<F: Files> App<F> {
    pub(crate) fn new(files: F, masters: Vec<String>, limits: Limits) -> Self {
        Self(Arc::new(Inner {
            files,
            metrics: Metrics::default(),
            readiness: Readiness::default(),
            masters,
            requests: Arc::new(Semaphore::new(limits.requests)),
            whole: Arc::new(Semaphore::new(limits.whole_bytes.div_ceil(WHOLE_UNIT))),
            ids: edge::Ids::default(),
            started_ms: unix_ms(),
            limits,
        }))
    }

    /// Memory for a body of at most `len` bytes, until the permit is dropped.
    pub(crate) async fn reserve(&self, len: usize) -> Result<OwnedSemaphorePermit, Fail> {
        let units = u32::try_from(len.div_ceil(WHOLE_UNIT)).unwrap_or(u32::MAX);
        let wait = Arc::clone(&self.whole).acquire_many_owned(units);
        match tokio::time::timeout(WHOLE_WAIT, wait).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Fail::overloaded("too many bodies are held in memory; repeat later")),
        }
    }
}

/// The time, for people: dates in answers.
#[allow(clippy::disallowed_methods, reason = "the gateway reads the clock; nothing is decided by it")]
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Every route, for the labels of metrics: the only values they take.
pub(crate) const ROUTES: [&str; 29] = [
    "/fs",
    "/fs/",
    "/fs/{*path}",
    "/api/v1/mkdir",
    "/api/v1/create",
    "/api/v1/delete",
    "/api/v1/rename",
    "/api/v1/list",
    "/api/v1/fileinfo",
    "/api/v1/read",
    "/api/v1/write",
    "/api/v1/append",
    "/api/v1/chunk/handle",
    "/api/v1/chunk/servers",
    "/api/v1/files",
    "/api/v1/files/upload",
    "/api/v1/files/download",
    "/api/v1/files/append",
    "/api/v1/directories",
    "/api/v1/chunks/{handle}",
    "/api/v1/system/status",
    "/api/v1/system/metrics",
    "/",
    "/health",
    "/healthz",
    "/livez",
    "/readyz",
    "/version",
    "/metrics",
];

pub(crate) fn router<F: Files>(app: App<F>) -> Router {
    let router = Router::new()
        .route("/fs", any(fs::serve::<F>))
        .route("/fs/", any(fs::serve::<F>))
        .route("/fs/{*path}", any(fs::serve::<F>))
        .route("/api/v1/mkdir", post(api::names::mkdir::<F>))
        .route("/api/v1/create", post(api::names::create::<F>))
        .route("/api/v1/delete", delete(api::names::delete::<F>))
        .route("/api/v1/rename", patch(api::names::rename::<F>))
        .route("/api/v1/list", get(api::list::list::<F>))
        .route("/api/v1/fileinfo", get(api::names::fileinfo::<F>))
        .route("/api/v1/read", get(api::data::read::<F>))
        .route("/api/v1/write", post(api::data::write::<F>))
        .route("/api/v1/append", patch(api::data::append::<F>))
        .route("/api/v1/chunk/handle", get(api::chunk::handle::<F>))
        .route("/api/v1/chunk/servers", get(api::chunk::servers::<F>))
        .route(
            "/api/v1/files",
            post(api::documented::create::<F>).get(api::documented::info::<F>).delete(api::documented::delete::<F>),
        )
        .route("/api/v1/files/upload", post(api::documented::upload::<F>))
        .route("/api/v1/files/download", get(api::documented::download::<F>))
        .route("/api/v1/files/append", post(api::documented::append::<F>))
        .route("/api/v1/directories", post(api::documented::mkdir::<F>).get(api::documented::directory::<F>))
        .route("/api/v1/chunks/{handle}", get(api::chunk::info::<F>))
        .route("/api/v1/system/status", get(api::system::status::<F>))
        .route("/api/v1/system/metrics", get(api::system::metrics::<F>))
        .route("/", get(health::index))
        .route("/health", get(health::health::<F>))
        .route("/healthz", get(health::health::<F>))
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready::<F>))
        .route("/version", get(health::version))
        .route("/metrics", get(health::metrics::<F>))
        .method_not_allowed_fallback(edge::method_not_allowed)
        .fallback(edge::no_route)
        .with_state(app.clone());
    edge::wrap(router, app)
}
