//! What reads cost the device, what they share, and that memory never gives anything but what is on it.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{join, join_all};
use wire::{ChunkHandle, Epoch};

use super::rig::{Rig, TERM, append, bytes, create_args, new_disk, payload};
use crate::runtime::sim::{Fault, Op, Rule, SimRuntime};
use crate::runtime::{FileId, Runtime};
use crate::store::{BadBlock, Counters, ReadConfig, Store, StoreError, Upto};

const CHUNK: ChunkHandle = ChunkHandle(7);
const CACHE: ReadConfig = ReadConfig { cache_bytes: 4 << 20, ahead_max: 0 };
const BOTH: ReadConfig = ReadConfig { cache_bytes: 4 << 20, ahead_max: 1 << 20 };

/// A process whose chunk 7 holds `all`, none of it in memory.
fn rig(reads: ReadConfig, all: &[u8]) -> Rig {
    let disk = new_disk();
    let rig = Rig::start(2, &disk, 1);
    rig.create(7);
    for (op, piece) in (1..).zip(all.chunks(1 << 20)) {
        rig.append(7, op, piece).unwrap();
    }
    Rig::start_reading(4, &rig.stop(), reads)
}

fn slot(rig: &Rig, chunk: u64) -> FileId {
    FileId::Slot(rig.store(chunk).inner.state.borrow().chunks[&ChunkHandle(chunk)].slot())
}

/// Reads as a client does, and checks what it would.
async fn read(store: &Store<SimRuntime>, offset: u32, len: u32) -> Result<Vec<u8>, StoreError> {
    let blocks = store.read(CHUNK, offset, len, Upto::Durable).await?;
    let bytes = blocks.buf.as_ref();
    assert_eq!(wire::checksum::block_crcs(bytes), blocks.crcs, "blocks carry their own checksums");
    let skip = (offset - blocks.offset) as usize;
    Ok(bytes[skip..(blocks.len as usize).min(skip + len as usize)].to_vec())
}

/// What `work` adds to the counters.
async fn spent(store: &Store<SimRuntime>, work: impl Future<Output = ()>) -> Counters {
    let before = store.counters();
    work.await;
    let after = store.counters();
    Counters {
        device_reads: after.device_reads - before.device_reads,
        device_read_bytes: after.device_read_bytes - before.device_read_bytes,
        cache_hits: after.cache_hits - before.cache_hits,
        cache_misses: after.cache_misses - before.cache_misses,
        reads_joined: after.reads_joined - before.reads_joined,
        ahead_blocks: after.ahead_blocks - before.ahead_blocks,
        ahead_used: after.ahead_used - before.ahead_used,
        ahead_wasted: after.ahead_wasted - before.ahead_wasted,
        ..Counters::default()
    }
}

#[test]
fn what_was_read_once_is_read_again_without_the_device() {
    let all = bytes(1, 300_000);
    let rig = rig(CACHE, &all);
    rig.on(7, |_, store| async move {
        // One page of checksums, and the block.
        let first = spent(&store, async { assert_eq!(read(&store, 5000, 100).await.unwrap(), all[5000..5100]) }).await;
        assert_eq!((first.device_reads, first.device_read_bytes, first.cache_misses), (2, 8192, 1));
        let again = spent(&store, async { assert_eq!(read(&store, 4096, 4096).await.unwrap(), all[4096..8192]) }).await;
        assert_eq!((again.device_reads, again.cache_hits, again.cache_misses), (0, 1, 0));
        // A hit in the middle of a read that needs the device is not worth two reads of it.
        let around = spent(&store, async { assert_eq!(read(&store, 0, 12288).await.unwrap(), all[..12288]) }).await;
        assert_eq!((around.device_reads, around.device_read_bytes), (1, 12288));
        let beside =
            spent(&store, async { assert_eq!(read(&store, 4096, 12288).await.unwrap(), all[4096..16384]) }).await;
        assert_eq!((beside.device_reads, beside.device_read_bytes, beside.cache_hits), (1, 4096, 2));
        // The partial block at the end is in memory or in place; either way it is padded.
        let end = u32::try_from(all.len()).unwrap() / 4096 * 4096;
        assert_eq!(read(&store, end - 4096, 4096 + 992).await.unwrap(), all[end as usize - 4096..]);
        assert_eq!(store.counters().cache_bytes % 4096, 0);
    });
}

#[test]
fn blocks_that_are_read_in_pairs_are_kept() {
    let all = bytes(1, 4 << 20);
    let rig = rig(BOTH, &all);
    rig.on(7, |_, store| async move {
        let pass = async || {
            for pair in 0..50 {
                let at = pair * 13 % 50 * 20 * 4096;
                read(&store, at, 4096).await.unwrap();
                read(&store, at + 4096, 4096).await.unwrap();
            }
        };
        pass().await;
        let again = spent(&store, pass()).await;
        assert_eq!((again.cache_hits, again.cache_misses, again.ahead_used), (100, 0, 0));
    });
}

#[test]
fn without_memory_every_read_is_the_devices() {
    let all = bytes(1, 100_000);
    let rig = rig(ReadConfig::default(), &all);
    rig.on(7, |_, store| async move {
        read(&store, 0, 1).await.unwrap();
        for block in (0..20).chain(0..20) {
            let spent = spent(&store, async { drop(read(&store, block * 4096, 4096).await.unwrap()) }).await;
            assert_eq!((spent.device_reads, spent.cache_hits, spent.ahead_blocks), (1, 0, 0));
        }
        assert_eq!(store.counters().cache_bytes, 0);
    });
}

#[test]
fn a_sequential_scan_makes_few_reads_of_the_device_and_wastes_nothing() {
    let all = bytes(1, 64 << 20);
    let rig = rig(BOTH, &all);
    rig.on(7, |_, store| async move {
        let scan = spent(&store, async {
            for at in (0..64 << 20).step_by(4096) {
                let got = read(&store, at, 4096).await.unwrap();
                assert!(got == all[at as usize..at as usize + 4096], "at {at}");
            }
        })
        .await;
        // Windows of 8 to 128 blocks, 64 of 256, the first two blocks, 17 pages of checksums.
        assert!(scan.device_reads <= 5 + 64 + 2 + 17, "{scan:?}");
        assert_eq!(scan.device_read_bytes, (64 << 20) + 17 * 4096, "nothing is read twice");
        assert_eq!((scan.cache_misses, scan.ahead_blocks, scan.ahead_used), (2, 16382, 16382));
        let after = store.counters();
        assert_eq!((after.ahead_wasted, after.ahead_bytes), (0, 0));
        assert!(after.cache_bytes <= 20 * 4096, "a scan is not kept: {after:?}");
    });
}

#[test]
fn a_scan_in_large_steps_is_read_ahead_too_and_nothing_beyond_the_end() {
    let all = bytes(1, (5 << 20) + 70_000);
    let rig = rig(BOTH, &all);
    rig.on(7, |_, store| async move {
        let mut got = Vec::new();
        let scan = spent(&store, async {
            while let Ok(more) = read(&store, u32::try_from(got.len()).unwrap(), 100_000).await {
                got.extend(more);
                if got.len() == all.len() {
                    break;
                }
            }
        })
        .await;
        assert!(got == all);
        assert!(scan.ahead_used > 1200 && scan.device_reads < 20, "{scan:?}");
        assert!(scan.device_read_bytes <= (5 << 20) + 73_728 + 10 * 4096, "{scan:?}");
    });
}

#[test]
fn a_reader_that_jumps_wastes_at_most_its_window_and_random_ones_nothing() {
    let all = bytes(1, 16 << 20);
    let rig = rig(BOTH, &all);
    rig.on(7, |rt, store| async move {
        let mut at = 1_u32;
        let random = spent(&store, async {
            for _ in 0..500 {
                at = at * 16807 % 4093;
                read(&store, at / 3 * 3 * 4096, 4096).await.unwrap();
            }
        })
        .await;
        assert_eq!(random.ahead_blocks, 0, "{random:?}");
        for at in 0..40 {
            read(&store, at * 4096, 4096).await.unwrap();
        }
        rt.sleep(Duration::from_secs(1)).await;
        let held = store.counters();
        assert!(held.ahead_bytes > 0);
        store.condemn(TERM, CHUNK, 1, 1).await.unwrap();
        let gone = store.counters();
        assert_eq!(gone.ahead_bytes, 0, "given up with the chunk");
        assert!(gone.ahead_wasted > 0);
        assert_eq!(gone.ahead_blocks, gone.ahead_used + gone.ahead_wasted);
    });
}

#[test]
fn read_ahead_stops_when_memory_is_short() {
    let all = bytes(1, 4 << 20);
    let rig = rig(BOTH, &all);
    rig.on(7, |rt, store| async move {
        let mut held = Vec::new();
        while let Some(buf) = rt.try_alloc(1 << 20) {
            held.push(buf);
        }
        held.pop();
        let _little = rt.try_alloc((1 << 20) - 65536).unwrap();
        let scan = spent(&store, async {
            for at in (0..1 << 20).step_by(4096) {
                read(&store, at, 4096).await.unwrap();
            }
        })
        .await;
        assert_eq!((scan.ahead_blocks, scan.cache_misses), (0, 256));
        drop(held);
        let scan = spent(&store, async {
            for at in ((1 << 20)..(2 << 20)).step_by(4096) {
                read(&store, at, 4096).await.unwrap();
            }
        })
        .await;
        assert!(scan.ahead_used > 240, "{scan:?}");
    });
}

#[test]
fn what_read_ahead_holds_is_bounded_however_many_read() {
    let all = bytes(1, 10 << 20);
    let reads = ReadConfig { cache_bytes: 0, ahead_max: 256 << 10 };
    let rig = rig(reads, &all);
    let bound = reads.buffers() as u64;
    assert_eq!(bound, 8 * (256 << 10));
    for chunk in [8, 9, 10] {
        rig.create(chunk);
        (1..).zip(all.chunks(1 << 20)).for_each(|(op, piece)| rig.append(chunk, op, piece).unwrap());
    }
    rig.on(7, move |_, store| async move {
        let mut most = 0;
        for round in 0..300 {
            // As many streams as a chunk has, in each of four: twice what there is room for.
            let readers = (0..16).map(|reader| {
                let (chunk, offset) = (ChunkHandle(7 + u64::from(reader % 4)), (reader / 4 * 600 + round) * 4096);
                store.read(chunk, offset, 4096, Upto::Durable)
            });
            for got in join_all(readers).await {
                got.unwrap();
            }
            most = most.max(store.counters().ahead_bytes);
        }
        let counters = store.counters();
        assert!(most <= bound && most > bound * 3 / 4, "{most} of {bound}");
        assert!(counters.ahead_used > 3000 && counters.ahead_used > counters.ahead_wasted * 2, "{counters:?}");
    });
}

#[test]
fn two_readers_of_a_block_make_one_read_of_the_device() {
    let all = bytes(1, 1 << 20);
    for reads in [ReadConfig::default(), BOTH] {
        let rig = rig(reads, &all);
        let all = all.clone();
        rig.on(7, |_, store| async move {
            read(&store, 0, 1).await.unwrap();
            let both = spent(&store, async {
                let (a, b) = join(read(&store, 40960, 40960), read(&store, 45056, 4096)).await;
                assert_eq!((a.unwrap(), b.unwrap()), (all[40960..81920].to_vec(), all[45056..49152].to_vec()));
            })
            .await;
            assert_eq!((both.device_reads, both.reads_joined), (1, 1));
            // Each has begun a part of what the other wants.
            let crossed = spent(&store, async {
                let (a, b) = join(read(&store, 409_600, 40960), read(&store, 430_080, 40960)).await;
                assert_eq!((a.unwrap(), b.unwrap()), (all[409_600..450_560].to_vec(), all[430_080..471_040].to_vec()));
            })
            .await;
            assert_eq!((crossed.device_reads, crossed.device_read_bytes, crossed.reads_joined), (2, 61440, 1));
        });
    }
}

#[test]
fn a_reader_that_gives_up_leaves_nobody_waiting() {
    let all = bytes(1, 1 << 20);
    let rig = rig(BOTH, &all);
    let disk = rig.sim.disk();
    let slot = slot(&rig, 7);
    rig.on(7, |rt, store| async move {
        read(&store, 0, 1).await.unwrap();
        disk.inject(Rule::new(Op::Read, Fault::Delay(Duration::from_secs(1))).on(slot));
        let first = Box::pin(read(&store, 81920, 8192));
        let second = read(&store, 86016, 4096);
        let gives_up = async {
            let waited = futures_util::future::select(first, Box::pin(rt.sleep(Duration::from_millis(10)))).await;
            assert!(matches!(waited, futures_util::future::Either::Right(_)));
        };
        let ((), second) = join(gives_up, second).await;
        assert_eq!(second.unwrap(), all[86016..90112]);
        assert!(rt.now() < Duration::from_secs(1), "it does not wait for the read of the one that gave up");
        assert_eq!(read(&store, 81920, 8192).await.unwrap(), all[81920..90112]);
    });
}

#[test]
fn a_read_that_began_before_a_change_is_not_kept() {
    let all = bytes(1, 1 << 20);
    let rig = rig(BOTH, &all);
    let disk = rig.sim.disk();
    let slot = slot(&rig, 7);
    rig.on(7, |rt, store| async move {
        read(&store, 0, 1).await.unwrap();
        let change = async |blocks| {
            rt.sleep(Duration::from_millis(10)).await;
            store.inner.reads.borrow_mut().changed(CHUNK, blocks);
        };
        disk.inject(Rule::new(Op::Read, Fault::Delay(Duration::from_secs(1))).on(slot));
        let (got, ()) = join(read(&store, 81920, 4096), change(20..21)).await;
        assert_eq!(got.unwrap(), all[81920..86016]);
        let again = spent(&store, async { drop(read(&store, 81920, 4096).await.unwrap()) }).await;
        assert_eq!((again.device_reads, again.cache_hits), (1, 0), "what began before the change is not kept");
        let kept = spent(&store, async { drop(read(&store, 81920, 4096).await.unwrap()) }).await;
        assert_eq!((kept.device_reads, kept.cache_hits), (0, 1));
        change(20..21).await;
        let changed = spent(&store, async { drop(read(&store, 81920, 4096).await.unwrap()) }).await;
        assert_eq!((changed.device_reads, changed.cache_hits), (1, 0));
        // Nobody joins a read that began before.
        disk.inject(Rule::new(Op::Read, Fault::Delay(Duration::from_secs(1))).on(slot));
        let late = async {
            change(30..31).await;
            spent(&store, async { drop(read(&store, 122_880, 4096).await.unwrap()) }).await
        };
        let (got, late) = join(read(&store, 122_880, 4096), late).await;
        got.unwrap();
        assert_eq!((late.device_reads, late.reads_joined), (1, 0));
    });
}

#[test]
fn what_an_append_writes_in_place_has_changed() {
    let rig = Rig::start_reading(2, &new_disk(), BOTH);
    rig.create(7);
    rig.append(7, 1, &bytes(1, 40_000)).unwrap();
    rig.on(7, |rt, store| async move {
        let mark = store.inner.reads.borrow_mut().mark(CHUNK);
        append(&rt, &store, 7, 2, &bytes(2, 10_000)).await.unwrap();
        let reads = store.inner.reads.borrow();
        assert!(
            reads.is_current(mark, &(0..9)) && !reads.is_current(mark, &(9..10)) && !reads.is_current(mark, &(11..12))
        );
        assert!(reads.is_current(mark, &(12..13)), "still in memory");
    });
}

#[test]
fn what_was_read_ahead_before_a_change_is_thrown_away() {
    let all = bytes(1, 1 << 20);
    let rig = rig(BOTH, &all);
    rig.on(7, |rt, store| async move {
        read(&store, 0, 4096).await.unwrap();
        read(&store, 4096, 4096).await.unwrap();
        rt.sleep(Duration::from_secs(1)).await;
        assert_eq!(store.counters().ahead_bytes, 8 * 4096);
        store.inner.reads.borrow_mut().changed(CHUNK, 5..6);
        let counters = store.counters();
        assert_eq!((counters.ahead_bytes, counters.ahead_wasted), (0, 8));
        let next = spent(&store, async { assert_eq!(read(&store, 8192, 4096).await.unwrap(), all[8192..12288]) }).await;
        assert_eq!((next.cache_misses, next.ahead_used), (1, 0));
    });
}

#[test]
fn a_chunk_that_takes_a_handle_again_shows_nothing_of_the_one_before() {
    let old = bytes(1, 100_000);
    let rig = rig(BOTH, &old);
    let disk = rig.sim.disk();
    let slot = slot(&rig, 7);
    rig.on(7, |rt, store| async move {
        for _ in 0..2 {
            for at in (0..98304).step_by(4096) {
                read(&store, at, 4096).await.unwrap();
            }
        }
        let hit = spent(&store, async { drop(read(&store, 40960, 4096).await.unwrap()) }).await;
        assert_eq!(hit.cache_hits, 1);
        disk.inject(Rule::new(Op::Read, Fault::Delay(Duration::from_secs(5))).on(slot));
        let slow = Rc::new(RefCell::new(None));
        rt.spawn({
            let (store, slow) = (store.clone(), Rc::clone(&slow));
            async move {
                let got = store.read_device(CHUNK, 0, 4096, Upto::Durable).await.map(|blocks| blocks.len);
                *slow.borrow_mut() = Some(got);
            }
        });
        rt.sleep(Duration::from_millis(10)).await;
        store.condemn(TERM, CHUNK, 5, 1).await.unwrap();
        assert_eq!(read(&store, 40960, 4096).await, Err(StoreError::UnknownChunk));
        store.free(TERM, CHUNK, 5).await.unwrap();
        store.create(super::super::CreateArgs { epoch: Epoch(2), ..create_args(7) }).await.unwrap();
        let new = bytes(2, 100_000);
        append(&rt, &store, 7, 1, &new).await.unwrap();
        for at in (0..98304).step_by(4096) {
            assert_eq!(read(&store, at, 4096).await.unwrap(), new[at as usize..at as usize + 4096]);
        }
        rt.sleep(Duration::from_secs(10)).await;
        assert_eq!(slow.borrow_mut().take(), Some(Ok(4096)), "the old one's read ended meanwhile");
        for at in (0..98304).step_by(4096) {
            assert_eq!(read(&store, at, 4096).await.unwrap(), new[at as usize..at as usize + 4096]);
        }
    });
}

#[test]
fn a_read_that_waits_while_its_chunk_becomes_another_shows_and_keeps_nothing_of_the_old_one() {
    let old = bytes(1, 100_000);
    let rig = rig(BOTH, &old);
    rig.on(7, |rt, store| async move {
        read(&store, 20480, 4096).await.unwrap();
        // One block in memory and two that are not: it waits for its turn to put them together.
        let turns = [store.inner.assembling.acquire().await.unwrap(), store.inner.assembling.acquire().await.unwrap()];
        let new = bytes(2, 100_000);
        let becomes = async {
            store.condemn(TERM, CHUNK, 5, 1).await.unwrap();
            store.free(TERM, CHUNK, 5).await.unwrap();
            store.create(super::super::CreateArgs { epoch: Epoch(2), ..create_args(7) }).await.unwrap();
            append(&rt, &store, 7, 1, &new).await.unwrap();
            drop(turns);
        };
        let (got, ()) = join(read(&store, 20480, 12288), becomes).await;
        assert_eq!(got.unwrap(), new[20480..32768]);
        for block in 5..8 {
            assert_eq!(read(&store, block * 4096, 4096).await.unwrap(), new[block as usize * 4096..][..4096]);
        }
    });
}

#[test]
fn a_reader_behind_a_writer_keeps_what_it_read() {
    let all = bytes(1, 1 << 20);
    let rig = Rig::start_reading(2, &new_disk(), BOTH);
    rig.create(7);
    rig.append(7, 1, &all).unwrap();
    let disk = rig.sim.disk();
    let slot = slot(&rig, 7);
    rig.on(7, |rt, store| async move {
        read(&store, 0, 1).await.unwrap();
        disk.inject(Rule::new(Op::Read, Fault::Delay(Duration::from_secs(1))).on(slot));
        let more = bytes(2, 50_000);
        let (got, appended) = join(read(&store, 81920, 4096), append(&rt, &store, 7, 2, &more)).await;
        appended.unwrap();
        assert_eq!(got.unwrap(), all[81920..86016]);
        let again = spent(&store, async { drop(read(&store, 81920, 4096).await.unwrap()) }).await;
        assert_eq!((again.device_reads, again.cache_hits), (0, 1));
        // More changes than are remembered: it cannot be known.
        disk.inject(Rule::new(Op::Read, Fault::Delay(Duration::from_secs(1))).on(slot));
        let many = async {
            rt.sleep(Duration::from_millis(1)).await;
            (0..100).for_each(|_| store.inner.reads.borrow_mut().changed(CHUNK, 500..501));
        };
        join(read(&store, 163_840, 4096), many).await.0.unwrap();
        let again = spent(&store, async { drop(read(&store, 163_840, 4096).await.unwrap()) }).await;
        assert_eq!((again.device_reads, again.cache_hits), (1, 0));
    });
}

#[test]
fn an_append_to_a_block_in_place_is_seen() {
    let rig = Rig::start_reading(2, &new_disk(), BOTH);
    rig.create(7);
    let mut all = Vec::new();
    for (op, len) in (1..).zip([100, 4000, 5000, 4096 - 1004, 10, 8192, 300_000, 1, 4095]) {
        let more = bytes(op, len);
        rig.append(7, op, &more).unwrap();
        all.extend(more);
        for _ in 0..2 {
            assert_eq!(rig.read_all(7, Upto::Durable).unwrap(), all);
        }
    }
}

#[test]
fn a_bad_block_is_read_again_told_once_and_never_kept() {
    let all = bytes(1, 100_000);
    let rig = rig(BOTH, &all);
    let disk = rig.sim.disk();
    let slot = slot(&rig, 7);
    disk.rot(slot, 3 * 4096 + 17, &[0x40]);
    rig.on(7, |rt, store| async move {
        let bad = Err(StoreError::BadBlock(3));
        let first = spent(&store, async { assert_eq!(read(&store, 8192, 8192).await, bad) }).await;
        assert_eq!(first.device_reads, 3, "the page of checksums, the blocks, the blocks again");
        assert_eq!(store.counters().bad_blocks, 1);
        assert_eq!(read(&store, 12288, 4096).await, bad);
        assert_eq!(store.take_bad_blocks(), [BadBlock { chunk: CHUNK, block: 3 }]);
        assert_eq!(store.take_bad_blocks(), []);
        assert_eq!(read(&store, 8192, 4096).await.unwrap(), all[8192..12288]);
        assert_eq!(store.counters().cache_bytes, 4096, "its neighbour is kept");
        // In a window it fails nobody but who reads it.
        for at in [5, 6, 7, 0, 1, 2] {
            assert_eq!(read(&store, at * 4096, 4096).await.unwrap(), all[at as usize * 4096..][..4096]);
        }
        rt.sleep(Duration::from_secs(1)).await;
        assert_eq!(read(&store, 12288, 4096).await, bad);
        // A device that fails once is asked again.
        disk.inject(Rule::new(Op::Read, Fault::Error(libc::EIO)).on(slot));
        assert_eq!(read(&store, 81920, 4096).await.unwrap(), all[81920..86016]);
        assert_eq!(store.take_bad_blocks(), [BadBlock { chunk: CHUNK, block: 3 }]);
    });
}

#[test]
fn what_rots_in_memory_is_read_again() {
    let all = bytes(1, 100_000);
    let rig = rig(CACHE, &all);
    rig.on(7, |_, store| async move {
        for _ in 0..2 {
            assert_eq!(read(&store, 8192, 4096).await.unwrap(), all[8192..12288]);
        }
        store.inner.reads.borrow_mut().spoil(CHUNK, 2);
        let spoilt =
            spent(&store, async { assert_eq!(read(&store, 8192, 4096).await.unwrap(), all[8192..12288]) }).await;
        assert_eq!(spoilt.device_reads, 1);
        let again =
            spent(&store, async { assert_eq!(read(&store, 8192, 4096).await.unwrap(), all[8192..12288]) }).await;
        assert_eq!(again.device_reads, 0);
    });
}

#[test]
fn a_scrub_sees_the_device_whatever_is_in_memory() {
    let all = bytes(1, 100_000);
    let rig = rig(BOTH, &all);
    let disk = rig.sim.disk();
    let slot = slot(&rig, 7);
    rig.on(7, |_, store| async move {
        assert_eq!(read(&store, 8192, 4096).await.unwrap(), all[8192..12288]);
        disk.rot(slot, 2 * 4096, &[1]);
        assert_eq!(read(&store, 8192, 4096).await.unwrap(), all[8192..12288]);
        let scrubbed = store.read_device(CHUNK, 0, 32768, Upto::Durable).await.map(drop);
        assert_eq!(scrubbed, Err(StoreError::BadBlock(2)));
        let alone = store.read_device(CHUNK, 8192, 4096, Upto::Durable).await.map(drop);
        assert_eq!(alone, Err(StoreError::BadBlock(2)));
        let before = store.counters().cache_bytes;
        store.read_device(CHUNK, 16384, 32768, Upto::Durable).await.map(drop).unwrap();
        assert_eq!(store.counters().cache_bytes, before, "and keeps nothing");
    });
}

#[test]
fn a_working_set_stays_through_a_scan_of_four_times_the_cache() {
    let all = bytes(1, 20 << 20);
    for ahead_max in [0, 256 << 10] {
        let rig = rig(ReadConfig { ahead_max, ..CACHE }, &all);
        rig.on(7, |_, store| async move {
            // A fifth of a MiB apart: no order in it.
            let set: Vec<u32> = (0..800).map(|at| at * 7919 % 800 * 2 * 4096).collect();
            for at in set.iter().chain(&set) {
                read(&store, *at, 4096).await.unwrap();
            }
            for at in ((4 << 20)..(20 << 20)).step_by(65536) {
                read(&store, at, 65536).await.unwrap();
                assert!(store.counters().cache_bytes <= 4 << 20);
            }
            let again = spent(&store, async {
                for at in &set {
                    read(&store, *at, 4096).await.unwrap();
                }
            })
            .await;
            assert_eq!((again.cache_hits, again.cache_misses), (800, 0), "ahead up to {ahead_max}");
        });
    }
}

#[test]
fn many_reads_at_once_are_answered_in_order_and_merged_where_they_touch() {
    let all = bytes(1, 2 << 20);
    let rig = rig(CACHE, &all);
    rig.create(8);
    let other = bytes(2, 9000);
    rig.append(8, 1, &other).unwrap();
    rig.on(7, |_, store| async move {
        read(&store, 0, 1).await.unwrap();
        let far: Vec<_> = (0..32).map(|at| (CHUNK, (at * 37 % 32 * 10 + 1) * 4096, 4096)).collect();
        let check = |reads: &[(ChunkHandle, u32, u32)], answers: Vec<Result<super::super::Blocks<_>, StoreError>>| {
            for ((chunk, offset, len), answer) in reads.iter().zip(answers) {
                let blocks: super::super::Blocks<crate::runtime::sim::SimBuf> = answer.unwrap();
                let content = if *chunk == CHUNK { &all } else { &other };
                let end = content.len().min((offset + len) as usize);
                assert_eq!(
                    (blocks.offset, blocks.offset + blocks.len),
                    (offset / 4096 * 4096, u32::try_from(end).unwrap())
                );
                let bytes = blocks.buf.as_ref();
                assert_eq!(bytes[..blocks.len as usize], content[blocks.offset as usize..end]);
                assert_eq!(wire::checksum::block_crcs(bytes), blocks.crcs);
                assert_eq!(bytes.len(), blocks.crcs.len() * 4096);
            }
        };
        let apart = spent(&store, async { check(&far, store.read_many(&far, Upto::Durable).await) }).await;
        assert_eq!((apart.device_reads, apart.cache_misses), (32, 32));
        let cached = spent(&store, async { check(&far, store.read_many(&far, Upto::Durable).await) }).await;
        assert_eq!((cached.device_reads, cached.cache_hits), (0, 32));
        let mut near: Vec<_> = (0..32).map(|at| (CHUNK, (1 << 20) + at * 37 % 32 * 4096, 4096)).collect();
        near.extend([(CHUNK, (1 << 20) + 5000, 3000), (ChunkHandle(8), 100, 50), (ChunkHandle(8), 4000, 5000)]);
        let merged = spent(&store, async { check(&near, store.read_many(&near, Upto::Durable).await) }).await;
        assert_eq!(merged.device_reads, 2, "one of each chunk: {merged:?}");
        let mixed = [(ChunkHandle(9), 0, 1), (CHUNK, 0, 4096), (CHUNK, u32::MAX, 2), (CHUNK, 4 << 20, 5)];
        let answers = store.read_many(&mixed, Upto::Durable).await;
        let lens: Vec<_> = answers.into_iter().map(|answer| answer.map(|blocks| blocks.len)).collect();
        assert_eq!(lens, [Err(StoreError::UnknownChunk), Ok(4096), Err(StoreError::BadRange), Ok(0)]);
        assert!(store.read_many(&[], Upto::Durable).await.is_empty());
    });
}

#[test]
fn a_bad_block_fails_only_those_of_many_reads_that_want_it() {
    let all = bytes(1, 100_000);
    let rig = rig(CACHE, &all);
    rig.sim.disk().rot(slot(&rig, 7), 2 * 4096, &[1]);
    rig.on(7, |_, store| async move {
        let reads = [(CHUNK, 0, 4096), (CHUNK, 4096, 4096), (CHUNK, 8192, 4096), (CHUNK, 12288, 4096)];
        let answers = store.read_many(&reads, Upto::Durable).await;
        let lens: Vec<_> = answers.into_iter().map(|answer| answer.map(|blocks| blocks.len)).collect();
        assert_eq!(lens, [Ok(4096), Ok(4096), Err(StoreError::BadBlock(2)), Ok(4096)]);
        assert_eq!(store.take_bad_blocks().len(), 1);
    });
}

#[test]
fn readers_together_open_a_file_and_load_a_page_of_checksums_once() {
    let all = bytes(1, 1 << 20);
    let rig = rig(CACHE, &all);
    rig.on(7, |_, store| async move {
        let burst = spent(&store, async {
            let reads = (0..32).map(|at| read(&store, at * 8 * 4096, 4096));
            for got in join_all(reads).await {
                got.unwrap();
            }
        })
        .await;
        assert_eq!(burst.device_reads, 33);
    });
}

#[test]
fn buffers_of_reads_come_back() {
    let all = bytes(1, 4 << 20);
    let rig = rig(BOTH, &all);
    rig.on(7, |rt, store| async move {
        for len in [4096, 65536, 300_000, 1 << 20] {
            for at in (0..(4 << 20) - len).step_by(len as usize / 2) {
                let at = at / 4096 * 4096;
                read(&store, at, len - 4096).await.unwrap();
            }
        }
        drop(payload(&rt, &[1]).await);
        store.inner.reads.borrow_mut().forget(CHUNK);
        rt.sleep(Duration::from_secs(1)).await;
        assert!(rt.has_room(2 << 20));
        let mut held = Vec::new();
        while let Some(buf) = rt.try_alloc(1 << 20) {
            held.push(buf);
        }
        assert_eq!(held.len(), 64, "the whole pool");
    });
}
