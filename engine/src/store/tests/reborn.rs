//! Chunks that come back: re-opened after their seal, restored after they were condemned.

use wire::checksum::block_crcs;
use wire::member::ReplicaState;
use wire::{ChunkHandle, Epoch, OpId, Seq, StreamId};

use super::rig::{EPOCH, Rig, STREAM, TERM, bytes, new_disk, payload};
use crate::store::{Entry, ReopenArgs, Store, StoreError, Upto};

async fn seal(store: &Store<crate::runtime::sim::SimRuntime>, chunk: u64) -> (u32, [u8; 16]) {
    let chunk = ChunkHandle(chunk);
    let view = store.view(chunk).unwrap();
    let digest = store.digest(chunk, u32::MAX).await.unwrap();
    store.finish(chunk, view.epoch, Seq(view.last_seq.0 + 1), view.len, digest).await.unwrap();
    store.confirm(TERM, chunk, view.epoch, view.len, digest).await.unwrap();
    (view.len, digest)
}

fn args(chunk: u64, epoch: u32, (len, digest): (u32, [u8; 16])) -> ReopenArgs {
    let members = vec![wire::ServerId(5), wire::ServerId(1)];
    ReopenArgs { term: TERM, chunk: ChunkHandle(chunk), epoch: Epoch(epoch), members, my_position: 1, len, digest }
}

#[test]
fn a_re_opened_chunk_keeps_its_content_and_counts_from_one() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    let all = bytes(1, 5000);
    rig.append(7, 1, &all).unwrap();
    let was = rig.on(7, |rt, store| async move {
        let was = seal(&store, 7).await;
        store.reopen(args(7, 2, was)).await.unwrap();
        let view = store.view(ChunkHandle(7)).unwrap();
        assert_eq!((view.state, view.epoch, view.promised), (ReplicaState::Open, Epoch(2), Epoch(2)));
        assert_eq!((view.last_seq, view.durable_seq, view.len, view.committed_len), (Seq(0), Seq(0), 5000, 5000));
        assert_eq!((view.fixed, view.my_position, view.members.len()), (true, 1, 2));
        assert_eq!(store.newest_op(ChunkHandle(7), STREAM), 1, "the dedup table crosses the re-open");
        // What the chain commits is counted in the new log.
        store.note_committed(ChunkHandle(7), Seq(1));
        assert_eq!(store.view(ChunkHandle(7)).unwrap().committed_seq, Seq(0));
        // Its length is fixed: neither an append nor a fill may follow.
        let grown = super::rig::append(&rt, &store, 7, 9, &[1]).await;
        assert_eq!(grown, Err(StoreError::BadRange));
        let again = store.reopen(args(7, 2, was)).await;
        assert_eq!((again, store.view(ChunkHandle(7)).unwrap()), (Ok(()), view));
        assert_eq!(store.reopen(args(7, 2, (was.0, [9; 16]))).await, Err(StoreError::Mismatch));
        assert_eq!(store.reopen(args(7, 3, was)).await, Err(StoreError::StaleEpoch(Epoch(2))));
        was
    });
    assert_eq!(rig.read_all(7, Upto::Committed).unwrap(), all);
    let rig = Rig::start(2, &rig.cut(1), 3);
    let view = rig.store(7).view(ChunkHandle(7)).unwrap();
    assert_eq!((view.state, view.epoch, view.fixed, view.last_seq), (ReplicaState::Rwr, Epoch(2), true, Seq(0)));
    assert_eq!(rig.read_all(7, Upto::Committed).unwrap(), all);
    rig.on(7, move |rt, store| async move {
        assert_eq!(store.reopen(args(7, 2, was)).await, Err(StoreError::Rwr));
        let promised = store.prepare(TERM, ChunkHandle(7), Epoch(3)).await.unwrap();
        assert_eq!((promised.len, promised.digest, promised.last_seq), (was.0, was.1, Seq(0)));
        let buf = payload(&rt, &bytes(9, 4096)).await;
        let filled = store.fill(ChunkHandle(7), Epoch(3), 4096, 4096, vec![0], buf).await;
        assert_eq!(filled, Err(StoreError::BadRange));
    });
}

#[test]
fn a_partial_block_in_memory_is_overwritten_after_a_re_open_and_reads_right_from_its_place() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    let mut all = bytes(1, 5000);
    rig.append(7, 1, &all).unwrap();
    all[4500..5000].copy_from_slice(&bytes(2, 500));
    let piece = all[4500..5000].to_vec();
    rig.on(7, |rt, store| async move {
        let was = seal(&store, 7).await;
        store.reopen(args(7, 2, was)).await.unwrap();
        let chunk = ChunkHandle(7);
        assert!(!store.inner.state.borrow().chunks[&chunk].replica.tail.is_empty());
        let edges = store.prepare_overwrite(chunk, 4500, 500).await.unwrap();
        let entry = Entry {
            chunk,
            epoch: Epoch(2),
            seq: Seq(1),
            id: OpId { stream: STREAM, op: 2 },
            first_unacked: 2,
            op_off: 4500,
            op_len: 500,
            offset: 4500,
            length: 500,
            part: 0,
            parts: 1,
            committed_seq: Seq(0),
            crcs: block_crcs(&piece),
        };
        let buf = payload(&rt, &piece).await;
        store.overwrite(&entry, &buf, &edges).unwrap().await.unwrap();
        store.inner.checkpoint().await;
        assert!(store.inner.state.borrow().chunks[&chunk].replica.tail.is_empty(), "it is in place");
    });
    assert_eq!(rig.read_all(7, Upto::Durable).unwrap(), all);
    let rig = Rig::start(2, &rig.cut(1), 1);
    assert_eq!(rig.read_all(7, Upto::Durable).unwrap(), all);
}

#[test]
fn entries_of_two_logs_are_never_compared() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    rig.append(7, 1, &bytes(1, 5000)).unwrap();
    rig.on(7, |_, store| async move {
        let chunk = ChunkHandle(7);
        store.note_committed(chunk, Seq(9)); // of the first log
        let was = seal(&store, 7).await;
        let mut reopening = Box::pin(store.reopen(args(7, 2, was)));
        assert!(futures_util::FutureExt::now_or_never(&mut reopening).is_none());
        let first = store.forget(chunk, Epoch(2), Seq(1), Seq(0), &[STREAM]).unwrap();
        // The last log had two durable entries; this one has none yet.
        assert_eq!(store.view(chunk).unwrap().durable_seq, Seq(0));
        first.await.unwrap();
        reopening.await.unwrap();
        let view = store.view(chunk).unwrap();
        assert_eq!((view.durable_seq, view.committed_seq), (Seq(1), Seq(0)), "nobody called it committed");
        store.note_committed(chunk, Seq(1));
        assert_eq!(store.view(chunk).unwrap().committed_seq, Seq(1));
    });
}

#[test]
fn only_what_was_sealed_is_re_opened_and_only_upwards() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    rig.append(7, 1, &bytes(1, 5000)).unwrap();
    rig.on(7, |_, store| async move {
        let digest = store.digest(ChunkHandle(7), u32::MAX).await.unwrap();
        assert_eq!(store.reopen(args(7, 2, (5000, digest))).await, Err(StoreError::StaleEpoch(EPOCH)));
        let was = seal(&store, 7).await;
        assert_eq!(store.reopen(args(7, 1, was)).await, Err(StoreError::StaleEpoch(EPOCH)));
        assert_eq!(store.reopen(args(7, 2, (4999, was.1))).await, Err(StoreError::Mismatch));
        assert_eq!(store.reopen(ReopenArgs { members: vec![], ..args(7, 2, was) }).await, Err(StoreError::BadRange));
        assert_eq!(store.reopen(ReopenArgs { my_position: 2, ..args(7, 2, was) }).await, Err(StoreError::BadRange));
        assert_eq!(store.reopen(args(8, 2, was)).await, Err(StoreError::UnknownChunk));
        let view = store.view(ChunkHandle(7)).unwrap();
        assert_eq!((view.state, view.sealed_len), (ReplicaState::Sealed, 5000), "a refusal changes nothing");
    });
}

#[test]
fn a_chunk_with_damaged_checksums_is_not_re_opened() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    rig.append(7, 1, &bytes(1, 5000)).unwrap();
    let was = rig.on(7, |_, store| async move { seal(&store, 7).await });
    let slot = rig.store(7).inner.state.borrow().chunks[&ChunkHandle(7)].slot();
    let disk = rig.stop();
    for copy in 0..2 {
        let at = crate::store::layout::Child::Crc(0).offset(copy);
        disk.rot(crate::runtime::FileId::Slot(slot), at + 70, &[1]);
    }
    let rig = Rig::start(2, &disk, 1);
    let refused = rig.on(7, move |_, store| async move { store.reopen(args(7, 2, was)).await });
    assert_eq!(refused, Err(StoreError::BadBlock(0)));
}

#[test]
fn a_restored_chunk_is_what_it_was_and_a_ghost_restores_nothing() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    rig.append(7, 1, &bytes(1, 5000)).unwrap();
    rig.on(7, |_, store| async move {
        let chunk = ChunkHandle(7);
        store.restore(TERM, chunk, 5).await.unwrap();
        assert_eq!(store.view(chunk).unwrap().state, ReplicaState::Open, "nothing to undo");
        store.condemn(TERM, chunk, 5, 1).await.unwrap();
        assert_eq!(store.restore(TERM, chunk, 4).await, Err(StoreError::Mismatch));
        store.restore(TERM, chunk, 6).await.unwrap();
        store.restore(TERM, chunk, 6).await.unwrap();
        assert_eq!(store.view(chunk).unwrap().state, ReplicaState::Rwr);
        assert_eq!(store.free(TERM, chunk, 5).await, Err(StoreError::Mismatch));
        assert_eq!(store.restore(TERM, ChunkHandle(8), 6).await, Err(StoreError::UnknownChunk));
        assert_eq!(store.restore(wire::Term(0), chunk, 6).await, Err(StoreError::OldTerm(TERM)));
    });
    assert_eq!(rig.read_all(7, Upto::Durable).unwrap(), bytes(1, 5000));
    let rig = Rig::start(2, &rig.cut(1), 1);
    assert_eq!(rig.store(7).view(ChunkHandle(7)).unwrap().state, ReplicaState::Rwr);
    assert_eq!(rig.read_all(7, Upto::Durable).unwrap(), bytes(1, 5000));
}

#[test]
fn a_stream_that_was_forgotten_is_unknown_and_its_entry_counts() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    rig.append(7, 1, &bytes(1, 100)).unwrap();
    rig.on(7, |_, store| async move {
        let chunk = ChunkHandle(7);
        let forget = |seq, streams: &[StreamId]| store.forget(chunk, EPOCH, Seq(seq), Seq(1), streams);
        assert_eq!(forget(2, &[]).err(), Some(StoreError::BadRange));
        assert_eq!(forget(2, &[STREAM; 257]).err(), Some(StoreError::BadRange));
        assert_eq!(forget(3, &[STREAM]).err(), Some(StoreError::NotNext));
        assert_eq!(store.newest_op(chunk, STREAM), 1);
        let done = forget(2, &[STREAM]).unwrap();
        let view = store.view(chunk).unwrap();
        assert_eq!((view.last_seq, view.durable_seq, store.newest_op(chunk, STREAM)), (Seq(2), Seq(1), 0));
        done.await.unwrap();
        let view = store.view(chunk).unwrap();
        assert_eq!((view.durable_seq, view.committed_seq, view.len), (Seq(2), Seq(1), 100));
    });
    let rig = Rig::start(2, &rig.cut(1), 1);
    assert_eq!(rig.store(7).view(ChunkHandle(7)).unwrap().last_seq, Seq(2));
    assert_eq!(rig.store(7).newest_op(ChunkHandle(7), STREAM), 0);
}
