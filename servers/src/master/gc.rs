//! The end of deleted files: from the trash to tombstones, then CONDEMN, and much later FREE. Each
//! step is logged before the next, and nothing happens in safe mode.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tracing::{info, warn};
use wire::chain::{Condemn, Free};
use wire::member::Member;
use wire::{ChunkHandle, Fault, Kind, RequestId};

use super::entry::{Change, Lsn};
use super::peers::CallError;
use super::repair;
use super::shared::{Master, lock, member};
use crate::clock;

/// Entries of one kind per round: others need the log, too.
const ROUND_MAX: usize = 64;
/// Replicas looked after per round, and at the same time.
const REPLICAS_MAX: usize = 2000;
const CALLS_MAX: usize = 32;
/// CONDEMN and FREE are one flush each.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// A replica under a tombstone.
struct Doomed {
    chunk: ChunkHandle,
    member: Member,
    authority: Lsn,
}

impl Master {
    /// Collects until the master stops.
    pub(super) async fn collect_garbage(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.config.gc_every).await;
            if !self.soft().may_delete() {
                continue;
            }
            if let Err(fault) = self.empty_trash().await {
                warn!(%fault, "trash stays");
            }
            Arc::clone(&self).bury_replicas().await;
        }
    }

    async fn empty_trash(&self) -> Result<(), Fault> {
        let now_ms = clock::unix_ms();
        let before = |keep: Duration| now_ms.saturating_sub(u64::try_from(keep.as_millis()).unwrap_or(u64::MAX));
        let old = before(self.config.trash_keep);
        let next = || {
            self.core.look(|state| state.trashed().find(|(_, trashed)| trashed.deleted_ms < old).map(|(lsn, _)| lsn))
        };
        for _ in 0..ROUND_MAX {
            let Some(trash) = next() else { break };
            self.core.submit(Change::Purge { trash }).await?;
            self.counters.purges.add(1);
        }
        let begun_before = before(self.config.upload_keep);
        let uploads: Vec<_> = self.core.look(|state| state.uploads_before(begun_before).take(ROUND_MAX).collect());
        for inode in uploads {
            info!(%inode, "upload was never published");
            self.core.submit(Change::AbortUpload { request: RequestId::default(), inode }).await?;
        }
        Ok(())
    }

    async fn bury_replicas(self: Arc<Self>) {
        let (now, now_ms) = (clock::now(), clock::unix_ms());
        let doomed: Vec<_> = self.core.look(|state| {
            let holds = state.tombs().filter(|(_, tomb)| tomb.from_ms <= now_ms);
            let replicas =
                holds.flat_map(|(chunk, tomb)| tomb.servers.iter().map(move |server| (chunk, tomb, *server)));
            let soft = self.soft();
            let servers = repair::servers(state, &soft, now);
            // Of a chunk that lives: only while it is not missed.
            let dropped = state.all_dropped().filter(|(chunk, _, dropped)| match state.chunk(*chunk) {
                Some(row) => repair::view(state, &soft, *chunk, row, now)
                    .is_some_and(|view| !repair::is_missed(&view, &servers, dropped.why)),
                None => true,
            });
            let replicas = replicas.map(|(chunk, tomb, server)| (chunk, tomb.authority, server));
            let replicas = replicas.chain(dropped.map(|(chunk, server, dropped)| (chunk, dropped.authority, server)));
            let reachable = replicas.filter_map(|(chunk, authority, server)| {
                Some(Doomed { chunk, member: member(state, server)?, authority })
            });
            // Condemned and waiting: nothing to do for them in this round.
            let due = |doomed: &Doomed| {
                let server = doomed.member.server;
                let alive = soft.servers.get(&server).is_some_and(|heard| !heard.gone);
                let condemned = soft.condemned.get(&(doomed.chunk, server));
                alive && condemned.is_none_or(|at| now >= *at + self.config.condemned_keep)
            };
            reachable.filter(due).take(REPLICAS_MAX).collect()
        });
        stream::iter(doomed).for_each_concurrent(CALLS_MAX, |doomed| Arc::clone(&self).bury(doomed)).await;
    }

    async fn bury(self: Arc<Self>, doomed: Doomed) {
        let Doomed { chunk, member, authority } = doomed;
        let key = (chunk, member.server);
        // Nothing else may be under way there: a copy that comes in its place is not to be condemned.
        if !lock(&self.joining).insert(key) {
            return;
        }
        let is_allowed = self.core.look(|state| {
            let tomb = state.tomb(chunk).filter(|tomb| tomb.servers.contains(&member.server));
            let tomb = tomb.map(|tomb| tomb.authority);
            tomb.or_else(|| state.dropped(chunk, member.server).map(|dropped| dropped.authority)) == Some(authority)
        });
        let is_settled = !is_allowed || self.bury_one(chunk, &member, authority).await;
        if is_settled {
            lock(&self.joining).remove(&key);
        } else {
            // The command may still arrive; after its deadline it is not obeyed any more.
            let master = Arc::clone(&self);
            self.spawn(async move {
                tokio::time::sleep(CALL_TIMEOUT).await;
                lock(&master.joining).remove(&key);
            });
        }
    }

    /// CONDEMN, or FREE when its time has come; `false` when the outcome is not known.
    async fn bury_one(&self, chunk: ChunkHandle, member: &Member, authority: Lsn) -> bool {
        let key = (chunk, member.server);
        let condemned = self.soft().condemned.contains_key(&key);
        let term = self.term();
        let result = if condemned {
            self.peers.call(member, chunk, &Free { term, chunk, authority }, CALL_TIMEOUT).await
        } else {
            let now_unix = clock::unix_ms() / 1000;
            self.peers.call(member, chunk, &Condemn { term, chunk, authority, now_unix }, CALL_TIMEOUT).await
        };
        match result {
            Ok(_) if !condemned => {
                self.counters.condemned.add(1);
                self.soft().condemned.insert(key, clock::now());
            }
            Ok(_) => self.freed(chunk, member).await,
            // Never made there, or freed already and the answer was lost.
            Err(CallError::Refused(fault)) if fault.kind == Kind::NotFound => self.freed(chunk, member).await,
            Err(error) => {
                tracing::debug!(%chunk, server = %member.server, %error, "replica stays for now");
                return matches!(error, CallError::Refused(_));
            }
        }
        true
    }

    async fn freed(&self, chunk: ChunkHandle, member: &Member) {
        self.counters.freed.add(1);
        match self.core.submit(Change::Freed { chunk, server: member.server }).await {
            Ok(_) => drop(self.soft().condemned.remove(&(chunk, member.server))),
            Err(fault) => tracing::debug!(%chunk, %fault, "tombstone stays for now"),
        }
    }
}
