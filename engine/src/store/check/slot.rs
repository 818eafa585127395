//! One slot: its trailer as it is on the disk, and its content as recovery leaves it.

use std::io;

use super::overlay::Overlay;
use super::report::{ChunkFacts, Problem, SlotReport, Why};
use super::survey::{Plan, said};
use crate::runtime::{FileId, Open, Runtime};
use crate::store::crcs;
use crate::store::header::{Flags, Hdr, SlotState};
use crate::store::io::Io;
use crate::store::layout::{BLOCK, CRC_PAGES, CRCS_PER_PAGE, Child, DEDUP_PAGES, HALF_OFFSETS, HALF_PAGES, PAGE};
use crate::store::load::crc_page;
use crate::store::page::{self, Bad, CrcPage, Page, Picked, pick};
use crate::store::recover::Seed;
use crate::store::replica::{self, Replica};

/// Blocks that one read takes.
const READ_BLOCKS: u32 = 256;

/// Both halves of a trailer; a page that cannot be read says why.
pub(crate) struct Trailer([Vec<Result<Box<Page>, String>>; 2]);

impl Trailer {
    /// Reads it: half by half, and page by page where a half cannot be read.
    pub(crate) async fn read<R: Runtime>(io: &Io<R>, file: &R::File) -> Self {
        let mut halves = [Vec::new(), Vec::new()];
        for (half, offset) in halves.iter_mut().zip(HALF_OFFSETS) {
            if let Ok(buf) = io.read(file, HALF_PAGES * PAGE, offset).await {
                *half = buf.as_ref().as_chunks::<PAGE>().0.iter().map(|page| Ok(Box::new(*page))).collect();
                continue;
            }
            for index in 0..HALF_PAGES {
                let page = io.read_page(file, offset + (index * PAGE) as u64).await;
                half.push(page.map_err(|error| said(&error)));
            }
        }
        Self(halves)
    }

    /// The page at `offset` of the slot file.
    pub(crate) fn at(&self, offset: u64) -> Result<&Page, String> {
        let half = usize::from(offset >= HALF_OFFSETS[1]);
        let index = usize::try_from(offset - HALF_OFFSETS[half]).unwrap_or(usize::MAX) / PAGE;
        match self.0[half].get(index) {
            Some(Ok(page)) => Ok(page),
            Some(Err(why)) => Err(why.clone()),
            None => Err("the file ends too early".into()),
        }
    }

    /// A header, if it is one of this place.
    pub(crate) fn header(&self, copy: usize, slot: u32, disk_uuid: &[u8; 16]) -> Result<Hdr, String> {
        let hdr = Hdr::decode(self.at(HALF_OFFSETS[copy])?).map_err(|bad| bad.to_string())?;
        let here = hdr.common.number == slot && hdr.common.disk_uuid == *disk_uuid;
        if here { Ok(hdr) } else { Err(Bad::Misplaced.to_string()) }
    }

    /// A child as the header names it, or why it is not that.
    pub(crate) fn child(&self, hdr: &Hdr, child: Child) -> Result<&Page, String> {
        let page = self.at(child.offset(hdr.copy_of(child)))?;
        let wrong = "it is not the page that the header names".to_owned();
        let named = match child {
            Child::Tail => crc32c::crc32c(page) == hdr.tail_crc,
            Child::Dedup(index) => page::stored_crc(page) == hdr.dedup_crc[index],
            Child::Crc(index) => page::stored_crc(page) == hdr.crc_page_crc[index],
        };
        match child {
            Child::Dedup(_) => page::decode_dedup(page).map(drop).map_err(|bad| bad.to_string())?,
            Child::Crc(_) => page::decode_crcs(page).map(drop).map_err(|bad| bad.to_string())?,
            Child::Tail => {}
        }
        let here = match child {
            Child::Crc(index) => crc_page(page, hdr, index).is_some(),
            Child::Tail | Child::Dedup(_) => true,
        };
        if named && here { Ok(page) } else { Err(wrong) }
    }
}

/// Name of a child.
pub(crate) fn name(child: Child) -> String {
    match child {
        Child::Tail => "TAIL".into(),
        Child::Dedup(index) => format!("DEDUP {index}"),
        Child::Crc(index) => format!("CRC {index}"),
    }
}

/// The children that a header names.
pub(crate) fn named(hdr: &Hdr) -> impl Iterator<Item = Child> {
    let all = (0..DEDUP_PAGES).map(Child::Dedup).chain((0..CRC_PAGES).map(Child::Crc));
    let tail = (hdr.tail_len > 0).then_some(Child::Tail);
    let present = hdr.child_present;
    tail.into_iter().chain(all.filter(move |child| present & child.bit() != 0))
}

/// What is wrong with a trailer, and the header that counts.
fn judge_trailer(trailer: &Trailer, slot: u32, disk_uuid: &[u8; 16]) -> (Option<Hdr>, Vec<Problem>) {
    let mut problems = Vec::new();
    let copies = [0, 1].map(|copy| {
        trailer.header(copy, slot, disk_uuid).map_err(|why| {
            problems.push(Problem::HeaderCopy { copy: ['A', 'B'][copy], why });
            Bad::Checksum
        })
    });
    let [a, b] = copies;
    let Some(Picked { root: hdr, .. }) = pick(a, b) else {
        return (None, problems);
    };
    if hdr.state != SlotState::Free {
        for child in named(&hdr) {
            if let Err(why) = trailer.child(&hdr, child) {
                let copy = ['A', 'B'][hdr.copy_of(child)];
                problems.push(Problem::Child { page: name(child), copy, why });
            }
        }
    }
    (Some(hdr), problems)
}

/// Looks at one slot. Reads all of its trailer and every block of its content; `read` hears of bytes.
pub(crate) async fn check_slot<R: Runtime>(
    rt: &R,
    over: &Overlay<R>,
    plan: &Plan,
    slot: u32,
    read: &impl Fn(u64),
) -> SlotReport {
    let mut report = SlotReport { slot, lost: true, chunk: None, problems: Vec::new() };
    let file = match rt.open(&plan.root, FileId::Slot(slot), Open::ReadOnly).await {
        Ok(file) => file,
        Err(error) => {
            report.problems.push(Problem::File { why: said(&error) });
            return report;
        }
    };
    let trailer = Trailer::read(&Io::new(rt.clone()), &file).await;
    drop(file);
    read(2 * (HALF_PAGES * PAGE) as u64);
    let (hdr, problems) = judge_trailer(&trailer, slot, &plan.disk_uuid);
    report.problems = problems;
    report.lost = hdr.is_none();
    let by_header;
    let seed = match &plan.seeds {
        Some(seeds) => seeds.get(&slot),
        None => {
            by_header = hdr.filter(|hdr| hdr.state != SlotState::Free).map(|hdr| seed_of(hdr, &trailer));
            by_header.as_ref()
        }
    };
    let Some(seed) = seed else {
        return report;
    };
    if plan.trace.incomplete.contains(&slot) {
        report.problems.push(Problem::TornEnd);
    }
    if let Some(other) = plan.twice.get(&slot) {
        report.problems.push(Problem::Twice { slot: *other });
    }
    marks(&seed.hdr, &mut report.problems);
    let io = Io::new(over.clone());
    match over.open(&plan.root, FileId::Slot(slot), Open::Existing).await {
        Ok(file) => {
            let blocks = check_content(&io, &file, seed, &mut report.problems, read).await;
            report.chunk = Some(facts(seed, blocks));
        }
        Err(error) => report.problems.push(Problem::File { why: said(&error) }),
    }
    report
}

/// The chunk as its header and its trailer alone describe it.
fn seed_of(mut hdr: Hdr, trailer: &Trailer) -> Seed {
    let mut tail = Vec::new();
    match trailer.child(&hdr, Child::Tail) {
        Ok(page) if hdr.tail_len > 0 => tail.extend_from_slice(&page[..hdr.tail_len as usize]),
        Err(_) if hdr.tail_len > 0 => hdr.durable_len = hdr.durable_len / BLOCK * BLOCK,
        _ => {}
    }
    Seed { hdr, tail, dedup: Vec::new() }
}

/// What the header itself says about the chunk's health.
fn marks(hdr: &Hdr, problems: &mut Vec<Problem>) {
    if hdr.flags.has(Flags::SUSPECT) {
        problems.push(Problem::Suspect { upto: wire::Seq(hdr.suspect_seq) });
    }
    if hdr.flags.has(Flags::DAMAGED) {
        problems.push(Problem::MarkedDamaged);
    }
}

fn facts(seed: &Seed, blocks: u32) -> ChunkFacts {
    let hdr = &seed.hdr;
    ChunkFacts {
        chunk: hdr.chunk(),
        state: Replica::loaded(hdr.clone(), replica::empty(), Default::default()).state(),
        epoch: hdr.epoch,
        promised: hdr.promised,
        len: hdr.durable_len,
        committed_len: hdr.committed_len,
        last_seq: wire::Seq(hdr.last_seq),
        digest: fixed_digest(hdr),
        blocks,
    }
}

/// The digest that a seal or a planned end gave this content.
fn fixed_digest(hdr: &Hdr) -> Option<[u8; 16]> {
    let fixed = hdr.content_is_final() || hdr.flags.has(Flags::FILLED | Flags::CLOSED);
    (fixed && hdr.sealed_len == hdr.durable_len).then_some(hdr.sealed_digest)
}

/// Reads every block of the content and compares; gives how many blocks are in place.
async fn check_content<R: Runtime>(
    io: &Io<R>,
    file: &R::File,
    seed: &Seed,
    problems: &mut Vec<Problem>,
    read: &impl Fn(u64),
) -> u32 {
    let hdr = &seed.hdr;
    let len = hdr.durable_len;
    let blocks = if seed.tail.is_empty() { len.div_ceil(BLOCK) } else { len / BLOCK };
    let mut pages: Vec<Option<Box<CrcPage>>> = Vec::new();
    for index in 0..(blocks as usize).div_ceil(CRCS_PER_PAGE) {
        let child = Child::Crc(index);
        let page = match hdr.has_child(child) {
            true => io.read_page(file, child.offset(hdr.copy_of(child))).await.ok(),
            false => None,
        };
        pages.push(page.and_then(|page| crc_page(&page, hdr, index)));
    }
    let crc = |block: u32| Some(pages.get(block as usize / CRCS_PER_PAGE)?.as_ref()?[block as usize % CRCS_PER_PAGE]);
    let mut bad = Runs::default();
    let mut last = seed.tail.clone();
    let mut first = 0;
    while first < blocks {
        let count = READ_BLOCKS.min(blocks - first);
        match io.read(file, count as usize * PAGE, u64::from(first) * u64::from(BLOCK)).await {
            Ok(buf) => {
                for (block, bytes) in (first..).zip(buf.as_ref().as_chunks::<PAGE>().0) {
                    bad.add(block, judge(Ok(bytes), crc(block)));
                }
                if first + count == blocks && seed.tail.is_empty() {
                    last = buf.as_ref()[buf.as_ref().len() - PAGE..].to_vec();
                }
            }
            // One sector that cannot be read fails the whole call: find the block.
            Err(_) => {
                for block in first..first + count {
                    let page = io.read_page(file, u64::from(block) * u64::from(BLOCK)).await;
                    bad.add(block, judge(page.as_deref(), crc(block)));
                    if block + 1 == blocks && seed.tail.is_empty() {
                        last = page.map(|page| page.to_vec()).unwrap_or_default();
                    }
                }
            }
        }
        read(u64::from(count) * u64::from(BLOCK));
        first += count;
    }
    let whole = len / BLOCK;
    let known: Option<Vec<u32>> = (0..whole).map(crc).collect();
    let tail = last.get(..(len % BLOCK) as usize);
    let tail_is_good = len.is_multiple_of(BLOCK) || !seed.tail.is_empty() || !bad.has(whole);
    if let (Some(digest), Some(known), Some(tail), true) = (fixed_digest(hdr), known, tail, tail_is_good)
        && crcs::digest([&known[..]], tail, len) != digest
    {
        problems.push(Problem::Digest);
    }
    problems.extend(bad.0.into_iter().map(|(first, last, why)| Problem::Blocks { first, last, why }));
    blocks
}

/// What is wrong with a block.
fn judge(bytes: Result<&Page, &io::Error>, crc: Option<u32>) -> Option<Why> {
    match (bytes, crc) {
        (Err(_), _) => Some(Why::Unreadable),
        (Ok(_), None) => Some(Why::NoChecksum),
        (Ok(bytes), Some(crc)) => (crc32c::crc32c(bytes) != crc).then_some(Why::Checksum),
    }
}

/// Bad blocks in runs of one kind, ascending.
#[derive(Debug, Default)]
struct Runs(Vec<(u32, u32, Why)>);

impl Runs {
    fn add(&mut self, block: u32, why: Option<Why>) {
        let Some(why) = why else { return };
        match self.0.last_mut() {
            Some((_, last, same)) if *last + 1 == block && *same == why => *last = block,
            _ => self.0.push((block, block, why)),
        }
    }

    fn has(&self, block: u32) -> bool {
        self.0.last().is_some_and(|(first, last, _)| (*first..=*last).contains(&block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_blocks_are_told_in_runs_of_one_kind() {
        let mut runs = Runs::default();
        for block in 0..10 {
            runs.add(
                block,
                [None, Some(Why::Checksum), Some(Why::Unreadable)][[0, 1, 1, 2, 2, 0, 1, 0, 0, 1][block as usize]],
            );
        }
        assert_eq!(
            runs.0,
            [(1, 2, Why::Checksum), (3, 4, Why::Unreadable), (6, 6, Why::Checksum), (9, 9, Why::Checksum)]
        );
        assert!(runs.has(9) && !runs.has(8));
    }

    #[test]
    fn a_block_is_good_only_when_it_was_read_and_its_checksum_is_known_and_right() {
        let page = [7; PAGE];
        let crc = crc32c::crc32c(&page);
        let failed = io::Error::from_raw_os_error(libc::EIO);
        assert_eq!(judge(Ok(&page), Some(crc)), None);
        assert_eq!(judge(Ok(&page), Some(!crc)), Some(Why::Checksum));
        assert_eq!(judge(Ok(&page), None), Some(Why::NoChecksum));
        assert_eq!(judge(Err(&failed), Some(crc)), Some(Why::Unreadable));
    }
}
