//! Replacing a copy that is worth less than the one that comes: an older or a damaged one.
//!
//! The new copy is an import into a slot of its own, while the old one stays what it is, so that what
//! both have in common need not come from elsewhere ([`Store::block_crcs`]). When all of the new one is
//! durable the old one is condemned and then, in one step with the INSTALL of the new one, freed: FREE
//! comes first in the journal, so no crash leaves two. What a crash in between leaves is the condemned
//! copy, and the master says again what shall become of it.

use std::rc::Rc;

use wire::ChunkHandle;

use super::StoreError;
use super::import::Import;
use super::layout::{BLOCK, PAGE, align_up};
use super::log::Class;
use super::read::in_place;
use super::replica::crcs_of_padded;
use super::shard::{Inner, Store};
use super::types::ImportArgs;
use crate::runtime::Runtime;

impl<R: Runtime> Store<R> {
    /// As [`Store::begin_import`], of a chunk that is here with other content. [`Import::finish`]
    /// condemns and frees what is here then, under `authority`: the LSN in the master's log that allows
    /// it. Given up, the old copy stays what it is.
    ///
    /// # Errors
    ///
    /// As [`Store::begin_import`], without `ChunkExists`; `finish` gives `Mismatch` too when what is here
    /// was condemned under another authority.
    pub async fn begin_replacement(&self, args: ImportArgs, authority: u64) -> Result<Import<R>, StoreError> {
        let import = self.inner.keep_slot_for(args, Some(authority)).await?;
        let allocated = self.inner.state.borrow().allocated(import.slot);
        self.inner.has_room(align_up(import.args.len).saturating_sub(allocated)).await?;
        self.inner.take_space(import.slot, &import.file, import.args.len, &[align_up(import.args.len)]).await?;
        Ok(import)
    }

    /// Whether a copy on its way is one of this store.
    #[must_use]
    pub fn is_mine(&self, import: &Import<R>) -> bool {
        Rc::ptr_eq(&self.inner, &import.inner)
    }

    /// The checksum of each block of what is durable here, that of a partial last one with zeros behind
    /// it. `None`: it is not known, because the page with it is damaged.
    ///
    /// # Errors
    ///
    /// `UnknownChunk`, of a condemned one too; `ReadFailed`, `Fenced`.
    pub async fn block_crcs(&self, chunk: ChunkHandle) -> Result<Vec<Option<u32>>, StoreError> {
        let inner = &self.inner;
        inner.check()?;
        let end = inner.state.borrow().live(chunk)?.durable.len / BLOCK;
        inner.load_crcs(chunk, 0, end).await?;
        let state = inner.state.borrow();
        let held = state.live(chunk)?;
        let crc = |block: u32| {
            let seen = held.replica.seen(block..block + 1, 1, state.log.durable_lsn, |_| None);
            seen.ok().and_then(|seen| seen.crcs.first().copied())
        };
        let mut crcs: Vec<Option<u32>> = (0..in_place(held)).map(crc).collect();
        if !held.durable.tail.is_empty() {
            crcs.push(Some(crcs_of_padded(&held.durable.tail)));
        }
        Ok(crcs)
    }
}

impl<R: Runtime> Inner<R> {
    /// The old copy leaves reads, durably.
    pub(super) async fn condemn_old(self: &Rc<Self>, args: &ImportArgs, authority: u64) -> Result<(), StoreError> {
        let store = Store { inner: Rc::clone(self) };
        store.condemn(args.term, args.chunk, authority, 0).await
    }

    /// The step before INSTALL: frees what is here, if anything is. There is room for both records.
    pub(super) fn free_old(self: &Rc<Self>, args: &ImportArgs, authority: u64) -> Result<(), StoreError> {
        {
            let mut state = self.state.borrow_mut();
            let state = &mut *state;
            if let Err(error) = state.log.room(2 * PAGE, Class::Work) {
                self.checkpoint_soon(state);
                return Err(error);
            }
        }
        self.free_now(args.term, args.chunk, authority).map(drop)
    }
}
