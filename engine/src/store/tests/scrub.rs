//! What a scrub finds on the disk, what it heals, and what it must not touch.

use wire::{ChunkHandle, Epoch};

use super::rig::{Rig, TERM, bytes, new_disk};
use crate::runtime::FileId;
use crate::runtime::sim::{Fault, Op, Rule, SimDisk};
use crate::store::header::Hdr;
use crate::store::layout::{Child, HALF_OFFSETS, PAGE};
use crate::store::{BlocksScrubbed, PagesScrubbed, StoreError, Upto};

const CHUNK: ChunkHandle = ChunkHandle(7);
const EIO: i32 = 5;

fn slot_of(rig: &Rig) -> FileId {
    let slot = rig.store(7).inner.state.borrow().chunks[&CHUNK].slot();
    FileId::Slot(slot)
}

/// A sealed chunk of so many bytes, everything in its slot, in a fresh process without anything in memory.
fn sealed(len: usize) -> Rig {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    for (op, piece) in (1..).zip(bytes(1, len).chunks(1 << 20)) {
        rig.append(7, op, piece).unwrap();
    }
    rig.on(7, |_, store| async move {
        let found = store.prepare(TERM, CHUNK, Epoch(2)).await.unwrap();
        store.seal(TERM, CHUNK, Epoch(2), found.last_seq, found.len, found.digest, None).await.unwrap();
        store.confirm(TERM, CHUNK, Epoch(2), found.len, found.digest).await.unwrap();
    });
    Rig::start(2, &rig.stop(), 1)
}

fn pages(rig: &Rig) -> PagesScrubbed {
    let found = rig.on(7, |_, store| async move { store.scrub_pages(CHUNK).await }).unwrap();
    // The checkpoint that was asked for.
    rig.sim.drain();
    found
}

/// All blocks in steps of 10.
fn blocks(rig: &Rig) -> BlocksScrubbed {
    rig.on(7, |_, store| async move {
        let mut all = BlocksScrubbed::default();
        while !all.done {
            let step = store.scrub_blocks(CHUNK, all.next, 10).await.unwrap();
            all = BlocksScrubbed {
                bytes: all.bytes + step.bytes,
                bad: [all.bad, step.bad].concat(),
                flaky: all.flaky + step.flaky,
                ..step
            };
        }
        all
    })
}

fn page(disk: &SimDisk, file: FileId, offset: u64) -> Box<[u8; PAGE]> {
    disk.peek(file, offset, PAGE).unwrap().try_into().map(Box::new).unwrap()
}

fn current(rig: &Rig, child: Child) -> u64 {
    let hdr = Hdr::decode(&page(&rig.sim.disk(), slot_of(rig), HALF_OFFSETS[0])).unwrap();
    child.offset(hdr.copy_of(child))
}

#[test]
fn a_healthy_chunk_is_read_whole_and_found_good_open_or_sealed() {
    let rig = sealed(100_000);
    let found = pages(&rig);
    assert_eq!((found.bad, found.healed), (0, 0));
    assert!(found.bytes >= 3 * PAGE as u64, "two headers, a page of checksums");
    let found = blocks(&rig);
    assert_eq!((found.bytes, found.bad.len(), found.next), (25 * 4096, 0, 25));
    assert_eq!(rig.store(7).scrub_total(), 25 * 4096);
    let rig = Rig::start(3, &new_disk(), 1);
    rig.create(7);
    assert_eq!((pages(&rig).bad, blocks(&rig).bytes), (0, 0), "nothing was written to the slot yet");
    rig.append(7, 1, &bytes(1, 10_000)).unwrap();
    assert_eq!((pages(&rig).bad, blocks(&rig).bytes), (0, 8192), "the partial block is in the journal");
}

#[test]
fn a_byte_that_nobody_read_is_found_though_the_checksums_are_in_memory_or_not() {
    for read_first in [false, true] {
        let rig = sealed(100_000);
        if read_first {
            rig.read_all(7, Upto::Durable).unwrap();
        }
        rig.sim.disk().rot(slot_of(&rig), 17 * 4096 + 5, &[0x10]);
        rig.sim.disk().rot(slot_of(&rig), 24 * 4096, &[0x80]);
        assert_eq!(blocks(&rig).bad, [17, 24]);
        let one = rig.on(7, |_, store| async move { store.scrub_blocks(CHUNK, 17, 1).await }).unwrap();
        assert_eq!((one.bad.as_slice(), one.next, one.done), (&[17][..], 18, false));
    }
}

#[test]
fn a_block_that_cannot_be_read_once_is_flaky_and_twice_is_bad() {
    let rig = sealed(100_000);
    let slot = slot_of(&rig);
    rig.sim.disk().inject(Rule::new(Op::Read, Fault::Error(EIO)).on(slot).skip(1));
    let found = blocks(&rig);
    assert_eq!((found.bad.len(), found.flaky), (0, 10), "one read of ten blocks failed");
    rig.sim.disk().heal();
    rig.sim.disk().inject(Rule::new(Op::Read, Fault::Error(EIO)).on(slot).skip(1).times(2));
    let found = blocks(&rig);
    assert_eq!((found.bad.as_slice(), found.flaky), (&[0][..], 9));
    assert_eq!(rig.store(7).fenced(), None, "no fence for a read");
}

#[test]
fn a_bad_or_old_header_copy_is_written_again_from_the_other() {
    for (copy, offset) in HALF_OFFSETS.into_iter().enumerate() {
        let rig = sealed(10_000);
        let (disk, slot) = (rig.sim.disk(), slot_of(&rig));
        let good = page(&disk, slot, offset);
        disk.rot(slot, offset + 70, &[1]);
        let found = pages(&rig);
        assert_eq!((found.bad, found.healed), (1, 1), "copy {copy}");
        assert!(page(&disk, slot, offset) == good);
        assert_eq!(pages(&rig).bad, 0);
    }
}

#[test]
fn two_bad_headers_are_written_again_from_memory() {
    let rig = sealed(10_000);
    for offset in HALF_OFFSETS {
        rig.sim.disk().rot(slot_of(&rig), offset + 70, &[1]);
    }
    assert_eq!(pages(&rig).healed, 2);
    assert_eq!(pages(&rig), PagesScrubbed { bad: 0, healed: 0, ..pages(&rig) });
    let rig = Rig::start(4, &rig.cut(1), 1);
    assert_eq!(rig.summary.lost_slots, 0);
    assert_eq!(rig.read_all(7, Upto::Durable).unwrap(), bytes(1, 10_000));
}

#[test]
fn a_page_of_checksums_that_memory_lost_is_proved_by_the_digest() {
    for len in [100_000, 4096 * 1010 + 7] {
        let rig = sealed(len);
        let offset = current(&rig, Child::Crc(0));
        rig.sim.disk().rot(slot_of(&rig), offset + 64, &[1]);
        assert_eq!(rig.read_all(7, Upto::Durable), Err(StoreError::BadBlock(0)));
        let found = pages(&rig);
        assert_eq!((found.bad, found.healed), (1, 1), "{len}");
        assert_eq!(rig.read_all(7, Upto::Durable).unwrap(), bytes(1, len));
        let rig = Rig::start(4, &rig.cut(1), 1);
        assert_eq!((pages(&rig).bad, blocks(&rig).bad.len()), (0, 0));
        assert_eq!(rig.read_all(7, Upto::Durable).unwrap(), bytes(1, len));
    }
}

#[test]
fn checksums_are_never_made_from_blocks_that_the_digest_does_not_prove() {
    let rig = sealed(100_000);
    let offset = current(&rig, Child::Crc(0));
    rig.sim.disk().rot(slot_of(&rig), offset + 64, &[1]);
    rig.sim.disk().rot(slot_of(&rig), 3 * 4096, &[1]);
    let found = pages(&rig);
    assert_eq!((found.bad, found.healed), (1, 0));
    assert_eq!(rig.read_all(7, Upto::Durable), Err(StoreError::BadBlock(0)));
    assert_eq!(blocks(&rig).bad.len(), 25, "without checksums no block is known to be good");
}

#[test]
fn a_slot_that_is_kept_out_of_use_holds_no_second_chunk_after_a_restart_either() {
    let rig = sealed(10_000);
    let slot = slot_of(&rig);
    assert!(rig.store(7).quarantine(CHUNK));
    assert!(!rig.store(7).quarantine(CHUNK), "once");
    rig.on(7, |_, store| async move {
        store.condemn(TERM, CHUNK, 9, 1).await.unwrap();
        store.free(TERM, CHUNK, 9).await.unwrap();
    });
    let rig = Rig::start(3, &rig.stop(), 1);
    assert_eq!(rig.store(7).quarantined(), 1);
    for chunk in 20..30 {
        rig.create(chunk);
        let state = &rig.store(chunk).inner;
        let other = FileId::Slot(state.state.borrow().chunks[&ChunkHandle(chunk)].slot());
        assert_ne!(other, slot);
    }
}

#[test]
fn a_draining_disk_takes_no_new_chunks_and_serves_those_it_has() {
    let rig = sealed(10_000);
    rig.on(7, |_, store| async move {
        assert!(store.drain().await.unwrap());
        assert!(!store.drain().await.unwrap(), "once");
    });
    let rig = Rig::start(3, &rig.cut(1), 1);
    let refused = rig.on(8, |_, store| async move { store.create(super::rig::create_args(8)).await });
    assert_eq!(refused, Err(StoreError::NoSpace));
    assert_eq!(rig.read_all(7, Upto::Durable).unwrap(), bytes(1, 10_000));
}
