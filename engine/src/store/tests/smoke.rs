//! One way through everything, without faults.

use wire::member::ReplicaState;
use wire::{ChunkHandle, Epoch, Seq};

use super::rig::{EPOCH, Rig, TERM, bytes, new_disk, payload};
use crate::store::{StoreError, Upto};

#[test]
fn what_was_appended_is_read_back_before_and_after_a_restart() {
    let rig = Rig::start(1, &new_disk(), 1);
    assert!(rig.summary.formatted);
    rig.create(7);
    let mut all = Vec::new();
    for (op, len) in (1..).zip([4096, 1, 100, 4095, 8192, 1 << 20, 300_001, 4096 - 5, 12288]) {
        let more = bytes(op, len);
        rig.append(7, op, &more).unwrap();
        all.extend_from_slice(&more);
        assert_eq!(rig.read_all(7, Upto::Durable).unwrap(), all, "after operation {op}");
    }
    assert_eq!(rig.read_all(7, Upto::Committed).unwrap(), []);
    let digest = rig.on(7, |_, store| async move { store.digest(ChunkHandle(7), u32::MAX).await }).unwrap();
    let disk = rig.stop();

    let rig = Rig::start(2, &disk, 3);
    assert!(!rig.summary.formatted);
    let view = rig.store(7).view(ChunkHandle(7)).unwrap();
    assert_eq!((view.state, view.len as usize, view.last_seq), (ReplicaState::Rwr, all.len(), Seq(9)));
    assert_eq!(rig.read_all(7, Upto::Durable).unwrap(), all);
    assert_eq!(rig.append(7, 10, &[1]), Err(StoreError::Rwr));
    let promised = rig.on(7, |_, store| async move { store.prepare(TERM, ChunkHandle(7), Epoch(2)).await }).unwrap();
    assert_eq!((promised.digest, promised.len as usize), (digest, all.len()));
}

#[test]
fn a_planned_seal_fixes_the_content_for_ever() {
    let rig = Rig::start(1, &new_disk(), 2);
    rig.create(7);
    let all = bytes(1, 70_000);
    rig.append(7, 1, &all).unwrap();
    let digest = rig.on(7, |_, store| async move { store.digest(ChunkHandle(7), 70_000).await }).unwrap();
    rig.on(7, move |_, store| async move {
        let chunk = ChunkHandle(7);
        let wrong = store.finish(chunk, EPOCH, Seq(2), 70_000, [0; 16]).await;
        assert_eq!(wrong, Err(StoreError::Mismatch));
        store.finish(chunk, EPOCH, Seq(2), 70_000, digest).await.unwrap();
        assert_eq!(store.confirm(TERM, chunk, EPOCH, 70_000, [0; 16]).await, Err(StoreError::Mismatch));
        store.confirm(TERM, chunk, EPOCH, 70_000, digest).await.unwrap();
        store.confirm(TERM, chunk, EPOCH, 70_000, digest).await.unwrap();
    });
    assert_eq!(rig.append(7, 2, &[1]), Err(StoreError::Sealed(70_000)));
    assert_eq!(rig.read_all(7, Upto::Committed).unwrap(), all);
    for shards in [1, 3] {
        let rig = Rig::start(3, &Rig::start(2, &rig.sim.disk().fork(), shards).stop(), shards);
        assert_eq!(rig.read_all(7, Upto::Committed).unwrap(), all);
        assert_eq!(rig.store(7).view(ChunkHandle(7)).unwrap().digest, digest);
    }
}

#[test]
fn a_shorter_replica_is_filled_and_sealed() {
    let disk = new_disk();
    let rig = Rig::start(1, &disk, 1);
    rig.create(7);
    let all = bytes(1, 200_000);
    rig.append(7, 1, &all[..5000]).unwrap();
    // The content as the source has it.
    rig.create(8);
    rig.append(8, 1, &all).unwrap();
    let digest = rig.on(8, |_, store| async move { store.digest(ChunkHandle(8), u32::MAX).await }).unwrap();
    let rest = all[4096..].to_vec();
    rig.on(7, move |rt, store| async move {
        let chunk = ChunkHandle(7);
        assert_eq!(
            store.seal(TERM, chunk, Epoch(2), Seq(9), 200_000, digest, None).await,
            Err(StoreError::StaleEpoch(EPOCH))
        );
        let promised = store.prepare(TERM, chunk, Epoch(2)).await.unwrap();
        assert_eq!((promised.len, promised.last_seq, promised.healthy), (5000, Seq(1), true));
        for (at, piece) in (4096..).step_by(65536).zip(rest.chunks(65536)) {
            let buf = payload(&rt, piece).await;
            let len = u32::try_from(piece.len()).unwrap();
            store.fill(chunk, Epoch(2), at, len, wire::checksum::block_crcs(piece), buf).await.unwrap();
        }
        assert_eq!(store.view(chunk).unwrap().durable_len, 5000);
        store.seal(TERM, chunk, Epoch(2), Seq(9), 200_000, digest, None).await.unwrap();
        let view = store.view(chunk).unwrap();
        assert_eq!((view.filled, view.durable_len, view.last_seq), (true, 200_000, Seq(9)));
        store.confirm(TERM, chunk, Epoch(2), 200_000, digest).await.unwrap();
    });
    assert_eq!(rig.read_all(7, Upto::Committed).unwrap(), all);
    let rig = Rig::start(2, &rig.cut(5), 2);
    assert_eq!(rig.read_all(7, Upto::Committed).unwrap(), all);
    assert_eq!(rig.store(7).view(ChunkHandle(7)).unwrap().epoch, Epoch(2));
}

#[test]
fn a_freed_slot_takes_another_chunk() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    rig.append(7, 1, &bytes(1, 50_000)).unwrap();
    rig.on(7, |_, store| async move {
        let chunk = ChunkHandle(7);
        assert_eq!(store.free(TERM, chunk, 5).await, Err(StoreError::Mismatch));
        store.condemn(TERM, chunk, 5, 99).await.unwrap();
        assert_eq!(store.view(chunk).unwrap().state, ReplicaState::Condemned);
        assert!(matches!(store.read(chunk, 0, 1, Upto::Durable).await, Err(StoreError::UnknownChunk)));
        assert_eq!(store.free(TERM, chunk, 6).await, Err(StoreError::Mismatch));
        store.free(TERM, chunk, 5).await.unwrap();
        store.free(TERM, chunk, 5).await.unwrap();
        assert!(store.view(chunk).is_none());
    });
    let all = bytes(2, 60_000);
    for chunk in 10..16 {
        rig.create(chunk);
        rig.append(chunk, 1, &all).unwrap();
    }
    let rig = Rig::start(2, &rig.stop(), 1);
    assert!(rig.store(7).view(ChunkHandle(7)).is_none());
    for chunk in 10..16 {
        assert_eq!(rig.read_all(chunk, Upto::Durable).unwrap(), all);
    }
}
