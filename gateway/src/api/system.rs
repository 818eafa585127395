//! system/status and system/metrics, as the documents promised them.

use std::sync::atomic::Ordering::Relaxed;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use wire::NamePath;
use wire::heartbeat::{Liveness, ServerStatus};

use crate::api::answer;
use crate::app::{App, unix_ms};
use crate::fail::{Fail, Form};
use crate::files::Files;
use crate::http::{dates, json};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status<'a> {
    master: Master<'a>,
    chunkservers: Vec<Chunkserver<'a>>,
    total_chunks: u64,
    total_files: u64,
    degraded_chunks: u64,
}

#[derive(Serialize)]
struct Master<'a> {
    address: String,
    status: &'a str,
    /// Seconds.
    uptime: u64,
    version: &'a str,
}

#[derive(Serialize)]
struct Chunkserver<'a> {
    address: &'a str,
    status: &'a str,
    chunks: u64,
    space: Space,
    version: &'a str,
}

#[derive(Serialize)]
struct Space {
    total: u64,
    free: u64,
    used: u64,
}

pub(crate) async fn status<F: Files>(State(app): State<App<F>>, request: Request) -> Response {
    answer(request, Form::Documented, async |_| {
        let cluster = app.files.cluster().await.map_err(|error| Fail::of(&error, &NamePath::root()))?;
        let status = Status {
            master: Master {
                address: app.masters.join(","),
                status: if cluster.safe_mode { "safe mode" } else { "healthy" },
                uptime: cluster.uptime_ms / 1000,
                version: &cluster.version,
            },
            chunkservers: cluster.servers.iter().map(chunkserver).collect(),
            total_chunks: cluster.chunks,
            total_files: cluster.files,
            degraded_chunks: cluster.degraded_chunks,
        };
        Ok(json::answer(StatusCode::OK, &status))
    })
    .await
}

fn chunkserver(server: &ServerStatus) -> Chunkserver<'_> {
    Chunkserver {
        address: &server.address,
        status: match server.liveness {
            Liveness::Alive => "healthy",
            Liveness::Suspect => "suspect",
            Liveness::Dead => "dead",
        },
        chunks: server.chunks,
        space: Space { total: server.space.total, free: server.space.free, used: server.space.used },
        version: &server.version,
    }
}

#[derive(Serialize)]
struct Report {
    timestamp: String,
    metrics: Measured,
}

#[derive(Serialize)]
struct Measured {
    requests: Requests,
    bandwidth: Bandwidth,
    latency: Latency,
}

/// Since the gateway started; `rate` per second.
#[derive(Serialize)]
struct Requests {
    total: u64,
    success: u64,
    failed: u64,
    rate: f64,
}

/// Bytes per second since the gateway started.
#[derive(Serialize)]
struct Bandwidth {
    upload: f64,
    download: f64,
}

/// Milliseconds.
#[derive(Serialize)]
struct Latency {
    avg: f64,
    p50: f64,
    p95: f64,
    p99: f64,
}

/// Of this gateway alone.
pub(crate) async fn metrics<F: Files>(State(app): State<App<F>>) -> Response {
    let now_ms = unix_ms();
    let totals = app.metrics.totals();
    let up_ms = now_ms.saturating_sub(app.started_ms).max(1);
    let per_second = |count: u64| thousandths(count.saturating_mul(1_000_000) / up_ms);
    let report = Report {
        timestamp: dates::rfc3339(now_ms),
        metrics: Measured {
            requests: Requests {
                total: totals.requests,
                success: totals.requests - totals.failed,
                failed: totals.failed,
                rate: per_second(totals.requests),
            },
            bandwidth: Bandwidth {
                upload: per_second(app.metrics.bytes_in.load(Relaxed)),
                download: per_second(app.metrics.bytes_out.load(Relaxed)),
            },
            latency: Latency {
                avg: thousandths(totals.mean_us),
                p50: thousandths(totals.p50_us),
                p95: thousandths(totals.p95_us),
                p99: thousandths(totals.p99_us),
            },
        },
    };
    json::answer(StatusCode::OK, &report)
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn thousandths(value: u64) -> f64 {
    value as f64 / 1000.0
}
