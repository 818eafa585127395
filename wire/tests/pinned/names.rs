//! What clients say to the master: locations, names, uploads.

use wire::locate::{Intent, Locate, LocateChunk, Location, Locations, Position};
use wire::member::{ChunkState, Member};
use wire::namespace::{Attr, CreateFile, Delete, Entry, List, Listing, Mkdir, Rename, Stat, Trash, Undelete};
use wire::upload::{AbortUpload, BeginUpload, Precondition, Publish, Splice, Upload};
use wire::{ChunkHandle, Epoch, InodeId, RequestId, ServerId};

use crate::common::Pins;

const REQUEST: RequestId = RequestId { client: [0xee; 16], number: 8 };
const FILE: InodeId = InodeId(6);

pub(crate) fn pin(pins: &mut Pins) {
    locations(pins);
    mutations(pins);
    answers(pins);
    uploads(pins);
}

fn locations(pins: &mut Pins) {
    for (at, intent, pinned) in [
        (Position::Offset(0x1_0000_0000), Intent::Read, "06000000000000000000000000000000010000000000000001000000"),
        (Position::Index(2), Intent::Read, "060000000000000001000000020000000000000001000000"),
        (Position::Tail, Intent::Append, "0600000000000000020000000100000001000000"),
        (Position::Offset(7), Intent::Write, "06000000000000000000000007000000000000000200000001000000"),
    ] {
        pins.pin(&Locate { file: FILE, at, intent, count: 1 }, pinned);
    }
    pins.pin(&LocateChunk { chunk: ChunkHandle(5) }, "0500000000000000");
    pins.pin(
        &Locations { items: vec![location(ChunkState::Reopened)], version: 4, chunk_count: 3 },
        "010000000000000006000000000000000200000000000000010000000500000000000000030000000300000001200000 \
            0100000000000000010000000300000000000000613a310200000060ea0000040000000000000003000000",
    );
    let items = [ChunkState::Open, ChunkState::Sealing, ChunkState::Sealed].map(location).into();
    pins.pin(
        &Locations { items, version: 4, chunk_count: 3 },
        "030000000000000006000000000000000200000000000000010000000500000000000000000000000300000001200000 \
            0100000000000000010000000300000000000000613a310200000060ea00000600000000000000020000000000000001 \
            00000005000000000000000100000003000000012000000100000000000000010000000300000000000000613a310200 \
            000060ea0000060000000000000002000000000000000100000005000000000000000200000003000000012000000100 \
            000000000000010000000300000000000000613a310200000060ea0000040000000000000003000000",
    );
}

fn mutations(pins: &mut Pins) {
    pins.pin(
        &Mkdir { request: REQUEST, path: "/d".into() },
        "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee080000000000000002000000000000002f64",
    );
    pins.pin(
        &CreateFile { request: REQUEST, path: "/f".into(), exclusive: true },
        "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee080000000000000002000000000000002f6601",
    );
    pins.pin(
        &Delete { request: REQUEST, path: "/d".into(), recursive: true },
        "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee080000000000000002000000000000002f6401",
    );
    pins.pin(
        &Rename { request: REQUEST, from: "/a".into(), to: "/b".into(), replace: true },
        "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee080000000000000002000000000000002f6102000000000000002f6201",
    );
    pins.pin(
        &Undelete { request: REQUEST, path: "/é".into() },
        "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee080000000000000003000000000000002fc3a9",
    );
}

fn answers(pins: &mut Pins) {
    pins.pin(&Stat { path: "/f".into() }, "02000000000000002f66");
    pins.pin(
        &List { path: "/".into(), after: "/a".into(), limit: 10, recursive: true },
        "01000000000000002f02000000000000002f610a00000001",
    );
    pins.pin(&Trash { after: String::new(), limit: 10 }, "00000000000000000a000000");
    pins.pin(
        &attr(),
        "060000000000000000000000000100000001060000000000000002000000000000000100000005000000000000000000 \
            000003000000012000000100000000000000010000000300000000000000613a310200000060ea000005000000030000 \
            0004000000000000000068e5cf8b0100000168e5cf8b0100000300000000000000612f62015555555555555555555555 \
            55555555555555555555555555555555555555555503000000",
    );
    let plain = Attr { is_dir: true, tail: None, sha256: None, ..attr() };
    let entries = vec![Entry { path: "/d".into(), attr: plain }];
    pins.pin(
        &Listing { entries, next: Some("/d".into()) },
        "010000000000000002000000000000002f64060000000000000001000000000100000000050000000300000004000000 \
            000000000068e5cf8b0100000168e5cf8b0100000300000000000000612f6200030000000102000000000000002f64",
    );
    pins.pin(&Listing { entries: vec![], next: None }, "000000000000000000");
}

fn uploads(pins: &mut Pins) {
    pins.pin(
        &BeginUpload { request: REQUEST, path: "/f".into(), content_type: "a/b".into() },
        "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee080000000000000002000000000000002f660300000000000000612f62",
    );
    pins.pin(&Upload { inode: FILE }, "0600000000000000");
    for (precondition, sha256, pinned) in [
        (
            Precondition::None,
            None,
            "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee0800000000000000060000000000000002000000000000002f66000000000900 \
            00000000000000",
        ),
        (
            Precondition::Absent,
            Some([0x55; 32]),
            "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee0800000000000000060000000000000002000000000000002f66010000000900 \
            000000000000015555555555555555555555555555555555555555555555555555555555555555",
        ),
        (
            Precondition::Match { inode: InodeId(7), version: 4 },
            None,
            "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee0800000000000000060000000000000002000000000000002f66020000000700 \
            0000000000000400000000000000090000000000000000",
        ),
        (
            Precondition::Present,
            None,
            "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee0800000000000000060000000000000002000000000000002f66030000000900 \
            00000000000000",
        ),
    ] {
        let path = "/f".into();
        pins.pin(&Publish { request: REQUEST, inode: FILE, path, precondition, len: 9, sha256 }, pinned);
    }
    let splice = Splice { request: REQUEST, file: FILE, version: 4, index: 1, remove: 2, upload: InodeId(7) };
    pins.pin(
        &splice,
        "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee0800000000000000060000000000000004000000000000000100000002000000 \
            0700000000000000",
    );
    pins.pin(
        &AbortUpload { request: REQUEST, inode: FILE },
        "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee08000000000000000600000000000000",
    );
}

fn attr() -> Attr {
    Attr {
        inode: FILE,
        is_dir: false,
        len: 0x1_0000_0000,
        tail: Some(location(ChunkState::Open)),
        tail_len_hint: 5,
        chunks: 3,
        version: 4,
        created_ms: 1_700_000_000_000,
        modified_ms: 1_700_000_000_001,
        content_type: "a/b".into(),
        sha256: Some([0x55; 32]),
        replicas: 3,
    }
}

fn location(state: ChunkState) -> Location {
    Location {
        file: FILE,
        index: 2,
        start: 0x1_0000_0000,
        chunk: ChunkHandle(5),
        state,
        epoch: Epoch(3),
        len: 0x2001,
        members: vec![Member { server: ServerId(1), address: "a:1".into(), shards: 2 }],
        expire_ms: 60_000,
    }
}
