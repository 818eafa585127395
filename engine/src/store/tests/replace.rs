//! A copy that takes the place of an older one: the old one until the new one is durable, then only that.

use wire::checksum::block_crcs;
use wire::member::ReplicaState;
use wire::{ChunkHandle, Epoch, InodeId, Seq, ServerId};

use super::model::digest;
use super::rig::{Rig, TERM, bytes, new_disk, payload};
use crate::store::{ImportArgs, StoreError, Upto};

const CHUNK: ChunkHandle = ChunkHandle(7);
const LEN: usize = 300_000;
/// Of the master's log.
const AUTHORITY: u64 = 55;

fn args(content: &[u8]) -> ImportArgs {
    ImportArgs {
        term: TERM,
        chunk: CHUNK,
        epoch: Epoch(4),
        promised: Epoch(4),
        members: vec![ServerId(2), ServerId(1)],
        my_position: 1,
        file: InodeId(9),
        prev: ChunkHandle::NONE,
        last_seq: Seq(12),
        len: u32::try_from(content.len()).unwrap(),
        digest: digest(content),
        dedup: Vec::new(),
    }
}

/// A replica that was left behind: the wanted content up to a place, then something else.
fn left_behind(content: &[u8]) -> Vec<u8> {
    let mut old = content[..200_001].to_vec();
    old[50_000] ^= 1;
    old
}

fn padded_crcs(content: &[u8]) -> Vec<u32> {
    let mut padded = content.to_vec();
    padded.resize(content.len().next_multiple_of(4096), 0);
    block_crcs(&padded)
}

#[test]
fn only_blocks_that_differ_are_needed_and_the_old_copy_stays_until_the_new_one_is_durable() {
    let rig = Rig::start(1, &new_disk(), 1);
    let content = bytes(1, LEN);
    let old = left_behind(&content);
    rig.create(7);
    rig.append(7, 1, &old).unwrap();
    let (given, kept) = (content.clone(), old.clone());
    rig.on(7, move |rt, store| async move {
        assert_eq!(store.begin_import(args(&given)).await.err(), Some(StoreError::ChunkExists(Epoch(1))));
        let have = store.block_crcs(CHUNK).await.unwrap();
        assert_eq!(have, padded_crcs(&kept).into_iter().map(Some).collect::<Vec<_>>());
        let want = padded_crcs(&given);
        let import = store.begin_replacement(args(&given), AUTHORITY).await.unwrap();
        let mut fetched = vec![];
        for (block, crc) in (0_u32..).zip(&want) {
            let at = block as usize * 4096;
            let piece = &given[at..(at + 4096).min(given.len())];
            let is_here = have.get(block as usize) == Some(&Some(*crc));
            let buf = if is_here {
                store.read(CHUNK, block * 4096, 4096, Upto::Durable).await.unwrap().buf
            } else {
                fetched.push(block);
                payload(&rt, piece).await
            };
            import.write(block, &[*crc], buf).await.unwrap();
        }
        assert_eq!(fetched[..2], [12, 48], "the block that differs, and from the one it ended in on");
        assert_eq!(fetched.len(), 1 + want.len() - 48);
        assert_eq!(store.view(CHUNK).unwrap().state, ReplicaState::Open, "nothing has happened to it yet");
        import.finish().await.unwrap();
        import.finish().await.unwrap();
    });
    for seed in 0..8 {
        let rig = Rig::start(seed, &Rig::start(seed, &rig_disk(&content, &old), 1).cut(seed), 1);
        let view = rig.store(7).view(CHUNK).unwrap();
        assert_eq!((view.state, view.digest), (ReplicaState::Sealed, digest(&content)));
        assert_eq!(rig.read_all(7, Upto::Committed).unwrap(), content);
        assert_eq!(rig.store(7).chunks(), [CHUNK]);
    }
}

/// A disk on which the replacement was finished and then the power went.
fn rig_disk(content: &[u8], old: &[u8]) -> crate::runtime::sim::SimDisk {
    let rig = Rig::start(3, &new_disk(), 1);
    rig.create(7);
    rig.append(7, 1, old).unwrap();
    replace(&rig, content, true).unwrap();
    rig.cut(5)
}

fn replace(rig: &Rig, content: &[u8], finish: bool) -> Result<(), StoreError> {
    let given = content.to_vec();
    rig.on(7, move |rt, store| async move {
        let import = store.begin_replacement(args(&given), AUTHORITY).await?;
        for (first, piece) in (0..).step_by(64).zip(given.chunks(64 * 4096)) {
            import.write(first, &padded_crcs(piece), payload(&rt, piece).await).await?;
        }
        if finish { import.finish().await } else { Ok(()) }
    })
}

#[test]
fn one_that_was_given_up_leaves_the_old_copy_as_it_was() {
    let content = bytes(1, LEN);
    let old = left_behind(&content);
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    rig.append(7, 1, &old).unwrap();
    replace(&rig, &content, false).unwrap();
    assert_eq!(rig.read_all(7, Upto::Durable).unwrap(), old);
    let rig = Rig::start(2, &rig.cut(9), 1);
    assert_eq!(rig.read_all(7, Upto::Durable).unwrap(), old);
}

#[test]
fn what_was_condemned_under_another_authority_is_not_replaced() {
    let content = bytes(1, LEN);
    let rig = Rig::start(1, &new_disk(), 1);
    rig.create(7);
    rig.append(7, 1, &content[..9000]).unwrap();
    rig.on(7, |_, store| async move { store.condemn(TERM, CHUNK, AUTHORITY + 1, 0).await }).unwrap();
    assert_eq!(replace(&rig, &content, true), Err(StoreError::Mismatch));
    assert_eq!(rig.store(7).view(CHUNK).unwrap().state, ReplicaState::Condemned);
    let rig = Rig::start(2, &rig.cut(9), 1);
    assert_eq!(rig.store(7).view(CHUNK).unwrap().state, ReplicaState::Condemned, "its bytes are kept");
}
