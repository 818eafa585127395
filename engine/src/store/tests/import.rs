//! Copies that come from elsewhere: a chunk in one step, or nothing.

use wire::checksum::block_crcs;
use wire::member::ReplicaState;
use wire::{ChunkHandle, DedupEntry, Epoch, InodeId, OpId, Seq, ServerId, StreamId};

use super::model::digest;
use super::rig::{Rig, TERM, bytes, create_args, new_disk, payload};
use crate::runtime::FileId;
use crate::runtime::sim::{SimDisk, SimRuntime};
use crate::store::layout::Child;
use crate::store::{Import, ImportArgs, Store, StoreError, Upto};

fn args(chunk: u64, content: &[u8]) -> ImportArgs {
    let id = OpId { stream: StreamId([8; 16]), op: 3 };
    ImportArgs {
        term: TERM,
        chunk: ChunkHandle(chunk),
        epoch: Epoch(4),
        promised: Epoch(5),
        members: vec![ServerId(2), ServerId(1)],
        my_position: 1,
        file: InodeId(9),
        prev: ChunkHandle(70),
        last_seq: Seq(12),
        len: u32::try_from(content.len()).unwrap(),
        digest: digest(content),
        dedup: vec![DedupEntry { id, chunk: ChunkHandle(70), offset: 1, len: 2 }],
    }
}

fn crcs_of(content: &[u8]) -> Vec<u32> {
    let mut padded = content.to_vec();
    padded.resize(content.len().next_multiple_of(4096), 0);
    block_crcs(&padded)
}

async fn write_all(rt: &SimRuntime, import: &Import<SimRuntime>, content: &[u8]) {
    for (first, piece) in (0..).step_by(64).zip(content.chunks(64 * 4096)) {
        import.write(first, &crcs_of(piece), payload(rt, piece).await).await.unwrap();
    }
}

async fn import(rt: &SimRuntime, store: &Store<SimRuntime>, chunk: u64, content: &[u8]) -> Result<(), StoreError> {
    let import = store.begin_import(args(chunk, content)).await?;
    write_all(rt, &import, content).await;
    import.finish().await
}

#[test]
fn a_copy_is_a_sealed_chunk_with_all_that_was_said_of_it() {
    let rig = Rig::start(1, &new_disk(), 1);
    let content = bytes(1, 5_000_000);
    let given = content.clone();
    rig.on(7, move |rt, store| async move {
        import(&rt, &store, 7, &given).await.unwrap();
        let again = store.begin_import(args(7, &given)).await.err();
        assert_eq!(again, Some(StoreError::ChunkExists(Epoch(4))));
    });
    let seen = |rig: &Rig| {
        let view = rig.store(7).view(ChunkHandle(7)).unwrap();
        assert_eq!((view.state, view.epoch, view.promised), (ReplicaState::Sealed, Epoch(4), Epoch(5)));
        assert_eq!((view.sealed_len, view.durable_len, view.committed_len), (5_000_000, 5_000_000, 5_000_000));
        assert_eq!((view.last_seq, view.digest, view.my_position), (Seq(12), digest(&content), 1));
        assert_eq!((view.members, view.prev, view.file), (vec![ServerId(2), ServerId(1)], ChunkHandle(70), InodeId(9)));
        assert_eq!(rig.store(7).newest_op(ChunkHandle(7), StreamId([8; 16])), 3);
        assert_eq!(rig.read_all(7, Upto::Committed).unwrap(), content);
    };
    seen(&rig);
    // From the record, then from the header.
    let rig = Rig::start(2, &rig.cut(1), 3);
    assert!(rig.summary.records_replayed > 0);
    seen(&rig);
    let rig = Rig::start(3, &rig.stop(), 2);
    assert_eq!(rig.summary.records_replayed, 0);
    seen(&rig);
}

#[test]
fn what_is_not_the_copy_that_was_asked_for_is_refused() {
    let rig = Rig::start(1, &new_disk(), 1);
    let content = bytes(1, 30_000);
    rig.on(7, move |rt, store| async move {
        let bad = |change: fn(&mut ImportArgs)| {
            let mut args = args(7, &content);
            change(&mut args);
            let store = store.clone();
            async move { store.begin_import(args).await.err() }
        };
        assert_eq!(bad(|args| args.members.clear()).await, Some(StoreError::BadRange));
        assert_eq!(bad(|args| args.my_position = 2).await, Some(StoreError::BadRange));
        assert_eq!(bad(|args| args.chunk = ChunkHandle::NONE).await, Some(StoreError::BadRange));
        assert_eq!(bad(|args| args.len = (64 << 20) + 1).await, Some(StoreError::BadRange));
        assert_eq!(bad(|args| args.promised = Epoch(3)).await, Some(StoreError::BadRange));
        assert_eq!(bad(|args| args.dedup = vec![args.dedup[0]; 401]).await, Some(StoreError::BadRange));
        assert_eq!(bad(|args| args.term = wire::Term(0)).await, Some(StoreError::OldTerm(TERM)));

        let import = store.begin_import(args(7, &content)).await.unwrap();
        let crcs = crcs_of(&content);
        let buf = payload(&rt, &content).await;
        assert_eq!(import.write(8, &[0], buf.clone()).await, Err(StoreError::BadRange), "behind the end");
        assert_eq!(import.write(0, &[], buf.clone()).await, Err(StoreError::BadRange), "nothing");
        assert_eq!(import.write(0, &[0; 9], buf.clone()).await, Err(StoreError::BadRange), "more than there is");
        let last = payload(&rt, &content[28672..]).await;
        assert_eq!(import.write(7, &[0], last.clone()).await, Err(StoreError::BadBlock(7)));
        import.write(7, &crcs[7..], last.clone()).await.unwrap();
        assert_eq!(import.write(7, &crcs[7..], last).await, Err(StoreError::BadRange), "once");
        import.write(1, &crcs[1..7], rt_slice(&rt, &buf, 4096)).await.unwrap();
        assert_eq!(import.finish().await, Err(StoreError::BadRange), "block 0 is missing");
        let other = payload(&rt, &bytes(2, 4096)).await;
        import.write(0, &crcs_of(&bytes(2, 4096)), other).await.unwrap();
        assert_eq!(import.finish().await, Err(StoreError::Mismatch));
        drop(import);
        assert_eq!(store.chunks(), []);
        // Somebody else was first: with the same, and with something else.
        let late = store.begin_import(args(7, &content)).await.unwrap();
        write_all(&rt, &late, &content).await;
        let other = store.begin_import(args(7, &content[..9000])).await.unwrap();
        write_all(&rt, &other, &content[..9000]).await;
        super::import::import(&rt, &store, 8, &content).await.unwrap();
        let first = store.begin_import(args(7, &content)).await.unwrap();
        write_all(&rt, &first, &content).await;
        let (a, b) = futures_util::future::join(first.finish(), first.finish()).await;
        assert_eq!((a, b), (Ok(()), Ok(())));
        assert_eq!(late.finish().await, Ok(()));
        assert_eq!(other.finish().await, Err(StoreError::ChunkExists(Epoch(4))));
    });
    assert_eq!(rig.read_all(7, Upto::Committed).unwrap(), bytes(1, 30_000));
}

fn rt_slice(rt: &SimRuntime, buf: &crate::runtime::sim::SimBuf, from: usize) -> crate::runtime::sim::SimBuf {
    crate::runtime::Runtime::slice(rt, buf, from..buf.as_ref().len())
}

/// The slots that are kept, by what holds them.
fn free_slots(store: &Store<SimRuntime>) -> Vec<(u32, bool)> {
    let state = store.inner.state.borrow();
    state.free.iter().map(|free| (free.hdr.common.number, free.is_ready())).collect()
}

#[test]
fn a_slot_is_kept_while_its_import_lives_or_writes_and_then_given_back() {
    let rig = Rig::start(1, &new_disk(), 1);
    rig.on(7, |rt, store| async move {
        let content = bytes(1, 30_000);
        let import = store.begin_import(args(7, &content)).await.unwrap();
        let slot = import.slot;
        assert!(free_slots(&store).contains(&(slot, false)));
        for chunk in 20..30 {
            store.create(create_args(chunk)).await.unwrap();
        }
        assert!(free_slots(&store).contains(&(slot, false)), "ten chunks went elsewhere");
        let buf = payload(&rt, &content).await;
        let crcs = crcs_of(&content);
        // Whoever stops waiting does not stop the write.
        let mut writing = Box::pin(import.write(0, &crcs, buf));
        assert!(futures_util::FutureExt::now_or_never(&mut writing).is_none());
        drop(writing);
        drop(import);
        assert!(free_slots(&store).contains(&(slot, false)), "a write is on its way");
        store.inner.tasks.idle().await;
        assert!(free_slots(&store).contains(&(slot, true)));
    });
}

#[test]
fn a_table_that_rots_before_the_header_names_it_is_damage() {
    let rig = Rig::start(1, &new_disk(), 1);
    let content = bytes(1, 9000);
    let given = content.clone();
    rig.on(7, move |rt, store| async move { import(&rt, &store, 7, &given).await.unwrap() });
    let slot = rig.store(7).inner.state.borrow().chunks[&ChunkHandle(7)].slot();
    let disk = rig.cut(1);
    for copy in 0..2 {
        disk.rot(FileId::Slot(slot), Child::Dedup(0).offset(copy) + 100, &[1]);
    }
    let rig = Rig::start(2, &disk, 1);
    assert!(rig.store(7).view(ChunkHandle(7)).unwrap().damaged);
    assert_eq!(rig.read_all(7, Upto::Durable).unwrap(), content);
}

#[test]
fn a_repair_may_use_what_a_create_may_not() {
    const DISK: u64 = 200 << 20;
    let disk = SimDisk::new(DISK);
    let rig = Rig::start(1, &disk, 1);
    let filler = ballast(&rig, DISK / 100 * 4);
    rig.on(7, |rt, store| async move {
        assert_eq!(store.create(create_args(9)).await, Err(StoreError::NoSpace));
        import(&rt, &store, 7, &bytes(1, 1 << 20)).await.unwrap();
        // 98 % with what it needs, not without.
        let much = store.begin_import(args(8, &bytes(1, 6 << 20))).await.err();
        assert_eq!(much, Some(StoreError::NoSpace));
    });
    drop(filler);
}

/// Takes space until so much is left.
fn ballast(rig: &Rig, left: u64) -> crate::runtime::sim::SimFile {
    use crate::runtime::{Open, Runtime};
    let root = rig.sim.root();
    rig.sim.run(|rt| async move {
        rt.sleep(std::time::Duration::from_secs(1)).await; // slots are made ahead
        let file = rt.open(&root, FileId::Slot(5000), Open::Create).await.unwrap();
        let free = rt.space(&root).await.unwrap().free;
        rt.preallocate(&file, 0, free - left).await.unwrap();
        file
    })
}

/// The image of the free slot is on its way while the copy is installed: its children are its own.
#[test]
fn a_checkpoint_of_the_free_slot_does_not_touch_what_was_installed_meanwhile() {
    let mut met = 0;
    for seed in 1..=10 {
        let rig = Rig::start(seed, &new_disk(), 1);
        rig.create(7);
        rig.append(7, 1, &bytes(1, 9000)).unwrap();
        let content = bytes(2, 30_000);
        let given = content.clone();
        met += rig.on(7, move |rt, store| async move {
            let chunk = ChunkHandle(7);
            store.inner.checkpoint().await; // from now on the children in copy B are current
            let slot = store.inner.state.borrow().chunks[&chunk].slot();
            store.condemn(TERM, chunk, 5, 1).await.unwrap();
            store.free(TERM, chunk, 5).await.unwrap();
            for chunk in 20.. {
                let next = free_slots(&store).into_iter().find(|(_, ready)| *ready);
                if next == Some((slot, true)) {
                    break;
                }
                store.create(create_args(chunk)).await.unwrap();
            }
            let import = store.begin_import(args(8, &given)).await.unwrap();
            assert_eq!(import.slot, slot);
            write_all(&rt, &import, &given).await;
            let (inner, of_chunk) = (&store.inner, ChunkHandle(8));
            let checkpoint = async {
                inner.checkpoint().await;
                usize::from(inner.state.borrow().chunks[&of_chunk].dirty_lsn.is_some())
            };
            let (met, done) = futures_util::future::join(checkpoint, import.finish()).await;
            done.unwrap();
            inner.checkpoint().await;
            met
        });
        assert_eq!(rig.read_all(8, Upto::Durable).unwrap(), content);
        let rig = Rig::start(2, &rig.stop(), 1);
        assert_eq!(rig.read_all(8, Upto::Durable).unwrap(), content);
        assert!(!rig.store(8).view(ChunkHandle(8)).unwrap().damaged);
    }
    assert!(met > 0, "no checkpoint was under way");
}
