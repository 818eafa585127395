//! Every bound of a field that arrives: the last value inside is taken, the first one outside refused.
#![forbid(unsafe_code)]

#[allow(dead_code, reason = "shared with other tests, which use other parts of it")]
mod common;

use common::receive;
use wire::append::{Append, Appended, Close, LAST};
use wire::chain::{Create, TableOk};
use wire::clone::{CloneChunk, CrcsOk};
use wire::fetch::Fetch;
use wire::forward::{Commit, EntryKind, Forward, Up};
use wire::frame::{self, Header};
use wire::handshake::{Proof, Welcome};
use wire::heartbeat::Register;
use wire::hello::HelloOk;
use wire::limits::{
    ADDRESS_LEN_MAX, APPEND_LEN_MAX, CHUNK_SIZE, DEDUP_ENTRIES_MAX, MEMBERS_MAX, PAGE_ENTRIES_MAX, PAYLOAD_LEN_MAX,
};
use wire::locate::Locations;
use wire::member::Member;
use wire::message::Malformed;
use wire::namespace::Listing;
use wire::read::{Data, Read, Version, VersionOk};
use wire::seal::Confirm;
use wire::write::Write;
use wire::{
    Body, ChunkHandle, ClusterId, DedupEntry, Epoch, Fault, InodeId, Kind, OpId, Seq, ServerId, StreamId, Term,
};

const CHUNK: ChunkHandle = ChunkHandle(1);
const EPOCH: Epoch = Epoch(1);
const MIB: u32 = PAYLOAD_LEN_MAX;

#[test]
fn a_positional_write_lies_in_its_chunk_and_in_one_frame() {
    taken(write());
    taken(Write { len: MIB, offset: CHUNK_SIZE - MIB, crcs: vec![0; 256], ..write() });
    refused("len", Write { len: MIB, offset: CHUNK_SIZE - MIB + 1, crcs: vec![0; 256], ..write() });
    refused("len", Write { len: MIB + 1, crcs: vec![0; 257], ..write() });
    refused("len", Write { len: 0, crcs: vec![], ..write() });
    refused("crcs", Write { len: 4097, ..write() });
    refused("op", Write { first_unacked: 3, ..write() });
    refused("op", Write { first_unacked: 0, ..write() });
    refused("op", Write { id: OpId { op: 0, ..write().id }, first_unacked: 0, ..write() });
    reserved::<Write>(&write().encode(), 52);
}

#[test]
fn an_append_has_the_parts_and_checksums_of_its_length() {
    taken(append());
    taken(Append { op_len: 0, flags: LAST, crcs: vec![], ..append() });
    taken(Append { op_len: APPEND_LEN_MAX, part: 15, parts: 16, crcs: vec![0; 256], ..append() });
    refused("op_len", Append { op_len: 0, crcs: vec![], ..append() });
    refused("op_len", Append { op_len: APPEND_LEN_MAX + 1, part: 16, parts: 17, ..append() });
    refused("flags", Append { flags: 2, ..append() });
    refused("parts", Append { parts: 0, ..append() });
    refused("parts", Append { part: 1, ..append() });
    refused("parts", Append { parts: 2, ..append() });
    refused("crcs", Append { op_len: 4097, ..append() });
    refused("crcs", Append { crcs: vec![], ..append() });
    refused("op", Append { id: OpId { op: 0, ..append().id }, first_unacked: 0, ..append() });
    refused("op", Append { first_unacked: 0, ..append() });
    refused("op", Append { first_unacked: 3, ..append() });
}

#[test]
fn an_entry_lies_inside_its_operation_and_its_chunk() {
    taken(entry());
    taken(Forward { offset: CHUNK_SIZE - 5, op_off: CHUNK_SIZE - 5, ..entry() });
    taken(Forward { kind: EntryKind::Final, op_len: 0, length: 0, crcs: vec![], ..entry() });
    refused("length", Forward { offset: CHUNK_SIZE - 4, ..entry() });
    refused("length", Forward { length: MIB + 1, op_len: MIB + 1, crcs: vec![0; 257], ..entry() });
    refused("op_len", Forward { op_off: CHUNK_SIZE - 4, ..entry() });
    refused("op_len", Forward { op_len: APPEND_LEN_MAX + 1, ..entry() });
    refused("offset", Forward { op_off: 11, ..entry() });
    refused("offset", Forward { op_len: 4, ..entry() });
    refused("parts", Forward { part: 1, ..entry() });
    refused("seq", Forward { seq: Seq(0), ..entry() });
    refused("crcs", Forward { crcs: vec![], ..entry() });
    refused("crcs", Forward { kind: EntryKind::Zero, ..entry() });
    let mut unknown = entry().encode();
    unknown[12] = 6;
    assert_eq!(Forward::decode(&unknown), Err(Malformed::Field("kind")));
}

#[test]
fn reads_stay_inside_a_chunk_and_a_frame() {
    let read = Read { chunk: CHUNK, epoch: EPOCH, offset: 0, len: MIB, min_seq: Seq(0) };
    taken(read);
    taken(Read { offset: CHUNK_SIZE - 1, len: 1, ..read });
    refused("len", Read { len: 0, ..read });
    refused("len", Read { len: MIB + 1, ..read });
    refused("len", Read { offset: 1, ..read });
    refused("len", Read { offset: CHUNK_SIZE, len: 1, ..read });
    refused("len", Read { offset: u32::MAX, len: u32::MAX, ..read });
    let fetch = Fetch { chunk: CHUNK, epoch: EPOCH, offset: 4096, len: MIB };
    taken(fetch);
    refused("offset", Fetch { offset: 4095, ..fetch });
    refused("len", Fetch { len: 0, ..fetch });
    refused("len", Fetch { len: MIB + 1, ..fetch });
    refused("len", Fetch { offset: CHUNK_SIZE, len: 1, ..fetch });
}

#[test]
fn data_is_what_its_checksums_cover() {
    taken(data());
    taken(Data { len: 0, crcs: vec![], ..data() });
    refused("offset", Data { offset: 1, ..data() });
    refused("len", Data { len: MIB + 1, crcs: vec![0; 257], ..data() });
    refused("len", Data { offset: CHUNK_SIZE, ..data() });
    refused("committed_len", Data { committed_len: CHUNK_SIZE + 1, ..data() });
    refused("crcs", Data { crcs: vec![0; 2], ..data() });
    refused("committed_len", VersionOk { committed_seq: Seq(1), committed_len: CHUNK_SIZE + 1 });
    refused("len", Appended { chunk: CHUNK, offset: CHUNK_SIZE, len: 1, epoch: EPOCH, committed_seq: Seq(1) });
}

#[test]
fn reserved_bytes_are_zero() {
    reserved::<Appended>(&[0; 32], 20);
    reserved::<Close>(&[0; 32], 12);
    reserved::<Forward>(&entry().encode(), 13);
    reserved::<Forward>(&entry().encode(), 76);
    reserved::<Up>(&[0; 24], 12);
    reserved::<Commit>(&[0; 24], 12);
    reserved::<Read>(&Read { chunk: CHUNK, epoch: EPOCH, offset: 0, len: 1, min_seq: Seq(0) }.encode(), 20);
    reserved::<Fetch>(&Fetch { chunk: CHUNK, epoch: EPOCH, offset: 0, len: 1 }.encode(), 20);
    reserved::<Version>(&[0; 16], 12);
    reserved::<VersionOk>(&[0; 16], 12);
    reserved::<Fault>(&Fault::new(Kind::Invalid, "x").encode(), 6);
}

#[test]
fn a_payload_is_as_long_as_the_fields_say() {
    for (payload_len, want_ok) in [(0, false), (4, false), (5, true), (6, false)] {
        assert_eq!(receive::<Append>(&frame::head(&append(), 1, 0, payload_len)).is_ok(), want_ok, "{payload_len}");
    }
    assert!(receive::<Data>(&frame::head(&data(), 1, 0, 4096)).is_ok(), "data is padded to whole blocks");
    assert!(receive::<Up>(&frame::head(&Up { chunk: CHUNK, epoch: EPOCH, durable_seq: Seq(1) }, 1, 0, 1)).is_err());
}

#[test]
fn a_message_is_not_taken_for_another_one_of_the_same_shape() {
    let up = Up { chunk: CHUNK, epoch: EPOCH, durable_seq: Seq(1) };
    let fields = up.encode();
    let header = Header::new(Up::TAG, 0, 0, &fields, 0);
    assert_eq!(frame::open::<Up>(&header, &fields), Ok(up));
    assert_eq!(frame::open::<Commit>(&header, &fields), Err(Malformed::Tag(Up::TAG)));
}

#[test]
fn no_server_without_shards_is_believed() {
    for (shards, want_ok) in [(0, false), (1, true)] {
        assert_eq!(survives(&create(vec![Member { shards, ..member() }], vec![])), want_ok);
        let (server, cluster, version) = (ServerId(1), ClusterId([1; 16]), String::new());
        let ok = HelloOk { server, boot: 1, cluster, shards, version };
        assert_eq!(survives(&Welcome { hello: ok.clone(), mac: [0; 32] }), want_ok);
        assert_eq!(survives(&ok), want_ok);
        assert_eq!(survives(&Register { shards, ..register("a:1") }), want_ok);
    }
}

#[test]
fn lists_of_control_messages_are_bounded() {
    for (members, want_ok) in [(0, false), (1, true), (MEMBERS_MAX, true), (MEMBERS_MAX + 1, false)] {
        assert_eq!(survives(&create(vec![member(); members], vec![])), want_ok, "{members} members");
    }
    for (entries, want_ok) in [(DEDUP_ENTRIES_MAX, true), (DEDUP_ENTRIES_MAX + 1, false)] {
        let dedup = vec![DedupEntry { id: OpId::default(), chunk: CHUNK, offset: 0, len: 0 }; entries];
        assert_eq!(survives(&create(vec![member()], dedup.clone())), want_ok, "{entries} dedup entries");
        assert_eq!(survives(&TableOk { dedup }), want_ok, "{entries} dedup entries");
    }
    let attr = wire::namespace::Attr { tail: None, ..common::random::value(1) };
    for (len, want_ok) in [(PAGE_ENTRIES_MAX as usize, true), (PAGE_ENTRIES_MAX as usize + 1, false)] {
        let entry = wire::namespace::Entry { path: "/".into(), attr: attr.clone() };
        assert_eq!(survives(&Listing { entries: vec![entry; len], next: None }), want_ok, "{len} names");
        let items = vec![location(); len];
        assert_eq!(survives(&Locations { items, version: 1, chunk_count: 1 }), want_ok, "{len} locations");
    }
}

#[test]
fn texts_and_lengths_of_control_messages_are_bounded() {
    for (len, want_ok) in [(ADDRESS_LEN_MAX, true), (ADDRESS_LEN_MAX + 1, false)] {
        let text = "x".repeat(len);
        assert_eq!(survives(&register(&text)), want_ok);
        let proof = Proof { nonce: [1; 32], to: ServerId(1), address: text.clone(), mac: [2; 32] };
        assert_eq!(survives(&proof), want_ok);
        assert_eq!(survives(&Register { zone: text.clone(), ..register("a:1") }), want_ok);
        assert_eq!(survives(&create(vec![Member { address: text, ..member() }], vec![])), want_ok);
    }
    for (len, want_ok) in [(CHUNK_SIZE, true), (CHUNK_SIZE + 1, false)] {
        let confirm = Confirm { term: Term(1), chunk: CHUNK, epoch: EPOCH, len, digest: [0; 16] };
        assert_eq!(survives(&confirm), want_ok);
        let location = wire::locate::Location { len, ..location() };
        assert_eq!(survives(&Locations { items: vec![location], version: 1, chunk_count: 1 }), want_ok);
    }
}

fn taken<B: Body + PartialEq + std::fmt::Debug>(body: B) {
    assert_eq!(B::decode(&body.encode()), Ok(body));
}

fn refused<B: Body + PartialEq + std::fmt::Debug>(field: &'static str, body: B) {
    assert_eq!(B::decode(&body.encode()), Err(Malformed::Field(field)), "{body:?}");
}

/// `valid` decodes; with anything in the reserved byte at `at` it does not.
fn reserved<B: Body>(valid: &[u8], at: usize) {
    assert!(B::decode(valid).is_ok(), "message {} is valid", B::TAG);
    let mut bytes = valid.to_vec();
    bytes[at] = 1;
    assert!(B::decode(&bytes).is_err(), "message {} with byte {at} set", B::TAG);
}

fn survives<B: Body>(body: &B) -> bool {
    B::decode(&body.encode()).is_ok()
}

fn write() -> Write {
    let id = OpId { stream: StreamId([7; 16]), op: 2 };
    Write { chunk: CHUNK, epoch: EPOCH, offset: 9, id, first_unacked: 2, len: 5, crcs: vec![0] }
}

fn append() -> Append {
    let id = OpId { stream: StreamId([1; 16]), op: 2 };
    Append { chunk: CHUNK, epoch: EPOCH, flags: 0, id, first_unacked: 2, op_len: 5, part: 0, parts: 1, crcs: vec![0] }
}

fn entry() -> Forward {
    Forward {
        chunk: CHUNK,
        epoch: EPOCH,
        kind: EntryKind::Append,
        seq: Seq(1),
        id: append().id,
        first_unacked: 2,
        op_off: 10,
        op_len: 5,
        offset: 10,
        length: 5,
        part: 0,
        parts: 1,
        committed_seq: Seq(0),
        digest: [0; 16],
        crcs: vec![0],
    }
}

fn data() -> Data {
    let (committed_len, committed_seq) = (CHUNK_SIZE, Seq(1));
    Data { chunk: CHUNK, offset: 0, len: 5, committed_len, epoch: EPOCH, committed_seq, crcs: vec![0] }
}

fn create(members: Vec<Member>, dedup: Vec<DedupEntry>) -> Create {
    let (term, file) = (Term(1), InodeId(2));
    Create { term, chunk: CHUNK, epoch: EPOCH, members, my_position: 0, prev: ChunkHandle::NONE, file, dedup }
}

fn member() -> Member {
    Member { server: ServerId(1), address: "a:1".into(), shards: 1 }
}

fn register(address: &str) -> Register {
    Register {
        server: ServerId(1),
        cluster: ClusterId([1; 16]),
        boot: 1,
        disk: [1; 16],
        address: address.into(),
        admin: String::new(),
        shards: 1,
        zone: String::new(),
        version: String::new(),
    }
}

fn location() -> wire::locate::Location {
    wire::locate::Location {
        file: InodeId(2),
        index: 0,
        start: 0,
        chunk: CHUNK,
        state: wire::member::ChunkState::Sealed,
        epoch: EPOCH,
        len: 0,
        members: vec![member()],
        expire_ms: 1,
    }
}

#[test]
fn a_chunk_has_so_many_block_checksums_and_a_clone_so_many_sources() {
    let blocks = (CHUNK_SIZE / 4096) as usize;
    taken(CrcsOk { crcs: vec![7; blocks] });
    assert!(CrcsOk::decode(&CrcsOk { crcs: vec![7; blocks + 1] }.encode()).is_err());
    let member = Member { server: ServerId(1), address: "a:1".into(), shards: 1 };
    let clone = CloneChunk {
        term: Term(1),
        chunk: CHUNK,
        epoch: EPOCH,
        last_seq: Seq(1),
        len: CHUNK_SIZE,
        digest: [0; 16],
        file: InodeId(1),
        prev: ChunkHandle::NONE,
        sources: vec![member; MEMBERS_MAX],
        authority: 0,
        rate: 0,
    };
    let is_taken = |clone: &CloneChunk| CloneChunk::decode(&clone.encode()).is_ok();
    assert!(is_taken(&clone));
    assert!(!is_taken(&CloneChunk { sources: vec![], ..clone.clone() }));
    assert!(!is_taken(&CloneChunk { len: CHUNK_SIZE + 1, ..clone.clone() }));
    let more = vec![clone.sources[0].clone(); MEMBERS_MAX + 1];
    assert!(!is_taken(&CloneChunk { sources: more, ..clone }));
}
