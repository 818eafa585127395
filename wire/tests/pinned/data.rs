//! The hand-written layouts: appends, reads, the stream along a chain, errors.

use wire::append::{Append, Appended, Close, LAST};
use wire::error::{Fault, Kind, Reason};
use wire::fetch::Fetch;
use wire::forward::{Commit, EntryKind, Forward, Nak, NakReason, Up};
use wire::read::{Data, Read, Version, VersionOk};
use wire::write::Write;
use wire::{ChunkHandle, Epoch, OpId, Seq, StreamId};

use crate::common::Pins;

const CHUNK: ChunkHandle = ChunkHandle(0x1122_3344_5566_7788);
const EPOCH: Epoch = Epoch(3);
const STREAM: StreamId = StreamId([0xaa; 16]);

pub(crate) fn pin(pins: &mut Pins) {
    appends(pins);
    writes(pins);
    entries(pins);
    acknowledgements(pins);
    reads(pins);
    faults(pins);
}

fn appends(pins: &mut Pins) {
    let append = Append {
        chunk: CHUNK,
        epoch: EPOCH,
        flags: LAST,
        id: OpId { stream: STREAM, op: 9 },
        first_unacked: 7,
        op_len: 0x10_1001,
        part: 1,
        parts: 2,
        crcs: vec![0x0a0b_0c0d, 0x0102_0304],
    };
    pins.pin(
        &append,
        "8877665544332211 03000000 01000000 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa 0900000000000000 \
            0700000000000000 01101000 0100 0200 0d0c0b0a 04030201",
    );
    let appended = Appended { chunk: CHUNK, offset: 0x1000, len: 5, epoch: EPOCH, committed_seq: Seq(12) };
    pins.pin(&appended, "8877665544332211 00100000 05000000 03000000 00000000 0c00000000000000");
    pins.pin(
        &Close { chunk: CHUNK, epoch: EPOCH, stream: STREAM },
        "8877665544332211 03000000 00000000 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    );
}

fn writes(pins: &mut Pins) {
    let write = Write {
        chunk: CHUNK,
        epoch: EPOCH,
        offset: 0x2001,
        id: OpId { stream: STREAM, op: 9 },
        first_unacked: 7,
        len: 0x1001,
        crcs: vec![0x0a0b_0c0d, 0x0102_0304],
    };
    pins.pin(
        &write,
        "8877665544332211 03000000 01200000 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa 0900000000000000 \
            0700000000000000 01100000 00000000 0d0c0b0a 04030201",
    );
}

fn entries(pins: &mut Pins) {
    let append = Forward {
        chunk: CHUNK,
        epoch: EPOCH,
        kind: EntryKind::Append,
        seq: Seq(12),
        id: OpId { stream: STREAM, op: 9 },
        first_unacked: 7,
        op_off: 0x2000,
        op_len: 0x10_0005,
        offset: 0x10_2000,
        length: 5,
        part: 1,
        parts: 2,
        committed_seq: Seq(10),
        digest: [0; 16],
        crcs: vec![0x0a0b_0c0d],
    };
    pins.pin(
        &append,
        "8877665544332211 03000000 01 000000 0c00000000000000 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa \
            0900000000000000 0700000000000000 00200000 05001000 00201000 05000000 0100 0200 00000000 \
            0a00000000000000 0d0c0b0a",
    );
    pins.pin(
        &Forward { kind: EntryKind::Overwrite, ..append.clone() },
        "8877665544332211 03000000 02 000000 0c00000000000000 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa \
            0900000000000000 0700000000000000 00200000 05001000 00201000 05000000 0100 0200 00000000 \
            0a00000000000000 0d0c0b0a",
    );
    pins.pin(
        &Forward { kind: EntryKind::Zero, crcs: vec![], ..append.clone() },
        "8877665544332211 03000000 03 000000 0c00000000000000 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa \
            0900000000000000 0700000000000000 00200000 05001000 00201000 05000000 0100 0200 00000000 \
            0a00000000000000",
    );
    let about_the_log = Forward { id: OpId::default(), first_unacked: 0, op_len: 0, part: 0, parts: 1, ..append };
    let forget = Forward { kind: EntryKind::Forget, op_off: 0, offset: 0, length: 16, ..about_the_log.clone() };
    pins.pin(
        &forget,
        "8877665544332211 03000000 04 000000 0c00000000000000 00000000000000000000000000000000 \
            0000000000000000 0000000000000000 00000000 00000000 00000000 10000000 0000 0100 00000000 \
            0a00000000000000 0d0c0b0a",
    );
    let last = Forward { kind: EntryKind::Final, length: 0, digest: [0xdd; 16], crcs: vec![], ..about_the_log };
    pins.pin(
        &last,
        "8877665544332211 03000000 05 000000 0c00000000000000 00000000000000000000000000000000 \
            0000000000000000 0000000000000000 00200000 00000000 00201000 00000000 0000 0100 00000000 \
            0a00000000000000 dddddddddddddddddddddddddddddddd",
    );
}

fn acknowledgements(pins: &mut Pins) {
    pins.pin(
        &Up { chunk: CHUNK, epoch: EPOCH, durable_seq: Seq(12) },
        "8877665544332211 03000000 00000000 0c00000000000000",
    );
    pins.pin(
        &Commit { chunk: CHUNK, epoch: EPOCH, committed_seq: Seq(12) },
        "8877665544332211 03000000 00000000 0c00000000000000",
    );
    for (reason, pinned) in [
        (NakReason::Gap, "8877665544332211 03000000 01000000 0c00000000000000"),
        (NakReason::Fenced, "8877665544332211 03000000 02000000 0c00000000000000"),
        (NakReason::Disk, "8877665544332211 03000000 03000000 0c00000000000000"),
    ] {
        pins.pin(&Nak { chunk: CHUNK, epoch: EPOCH, reason, next_seq: Seq(12) }, pinned);
    }
}

fn reads(pins: &mut Pins) {
    pins.pin(
        &Read { chunk: CHUNK, epoch: EPOCH, offset: 0x1234, len: 0x567, min_seq: Seq(12) },
        "8877665544332211 03000000 34120000 67050000 00000000 0c00000000000000",
    );
    let data = Data {
        chunk: CHUNK,
        offset: 0x1000,
        len: 0x1001,
        committed_len: 0x2001,
        epoch: EPOCH,
        committed_seq: Seq(12),
        crcs: vec![0x0a0b_0c0d, 0x0102_0304],
    };
    pins.pin(&data, "8877665544332211 00100000 01100000 01200000 03000000 0c00000000000000 0d0c0b0a 04030201");
    pins.pin(
        &Fetch { chunk: CHUNK, epoch: EPOCH, offset: 0x1000, len: 0x2000 },
        "8877665544332211 03000000 00100000 00200000 00000000",
    );
    pins.pin(&Version { chunk: CHUNK, epoch: EPOCH }, "8877665544332211 03000000 00000000");
    pins.pin(&VersionOk { committed_seq: Seq(12), committed_len: 0x2001 }, "0c00000000000000 01200000 00000000");
}

fn faults(pins: &mut Pins) {
    pins.pin(
        &Fault::refused(Reason::OutOfOrder, 8, "not the next: é"),
        "0300 0800 1000 0000 0800000000000000 6e6f7420746865206e6578743a20c3a9",
    );
    pins.pin(&Fault::new(Kind::NotLeader, ""), "1000 0000 0000 0000 0000000000000000");
}
