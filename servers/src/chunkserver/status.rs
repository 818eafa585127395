//! How a chunkserver is: its space, `/health` and `/metrics`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use engine::probe::Verdict;
use engine::store::{Counters, RecoverySummary};
use serde_json::{Map, Value};
use wire::heartbeat::Space;

use super::board::{Board, Found};
use super::disks::{self, Disk};
use super::mailbox::{Served, ShardStatus};
use super::scrub::Scrubbed;
use crate::admin::{Admin, Health, Metrics};

/// Space of one disk, as all shards see it.
fn space_on(disk: usize, statuses: &[Option<ShardStatus>]) -> Space {
    let known = || statuses.iter().flatten().filter_map(move |status| status.stores.get(disk)).map(|it| it.space);
    Space {
        total: known().map(|space| space.total).max().unwrap_or(0),
        free: known().map(|space| space.free).min().unwrap_or(0),
        used: known().map(|space| space.used).sum(),
    }
}

/// Space of a server: of the disks that answer, each file system once. A server without any keeps its
/// size and has nothing free: it is there, and gets no chunks.
pub(crate) fn space_of(disks: &[Arc<Disk>], statuses: &[Option<ShardStatus>]) -> Space {
    let answers = |disk: &Disk| !matches!(disk.health(), disks::Health::Failed(_));
    let none = !disks.iter().any(|disk| answers(disk));
    let mut devices: BTreeMap<u64, Space> = BTreeMap::new();
    for (index, disk) in disks.iter().enumerate().filter(|(_, disk)| none || answers(disk)) {
        let space = space_on(index, statuses);
        let free = if disk.health() == disks::Health::Good { space.free } else { 0 };
        let sum = devices.entry(disk.device).or_default();
        *sum = Space { total: sum.total.max(space.total), free: sum.free.max(free), used: sum.used + space.used };
    }
    let of = |part: fn(&Space) -> u64| devices.values().map(part).sum();
    Space { total: of(|space| space.total), free: of(|space| space.free), used: of(|space| space.used) }
}

impl Admin for Board {
    async fn health(&self) -> Health {
        let statuses = self.statuses().await;
        let disks = self.disks();
        let failed = disks.iter().filter(|disk| matches!(disk.health(), disks::Health::Failed(_))).count();
        let is_stuck = statuses.iter().any(Option::is_none);
        let is_registered = self.is_registered.load(Relaxed);
        let (serves, status) = match () {
            () if statuses.is_empty() => (false, "starting"),
            () if failed == disks.len() => (false, "disk failed"),
            () if is_stuck => (false, "shard does not answer"),
            () if failed > 0 || !is_registered => (true, "degraded"),
            () => (true, "healthy"),
        };
        let space = space_of(self.disks(), &statuses);
        let details = Map::from_iter([
            ("server".to_owned(), Value::from(self.server().0)),
            ("cluster".to_owned(), self.cluster().to_string().into()),
            ("shards".to_owned(), self.shards().into()),
            ("runtime".to_owned(), self.found.get().map_or_else(String::new, |it| it.backend.to_string()).into()),
            ("registered".to_owned(), is_registered.into()),
            ("chunks".to_owned(), statuses.iter().flatten().map(|status| status.chunk_count).sum::<u64>().into()),
            ("space_total".to_owned(), space.total.into()),
            ("space_free".to_owned(), space.free.into()),
            ("disks".to_owned(), disks.iter().map(about).collect()),
        ]);
        Health { service: "hercules-chunkserver", serves, status, details }
    }

    async fn command(&self, name: &str) -> Option<Value> {
        if name != "scrub" {
            return None;
        }
        self.scrub().await;
        Some(Map::from_iter([("scrub".to_owned(), Value::from("begun"))]).into())
    }

    async fn metrics(&self) -> String {
        let statuses = self.statuses().await;
        let mut out = Metrics::default();
        let registered = self.is_registered.load(Relaxed);
        out.gauge("hercules_registered", "Whether the master hears this server.", f64::from(u8::from(registered)));
        out.counter(
            "hercules_registrations_total",
            "Times the master took this server in.",
            self.reconnect_count.load(Relaxed),
        );
        let refused = self.door.refused().map(|(why, count)| ([("why", why.name().to_owned())], count));
        out.counters("hercules_refused_connections_total", "Connections refused at the door, by reason.", refused);
        let space = space_of(self.disks(), &statuses);
        out.gauge("hercules_disk_size_bytes", "Size of the file system.", as_f64(space.total));
        out.gauge("hercules_disk_free_bytes", "Free for new chunks.", as_f64(space.free));
        out.gauge("hercules_disk_used_bytes", "Taken by chunks.", as_f64(space.used));
        if let Some(Found { backend, probed, recovery }) = self.found.get() {
            let runtime = [([("runtime", backend.to_string())], 1.0)];
            out.gauges("hercules_runtime_info", "What the shards run on.", runtime);
            let mut worst = BTreeMap::new();
            for check in probed {
                let known = worst.entry(check.name).or_insert(check.verdict);
                *known = check.verdict.max(*known);
            }
            let verdicts = worst.into_iter().map(|(name, verdict)| ([("check", name.to_owned())], worth(verdict)));
            out.gauges("hercules_probe", "The machine at the start: 0 good, 1 could be better.", verdicts);
            let took = recovery.iter().map(|it| it.took).max().unwrap_or_default();
            out.gauge("hercules_recovery_seconds", "How long recovery took.", took.as_secs_f64());
            for (name, help, value) in RECOVERY {
                out.gauge(name, help, as_f64(recovery.iter().map(value).sum()));
            }
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
            let sum = |it: &ShardStatus| it.stores.iter().map(|store| value(&store.counters)).sum();
            out.counters(name, help, known.iter().map(|(shard, it)| (label(*shard), sum(it))));
        }
        for (name, help, value) in STORE_NOW {
            let sum = |it: &ShardStatus| as_f64(it.stores.iter().map(|store| value(&store.counters)).sum());
            out.gauges(name, help, known.iter().map(|(shard, it)| (label(*shard), sum(it))));
        }
        self.disk_metrics(&statuses, &mut out);
        out.finish()
    }
}

impl Board {
    /// What there is to know about each disk by itself.
    fn disk_metrics(&self, statuses: &[Option<ShardStatus>], out: &mut Metrics) {
        let all = || self.disks().iter().enumerate().map(|(index, disk)| (index, disk, on(disk)));
        let states = all().flat_map(|(_, disk, [(key, root)])| {
            let now = disk.health().name();
            ["good", "draining", "failed"]
                .map(|state| ([(key, root.clone()), ("state", state.to_owned())], f64::from(u8::from(state == now))))
        });
        out.gauges("hercules_disk_state", "How each disk is: 1 for its state.", states);
        let spaces = all().map(|(index, _, label)| (label, as_f64(space_on(index, statuses).free)));
        out.gauges("hercules_disk_room_bytes", "Free for new chunks on each disk.", spaces);
        let worn = all().map(|(index, _, label)| {
            let stores = statuses.iter().flatten().filter_map(|status| status.stores.get(index));
            (label, as_f64(stores.map(|store| store.quarantined).sum()))
        });
        out.gauges("hercules_quarantined_slots", "Slots kept out of use: a repair did not help.", worn);
        let stores = |index: usize| statuses.iter().flatten().filter_map(move |status| status.stores.get(index));
        let sum = |index, value: fn(&Scrubbed) -> u64| stores(index).map(|it| value(&it.scrub)).sum::<u64>();
        for (name, help, value) in SCRUB {
            out.counters(name, help, all().map(|(index, _, label)| (label, sum(index, value))));
        }
        for (name, help, value) in SCRUB_NOW {
            out.gauges(name, help, all().map(|(index, _, label)| (label, as_f64(sum(index, value)))));
        }
        let aged = all().filter_map(|(index, _, label)| {
            let ages: Option<Vec<Duration>> = stores(index).map(|it| it.scrub_age).collect();
            Some((label, ages?.into_iter().max()?.as_secs_f64()))
        });
        out.gauges("hercules_scrub_age_seconds", "Since the last whole scrub; absent before the first.", aged);
    }
}

fn on(disk: &Disk) -> [(&'static str, String); 1] {
    [("disk", disk.root.display().to_string())]
}

/// A disk in the answer of `/health`.
fn about(disk: &Arc<Disk>) -> Value {
    let health = disk.health();
    let mut fields = Map::from_iter([
        ("root".to_owned(), Value::from(disk.root.display().to_string())),
        ("state".to_owned(), health.name().into()),
    ]);
    if let disks::Health::Failed(cause) = health {
        fields.insert("cause".to_owned(), cause.into());
    }
    Value::Object(fields)
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

const RECOVERY: [Row<RecoverySummary>; 4] = [
    ("hercules_recovery_records", "Journal records it replayed.", |it| it.records_replayed),
    ("hercules_recovery_torn_ends", "Journals that ended torn.", |it| it.torn_ends),
    ("hercules_recovery_suspects", "Chunks cut for want of data.", |it| it.suspects),
    ("hercules_recovery_damaged", "Chunks damaged by journal corruption.", |it| it.damaged),
];

const SCRUB_NOW: [Row<Scrubbed>; 2] = [
    ("hercules_scrub_done_bytes", "Bytes read in the pass that runs.", |it| it.pass.done),
    ("hercules_scrub_pass_bytes", "Bytes there were when it began.", |it| it.pass.total),
];

const SCRUB: [Row<Scrubbed>; 5] = [
    ("hercules_scrub_bytes_total", "Bytes read and verified by scrub.", |it| it.bytes),
    ("hercules_scrub_errors_total", "Bad blocks and pages found by it.", |it| it.errors),
    ("hercules_scrub_healed_total", "Pages it wrote again from memory or another copy.", |it| it.healed),
    ("hercules_scrub_passes_total", "Whole passes, one for each shard.", |it| it.passes),
    ("hercules_scrub_flaky_total", "Blocks that were bad once and good when read again.", |it| it.flaky),
];

const GAUGES: [Row<ShardStatus>; 5] = [
    ("hercules_repairs_waiting", "Bad blocks that wait for a repair.", |it| it.repair_count),
    ("hercules_shadow_chunks", "Older copies of chunks that another disk has as well.", |it| it.shadow_count),
    ("hercules_chunks", "Replicas held.", |it| it.chunk_count),
    ("hercules_open_chains", "Chains this shard is a member of.", |it| it.open_count),
    ("hercules_connections", "Connections served.", |it| it.connection_count),
];

const SERVED: [Row<Served>; 19] = [
    ("hercules_bad_blocks_found_total", "Bad blocks found by reads and scrub, each once.", |it| it.bad_found),
    ("hercules_bad_blocks_repaired_total", "Of those: replaced from another replica, and good in their place.", |it| {
        it.bad_repaired
    }),
    ("hercules_repair_failures_total", "Tries to repair that failed.", |it| it.repair_failures),
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
    ("hercules_clones_total", "Whole replicas made from other members.", |it| it.clones),
    ("hercules_clone_bytes_total", "Bytes fetched for them.", |it| it.clone_bytes),
    ("hercules_clone_kept_bytes_total", "Bytes of them that an older copy here had.", |it| it.clone_kept_bytes),
    ("hercules_clone_failures_total", "Clones that one source could not give.", |it| it.clone_failures),
    ("hercules_reports_total", "Reports of trouble to the master.", |it| it.reports),
];

const STORE_NOW: [Row<Counters>; 2] = [
    ("hercules_read_cache_bytes", "Blocks held in memory.", |it| it.cache_bytes),
    ("hercules_read_ahead_held_bytes", "Read ahead, on their way or not used yet.", |it| it.ahead_bytes),
];

const STORE: [Row<Counters>; 22] = [
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
    ("hercules_zeroed_bytes_total", "Zeros written ahead of appends.", |it| it.zeroed_bytes),
    ("hercules_image_blocks_total", "Blocks whose images checkpoints wrote in place.", |it| it.image_blocks),
    ("hercules_repaired_blocks_total", "Blocks replaced with the same content.", |it| it.repaired_blocks),
    ("hercules_clones_total", "Chunks cloned by sharing extents.", |it| it.clones),
    ("hercules_read_cache_hits_total", "Blocks served from memory.", |it| it.cache_hits),
    ("hercules_read_cache_misses_total", "Blocks that a reader waited for the device for.", |it| it.cache_misses),
    ("hercules_read_cache_evictions_total", "Blocks that left memory for others.", |it| it.cache_evictions),
    ("hercules_reads_joined_total", "Reads served by a read of the device that was under way.", |it| it.reads_joined),
    ("hercules_read_ahead_blocks_total", "Blocks read ahead.", |it| it.ahead_blocks),
    ("hercules_read_ahead_used_total", "Of these, used.", |it| it.ahead_used),
    ("hercules_read_ahead_wasted_total", "Of these, thrown away unused.", |it| it.ahead_wasted),
];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::mailbox::StoreStatus;
    use super::*;

    fn status(spaces: &[(u64, u64, u64)]) -> Option<ShardStatus> {
        let stores = spaces.iter().map(|(total, free, used)| StoreStatus {
            space: engine::store::Space { total: *total, free: *free, used: *used },
            ..StoreStatus::default()
        });
        Some(ShardStatus { stores: stores.collect(), ..ShardStatus::default() })
    }

    #[test]
    fn a_server_has_the_space_of_its_good_disks_and_each_file_system_counts_once() {
        let disks: Vec<_> = [1, 2, 2].map(|device| Disk::opened(Path::new("/d"), device)).into();
        // Two shards on three disks, of which two share a file system.
        let statuses = [
            status(&[(100, 50, 10), (200, 80, 1), (200, 80, 2)]),
            status(&[(100, 49, 10), (200, 80, 3), (200, 80, 4)]),
            None,
        ];
        let space = |total, free, used| Space { total, free, used };
        assert_eq!(space_of(&disks, &statuses), space(300, 129, 30));
        disks[1].set_health(disks::Health::Draining);
        assert_eq!(space_of(&disks, &statuses), space(300, 129, 30), "the other folder takes chunks");
        disks[2].set_health(disks::Health::Draining);
        assert_eq!(space_of(&disks, &statuses), space(300, 49, 30));
        disks[0].set_health(disks::Health::Failed("x".into()));
        assert_eq!(space_of(&disks, &statuses), space(200, 0, 10));
        disks[1].set_health(disks::Health::Failed("x".into()));
        disks[2].set_health(disks::Health::Failed("x".into()));
        assert_eq!(space_of(&disks, &statuses), space(300, 0, 30), "it is there, and full");
    }
}
