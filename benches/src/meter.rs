//! What every process and every disk spent between two readings.

use std::net::IpAddr;
use std::time::Duration;

use client::Client;
use futures_util::future::join_all;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::{Failure, admin, device, metrics};

/// CPU time of a server's whole process, seconds.
const CPU: &str = "process_cpu_seconds_total";
/// Bytes a chunkserver has given to its devices, journal and headers included.
const DEVICE_BYTES: &str = "hercules_device_write_bytes_total";
/// A scrape that takes longer says that the server is in trouble, not how it is.
const SCRAPE_LIMIT: Duration = Duration::from_secs(5);

/// One process at one moment, or what it spent between two.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Process {
    /// `client`, `master` or `chunkserver N`.
    pub name: String,
    /// CPU time, seconds; `None` when its admin port does not tell.
    pub cpu_s: Option<f64>,
    /// Bytes written to its devices; `None` when it has none or does not tell.
    pub device_bytes: Option<f64>,
}

/// All processes at one moment.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The client first, then the master, then the chunkservers by id.
    pub processes: Vec<Process>,
    /// Bytes written to this machine's disks, when every server runs on it.
    pub disks: Option<u64>,
}

/// Reads all processes of the cluster and the own one.
///
/// # Errors
///
/// When the master does not answer. A server that does not is left without figures.
pub async fn read(client: &Client) -> Result<Reading, Failure> {
    let cluster = client.cluster().await?;
    let mut asked = vec![("master".to_owned(), cluster.admin.clone())];
    asked.extend(cluster.servers.iter().map(|server| (format!("chunkserver {}", server.server), server.admin.clone())));
    let local = cluster.servers.iter().all(|server| is_loopback(&server.address));
    let mut processes = vec![Process { name: "client".into(), cpu_s: Some(own_cpu_s()), device_bytes: None }];
    processes.extend(join_all(asked.into_iter().map(|(name, address)| scrape(name, address))).await);
    Ok(Reading { processes, disks: local.then(device::bytes_written).flatten() })
}

async fn scrape(name: String, address: String) -> Process {
    let text = if address.is_empty() { None } else { admin::get(&address, "/metrics", SCRAPE_LIMIT).await.ok() };
    let figure = |metric| text.as_ref().and_then(|answer| metrics::sum(&answer.body, metric));
    Process { cpu_s: figure(CPU), device_bytes: figure(DEVICE_BYTES), name }
}

impl Reading {
    /// What was spent since `earlier`. A process that is new or restarted since then has no figures:
    /// its counters began again.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let processes = self.processes.iter().map(|process| {
            let before = earlier.processes.iter().find(|other| other.name == process.name);
            let spent = |now: Option<f64>, before: Option<f64>| {
                let spent = now? - before?;
                (spent >= 0.0).then_some(spent)
            };
            Process {
                name: process.name.clone(),
                cpu_s: spent(process.cpu_s, before.and_then(|process| process.cpu_s)),
                device_bytes: spent(process.device_bytes, before.and_then(|process| process.device_bytes)),
            }
        });
        let disks = self.disks.zip(earlier.disks).and_then(|(now, before)| now.checked_sub(before));
        Self { processes: processes.collect(), disks }
    }
}

fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _port)| host);
    host == "localhost" || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// CPU time of all threads of this process, seconds.
#[allow(clippy::cast_precision_loss, reason = "seconds of CPU time are far below 2^53")]
pub(crate) fn own_cpu_s() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(cpu_s: Option<f64>, disks: Option<u64>) -> Reading {
        Reading { processes: vec![Process { name: "master".into(), cpu_s, device_bytes: None }], disks }
    }

    #[test]
    fn a_difference_is_taken_per_process() {
        let spent = reading(Some(3.5), Some(900)).since(&reading(Some(1.0), Some(200)));
        assert_eq!((spent.processes[0].cpu_s, spent.disks), (Some(2.5), Some(700)));
    }

    #[test]
    fn a_restarted_or_new_process_has_no_figure_rather_than_a_wrong_one() {
        assert_eq!(reading(Some(0.5), None).since(&reading(Some(1.0), None)).processes[0].cpu_s, None);
        let nobody = Reading { processes: Vec::new(), disks: Some(1) };
        let spent = reading(Some(1.0), Some(0)).since(&nobody);
        assert_eq!((spent.processes[0].cpu_s, spent.disks), (None, None));
    }

    #[test]
    fn only_loopback_counts_as_this_machine() {
        assert!(is_loopback("127.0.0.1:8081") && is_loopback("[::1]:8081") && is_loopback("localhost:1"));
        assert!(!is_loopback("10.0.0.1:8081") && !is_loopback("chunkserver1:8081"));
    }

    #[tokio::test]
    async fn a_server_without_an_admin_port_has_no_figures() {
        assert_eq!(scrape("x".into(), String::new()).await.cpu_s, None);
    }

    #[test]
    fn the_own_cpu_time_grows_with_work() {
        let before = own_cpu_s();
        let mut x = 1_u64;
        while own_cpu_s() - before < 0.001 {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        assert!(x > 0);
    }
}
