//! Recovery (format section 8): one thread per disk, before any shard serves it.
//!
//! A thin driver: it reads, asks [`super::page::pick`], [`super::fold`] and [`super::walk`] what it
//! means, writes what they decide, in the order that makes a crash in here harmless. Steps 1 to 5
//! only heal and read; the old journal stays valid until step 7.

use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use wire::{ChunkHandle, DedupEntry};

use super::OpenError;
use super::append::is_shortage;
use super::checkpoint::write_images;
use super::dedup::DedupTable;
use super::fold::{self, Check, Fold, Held, NotReplayed, Pending};
use super::format;
use super::header::{Flags, Hdr, SlotState};
use super::image::{self, Image};
use super::io::Io;
use super::layout::{BLOCK, Child, DEDUP_PAGES, HALF_OFFSETS, PAGE, RING_LOG_START};
use super::open::{self, DiskFound};
use super::page::{self, Bad, Common, Disk, DiskState, Page, Ring, pick};
use super::read::crc_page;
use super::replica::{Replica, shared};
use super::shared::Shared;
use super::types::{DiskConfig, RecoverySummary};
use super::walk::{End, EndKind, Stream};
use crate::runtime::{FileId, Folder, Open, Runtime};

/// Slots that are read or written at a time.
const SLOTS_AT_A_TIME: usize = 32;

/// Blocks that are compared with one read.
const VERIFY_BLOCKS: u32 = 256;

/// A second disk error within so many seconds: the disk takes no new chunks.
const EIO_WINDOW: u64 = 24 * 3600;

/// A chunk as recovery leaves it.
#[derive(Debug)]
pub(crate) struct Seed {
    pub(crate) hdr: Hdr,
    pub(crate) tail: Vec<u8>,
    pub(crate) dedup: Vec<DedupEntry>,
}

/// What one shard starts from. `Send`: goes to the shard's thread.
#[derive(Debug)]
pub struct ShardSeed {
    pub(crate) shared: Arc<Shared>,
    pub(crate) shard: u32,
    pub(crate) disk_uuid: [u8; 16],
    pub(crate) boot_gen: u64,
    /// The last record number of all boots before.
    pub(crate) base_lsn: u64,
    pub(crate) start_off: u64,
    pub(crate) log_bytes: u64,
    pub(crate) ring_seq: u64,
    pub(crate) chunks: Vec<Seed>,
    pub(crate) free: Vec<Hdr>,
}

/// What [`recover`] gives.
#[derive(Debug)]
pub struct Recovered {
    /// One per shard, in order.
    pub seeds: Vec<ShardSeed>,
    /// What was found.
    pub summary: RecoverySummary,
}

/// Formats a fresh disk or recovers one. One thread, before any shard serves, under a
/// [`super::DiskLock`]. Durable on return. Dropping the future leaves a disk that recovers to the same.
///
/// # Errors
///
/// The disk belongs to somebody else, has another format, or does not answer. Nothing that was
/// acknowledged is lost.
pub async fn recover<R: Runtime>(rt: &R, config: &DiskConfig) -> Result<Recovered, OpenError> {
    let started = rt.now();
    if config.shards == 0 {
        return Err(OpenError::new("no shards", "use at least one"));
    }
    let ring_bytes = format::ring_bytes(config)?;
    let io = Io::new(rt.clone());
    rt.sync_file_system(&config.root).await.map_err(|error| OpenError::io("cannot sync the file system", &error))?;
    let mut summary = RecoverySummary::default();
    let found = match open::find_disk(&io, config).await? {
        DiskFound::Fresh => {
            format::format(&io, config).await?;
            summary.formatted = true;
            open::find_disk(&io, config).await?
        }
        found @ DiskFound::Formatted { .. } => found,
    };
    let DiskFound::Formatted { disk, file, healed } = found else {
        return Err(OpenError::new("a disk that was just formatted reads as fresh", "check the disk"));
    };
    summary.healed += u64::from(healed);
    let mut recovery = Recovery {
        io,
        config,
        disk_file: file,
        largest_lsn: disk.common.lsn,
        largest_boot: disk.common.boot_gen,
        disk,
        rings: Vec::new(),
        slots: BTreeMap::new(),
        folds: BTreeMap::new(),
        summary,
    };
    let mut recovered = recovery.run(ring_bytes).await?;
    recovered.summary.took = rt.now().saturating_sub(started);
    Ok(recovered)
}

/// One ring in recovery.
struct RingFound<R: Runtime> {
    file: R::File,
    /// `None`: both copies are bad.
    ring: Option<Ring>,
    end: Option<End>,
    log_bytes: u64,
}

/// A slot as its header and children describe it.
struct Loaded {
    held: Held,
}

struct Recovery<'a, R: Runtime> {
    io: Io<R>,
    config: &'a DiskConfig,
    disk: Disk,
    disk_file: R::File,
    rings: Vec<RingFound<R>>,
    /// Slots that no record was applied to.
    slots: BTreeMap<u32, Loaded>,
    /// Slots that some were.
    folds: BTreeMap<u32, Fold>,
    largest_lsn: u64,
    largest_boot: u64,
    summary: RecoverySummary,
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> OpenError {
    move |error| OpenError::io(what, &error)
}

fn not_replayed(NotReplayed(kind): NotReplayed) -> OpenError {
    OpenError::new(
        format!("the journal holds a record of type {kind}, which this build does not replay"),
        "start the build that wrote it, and stop it cleanly",
    )
}

impl<R: Runtime> Recovery<'_, R> {
    async fn run(&mut self, ring_bytes: u64) -> Result<Recovered, OpenError> {
        self.read_rings().await?;
        self.read_slots().await?;
        self.flush("cannot heal").await?;
        for index in 0..self.rings.len() {
            self.replay(index).await?;
        }
        self.write_slots().await?;
        self.write_rings(ring_bytes).await?;
        self.write_disk(ring_bytes).await?;
        Ok(self.deal())
    }

    async fn flush(&self, what: &'static str) -> Result<(), OpenError> {
        self.io.flush(&self.disk_file).await.map_err(failed(what))
    }

    fn saw(&mut self, common: &Common) {
        self.largest_lsn = self.largest_lsn.max(common.lsn);
        self.largest_boot = self.largest_boot.max(common.boot_gen);
    }

    /// Step 2, rings: the newest valid page of each; the other copy is healed.
    async fn read_rings(&mut self) -> Result<(), OpenError> {
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

    async fn heal_ring(&mut self, number: u32, file: &R::File) -> Result<Option<Ring>, OpenError> {
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
            tracing::error!(ring = number, "both copies of a journal's root are bad");
            return Ok(None);
        };
        if let Some(copy) = picked.heal {
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
    async fn read_slots(&mut self) -> Result<(), OpenError> {
        let this = &*self;
        let read: Vec<_> = stream::iter(0..self.disk.slots)
            .map(|number| async move { this.read_slot(number).await })
            .buffered(SLOTS_AT_A_TIME)
            .try_collect()
            .await?;
        for (number, slot) in (0..self.disk.slots).zip(read) {
            let Some((held, common, healed)) = slot else {
                self.summary.lost_slots += 1;
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
        if let Some(copy) = picked.heal {
            let page = picked.root.encode();
            self.io
                .write_bytes(&file, page.as_slice(), HALF_OFFSETS[copy])
                .await
                .map_err(failed("cannot heal a slot"))?;
        }
        let common = picked.root.common.clone();
        let held = self.load_children(&file, picked.root).await;
        Ok(Some((held, common, picked.heal.is_some())))
    }

    async fn slot_file(&self, number: u32) -> io::Result<R::File> {
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
                Some(page) => tail = page[..hdr.tail_len as usize].to_vec(),
                None => {
                    // Without its partial block the content ends a block earlier, for us.
                    hdr.flags.set(Flags::DAMAGED);
                    hdr.durable_len = hdr.durable_len / BLOCK * BLOCK;
                    hdr.committed_len = hdr.committed_len.min(hdr.durable_len);
                    hdr.tail_len = 0;
                }
            }
        }
        let mut entries = Vec::new();
        let named = hdr.child_present;
        for index in (0..DEDUP_PAGES).filter(|index| named & Child::Dedup(*index).bit() != 0) {
            let page = self.child(file, &hdr, Child::Dedup(index)).await;
            let page = page.filter(|page| page::stored_crc(page) == hdr.dedup_crc[index]);
            match page.and_then(|page| page::decode_dedup(&page).ok()) {
                Some((_, more)) => entries.extend(more),
                None => hdr.flags.set(Flags::DAMAGED),
            }
        }
        Held::Chunk(Box::new(Replica::loaded(hdr, shared(&tail), DedupTable::new(&entries))))
    }

    async fn child(&self, file: &R::File, hdr: &Hdr, child: Child) -> Option<Box<Page>> {
        self.io.read_page(file, child.offset(hdr.copy_of(child))).await.ok()
    }

    /// Steps 3 to 5 for one ring.
    async fn replay(&mut self, index: usize) -> Result<(), OpenError> {
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
                unproven.push(record);
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
            self.try_unproven(slot, &records, boot_gen, end.proven_lsn).await?;
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
        let Some(index) = image::open_page_is_on_disk(&replica.hdr) else {
            return Ok(());
        };
        let file = self.slot_file(slot).await.map_err(failed("cannot open a slot"))?;
        let page = self.child(&file, &replica.hdr, Child::Crc(index)).await;
        match page.and_then(|page| crc_page(&page, &replica.hdr, index)) {
            Some(crcs) => replica.crcs.insert(index, crcs),
            None => {
                tracing::warn!(slot, page = index, "checksum page does not match its header");
                replica.crcs.insert_damaged(index);
                replica.hdr.flags.set(Flags::DAMAGED);
            }
        }
        Ok(())
    }

    async fn apply(&mut self, record: &Pending, boot_gen: u64) -> Result<(), OpenError> {
        let Some(fold) = self.fold(record.head.slot, boot_gen).await? else {
            return Ok(());
        };
        fold.apply(&record.head, &record.body, &mut Vec::new()).map_err(not_replayed)
    }

    /// Step 5 for one slot: the longest list of its unproven records whose data is all there.
    async fn try_unproven(
        &mut self,
        slot: u32,
        records: &[Pending],
        boot_gen: u64,
        proven: u64,
    ) -> Result<(), OpenError> {
        let Some(base) = self.fold(slot, boot_gen).await?.map(|fold| fold.clone()) else {
            return Ok(());
        };
        let mut on_disk = BTreeMap::new();
        let mut damaged = false;
        let mut cut = u64::MAX;
        let fold = loop {
            let mut trial = fold::try_until(&base, records, cut).map_err(not_replayed)?;
            self.read_checksums(slot, &trial.verify, &mut on_disk).await?;
            // What was flushed is not cut: there a mismatch is a bad block (rule R8).
            let (flushed, open): (Vec<_>, Vec<_>) = trial.verify.iter().copied().partition(|check| check.lsn <= proven);
            damaged |= fold::cut_before(&flushed, &on_disk).is_some();
            match fold::cut_before(&open, &on_disk) {
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
            self.summary.suspects += 1;
            tracing::warn!(slot, cut, "records whose data is not there: cut, the peers decide");
        }
        self.folds.insert(slot, fold);
        Ok(())
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

    /// Step 6: what changed goes to the slots; their headers then skip every record there is.
    async fn write_slots(&mut self) -> Result<(), OpenError> {
        let (boot_gen, base) = (self.largest_boot + 1, self.largest_lsn);
        let mut folds = std::mem::take(&mut self.folds);
        for fold in folds.values_mut() {
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
            write_images(&self.io, &self.disk_file, &images, &files).await.map_err(&what)?;
            for image in images {
                let Some(fold) = folds.get_mut(&image.slot) else { continue };
                match &mut fold.held {
                    Held::Free(hdr) => **hdr = image.hdr.clone(),
                    Held::Chunk(replica) => {
                        replica.hdr = image.hdr.clone();
                        if let Some((at, _)) = &image.in_place {
                            let end = u32::try_from(*at).unwrap_or(0).saturating_add(BLOCK);
                            replica.hdr.written_upto = replica.hdr.written_upto.max(end);
                            replica.tail = super::replica::empty();
                        }
                    }
                }
            }
        }
        self.folds = folds;
        Ok(())
    }

    /// Step 7: every ring is empty and belongs to the new boot.
    async fn write_rings(&mut self, ring_bytes: u64) -> Result<(), OpenError> {
        let what = "cannot write a journal";
        let root = &self.config.root;
        while (self.rings.len() as u64) < u64::from(self.config.shards) {
            let number = u32::try_from(self.rings.len()).unwrap_or(u32::MAX);
            let (file, ring) = self.ring_for(number, ring_bytes).await?;
            let log_bytes = ring.as_ref().map_or(ring_bytes, |ring| ring.log_bytes);
            self.rings.push(RingFound { file, ring, end: None, log_bytes });
        }
        self.io.rt.sync_folder(root, Folder::Journal).await.map_err(failed(what))?;
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
                    lsn: self.largest_lsn,
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
        for offset in [0, PAGE as u64] {
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
    async fn write_disk(&mut self, ring_bytes: u64) -> Result<(), OpenError> {
        let held = self.slots.values().map(|loaded| &loaded.held).chain(self.folds.values().map(|fold| &fold.held));
        let terms = held.map(|held| match held {
            Held::Chunk(replica) => replica.hdr.master_term,
            Held::Free(_) => 0,
        });
        let term = terms.max().unwrap_or(0);
        let now = self.config.unix_seconds;
        let disk = &mut self.disk;
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
        for copy in [FileId::DiskA, FileId::DiskB] {
            let what = "cannot write DISK";
            let file = self.io.rt.open(&self.config.root, copy, Open::Existing).await.map_err(failed(what))?;
            self.io.write_bytes(&file, page.as_slice(), 0).await.map_err(failed(what))?;
            self.io.flush(&file).await.map_err(failed(what))?;
        }
        Ok(())
    }

    /// Step 9.
    fn deal(&mut self) -> Recovered {
        let shards = self.config.shards;
        let shared = Arc::new(Shared::new(self.config.root.clone(), self.disk.clone()));
        let mut seeds: Vec<ShardSeed> = (0..shards)
            .zip(&self.rings)
            .map(|(shard, found)| ShardSeed {
                shared: Arc::clone(&shared),
                shard,
                disk_uuid: self.disk.common.disk_uuid,
                boot_gen: self.disk.common.boot_gen,
                base_lsn: self.largest_lsn,
                start_off: found.ring.as_ref().map_or(0, |ring| ring.start_off),
                log_bytes: found.log_bytes,
                ring_seq: found.ring.as_ref().map_or(0, |ring| ring.common.page_seq),
                chunks: Vec::new(),
                free: Vec::new(),
            })
            .collect();
        let untouched = std::mem::take(&mut self.slots).into_values().map(|loaded| loaded.held);
        let touched = std::mem::take(&mut self.folds).into_values().map(|fold| fold.held);
        for held in untouched.chain(touched) {
            match held {
                Held::Free(hdr) => seeds[(hdr.common.number % shards) as usize].free.push(*hdr),
                Held::Chunk(mut replica) => {
                    replica.restart();
                    self.summary.chunks += 1;
                    self.summary.damaged += u64::from(replica.hdr.flags.has(Flags::DAMAGED));
                    let shard = replica.hdr.chunk().shard(shards) as usize;
                    seeds[shard].chunks.push(Seed {
                        tail: Rc::as_ref(&replica.tail).to_vec(),
                        dedup: replica.dedup.entries(),
                        hdr: replica.hdr,
                    });
                }
            }
        }
        Recovered { seeds, summary: std::mem::take(&mut self.summary) }
    }
}
