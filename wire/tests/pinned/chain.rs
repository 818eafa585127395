//! The master's commands to the members of a chain, and what they report.

use wire::chain::{Condemn, Create, Free, Reopen, Table, TableOk};
use wire::member::{Member, ReplicaState};
use wire::report::{Finished, Report, Trouble};
use wire::seal::{Confirm, Digest, DigestOk, Prepare, PrepareOk, Seal, SealOk};
use wire::{ChunkHandle, DedupEntry, Epoch, InodeId, OpId, Seq, ServerId, StreamId, Term};

use crate::common::Pins;

const CHUNK: ChunkHandle = ChunkHandle(0x1122_3344_5566_7788);
const EPOCH: Epoch = Epoch(3);
const TERM: Term = Term(2);
const DIGEST: [u8; 16] = [0xdd; 16];

pub(crate) fn pin(pins: &mut Pins) {
    chains(pins);
    seals(pins);
    digests(pins);
    reports(pins);
}

fn chains(pins: &mut Pins) {
    let create = Create {
        term: TERM,
        chunk: CHUNK,
        epoch: EPOCH,
        members: vec![member(1, "a:1"), member(2, "b:2")],
        my_position: 1,
        prev: ChunkHandle(5),
        file: InodeId(6),
        dedup: dedup(),
    };
    pins.pin(
        &create,
        "020000008877665544332211030000000200000000000000010000000300000000000000613a31020000000200000003 \
            00000000000000623a320200000001050000000000000006000000000000000100000000000000aaaaaaaaaaaaaaaaaa \
            aaaaaaaaaaaaaa090000000000000005000000000000000010000005000000",
    );
    let reopen = Reopen {
        term: TERM,
        chunk: CHUNK,
        epoch: EPOCH,
        members: vec![member(1, "a:1"), member(2, "b:2")],
        my_position: 1,
        len: 0x2001,
        digest: DIGEST,
    };
    pins.pin(
        &reopen,
        "020000008877665544332211030000000200000000000000010000000300000000000000613a31020000000200000003 \
            00000000000000623a320200000001 01200000 dddddddddddddddddddddddddddddddd",
    );
    pins.pin(&Table { chunk: CHUNK }, "8877665544332211");
    pins.pin(
        &TableOk { dedup: dedup() },
        "0100000000000000aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa090000000000000005000000000000000010000005000000",
    );
    pins.pin(
        &Condemn { term: TERM, chunk: CHUNK, authority: 77, now_unix: 1_700_000_000 },
        "0200000088776655443322114d0000000000000000f1536500000000",
    );
    pins.pin(&Free { term: TERM, chunk: CHUNK, authority: 77 }, "0200000088776655443322114d00000000000000");
}

fn seals(pins: &mut Pins) {
    pins.pin(&Prepare { term: TERM, chunk: CHUNK, epoch: EPOCH }, "02000000887766554433221103000000");
    let prepared = PrepareOk {
        promised: Epoch(4),
        epoch: EPOCH,
        state: ReplicaState::Rwr,
        last_seq: Seq(12),
        len: 0x2001,
        digest: DIGEST,
        committed_seq: Seq(10),
        suspect_seq: Seq(13),
        healthy: true,
    };
    pins.pin(
        &prepared,
        "0400000003000000010000000c0000000000000001200000dddddddddddddddddddddddddddddddd0a00000000000000 \
            0d0000000000000001",
    );
    let seal = Seal {
        term: TERM,
        chunk: CHUNK,
        epoch: Epoch(4),
        last_seq: Seq(12),
        len: 0x2001,
        digest: DIGEST,
        source: member(2, "b:2"),
    };
    pins.pin(
        &seal,
        "020000008877665544332211040000000c0000000000000001200000dddddddddddddddddddddddddddddddd02000000 \
            0300000000000000623a3202000000",
    );
    pins.pin(
        &SealOk { dedup: dedup() },
        "0100000000000000aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa090000000000000005000000000000000010000005000000",
    );
    pins.pin(
        &Confirm { term: TERM, chunk: CHUNK, epoch: Epoch(4), len: 0x2001, digest: DIGEST },
        "0200000088776655443322110400000001200000dddddddddddddddddddddddddddddddd",
    );
}

fn digests(pins: &mut Pins) {
    pins.pin(&Digest { chunk: CHUNK, len: u32::MAX }, "8877665544332211ffffffff");
    for (state, pinned) in [
        (ReplicaState::Open, "01200000dddddddddddddddddddddddddddddddd0000000003000000"),
        (ReplicaState::Rwr, "01200000dddddddddddddddddddddddddddddddd0100000003000000"),
        (ReplicaState::Sealed, "01200000dddddddddddddddddddddddddddddddd0200000003000000"),
        (ReplicaState::Condemned, "01200000dddddddddddddddddddddddddddddddd0300000003000000"),
    ] {
        pins.pin(&DigestOk { len: 0x2001, digest: DIGEST, state, epoch: EPOCH }, pinned);
    }
}

fn reports(pins: &mut Pins) {
    for (trouble, pinned) in [
        (Trouble::NoAnswer, "8877665544332211030000000000000002000000"),
        (Trouble::Stalled, "8877665544332211030000000100000002000000"),
        (Trouble::DiskError, "8877665544332211030000000200000002000000"),
        (Trouble::BadBlock, "8877665544332211030000000300000002000000"),
        (Trouble::Diverged, "8877665544332211030000000400000002000000"),
        (Trouble::Stale, "8877665544332211030000000500000002000000"),
        (Trouble::LostOps, "8877665544332211030000000600000002000000"),
    ] {
        pins.pin(&Report { chunk: CHUNK, epoch: EPOCH, trouble, suspect: ServerId(2) }, pinned);
    }
    let finished =
        Finished { chunk: CHUNK, epoch: EPOCH, last_seq: Seq(12), len: 0x2001, digest: DIGEST, dedup: dedup() };
    pins.pin(
        &finished,
        "8877665544332211030000000c0000000000000001200000dddddddddddddddddddddddddddddddd0100000000000000 \
            aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa090000000000000005000000000000000010000005000000",
    );
}

fn member(server: u32, address: &str) -> Member {
    Member { server: ServerId(server), address: address.into(), shards: 2 }
}

fn dedup() -> Vec<DedupEntry> {
    let id = OpId { stream: StreamId([0xaa; 16]), op: 9 };
    vec![DedupEntry { id, chunk: ChunkHandle(5), offset: 0x1000, len: 5 }]
}
