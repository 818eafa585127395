//! What the gateway counts, and its exposition as Prometheus text.
//!
//! One short lock per finished request; a series per (route, method), both from fixed lists, so that no
//! client can make more of them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use client::Stats;

/// Content type of [`Metrics::exposition`]; Prometheus 3 refuses a scrape without a valid one.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds of the latency buckets, microseconds: half a millisecond to half a minute.
const BUCKETS_US: [u64; 15] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000, 30_000_000,
];

/// Counters of one gateway.
#[derive(Default)]
pub(crate) struct Metrics {
    series: Mutex<BTreeMap<(&'static str, &'static str), Series>>,
    pub(crate) in_flight: AtomicU64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    pub(crate) connections: AtomicU64,
    pub(crate) connections_accepted: AtomicU64,
    pub(crate) connections_refused: AtomicU64,
    /// Reads that failed after their header had been sent.
    pub(crate) broken_reads: AtomicU64,
    /// Uploads given up: cut short, wrong digest, failed.
    pub(crate) aborted_uploads: AtomicU64,
}

#[derive(Clone, Default)]
struct Series {
    by_status: BTreeMap<u16, u64>,
    /// Not cumulative; the last one is everything above the last bound.
    buckets: [u64; BUCKETS_US.len() + 1],
    sum_us: u64,
}

/// Totals over all routes, for `/api/v1/system/metrics`.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) requests: u64,
    /// Answered with 4xx or 5xx, or never.
    pub(crate) failed: u64,
    pub(crate) mean_us: u64,
    pub(crate) p50_us: u64,
    pub(crate) p95_us: u64,
    pub(crate) p99_us: u64,
}

impl Metrics {
    /// A request is over: its last byte was handed to the connection, or it was given up.
    pub(crate) fn finished(&self, route: &'static str, method: &'static str, status: u16, took: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let mut all = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let series = all.entry((route, method)).or_default();
        *series.by_status.entry(status).or_default() += 1;
        let bucket = BUCKETS_US.iter().position(|bound| took_us <= *bound).unwrap_or(BUCKETS_US.len());
        series.buckets[bucket] += 1;
        series.sum_us = series.sum_us.saturating_add(took_us);
    }

    pub(crate) fn totals(&self) -> Totals {
        let all = self.snapshot();
        let mut sum = Series::default();
        let mut failed = 0;
        for series in all.values() {
            for (status, count) in &series.by_status {
                failed += if *status >= 400 { *count } else { 0 };
            }
            sum.sum_us = sum.sum_us.saturating_add(series.sum_us);
            sum.buckets.iter_mut().zip(series.buckets).for_each(|(total, count)| *total += count);
        }
        let requests: u64 = sum.buckets.iter().sum();
        Totals {
            requests,
            failed,
            mean_us: sum.sum_us.checked_div(requests).unwrap_or(0),
            p50_us: quantile_us(&sum.buckets, 50),
            p95_us: quantile_us(&sum.buckets, 95),
            p99_us: quantile_us(&sum.buckets, 99),
        }
    }

    /// Prometheus text. `stats` are the client's, `started_ms` is Unix milliseconds.
    pub(crate) fn exposition(&self, stats: &Stats, started_ms: u64) -> String {
        let mut out = String::with_capacity(8 << 10);
        self.write_requests(&mut out);
        for (name, kind, help, value) in [
            ("requests_in_flight", "gauge", "Requests in progress.", self.in_flight.load(Relaxed)),
            ("request_bytes_total", "counter", "Bytes of request bodies.", self.bytes_in.load(Relaxed)),
            ("response_bytes_total", "counter", "Bytes of response bodies.", self.bytes_out.load(Relaxed)),
            ("connections", "gauge", "Open connections.", self.connections.load(Relaxed)),
            ("connections_total", "counter", "Connections accepted.", self.connections_accepted.load(Relaxed)),
            (
                "connections_refused_total",
                "counter",
                "Connections beyond the limit.",
                self.connections_refused.load(Relaxed),
            ),
            ("broken_reads_total", "counter", "Reads that failed after their header.", self.broken_reads.load(Relaxed)),
            (
                "aborted_uploads_total",
                "counter",
                "Uploads given up before they were published.",
                self.aborted_uploads.load(Relaxed),
            ),
            ("client_retries_total", "counter", "Calls to the cluster that were repeated.", stats.retries),
            ("client_failovers_total", "counter", "Reads that went on at another replica.", stats.failovers),
            (
                "client_corrupt_replies_total",
                "counter",
                "Replies that did not match their checksums.",
                stats.corrupt_replies,
            ),
            ("client_reports_total", "counter", "Bad servers and blocks reported to the master.", stats.reports),
            ("client_read_bytes_total", "counter", "Bytes read from the cluster.", stats.bytes_read),
            ("client_written_bytes_total", "counter", "Bytes written to the cluster.", stats.bytes_written),
        ] {
            sample(&mut out, &format!("hercules_gateway_{name}"), kind, help, value);
        }
        let info = format!("hercules_build_info{{role=\"gateway\",version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
        let _ = writeln!(
            out,
            "# HELP hercules_build_info Version of this process.\n# TYPE hercules_build_info gauge\n{info} 1"
        );
        write_process(&mut out, started_ms);
        out
    }

    fn write_requests(&self, out: &mut String) {
        let all = self.snapshot();
        let (count, seconds) = ("hercules_gateway_requests_total", "hercules_gateway_request_seconds");
        let _ = writeln!(
            out,
            "# HELP {count} Requests by route, method and status; 499: the client went away.\n# TYPE {count} counter"
        );
        for ((route, method), series) in &all {
            for (status, value) in &series.by_status {
                let _ = writeln!(out, "{count}{{route=\"{route}\",method=\"{method}\",status=\"{status}\"}} {value}");
            }
        }
        let _ = writeln!(
            out,
            "# HELP {seconds} From the request's header to the last byte of its answer.\n# TYPE {seconds} histogram"
        );
        for ((route, method), series) in &all {
            let labels = format!("route=\"{route}\",method=\"{method}\"");
            let mut below = 0;
            for (bound_us, value) in BUCKETS_US.iter().zip(series.buckets) {
                below += value;
                let _ = writeln!(out, "{seconds}_bucket{{{labels},le=\"{}\"}} {below}", as_seconds(*bound_us));
            }
            let total: u64 = series.buckets.iter().sum();
            let _ = writeln!(out, "{seconds}_bucket{{{labels},le=\"+Inf\"}} {total}");
            let _ = writeln!(out, "{seconds}_sum{{{labels}}} {}", as_seconds(series.sum_us));
            let _ = writeln!(out, "{seconds}_count{{{labels}}} {total}");
        }
    }

    fn snapshot(&self) -> BTreeMap<(&'static str, &'static str), Series> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Seconds without loss: `0.0025`, `30`.
fn as_seconds(us: u64) -> String {
    let text = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The quantile by linear interpolation within its bucket.
fn quantile_us(buckets: &[u64; BUCKETS_US.len() + 1], percent: u64) -> u64 {
    let total: u64 = buckets.iter().sum();
    let rank = (total * percent).div_ceil(100);
    let mut below = 0;
    let mut floor_us = 0;
    for (count, bound_us) in buckets.iter().zip(BUCKETS_US) {
        if *count > 0 && below + count >= rank {
            return floor_us + (bound_us - floor_us) * (rank - below) / count;
        }
        below += count;
        floor_us = bound_us;
    }
    if total == 0 { 0 } else { floor_us }
}

fn sample(out: &mut String, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
}

fn write_process(out: &mut String, started_ms: u64) {
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let cpu = format!("{}.{:09}", cpu.tv_sec, cpu.tv_nsec);
    sample(out, "process_cpu_seconds_total", "counter", "CPU time of this process, user and system.", cpu);
    if let Some(bytes) = resident_bytes() {
        sample(out, "process_resident_memory_bytes", "gauge", "Memory of this process in RAM.", bytes);
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        sample(out, "process_open_fds", "gauge", "Open file descriptors.", open.count());
    }
    let started = as_seconds(started_ms.saturating_mul(1000));
    sample(out, "process_start_time_seconds", "gauge", "Unix time of the start.", started);
}

fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * u64::try_from(rustix::param::page_size()).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_histogram_is_cumulative_and_counts_every_request() {
        let metrics = Metrics::default();
        for (ms, status) in [(1, 200), (3, 200), (60_000, 503)] {
            metrics.finished("/fs", "GET", status, Duration::from_millis(ms));
        }
        let text = metrics.exposition(&Stats::default(), 1_500);
        for line in [
            "hercules_gateway_requests_total{route=\"/fs\",method=\"GET\",status=\"200\"} 2",
            "hercules_gateway_requests_total{route=\"/fs\",method=\"GET\",status=\"503\"} 1",
            "hercules_gateway_request_seconds_bucket{route=\"/fs\",method=\"GET\",le=\"0.0005\"} 0",
            "hercules_gateway_request_seconds_bucket{route=\"/fs\",method=\"GET\",le=\"0.001\"} 1",
            "hercules_gateway_request_seconds_bucket{route=\"/fs\",method=\"GET\",le=\"30\"} 2",
            "hercules_gateway_request_seconds_bucket{route=\"/fs\",method=\"GET\",le=\"+Inf\"} 3",
            "hercules_gateway_request_seconds_sum{route=\"/fs\",method=\"GET\"} 60.004",
            "process_start_time_seconds 1.5",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn every_line_is_a_comment_or_a_sample_with_a_number() {
        let metrics = Metrics::default();
        metrics.finished("/fs", "GET", 200, Duration::from_millis(1));
        for line in metrics.exposition(&Stats::default(), 0).lines().filter(|line| !line.starts_with("# ")) {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok() && name.starts_with(|c: char| c.is_ascii_lowercase()), "{line}");
        }
    }

    #[test]
    fn quantiles_lie_within_their_bucket() {
        let metrics = Metrics::default();
        assert_eq!(metrics.totals().p99_us, 0);
        for _ in 0..99 {
            metrics.finished("/fs", "GET", 200, Duration::from_micros(700));
        }
        metrics.finished("/fs", "GET", 404, Duration::from_micros(40_000));
        let totals = metrics.totals();
        assert_eq!((totals.requests, totals.failed), (100, 1));
        assert!((500..=1000).contains(&totals.p50_us) && totals.p99_us <= 1000, "{totals:?}");
    }
}
