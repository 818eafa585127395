//! REOPEN: a sealed replica takes its place in a chain again, for overwrites (replication.md, section 9).

use engine::runtime::Runtime;
use engine::store::ReopenArgs;
use wire::chain::Reopen;
use wire::member::ReplicaState;
use wire::message::Done;
use wire::{Fault, Kind};

use super::fault;
use super::shard::Shard;

impl<R: Runtime> Shard<R> {
    /// REOPEN, durable; then the replica is in the chain of the new epoch.
    pub(crate) async fn reopen(&self, reopen: Reopen) -> Result<Done, Fault> {
        let Reopen { term, chunk, epoch, members, my_position, len, digest } = reopen;
        let position = usize::from(my_position);
        let is_me = members.get(position).is_some_and(|member| member.server == self.me.server);
        if !is_me || chunk.shard(self.me.shards) != self.me.shard {
            let text = format!("server {} shard {} is not meant", self.me.server, self.me.shard);
            return Err(Fault::new(Kind::Invalid, text));
        }
        let servers = members.iter().map(|member| member.server).collect();
        let args = ReopenArgs { term, chunk, epoch, members: servers, my_position, len, digest };
        self.store.reopen(args).await.map_err(|error| fault::of_store(&error))?;
        // The same REOPEN again must not revive a replica that promised or restarted meanwhile.
        let view = self.store.view(chunk).ok_or_else(|| self.no_chunk())?;
        if view.state == ReplicaState::Open && view.epoch == epoch && view.promised == epoch {
            if self.replicas.borrow().get(&chunk).is_some_and(|replica| replica.epoch != epoch) {
                self.close_replica(chunk);
            }
            self.open_replica(chunk, epoch, position, members);
            tracing::info!(%chunk, %epoch, position, "replica re-opened");
        }
        self.changed(chunk);
        Ok(Done)
    }
}
