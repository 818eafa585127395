//! Replicas of sealed chunks that the log counts and nobody can read: on a disk that failed, or that is
//! missing since its server started. They stay holders, since the disk may come back, and nothing is
//! freed for them; readers are sent to others first, and the chunk counts as one with too few replicas.
//!
//! Not logged: reports bring it back. Pure.

use std::collections::{BTreeSet, HashMap};

use wire::heartbeat::{ChunkReport, InventoryPage};
use wire::member::ReplicaState;
use wire::{ChunkHandle, ServerId};

use super::state::{Phase, State};

/// What reports say about replicas that are of no use.
#[derive(Debug, Default)]
pub(super) struct Unfit {
    replicas: BTreeSet<(ChunkHandle, ServerId)>,
    /// How far the inventory that is coming in has come.
    at: HashMap<ServerId, ChunkHandle>,
}

impl Unfit {
    /// Whether this holder's replica is of no use now.
    pub(super) fn has(&self, chunk: ChunkHandle, server: ServerId) -> bool {
        self.replicas.contains(&(chunk, server))
    }

    /// Takes the reports of one heartbeat in; in an inventory, what the log knows and the page leaves out.
    pub(super) fn heard(
        &mut self,
        state: &State,
        server: ServerId,
        chunks: &[ChunkReport],
        page: Option<InventoryPage>,
    ) {
        if let Some(page) = page {
            self.missing(state, server, chunks, page);
        }
        for report in chunks {
            let key = (report.chunk, server);
            if report.damaged && report.state == ReplicaState::Sealed && holds(state, report.chunk, server) {
                self.replicas.insert(key);
            } else {
                self.replicas.remove(&key);
            }
        }
    }

    fn missing(&mut self, state: &State, server: ServerId, chunks: &[ChunkReport], page: InventoryPage) {
        let after = if page.first { None } else { self.at.remove(&server) };
        let after = after.unwrap_or_default();
        let upto = if page.last { ChunkHandle(u64::MAX) } else { chunks.last().map_or(after, |last| last.chunk) };
        let reported: BTreeSet<ChunkHandle> = chunks.iter().map(|report| report.chunk).collect();
        let there = state.chunks_between(after, upto).filter(|(handle, _)| !reported.contains(handle));
        let lost = there.filter(|(_, row)| matches!(row.phase, Phase::Sealed { .. }) && row.members.contains(&server));
        self.replicas.extend(lost.map(|(handle, _)| (handle, server)));
        if !page.last {
            self.at.insert(server, upto);
        }
    }

    /// Forgets replicas that the log no longer counts.
    pub(super) fn forget(&mut self, state: &State) {
        self.replicas.retain(|(chunk, server)| holds(state, *chunk, *server));
    }

    /// Chunks that have as many holders as wanted, and one of them of no use.
    pub(super) fn degraded(&self, state: &State) -> usize {
        let chunks: BTreeSet<ChunkHandle> = self.replicas.iter().map(|(chunk, _)| *chunk).collect();
        let full =
            |chunk: &&ChunkHandle| state.chunk(**chunk).is_some_and(|row| row.members.len() >= row.wanted as usize);
        chunks.iter().filter(full).count()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.replicas.len()
    }
}

fn holds(state: &State, chunk: ChunkHandle, server: ServerId) -> bool {
    state.chunk(chunk).is_some_and(|row| matches!(row.phase, Phase::Sealed { .. }) && row.members.contains(&server))
}
