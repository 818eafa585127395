//! Clones among the stores of one shard: on which disk a copy from elsewhere is made, and what becomes of
//! an older one.

use engine::runtime::Runtime;
use engine::store::{Import, ImportArgs, StoreError};
use wire::{ChunkHandle, Term};

use super::stores::Stores;

impl<R: Runtime> Stores<R> {
    /// See [`engine::store::Store::block_crcs`].
    pub(crate) async fn block_crcs(&self, chunk: ChunkHandle) -> Result<Vec<Option<u32>>, StoreError> {
        self.at(chunk)?.block_crcs(chunk).await
    }

    /// Begins a copy: in the place of an older one on the same disk, where that disk takes new chunks, else
    /// on another disk. An older copy on a disk that works needs an `authority` to be replaced; one on a
    /// disk that failed is not touched.
    pub(crate) async fn begin_clone(&self, args: ImportArgs, authority: u64) -> Result<Import<R>, StoreError> {
        self.obey(args.term)?;
        let home = self.home(args.chunk).filter(|home| self.disks()[*home].store.view(args.chunk).is_some());
        let Some(home) = home else {
            let disk = self.choose(args.chunk, &std::collections::BTreeSet::new()).await?;
            return self.disks()[disk].store.begin_import(args).await;
        };
        let store = &self.disks()[home].store;
        if store.fenced().is_some() {
            let disk = self.choose(args.chunk, &std::collections::BTreeSet::from([home])).await?;
            return self.disks()[disk].store.begin_import(args).await;
        }
        if authority == 0 {
            // Says which copy is in the way.
            return store.begin_import(args).await;
        }
        match store.begin_replacement(args.clone(), authority).await {
            Err(StoreError::NoSpace) if self.disks().len() > 1 => {
                let disk = self.choose(args.chunk, &std::collections::BTreeSet::from([home])).await?;
                self.disks()[disk].store.begin_import(args).await
            }
            other => other,
        }
    }

    /// The copy is durable: the chunk lives there now. What another disk still has of it goes.
    pub(crate) async fn cloned(&self, term: Term, chunk: ChunkHandle, authority: u64, import: &Import<R>) {
        let Some(disk) = self.disks().iter().position(|on| on.store.is_mine(import)) else { return };
        let old = self.set_home(chunk, disk).filter(|old| *old != disk);
        let Some(store) = old.map(|old| &self.disks()[old].store) else { return };
        if authority == 0 || store.fenced().is_some() {
            return;
        }
        let gone = async {
            store.condemn(term, chunk, authority, 0).await?;
            store.free(term, chunk, authority).await
        };
        if let Err(error) = gone.await {
            tracing::warn!(%chunk, %error, "an older copy stays on another disk");
        }
    }
}
