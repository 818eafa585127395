//! One run in the units people compare, as text and as JSON.

use std::fmt;

use serde::Serialize;

use crate::limits::mib;
use crate::workload::{Kind, Measured, Plan};

/// A run. Ratios are per payload byte: what the user moved, counted once whatever the replication.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was asked.
    pub plan: Plan,
    /// Payload moved, bytes.
    pub bytes: u64,
    /// Wall time, seconds.
    pub elapsed_s: f64,
    /// Payload, MiB per second.
    pub mib_per_s: f64,
    /// Operations per second.
    pub ops_per_s: f64,
    /// Latency of one operation.
    pub latency_ms: Latency,
    /// CPU seconds per GiB of payload, of each process.
    pub processes: Vec<Cost>,
    /// The same of all of them; `None` when one did not tell.
    pub cpu_s_per_gib: Option<f64>,
    /// Bytes that the servers gave to their devices, per payload byte; `None` when one did not tell.
    pub device_bytes_per_byte: Option<f64>,
    /// Bytes written to this machine's disks by everything on it, per payload byte; when all servers are local.
    pub disk_bytes_per_byte: Option<f64>,
    /// Fewest replicas any file had.
    pub replicas: usize,
    /// What an acknowledgement meant.
    pub durability: String,
    /// What caches held.
    pub cache: &'static str,
}

/// Milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs, reason = "percentiles")]
pub struct Latency {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

/// What one process spent.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// Which.
    pub name: String,
    /// CPU seconds per GiB of payload; `None` when it did not tell or restarted meanwhile.
    pub cpu_s_per_gib: Option<f64>,
}

impl Report {
    /// Puts the figures into relation.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "ratios for people")]
    pub fn new(plan: Plan, measured: &Measured) -> Self {
        let gib = mib(measured.bytes) / 1024.0;
        let per_byte = |written: f64| written / measured.bytes as f64;
        let processes = &measured.spent.processes;
        let chunkservers = processes.iter().filter(|process| process.name.starts_with("chunkserver"));
        let device_bytes = chunkservers.map(|process| process.device_bytes).sum::<Option<f64>>();
        let ms = |quantile| measured.latency.value_at_quantile(quantile) as f64 / 1e3;
        let seconds = measured.elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
        Self {
            bytes: measured.bytes,
            elapsed_s: measured.elapsed.as_secs_f64(),
            mib_per_s: measured.mib_per_s(),
            ops_per_s: plan.count as f64 / seconds,
            latency_ms: Latency { p50: ms(0.5), p90: ms(0.9), p99: ms(0.99), max: measured.latency.max() as f64 / 1e3 },
            processes: processes
                .iter()
                .map(|process| Cost { name: process.name.clone(), cpu_s_per_gib: process.cpu_s.map(|cpu| cpu / gib) })
                .collect(),
            cpu_s_per_gib: processes.iter().map(|process| process.cpu_s).sum::<Option<f64>>().map(|cpu| cpu / gib),
            device_bytes_per_byte: device_bytes.map(per_byte),
            disk_bytes_per_byte: measured.spent.disks.map(|written| per_byte(written as f64)),
            replicas: measured.replicas,
            durability: durability(plan.kind, measured.replicas),
            cache: cache(plan.kind),
            plan,
        }
    }
}

fn durability(kind: Kind, replicas: usize) -> String {
    match kind {
        Kind::Put | Kind::Append => {
            format!("acknowledged when written and flushed (fdatasync) on {replicas} of {replicas} replicas")
        }
        Kind::Get => format!("read from files with {replicas} flushed replicas"),
    }
}

fn cache(kind: Kind) -> &'static str {
    match kind {
        Kind::Put | Kind::Append => "servers write by O_DIRECT: the page cache takes no part",
        Kind::Get => {
            "files were written by this run just before; servers read by O_DIRECT, \
             so only their own caches and the disk's can be warm"
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = &self.plan;
        let verb = match plan.kind {
            Kind::Put => "put",
            Kind::Get => "get",
            Kind::Append => "append",
        };
        let latency = &self.latency_ms;
        writeln!(
            f,
            "{verb}: {} x {} at concurrency {}, {} in {:.2} s",
            plan.count,
            size(plan.size),
            plan.concurrency,
            size(self.bytes),
            self.elapsed_s
        )?;
        writeln!(f, "  throughput   {:.1} MiB/s, {:.1} operations/s", self.mib_per_s, self.ops_per_s)?;
        writeln!(
            f,
            "  latency      p50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
            latency.p50, latency.p90, latency.p99, latency.max
        )?;
        writeln!(f, "  CPU          {} in all, of which", known(self.cpu_s_per_gib, "s/GiB"))?;
        for process in &self.processes {
            writeln!(f, "               {:<16} {}", process.name, known(process.cpu_s_per_gib, "s/GiB"))?;
        }
        writeln!(f, "  device       {} per payload byte (servers' counters)", known(self.device_bytes_per_byte, "B"))?;
        if self.disk_bytes_per_byte.is_some() {
            writeln!(
                f,
                "  disks        {} per payload byte (everything on this machine)",
                known(self.disk_bytes_per_byte, "B")
            )?;
        }
        writeln!(f, "  durability   {}", self.durability)?;
        write!(f, "  cache        {}", self.cache)
    }
}

fn known(value: Option<f64>, unit: &str) -> String {
    value.map_or_else(|| "unknown".into(), |value| format!("{value:.2} {unit}"))
}

/// Bytes in the largest unit that leaves at least one, for people.
#[must_use]
pub fn size(bytes: u64) -> String {
    let mut unit = "KiB";
    let mut value = mib(bytes) * 1024.0;
    for next in ["MiB", "GiB", "TiB", "PiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if bytes < 1024 { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hdrhistogram::Histogram;

    use super::*;
    use crate::meter::{Process, Reading};

    fn process(name: &str, cpu_s: Option<f64>, device_bytes: Option<f64>) -> Process {
        Process { name: name.into(), cpu_s, device_bytes }
    }

    fn measured(processes: Vec<Process>) -> Measured {
        let mut latency = Histogram::new_with_bounds(1, 1_000_000, 3).unwrap();
        (1..=100).for_each(|ms| latency.record(ms * 1000).unwrap());
        Measured {
            bytes: 2 << 30,
            elapsed: Duration::from_secs(4),
            latency,
            spent: Reading { processes, disks: Some(7 << 30) },
            replicas: 3,
        }
    }

    fn plan() -> Plan {
        Plan { kind: Kind::Put, size: 64 << 20, count: 32, concurrency: 4, files: 1 }
    }

    #[test]
    fn figures_are_per_payload_byte_counted_once() {
        let gib = f64::from(1 << 30);
        let report = Report::new(
            plan(),
            &measured(vec![
                process("client", Some(1.0), None),
                process("master", Some(0.5), None),
                process("chunkserver 1", Some(3.0), Some(2.0 * gib)),
                process("chunkserver 2", Some(3.5), Some(2.5 * gib)),
            ]),
        );
        assert_eq!((report.mib_per_s, report.ops_per_s), (512.0, 8.0));
        assert_eq!(report.cpu_s_per_gib, Some(4.0));
        assert_eq!(report.device_bytes_per_byte, Some(2.25));
        assert_eq!(report.disk_bytes_per_byte, Some(3.5));
        assert!((49.9..=50.1).contains(&report.latency_ms.p50), "{:?}", report.latency_ms);
        assert!((98.9..=99.1).contains(&report.latency_ms.p99), "{:?}", report.latency_ms);
    }

    #[test]
    fn a_process_that_did_not_tell_makes_the_sum_unknown_and_not_small() {
        let report = Report::new(
            plan(),
            &measured(vec![process("client", Some(1.0), None), process("chunkserver 1", None, None)]),
        );
        assert_eq!(report.cpu_s_per_gib, None);
        assert_eq!(report.device_bytes_per_byte, None);
        let text = report.to_string();
        assert!(text.contains("CPU          unknown in all"), "{text}");
        assert!(text.contains("client           0.50 s/GiB"), "{text}");
    }

    #[test]
    fn sizes_are_shown_in_the_largest_unit_that_fits() {
        for (bytes, shown) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (64 << 20, "64.0 MiB"), (5 << 40, "5.0 TiB")]
        {
            assert_eq!(size(bytes), shown);
        }
    }
}
