use super::*;
use wire::heartbeat::InventoryPage;
use wire::{Epoch, InodeId, RequestId, Seq};

use crate::master::entry::Answer;
use crate::master::unfit::Unfit;

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

/// Chunks on servers 1 and 2, sealed by both.
fn sealed_chunks(count: u64) -> (State, Vec<ChunkHandle>) {
    let mut state = State::default();
    apply(&mut state, Change::Found { cluster: ClusterId([1; 16]) });
    let mut chunks = Vec::new();
    for number in 0..count {
        let request = RequestId { client: [1; 16], number: number + 1 };
        let begin = Change::BeginUpload { request, content_type: String::new(), replicas: 2 };
        let Answer::Inode(file) = apply(&mut state, begin) else { panic!("an upload can always begin") };
        let open = Change::OpenChunk { file, members: MEMBERS.to_vec() };
        let Answer::Chunk(chunk) = apply(&mut state, open) else { panic!("an upload takes chunks") };
        apply(&mut state, Change::SealStart { chunk, epoch: Epoch(2) });
        let (epoch, digest, holders) = (Epoch(2), [7; 16], MEMBERS.to_vec());
        apply(&mut state, Change::Sealed { chunk, epoch, len: 10, last_seq: Seq(5), digest, holders, dedup: vec![] });
        chunks.push(chunk);
    }
    (state, chunks)
}

#[test]
fn a_replica_on_a_failed_disk_is_unfit_until_it_is_reported_well_and_stays_a_holder() {
    let (state, chunks) = sealed_chunks(2);
    let mut unfit = Unfit::default();
    let damaged = ChunkReport { damaged: true, ..report(chunks[0], Sealed) };
    unfit.heard(&state, ServerId(1), &[damaged, report(chunks[1], Sealed)], None);
    assert!(unfit.has(chunks[0], ServerId(1)) && !unfit.has(chunks[0], ServerId(2)));
    assert!(!unfit.has(chunks[1], ServerId(1)));
    assert_eq!((unfit.len(), unfit.degraded(&state)), (1, 1));
    assert_eq!(verdict(&state, ServerId(1), &damaged), Verdict::Fine, "it stays a holder");
    unfit.heard(&state, ServerId(9), &[damaged], None);
    assert_eq!(unfit.len(), 1, "what the log does not count is nobody's loss");
    unfit.heard(&state, ServerId(1), &[report(chunks[0], Sealed)], None);
    assert_eq!((unfit.len(), unfit.degraded(&state)), (0, 0));
}

#[test]
fn what_an_inventory_leaves_out_is_unfit_whichever_page_it_would_be_on() {
    let (state, chunks) = sealed_chunks(6);
    let well = |of: &[usize]| of.iter().map(|at| report(chunks[*at], Sealed)).collect::<Vec<_>>();
    let page = |first, last| Some(InventoryPage { first, last });
    let mut unfit = Unfit::default();
    unfit.heard(&state, ServerId(1), &well(&[1, 2]), page(true, false));
    unfit.heard(&state, ServerId(1), &well(&[4]), page(false, true));
    let lost: Vec<usize> = (0..6).filter(|at| unfit.has(chunks[*at], ServerId(1))).collect();
    assert_eq!(lost, [0, 3, 5]);
    // All disks are back.
    unfit.heard(&state, ServerId(1), &well(&[0, 1, 2, 3, 4, 5]), page(true, true));
    assert_eq!(unfit.len(), 0);
    unfit.heard(&state, ServerId(1), &[], page(true, true));
    assert_eq!((unfit.len(), unfit.degraded(&state)), (6, 6), "an empty page is an empty server");
    unfit.heard(&state, ServerId(2), &[], page(true, true));
    assert_eq!((unfit.len(), unfit.degraded(&state)), (12, 6));
    unfit.forget(&State::default());
    assert_eq!(unfit.len(), 0);
}
