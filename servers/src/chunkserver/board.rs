//! What the threads of one chunkserver know about each other: who it is, where its shards' mailboxes
//! are, and how it does. Read by the control thread's tasks and by the admin port.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use engine::probe::{Check, Verdict};
use engine::runtime::Backend;
use engine::store::{Counters, RecoverySummary};
use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot};
use wire::heartbeat::{ChunkReport, Space};
use wire::{ClusterId, ServerId};

use super::mailbox::{Served, ShardStatus, ToShard};
use crate::admin::{Admin, Health, Metrics};

/// A shard that does not say how it is for so long is stuck.
const SHARD_TIMEOUT: Duration = Duration::from_secs(1);

/// Shared by the threads of one chunkserver.
#[derive(Debug, Default)]
pub(crate) struct Board {
    /// This start.
    pub(crate) boot: u64,
    identity: OnceLock<(ServerId, ClusterId)>,
    shards: OnceLock<Vec<mpsc::Sender<ToShard>>>,
    found: OnceLock<Found>,
    is_registered: AtomicBool,
    refused_count: AtomicU64,
    reconnect_count: AtomicU64,
}

/// What was found at the start.
#[derive(Debug)]
struct Found {
    backend: Backend,
    probed: Vec<Check>,
    recovery: RecoverySummary,
}

impl Board {
    pub(crate) fn new(boot: u64) -> Arc<Self> {
        Arc::new(Self { boot, ..Self::default() })
    }

    /// Who this server is. Once.
    pub(crate) fn set_identity(&self, server: ServerId, cluster: ClusterId) {
        let first = self.identity.set((server, cluster)).is_ok();
        assert!(first, "a server gets its identity once");
    }

    /// What runs the shards, what the machine is worth, and what recovery found. Once.
    pub(crate) fn set_found(&self, backend: Backend, probed: Vec<Check>, recovery: RecoverySummary) {
        let first = self.found.set(Found { backend, probed, recovery }).is_ok();
        assert!(first, "a disk is recovered once");
    }

    /// The shards serve from now on. Once.
    pub(crate) fn set_shards(&self, shards: Vec<mpsc::Sender<ToShard>>) {
        let first = self.shards.set(shards).is_ok();
        assert!(first, "shards start once");
    }

    pub(crate) fn server(&self) -> ServerId {
        self.identity.get().map(|(server, _)| *server).unwrap_or_default()
    }

    pub(crate) fn cluster(&self) -> ClusterId {
        self.identity.get().map(|(_, cluster)| *cluster).unwrap_or_default()
    }

    fn mailboxes(&self) -> &[mpsc::Sender<ToShard>] {
        self.shards.get().map_or(&[], Vec::as_slice)
    }

    /// How many shards serve; zero until they do.
    pub(crate) fn shards(&self) -> u32 {
        u32::try_from(self.mailboxes().len()).unwrap_or(u32::MAX)
    }

    /// A connection was refused.
    pub(crate) fn refused_one(&self) {
        self.refused_count.fetch_add(1, Ordering::Relaxed);
    }

    /// The master knows this server, or no longer hears it.
    pub(crate) fn set_registered(&self, is_registered: bool) {
        if self.is_registered.swap(is_registered, Ordering::Relaxed) != is_registered && is_registered {
            self.reconnect_count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Sends to one shard; `false` when it has ended.
    pub(crate) async fn tell(&self, shard: u32, message: ToShard) -> bool {
        match self.mailboxes().get(shard as usize) {
            Some(mailbox) => mailbox.send(message).await.is_ok(),
            None => false,
        }
    }

    /// Numbers of all shards, in order; `None` for one that does not answer.
    pub(crate) async fn statuses(&self) -> Vec<Option<ShardStatus>> {
        self.ask_all(|reply| ToShard::Status { reply }).await
    }

    /// Reports of all shards, in order: what changed, or at most `limit` of each after a handle.
    /// `None` for a shard that does not answer.
    pub(crate) async fn reports(&self, after: Option<u64>, limit: usize) -> Vec<Option<Vec<ChunkReport>>> {
        self.ask_all(|reply| ToShard::Report { after, limit, reply }).await
    }

    async fn ask_all<T>(&self, message: impl Fn(oneshot::Sender<T>) -> ToShard) -> Vec<Option<T>> {
        let mut asked = Vec::new();
        for mailbox in self.mailboxes() {
            let (reply, answer) = oneshot::channel();
            let sent = mailbox.try_send(message(reply)).is_ok();
            asked.push(sent.then_some(answer));
        }
        let mut out = Vec::with_capacity(asked.len());
        for answer in asked {
            out.push(match answer {
                Some(answer) => tokio::time::timeout(SHARD_TIMEOUT, answer).await.ok().and_then(Result::ok),
                None => None,
            });
        }
        out
    }

    /// Asks all shards to end.
    pub(crate) async fn stop_shards(&self) {
        for mailbox in self.mailboxes() {
            // An error means that it has ended already.
            let _ = mailbox.send(ToShard::Stop).await;
        }
    }
}

/// Space of a server: its shards share one disk.
pub(crate) fn space_of(statuses: &[Option<ShardStatus>]) -> Space {
    let known = || statuses.iter().flatten();
    let is_fenced = known().any(|status| status.store.fences > 0);
    Space {
        total: known().map(|status| status.space.total).max().unwrap_or(0),
        // Nothing new goes to a disk that failed.
        free: if is_fenced { 0 } else { known().map(|status| status.space.free).min().unwrap_or(0) },
        used: known().map(|status| status.space.used).sum(),
    }
}

impl Admin for Board {
    async fn health(&self) -> Health {
        let statuses = self.statuses().await;
        let is_fenced = statuses.iter().flatten().any(|status| status.store.fences > 0);
        let is_stuck = statuses.iter().any(Option::is_none);
        let is_registered = self.is_registered.load(Ordering::Relaxed);
        let (serves, status) = match () {
            () if statuses.is_empty() => (false, "starting"),
            () if is_fenced => (false, "disk failed"),
            () if is_stuck => (false, "shard does not answer"),
            () if !is_registered => (true, "degraded"),
            () => (true, "healthy"),
        };
        let space = space_of(&statuses);
        let details = Map::from_iter([
            ("server".to_owned(), Value::from(self.server().0)),
            ("cluster".to_owned(), self.cluster().to_string().into()),
            ("shards".to_owned(), self.shards().into()),
            ("runtime".to_owned(), self.found.get().map_or_else(String::new, |it| it.backend.to_string()).into()),
            ("registered".to_owned(), is_registered.into()),
            ("chunks".to_owned(), statuses.iter().flatten().map(|status| status.chunk_count).sum::<u64>().into()),
            ("space_total".to_owned(), space.total.into()),
            ("space_free".to_owned(), space.free.into()),
        ]);
        Health { service: "hercules-chunkserver", serves, status, details }
    }

    async fn metrics(&self) -> String {
        let statuses = self.statuses().await;
        let mut out = Metrics::default();
        let registered = self.is_registered.load(Ordering::Relaxed);
        out.gauge("hercules_registered", "Whether the master hears this server.", f64::from(u8::from(registered)));
        out.counter(
            "hercules_registrations_total",
            "Times the master took this server in.",
            self.reconnect_count.load(Ordering::Relaxed),
        );
        out.counter(
            "hercules_refused_connections_total",
            "Connections refused before or at their hello.",
            self.refused_count.load(Ordering::Relaxed),
        );
        let space = space_of(&statuses);
        out.gauge("hercules_disk_size_bytes", "Size of the file system.", as_f64(space.total));
        out.gauge("hercules_disk_free_bytes", "Free for new chunks.", as_f64(space.free));
        out.gauge("hercules_disk_used_bytes", "Taken by chunks.", as_f64(space.used));
        if let Some(Found { backend, probed, recovery }) = self.found.get() {
            let runtime = [([("runtime", backend.to_string())], 1.0)];
            out.gauges("hercules_runtime_info", "What the shards run on.", runtime);
            let verdicts = probed.iter().map(|check| ([("check", check.name.to_owned())], worth(check.verdict)));
            out.gauges("hercules_probe", "The machine at the start: 0 good, 1 could be better.", verdicts);
            out.gauge("hercules_recovery_seconds", "How long recovery took.", recovery.took.as_secs_f64());
            out.gauge("hercules_recovery_records", "Journal records it replayed.", as_f64(recovery.records_replayed));
            out.gauge("hercules_recovery_torn_ends", "Journals that ended torn.", as_f64(recovery.torn_ends));
            out.gauge("hercules_recovery_suspects", "Chunks cut for want of data.", as_f64(recovery.suspects));
            out.gauge("hercules_recovery_damaged", "Chunks damaged by journal corruption.", as_f64(recovery.damaged));
        }
        let known: Vec<(usize, &ShardStatus)> =
            statuses.iter().enumerate().filter_map(|(shard, status)| Some((shard, status.as_ref()?))).collect();
        for (name, help, value) in GAUGES {
            out.gauges(name, help, known.iter().map(|(shard, it)| (label(*shard), as_f64(value(it)))));
        }
        for (name, help, value) in SERVED {
            out.counters(name, help, known.iter().map(|(shard, it)| (label(*shard), value(&it.served))));
        }
        for (name, help, value) in STORE {
            out.counters(name, help, known.iter().map(|(shard, it)| (label(*shard), value(&it.store))));
        }
        out.finish()
    }
}

fn worth(verdict: Verdict) -> f64 {
    if verdict == Verdict::Ok { 0.0 } else { 1.0 }
}

fn label(shard: usize) -> [(&'static str, String); 1] {
    [("shard", shard.to_string())]
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is for people: 53 bits are enough")]
fn as_f64(value: u64) -> f64 {
    value as f64
}

type Row<T> = (&'static str, &'static str, fn(&T) -> u64);

const GAUGES: [Row<ShardStatus>; 5] = [
    ("hercules_chunks", "Replicas held.", |it| it.chunk_count),
    ("hercules_open_chains", "Chains this shard is a member of.", |it| it.open_count),
    ("hercules_connections", "Connections served.", |it| it.connection_count),
    ("hercules_read_cache_bytes", "Blocks held in memory.", |it| it.store.cache_bytes),
    ("hercules_read_ahead_held_bytes", "Read ahead, on their way or not used yet.", |it| it.store.ahead_bytes),
];

const SERVED: [Row<Served>; 12] = [
    ("hercules_appends_total", "Operations committed, at the head.", |it| it.appends),
    ("hercules_append_bytes_total", "Bytes of them.", |it| it.append_bytes),
    ("hercules_append_repeats_total", "Operations asked for again, answered from the dedup table.", |it| it.repeats),
    ("hercules_forwards_total", "Entries taken from a predecessor.", |it| it.forwards),
    ("hercules_reads_total", "Reads answered.", |it| it.reads),
    ("hercules_read_bytes_total", "Bytes of them.", |it| it.read_bytes),
    ("hercules_refusals_total", "Requests refused.", |it| it.refusals),
    ("hercules_bad_connections_total", "Connections closed for what they sent.", |it| it.bad_connections),
    ("hercules_bad_payloads_total", "Payloads that did not match their checksums.", |it| it.bad_payloads),
    ("hercules_bad_block_reads_total", "Reads refused because a block fails its checksum.", |it| it.bad_blocks),
    ("hercules_filled_bytes_total", "Bytes copied from other members at a seal.", |it| it.filled_bytes),
    ("hercules_reports_total", "Reports of trouble to the master.", |it| it.reports),
];

const STORE: [Row<Counters>; 18] = [
    ("hercules_journal_groups_total", "Group commits.", |it| it.groups),
    ("hercules_flushes_total", "Flushes of the journal.", |it| it.flushes),
    ("hercules_slot_syncs_total", "Flushes of slots.", |it| it.slot_syncs),
    ("hercules_journal_records_total", "Journal records.", |it| it.records),
    ("hercules_device_writes_total", "Writes to the device.", |it| it.device_writes),
    ("hercules_device_write_bytes_total", "Bytes of them.", |it| it.device_write_bytes),
    ("hercules_device_reads_total", "Reads from the device.", |it| it.device_reads),
    ("hercules_device_read_bytes_total", "Bytes of them.", |it| it.device_read_bytes),
    ("hercules_checkpoints_total", "Checkpoints of the journal.", |it| it.checkpoints),
    ("hercules_bad_blocks_total", "Blocks that failed their checksum.", |it| it.bad_blocks),
    ("hercules_disk_fences_total", "Times the disk was taken out of service.", |it| it.fences),
    ("hercules_read_cache_hits_total", "Blocks served from memory.", |it| it.cache_hits),
    ("hercules_read_cache_misses_total", "Blocks that a reader waited for the device for.", |it| it.cache_misses),
    ("hercules_read_cache_evictions_total", "Blocks that left memory for others.", |it| it.cache_evictions),
    ("hercules_reads_joined_total", "Reads served by a read of the device that was under way.", |it| it.reads_joined),
    ("hercules_read_ahead_blocks_total", "Blocks read ahead.", |it| it.ahead_blocks),
    ("hercules_read_ahead_used_total", "Of these, used.", |it| it.ahead_used),
    ("hercules_read_ahead_wasted_total", "Of these, thrown away unused.", |it| it.ahead_wasted),
];
