//! REOPEN: a sealed chunk takes overwrites under a new epoch (replication, section 9).

use std::rc::Rc;

use super::StoreError;
use super::layout::{BLOCK, MEMBERS_MAX};
use super::log::Class;
use super::record::{Body, Reopen};
use super::shard::Store;
use super::types::ReopenArgs;
use crate::runtime::Runtime;

impl<R: Runtime> Store<R> {
    /// A sealed chunk is open again: content, length and dedup table stay, entries count from 1, and
    /// only what lies below its length may be overwritten. Durable on return. The same again is answered
    /// the same. Dropping the future leaves the chunk sealed or re-opened.
    ///
    /// # Errors
    ///
    /// `Mismatch` when length or digest are not the sealed ones, or the same epoch was opened otherwise;
    /// `StaleEpoch` when `epoch` is not above what was promised; `Rwr` when it was open before the
    /// restart; `BadBlock` when its checksums are damaged; `Busy` while it is [lent](Store::lend); `BadRange`, `UnknownChunk`, `OldTerm`, `Busy`.
    pub async fn reopen(&self, args: ReopenArgs) -> Result<(), StoreError> {
        let inner = &self.inner;
        inner.check()?;
        inner.shared.obey(args.term)?;
        let ReopenArgs { term, chunk, epoch, members, my_position, len, digest } = args;
        if !(1..=MEMBERS_MAX).contains(&members.len()) || usize::from(my_position) >= members.len() {
            return Err(StoreError::BadRange);
        }
        let reopen = Reopen { term, len, digest, my_position, members };
        if !inner.state.borrow().live(chunk)?.replica.check_reopen(epoch, &reopen)? {
            return inner.flushed().await;
        }
        // Overwrites set checksums anywhere: all of them stay in memory while the chunk is open.
        let end = len.div_ceil(BLOCK);
        inner.load_crcs(chunk, 0, end).await?;
        {
            let state = inner.state.borrow();
            let absent = state.live(chunk)?.replica.crcs.first_absent(end);
            if absent < end {
                return Err(StoreError::BadBlock(absent));
            }
        }
        // Whoever clones it wants the content that was sealed, and extents that nobody has unshared.
        if Rc::strong_count(&inner.state.borrow().live(chunk)?.lent) > 1 {
            return Err(StoreError::Busy);
        }
        inner.cache.borrow_mut().forget(chunk);
        inner.accept(chunk, epoch, 0, &Body::Reopen(reopen), Class::Work)?.wait().await
    }
}
