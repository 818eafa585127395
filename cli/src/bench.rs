//! `hercules bench`: what the cluster does, what it costs, and what the machine could do.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use benches::limits::{self, Disk, Loopback};
use benches::report::Report;
use benches::workload::{Bench as Workload, Kind, Measured, Plan};
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::cluster::Cluster;
use crate::exit::{Code, Failure};
use crate::output::Output;
use crate::{progress, size};

/// Measure throughput, latency, CPU and device bytes, in a directory of its own that is removed afterwards
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules bench put --size 64M --count 16 --concurrency 4
  hercules bench get --size 64M --count 64 --files 16
  hercules bench append --size 64K --count 4096 --concurrency 16
  hercules bench limits --dir ./data   what the disk and loopback can do, for comparison")]
pub(crate) struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Upload files; timed until each is durable on every replica and has its name
    Put(Load),
    /// Download files, checked
    Get(Load),
    /// Append records to files; timed until each is durable on every replica
    Append(Load),
    /// Measure this machine: durable sequential writes by O_DIRECT, and a TCP copy over loopback
    Limits(Limits),
}

#[derive(Args, Debug)]
struct Load {
    /// Bytes of one file, or of one record (at most 16M) [default: 64M, append 64K]
    #[arg(long, value_parser = size::parse)]
    size: Option<u64>,
    /// Operations in all [default: 16, append 2048]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    count: Option<u64>,
    /// Operations at a time [default: 4, append 16]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4096))]
    concurrency: Option<u32>,
    /// Files that are read or appended to, by turns [default: get: one for each operation, append 1]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    files: Option<u64>,
    /// Measure the limits of this folder's disk and of loopback right after, and compare
    #[arg(long, value_name = "DIR")]
    limits: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    cluster: Cluster,
}

#[derive(Args, Debug)]
struct Limits {
    /// Folder on the disk that is measured
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// How long each measurement takes
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    time: Duration,
    #[command(flatten)]
    output: Output,
}

/// The machine's limits.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Machine {
    /// The disk.
    pub(crate) disk: Disk,
    /// The network within the machine.
    pub(crate) loopback: Loopback,
}

impl Bench {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// What the cluster or the system says; the benchmark's files are removed all the same.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        match self.what {
            What::Put(load) => load.run(Kind::Put).await,
            What::Get(load) => load.run(Kind::Get).await,
            What::Append(load) => load.run(Kind::Append).await,
            What::Limits(limits) => {
                let machine = measure(&limits.dir, limits.time).await?;
                limits.output.print(&machine, text(&machine))
            }
        }
    }
}

#[derive(Serialize)]
struct Compared {
    #[serde(flatten)]
    report: Report,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<Machine>,
}

impl Load {
    fn plan(&self, kind: Kind) -> Plan {
        let append = kind == Kind::Append;
        let count = self.count.unwrap_or(if append { 2048 } else { 16 });
        Plan {
            kind,
            size: self.size.unwrap_or(if append { 64 << 10 } else { 64 << 20 }),
            count,
            concurrency: self.concurrency.unwrap_or(if append { 16 } else { 4 }),
            files: self.files.unwrap_or(if kind == Kind::Get { count } else { 1 }),
        }
    }

    async fn run(self, kind: Kind) -> Result<(), Failure> {
        let plan = self.plan(kind);
        let client = self.cluster.connect().await?;
        let bench = Workload::new(client, plan.clone())?;
        let measured = watch(&bench).await;
        let removed = bench.remove().await;
        let measured = measured?;
        if let Err(error) = removed {
            eprintln!("hercules: the files of the benchmark could not be removed: {error}");
        }
        let report = Report::new(plan, &measured);
        let limits = match &self.limits {
            Some(dir) => Some(measure(dir, Duration::from_secs(3)).await?),
            None => None,
        };
        let mut shown = report.to_string();
        if let Some(machine) = &limits {
            shown = format!("{shown}\n{}\n{}", text(machine), ratio(&report, machine));
        }
        self.output.print(&Compared { report, limits }, shown)
    }
}

/// Runs it under a progress bar; Ctrl-C gives up, so that the caller can clean up.
async fn watch(bench: &Workload) -> Result<Measured, Failure> {
    let bar = progress::bytes(Some(bench.total()), "warming up, running");
    let done = bench.done();
    let ticks = async {
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        loop {
            tick.tick().await;
            bar.set_position(done.load(Relaxed));
        }
    };
    let measured = tokio::select! {
        measured = bench.run() => measured.map_err(Failure::from),
        () = ticks => Err(Failure::silent(Code::Failed)),
        _ = tokio::signal::ctrl_c() => Err(Failure::new(Code::Failed, "interrupted; its files are removed")),
    };
    bar.finish_and_clear();
    measured
}

impl From<benches::Failure> for Failure {
    fn from(failure: benches::Failure) -> Self {
        match failure {
            benches::Failure::Plan(text) => Self::new(Code::Usage, text),
            benches::Failure::Client(error) => error.into(),
        }
    }
}

/// Measures the disk of a folder, then loopback, each for `time`.
///
/// # Errors
///
/// What the system says.
pub(crate) async fn measure(dir: &Path, time: Duration) -> Result<Machine, Failure> {
    let folder = dir.to_path_buf();
    let measured = tokio::task::spawn_blocking(move || {
        Ok::<_, std::io::Error>(Machine { disk: limits::disk(&folder, time)?, loopback: limits::loopback(time)? })
    });
    let measured = measured.await.map_err(std::io::Error::other)?;
    measured.map_err(|error| Failure::from(error).context(format!("measuring {}", dir.display())))
}

/// The limits, for people.
#[must_use]
pub(crate) fn text(machine: &Machine) -> String {
    let how = if machine.disk.direct { "O_DIRECT" } else { "through the page cache: O_DIRECT is refused here" };
    format!(
        "  disk         {:.1} MiB/s sequential, {how}, fdatasync every 64 MiB ({:.1} ms)\n  \
         loopback     {:.1} MiB/s through one TCP connection",
        machine.disk.mib_per_s, machine.disk.flush_ms_median, machine.loopback.mib_per_s
    )
}

fn ratio(report: &Report, machine: &Machine) -> String {
    let device = report.device_bytes_per_byte.map(|bytes| report.mib_per_s * bytes);
    let of_disk = device.map_or("unknown".into(), |device| format!("{:.2}", device / machine.disk.mib_per_s));
    format!("  ratio        servers wrote at {of_disk} of the disk's own speed, all replicas together")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn limits_of_a_missing_folder_are_an_error_that_names_it() {
        let failure = measure(Path::new("/nonexistent"), Duration::ZERO).await.unwrap_err();
        assert!(failure.what.contains("/nonexistent"), "{failure}");
    }
}
