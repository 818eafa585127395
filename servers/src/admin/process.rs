//! Numbers of the process itself, under the names every dashboard knows.

use std::fs;
use std::time::Duration;

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::Metrics;
use crate::clock;

/// Appends them to `text`. What the kernel does not tell is left out.
pub(super) fn render(text: &mut String) {
    let mut out = Metrics::default();
    out.gauges(
        "hercules_build_info",
        "Always 1; the labels say what runs.",
        [([("version", env!("CARGO_PKG_VERSION").to_owned())], 1.0)],
    );
    // A float, as other exporters have it: whole seconds are too coarse for rates.
    out.seconds_total("process_cpu_seconds_total", "CPU time of all threads, seconds.", cpu());
    if let Some(bytes) = resident_bytes() {
        out.gauge("process_resident_memory_bytes", "Resident memory, bytes.", bytes);
    }
    if let Ok(fds) = fs::read_dir("/proc/self/fd") {
        out.gauge("process_open_fds", "Open file descriptors.", count(fds.count()));
    }
    if let Some(most) = getrlimit(Resource::Nofile).current {
        out.gauge("process_max_fds", "Most file descriptors allowed.", float(most));
    }
    if let Some(started) = start_unix_seconds() {
        out.gauge("process_start_time_seconds", "When the process started, unix seconds.", started);
    }
    text.push_str(&out.finish());
}

/// CPU time used by the whole process so far.
fn cpu() -> Duration {
    duration(clock_gettime(ClockId::ProcessCPUTime))
}

fn resident_bytes() -> Option<f64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(float(pages) * count(page_size()))
}

fn start_unix_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name in parentheses may hold spaces; the start is the 20th field after it.
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: u64 = fields.split_ascii_whitespace().nth(19)?.parse().ok()?;
    let since_boot = float(ticks) / float(clock_ticks_per_second());
    let age = duration(clock_gettime(ClockId::Boottime)).as_secs_f64() - since_boot;
    Some(float(clock::unix_ms()) / 1000.0 - age)
}

fn duration(time: rustix::time::Timespec) -> Duration {
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

#[allow(clippy::cast_precision_loss, reason = "for display: 53 bits are plenty")]
fn float(value: u64) -> f64 {
    value as f64
}

fn count(value: usize) -> f64 {
    float(u64::try_from(value).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_started_lately_and_has_used_some_time_and_memory() {
        let started = start_unix_seconds().unwrap();
        let now = float(clock::unix_ms()) / 1000.0;
        assert!(started <= now + 1.0 && started > now - 3600.0, "{started} {now}");
        assert!(cpu() > Duration::ZERO);
        assert!(resident_bytes().unwrap() > 100_000.0);
    }
}
