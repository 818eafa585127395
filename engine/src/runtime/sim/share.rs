//! Extents that two simulated files share, as on XFS: a clone points at blocks, a write moves away.
//!
//! Blocks of one *group* are one block of the device. A write to a block whose group has another
//! reference takes a new block (`ENOSPC` when there is none), and where the file looks is metadata: until
//! the file is synced a power cut brings the old content back, however often the device was flushed.
//! A reference counts until its end is durable.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::super::FileId;
use super::super::pool::PAGE;
use super::cut::{PendingMeta, What};
use super::disk::{Disk, SimDisk};
use super::image::{Block, Extent, Page};

/// References of each group.
#[derive(Clone, Default)]
pub(super) struct Groups {
    references: BTreeMap<u64, u64>,
    next: u64,
}

impl Groups {
    /// Another block looks there too.
    fn share(&mut self, group: u64) -> u64 {
        if group != 0 {
            *self.references.entry(group).or_insert(1) += 1;
            return group;
        }
        self.next += 1;
        self.references.insert(self.next, 2);
        self.next
    }

    pub(super) fn is_shared(&self, group: u64) -> bool {
        self.references.get(&group).is_some_and(|count| *count > 1)
    }

    /// One looks elsewhere; says whether it was the last.
    fn leave(&mut self, group: u64) -> bool {
        let Some(count) = self.references.get_mut(&group) else { return false };
        *count -= 1;
        let last = *count == 0;
        if last {
            self.references.remove(&group);
        }
        last
    }
}

impl SimDisk {
    /// Whether files can share extents (they can, unless told otherwise): ext4 cannot.
    pub fn set_reflink(&self, reflink: bool) {
        self.lock().reflink = reflink;
    }

    /// Blocks of the file that other blocks share, as a write now would find them.
    #[must_use]
    pub fn shared_blocks(&self, file: FileId) -> u64 {
        let disk = self.lock();
        let Some(state) = disk.files.get(&file) else { return 0 };
        state.seen.blocks_if_shared().filter(|block| disk.groups.is_shared(block.group)).count() as u64
    }
}

fn blocks(offset: u64, len: u64) -> Range<u64> {
    offset / PAGE as u64..(offset + len).div_ceil(PAGE as u64)
}

impl Disk {
    pub(super) fn clone_range(&mut self, from: FileId, to: FileId, offset: u64, len: u64) -> io::Result<()> {
        if !self.reflink {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        for at in blocks(offset, len) {
            let Some(source) = self.files.get_mut(&from).map(Arc::make_mut) else { return Ok(()) };
            let was = source.seen.block(at).cloned().unwrap_or_default();
            let mut block = Block::default();
            if was.extent == Extent::Written {
                let group = self.groups.share(was.group);
                source.seen.change(at, |block| block.group = group);
                source.safe.change(at, |block| block.group = group);
                block = Block { group, ..was };
            }
            self.replace(to, at, block);
        }
        Ok(())
    }

    /// The block looks elsewhere, or nowhere.
    fn replace(&mut self, file: FileId, at: u64, block: Block) {
        let Some(state) = self.files.get_mut(&file).map(Arc::make_mut) else { return };
        let mut old = block.clone();
        state.differs = true;
        state.seen.change(at, |seen| std::mem::swap(seen, &mut old));
        // The space of a group is given back with its last reference.
        self.blocks_used -= u64::from(old.extent != Extent::Hole && old.group == 0);
        self.note(What::Look { file, block: at, page: block.page, extent: block.extent, group: block.group });
    }

    /// Before a write: a shared block moves to one of its own. Says whether it did.
    pub(super) fn move_away(&mut self, file: FileId, at: u64) -> io::Result<bool> {
        let Some(state) = self.files.get_mut(&file).map(Arc::make_mut) else { return Ok(false) };
        if !state.seen.block(at).is_some_and(|block| self.groups.is_shared(block.group)) {
            return Ok(false);
        }
        if self.blocks_used >= self.blocks_total {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        self.blocks_used += 1;
        state.differs = true;
        state.seen.change(at, |block| (block.group, block.page) = (0, None));
        state.safe.change(at, |block| block.moving = true);
        Ok(true)
    }

    pub(super) fn unshare_range(&mut self, file: FileId, offset: u64, len: u64) -> io::Result<()> {
        if !self.reflink {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        for at in blocks(offset, len) {
            let Some(state) = self.files.get(&file) else { return Ok(()) };
            let shared = state.seen.block(at).filter(|block| self.groups.is_shared(block.group));
            if let Some(page) = shared.map(|block| block.page.clone()) {
                self.write_block(file, at, page.unwrap_or_else(|| Page::new(&[0; PAGE])), 0xFF)?;
            }
        }
        Ok(())
    }

    pub(super) fn punch_hole(&mut self, file: FileId, offset: u64, len: u64) {
        for at in blocks(offset, len) {
            let taken = self.files.get(&file).is_some_and(|state| state.seen.extent(at) != Extent::Hole);
            if taken {
                self.replace(file, at, Block::default());
            }
        }
    }

    /// What becomes durable with a metadata change of this module.
    pub(super) fn commit_sharing(&mut self, meta: &PendingMeta) {
        let (What::Look { file, block, .. } | What::Move { file, block, .. }) = &meta.what else { return };
        let Some(state) = self.files.get_mut(file).map(Arc::make_mut) else { return };
        let mut left = 0;
        state.safe.change(*block, |safe| {
            left = safe.group;
            match &meta.what {
                What::Look { page, extent, group, .. } => {
                    (safe.page, safe.extent, safe.group) = (page.clone(), *extent, *group);
                }
                What::Move { page, .. } => {
                    let page = safe.moved.take().unwrap_or_else(|| Arc::clone(page));
                    (safe.page, safe.extent, safe.group, safe.moving) = (Some(page), Extent::Written, 0, false);
                }
                _ => {}
            }
        });
        if left != 0 && self.groups.leave(left) {
            self.blocks_used -= 1;
        }
    }

    /// After a power cut: what is safe is all there is, and who shares is counted anew.
    pub(super) fn count_sharing(&mut self) {
        self.groups.references.clear();
        self.blocks_used = 0;
        for file in self.files.values() {
            self.blocks_used += file.safe.allocated();
            for block in file.safe.blocks_if_shared().filter(|block| block.group != 0) {
                *self.groups.references.entry(block.group).or_insert(0) += 1;
            }
        }
        self.blocks_used -= self.groups.references.values().map(|count| count - 1).sum::<u64>();
    }
}

/// A whole page as it is put into a block that moved.
pub(super) fn put_moved(block: &mut Block, page: &Arc<Page>, mask: u8) {
    let old = block.moved.take();
    block.moved = Some(super::image::merged(old.as_ref(), page, mask));
}

#[cfg(test)]
mod tests {
    use super::super::super::{Open, Runtime};
    use super::super::{ROOT, Sim, SimBuf, SimFile, SimRuntime};
    use super::*;

    const FROM: FileId = FileId::Slot(3);
    const TO: FileId = FileId::Slot(4);
    const RING: FileId = FileId::Ring(0);

    fn page(rt: &SimRuntime, byte: u8, blocks: usize) -> SimBuf {
        let mut buf = rt.try_alloc(blocks * PAGE).unwrap();
        buf.as_mut().fill(byte);
        rt.freeze(buf)
    }

    async fn made(rt: &SimRuntime, id: FileId, byte: u8) -> SimFile {
        let file = rt.open(ROOT.as_ref(), id, Open::Create).await.unwrap();
        rt.write_at(&file, page(rt, byte, 4), 0).await.unwrap();
        rt.sync_file_system(ROOT.as_ref()).await.unwrap();
        file
    }

    /// First bytes of the four blocks.
    fn seen(disk: &SimDisk, file: FileId) -> Vec<u8> {
        disk.peek(file, 0, 4 * PAGE).unwrap().chunks(PAGE).map(|block| block[0]).collect()
    }

    /// A disk of 12 blocks, 8 of them used: blocks 1 and 2 of `TO` shared with those of `FROM`, durably or not.
    fn shared(durable: bool) -> (Sim, SimDisk) {
        let sim = Sim::with_disk(1, &SimDisk::new(12 * 4096));
        sim.run(move |rt| async move {
            let (from, to) = (made(&rt, FROM, 1).await, made(&rt, TO, 2).await);
            rt.clone_range(&from, &to, 4096, 8192).await.unwrap();
            if durable {
                rt.fsync(&to).await.unwrap();
            }
        });
        let disk = sim.disk();
        assert_eq!((seen(&disk, TO), seen(&disk, FROM)), (vec![2, 1, 1, 2], vec![1; 4]));
        (sim, disk)
    }

    #[test]
    fn a_clone_is_durable_with_a_sync_of_its_file_and_takes_no_space() {
        let (_sim, disk) = shared(false);
        assert_eq!(disk.shared_blocks(FROM), 2);
        disk.power_cut_keeping(|_| false);
        assert_eq!((seen(&disk, TO), disk.shared_blocks(FROM)), (vec![2; 4], 0));
        assert_eq!(disk.space().free, 4 * 4096);
        let (_sim, disk) = shared(true);
        assert_eq!(disk.space().free, 6 * 4096);
        disk.power_cut_keeping(|_| false);
        assert_eq!((seen(&disk, TO), disk.shared_blocks(FROM)), (vec![2, 1, 1, 2], 2));
        assert_eq!(disk.space().free, 6 * 4096);
    }

    #[test]
    fn a_write_into_a_shared_block_is_durable_only_with_a_sync_of_its_file() {
        for side in [FROM, TO] {
            for sync_side in [false, true] {
                let (sim, disk) = shared(true);
                sim.run(move |rt| async move {
                    let ring = made(&rt, RING, 0).await;
                    let file = rt.open(ROOT.as_ref(), side, Open::Existing).await.unwrap();
                    rt.write_at(&file, page(&rt, 7, 1), 4096).await.unwrap();
                    rt.write_at(&file, page(&rt, 8, 1), 4096).await.unwrap();
                    rt.fdatasync(&ring).await.unwrap();
                    if sync_side {
                        rt.fdatasync(&file).await.unwrap();
                        rt.write_at(&file, page(&rt, 9, 1), 4096).await.unwrap();
                        rt.fdatasync(&ring).await.unwrap();
                    }
                });
                let other = if side == FROM { TO } else { FROM };
                assert_eq!((seen(&disk, other)[1], seen(&disk, side)[1]), (1, if sync_side { 9 } else { 8 }));
                disk.power_cut_keeping(|_| false);
                let left = if sync_side { 9 } else { 1 };
                assert_eq!((seen(&disk, other)[1], seen(&disk, side)[1]), (1, left), "{side:?}");
            }
        }
    }

    #[test]
    fn a_write_into_a_shared_block_may_meet_a_full_disk_and_into_an_unshared_one_not() {
        let (sim, disk) = shared(true);
        sim.run(|rt| async move {
            let (from, to) = (made(&rt, FROM, 1).await, rt.open(ROOT.as_ref(), TO, Open::Existing).await.unwrap());
            // `made` has written all of FROM: it moved away from what was shared.
            assert_eq!(rt.space(ROOT.as_ref()).await.unwrap().free, 4 * 4096);
            rt.clone_range(&from, &to, 0, 4 * 4096).await.unwrap();
            rt.fsync(&to).await.unwrap();
            assert_eq!(rt.space(ROOT.as_ref()).await.unwrap().free, 8 * 4096);
            let ring = rt.open(ROOT.as_ref(), RING, Open::Create).await.unwrap();
            rt.preallocate(&ring, 0, 6 * 4096).await.unwrap();
            rt.unshare_range(&to, 0, 8192).await.unwrap();
            rt.fsync(&to).await.unwrap();
            assert_eq!(rt.space(ROOT.as_ref()).await.unwrap().free, 0);
            let full = rt.unshare_range(&to, 8192, 4096).await.unwrap_err();
            assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
            let full = rt.write_at(&from, page(&rt, 5, 1), 8192).await.unwrap_err();
            assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
            assert_eq!(rt.write_at(&to, page(&rt, 5, 2), 0).await.unwrap(), 8192);
            assert_eq!(rt.write_at(&from, page(&rt, 6, 2), 0).await.unwrap(), 8192);
            // What is punched is given back when nobody looks at it any more.
            rt.punch_hole(&to, 0, 4 * 4096).await.unwrap();
            rt.fsync(&to).await.unwrap();
            assert_eq!(rt.space(ROOT.as_ref()).await.unwrap().free, 2 * 4096);
            assert_eq!(rt.write_at(&from, page(&rt, 6, 4), 0).await.unwrap(), 4 * 4096);
        });
        assert_eq!((seen(&disk, FROM), seen(&disk, TO)), (vec![6; 4], vec![0; 4]));
        disk.power_cut_keeping(|_| false);
        assert_eq!(seen(&disk, TO), [0; 4]);
        assert_eq!(disk.space().free, 8 * 4096, "the journal's space was not durable");
    }

    #[test]
    fn a_file_system_without_shared_extents_says_so() {
        let sim = Sim::new(1);
        sim.disk().set_reflink(false);
        sim.run(|rt| async move {
            let (from, to) = (made(&rt, FROM, 1).await, made(&rt, TO, 2).await);
            let error = rt.clone_range(&from, &to, 0, 4096).await.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
        });
        assert_eq!(seen(&sim.disk(), TO), [2; 4]);
    }
}
