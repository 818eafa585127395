//! Steps 3 to 5: the journals, and which of their records count.

use std::collections::BTreeMap;

use wire::ChunkHandle;

use super::{Recovery, VERIFY_BLOCKS, failed, not_replayed};
use crate::runtime::Runtime;
use crate::store::OpenError;
use crate::store::append::is_shortage;
use crate::store::canary::{sometimes, weakened};
use crate::store::crcs::{CrcTable, page_of};
use crate::store::fold::{self, Check, Fold, Held, Pending};
use crate::store::header::{Flags, Hdr};
use crate::store::image;
use crate::store::layout::{BLOCK, CRC_PAGES, Child, PAGE};
use crate::store::load::crc_page;
use crate::store::page::DiskState;
use crate::store::replica::Replica;
use crate::store::walk::{EndKind, Stream};

impl<R: Runtime> Recovery<'_, R> {
    /// Steps 3 to 5 for one ring.
    pub(super) async fn replay(&mut self, index: usize) -> Result<(), OpenError> {
        let found = &self.rings[index];
        let file = found.file.clone();
        let Some(ring) = found.ring.clone() else {
            self.journal_was_damaged(index).await?;
            return Ok(());
        };
        if ring.retired {
            return Ok(());
        }
        let boot_gen = ring.common.boot_gen;
        // With a fence before, nothing is taken as proven without looking.
        let verify_all = self.disk.state == DiskState::Fenced;
        let mut proven = ring.durable_upto;
        let mut unproven: Vec<Pending> = Vec::new();
        let io = self.io.clone();
        let mut stream = Stream::new(&io, &file, &ring);
        let end = stream
            .walk(&ring, async |record: Pending| {
                proven = proven.max(record.head.durable_upto);
                unproven.push(self.with_table(record).await?);
                let ready = if verify_all { 0 } else { unproven.partition_point(|record| record.head.lsn <= proven) };
                for record in unproven.drain(..ready) {
                    self.apply(&record, boot_gen).await?;
                }
                Ok(())
            })
            .await?;
        if end.kind == EndKind::Torn {
            self.summary.torn_ends += 1;
        }
        self.largest_lsn = self.largest_lsn.max(end.largest_lsn);
        let proven = if verify_all { 0 } else { end.proven_lsn };
        let ready = unproven.partition_point(|record| record.head.lsn <= proven);
        for record in unproven.drain(..ready) {
            self.apply(&record, boot_gen).await?;
        }
        let mut by_slot: BTreeMap<u32, Vec<Pending>> = BTreeMap::new();
        for record in unproven {
            by_slot.entry(record.head.slot).or_default().push(record);
        }
        for (slot, records) in by_slot {
            self.try_unproven(slot, records, boot_gen, end.proven_lsn).await?;
        }
        if end.kind == EndKind::Corrupt {
            tracing::error!(ring = index, after = end.last_lsn, proven = end.proven_lsn, "journal is damaged");
            self.journal_was_damaged(index).await?;
        }
        self.rings[index].end = Some(end);
        Ok(())
    }

    /// The slot's fold; `None` for a slot that is lost or that no record can be about.
    async fn fold(&mut self, slot: u32, boot_gen: u64) -> Result<Option<&mut Fold>, OpenError> {
        if !self.folds.contains_key(&slot) {
            let Some(mut loaded) = self.slots.remove(&slot) else {
                return Ok(None);
            };
            if let Held::Chunk(replica) = &mut loaded.held {
                self.load_open_page(slot, replica).await?;
            }
            self.folds.insert(slot, Fold::new(loaded.held, boot_gen));
        }
        Ok(self.folds.get_mut(&slot))
    }

    /// The checksum page that records continue.
    async fn load_open_page(&self, slot: u32, replica: &mut Replica) -> Result<(), OpenError> {
        match image::open_page_is_on_disk(&replica.hdr) {
            Some(index) => self.load_page(slot, replica, index).await,
            None => Ok(()),
        }
    }

    /// The checksum pages of the blocks that a record carries, where the slot has them.
    async fn load_pages_of(&mut self, record: &Pending, boot_gen: u64) -> Result<(), OpenError> {
        let mut pages: Vec<usize> = fold::image_blocks(record).into_iter().map(page_of).collect();
        pages.dedup();
        let slot = record.head.slot;
        if pages.is_empty() || self.fold(slot, boot_gen).await?.is_none() {
            return Ok(());
        }
        let Some(mut fold) = self.folds.remove(&slot) else { return Ok(()) };
        if let Held::Chunk(replica) = &mut fold.held
            && replica.hdr.chunk() == record.head.chunk
        {
            for index in pages {
                if replica.hdr.has_child(Child::Crc(index)) {
                    self.load_page(slot, replica, index).await?;
                } else {
                    replica.crcs.insert_damaged(index); // unless records in front make it
                }
            }
        }
        self.folds.insert(slot, fold);
        Ok(())
    }

    async fn load_page(&self, slot: u32, replica: &mut Replica, index: usize) -> Result<(), OpenError> {
        if replica.crcs.page(index).is_some() {
            return Ok(());
        }
        let file = self.slot_file(slot).await.map_err(failed("cannot open a slot"))?;
        let page = self.child(&file, &replica.hdr, Child::Crc(index)).await;
        match page.and_then(|page| crc_page(&page, &replica.hdr, index)) {
            Some(crcs) => replica.crcs.insert(index, crcs),
            None if weakened!(ChecksumsRecomputed) => {
                let end = replica.hdr.durable_len / BLOCK;
                replica.crcs.insert(index, crate::store::load::recomputed(&self.io, &file, index, end).await);
            }
            None => {
                sometimes!("checksum page that continues is bad");
                tracing::warn!(slot, page = index, "checksum page does not match its header");
                replica.crcs.insert_damaged(index);
                replica.hdr.flags.set(Flags::DAMAGED);
            }
        }
        Ok(())
    }

    async fn apply(&mut self, record: &Pending, boot_gen: u64) -> Result<(), OpenError> {
        self.load_pages_of(record, boot_gen).await?;
        let Some(fold) = self.fold(record.head.slot, boot_gen).await? else {
            return Ok(());
        };
        fold.apply(record, &mut Vec::new()).map_err(not_replayed)
    }

    /// An INSTALL with the dedup table that its header names.
    async fn with_table(&self, mut record: Pending) -> Result<Pending, OpenError> {
        if let Some(hdr) = record.installs() {
            record.table = match self.slot_file(record.head.slot).await {
                Ok(file) => self.load_table(&file, &hdr).await,
                Err(error) if is_shortage(&error) => return Err(OpenError::io("cannot open the slots", &error)),
                Err(_) => None,
            };
        }
        Ok(record)
    }

    /// Step 5 for one slot: the longest list of its unproven records whose data is all there.
    async fn try_unproven(
        &mut self,
        slot: u32,
        mut records: Vec<Pending>,
        boot_gen: u64,
        proven: u64,
    ) -> Result<(), OpenError> {
        for record in &mut records {
            self.load_pages_of(record, boot_gen).await?;
            if let Some(hdr) = record.installs() {
                record.crcs = self.load_crcs_of(slot, &hdr).await?;
            }
        }
        let Some(base) = self.fold(slot, boot_gen).await?.map(|fold| fold.clone()) else {
            return Ok(());
        };
        let mut on_disk = BTreeMap::new();
        let mut damaged = false;
        let mut cut = u64::MAX;
        let fold = loop {
            let mut trial = fold::try_until(&base, &records, cut).map_err(not_replayed)?;
            self.read_checksums(slot, &trial.verify, &mut on_disk).await?;
            // What was flushed is not cut: there a mismatch is a bad block (rule R8).
            let (flushed, open): (Vec<_>, Vec<_>) = trial.verify.iter().copied().partition(|check| check.lsn <= proven);
            damaged |= fold::cut_before(&flushed, &on_disk).is_some();
            match fold::cut_before(&open, &on_disk).filter(|_| !weakened!(DataNotChecked)) {
                Some(earlier) => cut = earlier,
                None => {
                    if damaged {
                        trial.fold.journal_was_damaged();
                    }
                    break trial.fold;
                }
            }
        };
        if cut != u64::MAX {
            sometimes!("suspect cut");
            self.summary.suspects += 1;
            tracing::warn!(slot, cut, "records whose data is not there: cut, the peers decide");
        }
        self.folds.insert(slot, fold);
        Ok(())
    }

    /// All checksum pages that an INSTALL names: records that follow it in the list may replace blocks of it.
    async fn load_crcs_of(&self, slot: u32, hdr: &Hdr) -> Result<CrcTable, OpenError> {
        let file = self.slot_file(slot).await.map_err(failed("cannot open a slot"))?;
        let mut table = CrcTable::default();
        for index in (0..CRC_PAGES).filter(|index| hdr.has_child(Child::Crc(*index))) {
            let page = self.child(&file, hdr, Child::Crc(index)).await;
            match page.and_then(|page| crc_page(&page, hdr, index)) {
                Some(crcs) => table.insert(index, crcs),
                None => table.insert_damaged(index),
            }
        }
        Ok(table)
    }

    /// The checksums of what lies in these blocks now.
    async fn read_checksums(
        &self,
        slot: u32,
        verify: &[Check],
        on_disk: &mut BTreeMap<u32, u32>,
    ) -> Result<(), OpenError> {
        let mut missing =
            verify.iter().map(|check| check.block).filter(|block| !on_disk.contains_key(block)).peekable();
        if missing.peek().is_none() {
            return Ok(());
        }
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for block in missing {
            match runs.last_mut() {
                Some((first, count)) if *first + *count == block && *count < VERIFY_BLOCKS => *count += 1,
                _ => runs.push((block, 1)),
            }
        }
        let file = self.slot_file(slot).await.map_err(failed("cannot open a slot"))?;
        for (first, count) in runs {
            let at = u64::from(first) * u64::from(BLOCK);
            let Ok(buf) = self.io.read(&file, count as usize * PAGE, at).await else {
                continue; // what cannot be read does not match
            };
            for (block, bytes) in (first..).zip(buf.as_ref().as_chunks::<PAGE>().0) {
                on_disk.insert(block, crc32c::crc32c(bytes));
            }
        }
        Ok(())
    }

    /// Section 9: chunks that this ring wrote to answer, but do not count.
    async fn journal_was_damaged(&mut self, index: usize) -> Result<(), OpenError> {
        self.summary.damaged_journals += 1;
        let rings = self.disk.rings;
        let of_ring = |chunk: ChunkHandle| chunk.shard(rings) as usize == index;
        let chunk_of = |held: &Held| match held {
            Held::Chunk(replica) => replica.hdr.chunk(),
            Held::Free(_) => ChunkHandle::NONE,
        };
        let untouched = self.slots.iter().map(|(slot, loaded)| (*slot, chunk_of(&loaded.held)));
        let touched = self.folds.iter().map(|(slot, fold)| (*slot, chunk_of(&fold.held)));
        let slots: Vec<u32> = untouched
            .chain(touched)
            .filter(|(_, chunk)| *chunk != ChunkHandle::NONE && of_ring(*chunk))
            .map(|(slot, _)| slot)
            .collect();
        for slot in slots {
            if let Some(fold) = self.fold(slot, 0).await? {
                fold.journal_was_damaged();
            }
        }
        Ok(())
    }
}
