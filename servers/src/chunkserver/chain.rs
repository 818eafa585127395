//! CREATE, TABLE, CONDEMN and FREE: the life of a replica, at the master's word.

use engine::runtime::Runtime;
use engine::store::CreateArgs;
use wire::chain::{Condemn, Create, Free, Table, TableOk};
use wire::member::ReplicaState;
use wire::message::Done;
use wire::{Fault, Kind, Reason};

use super::fault;
use super::shard::Shard;

impl<R: Runtime> Shard<R> {
    /// CREATE: an empty replica, durable; then it takes its place in the chain.
    pub(crate) async fn create(&self, create: Create) -> Result<Done, Fault> {
        let position = usize::from(create.my_position);
        let is_me = create.members.get(position).is_some_and(|member| member.server == self.me.server);
        if !is_me || create.chunk.shard(self.me.shards) != self.me.shard {
            let text = format!("server {} shard {} is not meant", self.me.server, self.me.shard);
            return Err(Fault::new(Kind::Invalid, text));
        }
        let (chunk, epoch) = (create.chunk, create.epoch);
        let args = CreateArgs {
            term: create.term,
            chunk,
            epoch,
            members: create.members.iter().map(|member| member.server).collect(),
            my_position: create.my_position,
            prev: create.prev,
            file: create.file,
            dedup: create.dedup,
        };
        self.store.create(args).await.map_err(|error| fault::of_store(&error))?;
        // The same CREATE again must not revive a replica that promised or restarted meanwhile.
        let view = self.store.view(chunk).ok_or_else(|| self.no_chunk())?;
        if view.state == ReplicaState::Open && view.epoch == epoch && view.promised == epoch {
            self.open_replica(chunk, epoch, position, create.members);
        }
        self.changed(chunk);
        Ok(Done)
    }

    /// TABLE: the dedup table.
    pub(crate) fn table(&self, table: Table) -> Result<TableOk, Fault> {
        match self.store.view(table.chunk) {
            Some(view) if view.state != ReplicaState::Condemned => Ok(TableOk { dedup: self.store.dedup(table.chunk) }),
            Some(_) => Err(fault::refusal(Reason::UnknownChunk, 0)),
            None => Err(self.no_chunk()),
        }
    }

    /// CONDEMN: out of service; the bytes stay.
    pub(crate) async fn condemn(&self, condemn: Condemn) -> Result<Done, Fault> {
        let Condemn { term, chunk, authority, now_unix } = condemn;
        need_authority(authority)?;
        self.store.condemn(term, chunk, authority, now_unix).await.map_err(|error| fault::of_store(&error))?;
        tracing::info!(%chunk, authority, "replica condemned");
        self.close_replica(chunk);
        self.changed(chunk);
        Ok(Done)
    }

    /// FREE: the slot of a condemned replica may be used again.
    pub(crate) async fn free(&self, free: Free) -> Result<Done, Fault> {
        need_authority(free.authority)?;
        self.store.free(free.term, free.chunk, free.authority).await.map_err(|error| fault::of_store(&error))?;
        tracing::info!(chunk = %free.chunk, authority = free.authority, "replica freed");
        self.changed(free.chunk);
        Ok(Done)
    }
}

/// A server frees nothing by its own judgement, and nothing by a command that cannot name the entry
/// of the master's log that allows it.
fn need_authority(authority: u64) -> Result<(), Fault> {
    if authority == 0 { Err(Fault::new(Kind::Invalid, "no authority in the master's log is named")) } else { Ok(()) }
}
