//! Overwrites: what is read when, what is refused, and what is left after a crash.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use wire::{ChunkHandle, Epoch, Seq};

use super::rig::{EPOCH, Rig, TERM, append, below, bytes, entry, new_disk, overwrite, payload, read_all};
use super::workload::{Shared, Worker};
use crate::runtime::sim::{Fault, Op, Rng, Rule, SimRuntime};
use crate::runtime::{FileId, Runtime};
use crate::store::header::{Flags, SlotState};
use crate::store::overwrite::REDO_MAX;
use crate::store::{Edges, Entry, Store, StoreError, Upto};

pub(super) const CHUNK: ChunkHandle = ChunkHandle(7);

/// A chunk of these bytes, and a rig that runs it.
pub(super) fn rig_with(len: usize) -> (Rig, Vec<u8>) {
    let rig = Rig::start_with(1, &new_disk(), 1, 4 << 20).unwrap();
    rig.create(7);
    let content = bytes(100, len);
    for (op, piece) in (1..).zip(content.chunks(1 << 20)) {
        rig.append(7, op, piece).unwrap();
    }
    (rig, content)
}

pub(super) fn slot(rig: &Rig) -> FileId {
    FileId::Slot(rig.store(7).inner.state.borrow().chunks[&CHUNK].slot())
}

fn lay(content: &mut [u8], offset: usize, bytes: &[u8]) {
    content[offset..offset + bytes.len()].copy_from_slice(bytes);
}

pub(super) fn checkpoint(rig: &Rig) {
    rig.on(7, |_, store| async move { store.inner.checkpoint().await });
}

pub(super) fn images(rig: &Rig) -> usize {
    rig.store(7).inner.redo.bytes() / 4096
}

pub(super) fn place(rig: &Rig, offset: u64, len: usize) -> Vec<u8> {
    rig.sim.disk().peek(slot(rig), offset, len).unwrap()
}

/// Accepts without waiting.
pub(super) async fn accept(
    rt: &SimRuntime,
    store: &Store<SimRuntime>,
    entry: &Entry,
    bytes: &[u8],
    edges: &Edges,
) -> Result<impl Future<Output = Result<(), StoreError>> + use<>, StoreError> {
    let buf = payload(rt, bytes).await;
    store.overwrite(entry, &buf, edges)
}

#[test]
fn what_was_overwritten_is_read_from_memory_from_its_place_and_after_a_crash() {
    let (rig, mut content) = rig_with(50_000);
    let places =
        [(4096, 8192), (0, 1), (100, 4096), (12_287, 2), (20_000, 9000), (49_000, 1000), (49_153, 5), (0, 50_000)];
    for (op, (offset, len)) in (100..).zip(places) {
        let new = bytes(op, len);
        rig.overwrite(7, op, u32::try_from(offset).unwrap(), &new).unwrap();
        lay(&mut content, offset, &new);
        assert!(rig.read_all(7, Upto::Durable).unwrap() == content, "at {offset}");
        let digest = rig.on(7, |_, store| async move { store.digest(CHUNK, u32::MAX).await });
        assert_eq!(digest.unwrap(), super::model::digest(&content));
        let left = Rig::start(
            op,
            &{
                let disk = rig.sim.disk().fork();
                disk.power_cut_keeping(|_| false);
                disk
            },
            2,
        );
        assert!(left.read_all(7, Upto::Durable).unwrap() == content, "after a crash, at {offset}");
        if op % 2 == 0 {
            checkpoint(&rig);
            assert_eq!(images(&rig), 0);
            assert!(rig.read_all(7, Upto::Durable).unwrap() == content, "in place, at {offset}");
        }
    }
    checkpoint(&rig);
    assert!(place(&rig, 0, 49_152) == content[..49_152]);
    let rig = Rig::start(2, &rig.stop(), 1);
    assert!(rig.read_all(7, Upto::Durable).unwrap() == content);
}

#[test]
fn an_operation_across_the_end_shows_at_once_or_not_at_all() {
    let (rig, content) = rig_with(10_000);
    let new = bytes(5, 9000);
    let parts = [(6000, 2500, true), (8500, 1500, true), (10_000, 5000, false)];
    let shown = rig.on(7, {
        let new = new.clone();
        move |rt, store| async move {
            store.reserve(CHUNK, 20_000).await.unwrap();
            let mut shown = Vec::new();
            let mut last = None;
            for (part, (offset, length, under)) in (0..).zip(parts) {
                let piece = &new[offset as usize - 6000..][..length as usize];
                let part = Entry { op_off: 6000, op_len: 9000, offset, part, parts: 3, ..entry(&store, 7, 2, piece) };
                if under {
                    let edges = store.prepare_overwrite(CHUNK, offset, length).await.unwrap();
                    let done = accept(&rt, &store, &part, piece, &edges).await.unwrap();
                    done.await.unwrap();
                } else {
                    let buf = payload(&rt, piece).await;
                    last = Some(store.append(&part, buf).unwrap());
                }
                shown.push(read_all(&store, 7, Upto::Durable).await.unwrap());
            }
            last.unwrap().await.unwrap();
            shown.push(read_all(&store, 7, Upto::Durable).await.unwrap());
            shown
        }
    });
    let whole = [&content[..6000], &new].concat();
    assert!(shown[..3].iter().all(|shown| *shown == content), "parts do not show");
    assert!(shown[3] == whole);
    let entry = rig.store(7).dedup(CHUNK).pop().unwrap();
    assert_eq!((entry.id.op, entry.offset, entry.len), (2, 6000, 9000));
    let rig = Rig::start(2, &rig.cut(1), 1);
    assert!(rig.read_all(7, Upto::Durable).unwrap() == whole);
}

#[test]
fn an_incomplete_overwrite_is_forgotten_with_its_memory() {
    for restart in [false, true] {
        let (rig, content) = rig_with(30_000);
        rig.on(7, |rt, store| async move {
            let new = bytes(2, 8192);
            let first = Entry { op_len: 20_000, part: 0, parts: 3, ..below(&store, 7, 2, 4096, &new) };
            let done = accept(&rt, &store, &first, &new, &Edges::default()).await.unwrap();
            done.await.unwrap();
            store.inner.checkpoint().await;
        });
        assert!(images(&rig) >= 5, "its other parts have their memory already");
        assert!(place(&rig, 4096, 8192) == content[4096..12_288], "nothing of it is in place");
        let rig = if restart {
            Rig::start(2, &rig.cut(1), 1)
        } else {
            rig.on(7, |_, store| async move { store.prepare(TERM, CHUNK, Epoch(2)).await }).unwrap();
            rig
        };
        assert_eq!(images(&rig), 0);
        assert!(rig.read_all(7, Upto::Durable).unwrap() == content);
    }
}

#[test]
fn nobody_sees_an_overwrite_that_is_not_durable() {
    let (rig, content) = rig_with(20_000);
    let shown = rig.on(7, |rt, store| async move {
        let mut shown = Vec::new();
        let show = async || read_all(&store, 7, Upto::Durable).await.unwrap();
        for op in 2..4 {
            // The whole content, the partial block too; then once more over what is in memory only.
            let new = bytes(op, 20_000);
            let done = accept(&rt, &store, &below(&store, 7, op, 0, &new), &new, &Edges::default()).await.unwrap();
            assert_eq!(store.view(CHUNK).unwrap().last_seq, Seq(op));
            shown.push(show().await);
            done.await.unwrap();
            shown.push(show().await);
        }
        shown
    });
    let want = [content, bytes(2, 20_000), bytes(2, 20_000), bytes(3, 20_000)];
    for (at, (shown, want)) in shown.iter().zip(&want).enumerate() {
        assert!(shown == want, "read {at}");
    }
    assert_eq!(rig.store(7).counters().bad_blocks, 0);
}

#[test]
fn a_read_on_its_way_while_a_checkpoint_writes_the_block_is_old_or_new() {
    let (rig, content) = rig_with(16_384);
    let disk = rig.sim.disk();
    for round in 0..20 {
        let new = bytes(round, 16_384);
        let (before, after) = (rig.read_all(7, Upto::Durable).unwrap(), new.clone());
        assert!(round > 0 || before == content);
        let delay = Duration::from_micros(500 * round);
        disk.inject(Rule::new(Op::Read, Fault::Delay(delay)).on(slot(&rig)));
        let read = rig.on(7, move |rt, store| async move {
            let writer = async {
                rt.sleep(Duration::from_micros(10)).await;
                overwrite(&rt, &store, 7, 2 + round, 0, &new).await.unwrap();
                store.inner.checkpoint().await;
            };
            futures_util::join!(read_all(&store, 7, Upto::Durable), writer).0
        });
        let read = read.unwrap();
        assert!(read == before || read == after, "round {round}: neither old nor new");
        disk.heal();
    }
    assert_eq!(rig.store(7).counters().bad_blocks, 0, "no read found rot");
}

/// A writer that appends, overwrites and repairs, checkpoints of it all, and a reader beside it whose
/// reads take long now and then.
#[test]
fn every_read_beside_writes_shows_one_state_and_no_older_one_than_was_acknowledged() {
    let (mut reads, mut hits) = (0, 0);
    // Those of odd numbers have memory for blocks.
    for seed in 1..=8 {
        eprintln!("seed {seed}");
        let rig = Rig::start_with(seed, &new_disk(), 1, 1 << 20).unwrap();
        let delay = Fault::Delay(Duration::from_millis(4));
        rig.sim.disk().inject(Rule::new(Op::Read, delay).one_in(3).times(u64::MAX));
        let model = Shared::default();
        let writer = Worker {
            rt: rig.on(7, |rt, _| async move { rt }),
            store: rig.store(7),
            model: Rc::clone(&model),
            chunk: 7,
            rng: Rng::new(seed, 1),
            size_max: 30_000,
            churn: false,
            faulty: false,
        };
        reads += rig.on(7, move |rt, store| async move {
            let done = Rc::new(Cell::new(false));
            let ended = Rc::clone(&done);
            let write = async move {
                writer.write_for(120).await;
                ended.set(true);
            };
            let read = async move {
                let (mut rng, mut reads) = (Rng::new(seed, 2), 0);
                while !done.get() {
                    rt.sleep(Duration::from_micros(rng.below(800))).await;
                    let (from, len) = match model.borrow_mut().chunk(7) {
                        history if history.now().content.is_empty() => continue,
                        history => (history.acknowledged(), history.now().content.len() as u64),
                    };
                    let at = usize::try_from(rng.below(len) / 4096 * 4096).unwrap();
                    let longest = if rng.below(2) == 0 { 100_000 } else { 8_000 };
                    let most = usize::try_from(1 + rng.below(longest)).unwrap();
                    let (offset, length) = (u32::try_from(at).unwrap(), u32::try_from(most).unwrap());
                    let read = store.read(CHUNK, offset, length, Upto::Durable).await.unwrap();
                    let bytes = &read.buf.as_ref()[..read.len as usize];
                    let shown = model.borrow_mut().chunk(7).showing(from, at, most, bytes);
                    assert!(shown.is_some(), "{most} bytes at {at} are of no state");
                    reads += 1;
                }
                reads
            };
            futures_util::join!(write, read).1
        });
        let counters = rig.store(7).counters();
        assert_eq!(counters.bad_blocks, 0);
        hits += counters.cache_hits;
        assert_eq!(counters.cache_hits > 0, seed % 2 == 1, "{counters:?}");
    }
    assert!(reads > 800 && hits > 100, "{reads} {hits}");
}

#[test]
fn the_second_overwrite_of_a_block_is_merged_with_the_first_whoever_was_prepared_first() {
    let (rig, mut content) = rig_with(8192);
    rig.on(7, |rt, store| async move {
        let one = store.prepare_overwrite(CHUNK, 100, 50).await.unwrap();
        let two = store.prepare_overwrite(CHUNK, 120, 50).await.unwrap();
        let first = accept(&rt, &store, &below(&store, 7, 2, 100, &[1; 50]), &[1; 50], &one).await.unwrap();
        accept(&rt, &store, &below(&store, 7, 3, 120, &[2; 50]), &[2; 50], &two).await.unwrap().await.unwrap();
        first.await.unwrap();
        // In place meanwhile: what was prepared before is stale, and refused.
        store.inner.checkpoint().await;
        let late = below(&store, 7, 4, 3000, &[3; 200]);
        let refused = accept(&rt, &store, &late, &[3; 200], &two).await.map(drop);
        assert_eq!(refused, Err(StoreError::Busy));
        assert_eq!(store.view(CHUNK).unwrap().last_seq, Seq(3));
    });
    lay(&mut content, 100, &[1; 50]);
    lay(&mut content, 120, &[2; 50]);
    assert!(rig.read_all(7, Upto::Durable).unwrap() == content);
}

#[test]
fn an_overwrite_of_what_an_append_is_still_writing_finds_it_whole() {
    let (rig, mut content) = rig_with(100);
    content.extend(bytes(2, 8192));
    rig.on(7, |rt, store| async move {
        store.reserve(CHUNK, 1 << 16).await.unwrap();
        let more = bytes(2, 8192);
        let buf = payload(&rt, &more).await;
        let appended = store.append(&entry(&store, 7, 2, &more), buf).unwrap();
        overwrite(&rt, &store, 7, 3, 50, &[9; 100]).await.unwrap();
        appended.await.unwrap();
    });
    lay(&mut content, 50, &[9; 100]);
    assert!(rig.read_all(7, Upto::Durable).unwrap() == content);
    assert_eq!(rig.store(7).counters().bad_blocks, 0);
}

#[test]
fn nothing_is_merged_into_rot_and_whole_blocks_replace_it() {
    let (rig, mut content) = rig_with(20_000);
    rig.sim.disk().rot(slot(&rig), 4096 + 9, &[1]);
    let view = rig.store(7).view(CHUNK);
    assert_eq!(rig.overwrite(7, 2, 5000, &[1; 10]), Err(StoreError::BadBlock(1)));
    assert_eq!((rig.store(7).view(CHUNK), images(&rig)), (view, 0));
    let new = bytes(2, 4096);
    rig.overwrite(7, 2, 4096, &new).unwrap();
    lay(&mut content, 4096, &new);
    assert!(rig.read_all(7, Upto::Durable).unwrap() == content);
    checkpoint(&rig);
    assert!(rig.read_all(7, Upto::Durable).unwrap() == content);
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let (rig, content) = rig_with(10_000);
    let refused = |change: &dyn Fn(&mut Entry)| {
        let view = rig.store(7).view(CHUNK);
        let mut entry = below(&rig.store(7), 7, 2, 4096, &[1; 4096]);
        change(&mut entry);
        let refused = rig.on(7, |rt, store| async move {
            accept(&rt, &store, &entry, &[1; 4096], &Edges::default()).await.map(drop).unwrap_err()
        });
        assert_eq!((rig.store(7).view(CHUNK), images(&rig)), (view, 0));
        refused
    };
    assert_eq!(refused(&|entry| entry.seq = Seq(1)), StoreError::NotNext);
    assert_eq!(refused(&|entry| entry.epoch = Epoch(2)), StoreError::StaleEpoch(EPOCH));
    assert_eq!(refused(&|entry| (entry.offset, entry.op_off) = (8192, 8192)), StoreError::BadRange, "over the end");
    assert_eq!(refused(&|entry| entry.op_len = 5000), StoreError::BadRange);
    assert_eq!(refused(&|entry| (entry.part, entry.parts) = (1, 2)), StoreError::NotNext);
    assert_eq!(refused(&|entry| entry.crcs.clear()), StoreError::BadRange);
    assert_eq!(refused(&|entry| entry.chunk = ChunkHandle(9)), StoreError::UnknownChunk);
    for (offset, len) in [(9999, 2), (0, 0), (0, (1 << 20) + 1), (u32::MAX, 5)] {
        let refused = rig.on(7, move |_, store| async move { store.prepare_overwrite(CHUNK, offset, len).await });
        assert_eq!(refused.unwrap_err(), StoreError::BadRange, "{offset} {len}");
    }
    rig.on(7, |_, store| async move { store.prepare(TERM, CHUNK, Epoch(2)).await }).unwrap();
    assert_eq!(rig.overwrite(7, 2, 0, &[1]), Err(StoreError::StaleEpoch(Epoch(2))));
    assert!(rig.read_all(7, Upto::Durable).unwrap() == content);
}

#[test]
fn no_committed_read_is_served_before_the_overwrite_is_committed_or_sealed() {
    let (rig, mut content) = rig_with(10_000);
    rig.store(7).note_committed(CHUNK, Seq(1));
    assert!(rig.read_all(7, Upto::Committed).unwrap() == content);
    rig.overwrite(7, 2, 10, &[1; 10]).unwrap();
    lay(&mut content, 10, &[1; 10]);
    assert!(rig.read_all(7, Upto::Committed).unwrap().is_empty());
    rig.store(7).note_committed(CHUNK, Seq(2));
    assert!(rig.read_all(7, Upto::Committed).unwrap() == content);
    // The tail, and one that nobody says is committed: not before the seal, whatever happens.
    rig.overwrite(7, 3, 9990, &[2; 10]).unwrap();
    lay(&mut content, 9990, &[2; 10]);
    let rig = Rig::start(2, &rig.cut(1), 1);
    assert!(rig.read_all(7, Upto::Committed).unwrap().is_empty());
    let rig = Rig::start(3, &rig.stop(), 1);
    let (want, digest) = (content.clone(), super::model::digest(&content));
    rig.on(7, move |_, store| async move {
        let promised = store.prepare(TERM, CHUNK, Epoch(2)).await.unwrap();
        assert_eq!((promised.last_seq, promised.len, promised.digest), (Seq(3), 10_000, digest));
        store.seal(TERM, CHUNK, Epoch(2), Seq(3), 10_000, digest, None).await.unwrap();
        assert!(read_all(&store, 7, Upto::Committed).await.unwrap().is_empty(), "not before it is confirmed");
        store.confirm(TERM, CHUNK, Epoch(2), 10_000, digest).await.unwrap();
        assert!(read_all(&store, 7, Upto::Committed).await.unwrap() == want);
    });
}

#[test]
fn memory_for_images_is_bounded_and_a_checkpoint_makes_room() {
    let rig = Rig::start_with(1, &new_disk(), 1, 256 << 20).unwrap();
    for chunk in [7, 8] {
        rig.create(chunk);
        (0..40).for_each(|op| rig.append(chunk, op + 1, &bytes(op, 1 << 20)).unwrap());
    }
    checkpoint(&rig);
    rig.on(7, |rt, store| async move {
        // Nobody makes room.
        let held = store.inner.checkpoints.lock().await;
        let mut next = (100..).flat_map(|op| [7, 8].map(|chunk| (chunk, op, u32::try_from(op - 100).unwrap() << 20)));
        let mut accepted = 0;
        let refused = loop {
            let (chunk, op, offset) = next.next().unwrap();
            match overwrite(&rt, &store, chunk, op, offset, &bytes(op, 1 << 20)).await {
                Ok(()) => accepted += 1,
                Err(error) => break error,
            }
        };
        assert_eq!((accepted, refused), (64, StoreError::Busy));
        assert_eq!(store.inner.redo.bytes(), REDO_MAX);
        let image = payload(&rt, &bytes(0, 4096)).await;
        assert_eq!(store.repair(CHUNK, 39 << 8, image).await, Err(StoreError::Mismatch), "a refusal comes first");
        let same = payload(&rt, &bytes(39, 1 << 20)[..4096]).await;
        assert_eq!(store.repair(CHUNK, 39 << 8, same).await, Err(StoreError::Busy));
        // An operation of many parts is not begun when it could not end.
        let part = Entry { parts: 2, op_len: 8192, ..below(&store, 7, 900, 0, &[1; 4096]) };
        assert_eq!(accept(&rt, &store, &part, &[1; 4096], &Edges::default()).await.map(drop), Err(StoreError::Busy));
        drop(held);
        let mut most = 0;
        for op in 200..280 {
            let mut tries = 0;
            while overwrite(&rt, &store, 7, op, 0, &bytes(op, 1 << 20)).await == Err(StoreError::Busy) {
                tries += 1;
                assert!(tries < 1000, "no room is made");
                rt.sleep(Duration::from_millis(1)).await;
            }
            most = most.max(store.inner.redo.bytes());
        }
        assert!(most <= REDO_MAX);
        for chunk in [7, 8] {
            let read = store.read(ChunkHandle(chunk), 31 << 20, 1 << 20, Upto::Durable).await.unwrap();
            assert!(read.buf.as_ref() == bytes(131, 1 << 20));
        }
        store.inner.checkpoint().await;
        store.inner.checkpoint().await;
        assert_eq!(store.inner.redo.bytes(), 0);
    });
}

/// Three operations of 16 MiB that nobody ends hold 48 MiB: they go, oldest first, when others are refused.
#[test]
fn abandoned_operations_do_not_keep_the_memory_for_images() {
    let rig = Rig::start_with(1, &new_disk(), 1, 256 << 20).unwrap();
    for chunk in 7..=10 {
        rig.create(chunk);
        (0..16).for_each(|op| rig.append(chunk, op + 1, &bytes(op, 1 << 20)).unwrap());
    }
    rig.on(7, |rt, store| async move {
        for chunk in 7..=9 {
            let first = Entry { parts: 16, op_len: 16 << 20, ..below(&store, chunk, 17, 0, &bytes(1, 1 << 20)) };
            let done = accept(&rt, &store, &first, &bytes(1, 1 << 20), &Edges::default()).await.unwrap();
            done.await.unwrap();
        }
        let begun = |chunk| store.view(ChunkHandle(chunk)).unwrap().last_seq == Seq(17);
        assert!(store.inner.redo.bytes() >= 48 << 20 && (7..=9).all(begun));
        for op in 100..140 {
            let mut tries = 0;
            let offset = u32::try_from(op % 16).unwrap() << 20;
            while overwrite(&rt, &store, 10, op, offset, &bytes(op, 1 << 20)).await == Err(StoreError::Busy) {
                tries += 1;
                assert!(tries < 1000, "no room is made");
                rt.sleep(Duration::from_millis(1)).await;
            }
        }
        assert!(!begun(7) && begun(9), "the oldest is gone, what does no harm is left");
    });
}

#[test]
fn what_never_fits_the_journal_is_told_from_what_does_not_fit_now() {
    let rig = Rig::start_with(1, &new_disk(), 1, 256 << 10).unwrap();
    rig.create(7);
    rig.append(7, 1, &bytes(1, 1 << 20)).unwrap();
    assert_eq!(rig.overwrite(7, 2, 0, &bytes(2, 1 << 20)), Err(StoreError::BadRange));
    let parts = rig.on(7, |rt, store| async move {
        let part = Entry { parts: 8, op_len: 120_000, ..below(&store, 7, 2, 0, &[1; 4096]) };
        accept(&rt, &store, &part, &[1; 4096], &Edges::default()).await.map(drop)
    });
    assert_eq!(parts, Err(StoreError::BadRange), "held back, it would keep the journal full");
    let repaired = rig.on(7, |rt, store| async move {
        let buf = payload(&rt, &bytes(1, 1 << 20)).await;
        store.repair(CHUNK, 0, buf).await
    });
    assert_eq!(repaired, Err(StoreError::BadRange));
    checkpoint(&rig);
    rig.on(7, |rt, store| async move {
        let held = store.inner.checkpoints.lock().await;
        overwrite(&rt, &store, 7, 2, 0, &bytes(2, 120_000)).await.unwrap();
        assert_eq!(overwrite(&rt, &store, 7, 3, 0, &bytes(3, 120_000)).await, Err(StoreError::Busy));
        let part = Entry { parts: 3, op_len: 60_000, ..below(&store, 7, 3, 0, &[1; 4096]) };
        let begun = accept(&rt, &store, &part, &[1; 4096], &Edges::default()).await.map(drop);
        assert_eq!(begun, Err(StoreError::Busy), "its other parts would not fit");
        drop(held);
        store.inner.checkpoint().await;
        overwrite(&rt, &store, 7, 3, 0, &bytes(3, 120_000)).await.unwrap();
        assert_eq!(store.view(CHUNK).unwrap().last_seq, Seq(3));
    });
}

#[test]
fn an_image_costs_itself_and_a_page_and_only_the_last_one_goes_in_place() {
    let (rig, _) = rig_with(40_960);
    checkpoint(&rig);
    let before = rig.store(7).counters();
    for op in 2..12 {
        rig.overwrite(7, op, 8192, &bytes(op, 4096)).unwrap();
    }
    let after = rig.store(7).counters();
    assert_eq!(after.groups - before.groups, 10);
    assert_eq!(after.flushes - before.flushes, 10);
    assert_eq!(after.device_writes - before.device_writes, 10);
    assert_eq!(after.device_write_bytes - before.device_write_bytes, 10 * 8192);
    assert_eq!(after.device_reads - before.device_reads, 0);
    assert_eq!(images(&rig), 1, "what nobody can see any more is gone");
    checkpoint(&rig);
    let stored = rig.store(7).counters();
    // The image, a checksum page, the dedup page, two headers, two RING pages.
    assert_eq!(stored.device_write_bytes - after.device_write_bytes, 7 * 4096);
    assert_eq!(stored.image_blocks, 1);
    assert!(place(&rig, 8192, 4096) == bytes(11, 4096));
}

/// An append whose data is not proven, then an image over its first block: what lies there is not looked at.
#[test]
fn an_append_under_an_image_proves_nothing() {
    let (rig, mut content) = rig_with(4096);
    rig.on(7, |rt, store| async move {
        store.reserve(CHUNK, 12_288).await.unwrap();
        let more = bytes(2, 8192);
        let buf = payload(&rt, &more).await;
        let appended = store.append(&entry(&store, 7, 2, &more), buf).unwrap();
        overwrite(&rt, &store, 7, 3, 4096, &bytes(3, 4096)).await.unwrap();
        appended.await.unwrap();
    });
    content.extend(bytes(3, 4096));
    content.extend(&bytes(2, 8192)[4096..]);
    let slot = slot(&rig);
    let disk = rig.kill(1);
    disk.rot(slot, 5000, &[1]);
    let rig = Rig::start(2, &disk, 1);
    assert_eq!(rig.summary.suspects, 0);
    assert!(rig.read_all(7, Upto::Durable).unwrap() == content);
    assert!(place(&rig, 4096, 4096) == content[4096..8192], "recovery puts it in place");
    // The block beside it has the append as its last writer.
    let disk = disk.fork();
    drop(rig);
    disk.rot(slot, 9000, &[1]);
    let rig = Rig::start(3, &disk, 1);
    assert_eq!(rig.read_all(7, Upto::Durable), Err(StoreError::BadBlock(2)));
}

#[test]
fn appends_go_on_behind_an_overwritten_partial_block() {
    let (rig, mut content) = rig_with(5000);
    rig.on(7, |rt, store| async move {
        let first = accept(&rt, &store, &below(&store, 7, 2, 4500, &[1; 500]), &[1; 500], &Edges::default()).await;
        append(&rt, &store, 7, 3, &bytes(3, 6000)).await.unwrap();
        first.unwrap().await.unwrap();
    });
    lay(&mut content, 4500, &[1; 500]);
    content.extend(bytes(3, 6000));
    assert!(rig.read_all(7, Upto::Durable).unwrap() == content);
    assert!(place(&rig, 4096, 4096) == content[4096..8192], "written when it was full");
    let rig = Rig::start(2, &rig.cut(1), 1);
    assert!(rig.read_all(7, Upto::Durable).unwrap() == content);
}

/// Images far from the end: their page of checksums is read before the records are replayed.
#[test]
fn images_of_a_long_chunk_come_back_with_the_checksums_around_them() {
    let (rig, mut content) = rig_with(6 << 20);
    rig.append(7, 7, &bytes(7, 100)).unwrap();
    content.extend(bytes(7, 100));
    checkpoint(&rig);
    for (op, offset) in [(8, 5000), (9, 4 << 20), (10, (6 << 20) - 50)] {
        let new = bytes(op, 120);
        rig.overwrite(7, op, offset, &new).unwrap();
        lay(&mut content, offset as usize, &new);
    }
    let rig = Rig::start(2, &rig.cut(1), 1);
    assert!(rig.read_all(7, Upto::Durable).unwrap() == content);
    let digest = rig.on(7, |_, store| async move { store.digest(CHUNK, u32::MAX).await });
    assert_eq!(digest.unwrap(), super::model::digest(&content));
}

/// A chunk that was sealed and is open again: its partial block has a place, its length is fixed.
fn reopened(len: usize) -> (Rig, Vec<u8>) {
    let (rig, content) = rig_with(len);
    let (len, digest) = (u32::try_from(len).unwrap(), super::model::digest(&content));
    rig.on(7, move |_, store| async move {
        store.finish(CHUNK, EPOCH, Seq(2), len, digest).await.unwrap();
        store.confirm(TERM, CHUNK, EPOCH, len, digest).await.unwrap();
    });
    let rig = Rig::start(2, &rig.stop(), 1);
    {
        let inner = rig.store(7).inner;
        let mut state = inner.state.borrow_mut();
        let lsn = state.log.last_lsn();
        let chunk = state.chunks.get_mut(&CHUNK).unwrap();
        let hdr = &mut chunk.replica.hdr;
        (hdr.state, hdr.epoch, hdr.promised) = (SlotState::Open, Epoch(2), Epoch(2));
        (hdr.last_seq, hdr.committed_seq, hdr.last_overwrite_seq) = (0, 0, 0);
        hdr.flags.set(Flags::FIXED);
        chunk.dirty_lsn = Some(lsn + 1);
        chunk.durable.seq = 0;
    }
    checkpoint(&rig);
    (rig, content)
}

#[test]
fn a_partial_block_that_has_a_place_is_overwritten_sealed_and_read_like_others() {
    for (look, checkpoints) in [(0, false), (1, true), (2, false), (3, true)] {
        let (rig, mut content) = reopened(30_000);
        assert_eq!(rig.append(7, 9, &[1]), Err(StoreError::BadRange), "its length is fixed");
        for (op, offset, len) in [(1, 29_000_u32, 500), (2, 29_990, 10), (3, 0, 30_000), (4, 28_672, 1328)] {
            let new = bytes(op, len);
            rig.overwrite(7, op, offset, &new).unwrap();
            lay(&mut content, offset as usize, &new);
            if checkpoints {
                checkpoint(&rig);
            }
            assert!(rig.read_all(7, Upto::Durable).unwrap() == content, "at {offset}");
            let digest = rig.on(7, |_, store| async move { store.digest(CHUNK, u32::MAX).await });
            assert_eq!(digest.unwrap(), super::model::digest(&content));
        }
        let digest = super::model::digest(&content);
        let rig = if look < 2 {
            rig.on(7, move |_, store| async move {
                store.finish(CHUNK, Epoch(2), Seq(5), 30_000, digest).await.unwrap();
                store.confirm(TERM, CHUNK, Epoch(2), 30_000, digest).await.unwrap();
            });
            rig
        } else {
            let rig = Rig::start(3, &rig.cut(look), 1);
            rig.on(7, move |_, store| async move {
                let promised = store.prepare(TERM, CHUNK, Epoch(3)).await.unwrap();
                assert_eq!((promised.last_seq, promised.digest), (Seq(4), digest));
                store.seal(TERM, CHUNK, Epoch(3), Seq(4), 30_000, digest, None).await.unwrap();
                store.confirm(TERM, CHUNK, Epoch(3), 30_000, digest).await.unwrap();
            });
            rig
        };
        let rig = Rig::start(4, &rig.cut(look), 1);
        assert!(rig.read_all(7, Upto::Committed).unwrap() == content);
        assert!(place(&rig, 0, 30_000) == content, "all of it is in place");
    }
}

/// An append into a fresh range, whose data never reached the disk, and an image of the same block in
/// one batch: recovery need not find the append, and so must not take its extent for written. It
/// wrote the image with the device's flush only, and a power cut after it left zeros.
#[test]
fn an_image_over_an_append_that_was_lost_is_synced_by_recovery() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(8);
    let slot = FileId::Slot(rig.store(8).inner.state.borrow().chunks[&ChunkHandle(8)].slot());
    let disk = rig.sim.disk();
    rig.on(8, move |rt, store| async move {
        store.reserve(ChunkHandle(8), 4096).await.unwrap();
        let buf = payload(&rt, &bytes(1, 4096)).await;
        disk.inject(Rule::new(Op::Write, Fault::Lost).on(slot));
        let appended = store.append(&entry(&store, 8, 1, &bytes(1, 4096)), buf).unwrap();
        let whole = below(&store, 8, 2, 0, &bytes(2, 4096));
        accept(&rt, &store, &whole, &bytes(2, 4096), &Edges::default()).await.unwrap().await.unwrap();
        appended.await.unwrap();
        disk.heal();
    });
    let rig = Rig::start(2, &rig.cut(1), 1);
    assert!(rig.read_all(8, Upto::Durable).unwrap() == bytes(2, 4096));
    let disk = rig.sim.disk();
    drop(rig);
    disk.power_cut_keeping(|_| false);
    let rig = Rig::start(3, &disk, 1);
    assert!(rig.read_all(8, Upto::Durable).unwrap() == bytes(2, 4096));
}
