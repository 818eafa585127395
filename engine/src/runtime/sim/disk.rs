//! A simulated disk with its file system: it keeps what was flushed and may forget the rest.
//!
//! Two images of every file: *seen* (what a read returns: everything completed) and *safe* (what a
//! power cut leaves for sure). Between them lie the unflushed sectors and the uncommitted metadata:
//! extent conversions, allocations, lengths, names. What moves them from one to the other:
//!
//! | call | sectors | metadata |
//! |---|---|---|
//! | `fdatasync(f)`, `fsync(f)` | all that completed before the call, of every file | those of `f` alone |
//! | `sync_folder(d)` | none | names in `d` |
//! | `sync_file_system` | all that completed before the call, what failed syncs left included | all |
//!
//! So data written into an unwritten extent of a slot is lost after a power cut although the journal
//! was synced, exactly as on ext4 and XFS.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::super::pool::PAGE;
use super::super::{DiskSpace, FileId, Folder, Open};
use super::buf::SimMutBuf;
use super::cut::{PendingBlock, PendingMeta, What};
use super::fault::{Fault, Op, Rule};
use super::image::{Extent, Image, Page};
use super::rng::{Rng, mix};
use super::share::Groups;

/// How long calls take, in virtual time: a fixed part, a random part up to as much again, and a part
/// per MiB.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A read or write.
    pub access: Duration,
    /// Moving one MiB.
    pub per_mib: Duration,
    /// A sync.
    pub sync: Duration,
    /// Everything else: opening, allocating.
    pub other: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            access: Duration::from_micros(60),
            per_mib: Duration::from_micros(400),
            sync: Duration::from_millis(2),
            other: Duration::from_micros(200),
        }
    }
}

/// Calls that completed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskStats {
    /// Writes.
    pub writes: u64,
    /// Reads.
    pub reads: u64,
    /// Syncs of any kind.
    pub syncs: u64,
    /// Calls that a [`Rule`] hit.
    pub faults: u64,
}

/// A disk; clones are handles to the same one, [`SimDisk::fork`] makes another. It outlives the
/// simulation it is used in, crashes included.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<Disk>>);

#[derive(Clone)]
pub(super) struct Disk {
    pub(super) blocks_total: u64,
    pub(super) blocks_used: u64,
    pub(super) files: BTreeMap<FileId, Arc<File>>,
    /// `journal` and `slots`, once made.
    pub(super) folders: BTreeMap<u8, FolderState>,
    pub(super) pending_blocks: Vec<PendingBlock>,
    pub(super) pending_meta: Vec<PendingMeta>,
    pub(super) next_seq: u64,
    pub(super) in_flight: BTreeMap<u64, InFlight>,
    pub(super) next_ticket: u64,
    /// Counts power cuts; a handle of an earlier generation is dead.
    pub(super) generation: u64,
    rules: Vec<Rule>,
    liar: bool,
    pub(super) reflink: bool,
    pub(super) groups: Groups,
    timing: Timing,
    stats: DiskStats,
    changes: u64,
}

#[derive(Clone, Default)]
pub(super) struct File {
    pub(super) seen: Image,
    pub(super) safe: Image,
    /// `seen` and `safe` may differ.
    pub(super) differs: bool,
    /// The name is durable.
    pub(super) named: bool,
}

#[derive(Clone, Copy)]
pub(super) struct FolderState {
    pub(super) named: bool,
}

#[derive(Clone)]
pub(super) struct InFlight {
    /// Process that called.
    pub(super) node: u32,
    pub(super) call: Call,
    fault: Option<Fault>,
}

/// A call on its way.
#[derive(Clone)]
pub(super) enum Call {
    Open { file: FileId, how: Open },
    Write { file: Handle, offset: u64, pages: Vec<Arc<Page>> },
    Read { file: Handle, offset: u64, len: usize },
    Preallocate { file: Handle, offset: u64, len: u64 },
    Clone { from: Handle, file: Handle, offset: u64, len: u64 },
    Unshare { file: Handle, offset: u64, len: u64 },
    Punch { file: Handle, offset: u64, len: u64 },
    Sync { file: Handle, before: u64 },
    SyncFolder { folder: Folder, before: u64 },
    SyncAll { before: u64 },
}

/// An open file: dead after a power cut.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Handle {
    pub(super) file: FileId,
    generation: u64,
    read_only: bool,
}

/// What a call answers.
pub(super) enum Answer {
    Handle(Handle),
    Count(usize),
    Bytes(SimMutBuf),
    Done,
}

impl SimDisk {
    /// An empty disk of `bytes` bytes, rounded down to blocks.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self(Arc::new(Mutex::new(Disk {
            blocks_total: bytes / PAGE as u64,
            blocks_used: 0,
            files: BTreeMap::new(),
            folders: BTreeMap::new(),
            pending_blocks: Vec::new(),
            pending_meta: Vec::new(),
            next_seq: 0,
            in_flight: BTreeMap::new(),
            next_ticket: 0,
            generation: 0,
            rules: Vec::new(),
            liar: false,
            reflink: true,
            groups: Groups::default(),
            timing: Timing::default(),
            stats: DiskStats::default(),
            changes: 0,
        })))
    }

    /// Another disk in the same state, calls in flight included (nobody will answer those: cut its
    /// power or crash it). Costs a pointer per MiB in use.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self(Arc::new(Mutex::new(self.lock().clone())))
    }

    /// From now on calls that match suffer the rule's fault; the first rule that hits wins.
    pub fn inject(&self, rule: Rule) {
        self.lock().rules.push(rule);
    }

    /// No more faults, those of calls in flight included, no more lies.
    pub fn heal(&self) {
        let mut disk = self.lock();
        disk.rules.clear();
        disk.liar = false;
        disk.in_flight.values_mut().for_each(|call| call.fault = None);
    }

    /// A liar answers syncs and keeps nothing for sure: the next power cut decides over all of it.
    pub fn set_liar(&self, liar: bool) {
        self.lock().liar = liar;
    }

    /// Other speeds.
    pub fn set_timing(&self, timing: Timing) {
        self.lock().timing = timing;
    }

    /// Changes bytes of a file on the medium and in the cache: `mask` is XORed in at `offset`.
    pub fn rot(&self, file: FileId, offset: u64, mask: &[u8]) {
        let mut disk = self.lock();
        for (at, mask) in (offset..).zip(mask) {
            disk.flip(file, at, *mask);
        }
    }

    /// What a read of `len` bytes at `offset` sees now, zero-filled past the end; `None` when there is
    /// no such file. For tests that look below the store.
    #[must_use]
    pub fn peek(&self, file: FileId, offset: u64, len: usize) -> Option<Vec<u8>> {
        let disk = self.lock();
        let image = &disk.files.get(&file)?.seen;
        let start = offset - offset % PAGE as u64;
        let skipped = usize::try_from(offset - start).unwrap_or(0);
        let mut bytes = Vec::with_capacity(skipped + len);
        image.read(start, skipped + len, &mut bytes);
        Some(bytes.split_off(skipped))
    }

    /// Extent state of the block at `offset`, as seen now.
    #[must_use]
    pub fn extent(&self, file: FileId, offset: u64) -> Extent {
        self.lock().files.get(&file).map_or(Extent::Hole, |file| file.seen.extent(offset / PAGE as u64))
    }

    /// Files that exist now, in order.
    #[must_use]
    pub fn files(&self) -> Vec<FileId> {
        self.lock().files.keys().copied().collect()
    }

    /// Length of a file as seen now.
    #[must_use]
    pub fn len(&self, file: FileId) -> Option<u64> {
        self.lock().files.get(&file).map(|file| file.seen.len)
    }

    /// Hash of everything there is: names, lengths, extents, content as seen, and what of it is safe. Equal
    /// disks have equal hashes; after a power cut nothing but this decides what recovery finds.
    #[must_use]
    pub fn image_hash(&self) -> u64 {
        let disk = self.lock();
        let of_file = |hash: u64, (id, file): (&FileId, &Arc<File>)| {
            let [kind, number, ..] = super::numbers(*id, 0, 0);
            let what = file.seen.hash() ^ file.safe.hash().rotate_left(17) ^ u64::from(file.named);
            mix(mix(hash ^ (kind << 32 | number)) ^ what)
        };
        disk.files.iter().fold(0, of_file)
    }

    /// Calls completed.
    #[must_use]
    pub fn stats(&self) -> DiskStats {
        self.lock().stats
    }

    /// Grows with every completed call that could change what a power cut leaves: a crash enumerator
    /// forks the disk whenever this has moved.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// The same disk.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a call: its ticket, and when it completes.
    pub(super) fn submit(&self, node: u32, call: Call, rng: &mut Rng) -> (u64, Duration) {
        let mut disk = self.lock();
        let fault = disk.fault(&call, rng);
        let mut takes = disk.duration(&call, rng);
        if let Some(Fault::Delay(more)) = fault {
            takes += more;
        }
        let ticket = disk.next_ticket;
        disk.next_ticket += 1;
        disk.in_flight.insert(ticket, InFlight { node, call, fault });
        (ticket, takes)
    }

    /// Lets a call happen and answers it.
    pub(super) fn complete(&self, ticket: u64, rng: &mut Rng) -> io::Result<Answer> {
        let mut disk = self.lock();
        let Some(call) = disk.in_flight.remove(&ticket) else {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        };
        disk.happen(call, rng)
    }

    /// A mark: everything completed so far lies before it.
    pub(super) fn mark(&self) -> u64 {
        self.lock().next_seq
    }

    pub(super) fn space(&self) -> DiskSpace {
        let disk = self.lock();
        let bytes = |blocks: u64| blocks * PAGE as u64;
        DiskSpace { total: bytes(disk.blocks_total), free: bytes(disk.blocks_total.saturating_sub(disk.blocks_used)) }
    }
}

impl Disk {
    fn fault(&mut self, call: &Call, rng: &mut Rng) -> Option<Fault> {
        let (op, file) = match call {
            Call::Open { file, .. } => (Op::Open, Some(*file)),
            Call::Write { file, .. } => (Op::Write, Some(file.file)),
            Call::Read { file, .. } => (Op::Read, Some(file.file)),
            Call::Preallocate { file, .. } => (Op::Preallocate, Some(file.file)),
            Call::Clone { file, .. } | Call::Unshare { file, .. } | Call::Punch { file, .. } => {
                (Op::Extents, Some(file.file))
            }
            Call::Sync { file, .. } => (Op::Sync, Some(file.file)),
            Call::SyncFolder { .. } | Call::SyncAll { .. } => (Op::Sync, None),
        };
        let fault = self.rules.iter_mut().find_map(|rule| rule.hits(op, file, rng));
        self.stats.faults += u64::from(fault.is_some());
        fault
    }

    fn duration(&self, call: &Call, rng: &mut Rng) -> Duration {
        let (base, bytes) = match call {
            Call::Write { pages, .. } => (self.timing.access, pages.len() * PAGE),
            Call::Read { len, .. } => (self.timing.access, *len),
            Call::Sync { .. } | Call::SyncFolder { .. } | Call::SyncAll { .. } => (self.timing.sync, 0),
            Call::Open { .. } | Call::Preallocate { .. } | Call::Clone { .. } | Call::Punch { .. } => {
                (self.timing.other, 0)
            }
            Call::Unshare { len, .. } => (self.timing.access, usize::try_from(*len).unwrap_or(0)),
        };
        let nanos = u64::try_from(base.as_nanos()).unwrap_or(u64::MAX);
        let moving = self.timing.per_mib.mul_f64(bytes as f64 / f64::from(1 << 20));
        base + Duration::from_nanos(rng.below(nanos + 1)) + moving
    }

    fn happen(&mut self, InFlight { call, fault, .. }: InFlight, rng: &mut Rng) -> io::Result<Answer> {
        match call {
            Call::Read { .. } => self.stats.reads += 1,
            Call::Write { .. } => self.stats.writes += 1,
            Call::Sync { .. } | Call::SyncFolder { .. } | Call::SyncAll { .. } => self.stats.syncs += 1,
            _ => {}
        }
        self.changes += u64::from(!matches!(call, Call::Read { .. }));
        if let Call::Write { file, .. }
        | Call::Read { file, .. }
        | Call::Preallocate { file, .. }
        | Call::Clone { file, .. }
        | Call::Unshare { file, .. }
        | Call::Punch { file, .. }
        | Call::Sync { file, .. } = &call
            && !self.live(*file)
        {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        if let Call::Write { file, .. } | Call::Preallocate { file, .. } = &call
            && file.read_only
        {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        if let Some(Fault::Error(errno)) = fault {
            self.fail(call, errno, rng);
            return Err(io::Error::from_raw_os_error(errno));
        }
        match call {
            Call::Open { file, how } => self.open(file, how).map(Answer::Handle),
            Call::Write { file, offset, pages } => self.write(file.file, offset, pages, fault).map(Answer::Count),
            Call::Read { file, offset, len } => Ok(Answer::Bytes(self.read(file.file, offset, len, fault))),
            Call::Preallocate { file, offset, len } => {
                self.preallocate(file.file, offset, len)?;
                Ok(Answer::Done)
            }
            Call::Clone { from, file, offset, len } => {
                self.clone_range(from.file, file.file, offset, len)?;
                Ok(Answer::Done)
            }
            Call::Unshare { file, offset, len } => {
                self.unshare_range(file.file, offset, len)?;
                Ok(Answer::Done)
            }
            Call::Punch { file, offset, len } => {
                self.punch_hole(file.file, offset, len);
                Ok(Answer::Done)
            }
            Call::Sync { file, before } => {
                self.sync(before, true, |meta| meta.what.file() == Some(file.file));
                Ok(Answer::Done)
            }
            Call::SyncFolder { folder, before } => {
                self.sync(before, false, |meta| meta.what.folder() == Some(folder));
                Ok(Answer::Done)
            }
            Call::SyncAll { before } => {
                self.take_back(before);
                self.sync(before, true, |_| true);
                Ok(Answer::Done)
            }
        }
    }

    /// A failing write with EIO lands in part; a failing sync loses its work.
    fn fail(&mut self, call: Call, errno: i32, rng: &mut Rng) {
        match call {
            Call::Write { file, offset, pages } if errno == libc::EIO => {
                for (block, page) in (offset / PAGE as u64..).zip(pages) {
                    let mask = u8::try_from(rng.below(256)).unwrap_or(0);
                    // No space is no news to somebody who is told EIO.
                    let _ = self.write_block(file.file, block, page, mask);
                }
            }
            Call::Sync { file, before } => self.abandon(before, |meta| meta.what.file() == Some(file.file)),
            Call::SyncFolder { folder, before } => self.abandon(before, |meta| meta.what.folder() == Some(folder)),
            Call::SyncAll { before } => self.abandon(before, |_| true),
            _ => {}
        }
    }

    fn open(&mut self, file: FileId, how: Open) -> io::Result<Handle> {
        if !self.files.contains_key(&file) {
            if how != Open::Create {
                return Err(io::Error::from_raw_os_error(libc::ENOENT));
            }
            let folder = folder_of(file);
            if let Some(key) = folder_key(folder)
                && !self.folders.contains_key(&key)
            {
                self.folders.insert(key, FolderState { named: false });
                self.note(What::Folder(folder));
            }
            self.files.insert(file, Arc::new(File::default()));
            self.note(What::Name(file));
        }
        Ok(Handle { file, generation: self.generation, read_only: how == Open::ReadOnly })
    }

    fn write(&mut self, file: FileId, offset: u64, pages: Vec<Arc<Page>>, fault: Option<Fault>) -> io::Result<usize> {
        let all = pages.len();
        let (first, count) = match fault {
            Some(Fault::Lost) => return Ok(all * PAGE),
            Some(Fault::Short(bytes)) => (offset / PAGE as u64, all.min(bytes / PAGE)),
            Some(Fault::Misdirected(by)) => ((offset + by) / PAGE as u64, all),
            _ => (offset / PAGE as u64, all),
        };
        for (index, (block, page)) in (first..).zip(pages).take(count).enumerate() {
            match self.write_block(file, block, page, 0xFF) {
                Ok(()) => {}
                Err(error) if index == 0 => return Err(error),
                Err(_) => return Ok(index * PAGE),
            }
        }
        Ok(count * PAGE)
    }

    pub(super) fn write_block(&mut self, file: FileId, block: u64, page: Arc<Page>, mask: u8) -> io::Result<()> {
        let moves = self.move_away(file, block)?;
        let free = self.blocks_total.saturating_sub(self.blocks_used);
        let Some(state) = self.files.get_mut(&file).map(Arc::make_mut) else { return Ok(()) };
        state.differs = true;
        let extent = state.seen.extent(block);
        let moving = state.safe.block(block).is_some_and(|block| block.moving);
        if extent == Extent::Hole {
            if free == 0 {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            self.blocks_used += 1;
        }
        if extent != Extent::Written {
            // Sectors of the block that are not written now read as zeros from here on.
            state.seen.change(block, |block| (block.extent, block.page) = (Extent::Written, None));
        }
        state.seen.put(block, &page, mask);
        let end = (block + 1) * PAGE as u64;
        let grows = end > state.seen.len;
        state.seen.len = state.seen.len.max(end);
        let seq = self.next_seq;
        self.next_seq += 1;
        let fresh = moves || extent != Extent::Written;
        let page = if fresh { whole(&page, mask) } else { page };
        let mask = if fresh { 0xFF } else { mask };
        if moves {
            let what = What::Move { file, block, page: Arc::clone(&page) };
            self.pending_meta.push(PendingMeta { seq, what, abandoned: false });
        }
        self.pending_blocks.push(PendingBlock { seq, file, block, page, mask, moving, abandoned: false });
        if extent != Extent::Written {
            self.pending_meta.push(PendingMeta { seq, what: What::Convert { file, block }, abandoned: false });
        }
        if grows {
            self.note(What::Length { file, len: end });
        }
        Ok(())
    }

    fn read(&self, file: FileId, offset: u64, len: usize, fault: Option<Fault>) -> SimMutBuf {
        let Some(state) = self.files.get(&file) else { return SimMutBuf::new(0, None) };
        let left = usize::try_from(state.seen.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let wanted = match fault {
            Some(Fault::Short(bytes)) => len.min(bytes / PAGE * PAGE),
            _ => len,
        };
        SimMutBuf::of(wanted.min(left), |bytes| state.seen.read(offset, wanted.min(left), bytes))
    }

    pub(super) fn preallocate(&mut self, file: FileId, offset: u64, len: u64) -> io::Result<()> {
        let free = self.blocks_total.saturating_sub(self.blocks_used);
        let Some(state) = self.files.get_mut(&file).map(Arc::make_mut) else { return Ok(()) };
        let blocks = offset / PAGE as u64..(offset + len).div_ceil(PAGE as u64);
        let holes: Vec<u64> = blocks.filter(|block| state.seen.extent(*block) == Extent::Hole).collect();
        if holes.len() as u64 > free {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        self.blocks_used += holes.len() as u64;
        state.differs = true;
        for block in &holes {
            state.seen.change(*block, |block| block.extent = Extent::Unwritten);
        }
        let grows = offset + len > state.seen.len;
        state.seen.len = state.seen.len.max(offset + len);
        if !holes.is_empty() {
            self.note(What::Allocate { file, blocks: holes.into() });
        }
        if grows {
            self.note(What::Length { file, len: offset + len });
        }
        Ok(())
    }

    fn sync(&mut self, before: u64, flush: bool, of: impl Fn(&PendingMeta) -> bool) {
        if self.liar {
            return self.abandon(before, of);
        }
        if flush {
            self.flush(before);
        }
        let (done, kept) = std::mem::take(&mut self.pending_meta)
            .into_iter()
            .partition(|meta: &PendingMeta| meta.seq < before && !meta.abandoned && of(meta));
        self.pending_meta = kept;
        for meta in done {
            self.commit(&meta);
        }
    }

    /// Every sector that completed before the mark is on the medium.
    fn flush(&mut self, before: u64) {
        let (done, mut kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending_blocks)
            .into_iter()
            .partition(|write| write.seq < before && !write.abandoned);
        for write in &done {
            // An abandoned older write of the same sectors can no longer come back over this one.
            for older in kept.iter_mut().filter(|older| older.abandoned && older.seq < write.seq) {
                if older.file == write.file && older.block == write.block {
                    older.mask &= !write.mask;
                }
            }
            self.settle(write, write.mask);
        }
        self.pending_blocks = kept;
    }

    /// What failed syncs left behind is work for the sync of a whole file system, which a restart begins with:
    /// a device that has lost it for good is a liar, and no restart helps against that.
    fn take_back(&mut self, before: u64) {
        self.pending_blocks.iter_mut().filter(|write| write.seq < before).for_each(|write| write.abandoned = false);
        self.pending_meta.iter_mut().filter(|meta| meta.seq < before).for_each(|meta| meta.abandoned = false);
    }

    fn abandon(&mut self, before: u64, of: impl Fn(&PendingMeta) -> bool) {
        for write in self.pending_blocks.iter_mut().filter(|write| write.seq < before) {
            write.abandoned = true;
        }
        for meta in self.pending_meta.iter_mut().filter(|meta| meta.seq < before && of(meta)) {
            meta.abandoned = true;
        }
    }

    /// The handle is of this life of the machine.
    pub(super) fn live(&self, file: Handle) -> bool {
        file.generation == self.generation
    }

    pub(super) fn note(&mut self, what: What) {
        let seq = self.next_seq;
        self.next_seq += 1;
        self.pending_meta.push(PendingMeta { seq, what, abandoned: false });
    }

    fn flip(&mut self, file: FileId, at: u64, mask: u8) {
        let (block, byte) = (at / PAGE as u64, usize::try_from(at % PAGE as u64).unwrap_or(0));
        if let Some(state) = self.files.get_mut(&file).map(Arc::make_mut) {
            for image in [&mut state.seen, &mut state.safe] {
                if image.extent(block) == Extent::Written {
                    image.change(block, |block| block.page = Some(flipped(block.page.as_deref(), byte, mask)));
                }
            }
        }
        for write in self.pending_blocks.iter_mut().filter(|write| write.file == file && write.block == block) {
            write.page = flipped(Some(&write.page), byte, mask);
        }
    }
}

/// The block as it is after its first write: sectors outside the mask are zeros.
fn whole(page: &Arc<Page>, mask: u8) -> Arc<Page> {
    if mask == 0xFF {
        return Arc::clone(page);
    }
    let mut image = Image::default();
    image.put(0, page, mask);
    image.page(0).cloned().unwrap_or_else(|| Page::new(&[0; PAGE]))
}

/// A page with some bits of one byte changed; no page is one of zeros.
fn flipped(page: Option<&Page>, byte: usize, mask: u8) -> Arc<Page> {
    let mut bytes = page.map_or([0; PAGE], |page| *page.bytes());
    bytes[byte] ^= mask;
    Page::new(&bytes)
}

/// The folder a file is in.
pub(super) fn folder_of(file: FileId) -> Folder {
    match file {
        FileId::DiskA | FileId::DiskB => Folder::Root,
        FileId::Ring(_) => Folder::Journal,
        FileId::Slot(_) => Folder::Slots,
    }
}

/// Key of a folder that can be missing; the root cannot.
pub(super) fn folder_key(folder: Folder) -> Option<u8> {
    match folder {
        Folder::Root => None,
        Folder::Journal => Some(1),
        Folder::Slots => Some(2),
    }
}
