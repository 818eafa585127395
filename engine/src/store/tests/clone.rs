//! Clones: two chunks with one content, on shared extents or on a copy, and neither changes the other.

use wire::member::ReplicaState;
use wire::{ChunkHandle, Epoch, InodeId, Seq, ServerId};

use super::rig::{EPOCH, Rig, STREAM, TERM, append, bytes, create_args, new_disk};
use crate::runtime::sim::{Fault, Op, Rule, SimDisk, SimRuntime};
use crate::runtime::{FileId, Open, Runtime};
use crate::store::header::Flags;
use crate::store::{ImportArgs, ReopenArgs, Store, StoreError, Upto};

fn args(chunk: u64, (len, digest): (u32, [u8; 16])) -> ImportArgs {
    ImportArgs {
        term: TERM,
        chunk: ChunkHandle(chunk),
        epoch: EPOCH,
        promised: EPOCH,
        members: vec![ServerId(1)],
        my_position: 0,
        file: InodeId(9),
        prev: ChunkHandle::NONE,
        last_seq: Seq(0),
        len,
        digest,
        dedup: Vec::new(),
    }
}

/// A sealed chunk 7 of these bytes.
fn sealed(disk: &SimDisk, content: &[u8]) -> (Rig, (u32, [u8; 16])) {
    let rig = Rig::start(1, disk, 1);
    rig.create(7);
    for (op, piece) in (1..).zip(content.chunks(1 << 20)) {
        rig.append(7, op, piece).unwrap();
    }
    let was = rig.on(7, |_, store| async move {
        let view = store.view(ChunkHandle(7)).unwrap();
        let digest = store.digest(ChunkHandle(7), u32::MAX).await.unwrap();
        store.finish(ChunkHandle(7), EPOCH, Seq(view.last_seq.0 + 1), view.len, digest).await.unwrap();
        store.confirm(TERM, ChunkHandle(7), EPOCH, view.len, digest).await.unwrap();
        (view.len, digest)
    });
    (rig, was)
}

fn slot(store: &Store<SimRuntime>, chunk: u64) -> u32 {
    store.inner.state.borrow().chunks[&ChunkHandle(chunk)].slot()
}

fn is_shared(store: &Store<SimRuntime>, chunk: u64) -> bool {
    store.inner.state.borrow().chunks[&ChunkHandle(chunk)].replica.hdr.flags.has(Flags::SHARED)
}

#[test]
fn a_clone_takes_no_space_and_is_all_its_own() {
    for reflink in [true, false] {
        let disk = new_disk();
        disk.set_reflink(reflink);
        let content = bytes(1, 5_000_000);
        let (rig, was) = sealed(&disk, &content);
        let (before, after) = rig.on(7, move |rt, store| async move {
            rt.sleep(std::time::Duration::from_secs(1)).await; // slots are made ahead
            let before = store.space().await.free;
            store.clone_chunk(ChunkHandle(7), args(8, was)).await.unwrap();
            store.clone_chunk(ChunkHandle(7), args(8, was)).await.unwrap();
            let other = store.clone_chunk(ChunkHandle(7), args(8, (1, [0; 16]))).await;
            assert_eq!(other, Err(StoreError::ChunkExists(EPOCH)));
            let view = store.view(ChunkHandle(8)).unwrap();
            assert_eq!((view.state, view.sealed_len, view.digest), (ReplicaState::Sealed, was.0, was.1));
            assert_eq!(store.newest_op(ChunkHandle(8), STREAM), 5, "the dedup table goes with the content");
            (before, store.space().await.free)
        });
        let shared = disk.shared_blocks(FileId::Slot(slot(&rig.store(8), 8)));
        assert_eq!((shared > 0, before - after < 1 << 20), (reflink, reflink), "{shared} blocks shared");
        assert_eq!(rig.store(8).counters().clones, u64::from(reflink));
        assert_eq!((is_shared(&rig.store(7), 7), is_shared(&rig.store(8), 8)), (reflink, reflink));
        // A header may go on to say SHARED of what is not; the next checkpoint corrects it.
        let disk = if reflink { rig.cut(1) } else { rig.stop() };
        let rig = Rig::start(2, &disk, 1);
        for chunk in [7, 8] {
            assert_eq!(rig.read_all(chunk, Upto::Committed).unwrap(), content);
            assert_eq!(is_shared(&rig.store(chunk), chunk), reflink, "chunk {chunk}");
        }
    }
}

#[test]
fn what_is_unshared_may_be_written_on_a_full_disk_and_what_is_not_may_not() {
    let disk = SimDisk::new(64 << 20);
    let content = bytes(1, 3 << 20);
    let (rig, was) = sealed(&disk, &content);
    let root = rig.sim.root();
    rig.on(7, move |rt, store| async move {
        rt.sleep(std::time::Duration::from_secs(1)).await;
        store.clone_chunk(ChunkHandle(7), args(8, was)).await.unwrap();
        let reopen = ReopenArgs {
            term: TERM,
            chunk: ChunkHandle(8),
            epoch: Epoch(2),
            members: vec![ServerId(1)],
            my_position: 0,
            len: was.0,
            digest: was.1,
        };
        store.reopen(reopen).await.unwrap();
        let may = |block: u32| store.inner.state.borrow().chunks[&ChunkHandle(8)].may_overwrite(&[(block, 0)]);
        assert!(!may(0) && !may(300));
        store.unshare(ChunkHandle(8), 4096 * 300, 1).await.unwrap();
        assert!(!may(0) && may(300) && may(511) && !may(512), "one MiB at a time");
        let file = rt.open(&root, FileId::Slot(slot(&store, 8)), Open::Existing).await.unwrap();
        let ballast = rt.open(&root, FileId::Slot(5000), Open::Create).await.unwrap();
        let free = rt.space(&root).await.unwrap().free;
        rt.preallocate(&ballast, 0, free).await.unwrap();
        assert_eq!(store.unshare(ChunkHandle(8), 0, 1).await, Err(StoreError::NoSpace));
        assert!(!may(0));
        let page = |byte: u8| {
            let mut buf = rt.try_alloc(4096).unwrap();
            buf.as_mut().fill(byte);
            rt.freeze(buf)
        };
        let full = rt.write_at(&file, page(7), 0).await.unwrap_err();
        assert_eq!(full.raw_os_error(), Some(libc::ENOSPC), "the simulated disk is honest");
        assert_eq!(rt.write_at(&file, page(7), 4096 * 300).await.unwrap(), 4096);
        rt.punch_hole(&ballast, 0, free).await.unwrap();
        rt.fsync(&ballast).await.unwrap();
        assert_eq!(store.unshare(ChunkHandle(8), was.0, 1).await, Err(StoreError::BadRange));
        store.unshare(ChunkHandle(8), 0, was.0).await.unwrap();
        assert!(!is_shared(&store, 8) && is_shared(&store, 7));
    });
    assert_eq!(rig.read_all(7, Upto::Durable).unwrap(), content, "the source has not changed");
    let read =
        rig.on(8, |_, store| async move { store.read(ChunkHandle(8), 4096 * 300, 1, Upto::Durable).await.err() });
    assert_eq!(read, Some(StoreError::BadBlock(300)), "only the clone has");
    // A stop writes the header: what was unshared stays so.
    let rig = Rig::start(2, &rig.stop(), 1);
    assert!(!is_shared(&rig.store(8), 8) && is_shared(&rig.store(7), 7));
    assert_eq!(disk.shared_blocks(FileId::Slot(slot(&rig.store(7), 7))), 0);
}

#[test]
fn a_slot_that_was_shared_takes_a_chunk_only_when_its_data_was_given_back() {
    for cut in [false, true] {
        let disk = new_disk();
        let content = bytes(1, 200_000);
        let (rig, was) = sealed(&disk, &content);
        let file = FileId::Slot(rig.on(7, move |_, store| async move {
            store.clone_chunk(ChunkHandle(7), args(8, was)).await.unwrap();
            slot(&store, 7)
        }));
        // The first try to give it back fails.
        disk.inject(Rule::new(Op::Extents, Fault::Error(libc::EAGAIN)).on(file));
        let free_source = |store: Store<SimRuntime>| async move {
            store.condemn(TERM, ChunkHandle(7), 5, 1).await.unwrap();
            store.free(TERM, ChunkHandle(7), 5).await.unwrap();
            store.inner.tasks.idle().await;
            let state = store.inner.state.borrow();
            let of = state.free.iter().filter(|free| FileId::Slot(free.hdr.common.number) == file);
            assert_eq!(of.map(|free| (free.is_ready(), free.durable)).collect::<Vec<_>>(), [(false, true)]);
        };
        rig.on(7, move |_, store| free_source(store));
        let rig = if cut { Rig::start(2, &rig.cut(3), 1) } else { rig };
        let more = bytes(5, 150_000);
        let given = more.clone();
        let used = rig.on(8, move |rt, store| async move {
            for chunk in 20.. {
                store.create(create_args(chunk)).await.unwrap();
                append(&rt, &store, chunk, 1, &given).await.unwrap();
                if FileId::Slot(slot(&store, chunk)) == file {
                    return chunk;
                }
            }
            0
        });
        assert!(!is_shared(&rig.store(used), used));
        assert_eq!(disk.shared_blocks(file), 0);
        assert_eq!(rig.read_all(8, Upto::Durable).unwrap(), content);
        let rig = Rig::start(4, &rig.cut(4), 1);
        assert_eq!(rig.read_all(8, Upto::Durable).unwrap(), content);
        assert_eq!(rig.read_all(used, Upto::Durable).unwrap(), more);
    }
}

#[test]
fn what_is_lent_stays_until_it_was_cloned() {
    let content = bytes(1, 100_000);
    let (rig, was) = sealed(&new_disk(), &content);
    rig.on(7, move |rt, store| async move {
        let chunk = ChunkHandle(7);
        assert_eq!(store.lend(chunk, was.0, [0; 16]).await.err(), Some(StoreError::Mismatch));
        assert_eq!(store.lend(ChunkHandle(9), was.0, was.1).await.err(), Some(StoreError::UnknownChunk));
        let lender = store.lend(chunk, was.0, was.1).await.unwrap();
        let (slot, members) = (slot(&store, 7), vec![ServerId(1)]);
        let reopen =
            ReopenArgs { term: TERM, chunk, epoch: Epoch(2), members, my_position: 0, len: was.0, digest: was.1 };
        assert_eq!(store.reopen(reopen).await, Err(StoreError::Busy));
        assert_eq!(store.unshare(chunk, 0, 1).await, Err(StoreError::Busy));
        store.condemn(TERM, chunk, 5, 1).await.unwrap();
        store.free(TERM, chunk, 5).await.unwrap();
        for chunk in 20..30 {
            store.create(create_args(chunk)).await.unwrap();
            append(&rt, &store, chunk, 1, &bytes(chunk, 100_000)).await.unwrap();
        }
        let wrong = store.begin_clone(args(8, (1, was.1)), lender.lent()).await.err();
        assert_eq!(wrong, Some(StoreError::Mismatch));
        let import = store.begin_clone(args(8, was), lender.lent()).await.unwrap().unwrap();
        assert_eq!(store.view(ChunkHandle(8)), None);
        import.finish().await.unwrap();
        let held = |store: &Store<SimRuntime>| {
            let state = store.inner.state.borrow();
            state.free.iter().any(|free| free.hdr.common.number == slot && !free.is_ready())
        };
        assert!(held(&store));
        drop((lender, import));
        store.create(create_args(30)).await.unwrap();
        store.inner.tasks.idle().await;
        assert!(!held(&store), "given back when nobody needs it");
    });
    assert_eq!(rig.read_all(8, Upto::Durable).unwrap(), content);
    let rig = Rig::start(2, &rig.cut(1), 2);
    assert_eq!(rig.read_all(8, Upto::Durable).unwrap(), content);
}

#[test]
fn a_clone_across_shards_shares_too() {
    let content = bytes(1, 100_000);
    let (rig, was) = sealed(&new_disk(), &content);
    let rig = Rig::start(2, &rig.stop(), 2);
    let other = (8..).find(|chunk| ChunkHandle(*chunk).shard(2) != ChunkHandle(7).shard(2)).unwrap();
    let (from, to) = (rig.store(7), rig.store(other));
    rig.sim.run(move |_| async move {
        let lender = from.lend(ChunkHandle(7), was.0, was.1).await.unwrap();
        let import = to.begin_clone(args(other, was), lender.lent()).await.unwrap().unwrap();
        import.finish().await.unwrap();
        assert_eq!(to.counters().clones, 1);
    });
    let rig = Rig::start(3, &rig.cut(1), 3);
    assert_eq!(rig.read_all(other, Upto::Durable).unwrap(), content);
    assert_eq!(rig.read_all(7, Upto::Durable).unwrap(), content);
}

#[test]
fn a_copy_of_rot_is_refused() {
    let disk = new_disk();
    disk.set_reflink(false);
    let (rig, was) = sealed(&disk, &bytes(1, 100_000));
    disk.rot(FileId::Slot(slot(&rig.store(7), 7)), 5 * 4096, &[1]);
    let copied = rig.on(7, move |_, store| async move { store.clone_chunk(ChunkHandle(7), args(8, was)).await });
    assert_eq!(copied, Err(StoreError::BadBlock(5)));
    assert!(rig.store(8).view(ChunkHandle(8)).is_none());
}
