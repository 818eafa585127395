//! Holders of sealed chunks: CONFIRM, and how a replica that missed a seal joins again.

use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, info, warn};
use wire::heartbeat::Liveness;
use wire::member::{Member, ReplicaState};
use wire::seal::{Confirm, Prepare, Seal};
use wire::{ChunkHandle, Epoch, Fault, Kind, Reason, Seq, ServerId};

use super::entry::Change;
use super::peers::CallError;
use super::shared::{Master, lock, member};
use super::state::Phase;
use crate::clock;

/// CONFIRM is one flush.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two tries of one that was not answered.
const CONFIRM_PAUSE: Duration = Duration::from_secs(1);
/// SEAL to a stale replica: copies what it lacks, 32 MiB at most.
const JOIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two tries of one stale replica.
const JOIN_PAUSE: Duration = Duration::from_secs(10);
/// Stale replicas that fill at the same time.
const JOINING_MAX: usize = 8;

/// A sealed chunk as its holders must have it.
#[derive(Clone, Copy, Debug)]
struct Final {
    epoch: Epoch,
    len: u32,
    last_seq: Seq,
    digest: [u8; 16],
}

impl Master {
    /// Tells all holders of a sealed chunk that it is.
    pub(super) fn confirm_all(self: &Arc<Self>, chunk: ChunkHandle) {
        let holders = self.core.look(|state| state.chunk(chunk).map(|row| row.members.clone()).unwrap_or_default());
        for server in holders {
            self.confirm(chunk, server);
        }
    }

    /// Tells one holder.
    pub(super) fn confirm(self: &Arc<Self>, chunk: ChunkHandle, server: ServerId) {
        if !lock(&self.joining).insert((chunk, server)) {
            return;
        }
        let master = Arc::clone(self);
        self.spawn(async move {
            while let Some((row, member, _)) = master.sealed(chunk, server)
                && let Err(error) = master.send_confirm(&member, chunk, row).await
            {
                debug!(%chunk, %server, %error, "CONFIRM failed");
                if matches!(error, CallError::Refused(_)) {
                    warn!(%chunk, %server, %error, "replica is stale: it has not what was sealed");
                    master.counters.stale.add(1);
                    break;
                }
                // A report speaks of a change once. One that is dead will report everything when it is back.
                if master.soft().liveness(server, clock::now()) == Liveness::Dead {
                    break;
                }
                tokio::time::sleep(CONFIRM_PAUSE).await;
            }
            lock(&master.joining).remove(&(chunk, server));
        });
    }

    /// Lets a replica that missed the seal fill what it lacks, and counts it as a holder then.
    pub(super) fn join(self: &Arc<Self>, chunk: ChunkHandle, server: ServerId) {
        let now = clock::now();
        {
            let mut soft = self.soft();
            let recent = soft.rejoined.get(&(chunk, server)).is_some_and(|at| now < *at + JOIN_PAUSE);
            if recent || !soft.may_delete() {
                return;
            }
            let mut joining = lock(&self.joining);
            if joining.len() >= JOINING_MAX || !joining.insert((chunk, server)) {
                return;
            }
            soft.rejoined.retain(|_, at| now < *at + JOIN_PAUSE);
            soft.rejoined.insert((chunk, server), now);
        }
        let master = Arc::clone(self);
        self.spawn(async move {
            match master.bring_in_line(chunk, server).await {
                Ok(()) => {
                    info!(%chunk, %server, "replica joined again");
                    master.soft().repairs.stepped(chunk, server);
                }
                Err(error) => {
                    debug!(%chunk, %server, %error, "replica cannot join again");
                    master.soft().repairs.not_joined(chunk, server, is_for_good(&error));
                }
            }
            lock(&master.joining).remove(&(chunk, server));
        });
    }

    async fn bring_in_line(&self, chunk: ChunkHandle, server: ServerId) -> Result<(), CallError> {
        let gone = || CallError::Unreachable("the chunk or the server is gone".into());
        let (row, member, source) = self.sealed(chunk, server).ok_or_else(gone)?;
        let source = source.ok_or_else(gone)?;
        let Final { epoch, len, last_seq, digest } = row;
        let term = self.term();
        let has = self.peers.call(&member, chunk, &Prepare { term, chunk, epoch }, CONFIRM_TIMEOUT).await?;
        if has.state != ReplicaState::Sealed {
            let seal = Seal { term, chunk, epoch, last_seq, len, digest, source };
            self.peers.call(&member, chunk, &seal, JOIN_TIMEOUT).await?;
            self.send_confirm(&member, chunk, row).await?;
        } else if (has.len, has.digest) != (len, digest) {
            return Err(CallError::Refused(Fault::refused(Reason::StaleEpoch, 0, "it is sealed with other content")));
        }
        self.core.submit(Change::AddReplica { chunk, server, digest }).await.map(drop).map_err(CallError::Refused)
    }

    async fn send_confirm(&self, member: &Member, chunk: ChunkHandle, row: Final) -> Result<(), CallError> {
        let Final { epoch, len, digest, .. } = row;
        let confirm = Confirm { term: self.term(), chunk, epoch, len, digest };
        self.peers.call(member, chunk, &confirm, CONFIRM_TIMEOUT).await.map(drop)
    }

    /// A sealed chunk, how to reach one server, and a holder other than it.
    fn sealed(&self, chunk: ChunkHandle, server: ServerId) -> Option<(Final, Member, Option<Member>)> {
        self.core.look(|state| {
            let row = state.chunk(chunk)?;
            let Phase::Sealed { len, last_seq, digest } = row.phase else { return None };
            let source = row.members.iter().find(|holder| **holder != server);
            let source = source.and_then(|source| member(state, *source));
            Some((Final { epoch: row.epoch, len, last_seq, digest }, member(state, server)?, source))
        })
    }

    /// Records a planned seal: FINAL is committed on the whole chain.
    ///
    /// # Errors
    ///
    /// What the state refuses; a seal that is under way or done is fine.
    pub(super) async fn finished(self: &Arc<Self>, request: wire::report::Finished) -> Result<(), Fault> {
        let wire::report::Finished { chunk, epoch, last_seq, len, digest, dedup } = request;
        let open = self.core.look(|state| {
            let row = state.chunk(chunk).filter(|row| row.phase == Phase::Open && row.epoch == epoch)?;
            Some(row.members.clone())
        });
        // Being sealed: the seal path finds the same content. Sealed or gone: nothing is left to do.
        let Some(holders) = open else { return Ok(()) };
        self.soft().ready.remove(&chunk);
        match self.core.submit(Change::Sealed { chunk, epoch, len, last_seq, digest, holders, dedup }).await {
            Ok(_) => {
                self.counters.finished.add(1);
                Ok(())
            }
            Err(fault) if matches!(fault.kind, Kind::Sealed | Kind::StaleEpoch | Kind::NotFound) => Ok(()),
            Err(fault) => Err(fault),
        }
    }
}

/// Asking again would not help: only a copy does.
fn is_for_good(error: &CallError) -> bool {
    let CallError::Refused(fault) = error else { return false };
    let passes = matches!(fault.kind, Kind::Overloaded | Kind::Unavailable | Kind::Unknown | Kind::NoSpace);
    fault.reason == Reason::TooFar || (!passes && fault.reason != Reason::OldTerm)
}
