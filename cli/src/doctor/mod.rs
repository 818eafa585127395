//! `hercules doctor`: whether this machine is fit for a server, check by check, with the remedy.
//!
//! The machine itself is judged by the engine's probe, the same that a chunkserver runs at its
//! start. Here are the things around it: ports, clock, who can be reached, and a measurement.

mod network;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use engine::probe::{Check, Verdict, probe_disk, probe_machine};
use engine::runtime::Backend;
use serde::Serialize;

use crate::address::Address;
use crate::cluster::parse_master;
use crate::exit::{Code, Failure};
use crate::key::KeyFile;
use crate::output::Output;
use crate::roles::chunkserver::parse_runtime;
use crate::{bench, output, size};

/// Check whether this machine is fit for a server, with the remedy where it is not
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules doctor
  hercules doctor --data-dir /data/chunks --master master:9090
  hercules doctor --json | jq 'select(.outcome == \"failed\")'

Exit code 78 when a check failed; warnings alone are 0.")]
pub(crate) struct Doctor {
    /// Folder that a chunkserver would use, one for each disk; when it is missing, the one above it is looked at
    #[arg(long, env = "HERCULES_DATA_DIR", default_value = "data", value_delimiter = ',', value_name = "DIR")]
    data_dir: Vec<PathBuf>,
    /// Masters that must be reachable [default: 127.0.0.1:9090, which may be missing]
    #[arg(long, env = "HERCULES_MASTER", value_delimiter = ',', value_parser = parse_master, value_name = "ADDRESS")]
    master: Vec<Address>,
    /// Runtime that a chunkserver would use
    #[arg(long, env = "HERCULES_RUNTIME", default_value_t, value_parser = parse_runtime(), value_name = "NAME")]
    runtime: Backend,
    /// Shards that it would have; 0 is one for each core
    #[arg(long, env = "HERCULES_SHARDS", default_value = "0", value_name = "N")]
    shards: u32,
    /// Memory for buffers of each shard
    #[arg(long, env = "HERCULES_MEMORY", default_value = "256M", value_parser = size::parse, value_name = "SIZE")]
    memory: u64,
    /// How long the disk and loopback are measured, together; 0s leaves it out
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration, value_name = "TIME")]
    time: Duration,
    #[command(flatten)]
    key: KeyFile,
    #[command(flatten)]
    output: Output,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// As it should be.
    Good,
    /// It works, but worse than it could.
    Warning,
    /// A server cannot run like this.
    Failed,
}

/// One check.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    pub(crate) check: String,
    pub(crate) outcome: Outcome,
    pub(crate) found: String,
    /// What to do; empty when it is good.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) remedy: String,
}

impl Finding {
    pub(crate) fn good(check: &str, found: impl Into<String>) -> Self {
        Self { check: check.into(), outcome: Outcome::Good, found: found.into(), remedy: String::new() }
    }

    pub(crate) fn warning(check: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check: check.into(), outcome: Outcome::Warning, found: found.into(), remedy: remedy.into() }
    }

    pub(crate) fn failed(check: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { outcome: Outcome::Failed, ..Self::warning(check, found, remedy) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.outcome {
            Outcome::Good => "ok  ",
            Outcome::Warning => "warn",
            Outcome::Failed => "FAIL",
        };
        write!(f, "{mark}  {:<20}  {}", self.check, self.found)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "\n      remedy: {}", self.remedy) }
    }
}

impl Doctor {
    /// Runs it, printing each finding as it is made.
    ///
    /// # Errors
    ///
    /// [`Code::Config`] when a check failed.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let mut worst = Worst::default();
        let show = |finding: Finding, worst: &mut Worst| {
            worst.add(finding.outcome);
            self.output.print(&finding, &finding)
        };
        let folders: Vec<PathBuf> = self.data_dir.iter().map(|dir| existing(dir)).collect::<Result<_, _>>()?;
        for finding in self.machine(&folders).await? {
            show(finding, &mut worst)?;
        }
        for finding in network::ports().await {
            show(finding, &mut worst)?;
        }
        for finding in network::reachable(&self.master, self.key.read()?).await {
            show(finding, &mut worst)?;
        }
        if !self.time.is_zero() {
            let share = self.time / 2 / u32::try_from(folders.len()).unwrap_or(1);
            for folder in &folders {
                show(of_disk(self.measured(folder, share).await, folder, &folders), &mut worst)?;
            }
        }
        if !self.output.json {
            output::line(worst.verdict())?;
        }
        if worst.failed > 0 { Err(Failure::silent(Code::Config)) } else { Ok(()) }
    }

    /// The machine once, and each disk.
    async fn machine(&self, folders: &[PathBuf]) -> Result<Vec<Finding>, Failure> {
        let cores = || std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1));
        let shards = if self.shards == 0 { cores() } else { self.shards };
        let (folders, runtime, memory) = (folders.to_vec(), self.runtime, self.memory);
        let probed = tokio::task::spawn_blocking(move || {
            let mut findings: Vec<Finding> =
                probe_machine(runtime, shards, memory).into_iter().map(Finding::from).collect();
            for folder in &folders {
                let checks = probe_disk(folder, shards).into_iter().map(Finding::from);
                findings.extend(checks.map(|finding| of_disk(finding, folder, &folders)));
            }
            findings
        });
        Ok(probed.await.map_err(std::io::Error::other)?)
    }

    async fn measured(&self, folder: &Path, time: Duration) -> Finding {
        match bench::measure(folder, time).await {
            Ok(machine) => Finding::good(
                "measured",
                format!(
                    "disk {:.0} MiB/s durable, flush {:.1} ms; loopback {:.0} MiB/s",
                    machine.disk.mib_per_s, machine.disk.flush_ms_median, machine.loopback.mib_per_s
                ),
            ),
            Err(failure) => {
                Finding::failed("measured", failure.what, "make the folder writable, and free 64 MiB in it")
            }
        }
    }
}

/// Says which disk it is about, when there are several.
fn of_disk(finding: Finding, folder: &Path, folders: &[PathBuf]) -> Finding {
    if folders.len() < 2 {
        return finding;
    }
    Finding { found: format!("{}: {}", folder.display(), finding.found), ..finding }
}

impl From<Check> for Finding {
    fn from(check: Check) -> Self {
        let outcome = match check.verdict {
            Verdict::Ok => Outcome::Good,
            Verdict::Warning => Outcome::Warning,
            Verdict::Failed => Outcome::Failed,
        };
        Self { check: check.name.into(), outcome, found: check.found, remedy: check.remedy }
    }
}

/// The folder itself, or the nearest above it that is there: a check leaves nothing behind.
fn existing(folder: &Path) -> Result<PathBuf, Failure> {
    let folder = std::path::absolute(folder)?;
    let found = folder.ancestors().find(|above| above.exists()).unwrap_or(&folder);
    if found.is_dir() {
        return Ok(found.to_owned());
    }
    Err(Failure::new(Code::Config, format!("{} cannot be a folder: {} is none", folder.display(), found.display()))
        .remedy("choose another by --data-dir"))
}

/// Counts outcomes.
#[derive(Debug, Default)]
struct Worst {
    failed: u32,
    warnings: u32,
}

impl Worst {
    fn add(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Good => {}
            Outcome::Warning => self.warnings += 1,
            Outcome::Failed => self.failed += 1,
        }
    }

    fn verdict(&self) -> String {
        match (self.failed, self.warnings) {
            (0, 0) => "this machine is fit for a server".into(),
            (0, warnings) => format!("this machine is fit for a server; warnings: {warnings}"),
            (failed, _) => format!("a server cannot run here yet; failed checks: {failed}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failed_check_decides_the_verdict() {
        let mut worst = Worst::default();
        worst.add(Outcome::Good);
        assert_eq!(worst.verdict(), "this machine is fit for a server");
        worst.add(Outcome::Warning);
        assert!(worst.verdict().ends_with("warnings: 1"));
        worst.add(Outcome::Failed);
        assert!(worst.verdict().ends_with("failed checks: 1"));
    }

    #[test]
    fn a_remedy_stands_below_what_it_is_for() {
        let text = Finding::failed("ports", "9090 is taken", "stop it").to_string();
        assert_eq!(text, "FAIL  ports                 9090 is taken\n      remedy: stop it");
    }
}
