//! Slot files: made a few at a time, ahead of need, because making one costs syncs of folders.

use std::io;
use std::rc::Rc;

use super::StoreError;
use super::append::{is_full, is_shortage};
use super::canary::weakened;
use super::header::Hdr;
use super::io::Io;
use super::layout::{CHUNK_CAPACITY, HALF_OFFSETS, HALF_PAGES, PAGE};
use super::page::Common;
use super::shard::{FreeSlot, Inner, State};
use crate::runtime::{FileId, Folder, Open, Runtime};

/// Slots that are kept ready: that many chunks can be created without waiting for a folder.
const READY_MIN: usize = 3;

/// Slots that are made at a time, for one sync of the folder and one new version of DISK.
const MAKE: u32 = 4;

impl<R: Runtime> Inner<R> {
    /// Starts making slots when few are ready.
    pub(crate) fn keep_slots_ready(self: &Rc<Self>) {
        self.keep_slots_ready_in(&mut self.state.borrow_mut());
    }

    /// As [`Self::keep_slots_ready`], inside a step.
    pub(crate) fn keep_slots_ready_in(self: &Rc<Self>, state: &mut State<R>) {
        let usable = state.free.iter().filter(|free| !free.is_quarantined()).count();
        let enough = usable >= READY_MIN && !state.free.iter().any(FreeSlot::is_to_be_punched);
        if enough || state.filling_up || self.check().is_err() {
            return;
        }
        state.filling_up = true;
        let inner = Rc::clone(self);
        self.spawn(async move {
            inner.punch_shared().await;
            let made = inner.make_slots().await;
            inner.state.borrow_mut().filling_up = false;
            if let Err(error) = made {
                tracing::warn!(%error, "no slots could be made ahead");
            }
        });
    }

    /// A slot that may hold a new chunk; waits for one to be made.
    pub(crate) async fn ready_slot(self: &Rc<Self>) -> Result<u32, StoreError> {
        loop {
            self.check()?;
            {
                let state = self.state.borrow();
                let mut ready = state.free.iter().filter(|free| free.is_ready());
                let next = if weakened!(SlotReusedEarly) { ready.next_back() } else { ready.next() };
                if let Some(free) = next {
                    return Ok(free.hdr.common.number);
                }
            }
            let inner = Rc::clone(self);
            let made = self.to_its_end(async move {
                inner.punch_shared().await;
                inner.make_slots().await
            });
            made.await?;
        }
    }

    /// Gives back the data of free slots that may share it; they hold chunks again then. What fails is
    /// tried again with the next slots that are wanted.
    async fn punch_shared(self: &Rc<Self>) {
        let _one_at_a_time = self.making_slots.lock().await;
        loop {
            let found = {
                let state = self.state.borrow();
                let found = state.free.iter().find(|free| free.is_to_be_punched());
                found.map(|free| (free.hdr.common.number, Rc::clone(&free.users)))
            };
            let Some((slot, _users)) = found else { return };
            let punched: io::Result<R::File> = async {
                let file = self.file(slot).await?;
                self.io.rt.punch_hole(&file, 0, u64::from(CHUNK_CAPACITY)).await?;
                Ok(file)
            }
            .await;
            let file = match punched {
                Ok(file) => file,
                Err(error) => return tracing::warn!(slot, %error, "a shared slot stays out of use"),
            };
            self.io.count(|counters| {
                counters.flushes += 1;
                counters.slot_syncs += 1;
            });
            if let Err(error) = self.io.fsync(&file).await {
                self.fence("a sync of a slot failed", &error);
                return;
            }
            self.unshare_free(slot, (0, 0));
        }
    }

    /// Makes slots, unless somebody else just did.
    async fn make_slots(self: &Rc<Self>) -> Result<(), StoreError> {
        let _one_at_a_time = self.making_slots.lock().await;
        if self.state.borrow().free.iter().filter(|free| free.is_ready()).count() >= READY_MIN {
            return Ok(());
        }
        self.check()?;
        match self.make_files().await {
            Ok(()) => Ok(()),
            Err(error) if is_full(&error) => Err(StoreError::NoSpace),
            Err(error) if is_shortage(&error) => Err(StoreError::Busy),
            // A failed sync says nothing about what else it lost (rule R9).
            Err(error) => Err(self.fence("slot files could not be made", &error)),
        }
    }

    async fn make_files(self: &Rc<Self>) -> io::Result<()> {
        let rt = &self.io.rt;
        let writer = self.shared.disk_writer(rt).await;
        let first = self.shared.disk().slots;
        let mut made = Vec::new();
        for number in first..first + MAKE {
            let hdr = Hdr {
                common: Common {
                    number,
                    disk_uuid: self.disk_uuid,
                    page_seq: 1,
                    boot_gen: self.boot_gen,
                    ..Common::default()
                },
                ..Hdr::default()
            };
            let file = make_slot(&self.io, &self.shared.root, &hdr).await?;
            made.push((hdr, file));
        }
        self.io.sync_folder(&self.shared.root, Folder::Slots).await?;
        self.io.sync_folder(&self.shared.root, Folder::Root).await?;
        self.unfenced()?;
        writer.write(&self.io, |disk| disk.slots = first + MAKE).await?;
        self.unfenced()?;
        drop(writer);
        let mut state = self.state.borrow_mut();
        for (hdr, file) in made {
            self.keep_file(hdr.common.number, file);
            state.free.push_back(FreeSlot { hdr, dirty_lsn: None, allocated: 0, users: Rc::default(), durable: true });
        }
        Ok(())
    }
}

/// Makes a slot file whose trailer is `hdr` twice and zeros; synced, but not its name.
async fn make_slot<R: Runtime>(io: &Io<R>, root: &std::path::Path, hdr: &Hdr) -> io::Result<R::File> {
    let file = io.rt.open(root, FileId::Slot(hdr.common.number), Open::Create).await?;
    let page = hdr.encode();
    let mut half = vec![0; HALF_PAGES * PAGE];
    half[..PAGE].copy_from_slice(page.as_slice());
    for offset in HALF_OFFSETS {
        io.write_bytes(&file, &half, offset).await?;
    }
    io.fsync(&file).await?;
    Ok(file)
}
