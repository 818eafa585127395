//! `hercules servers`: the chunkservers one by one, with their disks, and how far a drain is.

use std::collections::BTreeMap;
use std::time::Duration;

use benches::admin;
use benches::report::size;
use clap::Args;
use futures_util::future::join_all;
use serde_json::{Value, json};
use wire::ServerId;
use wire::heartbeat::{ClusterOk, Liveness, ServerStatus};
use wire::repairs::{DrainStatus, RepairsOk};

use crate::cluster::Cluster;
use crate::exit::Failure;
use crate::output::{Output, table};
use crate::status::{duration, liveness};

/// A server that does not say how its disks are for so long is shown without them.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Show the chunkservers: state, disks, space, and how far a drain is
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules servers
  hercules servers --json | jq '.servers[] | select(.state != \"alive\")'
  watch hercules servers              while one is drained")]
pub(crate) struct Servers {
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    cluster: Cluster,
}

impl Servers {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// When no master answers.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let client = self.cluster.connect().await?;
        let (cluster, repairs) = (client.cluster().await?, client.repairs(0).await?);
        let disks = disks(&cluster).await;
        self.output.print(&json(&cluster, &repairs, &disks), text(&cluster, &repairs, &disks))
    }
}

/// What the servers that are alive say about their disks.
async fn disks(cluster: &ClusterOk) -> BTreeMap<ServerId, Value> {
    let alive = cluster.servers.iter().filter(|it| it.liveness == Liveness::Alive && !it.admin.is_empty());
    let ask = alive.map(|server| async {
        let answer = admin::get(&server.admin, "/health", ANSWER_TIMEOUT).await.ok()?;
        let health: Value = serde_json::from_str(&answer.body).ok()?;
        Some((server.server, health.get("disks")?.clone()))
    });
    join_all(ask).await.into_iter().flatten().collect()
}

fn drain_of(repairs: &RepairsOk, server: ServerId) -> Option<&DrainStatus> {
    repairs.draining.iter().find(|drain| drain.server == server)
}

fn text(cluster: &ClusterOk, repairs: &RepairsOk, disks: &BTreeMap<ServerId, Value>) -> String {
    if cluster.servers.is_empty() {
        return "no chunkserver has registered yet: start one with `hercules chunkserver --master ...`".into();
    }
    let header = ["ID", "ADDRESS", "ZONE", "STATE", "DISKS", "CHUNKS", "USED", "FREE", "HEARD", "DRAIN"];
    let mut rows = vec![header.map(String::from).to_vec()];
    rows.extend(cluster.servers.iter().map(|server| row(server, repairs, disks.get(&server.server))));
    table(&rows, &[0, 4, 5, 6, 7])
}

fn row(server: &ServerStatus, repairs: &RepairsOk, disks: Option<&Value>) -> Vec<String> {
    vec![
        server.server.to_string(),
        server.address.clone(),
        if server.zone.is_empty() { "-".into() } else { server.zone.clone() },
        liveness(server.liveness).into(),
        disks.and_then(Value::as_array).map_or("-".into(), |disks| disks.len().to_string()),
        server.chunks.to_string(),
        size(server.space.used),
        size(server.space.free),
        format!("{} ago", duration(server.silent_ms)),
        drain_of(repairs, server.server).map_or("-".into(), progress),
    ]
}

/// How far a drain is, in words.
pub(crate) fn progress(drain: &DrainStatus) -> String {
    match (drain.is_counted, drain.left) {
        (false, _) => "counting".into(),
        (true, 0) => "empty: may be switched off".into(),
        (true, 1) => format!("1 chunk left, {}", size(drain.left_bytes)),
        (true, left) => format!("{left} chunks left, {}", size(drain.left_bytes)),
    }
}

fn json(cluster: &ClusterOk, repairs: &RepairsOk, disks: &BTreeMap<ServerId, Value>) -> Value {
    let servers = cluster.servers.iter().map(|server| {
        json!({
            "server": server.server.0,
            "address": server.address,
            "admin": server.admin,
            "zone": server.zone,
            "state": liveness(server.liveness),
            "silent_ms": server.silent_ms,
            "chunks": server.chunks,
            "space": { "total": server.space.total, "free": server.space.free, "used": server.space.used },
            "disks": disks.get(&server.server),
            "drain": drain_of(repairs, server.server).map(drain_json),
            "version": server.version,
        })
    });
    json!({ "servers": servers.collect::<Vec<_>>() })
}

/// A drain for programs.
pub(crate) fn drain_json(drain: &DrainStatus) -> Value {
    json!({
        "server": drain.server.0,
        "since_ms": drain.since_ms,
        "left_chunks": drain.left,
        "left_bytes": drain.left_bytes,
        "is_counted": drain.is_counted,
        "is_empty": drain.is_counted && drain.left == 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_counted_and_empty_server_may_be_switched_off() {
        let drain = DrainStatus { server: ServerId(1), since_ms: 5, left: 0, left_bytes: 0, is_counted: false };
        assert!(!progress(&drain).contains("switched off") && drain_json(&drain)["is_empty"] == json!(false));
        let counted = DrainStatus { is_counted: true, ..drain };
        assert!(progress(&counted).contains("switched off") && drain_json(&counted)["is_empty"] == json!(true));
        assert!(progress(&DrainStatus { left: 3, ..counted }).contains("3 chunks left"));
    }
}
