//! LOCATE: where the bytes of a file are, and where its next ones go.

use std::sync::Arc;
use std::time::Duration;

use wire::heartbeat::Liveness;
use wire::limits::PAGE_ENTRIES_MAX;
use wire::locate::{Intent, Locate, LocateChunk, Location, Locations};
use wire::member::ChunkState;
use wire::{Fault, InodeId, Kind};

use super::shared::{Master, members};
use super::state::{Phase, Place, State};
use crate::clock;

/// A location may be used for this long. A chain that has changed refuses by its epoch; but a holder
/// that was left out of a re-opened chunk cannot know, so its overwrites begin only after this time.
const EXPIRE_MS: u32 = 5_000;
/// [`EXPIRE_MS`], with a margin for clocks that run at different speeds.
pub(super) const LEASE: Duration = Duration::from_millis(5_500);
/// Bytes of one page of locations at most.
const PAGE_LEN_MAX: usize = 512 << 10;

impl Master {
    pub(super) async fn locate(self: &Arc<Self>, request: Locate) -> Result<Locations, Fault> {
        match request.intent {
            Intent::Read => self.core.ask(|state| self.locate_read(state, request)).await?,
            Intent::Append => self.locate_append(request.file).await,
            Intent::Write => self.locate_write(request.file, request.at).await,
        }
    }

    pub(super) async fn locate_chunk(&self, request: LocateChunk) -> Result<Locations, Fault> {
        let found = self.core.ask(|state| {
            let place = state.place_of(request.chunk)?;
            let file = place.chunk.file;
            Some(self.locations(state, file, vec![self.locate_in(state, place).0]))
        });
        found.await?.ok_or_else(|| Fault::new(Kind::NotFound, format!("chunk {} is not found", request.chunk)))
    }

    fn locate_read(&self, state: &State, request: Locate) -> Result<Locations, Fault> {
        let Locate { file, at, count, .. } = request;
        let chunks = state.chunk_count(file).ok_or_else(|| no_file(file))?;
        let first = state.index_at(file, at);
        let (mut items, mut bytes) = (vec![], 0);
        for index in first..chunks.min(first.saturating_add(count.clamp(1, PAGE_ENTRIES_MAX))) {
            let Some(place) = state.place(file, index) else { break };
            let (item, known) = self.locate_in(state, place);
            bytes += 128 + item.members.iter().map(|member| member.address.len() + 32).sum::<usize>();
            if !known || (bytes > PAGE_LEN_MAX && !items.is_empty()) {
                break;
            }
            items.push(item);
        }
        Ok(self.locations(state, file, items))
    }

    async fn locate_append(self: &Arc<Self>, file: InodeId) -> Result<Locations, Fault> {
        let mut changes = self.changes();
        loop {
            changes.borrow_and_update();
            let tail = self.core.ask(|state| {
                if state.chunk_count(file).is_none() || !state.reachable(file) {
                    return Err(no_file(file));
                }
                let Some(place) = state.tail(file) else { return Ok(None) };
                let ready = self.soft().ready.contains(&place.handle);
                let phase = place.chunk.phase;
                let answer = ready.then(|| self.locations(state, file, vec![self.locate_in(state, place.clone()).0]));
                Ok(Some((place.handle, phase, answer)))
            });
            match tail.await?? {
                Some((_, Phase::Open, Some(answer))) => return Ok(answer),
                Some((chunk, Phase::Sealing(_), _)) => {
                    self.start_seal(chunk);
                    let _ = changes.changed().await;
                }
                _ => {
                    let mut outcome = self.open_tail(file);
                    // Closed without a value: the master stops, and the caller's deadline ends this.
                    let outcome = outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone());
                    match outcome {
                        Ok(Some(Err(fault))) => return Err(fault),
                        Ok(_) => {}
                        Err(_) => return Err(Fault::new(Kind::Unavailable, "the master is stopping: ask again")),
                    }
                    // A chunk from an earlier life may be on its way to be sealed: that takes a moment.
                    let open =
                        self.core.look(|state| state.tail(file).is_some_and(|tail| tail.chunk.phase == Phase::Open));
                    let ready = self
                        .core
                        .look(|state| state.tail(file).is_some_and(|tail| self.soft().ready.contains(&tail.handle)));
                    if open && !ready {
                        let _ = changes.changed().await;
                    }
                }
            }
        }
    }

    pub(super) fn locations(&self, state: &State, file: InodeId, items: Vec<Location>) -> Locations {
        Locations {
            items,
            version: state.version(file).unwrap_or_default(),
            chunk_count: state.chunk_count(file).unwrap_or_default(),
        }
    }

    /// A place with its servers, and whether it may be given out: an open chunk of this life only once
    /// all its members have it.
    pub(super) fn locate_in(&self, state: &State, place: Place) -> (Location, bool) {
        let Place { index, start, handle, chunk } = place;
        let soft = self.soft();
        let now = clock::now();
        let mut servers = chunk.members.clone();
        let (chunk_state, len) = match chunk.phase {
            Phase::Open | Phase::Sealing(_) if chunk.fixed.is_some() => (ChunkState::Reopened, chunk.len()),
            Phase::Open => (ChunkState::Open, soft.hints.get(&handle).copied().unwrap_or(0)),
            Phase::Sealing(_) => (ChunkState::Sealing, soft.hints.get(&handle).copied().unwrap_or(0)),
            Phase::Sealed { len, .. } => {
                // Those that can answer come first.
                servers.sort_by_key(|server| {
                    (soft.liveness(*server, now) != Liveness::Alive, soft.unfit.has(handle, *server))
                });
                (ChunkState::Sealed, len)
            }
        };
        let known = chunk.phase != Phase::Open
            || chunk.fixed.is_some()
            || handle < self.first_chunk
            || soft.ready.contains(&handle);
        let location = Location {
            file: chunk.file,
            index,
            start,
            chunk: handle,
            state: chunk_state,
            epoch: chunk.epoch,
            len,
            members: members(state, &servers),
            expire_ms: EXPIRE_MS,
        };
        (location, known)
    }
}

pub(super) fn no_file(file: InodeId) -> Fault {
    Fault::new(Kind::NotFound, format!("file {file} is not found: it was deleted or replaced"))
}
