//! REPAIR: blocks of a replica that failed their checksum, replaced with the same content from a peer.

use wire::ChunkHandle;

use super::StoreError;
use super::layout::{BLOCK, CHUNK_CAPACITY, PAGE};
use super::log::Class;
use super::record::{Body, Images};
use super::shard::Store;
use crate::runtime::Runtime;

/// Blocks of one repair.
pub const REPAIR_BLOCKS_MAX: usize = 256;

impl<R: Runtime> Store<R> {
    /// Replaces whole blocks (1 to 256, from `first_block` on) with the same content: their checksums
    /// must equal the replica's own. For a chunk in any state but condemned. Content, digest and
    /// entries do not change. Durable on return, and the blocks read right; they are in place with the
    /// next checkpoint. Dropping the future leaves them repaired or not.
    ///
    /// # Errors
    ///
    /// Nothing is changed: `Mismatch` when a block has other content here; `BadRange` for blocks
    /// behind the end, for the partial block that has no place yet, and for more than this disk's
    /// journal takes; `BadBlock` when the checksums themselves are damaged; `UnknownChunk`; `Busy`.
    /// After acceptance: `Fenced`, the outcome is unknown.
    pub async fn repair(&self, chunk: ChunkHandle, first_block: u32, blocks: R::Buf) -> Result<(), StoreError> {
        let inner = &self.inner;
        inner.check()?;
        let (pages, rest) = blocks.as_ref().as_chunks::<PAGE>();
        let fits = (1..=REPAIR_BLOCKS_MAX).contains(&pages.len()) && rest.is_empty();
        if !fits || first_block >= CHUNK_CAPACITY / BLOCK {
            return Err(StoreError::BadRange);
        }
        let named: Vec<(u32, u32)> = (first_block..).zip(pages.iter().map(|page| crc32c::crc32c(page))).collect();
        let end = first_block + u32::try_from(named.len()).unwrap_or(u32::MAX);
        let done = loop {
            if inner.state.borrow().live(chunk)?.replica.blocks_in_place() < end {
                return Err(StoreError::BadRange);
            }
            inner.load_crcs(chunk, first_block, end).await?;
            let mut state = inner.state.borrow_mut();
            let replica = &state.live(chunk)?.replica;
            if replica.crcs.missing(first_block, end).is_some() {
                continue; // dropped since it was loaded
            }
            replica.check_repair(&named)?;
            let epoch = replica.hdr.epoch;
            inner.admit_images(&mut state, named.len() * PAGE, false)?;
            drop(state);
            let body = Body::Repair(Images { blocks: named, images: blocks.as_ref() });
            break inner.accept(chunk, epoch, 0, &body, Class::Work)?;
        };
        done.wait().await
    }
}
