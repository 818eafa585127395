//! Damage in every structure of a disk: each one is found, or changes nothing; never a wrong byte, and
//! nothing is missing without a report.

use std::collections::BTreeMap;
use std::fmt;

use wire::member::ReplicaState;
use wire::{ChunkHandle, DedupEntry, Epoch, OpId, Seq, StreamId};

use super::rig::{EPOCH, Rig, TERM, append, bytes, create_args, new_disk, read_all};
use crate::runtime::FileId;
use crate::runtime::sim::{Rng, SimDisk};
use crate::store::header::Hdr;
use crate::store::layout::{CRC_PAGES, Child, DEDUP_PAGES, HALF_OFFSETS, PAGE, RING_LOG_START};
use crate::store::page::{Page, Ring};
use crate::store::{RecoverySummary, StoreError, Upto, View};

const RING_BYTES: u64 = 512 << 10;
/// Long enough for a second page of checksums.
const LONG: u64 = 3;
const LAST: u64 = 7;

/// Kinds of places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Structure {
    Data,
    Hdr,
    Tail,
    Dedup,
    Crc,
    Ring,
    FirstRecord,
    Record,
    LastRecord,
    Disk,
}

const STRUCTURES: [Structure; 10] = [
    Structure::Data,
    Structure::Hdr,
    Structure::Tail,
    Structure::Dedup,
    Structure::Crc,
    Structure::Ring,
    Structure::FirstRecord,
    Structure::Record,
    Structure::LastRecord,
    Structure::Disk,
];

/// Kinds of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Damage {
    Flip,
    Garbage,
    Zero,
    Swap,
    Misdirect,
    Old,
    /// Garbage here, and in the other copy of a root; elsewhere in the page behind.
    Both,
}

const DAMAGES: [Damage; 7] =
    [Damage::Flip, Damage::Garbage, Damage::Zero, Damage::Swap, Damage::Misdirect, Damage::Old, Damage::Both];

/// How it came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// Nothing is different.
    Harmless,
    /// Nothing is different, and a root copy was healed.
    Healed,
    /// Recovery says that something is gone.
    AtOpen,
    /// A read says so.
    AtRead,
}

/// A page of some file.
type Place = (FileId, u64);

/// A stopped disk with one of everything, and what it must show.
struct Specimen {
    disk: SimDisk,
    /// The same disk some time before.
    old: SimDisk,
    content: BTreeMap<u64, Vec<u8>>,
    shown: BTreeMap<u64, Shown>,
    places: BTreeMap<Structure, Vec<Place>>,
    chunk_of: BTreeMap<FileId, u64>,
}

/// A chunk as an undamaged disk shows it.
struct Shown {
    view: View,
    digest: Option<[u8; 16]>,
    dedup: Vec<DedupEntry>,
}

fn page(disk: &SimDisk, (file, offset): Place) -> Box<Page> {
    Box::new(disk.peek(file, offset, PAGE).unwrap().try_into().unwrap())
}

fn put(disk: &SimDisk, place: Place, new: &[u8]) {
    let mask: Vec<u8> = page(disk, place).iter().zip(new).map(|(old, new)| old ^ new).collect();
    disk.rot(place.0, place.1, &mask);
}

fn checkpoint(rig: &Rig) {
    rig.on(1, |_, store| async move { store.inner.checkpoint().await });
}

/// Appends of these lengths, each a multiple or not of a block; the chunk's content grows.
fn grow(rig: &Rig, content: &mut BTreeMap<u64, Vec<u8>>, chunk: u64, lens: &[usize]) {
    let all = content.entry(chunk).or_default();
    for len in lens {
        let op = all.len() as u64 + 1;
        let more = bytes(chunk << 32 | op, *len);
        all.extend_from_slice(&more);
        rig.on(chunk, move |rt, store| async move { append(&rt, &store, chunk, op, &more).await }).unwrap();
    }
}

fn seal(rig: &Rig, chunk: u64) {
    rig.on(chunk, move |_, store| async move {
        let handle = ChunkHandle(chunk);
        let promised = store.prepare(TERM, handle, Epoch(2)).await.unwrap();
        let (seq, len, digest) = (promised.last_seq, promised.len, promised.digest);
        store.seal(TERM, handle, Epoch(2), seq, len, digest, None).await.unwrap();
        store.confirm(TERM, handle, Epoch(2), len, digest).await.unwrap();
    });
}

/// A disk with chunks in every state, children of every kind in both halves, and a journal in use.
fn specimen(seed: u64, in_order: bool) -> Specimen {
    let rig = Rig::start_with(seed, &new_disk(), 1, RING_BYTES).unwrap();
    let mut content = BTreeMap::new();
    for chunk in 1..=6 {
        let mut args = create_args(chunk);
        let inherited = |number: u8| DedupEntry {
            id: OpId {
                stream: StreamId([100 + (number >> 4), number, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9]),
                op: 4,
            },
            chunk: ChunkHandle(77),
            offset: 1,
            len: 2,
        };
        args.dedup = if chunk == 2 { (0..150).map(inherited).collect() } else { Vec::new() };
        rig.on(chunk, move |_, store| async move { store.create(args).await }).unwrap();
    }
    grow(&rig, &mut content, 1, &[10_000, 300]);
    grow(&rig, &mut content, 2, &[9000]);
    grow(&rig, &mut content, LONG, &[1 << 20, 1 << 20, 1 << 20, 1 << 20, 40_000]);
    grow(&rig, &mut content, 4, &[8192]);
    grow(&rig, &mut content, 5, &[20_000]);
    grow(&rig, &mut content, 6, &[6000]);
    checkpoint(&rig);
    let old = rig.sim.disk().fork();
    grow(&rig, &mut content, 1, &[7000, 4096]);
    grow(&rig, &mut content, 2, &[1]);
    grow(&rig, &mut content, LONG, &[50_000]);
    rig.on(2, |_, store| async move {
        let (handle, len) = (ChunkHandle(2), store.view(ChunkHandle(2)).unwrap().len);
        let digest = store.digest(handle, u32::MAX).await.unwrap();
        store.finish(handle, EPOCH, Seq(3), len, digest).await.unwrap();
        store.confirm(TERM, handle, EPOCH, len, digest).await.unwrap();
    });
    seal(&rig, 4);
    rig.on(5, |_, store| async move {
        for chunk in [5, 6] {
            store.condemn(TERM, ChunkHandle(chunk), 5, 1).await.unwrap();
        }
        store.free(TERM, ChunkHandle(6), 5).await.unwrap();
    });
    checkpoint(&rig);
    // What only the journal has.
    grow(&rig, &mut content, 1, &[3000, 9000, 12]);
    rig.create(LAST);
    grow(&rig, &mut content, LAST, &[5000, 20_000, 100]);
    rig.on(LONG, |_, store| async move { store.prepare(TERM, ChunkHandle(LONG), Epoch(2)).await }).unwrap();
    grow(&rig, &mut content, 1, &[4000]);
    // Long enough for the mark that everything before it was flushed.
    rig.sim.run(|rt| async move { crate::runtime::Runtime::sleep(&rt, std::time::Duration::from_secs(2)).await });
    let chunk_of = rig.store(1).inner.state.borrow().by_slot.iter().map(|(slot, chunk)| (*slot, chunk.0)).collect();
    let disk = if in_order { rig.stop() } else { rig.kill(seed) };
    Specimen::new(disk, old, content, chunk_of)
}

impl Specimen {
    fn new(disk: SimDisk, old: SimDisk, content: BTreeMap<u64, Vec<u8>>, chunks: BTreeMap<u32, u64>) -> Self {
        let places = places(&disk, &chunks, &content);
        let rig = Rig::start_with(1, &disk.fork(), 1, RING_BYTES).unwrap();
        let mut shown = BTreeMap::new();
        for chunk in rig.store(1).chunks() {
            let view = rig.store(1).view(chunk).unwrap();
            let (digest, read) = rig.on(1, move |_, store| async move {
                (store.digest(chunk, u32::MAX).await.ok(), read_all(&store, chunk.0, Upto::Durable).await)
            });
            if view.state != ReplicaState::Condemned {
                assert_eq!(read.unwrap(), content[&chunk.0], "the undamaged disk is as it was written");
            }
            let dedup = rig.store(1).dedup(chunk);
            shown.insert(chunk.0, Shown { view, digest, dedup });
        }
        assert_eq!(shown.keys().copied().collect::<Vec<_>>(), [1, 2, 3, 4, 5, LAST]);
        let chunk_of = chunks.into_iter().map(|(slot, chunk)| (FileId::Slot(slot), chunk)).collect();
        Self { disk, old, content, shown, places, chunk_of }
    }

    /// Damages a fork of the disk; says where.
    fn damage(&self, structure: Structure, damage: Damage, rng: &mut Rng) -> (SimDisk, [Place; 2]) {
        let disk = self.disk.fork();
        let any = |structure: Structure, rng: &mut Rng| {
            let places = &self.places[&structure];
            places[usize::try_from(rng.below(places.len() as u64)).unwrap()]
        };
        let place = any(structure, rng);
        let mut other = place;
        let mut new = page(&disk, place);
        match damage {
            Damage::Flip => {
                // Half of them where a root has its fields.
                let bound = if rng.once_in(2) { 512 } else { 4096 };
                new[usize::try_from(rng.below(bound)).unwrap()] ^= 1 << rng.below(8);
            }
            Damage::Garbage => garbage(&mut new, rng),
            Damage::Both => {
                garbage(&mut new, rng);
                other = beside(structure, place);
                // The last record proves that those before it were flushed. Without it and one of them
                // there is a torn end like any other: the peers know, this disk cannot.
                let proof = self.places[&Structure::LastRecord][0];
                if [place, other].contains(&proof) {
                    other = place;
                }
                if other != place {
                    let mut theirs = page(&disk, other);
                    garbage(&mut theirs, rng);
                    put(&disk, other, theirs.as_slice());
                }
            }
            Damage::Zero if rng.once_in(2) => new.fill(0),
            Damage::Zero => {
                let at = usize::try_from(rng.below(8) * 512).unwrap();
                new[at..at + 512].fill(0);
            }
            Damage::Swap => {
                other = any(structure, rng);
                let theirs = page(&disk, other);
                put(&disk, other, new.as_slice());
                new = theirs;
            }
            Damage::Misdirect => {
                let from = STRUCTURES[usize::try_from(rng.below(STRUCTURES.len() as u64)).unwrap()];
                new = page(&disk, any(from, rng));
            }
            Damage::Old => {
                if self.old.files().contains(&place.0) {
                    new = page(&self.old, place);
                }
            }
        }
        put(&disk, place, new.as_slice());
        (disk, [place, other])
    }
}

/// One sector.
fn garbage(page: &mut Page, rng: &mut Rng) {
    let at = usize::try_from(rng.below(8) * 512).unwrap();
    page[at..at + 512].copy_from_slice(&bytes(rng.next(), 512));
}

/// The other copy of a root, the page behind anything else.
fn beside(structure: Structure, (file, offset): Place) -> Place {
    match (structure, file) {
        (Structure::Disk, FileId::DiskA) => (FileId::DiskB, 0),
        (Structure::Disk, _) => (FileId::DiskA, 0),
        (Structure::Ring, _) => (file, PAGE as u64 - offset),
        (Structure::Hdr, _) => (file, HALF_OFFSETS[0] + HALF_OFFSETS[1] - offset),
        _ => (file, offset + PAGE as u64),
    }
}

/// Every page that means something.
fn places(
    disk: &SimDisk,
    chunks: &BTreeMap<u32, u64>,
    content: &BTreeMap<u64, Vec<u8>>,
) -> BTreeMap<Structure, Vec<Place>> {
    let mut all: BTreeMap<Structure, Vec<Place>> = BTreeMap::new();
    let mut add = |structure, place| all.entry(structure).or_default().push(place);
    for file in [FileId::DiskA, FileId::DiskB] {
        add(Structure::Disk, (file, 0));
    }
    for file in disk.files().into_iter().filter(|file| matches!(file, FileId::Slot(_))) {
        let FileId::Slot(slot) = file else { continue };
        HALF_OFFSETS.into_iter().for_each(|offset| add(Structure::Hdr, (file, offset)));
        let Some(chunk) = chunks.get(&slot) else { continue };
        let hdr = Hdr::decode(&page(disk, (file, HALF_OFFSETS[0]))).unwrap();
        let children = [(Structure::Tail, Child::Tail)]
            .into_iter()
            .chain((0..DEDUP_PAGES).map(|index| (Structure::Dedup, Child::Dedup(index))))
            .chain((0..CRC_PAGES).map(|index| (Structure::Crc, Child::Crc(index))));
        for (structure, child) in children.filter(|(_, child)| hdr.has_child(*child)) {
            // The current copy, and in a quarter of the places the other one.
            (0..3).for_each(|_| add(structure, (file, child.offset(hdr.copy_of(child)))));
            add(structure, (file, child.offset(1 - hdr.copy_of(child))));
        }
        let blocks = content[chunk].len().div_ceil(PAGE) as u64;
        // The long chunk has as many blocks here as the others.
        for block in (0..blocks).filter(|block| *block < 4 || *block + 12 > blocks) {
            add(Structure::Data, (file, block * PAGE as u64));
        }
    }
    for offset in [0, PAGE as u64] {
        add(Structure::Ring, (FileId::Ring(0), offset));
    }
    let ring = Ring::decode(&page(disk, (FileId::Ring(0), 0))).unwrap();
    let start = ring.start_off / PAGE as u64 * PAGE as u64;
    let at = |number: u64| (FileId::Ring(0), RING_LOG_START + (start + number * PAGE as u64) % ring.log_bytes);
    let used = (0..16).take_while(|number| page(disk, at(*number)).iter().any(|byte| *byte != 0)).count() as u64;
    add(Structure::FirstRecord, at(0));
    add(Structure::LastRecord, at(used.saturating_sub(1)));
    (0..used.max(1)).for_each(|number| add(Structure::Record, at(number)));
    all
}

/// What is being looked at: the sentence of a failure.
struct Case {
    number: u64,
    structure: Structure,
    damage: Damage,
    places: [Place; 2],
    live: bool,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, structure, damage, places, live } = self;
        write!(f, "case {number}: {damage:?} of {structure:?} at {places:?}, live: {live}")
    }
}

/// Looks at everything that the damage may have touched.
fn judge(specimen: &Specimen, rig: &Rig, case: &Case) -> Outcome {
    let summary = &rig.summary;
    let lost = summary.lost_slots + summary.damaged_journals > 0;
    let mut outcome = if summary.healed > 0 { Outcome::Healed } else { Outcome::Harmless };
    if lost || summary.damaged + summary.suspects > 0 {
        outcome = Outcome::AtOpen;
    }
    for chunk in rig.store(1).chunks() {
        let known = specimen.shown.contains_key(&chunk.0);
        assert!(known || (lost && specimen.content.contains_key(&chunk.0)), "{case}: chunk {chunk} has come back");
    }
    for (chunk, shown) in &specimen.shown {
        let Some(view) = rig.store(1).view(ChunkHandle(*chunk)) else {
            assert!(lost, "{case}: chunk {chunk} is missing and nothing says so");
            continue;
        };
        let reported = view.damaged || view.suspect_seq.0 > 0 || summary.damaged_journals > 0;
        assert!(view == shown.view || reported, "{case}: {view:?} for {:?}", shown.view);
        assert!(rig.store(1).dedup(ChunkHandle(*chunk)) == shown.dedup || reported, "{case}: dedup table");
        let hit = case.places.iter().any(|place| specimen.chunk_of.get(&place.0) == Some(chunk));
        if view.state == ReplicaState::Condemned || !(hit || lost || *chunk == LAST) {
            continue;
        }
        if !reads_right(specimen, rig, *chunk, reported, case) {
            outcome = Outcome::AtRead;
        }
        let chunk = ChunkHandle(*chunk);
        match rig.on(1, move |_, store| async move { store.digest(chunk, u32::MAX).await }) {
            Ok(digest) => assert!(Some(digest) == shown.digest || reported, "{case}: digest of chunk {chunk}"),
            Err(StoreError::BadBlock(_)) => outcome = Outcome::AtRead,
            Err(error) => panic!("{case}: digest: {error}"),
        }
    }
    outcome
}

/// Reads a chunk piece by piece: every byte served is right. False when some are not served.
fn reads_right(specimen: &Specimen, rig: &Rig, chunk: u64, reported: bool, case: &Case) -> bool {
    const PIECE: u32 = 128 << 10;
    let want = &specimen.content[&chunk];
    let (mut at, mut whole) = (0, true);
    while (at as usize) < want.len() {
        let len = PIECE.min(u32::try_from(want.len()).unwrap() - at);
        let read =
            rig.on(chunk, move |_, store| async move { store.read(ChunkHandle(chunk), at, len, Upto::Durable).await });
        match read {
            Ok(blocks) => {
                let got = &blocks.buf.as_ref()[..blocks.len as usize];
                assert!(want[at as usize..].starts_with(got), "{case}: a wrong byte of chunk {chunk} behind {at}");
                assert!(got.len() == len as usize || reported, "{case}: chunk {chunk} is short");
            }
            Err(StoreError::BadBlock(block)) => {
                assert!((at / 4096..(at + len).div_ceil(4096)).contains(&block), "{case}: another block");
                whole = false;
            }
            Err(error) => panic!("{case}: read: {error}"),
        }
        at += len;
    }
    whole
}

/// How often each structure came out how.
#[derive(Default)]
struct Counts(BTreeMap<(Structure, Outcome), u64>);

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<12} {:>9} {:>7} {:>8} {:>8}", "rot in", "harmless", "healed", "at open", "at read")?;
        for structure in STRUCTURES {
            let of = |outcome| self.0.get(&(structure, outcome)).copied().unwrap_or(0);
            let name = format!("{structure:?}");
            let [harmless, healed, open, read] =
                [Outcome::Harmless, Outcome::Healed, Outcome::AtOpen, Outcome::AtRead].map(of);
            writeln!(f, "{name:<12} {harmless:>9} {healed:>7} {open:>8} {read:>8}")?;
        }
        Ok(())
    }
}

fn one(specimen: &Specimen, number: u64, counts: &mut Counts) {
    let mut rng = Rng::new(number, 21);
    let structure = STRUCTURES[usize::try_from(number % STRUCTURES.len() as u64).unwrap()];
    let damage = DAMAGES[usize::try_from(rng.below(DAMAGES.len() as u64)).unwrap()];
    // Below a running store there is only what it reads again.
    let live = [Structure::Data, Structure::Crc].contains(&structure) && rng.once_in(2);
    let (disk, places) = specimen.damage(structure, damage, &mut rng);
    let case = Case { number, structure, damage, places, live };
    let outcome = if live {
        let sound = specimen.disk.fork();
        let mut rig = Rig::start_with(number, &sound, 1, RING_BYTES).unwrap();
        for place in places {
            put(&sound, place, page(&disk, place).as_slice());
        }
        rig.summary = RecoverySummary::default();
        judge(specimen, &rig, &case)
    } else {
        match Rig::start_with(number, &disk, 1, RING_BYTES) {
            Ok(rig) => judge(specimen, &rig, &case),
            Err(error) => {
                assert!(!error.remedy.is_empty(), "{case}: no remedy for {error}");
                Outcome::AtOpen
            }
        }
    };
    *counts.0.entry((structure, outcome)).or_default() += 1;
}

#[test]
fn damage_in_any_structure_is_found_or_changes_nothing() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let count = number("ROT_COUNT").unwrap_or(2000);
    let mut counts = Counts::default();
    for (at, in_order) in [(0, false), (1, true)] {
        let specimen = specimen(7, in_order);
        let numbers = (0..count).filter(|number| number / 10 % 2 == at);
        let only = number("ROT_CASE");
        for number in numbers.filter(|number| only.is_none_or(|only| only == *number)) {
            one(&specimen, number, &mut counts);
        }
    }
    eprintln!("{counts}");
    if count >= 1000 {
        for structure in STRUCTURES {
            let all: u64 = counts.0.iter().filter(|((of, _), _)| *of == structure).map(|(_, count)| count).sum();
            assert!(all >= 100, "{structure:?} is hardly met: {all}");
            let harmless = counts.0.get(&(structure, Outcome::Harmless)).copied().unwrap_or(0);
            // The last record says only that all before it was flushed: that can be lost.
            let noticed = harmless < all || structure == Structure::LastRecord;
            assert!(noticed, "no damage of {structure:?} was ever noticed");
        }
    }
}
