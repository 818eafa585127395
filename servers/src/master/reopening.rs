//! Re-opening a sealed chunk for overwrites (replication.md, section 9): log Reopen, REOPEN on all members,
//! and only when all have it durably, and nobody can still be reading from a holder that was left
//! out, is it given out. One re-opening per chunk at a time, shared by all who wait.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tracing::{info, warn};
use wire::chain::Reopen;
use wire::heartbeat::Liveness;
use wire::limits::MEMBERS_MAX;
use wire::locate::{Locations, Position};
use wire::member::Member;
use wire::seal::Confirm;
use wire::{ChunkHandle, Fault, InodeId, Kind, ServerId};

use super::entry::Change;
use super::locate::{LEASE, no_file};
use super::peers::CallError;
use super::shared::{Master, Opening, lock, members};
use super::state::{Fixed, Phase};
use crate::clock;

/// How long a member may take to REOPEN: it loads the checksums of the whole chunk first.
const REOPEN_TIMEOUT: Duration = Duration::from_secs(2);
/// Chains tried before the caller is told.
const ATTEMPTS: u32 = 3;

/// Who is in the chain of a re-opened chunk, and who is left out.
#[derive(Debug, PartialEq, Eq)]
struct Chosen {
    members: Vec<ServerId>,
    dropped: Vec<ServerId>,
    /// Somebody may read from a replica that will be old: of those dropped, or of an earlier chain.
    left_out: bool,
}

/// Chooses among the holders those that answer; `None` when they are fewer than an acknowledgement needs.
/// `former`: those that were holders.
fn choose(holders: &[ServerId], former: &[ServerId], fit: impl Fn(ServerId) -> bool, least: usize) -> Option<Chosen> {
    let mut members: Vec<ServerId> = holders.iter().copied().filter(|server| fit(*server)).collect();
    members.truncate(MEMBERS_MAX);
    let dropped: Vec<ServerId> = holders.iter().copied().filter(|server| !members.contains(server)).collect();
    let left_out = !dropped.is_empty() || !former.is_empty();
    (members.len() >= least.max(1)).then_some(Chosen { members, dropped, left_out })
}

impl Master {
    /// The chunk that holds this byte, ready for overwrites.
    ///
    /// # Errors
    ///
    /// `Invalid` past the end; `NotFound`; `Unavailable` when too few holders answer.
    pub(super) async fn locate_write(self: &Arc<Self>, file: InodeId, at: Position) -> Result<Locations, Fault> {
        let mut changes = self.changes();
        loop {
            changes.borrow_and_update();
            let found = self.core.ask(|state| {
                if state.chunk_count(file).is_none() || !state.reachable(file) {
                    return Err(no_file(file));
                }
                let place = state.place(file, state.index_at(file, at));
                let place =
                    place.ok_or_else(|| Fault::new(Kind::Invalid, "nothing can be overwritten past the end"))?;
                let ready = place.chunk.fixed.is_some() && self.soft().ready.contains(&place.handle);
                let answer = ready.then(|| self.locations(state, file, vec![self.locate_in(state, place.clone()).0]));
                Ok((place.handle, place.chunk.phase, place.chunk.fixed.is_some(), answer))
            });
            let (chunk, phase, fixed, answer) = found.await??;
            let reopening = lock(&self.reopening).get(&chunk).cloned();
            match (phase, answer, reopening) {
                (Phase::Open, Some(answer), _) => return Ok(answer),
                (Phase::Sealed { .. }, _, _) => wait(self.reopen(chunk)).await?,
                (Phase::Open, None, Some(outcome)) if fixed => wait(outcome).await?,
                // Just done; or left from an earlier life, and sealed soon: either wakes those who wait.
                (Phase::Open, None, None) if fixed => {
                    let _ = changes.changed().await;
                }
                // Takes appends: its length is made final first.
                _ => {
                    self.start_seal(chunk);
                    let _ = changes.changed().await;
                }
            }
        }
    }

    /// Re-opens a sealed chunk, unless that is under way.
    fn reopen(self: &Arc<Self>, chunk: ChunkHandle) -> Opening {
        let mut reopening = lock(&self.reopening);
        if let Some(outcome) = reopening.get(&chunk) {
            return outcome.clone();
        }
        let (sender, outcome) = watch::channel(None);
        reopening.insert(chunk, outcome.clone());
        let master = Arc::clone(self);
        self.spawn(async move {
            let result = master.reopen_on_holders(chunk).await;
            lock(&master.reopening).remove(&chunk);
            sender.send_replace(Some(result));
            master.wake_waiters();
        });
        outcome
    }

    async fn reopen_on_holders(self: &Arc<Self>, chunk: ChunkHandle) -> Result<(), Fault> {
        let mut avoid = BTreeSet::new();
        for _ in 0..ATTEMPTS {
            if !self.sealed_again(chunk).await {
                return Ok(());
            }
            let Some((epoch, chosen)) = self.choose_members(chunk, &avoid)? else { return Ok(()) };
            let Chosen { members, dropped, left_out } = chosen;
            match self.core.submit(Change::Reopen { chunk, epoch, members, dropped }).await {
                Ok(_) => {}
                // Deleted, or moved on: whoever waits looks again.
                Err(fault) if matches!(fault.kind, Kind::NotFound | Kind::Conflict) => return Ok(()),
                Err(fault) => return Err(fault),
            }
            let logged = clock::now();
            let Err(failed) = self.reopen_everywhere(chunk).await else {
                if left_out {
                    // Locations that name a holder which was left out have expired by then.
                    tokio::time::sleep((logged + LEASE).saturating_sub(clock::now())).await;
                }
                self.core.look(|state| {
                    let is_current = |row: &super::state::Chunk| row.phase == Phase::Open && row.epoch == epoch;
                    if state.chunk(chunk).is_some_and(is_current) {
                        self.soft().ready.insert(chunk);
                    }
                });
                info!(%chunk, %epoch, "chunk re-opened");
                return Ok(());
            };
            warn!(%chunk, %epoch, ?failed, "holders did not re-open the chunk: it is sealed, and tried without them");
            avoid.extend(failed);
            self.start_seal(chunk);
        }
        Err(Fault::new(Kind::Unavailable, format!("chunk {chunk} could not be re-opened in {ATTEMPTS} tries")))
    }

    /// Waits while the chunk is being sealed; `false` when it is gone.
    async fn sealed_again(self: &Arc<Self>, chunk: ChunkHandle) -> bool {
        let mut changes = self.changes();
        loop {
            changes.borrow_and_update();
            match self.core.look(|state| state.chunk(chunk).map(|row| row.phase)) {
                None => return false,
                Some(Phase::Sealed { .. }) => return true,
                Some(_) => {
                    let _ = changes.changed().await;
                }
            }
        }
    }

    fn choose_members(
        &self,
        chunk: ChunkHandle,
        avoid: &BTreeSet<ServerId>,
    ) -> Result<Option<(wire::Epoch, Chosen)>, Fault> {
        let now = clock::now();
        let least = self.config.min_ack_replicas as usize;
        self.core.look(|state| {
            let soft = self.soft();
            let Some(row) = state.chunk(chunk) else { return Ok(None) };
            let fit = |server| {
                let alive = soft.liveness(server, now) == Liveness::Alive;
                alive && !avoid.contains(&server) && !soft.unfit.has(chunk, server)
            };
            let chosen = choose(&row.members, &state.left_out_of(chunk), fit, least).ok_or_else(|| {
                let text = format!("fewer than {least} holders of chunk {chunk} answer: nothing can be written there");
                Fault::new(Kind::Unavailable, text)
            })?;
            Ok(Some((row.epoch_max().next(), chosen)))
        })
    }

    /// REOPEN on all members. On success all have it durably; else who failed.
    async fn reopen_everywhere(&self, chunk: ChunkHandle) -> Result<(), Vec<ServerId>> {
        let request = self.core.look(|state| {
            let row = state.chunk(chunk).filter(|row| row.phase == Phase::Open)?;
            let Fixed { epoch: sealed_in, len, digest } = row.fixed?;
            let (term, members) = (self.term(), members(state, &row.members));
            let reopen = Reopen { term, chunk, epoch: row.epoch, members, my_position: 0, len, digest };
            Some((Confirm { term, chunk, epoch: sealed_in, len, digest }, reopen))
        });
        let Some((confirm, reopen)) = request else { return Err(vec![]) };
        let calls = reopen.members.iter().zip(0_u8..).map(|(member, my_position)| {
            let reopen = Reopen { my_position, ..reopen.clone() };
            async move { (member.server, self.reopen_one(member, chunk, &confirm, &reopen).await) }
        });
        let mut failed = vec![];
        for (server, result) in join_all(calls).await {
            if let Err(error) = result {
                info!(%chunk, %server, %error, "holder does not re-open the chunk");
                failed.push(server);
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(failed) }
    }

    async fn reopen_one(
        &self,
        member: &Member,
        chunk: ChunkHandle,
        confirm: &Confirm,
        reopen: &Reopen,
    ) -> Result<(), CallError> {
        // It may not have heard yet that the chunk is sealed.
        self.peers.call(member, chunk, confirm, REOPEN_TIMEOUT).await?;
        self.peers.call(member, chunk, reopen, REOPEN_TIMEOUT).await.map(drop)
    }
}

async fn wait(mut outcome: Opening) -> Result<(), Fault> {
    match outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone()) {
        Ok(Some(result)) => result,
        // Closed without a value: the master stops.
        _ => Err(Fault::new(Kind::Unavailable, "the master is stopping: ask again")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLDERS: [ServerId; 3] = [ServerId(4), ServerId(2), ServerId(9)];

    #[test]
    fn holders_that_do_not_answer_are_left_out_and_named() {
        let chosen = choose(&HOLDERS, &[], |server| server != ServerId(2), 2).unwrap();
        assert_eq!(chosen.members, [ServerId(4), ServerId(9)]);
        assert_eq!(chosen.dropped, [ServerId(2)]);
        assert!(chosen.left_out);
        let all = choose(&HOLDERS, &[], |_| true, 2).unwrap();
        assert!(all.dropped.is_empty() && !all.left_out);
        assert!(choose(&HOLDERS, &[ServerId(7)], |_| true, 2).unwrap().left_out, "a member of the last chain");
    }

    #[test]
    fn nothing_is_re_opened_on_fewer_holders_than_an_acknowledgement_needs() {
        assert_eq!(choose(&HOLDERS, &[], |server| server == ServerId(2), 2), None);
        assert!(choose(&HOLDERS, &[], |server| server == ServerId(2), 1).is_some());
        assert_eq!(choose(&HOLDERS, &[], |_| false, 0), None);
    }
}
