//! Carries repair out: looks at chunks and servers, begins copies, logs what counts and what does not.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tracing::{debug, info, warn};
use wire::clone::{CloneChunk, Cloned};
use wire::heartbeat::Liveness;
use wire::{ChunkHandle, Fault, Kind, ServerId};

use super::queue::{Job, Step};
use super::{Repairs, servers, view};
use crate::clock;
use crate::master::core::random;
use crate::master::entry::{Change, Dropping};
use crate::master::peers::CallError;
use crate::master::shared::{Master, lock, member, members};
use crate::master::state::{Phase, State};

/// Between two looks; a copy that ends brings the next one at once.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// One copy: a chunk at 256 KiB/s, and what waits in front of it.
const CLONE_TIMEOUT: Duration = Duration::from_secs(600);

impl Master {
    /// Looks after replicas until the master stops.
    pub(in crate::master) async fn look_after_replicas(self: Arc<Self>) {
        loop {
            self.repair().await;
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = self.repair_work.notified() => {}
            }
        }
    }

    async fn repair(self: &Arc<Self>) {
        let (steps, jobs) = self.core.look(|state| self.plan(state));
        for job in jobs {
            let master = Arc::clone(self);
            self.spawn(async move { master.copy(job).await });
        }
        join_all(steps.into_iter().map(|step| self.step(step))).await;
    }

    fn plan(&self, state: &State) -> (Vec<Step>, Vec<Job>) {
        let now = clock::now();
        let mut soft = self.soft();
        if !soft.may_delete() {
            return (vec![], vec![]);
        }
        // One that has no disk yet holds nothing: it is silent while it formats one.
        let formatted = state.servers().filter(|(_, record)| record.disk != [0; 16]);
        let dead: Vec<ServerId> = formatted.map(|(server, _)| server).collect();
        let known = dead.len();
        let dead: Vec<ServerId> =
            dead.into_iter().filter(|server| soft.liveness(*server, now) == Liveness::Dead).collect();
        let (believed, held) = soft.repairs.ejected.look(&dead, known, now);
        for server in believed {
            warn!(%server, "server is dead: what it held is copied");
        }
        if held > 0 {
            debug!(held, "more servers fell silent than are believed to be dead at once");
        }
        let mut servers = servers(state, &soft, now);
        soft.repairs.burden(&mut servers);
        let part = soft.repairs.part(state);
        let is_last = part.len() < Repairs::LOOK_MAX;
        let part: Vec<_> =
            part.into_iter().map(|(handle, row)| (handle, row, view(state, &soft, handle, row, now))).collect();
        let steps = soft.repairs.look(&part, is_last, &servers, now);
        let mut joining = lock(&self.joining);
        let candidates = soft.repairs.candidates().into_iter().filter_map(|handle| {
            let row = state.chunk(handle)?;
            let mut view = view(state, &soft, handle, row, now)?;
            view.barred = servers.keys().copied().filter(|server| joining.contains(&(handle, *server))).collect();
            Some((handle, (view, row.len())))
        });
        let views: HashMap<_, _> = candidates.collect();
        let seed = u64::from_le_bytes(random());
        let view_of = |handle: ChunkHandle| views.get(&handle).cloned();
        let jobs = soft.repairs.begin(view_of, &mut servers, &state.tuning(), seed, now);
        // From here on nobody else does anything to that replica.
        joining.extend(jobs.iter().map(|job| (job.chunk, job.to)));
        (steps, jobs)
    }

    async fn step(&self, step: Step) {
        let (chunk, server, change) = match step {
            Step::Join(chunk, server, digest) => (chunk, server, Change::AddReplica { chunk, server, digest }),
            Step::Drop(chunk, server, why) => (chunk, server, Change::DropReplica { chunk, server, why }),
        };
        // Something else is under way there: what it leads to is not known yet.
        if !lock(&self.joining).insert((chunk, server)) {
            return;
        }
        match self.core.submit(change).await {
            Ok(_) => {
                info!(%chunk, %server, ?step, "replicas of a chunk changed");
                match step {
                    Step::Join(..) => self.counters.joined.add(1),
                    Step::Drop(..) => self.counters.dropped.add(1),
                }
            }
            Err(fault) => debug!(%chunk, %server, ?step, %fault, "replicas of a chunk stay as they are"),
        }
        self.soft().repairs.stepped(chunk, server);
        lock(&self.joining).remove(&(chunk, server));
    }

    async fn copy(&self, job: Job) {
        let Job { chunk, to, .. } = job;
        let outcome = self.make_copy(&job).await;
        match &outcome {
            Ok(Cloned { fetched, kept }) => info!(%chunk, %to, fetched, kept, "chunk has one more copy"),
            Err(error) => info!(%chunk, %to, %error, "copy of a chunk failed"),
        }
        let made = outcome.ok().map(|made| (made.fetched, made.kept));
        self.soft().repairs.ended(chunk, made, clock::now());
        lock(&self.joining).remove(&(chunk, to));
        self.repair_work.notify_one();
    }

    async fn make_copy(&self, job: &Job) -> Result<Cloned, CallError> {
        let Job { chunk, to, .. } = *job;
        let has_other = self.core.look(|state| {
            let row = state.chunk(chunk)?;
            let is_stray = self.soft().repairs.strays_of(chunk).any(|(server, _)| server == to);
            Some((row.stale.contains(&to) || is_stray) && !row.members.contains(&to))
        });
        if has_other == Some(true) {
            // What is there now does not count: this entry is the permission to replace it.
            let change = Change::DropReplica { chunk, server: to, why: Dropping::Stale };
            self.core.submit(change).await.map_err(CallError::Refused)?;
        }
        let gone = || CallError::Unreachable("the chunk or the server is gone".into());
        let (clone, target, is_holder) = self.core.look(|state| self.clone_of(state, job)).ok_or_else(gone)?;
        let made = self.peers.call(&target, chunk, &clone, CLONE_TIMEOUT).await?;
        if !is_holder {
            self.count_copy(chunk, to, clone.digest).await.map_err(CallError::Refused)?;
        }
        self.soft().condemned.remove(&(chunk, to));
        Ok(made)
    }

    fn clone_of(&self, state: &State, job: &Job) -> Option<(CloneChunk, wire::member::Member, bool)> {
        let row = state.chunk(job.chunk)?;
        let Phase::Sealed { len, last_seq, digest } = row.phase else { return None };
        let clone = CloneChunk {
            term: self.term(),
            chunk: job.chunk,
            epoch: row.epoch,
            last_seq,
            len,
            digest,
            file: row.file,
            prev: row.prev,
            sources: members(state, &job.sources),
            authority: state.dropped(job.chunk, job.to).map_or(0, |dropped| dropped.authority),
            rate: job.rate,
        };
        (!clone.sources.is_empty()).then_some(())?;
        Some((clone, member(state, job.to)?, row.members.contains(&job.to)))
    }

    /// The copy is durable there: it counts when that is logged.
    async fn count_copy(&self, chunk: ChunkHandle, server: ServerId, digest: [u8; 16]) -> Result<(), Fault> {
        let Err(fault) = self.core.submit(Change::AddReplica { chunk, server, digest }).await else { return Ok(()) };
        if fault.kind == Kind::NotFound {
            // Its file was deleted meanwhile: the copy goes the way of the others.
            let change = Change::DropReplica { chunk, server, why: Dropping::Surplus };
            if let Err(fault) = self.core.submit(change).await {
                warn!(%chunk, %server, %fault, "a copy of a chunk that is gone stays");
            }
        }
        Err(fault)
    }
}
