//! What an operation needs in memory before it can begin: checksum pages; each read once, whoever wants it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;

use wire::ChunkHandle;
use wire::member::ReplicaState;

use super::StoreError;
use super::canary::weakened;
use super::event::Event;
use super::header::Hdr;
use super::io::Io;
use super::layout::{CRCS_PER_PAGE, Child, PAGE};
use super::page::{self, CrcPage, Page};
use super::shard::{Inner, State};
use crate::runtime::Runtime;

/// Something that several may want at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wanted {
    /// The file of a slot.
    File(u32),
    /// A checksum page of the slot.
    Crcs(u32, usize),
}

/// What is being fetched.
pub(crate) type Loads = BTreeMap<Wanted, Event>;

/// Who fetches it; the others go on when this is dropped.
pub(crate) struct First<'a> {
    loads: &'a RefCell<Loads>,
    wanted: Wanted,
}

impl Drop for First<'_> {
    fn drop(&mut self) {
        if let Some(done) = self.loads.borrow_mut().remove(&self.wanted) {
            done.set(Ok(()));
        }
    }
}

/// What the header of a slot says about one of its checksum pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Named {
    index: usize,
    slot: u32,
    offset: u64,
    crc: u32,
    chunk: u64,
    disk_uuid: [u8; 16],
}

impl Named {
    fn new(hdr: &Hdr, index: usize) -> Self {
        let child = Child::Crc(index);
        Self {
            index,
            slot: hdr.common.number,
            offset: child.offset(hdr.copy_of(child)),
            crc: hdr.crc_page_crc[index],
            chunk: hdr.common.chunk,
            disk_uuid: hdr.common.disk_uuid,
        }
    }

    /// The page, if it is the one.
    fn decode(&self, page: &Page) -> Option<Box<CrcPage>> {
        let (common, crcs) = page::decode_crcs(page).ok()?;
        let here = usize::from(common.index) == self.index
            && common.number == self.slot
            && common.chunk == self.chunk
            && common.disk_uuid == self.disk_uuid;
        (here && page::stored_crc(page) == self.crc).then_some(crcs)
    }
}

/// A CRC page, if it is the one that the header names.
pub(crate) fn crc_page(page: &Page, hdr: &Hdr, index: usize) -> Option<Box<CrcPage>> {
    Named::new(hdr, index).decode(page)
}

/// Checksums of what lies in the blocks of a page now, which proves nothing: only a planted bug asks.
pub(crate) async fn recomputed<R: Runtime>(io: &Io<R>, file: &R::File, index: usize, end: u32) -> Box<CrcPage> {
    let mut crcs = Box::new([0; CRCS_PER_PAGE]);
    for (entry, crc) in crcs.iter_mut().enumerate() {
        let block = index * CRCS_PER_PAGE + entry;
        if block < end as usize
            && let Ok(page) = io.read_page(file, (block * PAGE) as u64).await
        {
            *crc = crc32c::crc32c(page.as_slice());
        }
    }
    crcs
}

impl<R: Runtime> Inner<R> {
    /// The right to fetch something; `None` after waiting for somebody else who had it.
    pub(crate) async fn once(&self, wanted: Wanted) -> Option<First<'_>> {
        let others = self.loads.borrow().get(&wanted).map(Event::wait);
        if let Some(done) = others {
            // An event without an error.
            let _ = done.await;
            return None;
        }
        self.loads.borrow_mut().insert(wanted, Event::default());
        Some(First { loads: &self.loads, wanted })
    }

    /// Brings the checksum pages of blocks `first..end` into memory. What is damaged stays away.
    pub(crate) async fn load_crcs(&self, chunk: ChunkHandle, first: u32, end: u32) -> Result<(), StoreError> {
        loop {
            let Some(named) = self.next_crc_page(chunk, first, end)? else { return Ok(()) };
            let Some(_first) = self.once(Wanted::Crcs(named.slot, named.index)).await else { continue };
            let failed = |error: io::Error| StoreError::ReadFailed(error.to_string());
            let file = self.file(named.slot).await.map_err(failed)?;
            let page = self.io.read_page(&file, named.offset).await;
            let mut crcs = page.ok().and_then(|page| named.decode(&page));
            if weakened!(ChecksumsRecomputed) && crcs.is_none() {
                let end = self.state.borrow().live(chunk)?.replica.open_block();
                crcs = Some(recomputed(&self.io, &file, named.index, end).await);
            }
            let mut state = self.state.borrow_mut();
            let held = state.chunks.get_mut(&chunk).ok_or(StoreError::UnknownChunk)?;
            if Named::new(&held.replica.hdr, named.index) != named {
                continue; // a checkpoint wrote a newer page meanwhile
            }
            match crcs {
                Some(crcs) => held.replica.crcs.insert(named.index, crcs),
                None => {
                    tracing::warn!(%chunk, slot = named.slot, page = named.index, "checksum page does not match its header");
                    held.replica.crcs.insert_damaged(named.index);
                }
            }
        }
    }

    /// The next page to read; `None` when all are here.
    fn next_crc_page(&self, chunk: ChunkHandle, first: u32, end: u32) -> Result<Option<Named>, StoreError> {
        let mut state = self.state.borrow_mut();
        loop {
            let held = state.chunks.get_mut(&chunk).ok_or(StoreError::UnknownChunk)?;
            let Some(index) = held.replica.crcs.missing(first, end) else {
                self.touch(&mut state, chunk);
                return Ok(None);
            };
            if held.replica.hdr.has_child(Child::Crc(index)) {
                return Ok(Some(Named::new(&held.replica.hdr, index)));
            }
            held.replica.crcs.insert_damaged(index);
        }
    }

    /// The chunk's checksums were used: others may have to go.
    pub(crate) fn touch(&self, state: &mut State<R>, chunk: ChunkHandle) {
        let Some(held) = state.chunks.get(&chunk) else { return };
        if held.replica.state() == ReplicaState::Open {
            return;
        }
        for gone in self.cache.borrow_mut().used(chunk, held.replica.crcs.memory()) {
            if let Some(held) = state.chunks.get_mut(&gone) {
                held.replica.crcs.evict_clean();
            }
        }
    }
}
