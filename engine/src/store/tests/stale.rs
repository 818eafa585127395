//! Blocks in memory and reads on their way, while what they show is overwritten, repaired or replaced.

use std::time::Duration;

use wire::ChunkHandle;

use super::overwrite::{CHUNK, accept, checkpoint, slot};
use super::rig::{Rig, below, bytes, create_args, new_disk, overwrite, payload};
use crate::runtime::Runtime;
use crate::runtime::sim::{Fault, Op, Rule, SimRuntime};
use crate::store::{BadBlock, Edges, ReadConfig, Store, StoreError, Upto};

const CACHE: ReadConfig = ReadConfig { cache_bytes: 4 << 20, ahead_max: 256 << 10 };

/// An open chunk of these bytes, none of them in memory.
fn rig_with(content: &[u8]) -> Rig {
    let rig = Rig::start_reading(3, &new_disk(), CACHE);
    rig.create(7);
    rig.append(7, 1, content).unwrap();
    rig
}

async fn read(store: &Store<SimRuntime>, block: u32) -> Result<Vec<u8>, StoreError> {
    let blocks = store.read(CHUNK, block * 4096, 4096, Upto::Durable).await?;
    assert_eq!(blocks.crcs, [crc32c::crc32c(blocks.buf.as_ref())]);
    Ok(blocks.buf.as_ref().to_vec())
}

/// What a read of a block gives, reads of the device for it, and hits.
fn read_counted(rig: &Rig, block: u32) -> (Vec<u8>, u64, u64) {
    let before = rig.store(7).counters();
    let got = rig.on(7, move |_, store| async move { read(&store, block).await.unwrap() });
    let after = rig.store(7).counters();
    (got, after.device_reads - before.device_reads, after.cache_hits - before.cache_hits)
}

/// What is left of a block when the power goes now, and with it all that was not flushed.
fn after_a_crash(rig: &Rig, block: u32) -> Vec<u8> {
    let disk = rig.sim.disk().fork();
    disk.power_cut_keeping(|_| false);
    let left = Rig::start_reading(5, &disk, CACHE);
    left.on(7, move |_, store| async move { read(&store, block).await.unwrap() })
}

fn held(rig: &Rig) -> u64 {
    rig.store(7).counters().cache_bytes
}

#[test]
fn an_overwrite_of_a_block_in_memory_shows_when_it_is_durable_and_from_then_on() {
    let content = bytes(1, 40_960);
    let rig = rig_with(&content);
    let mut old = content[8192..12_288].to_vec();
    for op in 2..5 {
        assert_eq!(read_counted(&rig, 2), (old.clone(), 1, 0));
        assert_eq!(read_counted(&rig, 2), (old.clone(), 0, 1));
        assert_eq!(held(&rig), 4096);
        let new = bytes(op, 4096);
        let image = new.clone();
        rig.on(7, move |rt, store| async move {
            let entry = below(&store, 7, op, 8192, &image);
            drop(accept(&rt, &store, &entry, &image, &Edges::default()).await.unwrap());
        });
        assert_eq!(read_counted(&rig, 2), (old.clone(), 0, 1), "it could still be lost");
        assert_eq!((after_a_crash(&rig, 2), held(&rig)), (old.clone(), 4096));
        rig.on(7, |_, store| async move { store.inner.flushed().await }).unwrap();
        assert_eq!(held(&rig), 0, "gone in the step in which its content became old");
        assert_eq!(read_counted(&rig, 2), (new.clone(), 0, 0), "the image");
        assert_eq!(after_a_crash(&rig, 2), new);
        // A read of many puts image and neighbours together, and keeps the neighbours only.
        let all = rig.read_all(7, Upto::Durable).unwrap();
        assert!(all[..8192] == content[..8192] && all[8192..12_288] == new && all[12_288..] == content[12_288..]);
        checkpoint(&rig);
        assert_eq!(after_a_crash(&rig, 2), new);
        rig.store(7).inner.reads.borrow_mut().changed(CHUNK, 0..10);
        old = new;
    }
    assert_eq!(rig.store(7).counters().bad_blocks, 0);
}

/// Reads of the device that take long, with readers who join them, while the block becomes another one: each
/// shows what was durable at some time since it began, and nothing older stays behind.
#[test]
fn reads_on_their_way_across_an_overwrite_leave_nothing_old_behind() {
    let content = bytes(1, 40_960);
    for round in 0..24_u64 {
        let rig = rig_with(&content);
        let (old, new) = (content[8192..12_288].to_vec(), bytes(9, 4096));
        let delay = Fault::Delay(Duration::from_micros(400 * round));
        rig.sim.disk().inject(Rule::new(Op::Read, delay).on(slot(&rig)).times(3));
        let (before, after) = (old.clone(), new.clone());
        rig.on(7, move |rt, store| async move {
            let early = async {
                for shown in futures_util::future::join_all((0..3).map(|_| read(&store, 2))).await {
                    let shown = shown.unwrap();
                    assert!(shown == before || shown == after, "round {round}");
                }
            };
            let writer = async {
                rt.sleep(Duration::from_micros(10)).await;
                overwrite(&rt, &store, 7, 2, 8192, &after).await.unwrap();
                assert!(read(&store, 2).await.unwrap() == after, "acknowledged, round {round}");
                store.inner.checkpoint().await;
                for _ in 0..3 {
                    assert!(read(&store, 2).await.unwrap() == after, "in place, round {round}");
                }
            };
            futures_util::join!(early, writer);
            assert!(read(&store, 2).await.unwrap() == after, "at last, round {round}");
        });
        assert_eq!(rig.store(7).counters().bad_blocks, 0);
    }
}

/// A read that waited long since it was planned meets a read that was planned later.
#[test]
fn what_another_read_brings_is_taken_only_if_it_is_of_the_same_state() {
    let content = bytes(1, 40_960);
    let rig = rig_with(&content);
    let (disk, slot) = (rig.sim.disk(), slot(&rig));
    rig.on(7, move |rt, store| async move {
        read(&store, 3).await.unwrap();
        let busy = store.inner.assembling.acquire_many(2).await.unwrap();
        let pair = store.read(CHUNK, 8192, 8192, Upto::Durable);
        let others = async {
            let new = bytes(9, 4096);
            overwrite(&rt, &store, 7, 2, 8192, &new).await.unwrap();
            store.inner.checkpoint().await;
            disk.inject(Rule::new(Op::Read, Fault::Delay(Duration::from_millis(5))).on(slot));
            let late = async {
                rt.sleep(Duration::from_millis(1)).await;
                drop(busy);
            };
            assert!(futures_util::join!(read(&store, 2), late).0.unwrap() == new);
            new
        };
        let (pair, new) = futures_util::join!(pair, others);
        let pair = pair.unwrap();
        assert!(pair.buf.as_ref() == [&new, &content[12_288..16_384]].concat());
        assert_eq!(pair.crcs, wire::checksum::block_crcs(pair.buf.as_ref()));
        assert_eq!(store.counters().bad_blocks, 0);
    });
}

#[test]
fn a_repaired_block_reads_right_at_once_and_is_on_no_list() {
    let content = bytes(1, 40_960);
    let rig = rig_with(&content);
    rig.sim.disk().rot(slot(&rig), 8192, &[1]);
    rig.sim.disk().rot(slot(&rig), 16_384, &[1]);
    for block in [2, 4] {
        let bad = rig.on(7, move |_, store| async move { read(&store, block).await });
        assert_eq!(bad, Err(StoreError::BadBlock(block)));
    }
    let good = content[8192..12_288].to_vec();
    rig.on(7, {
        let good = good.clone();
        move |rt, store| async move {
            let buf = payload(&rt, &good).await;
            store.repair(CHUNK, 2, buf).await.unwrap();
        }
    });
    assert_eq!(read_counted(&rig, 2), (good.clone(), 0, 0), "from memory");
    assert_eq!(rig.store(7).take_bad_blocks(), [BadBlock { chunk: CHUNK, block: 4 }]);
    checkpoint(&rig);
    assert_eq!(read_counted(&rig, 2), (good.clone(), 1, 0), "from its place");
    assert_eq!(read_counted(&rig, 2), (good, 0, 1));
}

#[test]
fn read_ahead_stops_before_an_image_and_goes_on_behind_it() {
    let content = bytes(1, 1 << 20);
    let rig = rig_with(&content);
    rig.overwrite(7, 2, 100 * 4096, &bytes(2, 4096)).unwrap();
    // Its place cannot be read, which is nobody's business.
    rig.sim.disk().rot(slot(&rig), 100 * 4096, &[1]);
    rig.on(7, |rt, store| async move {
        for block in 0..256_u32 {
            let got = read(&store, block).await.unwrap();
            let at = block as usize * 4096;
            assert!(got == if block == 100 { bytes(2, 4096) } else { content[at..at + 4096].to_vec() }, "{block}");
        }
        rt.sleep(Duration::from_secs(1)).await;
        let counters = store.counters();
        assert!(counters.ahead_used > 240 && counters.ahead_wasted == 0, "{counters:?}");
        assert!(counters.device_reads < 20 && counters.bad_blocks == 0, "{counters:?}");
    });
}

/// A handle that names another copy: what was in memory under it is of no use.
#[test]
fn a_chunk_that_comes_again_has_nothing_in_memory_of_the_one_before() {
    let rig = rig_with(&bytes(1, 40_960));
    for round in 2..6 {
        assert_eq!(read_counted(&rig, 2).0, bytes(round - 1, 40_960)[8192..12_288]);
        let content = bytes(round, 40_960);
        rig.on(7, move |_, store| async move {
            store.condemn(super::rig::TERM, CHUNK, round, 1).await.unwrap();
            store.free(super::rig::TERM, CHUNK, round).await.unwrap();
            store.create(create_args(7)).await.unwrap();
        });
        rig.append(7, 1, &content).unwrap();
        assert_eq!(read_counted(&rig, 2).0, content[8192..12_288]);
        assert_eq!(read_counted(&rig, 2), (content[8192..12_288].to_vec(), 0, 1));
    }
    assert_eq!(rig.store(7).chunks(), [ChunkHandle(7)]);
}
