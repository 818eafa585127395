//! What operators and probes ask: health, readiness, version, metrics.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use tokio::time::{Instant, timeout};
use wire::heartbeat::{ClusterOk, Liveness};

use crate::app::{App, unix_ms};
use crate::files::Files;
use crate::http::url::Query;
use crate::http::{dates, json};
use crate::metrics;

/// How long a probe waits for the master: less than the 10 s that orchestrators give a check.
const PROBE_TIME: Duration = Duration::from_secs(3);

/// How long an answer to `/readyz` is used again: probes must not become a load.
const READY_FOR: Duration = Duration::from_secs(1);

/// The last answer to "is the cluster ready", and when it was given.
#[derive(Default)]
pub(crate) struct Readiness(Mutex<Option<(Instant, Result<(), &'static str>)>>);

#[derive(Serialize)]
struct Health<'a> {
    service: &'a str,
    status: &'a str,
    time: u64,
    timestamp: String,
    version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    master: Option<Master>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chunkservers: Option<Chunkservers>,
}

#[derive(Serialize)]
struct Master {
    status: &'static str,
    response_ms: u64,
}

#[derive(Serialize)]
struct Chunkservers {
    alive: usize,
    total: usize,
}

/// The original's three fields first; `?deep` asks the master and answers 503 when the cluster does not serve.
pub(crate) async fn health<F: Files>(State(app): State<App<F>>, request: Request) -> Response {
    let deep = Query::parse(request.uri().query()).is_ok_and(|query| query.flag("deep"));
    let now_ms = unix_ms();
    let mut health = Health {
        service: "hercules-http-gateway",
        status: "healthy",
        time: now_ms / 1000,
        timestamp: dates::rfc3339(now_ms),
        version: env!("CARGO_PKG_VERSION"),
        master: None,
        chunkservers: None,
    };
    let mut status = StatusCode::OK;
    if deep {
        let begun = Instant::now();
        let cluster = ask(&app).await;
        let response_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        if let Err(why) = cluster.as_ref().map_err(|why| *why).and_then(serves) {
            status = StatusCode::SERVICE_UNAVAILABLE;
            health.status = why;
        }
        let answered = if cluster.is_ok() { "healthy" } else { "unreachable" };
        health.master = Some(Master { status: answered, response_ms });
        health.chunkservers =
            cluster.ok().map(|cluster| Chunkservers { alive: alive(&cluster), total: cluster.servers.len() });
    }
    json::answer(status, &health)
}

/// The process answers.
pub(crate) async fn live() -> Response {
    text(StatusCode::OK, "ok\n")
}

/// The cluster behind it serves.
pub(crate) async fn ready<F: Files>(State(app): State<App<F>>) -> Response {
    match readiness(&app).await {
        Ok(()) => text(StatusCode::OK, "ready\n"),
        Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

async fn readiness<F: Files>(app: &App<F>) -> Result<(), &'static str> {
    let known = *app.readiness.0.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((at, ready)) = known
        && at.elapsed() < READY_FOR
    {
        return ready;
    }
    let ready = ask(app).await.and_then(|cluster| serves(&cluster));
    *app.readiness.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), ready));
    ready
}

async fn ask<F: Files>(app: &App<F>) -> Result<ClusterOk, &'static str> {
    match timeout(PROBE_TIME, app.files.cluster()).await {
        Ok(Ok(cluster)) => Ok(cluster),
        Ok(Err(_)) | Err(_) => Err("master unreachable"),
    }
}

fn serves(cluster: &ClusterOk) -> Result<(), &'static str> {
    match (cluster.safe_mode, alive(cluster)) {
        (true, _) => Err("master in safe mode"),
        (_, 0) => Err("no chunkserver alive"),
        _ => Ok(()),
    }
}

fn alive(cluster: &ClusterOk) -> usize {
    cluster.servers.iter().filter(|server| server.liveness == Liveness::Alive).count()
}

#[derive(Serialize)]
struct Version {
    name: &'static str,
    version: &'static str,
}

pub(crate) async fn version() -> Response {
    json::answer(StatusCode::OK, &Version { name: "hercules", version: env!("CARGO_PKG_VERSION") })
}

pub(crate) async fn metrics<F: Files>(State(app): State<App<F>>) -> Response {
    let body = app.metrics.exposition(&app.files.stats(), app.started_ms);
    json::typed(StatusCode::OK, metrics::CONTENT_TYPE, body)
}

/// Where to go from here, for those who open the address in a browser.
pub(crate) async fn index() -> Response {
    text(
        StatusCode::OK,
        "Hercules gateway\n\n/fs/           files\n/api/v1/       API of the original\n/health?deep   state of the cluster\n/metrics       Prometheus\n",
    )
}

fn text(status: StatusCode, body: &'static str) -> Response {
    json::typed(status, "text/plain; charset=utf-8", body)
}
