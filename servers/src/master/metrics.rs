//! What the master counts, and what it shows.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Map, Value};
use wire::heartbeat::{ClusterOk, Liveness, ServerStatus};
use wire::limits::PAGE_ENTRIES_MAX;
use wire::message::tag;
use wire::{Fault, Kind, ServerId};

use super::shared::{Master, lock};
use crate::admin::{Admin, Health, Histogram, Metrics};
use crate::clock;

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counted where it happens.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) opened: Count,
    pub(super) abandoned: Count,
    pub(super) seal_rounds: Count,
    pub(super) finished: Count,
    pub(super) reports: Count,
    pub(super) stale: Count,
    pub(super) purges: Count,
    pub(super) condemned: Count,
    pub(super) freed: Count,
    pub(super) joined: Count,
    pub(super) dropped: Count,
    answers: Mutex<BTreeMap<(u16, Option<u16>), u64>>,
    latency: Mutex<Histogram>,
}

impl Counters {
    pub(super) fn answered(&self, tag: u16, kind: Option<Kind>, took: Duration) {
        *lock(&self.answers).entry((tag, kind.map(|kind| kind as u16))).or_default() += 1;
        lock(&self.latency).record(took);
    }
}

/// The admin port's view of the master.
#[derive(Debug)]
pub(super) struct View(pub(super) Arc<Master>);

impl Admin for View {
    async fn health(&self) -> Health {
        let status = self.0.cluster_status().await;
        let mut details = Map::new();
        let Ok(status) = status else {
            return Health { service: "hercules-master", serves: false, status: "stopping", details };
        };
        let counts = |liveness| status.servers.iter().filter(|server| server.liveness == liveness).count();
        let alive = counts(Liveness::Alive);
        details.insert("cluster".into(), status.cluster.to_string().into());
        details.insert("term".into(), status.term.0.into());
        details.insert("safe_mode".into(), status.safe_mode.into());
        details.insert("uptime_ms".into(), status.uptime_ms.into());
        let mut servers = Map::new();
        for (name, liveness) in [("alive", Liveness::Alive), ("suspect", Liveness::Suspect), ("dead", Liveness::Dead)] {
            servers.insert(name.into(), counts(liveness).into());
        }
        details.insert("chunkservers".into(), Value::Object(servers));
        for (name, value) in [
            ("files", status.files),
            ("directories", status.directories),
            ("chunks", status.chunks),
            ("open_chunks", status.open_chunks),
            ("degraded_chunks", status.degraded_chunks),
        ] {
            details.insert(name.into(), value.into());
        }
        // It serves names and reads with any number of servers; the word tells whether it can write.
        let enough = alive >= self.0.config.min_ack_replicas as usize;
        let status = if enough { "healthy" } else { "degraded" };
        Health { service: "hercules-master", serves: true, status, details }
    }

    async fn metrics(&self) -> String {
        self.0.render()
    }
}

impl Master {
    /// The state of the cluster, for people and health checks.
    pub(super) async fn cluster_status(&self) -> Result<ClusterOk, Fault> {
        let now = clock::now();
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let admin = lock(&self.admin).clone();
        self.core
            .ask(|state| {
                let soft = self.soft();
                let server_status = |(server, record): (ServerId, &super::entry::ServerRecord)| {
                    let heard = soft.servers.get(&server);
                    ServerStatus {
                        server,
                        address: record.address.clone(),
                        admin: record.admin.clone(),
                        zone: record.zone.clone(),
                        shards: record.shards,
                        liveness: soft.liveness(server, now),
                        silent_ms: millis(heard.map_or(now - self.started, |heard| heard.arrivals.silent(now))),
                        space: heard.map(|heard| heard.space).unwrap_or_default(),
                        chunks: heard.map_or(0, |heard| heard.chunks),
                        version: record.version.clone(),
                    }
                };
                let (files, directories) = state.name_counts();
                let (chunks, open_chunks, degraded_chunks) = state.chunk_counts();
                let degraded_chunks = degraded_chunks + soft.unfit.degraded(state);
                let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
                ClusterOk {
                    cluster: self.cluster(),
                    term: self.term(),
                    admin,
                    safe_mode: soft.safe_mode,
                    uptime_ms: millis(now - self.started),
                    servers: state.servers().take(PAGE_ENTRIES_MAX as usize).map(server_status).collect(),
                    files,
                    directories,
                    chunks: number(chunks),
                    open_chunks: number(open_chunks),
                    degraded_chunks: number(degraded_chunks),
                    replicas: self.config.replicas,
                    version: env!("CARGO_PKG_VERSION").into(),
                }
            })
            .await
    }

    fn render(&self) -> String {
        let mut out = Metrics::default();
        let counters = &self.counters;
        let answers = lock(&counters.answers).clone();
        let answers = answers.iter().map(|((tag, kind), count)| {
            ([("request", request_name(*tag).to_owned()), ("result", result_name(*kind))], *count)
        });
        out.counters("hercules_master_requests_total", "Requests answered, by request and result.", answers);
        let latency = lock(&counters.latency).clone();
        out.histogram("hercules_master_request_seconds", "Time from the whole request to its answer.", &latency);
        for (name, help, count) in [
            ("hercules_master_chunks_opened_total", "Chunks opened.", &counters.opened),
            (
                "hercules_master_chunks_abandoned_total",
                "Chunks given up because a member did not take them.",
                &counters.abandoned,
            ),
            ("hercules_master_chunks_finished_total", "Chunks sealed as planned.", &counters.finished),
            ("hercules_master_seal_rounds_total", "Rounds of PREPARE begun.", &counters.seal_rounds),
            ("hercules_master_trouble_reports_total", "Reports of trouble with a chain.", &counters.reports),
            (
                "hercules_master_stale_replicas_total",
                "Replicas found to have other content than was sealed.",
                &counters.stale,
            ),
            ("hercules_master_purges_total", "Steps of emptying the trash.", &counters.purges),
            ("hercules_master_replicas_condemned_total", "Replicas taken out of service.", &counters.condemned),
            ("hercules_master_replicas_freed_total", "Replicas freed.", &counters.freed),
        ] {
            out.counter(name, help, count.get());
        }
        let refused = self.door.refused().map(|(why, count)| ([("why", why.name().to_owned())], count));
        out.counters(
            "hercules_master_refused_connections_total",
            "Connections refused at the door, by reason.",
            refused,
        );
        self.render_log(&mut out);
        self.render_state(&mut out);
        self.render_repairs(&mut out);
        out.finish()
    }

    fn render_log(&self, out: &mut Metrics) {
        let log = self.core.log_stats();
        out.counter("hercules_master_log_entries_total", "Entries made durable.", log.entries);
        out.counter("hercules_master_log_batches_total", "Groups of entries, one flush each.", log.batches);
        out.counter("hercules_master_log_bytes_total", "Bytes written to the operation log.", log.bytes);
        out.histogram("hercules_master_log_flush_seconds", "Write and flush of one group.", &log.flush);
        let (written, upto) = self.core.checkpoint_stats();
        out.counter("hercules_master_checkpoints_total", "Checkpoints written.", written);
        out.gauge("hercules_master_checkpoint_lsn", "Entries up to here are in the checkpoint.", float(upto));
    }

    fn render_state(&self, out: &mut Metrics) {
        let now = clock::now();
        let (lsn, names, chunks) = self.core.look(|state| (state.applied(), state.name_counts(), state.chunk_counts()));
        let soft = self.soft();
        out.gauge("hercules_master_lsn", "The last entry applied.", float(lsn));
        out.gauge("hercules_master_term", "Term of this master.", f64::from(self.term().0));
        out.gauge(
            "hercules_master_safe_mode",
            "1 until enough servers have reported.",
            f64::from(u8::from(soft.safe_mode)),
        );
        out.gauge(
            "hercules_master_log_lost",
            "1 when reports know more than the log.",
            f64::from(u8::from(soft.log_lost)),
        );
        out.gauge("hercules_master_alarms", "Broken promises that an operator must look at.", float(soft.alarms));
        out.gauge("hercules_master_files", "Named files.", float(names.0));
        out.gauge("hercules_master_directories", "Directories.", float(names.1));
        let count = |count: usize| float(u64::try_from(count).unwrap_or(u64::MAX));
        out.gauge("hercules_master_chunks", "Chunks.", count(chunks.0));
        out.gauge("hercules_master_open_chunks", "Chunks that are not sealed.", count(chunks.1));
        out.gauge("hercules_master_degraded_chunks", "Sealed chunks with too few holders.", count(chunks.2));
        out.gauge(
            "hercules_master_unfit_replicas",
            "Replicas on disks that failed or are missing: still counted, read last.",
            count(soft.unfit.len()),
        );
        let label = |server: &ServerId| [("server", server.to_string())];
        let phi = soft.servers.iter().map(|(server, heard)| (label(server), heard.arrivals.phi(now).min(1000.0)));
        out.gauges("hercules_master_server_phi", "Suspicion: from 8 on a server gets no new chunks.", phi);
        let free = soft.servers.iter().map(|(server, heard)| (label(server), float(heard.space.free)));
        out.gauges("hercules_master_server_free_bytes", "Space for new chunks.", free);
        let alive = soft
            .servers
            .keys()
            .map(|server| (label(server), f64::from(u8::from(soft.liveness(*server, now) == Liveness::Alive))));
        out.gauges("hercules_master_server_alive", "1 while heartbeats arrive.", alive);
        let orphans = soft.servers.iter().map(|(server, heard)| (label(server), float(heard.orphans)));
        out.gauges("hercules_master_server_orphans", "Chunks reported there that the log does not know.", orphans);
    }
}

fn request_name(tag: u16) -> &'static str {
    match tag {
        tag::STAT => "stat",
        tag::LOCATE => "locate",
        tag::LOCATE_CHUNK => "locate_chunk",
        tag::LIST => "list",
        tag::TRASH => "trash",
        tag::MKDIR => "mkdir",
        tag::CREATE_FILE => "create",
        tag::DELETE => "delete",
        tag::UNDELETE => "undelete",
        tag::RENAME => "rename",
        tag::BEGIN_UPLOAD => "begin_upload",
        tag::PUBLISH => "publish",
        tag::SPLICE => "splice",
        tag::ABORT_UPLOAD => "abort_upload",
        tag::REGISTER => "register",
        tag::HEARTBEAT => "heartbeat",
        tag::FINISHED => "finished",
        tag::REPORT => "report",
        tag::CLUSTER => "cluster",
        tag::REPAIRS => "repairs",
        tag::TUNE_REPAIRS => "tune_repairs",
        tag::DRAIN => "drain",
        _ => "other",
    }
}

fn result_name(kind: Option<u16>) -> String {
    let kind = kind.and_then(|number| Kind::ALL.into_iter().find(|kind| *kind as u16 == number));
    kind.map_or("ok".into(), |kind| format!("{kind:?}").to_lowercase())
}

#[allow(clippy::cast_precision_loss, reason = "for display: 53 bits are plenty")]
pub(super) fn float(value: u64) -> f64 {
    value as f64
}
