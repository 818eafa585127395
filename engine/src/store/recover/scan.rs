//! Step 2: both copies of every root, the newest of which counts, and the children they name.

use std::io;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use wire::DedupEntry;

use super::{Loaded, Recovery, RingFound, SLOTS_AT_A_TIME, failed};
use crate::runtime::{FileId, Open, Runtime};
use crate::store::OpenError;
use crate::store::append::is_shortage;
use crate::store::canary::sometimes;
use crate::store::dedup::DedupTable;
use crate::store::fold::Held;
use crate::store::header::{Flags, Hdr, SlotState};
use crate::store::layout::{BLOCK, Child, DEDUP_PAGES, HALF_OFFSETS, PAGE, RING_LOG_START};
use crate::store::open;
use crate::store::page::{self, Bad, Common, Page, Ring, pick};
use crate::store::replica::{Replica, shared};

impl<R: Runtime> Recovery<'_, R> {
    /// Step 2, rings: the newest valid page of each; the other copy is healed.
    pub(super) async fn read_rings(&mut self) -> Result<(), OpenError> {
        for number in 0..self.disk.rings {
            let id = FileId::Ring(number);
            let what = "cannot open a journal";
            let file = self.io.rt.open(&self.config.root, id, Open::Existing).await.map_err(failed(what))?;
            let ring = self.heal_ring(number, &file).await?;
            let log_bytes = match &ring {
                Some(ring) => ring.log_bytes,
                None => {
                    let len = self.io.rt.file_len(&self.config.root, id).await.map_err(failed(what))?;
                    len.unwrap_or(0).saturating_sub(RING_LOG_START) / PAGE as u64 * PAGE as u64
                }
            };
            if let Some(ring) = &ring {
                self.saw(&ring.common);
            }
            self.rings.push(RingFound { file, ring, end: None, log_bytes });
        }
        Ok(())
    }

    pub(super) async fn heal_ring(&mut self, number: u32, file: &R::File) -> Result<Option<Ring>, OpenError> {
        let [a, b] = self.two_copies(file, [0, PAGE as u64]).await?;
        let uuid = self.disk.common.disk_uuid;
        let decode = |page: &Page| {
            let ring = Ring::decode(page)?;
            let here = ring.common.number == number && ring.common.disk_uuid == uuid;
            if here { Ok(ring) } else { Err(Bad::Misplaced) }
        };
        let (a, b) = (decode(&a), decode(&b));
        open::refuse_other_formats([a.as_ref().err(), b.as_ref().err()], "journal")?;
        let Some(picked) = pick(a, b) else {
            sometimes!("both RING copies bad");
            tracing::error!(ring = number, "both copies of a journal's root are bad");
            return Ok(None);
        };
        if let Some(copy) = picked.heal.filter(|copy| page::heals(*copy)) {
            self.summary.healed += 1;
            let page = picked.root.encode();
            let offset = [0, PAGE as u64][copy];
            self.io.write_bytes(file, page.as_slice(), offset).await.map_err(failed("cannot heal a journal"))?;
        }
        Ok(Some(picked.root))
    }

    async fn two_copies(&self, file: &R::File, offsets: [u64; 2]) -> Result<[Box<Page>; 2], OpenError> {
        let mut pages = [Box::new([0; PAGE]), Box::new([0; PAGE])];
        for (page, offset) in pages.iter_mut().zip(offsets) {
            match self.io.read_page(file, offset).await {
                Ok(read) => *page = read,
                // A page that cannot be read, or lies past the end, is a bad copy.
                Err(error) => tracing::warn!(offset, %error, "a root page cannot be read"),
            }
        }
        Ok(pages)
    }

    /// Step 2, slots: the newest valid header of each, healed, and the children it names.
    pub(super) async fn read_slots(&mut self) -> Result<(), OpenError> {
        let this = &*self;
        let read: Vec<_> = stream::iter(0..self.disk.slots)
            .map(|number| async move { this.read_slot(number).await })
            .buffered(SLOTS_AT_A_TIME)
            .try_collect()
            .await?;
        for (number, slot) in (0..self.disk.slots).zip(read) {
            let Some((held, common, healed)) = slot else {
                sometimes!("both HDR copies bad");
                self.summary.lost_slots += 1;
                self.trace.lost.insert(number);
                tracing::error!(slot = number, "both headers of a slot are bad: kept out of use");
                continue;
            };
            self.saw(&common);
            self.summary.healed += u64::from(healed);
            self.slots.insert(number, Loaded { held });
        }
        Ok(())
    }

    async fn read_slot(&self, number: u32) -> Result<Option<(Held, Common, bool)>, OpenError> {
        let file = match self.slot_file(number).await {
            Ok(file) => file,
            // Too few descriptors is no reason to call a slot lost.
            Err(error) if is_shortage(&error) => return Err(OpenError::io("cannot open the slots", &error)),
            Err(error) => {
                tracing::error!(slot = number, %error, "a slot cannot be opened");
                return Ok(None);
            }
        };
        let [a, b] = self.two_copies(&file, HALF_OFFSETS).await?;
        let uuid = self.disk.common.disk_uuid;
        let decode = |page: &Page| {
            let hdr = Hdr::decode(page)?;
            let here = hdr.common.number == number && hdr.common.disk_uuid == uuid;
            if here { Ok(hdr) } else { Err(Bad::Misplaced) }
        };
        let (a, b) = (decode(&a), decode(&b));
        open::refuse_other_formats([a.as_ref().err(), b.as_ref().err()], "slot")?;
        let Some(picked) = pick(a, b) else {
            return Ok(None);
        };
        let heal = picked.heal.filter(|copy| page::heals(*copy));
        if let Some(copy) = heal {
            sometimes!("header healed");
            let page = picked.root.encode();
            self.io
                .write_bytes(&file, page.as_slice(), HALF_OFFSETS[copy])
                .await
                .map_err(failed("cannot heal a slot"))?;
        }
        let common = picked.root.common.clone();
        let held = self.load_children(&file, picked.root).await;
        Ok(Some((held, common, heal.is_some())))
    }

    pub(super) async fn slot_file(&self, number: u32) -> io::Result<R::File> {
        self.io.rt.open(&self.config.root, FileId::Slot(number), Open::Existing).await
    }

    /// TAIL and DEDUP, which stay in memory. What does not match the header makes the replica damaged.
    async fn load_children(&self, file: &R::File, mut hdr: Hdr) -> Held {
        if hdr.state == SlotState::Free {
            return Held::Free(Box::new(hdr));
        }
        let mut tail = Vec::new();
        if hdr.tail_len > 0 {
            match self
                .child(file, &hdr, Child::Tail)
                .await
                .filter(|page| crc32c::crc32c(page.as_slice()) == hdr.tail_crc)
            {
                Some(page) => {
                    sometimes!("tail rebuilt from TAIL");
                    tail = page[..hdr.tail_len as usize].to_vec();
                }
                None => {
                    // Without its partial block the content ends a block earlier, for us.
                    hdr.flags.set(Flags::DAMAGED);
                    hdr.durable_len = hdr.durable_len / BLOCK * BLOCK;
                    hdr.committed_len = hdr.committed_len.min(hdr.durable_len);
                    hdr.tail_len = 0;
                }
            }
        }
        let table = self.load_table(file, &hdr).await;
        if table.is_none() {
            hdr.flags.set(Flags::DAMAGED);
        }
        let entries = table.unwrap_or_default();
        Held::Chunk(Box::new(Replica::loaded(hdr, shared(&tail), DedupTable::new(&entries))))
    }

    /// The dedup table that a header names; `None` when a page does not match.
    pub(super) async fn load_table(&self, file: &R::File, hdr: &Hdr) -> Option<Vec<DedupEntry>> {
        let mut entries = Vec::new();
        for index in (0..DEDUP_PAGES).filter(|index| hdr.has_child(Child::Dedup(*index))) {
            let page = self.child(file, hdr, Child::Dedup(index)).await?;
            if page::stored_crc(&page) != hdr.dedup_crc[index] {
                return None;
            }
            entries.extend(page::decode_dedup(&page).ok()?.1);
        }
        Some(entries)
    }

    pub(super) async fn child(&self, file: &R::File, hdr: &Hdr, child: Child) -> Option<Box<Page>> {
        self.io.read_page(file, child.offset(hdr.copy_of(child))).await.ok()
    }
}
