//! What `fsck` says of a disk: each kind of damage by its name, and of any disk what a start finds.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use wire::member::ReplicaState;
use wire::{ChunkHandle, Epoch, Seq};

use super::model::Model;
use super::rig::{EPOCH, Rig, TERM, bytes, entry, new_disk, payload};
use super::workload::Worker;
use crate::runtime::FileId;
use crate::runtime::sim::{Fault, Op, Rng, Rule, Sim, SimDisk};
use crate::store::check::{DiskReport, JournalEnd, Problem, SlotReport, Verdict, Why};
use crate::store::check::{Overlay, check_slot, survey};
use crate::store::header::Hdr;
use crate::store::layout::{Child, HALF_OFFSETS, RING_LOG_START};
use crate::store::page::{Page, Ring};
use crate::store::{OpenError, StoreError, Upto};

/// Looks at everything, and asserts that nothing changed.
fn try_check(disk: &SimDisk) -> Result<(DiskReport, Vec<SlotReport>), OpenError> {
    let before = (disk.stats().writes, disk.stats().syncs, disk.files());
    let sim = Sim::with_disk(1, disk);
    let root = sim.root();
    let found = sim.run(|rt| async move {
        let (report, plan) = survey(&rt, &root).await?;
        let over = Overlay::new(rt.clone(), Arc::clone(&plan.written));
        let mut slots = Vec::new();
        for slot in 0..plan.slots {
            slots.push(check_slot(&rt, &over, &plan, slot, &|_| {}).await);
        }
        Ok((report, slots))
    });
    assert_eq!((disk.stats().writes, disk.stats().syncs, disk.files()), before, "fsck changes nothing");
    found
}

fn check(disk: &SimDisk) -> (DiskReport, Vec<SlotReport>) {
    try_check(disk).unwrap()
}

fn of(slots: &[SlotReport], chunk: u64) -> &SlotReport {
    slots.iter().find(|slot| slot.chunk.as_ref().is_some_and(|facts| facts.chunk == ChunkHandle(chunk))).unwrap()
}

/// The only report with problems.
fn only(slots: &[SlotReport]) -> &SlotReport {
    let bad: Vec<&SlotReport> = slots.iter().filter(|slot| slot.verdict() != Verdict::Ok).collect();
    assert_eq!(bad.len(), 1, "{bad:?}");
    bad[0]
}

fn slot_of(rig: &Rig, chunk: u64) -> u32 {
    rig.store(chunk).inner.state.borrow().chunks[&ChunkHandle(chunk)].slot()
}

fn header(disk: &SimDisk, slot: u32) -> Hdr {
    let page: Box<Page> = Box::new(disk.peek(FileId::Slot(slot), HALF_OFFSETS[0], 4096).unwrap().try_into().unwrap());
    Hdr::decode(&page).unwrap()
}

/// A stopped disk with chunk 7, sealed, of 40,000 bytes, and chunk 8, restarted, of 9,000; their slots.
fn two_chunks() -> (SimDisk, u32, u32) {
    let rig = Rig::start(1, &new_disk(), 2);
    for (chunk, len) in [(7, 40_000), (8, 9_000)] {
        rig.create(chunk);
        rig.append(chunk, 1, &bytes(chunk, len)).unwrap();
    }
    rig.on(7, |_, store| async move {
        let chunk = ChunkHandle(7);
        let digest = store.digest(chunk, u32::MAX).await.unwrap();
        store.finish(chunk, EPOCH, Seq(2), 40_000, digest).await.unwrap();
        store.confirm(TERM, chunk, EPOCH, 40_000, digest).await.unwrap();
    });
    let (seven, eight) = (slot_of(&rig, 7), slot_of(&rig, 8));
    (rig.stop(), seven, eight)
}

#[test]
fn a_healthy_disk_is_clean_and_its_facts_are_told() {
    let (disk, seven, eight) = two_chunks();
    let (report, slots) = check(&disk);
    assert!(report.damage.is_empty(), "{:?}", report.damage);
    assert_eq!((report.chunks, report.journals.len(), slots.len()), (2, 2, report.slots as usize));
    assert!(slots.iter().all(|slot| slot.problems.is_empty() && !slot.lost), "{slots:?}");
    let (sealed, open) = (of(&slots, 7), of(&slots, 8));
    assert_eq!((sealed.slot, open.slot), (seven, eight));
    let facts = sealed.chunk.as_ref().unwrap();
    assert_eq!((facts.state, facts.len, facts.blocks, facts.last_seq), (ReplicaState::Sealed, 40_000, 10, Seq(2)));
    assert!(facts.digest.is_some());
    let facts = open.chunk.as_ref().unwrap();
    assert_eq!((facts.state, facts.len, facts.blocks, facts.digest), (ReplicaState::Rwr, 9_000, 2, None));
}

#[test]
fn what_the_journal_holds_is_judged_as_if_it_were_replayed() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    (1..=5).for_each(|op| rig.append(7, op, &bytes(op, 5000)).unwrap());
    let (report, slots) = check(&rig.kill(1));
    assert_eq!(report.journals[0].records, 6);
    assert_eq!(report.recovery.as_ref().unwrap().records_replayed, 6);
    let facts = of(&slots, 7).chunk.clone().unwrap();
    assert_eq!((facts.len, facts.blocks, facts.last_seq), (25_000, 6, Seq(5)));
    assert_eq!(of(&slots, 7).verdict(), Verdict::Ok);
}

#[test]
fn a_flipped_byte_is_named_by_its_block_and_neighbours_make_a_run() {
    let (disk, seven, _) = two_chunks();
    for block in [2, 5, 6] {
        disk.rot(FileId::Slot(seven), block * 4096 + 17, &[0x40]);
    }
    let (_, slots) = check(&disk);
    let bad = only(&slots);
    assert_eq!((bad.slot, bad.verdict()), (seven, Verdict::DamagedBlocks));
    let why = Why::Checksum;
    assert_eq!(bad.problems, [Problem::Blocks { first: 2, last: 2, why }, Problem::Blocks { first: 5, last: 6, why }]);
    // The partial block of a sealed chunk is in place, and a block like others.
    let (disk, seven, _) = two_chunks();
    disk.rot(FileId::Slot(seven), 9 * 4096 + 4000, &[1]);
    assert_eq!(
        only(&check(&disk).1).problems,
        [Problem::Blocks { first: 9, last: 9, why }],
        "behind the end of the content"
    );
}

#[test]
fn blocks_that_the_device_does_not_give_are_told_from_wrong_ones() {
    let (disk, seven, _) = two_chunks();
    // Both headers and a dedup page for recovery, both halves, and a checksum page come before. Then
    // the run as a whole fails, and of its blocks the fourth.
    let (slot, before) = (FileId::Slot(seven), 6);
    disk.inject(Rule::new(Op::Read, Fault::Error(libc::EIO)).on(slot).skip(before));
    disk.inject(Rule::new(Op::Read, Fault::Error(libc::EIO)).on(slot).skip(before + 3));
    let (_, slots) = check(&disk);
    assert_eq!(only(&slots).problems, [Problem::Blocks { first: 3, last: 3, why: Why::Unreadable }]);
    assert_eq!(only(&slots).verdict(), Verdict::DamagedBlocks);
    disk.inject(Rule::new(Op::Read, Fault::Error(libc::EIO)).on(slot).skip(before).times(u64::MAX));
    assert_eq!(only(&check(&disk).1).verdict(), Verdict::Unreadable);
}

#[test]
fn a_bad_copy_of_a_root_is_damage_that_a_start_heals() {
    for copy in 0..2 {
        let (disk, seven, _) = two_chunks();
        disk.rot([FileId::DiskA, FileId::DiskB][copy], 70, &[1]);
        disk.rot(FileId::Ring(1), [0, 4096][copy] + 70, &[1]);
        disk.rot(FileId::Slot(seven), HALF_OFFSETS[copy] + 70, &[1]);
        let (report, slots) = check(&disk);
        let name = ['A', 'B'][copy];
        let damage = [
            (format!("DISK.{name}"), "wrong checksum".into()),
            (format!("journal/ring-0001 RING.{name}"), "wrong checksum".to_owned()),
        ];
        assert_eq!(report.damage, damage);
        assert_eq!(report.recovery.unwrap().healed, 3);
        assert_eq!(only(&slots).problems, [Problem::HeaderCopy { copy: name, why: "wrong checksum".into() }]);
        assert_eq!(only(&slots).verdict(), Verdict::DamagedMetadata);
    }
}

#[test]
fn a_slot_without_a_header_is_lost() {
    let (disk, seven, _) = two_chunks();
    HALF_OFFSETS.into_iter().for_each(|offset| disk.rot(FileId::Slot(seven), offset + 70, &[1]));
    let (report, slots) = check(&disk);
    assert_eq!((report.chunks, report.recovery.unwrap().lost_slots), (1, 1));
    let lost = only(&slots);
    assert_eq!((lost.slot, lost.lost, lost.verdict(), lost.problems.len()), (seven, true, Verdict::LostSlot, 2));
}

#[test]
fn children_that_the_header_does_not_mean_are_named_with_what_they_take_along() {
    let rot_child = |child: Child, at: u64| {
        let (disk, _, eight) = two_chunks();
        let copy = header(&disk, eight).copy_of(child);
        disk.rot(FileId::Slot(eight), child.offset(copy) + at, &[1]);
        let (_, slots) = check(&disk);
        let bad = only(&slots);
        assert_eq!(bad.slot, eight);
        (bad.clone(), ['A', 'B'][copy])
    };
    let (bad, copy) = rot_child(Child::Crc(0), 64);
    let page = Problem::Child { page: "CRC 0".into(), copy, why: "wrong checksum".into() };
    assert_eq!(bad.problems, [page, Problem::Blocks { first: 0, last: 1, why: Why::NoChecksum }]);
    assert_eq!(bad.verdict(), Verdict::DamagedBlocks);

    let (bad, copy) = rot_child(Child::Tail, 5);
    let page = Problem::Child { page: "TAIL".into(), copy, why: "it is not the page that the header names".into() };
    assert_eq!(bad.problems, [page, Problem::MarkedDamaged]);
    assert_eq!((bad.verdict(), bad.chunk.unwrap().len), (Verdict::DamagedMetadata, 8192));

    let (bad, copy) = rot_child(Child::Dedup(0), 100);
    let page = Problem::Child { page: "DEDUP 0".into(), copy, why: "wrong checksum".into() };
    assert_eq!(bad.problems, [page, Problem::MarkedDamaged]);
}

#[test]
fn checksums_that_agree_with_the_blocks_and_not_with_the_seal_are_found() {
    let (disk, seven, _) = two_chunks();
    // What no rot makes by chance: both headers say another digest, and are valid.
    let mut hdr = header(&disk, seven);
    hdr.sealed_digest[0] ^= 1;
    for offset in HALF_OFFSETS {
        let old = disk.peek(FileId::Slot(seven), offset, 4096).unwrap();
        let mask: Vec<u8> = hdr.encode().iter().zip(old).map(|(new, old)| new ^ old).collect();
        disk.rot(FileId::Slot(seven), offset, &mask);
    }
    assert_eq!(only(&check(&disk).1).problems, [Problem::Digest]);
}

#[test]
fn a_torn_end_is_no_damage_and_neither_is_a_suspect_one() {
    // An operation of two parts of which the second never came.
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    rig.append(7, 1, &bytes(1, 5000)).unwrap();
    rig.on(7, |rt, store| async move {
        store.reserve(ChunkHandle(7), 20_000).await.unwrap();
        let more = bytes(2, 5000);
        let mut first = entry(&store, 7, 2, &more);
        (first.op_len, first.parts) = (10_000, 2);
        store.append(&first, payload(&rt, &more).await).unwrap().await.unwrap();
    });
    let (_, slots) = check(&rig.kill(1));
    assert_eq!((only(&slots).problems.clone(), only(&slots).verdict()), (vec![Problem::TornEnd], Verdict::TornEnd));

    // Data that no flush proves.
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    (1..=2).for_each(|op| rig.append(7, op, &bytes(op, 4096)).unwrap());
    let slot = slot_of(&rig, 7);
    let disk = rig.kill(1);
    disk.rot(FileId::Slot(slot), 5000, &[1]);
    let (report, slots) = check(&disk);
    assert_eq!(only(&slots).problems, [Problem::Suspect { upto: Seq(2) }]);
    assert_eq!((only(&slots).verdict(), report.damage.len()), (Verdict::Suspect, 0));
    assert_eq!(only(&slots).chunk.as_ref().unwrap().len, 4096);
}

#[test]
fn a_journal_that_lost_what_was_flushed_is_corrupt() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    (1..=5).for_each(|op| rig.append(7, op, &bytes(op, 3000)).unwrap());
    let ring: Box<Page> = Box::new(rig.sim.disk().peek(FileId::Ring(0), 0, 4096).unwrap().try_into().unwrap());
    let start = RING_LOG_START + Ring::decode(&ring).unwrap().start_off;
    let disk = rig.kill(1);
    // Each batch is a page: the third append's.
    disk.rot(FileId::Ring(0), start + 3 * 4096 + 100, &[1]);
    let (report, slots) = check(&disk);
    assert_eq!((report.journals[0].end, report.journals[0].records), (JournalEnd::Corrupt, 3));
    assert_eq!(report.damage.len(), 1);
    assert!(report.damage[0].1.contains("were flushed and are gone"), "{:?}", report.damage);
    assert_eq!(only(&slots).problems, [Problem::MarkedDamaged]);

    let (disk, _, _) = two_chunks();
    [0, 4096].into_iter().for_each(|offset| disk.rot(FileId::Ring(0), offset + 70, &[1]));
    let (report, _) = check(&disk);
    assert_eq!((report.journals[0].end, report.journals[1].end), (JournalEnd::Unknown, JournalEnd::Clean));
    assert_eq!(report.damage.len(), 2);
}

#[test]
fn a_disk_without_disk_pages_is_judged_as_it_would_be_rebuilt() {
    let (disk, seven, _) = two_chunks();
    [FileId::DiskA, FileId::DiskB].into_iter().for_each(|file| disk.rot(file, 70, &[1]));
    disk.rot(FileId::Slot(seven), 100, &[1]);
    let (report, slots) = check(&disk);
    assert_eq!((report.owner, report.chunks, report.damage.len()), (None, 2, 3));
    assert!(report.damage[2].1.contains("hercules disk rebuild"), "{:?}", report.damage);
    assert_eq!(only(&slots).problems, [Problem::Blocks { first: 0, last: 0, why: Why::Checksum }]);
    let refused = try_check(&new_disk()).unwrap_err().what;
    assert!(refused.contains("nothing to rebuild from"), "{refused}");
}

/// What a start on this disk finds, chunk by chunk, must be what was said.
fn agrees(disk: &SimDisk, rng: &mut Rng) {
    let (report, slots) = check(&disk.fork());
    let shards = u32::try_from(1 + rng.below(3)).unwrap();
    let rig = Rig::start_with(rng.next(), &disk.fork(), shards, 256 << 10).unwrap();
    let said = report.recovery.unwrap();
    let (a, b) = (&said, &rig.summary);
    assert_eq!(
        (a.chunks, a.records_replayed, a.torn_ends, a.suspects, a.damaged, a.lost_slots, a.healed),
        (b.chunks, b.records_replayed, b.torn_ends, b.suspects, b.damaged, b.lost_slots, b.healed),
    );
    assert_eq!(slots.iter().filter(|slot| slot.lost).count() as u64, b.lost_slots);
    let chunks: BTreeMap<ChunkHandle, &SlotReport> =
        slots.iter().filter_map(|slot| Some((slot.chunk.as_ref()?.chunk, slot))).collect();
    let held: Vec<ChunkHandle> = rig.stores.iter().flat_map(|store| store.chunks()).collect();
    assert_eq!(chunks.len(), held.len());
    for chunk in held {
        let report = chunks[&chunk];
        let facts = report.chunk.as_ref().unwrap();
        let view = rig.store(chunk.0).view(chunk).unwrap();
        assert_eq!(
            (facts.state, facts.epoch, facts.promised, facts.len, facts.committed_len, facts.last_seq),
            (view.state, view.epoch, view.promised, view.durable_len, view.committed_len, view.durable_seq),
        );
        assert_eq!(report.slot, slot_of(&rig, chunk.0));
        let marked = |wanted: &Problem| report.problems.contains(wanted);
        assert_eq!(marked(&Problem::MarkedDamaged), view.damaged);
        assert_eq!(marked(&Problem::Suspect { upto: view.suspect_seq }), view.suspect_seq != Seq(0));
        if view.state != ReplicaState::Condemned {
            assert_eq!(bad_blocks(report), unreadable(&rig, chunk, facts.blocks), "chunk {chunk}");
        }
    }
}

fn bad_blocks(report: &SlotReport) -> Vec<u32> {
    let runs = report.problems.iter().filter_map(|problem| match problem {
        Problem::Blocks { first, last, .. } => Some(*first..=*last),
        _ => None,
    });
    runs.flatten().collect()
}

/// Blocks that a reader is refused.
fn unreadable(rig: &Rig, chunk: ChunkHandle, blocks: u32) -> Vec<u32> {
    rig.on(chunk.0, move |_, store| async move {
        let mut bad = Vec::new();
        for block in 0..blocks {
            match store.read(chunk, block * 4096, 1, Upto::Durable).await {
                Ok(read) => assert_ne!(read.len, 0, "block {block} is below the length"),
                Err(StoreError::BadBlock(found)) => bad.extend((found == block).then_some(block)),
                Err(error) => panic!("{error}"),
            }
        }
        bad
    })
}

/// Rots something that a slot or a journal needs.
fn rot(disk: &SimDisk, rng: &mut Rng) {
    let files: Vec<FileId> =
        disk.files().into_iter().filter(|file| matches!(file, FileId::Slot(_) | FileId::Ring(_))).collect();
    let file = files[usize::try_from(rng.below(files.len() as u64)).unwrap()];
    let at = match (file, rng.below(4)) {
        (FileId::Ring(_), 0) => rng.below(8192),
        (FileId::Ring(_), _) => rng.below(256 << 10),
        (_, 0) => HALF_OFFSETS[usize::try_from(rng.below(2)).unwrap()] + rng.below(24 * 4096),
        (_, 1) => HALF_OFFSETS[usize::try_from(rng.below(2)).unwrap()] + rng.below(512),
        _ => rng.below(10 * 4096),
    };
    if disk.len(file).is_some_and(|len| at < len) {
        disk.rot(file, at, &[1 << rng.below(8)]);
    }
}

#[test]
fn of_a_disk_that_lost_its_power_fsck_says_what_the_next_start_finds() {
    let seeds = std::env::var("STORE_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(60);
    let mut verdicts: BTreeMap<Verdict, usize> = BTreeMap::new();
    for seed in 1..=seeds {
        eprintln!("seed {seed}");
        let mut rng = Rng::new(seed, 21);
        let shards = u32::try_from(1 + rng.below(2)).unwrap();
        let rig = Rig::start_with(seed, &new_disk(), shards, 256 << 10).unwrap();
        let model = Rc::new(RefCell::new(Model::default()));
        let workers: Vec<(u64, Rng)> = (1..=4).map(|chunk| (chunk, Rng::new(rng.next(), chunk))).collect();
        let stores: Vec<_> = (0..=4).map(|chunk| rig.store(chunk)).collect();
        let (mut steps, limit) = (0, 50 + rng.below(2500));
        rig.sim.run_until(
            move |rt| async move {
                let all = workers.into_iter().map(|(chunk, rng)| {
                    let store = stores[usize::try_from(chunk).unwrap()].clone();
                    Worker {
                        rt: rt.clone(),
                        store,
                        model: Rc::clone(&model),
                        chunk,
                        rng,
                        size_max: 30_000,
                        churn: false,
                        faulty: false,
                    }
                    .run(30)
                });
                futures_util::future::join_all(all).await;
            },
            |_| {
                steps += 1;
                steps > limit
            },
        );
        let disk = rig.cut(rng.next());
        agrees(&disk, &mut rng);
        let (report, slots) = check(&disk);
        assert!(report.damage.is_empty(), "a power cut is no damage: {:?}", report.damage);
        let damaged: Vec<&SlotReport> = slots.iter().filter(|slot| slot.verdict().is_damage()).collect();
        assert!(damaged.is_empty(), "a power cut is no damage: {damaged:?}");
        (0..1 + rng.below(3)).for_each(|_| rot(&disk, &mut rng));
        agrees(&disk, &mut rng);
        slots.iter().chain(&check(&disk).1).for_each(|slot| *verdicts.entry(slot.verdict()).or_default() += 1);
    }
    eprintln!("{verdicts:?}");
    if seeds >= 60 {
        let met = [Verdict::Ok, Verdict::TornEnd, Verdict::Suspect, Verdict::DamagedMetadata, Verdict::DamagedBlocks];
        assert!(met.iter().all(|verdict| verdicts.contains_key(verdict)), "{verdicts:?}");
    }
}

#[test]
fn chunks_that_only_a_journal_knows_name_their_server_too() {
    use crate::store::rebuild;
    let rig = Rig::start(1, &new_disk(), 2);
    (1..=3).for_each(|chunk| rig.create(chunk));
    rig.append(2, 1, &bytes(1, 5000)).unwrap();
    let disk = rig.kill(1);
    [FileId::DiskA, FileId::DiskB].into_iter().for_each(|file| disk.rot(file, 70, &[1]));
    let sim = Sim::with_disk(1, &disk);
    let root = sim.root();
    sim.run(|rt| async move {
        let io = crate::store::io::Io::new(rt);
        let found = rebuild::look(&io, &root).await.unwrap();
        assert_eq!((found.chunks, found.server, found.servers_named), (0, Some((wire::ServerId(1), 3)), 1));
        let page = rebuild::plan(&found, wire::ClusterId([1; 16]), None, 77).unwrap();
        rebuild::write(&io, &root, &page).await.unwrap();
    });
    let rig = Rig::start(2, &disk, 2);
    assert_eq!((rig.summary.chunks, rig.summary.suspects), (3, 0));
    assert_eq!(rig.read_all(2, Upto::Durable).unwrap(), bytes(1, 5000));
}

#[test]
fn a_disk_made_anew_starts_and_everything_on_it_reads() {
    use crate::store::rebuild;
    let (disk, _, _) = two_chunks();
    let uuid = header(&disk, 0).common.disk_uuid;
    [FileId::DiskA, FileId::DiskB].into_iter().for_each(|file| disk.rot(file, 70, &[1]));
    let sim = Sim::with_disk(1, &disk);
    let root = sim.root();
    sim.run(|rt| async move {
        let io = crate::store::io::Io::new(rt);
        let found = rebuild::look(&io, &root).await.unwrap();
        assert_eq!((found.disk_uuid, found.agree, found.chunks, found.rings), (uuid, found.pages(), 2, 2));
        let page = rebuild::plan(&found, wire::ClusterId([1; 16]), None, 77).unwrap();
        rebuild::write(&io, &root, &page).await.unwrap();
        let again = rebuild::look(&io, &root).await.unwrap();
        let refused = rebuild::plan(&again, wire::ClusterId([1; 16]), None, 77).unwrap_err();
        assert!(refused.what.contains("nothing to rebuild"), "{}", refused.what);
    });
    let rig = Rig::start(2, &disk, 1);
    assert_eq!((rig.summary.chunks, rig.summary.damaged, rig.summary.lost_slots), (2, 0, 0));
    assert_eq!(rig.read_all(7, Upto::Durable).unwrap(), bytes(7, 40_000));
    assert_eq!(rig.read_all(8, Upto::Durable).unwrap(), bytes(8, 9_000));
    rig.create(9);
    rig.append(9, 1, &bytes(9, 5000)).unwrap();
    let rig = Rig::start(3, &rig.cut(1), 2);
    assert_eq!(rig.read_all(9, Upto::Durable).unwrap(), bytes(9, 5000));
    assert_eq!(rig.store(8).view(ChunkHandle(8)).unwrap().promised, Epoch(1));
}
