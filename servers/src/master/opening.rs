//! Opening the chunk at the end of a file: log OpenChunk, CREATE on all members, and only when all
//! have it durably is it given out. One opening per file at a time, shared by all who wait.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tracing::{info, warn};
use wire::chain::Create;
use wire::{ChunkHandle, Fault, InodeId, Kind, Reason, ServerId};

use super::core::random;
use super::entry::{Answer, Change};
use super::peers::CallError;
use super::placement;
use super::shared::{Master, Opening, lock, members};
use super::state::{Phase, Place};
use crate::clock;

/// How long members may take to CREATE, first try; twice as long at each further one: a disk that is
/// busy is not a disk that is gone.
const CREATE_TIMEOUT: Duration = Duration::from_millis(500);
/// Handles tried before the caller is told.
const ATTEMPTS: u32 = 4;

impl Master {
    /// Makes sure that a chunk is open at the end of the file, and that its members know. Durable.
    pub(super) fn open_tail(self: &Arc<Self>, file: InodeId) -> Opening {
        let mut opening = lock(&self.opening);
        if let Some(outcome) = opening.get(&file) {
            return outcome.clone();
        }
        let (sender, outcome) = watch::channel(None);
        opening.insert(file, outcome.clone());
        let master = Arc::clone(self);
        self.spawn(async move {
            let result = master.open(file).await;
            lock(&master.opening).remove(&file);
            sender.send_replace(Some(result));
            master.wake_waiters();
        });
        outcome
    }

    async fn open(self: &Arc<Self>, file: InodeId) -> Result<(), Fault> {
        let mut avoid = BTreeSet::new();
        let mut last = None;
        for attempt in 0..ATTEMPTS {
            let tail = self.core.ask(|state| state.tail(file)).await?;
            let timeout = CREATE_TIMEOUT * 2_u32.pow(attempt);
            match tail {
                Some(tail) if tail.chunk.phase != Phase::Open => return Ok(()),
                Some(tail) if self.soft().ready.contains(&tail.handle) => return Ok(()),
                // From an earlier life: its members may have restarted, or never have heard of it.
                Some(tail) => {
                    if self.create_everywhere(tail.handle, timeout).await.is_err() {
                        self.start_seal(tail.handle);
                    }
                    return Ok(());
                }
                None => {}
            }
            let chunk = self.place_and_log(file, &mut avoid).await?;
            let Err(failed) = self.create_everywhere(chunk, timeout).await else {
                self.counters.opened.add(1);
                return Ok(());
            };
            self.counters.abandoned.add(1);
            self.core.submit(Change::Abandon { chunk }).await?;
            avoid.extend(failed);
            last = Some(chunk);
        }
        warn!(%file, chunk = ?last, "no chain could be made");
        Err(Fault::new(Kind::Unavailable, format!("no chain of chunkservers could be made in {ATTEMPTS} tries")))
    }

    async fn place_and_log(&self, file: InodeId, avoid: &mut BTreeSet<ServerId>) -> Result<ChunkHandle, Fault> {
        let now = clock::now();
        let mut candidates = self.core.look(|state| self.soft().candidates(state, now));
        let (wanted, least) = (self.config.replicas as usize, self.config.min_ack_replicas as usize);
        if candidates.iter().filter(|candidate| !avoid.contains(&candidate.server)).count() < least {
            // Rather one that was slow a moment ago than none.
            avoid.clear();
        }
        candidates.retain(|candidate| !avoid.contains(&candidate.server));
        let seed = u64::from_le_bytes(random());
        let chosen = placement::choose(&candidates, wanted, least, seed);
        let members = chosen.ok_or_else(|| {
            Fault::new(
                Kind::Unavailable,
                format!("no enough servers for {least} replicas: {} can take a chunk", candidates.len()),
            )
        })?;
        self.soft().placed(&members, now);
        match self.core.submit(Change::OpenChunk { file, members }).await? {
            Answer::Chunk(chunk) => Ok(chunk),
            other => unreachable!("opening a chunk answers with its handle, not {other:?}"),
        }
    }

    /// CREATE on all members of an open chunk. On success it is ready; else who failed.
    async fn create_everywhere(&self, handle: ChunkHandle, timeout: Duration) -> Result<(), Vec<ServerId>> {
        let request = self.core.look(|state| {
            let Place { chunk, .. } = state.place_of(handle)?;
            let create = Create {
                term: self.term(),
                chunk: handle,
                epoch: chunk.epoch,
                members: members(state, &chunk.members),
                my_position: 0,
                prev: chunk.prev,
                file: chunk.file,
                dedup: state.inherited(chunk.file),
            };
            Some(create)
        });
        let Some(create) = request else { return Err(vec![]) };
        let calls = create.members.iter().zip(0_u8..).map(|(member, my_position)| {
            let create = Create { my_position, ..create.clone() };
            async move { (member.server, self.peers.call(member, handle, &create, timeout).await) }
        });
        let mut failed = vec![];
        for (server, result) in join_all(calls).await {
            if let Err(error) = result {
                if !matches!(&error, CallError::Refused(fault) if fault.reason == Reason::ChunkExists) {
                    info!(chunk = %handle, %server, %error, "member does not take the chunk");
                }
                failed.push(server);
            }
        }
        if !failed.is_empty() {
            return Err(failed);
        }
        self.soft().ready.insert(handle);
        Ok(())
    }
}
