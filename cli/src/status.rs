//! `hercules status`: the cluster as its master sees it.

use std::time::Duration;

use benches::report::size;
use clap::Args;
use serde_json::{Value, json};
use wire::heartbeat::{ClusterOk, Liveness, ServerStatus};

use crate::cluster::Cluster;
use crate::exit::{Code, Failure};
use crate::output::{Output, table};

/// Show the cluster and its chunkservers
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hercules status
  hercules status --json | jq .degraded_chunks
  hercules status --check              exit code 1 when a server is not alive or a chunk lacks replicas")]
pub(crate) struct Status {
    /// Fail when a server is not alive, or a chunk has fewer replicas than wanted
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    cluster: Cluster,
}

impl Status {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// When no master answers; with `--check` silently when something is wrong.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let cluster = self.cluster.connect().await?.cluster().await?;
        self.output.print(&json(&cluster), text(&cluster))?;
        if self.check && !is_well(&cluster) { Err(Failure::silent(Code::Failed)) } else { Ok(()) }
    }
}

/// Nothing to do for anybody.
fn is_well(cluster: &ClusterOk) -> bool {
    let alive = cluster.servers.iter().filter(|server| server.liveness == Liveness::Alive).count();
    alive > 0 && alive == cluster.servers.len() && cluster.degraded_chunks == 0 && !cluster.safe_mode
}

fn text(cluster: &ClusterOk) -> String {
    let alive = cluster.servers.iter().filter(|server| server.liveness == Liveness::Alive).count();
    let mut lines = vec![
        format!("cluster     {} (term {}, {})", cluster.cluster, cluster.term.0, cluster.version),
        format!("uptime      {}", duration(cluster.uptime_ms)),
        format!("servers     {alive} of {} alive", cluster.servers.len()),
        format!("files       {} in {} directories", cluster.files, cluster.directories),
        format!(
            "chunks      {}, {} open, {} with fewer than {} replicas",
            cluster.chunks, cluster.open_chunks, cluster.degraded_chunks, cluster.replicas
        ),
    ];
    if cluster.safe_mode {
        lines.push("safe mode   on: nothing is deleted until the chunkservers have reported".into());
    }
    if cluster.servers.is_empty() {
        lines.push("\nno chunkserver has registered yet: start one with `hercules chunkserver --master ...`".into());
        return lines.join("\n");
    }
    let header = ["ID", "ADDRESS", "ZONE", "STATE", "HEARD", "SHARDS", "CHUNKS", "USED", "FREE", "VERSION"];
    let mut rows = vec![header.map(String::from).to_vec()];
    rows.extend(cluster.servers.iter().map(row));
    format!("{}\n\n{}", lines.join("\n"), table(&rows, &[0, 5, 6, 7, 8]))
}

fn row(server: &ServerStatus) -> Vec<String> {
    vec![
        server.server.to_string(),
        server.address.clone(),
        if server.zone.is_empty() { "-".into() } else { server.zone.clone() },
        liveness(server.liveness).into(),
        format!("{} ago", duration(server.silent_ms)),
        server.shards.to_string(),
        server.chunks.to_string(),
        size(server.space.used),
        size(server.space.free),
        server.version.clone(),
    ]
}

fn json(cluster: &ClusterOk) -> Value {
    let servers = cluster.servers.iter().map(|server| {
        json!({
            "server": server.server.0,
            "address": server.address,
            "admin": server.admin,
            "zone": server.zone,
            "state": liveness(server.liveness),
            "silent_ms": server.silent_ms,
            "shards": server.shards,
            "chunks": server.chunks,
            "space": { "total": server.space.total, "free": server.space.free, "used": server.space.used },
            "version": server.version,
        })
    });
    json!({
        "cluster": cluster.cluster.to_string(),
        "term": cluster.term.0,
        "admin": cluster.admin,
        "version": cluster.version,
        "uptime_ms": cluster.uptime_ms,
        "safe_mode": cluster.safe_mode,
        "files": cluster.files,
        "directories": cluster.directories,
        "chunks": cluster.chunks,
        "open_chunks": cluster.open_chunks,
        "degraded_chunks": cluster.degraded_chunks,
        "replicas": cluster.replicas,
        "servers": servers.collect::<Vec<_>>(),
    })
}

/// A word for how the master sees a server.
pub(crate) fn liveness(liveness: Liveness) -> &'static str {
    match liveness {
        Liveness::Alive => "alive",
        Liveness::Suspect => "suspect",
        Liveness::Dead => "dead",
    }
}

/// At most two units: `3ms`, `12s 400ms`, `5h 2m`.
pub(crate) fn duration(ms: u64) -> String {
    let shown = humantime::format_duration(Duration::from_millis(ms)).to_string();
    shown.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use wire::heartbeat::Space;
    use wire::{ClusterId, ServerId, Term};

    use super::*;

    fn cluster(states: &[Liveness]) -> ClusterOk {
        let servers = states.iter().zip(1..).map(|(liveness, id)| ServerStatus {
            server: ServerId(id),
            address: format!("127.0.0.1:808{id}"),
            admin: String::new(),
            zone: String::new(),
            shards: 2,
            liveness: *liveness,
            silent_ms: 400,
            space: Space { total: 3 << 30, free: 2 << 30, used: 1 << 20 },
            chunks: 5,
            version: "0.1.0".into(),
        });
        ClusterOk {
            cluster: ClusterId([0xab; 16]),
            term: Term(1),
            admin: String::new(),
            safe_mode: false,
            uptime_ms: 3_723_004,
            servers: servers.collect(),
            files: 2,
            directories: 1,
            chunks: 5,
            open_chunks: 1,
            degraded_chunks: 0,
            replicas: 3,
            version: "0.1.0".into(),
        }
    }

    #[test]
    fn the_table_has_a_line_for_every_server() {
        let text = text(&cluster(&[Liveness::Alive, Liveness::Dead]));
        assert!(text.contains("servers     1 of 2 alive"), "{text}");
        assert!(text.contains("uptime      1h 2m\n"), "{text}");
        assert!(text.contains(" 1  127.0.0.1:8081  -     alive  400ms ago"), "{text}");
        assert!(text.contains(" 2  127.0.0.1:8082  -     dead "), "{text}");
    }

    #[test]
    fn well_means_servers_alive_and_replicas_complete() {
        let good = || cluster(&[Liveness::Alive; 3]);
        assert!(is_well(&good()));
        assert!(!is_well(&cluster(&[])));
        assert!(!is_well(&cluster(&[Liveness::Alive, Liveness::Suspect])));
        assert!(!is_well(&ClusterOk { degraded_chunks: 1, ..good() }));
        assert!(!is_well(&ClusterOk { safe_mode: true, ..good() }));
    }

    #[test]
    fn programs_get_numbers() {
        let json = json(&cluster(&[Liveness::Suspect]));
        assert_eq!(json["servers"][0]["space"]["free"], 2_u64 << 30);
        assert_eq!(json["servers"][0]["state"], "suspect");
        assert_eq!(json["cluster"], "ab".repeat(16));
    }
}
