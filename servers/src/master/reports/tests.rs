use super::*;
use wire::{Epoch, InodeId, RequestId, Seq};

use crate::master::entry::Answer;

const MEMBERS: [ServerId; 2] = [ServerId(1), ServerId(2)];

fn apply(state: &mut State, change: Change) -> Answer {
    let entry = state.stamp(change, 1);
    state.apply(state.applied() + 1, &entry).unwrap().answer
}

/// A state with one open chunk on servers 1 and 2.
fn open_chunk() -> (State, ChunkHandle) {
    let mut state = State::default();
    apply(&mut state, Change::Found { cluster: ClusterId([1; 16]) });
    let request = RequestId { client: [1; 16], number: 1 };
    let Answer::Inode(file) =
        apply(&mut state, Change::BeginUpload { request, content_type: String::new(), replicas: 3 })
    else {
        panic!("an upload can always begin")
    };
    assert_ne!(file, InodeId::ROOT);
    let Answer::Chunk(chunk) = apply(&mut state, Change::OpenChunk { file, members: MEMBERS.to_vec() }) else {
        panic!("an upload takes chunks")
    };
    (state, chunk)
}

fn seal(state: &mut State, chunk: ChunkHandle) {
    apply(state, Change::SealStart { chunk, epoch: Epoch(2) });
    let holders = vec![ServerId(1)];
    let (digest, last_seq) = ([7; 16], Seq(5));
    apply(state, Change::Sealed { chunk, epoch: Epoch(2), len: 10, last_seq, digest, holders, dedup: vec![] });
}

fn report(chunk: ChunkHandle, state: ReplicaState) -> ChunkReport {
    ChunkReport {
        chunk,
        state,
        epoch: Epoch(1),
        promised: Epoch(1),
        last_seq: Seq(5),
        len: 10,
        committed_len: 10,
        digest: if state == ReplicaState::Sealed { [7; 16] } else { [0; 16] },
        damaged: false,
    }
}

use ReplicaState::{Condemned, Open, Rwr, Sealed};

#[test]
fn a_member_that_restarted_or_is_damaged_ends_its_open_chain() {
    let (state, chunk) = open_chunk();
    assert_eq!(verdict(&state, ServerId(1), &report(chunk, Open)), Verdict::Fine);
    assert_eq!(verdict(&state, ServerId(1), &report(chunk, Rwr)), Verdict::Seal);
    let damaged = ChunkReport { damaged: true, ..report(chunk, Open) };
    assert_eq!(verdict(&state, ServerId(1), &damaged), Verdict::Seal);
    assert_eq!(verdict(&state, ServerId(9), &report(chunk, Rwr)), Verdict::Fine, "no member of the chain");
}

#[test]
fn a_holder_that_has_not_heard_is_told_and_one_with_other_content_is_an_alarm() {
    let (mut state, chunk) = open_chunk();
    seal(&mut state, chunk);
    assert_eq!(verdict(&state, ServerId(1), &report(chunk, Sealed)), Verdict::Fine);
    assert_eq!(verdict(&state, ServerId(1), &report(chunk, Rwr)), Verdict::Confirm);
    assert_eq!(
        verdict(&state, ServerId(2), &report(chunk, Rwr)),
        Verdict::Fine,
        "it missed the seal, and is looked after elsewhere"
    );
    assert_eq!(verdict(&state, ServerId(2), &report(chunk, Condemned)), Verdict::Fine);
    let other = ChunkReport { digest: [8; 16], ..report(chunk, Sealed) };
    assert_eq!(verdict(&state, ServerId(1), &other), Verdict::Differs);
}

#[test]
fn what_the_log_does_not_know_is_told_from_what_it_never_could_have_known() {
    let (mut state, chunk) = open_chunk();
    let never = ChunkHandle(chunk.0 + 1);
    assert_eq!(verdict(&state, ServerId(1), &report(never, Open)), Verdict::Ahead);
    let promised = ChunkReport { promised: Epoch(2), ..report(chunk, Open) };
    assert_eq!(verdict(&state, ServerId(1), &promised), Verdict::Ahead);
    let (_, unknown) = (apply(&mut state, Change::Abandon { chunk }), ChunkHandle(chunk.0));
    assert_eq!(verdict(&state, ServerId(1), &report(unknown, Open)), Verdict::Fine, "under its tombstone");
    for server in MEMBERS {
        apply(&mut state, Change::Freed { chunk, server });
    }
    assert_eq!(verdict(&state, ServerId(1), &report(unknown, Open)), Verdict::Orphan);
}

#[test]
fn impossible_registrations_are_refused() {
    let good = Register {
        server: ServerId(0),
        cluster: ClusterId::default(),
        boot: 1,
        disk: [0; 16],
        address: "127.0.0.1:8081".into(),
        admin: String::new(),
        shards: 2,
        zone: String::new(),
        version: "1".into(),
    };
    assert!(check(&good).is_ok());
    let long = "x".repeat(ADDRESS_LEN_MAX) + ":1";
    for bad in [
        Register { address: "no-port".into(), ..good.clone() },
        Register { address: ":8081".into(), ..good.clone() },
        Register { address: "host:99999".into(), ..good.clone() },
        Register { address: long, ..good.clone() },
        Register { zone: "a\nb".into(), ..good.clone() },
        Register { shards: 0, ..good.clone() },
    ] {
        assert!(check(&bad).is_err(), "{bad:?}");
    }
}
