//! Checkpoint of the journal (format section 7): state goes to the slots, its space becomes free.
//!
//! Slots are taken a few at a time, each with its own `ckpt_lsn`, which bounds the memory of the
//! copies; replay then starts at the oldest record that some header does not contain.

use std::io;
use std::rc::Rc;

use futures_util::future::try_join_all;
use wire::{ChunkHandle, Epoch, Term};

use super::canary::{is_weakened, sometimes, weakened};
use super::image::{self, Image};
use super::io::Io;
use super::layout::{BLOCK, HALF_OFFSETS, PAGE};
use super::log::{Class, Start};
use super::overwrite::REDO_CHECKPOINT;
use super::page::{Common, Ring};
use super::record::Body;
use super::replica::{Replica, Tail, empty};
use super::shard::{Inner, State};
use crate::runtime::Runtime;

/// Slots whose pages are copied and written at a time: at most 32 × 92 KiB.
const SLOTS_AT_A_TIME: usize = 32;

/// One slot of a checkpoint.
struct Shot {
    image: Image,
    /// The partial block that it puts in place, or keeps.
    tail: Tail,
    /// The slot is not used again while this is held (rule R17).
    _users: Rc<()>,
    chunk: ChunkHandle,
}

impl<R: Runtime> Inner<R> {
    /// Starts a checkpoint, unless one runs.
    pub(crate) fn checkpoint_soon(self: &Rc<Self>, state: &mut State<R>) {
        if state.checkpointing || self.stopping.get() || self.holding.get() {
            return;
        }
        state.checkpointing = true;
        let inner = Rc::clone(self);
        self.spawn(async move {
            inner.checkpoint().await;
            let mut state = inner.state.borrow_mut();
            state.checkpointing = false;
            let refused = std::mem::take(&mut state.images_refused);
            if state.log.wants_checkpoint() {
                let half = |replica: &Replica| replica.held_lsn().is_some_and(|lsn| state.log.pins_half(lsn));
                inner.drop_what_pins(&state, half);
            } else if refused && state.held_images() >= REDO_CHECKPOINT {
                inner.drop_what_pins(&state, |replica| replica.held_images_len() > 0);
            }
        });
    }

    /// One checkpoint. On failure the disk is fenced.
    pub(crate) async fn checkpoint(self: &Rc<Self>) {
        let _one_at_a_time = self.checkpoints.lock().await;
        if let Err(error) = self.checkpoint_steps().await {
            self.fence("checkpoint failed", &error);
        }
    }

    async fn checkpoint_steps(self: &Rc<Self>) -> io::Result<()> {
        let dirty = self.state.borrow().dirty_slots();
        if !self.write_slots(&dirty).await? {
            return Ok(());
        }
        self.release().await?;
        self.io.count(|counters| counters.checkpoints += 1);
        Ok(())
    }

    /// Brings the header of a slot up to date, and what it names; frees no space of the journal. Goes on to its
    /// end when dropped.
    pub(crate) async fn checkpoint_of_slot(self: &Rc<Self>, slot: u32) {
        let inner = Rc::clone(self);
        let work = async move {
            let _one_at_a_time = inner.checkpoints.lock().await;
            if let Err(error) = inner.write_slots(&[slot]).await {
                inner.fence("checkpoint failed", &error);
            }
        };
        self.to_its_end(work).await;
    }

    /// C1 to C5; `false` when the disk is fenced.
    async fn write_slots(self: &Rc<Self>, slots: &[u32]) -> io::Result<bool> {
        for slots in slots.chunks(SLOTS_AT_A_TIME) {
            let shots = self.state.borrow_mut().shoot(slots, self.boot_gen);
            if !weakened!(ImagesBeforeFlush) && self.flushed().await.is_err() {
                return Ok(false); // fenced by whoever met the error
            }
            let images: Vec<&Image> = shots.iter().map(|shot| &shot.image).collect();
            let files = try_join_all(images.iter().map(|image| self.file(image.slot))).await?;
            if self.unfenced().is_err() {
                return Ok(false); // a batch that failed is no longer waited for, and its images are nowhere
            }
            self.rewriting(&shots);
            write_images(&self.io, &self.ring, &images, &files, || self.unfenced()).await?;
            let mut state = self.state.borrow_mut();
            shots.iter().for_each(|shot| state.adopt(shot));
            shots.iter().for_each(|shot| self.touch(&mut state, shot.chunk));
        }
        Ok(true)
    }

    /// From now on blocks change in place. Their images are durable: who plans a read from here on finds
    /// them in memory. Who planned one before expects what lies there now, and finds neither old nor new: it
    /// was told when the image became durable, and is told again by the rule for whoever writes in place.
    fn rewriting(&self, shots: &[Shot]) {
        let durable_lsn = self.state.borrow().log.durable_lsn;
        let mut reads = self.reads.borrow_mut();
        for Shot { image, chunk, .. } in shots.iter().filter(|shot| !shot.image.redo.is_empty()) {
            let durable = image.redo.iter().all(|(_, image)| image.lsn <= durable_lsn);
            assert!(durable || is_weakened(), "an image goes in place when the journal has it (rule R3)");
            image.redo_runs().for_each(|run| reads.changed(*chunk, run));
        }
    }

    /// C6, C7: both RING copies name the new start; only then the space before it is free.
    ///
    /// What a checkpoint before this one could not write is marked as written: then the disk is fenced, and the
    /// start may not move past it.
    async fn release(&self) -> io::Result<()> {
        self.unfenced()?;
        let (start, page) = {
            let mut state = self.state.borrow_mut();
            let start = state.replay_start();
            state.ring_seq += 1;
            (start, self.ring_page(&state, start).encode())
        };
        let copies = if weakened!(OneRootCopy) { 1 } else { 2 };
        for offset in [0, PAGE as u64].into_iter().take(copies) {
            self.io.write_bytes(&self.ring, page.as_slice(), offset).await?;
            self.io.flush(&self.ring).await?;
            self.unfenced()?;
        }
        self.state.borrow_mut().log.release(start);
        Ok(())
    }

    /// Rule R9 for whoever writes in several steps: a flush that succeeds after another one has failed, of
    /// whatever file or shard, proves nothing, and what relies on it is not written.
    pub(crate) fn unfenced(&self) -> io::Result<()> {
        if weakened!(FlushesApart) {
            return Ok(());
        }
        self.shared.check().map_err(|error| io::Error::other(error.to_string()))
    }

    fn ring_page(&self, state: &State<R>, start: Start) -> Ring {
        Ring {
            common: Common {
                number: self.shard,
                disk_uuid: self.disk_uuid,
                page_seq: state.ring_seq,
                boot_gen: self.boot_gen,
                lsn: start.first_lsn - 1,
                ..Common::default()
            },
            retired: false,
            start_prev_crc: start.prev_crc,
            start_off: state.log.offset(start.at),
            log_bytes: state.log.log_bytes(),
            durable_upto: state.log.durable_lsn,
        }
    }

    /// Held-back records keep the journal full, or the memory for images: a promise of the current number drops
    /// them (rule R16). The oldest goes, with all that lie in the same batch: only then the start moves.
    fn drop_what_pins(self: &Rc<Self>, state: &State<R>, pins: impl Fn(&Replica) -> bool) {
        let held = state.chunks.iter().filter(|(_, chunk)| pins(&chunk.replica));
        let at = |lsn| state.log.start_for(lsn).at;
        let held: Vec<_> = held.filter_map(|(handle, chunk)| Some((at(chunk.replica.held_lsn()?), *handle))).collect();
        let Some(oldest) = held.iter().map(|(at, _)| *at).min() else { return };
        let oldest: Vec<_> = held.into_iter().filter(|(at, _)| *at == oldest).map(|(_, handle)| handle).collect();
        let inner = Rc::clone(self);
        self.spawn(async move {
            let mut last = None;
            for handle in oldest {
                let found = inner.state.borrow().live(handle).map(|chunk| chunk.replica.hdr.promised);
                let Ok(promised) = found else { continue };
                let body = Body::Promise { promised, term: Term(0) };
                if let Ok(done) = inner.accept(handle, Epoch(promised.0), 0, &body, Class::Release) {
                    sometimes!("held-back work that keeps the journal full is dropped");
                    tracing::warn!(chunk = %handle, "incomplete work keeps the journal full: dropped");
                    last = Some(done);
                }
            }
            if let Some(done) = last {
                let _outcome = done.wait().await;
                inner.checkpoint_soon(&mut inner.state.borrow_mut());
            }
        });
    }
}

impl<R: Runtime> State<R> {
    /// Slots with records that their headers do not contain, oldest first.
    fn dirty_slots(&self) -> Vec<u32> {
        let of_chunks = self.chunks.values().filter_map(|chunk| Some((chunk.dirty_lsn?, chunk.slot())));
        let of_free = self.free.iter().filter_map(|free| Some((free.dirty_lsn?, free.hdr.common.number)));
        let mut slots: Vec<_> = of_chunks.chain(of_free).collect();
        slots.sort_unstable();
        slots.into_iter().map(|(_, slot)| slot).collect()
    }

    /// Bytes of images that are held back, those included that are still to come.
    fn held_images(&self) -> usize {
        self.chunks.values().map(|chunk| chunk.replica.held_images_len()).sum()
    }

    /// C1: copies what these slots hold now. What is held back stays to be replayed.
    fn shoot(&mut self, slots: &[u32], boot_gen: u64) -> Vec<Shot> {
        slots.iter().filter_map(|slot| self.shoot_one(*slot, boot_gen)).collect()
    }

    fn shoot_one(&mut self, slot: u32, boot_gen: u64) -> Option<Shot> {
        let last = self.log.last_lsn();
        if let Some(free) = self.free.iter_mut().find(|free| free.hdr.common.number == slot) {
            free.dirty_lsn.take()?;
            let image = image::of_free(&free.hdr, boot_gen, last);
            return Some(Shot { image, tail: empty(), _users: Rc::clone(&free.users), chunk: ChunkHandle::NONE });
        }
        let handle = *self.by_slot.get(&slot)?;
        let chunk = self.chunks.get_mut(&handle)?;
        if chunk.zeros.is_busy() && chunk.replica.hdr.content_is_final() {
            return None; // its last block goes in place, where zeros may be on their way (rule R19)
        }
        let held = chunk.replica.held_lsn().filter(|_| !weakened!(PastHeldBack));
        if held.is_some() {
            sometimes!("checkpoint with held-back records");
        }
        if chunk.dirty_lsn? == held.unwrap_or(u64::MAX) && chunk.replica.redo.is_empty() {
            return None; // nothing new that counts
        }
        chunk.dirty_lsn = held;
        let image = image::of(&chunk.replica, boot_gen, held.map_or(last, |held| held - 1));
        chunk.replica.crcs.set_imaged();
        (chunk.replica.tail_dirty, chunk.replica.dedup_dirty) = (false, false);
        let tail = Rc::clone(&chunk.replica.tail);
        Some(Shot { image, tail, _users: Rc::clone(&chunk.users), chunk: handle })
    }

    /// The headers on the disk name what was written: so does the one in memory.
    fn adopt(&mut self, shot: &Shot) {
        let (image, slot) = (&shot.image, shot.image.slot);
        if let Some((at, _)) = &image.in_place {
            let end = u32::try_from(*at).unwrap_or(u32::MAX).saturating_add(BLOCK);
            self.raise_written(slot, end);
        }
        let here = self.by_slot.get(&slot).copied();
        let holds = here == Some(shot.chunk);
        if let Some(hdr) = self.hdr_of_slot(slot) {
            hdr.common.page_seq = image.hdr.common.page_seq;
            // A copy that was installed since this free slot's image was taken has children of its own.
            if holds || here.is_none() {
                hdr.child_copy = image.hdr.child_copy;
            }
            if holds {
                hdr.common.lsn = image.hdr.common.lsn;
                hdr.child_present = image.hdr.child_present;
                (hdr.tail_len, hdr.tail_crc) = (image.hdr.tail_len, image.hdr.tail_crc);
                (hdr.dedup_count, hdr.dedup_crc) = (image.hdr.dedup_count, image.hdr.dedup_crc);
                hdr.crc_page_crc = image.hdr.crc_page_crc;
            }
        }
        if let Some(chunk) = self.chunks.get_mut(&shot.chunk).filter(|_| holds) {
            chunk.replica.crcs.set_clean();
            image.redo.iter().for_each(|(block, written)| chunk.replica.redo.in_place(*block, written));
            if image.in_place.is_some() {
                // The partial block is read from its place from now on, unless there is a newer one.
                chunk.replica.redo.drop_from(image.hdr.durable_len / BLOCK);
                // While a newer one is not durable, reads need this one: its checksum is no more.
                if Rc::ptr_eq(&chunk.replica.tail, &shot.tail) {
                    chunk.replica.tail = empty();
                    if Rc::ptr_eq(&chunk.durable.tail, &shot.tail) {
                        chunk.durable.tail = empty();
                    }
                }
            }
        }
    }

    /// From here on replay finds every record that some header does not contain.
    fn replay_start(&self) -> Start {
        let of_chunks = self.chunks.values().filter_map(|chunk| chunk.dirty_lsn);
        let of_free = self.free.iter().filter_map(|free| free.dirty_lsn);
        let oldest = of_chunks.chain(of_free).min().unwrap_or(u64::MAX);
        self.log.start_for(oldest.min(self.log.closed_lsn() + 1))
    }
}

/// C3 to C5: images, partial blocks and children, flush; headers over one copy, flush; over the other, flush.
/// After each flush `unfenced` says whether it may be relied on.
pub(crate) async fn write_images<R: Runtime>(
    io: &Io<R>,
    ring: &R::File,
    images: &[&Image],
    files: &[R::File],
    unfenced: impl Fn() -> io::Result<()>,
) -> io::Result<()> {
    try_join_all(images.iter().zip(files).map(|(image, file)| write_children(io, image, file))).await?;
    let unwritten: Vec<&R::File> =
        images.iter().zip(files).filter(|(image, _)| image.needs_slot_sync()).map(|(_, file)| file).collect();
    io.count(|counters| counters.slot_syncs += unwritten.len() as u64);
    try_join_all(unwritten.iter().map(|file| io.flush(file))).await?;
    if unwritten.is_empty() && !weakened!(OneFlushForAll) {
        io.flush(ring).await?; // else one of those syncs has flushed the device
    }
    unfenced()?;
    if weakened!(NoFlushAfterRedo) {
        try_join_all(images.iter().zip(files).map(|(image, file)| write_in_place(io, image, file))).await?;
    }
    let copies = if weakened!(OneRootCopy) || weakened!(OneCheckpointCopy) { 1 } else { 2 };
    for offset in HALF_OFFSETS.into_iter().take(copies) {
        try_join_all(
            images
                .iter()
                .zip(files)
                .map(async |(image, file)| io.write_bytes(file, image.hdr.encode().as_slice(), offset).await),
        )
        .await?;
        if !weakened!(RingBeforeHeaders) {
            io.flush(ring).await?;
        }
        unfenced()?;
    }
    Ok(())
}

async fn write_children<R: Runtime>(io: &Io<R>, image: &Image, file: &R::File) -> io::Result<()> {
    for (offset, page) in &image.children {
        io.write_bytes(file, page.as_slice(), *offset).await?;
    }
    if weakened!(NoFlushAfterRedo) { Ok(()) } else { write_in_place(io, image, file).await }
}

async fn write_in_place<R: Runtime>(io: &Io<R>, image: &Image, file: &R::File) -> io::Result<()> {
    if let Some((offset, page)) = &image.in_place {
        io.write_bytes(file, page.as_slice(), *offset).await?;
    }
    let mut rest = &image.redo[..];
    for blocks in image.redo_runs() {
        let (run, later) = rest.split_at(blocks.len());
        let bytes: Vec<u8> = run.iter().flat_map(|(_, image)| *Rc::as_ref(&image.block).as_ref()).collect();
        io.write_bytes(file, &bytes, u64::from(blocks.start) * u64::from(BLOCK)).await?;
        io.count(|counters| counters.image_blocks += run.len() as u64);
        rest = later;
    }
    Ok(())
}
