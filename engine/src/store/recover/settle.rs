//! Steps 6 to 8: what was decided goes to the disk, slots first, then the journals, then DISK.

use super::{EIO_WINDOW, Recovery, RingFound, SLOTS_AT_A_TIME, failed};
use crate::runtime::{FileId, Folder, Open, Runtime};
use crate::store::OpenError;
use crate::store::canary::{sometimes, weakened};
use crate::store::checkpoint::write_images;
use crate::store::fold::Held;
use crate::store::format;
use crate::store::image::{self, Image};
use crate::store::layout::{BLOCK, PAGE};
use crate::store::page::{Common, DiskState, Ring};
use crate::store::replica::{self, Redo};

impl<R: Runtime> Recovery<'_, R> {
    /// Step 6: what changed goes to the slots; their headers then skip every record there is.
    pub(super) async fn write_slots(&mut self) -> Result<(), OpenError> {
        let (boot_gen, base) = (self.largest_boot + 1, self.largest_lsn);
        let mut folds = std::mem::take(&mut self.folds);
        for (slot, fold) in &mut folds {
            if matches!(&fold.held, Held::Chunk(replica) if replica.held_lsn().is_some()) {
                self.trace.incomplete.insert(*slot);
            }
            fold.restart();
            self.summary.records_replayed += fold.applied;
        }
        let changed: Vec<u32> = folds.iter().filter(|(_, fold)| fold.changed).map(|(slot, _)| *slot).collect();
        for slots in changed.chunks(SLOTS_AT_A_TIME) {
            let what = failed("cannot write a slot");
            let images: Vec<Image> = slots
                .iter()
                .map(|slot| match &folds[slot].held {
                    Held::Free(hdr) => image::of_free(hdr, boot_gen, base),
                    Held::Chunk(replica) => image::of(replica, boot_gen, base),
                })
                .collect();
            let mut files = Vec::new();
            for slot in slots {
                files.push(self.slot_file(*slot).await.map_err(&what)?);
            }
            let images: Vec<&Image> = images.iter().collect();
            write_images(&self.io, &self.disk_file, &images, &files, || Ok(())).await.map_err(&what)?;
            for image in images {
                let Some(fold) = folds.get_mut(&image.slot) else { continue };
                match &mut fold.held {
                    Held::Free(hdr) => **hdr = image.hdr.clone(),
                    Held::Chunk(replica) => {
                        replica.hdr = image.hdr.clone();
                        replica.redo = Redo::default(); // all in place now
                        replica.all_is_written();
                        if let Some((at, _)) = &image.in_place {
                            let end = u32::try_from(*at).unwrap_or(0).saturating_add(BLOCK);
                            replica.hdr.written_upto = replica.hdr.written_upto.max(end);
                            replica.tail = replica::empty();
                        }
                    }
                }
            }
        }
        self.folds = folds;
        Ok(())
    }

    /// Step 7: every ring is empty and belongs to the new boot.
    pub(super) async fn write_rings(&mut self, ring_bytes: u64) -> Result<(), OpenError> {
        let what = "cannot write a journal";
        let root = &self.config.root;
        while (self.rings.len() as u64) < u64::from(self.config.shards) {
            let number = u32::try_from(self.rings.len()).unwrap_or(u32::MAX);
            let (file, ring) = self.ring_for(number, ring_bytes).await?;
            let log_bytes = ring.as_ref().map_or(ring_bytes, |ring| ring.log_bytes);
            self.rings.push(RingFound { file, ring, end: None, log_bytes });
        }
        self.io.sync_folder(root, Folder::Journal).await.map_err(failed(what))?;
        let boot_gen = self.largest_boot + 1;
        let mut pages = Vec::new();
        for (number, found) in (0..).zip(&mut self.rings) {
            let before = found.ring.as_ref();
            let ring = Ring {
                common: Common {
                    number,
                    disk_uuid: self.disk.common.disk_uuid,
                    page_seq: before.map_or(0, |ring| ring.common.page_seq) + 1,
                    boot_gen,
                    lsn: if weakened!(LsnNotRebased) {
                        found.end.map_or_else(|| before.map_or(0, |ring| ring.common.lsn), |end| end.largest_lsn)
                    } else {
                        self.largest_lsn
                    },
                    ..Common::default()
                },
                retired: number >= self.config.shards,
                start_prev_crc: 0,
                start_off: found.end.map_or(0, |end| end.next_off),
                log_bytes: found.log_bytes,
                durable_upto: self.largest_lsn,
            };
            pages.push(ring.encode());
            found.ring = Some(ring);
        }
        let copies = if weakened!(OneRootCopy) { 1 } else { 2 };
        for offset in [0, PAGE as u64].into_iter().take(copies) {
            for (found, page) in self.rings.iter().zip(&pages) {
                self.io.write_bytes(&found.file, page.as_slice(), offset).await.map_err(failed(what))?;
            }
            self.flush(what).await?;
        }
        Ok(())
    }

    /// A ring that no shard used in the last boot: one of an earlier boot, or a new one.
    async fn ring_for(&mut self, number: u32, ring_bytes: u64) -> Result<(R::File, Option<Ring>), OpenError> {
        let root = &self.config.root;
        let what = failed("cannot make a journal");
        if self.io.rt.file_len(root, FileId::Ring(number)).await.map_err(&what)?.is_some() {
            let file = self.io.rt.open(root, FileId::Ring(number), Open::Existing).await.map_err(&what)?;
            if let Some(ring) = self.heal_ring(number, &file).await? {
                return Ok((file, Some(ring)));
            }
        }
        Ok((format::make_ring(&self.io, root, number, ring_bytes).await.map_err(&what)?, None))
    }

    /// Step 8.
    pub(super) async fn write_disk(&mut self, ring_bytes: u64) -> Result<(), OpenError> {
        let held = self.slots.values().map(|loaded| &loaded.held).chain(self.folds.values().map(|fold| &fold.held));
        let terms = held.map(|held| match held {
            Held::Chunk(replica) => replica.hdr.master_term,
            Held::Free(_) => 0,
        });
        let term = terms.max().unwrap_or(0);
        let now = self.config.unix_seconds;
        let disk = &mut self.disk;
        if disk.rings < self.config.shards {
            sometimes!("more shards than before");
        } else if disk.rings > self.config.shards {
            sometimes!("fewer shards than before");
        }
        disk.common.page_seq += 1;
        disk.common.boot_gen = self.largest_boot + 1;
        disk.common.lsn = self.largest_lsn + 1;
        disk.rings = self.config.shards;
        disk.ring_bytes = ring_bytes;
        disk.master_term = disk.master_term.max(term);
        if disk.state == DiskState::Fenced {
            let again = disk.eio_count > 0 && now.saturating_sub(disk.eio_last) < EIO_WINDOW;
            disk.state = if again { DiskState::Draining } else { DiskState::Normal };
            disk.eio_count = disk.eio_count.saturating_add(1);
            disk.eio_last = now;
        }
        let page = disk.encode();
        let copies = if weakened!(OneRootCopy) { 1 } else { 2 };
        for copy in [FileId::DiskA, FileId::DiskB].into_iter().take(copies) {
            let what = "cannot write DISK";
            let file = self.io.rt.open(&self.config.root, copy, Open::Existing).await.map_err(failed(what))?;
            self.io.write_bytes(&file, page.as_slice(), 0).await.map_err(failed(what))?;
            self.io.flush(&file).await.map_err(failed(what))?;
        }
        Ok(())
    }
}
