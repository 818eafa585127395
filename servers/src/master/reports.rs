//! Chunkservers: registration, heartbeats, and what their reports mean for chunks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tracing::{error, info, warn};
use wire::heartbeat::{ChunkReport, Heartbeat, HeartbeatOk, Liveness, Register, Registered};
use wire::limits::{ADDRESS_LEN_MAX, PAGE_ENTRIES_MAX};
use wire::member::ReplicaState;
use wire::report::{Report, Trouble};
use wire::{ChunkHandle, ClusterId, Fault, Kind, ServerId};

use super::entry::{Change, ServerRecord};
use super::shared::{Master, lock};
use super::soft::Soft;
use super::state::{Phase, State};
use crate::clock;

/// Longest zone or version: a page of the state of the cluster must hold a thousand servers.
const TEXT_LEN_MAX: usize = 64;
/// More shards than any machine has cores.
const SHARDS_MAX: u32 = 1024;
/// How often the master looks at its servers and open chunks.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A chunk on too few servers is rolled when more have been there for this long.
const WIDEN_AFTER: Duration = Duration::from_secs(60);
/// Seals begun in one look: others follow in the next.
const SEALS_MAX: usize = 256;

/// What must be done about one reported replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Fine,
    /// An open chunk's replica is of no use to its chain.
    Seal,
    /// A holder has not heard that the chunk is sealed.
    Confirm,
    /// Neither a file nor a tombstone knows the chunk.
    Orphan,
    /// The report knows more than the log.
    Ahead,
    /// A holder is sealed with other content.
    Differs,
    /// A replica of a sealed chunk that the log does not count; the digest of what it has, if it is whole.
    Stray(Option<[u8; 16]>),
}

impl Master {
    /// Gives a chunkserver its id, durable, or recognises it.
    ///
    /// # Errors
    ///
    /// `Invalid` for impossible fields, `Conflict` for another cluster's server or another disk's id.
    pub(super) async fn register(&self, request: Register) -> Result<Registered, Fault> {
        check(&request)?;
        if request.cluster != ClusterId::default() && request.cluster != self.cluster() {
            return Err(Fault::new(
                Kind::Conflict,
                format!("the disk belongs to cluster {}, this is cluster {}", request.cluster, self.cluster()),
            ));
        }
        let Register { server: id, disk, address, admin, shards, zone, version, boot, .. } = request;
        let record = ServerRecord { disk, address, admin, shards, zone, version };
        let (known, server) = self.core.look(|state| {
            let server = if id == ServerId::default() { unformatted(state, &record) } else { id };
            (state.server(server).cloned(), server)
        });
        if id != ServerId::default() && known.is_none() {
            error!(server = %id, "a server of this cluster that the log does not know: the log lost entries");
            self.soft().log_lost = true;
            return Err(Fault::new(
                Kind::Conflict,
                format!("server {id} is not known here: the master may have lost its log"),
            ));
        }
        if known.as_ref() != Some(&record) {
            self.core.submit(Change::Register { server, record }).await?;
            info!(%server, "server registered");
        }
        self.soft().registered(server, boot, clock::now());
        Ok(Registered { server, cluster: self.cluster(), term: self.term() })
    }

    /// Takes a heartbeat with its reports.
    ///
    /// # Errors
    ///
    /// `StaleEpoch` when the server must register first; `Invalid` for a page that is too long.
    pub(super) fn heartbeat(self: &Arc<Self>, request: &Heartbeat) -> Result<HeartbeatOk, Fault> {
        if request.chunks.len() > PAGE_ENTRIES_MAX as usize {
            return Err(Fault::new(Kind::Invalid, "a page of reports is too long"));
        }
        let server = request.server;
        {
            let mut soft = self.soft();
            let Some(heard) = soft.servers.get_mut(&server).filter(|heard| heard.boot == request.boot) else {
                return Err(Fault::new(Kind::StaleEpoch, format!("server {server} is not registered: register first")));
            };
            heard.arrivals.heard(clock::now());
            heard.gone = false;
            (heard.space, heard.chunks) = (request.space, request.chunk_count);
            if let Some(page) = request.inventory {
                if page.first {
                    heard.seen.clear();
                    heard.orphans = 0;
                }
                let open = request.chunks.iter().filter(|report| report.state != ReplicaState::Sealed);
                heard.seen.extend(open.map(|report| report.chunk));
            }
        }
        self.core.look(|state| self.soft().unfit.heard(state, server, &request.chunks, request.inventory));
        for report in &request.chunks {
            self.take_report(server, report);
        }
        if request.inventory.is_some_and(|page| page.last) {
            self.inventory_complete(server);
        }
        let want_inventory = self.soft().servers.get(&server).is_some_and(|heard| !heard.inventoried);
        Ok(HeartbeatOk { term: self.term(), want_inventory })
    }

    fn take_report(self: &Arc<Self>, server: ServerId, report: &ChunkReport) {
        let chunk = report.chunk;
        match self.core.look(|state| verdict(state, server, report)) {
            Verdict::Fine => {
                if report.state == ReplicaState::Open {
                    self.soft().hints.insert(chunk, report.committed_len);
                }
            }
            Verdict::Seal => {
                info!(%chunk, %server, state = ?report.state, "replica left its chain");
                self.start_seal(chunk);
            }
            Verdict::Confirm => self.confirm(chunk, server),
            Verdict::Stray(digest) => self.soft().repairs.stray(chunk, server, digest),
            Verdict::Orphan => {
                info!(%chunk, %server, "unknown chunk is kept there");
                if let Some(heard) = self.soft().servers.get_mut(&server) {
                    heard.orphans += 1;
                }
            }
            Verdict::Ahead => {
                error!(%chunk, %server, epoch = %report.epoch, promised = %report.promised,
                    "a report knows more than the log: the master lost entries, nothing will be deleted");
                self.soft().log_lost = true;
            }
            Verdict::Differs => {
                error!(%chunk, %server, "a holder is sealed with other content");
                self.soft().alarms += 1;
            }
        }
    }

    /// Everything the server holds is known: open chunks of its that it lacks are lost there.
    fn inventory_complete(self: &Arc<Self>, server: ServerId) {
        let seen = {
            let mut soft = self.soft();
            let Some(heard) = soft.servers.get_mut(&server) else { return };
            heard.inventoried = true;
            std::mem::take(&mut heard.seen)
        };
        let first_chunk = self.first_chunk;
        let lost: Vec<_> = self.core.look(|state| {
            let mine = state.open_chunks().filter(|(_, chunk)| chunk.members.contains(&server));
            // A chunk of this life may have been made after the report was.
            mine.map(|(handle, _)| handle).filter(|handle| *handle < first_chunk && !seen.contains(handle)).collect()
        });
        for chunk in lost {
            info!(%chunk, %server, "open chunk is not there any more");
            self.start_seal(chunk);
        }
    }

    /// Trouble with a chain: seal and roll.
    pub(super) fn report(self: &Arc<Self>, report: &Report) {
        self.counters.reports.add(1);
        let current = self.core.look(|state| {
            state.chunk(report.chunk).is_some_and(|row| row.phase == Phase::Open && row.epoch == report.epoch)
        });
        let Report { chunk, epoch, trouble, suspect } = report;
        if matches!(trouble, Trouble::Diverged | Trouble::LostOps) {
            error!(%chunk, %epoch, ?trouble, %suspect, "reported: a promise is broken");
            self.soft().alarms += 1;
        } else {
            warn!(%chunk, %epoch, ?trouble, %suspect, current, "reported");
        }
        if !current {
            self.soft().repairs.ask(*chunk, clock::now());
        }
        if current {
            self.start_seal(*chunk);
        }
    }

    /// Looks after servers and open chunks until the master stops.
    pub(super) async fn watch(self: Arc<Self>) {
        loop {
            self.look_after();
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn look_after(self: &Arc<Self>) {
        let now = clock::now();
        if self.core.look(|state| self.soft().leave_safe_mode(state, now)) {
            info!("safe mode ends");
        }
        let reopening: BTreeSet<ChunkHandle> = lock(&self.reopening).keys().copied().collect();
        let unix_ms = clock::unix_ms();
        let look = |state: &State| overdue(state, &self.soft(), self.first_chunk, &reopening, now, unix_ms);
        let (seal, join) = self.core.look(look);
        seal.into_iter().for_each(|chunk| self.start_seal(chunk));
        join.into_iter().for_each(|(chunk, server)| self.join(chunk, server));
        self.core.look(|state| self.soft().forget_closed(state));
    }
}

/// Chunks whose chain must end, and replicas of sealed chunks that may join again. `first_chunk`: handles
/// below it were given out in an earlier life. `reopening`: those whose members are being told.
pub(super) fn overdue(
    state: &State,
    soft: &Soft,
    first_chunk: ChunkHandle,
    reopening: &BTreeSet<ChunkHandle>,
    now: Duration,
    unix_ms: u64,
) -> (Vec<ChunkHandle>, Vec<(ChunkHandle, ServerId)>) {
    let spread = soft.alive_for(WIDEN_AFTER, now);
    let widen_ms = unix_ms.saturating_sub(u64::try_from(WIDEN_AFTER.as_millis()).unwrap_or(u64::MAX));
    let must_close = |(handle, chunk): &(ChunkHandle, &super::state::Chunk)| {
        let lost = chunk.members.iter().any(|member| soft.is_lost(*member, now) || state.is_drained(*member));
        let wanted = chunk.wanted as usize;
        let narrow = chunk.members.len() < wanted && spread >= wanted && chunk.opened_ms < widen_ms;
        let ready = soft.ready.contains(handle);
        let opening = match chunk.fixed {
            Some(_) => reopening.contains(handle),
            None => *handle >= first_chunk && !ready,
        };
        // Re-opened in an earlier life of the master: nobody knows whether all members took it.
        let left = chunk.fixed.is_some() && !ready;
        let sealing = matches!(chunk.phase, Phase::Sealing(_));
        sealing || (left || lost || narrow || !state.reachable(chunk.file)) && !opening
    };
    let seal = state.open_chunks().filter(must_close).take(SEALS_MAX).map(|(handle, _)| handle).collect();
    let alive = |server: &ServerId| soft.liveness(*server, now) == Liveness::Alive;
    let stale = state.degraded().flat_map(|(handle, row)| row.stale.iter().map(move |server| (handle, *server)));
    let join = stale.filter(|(_, server)| alive(server)).take(SEALS_MAX).collect();
    (seal, join)
}

/// What a report means. `Fine` when it says what the log says, or a tombstone covers it.
pub(super) fn verdict(state: &State, server: ServerId, report: &ChunkReport) -> Verdict {
    let Some(row) = state.chunk(report.chunk) else {
        return match state.tomb(report.chunk) {
            Some(_) => Verdict::Fine,
            None if report.chunk >= state.next_chunk() => Verdict::Ahead,
            None if report.state == ReplicaState::Condemned => Verdict::Fine,
            None if state.dropped(report.chunk, server).is_some() => Verdict::Fine,
            None => Verdict::Orphan,
        };
    };
    if report.epoch.max(report.promised) > row.epoch_max() {
        return Verdict::Ahead;
    }
    let holds = row.members.contains(&server);
    match (row.phase, report.state) {
        (Phase::Open, ReplicaState::Open) if !report.damaged => Verdict::Fine,
        // Has not taken REOPEN yet, or never will: whoever re-opens it waits for that, and seals.
        (Phase::Open, ReplicaState::Sealed) if row.fixed.is_some() && report.epoch < row.epoch => Verdict::Fine,
        (Phase::Open, _) if holds => Verdict::Seal,
        (Phase::Sealed { len, digest, .. }, ReplicaState::Sealed) if holds => {
            if (report.len, report.digest) == (len, digest) { Verdict::Fine } else { Verdict::Differs }
        }
        (Phase::Sealed { .. }, ReplicaState::Open | ReplicaState::Rwr) if holds => Verdict::Confirm,
        (Phase::Sealed { .. }, ReplicaState::Condemned) => Verdict::Fine,
        (Phase::Sealed { .. }, _) if is_stray(state, row, server, report) => {
            let is_whole = report.state == ReplicaState::Sealed && !report.damaged;
            Verdict::Stray(is_whole.then_some(report.digest))
        }
        _ => Verdict::Fine,
    }
}

/// Neither a holder, nor one that missed the seal, nor one that was dropped.
fn is_stray(state: &State, row: &super::state::Chunk, server: ServerId, report: &ChunkReport) -> bool {
    let known = row.members.contains(&server) || row.stale.contains(&server);
    !known && state.dropped(report.chunk, server).is_none()
}

/// The id for a fresh disk: that of the same server when it crashed before it formatted, or a new one.
fn unformatted(state: &State, record: &ServerRecord) -> ServerId {
    let same = |known: &ServerRecord| known.disk == [0; 16] && known.address == record.address;
    let again = state.servers().find(|(_, known)| same(known)).map(|(server, _)| server);
    again.unwrap_or_else(|| state.next_server())
}

fn check(request: &Register) -> Result<(), Fault> {
    let fits = |text: &str, most: usize| text.len() <= most && !text.chars().any(char::is_control);
    let address =
        request.address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if !address || !fits(&request.address, ADDRESS_LEN_MAX) || !fits(&request.admin, ADDRESS_LEN_MAX) {
        return Err(Fault::new(Kind::Invalid, "a server's address is host:port, of a bounded length"));
    }
    if !fits(&request.zone, TEXT_LEN_MAX) || !fits(&request.version, TEXT_LEN_MAX) {
        return Err(Fault::new(Kind::Invalid, "zone and version have at most 64 bytes"));
    }
    if request.shards == 0 || request.shards > SHARDS_MAX {
        return Err(Fault::new(Kind::Invalid, format!("a server has 1 to {SHARDS_MAX} shards")));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
