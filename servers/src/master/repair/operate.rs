//! What operators ask about repair and drain, and what they change.

use wire::heartbeat::Liveness;
use wire::limits::PAGE_ENTRIES_MAX;
use wire::repairs::{Drain, Repairs, RepairsOk, TuneRepairs, Urgency};
use wire::{Fault, Kind};

use crate::admin::Metrics;
use crate::clock;
use crate::master::entry::Change;
use crate::master::metrics::float;
use crate::master::shared::Master;

impl Master {
    /// How repair stands.
    pub(in crate::master) async fn repairs(&self, request: Repairs) -> Result<RepairsOk, Fault> {
        let page = PAGE_ENTRIES_MAX as usize;
        let now = clock::now();
        let now_ms = clock::unix_ms();
        self.core
            .ask(|state| {
                let mut soft = self.soft();
                let tuning = state.tuning();
                let since = state.drained().map(|(server, since_ms)| (server, now_ms.saturating_sub(since_ms)));
                let mut draining = soft.repairs.drains(since);
                draining.truncate(page);
                let totals = soft.repairs.totals;
                let mut running = soft.repairs.running(now);
                running.truncate(page);
                RepairsOk {
                    paused: tuning.paused,
                    safe_mode: !soft.may_delete(),
                    server_rate: tuning.server_rate,
                    cluster_rate: tuning.cluster_rate,
                    waiting: soft.repairs.waiting(),
                    next: soft.repairs.next(page.min(request.limit as usize)),
                    running,
                    done: totals.done,
                    done_bytes: totals.done_bytes,
                    kept_bytes: totals.kept_bytes,
                    failed: totals.failed,
                    estimate_s: soft.repairs.estimate_s(now),
                    draining,
                }
            })
            .await
    }

    /// Changes how repair works. Durable.
    pub(in crate::master) async fn tune_repairs(&self, request: TuneRepairs) -> Result<(), Fault> {
        let TuneRepairs { request, paused, server_rate, cluster_rate } = request;
        self.core.submit(Change::Tune { request, paused, server_rate, cluster_rate }).await?;
        self.repair_work.notify_one();
        Ok(())
    }

    /// Empties a server, or ends that. Durable.
    ///
    /// # Errors
    ///
    /// `Precondition` when too few servers would be left to hold what it holds.
    pub(in crate::master) async fn drain(&self, request: Drain) -> Result<(), Fault> {
        let Drain { request, server, drain, force } = request;
        if drain && !force {
            self.may_drain(server)?;
        }
        self.core.submit(Change::Drain { request, server, drain }).await?;
        self.soft().repairs.recount(server);
        self.repair_work.notify_one();
        Ok(())
    }

    fn may_drain(&self, server: wire::ServerId) -> Result<(), Fault> {
        let now = clock::now();
        let left = self.core.look(|state| {
            let soft = self.soft();
            let stays = |other: &wire::ServerId| {
                *other != server && !state.is_drained(*other) && soft.liveness(*other, now) == Liveness::Alive
            };
            state.servers().map(|(server, _)| server).filter(stays).count()
        });
        let wanted = self.config.replicas as usize;
        if left < wanted {
            let text = format!(
                "only {left} other servers are alive and {wanted} replicas are wanted: add a server first, or force it \
                 and live with fewer replicas"
            );
            return Err(Fault::new(Kind::Precondition, text));
        }
        Ok(())
    }

    pub(in crate::master) fn render_repairs(&self, out: &mut Metrics) {
        let now = clock::now();
        let counters = &self.counters;
        for (name, help, count) in [
            (
                "hercules_master_replicas_joined_total",
                "Replicas that came back and count again at no cost.",
                &counters.joined,
            ),
            ("hercules_master_replicas_dropped_total", "Replicas that count no more.", &counters.dropped),
        ] {
            out.counter(name, help, count.get());
        }
        let (paused, drained) = self.core.look(|state| (state.tuning().paused, state.drained().collect::<Vec<_>>()));
        let mut soft = self.soft();
        let waiting = soft.repairs.waiting();
        let of = |urgency: Urgency| waiting.iter().find(|waiting| waiting.urgency == urgency);
        let label = |urgency: Urgency| [("urgency", urgency.name().to_owned())];
        let chunks = Urgency::ALL.map(|urgency| (label(urgency), float(of(urgency).map_or(0, |it| it.chunks))));
        out.gauges("hercules_master_repairs_waiting", "Chunks that need another copy, by urgency.", chunks);
        let bytes = Urgency::ALL.map(|urgency| (label(urgency), float(of(urgency).map_or(0, |it| it.bytes))));
        out.gauges("hercules_master_repairs_waiting_bytes", "Bytes of them.", bytes);
        let short = [Urgency::Last, Urgency::Asked, Urgency::Few].into_iter().filter_map(of).map(|it| it.chunks).sum();
        out.gauge("hercules_master_under_replicated_chunks", "Sealed chunks with too few copies.", float(short));
        let copies = soft.repairs.running(now);
        let count = |urgency| copies.iter().filter(|copy| copy.urgency == urgency).fold(0.0, |count, _| count + 1.0);
        let running = Urgency::ALL.map(|urgency| (label(urgency), count(urgency)));
        out.gauges("hercules_master_repairs_running", "Copies on their way, by urgency.", running);
        let totals = soft.repairs.totals;
        out.counter("hercules_master_repairs_total", "Copies made.", totals.done);
        out.counter("hercules_master_repair_bytes_total", "Bytes of them.", totals.done_bytes);
        out.counter(
            "hercules_master_repair_kept_bytes_total",
            "Of these, bytes that their targets had.",
            totals.kept_bytes,
        );
        out.counter("hercules_master_repair_failures_total", "Copies that failed.", totals.failed);
        if let Some(seconds) = soft.repairs.estimate_s(now) {
            let help = "Until all that waits is done, at the speed of the last copies.";
            out.gauge("hercules_master_repair_estimate_seconds", help, float(seconds));
        }
        out.gauge("hercules_master_repairs_paused", "1 while nothing is begun.", f64::from(u8::from(paused)));
        let drains = soft.repairs.drains(drained.into_iter().map(|(server, _)| (server, 0)));
        let left = drains.into_iter().map(|drain| ([("server", drain.server.to_string())], float(drain.left)));
        out.gauges("hercules_master_drain_left_chunks", "Chunks that still count on a drained server.", left);
    }
}
