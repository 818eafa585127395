//! Repair of whole chunks: which need another copy, from whom to whom, and which have one too many.
//!
//! `judge` decides about one chunk, `queue` which of them are next, `eject` whether a death is believed;
//! all three are pure. `drive` carries it out: a copy is made by CLONE and counts when AddReplica is in
//! the log; what is too much counts no more when DropReplica is in the log, and only then `gc` condemns it.
//! `operate` answers the operator.

mod drive;
mod eject;
mod judge;
mod operate;
mod queue;

use std::time::Duration;

use wire::heartbeat::Liveness;
use wire::{ChunkHandle, ServerId};

use super::entry::ServerRecord;
use super::soft::Soft;
use super::state::{Chunk, Phase, State};

use judge::{Seen, Servers, View};
pub(super) use queue::{Repairs, is_missed};

/// All servers as repair sees them, without what runs.
pub(super) fn servers(state: &State, soft: &Soft, now: Duration) -> Servers {
    let seen = |(server, record): (ServerId, &ServerRecord)| {
        let liveness = soft.liveness(server, now);
        let drained = state.is_drained(server);
        let (free, used) = soft.room(server);
        let gone = liveness == Liveness::Dead && (drained || soft.repairs.is_ejected(server));
        let zone = record.zone.clone();
        (server, Seen { alive: liveness == Liveness::Alive, gone, drained, zone, free, used, into: 0, out_of: 0 })
    };
    state.servers().map(seen).collect()
}

/// A sealed chunk as repair sees it; `None` while it is not sealed.
pub(super) fn view(state: &State, soft: &Soft, handle: ChunkHandle, row: &Chunk, now: Duration) -> Option<View> {
    if !matches!(row.phase, Phase::Sealed { .. }) {
        return None;
    }
    let repairs = &soft.repairs;
    let missed = row.stale.iter().copied().filter(|server| repairs.is_unjoinable(handle, *server));
    let strays = repairs
        .strays_of(handle)
        .filter(|(_, digest)| digest.is_none() || *digest != row.digest())
        .map(|(server, _)| server);
    let dropped = state.dropped_of(handle).map(|(server, _)| server);
    Some(View {
        wanted: row.wanted as usize,
        holders: row.members.iter().map(|server| (*server, soft.unfit.has(handle, *server))).collect(),
        stale: missed.chain(strays).chain(dropped).collect(),
        barred: vec![],
        asked: repairs.is_asked(handle, now),
    })
}
