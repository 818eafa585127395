//! What a power cut, or the death of a process, leaves of a simulated disk.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::{FileId, Folder};
use super::disk::{Call, Disk, SimDisk, folder_key, folder_of};
use super::image::{Extent, Page, SECTOR};
use super::rng::Rng;
use super::share::put_moved;

/// One thing that is not durable and that a power cut keeps or drops on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// The name of a folder below the root. Dropping it drops the files in it.
    Folder(Folder),
    /// The name of a file. Dropping it drops the file.
    Name(FileId),
    /// A new length of a file.
    Length(FileId, u64),
    /// Space taken for blocks of a file.
    Allocation(FileId),
    /// The block at this offset is *written*. Keeping it keeps the data of the write that made it so.
    Conversion(FileId, u64),
    /// The block at this offset is one that another file has too, or a hole.
    Extent(FileId, u64),
    /// 512 bytes at this offset, of the write with this number (writes are numbered as they complete).
    Sector(FileId, u64, u64),
}

#[derive(Clone)]
pub(super) struct PendingBlock {
    pub(super) seq: u64,
    pub(super) file: FileId,
    pub(super) block: u64,
    pub(super) page: Arc<Page>,
    /// Sectors of the page that were written.
    pub(super) mask: u8,
    /// They went to a block that the file does not durably look at.
    pub(super) moving: bool,
    /// A failed or lying sync has taken it off the books: no later sync makes it durable.
    pub(super) abandoned: bool,
}

#[derive(Clone)]
pub(super) struct PendingMeta {
    pub(super) seq: u64,
    pub(super) what: What,
    pub(super) abandoned: bool,
}

#[derive(Clone)]
pub(super) enum What {
    Folder(Folder),
    Name(FileId),
    Length {
        file: FileId,
        len: u64,
    },
    Allocate {
        file: FileId,
        blocks: Arc<[u64]>,
    },
    Convert {
        file: FileId,
        block: u64,
    },
    /// The block looks at one that others share, or at none.
    Look {
        file: FileId,
        block: u64,
        page: Option<Arc<Page>>,
        extent: Extent,
        group: u64,
    },
    /// The block has moved away from a shared one.
    Move {
        file: FileId,
        block: u64,
        page: Arc<Page>,
    },
}

impl What {
    /// The file whose sync makes it durable.
    pub(super) fn file(&self) -> Option<FileId> {
        match self {
            Self::Length { file, .. }
            | Self::Allocate { file, .. }
            | Self::Convert { file, .. }
            | Self::Look { file, .. }
            | Self::Move { file, .. } => Some(*file),
            Self::Folder(_) | Self::Name(_) => None,
        }
    }

    /// The folder whose sync makes it durable.
    pub(super) fn folder(&self) -> Option<Folder> {
        match self {
            Self::Folder(_) => Some(Folder::Root),
            Self::Name(file) => Some(folder_of(*file)),
            _ => None,
        }
    }

    fn unit(&self) -> Unit {
        match self {
            Self::Folder(folder) => Unit::Folder(*folder),
            Self::Name(file) => Unit::Name(*file),
            Self::Length { file, len } => Unit::Length(*file, *len),
            Self::Allocate { file, .. } => Unit::Allocation(*file),
            Self::Convert { file, block } | Self::Move { file, block, .. } => Unit::Conversion(*file, block * 4096),
            Self::Look { file, block, .. } => Unit::Extent(*file, block * 4096),
        }
    }
}

impl SimDisk {
    /// Everything a power cut now would decide over, in a fixed order: metadata, then sectors by
    /// write. Writes in flight count as just completed.
    #[must_use]
    pub fn unflushed(&self) -> Vec<Unit> {
        let mut units = Vec::new();
        self.fork().power_cut_keeping(|unit| {
            units.push(*unit);
            false
        });
        units
    }

    /// As [`SimDisk::unflushed`], without sectors whose fate changes nothing: those that the medium already
    /// holds, and those that come with the conversion of their block. What is left decides over distinct disks.
    #[must_use]
    pub fn undecided(&self) -> Vec<Unit> {
        let fork = self.fork();
        let mut disk = fork.lock();
        disk.land_all();
        let converted: Vec<u64> = disk
            .pending_meta
            .iter()
            .filter(|meta| matches!(meta.what, What::Convert { .. } | What::Move { .. }))
            .map(|meta| meta.seq)
            .collect();
        let mut units: Vec<Unit> = disk.pending_meta.iter().map(|meta| meta.what.unit()).collect();
        let mut touched: BTreeMap<(FileId, u64), u8> = BTreeMap::new();
        for meta in &disk.pending_meta {
            if let What::Look { file, block, .. } = meta.what {
                touched.insert((file, block), 0xFF);
            }
        }
        for write in &disk.pending_blocks {
            let Some(file) = disk.files.get(&write.file) else { continue };
            let before = file.safe.block(write.block).and_then(|block| {
                let moved = if write.moving && block.moving { &block.moved } else { &block.page };
                moved.as_deref()
            });
            let touched = touched.entry((write.file, write.block)).or_default();
            let mask = write.mask & (write.page.differing(before) | *touched);
            *touched |= mask;
            if converted.binary_search(&write.seq).is_ok() {
                *touched = 0xFF;
                continue;
            }
            let sectors = (0..8u64).filter(|sector| mask & (1 << sector) != 0);
            units.extend(
                sectors.map(|sector| Unit::Sector(write.file, write.block * 4096 + sector * SECTOR as u64, write.seq)),
            );
        }
        units
    }

    /// Cuts the power and keeps exactly the units for which `keep` says so; it is asked once for each,
    /// in the order of [`SimDisk::unflushed`]. Open files are dead, calls in flight are never answered.
    pub fn power_cut_keeping(&self, mut keep: impl FnMut(&Unit) -> bool) {
        let mut disk = self.lock();
        disk.land_all();
        let metas = std::mem::take(&mut disk.pending_meta);
        let writes = std::mem::take(&mut disk.pending_blocks);
        let mut converted = Vec::new();
        for meta in metas {
            if keep(&meta.what.unit()) {
                if matches!(meta.what, What::Convert { .. } | What::Move { .. }) {
                    converted.push(meta.seq);
                }
                disk.commit(&meta);
            }
        }
        for write in writes {
            let mut kept = 0;
            for sector in (0..8u8).filter(|sector| write.mask & (1 << sector) != 0) {
                let offset = write.block * 4096 + u64::from(sector) * SECTOR as u64;
                kept |= u8::from(keep(&Unit::Sector(write.file, offset, write.seq))) << sector;
            }
            let all = converted.binary_search(&write.seq).is_ok();
            disk.settle(&write, if all { write.mask } else { kept });
        }
        disk.restart();
    }

    /// Cuts the power; every unit survives or not, by the seed. Some seeds keep all, some nothing, most
    /// decide write by write: kept, dropped, or torn sector by sector.
    pub fn power_cut(&self, seed: u64) {
        let mut rng = Rng::new(seed, 0xC07);
        let style = rng.below(8);
        let (mut last, mut mood) = (None, 0);
        self.power_cut_keeping(|unit| match style {
            0 => false,
            1 => true,
            _ => {
                let write = match unit {
                    Unit::Sector(file, _, seq) => Some((*file, *seq)),
                    _ => None,
                };
                if write.is_none() || write != last {
                    mood = rng.below(4);
                    last = write;
                }
                match mood {
                    0 => false,
                    1 => true,
                    _ => rng.once_in(2),
                }
            }
        });
    }

    /// The death of a whole machine's software with the power on (or `kill -9` of everything that
    /// uses the disk): the cache stays; calls in flight happened or not, writes perhaps in part.
    pub fn crash(&self, seed: u64) {
        let mut rng = Rng::new(seed, 0xDEAD);
        self.lock().land_some(&mut rng, |_| true);
    }

    /// As [`SimDisk::crash`], for the calls of one process.
    pub(super) fn crash_node(&self, node: u32, rng: &mut Rng) {
        self.lock().land_some(rng, |caller| caller == node);
    }
}

impl Disk {
    /// Makes a metadata change durable.
    pub(super) fn commit(&mut self, meta: &PendingMeta) {
        match &meta.what {
            What::Folder(folder) => {
                if let Some(folder) = folder_key(*folder).and_then(|key| self.folders.get_mut(&key)) {
                    folder.named = true;
                }
            }
            What::Name(file) => {
                if let Some(file) = self.files.get_mut(file) {
                    Arc::make_mut(file).named = true;
                }
            }
            What::Length { file, len } => {
                if let Some(file) = self.files.get_mut(file) {
                    let safe = &mut Arc::make_mut(file).safe;
                    safe.len = safe.len.max(*len);
                }
            }
            What::Allocate { file, blocks } => {
                if let Some(file) = self.files.get_mut(file) {
                    let safe = &mut Arc::make_mut(file).safe;
                    for block in blocks.iter().filter(|block| safe.extent(**block) == Extent::Hole).collect::<Vec<_>>()
                    {
                        safe.change(*block, |block| block.extent = Extent::Unwritten);
                    }
                }
            }
            What::Look { .. } | What::Move { .. } => self.commit_sharing(meta),
            What::Convert { file, block } => {
                if let Some(file) = self.files.get_mut(file) {
                    Arc::make_mut(file).safe.change(*block, |block| block.extent = Extent::Written);
                }
            }
        }
    }

    /// Puts sectors of a write on the medium.
    pub(super) fn settle(&mut self, write: &PendingBlock, mask: u8) {
        if mask != 0
            && let Some(file) = self.files.get_mut(&write.file)
        {
            let safe = &mut Arc::make_mut(file).safe;
            if write.moving && safe.block(write.block).is_some_and(|block| block.moving) {
                safe.change(write.block, |block| put_moved(block, &write.page, mask));
            } else {
                safe.put(write.block, &write.page, mask);
            }
        }
    }

    /// Every call in flight happens, as far as it changes anything.
    fn land_all(&mut self) {
        for (_, call) in std::mem::take(&mut self.in_flight) {
            self.land(call.call, || 0xFF);
        }
    }

    fn land_some(&mut self, rng: &mut Rng, of: impl Fn(u32) -> bool) {
        let lands: Vec<_> = self.in_flight.extract_if(.., |_, call| of(call.node)).collect();
        for (_, call) in lands {
            match rng.below(4) {
                0 => {}
                1 => self.land(call.call, || u8::try_from(rng.below(256)).unwrap_or(0)),
                _ => self.land(call.call, || 0xFF),
            }
        }
    }

    fn land(&mut self, call: Call, mut mask: impl FnMut() -> u8) {
        match call {
            Call::Write { file, offset, pages } if self.live(file) => {
                for (block, page) in (offset / 4096..).zip(pages) {
                    let mask = mask();
                    if mask != 0 {
                        // A full disk just drops it.
                        let _ = self.write_block(file.file, block, page, mask);
                    }
                }
            }
            Call::Preallocate { file, offset, len } if self.live(file) => {
                let _ = self.preallocate(file.file, offset, len);
            }
            Call::Clone { from, file, offset, len } if self.live(file) => {
                let _ = self.clone_range(from.file, file.file, offset, len);
            }
            Call::Unshare { file, offset, len } if self.live(file) => {
                let _ = self.unshare_range(file.file, offset, len);
            }
            Call::Punch { file, offset, len } if self.live(file) => self.punch_hole(file.file, offset, len),
            _ => {}
        }
    }

    /// The machine comes up again: what is safe is all there is.
    fn restart(&mut self) {
        let folders = std::mem::take(&mut self.folders);
        self.folders = folders.into_iter().filter(|(_, folder)| folder.named).collect();
        let files = std::mem::take(&mut self.files);
        for (id, mut file) in files {
            let reachable = folder_key(folder_of(id)).is_none_or(|key| self.folders.contains_key(&key));
            if file.named && reachable {
                if file.differs {
                    let state = Arc::make_mut(&mut file);
                    state.safe.forget_moves();
                    state.safe.hide_unwritten();
                    state.seen = state.safe.clone();
                    state.differs = false;
                }
                self.files.insert(id, file);
            }
        }
        self.count_sharing();
        self.generation += 1;
    }
}
