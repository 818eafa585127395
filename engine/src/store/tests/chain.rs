//! A record of a chain that has ended: its checksum is its own, its number is the next one, and it lies right
//! behind the newest record. Only the boot and the record that it follows tell that it does not count.

use wire::ChunkHandle;

use super::rig::{Rig, bytes, entry, new_disk, payload};
use crate::runtime::FileId;
use crate::runtime::sim::{SimDisk, Unit};
use crate::store::Upto;
use crate::store::record::{HEAD_LEN, Head};

const RING: FileId = FileId::Ring(0);
const PAGE: u64 = 4096;
/// Behind 100 bytes, the record of an append of so many more takes a page of the journal: it carries the whole
/// partial block.
const ONE_PAGE: usize = 3800;

/// Of a journal, what a power cut would decide over, by place in the file.
fn unflushed(disk: &SimDisk) -> Vec<u64> {
    let of_ring = |unit: &Unit| if let Unit::Sector(RING, at, _) = unit { Some(*at) } else { None };
    disk.unflushed().iter().filter_map(of_ring).collect()
}

fn head(disk: &SimDisk, at: u64) -> Head {
    Head::decode(disk.peek(RING, at, HEAD_LEN).unwrap().first_chunk().unwrap()).unwrap()
}

/// Life 1 writes a batch of two records, a page each, and of its pages the power cut keeps the second. Life 2
/// does not know of that one: numbers go on where the log ends, and a record is written that takes the place
/// and the number of the first. What life 3 finds behind it was never acknowledged, and life 2 has shown the
/// chunk without it.
pub(super) fn a_stale_record_has_the_next_number(seed: u64) {
    let rig = Rig::start(seed, &new_disk(), 1);
    for chunk in [7, 8] {
        rig.create(chunk);
        rig.append(chunk, 1, &bytes(chunk, 100)).unwrap();
    }
    let (store, disk) = (rig.store(7), rig.sim.disk());
    assert!(unflushed(&disk).is_empty());
    let both = rig.sim.run_until(
        move |rt| async move {
            let (first, second) = (bytes(1, ONE_PAGE), bytes(2, 100));
            let bufs = (payload(&rt, &first).await, payload(&rt, &second).await);
            let first = store.append(&entry(&store, 8, 2, &first), bufs.0).unwrap();
            let second = store.append(&entry(&store, 7, 2, &second), bufs.1).unwrap();
            futures_util::future::join(first, second).await
        },
        |_| !unflushed(&disk).is_empty(),
    );
    assert!(both.is_none(), "neither is acknowledged");
    drop(rig);
    let batch = unflushed(&disk)[0];
    disk.power_cut_keeping(|unit| matches!(unit, Unit::Sector(RING, at, _) if *at >= batch + PAGE));
    let stale = head(&disk, batch + PAGE);

    let rig = Rig::start(seed + 1, &disk, 1);
    let shown = (rig.store(7).view(ChunkHandle(7)).unwrap(), rig.read_all(7, Upto::Durable).unwrap());
    assert_eq!(shown.1, bytes(7, 100));
    rig.create(9);
    let disk = rig.kill(seed);
    let newest = head(&disk, batch);
    assert_eq!((stale.lsn, head(&disk, batch + PAGE)), (newest.lsn + 1, stale), "they meet, or this shows nothing");

    let rig = Rig::start(seed + 2, &disk, 1);
    assert!(rig.store(9).view(ChunkHandle(9)).is_some(), "what was acknowledged is there");
    assert_eq!(rig.store(7).view(ChunkHandle(7)), Some(shown.0), "a record of an earlier boot was replayed");
    assert_eq!(rig.read_all(7, Upto::Durable), Ok(shown.1));
}

#[test]
fn a_stale_record_with_the_next_number_does_not_count() {
    (1..20).for_each(a_stale_record_has_the_next_number);
}
