//! DISK made anew when both of its copies are bad: from the pages of journals and slots, which name
//! the disk, the newest boot, and, by their number, how much there is.
//!
//! [`look`] reads, [`plan`] decides, [`write`] writes. What contradicts itself is not rebuilt: whose
//! pages are right is then for people to say.

use std::collections::BTreeMap;
use std::path::Path;

use wire::{ClusterId, ServerId};

use super::check::on_shard;
use super::fold::Pending;
use super::header::{Hdr, SlotState};
use super::io::Io;
use super::layout::{HALF_OFFSETS, PAGE, RING_LOG_START};
use super::open::{self, BOTH_BAD, REBUILD};
use super::page::{Bad, Common, Disk, DiskState, Page, Ring};
use super::record::Body;
use super::walk::Stream;
use super::{DiskLock, OpenError};
use crate::runtime::{FileId, Folder, Open, Runtime};

/// Numbers without a file that are passed over: files are made in the order of their numbers, and are
/// not removed.
const GAP_MAX: u32 = 1024;

/// A page that says which disk it is of.
#[derive(Clone, Debug)]
struct Witness {
    file: String,
    disk_uuid: [u8; 16],
}

/// What journals and slots say about their disk.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    witnesses: Vec<Witness>,
    /// Why each copy of DISK is bad; `None`: it is good.
    pub disk: [Option<String>; 2],
    /// A copy of DISK is of a format that this build does not read.
    other_format: bool,
    /// The disk that most pages name, and how many of how many do.
    pub disk_uuid: [u8; 16],
    /// Pages that name it.
    pub agree: usize,
    /// Newest boot of any page.
    pub boot_gen: u64,
    /// Largest record number of any page.
    pub lsn: u64,
    /// Journals that may hold records.
    pub rings: u32,
    /// Of these, how many have no valid page.
    pub rings_unknown: u32,
    /// A journal in use whose file is missing.
    missing_ring: Option<u32>,
    /// Log area of the first journal.
    pub ring_bytes: u64,
    /// One more than the highest slot file.
    pub slots: u32,
    /// Of these, how many have no valid header.
    pub slots_lost: u32,
    /// Chunks that slot headers name.
    pub chunks: u64,
    /// Highest term of a master.
    pub master_term: u32,
    /// Server that most headers and records of chunks name as their own, and how many do.
    pub server: Option<(ServerId, u64)>,
    /// Servers that are named at all.
    pub servers_named: usize,
}

impl Evidence {
    /// Pages that were read and are valid.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.witnesses.len()
    }
}

/// What a rebuild would make, or made.
#[derive(Clone, Copy, Debug)]
pub struct Rebuilt {
    /// Whose the disk is.
    pub cluster: ClusterId,
    /// As `cluster`.
    pub server: ServerId,
    /// What its pages call it.
    pub disk_uuid: [u8; 16],
    /// Newest boot.
    pub boot_gen: u64,
    /// Journals in use.
    pub rings: u32,
    /// Slots.
    pub slots: u32,
}

/// Whose disk it is said to be, and whether to write.
#[derive(Clone, Copy, Debug)]
pub struct RebuildOptions {
    /// The cluster: no page but DISK names it.
    pub cluster: ClusterId,
    /// The server; `None`: as the chunks say.
    pub server: Option<ServerId>,
    /// Write; otherwise nothing changes.
    pub write: bool,
    /// Wall clock, for display.
    pub unix_seconds: u64,
}

/// Looks what journals and slots say, and what DISK they make; writes it when told to. Holds the
/// disk's lock. What was written is durable on return. Blocks.
///
/// # Errors
///
/// There is no disk, or another process uses it. The inner one: the evidence makes no DISK, see [`plan`].
pub fn rebuild(root: &Path, options: RebuildOptions) -> Result<(Evidence, Result<Rebuilt, OpenError>), OpenError> {
    let _lock = DiskLock::of_existing(root)?;
    let root = root.to_owned();
    on_shard(move |rt| async move {
        let io = Io::new(rt);
        let found = look(&io, &root).await?;
        let disk = match plan(&found, options.cluster, options.server, options.unix_seconds) {
            Ok(disk) => disk,
            Err(refused) => return Ok((found, Err(refused))),
        };
        if options.write {
            write(&io, &root, &disk).await?;
        }
        let rebuilt = Rebuilt {
            cluster: disk.cluster,
            server: disk.server,
            disk_uuid: disk.common.disk_uuid,
            boot_gen: disk.common.boot_gen,
            rings: disk.rings,
            slots: disk.slots,
        };
        Ok((found, Ok(rebuilt)))
    })?
}

/// Takes a disk out of use for good, or back into use. Holds its lock; durable on return. Blocks.
///
/// # Errors
///
/// There is no disk, another process uses it, DISK cannot be read, or it is so already.
pub fn set_retired(root: &Path, retired: bool) -> Result<(), OpenError> {
    let _lock = DiskLock::of_existing(root)?;
    let root = root.to_owned();
    on_shard(move |rt| async move {
        let io = Io::new(rt);
        let mut copies = Vec::new();
        for id in [FileId::DiskA, FileId::DiskB] {
            let page = read(&io, &root, id, 0).await.ok().flatten();
            copies.push(page.map_or(Err(Bad::Blank), |page| Disk::decode(&page)));
        }
        let (Some(b), Some(a)) = (copies.pop(), copies.pop()) else {
            return Err(OpenError::new(BOTH_BAD, REBUILD));
        };
        let Some(mut disk) = open::choose(a, b)?.map(|picked| picked.root) else {
            return Err(OpenError::new(BOTH_BAD, REBUILD));
        };
        if (disk.state == DiskState::Retired) == retired {
            let what = if retired { "the disk is retired already" } else { "the disk is not retired" };
            return Err(OpenError::new(what, "`hercules disk status` shows its state"));
        }
        // What it was before is not known: the next start takes nothing as proven without looking.
        disk.state = if retired { DiskState::Retired } else { DiskState::Fenced };
        disk.common.page_seq += 1;
        write(&io, &root, &disk).await
    })?
}

/// Reads the roots of every journal and slot. Changes nothing.
///
/// # Errors
///
/// The folder does not answer.
pub(crate) async fn look<R: Runtime>(io: &Io<R>, root: &Path) -> Result<Evidence, OpenError> {
    let mut found = Evidence::default();
    for (id, copy) in [(FileId::DiskA, 0), (FileId::DiskB, 1)] {
        let bad = match read(io, root, id, 0).await {
            Ok(Some(page)) => Disk::decode(&page).err(),
            Ok(None) => Some(Bad::Blank),
            Err(error) => {
                found.disk[copy] = Some(error.to_string());
                continue;
            }
        };
        found.other_format |= matches!(bad, Some(Bad::Format(_)));
        found.disk[copy] = bad.map(|bad| bad.to_string());
    }
    let mut servers = BTreeMap::new();
    look_at_rings(io, root, &mut found, &mut servers).await?;
    look_at_slots(io, root, &mut found, &mut servers).await?;
    found.servers_named = servers.len();
    found.server = servers.into_iter().max_by_key(|(_, count)| *count);
    let mut votes: BTreeMap<[u8; 16], usize> = BTreeMap::new();
    found.witnesses.iter().for_each(|witness| *votes.entry(witness.disk_uuid).or_default() += 1);
    if let Some((uuid, count)) = votes.into_iter().max_by_key(|(_, count)| *count) {
        (found.disk_uuid, found.agree) = (uuid, count);
    }
    Ok(found)
}

/// A page; `None` when the file is missing or ends before it.
async fn read<R: Runtime>(io: &Io<R>, root: &Path, id: FileId, offset: u64) -> std::io::Result<Option<Box<Page>>> {
    if io.rt.file_len(root, id).await?.is_none_or(|len| len < offset + PAGE as u64) {
        return Ok(None);
    }
    let file = io.rt.open(root, id, Open::ReadOnly).await?;
    io.read_page(&file, offset).await.map(Some)
}

async fn exists<R: Runtime>(io: &Io<R>, root: &Path, id: FileId) -> Result<bool, OpenError> {
    let len = io.rt.file_len(root, id).await;
    Ok(len.map_err(|error| OpenError::io("cannot look at the disk", &error))?.is_some())
}

/// How often each server is named as the one that this disk is on.
type Servers = BTreeMap<ServerId, u64>;

async fn look_at_rings<R: Runtime>(
    io: &Io<R>,
    root: &Path,
    found: &mut Evidence,
    servers: &mut Servers,
) -> Result<(), OpenError> {
    let (mut number, mut gap) = (0, 0);
    let mut first_gap = None;
    while gap < GAP_MAX {
        let id = FileId::Ring(number);
        if !exists(io, root, id).await? {
            first_gap = first_gap.or(Some(number));
            (number, gap) = (number + 1, gap + 1);
            continue;
        }
        gap = 0;
        let mut best: Option<Ring> = None;
        for offset in [0, PAGE as u64] {
            let Ok(Some(page)) = read(io, root, id, offset).await else { continue };
            let Ok(ring) = Ring::decode(&page) else { continue };
            found.saw(format!("journal/ring-{number:04}"), &ring.common);
            if best.as_ref().is_none_or(|best| ring.common.page_seq > best.common.page_seq) {
                best = Some(ring);
            }
        }
        // One without a page may hold records: it counts.
        if best.as_ref().is_none_or(|ring| !ring.retired) {
            found.rings_unknown += u32::from(best.is_none());
            found.rings = number + 1;
        }
        if let Some(ring) = best.as_ref().filter(|ring| !ring.retired && ring.common.number == number) {
            look_at_records(io, root, ring, servers).await;
        }
        let bytes = match best {
            Some(ring) => ring.log_bytes,
            None => {
                let len = io.rt.file_len(root, id).await.ok().flatten().unwrap_or(0);
                len.saturating_sub(RING_LOG_START) / PAGE as u64 * PAGE as u64
            }
        };
        if found.ring_bytes == 0 {
            found.ring_bytes = bytes;
        }
        number += 1;
    }
    found.missing_ring = first_gap.filter(|gap| *gap < found.rings);
    Ok(())
}

/// Chunks that only a journal knows of: the record that made each names its chain.
async fn look_at_records<R: Runtime>(io: &Io<R>, root: &Path, ring: &Ring, servers: &mut Servers) {
    let Ok(file) = io.rt.open(root, FileId::Ring(ring.common.number), Open::ReadOnly).await else { return };
    let walked = Stream::new(io, &file, ring)
        .walk(ring, async |record: Pending| {
            if let Ok(Body::Create(create)) = Body::decode(record.head.kind, &record.body)
                && let Some(server) = create.members.get(usize::from(create.my_position))
            {
                *servers.entry(*server).or_default() += 1;
            }
            Ok(())
        })
        .await;
    if let Err(error) = walked {
        tracing::warn!(ring = ring.common.number, %error, "a journal is read in part");
    }
}

async fn look_at_slots<R: Runtime>(
    io: &Io<R>,
    root: &Path,
    found: &mut Evidence,
    servers: &mut Servers,
) -> Result<(), OpenError> {
    let (mut number, mut gap) = (0, 0);
    while gap < GAP_MAX {
        let id = FileId::Slot(number);
        if !exists(io, root, id).await? {
            (number, gap) = (number + 1, gap + 1);
            continue;
        }
        let mut best: Option<Hdr> = None;
        for offset in HALF_OFFSETS {
            let Ok(Some(page)) = read(io, root, id, offset).await else { continue };
            let Ok(hdr) = Hdr::decode(&page) else { continue };
            if hdr.common.number != number {
                continue;
            }
            found.saw(format!("slots/{number:08}"), &hdr.common);
            if best.as_ref().is_none_or(|best| hdr.common.page_seq > best.common.page_seq) {
                best = Some(hdr);
            }
        }
        found.slots_lost += u32::from(best.is_none()) + gap;
        gap = 0;
        number += 1;
        found.slots = number;
        let Some(hdr) = best.filter(|hdr| hdr.state != SlotState::Free) else { continue };
        found.chunks += 1;
        found.master_term = found.master_term.max(hdr.master_term);
        if let Some(server) = hdr.members.get(usize::from(hdr.my_position)) {
            *servers.entry(*server).or_default() += 1;
        }
    }
    Ok(())
}

impl Evidence {
    fn saw(&mut self, file: String, common: &Common) {
        self.boot_gen = self.boot_gen.max(common.boot_gen);
        self.lsn = self.lsn.max(common.lsn);
        self.witnesses.push(Witness { file, disk_uuid: common.disk_uuid });
    }
}

/// The DISK page that the evidence leads to. `server` may be left to what chunks name.
///
/// # Errors
///
/// There is nothing to rebuild, nothing to rebuild from, or the evidence contradicts itself.
pub(crate) fn plan(
    found: &Evidence,
    cluster: ClusterId,
    server: Option<ServerId>,
    now: u64,
) -> Result<Disk, OpenError> {
    let refuse = |what: String, remedy: &str| Err(OpenError::new(what, remedy));
    if found.other_format {
        let what = "DISK is of a format that this build does not read";
        return refuse(what.into(), "use the build that wrote it, or a newer one");
    }
    if let Some(good) = found.disk.iter().position(Option::is_none) {
        let what = format!("DISK.{} is good: there is nothing to rebuild", ['A', 'B'][good]);
        return refuse(what, "start the server: it heals the other copy");
    }
    if found.pages() == 0 {
        let what = "no journal and no slot has a valid page: there is nothing to rebuild from";
        return refuse(what.into(), "check the folder; if this is the disk, replace it");
    }
    let stray: Vec<&str> = found
        .witnesses
        .iter()
        .filter(|witness| witness.disk_uuid != found.disk_uuid)
        .map(|witness| witness.file.as_str())
        .collect();
    if let Some(first) = stray.first() {
        let what = format!("{} of {} pages name another disk, the first in {first}", stray.len(), found.pages());
        return refuse(what, "move the files that are not of this disk away, then repeat");
    }
    if let Some(ring) = found.missing_ring {
        let what = format!("journal/ring-{ring:04} is missing, and a later journal is in use");
        return refuse(what, "put the file back; without it the disk cannot be recovered");
    }
    if found.rings == 0 {
        return refuse("no journal is in use".into(), "put the journal folder back, then repeat");
    }
    let server = match (server, found.server) {
        (Some(given), Some((named, chunks))) if given != named => {
            let what = format!("{chunks} chunks say they are on server {named}, not on server {given}");
            return refuse(what, "give the number that the chunks name by --server");
        }
        (Some(given), _) => given,
        (None, Some((named, _))) if found.servers_named == 1 => named,
        (None, _) => {
            let what = "the chunks do not say which server this disk is of";
            return refuse(what.into(), "give it by --server; `hercules status` lists the servers");
        }
    };
    Ok(Disk {
        common: Common {
            disk_uuid: found.disk_uuid,
            page_seq: 1,
            boot_gen: found.boot_gen,
            lsn: found.lsn,
            ..Common::default()
        },
        cluster,
        server,
        // The next start takes nothing as proven without looking.
        state: DiskState::Fenced,
        rings: found.rings,
        slots: found.slots,
        ring_bytes: found.ring_bytes,
        master_term: found.master_term,
        eio_count: 0,
        eio_last: 0,
        created: now,
    })
}

/// Writes both copies. Durable on return.
pub(crate) async fn write<R: Runtime>(io: &Io<R>, root: &Path, disk: &Disk) -> Result<(), OpenError> {
    let failed = |error: std::io::Error| OpenError::io("cannot write DISK", &error);
    // One after the other: whatever ends this in between, a copy is good.
    for copy in [FileId::DiskA, FileId::DiskB] {
        let file = io.rt.open(root, copy, Open::Create).await.map_err(failed)?;
        io.write_bytes(&file, disk.encode().as_slice(), 0).await.map_err(failed)?;
        io.fsync(&file).await.map_err(failed)?;
    }
    io.sync_folder(root, Folder::Root).await.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId([7; 16]);

    fn found() -> Evidence {
        let witness = |file: &str| Witness { file: file.into(), disk_uuid: [1; 16] };
        Evidence {
            witnesses: vec![witness("journal/ring-0000"), witness("slots/00000000"), witness("slots/00000001")],
            disk: [Some("wrong checksum".into()), Some("blank page".into())],
            disk_uuid: [1; 16],
            agree: 3,
            boot_gen: 4,
            lsn: 99,
            rings: 2,
            ring_bytes: 1 << 20,
            slots: 2,
            server: Some((ServerId(3), 2)),
            servers_named: 1,
            ..Evidence::default()
        }
    }

    fn refused(change: impl FnOnce(&mut Evidence), server: Option<u32>) -> String {
        let mut found = found();
        change(&mut found);
        plan(&found, CLUSTER, server.map(ServerId), 5).unwrap_err().what
    }

    #[test]
    fn evidence_that_agrees_makes_a_disk_that_the_next_start_verifies() {
        let disk = plan(&found(), CLUSTER, None, 5).unwrap();
        assert_eq!((disk.common.disk_uuid, disk.common.boot_gen, disk.common.lsn), ([1; 16], 4, 99));
        assert_eq!((disk.cluster, disk.server, disk.state), (CLUSTER, ServerId(3), DiskState::Fenced));
        assert_eq!((disk.rings, disk.slots, disk.ring_bytes, disk.created), (2, 2, 1 << 20, 5));
        assert_eq!(Disk::decode(&disk.encode()), Ok(disk));
        assert_eq!(plan(&found(), CLUSTER, Some(ServerId(3)), 5).unwrap().server, ServerId(3));
    }

    #[test]
    fn evidence_that_contradicts_itself_makes_none() {
        assert!(refused(|found| found.disk[1] = None, None).contains("DISK.B is good"));
        assert!(refused(|found| found.other_format = true, None).contains("format"));
        assert!(refused(|found| found.witnesses.clear(), None).contains("nothing to rebuild from"));
        let stray = refused(|found| found.witnesses[1].disk_uuid = [2; 16], None);
        assert_eq!(stray, "1 of 3 pages name another disk, the first in slots/00000000");
        assert!(refused(|found| found.missing_ring = Some(0), None).contains("ring-0000 is missing"));
        assert!(refused(|found| found.rings = 0, None).contains("no journal"));
        assert!(refused(|_| {}, Some(9)).contains("on server 3, not on server 9"));
        assert!(refused(|found| found.servers_named = 2, None).contains("do not say"));
        assert!(refused(|found| found.server = None, None).contains("do not say"));
    }
}
