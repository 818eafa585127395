//! Replicas of sealed chunks that come and go: AddReplica, DropReplica, Freed; servers that are drained;
//! how fast repair may be.

use wire::limits::MEMBERS_MAX;
use wire::{ChunkHandle, Fault, Kind, ServerId};

use super::chunks::no_chunk;
use super::rows::{Drained, Dropped, Tuning};
use super::{Applied, Phase, State};
use crate::master::entry::{Answer, Change, Dropping, Entry, Lsn};

/// The one row of its table.
const TUNING: u64 = 0;

impl State {
    pub(super) fn add_replica(
        &mut self,
        handle: ChunkHandle,
        server: ServerId,
        has: [u8; 16],
    ) -> Result<Applied, Fault> {
        let chunk = self.chunk(handle).ok_or_else(|| no_chunk(handle))?;
        match chunk.phase {
            Phase::Sealed { digest, .. } if digest != has => {
                return Err(Fault::new(Kind::Conflict, format!("chunk {handle} has other content by now")));
            }
            Phase::Sealed { .. } if !chunk.members.contains(&server) => {}
            _ => return Err(Fault::new(Kind::Conflict, "only a sealed chunk gets one more holder, once")),
        }
        if chunk.members.len() >= MEMBERS_MAX {
            return Err(Fault::new(Kind::Conflict, format!("chunk {handle} has {MEMBERS_MAX} holders already")));
        }
        let mut chunk = chunk.clone();
        chunk.stale.retain(|other| *other != server);
        chunk.members.push(server);
        self.put_chunk(handle, chunk);
        self.dropped.remove(&(handle, server));
        Ok(Applied::new(Answer::Done, []))
    }

    /// A replica does not count any more. A holder goes only while enough others are in the log.
    pub(super) fn drop_replica(
        &mut self,
        lsn: Lsn,
        entry: &Entry,
        handle: ChunkHandle,
        server: ServerId,
        why: Dropping,
    ) -> Result<Applied, Fault> {
        if self.dropped.contains(&(handle, server)) {
            return Ok(Applied::new(Answer::Done, []));
        }
        if let Some(chunk) = self.chunk(handle) {
            if !matches!(chunk.phase, Phase::Sealed { .. }) {
                return Err(Fault::new(Kind::Conflict, format!("chunk {handle} is not sealed: all its chain counts")));
            }
            let mut chunk = chunk.clone();
            let others = chunk.members.iter().filter(|other| **other != server).count();
            let least = if why == Dropping::Drained { 1 } else { chunk.wanted as usize };
            if chunk.members.contains(&server) && others < least {
                return Err(Fault::new(Kind::Conflict, format!("chunk {handle} would have {others} holders")));
            }
            chunk.members.retain(|other| *other != server);
            chunk.stale.retain(|other| *other != server);
            self.put_chunk(handle, chunk);
        } else {
            // One authority for each replica: this one.
            let tomb = self.tombs.edit(&handle).ok_or_else(|| no_chunk(handle))?;
            tomb.servers.retain(|other| *other != server);
            if tomb.servers.is_empty() {
                self.tombs.remove(&handle);
            }
        }
        self.dropped.insert((handle, server), Dropped { authority: lsn, why, at_ms: entry.now_ms });
        Ok(Applied::new(Answer::Done, []))
    }

    pub(super) fn freed(&mut self, handle: ChunkHandle, server: ServerId) -> Result<Applied, Fault> {
        if self.dropped.remove(&(handle, server)).is_some() {
            return Ok(Applied::new(Answer::Done, []));
        }
        let tomb = self.tombs.edit(&handle).ok_or_else(|| no_chunk(handle))?;
        tomb.servers.retain(|other| *other != server);
        if tomb.servers.is_empty() {
            self.tombs.remove(&handle);
        }
        Ok(Applied::new(Answer::Done, []))
    }

    pub(super) fn drain(&mut self, entry: &Entry, server: ServerId, drain: bool) -> Result<Applied, Fault> {
        if self.server(server).is_none() {
            return Err(Fault::new(
                Kind::NotFound,
                format!("no server has the id {server}: `hercules servers` lists them"),
            ));
        }
        if !drain {
            self.drained.remove(&server);
        } else if !self.drained.contains(&server) {
            self.drained.insert(server, Drained { since_ms: entry.now_ms });
        }
        Ok(Applied::new(Answer::Done, []))
    }

    pub(super) fn tune(&mut self, change: &Change) -> Applied {
        let Change::Tune { paused, server_rate, cluster_rate, .. } = change else {
            unreachable!("called for this change only")
        };
        let old = self.tuning();
        let tuning = Tuning {
            paused: paused.unwrap_or(old.paused),
            server_rate: server_rate.unwrap_or(old.server_rate),
            cluster_rate: cluster_rate.unwrap_or(old.cluster_rate),
        };
        self.tunings.insert(TUNING, tuning);
        Applied::new(Answer::Done, [])
    }

    /// The permission to free a replica that does not count any more.
    #[must_use]
    pub fn dropped(&self, handle: ChunkHandle, server: ServerId) -> Option<&Dropped> {
        self.dropped.get(&(handle, server))
    }

    /// Servers with a replica of this chunk that does not count any more.
    pub fn dropped_of(&self, handle: ChunkHandle) -> impl Iterator<Item = (ServerId, &Dropped)> {
        let range = (handle, ServerId(0))..=(handle, ServerId(u32::MAX));
        self.dropped.range(range).map(|((_, server), dropped)| (*server, dropped))
    }

    /// Servers with a replica of this chunk that does not count any more and can still be read: a location
    /// that was given out before may name them.
    pub fn left_out_of(&self, handle: ChunkHandle) -> Vec<ServerId> {
        let stale = self.chunk(handle).map(|chunk| chunk.stale.clone()).unwrap_or_default();
        stale.into_iter().chain(self.dropped_of(handle).map(|(server, _)| server)).collect()
    }

    /// All replicas that do not count any more and were not freed yet.
    pub fn all_dropped(&self) -> impl Iterator<Item = (ChunkHandle, ServerId, &Dropped)> {
        self.dropped.iter().map(|((chunk, server), dropped)| (*chunk, *server, dropped))
    }

    /// Servers that are drained, and since when, unix milliseconds.
    pub fn drained(&self) -> impl Iterator<Item = (ServerId, u64)> {
        self.drained.iter().map(|(server, drained)| (*server, drained.since_ms))
    }

    /// Whether a server is drained.
    #[must_use]
    pub fn is_drained(&self, server: ServerId) -> bool {
        self.drained.contains(&server)
    }

    /// How fast repair may be.
    #[must_use]
    pub fn tuning(&self) -> Tuning {
        self.tunings.get(&TUNING).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use wire::{ClusterId, Epoch, RequestId, Seq};

    use super::*;
    use crate::master::entry::ServerRecord;

    const CHUNK: ChunkHandle = ChunkHandle(1);

    fn apply(state: &mut State, change: Change) -> Result<Answer, Fault> {
        let entry = state.stamp(change, 1000);
        state.apply(state.applied() + 1, &entry).map(|applied| applied.answer)
    }

    fn request(number: u64) -> RequestId {
        RequestId { client: [1; 16], number }
    }

    /// A chunk that is sealed on servers 1 to 3 of four; two replicas are wanted.
    fn sealed() -> State {
        let mut state = State::default();
        apply(&mut state, Change::Found { cluster: ClusterId([5; 16]) }).unwrap();
        for server in 1..=4 {
            let address = format!("a:{server}");
            let record = ServerRecord {
                disk: [server; 16],
                address,
                admin: String::new(),
                shards: 1,
                zone: String::new(),
                version: String::new(),
            };
            apply(&mut state, Change::Register { server: ServerId(server.into()), record }).unwrap();
        }
        let upload = Change::BeginUpload { request: request(1), content_type: String::new(), replicas: 2 };
        let Answer::Inode(file) = apply(&mut state, upload).unwrap() else { panic!("an upload has an inode") };
        let members: Vec<ServerId> = (1..=3).map(ServerId).collect();
        apply(&mut state, Change::OpenChunk { file, members: members.clone() }).unwrap();
        let refused = apply(&mut state, drop_of(1, Dropping::Surplus)).unwrap_err();
        assert_eq!(refused.kind, Kind::Conflict, "of an open chunk every member counts");
        let sealed = Change::Sealed {
            chunk: CHUNK,
            epoch: Epoch(1),
            len: 100,
            last_seq: Seq(1),
            digest: [7; 16],
            holders: members,
            dedup: vec![],
        };
        apply(&mut state, sealed).unwrap();
        state
    }

    fn drop_of(server: u32, why: Dropping) -> Change {
        Change::DropReplica { chunk: CHUNK, server: ServerId(server), why }
    }

    fn members(state: &State) -> Vec<u32> {
        state.chunk(CHUNK).unwrap().members.iter().map(|server| server.0).collect()
    }

    #[test]
    fn a_holder_is_dropped_only_while_enough_others_are_in_the_log() {
        let mut state = sealed();
        assert_eq!(state.left_out_of(CHUNK), []);
        apply(&mut state, drop_of(1, Dropping::Surplus)).unwrap();
        assert_eq!(state.left_out_of(CHUNK), [ServerId(1)], "a reader may not have heard of it");
        let authority = state.applied();
        assert_eq!(members(&state), [2, 3]);
        assert_eq!(state.dropped(CHUNK, ServerId(1)).unwrap().authority, authority);
        apply(&mut state, drop_of(1, Dropping::Stale)).unwrap();
        assert_eq!(state.dropped(CHUNK, ServerId(1)).unwrap().authority, authority, "one authority for one replica");
        assert_eq!(apply(&mut state, drop_of(2, Dropping::Surplus)).unwrap_err().kind, Kind::Conflict);
        apply(&mut state, drop_of(2, Dropping::Drained)).unwrap();
        assert_eq!(apply(&mut state, drop_of(3, Dropping::Drained)).unwrap_err().kind, Kind::Conflict, "the last");
        assert_eq!(members(&state), [3]);
    }

    #[test]
    fn a_copy_in_its_place_ends_the_permission_and_so_does_its_end() {
        let mut state = sealed();
        apply(&mut state, drop_of(1, Dropping::Surplus)).unwrap();
        let Phase::Sealed { digest, .. } = state.chunk(CHUNK).unwrap().phase else { panic!("it is sealed") };
        let other = Change::AddReplica { chunk: CHUNK, server: ServerId(1), digest: digest.map(|byte| !byte) };
        assert_eq!(apply(&mut state, other).unwrap_err().kind, Kind::Conflict, "a copy of what it was before");
        apply(&mut state, Change::AddReplica { chunk: CHUNK, server: ServerId(1), digest }).unwrap();
        assert_eq!((members(&state), state.all_dropped().count()), (vec![2, 3, 1], 0));
        apply(&mut state, drop_of(2, Dropping::Surplus)).unwrap();
        apply(&mut state, Change::Freed { chunk: CHUNK, server: ServerId(2) }).unwrap();
        assert_eq!(state.all_dropped().count(), 0);
        assert_eq!(members(&state), [3, 1]);
    }

    #[test]
    fn a_replica_that_was_dropped_keeps_its_permission_when_its_file_is_deleted() {
        let mut state = sealed();
        apply(&mut state, drop_of(1, Dropping::Surplus)).unwrap();
        let file = state.chunk(CHUNK).unwrap().file;
        apply(&mut state, Change::AbortUpload { request: request(2), inode: file }).unwrap();
        assert_eq!(state.tomb(CHUNK).unwrap().servers, [ServerId(2), ServerId(3)]);
        assert!(state.dropped(CHUNK, ServerId(1)).is_some());
        // A copy that was on its way meanwhile.
        apply(&mut state, drop_of(4, Dropping::Surplus)).unwrap();
        for server in 1..=4 {
            apply(&mut state, Change::Freed { chunk: CHUNK, server: ServerId(server) }).unwrap();
        }
        assert!(state.tomb(CHUNK).is_none() && state.all_dropped().count() == 0);
    }

    #[test]
    fn drains_and_rates_are_rows_and_come_back_with_the_others() {
        let mut state = sealed();
        let drain = |number, drain| Change::Drain { request: request(number), server: ServerId(2), drain };
        apply(&mut state, drain(3, true)).unwrap();
        let tune = Change::Tune { request: request(4), paused: Some(true), server_rate: Some(9), cluster_rate: None };
        apply(&mut state, tune).unwrap();
        apply(&mut state, drop_of(1, Dropping::Surplus)).unwrap();
        let mut loaded = State::default();
        for (name, rows) in crate::master::state::TABLES.iter().zip(state.dump()) {
            for (key, value) in rows {
                loaded.load(name, &key, &value.unwrap()).unwrap();
            }
        }
        loaded.rebuild().unwrap();
        assert!(loaded.dump() == state.dump());
        assert!(loaded.is_drained(ServerId(2)) && !loaded.is_drained(ServerId(1)));
        assert_eq!((loaded.tuning().paused, loaded.tuning().server_rate), (true, 9));
        assert!(loaded.dropped(CHUNK, ServerId(1)).is_some());
        apply(&mut loaded, drain(5, false)).unwrap();
        assert!(!loaded.is_drained(ServerId(2)));
        let unknown = Change::Drain { request: request(6), server: ServerId(9), drain: true };
        assert_eq!(apply(&mut loaded, unknown).unwrap_err().kind, Kind::NotFound);
    }
}
