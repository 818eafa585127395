//! What operations cost the device (format section 5.2), and what is never done on their way.

use wire::ChunkHandle;

use super::rig::{Rig, append, bytes, entry, new_disk, payload};
use crate::runtime::Runtime;
use crate::store::Counters;

fn spent(rig: &Rig, chunk: u64, work: impl FnOnce()) -> Counters {
    let before = rig.store(chunk).counters();
    work();
    let after = rig.store(chunk).counters();
    Counters {
        groups: after.groups - before.groups,
        flushes: after.flushes - before.flushes,
        slot_syncs: after.slot_syncs - before.slot_syncs,
        device_writes: after.device_writes - before.device_writes,
        device_write_bytes: after.device_write_bytes - before.device_write_bytes,
        ..Counters::default()
    }
}

#[test]
fn a_mebibyte_is_one_write_one_page_and_one_flush() {
    let rig = Rig::start(1, &new_disk(), 1);
    let created = spent(&rig, 7, || rig.create(7));
    let _ = created;
    rig.on(7, |rt, store| async move {
        store.reserve(ChunkHandle(7), 8 << 20).await.unwrap();
        rt.sleep(std::time::Duration::from_secs(1)).await;
    });
    let first = spent(&rig, 7, || rig.append(7, 1, &bytes(1, 1 << 20)).unwrap());
    let once = Counters {
        groups: 1,
        flushes: 1,
        device_writes: 2,
        device_write_bytes: (1 << 20) + 4096,
        ..Counters::default()
    };
    assert_eq!(first, Counters { slot_syncs: 1, ..once }, "the slot's sync is the only flush");
    let small = spent(&rig, 7, || rig.append(7, 2, &bytes(2, 100)).unwrap());
    let page = Counters { device_writes: 1, device_write_bytes: 4096, ..once };
    assert_eq!(small, page, "a small append is a share of one page");
}

#[test]
fn a_written_range_needs_no_sync_of_its_slot() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    rig.append(7, 1, &bytes(1, 1 << 20)).unwrap();
    rig.on(7, |_, store| async move {
        store.condemn(wire::Term(1), ChunkHandle(7), 1, 1).await.unwrap();
        store.free(wire::Term(1), ChunkHandle(7), 1).await.unwrap();
    });
    let rig = Rig::start(2, &rig.stop(), 1);
    // Use up the slots that were never written, until the recycled one comes.
    let recycled = (10..).find(|chunk| {
        rig.create(*chunk);
        rig.store(*chunk).inner.state.borrow().chunks[&ChunkHandle(*chunk)].replica.hdr.written_upto > 0
    });
    let chunk = recycled.unwrap();
    let spent = spent(&rig, chunk, || rig.append(chunk, 1, &bytes(1, 1 << 20)).unwrap());
    assert_eq!((spent.slot_syncs, spent.flushes), (0, 1));
    let rig = Rig::start(3, &rig.cut(1), 1);
    assert_eq!(rig.read_all(chunk, crate::store::Upto::Durable).unwrap(), bytes(1, 1 << 20));
}

#[test]
fn small_appends_find_their_blocks_zeroed_ahead() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    let first = spent(&rig, 7, || rig.append(7, 1, &bytes(1, 100)).unwrap());
    assert_eq!((first.flushes, first.slot_syncs), (1, 0), "a record in the journal, no block in place");
    let pause = |rig: &Rig| rig.on(7, |rt, _| async move { rt.sleep(std::time::Duration::from_secs(1)).await });
    let written = |rig: &Rig| rig.store(7).inner.state.borrow().chunks[&ChunkHandle(7)].replica.hdr.written_upto;
    pause(&rig);
    assert_eq!(written(&rig), 0, "one append may be the whole of a small file");
    rig.append(7, 2, &bytes(2, 600)).unwrap();
    pause(&rig);
    assert_eq!(written(&rig), 64 << 10, "the first step of space");
    let later = spent(&rig, 7, || (3..40).for_each(|op| rig.append(7, op, &bytes(op, 600)).unwrap()));
    assert_eq!((later.groups, later.flushes, later.slot_syncs), (37, 37, 0));
    let rig = Rig::start(2, &rig.cut(1), 1);
    let all: Vec<u8> = std::iter::once(bytes(1, 100)).chain((2..40).map(|op| bytes(op, 600))).flatten().collect();
    assert_eq!(rig.read_all(7, crate::store::Upto::Durable).unwrap(), all);
}

#[test]
fn a_stream_that_pauses_finds_its_next_megabytes_zeroed_and_one_that_does_not_writes_each_byte_once() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    let stream = spent(&rig, 7, || (1..=3).for_each(|op| rig.append(7, op, &bytes(op, 1 << 20)).unwrap()));
    assert_eq!((stream.slot_syncs, stream.device_write_bytes), (3, 3 * ((1 << 20) + 4096)));
    rig.on(7, |rt, _| async move { rt.sleep(std::time::Duration::from_secs(1)).await });
    assert_eq!(rig.store(7).counters().zeroed_bytes, 4 << 20);
    let after_pause = spent(&rig, 7, || (4..=7).for_each(|op| rig.append(7, op, &bytes(op, 1 << 20)).unwrap()));
    assert_eq!((after_pause.groups, after_pause.flushes, after_pause.slot_syncs), (4, 4, 0));
    let rig = Rig::start(2, &rig.cut(1), 1);
    let all: Vec<u8> = (1..=7).flat_map(|op| bytes(op, 1 << 20)).collect();
    assert_eq!(rig.read_all(7, crate::store::Upto::Durable).unwrap(), all);
}

#[test]
fn an_append_that_catches_up_with_zeros_in_flight_is_not_overwritten_by_them() {
    for seed in 0..50 {
        let rig = Rig::start(seed, &new_disk(), 1);
        rig.create(7);
        rig.append(7, 1, &bytes(1, 100)).unwrap();
        rig.append(7, 2, &bytes(2, 100)).unwrap();
        // The zeros of the first 64 KiB are on their way.
        rig.append(7, 3, &bytes(3, 60_000)).unwrap();
        rig.on(7, |rt, _| async move { rt.sleep(std::time::Duration::from_millis(50)).await });
        let all = [bytes(1, 100), bytes(2, 100), bytes(3, 60_000)].concat();
        assert_eq!(rig.read_all(7, crate::store::Upto::Durable).unwrap(), all, "seed {seed}");
    }
}

#[test]
fn what_arrives_during_a_flush_shares_the_next() {
    let rig = Rig::start(1, &new_disk(), 1);
    (1..=40).for_each(|chunk| rig.create(chunk));
    let spent = spent(&rig, 1, || {
        rig.on(1, |rt, store| async move {
            let all = (1..=40).map(|chunk| {
                let (rt, store) = (rt.clone(), store.clone());
                async move {
                    for op in 1..=3 {
                        append(&rt, &store, chunk, op, &bytes(op, 200)).await.unwrap();
                    }
                }
            });
            futures_util::future::join_all(all).await;
        });
    });
    assert!(spent.groups <= 8, "{} groups for 120 operations of 40 writers", spent.groups);
}

#[test]
fn creating_a_chunk_costs_one_page_and_one_flush_once_slots_are_ready() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.on(7, |rt, _| async move { rt.sleep(std::time::Duration::from_secs(1)).await });
    let ready = rig.store(7).inner.state.borrow().free.len();
    assert!(ready >= 3, "slots are made ahead: {ready}");
    let spent = spent(&rig, 7, || rig.create(7));
    assert_eq!((spent.groups, spent.device_writes, spent.flushes), (1, 1, 1));
}

#[test]
fn an_append_is_accepted_in_one_step_and_in_the_order_of_calls() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    rig.on(7, |rt, store| async move {
        store.reserve(ChunkHandle(7), 1 << 20).await.unwrap();
        let mut waits = Vec::new();
        for op in 1..=10 {
            let more = bytes(op, 1000);
            let buf = payload(&rt, &more).await;
            waits.push(store.append(&entry(&store, 7, op, &more), buf).unwrap());
            let view = store.view(ChunkHandle(7)).unwrap();
            assert_eq!((u64::from(view.len), view.last_seq.0), (op * 1000, op));
            assert_eq!(store.newest_op(ChunkHandle(7), super::rig::STREAM), op);
        }
        // The last one covers all before it.
        waits.pop().unwrap().await.unwrap();
        assert_eq!(store.view(ChunkHandle(7)).unwrap().durable_len, 10_000);
    });
}
