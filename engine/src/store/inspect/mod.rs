//! `inspect`: what lies on a disk, for people. Nothing is believed and nothing is changed; what is
//! damaged is shown with what is wrong.
//!
//! What is shown is the disk as it lies, before any journal is replayed: [`super::check`] says what a
//! start would make of it. A disk in use may change while it is read.

mod fields;
mod journal;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use wire::ChunkHandle;

use fields::Layout;
pub use fields::Shown;
pub use journal::{RecordLine, RecordsEnd};

use super::OpenError;
use super::check::{Trailer, name, named, on_shard, said};
use super::header::{Hdr, SlotState};
use super::io::Io;
use super::layout::{
    BLOCK, CHUNK_CAPACITY, CRCS_PER_PAGE, Child, HALF_OFFSETS, HALF_PAGES, PAGE, RING_LOG_START, SLOT_LEN,
};
use super::page::{self, Bad, Disk, Page, Picked, Ring, pick};
use crate::runtime::{FileId, Open, Runtime};

/// A page by its place, and what it holds.
#[derive(Clone, Debug)]
pub struct PageShown {
    /// Which file, below the disk's folder.
    pub file: String,
    /// Where in it.
    pub offset: u64,
    /// `DISK`, `RING`, `HDR`, `TAIL`, `DEDUP`, `CRC`, `record`, `data`.
    pub kind: &'static str,
    /// What is wrong with it; `None`: it is valid, or nothing says what it should be.
    pub wrong: Option<String>,
    /// CRC of all its bytes.
    pub crc: u32,
    /// Its fields; none for `TAIL` and `data`.
    pub fields: Vec<Shown>,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// A disk at a glance.
#[derive(Clone, Debug)]
pub struct Overview {
    /// Both copies of DISK.
    pub disk: [PageShown; 2],
    /// Which of them counts: 0 is A.
    pub current: Option<usize>,
    /// Each journal that DISK names, and each file beyond.
    pub rings: Vec<RingLine>,
    /// Each slot file.
    pub slots: Vec<SlotLine>,
}

/// One journal.
#[derive(Clone, Debug)]
pub struct RingLine {
    /// Its number.
    pub ring: u32,
    /// What is wrong with each copy of its root.
    pub wrong: [Option<String>; 2],
    /// Out of use.
    pub retired: bool,
    /// Length of the log area.
    pub log_bytes: u64,
    /// Where replay starts, in the log area.
    pub start_off: u64,
    /// Bytes of records to replay.
    pub used: u64,
    /// First record to replay.
    pub first_lsn: u64,
    /// Records to replay, and how they end; `Err`: what is wrong.
    pub records: Result<RecordsEnd, String>,
    /// `durable_upto` of the root.
    pub durable_upto: u64,
}

/// One slot, by its current header.
#[derive(Clone, Debug)]
pub struct SlotLine {
    /// Its number.
    pub slot: u32,
    /// What is wrong with each copy of its header.
    pub wrong: [Option<String>; 2],
    /// `FREE`, `OPEN`, `RWR`, `SEALED`, `CONDEMNED`, or `?` when both headers are bad.
    pub state: String,
    /// Zero when it is free.
    pub chunk: u64,
    /// Epoch of its log.
    pub epoch: u32,
    /// Bytes up to the last checkpoint.
    pub len: u32,
    /// Of these, known committed.
    pub committed_len: u32,
    /// Names of its flags.
    pub flags: String,
    /// Records up to here are in the header.
    pub ckpt_lsn: u64,
}

/// A slot in full.
#[derive(Clone, Debug)]
pub struct SlotShown {
    /// Its number.
    pub slot: u32,
    /// Both headers.
    pub headers: [PageShown; 2],
    /// Which of them counts: 0 is A.
    pub current: Option<usize>,
    /// Each child that the current header names.
    pub children: Vec<ChildLine>,
    /// The dedup table, of pages that are good.
    pub dedup: Vec<wire::DedupEntry>,
    /// Block checksums, of pages that are good: page, checksums in use, CRC over them.
    pub crcs: Vec<(usize, usize, u32)>,
}

/// One child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildLine {
    /// `TAIL`, `DEDUP 0`, `CRC 16`.
    pub name: String,
    /// `A` or `B`.
    pub copy: char,
    /// Where in the slot file.
    pub offset: u64,
    /// What is wrong with it.
    pub wrong: Option<String>,
}

/// Which structure of a disk.
#[derive(Clone, Copy, Debug)]
pub enum What {
    /// By its number.
    Slot(u32),
    /// By the chunk that its header names.
    Chunk(ChunkHandle),
}

/// The disk at a glance. Blocks.
///
/// # Errors
///
/// There is no disk. Damage is shown, and is no error.
pub fn overview(root: &Path) -> Result<Overview, OpenError> {
    with_disk(root, |rt, root| async move { overview_of(&Io::new(rt), &root).await })
}

/// A slot in full; several when several headers name the chunk. Blocks.
///
/// # Errors
///
/// There is no disk, no such slot, or no header that names the chunk.
pub fn slots(root: &Path, what: What) -> Result<Vec<SlotShown>, OpenError> {
    with_disk(root, move |rt, root| async move {
        let io = Io::new(rt);
        let uuid = disk_of(&io, &root).await.map(|disk| disk.common.disk_uuid);
        let wanted = match what {
            What::Slot(slot) => vec![slot],
            What::Chunk(chunk) => {
                let lines = slot_lines(&io, &root, uuid.as_ref()).await;
                lines.iter().filter(|line| line.chunk == chunk.0).map(|line| line.slot).collect()
            }
        };
        if let (What::Chunk(chunk), true) = (what, wanted.is_empty()) {
            let what = format!("no header of a slot names chunk {chunk}");
            return Err(OpenError::new(what, "it may be in the journal only: `hercules fsck --chunk` replays that"));
        }
        let mut shown = Vec::new();
        for slot in wanted {
            shown.push(slot_of(&io, &root, slot, uuid.as_ref()).await?);
        }
        Ok(shown)
    })
}

/// The records of a journal that would be replayed, from `from` on, at most `limit`. Blocks.
///
/// # Errors
///
/// There is no disk, no such journal, or both copies of its root are bad.
pub fn records(root: &Path, ring: u32, from: u64, limit: usize) -> Result<(Vec<RecordLine>, RecordsEnd), OpenError> {
    with_disk(root, move |rt, root| async move {
        let mut lines = Vec::new();
        let take = |line: RecordLine| {
            if line.lsn >= from && lines.len() < limit {
                lines.push(line);
            }
            if lines.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let end = journal::records(&Io::new(rt), &root, ring, take).await?;
        Ok((lines, end))
    })
}

/// One page of a file: `DISK.A`, `journal/ring-0000`, `slots/00000001`. `offset` is a multiple of 4,096. Blocks.
///
/// # Errors
///
/// There is no disk or no such file, or the page cannot be read.
pub fn page_at(root: &Path, file: &str, offset: u64) -> Result<PageShown, OpenError> {
    let Some(id) = file_id(file) else {
        let what = format!("{file} is no file of a disk");
        return Err(OpenError::new(what, "name DISK.A, DISK.B, journal/ring-0000 or slots/00000000"));
    };
    if !offset.is_multiple_of(PAGE as u64) {
        return Err(OpenError::new(format!("{offset} is not the start of a page"), "use a multiple of 4096"));
    }
    with_disk(root, move |rt, root| async move {
        let io = Io::new(rt);
        let page = read(&io, &root, id, offset).await;
        let uuid = disk_of(&io, &root).await.map(|disk| disk.common.disk_uuid);
        let page = page.map_err(|why| {
            OpenError::new(
                format!("{}, page at {offset}: {why}", file_name(id)),
                "see `hercules inspect --data-dir DIR`",
            )
        })?;
        Ok(show_page(id, offset, &page, uuid.as_ref()))
    })
}

fn with_disk<T, W>(
    root: &Path,
    work: impl FnOnce(crate::runtime::monoio::MonoioRuntime<crate::runtime::monoio::Epoll>, PathBuf) -> W + Send + 'static,
) -> Result<T, OpenError>
where
    T: Send + 'static,
    W: Future<Output = Result<T, OpenError>> + 'static,
{
    super::in_use(root)?;
    let root = root.to_owned();
    on_shard(move |rt| work(rt, root))?
}

/// A file by its name.
fn file_id(name: &str) -> Option<FileId> {
    match name {
        "DISK.A" => Some(FileId::DiskA),
        "DISK.B" => Some(FileId::DiskB),
        _ => {
            let ring = name.strip_prefix("journal/ring-").and_then(|number| number.parse().ok()).map(FileId::Ring);
            ring.or_else(|| name.strip_prefix("slots/").and_then(|number| number.parse().ok()).map(FileId::Slot))
        }
    }
}

fn file_name(id: FileId) -> String {
    match id {
        FileId::DiskA => "DISK.A".into(),
        FileId::DiskB => "DISK.B".into(),
        FileId::Ring(number) => format!("journal/ring-{number:04}"),
        FileId::Slot(number) => format!("slots/{number:08}"),
    }
}

async fn read<R: Runtime>(io: &Io<R>, root: &Path, id: FileId, offset: u64) -> Result<Box<Page>, String> {
    let file = io.rt.open(root, id, Open::ReadOnly).await.map_err(|error| said(&error))?;
    io.read_page(&file, offset).await.map_err(|error| said(&error))
}

/// The DISK page that counts.
async fn disk_of<R: Runtime>(io: &Io<R>, root: &Path) -> Option<Disk> {
    let mut copies = Vec::new();
    for id in [FileId::DiskA, FileId::DiskB] {
        let page = read(io, root, id, 0).await;
        copies.push(page.map_err(|_| Bad::Blank).and_then(|page| Disk::decode(&page)));
    }
    let (b, a) = (copies.pop()?, copies.pop()?);
    pick(a, b).map(|Picked { root: disk, .. }| disk)
}

/// A page with its fields, and what is wrong with it at this place.
fn show_page(id: FileId, offset: u64, page: &Page, disk_uuid: Option<&[u8; 16]>) -> PageShown {
    let layout = Layout::of(page);
    let (kind, wrong) = match place(id, offset) {
        Place::Data if layout != Some(Layout::Record) || matches!(id, FileId::Slot(_)) => ("data", None),
        Place::Data => ("record", wrong_record(page, disk_uuid)),
        Place::Tail => ("TAIL", None),
        Place::Page(layout) => (layout.name(), wrong_page(layout, id, page, disk_uuid)),
    };
    let fields = match (kind, layout) {
        ("data" | "TAIL", _) | (_, None) => Vec::new(),
        (_, Some(layout)) => fields::show(layout, page),
    };
    let crc = crc32c::crc32c(page);
    PageShown { file: file_name(id), offset, kind, wrong, crc, fields, bytes: page.to_vec() }
}

/// What belongs at a place.
enum Place {
    Page(Layout),
    Tail,
    /// Content, journal, or zeros.
    Data,
}

fn place(id: FileId, offset: u64) -> Place {
    match id {
        FileId::DiskA | FileId::DiskB => Place::Page(Layout::Disk),
        FileId::Ring(_) if offset < RING_LOG_START => Place::Page(Layout::Ring),
        FileId::Slot(_) if (u64::from(CHUNK_CAPACITY)..SLOT_LEN).contains(&offset) => {
            let in_half = (offset - HALF_OFFSETS[0]) / PAGE as u64 % HALF_PAGES as u64;
            match in_half {
                0 => Place::Page(Layout::Header),
                1 => Place::Tail,
                2..=5 => Place::Page(Layout::Dedup),
                6..=22 => Place::Page(Layout::Crc),
                _ => Place::Data,
            }
        }
        FileId::Ring(_) | FileId::Slot(_) => Place::Data,
    }
}

fn wrong_page(layout: Layout, id: FileId, page: &Page, disk_uuid: Option<&[u8; 16]>) -> Option<String> {
    let number = match id {
        FileId::Ring(number) | FileId::Slot(number) => number,
        FileId::DiskA | FileId::DiskB => 0,
    };
    let common = match layout {
        Layout::Disk => Disk::decode(page).map(|disk| disk.common),
        Layout::Ring => Ring::decode(page).map(|ring| ring.common),
        Layout::Header => Hdr::decode(page).map(|hdr| hdr.common),
        Layout::Dedup => page::decode_dedup(page).map(|(common, _)| common),
        Layout::Crc | Layout::Record => page::decode_crcs(page).map(|(common, _)| common),
    };
    match common {
        Err(bad) => Some(bad.to_string()),
        Ok(common) if common.number != number => Some(format!("it is of number {}", common.number)),
        Ok(common) if disk_uuid.is_some_and(|uuid| *uuid != common.disk_uuid) => {
            Some(format!("it is of disk {}", fields::plain(&common.disk_uuid)))
        }
        Ok(_) => None,
    }
}

/// A record at the front of a page; one that is longer than the page is not judged.
fn wrong_record(page: &Page, disk_uuid: Option<&[u8; 16]>) -> Option<String> {
    match super::batch::any(page, disk_uuid?) {
        super::batch::Found::End => Some("wrong checksum".into()),
        super::batch::Found::Record(..) | super::batch::Found::More(_) => None,
    }
}

async fn overview_of<R: Runtime>(io: &Io<R>, root: &Path) -> Result<Overview, OpenError> {
    let disk = disk_of(io, root).await;
    let uuid = disk.as_ref().map(|disk| disk.common.disk_uuid);
    let mut copies = Vec::new();
    for id in [FileId::DiskA, FileId::DiskB] {
        copies.push(page_or_why(io, root, id, 0, "DISK", uuid.as_ref()).await);
    }
    let copies: [PageShown; 2] = copies.try_into().unwrap_or_else(|_| unreachable!("two were pushed"));
    let current = disk.as_ref().and_then(|disk| current(&copies, disk.common.page_seq));
    let mut rings = Vec::new();
    let mut number = 0;
    let in_use = disk.as_ref().map_or(0, |disk| disk.rings);
    while number < in_use || is_there(io, root, FileId::Ring(number)).await {
        rings.push(ring_line(io, root, number).await);
        number += 1;
    }
    let slots = slot_lines(io, root, uuid.as_ref()).await;
    Ok(Overview { disk: copies, current, rings, slots })
}

/// The valid copy with this version.
fn current(copies: &[PageShown; 2], page_seq: u64) -> Option<usize> {
    let seq =
        |copy: &PageShown| copy.fields.iter().find(|field| field.name == "page_seq").and_then(|field| field.number);
    copies.iter().position(|copy| copy.wrong.is_none() && seq(copy) == Some(page_seq))
}

async fn page_or_why<R: Runtime>(
    io: &Io<R>,
    root: &Path,
    id: FileId,
    offset: u64,
    kind: &'static str,
    uuid: Option<&[u8; 16]>,
) -> PageShown {
    match read(io, root, id, offset).await {
        Ok(page) => show_page(id, offset, &page, uuid),
        Err(why) => missing(id, offset, kind, why),
    }
}

fn missing(id: FileId, offset: u64, kind: &'static str, why: String) -> PageShown {
    PageShown { file: file_name(id), offset, kind, wrong: Some(why), crc: 0, fields: Vec::new(), bytes: Vec::new() }
}

async fn is_there<R: Runtime>(io: &Io<R>, root: &Path, id: FileId) -> bool {
    io.rt.file_len(root, id).await.is_ok_and(|len| len.is_some())
}

async fn ring_line<R: Runtime>(io: &Io<R>, root: &Path, number: u32) -> RingLine {
    let mut wrong = [None, None];
    for (wrong, offset) in wrong.iter_mut().zip([0, PAGE as u64]) {
        *wrong = page_or_why(io, root, FileId::Ring(number), offset, "RING", None).await.wrong;
    }
    let mut line = RingLine {
        ring: number,
        wrong,
        retired: false,
        log_bytes: 0,
        start_off: 0,
        used: 0,
        first_lsn: 0,
        records: Err(String::new()),
        durable_upto: 0,
    };
    match journal::root_of(io, root, number).await {
        Ok((_, ring)) => {
            line.retired = ring.retired;
            (line.log_bytes, line.start_off, line.durable_upto) = (ring.log_bytes, ring.start_off, ring.durable_upto);
            line.first_lsn = ring.common.lsn + 1;
            let mut used = 0;
            let add = |record: RecordLine| {
                used += u64::from(record.span);
                ControlFlow::Continue(())
            };
            let records = journal::records(io, root, number, add).await;
            line.records = records.map_err(|error| error.what);
            line.used = used;
        }
        Err(why) => line.records = Err(why),
    }
    line
}

/// Slot files until the numbers end; DISK's count is not needed.
async fn slot_lines<R: Runtime>(io: &Io<R>, root: &Path, uuid: Option<&[u8; 16]>) -> Vec<SlotLine> {
    let named = disk_of(io, root).await.map_or(0, |disk| disk.slots);
    let mut lines = Vec::new();
    let mut slot = 0;
    while slot < named || is_there(io, root, FileId::Slot(slot)).await {
        let mut headers = Vec::new();
        for offset in HALF_OFFSETS {
            let page = read(io, root, FileId::Slot(slot), offset).await;
            headers.push(page.and_then(|page| header_of(&page, slot, uuid)));
        }
        if let (Some(b), Some(a)) = (headers.pop(), headers.pop()) {
            lines.push(slot_line(slot, a, b));
        }
        slot += 1;
    }
    lines
}

fn header_of(page: &Page, slot: u32, uuid: Option<&[u8; 16]>) -> Result<Hdr, String> {
    match wrong_page(Layout::Header, FileId::Slot(slot), page, uuid) {
        Some(why) => Err(why),
        None => Hdr::decode(page).map_err(|bad| bad.to_string()),
    }
}

fn slot_line(slot: u32, a: Result<Hdr, String>, b: Result<Hdr, String>) -> SlotLine {
    let wrong = [a.as_ref().err().cloned(), b.as_ref().err().cloned()];
    let picked = pick(a.map_err(|_| Bad::Checksum), b.map_err(|_| Bad::Checksum));
    let hdr = picked.map(|Picked { root: hdr, .. }| hdr);
    let state = hdr.as_ref().and_then(|hdr| fields::slot_state(hdr.state as u64)).unwrap_or_else(|| "?".into());
    let hdr = hdr.unwrap_or_default();
    SlotLine {
        slot,
        wrong,
        state,
        chunk: hdr.common.chunk,
        epoch: hdr.epoch.0,
        len: hdr.durable_len,
        committed_len: hdr.committed_len,
        flags: fields::flags(hdr.flags.0.into()).unwrap_or_default(),
        ckpt_lsn: hdr.common.lsn,
    }
}

async fn slot_of<R: Runtime>(
    io: &Io<R>,
    root: &Path,
    slot: u32,
    uuid: Option<&[u8; 16]>,
) -> Result<SlotShown, OpenError> {
    let id = FileId::Slot(slot);
    let file = io.rt.open(root, id, Open::ReadOnly).await.map_err(|error| {
        OpenError::new(
            format!("{}: {}", file_name(id), said(&error)),
            "`hercules inspect --data-dir DIR` lists the slots",
        )
    })?;
    let trailer = Trailer::read(io, &file).await;
    let headers = HALF_OFFSETS.map(|offset| match trailer.at(offset) {
        Ok(page) => show_page(id, offset, page, uuid),
        Err(why) => missing(id, offset, "HDR", why),
    });
    let decoded = HALF_OFFSETS.map(|offset| {
        let hdr = trailer.at(offset).and_then(|page| header_of(page, slot, uuid));
        hdr.map_err(|_| Bad::Checksum)
    });
    let [a, b] = decoded;
    let mut shown =
        SlotShown { slot, headers, current: None, children: Vec::new(), dedup: Vec::new(), crcs: Vec::new() };
    let Some(Picked { root: hdr, .. }) = pick(a, b) else { return Ok(shown) };
    shown.current = current(&shown.headers, hdr.common.page_seq);
    if hdr.state == SlotState::Free {
        return Ok(shown);
    }
    for child in named(&hdr) {
        let copy = hdr.copy_of(child);
        let page = trailer.child(&hdr, child);
        shown.children.push(ChildLine {
            name: name(child),
            copy: ['A', 'B'][copy],
            offset: child.offset(copy),
            wrong: page.as_ref().err().cloned(),
        });
        match (child, page) {
            (Child::Dedup(_), Ok(page)) => {
                shown.dedup.extend(page::decode_dedup(page).map(|(_, entries)| entries).unwrap_or_default());
            }
            (Child::Crc(index), Ok(page)) => {
                let used = (hdr.durable_len.div_ceil(BLOCK) as usize).saturating_sub(index * CRCS_PER_PAGE);
                let used = used.min(CRCS_PER_PAGE);
                shown.crcs.push((index, used, crc32c::crc32c(&page[64..64 + used * 4])));
            }
            _ => {}
        }
    }
    Ok(shown)
}

impl Overview {
    /// How many slots are in each state.
    #[must_use]
    pub fn by_state(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        self.slots.iter().for_each(|slot| *counts.entry(slot.state.as_str()).or_default() += 1);
        counts
    }
}
