use proptest::prelude::*;
use wire::checksum::block_crcs;
use wire::{InodeId, ServerId};

use super::*;
use crate::store::page::Common;

const EPOCH: Epoch = Epoch(1);

fn created() -> Replica {
    let slot = Hdr { common: Common { number: 4, ..Common::default() }, written_upto: 4096, ..Hdr::default() };
    let create = Create {
        term: Term(1),
        prev: ChunkHandle::NONE,
        file: InodeId(1),
        my_position: 0,
        members: Cow::Owned(vec![ServerId(1)]),
        dedup: Cow::Owned(Vec::new()),
    };
    Replica::created(&slot, ChunkHandle(7), EPOCH, &create)
}

/// One part of an operation, its bytes all `fill`.
fn part(replica: &Replica, op: u64, part: u16, parts: u16, length: u32, op_len: u32) -> Body<'static> {
    let held = replica.held.as_ref().map(|held| held.op);
    let id = OpId { stream: StreamId([1; 16]), op };
    let off = held.map_or(replica.len(), |held| held.off);
    let (offset, end) = (replica.len(), replica.len() + length);
    let op = Op { id, first_unacked: op, seq: replica.last_seq() + 1, committed_seq: 0, part, parts, off, len: op_len };
    let crcs = (offset / BLOCK..end / BLOCK).collect();
    let tail: &'static [u8] = &[7; 4096][..(end % BLOCK) as usize];
    Body::Append(Append { op, offset, length, first_block: offset / BLOCK, crcs: Cow::Owned(crcs), tail })
}

fn apply(replica: &mut Replica, lsn: u64, epoch: Epoch, body: &Body<'_>) -> Result<Vec<Written>, StoreError> {
    let mut written = Vec::new();
    replica.apply(lsn, epoch, 0, body, &mut |blocks| written.push(blocks))?;
    Ok(written)
}

#[test]
fn an_operation_counts_with_its_last_part_and_not_before() {
    let mut replica = created();
    let first = part(&replica, 1, 0, 2, 5000, 9000);
    assert_eq!(apply(&mut replica, 10, EPOCH, &first), Ok(Vec::new()));
    assert_eq!((replica.len(), replica.last_seq(), replica.held_lsn()), (5000, 1, Some(10)));
    assert_eq!((replica.hdr.durable_len, replica.hdr.last_seq, replica.dedup.newest(StreamId([1; 16]))), (0, 0, 0));
    let second = part(&replica, 1, 1, 2, 4000, 9000);
    let written = apply(&mut replica, 11, EPOCH, &second).unwrap();
    let blocks = |blocks: &Written| (blocks.lsn, blocks.op_lsn, blocks.first_block, blocks.blocks);
    assert_eq!(written.iter().map(blocks).collect::<Vec<_>>(), [(10, 10, 0, 1), (11, 10, 1, 1)]);
    assert_eq!((replica.hdr.durable_len, replica.hdr.last_seq, replica.held_lsn()), (9000, 2, None));
    let entry = replica.dedup.entries()[0];
    assert_eq!((entry.id.op, entry.offset, entry.len), (1, 0, 9000));
}

#[test]
fn a_promise_drops_an_incomplete_operation_and_ends_the_epoch() {
    let mut replica = created();
    let whole = part(&replica, 1, 0, 1, 100, 100);
    apply(&mut replica, 10, EPOCH, &whole).unwrap();
    let first = part(&replica, 2, 0, 2, 50, 90);
    apply(&mut replica, 11, EPOCH, &first).unwrap();
    apply(&mut replica, 12, Epoch(3), &Body::Promise { promised: Epoch(3), term: Term(1) }).unwrap();
    assert_eq!((replica.len(), replica.last_seq(), replica.is_fenced()), (100, 1, true));
    let next = part(&replica, 2, 0, 1, 50, 50);
    assert_eq!(apply(&mut replica, 13, EPOCH, &next), Err(StoreError::StaleEpoch(Epoch(3))));
    let older = Body::Promise { promised: Epoch(2), term: Term(1) };
    assert_eq!(apply(&mut replica, 13, Epoch(2), &older), Err(StoreError::StaleEpoch(Epoch(3))));
}

#[test]
fn a_refused_record_changes_nothing() {
    let mut replica = created();
    let whole = part(&replica, 1, 0, 1, 5000, 5000);
    apply(&mut replica, 10, EPOCH, &whole).unwrap();
    let good = part(&replica, 2, 0, 1, 100, 100);
    let Body::Append(append) = &good else { unreachable!() };
    let wrong = |change: &dyn Fn(&mut Append<'_>)| {
        let mut append = append.clone();
        change(&mut append);
        let before = format!("{replica:?}");
        let mut replica = replica.clone();
        let refused = apply(&mut replica, 11, EPOCH, &Body::Append(append)).unwrap_err();
        assert_eq!(format!("{replica:?}"), before);
        refused
    };
    assert_eq!(wrong(&|append| append.op.seq = 3), StoreError::NotNext);
    assert_eq!(wrong(&|append| append.op.seq = 1), StoreError::NotNext);
    assert_eq!(wrong(&|append| (append.op.part, append.op.parts) = (1, 2)), StoreError::NotNext);
    assert_eq!(wrong(&|append| append.offset = 4999), StoreError::BadRange);
    assert_eq!(wrong(&|append| append.op.len = 99), StoreError::BadRange);
    assert_eq!(wrong(&|append| append.op.len = 101), StoreError::BadRange);
    assert_eq!(wrong(&|append| append.length = 0), StoreError::BadRange);
    assert_eq!(wrong(&|append| (append.op.off, append.op.len) = (5000, CHUNK_CAPACITY)), StoreError::BadRange);
    assert_eq!(apply(&mut replica, 11, Epoch(2), &good), Err(StoreError::StaleEpoch(EPOCH)));
}

#[test]
fn a_full_dedup_table_refuses_before_the_first_part() {
    let mut replica = created();
    for stream in 0..u64::try_from(DEDUP_MAX).unwrap() {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&(stream + 1).to_le_bytes());
        let entry = DedupEntry { id: OpId { stream: StreamId(id), op: 1 }, chunk: ChunkHandle(1), offset: 0, len: 1 };
        replica.dedup.complete(entry, 0);
    }
    let next = part(&replica, 1, 0, 1, 100, 100);
    assert_eq!(apply(&mut replica, 10, EPOCH, &next), Err(StoreError::Busy));
}

#[test]
fn committed_moves_from_operation_to_operation_and_never_past_durable() {
    let mut replica = created();
    for (lsn, op) in (10..).zip(1..=3) {
        let body = part(&replica, op, 0, 1, 100, 100);
        apply(&mut replica, lsn, EPOCH, &body).unwrap();
    }
    let two = part(&replica, 4, 0, 2, 100, 150);
    apply(&mut replica, 13, EPOCH, &two).unwrap();
    replica.claim_committed(99);
    replica.advance_committed(2);
    assert_eq!((replica.hdr.committed_seq, replica.hdr.committed_len), (2, 200));
    replica.advance_committed(4);
    assert_eq!((replica.hdr.committed_seq, replica.hdr.committed_len), (3, 300), "entry 4 is half an operation");
}

#[test]
fn a_restarted_replica_is_silent_and_keeps_what_is_complete() {
    let mut replica = created();
    let whole = part(&replica, 1, 0, 1, 100, 100);
    apply(&mut replica, 10, EPOCH, &whole).unwrap();
    let first = part(&replica, 2, 0, 2, 50, 90);
    apply(&mut replica, 11, EPOCH, &first).unwrap();
    replica.restart();
    assert_eq!((replica.state(), replica.len(), replica.last_seq()), (ReplicaState::Rwr, 100, 1));
    let next = part(&replica, 2, 0, 1, 50, 50);
    assert_eq!(apply(&mut replica, 12, EPOCH, &next), Err(StoreError::Rwr));
}

#[test]
fn only_the_content_that_was_set_is_confirmed() {
    let mut replica = created();
    let whole = part(&replica, 1, 0, 1, 100, 100);
    apply(&mut replica, 10, EPOCH, &whole).unwrap();
    let digest = replica.digest_of_all(None).unwrap();
    let confirm = Body::Sealed { term: Term(1), len: 100, digest };
    assert_eq!(apply(&mut replica, 11, EPOCH, &confirm), Err(StoreError::Mismatch), "nothing was set");
    let last = Body::Final { op: no_stream(2, 0), len: 100, digest };
    apply(&mut replica, 11, EPOCH, &last).unwrap();
    let next = part(&replica, 2, 0, 1, 50, 50);
    assert_eq!(apply(&mut replica, 12, EPOCH, &next), Err(StoreError::NotNext), "nothing follows FINAL");
    let other = Body::Sealed { term: Term(1), len: 100, digest: [0; 16] };
    assert_eq!(apply(&mut replica, 12, EPOCH, &other), Err(StoreError::Mismatch));
    apply(&mut replica, 12, EPOCH, &confirm).unwrap();
    assert_eq!((replica.state(), replica.hdr.committed_len), (ReplicaState::Sealed, 100));
    assert_eq!(replica.digest_of_all(None), Some(digest));
}

proptest! {
    /// However a content is cut into payloads, its blocks and its tail are the same.
    #[test]
    fn blocks_do_not_depend_on_how_they_came(lens in proptest::collection::vec(1_usize..9000, 1..12)) {
        let total: usize = lens.iter().sum();
        let all: Vec<u8> = (0..total).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect();
        let (mut at, mut tail, mut crcs) = (0, Vec::new(), Vec::new());
        for len in lens {
            let payload = &all[at..at + len];
            let own = block_crcs(payload);
            let blocks = cut_blocks(&tail, u32::try_from(at).unwrap(), payload, &own);
            prop_assert_eq!(blocks.first as usize, at / 4096);
            crcs.extend_from_slice(&blocks.crcs);
            tail = blocks.tail.into_owned();
            at += len;
        }
        let full = total / 4096 * 4096;
        prop_assert_eq!(crcs, block_crcs(&all[..full]));
        prop_assert_eq!(tail, &all[full..]);
    }
}
