//! Repairs: a block that is bad is right again, and nothing else has changed.

use std::cell::Cell;
use std::rc::Rc;

use wire::Seq;

use super::overwrite::{CHUNK, checkpoint, images, place, rig_with, slot};
use super::rig::{EPOCH, Rig, TERM, bytes, payload};
use crate::runtime::sim::{Fault, Op, Rule};
use crate::store::{StoreError, Upto};

/// Repairs of a block that was flipped: `Ok` when it reads right.
fn repair(rig: &Rig, first: u32, bytes: &[u8]) -> Result<(), StoreError> {
    let bytes = bytes.to_vec();
    rig.on(7, move |rt, store| async move {
        let buf = payload(&rt, &bytes).await;
        store.repair(CHUNK, first, buf).await
    })
}

#[test]
fn a_flipped_block_is_repaired_with_its_own_content_and_nothing_else() {
    for sealed in [false, true] {
        let (rig, content) = rig_with(30_000);
        let digest = super::model::digest(&content);
        if sealed {
            rig.on(7, move |_, store| async move {
                store.finish(CHUNK, EPOCH, Seq(2), 30_000, digest).await.unwrap();
                store.confirm(TERM, CHUNK, EPOCH, 30_000, digest).await.unwrap();
            });
        }
        let whole = [&content[28_672..], &[0; 2768]].concat();
        assert_eq!(repair(&rig, 7, &whole), Err(StoreError::BadRange), "the partial block has no place yet");
        let rig = Rig::start(2, &rig.stop(), 1);
        rig.sim.disk().rot(slot(&rig), 4096 * 2 + 5, &[1]);
        rig.sim.disk().rot(slot(&rig), 4096 * 3 + 5, &[1]);
        assert_eq!(rig.read_all(7, Upto::Durable), Err(StoreError::BadBlock(2)));
        let view = rig.store(7).view(CHUNK);
        assert_eq!(repair(&rig, 2, &bytes(1, 4096)), Err(StoreError::Mismatch));
        assert_eq!(repair(&rig, 2, &content[8192..8193]), Err(StoreError::Mismatch));
        assert_eq!(repair(&rig, 8, &bytes(1, 4096)), Err(StoreError::BadRange));
        assert_eq!(repair(&rig, u32::MAX, &bytes(1, 4096)), Err(StoreError::BadRange));
        assert_eq!(repair(&rig, 0, &[]), Err(StoreError::BadRange));
        assert_eq!(repair(&rig, 0, &bytes(1, 257 * 4096)), Err(StoreError::BadRange));
        assert_eq!(images(&rig), 0);
        repair(&rig, 2, &content[8192..16_384]).unwrap();
        assert!(rig.read_all(7, Upto::Durable).unwrap() == content, "from memory");
        assert_eq!(rig.store(7).counters().repaired_blocks, 2);
        assert_eq!(rig.store(7).view(CHUNK), view, "content, entries and digest are what they were");
        let left = Rig::start(
            3,
            &{
                let disk = rig.sim.disk().fork();
                disk.power_cut_keeping(|_| false);
                disk
            },
            1,
        );
        assert!(left.read_all(7, Upto::Durable).unwrap() == content, "after a crash");
        checkpoint(&rig);
        assert!(images(&rig) == 0 && place(&rig, 8192, 8192) == content[8192..16_384]);
        if sealed {
            rig.sim.disk().rot(slot(&rig), 28_672, &[1]);
            repair(&rig, 7, &whole).unwrap();
            assert!(rig.read_all(7, Upto::Durable).unwrap() == content, "the last block has a place now");
        }
        rig.on(7, |_, store| async move { store.condemn(TERM, CHUNK, 5, 1).await.unwrap() });
        assert_eq!(repair(&rig, 2, &content[8192..16_384]), Err(StoreError::UnknownChunk));
    }
}

/// A sector that cannot be read is what a repair is for: its image is served without looking there.
#[test]
fn a_block_that_cannot_be_read_is_repaired_and_read() {
    let (rig, content) = rig_with(30_000);
    let sector = |times| Rule::new(Op::Read, Fault::Error(libc::EIO)).on(slot(&rig)).times(times);
    repair(&rig, 2, &content[8192..12_288]).unwrap();
    repair(&rig, 5, &content[20_480..24_576]).unwrap();
    let before = rig.sim.disk().stats().reads;
    assert!(rig.read_all(7, Upto::Durable).unwrap() == content);
    assert_eq!(rig.sim.disk().stats().reads - before, 3, "the runs around the two images");
    rig.sim.disk().inject(sector(u64::MAX));
    for block in [2, 5] {
        let read = rig.on(7, move |_, store| async move { store.read(CHUNK, block * 4096, 4096, Upto::Durable).await });
        assert!(read.unwrap().buf.as_ref() == &content[block as usize * 4096..][..4096]);
    }
    let device =
        rig.on(7, |_, store| async move { store.read_device(CHUNK, 0, 30_000, Upto::Durable).await.map(drop) });
    assert_eq!(device, Err(StoreError::BadBlock(0)));
}

#[test]
fn a_crash_during_a_repair_leaves_the_block_bad_or_right() {
    for seed in 0..3 {
        let (rig, content) = rig_with(30_000);
        let rig = Rig::start(seed, &rig.stop(), 1);
        let disk = rig.sim.disk();
        disk.rot(slot(&rig), 4096 * 2 + 5, &[1]);
        let (store, good) = (rig.store(7), content.clone());
        let acknowledged = Rc::new(Cell::new(false));
        let (acknowledge, mut seen, mut looks) = (Rc::clone(&acknowledged), disk.changes(), 0);
        rig.sim.run_until(
            move |rt| async move {
                let buf = payload(&rt, &good[8192..12_288]).await;
                store.repair(CHUNK, 2, buf).await.unwrap();
                acknowledge.set(true);
                store.inner.checkpoint().await;
            },
            |_| {
                if disk.changes() != std::mem::replace(&mut seen, disk.changes()) {
                    for cut in 0..3 {
                        looks += 1;
                        let disk = disk.fork();
                        disk.power_cut(seed * 1000 + looks * 3 + cut);
                        let left = Rig::start(looks, &disk, 1);
                        match left.read_all(7, Upto::Durable) {
                            Ok(read) => assert!(read == content),
                            Err(error) => {
                                assert!(!acknowledged.get(), "what was repaired is bad again");
                                assert_eq!(error, StoreError::BadBlock(2));
                            }
                        }
                    }
                }
                false
            },
        );
        assert!(acknowledged.get() && looks > 10);
    }
}
