//! Damage of what was overwritten or repaired and is not in place yet: its only copy is an image in the journal,
//! and what lies below it is older, or rotten. Damage of an image is reported by recovery, damage of a block
//! below one changes nothing, and what is served is one state of the chunk, never a mix.

use std::ops::Range;

use wire::{ChunkHandle, Epoch, Seq, ServerId};

use super::canaries::fails;
use super::overwrite::{checkpoint, images};
use super::rig::{EPOCH, Rig, TERM, bytes, new_disk, payload};
use crate::runtime::FileId;
use crate::runtime::sim::{Rng, SimDisk};
use crate::store::batch::{self, Chain, Found};
use crate::store::canary::{Bug, Planted};
use crate::store::layout::{PAGE, RING_LOG_START};
use crate::store::page::{Page, Ring};
use crate::store::record::HEAD_LEN;
use crate::store::{ReopenArgs, StoreError, Upto, View};

const RING: FileId = FileId::Ring(0);
const RING_BYTES: u64 = 4 << 20;
/// Overwritten.
const OPEN: u64 = 7;
/// Repaired.
const SEALED: u64 = 8;
const LEN: usize = 60_000;
const BLOCKS: u64 = LEN.div_ceil(PAGE) as u64;
/// Rotten below their images.
const REPAIRED: Range<u64> = 3..6;
/// Where the open chunk is overwritten, in this order; some blocks several times.
const PLACES: [(u32, usize); 5] = [(4096, 8192), (20_000, 9000), (100, 1), (8192, 4096), (57_344, 2656)];

/// A disk whose images are all in the journal.
struct Specimen {
    disk: SimDisk,
    /// What the open chunk was, oldest first.
    states: Vec<Vec<u8>>,
    sealed: Vec<u8>,
    /// Records with images, as places in the file of the journal.
    records: Vec<Range<u64>>,
    slots: [FileId; 2],
}

fn specimen(seed: u64) -> Specimen {
    let rig = Rig::start_with(seed, &new_disk(), 1, RING_BYTES).unwrap();
    for chunk in [OPEN, SEALED] {
        rig.create(chunk);
        rig.append(chunk, 1, &bytes(chunk, LEN)).unwrap();
    }
    let sealed = bytes(SEALED, LEN);
    let digest = super::model::digest(&sealed);
    rig.on(SEALED, move |_, store| async move {
        let (chunk, len) = (ChunkHandle(SEALED), u32::try_from(LEN).unwrap());
        store.finish(chunk, EPOCH, Seq(2), len, digest).await.unwrap();
        store.confirm(TERM, chunk, EPOCH, len, digest).await.unwrap();
    });
    checkpoint(&rig);
    let slots = [OPEN, SEALED]
        .map(|chunk| FileId::Slot(rig.store(chunk).inner.state.borrow().chunks[&ChunkHandle(chunk)].slot()));
    for block in REPAIRED {
        rig.sim.disk().rot(slots[1], block * PAGE as u64 + 7, &[1]);
    }
    let good =
        sealed[usize::try_from(REPAIRED.start).unwrap() * PAGE..usize::try_from(REPAIRED.end).unwrap() * PAGE].to_vec();
    rig.on(SEALED, move |rt, store| async move {
        let buf = payload(&rt, &good).await;
        store.repair(ChunkHandle(SEALED), u32::try_from(REPAIRED.start).unwrap(), buf).await.unwrap();
    });
    let mut states = vec![bytes(OPEN, LEN)];
    for (op, (offset, len)) in (2..).zip(PLACES) {
        let mut next = states[states.len() - 1].clone();
        let new = bytes(op, len);
        next[offset as usize..][..len].copy_from_slice(&new);
        rig.overwrite(OPEN, op, offset, &new).unwrap();
        states.push(next);
    }
    // Long enough for the mark that everything before it was flushed.
    rig.sim.run(|rt| async move { crate::runtime::Runtime::sleep(&rt, std::time::Duration::from_secs(2)).await });
    assert!(images(&rig) > 8, "none of them is in place");
    let disk = rig.kill(seed);
    let records = records(&disk);
    assert_eq!(records.len(), 1 + PLACES.len());
    Specimen { disk, states, sealed, records, slots }
}

/// Where the records with images lie.
fn records(disk: &SimDisk) -> Vec<Range<u64>> {
    let page: Box<Page> = Box::new(disk.peek(RING, 0, PAGE).unwrap().try_into().unwrap());
    let ring = Ring::decode(&page).unwrap();
    let log = disk.peek(RING, RING_LOG_START, usize::try_from(ring.log_bytes).unwrap()).unwrap();
    let mut at = usize::try_from(ring.start_off).unwrap();
    let mut chain = Chain {
        lsn: ring.common.lsn,
        prev_crc: ring.start_prev_crc,
        boot_gen: ring.common.boot_gen,
        disk_uuid: ring.common.disk_uuid,
    };
    let mut records = Vec::new();
    while let Found::Record(head, body) = batch::next(&log[at..], &chain) {
        (chain.lsn, chain.prev_crc) = (head.lsn, head.crc);
        if [2, 3].contains(&head.kind) {
            let start = RING_LOG_START + at as u64;
            records.push(start..start + (HEAD_LEN + body.len()) as u64);
        }
        at += head.span as usize;
    }
    records
}

fn put(disk: &SimDisk, file: FileId, at: u64, new: &[u8]) -> bool {
    let old = disk.peek(file, at, new.len()).unwrap();
    let mask: Vec<u8> = old.iter().zip(new).map(|(old, new)| old ^ new).collect();
    disk.rot(file, at, &mask);
    mask.iter().any(|byte| *byte != 0)
}

impl Specimen {
    /// Damages one record; false when what was written there is what was there.
    fn damage_a_record(&self, disk: &SimDisk, rng: &mut Rng) -> bool {
        let pick = |rng: &mut Rng| self.records[usize::try_from(rng.below(self.records.len() as u64)).unwrap()].clone();
        let record = pick(rng);
        let len = record.end - record.start;
        // At most a sector, and all of it in the record.
        let most = 512.min(len);
        let at = record.start + rng.below(len - most + 1);
        let most = usize::try_from(most).unwrap();
        match rng.below(5) {
            0 => {
                let mut byte = disk.peek(RING, at, 1).unwrap();
                byte[0] ^= 1 << rng.below(8);
                put(disk, RING, at, &byte)
            }
            1 => put(disk, RING, at, &bytes(rng.next(), most)),
            2 => put(disk, RING, at, &vec![0; most]),
            3 => {
                // The same place of another record.
                let from = pick(rng).start;
                put(disk, RING, record.start, &disk.peek(RING, from, most).unwrap())
            }
            // What lies in place instead of its image: right once, and with a checksum of its own.
            _ => {
                let place = rng.below(BLOCKS - 1) * PAGE as u64;
                put(disk, RING, at, &disk.peek(self.slots[0], place, most).unwrap())
            }
        }
    }

    /// Damages blocks below images.
    fn damage_places(&self, disk: &SimDisk, rng: &mut Rng) {
        for (offset, len) in PLACES {
            let blocks = u64::from(offset) / PAGE as u64..(u64::from(offset) + len as u64).div_ceil(PAGE as u64);
            // The last block has no place yet.
            for block in blocks.filter(|block| *block < BLOCKS - 1) {
                if rng.once_in(2) {
                    put(disk, self.slots[0], block * PAGE as u64, &bytes(rng.next(), PAGE));
                }
            }
        }
        for block in REPAIRED {
            put(disk, self.slots[1], block * PAGE as u64, &bytes(rng.next(), PAGE));
        }
    }

    /// Reads both chunks block by block; whether all of it is served and newest.
    fn is_whole(&self, rig: &Rig, what: &str) -> bool {
        let open = blocks(rig, OPEN);
        let one_of = |state: &Vec<u8>| open.iter().zip(state.chunks(PAGE)).all(|(read, want)| fits(read, want));
        let newest = self.states.iter().rposition(one_of);
        assert!(newest.is_some(), "{what}: what is served is a mix, or never was");
        let sealed = blocks(rig, SEALED);
        let right = sealed.iter().zip(self.sealed.chunks(PAGE)).all(|(read, want)| fits(read, want));
        assert!(right, "{what}: a wrong byte of a sealed chunk");
        newest == Some(self.states.len() - 1) && open.iter().chain(&sealed).all(Option::is_some)
    }
}

/// Whether a block that was not refused holds this.
fn fits(read: &Option<Vec<u8>>, want: &[u8]) -> bool {
    read.as_ref().is_none_or(|read| read == want)
}

/// What is served of each block; `None`: it is told to be bad.
fn blocks(rig: &Rig, chunk: u64) -> Vec<Option<Vec<u8>>> {
    let read = |block: u64| {
        let at = u32::try_from(block * PAGE as u64).unwrap();
        let len = u32::try_from(PAGE).unwrap();
        match rig.on(chunk, move |_, store| async move { store.read(ChunkHandle(chunk), at, len, Upto::Durable).await })
        {
            Ok(read) => Some(read.buf.as_ref()[..read.len as usize].to_vec()),
            Err(StoreError::BadBlock(bad)) if u64::from(bad) == block => None,
            Err(error) => panic!("block {block} of chunk {chunk}: {error}"),
        }
    };
    (0..BLOCKS).map(read).collect()
}

fn view(rig: &Rig) -> View {
    rig.store(OPEN).view(ChunkHandle(OPEN)).unwrap()
}

/// Damage of images, by a seed: reported, and nothing wrong is served.
fn damaged_images(specimen: &Specimen, seed: u64) {
    let (disk, mut rng) = (specimen.disk.fork(), Rng::new(seed, 40));
    let hit = specimen.damage_a_record(&disk, &mut rng);
    if rng.once_in(3) {
        specimen.damage_places(&disk, &mut rng);
    }
    let rig = Rig::start_with(seed, &disk, 1, RING_BYTES).unwrap();
    let whole = specimen.is_whole(&rig, &format!("case {seed}"));
    let reported = rig.summary.damaged_journals > 0 && (view(&rig).damaged || view(&rig).suspect_seq.0 > 0);
    assert!(reported == hit, "case {seed}: damaged {hit}, reported {reported}: {:?}", rig.summary);
    assert!(whole || reported, "case {seed}: something is not there and nothing says so");
}

#[test]
fn damage_of_an_image_is_reported_and_nothing_wrong_is_served() {
    let specimen = specimen(1);
    (0..300).for_each(|seed| damaged_images(&specimen, seed));
    // A recovery that takes the place of the damage for a torn end says nothing.
    let blind = (0..20).filter(|seed| {
        fails(|| {
            let _planted = Planted::new(Some(Bug::CutInProvenJournal));
            damaged_images(&specimen, *seed);
        })
    });
    assert!(blind.count() > 10, "the test is blind");
}

#[test]
fn damage_below_an_image_changes_nothing() {
    let specimen = specimen(2);
    for seed in 0..50 {
        let (disk, mut rng) = (specimen.disk.fork(), Rng::new(seed, 41));
        specimen.damage_places(&disk, &mut rng);
        let rig = Rig::start_with(seed, &disk, 1, RING_BYTES).unwrap();
        assert_eq!((rig.summary.damaged_journals, rig.summary.damaged, rig.summary.suspects), (0, 0, 0));
        assert!(specimen.is_whole(&rig, &format!("case {seed}")), "case {seed}");
    }
}

/// While the store runs, the images are in memory: neither the journal nor what lies below is looked at.
#[test]
fn damage_of_both_copies_below_a_running_store_changes_nothing() {
    for seed in 0..10 {
        let specimen = specimen(seed);
        let rig = Rig::start_with(seed, &specimen.disk, 1, RING_BYTES).unwrap();
        let (disk, mut rng) = (rig.sim.disk(), Rng::new(seed, 42));
        let args = ReopenArgs {
            term: TERM,
            chunk: ChunkHandle(SEALED),
            epoch: Epoch(2),
            members: vec![ServerId(1)],
            my_position: 0,
            len: u32::try_from(LEN).unwrap(),
            digest: super::model::digest(&specimen.sealed),
        };
        rig.on(SEALED, move |_, store| async move { store.reopen(args).await }).unwrap();
        let mut content = specimen.sealed.clone();
        for (op, (offset, len)) in (50..).zip(PLACES) {
            let new = bytes(op, len);
            content[offset as usize..][..len].copy_from_slice(&new);
            rig.overwrite(SEALED, op, offset, &new).unwrap();
        }
        let written = records(&disk);
        assert_eq!(written.len(), PLACES.len());
        for record in written {
            put(&disk, RING, record.start, &bytes(rng.next(), 512));
        }
        for (offset, len) in PLACES {
            for block in offset as usize / PAGE..(offset as usize + len).div_ceil(PAGE) {
                put(&disk, specimen.slots[1], (block * PAGE) as u64, &bytes(rng.next(), PAGE));
            }
        }
        assert!(rig.read_all(SEALED, Upto::Durable).unwrap() == content, "from memory");
        checkpoint(&rig);
        assert!(rig.read_all(SEALED, Upto::Durable).unwrap() == content, "in place");
        let rig = Rig::start_with(seed + 1, &rig.stop(), 1, RING_BYTES).unwrap();
        assert_eq!(rig.summary.damaged_journals, 0, "what is in place needs no journal");
        assert!(rig.read_all(SEALED, Upto::Durable).unwrap() == content);
    }
}
