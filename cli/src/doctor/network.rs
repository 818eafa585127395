//! Ports of this machine, and who can be reached from it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use benches::admin;
use client::Client;
use futures_util::future::join_all;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use wire::heartbeat::{ClusterOk, Liveness, ServerStatus};
use wire::{ClusterKey, Kind};

use super::Finding;
use crate::address::{ADMIN_OFFSET, Address};
use crate::cluster::{MASTER_PORT, parse_master};

/// Data ports of a machine with one of each server, and of `hercules dev`.
const PORTS: [u16; 5] = [MASTER_PORT, 8081, 8082, 8083, 8089];
/// A neighbour that takes longer is not usable.
const LIMIT: Duration = Duration::from_secs(3);
/// Clocks further apart make logs and dates misleading; nothing else depends on them.
const SKEW_MAX_S: u64 = 5;

/// Whether the usual ports are free, or used by Hercules.
pub(super) async fn ports() -> Vec<Finding> {
    let mut taken = Vec::new();
    let mut ours = Vec::new();
    for data in PORTS {
        for port in [data, data + ADMIN_OFFSET] {
            if TcpListener::bind(("0.0.0.0", port)).await.is_ok() {
                continue;
            }
            if is_hercules(data).await { ours.push(port) } else { taken.push(port) }
        }
    }
    vec![judge_ports(&ours, &taken)]
}

fn judge_ports(ours: &[u16], taken: &[u16]) -> Finding {
    let list = |ports: &[u16]| ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    if !taken.is_empty() {
        return Finding::warning(
            "ports",
            format!("{} in use by other programs", list(taken)),
            "`ss -ltnp` names them; or choose other ports by --listen and --admin",
        );
    }
    if ours.is_empty() {
        return Finding::good("ports", "9090, 8081-8083, 8089 and their admin ports are free");
    }
    Finding::good("ports", format!("{} in use by Hercules, the others are free", list(ours)))
}

/// Whether a server of ours answers beside this data port; a gateway answers on the port itself.
async fn is_hercules(data: u16) -> bool {
    for port in [data + ADMIN_OFFSET, data] {
        if let Ok(answer) = admin::get(&format!("127.0.0.1:{port}"), "/health", LIMIT).await
            && answer.body.contains("hercules")
        {
            return true;
        }
    }
    false
}

/// Whether masters and chunkservers answer, and whether the clock agrees with the master's.
pub(super) async fn reachable(masters: &[Address], key: Option<ClusterKey>) -> Vec<Finding> {
    let asked = !masters.is_empty();
    let usual = parse_master("127.0.0.1").into_iter().collect::<Vec<_>>();
    let masters = if asked { masters } else { &usual };
    let mut findings = Vec::new();
    for master in masters {
        findings.push(dial("master", &master.to_string(), asked).await);
    }
    if findings.iter().all(|finding| !finding.remedy.is_empty()) {
        return findings;
    }
    let mut config = client::Config::new(masters.iter().map(ToString::to_string).collect());
    config.deadline = LIMIT;
    config.cluster_key = key;
    match Client::new(config).cluster().await {
        Ok(cluster) => {
            findings.extend(clock(&cluster).await);
            findings.extend(join_all(cluster.servers.iter().map(chunkserver)).await);
        }
        Err(error) if error.kind() == Kind::Unauthorized => {
            findings.push(Finding::failed("cluster", error.to_string(), wire::handshake::REMEDY));
        }
        Err(error) => findings.push(Finding::failed(
            "cluster",
            format!("the master does not answer: {error}"),
            "is it a Hercules master of this version? its log says more",
        )),
    }
    findings
}

/// Connects to an address; that it fails matters only when it was asked for.
async fn dial(what: &str, address: &str, needed: bool) -> Finding {
    let cause = match tokio::time::timeout(LIMIT, TcpStream::connect(address)).await {
        Ok(Ok(_connection)) => return Finding::good(what, format!("{address} accepts connections")),
        Ok(Err(error)) => error.to_string(),
        Err(_elapsed) => format!("no answer within {LIMIT:?}"),
    };
    let found = format!("{address} cannot be reached: {cause}");
    if needed {
        Finding::failed(what, found, "start it, open its port in the firewall, or correct the address")
    } else {
        Finding::warning(what, found, "start one, or name another by --master; `hercules dev` runs a cluster here")
    }
}

async fn chunkserver(server: &ServerStatus) -> Finding {
    let name = format!("chunkserver {}", server.server);
    if server.liveness == Liveness::Dead {
        let found = format!("{} is dead for the master, silent for {} s", server.address, server.silent_ms / 1000);
        return Finding::warning(&name, found, "start it again, or let the cluster repair without it");
    }
    dial(&name, &server.address, true).await
}

/// Compares clocks with the master, whose `/health` tells its time.
async fn clock(cluster: &ClusterOk) -> Option<Finding> {
    let answer = admin::get(&cluster.admin, "/health", LIMIT).await.ok()?;
    let health: Value = serde_json::from_str(&answer.body).ok()?;
    Some(judge_clock(now_s(), health.get("time")?.as_u64()?))
}

fn judge_clock(here_s: u64, master_s: u64) -> Finding {
    let skew = here_s.abs_diff(master_s);
    if skew <= SKEW_MAX_S {
        return Finding::good("clock", format!("within {SKEW_MAX_S} s of the master's"));
    }
    Finding::warning(
        "clock",
        format!("{skew} s {} the master's", if here_s > master_s { "ahead of" } else { "behind" }),
        "run an NTP client; no data depends on clocks, dates and logs do",
    )
}

#[allow(clippy::disallowed_methods, reason = "compares this machine's clock with another's")]
fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;

    #[test]
    fn a_clock_off_by_more_than_the_limit_is_a_warning_with_its_direction() {
        assert_eq!(judge_clock(1000, 1005).outcome, Outcome::Good);
        let ahead = judge_clock(1010, 1000);
        assert_eq!((ahead.outcome, ahead.found.as_str()), (Outcome::Warning, "10 s ahead of the master's"));
        assert!(judge_clock(0, 1000).found.contains("behind"));
    }

    #[test]
    fn ports_used_by_hercules_are_no_reason_to_warn() {
        assert_eq!(judge_ports(&[9090], &[]).outcome, Outcome::Good);
        assert_eq!(judge_ports(&[9090], &[8081]).outcome, Outcome::Warning);
    }

    #[tokio::test]
    async fn a_master_that_was_asked_for_must_answer_and_the_usual_one_may_be_missing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        assert_eq!(dial("master", &address, true).await.outcome, Outcome::Good);
        drop(listener);
        assert_eq!(dial("master", &address, true).await.outcome, Outcome::Failed);
        assert_eq!(dial("master", &address, false).await.outcome, Outcome::Warning);
    }
}
