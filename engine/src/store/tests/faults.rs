//! A disk that fails, fills up, rots, or belongs to somebody else.

use wire::member::ReplicaState;
use wire::{ChunkHandle, ClusterId, Epoch, Seq};

use super::rig::{EPOCH, Rig, TERM, append, bytes, config, entry, new_disk, payload};
use crate::runtime::FileId;
use crate::runtime::sim::{Fault, Op, Rule, Sim, SimDisk};
use crate::store::batch::{Batch, Chain, Subject};
use crate::store::header::Hdr;
use crate::store::layout::{Child, HALF_OFFSETS, RING_LOG_START};
use crate::store::page::{Disk, DiskState, Page, Ring};
use crate::store::record::{Body, HEAD_LEN, checksum};
use crate::store::{StoreError, Upto, recover};

const EIO: i32 = libc::EIO;

fn page(disk: &SimDisk, file: FileId, offset: u64) -> Box<Page> {
    Box::new(disk.peek(file, offset, 4096).unwrap().try_into().unwrap())
}

fn disk_page(disk: &SimDisk) -> Disk {
    Disk::decode(&page(disk, FileId::DiskA, 0)).unwrap()
}

fn view(rig: &Rig, chunk: u64) -> crate::store::View {
    rig.store(chunk).view(ChunkHandle(chunk)).unwrap()
}

/// The slot of the only chunk with this content length.
fn slot_of(rig: &Rig, chunk: u64) -> u32 {
    rig.store(chunk).inner.state.borrow().chunks[&ChunkHandle(chunk)].slot()
}

fn refusal(disk: &SimDisk, change: impl FnOnce(&mut crate::store::DiskConfig)) -> String {
    let sim = Sim::with_disk(1, disk);
    let mut config = config(&sim, 1, 512 << 10);
    change(&mut config);
    sim.run(|rt| async move { recover(&rt, &config).await.unwrap_err().to_string() })
}

#[test]
fn a_failed_flush_fences_the_disk_and_is_never_repeated() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    rig.append(7, 1, &bytes(1, 100)).unwrap();
    let disk = rig.sim.disk();
    disk.inject(Rule::new(Op::Sync, Fault::Error(EIO)).on(FileId::Ring(0)));
    let Err(StoreError::Fenced(cause)) = rig.append(7, 2, &bytes(2, 100)) else { panic!("not fenced") };
    assert!(cause.contains("journal"), "{cause}");
    let before = disk.stats();
    assert_eq!(rig.append(7, 3, &bytes(3, 100)), Err(StoreError::Fenced(cause.clone())));
    assert_eq!(rig.read_all(7, Upto::Durable), Err(StoreError::Fenced(cause)));
    rig.sim.run(|rt| async move { crate::runtime::Runtime::sleep(&rt, std::time::Duration::from_secs(1)).await });
    assert_eq!(rig.store(7).counters().fences, 1);
    assert_eq!(disk_page(&disk).state, DiskState::Fenced);
    let marking = disk.stats().syncs - before.syncs;
    assert!(marking <= 2, "only DISK is written after a fence");

    // Opened again, everything is looked at, and what was acknowledged is there.
    let rig = Rig::start(2, &rig.kill(1), 1);
    assert_eq!(view(&rig, 7).durable_len % 100, 0);
    assert!(view(&rig, 7).durable_len >= 100);
    assert!(rig.read_all(7, Upto::Durable).unwrap().starts_with(&bytes(1, 100)));
    assert_eq!((disk_page(&disk).state, disk_page(&disk).eio_count), (DiskState::Normal, 1));

    // A second time within a day it takes no new chunks.
    rig.create(8);
    disk.inject(Rule::new(Op::Write, Fault::Error(EIO)).on(FileId::Ring(0)));
    assert!(matches!(rig.append(8, 1, &[1]), Err(StoreError::Fenced(_))));
    rig.sim.run(|rt| async move { crate::runtime::Runtime::sleep(&rt, std::time::Duration::from_secs(1)).await });
    let rig = Rig::start(3, &rig.kill(1), 1);
    assert_eq!(disk_page(&disk).state, DiskState::Draining);
    let refused = rig.on(9, |_, store| async move { store.create(super::rig::create_args(9)).await });
    assert_eq!(refused, Err(StoreError::NoSpace));
}

#[test]
fn a_failed_data_write_fences_every_shard() {
    let rig = Rig::start(1, &new_disk(), 2);
    let (a, b) = (1..)
        .map(|chunk| (chunk, chunk + 1))
        .find(|(a, b)| ChunkHandle(*a).shard(2) != ChunkHandle(*b).shard(2))
        .unwrap();
    rig.create(a);
    rig.create(b);
    rig.append(b, 1, &bytes(1, 5000)).unwrap();
    rig.sim.disk().inject(Rule::new(Op::Write, Fault::Error(EIO)).on(FileId::Slot(slot_of(&rig, a))));
    let Err(StoreError::Fenced(cause)) = rig.append(a, 1, &bytes(1, 5000)) else { panic!("not fenced") };
    assert!(cause.contains("data write"), "{cause}");
    assert_eq!(rig.append(b, 2, &bytes(2, 5000)), Err(StoreError::Fenced(cause)));
}

#[test]
fn short_writes_and_reads_are_completed() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    let disk = rig.sim.disk();
    for op in [Op::Write, Op::Read] {
        disk.inject(Rule::new(op, Fault::Short(8192)).one_in(2).times(u64::MAX));
    }
    let mut all = Vec::new();
    for op in 1..20 {
        let more = bytes(op, 50_000);
        rig.append(7, op, &more).unwrap();
        all.extend(more);
    }
    assert_eq!(rig.read_all(7, Upto::Durable).unwrap(), all);
    disk.heal();
    let rig = Rig::start(2, &rig.cut(3), 1);
    assert_eq!(rig.read_all(7, Upto::Durable).unwrap(), all);
}

#[test]
fn a_flipped_byte_is_a_bad_block_and_its_neighbours_are_served() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    let all = bytes(1, 40_000);
    rig.append(7, 1, &all).unwrap();
    let disk = rig.sim.disk();
    disk.rot(FileId::Slot(slot_of(&rig, 7)), 2 * 4096 + 17, &[0x40]);
    rig.on(7, move |_, store| async move {
        let chunk = ChunkHandle(7);
        assert!(matches!(store.read(chunk, 0, 40_000, Upto::Durable).await, Err(StoreError::BadBlock(2))));
        assert_eq!(store.counters().bad_blocks, 1);
        let before = store.read(chunk, 0, 8192, Upto::Durable).await.unwrap();
        assert_eq!(before.buf.as_ref(), &all[..8192]);
        let after = store.read(chunk, 12288, 8192, Upto::Durable).await.unwrap();
        assert_eq!(after.buf.as_ref(), &all[12288..20480]);
    });
}

#[test]
fn a_block_that_cannot_be_read_is_told_from_those_around_it() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    rig.append(7, 1, &bytes(1, 16384)).unwrap();
    let slot = FileId::Slot(slot_of(&rig, 7));
    // The whole read, twice, then block 0 by itself passes, then block 1 fails.
    rig.sim.disk().inject(Rule::new(Op::Read, Fault::Error(EIO)).on(slot).times(2));
    rig.sim.disk().inject(Rule::new(Op::Read, Fault::Error(EIO)).on(slot).skip(1));
    let read = rig.on(7, |_, store| async move { store.read(ChunkHandle(7), 0, 16384, Upto::Durable).await.map(drop) });
    assert_eq!(read, Err(StoreError::BadBlock(1)));
    assert_eq!(rig.read_all(7, Upto::Durable).unwrap(), bytes(1, 16384), "no fence for a read");
}

#[test]
fn a_full_disk_refuses_before_it_accepts() {
    let disk = SimDisk::new(12 << 20);
    let rig = Rig::start(1, &disk, 1);
    rig.create(7);
    let mut len = 0;
    let full = loop {
        match rig.append(7, len + 1, &bytes(len, 1 << 19)) {
            Ok(()) => len += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(full, StoreError::NoSpace);
    assert!(len >= 8, "most of the disk can be used: {len}");
    let before = view(&rig, 7);
    assert_eq!((before.len, before.last_seq), (u32::try_from(len << 19).unwrap(), Seq(len)));
    let refused = rig.on(8, |_, store| async move { store.create(super::rig::create_args(8)).await });
    assert_eq!(refused, Err(StoreError::NoSpace));
    // Not reserved, not accepted.
    let unreserved = rig.on(7, move |rt, store| async move {
        let more = bytes(9, 1 << 20);
        let buf = payload(&rt, &more).await;
        store.append(&entry(&store, 7, 99, &more), buf).map(drop)
    });
    assert_eq!(unreserved, Err(StoreError::NoSpace));
    assert_eq!(view(&rig, 7), before);
    // What is there works on: reads, the seal, the restart.
    rig.on(7, |_, store| async move {
        store.prepare(TERM, ChunkHandle(7), Epoch(2)).await.unwrap();
    });
    let rig = Rig::start(2, &rig.stop(), 1);
    assert_eq!(view(&rig, 7).durable_len, before.len);
}

#[test]
fn one_bad_copy_of_any_root_is_healed() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    let all = bytes(1, 10_000);
    rig.append(7, 1, &all).unwrap();
    let slot = slot_of(&rig, 7);
    let disk = rig.stop();
    for copy in 0..2 {
        let copies = [
            ([FileId::DiskA, FileId::DiskB][copy], 0),
            (FileId::Ring(0), [0, 4096][copy]),
            (FileId::Slot(slot), HALF_OFFSETS[copy]),
        ];
        for (file, offset) in copies {
            let disk = disk.fork();
            disk.rot(file, offset + 70, &[1]);
            let rig = Rig::start(2, &disk, 1);
            assert_eq!(rig.summary.healed, 1, "{file:?} copy {copy}");
            assert_eq!(rig.read_all(7, Upto::Durable).unwrap(), all);
            let rig = Rig::start(3, &rig.cut(1), 1);
            assert_eq!(rig.read_all(7, Upto::Durable).unwrap(), all);
        }
    }
}

#[test]
fn a_slot_without_a_header_is_kept_out_of_use_and_others_live() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    rig.create(8);
    rig.append(8, 1, &bytes(1, 9000)).unwrap();
    let slot = slot_of(&rig, 7);
    let disk = rig.stop();
    HALF_OFFSETS.into_iter().for_each(|offset| disk.rot(FileId::Slot(slot), offset + 70, &[1]));
    let rig = Rig::start(2, &disk, 1);
    assert_eq!(rig.summary.lost_slots, 1);
    assert!(rig.store(7).view(ChunkHandle(7)).is_none());
    assert_eq!(rig.read_all(8, Upto::Durable).unwrap(), bytes(1, 9000));
    for chunk in 20..28 {
        rig.create(chunk);
        assert_ne!(slot_of(&rig, chunk), slot);
    }
}

#[test]
fn a_rotten_checksum_page_makes_its_blocks_unreadable_and_nothing_else() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    rig.append(7, 1, &bytes(1, 10_000)).unwrap();
    let slot = slot_of(&rig, 7);
    let disk = rig.stop();
    let hdr = Hdr::decode(&page(&disk, FileId::Slot(slot), HALF_OFFSETS[0])).unwrap();
    let child = Child::Crc(0);
    disk.rot(FileId::Slot(slot), child.offset(hdr.copy_of(child)) + 64, &[1]);
    let rig = Rig::start(2, &disk, 1);
    assert_eq!(rig.read_all(7, Upto::Durable), Err(StoreError::BadBlock(0)));
    let tail = rig.on(7, |_, store| async move { store.read(ChunkHandle(7), 8192, 1808, Upto::Durable).await });
    assert_eq!(&tail.unwrap().buf.as_ref()[..1808], &bytes(1, 10_000)[8192..]);
    let digest = rig.on(7, |_, store| async move { store.digest(ChunkHandle(7), u32::MAX).await });
    assert_eq!(digest, Err(StoreError::BadBlock(0)));
}

#[test]
fn a_lost_tail_makes_a_replica_damaged() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    rig.append(7, 1, &bytes(1, 10_000)).unwrap();
    let slot = slot_of(&rig, 7);
    let disk = rig.stop();
    let hdr = Hdr::decode(&page(&disk, FileId::Slot(slot), HALF_OFFSETS[0])).unwrap();
    disk.rot(FileId::Slot(slot), Child::Tail.offset(hdr.copy_of(Child::Tail)) + 5, &[1]);
    let rig = Rig::start(2, &disk, 1);
    assert!(view(&rig, 7).damaged);
    assert_eq!(rig.read_all(7, Upto::Durable).unwrap(), bytes(1, 10_000)[..8192]);
    let promised = rig.on(7, |_, store| async move { store.prepare(TERM, ChunkHandle(7), Epoch(2)).await }).unwrap();
    assert!(!promised.healthy);
}

#[test]
fn rot_in_the_middle_of_the_journal_is_corruption_and_not_a_torn_end() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    rig.create(8);
    rig.append(8, 1, &bytes(1, 3000)).unwrap();
    rig.on(8, |_, store| async move {
        let chunk = ChunkHandle(8);
        let digest = store.digest(chunk, u32::MAX).await.unwrap();
        store.finish(chunk, EPOCH, Seq(2), 3000, digest).await.unwrap();
        store.confirm(TERM, chunk, EPOCH, 3000, digest).await.unwrap();
    });
    (1..=5).for_each(|op| rig.append(7, op, &bytes(op, 3000)).unwrap());
    let ring = Ring::decode(&page(&rig.sim.disk(), FileId::Ring(0), 0)).unwrap();
    let disk = rig.kill(1);
    // The batch of the second append to chunk 7 is the 8th after the start.
    disk.rot(FileId::Ring(0), RING_LOG_START + ring.start_off + 8 * 4096 + 100, &[1]);
    let rig = Rig::start(2, &disk, 1);
    assert!(view(&rig, 7).damaged);
    assert_eq!(rig.summary.damaged, 1);
    let left = rig.read_all(7, Upto::Durable).unwrap();
    assert!(left.len() < 15_000 && bytes(1, 3000).starts_with(&left[..left.len().min(3000)]));
    assert_eq!((view(&rig, 8).state, view(&rig, 8).damaged), (ReplicaState::Sealed, false));
    // It stays so until it is repaired.
    let rig = Rig::start(3, &rig.stop(), 1);
    assert!(view(&rig, 7).damaged);
}

#[test]
fn both_roots_of_a_journal_lost_is_corruption_from_its_first_record() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    rig.append(7, 1, &bytes(1, 3000)).unwrap();
    let disk = rig.stop();
    [0, 4096].into_iter().for_each(|offset| disk.rot(FileId::Ring(0), offset + 70, &[1]));
    let rig = Rig::start(2, &disk, 1);
    assert!(view(&rig, 7).damaged);
    assert_eq!(rig.read_all(7, Upto::Durable).unwrap(), bytes(1, 3000));
    rig.create(8);
    rig.append(8, 1, &bytes(2, 3000)).unwrap();
    let rig = Rig::start(3, &rig.cut(1), 1);
    assert_eq!(rig.read_all(8, Upto::Durable).unwrap(), bytes(2, 3000));
}

#[test]
fn what_an_idle_journal_marked_as_flushed_is_bad_not_cut() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    rig.append(7, 1, &bytes(1, 8192)).unwrap();
    rig.sim.run(|rt| async move { crate::runtime::Runtime::sleep(&rt, std::time::Duration::from_secs(2)).await });
    let slot = slot_of(&rig, 7);
    let disk = rig.kill(1);
    disk.rot(FileId::Slot(slot), 5000, &[1]);
    let rig = Rig::start(2, &disk, 1);
    assert_eq!((view(&rig, 7).durable_len, view(&rig, 7).suspect_seq), (8192, Seq(0)));
    assert_eq!(rig.read_all(7, Upto::Durable), Err(StoreError::BadBlock(1)));
}

#[test]
fn data_that_no_flush_proves_is_suspect_and_the_promise_behind_it_stays() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    rig.append(7, 1, &bytes(1, 4096)).unwrap();
    // An append and a promise in one batch.
    rig.on(7, |rt, store| async move {
        store.reserve(ChunkHandle(7), 8192).await.unwrap();
        let more = bytes(2, 4096);
        let buf = payload(&rt, &more).await;
        let done = store.append(&entry(&store, 7, 2, &more), buf).unwrap();
        store.prepare(TERM, ChunkHandle(7), Epoch(5)).await.unwrap();
        done.await.unwrap();
    });
    let slot = slot_of(&rig, 7);
    let disk = rig.kill(1);
    disk.rot(FileId::Slot(slot), 5000, &[1]);
    let rig = Rig::start(2, &disk, 1);
    assert_eq!(rig.summary.suspects, 1);
    let view = view(&rig, 7);
    assert_eq!((view.durable_len, view.last_seq, view.suspect_seq, view.promised), (4096, Seq(1), Seq(2), Epoch(5)));
    assert_eq!(rig.read_all(7, Upto::Durable).unwrap(), bytes(1, 4096));
}

#[test]
fn what_a_killed_process_left_in_the_cache_is_durable_after_the_restart() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    (1..=20).for_each(|op| rig.append(7, op, &bytes(op, 7000)).unwrap());
    // One more, on its way.
    rig.on(7, |rt, store| async move {
        let more = bytes(21, 7000);
        store.reserve(ChunkHandle(7), 21 * 7000).await.unwrap();
        let buf = payload(&rt, &more).await;
        drop(store.append(&entry(&store, 7, 21, &more), buf).unwrap());
        crate::runtime::Runtime::sleep(&rt, std::time::Duration::from_micros(300)).await;
    });
    let rig = Rig::start(2, &rig.kill(9), 1);
    let reported = rig.read_all(7, Upto::Durable).unwrap();
    assert!(reported.len() >= 140_000);
    let disk = rig.sim.disk();
    drop(rig);
    disk.power_cut_keeping(|_| false);
    let rig = Rig::start(3, &disk, 1);
    assert_eq!(rig.read_all(7, Upto::Durable).unwrap(), reported);
}

#[test]
fn another_cluster_server_or_format_is_refused_and_nothing_changes() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    let disk = rig.stop();
    let writes = disk.stats().writes;
    let error = refusal(&disk, |config| config.cluster = ClusterId([2; 16]));
    assert!(error.contains("cluster 0101") && error.contains("0202"), "{error}");
    let error = refusal(&disk, |config| config.server = wire::ServerId(9));
    assert!(error.contains("server 1") && error.contains("server 9"), "{error}");
    let newer = disk.fork();
    for file in [FileId::DiskA, FileId::DiskB] {
        let mut page = page(&newer, file, 0);
        page[8] = 2;
        let crc = crc32c::crc32c(&page[8..]).to_le_bytes();
        let old = newer.peek(file, 4, 4).unwrap();
        newer.rot(file, 8, &[1 ^ 2]);
        newer.rot(file, 4, &[0, 1, 2, 3].map(|at| crc[at] ^ old[at]));
    }
    assert!(refusal(&newer, |_| {}).contains("format 2, this build reads format 1"));
    let blank = disk.fork();
    [FileId::DiskA, FileId::DiskB].into_iter().for_each(|file| {
        let old = blank.peek(file, 0, 4096).unwrap();
        blank.rot(file, 0, &old);
    });
    assert!(refusal(&blank, |_| {}).contains("not a fresh disk"));
    let torn = disk.fork();
    [FileId::DiskA, FileId::DiskB].into_iter().for_each(|file| torn.rot(file, 70, &[1]));
    assert!(refusal(&torn, |_| {}).contains("both copies of DISK"));
    assert_eq!(disk.stats().writes - writes, 0, "a refusal changes nothing");
}

#[test]
fn a_record_that_this_build_does_not_replay_stops_it() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    let slot = slot_of(&rig, 7);
    let disk = rig.stop();
    let ring = Ring::decode(&page(&disk, FileId::Ring(0), 0)).unwrap();
    let chain = Chain {
        lsn: ring.common.lsn,
        prev_crc: ring.start_prev_crc,
        boot_gen: ring.common.boot_gen,
        disk_uuid: ring.common.disk_uuid,
    };
    let mut batch = Batch::default();
    let subject = Subject { chunk: ChunkHandle(7), slot, epoch: EPOCH };
    batch.push(subject, 0, &Body::Mark);
    let (mut record, _) = batch.close(&chain, 0);
    record[36] = 63;
    let crc = checksum(&chain.disk_uuid, &record[..HEAD_LEN]);
    record[4..8].copy_from_slice(&crc.to_le_bytes());
    let at = RING_LOG_START + ring.start_off;
    let old = disk.peek(FileId::Ring(0), at, record.len()).unwrap();
    let mask: Vec<u8> = record.iter().zip(old).map(|(new, old)| new ^ old).collect();
    disk.rot(FileId::Ring(0), at, &mask);
    let error = refusal(&disk, |_| {});
    assert!(error.contains("record of type 63"), "{error}");
}

#[test]
fn an_abandoned_fill_does_not_keep_the_journal_full() {
    let rig = Rig::start_with(1, &new_disk(), 1, 256 << 10).unwrap();
    rig.create(7);
    rig.create(8);
    rig.on(7, |rt, store| async move {
        store.prepare(TERM, ChunkHandle(7), Epoch(2)).await.unwrap();
        let piece = bytes(1, 4096);
        let buf = payload(&rt, &piece).await;
        let crcs = wire::checksum::block_crcs(&piece);
        store.fill(ChunkHandle(7), Epoch(2), 0, 4096, crcs, buf).await.unwrap();
        for op in 1..400 {
            let mut tries = 0;
            while append(&rt, &store, 8, op, &bytes(op, 3000)).await == Err(StoreError::Busy) {
                tries += 1;
                assert!(tries < 1000, "the journal stays full");
                crate::runtime::Runtime::sleep(&rt, std::time::Duration::from_millis(1)).await;
            }
        }
        assert!(store.counters().checkpoints > 5);
    });
    let rig = Rig::start(2, &rig.cut(1), 2);
    assert_eq!(rig.read_all(8, Upto::Durable).unwrap().len(), 399 * 3000);
}
