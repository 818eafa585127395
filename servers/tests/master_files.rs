//! Files as lists of chunks, against a list of lengths; and what is kept beside them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should fail loudly")]

use proptest::prelude::*;
use servers::master::entry::{Answer, Change};
use servers::master::state::State;
use wire::locate::Position;
use wire::upload::Precondition;
use wire::{
    ChunkHandle, ClusterId, DedupEntry, Epoch, InodeId, Kind, NamePath, OpId, RequestId, Seq, ServerId, StreamId,
};

struct Real {
    state: State,
    requests: u64,
    now_ms: u64,
}

impl Real {
    fn new() -> Self {
        let mut real = Self { state: State::default(), requests: 0, now_ms: 1000 };
        real.apply(Change::Found { cluster: ClusterId([1; 16]) }).unwrap();
        real
    }

    fn request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId { client: [2; 16], number: self.requests }
    }

    fn apply(&mut self, change: Change) -> Result<Answer, Kind> {
        let entry = self.state.stamp(change, self.now_ms);
        let applied = self.state.apply(self.state.applied() + 1, &entry);
        applied.map(|applied| applied.answer).map_err(|fault| fault.kind)
    }

    fn upload(&mut self) -> InodeId {
        let request = self.request();
        let begin = Change::BeginUpload { request, content_type: String::new(), replicas: 2 };
        let Ok(Answer::Inode(inode)) = self.apply(begin) else { panic!("an upload can always begin") };
        inode
    }

    fn open(&mut self, file: InodeId) -> ChunkHandle {
        let open = Change::OpenChunk { file, members: vec![ServerId(1), ServerId(2)] };
        let Ok(Answer::Chunk(chunk)) = self.apply(open) else { panic!("a file takes chunks") };
        chunk
    }

    fn seal(&mut self, chunk: ChunkHandle, len: u32, dedup: Vec<DedupEntry>) {
        let holders = vec![ServerId(2)];
        let (epoch, last_seq, digest) = (Epoch(1), Seq(1), [0; 16]);
        self.apply(Change::Sealed { chunk, epoch, len, last_seq, digest, holders, dedup }).unwrap();
    }

    fn append(&mut self, file: InodeId, len: u32) -> ChunkHandle {
        let chunk = self.open(file);
        self.seal(chunk, len, vec![]);
        chunk
    }

    fn publish(&mut self, inode: InodeId, path: &str, len: u64) {
        let request = self.request();
        let precondition = Precondition::None;
        self.apply(Change::Publish { request, inode, path: path.into(), precondition, len, sha256: None }).unwrap();
    }

    fn splice(&mut self, file: InodeId, index: u32, remove: u32, upload: InodeId) -> Result<Answer, Kind> {
        let request = self.request();
        let version = self.state.version(file).unwrap();
        self.apply(Change::Splice { request, file, version, index, remove, upload })
    }

    fn reload(&mut self) {
        let mut state = State::default();
        for (name, rows) in servers::master::state::TABLES.iter().zip(self.state.dump()) {
            rows.iter().for_each(|(key, value)| state.load(name, key, value.as_ref().unwrap()).unwrap());
        }
        state.rebuild().unwrap();
        assert!(state.dump() == self.state.dump());
        self.state = state;
    }
}

#[derive(Clone, Debug)]
enum Op {
    /// A chunk of this length at the end; one of no length vanishes.
    Append(u32),
    /// These lengths in the place of some chunks.
    Splice(prop::sample::Index, u32, Vec<u32>),
    Reload,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0_u32..5).prop_map(Op::Append),
        2 => (any::<prop::sample::Index>(), 0_u32..4, prop::collection::vec(1_u32..5, 0..4))
            .prop_map(|(at, remove, lens)| Op::Splice(at, remove, lens)),
        1 => Just(Op::Reload),
    ]
}

fn check(real: &Real, file: InodeId, model: &[(ChunkHandle, u32)]) {
    let attr = real.state.stat(&NamePath::parse("/f").unwrap()).unwrap();
    let len: u64 = model.iter().map(|(_, len)| u64::from(*len)).sum();
    assert_eq!((attr.inode, attr.len, attr.chunks as usize), (file, len, model.len()));
    let mut offset = 0;
    for (index, (chunk, len)) in (0..).zip(model) {
        let place = real.state.place(file, index).unwrap();
        assert_eq!((place.handle, place.start), (*chunk, offset));
        assert_eq!(real.state.place_of(*chunk).unwrap().index, index);
        for byte in offset..offset + u64::from(*len) {
            assert_eq!(real.state.index_at(file, Position::Offset(byte)), index, "byte {byte}");
        }
        offset += u64::from(*len);
    }
    assert_eq!(real.state.index_at(file, Position::Offset(len)), attr.chunks, "the end is past the last chunk");
    assert!(real.state.place(file, attr.chunks).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_file_is_a_list_of_chunks_whose_lengths_add_up(ops in prop::collection::vec(op(), 1..30)) {
        let mut real = Real::new();
        let file = real.upload();
        real.publish(file, "/f", 0);
        let mut model: Vec<(ChunkHandle, u32)> = vec![];
        let mut gone = vec![];
        for op in ops {
            match op {
                Op::Append(len) => {
                    let chunk = real.append(file, len);
                    if len > 0 { model.push((chunk, len)) } else { gone.push(chunk) }
                }
                Op::Splice(at, remove, lens) => {
                    let upload = real.upload();
                    let new: Vec<_> = lens.iter().map(|len| (real.append(upload, *len), *len)).collect();
                    let index = at.index(model.len() + 1);
                    let end = index + remove as usize;
                    let result = real.splice(file, u32::try_from(index).unwrap(), remove, upload);
                    if end > model.len() {
                        assert_eq!(result, Err(Kind::Invalid));
                    } else {
                        result.unwrap();
                        gone.extend(model.splice(index..end, new).map(|(chunk, _)| chunk));
                        assert!(!real.state.reachable(upload), "an upload is used once");
                    }
                }
                Op::Reload => real.reload(),
            }
            check(&real, file, &model);
        }
        for chunk in gone {
            let mut servers = real.state.tomb(chunk).unwrap().servers.clone();
            servers.sort();
            assert_eq!(servers, [ServerId(1), ServerId(2)], "also the member that missed the seal");
            assert!(real.state.chunk(chunk).is_none());
        }
    }
}

fn entry(op: u64, chunk: ChunkHandle) -> DedupEntry {
    DedupEntry { id: OpId { stream: StreamId([3; 16]), op }, chunk, offset: 0, len: 1 }
}

#[test]
fn the_next_chunk_inherits_the_last_table_also_when_the_chunk_was_spliced_out() {
    let mut real = Real::new();
    let file = real.upload();
    real.publish(file, "/f", 0);
    let chunk = real.open(file);
    real.seal(chunk, 10, vec![entry(7, chunk)]);
    let patch = real.upload();
    real.append(patch, 20);
    real.splice(file, 0, 1, patch).unwrap();
    assert_eq!(real.state.inherited(file), [entry(7, chunk)]);
    real.reload();
    assert_eq!(real.state.inherited(file), [entry(7, chunk)]);
    minutes_pass(&mut real, 21);
    assert_eq!(real.state.inherited(file), [], "nobody repeats after twenty minutes");
}

/// With one entry a minute: the time between two entries counts as no more than that.
fn minutes_pass(real: &mut Real, minutes: u32) {
    for _ in 0..minutes {
        real.now_ms += 60 * 1000;
        real.upload();
    }
}

/// A machine's clock that was set ahead made the master forget, with the next entry, the table of a file
/// whose chunk had just been sealed: an append that was acknowledged and asked for again went into the
/// next chunk once more.
#[test]
fn a_wall_clock_that_jumps_ten_years_ahead_makes_nobody_forget_what_was_acknowledged() {
    let mut real = Real::new();
    let file = real.upload();
    real.publish(file, "/f", 0);
    let chunk = real.open(file);
    real.seal(chunk, 10, vec![entry(7, chunk)]);
    let request = real.request();
    let answer = real.apply(Change::Mkdir { request, path: "/a".into() }).unwrap();
    real.now_ms += 10 * 365 * 86_400_000;
    real.upload();
    assert_eq!(real.state.inherited(file), [entry(7, chunk)]);
    assert_eq!(real.state.remembered(request), Some(&answer));
}

#[test]
fn a_request_is_remembered_for_twenty_minutes() {
    let mut real = Real::new();
    let request = real.request();
    let answer = real.apply(Change::Mkdir { request, path: "/a".into() }).unwrap();
    minutes_pass(&mut real, 20);
    assert_eq!(real.state.remembered(request), Some(&answer));
    real.reload();
    real.now_ms += 1;
    real.upload();
    assert_eq!(real.state.remembered(request), None);
}

#[test]
fn a_large_tree_is_buried_in_steps_and_cannot_come_back_meanwhile() {
    let mut real = Real::new();
    for number in 0..2500 {
        let file = real.upload();
        if number % 10 == 0 {
            real.append(file, 1);
        }
        real.publish(file, &format!("/t/d{}/f{number}", number % 7), u64::from(number % 10 == 0));
    }
    let request = real.request();
    real.apply(Change::Delete { request, path: "/t".into(), recursive: true }).unwrap();
    let trash = real.state.trashed().next().unwrap().0;
    let mut steps = 0;
    while real.state.trashed().next().is_some() {
        real.apply(Change::Purge { trash }).unwrap();
        steps += 1;
        real.reload();
        let request = real.request();
        assert_eq!(real.apply(Change::Undelete { request, path: "/t".into() }), Err(Kind::NotFound));
    }
    assert_eq!(steps, 3, "2,508 inodes and 250 chunks, a thousand at a time");
    assert_eq!(real.state.tombs().count(), 250);
    assert_eq!(real.state.chunk_counts(), (0, 0, 0));
}

#[test]
fn an_epoch_that_is_over_seals_nothing() {
    let mut real = Real::new();
    let file = real.upload();
    let chunk = real.open(file);
    real.apply(Change::SealStart { chunk, epoch: Epoch(2) }).unwrap();
    let sealed = |epoch| Change::Sealed {
        chunk,
        epoch,
        len: 5,
        last_seq: Seq(1),
        digest: [0; 16],
        holders: vec![ServerId(1)],
        dedup: vec![],
    };
    assert_eq!(real.apply(sealed(Epoch(1))), Err(Kind::StaleEpoch), "FINISHED after SealStart");
    assert_eq!(real.apply(Change::SealStart { chunk, epoch: Epoch(2) }), Err(Kind::StaleEpoch));
    real.apply(Change::SealStart { chunk, epoch: Epoch(3) }).unwrap();
    assert_eq!(real.apply(sealed(Epoch(2))), Err(Kind::StaleEpoch), "the result of an older round");
    real.apply(sealed(Epoch(3))).unwrap();
    assert_eq!(real.apply(sealed(Epoch(3))), Err(Kind::Sealed));
}
