//! What the master knows and does not log: who is alive, how full, what was reported. It is gone
//! after a restart, and reports bring it back.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use wire::heartbeat::{Liveness, Space};
use wire::limits::CHUNK_SIZE;
use wire::{ChunkHandle, ServerId};

use super::liveness::Arrivals;
use super::placement::Candidate;
use super::repair::Repairs;
use super::state::{Phase, State};
use super::unfit::Unfit;

/// After this long without reports from everybody, safe mode ends all the same.
const SAFE_MODE_MAX: Duration = Duration::from_secs(600);
/// Space a server must have left to get a new chunk.
const FREE_MIN: u64 = 4 * CHUNK_SIZE as u64;
/// Creations count as recent for this long.
const RECENT: Duration = Duration::from_secs(10);

/// A server that has registered in this life of the master.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    pub(super) boot: u64,
    pub(super) arrivals: Arrivals,
    pub(super) since: Duration,
    pub(super) space: Space,
    pub(super) chunks: u64,
    /// Its connection closed and it has not come back.
    pub(super) gone: bool,
    /// It has reported everything it holds.
    pub(super) inventoried: bool,
    /// Open chunks seen in the inventory that is coming in.
    pub(super) seen: HashSet<ChunkHandle>,
    /// Chunks it reported that this log does not know.
    pub(super) orphans: u64,
    recent: Vec<Duration>,
}

/// All of it.
#[derive(Debug)]
pub(super) struct Soft {
    started: Duration,
    dead_after: Duration,
    pub(super) servers: BTreeMap<ServerId, Heard>,
    /// Open chunks whose members have all confirmed them in this life: only these are given out.
    pub(super) ready: HashSet<ChunkHandle>,
    /// Last reported lengths of open chunks.
    pub(super) hints: HashMap<ChunkHandle, u32>,
    /// Replicas of sealed chunks that are of no use now.
    pub(super) unfit: Unfit,
    /// Which chunks need another copy, or have one too many.
    pub(super) repairs: Repairs,
    /// When replicas under a tombstone, or that count no more, were condemned.
    pub(super) condemned: HashMap<(ChunkHandle, ServerId), Duration>,
    /// When a stale replica was last asked to join again.
    pub(super) rejoined: HashMap<(ChunkHandle, ServerId), Duration>,
    /// Until enough servers have reported.
    pub(super) safe_mode: bool,
    /// Reports know more than the log: it lost entries. Nothing is deleted in this life.
    pub(super) log_lost: bool,
    /// Seals that need an operator.
    pub(super) alarms: u64,
}

impl Soft {
    pub(super) fn new(started: Duration, dead_after: Duration) -> Self {
        Self {
            started,
            dead_after,
            servers: BTreeMap::new(),
            ready: HashSet::new(),
            hints: HashMap::new(),
            unfit: Unfit::default(),
            repairs: Repairs::default(),
            condemned: HashMap::new(),
            rejoined: HashMap::new(),
            safe_mode: true,
            log_lost: false,
            alarms: 0,
        }
    }

    pub(super) fn registered(&mut self, server: ServerId, boot: u64, now: Duration) {
        let heard = Heard {
            boot,
            arrivals: Arrivals::new(now),
            since: now,
            space: Space::default(),
            chunks: 0,
            gone: false,
            inventoried: false,
            seen: HashSet::new(),
            orphans: 0,
            recent: vec![],
        };
        self.servers.insert(server, heard);
    }

    /// How the master sees a server. One not heard of yet in this life has the time of a silent one;
    /// one that has registered is not alive before its first heartbeat says what space it has.
    pub(super) fn liveness(&self, server: ServerId, now: Duration) -> Liveness {
        match self.servers.get(&server) {
            Some(heard) => match heard.arrivals.liveness(now, self.dead_after) {
                Liveness::Alive if heard.gone || heard.space == Space::default() => Liveness::Suspect,
                liveness => liveness,
            },
            None if now.saturating_sub(self.started) > self.dead_after => Liveness::Dead,
            None => Liveness::Suspect,
        }
    }

    /// Whether open chunks must leave this server: it is suspect, and had its time to come back.
    pub(super) fn is_lost(&self, server: ServerId, now: Duration) -> bool {
        match (self.liveness(server, now), self.servers.get(&server)) {
            (Liveness::Alive, _) | (Liveness::Suspect, None) => false,
            // A restart of the server closes its connection, too; reports tell what became of its chunks.
            (Liveness::Suspect, Some(heard)) => heard.arrivals.liveness(now, self.dead_after) != Liveness::Alive,
            (Liveness::Dead, _) => true,
        }
    }

    /// Servers that may get a new chunk.
    pub(super) fn candidates(&mut self, state: &State, now: Duration) -> Vec<Candidate> {
        let alive: Vec<ServerId> =
            self.servers.keys().copied().filter(|server| self.liveness(*server, now) == Liveness::Alive).collect();
        let alive = alive.into_iter().filter(|server| !state.is_drained(*server));
        let mut candidates = vec![];
        for server in alive {
            let (Some(heard), Some(record)) = (self.servers.get_mut(&server), state.server(server)) else { continue };
            heard.recent.retain(|at| now.saturating_sub(*at) < RECENT);
            let free = heard.space.free.saturating_sub(FREE_MIN);
            if free > 0 {
                let recent = u64::try_from(heard.recent.len()).unwrap_or(u64::MAX);
                candidates.push(Candidate { server, zone: record.zone.clone(), free, recent });
            }
        }
        candidates
    }

    /// Bytes free for new chunks, and taken by those there are.
    pub(super) fn room(&self, server: ServerId) -> (u64, u64) {
        let space = self.servers.get(&server).map(|heard| heard.space).unwrap_or_default();
        (space.free.saturating_sub(FREE_MIN), space.used)
    }

    pub(super) fn placed(&mut self, members: &[ServerId], now: Duration) {
        for member in members {
            if let Some(heard) = self.servers.get_mut(member) {
                heard.recent.push(now);
            }
        }
    }

    /// How many servers have been alive for at least `for_long`.
    pub(super) fn alive_for(&self, for_long: Duration, now: Duration) -> usize {
        let old = |(server, heard): &(&ServerId, &Heard)| {
            self.liveness(**server, now) == Liveness::Alive && now.saturating_sub(heard.since) >= for_long
        };
        self.servers.iter().filter(old).count()
    }

    /// Ends safe mode once enough of the known servers have reported; `true` when it ends now.
    pub(super) fn leave_safe_mode(&mut self, state: &State, now: Duration) -> bool {
        // A drained one is not waited for: what it holds is elsewhere, or an operator knows that it is gone.
        let waited_for =
            |server: ServerId, record: &super::entry::ServerRecord| record.disk != [0; 16] && !state.is_drained(server);
        let formatted = state.servers().filter(|(server, record)| waited_for(*server, record));
        let (mut known, mut reported) = (0, 0);
        for (server, _) in formatted {
            known += 1;
            reported += usize::from(self.servers.get(&server).is_some_and(|heard| heard.inventoried));
        }
        let ends = may_leave(known, reported, now.saturating_sub(self.started));
        let leaves = self.safe_mode && ends;
        self.safe_mode &= !ends;
        leaves
    }

    /// Drops what was kept about chunks that are not open any more, or gone.
    pub(super) fn forget_closed(&mut self, state: &State) {
        let open =
            |chunk: &ChunkHandle| state.chunk(*chunk).is_some_and(|row| !matches!(row.phase, Phase::Sealed { .. }));
        self.ready.retain(open);
        self.hints.retain(|chunk, _| open(chunk));
        self.unfit.forget(state);
    }

    /// Deletion is allowed.
    pub(super) fn may_delete(&self) -> bool {
        !self.safe_mode && !self.log_lost
    }
}

/// 99 % of the known servers have reported, or ten minutes have passed.
fn may_leave(known: usize, reported: usize, since_start: Duration) -> bool {
    known - reported <= known / 100 || since_start >= SAFE_MODE_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn safe_mode_waits_for_99_of_100_servers_or_ten_minutes() {
        let early = Duration::from_secs(1);
        assert!(may_leave(0, 0, early), "a new cluster has nobody to wait for");
        assert!(!may_leave(3, 2, early));
        assert!(may_leave(3, 3, early));
        assert!(!may_leave(100, 98, early));
        assert!(may_leave(100, 99, early));
        assert!(may_leave(3, 0, SAFE_MODE_MAX));
    }

    #[test]
    fn a_server_not_heard_of_yet_is_given_the_time_of_a_silent_one() {
        let soft = Soft::new(Duration::from_secs(100), Duration::from_secs(30));
        assert!(!soft.is_lost(ServerId(1), Duration::from_secs(130)));
        assert!(soft.is_lost(ServerId(1), Duration::from_secs(131)));
    }

    #[test]
    fn a_closed_connection_keeps_new_chunks_away_at_once_and_open_ones_only_after_silence() {
        let second = Duration::from_secs(1);
        let mut soft = Soft::new(Duration::ZERO, second * 30);
        soft.registered(ServerId(1), 7, second);
        soft.servers.get_mut(&ServerId(1)).unwrap().gone = true;
        assert_eq!(soft.liveness(ServerId(1), second), Liveness::Suspect);
        assert!(!soft.is_lost(ServerId(1), second));
        assert!(soft.is_lost(ServerId(1), second * 20));
    }
}
